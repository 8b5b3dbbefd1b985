"""nftables: what we send is what nft would; and one contract for the kernel and the fake."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.nfnetlink import nftsocket

from cnikit import forwarding, hostports, macspoofchk, masquerade
from cnikit.conditions import Conditional
from cnikit.effects.kernel import World
from cnikit.netlink import nftables
from cnikit.netlink.nftables import Element, Rule, Table
from cnikit.netlink.nftrules import compiled
from cnikit.objects import HOST, Change, Make, Object, Remove
from cnikit.ruleset import Appended, Foreign, Member, Pair, Ruleset, member, pair
from tests.conftest import sh
from tests.fake_kernel import FakeWorld

EEXIST, ECANCELED = 17, 125
TAG = "cni:net1/c1/eth0"
TABLES = {table.name: table for table in (masquerade.TABLE, macspoofchk.TABLE, hostports.TABLE, forwarding.TABLE)}
WORDS = {
    "ipv4_addr": ("10.1.0.7", "10.1.0.0/16"),
    "ipv6_addr": ("fd00::7", "fd00::/64"),
    "ether_addr": ("02:00:00:00:00:01",) * 2,
    "inet_proto": ("udp", "udp"),
    "inet_service": ("8080", "8080-8099"),
    "ifname": ("veth01234567",) * 2,
    "devgroup": ("1234567",) * 2,
    "@nh,112,32": ("0xa010007",) * 2,
    "@th,64,128": ("0xfd000000000000000000000000000007",) * 2,
}


def example(table: Table, name: str) -> Element:
    """Return an element of a set, with ranges and prefixes where it can have them."""
    found = table.set(name)
    key = tuple(WORDS[kind][found.interval] for kind in found.key)
    return Element(name, key, tuple(WORDS[kind][0] for kind in found.data), TAG)


def make(world: World | FakeWorld, *objects: Object) -> list[int]:
    return _errnos(world, [Make(what) for what in objects])


def take(world: World | FakeWorld, *objects: Object) -> list[int]:
    return _errnos(world, [Remove(what) for what in objects])


def _errnos(world: World | FakeWorld, changes: list[Change]) -> list[int]:
    return [refusal.errno if refusal else 0 for refusal in world[HOST].change(changes)]


# What we send


@pytest.mark.parametrize("name", TABLES)
def test_nft_makes_the_same_of_the_text_as_the_kernel_of_the_bytes(host: str, name: str) -> None:
    assert host
    table = TABLES[name]
    examples = [Member(HOST, found.name, table, example(table, found.name)) for found in table.sets]
    with World() as world:
        assert make(world, Ruleset(HOST, name, table), *examples) == [0] * (len(examples) + 1)
    ours = sh("nft list ruleset")
    sh(f"nft flush ruleset; {Ruleset(HOST, name, table).command()}")
    for what in examples:
        sh(what.command())
    assert sh("nft list ruleset") == ours
    assert all(chain.name in ours for chain in table.chains)
    assert ours.count(TAG) == len(examples)
    # What nft shows it can read.
    sh("nft list ruleset > /run/listed && nft flush ruleset && nft -f /run/listed")
    assert sh("nft list ruleset") == ours
    for what in examples:
        sh(what.removal())
    assert TAG not in sh("nft list ruleset")


def test_a_rule_in_somebody_elses_chain(host: str) -> None:
    assert host
    sh("iptables -P FORWARD DROP")
    what = Appended(HOST, "FORWARD", Table("ip", "filter", (), ()), forwarding.ACCEPT_MARKED)
    with World() as world:
        assert world[HOST].dropping("forward") == [("ip", "filter", "FORWARD")]
        assert what.fault(world)
        assert make(world, what) == [0]
        assert what.fault(world) == ""
    ours = sh("nft list chain ip filter FORWARD")
    sh(f"nft flush chain ip filter FORWARD; {what.command()}")
    assert sh("nft list chain ip filter FORWARD") == ours


@pytest.mark.parametrize(
    "text",
    [
        "drop it",
        "ip ttl 3 drop",
        "fib saddr type local drop",
        "meta mark & 1 = 1 accept",
        "ip daddr @set snat to 1.1.1.1",
    ],
)
def test_what_is_no_rule_of_ours_is_refused(text: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        compiled(text, masquerade.TABLE)


CONSTANTS = {name: value for name, value in vars(nftables).items() if name.startswith(("NFT_MSG_", "NFNL_SUBSYS_"))}
MESSAGES = (
    nftsocket.nft_table_msg,
    nftsocket.nft_chain_msg,
    nftsocket.nft_chain_msg.hook,
    nftsocket.nft_rule_msg,
    nftsocket.nft_set_msg,
    nftsocket.nft_set_elem_list_msg,
    nftsocket.nft_set_elem_list_msg.set_elem,
)
ATTRIBUTES = {name: value for name, value in vars(nftables).items() if name.startswith("NFTA_")}


@pytest.mark.parametrize("name", CONSTANTS)
def test_numbers_of_messages_are_pyroute2s(name: str) -> None:
    assert getattr(nftsocket, name) == CONSTANTS[name]


def test_numbers_of_attributes_are_pyroute2s() -> None:
    known = {name: place for message in MESSAGES for place, (name, _) in enumerate(message.nla_map)}
    compared = ATTRIBUTES.keys() & known.keys()
    assert {name: ATTRIBUTES[name] for name in compared} == {name: known[name] for name in compared}
    # These are in no table of pyroute2's; that nft lists what we make shows them right.
    inner = {"NFTA_LIST_ELEM", "NFTA_DATA_VALUE", "NFTA_SET_DESC_CONCAT", "NFTA_SET_FIELD_LEN", "NFTA_SET_ELEM_KEY_END"}
    assert ATTRIBUTES.keys() - compared <= inner


@pytest.mark.parametrize("kind", nftables.TYPES)
def test_numbers_of_types_are_pyroute2s(kind: str) -> None:
    names = {"ipv4_addr": "IPADDR", "ipv6_addr": "IP6ADDR", "ether_addr": "ETHERADDR", "inet_proto": "INET_PROTOCOL"}
    names |= {"ether_type": "ETHERTYPE", **dict.fromkeys((k for k in nftables.TYPES if k[0] == "@"), "INTEGER")}
    assert nftables.TYPES[kind][0] == getattr(nftsocket, f"DATA_TYPE_{names.get(kind, kind.upper())}")


# Words

V4 = st.ip_addresses(v=4).map(str)
V6 = st.ip_addresses(v=6).map(str).filter(lambda text: "::ffff:" not in text)  # those may be IPv4 to us
PORTS = st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(sorted)


@given(V4 | V6)
def test_addresses(word: str) -> None:
    kind = "ipv6_addr" if ":" in word else "ipv4_addr"
    low, high = nftables.encoded(kind, word)
    assert low == high == (IPv6Address(word) if ":" in word else IPv4Address(word)).packed
    assert nftables.decoded(kind, low, high) == word


@given(V4, st.integers(0, 31))
def test_prefixes(address: str, length: int) -> None:
    network = IPv4Network((address, length), strict=False)
    assert nftables.encoded("ipv4_addr", f"{address}/{length}") == (network[0].packed, network[-1].packed)
    assert nftables.decoded("ipv4_addr", network[0].packed, network[-1].packed) == str(network)


@given(V6, st.integers(0, 127))
def test_prefixes_of_ipv6(address: str, length: int) -> None:
    network = IPv6Network((address, length), strict=False)
    assert nftables.encoded("ipv6_addr", f"{address}/{length}") == (network[0].packed, network[-1].packed)
    assert nftables.decoded("ipv6_addr", network[0].packed, network[-1].packed) == str(network)


@given(PORTS)
def test_ports(ports: list[int]) -> None:
    first, last = ports
    word = f"{first}-{last}" if first != last else str(first)
    low, high = nftables.encoded("inet_service", word)
    assert (int.from_bytes(low, "big"), int.from_bytes(high, "big")) == (first, last)
    assert nftables.decoded("inet_service", low, high) == word


# One contract


@pytest.fixture(params=["fake", "real"])
def world(request: pytest.FixtureRequest) -> Iterator[World | FakeWorld]:
    if request.param == "fake":
        yield FakeWorld()
    else:
        request.getfixturevalue("host")
        with World() as real:
            yield real


PORTMAP = Ruleset(HOST, "cnikit_portmap", hostports.TABLE)
PORT = member(hostports.TABLE, "ports4", ("tcp", "80"), ("10.1.0.7", "80"), TAG)
OTHER = member(hostports.TABLE, "ports4", ("tcp", "81"), ("10.1.0.8", "80"), "cni:net1/c2/eth0")
RANGE = member(hostports.TABLE, "ranges4", ("tcp", "0.0.0.0/0", "90-99"), ("10.1.0.7",), TAG)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_made_once_and_again(world: World | FakeWorld, name: str) -> None:
    what = Ruleset(HOST, name, TABLES[name])
    assert what.fault(world)
    for _ in range(2):
        assert make(world, what) == [0]
        assert what.fault(world) == ""
    wanted = [(chain.name, rule.comment) for chain in what.table.chains for rule in chain.rules]
    assert sorted(world[HOST].rules(what.table)) == sorted(wanted)


def test_elements(world: World | FakeWorld) -> None:
    assert world[HOST].element(hostports.TABLE, PORT.element) is None
    assert world[HOST].elements(hostports.TABLE, "cni:") == []
    assert make(world, PORTMAP, PORT, OTHER, RANGE) == [0, 0, 0, 0]
    assert world[HOST].element(hostports.TABLE, PORT.element) == PORT.element
    assert [what.fault(world) for what in (PORT, OTHER, RANGE)] == ["", "", ""]
    assert world[HOST].elements(hostports.TABLE, TAG) == [PORT.element, RANGE.element]
    assert len(world[HOST].elements(hostports.TABLE, "cni:net1/")) == 3
    assert world[HOST].elements(hostports.TABLE, "cni:net2/") == []
    # The table may be made as it should be at any time: elements stay.
    assert make(world, PORTMAP) == [0]
    assert world[HOST].element(hostports.TABLE, PORT.element) == PORT.element


def test_an_interval_is_found_by_what_lies_in_it(world: World | FakeWorld) -> None:
    assert make(world, PORTMAP, RANGE) == [0, 0]
    for port, found in (("89", None), ("90", RANGE.element), ("99", RANGE.element), ("100", None)):
        inside = RANGE.element.replace(key=("tcp", "192.0.2.1", port))
        assert world[HOST].element(hostports.TABLE, inside) == found


INSIDE = pair(masquerade.TABLE, "inside4", "10.1.0.7", "10.1.0.0/16", TAG)


def inside(subnet: str, comment: str = TAG) -> Pair:
    return INSIDE.replace(element=INSIDE.element.replace(key=("10.1.0.7", subnet), comment=comment))


@pytest.mark.parametrize("subnet", ["10.1.0.0/17", "10.1.128.0/17", "10.0.0.0/15"])
def test_intervals_of_one_set_do_not_overlap(world: World | FakeWorld, subnet: str) -> None:
    assert make(world, Ruleset(HOST, "cnikit_masquerade", masquerade.TABLE), INSIDE) == [0, 0]
    assert make(world, inside(subnet)) == [EEXIST]
    assert make(world, inside("10.0.0.0/16"), inside("10.2.0.0/16")) == [0, 0]
    assert make(world, INSIDE.replace(element=INSIDE.element.replace(key=("10.1.0.8", subnet)))) == [0]


@pytest.mark.parametrize("subnet", ["10.1.0.0/17", "10.1.128.0/17", "10.0.0.0/15", "10.0.0.0/8", "0.0.0.0/0"])
def test_an_interval_takes_the_place_of_those_it_overlaps_with(world: World | FakeWorld, subnet: str) -> None:
    made = inside(subnet, "cni:net1/c2/eth0")
    neighbour = INSIDE.replace(element=INSIDE.element.replace(key=("10.1.0.8", "10.1.0.0/16")))
    apart = inside("192.0.2.0/24") if subnet != "0.0.0.0/0" else neighbour
    make(world, Ruleset(HOST, "cnikit_masquerade", masquerade.TABLE), INSIDE, neighbour)
    make(world, apart)
    assert made.fault(world) != ""
    assert world[HOST].change(made.changes(world)) == [None, None]
    assert [what.fault(world) for what in (made, neighbour, apart)] == ["", "", ""]
    assert INSIDE.fault(world) != ""


def test_the_first_interval_of_an_address_costs_one_look(world: World | FakeWorld) -> None:
    make(world, Ruleset(HOST, "cnikit_masquerade", masquerade.TABLE))
    assert INSIDE.changes(world) == (Make(INSIDE),)


def test_another_interval_with_the_same_start_is_another(world: World | FakeWorld) -> None:
    make(world, PORTMAP, RANGE)
    shorter = RANGE.replace(element=RANGE.element.replace(key=("tcp", "0.0.0.0/0", "90-95")))
    assert "there is no element inet cnikit_portmap ranges4" in shorter.fault(world)


def test_a_transaction_is_done_whole_or_not_at_all(world: World | FakeWorld) -> None:
    assert make(world, PORTMAP, PORT) == [0, 0]
    assert make(world, OTHER, PORT, RANGE) == [ECANCELED, EEXIST, ECANCELED]
    assert world[HOST].elements(hostports.TABLE, "cni:") == [PORT.element]


def test_what_is_gone_already_is_left_out(world: World | FakeWorld) -> None:
    assert make(world, PORTMAP, PORT, RANGE) == [0, 0, 0]
    assert take(world, OTHER, PORT, OTHER, RANGE) == [0, 0, 0, 0]
    assert world[HOST].elements(hostports.TABLE, "cni:") == []
    assert take(world, PORT) == [0]


def test_a_table_that_is_gone_is_made_with_its_elements(world: World | FakeWorld) -> None:
    """The ruleset may be flushed between a look at the table and the elements."""
    bridges = member(forwarding.TABLE, "confined", ("br1",), (), "ingressPolicy")
    assert take(world, OTHER) == [0]
    assert make(world, PORT, bridges, RANGE) == [0, 0, 0]
    assert [what.fault(world) for what in (PORTMAP, PORT, RANGE)] == ["", "", ""]
    assert Ruleset(HOST, "cnikit_firewall", forwarding.TABLE).fault(world) == ""


def test_a_large_transaction(world: World | FakeWorld) -> None:
    many = [member(hostports.TABLE, "ports4", ("tcp", str(port)), ("10.1.0.7", "80"), TAG) for port in range(1, 3001)]
    assert make(world, PORTMAP, *many) == [0] * 3001
    assert len(world[HOST].elements(hostports.TABLE, TAG)) == 3000
    assert take(world, *many) == [0] * 3000


FAULTS = [
    (PORT.element.replace(data=("10.1.0.9", "80")), "leads to 10.1.0.7 . 80, not 10.1.0.9 . 80"),
    (PORT.element.replace(comment="cni:net1/c9/eth0"), "belongs to cni:net1/c1/eth0"),
    (PORT.element.replace(key=("udp", "80")), "there is no element inet cnikit_portmap ports4 { udp . 80 }"),
]


@pytest.mark.parametrize(("wanted", "fault"), FAULTS)
def test_faults_of_an_element(world: World | FakeWorld, wanted: Element, fault: str) -> None:
    make(world, PORTMAP, PORT)
    assert fault in Member(HOST, "ports4", hostports.TABLE, wanted).fault(world)


def test_an_appended_rule(world: World | FakeWorld) -> None:
    what = Appended(HOST, "admins", forwarding.TABLE, Rule("jump MINE", "mine"))
    make(world, Ruleset(HOST, "cnikit_firewall", forwarding.TABLE))
    assert what.fault(world)
    assert make(world, what) == [0]
    assert what.fault(world) == ""
    # It is not ours to flush.
    make(world, Ruleset(HOST, "cnikit_firewall", forwarding.TABLE))
    assert what.fault(world) == ""
    # Somebody else may have added it since we looked.
    assert make(world, what) == [0]
    assert world[HOST].rules(forwarding.TABLE).count(("admins", "mine")) == 1


def test_rules_in_words_of_nft_are_made_and_found_by_their_comment(world: World | FakeWorld) -> None:
    rules = ("meta l4proto tcp th dport 80 dnat ip to 10.1.0.7:80", "meta l4proto tcp th dport 81 dnat ip to 10.1.0.7")
    what = Conditional(HOST, "conditional4", hostports.TABLE, rules, TAG, "conditionsV4")
    other = what.replace(comment="cni:net1/c2/eth0", rules=rules[:1])
    assert world[HOST].unreadable(rules) == ""
    assert any(_errnos(world, [Make(what)])) or what.fault(world), "there is no table"
    assert make(world, PORTMAP, what, other) == [0, 0, 0]
    assert [what.fault(world), other.fault(world)] == ["", ""]
    assert take(world, what, what) == [0, 0], "already gone is done"
    assert [bool(what.fault(world)), other.fault(world)] == [True, ""]


def test_rules_of_others_are_deleted_by_the_beginning_of_their_comment(world: World | FakeWorld) -> None:
    make(world, Ruleset(HOST, "cnikit_firewall", forwarding.TABLE), Ruleset(HOST, "cnikit_portmap", hostports.TABLE))
    for comment in ("c1-a", "c1-b", "c2-a"):
        make(world, Appended(HOST, "admins", forwarding.TABLE, Rule("accept", comment)))
    assert take(world, Foreign(HOST, "admins", forwarding.TABLE, "c1-")) == [0]
    assert take(world, Foreign(HOST, "admins", forwarding.TABLE, "c1-")) == [0], "already gone is done"
    assert take(world, Foreign(HOST, "admins", forwarding.TABLE, "c2-", whole=True)) == [0]
    assert [comment for chain, comment in world[HOST].rules(forwarding.TABLE) if chain == "admins"] == ["c2-a"]
    # It is part of its transaction.
    assert _errnos(world, [Remove(Foreign(HOST, "admins", forwarding.TABLE, "c2-")), *[Make(PORT)] * 2]) != [0, 0, 0]
    assert [comment for chain, comment in world[HOST].rules(forwarding.TABLE) if chain == "admins"] == ["c2-a"]


def test_two_that_make_a_table_at_once_both_succeed(host: str) -> None:
    assert host
    with World() as one, World() as two:
        assert PORTMAP.fault(one)
        assert PORTMAP.fault(two)
        assert make(one, PORTMAP, PORT) == [0, 0]
        assert make(two, PORTMAP, OTHER) == [0, 0]
        assert PORTMAP.fault(one) == ""
        assert len(one[HOST].elements(hostports.TABLE, "cni:")) == 2
