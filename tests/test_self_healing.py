"""Leases of containers that cannot exist any more come back without help from the runtime; those of the living never.

What is evidence is written in host-local's docstring. A reboot, and time passing, are pretended by other files in the
places of /proc's; network namespaces, processes, mounts and links are real.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnikit import hostports, iptables, leftovers, ownership, spec
from cnikit.address import parse_ip
from cnikit.effects import evidence, kernel, leases, netlink, netns
from cnikit.effects.kernel import World
from cnikit.errors import CniError
from cnikit.hostports import Mapping
from cnikit.ipam import host_local
from cnikit.netlink import codec, rtnetlink
from cnikit.objects import CONTAINER, HOST
from cnikit.plan import Add, Ensure, apply
from cnikit.plugins import bridge
from cnikit.request import Attachment
from cnikit.result import IP
from cnikit.ruleset import Ruleset
from tests.conftest import BUILT, Call, ip, sh
from tests.packets import reached, server, unreached
from tests.test_leases import lease_files, write_as_reference

DAY = 86400
SMALL = {"subnet": "10.1.0.0/29"}  # .1 is the gateway; .2 to .6 are for giving


@pytest.fixture(autouse=True)
def _all_processes_are_seen() -> None:
    if evidence.namespaces() is None:
        pytest.skip("not all processes of the machine are to be seen from here, so nobody can be told dead")


@pytest.fixture
def folder(networks: Path) -> Path:
    return networks / "net"


class Machine:
    """The machine, as /proc describes it."""

    def __init__(self, folder: Path) -> None:
        self._boot, self._uptime = folder / "boot_id", folder / "uptime"
        self._boots = 0
        self.reboot()
        for file, place in ((self._boot, "/proc/sys/kernel/random/boot_id"), (self._uptime, "/proc/uptime")):
            sh(f"mount --bind {file} {place}")

    def reboot(self) -> None:
        """Be another boot from here on."""
        self._boots += 1
        self._boot.write_text(f"{self._boots:08x}-1111-2222-3333-444444444444\n")
        self.runs_for(1000)

    def runs_for(self, seconds: int) -> None:
        """Be that many seconds old."""
        self._uptime.write_text(f"{seconds}.25 1.00\n")

    def close(self) -> None:
        """Be the machine it was."""
        sh("umount /proc/uptime && umount /proc/sys/kernel/random/boot_id")


@pytest.fixture
def machine(host: str, tmp_path: Path) -> Iterator[Machine]:
    assert host
    pretended = Machine(tmp_path)
    yield pretended
    pretended.close()


def config(networks: Path, subnet: dict[str, str] | None = None) -> dict[str, Any]:
    ipam = {"type": "host-local", "dataDir": str(networks), "ranges": [[subnet or SMALL]]}
    return {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": ipam}


def call(verb: str, networks: Path, container: str, path: str = "", **environ: str) -> Call:
    return Call(
        host_local.PLUGIN,
        verb,
        config(networks),
        **{"CNI_CONTAINERID": container, "CNI_NETNS": path or "/none", **environ},
    )


def add(networks: Path, container: str, path: str = "", **environ: str) -> str:
    """Return the address an ADD gives."""
    address: str = call("ADD", networks, container, path, **environ).result()["ips"][0]["address"]
    return address.partition("/")[0]


def fill(networks: Path, paths: list[str]) -> None:
    """Give c1 to c5 all there is; as many as have a path have a namespace."""
    for number in range(1, 6):
        add(networks, f"c{number}", paths[number - 1] if number <= len(paths) else "")


def refused(networks: Path, container: str = "late") -> bool:
    """Tell whether an ADD finds no address."""
    return call("ADD", networks, container).error()[0] == spec.TRY_AGAIN


def holders(folder: Path) -> set[str]:
    return {leases.split(content)[0] for content in lease_files(folder).values()}


def remove_netns(path: str) -> None:
    """Take a namespace's name away; of a veth whose one end is there the kernel takes the other, a moment later."""
    links = subprocess.run(
        ["ip", "-n", os.path.basename(path), "-o", "link"], capture_output=True, text=True, check=False
    )
    peers = {int(index) for index in re.findall(r"@if(\d+):", links.stdout)}
    sh(f"ip netns del {os.path.basename(path)}")
    until = time.monotonic() + 5
    while peers & {link["ifindex"] for link in ip("link")} and time.monotonic() < until:
        time.sleep(0.01)


ALL = {"c1", "c2", "c3", "c4", "c5"}


# The boot


def test_after_a_reboot_all_addresses_are_to_be_had(machine: Machine, networks: Path, folder: Path) -> None:
    fill(networks, [])
    assert refused(networks)
    machine.reboot()
    assert call("STATUS", networks, "c6").succeeded()
    assert holders(folder) == ALL, "a look changes nothing"
    assert add(networks, "c6") == "10.1.0.2"
    assert holders(folder) == {"c6"}


def test_as_long_as_others_are_free_a_dead_lease_rests(machine: Machine, networks: Path, folder: Path) -> None:
    add(networks, "c1")
    machine.reboot()
    assert [add(networks, f"d{i}") for i in range(4)] == ["10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]
    assert "c1" in holders(folder)
    assert add(networks, "d5") == "10.1.0.2"


def test_a_container_that_is_started_again_keeps_its_address(machine: Machine, networks: Path, folder: Path) -> None:
    fill(networks, [])
    machine.reboot()
    assert add(networks, "c3") == "10.1.0.4"
    add(networks, "c6")
    assert holders(folder) == {"c3", "c6"}


def test_an_address_of_the_dead_is_given_to_who_asks_for_it(machine: Machine, networks: Path) -> None:
    add(networks, "c1")
    answer = call("ADD", networks, "c2", CNI_ARGS="IP=10.1.0.2")
    assert answer.error() == (spec.TRY_AGAIN, "CNI_ARGS: IP: 10.1.0.2 is leased to container c1 eth0")
    machine.reboot()
    assert add(networks, "c2", CNI_ARGS="IP=10.1.0.2") == "10.1.0.2"


def test_ten_thousand_dead_leases(machine: Machine, networks: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    addresses = [f"10.1.{number // 256}.{number % 256}" for number in range(2, 10_002)]
    for number, address in enumerate(addresses):
        (folder / address).write_bytes(b"d%d\r\neth0" % number)
    subnet = {"subnet": "10.1.0.0/16", "rangeEnd": addresses[-1]}
    full = Call(host_local.PLUGIN, "ADD", config(networks, subnet), CNI_NETNS="/none")
    assert full.error()[0] == spec.TRY_AGAIN, "found in this boot, they may be alive"
    assert len(lease_files(folder)) == 10_000
    machine.reboot()
    given = Call(host_local.PLUGIN, "ADD", config(networks, subnet), CNI_NETNS="/none").result()
    assert given["ips"][0]["address"] == "10.1.0.2/16"
    assert lease_files(folder) == {"10.1.0.2": b"c1\r\neth0"}
    assert len(os.listdir(folder / ".owners")) == 1


def test_who_takes_from_the_dead_is_not_one_of_them(machine: Machine, networks: Path, folder: Path) -> None:
    more = {"subnet": "10.2.0.0/30"}  # .1 is the gateway; .2 is for giving
    write_as_reference(folder, "10.2.0.2", b"dead\r\neth0")
    add(networks, "web")
    machine.reboot()
    conf = config(networks)
    conf["ipam"]["ranges"].append([more])
    given = Call(host_local.PLUGIN, "ADD", conf, CNI_CONTAINERID="web", CNI_NETNS="/none").result()
    assert [ip["address"] for ip in given["ips"]] == ["10.1.0.2/29", "10.2.0.2/30"]
    assert lease_files(folder) == {"10.1.0.2": b"web\r\neth0", "10.2.0.2": b"web\r\neth0"}


def test_addresses_may_be_listed_in_another_order_than_they_were_given(
    machine: Machine, networks: Path, folder: Path
) -> None:
    fill(networks, [])
    conf = config(networks, {"subnet": "10.2.0.0/29"})
    Call(host_local.PLUGIN, "ADD", conf, CNI_CONTAINERID="c1", CNI_NETNS="/none").result()
    (link,) = (path for path in (folder / ".owners").iterdir() if "," in os.readlink(path))
    addresses, _, noted = os.readlink(link).partition(" ")
    link.unlink()
    link.symlink_to(f"{','.join(reversed(addresses.split(',')))} {noted}")
    machine.reboot()
    assert add(networks, "c6") == "10.1.0.2"
    assert holders(folder) == {"c6"}


def test_a_dead_lease_that_cannot_be_removed_keeps_its_place_only(
    machine: Machine, networks: Path, folder: Path
) -> None:
    fill(networks, [])
    machine.reboot()
    stuck = folder / "10.1.0.2"
    sh(f"mount --bind {stuck} {stuck}")
    assert add(networks, "c6") == "10.1.0.3"
    sh(f"umount {stuck}")
    assert holders(folder) == {"c1", "c6"}


# The owner


@contextmanager
def _nothing(path: str) -> Iterator[None]:
    yield


@contextmanager
def _running(*command: str) -> Iterator[None]:
    """Have a process, from when it prints a line on."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def _a_process_in_it(path: str) -> AbstractContextManager[None]:
    return _running("nsenter", f"--net={path}", "sh", "-c", "echo; exec cat")


HOLD = """
import ctypes, os, sys, threading
def hold():
    assert ctypes.CDLL(None).setns(os.open(sys.argv[1], os.O_RDONLY), 0) == 0
    print(flush=True)
    sys.stdin.read()
threading.Thread(target=hold).start()
"""


def _a_thread_in_it(path: str) -> AbstractContextManager[None]:
    return _running(sys.executable, "-c", HOLD, path)


@contextmanager
def _a_mount_elsewhere(path: str) -> Iterator[None]:
    other = Path("/run/elsewhere")
    other.touch()
    sh(f"mount --bind {path} {other}")
    yield
    sh(f"umount {other} && rm {other}")


@contextmanager
def _a_mount_behind_many(path: str) -> Iterator[None]:
    for number in range(100):
        sh(f"mkdir /run/mount{number} && mount -t tmpfs none /run/mount{number}")
    with _a_mount_elsewhere(path):
        yield
    for number in range(100):
        sh(f"umount /run/mount{number} && rmdir /run/mount{number}")


UNSHARED = ("unshare", "-m", "--propagation", "private", "sh", "-ec")


def _a_mount_in_another_mount_namespace(path: str) -> AbstractContextManager[None]:
    return _running(*UNSHARED, f"touch /run/elsewhere; mount --bind {path} /run/elsewhere; echo; exec cat")


def _a_mount_in_a_namespace_whose_first_process_is_chrooted(path: str) -> AbstractContextManager[None]:
    # The first one sees only what is mounted in the jail; the second one ends with stdin.
    jail = (
        "mkdir -p /run/jail; for d in bin lib lib64 usr; do mkdir -p /run/jail/$d; mount --rbind /$d /run/jail/$d; done"
    )
    script = f"{jail}; touch /run/elsewhere; mount --bind {path} /run/elsewhere"
    return _running(
        *UNSHARED, f"{script}; exec 3<&0; (echo; exec cat <&3 >/dev/null) & exec chroot /run/jail sleep 1000"
    )


@contextmanager
def _a_tagged_link(path: str) -> Iterator[None]:
    tag = ownership.tag(Attachment("net", "c1", "eth0"))
    sh(f"ip link add name1 type veth peer name2 && ip link set name1 alias {tag}")
    yield
    sh("ip link del name1")


@contextmanager
def _an_untagged_link(path: str) -> Iterator[None]:
    sh("ip link add name1 type veth peer name2 && ip link set name1 alias cni:net/c9/eth0")
    yield
    sh("ip link del name1")


@pytest.mark.parametrize(
    ("sign", "passed", "lives"),
    [
        pytest.param(_nothing, evidence.GRACE + 1, False, id="no sign of life"),
        pytest.param(_an_untagged_link, evidence.GRACE + 1, False, id="somebody else's link"),
        pytest.param(_nothing, evidence.GRACE, True, id="within the grace period"),
        pytest.param(_a_process_in_it, DAY, True, id="a process in the namespace"),
        pytest.param(_a_thread_in_it, DAY, True, id="a thread in the namespace"),
        pytest.param(_a_mount_behind_many, DAY, True, id="mounted elsewhere, among many"),
        pytest.param(
            _a_mount_in_a_namespace_whose_first_process_is_chrooted, DAY, True, id="mounted outside of a chroot"
        ),
        pytest.param(_a_mount_elsewhere, DAY, True, id="mounted elsewhere"),
        pytest.param(_a_mount_in_another_mount_namespace, DAY, True, id="mounted in another mount namespace"),
        pytest.param(_a_tagged_link, DAY, True, id="a tagged link"),
    ],
)
def test_a_lease_whose_namespace_is_removed(
    machine: Machine,
    networks: Path,
    folder: Path,
    new_container: Callable[[], str],
    sign: Callable[[str], Any],
    passed: int,
    lives: bool,
) -> None:
    path = new_container()
    fill(networks, [path])
    with sign(path):
        remove_netns(path)
        machine.runs_for(1000 + passed)
        if lives:
            assert refused(networks)
            assert holders(folder) == ALL
        else:
            assert add(networks, "late") == "10.1.0.2"
            assert holders(folder) == ALL - {"c1"} | {"late"}


def test_of_the_living_none_is_taken_whatever_time_passes(
    machine: Machine, networks: Path, folder: Path, new_container: Callable[[], str]
) -> None:
    fill(networks, [new_container() for _ in range(5)])
    machine.runs_for(1000 * DAY)
    assert refused(networks)
    assert holders(folder) == ALL


def test_from_another_network_namespace_nobody_is_told_dead(
    machine: Machine, networks: Path, folder: Path, new_container: Callable[[], str]
) -> None:
    path, elsewhere = new_container(), new_container()
    fill(networks, [path])
    remove_netns(path)
    machine.runs_for(DAY)
    fd = netns.open_netns(elsewhere)
    with netns.Inside(fd):
        assert refused(networks)
    os.close(fd)
    assert holders(folder) == ALL


@pytest.mark.parametrize("path", ["", "/none", "/etc/passwd"], ids=["none", "not there", "no namespace"])
def test_without_a_namespace_there_is_nothing_to_miss(
    machine: Machine, networks: Path, folder: Path, path: str
) -> None:
    fill(networks, [path] * 5)
    machine.runs_for(DAY)
    assert refused(networks)
    assert holders(folder) == ALL


def test_who_does_not_see_all_processes_tells_nobody_dead(tmp_path: Path) -> None:
    assert evidence.namespaces(str(tmp_path / "none")) is None
    (tmp_path / "self" / "ns").mkdir(parents=True)
    (tmp_path / "self" / "ns" / "pid").touch()
    assert evidence.namespaces(str(tmp_path)) is None, "another PID namespace than the first"


def test_the_namespaces_there_are(host: str, container: str) -> None:
    found = evidence.namespaces()
    assert found is not None
    inodes = {os.stat(path).st_ino for path in (host, container, "/proc/self/ns/net")}
    assert {os.stat(found[inode]).st_ino for inode in inodes} == inodes
    remove_netns(container)
    inode = os.stat(host).st_ino
    assert inode in (evidence.namespaces() or ())


# The inode number of a namespace that is gone, given to another


def take_number(folder: Path, dead: int, path: str) -> None:
    """Have a namespace the inode number of a dead one, as far as the notes beside the leases tell."""
    for link in (folder / ".owners").iterdir():
        target = os.readlink(link)
        link.unlink()
        link.symlink_to(target.replace(f".{dead:x}.", f".{os.stat(path).st_ino:x}."))


@contextmanager
def _only_a_process(path: str) -> Iterator[None]:
    with _a_process_in_it(path):
        remove_netns(path)
        yield


@contextmanager
def _only_a_mount(path: str) -> Iterator[None]:
    there = Path("/run/a place with\tblanks and \\134")
    there.touch()
    sh(f"mount --bind {path} {shlex.quote(str(there))} && ip netns del {os.path.basename(path)}")
    try:
        yield
    finally:
        sh(f"umount {shlex.quote(str(there))}")


def attach(networks: Path, container: str, path: str) -> subprocess.CompletedProcess[bytes]:
    """Call the built bridge, which runs host-local in its process."""
    conf = {**config(networks), "bridge": "cni0", "isGateway": True}
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0", "CNI_NETNS": path}
    return subprocess.run(
        [BUILT / "bridge"],
        input=json.dumps(conf).encode(),
        env={**environ, "CNI_PATH": str(BUILT)},
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("life", [nullcontext, _only_a_process, _only_a_mount])
def test_a_namespace_that_has_the_number_of_a_dead_one_is_not_his(
    machine: Machine, networks: Path, folder: Path, new_container: Callable[[], str], life: Callable[[str], Any]
) -> None:
    paths = [new_container() for _ in range(5)]
    for number, path in enumerate(paths, 1):
        assert attach(networks, f"c{number}", path).returncode == 0
    inode, late, another = os.stat(paths[2]).st_ino, new_container(), new_container()
    remove_netns(paths[2])
    take_number(folder, inode, another)
    with life(another):
        machine.runs_for(1000 + evidence.GRACE)
        assert b'"code": 11' in attach(networks, "late", late).stdout
        machine.runs_for(1001 + evidence.GRACE)
        assert b"10.1.0.4/29" in attach(networks, "late", late).stdout
    assert holders(folder) == ALL - {"c3"} | {"late"}


@pytest.mark.parametrize("life", [_only_a_process, _only_a_mount])
def test_the_very_namespace_is_a_sign_of_life(
    machine: Machine, networks: Path, folder: Path, new_container: Callable[[], str], life: Callable[[str], Any]
) -> None:
    paths = [new_container() for _ in range(5)]
    for number, path in enumerate(paths, 1):
        assert attach(networks, f"c{number}", path).returncode == 0
    late = new_container()
    (host_end,) = ownership.names_of("cni:net/c3/eth0")[:1]
    sh(f"ip link del {host_end}")
    machine.runs_for(DAY)
    with life(paths[2]):
        assert b'"code": 11' in attach(networks, "late", late).stdout
        assert holders(folder) == ALL


def test_without_a_cookie_the_number_counts(
    machine: Machine, networks: Path, folder: Path, new_container: Callable[[], str]
) -> None:
    path, another = new_container(), new_container()
    inode = os.stat(path).st_ino
    fill(networks, [path])
    remove_netns(path)
    take_number(folder, inode, another)
    machine.runs_for(DAY)
    assert refused(networks)
    assert holders(folder) == ALL


def test_where_the_kernel_has_no_cookie_none_is_noted(
    machine: Machine, host: str, container: str, networks: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def old(_: netlink.Socket) -> int:
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))

    assert host
    assert attach(networks, "c1", container).returncode == 0
    (link,) = (folder / ".owners").iterdir()
    noted = evidence.parse(os.readlink(link).partition(" ")[2].rpartition(".")[0])
    with kernel.World(netns.open_netns(container)) as world:
        assert noted
        assert noted.cookie == world[CONTAINER].cookie() != 0
        monkeypatch.setattr(netlink.Socket, "namespace", old)
        assert world[CONTAINER].cookie() == 0
        assert evidence._is_there(noted, {noted.netns: container})


def _as_before_cookies(note: str) -> tuple[str, int, int, int] | None:
    """Read a note as builds did that know no cookie."""
    boot, *rest = note.split(".")
    try:
        host, netns, since = (int(part, 16) for part in rest)
    except ValueError:
        return None
    return (boot, host, netns, since) if len(boot) == 8 else None


@given(st.integers(0, 2**32), st.integers(1, 2**64 - 1))
def test_builds_that_know_no_cookie_wait_longer(since: int, cookie: int) -> None:
    read = _as_before_cookies(f"00000001.a.b.{since:x}_{cookie:x}")
    assert read is not None
    assert read[:3] == ("00000001", 0xA, 0xB)
    assert read[3] >= since
    now = evidence.parse(f"00000001.a.b.{since:x}_{cookie:x}")
    assert now == evidence.Note("00000001", 0xA, 0xB, since, cookie)
    assert evidence.parse(f"00000001.a.b.{since:x}") == now.replace(cookie=0)


# Links that come and go


@pytest.fixture
def churn(host: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have a link made, or deleted, between any two parts of an answer: no dump is whole, and the kernel says so."""
    assert host
    whole, other = netlink.Socket._receive, netlink.Socket()
    made: list[str] = []

    def receive(self: netlink.Socket) -> bytes:
        if self is not other:
            if made:
                (found,) = other.exchange([rtnetlink.get_link(made.pop())])
                message = rtnetlink.del_link(rtnetlink.link(found.body).index)
            else:
                made.append("other")
                message = rtnetlink.new_bridge("other")
            assert [answer.errno for answer in other.exchange([message])] == [0]
        return whole(self)

    monkeypatch.setattr(netlink.Socket, "_receive", receive)
    yield
    other.close()


def tagged(tags: list[str]) -> None:
    """Make a host end with each of these tags, and its peer, which both stay here."""
    ends = {tag: ownership.names_of(tag)[0] for tag in tags}
    lines = [f"link add {end} type veth peer name p{n}\n" for n, end in enumerate(ends.values())]
    lines += [f"link set {end} alias {tag}\n" for tag, end in ends.items()]
    Path("/run/links").write_text("".join(lines))
    sh("ip -batch /run/links")


@pytest.mark.usefixtures("churn")
def test_gc_while_links_come_and_go(networks: Path) -> None:
    tagged([f"cni:net/c{number}/eth0" for number in range(50)])
    kept = {"containerID": "c7", "ifname": "eth0"}
    with closing(netlink.Socket()) as socket:
        assert socket.listed(rtnetlink.dump_links()).interrupted
    assert Call(bridge.PLUGIN, "GC", {**config(networks), "cni.dev/valid-attachments": [kept]}).succeeded()
    assert {link["ifalias"] for link in ip("link") if "ifalias" in link} == {"cni:net/c7/eth0"}


@pytest.mark.usefixtures("churn")
def test_an_add_in_a_full_range_while_links_come_and_go(
    machine: Machine, networks: Path, folder: Path, new_container: Callable[[], str]
) -> None:
    path = new_container()
    conf = config(networks, {"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.101"})

    def add_one(container: str) -> Call:
        return Call(host_local.PLUGIN, "ADD", conf, CNI_CONTAINERID=container, CNI_NETNS=path)

    for number in range(100):
        assert add_one(f"c{number}").status == 0
    linked = {f"c{number}" for number in range(0, 100, 2)}
    tagged([f"cni:net/{container}/eth0" for container in sorted(linked)])
    remove_netns(path)
    machine.runs_for(DAY)
    for number in range(50):
        assert add_one(f"late{number}").status == 0
    assert add_one("too-late").error()[0] == spec.TRY_AGAIN
    assert holders(folder) == linked | {f"late{number}" for number in range(50)}


@pytest.mark.parametrize("doubt", [{"interrupted": True}, {"cut": True}])
def test_a_dump_that_may_lack_links_proves_nothing_dead(
    host: str, monkeypatch: pytest.MonkeyPatch, doubt: dict[str, bool]
) -> None:
    assert host
    tags = [f"cni:net/c{number}/eth0" for number in range(50)]
    tagged(tags)
    whole = netlink.Socket.listed

    def lacking(self: netlink.Socket, message: codec.Message) -> netlink.Listing:
        return whole(self, message).replace(bodies=[], **doubt)

    assert evidence.linked([*tags, "cni:net/none/eth0"]) == {*tags}
    monkeypatch.setattr(netlink.Socket, "listed", lacking)
    assert evidence.linked([*tags, "cni:net/none/eth0"]) == {*tags}


# What was not written by us, or not whole


def test_leases_of_the_reference_live_until_the_next_boot(machine: Machine, networks: Path, folder: Path) -> None:
    for number in range(1, 6):
        write_as_reference(folder, f"10.1.0.{number + 1}", b"c%d\r\neth0" % number)
    assert refused(networks)
    machine.runs_for(1000 * DAY)
    assert refused(networks)
    machine.reboot()
    assert add(networks, "c6") == "10.1.0.2"


def test_a_lease_that_the_reference_wrote_in_this_boot_is_not_that_of_the_one_before(
    machine: Machine, networks: Path, folder: Path
) -> None:
    fill(networks, [])
    machine.reboot()
    for address in ("10.1.0.2", "10.1.0.3"):  # DEL and ADD by the reference: the same owner, the same address
        content = (folder / address).read_bytes()
        (folder / address).unlink()
        write_as_reference(folder, address, content)
    assert add(networks, "c6") == "10.1.0.4"
    assert holders(folder) == {"c1", "c2", "c6"}


def _link(place: Path) -> None:
    place.symlink_to("/etc/passwd")


def _fifo(place: Path) -> None:
    os.mkfifo(place)


def test_an_owner_that_is_no_text(machine: Machine, networks: Path, folder: Path) -> None:
    for number in range(1, 5):
        add(networks, f"c{number}")
    write_as_reference(folder, "10.1.0.6", b"c5\r\n\xff")
    assert refused(networks)
    machine.reboot()
    assert add(networks, "late") == "10.1.0.6"


FOREIGN: dict[str, Callable[[Path], Any]] = {
    "empty": lambda place: place.write_bytes(b""),
    "white space": lambda place: place.write_bytes(b"\r\n"),
    "no owner": lambda place: place.write_bytes(b"# the printer"),
    "no text": lambda place: place.write_bytes(b"\xff\xfe\x00"),
    "a mebibyte": lambda place: place.write_bytes(b"\n/" * (1 << 19)),
    "a link": _link,
    "a FIFO": _fifo,
    "a folder": lambda place: place.mkdir(),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("verb", ["ADD", "GC"])
def test_what_is_no_lease_blocks_no_address(
    machine: Machine, networks: Path, folder: Path, verb: str, make: Callable[[Path], Any]
) -> None:
    assert machine
    for number in range(1, 5):
        add(networks, f"c{number}")
    make(folder / "10.1.0.6")
    if verb == "GC":
        valid = [{"containerID": f"c{number}", "ifname": "eth0"} for number in range(1, 5)]
        conf = {**config(networks), "cni.dev/valid-attachments": valid}
        assert Call(host_local.PLUGIN, "GC", conf).succeeded()
        assert not os.path.lexists(folder / "10.1.0.6")
    assert call("STATUS", networks, "c5").succeeded()
    assert add(networks, "c5") == "10.1.0.6"
    assert Path("/etc/passwd").read_text().startswith("root:")


def test_a_folder_with_something_in_it_keeps_its_place(machine: Machine, networks: Path, folder: Path) -> None:
    assert machine
    for number in range(1, 5):
        add(networks, f"c{number}")
    (folder / "10.1.0.6" / "something").mkdir(parents=True)
    assert call("ADD", networks, "c5").error()[0] == spec.TRY_AGAIN
    assert (folder / "10.1.0.6" / "something").is_dir()


@pytest.mark.parametrize("content", [b"c", b"c5", b"c5\r\n", b"c5\r\ne"])
def test_a_truncated_lease_lives_until_the_next_boot(
    machine: Machine, networks: Path, folder: Path, content: bytes
) -> None:
    for number in range(1, 5):
        add(networks, f"c{number}")
    write_as_reference(folder, "10.1.0.6", content)
    assert refused(networks)
    machine.reboot()
    add(networks, "late")
    assert holders(folder) == {"late"}


@pytest.mark.parametrize(
    "rubbish", ["", "x", "....", "1.2.3.4", "00000001.g.1.1", "00000001.1.1", "00000001.1.1.1.1", "é" * 60]
)
def test_a_note_that_is_none_is_no_evidence(machine: Machine, networks: Path, folder: Path, rubbish: str) -> None:
    fill(networks, [])
    for path in (folder / ".owners").iterdir():
        addresses = os.readlink(path).partition(" ")[0]
        path.unlink()
        path.symlink_to(f"{addresses} {rubbish}")
    machine.runs_for(DAY)
    assert refused(networks)
    assert holders(folder) == ALL


# Clocks that jump


@settings(max_examples=40, deadline=None)
@given(
    jumps=st.lists(st.tuples(st.integers(0, 7), st.integers(-50 * 365 * DAY, 50 * 365 * DAY)), min_size=1, max_size=12)
)
def test_whatever_times_files_have_the_living_keep_their_addresses(
    tmp_path_factory: pytest.TempPathFactory, jumps: list[tuple[int, int]]
) -> None:
    networks = tmp_path_factory.mktemp("networks")
    folder = networks / "net"
    fill(networks, ["/proc/self/ns/net"] * 5)
    given_first = lease_files(folder)
    paths = [folder, folder / ".owners", folder / "last_reserved_ip.0", *sorted(folder.glob("10.*"))]
    for which, seconds in jumps:
        moment = max(0, 1_800_000_000 + seconds)
        os.utime(paths[which], (moment, moment))
        assert refused(networks)
    assert lease_files(folder) == given_first
    for number in range(1, 6):
        assert add(networks, f"c{number}", "/proc/self/ns/net") == f"10.1.0.{number + 1}"


@pytest.mark.parametrize("years", [-30, 30])
def test_whatever_times_files_have_a_reboot_frees_the_dead(
    machine: Machine, networks: Path, folder: Path, years: int
) -> None:
    fill(networks, [])
    moment = 1_800_000_000 + years * 365 * DAY
    machine.reboot()
    os.utime(folder, (moment, moment))  # as by a change while the clock was wrong
    assert add(networks, "c6") == "10.1.0.2"
    assert holders(folder) == {"c6"}


# What leads to an address


@pytest.mark.parametrize("mark", ["", ownership.UNLINKED], ids=["ours", "another suite's interface"])
def test_what_the_dead_left_under_an_address_goes_before_the_lease(
    machine: Machine, networks: Path, new_container: Callable[[], str], mark: str
) -> None:
    path = new_container()
    fill(networks, [path])
    left = {number: Attachment("net", f"c{number}", "eth0") for number in (1, 2)}
    with World() as world:
        for number, attachment in left.items():
            address, mapping = parse_ip(f"10.1.0.{number + 1}"), Mapping("udp", 8000 + number, 53)
            port = hostports.port(mapping, address, ownership.tag(attachment) + mark)
            apply((Ensure(Ruleset(HOST, hostports.TABLE.name, hostports.TABLE)), Add(port)), world)
            apply(iptables.masquerade(attachment, [IP(f"10.1.0.{number + 1}/29")]), world)
    before = sh("nft list map inet cnikit_portmap ports4"), sh("iptables -t nat -S")
    assert [{"8001" in before[0], "8002" in before[0]}, before[1].count("-N CNI-")] == [{True}, 2]
    remove_netns(path)
    machine.runs_for(DAY)
    assert add(networks, "late") == "10.1.0.2"
    after = sh("nft list map inet cnikit_portmap ports4"), sh("iptables -t nat -S")
    assert ("8001" in after[0], "8002" in after[0]) == (False, True), "the living one's stays"
    assert (after[1].count("-N CNI-"), "10.1.0.2" in after[1]) == (1, False)


def test_what_cannot_be_cleared_away_keeps_its_lease(
    machine: Machine, networks: Path, folder: Path, new_container: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = new_container()
    fill(networks, [path])
    remove_netns(path)
    machine.runs_for(DAY)
    monkeypatch.setattr(leftovers, "_take", lambda *_: [CniError(100, "nft delete element: Operation not permitted")])
    assert call("ADD", networks, "late").error() == (100, "nft delete element: Operation not permitted")
    assert holders(folder) == ALL


# The executables


def test_in_the_same_boot_none_is_told_dead_that_another_suites_plugin_attached(
    machine: Machine, networks: Path, folder: Path, new_container: Callable[[], str]
) -> None:
    def attach(container: str, path: str) -> int:
        environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0", "CNI_NETNS": path}
        stdin = json.dumps(config(networks)).encode()
        return subprocess.run(
            [BUILT / "host-local"], input=stdin, env=environ, check=False, capture_output=True
        ).returncode

    paths = [new_container() for _ in range(5)]
    assert [attach(f"c{number}", path) for number, path in enumerate(paths, 1)] == [0] * 5
    remove_netns(paths[0])
    machine.runs_for(DAY)
    assert attach("late", paths[1]) == 1
    assert holders(folder) == ALL
    machine.reboot()
    assert attach("late", paths[1]) == 0


@pytest.mark.parametrize("healed", ["reboot", "owner"])
def test_the_built_executables_heal_too(
    machine: Machine, networks: Path, folder: Path, new_container: Callable[[], str], healed: str
) -> None:
    paths = [new_container() for _ in range(5)]
    for number, path in enumerate(paths, 1):
        assert attach(networks, f"c{number}", path).returncode == 0
    late = new_container()
    assert b'"code": 11' in attach(networks, "late", late).stdout
    remove_netns(paths[2])
    if healed == "owner":
        machine.runs_for(1000 + evidence.GRACE)
        assert b'"code": 11' in attach(networks, "late", late).stdout
        machine.runs_for(1001 + evidence.GRACE)
        assert b"10.1.0.4/29" in attach(networks, "late", late).stdout
        assert holders(folder) == ALL - {"c3"} | {"late"}
    else:
        sh("ip link del cni0")
        machine.reboot()
        assert b"10.1.0.2/29" in attach(networks, "late", late).stdout
        assert holders(folder) == {"late"}


def test_a_port_of_a_container_that_died_does_not_lead_to_who_has_its_address_next(
    machine: Machine, networks: Path, new_container: Callable[[], str]
) -> None:
    outside = new_container()
    sh("ip link add wan up type veth peer name wan netns " + os.path.basename(outside))
    sh(f"ip addr add 192.0.2.1/24 dev wan && ip -n {os.path.basename(outside)} addr add 192.0.2.2/24 dev wan")
    sh(f"ip -n {os.path.basename(outside)} link set wan up")
    one = {"subnet": "10.1.0.0/30"}
    bridge: dict[str, Any] = {**config(networks, one), "bridge": "cni0", "isDefaultGateway": True, "ipMasq": True}
    portmap: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": "portmap"}

    def attach(container: str, path: str, *mappings: dict[str, Any]) -> None:
        environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0", "CNI_NETNS": path}
        environ["CNI_PATH"] = str(BUILT)
        result: dict[str, Any] = {}
        for conf in (bridge, {**portmap, "runtimeConfig": {"portMappings": mappings}}):
            stdin = json.dumps({**conf, "prevResult": result} if result else conf).encode()
            done = subprocess.run([BUILT / conf["type"]], input=stdin, env=environ, capture_output=True, check=False)
            assert (done.returncode, done.stderr) == (0, b""), done.stdout
            result = json.loads(done.stdout)

    first = new_container()
    attach("one", first, {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"})
    with server(first, "0.0.0.0", 80) as web:
        assert reached(web, outside, "192.0.2.1", 8080)
    remove_netns(first)
    machine.runs_for(1001 + evidence.GRACE)
    second = new_container()
    attach("two", second)
    with server(second, "0.0.0.0", 80) as web:
        assert unreached(web, outside, "192.0.2.1", 8080)
    assert "8080" not in sh("nft list ruleset")
