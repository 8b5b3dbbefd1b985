"""What firewall lets through a host's own firewall, and what it keeps apart, as its nftables table has them.

containers4, containers6   the containers' addresses
confined                   host links whose containers are kept from those of other such links: bridges, mostly
within                     pairs of them that reach each other: a bridge and itself
senders4, senders6         host links, and the addresses of the containers that they lead to
"""

from __future__ import annotations

from cnikit.netlink import nftables
from cnikit.netlink.nftables import Chain, Rule, Table

MARK = 0x1000
ADMIN = "CNI-ADMIN"

_MARK = f"meta mark set meta mark | {MARK:#x}"
ACCEPT_MARKED = Rule(f"meta mark & {MARK:#x} == {MARK:#x} accept", "cnikit: what its firewall lets through")


def _marks(version: str, n: int) -> tuple[Rule, ...]:
    to = f"{version} daddr @containers{n} {_MARK}"
    return (
        Rule(f"{version} saddr @containers{n} fib saddr . iif oif exists {_MARK}", "from where containers are reached"),
        Rule(f"iifname . {version} saddr @senders{n} {_MARK}", "from containers by their own link"),
        Rule(f"ct state established,related {to}", "answers to containers"),
        Rule(f"ct status dnat {to}", "to published ports"),
    )


_APART = Rule(
    "iifname @confined oifname @confined iifname . oifname != @within drop", "networks with an ingressPolicy are apart"
)
TABLE = Table(
    "inet",
    "cnikit_firewall",
    (
        nftables.Set("containers4", ("ipv4_addr",)),
        nftables.Set("containers6", ("ipv6_addr",)),
        nftables.Set("confined", ("ifname",)),
        nftables.Set("within", ("ifname", "ifname")),
        nftables.Set("senders4", ("ifname", "ipv4_addr")),
        nftables.Set("senders6", ("ifname", "ipv6_addr")),
    ),
    (
        Chain(ADMIN, open=True),
        Chain("admins", open=True),
        Chain(
            "forward",
            (
                *_marks("ip", 4),
                *_marks("ip6", 6),
                Rule(f"jump {ADMIN}", "the administrator's own rules"),
                Rule("jump admins", "and those in chains of other names"),
                _APART,
            ),
            "filter",
            "forward",
            -10,
        ),
    ),
)
