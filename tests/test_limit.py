"""A verb ends in time, whatever it waits for, and says what that was."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import time
from _thread import allocate_lock
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cnikit.effects import limit
from cnikit.errors import CniError
from tests.conftest import BUILT, ip, sh
from tests.test_leases import lease_files

Hold = Callable[[Path], "subprocess.Popen[bytes]"]

# The time


@pytest.mark.parametrize(("text", "seconds"), [("", 30.0), ("1", 1.0), ("45", 45.0), ("3600", 3600.0)])
def test_seconds(text: str, seconds: float) -> None:
    assert limit.seconds({limit.VARIABLE: text} if text else {}) == seconds


@pytest.mark.parametrize("text", ["0", "-1", "3601", "1.5", "x", " 1", "9" * 5000, "²"])
def test_what_is_no_number_of_seconds_is_told(text: str) -> None:
    with pytest.raises(CniError, match=r"^CNIKIT_TIME_LIMIT: .* is no number of seconds from 1 to 3600") as raised:
        limit.seconds({limit.VARIABLE: text})
    assert raised.value.code == 4


def test_who_waits_leaves_time_to_undo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "_now", lambda: 100.0)
    monkeypatch.setattr(limit, "_end", 0.0)
    limit.start({}, None)
    assert limit.share() == pytest.approx(20)
    monkeypatch.setattr(limit, "_now", lambda: 120.0)
    assert limit.share() == pytest.approx(20 / 3)
    monkeypatch.setattr(limit, "_now", lambda: 131.0)
    assert limit.share() == 0


def test_without_a_verb_there_is_a_share_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "_end", 0.0)
    assert limit.share() == 20


# What is waited for, with the executables


class Waited:
    """A call of a built executable that is given two seconds."""

    def __init__(self, plugin: str, verb: str, config: dict[str, Any], netns: str, **environ: str) -> None:
        variables = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": netns}
        started = time.monotonic()
        self._process = subprocess.Popen(
            [BUILT / plugin],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**variables, "CNI_PATH": str(BUILT), limit.VARIABLE: "2", **environ},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._process.stdin.write(json.dumps(config).encode())
        self._process.stdin.flush()
        if config:
            self._process.stdin.close()
        self.stdout = self._process.stdout.read()
        self.stderr = self._process.stderr.read()
        self.status = self._process.wait()
        self.seconds = time.monotonic() - started
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            stream.close()

    def error(self) -> tuple[int, str, str]:
        """Return code, msg and details; it must have ended in time, in words."""
        assert self.status == 1, self.stdout
        assert b"Traceback" not in self.stderr
        assert self.seconds < 20, "ten times what it was given"
        document = json.loads(self.stdout)
        return document["code"], document["msg"], document.get("details", "")


def config(networks: Path, **more: Any) -> dict[str, Any]:
    ipam = {"type": "host-local", "dataDir": str(networks), "ranges": [[{"subnet": "10.1.0.0/24"}]]}
    return {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "cni0", "ipam": ipam, **more}


@pytest.fixture
def dead_mount(host: str, tmp_path: Path) -> Iterator[Path]:
    """Give a folder on a file system whose server never answers: FUSE without anybody at the other end."""
    assert host
    try:
        fd = os.open("/dev/fuse", os.O_RDWR)
    except OSError as e:
        pytest.skip(f"/dev/fuse: {e.strerror}, so there is no file system to play dead")
    place = tmp_path / "dead"
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"dead", str(place).encode(), b"fuse", 0, options) != 0:
        os.close(fd)
        pytest.skip(f"mount of FUSE: {os.strerror(ctypes.get_errno())}, so there is no file system to play dead")
    yield place
    libc.umount2(str(place).encode(), 2)
    os.close(fd)


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK"])
def test_a_namespace_on_a_dead_mount(networks: Path, dead_mount: Path, verb: str) -> None:
    conf = {**config(networks), "prevResult": {"cniVersion": "1.1.0", "interfaces": [], "ips": []}}
    waited = Waited("bridge", verb, conf, f"{dead_mount}/ns")
    assert waited.error() == (
        11,
        f"bridge: the time is over, waiting in open_netns(path='{dead_mount}/ns')",
        "CNIKIT_TIME_LIMIT sets the time, in seconds",
    )
    assert ip("link show type bridge") == []
    assert not networks.exists()


def test_leases_on_a_dead_mount(container: str, dead_mount: Path) -> None:
    code, msg, _ = Waited("bridge", "ADD", config(dead_mount), container).error()
    assert (code, msg.partition("(")[0]) == (11, "bridge: the time is over, waiting in _open_there")
    assert ip("link show type veth") == []


def test_a_runtime_that_does_not_end_its_configuration(container: str) -> None:
    code, msg, _ = Waited("bridge", "ADD", {}, container).error()
    assert (code, msg) == (11, "bridge: the time is over, waiting in _read_stdin()")


def test_it_ends_where_nobody_can_be_told(container: str) -> None:
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": container}
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(
            [BUILT / "bridge"],
            stdin=subprocess.PIPE,
            stdout=full,
            stderr=subprocess.PIPE,
            env={**environ, limit.VARIABLE: "1"},
        )
        assert process.wait(timeout=20) == 1
    process.communicate()


def test_whoever_answers_is_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "_end", limit._now() - 1)
    monkeypatch.setattr(limit, "_answering", allocate_lock())
    limit.answer()
    told: list[str] = []
    limit._watch(0, told.append)  # and this process goes on
    assert told == []


def _delegate(folder: Path, script: str) -> str:
    folder.mkdir()
    (folder / "slow").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "slow").chmod(0o755)
    return str(folder)


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_a_delegate_that_hangs_is_killed(container: str, tmp_path: Path, verb: str) -> None:
    path = _delegate(tmp_path / "bin", f"echo $CNI_COMMAND $$ >> {tmp_path}/calls; exec sleep 1000")
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": {"type": "slow"}}
    code, msg, _ = Waited("bridge", verb, conf, container, CNI_PATH=path).error()
    assert code == 11
    assert re.fullmatch(rf"ipam\.type: {path}/slow gave no answer in [\d.]+ s", msg)
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert [call for call, _ in calls] == (["ADD", "DEL"] if verb == "ADD" else [verb])
    for _, pid in calls:
        assert not Path(f"/proc/{pid}").exists()


def test_an_add_whose_delegate_hangs_leaves_nothing(container: str, tmp_path: Path) -> None:
    path = _delegate(tmp_path / "bin", "exec sleep 1000")
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": {"type": "slow"}}
    Waited("bridge", "ADD", conf, container, CNI_PATH=path).error()
    assert ip("link show type veth") == []
    assert ip("link show type bridge") == []


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_leases_that_stay_locked(container: str, networks: Path, hold_lock: Hold, verb: str) -> None:
    pid = hold_lock(networks / "net" / "lock").pid
    code, msg, details = Waited("bridge", verb, config(networks), container).error()
    assert (code, msg) == (11, f"{networks}/net/lock is locked by process {pid} (cat)")
    assert re.fullmatch(r"waited [\d.]+ s for it", details)
    assert ip("link show type veth") == []


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_ports_that_stay_locked(container: str, networks: Path, hold_lock: Hold, verb: str) -> None:
    pid = hold_lock(Path("/run/cnikit-portmap.lock")).pid
    ports = {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}
    result = {"cniVersion": "1.1.0", "interfaces": [], "ips": [{"address": "10.1.0.2/24"}]}
    conf = {**config(networks), "type": "portmap", "runtimeConfig": ports, "prevResult": result}
    code, msg, _ = Waited("portmap", verb, conf, container).error()
    assert (code, msg) == (11, f"/run/cnikit-portmap.lock is locked by process {pid} (cat)")
    assert sh("nft list ruleset") == ""


def test_iptables_rules_that_stay_locked(container: str, networks: Path, hold_lock: Hold) -> None:
    pid = hold_lock(Path("/run/cnikit-iptables.lock")).pid
    conf = config(networks, ipMasq=True, ipMasqBackend="iptables")
    code, msg, _ = Waited("bridge", "ADD", conf, container).error()
    assert (code, msg) == (11, f"/run/cnikit-iptables.lock is locked by process {pid} (cat)")
    assert ip("link show type veth") == []
    assert lease_files(networks / "net") == {}
