"""Addresses: held to ipaddress and netaddr, two implementations that know nothing of each other."""

from __future__ import annotations

import ipaddress
from _socket import AF_INET, AF_INET6

import netaddr
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cnikit import address

V4_IN_V6 = bytes(10) + b"\xff\xff"
PACKED = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
# Zero groups are where the texts of IPv6 differ; random bytes hardly hold any.
SPARSE = st.lists(st.sampled_from([b"\0\0", b"\0\1", b"\xff\xff", b"\x12\x34"]), min_size=8, max_size=8).map(b"".join)
ADDRESSES = (PACKED | SPARSE).filter(lambda packed: not (len(packed) == 16 and packed.startswith(V4_IN_V6)))
SUBNETS = ADDRESSES.flatmap(lambda packed: st.tuples(st.just(packed), st.integers(0, len(packed) * 8)))
NEARLY_ADDRESSES = st.text("0123456789abcfF:./ gx\0", max_size=20) | st.lists(
    st.sampled_from(
        ["0", "00", "1", "10", "255", "256", "ffff", "10.0.0.1", "::", ":", ".", "/", "%eth0", " ", "\n", "٣"]
    ),
    max_size=9,
).map("".join)


def _packed(text: str) -> bytes | None:
    try:
        return address.parse_ip(text)
    except ValueError:
        return None


@given(ADDRESSES)
def test_formats_as_ipaddress_and_reads_it_back(packed: bytes) -> None:
    text = str(ipaddress.ip_address(packed))
    if not _is_v4_in_v6_dotted(packed):
        assert address.format_ip(packed) == text
    assert address.parse_ip(address.format_ip(packed)) == packed
    assert address.parse_ip(text) == packed
    assert address.parse_ip(text.upper()) == packed


@given(ADDRESSES)
def test_formats_what_netaddr_reads_as_the_same(packed: bytes) -> None:
    version = 4 if len(packed) == 4 else 6
    assert netaddr.IPAddress(address.format_ip(packed)) == netaddr.IPAddress(int.from_bytes(packed, "big"), version)


def _is_v4_in_v6_dotted(packed: bytes) -> bool:
    """Tell whether inet_ntop writes the last 32 bits with dots (::10.0.0.1), which RFC 5952 leaves open."""
    return len(packed) == 16 and packed.startswith(bytes(12)) and any(packed[12:14])


@given(ADDRESSES.filter(lambda packed: len(packed) == 16))
def test_reads_ipv6_written_in_full(packed: bytes) -> None:
    assert address.parse_ip(ipaddress.IPv6Address(packed).exploded) == packed


@given(NEARLY_ADDRESSES)
def test_accepts_what_ipaddress_accepts_but_no_zone(text: str) -> None:
    assume("%" not in text)
    try:
        wanted = ipaddress.ip_address(text).packed
    except ValueError:
        assert _packed(text) is None
    else:
        assert _packed(text) == wanted.removeprefix(V4_IN_V6)


@given(st.binary(min_size=4, max_size=4))
def test_ipv4_written_as_ipv6_is_ipv4(packed: bytes) -> None:
    dotted = str(ipaddress.IPv4Address(packed))
    groups = f"{packed[:2].hex()}:{packed[2:].hex()}"
    for text in (f"::ffff:{dotted}", f"::FFFF:{dotted}", f"::ffff:{groups}", f"0:0:0:0:0:ffff:{groups}"):
        assert address.parse_ip(text) == packed
        assert address.parse_cidr(f"{text}/120") == (packed, 24)


@pytest.mark.parametrize(
    "text",
    ["", " ", "10.0.0", "10.0.0.1.2", "10.0.0.256", "10.0.0.01", "010.0.0.1", "0x0a.0.0.1", "167772161", "10.0.0.1/24",
     " 10.0.0.1", "10.0.0.1 ", "10.0.0.1\n", "10.0.0.1\0", "1٣.0.0.1", "10.0.0.-1", "::1%lo", "fe80::1%2", ":", ":::",
     "1::2::3", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "12345::", "g::", "::1\n", "::1\0", "::10.0.0", "::10.0.0.01",
     "[::1]", "localhost", "\udcff", "\ud800:"],
)  # fmt: skip
def test_refuses_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        address.parse_ip(text)
    assert str(caught.value) == f"{text!r} is not an IP address"


@given(SUBNETS)
def test_reads_an_address_with_its_prefix_length(subnet: tuple[bytes, int]) -> None:
    packed, length = subnet
    text = str(ipaddress.ip_interface(subnet))
    assert address.parse_cidr(text) == (packed, length)
    assert address.parse_cidr(address.format_cidr(packed, length)) == (packed, length)
    assert address.format_cidr(packed, length).endswith(f"/{length}")
    assert address.is_default(text) is (length == 0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param(text, why, id=repr(text))
        for why, texts in {
            "is not an address with a prefix length (10.1.0.7/24)": ["", "/", "/24", "x/24", "10.1/16", "10.1.0.7 /24"],
            "has no prefix length of 0 to 32 behind a slash": [
                "10.1.0.7", "10.1.0.7/", "10.1.0.7/33", "10.1.0.7/-1", "10.1.0.7/+8", "10.1.0.7/ 8", "10.1.0.7/8\n",
                "10.1.0.7/0024", "10.1.0.7/٨", "10.1.0.7/²", "10.1.0.7/0x8", "10.1.0.7/8/8", "10.1.0.7/255.255.255.0",
                "10.1.0.7/" + "0" * 5000,
            ],
            "has no prefix length of 0 to 128 behind a slash": ["::1", "::1/129", "fd00::/ffff::"],
            "has no prefix length of 96 to 128 behind a slash": ["::ffff:10.0.0.1/24", "::ffff:10.0.0.1/129"],
        }.items()
        for text in texts
    ],
)  # fmt: skip
def test_refuses_what_is_no_address_with_a_prefix_length(text: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        address.parse_cidr(text)
    assert str(caught.value) == f"{text!r} {why}"


@given(SUBNETS)
def test_first_and_last_of_a_subnet_are_those_of_both_libraries(subnet: tuple[bytes, int]) -> None:
    packed, length = subnet
    standard = ipaddress.ip_interface(subnet).network
    assert address.network(packed, length) == standard.network_address.packed
    assert address.last(packed, length) == standard.broadcast_address.packed
    other = netaddr.IPNetwork(f"{ipaddress.ip_address(packed)}/{length}")
    assert int.from_bytes(address.network(packed, length), "big") == other.first
    assert int.from_bytes(address.last(packed, length), "big") == other.last


@given(SUBNETS, st.data())
def test_a_subnet_contains_what_it_does_in_both_libraries(subnet: tuple[bytes, int], data: st.DataObject) -> None:
    packed, length = subnet
    # Flipping one bit of the subnet's own address reaches both sides of its edge.
    bit = data.draw(st.integers(0, len(packed) * 8 - 1))
    near = (int.from_bytes(packed, "big") ^ 1 << bit).to_bytes(len(packed), "big")
    for other in (near, data.draw(ADDRESSES)):
        expected = ipaddress.ip_address(other) in ipaddress.ip_interface(subnet).network
        assert address.contains(packed, length, other) is expected
        assert (str(ipaddress.ip_address(other)) in netaddr.IPNetwork(str(ipaddress.ip_interface(subnet)))) is expected


@given(ADDRESSES, st.integers(-300, 300))
def test_counts_as_ipaddress_does(packed: bytes, count: int) -> None:
    try:
        wanted = (ipaddress.ip_address(packed) + count).packed
    except ipaddress.AddressValueError:
        with pytest.raises(OverflowError):
            address.plus(packed, count)
    else:
        assert address.plus(packed, count) == wanted


@given(ADDRESSES, ADDRESSES)
def test_bytes_of_one_family_compare_as_addresses(one: bytes, other: bytes) -> None:
    assume(len(one) == len(other))
    assert (one < other) is (ipaddress.ip_address(one) < ipaddress.ip_address(other))  # type: ignore[operator]


def test_the_family_is_the_length() -> None:
    assert address.family(bytes(4)) == AF_INET
    assert address.family(bytes(16)) == AF_INET6


MAC = b"\x02\x1b\x00\xaa\x0f\xfe"


@pytest.mark.parametrize(
    "text",
    [
        "02:1b:00:aa:0f:fe",
        "02:1B:00:AA:0F:FE",
        "02:1b:00:AA:0f:Fe",
        "02-1b-00-aa-0f-fe",
        "021b.00aa.0ffe",
        "021B.00AA.0FFE",
    ],
)
def test_reads_a_mac_address_in_each_notation(text: str) -> None:
    assert address.parse_mac(text) == MAC


@pytest.mark.parametrize(
    "text",
    ["", ":", "02", "02:1b:00:aa:0f", "02:1b:00:aa:0f:fe:", "02:1b:00:aa:0f:fe:01", ":02:1b:00:aa:0f:fe",
     "2:1b:0:aa:f:fe", "02:1b:00:aa:0f:fg", "02:1b:00-aa:0f:fe", "02-1b-00-aa-0f:fe", "021b:00aa:0ffe",
     "02.1b.00.aa.0f.fe", "021b.00aa:0ffe", "021b00aa0ffe", "021b-00aa-0ffe", "02::1b:00:aa:0ffe",
     "02:1b:00:aa:0f:fe ", " 02:1b:00:aa:0f:fe", "02:1b:00:aa:0f:fe\n", "0٣:1b:00:aa:0f:fe", "+2:1b:00:aa:0f:fe",
     "02:1b:00:aa:0f:fe:00:01", "021b.00aa.0ffe.0001", "02:1b:00:aa:0f:\udcff"],
)  # fmt: skip
def test_refuses_what_is_no_mac_address(text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        address.parse_mac(text)
    assert str(caught.value) == f"{text!r} is not a MAC address"


@pytest.mark.parametrize("text", ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01"])
def test_refuses_a_mac_address_no_interface_can_have(text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        address.parse_mac(text)
    assert str(caught.value) == f"{text!r} is no unicast MAC address, which an interface needs"


@given(st.binary(min_size=6, max_size=6).filter(lambda mac: not mac[0] & 1 and any(mac)))
def test_a_mac_address_survives_every_notation_of_netaddr(mac: bytes) -> None:
    assert address.parse_mac(address.format_mac(mac)) == mac
    for dialect in (netaddr.mac_unix_expanded, netaddr.mac_eui48, netaddr.mac_cisco):
        assert address.parse_mac(str(netaddr.EUI(mac.hex(), dialect=dialect))) == mac


@given(st.text("0123456789abcdefABCDEF:-.g", max_size=18))
def test_a_mac_address_is_one_of_the_three_notations_and_nothing_else(text: str) -> None:
    try:
        mac = address.parse_mac(text)
    except ValueError:
        return
    pairs = mac.hex(":")
    assert text.lower() in (pairs, pairs.replace(":", "-"), mac.hex(".", 2))


@given(SUBNETS)
def test_the_hosts_of_a_subnet_are_those_of_ipaddress(subnet: tuple[bytes, int]) -> None:
    packed, length = subnet
    there = ipaddress.ip_network((packed, length), strict=False)
    first, end = (ipaddress.ip_address(one) for one in address.hosts(packed, length))
    if there.num_addresses <= 4096:
        listed = [*there.hosts()]
        assert (listed[0], listed[-1]) == (first, end)
    if there.num_addresses > 2:
        # An IPv4 subnet has a broadcast address, and every subnet an address of its own.
        assert int(first) == int(there.network_address) + 1
        assert int(end) == int(there.broadcast_address) - (there.version == 4)
    else:
        assert (first, end) == (there.network_address, there.broadcast_address)


@pytest.mark.parametrize(
    ("cidr", "first", "end", "broadcast"),
    [
        ("10.1.0.7/24", "10.1.0.1", "10.1.0.254", "10.1.0.255"),
        ("10.1.0.7/30", "10.1.0.5", "10.1.0.6", "10.1.0.7"),
        ("10.1.0.7/31", "10.1.0.6", "10.1.0.7", ""),
        ("10.1.0.7/32", "10.1.0.7", "10.1.0.7", ""),
        ("10.1.0.7/0", "0.0.0.1", "255.255.255.254", "255.255.255.255"),
        ("fd00::7/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff", ""),
        ("fd00::7/126", "fd00::5", "fd00::7", ""),
        ("fd00::7/127", "fd00::6", "fd00::7", ""),
        ("fd00::7/128", "fd00::7", "fd00::7", ""),
    ],
)
def test_hosts_and_broadcast_address_of_every_kind_of_subnet(cidr: str, first: str, end: str, broadcast: str) -> None:
    subnet = address.parse_cidr(cidr)
    assert tuple(map(address.format_ip, address.hosts(*subnet))) == (first, end)
    assert address.broadcast(*subnet) == (address.parse_ip(broadcast) if broadcast else b"")


@given(SUBNETS)
def test_the_broadcast_address_is_no_hosts(subnet: tuple[bytes, int]) -> None:
    first, end = address.hosts(*subnet)
    packed = address.broadcast(*subnet)
    assert first <= end
    assert not packed or (packed == address.last(*subnet) and packed > end)
