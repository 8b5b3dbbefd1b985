"""What others use of the host stays as it is: bridges, the way to the router, settings that are right already."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnikit.effects import mounted, netns, notes, syscalls, sysctl
from cnikit.effects.kernel import World
from cnikit.netlink import rtnetlink
from cnikit.netlink.codec import Message
from cnikit.objects import CONTAINER, HOST, KeptMac, Make, Remove, Sysctl
from cnikit.plugins import bridge, tuning
from tests.conftest import BUILT, Call, ip, sh
from tests.surroundings import wait_for
from tests.tracing import Trace

V4, V6 = "10.11.0.2/24", "fd00:11::2/64"
ROUTER = "fe80::1"


def config(*addresses: str, **keys: Any) -> dict[str, Any]:
    """Return a network's configuration, without addresses of layer 2."""
    static = {"type": "static", "addresses": [{"address": address} for address in addresses]}
    conf = {"cniVersion": "1.1.0", "name": "net1", "type": "bridge", "bridge": "br1"}
    return {**conf, **({"ipam": static} if addresses else {}), **keys}


def call(verb: str, conf: dict[str, Any], netns_path: str, **environ: str) -> Call:
    return Call(bridge.PLUGIN, verb, conf, CNI_NETNS=netns_path, **environ)


def inside(container: str, command: str) -> str:
    """Run a command line in a container; return what it prints."""
    return sh(f"ip netns exec {Path(container).name} {command}").strip()


def value(container: str, setting: str) -> str:
    """Return a setting of IPv6 of a container's interface."""
    return inside(container, f"cat /proc/sys/net/ipv6/conf/eth0/{setting}")


# The MAC address of a bridge


def mac_of(link: str) -> str:
    mac: str = ip(f"link show dev {link}")[0]["address"]
    return mac


def by_hand() -> None:
    sh("ip link add br1 type bridge")


def with_a_network_card() -> None:
    """Make a bridge with a port that leads to a network outside."""
    sh("ip link add br1 type bridge && ip link add nic type veth peer name outside")
    sh("ip link set nic address fe:00:00:00:00:01 && ip link set nic master br1 && ip link set nic up")


def without_its_last_port() -> None:
    """Make a bridge that has lost it, and with it every MAC address."""
    sh("ip link add br1 type bridge && ip link add nic type veth peer name outside && ip link set nic master br1")
    sh("ip link del nic")


def by_our_first_add() -> None:
    """Make none."""


LAYER_2: dict[str, Any] = {}
MADE = [by_hand, with_a_network_card, without_its_last_port, by_our_first_add]


@pytest.mark.parametrize("keys", [{"isGateway": True}, LAYER_2], ids=["gateway", "layer-2"])
@pytest.mark.parametrize("made", MADE)
def test_the_mac_address_of_a_bridge_stays_as_containers_come_and_go(
    host: str, new_container: Callable[[], str], made: Callable[[], None], keys: dict[str, Any]
) -> None:
    assert host
    made()
    before = mac_of("br1") if made in (by_hand, with_a_network_card) else ""

    def conf(number: int) -> dict[str, Any]:
        return config(*([f"10.11.0.{10 + number}/24"] if keys else []), **keys)

    containers = [new_container() for _ in range(6)]
    seen, added = [], []
    for number, container in enumerate(containers):
        added.append(call("ADD", conf(number), container, CNI_CONTAINERID=f"c{number}").result())
        seen.append(mac_of("br1"))
    for number in range(5, 0, -1):
        given = {**conf(number), "prevResult": added[number]}
        assert call("DEL", given, containers[number], CNI_CONTAINERID=f"c{number}").succeeded()
        seen.append(mac_of("br1"))
    said = [result["interfaces"][0]["mac"] for result in added]
    assert {*seen, *said, before or seen[0]} == {seen[0]}
    first = {**conf(0), "prevResult": added[0]}
    assert call("CHECK", first, containers[0], CNI_CONTAINERID="c0").succeeded()


def test_a_mac_address_that_somebody_has_set_is_not_set_again(host: str, new_container: Callable[[], str]) -> None:
    """The kernel would forget the neighbours of all containers each time."""
    assert host
    sh("ip link add br1 address 02:00:00:00:00:09 type bridge && ip link set br1 up")
    sh("ip neigh add 10.11.0.77 lladdr 02:00:00:00:00:77 dev br1 nud reachable")
    call("ADD", config(V4, isGateway=True), new_container()).result()
    assert [entry["lladdr"] for entry in ip("neigh show 10.11.0.77 dev br1")] == ["02:00:00:00:00:77"]
    assert mac_of("br1") == "02:00:00:00:00:09"


@pytest.mark.parametrize("elsewhere", ["no such bridge", "another's bridge"])
def test_a_mac_address_is_set_where_nobody_can_tell(
    host: str, new_container: Callable[[], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, elsewhere: str
) -> None:
    """As where /sys is another namespace's, and none can be mounted."""
    monkeypatch.setattr(syscalls, "mount", _refused)
    monkeypatch.setitem(mounted.USUAL, "sysfs", str(tmp_path))
    if elsewhere == "another's bridge":
        folder = tmp_path / "class/net/br1"
        folder.mkdir(parents=True)
        (folder / "address").write_text("02:00:00:00:00:01\n")
        (folder / "addr_assign_type").write_text("3\n")
    assert host
    by_hand()
    before = mac_of("br1")
    for number in (2, 3):
        conf = config(f"10.11.0.{number}/24", isGateway=True)
        call("ADD", conf, new_container(), CNI_CONTAINERID=f"c{number}").result()
    assert mac_of("br1") == before


def _refused(kind: str) -> int:
    raise OSError(errno.EPERM, kind)


def test_the_namespaces_own_sysfs_tells(host: str, container: str) -> None:
    """Whatever /sys shows: here it is the machine's."""
    assert host
    sh("ip link add br1 type bridge")
    sh(f"ip -n {Path(container).name} link add br1 address {mac_of('br1')} type bridge")
    with World(netns.open_netns(container)) as world:
        assert (world[HOST].keeps_mac("br1"), world[CONTAINER].keeps_mac("br1")) == (False, True)
        assert world[HOST].change([Make(KeptMac(HOST, "br1"))]) == [None]
        assert world[HOST].keeps_mac("br1")
        assert not world[HOST].keeps_mac("nothing")


# The host's router


class Uplink:
    """A link of the host's, and a router at its other end."""

    def __init__(self, name: str, router: str) -> None:
        self.name = name
        self._router = router
        sh(f"ip link add {name} type veth peer name {name} netns {Path(router).name}")
        at_router = f"ip -n {Path(router).name}"
        sh(f"ip link set {name} up && {at_router} link set {name} addrgenmode none")
        sh(f"{at_router} addr add {ROUTER}/64 dev {name} nodad && {at_router} link set {name} up")

    def hears_router(self) -> bool:
        """Have the router say that it is one; tell whether the host knows."""
        advertise(self._router, self.name)
        time.sleep(0.02)
        return self.has_router()

    def has_router(self) -> bool:
        return bool(ip(f"-6 route show default via {ROUTER} dev {self.name}"))

    def accepts(self) -> str:
        return sh(f"cat /proc/sys/net/ipv6/conf/{self.name}/accept_ra").strip()


def advertise(container: str, link: str) -> None:
    """Send a router advertisement to all neighbours."""
    fd = netns.open_netns(container)
    with netns.Inside(fd), socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        index = socket.if_nametoindex(link)
        prefix = struct.pack("!BBBBIII16s", 3, 4, 64, 0xC0, 3600, 3600, 0, socket.inet_pton(socket.AF_INET6, "fd77::"))
        sender.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix, ("ff02::1", 0, 0, index))
    os.close(fd)


@pytest.fixture
def uplink(host: str, new_container: Callable[[], str]) -> Uplink:
    """Give the host a router that it finds by advertisements."""
    assert host
    found = Uplink("up0", new_container())
    sh("echo 1 >/proc/sys/net/ipv6/conf/up0/accept_ra")
    wait_for(found.hears_router, OSError)
    return found


def test_the_host_keeps_its_router_when_ipv6_is_forwarded(
    uplink: Uplink, new_container: Callable[[], str], container: str
) -> None:
    other = Uplink("up1", new_container())
    added = call("ADD", config(V6, isGateway=True), container)
    added.result()
    assert uplink.has_router()
    assert sh("cat /proc/sys/net/ipv6/conf/all/forwarding").strip() == "1"
    assert (uplink.accepts(), other.accepts()) == ("2", "1"), "links without such a router are left alone"
    why = "IPv6 is forwarded from now on, and its router, found by advertisements, would be forgotten"
    assert added.stderr == f"bridge: accept_ra of up0 is set to 2: {why}\n"
    sh(f"ip -6 route del default via {ROUTER} dev up0")
    wait_for(uplink.hears_router)
    second = call("ADD", config("fd00:11::3/64", isGateway=True), new_container(), CNI_CONTAINERID="c2")
    assert (second.status, second.stderr) == (0, ""), "it is said once"


@pytest.mark.parametrize("accept_ra", ["0", "2"])
def test_what_else_accept_ra_says_is_left(uplink: Uplink, container: str, accept_ra: str) -> None:
    sh(f"echo {accept_ra} >/proc/sys/net/ipv6/conf/up0/accept_ra")
    added = call("ADD", config(V6, isGateway=True), container)
    assert (added.status, added.stderr, uplink.accepts()) == (0, "", accept_ra)


def test_a_network_of_ipv4_leaves_the_router_alone(uplink: Uplink, container: str) -> None:
    assert call("ADD", config(V4, isGateway=True), container).stderr == ""
    assert (uplink.has_router(), uplink.accepts()) == (True, "1")


def test_ipv6_is_not_forwarded_where_the_router_would_be_lost(
    uplink: Uplink, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = sysctl.write

    def no_accept_ra(name: str, value: str) -> None:
        if name.endswith("up0/accept_ra"):
            raise OSError(errno.EACCES, name)
        write(name, value)

    monkeypatch.setattr(sysctl, "write", no_accept_ra)
    failed = call("ADD", config(V6, isGateway=True), container)
    assert failed.document["msg"].startswith("sysctl -w net/ipv6/conf/up0/accept_ra=2: Permission denied")
    assert uplink.has_router()
    assert sh("cat /proc/sys/net/ipv6/conf/all/forwarding").strip() == "0"


# What is right already


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(name: str, value: str) -> None:
        raise OSError(errno.EROFS, f"{name}={value}")

    monkeypatch.setattr(sysctl, "write", write)


RIGHT = {"keep_addr_on_down": "1", "accept_dad": "0", "ndisc_notify": "1", "accept_ra": "0", "disable_ipv6": "0"}


def make_right(container: str, **settings: str) -> None:
    """Have interfaces that come to be in a container begin with these, and the host forward."""
    for setting, text in {**RIGHT, **settings}.items():
        inside(container, f"sh -c 'echo {text} >/proc/sys/net/ipv6/conf/default/{setting}'")
    sh(
        "cd /proc/sys/net && echo 1 >ipv4/ip_forward && echo 1 >ipv6/conf/all/forwarding"
        " && echo 0 >ipv6/conf/default/accept_ra"
    )


CONFIGURATIONS = {
    "v4": config(V4, isGateway=True),
    "v6": config(V6, isDefaultGateway=True),
    "both": config(V4, V6, isDefaultGateway=True, ipMasq=True, macspoofchk=True, hairpinMode=True),
    "dad": config(V6, isGateway=True, enabledad=True),
    "no gateway": config(V4, V6),
    "layer 2": config(portIsolation=True, promiscMode=True),
}


@pytest.mark.parametrize("conf", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_nothing_is_written_that_is_there(host: str, container: str, tmp_path: Path, conf: dict[str, Any]) -> None:
    """The executable, where /proc/sys is read-only and no other can be mounted: as in a container."""
    assert host
    dad = "1" if conf.get("enabledad") else "0"
    make_right(container, accept_dad=dad, disable_ipv6=str(int(conf is CONFIGURATIONS["v4"])))
    trace = Trace(tmp_path / "trace")
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": container, "CNI_IFNAME": "eth0"}
    script = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'
    strace = trace.around("-e", "trace=openat,write,fsopen", "-e", "inject=fsopen:error=EPERM")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *strace, BUILT / "bridge"],
        env={**os.environ, **environ, "CNI_PATH": str(BUILT)},
        input=json.dumps(conf),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert [found.text for found in trace.calls() if "sys/net" in found.text and "O_WRONLY" in found.text] == []


def test_what_is_not_right_and_cannot_be_written_is_an_error(host: str, container: str, read_only: None) -> None:
    assert host
    make_right(container, disable_ipv6="1")
    code, msg = call("ADD", config(V6), container).error()
    assert (code, msg) == (
        100,
        "sysctl -w net/ipv6/conf/eth0/disable_ipv6=0: Read-only file system in the container",
    )


@pytest.mark.parametrize(
    "name", ["net.ipv4.conf.IFNAME.arp_filter", "net.ipv4.conf.all.arp_filter", "net.core.somaxconn"]
)
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_tuning_writes_nothing_that_is_there(
    host: str, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, verb: str
) -> None:
    assert host
    added = call("ADD", config(V4), container).result()
    present = inside(container, f"cat /proc/sys/{name.replace('IFNAME', 'eth0').replace('.', '/')}")
    conf: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net1", "type": "tuning", "dataDir": f"{tmp_path}/tuning"}
    conf |= {"sysctl": {name: present}, "prevResult": added}

    tried = []

    def refuse(name: str, value: str) -> None:
        tried.append(name)
        raise OSError(errno.EROFS, f"{name}={value}")

    if verb == "ADD":
        monkeypatch.setattr(sysctl, "write", refuse)
    assert Call(tuning.PLUGIN, "ADD", conf, CNI_NETNS=container).result() == added
    monkeypatch.setattr(sysctl, "write", refuse)
    assert Call(tuning.PLUGIN, "DEL", conf, CNI_NETNS=container).succeeded()
    assert {".all." in name, bool(tried)} in ({True}, {False}), "what sets others may be tried"


def test_tuning_sets_nothing_of_a_link_that_is_there(
    host: str, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are devices whose MAC address cannot be set while they are up, even to what it is."""
    assert host
    added = call("ADD", config(V4), container).result()
    conf: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net1", "type": "tuning", "dataDir": f"{tmp_path}/tuning"}
    conf |= {"mac": added["interfaces"][2]["mac"], "mtu": 1500, "promisc": False, "allmulti": False, "txQLen": 1000}
    (there,) = ip(f"-n {Path(container).name} -d link show dev eth0")
    assert (there["mtu"], there["txqlen"]) == (conf["mtu"], conf["txQLen"])

    def refuse(name: str, *_: object) -> Message:
        raise AssertionError(f"{name} is set")

    for setter in ("set_mac", "set_mtu", "set_txqlen", "set_flags"):
        monkeypatch.setattr(rtnetlink, setter, refuse)
    conf["prevResult"] = added
    Call(tuning.PLUGIN, "ADD", conf, CNI_NETNS=container).result()
    assert Call(tuning.PLUGIN, "DEL", conf, CNI_NETNS=container).succeeded()


def test_what_sets_others_is_written_although_it_is_there(host: str, container: str) -> None:
    """conf.all.disable_ipv6=0 has IPv6 on all links, whatever it was itself."""
    assert host
    call("ADD", config(V4), container).result()
    inside(container, "sh -c 'echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6'")
    with World(netns.open_netns(container)) as world:
        general = Sysctl(CONTAINER, "net/ipv6/conf/all/disable_ipv6", "0")
        assert world[CONTAINER].sysctl(general.name) == "0"
        assert world[CONTAINER].sysctl("net/ipv6/conf/eth0/disable_ipv6") == "1"
        assert world[CONTAINER].change([Make(general)]) == [None]
        assert world[CONTAINER].sysctl("net/ipv6/conf/eth0/disable_ipv6") == "0"


def test_a_value_is_compared_when_its_turn_comes(host: str, container: str) -> None:
    """What goes before it may have changed it."""
    assert host
    call("ADD", config(V4), container).result()
    one, all_ = (f"net/ipv6/conf/{name}/forwarding" for name in ("eth0", "all"))
    with World(netns.open_netns(container)) as world:
        assert world[CONTAINER].change([Make(Sysctl(CONTAINER, all_, "1")), Make(Sysctl(CONTAINER, one, "0"))]) == [
            None,
            None,
        ]
        assert world[CONTAINER].sysctl(one) == "0"


@pytest.mark.parametrize("refused", [False, True], ids=["mounted", "refused"])
def test_a_sysctl_is_that_of_the_namespace_one_is_in(
    host: str, container: str, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    assert host
    monkeypatch.setattr(sysctl, "_proc", -1)
    if refused:
        monkeypatch.setattr(syscalls, "mount", _refused)
    name = "net/ipv4/conf/lo/arp_ignore"
    fd = netns.open_netns(container)
    with netns.Inside(fd):
        sysctl.write(name, "3")
    assert sysctl.read(name) == "0"
    with netns.Inside(fd):
        assert sysctl.read(name) == "3"
    os.close(fd)
    device = os.fstat(sysctl._proc).st_dev
    assert (device == os.stat("/proc").st_dev) == refused
    os.close(sysctl._proc)


def test_what_cannot_be_mounted_is_told() -> None:
    with pytest.raises(OSError, match="fsopen: No such device"):
        syscalls.mount("nonsense")


# IPv6 that nobody configured


def has_link_local(container: str) -> bool:
    return "fe80" in inside(container, "ip -6 addr show dev eth0")


@pytest.mark.parametrize(
    ("conf", "disabled", "accepts"),
    [
        pytest.param(config(V4, isGateway=True), "1", "1", id="v4"),
        pytest.param(config(V6, isGateway=True), "0", "0", id="v6"),
        pytest.param(config(V4, V6, isDefaultGateway=True), "0", "0", id="both"),
        pytest.param(config(V4), "0", "1", id="no gateway"),
        pytest.param(config(V4, V6), "0", "1", id="no gateway, both"),
        pytest.param(config(isGateway=True), "0", "1", id="layer 2"),
        pytest.param(config(V4, isGateway=True, ipv6Autoconf=True), "0", "1", id="v4, turned back"),
        pytest.param(config(V6, isGateway=True, ipv6Autoconf=True), "0", "1", id="v6, turned back"),
        pytest.param(
            config(isGateway=True, ipam={**config(V4)["ipam"], "routes": [{"dst": "::/0", "gw": "fe80::1"}]}),
            "0",
            "0",
            id="v4, with a route of IPv6",
        ),
    ],
)
def test_an_interface_has_the_ipv6_it_is_given(
    host: str, container: str, conf: dict[str, Any], disabled: str, accepts: str
) -> None:
    assert host
    added = call("ADD", conf, container).result()
    assert (value(container, "disable_ipv6"), value(container, "accept_ra")) == (disabled, accepts)
    assert has_link_local(container) == (disabled == "0")
    assert call("CHECK", {**conf, "prevResult": added}, container).succeeded()


@pytest.mark.parametrize(
    ("before", "disabled"),
    [
        pytest.param([{"address": "fd00:99::2/64"}], "0", id="v6"),
        pytest.param([{"address": "10.99.0.2/24"}], "1", id="v4"),
        pytest.param([{"address": "127.0.0.1/8"}, {"address": "::1/128"}], "1", id="loopback"),
    ],
)
def test_ipv6_of_an_earlier_plugin_leaves_it_on(
    host: str, container: str, before: list[dict[str, str]], disabled: str
) -> None:
    assert host
    conf = config(V4, isGateway=True, prevResult={"cniVersion": "1.1.0", "ips": before})
    call("ADD", conf, container).result()
    assert value(container, "disable_ipv6") == disabled


def test_a_neighbour_becomes_nobodys_router(host: str, new_container: Callable[[], str]) -> None:
    """Nor does one reach the host's services by a link-local address."""
    assert host
    attacker, v4, both = (new_container() for _ in range(3))
    call("ADD", config(V4, V6, isGateway=True), attacker).result()
    call("ADD", config("10.11.0.3/24", isGateway=True), v4, CNI_CONTAINERID="c2").result()
    call("ADD", config("10.11.0.4/24", "fd00:11::4/64", isGateway=True), both, CNI_CONTAINERID="c3").result()
    open_ = config("10.11.0.5/24", "fd00:11::5/64", isGateway=True, ipv6Autoconf=True)
    fooled = new_container()
    call("ADD", open_, fooled, CNI_CONTAINERID="c4").result()
    wait_for(lambda: "tentative" not in inside(attacker, "ip -6 addr show dev eth0"))

    def router(container: str) -> str:
        return inside(container, "ip -6 route show default")

    def is_fooled() -> bool:
        advertise(attacker, "eth0")
        time.sleep(0.05)
        return "proto ra" in router(fooled)

    wait_for(is_fooled)  # so what was sent was such as would be believed
    assert [router(v4), router(both)] == ["", ""]
    assert "fd77" not in inside(both, "ip -6 addr")
    assert inside(v4, "ip -6 addr show dev eth0") == ""


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_ipv6_that_cannot_be_turned_off_fails_nothing(
    host: str, container: str, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Where settings are read-only; and what was attached by an earlier build is as it was."""
    assert host
    conf = config(V4, isGateway=True)
    write = sysctl.write

    def no_disable(name: str, value: str) -> None:
        if name.endswith("disable_ipv6"):
            raise OSError(errno.EROFS, name)
        write(name, value)

    monkeypatch.setattr(sysctl, "write", no_disable)
    added = call("ADD", conf, container).result()
    assert value(container, "disable_ipv6") == "0"
    if verb == "CHECK":
        assert call("CHECK", {**conf, "prevResult": added}, container).succeeded()


# Routes of a family without address

BOTH_DEFAULTS = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]


@pytest.mark.parametrize(
    ("addresses", "routes", "kept"),
    [
        pytest.param([V4], BOTH_DEFAULTS, ["0.0.0.0/0"], id="v4"),
        pytest.param([V6], BOTH_DEFAULTS, ["::/0"], id="v6"),
        pytest.param([V4, V6], BOTH_DEFAULTS, ["0.0.0.0/0", "::/0"], id="both"),
        pytest.param([V4], [{"dst": "fd09::/64"}, {"dst": "fd08::/64", "scope": 253}], [], id="no default"),
        pytest.param([V4], [{"dst": "::/0", "gw": "fe80::1"}], ["::/0"], id="with a gateway"),
        pytest.param([V6], [{"dst": "10.9.0.0/16"}, {"dst": "::/0"}], ["::/0"], id="no way of IPv4"),
    ],
)
def test_a_route_of_a_family_without_address_is_left_out(
    host: str, container: str, addresses: list[str], routes: list[dict[str, Any]], kept: list[str]
) -> None:
    assert host
    conf = config(*addresses, isDefaultGateway=True)
    conf["ipam"]["routes"] = routes
    added = call("ADD", conf, container).result()
    families = {"0.0.0.0/0"} if V4 in addresses else set()
    assert {route["dst"] for route in added["routes"]} == {*kept, *families, *(["::/0"] if V6 in addresses else [])}
    there = inside(container, "ip -4 route show default").splitlines() if "0.0.0.0/0" in kept else []
    there += inside(container, "ip -6 route show default").splitlines()
    assert len([line for line in there if line.startswith("default")]) == len([dst for dst in kept if dst[-2:] == "/0"])
    # The reference's result, or an earlier build's, lists them.
    given = {**added, "routes": [*added["routes"], *[route for route in routes if "gw" not in route]]}
    assert call("CHECK", {**conf, "prevResult": given}, container).succeeded()


def test_a_remark_is_made_for_what_was_set_and_not_for_what_was_there(host: str) -> None:
    assert host
    remarked = Sysctl(HOST, "net/ipv4/conf/lo/arp_ignore", "1", before="0", remark="arp_ignore is set")
    said = []
    with World() as world:
        for change in (Make(remarked), Make(remarked), Remove(remarked)):
            assert world[HOST].change([change]) == [None]
            said.append(notes.take("test"))
    assert said == ["test: arp_ignore is set\n", "", ""]
