"""IP addresses as the kernel takes them: 4 or 16 bytes in network order, whose length is the family.

Bytes of one family compare as their addresses do. `ipaddress` takes 2.6 ms to import and netaddr 22; tests hold these
functions to both.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

_V4_IN_V6 = bytes(10) + b"\xff\xff"


def parse_ip(text: str) -> bytes:
    """Return the address; IPv4 written as IPv6 (::ffff:10.0.0.1) is IPv4. Raises ValueError."""
    try:
        if ":" not in text:
            return inet_pton(AF_INET, text)
        packed = inet_pton(AF_INET6, text)
    except (OSError, ValueError):
        raise ValueError(f"{text!r} is not an IP address") from None
    return packed[12:] if packed.startswith(_V4_IN_V6) else packed


def parse_cidr(text: str) -> tuple[bytes, int]:
    """Return address and prefix length of "10.1.0.7/24", host bits kept. Raises ValueError."""
    address, slash, length = text.partition("/")
    try:
        packed = parse_ip(address)
    except ValueError:
        raise ValueError(f"{text!r} is not an address with a prefix length (10.1.0.7/24)") from None
    # ::ffff:10.1.0.7/120 is 10.1.0.7/24.
    low = 96 if ":" in address and len(packed) == 4 else 0
    high = low + len(packed) * 8
    if not (slash and length.isascii() and length.isdigit() and len(length) <= 3 and low <= int(length) <= high):
        raise ValueError(f"{text!r} has no prefix length of {low} to {high} behind a slash")
    return packed, int(length) - low


def format_ip(packed: bytes) -> str:
    """Return the canonical text (RFC 5952 for IPv6)."""
    return inet_ntop(family(packed), packed)


def format_cidr(packed: bytes, length: int) -> str:
    """Return "10.1.0.7/24"."""
    return f"{format_ip(packed)}/{length}"


def format_host(packed: bytes) -> str:
    """Return "10.1.0.7/32": the subnet of an address alone."""
    return format_cidr(packed, len(packed) * 8)


def family(packed: bytes) -> int:
    """Return AF_INET or AF_INET6."""
    return AF_INET if len(packed) == 4 else AF_INET6


def network(packed: bytes, length: int) -> bytes:
    """Return the first address of the subnet the address lies in."""
    host_bits = len(packed) * 8 - length
    return (int.from_bytes(packed, "big") >> host_bits << host_bits).to_bytes(len(packed), "big")


def last(packed: bytes, length: int) -> bytes:
    """Return the last address of that subnet."""
    host_bits = len(packed) * 8 - length
    return (int.from_bytes(packed, "big") | (1 << host_bits) - 1).to_bytes(len(packed), "big")


def hosts(packed: bytes, length: int) -> tuple[bytes, bytes]:
    """Return the first and the last address of that subnet that a host may have.

    The subnet's own (to IPv6, that of any of its routers) and IPv4's broadcast address are no host's; but of two
    addresses both are (RFC 3021, RFC 6164), and a single one is.
    """
    first, end = network(packed, length), last(packed, length)
    if length >= len(packed) * 8 - 1:
        return first, end
    return plus(first, 1), plus(end, -1) if broadcast(packed, length) else end


def broadcast(packed: bytes, length: int) -> bytes:
    """Return the broadcast address of that subnet, b"" where there is none."""
    return last(packed, length) if len(packed) == 4 and length < 31 else b""


def plus(packed: bytes, count: int) -> bytes:
    """Return the address count further on (or back). Raises OverflowError past either end."""
    return (int.from_bytes(packed, "big") + count).to_bytes(len(packed), "big")


def contains(subnet: bytes, length: int, packed: bytes) -> bool:
    """Tell whether the address lies in the subnet."""
    return len(subnet) == len(packed) and network(packed, length) == network(subnet, length)


def is_link_local(packed: bytes) -> bool:
    """Tell whether an address is one of fe80::/10."""
    return len(packed) == 16 and packed[0] == 0xFE and packed[1] & 0xC0 == 0x80


def is_loopback(packed: bytes) -> bool:
    """Tell whether an address is one of 127.0.0.0/8, or ::1."""
    return packed[0] == 127 if len(packed) == 4 else packed == bytes(15) + b"\1"


def link_local(mac: bytes) -> bytes:
    """Return the address of fe80::/64 that a kernel gives an interface with that MAC address (RFC 4291, appendix A)."""
    return b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def is_default(cidr: str) -> bool:
    """Tell whether a route's destination is everything."""
    return parse_cidr(cidr)[1] == 0


def parse_mac(text: str) -> bytes:
    """Return the six bytes of "02:00:00:00:00:01", also written with - or as 0200.0000.0001. Raises ValueError."""
    digits = text.replace(":", "").replace("-", "").replace(".", "")
    shapes = {":": (5, 3), "-": (5, 3), ".": (2, 5)}
    separator = text[4:5] if text[4:5] == "." else text[2:3]
    count, step = shapes.get(separator, (-1, 0))
    well_set = len(digits) == 12 and text.count(separator) == count and set(text[step - 1 :: step]) == {separator}
    if not (well_set and all(c in "0123456789abcdefABCDEF" for c in digits)):
        raise ValueError(f"{text!r} is not a MAC address")
    mac = bytes.fromhex(digits)
    if mac[0] & 1 or not any(mac):
        raise ValueError(f"{text!r} is no unicast MAC address, which an interface needs")
    return mac


def format_mac(mac: bytes) -> str:
    """Return "02:00:00:00:00:01"."""
    return mac.hex(":")
