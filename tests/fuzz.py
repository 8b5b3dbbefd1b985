"""Targets of fuzzing.

Each is given bytes, makes of them what somebody hostile could give, and raises when a promise is broken:

* a plugin answers with a result or an error object, never with an internal error, and nothing on stderr;
* what reads an answer, a listing or a file raises CniError or nothing;
* it takes less than two seconds of the processor;
* no file is touched but those that configuration and environment name, nothing is executed but a delegate in CNI_PATH.

tests/test_fuzz.py has hypothesis make the bytes, and tests/run_atheris.py atheris.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cnikit.effects.iptables
import cnikit.netlink.nftrules
from cnikit import adopted, conditions, hostports, iptables, leftovers, macspoofchk, masquerade, networks
from cnikit.attachments import Attachment, Cache
from cnikit.effects import backup, conntrack, delegate, firewalld, kernel, leases, netns, systembus
from cnikit.effects import netlink as sockets
from cnikit.errors import CniError
from cnikit.hostports import TABLE, StaleFlows
from cnikit.ipam import host_local, static
from cnikit.main import Response, respond
from cnikit.netlink import codec, nftables, rtnetlink
from cnikit.netlink import conntrack as flows
from cnikit.netlink.nftables import Element
from cnikit.objects import CONTAINER, HOST, Make, Remove
from cnikit.objects import Route as RouteObject
from cnikit.plugin import Plugin
from cnikit.plugins import bridge, firewall, loopback, portmap, tuning
from cnikit.request import Attachment as Whose
from cnikit.result import IP
from cnikit.ruleset import Ruleset
from tests.fake_kernel import FakeNamespace, FakeWorld
from tests.watch import Watch, watched

# Imported here, or they would be files that are opened by who is watched.
NEEDED = (
    adopted,
    backup,
    cnikit.effects.iptables,
    cnikit.netlink.nftrules,
    conditions,
    leftovers,
    macspoofchk,
    masquerade,
)

PLUGINS = tuple(module.PLUGIN for module in (bridge, loopback, portmap, firewall, tuning, host_local, static))
VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS")
NETNS = "/run/netns/fuzz"
EXAMPLES = Path(__file__).parent.parent / "conf-examples"
SECONDS = 2.0


class Broken(Exception):  # noqa: N818 (a promise is what is broken)
    """A promise that was not kept."""


class Choices:
    """Bytes, as choices: as many as there are, and then always the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, below: int) -> int:
        """Return a number."""
        size = 1 if below <= 256 else 2
        piece = self.piece(size)
        return int.from_bytes(piece, "big") % below

    def one(self, of: Any) -> Any:
        """Return one of a sequence."""
        return of[self.number(len(of))]

    def piece(self, size: int) -> bytes:
        """Return the next bytes."""
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> bytes:
        """Return all that are left."""
        return self._data[self._at :]


def _too_long(*_: object) -> None:
    raise Broken(f"it took more than {SECONDS} s")


@contextmanager
def bounded() -> Iterator[None]:
    """Raise Broken when what is done takes longer than it may, on the processor: other processes do not count.

    What only waits is cut off later, by the clock.
    """
    timers = ((signal.SIGVTALRM, signal.ITIMER_VIRTUAL, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, 15 * SECONDS))
    before = [signal.signal(number, _too_long) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


# Plugins, whole


class Fake(FakeNamespace):
    """A namespace without a kernel, as cnikit.effects.kernel.World holds one."""

    def close(self) -> None:
        """Have nothing to close."""


class Sandbox:
    """A folder for all that plugins keep, and plugins that know no other kernel than a fake one."""

    def __init__(self) -> None:
        self.home = os.path.realpath(tempfile.mkdtemp(prefix="cnikit-fuzz-"))
        self.bin = f"{self.home}/bin"
        self.data = f"{self.home}/data"
        self.locks = (f"{self.home}/portmap.lock", f"{self.home}/iptables.lock")
        os.mkdir(self.bin)
        for name in ("host-local", "static"):
            Path(self.bin, name).touch()
        self._world = FakeWorld()
        self._null = os.open("/dev/null", os.O_RDONLY)
        self.stack = ExitStack()
        for target, name, value in (
            (kernel, "Kernel", self._kernel),
            (netns, "open_netns", self._open_netns),
            (netns, "is_own", lambda _: False),
            (netns, "is_same", lambda _, path: path == NETNS),
            (firewalld, "is_running", lambda: False),
            (delegate, "_own_plugin", self._own_plugin),
            (hostports, "LOCK", self.locks[0]),
            (cnikit.effects.iptables, "LOCK", self.locks[1]),
            (tuning, "ALLOW_LIST", f"{self.home}/allowlist.conf"),
        ):
            self.stack.enter_context(patch.object(target, name, value))

    def close(self) -> None:
        """Remove everything."""
        self.stack.close()
        os.close(self._null)
        shutil.rmtree(self.home)

    def clear(self) -> None:
        """Have no leases, and a kernel with a container's namespace and nothing in it."""
        shutil.rmtree(self.data, ignore_errors=True)
        self._world = FakeWorld()
        self._world.namespaces = {where: Fake(self._world) for where in (HOST, CONTAINER)}

    def has_eth0(self) -> None:
        """Have the interface there, on which plugins count that come later in a list."""
        self._world[CONTAINER].add(rtnetlink.Link(7, "eth0", "veth", "02:00:00:00:00:07", 1500, peer=8))

    def _kernel(self, fd: int | None = None, container: int | None = None) -> FakeNamespace:
        del container
        return self._world[HOST if fd is None else CONTAINER]

    def _open_netns(self, path: str) -> int:
        if path == NETNS:
            return os.dup(self._null)
        if path:
            raise CniError(8, f"CNI_NETNS: {path!r} is no network namespace")
        raise FileNotFoundError(path)

    def _own_plugin(self, kind: str, path: str) -> Plugin | None:
        own = {f"{self.bin}/host-local": host_local.PLUGIN, f"{self.bin}/static": static.PLUGIN}
        return own.get(path) if kind in ("host-local", "static") else None

    def serve(self, plugin: Plugin, environ: dict[str, str], stdin: bytes) -> Response:
        """Have a plugin serve a call; raise Broken when it does not answer, Trespass when it does more."""
        may = Configured(environ, stdin, (*self.locks, f"{self.home}/allowlist.conf"))
        watch = Watch(self.home, may.file, may.program)
        with bounded(), watched(watch):
            response = respond(plugin, environ, lambda: stdin)
        if watch.trespasses:
            raise Broken(f"it touched {watch.trespasses}")
        if environ.get("CNI_COMMAND") and not _are_notes(response.stderr, plugin):
            raise Broken(f"it said {response.stderr}")
        if response.stdout:
            _check_answer(response)
        return response


def _are_notes(said: str, plugin: Plugin) -> bool:
    """Tell whether all that was said on stderr are a few lines for people."""
    lines = said.splitlines()
    return len(said) < 4096 and all(line.startswith(f"{plugin.name}: ") and line.isprintable() for line in lines)


def _check_answer(response: Response) -> None:
    said = json.loads(response.stdout)
    if response.status and not (said["code"] != 999 and said["msg"] and said["cniVersion"]):
        raise Broken(response.stdout)


class Configured:
    """The files and programs that a call names."""

    def __init__(self, environ: dict[str, str], stdin: bytes, files: tuple[str, ...]) -> None:
        try:
            config = mended(json.loads(stdin.decode("utf-8", "surrogateescape")))
        except (ValueError, RecursionError):
            config = None
        self._config = _keys(config)
        self._ipam = _keys(self._config.get("ipam"))
        self._files = (*files, self._ipam.get("resolvconf"))
        self._folders = (
            f"{self._ipam.get('datadir') or host_local.DATA_DIR}/{self._config.get('name')}",
            f"{self._config.get('datadir') or tuning.DATA_DIR}",
        )
        self._path = environ.get("CNI_PATH", "").split(":")

    def file(self, path: str) -> bool:
        """Tell whether a file may be touched: one that is named, or is in a folder that is, or is made for that."""
        if path.endswith(".py"):
            return True  # The traceback of an internal error, which is one thing to find, quotes the source.
        if EVIDENCE.fullmatch(path):
            return True
        return path in self._files or any(
            path == "/"
            or f"{folder}/".startswith(f"{path}/")
            or (path.startswith(f"{folder}/") and not {"", ".", ".."} & {*path[len(folder) + 1 :].split("/")})
            for folder in self._folders
        )

    def program(self, path: str) -> bool:
        """Tell whether a program may be executed: a delegate."""
        folder, _, name = path.rpartition("/")
        return folder in self._path and name == self._ipam.get("type")


def mended(value: Any) -> Any:
    """Return a JSON value with U+FFFD for each half of a surrogate pair, as Go's decoder gives it."""
    if isinstance(value, str):
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in value)
    if isinstance(value, dict):
        return {mended(key): mended(item) for key, item in value.items()}
    return type(value)(map(mended, value)) if isinstance(value, list | tuple) else value


def _keys(of: Any) -> dict[str, Any]:
    """Return an object's keys as the plugins find them: in any case, the last of several, and null is none."""
    return {key.lower(): value for key, value in of.items() if value is not None} if isinstance(of, dict) else {}


# What host-local looks at to tell who is alive.
EVIDENCE = re.compile(r"/proc(/sys/kernel/random/boot_id|/uptime|/(\d+|self)/mountinfo)?")

# What a configuration may hold that nobody has thought of.
LONG = "x" * 65536
NAMES = (
    "",
    ".",
    "..",
    "/",
    "a/b",
    "../x",
    "/etc/passwd",
    "a b",
    "a\nb",
    "a\0b",
    "a;b",
    "$(id)",
    "`id`",
    "%d",
    "é",
    LONG,
)
VALUES: tuple[Any, ...] = (
    *NAMES,
    *("\ud800", "\udcff", "-1", "0", "eth0", "lo", "cni0", "host-local", "static", "bridge", "true", "\u2028"),
    *("10.1.0.0/24", "10.1.0.0/31", "10.1.0.7", "10.1.0.7/24", "::/0", "0.0.0.0/0", "fd00::/64", "fd00::7", "::1"),
    *("::ffff:10.1.0.7", "fe80::1", "10.1.0.7/024", "02:00:00:00:00:01", "01:00:00:00:00:01", "127.0.0.1"),
    *("/dev/zero", "/proc/self/mem", "/proc/self/environ", "/nonexistent/" + "y/" * 1500, "0.2.0", "1.1.0", "nftables"),
    *("iptables", "firewalld", "isolated", "same-bridge", "-m", "! -s 1.2.3.4", "ip saddr 1.2.3.4", "udp", "sctp"),
    *(None, True, False, 0, 1, -1, 13, 80, 65535, 65536, 2**31, 2**32 - 1, 2**32, 2**63, 10**400, 0.5, 1e300, -0.0),
    *([], {}, [[]], [{}], [None], {"": None}, [1, "a", {}], {"a": {"b": []}}, ["10.1.0.7"], ["10.1.0.7/24"]),
)
KEYS = (
    *("cniVersion", "name", "type", "ipam", "dns", "args", "runtimeConfig", "prevResult", "capabilities", "bridge"),
    *("isGateway", "isDefaultGateway", "ipMasq", "ipMasqBackend", "ipMasqExcept", "macspoofchk", "mtu", "vlan"),
    *("hairpinMode",),
    *("promiscMode", "portIsolation", "forceAddress", "disableContainerInterface", "backend", "ingressPolicy"),
    *("iptablesAdminChainName", "firewalldZone", "snat", "masqAll", "conditionsV4", "conditionsV6", "markMasqBit"),
    *("externalSetMarkChain", "portMappings", "hostPort", "containerPort", "hostIP", "protocol", "sysctl", "mac"),
    *("promisc", "allmulti", "txQLen", "dataDir", "resolvConf", "ranges", "subnet", "rangeStart", "rangeEnd"),
    *("gateway", "routes", "dst", "gw", "scope", "table", "priority", "advmss", "addresses", "address", "interface"),
    *("interfaces", "ips", "sandbox", "cni", "ipRanges", "cni.dev/valid-attachments", "containerID", "ifname"),
    *("net.ipv4.ip_forward", "net/ipv4/conf/IFNAME/../../x", "nameservers", "search", "NAME", "IPAM"),
)
PREVIOUS = {
    "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "mac": "", "sandbox": NETNS}],
    "ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 2}, {"address": "fd00::2/64"}],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["10.1.0.1"]},
}


def seeds(data: str) -> list[tuple[str, dict[str, Any]]]:
    """Return plugins' names and configurations that work: the examples, and what uses other keys; data is dataDir."""
    found = []
    for file in sorted(EXAMPLES.glob("*.conflist")):
        whole = json.loads(file.read_text())
        for plugin in whole["plugins"]:
            common = {"cniVersion": "1.1.0", "name": whole["name"], "prevResult": PREVIOUS}
            for kind, config in ((plugin["type"], plugin), (plugin.get("ipam", {}).get("type"), plugin)):
                if kind:
                    found.append((kind, {**common, **copy.deepcopy(config)}))
    ports = [{"hostPort": 8080 + n, "containerPort": 80 + n, "protocol": kind} for n, kind in enumerate(("tcp", "udp"))]
    gone = {"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]}
    more: tuple[tuple[str, dict[str, Any]], ...] = (
        ("portmap", {"runtimeConfig": {"portMappings": ports}, "conditionsV4": ["ip saddr 10.0.0.0/8"]}),
        ("portmap", {"runtimeConfig": {"portMappings": ports}, "backend": "iptables"}),
        ("firewall", {"backend": "iptables", "ingressPolicy": "same-bridge"}),
        ("firewall", {"ingressPolicy": "isolated", "iptablesAdminChainName": "MINE"}),
        ("tuning", {"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "mac": "02:00:00:00:00:09", "mtu": 1400}),
        ("bridge", {"ipMasq": True, "ipMasqExcept": ["10.0.0.0/8", "fd00::/16"], "ipam": {"type": "host-local"}}),
        ("bridge", {"vlan": 0, "vlanTrunk": [], "preserveDefaultVlan": False, "mtu": 1500}),
        ("bridge", {"ipMasq": True, "ipMasqBackend": "iptables", "macspoofchk": True, "ipam": {"type": "host-local"}}),
        ("host-local", {"ipam": {"resolvConf": "/etc/resolv.conf"}, "runtimeConfig": {"ips": ["10.1.0.7"]}}),
        ("static", {"ipam": {}, "args": {"cni": {"ips": ["10.1.0.7/24"]}}, "runtimeConfig": {"ips": ["fd00::7/64"]}}),
    )
    found += [(kind, {"cniVersion": "1.1.0", "name": "n", "prevResult": PREVIOUS, **gone, **c}) for kind, c in more]
    for kind, config in found:
        if kind in ("host-local", "bridge") and "ipam" in config:
            config["ipam"].setdefault("ranges", [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]])
            config["ipam"]["dataDir"] = data
        if kind == "tuning":
            config["dataDir"] = data
    return found


# The worst of them, and what VALUES cannot hold: json.dumps goes less deep than who reads it.
WORST: tuple[Any, ...] = (
    "\ud800",
    "a\0b",
    "a\nb",
    "../x",
    LONG,
    "/x" * 1500,
    10**400,
    -1,
    True,
    [],
    {},
    [[[{}]]],
    "DEEP",
)
DEEP = b"[" * 900 + b"]" * 900


def places(document: Any) -> Iterator[tuple[str | int, ...]]:
    """Return the way to each value in a JSON value, by keys and indices."""
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in pairs:
        yield (key,)
        yield from ((key, *further) for further in places(value))


def replaced(document: Any, place: tuple[str | int, ...], value: Any) -> bytes:
    """Return the text of a JSON value with another value in a place."""
    whole = copy.deepcopy(document)
    inner = whole
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return json.dumps(whole).encode().replace(b'"DEEP"', DEEP)


def _value(choices: Choices) -> Any:
    return copy.deepcopy(choices.one(VALUES))


def mutated(document: Any, choices: Choices) -> Any:
    """Return a JSON value with something else in some places."""
    whole = [copy.deepcopy(document)]
    for _ in range(choices.number(4)):
        place: Any = whole
        key: Any = 0
        while isinstance(place[key], dict | list) and place[key] and (place is whole or choices.number(4)):
            place = place[key]
            key = choices.one(list(place) if isinstance(place, dict) else range(len(place)))
        what = choices.number(6)
        if what == 0 and isinstance(place, dict):
            place[choices.one(KEYS)] = _value(choices)
        elif what == 1 and isinstance(place[key], dict):
            place[key][choices.one(KEYS)] = _value(choices)
        elif what == 2:
            place[key] = [place[key]] * (1 + choices.number(20))
        elif what == 3 and isinstance(place, dict):
            place[key.swapcase()] = _value(choices)
        elif what == 4 and isinstance(place, dict) and place:
            del place[key]
        else:
            place[key] = _value(choices)
    return whole[0]


def environment(choices: Choices, verb: str, path: str) -> dict[str, str]:
    """Return a runtime's variables, one or none of them hostile."""
    environ = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": "c1",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": NETNS,
        "CNI_PATH": path,
    }
    if choices.number(4) == 0:
        name = choices.one((*environ, "CNI_ARGS", "CNI_NETNS_OVERRIDE"))
        pairs = (
            "IP=10.1.0.7",
            "MAC=02:00:00:00:00:01",
            "IgnoreUnknown=1",
            "GATEWAY=10.1.0.1;IP=x",
            "=",
            "a=b=c",
            ";" * 99,
        )
        hostile = (choices.one(NAMES), choices.one(pairs), os.fsdecode(choices.piece(8)))
        # A variable holds neither.
        environ[name] = choices.one(hostile).replace("\0", "")
    return environ


SANDBOX: list[Sandbox] = []


def sandbox() -> Sandbox:
    """Return the one sandbox of this process, cleared."""
    if not SANDBOX:
        SANDBOX.append(Sandbox())
    SANDBOX[0].clear()
    return SANDBOX[0]


def leave() -> None:
    """Remove it."""
    while SANDBOX:
        SANDBOX.pop().close()


def stdin(data: bytes) -> None:
    """Give any bytes on stdin, to any plugin and verb."""
    place, choices = sandbox(), Choices(data)
    plugin, verb = choices.one(PLUGINS), choices.one(VERBS)
    place.serve(plugin, environment(Choices(b"\1"), verb, place.bin), choices.rest())


def call(data: bytes) -> None:
    """Make a call that is nearly right, and the DEL that follows."""
    place, choices = sandbox(), Choices(data)
    kind, config = choices.one(seeds(place.data))
    plugin = next(plugin for plugin in PLUGINS if plugin.name == kind)
    if plugin is tuning.PLUGIN:
        place.has_eth0()
    environ = environment(choices, choices.one(VERBS), place.bin)
    # The written form has escapes where a value is no UTF-8.
    text = json.dumps(mutated(config, choices)).encode()
    place.serve(plugin, environ, text)
    place.serve(plugin, {**environ, "CNI_COMMAND": "DEL"}, text)


# What plugins find in files


OWNER = "c1\r\neth0"
LEASES = (
    "10.1.0.2",
    "10.1.0.3",
    "fd00::2",
    "010.1.0.4",
    "10.1.0.5 ",
    "10.1.0.6\n",
    "10.1.0.7/",
    "x",
    "a\nb",
    "é" * 100,
)
INDEX = leases.Store("")._link(OWNER.encode()).rpartition("/")[2]
LEFT = (
    *LEASES,
    "last_reserved_ip.0",
    "last_reserved_ip.1",
    ".owners/new",
    f".owners/{INDEX}",
    ".owners/x",
    ".owners",
    "lock",
)
CONTENTS = (
    OWNER,
    "c1",
    "",
    "c2\r\neth0",
    "10.1.0.9",
    "999",
    " \n",
    "../x\r\neth0",
    "\0" * 99,
    LONG,
    "c1\neth0",
    "é\r\n",
)


def everywhere(number: int, values: tuple[Any, ...]) -> int:
    """Give each of some values in each place of a configuration, to one verb after the other; return how many."""
    place, tried = sandbox(), 0
    kind, config = seeds(place.data)[number]
    plugin = next(plugin for plugin in PLUGINS if plugin.name == kind)
    config["cni.dev/valid-attachments"] = [{"containerID": "c2", "ifname": "eth0"}]
    for where in places(config):
        for value in values:
            place.clear()
            place.serve(
                plugin, environment(Choices(b"\1"), VERBS[tried % 5], place.bin), replaced(config, where, value)
            )
            tried += 1
    return tried


def lease_folder(data: bytes) -> None:
    """Give host-local a folder of rubbish: files of any name and kind, an index that says anything."""
    place, choices = sandbox(), Choices(data)
    folder = f"{place.data}/n"
    os.makedirs(f"{folder}/.owners")
    outside = Path(place.home, "outside")
    outside.write_bytes(OWNER.encode())
    for _ in range(choices.number(6)):
        _put(folder, choices)
    if choices.number(2) and not os.path.isdir(f"{folder}/lock"):
        # As if the index agreed with the files.
        with leases.Store(folder) as store:
            store._stamp()
    config = dict(seeds(place.data))["host-local"] | {"name": "n"}
    for _ in range(1 + choices.number(4)):
        given = json.dumps(config | {"cni.dev/valid-attachments": []}).encode()
        place.serve(host_local.PLUGIN, environment(Choices(b"\1"), choices.one(VERBS), place.bin), given)
    if outside.read_bytes() != OWNER.encode():
        raise Broken(f"a file outside the folder is {outside.read_bytes()!r}")


def _put(folder: str, choices: Choices) -> None:
    """Put something into the folder."""
    name = choices.one(LEFT)
    path = f"{folder}/{name}".rstrip("/")
    what = choices.number(6)
    content = os.fsencode(choices.one(CONTENTS)) if choices.number(4) else choices.piece(40)
    if os.path.lexists(path):
        return
    try:
        if what == 0:
            os.mkdir(path)
        elif what == 1:
            os.mkfifo(path)
        elif what == 2 and name.startswith(".owners/"):
            os.symlink(
                choices.one(("10.1.0.2", "10.1.0.2,10.1.0.3", "../../outside", ".", "/dev/zero", ",", "x" * 4000)), path
            )
        elif what == 3:
            Path(path).touch()
            os.truncate(path, 1 << 40)
        else:
            Path(path).write_bytes(content)
    except FileNotFoundError:
        return  # .owners is no folder


def backups(data: bytes) -> None:
    """Give tuning a file of former values, and host-local a resolv.conf, of any content."""
    place, choices = sandbox(), Choices(data)
    place.has_eth0()
    os.makedirs(place.data)
    before = {"mac": "02:00:00:00:00:09", "promisc": True, "mtu": 1500, "allmulti": False, "txQLen": 10}
    written = mutated(
        {**before, "sysctl": {"net/ipv4/ip_forward": "1"}, "containerID": "c1", "ifname": "eth0"}, choices
    )
    raw = json.dumps(written).encode() if choices.number(4) else choices.rest()
    Path(place.data, "c1_eth0.json").write_bytes(raw)
    config = dict(seeds(place.data))["tuning"] | {"cni.dev/valid-attachments": []}
    for verb in ("ADD", "GC", "DEL"):
        environ = environment(Choices(b"\1"), verb, place.bin)
        place.serve(tuning.PLUGIN, environ, json.dumps(config).encode())
    resolv = Path(place.home, "resolv.conf")
    resolv.write_bytes(data)
    config = dict(seeds(place.data))["host-local"]
    config["ipam"]["resolvConf"] = str(resolv)
    place.serve(host_local.PLUGIN, environment(Choices(b"\1"), "ADD", place.bin), json.dumps(config).encode())


NETWORK = {"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "bridge", "capabilities": {"a": True}}]}
ENTRY = {
    "kind": "cniCacheV1",
    "containerId": "c1",
    "ifName": "eth0",
    "networkName": "n",
    "netns": NETNS,
    "cniArgs": [["K", "V"]],
    "capabilityArgs": {"portMappings": []},
    "result": PREVIOUS,
}


def configuration_files(data: bytes) -> None:
    """Give cnitool network configurations and cached results."""
    place, choices = sandbox(), Choices(data)
    folder = Path(place.data)
    (folder / "results").mkdir(parents=True)
    documents = [
        json.dumps(mutated(seed, choices)).encode() if choices.number(4) else choices.rest()
        for seed in (NETWORK, ENTRY)
    ]
    (folder / "n.conflist").write_bytes(documents[0])
    (folder / "results" / "n-c1-eth0").write_bytes(documents[1])
    cache, whose = Cache(folder), Attachment("c1", netns=NETNS)
    with bounded():
        for read in (
            lambda: networks.load(folder, "n"),
            lambda: networks.parse(documents[0]),
            lambda: cache.find("n", whose),
            lambda: cache.holder(whose),
            lambda: cache.of("n"),
            lambda: cache.unreadable("n"),
            lambda: cache.store(networks.parse(documents[0]), whose, PREVIOUS),
            lambda: cache.forget("n", whose),
        ):
            _only_cni_errors(read)


def _only_cni_errors(do: Callable[[], Any]) -> None:
    try:
        do()
    except CniError as e:
        # It must be possible to say.
        json.dumps(e.document("1.1.0"))


def delegates(data: bytes) -> None:
    """Have another suite's IPAM plugin print anything, and end in any way."""
    place, choices = sandbox(), Choices(data)
    Path(place.bin, "other").touch()
    given = mutated({**PREVIOUS, "cniVersion": "1.1.0"}, choices)
    out = json.dumps(given).encode() if choices.number(4) else choices.rest()
    status = choices.one((0, 0, 0, 1, -9, 255))
    config = dict(seeds(place.data))["bridge"] | {"ipam": {"type": "other"}}
    answer = patch.object(delegate, "_run", lambda *_: (status, out, b""))
    with answer, patch.object(delegate, "_relay", lambda _: None):
        for verb in ("ADD", "CHECK", "DEL"):
            place.serve(bridge.PLUGIN, environment(Choices(b"\1"), verb, place.bin), json.dumps(config).encode())


# What the kernel and the bus answer


class FakeSocket:
    """A netlink socket whose kernel says what was chosen, and in the end nothing more."""

    def __init__(self, data: bytes) -> None:
        self._choices = Choices(data)
        self._raw = bool(self._choices.number(2))
        self._sequence = 0
        self._left = 40

    def setsockopt(self, *_: object) -> None:
        """Take every option."""

    def close(self) -> None:
        """Have nothing to close."""

    def send(self, data: bytes) -> int:
        """Take note of the first request's number."""
        self._sequence = int.from_bytes(data[8:12], sys.byteorder)
        return len(data)

    def recv_into(self, buffer: bytearray) -> int:
        """Say something: any bytes, or messages in right frames."""
        self._left -= 1
        if self._left < 0:
            raise BlockingIOError(errno.EAGAIN, "no answer")  # where a real kernel would keep us waiting
        answer = self._choices.piece(self._choices.number(256)) if self._raw else b"".join(self._messages())
        buffer[: len(answer)] = answer
        return len(answer)

    def _messages(self) -> Iterator[bytes]:
        choices = self._choices
        for _ in range(1 + choices.number(3)):
            kind = choices.one((2, 3, 16, 20, 24, 0xA03, 0xA06, 0xA0C, 0x100, 0))
            body = choices.piece(choices.number(120)) if choices.number(3) else bytes(24)
            message = codec.Message(kind, choices.one((0, 2, 0x10, 0x200)), body)
            yield codec.frame(message, self._sequence + choices.number(3))


QUESTIONS: tuple[Callable[[kernel.Kernel], Any], ...] = (
    lambda k: k.link("eth0"),
    lambda k: k.link_at(1),
    lambda k: k.links(),
    lambda k: k.addresses("eth0"),
    lambda k: k.routes(2),
    lambda k: k.way(bytes(4)),
    lambda k: k.rules(TABLE),
    lambda k: k.nftables().chains_there("nat", ["X"]),
    lambda k: k.dropping("forward"),
    lambda k: k.elements(TABLE, "cni:"),
    lambda k: k.element(TABLE, Element("ports4", ("tcp", "80"))),
    lambda k: k.change([Make(RouteObject(CONTAINER, "eth0", "10.0.0.0/8", "", 0, 0, 0))]),
    lambda k: k.change([Make(Ruleset(HOST, TABLE.name, TABLE))]),
    lambda k: Ruleset(HOST, TABLE.name, TABLE).fault({HOST: k}),
    lambda k: RouteObject(HOST, "eth0", "10.0.0.0/8", "10.1.0.1", 0, 0, 0).fault({HOST: k}),
)


def netlink(data: bytes) -> None:
    """Have the kernel answer anything to all that is asked of it."""
    choices = Choices(data)
    ask = choices.one(QUESTIONS)
    with bounded(), patch.object(sockets, "socket", lambda *_: FakeSocket(choices.rest())):
        _only_cni_errors(lambda: ask(kernel.Kernel()))
        wanted = StaleFlows(HOST, "udp", (53, 54), 2)
        _only_cni_errors(lambda: conntrack.Conntrack().forget(wanted, choices.number(9999)))


DECODERS: tuple[Callable[[bytes], Any], ...] = (
    lambda data: [codec.error(reply) for reply in codec.replies(data) if reply.type in (2, 3)],
    codec.attributes,
    rtnetlink.link,
    rtnetlink.bound_address,
    rtnetlink.kernel_routes,
    nftables.rule,
    nftables.chain,
    nftables.table_name,
    flows.flow,
    lambda data: nftables.del_rule(TABLE, data),
    *(lambda data, name=one.name: nftables.elements(TABLE, name, data) for one in TABLE.sets),
)


def answers(data: bytes) -> None:
    """Decode one answer of the kernel."""
    choices = Choices(data)
    decode = choices.one(DECODERS)
    with bounded():
        _only_cni_errors(lambda: decode(choices.rest()))


def listings(data: bytes) -> None:
    """Have iptables-save print anything, and change what it lists."""
    tables = iptables.saved(data.decode("utf-8", "backslashreplace"))
    whose = Whose("n", "c1", "eth0")
    ips = [IP("10.1.0.2/24", "10.1.0.1")]
    steps = (*iptables.masquerade(whose, ips), *iptables.masquerade_removal(whose), *iptables.firewall(ips))
    changes = [
        change(step.what) for step in steps for change in (Make, Remove) if isinstance(step.what, iptables.Rules)
    ]
    with bounded():
        iptables.written(changes, {name: tables.get(name, {}) for name in ("nat", "filter")})


class FakeBus(systembus._Bus):
    """A bus that says what was chosen, in pieces."""

    said = b""

    def connect(self, address: Any) -> None:
        """Be connected."""

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Hear."""

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Speak."""
        piece, FakeBus.said = FakeBus.said[: min(size, 64)], FakeBus.said[min(size, 64) :]
        return piece


def bus(data: bytes) -> None:
    """Have the system bus say anything, and be anywhere."""
    choices = Choices(data)
    hello = b"OK x\r\nl\2\1\1\0\0\0\0\1\0\0\0\0\0\0\0" if choices.number(4) else b""
    again = choices.number(8) == 0
    said = hello + choices.rest() * (1000 if again else 1)
    address = choices.one(
        (b"unix:path=/x", b"unix:path=%", b"unix:path=%zz", b"unix:abstract=%00", b"x", choices.rest())
    )
    where = patch.dict("posix.environ", {b"DBUS_SYSTEM_BUS_ADDRESS": address.replace(b"\0", b"")})
    with bounded(), patch.object(systembus, "_Bus", FakeBus), where:
        for ask in (
            firewalld.is_running,
            lambda: firewalld.zone_of("10.1.0.2/32"),
            lambda: firewalld.add_source("trusted", "10.1.0.2/32"),
            lambda: firewalld.remove_source("trusted", "10.1.0.2/32"),
        ):
            FakeBus.said = said
            _only_cni_errors(ask)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        *(stdin, call, lease_folder, backups, configuration_files, delegates),
        *(netlink, answers, listings, bus),
    )
}


# What is known to be right, for atheris to begin with.


def _of_kernel() -> Iterator[bytes]:
    """Return messages the kernel could have sent: they are what it takes."""
    element = Element("ports4", ("tcp", "80"), ("10.1.0.2", "80"), "cni:n/c1/eth0")
    route = rtnetlink.KernelRoute(bytes(4), 8, b"\x0a\1\0\1", 2, 254, 0, 0)
    for message in (
        rtnetlink.new_veth("veth1", "eth0", 3, 4, 1500, b"\2\0\0\0\0\1"),
        rtnetlink.set_alias("veth1", "cni:n/c1/eth0"),
        rtnetlink.set_port("veth1", True, True),
        rtnetlink.new_address(2, b"\x0a\1\0\2", 24, dad=False),
        rtnetlink.new_route(route, 2, 1400, 1360),
        nftables.new_element(TABLE, element),
        *cnikit.netlink.nftrules.new_table(TABLE),
        flows.delete(
            flows.Flow(2, 17, b"\x0a\1\0\3", b"\x0a\1\0\2", 53, b"", codec.nested(1, codec.u8(1, 17)), b"\0\0\0\1", b"")
        ),
    ):
        yield message.body


SAVED = b"""*nat
:PREROUTING ACCEPT [0:0]
:CNI-6f4a9d3ac1c5d6b0c8d5c4f0 - [0:0]
-A POSTROUTING -s 10.1.0.2/32 -m comment --comment "name: \\"n\\" id: \\"c1\\"" -j CNI-6f4a9d3ac1c5d6b0c8d5c4f0
-A CNI-6f4a9d3ac1c5d6b0c8d5c4f0 -d 10.1.0.0/24 -j ACCEPT
COMMIT
"""


def first_inputs(name: str) -> list[bytes]:
    """Return bytes that lead a target a good way in."""
    if name == "stdin":
        configs = seeds("/nowhere")
        verbs = range(len(VERBS))
        kinds = [plugin.name for plugin in PLUGINS]
        return [
            bytes((kinds.index(kind), verb)) + json.dumps(config).encode() for kind, config in configs for verb in verbs
        ]
    if name in ("answers", "netlink"):
        of = len(DECODERS if name == "answers" else QUESTIONS)
        return [bytes((number,)) + body for number in range(of) for body in _of_kernel()]
    if name == "listings":
        return [SAVED]
    # Choices: each first one, and no change.
    return [bytes((number,)) + bytes(40) for number in range(len(seeds("/")))]
