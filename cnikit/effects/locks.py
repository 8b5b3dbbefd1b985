"""Files that are locks: waited for as long as there is time, and then the error names the holder."""

from __future__ import annotations

import posix
from fcntl import LOCK_EX, LOCK_NB, flock

from cnikit import spec
from cnikit.effects import files, limit
from cnikit.errors import CniError

_SHORTEST, _LONGEST = 0.0005, 0.01  # seconds between two tries; locks are held for milliseconds


class Locked:
    """Be the only one who holds a lock: `with Locked(path): ...`. It is let go with the process, if need be."""

    __slots__ = ("_fd", "_path")

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> None:
        """Wait for it. Raises CniError: 5, and 11 after a time in vain."""
        try:
            self._fd = files.make(self._path, posix.O_RDWR)
            try:
                lock(self._fd, self._path)
            except BaseException:
                posix.close(self._fd)
                raise
        except OSError as e:
            raise CniError(spec.IO_FAILURE, f"{self._path}: {e.strerror}") from None

    def __exit__(self, *_: object) -> None:
        """Let it go."""
        posix.close(self._fd)


def lock(fd: int, path: str) -> None:
    """Take the lock on an open file, within a share of the verb's time. Raises OSError, CniError (11)."""
    try:
        flock(fd, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        _wait(fd, path)


def _wait(fd: int, path: str) -> None:
    from time import monotonic, sleep  # reads the machine's time zone, which few calls need

    patience = limit.share()
    deadline, pause = monotonic() + patience, _SHORTEST
    while True:
        sleep(pause)
        try:
            return flock(fd, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            if monotonic() > deadline:
                locked = f"{path} is locked by {holder(fd)}"
                raise CniError(spec.TRY_AGAIN, locked, f"waited {patience:.3g} s for it") from None
        pause = min(pause * 1.5, _LONGEST)


def holder(fd: int) -> str:
    """Return who holds the lock on an open file: "process 4711 (portmap)", by /proc/locks (proc_locks(5))."""
    status = posix.fstat(fd)
    device = f"{posix.major(status.st_dev):02x}:{posix.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        for line in files.lines("/proc/locks"):
            # "7: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF"; who waits has "->" behind the number.
            _, kind, _, _, pid, where, *_ = line.decode().split()
            if kind == "FLOCK" and where == device and pid != "0":
                return f"process {pid} ({_name(pid)})"
    except OSError:
        pass  # It is not told.
    return "a process that cannot be seen from here"


def _name(pid: str) -> str:
    try:
        return files.read(f"/proc/{pid}/comm").decode("utf-8", "backslashreplace").strip()
    except OSError:
        return "ended; a child of it has the lock"
