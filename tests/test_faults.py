"""Every call to the kernel fails in turn, in ADD and DEL of the built executables: what is told is true, nothing stays.

strace has one system call of a plugin fail. An ADD then either gives an error and has taken back all that it did,
without a DEL; or it could do without, and CHECK finds what it reports. A DEL that succeeds has left nothing, and one
that fails is followed by one that leaves nothing. The container next to it has what it had in any case.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.chain import KINDS, Attachment, settled, snapshot
from tests.conftest import BUILT, full, sample, sh
from tests.surroundings import wait_for
from tests.tracing import Syscall, Trace, begun

# What each may be refused with: no memory, no room, a limit, not allowed, a broken disk.
ERRNOS = {
    "sendto": ("ENOBUFS", "EPERM", "ENOMEM"),
    "recvfrom": ("ENOBUFS", "ENOMEM"),
    "socket": ("EMFILE", "ENOMEM"),
    "openat": ("ENOSPC", "EACCES", "EMFILE", "EIO"),
    "read": ("EIO",),
    "write": ("ENOSPC", "EIO"),
    "ftruncate": ("EIO",),
    "rename": ("ENOSPC", "EIO"),
    "unlink": ("EPERM", "EIO"),
    "symlink": ("ENOSPC", "EIO"),
    "mkdir": ("ENOSPC", "EACCES"),
    "utimensat": ("EPERM", "EIO"),
    "newfstatat": ("EIO",),
    "flock": ("ENOLCK",),
    "setns": ("EPERM", "ENOMEM"),
    "fsopen": ("EPERM", "ENOSYS"),
    "fsconfig": ("EPERM", "ENOMEM"),
    "fsmount": ("EPERM", "EMFILE"),
    "ioctl": ("ENOMEM",),
}
RUN = Path("/run")


class Fault(NamedTuple):
    """A call, and the errno it is to fail with."""

    call: Syscall
    errno: str

    def __str__(self) -> str:
        return f"{self.errno} for {self.call.text[:150]}"


def faults(calls: list[Syscall]) -> list[Fault]:
    """Return all that can go wrong, from the request read to the result told: each call, with the errnos in turn."""
    found: list[Fault] = []
    files: dict[str, str] = {}  # by descriptor
    for call in calls[begun(calls) + 2 :]:
        fd = call.text[len(call.name) + 1 :].partition(",")[0]
        path = call.text if call.name == "openat" else files.get(fd, "")
        if call.name == "close":
            files.pop(fd.rstrip(") =0"), None)
        if call.name == "openat":
            files[call.text.rpartition("= ")[2]] = call.text
        if fd == "1" or is_interpreters(path) or "AT_EMPTY_PATH" in call.text:
            continue
        errnos = [errno for errno in ERRNOS.get(call.name, ()) if not is_no_fault(path, errno)]
        if errnos:
            found.append(Fault(call, errnos[len(found) % len(errnos)]))
    return found


def is_interpreters(path: str) -> bool:
    """Tell whether a file is one that the interpreter loads modules from, or reads for its own sake."""
    return f"{BUILT}/.cnikit" in path or "/etc/localtime" in path


def is_no_fault(path: str, errno: str) -> bool:
    """Tell whether that is an answer that tuning knows: there are sysctls that can only be written."""
    return "sys/net/" in path and "O_RDONLY" in path and errno in ("EACCES", "EIO")


class Site:
    """A container that is added by all plugins before one, beside a neighbour that stays."""

    def __init__(self, kind: str, neighbour: Attachment, attachment: Attachment, leases: Path, trace: Trace) -> None:
        self.kind, self.neighbour, self.attachment = kind, neighbour, attachment
        self.leases, self.trace = leases, trace
        neighbour.add()
        attachment.add(KINDS[: KINDS.index(kind)])
        self.given = attachment.result
        self.calls = {verb: min((self._traced(verb) for _ in range(3)), key=len) for verb in ("ADD", "DEL")}
        wait_for(lambda: settled("", attachment.sandbox, neighbour.sandbox))
        self.before = self.now()
        self.failed = 0

    def _traced(self, verb: str) -> list[Syscall]:
        around = {verb: self.trace.around()}
        added = self.attachment.run("ADD", self.kind, self.given, around.get("ADD", ()))
        assert added.returncode == 0, added.stdout
        add = self.trace.calls() if verb == "ADD" else []
        deleted = self.attachment.run("DEL", self.kind, json.loads(added.stdout), around.get("DEL", ()))
        assert deleted.returncode == 0, deleted.stdout
        return add or self.trace.calls()

    def now(self) -> set[str]:
        """Return what is there. The neighbour must have what it had."""
        checked = self.neighbour.run("CHECK", "bridge", self.neighbour.result)
        assert (checked.returncode, checked.stdout) == (0, "")
        # Whoever looks for a lease next makes an index anew that could not be written.
        looked = Attachment("nobody", "", self.leases, 8003).run("DEL", "bridge", {})
        assert (looked.returncode, looked.stdout) == (0, "")
        return snapshot((self.leases, RUN), (self.neighbour.sandbox, self.attachment.sandbox))

    def with_fault(self, verb: str, fault: Fault, given: dict[str, object]) -> subprocess.CompletedProcess[str]:
        """Call the plugin; an error that it gives is one that helps."""
        done = self.attachment.run(verb, self.kind, given, self.trace.failing(*fault))
        self.failed += "(INJECTED)" in self.trace.file.read_text(errors="replace")
        assert done.stderr == "", f"{fault}: {done.stderr}"
        if done.returncode:
            error = json.loads(done.stdout)
            assert done.returncode == 1
            assert ": " in error["msg"], f"{fault}: {error} names nothing"
            assert error["code"] != 999, f"{fault}: {error}"
        return done

    def assert_as_before(self, fault: Fault) -> None:
        """All is as it was without the plugin."""
        after = self.now()
        assert (after - self.before, self.before - after) == (set(), set()), str(fault)


@pytest.fixture
def site(
    request: pytest.FixtureRequest, host: str, new_container: Callable[[], str], networks: Path, tmp_path: Path
) -> Site:
    assert host
    neighbour = Attachment("neighbour", new_container(), networks, 8001)
    attachment = Attachment("victim", new_container(), networks, 8002)
    return Site(request.getfixturevalue("kind"), neighbour, attachment, networks, Trace(tmp_path / "trace"))


def chosen(site: Site, verb: str, number: int) -> list[Fault]:
    """Return so many of the faults there can be, 0 for all."""
    found = faults(site.calls[verb])
    return random.Random(4).sample(found, number) if number else found


@pytest.mark.parametrize(
    ("kind", "number", "least"),
    [
        *(sample(kind, 10, 10) for kind in KINDS),
        full("bridge", 0, 120),
        full("portmap", 0, 50),
        full("firewall", 0, 30),
        full("tuning", 0, 35),
    ],
)
def test_an_add_with_a_fault(site: Site, kind: str, number: int, least: int) -> None:
    tried = chosen(site, "ADD", number)
    for fault in tried:
        done = site.with_fault("ADD", fault, site.given)
        if done.returncode == 0:
            result = json.loads(done.stdout)
            checked = site.attachment.run("CHECK", kind, result)
            assert checked.returncode == 0, f"{fault}: {checked.stdout}"
            assert site.attachment.run("DEL", kind, result).returncode == 0
        site.assert_as_before(fault)
    sh("ping -c 1 -W 2 10.12.0.2")
    assert len(tried) >= least
    assert site.failed >= len(tried) * 0.9


@pytest.mark.parametrize(
    ("kind", "number", "least"),
    [
        *(sample(kind, 5, 5) for kind in KINDS),
        full("bridge", 0, 60),
        full("portmap", 0, 50),
        full("firewall", 0, 25),
        full("tuning", 0, 30),
    ],
)
def test_a_del_with_a_fault(site: Site, kind: str, number: int, least: int) -> None:
    tried = chosen(site, "DEL", number)
    for fault in tried:
        added = site.attachment.run("ADD", kind, site.given)
        assert added.returncode == 0, added.stdout
        result = json.loads(added.stdout)
        done = site.with_fault("DEL", fault, result)
        if done.returncode != 0:
            again = site.attachment.run("DEL", kind, result)
            assert (again.returncode, again.stdout) == (0, ""), str(fault)
        site.assert_as_before(fault)
    sh("ping -c 1 -W 2 10.12.0.2")
    assert len(tried) >= least
    assert site.failed >= len(tried) * 0.9
