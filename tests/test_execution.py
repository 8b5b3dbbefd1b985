"""Running an executable: which file, in what environment, and what is made of its failure."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cnikit import execution
from cnikit.errors import CniError
from tests.fake_plugin import FakePlugins

REFUSED = {"stdout": {"cniVersion": "1.1.0", "code": 11, "msg": "full", "details": "wait"}, "status": 1}


@pytest.fixture
def plugins(tmp_path: Path) -> FakePlugins:
    return FakePlugins(tmp_path / "bin", "alpha")


def run(plugins: FakePlugins, told: dict[str, Any] | None = None) -> bytes:
    plugins.script({"alpha STATUS": told or {}})
    return execution.run("alpha", [str(plugins.folder)], b'{"name": "net1"}', {"CNI_COMMAND": "STATUS"})


def test_a_plugin_gets_stdin_and_gives_stdout(plugins: FakePlugins) -> None:
    assert run(plugins, {"stdout": {"a": 1}}) == b'{"a": 1}'
    assert plugins.calls()[0]["stdin"] == {"name": "net1"}


def test_variables_not_given_are_empty_and_others_are_passed_on(
    monkeypatch: pytest.MonkeyPatch, plugins: FakePlugins
) -> None:
    monkeypatch.setenv("CNI_CONTAINERID", "from-outside")
    monkeypatch.setenv("TRACEPARENT", "00-1-2-01")
    run(plugins)
    expected = {
        "CNI_COMMAND": "STATUS",
        "CNI_CONTAINERID": "",
        "CNI_NETNS": "",
        "CNI_IFNAME": "",
        "CNI_ARGS": "",
        "CNI_PATH": "",
        "TRACEPARENT": "00-1-2-01",
    }
    environ = plugins.calls()[0]["env"]
    assert {name: environ.get(name) for name in expected} == expected


def test_what_the_bootloader_put_into_the_environment_is_taken_out(
    monkeypatch: pytest.MonkeyPatch, plugins: FakePlugins
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setenv("_PYI_ARCHIVE_FILE", "/opt/cni/bin/cnitool")
    monkeypatch.setenv("LD_LIBRARY_PATH", sys.prefix)
    monkeypatch.setenv("LD_LIBRARY_PATH_ORIG", "/usr/local/lib")
    run(plugins)
    environ = plugins.calls()[0]["env"]
    assert environ["LD_LIBRARY_PATH"] == "/usr/local/lib"
    assert not {"_PYI_ARCHIVE_FILE", "LD_LIBRARY_PATH_ORIG"} & set(environ)


@pytest.mark.parametrize(
    ("told", "code", "message"),
    [
        pytest.param(REFUSED, 11, "alpha: full (wait)", id="error-object"),
        pytest.param(
            {"status": 1, "stdout": {"code": 7, "msg": "m"}}, 7, "alpha: m", id="error-object-of-the-reference"
        ),
        pytest.param({"status": 3}, 102, "alpha: exit status 3, without an error object", id="nothing"),
        pytest.param(
            {"status": 3, "stderr": "no\nidea\n"},
            102,
            "alpha: exit status 3, without an error object (no\nidea)",
            id="stderr-alone",
        ),
        pytest.param(
            {"status": 2, "stderr": "a", "stdout": "b"},
            102,
            "alpha: exit status 2, without an error object (a; b)",
            id="text-on-stdout",
        ),
        pytest.param(
            {"status": 1, "stdout": {"msg": "x"}},
            102,
            'alpha: exit status 1, without an error object ({"msg": "x"})',
            id="no-code",
        ),
        pytest.param({"signal": 9}, 102, "alpha: ended by signal 9 (Killed), without an error object", id="killed"),
    ],
)
def test_a_failure_is_told_by_type(plugins: FakePlugins, told: dict[str, Any], code: int, message: str) -> None:
    with pytest.raises(CniError) as error:
        run(plugins, told)
    assert (error.value.code, str(error.value)) == (code, message)


def test_stderr_is_relayed(capsys: pytest.CaptureFixture[str], plugins: FakePlugins) -> None:
    run(plugins, {"stderr": "note\n"})
    assert capsys.readouterr() == ("", "note\n")


@pytest.mark.parametrize(
    ("told", "relayed"),
    [
        pytest.param(REFUSED, "note\n", id="beside-an-error-object"),
        pytest.param({"status": 1}, "", id="not-when-it-is-part-of-the-error"),
    ],
)
def test_stderr_of_a_failure(
    capsys: pytest.CaptureFixture[str], plugins: FakePlugins, told: dict[str, Any], relayed: str
) -> None:
    with pytest.raises(CniError):
        run(plugins, {**told, "stderr": "note\n"})
    assert capsys.readouterr() == ("", relayed)


def test_a_plugin_that_reads_no_stdin_can_succeed(tmp_path: Path) -> None:
    (tmp_path / "deaf").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "deaf").chmod(0o755)
    assert execution.run("deaf", [str(tmp_path)], json.dumps("x" * 1_000_000).encode(), {}) == b""


def test_a_file_that_cannot_be_executed_is_named(plugins: FakePlugins) -> None:
    file = plugins.folder / "alpha"
    file.chmod(0o644)
    with pytest.raises(CniError) as error:
        run(plugins)
    assert (error.value.code, error.value.msg) == (5, f"alpha: {file} cannot be executed: Permission denied")


def test_the_first_regular_file_in_the_path_is_taken(tmp_path: Path, plugins: FakePlugins) -> None:
    (tmp_path / "folders" / "alpha").mkdir(parents=True)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "alpha").symlink_to(plugins.folder / "alpha")
    path = [str(tmp_path / "none"), str(tmp_path / "folders"), str(tmp_path / "links"), str(plugins.folder)]
    assert execution.find("alpha", path) == f"{tmp_path}/links/alpha"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (["/none", "/nowhere"], "alpha: no such plugin (looked in /none, /nowhere)"),
        ([], "alpha: no such plugin (looked in no folder: CNI_PATH is empty)"),
    ],
)
def test_a_missing_plugin_is_told_with_where_it_was_looked_for(path: list[str], message: str) -> None:
    with pytest.raises(CniError) as error:
        execution.find("alpha", path)
    assert (error.value.code, str(error.value)) == (7, message)
