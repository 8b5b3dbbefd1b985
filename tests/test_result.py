"""Results: the shapes of all seven protocol versions, as literal documents."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnikit import jsontext, result, spec
from cnikit.address import format_ip
from cnikit.errors import CniError
from cnikit.fields import Fields
from cnikit.result import DNS, IP, Interface, Result, Route

# What the reference's bridge and host-local print (1.1.0), to the byte.
BRIDGE_1_1_0 = """{
    "cniVersion": "1.1.0",
    "interfaces": [
        {
            "mac": "66:a5:0b:7f:db:25",
            "name": "br0"
        },
        {
            "mac": "f2:e1:df:6b:34:57",
            "name": "vethb2185039"
        },
        {
            "mac": "b6:78:bf:50:8c:f9",
            "name": "eth0",
            "sandbox": "/run/netns/a"
        }
    ],
    "ips": [
        {
            "address": "10.9.0.2/24",
            "gateway": "10.9.0.1",
            "interface": 2
        }
    ],
    "routes": [
        {
            "dst": "0.0.0.0/0",
            "gw": "10.9.0.1"
        }
    ]
}"""
BRIDGE_0_4_0 = """{
    "cniVersion": "0.4.0",
    "interfaces": [
        {
            "name": "br0",
            "mac": "66:a5:0b:7f:db:25"
        },
        {
            "name": "vethb2185039",
            "mac": "f2:e1:df:6b:34:57"
        },
        {
            "name": "eth0",
            "mac": "b6:78:bf:50:8c:f9",
            "sandbox": "/run/netns/a"
        }
    ],
    "ips": [
        {
            "version": "4",
            "interface": 2,
            "address": "10.9.0.2/24",
            "gateway": "10.9.0.1"
        }
    ],
    "routes": [
        {
            "dst": "0.0.0.0/0",
            "gw": "10.9.0.1"
        }
    ],
    "dns": {}
}"""
BRIDGE_0_2_0 = """{
    "cniVersion": "0.2.0",
    "ip4": {
        "ip": "10.9.0.2/24",
        "gateway": "10.9.0.1",
        "routes": [
            {
                "dst": "0.0.0.0/0",
                "gw": "10.9.0.1"
            }
        ]
    },
    "dns": {}
}"""
BRIDGE = Result(
    (
        Interface("br0", "66:a5:0b:7f:db:25"),
        Interface("vethb2185039", "f2:e1:df:6b:34:57"),
        Interface("eth0", "b6:78:bf:50:8c:f9", sandbox="/run/netns/a"),
    ),
    (IP("10.9.0.2/24", "10.9.0.1", 2),),
    (Route("0.0.0.0/0", "10.9.0.1"),),
)

# Everything a result can hold. Explicit zeros of interface, table and scope differ from none.
FULL = Result(
    (
        Interface("vhost0", "02:00:00:00:00:01"),
        Interface("eth0", "02:00:00:00:00:02", 1400, "/run/netns/a", "/run/vhost.sock", "0000:00:1f.6"),
    ),
    (IP("fd00::2/64", "fd00::1", 1), IP("10.1.0.2/24", "10.1.0.1", 0), IP("10.2.0.2/24"), IP("fd01::2/64")),
    (
        Route("0.0.0.0/0", "10.1.0.1", 1400, 1360, 100, 0, 0),
        Route("::/0", "fd00::1"),
        Route("10.3.0.0/16", table=1000, scope=253),
        Route("fd03::/48"),
    ),
    DNS(("10.1.0.1", "fd00::1"), "example.net", ("example.net", "example.com"), ("ndots:5",)),
)
FULL_DNS = {
    "nameservers": ["10.1.0.1", "fd00::1"],
    "domain": "example.net",
    "search": ["example.net", "example.com"],
    "options": ["ndots:5"],
}
FULL_ROUTES = [
    {"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "advmss": 1360, "priority": 100, "table": 0, "scope": 0},
    {"dst": "::/0", "gw": "fd00::1"},
    {"dst": "10.3.0.0/16", "table": 1000, "scope": 253},
    {"dst": "fd03::/48"},
]
FULL_1: dict[str, Any] = {
    "interfaces": [
        {"name": "vhost0", "mac": "02:00:00:00:00:01"},
        {
            "name": "eth0",
            "mac": "02:00:00:00:00:02",
            "mtu": 1400,
            "sandbox": "/run/netns/a",
            "socketPath": "/run/vhost.sock",
            "pciID": "0000:00:1f.6",
        },
    ],
    "ips": [
        {"address": "fd00::2/64", "gateway": "fd00::1", "interface": 1},
        {"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 0},
        {"address": "10.2.0.2/24"},
        {"address": "fd01::2/64"},
    ],
    "routes": FULL_ROUTES,
    "dns": FULL_DNS,
}
FULL_0_3: dict[str, Any] = {
    "interfaces": [
        {"name": "vhost0", "mac": "02:00:00:00:00:01"},
        {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a"},
    ],
    "ips": [
        {"version": "6", "interface": 1, "address": "fd00::2/64", "gateway": "fd00::1"},
        {"version": "4", "interface": 0, "address": "10.1.0.2/24", "gateway": "10.1.0.1"},
        {"version": "4", "address": "10.2.0.2/24"},
        {"version": "6", "address": "fd01::2/64"},
    ],
    "routes": FULL_ROUTES,
    "dns": FULL_DNS,
}
FULL_0_1: dict[str, Any] = {
    "ip4": {
        "ip": "10.1.0.2/24",
        "gateway": "10.1.0.1",
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "10.3.0.0/16"}],
    },
    "ip6": {
        "ip": "fd00::2/64",
        "gateway": "fd00::1",
        "routes": [{"dst": "::/0", "gw": "fd00::1"}, {"dst": "fd03::/48"}],
    },
    "dns": FULL_DNS,
}
SHAPES = {
    "0.1.0": FULL_0_1,
    "0.2.0": FULL_0_1,
    "0.3.0": FULL_0_3,
    "0.3.1": FULL_0_3,
    "0.4.0": FULL_0_3,
    "1.0.0": FULL_1,
    "1.1.0": FULL_1,
}
# What is left of FULL after a version without interfaces or 1.1's fields has shown it.
FULL_AFTER_0_3 = FULL.replace(
    interfaces=(FULL.interfaces[0], FULL.interfaces[1].replace(mtu=0, socket_path="", pci_id=""))
)
FULL_AFTER_0_1 = Result(
    (),
    (IP("10.1.0.2/24", "10.1.0.1"), IP("fd00::2/64", "fd00::1")),
    (Route("0.0.0.0/0", "10.1.0.1"), Route("10.3.0.0/16"), Route("::/0", "fd00::1"), Route("fd03::/48")),
    FULL.dns,
)
LEFT = {"0.1.0": FULL_AFTER_0_1, "0.2.0": FULL_AFTER_0_1, "1.0.0": FULL, "1.1.0": FULL} | dict.fromkeys(
    ("0.3.0", "0.3.1", "0.4.0"), FULL_AFTER_0_3
)


def _parse(document: Any, default_version: str = "1.1.0", path: str = "") -> Result:
    """Parse what a JSON document of this content holds."""
    return result.parse(Fields(json.loads(json.dumps(document)), path), default_version)


def _keys_in_order(value: Any) -> list[list[str]]:
    if isinstance(value, dict):
        return [list(value), *(keys for item in value.values() for keys in _keys_in_order(item))]
    return [keys for item in value for keys in _keys_in_order(item)] if isinstance(value, list) else []


@pytest.mark.parametrize("text", [BRIDGE_1_1_0, BRIDGE_0_4_0, BRIDGE_0_2_0], ids=["1.1.0", "0.4.0", "0.2.0"])
def test_prints_what_the_reference_prints(text: str) -> None:
    version = json.loads(text)["cniVersion"]
    assert jsontext.encode(result.document(BRIDGE, version)) == text


@pytest.mark.parametrize("text", [BRIDGE_1_1_0, BRIDGE_0_4_0], ids=["1.1.0", "0.4.0"])
def test_reads_what_the_reference_prints(text: str) -> None:
    assert _parse(json.loads(text)) == BRIDGE


def test_reads_what_the_reference_prints_per_family() -> None:
    assert _parse(json.loads(BRIDGE_0_2_0)) == Result(
        ips=(IP("10.9.0.2/24", "10.9.0.1"),), routes=(Route("0.0.0.0/0", "10.9.0.1"),)
    )


@pytest.mark.parametrize("version", spec.VERSIONS)
def test_shows_one_result_in_the_shape_of_each_version(version: str) -> None:
    shown = json.loads(jsontext.encode(result.document(FULL, version)))
    assert shown == {"cniVersion": version, **SHAPES[version]}


@pytest.mark.parametrize("version", spec.VERSIONS)
def test_reads_the_shape_of_each_version(version: str) -> None:
    assert _parse({"cniVersion": version, **SHAPES[version]}) == LEFT[version]


@pytest.mark.parametrize("version", spec.VERSIONS)
def test_reads_a_result_without_version_in_the_shape_of_the_configuration(version: str) -> None:
    assert _parse(SHAPES[version], version) == LEFT[version]
    assert _parse({"cniVersion": "", **SHAPES[version]}, version) == LEFT[version]


@pytest.mark.parametrize("default", spec.VERSIONS)
def test_the_version_of_a_result_outdoes_that_of_the_configuration(default: str) -> None:
    assert _parse({"cniVersion": "0.2.0", **FULL_0_1}, default) == FULL_AFTER_0_1
    assert _parse({"cniVersion": "1.1.0", **FULL_1}, default) == FULL


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_keys_of_1_x_are_sorted_at_every_depth(version: str) -> None:
    orders = _keys_in_order(json.loads(jsontext.encode(result.document(FULL, version))))
    assert len(orders) == 1 + 2 + 4 + 4 + 1
    assert orders == [sorted(keys) for keys in orders]


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0"])
def test_keys_of_0_3_are_in_the_order_of_the_reference(version: str) -> None:
    shown = json.loads(jsontext.encode(result.document(FULL, version)))
    assert list(shown) == ["cniVersion", "interfaces", "ips", "routes", "dns"]
    assert list(shown["interfaces"][1]) == ["name", "mac", "sandbox"]
    assert list(shown["ips"][0]) == ["version", "interface", "address", "gateway"]
    assert list(shown["routes"][0]) == ["dst", "gw", "mtu", "advmss", "priority", "table", "scope"]
    assert list(shown["dns"]) == ["nameservers", "domain", "search", "options"]


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_ip4_comes_before_ip6_whatever_the_order_of_addresses(version: str) -> None:
    shown = json.loads(jsontext.encode(result.document(FULL, version)))
    assert list(shown) == ["cniVersion", "ip4", "ip6", "dns"]
    assert list(shown["ip4"]) == ["ip", "gateway", "routes"]


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_routes_of_a_family_without_address_are_dropped_in_0_2(version: str) -> None:
    only_v6 = Result(ips=(IP("fd00::2/64"),), routes=(Route("0.0.0.0/0"), Route("::/0")))
    assert result.document(only_v6, version) == {
        "cniVersion": version,
        "ip6": {"ip": "fd00::2/64", "routes": [{"dst": "::/0"}]},
        "dns": {},
    }


@pytest.mark.parametrize(
    ("version", "shown"),
    [("0.3.0", {"dns": {}}), ("0.3.1", {"dns": {}}), ("0.4.0", {"dns": {}}), ("1.0.0", {}), ("1.1.0", {})],
)
def test_shows_an_empty_result(version: str, shown: dict[str, Any]) -> None:
    assert result.document(Result(), version) == {"cniVersion": version, **shown}


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_refuses_to_show_a_result_without_addresses_in_0_2(version: str) -> None:
    with pytest.raises(CniError) as caught:
        result.document(Result((Interface("eth0"),), (), (Route("0.0.0.0/0"),)), version)
    assert (caught.value.code, caught.value.msg, caught.value.details) == (
        7,
        f"cniVersion: {version} has no way to show a result without addresses",
        "give the network an ipam plugin, or a cniVersion of 0.3.0 or newer",
    )


@pytest.mark.parametrize("key", ["interfaces", "ips", "routes", "dns"])
def test_null_and_empty_parts_are_as_good_as_absent(key: str) -> None:
    assert _parse({key: None}) == Result()
    assert _parse({key: {} if key == "dns" else []}) == Result()


def test_a_null_interface_index_is_none() -> None:
    assert _parse({"interfaces": [{"name": "x"}], "ips": [{"address": "10.1.0.2/24", "interface": None}]}).ips == (
        IP("10.1.0.2/24"),
    )


def test_unknown_keys_are_dropped() -> None:
    shown = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.2/24", "lease": 1}], "vendor": {"x": 1}}
    assert result.document(_parse(shown), "1.1.0") == {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.2/24"}]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"cniVersion": "2.0.0"}, "cniVersion: '2.0.0' is not one of 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        ({"cniVersion": 1}, "cniVersion: expected string, got integer"),
        ({"interfaces": {}}, "interfaces: expected list, got object"),
        ({"interfaces": [{"name": "a"}, "b"]}, "interfaces[1]: expected object, got string"),
        ({"interfaces": [{"name": 1}]}, "interfaces[0].name: expected string, got integer"),
        ({"interfaces": [{"mtu": 1.5}]}, "interfaces[0].mtu: expected integer, got number"),
        ({"ips": [{}]}, "ips[0].address: is missing"),
        ({"ips": [{"address": ""}]}, "ips[0].address: is missing"),
        (
            {"ips": [{"address": "10.1.0.2"}]},
            "ips[0].address: '10.1.0.2' has no prefix length of 0 to 32 behind a slash",
        ),
        ({"ips": [{"address": "x/24"}]}, "ips[0].address: 'x/24' is not an address with a prefix length (10.1.0.7/24)"),
        ({"ips": [{"address": "10.1.0.2/24", "gateway": "x"}]}, "ips[0].gateway: 'x' is not an IP address"),
        ({"ips": [{"address": "10.1.0.2/24", "interface": True}]}, "ips[0].interface: expected integer, got boolean"),
        ({"routes": [{"dst": "0.0.0.0/0"}, {"gw": "10.1.0.1"}]}, "routes[1].dst: is missing"),
        ({"routes": [{"dst": "::/0", "gw": "::/0"}]}, "routes[0].gw: '::/0' is not an IP address"),
        ({"routes": [{"dst": "::/0", "table": 2**32}]}, "routes[0].table: 4294967296 is not in 0..4294967295"),
        ({"dns": []}, "dns: expected object, got list"),
        ({"dns": {"nameservers": "10.1.0.1"}}, "dns.nameservers: expected list, got string"),
        ({"dns": {"search": ["a", 1]}}, "dns.search[1]: expected string, got integer"),
        ({"cniVersion": "0.2.0", "ip4": []}, "ip4: expected object, got list"),
        ({"cniVersion": "0.2.0", "ip4": {}}, "ip4.ip: is missing"),
        ({"cniVersion": "0.2.0", "ip6": {"ip": ""}}, "ip6.ip: is missing"),
        ({"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.2/24", "routes": [{}]}}, "ip4.routes[0].dst: is missing"),
    ],
)
def test_a_fault_is_named_by_its_path(document: dict[str, Any], message: str) -> None:
    for path, prefix in (("", ""), ("prevResult", "prevResult.")):
        with pytest.raises(CniError) as caught:
            _parse(document, path=path)
        assert (caught.value.code, caught.value.msg) == (7, prefix + message)


@pytest.mark.parametrize(
    ("read", "raw", "value"),
    [
        pytest.param(Route, {"DST": "10.0.0.0/8", "Gw": "10.0.0.1"}, Route("10.0.0.0/8", "10.0.0.1"), id="route"),
        pytest.param(DNS, {"nameServers": ["1.1.1.1"]}, DNS(("1.1.1.1",)), id="dns"),
    ],
)
def test_reads_the_parts_a_configuration_may_hold(read: type[Any], raw: dict[str, Any], value: object) -> None:
    assert result.read(read, Fields(raw)) == value


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4)
TEXTS = st.lists(TEXT, max_size=2).map(tuple)
NUMBERS = st.integers(0, 2**32 - 1)
SCOPES = st.none() | st.integers(0, 255)
V4 = st.binary(min_size=4, max_size=4).map(format_ip)
V6 = st.binary(min_size=16, max_size=16).map(format_ip)
MAYBE_IP = st.just("") | V4 | V6
CIDRS = st.builds("{}/{}".format, V4, st.integers(0, 32)) | st.builds("{}/{}".format, V6, st.integers(0, 128))
SUBNETS = CIDRS.map(lambda cidr: str(ipaddress.ip_interface(cidr).network))
INTERFACES = st.builds(Interface, TEXT, TEXT, NUMBERS, TEXT, TEXT, TEXT)
ROUTES = st.builds(Route, SUBNETS, MAYBE_IP, NUMBERS, NUMBERS, NUMBERS, st.none() | NUMBERS, SCOPES)


def _some(items: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, max_size=2).map(tuple)


def _results(interfaces: tuple[Interface, ...]) -> st.SearchStrategy[Result]:
    ips = st.builds(IP, CIDRS, MAYBE_IP, st.sampled_from([None, *range(len(interfaces))]))
    return st.builds(Result, st.just(interfaces), _some(ips), _some(ROUTES), st.builds(DNS, TEXTS, TEXT, TEXTS, TEXTS))


RESULTS = _some(INTERFACES).flatmap(_results)


@given(RESULTS, st.sampled_from(["1.0.0", "1.1.0"]))
def test_1_x_loses_nothing_on_the_way_out_and_back(held: Result, version: str) -> None:
    text = jsontext.encode(result.document(held, version))
    assert result.parse(Fields(jsontext.decode(text.encode())), "0.1.0") == held


@given(RESULTS, st.sampled_from(["0.3.0", "0.3.1", "0.4.0"]))
def test_0_3_loses_only_what_it_has_no_keys_for(held: Result, version: str) -> None:
    plain = held.replace(interfaces=tuple(i.replace(mtu=0, socket_path="", pci_id="") for i in held.interfaces))
    text = jsontext.encode(result.document(held, version))
    assert result.parse(Fields(jsontext.decode(text.encode())), "0.1.0") == plain


@given(RESULTS.filter(lambda held: held.ips), st.sampled_from(["0.1.0", "0.2.0"]))
def test_what_0_2_shows_stays_the_same_from_then_on(held: Result, version: str) -> None:
    once = jsontext.encode(result.document(held, version))
    assert jsontext.encode(result.document(_parse(json.loads(once)), version)) == once


@pytest.mark.parametrize(
    ("interfaces", "index"), [([], 0), ([{"name": "a"}], 1), ([{"name": "a"}], -1), ([], -(2**63)), ([], 2**63 - 1)]
)
def test_an_index_into_nothing_is_none(interfaces: list[dict[str, str]], index: int) -> None:
    raw = {"interfaces": interfaces, "ips": [{"address": "10.1.0.2/24", "interface": index}]}
    assert result.parse(Fields(raw), "1.1.0").ips == (IP("10.1.0.2/24"),)
