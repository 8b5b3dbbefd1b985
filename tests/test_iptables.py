"""The iptables backends: the text for iptables-restore, and the rules in the kernel beside the reference's."""

from __future__ import annotations

import json
import os
import posix
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cnikit import iptables
from cnikit.effects import iptables as programs
from cnikit.effects import limit, process
from cnikit.effects.kernel import World
from cnikit.errors import CniError
from cnikit.iptables import Edit, Options, Rule, Rules, saved, written
from cnikit.objects import HOST, Device, Make, Refusal, Remove
from cnikit.plan import Del, Step, apply, remove, render, verify
from cnikit.request import Attachment
from cnikit.result import IP
from cnikit.value import Value
from tests.conftest import PROJECT, needs_reference, sh
from tests.fake_kernel import FakeWorld

C1 = Attachment("net1", "c1", "eth0")
C2 = Attachment("net1", "c2", "eth0")
IPS = (IP("10.9.0.2/24"), IP("fd00:9::2/64"))
ADDRESSES = ("10.9.0.2/24", "fd00:9::2/64")
CHAIN, DNAT = "CNI-c2d892b58e87e28a12fe6479", "CNI-DN-c2d892b58e87e28a12fe6"
NAMED = r'-m comment --comment "name: \"net1\" id: \"c1\""'
RESTORE = "iptables-restore --noflush -w <<'END'"
QUOTED = r'"a \"b\""'
ENTRY = r'-m comment --comment "dnat name: \"net1\" id: \"c1\""'


class Mapping(Value):
    """A host port and where it leads."""

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""


WEB = Mapping(8080, 80)
DNS = Mapping(5353, 53, "udp", "192.0.2.1")


def text(steps: Sequence[Step], version: int = 4, tables: Any = None) -> list[str]:
    """Return the lines for iptables-restore that do the steps of one family."""
    changes = [
        Remove(step.what) if isinstance(step, Del) else Make(step.what)
        for step in steps
        if isinstance(step.what, Rules) and step.what.version == version
    ]
    given = tables or {change.what.name: {} for change in changes}
    return written(changes, given).split("\n")[:-1]


def port_lines(version: int = 4, *mappings: Mapping, **options: Any) -> list[str]:
    """Return the lines about the container itself, of an ADD of portmap."""
    steps = iptables.port_mappings(C1, mappings or (WEB,), ADDRESSES, Options(**options))
    return [line for line in text(steps, version) if DNAT in line]


# Text


@pytest.mark.parametrize(
    ("attachment", "chain"),
    [
        pytest.param(Attachment("test", "1234", "eth0"), "CNI-2bbe0c48b91a7d1b8a6753a8", id="short"),
        pytest.param(
            Attachment("testalongnamethatdoesnotmakesense", "1234", "eth0"), "CNI-374f33fe84ab0ed84dcdebe3", id="long"
        ),
    ],
)
def test_a_chain_is_named_as_the_reference_names_it(attachment: Attachment, chain: str) -> None:
    assert text(iptables.masquerade(attachment, IPS))[1] == f"-N {chain}"


MASQUERADE = {
    4: [
        "*nat",
        f"-N {CHAIN}",
        f"-A {CHAIN} -d 10.9.0.0/24 {NAMED} -j ACCEPT",
        f"-A {CHAIN} ! -d 224.0.0.0/4 {NAMED} -j MASQUERADE",
        f"-A POSTROUTING -s 10.9.0.2/32 {NAMED} -j {CHAIN}",
        "COMMIT",
    ],
    6: [
        "*nat",
        f"-N {CHAIN}",
        f"-A {CHAIN} -d fd00:9::/64 {NAMED} -j ACCEPT",
        f"-A {CHAIN} ! -d ff00::/8 {NAMED} -j MASQUERADE",
        f"-A POSTROUTING -s fd00:9::2/128 {NAMED} -j {CHAIN}",
        "COMMIT",
    ],
}


@pytest.mark.parametrize("version", [4, 6])
def test_masquerade(version: int) -> None:
    assert text(iptables.masquerade(C1, IPS), version) == MASQUERADE[version]


def test_masquerade_of_two_subnets_is_in_the_references_order() -> None:
    ips = (IP("10.9.0.2/24"), IP("10.10.0.2/24"))
    rules = [line.removeprefix("-A ").replace(NAMED + " ", "") for line in text(iptables.masquerade(C1, ips))[2:-1]]
    assert rules == [
        f"{CHAIN} -d 10.9.0.0/24 -j ACCEPT",
        f"{CHAIN} ! -d 224.0.0.0/4 -j MASQUERADE",
        f"POSTROUTING -s 10.9.0.2/32 -j {CHAIN}",
        f"{CHAIN} -d 10.10.0.0/24 -j ACCEPT",
        f"POSTROUTING -s 10.10.0.2/32 -j {CHAIN}",
    ]


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(iptables.masquerade(C1, ()), id="masquerade"),
        pytest.param(iptables.firewall(()), id="firewall"),
        pytest.param(iptables.firewall_removal(()), id="firewall-removal"),
        pytest.param(iptables.port_mappings(C1, (WEB,), (), Options()), id="portmap"),
        pytest.param(iptables.port_mappings(C1, (), ADDRESSES, Options()), id="portmap-without-mappings"),
    ],
)
def test_without_addresses_or_mappings_there_is_nothing_to_do(steps: tuple[Step, ...]) -> None:
    assert steps == ()


def test_the_first_port_mapping_makes_what_all_share() -> None:
    lines = text(iptables.port_mappings(C1, (WEB,), ADDRESSES, Options(mark_bit=0)))
    assert [line for line in lines if DNAT not in line] == [
        "*nat",
        "-N CNI-HOSTPORT-SETMARK",
        "-N CNI-HOSTPORT-MASQ",
        "-N CNI-HOSTPORT-DNAT",
        '-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x1/0x1',
        "-A CNI-HOSTPORT-MASQ -m mark --mark 0x1/0x1 -j MASQUERADE",
        '-I POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ',
        "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        "-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        "COMMIT",
    ]


def test_the_next_port_mapping_shares_it() -> None:
    world = FakeWorld()
    apply(iptables.port_mappings(C1, (WEB,), ADDRESSES, Options()), world)
    steps = iptables.port_mappings(C2, (WEB,), ADDRESSES, Options())
    chain = text(steps)[-4].split()[1]
    lines = text(steps, tables={"nat": world[HOST].iptables[4, "nat"]})
    assert [line for line in lines if chain not in line] == ["*nat", "COMMIT"]


@pytest.mark.parametrize(
    "options", [{"snat": False}, {"set_mark_chain": "KUBE-MARK-MASQ"}], ids=lambda o: next(iter(o))
)
def test_without_a_mark_of_our_own_nothing_is_marked_or_masqueraded_for_all(options: dict[str, Any]) -> None:
    lines = text(iptables.port_mappings(C1, (WEB,), ADDRESSES, Options(**options)))
    assert [line for line in lines if "CNI-HOSTPORT-SETMARK" in line or "CNI-HOSTPORT-MASQ" in line] == []


PORTS = [
    pytest.param(
        lambda: port_lines(4, WEB, DNS),
        [
            f":{DNAT} - [0:0]",
            f"-A {DNAT} -s 10.9.0.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
            f"-A {DNAT} -s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
            f"-A {DNAT} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.9.0.2:80",
            f"-A {DNAT} -s 10.9.0.0/24 -d 192.0.2.1/32 -p udp -m udp --dport 5353 -j CNI-HOSTPORT-SETMARK",
            f"-A {DNAT} -s 127.0.0.1/32 -d 192.0.2.1/32 -p udp -m udp --dport 5353 -j CNI-HOSTPORT-SETMARK",
            f"-A {DNAT} -d 192.0.2.1/32 -p udp -m udp --dport 5353 -j DNAT --to-destination 10.9.0.2:53",
            f"-A CNI-HOSTPORT-DNAT -p tcp {ENTRY} -m multiport --dports 8080 -j {DNAT}",
            f"-A CNI-HOSTPORT-DNAT -p udp {ENTRY} -m multiport --dports 5353 -j {DNAT}",
        ],
        id="ipv4",
    ),
    pytest.param(
        lambda: port_lines(6, WEB, DNS),
        [
            f":{DNAT} - [0:0]",
            f"-A {DNAT} -s fd00:9::/64 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
            f"-A {DNAT} -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00:9::2]:80",
            f"-A CNI-HOSTPORT-DNAT -p tcp {ENTRY} -m multiport --dports 8080 -j {DNAT}",
            f"-A CNI-HOSTPORT-DNAT -p udp {ENTRY} -m multiport --dports 5353 -j {DNAT}",
        ],
        id="ipv6",
    ),
    pytest.param(
        lambda: port_lines(4, WEB, masq_all=True, set_mark_chain="KUBE-MARK-MASQ")[1:3],
        [
            f"-A {DNAT} -p tcp -m tcp --dport 8080 -j KUBE-MARK-MASQ",
            f"-A {DNAT} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.9.0.2:80",
        ],
        id="masquerade-all-by-another-chain",
    ),
    pytest.param(
        lambda: port_lines(4, WEB, snat=False)[1:2],
        [f"-A {DNAT} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.9.0.2:80"],
        id="no-snat",
    ),
    pytest.param(
        lambda: port_lines(4, WEB.replace(host_ip="0.0.0.0"), snat=False)[1:2],
        [f"-A {DNAT} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.9.0.2:80"],
        id="any-ipv4-address",
    ),
    pytest.param(
        lambda: port_lines(6, WEB.replace(host_ip="0.0.0.0")),
        [f":{DNAT} - [0:0]", f"-A CNI-HOSTPORT-DNAT -p tcp {ENTRY} -m multiport --dports 8080 -j {DNAT}"],
        id="only-of-the-other-family",
    ),
    pytest.param(
        lambda: port_lines(4, *(Mapping(port, port, "TCP") for port in range(1, 17)))[-2:],
        [
            f"-A CNI-HOSTPORT-DNAT -p tcp {ENTRY} -m multiport --dports {','.join(map(str, range(1, 16)))} -j {DNAT}",
            f"-A CNI-HOSTPORT-DNAT -p tcp {ENTRY} -m multiport --dports 16 -j {DNAT}",
        ],
        id="more-ports-than-fit-in-a-rule",
    ),
    pytest.param(
        lambda: port_lines(4, WEB, conditions_v4=("!", "-s", "192.0.2.0/24", "--y", 'a "b"'))[-1:],
        [
            f"-A CNI-HOSTPORT-DNAT -p tcp {ENTRY} -m multiport --dports 8080 ! -s 192.0.2.0/24 --y {QUOTED} -j {DNAT}",
        ],
        id="conditions",
    ),
    pytest.param(
        lambda: port_lines(6, WEB, conditions_v4=("-i", "eth0"))[-1:],
        [f"-A CNI-HOSTPORT-DNAT -p tcp {ENTRY} -m multiport --dports 8080 -j {DNAT}"],
        id="conditions-of-the-other-family",
    ),
    pytest.param(
        lambda: port_lines(4, WEB, WEB, snat=False)[1:-1],
        [f"-A {DNAT} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.9.0.2:80"],
        id="the-same-twice",
    ),
]


@pytest.mark.parametrize(("lines", "wanted"), PORTS)
def test_port_mappings(lines: Callable[[], list[str]], wanted: list[str]) -> None:
    assert lines() == wanted


def test_a_long_comment_is_cut_as_the_kernel_cuts_the_references() -> None:
    steps = iptables.port_mappings(C1.replace(container="c" * 250), (WEB,), ADDRESSES, Options())
    comment = text(steps)[-2].partition('--comment "')[2].partition('" -m')[0].replace('\\"', '"')
    assert len(comment) == 255
    assert comment.endswith("ccc..")


FIREWALL = [
    "*filter",
    "-N CNI-FORWARD",
    "-N MY-ADMIN",
    '-I FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD',
    '-I CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j MY-ADMIN',
    "-A CNI-FORWARD -d 10.9.0.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A CNI-FORWARD -s 10.9.0.2/32 -j ACCEPT",
    "COMMIT",
]


def test_firewall() -> None:
    assert text(iptables.firewall(IPS, "MY-ADMIN")) == FIREWALL
    assert text(iptables.firewall(IPS), 6)[-2] == "-A CNI-FORWARD -s fd00:9::2/128 -j ACCEPT"


# iptables-save after the reference's firewall with ingressPolicy isolated (1.9.1).
ISOLATED = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:CNI-ADMIN - [0:0]
:CNI-FORWARD - [0:0]
:CNI-ISOLATION-STAGE-1 - [0:0]
:CNI-ISOLATION-STAGE-2 - [0:0]
-A FORWARD -m comment --comment "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)" -j CNI-ISOLATION-STAGE-1
-A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD
-A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN
-A CNI-FORWARD -d 10.9.0.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A CNI-FORWARD -s 10.9.0.2/32 -j ACCEPT
-A CNI-ISOLATION-STAGE-1 -i br0 -o br0 -m comment --comment "CNI firewall plugin rules (ingressPolicy: isolated)" -j DROP
-A CNI-ISOLATION-STAGE-1 -i br0 ! -o br0 -m comment --comment "CNI firewall plugin rules (ingressPolicy: isolated)" -j CNI-ISOLATION-STAGE-2
-A CNI-ISOLATION-STAGE-1 -m comment --comment "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)" -j RETURN
-A CNI-ISOLATION-STAGE-2 -o br0 -m comment --comment "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)" -j DROP
-A CNI-ISOLATION-STAGE-2 -m comment --comment "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)" -j RETURN
COMMIT
"""  # noqa: E501


def test_what_iptables_save_prints_is_read() -> None:
    tables = saved("# Generated by iptables-save\n" + ISOLATED + "*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n")
    assert tables["nat"] == {"PREROUTING": []}
    assert list(tables["filter"]) == [
        *("INPUT", "FORWARD", "OUTPUT", "CNI-ADMIN", "CNI-FORWARD"),
        *("CNI-ISOLATION-STAGE-1", "CNI-ISOLATION-STAGE-2"),
    ]
    assert tables["filter"]["CNI-ADMIN"] == []
    assert tables["filter"]["CNI-FORWARD"][-1] == "-s 10.9.0.2/32 -j ACCEPT"


def test_ingress_policy_makes_what_the_reference_does() -> None:
    world = FakeWorld()
    plan = (*iptables.firewall(IPS[:1]), *iptables.ingress_policy("isolated", "br0", (4,)))
    apply(plan, world)
    wanted = saved(ISOLATED)["filter"]
    assert {chain: rules for chain, rules in wanted.items() if rules} == {
        chain: rules for chain, rules in world[HOST].iptables[4, "filter"].items() if rules
    }
    assert text(plan, tables={"filter": wanted}) == []


def test_policies_of_two_bridges_stand_before_what_ends_the_chain() -> None:
    world = FakeWorld()
    apply(iptables.ingress_policy("isolated", "br0", (4,)), world)
    apply(iptables.ingress_policy("same-bridge", "br1", (4,)), world)
    rules = world[HOST].iptables[4, "filter"]
    targets = [rule.split(" -m")[0] + rule.rpartition("-j")[2] for rule in rules["CNI-ISOLATION-STAGE-1"]]
    stage = "CNI-ISOLATION-STAGE-2"
    assert targets[:3] == [f"-i br1 ! -o br1 {stage}", "-i br0 -o br0 DROP", f"-i br0 ! -o br0 {stage}"]
    assert rules["CNI-ISOLATION-STAGE-1"][3].endswith("RETURN")
    assert [rule.split()[1] for rule in rules[stage][:2]] == ["br1", "br0"]


ADDS = [
    pytest.param(iptables.masquerade(C1, IPS), id="masquerade"),
    pytest.param(iptables.port_mappings(C1, (WEB, DNS), ADDRESSES, Options()), id="portmap"),
    pytest.param(iptables.firewall(IPS), id="firewall"),
    pytest.param(iptables.ingress_policy("same-bridge", "br0", (4, 6)), id="ingress-policy"),
]


@pytest.mark.parametrize("steps", ADDS)
def test_an_add_repeated_changes_nothing(steps: tuple[Step, ...]) -> None:
    world = FakeWorld()
    apply(steps, world)
    tables = {"nat": world[HOST].chains(4, "nat"), "filter": world[HOST].chains(4, "filter")}
    assert text(steps, tables=tables) == []


def test_a_repeated_add_of_other_ports_takes_the_first_ones_place() -> None:
    first = FakeWorld()
    apply(iptables.port_mappings(C1, (WEB,), ADDRESSES, Options()), first)
    both = FakeWorld()
    apply(iptables.port_mappings(C1, (DNS,), ADDRESSES, Options(conditions_v4=("-i", "eth0"))), both)
    apply(iptables.port_mappings(C1, (WEB,), ADDRESSES, Options()), both)
    assert both[HOST].iptables == first[HOST].iptables


def test_rules_are_the_same_in_whatever_order_iptables_writes_them() -> None:
    rule = Rule("FORWARD", "-i br0 ! -o br0 -m comment --comment x", "DROP")
    assert rule.found(["-m comment --comment x ! -o br0 -i br0 -j DROP"])
    assert not rule.found(["! -i br0 -o br0 -m comment --comment x -j DROP"])
    assert not rule.found(["-i br0 ! -o br0 -m comment --comment x -j ACCEPT"])
    assert not rule.found(["-s 10.0.0.0/8 -i br0 ! -o br0 -m comment --comment x -j DROP"])


def test_a_condition_is_found_in_iptables_own_words() -> None:
    rule = Rule("X", "-p tcp", "ACCEPT", conditions=("--source", "192.0.2.0/255.255.255.0"))
    assert rule.found(["-s 192.0.2.0/24 -p tcp -j ACCEPT"])
    assert not rule.found(["-p tcp -j ACCEPT"])
    assert not rule.found(["-s 192.0.2.0/24 -p udp -j ACCEPT"])


def test_the_policy_open_is_none() -> None:
    assert iptables.ingress_policy("open", "br0", (4, 6)) == ()


def test_an_unknown_kind_of_object_is_refused() -> None:
    with pytest.raises(TypeError, match="nothing of iptables'"):
        written([Make(Device(HOST, "eth0"))], {})


REFUSED = [
    pytest.param("conditionsV4", {"conditions_v4": ("-i", "eth0\nCOMMIT")}, id="two-lines"),
    pytest.param("conditionsV6", {"conditions_v6": ("\0",)}, id="nul"),
    pytest.param("externalSetMarkChain", {"set_mark_chain": "X" * 29}, id="long-chain"),
    pytest.param("externalSetMarkChain", {"set_mark_chain": "X -j DROP"}, id="chain-with-space"),
    pytest.param("externalSetMarkChain", {"set_mark_chain": "-X"}, id="chain-like-an-option"),
]


@pytest.mark.parametrize(("key", "options"), REFUSED)
def test_what_iptables_cannot_be_told_is_refused(key: str, options: dict[str, Any]) -> None:
    with pytest.raises(CniError, match=f"^{key}: ") as raised:
        iptables.port_mappings(C1, (WEB,), ADDRESSES, Options(**options))
    assert raised.value.code == 7


def test_an_admin_chain_that_cannot_be_is_refused() -> None:
    with pytest.raises(CniError, match="iptablesAdminChainName: '' is no chain's name"):
        iptables.firewall(IPS, "")


# Removal


def test_removal_takes_back_what_add_made_and_leaves_what_is_shared() -> None:
    world = FakeWorld()
    others = (
        *iptables.masquerade(C2, (IP("10.9.0.3/24"), IP("fd00:9::3/64"))),
        *iptables.port_mappings(C2, (DNS,), ADDRESSES, Options()),
        *iptables.firewall((IP("10.9.0.3/24"),)),
    )
    apply(others, world)
    before = dict(world[HOST].iptables)
    apply(iptables.masquerade(C1, IPS), world)
    apply(iptables.port_mappings(C1, (WEB,), ADDRESSES, Options()), world)
    apply(iptables.firewall(IPS), world)
    assert verify(others, world) == []
    dels = (
        *iptables.masquerade_removal(C1),
        *iptables.port_mappings_removal(C1),
        *iptables.firewall_removal(IPS),
    )
    assert remove(dels, world) == []
    shared = iptables.firewall(IPS[1:])[0].what
    assert isinstance(shared, Rules)
    left = before | {(6, "filter"): {rule.chain: [rule.text()] for rule in shared.shared} | {"CNI-ADMIN": []}}
    assert world[HOST].iptables == left


def test_an_interfaces_addresses_are_taken_out_of_the_chain_it_shares_with_another() -> None:
    world = FakeWorld()
    second = (IP("10.10.0.2/24"),)
    apply((*iptables.masquerade(C1, IPS), *iptables.masquerade(C1.replace(ifname="eth1"), second)), world)
    assert remove(iptables.masquerade_removal(C1, IPS), world) == []
    assert verify(iptables.masquerade(C1, second), world) == []
    assert world[HOST].chains(4, "nat")["POSTROUTING"] == [f"-s 10.10.0.2/32 {NAMED} -j {CHAIN}"]
    assert world[HOST].chains(6, "nat") == {"POSTROUTING": []}
    assert remove(iptables.masquerade_removal(C1, second), world) == []
    assert world[HOST].chains(4, "nat") == {"POSTROUTING": []}


OLD = {
    "PREROUTING": ["-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT"],
    "POSTROUTING": [f"-s 10.9.0.0/24 {NAMED} -j {CHAIN}", "-s 10.9.0.0/24 -j OTHER"],
    "CNI-HOSTPORT-SNAT": [f"-j {DNAT.replace('DN', 'SN')}", "-j OTHER"],
    "CNI-HOSTPORT-DNAT": [f"-j {DNAT}", "-j CNI-DN-other"],
    "OTHER": ["-j RETURN"],
    "CNI-DN-other": ["-j RETURN"],
    CHAIN: ["-j ACCEPT"],
    DNAT: [],
    DNAT.replace("DN", "SN"): ["-j ACCEPT"],
}


@pytest.mark.parametrize("ips", [(), IPS], ids=["all", "by-address"])
def test_what_older_references_made_is_removed(ips: tuple[IP, ...]) -> None:
    lines = text((*iptables.masquerade_removal(C1, ips), *iptables.port_mappings_removal(C1)), tables={"nat": OLD})
    source = DNAT.replace("DN", "SN")
    assert lines == [
        "*nat",
        f"-D POSTROUTING -s 10.9.0.0/24 {NAMED} -j {CHAIN}",
        f"-F {CHAIN}",
        f"-X {CHAIN}",
        f"-D CNI-HOSTPORT-SNAT -j {source}",
        f"-D CNI-HOSTPORT-DNAT -j {DNAT}",
        f"-F {DNAT}",
        f"-X {DNAT}",
        f"-F {source}",
        f"-X {source}",
        "COMMIT",
    ]


def test_where_nothing_is_left_nothing_is_done() -> None:
    dels = (*iptables.masquerade_removal(C1), *iptables.port_mappings_removal(C1), *iptables.firewall_removal(IPS))
    assert text(dels, tables={"nat": {}, "filter": {}}) == []


def test_rules_that_are_there_twice_are_removed_twice() -> None:
    rule = "-s 10.9.0.2/32 -j ACCEPT"
    tables = {"filter": {"CNI-FORWARD": [rule, "-j RETURN", rule]}}
    assert text(iptables.firewall_removal(IPS), tables=tables)[1:-1] == [f"-D CNI-FORWARD {rule}"] * 2


def test_garbage_is_what_comments_say_is_of_a_container_that_nobody_lists() -> None:
    world = FakeWorld()
    other = C1.replace(network="net2", container="c3")
    for attachment in (C1, C2, other):
        apply(iptables.masquerade(attachment, IPS), world)
        apply(iptables.port_mappings(attachment, (WEB,), ADDRESSES, Options()), world)
    assert iptables.masquerade_garbage("net1", {"c1"}, world) == iptables.masquerade_removal(C2.replace(ifname=""))
    assert iptables.port_mappings_garbage("net1", {"c2"}, world) == iptables.port_mappings_removal(C1)
    assert remove(iptables.masquerade_garbage("net1", (), world), world) == []
    assert iptables.masquerade_garbage("net1", (), world) == ()
    assert verify(iptables.masquerade(other, IPS), world) == []


# CHECK


def _without(world: FakeWorld, version: int, table: str, chain: str, position: int) -> None:
    chains = {name: list(texts) for name, texts in world[HOST].iptables[version, table].items()}
    del chains[chain][position]
    world[HOST].iptables[version, table] = chains


FAULTS = [
    pytest.param(
        ADDS[0].values[0],
        (6, "nat", "POSTROUTING", 0),
        f"ip6tables: table nat has no rule POSTROUTING -s fd00:9::2/128 {NAMED} -j {CHAIN}",
        id="masquerade",
    ),
    pytest.param(
        ADDS[1].values[0],
        (4, "nat", DNAT, 2),
        f"iptables: table nat has no rule {DNAT} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.9.0.2:80",
        id="portmap",
    ),
    pytest.param(
        ADDS[1].values[0],
        (4, "nat", "CNI-HOSTPORT-MASQ", 0),
        "iptables: table nat has no rule CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE",
        id="portmap-shared",
    ),
    pytest.param(
        ADDS[2].values[0],
        (4, "filter", "CNI-FORWARD", 2),
        "iptables: table filter has no rule CNI-FORWARD -s 10.9.0.2/32 -j ACCEPT",
        id="firewall",
    ),
]


@pytest.mark.parametrize(("steps", "taken", "fault"), FAULTS)
def test_a_rule_that_is_missing_is_named(steps: tuple[Step, ...], taken: tuple[int, str, str, int], fault: str) -> None:
    world = FakeWorld()
    apply(steps, world)
    assert verify(steps, world) == []
    _without(world, *taken)
    assert verify(steps, world) == [fault]


def test_a_chain_that_is_missing_is_named() -> None:
    assert verify(iptables.masquerade(C1, IPS[:1]), FakeWorld()) == [f"iptables: table nat has no chain {CHAIN}"]


def test_render_shows_what_an_engineer_would_type() -> None:
    steps = (*iptables.masquerade(C1, IPS[:1]), *iptables.masquerade_removal(C1, IPS[:1]))
    lines = render(steps, "").split("\n")
    assert lines[:8] == [RESTORE, *MASQUERADE[4], "END"]
    assert lines[8:] == [
        RESTORE,
        "*nat",
        f"-D POSTROUTING -s 10.9.0.2/32 {NAMED} -j {CHAIN}",
        f"-F {CHAIN}",
        f"-X {CHAIN}",
        "COMMIT",
        "END",
        "",
    ]


# The kernel, by the programs of nftables and the legacy ones

FAMILIES = ("iptables", "ip6tables")
NAMES = [family + kind for family in FAMILIES for kind in ("", "-save", "-restore")]


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have programs looked for in a folder first."""
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.fixture(params=["nft", "legacy"])
def folder(request: pytest.FixtureRequest, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the test on a host with one kind of programs; gives the folder they are in."""
    assert host
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in NAMES:
        (folder / name).symlink_to(f"/usr/sbin/xtables-{request.param}-multi")
    use(folder, monkeypatch)
    return folder


def script(folder: Path, program: str, body: str) -> None:
    """Put a shell script before a program, which it can run as "$real"."""
    real = folder / f"real-{program}"
    real.mkdir()
    (folder / program).rename(real / program)
    (folder / program).write_text(f"#!/bin/sh\nreal={real}/{program}\n{body}\n")
    (folder / program).chmod(0o755)


def listing() -> list[str]:
    """Return what the kernel has, as iptables-save shows it."""
    lines = [line for program in FAMILIES for line in rules(program)]
    return [line.split(" [")[0] for line in lines]


def rules(program: str) -> list[str]:
    """Return the lines of a family, without remarks."""
    lines = sh(f"{program}-save -t nat; {program}-save -t filter").split("\n")
    return [line for line in lines if line and not line.startswith("#")]


def clear() -> None:
    for program in FAMILIES:
        sh(f"printf '*nat\\nCOMMIT\\n*filter\\nCOMMIT\\n' | {program}-restore")


ALL = (
    *iptables.masquerade(C1, IPS),
    *iptables.port_mappings(C1, (WEB, DNS), ADDRESSES, Options()),
    *iptables.firewall(IPS),
    *iptables.ingress_policy("isolated", "br0", (4, 6)),
)
ALL_GONE = (*iptables.masquerade_removal(C1), *iptables.port_mappings_removal(C1), *iptables.firewall_removal(IPS))


def added(steps: Sequence[Step]) -> list[str]:
    with World() as world:
        apply(steps, world)
        assert verify(steps, world) == []
    return listing()


def removed(steps: Sequence[Step]) -> list[str]:
    with World() as world:
        assert remove(steps, world) == []
    return listing()


def test_add_and_del_in_the_kernel(folder: Path) -> None:
    assert folder
    made = added(ALL)
    policy = [line for line in ISOLATED.split("\n") if "ISOLATION" in line and line.startswith("-A")]
    assert [line for line in made if "ISOLATION" in line and line.startswith("-A")] == policy * 2
    assert added(ALL) == made
    left = removed(ALL_GONE)
    assert [line for line in left if "c1" in line or DNAT in line or "10.9.0.2" in line or "fd00:9::2" in line] == []
    assert len([line for line in left if "CNI-HOSTPORT-MASQ" in line]) == 6, "what is shared is left"
    assert removed(ALL_GONE) == left
    assert added(ALL) == made


def test_del_where_nothing_ever_was(folder: Path) -> None:
    assert folder
    assert [line for line in removed(ALL_GONE) if "CNI" in line] == []


def test_conditions_in_words_that_iptables_puts_otherwise(folder: Path) -> None:
    assert folder
    options = Options(conditions_v4=("!", "--source", "192.0.2.0/255.255.255.0", "-m", "comment", "--comment", "a 'b'"))
    steps = iptables.port_mappings(C1, (WEB,), ADDRESSES, options)
    made = added(steps)
    entry = next(line for line in made if line.startswith("-A CNI-HOSTPORT-DNAT"))
    assert entry.startswith(f"-A CNI-HOSTPORT-DNAT ! -s 192.0.2.0/24 -p tcp {ENTRY}")
    assert added(steps) == made
    assert [line for line in removed(iptables.port_mappings_removal(C1)) if DNAT in line] == []


def test_each_verb_reads_and_changes_a_family_once(folder: Path) -> None:
    calls = folder / "calls"
    for name in NAMES:
        script(folder, name, f'echo {name} "$@" >> {calls}; exec $real "$@"')
    firewall = (*iptables.firewall(IPS), *iptables.ingress_policy("isolated", "br0", (4, 6)))
    with World() as world:
        apply(firewall, world)
    made = [f"{program} {words}" for program in ("iptables", "ip6tables") for words in ("-save", "-restore")]
    once = [name.replace(" ", "") for name in made]
    assert [call.split()[0] for call in calls.read_text().splitlines()] == once
    assert "iptables-save -t filter" in calls.read_text()
    assert re.search(r"iptables-restore --noflush -w \d+$", calls.read_text(), re.MULTILINE)
    calls.unlink()
    with World() as world:
        assert verify(firewall, world) == []
    assert [call.split()[0] for call in calls.read_text().splitlines()] == ["iptables-save", "ip6tables-save"]
    calls.unlink()
    with World() as world:
        assert remove(iptables.firewall_removal(IPS), world) == []
    assert [call.split()[0] for call in calls.read_text().splitlines()] == once


def test_a_failed_add_is_undone_and_says_what_iptables_said(folder: Path) -> None:
    assert folder
    before = added(ALL[-2:])
    steps = (*ALL[:2], *iptables.port_mappings(C1, (WEB,), ADDRESSES, Options(conditions_v6=("-m", "no-such"))))
    with World() as world, pytest.raises(CniError) as raised:
        apply(steps, world)
    assert raised.value.code == 100
    assert raised.value.msg.startswith(f"{RESTORE.replace('ip', 'ip6')}: ")
    assert "no-such" in raised.value.msg
    assert raised.value.msg.endswith("; exit status 2")
    assert raised.value.details == ""
    assert [line for line in listing() if "c1" in line or DNAT in line] == []
    assert set(before) <= set(listing())


BAD = Rules(HOST, "nat", 4, own=(Rule("POSTROUTING", "", "NO-SUCH-CHAIN"),))


def made_with_a_bad_one(world: World | FakeWorld) -> Refusal:
    """Make good rules of both families and a bad one of the first; return how the first rule is refused."""
    good = [step.what for step in iptables.masquerade(C1, IPS)]
    first, *others = world[HOST].change([Make(good[0]), Make(good[1]), Make(BAD)])
    assert [outcome.errno for outcome in others if outcome] == [125, 125]
    assert first is not None
    return first


def test_when_a_family_fails_its_others_and_those_after_it_are_not_done(folder: Path) -> None:
    assert folder
    with World() as world:
        first = made_with_a_bad_one(world)
    assert (first.errno, "NO-SUCH-CHAIN" in first.why) == (0, True)
    assert [line for line in listing() if CHAIN in line] == []


def test_it_is_the_same_in_memory() -> None:
    world = FakeWorld()
    world.fail = {Make(BAD): 22}
    assert made_with_a_bad_one(world) == Refusal(22, "")
    assert world[HOST].iptables == {}


def meanwhile(folder: Path, command: str) -> None:
    """Have somebody else change the table once, between our reading and changing it."""
    once = f"{folder}/once"
    script(
        folder, "iptables-restore", f'[ -e {once} ] || {{ touch {once}; iptables -t nat {command}; }}; exec $real "$@"'
    )


def test_a_shared_chain_that_somebody_else_makes_meanwhile_is_not_emptied(folder: Path) -> None:
    meanwhile(folder, "-N CNI-HOSTPORT-MASQ; iptables -t nat -A CNI-HOSTPORT-MASQ -j RETURN")
    made = added(iptables.port_mappings(C1, (WEB,), ADDRESSES[:1], Options()))
    assert (folder / "once").exists()
    assert [line.split()[2:] for line in made if line.startswith("-A CNI-HOSTPORT-MASQ")] == [
        ["-j", "RETURN"],
        ["-m", "mark", "--mark", "0x2000/0x2000", "-j", "MASQUERADE"],
    ]


def test_a_rule_that_somebody_else_removes_meanwhile_is_gone_all_the_same(folder: Path) -> None:
    added(iptables.masquerade(C1, IPS[:1]))
    meanwhile(folder, f"-F POSTROUTING; iptables -t nat -F {CHAIN}")
    left = removed(iptables.masquerade_removal(C1))
    assert (folder / "once").exists()
    assert [line for line in left if CHAIN in line] == []


def test_a_failure_that_is_nobody_elses_doing_is_not_tried_again(folder: Path) -> None:
    script(folder, "iptables-restore", f"echo again >> {folder}/calls; echo no >&2; exit 4")
    with World() as world, pytest.raises(CniError, match=r"^iptables-restore .*: no; exit status 4$"):
        apply(iptables.masquerade(C1, IPS), world)
    assert (folder / "calls").read_text() == "again\n"


PARALLEL = """
import sys
from types import SimpleNamespace
from cnikit import iptables
from cnikit.effects.kernel import World
from cnikit.plan import apply
from cnikit.request import Attachment
from cnikit.result import IP
n = int(sys.argv[1])
attachment, ips = Attachment("net1", f"p{n}", "eth0"), (IP(f"10.9.0.{n}/24"), IP(f"fd00:9::{n}/64"))
web = SimpleNamespace(host_port=8000 + n, container_port=80, protocol="tcp", host_ip="")
with World() as world:
    print(flush=True)
    sys.stdin.read()
    apply(iptables.port_mappings(attachment, [web], [ip.address for ip in ips], iptables.Options()), world)
    apply((*iptables.firewall(ips), *iptables.ingress_policy("same-bridge", "br1", (4, 6))), world)
"""


@pytest.mark.parametrize("before", [(), ALL], ids=["the-host's-first", "a-bridge's-first"])
def test_adds_at_once_share_what_is_shared(folder: Path, before: tuple[Step, ...]) -> None:
    added(before)
    for program in FAMILIES:
        script(folder, f"{program}-save", '$real "$@"; status=$?; sleep 0.05; exit $status')
    calls = [
        subprocess.Popen(
            [sys.executable, "-c", PARALLEL, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT
        )
        for n in range(2, 5)
    ]
    for call in calls:
        assert call.stdout
        with call.stdout as ready:
            ready.readline()
    for call in calls:
        assert call.stdin
        call.stdin.close()
    assert [call.wait() for call in calls] == [0] * len(calls)
    for program in FAMILIES:
        lines = [line for line in rules(program) if line.startswith("-A")]
        assert len(set(lines)) == len(lines), "no rule is there twice"
        assert {n for n in range(9) for line in lines if f'dnat name: \\"net1\\" id: \\"p{n}\\"' in line} == {2, 3, 4}
        assert len([line for line in lines if line.endswith("-j CNI-HOSTPORT-DNAT")]) == 2


# The programs themselves


@pytest.fixture
def empty(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the test on a host without iptables; gives a folder for programs."""
    assert host
    monkeypatch.setattr(programs, "_FOLDERS", ())
    monkeypatch.setitem(posix.environ, b"PATH", str(tmp_path).encode())
    return tmp_path


def test_a_missing_program_is_told_by_name_and_package(empty: Path) -> None:
    with World() as world, pytest.raises(CniError) as raised:
        apply(iptables.masquerade(C1, IPS), world)
    assert raised.value.code == 7
    assert raised.value.msg == f'the backend "iptables" needs iptables-restore, which is not in {empty}'
    assert raised.value.details == 'install the package iptables, or choose "nftables", which needs no program'


def test_del_without_any_program_is_a_fault(empty: Path) -> None:
    assert empty
    with World() as world:
        faults = remove(ALL_GONE, world)
    assert len(faults) == len(ALL_GONE)
    assert 'the backend "iptables" needs iptables-save' in faults[0].msg


def fake(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_del_where_only_one_familys_programs_are(empty: Path) -> None:
    fake(empty, "iptables-save", "echo '*nat'")
    with World() as world:
        assert remove(ALL_GONE[:4], world) == []


def test_programs_are_found_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(posix.environ, b"PATH")
    assert programs.find("iptables-save") == "/usr/sbin/iptables-save"


def test_a_relative_folder_in_path_is_passed_over(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(empty, "iptables-save", "true")
    monkeypatch.chdir(empty)
    monkeypatch.setitem(posix.environ, b"PATH", b".:")
    with pytest.raises(CniError):
        programs.find("iptables-save")


def test_a_program_is_given_a_clean_environment(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    fake(empty, "iptables-save", f"/usr/bin/env > {empty}/env; echo '*nat'")
    with World() as world:
        world[HOST].chains(4, "nat")
    given = dict(line.split("=", 1) for line in (empty / "env").read_text().splitlines())
    assert given.keys() - {"PWD", "OLDPWD", "SHLVL", "_"} == {"PATH"}


def test_a_program_that_does_not_end_is_killed(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(empty, "iptables-save", f"echo $$ > {empty}/pid; exec /bin/sleep 1000")
    monkeypatch.setattr(limit, "share", lambda: 0.3)
    with World() as world, pytest.raises(CniError, match=r"iptables-save: gave no answer in 0\.3 s") as raised:
        world[HOST].chains(4, "nat")
    assert raised.value.code == 100
    with pytest.raises(ProcessLookupError):
        os.kill(int((empty / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param("echo oops >&2; exit 3", "oops; exit status 3", id="status"),
        pytest.param("kill -9 $$", "signal 9", id="signal"),
        pytest.param("echo '# Table is incompatible'", "# Table is incompatible; exit status 0", id="no-table"),
    ],
)
def test_a_table_that_cannot_be_read(empty: Path, body: str, why: str) -> None:
    fake(empty, "iptables-save", body)
    with World() as world:
        with pytest.raises(CniError) as raised:
            world[HOST].chains(4, "nat")
        assert raised.value.msg == f"iptables-save -t nat: {why}"
        assert [fault.msg for fault in remove(iptables.masquerade_removal(C1, IPS[:1]), world)] == [
            f"{RESTORE}: iptables-save -t nat: {why}"
        ]


def test_an_empty_answer_is_an_empty_table(empty: Path) -> None:
    fake(empty, "iptables-save", "true")
    with World() as world:
        assert world[HOST].chains(4, "nat") == {}


@pytest.mark.parametrize("folder", ["nft"], indirect=True)
def test_a_table_with_rules_that_only_nft_has_words_for_is_no_empty_one(folder: Path) -> None:
    assert folder
    sh("iptables -t nat -A POSTROUTING -j RETURN && nft add set ip nat s '{ type ipv4_addr; }'")
    sh("nft add rule ip nat POSTROUTING ip saddr @s masquerade")
    with World() as world, pytest.raises(CniError, match=r"iptables-save -t nat: .*incompatible"):
        world[HOST].chains(4, "nat")


def test_a_host_without_ipv6_has_no_rules_of_it(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(empty, "ip6tables-save", "exit 3")
    access = posix.access
    monkeypatch.setattr(posix, "access", lambda path, mode: path != "/proc/net/if_inet6" and access(path, mode))
    with World() as world:
        assert world[HOST].chains(6, "nat") == {}


def test_a_lock_that_cannot_be_made(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert empty
    monkeypatch.setattr(programs, "LOCK", "/nowhere/lock")
    with World() as world:
        faults = remove(iptables.masquerade_removal(C1, IPS[:1]), world)
    assert [fault.msg for fault in faults] == [f"{RESTORE}: /nowhere/lock: No such file or directory"]


def test_processes_give_their_streams_and_status(tmp_path: Path) -> None:
    fake(tmp_path, "program", 'cat; echo "$0 $1" >&2; exit 7')
    given = process.run(f"{tmp_path}/program", ["name", "word"], {"PATH": "/bin:/usr/bin"}, b"in", 10)
    assert given == (7, b"in", f"{tmp_path}/program word\n".encode())


# The reference


def refer(folder: Path, verb: str, plugin: str, config: dict[str, Any], netns: str) -> None:
    """Run a plugin of the reference's."""
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": netns}
    called = subprocess.run(
        [needs_reference() / plugin],
        input=json.dumps({"cniVersion": "1.0.0", "name": "net1", "type": plugin, **config}),
        env={**environ, "CNI_PATH": str(needs_reference()), "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert called.returncode == 0, called.stdout


# Of IPv6 only one port a protocol: ip6tables-legacy 1.8.9 takes rules for two, so the reference, for the same.
PREVIOUS: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "br0"}],
    "ips": [{"address": cidr} for cidr in ADDRESSES],
}
MANY = [
    *(Mapping(port, port + 1, ("tcp", "udp", "sctp")[port % 3]) for port in range(1000, 1060)),
    WEB.replace(host_ip="fd00::1"),
    WEB.replace(host_ip="0.0.0.0"),
]


def portmap_config(mappings: Sequence[Mapping], **keys: Any) -> dict[str, Any]:
    given = [
        {"hostPort": m.host_port, "containerPort": m.container_port, "protocol": m.protocol, "hostIP": m.host_ip}
        for m in mappings
    ]
    return {"runtimeConfig": {"portMappings": given}, "prevResult": PREVIOUS, **keys}


BESIDE = [
    pytest.param(
        "portmap",
        portmap_config((WEB, DNS)),
        iptables.port_mappings(C1, (WEB, DNS), ADDRESSES, Options()),
        iptables.port_mappings_removal(C1),
        id="portmap",
    ),
    pytest.param(
        "portmap",
        portmap_config((WEB,), snat=False, conditionsV4=["!", "-s", "192.0.2.0/24"], conditionsV6=["-i", "eth0"]),
        iptables.port_mappings(
            C1,
            (WEB,),
            ADDRESSES,
            Options(snat=False, conditions_v4=("!", "-s", "192.0.2.0/24"), conditions_v6=("-i", "eth0")),
        ),
        iptables.port_mappings_removal(C1),
        id="portmap-conditions-no-snat",
    ),
    pytest.param(
        "portmap",
        portmap_config(MANY, markMasqBit=31, prevResult={**PREVIOUS, "ips": PREVIOUS["ips"][:1]}),
        iptables.port_mappings(C1, MANY, ADDRESSES[:1], Options(mark_bit=31)),
        iptables.port_mappings_removal(C1),
        id="portmap-many",
    ),
    pytest.param(
        "firewall",
        {"backend": "iptables", "prevResult": PREVIOUS},
        iptables.firewall(IPS),
        iptables.firewall_removal(IPS),
        id="firewall",
    ),
    pytest.param(
        "firewall",
        {"backend": "iptables", "iptablesAdminChainName": "MY", "ingressPolicy": "same-bridge", "prevResult": PREVIOUS},
        (*iptables.firewall(IPS, "MY"), *iptables.ingress_policy("same-bridge", "br0", (4, 6))),
        iptables.firewall_removal(IPS),
        id="firewall-same-bridge",
    ),
    pytest.param(
        "bridge",
        {
            "bridge": "br0",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {"type": "static", "addresses": [{"address": cidr} for cidr in ADDRESSES]},
        },
        iptables.masquerade(C1, IPS),
        iptables.masquerade_removal(C1),
        id="masquerade",
    ),
]


def newest(lines: list[str]) -> list[str]:
    """Return rules with a comment as the reference has it since there is the policy isolated."""
    old, new = (
        f'"CNI firewall plugin rules (ingressPolicy: {names})" -j' for names in ("same-bridge", "same-bridge|isolated")
    )
    return [line if f"{old} CNI-ISOLATION-STAGE-2" in line else line.replace(old, new) for line in lines]


@pytest.mark.all
@pytest.mark.parametrize(("plugin", "config", "adds", "dels"), BESIDE)
def test_rules_are_the_references_and_either_suite_removes_the_others(
    folder: Path, container: str, plugin: str, config: dict[str, Any], adds: tuple[Step, ...], dels: tuple[Step, ...]
) -> None:
    if plugin != "bridge":
        sh("ip link add br0 type bridge && ip addr add 10.9.0.1/24 dev br0 && ip link set br0 up")
    refer(folder, "ADD", plugin, config, container)
    theirs = newest(listing())
    left_by_us = newest(removed(dels))
    clear()
    assert added(adds) == theirs
    refer(folder, "DEL", plugin, config, container)
    left_by_them = listing()
    assert left_by_us == left_by_them
    assert [line for line in left_by_us if "c1" in line or "10.9.0.2/32" in line or DNAT in line] == []


@pytest.mark.all
def test_the_references_check_passes_on_what_we_made(folder: Path, container: str) -> None:
    """Only the firewall's: its portmap, in this version, looks for rules of one family in the other."""
    added(iptables.firewall(IPS))
    refer(folder, "CHECK", "firewall", {"backend": "iptables", "prevResult": PREVIOUS}, container)


def test_a_listing_may_name_rules_of_chains_it_does_not_list() -> None:
    assert saved("-A A -j B\n*nat\n-A C -j D\n:C - [0:0]\n-A\n-A \n") == {"nat": {"C": [], "": [""]}}


def test_a_private_chain_is_filled_once_however_long_it_is() -> None:
    """Every rule used to be looked for among all the others: 25,000 ports took 36 s."""
    own = tuple(
        Rule("CNI-DN-1", f"-p tcp -m tcp --dport {port}", "DNAT --to-destination 10.1.0.2:80") for port in range(3)
    )
    edit = Edit({})
    Rules(HOST, "nat", 4, private=("CNI-DN-1",), own=own).make(edit)
    assert edit.lines == [":CNI-DN-1 - [0:0]", *(f"-A CNI-DN-1 {rule.text()}" for rule in own)]
