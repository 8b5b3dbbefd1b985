"""A container on a network of a whole list of plugins, the built executables, and all that a host has of it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cnikit.effects import netns
from tests.conftest import BUILT, sh

KINDS = ("bridge", "portmap", "firewall", "tuning")
NETWORK = "chain"

# Address families' settings of links and of the whole namespace, and one that tuning sets for all of the container.
_SYSCTLS = ("net/ipv4/conf/*/*", "net/ipv6/conf/*/*", "net/ipv4/ip_forward", "net/core/somaxconn")
# A clock's, or of what is still being found out about an address.
_PASSING = ("tentative", "dadfailed", "optimistic", "valid_life_time", "preferred_life_time", "expires", "handle")


class Attachment:
    """A container's interface, added and deleted by hand: the result of each plugin is given to the next."""

    def __init__(self, container: str, sandbox: str, leases: Path, port: int) -> None:
        self.container = container
        self.sandbox = sandbox
        self.result: dict[str, Any] = {}  # of the last plugin that succeeded
        ranges = [[{"subnet": "10.12.0.0/24"}], [{"subnet": "fd00:12::/64"}]]
        ipam = {"type": "host-local", "dataDir": str(leases), "ranges": ranges}
        ports = [
            {"hostPort": port, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": port, "containerPort": 53, "protocol": "udp"},
        ]
        sysctl = {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "500"}
        self.keys: dict[str, dict[str, Any]] = {
            "bridge": {"bridge": "br-chain", "isDefaultGateway": True, "ipMasq": True, "macspoofchk": True},
            "portmap": {"runtimeConfig": {"portMappings": ports}},
            "firewall": {"ingressPolicy": "same-bridge"},
            "tuning": {"mtu": 1400, "allmulti": True, "sysctl": sysctl},
        }
        self.keys["bridge"].update(ipam=ipam)

    def set(self, kind: str, key: str, value: Any) -> None:
        """Change a key of a plugin's configuration."""
        *outer, last = key.split(".")
        where = self.keys[kind]
        for name in outer:
            where = where[name]
        where[last] = value

    def run(
        self, verb: str, kind: str, result: dict[str, Any], around: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Call one plugin, with that for a prevResult, empty for none."""
        config = {"cniVersion": "1.1.0", "name": NETWORK, "type": kind, **self.keys[kind]}
        variables = {"CNI_CONTAINERID": self.container, "CNI_NETNS": self.sandbox, "CNI_IFNAME": "eth0"}
        return subprocess.run(
            [*around, str(BUILT / kind)],
            env={"PATH": os.environ["PATH"], "CNI_COMMAND": verb, "CNI_PATH": str(BUILT), **variables},
            input=json.dumps({**config, "prevResult": result} if result else config),
            capture_output=True,
            text=True,
            check=False,
        )

    def add(self, kinds: Sequence[str] = KINDS) -> None:
        """Add by these plugins; each must succeed."""
        for kind in kinds:
            done = self.run("ADD", kind, self.result)
            assert (done.returncode, done.stderr) == (0, ""), f"ADD {kind}: {done.stdout}{done.stderr}"
            self.result = json.loads(done.stdout)

    def check(self) -> None:
        """Have all plugins compare; each must find all in order."""
        for kind in KINDS:
            done = self.run("CHECK", kind, self.result)
            assert (done.returncode, done.stdout) == (0, ""), f"CHECK {kind}: {done.stdout}{done.stderr}"

    def delete(self, result: dict[str, Any] | None = None) -> None:
        """Delete by all plugins, in reverse, with the result of the ADD or with that one; each must succeed."""
        given = self.result if result is None else result
        for kind in reversed(KINDS):
            done = self.run("DEL", kind, given)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), f"DEL {kind}: {done.stdout}{done.stderr}"
        self.result = {}


# What is there


def settled(*sandboxes: str) -> bool:
    """Tell whether the kernel is done with the addresses it makes by itself, in these namespaces, "" the host's."""
    return not any("tentative" in sh(f"ip {_inside(sandbox)} -6 addr") for sandbox in sandboxes)


def _inside(sandbox: str) -> str:
    return f"-n {Path(sandbox).name}" if sandbox else ""


def snapshot(folders: Sequence[Path], sandboxes: Sequence[str]) -> set[str]:
    """Return all that is there, a line each: files, and what is in the host's and in these namespaces."""
    lines = {f"file {line}" for folder in folders for line in _files(folder)}
    for sandbox in ("", *sandboxes):
        lines |= {f"{sandbox or 'host'} {line}" for line in (*_links(sandbox), *_sysctls(sandbox))}
    return lines | {f"nft {line}" for line in _ruleset()}


def _files(top: Path) -> Iterator[str]:
    yield str(top)
    for folder, names, files in os.walk(top):
        if folder == "/run":
            names[:] = [name for name in names if name != "var-lib"]  # see build.sh: the machine's own
        if ".owners" in names and not _is_believed(Path(folder)):
            names.remove(".owners")
        for name in (*names, *files):
            path = Path(folder, name)
            # The address that was given last is to be remembered.
            content = "" if name.startswith("last_reserved_ip.") else _content(path)
            yield f"{path} {path.lstat().st_mode:o} {content}".rstrip()


def _content(path: Path) -> str:
    if path.is_symlink():
        # The index of leases lists addresses, in whatever order, and may have something to say on them.
        return f"-> {sorted(str(path.readlink()).partition(' ')[0].split(','))}"
    return repr(path.read_bytes()) if path.is_file() and path.lstat().st_size else ""


def _is_believed(leases: Path) -> bool:
    """Tell whether the leases' index is valid (cnikit/effects/leases.py); where not, the next one makes it anew."""
    return leases.stat().st_mtime_ns == (leases / ".owners").stat().st_mtime_ns


def _links(sandbox: str) -> Iterator[str]:
    inside = _inside(sandbox)
    listed = sh(f"ip {inside} -j addr; ip {inside} -j route show table all; ip {inside} -6 -j route show table all")
    links, *routes = listed.splitlines()
    for link in json.loads(links):
        addresses = link.pop("addr_info")
        yield _line(link)
        for address in addresses:
            yield f"{link['ifname']} {_line(address)}"
    for family in routes:
        for route in json.loads(family):
            yield _line(route)


def _line(entry: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in entry.items() if key not in _PASSING}, sort_keys=True)


def _sysctls(sandbox: str) -> Iterator[str]:
    fd = netns.open_netns(sandbox) if sandbox else None
    with netns.Inside(fd):
        for pattern in _SYSCTLS:
            for path in Path("/proc/sys").glob(pattern):
                # Some cannot be read before they are set.
                if path.is_file() and path.name != "stable_secret":
                    yield f"{path} {path.read_text().strip()}"
    if fd is not None:
        os.close(fd)


def _ruleset() -> Iterator[str]:
    for entry in json.loads(sh("nft -j list ruleset"))["nftables"]:
        for kind, what in entry.items():
            elements = what.pop("elem", [])
            yield f"{kind} {_line(what)}"
            for element in elements:
                yield f"{what['table']} {what['name']} {json.dumps(element)}"
