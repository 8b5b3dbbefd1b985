"""The built executables, given what nobody sends who means well: on stdin, in names, as streams.

Each runs with 64 MiB of memory and two seconds of the processor, all there is for it (prlimit), and must answer. These
are tests/fuzz.py's promises once more, for a few of the worst inputs and all that fakes leave out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cnikit.main import MOST
from cnikit.netlink import codec, rtnetlink
from tests.conftest import BUILT, ip

PLUGINS = ("bridge", "loopback", "portmap", "firewall", "tuning", "host-local", "static")
MEBIBYTE = 1 << 20
LIMITS = ("prlimit", f"--as={64 * MEBIBYTE}", "--cpu=2")


class Answer:
    """What came of a call."""

    def __init__(self, status: int, stdout: bytes, stderr: bytes) -> None:
        self.status = status
        self.stdout = stdout
        self.stderr = stderr
        self.document = json.loads(stdout) if stdout else {}

    @property
    def code(self) -> int:
        """The error's, 0 where there was none; whatever else happens is no answer."""
        assert (self.status, self.stderr) in ((0, b""), (1, b"")), (self.status, self.stdout, self.stderr)
        if self.status == 0:
            return 0
        assert self.document["code"] != 999
        assert self.document["msg"]
        return int(self.document["code"])


def call(plugin: str, stdin: Any, verb: str = "ADD", tracer: tuple[str, ...] = (), **environ: str) -> Answer:
    """Call a plugin; stdin is bytes, an open file, or a configuration."""
    given = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/none",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(BUILT),
        **environ,
    }
    data = json.dumps(stdin).encode() if isinstance(stdin, dict) else stdin
    done = subprocess.run(
        [*tracer, *LIMITS, BUILT / plugin],
        env={name: os.fsencode(value) for name, value in given.items()} | {"PATH": os.environ["PATH"]},
        **({"input": data} if isinstance(data, bytes) else {"stdin": data}),
        capture_output=True,
        timeout=60,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


# Stdin

WHOLE = b'{"cniVersion": "1.1.0", "name": "net1", %b}'


STDIN: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 6, "Expecting value"),
    "lists, 100,000 deep": (b"[" * 100_000, 6, "nested too deeply"),
    "lists, 100,000 deep and closed": (b"[" * 100_000 + b"]" * 100_000, 6, "nested too deeply"),
    "objects, 100,000 deep": (b'{"a":' * 100_000, 6, "nested too deeply"),
    "objects, 100,000 deep and closed": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 6, "nested too deeply"),
    "lists, 900 deep": (WHOLE % (b'"vlan": ' + b"[" * 900 + b"]" * 900), 6, "nested too deeply"),
    "1e999999": (WHOLE % b'"mtu": 1e999999', 6, "1e999999 is too large for a number"),
    "a number of 100,000 digits": (WHOLE % (b'"mtu": 1' + b"0" * 100_000), 6, "limit"),
    "a number of a million digits behind the point": (
        WHOLE % (b'"cniVersion": 1.' + b"0" * 1_000_000 + b"1"),
        6,
        "expected string, got number",
    ),
    "NaN": (WHOLE % b'"mtu": NaN', 6, "NaN is not JSON"),
    "Infinity": (WHOLE % b'"mtu": -Infinity', 6, "Infinity is not JSON"),
    "a key twice, the last is none": (WHOLE % b'"name": "n", "name": "../x"', 7, "name: invalid characters"),
    "a key in two cases, the last is none": (WHOLE % b'"NAME": "../x"', 7, "name: invalid characters"),
    "half a surrogate pair": (WHOLE % rb'"name": "\ud800"', 7, "name: invalid characters"),
    "half a surrogate pair in UTF-8": (WHOLE % b'"name": "\xed\xa0\x80"', 7, "name: invalid characters"),
    "no UTF-8": (WHOLE % b'"name": "\xff"', 7, "name: invalid characters"),
    "no UTF-8 outside strings": (WHOLE % b'"a": \xff', 6, "Expecting value"),
    "a mebibyte of what is no UTF-8": (WHOLE % (b'"name": "' + b"\xe2\x82" * 500_000 + b'"'), 7, "name: invalid char"),
    "halves of surrogate pairs": (WHOLE % (b'"name": "' + rb"\ud800" * 150_000 + b'"'), 7, "name: invalid characters"),
    "backslashes before one": (WHOLE % (b'"name": "' + b"\\" * 1_000_000 + rb'\ud800"'), 7, "name: invalid characters"),
    "a byte order mark": (b"\xef\xbb\xbf" + WHOLE % b'"a": 1', 6, "BOM|Expecting value"),
    "UTF-16": ((WHOLE % b'"a": 1').decode().encode("utf-16"), 6, "Expecting"),
    "a NUL behind it": (WHOLE % b'"a": 1' + b"\0", 6, "Extra data"),
    "a NUL in a string": (WHOLE % b'"name": "a\0b"', 6, "Invalid control character"),
    "an escaped NUL in a name": (WHOLE % rb'"name": "a\u0000b"', 7, "name: invalid characters"),
    "a mebibyte of lists": (b"[" + b"[]," * 340_000 + b"[]]", 6, "expected object, got list"),
    "a mebibyte of objects": (b"[" + b'{"":0},' * 149_000 + b"{}]", 6, "expected object, got list"),
    "a mebibyte of numbers": (b"[" + b"0," * 520_000 + b"0]", 6, "expected object, got list"),
    "a mebibyte and one byte": (b" " * (MOST + 1), 6, f"more than {MOST} bytes on stdin"),
    "100 mebibytes": (b" " * (100 * MEBIBYTE), 6, f"more than {MOST} bytes on stdin"),
}


@pytest.mark.parametrize(("stdin", "code", "msg"), STDIN.values(), ids=STDIN)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_on_stdin(plugin: str, stdin: bytes, code: int, msg: str) -> None:
    answer = call(plugin, stdin)
    assert (answer.code, bool(re.search(msg, answer.document["msg"]))) == (code, True), answer.stdout[:300]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_stdin_without_an_end(plugin: str) -> None:
    with Path("/dev/zero").open("rb") as endless:
        answer = call(plugin, endless)
    assert (answer.code, answer.document["msg"].rpartition(": ")[2]) == (6, f"more than {MOST} bytes on stdin")


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize(("file", "msg"), [("/", "Is a directory"), ("/proc/self/mem", "Input/output error")])
def test_a_stdin_that_cannot_be_read(plugin: str, file: str, msg: str) -> None:
    fd = os.open(file, os.O_RDONLY)
    answer = call(plugin, fd)
    os.close(fd)
    assert (answer.code, answer.document["msg"]) == (5, f"error reading from stdin: {msg}")


def test_as_many_attachments_as_a_mebibyte_holds_can_be_kept(host: str, networks: Path) -> None:
    assert host
    valid = [{"containerID": f"{number:064}", "ifname": "eth0"} for number in range(9000)]
    config = {**common(networks), "cni.dev/valid-attachments": valid}
    assert 0.8 * MOST < len(json.dumps(config)) < MOST
    assert [call(plugin, config, "GC").code for plugin in PLUGINS] == [0] * len(PLUGINS)


# Lists that are long


def _many(count: int, of: Any) -> list[Any]:
    return [of(f"10.{n >> 14}.{n >> 6 & 255}.{(n << 2 & 255)}", n) for n in range(count)]


SETS = {"ranges": _many(30_000, lambda a, _: [{"subnet": f"{a}/30"}])}
ONE_SET = {"ranges": [_many(30_000, lambda a, _: {"subnet": f"{a}/30"})]}
STATIC = {"addresses": _many(18_000, lambda a, _: {"address": f"{a}/8", "gateway": "10.0.0.1"})}
REPLACED = {"cni": {"ips": _many(40_000, lambda a, _: f"{a}/8")}}
PREVIOUS = {"ips": _many(33_000, lambda a, _: {"address": f"{a}/8"})}
LINKS = {"interfaces": [{"name": "cni0"}] * 55_000}
ROUTES = {"routes": [{"dst": "::/0"}] * 55_000}
PORTS = {"portMappings": [{"hostPort": n, "containerPort": 80} for n in range(1, 25_000)]}

# Plugin, verb, what is in the configuration, the error's code and words.
LONG_LISTS: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "range sets": ("host-local", "ADD", {"ipam": SETS}, 7, "ipam.ranges: 30000 ranges are too many"),
    "range sets by STATUS": ("host-local", "STATUS", {"ipam": SETS}, 7, "ipam.ranges: 30000 ranges are too many"),
    "ranges of a set": ("host-local", "ADD", {"ipam": ONE_SET}, 7, "ipam.ranges: 30000 ranges are too many"),
    "addresses": ("static", "ADD", {"ipam": STATIC}, 7, "ipam.addresses: 18000 are too many"),
    "addresses in place of others": ("static", "ADD", {"args": REPLACED}, 7, "args.cni.ips: 40000 are too many"),
    "addresses of prevResult": ("firewall", "ADD", {"prevResult": PREVIOUS}, 7, "prevResult.ips: 33000 are too many"),
    "interfaces of prevResult": ("bridge", "CHECK", {"prevResult": LINKS}, 7, "prevResult.interfaces: 55000 are too"),
    "routes of prevResult": ("bridge", "CHECK", {"prevResult": ROUTES}, 7, "prevResult.routes: 55000 are too many"),
    "routes": ("static", "ADD", {"ipam": ROUTES}, 7, "ipam.routes: 55000 are too many"),
    "ports without an address": ("portmap", "CHECK", {"runtimeConfig": PORTS, "prevResult": {}}, 0, ""),
}


@pytest.mark.parametrize(("plugin", "verb", "config", "code", "msg"), LONG_LISTS.values(), ids=LONG_LISTS)
def test_lists_that_are_long(
    host: str, networks: Path, plugin: str, verb: str, config: dict[str, Any], code: int, msg: str
) -> None:
    assert host
    given = common(networks) | config
    given["ipam"] |= {"dataDir": str(networks)}
    assert 0.3 * MOST < len(json.dumps(given)) < MOST
    answer = call(plugin, given, verb)
    assert (answer.code, bool(re.match(msg, answer.document.get("msg", "")))) == (code, True), answer.stdout[:300]
    assert not networks.exists()


def common(networks: Path) -> dict[str, Any]:
    """Return what every configuration has."""
    ipam = {"type": "host-local", "dataDir": str(networks)}
    return {"cniVersion": "1.1.0", "name": "net1", "ipam": ipam, "dataDir": str(networks)}


def test_arguments_that_are_long(host: str, networks: Path) -> None:
    assert host
    for key, count in (("GATEWAY", 8000), ("IP", 8000)):
        args = f"{key}={','.join(_many(count, lambda a, _: f'{a}/8'))}"
        answer = call("static", {**common(networks), "ipam": {"addresses": []}}, CNI_ARGS=args)
        assert (answer.code, answer.document["msg"][:26]) == (4, f"CNI_ARGS: {key}: {count} are too"[:26])


# Names

LONG = "x" * 65536
# One of this process's own: others may run these tests at the same time.
TRAP = f"/tmp/cnikit-trap-{os.getpid()}"
NAMES = {
    "nothing": "",
    "a dot": ".",
    "two dots": "..",
    "a slash": "/",
    "a way up": f"../../../../../../../..{TRAP}",
    "a path": TRAP,
    "a file in /etc": "/etc/passwd",
    "64 KiB": LONG,
    "a path of 300 folders": TRAP + "/x" * 300,
    "a newline": "a\nb",
    "a NUL": "a\0b",
    "a blank": "a b",
    "a command": f"$(touch {TRAP});`touch {TRAP}`|touch {TRAP}",
    "an option": "--help",
    "a template": "%d%s%n",
    "half a surrogate pair": "\ud800",
    "another byte": "\udcff",
    "a lost one": "é\u2028\u202e",
}
FOLDERS = ":".join(f"/nonexistent/{number}" for number in range(5000))


def _placed(place: str, name: str, networks: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return configuration and variables with the name in a place: a variable's name, or keys in a row."""
    config = {
        **common(networks),
        "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80}]},
        "prevResult": {"interfaces": [{"name": "cni0"}], "ips": [{"address": "10.1.0.2/24"}]},
        "sysctl": {"net.core.somaxconn": "1"},
    }
    config["ipam"]["subnet"] = "10.1.0.0/24"
    if place.startswith("CNI_"):
        return config, {place: name}
    whole: Any = config
    *keys, last = (int(key) if key.isdigit() else key for key in place.split("/"))
    for key in keys:
        whole = whole.setdefault(key, {}) if isinstance(whole, dict) else whole[key]
    whole[last] = name
    return config, {}


PLACES = {
    **dict.fromkeys(("CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS", "name", "cniVersion"), PLUGINS),
    "CNI_PATH": ("bridge",),
    "bridge": ("bridge",),
    "ipam/type": ("bridge",),
    "ipam/dataDir": ("host-local", "bridge"),
    "ipam/subnet": ("host-local", "bridge"),
    "ipam/resolvConf": ("host-local",),
    "dataDir": ("tuning",),
    "mac": ("tuning",),
    "backend": ("portmap", "firewall"),
    "externalSetMarkChain": ("portmap",),
    "runtimeConfig/portMappings/0/hostIP": ("portmap",),
    "iptablesAdminChainName": ("firewall",),
    "firewalldZone": ("firewall",),
    "prevResult/interfaces/0/name": ("firewall", "bridge", "tuning", "portmap"),
    "prevResult/ips/0/address": ("firewall", "bridge", "tuning", "portmap"),
    "cni.dev/valid-attachments": PLUGINS,
}
VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS")


def _storable(place: str, name: str) -> bool:
    """Tell whether it can be tried: a variable holds no NUL and nothing that is no bytes, and / is not ours."""
    if place.startswith("CNI_"):
        return "\0" not in name and name != "\ud800"
    return not (name == "/" and place in DEFAULT)


@pytest.fixture
def trap() -> Iterator[Path]:
    """Give what must not come to be where it is not asked for, and remove it where it is."""
    yield Path(TRAP)
    shutil.rmtree(TRAP, ignore_errors=True)


@pytest.mark.parametrize("place", PLACES)
def test_names(host: str, container: str, networks: Path, trap: Path, place: str) -> None:
    """Every name in every place gets an answer: two verbs of one plugin each, in turn, for it would be 6000 calls."""
    assert host
    assert not trap.exists()
    tried = 0
    for number, name in enumerate(NAMES.values()):
        if not _storable(place, name):
            continue
        config, variables = _placed(place, name, networks)
        plugins = PLACES[place]
        plugin = plugins[number % len(plugins)]
        for verb in (VERBS[number % 5], VERBS[(number + 1) % 5]):
            answer = call(plugin, config, verb, (), **{"CNI_NETNS": container, **variables})
            assert answer.code in (0, 1, 2, 4, 5, 6, 7, 8, 50, 100, 103) or verb == "CHECK", (name[:50], answer.stdout)
            tried += 1
    assert tried >= 32


def test_a_path_of_5000_folders(host: str, container: str, networks: Path) -> None:
    assert host
    config = {**common(networks), "ipam": {"type": "other"}}
    answer = call("bridge", config, CNI_PATH=FOLDERS, CNI_NETNS=container)
    assert (answer.code, answer.document["msg"][:40]) == (7, "ipam.type: failed to find plugin other i")


DEFAULT = {"ipam/dataDir": "/var/lib/cni/networks", "dataDir": "/run/cni/tuning"}


# Files and programs, as the kernel sees them

SEEN = re.compile(r'^(?:\d+ +)?(\w+)\((?:AT_FDCWD, )?"((?:[^"\\]|\\.)*)"(?:, "((?:[^"\\]|\\.)*)")?')
# What neither opens nor changes a file.
LOOKS = ("access", "faccessat2", "getxattr", "newfstatat", "readlink", "readlinkat", "stat", "lstat", "statx")
# The loader's, the interpreter's and the C library's own, whatever is asked for.
OWN = (
    f"{BUILT}/",
    "/proc/",
    "/etc/ld.so",
    "/lib",
    "/usr/lib",
    "/etc/localtime",
    "/dev/null",
    "/run/cnikit-",
    "/etc/cni/",
)


def _traced(folder: Path, plugin: str, config: dict[str, Any], verb: str, **environ: str) -> tuple[Answer, list[str]]:
    """Call a plugin; return its answer, and what it did to files and as programs, a call and a path each."""
    out = folder / "trace"
    tracer = ("strace", "-f", "-s", "70000", "-e", "trace=%file,execve,execveat", "-e", "signal=none", "-o", str(out))
    answer = call(plugin, config, verb, tracer=tracer, **environ)
    done = []
    for line in out.read_text(errors="surrogateescape").splitlines():
        if found := SEEN.match(line):
            kind, *paths = found.groups()
            if kind not in LOOKS:
                done += [f"{kind} {path}" for path in (paths[1:] if kind == "symlink" else paths) if path]
    out.unlink()
    return answer, done


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace (apt-get install strace)")
@pytest.mark.parametrize("place", ["name", "CNI_CONTAINERID", "CNI_IFNAME", "ipam/type", "ipam/dataDir", "dataDir"])
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_no_file_beside_those_that_are_named(
    host: str, container: str, networks: Path, trap: Path, tmp_path: Path, place: str, verb: str
) -> None:
    assert host
    tried = 0
    for name in NAMES.values():
        if not _storable(place, name):
            continue
        config, variables = _placed(place, name, networks)
        for plugin in ("bridge", "tuning"):
            answer, done = _traced(tmp_path, plugin, config, verb, **{"CNI_NETNS": container, **variables})
            assert answer.code != 101
            named = (str(tmp_path), container, *([name or DEFAULT[place]] if place in DEFAULT else []))
            assert [what for what in done if not _is_named(what, named)] == [], name[:50]
            # prlimit is looked for in PATH, and executes the plugin; nothing else is executed.
            assert {what.partition(" ")[2] for what in done if what.startswith("exec")} - set(_prlimits()) == {
                str(BUILT / plugin)
            }
            tried += 1
    assert tried >= 30
    if "dataDir" not in place:
        assert not trap.exists()


def _prlimits() -> list[str]:
    return [f"{folder}/prlimit" for folder in os.environ["PATH"].split(":")]


def _is_named(what: str, named: tuple[str, ...]) -> bool:
    kind, _, path = what.partition(" ")
    above = any(f"{one}/".startswith(f"{path.rstrip('/')}/") for one in (*named, str(BUILT)))
    return kind == "execve" or above or path.startswith((*OWN, *(one for one in named if one)))


# Streams


@pytest.mark.parametrize("closed", ["0", "1", "2", "01", "02", "12", "012"])
@pytest.mark.parametrize("plugin", ["bridge", "host-local"])
def test_streams_that_are_closed(host: str, container: str, networks: Path, closed: str, plugin: str) -> None:
    """Files that are opened do not take their numbers, so nothing meant for a stream is written to them."""
    assert host
    config = {**common(networks), "ipam": {"type": "host-local", "dataDir": str(networks), "subnet": "10.1.0.0/24"}}
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": container, "CNI_IFNAME": "eth0"}
    redirections = " ".join(f"{number}{'<' if number == '0' else '>'}&-" for number in closed)
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" {redirections}', BUILT / plugin],
        env={**environ, "CNI_PATH": str(BUILT)},
        input=json.dumps(config).encode(),
        capture_output=True,
        check=False,
    )
    # A stdin that cannot be read is an error; a result that cannot be told is a failure.
    assert (done.returncode, done.stderr) == (1 if {"0", "1"} & {*closed} else 0, b"")
    if "0" in closed and "1" not in closed:
        assert json.loads(done.stdout)["msg"] == "error reading from stdin: Bad file descriptor"
    held = {file.name: file.read_bytes() for file in networks.glob("net1/*") if file.is_file()}
    expected = {} if "0" in closed else {"10.1.0.2": b"c1\r\neth0", "last_reserved_ip.0": b"10.1.0.2", "lock": b""}
    assert held == expected


def test_what_a_delegate_says_on_a_closed_stderr_goes_nowhere(
    host: str, container: str, networks: Path, tmp_path: Path
) -> None:
    """The plugin's netlink socket had taken the number: it would have been taken for a message to the kernel."""
    assert host
    subprocess.run(["ip", "link", "add", "victim", "type", "bridge"], check=True)
    index = next(link["ifindex"] for link in ip("link") if link["ifname"] == "victim")
    (tmp_path / "said").write_bytes(codec.frame(rtnetlink.del_link(index), 1))
    (tmp_path / "other").write_text(
        f'#!/bin/sh\ncat {tmp_path}/said >&2\necho \'{{"ips": [{{"address": "10.1.0.2/24"}}]}}\'\n'
    )
    (tmp_path / "other").chmod(0o755)
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": container, "CNI_IFNAME": "eth0"}
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" 2>&-', BUILT / "bridge"],
        env={**environ, "CNI_PATH": str(tmp_path), "PATH": os.environ["PATH"]},
        input=json.dumps({**common(networks), "ipam": {"type": "other"}}).encode(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "victim" in [link["ifname"] for link in ip("link")]


@pytest.mark.parametrize("verb", ["VERSION", "ADD"])
def test_an_answer_nobody_takes_is_a_failure(verb: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with Path("/dev/full").open("wb") as full, os.fdopen(writing, "wb") as broken:
        for stdout in (full, broken):
            done = subprocess.run(
                [BUILT / "bridge"], env={"CNI_COMMAND": verb}, stdin=subprocess.DEVNULL, stdout=stdout, check=False
            )
            assert done.returncode == 1
