"""The edge of an executable: environ and stdin in, stdout, stderr and exit status out. Only here is it touched.

One call, from here down:

    main -> respond -> request.parse -> the plugin's verb -> result.document -> stdout
"""

from __future__ import annotations

import posix
import sys

from cnikit import __version__, jsontext, request, result, spec
from cnikit.effects import limit, notes
from cnikit.errors import CniError
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cnikit.plugin import Plugin


# Bytes on stdin: a GC that lists 10,000 attachments, say. As values they take 30 times the room.
MOST = 1 << 20


class Response(Value):
    """What the process says: the three things a runtime sees of it."""

    status: int
    stdout: str = ""
    stderr: str = ""


def main(plugin: Plugin) -> None:
    """Serve one call and end the process."""
    _hold_streams()
    environ = {
        name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
        for name, value in posix.environ.items()
    }
    response = respond(plugin, without_bootloader(environ), _read_stdin, lambda doing: _give_up(plugin, doing))
    limit.answer()
    try:
        _write(1, response.stdout)
    except OSError:
        # Nobody listens. What was done stands, yet a runtime that got no result must not believe in success.
        posix._exit(1)
    _write_beside(response.stderr)
    # Tearing the interpreter down would be a quarter of all instructions, for nothing.
    posix._exit(response.status)


def respond(
    plugin: Plugin,
    environ: Mapping[str, str],
    read_stdin: Callable[[], bytes],
    give_up: Callable[[str], None] | None = None,
) -> Response:
    """Serve one call. Never raises: whatever goes wrong becomes an error object.

    give_up: who answers when the time is over, see limit.start.
    """
    response = _respond(plugin, environ, read_stdin, give_up)
    said = notes.take(plugin.name)
    return response.replace(stderr=said + response.stderr) if said else response


def _respond(
    plugin: Plugin,
    environ: Mapping[str, str],
    read_stdin: Callable[[], bytes],
    give_up: Callable[[str], None] | None,
) -> Response:
    verb = environ.get("CNI_COMMAND", "")
    if not verb:
        return Response(0, stderr=about(plugin))
    if verb == "VERSION":
        # The reference reads no stdin here and clients may leave it open, so the newest version is said, not echoed.
        versions = {"cniVersion": spec.NEWEST, "supportedVersions": spec.VERSIONS}
        return Response(0, jsontext.encode(versions, indent=None) + "\n")
    version = spec.NEWEST
    try:
        limit.start(environ, give_up)
        asked = request.parse(environ, read_stdin)
        version = asked.version
        given = plugin.serve(asked)
        return Response(0, "" if given is None else jsontext.encode(result.document(given, version)))
    except CniError as e:
        return Response(1, jsontext.encode(e.document(version)))
    except BaseException as e:
        return _internal_error(plugin, e, version)


def about(plugin: Plugin) -> str:
    """Return what an executable says when it is run without CNI_COMMAND."""
    return (
        f"CNI {plugin.name} plugin cnikit {__version__}\nCNI protocol versions supported: {', '.join(spec.VERSIONS)}\n"
    )


def without_bootloader(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment as the caller gave it, before PyInstaller's bootloader put its own variables in.

    One of our own making leaves LD_LIBRARY_PATH alone; PyInstaller's puts the runtime folder first.
    """
    kept = {name: value for name, value in environ.items() if not name.startswith("_PYI_")}
    if hasattr(sys, "frozen") and kept.get("LD_LIBRARY_PATH", "").split(":")[0] == sys.prefix:
        original = kept.pop("LD_LIBRARY_PATH_ORIG", None)
        kept.pop("LD_LIBRARY_PATH")
        if original is not None:
            kept["LD_LIBRARY_PATH"] = original
    return kept


def _give_up(plugin: Plugin, doing: str) -> None:
    error = CniError(
        spec.TRY_AGAIN,
        f"{plugin.name}: the time is over, waiting in {doing}",
        f"{limit.VARIABLE} sets the time, in seconds",
    )
    _write(1, jsontext.encode(error.document(spec.NEWEST)))
    _write_beside(notes.take(plugin.name))


def _internal_error(plugin: Plugin, e: BaseException, version: str) -> Response:
    error = CniError(
        spec.INTERNAL, f"{plugin.name}: internal error: {type(e).__name__}: {e}", "the traceback is on stderr"
    )
    try:
        import traceback

        trace = "".join(traceback.format_exception(e))
    except BaseException as another:  # no memory left to import it, say
        trace = f"{another}\n"
    return Response(1, jsontext.encode(error.document(version)), trace)


def _hold_streams() -> None:
    """Keep the numbers of streams that the caller has closed from other files: what is written there would go to them.

    A read from such a stream still fails, and a write to it.
    """
    for number, flags in enumerate((posix.O_WRONLY, posix.O_RDONLY, posix.O_RDONLY)):
        try:
            posix.fstat(number)
        except OSError:
            try:
                posix.open("/dev/null", flags)  # the lowest free number is this one
            except OSError:
                pass  # a host without it


def _read_stdin() -> bytes:
    parts, left = [], MOST
    while part := posix.read(0, 1 << 16):
        parts.append(part)
        left -= len(part)
        if left < 0:
            raise CniError(spec.DECODING_FAILURE, f"error unmarshall network config: more than {MOST} bytes on stdin")
    return b"".join(parts)


def _write(fd: int, text: str) -> None:
    data = text.encode("utf-8", "backslashreplace")
    while data:
        data = data[posix.write(fd, data) :]


def _write_beside(text: str) -> None:
    """Write to stderr, if it can be written to: what counts is on stdout."""
    try:
        _write(2, text)
    except OSError:
        pass
