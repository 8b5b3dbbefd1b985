"""loopback: every verb on the kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cnikit.plugins import loopback
from cnikit.spec import VERSIONS
from tests.conftest import Call, ip, sh


def config(version: str = "1.1.0", **keys: Any) -> dict[str, Any]:
    return {"cniVersion": version, "name": "lo", "type": "loopback", **keys}


def call(verb: str, conf: dict[str, Any], netns: str = "") -> Call:
    return Call(loopback.PLUGIN, verb, conf, CNI_NETNS=netns)


@pytest.fixture
def down(container: str) -> str:
    """Give a container whose lo is down, as it is in a new namespace."""
    sh(f"ip -n {Path(container).name} link set lo down")
    return container


def is_up(container: str) -> bool:
    return "UP" in ip(f"-n {Path(container).name} link show lo")[0]["flags"]


@pytest.mark.parametrize("version", VERSIONS)
def test_add_in_every_version(down: str, version: str) -> None:
    given = call("ADD", config(version), down).result()
    assert is_up(down)
    if version < "0.3.0":
        assert given == {"cniVersion": version, "ip4": {"ip": "127.0.0.1/8"}, "ip6": {"ip": "::1/128"}, "dns": {}}
        return
    numbered = [{"version": "4"}, {"version": "6"}] if version < "1.0.0" else [{}, {}]
    assert given == {
        "cniVersion": version,
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": down}],
        "ips": [
            {**numbered[0], "interface": 0, "address": "127.0.0.1/8"},
            {**numbered[1], "interface": 0, "address": "::1/128"},
        ],
        **({"dns": {}} if version < "1.0.0" else {}),
    }


def test_prev_result_passes_through(down: str) -> None:
    previous = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mtu": 1400, "sandbox": down, "pciID": "0000:00:1f.6"}],
        "ips": [{"address": "10.0.0.2/24", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "scope": 0}],
    }
    assert call("ADD", config(prevResult=previous), down).result() == previous
    assert is_up(down)


def test_another_address_on_lo_is_refused(down: str) -> None:
    sh(f"ip -n {Path(down).name} addr add 10.1.2.3/32 dev lo")
    msg = "lo has the address 10.1.2.3/32, which is no loopback address"
    assert call("ADD", config(), down).error() == (8, msg)
    assert not is_up(down)


def test_check(down: str) -> None:
    assert call("CHECK", config(), down).error() == (101, "lo is down")
    call("ADD", config(), down).result()
    assert call("CHECK", config(), down).succeeded()


def test_del_can_be_repeated_and_needs_no_namespace(container: str) -> None:
    assert is_up(container)
    for _ in range(2):
        assert call("DEL", config(), container).succeeded()
        assert not is_up(container)
    sh(f"ip netns del {Path(container).name}")
    assert call("DEL", config(), container).succeeded()
    assert call("DEL", config(), "").succeeded()


def test_the_hosts_lo_is_never_touched(host: str) -> None:
    assert call("DEL", config(), host).error()[0] == 8
    assert "UP" in ip("link show lo")[0]["flags"]


def test_gc_and_status() -> None:
    assert call("GC", {**config(), "cni.dev/valid-attachments": []}).succeeded()
    assert call("STATUS", config()).succeeded()
