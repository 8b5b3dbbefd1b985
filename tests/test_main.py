"""The edge of an executable: what a runtime sees of it, as bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cnikit import __version__, spec
from cnikit.effects import limit, notes
from cnikit.errors import CniError
from cnikit.main import MOST, respond, without_bootloader
from cnikit.plugin import Plugin
from cnikit.request import Request
from cnikit.result import IP, Result

ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/c1",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}
VERSION_LINE = '{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}\n'
ABOUT = (
    f"CNI test plugin cnikit {__version__}\n"
    "CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n"
)


def _never(asked: Request) -> None:
    raise AssertionError(f"{asked.verb} was served")


def _plugin(add: Callable[[Request], Result]) -> Plugin:
    return Plugin("test", add=add, delete=_never, check=_never, gc=_never, status=_never)


def _raising(error: BaseException) -> Plugin:
    def add(_: Request) -> Result:
        raise error

    return _plugin(add)


def _config(version: str = "1.1.0") -> bytes:
    return json.dumps({"cniVersion": version, "name": "mynet"}).encode()


def _no_stdin() -> bytes:
    raise AssertionError("stdin was read")


IDLE = _raising(AssertionError("add was served"))


@pytest.mark.parametrize("environ", [{}, {"CNI_COMMAND": ""}, {"CNI_NETNS": "x"}], ids=["unset", "empty", "others set"])
def test_without_a_verb_it_says_what_it_is_and_succeeds(environ: dict[str, str]) -> None:
    response = respond(IDLE, environ, _no_stdin)
    assert (response.status, response.stdout, response.stderr) == (0, "", ABOUT)


@pytest.mark.parametrize("environ", [{}, dict.fromkeys(("CNI_NETNS", "CNI_IFNAME", "CNI_PATH"), "dummy")])
def test_version_is_one_line_and_reads_no_stdin(environ: dict[str, str]) -> None:
    response = respond(IDLE, {**environ, "CNI_COMMAND": "VERSION"}, _no_stdin)
    assert (response.status, response.stdout, response.stderr) == (0, VERSION_LINE, "")


def test_an_unknown_verb_is_named() -> None:
    response = respond(IDLE, {**ENVIRON, "CNI_COMMAND": "FOO"}, _config)
    assert response.status == 1
    assert json.loads(response.stdout) == {
        "cniVersion": "1.1.0",
        "code": 4,
        "msg": "CNI_COMMAND: unknown CNI_COMMAND: FOO",
    }


def test_each_verb_reaches_its_function() -> None:
    served: list[str] = []

    def verb(name: str) -> Callable[[Request], None]:
        return lambda asked: served.append(f"{name} {asked.verb}")

    def add(asked: Request) -> Result:
        served.append(f"add {asked.verb}")
        return Result()

    plugin = Plugin("test", add=add, delete=verb("delete"), check=verb("check"), gc=verb("gc"), status=verb("status"))
    for command in ("ADD", "DEL", "CHECK", "GC", "STATUS"):
        assert respond(plugin, {**ENVIRON, "CNI_COMMAND": command}, _config).status == 0
    assert served == ["add ADD", "delete DEL", "check CHECK", "gc GC", "status STATUS"]


@pytest.mark.parametrize("version", spec.VERSIONS)
def test_the_result_of_add_has_the_version_of_the_configuration(version: str) -> None:
    plugin = _plugin(lambda _: Result(ips=(IP("10.1.0.2/24"),)))
    response = respond(plugin, ENVIRON, lambda: _config(version))
    assert (response.status, response.stderr) == (0, "")
    assert json.loads(response.stdout)["cniVersion"] == version
    assert not response.stdout.endswith("\n")


@pytest.mark.parametrize("version", spec.VERSIONS)
def test_an_error_carries_the_version_of_the_configuration(version: str) -> None:
    plugin = _raising(CniError(11, "br0: busy", "try later"))
    response = respond(plugin, ENVIRON, lambda: _config(version))
    assert (response.status, response.stderr) == (1, "")
    assert response.stdout == (
        f'{{\n    "cniVersion": "{version}",\n    "code": 11,\n    "msg": "br0: busy",\n    "details": "try later"\n}}'
    )


@pytest.mark.parametrize("stdin", [b"", _config("9.9.9"), b'{"cniVersion": "0.4.0"}'])
def test_an_error_found_before_the_version_carries_the_newest(stdin: bytes) -> None:
    response = respond(IDLE, ENVIRON, lambda: stdin)
    assert response.status == 1
    assert json.loads(response.stdout)["cniVersion"] == "1.1.0"


def test_a_result_its_version_cannot_show_is_an_error() -> None:
    response = respond(_plugin(lambda _: Result()), ENVIRON, lambda: _config("0.2.0"))
    assert response.status == 1
    error = json.loads(response.stdout)
    assert (error["cniVersion"], error["code"]) == ("0.2.0", 7)


@pytest.mark.parametrize(
    ("error", "msg"),
    [
        pytest.param(ValueError("odd é \udcff"), "test: internal error: ValueError: odd é \udcff", id="bug"),
        pytest.param(OSError(5, "EIO"), "test: internal error: OSError: [Errno 5] EIO", id="OSError"),
        pytest.param(SystemExit(0), "test: internal error: SystemExit: 0", id="SystemExit"),
        pytest.param(KeyboardInterrupt(), "test: internal error: KeyboardInterrupt: ", id="KeyboardInterrupt"),
        pytest.param(RecursionError("deep"), "test: internal error: RecursionError: deep", id="RecursionError"),
    ],
)
def test_a_plugins_own_fault_is_code_999_and_its_traceback_goes_to_stderr(error: BaseException, msg: str) -> None:
    response = respond(_raising(error), ENVIRON, lambda: _config("0.4.0"))
    assert response.status == 1
    assert json.loads(response.stdout) == {
        "cniVersion": "0.4.0",
        "code": 999,
        "msg": msg,
        "details": "the traceback is on stderr",
    }
    assert response.stderr.startswith("Traceback (most recent call last):\n")
    assert "in add\n" in response.stderr


def test_a_stdin_that_cannot_be_read_is_no_internal_error() -> None:
    def read() -> bytes:
        raise OSError(5, "Input/output error")

    response = respond(IDLE, ENVIRON, read)
    assert (response.status, json.loads(response.stdout)["code"], response.stderr) == (1, 5, "")


@pytest.mark.parametrize(
    ("error", "status"), [(None, 0), (CniError(7, "no"), 1), (ValueError("odd"), 1)], ids=["done", "error", "bug"]
)
def test_what_a_plugin_says_beside_its_answer_is_on_stderr_once(error: Exception | None, status: int) -> None:
    def add(_: Request) -> Result:
        for line in ("the sky is green", "odd: \x1b[2J\n\udcff", "the sky is green"):
            notes.say(line)
        if error:
            raise error
        return Result()

    response = respond(_plugin(add), ENVIRON, _config)
    said = "test: the sky is green\ntest: odd: \\x1b[2J\\n\\udcff\n"
    assert (response.status, response.stderr[: len(said)]) == (status, said)
    assert "sky" not in response.stdout + response.stderr[len(said) :]
    assert respond(_plugin(lambda _: Result()), ENVIRON, _config).stderr == "", "the next call says nothing of it"


GIVEN = {"PATH": "/bin", "_PYI_ARCHIVE_FILE": "/x", "_PYI_APPLICATION_HOME_DIR": "/y", "TRACEPARENT": "00-1"}


@pytest.mark.parametrize(
    ("frozen", "environ", "kept"),
    [
        pytest.param(False, {}, {}, id="source, nothing set"),
        pytest.param(False, {"LD_LIBRARY_PATH": "/a"}, {"LD_LIBRARY_PATH": "/a"}, id="source: the caller's own"),
        pytest.param(
            False,
            {"LD_LIBRARY_PATH": "/a", "LD_LIBRARY_PATH_ORIG": "/b"},
            {"LD_LIBRARY_PATH": "/a", "LD_LIBRARY_PATH_ORIG": "/b"},
            id="source: both the caller's own",
        ),
        pytest.param(True, {}, {}, id="built, nothing set"),
        pytest.param(True, {"LD_LIBRARY_PATH": "/app"}, {}, id="built: only the bootloader's"),
        pytest.param(
            True,
            {"LD_LIBRARY_PATH": "/app:/a", "LD_LIBRARY_PATH_ORIG": "/a"},
            {"LD_LIBRARY_PATH": "/a"},
            id="built: the caller's is brought back",
        ),
        pytest.param(
            True,
            {"LD_LIBRARY_PATH": "/app:", "LD_LIBRARY_PATH_ORIG": ""},
            {"LD_LIBRARY_PATH": ""},
            id="built: the caller's was empty",
        ),
        pytest.param(True, {"LD_LIBRARY_PATH": "/a:/app"}, {"LD_LIBRARY_PATH": "/a:/app"}, id="built: not touched"),
        pytest.param(
            True,
            {"LD_LIBRARY_PATH": "/a", "LD_LIBRARY_PATH_ORIG": "/b"},
            {"LD_LIBRARY_PATH": "/a", "LD_LIBRARY_PATH_ORIG": "/b"},
            id="built: not touched, both the caller's own",
        ),
    ],
)
def test_delegates_do_not_see_what_the_bootloader_set(
    monkeypatch: pytest.MonkeyPatch, frozen: bool, environ: dict[str, str], kept: dict[str, str]
) -> None:
    monkeypatch.setattr(sys, "prefix", "/app")
    if frozen:
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    given = {**GIVEN, **environ}
    assert without_bootloader(given) == {"PATH": "/bin", "TRACEPARENT": "00-1", **kept}
    assert given == {**GIVEN, **environ}


PROGRAM = """
import time
from cnikit.effects import notes
from cnikit.plugin import Plugin
from cnikit.main import main
from cnikit.result import IP, Interface, Result

def add(request):
    if request.attachment.ifname == "slow":
        notes.say("I am slow")
        time.sleep(60)
    if request.attachment.ifname == "bug":
        raise ValueError(request.environ["LINK"])
    links = tuple(Interface(request.environ["LINK"] + str(i)) for i in range(int(request.environ["COUNT"])))
    return Result(links, (IP("10.1.0.2/24"),))

def nothing(request):
    pass

main(Plugin("test", add, nothing, nothing, nothing, nothing))
"""
PROJECT = Path(__file__).parent.parent


def _run(stdin: bytes, redirections: str = "", **environ: str | bytes) -> subprocess.CompletedProcess[bytes]:
    """Run a plugin as a process of its own; a shell redirects its streams."""
    variables = {"PYTHONPATH": str(PROJECT), "PROGRAM": PROGRAM, "LINK": "é", "COUNT": "1", **ENVIRON, **environ}
    plain = [sys.executable, "-c", PROGRAM]
    line = f'exec "{sys.executable}" -c "$PROGRAM" {redirections}'
    return subprocess.run(
        ["/bin/sh", "-c", line] if redirections else plain,
        input=stdin,
        env={os.fsencode(name): os.fsencode(value) for name, value in variables.items()},
        capture_output=True,
        check=False,
    )


def test_the_process_prints_its_result_and_exits_with_zero() -> None:
    process = _run(_config())
    assert (process.returncode, process.stderr) == (0, b"")
    assert json.loads(process.stdout) == {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "é0"}],
        "ips": [{"address": "10.1.0.2/24"}],
    }


def test_the_process_writes_and_reads_more_than_a_pipe_holds() -> None:
    config = json.dumps({"cniVersion": "1.1.0", "name": "mynet", "padding": "x" * 300_000}).encode()
    process = _run(config, COUNT="20000")
    assert process.returncode == 0
    assert len(json.loads(process.stdout)["interfaces"]) == 20_000


def test_the_process_survives_an_environment_that_is_not_utf_8() -> None:
    process = _run(_config(), LINK=b"\xff", CNI_ARGS=b"\xfe=\xfd", **{"\udcfe": "x"})
    assert (process.returncode, process.stderr) == (0, b"")
    assert json.loads(process.stdout)["interfaces"] == [{"name": "\udcff0"}]


def test_the_process_exits_with_one_and_prints_a_bug_on_both_streams() -> None:
    process = _run(_config(), CNI_IFNAME="bug", LINK=b"\xff")
    assert process.returncode == 1
    error = json.loads(process.stdout)
    assert (error["code"], error["msg"]) == (999, "test: internal error: ValueError: \udcff")
    assert process.stderr.startswith(b"Traceback")
    assert process.stderr.endswith(b"ValueError: \\udcff\n")


def test_the_process_says_what_it_has_to_although_the_time_is_over() -> None:
    process = _run(_config(), CNI_IFNAME="slow", **{limit.VARIABLE: "1"})
    assert (process.returncode, process.stderr) == (1, b"test: I am slow\n")
    assert json.loads(process.stdout)["code"] == 11


def test_the_process_fails_when_its_result_cannot_be_written() -> None:
    for redirections in (">&-", ">/dev/full"):
        process = _run(_config(), redirections)
        assert (process.returncode, process.stdout, process.stderr) == (1, b"", b"")


def test_the_process_tells_a_bug_although_its_stderr_is_closed() -> None:
    for redirections in ("2>&-", "2>/dev/full"):
        process = _run(_config(), redirections, CNI_IFNAME="bug")
        assert process.returncode == 1
        assert json.loads(process.stdout)["code"] == 999


def test_the_process_refuses_a_stdin_that_is_closed() -> None:
    process = _run(b"", "<&-")
    assert process.returncode == 1
    error = json.loads(process.stdout)
    assert (error["code"], error["msg"]) == (5, "error reading from stdin: Bad file descriptor")


def test_the_process_answers_version_while_its_stdin_stays_open() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={"PYTHONPATH": str(PROJECT), "CNI_COMMAND": "VERSION"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        # Its end of stdin is still open: reading it would never come to an end.
        assert process.wait(timeout=60) == 0
        assert process.stdout
        assert process.stdout.read().decode() == VERSION_LINE


def test_the_process_reads_no_more_than_a_mebibyte() -> None:
    process = _run(_config() + b" " * MOST)
    assert process.returncode == 1
    error = json.loads(process.stdout)
    assert (error["code"], error["msg"]) == (6, f"error unmarshall network config: more than {MOST} bytes on stdin")
    assert _run(_config().ljust(MOST)).returncode == 0


def test_a_bug_is_told_although_its_traceback_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "traceback", None)
    response = respond(_raising(ValueError("odd")), ENVIRON, _config)
    assert (response.status, json.loads(response.stdout)["msg"]) == (1, "test: internal error: ValueError: odd")
    assert response.stderr.startswith("import of traceback halted")
