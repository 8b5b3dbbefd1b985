"""Masquerading: what leaves a container for outside its subnets takes the host's address.

    table inet cnikit_masquerade
        sources4, sources6   the containers' addresses
        inside4, inside6     a container's address, and each subnet that it reaches under its own

A static chain looks up both, so an attachment costs a few set elements, however many there are.
"""

from __future__ import annotations

from cnikit.address import contains, format_cidr, format_ip, network, parse_cidr
from cnikit.netlink.nftables import Chain, Rule, Set, Table
from cnikit.objects import HOST
from cnikit.plan import Add, Ensure
from cnikit.ruleset import Ruleset, member, pair

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnikit.plan import Step
    from cnikit.result import IP

TABLE = Table(
    "inet",
    "cnikit_masquerade",
    (
        Set("sources4", ("ipv4_addr",)),
        Set("inside4", ("ipv4_addr", "ipv4_addr"), interval=True),
        Set("sources6", ("ipv6_addr",)),
        Set("inside6", ("ipv6_addr", "ipv6_addr"), interval=True),
    ),
    (
        Chain(
            "postrouting",
            (
                Rule(
                    "ip saddr @sources4 ip daddr != 224.0.0.0/4 ip saddr . ip daddr != @inside4 masquerade",
                    "containers, to outside their subnets",
                ),
                Rule(
                    "ip6 saddr @sources6 ip6 daddr != ff00::/8 ip6 saddr . ip6 daddr != @inside6 masquerade",
                    "containers, to outside their subnets",
                ),
            ),
            "nat",
            "postrouting",
            100,
        ),
    ),
)


def steps(tag: str, ips: Sequence[IP], excepted: Sequence[tuple[bytes, int]] = ()) -> tuple[Step, ...]:
    """Return the steps that masquerade a container with these addresses, but for what it sends to excepted subnets."""
    made: list[Step] = [Ensure(Ruleset(HOST, TABLE.name, TABLE))]
    cidrs = [parse_cidr(ip.address) for ip in ips]
    for packed, _ in dict.fromkeys(cidrs):
        address, version = format_ip(packed), 4 if len(packed) == 4 else 6
        subnets = [(network(*cidr), cidr[1]) for cidr in (*cidrs, *excepted) if len(cidr[0]) == len(packed)]
        made.append(Add(member(TABLE, f"sources{version}", (address,), (), tag)))
        made += [Add(pair(TABLE, f"inside{version}", address, subnet, tag)) for subnet in _widest(subnets)]
    return tuple(made)


def _widest(subnets: list[tuple[bytes, int]]) -> list[str]:
    """Return the subnets that lie in no other one: the kernel refuses intervals that overlap."""
    found: list[tuple[bytes, int]] = []
    for subnet in sorted(subnets, key=lambda one: one[1]):
        if not any(contains(*wider, subnet[0]) for wider in found):
            found.append(subnet)
    return [format_cidr(*subnet) for subnet in found]
