"""Whether the container of a lease can still exist, by what was noted when it got its address.

A note is BOOT.HOST.NETNS.SINCE_COOKIE (cnikit.effects.leases.note). A container is extinct when one of these holds:

* The boot is not this one.
* A grace period is over, and there is no sign of life: no thread is in its network namespace, it is mounted nowhere,
  and no link of the host's has the attachment's tag. This is asked only where the answer can be known: the interface
  is one of ours, which has a tagged link as long as it lives; the lease was taken in the network namespace we are in;
  and we see all processes of the machine.

The inode number of a namespace that is gone is given to the next one, so on a busy node most are taken. A namespace
that has the number is entered and asked for its cookie (SO_NETNS_COOKIE), which no other has in the same boot. Kernels
before 5.14 have none, nor have older notes: there it counts as the container's.

Whatever cannot be told is taken for alive. No time of a file and no clock that can be set is looked at.
"""

from __future__ import annotations

import posix

from cnikit import ownership
from cnikit.effects import files, netns
from cnikit.effects.netlink import NetlinkError, Socket
from cnikit.errors import CniError
from cnikit.netlink import rtnetlink
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

GRACE = 300  # seconds, in which an ADD that is not finished has its link, or has been given up
FIRST_PID_NAMESPACE = 0xEFFFFFFC  # linux/proc_ns.h: PROC_PID_INIT_INO
ENODEV = 19
_TOGETHER = 16  # links asked for at a time: an answer takes 4 KiB of the socket's room


class Note(Value):
    """A note, read."""

    boot: str
    host: int  # inode numbers of network namespaces
    netns: int  # 0 when not known, and when the interface is another suite's
    since: int  # seconds since boot
    cookie: int  # of the second namespace; 0 when not known


def parse(note: str) -> Note | None:
    """Read a note, None when it is none.

    Builds that know no cookie read SINCE_COOKIE as one number of hex digits: a later moment, so they wait longer.
    """
    boot, *rest = note.split(".")
    try:
        host, netns, last = rest
        since, _, cookie = last.partition("_")
        numbers = [int(part, 16) for part in (host, netns, since, cookie or "0")]
    except ValueError:
        return None
    return Note(boot, *numbers) if len(boot) == 8 else None


def is_young(note: str, now: str) -> bool:
    """Tell whether a lease was taken within the grace period: its ADD may not be finished, nor have a link yet."""
    then, present = parse(note), parse(now)
    return bool(then and present and then.boot == present.boot and present.since - then.since <= GRACE)


def extinct(noted: Iterable[tuple[bytes, tuple[str, ...], str]], now: str) -> list[bytes]:
    """Return those whose container cannot exist; of each is given what is returned, its tags and its note.

    now: what would be noted at this moment. Raises CniError (100).
    """
    present = parse(now)
    if present is None:
        return []
    gone: list[bytes] = []
    silent: list[tuple[bytes, tuple[str, ...], Note]] = []
    for owner, tags, note in noted:
        then = parse(note)
        if then is None:
            continue
        if then.boot != present.boot:
            gone.append(owner)
        elif then.netns and then.host == present.host and present.since - then.since > GRACE:
            silent.append((owner, tags, then))
    inhabited = namespaces() if silent else None
    if inhabited is None:
        return gone
    alive = linked([tag for _, tags, _ in silent for tag in tags])
    silent = [one for one in silent if alive.isdisjoint(one[1])]
    return gone + [owner for owner, _, then in silent if not _is_there(then, inhabited)]


def _is_there(then: Note, inhabited: dict[int, str]) -> bool:
    """Tell whether the container's namespace may be one of these."""
    place = inhabited.get(then.netns)
    if place is None:
        return False
    cookie = _cookie(place, then.netns) if then.cookie else 0
    return cookie in (0, then.cookie)


def _cookie(place: str, inode: int) -> int:
    """Return the cookie of the namespace with that inode number, 0 when it cannot be told."""
    try:
        fd = netns.open_netns(place)
        try:
            if posix.fstat(fd).st_ino != inode:
                return 0  # Another has come there since.
            with netns.Inside(fd):
                socket = Socket()
            try:
                return socket.namespace()
            finally:
                socket.close()
        finally:
            posix.close(fd)
    except (CniError, OSError):
        return 0


def linked(tags: Collection[str]) -> set[str]:
    """Return which of these tags a link of the host's has. Raises CniError (100).

    A dump that was interrupted by a change proves nothing dead: what it lacks is looked up by its host end's names.
    """
    socket = Socket()
    try:
        listing = socket.listed(rtnetlink.dump_links())
        found = {rtnetlink.link(body).alias for body in listing.bodies}.intersection(tags)
        if listing.interrupted or listing.cut:
            found.update(_looked_up(socket, [tag for tag in tags if tag not in found]))
        return found
    finally:
        socket.close()


def _looked_up(socket: Socket, tags: list[str]) -> Iterator[str]:
    names = [(tag, name) for tag in tags for name in ownership.names_of(tag)]
    for start in range(0, len(names), _TOGETHER):
        asked = names[start : start + _TOGETHER]
        for (tag, _), answer in zip(
            asked, socket.exchange([rtnetlink.get_link(name) for _, name in asked]), strict=True
        ):
            if answer.errno == 0 and rtnetlink.link(answer.body).alias == tag:
                yield tag
            elif answer.errno not in (0, ENODEV):
                raise NetlinkError(answer.errno, answer.why)


def namespaces(proc: str = "/proc") -> dict[int, str] | None:
    """Return the network namespaces that are mounted or have threads: a path to each by its inode number.

    None when not all are seen.
    """
    found: dict[int, str] = {}
    views: set[tuple[int, ...]] = set()  # mountinfo has what is mounted in a mount namespace, below a root
    try:
        if posix.stat(f"{proc}/self/ns/pid").st_ino != FIRST_PID_NAMESPACE:
            return None
        # Ourselves first: by then other processes, whose mounts are mostly the same, may have ended.
        for pid in ("self", *filter(str.isdecimal, files.listing(proc))):
            if pid == "1":
                continue  # In no container; and it may have capabilities that keep us from looking.
            try:
                found.update(_inhabited(f"{proc}/{pid}/task"))  # a better way in than a mount, which may be covered
                view_of, root = posix.stat(f"{proc}/{pid}/ns/mnt"), posix.stat(f"{proc}/{pid}/root")
                view = (view_of.st_ino, root.st_dev, root.st_ino)
                if view not in views:
                    mounted = {inode: f"{proc}/{pid}/root{path}" for inode, path in mounts(f"{proc}/{pid}")}
                    found = {**mounted, **found}
                    views.add(view)
            except (FileNotFoundError, ProcessLookupError):
                continue  # It has just ended.
    except (OSError, ValueError):
        return None
    return found


def _inhabited(tasks: str) -> Iterator[tuple[int, str]]:
    """Yield the network namespaces that the threads of a process are in."""
    for task in files.listing(tasks):
        place = f"{tasks}/{task}/ns/net"
        try:
            yield posix.stat(place).st_ino, place
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has just ended.


def mounts(process: str) -> Iterator[tuple[int, str]]:
    """Yield the network namespaces that are mounted for a process ("/proc/4711"), and where.

    Their root is "net:[4026532567]" (proc_pid_mountinfo(5)). Raises OSError, ValueError.
    """
    for line in files.lines(f"{process}/mountinfo"):
        _, _, _, root, place, *_ = line.split(b" ")
        if root.startswith(b"net:[") and root.endswith(b"]"):
            # Blanks and the like are in octal.
            shown = place.decode("utf-8", "surrogateescape")
            first, *escaped = shown.split("\\")
            shown = first + "".join(chr(int(part[:3], 8)) + part[3:] for part in escaped)
            yield int(root[5:-1]), shown
