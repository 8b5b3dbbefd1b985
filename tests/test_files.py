"""Files read whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cnikit.effects import files

MEBIBYTE = 1 << 20


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 200_000, MEBIBYTE])
def test_a_file_is_read_whole(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert files.read(str(tmp_path / "file")) == content


def test_a_longer_one_is_refused_or_its_beginning_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(3 * MEBIBYTE))
    with pytest.raises(OSError, match="File too large"):
        files.read(str(tmp_path / "file"))
    assert MEBIBYTE < len(files.beginning(str(tmp_path / "file"))) < 1.1 * MEBIBYTE


@pytest.mark.parametrize("content", [b"", b"a", b"a\n", b"\n\na", b"a\n" * 200_000, b"a" * MEBIBYTE + b"\n"])
def test_a_file_is_read_by_lines(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert list(files.lines(str(tmp_path / "file"))) == content.splitlines()


def test_a_line_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(2 * MEBIBYTE))
    with pytest.raises(OSError, match="File too large"):
        list(files.lines(str(tmp_path / "file")))


def test_a_folder_of_more_files_than_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_NAMES", 3)
    for name in "abc":
        (tmp_path / name).touch()
    assert sorted(files.listing(str(tmp_path))) == ["a", "b", "c"]
    (tmp_path / "d").touch()
    with pytest.raises(OSError, match="more than 3 files"):
        files.listing(str(tmp_path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.read(str(tmp_path / "none"))


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    files.read(str(tmp_path / "file"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_fifo_that_nobody_writes_to_is_empty(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert files.read(str(tmp_path / "fifo")) == b""
