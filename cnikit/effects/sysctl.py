"""Sysctls, as files under /proc/sys. Names are written with slashes: an interface's name may hold dots."""

from __future__ import annotations

import posix

from cnikit.effects import files


def is_net(name: str) -> bool:
    """Tell whether a name is one of the network's, and no way out to other files."""
    top, *parts = name.split("/")
    return top == "net" and bool(parts) and not {"", ".", ".."} & {*parts}


def read(name: str) -> str:
    """Return the value without its newline. Raises OSError."""
    return files.read(f"/proc/sys/{name}").decode().rstrip("\n")


def write(name: str, value: str) -> None:
    """Set the value. Raises OSError.

    As a line, for the kernel does nothing when it is given nothing: so what can be empty can be emptied.
    """
    fd = posix.open(f"/proc/sys/{name}", posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        posix.write(fd, f"{value}\n".encode())
    finally:
        posix.close(fd)
