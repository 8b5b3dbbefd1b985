"""A container that may send from its own MAC address only, and claims no neighbour's address, whatever it does inside.

table bridge cnikit_macspoofchk
    guarded           host ends of containers that are held to it
    allowed           host end and MAC address
    owned4, owned6    the addresses of guarded containers, and their bridges' gateways; of which bridge is told by the
                      device group that its guarded ports are in
    own4, own6        host end and address: who may claim it

The bridge learns nothing from a guarded port, and finds the container by an entry of its forwarding table that is made
for it: frames to 01:80:c2:00:00:00 to :0f pass no rule on their way to where the bridge learns.

An ARP message claims the address it is sent from. So do neighbour and router solicitations, advertisements and
redirects of IPv6; an advertisement and a redirect claim their target, too, and so does a solicitation from no address,
which asks whether the target is free. Where the kernel finds the fields behind one VLAN tag, or behind extension
headers, they are found; a second tag that bears no VLAN, which receivers take off as well, is dropped. What nobody has
here (a floating address of keepalived's, say) may be claimed by anyone.

Addresses in these sets are numbers, as nft shows what is at a place in a packet. Its own names for the places would not
do: `arp saddr ip` matches Ethernet's kind of ARP only, and untagged frames; the target it learned to name with 1.0.8.
"""

from __future__ import annotations

from _blake2 import blake2s

from cnikit.address import format_mac, link_local, parse_cidr, parse_ip, parse_mac
from cnikit.errors import invalid_config
from cnikit.netlink import nftables
from cnikit.netlink.nftables import Chain, Rule, Table
from cnikit.objects import HOST, FdbEntry
from cnikit.plan import Add, Ensure, Set
from cnikit.ruleset import Recent, Ruleset, member
from cnikit.settings import Group, Learning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnikit.plan import Step
    from cnikit.request import Request
    from cnikit.result import IP

_NUMBERS = {4: "@nh,112,32", 6: "@th,64,128"}
_TAGGED, _SENDER, _TARGET = "a second tag without VLAN", "a neighbour's address", "a neighbour's address as target"


def _claim(place: str, version: int) -> str:
    return f"meta iifgroup . {place} @owned{version} iifname . {place} != @own{version} drop"


TABLE = Table(
    "bridge",
    "cnikit_macspoofchk",
    (
        nftables.Set("guarded", ("ifname",)),
        nftables.Set("allowed", ("ifname", "ether_addr")),
        *(nftables.Set(f"owned{version}", ("devgroup", number)) for version, number in _NUMBERS.items()),
        *(nftables.Set(f"own{version}", ("ifname", number)) for version, number in _NUMBERS.items()),
    ),
    (
        Chain(
            "prerouting",
            (
                Rule("iifname @guarded iifname . ether saddr != @allowed drop", "not from the container's own address"),
                Rule("meta protocol arp iifname @guarded goto claims4", "what ARP claims"),
                Rule("meta l4proto ipv6-icmp iifname @guarded goto claims6", "what NDP claims"),
                Rule("meta protocol 8021q iifname @guarded goto tagged", "behind a VLAN tag"),
                Rule("meta protocol 8021ad iifname @guarded goto tagged", "behind a VLAN tag"),
            ),
            "filter",
            "prerouting",
            -300,
        ),
        Chain("claims4", (Rule(_claim("@nh,112,32", 4), _SENDER),)),
        Chain(
            "claims6",
            (
                Rule("@th,0,8 < 133 return", "no NDP"),
                Rule("@th,0,8 > 137 return", "no NDP"),
                Rule(_claim("@nh,64,128", 6), _SENDER),
                Rule("@th,0,8 < 135 return", "router solicitations and advertisements have no target"),
                Rule("@th,0,8 135 @nh,64,128 != 0 return", "solicitations ask for their target"),
                Rule(_claim("@th,64,128", 6), _TARGET),
            ),
        ),
        Chain("tagged", (Rule("@nh,0,16 & 0xfff == 0 drop", _TAGGED),)),
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


def port(host_end: str, bridge: str, mac: str) -> tuple[Step, ...]:
    """Return the steps that make a port a guarded one, before it is up."""
    return (
        Set(Learning(HOST, host_end, False)),
        Set(Group(HOST, host_end, group(bridge))),
        Set(FdbEntry(HOST, host_end, mac)),
    )


def group(bridge: str) -> int:
    """Return the device group that a bridge's guarded ports are in."""
    # Positive for tools that read it as signed; 0 is the group that every link begins in.
    return int.from_bytes(blake2s(bridge.encode(), digest_size=4).digest(), "big") >> 1 or 1


def steps(tag: str, host_end: str, mac: str, ips: Sequence[IP], bridge: str, gateways: Sequence[str]) -> list[Step]:
    """Return the steps that hold a container to its MAC address and to these addresses, and one that it makes itself.

    gateways: addresses of the bridge's own.
    """
    ours = str(group(bridge))
    made: list[Step] = [Ensure(Ruleset(HOST, TABLE.name, TABLE))]
    # They stay, as the bridge does.
    made += [Ensure(_owned(host_end, ours, parse_ip(gateway), "gateway")) for gateway in gateways]
    for packed in dict.fromkeys([*(parse_cidr(ip.address)[0] for ip in ips), link_local(parse_mac(mac))]):
        own = nftables.Element(f"own{4 if len(packed) == 4 else 6}", (host_end, _number(packed)), (), tag)
        made += [Add(_owned(host_end, ours, packed, tag)), Add(Recent(HOST, own.set, TABLE, own, host_end))]
    return [
        *made,
        Add(member(TABLE, "allowed", (host_end, mac), (), tag)),
        Add(member(TABLE, "guarded", (host_end,), (), tag)),
    ]


def _owned(host_end: str, ours: str, packed: bytes, comment: str) -> Recent:
    owned = nftables.Element(f"owned{4 if len(packed) == 4 else 6}", (ours, _number(packed)), (), comment)
    return Recent(HOST, owned.set, TABLE, owned, host_end)


def _number(packed: bytes) -> str:
    return hex(int.from_bytes(packed, "big"))
