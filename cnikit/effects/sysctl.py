"""Sysctls, as files of a proc. Names are written with slashes: an interface's name may hold dots."""

from __future__ import annotations

import posix

from cnikit.effects import files
from cnikit.effects.mounted import mounted

_proc = -1  # for the network's, once one is needed: files of a proc are those of the namespace that one is in


def is_net(name: str) -> bool:
    """Tell whether a name is one of the network's, and no way out to other files."""
    top, *parts = name.split("/")
    return top == "net" and bool(parts) and not {"", ".", ".."} & {*parts}


def read(name: str) -> str:
    """Return the value without its newline. Raises OSError."""
    path, folder = _place(name)
    return files.read(path, folder=folder).decode().rstrip("\n")


def write(name: str, value: str) -> None:
    """Set the value. Raises OSError.

    As a line, for the kernel does nothing when it is given nothing: so what can be empty can be emptied.
    """
    path, folder = _place(name)
    fd = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC, dir_fd=folder)
    try:
        posix.write(fd, f"{value}\n".encode())
    finally:
        posix.close(fd)


def _place(name: str) -> tuple[str, int | None]:
    """Return the path of a sysctl's file, and the folder that it starts from."""
    global _proc
    if not is_net(name):
        return f"/proc/sys/{name}", None
    if _proc < 0:
        _proc, _ = mounted("proc")
    return f"sys/{name}", _proc
