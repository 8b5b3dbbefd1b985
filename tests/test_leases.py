"""The lease store: the files on disk, the index and what it survives, and how many operations a call takes."""

from __future__ import annotations

import errno
import fcntl
import os
import posix
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnikit import spec
from cnikit.effects import files, leases
from cnikit.effects.leases import Store, owner
from cnikit.errors import CniError

C1 = owner("c1", "eth0")
C2 = owner("c2", "eth0")


class Posix:
    """The posix module, which tells a function of each call before it is made."""

    def __init__(self, before: Callable[[str], None]) -> None:
        self._before = before

    def __getattr__(self, name: str) -> Any:
        function = getattr(posix, name)
        if not callable(function):
            return function

        def called(*values: Any, **named: Any) -> Any:
            self._before(name)
            return function(*values, **named)

        return called


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "networks" / "net"


def reserve(folder: Path, address: str, holder: bytes) -> None:
    with Store(str(folder), create=True) as store:
        store.reserve(address, holder, 0)


def release(folder: Path, container: str, ifname: str = "eth0") -> None:
    with Store(str(folder)) as store:
        store.release(*store.find(container, ifname))


def addresses_of(folder: Path, holder: bytes) -> list[str]:
    with Store(str(folder)) as store:
        return sorted(store.addresses_of(holder))


def lease_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if leases.is_address(file.name)}


def write_as_reference(folder: Path, address: str, content: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / address
    file.write_bytes(content)
    file.chmod(0o600)


def index(folder: Path) -> dict[str, str]:
    """Return the addresses in the index by owner's hash, without what is noted beside them."""
    links = {name: os.readlink(folder / ".owners" / name) for name in os.listdir(folder / ".owners")}
    return {name: target.partition(" ")[0] for name, target in links.items()}


def reads_all_files(monkeypatch: pytest.MonkeyPatch, folder: Path, holder: bytes) -> bool:
    """Tell whether a look at the holder's addresses lists the folder, which an index in order makes needless."""
    calls: Counter[str] = Counter()
    with monkeypatch.context() as patched:
        patched.setattr(leases, "posix", Posix(lambda name: calls.update([name])))
        addresses_of(folder, holder)
    return calls["listdir"] > 0


# The files


@pytest.mark.parametrize("there", [False, True], ids=["new folder", "folder without a lock"])
def test_files_are_the_references(folder: Path, there: bool) -> None:
    umask = os.umask(0o022)
    try:
        if there:
            folder.mkdir(parents=True)
        reserve(folder, "10.1.0.2", C1)
    finally:
        os.umask(umask)
    assert (folder / "10.1.0.2").read_bytes() == b"c1\r\neth0"
    assert (folder / "last_reserved_ip.0").read_bytes() == b"10.1.0.2"
    modes = {name: oct((folder / name).stat().st_mode & 0o7777) for name in os.listdir(folder)}
    assert modes == {
        "10.1.0.2": "0o600",
        "last_reserved_ip.0": "0o600",
        "lock": "0o750",
        ".owners": "0o700",
    }
    assert oct(folder.stat().st_mode & 0o7777) == "0o755"


def test_shorter_pointer_replaces_a_longer_one_wholly(folder: Path) -> None:
    reserve(folder, "10.1.0.200", C1)
    reserve(folder, "10.1.0.2", C2)
    assert (folder / "last_reserved_ip.0").read_bytes() == b"10.1.0.2"
    with Store(str(folder)) as store:
        assert store.last_reserved(0) == bytes([10, 1, 0, 2])


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff\xfe"], ids=["empty", "no address", "no text"])
def test_unreadable_pointer_is_none(folder: Path, content: bytes) -> None:
    write_as_reference(folder, "last_reserved_ip.0", content)
    with Store(str(folder)) as store:
        assert store.last_reserved(0) is None
        assert store.last_reserved(1) is None


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("10.1.0.2", True),
        ("2001:db8::2", True),
        ("2001:DB8::2", False),
        ("2001:db8:0::2", False),
        ("::ffff:10.1.0.2", False),
        ("10.1.0.02", False),
        ("lock", False),
        ("last_reserved_ip.0", False),
        (".owners", False),
        ("", False),
    ],
)
def test_only_canonical_addresses_are_address_files(name: str, is_one: bool) -> None:
    assert leases.is_address(name) is is_one


def test_lock_is_held_from_with_to_its_end(folder: Path) -> None:
    with Store(str(folder), create=True):
        fd = os.open(folder / "lock", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_missing_folder_is_an_empty_store_and_remains_missing(folder: Path) -> None:
    with Store(str(folder)) as store:
        assert store.find("c1", "eth0") == (C1, ())
        assert store.leases() == {}
        assert store.content("10.1.0.2") is None
        assert store.listing() == []
        store.release(C1, ())
    assert not folder.parent.exists()


def test_folder_that_appears_meanwhile_is_not_touched_without_its_lock(folder: Path) -> None:
    with Store(str(folder)) as store:
        write_as_reference(folder, "10.1.0.2", C1)
        assert store.find("c1", "eth0") == (C1, ())
    assert os.listdir(folder) == ["10.1.0.2"]


def test_older_form_counts_only_without_the_newer_one(folder: Path) -> None:
    write_as_reference(folder, "10.1.0.2", b"c1")
    write_as_reference(folder, "10.1.0.3", b"c1\r\nnet1\n")
    with Store(str(folder)) as store:
        assert store.find("c1", "net1") == (b"c1\r\nnet1", ("10.1.0.3",))
        assert store.find("c1", "eth0") == (b"c1", ("10.1.0.2",))
        assert store.find("c2", "eth0") == (C2, ())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"c1\r\neth0", "container c1 eth0"),
        (b"c1", "container c1"),
        (b"# the printer", "no container: b'# the printer'"),
        (None, "a file that cannot be read"),
    ],
)
def test_holder_is_described(content: bytes | None, said: str) -> None:
    assert leases.describe(content) == said


def test_a_name_that_is_no_utf8_comes_back(folder: Path) -> None:
    holder = owner("c1", "eth\udcff")
    reserve(folder, "10.1.0.2", holder)
    assert (folder / "10.1.0.2").read_bytes() == b"c1\r\neth\xff"
    assert leases.split(holder) == ("c1", "eth\udcff")
    assert addresses_of(folder, holder) == ["10.1.0.2"]


# The index


def test_index_names_each_owners_addresses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve(folder, "10.1.0.2", C1)
    reserve(folder, "2001:db8::2", C1)
    reserve(folder, "10.1.0.3", C2)
    assert sorted(index(folder).values()) == ["10.1.0.2,2001:db8::2", "10.1.0.3"]
    assert not reads_all_files(monkeypatch, folder, C1)
    assert addresses_of(folder, C1) == ["10.1.0.2", "2001:db8::2"]


def test_release_of_one_address_keeps_the_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve(folder, "10.1.0.2", C1)
    reserve(folder, "2001:db8::2", C1)
    with Store(str(folder)) as store:
        store.release(C1, ("10.1.0.2",))
    assert lease_files(folder) == {"2001:db8::2": C1}
    assert not reads_all_files(monkeypatch, folder, C1)
    assert addresses_of(folder, C1) == ["2001:db8::2"]


def test_unknown_owner_costs_no_look_into_all_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve(folder, "10.1.0.2", C1)
    assert not reads_all_files(monkeypatch, folder, C2)


def _add_file(folder: Path) -> None:
    write_as_reference(folder, "10.1.0.9", C2)


def _remove_file(folder: Path) -> None:
    (folder / "10.1.0.2").unlink()


def _remove_index(folder: Path) -> None:
    for name in os.listdir(folder / ".owners"):
        (folder / ".owners" / name).unlink()
    (folder / ".owners").rmdir()


def _touch_index(folder: Path) -> None:
    os.utime(folder / ".owners")


def _leave_temporary_file(folder: Path) -> None:
    (folder / ".owners" / "new").write_bytes(b"c2\r\ne")


def _give_file_to_another(folder: Path) -> None:
    (folder / "10.1.0.2").write_bytes(C2)


def _cut_file_to_nothing(folder: Path) -> None:
    os.truncate(folder / "10.1.0.2", 0)


@pytest.mark.parametrize(
    ("happens", "of_c1"),
    [
        (_add_file, ["10.1.0.2"]),
        (_remove_file, []),
        (_remove_index, ["10.1.0.2"]),
        (_touch_index, ["10.1.0.2"]),
        (_leave_temporary_file, ["10.1.0.2"]),
        (_give_file_to_another, []),
        (_cut_file_to_nothing, []),
    ],
)
def test_index_heals(
    folder: Path, monkeypatch: pytest.MonkeyPatch, happens: Callable[[Path], None], of_c1: list[str]
) -> None:
    reserve(folder, "10.1.0.2", C1)
    happens(folder)
    assert addresses_of(folder, C1) == of_c1
    of_c2 = sorted(name for name, content in lease_files(folder).items() if content == C2)
    assert addresses_of(folder, C2) == of_c2
    assert sorted(index(folder).values()) == sorted(lease_files(folder))
    assert not reads_all_files(monkeypatch, folder, C1)


def test_equal_times_alone_do_not_make_an_index_valid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a rename from .owners to the folder leaves behind when nothing follows it: no link, and equal times.
    reserve(folder, "10.1.0.2", C1)
    (folder / ".owners" / "new").write_bytes(C2)
    (folder / ".owners" / "new").rename(folder / "10.1.0.3")
    same = os.stat_result((*range(10), 0, 0, 0, 7, 7, 7), {"st_mtime_ns": 7, "st_ctime_ns": 7})

    class AtOnce(Posix):
        def stat(self, path: str) -> os.stat_result:
            return same if path in (str(folder), str(folder / ".owners")) else posix.stat(path)

    with monkeypatch.context() as patched:
        patched.setattr(leases, "posix", AtOnce(lambda _: None))
        assert addresses_of(folder, C2) == ["10.1.0.3"]


def test_change_in_the_same_tick_of_the_clock_is_noticed(folder: Path) -> None:
    # The clock of file times may stand still for some milliseconds: a change right now would have the time of the last.
    write_as_reference(folder, "10.1.0.8", C2)
    changed = folder.stat().st_mtime_ns
    reserve(folder, "10.1.0.2", C1)
    assert folder.stat().st_mtime_ns == (folder / ".owners").stat().st_mtime_ns < changed


def test_empty_files_are_cleared_away_and_block_nothing(folder: Path) -> None:
    for address in ("10.1.0.2", "10.1.0.3"):
        write_as_reference(folder, address, b"")
    with Store(str(folder)) as store:
        assert store.is_free("10.1.0.2")
        assert store.leases() == {}
    assert lease_files(folder) == {}


def test_what_is_no_lease_is_left_alone(folder: Path) -> None:
    foreign = {
        "10.1.0.5": b"# the printer",
        "10.1.0.05": b"c1\r\neth0",
        "notes.txt": b"c1\r\neth0",
        "10.1.0.6": b"c1\neth0",
    }
    for name, content in foreign.items():
        write_as_reference(folder, name, content)
    (folder / "10.1.0.7").mkdir()
    with Store(str(folder)) as store:
        assert store.leases() == {}
        assert store.find("c1", "eth0") == (C1, ())
        assert [store.is_free(address) for address in ("10.1.0.5", "10.1.0.6", "10.1.0.7")] == [False] * 3
    assert {name: (folder / name).read_bytes() for name in foreign} == foreign
    assert (folder / "10.1.0.7").is_dir()


# Crashes and faults

CHANGES = frozenset({"open", "mkdir", "write", "ftruncate", "rename", "unlink", "symlink", "utime"})


def _killed_at(number: int, work: Callable[[], None]) -> bool:
    """Do the work in a process that dies before its change of that number; tell whether it died."""
    pid = os.fork()
    if pid == 0:
        left = [number]

        def before(name: str) -> None:
            left[0] -= name in CHANGES
            if left[0] < 0:
                os._exit(9)

        leases.posix = Posix(before)  # type: ignore[assignment, attr-defined]
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def _on_new_folder(folder: Path) -> None:
    assert not folder.exists()


def _on_used_folder(folder: Path) -> None:
    reserve(folder, "10.1.0.8", C2)
    reserve(folder, "2001:db8::8", C2)


def _on_the_references_folder(folder: Path) -> None:
    write_as_reference(folder, "10.1.0.8", C2)
    write_as_reference(folder, "2001:db8::8", C2)


def _reserve_two(folder: Path) -> None:
    reserve(folder, "10.1.0.2", C1)
    reserve(folder, "2001:db8::2", C1)


def _release_two(folder: Path) -> None:
    release(folder, "c2")


@pytest.mark.parametrize(
    ("before", "work"),
    [
        (_on_new_folder, _reserve_two),
        (_on_used_folder, _reserve_two),
        (_on_used_folder, _release_two),
        (_on_the_references_folder, _reserve_two),
        (_on_the_references_folder, _release_two),
    ],
)
def test_killed_at_any_moment_leaves_whole_leases_that_are_found(
    tmp_path: Path, before: Callable[[Path], None], work: Callable[[Path], None]
) -> None:
    for number in range(100):
        folder = tmp_path / str(number) / "net"
        before(folder)
        if not _killed_at(number, lambda folder=folder: work(folder)):  # type: ignore[misc]
            break
        there = lease_files(folder) if folder.exists() else {}
        assert set(there.values()) <= {C1, C2}, number
        for holder in (C1, C2):
            held = sorted(address for address, content in there.items() if content == holder)
            assert addresses_of(folder, holder) == held, number
        reserve(folder, "10.1.0.4", C1)
        release(folder, "c1")
        release(folder, "c2")
        assert lease_files(folder) == {}, number
    else:
        pytest.fail("the work never came to its end")
    assert number > 5


def _fails(which: str, after: int = 0) -> Posix:
    calls: Counter[str] = Counter()

    def before(name: str) -> None:
        calls[name] += 1
        if name == which and calls[name] > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return Posix(before)


def test_a_store_that_cannot_be_read_is_not_kept_locked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve(folder, "10.1.0.2", C1)
    with monkeypatch.context() as patched:
        patched.setattr(Store, "_is_stamped", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError), Store(str(folder)):
            pass
    fd = os.open(folder / "lock", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_index_that_cannot_be_written_does_not_keep_a_lease(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_as_reference(folder, "10.1.0.2", C1)
    write_as_reference(folder, "10.1.0.3", C2)
    with monkeypatch.context() as patched:
        patched.setattr(leases, "posix", _fails("symlink"))
        release(folder, "c1")
        reserve(folder, "10.1.0.4", owner("c4", "eth0"))
    assert lease_files(folder) == {"10.1.0.3": C2, "10.1.0.4": owner("c4", "eth0")}
    assert addresses_of(folder, owner("c4", "eth0")) == ["10.1.0.4"]


@pytest.mark.parametrize("which", ["symlink", "utime"])
def test_lease_whose_link_could_not_be_written_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    reserve(folder, "10.1.0.2", C1)
    with monkeypatch.context() as patched:
        patched.setattr(leases, "posix", _fails(which))
        reserve(folder, "10.1.0.3", C2)
    assert addresses_of(folder, C2) == ["10.1.0.3"]


@pytest.mark.parametrize("which", ["write", "ftruncate", "rename"])
def test_reserve_that_fails_makes_no_lease(folder: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    reserve(folder, "10.1.0.2", C1)
    with monkeypatch.context() as patched:
        patched.setattr(files if which == "write" else leases, "posix", _fails(which))
        with pytest.raises(CniError) as caught:
            reserve(folder, "10.1.0.3", C2)
    assert caught.value.code == spec.IO_FAILURE
    assert caught.value.msg == f"{folder}: No space left on device"
    assert lease_files(folder) == {"10.1.0.2": C1}
    assert "new" not in os.listdir(folder / ".owners")
    assert addresses_of(folder, C2) == []


def test_release_goes_on_after_a_fault_and_reports_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve(folder, "10.1.0.2", C1)
    reserve(folder, "10.1.0.3", C1)
    (folder / "10.1.0.2").unlink()
    (folder / "10.1.0.2").mkdir()
    with Store(str(folder)) as store, pytest.raises(CniError) as caught:
        store.release(C1, ("10.1.0.2", "10.1.0.3"))
    assert caught.value.code == spec.IO_FAILURE
    assert caught.value.msg == f"{folder}/10.1.0.2: Is a directory"
    assert (folder / "10.1.0.2").is_dir()
    assert not (folder / "10.1.0.3").exists()


def test_a_file_in_the_folders_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "networks").write_text("")
    with pytest.raises(CniError) as caught:
        reserve(tmp_path / "networks" / "net", "10.1.0.2", C1)
    assert caught.value.code == spec.IO_FAILURE
    assert caught.value.msg == f"{tmp_path}/networks/net: Not a directory"


def test_link_to_nowhere_in_the_folders_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "networks").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CniError) as caught:
        reserve(tmp_path / "networks" / "net", "10.1.0.2", C1)
    assert caught.value.code == spec.IO_FAILURE


# What somebody else put there


def test_folders_are_0755_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        reserve(tmp_path / "a" / "b" / "net", "10.1.0.2", C1)
    finally:
        os.umask(umask)
    modes = {path: (tmp_path / path).stat().st_mode & 0o777 for path in ("a", "a/b", "a/b/net", "a/b/net/.owners")}
    assert modes == {"a": 0o755, "a/b": 0o755, "a/b/net": 0o755, "a/b/net/.owners": 0o700}


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("lock", True),
        ("last_reserved_ip.0", True),
        (".owners", False),
        (".owners/new", False),
        ("10.1.0.2", False),
        ("10.1.0.3", False),
    ],
)
def test_no_link_is_followed(folder: Path, tmp_path: Path, name: str, refused: bool) -> None:
    reserve(folder, "10.1.0.9", C2)
    elsewhere = tmp_path / "elsewhere"
    if name == ".owners":
        elsewhere.mkdir()
        (elsewhere / "file").write_text("precious")
        _remove_index(folder)
    else:
        elsewhere.write_text("c1\r\neth0")
        (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(elsewhere)
    before = sorted(path.read_text() for path in (elsewhere, *elsewhere.glob("*")) if path.is_file())
    if refused:
        with pytest.raises(CniError, match=rf"/{name}: Too many levels of symbolic links "):
            reserve(folder, "10.1.0.2", C1)
        assert not (folder / "10.1.0.2").exists()
    else:
        reserve(folder, "10.1.0.2", C1)
        release(folder, "c2")
        assert lease_files(folder)["10.1.0.2"] == C1
        assert not (folder / "10.1.0.9").exists()
    assert sorted(path.read_text() for path in (elsewhere, *elsewhere.glob("*")) if path.is_file()) == before


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_folder_of_somebody_elses_is_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.parent.mkdir()
    if kind == "folder":
        folder.mkdir()
    else:
        folder.symlink_to(tmp_path / "elsewhere")
    try:
        os.chown(folder, 4711, 4711, follow_symlinks=False)
    except OSError as e:
        pytest.skip(f"another user's folder cannot be made here: {e.strerror}")
    with pytest.raises(CniError) as raised:
        reserve(folder, "10.1.0.2", C1)
    assert (raised.value.code, raised.value.msg) == (spec.IO_FAILURE, f"{folder}: belongs to user 4711")
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_link_of_the_administrators_is_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.parent.mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    reserve(folder, "10.1.0.2", C1)
    assert (tmp_path / "elsewhere" / "10.1.0.2").read_bytes() == C1


# Whether a lease could be written


@pytest.mark.parametrize("below", ["", "net", "not/there/yet"])
def test_writable_folder_has_no_fault_and_is_not_touched(tmp_path: Path, below: str) -> None:
    before = tmp_path.stat().st_mtime_ns
    assert leases.write_fault(str(tmp_path / below)) == ""
    assert tmp_path.stat().st_mtime_ns == before
    assert os.listdir(tmp_path) == []


def test_file_in_the_folders_place_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "networks").write_text("")
    assert leases.write_fault(f"{tmp_path}/networks/net") == f"{tmp_path}/networks/net: Not a directory"


def test_full_disk_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "posix", _fails("write"))
    assert leases.write_fault(str(tmp_path)) == f"{tmp_path}: No space left on device"


@pytest.mark.parametrize(("writable", "fault"), [(True, ""), (False, "Operation not supported")])
def test_file_system_without_nameless_files_is_asked_for_its_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: bool, fault: str
) -> None:
    class Plain(Posix):
        def open(self, _: str, __: int, ___: int) -> int:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        def access(self, _: str, mode: int) -> bool:
            assert mode == os.W_OK | os.X_OK
            return writable

    monkeypatch.setattr(leases, "posix", Plain(lambda _: None))
    assert leases.write_fault(str(tmp_path)) == (fault and f"{tmp_path}: {fault}")


def test_a_folder_that_somebody_else_makes_meanwhile_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "networks" / "net"
    really = posix.mkdir

    def mkdir(path: str, mode: int) -> None:
        really(path, mode)
        if path == str(folder.parent):
            folder.mkdir()

    monkeypatch.setattr(posix, "mkdir", mkdir)
    with Store(str(folder), create=True) as store:
        assert store.listing() == ["lock"]


# What somebody else has put there


@pytest.mark.parametrize("name", ["lock", "last_reserved_ip.0", "10.1.0.2", ".owners/new"])
def test_a_fifo_keeps_nobody_waiting(folder: Path, name: str) -> None:
    (folder / ".owners").mkdir(parents=True)
    os.mkfifo(folder / name)
    try:
        reserve(folder, "10.1.0.2", C1)
    except CniError as e:
        assert e.code == spec.IO_FAILURE  # noqa: PT017 (a lock may be a FIFO, what is to be written may not)
    assert addresses_of(folder, C2) == []


def test_an_index_that_leads_out_of_the_folder_is_not_followed(folder: Path) -> None:
    reserve(folder, "10.1.0.2", C2)
    outside = folder.parent / "10.1.0.9"
    outside.write_bytes(C1)
    (folder / ".owners" / Path(Store("")._link(C1)).name).symlink_to("../10.1.0.9")
    with Store(str(folder)) as store:
        store._stamp()
    with Store(str(folder)) as store:
        assert store._is_stamped()
        assert store.find("c1", "eth0")[1] == ()
        store.release(*store.find("c1", "eth0"))
    assert outside.read_bytes() == C1


def test_a_path_may_have_many_folders(tmp_path: Path) -> None:
    path = str(tmp_path) + "/a" * 1500
    assert leases.write_fault(path) == ""
    try:
        files.make_folder(path)
        assert os.path.isdir(path)
    finally:
        # Python cannot remove as many, which pytest would try to.
        subprocess.run(["rm", "-rf", tmp_path / "a"], check=True)


def test_a_folder_below_a_link_to_nothing_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        files.make_folder(f"{tmp_path}/link/a/b")
