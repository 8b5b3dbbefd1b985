"""Running a plugin's executable for a runtime: where it is found, what it is given, what its failure means."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from cnikit import jsontext, spec
from cnikit.effects import limit
from cnikit.errors import CniError, printable
from cnikit.main import without_bootloader


def find(kind: str, path: Sequence[str]) -> str:
    """Return the file of a plugin: the first regular file of its name. Raises CniError naming what was searched."""
    for folder in path:
        file = os.path.join(folder, kind)
        if os.path.isfile(file):
            return file
    raise CniError(
        spec.INVALID_CONFIG, f"{kind}: no such plugin", f"looked in {', '.join(path) or 'no folder: CNI_PATH is empty'}"
    )


def run(
    kind: str, path: Sequence[str], stdin: bytes, variables: Mapping[str, str], kept_open: Sequence[int] = ()
) -> bytes:
    """Run a plugin and return what it prints. CNI_* variables not given are empty; it has the descriptors kept_open.

    Its stderr is relayed, unless it failed without an error object: then it is part of the error. Raises CniError,
    the message beginning with the plugin's type, with the code the plugin gave.
    """
    environ = {**without_bootloader(os.environ), **dict.fromkeys(spec.VARIABLES, ""), **variables}
    process = _execute(kind, find(kind, path), stdin, environ, kept_open)
    stderr = process.stderr.decode("utf-8", "backslashreplace")
    if process.returncode == 0:
        _relay(stderr)
        return process.stdout
    error = _error_object(kind, process.stdout)
    if error:
        _relay(stderr)
        raise error
    said = (stderr.strip(), process.stdout.decode("utf-8", "backslashreplace").strip())
    raise CniError(
        spec.DELEGATE_FAILED, f"{kind}: {_ending(process.returncode)}", "; ".join(text for text in said if text)
    )


def _relay(stderr: str) -> None:
    """Say what a plugin said, its lines as lines and nothing a terminal would obey."""
    sys.stderr.write("\n".join(map(printable, stderr.split("\n"))))


def _execute(
    kind: str, file: str, stdin: bytes, environ: Mapping[str, str], kept_open: Sequence[int]
) -> subprocess.CompletedProcess[bytes]:
    # Ours end in half of that by themselves, and say what they waited for.
    patience = 2 * limit.seconds(environ)
    try:
        return subprocess.run(
            [file],
            input=stdin,
            capture_output=True,
            env=environ,
            check=False,
            pass_fds=tuple(kept_open),
            timeout=patience,
        )
    except subprocess.TimeoutExpired:
        raise CniError(spec.TRY_AGAIN, f"{kind}: {file} gave no answer in {patience:g} s and was killed") from None
    except OSError as e:
        raise CniError(spec.IO_FAILURE, f"{kind}: {file} cannot be executed: {e.strerror}") from None


def _error_object(kind: str, stdout: bytes) -> CniError | None:
    """Read the error a plugin printed (specification section 5, "Error"), None when that is none."""
    try:
        raw = jsontext.decode(stdout)
    except ValueError:
        return None
    if not isinstance(raw, dict) or not isinstance(raw.get("msg"), str) or not isinstance(raw.get("code"), int):
        return None
    details = raw.get("details")
    return CniError(raw["code"], f"{kind}: {raw['msg']}", details if isinstance(details, str) else "")


def _ending(status: int) -> str:
    how = f"exit status {status}" if status > 0 else f"ended by signal {-status} ({signal.strsignal(-status)})"
    return f"{how}, without an error object"
