"""The executables in dist/cni, and how build.sh installs them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from PyInstaller.archive.readers import CArchiveReader

from cnikit import __version__
from tests.conftest import BUILT, PROJECT, private, sh

PLUGINS = {
    path.stem.replace("_", "-"): f"cnikit.{folder}.{path.stem}"
    for folder in ("plugins", "ipam")
    for path in sorted((PROJECT / folder).glob("*.py"))
}
each_plugin = pytest.mark.parametrize("name", PLUGINS)

ADD = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/nonexistent/netns",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/nonexistent/plugins",
}
BROKEN = '{"cniVersion": '

# What a plugin may import besides cnikit. All of it is C; `__future__` is the one exception, and 3 KiB.
ALLOWED = {"__future__", "_blake2", "_ctypes", "_json", "_socket", "_struct", "fcntl", "itertools"}
IMPORTED = """
import sys
before = set(sys.modules)
sys.path.insert(0, {root!r})
__import__({module!r})
from cnikit.main import respond
plugin = sys.modules[{module!r}].PLUGIN
calls = {{"CNI_COMMAND": "VERSION"}}, {environ!r}
print(*[respond(plugin, environ, lambda: {stdin!r}).status for environ in calls], *sorted(set(sys.modules) - before))
"""


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Path:
    """Return the runtime folder; without one every test here fails."""
    found = list(BUILT.glob(".cnikit-*/executables"))
    if len(found) != 1:
        pytest.fail(f"{BUILT} holds no build, run ./build.sh")
    return found[0].parent


@pytest.fixture
def own_bootloader(lean: Path) -> None:
    if build_sh("can_link", cwd=PROJECT).returncode != 0:
        pytest.skip("plugins have PyInstaller's own bootloader: no compiler, or no archive of the interpreter")


@pytest.fixture
def lean(runtime: Path) -> Path:
    if runtime.name.endswith(".plain"):
        pytest.skip("dist/cni holds a plain build")
    return runtime


def call(path: Path, environ: dict[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([path], env=environ, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def supported(path: Path) -> list[str]:
    done = call(path, {"CNI_COMMAND": "VERSION"})
    assert (done.returncode, done.stderr) == (0, "")
    versions: list[str] = json.loads(done.stdout)["supportedVersions"]
    return versions


# --- what is in dist/cni ---


def test_there_is_one_executable_per_plugin_and_cnitool() -> None:
    visible = {path.name for path in BUILT.iterdir() if not path.name.startswith(".")}
    assert visible == {*PLUGINS, "cnitool"}


@each_plugin
def test_version(name: str) -> None:
    assert {"0.4.0", "1.0.0", "1.1.0"} <= set(supported(BUILT / name))


def test_cnitool_has_its_part_of_the_standard_library() -> None:
    done = subprocess.run([BUILT / "cnitool", "--help"], env={}, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: cnitool")
    assert done.stderr == ""


def test_the_manifest_lists_name_and_size_of_each(runtime: Path) -> None:
    listed = dict(line.split(" ") for line in (runtime / "executables").read_text().splitlines())
    assert listed == {path.name: str(path.stat().st_size) for path in BUILT.iterdir() if path.is_file()}


@each_plugin
def test_a_plugin_can_be_imported_by_another(lean: Path, name: str) -> None:
    assert (lean / PLUGINS[name].replace(".", "/")).with_suffix(".pyc").is_file()


@each_plugin
def test_a_plugin_has_the_interpreter_in_itself(own_bootloader: None, name: str) -> None:
    """To map and relocate a shared one takes a tenth of a start."""
    listed = subprocess.run(["readelf", "-dW", BUILT / name], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(lib.*)\.so", listed))
    assert needed == {"libc", "libm"}


@pytest.mark.parametrize("name", [*PLUGINS, "cnitool"])
def test_a_lean_executable_holds_two_scripts_and_no_module(lean: Path, name: str) -> None:
    archive = CArchiveReader(str(BUILT / name))
    scripts = [entry for entry, facts in archive.toc.items() if facts[-1] == "s"]
    modules = [entry for entry, facts in archive.toc.items() if facts[-1] in "mM"]
    assert (scripts, modules) == (["boot", name.replace("-", "_")], [])
    assert archive.open_embedded_archive("PYZ.pyz").toc == {}
    assert not (lean / "base_library.zip").exists()


@each_plugin
def test_a_plugin_imports_no_more_than_allowed(name: str) -> None:
    ipam = {"type": name, "addresses": [{"address": "nonsense"}]}
    config = json.dumps({"cniVersion": "1.1.0", "name": "n", "type": name, "ipam": ipam}).encode()
    code = IMPORTED.format(root=str(PROJECT), module=PLUGINS[name], stdin=config, environ=ADD)
    python = [sys.executable, "-I", "-S", "-B", "-c", code]
    done = subprocess.run(python, capture_output=True, text=True, check=True)
    version, add, *imported = done.stdout.split()
    assert (version, add, done.stderr) == ("0", "1", "")
    assert {module for module in imported if module.partition(".")[0] != "cnikit"} <= ALLOWED


@each_plugin
def test_a_call_looks_for_no_file_of_the_interpreters(
    own_bootloader: None, lean: Path, tmp_path: Path, name: str
) -> None:
    """Its core will do for VERSION and an ADD; with the other half each takes 2 ms longer."""
    shutil.copytree(lean, tmp_path / lean.name, ignore=shutil.ignore_patterns("*.pyc"))
    copied = Path(shutil.copy2(BUILT / name, tmp_path))
    assert supported(copied) == supported(BUILT / name)
    config = {"cniVersion": "1.1.0", "name": "n", "type": name, "ipam": {"type": "host-local"}}
    done, as_built = (call(path, ADD, json.dumps(config)) for path in (copied, BUILT / name))
    assert (done.returncode, done.stdout, done.stderr) == (as_built.returncode, as_built.stdout, "")
    assert '"code": 999' not in done.stdout


# --- faults, which import what a plugin otherwise does without ---


@each_plugin
def test_broken_json_is_explained_by_the_json_module(name: str) -> None:
    with pytest.raises(json.JSONDecodeError) as explained:
        json.loads(BROKEN)
    done = call(BUILT / name, ADD, BROKEN)
    assert (done.returncode, done.stderr) == (1, "")
    error = json.loads(done.stdout)
    assert error["code"] == 6
    assert str(explained.value) in error["msg"]


@each_plugin
def test_a_traceback_goes_to_stderr_alone(lean: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(lean, tmp_path / lean.name, ignore=shutil.ignore_patterns("json"))
    done = call(Path(shutil.copy2(BUILT / name, tmp_path)), ADD, BROKEN)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    error = json.loads(done.stdout)
    assert (error["code"], error["details"]) == (999, "the traceback is on stderr")
    assert "ModuleNotFoundError" in error["msg"]
    assert "Traceback" not in done.stdout


@each_plugin
@pytest.mark.parametrize(("stream", "status"), [("stdout", 1), ("stderr", 0)])
def test_nobody_listens(name: str, stream: str, status: int) -> None:
    listener, end = os.pipe()
    os.close(listener)
    # VERSION answers on stdout, and without a verb a plugin says on stderr what it is.
    environ = {"CNI_COMMAND": "VERSION"} if stream == "stdout" else {}
    done = subprocess.run([BUILT / name], env=environ, check=False, **{stream: end})  # type: ignore[call-overload]
    os.close(end)
    assert done.returncode == status


def test_bridge_runs_host_local_in_its_own_process(tmp_path: Path) -> None:
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "networks"), "subnet": "10.1.0.0/24"}
    config = json.dumps({"cniVersion": "1.1.0", "name": "n", "type": "bridge", "ipam": ipam})
    copied = shutil.copytree(BUILT, tmp_path / "bin")
    (copied / "host-local").chmod(0o644)  # so it cannot be executed
    done = call(copied / "bridge", {"CNI_COMMAND": "STATUS", "CNI_PATH": str(copied)}, config)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- where and how they are called ---


@pytest.fixture
def evil(tmp_path: Path, runtime: Path) -> Path:
    """Return a folder with modules and libraries that end whoever loads them."""
    for module in ("encodings/__init__", "cnikit/__init__", "sitecustomize", "usercustomize", "posix", "_json"):
        path = tmp_path / f"{module}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit(66)\n")
    for library in runtime.glob("lib*.so*"):
        # PyInstaller's own bootloader is linked to libz, and like any program finds it by LD_LIBRARY_PATH.
        if not library.name.startswith("libz."):
            (tmp_path / library.name).write_text("no library\n")
    return tmp_path


@pytest.mark.parametrize(
    "variables",
    [
        "PYTHONPATH={evil}",
        "PYTHONHOME={evil}",
        "PYTHONSTARTUP={evil}/posix.py PYTHONINSPECT=1",
        "PYTHONUSERBASE={evil} PYTHONPLATLIBDIR=x PYTHONCASEOK=1",
        "PYTHONVERBOSE=1 PYTHONPROFILEIMPORTTIME=1 PYTHONWARNINGS=error PYTHONDEVMODE=1 PYTHONMALLOC=debug",
        "PYTHONUTF8=0 PYTHONIOENCODING=ascii LC_ALL=nonsense LANG=zz_ZZ.ISO-8859-1",
        "LD_LIBRARY_PATH={evil}",
        "LD_LIBRARY_PATH_ORIG={evil}",
        "_MEIPASS2={evil}",
        "_PYI_APPLICATION_HOME_DIR={evil}",
        "_PYI_PARENT_PROCESS_LEVEL=rubbish",
        "_PYI_ARCHIVE_FILE={evil}/bridge _PYI_PARENT_PROCESS_LEVEL=1 _PYI_APPLICATION_HOME_DIR={evil}",
        "_PYI_ARCHIVE_FILE={own} _PYI_PARENT_PROCESS_LEVEL=-1 _PYI_APPLICATION_HOME_DIR={evil}",
        "_PYI_ARCHIVE_FILE={own} _PYI_PARENT_PROCESS_LEVEL=0 _PYI_APPLICATION_HOME_DIR={evil}",
        "_PYI_ARCHIVE_FILE={own} _PYI_PARENT_PROCESS_LEVEL=1 _PYI_APPLICATION_HOME_DIR={evil}",
        "_PYI_SPLASH_IPC=1 _PYI_LINUX_PROCESS_NAME=x PYINSTALLER_RESET_ENVIRONMENT=1",
    ],
)
def test_the_environment_changes_nothing(evil: Path, variables: str) -> None:
    own = BUILT / next(iter(PLUGINS))
    calm = call(own, {"CNI_COMMAND": "VERSION"})
    hostile = dict(pair.split("=", 1) for pair in variables.format(evil=evil, own=own).split())
    done = call(own, {**hostile, "CNI_COMMAND": "VERSION"})
    assert (done.returncode, done.stdout, done.stderr) == (0, calm.stdout, "")


@each_plugin
def test_the_working_folder_changes_nothing(evil: Path, name: str) -> None:
    done = subprocess.run([BUILT / name], cwd=evil, env={"CNI_COMMAND": "VERSION"}, check=True, capture_output=True)
    assert done.stderr == b""


@each_plugin
def test_a_link_to_an_executable_works(tmp_path: Path, name: str) -> None:
    link = tmp_path / "another-name"
    link.symlink_to(BUILT / name)
    assert supported(link) == supported(BUILT / name)


@each_plugin
def test_an_executable_copied_without_the_runtime_folder_says_so(
    own_bootloader: None, runtime: Path, tmp_path: Path, name: str
) -> None:
    shutil.copy(BUILT / name, tmp_path)
    done = call(tmp_path / name, {"CNI_COMMAND": "VERSION"})
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout) == {
        "cniVersion": "1.1.0",
        "code": 5,
        "msg": f"cannot read {runtime.name}/{name}.modules in the folder of the executable",
        "details": "copy the folder too, or use ./build.sh install",
    }


# --- build.sh ---


class Project:
    """A folder with a build in dist/cni, for build.sh's functions to work on."""

    def __init__(self, folder: Path, built: Path) -> None:
        self.folder = folder
        self.dist = folder / "dist" / "cni"
        shutil.copytree(BUILT, self.dist)
        self.runtime = built.name

    def rebuild(self, digest: str) -> None:
        """Make it another build: the name of the runtime folder is in the executables as it is."""
        version, _, old = self.runtime.partition("+")
        new = f"{version}+{digest}{old[8:]}"
        for path in self.dist.iterdir():
            if path.is_file():
                path.write_bytes(path.read_bytes().replace(self.runtime.encode(), new.encode()))
        (self.dist / self.runtime).rename(self.dist / new)
        self.runtime = new

    def install(self, to: Path) -> str:
        """Install it; return what is said."""
        done = build_sh('build() { :; }; install_to "$1"', str(to), cwd=self.folder)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def is_installed(self, to: Path) -> bool:
        """Tell whether a folder holds all of it, byte for byte."""
        files = [path.relative_to(self.dist) for path in self.dist.rglob("*") if path.is_file()]
        return all((to / file).read_bytes() == (self.dist / file).read_bytes() for file in files)


def build_sh(commands: str, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    bash = ["bash", "-c", f'source "$1"; shift; {commands}', "bash", str(PROJECT / "build.sh"), *args]
    return subprocess.run(bash, cwd=cwd, capture_output=True, text=True, check=False, umask=0o077)


@pytest.fixture
def project(tmp_path: Path, runtime: Path) -> Project:
    return Project(tmp_path / "project", runtime)


def runtimes(folder: Path) -> set[str]:
    return {path.name for path in folder.glob(".*")}


def test_install_puts_regular_files_into_a_new_folder(project: Project, tmp_path: Path) -> None:
    to = tmp_path / "opt" / "bin"
    said = project.install(to)
    assert said == f"installed {len(PLUGINS) + 1} executables and {project.runtime} in {to}\n"
    assert project.is_installed(to)
    assert runtimes(to) == {project.runtime}
    modes = {stat.filemode((to / name).lstat().st_mode) for name in (*PLUGINS, "cnitool")}
    assert modes == {"-rwxr-xr-x"}
    assert {stat.filemode(path.stat().st_mode) for path in (to, to / project.runtime)} == {"drwxr-xr-x"}
    for name in PLUGINS:
        assert supported(to / name) == supported(BUILT / name)


def test_install_takes_a_folder_relative_to_where_it_is_called(project: Project, tmp_path: Path) -> None:
    done = build_sh("build() { :; }; main install bin", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert project.is_installed(tmp_path / "bin")


def test_install_again_leaves_the_runtime_folder_alone(project: Project, tmp_path: Path) -> None:
    to = tmp_path / "bin"
    project.install(to)
    before = (to / project.runtime).stat().st_ino
    project.install(to)
    assert (to / project.runtime).stat().st_ino == before
    assert project.is_installed(to)
    assert runtimes(to) == {project.runtime}


def test_install_mends_a_damaged_runtime_folder(project: Project, tmp_path: Path) -> None:
    to = tmp_path / "bin"
    project.install(to)
    (to / project.runtime / "executables").unlink()
    project.install(to)
    assert project.is_installed(to)
    assert runtimes(to) == {project.runtime}


def test_install_beside_another_suite(project: Project, tmp_path: Path) -> None:
    to = tmp_path / "bin"
    to.mkdir()
    theirs, linked = to / "another-plugin", tmp_path / "target"
    theirs.write_text("theirs")
    linked.mkdir()
    (to / "cnitool").symlink_to(linked)
    before = theirs.stat()
    project.install(to)
    assert theirs.stat() == before
    assert list(linked.iterdir()) == []
    assert not (to / "cnitool").is_symlink()
    assert project.is_installed(to)


def test_install_removes_what_a_killed_one_left(project: Project, tmp_path: Path) -> None:
    to = tmp_path / "bin"
    (to / ".tmp-cnikit-runtime" / "cnikit").mkdir(parents=True)
    (to / ".tmp-cnikit-executable").write_text("half an exe")
    project.install(to)
    assert runtimes(to) == {project.runtime}
    assert project.is_installed(to)


def test_upgrade_under_a_running_call(project: Project, tmp_path: Path) -> None:
    to = tmp_path / "bin"
    project.install(to)
    first = project.runtime
    with subprocess.Popen(
        [to / next(iter(PLUGINS))], env=ADD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as running:
        assert running.stdin
        running.stdin.write(BROKEN.encode())
        wait_until_read(running.stdin.fileno())
        project.rebuild("00000000")
        project.install(to)
        # Now it ends the text, and the call must import json from the folder it was started with.
        said, _ = running.communicate()
    assert "line 1 column" in json.loads(said)["msg"]
    assert project.is_installed(to)
    assert runtimes(to) == {first, project.runtime}
    for name in PLUGINS:
        assert supported(to / name) == supported(BUILT / name)


def wait_until_read(pipe: int) -> None:
    deadline = time.monotonic() + 60
    while struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_install_keeps_what_was_installed_before_and_nothing_older(project: Project, tmp_path: Path) -> None:
    to = tmp_path / "bin"
    names = {}
    for digest in ("cccccccc", "aaaaaaaa", "cccccccc", "bbbbbbbb"):
        project.rebuild(digest)
        names[digest[0]] = project.runtime
        said = project.install(to)
    assert said.splitlines()[1:] == [f"removed {names['a']}"]
    assert runtimes(to) == {names["b"], names["c"]}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Return a folder with what the version is made of."""
    for folder in ("cnikit/netlink", "plugins", "ipam"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    for file in ("build.sh", "executables.spec", "boot.py", "bootloader.c", "cnikit/__init__.py"):
        shutil.copy(PROJECT / file, tmp_path / file)
    return tmp_path


def test_the_version_changes_with_any_source(sources: Path) -> None:
    versions = []
    paths = ("plugins/p.py", "cnikit/netlink/n.py", "ipam/i.py", "boot.py", "bootloader.c")
    for path, text in (("plugins/p.py", "1"), *((path, "2") for path in paths)):
        (sources / path).write_text(text)
        versions += [build_sh("version", cwd=sources).stdout for _ in range(2)]
    assert versions[::2] == versions[1::2]
    assert len(set(versions)) == 6
    assert {version.partition("+")[0] for version in versions} == {__version__}


@pytest.mark.parametrize(
    ("file", "enough_for"),
    [
        pytest.param(".cnikit-{version}/executables", "lean any", id="lean"),
        pytest.param(".cnikit-{version}.plain/executables", "plain any", id="plain"),
        pytest.param(".cnikit-{version}/cnikit", "", id="unfinished"),
        pytest.param(".cnikit-0.1.0+00000000/executables", "", id="of other sources"),
    ],
)
def test_a_build_of_these_sources_is_not_made_again(sources: Path, file: str, enough_for: str) -> None:
    version = build_sh("version", cwd=sources).stdout.strip()
    path = sources / "dist" / "cni" / file.format(version=version)
    path.parent.mkdir(parents=True)
    path.write_text("")
    ask = "venv_is_fresh() { :; }; for mode in lean plain any; do ! is_built $mode || echo $mode; done"
    assert build_sh(ask, cwd=sources).stdout.split() == enough_for.split()


def test_tests_run_where_the_machine_is_out_of_reach(tmp_path: Path) -> None:
    here = [os.path.lexists("/var/lib/cni"), os.path.lexists("/run/netns/x")]
    commands = "ip -br link && mkdir /var/lib/cni && touch /run/netns/x && ls /var/lib"
    done = build_sh(f"in_namespaces sh -c '{commands}'", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    link, *folders = done.stdout.splitlines()
    assert link.split()[:2] == ["lo", "UNKNOWN"]
    assert set(folders) == {*os.listdir("/var/lib"), "cni"}
    assert [os.path.lexists("/var/lib/cni"), os.path.lexists("/run/netns/x")] == here


MISSING = 'has() { [[ $1 != nftables ]]; }; PATH=$1; require iproute2 nftables; echo "goes on"'


def test_what_is_missing_is_named_where_it_cannot_be_installed(tmp_path: Path) -> None:
    done = build_sh(MISSING, "/nonexistent", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "missing: apt-get install --no-install-recommends nftables\n"


# A machine without anything, Python included. What a build does after the packages is shown.
BARE = (
    'has() { false; }; interpreter() { echo "none here" >&2; return 1; }; is_built() { false; }; flock() { :; }; '
    'make_venv() { echo "venv for $*"; }; compile() { echo "compile $*"; }'
)
BUILDS = "python3 python3-venv libpython3-dev binutils gcc"


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    """The packages of a library that is named after the interpreter too, when there is no interpreter."""
    done = build_sh(f"{BARE}; PATH=/nonexistent; build any iputils-ping nftables", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"missing: apt-get install --no-install-recommends iputils-ping nftables {BUILDS}\n"


@pytest.mark.parametrize("python", ["/usr/bin/python3", "/opt/python/bin/python3"])
def test_a_build_stops_only_for_what_it_needs(tmp_path: Path, python: str) -> None:
    """It can do without the packages for the quicker start, and asks for Debian's only if Python is Debian's."""
    there = f"{BARE}; interpreter() {{ echo {python}; }}; has() {{ [[ $1 != gcc && $1 != $lacking ]]; }}"
    go_on = f"{there}; PATH=/nonexistent; lacking=$1; build any"
    done = build_sh(go_on, "gcc", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "venv for build\ncompile lean\n")
    done = build_sh(go_on, "binutils", cwd=tmp_path)
    linking = " gcc" if python == "/usr/bin/python3" else ""
    assert done.stderr == f"missing: apt-get install --no-install-recommends binutils{linking}\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user installs nothing")
@pytest.mark.parametrize("available", ["all", "needed"])
def test_all_that_is_missing_is_installed_at_once(tmp_path: Path, available: str) -> None:
    fake = tmp_path / "apt-get"
    refuse = "" if available == "all" else "case $* in *libpython3-dev*gcc*) exit 100; esac"
    fake.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/log\n{refuse}\n')
    fake.chmod(0o755)
    done = build_sh(f"{BARE}; PATH=$1; build any nftables", f"{tmp_path}:/usr/bin:/bin", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"installing nftables {BUILDS}\nvenv for build\ncompile lean\n")
    install = "install -qq --no-install-recommends nftables"
    tried = [f"{install} {BUILDS}"]
    if available == "needed":
        tried += ["update -qq", f"{install} {BUILDS}", f"{install} {BUILDS.removesuffix(' gcc')}"]
    assert (tmp_path / "log").read_text().splitlines() == tried


@pytest.mark.parametrize(("word", "extras"), [("demo", "build"), ("bench", "build"), ("test", "build test")])
def test_the_test_tools_are_installed_for_tests_only(tmp_path: Path, word: str, extras: str) -> None:
    done = build_sh('build() { echo "${extras[@]}"; exit; }; main "$1"', word, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{extras}\n")


def test_a_virtual_environment_grows_when_more_is_asked_of_it(tmp_path: Path) -> None:
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\n[ "$2 $3" != "pip install" ] || echo "$7" >>{tmp_path}/log\necho Python 3.11.2\n')
    python.chmod(0o755)
    steps = ("build", "build", "build test", "build test", "build", "changed", "build", "build test", "build")
    for step in steps:
        if step == "changed":
            (tmp_path / "pyproject.toml").write_text("# another\n")
            continue
        (tmp_path / "pyproject.toml").touch()
        assert build_sh(f"make_venv {step}", cwd=tmp_path).returncode == 0
    assert (tmp_path / "log").read_text().split() == [".[build]", ".[build,test]", ".[build]", ".[build,test]"]


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user installs nothing")
def test_what_is_missing_is_installed_and_the_lists_fetched_only_if_needed(tmp_path: Path) -> None:
    fake = tmp_path / "apt-get"
    fake.write_text(
        f'#!/bin/sh\ncd {tmp_path}\necho "$DEBIAN_FRONTEND $*" >>log\n[ "$1" != update ] || >lists\n[ -e lists ]\n'
    )
    fake.chmod(0o755)
    install, update = "noninteractive install -qq --no-install-recommends nftables", "noninteractive update -qq"
    for expected in ([install, update, install], [install]):
        (tmp_path / "log").unlink(missing_ok=True)
        done = build_sh(MISSING, f"{tmp_path}:/usr/bin:/bin", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "installing nftables\ngoes on\n")
        assert (tmp_path / "log").read_text().splitlines() == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user installs nothing")
def test_services_of_what_is_installed_do_not_start(tmp_path: Path) -> None:
    assert private()
    fake = tmp_path / "apt-get"
    fake.write_text(f"#!/bin/sh\necho $1 /run/systemd/* >{tmp_path}/log\n")
    fake.chmod(0o755)
    # Packages start their services where this is.
    Path("/run/systemd/system").mkdir(parents=True)
    done = build_sh(f"{MISSING}; ls /run/systemd", f"{tmp_path}:/usr/bin:/bin", cwd=tmp_path)
    shutil.rmtree("/run/systemd")
    assert (done.returncode, done.stdout) == (0, "installing nftables\ngoes on\nsystem\n")
    assert (tmp_path / "log").read_text() == "install /run/systemd/*\n"


# --- packages of other suites ---


class Mirror:
    """A mirror with one package that holds one program, tests/packages that lists it, and a cache."""

    def __init__(self, folder: Path, architecture: str = "") -> None:
        if not Path("/usr/lib/apt/apt-helper").exists():
            pytest.skip("apt fetches packages, and there is none")
        architecture = architecture or sh("dpkg --print-architecture").strip()
        self.folder = folder
        self.unpacked = folder / "cache" / "cnikit" / f"tool_1_{architecture}"
        tree = folder / "tree"
        for name, text in (("DEBIAN/control", CONTROL.format(architecture)), ("usr/bin/tool", "1"), ("usr/doc", "2")):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)
        self.package = folder / "mirror" / "pool" / f"tool_1_{architecture}.deb"
        self.package.parent.mkdir(parents=True)
        sh(f"dpkg-deb --build {tree} {self.package}")
        [self.sum, _] = sh(f"sha256sum {self.package}").split()
        apt_get = folder / "bin" / "apt-get"
        apt_get.parent.mkdir()
        apt_get.write_text(f"#!/bin/sh\necho copy:{folder}/mirror/\necho copy:{folder}/absent/\n")
        apt_get.chmod(0o755)

    def fetch(self) -> tuple[str, str]:
        """Fetch what is listed; return what is said on stdout and stderr."""
        (self.folder / "tests").mkdir(exist_ok=True)
        (self.folder / "tests" / "packages").write_text(f"# a comment\npool/{self.package.name} {self.sum}\n")
        done = build_sh(
            'PATH=$1:$PATH XDG_CACHE_HOME=$2; fetch_packages; echo "goes on"',
            f"{self.folder}/bin",
            f"{self.folder}/cache",
            cwd=self.folder,
        )
        assert done.returncode == 0
        return done.stdout.removesuffix("goes on\n"), done.stderr

    def cached(self) -> list[str]:
        """Return the files in the cache."""
        return [str(path.relative_to(self.unpacked)) for path in (self.folder / "cache").rglob("*") if path.is_file()]


CONTROL = "Package: tool\nVersion: 1\nArchitecture: {}\nMaintainer: a <a@b>\nDescription: x\n"


def test_a_package_is_fetched_once_and_its_programs_unpacked(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path)
    tried = [f"fetching copy:{tmp_path}/{folder}/pool/{mirror.package.name}\n" for folder in ("absent", "mirror")]
    assert mirror.fetch() == ("".join(tried), "")
    assert mirror.cached() == ["tool"]
    mirror.package.unlink()
    assert mirror.fetch() == ("", "")


@pytest.mark.parametrize("why", ["gone", "another", "broken", "other machines'"])
def test_a_package_that_cannot_be_had_is_named(tmp_path: Path, why: str) -> None:
    mirror = Mirror(tmp_path, "armel" if why == "other machines'" else "")
    if why == "gone":
        mirror.package.unlink()
    elif why == "another":
        mirror.sum = "0" * 64
    elif why == "broken":
        mirror.package.write_text("no archive")
        [mirror.sum, _] = sh(f"sha256sum {mirror.package}").split()
    _, errors = mirror.fetch()
    assert f"cannot fetch pool/{mirror.package.name}: tests with it are skipped\n" in errors
    assert mirror.cached() == []


def test_a_word_it_does_not_know_gets_the_usage(tmp_path: Path) -> None:
    done = subprocess.run([PROJECT / "build.sh", "nonsense"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ./build.sh")
