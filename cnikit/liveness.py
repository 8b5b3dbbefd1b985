"""Which attachments of a network are alive: what the kernel, the leases and the cached results say together.

A cache knows the attachments of its own runtime, and of these only the ones whose ADD has ended. The kernel and the
leases know all, so they decide. An attachment is

alive   when a link of the host's has its tag, or the veth that its cached result lists is there, or its interface is in
        its namespace, or its lease is younger than evidence.GRACE: its ADD may be under way
dead    when its lease is of a container that cannot exist any more (cnikit.effects.evidence), or its ADD has ended, the
        path of its namespace is gone, nor is it mounted elsewhere, and it has no such link, or nothing is left of it
        but elements of nftables whose tag says that it had one
unknown otherwise: its namespace is not known, not all processes are to be seen, it was attached from another network
        namespace, its cached result cannot be read

What is dead may be freed, and nothing else. A tag that is too long holds hashes: then leases and cached results tell
whose it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cnikit import leftovers, ownership, request, result, ruleset, spec
from cnikit.attachments import Attachment, Cached, Unreadable
from cnikit.effects import evidence, files, leases, netns
from cnikit.effects.kernel import World, may_look
from cnikit.errors import CniError
from cnikit.fields import Fields
from cnikit.ipam import host_local
from cnikit.netlink.rtnetlink import Link
from cnikit.networks import Network
from cnikit.objects import CONTAINER, HOST

ALIVE, DEAD, UNKNOWN = "alive", "dead", "unknown"

_Key = tuple[str, str]  # container and interface

_YOUNG = "its address was leased in the last minutes"


@dataclass(frozen=True)
class Standing:
    """An attachment to a network, whether it is alive, and what says so."""

    attachment: Attachment
    state: str
    why: str
    cached: Cached | None = None
    notes: tuple[str, ...] = ()  # of its leases
    is_sure: bool = True  # that there is such an attachment: False if only the name of a cached result says so


def survey(network: Network, cached: Iterable[Cached], unreadable: Iterable[Unreadable]) -> tuple[Standing, ...]:
    """Return all attachments to a network that are known: by the cache's entries, by links, by leases.

    Nothing is changed. Raises CniError.
    """
    entries = {entry.attachment.key: entry for entry in cached}
    doubts = [(one.candidates(network.name), f"{one.file}: {one.fault}") for one in unreadable]
    with World() as world:
        signs = _Signs(network.name, _lease_folders(network), world)
        keys = dict.fromkeys((*entries, *signs.tagged_keys(), *signs.leased_keys()))
        found = {key: signs.standing(key, entries.get(key)) for key in keys}
        for candidates, why in doubts:
            likely = [key for key in candidates if key in found]
            found |= {key: signs.standing(key, None, why) for key in likely or candidates}
    return tuple(found[key] for key in sorted(found))


def has_changed(network: Network, standing: Standing) -> bool:
    """Tell whether something was attached, or is being, under the same name since one was found dead."""
    with World() as world:
        if _tagged(_tags(network.name, standing.attachment.key), world):
            return True
    owners = _owners(standing.attachment.key)
    noted = [leases.Store(folder).noted(owner) for folder in _lease_folders(network) for owner in owners]
    return sorted(note for note, _ in noted if note) != sorted(standing.notes)


def find_interface(attachment: Attachment, added: result.Result) -> bool:
    """Make sure that the container's interface is the one that was added: the netns may be another container's by now.

    Return whether the result tells it from others. Raises FileNotFoundError when the netns is gone, CniError (101) when
    the interface is not there or not the same.
    """
    told = False
    with World(netns.open_netns(attachment.netns)) as world:
        for listed in added.interfaces:
            if not listed.sandbox or listed.name != attachment.ifname:
                continue
            link = world[CONTAINER].link(listed.name)
            if link is None:
                raise CniError(spec.CHECK_FAILED, f"{listed.name} is not in {attachment.netns}", "DEL and ADD make it")
            if listed.mac and link.mac != listed.mac.lower():
                why = f"{listed.name} in {attachment.netns} has the MAC address {link.mac}, not {listed.mac}"
                raise CniError(spec.CHECK_FAILED, why, "it may be another container's")
            # Who has an address after another may have its MAC address too.
            ends = [other.name for other in added.interfaces if not other.sandbox]
            peer = world[HOST].link_at(link.peer) if link.kind == "veth" else None
            if peer and peer.peer == link.index and ends and peer.name not in ends:
                why = f"the other end of {listed.name} in {attachment.netns} is {peer.name}, not {ends[-1]}"
                raise CniError(spec.CHECK_FAILED, why, "it may be another container's")
            told = told or bool(listed.mac)
    return told


def host_end(network: str, attachment: Attachment, added: result.Result) -> Link | None:
    """Return the host's end of an attachment's interface: tagged, or as the result lists it; None where none is."""
    tags = _tags(network, attachment.key)
    with World() as world:
        return _tagged(tags, world) or _listed_end(added, tags, world)


class _Signs:
    """What the kernel and the leases show of a network."""

    def __init__(self, network: str, folders: Sequence[str], world: World) -> None:
        self._network = network
        self._world = world
        self._tags = {link.alias: link for link in world[HOST].links() if link.alias}
        self._left = _owners_of_elements(network, world)
        self._now = leases.note("")
        self._notes: dict[_Key, list[str]] = {}
        self._noted_at: dict[_Key, int] = {}
        self._extinct: set[_Key] = set()
        self._mounted: dict[str, set[int]] | None = None
        self._is_mounted_known = False
        for folder in folders:
            self._look_into(folder)

    def _look_into(self, folder: str) -> None:
        """Read the leases of a folder."""
        found = leases.Store(folder).all_noted()
        noted = [(owner, _tags(self._network, _key(owner)), note) for owner, (note, _) in found.items()]
        gone = set(evidence.extinct(noted, self._now))
        for owner, (note, at) in found.items():
            key = _key(owner)
            self._noted_at[key] = max(at, self._noted_at.get(key, 0))
            if owner in gone and key not in self._notes:
                self._extinct.add(key)
            elif owner not in gone:
                self._extinct.discard(key)
            self._notes.setdefault(key, []).append(note)

    def tagged_keys(self) -> Iterator[_Key]:
        """Return the attachments of which the tag of a link, or of an element, says in full whose it is."""
        for tag in (*self._tags, *self._left):
            container, _, ifname = tag.removeprefix(f"cni:{self._network}/").partition("/")
            is_named = spec.is_name(container) and not spec.ifname_fault(ifname)
            if is_named and tag in _tags(self._network, (container, ifname)):
                yield container, ifname

    def leased_keys(self) -> Iterator[_Key]:
        """Return the attachments that have leases."""
        return (key for key in self._notes if not spec.ifname_fault(key[1]))

    def standing(self, key: _Key, cached: Cached | None, doubt: str = "") -> Standing:
        """Judge an attachment. doubt says why nothing more is known of it, where there might be."""
        if cached and cached.bare:
            doubt = "only its result is cached, as by libcni before 0.8"
        attachment = cached.attachment if cached else Attachment(*key)
        notes = tuple(note for note in self._notes.get(key, ()) if note)
        is_sure = not doubt or key in self._notes or self._linked(_tags(self._network, key)) is not None
        return Standing(attachment, *self._judged(key, cached, doubt), cached, notes, is_sure)

    def _judged(self, key: _Key, cached: Cached | None, doubt: str) -> tuple[str, str]:
        tags = _tags(self._network, key)
        # A list of links that changed meanwhile may lack one.
        link = self._linked(tags) or _tagged(tags, self._world)
        added = _parsed(cached) if cached and link is None else result.Result()
        link = link or _listed_end(added, tags, self._world)
        if link:
            return ALIVE, f"{link.name} is its interface's host end"
        if key in self._extinct:
            return DEAD, self._end(key)
        if cached and not doubt:
            return self._judged_by_path(key, cached, added)
        if self._is_young(key):
            return ALIVE, _YOUNG
        if not doubt and key not in self._notes:
            return DEAD, "its interface is gone"
        return UNKNOWN, doubt or "it holds an address, and nothing tells whether its container is there"

    def _linked(self, tags: tuple[str, ...]) -> Link | None:
        return next((self._tags[tag] for tag in tags if tag in self._tags), None)

    def _end(self, key: _Key) -> str:
        boots = {note.partition(".")[0] for note in self._notes[key]}
        before = self._now.partition(".")[0] not in boots
        return "its address was leased before this boot" if before else "its network namespace is gone"

    def _judged_by_path(self, key: _Key, cached: Cached, added: result.Result) -> tuple[str, str]:
        state, why = self._said_by_path(key, cached.attachment, added)
        # What was leased before the result was cached is of an ADD that has ended.
        may_be_made = self._noted_at.get(key, 0) > cached.written and self._is_young(key)
        return (ALIVE, _YOUNG) if state != ALIVE and may_be_made else (state, why)

    def _said_by_path(self, key: _Key, attachment: Attachment, added: result.Result) -> tuple[str, str]:
        if self._is_from_elsewhere(key):
            return UNKNOWN, "it was attached from another network namespace than this one"
        path = attachment.netns
        if not path:
            return UNKNOWN, "nothing tells its network namespace"
        try:
            is_there = find_interface(attachment, added)
        except FileNotFoundError:
            return self._said_by_absence(key, path)
        except CniError as e:
            return UNKNOWN, str(e)
        return (ALIVE, f"its interface is in {path}") if is_there else (UNKNOWN, f"nothing tells whose {path} is")

    def _said_by_absence(self, key: _Key, path: str) -> tuple[str, str]:
        everywhere = self._where_namespaces_are()
        if everywhere is None:
            return UNKNOWN, f"{path} is gone, and not all processes can be seen from here"
        mounted = everywhere.get(path, set()) | everywhere.get(os.path.realpath(path), set())
        noted = {note.netns for note in map(evidence.parse, self._notes.get(key, ())) if note and note.netns}
        # Another container's may have the same path in another mount namespace.
        if mounted & noted if noted else mounted:
            return UNKNOWN, f"{path} is mounted in another mount namespace"
        return DEAD, f"{path} is gone"

    def _is_young(self, key: _Key) -> bool:
        """Tell whether it was leased an address so lately that its ADD may be under way."""
        return any(evidence.is_young(note, self._now) for note in self._notes.get(key, ()))

    def _is_from_elsewhere(self, key: _Key) -> bool:
        """Tell whether it was leased its address in another network namespace, where its links would be."""
        now = evidence.parse(self._now)
        then = [note for note in map(evidence.parse, self._notes.get(key, ())) if note]
        return now is not None and any(note.boot == now.boot and note.host != now.host for note in then)

    def _where_namespaces_are(self) -> dict[str, set[int]] | None:
        """Return the network namespaces mounted at each path; None when not all processes are seen."""
        if not self._is_mounted_known:
            self._is_mounted_known = True
            self._mounted = _mounted() if evidence.namespaces() is not None else None
        return self._mounted


def _owners_of_elements(network: str, world: World) -> set[str]:
    """Return the tags of a network's attachments that elements of nftables have."""
    there = [table for table in leftovers.TABLES if may_look(world) and ruleset.has_table(table, world)]
    found = [element for table in there for element in world[HOST].elements(table, f"cni:{network}/")]
    return {tag for element in found for tag in (element.comment, element.also)}


def _lease_folders(network: Network) -> list[str]:
    """Return where host-local has the leases of a network."""
    ipams = [Fields(dict(plugin.config)).object("ipam") for plugin in network.plugins]
    folders = (host_local.folder(ipam, network.name) for ipam in ipams if ipam.string("type") == "host-local")
    return list(dict.fromkeys(folders))


def has_leases(network: Network) -> bool:
    """Tell whether the network's addresses are leased by host-local, whose files say who has one."""
    return bool(_lease_folders(network))


def _owners(key: _Key) -> tuple[bytes, bytes]:
    return leases.owner(*key), leases.older_owner(key[0])


def _key(owner: bytes) -> _Key:
    """Return whose a lease is. The older form does not say which interface it is for, and any will do."""
    container, ifname = leases.split(owner)
    return container, ifname or "eth0"


def _tags(network: str, key: _Key) -> tuple[str, ...]:
    return ownership.tags(request.Attachment(network, *key))


def _tagged(tags: tuple[str, ...], world: World) -> Link | None:
    """Return the link that has one of an attachment's tags, looked up by the names it may have."""
    links = (world[HOST].link(name) for tag in tags for name in ownership.names_of(tag))
    return next((link for link in links if link and link.alias in tags), None)


def _listed_end(added: result.Result, tags: tuple[str, ...], world: World) -> Link | None:
    """Return the veth that a result lists as the host's, if it is there: by name and MAC address, and no other's."""
    for listed in added.interfaces:
        link = None if listed.sandbox or spec.ifname_fault(listed.name) else world[HOST].link(listed.name)
        is_same = link and link.kind == "veth" and listed.mac.lower() in ("", link.mac)
        if link and is_same and (link.alias in tags or not link.alias.startswith("cni:")):
            return link
    return None


def _parsed(cached: Cached) -> result.Result:
    try:
        return result.parse(Fields(cached.result), spec.NEWEST)
    except CniError:
        return result.Result()


def _mounted(proc: str = "/proc") -> dict[str, set[int]] | None:
    """Return the network namespaces mounted at each path, in whatever mount namespace; None when not all are seen."""
    found: dict[str, set[int]] = {}
    views: set[int] = set()
    try:
        for pid in filter(str.isdecimal, files.listing(proc)):
            if pid == "1":
                continue  # As in evidence.namespaces.
            try:
                view = os.stat(f"{proc}/{pid}/ns/mnt").st_ino
                if view not in views:
                    for inode, path in evidence.mounts(f"{proc}/{pid}"):
                        found.setdefault(path, set()).add(inode)
                    views.add(view)
            except (FileNotFoundError, ProcessLookupError):
                continue  # It has just ended.
    except (OSError, ValueError):
        return None
    return found
