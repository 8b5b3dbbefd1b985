"""Sysctls of the network that rtnetlink tells, and some that it sets: values to bytes and bytes to values. No sockets.

Each namespace has its own files under /proc/sys/net. All go by the same names, and to open one the kernel walks through
those of the namespaces looked into before: with 400 containers that takes longer than to create a veth.

Source: linux/ip.h, ipv6.h, netconf.h, if_link.h. pyroute2 has none of these; tests/test_kernel.py holds them to /proc.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6
from _struct import Struct

from cnikit import spec
from cnikit.netlink.codec import NLM_F_ACK, Message, attribute, attributes, header, nested, u32
from cnikit.netlink.rtnetlink import IFLA_AF_SPEC, RTM_NEWLINK, Link, named

RTM_GETNETCONF = 82
NETCONFA_IFINDEX, NETCONFA_FORWARDING = 1, 2
NETCONFA_IFINDEX_ALL = -1
IFLA_INET_CONF, IFLA_INET6_CONF = 1, 2
IPV4_DEVCONF_ARP_NOTIFY, IPV4_DEVCONF_ROUTE_LOCALNET = 22, 26
DEVCONF_ACCEPT_RA, DEVCONF_DISABLE_IPV6, DEVCONF_ACCEPT_DAD, DEVCONF_NDISC_NOTIFY = 3, 26, 27, 29
DEVCONF_KEEP_ADDR_ON_DOWN, DEVCONF_ENHANCED_DAD = 42, 46

_INT = Struct("=i")
_NETCONF = Struct("=Bxxx")  # netconfmsg: family, padded as attributes are

# Whether a family's packets are forwarded.
FORWARDING = {"net/ipv4/ip_forward": AF_INET, "net/ipv6/conf/all/forwarding": AF_INET6}

_OF_LINKS = {
    ("ipv4", "arp_notify"): IPV4_DEVCONF_ARP_NOTIFY,
    ("ipv4", "route_localnet"): IPV4_DEVCONF_ROUTE_LOCALNET,
    ("ipv6", "accept_ra"): DEVCONF_ACCEPT_RA,
    ("ipv6", "disable_ipv6"): DEVCONF_DISABLE_IPV6,
    ("ipv6", "accept_dad"): DEVCONF_ACCEPT_DAD,
    ("ipv6", "ndisc_notify"): DEVCONF_NDISC_NOTIFY,
    ("ipv6", "keep_addr_on_down"): DEVCONF_KEEP_ADDR_ON_DOWN,
    ("ipv6", "enhanced_dad"): DEVCONF_ENHANCED_DAD,
}


# By the name of the sysctl: it is asked for several times on the way to a setting.
_places: dict[str, tuple[str, str, int] | None] = {}


def of_link(name: str) -> tuple[str, str, int] | None:
    """Return link, family ("ipv4") and number of a link's setting, None for any other sysctl, or no name of a link.

    The number is the kernel's for setting it. IPv4's begin with 1, IPv6's with 0.
    """
    if name not in _places:
        _places[name] = _place(name)
    return _places[name]


def _place(name: str) -> tuple[str, str, int] | None:
    parts = name.split("/")
    if len(parts) != 5 or parts[2] != "conf" or parts[3] in ("all", "default"):
        return None
    _, ip, _, link, setting = parts
    known = _OF_LINKS.get((ip, setting))
    return None if known is None or spec.ifname_fault(link) else (link, ip, known)


def set_link(name: str, value: str) -> Message | None:
    """Set a link's setting, by the sysctl's name; None where that takes the sysctl.

    rtnetlink sets IPv4's alone. What else than 0 and 1 is a number is for the sysctl to say.
    """
    place = of_link(name)
    if place is None or place[1] != "ipv4" or value not in ("0", "1"):
        return None
    settings = nested(IFLA_AF_SPEC, nested(AF_INET, nested(IFLA_INET_CONF, u32(place[2], int(value)))))
    return Message(RTM_NEWLINK, NLM_F_ACK, named(place[0]) + settings)


def settings(link: Link, ip: str) -> bytearray:
    """Return a link's settings of a family ("ipv4"), four bytes each, none where it has none: without IPv6, say."""
    family, kind = (AF_INET, IFLA_INET_CONF) if ip == "ipv4" else (AF_INET6, IFLA_INET6_CONF)
    return bytearray(attributes(attributes(link.af_spec).get(family, b"")).get(kind, b""))


def value(found: bytearray, ip: str, setting: int) -> str:
    """Return one of them, "" where it is not among them."""
    start = _start(ip, setting)
    return _decoded(found[start : start + _INT.size])


def put(found: bytearray, ip: str, setting: int, text: str) -> bool:
    """Change one of them to what was written; tell whether that could be done."""
    start = _start(ip, setting)
    is_known = text.lstrip("-").isdecimal() and start + _INT.size <= len(found)
    if is_known:
        _INT.pack_into(found, start, int(text))
    return is_known


def _start(ip: str, setting: int) -> int:
    return _INT.size * (setting - 1 if ip == "ipv4" else setting)


def get_forwarding(af: int) -> Message:
    """Ask for FORWARDING."""
    return Message(
        RTM_GETNETCONF, NLM_F_ACK, _NETCONF.pack(af) + attribute(NETCONFA_IFINDEX, _INT.pack(NETCONFA_IFINDEX_ALL))
    )


def forwarding(body: bytes) -> str:
    """Decode an RTM_NEWNETCONF."""
    return _decoded(attributes(body, _NETCONF.size).get(NETCONFA_FORWARDING, b""))


def _decoded(data: bytes | bytearray) -> str:
    return str(header(_INT, bytes(data))[0]) if data else ""
