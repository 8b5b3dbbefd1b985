"""tuning: an interface's sysctls and link settings, for as long as it is attached.

    {
        "cniVersion": "1.1.0",
        "name": "web",
        "plugins": [
            {"type": "bridge", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]]}},
            {
                "type": "tuning",
                "capabilities": {"mac": true},
                "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "500"},
                "mtu": 1400
            }
        ]
    }

A chained plugin: it comes behind the one that makes CNI_IFNAME. All keys are optional; what is absent is not touched.

| key | |
| --- | --- |
| sysctl | values (strings) by name, all of them of net.*; the first IFNAME in a name stands for CNI_IFNAME |
| mac | the MAC address |
| promisc | true or false: the interface takes every frame |
| mtu | bytes; 0 is as good as absent |
| allmulti | true or false: the interface takes every multicast frame |
| txQLen | the length of the transmit queue, packets |
| dataDir | where former values are kept until DEL, /run/cni/tuning if absent |

`args.cni` may have all but dataDir, and what it has wins, sysctl by sysctl. The MAC address may also be in CNI_ARGS
(`MAC`) and `runtimeConfig.mac` (capability `mac`); of `mac`, these two and `args.cni.mac`, in this order, the last one
given wins.

The separator that comes first in a sysctl's name decides: net.ipv4.conf.eth0/100.forwarding and
net/ipv4/conf/eth0.100/forwarding are the same, as for sysctl(8), and giving both is refused. If there is a file
/etc/cni/tuning/allowlist.conf, each of its lines is a regular expression, and ADD takes only sysctls in whose name, as
it is written, one of them is found. conf.all and ip_forward, which change others, are set first.

Result: prevResult, with the MAC address of CNI_IFNAME and, where it lists one or cniVersion is 1.1.0, its MTU.

ADD first writes the values it finds to dataDir/CONTAINERID_IFNAME.json, as the reference does (cnikit/effects/backup.py
describes the file, which each can read); a repeated ADD keeps those of the first. When it fails it takes back what it
did. What has its value already is not written. DEL puts all back and removes the file. What it cannot put back is an
error once; the next DEL tries once more and then gives up, with a line on stderr. It needs dataDir and nothing else of
the configuration, and nothing is amiss when namespace or interface are gone. Another interface that has come to have
the name is not touched. A sysctl that cannot be read (some can only be written) is not put back. A file that another
user may have written, by its owner and mode or those of a folder above it, is not followed, and ADD refuses to keep
values there. CHECK compares everything configured. GC removes the files of this network's attachments that are gone.

Unlike the reference: sysctls are put back; DEL says what it could not put back, and leaves no file behind; promisc can
be set to false; CHECK compares MAC addresses and sysctls by what they mean (case, blanks), and promisc only when it is
configured; an MTU that would take IPv6 off an interface that has addresses of it is refused.
"""

from __future__ import annotations

from cnikit import chained, configure, jsontext, result, spec
from cnikit.address import format_mac, parse_mac
from cnikit.effects import backup, files, notes
from cnikit.effects.backup import Backup
from cnikit.effects.kernel import World, open_world
from cnikit.effects.sysctl import is_net
from cnikit.errors import CniError, collected, invalid_config, invalid_environment
from cnikit.fields import Fields, type_name
from cnikit.main import main
from cnikit.objects import CONTAINER, Sysctl, is_general
from cnikit.plan import Add, Del, Set, apply, remove
from cnikit.plugin import Plugin
from cnikit.request import Attachment
from cnikit.result import Interface, Result
from cnikit.settings import AllMulticast, Mac, Mtu, Promiscuous, QueueLength
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cnikit.objects import Object
    from cnikit.request import Request
    from cnikit.settings import Setting

DATA_DIR = "/run/cni/tuning"
ALLOW_LIST = "/etc/cni/tuning/allowlist.conf"

# By configuration key, in the order they are set in.
SETTINGS: dict[str, type[Setting]] = {
    "mac": Mac,
    "promisc": Promiscuous,
    "mtu": Mtu,
    "allmulti": AllMulticast,
    "txQLen": QueueLength,
}

EIO, EACCES = 5, 13


class Wanted(Value):
    """A sysctl to set: its key as it is written and where that is, its name with slashes, its value."""

    key: str
    path: str
    name: str
    value: str


class Conf(Value):
    """The configuration, checked: sysctls in the order they are set in, link settings by key."""

    sysctls: tuple[Wanted, ...]
    link: dict[str, Any]


def parse(request: Request) -> Conf:
    """Read the configuration. Raises CniError."""
    _data_dir(request)
    return Conf(_sysctls(request), _link(request))


def _data_dir(request: Request) -> str:
    folder = request.config.string("dataDir") or DATA_DIR
    if not folder.startswith("/"):
        raise request.config.invalid("dataDir", f"{folder!r} is not absolute")
    return folder


def _overrides(request: Request) -> Fields:
    return request.config.object("args").object("cni")


def _link(request: Request) -> dict[str, Any]:
    found = {"mac": _mac(request)}
    reads: dict[str, Callable[[Fields, str], Any]] = {
        "promisc": Fields.boolean,
        "mtu": lambda fields, _: configure.mtu(fields),
        "allmulti": Fields.boolean,
        "txQLen": Fields.integer,
    }
    for fields in (request.config, _overrides(request)):
        found.update({key: read(fields, key) for key, read in reads.items() if fields.has(key)})
    unset: dict[str, Any] = {"mac": "", "mtu": 0}
    return {key: found[key] for key in SETTINGS if key in found and found[key] != unset.get(key)}


def _mac(request: Request) -> str:
    def read(text: str) -> str:
        return format_mac(parse_mac(text))

    given = request.arguments().get("MAC", "")
    try:
        argument = read(given) if given else None
    except ValueError as e:
        raise invalid_environment("CNI_ARGS", f"MAC: {e}") from None
    sources = (request.config, request.config.object("runtimeConfig"), _overrides(request))
    configured, by_runtime, by_args = (fields.parsed("mac", read) for fields in sources)
    return by_args or by_runtime or argument or configured or ""


def _sysctls(request: Request) -> tuple[Wanted, ...]:
    found: dict[str, Wanted] = {}
    for fields, path in ((request.config, ("sysctl",)), (_overrides(request), ("args", "cni", "sysctl"))):
        found.update(_named(fields, path, request) if fields.has("sysctl") else {})
    return tuple(sorted(found.values(), key=lambda wanted: not is_general(wanted.name)))


def _named(fields: Fields, path: tuple[str, ...], request: Request) -> dict[str, Wanted]:
    """Return the sysctls of one object of the configuration by name; one that is there twice is refused."""
    where = fields.object("sysctl").path
    found: dict[str, Wanted] = {}
    for key, value in _pairs(jsontext.pairs(request.stdin), path):
        wanted = _wanted(key, value, f"{where}.{key}", request.attachment.ifname)
        if wanted.name in found:
            raise invalid_config(wanted.path, f"{wanted.name} is given twice", f"first as {found[wanted.name].key}")
        found[wanted.name] = wanted
    return found


def _pairs(document: Any, path: tuple[str, ...]) -> Any:
    """Return the keys and values of the object at a path, found as Fields finds it: a repeated key is there twice."""
    for step in path:
        document = [value for key, value in document if key.lower() == step and value is not None][-1]
    return document


def _wanted(key: str, value: Any, path: str, ifname: str) -> Wanted:
    first = next((c for c in key if c in "./"), "")
    name = key if first == "/" else key.translate({ord("."): "/", ord("/"): "."})
    if not (is_net(name) and name.isprintable()):
        raise invalid_config(path, "is the name of no net.* sysctl", "others are not the network's to change")
    if not isinstance(value, str):
        raise invalid_config(path, f"expected string, got {type_name(value)}")
    value = value.strip()
    if not value.replace("\t", " ").isprintable():
        raise invalid_config(path, f"{value!r} is no value of a sysctl")
    return Wanted(key, path, name.replace("IFNAME", ifname, 1), value)


def _refuse_not_allowed(conf: Conf) -> None:
    if not conf.sysctls:
        return
    try:
        lines = files.read(ALLOW_LIST).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return
    except OSError as e:
        raise CniError(spec.IO_FAILURE, f"{ALLOW_LIST}: {e.strerror}") from None
    import re

    allowed = [line.strip() for line in lines if line.strip()]
    try:
        patterns = [re.compile(line) for line in allowed]
    except re.error as e:
        raise CniError(spec.INVALID_CONFIG, f"{ALLOW_LIST}: {e.pattern!r} is no regular expression: {e.msg}") from None
    for wanted in conf.sysctls:
        if not any(pattern.search(wanted.key) for pattern in patterns):
            details = f"only these are: {' '.join(allowed)}" if allowed else "it is empty, so none is"
            raise invalid_config(wanted.path, f"is not allowed by {ALLOW_LIST}", details)


def plan(ifname: str, sysctls: dict[str, str], link: dict[str, Any], before: Backup | None) -> tuple[Object, ...]:
    """Return what is to be set, and with a backup what it was before."""
    former, former_link = (before.sysctl, before.link) if before else ({}, {})
    return (
        *(Sysctl(CONTAINER, name, value, before=former.get(name)) for name, value in sysctls.items()),
        *(SETTINGS[key](CONTAINER, ifname, value, former_link.get(key)) for key, value in link.items()),
    )


def _plan(conf: Conf, request: Request, before: Backup | None = None) -> tuple[Object, ...]:
    return plan(request.attachment.ifname, {w.name: w.value for w in conf.sysctls}, conf.link, before)


def add(request: Request) -> Result:
    """Set what is configured, the values of before kept."""
    conf = parse(request)
    _refuse_not_allowed(conf)
    previous = chained.previous(request)
    configure.fits(conf.link.get("mtu", 0), previous)
    tuned = _tuned(previous, conf, request)
    # Here already, not when the work is done.
    result.document(tuned, request.version)
    with open_world(request) as world:
        if conf.sysctls or conf.link:
            _tune(conf, request, world)
    return tuned


def _tuned(previous: Result, conf: Conf, request: Request) -> Result:
    shows_mtu = spec.at_least(request.version, "1.1.0")

    def tuned(listed: Interface) -> Interface:
        if listed.name != request.attachment.ifname or not listed.sandbox:
            return listed
        mtu = conf.link.get("mtu", 0) if shows_mtu or listed.mtu else 0
        return listed.replace(mac=conf.link.get("mac", listed.mac), mtu=mtu or listed.mtu)

    return previous.replace(interfaces=tuple(tuned(listed) for listed in previous.interfaces))


def _tune(conf: Conf, request: Request, world: World) -> None:
    path = _path(request)
    found = _found(conf, request, world)
    kept = _kept(path, request.attachment, found)
    whole = _joined(kept, found) if kept else found
    if whole != kept:
        backup.save(path, whole)
    try:
        apply(tuple(Add(what) for what in _plan(conf, request, found)), world)
    except BaseException:
        # What could not be taken back is DEL's to put back, which follows a failed ADD.
        if _is_untouched(conf, request, world, found):
            _take_back(path, kept)
        raise


def _path(request: Request) -> str:
    return backup.path_of(_data_dir(request), request.attachment.container, request.attachment.ifname)


def _found(conf: Conf, request: Request, world: World) -> Backup:
    """Return the present values of what is configured. Raises CniError when there is no such link or sysctl."""
    inside, whose = world[CONTAINER], request.attachment
    link = inside.link(whose.ifname)
    if link is None and conf.link:
        raise invalid_environment(
            "CNI_IFNAME",
            f"there is no {whose.ifname} in {request.netns}",
            "the plugin that makes it comes first",
        )
    return Backup(
        network=whose.network,
        container=whose.container,
        ifname=whose.ifname,
        netns=inside.identity(),
        index=link.index if link else 0,
        link={key: SETTINGS[key].read(link) for key in conf.link} if link else {},
        sysctl=_present(conf, world),
    )


def _present(conf: Conf, world: World) -> dict[str, str]:
    values = {}
    for wanted in conf.sysctls:
        try:
            values[wanted.name] = world[CONTAINER].sysctl(wanted.name)
        except OSError as e:
            # Some can only be written, or not be read before they are.
            if e.errno not in (EIO, EACCES):
                raise invalid_config(wanted.path, f"{wanted.name} in the container: {e.strerror}") from None
    return values


def _kept(path: str, attachment: Attachment, found: Backup) -> Backup | None:
    """Return what an earlier ADD kept of this very interface."""
    kept = backup.load(path)
    if kept is None:
        return None
    if not _is_of(kept, attachment):
        raise CniError(
            spec.INVALID_CONFIG,
            f"dataDir: {path} belongs to container {kept.container} {kept.ifname}",
            "a network with another dataDir can have both",
        )
    same = kept.netns in ("", found.netns) and kept.index in (0, found.index)
    return kept if same else None


def _is_of(kept: Backup, attachment: Attachment) -> bool:
    return kept.container in ("", attachment.container) and kept.ifname in ("", attachment.ifname)


def _joined(kept: Backup, found: Backup) -> Backup:
    """Return both, where the values that were kept first are the original ones."""
    return found.replace(link={**found.link, **kept.link}, sysctl={**found.sysctl, **kept.sysctl})


def _is_untouched(conf: Conf, request: Request, world: World, found: Backup) -> bool:
    try:
        return _found(conf, request, world) == found
    except CniError:
        return False


def _take_back(path: str, kept: Backup | None) -> None:
    try:
        if kept:
            backup.save(path, kept)
        else:
            backup.forget(path)
    except CniError:
        return  # DEL will come upon it; what failed first is the error to tell.


def delete(request: Request) -> None:
    """Put everything back. Namespace, interface or file may be gone."""
    path = _path(request)
    kept = backup.load(path)
    if kept and not _is_of(kept, request.attachment):
        return
    faults = _put_back(kept, request) if kept else []
    if faults and kept and not kept.failed:
        _note_failure(path, kept)
        raise collected(faults, "DEL")
    for fault in faults:
        notes.say(f"not put back: {fault}")
    backup.forget(path)


def _put_back(kept: Backup, request: Request) -> list[CniError]:
    try:
        return _restore(kept, request)
    except CniError as e:
        return [e]


def _note_failure(path: str, kept: Backup) -> None:
    """Have the next DEL be the last one that tries: as long as it fails the runtime keeps the container."""
    try:
        backup.save(path, kept.replace(failed=True))
    except CniError:
        return


def _restore(kept: Backup, request: Request) -> list[CniError]:
    with open_world(request) as world:
        if not world.has_container() or kept.netns not in ("", world[CONTAINER].identity()):
            return []
        ifname = request.attachment.ifname
        link = world[CONTAINER].link(ifname)
        same = link is not None and kept.index in (0, link.index)
        general_first = sorted(kept.sysctl, key=lambda name: not is_general(name))
        # What is not the interface's own is put back even when that is gone.
        sysctl = {name: kept.sysctl[name] for name in general_first if same or ifname not in name.split("/")}
        former = kept.link if same else {}
        settings = {key: value for key, value in former.items() if link and SETTINGS[key].read(link) != value}
        was = plan(ifname, {}, settings, kept)[::-1] + plan(ifname, sysctl, {}, kept)
        return remove([Del(what) for what in was], world)


def check(request: Request) -> None:
    """Raise CniError when something configured is not as configured."""
    conf = parse(request)
    chained.previous(request)
    with open_world(request) as world:
        chained.check(tuple(Set(what) for what in _plan(conf, request)), world)


def gc(request: Request) -> None:
    """Remove the files of this network's attachments that are not valid any more. Those of the reference name none."""
    from cnikit import ownership, ruleset

    faults = []
    with World() as world:
        whose = ruleset.whose_to_remove(request, world)
        for path in backup.paths(_data_dir(request)):
            try:
                kept = backup.load(path)
                if kept and whose(ownership.tag(Attachment(kept.network, kept.container, kept.ifname))):
                    backup.forget(path)
            except CniError as e:
                faults.append(e)
    if faults:
        raise collected(faults, "GC")


def status(request: Request) -> None:
    """Raise CniError when the configuration is wrong, or nothing can be written to dataDir."""
    from cnikit.effects.leases import write_fault

    _refuse_not_allowed(parse(request))
    fault = write_fault(_data_dir(request))
    if fault:
        raise CniError(spec.UNAVAILABLE, f"former values cannot be kept: {fault}", "dataDir says where they are")


PLUGIN = Plugin("tuning", add=add, delete=delete, check=check, gc=gc, status=status)

if __name__ == "__main__":
    main(PLUGIN)
