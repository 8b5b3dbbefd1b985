"""Running a program to its end, without a shell: delegates, iptables."""

from __future__ import annotations

import posix
from time import monotonic, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

ETXTBSY, ETIMEDOUT = 26, 110
SIGKILL, SIGPIPE = 9, 13
_BUSY_TRIES = 5
_BUSY_PAUSE = 0.2  # seconds


def run(
    path: str, arguments: list[str], environ: Mapping[str, str], stdin: bytes, limit: float
) -> tuple[int, bytes, bytes]:
    """Run an executable; return exit status (negative: the signal), stdout and stderr.

    arguments: its own name is the first. limit: seconds after which it is killed.
    All three streams are memory files: nothing can deadlock, and a process the program leaves behind holds nobody up.
    Raises OSError where it cannot be run, TimeoutError where it had to be killed.
    """
    streams: list[int] = []
    try:
        # One after the other, so that those there are can be closed when the next cannot be made.
        streams.extend(posix.memfd_create(name, posix.MFD_CLOEXEC) for name in ("stdin", "stdout", "stderr"))
        _fill(streams[0], stdin)
        actions = [(posix.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams)]
        pid = _spawn(path, arguments, environ, actions)
        status = _wait(pid, limit)
        return posix.waitstatus_to_exitcode(status), _content(streams[1]), _content(streams[2])
    finally:
        for fd in streams:
            posix.close(fd)


def _spawn(path: str, arguments: list[str], environ: Mapping[str, str], actions: list[tuple[int, int, int]]) -> int:
    for _ in range(_BUSY_TRIES - 1):
        try:
            return posix.posix_spawn(path, arguments, environ, file_actions=actions, setsigdef=(SIGPIPE,))
        except OSError as e:
            # Somebody is just writing it: an installation under running calls.
            if e.errno != ETXTBSY:
                raise
        sleep(_BUSY_PAUSE)
    return posix.posix_spawn(path, arguments, environ, file_actions=actions, setsigdef=(SIGPIPE,))


def _wait(pid: int, limit: float) -> int:
    """Wait for a process; return its status. Kernels before 5.3 have no descriptor of one to poll, so it is asked."""
    deadline, pause = monotonic() + limit, 0.0002
    while monotonic() < deadline:
        ended, status = posix.waitpid(pid, posix.WNOHANG)
        if ended:
            return status
        sleep(pause)
        pause = min(pause * 1.25, 0.02)
    posix.kill(pid, SIGKILL)
    posix.waitpid(pid, 0)
    raise TimeoutError(ETIMEDOUT, f"gave no answer in {limit:.3g} s")


def _fill(fd: int, data: bytes) -> None:
    written = 0
    while written < len(data):
        written += posix.write(fd, data[written:])
    posix.lseek(fd, 0, 0)


def _content(fd: int) -> bytes:
    return posix.pread(fd, posix.fstat(fd).st_size, 0)
