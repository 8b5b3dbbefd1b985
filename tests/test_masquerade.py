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
from cnikit.result import IP
from tests.conftest import Call, needs_reference, sh
from tests.packets import reached, server, wire

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
