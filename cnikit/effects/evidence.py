"""Whether the container of a lease can still exist, by what was noted when it got its address.

A note is BOOT.HOST.NETNS.SINCE (cnikit.effects.leases.note). A container is extinct when one of these holds:

* The boot is not this one.
* A grace period is over, and there is no sign of life: no thread is in its network namespace, it is mounted nowhere,
  and no link of the host's has the attachment's tag. This is asked only where the answer can be known: the interface
  is one of ours, which has a tagged link as long as it lives; the lease was taken in the network namespace we are in;
  and we see all processes of the machine.

Whatever cannot be told is taken for alive. No time of a file and no clock that can be set is looked at.
"""

from __future__ import annotations

import posix

from cnikit.effects import files
from cnikit.effects.netlink import Socket
from cnikit.netlink import rtnetlink
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

GRACE = 300  # seconds, in which an ADD that is not finished has its link, or has been given up
FIRST_PID_NAMESPACE = 0xEFFFFFFC  # linux/proc_ns.h: PROC_PID_INIT_INO
_MOST = 64 << 20  # bytes of mountinfo; a mount takes about a hundred


class Note(Value):
    """A note, read."""

    boot: str
    host: int  # inode numbers of network namespaces
    netns: int  # 0 when not known, and when the interface is another suite's
    since: int  # seconds since boot


def parse(note: str) -> Note | None:
    """Read a note, None when it is none."""
    boot, *rest = note.split(".")
    try:
        host, netns, since = (int(part, 16) for part in rest)
    except ValueError:
        return None
    return Note(boot, host, netns, since) if len(boot) == 8 else None


def extinct(noted: Iterable[tuple[bytes, tuple[str, ...], str]], now: str) -> list[bytes]:
    """Return those whose container cannot exist; of each is given what is returned, its tags and its note.

    now: what would be noted at this moment. Raises CniError (100).
    """
    present = parse(now)
    if present is None:
        return []
    gone: list[bytes] = []
    silent: list[tuple[bytes, tuple[str, ...], int]] = []
    for owner, tags, note in noted:
        then = parse(note)
        if then is None:
            continue
        if then.boot != present.boot:
            gone.append(owner)
        elif then.netns and then.host == present.host and present.since - then.since > GRACE:
            silent.append((owner, tags, then.netns))
    inhabited = namespaces() if silent else None
    if inhabited is None:
        return gone
    present_tags = _tags()
    return gone + [owner for owner, tags, netns in silent if netns not in inhabited and present_tags.isdisjoint(tags)]


def _tags() -> set[str]:
    socket = Socket()
    try:
        return {rtnetlink.link(body).alias for body in socket.dump(rtnetlink.dump_links())}
    finally:
        socket.close()


def namespaces(proc: str = "/proc") -> set[int] | None:
    """Return the inode numbers of network namespaces that are mounted or have threads, None when not all are seen."""
    found: set[int] = set()
    views: set[tuple[int, ...]] = set()  # mountinfo has what is mounted in a mount namespace, below a root
    try:
        if posix.stat(f"{proc}/self/ns/pid").st_ino != FIRST_PID_NAMESPACE:
            return None
        for pid in filter(str.isdecimal, posix.listdir(proc)):
            if pid == "1":
                continue  # In no container; and it may have capabilities that keep us from looking.
            try:
                found |= _inhabited(f"{proc}/{pid}/task")
                mounts, root = posix.stat(f"{proc}/{pid}/ns/mnt"), posix.stat(f"{proc}/{pid}/root")
                view = (mounts.st_ino, root.st_dev, root.st_ino)
                if view not in views:
                    found |= _mounted(f"{proc}/{pid}/mountinfo")
                    views.add(view)
            except (FileNotFoundError, ProcessLookupError):
                continue  # It has just ended.
    except (OSError, ValueError):
        return None
    return found


def _inhabited(tasks: str) -> set[int]:
    """Return the network namespaces that the threads of a process are in."""
    found = set()
    for task in posix.listdir(tasks):
        try:
            found.add(posix.stat(f"{tasks}/{task}/ns/net").st_ino)
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has just ended.
    return found


def _mounted(mountinfo: str) -> set[int]:
    """Return the network namespaces that are mounted: their root is "net:[4026532567]" (proc_pid_mountinfo(5))."""
    text = files.read(mountinfo, most=_MOST)
    if len(text) >= _MOST:
        raise ValueError(f"{mountinfo} is too long")
    words = text.split()
    return {int(word[5:-1]) for word in words if word.startswith(b"net:[") and word.endswith(b"]")}
