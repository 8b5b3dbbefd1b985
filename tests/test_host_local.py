"""host-local through the protocol: configuration, order of addresses, each verb, the reference on the same files."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cnikit import spec
from cnikit.effects import leases
from cnikit.ipam import host_local
from tests.conftest import PROJECT, Call, needs_reference
from tests.test_leases import Posix, lease_files, write_as_reference

SUBNET = {"subnet": "10.1.0.0/24"}
SMALL = {"subnet": "10.1.0.0/29"}  # .1 is the gateway; .2 to .6 are for giving
SMALL_V6 = {"subnet": "2001:db8::/125"}  # ::1 is the gateway; ::2 to ::7 are for giving


@pytest.fixture
def folder(networks: Path) -> Path:
    return networks / "net"


def config(networks: Path, *sets: Any, version: str = "1.1.0", **more: Any) -> dict[str, Any]:
    """Make a configuration of range sets, each one range or a list of them; more goes into ipam."""
    ranges = [one if isinstance(one, list) else [one] for one in sets]
    ipam = {"type": "host-local", "dataDir": str(networks), **({"ranges": ranges} if ranges else {}), **more}
    return {"cniVersion": version, "name": "net", "type": "bridge", "ipam": ipam}


def call(verb: str, conf: dict[str, Any], container: str = "c1", **environ: str) -> Call:
    return Call(host_local.PLUGIN, verb, conf, **{"CNI_CONTAINERID": container, "CNI_NETNS": "/run/netns/x", **environ})


def add(conf: dict[str, Any], container: str = "c1", **environ: str) -> list[str]:
    """Return the addresses an ADD gives, without their prefix lengths."""
    given = call("ADD", conf, container, **environ).result()
    return [ip["address"].partition("/")[0] for ip in given["ips"]]


def add_many(conf: dict[str, Any], count: int) -> list[str]:
    return [add(conf, f"c{i}")[0] for i in range(1, count + 1)]


# Results

IPAM = {
    "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "2001:db8::/64", "gateway": "fe80::1"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "10.1.0.9", "priority": 7, "table": 0, "mtu": 1400}],
}
V4 = {"address": "10.1.0.2/24", "gateway": "10.1.0.1"}
V6 = {"address": "2001:db8::1/64", "gateway": "fe80::1"}
IP4 = {
    "ip": "10.1.0.2/24",
    "gateway": "10.1.0.1",
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "10.1.0.9"}],
}
PER_FAMILY = {"ip4": IP4, "ip6": {"ip": "2001:db8::1/64", "gateway": "fe80::1"}, "dns": {}}
LISTS = {"ips": [V4, V6], "routes": IPAM["routes"]}
WITH_VERSION = {**LISTS, "ips": [{"version": "4", **V4}, {"version": "6", **V6}], "dns": {}}


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
def test_result_has_the_versions_shape(networks: Path, version: str, document: dict[str, Any]) -> None:
    given = call("ADD", config(networks, version=version, **IPAM)).result()
    assert given == {"cniVersion": version, **document}


def test_routes_and_gateways_are_spelt_as_by_the_kernel(networks: Path) -> None:
    routes = [{"dst": "10.9.8.7/8", "gw": "::ffff:10.1.0.9"}, {"dst": "FD00:0::7/64", "gw": "FE80:0::1"}]
    ranges = [[{"subnet": "2001:DB8:0::/64", "gateway": "FE80::0:1"}]]
    given = call("ADD", config(networks, ranges=ranges, routes=routes)).result()
    assert given["ips"] == [{"address": "2001:db8::1/64", "gateway": "fe80::1"}]
    assert given["routes"] == [{"dst": "10.0.0.0/8", "gw": "10.1.0.9"}, {"dst": "fd00::/64", "gw": "fe80::1"}]


@pytest.mark.parametrize("version", spec.VERSIONS)
def test_error_names_the_version(networks: Path, version: str) -> None:
    answer = call("ADD", config(networks, {"subnet": "10.1.0.0"}, version=version))
    assert answer.error()[0] == spec.INVALID_CONFIG
    assert answer.document["cniVersion"] == version


def test_example_gives_addresses_of_both_families(networks: Path) -> None:
    network = json.loads((PROJECT / "conf-examples" / "host-local.conflist").read_text())
    conf = {"cniVersion": network["cniVersion"], "name": network["name"], **network["plugins"][0]}
    conf["ipam"]["dataDir"] = str(networks)
    assert call("ADD", conf).result()["ips"] == [
        {"address": "10.41.0.10/24", "gateway": "10.41.0.1"},
        {"address": "2001:db8:41::2/64", "gateway": "2001:db8:41::1"},
    ]


def test_configuration_in_the_manual_works(networks: Path) -> None:
    manual = host_local.__doc__ or ""
    conf = json.JSONDecoder().raw_decode(manual, manual.index("{"))[0]
    conf["ipam"]["dataDir"] = str(networks)
    assert add(conf) == ["10.1.0.10", "2001:db8:1::2"]


RESOLV_CONF = """
# a comment
;nameserver 192.0.2.1
#nameserver 192.0.2.2
nameserver 10.1.0.53
nameserver\t2001:db8::53 ignored
nameserver
  domain first.example
domain example.org
search a.example b.example
search c.example
options ndots:2 edns0
sortlist 10.0.0.0
"""


def test_resolv_conf_becomes_dns(networks: Path, tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(RESOLV_CONF)
    assert call("ADD", config(networks, SUBNET, resolvConf=str(path))).result()["dns"] == {
        "nameservers": ["10.1.0.53", "2001:db8::53"],
        "domain": "example.org",
        "search": ["a.example", "b.example", "c.example"],
        "options": ["ndots:2", "edns0"],
    }


@pytest.mark.parametrize(("path", "why"), [("/nowhere/x", "No such file or directory"), ("/", "Is a directory")])
def test_unreadable_resolv_conf_is_named_and_nothing_is_leased(networks: Path, path: str, why: str) -> None:
    answer = call("ADD", config(networks, SUBNET, resolvConf=path))
    assert answer.error() == (spec.INVALID_CONFIG, f"ipam.resolvConf: {path}: {why}")
    assert not networks.exists()


# Configuration

SET_AND_RANGE = "ipam.ranges[0][0]"
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no ranges": ({}, "ipam.ranges: no IP ranges specified"),
    "ranges is no list": ({"ranges": {}}, "ipam.ranges: expected list, got object"),
    "a set is no list": ({"ranges": [SUBNET]}, "ipam.ranges[0]: expected list, got object"),
    "empty set": ({"ranges": [[SUBNET], []]}, "ipam.ranges[1]: empty range set"),
    "no subnet": ({"ranges": [[{"rangeStart": "10.1.0.2"}]]}, f"{SET_AND_RANGE}.subnet: is missing"),
    "subnet is a number": ({"subnet": 10}, "ipam.subnet: expected string, got integer"),
    "subnet without length": (
        {"ranges": [[SUBNET, {"subnet": "10.2.0.0"}]]},
        "ipam.ranges[0][1].subnet: '10.2.0.0' has no prefix length of 0 to 32 behind a slash",
    ),
    "host bits": (
        {"subnet": "10.1.2.3/24"},
        "ipam.subnet: 10.1.2.3/24 has host bits set, the network address is 10.1.2.0",
    ),
    "too small": (
        {"subnet": "10.1.2.0/31"},
        "ipam.subnet: 10.1.2.0/31 is too small to allocate from, /30 is the smallest",
    ),
    "too small, IPv6": (
        {"subnet": "2001:db8::/127"},
        "ipam.subnet: 2001:db8::/127 is too small to allocate from, /126 is the smallest",
    ),
    "start outside": (
        {"ranges": [[{**SUBNET, "rangeStart": "10.1.1.1"}]]},
        f"{SET_AND_RANGE}.rangeStart: 10.1.1.1 is not in 10.1.0.0/24",
    ),
    "start of the other family": (
        {"ranges": [[{**SUBNET, "rangeStart": "2001:db8::1"}]]},
        f"{SET_AND_RANGE}.rangeStart: 2001:db8::1 is not in 10.1.0.0/24",
    ),
    "end outside": ({**SUBNET, "rangeEnd": "10.0.255.255"}, "ipam.rangeEnd: 10.0.255.255 is not in 10.1.0.0/24"),
    "end is no address": ({**SUBNET, "rangeEnd": "x"}, "ipam.rangeEnd: 'x' is not an IP address"),
    "start behind end": (
        {**SUBNET, "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"},
        "ipam.rangeStart: 10.1.0.9 is behind the range's end 10.1.0.8",
    ),
    "gateway outside": ({**SUBNET, "gateway": "10.2.0.1"}, "ipam.gateway: 10.2.0.1 is not in 10.1.0.0/24"),
    "link-local gateway in IPv4": ({**SUBNET, "gateway": "fe80::1"}, "ipam.gateway: fe80::1 is not in 10.1.0.0/24"),
    "mixed families": (
        {"ranges": [[SUBNET, {"subnet": "2001:db8::/64"}]]},
        "ipam.ranges[0][1].subnet: mixed address families: 2001:db8::/64 is in a set with 10.1.0.0/24",
    ),
    "overlap in a set": (
        {"ranges": [[SUBNET, {**SUBNET, "rangeStart": "10.1.0.9"}]]},
        "ipam.ranges[0][1]: 10.1.0.9-10.1.0.254 overlaps with 10.1.0.0/24 of ipam.ranges[0][0]",
    ),
    "overlap at one address": (
        {"ranges": [[{**SUBNET, "rangeStart": "10.1.0.9"}, {**SUBNET, "rangeEnd": "10.1.0.9"}]]},
        "ipam.ranges[0][1]: 10.1.0.1-10.1.0.9 overlaps with 10.1.0.9-10.1.0.254 of ipam.ranges[0][0]",
    ),
    "overlap of sets": (
        {"ranges": [[{"subnet": "10.0.0.0/8"}], [{"subnet": "2001:db8::/64"}], [SUBNET]]},
        "ipam.ranges[2][0]: 10.1.0.0/24 overlaps with 10.0.0.0/8 of ipam.ranges[0][0]",
    ),
    "overlap of the old way with the new": (
        {**SUBNET, "ranges": [[SUBNET]]},
        "ipam.ranges[0][0]: 10.1.0.0/24 overlaps with 10.1.0.0/24 of ipam",
    ),
    "dataDir is not absolute": ({**SUBNET, "dataDir": "networks"}, "ipam.dataDir: 'networks' is not absolute"),
    "route without destination": ({**SUBNET, "routes": [{"gw": "10.1.0.1"}]}, "ipam.routes[0].dst: is missing"),
}


@pytest.mark.parametrize(("ipam", "message"), FAULTS.values(), ids=FAULTS)
def test_fault_in_the_configuration_names_its_key(networks: Path, ipam: dict[str, Any], message: str) -> None:
    assert call("ADD", config(networks, **ipam)).error() == (spec.INVALID_CONFIG, message)
    assert not networks.exists()


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "STATUS"])
def test_missing_ipam_is_named(verb: str) -> None:
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "bridge"}
    assert call(verb, conf).error() == (spec.INVALID_CONFIG, "ipam: is missing")


@pytest.mark.parametrize("verb", ["CHECK", "STATUS"])
def test_other_verbs_find_the_same_faults(networks: Path, verb: str) -> None:
    assert call(verb, config(networks)).error() == (spec.INVALID_CONFIG, "ipam.ranges: no IP ranges specified")


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_old_versions_have_room_for_one_set_of_a_family(networks: Path, version: str) -> None:
    assert add(config(networks, SUBNET, SMALL_V6, version=version) | {"cniVersion": "0.3.0"}, "other")
    conf = config(networks, SUBNET, SMALL_V6, {"subnet": "10.2.0.0/24"}, version=version)
    assert call("ADD", conf).error() == (
        spec.INVALID_CONFIG,
        f"ipam.ranges[2]: cniVersion {version} has no room for a second address of a family",
    )


def test_sets_come_in_the_order_runtime_old_way_new_way(networks: Path, folder: Path) -> None:
    conf = config(networks, {"subnet": "10.3.0.0/24"}, **SUBNET)
    conf["runtimeConfig"] = {"ipRanges": [[{"subnet": "10.4.0.0/24"}], [{"subnet": "10.5.0.0/24"}]]}
    assert add(conf) == ["10.4.0.2", "10.5.0.2", "10.1.0.2", "10.3.0.2"]
    assert (folder / "last_reserved_ip.0").read_text() == "10.4.0.2"
    assert (folder / "last_reserved_ip.3").read_text() == "10.3.0.2"
    conf["runtimeConfig"] = {"ipRanges": [[{"subnet": "10.4.0.1/24"}]]}
    assert call("ADD", conf).error()[1].startswith("runtimeConfig.ipRanges[0][0].subnet: ")


def test_old_way_is_nothing_without_subnet(networks: Path) -> None:
    assert add(config(networks, SUBNET, gateway="10.9.0.1", rangeStart="x")) == ["10.1.0.2"]


def test_keys_match_in_any_case(networks: Path) -> None:
    conf = config(networks, RANGES=[[{"SubNet": "10.1.0.0/24", "RangeStart": "10.1.0.7"}]])
    assert add(conf) == ["10.1.0.7"]


def test_v4_written_as_v6_is_v4(networks: Path, folder: Path) -> None:
    conf = config(networks, {**SUBNET, "rangeStart": "::ffff:10.1.0.7", "gateway": "::ffff:10.1.0.9"})
    conf["runtimeConfig"] = {"ips": ["::ffff:10.1.0.8"]}
    assert call("ADD", conf).result()["ips"] == [{"address": "10.1.0.8/24", "gateway": "10.1.0.9"}]
    assert (folder / "10.1.0.8").read_bytes() == b"c1\r\neth0"


def test_default_data_dir_is_the_references() -> None:
    assert host_local.DATA_DIR == "/var/lib/cni/networks"


# The order of addresses


def test_addresses_come_in_turn_and_a_freed_one_last(networks: Path) -> None:
    conf = config(networks, SMALL)
    assert add_many(conf, 3) == ["10.1.0.2", "10.1.0.3", "10.1.0.4"]
    assert call("DEL", conf, "c2").succeeded()
    assert [add(conf, f"d{i}")[0] for i in range(3)] == ["10.1.0.5", "10.1.0.6", "10.1.0.3"]


def test_ipv6_gives_its_last_address_too(networks: Path) -> None:
    assert add_many(config(networks, SMALL_V6), 6) == [f"2001:db8::{i}" for i in range(2, 8)]


def test_ranges_of_a_set_follow_each_other_and_no_gateway_is_given(networks: Path) -> None:
    conf = config(
        networks,
        [
            {**SUBNET, "rangeStart": "10.1.0.8", "rangeEnd": "10.1.0.10", "gateway": "10.1.0.9"},
            {"subnet": "10.2.0.0/30"},
            {**SUBNET, "rangeStart": "10.1.0.1", "rangeEnd": "10.1.0.2", "gateway": "10.1.0.7"},
        ],
    )
    expected = ["10.1.0.8", "10.1.0.10", "10.2.0.2", "10.1.0.1", "10.1.0.2"]
    assert add_many(conf, 5) == expected
    for i in range(1, 6):
        assert call("DEL", conf, f"c{i}").succeeded()
    (networks / "net" / "last_reserved_ip.0").write_text("10.2.0.2")
    assert add_many(conf, 5) == [*expected[3:], *expected[:3]]


def test_each_address_has_its_own_ranges_length_and_gateway(networks: Path) -> None:
    conf = config(networks, [{"subnet": "10.1.0.0/30"}, {"subnet": "10.2.0.0/16", "gateway": "10.2.9.9"}])
    add(conf)
    assert call("ADD", conf, "c2").result()["ips"] == [{"address": "10.2.0.1/16", "gateway": "10.2.9.9"}]


@pytest.mark.parametrize(
    ("pointer", "next_one"),
    [
        ("10.1.0.4", "10.1.0.5"),
        ("10.1.0.6", "10.1.0.2"),
        ("10.1.0.1", "10.1.0.2"),
        ("10.9.0.4", "10.1.0.2"),
        ("2001:db8::4", "10.1.0.2"),
        ("nonsense", "10.1.0.2"),
        ("", "10.1.0.2"),
    ],
)
def test_order_goes_on_behind_the_references_pointer(networks: Path, folder: Path, pointer: str, next_one: str) -> None:
    write_as_reference(folder, "last_reserved_ip.0", pointer.encode())
    assert add(config(networks, SMALL)) == [next_one]


def test_addresses_far_behind_the_pointer_are_found(networks: Path, folder: Path) -> None:
    for i in range(2, 202):
        write_as_reference(folder, f"10.1.0.{i}", b"c9\r\neth0")
    (folder / "10.1.0.100").write_bytes(b"")
    (folder / "10.1.0.150").unlink()
    # The pointer is at the end of the range, so the first 148 candidates are taken or, if empty, cleared away.
    write_as_reference(folder, "last_reserved_ip.0", b"10.1.0.254")
    assert add(config(networks, SUBNET)) == ["10.1.0.100"]
    assert add(config(networks, SUBNET), "c2") == ["10.1.0.150"]


def test_empty_file_far_behind_the_pointer_is_found_when_the_index_is_in_order(networks: Path, folder: Path) -> None:
    conf = config(networks, {**SUBNET, "rangeEnd": "10.1.0.120"})
    add_many(conf, 119)
    os.truncate(folder / "10.1.0.90", 0)
    assert add(conf, "late") == ["10.1.0.90"]
    assert (folder / "10.1.0.90").read_bytes() == b"late\r\neth0"


def test_what_is_no_lease_is_given_last(networks: Path, folder: Path) -> None:
    write_as_reference(folder, "10.1.0.2", b"# the printer")
    conf = config(networks, SMALL)
    assert add_many(conf, 5) == ["10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6", "10.1.0.2"]
    assert call("ADD", conf, "late").error()[0] == spec.TRY_AGAIN


def test_huge_ranges_are_no_slower(networks: Path) -> None:
    assert add_many(config(networks, {"subnet": "fd00::/8"}), 2) == ["fd00::2", "fd00::3"]


def _range_sets() -> st.SearchStrategy[list[dict[str, str]]]:
    """Make sets of ranges that do not overlap: each in a /27 of its own, or two parts of one."""

    def one(number: int, length: int, offsets: list[int], gateway: int) -> list[dict[str, str]]:
        net = ipaddress.ip_network(f"10.1.{number}.0/{length}")
        size = net.num_addresses
        a, b, c, d = sorted(offset % size for offset in offsets)
        spans = [(a, b), (c, d)] if b < c else [(a, d)]
        return [
            {
                "subnet": str(net),
                "rangeStart": str(net[start]),
                "rangeEnd": str(net[end]),
                "gateway": str(net[gateway % size]),
            }
            for start, end in spans
        ]

    offsets = st.lists(st.integers(0, 31), min_size=4, max_size=4)
    numbers = st.lists(st.integers(0, 200), min_size=1, max_size=3, unique=True)
    return numbers.flatmap(
        lambda chosen: st.tuples(
            *(st.builds(one, st.just(n), st.integers(27, 30), offsets, st.integers(0, 31)) for n in chosen)
        )
    ).map(lambda parts: [range_ for part in parts for range_ in part])


def _expected(ranges: list[dict[str, str]]) -> list[str]:
    gateways = {one["gateway"] for one in ranges}
    in_order = []
    for one in ranges:
        start, end = (int(ipaddress.ip_address(one[key])) for key in ("rangeStart", "rangeEnd"))
        in_order += [str(ipaddress.ip_address(number)) for number in range(start, end + 1)]
    return [address for address in in_order if address not in gateways]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(_range_sets())
def test_each_address_is_given_once_in_order_until_none_is_left(ranges: list[dict[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as networks:
        conf = config(Path(networks), ranges)
        expected = _expected(ranges)
        assert add_many(conf, len(expected)) == expected
        code, message = call("ADD", conf, "late").error()
        assert code == spec.TRY_AGAIN
        assert message.endswith(f": all {len(expected)} addresses are in use")


class RoundRobin(RuleBasedStateMachine):
    """ADDs and DELs in any order, against a list and a position in it."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._held: dict[str, str] = {}
        self._next = 0

    @initialize(ranges=_range_sets())
    def choose(self, ranges: list[dict[str, str]]) -> None:
        self._conf = config(Path(self._folder.name), ranges)
        self._order = _expected(ranges)

    @rule(number=st.integers(0, 20))
    def add(self, number: int) -> None:
        container = f"c{number}"
        turn = self._order[self._next :] + self._order[: self._next]
        free = [address for address in turn if address not in self._held.values()]
        if container in self._held:
            assert add(self._conf, container) == [self._held[container]]
        elif free:
            assert add(self._conf, container) == free[:1]
            self._held[container] = free[0]
            self._next = self._order.index(free[0]) + 1
        else:
            assert call("ADD", self._conf, container).error()[0] == spec.TRY_AGAIN

    @rule(number=st.integers(0, 20))
    def delete(self, number: int) -> None:
        assert call("DEL", self._conf, f"c{number}").succeeded()
        self._held.pop(f"c{number}", None)

    @invariant()
    def files_are_the_leases(self) -> None:
        folder = Path(self._folder.name) / "net"
        there = lease_files(folder) if folder.exists() else {}
        assert there == {address: f"{c}\r\neth0".encode() for c, address in self._held.items()}

    def teardown(self) -> None:
        self._folder.cleanup()


TestRoundRobin = RoundRobin.TestCase
TestRoundRobin.settings = settings(deadline=None, max_examples=30, stateful_step_count=40, derandomize=True)


# Addresses asked for


@pytest.mark.parametrize(
    ("more", "environ"),
    [
        ({"runtimeConfig": {"ips": ["10.1.0.77"]}}, {}),
        ({"RuntimeConfig": {"IPs": ["10.1.0.77/24"]}}, {}),
        ({"args": {"cni": {"ips": ["10.1.0.77/16"], "labels": []}}}, {}),
        ({}, {"CNI_ARGS": "IP=10.1.0.77"}),
        ({}, {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.1.0.77/24"}),
        (
            {"runtimeConfig": {"ips": ["10.1.0.77"]}, "args": {"cni": {"ips": ["10.1.0.77"]}}},
            {"CNI_ARGS": "IP=10.1.0.77"},
        ),
    ],
    ids=["runtimeConfig", "odd case", "args", "CNI_ARGS", "Kubernetes", "all three say the same"],
)
def test_address_asked_for_is_given(
    networks: Path, folder: Path, more: dict[str, Any], environ: dict[str, str]
) -> None:
    assert call("ADD", {**config(networks, SUBNET), **more}, **environ).result()["ips"] == [
        {"address": "10.1.0.77/24", "gateway": "10.1.0.1"}
    ]
    assert (folder / "last_reserved_ip.0").read_text() == "10.1.0.77"


def test_addresses_asked_for_come_from_their_sets_and_the_rest_in_turn(networks: Path) -> None:
    conf = config(networks, SUBNET, SMALL_V6, {"subnet": "10.2.0.0/24"})
    conf["runtimeConfig"] = {"ips": ["10.2.0.9"]}
    assert add(conf, CNI_ARGS="IP=10.1.0.8") == ["10.1.0.8", "2001:db8::2", "10.2.0.9"]


REFUSED: dict[str, tuple[dict[str, Any], str, int, str]] = {
    "gateway": (
        {"runtimeConfig": {"ips": ["10.1.0.1"]}},
        "",
        spec.INVALID_CONFIG,
        "runtimeConfig.ips[0]: 10.1.0.1 is the gateway of range set 0 (10.1.0.0/24)",
    ),
    "outside": (
        {"args": {"cni": {"ips": ["10.1.0.5", "10.3.0.1"]}}},
        "",
        spec.INVALID_CONFIG,
        "args.cni.ips[1]: 10.3.0.1 is in none of the ranges 10.1.0.0/24, 10.2.0.5-10.2.0.9",
    ),
    "in the subnet but not in the range": (
        {},
        "IP=10.2.0.4",
        spec.INVALID_ENVIRONMENT,
        "CNI_ARGS: IP: 10.2.0.4 is in none of the ranges 10.1.0.0/24, 10.2.0.5-10.2.0.9",
    ),
    "two of one set": (
        {"runtimeConfig": {"ips": ["10.1.0.6"]}},
        "IP=10.1.0.5",
        spec.INVALID_CONFIG,
        (
            "runtimeConfig.ips[0]: 10.1.0.6 and 10.1.0.5 (CNI_ARGS: IP) are both of range set 0 (10.1.0.0/24), "
            "which gives one address"
        ),
    ),
    "no address": (
        {"runtimeConfig": {"ips": ["x"]}},
        "",
        spec.INVALID_CONFIG,
        "runtimeConfig.ips[0]: 'x' is not an IP address",
    ),
    "no string": (
        {"runtimeConfig": {"ips": [7]}},
        "",
        spec.INVALID_CONFIG,
        "runtimeConfig.ips[0]: expected string, got integer",
    ),
    "no address in CNI_ARGS": ({}, "IP=foo", spec.INVALID_ENVIRONMENT, "CNI_ARGS: IP: 'foo' is not an IP address"),
    "unknown in CNI_ARGS": ({}, "FOO=1", spec.INVALID_ENVIRONMENT, "CNI_ARGS: unknown args ['FOO']"),
}


@pytest.mark.parametrize(("more", "args", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_address_that_cannot_be_had_names_where_it_was_asked_for(
    networks: Path, more: dict[str, Any], args: str, code: int, message: str
) -> None:
    sets = (SUBNET, {"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.5", "rangeEnd": "10.2.0.9"})
    assert call("ADD", {**config(networks, *sets), **more}, CNI_ARGS=args).error() == (code, message)
    assert not networks.exists()


@pytest.mark.parametrize(
    ("content", "holder"),
    [
        (b"c2\r\nnet1", "container c2 net1"),
        (b"c2", "container c2"),
    ],
)
def test_taken_address_names_its_holder(networks: Path, folder: Path, content: bytes, holder: str) -> None:
    write_as_reference(folder, "10.1.0.7", content)
    answer = call("ADD", {**config(networks, SUBNET), "runtimeConfig": {"ips": ["10.1.0.7"]}})
    assert answer.error() == (spec.TRY_AGAIN, f"runtimeConfig.ips[0]: 10.1.0.7 is leased to {holder}")
    assert "cnitool gc net" in answer.document["details"]
    assert (folder / "10.1.0.7").read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"# the printer"], ids=["empty", "foreign"])
def test_what_is_no_lease_does_not_block_an_address_asked_for(networks: Path, folder: Path, content: bytes) -> None:
    write_as_reference(folder, "10.1.0.7", content)
    assert add(config(networks, SUBNET), CNI_ARGS="IP=10.1.0.7") == ["10.1.0.7"]
    assert (folder / "10.1.0.7").read_bytes() == b"c1\r\neth0"


# A repeated ADD


def test_repeated_add_gives_the_same_addresses(networks: Path, folder: Path) -> None:
    conf = config(networks, SUBNET, SMALL_V6)
    first = call("ADD", conf).result()
    add(conf, "c2")
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder) if name != ".owners"}
    assert call("ADD", conf).result() == first
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder) if name != ".owners"} == before


def test_another_interface_of_the_container_gets_its_own_address(networks: Path) -> None:
    conf = config(networks, SUBNET)
    assert add(conf) == ["10.1.0.2"]
    assert add(conf, CNI_IFNAME="net1") == ["10.1.0.3"]


def test_repeated_add_takes_from_a_set_that_is_new(networks: Path) -> None:
    add(config(networks, SUBNET))
    assert add(config(networks, SUBNET, SMALL_V6)) == ["10.1.0.2", "2001:db8::2"]


def test_held_address_that_is_now_the_gateway_is_not_given(networks: Path) -> None:
    add(config(networks, SUBNET))
    assert add(config(networks, {**SUBNET, "gateway": "10.1.0.2"})) == ["10.1.0.3"]


def test_repeated_add_that_asks_for_the_address_it_holds_gets_it(networks: Path, folder: Path) -> None:
    # Two addresses of one set can come from the reference, which does not look at what is held here.
    for address in ("10.1.0.7", "10.1.0.8"):
        write_as_reference(folder, address, b"c1\r\neth0")
    assert add(config(networks, SUBNET), CNI_ARGS="IP=10.1.0.8") == ["10.1.0.8"]
    assert add(config(networks, SUBNET), CNI_ARGS="IP=10.1.0.7") == ["10.1.0.7"]


def test_repeated_add_that_asks_for_another_address_is_refused(networks: Path, folder: Path) -> None:
    conf = config(networks, SMALL_V6, SUBNET)
    add(config(networks, SUBNET))
    assert call("ADD", {**conf, "runtimeConfig": {"ips": ["10.1.0.9"]}}).error() == (
        spec.INVALID_CONFIG,
        "runtimeConfig.ips[0]: 10.1.0.9 cannot be added, this interface holds 10.1.0.2 since an earlier ADD; DEL it",
    )
    assert lease_files(folder) == {"10.1.0.2": b"c1\r\neth0"}


# No address left


def test_exhaustion_says_which_set_and_what_helps(networks: Path) -> None:
    conf = config(networks, SMALL)
    add_many(conf, 5)
    answer = call("ADD", conf, "late")
    assert answer.document == {
        "cniVersion": "1.1.0",
        "code": spec.TRY_AGAIN,
        "msg": "range set 0 (10.1.0.0/29): all 5 addresses are in use",
        "details": "`cnitool gc net` frees those of containers that are gone",
    }


def test_exhausted_set_releases_what_this_call_took_and_no_more(networks: Path, folder: Path) -> None:
    sets = (SUBNET, SMALL_V6, {"subnet": "10.2.0.0/30"})
    add(config(networks, SUBNET))
    add(config(networks, {"subnet": "10.2.0.0/30"}), "c2")
    before = lease_files(folder)
    assert call("ADD", config(networks, *sets)).error() == (
        spec.TRY_AGAIN,
        "range set 2 (10.2.0.0/30): all 1 addresses are in use",
    )
    assert lease_files(folder) == before == {"10.1.0.2": b"c1\r\neth0", "10.2.0.2": b"c2\r\neth0"}


def test_what_cannot_be_taken_back_does_not_hide_why(networks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(config(networks, {"subnet": "10.2.0.0/30"}), "c2")

    def before(name: str) -> None:
        if name == "unlink":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(leases, "posix", Posix(before))
    answer = call("ADD", config(networks, SUBNET, {"subnet": "10.2.0.0/30"}))
    assert answer.error() == (spec.TRY_AGAIN, "range set 1 (10.2.0.0/30): all 1 addresses are in use")
    assert "; not undone: " in answer.document["details"]
    assert answer.document["details"].endswith("/net: Input/output error (ipam.dataDir says where leases are)")


def test_taken_address_of_a_later_set_releases_what_this_call_took(networks: Path, folder: Path) -> None:
    write_as_reference(folder, "2001:db8::5", b"c2\r\neth0")
    answer = call("ADD", {**config(networks, SUBNET, SMALL_V6), "runtimeConfig": {"ips": ["2001:db8::5"]}})
    assert answer.error()[0] == spec.TRY_AGAIN
    assert lease_files(folder) == {"2001:db8::5": b"c2\r\neth0"}


def test_fault_of_the_disk_is_reported_by_its_path(networks: Path) -> None:
    networks.write_text("")
    answer = call("ADD", config(networks, SUBNET))
    assert answer.error() == (spec.IO_FAILURE, f"{networks}/net: Not a directory")
    assert answer.document["details"] == "ipam.dataDir says where leases are"


# DEL


def test_del_releases_all_of_the_interface_and_nothing_else(networks: Path, folder: Path) -> None:
    conf = config(networks, SUBNET, SMALL_V6)
    add(conf)
    add(conf, CNI_IFNAME="net1")
    add(conf, "c2")
    assert call("DEL", conf).succeeded()
    assert call("DEL", conf).succeeded()
    assert sorted(lease_files(folder).values()) == [b"c1\r\nnet1"] * 2 + [b"c2\r\neth0"] * 2
    assert (folder / "last_reserved_ip.0").read_text() == "10.1.0.4"


@pytest.mark.parametrize(
    "ipam",
    [{}, {"ranges": [[{"subnet": "nonsense"}]]}, {"ranges": 7}, {"subnet": "10.1.0.1/24"}, {"resolvConf": "/nowhere"}],
    ids=lambda ipam: next(iter(ipam), "none"),
)
def test_del_needs_no_ranges(networks: Path, folder: Path, ipam: dict[str, Any]) -> None:
    add(config(networks, SUBNET))
    assert call("DEL", config(networks, **ipam), CNI_NETNS="", CNI_ARGS="nonsense").succeeded()
    assert lease_files(folder) == {}


@pytest.mark.parametrize("verb", ["DEL", "GC", "STATUS"])
def test_unknown_network_is_success_and_makes_no_folder(networks: Path, verb: str) -> None:
    conf = {**config(networks, SUBNET), "cni.dev/valid-attachments": []}
    assert call(verb, conf).succeeded()
    assert not networks.exists()


def test_del_without_ipam_is_success_in_the_default_folder(monkeypatch: pytest.MonkeyPatch, networks: Path) -> None:
    monkeypatch.setattr(host_local, "DATA_DIR", str(networks))
    add(config(networks, SUBNET))
    assert call("DEL", {"cniVersion": "1.1.0", "name": "net"}).succeeded()
    assert lease_files(networks / "net") == {}


# CHECK


def _checked(networks: Path, *addresses: str, **more: Any) -> Call:
    prev = {"cniVersion": "1.1.0", "ips": [{"address": address} for address in addresses]}
    return call("CHECK", {**config(networks, SUBNET, SMALL_V6), "prevResult": prev, **more})


def test_check_finds_the_leases(networks: Path) -> None:
    add(config(networks, SUBNET, SMALL_V6))
    assert _checked(networks, "192.0.2.1/24", "10.1.0.2/24", "2001:db8::2/125").succeeded()


@pytest.mark.parametrize(
    ("content", "holder"),
    [
        (None, "nobody"),
        (b"", "nobody"),
        (b"c2\r\neth0", "container c2 eth0"),
        (b"c1\r\nnet1", "container c1 net1"),
        (b"# the printer", "no container: b'# the printer'"),
    ],
    ids=["missing", "empty", "another container", "another interface", "no lease"],
)
def test_check_fails_when_the_lease_is_not_the_containers(
    networks: Path, folder: Path, content: bytes | None, holder: str
) -> None:
    add(config(networks, SUBNET, SMALL_V6))
    (folder / "2001:db8::2").unlink()
    if content is not None:
        write_as_reference(folder, "2001:db8::2", content)
    assert _checked(networks, "10.1.0.2/24", "2001:db8::2/125").error() == (
        spec.CHECK_FAILED,
        f"2001:db8::2 is leased to {holder}, not to container c1 eth0",
    )


def test_check_fails_when_the_folder_is_gone(networks: Path) -> None:
    assert _checked(networks, "10.1.0.2/24", "2001:db8::2/125").error()[0] == spec.CHECK_FAILED
    assert not networks.exists()


def test_check_accepts_the_older_form(networks: Path, folder: Path) -> None:
    write_as_reference(folder, "10.1.0.2", b"c1")
    write_as_reference(folder, "2001:db8::2", b"c1\n")
    assert _checked(networks, "10.1.0.2/24", "2001:db8::2/125").succeeded()


def test_check_fails_when_a_set_has_no_address_in_prev_result(networks: Path) -> None:
    add(config(networks, SUBNET, SMALL_V6))
    assert _checked(networks, "10.1.0.2/24").error() == (
        spec.CHECK_FAILED,
        "prevResult.ips: there is no address of range set 1 (2001:db8::/125)",
    )


def test_check_needs_prev_result(networks: Path) -> None:
    answer = call("CHECK", config(networks, SUBNET))
    assert answer.error() == (spec.INVALID_CONFIG, "prevResult: is missing")


# GC


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments", "CNI.dev/Valid-Attachments"])
def test_gc_keeps_the_leases_of_valid_attachments_alone(networks: Path, folder: Path, key: str) -> None:
    conf = config(networks, SUBNET, SMALL_V6)
    for container in ("c1", "c2", "c3"):
        add(conf, container)
    add(conf, "c1", CNI_IFNAME="net1")
    valid = [{"containerID": "c1", "ifname": "net1"}, {"containerID": "c3", "ifname": "eth0"}]
    assert call("GC", {**conf, key: valid}, CNI_CONTAINERID="", CNI_IFNAME="").succeeded()
    assert lease_files(folder) == {
        "10.1.0.4": b"c3\r\neth0",
        "10.1.0.5": b"c1\r\nnet1",
        "2001:db8::4": b"c3\r\neth0",
        "2001:db8::5": b"c1\r\nnet1",
    }
    assert add(conf, "c3") == ["10.1.0.4", "2001:db8::4"]


@pytest.mark.parametrize("valid", [[], None], ids=["empty", "null, libcni's empty"])
def test_gc_with_an_empty_list_frees_everything(networks: Path, folder: Path, valid: list[Any] | None) -> None:
    conf = config(networks, SUBNET)
    add_many(conf, 3)
    assert call("GC", {**conf, "cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}).succeeded()
    assert lease_files(folder) == {}


def test_gc_touches_nothing_but_leases_of_its_network(networks: Path, folder: Path) -> None:
    conf = {**config(networks, SUBNET), "cni.dev/valid-attachments": []}
    add({**conf, "name": "other"})
    add(conf)
    foreign = {"notes": b"c1\r\neth0", "10.1.0.010": b"c1\r\neth0", "2001:DB8::1": b"c1"}
    for name, content in {**foreign, "10.1.0.8": b"", "10.1.0.9": b"# the printer"}.items():
        write_as_reference(folder, name, content)
    assert call("GC", conf).succeeded()
    expected = {*foreign, "lock", "last_reserved_ip.0", ".owners"}
    assert set(os.listdir(folder)) == expected
    assert {name: (folder / name).read_bytes() for name in foreign} == foreign
    assert lease_files(networks / "other") == {"10.1.0.2": b"c1\r\neth0"}


def test_gc_keeps_an_older_form_for_any_interface_of_its_container(networks: Path, folder: Path) -> None:
    write_as_reference(folder, "10.1.0.2", b"c1")
    write_as_reference(folder, "10.1.0.3", b"c2")
    valid = [{"containerID": "c1", "ifname": "net1"}]
    assert call("GC", {**config(networks), "cni.dev/valid-attachments": valid}).succeeded()
    assert lease_files(folder) == {"10.1.0.2": b"c1"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "cni.dev/valid-attachments: is missing"),
        ({"cni.dev/valid-attachments": {}}, "cni.dev/valid-attachments: expected list, got object"),
        ({"cni.dev/valid-attachments": [{"ifname": "eth0"}]}, "cni.dev/valid-attachments[0].containerID: is missing"),
        ({"cni.dev/attachments": [{"containerID": "c1"}]}, "cni.dev/attachments[0].ifname: is missing"),
    ],
    ids=["no list", "no list but an object", "no container", "no interface"],
)
def test_gc_that_does_not_say_what_is_valid_frees_nothing(
    networks: Path, folder: Path, more: dict[str, Any], message: str
) -> None:
    conf = config(networks, SUBNET)
    add(conf)
    assert call("GC", {**conf, **more}).error() == (spec.INVALID_CONFIG, message)
    assert lease_files(folder) == {"10.1.0.2": b"c1\r\neth0"}


def test_gc_goes_on_after_a_fault_and_reports_it(networks: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = {**config(networks, SUBNET), "cni.dev/valid-attachments": []}
    add_many(conf, 3)

    class Stuck(Posix):
        def unlink(self, path: str) -> None:
            if path.endswith(("10.1.0.2", "10.1.0.4")):
                raise OSError(5, "Input/output error", path)
            os.unlink(path)

    with monkeypatch.context() as patched:
        patched.setattr(leases, "posix", Stuck(lambda _: None))
        answer = call("GC", conf)
    assert answer.error() == (spec.CLEANUP_INCOMPLETE, "GC of network net: 2 faults")
    assert f"{folder}/10.1.0.2: Input/output error" in answer.document["details"]
    assert f"{folder}/10.1.0.4: Input/output error" in answer.document["details"]
    assert set(lease_files(folder)) == {"10.1.0.2", "10.1.0.4"}
    assert add(conf, "c3") == ["10.1.0.4"]


# STATUS


def test_status_is_well_until_the_last_address_is_gone(networks: Path, folder: Path) -> None:
    conf = config(networks, SMALL_V6, SMALL)
    assert call("STATUS", conf).succeeded()
    add_many(conf, 4)
    before = sorted(os.listdir(folder)), folder.stat().st_mtime_ns
    assert call("STATUS", conf).succeeded()
    assert (sorted(os.listdir(folder)), folder.stat().st_mtime_ns) == before
    add(conf, "c5")
    answer = call("STATUS", conf)
    assert answer.error() == (spec.UNAVAILABLE, "range set 1 (10.1.0.0/29): all 5 addresses are in use")
    assert "cnitool gc net" in answer.document["details"]


def test_status_counts_no_empty_file_no_gateway_and_nothing_outside(networks: Path, folder: Path) -> None:
    conf = config(networks, SMALL)
    add_many(conf, 4)
    for name in ("10.1.0.6", "10.1.0.1", "10.1.0.7", "10.1.1.6", "notes"):
        write_as_reference(folder, name, b"" if name == "10.1.0.6" else b"c9\r\neth0")
    assert call("STATUS", conf).succeeded()
    write_as_reference(folder, "10.1.0.6", b"# the printer")
    assert call("STATUS", conf).succeeded()
    write_as_reference(folder, "10.1.0.6", b"c9\r\neth0")
    assert call("STATUS", conf).error()[0] == spec.UNAVAILABLE


def test_status_says_when_no_lease_can_be_written(networks: Path) -> None:
    networks.write_text("")
    assert call("STATUS", config(networks, SUBNET)).error() == (
        spec.UNAVAILABLE,
        f"no lease can be written: {networks}/net: Not a directory",
    )


def test_status_does_without_ranges_when_the_runtime_brings_them(networks: Path) -> None:
    conf = {**config(networks), "capabilities": {"ipRanges": True}}
    assert call("STATUS", conf).succeeded()
    assert call("STATUS", {**conf, "capabilities": {"ipRanges": False}}).error()[0] == spec.INVALID_CONFIG
    conf["ipam"]["ranges"] = [[]]
    assert call("STATUS", conf).error()[0] == spec.INVALID_CONFIG


# Leases the reference left behind

LEFT_BEHIND = {
    "10.1.0.2": b"c1\r\neth0",
    "10.1.0.3": b"c1\r\nnet1",
    "10.1.0.4": b"c2\r\neth0",
    "10.1.0.5": b"c3",  # before 0.8
    "10.1.0.6": b"",  # killed between making and filling it
    "last_reserved_ip.0": b"10.1.0.6",
    "lock": b"",
}


@pytest.fixture
def left_behind(folder: Path) -> Path:
    for name, content in LEFT_BEHIND.items():
        write_as_reference(folder, name, content)
    return folder


def test_reference_leases_repeated_add_gives_the_same(networks: Path, left_behind: Path) -> None:
    conf = config(networks, SUBNET)
    assert add(conf) == ["10.1.0.2"]
    assert add(conf, CNI_IFNAME="net1") == ["10.1.0.3"]
    assert add(conf, "c3") == ["10.1.0.5"]
    assert (left_behind / "last_reserved_ip.0").read_text() == "10.1.0.6"


def test_reference_leases_order_goes_on(networks: Path, left_behind: Path) -> None:
    assert add(config(networks, SUBNET), "c4") == ["10.1.0.7"]
    assert (left_behind / "last_reserved_ip.0").read_text() == "10.1.0.7"


def test_reference_leases_are_released(networks: Path, left_behind: Path) -> None:
    conf = config(networks, SUBNET)
    for container in ("c1", "c3", "c9"):
        assert call("DEL", conf, container).succeeded()
    assert lease_files(left_behind) == {"10.1.0.3": b"c1\r\nnet1", "10.1.0.4": b"c2\r\neth0"}


def test_reference_leases_are_collected(networks: Path, left_behind: Path) -> None:
    valid = [{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c3", "ifname": "eth0"}]
    assert call("GC", {**config(networks, SUBNET), "cni.dev/valid-attachments": valid}).succeeded()
    assert lease_files(left_behind) == {"10.1.0.2": b"c1\r\neth0", "10.1.0.5": b"c3"}


def test_reference_changes_in_between_are_noticed(networks: Path, folder: Path) -> None:
    conf = config(networks, SUBNET)
    add(conf)
    write_as_reference(folder, "10.1.0.3", b"c2\r\neth0")
    assert add(conf, "c2") == ["10.1.0.3"]
    (folder / "10.1.0.2").unlink()
    assert add(conf) == ["10.1.0.4"]
    assert call("DEL", conf, "c2").succeeded()
    assert lease_files(folder) == {"10.1.0.4": b"c1\r\neth0"}


# The reference itself


def reference(verb: str, conf: dict[str, Any], container: str) -> list[str]:
    """Run the reference's executable, which must succeed; return the addresses an ADD gives."""
    environ = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container,
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/run/netns/x",
        "CNI_PATH": "/opt/cni/bin",
    }
    run = subprocess.run(
        [needs_reference() / "host-local"],
        input=json.dumps(conf).encode(),
        env=environ,
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    return [ip["address"].partition("/")[0] for ip in json.loads(run.stdout)["ips"]] if verb == "ADD" else []


ADD_TWENTY = """
import json, sys
from cnikit.ipam.host_local import PLUGIN
from cnikit.main import respond

config, worker = sys.argv[1:]
for i in range(20):
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": f"w{worker}-{i}", "CNI_IFNAME": "eth0", "CNI_NETNS": "/x"}
    print(json.loads(respond(PLUGIN, environ, config.encode).stdout)["ips"][0]["address"])
"""


@pytest.mark.all
def test_reference_adds_and_ours_deletes(networks: Path, folder: Path) -> None:
    conf = config(networks, SUBNET, SMALL_V6, version="1.0.0")
    given = reference("ADD", conf, "c1")
    assert given == ["10.1.0.2", "2001:db8::2"]
    prev = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}, {"address": "2001:db8::2/125"}]}
    assert call("CHECK", {**conf, "prevResult": prev}).succeeded()
    assert add(conf) == given
    assert call("DEL", conf).succeeded()
    assert lease_files(folder) == {}


@pytest.mark.all
def test_ours_adds_and_the_reference_deletes(networks: Path, folder: Path) -> None:
    conf = config(networks, SUBNET, SMALL_V6, version="1.0.0")
    given = call("ADD", conf).result()
    add(conf, "c2")
    reference("CHECK", {**conf, "prevResult": given}, "c1")
    reference("DEL", conf, "c1")
    assert lease_files(folder) == {"10.1.0.3": b"c2\r\neth0", "2001:db8::3": b"c2\r\neth0"}
    assert add(conf) == ["10.1.0.4", "2001:db8::4"]


@pytest.mark.all
def test_ours_and_the_reference_take_turns_and_never_the_same(networks: Path, folder: Path) -> None:
    conf = config(networks, {"subnet": "10.1.0.0/27"}, version="1.0.0")
    turns = [add, lambda conf, container: reference("ADD", conf, container)]
    given = [turns[i % 3 == 0](conf, f"c{i}")[0] for i in range(29)]
    assert given == [f"10.1.0.{i}" for i in range(2, 31)]
    for i in range(29):
        if i % 2:
            reference("DEL", conf, f"c{i}")
        else:
            assert call("DEL", conf, f"c{i}").succeeded()
    assert lease_files(folder) == {}
    assert set(os.listdir(folder)) == {"lock", "last_reserved_ip.0", ".owners"}


@pytest.mark.all
def test_ours_and_the_reference_at_once_never_give_the_same(networks: Path, folder: Path) -> None:
    conf = config(networks, SUBNET, version="1.0.0")
    command = [sys.executable, "-c", ADD_TWENTY, json.dumps(conf)]
    workers = [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True, cwd=PROJECT) for i in range(3)]
    given = [reference("ADD", conf, f"r{i}")[0] for i in range(60)]
    given += [line.partition("/")[0] for worker in workers for line in worker.communicate()[0].split()]
    assert sorted(given) == sorted(f"10.1.0.{i}" for i in range(2, 122))
    assert len(lease_files(folder)) == 120


@pytest.mark.all
def test_ours_writes_what_the_reference_writes(tmp_path: Path) -> None:
    ours, theirs = (config(tmp_path / name, SUBNET, SMALL_V6, version="1.0.0") for name in ("ours", "theirs"))
    add(ours)
    reference("ADD", theirs, "c1")

    def seen(name: str) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (tmp_path / name / "net").iterdir() if file.name != ".owners"}

    assert seen("ours") == seen("theirs")
    # Address files have been 0600 only since the reference's 1.9.
    modes = [[(tmp_path / name / "net" / file).stat().st_mode for file in ("", "lock")] for name in ("ours", "theirs")]
    assert modes[0] == modes[1]


# Many at once, and many there


def test_eight_processes_at_once_never_get_the_same_address(networks: Path, folder: Path) -> None:
    conf = json.dumps(config(networks, SUBNET))
    command = [sys.executable, "-c", ADD_TWENTY, conf]
    workers = [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True, cwd=PROJECT) for i in range(8)]
    given = [line for worker in workers for line in worker.communicate()[0].split()]
    assert [worker.returncode for worker in workers] == [0] * 8
    assert sorted(given) == sorted(f"10.1.0.{i}/24" for i in range(2, 162))
    assert len(lease_files(folder)) == 160
    for i in range(8):
        assert call("DEL", json.loads(conf), f"w{i}-19").succeeded()
    assert len(lease_files(folder)) == 152


def _operations(networks: Path, monkeypatch: pytest.MonkeyPatch, there: int) -> list[Counter[str]]:
    """Count the file operations of ADD, repeated ADD, CHECK, STATUS, DEL and repeated DEL among so many leases."""
    conf = config(networks, {"subnet": "10.0.0.0/8"})
    first = int(ipaddress.ip_address("10.0.0.2"))
    for number in range(first, first + there):
        write_as_reference(networks / "net", str(ipaddress.ip_address(number)), f"there{number}\r\neth0".encode())
    write_as_reference(networks / "net", "last_reserved_ip.0", str(ipaddress.ip_address(first + there)).encode())
    add(conf, "adopts")
    prev = {"cniVersion": "1.1.0", "ips": [{"address": str(ipaddress.ip_address(first + there + 2)) + "/8"}]}
    counted = []
    for verb in ("ADD", "ADD", "CHECK", "STATUS", "DEL", "DEL"):
        calls: Counter[str] = Counter()
        with monkeypatch.context() as patched:
            patched.setattr(leases, "posix", Posix(lambda name, calls=calls: calls.update([name])))  # type: ignore[misc]
            assert call(verb, {**conf, "prevResult": prev}).status == 0
        counted.append(calls)
    return counted


def test_calls_cost_the_same_among_1000_leases_as_among_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = _operations(tmp_path / "alone", monkeypatch, 0)
    assert _operations(tmp_path / "crowd", monkeypatch, 1000) == alone
    assert [calls["listdir"] for calls in alone] == [0, 0, 0, 1, 0, 0]
    assert all(sum(calls.values()) < 40 for calls in alone), alone
