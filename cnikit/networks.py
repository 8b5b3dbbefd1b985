"""Network configurations on disk: /etc/cni/net.d/*.conflist, and the single plugins of older days, *.conf and *.json.

Source: specification section 1, "Network configuration format". A single plugin becomes a list of one.

Plugins of a list may also have files of their own, in the folder beside it that has the network's name: NAME/*.conf, in
the order of their names, after those in the list, unless the list says `loadOnlyInlinedPlugins`. That is libcni's,
since 1.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cnikit import jsontext, spec
from cnikit.errors import CniError
from cnikit.fields import Fields, type_name

DEFAULT_FOLDER = "/etc/cni/net.d"

_SUFFIXES = (".conflist", ".conf", ".json")
_LIST_KEYS = ("name", "cniVersion", "cniVersions", "disableCheck", "disableGC")
_INLINED_ONLY = "loadOnlyInlinedPlugins"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Plugin:
    """One plugin of a list: its type, its object as it stands in the file, the capabilities it enables."""

    type: str
    config: Mapping[str, Any]
    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Network:
    """A network: a name, and plugins to be run in this order."""

    name: str
    version: str  # the newest of cniVersion and cniVersions that this library knows
    plugins: tuple[Plugin, ...]
    source: bytes  # the list as JSON, all plugins in it, which goes into the cache beside each result
    disable_check: bool = False
    disable_gc: bool = False

    def declines(self, verb: str) -> str:
        """Say why this network's plugins are not to be given a verb, "" when they are."""
        since = spec.SINCE.get(verb, spec.VERSIONS[0])
        if not spec.at_least(self.version, since):
            return f"cniVersion is {self.version}, {verb} came with {since}"
        key, disabled = {"CHECK": ("disableCheck", self.disable_check), "GC": ("disableGC", self.disable_gc)}.get(
            verb, ("", False)
        )
        return f"{key} is true" if disabled else ""


def load(folder: str | Path, name: str) -> Network:
    """Return the network of that name.

    Lists come before single plugins, each sorted by file name, and the first one wins, as in libcni. A file that
    cannot be read matters only when no other has the name. Raises CniError.
    """
    networks = []
    faults = []
    for file in _files(Path(folder)):
        try:
            network = read(file)
        except CniError as e:
            faults.append(str(e))
            continue
        if network.name == name:
            return network
        networks.append(network.name)
    known = [f"networks there: {', '.join(networks) or 'none'}", *faults]
    raise CniError(spec.INVALID_CONFIG, f"no network {name!r} in {folder}", "; ".join(known))


def read(file: Path) -> Network:
    """Return the network of one file, plugins beside it included. Raises CniError naming the file and the key."""
    return _named(file, _whole)


def _whole(file: Path) -> Network:
    data = file.read_bytes()
    return parse(data, _separate(file, Fields(_decode(data))))


def _separate(file: Path, f: Fields) -> list[dict[str, Any]]:
    """Return the plugins of a list that have files of their own. Raises CniError naming the file and the key."""
    is_list = f.has("plugins") or not f.has("type") or file.suffix == ".conflist"
    if not is_list or _boolean(f, _INLINED_ONLY):
        return []
    folder = file.parent / _name(f)
    try:
        files = sorted(one for one in folder.iterdir() if one.suffix == ".conf" and not one.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [_named(one, _separate_plugin) for one in files]


def _separate_plugin(file: Path) -> dict[str, Any]:
    raw = _decode(file.read_bytes())
    _plugin(Fields(raw), raw)
    return raw


def _named(file: Path, read: Callable[[Path], _T]) -> _T:
    """Read a file; errors name it."""
    try:
        return read(file)
    except OSError as e:
        raise CniError(spec.IO_FAILURE, f"{e.filename or file}: {e.strerror}") from None
    except CniError as e:
        raise CniError(e.code, f"{file}: {e.msg}", e.details) from None


def parse(data: bytes, separate: Sequence[Mapping[str, Any]] = ()) -> Network:
    """Return the network that a document describes, with plugins from elsewhere. Raises CniError naming the key."""
    raw = _decode(data)
    f = Fields(raw)
    if separate and (f.objects("plugins") or not f.has("plugins")):
        replaced = {"plugins": [*(f.raw("plugins") or ()), *separate], _INLINED_ONLY: True}
        others = {key: value for key, value in raw.items() if key.lower() not in ("plugins", _INLINED_ONLY.lower())}
        raw = {**others, **replaced}
        data = jsontext.encode(raw, indent=None).encode()
    elif not f.has("plugins"):
        if not f.has("type"):
            why = "a list has plugins, or files NAME/*.conf beside it; a single plugin has a type"
            raise f.invalid("plugins", "is missing", why)
        raw = {**{key: raw[key] for key in _LIST_KEYS if key in raw}, "plugins": [raw]}
        data = jsontext.encode(raw, indent=None).encode()
    return Network(
        name=_name(f),
        version=_version(f),
        plugins=_plugins(Fields(raw)),
        source=data,
        disable_check=_boolean(f, "disableCheck"),
        disable_gc=_boolean(f, "disableGC"),
    )


def _files(folder: Path) -> list[Path]:
    try:
        files = [file for file in folder.iterdir() if file.suffix in _SUFFIXES and not file.is_dir()]
    except OSError as e:
        raise CniError(
            spec.IO_FAILURE, f"{folder}: {e.strerror}", "network configurations are looked for there (NETCONFPATH)"
        ) from None
    return sorted(files, key=lambda file: (file.suffix != ".conflist", file.name))


def _decode(data: bytes) -> dict[str, Any]:
    try:
        raw = jsontext.decode(data)
    except ValueError as e:
        raise CniError(spec.DECODING_FAILURE, f"is not JSON: {e}") from None
    if not isinstance(raw, dict):
        raise CniError(spec.DECODING_FAILURE, f"expected object, got {type_name(raw)}")
    return raw


def _name(f: Fields) -> str:
    name = f.string("name")
    if not spec.is_name(name):
        raise f.invalid("name", f"{name!r} is no network name" if name else "is missing")
    return name


def _version(f: Fields) -> str:
    """Choose a version: "the highest supported version" of both keys (section 1, "Version considerations")."""
    offered = {f.string("cniVersion"), *f.strings("cniVersions")} - {""} or {spec.ABSENT_VERSION}
    known = [version for version in spec.VERSIONS if version in offered]
    if not known:
        raise CniError(
            spec.INCOMPATIBLE_VERSION,
            f"cniVersion: {', '.join(sorted(offered))} is not supported",
            f"supported are {', '.join(spec.VERSIONS)}",
        )
    return known[-1]


def _plugins(f: Fields) -> tuple[Plugin, ...]:
    plugins = tuple(
        _plugin(plugin, config) for plugin, config in zip(f.objects("plugins"), f.raw("plugins"), strict=True)
    )
    if not plugins:
        raise f.invalid("plugins", "is empty")
    return plugins


def _plugin(f: Fields, config: Mapping[str, Any]) -> Plugin:
    kind = f.string("type")
    if not kind:
        raise f.invalid("type", "is missing")
    if "/" in kind:
        raise f.invalid("type", f"{kind!r} is no plugin's name: it must not contain /")
    switches = f.object("capabilities")
    names = [name for name in f.raw("capabilities") or {} if switches.boolean(name)]
    return Plugin(kind, config, frozenset(names))


def _boolean(f: Fields, key: str) -> bool:
    """Read a boolean, which lists may also write as a string: libcni takes "true"."""
    text = f.raw(key)
    if isinstance(text, str) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return f.boolean(key)
