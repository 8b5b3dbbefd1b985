"""A CNI runtime: runs the plugins of a network for a container. What libcni does for Go.

    from cnikit.networks import load
    from cnikit.runtime import Attachment, Runtime

    network = load("/etc/cni/net.d", "net1")
    runtime = Runtime(path=["/opt/cni/bin"])
    web = Attachment("web", netns="/run/netns/web", capabilities={"portMappings": [{...}]})
    added = runtime.add(network, web)
    added.result.ips[0].address  # "10.1.0.7/24"
    runtime.delete(network, web)

Every verb raises CniError with the code its plugin gave, the plugin's type at the head of the message. As the
specification wants it, two verbs of one container are never run at the same time, nor GC of a network beside anything
else on it: all runtimes with the same cache, in whatever process, wait for each other (cnikit.exclusion). libcni does
not wait. Source: specification sections 2 and 3; repair is this library's own.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cnikit import execution, jsontext, request, result, spec
from cnikit.attachments import DEFAULT_FOLDER, Attachment, Cache, Cached
from cnikit.effects import netns, notes
from cnikit.effects.kernel import World
from cnikit.errors import CniError, collected, invalid_environment
from cnikit.exclusion import PATIENCE, Exclusion
from cnikit.fields import Fields
from cnikit.main import without_bootloader
from cnikit.networks import Network, Plugin
from cnikit.objects import CONTAINER, HOST
from cnikit.plugin import Plugin as OwnPlugin

__all__ = ["Added", "Attachment", "Repaired", "Runtime"]

# The version since which DEL is given the result of the ADD.
_DEL_WITH_RESULT = "0.4.0"


@dataclass(frozen=True)
class Added:
    """What ADD gave: the last plugin's result, and the JSON it printed, in the network's version."""

    result: result.Result
    document: dict[str, Any]


@dataclass(frozen=True)
class Repaired:
    """What repair did for an attachment: by one of its plugins, or, without plugin, as a whole."""

    attachment: Attachment
    plugin: str = ""  # its type
    restored: tuple[str, ...] = ()  # what was put back, as command lines
    left_alone: str = ""  # why nothing could be put back, where that is as it should be
    fault: CniError | None = None  # what is not as it should be still


class Runtime:
    """Runs networks' plugins, looked up in the folders of path, and keeps results in the folder cache.

    A verb that has to wait for another one longer than patience (seconds) is refused with code 11.
    """

    def __init__(
        self, path: Sequence[str | Path], cache: str | Path = DEFAULT_FOLDER, patience: float = PATIENCE
    ) -> None:
        self.path = tuple(map(str, path))
        self.cache = Cache(cache)
        self._exclusion = Exclusion(Path(cache) / "locks", patience)

    def add(self, network: Network, attachment: Attachment) -> Added:
        """Attach a container's interface to a network.

        When a plugin fails, those that ran are given DEL, in reverse, before its error is raised; what went wrong
        with that stands in the error's __notes__. Refused before anything is run (code 4): an interface that the
        cache shows to be attached already, whose clean-up would take away what is there.
        """
        with self._exclusion.beside_others(network.name, attachment.container):
            self._refuse_second(attachment)
            for plugin in network.plugins:
                execution.find(plugin.type, self.path)
            document = self._attach(network, attachment)
        return Added(_parsed(document, network.version), document)

    def _attach(self, network: Network, attachment: Attachment) -> dict[str, Any]:
        document: dict[str, Any] = {}
        ran: list[Plugin] = []
        try:
            for plugin in network.plugins:
                ran.append(plugin)
                document = self._add(network, plugin, attachment, document)
            self.cache.store(network, attachment, document)
        except BaseException as e:
            for fault in self._undo(network, ran, attachment, document):
                e.add_note(f"clean-up: {fault}")
            raise
        return document

    def delete(self, network: Network, attachment: Attachment) -> None:
        """Detach: DEL in reverse order, which ends at the first error so that it can be repeated.

        An attachment that was never added is no error. Arguments and capabilities left out are those of its ADD.
        """
        with self._exclusion.beside_others(network.name, attachment.container):
            self._detach(network, attachment)

    def _detach(self, network: Network, attachment: Attachment) -> None:
        cached = self.cache.find(network.name, attachment)
        attachment, previous = _recalled(attachment, cached), _previous_result(network, cached)
        for plugin in reversed(network.plugins):
            self._run("DEL", network, plugin, attachment, previous)
        self.cache.forget(network.name, attachment)

    def check(self, network: Network, attachment: Attachment) -> None:
        """Ask every plugin, in order, whether the attachment is as its ADD left it.

        A network that disables CHECK is not asked; one too old for it is an error (code 1), and so is an attachment
        that was not added (code 3). Arguments and capabilities left out are those of its ADD.
        """
        if network.disable_check:
            return
        if why := network.declines("CHECK"):
            raise CniError(spec.INCOMPATIBLE_VERSION, f"{network.name} cannot be checked", why)
        with self._exclusion.beside_others(network.name, attachment.container):
            attachment, previous = self._as_added(network, attachment)
            for plugin in network.plugins:
                self._run("CHECK", network, plugin, attachment, previous)

    def repair(self, network: Network, attachments: Iterable[Attachment] | None = None) -> tuple[Repaired, ...]:
        """Put back what was taken from attachments behind the plugins' back: a flush of the host's ruleset does that.

        attachments are all that the cache knows, where none are given. No interface is touched. This suite's plugins
        do it inside this process and are then asked for CHECK, unless the network disables that; another suite's are
        asked for CHECK only. All are gone through, whatever fails, and what became of each is returned, in order;
        an attachment whose namespace is gone is left alone. It begins when nothing else runs on the network: what an
        ADD makes meanwhile may have been taken away, and is not cached yet. After that others may run beside it.
        Raises CniError (code 1) for a network that is too old for CHECK.
        """
        since = spec.SINCE["CHECK"]
        if not spec.at_least(network.version, since):
            why = f"cniVersion is {network.version}, plugins are told what they did since {since}"
            raise CniError(spec.INCOMPATIBLE_VERSION, f"{network.name} cannot be repaired", why)
        with self._exclusion.alone(network.name):
            chosen = self.attachments(network) if attachments is None else tuple(attachments)
        return tuple(
            repaired
            for attachment in chosen
            for repaired in self._repair(network, attachment, known=attachments is None)
        )

    def gc(self, network: Network, keep: Iterable[Attachment] | Callable[[], Iterable[Attachment]]) -> None:
        """Free everything of the network but what belongs to the attachments in keep.

        Cached attachments that are not kept get DEL, then every plugin gets GC, whatever failed before; all faults
        come as one error. A network that disables GC is left alone; one older than GC (1.1.0) gets the DELs only.
        keep may be a function, which is called when nothing else runs on the network: who is alive is known then.
        """
        if network.disable_gc:
            return
        with self._exclusion.alone(network.name):
            self._free(network, keep() if callable(keep) else keep)

    def _free(self, network: Network, keep: Iterable[Attachment]) -> None:
        kept = [attachment.key for attachment in keep]
        stale = [attachment for attachment in self.attachments(network) if attachment.key not in kept]
        faults = []
        for attachment in stale:
            try:
                with self._exclusion.of_container(attachment.container):
                    self._detach(network, attachment)
            except CniError as e:
                faults.append(CniError(e.code, f"DEL of {'/'.join(attachment.key)}: {e.msg}", e.details))
        faults += [] if network.declines("GC") else self._gc(network, kept)
        if faults:
            raise collected(faults, f"gc of {network.name}")

    def status(self, network: Network) -> None:
        """Ask every plugin, in order, whether it could serve an ADD; the first that cannot ends it (codes 50, 51).

        A network older than STATUS (1.1.0) is not asked.
        """
        if network.declines("STATUS"):
            return
        for plugin in network.plugins:
            self._execute("STATUS", plugin, _request(network, plugin))

    def version(self, network: Network) -> dict[str, tuple[str, ...]]:
        """Return the protocol versions each plugin supports, by type."""
        return {plugin.type: self._versions(plugin) for plugin in network.plugins}

    def attachments(self, network: Network) -> tuple[Attachment, ...]:
        """Return the attachments to the network that the cache knows."""
        return tuple(cached.attachment for cached in self.cache.of(network.name))

    def _refuse_second(self, attachment: Attachment) -> None:
        if holder := self.cache.holder(attachment):
            raise invalid_environment(
                "CNI_IFNAME",
                f"{attachment.ifname} of {attachment.container} is attached to {holder.network} already",
                "delete that attachment first, or choose another interface name",
            )

    def _as_added(self, network: Network, attachment: Attachment) -> tuple[Attachment, dict[str, Any]]:
        """Return the attachment with what its ADD was given, and its result. Raises CniError (3) without a result."""
        cached = self.cache.find(network.name, attachment)
        attachment, previous = _recalled(attachment, cached), _previous_result(network, cached)
        if not previous:
            raise CniError(
                spec.UNKNOWN_CONTAINER,
                f"no result is cached of {attachment.ifname} of {attachment.container}",
                "only what was added can be checked",
            )
        return attachment, previous

    def _repair(self, network: Network, attachment: Attachment, known: bool) -> list[Repaired]:
        """Repair one attachment. Nothing became of one that was known, and was deleted since."""
        try:
            with self._exclusion.beside_others(network.name, attachment.container):
                if known and not self.cache.find(network.name, attachment):
                    return []
                attachment, previous = self._as_added(network, attachment)
                _find_interface(attachment, _parsed(previous, network.version))
                return [self._repair_share(network, plugin, attachment, previous) for plugin in network.plugins]
        except FileNotFoundError:
            return [Repaired(attachment, left_alone=f"{attachment.netns} is gone")]
        except CniError as e:
            return [Repaired(attachment, fault=e)]

    def _repair_share(
        self, network: Network, plugin: Plugin, attachment: Attachment, previous: Mapping[str, Any]
    ) -> Repaired:
        """Put back what one plugin made, if it is one of ours, and ask it whether all is well."""
        done = Repaired(attachment, plugin.type)
        try:
            file = execution.find(plugin.type, self.path)
            own = _own(plugin.type, file)
            if own:
                return _repair_by(own, self._asked(network, plugin, attachment, previous), done, network)
            done = replace(done, left_alone=f"{file} is another suite's")
            if not network.disable_check:
                self._run("CHECK", network, plugin, attachment, previous)
        except CniError as e:
            return replace(done, fault=e)
        return done

    def _asked(
        self, network: Network, plugin: Plugin, attachment: Attachment, previous: Mapping[str, Any]
    ) -> request.Request:
        """Return the CHECK that a plugin would be given."""
        variables = {"CNI_COMMAND": "CHECK", "CNI_PATH": ":".join(self.path), **_variables(attachment)}
        environ = {**without_bootloader(os.environ), **variables}
        config = _config(network, plugin, attachment, previous)
        return request.parse(environ, jsontext.encode(config, indent=None).encode)

    def _add(
        self, network: Network, plugin: Plugin, attachment: Attachment, previous: Mapping[str, Any]
    ) -> dict[str, Any]:
        stdout = self._run("ADD", network, plugin, attachment, previous)
        try:
            document = _in_version(_decoded(stdout), network.version)
            _parsed(document, network.version)
        except CniError as e:
            raise CniError(spec.DECODING_FAILURE, f"{plugin.type}: {e.msg}", e.details) from None
        return document

    def _undo(
        self, network: Network, ran: Sequence[Plugin], attachment: Attachment, last: Mapping[str, Any]
    ) -> list[CniError]:
        """Give DEL to the plugins that ran; the last result there was tells them what to look for."""
        previous = last if spec.at_least(network.version, _DEL_WITH_RESULT) else {}
        faults = []
        for plugin in reversed(ran):
            try:
                self._run("DEL", network, plugin, attachment, previous)
            except CniError as e:
                faults.append(e)
        return faults

    def _gc(self, network: Network, kept: Sequence[tuple[str, str]]) -> list[CniError]:
        valid = [{"containerID": container, "ifname": ifname} for container, ifname in kept]
        # The specification's text had the second key for a while, and plugins were written to it.
        keys = {"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}
        faults = []
        for plugin in network.plugins:
            try:
                self._execute("GC", plugin, _request(network, plugin, **keys))
            except CniError as e:
                faults.append(e)
        return faults

    def _versions(self, plugin: Plugin) -> tuple[str, ...]:
        # The old libraries that some plugins are built with want the variables of an ADD here, whatever they hold.
        dummy = dict.fromkeys(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"), "dummy")
        stdout = self._execute("VERSION", plugin, {"cniVersion": spec.NEWEST}, dummy)
        try:
            return Fields(_decoded(stdout)).strings("supportedVersions")
        except CniError as e:
            raise CniError(spec.DECODING_FAILURE, f"{plugin.type}: VERSION: {e.msg}", e.details) from None

    def _run(
        self,
        verb: str,
        network: Network,
        plugin: Plugin,
        attachment: Attachment,
        previous: Mapping[str, Any],
    ) -> bytes:
        """Run a verb that is about an attachment. previous is empty where there is no result yet."""
        return self._execute(verb, plugin, _config(network, plugin, attachment, previous), _variables(attachment))

    def _execute(
        self, verb: str, plugin: Plugin, config: Mapping[str, Any], variables: Mapping[str, str] | None = None
    ) -> bytes:
        return execution.run(
            plugin.type,
            self.path,
            jsontext.encode(config, indent=None).encode(),
            {"CNI_COMMAND": verb, "CNI_PATH": ":".join(self.path), **(variables or {})},
            self._exclusion.held(),
        )


def _own(kind: str, file: str) -> OwnPlugin | None:
    """Return the plugin whose executable this is, when a build of this suite is what lies there.

    Of this very build, when that is what runs: another version's rules may be others.
    """
    real = Path(os.path.realpath(file))
    runtime = Path(sys.prefix).name if hasattr(sys, "frozen") else ".cnikit-*"
    entry = f"{kind} {real.stat().st_size}"
    if not any(entry in listed.read_text().split("\n") for listed in real.parent.glob(f"{runtime}/executables")):
        return None
    try:
        module = importlib.import_module("cnikit.plugins." + kind.replace("-", "_"))
    except ModuleNotFoundError:
        return None
    own: OwnPlugin = module.PLUGIN
    return own


def _repair_by(own: OwnPlugin, asked: request.Request, done: Repaired, network: Network) -> Repaired:
    try:
        done = replace(done, restored=own.repair(asked))
        if not network.disable_check:
            own.check(asked)
    except CniError as e:
        return replace(done, fault=CniError(e.code, f"{own.name}: {e.msg}", e.details))
    finally:
        sys.stderr.write(notes.take(own.name))
    return done


def _find_interface(attachment: Attachment, added: result.Result) -> None:
    """Make sure that the container's interface is the one that was added: the netns may be another container's by now.

    Raises FileNotFoundError when the netns is gone, CniError (101) when the interface is not there or not the same.
    """
    with World(netns.open_netns(attachment.netns)) as world:
        for listed in added.interfaces:
            if not listed.sandbox or listed.name != attachment.ifname:
                continue
            link = world[CONTAINER].link(listed.name)
            if link is None:
                raise CniError(spec.CHECK_FAILED, f"{listed.name} is not in {attachment.netns}", "DEL and ADD make it")
            if listed.mac and link.mac != listed.mac.lower():
                why = f"{listed.name} in {attachment.netns} has the MAC address {link.mac}, not {listed.mac}"
                raise CniError(spec.CHECK_FAILED, why, "it may be another container's")
            # Who has an address after another may have its MAC address too.
            ends = [other.name for other in added.interfaces if not other.sandbox]
            peer = world[HOST].link_at(link.peer) if link.kind == "veth" else None
            if peer and peer.peer == link.index and ends and peer.name not in ends:
                why = f"the other end of {listed.name} in {attachment.netns} is {peer.name}, not {ends[-1]}"
                raise CniError(spec.CHECK_FAILED, why, "it may be another container's")


def _config(network: Network, plugin: Plugin, attachment: Attachment, previous: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a plugin is given on stdin by a verb that is about an attachment."""
    offered = {name: value for name, value in attachment.capabilities.items() if name in plugin.capabilities}
    injected = {"runtimeConfig": offered, "prevResult": previous}
    return _request(network, plugin, **{key: value for key, value in injected.items() if value})


def _variables(attachment: Attachment) -> dict[str, str]:
    return {
        "CNI_CONTAINERID": attachment.container,
        "CNI_NETNS": attachment.netns,
        "CNI_IFNAME": attachment.ifname,
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in attachment.args),
    }


def _request(network: Network, plugin: Plugin, **injected: object) -> dict[str, Any]:
    """Derive a plugin's configuration from its object in the list (section 3, "Deriving request configuration")."""
    given = {"cniVersion": network.version, "name": network.name, **injected}
    # Readers take keys whatever their case, so what is replaced must go in any case.
    replaced = {key.lower() for key in (*given, "capabilities")}
    return {**{key: value for key, value in plugin.config.items() if key.lower() not in replaced}, **given}


def _recalled(attachment: Attachment, cached: Cached | None) -> Attachment:
    """Return the attachment with what its ADD was given where it says nothing.

    Not the netns: a /proc/PID path may be another process's by now.
    """
    if cached is None:
        return attachment
    return replace(
        attachment,
        args=attachment.args or cached.attachment.args,
        capabilities=attachment.capabilities or cached.attachment.capabilities,
    )


def _previous_result(network: Network, cached: Cached | None) -> dict[str, Any]:
    """Return the result of the ADD as the network's version has it, empty where there is none to give."""
    if cached is None or not cached.result or not spec.at_least(network.version, _DEL_WITH_RESULT):
        return {}
    try:
        return _in_version(cached.result, network.version)
    except CniError:
        return {}


def _decoded(stdout: bytes) -> dict[str, Any]:
    try:
        raw = jsontext.decode(stdout)
    except ValueError as e:
        raise CniError(spec.DECODING_FAILURE, f"its output is not JSON: {e}") from None
    if not isinstance(raw, dict):
        raise CniError(spec.DECODING_FAILURE, "its output is no JSON object")
    return raw


def _in_version(raw: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Return a result in that version; one that is keeps what this library does not know."""
    document = {**raw, "cniVersion": raw.get("cniVersion") or version}
    if document["cniVersion"] == version:
        return document
    return result.document(_parsed(document, version), version)


def _parsed(document: dict[str, Any], version: str) -> result.Result:
    return result.parse(Fields(document, "result"), version)
