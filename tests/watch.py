"""What this process does to the outside while code is watched: to files by name, and by other processes.

An audit hook (PEP 578) is told before the interpreter does it, and by raising an error keeps it from being done. So
code can be given the worst names there are, as root, on any machine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PROCESSES = ("os.posix_spawn", "os.exec", "os.fork", "os.system", "os.spawn", "subprocess.Popen", "pty.spawn")
# Event, and which of its arguments are paths. What only looks (stat, access, readlink) is no event.
FILES = {
    "open": (0,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.link": (0, 1),
    "os.listdir": (0,),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.scandir": (0,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.utime": (0,),
}


class Watch:
    """What is allowed, and what was done all the same.

    may: tells of a path whether it may be touched. It is not when it lies outside home, but that is no trespass.
    programs: tells what may be executed. It is not, either.
    """

    def __init__(self, home: str, may: Callable[[str], bool], programs: Callable[[str], bool]) -> None:
        self._home = home
        self._may = may
        self._programs = programs
        self.trespasses: list[str] = []

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take notice of an event, and refuse it if need be."""
        if event in PROCESSES:
            if not (event == "os.posix_spawn" and self._programs(str(arguments[0]))):
                self.trespasses.append(f"{event} {arguments[0]!r}")
            raise PermissionError(1, "Operation not permitted")
        # Something open already is given by its number.
        paths = [arguments[place] for place in FILES.get(event, ()) if isinstance(arguments[place], str | bytes)]
        self.trespasses += [f"{event} {path!r}" for path in map(os.fsdecode, paths) if not self._may(path)]
        if not all(f"{os.path.normpath(os.fsdecode(path))}/".startswith(f"{self._home}/") for path in paths):
            raise PermissionError(1, "Operation not permitted")


_watching: list[Watch] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching:
        _watching[-1].see(event, arguments)


sys.addaudithook(_hook)  # for good: there is no taking one away


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Watch what is done."""
    _watching.append(watch)
    try:
        yield
    finally:
        _watching.pop()
