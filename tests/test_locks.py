"""Files that are locks, and how long they are waited for."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cnikit.effects import limit, locks
from cnikit.effects.leases import Store
from cnikit.errors import CniError


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "share", lambda: 0.05)


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def other(tmp_path: Path, hold_lock: Callable[[Path], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Give a process that holds the lock until its stdin ends."""
    return hold_lock(tmp_path / "lock")


def test_a_lock_is_held_from_with_to_its_end(tmp_path: Path, lock: int) -> None:
    with locks.Locked(str(tmp_path / "lock")), pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    with locks.Locked(str(tmp_path / "lock")):
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_lock_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(CniError) as raised, locks.Locked(str(tmp_path / "no" / "lock")):
        pass
    assert (raised.value.code, raised.value.msg) == (5, f"{tmp_path}/no/lock: No such file or directory")


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CniError) as raised, locks.Locked(str(tmp_path / "lock")):
        pass
    assert (raised.value.code, raised.value.msg) == (5, f"{tmp_path}/lock: Too many levels of symbolic links")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.usefixtures("impatient")
def test_the_holder_of_a_lock_is_named(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    with pytest.raises(CniError) as raised, locks.Locked(str(tmp_path / "lock")):
        pass
    assert raised.value.code == 11
    assert raised.value.msg == f"{tmp_path}/lock is locked by process {other.pid} (cat)"
    assert raised.value.details == "waited 0.05 s for it"


@pytest.mark.usefixtures("impatient")
def test_leases_are_locked_for_so_long_only(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    with pytest.raises(CniError) as raised, Store(str(tmp_path)):
        pass
    assert (raised.value.code, raised.value.msg) == (11, f"{tmp_path}/lock is locked by process {other.pid} (cat)")


@pytest.mark.usefixtures("impatient")
def test_a_holder_that_has_ended_and_left_the_lock_to_a_child(tmp_path: Path) -> None:
    script = f"exec 9>{tmp_path}/lock; flock 9; sleep 1000 >&- 2>&- & echo $!"
    child = int(subprocess.check_output(["sh", "-c", script]))
    try:
        with pytest.raises(CniError) as raised, locks.Locked(str(tmp_path / "lock")):
            pass
    finally:
        os.kill(child, 9)
    assert re.search(r"lock is locked by process \d+ \(ended; a child of it has the lock\)$", raised.value.msg)


def test_a_lock_that_is_let_go_is_taken(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    os.kill(other.pid, signal.SIGTERM)  # it ends sooner or later
    with locks.Locked(str(tmp_path / "lock")):
        assert other.wait() == -signal.SIGTERM


def test_no_descriptor_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with locks.Locked(str(tmp_path / "lock")):
        pass
    fcntl.flock(lock, fcntl.LOCK_EX)
    monkeypatch.setattr(limit, "share", lambda: 0.0)
    with pytest.raises(CniError), locks.Locked(str(tmp_path / "lock")):
        pass
    assert len(os.listdir("/proc/self/fd")) == before
