"""Files read whole. The interpreter of a plugin has no open() until it needs one."""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# For files of our own: what somebody else put in their place leads nowhere, and keeps nobody waiting.
OWN = posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC

MOST = 1 << 20
EFBIG = 27
_AT_ONCE = 1 << 16


def lines(path: str) -> Iterator[bytes]:
    """Yield the lines of a file of whatever length. Raises OSError (EFBIG) for a line of more than a mebibyte."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
    try:
        rest = b""
        while part := posix.read(fd, _AT_ONCE):
            *whole, rest = (rest + part).split(b"\n")
            if len(rest) > MOST:
                raise OSError(EFBIG, posix.strerror(EFBIG), path)
            yield from whole
        if rest:
            yield rest
    finally:
        posix.close(fd)


def read(path: str, flags: int = 0, most: int = 1 << 20) -> bytes:
    """Return what is in a file, a mebibyte at most: hardly anything we read is as long. Raises OSError.

    A FIFO that nobody writes to is empty.
    """
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK | flags)
    try:
        content = part = posix.read(fd, _AT_ONCE)
        # /proc gives a few kibibytes at a time, however many there are.
        while part and len(content) < most:
            part = posix.read(fd, _AT_ONCE)
            content += part
        return content
    finally:
        posix.close(fd)
