"""Running a program to its end, without a shell: delegates, iptables, and what a runtime runs."""

from __future__ import annotations

import posix
from select import POLLIN, poll
from time import monotonic, sleep

from cnikit.effects import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EFBIG, ETXTBSY, ETIMEDOUT = 27, 26, 110
SIGKILL, SIGPIPE, SIGXFSZ = 9, 13, 25
MOST = 1 << 20  # bytes, of what a program says on a stream
_BUSY_TRIES = 5
_BUSY_PAUSE = 0.2  # seconds
_AT_ONCE = 1 << 16


class TooMuchError(OSError):
    """A program that said more than is read of it, and was killed."""


def run(
    path: str,
    arguments: list[str],
    environ: Mapping[str, str],
    stdin: bytes,
    limit: float,
    most: int = MOST,
    kept_open: Iterable[int] = (),
) -> tuple[int, bytes, bytes]:
    """Run an executable; return exit status (negative: the signal), stdout and stderr.

    arguments: its own name is the first. limit: seconds after which it is killed. most: bytes of each stream that are
    read. kept_open: descriptors that it has, too. A process the program leaves behind holds nobody up.
    Raises OSError where it cannot be run, TimeoutError and TooMuchError where it had to be killed.
    """
    opened: list[int] = []
    try:
        # One after the other, so that those there are can be closed when the next cannot be made.
        opened.append(posix.memfd_create("stdin", posix.MFD_CLOEXEC))
        files.write(opened[0], stdin)
        posix.lseek(opened[0], 0, 0)
        opened.extend(posix.pipe2(posix.O_CLOEXEC))
        opened.extend(posix.pipe2(posix.O_CLOEXEC))
        given, out, out_end, err, err_end = opened
        # A descriptor that is put in its own place is kept open.
        places = ((given, 0), (out_end, 1), (err_end, 2), *((fd, fd) for fd in kept_open))
        pid = _spawn(path, arguments, environ, [(posix.POSIX_SPAWN_DUP2, fd, place) for fd, place in places])
        for end in (out_end, err_end):
            opened.remove(end)
            posix.close(end)
        streams = (_Stream(out), _Stream(err))
        status = _attend(pid, streams, limit, most)
        return posix.waitstatus_to_exitcode(status), b"".join(streams[0].parts), b"".join(streams[1].parts)
    finally:
        for fd in opened:
            posix.close(fd)


def _spawn(path: str, arguments: list[str], environ: Mapping[str, str], actions: list[tuple[int, int, int]]) -> int:
    ours = (SIGPIPE, SIGXFSZ)  # which we ignore
    for _ in range(_BUSY_TRIES - 1):
        try:
            return posix.posix_spawn(path, arguments, environ, file_actions=actions, setsigdef=ours)
        except OSError as e:
            # Somebody is just writing it: an installation under running calls.
            if e.errno != ETXTBSY:
                raise
        sleep(_BUSY_PAUSE)
    return posix.posix_spawn(path, arguments, environ, file_actions=actions, setsigdef=ours)


class _Stream:
    """What a program says on one of its streams, as far as it was read."""

    def __init__(self, fd: int) -> None:
        posix.set_blocking(fd, False)
        self.fd = fd
        self.parts: list[bytes] = []
        self.size = 0

    def read(self, most: int) -> bool:
        """Read what is there, and tell whether nothing more can come. Raises TooMuchError."""
        try:
            while part := posix.read(self.fd, _AT_ONCE):
                self.parts.append(part)
                self.size += len(part)
                if self.size > most:
                    raise TooMuchError(EFBIG, f"said more than {most} bytes and was killed")
        except BlockingIOError:
            return False
        return True


def _attend(pid: int, streams: tuple[_Stream, ...], limit: float, most: int) -> int:
    """Read what a process says until it ends; return its status.

    Kernels before 5.3 have no descriptor of a process to poll, so it is asked.
    """
    deadline, pause = monotonic() + limit, 0.0002
    try:
        waiting = poll()
        for stream in streams:
            waiting.register(stream.fd, POLLIN)
        left = list(streams)
        while True:
            ended, status = posix.waitpid(pid, posix.WNOHANG)
            # What it said is all there when it has ended, whatever others go on saying.
            for stream in [stream for stream in left if stream.read(most)]:
                waiting.unregister(stream.fd)
                left.remove(stream)
            if ended:
                return status
            if monotonic() > deadline:
                raise TimeoutError(ETIMEDOUT, f"gave no answer in {limit:.3g} s")
            if left:
                waiting.poll(max(1, int(pause * 1000)))
            else:
                sleep(pause)
            pause = min(pause * 1.25, 0.02)
    except BaseException:
        posix.kill(pid, SIGKILL)
        posix.waitpid(pid, 0)
        raise
