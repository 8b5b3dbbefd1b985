"""static through the protocol: where its addresses come from, and what each verb makes of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cnikit import spec
from cnikit.ipam import static
from tests.conftest import PROJECT, Call

V4 = {"address": "10.1.0.7/24", "gateway": "10.1.0.1"}
V6 = {"address": "2001:db8::7/64", "gateway": "2001:db8::1"}


def config(*addresses: dict[str, Any], version: str = "1.1.0", **ipam: Any) -> dict[str, Any]:
    given = {"addresses": list(addresses)} if addresses else {}
    return {"cniVersion": version, "name": "net", "type": "bridge", "ipam": {"type": "static", **given, **ipam}}


def call(verb: str, conf: dict[str, Any], **environ: str) -> Call:
    return Call(static.PLUGIN, verb, conf, **{"CNI_NETNS": "/run/netns/x", **environ})


def add(conf: dict[str, Any], **environ: str) -> list[dict[str, Any]]:
    ips: list[dict[str, Any]] = call("ADD", conf, **environ).result().get("ips", [])
    return ips


ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "2001:db8:9::/48", "gw": "2001:db8::9", "advmss": 1200, "scope": 0}]
DNS = {"nameservers": ["10.1.0.53"], "domain": "example.org", "search": ["example.org"], "options": ["ndots:2"]}
PER_FAMILY = {
    "ip4": {"ip": "10.1.0.7/24", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
    "ip6": {
        "ip": "2001:db8::7/64",
        "gateway": "2001:db8::1",
        "routes": [{"dst": "2001:db8:9::/48", "gw": "2001:db8::9"}],
    },
    "dns": DNS,
}
LISTS = {"ips": [V4, V6], "routes": ROUTES, "dns": DNS}
WITH_VERSION = {**LISTS, "ips": [{"version": "4", **V4}, {"version": "6", **V6}]}


@pytest.mark.parametrize(
    ("version", "document"),
    [
        ("0.1.0", PER_FAMILY),
        ("0.2.0", PER_FAMILY),
        ("0.3.0", WITH_VERSION),
        ("0.3.1", WITH_VERSION),
        ("0.4.0", WITH_VERSION),
        ("1.0.0", LISTS),
        ("1.1.0", LISTS),
    ],
)
def test_result_has_the_versions_shape(version: str, document: dict[str, Any]) -> None:
    given = call("ADD", config(V4, V6, version=version, routes=ROUTES, dns=DNS)).result()
    assert given == {"cniVersion": version, **document}


def test_routes_and_gateways_are_spelt_as_by_the_kernel() -> None:
    routes = [
        {"dst": "10.9.8.7/8", "gw": "::ffff:10.1.0.9", "table": 0},
        {"dst": "FD00:0::7/64", "gw": "FE80:0::1"},
    ]
    address = {"address": "2001:DB8:0::07/64", "gateway": "2001:DB8::0:1"}
    given = call("ADD", config(address, routes=routes)).result()
    assert given["ips"] == [{"address": "2001:db8::7/64", "gateway": "2001:db8::1"}]
    assert given["routes"] == [
        {"dst": "10.0.0.0/8", "gw": "10.1.0.9", "table": 0},
        {"dst": "fd00::/64", "gw": "fe80::1"},
    ]


@pytest.mark.parametrize("version", [version for version in spec.VERSIONS if spec.at_least(version, "0.3.0")])
def test_no_addresses_are_fine_since_0_3_0(version: str) -> None:
    given = call("ADD", config(version=version)).result()
    assert given == {"cniVersion": version, **({} if spec.at_least(version, "1.0.0") else {"dns": {}})}


def test_example_gives_its_addresses() -> None:
    network = json.loads((PROJECT / "conf-examples" / "static.conflist").read_text())
    conf = {"cniVersion": network["cniVersion"], "name": network["name"], **network["plugins"][0]}
    assert add(conf) == [
        {"address": "10.42.0.7/24", "gateway": "10.42.0.1"},
        {"address": "2001:db8:42::7/64", "gateway": "2001:db8:42::1"},
    ]


def test_configuration_in_the_manual_works() -> None:
    manual = static.__doc__ or ""
    conf = json.JSONDecoder().raw_decode(manual, manual.index("{"))[0]
    assert [ip["address"] for ip in add(conf)] == ["10.1.0.7/24", "2001:db8:1::7/64"]


def test_addresses_are_written_canonically() -> None:
    conf = config({"address": "2001:DB8:0::7/64", "gateway": "2001:DB8::0:1"}, {"address": "10.1.0.0/24"})
    assert add(conf) == [V6, {"address": "10.1.0.0/24"}]


# Where addresses come from


@pytest.mark.parametrize(
    ("args", "ips"),
    [
        ("IP=10.1.0.8/24", [V4, {"address": "10.1.0.8/24"}]),
        (
            "IP=10.2.0.8/24, 2001:db8:2::8/64",
            [V4, {"address": "10.2.0.8/24"}, {"address": "2001:db8:2::8/64"}],
        ),
        ("IP=10.2.0.8/24;GATEWAY=10.2.0.1", [V4, {"address": "10.2.0.8/24", "gateway": "10.2.0.1"}]),
        ("GATEWAY=10.1.0.9", [{**V4, "gateway": "10.1.0.9"}]),
        (
            "GATEWAY=10.1.0.9, 10.2.0.9;IP=10.2.0.8/24,10.3.0.8/24",
            [
                {**V4, "gateway": "10.1.0.9"},
                {"address": "10.2.0.8/24", "gateway": "10.2.0.9"},
                {"address": "10.3.0.8/24"},
            ],
        ),
        ("GATEWAY=10.9.0.1", [V4]),
        ("IP=10.1.0.7/24", [V4]),
        ("IgnoreUnknown=1;K8S_POD_NAME=x", [V4]),
    ],
    ids=["IP", "two", "IP and GATEWAY", "GATEWAY", "several", "GATEWAY elsewhere", "the same again", "Kubernetes"],
)
def test_cni_args_add_addresses_and_set_gateways(args: str, ips: list[dict[str, str]]) -> None:
    assert add(config(V4), CNI_ARGS=args) == ips


@pytest.mark.parametrize(
    "more",
    [
        {"args": {"cni": {"ips": ["10.1.0.8/24", "10.2.0.8/24"], "labels": []}}},
        {"runtimeConfig": {"ips": ["10.1.0.8/24", "10.2.0.8/24"]}},
        {
            "args": {"cni": {"ips": ["10.1.0.9/24"]}},
            "RuntimeConfig": {"IPs": ["10.1.0.8/24", "10.2.0.8/24"]},
        },
    ],
    ids=["args", "runtimeConfig", "runtimeConfig after args"],
)
def test_ips_take_the_place_of_all_and_keep_their_subnets_gateway(more: dict[str, Any]) -> None:
    expected = [{"address": "10.1.0.8/24", "gateway": "10.1.0.1"}, {"address": "10.2.0.8/24"}]
    assert add({**config(V6, V4), **more}) == expected


def test_ips_keep_the_gateway_of_the_very_subnet_only() -> None:
    conf = config(V4, {"address": "10.1.0.7/16", "gateway": "10.1.1.1"}, {"address": "10.3.0.7/24"})
    conf["runtimeConfig"] = {"ips": ["10.1.0.8/16", "10.1.0.8/25", "10.3.0.8/24"]}
    assert add(conf) == [
        {"address": "10.1.0.8/16", "gateway": "10.1.1.1"},
        {"address": "10.1.0.8/25"},
        {"address": "10.3.0.8/24"},
    ]


def test_ips_keep_the_gateway_of_cni_args() -> None:
    conf = {**config(V4), "runtimeConfig": {"ips": ["10.1.0.8/24"]}}
    assert add(conf, CNI_ARGS="GATEWAY=10.1.0.9") == [{"address": "10.1.0.8/24", "gateway": "10.1.0.9"}]


def test_empty_ips_take_no_place() -> None:
    assert add({**config(V4), "runtimeConfig": {"ips": []}, "args": {"cni": {}}}) == [V4]


# Faults

FAULTS: dict[str, tuple[dict[str, Any], str, int, str]] = {
    "addresses is no list": ({"addresses": {}}, "", 7, "ipam.addresses: expected list, got object"),
    "no address": ({"addresses": [V4, {"gateway": "10.1.0.1"}]}, "", 7, "ipam.addresses[1].address: is missing"),
    "no length": (
        {"addresses": [{"address": "10.1.0.7"}]},
        "",
        7,
        "ipam.addresses[0].address: '10.1.0.7' has no prefix length of 0 to 32 behind a slash",
    ),
    "gateway is none": (
        {"addresses": [{**V4, "gateway": "x"}]},
        "",
        7,
        "ipam.addresses[0].gateway: 'x' is not an IP address",
    ),
    "gateway of the other family": (
        {"addresses": [{**V4, "gateway": "fe80::1"}]},
        "",
        7,
        "ipam.addresses[0].gateway: fe80::1 is not of the family of 10.1.0.7/24",
    ),
    "route": ({"routes": [{"dst": "x"}]}, "", 7, "ipam.routes[0].dst: 'x' is not an address with a prefix length"),
    "dns": ({"dns": {"search": "x"}}, "", 7, "ipam.dns.search: expected list, got string"),
    "IP": ({}, "IP=10.1.0.7", 4, "CNI_ARGS: IP: '10.1.0.7' has no prefix length of 0 to 32 behind a slash"),
    "GATEWAY": ({}, "GATEWAY=10.1.0.1,x", 4, "CNI_ARGS: GATEWAY: 'x' is not an IP address"),
    "unknown argument": ({}, "FOO=1", 4, "CNI_ARGS: unknown args ['FOO']"),
}


@pytest.mark.parametrize("verb", ["ADD", "STATUS"])
@pytest.mark.parametrize(("ipam", "args", "code", "message"), FAULTS.values(), ids=FAULTS)
def test_fault_names_its_key(verb: str, ipam: dict[str, Any], args: str, code: int, message: str) -> None:
    found = call(verb, config(**ipam), CNI_ARGS=args).error()
    assert found[0] == code
    assert found[1].startswith(message)


@pytest.mark.parametrize("key", ["args.cni", "runtimeConfig"])
def test_fault_in_ips_names_its_key(key: str) -> None:
    holder: dict[str, Any] = {"ips": ["10.1.0.8/24", "10.1.0.9"]}
    for part in reversed(key.split(".")):
        holder = {part: holder}
    assert call("ADD", {**config(V4), **holder}).error() == (
        spec.INVALID_CONFIG,
        f"{key}.ips[1]: '10.1.0.9' has no prefix length of 0 to 32 behind a slash",
    )


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "STATUS"])
def test_missing_ipam_is_named(verb: str) -> None:
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "bridge"}
    assert call(verb, conf).error() == (spec.INVALID_CONFIG, "ipam: is missing")


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_old_versions_need_one_address_of_a_family(version: str) -> None:
    assert call("ADD", config(version=version)).error() == (
        spec.INVALID_CONFIG,
        f"ipam.addresses: is empty, and cniVersion {version} needs an address",
    )
    two = call("ADD", config(V4, V6, version=version), CNI_ARGS="IP=10.1.0.8/24")
    assert two.error() == (
        spec.INVALID_CONFIG,
        f"ipam.addresses: cniVersion {version} has no room for two addresses of a family",
    )


# The other verbs


@pytest.mark.parametrize("verb", ["DEL", "GC"])
@pytest.mark.parametrize("ipam", [{}, {"addresses": 7}, {"addresses": [{"address": "x"}]}], ids=["none", "7", "x"])
def test_del_and_gc_always_succeed(verb: str, ipam: dict[str, Any]) -> None:
    assert call(verb, config(**ipam), CNI_NETNS="", CNI_ARGS="nonsense").succeeded()


def test_status_succeeds_without_addresses() -> None:
    assert call("STATUS", config()).succeeded()


def _checked(*ips: dict[str, str], **more: Any) -> Call:
    prev = {"cniVersion": "1.1.0", "ips": list(ips)}
    return call("CHECK", {**config(V4, {"address": "2001:db8::7/64"}), "prevResult": prev, **more})


def test_check_finds_addresses_and_gateways_however_written() -> None:
    written = {"address": "2001:DB8::7/64", "gateway": "2001:db8::1"}
    assert _checked({"address": "192.0.2.1/24"}, written, V4).succeeded()


@pytest.mark.parametrize(
    ("ips", "message"),
    [
        ([V6], "10.1.0.7/24 is missing"),
        ([V6, {**V4, "address": "10.1.0.7/25"}], "10.1.0.7/24 is missing"),
        ([V4], "2001:db8::7/64 is missing"),
        ([V6, {**V4, "gateway": "10.1.0.9"}], "10.1.0.7/24 has gateway 10.1.0.9, not 10.1.0.1"),
        ([V6, {"address": "10.1.0.7/24"}], "10.1.0.7/24 has no gateway, not 10.1.0.1"),
    ],
    ids=["address", "length", "the second", "gateway", "no gateway"],
)
def test_check_fails_when_prev_result_lacks(ips: list[dict[str, str]], message: str) -> None:
    assert _checked(*ips).error() == (spec.CHECK_FAILED, f"prevResult.ips: {message}")


def test_check_looks_for_what_the_runtime_asked_for() -> None:
    assert _checked({**V4, "address": "10.1.0.8/24"}, runtimeConfig={"ips": ["10.1.0.8/24"]}).succeeded()


def test_check_needs_prev_result() -> None:
    assert call("CHECK", config(V4)).error() == (spec.INVALID_CONFIG, "prevResult: is missing")
