"""Flows that connection tracking remembers: our messages are pyroute2's, and exactly what is asked for is forgotten."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from errno import EINVAL, ENOENT
from socket import AF_INET, AF_INET6, SOCK_DGRAM, create_connection, create_server, inet_pton, socket
from typing import Any

import pyroute2.netlink
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink import nfnetlink
from pyroute2.netlink.nfnetlink import nfctsocket
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket, nfct_msg

from cnikit.effects import netns
from cnikit.effects.conntrack import Conntrack
from cnikit.effects.kernel import World
from cnikit.effects.netlink import NETLINK_NETFILTER, NetlinkError, Socket
from cnikit.errors import CniError
from cnikit.hostports import StaleFlows
from cnikit.netlink import codec, conntrack
from cnikit.netlink.codec import Message
from cnikit.netlink.conntrack import Flow
from cnikit.objects import CONTAINER, HOST, Make
from cnikit.plan import Del, Set, apply, remove, render, verify
from tests.fake_kernel import FakeWorld

EITHER = World | FakeWorld

# Messages


def _positions(message_class: Any) -> dict[str, int]:
    return {name: number for number, (name, *_) in enumerate(message_class.nla_map)}


PYROUTE2 = {
    **vars(nfnetlink),
    **vars(nfctsocket),
    **_positions(nfct_msg),
    **_positions(nfct_msg.cta_tuple),
    **_positions(nfct_msg.cta_tuple.cta_ip),
    **_positions(nfct_msg.cta_tuple.cta_proto),
    **_positions(nfct_msg.cta_filter),
}
NUMBERS = {
    name: value
    for name, value in vars(conntrack).items()
    if name.startswith(("NFNL_", "IPCTNL_", "CTA_", "FILTER_FLAG_"))
}
UDP_ONLY, ITS_PORT = 0x8, 0x20


@pytest.mark.parametrize(("name", "value"), NUMBERS.items(), ids=NUMBERS)
def test_a_number_is_pyroute2s(name: str, value: int) -> None:
    assert value == PYROUTE2[name]


def _plain(attributes: Any) -> Any:
    """Turn pyroute2's attributes into pairs of name and value, nested ones into lists of pairs."""
    if isinstance(attributes, dict):
        return [(entry[0], _plain(entry[1])) for entry in attributes["attrs"]]
    return attributes


def _decoded(message: Message) -> tuple[int, int, int, Any]:
    """Return type, flags, family and attributes as pyroute2 reads them."""
    decoded = nfct_msg(codec.frame(message, 77))
    decoded.decode()
    header = decoded["header"]
    return header["type"], header["flags"], decoded["nfgen_family"], _plain(decoded)


def _flags(*names: str) -> int:
    return sum(getattr(pyroute2.netlink, f"NLM_F_{name}") for name in names)


def _asked(flags: int, protocol: list[Any]) -> list[Any]:
    original = [("CTA_TUPLE_PROTO", [("CTA_PROTO_NUM", 17), *protocol])]
    return [("CTA_TUPLE_ORIG", original), ("CTA_FILTER", [("CTA_FILTER_ORIG_FLAGS", flags)])]


PORT = [("CTA_PROTO_DST_PORT", 5353)]


@pytest.mark.parametrize(
    ("message", "family", "attributes"),
    [
        pytest.param(conntrack.dump(AF_INET, 17), AF_INET, _asked(UDP_ONLY, []), id="all"),
        pytest.param(conntrack.dump(AF_INET6, 17, 5353), AF_INET6, _asked(UDP_ONLY | ITS_PORT, PORT), id="a port"),
    ],
)
def test_pyroute2_reads_what_we_ask_for(message: Message, family: int, attributes: list[Any]) -> None:
    assert _decoded(message) == (0x101, _flags("REQUEST", "DUMP"), family, attributes)


V4 = st.ip_addresses(v=4).map(str)
V6 = st.ip_addresses(v=6).map(str)
U16 = st.integers(0, 2**16 - 1)


@given(
    st.tuples(V4, V4, st.just(AF_INET)) | st.tuples(V6, V6, st.just(AF_INET6)),
    st.sampled_from([6, 17]),
    st.tuples(U16, U16),
    st.integers(0, 2**32 - 1),
    st.none() | U16,
)
def test_an_entry_of_pyroute2_is_read_and_deleted_by_what_names_it(
    addresses: tuple[str, str, int], protocol: int, ports: tuple[int, int], number: int, zone: int | None
) -> None:
    source, destination, family = addresses
    original = NFCTAttrTuple(family, source, destination, protocol, *ports)
    entry = nfct_msg.create_from(tuple_orig=original, status=8, id=number, zone=zone)
    entry["nfgen_family"] = family
    entry.encode()
    data = bytes(entry.data)
    (reply,) = codec.replies(data)
    flow = conntrack.flow(reply.body)
    assert (flow.family, flow.protocol, flow.port) == (family, protocol, ports[1])
    assert (flow.source, flow.address) == (inet_pton(family, source), inet_pton(family, destination))

    listed = nfct_msg(data)
    listed.decode()
    named = [(name, value) for name, value in _plain(listed) if name != "CTA_STATUS"]
    assert _decoded(conntrack.delete(flow)) == (0x102, _flags("REQUEST", "ACK"), family, named)


def test_an_entry_without_ports_has_port_0() -> None:
    assert conntrack.flow(b"\x02\0\0\0") == Flow(AF_INET, 0, b"", b"", 0, b"", b"", b"", b"")


def test_a_body_shorter_than_its_header_is_refused() -> None:
    with pytest.raises(CniError, match=r"^netlink message of 3 bytes where its header takes 4$"):
        conntrack.flow(b"\x02\0\0")


# The object


@pytest.mark.parametrize(
    ("flows", "lines"),
    [
        pytest.param(
            StaleFlows(HOST, "udp", (5353,), AF_INET), ["conntrack -D -f ipv4 -p udp --orig-port-dst 5353"], id="a port"
        ),
        pytest.param(
            StaleFlows(HOST, "udp", (53, 5353), AF_INET6),
            ["conntrack -D -f ipv6 -p udp --orig-port-dst 53", "conntrack -D -f ipv6 -p udp --orig-port-dst 5353"],
            id="ports of IPv6",
        ),
        pytest.param(
            StaleFlows(HOST, "udp", (53,), AF_INET, "10.0.0.1"),
            ["conntrack -D -f ipv4 -p udp --orig-dst 10.0.0.1 --orig-port-dst 53"],
            id="a port of an address",
        ),
    ],
)
def test_is_shown_as_conntracks_command_lines(flows: StaleFlows, lines: list[str]) -> None:
    assert render([Set(flows)], "").splitlines() == lines
    assert render([Del(flows)], "").splitlines() == lines


# What is forgotten. The contract of the kernel and of the fake.

# Packets to ports 5353 and 5354 go to the "container's" port 53; packets to port 5355 are in a zone of their own.
RULES = """
table inet test {
    chain zones {
        type filter hook output priority raw
        udp dport 5355 ct zone set 7
    }
    chain mapped {
        type nat hook output priority -100
        meta nfproto ipv4 udp dport { 5353, 5354 } dnat ip to 127.0.0.9:53
        meta nfproto ipv6 udp dport { 5353, 5354 } dnat ip6 to [::1]:53
    }
}
"""
FLOWS = frozenset(
    {
        ("udp", "127.0.0.1", 5353),
        ("udp", "127.0.0.2", 5353),
        ("udp", "127.0.0.1", 5354),
        ("udp", "127.0.0.1", 5355),
        ("udp", "127.0.0.9", 53),
        ("udp", "::1", 5353),
        ("udp", "::1", 53),
        ("tcp", "127.0.0.1", 5353),
        ("sctp", "127.0.0.1", 5353),
    }
)


def _family(address: str) -> int:
    return AF_INET6 if ":" in address else AF_INET


def _begin_flows() -> None:
    """Send a packet for each of FLOWS, or make a connection, which is remembered after its end."""
    subprocess.run(["nft", "-f", "-"], input=RULES, text=True, check=True)
    for protocol, address, port in FLOWS:
        if protocol == "udp":
            with socket(_family(address), SOCK_DGRAM) as sender:
                sender.sendto(b"", (address, port))
        elif protocol == "sctp":  # which not all kernels speak
            there, back = (
                NFCTAttrTuple(_family(address), address, address, 132, *ends) for ends in ((1, port), (port, 1))
            )
            with NFCTSocket() as tracking:
                tracking.entry("add", tuple_orig=there, tuple_reply=back, timeout=60)
        else:
            with create_server((address, port)), create_connection((address, port)):
                pass


def _remembered() -> set[tuple[str, str, int]]:
    """Return protocol, address and port first sent to of all entries, as pyroute2 lists them."""
    found = set()
    for family in (AF_INET, AF_INET6):
        with NFCTSocket(nfgen_family=family) as tracking:
            for entry in tracking.dump():
                original = entry.get_attr("CTA_TUPLE_ORIG")
                first = NFCTAttrTuple.from_netlink(family, original)
                port = original.get_attr("CTA_TUPLE_PROTO").get_attr("CTA_PROTO_DST_PORT")
                found.add(({6: "tcp", 17: "udp", 132: "sctp"}[first.proto], first.daddr, port))
    return found


def _left(world: EITHER) -> set[tuple[str, str, int]]:
    return world[HOST].flows if isinstance(world, FakeWorld) else _remembered()


@pytest.fixture(params=["fake", "real"])
def world(request: pytest.FixtureRequest) -> Iterator[EITHER]:
    """Give a host that remembers FLOWS."""
    if request.param == "fake":
        fake = FakeWorld()
        fake[HOST].flows = set(FLOWS)
        yield fake
    else:
        request.getfixturevalue("host")
        _begin_flows()
        with World() as real:
            yield real


FORGOTTEN: dict[str, tuple[StaleFlows, set[tuple[str, str, int]]]] = {
    "a port": (
        StaleFlows(HOST, "udp", (5353,), AF_INET),
        {("udp", "127.0.0.1", 5353), ("udp", "127.0.0.2", 5353)},
    ),
    "a port of IPv6": (StaleFlows(HOST, "udp", (5353,), AF_INET6), {("udp", "::1", 5353)}),
    "a port of an address": (
        StaleFlows(HOST, "udp", (5353,), AF_INET, "127.0.0.2"),
        {("udp", "127.0.0.2", 5353)},
    ),
    "a port of an address of IPv6": (StaleFlows(HOST, "udp", (5353,), AF_INET6, "::1"), {("udp", "::1", 5353)}),
    "a port of an address without flows": (StaleFlows(HOST, "udp", (5353,), AF_INET6, "::2"), set()),
    "a port that is a container's to others": (
        StaleFlows(HOST, "udp", (53,), AF_INET),
        {("udp", "127.0.0.9", 53)},
    ),
    "a port in a zone of its own": (StaleFlows(HOST, "udp", (5355,), AF_INET), {("udp", "127.0.0.1", 5355)}),
    "several ports": (
        StaleFlows(HOST, "udp", (5354, 53, 5355), AF_INET),
        {("udp", "127.0.0.1", 5354), ("udp", "127.0.0.9", 53), ("udp", "127.0.0.1", 5355)},
    ),
    "several ports of an address": (
        StaleFlows(HOST, "udp", (5353, 5354), AF_INET, "127.0.0.1"),
        {("udp", "127.0.0.1", 5353), ("udp", "127.0.0.1", 5354)},
    ),
    "a port of SCTP": (StaleFlows(HOST, "sctp", (5353,), AF_INET), {("sctp", "127.0.0.1", 5353)}),
    "a port nobody sent to": (StaleFlows(HOST, "udp", (5356,), AF_INET), set()),
}
each_case = pytest.mark.parametrize(("flows", "forgotten"), FORGOTTEN.values(), ids=FORGOTTEN)


@each_case
def test_flows_first_sent_to_the_ports_are_forgotten_and_no_others(
    world: EITHER, flows: StaleFlows, forgotten: set[tuple[str, str, int]]
) -> None:
    assert _left(world) == FLOWS
    apply([Set(flows)], world)
    assert _left(world) == FLOWS - forgotten
    assert verify([Set(flows)], world) == []
    apply([Set(flows)], world)
    assert _left(world) == FLOWS - forgotten


def test_removing_forgets_too(world: EITHER) -> None:
    flows, forgotten = FORGOTTEN["a port"]
    assert remove([Del(flows), Del(flows)], world) == []
    assert _left(world) == FLOWS - forgotten


@pytest.mark.parametrize("world", ["real"], indirect=True)
def test_many_ports_are_asked_for_together(world: EITHER, monkeypatch: pytest.MonkeyPatch) -> None:
    """A published port is an object of its own; 1000 of UDP's used to take 1000 looks through the kernel's table."""
    asked: list[StaleFlows] = []
    monkeypatch.setattr(Conntrack, "forget", lambda _, flows, __: asked.append(flows))
    old = [StaleFlows(HOST, "udp", (port,), AF_INET) for port in range(1, 1001)]
    other = StaleFlows(HOST, "udp", (53,), AF_INET, "10.0.0.1")
    assert world[HOST].change([Make(one) for one in (*old, other, other)]) == [None] * 1002
    assert [(flows.address, len(flows.ports)) for flows in asked] == [("", 1000), ("10.0.0.1", 2)]


@pytest.mark.parametrize(
    ("entries", "asked"), [(len(FLOWS), (0,)), (1_000_000, (53, 5353))], ids=["a quiet host", "a busy host"]
)
def test_ports_are_asked_for_together_or_one_by_one_whichever_is_quicker(
    host: str, monkeypatch: pytest.MonkeyPatch, entries: int, asked: tuple[int, ...]
) -> None:
    assert host
    _begin_flows()
    ports: list[int] = []
    dump = conntrack.dump

    def noted(family: int, protocol: int, port: int) -> Message:
        ports.append(port)
        return dump(family, protocol, port)

    monkeypatch.setattr(conntrack, "dump", noted)
    tracking = Conntrack()
    tracking.forget(StaleFlows(HOST, "udp", (53, 5353), AF_INET), entries)
    assert _remembered() == FLOWS - {
        ("udp", "127.0.0.9", 53),
        ("udp", "127.0.0.1", 5353),
        ("udp", "127.0.0.2", 5353),
    }
    tracking.forget(StaleFlows(HOST, "udp", (5354,), AF_INET), entries)
    tracking.close()
    assert ports == [*asked, 5354]


@pytest.mark.parametrize(
    ("port", "listed"), [(0, {5353, 5354, 5355, 53}), (5353, {5353})], ids=["those of UDP", "those of a port"]
)
def test_the_kernel_lists_no_others(host: str, port: int, listed: set[int]) -> None:
    """Filtering came with Linux 5.8."""
    assert host
    _begin_flows()
    netlink = Socket(NETLINK_NETFILTER)
    flows = [conntrack.flow(body) for body in netlink.dump(conntrack.dump(AF_INET, 17, port))]
    netlink.close()
    assert ({flow.port for flow in flows}, {flow.protocol for flow in flows}) == (listed, {17})


@each_case
def test_a_kernel_that_does_not_filter_is_no_danger(
    host: str, monkeypatch: pytest.MonkeyPatch, flows: StaleFlows, forgotten: set[tuple[str, str, int]]
) -> None:
    """Before Linux 5.8 the filter is not known, and the whole table comes."""
    assert host
    _begin_flows()
    everything = conntrack.dump

    def unfiltered(family: int, protocol: int, *_: object) -> Message:
        asked = everything(family, protocol)
        return asked.replace(body=asked.body[:4])

    monkeypatch.setattr(conntrack, "dump", unfiltered)
    with World() as world:
        apply([Set(flows)], world)
    assert _remembered() == FLOWS - forgotten


def test_an_entry_that_has_taken_anothers_place_stays(host: str) -> None:
    assert host
    _begin_flows()
    netlink = Socket(NETLINK_NETFILTER)
    (flow,) = (conntrack.flow(body) for body in netlink.dump(conntrack.dump(AF_INET, 17, 5355)))
    other = flow.replace(id=bytes(4))
    assert [answer.errno for answer in netlink.exchange([conntrack.delete(other)])] == [ENOENT]
    assert _remembered() == FLOWS
    assert [answer.errno for answer in netlink.exchange([conntrack.delete(flow)] * 2)] == [0, ENOENT]
    netlink.close()


# Where there is nothing, or nothing can be done


def test_where_nothing_is_tracked_nothing_is_asked(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host
    monkeypatch.setattr(Conntrack, "forget", lambda *_: pytest.fail("was asked"))
    flows = FORGOTTEN["a port"][0]
    with World() as world:
        apply([Set(flows)], world)


def test_a_kernel_that_refuses_fails_neither_add_nor_del(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host
    _begin_flows()
    asked: list[StaleFlows] = []

    def refuse(_: Conntrack, flows: StaleFlows, entries: int) -> None:
        assert entries >= len(FLOWS)
        asked.append(flows)
        raise NetlinkError(EINVAL, "")

    monkeypatch.setattr(Conntrack, "forget", refuse)
    flows = FORGOTTEN["a port"][0]
    with World() as world:
        apply([Set(flows)], world)
        assert remove([Del(flows)], world) == []
    assert asked == [flows, flows]


def test_it_is_the_namespace_of_the_flows_that_is_asked(container: str) -> None:
    fd = netns.open_netns(container)
    with netns.Inside(fd):
        _begin_flows()
    _begin_flows()
    flows, forgotten = FORGOTTEN["a port"]
    inside = flows.replace(where=CONTAINER)
    with World(fd) as world:
        apply([Set(inside)], world)
        assert _remembered() == FLOWS
        with netns.Inside(fd):
            assert _remembered() == FLOWS - forgotten
