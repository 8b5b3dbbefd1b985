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


def test_of_a_longer_one_the_beginning(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(3 * MEBIBYTE))
    assert len(files.read(str(tmp_path / "file"))) == MEBIBYTE


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
