"""A container that may send from its own MAC address only, whatever it does inside.

table bridge cnikit_macspoofchk
    guarded   host ends of containers that are held to it
    allowed   host end and MAC address
"""

from __future__ import annotations

from cnikit.address import format_mac, parse_mac
from cnikit.errors import invalid_config
from cnikit.netlink.nftables import Chain, Rule, Set, Table
from cnikit.objects import HOST
from cnikit.plan import Add, Ensure
from cnikit.ruleset import Ruleset, member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnikit.plan import Step
    from cnikit.request import Request

TABLE = Table(
    "bridge",
    "cnikit_macspoofchk",
    (Set("guarded", ("ifname",)), Set("allowed", ("ifname", "ether_addr"))),
    (
        Chain(
            "prerouting",
            (Rule("iifname @guarded iifname . ether saddr != @allowed drop", "not from the container's own address"),),
            "filter",
            "prerouting",
            -300,
        ),
    ),
)


def mac_before(request: Request) -> str:
    """Return the MAC address the container was given by ADD, as prevResult says, "" if that says none."""
    previous = request.prev_result()
    for interface in previous.interfaces if previous else ():
        if interface.name == request.attachment.ifname and interface.sandbox and interface.mac:
            try:
                return format_mac(parse_mac(interface.mac))
            except ValueError as e:
                raise invalid_config("prevResult.interfaces", str(e)) from None
    return ""


def steps(tag: str, host_end: str, mac: str) -> tuple[Step, ...]:
    """Return the steps that hold a container to its address."""
    return (
        Ensure(Ruleset(HOST, TABLE.name, TABLE)),
        Add(member(TABLE, "allowed", (host_end, mac), (), tag)),
        Add(member(TABLE, "guarded", (host_end,), (), tag)),
    )
