"""Files read whole. The interpreter of a plugin has no open() until it needs one."""

from __future__ import annotations

import posix

# For files of our own: what somebody else put in their place leads nowhere, and keeps nobody waiting.
OWN = posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC

_AT_ONCE = 1 << 16


def read(path: str, flags: int = 0, most: int = 1 << 20, folder: int | None = None) -> bytes:
    """Return what is in a file, a mebibyte at most: hardly anything we read is as long. Raises OSError.

    A FIFO that nobody writes to is empty. folder: the descriptor of what a relative path is in.
    """
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK | flags, dir_fd=folder)
    try:
        content = part = posix.read(fd, _AT_ONCE)
        # /proc gives a few kibibytes at a time, however many there are.
        while part and len(content) < most:
            part = posix.read(fd, _AT_ONCE)
            content += part
        return content
    finally:
        posix.close(fd)
