"""host-local's leases: one file per address, in the reference's own format, and an index to find them by owner.

    /var/lib/cni/networks/mynet/            0755, `dataDir`/network name
        lock                                flock(2), held around every operation
        10.1.0.2                            0600, `containerID CR LF ifname`, no newline behind it
        10.1.0.3                            before 0.8 of the reference: the containerID alone
        last_reserved_ip.0                  0600, the address range set 0 gave out last
        .owners/                            0700, ours: the index
            5d0f...c3 -> 10.1.0.2 NOTE      a link named by the owner's hash that points at its addresses
            new                             an address file that is being written

So a node switches over from the reference, and back, in place, even with containers running.

What is a lease. An address file that holds an owner. It is written as `.owners/new` and renamed, so it is there whole
or not at all. An empty one is what a crash of the reference, or of the machine, left behind: it blocks nothing and is
cleared away when it is met. One that holds something else than an owner, and whatever else there is in the place of a
file (a link, say, which is never followed), keeps its address until the range has no other left, or until GC. A file
whose name is no address in canonical form is not ours to read or remove.

The index. The reference reads every file to find those of one container, which takes 110 ms with 20,000 of them. Here
each owner has one symbolic link in `.owners`, whose name is the BLAKE2s hash of the address file's content and whose
target is the list "10.1.0.2,2001:db8::2", a blank, and a note. Nothing is ever at the target: a link is merely a small
value that is written at once and mostly takes no block on disk. The reference, walking the folder, tries to read them,
finds nothing and goes on.

The note is evidence for later, when it is asked whether the container can still exist (cnikit.effects.evidence): what
note() returns, and behind the last dot the times of the address files, added up. So a note is never taken for that of
another lease that somebody wrote there since. Leases that were found without one are noted as of this boot.

When the index is valid. After each change, and last, both folders' modification times are set to one and the same
moment, a second before the change. Whoever then adds or removes a file, the reference, an administrator with rm, or one
of us that was killed half-way, moves the folder's time to the present, and even in the same tick of the clock it cannot
become the past again. Equal times alone would not do: a rename from one folder to the other gives both the same. So
`.owners` must also have a change time (ctime, which nobody can set) other than its modification time. If the index
is not valid, it is made anew from one look into all address files. An entry is believed only if the address files it
names hold that owner. GC always looks into all files, so it also finds what was edited in place.

If the index cannot be written (a full disk), leases are found the slow way: a DEL must work then most of all.

Nothing is flushed to disk (fsync): after a crash of the machine its containers are gone too, and empty files are free.
"""

from __future__ import annotations

import posix
from _blake2 import blake2s

from cnikit import spec
from cnikit.address import format_ip, parse_ip
from cnikit.effects import files, locks
from cnikit.errors import CniError, collected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import stat_result
    from types import TracebackType
    from typing import Self

_SECOND = 1_000_000_000  # in ns
EACCES = 13


def owner(container: str, ifname: str) -> bytes:
    """Return what the address files of an attachment hold."""
    return f"{container}\r\n{ifname}".encode("utf-8", "surrogateescape")


def older_owner(container: str) -> bytes:
    """Return what they held before version 0.8 of the reference, which kept no interface's name."""
    return container.encode("utf-8", "surrogateescape")


def split(content: bytes) -> tuple[str, str]:
    """Return container and interface of an owner; no interface in the older form, no container if it is no owner."""
    container, _, ifname = content.decode("utf-8", "surrogateescape").partition("\r\n")
    return (container, ifname) if spec.is_name(container) else ("", "")


def describe(content: bytes | None) -> str:
    """Return an address file's content for a message: "container c1 eth0"."""
    if content is None:
        return "a file that cannot be read"
    container, ifname = split(content)
    return f"container {container} {ifname}".rstrip() if container else f"no container: {content!r}"


class Store:
    """The leases of one network, locked from `with` until its end; an OSError in between becomes a CniError, code 5.

    Addresses are their canonical text, the file's name. Without create a missing folder is a store without leases, and
    remains missing.
    """

    __slots__ = ("_all", "_create", "_foreign", "_index", "_lock", "_notes", "_sound", "folder")

    def __init__(self, folder: str, create: bool = False) -> None:
        self.folder = folder
        self._create = create
        self._index = f"{folder}/.owners"
        self._lock = -1
        self._sound = False  # the index agrees with the address files
        self._all: dict[bytes, tuple[str, ...]] | None = None  # addresses by owner, once all files were read
        self._notes: dict[bytes, str] = {}  # what the index says beside the addresses, as far as it was read
        self._foreign: list[str] = []  # what is no lease, in the place of one, once all files were read

    def __enter__(self) -> Self:
        try:
            self._lock = self._open_lock()
            if self._lock >= 0:
                locks.lock(self._lock, f"{self.folder}/lock")
                self._sound = self._is_stamped()
        except BaseException as e:
            if self._lock >= 0:
                posix.close(self._lock)
            if isinstance(e, OSError):
                raise self._fault(e) from None
            raise
        return self

    def __exit__(self, _: type[BaseException] | None, e: BaseException | None, __: TracebackType | None) -> None:
        if self._lock >= 0:
            posix.close(self._lock)
        if isinstance(e, OSError):
            raise self._fault(e) from e

    def _open_lock(self) -> int:
        """Return the lock file's descriptor, -1 when there is no folder and none is to be made."""
        try:
            return self._open_there()
        except FileNotFoundError:
            if not self._create:
                return -1
        files.make_folder(self.folder)
        return self._open_there()

    def _open_there(self) -> int:
        # Who owns the folder, or the link in its place, says what our files are.
        owned = posix.lstat(self.folder)
        if owned.st_uid not in (0, posix.geteuid()):
            raise PermissionError(EACCES, f"belongs to user {owned.st_uid}", self.folder)
        # Mode and flags are the reference's, and no link is followed.
        return posix.open(f"{self.folder}/lock", posix.O_CREAT | posix.O_RDONLY | files.OWN, 0o750)

    def _fault(self, e: OSError) -> CniError:
        path = e.filename or self.folder
        return CniError(spec.IO_FAILURE, f"{path}: {e.strerror}", "ipam.dataDir says where leases are")

    def find(self, container: str, ifname: str) -> tuple[bytes, tuple[str, ...]]:
        """Return an attachment's addresses, and the owner as their files name it.

        Files of the older form count when there are none of the newer, as in the reference.
        """
        exact = owner(container, ifname)
        for form in (exact, older_owner(container)):
            addresses = self.addresses_of(form)
            if addresses:
                return form, addresses
        return exact, ()

    def addresses_of(self, owner: bytes) -> tuple[str, ...]:
        """Return the addresses whose files hold this owner."""
        if self._all is None:
            addresses = self._indexed(owner)
            if addresses is not None:
                return addresses
        return self.leases().get(owner, ())

    def leases(self) -> dict[bytes, tuple[str, ...]]:
        """Return all leases, addresses by owner, from the files themselves; the index is right afterwards."""
        if self._all is None:
            self._all = self._read_all() if self._lock >= 0 else {}
        return self._all

    def all_noted(self) -> dict[bytes, tuple[str, int]]:
        """Return what was noted of each owner's leases, and when, as noted() does. Nothing is changed, nor locked.

        So what is just being written may lack its note.
        """
        found: dict[bytes, list[str]] = {}
        for name in filter(is_address, self.listing()):
            content = self.content(name)
            if content and split(content)[0]:
                found.setdefault(content, []).append(name)
        return {owner: self.noted(owner, addresses) for owner, addresses in found.items()}

    def noted(self, owner: bytes, addresses: list[str] | None = None) -> tuple[str, int]:
        """Return what was noted of an owner's leases, of just these addresses if they are given, and when.

        When is the file's time in ns, good for comparing it with that of another file. "" and 0 where nothing is noted.
        """
        path = self._link(owner)
        try:
            (listed, noted, times), at = _read_link(path), posix.lstat(path).st_mtime_ns
            same = addresses is None or sorted(listed) == sorted(addresses)
            return (noted, at) if same and times == self._times(listed) else ("", 0)
        except OSError:
            return "", 0

    def reserve(self, address: str, owner: bytes, set_index: int, note: str = "") -> None:
        """Write the lease of a free address, and that it is the one range set set_index gave last.

        Raises OSError, and then there is no lease.
        """
        before = self.addresses_of(owner)
        new = f"{self._index}/new"
        try:
            _write(new, owner)
            _overwrite(self._pointer(set_index), address.encode())
            posix.rename(new, f"{self.folder}/{address}")
        except OSError:
            self._clear_away(".owners/new")
            raise
        self._record(owner, (*before, address), note)

    def renew(self, owner: bytes, note: str) -> None:
        """Note anew of whom these leases are: the attachment was made again."""
        self._record(owner, self.addresses_of(owner), note)

    def release(self, owner: bytes, addresses: tuple[str, ...]) -> None:
        """Remove leases of this owner. None there is fine. Raises CniError with all that could not be removed."""
        if not addresses:
            return
        faults = []
        kept = [address for address in self.addresses_of(owner) if address not in addresses]
        for address in addresses:
            try:
                _remove(f"{self.folder}/{address}")
            except OSError as e:
                kept.append(address)
                faults.append(self._fault(e))
        self._record(owner, tuple(kept))
        if faults:
            raise collected(faults, f"releasing the addresses of {describe(owner)}")

    def note_of(self, owner: bytes) -> str:
        """Return what was noted of an owner's leases, "" where nothing is, once all files were read."""
        return self._notes.get(owner, "")

    def reclaimable(self, network: str) -> dict[bytes, tuple[str, ...]]:
        """Return addresses by owner: those of containers that cannot exist any more, and by b"" what is no lease."""
        from cnikit.effects import evidence

        held = self.leases()
        noted = [(owner, tags(network, owner), self._notes.get(owner, "")) for owner in held]
        gone = {owner: held[owner] for owner in evidence.extinct(noted, note(""))}
        return {**gone, b"": tuple(self._foreign)} if self._foreign else gone

    def reclaim(self, reclaimable: dict[bytes, tuple[str, ...]]) -> None:
        """Remove what is reclaimable, as far as it can be."""
        for owner, addresses in reclaimable.items():
            try:
                if owner:
                    self.release(owner, addresses)
            except CniError:
                continue  # It keeps its place.
        self.discard_foreign()

    def discard_foreign(self) -> None:
        """Remove what is no lease from the places of leases, as far as it can be."""
        self.leases()
        for name in self._foreign:
            self._clear_away(name)
        self._foreign = []

    def is_free(self, address: str) -> bool:
        """Tell whether there is no file for the address, or an empty one."""
        try:
            status = posix.lstat(f"{self.folder}/{address}")
            return status.st_size == 0 and not _is_folder(status)
        except FileNotFoundError:
            return True

    def content(self, address: str) -> bytes | None:
        """Return the address file's content without white space around it, None when it cannot be read."""
        try:
            return files.beginning(f"{self.folder}/{address}", files.OWN).strip()
        except OSError:
            return None

    def listing(self) -> list[str]:
        """Return the names of all files, the address files among them."""
        try:
            return files.listing(self.folder)
        except FileNotFoundError:
            return []

    def last_reserved(self, set_index: int) -> bytes | None:
        """Return the address this range set gave last, None when none is known."""
        try:
            return parse_ip(files.read(self._pointer(set_index)).decode("ascii").strip())
        except (OSError, ValueError):
            return None

    def _pointer(self, set_index: int) -> str:
        return f"{self.folder}/last_reserved_ip.{set_index}"

    def _read_all(self) -> dict[bytes, tuple[str, ...]]:
        found: dict[bytes, tuple[str, ...]] = {}
        for name in filter(is_address, self.listing()):
            content = self.content(name)
            if content == b"":
                self._clear_away(name)
            elif content and split(content)[0]:
                found[content] = (*found.get(content, ()), name)
            elif content or self._is_something_else(name):
                self._foreign.append(name)
        self._rebuild(found)
        return found

    def _is_something_else(self, name: str) -> bool:
        """Tell whether what is there is no regular file, which might be read another time."""
        try:
            return posix.lstat(f"{self.folder}/{name}").st_mode & 0o170000 != 0o100000
        except OSError:
            return False

    def _clear_away(self, name: str) -> None:
        path = f"{self.folder}/{name}"
        try:
            _remove(path)
        except OSError:
            try:
                posix.rmdir(path)
            except OSError:
                return  # A folder with something in it keeps its place.

    def _indexed(self, owner: bytes) -> tuple[str, ...] | None:
        """Return what the index says, None when it cannot be trusted."""
        if not self._sound:
            return None
        try:
            addresses, self._notes[owner], _ = _read_link(self._link(owner))
        except FileNotFoundError:
            return ()
        return addresses if all(is_address(one) and self.content(one) == owner for one in addresses) else None

    def _rebuild(self, found: dict[bytes, tuple[str, ...]]) -> None:
        """Make the index anew; what was noted of leases that are as they were stays."""
        wanted = {self._link(owner): owner for owner in found}
        try:
            for name in self._entries():
                path = f"{self._index}/{name}"
                if path in wanted and self._is_current(path, wanted[path], found):
                    del wanted[path]
                else:
                    posix.unlink(path)
            seen = note("")
            for path, owner in wanted.items():
                self._notes[owner] = seen
                posix.symlink(self._target(found[owner], seen), path)
            self._stamp()
            self._sound = True
        except OSError:
            self._sound = False

    def _entries(self) -> list[str]:
        """Return the names in the index; make it where there is none, or something else in its place."""
        try:
            files.mkdir(self._index, 0o700)
        except FileExistsError:
            if _is_folder(posix.lstat(self._index)):
                return files.listing(self._index)
            posix.unlink(self._index)
            files.mkdir(self._index, 0o700)
        return []

    def _is_current(self, path: str, owner: bytes, found: dict[bytes, tuple[str, ...]]) -> bool:
        addresses, self._notes[owner], times = _read_link(path)
        return sorted(addresses) == sorted(found[owner]) and times == self._times(addresses)

    def _record(self, owner: bytes, addresses: tuple[str, ...], note: str = "") -> None:
        """Note in the index what the folder now holds of this owner; without a new note the old one stays."""
        if self._all is not None:
            self._all[owner] = addresses
        if note:
            self._notes[owner] = note
        if not self._sound:
            return
        path = self._link(owner)
        try:
            _remove(path)
            if addresses:
                posix.symlink(self._target(addresses, self._notes.get(owner, "")), path)
            self._stamp()
        except OSError:
            self._sound = False

    def _target(self, addresses: tuple[str, ...], note: str) -> str:
        return f"{','.join(addresses)} {note}.{self._times(addresses)}"

    def _times(self, addresses: tuple[str, ...]) -> str:
        """Return what is another number when one of the files was written anew."""
        times = (posix.lstat(f"{self.folder}/{address}").st_mtime_ns for address in addresses)
        return f"{sum(times) & 0xFFFFFFFF:x}"

    def _link(self, owner: bytes) -> str:
        return f"{self._index}/{blake2s(owner, digest_size=16).hexdigest()}"

    def _stamp(self) -> None:
        moment = posix.stat(self.folder).st_mtime_ns - _SECOND
        posix.utime(self.folder, ns=(moment, moment))
        posix.utime(self._index, ns=(moment, moment))

    def _is_stamped(self) -> bool:
        try:
            index = posix.lstat(self._index)
        except FileNotFoundError:
            return False
        return _is_folder(index) and posix.stat(self.folder).st_mtime_ns == index.st_mtime_ns != index.st_ctime_ns


def _is_folder(status: stat_result) -> bool:
    return status.st_mode & 0o170000 == 0o040000


def note(netns: str, cookie: int = 0) -> str:
    """Return BOOT.HOST.NETNS.SINCE for a container's namespace, as cnikit.effects.evidence reads it; "" without /proc.

    In hex: the beginning of the boot's id, the inode numbers of this process's network namespace and of the
    container's (0 when it is none), and the seconds since boot, which no change of the clock moves. Behind them _COOKIE
    where the namespace's is known.
    """
    try:
        boot, uptime = files.read("/proc/sys/kernel/random/boot_id"), files.read("/proc/uptime")
        here = posix.stat("/proc/thread-self/ns/net")
    except OSError:
        return ""
    try:
        there = posix.stat(netns)
        inside = there.st_ino if there.st_dev == here.st_dev else 0
    except (OSError, ValueError):
        inside = 0
    since = f"{int(uptime.partition(b'.')[0]):x}"
    return f"{boot[:8].decode()}.{here.st_ino:x}.{inside:x}.{f'{since}_{cookie:x}' if cookie and inside else since}"


def _read_link(path: str) -> tuple[tuple[str, ...], str, str]:
    """Return addresses, note and the files' times of an entry of the index. Raises OSError."""
    addresses, _, rest = posix.readlink(path).partition(" ")
    noted, _, times = rest.rpartition(".")
    return tuple(addresses.split(",")), noted, times


def tags(network: str, owner: bytes) -> tuple[str, ...]:
    """Return the tags of the attachment that an owner's leases are of, see ownership.tags."""
    from cnikit import ownership
    from cnikit.request import Attachment

    return ownership.tags(Attachment(network, *split(owner)))


def is_address(name: str) -> bool:
    """Tell whether a file's name is an address as the reference writes it."""
    try:
        return format_ip(parse_ip(name)) == name
    except ValueError:
        return False


def write_fault(folder: str) -> str:
    """Say why no lease can be written to the folder (or to where it will be made), "" when it can.

    Tried with a file without a name (O_TMPFILE), which leaves nothing behind, not even the folder's time.
    """
    fd = -1
    while fd < 0:
        try:
            fd = posix.open(folder, posix.O_TMPFILE | posix.O_WRONLY, 0o600)
        except FileNotFoundError:
            folder = folder.rpartition("/")[0] or "/"
        except OSError as e:
            return _without_tmpfile(folder, e)
    try:
        files.write(fd, b"\n")
    except OSError as e:
        return f"{folder}: {e.strerror}"
    finally:
        posix.close(fd)
    return ""


def _without_tmpfile(folder: str, e: OSError) -> str:
    import errno

    if e.errno in (errno.EOPNOTSUPP, errno.EISDIR) and posix.access(folder, posix.W_OK | posix.X_OK):
        return ""
    return f"{folder}: {e.strerror}"


def _remove(path: str) -> None:
    try:
        posix.unlink(path)
    except FileNotFoundError:
        return


def _write(path: str, content: bytes) -> None:
    fd = files.make(path, posix.O_WRONLY | posix.O_TRUNC)
    try:
        files.write(fd, content)
    finally:
        posix.close(fd)


def _overwrite(path: str, content: bytes) -> None:
    # ext4 begins to flush a file to disk when it was first cut to nothing, which takes longer than all the rest.
    fd = files.make(path, posix.O_WRONLY)
    try:
        files.write(fd, content)
        posix.ftruncate(fd, len(content))
    finally:
        posix.close(fd)
