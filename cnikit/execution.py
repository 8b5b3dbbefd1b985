"""Running a plugin's executable for a runtime: where it is found, what it is given, what its failure means."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence

from cnikit import jsontext, spec
from cnikit.effects import limit, process
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
    status, stdout, said_beside = _execute(kind, find(kind, path), stdin, environ, kept_open)
    stderr = said_beside.decode("utf-8", "backslashreplace")
    if status == 0:
        _relay(stderr)
        return stdout
    error = _error_object(kind, stdout)
    if error:
        _relay(stderr)
        raise error
    said = (stderr.strip(), stdout.decode("utf-8", "backslashreplace").strip())
    raise CniError(spec.DELEGATE_FAILED, f"{kind}: {_ending(status)}", "; ".join(text for text in said if text))


def _relay(stderr: str) -> None:
    """Say what a plugin said, its lines as lines and nothing a terminal would obey."""
    sys.stderr.write("\n".join(map(printable, stderr.split("\n"))))


def _execute(
    kind: str, file: str, stdin: bytes, environ: Mapping[str, str], kept_open: Sequence[int]
) -> tuple[int, bytes, bytes]:
    # Ours end in half of that by themselves, and say what they waited for.
    patience = 2 * limit.seconds(environ)
    try:
        return process.run(file, [file], environ, stdin, patience, kept_open=kept_open)
    except TimeoutError:
        raise CniError(spec.TRY_AGAIN, f"{kind}: {file} gave no answer in {patience:g} s and was killed") from None
    except process.TooMuchError as e:
        raise CniError(spec.DELEGATE_FAILED, f"{kind}: {file} {e.strerror}") from None
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
