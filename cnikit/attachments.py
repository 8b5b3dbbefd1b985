"""Attachments, and the cache of what ADD gave for each: what CHECK, DEL and GC need to know later.

The cache is libcni's, file for file, so that either can delete what the other added: FOLDER/results holds a file
NETWORK-CONTAINER-IFNAME for each attachment. Since all three may contain hyphens, two attachments can share a file
name; what the file says counts, and an entry of another attachment is never taken for one's own. An entry is written
as .NETWORK-CONTAINER-IFNAME, and then renamed.
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

    def is_of(self, network: str, attachment: Attachment) -> bool:
        """Tell whether this is the entry of that attachment."""
        return self.network == network and self.attachment.key == attachment.key


class Cache:
    """Results by attachment, in files. Writing raises CniError (code 5), reading takes a broken file for none."""

    def __init__(self, folder: str | Path = DEFAULT_FOLDER) -> None:
        self._results = Path(folder) / "results"

    def find(self, network: str, attachment: Attachment) -> Cached | None:
        """Return the entry of an attachment, None when there is none."""
        cached = _read(self._file(network, attachment))
        return cached if cached and cached.is_of(network, attachment) else None

    def holder(self, attachment: Attachment) -> Cached | None:
        """Return the entry that has this interface of this container, whatever its network."""
        for file in self._files():
            if file.name.endswith(f"-{attachment.container}-{attachment.ifname}"):
                cached = _read(file)
                if cached and cached.attachment.key == attachment.key:
                    return cached
        return None

    def of(self, network: str) -> tuple[Cached, ...]:
        """Return a network's entries, sorted by file name."""
        entries = (_read(file) for file in self._files() if file.name.startswith(f"{network}-"))
        return tuple(cached for cached in entries if cached and cached.network == network)

    def broken(self, network: str) -> tuple[Path, ...]:
        """Return the files that can only be told by their name to belong to the network."""
        return tuple(file for file in self._files() if file.name.startswith(f"{network}-") and not _read(file))

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
            cached = _read(one)
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


def _read(file: Path) -> Cached | None:
    try:
        raw = jsontext.decode(files.read(str(file)))
    except (OSError, ValueError):
        return None
    if not isinstance(raw, dict):
        return None
    try:
        f = Fields(raw)
        cached = Cached(f.string("networkName"), _attachment(f), _object(f, "result"))
        return cached if f.string("kind") == _KIND and spec.is_name(cached.network) else None
    except CniError:
        return None


def _attachment(f: Fields) -> Attachment:
    return Attachment(
        container=f.string("containerId"),
        ifname=f.string("ifName"),
        netns=f.string("netns"),
        args=_pairs(f, "cniArgs"),
        capabilities=_object(f, "capabilityArgs"),
    )


def _pairs(f: Fields, key: str) -> tuple[tuple[str, str], ...]:
    match f.raw(key):
        case None:
            return ()
        case list(pairs) if all(
            isinstance(pair, list) and [type(text) for text in pair] == [str, str] for pair in pairs
        ):
            return tuple((name, value) for name, value in pairs)
    raise f.invalid(key, "expected pairs of strings")


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
