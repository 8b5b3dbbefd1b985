"""setns(2), from libc through _ctypes: os.setns is there from Python 3.12 only, and ctypes takes 2 ms to import.

For whoever has no bootloader of ours (bootloader.c), which brings it along.
"""

from __future__ import annotations

from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, CFuncPtr, _SimpleCData, dlopen, dlsym, get_errno
from posix import strerror


class _Int(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Function(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = _Int


_setns = _Function(dlsym(dlopen(None, 0), "setns"))  # type: ignore[arg-type]


def setns(fd: int, kind: int) -> None:
    """Enter the namespace open as fd, which must be of that kind (CLONE_NEW...). Raises OSError."""
    if _setns(fd, kind) != 0:
        raise OSError(get_errno(), f"setns: {strerror(get_errno())}")
