"""Namespaces for tests. `./build.sh test` runs all of this in namespaces of its own; see private()."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cnikit.effects import limit, netns
from cnikit.main import respond
from cnikit.plugin import Plugin

PROJECT = Path(__file__).parent.parent
BUILT = PROJECT / "dist" / "cni"
REFERENCE = Path("/usr/lib/cni")

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def _no_verb_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget when the last verb was to end: a process has one, and tests have many."""
    monkeypatch.setattr(limit, "_end", 0.0)


def full(*values: Any) -> Any:
    """Make the parameters of the whole test, for `./build.sh test all`."""
    return pytest.param(*values, marks=pytest.mark.all)


def sample(*values: Any) -> Any:
    """Make the parameters of a part of it, which will do for `./build.sh test`."""
    return pytest.param(*values, marks=pytest.mark.sample)


def private() -> bool:
    """Tell whether this process is in a network namespace other than the machine's."""
    try:
        return os.stat("/proc/1/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
    except PermissionError:
        # An ordinary user, who can change nothing outside a user namespace anyway.
        return True


def sh(command: str) -> str:
    """Run a command line, which must succeed; return what it prints."""
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


def ip(arguments: str) -> list[dict[str, Any]]:
    """Return what `ip -json` says."""
    listed: list[dict[str, Any]] = json.loads(sh(f"ip -json {arguments}") or "[]")
    return [entry for entry in listed if entry]


def _new_netns() -> str:
    if not private():
        pytest.exit("these tests need namespaces of their own: run them with ./build.sh test", returncode=2)
    name = f"cnikit-test-{next(_numbers)}"
    sh(f"ip netns add {name} && ip -n {name} link set lo up")
    return name


@pytest.fixture
def host() -> Iterator[str]:
    """Run the test in a fresh network namespace, the "host"; gives its path."""
    name = _new_netns()
    fd = netns.open_netns(f"/run/netns/{name}")
    with netns.Inside(fd):
        yield f"/run/netns/{name}"
    os.close(fd)
    sh(f"ip netns del {name}")


@pytest.fixture
def new_container(host: str) -> Iterator[Callable[[], str]]:
    """Make containers' namespaces; each call gives the path of one."""
    assert host
    names: list[str] = []

    def new() -> str:
        names.append(_new_netns())
        return f"/run/netns/{names[-1]}"

    yield new
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def container(new_container: Callable[[], str]) -> str:
    """Make one container's namespace; gives its path."""
    return new_container()


class Call:
    """One call of a plugin inside this process, and what came of it."""

    def __init__(self, plugin: Plugin, verb: str, config: dict[str, Any], **environ: str) -> None:
        defaults = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_PATH": str(BUILT)}
        response = respond(plugin, {**defaults, **environ}, json.dumps(config).encode)
        self.status = response.status
        self.stdout = response.stdout
        self.stderr = response.stderr

    @property
    def document(self) -> dict[str, Any]:
        """What it printed, as JSON."""
        parsed: dict[str, Any] = json.loads(self.stdout)
        return parsed

    def result(self) -> dict[str, Any]:
        """Return the result of an ADD, which must have succeeded."""
        assert self.status == 0, self.stdout + self.stderr
        return self.document

    def succeeded(self) -> bool:
        """Tell whether it succeeded without a word; a failure is shown."""
        assert (self.status, self.stdout) == (0, ""), self.stdout + self.stderr
        return True

    def error(self) -> tuple[int, str]:
        """Return code and msg of the error object, which it must have given."""
        assert self.status == 1, self.stdout
        assert self.stderr == ""
        return self.document["code"], self.document["msg"]


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    """Give a folder for host-local's leases."""
    return tmp_path / "networks"


@pytest.fixture
def hold_lock() -> Iterator[Callable[[Path], subprocess.Popen[bytes]]]:
    """Have locks held; each call gives the process that holds one, until its stdin ends."""
    holders: list[subprocess.Popen[bytes]] = []

    def hold(path: Path) -> subprocess.Popen[bytes]:
        path.parent.mkdir(parents=True, exist_ok=True)
        command = ["flock", "--no-fork", str(path), "sh", "-c", "echo; exec cat"]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        holders.append(holder)
        assert holder.stdout is not None
        holder.stdout.readline()
        return holder

    yield hold
    for holder in holders:
        holder.communicate()


def needs_reference() -> Path:
    """Return the folder of the reference's executables; skip the test, and say so, where they are missing."""
    if not (REFERENCE / "bridge").exists():
        pytest.skip(f"{REFERENCE} has no reference plugins (apt-get install containernetworking-plugins)")
    return REFERENCE
