"""macspoofchk on bridge: frames from other MAC addresses do not leave the container."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cnikit.plugins import bridge
from tests.conftest import Call, ip, sh
from tests.packets import UDP, arrived, send_frame, server

FORGED = "02:00:00:00:00:66"


def config(number: int = 2, **keys: Any) -> dict[str, Any]:
    ipam = {"type": "static", "addresses": [{"address": f"10.41.0.{number}/24"}]}
    conf = {"cniVersion": "1.1.0", "name": "net1", "type": "bridge", "bridge": "br1", "isGateway": True}
    return {**conf, "macspoofchk": True, "ipam": ipam, **keys}


def call(verb: str, conf: dict[str, Any], netns: str = "", container: str = "c1") -> Call:
    return Call(bridge.PLUGIN, verb, conf, CNI_NETNS=netns, CNI_CONTAINERID=container)


def sent(host: str, container: str, sender: str) -> bool:
    """Tell whether a frame with that sender reaches the host."""
    with server(host, "10.41.0.1", 7000, UDP) as here:
        send_frame(container, "eth0", ip("link show br1")[0]["address"], ("10.41.0.2", "10.41.0.1", 7000), sender)
        return arrived(here)


def test_only_the_containers_own_address_gets_out(host: str, container: str) -> None:
    own = call("ADD", config(), container).result()["interfaces"][2]["mac"]
    assert sent(host, container, own)
    assert not sent(host, container, FORGED)
    sh(f"nsenter --net={container} ip link set eth0 address {FORGED}")
    assert not sent(host, container, FORGED)
    sh("nft flush ruleset")
    assert sent(host, container, FORGED)


def test_others_are_not_held_to_it(host: str, new_container: Callable[[], str]) -> None:
    one, two = new_container(), new_container()
    call("ADD", config(), one).result()
    call("ADD", config(3, macspoofchk=False), two, "c2").result()
    assert sent(host, two, FORGED)


def test_a_mac_address_that_was_asked_for(host: str, container: str) -> None:
    conf = config(runtimeConfig={"mac": "02:00:00:00:00:77"})
    assert call("ADD", conf, container).result()["interfaces"][2]["mac"] == "02:00:00:00:00:77"
    assert sent(host, container, "02:00:00:00:00:77")
    assert not sent(host, container, FORGED)


def test_all_verbs(host: str, container: str) -> None:
    assert host
    conf = {**config(), "prevResult": call("ADD", config(), container).result()}
    assert call("STATUS", config()).succeeded()
    assert call("CHECK", conf, container).succeeded()
    sh("nft flush set bridge cnikit_macspoofchk guarded")
    assert call("CHECK", conf, container).error()[0] == 101
    call("DEL", conf, container).succeeded()
    assert "cni:" not in sh("nft list ruleset")
    call("ADD", config(), container).result()
    assert call("GC", {**config(), "cni.dev/valid-attachments": []}).succeeded()
    assert "cni:" not in sh("nft list ruleset")


@pytest.mark.parametrize("missing", ["netns", "link"])
def test_del_when_things_are_gone(host: str, container: str, missing: str) -> None:
    assert host
    result = call("ADD", config(), container).result()
    if missing == "link":
        sh(f"ip link del {result['interfaces'][1]['name']}")
    assert call("DEL", config(), container if missing == "link" else "").succeeded()
    assert "cni:" not in sh("nft list ruleset")


def test_a_mac_address_of_an_earlier_plugin_is_not_taken_over(host: str, container: str) -> None:
    assert host
    given = {"interfaces": [{"name": "eth0", "sandbox": "/run/netns/other", "mac": "02:00:00:00:00:77"}]}
    added = call("ADD", config(prevResult=given), container).result()
    assert added["interfaces"][2]["mac"].startswith("0a:58:")


def test_a_mac_address_before_that_is_none_is_refused(host: str, container: str) -> None:
    assert host
    given = {"interfaces": [{"name": "eth0", "sandbox": container, "mac": "02:00"}]}
    msg = "prevResult.interfaces: '02:00' is not a MAC address"
    assert call("CHECK", config(prevResult=given), container).error() == (7, msg)
    assert call("DEL", config(prevResult=given), container).succeeded()
