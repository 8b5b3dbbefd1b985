"""What dead owners left under an address: found by the address, and taken away before another container has it.

A container that ends without DEL leaves elements of nftables, rules of iptables and entries of connection tracking
behind. They lead nowhere until its address is allocated again; then they lead into a stranger. So an attachment that
is given addresses clears away what is keyed by them or leads to them:

    clear          an attachment has been given addresses, by whatever IPAM plugin
    clear_extinct  host-local reclaims addresses of attachments that cannot exist any more

An owner is dead when no link has its tag, when its lease was reclaimed, or when its own network has given the address
to another; where another suite made the interface (UNLINKED) only the latter two tell. A living owner, of another
network with the same range, keeps what it has and is named on stderr.

Each table has a set whose keys begin with the containers' addresses (for macspoofchk with host ends), so to find that
nothing is there takes one exchange of messages. All else is looked at only when something is. What is found by these
goes last: where something cannot be taken away the ADD fails, and the next one finds it again.
"""

from __future__ import annotations

from cnikit import adopted, forwarding, hostports, macspoofchk, masquerade, ownership, ruleset
from cnikit.address import format_host, format_ip, parse_cidr, parse_ip
from cnikit.effects import locks, notes
from cnikit.errors import CniError, collected
from cnikit.netlink.nftables import Element
from cnikit.objects import HOST
from cnikit.ownership import UNLINKED
from cnikit.plan import Del, remove
from cnikit.plan import clear as clear_listed
from cnikit.request import Attachment
from cnikit.result import IP
from cnikit.ruleset import Foreign
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cnikit.netlink.nftables import Table
    from cnikit.objects import World
    from cnikit.plan import Step

TABLES = (masquerade.TABLE, hostports.TABLE, forwarding.TABLE, macspoofchk.TABLE)

# Sets by which it is found that there is anything.
_TELLING = ("sources", "containers", "masquerade", "guarded")


class Entry(Value):
    """An element of one of the tables."""

    table: Table
    element: Element

    @property
    def tags(self) -> tuple[str, ...]:
        """Return the tags of its owners, as they are written there."""
        return tuple(filter(None, (self.element.comment, self.element.also)))

    @property
    def address(self) -> str:
        """Return the container's address that it is keyed by, or leads to; "" for those of links."""
        if self.element.set.startswith("spares"):
            return self.element.key[3]
        if self.element.set.startswith("senders"):
            return self.element.key[1]
        if self.table == macspoofchk.TABLE or "ifname" in self.table.set(self.element.set).key:
            return ""
        return self.element.data[0] if self.element.data else self.element.key[0]

    @property
    def tells(self) -> bool:
        """Tell whether it is one by which others are found."""
        return self.element.set.startswith(_TELLING)


def clear(attachment: Attachment, ips: Iterable[IP], world: World, chained: bool = False) -> None:
    """Take away what dead owners left under addresses that the attachment has been given. Raises CniError.

    chained: plugins before have made what has the attachment's own tag; otherwise that is of an earlier ADD.
    """
    mine, addresses = ownership.tag(attachment), [parse_cidr(ip.address)[0] for ip in ips]
    own = (mine, mine + UNLINKED) if chained else ()
    signs = [sign for packed in addresses for sign in _signs(packed)] + ([] if chained else _guards(attachment))
    found = world[HOST].held([(table, element) for table, element in signs if ruleset.has_table(table, world)])
    if all(element.comment in own and not element.also for element in found):
        return
    given = [format_ip(packed) for packed in addresses]
    with locks.Locked(hostports.LOCK):
        listed = _listed("cni:", world)
        entries = [
            entry
            for entry in listed
            if entry.address in given or (not entry.address and mine in ruleset.owners(entry.element))
        ]
        others = {tag for entry in entries for tag in entry.tags if tag not in own}
        dead = {tag for tag in others if _is_dead(tag, mine, world)}
        faults = _take([entry for entry in entries if not entry.tells], dead, world)
    faults += _clear_rest(entries, dead, _without_interface(dead, world), world)
    faults = faults or _take([entry for entry in entries if entry.tells], dead, world)
    if faults:
        raise collected(faults, f"clearing away what was left under {', '.join(given)}")
    _name_living(entries, others - dead)


def _is_dead(tag: str, mine: str, world: World) -> bool:
    """Tell whether an owner has the address no more. One with our own tag may be an ADD of the same that is quicker."""
    whole = tag.removesuffix(UNLINKED)
    return not (ruleset.is_alive(whole, world) if whole == mine else ruleset.is_alive_elsewhere(tag, mine, world))


def clear_extinct(extinct: Collection[Attachment], world: World) -> None:
    """Take away what attachments of one network left that cannot exist any more. Raises CniError.

    Leases of the reference's oldest form do not say the interface (""): then it is any of the container's.
    """
    tags = {tag for attachment in extinct for tag in ownership.tags(attachment)}
    prefixes = {prefix for one in extinct for prefix in ownership.network_tags(one.network)}

    def is_extinct(tag: str) -> bool:
        whole = tag.removesuffix(UNLINKED)
        return whole in tags or f"{whole.rpartition('/')[0]}/" in tags

    with locks.Locked(hostports.LOCK):
        entries = list(dict.fromkeys(entry for prefix in prefixes for entry in _listed(prefix, world)))
        dead = {tag for entry in entries for tag in entry.tags if is_extinct(tag)}
        faults = _take([entry for entry in entries if not entry.tells], dead, world)
    faults += _clear_rest(entries, dead, extinct, world)
    faults = faults or _take([entry for entry in entries if entry.tells], dead, world)
    if faults:
        raise collected(faults, "clearing away what extinct containers left")


def _signs(packed: bytes) -> list[tuple[Table, Element]]:
    """Return where an address is found if anything of it is there."""
    address, version = format_ip(packed), 4 if len(packed) == 4 else 6
    return [
        (masquerade.TABLE, Element(f"sources{version}", (address,))),
        (forwarding.TABLE, Element(f"containers{version}", (address,))),
        *((hostports.TABLE, Element(f"masquerade{version}", key)) for key in hostports.signs(packed)),
    ]


def _guards(attachment: Attachment) -> list[tuple[Table, Element]]:
    """Return where it is found to which MAC addresses an earlier ADD of the attachment held its host end."""
    return [(macspoofchk.TABLE, Element("guarded", (name,))) for name in ownership.host_ends(attachment)]


def _listed(prefix: str, world: World) -> list[Entry]:
    """Return all entries of which an owner's tag begins so."""
    there = [table for table in TABLES if ruleset.has_table(table, world)]
    return [Entry(table, element) for table in there for element in world[HOST].elements(table, prefix)]


def _take(entries: Sequence[Entry], dead: Collection[str], world: World) -> list[CniError]:
    """Take entries from their dead owners; return what went wrong."""
    taken = [ruleset.taken_from(entry.element, entry.table, dead.__contains__) for entry in entries]
    steps = [step for some in taken for step in some]
    return remove(hostports.given_back(steps, world), world) if steps else []


def _clear_rest(
    entries: Sequence[Entry], dead: Collection[str], attachments: Iterable[Attachment], world: World
) -> list[CniError]:
    """Take away what goes with entries of dead owners and is no element; return what went wrong.

    attachments are those whose chains of iptables go.
    """
    of_dead = [entry for entry in entries if any(tag in dead for tag in entry.tags)]
    shared = {entry.address for entry in entries if not all(tag in dead for tag in entry.tags)}
    published = any(entry.table == hostports.TABLE for entry in of_dead)
    forwarded = {entry.address for entry in of_dead if entry.table == forwarding.TABLE and entry.address}
    addresses = sorted({entry.address for entry in of_dead if entry.address})
    listings = (
        lambda: _conditional_rules(dead, world) if published else (),
        lambda: _by_iptables(attachments, world),
        # These do not say whose they are.
        lambda: adopted.firewall_of(
            [IP(format_host(parse_ip(address))) for address in addresses if address not in shared], world
        ),
        lambda: _zone_sources(forwarded - shared, world),
        lambda: [Del(hostports.FlowsOf(HOST, address)) for address in addresses],
    )
    return clear_listed(listings, world)


def _without_interface(dead: Collection[str], world: World) -> list[Attachment]:
    """Return whose these tags are, but for those made again with another address, whose chains lead there now."""
    gone = {tag.removesuffix(UNLINKED) for tag in dead if tag.endswith(UNLINKED) or not ruleset.is_alive(tag, world)}
    known = {tag: ownership.attachment(tag) for tag in gone}
    hashed = [tag for tag, one in known.items() if one is None]
    # Their names are in the comments of the rules.
    named = adopted.named_by_iptables(world) if hashed else ()
    made = [one.replace(ifname=tag.rpartition("/")[2]) for tag in hashed for one in named]
    return [*filter(None, known.values()), *(one for one in made if ownership.tag(one) in hashed)]


def _conditional_rules(dead: Collection[str], world: World) -> list[Step]:
    """Return the steps that take away the rules of ports that dead owners published on conditions."""
    rules = dict.fromkeys(world[HOST].rules(hostports.TABLE))
    found = [(chain, comment) for chain, comment in rules if chain.startswith("conditional") and comment in dead]
    return [Del(Foreign(HOST, chain, hostports.TABLE, comment, whole=True)) for chain, comment in found]


def _by_iptables(attachments: Iterable[Attachment], world: World) -> list[Step]:
    """Return the steps that take away the chains that the backend iptables has made for these."""
    if not adopted.is_nat_there(world):
        return []
    chains = {ownership.reference_chain(kind, one): one for one in attachments for kind in ("CNI-", "CNI-DN-")}
    left = dict.fromkeys(chains[name] for name in adopted.those_there("nat", chains, world))
    steps: list[Step] = []
    for one in left:
        steps += adopted.masquerade_of(one, tuple, world)
        steps += adopted.port_mappings_of(one, world)
    return steps


def _zone_sources(addresses: Collection[str], world: World) -> list[Step]:
    """Return the steps that take addresses out of the zones of firewalld that the backend of that name put them in."""
    if not addresses:
        return []
    from cnikit.effects import firewalld
    from cnikit.zones import ZoneSource

    if not firewalld.is_running():
        return []
    cidrs = [format_host(parse_ip(address)) for address in sorted(addresses)]
    found = [(world[HOST].zone_of(cidr), cidr) for cidr in cidrs]
    return [Del(ZoneSource(HOST, zone, cidr)) for zone, cidr in found if zone]


def _name_living(entries: Sequence[Entry], living: Iterable[str]) -> None:
    for tag in sorted(living):
        shared = ", ".join(dict.fromkeys(entry.address for entry in entries if tag in entry.tags))
        notes.say(f"{shared} is also an address of {hostports.shown_owner(tag)}, whose ports and rules stay")
