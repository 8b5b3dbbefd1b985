"""Without room on the disk, descriptors or memory a plugin gives an error object, and nothing is left half done.

A limit on the length of files (RLIMIT_FSIZE) does what a full disk does: a write takes a part, and the next one fails.
It also sends SIGXFSZ, which ends whoever does not ignore it.
"""

from __future__ import annotations

import json
import os
import posix
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cnikit import networks, spec
from cnikit.attachments import Attachment, Cache
from cnikit.effects import files, leases, locks
from cnikit.exclusion import Exclusion
from tests.chain import Attachment as Chained
from tests.chain import snapshot
from tests.conftest import BUILT, ip, sh
from tests.surroundings import wait_for


def call(
    plugin: str, verb: str, config: dict[str, Any], around: tuple[str, ...] = (), **environ: str
) -> tuple[int, dict[str, Any]]:
    """Call a built executable; return its status and what it printed, which must be JSON."""
    given = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "container1", "CNI_IFNAME": "eth0", "CNI_PATH": str(BUILT)}
    done = subprocess.run(
        [*around, BUILT / plugin],
        input=json.dumps({"cniVersion": "1.1.0", "name": "net", "type": plugin, **config}).encode(),
        env={"PATH": os.environ["PATH"], **given, **environ},
        capture_output=True,
        check=False,
    )
    assert done.returncode in (0, 1), done
    return done.returncode, json.loads(done.stdout) if done.stdout else {}


# The disk

OWNER = len("container1\r\neth0")


@pytest.mark.parametrize("length", [*range(OWNER), OWNER])
def test_a_lease_is_whole_or_not_there(networks: Path, length: int) -> None:
    ipam = {"type": "host-local", "dataDir": str(networks), "subnet": "10.9.0.0/24"}
    status, said = call("host-local", "ADD", {"ipam": ipam}, ("prlimit", f"--fsize={length}"), CNI_NETNS="/none")
    names = {name for name in os.listdir(networks / "net") if leases.is_address(name)}
    if length < OWNER:
        assert (status, said["code"], said["msg"]) == (1, 5, f"{networks}/net: File too large")
        assert names == set()
        assert not (networks / "net" / ".owners" / "new").exists()
    else:
        assert (status, names) == (0, {"10.9.0.2"})
    assert call("host-local", "DEL", {"ipam": ipam}) == (0, {})
    assert not any(leases.is_address(name) for name in os.listdir(networks / "net"))


def test_a_disk_that_fills_up(networks: Path) -> None:
    networks.mkdir()
    sh(f"mount -t tmpfs -o size=64k none {networks}")
    try:
        ipam = {"type": "host-local", "dataDir": str(networks), "subnet": "10.9.0.0/24"}
        given = 0
        while call("host-local", "ADD", {"ipam": ipam}, CNI_CONTAINERID=f"c{given}", CNI_NETNS="/none")[0] == 0:
            given += 1
        assert 3 < given < 64
        status, said = call("host-local", "ADD", {"ipam": ipam}, CNI_CONTAINERID="late", CNI_NETNS="/none")
        assert (status, said["code"], said["msg"]) == (1, 5, f"{networks}/net: No space left on device")
        for number in (*range(given), "late"):
            assert call("host-local", "DEL", {"ipam": ipam}, CNI_CONTAINERID=f"c{number}") == (0, {})
        assert [name for name in os.listdir(networks / "net") if leases.is_address(name)] == []
    finally:
        sh(f"umount {networks}")


@pytest.mark.parametrize("length", [0, 1, 100])
def test_a_backup_is_whole_or_not_there(host: str, container: str, tmp_path: Path, length: int) -> None:
    assert host
    name = Path(container).name
    sh(f"ip -n {name} link add eth0 mtu 1300 type veth peer name peer0")
    config = {"dataDir": str(tmp_path / "tuning"), "mtu": 1400, "prevResult": {"cniVersion": "1.1.0"}}
    status, said = call("tuning", "ADD", config, ("prlimit", f"--fsize={length}"), CNI_NETNS=container)
    assert (status, said["code"]) == (1, 5)
    assert said["msg"] == f"{tmp_path}/tuning/container1_eth0.json: File too large"
    assert list((tmp_path / "tuning").iterdir()) == []
    assert ip(f"-n {name} link show eth0")[0]["mtu"] == 1300


def test_a_cached_result_is_whole_or_not_there(tmp_path: Path) -> None:
    network = networks.parse(b'{"name": "net1", "type": "bridge"}')
    entry = tmp_path / "results" / "net1-c1-eth0"
    Cache(tmp_path).store(network, Attachment("c1"), {})
    before = entry.read_bytes()
    script = f"""
import sys
from cnikit import networks
from cnikit.attachments import Attachment, Cache
try:
    Cache({str(tmp_path)!r}).store(networks.parse({network.source!r}), Attachment("c1"), {{"x": "y" * 5000}})
except Exception as e:
    print(e)
"""
    done = subprocess.run(["prlimit", "--fsize=1000", sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.decode() == f"{entry}: File too large (the result cannot be cached)\n"
    assert (entry.read_bytes(), [file.name for file in entry.parent.iterdir()]) == (before, [entry.name])


@pytest.mark.parametrize("taken", [1, 7])
def test_a_write_that_takes_a_part_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    really = os.write
    monkeypatch.setattr(posix, "write", lambda fd, data: really(fd, data[:taken]))
    fd = files.make(str(tmp_path / "file"), os.O_WRONLY)
    files.write(fd, b"0123456789")
    os.close(fd)
    assert (tmp_path / "file").read_bytes() == b"0123456789"


# The umask


@contextmanager
def umask(bits: int) -> Iterator[None]:
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in folder.rglob("*")
        if not path.is_symlink()
    }


@pytest.mark.parametrize("bits", [0, 0o022, 0o077, 0o777], ids=oct)
def test_modes_are_as_documented_whatever_the_umask(tmp_path: Path, bits: int) -> None:
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "a" / "networks"), "subnet": "10.9.0.0/24"}
    with umask(bits):
        assert call("host-local", "ADD", {"ipam": ipam}, CNI_NETNS="/none")[0] == 0
        with locks.Locked(str(tmp_path / "lock")):
            pass
        network = networks.parse(b'{"name": "net1", "type": "bridge"}')
        Cache(tmp_path / "b" / "cni").store(network, Attachment("c1"), {})
        with Exclusion(tmp_path / "c" / "locks").beside_others("net1", "c1"):
            pass
    found = modes(tmp_path)
    assert found.pop("a/networks/net/lock") & 0o100000 == 0
    assert found == {
        "lock": 0o600,
        "a": 0o755,
        "a/networks": 0o755,
        "a/networks/net": 0o755,
        "a/networks/net/.owners": 0o700,
        "a/networks/net/10.9.0.2": 0o600,
        "a/networks/net/last_reserved_ip.0": 0o600,
        "b": 0o755,
        "b/cni": 0o755,
        "b/cni/results": 0o700,
        "b/cni/results/net1-c1-eth0": 0o600,
        "c": 0o755,
        "c/locks": 0o700,
        "c/locks/network-net1": 0o600,
    }


def test_what_is_put_in_a_new_folders_place_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o700)
    really = os.lstat

    def lstat(path: str) -> os.stat_result:
        found = really(path)
        os.rmdir(path)
        os.symlink(precious, path)
        return found

    monkeypatch.setattr(posix, "lstat", lstat)
    with umask(0o077), pytest.raises(NotADirectoryError):
        files.mkdir(str(tmp_path / "new"), 0o755)
    assert stat.S_IMODE(precious.stat().st_mode) == 0o700


# Descriptors and memory


@pytest.fixture
def attachment(host: str, container: str, networks: Path) -> Chained:
    assert host
    neighbour = Chained("neighbour", container, networks, 8001)
    neighbour.add()
    neighbour.delete()
    return Chained("c1", container, networks, 8002)


@pytest.mark.parametrize("limit", ["nofile", "as"])
def test_of_what_there_is_too_little_an_error_says_so(attachment: Chained, networks: Path, limit: str) -> None:
    """Every limit from where the executable can start at all to where the ADD succeeds."""
    sizes = range(4, 16) if limit == "nofile" else [n << 19 for n in range(40, 80, 2)]
    # Without ports the bridge loses its carrier a moment later, which its routes show.
    wait_for(lambda: '"linkdown"' in sh("ip -json route"))
    before = snapshot((networks, Path("/run")), (attachment.sandbox,))
    told = []
    for size in sizes:
        done = attachment.run("ADD", "bridge", {}, ("prlimit", f"--{limit}={size}"))
        if done.returncode not in (0, 1) or not done.stdout:
            continue  # The interpreter does not even start.
        if done.returncode == 0:
            break
        error = json.loads(done.stdout)
        told.append(error["code"])
        assert (error["code"] != spec.INTERNAL, done.stderr) == (True, ""), (size, error, done.stderr)
        assert attachment.run("DEL", "bridge", {}).returncode == 0
    else:
        raise AssertionError("no size is enough")
    assert attachment.run("DEL", "bridge", {}).returncode == 0
    wait_for(lambda: snapshot((networks, Path("/run")), (attachment.sandbox,)) == before)
    assert told or limit == "as"
