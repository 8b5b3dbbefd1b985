"""Our netlink encoder speaks as pyroute2 does: each message we make, each one we read, and every number.

pyroute2 is the second opinion here: its message classes decode what cnikit.netlink.rtnetlink makes and encode what it
reads.
"""

from __future__ import annotations

import inspect
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

import pyroute2.netlink
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.iproute.linux import DEFAULT_TABLE
from pyroute2.netlink import nlmsgerr, rtnl
from pyroute2.netlink.rtnl import ifaddrmsg as ifaddr_module
from pyroute2.netlink.rtnl import ifinfmsg as ifinf_module
from pyroute2.netlink.rtnl import ndmsg as ndmsg_module
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg, protinfo_bridge
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from cnikit.effects import netlink
from cnikit.effects.kernel import Kernel
from cnikit.errors import CniError
from cnikit.hostports import TABLE
from cnikit.netlink import codec, nftables, rtnetlink
from cnikit.netlink.codec import Message, Reply
from cnikit.netlink.rtnetlink import BoundAddress, KernelRoute, Link

AF_INET, AF_INET6 = socket.AF_INET, socket.AF_INET6

# Numbers


def _positions(message_class: Any) -> dict[str, int]:
    """Return the attributes of a pyroute2 class: numbered by their place, unless the entry brings its number."""
    entries = [entry if len(entry) == 3 else (i, *entry) for i, entry in enumerate(message_class.nla_map)]
    return {name: number for number, name, *_ in entries}


PYROUTE2 = {
    **vars(pyroute2.netlink),
    **vars(rtnl),
    **vars(ifinf_module),
    **vars(ifaddr_module),
    **vars(ndmsg_module),
    **_positions(ifinfmsg),
    **_positions(ifinfmsg.ifinfo),
    **_positions(ifinfmsg.ifinfo.veth_data),
    **_positions(protinfo_bridge),
    **_positions(ifaddrmsg),
    **_positions(rtmsg),
    **_positions(rtmsg.metrics),
    **_positions(nlmsgerr),
    **_positions(ndmsg),
    **rtnl.rtypes,
    **rtnl.rtprotos,
    **rtnl.rtscopes,
    **{f"IF_OPER_{name}": number for number, name in enumerate(ifinf_module.states)},
    "RT_TABLE_MAIN": DEFAULT_TABLE,
    "NLA_TYPE_MASK": 0xFFFF & ~(pyroute2.netlink.NLA_F_NESTED | pyroute2.netlink.NLA_F_NET_BYTEORDER),
    "RTEXT_FILTER_SKIP_STATS": 1 << 3,  # linux/rtnetlink.h; pyroute2 has it in a comment only
    "AF_UNSPEC": socket.AF_UNSPEC,
    "AF_BRIDGE": 7,  # linux/socket.h
}
CONSTANTS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": (name, value)
    for module in (codec, rtnetlink)
    for name, value in vars(module).items()
    if name.isupper() and not name.startswith("_") and name != "TYPE_CHECKING"
}


@pytest.mark.parametrize(("name", "value"), CONSTANTS.values(), ids=CONSTANTS)
def test_a_number_is_pyroute2s(name: str, value: int) -> None:
    assert name in PYROUTE2, f"{name} is in none of pyroute2's tables that this test knows"
    assert value == PYROUTE2[name]


# What we say

MAC = b"\x02\x00\x00\x00\x00\x01"
ACK = {"NLM_F_REQUEST", "NLM_F_ACK"}
CREATE = ACK | {"NLM_F_CREATE", "NLM_F_EXCL"}
DUMP = {"NLM_F_REQUEST", "NLM_F_ROOT", "NLM_F_MATCH"}
NO_STATS = ("IFLA_EXT_MASK", 8)
MAC_READ = ("IFLA_ADDRESS", "02:00:00:00:00:01")
BRIDGE_READ = ("IFLA_LINKINFO", [("IFLA_INFO_KIND", "bridge")])


def _plain(attributes: list[Any]) -> list[tuple[str, Any]]:
    """Turn pyroute2's attributes into pairs of name and value, nested ones into lists of pairs."""
    pairs = []
    for attribute in attributes:
        name, value = attribute[0], attribute[1]
        pairs.append((name, _plain(value["attrs"]) if isinstance(value, dict) and "attrs" in value else value))
    return pairs


def _flags(names: set[str]) -> int:
    return sum(getattr(pyroute2.netlink, name) for name in names)


def _header(decoded: Any) -> dict[str, Any]:
    """Return the fields of the family's header that are not 0."""
    return {field[0]: decoded[field[0]] for field in decoded.fields if decoded[field[0]]}


def _decoded(message_class: Any, message: Message) -> Any:
    decoded = message_class(codec.frame(message, 77))
    decoded.decode()
    assert decoded["header"]["sequence_number"] == 77
    assert decoded["header"]["length"] == len(codec.frame(message, 77))
    return decoded


V4_ROUTE = KernelRoute(b"\x0a\x02\x00\x00", 16, b"\x0a\x01\x00\x01", 3, 254, 0, 0)
V6_ROUTE = KernelRoute(b"", 0, socket.inet_pton(AF_INET6, "fd00::1"), 4, 1000, 50, 253)
BOOT_UNICAST = {"proto": 3, "type": 1}
# Message, class of pyroute2, type, flags, the fields of the header that are not 0, attributes. The kernel refuses a
# dump whose header holds anything it does not know (NETLINK_GET_STRICT_CHK).
SAID: dict[str, tuple[Message, Any, str, set[str], dict[str, Any], list[tuple[str, Any]]]] = {
    "get_link by name": (
        rtnetlink.get_link("eth0"), ifinfmsg, "RTM_GETLINK", ACK, {}, [NO_STATS, ("IFLA_IFNAME", "eth0")],
    ),
    "get_link by index": (rtnetlink.get_link(index=7), ifinfmsg, "RTM_GETLINK", ACK, {"index": 7}, [NO_STATS]),
    "dump_links": (rtnetlink.dump_links(), ifinfmsg, "RTM_GETLINK", DUMP, {}, [NO_STATS]),
    "new_bridge": (
        rtnetlink.new_bridge("cni0"), ifinfmsg, "RTM_NEWLINK", CREATE, {},
        [("IFLA_IFNAME", "cni0"), BRIDGE_READ],
    ),
    "new_bridge with an MTU": (
        rtnetlink.new_bridge("cni0", 1400), ifinfmsg, "RTM_NEWLINK", CREATE, {},
        [("IFLA_IFNAME", "cni0"), ("IFLA_MTU", 1400), BRIDGE_READ],
    ),
    "new_veth": (
        rtnetlink.new_veth("veth1", "eth0", 5, 3, 1400, MAC), ifinfmsg, "RTM_NEWLINK", CREATE, {},
        [("IFLA_IFNAME", "veth1"), ("IFLA_MTU", 1400), ("IFLA_MASTER", 3),
         ("IFLA_LINKINFO", [
             ("IFLA_INFO_KIND", "veth"),
             ("IFLA_INFO_DATA", [("VETH_INFO_PEER", [
                 ("IFLA_IFNAME", "eth0"), ("IFLA_NET_NS_FD", 5), ("IFLA_MTU", 1400), MAC_READ,
             ])]),
         ])],
    ),
    "new_veth, as little as there can be": (
        rtnetlink.new_veth("veth1", "eth0", 5, 0), ifinfmsg, "RTM_NEWLINK", CREATE, {},
        [("IFLA_IFNAME", "veth1"),
         ("IFLA_LINKINFO", [
             ("IFLA_INFO_KIND", "veth"),
             ("IFLA_INFO_DATA", [("VETH_INFO_PEER", [("IFLA_IFNAME", "eth0"), ("IFLA_NET_NS_FD", 5)])]),
         ])],
    ),
    "set_flags": (
        rtnetlink.set_flags("eth0", 0x100, 0x101), ifinfmsg, "RTM_NEWLINK", ACK,
        {"flags": 0x100, "change": 0x101}, [("IFLA_IFNAME", "eth0")],
    ),
    "set_alias": (
        rtnetlink.set_alias("veth1", "cni:n/c/eth0"), ifinfmsg, "RTM_NEWLINK", ACK, {},
        [("IFLA_IFNAME", "veth1"), ("IFLA_IFALIAS", "cni:n/c/eth0")],
    ),
    "set_mac": (
        rtnetlink.set_mac("eth0", MAC), ifinfmsg, "RTM_NEWLINK", ACK, {}, [("IFLA_IFNAME", "eth0"), MAC_READ],
    ),
    "set_mtu": (
        rtnetlink.set_mtu("eth0", 1400), ifinfmsg, "RTM_NEWLINK", ACK, {},
        [("IFLA_IFNAME", "eth0"), ("IFLA_MTU", 1400)],
    ),
    "set_txqlen": (
        rtnetlink.set_txqlen("eth0", 0), ifinfmsg, "RTM_NEWLINK", ACK, {},
        [("IFLA_IFNAME", "eth0"), ("IFLA_TXQLEN", 0)],
    ),
    "set_port": (
        rtnetlink.set_port("veth1", hairpin=True, isolated=False), ifinfmsg, "RTM_NEWLINK", ACK, {},
        [("IFLA_IFNAME", "veth1"),
         ("IFLA_LINKINFO", [
             ("IFLA_INFO_SLAVE_KIND", "bridge"),
             ("IFLA_INFO_SLAVE_DATA", [("IFLA_BRPORT_MODE", 1), ("IFLA_BRPORT_ISOLATED", 0)]),
         ])],
    ),
    "set_isolated": (
        rtnetlink.set_isolated("veth1", isolated=True), ifinfmsg, "RTM_NEWLINK", ACK, {},
        [("IFLA_IFNAME", "veth1"),
         ("IFLA_LINKINFO", [
             ("IFLA_INFO_SLAVE_KIND", "bridge"),
             ("IFLA_INFO_SLAVE_DATA", [("IFLA_BRPORT_ISOLATED", 1)]),
         ])],
    ),
    "set_learning": (
        rtnetlink.set_learning("veth1", learning=False), ifinfmsg, "RTM_NEWLINK", ACK, {},
        [("IFLA_IFNAME", "veth1"),
         ("IFLA_LINKINFO", [
             ("IFLA_INFO_SLAVE_KIND", "bridge"),
             ("IFLA_INFO_SLAVE_DATA", [("IFLA_BRPORT_LEARNING", 0)]),
         ])],
    ),
    "set_group": (
        rtnetlink.set_group("veth1", 0x7FFFFFFF), ifinfmsg, "RTM_NEWLINK", ACK, {},
        [("IFLA_IFNAME", "veth1"), ("IFLA_GROUP", 0x7FFFFFFF)],
    ),
    "new_fdb_entry": (
        rtnetlink.new_fdb_entry(9, MAC), ndmsg, "RTM_NEWNEIGH", ACK | {"NLM_F_CREATE", "NLM_F_REPLACE"},
        {"family": 7, "ifindex": 9, "state": 0x40, "flags": 0x44}, [("NDA_LLADDR", "02:00:00:00:00:01")],
    ),
    "get_fdb_entry": (
        rtnetlink.get_fdb_entry(9, MAC), ndmsg, "RTM_GETNEIGH", ACK,
        {"family": 7, "ifindex": 9, "flags": 0x04}, [("NDA_LLADDR", "02:00:00:00:00:01")],
    ),
    "set_port, the other way": (
        rtnetlink.set_port("veth1", hairpin=False, isolated=True), ifinfmsg, "RTM_NEWLINK", ACK, {},
        [("IFLA_IFNAME", "veth1"),
         ("IFLA_LINKINFO", [
             ("IFLA_INFO_SLAVE_KIND", "bridge"),
             ("IFLA_INFO_SLAVE_DATA", [("IFLA_BRPORT_MODE", 0), ("IFLA_BRPORT_ISOLATED", 1)]),
         ])],
    ),
    "del_link": (rtnetlink.del_link(9), ifinfmsg, "RTM_DELLINK", ACK, {"index": 9}, []),
    "new_address of IPv4": (
        rtnetlink.new_address(3, b"\x0a\x01\x00\x02", 24, b"\x0a\x01\x00\xff"), ifaddrmsg, "RTM_NEWADDR", CREATE,
        {"family": AF_INET, "prefixlen": 24, "index": 3},
        [("IFA_LOCAL", "10.1.0.2"), ("IFA_ADDRESS", "10.1.0.2"), ("IFA_BROADCAST", "10.1.0.255")],
    ),
    "new_address of IPv6 without DAD": (
        rtnetlink.new_address(3, socket.inet_pton(AF_INET6, "fd00::2"), 64, dad=False), ifaddrmsg, "RTM_NEWADDR",
        CREATE,
        {"family": AF_INET6, "prefixlen": 64, "index": 3},
        [("IFA_LOCAL", "fd00::2"), ("IFA_ADDRESS", "fd00::2"), ("IFA_FLAGS", 0x02)],
    ),
    "del_address": (
        rtnetlink.del_address(3, b"\x0a\x01\x00\x02", 24), ifaddrmsg, "RTM_DELADDR", ACK,
        {"family": AF_INET, "prefixlen": 24, "index": 3}, [("IFA_LOCAL", "10.1.0.2")],
    ),
    "dump_addresses": (
        rtnetlink.dump_addresses(3), ifaddrmsg, "RTM_GETADDR", DUMP, {"index": 3}, [],
    ),
    "new_route of IPv4": (
        rtnetlink.new_route(V4_ROUTE, AF_INET), rtmsg, "RTM_NEWROUTE", ACK | {"NLM_F_CREATE"},
        {"family": AF_INET, "dst_len": 16, "table": 254, **BOOT_UNICAST},
        [("RTA_DST", "10.2.0.0"), ("RTA_GATEWAY", "10.1.0.1"), ("RTA_OIF", 3)],
    ),
    "new_route of IPv6, by default, in a table beyond 255": (
        rtnetlink.new_route(V6_ROUTE, AF_INET6, 1400, 1360), rtmsg, "RTM_NEWROUTE", ACK | {"NLM_F_CREATE"},
        {"family": AF_INET6, "scope": 253, **BOOT_UNICAST},
        [("RTA_GATEWAY", "fd00::1"), ("RTA_PRIORITY", 50), ("RTA_TABLE", 1000), ("RTA_OIF", 4),
         ("RTA_METRICS", [("RTAX_MTU", 1400), ("RTAX_ADVMSS", 1360)])],
    ),
    "new_route with an MTU only, without gateway": (
        rtnetlink.new_route(V4_ROUTE.replace(gw=b"", table=255), AF_INET, mtu=1400), rtmsg, "RTM_NEWROUTE",
        ACK | {"NLM_F_CREATE"}, {"family": AF_INET, "dst_len": 16, "table": 255, **BOOT_UNICAST},
        [("RTA_DST", "10.2.0.0"), ("RTA_OIF", 3), ("RTA_METRICS", [("RTAX_MTU", 1400)])],
    ),
    "new_route with an advmss only, in table 256": (
        rtnetlink.new_route(V4_ROUTE.replace(table=256), AF_INET, advmss=1360), rtmsg, "RTM_NEWROUTE",
        ACK | {"NLM_F_CREATE"}, {"family": AF_INET, "dst_len": 16, **BOOT_UNICAST},
        [("RTA_DST", "10.2.0.0"), ("RTA_GATEWAY", "10.1.0.1"), ("RTA_TABLE", 256), ("RTA_OIF", 3),
         ("RTA_METRICS", [("RTAX_ADVMSS", 1360)])],
    ),
    "get_route": (
        rtnetlink.get_route(b"\x0a\x01\0\1"), rtmsg, "RTM_GETROUTE", ACK,
        {"family": AF_INET, "dst_len": 32}, [("RTA_DST", "10.1.0.1")],
    ),
    "dump_routes": (
        rtnetlink.dump_routes(AF_INET6), rtmsg, "RTM_GETROUTE", DUMP,
        {"family": AF_INET6}, [],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("message", "message_class", "kind", "flags", "fields", "attributes"), SAID.values(), ids=SAID)
def test_pyroute2_reads_what_we_say(
    message: Message,
    message_class: Any,
    kind: str,
    flags: set[str],
    fields: dict[str, Any],
    attributes: list[tuple[str, Any]],
) -> None:
    decoded = _decoded(message_class, message)
    assert decoded["header"]["type"] == getattr(rtnl, kind)
    assert decoded["header"]["flags"] == _flags(flags)
    assert _header(decoded) == fields
    assert _plain(decoded["attrs"]) == attributes


def test_every_message_we_can_make_is_in_the_table() -> None:
    builders = {
        name
        for name, function in inspect.getmembers(rtnetlink, inspect.isfunction)
        if function.__module__ == rtnetlink.__name__
        and not name.startswith("_")
        and inspect.signature(function).return_annotation == "Message"
    }
    assert builders
    assert builders == {name.split()[0].rstrip(",") for name in SAID}


# Names as the kernel takes them: any bytes but NUL, here those that are UTF-8.
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=15)
INDICES = st.integers(0, 2**31 - 1)
U32 = st.integers(0, 2**32 - 1)
V4 = st.ip_addresses(v=4).map(str)
V6 = st.ip_addresses(v=6).map(str)


@given(NAMES, NAMES, U32, U32, U32.filter(bool), st.binary(min_size=6, max_size=6))
def test_pyroute2_reads_any_veth(name: str, peer: str, netns: int, master: int, mtu: int, mac: bytes) -> None:
    decoded = _decoded(ifinfmsg, rtnetlink.new_veth(name, peer, netns, master, mtu, mac))
    assert decoded.get_attr("IFLA_IFNAME") == name
    assert decoded.get_attr("IFLA_MTU") == mtu
    assert (decoded.get_attr("IFLA_MASTER") or 0) == master
    inside = decoded.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "VETH_INFO_PEER")
    assert _header(inside) == {}
    assert _plain(inside["attrs"]) == [
        ("IFLA_IFNAME", peer),
        ("IFLA_NET_NS_FD", netns),
        ("IFLA_MTU", mtu),
        ("IFLA_ADDRESS", mac.hex(":")),
    ]


# What we hear


def _encoded(message_class: Any, fields: dict[str, Any], attributes: list[tuple[str, Any]]) -> bytes:
    """Return the body of a message that pyroute2 encodes."""
    message = message_class()
    message.update(fields)
    message["attrs"] = attributes
    message["header"]["type"] = rtnl.RTM_NEWLINK
    message.encode()
    (reply,) = codec.replies(bytes(message.data))
    return reply.body


FULL_LINK = (
    {"index": 12, "flags": 0x11043, "change": 0},
    [
        ("IFLA_IFNAME", "veth12345678"),
        ("IFLA_MTU", 9000),
        ("IFLA_TXQLEN", 500),
        ("IFLA_LINK", 4),
        ("IFLA_MASTER", 3),
        ("IFLA_OPERSTATE", "UP"),
        ("IFLA_IFALIAS", "cni:n/c/eth0"),
        ("IFLA_LINK_NETNSID", 0),
        ("IFLA_GROUP", 77),
        ("IFLA_ADDRESS", "02:00:00:00:00:01"),
        (
            "IFLA_LINKINFO",
            {
                "attrs": [
                    ("IFLA_INFO_KIND", "veth"),
                    ("IFLA_INFO_SLAVE_KIND", "bridge"),
                    (
                        "IFLA_INFO_SLAVE_DATA",
                        {
                            "attrs": [
                                ("IFLA_BRPORT_STATE", 3),
                                ("IFLA_BRPORT_MODE", 1),
                                ("IFLA_BRPORT_LEARNING", 1),
                                ("IFLA_BRPORT_ISOLATED", 1),
                            ]
                        },
                    ),
                ]
            },
        ),
    ],
)


def test_reads_a_link_of_pyroute2() -> None:
    assert rtnetlink.link(_encoded(ifinfmsg, *FULL_LINK)) == Link(
        index=12,
        name="veth12345678",
        kind="veth",
        mac="02:00:00:00:00:01",
        mtu=9000,
        flags=0x11043,
        operstate=6,
        master=3,
        alias="cni:n/c/eth0",
        peer=4,
        peer_elsewhere=True,
        hairpin=True,
        isolated=True,
        learning=True,
        group=77,
        txqlen=500,
    )


def test_what_a_link_does_not_have_reads_as_nothing() -> None:
    assert rtnetlink.link(_encoded(ifinfmsg, {"index": 1}, [])) == Link(index=1, name="")


@given(INDICES, U32, NAMES, st.text(st.characters(codec="utf-8", exclude_characters="\0")), U32, U32)
def test_reads_any_link_of_pyroute2(index: int, flags: int, name: str, alias: str, mtu: int, peer: int) -> None:
    attributes = [
        ("IFLA_IFNAME", name),
        ("IFLA_IFALIAS", alias),
        ("IFLA_MTU", mtu),
        ("IFLA_LINK", peer),
    ]
    assert rtnetlink.link(_encoded(ifinfmsg, {"index": index, "flags": flags}, attributes)) == Link(
        index=index, name=name, alias=alias, mtu=mtu, flags=flags, peer=peer
    )


@pytest.mark.parametrize(
    ("state", "flags", "stays"), [(0x40, 0x44, True), (0x40, 0x04, False), (0x80, 0x44, False), (0x02, 0x04, False)]
)
def test_reads_an_entry_of_a_forwarding_table(state: int, flags: int, stays: bool) -> None:
    fields = {"family": 7, "ifindex": 9, "state": state, "flags": flags}
    assert rtnetlink.fdb_entry(_encoded(ndmsg, fields, [("NDA_LLADDR", "02:00:00:00:00:01")])) == (9, stays)


@given(st.binary(min_size=1, max_size=15).filter(lambda name: 0 not in name))
def test_a_name_that_is_not_utf_8_comes_back_as_it_went(name: bytes) -> None:
    text = name.decode("utf-8", "surrogateescape")
    body = rtnetlink.get_link(text, 1).body
    assert name in body
    assert rtnetlink.link(body).name == text


@given(INDICES, V4 | V6, st.integers(0, 128), U32)
def test_reads_any_address_of_pyroute2(index: int, address: str, length: int, flags: int) -> None:
    af = AF_INET6 if ":" in address else AF_INET
    fields = {"family": af, "prefixlen": length, "flags": 0x80, "scope": 0, "index": index}
    packed = socket.inet_pton(af, address)
    plain = _encoded(ifaddrmsg, fields, [("IFA_ADDRESS", address)])
    assert rtnetlink.bound_address(plain) == BoundAddress(index, packed, length, 0x80)
    more = _encoded(ifaddrmsg, fields, [("IFA_ADDRESS", address), ("IFA_FLAGS", flags)])
    assert rtnetlink.bound_address(more) == BoundAddress(index, packed, length, flags)


def test_the_address_of_a_point_to_point_link_is_the_local_one() -> None:
    body = _encoded(
        ifaddrmsg,
        {"family": AF_INET, "prefixlen": 32, "index": 2},
        [("IFA_ADDRESS", "10.1.0.1"), ("IFA_LOCAL", "10.1.0.2")],
    )
    assert rtnetlink.bound_address(body) == BoundAddress(2, b"\x0a\x01\x00\x02", 32, 0)


@given(
    V4 | V6, V4 | V6, st.integers(1, 128), INDICES, U32, U32, st.sampled_from([0, 200, 253, 254]), st.integers(0, 255)
)
def test_reads_any_route_of_pyroute2(
    dst: str, gw: str, length: int, oif: int, table: int, priority: int, scope: int, proto: int
) -> None:
    af = AF_INET6 if ":" in dst else AF_INET
    fields = {"family": af, "dst_len": length, "table": 254, "scope": scope, "proto": proto}
    packed = socket.inet_pton(af, dst)
    plain = _encoded(rtmsg, fields, [("RTA_DST", dst), ("RTA_OIF", oif)])
    assert rtnetlink.kernel_routes(plain) == (KernelRoute(packed, length, b"", oif, 254, 0, scope, proto),)
    if (":" in gw) is (":" in dst):
        attributes = [("RTA_DST", dst), ("RTA_OIF", oif), ("RTA_GATEWAY", gw), ("RTA_TABLE", table)]
        more = _encoded(rtmsg, fields, [*attributes, ("RTA_PRIORITY", priority)])
        packed_gw = socket.inet_pton(af, gw)
        route = KernelRoute(packed, length, packed_gw, oif, table, priority, scope, proto)
        assert rtnetlink.kernel_routes(more) == (route,)


@pytest.mark.parametrize("route", [V4_ROUTE, V6_ROUTE])
def test_reads_back_its_own_route(route: KernelRoute) -> None:
    af = AF_INET6 if route == V6_ROUTE else AF_INET
    assert rtnetlink.kernel_routes(rtnetlink.new_route(route, af, 1400, 1360).body) == (route,)


def test_a_default_route_without_gateway_or_link_reads_as_nothing() -> None:
    body = _encoded(rtmsg, {"family": AF_INET, "dst_len": 0, "table": 254}, [])
    assert rtnetlink.kernel_routes(body) == (KernelRoute(b"", 0, b"", 0, 254, 0, 0, 0),)


# Framing

KINDS = st.integers(0, codec.NLA_TYPE_MASK)
MESSAGES = st.builds(Message, st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1), st.binary(max_size=64))


@given(st.lists(MESSAGES, max_size=4))
def test_messages_sent_together_come_apart_again(messages: list[Message]) -> None:
    data = b"".join(codec.frame(message, 100 + i) for i, message in enumerate(messages))
    assert len(data) % 4 == 0
    assert list(codec.replies(data)) == [
        Reply(message.type, message.flags | 1, 100 + i, message.body) for i, message in enumerate(messages)
    ]


@given(st.dictionaries(KINDS, st.binary(max_size=40), max_size=5), st.booleans())
def test_attributes_come_apart_again(wanted: dict[int, bytes], nested: bool) -> None:
    data = b"".join(codec.attribute(kind | (codec.NLA_F_NESTED if nested else 0), wanted[kind]) for kind in wanted)
    assert codec.attributes(data) == wanted
    assert codec.attributes(b"header!!" + data, 8) == wanted
    (outer,) = codec.attributes(codec.nested(5, data)).items()
    assert outer == (5, data)


def test_the_last_attribute_of_a_kind_wins() -> None:
    assert codec.attributes(codec.u32(1, 1) + codec.u32(2, 2) + codec.u32(1, 3)) == {
        kind: number.to_bytes(4, sys.byteorder) for kind, number in ((1, 3), (2, 2))
    }


@pytest.mark.parametrize(("encode", "width"), [(codec.u8, 1), (codec.u32, 4)], ids=["u8", "u32"])
@given(kind=KINDS, data=st.data())
def test_numbers_are_in_host_byte_order(
    encode: Callable[[int, int], bytes], width: int, kind: int, data: st.DataObject
) -> None:
    number = data.draw(st.integers(0, 256**width - 1))
    encoded = encode(kind, number)
    assert encoded == codec.attribute(kind, number.to_bytes(width, sys.byteorder))
    assert codec.number(codec.attributes(encoded)[kind]) == number


def _error_body(errno: int, why: bytes, echo: bytes) -> bytes:
    return struct.pack("=i", -errno) + echo + codec.attribute(codec.NLMSGERR_ATTR_MSG, why)


HEADER = bytes(16)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        pytest.param(Reply(2, 0x100, 1, bytes(4) + HEADER), (0, ""), id="acknowledgement"),
        pytest.param(Reply(2, 0x100, 1, struct.pack("=i", -17) + HEADER), (17, ""), id="refusal"),
        pytest.param(
            Reply(2, 0x300, 1, _error_body(17, b"busy\0", HEADER)), (17, "busy"), id="refusal with its reason"
        ),
        pytest.param(Reply(2, 0x100, 1, _error_body(17, b"busy\0", HEADER)), (17, ""), id="flag not set"),
        pytest.param(Reply(2, 0x300, 1, _error_body(0, b"warning\0", HEADER)), (0, "warning"), id="warning"),
        pytest.param(Reply(3, 0x2, 1, b""), (0, ""), id="end of a dump, nothing in it"),
        pytest.param(Reply(3, 0x2, 1, bytes(4)), (0, ""), id="end of a dump"),
        pytest.param(Reply(3, 0x2, 1, struct.pack("=i", -22)), (22, ""), id="a dump that failed"),
        pytest.param(Reply(3, 0x202, 1, _error_body(22, b"no\0", b"")), (22, "no"), id="a dump's failure, its reason"),
    ],
)
def test_reads_an_error_and_the_kernels_reason(reply: Reply, error: tuple[int, str]) -> None:
    assert codec.error(reply) == error


# Malformed

DECODERS: dict[str, Callable[[bytes], object]] = {
    "link": rtnetlink.link,
    "bound_address": rtnetlink.bound_address,
    "kernel_routes": rtnetlink.kernel_routes,
    "attributes": codec.attributes,
    "replies": lambda data: list(codec.replies(data)),
    "error": lambda data: codec.error(Reply(codec.NLMSG_ERROR, 0x300, 1, data)),
    "error of a dump": lambda data: codec.error(Reply(codec.NLMSG_DONE, 0x202, 1, data)),
}
NEARLY_NETLINK = st.lists(
    st.binary(max_size=16)
    | st.builds(codec.attribute, st.sampled_from([1, 3, 5, 18 | 0x8000, 2 | 0x8000]), st.binary(max_size=12))
    | st.builds(lambda length, kind: struct.pack("=HH", length, kind), st.integers(0, 40), st.integers(0, 40)),
    max_size=6,
).map(b"".join)


@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
@given(data=NEARLY_NETLINK | NEARLY_NETLINK.map(lambda data: bytes(16) + data))
def test_any_bytes_are_a_message_or_a_error(decode: Callable[[bytes], object], data: bytes) -> None:
    try:
        decode(data)
    except CniError as e:
        assert "netlink" in str(e)  # noqa: PT017 (no error at all is right too)


@pytest.mark.parametrize(
    ("decode", "size"), [(rtnetlink.link, 16), (rtnetlink.bound_address, 8), (rtnetlink.kernel_routes, 12)]
)
def test_a_body_shorter_than_its_header_is_refused(decode: Callable[[bytes], object], size: int) -> None:
    decode(bytes(size))
    for short in range(size):
        with pytest.raises(CniError, match=f"^netlink message of {short} bytes where its header takes {size}$"):
            decode(bytes(short))


def test_an_error_without_its_number_is_no_success() -> None:
    for size in range(4):
        with pytest.raises(CniError, match=f"^netlink message of {size} bytes where its header takes 4$"):
            codec.error(Reply(codec.NLMSG_ERROR, 0, 1, bytes(size)))


def test_a_link_cut_inside_an_attribute_is_refused() -> None:
    body = _encoded(ifinfmsg, *FULL_LINK)
    whole = rtnetlink.link(body)
    refused = 0
    for end in range(16, len(body)):
        try:
            assert rtnetlink.link(body[:end]) != whole
        except CniError:
            refused += 1
    assert refused > len(body) / 2


@pytest.mark.parametrize("length", [0, 3, 9, 0xFFFF])
def test_an_attribute_of_a_wrong_length_is_refused(length: int) -> None:
    with pytest.raises(CniError, match=f"^netlink attribute says it is {length} bytes long$"):
        codec.attributes(struct.pack("=HHI", length, 1, 0))


@pytest.mark.parametrize("length", [0, 15, 21, 2**32 - 1])
def test_a_message_of_a_wrong_length_is_refused(length: int) -> None:
    with pytest.raises(CniError, match=f"^netlink message says it is {length} bytes long$"):
        list(codec.replies(struct.pack("=IHHII4x", length, 16, 0, 1, 0)))


def test_a_second_message_that_was_cut_is_refused() -> None:
    one = codec.frame(Message(16, 0, bytes(8)), 1)
    with pytest.raises(CniError, match=r"^netlink message says it is 24 bytes long$"):
        list(codec.replies(one + one[:-1]))


def test_a_second_attribute_that_was_cut_is_refused() -> None:
    with pytest.raises(CniError, match=r"^netlink attribute says it is 8 bytes long$"):
        codec.attributes(codec.u32(1, 1) + codec.u32(2, 2)[:-1])


def test_rubbish_behind_a_message_is_refused() -> None:
    with pytest.raises(CniError, match=r"^netlink message shorter than its header$"):
        list(codec.replies(codec.frame(Message(16, 0, b""), 1) + bytes(15)))


# Answers that are none, by way of the socket


class Answers:
    """A kernel that gives these answers, whatever it is asked."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)

    def setsockopt(self, *_: object) -> None:
        pass

    def send(self, data: bytes) -> int:
        return len(data)

    def recv_into(self, buffer: bytearray) -> int:
        answer = self._answers.pop(0)
        buffer[: len(answer)] = answer
        return len(answer)


def _acknowledged(sequence: int, errno: int = 0) -> bytes:
    return codec.frame(Message(codec.NLMSG_ERROR, 0, struct.pack("=i16x", -errno)), sequence)


@pytest.mark.parametrize(
    ("answers", "msg"),
    [
        pytest.param((b"",), "netlink: the kernel gave no answer", id="nothing"),
        pytest.param((_acknowledged(1),), "netlink answer without a message", id="an acknowledgement only"),
        pytest.param((_acknowledged(1, -1),), "netlink answer has the error number -1", id="a negative errno"),
        pytest.param(
            (_acknowledged(1, -(2**31) + 1),), "netlink answer has the error number -2147483647", id="far off"
        ),
        pytest.param(
            (_acknowledged(9), _acknowledged(0), _acknowledged(1, 1)),
            "netlink: Operation not permitted",
            id="answers to others",
        ),
    ],
)
def test_an_answer_that_is_none_is_an_error(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[bytes, ...], msg: str
) -> None:
    monkeypatch.setattr(netlink, "socket", lambda *_: Answers(*answers))
    with pytest.raises(CniError) as raised:
        Kernel().link("eth0")
    assert (raised.value.code, raised.value.msg) == (100, msg)


ELEMENT = codec.nested(1, codec.nested(1, codec.attribute(1, b"\x0a\1\0")))


@pytest.mark.parametrize(
    ("decode", "msg"),
    [
        pytest.param(
            lambda: nftables.rule(bytes(4)), "netlink message has no attribute 2", id="a rule without a chain"
        ),
        pytest.param(
            lambda: nftables.elements(TABLE, "ports4", bytes(4) + codec.nested(3, ELEMENT)),
            "netlink element of 3 and 3 bytes where inet_proto . inet_service takes 8",
            id="half a key",
        ),
        pytest.param(
            lambda: rtnetlink.bound_address(bytes(8) + codec.attribute(2, bytes(5))),
            "netlink attribute has an address of 5 bytes",
            id="an address",
        ),
        pytest.param(
            lambda: rtnetlink.link(bytes(16) + codec.attribute(4, bytes(5))),
            "netlink attribute has a number of 5 bytes",
            id="a number",
        ),
    ],
)
def test_what_cannot_be_decoded_is_an_error(decode: Callable[[], object], msg: str) -> None:
    with pytest.raises(CniError) as raised:
        decode()
    assert (raised.value.code, raised.value.msg) == (100, msg)
