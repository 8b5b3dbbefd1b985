"""Hostile input, by hypothesis and by atheris. tests/fuzz.py says what is given, and what is promised."""

from __future__ import annotations

import importlib.util
import json
import os
import posix
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnikit.plugin import Plugin
from cnikit.request import Request
from cnikit.result import Result
from tests import fuzz
from tests.fuzz import TARGETS, Broken, Sandbox

# How many inputs a target is given: by hypothesis, and by atheris. The slow ones make files.
INPUTS = {
    "stdin": (400, 20_000),
    "call": (1000, 2000),
    "lease_folder": (400, 500),
    "backups": (100, 500),
    "configuration_files": (300, 1000),
    "delegates": (200, 1000),
    "netlink": (1000, 8000),
    "answers": (1000, 40_000),
    "listings": (400, 10_000),
    "bus": (400, 2000),
}


@pytest.fixture(autouse=True)
def sandbox() -> Iterator[None]:
    """Remove the folder of the targets when a test has ended."""
    yield
    fuzz.leave()


@pytest.mark.parametrize("name", TARGETS)
def test_bytes_made_by_hypothesis(name: str) -> None:
    tried = 0

    @settings(max_examples=INPUTS[name][0], suppress_health_check=list(HealthCheck))
    @given(st.binary(min_size=48, max_size=120))
    def give(data: bytes) -> None:
        nonlocal tried
        tried += 1
        TARGETS[name](data)

    give()
    # Hypothesis ends early where it has tried all there is.
    assert tried >= INPUTS[name][0] / 2


@pytest.mark.parametrize("name", TARGETS)
def test_what_atheris_begins_with(name: str) -> None:
    inputs = fuzz.first_inputs(name)
    for data in inputs:
        TARGETS[name](data)
    assert inputs


SEEDS = len(fuzz.seeds("/"))


@pytest.mark.parametrize("values", [fuzz.WORST, pytest.param(fuzz.VALUES, marks=pytest.mark.all)], ids=["worst", "all"])
@pytest.mark.parametrize("number", range(SEEDS))
def test_every_place_of_a_configuration_gets_every_value(number: int, values: tuple[Any, ...]) -> None:
    assert fuzz.everywhere(number, values) >= 10 * len(values)


@pytest.mark.parametrize("name", ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH", "CNI_ARGS", "CNI_COMMAND"])
@pytest.mark.parametrize("verb", fuzz.VERBS)
def test_every_variable_gets_every_value(name: str, verb: str) -> None:
    place, tried = fuzz.sandbox(), 0
    for value in (
        *fuzz.NAMES,
        "\udcff",
        "IP=\udcff",
        "MAC=\udcff",
        "IP=" + "1" * 99_999,
        "K=V;" * 30_000,
        "a:" * 60_000,
    ):
        for kind, config in fuzz.seeds(place.data)[:: SEEDS // 9]:
            place.clear()
            plugin = next(plugin for plugin in fuzz.PLUGINS if plugin.name == kind)
            environ = fuzz.environment(fuzz.Choices(b"\1"), verb, place.bin) | {name: value.replace("\0", "")}
            place.serve(plugin, environ, json.dumps(config).encode())
            tried += 1
    assert tried >= 9 * len(fuzz.NAMES)


def test_calls_get_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """If all were refused at the door, nothing behind it would have been tried."""
    statuses: dict[str, Counter[int]] = {}
    serve = Sandbox.serve

    def counted(self: Sandbox, plugin: Plugin, environ: dict[str, str], stdin: bytes) -> Any:
        response = serve(self, plugin, environ, stdin)
        statuses.setdefault(f"{plugin.name} {environ['CNI_COMMAND']}", Counter())[response.status] += 1
        return response

    monkeypatch.setattr(Sandbox, "serve", counted)
    for seed in range(SEEDS):
        for verb in range(len(fuzz.VERBS)):
            for rest in (b"\1\0", b"\1\1\1\2\1\5\7", b"\1\2\3\1\4\1\5\2\6\3"):
                # Seed, no hostile variable, verb, and what is to be changed.
                TARGETS["call"](bytes((seed, verb)) + rest)
    for plugin in fuzz.PLUGINS:
        for name in ("ADD", "DEL", "STATUS"):
            assert statuses[f"{plugin.name} {name}"][0], f"no {name} of {plugin.name} succeeded"
        assert statuses[f"{plugin.name} ADD"][1] + statuses[f"{plugin.name} GC"][1], f"{plugin.name} refused nothing"


def _opens(path: str) -> Callable[[Request], None]:
    return lambda _: posix.close(posix.open(path, posix.O_RDONLY))


def _spins(_: Request) -> None:
    while True:
        pass


def _raises(_: Request) -> None:
    raise ValueError("a bug")


@pytest.mark.parametrize(
    ("status", "says"),
    [
        pytest.param(_raises, "it said Traceback", id="an internal error"),
        pytest.param(_opens("/etc/hostname"), """it touched ["open '/etc/hostname'"]""", id="another's file"),
        pytest.param(lambda _: posix.mkdir("/data/n2"), """it touched ["os.mkdir '/data/n2'"]""", id="another folder"),
        pytest.param(
            lambda _: posix.unlink("/data/n/../x"), """it touched ["os.remove '/data/n/../x'"]""", id="beside"
        ),
        pytest.param(lambda _: posix.rename("/data/n/a", "/b"), """it touched ["os.rename '/b'"]""", id="moved out"),
        pytest.param(lambda _: posix.system("true"), """it touched ["os.system b'true'"]""", id="a shell"),
        pytest.param(
            lambda _: posix.posix_spawn("/bin/true", ["true"], {}),
            """it touched ["os.posix_spawn '/bin/true'"]""",
            id="a program",
        ),
        pytest.param(
            lambda _: subprocess.run(["true"], check=True),
            """it touched ["subprocess.Popen 'true'"]""",
            id="subprocess",
        ),
    ],
)
def test_what_breaks_a_promise_is_noticed(status: Callable[[Request], Any], says: str) -> None:
    plugin = Plugin("test", lambda _: Result(), _raises, _raises, _raises, status)
    config = b'{"cniVersion": "1.1.0", "name": "n", "ipam": {"dataDir": "/data"}}'
    place = fuzz.sandbox()
    with pytest.raises(Broken) as raised:
        place.serve(plugin, {"CNI_COMMAND": "STATUS"}, config)
    assert str(raised.value).startswith(says)


def test_a_call_without_an_end_is_noticed() -> None:
    plugin = Plugin("test", lambda _: Result(), _raises, _raises, _raises, _spins)
    place = fuzz.sandbox()
    with pytest.raises(Broken, match="it took more than"):
        place.serve(plugin, {"CNI_COMMAND": "STATUS"}, b'{"cniVersion": "1.1.0", "name": "n"}')


@pytest.mark.all
@pytest.mark.parametrize("name", TARGETS)
def test_bytes_made_by_atheris(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("there is no wheel of atheris for this Python and machine (see pyproject.toml)")
    runs = INPUTS[name][1]
    done = subprocess.run(
        [sys.executable, "-m", "tests.run_atheris", name, "1", str(runs), str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": "0", "TMPDIR": str(tmp_path)},
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout
    executed = re.search(r"stat::number_of_executed_units: (\d+)", done.stdout)
    assert executed, done.stdout
    assert int(executed[1]) >= runs
