"""The tree keeps its shape: imports point one way, and every plugin comes with all that belongs to it."""

from __future__ import annotations

import ast
import graphlib
import importlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cnikit.plugin import Plugin

PROJECT = Path(__file__).parent.parent

# Each imports only what stands before it.
FOUNDATION = ("value", "spec", "errors", "jsontext", "fields", "address", "result", "request")

# What changes the world, or stands on what does. Whatever else there is in cnikit is pure.
EFFECTFUL = (
    "cnikit.effects",
    "cnikit.main",
    "cnikit.flow",
    "cnikit.chained",
    "cnikit.leftovers",
    "cnikit.exclusion",
    "cnikit.execution",
    "cnikit.networks",
    "cnikit.attachments",
    "cnikit.liveness",
    "cnikit.runtime",
    "cnikit.cli",
)

# Modules through which the world is reached, and what in them does not reach it.
DOORS = (
    *("os", "posix", "fcntl", "socket", "_socket", "select", "ctypes", "_ctypes", "pyroute2", "subprocess", "signal"),
    *("_posixsubprocess", "shutil", "tempfile", "pathlib", "io", "time"),
)
HARMLESS = ("_socket.inet_", "_socket.AF_", "_socket.IPPROTO_", "posix.strerror")


def _modules() -> dict[str, Path]:
    """Return the library's modules by name; plugins/ and ipam/ are links in it and looked at on their own."""
    paths = [path for path in (PROJECT / "cnikit").rglob("*.py") if not {"plugins", "ipam"} & set(path.parts[:-1])]
    return {".".join(path.relative_to(PROJECT).with_suffix("").parts): path for path in paths}


MODULES = _modules()
EXECUTABLES = {path.stem: path for folder in ("plugins", "ipam") for path in sorted((PROJECT / folder).glob("*.py"))}


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """Walk the syntax tree, leaving out what is for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from _running(ast.Module(child.orelse, []))
        else:
            yield child
            yield from _running(child)


def _imports(path: Path) -> set[tuple[str, str]]:
    """Return module and name of everything imported when the code runs, the name "" where a whole module is."""
    found = set()
    for node in _running(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {(node.module or "", alias.name) for alias in node.names}
    return found


def _own_imports(path: Path) -> set[str]:
    """Return the modules of cnikit that are imported; "from cnikit.effects import netns" imports the inner one."""
    found = set()
    for module, name in _imports(path):
        inner = f"{module}.{name}"
        if module.split(".")[0] == "cnikit" and module != "cnikit":
            found.add(inner if inner in MODULES else module)
        elif inner in MODULES:
            found.add(inner)
    return found


def _is_effectful(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in EFFECTFUL)


PURE = sorted(name for name in MODULES if not _is_effectful(name))


def test_there_is_something_to_look_at() -> None:
    assert {f"cnikit.{name}" for name in FOUNDATION} <= set(PURE)
    assert {"cnikit.netlink.codec", "cnikit.netlink.rtnetlink"} <= set(PURE)
    assert {"cnikit.effects.netlink", "cnikit.main"} <= set(MODULES)
    assert {"bridge", "host_local"} <= set(EXECUTABLES)
    assert ("cnikit.effects", "delegate") in _imports(MODULES["cnikit.flow"])
    assert ("traceback", "") in _imports(MODULES["cnikit.main"]), "imports inside functions are seen"
    assert ("typing", "Any") not in _imports(MODULES["cnikit.fields"]), "imports for type checkers are not"


@pytest.mark.parametrize("name", FOUNDATION)
def test_the_foundation_imports_only_what_stands_before(name: str) -> None:
    before = {f"cnikit.{earlier}" for earlier in FOUNDATION[: FOUNDATION.index(name)]}
    assert _own_imports(MODULES[f"cnikit.{name}"]) <= before


def test_no_imports_go_round_in_a_circle() -> None:
    """Inside functions they would work, and hide that two modules are one."""
    graphlib.TopologicalSorter({name: _own_imports(path) for name, path in MODULES.items()}).prepare()


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_import_no_effects(name: str) -> None:
    assert {module for module in _own_imports(MODULES[name]) if _is_effectful(module)} == set()


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_do_not_reach_the_world(name: str) -> None:
    through_doors = {f"{door}.{part}" for door, part in _imports(MODULES[name]) if door.split(".")[0] in DOORS}
    assert {whole for whole in through_doors if not whole.startswith(HARMLESS)} == set()


FOR_PEOPLE = (
    *("cnikit.cli", "cnikit.runtime", "cnikit.liveness", "cnikit.networks", "cnikit.attachments", "cnikit.execution"),
)
HOT = {**EXECUTABLES, **{name: path for name, path in MODULES.items() if not name.startswith(FOR_PEOPLE)}}


@pytest.mark.parametrize("name", HOT)
def test_what_a_plugin_runs_calls_no_builtin_its_interpreter_lacks(name: str) -> None:
    """See boot.py: open() and the streams come with the half of a start that plugins do without."""
    calls = (node.func for node in ast.walk(ast.parse(HOT[name].read_text())) if isinstance(node, ast.Call))
    assert {called.id for called in calls if isinstance(called, ast.Name)} & {"open", "print", "input"} == set()


@pytest.mark.parametrize("name", EXECUTABLES)
def test_an_executable_imports_no_other_executable(name: str) -> None:
    imported = {f"{module}.{part}." for module, part in _imports(EXECUTABLES[name])}
    others = ("cnikit.plugins.", "cnikit.ipam.", "plugins.", "ipam.", *(f"{other}." for other in EXECUTABLES))
    assert {whole for whole in imported if whole.startswith(others)} == set()


# What belongs to an executable


def _executable(name: str) -> str:
    return name.replace("_", "-")


def _plugin(name: str) -> tuple[str, object]:
    """Import an executable's module; return its docstring and its PLUGIN."""
    module = importlib.import_module(f"cnikit.{EXECUTABLES[name].parent.name}.{name}")
    return module.__doc__ or "", getattr(module, "PLUGIN", None)


def _first_json(text: str) -> Any:
    return json.JSONDecoder().raw_decode(text, text.index("{"))[0]


def _types(plugins: list[dict[str, Any]]) -> set[str]:
    return {plugin["type"] for plugin in plugins} | {plugin["ipam"]["type"] for plugin in plugins if plugin.get("ipam")}


@pytest.mark.parametrize("name", EXECUTABLES)
def test_an_executable_has_an_example(name: str) -> None:
    path = PROJECT / "conf-examples" / f"{_executable(name)}.conflist"
    assert path.exists(), f"{path.relative_to(PROJECT)} is missing"
    assert _executable(name) in _types(json.loads(path.read_text())["plugins"])


@pytest.mark.parametrize("name", EXECUTABLES)
def test_an_executable_has_a_test_file(name: str) -> None:
    assert (PROJECT / "tests" / f"test_{name}.py").exists(), f"tests/test_{name}.py is missing"


@pytest.mark.parametrize("name", EXECUTABLES)
def test_an_executable_is_a_plugin_of_its_name(name: str) -> None:
    _, plugin = _plugin(name)
    assert isinstance(plugin, Plugin), f"{name}.PLUGIN is missing"
    assert plugin.name == _executable(name)


@pytest.mark.parametrize("name", EXECUTABLES)
def test_an_executables_docstring_holds_a_configuration(name: str) -> None:
    docstring, _ = _plugin(name)
    assert docstring.startswith(f"{_executable(name)}: ")
    config = _first_json(docstring)
    assert {"cniVersion", "name"} <= config.keys()
    assert _executable(name) in _types(config.get("plugins", [config]))


EXAMPLES = sorted(path for path in (PROJECT / "conf-examples").glob("*") if path.suffix not in (".md", ".template"))
TEMPLATES = sorted((PROJECT / "conf-examples").glob("*.template"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_a_network_list(path: Path) -> None:
    assert path.suffix == ".conflist"
    network = json.loads(path.read_text())
    assert isinstance(network["cniVersion"], str)
    assert network["name"]
    assert network["plugins"]
    assert all(plugin["type"] for plugin in network["plugins"])


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_is_an_example_but_for_what_is_filled_in(path: Path) -> None:
    """tests/test_containerd.py has containerd fill it in."""
    filled_in = r"\{\{.*\}\}"
    start, end = re.split(filled_in, path.read_text(), maxsplit=1, flags=re.DOTALL)
    example = path.with_suffix("").read_text()
    assert (example.startswith(start), example.endswith(end)) == (True, True)


# Text

SUFFIXES = (".py", ".md", ".sh", ".toml", ".spec", ".conflist", ".template")
# Put together here, so that this file does not hold them.
UNWANTED = ("TO" + "DO", "FIX" + "ME", "/wo" + "rk/")


def _texts() -> list[Path]:
    """Return the files of the tree that are ours: those git knows or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout.split("\0")
    paths = (PROJECT / name for name in listed if name.endswith(SUFFIXES))
    return [path for path in paths if path.exists()]


def test_nothing_is_left_to_do_and_no_path_of_one_machine_is_in_the_tree() -> None:
    texts = _texts()
    assert Path(__file__) in texts
    found = [
        f"{path.relative_to(PROJECT)}:{number}: {word}"
        for path in texts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for word in UNWANTED
        if word in line
    ]
    assert found == []
