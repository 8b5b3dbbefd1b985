"""A kernel in memory: two namespaces that take the changes plans make. It passes the contract test of the real one."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from socket import AF_INET6
from typing import TYPE_CHECKING, Any, Self

from cnikit.address import contains, format_cidr, parse_cidr
from cnikit.conditions import Conditional
from cnikit.errors import CniError
from cnikit.hostports import FlowsOf, StaleFlows
from cnikit.iptables import Edit, Rules
from cnikit.netlink.nftables import Element, Table
from cnikit.netlink.rtnetlink import (
    IF_OPER_UP,
    IFA_F_NODAD,
    IFA_F_TENTATIVE,
    IFF_ALLMULTI,
    IFF_PROMISC,
    IFF_UP,
    BoundAddress,
    KernelRoute,
    Link,
)
from cnikit.objects import (
    CONTAINER,
    HOST,
    Address,
    Alias,
    Bridge,
    Carrier,
    Change,
    Device,
    FdbEntry,
    KeptMac,
    Object,
    Port,
    Refusal,
    Remove,
    Route,
    Settled,
    Sysctl,
    Up,
    Veth,
)
from cnikit.settings import (
    AllMulticast,
    Announced,
    Group,
    Isolated,
    Learning,
    Mac,
    Mtu,
    Promiscuous,
    QueueLength,
    Setting,
)
from cnikit.zones import ZoneSource

if TYPE_CHECKING:
    from cnikit.iptables import Chains
from tests.fake_nftables import ECANCELED, FakeNftables

ENOENT, EEXIST, ENODEV, EINVAL, EXFULL = 2, 17, 19, 22, 54
MOST_PORTS = 1023  # linux: BR_MAX_PORTS, less port 0

SYSCTLS = {
    "net/ipv4/ip_forward": "0",
    "net/ipv6/conf/all/forwarding": "0",
    "net/ipv6/conf/lo/disable_ipv6": "0",
}
LINK_SYSCTLS = {
    "net/ipv4/conf/{}/arp_notify": "0",
    "net/ipv4/conf/{}/route_localnet": "0",
    "net/ipv6/conf/{}/accept_dad": "1",
    "net/ipv6/conf/{}/accept_ra": "1",
    "net/ipv6/conf/{}/disable_ipv6": "0",
    "net/ipv6/conf/{}/enhanced_dad": "1",
    "net/ipv6/conf/{}/keep_addr_on_down": "0",
    "net/ipv6/conf/{}/ndisc_notify": "0",
}
NO_MAC = "00:00:00:00:00:00"
BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


def _reaches(bound: BoundAddress, address: bytes) -> bool:
    return contains(bound.packed, bound.length, address)


class FakeNamespace:
    """One namespace."""

    def __init__(self, world: FakeWorld) -> None:
        self.world = world
        self.present = {"lo": Link(1, "lo", flags=IFF_UP, mac="00:00:00:00:00:00", mtu=65536)}
        self.kept: set[int] = set()  # bridges whose MAC address somebody has set
        self.bound: dict[int, list[BoundAddress]] = {}
        self.routing: list[tuple[int, KernelRoute]] = []
        self.fdb: dict[tuple[int, str], str] = {}  # port by bridge and MAC address
        self.sysctls = dict(SYSCTLS)
        self.zones: dict[str, set[str]] = {"trusted": set(), "internal": set()}  # of firewalld
        self.flows: set[tuple[str, str, int]] = set()  # protocol, address and port first sent to
        self.iptables: dict[tuple[int, str], Chains] = {}
        self.nftables = FakeNftables()

    def link(self, name: str) -> Link | None:
        return self.present.get(name)

    def link_at(self, index: int) -> Link | None:
        return next((link for link in self.present.values() if link.index == index), None)

    def links(self) -> list[Link]:
        return list(self.present.values())

    def addresses(self, name: str) -> list[BoundAddress]:
        link = self.link(name)
        return self.bound.get(link.index, []) if link else []

    def routes(self, af: int) -> list[KernelRoute]:
        return [route for family, route in self.routing if family == af]

    def has_fdb_entry(self, port: str, mac: str) -> bool:
        link = self.link(port)
        return link is not None and self.fdb.get((link.master, mac)) == port

    def sysctl(self, name: str) -> str:
        if name not in self.sysctls:
            raise FileNotFoundError(ENOENT, "No such file or directory")
        return self.sysctls[name]

    def keeps_mac(self, name: str) -> bool:
        link = self.link(name)
        return link is not None and link.index in self.kept

    def way(self, address: bytes) -> str:
        links = [link for link in self.present.values() for a in self.bound.get(link.index, []) if _reaches(a, address)]
        return links[0].name if links else ""

    def tables(self) -> set[tuple[str, str]]:
        # iptables' own tables are there where there are chains of theirs.
        families = {4: "ip", 6: "ip6"}
        return {(families[version], table) for version, table in self.iptables} | self.nftables.tables()

    def rules(self, table: Table) -> list[tuple[str, str]]:
        return self.nftables.rules(table)

    def table_fault(self, table: Table) -> CniError | None:
        self.nftables.table_fault(table)
        return None

    def dropping(self, hook: str) -> list[tuple[str, str, str]]:
        return self.nftables.dropping.get(hook, [])

    def element(self, table: Table, wanted: Element) -> Element | None:
        return self.nftables.element(table, wanted)

    def held(self, asked: Sequence[tuple[Table, Element]]) -> list[Element]:
        found = (self.nftables.element(table, wanted) for table, wanted in asked)
        return [element for element in found if element]

    def elements(self, table: Table, prefix: str) -> list[Element]:
        return self.nftables.elements(table, prefix)

    def chains(self, version: int, table: str, variant: str = "") -> Chains:
        assert not variant, "the fake has iptables of nftables' kind only"
        return self.iptables.get((version, table), {})

    def iptables_fault(self, version: int, variant: str = "") -> CniError | None:
        assert (version in (4, 6), variant) == (True, ""), "the fake has iptables of nftables' kind only"
        return None

    def legacy(self, table: str) -> list[int]:
        assert table
        return []

    def unreadable(self, rules: Sequence[str]) -> str:
        return "syntax error" if any("nonsense" in rule for rule in rules) else ""

    def chains_there(self, table: str, names: Collection[str]) -> set[str]:
        return {name for name in names for version in (4, 6) if name in self.chains(version, table)}

    def cookie(self) -> int:
        return 1 + [*self.world.namespaces.values()].index(self)

    def identity(self) -> str:
        return f"boot/{self.cookie()}"

    def has_source(self, zone: str, cidr: str) -> bool:
        if zone not in self.zones:
            raise CniError(7, f"firewalldZone: firewalld has no zone {zone!r}")
        return cidr in self.zones[zone]

    def zone_of(self, cidr: str) -> str:
        return next((zone for zone, sources in self.zones.items() if cidr in sources), "")

    def change(self, changes: Sequence[Change]) -> list[Refusal | None]:
        outcomes: list[Refusal | None] = []
        for kind, together in itertools.groupby(changes, lambda change: change.what.transaction):
            if any(outcomes):
                break
            makers = {"nftables": self._transaction, "iptables": self._restore}
            outcomes += makers.get(kind, self._one_by_one)(list(together))
        return outcomes

    def _transaction(self, changes: Sequence[Change]) -> list[Refusal | None]:
        self.world.log += changes
        errnos = [self.world.failing(change) for change in changes]
        if any(errnos):
            return [Refusal(errno or ECANCELED, "") for errno in errnos]
        return self.nftables.change(changes)

    def _restore(self, changes: Sequence[Change]) -> list[Refusal | None]:
        """Do the changes of each family whole or not at all; behind one that fails the next is not tried."""
        refusals: dict[Change, Refusal] = {}
        for version in dict.fromkeys(change.what.version for change in changes if isinstance(change.what, Rules)):
            together = [c for c in changes if isinstance(c.what, Rules) and c.what.version == version]
            if refusals:
                refusals |= dict.fromkeys(together, Refusal(ECANCELED, ""))
                continue
            self.world.log += together
            errno = max(map(self.world.failing, together))
            if errno:
                refusals = {**dict.fromkeys(together, Refusal(ECANCELED, "")), together[0]: Refusal(errno, "")}
                continue
            for change in together:
                self._rules(change)
        return [refusals.get(change) for change in changes]

    def _one_by_one(self, changes: Sequence[Change]) -> list[Refusal | None]:
        outcomes: list[Refusal | None] = []
        for change in changes:
            self.world.log.append(change)
            others = {
                Conditional: self._conditional,
                StaleFlows: self._forget_flows,
                FlowsOf: self._forget_flows,
                ZoneSource: self._bind,
            }
            do = others.get(type(change.what), self._change)
            errno = self.world.failing(change) or do(change)
            outcomes.append(Refusal(errno, "") if errno and not is_optional(change) else None)
            if self.world.stops and any(outcomes):
                break
        return outcomes

    def _change(self, change: Change) -> int:
        if isinstance(change, Remove):
            return self._remove(change.what)
        what = change.what
        name = getattr(what, "name", "")
        if isinstance(what, Bridge):
            return self.add(Link(self.world.next_index(), name, "bridge", self.world.next_mac(), what.mtu or 1500))
        if isinstance(what, Veth):
            return self._veth(what)
        if isinstance(what, Sysctl):
            if name not in self.sysctls:
                return ENODEV if what.message(removing=False) else ENOENT
            self.sysctls[name] = what.value
            return 0
        return self._about_link(what, self.present.get(name))

    def _rules(self, change: Change) -> None:
        what = change.what
        assert isinstance(what, Rules)
        edit = Edit(self.chains(what.version, what.name))
        (what.take if isinstance(change, Remove) else what.make)(edit)
        self.iptables[what.version, what.name] = edit.chains

    def _conditional(self, change: Change) -> int:
        what = change.what
        assert isinstance(what, Conditional)
        if isinstance(change, Remove):
            self.nftables.change([Remove(what.foreign())])
            return 0
        return self.nftables.append(what.table, what.name, [what.comment] * len(what.rules))

    def add(self, link: Link) -> int:
        """Add a link."""
        if link.name in self.present:
            return EEXIST
        self.present[link.name] = link
        self.sysctls.update({name.format(link.name): value for name, value in LINK_SYSCTLS.items()})
        return 0

    def _bind(self, change: Change) -> int:
        what, removal = change.what, isinstance(change, Remove)
        assert isinstance(what, ZoneSource)
        if what.name not in self.zones:
            return 0 if removal else EINVAL
        if removal:
            self.zones[what.name].discard(what.cidr)
        elif self.zone_of(what.cidr) not in ("", what.name):
            return EEXIST
        else:
            self.zones[what.name].add(what.cidr)
        return 0

    def _forget_flows(self, change: Change) -> int:
        what = change.what
        if isinstance(what, FlowsOf):
            return 0  # the fake does not know where flows are led
        assert isinstance(what, StaleFlows)
        self.flows = {
            (protocol, address, port)
            for protocol, address, port in self.flows
            if protocol != what.name
            or port not in what.ports
            or (":" in address) != (what.family == AF_INET6)
            or what.address not in ("", address)
        }
        return 0

    def _veth(self, what: Veth) -> int:
        inside = self.world[CONTAINER]
        if what.name in self.present or what.peer in inside.present:
            return EEXIST
        here, there = self.world.next_index(), self.world.next_index()
        bridge = self.present.get(what.bridge)
        if what.bridge and bridge is None:
            return ENODEV
        master = bridge.index if bridge else 0
        if bridge and sum(port.master == master for port in self.present.values()) == MOST_PORTS:
            return EXFULL
        mtu = what.mtu or 1500
        end = Link(here, what.name, "veth", self.world.next_mac(), mtu, master=master, learning=bool(master))
        self.add(end.replace(peer=there, peer_elsewhere=True))
        self.follow(master)
        mac = what.mac or self.world.next_mac()
        inside.add(Link(there, what.peer, "veth", mac, mtu, peer=here, peer_elsewhere=True))
        return 0

    def follow(self, index: int) -> None:
        """Give a bridge its lowest port's MAC address, or none, if it has none of its own."""
        bridge = self.link_at(index)
        if bridge and index not in self.kept:
            ports = [link.mac for link in self.present.values() if link.master == index]
            self._set(bridge.replace(mac=min(ports, default=NO_MAC)))

    def _about_link(self, what: Object, link: Link | None) -> int:
        if link is None:
            return ENODEV
        if isinstance(what, Up):
            self._set(link.replace(flags=link.flags | IFF_UP))
        elif isinstance(what, Setting):
            self._setting(what, what.value, link)
        elif isinstance(what, KeptMac):
            self.kept.add(link.index)
            self._set(link.replace(mac=self.world.next_mac() if link.mac == NO_MAC else link.mac))
        elif isinstance(what, Alias):
            self._set(link.replace(alias=what.alias))
        elif isinstance(what, Port):
            self._set(link.replace(hairpin=what.hairpin, isolated=what.isolated))
        elif isinstance(what, FdbEntry):
            return self._fdb_entry(what, link)
        elif isinstance(what, Address):
            return self._address(what, link)
        elif isinstance(what, Route):
            return self._route(what, link)
        else:
            self._wait(what, link)
        return 0

    def _fdb_entry(self, what: FdbEntry, link: Link) -> int:
        if not link.master:
            return EINVAL
        self.fdb[link.master, what.mac] = what.name
        return 0

    def _wait(self, what: Object, link: Link) -> None:
        if isinstance(what, Settled):
            settled = [a.replace(flags=a.flags & ~IFA_F_TENTATIVE) for a in self.bound.get(link.index, [])]
            self.bound[link.index] = settled
        else:
            assert isinstance(what, Carrier)

    def _set(self, link: Link) -> None:
        """Replace a link; a veth's ends have a carrier while both are up."""
        self.present[link.name] = link
        for namespace in self.world.namespaces.values():
            for other in list(namespace.present.values()):
                if other.index == link.peer and other.peer == link.index:
                    state = IF_OPER_UP if link.flags & other.flags & IFF_UP else 2
                    namespace.present[other.name] = other.replace(operstate=state)
                    self.present[link.name] = link.replace(operstate=state)

    def _setting(self, what: Setting, value: Any, link: Link) -> None:
        flag = {Promiscuous: IFF_PROMISC, AllMulticast: IFF_ALLMULTI}.get(type(what), 0)
        if flag:
            self._set(link.replace(flags=link.flags | flag if value else link.flags & ~flag))
        else:
            fields = {Mac: "mac", Announced: "mac", Mtu: "mtu", QueueLength: "txqlen", Isolated: "isolated"}
            fields |= {Learning: "learning", Group: "group"}
            self.kept |= {link.index} if isinstance(what, Mac) and link.kind == "bridge" else set()
            self._set(link.replace(**{fields[type(what)]: value}))

    def _address(self, what: Address, link: Link) -> int:
        packed, length = parse_cidr(what.cidr)
        bound = self.bound.setdefault(link.index, [])
        if any((a.packed, a.length) == (packed, length) for a in bound):
            return EEXIST
        v6_flags = IFA_F_TENTATIVE if what.dad else IFA_F_NODAD
        bound.append(BoundAddress(link.index, packed, length, v6_flags if len(packed) == 16 else 0))
        return 0

    def _route(self, what: Route, link: Link) -> int:
        route, af = what.to_kernel(link.index)
        if (af, route) not in self.routing:
            self.routing.append((af, route))
        return 0

    def _remove(self, what: Object) -> int:
        if isinstance(what, Sysctl) and what.before is not None and what.name in self.sysctls:
            self.sysctls[what.name] = what.before
        link = self.present.get(getattr(what, "name", ""))
        if link is None:
            return 0
        if isinstance(what, Address):
            packed, length = parse_cidr(what.cidr)
            kept = [a for a in self.bound.get(link.index, []) if (a.packed, a.length) != (packed, length)]
            self.bound[link.index] = kept
        elif isinstance(what, Up):
            self._set(link.replace(flags=link.flags & ~IFF_UP))
        elif isinstance(what, Setting):
            self._setting(what, what.before, link)
        else:
            assert isinstance(what, Veth | Device)
            self.world.delete(link)
        return 0


def is_optional(change: Change) -> bool:
    """Tell whether failing to is no failure."""
    return isinstance(change.what, StaleFlows | FlowsOf) or (isinstance(change.what, Sysctl) and change.what.optional)


class FakeWorld:
    """The two namespaces. `fail` makes changes fail with an errno; with `stops` nothing behind a refusal is tried."""

    def __init__(self) -> None:
        self.namespaces = {HOST: FakeNamespace(self), CONTAINER: FakeNamespace(self)}
        self.log: list[Change] = []
        self.fail: dict[Change, int] = {}
        self.stops = False
        self._index = 1

    def __getitem__(self, where: str) -> FakeNamespace:
        return self.namespaces[where]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def has_container(self) -> bool:
        """Tell that there is one."""
        return True

    def is_container(self, sandbox: str) -> bool:
        """Tell whether a path is that of a container: there is one only."""
        return bool(sandbox)

    def failing(self, change: Change) -> int:
        """Return the errno a change is to fail with, 0 for none."""
        return self.fail.get(change, 0)

    def next_index(self) -> int:
        """Return an index no link has had."""
        self._index += 1
        return self._index

    def next_mac(self) -> str:
        """Return a MAC address no link has had."""
        return f"02:00:00:00:00:{self.next_index() % 256:02x}"

    def delete(self, link: Link) -> None:
        """Delete a link and its peer, with their addresses, routes and sysctls."""
        for namespace in self.namespaces.values():
            for name, other in list(namespace.present.items()):
                if other.index == link.index or (other.peer == link.index and link.peer == other.index):
                    del namespace.present[name]
                    namespace.bound.pop(other.index, None)
                    namespace.fdb = {key: port for key, port in namespace.fdb.items() if port != name}
                    namespace.kept.discard(other.index)
                    namespace.follow(other.master)
                    namespace.routing = [(af, r) for af, r in namespace.routing if r.oif != other.index]
                    for sysctl in LINK_SYSCTLS:
                        namespace.sysctls.pop(sysctl.format(name), None)

    def state(self) -> dict[str, object]:
        """Return all there is by its name, to compare before with after: links, rules, sysctls that were set, ..."""
        return {f"{where} {name}": what for where, n in self.namespaces.items() for name, what in _there(n)}


def _there(namespace: FakeNamespace) -> Iterator[tuple[str, object]]:
    names = {link.index: link.name for link in namespace.present.values()}
    yield from ((f"link {link.name}", link) for link in namespace.present.values())
    yield from ((f"MAC address of {names[index]}", index) for index in namespace.kept)
    for index, bound in namespace.bound.items():
        yield from ((f"address {format_cidr(a.packed, a.length)} on {names[index]}", a) for a in bound)
    yield from ((f"fdb {mac}", port) for (_, mac), port in namespace.fdb.items())
    for af, route in namespace.routing:
        everything = bytes(16 if af == AF_INET6 else 4)
        yield f"route {format_cidr(route.dst or everything, route.length)} on {names[route.oif]}", route
    unset = {f.format(name): value for f, value in LINK_SYSCTLS.items() for name in namespace.present}
    yield from ((f"sysctl {name}", v) for name, v in namespace.sysctls.items() if unset.get(name) != v)
    yield from ((f"zone {zone} {cidr}", zone) for zone, cidrs in namespace.zones.items() for cidr in cidrs)
    for (version, table), chains in namespace.iptables.items():
        found = {chain: tuple(rules) for chain, rules in chains.items() if rules or chain not in BUILT_IN}
        yield from ((f"iptables {version} {table} {chain}", rules) for chain, rules in found.items())
    for place, rules in namespace.nftables.comments.items():
        for rule in rules:
            yield f"rule {' '.join((*place, *rule))}", rules.count(rule)
    for set_, held in namespace.nftables.held.items():
        yield from ((f"element {' '.join((*set_, *key))}", element) for key, element in held.items())
