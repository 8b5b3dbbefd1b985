"""What an earlier build left, a reboot between ADD and DEL, and an installation while containers come and go.

tests/earlier/ has the rules that builds of this suite have made for two containers, c1 with ports and c2, as nft and
iptables-save list them: of the first build with nftables, of a later one whose portmap knew spares and conditions but
did not yet keep ::1 out, and that one's backends "iptables". Links, leases and backups they left are in Earlier.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cnikit import request
from cnikit.effects import netns
from cnikit.effects.kernel import World
from cnikit.networks import Network, load
from cnikit.objects import CONTAINER
from cnikit.plugins import bridge, firewall, portmap, tuning
from cnikit.runtime import Attachment, Runtime
from tests.conftest import BUILT, PROJECT, Call, full, ip, private, sample, sh
from tests.packets import reached, server
from tests.test_build import Project

RULES = PROJECT / "tests" / "earlier"
PLUGINS = {plugin.name: plugin for plugin in (bridge.PLUGIN, portmap.PLUGIN, firewall.PLUGIN, tuning.PLUGIN)}
PORTS: dict[str, list[dict[str, Any]]] = {
    "c1": [
        {"hostPort": 8080, "containerPort": 80},
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
        {"hostPort": 9000, "containerPort": 9000},
        {"hostPort": 9001, "containerPort": 9001},
        {"hostPort": 70, "containerPort": 71, "hostIP": "192.0.2.1"},
    ],
    "c2": [{"hostPort": 8081, "containerPort": 80}],
}
# What chooses a backend, by the type of the plugin.
IPTABLES: dict[str, dict[str, Any]] = {
    "bridge": {"ipMasqBackend": "iptables", "macspoofchk": False},
    "portmap": {"backend": "iptables"},
    "firewall": {"backend": "iptables"},
}


class Node:
    """A host on which whole chains are called, in this process."""

    def __init__(self, folder: Path, backend: str = "nftables") -> None:
        self.folder = folder
        ranges = [[{"subnet": "10.11.0.0/24"}], [{"subnet": "fd00:11::/64"}]]
        ipam = {"type": "host-local", "dataDir": f"{folder}/networks", "ranges": ranges}
        gateway = {"bridge": "br1", "isDefaultGateway": True, "ipam": ipam}
        self.keys: dict[str, dict[str, Any]] = {
            "bridge": {**gateway, "ipMasq": True, "macspoofchk": True},
            "portmap": {},
            "firewall": {"ingressPolicy": "same-bridge"},
            "tuning": {"mtu": 1400, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "dataDir": f"{folder}/tuning"},
        }
        if backend == "iptables":
            self.keys = {name: {**keys, **IPTABLES.get(name, {})} for name, keys in self.keys.items()}

    def config(self, name: str, container: str, previous: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what a plugin of the chain is given for a container."""
        conf = {"cniVersion": "1.1.0", "name": "net1", "type": name, **self.keys[name]}
        if name == "portmap":
            conf["runtimeConfig"] = {"portMappings": PORTS.get(container, [])}
        return {**conf, **({"prevResult": previous} if previous else {})}

    def add(self, container: str, netns: str) -> dict[str, Any]:
        """Attach a container; return the result."""
        result: dict[str, Any] | None = None
        for name in self.keys:
            environ = {"CNI_CONTAINERID": container, "CNI_NETNS": netns}
            result = Call(PLUGINS[name], "ADD", self.config(name, container, result), **environ).result()
        assert result
        return result

    def each(
        self, verb: str, container: str, netns: str = "", previous: dict[str, Any] | None = None
    ) -> dict[str, tuple[int, str]]:
        """Run a verb of all plugins; return the errors, code and msg, by plugin."""
        order = [*self.keys][:: -1 if verb == "DEL" else 1]
        environ = {"CNI_CONTAINERID": container, "CNI_NETNS": netns}
        calls = {n: Call(PLUGINS[n], verb, self.config(n, container, previous), **environ) for n in order}
        return {name: call.error() for name, call in calls.items() if call.stdout or call.stderr}

    def gc(self, *containers: str) -> None:
        """Have GC keep these containers."""
        valid = {"cni.dev/valid-attachments": [{"containerID": c, "ifname": "eth0"} for c in containers]}
        for name in self.keys:
            assert Call(PLUGINS[name], "GC", {**self.config(name, ""), **valid}).succeeded()

    def repair(self, container: str, netns: str, previous: dict[str, Any]) -> list[str]:
        """Have all plugins put back what is missing; return what they did."""
        environ = {"CNI_COMMAND": "CHECK", "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0", "CNI_NETNS": netns}
        done: list[str] = []
        for name in self.keys:
            stdin = json.dumps(self.config(name, container, previous)).encode
            done += PLUGINS[name].repair(request.parse({**environ, "CNI_PATH": str(BUILT)}, stdin))
        return done

    def leases(self) -> dict[str, str]:
        """Return the containers that addresses are leased to."""
        files = (self.folder / "networks").glob("net1/*[.:]*[0-9]")
        return {file.name: file.read_bytes().split(b"\r\n")[0].decode() for file in files if file.name[0] in "1f"}


def of_container(container: str) -> list[str]:
    """Return all that names a container in the kernel: aliases of links, lines of rules with its tag or an address."""
    words = {"c1": ("net1/c1/", 'id: \\"c1\\"', "10.11.0.2/", "fd00:11::2/"), "c2": ("net1/c2/", 'id: \\"c2\\"')}
    # Elements stand several in a line, as they find room.
    listed = re.sub(r" *(elements = \{|,|\})\s*", "\n", sh("nft -s list ruleset 2>/dev/null"))
    rules = listed + sh("iptables-save; ip6tables-save")
    lines = [line.strip() for line in rules.splitlines() if any(word in line for word in words[container])]
    return sorted([link["ifalias"] for link in ip("link") if f"net1/{container}/" in link.get("ifalias", "")] + lines)


# What an earlier build left

V4, V6, MAC = ("10.11.0.2", "10.11.0.3"), ("fd00:11::2", "fd00:11::3"), ("02:67:ea:c5:a6:d0", "02:06:f8:aa:4a:d5")
HOST_ENDS = ("veth6750ee18", "vethc74adde0")
OWNERS = ("da667ae62c7a70bf1ae633d2d47a26cd", "c979384019512d186ec5c681176b3ddd")
FORWARDING = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.br1.accept_ra=0")
FILTER = "net.ipv4.conf.eth0.arp_filter"
BUILDS = ("links-only", "first-nftables", "second-nftables", "iptables")


class Earlier(Node):
    """A host on which an earlier build has attached c1 and c2."""

    def __init__(self, build: str, folder: Path, containers: tuple[str, str]) -> None:
        super().__init__(folder, "iptables" if build == "iptables" else "nftables")
        self.build = build
        self.netns = dict(zip(("c1", "c2"), containers, strict=True))
        sh(f"ip link add br1 address 02:00:00:00:00:01 type bridge && sysctl -qw {' '.join(FORWARDING)}")
        sh("ip link set br1 up")
        sh("ip addr add 10.11.0.1/24 dev br1 && ip addr add fd00:11::1/64 dev br1 nodad")
        self.results = {name: self._attach(n, name, path) for n, (name, path) in enumerate(self.netns.items())}
        self._lease()
        if build == "links-only":
            for name in ("portmap", "firewall", "tuning"):
                self.keys.pop(name)
            self.keys["bridge"] |= {"ipMasq": False, "macspoofchk": False}
            return
        sh("sysctl -qw net.ipv4.conf.br1.route_localnet=1")
        if build == "iptables":
            sh(f"iptables-restore < {RULES}/iptables.rules && ip6tables-restore < {RULES}/ip6tables.rules")
        else:
            sh(f"nft -f {RULES}/{build}.nft")

    def _attach(self, n: int, container: str, path: str) -> dict[str, Any]:
        end, name = HOST_ENDS[n], Path(path).name
        sh(f"ip link add {end} up master br1 type veth peer name eth0 address {MAC[n]} mtu 1400 netns {name}")
        sh(f"ip link set {end} alias cni:net1/{container}/eth0")
        sh(f"ip -n {name} addr add {V4[n]}/24 brd + dev eth0 && ip -n {name} addr add {V6[n]}/64 dev eth0 nodad")
        sh(f"ip -n {name} link set eth0 up && ip -n {name} route add default via 10.11.0.1")
        sh(f"ip -n {name} route add default via fd00:11::1 && ip netns exec {name} sysctl -qw {FILTER}=1")
        self._back_up(container, path)
        bridge_mac, end_mac = (ip(f"link show {link}")[0]["address"] for link in ("br1", end))
        interfaces = [
            {"name": "br1", "mac": bridge_mac},
            {"name": end, "mac": end_mac},
            {"name": "eth0", "mac": MAC[n], "mtu": 1400, "sandbox": path},
        ]
        ips = [
            {"address": f"{V4[n]}/24", "gateway": "10.11.0.1", "interface": 2},
            {"address": f"{V6[n]}/64", "gateway": "fd00:11::1", "interface": 2},
        ]
        routes = [{"dst": "0.0.0.0/0", "gw": "10.11.0.1"}, {"dst": "::/0", "gw": "fd00:11::1"}]
        return {"cniVersion": "1.1.0", "interfaces": interfaces, "ips": ips, "routes": routes}

    def _back_up(self, container: str, path: str) -> None:
        """Write tuning's file."""
        with World(netns.open_netns(path)) as world:
            link = world[CONTAINER].link("eth0")
            assert link
            identity = world[CONTAINER].identity()
        (self.folder / "tuning").mkdir(exist_ok=True)
        (self.folder / "tuning" / f"{container}_eth0.json").write_text(
            '{\n "mtu": 1500,\n "sysctl": {\n  "net/ipv4/conf/eth0/arp_filter": "0"\n },\n "network": "net1",\n '
            f'"containerID": "{container}",\n "ifname": "eth0",\n "netns": "{identity}",\n "index": {link.index}\n}}'
        )

    def _lease(self) -> None:
        """Write the lease files, and the index as it was at first: only the addresses are behind its links."""
        folder = self.folder / "networks" / "net1"
        owners = folder / ".owners"
        owners.mkdir(parents=True, mode=0o700)
        (folder / "lock").touch(mode=0o750)
        for n, container in enumerate(self.netns):
            for address in (V4[n], V6[n]):
                (folder / address).write_bytes(f"{container}\r\neth0".encode())
                (folder / address).chmod(0o600)
            (owners / OWNERS[n]).symlink_to(f"{V4[n]},{V6[n]}")
        for i, address in enumerate((V4[1], V6[1])):
            (folder / f"last_reserved_ip.{i}").write_text(address)
        moment = folder.stat().st_mtime_ns - 1_000_000_000
        for stamped in (folder, owners):
            os.utime(stamped, ns=(moment, moment))


@pytest.fixture(params=BUILDS)
def earlier(request: pytest.FixtureRequest, host: str, new_container: Callable[[], str], tmp_path: Path) -> Earlier:
    assert host
    return Earlier(request.param, tmp_path, (new_container(), new_container()))


# Links and rules of c1.
LEFT = {"links-only": 1, "first-nftables": 19, "second-nftables": 19, "iptables": 15}


def assert_only_c2_is_left(node: Earlier) -> None:
    assert of_container("c1") == []
    assert node.leases() == {V4[1]: "c2", V6[1]: "c2"}
    assert [link["ifname"] for link in ip("link")] == ["lo", "br1", HOST_ENDS[1]]
    if "tuning" in node.keys:
        assert [path.name for path in (node.folder / "tuning").iterdir()] == ["c2_eth0.json"]


@pytest.mark.parametrize("with_result", [True, False], ids=["with prevResult", "without"])
def test_what_an_earlier_build_attached_is_deleted_and_attached_again(earlier: Earlier, with_result: bool) -> None:
    others = of_container("c2")
    assert len(of_container("c1")) >= LEFT[earlier.build]
    # The firewall's rules of iptables do not say whose they are: without prevResult they cannot be found.
    path, known = earlier.netns["c1"], with_result or earlier.build == "iptables"
    previous = earlier.results["c1"] if known else None
    assert earlier.each("DEL", "c1", path, previous) == {}
    assert_only_c2_is_left(earlier)
    assert of_container("c2") == others
    assert earlier.each("DEL", "c1", path, previous) == {}
    result = earlier.add("c1", path)
    assert [entry["address"] for entry in result["ips"]] == ["10.11.0.4/24", "fd00:11::4/64"]
    assert earlier.each("CHECK", "c1", path, result) == {}
    assert earlier.each("CHECK", "c2", earlier.netns["c2"], earlier.results["c2"]) == {}
    assert of_container("c2") == others


def test_gc_keeps_what_it_is_told_to_of_an_earlier_build(earlier: Earlier) -> None:
    others = of_container("c2")
    assert len(of_container("c1")) >= LEFT[earlier.build]
    earlier.gc("c2")
    if earlier.build == "iptables":
        # The backend's rules of the firewall do not say whose they are.
        assert earlier.each("DEL", "c1", "", earlier.results["c1"]) == {}
    assert_only_c2_is_left(earlier)
    assert of_container("c2") == others


# What attachments have since: who may claim an address, from where a source is believed, where an address with ports is
# found. CHECK does not ask for it.
RECENT = re.compile(
    r"nft add .element (bridge cnikit_macspoofchk own|inet cnikit_firewall senders|inet cnikit_portmap masquerade)"
    r"|learning off|group|fdb"
)
RULES_SINCE = {
    "bridge": (101, "nftables: table bridge cnikit_macspoofchk has not the rules it should in chain prerouting"),
    "firewall": (101, "nftables: table inet cnikit_firewall has not the rules it should in chain forward"),
}
LACKING = {
    "first-nftables": {
        **RULES_SINCE,
        "portmap": (101, "nftables: table inet cnikit_portmap has not the rules it should in chain published"),
    },
    "second-nftables": {
        **RULES_SINCE,
        "portmap": (101, "nftables: table inet cnikit_portmap has not the rules it should in chain output"),
    },
    "iptables": {"portmap": (101, "nftables: table inet cnikit_portmap is gone, or empty")},
}


def test_repair_makes_an_earlier_builds_rules_those_of_this_one(earlier: Earlier) -> None:
    paths, results = earlier.netns, earlier.results
    lacking = LACKING.get(earlier.build, {})
    for container in paths:
        assert earlier.each("CHECK", container, paths[container], results[container]) == lacking
    before = of_container("c1"), of_container("c2")
    put_back = earlier.repair("c1", paths["c1"], results["c1"])
    heads = [line.partition("\n")[0] for line in put_back]
    tables = [head for head in heads if not RECENT.search(head)]
    assert tables == ["nft -f - <<'END'"] * len(lacking)
    for container in paths:
        assert earlier.each("CHECK", container, paths[container], results[container]) == {}
    assert set(before[0]) <= set(of_container("c1"))
    assert of_container("c2") == before[1]
    assert all(map(RECENT.search, earlier.repair("c2", paths["c2"], results["c2"])))
    for container in paths:
        assert earlier.repair(container, paths[container], results[container]) == []


@pytest.mark.parametrize("build", BUILDS[1:3])
def test_a_port_that_an_earlier_build_published_is_taken(
    host: str, new_container: Callable[[], str], tmp_path: Path, build: str
) -> None:
    assert host
    node = Earlier(build, tmp_path, (new_container(), new_container()))
    conf = {**node.config("portmap", "c3", node.results["c2"]), "runtimeConfig": {"portMappings": PORTS["c1"][:1]}}
    assert Call(portmap.PLUGIN, "ADD", conf, CNI_CONTAINERID="c3", CNI_NETNS=node.netns["c2"]).error() == (
        7,
        "runtimeConfig.portMappings: host port 8080/tcp is taken by container c1 (eth0 of network net1)",
    )


# A reboot


BOOT_ID = "/proc/sys/kernel/random/boot_id"
BOOTS = ("11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222")


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Have the kernel say that this is another boot than it was."""
    assert private()
    mounted: list[int] = []

    def boot(number: int) -> None:
        (tmp_path / f"boot{number}").write_text(f"{BOOTS[number]}\n")
        sh(f"mount --bind {tmp_path}/boot{number} {BOOT_ID}")
        mounted.append(number)

    yield boot
    for _ in mounted:
        sh(f"umount {BOOT_ID}")


@pytest.fixture
def rebooted(
    host: str, new_container: Callable[[], str], tmp_path: Path, boot: Callable[[int], None]
) -> Iterator[Node]:
    """Give a host that has c1 and c2 on disk from before a reboot, and nothing of them in the kernel."""
    assert host
    boot(0)
    node = Node(tmp_path)
    for container in ("c1", "c2"):
        node.add(container, new_container())
    boot(1)
    fd = netns.open_netns(new_container())
    with netns.Inside(fd):
        yield node
    os.close(fd)


HELD = {"10.11.0.2": "c1", "fd00:11::2": "c1", "10.11.0.3": "c2", "fd00:11::3": "c2"}


def test_after_a_reboot_a_container_gets_its_address_again_and_all_is_made_anew(
    rebooted: Node, new_container: Callable[[], str]
) -> None:
    assert rebooted.leases() == HELD
    assert (sh("nft list ruleset"), [link["ifname"] for link in ip("link")]) == ("", ["lo"])
    containers = {name: new_container() for name in ("c1", "c2")}
    for (container, path), last in zip(containers.items(), "23", strict=True):
        result = rebooted.add(container, path)
        assert [entry["address"] for entry in result["ips"]] == [f"10.11.0.{last}/24", f"fd00:11::{last}/64"]
        assert rebooted.each("CHECK", container, path, result) == {}
        sh(f"ping -c 1 10.11.0.{last} && ping -c 1 fd00:11::{last}")
    for listening, address in (("0.0.0.0", "10.11.0.1"), ("::", "fd00:11::1")):
        with server(containers["c1"], listening, 80) as web:
            assert reached(web, containers["c2"], address, 8080)
    assert rebooted.leases() == HELD
    for container, path in containers.items():
        assert rebooted.each("DEL", container, path) == {}
    assert rebooted.leases() == {}
    assert [link["ifname"] for link in ip("link")] == ["lo", "br1"]


@pytest.mark.parametrize("path", ["/run/netns/gone", "empty", ""], ids=["gone", "an empty file", "none"])
def test_a_container_from_before_a_reboot_is_deleted(rebooted: Node, path: str) -> None:
    left = rebooted.folder / "left"
    left.touch()  # what a bind mount leaves where it was
    assert rebooted.each("DEL", "c1", str(left) if path == "empty" else path) == {}
    assert rebooted.leases() == {"10.11.0.3": "c2", "fd00:11::3": "c2"}
    assert [file.name for file in (rebooted.folder / "tuning").iterdir()] == ["c2_eth0.json"]


def test_gc_after_a_reboot_frees_what_nobody_has(rebooted: Node, new_container: Callable[[], str]) -> None:
    rebooted.add("c2", new_container())
    rebooted.gc("c2")
    assert rebooted.leases() == {"10.11.0.3": "c2", "fd00:11::3": "c2"}
    assert [file.name for file in (rebooted.folder / "tuning").iterdir()] == ["c2_eth0.json"]


@pytest.mark.parametrize(("another", "mtu"), [(False, 1300), (True, 1350)], ids=["same boot", "another"])
def test_values_from_before_a_reboot_are_not_given_to_an_interface_that_has_the_same_numbers(
    host: str, container: str, tmp_path: Path, boot: Callable[[int], None], another: bool, mtu: int
) -> None:
    """Numbers of namespaces and interfaces begin anew with each boot: all but the boot id is the same here."""
    assert host
    name = Path(container).name
    sh(f"ip -n {name} link add eth0 mtu 1300 type veth peer name peer0")
    conf = {"cniVersion": "1.1.0", "name": "net1", "type": "tuning", "mtu": 1400, "dataDir": f"{tmp_path}/tuning"}
    boot(0)
    Call(tuning.PLUGIN, "ADD", {**conf, "prevResult": {"cniVersion": "1.1.0"}}, CNI_NETNS=container).result()
    boot(int(another))
    sh(f"ip -n {name} link set eth0 mtu 1350")
    assert Call(tuning.PLUGIN, "DEL", conf, CNI_NETNS=container).succeeded()
    assert ip(f"-n {name} link show eth0")[0]["mtu"] == mtu
    assert list((tmp_path / "tuning").iterdir()) == []


# An installation under running traffic


CHAIN: list[dict[str, Any]] = [
    {"type": "bridge", "bridge": "br1", "isDefaultGateway": True, "ipMasq": True},
    {"type": "portmap", "capabilities": {"portMappings": True}},
    {"type": "firewall"},
]


class Coming(threading.Thread):
    """A container that comes and goes until it is told to stop."""

    def __init__(self, runtime: Runtime, network: Network, netns: str, number: int) -> None:
        super().__init__()
        self.calls = 0
        self.fault: BaseException | None = None
        self._stopped = threading.Event()
        self._runtime, self._network = runtime, network
        mapping = {"hostPort": 8000 + number, "containerPort": 80}
        self._attachment = Attachment(f"coming{number}", netns=netns, capabilities={"portMappings": [mapping]})

    def run(self) -> None:
        try:
            while not self._stopped.is_set():
                for verb in (self._runtime.add, self._runtime.check, self._runtime.delete):
                    verb(self._network, self._attachment)
                    self.calls += len(self._network.plugins)
        except BaseException as e:
            self.fault = e

    def stop(self) -> None:
        self._stopped.set()
        self.join()


@pytest.mark.parametrize("installations", [sample(4), full(20)])
def test_an_installation_loses_no_call_and_no_packet(
    host: str, new_container: Callable[[], str], tmp_path: Path, installations: int
) -> None:
    assert host
    to, conf = tmp_path / "bin", tmp_path / "net.d"
    built = next(BUILT.glob(".cnikit-*/executables")).parent
    projects = [Project(tmp_path / name, built) for name in ("one", "other")]
    projects[1].rebuild("00000000")
    projects[0].install(to)
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "networks"), "ranges": [[{"subnet": "10.11.0.0/24"}]]}
    conf.mkdir()
    chain = {"cniVersion": "1.1.0", "name": "net1", "plugins": [{**CHAIN[0], "ipam": ipam}, *CHAIN[1:]]}
    (conf / "net1.conflist").write_text(json.dumps(chain))
    runtime, network = Runtime([to], tmp_path / "cache"), load(conf, "net1")
    staying = [Attachment(f"staying{n}", netns=new_container()) for n in range(2)]
    addresses = [runtime.add(network, attachment).result.ips[0].address.partition("/")[0] for attachment in staying]
    name = Path(staying[0].netns).name
    ping = subprocess.Popen(
        ["ip", "netns", "exec", name, "ping", "-q", "-i", "0.01", addresses[1]], stdout=subprocess.PIPE, text=True
    )
    coming = [Coming(runtime, network, new_container(), n) for n in range(3)]
    for one in coming:
        one.start()
    try:
        for i in range(installations):
            before = [one.calls for one in coming]
            projects[(i + 1) % 2].install(to)
            # Each container has come or gone with every build.
            while any(
                one.calls - calls < len(CHAIN) and one.is_alive() for one, calls in zip(coming, before, strict=True)
            ):
                time.sleep(0.01)
    finally:
        for one in coming:
            one.stop()
        ping.send_signal(signal.SIGINT)
        said, _ = ping.communicate()
    assert [one.fault for one in coming] == [None] * len(coming)
    assert min(one.calls for one in coming) >= installations * len(CHAIN)
    sent, answered = map(int, re.findall(r"(\d+) packets transmitted, (\d+) received", said)[0])
    assert sent == answered
    assert sent > installations
    for attachment in staying:
        runtime.check(network, attachment)
        runtime.delete(network, attachment)
    assert [link["ifname"] for link in ip("link")] == ["lo", "br1"]
    assert "cni:" not in sh("nft list ruleset")
    assert sorted(file.name for file in (tmp_path / "networks" / "net1").glob("10.*")) == []
    assert {path.name for path in to.glob(".*")} == {project.runtime for project in projects}
