"""Whatever is read from anything is bounded: what has no end is refused soon, by name, and takes no memory to speak of.

READERS lists every place where something is read, with what bounds it; the tests below give each an endless source.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cnikit import execution, networks
from cnikit.attachments import Attachment, Cache
from cnikit.effects import files, netlink, nft
from cnikit.effects.kernel import World
from cnikit.errors import CniError
from cnikit.ipam import host_local
from cnikit.objects import HOST
from cnikit.plugins import tuning
from tests.conftest import BUILT, PROJECT, Call, ip, sh
from tests.test_hostile import LIMITS

MEBIBYTE = 1 << 20

# What reads, and what bounds it. Whatever else is read, is read by these.
READERS = {
    "effects/files.py lines": "a line of a mebibyte",
    "effects/files.py beginning": "a mebibyte; 8 of a cached result",
    "effects/files.py listing": "MOST_NAMES",
    "effects/process.py read": "a mebibyte of each stream, 8 of iptables-save",
    "effects/netlink.py _receive": "16 KiB, and MOST_LISTED and MOST_BYTES of a dump",
    "effects/systembus.py receive": "64 KiB of a connection (tests/test_firewalld.py)",
    "main.py _read_stdin": "a mebibyte (tests/test_hostile.py)",
    "effects/leases.py _read_link": "the kernel: a path's length",
    "runtime.py _own": "the pattern: our own folders beside the executable",
}
_READING = {
    *("read", "pread", "readv", "read_bytes", "read_text", "readlink", "readline", "readlines", "recv", "recv_into"),
    *("recvfrom", "recvmsg", "listdir", "iterdir", "scandir", "glob", "rglob", "walk", "communicate", "check_output"),
}
_OF_OURS = ("files", "sysctl", "stream", "result", "ranges", "request", "SETTINGS[key]", "self")


def _reading(path: Path) -> Iterator[str]:
    """Yield the functions of a module that read something by themselves."""
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _READING:
                    of = ast.unparse(node.func.value)
                    if of not in _OF_OURS or node.func.attr not in ("read", "recv"):
                        yield f"{path.relative_to(PROJECT / 'cnikit')} {function.name}"
                if isinstance(node, ast.keyword) and node.arg == "capture_output":
                    yield f"{path.relative_to(PROJECT / 'cnikit')} {function.name}"


def test_all_that_reads_is_in_the_table() -> None:
    modules = [path for path in (PROJECT / "cnikit").rglob("*.py") if path.name not in ("demo.py",)]
    modules += [path for folder in ("plugins", "ipam") for path in (PROJECT / "cnikit" / folder).glob("*.py")]
    assert {found for path in modules for found in _reading(path)} == READERS.keys() - {"effects/systembus.py receive"}


# Programs without an end


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "bin"
    made.mkdir()
    return made


def endless(folder: Path, name: str, how: str = "exec yes") -> Path:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{how}\n")
    file.chmod(0o755)
    return file


def built(plugin: str, verb: str, config: dict[str, Any], **environ: str) -> tuple[int, str]:
    """Call a built executable with 64 MiB of memory; return code and msg of its error. It must answer soon."""
    given = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "PATH": os.environ["PATH"]}
    begun = time.monotonic()
    done = subprocess.run(
        [*LIMITS, BUILT / plugin],
        input=json.dumps({"cniVersion": "1.1.0", "name": "net", "type": plugin, **config}).encode(),
        env={**given, **environ},
        capture_output=True,
        check=False,
    )
    assert time.monotonic() - begun < 8
    document = json.loads(done.stdout) if done.stdout else {}
    return document.get("code", 0), document.get("msg", "")


@pytest.mark.parametrize("how", ["exec yes", "exec yes >&2", "yes & exec sleep 1000", "while :; do echo y; done"])
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_a_delegate(host: str, container: str, folder: Path, how: str, verb: str) -> None:
    assert host
    file = endless(folder, "other", how)
    config = {"bridge": "br0", "ipam": {"type": "other"}}
    answer = built("bridge", verb, config, CNI_NETNS=container, CNI_PATH=str(folder))
    assert answer == (102, f"ipam.type: {file} said more than {MEBIBYTE} bytes and was killed")
    assert ip("link show type veth") == []


def test_what_is_left_of_a_delegate_holds_nobody_up(host: str, container: str, folder: Path) -> None:
    assert host
    endless(folder, "other", 'sleep 1000 & echo $! >&2; echo \'{"ips":[{"address":"10.9.0.2/24"}]}\'')
    config = {"bridge": "br0", "ipam": {"type": "other"}}
    assert built("bridge", "ADD", config, CNI_NETNS=container, CNI_PATH=str(folder)) == (0, "")


def test_a_plugin_of_a_runtime(folder: Path) -> None:
    file = endless(folder, "other")
    with pytest.raises(CniError) as raised:
        execution.run("other", [str(folder)], b"{}", {})
    assert (raised.value.code, raised.value.msg) == (
        102,
        f"other: {file} said more than {MEBIBYTE} bytes and was killed",
    )


def test_iptables_save(host: str, folder: Path) -> None:
    assert host
    file = endless(folder, "iptables-save")
    endless(folder, "iptables-restore", "exit 1")
    ports = {"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]}
    config = {"backend": "iptables", "runtimeConfig": ports, "prevResult": {"ips": [{"address": "10.9.0.2/24"}]}}
    answer = built("portmap", "ADD", config, PATH=f"{folder}:{os.environ['PATH']}", CNI_NETNS="/none")
    assert answer[0] == 100
    assert answer[1].endswith(f"{file}: said more than {8 * MEBIBYTE} bytes and was killed")


def test_the_iptables_of_a_node_with_many_services(host: str, folder: Path) -> None:
    assert host
    listed = folder / "listed"
    with listed.open("w") as file:
        file.write("*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n")
        while file.tell() < 7.9 * MEBIBYTE:
            chain = f"KUBE-SVC-{file.tell():016X}"
            match = f'-d 10.96.0.1/32 -p tcp -m comment --comment "default/{chain}:http cluster IP" -m tcp --dport 80'
            file.write(f":{chain} - [0:0]\n-A {chain} {match} -j KUBE-MARK-MASQ\n")
        file.write("COMMIT\n")
    endless(folder, "iptables-save", f"exec cat {listed}")
    endless(folder, "iptables-restore", f"exec cat >{folder}/restored")
    ports = {"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]}
    config = {"backend": "iptables", "runtimeConfig": ports, "prevResult": {"ips": [{"address": "10.9.0.2/24"}]}}
    assert built("portmap", "ADD", config, PATH=f"{folder}:{os.environ['PATH']}", CNI_NETNS="/none") == (0, "")
    assert "-N CNI-HOSTPORT-DNAT\n" in (folder / "restored").read_text()


def test_nft(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = endless(folder, "nft", "exec yes >&2")
    monkeypatch.setattr(nft, "_PLACES", (str(file),))
    with pytest.raises(CniError, match=f"{file}: said more than {MEBIBYTE} bytes and was killed"):
        nft.unreadable(("accept",), None)


# Files without an end


def test_a_configuration_file(tmp_path: Path) -> None:
    (tmp_path / "1.conflist").symlink_to("/dev/zero")
    (tmp_path / "2.conf").write_text('{"name": "net1", "type": "bridge"}')
    assert networks.load(tmp_path, "net1").name == "net1"
    with pytest.raises(CniError, match="no network 'net2'") as raised:
        networks.load(tmp_path, "net2")
    assert f"{tmp_path}/1.conflist: File too large" in raised.value.details


def test_a_cached_result(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "net1-c1-eth0").symlink_to("/dev/zero")
    cache = Cache(tmp_path)
    assert cache.find("net1", Attachment("c1")) is None
    assert [one.file.name for one in cache.unreadable("net1")] == ["net1-c1-eth0"]


def sparse(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(1 << 34)


def test_resolv_conf(networks: Path) -> None:
    ipam = {"type": "host-local", "dataDir": str(networks), "subnet": "10.9.0.0/24", "resolvConf": "/dev/zero"}
    assert built("host-local", "ADD", {"ipam": ipam}, CNI_NETNS="/none") == (
        7,
        "ipam.resolvConf: /dev/zero: File too large",
    )


@pytest.mark.parametrize("name", ["10.9.0.2", "last_reserved_ip.0", "lock"])
def test_a_lease(networks: Path, name: str) -> None:
    sparse(networks / "net" / name)
    ipam = {"type": "host-local", "dataDir": str(networks), "subnet": "10.9.0.0/30"}
    for verb, code in (("ADD", 0), ("CHECK", 101 if name == "10.9.0.2" else 0), ("DEL", 0), ("GC", 0), ("ADD", 0)):
        previous = {"ips": [{"address": "10.9.0.2/30"}]}
        config = {"ipam": ipam, "cni.dev/valid-attachments": [], "prevResult": previous}
        found = built("host-local", verb, config, CNI_NETNS="/none", CNI_PATH="/none")
        assert found[0] in (0, code), (verb, found)


def test_a_backup_and_a_list_of_what_is_allowed(
    host: str, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host
    sparse(tmp_path / "c1_lo.json")
    config = {"dataDir": str(tmp_path), "sysctl": {"net.core.somaxconn": "500"}, "prevResult": {}}
    assert built("tuning", "DEL", config, CNI_NETNS=container, CNI_IFNAME="lo") == (0, "")
    monkeypatch.setattr(tuning, "ALLOW_LIST", "/dev/zero")
    whole = {"cniVersion": "1.1.0", "name": "net", "type": "tuning", **config}
    answer = Call(tuning.PLUGIN, "ADD", whole, CNI_NETNS=container, CNI_IFNAME="lo")
    assert answer.error() == (5, "/dev/zero: File too large")


# Lists without an end


def test_a_folder_of_leases(networks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ipam = {"type": "host-local", "dataDir": str(networks), "subnet": "10.9.0.0/24"}
    config = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": ipam, "cni.dev/valid-attachments": []}
    assert Call(host_local.PLUGIN, "ADD", config, CNI_NETNS="/none").status == 0
    monkeypatch.setattr(files, "MOST_NAMES", 2)
    code, msg = Call(host_local.PLUGIN, "GC", config).error()
    assert (code, msg) == (5, f"{networks}/net: more than 2 files")


ASKED: dict[str, Callable[[World], object]] = {
    "links": lambda world: world[HOST].links(),
    "addresses": lambda world: world[HOST].addresses("lo"),
    "routes": lambda world: world[HOST].routes(2),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("bound", ["MOST_LISTED", "MOST_BYTES"])
def test_a_dump(host: str, monkeypatch: pytest.MonkeyPatch, bound: str, ask: Callable[[World], object]) -> None:
    assert host
    sh("ip link add br0 type bridge && ip addr add 10.9.0.1/24 dev lo && ip addr add 10.8.0.1/24 dev lo")
    with World() as world:
        whole = ask(world)
        assert whole
        world[HOST]._addresses.clear()
        monkeypatch.setattr(netlink, bound, 1)
        with pytest.raises(CniError, match="netlink: there is more to be listed than can be kept"):
            ask(world)
        monkeypatch.undo()
        assert ask(world) == whole, "the socket can be asked for more"
