"""Who waits for whom: verbs of one container for each other, GC for all of its network, whatever the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from cnikit import networks
from cnikit.errors import CniError
from cnikit.exclusion import Exclusion
from cnikit.runtime import Attachment, Repaired, Runtime
from tests.conftest import PROJECT
from tests.fake_plugin import FakePlugins

NET = networks.parse(b'{"cniVersion": "1.1.0", "name": "net1", "plugins": [{"type": "alpha"}]}')
WEB, DB = Attachment("web"), Attachment("db")

Holding = Callable[[Exclusion], AbstractContextManager[None]]
HELD: dict[str, Holding] = {
    "a verb of web on net1": lambda locks: locks.beside_others("net1", "web"),
    "a verb of web on net2": lambda locks: locks.beside_others("net2", "web"),
    "a verb of db on net1": lambda locks: locks.beside_others("net1", "db"),
    "gc of net1": lambda locks: locks.alone("net1"),
    "gc of net2": lambda locks: locks.alone("net2"),
}
VERBS: dict[str, Callable[[Runtime], object]] = {
    "add web": lambda runtime: runtime.add(NET, WEB),
    "check web": lambda runtime: runtime.check(NET, WEB),
    "delete web": lambda runtime: runtime.delete(NET, WEB),
    "repair web": lambda runtime: _raised(runtime.repair(NET, [WEB])[0].fault),
    "gc": lambda runtime: runtime.gc(NET, ()),
    "status": lambda runtime: runtime.status(NET),
    "version": lambda runtime: runtime.version(NET),
}
ABOUT_WEB = {"add web", "check web", "delete web", "repair web"}
# What must wait. gc has web to delete; repair begins with a moment alone on its network, and goes on about web alone.
WAITS = {
    "a verb of web on net1": {*ABOUT_WEB, "gc"},
    "a verb of web on net2": {*ABOUT_WEB, "gc"},
    "a verb of db on net1": {"gc", "repair web"},
    "gc of net1": {*ABOUT_WEB, "gc"},
    "gc of net2": set(),
}


def _raised(fault: CniError | None) -> None:
    if fault:
        raise fault


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "locks"


@pytest.fixture
def plugins(tmp_path: Path) -> FakePlugins:
    return FakePlugins(tmp_path / "bin", "alpha")


def runtime(plugins: FakePlugins, folder: Path, patience: float = 0) -> Runtime:
    return Runtime([plugins.folder], folder.parent, patience)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@contextmanager
def elsewhere(folder: Path, held: str) -> Iterator[int]:
    """Hold locks in another process; gives its id."""
    code = f"import sys; from tests import test_exclusion as t; t.hold({str(folder)!r}, {held!r})"
    command = [str(Path(sys.executable).with_name("python")), "-c", code]
    process = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        yield process.pid


def hold(folder: str, held: str) -> None:
    with HELD[held](Exclusion(folder)):
        os.write(1, b"held\n")
        sys.stdin.read()


@pytest.mark.parametrize("held", HELD)
def test_a_verb_waits_for_what_it_must_not_run_beside(folder: Path, plugins: FakePlugins, held: str) -> None:
    """With no patience it is refused instead; what need not wait is run."""
    runtime(plugins, folder).add(NET, WEB)
    with elsewhere(folder, held) as pid:
        waits = {verb for verb in VERBS if _is_refused(verb, runtime(plugins, folder), plugins, pid)}
    assert waits == WAITS[held]


def _is_refused(verb: str, ours: Runtime, plugins: FakePlugins, pid: int) -> bool:
    plugins.calls()
    refusal = ""
    try:
        VERBS[verb](ours)
    except CniError as e:
        refusal = e.msg if e.code == 11 else ""
    if not refusal:
        return False
    assert f"is locked by process {pid} (python)" in refusal
    assert [call for call in plugins.calls() if call["env"]["CNI_CONTAINERID"]] == []
    return True


def test_the_lock_that_is_waited_for_is_named(folder: Path, plugins: FakePlugins) -> None:
    with elsewhere(folder, "a verb of web on net1") as pid, pytest.raises(CniError) as error:
        runtime(plugins, folder, patience=0.1).delete(NET, WEB)
    assert (error.value.code, error.value.details) == (11, "waited 0.1 s for it")
    assert error.value.msg == f"{folder}/container-web is locked by process {pid} (python)"


def test_who_waits_goes_on_when_the_lock_is_let_go(folder: Path) -> None:
    order = []

    def wait() -> None:
        with Exclusion(folder).alone("net1"):
            order.append("gc")

    waiting = Thread(target=wait)
    with Exclusion(folder).beside_others("net1", "web"):
        waiting.start()
        order.append("verb")
    waiting.join()
    assert order == ["verb", "gc"]


def test_who_comes_after_one_that_waits_to_be_alone_waits_behind_him(folder: Path) -> None:
    """Otherwise a steady stream of ADDs would keep GC out for ever."""
    order = []
    entered = Event()

    def run(what: str, locks: AbstractContextManager[None]) -> None:
        with locks:
            order.append(what)
            entered.set()

    with Exclusion(folder).beside_others("net1", "web"):
        gc = Thread(target=run, args=("gc", Exclusion(folder).alone("net1")))
        gc.start()
        while not (folder / "next-net1").exists():  # gc holds it as soon as it waits
            pass
        later = Thread(target=run, args=("add", Exclusion(folder).beside_others("net1", "db")))
        later.start()
        assert not entered.wait(0.1)
    gc.join()
    later.join()
    assert order == ["gc", "add"]


def test_one_file_for_a_network_is_left(folder: Path, plugins: FakePlugins) -> None:
    ours = runtime(plugins, folder)
    for number in range(3):
        ours.add(NET, Attachment(f"c{number}"))
        ours.delete(NET, Attachment(f"c{number}"))
    assert names(folder) == ["network-net1"]
    ours.gc(NET, ())
    assert names(folder) == []


def test_locks_are_for_root_alone(folder: Path) -> None:
    with Exclusion(folder).beside_others("net1", "web"):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {(folder / name).stat().st_mode & 0o777 for name in names(folder)} == {0o600}


def test_a_link_that_somebody_placed_is_not_followed(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "container-web").symlink_to(tmp_path / "victim")
    with pytest.raises(CniError) as error, Exclusion(folder).beside_others("net1", "web"):
        pass
    assert (error.value.code, error.value.msg) == (5, f"{folder}/container-web: Too many levels of symbolic links")
    assert not (tmp_path / "victim").exists()


def test_a_killed_holder_holds_nothing(folder: Path) -> None:
    with elsewhere(folder, "gc of net1") as pid:
        os.kill(pid, signal.SIGKILL)
    with Exclusion(folder, patience=0).beside_others("net1", "web"):
        pass


SLOW = """\
#!/bin/sh
echo $$ >"$0.pid"
read line <"$0.end"
"""


def test_a_plugin_whose_runtime_was_killed_is_waited_for(folder: Path, tmp_path: Path) -> None:
    """It goes on, so a DEL beside it would leave what it makes afterwards."""
    (tmp_path / "bin").mkdir()
    slow = tmp_path / "bin" / "alpha"
    slow.write_text(SLOW)
    slow.chmod(0o755)
    for name in ("alpha.pid", "alpha.end"):
        os.mkfifo(tmp_path / "bin" / name)
    code = "import sys; from tests.test_exclusion import *;Runtime([sys.argv[1]], sys.argv[2]).add(NET, WEB)"
    command = [sys.executable, "-c", code, str(tmp_path / "bin"), str(folder.parent)]
    killed = subprocess.Popen(command, cwd=PROJECT)
    (tmp_path / "bin" / "alpha.pid").read_text()
    killed.kill()
    killed.wait()
    with pytest.raises(CniError) as error:
        Runtime([tmp_path / "bin"], folder.parent, patience=0).delete(NET, WEB)
    holder = f"process {killed.pid} (ended; a child of it has the lock)"
    assert (error.value.code, error.value.msg) == (11, f"{folder}/container-web is locked by {holder}")
    (tmp_path / "bin" / "alpha.end").write_text("\n")
    with Exclusion(folder).beside_others("net1", "web"):
        pass


LEAVES_A_DAEMON = """\
#!/bin/sh
sleep 1000 <&- >&- 2>&- &
echo $! >"$0.daemon"
"""


def test_what_a_plugin_leaves_running_holds_no_lock_when_the_verb_is_done(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    alpha = tmp_path / "bin" / "alpha"
    alpha.write_text(LEAVES_A_DAEMON)
    alpha.chmod(0o755)
    Runtime([tmp_path / "bin"], folder.parent).delete(NET, WEB)
    daemon = int((tmp_path / "bin" / "alpha.daemon").read_text())
    try:
        with Exclusion(folder, patience=0).alone("net1"):
            pass
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_a_file_that_cannot_be_removed_is_not_kept_locked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks = Exclusion(folder, patience=0.1)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda *_, **__: os.unlink("/nowhere"))
        with locks.alone("net1"):
            pass
    with locks.alone("net1"):
        assert len(locks.held()) == 1


def test_locks_that_come_and_go_let_one_in_at_a_time(folder: Path) -> None:
    """Each holder removes the file that the others are about to lock."""
    inside: list[int] = []
    most: list[int] = []

    def run(number: int) -> None:
        for _ in range(50):
            with Exclusion(folder).of_container("web"):
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    threads = [Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 400
    assert names(folder) == []


def test_what_is_alive_is_looked_for_when_nothing_else_runs(folder: Path, plugins: FakePlugins) -> None:
    """An ADD that ends while gc waits is not taken for one that is gone."""
    ours = runtime(plugins, folder, patience=60)
    gc = Thread(target=lambda: ours.gc(NET))
    with Exclusion(folder).beside_others("net1", "web"):
        gc.start()
        while not (folder / "next-net1").exists():
            pass
        ours.cache.store(NET, WEB, {"cniVersion": "1.1.0"})
    gc.join()
    assert plugins.called() == ["alpha GC"]


def test_repair_knows_of_an_add_that_was_under_way_when_it_began(folder: Path, plugins: FakePlugins) -> None:
    """What it made may have been flushed, and its result was not cached yet."""
    ours = runtime(plugins, folder, patience=60)
    repaired: list[Repaired] = []
    repair = Thread(target=lambda: repaired.extend(ours.repair(NET)))
    with Exclusion(folder).beside_others("net1", "web"):
        repair.start()
        while not (folder / "next-net1").exists():
            pass
        ours.cache.store(NET, WEB, {"cniVersion": "1.1.0"})
    repair.join()
    assert [done.attachment for done in repaired] == [WEB]


def test_repair_says_nothing_of_what_was_deleted_since_it_began(
    folder: Path, plugins: FakePlugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = runtime(plugins, folder)
    ours.cache.store(NET, WEB, {"cniVersion": "1.1.0"})
    known = ours.cache.of("net1")
    ours.delete(NET, WEB)
    monkeypatch.setattr(ours.cache, "of", lambda _: known)
    assert ours.repair(NET) == ()
