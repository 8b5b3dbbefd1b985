"""System calls the interpreter lacks, from libc through _ctypes: ctypes takes 2 ms to import.

For whoever has no bootloader of ours (bootloader.c), which brings them along. os.setns is there from Python 3.12 only.
"""

from __future__ import annotations

import posix
from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, CFuncPtr, _SimpleCData, dlopen, dlsym, get_errno

# Numbers of calls that are the same everywhere but on alpha, and words of linux/mount.h.
FSOPEN, FSCONFIG, FSMOUNT = 430, 431, 432
FSOPEN_CLOEXEC, FSCONFIG_CMD_CREATE, FSMOUNT_CLOEXEC, MOUNT_ATTR_RESTRICTED = 1, 6, 1, 0xE  # nosuid, nodev, noexec


class _Int(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Function(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = _Int


_setns, _syscall = (_Function(dlsym(dlopen(None, 0), name)) for name in ("setns", "syscall"))  # type: ignore[arg-type]


def setns(fd: int, kind: int) -> None:
    """Enter the namespace open as fd, which must be of that kind (CLONE_NEW...). Raises OSError."""
    _done("setns", _setns(fd, kind))


def mount(kind: str) -> int:
    """Mount a file system without a device ("proc") in no place; return its root's descriptor. Raises OSError."""
    fs = _done("fsopen", _syscall(FSOPEN, kind.encode(), FSOPEN_CLOEXEC))
    try:
        _done("fsconfig", _syscall(FSCONFIG, fs, FSCONFIG_CMD_CREATE, None, None, 0))
        return _done("fsmount", _syscall(FSMOUNT, fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_RESTRICTED))
    finally:
        posix.close(fs)


def _done(name: str, answer: int) -> int:
    if answer < 0:
        raise OSError(get_errno(), f"{name}: {posix.strerror(get_errno())}")
    return answer
