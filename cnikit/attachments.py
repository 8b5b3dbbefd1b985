"""Attachments, and the cache of what ADD gave for each: what CHECK, DEL and GC need to know later.

The cache is libcni's, file for file, so that either can delete what the other added: FOLDER/results holds a file
NETWORK-CONTAINER-IFNAME for each attachment. Since all three may contain hyphens, two attachments can share a file
name; what the file says counts, and an entry of another attachment is never taken for one's own. An entry is written
as .NETWORK-CONTAINER-IFNAME, and then renamed.

What a libcni of any age has written is read:

| libcni | the file holds |
| --- | --- |
| 1.2 and newer | kind, containerId, config (base64), ifName, networkName, netns, cniArgs, capabilityArgs, result |
| 0.8 to 1.1 | the same without netns (podman 4, containerd 1.6 and 1.7): it is the sandbox of ifName in the result |
| 0.7 | the result alone, whose attachment only the file's name tells |

What an entry does not say of its attachment comes from the file's name, where that can be split in one way only.
tests/test_attachments.py lists every key, and what is made of it.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnikit import jsontext, spec
from cnikit.effects import files
from cnikit.errors import CniError, invalid_environment
from cnikit.fields import Fields
from cnikit.networks import Network

DEFAULT_FOLDER = "/var/lib/cni"

_KIND = "cniCacheV1"

# A result alone has one of these keys; libcni leaves the version out of one without.
_OF_RESULTS = ("cniVersion", "interfaces", "ips", "ip4", "ip6")

_MOST = 8 << 20  # bytes of a file: a configuration of a mebibyte in base64, and a result


@dataclass(frozen=True)
class Attachment:
    """An interface of a container, to be attached to a network; what CNI_* variables and runtimeConfig say of it.

    Raises CniError (code 4) when a field cannot be what it should be.
    """

    container: str
    ifname: str = "eth0"
    netns: str = ""  # a path; a DEL may come without
    args: tuple[tuple[str, str], ...] = ()  # CNI_ARGS
    capabilities: Mapping[str, Any] = field(default_factory=dict)  # by capability: portMappings, bandwidth, ...

    def __post_init__(self) -> None:
        if not spec.is_name(self.container):
            raise invalid_environment("CNI_CONTAINERID", f"{self.container!r} is no container id")
        if fault := spec.ifname_fault(self.ifname):
            raise invalid_environment("CNI_IFNAME", fault, self.ifname)
        for key, value in self.args:
            if not key or "=" in key or ";" in key + value:
                raise invalid_environment("CNI_ARGS", f"invalid pair {f'{key}={value}'!r}", "write KEY=VALUE;KEY=VALUE")

    @property
    def key(self) -> tuple[str, str]:
        """What tells attachments to one network apart."""
        return self.container, self.ifname


@dataclass(frozen=True)
class Cached:
    """A cache entry: an attachment to a network, and the result of its ADD as JSON."""

    network: str
    attachment: Attachment
    result: dict[str, Any]
    config: bytes = b""  # the network's list when it was added, b"" where it is not known
    bare: bool = False  # it is a result alone: of whom, the file's name tells
    written: int = 0  # the file's time in ns

    def is_of(self, network: str, attachment: Attachment) -> bool:
        """Tell whether this is the entry of that attachment."""
        return self.network == network and self.attachment.key == attachment.key


@dataclass(frozen=True)
class Unreadable:
    """A file in the place of a cache entry that does not tell its attachment, and why."""

    file: Path
    fault: CniError

    def candidates(self, network: str) -> tuple[tuple[str, str], ...]:
        """Return container and interface of the attachments to a network it may be of, as far as its name tells."""
        return tuple((container, ifname) for _, container, ifname in _splits(self.file.name, network))


class Cache:
    """Results by attachment, in files. Writing raises CniError (code 5), reading takes a broken file for none."""

    def __init__(self, folder: str | Path = DEFAULT_FOLDER) -> None:
        self._results = Path(folder) / "results"

    def find(self, network: str, attachment: Attachment) -> Cached | None:
        """Return the entry of an attachment, None when there is none."""
        cached = _found(self._file(network, attachment), network, *attachment.key)
        return cached if cached and cached.is_of(network, attachment) else None

    def holder(self, attachment: Attachment) -> Cached | None:
        """Return the entry that has this interface of this container, whatever its network."""
        for file in self._files():
            if file.name.endswith(f"-{attachment.container}-{attachment.ifname}"):
                cached = _found(file, "", *attachment.key)
                if cached and cached.attachment.key == attachment.key:
                    return cached
        return None

    def of(self, network: str) -> tuple[Cached, ...]:
        """Return a network's entries, sorted by file name."""
        return tuple(one for one in self._listed(network) if isinstance(one, Cached))

    def unreadable(self, network: str) -> tuple[Unreadable, ...]:
        """Return the files that can only be told by their name to belong to the network, or maybe to belong to it."""
        return tuple(one for one in self._listed(network) if isinstance(one, Unreadable))

    def _listed(self, network: str) -> Iterator[Cached | Unreadable]:
        for file in self._files():
            if not file.name.startswith(f"{network}-"):
                continue
            try:
                cached = _read(file, within=network)
            except CniError as e:
                yield Unreadable(file, e)
                continue
            if cached and cached.network == network:
                yield cached

    def store(self, network: Network, attachment: Attachment, result: Mapping[str, Any]) -> None:
        """Write an entry: wholly or not at all, also when the power fails."""
        file = self._file(network.name, attachment)
        data = jsontext.encode(_document(network, attachment, result), indent=None).encode()
        try:
            files.make_folder(str(self._results), 0o700)
            _replace(file, data)
        except OSError as e:
            raise CniError(spec.IO_FAILURE, f"{file}: {e.strerror}", "the result cannot be cached") from None

    def forget(self, network: str, attachment: Attachment) -> None:
        """Remove an entry; none there is fine."""
        file = self._file(network, attachment)
        for one in (_new(file), file):
            cached = _found(one, network, *attachment.key)
            if cached and not cached.is_of(network, attachment):
                continue
            try:
                one.unlink(missing_ok=True)
            except OSError as e:
                raise CniError(spec.IO_FAILURE, f"{one}: {e.strerror}", "the cached result cannot be removed") from None

    def _file(self, network: str, attachment: Attachment) -> Path:
        return self._results / f"{network}-{attachment.container}-{attachment.ifname}"

    def _files(self) -> Iterator[Path]:
        try:
            names = sorted(files.listing(str(self._results)))
        except FileNotFoundError:
            names = []
        except OSError as e:
            raise CniError(spec.IO_FAILURE, f"{self._results}: {e.strerror}") from None
        return (self._results / name for name in names if not name.startswith("."))


def _document(network: Network, attachment: Attachment, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry's JSON, its keys in libcni's order, and left out where libcni leaves them out."""
    shown = {
        "kind": _KIND,
        "containerId": attachment.container,
        "config": base64.b64encode(network.source).decode(),
        "ifName": attachment.ifname,
        "networkName": network.name,
        "netns": attachment.netns,
        "cniArgs": attachment.args,
        "capabilityArgs": dict(attachment.capabilities),
        "result": dict(result),
    }
    return {key: value for key, value in shown.items() if value}


def _found(file: Path, network: str, container: str, ifname: str) -> Cached | None:
    """Return an entry, None where there is none; what it does not say of its attachment is as given."""
    try:
        return _read(file, network, container, ifname)
    except CniError:
        return None


def _read(file: Path, network: str = "", container: str = "", ifname: str = "", within: str = "") -> Cached | None:
    """Return an entry, None where there is no file.

    What it does not say of its attachment is as given here, or else as the file's name has it. Of a file that is
    looked at because its name begins with a network's, within, that may be the network, or the beginning of another's.
    Raises CniError for what is no entry.
    """
    try:
        raw, written = _decoded(file)
    except FileNotFoundError:
        return None
    f = Fields(raw)
    kind = f.string("kind")
    if kind not in ("", _KIND):
        raise f.invalid("kind", f"{kind!r} is not known")
    bare = not kind
    if bare and not any(f.has(key) for key in _OF_RESULTS):
        raise CniError(spec.DECODING_FAILURE, "is no cached result")
    name = file.name.removeprefix(".")
    whose = (network, container, ifname)
    if not bare:
        whose = (
            f.string("networkName") or network,
            f.string("containerId") or container,
            f.string("ifName") or ifname,
        )
    if not all(whose):
        whose = _completed(name, *whose, within=within)
    result = raw if bare else _object(f, "result")
    attachment = Attachment(
        container=whose[1],
        ifname=whose[2],
        netns=("" if bare else f.string("netns")) or _sandbox(result, whose[2]),
        args=() if bare else _pairs(f, "cniArgs"),
        capabilities={} if bare else _object(f, "capabilityArgs"),
    )
    if "-".join(whose) != name:
        raise CniError(spec.DECODING_FAILURE, f"says that it is {'-'.join(whose)}")
    return Cached(whose[0], attachment, result, b"" if bare else _configuration(f), bare, written)


def _decoded(file: Path) -> tuple[dict[str, Any], int]:
    """Return the object in a file, and the file's time. Raises FileNotFoundError, and CniError for what is none."""
    try:
        written = file.stat().st_mtime_ns
        raw = jsontext.decode(files.read(str(file), most=_MOST))
    except FileNotFoundError:
        raise
    except OSError as e:
        raise CniError(spec.IO_FAILURE, str(e.strerror)) from None
    except ValueError as e:
        raise CniError(spec.DECODING_FAILURE, f"is not JSON: {e}") from None
    if not isinstance(raw, dict):
        raise CniError(spec.DECODING_FAILURE, "is no JSON object")
    return raw, written


def _completed(name: str, network: str, container: str, ifname: str, within: str) -> tuple[str, str, str]:
    """Return network, container and interface of a file's name, those known given. Raises CniError (6)."""
    ways = [
        way
        for way in _splits(name, network)
        if container in ("", way[1])
        and ifname in ("", way[2])
        and (not within or way[0] == within or way[0].startswith(f"{within}-"))
    ]
    if len(ways) != 1:
        known = "does not say" if not ways else f"may be {' or '.join('/'.join(way) for way in ways[:3])}"
        raise CniError(spec.DECODING_FAILURE, f"whose it is cannot be told: its name {known}")
    return ways[0]


def _splits(name: str, network: str = "") -> list[tuple[str, str, str]]:
    """Return all that a file's name may mean: network, container and interface; one network's only if it is given."""
    pieces = name.split("-")
    ways = []
    for first in range(1, len(pieces) - 1):
        before = "-".join(pieces[:first])
        if not spec.is_name(before) or network not in ("", before):
            continue
        for second in range(first + 1, len(pieces)):
            container, ifname = "-".join(pieces[first:second]), "-".join(pieces[second:])
            if spec.is_name(container) and not spec.ifname_fault(ifname):
                ways.append((before, container, ifname))
    return ways


def _sandbox(result: Mapping[str, Any], ifname: str) -> str:
    """Return the path of the namespace that has the interface, as a result tells, "" where it does not."""
    listed = Fields(dict(result)).raw("interfaces")
    interfaces = [Fields(one) for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    paths = {str(one.raw("sandbox") or "") for one in interfaces if one.raw("name") == ifname} - {""}
    path = paths.pop() if len(paths) == 1 else ""
    # Runtimes of virtual machines write something else.
    return path if path.startswith("/") and "\0" not in path else ""


def _configuration(f: Fields) -> bytes:
    """Return the list at the time of the ADD. It is nothing an entry could not do without."""
    text = f.raw("config")
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        return b""


def _pairs(f: Fields, key: str) -> tuple[tuple[str, str], ...]:
    """Return CNI_ARGS, as plugins read them: libcni keeps whatever a runtime gave, and joins it."""
    listed = f.raw(key) or []
    if not isinstance(listed, list) or not all(_is_pair(pair) for pair in listed):
        raise f.invalid(key, "expected pairs of strings")
    pieces = ";".join("=".join(pair) for pair in listed).split(";")
    parted = (piece.partition("=") for piece in pieces)
    return tuple((name, value) for name, _, value in parted if name)


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and [type(text) for text in pair] == [str, str]


def _object(f: Fields, key: str) -> dict[str, Any]:
    f.object(key)
    return dict(f.raw(key) or {})


def _new(file: Path) -> Path:
    """Return where an entry is written: there is one such place, so that nothing piles up when writers are killed."""
    return file.with_name(f".{file.name}")


def _replace(file: Path, data: bytes) -> None:
    """Put data in a file's place, on disk before the name is."""
    new = _new(file)
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as out:
            os.fchmod(handle, 0o600)  # whatever the umask
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(new, file)
    except BaseException:
        os.unlink(new)
        raise
