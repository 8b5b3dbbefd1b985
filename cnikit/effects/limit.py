"""How long a verb may take: 30 seconds, or as many as CNIKIT_TIME_LIMIT says.

Two things keep to it. Whoever waits, for a lock, a delegate or iptables, waits for a share of the time that is left,
and then fails like anything else: what was done is taken back. And what nobody can be called back from, such as opening
a file on a mount whose server is dead, ends with the process, when a second thread has said on stdout what it was.
"""

from __future__ import annotations

import posix
import sys
from _thread import allocate_lock, get_ident, stack_size, start_new_thread

from cnikit.errors import invalid_environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType

VARIABLE = "CNIKIT_TIME_LIMIT"
DEFAULT = 30.0
_LONGEST = 3600
_STACK = 1 << 20  # bytes; what is usual counts eight times as much against a limit of the caller's

_end = 0.0
_answering = allocate_lock()


def _now() -> float:
    """Return seconds since some moment. Unlike the module time this does not read the machine's time zone first."""
    return posix.times()[4]


def start(environ: Mapping[str, str], tell: Callable[[str], None] | None) -> None:
    """Begin to count. When the time is over, call tell with what is being waited for, and end the process.

    Without tell only those who wait look at the clock. Raises CniError (4).
    """
    global _end  # noqa: PLW0603, a process has one verb to serve
    _end = _now() + seconds(environ)
    if tell is not None:
        stack_size(_STACK)
        try:
            start_new_thread(_watch, (get_ident(), tell))
        except RuntimeError:
            return  # No thread is to be had, which is no reason not to serve.


def seconds(environ: Mapping[str, str]) -> float:
    """Return how long a verb may take. Raises CniError (4)."""
    text = environ.get(VARIABLE, "")
    if text and not (text.isdecimal() and len(text) < 6 and 0 < int(text) <= _LONGEST):
        raise invalid_environment(VARIABLE, f"{text[:40]!r} is no number of seconds from 1 to {_LONGEST}")
    return float(text) if text else DEFAULT


def share() -> float:
    """Return how long to wait for something, in seconds: two thirds of what is left, so that there is time to undo."""
    return max(0.0, (_end - _now() if _end else DEFAULT) * 2 / 3)


def answer() -> None:
    """Be the one who answers: from here on the time is not over any more."""
    _answering.acquire()


def _watch(watched: int, tell: Callable[[str], None]) -> None:
    never = allocate_lock()
    never.acquire()
    while (left := _end - _now()) > 0:
        never.acquire(timeout=left)
    if not _answering.acquire(blocking=False):
        return
    try:
        tell(doing(sys._current_frames().get(watched)))
    finally:
        posix._exit(1)


def doing(frame: FrameType | None) -> str:
    """Return the call of ours that a thread is in, as "open_netns(path='/run/netns/web')"."""
    while frame and not frame.f_globals.get("__name__", "").startswith("cnikit."):
        frame = frame.f_back
    if frame is None:
        return "the interpreter"
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount]
    given = [f"{name}={frame.f_locals[name]!r}" for name in names if isinstance(frame.f_locals.get(name), (str, int))]
    return f"{code.co_name}({', '.join(given)})"
