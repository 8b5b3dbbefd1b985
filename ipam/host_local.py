"""host-local: addresses from ranges of this host's own, kept as files. An ipam plugin.

    {
      "cniVersion": "1.1.0",
      "name": "mynet",
      "type": "bridge",
      "bridge": "cni0",
      "isDefaultGateway": true,
      "ipam": {
        "type": "host-local",
        "ranges": [
          [{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.99", "gateway": "10.1.0.1"}],
          [{"subnet": "2001:db8:1::/64"}]
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }
    }

An attachment gets one address of each set of ranges, that is of each list in `ranges`. Addresses are given out in turn
(the one behind the last given, around at the end), so a freed one rests as long as possible.

| key of `ipam` | default | |
| --- | --- | --- |
| ranges | | sets of ranges; each range has the next four keys |
| .subnet | needed | the network, /30 (IPv6: /126) or larger |
| .rangeStart | network's first | the first address to give |
| .rangeEnd | network's last | the last one, included; by default, in IPv4, the one before the broadcast address |
| .gateway | network's first | never given, returned with each address; in the subnet, or link-local (IPv6) |
| subnet, rangeStart, rangeEnd, gateway | | one more set, of one range, in the older way; nothing without subnet |
| routes | none | returned, host bits of dst left out: dst, gw, mtu, advmss, priority, table, scope |
| dataDir | /var/lib/cni/networks | where leases are kept; on a tmpfs they end with a reboot, as the containers do |
| resolvConf | none | a resolv.conf to return as the result's dns |

| beside it | |
| --- | --- |
| runtimeConfig.ipRanges (capability) | sets as in ranges, before the configuration's own |
| runtimeConfig.ips (capability), args.cni.ips, IP in CNI_ARGS | addresses asked for, all sources together |

A set is of one family, and no two ranges overlap. cniVersion below 0.3.0 has room for one set a family. Sets are
numbered in the order ipRanges, subnet, ranges; the number is part of a file's name (last_reserved_ip.0). An address
asked for ("10.1.0.7" or "10.1.0.7/24") must be one that a set may give, and a set gives one.

Leases are files in the reference's own format. cnikit.effects.leases describes them, and the index that makes an ADD
and a DEL cost the same among 20,000 leases as among none.

A lease whose container cannot exist any more is taken back, without help from the runtime, when a set has no other
address left, or when just that address is asked for. What is evidence for it is noted beside the lease by ADD:

| evidence | noted, and compared with |
| --- | --- |
| it is from before this boot | kernel.random.boot_id |
| its owner is gone, and 5 minutes have passed since the ADD | |
| - its network namespace is gone | inode number and cookie of CNI_NETNS; no thread is in it, it is mounted nowhere |
| - and its tag is gone | no link of the host's has the ifalias cni:NETWORK/CONTAINER/IFNAME |
| it never was a lease | a file that holds no owner, or what is no file |

All that cannot be told counts as alive: a lease that was found without such a note, written by the reference, is noted
as of this boot and can be told dead after the next one; and in the same boot nobody is told dead whose interface is of
another suite's plugin, nor from another network namespace than his, nor by who does not see all processes. Times of
files and clocks that can be set prove nothing, so none is looked at. An ADD of the same container and interface notes
everything anew. Machines must not share a dataDir: each takes the other's leases for those of another boot.

ADD     gives an interface that already holds an address the same one again (nobody DELs after a reboot), and
        releases what it took itself when a later set has none left
DEL     needs the network's name and dataDir; a fault in the ranges does not keep an address
CHECK   each set must have an address in prevResult, and the lease of each must be this container's
GC      removes the leases of all attachments not in cni.dev/valid-attachments, and what never was one; no list at all
        is refused. The list is believed, whatever is alive; cnitool's GC asks that leases of links with tags, and
        those of the last 5 minutes, be kept as well (docs/design.md, "Which attachments are alive")
STATUS  code 50 when no lease can be written. That a set has no address left is ADD's to say, by code 11: a failing
        STATUS takes the whole node out of service, and the next DEL may free one

Where it differs from the reference: GC and STATUS do their work. A repeated ADD returns the same address ("duplicate
allocation is not allowed" there). Leases end with their containers' lives, where the reference keeps them for ever. No
free address is code 11, a fault in the configuration 7, in CNI_ARGS 4. A gateway outside its subnet is refused. Two
addresses asked for by one ADD may come from two sets. An empty address file, as a crash leaves it, blocks nothing. DEL
of an unknown network makes no folder. CHECK looks at prevResult.
"""

from __future__ import annotations

from cnikit import ranges, result, spec
from cnikit.address import format_cidr, format_ip, parse_cidr, parse_ip
from cnikit.effects import files, leases
from cnikit.effects.leases import Store
from cnikit.errors import CniError, collected, invalid_config
from cnikit.main import main
from cnikit.plugin import Plugin
from cnikit.request import Attachment
from cnikit.result import DNS, IP, Result, Route
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnikit.fields import Fields
    from cnikit.ranges import Range, RangeSet
    from cnikit.request import Request

DATA_DIR = "/var/lib/cni/networks"

# Run by another suite's plugin, whose links have no tags (then these are no evidence), and which clears nothing away.
_ALONE = __name__ == "__main__"

# A free address is looked for this far before the folder is listed.
_NEAR = 64
# As many combinations of ranges are looked at by STATUS.
_CHOICES = 64


class Wanted(Value):
    """An address somebody asked for, and the key it came from."""

    address: bytes
    source: str
    code: int

    def refused(self, why: str) -> CniError:
        """Make the error that says why it cannot be had."""
        return CniError(self.code, f"{self.source}: {format_ip(self.address)} {why}")


def add(request: Request) -> Result:
    """Lease one address of each range set."""
    sets = _sets(request)
    wanted = _wanted(request, sets)
    ipam = request.config.object("ipam")
    routes = result.listed(Route, ipam, "routes")
    dns = _resolv_conf(ipam)
    with Store(_folder(request), create=True) as store:
        ips = _lease(store, request, sets, wanted)
    return Result((), ips, routes, dns)


def delete(request: Request) -> None:
    """Release all the attachment holds. Nothing there is success."""
    with Store(_folder(request)) as store:
        holder, addresses = store.find(request.attachment.container, request.attachment.ifname)
        store.release(holder, addresses)


def check(request: Request) -> None:
    """Fail unless prevResult's addresses are leased to the attachment, at least one of each set."""
    sets = _sets(request)
    prev = request.prev_result()
    if prev is None:
        raise invalid_config("prevResult", "is missing", "the runtime hands CHECK the result of ADD")
    addresses = [parse_cidr(ip.address)[0] for ip in prev.ips]
    with Store(_folder(request)) as store:
        for index, range_set in enumerate(sets):
            given = [address for address in addresses if ranges.holds(range_set, address)]
            if not given:
                raise CniError(
                    spec.CHECK_FAILED, f"prevResult.ips: there is no address of {ranges.describe(index, range_set)}"
                )
            for address in given:
                _check_lease(store, request, format_ip(address))


def _check_lease(store: Store, request: Request, address: str) -> None:
    container, ifname = request.attachment.container, request.attachment.ifname
    content = store.content(address)
    if content not in (leases.owner(container, ifname), leases.older_owner(container)):
        holder = "nobody" if store.is_free(address) else leases.describe(content)
        raise CniError(
            spec.CHECK_FAILED,
            f"{address} is leased to {holder}, not to container {container} {ifname}",
            f"the lease would be {store.folder}/{address}",
        )


def gc(request: Request) -> None:
    """Release what attachments hold that are not valid any more."""
    from cnikit import ownership

    valid = request.valid_attachments()
    containers = {container for container, _ in valid}
    faults = []
    with Store(_folder(request)) as store:
        held = list(store.leases().items())
        living = _living(request, store) if ownership.keeps_living(request) else ()
        for holder, addresses in held:
            container, ifname = leases.split(holder)
            # The older form does not say which interface it is for: any of the container keeps it.
            if (container, ifname) in valid or (not ifname and container in containers) or holder in living:
                continue
            try:
                store.release(holder, addresses)
            except CniError as e:
                faults.append(e)
        store.discard_foreign()
    if faults:
        raise collected(faults, f"GC of network {request.attachment.network}")


def _living(request: Request, store: Store) -> set[bytes]:
    """Return the owners whose attachments show signs of life."""
    from cnikit.effects import evidence

    now, network = leases.note(""), request.attachment.network
    tags = {owner: leases.tags(network, owner) for owner in store.leases()}
    linked = evidence.linked([tag for some in tags.values() for tag in some])
    young = {owner for owner in tags if evidence.is_young(store.note_of(owner), now)}
    return young | {owner for owner, some in tags.items() if not linked.isdisjoint(some)}


def status(request: Request) -> None:
    """Fail with code 50 when no lease can be written. A full set may have room again: that is ADD's to say."""
    if not _awaits_ranges(request):
        _sets(request)
    if fault := leases.write_fault(_folder(request)):
        raise CniError(spec.UNAVAILABLE, f"no lease can be written: {fault}", "ipam.dataDir says where leases are")


def expected(request: Request) -> Iterator[tuple[IP, ...]]:
    """Yield what an ADD may give: the first address of one range of each set, for a bridge has one of its own for each.

    No address is of ranges that come with an ADD, nor where there are too many choices to look at.
    """
    from itertools import product

    offered = request.config.object("capabilities").boolean("ipRanges")
    sets = () if offered or _awaits_ranges(request) else _sets(request)
    choices = 1
    for range_set in sets:
        choices *= len(range_set)
    if choices > _CHOICES:
        sets = ()
    yield from product(*([_ip(one.start, (one,)) for one in range_set] for range_set in sets))


def _folder(request: Request) -> str:
    return folder(request.config.object("ipam"), request.attachment.network)


def folder(ipam: Fields, network: str) -> str:
    """Return the folder of a network's leases, by what its configuration has under ipam. Raises CniError (7)."""
    data_dir = ipam.string("dataDir") or DATA_DIR
    if not data_dir.startswith("/"):
        raise ipam.invalid("dataDir", f"{data_dir!r} is not absolute")
    return f"{data_dir}/{network}"


def _sets(request: Request) -> tuple[RangeSet, ...]:
    config = request.config
    if not config.has("ipam"):
        raise config.invalid("ipam", "is missing")
    ipam = config.object("ipam")
    groups = _groups(config.object("runtimeConfig"), "ipRanges")
    if ipam.has("subnet"):
        groups.append((ipam.path, (ipam,)))
    return ranges.read_sets(groups + _groups(ipam, "ranges"), request.version)


def _groups(f: Fields, key: str) -> list[tuple[str, tuple[Fields, ...]]]:
    return [(f"{f.where(key)}[{i}]", group) for i, group in enumerate(f.lists(key))]


def _awaits_ranges(request: Request) -> bool:
    ipam = request.config.object("ipam")
    in_config = ipam.has("subnet") or ipam.lists("ranges") or request.config.object("runtimeConfig").has("ipRanges")
    return not in_config and request.config.object("capabilities").boolean("ipRanges")


def _wanted(request: Request, sets: tuple[RangeSet, ...]) -> dict[int, Wanted]:
    """Return the address asked for of each set, by the set's number."""
    chosen: dict[int, Wanted] = {}
    asked = _asked_for(request)
    if len(asked) > ranges.MOST:
        raise asked[-1].refused(f"is one too many, {ranges.MOST} is the most")
    for one in asked:
        index = next((i for i, range_set in enumerate(sets) if any(one.address in r for r in range_set)), -1)
        if index < 0:
            names = ", ".join(str(r) for range_set in sets for r in range_set)
            raise one.refused(f"is in none of the ranges {names}")
        if not ranges.holds(sets[index], one.address):
            raise one.refused(f"is the gateway of {ranges.describe(index, sets[index])}")
        other = chosen.setdefault(index, one)
        if other.address != one.address:
            raise one.refused(
                f"and {format_ip(other.address)} ({other.source}) are both of "
                f"{ranges.describe(index, sets[index])}, which gives one address"
            )
    return chosen


def _asked_for(request: Request) -> list[Wanted]:
    arguments = request.arguments()
    found = []
    if "IP" in arguments:
        found.append(_read_wanted(arguments["IP"], "CNI_ARGS: IP", spec.INVALID_ENVIRONMENT))
    for f in (request.config.object("args").object("cni"), request.config.object("runtimeConfig")):
        found += [
            _read_wanted(text, f"{f.where('ips')}[{i}]", spec.INVALID_CONFIG)
            for i, text in enumerate(f.strings("ips"))
            if text
        ]
    return found


def _read_wanted(text: str, source: str, code: int) -> Wanted:
    try:
        return Wanted(parse_cidr(text)[0] if "/" in text else parse_ip(text), source, code)
    except ValueError as e:
        raise CniError(code, f"{source}: {e}") from None


def _lease(store: Store, request: Request, sets: tuple[RangeSet, ...], wanted: dict[int, Wanted]) -> tuple[IP, ...]:
    container, ifname = request.attachment.container, request.attachment.ifname
    holder, note = leases.owner(container, ifname), leases.note("" if _ALONE else request.netns, request.cookie)
    former, addresses = store.find(container, ifname)
    held = [parse_ip(address) for address in addresses]
    if held:
        store.renew(former, note if former == holder else leases.note(""))
    ips = []
    new: list[str] = []
    try:
        for index, range_set in enumerate(sets):
            one = wanted.get(index)
            address = _held(held, range_set, one)
            if address is None:
                address = _free_one(store, index, range_set, one, request)
                store.reserve(format_ip(address), holder, index, note)
                new.append(format_ip(address))
            ips.append(_ip(address, range_set))
        if _ALONE:
            _take_over(request.attachment, [ip for ip in ips if ip.address.partition("/")[0] in new])
    except BaseException as e:
        try:
            store.release(holder, tuple(new))
        except CniError as left:
            if isinstance(e, CniError):
                e.details = "; ".join(filter(None, (e.details, f"not undone: {left}")))
        raise
    return tuple(ips)


def _take_over(attachment: Attachment, ips: list[IP]) -> None:
    """Clear away what dead owners left under new addresses: no other plugin of ours may be called. Raises CniError.

    Under an address that the attachment had before is what plugins after this one may have made for it.
    """
    from cnikit.effects.kernel import World, has_own_tables

    with World() as world:
        if ips and has_own_tables(world):
            from cnikit import leftovers

            leftovers.clear(attachment, ips, world)


def _ip(address: bytes, range_set: RangeSet) -> IP:
    of: Range = next(r for r in range_set if address in r)
    return IP(format_cidr(address, of.length), format_ip(of.gateway))


def _held(held: list[bytes], range_set: RangeSet, wanted: Wanted | None) -> bytes | None:
    """Return the address the attachment already holds of a set, None when there is none."""
    mine = [address for address in held if ranges.holds(range_set, address)]
    if wanted is None or not mine:
        return mine[0] if mine else None
    if wanted.address not in mine:
        raise wanted.refused(f"cannot be added, this interface holds {format_ip(mine[0])} since an earlier ADD; DEL it")
    return wanted.address


def _free_one(store: Store, index: int, range_set: RangeSet, wanted: Wanted | None, request: Request) -> bytes:
    """Return the address to give: the one asked for, or the next that is free, of the living or of the dead."""
    address = _free(store, index, range_set, wanted)
    if address is None:
        _reclaim(store, request.attachment.network)
        address = _free(store, index, range_set, wanted)
    if address is not None:
        return address
    if wanted is None:
        raise _exhausted(index, range_set, request)
    text = format_ip(wanted.address)
    raise CniError(
        spec.TRY_AGAIN,
        f"{wanted.source}: {text} is leased to {leases.describe(store.content(text))}",
        _how_to_free(request),
    )


def _reclaim(store: Store, network: str) -> None:
    """Take back what the dead hold, and before that what they left in the kernel under their addresses."""
    reclaimable = store.reclaimable(network)
    extinct = [Attachment(network, *leases.split(owner)) for owner in reclaimable if owner]
    if extinct:
        from cnikit import leftovers
        from cnikit.effects.kernel import World, may_look

        with World() as world:
            if may_look(world):
                leftovers.clear_extinct(extinct, world)
    store.reclaim(reclaimable)


def _free(store: Store, index: int, range_set: RangeSet, wanted: Wanted | None) -> bytes | None:
    if wanted is None:
        return _next_free(store, range_set, store.last_reserved(index))
    return wanted.address if store.is_free(format_ip(wanted.address)) else None


def _next_free(store: Store, range_set: RangeSet, pointer: bytes | None) -> bytes | None:
    near = ranges.following(range_set, pointer)
    for _, address in zip(range(_NEAR), near, strict=False):
        if store.is_free(format_ip(address)):
            return address
    names = set(store.listing())
    for address in ranges.following(range_set, pointer):
        if format_ip(address) not in names:
            return address
    return None


def _exhausted(index: int, range_set: RangeSet, request: Request) -> CniError:
    return CniError(
        spec.TRY_AGAIN,
        f"{ranges.describe(index, range_set)}: all {ranges.size(range_set)} addresses are in use",
        _how_to_free(request),
    )


def _how_to_free(request: Request) -> str:
    return f"`cnitool gc {request.attachment.network}` frees those of containers that are gone"


def _resolv_conf(ipam: Fields) -> DNS:
    path = ipam.string("resolvConf")
    if not path:
        return DNS()
    try:
        text = files.read(path).decode("utf-8", "replace")
    except OSError as e:
        raise ipam.invalid("resolvConf", f"{path}: {e.strerror}") from None
    return _parse_resolv_conf(text)


def _parse_resolv_conf(text: str) -> DNS:
    nameservers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    domain = ""
    for line in text.splitlines():
        keyword, *values = line.split() or [""]
        if not values:
            continue
        if keyword == "nameserver":
            nameservers.append(values[0])
        elif keyword == "domain":
            domain = values[0]
        elif keyword == "search":
            search += values
        elif keyword == "options":
            options += values
    return DNS(tuple(nameservers), domain, tuple(search), tuple(options))


PLUGIN = Plugin("host-local", add=add, delete=delete, check=check, gc=gc, status=status, expected=expected)

if __name__ == "__main__":
    main(PLUGIN)
