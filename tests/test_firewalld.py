"""firewalld over D-Bus: one contract, held by a bus and a firewalld of our own and, where marked, by the real ones."""

from __future__ import annotations

import json
import os
import posix
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EEXIST, EINVAL, EPERM, ESRCH, ETIMEDOUT
from pathlib import Path
from threading import Thread

import pytest
from jeepney import (
    DBusAddress,
    Endianness,
    HeaderFields,
    Message,
    MessageFlag,
    Parser,
    new_error,
    new_method_return,
    new_signal,
)

from cnikit import request
from cnikit.effects import firewalld, systembus
from cnikit.effects.firewalld import FirewalldError
from cnikit.effects.kernel import World
from cnikit.errors import CniError
from cnikit.objects import HOST, Make, Remove
from cnikit.plan import Add, Del, apply, preflight, remove, render, verify
from cnikit.plugins import firewall
from cnikit.zones import ZoneSource
from tests.conftest import PROJECT, Call, sh
from tests.fake_kernel import FakeWorld

V4, V6, OTHER = "10.88.0.5/32", "fd00::5/128", "10.88.0.6/32"
ZONES = ("block", "drop", "trusted", "internal", "public")
EXCEPTION = "org.fedoraproject.FirewallD1.Exception"
UNKNOWN_METHOD = "org.freedesktop.DBus.Error.UnknownMethod"

# A bus and a firewalld in memory


BUS = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")


class FirewalldException(Exception):  # noqa: N818
    """An error as firewalld words it."""


class FakeFirewalld:
    """What firewalld knows of zones and sources."""

    def __init__(self) -> None:
        self.zones: dict[str, list[str]] = {zone: [] for zone in ZONES}

    def call(self, member: str, *texts: str) -> tuple[str, object]:
        """Return the signature and the value of the answer. Raises FirewalldException."""
        *zone, source = texts
        if not source[:1].isdigit() and ":" not in source:
            raise FirewalldException(f"INVALID_ADDR: {source}")
        if member == "getZoneOfSource":
            return "s", self._holder(source)
        do: dict[str, Callable[[str, str], tuple[str, object]]] = {
            "addSource": self._add,
            "removeSource": self._remove,
            "querySource": lambda zone, source: ("b", source in self._zone(zone)),
        }
        return do[member](zone[0], source)

    def _zone(self, zone: str) -> list[str]:
        if zone not in self.zones:
            raise FirewalldException(f"INVALID_ZONE: {zone}")
        return self.zones[zone]

    def _holder(self, source: str) -> str:
        return next((zone for zone in self.zones if source in self.zones[zone]), "")

    def _add(self, zone: str, source: str) -> tuple[str, object]:
        if source in self._zone(zone):
            raise FirewalldException(f"ZONE_ALREADY_SET: '{source}' already bound to '{zone}'")
        if self._holder(source):
            raise FirewalldException(f"ZONE_CONFLICT: '{source}' already bound to a zone")
        self.zones[zone].append(source)
        return "s", zone

    def _remove(self, zone: str, source: str) -> tuple[str, object]:
        holder = self._holder(source)
        if not holder:
            raise FirewalldException(f"UNKNOWN_SOURCE: '{source}' is not in any zone")
        if source not in self._zone(zone):
            raise FirewalldException(f"ZONE_CONFLICT: remove_source({zone}, {source}): zos='{holder}'")
        self.zones[zone].remove(source)
        return "s", zone


class FakeBus:
    """A bus on a Unix socket, for one connection at a time.

    fault: what it stops at, "" for nothing: "connection", "AUTH", "Hello", "NameHasOwner" or a method of firewalld's.
    manner: what it does then, "silent", "hangs up" or, where it is asked to do something, "refuses".
    """

    def __init__(self, address: str, owner: FakeFirewalld | None) -> None:
        self.address = address
        self.owner = owner
        self.fault = self.manner = ""
        self.order = Endianness.little
        self.piecemeal = False
        self.heard: list[Message] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen()
        self._thread = Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    self._converse(connection)
                except OSError:
                    pass  # It is the client that has gone.

    def _stops_at(self, step: str, connection: socket.socket) -> bool:
        if step == self.fault and self.manner == "silent":
            while connection.recv(4096):
                pass
        return step == self.fault

    def _converse(self, connection: socket.socket) -> None:
        if self._stops_at("connection", connection):
            return
        line = self._line(connection)
        expected = f"\0AUTH EXTERNAL {str(os.geteuid()).encode().hex()}\r\n"
        if self._stops_at("AUTH", connection) and self.manner != "refuses":
            return
        if line != expected.encode() or self.fault == "AUTH":
            self._send(connection, b"REJECTED EXTERNAL\r\n")
            return
        self._send(connection, b"OK 0123456789abcdef0123456789abcdef\r\n")
        assert self._line(connection) == b"BEGIN\r\n"
        parser, serial = Parser(), 0
        while data := connection.recv(4096):
            for message in parser.feed(data):
                self.heard.append(message)
                member = message.header.fields[HeaderFields.member]
                if self._stops_at(member, connection) and self.manner != "refuses":
                    return
                for answer in self._answers(message, member):
                    serial += 1
                    answer.header.endianness = self.order
                    self._send(connection, answer.serialise(serial))

    def _line(self, connection: socket.socket) -> bytes:
        line = b""
        while not line.endswith(b"\r\n"):
            line += connection.recv(1)
        return line

    def _send(self, connection: socket.socket, data: bytes) -> None:
        size = 1 if self.piecemeal else len(data)
        for start in range(0, len(data), size):
            connection.sendall(data[start : start + size])

    def _answers(self, message: Message, member: str) -> Iterator[Message]:
        name = message.header.fields[HeaderFields.destination]
        if member == self.fault:
            yield new_error(message, UNKNOWN_METHOD, "s", ("ZONE_ALREADY_SET: says another",))
        elif member == "Hello":
            yield new_method_return(message, "s", (":1.1",))
            yield new_signal(BUS, "NameAcquired", "s", (":1.1",))
        elif member == "NameHasOwner":
            asked = message.body[0]
            yield new_method_return(message, "b", (asked == firewalld.NAME and self.owner is not None,))
        elif name != firewalld.NAME or self.owner is None:
            yield new_error(message, "org.freedesktop.DBus.Error.NameHasNoOwner", "s", ("Nobody",))
        else:
            assert message.header.fields[HeaderFields.path] == "/org/fedoraproject/FirewallD1"
            assert message.header.fields[HeaderFields.interface] == "org.fedoraproject.FirewallD1.zone"
            try:
                signature, value = self.owner.call(member, *message.body)
                yield new_method_return(message, signature, (value,))
            except FirewalldException as e:
                yield new_error(message, EXCEPTION, "s", (str(e),))


# The real ones

BUS_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"""
# What /usr/sbin/firewalld runs, without its package: that would start it on this machine.
SERVER = """
import sys
from firewall import config
config.set_system_config_paths(sys.argv[1] + "/etc")
config.set_default_config_paths(sys.argv[1] + "/lib")
from firewall.server.server import run_server
run_server()
"""
PYTHON = "/usr/bin/python3"  # Debian's, which has its packages
IN_NAMESPACES = ["unshare", "-nm", "--propagation", "private", "sh", "-c"]
PREPARED = 'mount -t tmpfs none /run && mkdir /run/firewalld && exec "$@"'


@contextmanager
def _real_bus(folder: Path) -> Iterator[None]:
    """Run Debian's dbus-daemon, its socket in a folder."""
    (folder / "bus.conf").write_text(BUS_CONFIG.format(socket=folder / "bus"))
    command = ["dbus-daemon", f"--config-file={folder}/bus.conf", "--nofork", "--print-address"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline(), "dbus-daemon does not start"
            yield
        finally:
            daemon.terminate()


@contextmanager
def _real_firewalld(folder: Path) -> Iterator[None]:
    """Run firewalld's server in namespaces of its own, as long as it takes to be ready and until it is not needed."""
    (folder / "etc").mkdir()
    (folder / "lib" / "zones").mkdir(parents=True)
    for zone in ZONES:
        (folder / "lib" / "zones" / f"{zone}.xml").write_text("<zone></zone>")
    command = [*IN_NAMESPACES, PREPARED, "sh", PYTHON, "-c", SERVER, str(folder)]
    environ = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={folder}/bus"}
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            with pytest.MonkeyPatch.context() as patch:
                _name(patch, folder / "bus")
                while not firewalld.is_running():
                    assert server.poll() is None, "firewalld does not start"
                    time.sleep(0.05)
            yield
        finally:
            server.terminate()


def _needs_the_real_ones() -> None:
    probe = f"command -v dbus-daemon && {PYTHON} -c 'import firewall.server.server'"
    if subprocess.run(probe, shell=True, check=False, capture_output=True).returncode:
        pytest.skip("dbus-daemon or firewalld's server is missing (apt-get install dbus-daemon python3-firewall)")


BOTH = ["fake", pytest.param("real", marks=pytest.mark.all)]


def _name(patch: pytest.MonkeyPatch, *paths: str | Path) -> None:
    """Say where the system bus is."""
    listed = ";".join(f"unix:path={path}" for path in paths)
    patch.setitem(posix.environ, b"DBUS_SYSTEM_BUS_ADDRESS", listed.encode())


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run our own bus and firewalld; gives the bus's socket."""
    path = tmp_path_factory.mktemp("fake") / "bus"
    bus = FakeBus(str(path), FakeFirewalld())
    yield path
    bus.close()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run the real ones; gives the bus's socket."""
    _needs_the_real_ones()
    folder = tmp_path_factory.mktemp("real")
    with _real_bus(folder), _real_firewalld(folder):
        yield folder / "bus"


@pytest.fixture(params=BOTH)
def running(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give a firewalld whose zones hold no sources."""
    yield from _cleaned(request, monkeypatch)


def _cleaned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    _name(monkeypatch, request.getfixturevalue(request.param))
    yield
    for source in (V4, V6, OTHER):
        firewalld.remove_source(firewalld.zone_of(source), source)


# What firewalld does. The contract of both.


@pytest.mark.usefixtures("running")
def test_it_is_running() -> None:
    assert firewalld.is_running()


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("cidr", [V4, V6], ids=["v4", "v6"])
def test_an_address_is_a_zones_source_until_it_is_removed(cidr: str) -> None:
    assert (firewalld.has_source("trusted", cidr), firewalld.zone_of(cidr)) == (False, "")
    firewalld.add_source("trusted", cidr)
    firewalld.add_source("trusted", OTHER)
    assert (firewalld.has_source("trusted", cidr), firewalld.zone_of(cidr)) == (True, "trusted")
    assert not firewalld.has_source("internal", cidr)
    firewalld.remove_source("trusted", cidr)
    assert (firewalld.has_source("trusted", cidr), firewalld.zone_of(cidr)) == (False, "")
    assert firewalld.has_source("trusted", OTHER)


@pytest.mark.usefixtures("running")
def test_what_is_so_already_is_fine() -> None:
    firewalld.add_source("trusted", V4)
    firewalld.add_source("trusted", V4)
    assert firewalld.has_source("trusted", V4)
    firewalld.remove_source("trusted", V4)
    firewalld.remove_source("trusted", V4)
    firewalld.remove_source("no-such-zone", V4)
    assert not firewalld.has_source("trusted", V4)


@pytest.mark.usefixtures("running")
def test_another_zones_source_is_refused_and_stays() -> None:
    firewalld.add_source("internal", V4)
    with pytest.raises(FirewalldError) as raised:
        firewalld.add_source("trusted", V4)
    error = raised.value
    assert (error.code, error.errno) == (7, EEXIST)
    assert error.msg == "firewalldZone: 10.88.0.5/32 is a source of zone internal and cannot be one of trusted too"
    assert error.details == "if nobody needs it there: firewall-cmd --zone=internal --remove-source=10.88.0.5/32"
    firewalld.remove_source("trusted", V4)
    firewalld.remove_source("no-such-zone", V4)
    assert firewalld.zone_of(V4) == "internal"


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("do", [firewalld.add_source, firewalld.has_source], ids=["add", "has"])
def test_a_zone_that_is_not_there_is_named(do: Callable[[str, str], object]) -> None:
    with pytest.raises(FirewalldError) as raised:
        do("no-such-zone", V4)
    error = raised.value
    assert (error.code, error.errno) == (7, EINVAL)
    assert error.msg == "firewalldZone: firewalld has no zone 'no-such-zone'"
    assert error.details == "firewall-cmd --get-zones lists them"


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(
    "do",
    [
        pytest.param(lambda: firewalld.add_source("trusted", "nonsense"), id="add"),
        pytest.param(lambda: firewalld.has_source("trusted", "nonsense"), id="has"),
        pytest.param(lambda: firewalld.zone_of("nonsense"), id="zone_of"),
    ],
)
def test_other_errors_are_told_in_its_own_words(do: Callable[[], object]) -> None:
    with pytest.raises(FirewalldError) as raised:
        do()
    assert (raised.value.code, raised.value.errno) == (100, EPERM)
    assert raised.value.msg == "firewalld: INVALID_ADDR: nonsense"


# Where it does not run

NOT_RUNNING = (
    11,
    ESRCH,
    "backend: firewalld is not running",
    "start it (systemctl start firewalld), or choose another backend",
)


def _nothing_runs() -> None:
    """Hold firewalld to what it is where it does not run."""
    assert not firewalld.is_running()
    for do in (
        lambda: firewalld.add_source("trusted", V4),
        lambda: firewalld.has_source("trusted", V4),
        lambda: firewalld.zone_of(V4),
    ):
        with pytest.raises(FirewalldError) as raised:
            do()
        error = raised.value
        assert (error.code, error.errno, error.msg, error.details) == NOT_RUNNING
    firewalld.remove_source("trusted", V4)


@pytest.mark.parametrize("kind", BOTH)
def test_a_bus_without_it(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _name(monkeypatch, f"{tmp_path}/bus")
    if kind == "real":
        _needs_the_real_ones()
        with _real_bus(tmp_path):
            _nothing_runs()
    else:
        bus = FakeBus(f"{tmp_path}/bus", None)
        _nothing_runs()
        bus.close()
        calls = [message for message in bus.heard if message.header.fields[HeaderFields.member] == "addSource"]
        assert [message.header.flags for message in calls] == [MessageFlag.no_auto_start], "nobody is started"


@pytest.mark.parametrize(
    "address",
    [
        "unix:path=/nonexistent/bus",
        "unix:path=/dev/null/bus",
        "unix:abstract=no-such-bus",
        "tcp:host=localhost,port=1",
        "nonsense",
    ],
)
def test_no_bus(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(posix.environ, b"DBUS_SYSTEM_BUS_ADDRESS", address.encode())
    _nothing_runs()


def test_a_bus_that_left_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _name(monkeypatch, tmp_path / "bus")
    FakeBus(f"{tmp_path}/bus", FakeFirewalld()).close()
    assert (tmp_path / "bus").is_socket()
    _nothing_runs()


def test_a_bus_that_does_not_take_us_in(bus: FakeBus) -> None:
    bus.fault, bus.manner = "AUTH", "refuses"
    _nothing_runs()


# A bus as it must not be


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBus]:
    """Run our own bus, with firewalld on it."""
    _name(monkeypatch, f"{tmp_path}/bus")
    bus = FakeBus(f"{tmp_path}/bus", FakeFirewalld())
    yield bus
    bus.close()


EARLY = ("connection", "AUTH", "Hello")


@pytest.mark.parametrize("fault", [*EARLY, "NameHasOwner", "addSource", "removeSource"])
@pytest.mark.parametrize(
    ("manner", "msg"),
    [("silent", "firewalld: no answer within 0.05 s"), ("hangs up", "firewalld: the bus has hung up")],
    ids=["silent", "hangs up"],
)
def test_a_bus_that_does_not_answer_is_to_be_tried_again(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch, fault: str, manner: str, msg: str
) -> None:
    bus.fault, bus.manner = fault, manner
    asking: list[Callable[[], object]] = [
        lambda: firewalld.is_running() and fault != "NameHasOwner",
        lambda: firewalld.add_source("trusted", V4),
        lambda: firewalld.remove_source("trusted", V4),
    ]
    for do, step in zip(asking, ("NameHasOwner", "addSource", "removeSource"), strict=True):
        if fault in (*EARLY, step):
            with monkeypatch.context() as patch:
                patch.setattr(systembus, "PATIENCE", 0.05)
                with pytest.raises(FirewalldError) as raised:
                    do()
            assert (raised.value.code, raised.value.errno, raised.value.msg) == (11, ETIMEDOUT, msg)
        else:
            do()


def test_a_bus_that_has_too_many_others_is_to_be_tried_again(bus: FakeBus) -> None:
    bus.fault, bus.manner = "Hello", "refuses"
    with pytest.raises(FirewalldError) as raised:
        firewalld.is_running()
    assert (raised.value.code, raised.value.msg) == (11, "firewalld: the bus does not greet us back")


def test_a_bus_that_may_not_tell_has_nobody(bus: FakeBus) -> None:
    bus.fault, bus.manner = "NameHasOwner", "refuses"
    assert not firewalld.is_running()


def test_only_its_own_errors_are_read_for_their_first_word(bus: FakeBus) -> None:
    bus.fault, bus.manner = "addSource", "refuses"
    with pytest.raises(FirewalldError) as raised:
        firewalld.add_source("trusted", V4)
    assert (raised.value.code, raised.value.errno, raised.value.msg) == (
        100,
        EPERM,
        "firewalld: ZONE_ALREADY_SET: says another",
    )


@pytest.mark.parametrize("order", list(Endianness), ids=lambda order: order.name)
@pytest.mark.parametrize("piecemeal", [False, True], ids=["whole", "piecemeal"])
def test_answers_may_come_in_any_byte_order_and_in_pieces(bus: FakeBus, order: Endianness, piecemeal: bool) -> None:
    bus.order, bus.piecemeal = order, piecemeal
    assert firewalld.is_running()
    firewalld.add_source("trusted", V4)
    assert firewalld.has_source("trusted", V4)
    bus.owner = None
    assert not firewalld.is_running()


# Where the bus is


@pytest.mark.parametrize(
    ("path", "address"),
    [
        pytest.param("bus", "unix:path={}/bus", id="path"),
        pytest.param("a b%;", "unix:path={}/a%20b%25%3b", id="escaped"),
        pytest.param("bus", "unix:path=/nonexistent/bus;unix:path={}/bus", id="the second"),
        pytest.param("bus", "tcp:host=localhost;unix:guid=0123,path={}/bus", id="other keys and kinds"),
    ],
)
def test_the_bus_is_where_it_is_said_to_be(
    path: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(posix.environ, b"DBUS_SYSTEM_BUS_ADDRESS", address.format(tmp_path).encode())
    bus = FakeBus(f"{tmp_path}/{path}", FakeFirewalld())
    assert firewalld.is_running()
    bus.close()


def test_the_bus_may_be_abstract(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host, "abstract names are a network namespace's own"
    monkeypatch.setitem(posix.environ, b"DBUS_SYSTEM_BUS_ADDRESS", b"unix:abstract=cnikit-test")
    bus = FakeBus("\0cnikit-test", FakeFirewalld())
    assert firewalld.is_running()
    bus.close()


@pytest.mark.parametrize("said", [None, b""], ids=["unset", "empty"])
def test_the_bus_is_in_its_usual_place_otherwise(
    said: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert systembus.PLACES.split(b";") == [
        b"unix:path=/run/dbus/system_bus_socket",
        b"unix:path=/var/run/dbus/system_bus_socket",
    ]
    monkeypatch.setattr(systembus, "PLACES", f"unix:path={tmp_path}/none;unix:path={tmp_path}/bus".encode())
    monkeypatch.delitem(posix.environ, b"DBUS_SYSTEM_BUS_ADDRESS", raising=False)
    if said is not None:
        monkeypatch.setitem(posix.environ, b"DBUS_SYSTEM_BUS_ADDRESS", said)
    bus = FakeBus(f"{tmp_path}/bus", FakeFirewalld())
    assert firewalld.is_running()
    bus.close()


def test_a_bus_that_is_there_and_silent_is_not_passed_over(bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> None:
    bus.fault, bus.manner = "AUTH", "silent"
    monkeypatch.setattr(systembus, "PATIENCE", 0.05)
    _name(monkeypatch, bus.address, "/nonexistent/bus")
    with pytest.raises(FirewalldError, match="no answer"):
        firewalld.is_running()


ASKING = """
import sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
from cnikit.effects.systembus import has_owner
print(has_owner("org.fedoraproject.FirewallD1"), *(name for name in set(sys.modules) - before if "cnikit" not in name))
"""


def test_asking_whether_it_runs_imports_nothing(bus: FakeBus) -> None:
    environ = {"DBUS_SYSTEM_BUS_ADDRESS": posix.environ[b"DBUS_SYSTEM_BUS_ADDRESS"].decode()}
    command = [sys.executable, "-I", "-S", "-c", ASKING, str(PROJECT)]
    said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.split()
    assert (said[0], {*said[1:]}) == ("True", {"_socket", "_struct", "__future__"})
    assert [message.header.fields[HeaderFields.member] for message in bus.heard] == ["Hello", "NameHasOwner"]


# In plans. The contract of the fake kernel too.

EITHER = World | FakeWorld
SOURCE = ZoneSource(HOST, "trusted", V4)


@pytest.fixture(params=["memory", *BOTH])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[EITHER]:
    """Give the kernel in memory, or the real one with either firewalld."""
    if request.param == "memory":
        yield FakeWorld()
    else:
        for _ in _cleaned(request, monkeypatch):
            with World() as real:
                yield real


def test_is_shown_as_firewalls_command_lines() -> None:
    assert render([Add(SOURCE), Del(SOURCE.replace(name="internal", cidr=V6))], "") == (
        "firewall-cmd --zone=trusted --add-source=10.88.0.5/32\n"
        "firewall-cmd --zone=internal --remove-source=fd00::5/128\n"
    )


def test_a_plan_binds_verifies_and_removes(world: EITHER) -> None:
    plan = [Add(SOURCE), Add(SOURCE.replace(cidr=V6))]
    assert verify(plan, world) == [f"firewalld: {cidr} is no source of zone trusted" for cidr in (V4, V6)]
    preflight(plan, world)
    apply(plan, world)
    assert verify(plan, world) == []
    preflight(plan, world)
    apply(plan, world)
    assert verify(plan, world) == []
    assert remove([Del(step.what) for step in plan] * 2, world) == []
    assert [world[HOST].zone_of(cidr) for cidr in (V4, V6)] == ["", ""]


def test_a_plan_that_fails_leaves_no_source(world: EITHER) -> None:
    with pytest.raises(CniError) as raised:
        apply([Add(SOURCE), Add(SOURCE.replace(name="no-such-zone", cidr=V6))], world)
    assert raised.value.msg.startswith("firewall-cmd --zone=no-such-zone --add-source=fd00::5/128: Invalid argument")
    assert not world[HOST].has_source("trusted", V4)


def test_nothing_is_done_where_another_zone_has_the_address(world: EITHER) -> None:
    apply([Add(SOURCE.replace(name="internal"))], world)
    with pytest.raises(CniError) as raised:
        preflight([Add(SOURCE)], world)
    assert raised.value.code == 7
    assert raised.value.msg == (
        "firewalldZone: 10.88.0.5/32 is a source of zone internal and cannot be one of trusted too"
    )
    assert [outcome and outcome.errno for outcome in world[HOST].change([Make(SOURCE)])] == [EEXIST]
    assert remove([Del(SOURCE)], world) == []
    assert world[HOST].zone_of(V4) == "internal"


def test_nothing_is_done_where_there_is_no_such_zone(world: EITHER) -> None:
    with pytest.raises(CniError, match=r"^firewalldZone: firewalld has no zone 'no-such-zone'") as raised:
        preflight([Add(SOURCE.replace(name="no-such-zone"))], world)
    assert raised.value.code == 7


def test_a_del_goes_on_when_firewalld_does_not_answer(bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systembus, "PATIENCE", 0.05)
    bus.fault, bus.manner = "removeSource", "silent"
    with World() as world:
        faults = remove([Del(SOURCE), Del(SOURCE.replace(cidr=V6))], world)
        (outcome,) = world[HOST].change([Remove(SOURCE)])
    assert [str(fault) for fault in faults] == [
        f"{ZoneSource(HOST, 'trusted', cidr).removal()}: Connection timed out (firewalld: no answer within 0.05 s)"
        for cidr in (V4, V6)
    ]
    assert outcome is not None
    assert outcome.errno == ETIMEDOUT


# The plugin on it


ADDRESSES = {"cniVersion": "1.1.0", "ips": [{"address": "10.88.0.5/16"}, {"address": "fd00:88::5/64"}]}
PLUGIN = {"cniVersion": "1.1.0", "name": "net1", "type": "firewall"}


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("backend", ["", "firewalld"])
def test_the_plugin_puts_addresses_in_the_zone_and_takes_them_out(host: str, container: str, backend: str) -> None:
    assert host
    sources = ("10.88.0.5/32", "fd00:88::5/128")
    conf = {**PLUGIN, "backend": backend, "prevResult": ADDRESSES}
    Call(firewall.PLUGIN, "ADD", conf, CNI_NETNS=container).result()
    assert [firewalld.zone_of(source) for source in sources] == ["trusted", "trusted"]
    assert Call(firewall.PLUGIN, "CHECK", conf, CNI_NETNS=container).succeeded()
    assert Call(firewall.PLUGIN, "STATUS", conf).succeeded()
    firewalld.remove_source("trusted", sources[0])
    assert Call(firewall.PLUGIN, "CHECK", conf, CNI_NETNS=container).error()[0] == 101
    environ = {"CNI_COMMAND": "CHECK", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": container}
    checked = request.parse(environ, json.dumps(conf).encode)
    assert firewall.PLUGIN.repair(checked) == ("firewall-cmd --zone=trusted --add-source=10.88.0.5/32",)
    assert Call(firewall.PLUGIN, "CHECK", conf, CNI_NETNS=container).succeeded()
    # Without prevResult: nftables knows the addresses, too.
    assert Call(firewall.PLUGIN, "DEL", {**PLUGIN, "backend": backend}).succeeded()
    assert [firewalld.zone_of(source) for source in sources] == ["", ""]


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("other", [{"name": "other"}, {}], ids=["another network's", "the same network's"])
def test_an_address_that_another_container_has_by_now_stays_in_the_zone(
    host: str, container: str, other: dict[str, str]
) -> None:
    """The first one's DEL comes late, or both networks have one range."""
    assert host
    conf = {**PLUGIN, "backend": "firewalld", "prevResult": ADDRESSES}
    Call(firewall.PLUGIN, "ADD", conf, CNI_NETNS=container).result()
    Call(firewall.PLUGIN, "ADD", {**conf, **other}, CNI_NETNS=container, CNI_CONTAINERID="c2").result()
    assert Call(firewall.PLUGIN, "DEL", conf).succeeded()
    assert Call(firewall.PLUGIN, "CHECK", {**conf, **other}, CNI_NETNS=container, CNI_CONTAINERID="c2").succeeded()
    assert Call(firewall.PLUGIN, "DEL", {**conf, **other}, CNI_CONTAINERID="c2").succeeded()
    assert firewalld.zone_of("10.88.0.5/32") == ""


@pytest.mark.usefixtures("running")
def test_the_plugin_takes_back_what_it_did_when_a_zone_refuses(host: str, container: str) -> None:
    assert host
    firewalld.add_source("internal", "fd00:88::5/128")
    try:
        code, msg = Call(
            firewall.PLUGIN, "ADD", {**PLUGIN, "backend": "firewalld", "prevResult": ADDRESSES}, CNI_NETNS=container
        ).error()
        assert (code, msg.startswith("firewalldZone: fd00:88::5/128 is a source of zone internal")) == (7, True)
        assert firewalld.zone_of("10.88.0.5/32") == ""
        assert "cnikit_firewall" not in sh("nft list tables")
    finally:
        firewalld.remove_source("internal", "fd00:88::5/128")


# A bus that is somebody else's


@contextmanager
def _speaks(path: Path, said: bytes) -> Iterator[None]:
    """Have somebody on a Unix socket who says something, again and again, whatever he is asked."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(4096)
                    connection.sendall(b"OK 0\r\n")
                    while True:
                        connection.sendall(said)
                except OSError:
                    continue

    thread = Thread(target=serve)
    thread.start()
    yield
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


SIGNAL = new_signal(BUS, "NameAcquired", "s", (":1.1",)).serialise(1)
WELCOME = b"l\2\1\1\0\0\0\0\1\0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    ("said", "msg"),
    [
        pytest.param(SIGNAL, "firewalld: the bus says more than 65536 bytes", id="signals without an end"),
        pytest.param(b"l\2\1\1" + b"\xff" * 12, "firewalld: the bus says more than 65536 bytes", id="8 GiB to come"),
        pytest.param(WELCOME + b"\xff" * 16, "firewalld: the bus says", id="no message"),
    ],
)
def test_a_bus_that_says_too_much_is_not_heard_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes, msg: str
) -> None:
    _name(monkeypatch, f"{tmp_path}/bus")
    with _speaks(tmp_path / "bus", said), pytest.raises(FirewalldError) as raised:
        firewalld.zone_of("10.1.0.2/32")
    assert (raised.value.code, raised.value.msg[: len(msg)]) == (11, msg)


@pytest.mark.parametrize(
    "address", ["unix:path=%zz", "unix:path=%", "unix:path=/a%00b", "unix:path=%ff%", "unix:path="]
)
def test_an_address_that_is_written_wrong_is_no_bus(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(posix.environ, b"DBUS_SYSTEM_BUS_ADDRESS", address.encode())
    assert not firewalld.is_running()
