"""STATUS fails where no ADD can succeed until configuration or host is changed, and only there.

A runtime takes the whole node out of service for it, and its containers are evicted. What may pass by itself, such as a
full range or a full bridge, is for ADD to say: code 11, with what is full and how many there are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnikit.effects import delegate, iptables
from cnikit.errors import CniError
from cnikit.ipam import host_local
from cnikit.plugins import portmap
from cnikit.plugins.bridge import PLUGIN
from cnikit.request import Request
from tests.conftest import Call, ip, sh
from tests.fake_kernel import MOST_PORTS


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have host-local run in this process, as the built executables do."""
    monkeypatch.setattr(delegate, "_own_plugin", lambda kind, _: host_local.PLUGIN if kind == "host-local" else None)


@pytest.fixture
def ask(host: str, container: str, networks: Path) -> Callable[..., Call]:
    assert host

    def ask(verb: str, *sets: Any, **keys: Any) -> Call:
        """Ask for a verb of a network with these range sets: subnets, or lists of ranges."""
        ranges = [[{"subnet": one}] if isinstance(one, str) else one for one in sets]
        ipam = {"type": "host-local", "dataDir": str(networks), "ranges": ranges}
        conf = {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "bridge",
            "bridge": "br0",
            "isGateway": True,
            "ipam": ipam,
        }
        return Call(PLUGIN, verb, {**conf, **keys}, CNI_NETNS=container)

    return ask


def test_a_full_range(ask: Callable[..., Call], new_container: Callable[[], str]) -> None:
    ask("ADD", "10.9.0.0/30").result()
    assert ask("STATUS", "10.9.0.0/30").succeeded()
    sh("ip link del br0")


ONE, OTHER = "10.9.0.0/24", "10.8.0.0/24"
V6, OTHER_V6 = "fd00:9::/64", "fd00:8::/64"


def make_bridge(*addresses: str) -> None:
    sh("ip link add br0 type bridge && ip link set br0 up")
    for address in addresses:
        sh(f"ip addr add {address} dev br0")


# The bridge's addresses, the range sets, and what keeps every ADD from succeeding.
GATEWAYS: dict[str, tuple[list[str], list[Any], str]] = {
    "none": ([], [ONE], ""),
    "its own": (["10.9.0.1/24"], [ONE], ""),
    "another's": (["10.8.0.1/24"], [ONE], "10.9.0.1/24: 10.8.0.1/24"),
    "another's length": (["10.9.0.1/16"], [ONE], "10.9.0.1/24: 10.9.0.1/16"),
    "of both families": (["10.9.0.1/24", "fd00:9::1/64"], [ONE, V6], ""),
    "another's of the second family": (["fd00:9::2/64"], [ONE, V6], "fd00:9::1/64: fd00:9::2/64"),
    "of IPv6, beside": (["fd00:8::1/64"], [V6], ""),
    "of two sets": (["10.9.0.1/24", "10.8.0.1/24"], [ONE, OTHER], ""),
    "one's of two sets": (["10.8.0.1/24"], [ONE, OTHER], ""),
    "one's of two in a set": (["10.8.0.1/24"], [[{"subnet": ONE}, {"subnet": OTHER}]], ""),
    "none's of two in a set": (["10.7.0.1/24"], [[{"subnet": ONE}, {"subnet": OTHER}]], "10.9.0.1/24: 10.7.0.1/24"),
    "a gateway that is configured": (["10.9.0.9/24"], [[{"subnet": ONE, "gateway": "10.9.0.9"}]], ""),
    "too many to look at": (["10.7.0.1/24"], [[{"subnet": f"10.{n}.{m}.0/24"} for m in range(9)] for n in (1, 2)], ""),
}


@pytest.mark.parametrize(("there", "sets", "fault"), GATEWAYS.values(), ids=GATEWAYS)
def test_a_bridge_that_has_a_gateways_address(
    ask: Callable[..., Call], there: list[str], sets: list[Any], fault: str
) -> None:
    make_bridge(*there)
    answer = ask("STATUS", *sets)
    if fault:
        assert answer.error() == (50, f"bridge br0 already has an IP address different from {fault}")
        assert "forceAddress" in answer.document["details"]
        assert ask("ADD", *sets).error()[1] == answer.document["msg"]
    else:
        assert answer.succeeded()
    assert ask("STATUS", *sets, forceAddress=True).succeeded()
    assert ask("STATUS", *sets, isGateway=False).succeeded()


def test_ranges_that_come_with_an_add_cannot_be_known(ask: Callable[..., Call]) -> None:
    make_bridge("10.8.0.1/24")
    assert ask("STATUS", ONE, capabilities={"ipRanges": True}).succeeded()
    assert ask("STATUS", ONE).error()[0] == 50


def test_an_mtu_that_fits_no_address(ask: Callable[..., Call]) -> None:
    assert ask("STATUS", ONE, mtu=1000).succeeded()
    assert ask("STATUS", ONE, V6, mtu=1000).error()[0] == 50


def test_a_full_bridge(ask: Callable[..., Call]) -> None:
    make_bridge("10.9.0.1/24")
    pairs = [(f"a{n}", f"b{n}") for n in range(MOST_PORTS // 2 + 1)]
    lines = [f"link add {one} master br0 type veth peer name {other}\n" for one, other in pairs]
    lines += [f"link set {other} master br0\n" for _, other in pairs[1:]]
    Path("/run/pairs").write_text("".join(lines))
    sh("ip -batch /run/pairs")
    before = {link["ifname"] for link in ip("link")}
    answer = ask("ADD", ONE)
    full = f"bridge br0 is full: it has {MOST_PORTS} ports, and the kernel has no more for a bridge"
    assert answer.error() == (11, full)
    assert {link["ifname"] for link in ip("link")} == before
    assert ask("STATUS", ONE).succeeded()
    sh("ip link del a0")
    assert ask("ADD", ONE).result()["ips"][0]["address"] == "10.9.0.3/24"


def test_what_passes_by_itself_is_no_status(ask: Callable[..., Call], monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_: Request) -> None:
        raise CniError(11, "the store is away")

    monkeypatch.setattr(delegate, "_own_plugin", lambda *_: host_local.PLUGIN.replace(status=busy))
    assert ask("STATUS", ONE).succeeded()


def test_without_iptables_where_it_is_named(ask: Callable[..., Call], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iptables, "_FOLDERS", ())
    monkeypatch.setattr(iptables, "_folders", list)
    code, msg = ask("STATUS", ONE, ipMasq=True, ipMasqBackend="iptables").error()
    assert (code, msg.partition(",")[0]) == (50, 'the backend "iptables" needs iptables-restore')
    assert ask("STATUS", ONE, ipMasq=True).succeeded()
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "portmap", "backend": "iptables"}
    assert Call(portmap.PLUGIN, "STATUS", conf).error() == (code, msg)


def test_a_table_in_whose_place_is_another_suites(ask: Callable[..., Call]) -> None:
    assert ask("STATUS", ONE, ipMasq=True).succeeded()
    other = "add chain inet cnikit_masquerade postrouting { type filter hook input priority 0; }"
    sh(f"nft 'add table inet cnikit_masquerade; {other}'")
    code, msg = ask("STATUS", ONE, ipMasq=True).error()
    assert (code, msg.rpartition(":")[0]) == (50, "nftables: table inet cnikit_masquerade cannot be made")
    assert json.loads(sh("nft -j list ruleset"))["nftables"][-1]["chain"]["hook"] == "input"
