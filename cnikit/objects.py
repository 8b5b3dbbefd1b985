"""What plans are made of: links, addresses, routes, sysctls. Values that know four things.

    command()        what an engineer would type to make it (iproute2, sysctl)
    fault(world)     why the kernel does not have it as it should be, "" when it has: verify, CHECK
    conflict(world)  why it can never be made here, before anything is touched
    changes(world)   the changes that make it, usually itself

`where` is the namespace it is in: HOST or CONTAINER. Nothing here changes the kernel; it is read through the World.
"""

from __future__ import annotations

from _socket import AF_INET6

from cnikit import spec
from cnikit.address import (
    broadcast,
    family,
    format_cidr,
    format_ip,
    is_link_local,
    is_loopback,
    network,
    parse_cidr,
    parse_ip,
)
from cnikit.errors import CniError
from cnikit.netlink import devconf
from cnikit.netlink.rtnetlink import (
    IF_OPER_UP,
    IFA_F_DADFAILED,
    IFA_F_TENTATIVE,
    IFF_UP,
    RT_TABLE_MAIN,
    RTPROT_RA,
    BoundAddress,
    KernelRoute,
    Link,
)
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Protocol

    from cnikit.iptables import Chains
    from cnikit.netlink.codec import Message
    from cnikit.netlink.nftables import Element, Table

    class Namespace(Protocol):
        """What is read of and changed in one network namespace: cnikit.effects.kernel, or a fake."""

        def link(self, name: str) -> Link | None:
            """Return the link of that name."""

        def link_at(self, index: int) -> Link | None:
            """Return the link with that index."""

        def links(self) -> Sequence[Link]:
            """Return all links."""

        def addresses(self, name: str) -> Sequence[BoundAddress]:
            """Return the addresses of a link."""

        def routes(self, af: int) -> Sequence[KernelRoute]:
            """Return the routes of a family, of all tables."""

        def way(self, address: bytes) -> str:
            """Return the name of the link by which an address is reached, "" when there is no route."""

        def has_fdb_entry(self, port: str, mac: str) -> bool:
            """Tell whether a port's bridge sends what is for a MAC address to that port, whatever it learns."""

        def sysctl(self, name: str) -> str:
            """Return a sysctl's value; raise OSError when there is none."""

        def keeps_mac(self, name: str) -> bool:
            """Tell whether a link's MAC address has been set; not where that cannot be told."""

        def tables(self) -> Collection[tuple[str, str]]:
            """Return family and name of all nftables tables there are."""

        def rules(self, table: Table) -> Sequence[tuple[str, str]]:
            """Return chain and comment of the rules of an nftables table, none when there is no such table."""

        def chains_there(self, table: str, names: Collection[str]) -> Collection[str]:
            """Return those of these chains that iptables has, of either family and variant.

            Raises CniError (7) without iptables.
            """

        def table_fault(self, table: Table) -> CniError | None:
            """Return why an nftables table of ours cannot be made, None when it can be, or is there."""

        def dropping(self, hook: str) -> Sequence[tuple[str, str, str]]:
            """Return family, table and name of the nftables chains on a hook that drop what they do not accept."""

        def element(self, table: Table, wanted: Element) -> Element | None:
            """Return what is in a set under an element's key, or in an interval around it."""

        def held(self, asked: Sequence[tuple[Table, Element]]) -> Sequence[Element]:
            """Return what is there under these keys, of whatever tables; what is not there is left out."""

        def elements(self, table: Table, prefix: str) -> Sequence[Element]:
            """Return the elements of a table's sets of which an owner's tag begins so."""

        def chains(self, version: int, table: str, variant: str = "") -> Chains:
            """Return the rules of each chain of an iptables table, version 4 or 6, variant "" or "-legacy"."""

        def iptables_fault(self, version: int, variant: str = "") -> CniError | None:
            """Return why iptables rules of a family cannot be made, None when there is a program for it."""

        def legacy(self, table: str) -> Sequence[int]:
            """Return the families (4, 6) that have a table of the legacy iptables, which nftables does not show.

            Where no program can read it there is nothing to be done about it, and so it counts as none.
            """

        def unreadable(self, rules: Sequence[str]) -> str:
            """Return why nft does not understand rules, "" when it does. Raises CniError (7) where there is no nft."""

        def has_source(self, zone: str, cidr: str) -> bool:
            """Tell whether an address is a source of a zone of firewalld's. Raise CniError when there is no such."""

        def zone_of(self, cidr: str) -> str:
            """Return the zone an address is a source of, "" when it is none's."""

        def change(self, changes: Sequence[Change]) -> Sequence[Refusal | None]:
            """Do these in order; answer for each one tried, None when it is done.

            What follows a refusal may be left untried. Already gone is done, and so is an optional sysctl that cannot
            be set. Neighbours of nftables, and those of a family of iptables, are one transaction: what is not done as
            another failed is refused with ECANCELED.
            """

    class World(Protocol):
        """The two namespaces an attachment lies in."""

        def __getitem__(self, where: str) -> Namespace:
            """Return the namespace HOST or CONTAINER."""


HOST = "host"
CONTAINER = "container"

EXFULL = 54


class Refusal(Value):
    """Why a change was not made: the kernel's errno, and its own words where it has any; 0 and a program's words."""

    errno: int
    why: str


class Object(Value):
    """Something of the kernel's, in one of the two namespaces; the name is its link's, or a sysctl's."""

    where: str
    name: str

    # What makes neighbours of this kind, as one transaction if it can; "" is rtnetlink, where each fails for itself.
    transaction = ""
    # Whether repair puts it back when it has gone.
    mendable = False

    @property
    def word(self) -> str:
        """Return the name as it stands in a command line."""
        return spec.word(self.name)

    def command(self) -> str:
        """Return the command line that makes it, as a shell takes it."""
        raise NotImplementedError

    def removal(self) -> str:
        """Return the command line that removes it; only what an Add or Del may hold has one."""
        raise NotImplementedError

    def fault(self, world: World) -> str:
        """Say what is wrong with it in the kernel, "" when nothing is."""
        raise NotImplementedError

    def is_checked(self, world: World) -> bool:
        """Tell whether CHECK asks for it, and what makes it: an earlier build's attachment may have none.

        repair makes it there.
        """
        return True

    def conflict(self, world: World) -> CniError | None:
        """Return the error when something else is in its place."""
        return None

    def explained(self, errno: int, world: World) -> CniError | None:
        """Return the error for what the kernel refuses with this errno, None where its words will do."""
        return None

    def impossible(self, world: World) -> CniError | None:
        """Return why it cannot be made before this host is changed, None when it can: STATUS."""
        return None

    def changes(self, world: World) -> Sequence[Change]:
        """Return what must be done to have it."""
        return (Make(self),)

    def removals(self, world: World) -> Sequence[Change]:
        """Return what must be done to undo that."""
        return (Remove(self),)

    def message(self, removing: bool) -> Message | None:
        """Return the rtnetlink message that makes or removes it, if that takes no look at the kernel."""
        return None


class Change(Value):
    """One thing done to the kernel."""

    what: Object


class Make(Change):
    """Bring it about."""


class Remove(Change):
    """Take it away; already gone is done."""


class Bridge(Object):
    """A bridge; mtu (bytes) is only set when it is created."""

    mtu: int = 0

    def command(self) -> str:
        mtu = f" mtu {self.mtu}" if self.mtu else ""
        return f"ip link add {self.word}{mtu} type bridge"

    def fault(self, world: World) -> str:
        return "" if world[self.where].link(self.name) else f"bridge {self.name} is gone"

    def conflict(self, world: World) -> CniError | None:
        link = world[self.where].link(self.name)
        if link is None or link.kind == "bridge":
            return None
        kind = f"a {link.kind}" if link.kind else "a device of another kind"
        return CniError(spec.INVALID_CONFIG, f"bridge: {self.name} already exists and is no bridge but {kind}")


class KeptMac(Object):
    """A bridge's MAC address, set to what it is. One that nobody has set changes as ports come and go.

    Not everywhere can it be seen whether somebody has; and what was attached before works all the same.
    """

    def command(self) -> str:
        return f"ip link set {self.word} address $(cat /sys/class/net/{self.word}/address)"

    def fault(self, world: World) -> str:
        kept = world[self.where].keeps_mac(self.name)
        return "" if kept else f"the MAC address of {self.name} changes with its ports"

    def is_checked(self, world: World) -> bool:
        return False


class Veth(Object):
    """A veth pair: name here, a port of a bridge; peer, with MAC and MTU, in the sandbox (a netns path)."""

    peer: str
    sandbox: str
    bridge: str = ""
    mtu: int = 0
    mac: str = ""

    def command(self) -> str:
        mtu = f" mtu {self.mtu}" if self.mtu else ""
        mac = f" address {self.mac}" if self.mac else ""
        master = f" master {spec.word(self.bridge)}" if self.bridge else ""
        peer = f"peer name {spec.word(self.peer)}{mac}{mtu} netns {spec.word(self.sandbox)}"
        return f"ip link add {self.word}{master}{mtu} type veth {peer}"

    def removal(self) -> str:
        return f"ip link del {self.word}"

    def fault(self, world: World) -> str:
        host, peer = world[self.where].link(self.name), world[CONTAINER].link(self.peer)
        if peer is None:
            return f"{self.peer} is gone from the container"
        if host is None:
            return f"{self.name}, the host end of {self.peer}, is gone"
        if peer.kind != "veth" or host.kind != "veth" or peer.peer != host.index:
            return f"{self.peer} in the container and {self.name} are not the two ends of one veth"
        bridge = world[self.where].link(self.bridge) if self.bridge else None
        if bridge and host.master != bridge.index:
            return f"{self.name} is no port of {self.bridge}"
        return ""

    def conflict(self, world: World) -> CniError | None:
        # "If an interface of the requested name already exists in the container, the CNI plugin MUST return with an
        # error." -- specification section 2, ADD
        if world[CONTAINER].link(self.peer):
            return CniError(
                spec.INVALID_ENVIRONMENT, f"CNI_IFNAME: {self.peer} already exists in {self.sandbox}", "run DEL first"
            )
        if world[self.where].link(self.name):
            return CniError(
                spec.INVALID_ENVIRONMENT,
                f"CNI_CONTAINERID: {self.name}, the host end of this container's {self.peer}, already exists",
                "an earlier ADD of this container and interface was not followed by DEL: run DEL first",
            )
        return None

    def explained(self, errno: int, world: World) -> CniError | None:
        link = world[self.where].link(self.bridge) if self.bridge and errno == EXFULL else None
        if link is None:
            return None
        ports = len({port.index for port in world[self.where].links() if port.master == link.index})
        return CniError(
            spec.TRY_AGAIN,
            f"bridge {self.bridge} is full: it has {ports} ports, and the kernel has no more for a bridge",
            "DEL of a container frees one; or use another bridge for some of them",
        )


class Device(Object):
    """A link of whatever kind, to be deleted."""

    def removal(self) -> str:
        return f"ip link del {self.word}"


class Alias(Object):
    """A link's ifalias, which says whose it is."""

    alias: str

    def command(self) -> str:
        return f"ip link set {self.word} alias {self.alias}"

    def fault(self, world: World) -> str:
        link = world[self.where].link(self.name)
        if link is None:
            return f"{self.name} is gone"
        # The reference sets none; what it made is ours to keep as it is.
        if link.alias in ("", self.alias):
            return ""
        return f"{self.name} has the alias {link.alias}, not {self.alias}"


class Port(Object):
    """The flags of a bridge's port."""

    hairpin: bool
    isolated: bool

    def command(self) -> str:
        hairpin, isolated = ("on" if flag else "off" for flag in (self.hairpin, self.isolated))
        return f"bridge link set dev {self.word} hairpin {hairpin} isolated {isolated}"

    def changes(self, world: World) -> Sequence[Change]:
        # What has just become a port has neither.
        return (Make(self),) if self.hairpin or self.isolated else ()

    def fault(self, world: World) -> str:
        link = world[self.where].link(self.name)
        if link is None:
            return f"{self.name} is gone"
        if link.hairpin != self.hairpin:
            return f"bridge port {self.name}: hairpin is {'on, not off' if link.hairpin else 'off, not on'}"
        # A plugin further down the list may isolate it: firewall does.
        return f"bridge port {self.name}: isolated is off, not on" if self.isolated and not link.isolated else ""


class FdbEntry(Object):
    """A MAC address in a bridge's forwarding table: frames for it go to the port name, and no other port can take it.

    It goes with the port.
    """

    mac: str
    mendable = True

    def command(self) -> str:
        return f"bridge fdb replace {self.mac} dev {self.word} master static sticky"

    def fault(self, world: World) -> str:
        if world[self.where].link(self.name) is None:
            return f"{self.name} is gone"
        if world[self.where].has_fdb_entry(self.name, self.mac):
            return ""
        return f"bridge port {self.name}: {self.mac} has no static entry in the forwarding table"

    def is_checked(self, world: World) -> bool:
        return is_grouped(self.where, self.name, world)


def is_grouped(where: str, port: str, world: World) -> bool:
    """Tell whether a port is in a device group, which guarded ports of earlier builds are not."""
    link = world[where].link(port)
    return link is None or link.group != 0


class Up(Object):
    """A link that is up."""

    def command(self) -> str:
        return f"ip link set {self.word} up"

    def removal(self) -> str:
        return f"ip link set {self.word} down"

    def fault(self, world: World) -> str:
        link = world[self.where].link(self.name)
        if link is None:
            return f"{self.name} is gone"
        return "" if link.flags & IFF_UP else f"{self.name} is down"


class Carrier(Object):
    """A link whose operational state has become up: only then does a bridge's port forward (with STP, later)."""

    def command(self) -> str:
        return f"# wait until {self.word} has a carrier: ip -br link show {self.word}"

    def fault(self, world: World) -> str:
        link = world[self.where].link(self.name)
        return "" if link and link.operstate == IF_OPER_UP else f"{self.name} has no carrier"


class Address(Object):
    """An address ("10.1.0.7/24") on a link. Without dad (IPv6 duplicate address detection) it can be used at once."""

    cidr: str
    dad: bool = False

    def command(self) -> str:
        packed, length = parse_cidr(self.cidr)
        last = broadcast(packed, length)
        brd = f" brd {format_ip(last)}" if last else ""
        scope = " scope global" if is_loopback(packed) else ""
        nodad = " nodad" if len(packed) == 16 and not self.dad else ""
        return f"ip addr add {format_cidr(packed, length)}{brd}{scope} dev {self.word}{nodad}"

    def removal(self) -> str:
        return f"ip addr del {self.cidr} dev {self.word}"

    def fault(self, world: World) -> str:
        packed, length = parse_cidr(self.cidr)
        if any((a.packed, a.length) == (packed, length) for a in world[self.where].addresses(self.name)):
            return ""
        return f"{self.cidr} is not on {self.name}"


class Gateway(Object):
    """A bridge's own address, the containers' gateway. With force it takes the place of one that is in its way.

    beside: other gateways the same network puts on the bridge, which are not in its way.
    """

    cidr: str
    force: bool = False
    beside: tuple[str, ...] = ()

    def address(self) -> Address:
        """Return it as an address to set."""
        return Address(self.where, self.name, self.cidr)

    def command(self) -> str:
        return self.address().command()

    def fault(self, world: World) -> str:
        return self.address().fault(world)

    def _others(self, world: World) -> list[str]:
        """Return the bridge's addresses that exclude this one: any of IPv4, overlapping subnets of IPv6."""
        packed, length = parse_cidr(self.cidr)
        wanted = [parse_cidr(cidr) for cidr in (self.cidr, *self.beside)]
        return [
            format_cidr(other.packed, other.length)
            for other in world[self.where].addresses(self.name)
            if len(other.packed) == len(packed)
            and (other.packed, other.length) not in wanted
            and (len(packed) == 4 or _overlap(packed, length, other.packed, other.length))
            # Every link has one of its own, of the kernel's making.
            and not is_link_local(other.packed)
        ]

    def conflict(self, world: World) -> CniError | None:
        others = [] if self.force or not self.fault(world) else self._others(world)
        if not others:
            return None
        return CniError(
            spec.INVALID_CONFIG,
            f"bridge {self.name} already has an IP address different from {self.cidr}: {others[0]}",
            "forceAddress: true replaces it; or use another bridge",
        )

    def changes(self, world: World) -> Sequence[Change]:
        old = [Remove(Address(self.where, self.name, cidr)) for cidr in self._others(world)] if self.force else []
        return (*old, Make(self.address()))


def _overlap(a: bytes, a_length: int, b: bytes, b_length: int) -> bool:
    shorter = min(a_length, b_length)
    return network(a, shorter) == network(b, shorter)


class Settled(Object):
    """A link whose IPv6 addresses have passed duplicate address detection."""

    def command(self) -> str:
        return f"# wait until none is tentative: ip -6 addr show dev {self.word} tentative"

    def fault(self, world: World) -> str:
        for address in world[self.where].addresses(self.name):
            shown = format_cidr(address.packed, address.length)
            if address.flags & IFA_F_DADFAILED:
                return f"{shown} on {self.name} is already in use by another host (DAD failed)"
            if address.flags & IFA_F_TENTATIVE:
                return f"{shown} on {self.name} is still tentative"
        return ""


class Route(Object):
    """A route by a link; metric 0 leaves it to the kernel, mtu and advmss 0 set none (bytes)."""

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int = RT_TABLE_MAIN
    scope: int = 0

    def command(self) -> str:
        packed, length = parse_cidr(self.dst)
        v6 = len(packed) == 16
        # In front of any other to the same destination: "add" would refuse, and give another scope where none is named.
        words = ["ip", *(["-6"] if v6 else []), "route", "prepend"]
        words.append(format_cidr(network(packed, length), length) if length else "default")
        for word, value in (
            ("via", self.gw),
            ("dev", self.word),
            ("metric", self.priority),
            ("table", self.table if self.table != RT_TABLE_MAIN else 0),
            ("scope", self.scope or ("" if v6 or self.gw else "global")),
            ("mtu", self.mtu),
            ("advmss", self.advmss),
        ):
            words += [word, str(value)] if value else []
        return " ".join(words)

    def to_kernel(self, index: int) -> tuple[KernelRoute, int]:
        """Return the route as rtnetlink has it, and its family."""
        packed, length = parse_cidr(self.dst)
        gw = parse_ip(self.gw) if self.gw else b""
        dst = network(packed, length) if length else b""
        return KernelRoute(dst, length, gw, index, self.table, self.priority, self.scope), family(packed)

    def fault(self, world: World) -> str:
        link = world[self.where].link(self.name)
        wanted, af = self.to_kernel(link.index if link else 0)
        for route in world[self.where].routes(af):
            same = (route.dst, route.length, route.table) == (wanted.dst, wanted.length, wanted.table)
            # A later plugin may have added next hops; what was asked for must be among them.
            if (
                same
                and wanted.gw in (b"", route.gw)
                and wanted.priority in (0, route.priority)
                and route.oif == wanted.oif
            ):
                return ""
        return f"route {self.dst}{f' via {self.gw}' if self.gw else ''} dev {self.name} is missing"


class Sysctl(Object):
    """A sysctl (name with slashes). An optional one may be missing or read-only, and may be changed by others.

    before: the value its removal puts back; None where there is none to put back.
    remark: what is said on stderr when it had to be set.
    """

    mendable = True

    value: str
    optional: bool = False
    before: str | None = None
    remark: str = ""

    def command(self) -> str:
        return self._setting(self.value)

    def removal(self) -> str:
        return self._setting(self.before or "")

    def _setting(self, value: str) -> str:
        return f"sysctl -w {spec.word(f'{self.name}={value}')}"

    def message(self, removing: bool) -> Message | None:
        value = self.before if removing else self.value
        return None if value is None else devconf.set_link(self.name, value)

    def fault(self, world: World) -> str:
        try:
            value = world[self.where].sysctl(self.name)
        except OSError as e:
            return "" if self.optional else f"sysctl {self.name} cannot be read: {e.strerror}"
        return "" if is_same(value, self.value) else f"sysctl {self.name} is {value}, not {self.value}"


def is_same(one: str, other: str) -> bool:
    """Tell whether two values of a sysctl are the same: the kernel separates numbers by tabs, people by blanks."""
    return one.split() == other.split()


def is_general(name: str) -> bool:
    """Tell whether to set a sysctl sets others, of single links."""
    return name == "net/ipv4/ip_forward" or "/conf/all/" in name


class ForwardingV6(Sysctl):
    """That the host forwards IPv6.

    The kernel then forgets all routers that it was told of by advertisements, and listens to no more of these, but for
    links with the accept_ra 2. So that is set before, where there are any.
    """

    def changes(self, world: World) -> Sequence[Change]:
        host = world[self.where]
        told = dict.fromkeys(route.oif for route in host.routes(AF_INET6) if route.protocol == RTPROT_RA)
        settings = [self._listening(link.name) for link in map(host.link_at, told) if link]
        return (*(Make(setting) for setting in settings if not setting.replace(value="1").fault(world)), Make(self))

    def _listening(self, link: str) -> Sysctl:
        why = "IPv6 is forwarded from now on, and its router, found by advertisements, would be forgotten"
        remark = f"accept_ra of {link} is set to 2: {why}"
        return Sysctl(self.where, f"net/ipv6/conf/{link}/accept_ra", "2", remark=remark)
