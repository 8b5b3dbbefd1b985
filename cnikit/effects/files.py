"""Files read whole, and files that are locks. The interpreter of a plugin has no open() until it needs one."""

from __future__ import annotations

import posix
from fcntl import LOCK_EX, flock

from cnikit import spec
from cnikit.errors import CniError

_MOST, _AT_ONCE = 1 << 20, 1 << 16


def read(path: str) -> bytes:
    """Return what is in a file, a mebibyte at most: nothing we read is as long. Raises OSError."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        content = part = posix.read(fd, _AT_ONCE)
        while len(part) == _AT_ONCE and len(content) < _MOST:
            part = posix.read(fd, _AT_ONCE)
            content += part
        return content
    finally:
        posix.close(fd)


class Locked:
    """Be the only one who holds a lock: `with Locked(path): ...`. It is let go with the process, if need be."""

    __slots__ = ("_fd", "_path")

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> None:
        """Wait for it. Raises CniError (5)."""
        try:
            self._fd = posix.open(self._path, posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC, 0o600)
        except OSError as e:
            raise CniError(spec.IO_FAILURE, f"{self._path}: {e.strerror}") from None
        flock(self._fd, LOCK_EX)

    def __exit__(self, *_: object) -> None:
        """Let it go."""
        posix.close(self._fd)
