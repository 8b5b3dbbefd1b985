"""Running an IPAM plugin as a process: lookup, what it is given, what becomes of its answers."""

from __future__ import annotations

import json
import posix
from pathlib import Path
from typing import Any

import pytest

from cnikit import request
from cnikit.effects import delegate, files, process
from cnikit.errors import CniError
from cnikit.request import Request
from cnikit.result import IP, Result


def asked(path: str, ipam: object, verb: str = "ADD", **keys: Any) -> Request:
    config = {"cniVersion": "1.0.0", "name": "net1", "ipam": ipam, **keys}
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/n", "CNI_PATH": path}
    return request.parse({**environ, "TRACEPARENT": "00-1"}, json.dumps(config).encode)


def script(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def failure(folder: Path, body: str, verb: str = "ADD") -> CniError:
    script(folder, "fake", body)
    with pytest.raises(CniError) as raised:
        delegate.serve(asked(str(folder), {"type": "fake"}), verb)
    return raised.value


def test_it_is_given_the_whole_configuration_and_environment(tmp_path: Path) -> None:
    script(
        tmp_path,
        "fake",
        f'env > {tmp_path}/env; cat > {tmp_path}/stdin; echo \'{{"ips":[{{"address":"10.0.0.2/8"}}]}}\'',
    )
    given = asked(str(tmp_path), {"type": "fake", "x": "ü" * 100_000}, verb="CHECK")
    assert delegate.serve(given, "ADD") == Result(ips=(IP("10.0.0.2/8"),))
    assert (tmp_path / "stdin").read_bytes() == given.stdin
    environ = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert {**given.environ, "CNI_COMMAND": "ADD"}.items() <= environ.items()


def test_only_add_has_a_result(tmp_path: Path) -> None:
    script(tmp_path, "fake", "echo rubbish")
    assert delegate.serve(asked(str(tmp_path), {"type": "fake"}), "DEL") is None


def test_a_result_may_be_of_an_older_version(tmp_path: Path) -> None:
    script(tmp_path, "fake", 'echo \'{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/8"}}\'')
    assert delegate.serve(asked(str(tmp_path), {"type": "fake"}), "ADD") == Result(ips=(IP("10.0.0.2/8"),))


def test_stderr_is_relayed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script(tmp_path, "fake", "echo by the way >&2")
    delegate.serve(asked(str(tmp_path), {"type": "fake"}), "DEL")
    assert capfd.readouterr().err == "by the way\n"


def test_a_stderr_nobody_reads_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, "fake", "echo by the way >&2")

    def broken(fd: int, data: bytes) -> int:
        raise BrokenPipeError(fd, data)

    given = asked(str(tmp_path), {"type": "fake"})
    monkeypatch.setattr(files, "write", lambda *_: None)
    monkeypatch.setattr(posix, "write", broken)
    assert delegate.serve(given, "DEL") is None


FAILURES = [
    pytest.param(
        'echo \'{"code":11,"msg":"later","details":"d"}\'; exit 1', 11, "fake: later", "d", id="its-own-error"
    ),
    pytest.param("echo oops >&2; exit 3", 102, "ipam.type: fake failed with exit status 3", "oops", id="no-document"),
    pytest.param("echo '[1]'; exit 3", 102, "ipam.type: fake failed with exit status 3", "", id="another-document"),
    pytest.param("kill -9 $$", 102, "ipam.type: fake failed with signal 9", "", id="killed"),
    pytest.param("echo rubbish", 102, "ipam.type: fake gave no result but b'rubbish", "", id="rubbish"),
    pytest.param("true", 102, "ipam.type: fake gave no result but b''", "", id="nothing"),
    pytest.param(
        "echo '{\"ips\":5}'", 102, "ipam.type: fake gave a result that is none: ips: expected list", "", id="bad-result"
    ),
    pytest.param(
        'echo \'{"code":"x","msg":"y"}\'; exit 1', 102, "ipam.type: fake failed with exit status 1", "", id="bad-error"
    ),
]


@pytest.mark.parametrize(("body", "code", "msg", "details"), FAILURES)
def test_what_fails(tmp_path: Path, body: str, code: int, msg: str, details: str) -> None:
    error = failure(tmp_path, body)
    assert error.code == code
    assert error.msg.startswith(msg)
    assert error.details == details


def test_a_failed_add_is_followed_by_del(tmp_path: Path) -> None:
    failure(tmp_path, f"echo $CNI_COMMAND >> {tmp_path}/calls; exit 1")
    assert (tmp_path / "calls").read_text().split() == ["ADD", "DEL"]
    failure(tmp_path, f"echo $CNI_COMMAND >> {tmp_path}/calls; exit 1", "CHECK")
    assert (tmp_path / "calls").read_text().split() == ["ADD", "DEL", "CHECK"]


def test_a_file_that_cannot_be_executed(tmp_path: Path) -> None:
    (tmp_path / "fake").write_text("no script")
    with pytest.raises(CniError, match=f"ipam.type: {tmp_path}/fake cannot be run: Permission denied") as raised:
        delegate.serve(asked(str(tmp_path), {"type": "fake"}), "ADD")
    assert raised.value.code == 102


def test_a_file_that_is_just_being_written_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, "fake", "true")
    with (tmp_path / "fake").open("r+b") as writing:
        monkeypatch.setattr(process, "sleep", lambda _: writing.close())
        assert delegate.serve(asked(str(tmp_path), {"type": "fake"}), "DEL") is None
    assert writing.closed


def test_lookup_takes_the_first_regular_file(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "fake").mkdir()
    (tmp_path / "three" / "fake").touch()
    (tmp_path / "two" / "fake").symlink_to(tmp_path / "three" / "fake")
    path = f":/nowhere:{tmp_path}/one:{tmp_path}/two:{tmp_path}/three"
    assert delegate.find("fake", path) == f"{tmp_path}/two/fake"


@pytest.mark.parametrize(
    ("path", "code", "msg"),
    [
        pytest.param("/nowhere:/else", 7, "ipam.type: failed to find plugin fake in path /nowhere:/else", id="none"),
        pytest.param("", 4, "CNI_PATH: is empty, so ipam.type fake cannot be found", id="no-path"),
    ],
)
def test_lookup_fails(path: str, code: int, msg: str) -> None:
    with pytest.raises(CniError) as raised:
        delegate.find("fake", path)
    assert (raised.value.code, raised.value.msg) == (code, msg)
