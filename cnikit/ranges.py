"""Range sets: which addresses host-local may give out, and in which order. Pure.

A range is a part of a subnet, with the subnet's gateway; a set is a tuple of ranges of one family, and an attachment
gets one address of each set.
"""

from __future__ import annotations

from cnikit import spec
from cnikit.address import contains, format_cidr, format_ip, hosts, is_link_local, network, parse_cidr, parse_ip
from cnikit.errors import invalid_config
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnikit.fields import Fields

# Ranges of a configuration: each is compared with all others, and each address with each.
MOST = 128


class Range(Value):
    """The addresses start to end, both included, of subnet/length; the gateway among them is not for giving out."""

    subnet: bytes
    length: int
    start: bytes
    end: bytes
    gateway: bytes

    def __contains__(self, packed: bytes) -> bool:
        """Tell whether the address lies between start and end."""
        return len(packed) == len(self.start) and self.start <= packed <= self.end

    def __str__(self) -> str:
        """Return "10.1.0.0/24", or "10.1.0.10-10.1.0.19" for a part of it."""
        if (self.start, self.end) == hosts(self.subnet, self.length):
            return format_cidr(self.subnet, self.length)
        return f"{format_ip(self.start)}-{format_ip(self.end)}"


if TYPE_CHECKING:
    RangeSet = tuple[Range, ...]


def read_sets(groups: list[tuple[str, tuple[Fields, ...]]], version: str) -> tuple[RangeSet, ...]:
    """Read the range sets of a configuration, each given with its key's path. Raises CniError, code 7."""
    count = sum(len(group) for _, group in groups)
    if count > MOST:
        raise invalid_config("ipam.ranges", f"{count} ranges are too many, {MOST} is the most")
    if not groups:
        raise invalid_config("ipam.ranges", "no IP ranges specified", "give ipam.subnet or ipam.ranges")
    sets: list[RangeSet] = []
    for path, group in groups:
        if not group:
            raise invalid_config(path, "empty range set", "give it at least one range with a subnet")
        ranges = tuple(read(f) for f in group)
        for f, one in zip(group, ranges, strict=True):
            if len(one.subnet) != len(ranges[0].subnet):
                raise f.invalid("subnet", f"mixed address families: {one} is in a set with {ranges[0]}")
        if not size(ranges):
            raise invalid_config(path, f"{', '.join(map(str, ranges))} has no address beside the gateway's")
        families = [len(earlier[0].subnet) for earlier in sets]
        if not spec.at_least(version, "0.3.0") and len(ranges[0].subnet) in families:
            raise invalid_config(path, f"cniVersion {version} has no room for a second address of a family")
        sets.append(ranges)
    _refuse_overlap(
        [
            (f.path, one)
            for group, ranges in zip(groups, sets, strict=True)
            for f, one in zip(group[1], ranges, strict=True)
        ]
    )
    return tuple(sets)


def _refuse_overlap(ranges: list[tuple[str, Range]]) -> None:
    for i, (path, one) in enumerate(ranges):
        for other_path, other in ranges[:i]:
            if one.start in other or other.start in one:
                raise invalid_config(path, f"{one} overlaps with {other} of {other_path}")


def read(f: Fields) -> Range:
    """Read one range: subnet, rangeStart, rangeEnd, gateway. Raises CniError, code 7."""
    text, parsed = f.string("subnet"), f.parsed("subnet", parse_cidr)
    if parsed is None:
        raise f.invalid("subnet", "is missing")
    subnet, length = parsed
    longest = len(subnet) * 8 - 2
    if length > longest:
        raise f.invalid("subnet", f"{text} is too small to allocate from, /{longest} is the smallest")
    if subnet != network(subnet, length):
        right = format_ip(network(subnet, length))
        raise f.invalid("subnet", f"{text} has host bits set, the network address is {right}")
    start, end = hosts(subnet, length)
    start = _address(f, "rangeStart", subnet, length) or start
    end = _address(f, "rangeEnd", subnet, length) or end
    if start > end:
        raise f.invalid("rangeStart", f"{format_ip(start)} is behind the range's end {format_ip(end)}")
    gateway = _address(f, "gateway", subnet, length) or hosts(subnet, length)[0]
    return Range(subnet, length, start, end, gateway)


def _address(f: Fields, key: str, subnet: bytes, length: int) -> bytes | None:
    packed = f.parsed(key, parse_ip)
    if packed is None:
        return None
    # RFC 4291, 2.5.6: always on the link, so a router of any IPv6 subnet may have it.
    on_link = key == "gateway" and len(subnet) == 16 and is_link_local(packed)
    if not (on_link or contains(subnet, length, packed)):
        raise f.invalid(key, f"{f.string(key)} is not in {format_cidr(subnet, length)}")
    return packed


def holds(ranges: RangeSet, packed: bytes) -> bool:
    """Tell whether the set may give this address out."""
    return any(packed in one for one in ranges) and all(packed != one.gateway for one in ranges)


def size(ranges: RangeSet) -> int:
    """Return how many addresses the set may give out."""
    gateways = {one.gateway for one in ranges}
    return sum(_number(one.end) - _number(one.start) + 1 for one in ranges) - sum(
        any(gateway in one for one in ranges) for gateway in gateways
    )


def describe(index: int, ranges: RangeSet) -> str:
    """Return "range set 0 (10.1.0.0/24)"."""
    return f"range set {index} ({', '.join(map(str, ranges))})"


def following(ranges: RangeSet, pointer: bytes | None) -> Iterator[bytes]:
    """Yield each address of the set once: those behind the pointer, around to the pointer itself.

    A pointer outside the set counts for nothing, and the order begins with the first range's start.
    """
    gateways = {one.gateway for one in ranges}
    spans = [(_number(one.start), _number(one.end)) for one in ranges]
    for i, one in enumerate(ranges):
        if pointer is not None and pointer in one:
            start, end = spans[i]
            here = _number(pointer)
            spans = [(here + 1, end), *spans[i + 1 :], *spans[:i], (start, here)]
            break
    for start, end in spans:
        for number in range(start, end + 1):
            address = number.to_bytes(len(ranges[0].subnet), "big")
            if address not in gateways:
                yield address


def _number(packed: bytes) -> int:
    return int.from_bytes(packed, "big")
