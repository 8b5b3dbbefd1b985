"""Sysctls, as files under /proc/sys. Names are written with slashes: an interface's name may hold dots."""

from __future__ import annotations

import posix


def read(name: str) -> str:
    """Return the value without its newline. Raises OSError."""
    fd = posix.open(f"/proc/sys/{name}", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return posix.read(fd, 4096).decode().rstrip("\n")
    finally:
        posix.close(fd)


def write(name: str, value: str) -> None:
    """Set the value. Raises OSError."""
    fd = posix.open(f"/proc/sys/{name}", posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        posix.write(fd, value.encode())
    finally:
        posix.close(fd)
