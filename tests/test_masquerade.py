"""ipMasq on bridge: who a packet seems to come from."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from cnikit import masquerade
from cnikit.plan import render
from cnikit.plugins import bridge
from cnikit.request import parse
from cnikit.result import IP
from tests.conftest import BUILT, Call, needs_reference, sh
from tests.packets import reached, server, wire

ENVIRON = {"CNI_COMMAND": "CHECK", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_PATH": str(BUILT)}
ADDRESSES = ("10.31.0.2/24", "10.32.0.2/24", "fd00:31::2/64")


def config(number: int = 0, name: str = "net1", **keys: Any) -> dict[str, Any]:
    addresses = [
        {"address": address.replace("::2/", f"::{2 + number}/").replace(".2/", f".{2 + number}/")}
        for address in ADDRESSES
    ]
    ipam = {"type": "static", "addresses": addresses}
    conf = {
        "cniVersion": "1.1.0",
        "name": name,
        "type": "bridge",
        "bridge": "br1",
        "isDefaultGateway": True,
        "ipMasq": True,
    }
    return {**conf, "ipam": ipam, **keys}


def call(verb: str, conf: dict[str, Any], netns: str = "", container: str = "c1") -> Call:
    return Call(bridge.PLUGIN, verb, conf, CNI_NETNS=netns, CNI_CONTAINERID=container)


@pytest.fixture
def outside(host: str, new_container: Callable[[], str]) -> str:
    """Another host on the wire, which knows of no container."""
    other = new_container()
    wire(host, other, ("192.0.2.1/24", "192.0.2.2/24"), ("2001:db8::1/64", "2001:db8::2/64"))
    return other


def test_outside_sees_the_hosts_address(container: str, outside: str) -> None:
    call("ADD", config(), container).result()
    with server(outside, "0.0.0.0", 80) as web, server(outside, "::", 81) as web6:
        for source in ("10.31.0.2", "10.32.0.2"):
            assert reached(web, container, "192.0.2.2", 80, source=source) == "192.0.2.1"
        assert reached(web6, container, "2001:db8::2", 81) == "2001:db8::1"


def test_the_networks_own_subnets_see_the_container(host: str, new_container: Callable[[], str]) -> None:
    one, two = new_container(), new_container()
    call("ADD", config(), one).result()
    call("ADD", config(1), two, "c2").result()
    with server(two, "0.0.0.0", 80) as web, server(two, "::", 81) as web6, server(host, "0.0.0.0", 80) as here:
        assert reached(web, one, "10.31.0.3", 80) == "10.31.0.2"
        assert reached(web, one, "10.32.0.3", 80) == "10.32.0.2"
        # By the gateway, not over the bridge: from one of its subnets to the other.
        assert reached(web, one, "10.32.0.3", 80, source="10.31.0.2") == "10.31.0.2"
        assert reached(web6, one, "fd00:31::3", 81) == "fd00:31::2"
        assert reached(here, one, "10.31.0.1", 80) == "10.31.0.2"


def test_multicast_is_left_alone(container: str, outside: str) -> None:
    call("ADD", config(), container).result()
    listing = sh("nft list chain inet cnikit_masquerade postrouting")
    assert "ip daddr != 224.0.0.0/4" in listing
    assert "ip6 daddr != ff00::/8" in listing
    assert outside


@pytest.mark.parametrize("missing", ["nothing", "netns", "link", "prevResult", "everything"])
def test_del_leaves_no_element(host: str, container: str, missing: str) -> None:
    assert host
    result = call("ADD", config(), container).result()
    assert sh("nft list ruleset").count("cni:net1/c1/eth0") == 3 + 2 + 2 + 1
    if missing in ("link", "everything"):
        sh(f"ip link del {result['interfaces'][1]['name']}")
    conf = config() if missing in ("prevResult", "everything") else {**config(), "prevResult": result}
    for _ in range(2):
        assert call("DEL", conf, "" if missing in ("netns", "everything") else container).succeeded()
    assert "cni:" not in sh("nft list ruleset")


def test_a_neighbour_keeps_its_elements(host: str, new_container: Callable[[], str]) -> None:
    assert host
    one, two = new_container(), new_container()
    call("ADD", config(), one).result()
    before = sh("nft list ruleset")
    call("ADD", config(1), two, "c2").result()
    assert call("DEL", config(1), two, "c2").succeeded()
    assert sh("nft list ruleset") == before


def test_gc(host: str, new_container: Callable[[], str]) -> None:
    assert host
    one, two = new_container(), new_container()
    call("ADD", config(), one).result()
    call("ADD", config(1), two, "c2").result()
    valid = {"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]}
    assert call("GC", {**config(), **valid}).succeeded()
    listed = sh("nft list ruleset")
    assert ("net1/c1/" in listed, "net1/c2/" in listed) == (False, True)


CHANGES = {
    "flush ruleset": "cnikit_masquerade is gone, or empty",
    "flush chain inet cnikit_masquerade postrouting": "cnikit_masquerade is gone, or empty",
    "flush set inet cnikit_masquerade sources4": "sources4 { 10.31.0.2 }",
    "flush set inet cnikit_masquerade inside6": "inside6 { fd00:31::2 . fd00:31::/64 }",
}


@pytest.mark.parametrize("change", CHANGES)
def test_check_finds_what_is_gone(host: str, container: str, change: str) -> None:
    assert host
    conf = {**config(), "prevResult": call("ADD", config(), container).result()}
    assert call("CHECK", conf, container).succeeded()
    sh(f"nft '{change}'")
    code, msg = call("CHECK", conf, container).error()
    assert (code, CHANGES[change] in msg) == (101, True), msg


def test_the_steps() -> None:
    _, *steps = masquerade.steps("TAG", [IP(address) for address in ADDRESSES[:2]])
    assert render(steps, "") == (
        "nft add 'element inet cnikit_masquerade sources4 { 10.31.0.2 comment \"TAG\" }'\n"
        "nft add 'element inet cnikit_masquerade inside4 { 10.31.0.2 . 10.31.0.0/24 comment \"TAG\" }'\n"
        "nft add 'element inet cnikit_masquerade inside4 { 10.31.0.2 . 10.32.0.0/24 comment \"TAG\" }'\n"
        "nft add 'element inet cnikit_masquerade sources4 { 10.32.0.2 comment \"TAG\" }'\n"
        "nft add 'element inet cnikit_masquerade inside4 { 10.32.0.2 . 10.31.0.0/24 comment \"TAG\" }'\n"
        "nft add 'element inet cnikit_masquerade inside4 { 10.32.0.2 . 10.32.0.0/24 comment \"TAG\" }'\n"
    )


# ipMasqExcept

EXCEPTED = ["10.244.7.9/16", "fd00:244::/32"]
BACKENDS = pytest.mark.parametrize("backend", ["nftables", "iptables"])


@pytest.fixture
def node(host: str, outside: str) -> str:
    """Another node of a cluster, with pods of its own; each knows the way to the other's."""
    here, there = host.rpartition("/")[2], outside.rpartition("/")[2]
    for pods, gateway, ours in (
        ("10.244.2.1/24", "192.0.2", "10.31.0.0/16"),
        ("fd00:244:2::1/64", "2001:db8:", "fd00:31::/64"),
    ):
        last = ":" if ":" in pods else "."
        sh(f"ip -n {there} addr add {pods} dev lo && ip -n {there} route add {ours} via {gateway}{last}1")
        sh(f"ip -n {here} route add {pods.replace('1/', '0/') if '.' in pods else pods} via {gateway}{last}2")
    return outside


@BACKENDS
def test_excepted_subnets_see_the_containers_address(container: str, node: str, backend: str) -> None:
    conf = config(ipMasqBackend=backend, ipMasqExcept=EXCEPTED)
    result = call("ADD", conf, container).result()
    with server(node, "0.0.0.0", 80) as web, server(node, "::", 81) as web6:
        assert reached(web, container, "10.244.2.1", 80) == "10.31.0.2"
        assert reached(web6, container, "fd00:244:2::1", 81) == "fd00:31::2"
        # All else sees the host's.
        assert reached(web, container, "192.0.2.2", 80) == "192.0.2.1"
        assert reached(web6, container, "2001:db8::2", 81) == "2001:db8::1"
    assert call("CHECK", {**conf, "prevResult": result}, container).succeeded()
    assert call("DEL", conf, container).succeeded()
    assert "10.31.0.2" not in sh("nft list ruleset; iptables-save")


@BACKENDS
def test_without_the_list_all_see_the_hosts_address(container: str, node: str, backend: str) -> None:
    call("ADD", config(ipMasqBackend=backend), container).result()
    with server(node, "0.0.0.0", 80) as web, server(node, "::", 81) as web6:
        assert reached(web, container, "10.244.2.1", 80) == "192.0.2.1"
        assert reached(web6, container, "fd00:244:2::1", 81) == "2001:db8::1"


@BACKENDS
def test_a_second_interface_of_the_container_is_excepted_too(container: str, node: str, backend: str) -> None:
    """With iptables both are in one chain, and the first one's rule masquerades."""
    first, second = (
        {**config(ipMasqBackend=backend, **keys), "ipam": {"type": "static", "addresses": [{"address": address}]}}
        for address, keys in (
            ("10.33.0.2/24", {"bridge": "br2", "isDefaultGateway": False, "isGateway": True}),
            ("10.31.0.2/24", {"ipMasqExcept": EXCEPTED}),
        )
    )
    environ = {"CNI_NETNS": container, "CNI_CONTAINERID": "c1"}
    Call(bridge.PLUGIN, "ADD", first, **environ, CNI_IFNAME="eth0").result()
    Call(bridge.PLUGIN, "ADD", second, **environ, CNI_IFNAME="eth1").result()
    with server(node, "0.0.0.0", 80) as web:
        assert reached(web, container, "10.244.2.1", 80, source="10.31.0.2") == "10.31.0.2"
        assert reached(web, container, "192.0.2.2", 80, source="10.31.0.2") == "192.0.2.1"


@BACKENDS
def test_check_finds_that_a_subnet_is_no_longer_excepted(host: str, container: str, backend: str) -> None:
    assert host
    conf = config(ipMasqBackend=backend, ipMasqExcept=EXCEPTED)
    conf["prevResult"] = call("ADD", conf, container).result()
    if backend == "nftables":
        sh("nft delete element inet cnikit_masquerade inside6 '{ fd00:31::2 . fd00:244::/32 }'")
        lacking = "inside6 { fd00:31::2 . fd00:244::/32 }"
    else:
        [rule] = [line for line in sh("ip6tables-save -t nat").splitlines() if "fd00:244::/32" in line]
        sh(f"ip6tables -t nat {rule.replace('-A', '-D', 1)}")
        lacking = "-d fd00:244::/32"
    code, msg = call("CHECK", conf, container).error()
    assert (code, lacking in msg) == (101, True), msg


@BACKENDS
@pytest.mark.parametrize("before", [["10.244.0.0/24", "10.244.3.0/24"], ["10.0.0.0/8"], []], ids=" ".join)
def test_a_changed_list(container: str, node: str, backend: str, before: list[str]) -> None:
    """CHECK names what is lacking, repair adds it, and so does an ADD where the address had another owner."""
    old, new = (config(ipMasqBackend=backend, ipMasqExcept=subnets) for subnets in (before, ["10.244.0.0/16"]))
    new["prevResult"] = call("ADD", old, container).result()
    code, msg = call("CHECK", new, container).error()
    assert (code, "10.244.0.0/16" in msg) == (101, True), msg
    request = parse({**ENVIRON, "CNI_NETNS": container}, json.dumps(new).encode)
    assert bridge.PLUGIN.repair(request) != ()
    assert call("CHECK", new, container).succeeded()
    with server(node, "0.0.0.0", 80) as web:
        assert reached(web, container, "10.244.2.1", 80) == "10.31.0.2"
        assert reached(web, container, "192.0.2.2", 80) == "192.0.2.1"
    assert call("DEL", old, container).succeeded()
    assert "10.31.0.2" not in sh("nft list ruleset; iptables-save")


@pytest.mark.parametrize("before", [["10.244.3.0/24"], ["10.244.128.0/17"], ["0.0.0.0/0", "::/0"]], ids=" ".join)
def test_an_address_comes_back_after_the_list_has_changed(
    node: str, new_container: Callable[[], str], before: list[str]
) -> None:
    """Its last owner was not deleted, and what was excepted for him overlaps with what is now."""
    gone, container = new_container(), new_container()
    call("ADD", config(ipMasqExcept=before), gone, "c1").result()
    sh(f"ip netns del {gone.rpartition('/')[2]}")
    call("ADD", config(ipMasqExcept=EXCEPTED), container, "c2").result()
    with server(node, "0.0.0.0", 80) as web:
        assert reached(web, container, "10.244.2.1", 80) == "10.31.0.2"
        assert reached(web, container, "192.0.2.2", 80) == "192.0.2.1"
    assert "net1/c1/" not in sh("nft list set inet cnikit_masquerade inside4")


def test_the_steps_with_excepted_subnets() -> None:
    """Host bits are left out, and so is what lies in another subnet."""
    subnets = [(b"\x0a\x1f\x00\x00", 16), (b"\x0a\x1f\x07\x00", 24), (b"\xc0\x00\x02\x01", 32), (bytes(16), 0)]
    _, *steps = masquerade.steps("TAG", [IP(ADDRESSES[0])], subnets)
    assert render(steps, "") == (
        "nft add 'element inet cnikit_masquerade sources4 { 10.31.0.2 comment \"TAG\" }'\n"
        "nft add 'element inet cnikit_masquerade inside4 { 10.31.0.2 . 10.31.0.0/16 comment \"TAG\" }'\n"
        "nft add 'element inet cnikit_masquerade inside4 { 10.31.0.2 . 192.0.2.1/32 comment \"TAG\" }'\n"
    )


@BACKENDS
def test_everything_of_a_family_may_be_excepted(container: str, outside: str, backend: str) -> None:
    conf = config(ipMasqBackend=backend, ipMasqExcept=["10.9.8.7/0", "192.0.2.2/32"])
    sh(f"ip -n {outside.rpartition('/')[2]} route add 10.31.0.0/16 via 192.0.2.1")
    result = call("ADD", conf, container).result()
    with server(outside, "0.0.0.0", 80) as web, server(outside, "::", 81) as web6:
        assert reached(web, container, "192.0.2.2", 80) == "10.31.0.2"
        assert reached(web6, container, "2001:db8::2", 81) == "2001:db8::1"
    assert call("CHECK", {**conf, "prevResult": result}, container).succeeded()


# iptables, and what the reference has left


def test_with_iptables(container: str, outside: str) -> None:
    conf = config(ipMasqBackend="iptables")
    result = call("ADD", conf, container).result()
    assert "cnikit_masquerade" not in sh("nft list tables")
    with server(outside, "0.0.0.0", 80) as web, server(outside, "::", 81) as web6:
        assert reached(web, container, "192.0.2.2", 80) == "192.0.2.1"
        assert reached(web6, container, "2001:db8::2", 81) == "2001:db8::1"
    with_result = {**conf, "prevResult": result}
    assert call("CHECK", with_result, container).succeeded()
    sh("iptables -t nat -F POSTROUTING")
    assert call("CHECK", with_result, container).error()[0] == 101
    # Whatever the configuration says by now.
    assert call("DEL", config(), container).succeeded()
    assert "MASQUERADE" not in sh("iptables-save; ip6tables-save")


def test_gc_with_iptables(host: str, new_container: Callable[[], str]) -> None:
    assert host
    for number, container in enumerate(("c1", "c2")):
        call("ADD", config(number, ipMasqBackend="iptables"), new_container(), container).result()
    valid = {"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]}
    assert call("GC", {**config(), **valid}).succeeded()
    saved = sh("iptables-save")
    assert ('id: \\"c1\\"' in saved, 'id: \\"c2\\"' in saved) == (False, True)


@pytest.mark.parametrize("backend", ["ufw", "", 5])
def test_an_unknown_backend(host: str, container: str, backend: object) -> None:
    assert host
    code, msg = call("ADD", config(ipMasqBackend=backend), container).error()
    assert (code, msg.startswith("ipMasqBackend: ")) == (7, True)
    assert "br1" not in sh("ip -br link")


@pytest.mark.all
@pytest.mark.parametrize("with_result", [True, False])
def test_del_takes_away_what_the_reference_made(host: str, container: str, with_result: bool) -> None:
    assert host
    ipam = {"type": "static", "addresses": [{"address": address} for address in (ADDRESSES[0], ADDRESSES[2])]}
    conf = config(cniVersion="1.0.0", ipam=ipam)
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": container}
    run = subprocess.run(
        [needs_reference() / "bridge"],
        input=json.dumps(conf).encode(),
        env={"PATH": os.environ["PATH"], **environ, "CNI_PATH": "/usr/lib/cni"},
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "MASQUERADE" in sh("iptables-save")
    prev = {"prevResult": json.loads(run.stdout)} if with_result else {}
    assert call("DEL", {**conf, **prev}, container).succeeded()
    assert "MASQUERADE" not in sh("iptables-save; ip6tables-save")
    assert "CNI-" not in sh("iptables-save; ip6tables-save")


def test_del_takes_away_rules_of_the_references_nftables_backend(host: str, container: str) -> None:
    """The comment is reference.md's vector: its hashes of network, interface and container."""
    conf = config(name="unit-test")
    call("ADD", conf, container, "one").result()
    table = "inet cni_plugins_masquerade"
    sh(f"nft 'add table {table}; add chain {table} masq_checks'")
    for comment in ("6fd94d501e58f0aa-287fc69eff0574a2, net: unit-test, if: eth0, id: one", "another"):
        sh(f"nft add rule {table} masq_checks 'ip saddr 10.31.0.2 masquerade comment \"{comment}\"'")
    assert call("DEL", conf, container, "one").succeeded()
    assert sh(f"nft list chain {table} masq_checks").count("comment") == 1
    assert host


@pytest.mark.parametrize("addresses", [("10.1.0.9/16", "10.1.5.7/24"), ("10.1.5.7/24", "10.1.0.9/16")])
def test_subnets_that_overlap(host: str, container: str, addresses: tuple[str, str]) -> None:
    assert host
    ipam = {"type": "static", "addresses": [{"address": address} for address in addresses]}
    call("ADD", config(ipam=ipam, isDefaultGateway=False), container).result()
    assert "10.1.5.7 . 10.1.0.0/16" in sh("nft list set inet cnikit_masquerade inside4")


@pytest.mark.parametrize("verb", ["DEL", "GC"])
@pytest.mark.parametrize("former", [{"macspoofchk": True}, {"ipMasqBackend": "iptables"}], ids=str)
def test_what_a_changed_configuration_has_left_is_taken_away(
    host: str, container: str, former: dict[str, Any], verb: str
) -> None:
    assert host
    empty = sh("nft list ruleset | grep -c 'CNI-\\|cni:' || true")
    call("ADD", config(**former), container).result()
    assert sh("nft list ruleset | grep -c 'CNI-\\|cni:'") != empty
    keys: dict[str, Any] = {"cni.dev/valid-attachments": []} if verb == "GC" else {}
    assert call(verb, {**config(ipMasq=False), **keys}, container).succeeded()
    assert sh("nft list ruleset | grep -c 'CNI-\\|cni:' || true") == empty
