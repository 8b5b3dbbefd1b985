"""The caller's environment: it decides nothing but what CNI says, and what we execute gets what it should."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BUILT

RUNTIME = next(BUILT.glob(".cnikit-*"), BUILT)
PLUGINS = ("bridge", "loopback", "portmap", "firewall", "tuning", "host-local", "static")


def _has_own_bootloader() -> bool:
    """Tell whether the plugins have the bootloader that build.sh makes, where it can link one."""
    return b"$ORIGIN/.cnikit-" in (BUILT / "bridge").read_bytes()


def call(plugin: str, config: dict[str, Any] | bytes, environ: dict[str, str]) -> tuple[int, bytes, bytes]:
    data = config if isinstance(config, bytes) else json.dumps(config).encode()
    done = subprocess.run([BUILT / plugin], env=environ, input=data, capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr


GIVEN = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/none", "CNI_IFNAME": "eth0", "CNI_PATH": str(BUILT)}
ADDRESSES = {"addresses": [{"address": "10.1.0.2/24"}], "subnet": "10.1.0.0/24"}
CONFIG = {"cniVersion": "1.1.0", "name": "n", "ipam": {"type": "static", **ADDRESSES}}

# One that needs next to nothing, one whose error has the interpreter completed (json is imported), one that goes far.
CALLS = (
    ({"CNI_COMMAND": "VERSION"}, b"", 0),
    ({**GIVEN, "CNI_COMMAND": "ADD"}, b'{"name": }', 1),
    ({**GIVEN, "CNI_COMMAND": "STATUS"}, json.dumps(CONFIG).encode(), 0),
)

RUBBISH = ("", "rubbish", "/nonexistent", "0", "1", "-1", "\udcff")


def _bootloaders_variables() -> list[str]:
    """Return the variables the bootloader knows by name, as its executables have them."""
    found = {
        name for file in ("bridge", "cnitool") for name in re.findall(rb"_PYI_[A-Z_]+", (BUILT / file).read_bytes())
    }
    return sorted(name.decode() for name in found)


PYTHONS = (
    *("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONDEVMODE", "PYTHONWARNINGS", "PYTHONMALLOC"),
    *("PYTHONHASHSEED", "PYTHONVERBOSE", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONTRACEMALLOC", "PYTHONFAULTHANDLER"),
    *("PYTHONINTMAXSTRDIGITS", "PYTHONPLATLIBDIR", "PYTHONPROFILEIMPORTTIME", "PYTHONDUMPREFS", "PYTHONEXECUTABLE"),
    *("PYTHONCASEOK", "PYTHONOPTIMIZE", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONCOERCECLOCALE"),
)


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a rubbish file for each library there is, and modules that say that they were imported."""
    folder = tmp_path_factory.mktemp("traps")
    # The C library's own (libc, libm) are the system's, and whoever has others for them decides over every program.
    for library in (path.name for path in RUNTIME.glob("*.so*")):
        (folder / library).write_bytes(b"rubbish")
    for module in ("json", "posix", "encodings", "codecs", "sitecustomize", "usercustomize", "traceback", "cnikit"):
        (folder / f"{module}.py").write_text("import os; os.write(2, b'trap'); os._exit(77)")
    (folder / "startup").write_text("import os; os._exit(77)")
    return folder


def _changed(names: Mapping[str, tuple[str, ...]], plugin: str) -> Iterator[str]:
    """Call a plugin with variables of the caller's, each with each value; yield what had another answer."""
    for environ, stdin, status in CALLS:
        usual = call(plugin, stdin, environ)
        assert usual[0] == status, usual
        for name, values in names.items():
            for value in values:
                given = {**environ, name: value}
                if call(plugin, stdin, given) != usual:
                    yield f"{name}={value} {environ['CNI_COMMAND']}"


@pytest.mark.parametrize("plugin", ["bridge", "host-local"])
def test_pythons_variables_change_nothing(plugin: str, traps: Path) -> None:
    values = ("1", "rubbish", str(traps), str(traps / "startup"))
    assert list(_changed(dict.fromkeys(PYTHONS, values), plugin)) == []


@pytest.mark.skipif(not _has_own_bootloader(), reason="PyInstaller's bootloader looks at them; see docs/design.md")
@pytest.mark.parametrize("plugin", ["bridge", "host-local"])
def test_the_bootloaders_variables_change_nothing(plugin: str) -> None:
    names = _bootloaders_variables()
    assert {"_PYI_ARCHIVE_FILE", "_PYI_APPLICATION_HOME_DIR", "_PYI_PARENT_PROCESS_LEVEL"} <= {*names}
    own = (str(BUILT / plugin), str(RUNTIME), str(BUILT / "bridge"))
    assert list(_changed(dict.fromkeys([*names, "PYINSTALLER_RESET_ENVIRONMENT"], (*RUBBISH, "2", *own)), plugin)) == []


@pytest.mark.skipif(not _has_own_bootloader(), reason="PyInstaller's bootloader looks at them; see docs/design.md")
@pytest.mark.parametrize("level", ["0", "1", "2", "-1", "rubbish", ""])
def test_nor_do_they_where_they_claim_to_be_this_very_executables(level: str) -> None:
    """As a plugin's own child would have them: PyInstaller's bootloader believes such."""
    own = {"_PYI_ARCHIVE_FILE": str(BUILT / "bridge"), "_PYI_APPLICATION_HOME_DIR": "/tmp", "_PYI_SPLASH_IPC": "1"}
    for environ, stdin, _ in CALLS:
        usual = call("bridge", stdin, environ)
        assert call("bridge", stdin, {**environ, **own, "_PYI_PARENT_PROCESS_LEVEL": level}) == usual


@pytest.mark.skipif(not _has_own_bootloader(), reason="PyInstaller's bootloader has the loader look there first")
@pytest.mark.parametrize("plugin", PLUGINS)
def test_libraries_are_not_looked_for_where_the_caller_says(plugin: str, traps: Path) -> None:
    values = (str(traps), f"{traps}:{RUNTIME}", f"{RUNTIME}:{traps}", "", ":", "/nonexistent")
    names = {"LD_LIBRARY_PATH": values, "LD_LIBRARY_PATH_ORIG": values}
    assert list(_changed(names, plugin)) == []


def test_one_variable_more_or_less_is_all_the_same(traps: Path) -> None:
    """HOME, LANG and the like, which the interpreter or the C library might ask for."""
    names = dict.fromkeys(("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "TERM", "COLUMNS"), (*RUBBISH, str(traps)))
    assert list(_changed(names, "bridge")) == []


SCRIPT = """#!/bin/sh
exec 3>{folder}/seen
tr '\\0' '\\n' < /proc/self/environ >&3
echo "streams $(ls /proc/self/fd | tr '\\n' ' ')" >&3
grep SigIgn /proc/self/status >&3
echo '{{"ips": [{{"address": "10.77.0.5/24"}}]}}'
"""


def test_a_delegate_gets_the_runtimes_environment_and_no_more(host: str, container: str, tmp_path: Path) -> None:
    """No variable of the bootloader's, no descriptor, and signals as they were: SIGPIPE is ignored by us alone."""
    assert host
    (tmp_path / "other").write_text(SCRIPT.format(folder=tmp_path))
    (tmp_path / "other").chmod(0o755)
    given = {
        **GIVEN,
        "CNI_COMMAND": "ADD",
        "CNI_NETNS": container,
        "CNI_PATH": str(tmp_path),
        "PATH": os.environ["PATH"],
        "LD_LIBRARY_PATH": "/nowhere",
        "PYTHONPATH": "/nowhere",
        "TRACEPARENT": "00-1",
        "MULTILINE": "a b",
        "_PYI_SPLASH_IPC": "0",
    }
    status, out, err = call("bridge", {**CONFIG, "ipam": {"type": "other"}}, given)
    assert (status, err) == (0, b""), out
    *environ, streams, ignored = (tmp_path / "seen").read_text().splitlines()
    expected = {f"{name}={value}" for name, value in given.items() if not name.startswith("_PYI_")}
    # What the shell and its own children set.
    assert {line for line in environ if line and not line.startswith(("PWD=", "_=", "SHLVL=", "OLDPWD="))} == expected
    # The script's own 3, and the folder that ls reads.
    assert streams.split()[:5] == ["streams", "0", "1", "2", "3"]
    assert len(streams.split()) == 6
    assert int(ignored.split()[1], 16) & 1 << 13 - 1 == 0


@pytest.mark.skipif(not _has_own_bootloader(), reason="PyInstaller's bootloader leaves SIGCHLD as it is")
def test_a_caller_that_ignores_its_children_does_not_keep_us_from_ours(
    host: str, container: str, tmp_path: Path
) -> None:
    assert host
    (tmp_path / "other").write_text(SCRIPT.format(folder=tmp_path))
    (tmp_path / "other").chmod(0o755)
    given = {**GIVEN, "CNI_COMMAND": "ADD", "CNI_NETNS": container, "CNI_PATH": str(tmp_path)}
    done = subprocess.run(
        ["env", "--ignore-signal=CHLD", BUILT / "bridge"],
        input=json.dumps({**CONFIG, "ipam": {"type": "other"}}).encode(),
        env={**given, "PATH": os.environ["PATH"]},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b""), done.stdout


def test_iptables_gets_a_path_and_no_more(host: str, container: str, tmp_path: Path) -> None:
    assert host
    for name in ("iptables-save", "iptables-restore"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntr '\\0' '\\n' < /proc/self/environ >> {tmp_path}/seen\nexit 3\n")
        (tmp_path / name).chmod(0o755)
    config = {
        "cniVersion": "1.1.0",
        "name": "n",
        "backend": "iptables",
        "prevResult": {"ips": [{"address": "10.1.0.2/24"}]},
    }
    given = {
        **GIVEN,
        "CNI_COMMAND": "ADD",
        "CNI_NETNS": container,
        "PATH": f"{tmp_path}:relative:/usr/bin:/bin",
        "LD_LIBRARY_PATH": "/nowhere",
        "IPTABLES_OPTION": "x",
        "BASH_ENV": "/nowhere",
        "XTABLES_LIBDIR": "/nowhere",
    }
    status, out, _ = call("firewall", config, given)
    assert (status, json.loads(out)["code"]) == (1, 100)
    seen = {line for line in (tmp_path / "seen").read_text().splitlines() if line}
    assert {line for line in seen if not line.startswith(("PWD=", "_=", "SHLVL=", "OLDPWD="))} == {
        f"PATH={tmp_path}:/usr/bin:/bin:/usr/sbin:/sbin"
    }
