"""strace around a call of an executable: what it asks of the kernel, and a place in that to kill it or to have it fail.

A place is a system call by its name and its ordinal among those of that name, from 1: so strace counts them. A signal
comes as the call begins, and a call that begins with SIGKILL is not made. So who is killed at a call is killed right
after the one before it. A call that is made to fail is not made either.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

# What only looks. strace does not always know a netlink message by its name: get link, address, route and rule of
# rtnetlink; a chain, rules and an element of nftables; the entries of conntrack.
_READING = re.compile(r"nlmsg_type=(?:\S*_GET|0x(?:12|16|1a|22|52|a04|a07|a0d|101)\b)")
_CHANGING = ("mkdir", "rename", "unlink", "symlink", "ftruncate", "utimensat", "flock")


class Syscall(NamedTuple):
    """A system call as strace shows it, and which one of its name it is."""

    name: str
    ordinal: int
    text: str

    def likeness(self) -> str:
        """Return what it has in common with the same call of another time: no number, nor what has one in it."""
        asked, _, _ = self.text.rpartition(" = ")
        return re.sub(r"[\da-f.:]*\d[\da-f.:]*", "#", asked.partition('"\\x')[0])[:150]


class Trace:
    """Where strace writes what one call of an executable does."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def around(self, *options: str) -> list[str]:
        """Return the command line that stands in front of the executable's."""
        return ["strace", "-qq", "-s", "100", "-o", str(self.file), *options]

    def killing(self, place: Syscall) -> list[str]:
        """Return the one that kills it there."""
        return self.around("-e", f"inject={place.name}:signal=SIGKILL:when={place.ordinal}")

    def failing(self, place: Syscall, errno: str) -> list[str]:
        """Return the one that has this call fail."""
        return self.around("-e", f"inject={place.name}:error={errno}:when={place.ordinal}")

    def calls(self) -> list[Syscall]:
        """Return what it did, in order, but for what the kernel had it begin anew."""
        counted: Counter[str] = Counter()
        found = []
        for line in self.file.read_text(errors="replace").splitlines():
            match = re.match(r"(\w+)\(", line)
            if match and "= ? ERESTART" not in line:
                name = match[1]
                counted[name] += 1
                found.append(Syscall(name, counted[name], line))
        return found


def begun(calls: list[Syscall]) -> int:
    """Return where an executable has been started and begins to work: it reads what it is to do."""
    return next(i for i, call in enumerate(calls) if call.text.startswith("read(0,"))


def is_change(call: Syscall) -> bool:
    """Tell whether a call changes something outside of its process, a lock taken and a result told included."""
    if call.name == "sendto":
        return "nlmsg_type=" in call.text and not _READING.search(call.text)
    if call.name == "openat":
        return "O_CREAT" in call.text
    return call.name in _CHANGING or call.name == "write"


def changes(calls: list[Syscall]) -> list[int]:
    """Return the places of the calls that change something."""
    return [i for i, call in enumerate(calls) if i > begun(calls) and is_change(call)]
