"""Many at once: the built executables, 16 at a time, on one kernel, one lease folder and one ruleset."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any

import pytest

from cnikit import hostports, networks
from cnikit.effects import netns, sysctl
from cnikit.effects.kernel import World
from cnikit.errors import CniError
from cnikit.networks import Network
from cnikit.objects import HOST
from cnikit.runtime import Attachment, Runtime
from tests.conftest import BUILT, full, ip, sample, sh

AT_ONCE = 16
# Of all that is done beside ADD and DEL, while containers come and while they go.
LEAST_TURNS = 2
SUBNETS = ("10.101.{}.0/24", "fd00:101:{}::/64")
# What stays when all containers have gone: locks, host-local's memory of what it gave last, and its index.
STAYS = ("lock", "last_reserved_ip.0", "last_reserved_ip.1")


def chain(folder: Path, number: int = 0, subnets: Sequence[str] = SUBNETS) -> Network:
    """Return a network of all that a container of podman's or a kubelet's has, with a bridge of its own."""
    ranges = [[{"subnet": subnet.format(number)}] for subnet in subnets]
    ipam = {"type": "host-local", "dataDir": str(folder / "networks"), "ranges": ranges}
    plugins = [
        {"type": "bridge", "bridge": f"br{number}", "isDefaultGateway": True, "ipMasq": True, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall"},
    ]
    return networks.parse(json.dumps({"cniVersion": "1.1.0", "name": f"net{number}", "plugins": plugins}).encode())


def published(*host_ports: int) -> dict[str, Any]:
    """Return the capability that publishes these ports for tcp, and the same ones for udp."""
    mappings = [
        {"hostPort": port, "containerPort": 80, "protocol": protocol}
        for port in host_ports
        for protocol in ("tcp", "udp")
    ]
    return {"portMappings": mappings}


class Node:
    """A host and its runtime, which has seen no container yet."""

    def __init__(self, host: str, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.runtime = Runtime([BUILT], folder / "cache")
        self.before = self.traces()

    def traces(self) -> set[str]:
        """Return all that is there on account of containers: files, links but bridges, elements of nftables."""
        there = (path for path in self.folder.rglob("*") if path.is_symlink() or not path.is_dir())
        files = {str(path) for path in there if path.name not in STAYS and path.parent.name != "locks"}
        links = {link["ifname"] for link in ip("link")} - {link["ifname"] for link in ip("link show type bridge")}
        elements = {line.strip() for line in sh("nft list ruleset").splitlines() if 'comment "cni:' in line}
        return files | links | elements

    def leases(self, network: str = "net0") -> dict[str, str]:
        """Return the container of each address that is leased."""
        found = (self.folder / "networks" / network).glob("*[.:]*")
        files = [file for file in found if file.name not in (*STAYS, ".owners")]
        return {file.name: file.read_bytes().split(b"\r\n")[0].decode() for file in files}

    def ports(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        """Return where each host port leads, by protocol, port and the address's family."""
        with World() as world:
            found = world[HOST].elements(hostports.TABLE, "cni:")
        led = [element for element in found if element.set in ("ports4", "ports6")]
        ports = {(*element.key, element.set[-1]): element.data for element in led}
        assert len(ports) == len(led)
        return ports

    def veths(self) -> list[str]:
        return [link["ifname"] for link in ip("link show type veth")]


@pytest.fixture
def node(host: str, tmp_path: Path) -> Node:
    return Node(host, tmp_path)


@pytest.fixture
def sandboxes() -> Iterator[Callable[[int], list[str]]]:
    """Make many namespaces, cheaply; each call gives the paths of so many."""
    names: list[str] = []

    def make(count: int) -> list[str]:
        new = [f"cnikit-many-{len(names) + number}" for number in range(count)]
        names.extend(new)
        _batch(f"netns add {name}" for name in new)
        return [f"/run/netns/{name}" for name in new]

    yield make
    _batch(f"netns del {name}" for name in names)


def _batch(lines: Iterator[str]) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


def all_at_once(calls: Sequence[Callable[[], object]]) -> list[object]:
    """Make calls in threads of their own; return in order what they return, or the CniError they raise."""

    def caught(call: Callable[[], object]) -> object:
        try:
            return call()
        except CniError as e:
            return e

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(caught, calls))


def codes(outcomes: Sequence[object]) -> list[int]:
    """Return the error codes of what failed, sorted."""
    return sorted(outcome.code for outcome in outcomes if isinstance(outcome, CniError))


def succeeded(containers: Sequence[Attachment], outcomes: Sequence[object]) -> list[Attachment]:
    return [one for one, outcome in zip(containers, outcomes, strict=True) if not isinstance(outcome, CniError)]


# Everything at once


class Load:
    """Containers that come and go on networks, and what else is done meanwhile; what went wrong is written down."""

    def __init__(self, node: Node, nets: Sequence[Network], paths: Sequence[str]) -> None:
        self.node = node
        self.nets = nets
        self.containers = [
            Attachment(f"c{number}", netns=path, capabilities=published(20000 + number))
            for number, path in enumerate(paths)
        ]
        self.faults: list[str] = []
        self.counts = dict.fromkeys(("ADD", "DEL", "CHECK", "STATUS", "GC", "repair"), 0)
        self.ended = Event()
        self._random = random.Random(4)
        self._lock = Lock()
        self._attached: set[int] = set()
        # Of each container: it is not deleted while it is checked.
        self._busy = [Lock() for _ in paths]
        self._addresses: dict[str, int] = {}
        # Odd from a flush of the ruleset until what it took is repaired.
        self._flushes = 0

    def network(self, number: int) -> Network:
        return self.nets[number % len(self.nets)]

    def add(self, number: int) -> None:
        """ADD, which must succeed, and give addresses that nobody has."""
        added = self._try("ADD", number, self.node.runtime.add)
        with self._lock:
            self._attached.add(number)
            for address in [one.address for one in added.result.ips] if added else ["none"]:
                holder = self._addresses.setdefault(address, number)
                if holder != number:
                    self.faults.append(f"c{number} and c{holder} both have {address}")

    def delete(self, number: int) -> None:
        """DEL, which must succeed."""
        with self._busy[number]:
            with self._lock:
                self._attached.discard(number)
                self._addresses = {address: of for address, of in self._addresses.items() if of != number}
            self._try("DEL", number, self.node.runtime.delete)

    def come_and_go(self, number: int) -> None:
        """ADD, and for every other container DEL and ADD again."""
        self.add(number)
        if number % 2:
            self.delete(number)
            self.add(number)

    def _try(self, verb: str, number: int, run: Callable[[Network, Attachment], Any]) -> Any:
        try:
            return run(self.network(number), self.containers[number])
        except CniError as e:
            self.faults.append(f"{verb} of c{number}: {e} {getattr(e, '__notes__', '')}")
        finally:
            with self._lock:
                self.counts[verb] += 1

    def check_all(self) -> None:
        """CHECK of each container, which must succeed."""
        for number in range(len(self.containers)):
            self._try("CHECK", number, self.node.runtime.check)

    def _turns(self, pause: float) -> Iterator[None]:
        """Give turns until the load has ended, LEAST_TURNS at least."""
        turns = 0
        while turns < LEAST_TURNS or not self.ended.is_set():
            yield
            turns += 1
            self.ended.wait(pause)

    def check_some(self) -> None:
        """CHECK containers by chance. It may fail between a flush of the ruleset and the end of its repair only."""
        for _ in self._turns(0.02):
            with self._lock:
                attached = sorted(self._attached)
                number = self._random.choice(attached) if attached else 0
            with self._busy[number]:
                before = self._flushes
                if number not in self._attached:
                    continue
                try:
                    self.node.runtime.check(self.network(number), self.containers[number])
                except CniError as e:
                    if before % 2 == 0 and before == self._flushes:
                        self.faults.append(f"CHECK of c{number}: {e}")
            with self._lock:
                self.counts["CHECK"] += 1

    def ask_status(self) -> None:
        """STATUS of each network in turn."""
        for _ in self._turns(0.1):
            network = self.network(self.counts["STATUS"])
            self._collect("STATUS", partial(self.node.runtime.status, network))

    def collect_garbage(self) -> None:
        """GC of each network in turn, where nothing is garbage."""
        for _ in self._turns(0.2):
            network = self.network(self.counts["GC"])
            self._collect("GC", partial(self._gc, network))

    def _gc(self, network: Network) -> None:
        self.node.runtime.gc(network)

    def flush_and_repair(self) -> None:
        """Take away all rules, and repair each network."""
        for _ in self._turns(0.5):
            self._flushes += 1
            sh("nft flush ruleset")
            for network in self.nets:
                self._collect("repair", partial(self._repair, network))
            self._flushes += 1

    def _repair(self, network: Network) -> None:
        for done in self.node.runtime.repair(network):
            if done.fault or done.left_alone:
                self.faults.append(f"repair of {done.attachment.container}: {done.fault or done.left_alone}")

    def _collect(self, what: str, run: Callable[[], None]) -> None:
        try:
            run()
        except CniError as e:
            self.faults.append(f"{what}: {e}")
        self.counts[what] += 1

    @contextmanager
    def disturbed(self) -> Iterator[None]:
        """Do everything else meanwhile, from other threads."""
        self.ended.clear()
        disturbances = (self.check_some, self.check_some, self.ask_status, self.collect_garbage, self.flush_and_repair)
        with ThreadPoolExecutor(len(disturbances)) as pool:
            running = [pool.submit(disturb) for disturb in disturbances]
            try:
                yield
            finally:
                self.ended.set()
                for one in running:
                    one.result()

    def each(self, do: Callable[[int], None]) -> None:
        """Do it for all containers, in an order by chance, 16 at a time."""
        numbers = list(range(len(self.containers)))
        self._random.shuffle(numbers)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(do, numbers))


@pytest.mark.parametrize("count", [sample(30), full(200)])
@pytest.mark.parametrize("on", [1, 4], ids=["one-network", "four-networks"])
def test_many_come_and_go_while_everything_else_is_done(
    node: Node, sandboxes: Callable[[int], list[str]], count: int, on: int
) -> None:
    load = Load(node, [chain(node.folder, number) for number in range(on)], sandboxes(count))
    with load.disturbed():
        load.each(load.come_and_go)
    assert load.faults == []
    assert_attached(load)
    load.check_all()
    with load.disturbed():
        load.each(load.delete)
    assert load.faults == []
    assert node.traces() == node.before
    assert (load.counts["ADD"], load.counts["DEL"]) == (count + count // 2, count + count // 2)
    assert load.counts["CHECK"] > count
    assert min(load.counts["STATUS"], load.counts["GC"]) >= 2 * LEAST_TURNS
    assert load.counts["repair"] >= 2 * LEAST_TURNS * on


def assert_attached(load: Load) -> None:
    """All have what the cache says they were given, nobody has the same, and nobody else has anything."""
    node = load.node
    given = {
        attachment.container: [one["address"] for one in cached.result["ips"]]
        for network in load.nets
        for cached in node.runtime.cache.of(network.name)
        for attachment in [cached.attachment]
    }
    assert given.keys() == {attachment.container for attachment in load.containers}
    addresses = [address.partition("/")[0] for both in given.values() for address in both]
    assert len(set(addresses)) == len(addresses) == 2 * len(given)
    leased = {address: who for network in load.nets for address, who in node.leases(network.name).items()}
    assert leased == {address.partition("/")[0]: who for who, both in given.items() for address in both}
    for attachment in load.containers:
        assert on_link(attachment.netns) == sorted(given[attachment.container])
    assert len(node.veths()) == len(given)
    expected = {
        (protocol, str(20000 + number), version): (given[f"c{number}"][version == "6"].partition("/")[0], "80")
        for number in range(len(given))
        for protocol in ("tcp", "udp")
        for version in "46"
    }
    assert node.ports() == expected


def on_link(path: str, name: str = "eth0") -> list[str]:
    """Return the addresses of a container's interface, with their prefix lengths."""
    listed = ip(f"-n {Path(path).name} addr show {name}")[0]["addr_info"]
    return sorted(f"{one['local']}/{one['prefixlen']}" for one in listed if one["scope"] == "global")


# What there is too little of


def test_as_many_adds_succeed_as_there_are_addresses(node: Node, sandboxes: Callable[[int], list[str]]) -> None:
    """13 of a /28, for 20 who come at once. The other family has enough, and nothing of it stays with who failed."""
    network = chain(node.folder, subnets=("10.101.0.0/28", "fd00:101::/64"))
    containers = [Attachment(f"c{number}", netns=path) for number, path in enumerate(sandboxes(20))]
    for _ in range(3):
        outcomes = all_at_once([partial(node.runtime.add, network, one) for one in containers])
        assert codes(outcomes) == [11] * 7
        served = succeeded(containers, outcomes)
        assert len(node.leases()) == 26
        assert set(node.leases().values()) == {one.container for one in served}
        assert len(node.veths()) == 13
        all_at_once([partial(node.runtime.delete, network, one) for one in served])
        assert node.traces() == node.before


def test_of_those_who_ask_for_one_port_at_once_one_gets_it(node: Node, sandboxes: Callable[[int], list[str]]) -> None:
    network = chain(node.folder)
    containers = [Attachment(f"c{n}", netns=path, capabilities=published(8080)) for n, path in enumerate(sandboxes(4))]
    for _ in range(5):
        outcomes = all_at_once([partial(node.runtime.add, network, one) for one in containers])
        assert codes(outcomes) == [7, 7, 7]
        (served,) = (
            one for one, outcome in zip(containers, outcomes, strict=True) if not isinstance(outcome, CniError)
        )
        four, six = on_link(served.netns)
        leads = {"4": (four.partition("/")[0], "80"), "6": (six.partition("/")[0], "80")}
        assert node.ports() == {(kind, "8080", version): leads[version] for kind in ("tcp", "udp") for version in "46"}
        assert (set(node.leases().values()), len(node.veths())) == ({served.container}, 1)
        node.runtime.check(network, served)
        node.runtime.delete(network, served)
        assert node.traces() == node.before


# One container, twice at once


def test_one_container_added_twice_at_once_is_attached_once(node: Node, sandboxes: Callable[[int], list[str]]) -> None:
    network = chain(node.folder)
    (path,) = sandboxes(1)
    web = Attachment("web", netns=path, capabilities=published(8080))
    for _ in range(5):
        assert codes(all_at_once([partial(node.runtime.add, network, web)] * 2)) == [4]
        assert sorted(node.leases().values()) == ["web", "web"]
        assert len(node.veths()) == 1
        node.runtime.check(network, web)
        assert codes(all_at_once([partial(node.runtime.delete, network, web)] * 2)) == []
        assert node.traces() == node.before


def test_so_it_is_with_runtimes_that_do_not_wait_for_each_other(
    node: Node, sandboxes: Callable[[int], list[str]]
) -> None:
    """The specification forbids it, and a runtime that was started again does it. The first has what it was given."""
    (path,) = sandboxes(1)
    config = {"name": "net0", "cniVersion": "1.1.0", **chain(node.folder).plugins[0].config}
    for _ in range(10):
        outcomes = at_once([call("ADD", config, "web", path)] * 4)
        given = [json.loads(out) for status, out in outcomes if status == 0]
        refused = [json.loads(out)["code"] for status, out in outcomes if status]
        assert (len(given), refused) == (1, [4] * 3), outcomes
        assert on_link(path) == sorted(one["address"] for one in given[0]["ips"])
        assert sorted(node.leases()) == sorted(one["address"].partition("/")[0] for one in given[0]["ips"])
        assert len(node.veths()) == 1
        assert at_once([call("CHECK", {**config, "prevResult": given[0]}, "web", path)]) == [(0, "")]
        assert at_once([call("DEL", config, "web", path)] * 4) == [(0, "")] * 4
        assert node.traces() == node.before


Call = tuple[str, dict[str, Any], str, str]


def call(verb: str, config: dict[str, Any], container: str, netns: str = "") -> Call:
    """Return a call of a plugin's executable."""
    return verb, config, container, netns


def at_once(calls: Sequence[Call]) -> list[tuple[int, str]]:
    """Make calls of executables that have all started when the first gets its configuration."""
    started = [_start(one) for one in calls]
    for process, (_, config, _, _) in zip(started, calls, strict=True):
        assert process.stdin
        process.stdin.write(json.dumps(config))
        process.stdin.flush()
    for process in started:
        assert process.stdin
        process.stdin.close()
    outcomes = []
    for process in started:
        assert process.stdout
        with process.stdout as stdout:
            out = stdout.read()
        outcomes.append((process.wait(), out))
    return outcomes


def _start(one: Call) -> subprocess.Popen[str]:
    verb, config, container, netns_path = one
    variables = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": netns_path, "CNI_IFNAME": "eth0"}
    environ = {**variables, "CNI_PATH": str(BUILT), "PATH": os.environ["PATH"]}
    return subprocess.Popen(
        [BUILT / config["type"]], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


# The first ones of all


def static(number: int) -> dict[str, Any]:
    """Return an IPAM that looks at nothing that is shared."""
    addresses = [f"10.102.0.{number + 2}/24", f"fd00:102::{number + 2:x}/64"]
    return {"type": "static", "addresses": [{"address": address} for address in addresses]}


def after_bridge(number: int) -> dict[str, Any]:
    """Return the result of a plugin before, whose interface another suite made."""
    return {"cniVersion": "1.1.0", "ips": [{"address": one["address"]} for one in static(number)["addresses"]]}


def port(number: int) -> dict[str, Any]:
    return {"prevResult": after_bridge(number), "runtimeConfig": published(30000 + number)}


def _bridges() -> list[str]:
    return [link["ifname"] for link in ip("link show type bridge")]


def _gateways() -> list[str]:
    return [one["local"] for one in ip("addr show cni0")[0]["addr_info"] if one["scope"] == "global"]


def _forwarding() -> list[str]:
    return [sysctl.read(f"net/{name}") for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding")]


FIRST: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "bridge": ("bridge", lambda _: {}),
    "bridge and its addresses": ("bridge", lambda n: {"isGateway": True, "ipam": static(n)}),
    "table masquerade": ("bridge", lambda n: {"ipMasq": True, "ipam": static(n)}),
    "table macspoofchk": ("bridge", lambda _: {"macspoofchk": True}),
    "table portmap": ("portmap", port),
    "table firewall": ("firewall", lambda n: {"prevResult": after_bridge(n)}),
    "administrator's chain": ("firewall", lambda n: {"prevResult": after_bridge(n), "iptablesAdminChainName": "MINE"}),
    "rule in iptables' FORWARD": ("firewall", lambda n: {"prevResult": after_bridge(n)}),
}
# What of it is shared, to be there once.
SHARED: dict[str, Callable[[], object]] = {
    "bridge": _bridges,
    "bridge and its addresses": lambda: (_bridges(), _gateways(), _forwarding()),
    "table masquerade": lambda: _rules("inet cnikit_masquerade"),
    "table macspoofchk": lambda: _rules("bridge cnikit_macspoofchk"),
    "table portmap": lambda: _rules("inet cnikit_portmap"),
    "table firewall": lambda: _rules("inet cnikit_firewall"),
    "administrator's chain": lambda: _rules("inet cnikit_firewall"),
    "rule in iptables' FORWARD": lambda: sh("iptables -S FORWARD; ip6tables -S FORWARD"),
}
DROPPING = "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP"


def _rules(table: str) -> list[str]:
    found = json.loads(sh(f"nft -j list table {table}"))["nftables"]
    rules = [one["rule"]["comment"] for one in found if "rule" in one]
    assert rules != []
    return rules


def _owners() -> list[list[str]]:
    """Return whose links there are, and whose elements."""
    return [sorted(set(re.findall(r"cni:first/(\w+)/eth0", sh(listed)))) for listed in ("ip link", "nft list ruleset")]


@pytest.mark.parametrize("what", FIRST)
def test_the_first_ones_all_at_once_make_what_one_would(
    new_container: Callable[[], str], sandboxes: Callable[[int], list[str]], what: str
) -> None:
    """16 on a host that has nothing of it yet, three times: none fails, and what is shared is there as one makes it."""
    paths = sandboxes(AT_ONCE)
    kind, config = FIRST[what]
    base = {"cniVersion": "1.1.0", "name": "first", "type": kind}
    calls = [call("ADD", {**base, **config(number)}, f"c{number}", path) for number, path in enumerate(paths)]
    made = {}
    for some in (calls[:1], calls, calls, calls):
        with fresh(new_container):
            outcomes = at_once(some)
            assert [out for status, out in outcomes if status] == []
            made[len(some)] = SHARED[what]()
            assert made[len(some)] == made[1]
            everybody = sorted(container for _, _, container, _ in some)
            assert everybody in _owners()
            assert all(owners in ([], everybody) for owners in _owners())
            assert at_once([("DEL", *one[1:]) for one in some]) == [(0, "")] * len(some)
            assert _owners() == [[], []]


@contextmanager
def fresh(new_container: Callable[[], str]) -> Iterator[None]:
    """Work on a host of its own, which forwards what it is told to."""
    fd = netns.open_netns(new_container())
    try:
        with netns.Inside(fd):
            sh(DROPPING)
            yield
    finally:
        os.close(fd)


def test_the_first_leases_all_at_once_make_the_folder_and_those_above(tmp_path: Path) -> None:
    for number in range(5):
        data_dir = tmp_path / str(number) / "a" / "b" / "c"
        ipam = {"type": "host-local", "dataDir": str(data_dir), "ranges": [[{"subnet": "10.103.0.0/24"}]]}
        config = {"cniVersion": "1.1.0", "name": "first", "type": "host-local", "ipam": ipam}
        outcomes = at_once([call("ADD", config, f"c{n}", "/run/netns/none") for n in range(AT_ONCE)])
        assert [out for status, out in outcomes if status] == []
        given = {json.loads(out)["ips"][0]["address"] for _, out in outcomes}
        assert given == {f"10.103.0.{n + 2}/24" for n in range(AT_ONCE)}
        files = {file.name for file in (data_dir / "first").iterdir()}
        assert files == {"lock", "last_reserved_ip.0", ".owners", *(one.partition("/")[0] for one in given)}
