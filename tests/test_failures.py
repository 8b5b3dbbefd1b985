"""Every change that a verb makes fails in turn, on the kernel in memory: nothing is left half done.

A case is a plugin with a configuration. ADD, DEL and GC are run once to see which changes they ask the kernel for; then
each of these is refused, and what the host has is compared by FakeWorld.state(), with the lease files and tuning's.
Both containers' interfaces are in the fake's one other namespace: eth0 is of container c1, eth1 of its neighbour c2.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cnikit import chained, flow, hostports, macspoofchk, ownership, spec
from cnikit.effects import delegate, firewalld
from cnikit.effects.netlink import NetlinkError
from cnikit.ipam import host_local
from cnikit.netlink.rtnetlink import Link
from cnikit.objects import CONTAINER, HOST, Address, Bridge, Change, Make, Remove, Route, Up
from cnikit.plugin import Plugin
from cnikit.plugins import bridge, firewall, loopback, portmap, tuning
from cnikit.request import Request
from cnikit.result import Result
from cnikit.ruleset import Ruleset
from cnikit.value import Value
from tests.conftest import Call
from tests.fake_kernel import FakeWorld, is_optional

EPERM, ENOMEM, EBUSY, EEXIST, ENOBUFS = 1, 12, 16, 17, 105
C1, C2 = "c1", "c2"
IFNAMES = {C1: "eth0", C2: "eth1"}
V4 = [{"subnet": "10.11.0.0/24"}]
V6 = [{"subnet": "fd00:11::/64"}]
DEFAULT = [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.11.0.9"}]


class Tried(Value):
    """How much there is to try: the changes that each verb asks for, pairs of a change and an undo, and looks."""

    first: int  # an ADD where nothing is made yet
    beside: int  # an ADD where the neighbour is attached
    undos: int
    delete: int
    gc: int
    looks: tuple[int, int, int]  # ADD, DEL, GC


class Case(Value):
    """A plugin, and how it is configured for a container.

    shared: what a failed first ADD may leave or change, by name as FakeWorld.state() has it: this and nothing else.
    before: makes what the host has before.
    stale: what is nobody's any more, or in the way, that a failed ADD may have taken away.
    left: what a failed ADD or a DEL may leave as it is, for it goes with the interface, or is the next DEL's.
    """

    plugin: Plugin
    keys: Callable[[str], dict[str, Any]]
    shared: tuple[str, ...]
    tried: Tried
    before: Callable[[Host], None] = lambda _: None
    stale: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


class Host:
    """A kernel in memory that the plugins work on, and a folder for files."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.world = FakeWorld()
        self.looked: Unreadable | None = None
        for module in (flow, loopback, tuning):
            monkeypatch.setattr(module, "open_world", lambda _: self.looked or self.world)
        for module in (flow, portmap, firewall, chained):
            monkeypatch.setattr(module, "World", lambda: self.looked or self.world)
        monkeypatch.setattr(delegate, "serve", _in_this_process)
        monkeypatch.setattr(hostports, "LOCK", f"{folder}/portmap.lock")
        self.firewalld = False
        monkeypatch.setattr(firewalld, "is_running", lambda: self.firewalld)

    def call(self, case: Case, verb: str, container: str, previous: dict[str, Any] | None = None) -> Call:
        """Run a verb of a case's plugin for a container."""
        conf = {"cniVersion": "1.1.0", "name": "net1", "type": case.plugin.name, **case.keys(container)}
        if "ipam" in conf:
            conf["ipam"] = {**conf["ipam"], "type": "host-local", "dataDir": f"{self.folder}/networks"}
        if case.plugin is tuning.PLUGIN:
            conf["dataDir"] = f"{self.folder}/tuning"
        if previous:
            conf["prevResult"] = previous
        if verb == "GC":
            conf["cni.dev/valid-attachments"] = [{"containerID": C2, "ifname": IFNAMES[C2]}]
        environ = {
            "CNI_CONTAINERID": container,
            "CNI_IFNAME": IFNAMES[container],
            "CNI_NETNS": f"/run/netns/{container}",
        }
        return Call(case.plugin, verb, conf, **environ)

    def ready(self, case: Case, beside: bool) -> dict[str, Any] | None:
        """Make the host anew, the neighbour attached or with its lease only; return c1's prevResult for the case."""
        self.world = FakeWorld()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.firewalld = False
        self.link_keys: dict[str, Any] = {}
        self.call(IPAM, "ADD", C2).result()
        case.before(self)
        if beside:
            # lo is in the container, of which there is one only.
            neighbour = LINK if case.plugin is loopback.PLUGIN else case
            self.call(neighbour, "ADD", C2, self._link(neighbour, C2)).result()
        return self._link(case, C1)

    def _link(self, case: Case, container: str) -> dict[str, Any] | None:
        """Attach a container, by bridge, for a plugin that comes later in a list."""
        if case.plugin not in (portmap.PLUGIN, firewall.PLUGIN, tuning.PLUGIN):
            return None
        return self.call(LINK.replace(keys=dual(**self.link_keys)), "ADD", container).result()

    def state(self) -> dict[str, object]:
        """Return all there is: what the kernel has, and the files but for what host-local keeps beside leases."""
        files = [
            path for path in self.folder.rglob("*") if path.is_file() and path.name not in ("lock", "portmap.lock")
        ]
        kept = [path for path in files if not path.name.startswith("last_reserved_ip.")]
        contents = {f"file {path.relative_to(self.folder)}": path.read_bytes() for path in kept}
        return {**self.world.state(), **contents}

    def leases(self, container: str) -> list[str]:
        """Return the addresses leased to a container."""
        files = (self.folder / "networks").glob("net1/*")
        return [
            file.name for file in files if file.is_file() and file.read_bytes().startswith(f"{container}\r".encode())
        ]


class Unreadable:
    """A world in which the nth look at the kernel fails, as where there is no memory for the answer; 0 is none."""

    def __init__(self, world: FakeWorld, nth: int = 0) -> None:
        self.world = world
        self.nth = nth
        self.looks: list[str] = []

    def __getitem__(self, where: str) -> Any:
        return _Looks(self, where)

    def __enter__(self) -> Unreadable:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)


class _Looks:
    """A namespace of it."""

    def __init__(self, looked: Unreadable, where: str) -> None:
        self._looked = looked
        self._where = where

    def __getattr__(self, name: str) -> Any:
        def look(*arguments: Any) -> Any:
            self._looked.looks.append(f"{self._where}: {name}")
            if len(self._looked.looks) == self._looked.nth:
                raise NetlinkError(ENOBUFS, "")
            return found(*arguments)

        found = getattr(self._looked.world[self._where], name)
        return found if name in ("sysctl", "identity") else look


def _in_this_process(request: Request, verb: str) -> Result | None:
    return host_local.PLUGIN.serve(request.replace(verb=verb))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path / "host", monkeypatch)


# What is tried


def bridged(**keys: Any) -> Callable[[str], dict[str, Any]]:
    """Return the configuration of a bridge with addresses."""
    return lambda _: {"bridge": "br1", "ipam": {"ranges": [V4], "routes": ROUTES}, **keys}


def dual(**keys: Any) -> Callable[[str], dict[str, Any]]:
    """Return that of a bridge that is the default gateway, in both families."""
    return bridged(**{"isDefaultGateway": True, "ipam": {"ranges": [V4, V6], "routes": ROUTES}, **keys})


def published(**keys: Any) -> Callable[[str], dict[str, Any]]:
    """Return the configuration of portmap; the neighbour's ports are a thousand higher."""

    def shifted(container: str) -> list[dict[str, Any]]:
        by = 1000 if container == C2 else 0
        return [{**p, "hostPort": p["hostPort"] + by, "containerPort": p["containerPort"] + by} for p in PORTS]

    return lambda container: {"runtimeConfig": {"portMappings": shifted(container)}, **keys}


def port(host: int, container: int, protocol: str = "tcp", ip: str = "") -> dict[str, Any]:
    return {"hostPort": host, "containerPort": container, "protocol": protocol, "hostIP": ip}


def always(**keys: Any) -> Callable[[str], dict[str, Any]]:
    return lambda _: keys


def other_address(host: Host) -> None:
    """Give the bridge an address that is in the gateway's way."""
    address = Address(HOST, "br1", "10.99.0.1/24")
    assert host.world[HOST].change([Make(Bridge(HOST, "br1")), Make(address)]) == [None, None]


def lo_down(host: Host) -> None:
    assert host.world[CONTAINER].change([Remove(Up(CONTAINER, "lo"))]) == [None]


def policy_drop(host: Host) -> None:
    """Have iptables forward only what it is told to."""
    host.world[HOST].nftables.dropping["forward"] = [("ip", "filter", "FORWARD"), ("ip6", "filter", "FORWARD")]


def firewalld_runs(host: Host) -> None:
    host.firewalld = True


def isolated_by_bridge(host: Host) -> None:
    host.link_keys = {"portIsolation": True}


def tuned(container: str) -> dict[str, Any]:
    """Return tuning's configuration, with all its keys."""
    sysctls = {"net.ipv4.conf.IFNAME.arp_notify": "0", "net/ipv6/conf/IFNAME/accept_ra": "0"}
    link = {"mac": f"02:00:00:00:77:0{container[1]}", "promisc": True, "mtu": 1400, "allmulti": True, "txQLen": 77}
    return {"sysctl": sysctls, **link}


def held(host: Host, tag: str) -> None:
    """Have ports of the case's under another tag, with the table they are in."""
    ports = [hostports.port(hostports.Mapping("tcp", n, 80), bytes((10, 99, 0, 2)), tag) for n in (8080, 9001)]
    made = [Make(Ruleset(HOST, "cnikit_portmap", hostports.TABLE)), *map(Make, ports)]
    assert host.world[HOST].change(made) == [None] * 3


def held_by_who_is_gone(host: Host) -> None:
    held(host, "cni:net1/c9/eth0")


def held_by_another_network(host: Host) -> None:
    """Have c1 hold them on a network that it is on, too, by an interface that is there."""
    held(host, "cni:net0/c1/eth7")
    name = ownership.names_of("cni:net0/c1/eth7")[0]
    assert host.world[HOST].add(Link(99, name, "veth", alias="cni:net0/c1/eth7")) == 0


ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.11.0.9"}]
PORTS = (
    *(port(8080, 80), port(5353, 53, "udp"), port(70, 71, "tcp", "192.0.2.1")),
    *(port(9000, 9000), port(9001, 9001), port(9002, 9002)),
)
CONDITIONS = {"conditionsV4": ["ip", "saddr", "192.0.2.2"], "conditionsV6": ["ip6", "saddr", "2001:db8::2"]}

# What is shared.
BRIDGE = ("host link br1", "host MAC address of br1", "host sysctl net/ipv6/conf/br1/accept_ra")
GATEWAY = (*BRIDGE, "host address 10.11.0.1/24 on br1", "host sysctl net/ipv4/ip_forward")
GATEWAYS = (*GATEWAY, "host address fd00:11::1/64 on br1", "host sysctl net/ipv6/conf/all/forwarding")
MASQUERADE = "host rule inet cnikit_masquerade *"
SPOOFING = "host rule bridge cnikit_macspoofchk *"
OWNED = f"host element bridge cnikit_macspoofchk owned? {macspoofchk.group('br1')} 0x*0001"  # the gateways
PORTMAP, LOCALNET = "host rule inet cnikit_portmap *", "host sysctl net/ipv4/conf/br1/route_localnet"
HOSTPORT = ("host iptables ? nat CNI-HOSTPORT-DNAT", "host iptables ? nat PREROUTING", "host iptables ? nat OUTPUT")
MARKING = (
    *(f"host iptables ? nat CNI-HOSTPORT-{name}" for name in ("SETMARK", "MASQ")),
    "host iptables ? nat POSTROUTING",
)
FIREWALL = "host rule inet cnikit_firewall forward *"
ACCEPTING = (
    "host rule inet cnikit_firewall admins *",
    "host rule ip filter FORWARD *",
    "host rule ip6 filter FORWARD *",
)
CONFINED, WITHIN = (f"host element inet cnikit_firewall {key}" for key in ("confined br1", "within br1 br1"))
FORWARD = (*(f"host iptables ? filter {name}" for name in ("FORWARD", "CNI-FORWARD", "CNI-ADMIN")),)
ISOLATION = "host iptables ? filter CNI-ISOLATION-STAGE-?"

OTHER = ("host address 10.99.0.1/24 on br1",)
HELD = ("host element inet cnikit_portmap ports4 tcp 8080", "host element inet cnikit_portmap ports4 tcp 9001")
HOST_END = f"host link {ownership.names_of('cni:net1/c1/eth0')[0]}"

IPAM = Case(host_local.PLUGIN, always(ipam={"ranges": [V4, V6]}), (), Tried(0, 0, 0, 0, 0, (0, 0, 0)))
LINK = Case(bridge.PLUGIN, dual(), (), Tried(0, 0, 0, 0, 0, (0, 0, 0)))
CASES = {
    "bridge": Case(bridge.PLUGIN, bridged(), BRIDGE, Tried(14, 10, 8, 1, 1, (18, 5, 4))),
    "bridge, both families": Case(bridge.PLUGIN, dual(), GATEWAYS, Tried(25, 17, 10, 1, 1, (21, 5, 4))),
    "bridge, duplicate address detection": Case(
        bridge.PLUGIN, dual(enabledad=True), GATEWAYS, Tried(27, 19, 11, 1, 1, (21, 5, 4))
    ),
    "bridge, ipMasq": Case(
        bridge.PLUGIN, dual(ipMasq=True), (*GATEWAYS, MASQUERADE), Tried(30, 21, 46, 5, 5, (38, 9, 8))
    ),
    "bridge, ipMasq by iptables": Case(
        bridge.PLUGIN, dual(ipMasq=True, ipMasqBackend="iptables"), GATEWAYS, Tried(27, 19, 29, 3, 3, (21, 8, 7))
    ),
    "bridge, macspoofchk": Case(
        bridge.PLUGIN, bridged(macspoofchk=True), (*BRIDGE, SPOOFING), Tried(24, 19, 53, 7, 7, (35, 9, 8))
    ),
    "bridge, all of nftables": Case(
        bridge.PLUGIN,
        dual(macspoofchk=True, ipMasq=True),
        (*GATEWAYS, SPOOFING, OWNED, MASQUERADE),
        Tried(44, 32, 153, 13, 13, (52, 10, 9)),
    ),
    "bridge, a MAC address that is asked for": Case(
        bridge.PLUGIN,
        dual(runtimeConfig={"mac": "02:00:00:00:00:09"}),
        GATEWAYS,
        Tried(26, 18, 11, 4, 1, (22, 9, 4)),
    ),
    "bridge, hairpinMode": Case(
        bridge.PLUGIN, bridged(hairpinMode=True, mtu=1400), BRIDGE, Tried(15, 11, 9, 1, 1, (18, 5, 4))
    ),
    "bridge, portIsolation": Case(
        bridge.PLUGIN, bridged(portIsolation=True), BRIDGE, Tried(15, 11, 9, 1, 1, (18, 5, 4))
    ),
    "bridge, promiscMode": Case(bridge.PLUGIN, bridged(promiscMode=True), BRIDGE, Tried(15, 10, 8, 1, 1, (19, 5, 4))),
    "bridge, forceAddress": Case(
        bridge.PLUGIN,
        bridged(isGateway=True, forceAddress=True),
        GATEWAY,
        Tried(16, 10, 7, 1, 1, (18, 5, 4)),
        other_address,
        OTHER,
    ),
    "bridge without ipam": Case(bridge.PLUGIN, always(bridge="br1"), BRIDGE, Tried(9, 5, 4, 1, 1, (14, 8, 4))),
    "bridge, the interface left down": Case(
        bridge.PLUGIN, always(bridge="br1", disableContainerInterface=True), BRIDGE, Tried(7, 3, 2, 1, 1, (12, 8, 4))
    ),
    "loopback": Case(
        loopback.PLUGIN, always(), (), Tried(1, 1, 0, 1, 0, (3, 1, 0)), lo_down, left=("container link lo",)
    ),
    "portmap": Case(portmap.PLUGIN, published(), (PORTMAP, LOCALNET), Tried(14, 12, 24, 12, 12, (9, 9, 9))),
    "portmap, masqAll": Case(
        portmap.PLUGIN, published(masqAll=True), (PORTMAP, LOCALNET), Tried(13, 11, 20, 11, 11, (8, 9, 9))
    ),
    "portmap, no snat": Case(portmap.PLUGIN, published(snat=False), (PORTMAP,), Tried(12, 11, 20, 11, 11, (8, 9, 9))),
    "portmap, conditions": Case(
        portmap.PLUGIN, published(**CONDITIONS), (PORTMAP, LOCALNET), Tried(9, 7, 9, 7, 7, (11, 10, 10))
    ),
    "portmap by iptables": Case(
        portmap.PLUGIN,
        published(backend="iptables"),
        (PORTMAP, LOCALNET, *HOSTPORT, *MARKING),
        Tried(8, 6, 5, 6, 6, (10, 10, 10)),
    ),
    "portmap by iptables, conditions": Case(
        portmap.PLUGIN,
        published(conditionsV4=["-s", "192.0.2.2"]),
        (PORTMAP, LOCALNET, *HOSTPORT, *MARKING),
        Tried(8, 6, 5, 6, 6, (10, 10, 10)),
    ),
    "portmap by iptables, another mark": Case(
        portmap.PLUGIN,
        published(externalSetMarkChain="MARK"),
        (PORTMAP, LOCALNET, *HOSTPORT),
        Tried(8, 6, 5, 6, 6, (10, 10, 10)),
    ),
    "portmap, ports of who is gone": Case(
        portmap.PLUGIN, published(), (LOCALNET,), Tried(15, 14, 24, 12, 12, (13, 9, 9)), held_by_who_is_gone, HELD
    ),
    "portmap, ports of another network": Case(
        portmap.PLUGIN, published(), (LOCALNET,), Tried(13, 12, 24, 12, 12, (15, 9, 9)), held_by_another_network
    ),
    "firewall": Case(firewall.PLUGIN, always(), (FIREWALL,), Tried(5, 4, 0, 4, 4, (11, 15, 10))),
    "firewall, what iptables drops": Case(
        firewall.PLUGIN,
        always(iptablesAdminChainName="MINE"),
        (FIREWALL, *ACCEPTING),
        Tried(8, 4, 0, 4, 4, (14, 15, 10)),
        policy_drop,
    ),
    "firewall, same-bridge": Case(
        firewall.PLUGIN,
        always(ingressPolicy="same-bridge"),
        (FIREWALL, CONFINED, WITHIN),
        Tried(7, 4, 0, 4, 4, (13, 15, 10)),
    ),
    "firewall, isolated": Case(
        firewall.PLUGIN,
        always(ingressPolicy="isolated"),
        (FIREWALL, CONFINED),
        Tried(8, 6, 4, 4, 4, (14, 15, 10)),
        left=(HOST_END,),
    ),
    "firewall, isolated behind portIsolation": Case(
        firewall.PLUGIN,
        always(ingressPolicy="isolated"),
        (FIREWALL, CONFINED),
        Tried(7, 5, 0, 4, 4, (13, 15, 10)),
        isolated_by_bridge,
    ),
    "firewall by iptables": Case(firewall.PLUGIN, always(backend="iptables"), FORWARD, Tried(2, 2, 1, 2, 0, (2, 6, 3))),
    "firewall by iptables, same-bridge": Case(
        firewall.PLUGIN,
        always(backend="iptables", ingressPolicy="same-bridge"),
        (*FORWARD, ISOLATION),
        Tried(4, 4, 2, 2, 0, (2, 6, 3)),
    ),
    "firewall by iptables, isolated": Case(
        firewall.PLUGIN,
        always(backend="iptables", ingressPolicy="isolated"),
        (*FORWARD, ISOLATION),
        Tried(4, 4, 2, 2, 0, (2, 6, 3)),
    ),
    "firewall by firewalld": Case(
        firewall.PLUGIN, always(), (FIREWALL,), Tried(7, 6, 10, 6, 6, (13, 16, 11)), firewalld_runs
    ),
    "firewall by firewalld, same-bridge": Case(
        firewall.PLUGIN,
        always(ingressPolicy="same-bridge"),
        (FIREWALL, CONFINED, WITHIN),
        Tried(9, 6, 10, 6, 6, (15, 16, 11)),
        firewalld_runs,
    ),
    "tuning": Case(tuning.PLUGIN, tuned, (), Tried(7, 7, 42, 7, 0, (7, 8, 0)), left=("file tuning/c1_eth0.json",)),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def changes_of(host: Host, call: Callable[[], Call]) -> list[Change]:
    """Return the changes that a call asks for, each once."""
    host.world.log.clear()
    assert call().status == 0
    return list(dict.fromkeys(host.world.log))


def differing(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """Return the names of what is not the same in two states."""
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


def words(change: Change) -> str:
    """Return the first line of what an engineer would type."""
    typed = change.what.removal() if isinstance(change, Remove) else change.what.command()
    return typed.partition("\n")[0]


def tried_with(changes: list[Change], errnos: tuple[int, ...]) -> Iterator[tuple[Change, int]]:
    """Pair changes with errnos; nothing is there already that is to be removed, nor is such a route a failure."""
    for change, errno in product(changes, errnos):
        if errno != EEXIST or (isinstance(change, Make) and not isinstance(change.what, Route)):
            yield change, errno


def assert_told(failed: Call, change: Change) -> None:
    """Assert that the error object names the command line of a change, in one line."""
    code, msg = failed.error()
    assert (code, msg.startswith(f"{words(change)}: "), "\n" in msg) == (spec.KERNEL_REFUSED, True, False), msg


def without(names: Iterable[str], *patterns: str) -> list[str]:
    """Return the names that are of none of these patterns."""
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)]


def assert_works(host: Host, case: Case, previous: dict[str, Any] | None) -> None:
    """Assert that an ADD succeeds, that its CHECK does, and that its DEL leaves what was there, and what is shared."""
    before = host.state()
    added = host.call(case, "ADD", C1, previous).result()
    assert host.call(case, "CHECK", C1, added).succeeded()
    assert host.call(case, "DEL", C1, added).succeeded()
    assert without(differing(before, host.state()), *case.shared, *case.stale, *case.left) == []


# The kernel may go on behind a message that it refuses, and another transaction is not even tried.
MANNERS = [
    pytest.param((EPERM, EEXIST), False, id="goes on"),
    pytest.param((ENOMEM, EBUSY), True, id="stops", marks=pytest.mark.all),
]


@pytest.mark.parametrize(("errnos", "stops"), MANNERS)
@pytest.mark.parametrize("beside", [False, True], ids=["first", "beside"])
@each_case
def test_an_add_is_undone_whatever_change_fails(
    host: Host, case: Case, beside: bool, errnos: tuple[int, ...], stops: bool
) -> None:
    previous = host.ready(case, beside)
    changes = changes_of(host, lambda: host.call(case, "ADD", C1, previous))
    assert len(changes) >= (case.tried.beside if beside else case.tried.first) > 0
    made: set[str] = set()
    for change, errno in tried_with(changes, errnos):
        previous = host.ready(case, beside)
        before = host.state()
        host.world.fail, host.world.stops = {change: errno}, stops
        failed = host.call(case, "ADD", C1, previous)
        host.world.fail = {}
        if is_optional(change):
            assert host.call(case, "DEL", C1, failed.result()).succeeded()
            continue
        assert_told(failed, change)
        changed = without(differing(before, host.state()), *case.stale)
        assert without(changed, *(() if beside else case.shared)) == [], words(change)
        assert_works(host, case, previous)
        made.update(changed, differing(before, host.state()))
    # All that may be left was, once.
    assert beside or [pattern for pattern in case.shared if without(made, pattern) == [*made]] == []


@each_case
def test_what_cannot_be_undone_is_told_and_left_to_del(host: Host, case: Case) -> None:
    previous = host.ready(case, beside=True)
    changes = changes_of(host, lambda: host.call(case, "ADD", C1, previous))
    tried = 0
    for change in changes:
        for undo in _undone(host, case, change, changes):
            previous = host.ready(case, beside=True)
            before = host.state()
            host.world.fail = {change: EPERM, undo: EBUSY}
            failed = host.call(case, "ADD", C1, previous)
            host.world.fail = {}
            assert_told(failed, change)
            details = failed.document["details"]
            assert f"not undone: {words(undo)}: Device or resource busy" in details
            assert details.count("not undone") == 1
            left = without(differing(before, host.state()), *case.stale, *case.left)
            undone = without(of_removal(undo, host.world), *case.stale, *case.left)
            # An interface that is still there keeps its addresses.
            keeps = any(name.startswith("host link veth") for name in left)
            assert [name for name in left if not (keeps and name.startswith("file networks/"))] == undone
            assert host.call(case, "DEL", C1, previous).succeeded()
            assert without(differing(before, host.state()), *case.stale, *case.left) == []
            tried += 1
    assert tried >= case.tried.undos


def _undone(host: Host, case: Case, change: Change, changes: list[Change]) -> list[Change]:
    """Return what an ADD takes away again when a change fails."""
    previous = host.ready(case, beside=True)
    host.world.log.clear()
    host.world.fail = {change: EPERM}
    failed = host.call(case, "ADD", C1, previous).status
    return [one for one in host.world.log if failed and isinstance(one, Remove) and one not in changes]


def of_removal(change: Change, world: FakeWorld) -> list[str]:
    """Return the names of what changes when one change alone is made."""
    alone = copy.deepcopy(world)
    assert alone[change.what.where].change([change]) == [None]
    return differing(world.state(), alone.state())


@pytest.mark.parametrize("verb", ["DEL", "GC"])
@each_case
def test_a_clean_up_does_the_rest_whatever_change_fails_and_the_next_one_finishes(
    host: Host, case: Case, verb: str
) -> None:
    given = host.call(case, "ADD", C1, host.ready(case, beside=True)).result()
    changes = changes_of(host, lambda: host.call(case, verb, C1, given))
    assert len(changes) >= (case.tried.delete if verb == "DEL" else case.tried.gc)
    clean = host.state()
    for change in changes:
        host.call(case, "ADD", C1, host.ready(case, beside=True)).result()
        kept = of_removal(change, host.world)
        host.world.fail = {change: EBUSY}
        failed = host.call(case, verb, C1, given)
        host.world.fail = {}
        # A clean-up takes away; what it makes is for neighbours to hear.
        if is_optional(change) or isinstance(change, Make):
            assert failed.succeeded()
        else:
            assert_told(failed, change)
            left = without(differing(clean, host.state()), *case.left)
            assert without(left, *kept, *needed(case, verb)) == []
            assert host.call(case, verb, C1, given).succeeded()
        assert differing(clean, host.state()) == []


def needed(case: Case, verb: str) -> tuple[str, ...]:
    """Return what a GC that failed keeps, as nothing else tells the next one the addresses."""
    kept = tuple(f"host element inet cnikit_firewall {name}?*" for name in ("containers", "senders"))
    return kept if (case.plugin, verb) == (firewall.PLUGIN, "GC") else ()


@pytest.mark.parametrize("verb", ["ADD", "DEL", "GC"])
@each_case
def test_nothing_is_left_for_good_whatever_look_at_the_kernel_fails(host: Host, case: Case, verb: str) -> None:
    def ready() -> dict[str, Any] | None:
        previous = host.ready(case, beside=True)
        return previous if verb == "ADD" else host.call(case, "ADD", C1, previous).result()

    given = ready()
    host.looked = Unreadable(host.world)
    assert host.call(case, verb, C1, given).status == 0
    looks, clean = host.looked.looks, host.state()
    host.looked = None
    assert len(looks) >= case.tried.looks[("ADD", "DEL", "GC").index(verb)]
    for nth, look in enumerate(looks, 1):
        given = ready()
        before = host.state()
        host.looked = Unreadable(host.world, nth)
        failed = host.call(case, verb, C1, given)
        host.looked = None
        left = without(differing(before if verb == "ADD" else clean, host.state()), *case.stale, *case.left)
        if verb == "ADD":
            assert "netlink: No buffer space available" in failed.error()[1]
            assert left == []
            assert_works(host, case, given)
            continue
        # What iptables-save does not tell is no fault of a GC: the next one asks again.
        assert failed.status == 1 or not left or look == "host: chains", look
        # The addresses are released, and the links deleted unless they are what cannot be seen.
        assert not [name for name in left if name.startswith("file networks/")], look
        assert HOST_END not in left or "link" in look or "change" in look, look
        assert host.call(case, verb, C1, given).succeeded()
        assert differing(clean, host.state()) == []
