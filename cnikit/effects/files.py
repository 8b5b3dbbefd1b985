"""Files read whole. The interpreter of a plugin has no open() until it needs one."""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# For files of our own: what somebody else put in their place leads nowhere, and keeps nobody waiting.
OWN = posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC

MOST = 1 << 20  # bytes of a file
MOST_NAMES = 1 << 18  # files in a folder
E2BIG, EFBIG = 7, 27
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


def read(path: str, flags: int = 0, most: int = MOST, folder: int | None = None) -> bytes:
    """Return what is in a file. Raises OSError, EFBIG for more than a mebibyte, or most: what we read is shorter.

    A FIFO that nobody writes to is empty. folder: the descriptor of what a relative path is in.
    """
    content = beginning(path, flags, most, folder)
    if len(content) > most:
        raise OSError(EFBIG, posix.strerror(EFBIG), path)
    return content


def beginning(path: str, flags: int = 0, most: int = MOST, folder: int | None = None) -> bytes:
    """Return what is in a file, or, of one that is longer, more than most. Raises OSError."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK | flags, dir_fd=folder)
    try:
        content = part = posix.read(fd, _AT_ONCE)
        # /proc gives a few kibibytes at a time, however many there are.
        while part and len(content) <= most:
            part = posix.read(fd, _AT_ONCE)
            content += part
        return content
    finally:
        posix.close(fd)


def listing(folder: str) -> list[str]:
    """Return the names in a folder. Raises OSError, E2BIG for more than can be kept."""
    names: list[str] = []
    with posix.scandir(folder) as entries:
        for entry in entries:
            if len(names) == MOST_NAMES:
                raise OSError(E2BIG, f"more than {MOST_NAMES} files", folder)
            names.append(entry.name)
    return names


def make(path: str, flags: int, mode: int = 0o600) -> int:
    """Open a file of our own, made where it is missing; who made it may use it whatever the umask. Raises OSError."""
    fd = posix.open(path, flags | posix.O_CREAT | OWN, mode)
    if posix.fstat(fd).st_mode & mode != mode:
        posix.fchmod(fd, mode)
    return fd


def make_folder(path: str, mode: int = 0o755) -> None:
    """Make a folder with that mode, and those above it, with 0755, where they are missing. Raises OSError."""
    missing = [path]
    while not _has_parent(missing[-1]):
        missing.append(missing[-1].rpartition("/")[0])
    for folder in reversed(missing):
        try:
            mkdir(folder, mode if folder == path else 0o755)
        except FileExistsError:
            continue  # Somebody else may just have made it.


def _has_parent(path: str) -> bool:
    return posix.access(path.rpartition("/")[0] or "/", posix.F_OK)


def mkdir(path: str, mode: int) -> None:
    """Make a folder with just that mode, whatever the umask. Raises OSError."""
    posix.mkdir(path, mode)
    if posix.lstat(path).st_mode & 0o777 != mode:
        # By descriptor: what somebody else puts in its place is not touched. It need not be readable for that.
        fd = posix.open(path, posix.O_PATH | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC)
        try:
            posix.chmod(f"/proc/self/fd/{fd}", mode)
        finally:
            posix.close(fd)


def distrusted(path: str) -> str:
    """Say why what is at an absolute path may be another user's doing, "" where it can only be root's or ours.

    Nobody else may own it or write to it, nor to a folder above it, where it could be replaced; in a sticky folder such
    as /tmp it cannot be. Raises OSError where it is not there.
    """
    ours = (0, posix.geteuid())
    # In a user namespace what is of a user outside of it, such as the host's root, is all nobody's.
    above = (*ours, posix.stat("/").st_uid)
    parts = path.split("/")[1:]
    for i in range(len(parts)):
        place, last = "/" + "/".join(parts[: i + 1]), i == len(parts) - 1
        link, there = posix.lstat(place), posix.stat(place)
        for uid in (link.st_uid, there.st_uid):
            if uid not in (ours if last else above):
                return f"{place} belongs to user {uid}"
        writable = there.st_mode & 0o002 or (there.st_mode & 0o020 and there.st_gid not in (0, posix.getegid()))
        sticky = there.st_mode & 0o1000 and not last
        if writable and not sticky:
            return f"{place} can be written by other users"
    return ""


def write(fd: int, data: bytes) -> None:
    """Write all of it: a disk that becomes full takes a part first. Raises OSError."""
    while data:
        data = data[posix.write(fd, data) :]
