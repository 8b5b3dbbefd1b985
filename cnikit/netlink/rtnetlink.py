"""Links, addresses, routes and bridges' forwarding tables as rtnetlink messages: values to bytes, bytes to values.

No sockets. Source: linux/rtnetlink.h, if_link.h, if_addr.h, neighbour.h, veth.h. tests/test_netlink_contract.py decodes
every message made here with pyroute2, and holds every number to pyroute2's tables.
"""

from __future__ import annotations

from _socket import AF_UNSPEC
from _struct import Struct

from cnikit.address import family
from cnikit.netlink.codec import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    attribute,
    attributes,
    header,
    ip,
    malformed,
    nested,
    number,
    string,
    text,
    u8,
    u32,
)
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTM_NEWNEIGH, RTM_GETNEIGH = 28, 30

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_TXQLEN, IFLA_OPERSTATE, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC = 13, 16, 18, 20, 26
IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK, IFLA_LINK_NETNSID = 27, 28, 29, 37
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_BRPORT_MODE, IFLA_BRPORT_LEARNING, IFLA_BRPORT_ISOLATED = 4, 8, 33
VETH_INFO_PEER = 1
IFF_UP, IFF_PROMISC, IFF_ALLMULTI = 0x1, 0x100, 0x200
IF_OPER_UP = 6
RTEXT_FILTER_SKIP_STATS = 8

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x02, 0x08, 0x40

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_METRICS, RTA_MULTIPATH, RTA_TABLE = 1, 4, 5, 6, 8, 9, 15
RTAX_MTU, RTAX_ADVMSS = 2, 8
RT_TABLE_MAIN = 254
RTPROT_BOOT, RTPROT_RA = 3, 9
RT_SCOPE_UNIVERSE = 0
RTN_UNICAST = 1

AF_BRIDGE = 7
NDA_LLADDR = 2
NUD_NOARP = 0x40
NTF_MASTER, NTF_STICKY = 0x04, 0x40

_IFINFO = Struct("=BxHIII")  # ifinfomsg: family, type, index, flags, change
_IFADDR = Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_RTNEXTHOP = Struct("=HBBI")  # rtnexthop: length, flags, hops, index
_NDMSG = Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type
_RTMSG = Struct("=BBBBBBBBI")  # rtmsg: family, dst len, src len, tos, table, protocol, scope, type, flags


class Link(Value):
    """A link as the kernel describes it."""

    index: int
    name: str
    kind: str = ""  # "bridge", "veth", "" for physical ones and lo
    mac: str = ""
    mtu: int = 0
    flags: int = 0
    operstate: int = 0
    master: int = 0
    alias: str = ""
    peer: int = 0  # IFLA_LINK: a veth's other end, maybe in another namespace
    peer_elsewhere: bool = False
    hairpin: bool = False
    isolated: bool = False
    learning: bool = False  # a bridge's port that learns whose MAC addresses are behind it
    group: int = 0
    txqlen: int = 0  # packets
    af_spec: bytes = b""  # settings of each family, see cnikit.netlink.devconf


class BoundAddress(Value):
    """An address on a link."""

    index: int
    packed: bytes
    length: int
    flags: int


class KernelRoute(Value):
    """A route: dst is b"" for a default route; gw is b"" and oif 0 where there is none."""

    dst: bytes
    length: int
    gw: bytes
    oif: int
    table: int
    priority: int
    scope: int
    protocol: int = RTPROT_BOOT


def get_link(name: str = "", index: int = 0) -> Message:
    """Ask for one link."""
    body = _ifinfo(index) + u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    return Message(RTM_GETLINK, NLM_F_ACK, body + (string(IFLA_IFNAME, name) if name else b""))


def dump_links() -> Message:
    """Ask for all links."""
    return Message(RTM_GETLINK, NLM_F_DUMP, _ifinfo(0) + u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS))


def new_bridge(name: str, mtu: int = 0) -> Message:
    """Create a bridge."""
    body = named(name) + _mtu(mtu)
    return _create(body + nested(IFLA_LINKINFO, string(IFLA_INFO_KIND, "bridge")))


def new_veth(name: str, peer: str, peer_netns: int, master: int, mtu: int = 0, peer_mac: bytes = b"") -> Message:
    """Create a veth pair: one end here, port of the bridge master; its peer in the namespace of a descriptor."""
    peer_body = named(peer) + u32(IFLA_NET_NS_FD, peer_netns) + _mtu(mtu)
    if peer_mac:
        peer_body += attribute(IFLA_ADDRESS, peer_mac)
    body = named(name) + _mtu(mtu)
    body += u32(IFLA_MASTER, master) if master else b""
    data = nested(IFLA_INFO_DATA, nested(VETH_INFO_PEER, peer_body))
    return _create(body + nested(IFLA_LINKINFO, string(IFLA_INFO_KIND, "veth"), data))


def set_flags(name: str, flags: int, mask: int) -> Message:
    """Set those of a link's flags that are in mask."""
    return Message(RTM_NEWLINK, NLM_F_ACK, _IFINFO.pack(AF_UNSPEC, 0, 0, flags, mask) + string(IFLA_IFNAME, name))


def set_alias(name: str, alias: str) -> Message:
    """Give a link its ifalias."""
    return Message(RTM_NEWLINK, NLM_F_ACK, named(name) + string(IFLA_IFALIAS, alias))


def set_mac(name: str, mac: bytes) -> Message:
    """Give a link its MAC address."""
    return Message(RTM_NEWLINK, NLM_F_ACK, named(name) + attribute(IFLA_ADDRESS, mac))


def set_mtu(name: str, mtu: int) -> Message:
    """Set a link's MTU (bytes)."""
    return Message(RTM_NEWLINK, NLM_F_ACK, named(name) + u32(IFLA_MTU, mtu))


def set_txqlen(name: str, length: int) -> Message:
    """Set the length of a link's transmit queue (packets)."""
    return Message(RTM_NEWLINK, NLM_F_ACK, named(name) + u32(IFLA_TXQLEN, length))


def set_port(name: str, hairpin: bool, isolated: bool) -> Message:
    """Set a bridge port's flags."""
    return _set_port(name, u8(IFLA_BRPORT_MODE, hairpin), u8(IFLA_BRPORT_ISOLATED, isolated))


def set_isolated(name: str, isolated: bool) -> Message:
    """Set one of them."""
    return _set_port(name, u8(IFLA_BRPORT_ISOLATED, isolated))


def set_learning(name: str, learning: bool) -> Message:
    """Set whether a bridge's port learns MAC addresses."""
    return _set_port(name, u8(IFLA_BRPORT_LEARNING, learning))


def set_group(name: str, group: int) -> Message:
    """Put a link into a device group."""
    return Message(RTM_NEWLINK, NLM_F_ACK, named(name) + u32(IFLA_GROUP, group))


def _set_port(name: str, *flags: bytes) -> Message:
    data = nested(IFLA_INFO_SLAVE_DATA, *flags)
    info = nested(IFLA_LINKINFO, string(IFLA_INFO_SLAVE_KIND, "bridge"), data)
    return Message(RTM_NEWLINK, NLM_F_ACK, named(name) + info)


def del_link(index: int) -> Message:
    """Delete a link."""
    return Message(RTM_DELLINK, NLM_F_ACK, _ifinfo(index))


def link(body: bytes) -> Link:
    """Decode an RTM_NEWLINK."""
    _, _, index, flags, _ = header(_IFINFO, body)
    got = attributes(body, _IFINFO.size)
    info = attributes(got.get(IFLA_LINKINFO, b""))
    port = attributes(info.get(IFLA_INFO_SLAVE_DATA, b""))
    return Link(
        index=index,
        name=text(got.get(IFLA_IFNAME, b"")),
        kind=text(info.get(IFLA_INFO_KIND, b"")),
        mac=got.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=number(got.get(IFLA_MTU, b"")),
        flags=flags,
        operstate=number(got.get(IFLA_OPERSTATE, b"")),
        master=number(got.get(IFLA_MASTER, b"")),
        alias=text(got.get(IFLA_IFALIAS, b"")),
        peer=number(got.get(IFLA_LINK, b"")),
        peer_elsewhere=IFLA_LINK_NETNSID in got,
        hairpin=bool(number(port.get(IFLA_BRPORT_MODE, b""))),
        isolated=bool(number(port.get(IFLA_BRPORT_ISOLATED, b""))),
        learning=bool(number(port.get(IFLA_BRPORT_LEARNING, b""))),
        group=number(got.get(IFLA_GROUP, b"")),
        txqlen=number(got.get(IFLA_TXQLEN, b"")),
        af_spec=got.get(IFLA_AF_SPEC, b""),
    )


def new_fdb_entry(index: int, mac: bytes) -> Message:
    """Have a bridge send what is for a MAC address to a port, whatever it learns elsewhere."""
    body = _NDMSG.pack(AF_BRIDGE, index, NUD_NOARP, NTF_MASTER | NTF_STICKY, 0) + attribute(NDA_LLADDR, mac)
    return Message(RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, body)


def get_fdb_entry(index: int, mac: bytes) -> Message:
    """Ask the bridge that a port belongs to for its entry of a MAC address."""
    body = _NDMSG.pack(AF_BRIDGE, index, 0, NTF_MASTER, 0) + attribute(NDA_LLADDR, mac)
    return Message(RTM_GETNEIGH, NLM_F_ACK, body)


def fdb_entry(body: bytes) -> tuple[int, bool]:
    """Decode an RTM_NEWNEIGH of a bridge: the index of the port, and whether the entry stays there."""
    _, index, state, flags, _ = header(_NDMSG, body)
    return index, state == NUD_NOARP and bool(flags & NTF_STICKY)


def new_address(index: int, packed: bytes, length: int, broadcast: bytes = b"", dad: bool = True) -> Message:
    """Add an address of global scope. Without dad an IPv6 address can be used at once."""
    body = _IFADDR.pack(family(packed), length, 0, RT_SCOPE_UNIVERSE, index)
    body += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    body += attribute(IFA_BROADCAST, broadcast) if broadcast else b""
    body += b"" if dad else u32(IFA_FLAGS, IFA_F_NODAD)
    return _create(body, RTM_NEWADDR)


def del_address(index: int, packed: bytes, length: int) -> Message:
    """Delete an address."""
    body = _IFADDR.pack(family(packed), length, 0, 0, index) + attribute(IFA_LOCAL, packed)
    return Message(RTM_DELADDR, NLM_F_ACK, body)


def dump_addresses(index: int) -> Message:
    """Ask for the addresses of one link (the kernel filters when the socket has NETLINK_GET_STRICT_CHK)."""
    return Message(RTM_GETADDR, NLM_F_DUMP, _IFADDR.pack(AF_UNSPEC, 0, 0, 0, index))


def bound_address(body: bytes) -> BoundAddress:
    """Decode an RTM_NEWADDR."""
    _, length, flags, _, index = header(_IFADDR, body)
    got = attributes(body, _IFADDR.size)
    flags = number(got[IFA_FLAGS]) if IFA_FLAGS in got else flags
    return BoundAddress(index, ip(got.get(IFA_LOCAL, got.get(IFA_ADDRESS, b""))), length, flags)


def new_route(route: KernelRoute, af: int, mtu: int = 0, advmss: int = 0) -> Message:
    """Add a route, beside what other routes to the same destination there are (so without NLM_F_EXCL)."""
    body = _route(route, af)
    if mtu or advmss:
        metrics = (u32(RTAX_MTU, mtu) if mtu else b"") + (u32(RTAX_ADVMSS, advmss) if advmss else b"")
        body += nested(RTA_METRICS, metrics)
    return Message(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE, body)


def dump_routes(af: int) -> Message:
    """Ask for all routes of a family, those of every table."""
    return Message(RTM_GETROUTE, NLM_F_DUMP, _RTMSG.pack(af, 0, 0, 0, 0, 0, 0, 0, 0))


def get_route(dst: bytes) -> Message:
    """Ask for the route the kernel would take to an address."""
    body = _RTMSG.pack(family(dst), len(dst) * 8, 0, 0, 0, 0, 0, 0, 0) + attribute(RTA_DST, dst)
    return Message(RTM_GETROUTE, NLM_F_ACK, body)


def kernel_routes(body: bytes) -> tuple[KernelRoute, ...]:
    """Decode an RTM_NEWROUTE; one with several next hops is that many routes."""
    _, length, _, _, table, protocol, scope, _, _ = header(_RTMSG, body)
    got = attributes(body, _RTMSG.size)
    route = KernelRoute(
        dst=ip(got.get(RTA_DST, b"")),
        length=length,
        gw=ip(got.get(RTA_GATEWAY, b"")),
        oif=number(got.get(RTA_OIF, b"")),
        table=number(got[RTA_TABLE]) if RTA_TABLE in got else table,
        priority=number(got.get(RTA_PRIORITY, b"")),
        scope=scope,
        protocol=protocol,
    )
    if RTA_MULTIPATH not in got:
        return (route,)
    return tuple(route.replace(gw=gw, oif=oif) for gw, oif in _next_hops(got[RTA_MULTIPATH]))


def _next_hops(data: bytes) -> Iterator[tuple[bytes, int]]:
    while data:
        length, _, _, oif = header(_RTNEXTHOP, data)
        if not _RTNEXTHOP.size <= length <= len(data):
            raise malformed(f"next hop says it is {length} bytes long")
        yield ip(attributes(data[:length], _RTNEXTHOP.size).get(RTA_GATEWAY, b"")), oif
        data = data[length + 3 & ~3 :]


def _route(route: KernelRoute, af: int) -> bytes:
    table = route.table if route.table < 256 else 0
    body = _RTMSG.pack(af, route.length, 0, 0, table, route.protocol, route.scope, RTN_UNICAST, 0)
    body += attribute(RTA_DST, route.dst) if route.length else b""
    body += attribute(RTA_GATEWAY, route.gw) if route.gw else b""
    body += u32(RTA_PRIORITY, route.priority) if route.priority else b""
    body += u32(RTA_TABLE, route.table) if route.table >= 256 else b""
    return body + u32(RTA_OIF, route.oif)


def _create(body: bytes, kind: int = RTM_NEWLINK) -> Message:
    return Message(kind, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, body)


def _ifinfo(index: int) -> bytes:
    return _IFINFO.pack(AF_UNSPEC, 0, index, 0, 0)


def named(name: str) -> bytes:
    """Encode what begins a message about the link of that name."""
    return _ifinfo(0) + string(IFLA_IFNAME, name)


def _mtu(mtu: int) -> bytes:
    return u32(IFLA_MTU, mtu) if mtu else b""
