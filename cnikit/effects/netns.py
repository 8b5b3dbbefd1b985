"""Network namespaces: opening what CNI_NETNS names, and working inside."""

from __future__ import annotations

import posix
from fcntl import ioctl

from cnikit import spec
from cnikit.errors import CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
ENOTTY = 25  # what any other file says to that
OWN = "/proc/thread-self/ns/net"


def open_netns(path: str) -> int:
    """Open a namespace by path. Raises FileNotFoundError when it is gone, CniError (8) when it is none of ours.

    A regular file without content is a gone one too: that is what is left of a bind mount after a reboot.
    """
    try:
        # A FIFO must not keep us waiting for its writer.
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except (OSError, ValueError) as e:
        raise _invalid(path, f"cannot be opened: {e}") from None
    try:
        kind = ioctl(fd, NS_GET_NSTYPE)
    except OSError as e:
        kind = None
        if e.errno != ENOTTY:
            posix.close(fd)
            raise _invalid(path, f"cannot be looked at: {e.strerror}") from None
    if kind == CLONE_NEWNET:
        return fd
    status = posix.fstat(fd)
    posix.close(fd)
    if kind is None and status.st_mode & 0o170000 == 0o100000 and status.st_size == 0:
        raise FileNotFoundError(path)
    raise _invalid(path, "is no network namespace")


def _invalid(path: str, why: str) -> CniError:
    return CniError(spec.INVALID_NETNS, f"CNI_NETNS: {path} {why}")


def missing(path: str) -> CniError:
    """Return the error for an ADD or CHECK in a namespace that is gone."""
    return _invalid(path, "is not there")


def is_own(fd: int) -> bool:
    """Tell whether this is the namespace the process runs in."""
    try:
        there, here = posix.fstat(fd), posix.stat(OWN)
    except OSError as e:
        raise _unreadable(e) from None
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def is_same(fd: int, path: str) -> bool:
    """Tell whether path names the very namespace that is open as fd, whatever the path's spelling."""
    try:
        named, opened = posix.stat(path), posix.fstat(fd)
    except (OSError, ValueError):
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def may_be(path: str, sandbox: str) -> bool:
    """Tell whether a sandbox may be the namespace of a path: of a path that is gone, or not given, nothing is known."""
    if path == sandbox:
        return True
    try:
        opened = posix.stat(path)
    except (OSError, ValueError):
        return True
    try:
        named = posix.stat(sandbox)
    except (OSError, ValueError):
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


class Inside:
    """Work in another namespace: `with Inside(fd): ...`. With None it stays where it is."""

    __slots__ = ("_home", "_there")

    def __init__(self, fd: int | None) -> None:
        self._there = fd
        self._home = -1

    def __enter__(self) -> None:
        """Enter it."""
        if self._there is not None:
            try:
                self._home = posix.open(OWN, posix.O_RDONLY | posix.O_CLOEXEC)
            except OSError as e:
                raise _unreadable(e) from None
            try:
                _enter(self._there)
            except BaseException:
                posix.close(self._home)
                raise

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Go back."""
        if self._there is not None:
            try:
                _enter(self._home)
            finally:
                posix.close(self._home)


class Visit:
    """Work in another namespace from the moment that it takes: `with Visit(fd) as visit: ... visit.enter()`."""

    __slots__ = ("_begun", "_inside")

    def __init__(self, fd: int | None) -> None:
        self._inside = Inside(fd)
        self._begun = False

    def enter(self) -> None:
        """Enter it, if that has not been done."""
        if not self._begun:
            self._inside.__enter__()
            self._begun = True

    def __enter__(self) -> Visit:
        """Stay where one is."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Go back."""
        if self._begun:
            self._inside.__exit__(kind, value, trace)


def _unreadable(e: OSError) -> CniError:
    return CniError(spec.IO_FAILURE, f"{OWN}: {e.strerror}", "the process's own namespace is needed to come back to")


def _enter(fd: int) -> None:
    try:
        from _bootloader import setns  # type: ignore[import-not-found]
    except ImportError:
        from cnikit.effects.syscalls import setns

    try:
        setns(fd, CLONE_NEWNET)
    except OSError as e:
        raise CniError(spec.INVALID_NETNS, f"CNI_NETNS: cannot be entered: {e.strerror}") from None
