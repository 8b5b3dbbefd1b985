"""What stands around real clients in tests: an image, the world outside, and a look at what they leave behind."""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from cnikit.effects import netns
from tests.conftest import BUILT, ip, private, sh

# Serves its host name by HTTP on port 80.
SERVER = "localhost/server:latest"
# Does nothing, as what holds a pod's namespaces should.
PAUSE = "localhost/pause:latest"

# Addresses by IP version, at the two ends of the cable between the host and what is outside of it.
HOST = {4: "192.0.2.1", 6: "2001:db8::1"}
OUTSIDE = {4: "192.0.2.2", 6: "2001:db8::2"}

T = TypeVar("T")
PATIENCE = 20  # in seconds, for what takes milliseconds or never comes


def needs(*commands: str) -> None:
    """Fail where one of these commands is missing; skip, and say so, where root is not the machine's."""
    if not private():
        pytest.exit("these tests need namespaces of their own: run them with ./build.sh test all", returncode=2)
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
        pytest.skip(f"{commands[0]} runs containers for root only")
    missing = [command for command in commands if shutil.which(command) is None]
    assert missing == [], "./build.sh test all installs what is missing"


def cnitool(configurations: Path, *arguments: str, enter: Sequence[str] = ()) -> str:
    """Run cnitool on what another runtime has cached, which must succeed; return what it prints.

    enter is a command that brings it where the runtime is.
    """
    environ = os.environ | {"NETCONFPATH": str(configurations)}
    command = [*enter, str(BUILT / "cnitool"), *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


# The images


def write_images(path: Path) -> None:
    """Write SERVER and PAUSE, with busybox and nothing else, as `docker save` does: podman and ctr can load it."""
    commands = {SERVER: "hostname >/www/index.html; exec httpd -f -p 80 -h /www", PAUSE: "exec sleep 3600"}
    layer = _layer()
    with tarfile.open(path, "w") as tar:
        _add(tar, "layer.tar", layer)
        manifest = []
        for number, (name, command) in enumerate(commands.items()):
            config = {
                "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
                "os": "linux",
                "config": {"Cmd": ["sh", "-c", command], "Env": ["PATH=/bin"], "StopSignal": "SIGKILL"},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
            }
            _add(tar, f"{number}.json", json.dumps(config).encode())
            manifest.append({"Config": f"{number}.json", "RepoTags": [name], "Layers": ["layer.tar"]})
        _add(tar, "manifest.json", json.dumps(manifest).encode())


def _layer() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "www"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        _add(tar, "bin/busybox", Path(shutil.which("busybox") or "").read_bytes())
        for name in ("hostname", "httpd", "ip", "sh", "sleep"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return packed.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    file = tarfile.TarInfo(name)
    file.size, file.mode = len(content), 0o755
    tar.addfile(file, io.BytesIO(content))


# The world outside


@contextmanager
def cable() -> Iterator[str]:
    """Connect the host to a namespace outside that has no route to any container; gives its path."""
    name = "cnikit-outside"
    sh(f"ip netns add {name} && ip link add uplink type veth peer name eth0 netns {name}")
    for where, link, addresses in (("", "uplink", HOST), (f"-n {name}", "eth0", OUTSIDE)):
        sh(f"ip {where} addr add {addresses[4]}/24 dev {link}")
        sh(f"ip {where} addr add {addresses[6]}/64 dev {link} nodad")
        sh(f"ip {where} link set {link} up")
    yield f"/run/netns/{name}"
    sh(f"ip link del uplink && ip netns del {name}")


def get(namespace: str, address: str, port: int) -> str:
    """Fetch by HTTP, from a namespace, as soon as there is an answer."""

    def fetch() -> str:
        # podman's conmon holds published ports: it accepts connections that are not translated, and never answers.
        with closing(http.client.HTTPConnection(address, port, timeout=1)) as connection:
            connection.request("GET", "/")
            return connection.getresponse().read().decode().strip()

    with _inside(namespace):
        return wait_for(fetch, OSError, http.client.HTTPException)


def is_closed(namespace: str, address: str, port: int) -> bool:
    """Tell whether a connection from a namespace is refused."""
    with _inside(namespace), closing(socket.socket()) as client:
        client.settimeout(PATIENCE)
        return client.connect_ex((address, port)) == errno.ECONNREFUSED


@contextmanager
def _inside(namespace: str) -> Iterator[None]:
    fd = netns.open_netns(namespace)
    try:
        with netns.Inside(fd):
            yield
    finally:
        os.close(fd)


def wait_for(what: Callable[[], T], *faults: type[Exception]) -> T:
    """Call until it returns something true and raises none of these faults; return that."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if found := what():
                return found
        except faults:
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)


# What must not be left behind


def traces() -> set[str]:
    """Return all that is there on account of containers: files, veths, rules.

    Rules are found by their owners' tags (ours), their chains (the reference's) and the containers' addresses, which
    tests take from 10.0.0.0/8 and fd00::/8.
    """
    kept = (path for path in Path("/var/lib/cni").rglob("*") if path.is_symlink() or not path.is_dir())
    files = {str(path) for path in kept if not re.fullmatch(r".*/(lock|last_reserved_ip\.\d+|locks/.*)", str(path))}
    veths = {link["ifname"] for link in ip("link show type veth")} - {"uplink"}
    ruleset = sh("nft list ruleset; iptables-save; ip6tables-save")  # iptables may be the legacy one
    owned = re.findall(r'.*(?:comment "cni:|CNI-DN-|CNI-[0-9a-f]{24}|\b10\.\d|\bfd[0-9a-f]{2}:).*', ruleset)
    return files | veths | {line.strip() for line in owned}


def leases(network: str) -> list[str]:
    """Return the addresses that host-local holds in a network."""
    folder = Path("/var/lib/cni/networks", network)
    return sorted(path.name for path in folder.glob("*[.:]*[0-9a-f]") if not path.name.startswith("last_reserved_ip."))
