"""Running another plugin: the IPAM plugin a configuration names (specification section 4).

A delegate is looked up in CNI_PATH. When what is found there belongs to our own installation it runs inside this
process, which saves a start-up; anything else is executed, with the environment, the configuration and the namespace
this plugin was given.
"""

from __future__ import annotations

import posix
import sys

from cnikit import jsontext, result, spec
from cnikit.effects import files
from cnikit.errors import CniError, invalid_config, invalid_environment
from cnikit.fields import Fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cnikit.plugin import Plugin
    from cnikit.request import Request

_MANIFEST = "executables"


def ipam_type(request: Request) -> str:
    """Return `ipam.type`, "" for a network without addresses."""
    ipam = request.config.object("ipam")
    kind = ipam.string("type")
    if "/" in kind or "\0" in kind or kind in (".", ".."):
        raise ipam.invalid("type", f"{kind!r} is no plugin's name")
    return kind


def serve(request: Request, verb: str) -> result.Result | None:
    """Run a verb of the network's IPAM plugin; return the result of an ADD. Raises CniError."""
    kind = ipam_type(request)
    path = find(kind, request.path)
    own = _own_plugin(kind, path)
    request = request.replace(verb=verb)
    if own is not None:
        return own.serve(request)
    try:
        return execute(path, kind, request)
    except BaseException:
        # "If the IPAM plugin's ADD fails, the plugin must run it again with DEL" -- section 4. Ours undo themselves.
        if verb == "ADD":
            _release(path, kind, request)
        raise


def expected(request: Request) -> Iterable[tuple[result.IP, ...]]:
    """Return the addresses that the next ADD may be given, all of one ADD together, as far as our own plugin can tell.

    Raises CniError.
    """
    kind = ipam_type(request)
    own = _own_plugin(kind, find(kind, request.path)) if kind else None
    return own.expected(request) if own else ((),)


def _release(path: str, kind: str, request: Request) -> None:
    try:
        execute(path, kind, request.replace(verb="DEL"))
    except CniError as e:
        _relay(f"ipam.type: {kind}: DEL after its ADD failed: {e}\n".encode("utf-8", "backslashreplace"))


def _relay(said: bytes) -> None:
    try:
        posix.write(2, said)
    except OSError:
        return  # Nobody listens, which is no reason to fail.


def find(kind: str, path: str) -> str:
    """Return the file of a plugin in CNI_PATH. Raises CniError naming what was searched."""
    if not path:
        raise invalid_environment("CNI_PATH", f"is empty, so ipam.type {kind} cannot be found")
    for folder in path.split(":"):
        file = f"{folder}/{kind}"
        try:
            if folder and posix.stat(file).st_mode & 0o170000 == 0o100000:
                return file
        except (OSError, ValueError):
            continue
    raise invalid_config("ipam.type", f"failed to find plugin {kind} in path {path}", "CNI_PATH names the folders")


def _own_plugin(kind: str, path: str) -> Plugin | None:
    """Return the plugin when the file found is the one that was built together with this executable."""
    if not hasattr(sys, "frozen"):
        return None
    home = sys.prefix.rpartition("/")[0]
    try:
        found, ours = posix.stat(path), posix.stat(f"{home}/{kind}")
        listed = files.read(f"{sys.prefix}/{_MANIFEST}").decode()
    except OSError:
        return None
    # Another suite's host-local may have been put beside our bridge: then the size differs from the build's list.
    same = (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)
    if not same or f"{kind} {found.st_size}" not in listed.split("\n"):
        return None
    name = "cnikit.ipam." + kind.replace("-", "_")
    try:
        __import__(name)
    except ImportError:
        raise invalid_config("ipam.type", f"{kind} is no ipam plugin") from None
    plugin: Plugin = sys.modules[name].PLUGIN
    return plugin


def execute(path: str, kind: str, request: Request) -> result.Result | None:
    """Run a plugin as a process; return the result of an ADD. Raises CniError, the plugin's own where it gave one."""
    status, out, err = _run(path, {**request.environ, "CNI_COMMAND": request.verb}, request.stdin)
    if err:
        _relay(err)
    said = err.decode("utf-8", "backslashreplace").strip()
    if status != 0:
        raise _failure(kind, status, out, said)
    if request.verb != "ADD":
        return None
    given = _document(out)
    if given is None:
        raise CniError(spec.DELEGATE_FAILED, f"ipam.type: {kind} gave no result but {out[:200]!r}", said)
    try:
        return result.parse(given, request.version)
    except CniError as e:
        raise CniError(spec.DELEGATE_FAILED, f"ipam.type: {kind} gave a result that is none: {e.msg}", said) from None


def _run(path: str, environ: dict[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
    # Only for a plugin that is not ours.
    from cnikit.effects import limit, process

    try:
        return process.run(path, [path], environ, stdin, limit.share())
    except TimeoutError as e:
        raise CniError(spec.TRY_AGAIN, f"ipam.type: {path} {e.strerror}") from None
    except process.TooMuchError as e:
        raise CniError(spec.DELEGATE_FAILED, f"ipam.type: {path} {e.strerror}") from None
    except OSError as e:
        raise CniError(spec.DELEGATE_FAILED, f"ipam.type: {path} cannot be run: {e.strerror}") from None


def _failure(kind: str, status: int, out: bytes, said: str) -> CniError:
    given = _document(out)
    code, msg, details = (given.raw(key) if given else None for key in ("code", "msg", "details"))
    if type(code) is int and isinstance(msg, str):
        return CniError(code, f"{kind}: {msg}", details if isinstance(details, str) else "")
    how = f"exit status {status}" if status > 0 else f"signal {-status}"
    return CniError(spec.DELEGATE_FAILED, f"ipam.type: {kind} failed with {how} and no error message", said)


def _document(out: bytes) -> Fields | None:
    try:
        value = jsontext.decode(out)
    except ValueError:
        return None
    return Fields(value) if isinstance(value, dict) else None
