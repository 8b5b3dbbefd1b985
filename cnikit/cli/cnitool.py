"""cnitool: run the verbs of a network by hand.

A drop-in for the Go cnitool: the same commands, variables, container ids and cached results. One command is more than
it has: `cnitool repair` puts back what a flush of the host's rules took from running containers.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cnikit import attachments, jsontext, networks, spec
from cnikit.attachments import Attachment, Unreadable
from cnikit.errors import CniError, invalid_environment, printable
from cnikit.liveness import ALIVE, UNKNOWN
from cnikit.networks import Network
from cnikit.runtime import Repaired, Runtime, Standing

DEFAULT_PATH = "/opt/cni/bin"

_ENVIRONMENT = """\
environment:
  CNI_PATH     folders of plugins, separated by colons (default: where a built
               cnitool lies among plugins, else /opt/cni/bin)
  NETCONFPATH  folder of network configurations (default: /etc/cni/net.d)
  CNI_IFNAME   name of the interface in the container (default: eth0)
  CNI_ARGS     KEY=VALUE;KEY=VALUE, for the plugins
  CAP_ARGS     a JSON object: capability to value, for the plugins that enable it

exit status: 0 done, 1 the verb failed, 2 wrong usage
"""

_NETNS = """\
NETNS is a path (/run/netns/NAME, /proc/PID/ns/net), a name known to `ip netns`,
or a process id. The container id is made from the path as it is written, so an
attachment added with one spelling is to be deleted with the same. Where no such
attachment is cached, that of another runtime in the namespace is meant.
"""

_GC = """\
Free what the network holds for attachments that are gone: addresses, ports, rules.
What is kept:

  (neither option)  what is attached, or being attached, by whatever runtime
  --keep ...        only what is named
  --all             nothing: everything is freed, live addresses too

Without an option the host tells what is attached: an interface whose host end is there,
or an address leased in the last five minutes. An attachment is gone when its address
was leased before this boot, when the path of its network namespace and its host end
are gone, or when only rules in our tables of nftables are left of it. What cannot be
told is kept and printed: when not all processes can be seen (run it as root, in the
host's pid namespace), or a cached result cannot be read.

What is gone gets DEL, in all versions of the protocol, with the configuration and the
arguments of its cached result; then the plugins get GC (since 1.1.0). Other runtimes may
add and delete containers meanwhile. The Go cnitool passes no list at all, which is --all
without asking.
"""


_REPAIR = """\
Put back masquerading, published ports and firewall of running containers after
`nft flush ruleset`, `iptables -F` or a reload of firewalld has taken them away.
All attachments in the cached results of the network are gone through, whoever added
them, or only those in the namespace NETNS: a path, a name known to `ip netns` or a
process id. Interfaces are not touched. What the plugins are given comes from the
cached results, of whatever version of libcni; CNI_IFNAME, CNI_ARGS and CAP_ARGS do not
count.

CNI has no verb for it, so it is done here and not by the plugins' executables. Another
suite's plugins are named and left alone. Then CHECK tells what is still not as it should
be. The status is 1 then, and also when something could not be looked at. cnitool may run
on the network meanwhile. Other runtimes do not wait for each other: what one of them adds
meanwhile may need another repair.
"""


class _UsageError(Exception):
    """The command line or a variable is wrong; the message is for a person."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(argv)
    try:
        _COMMANDS[options.verb](options)
    except _UsageError as e:
        _say(options, str(e))
        return 2
    except CniError as e:
        for line in (str(e), *getattr(e, "__notes__", ())):
            _say(options, line)
        return 1
    return 0


def container_id(netns: str) -> str:
    """Return the id that the Go cnitool gives a namespace's container."""
    return "cnitool-" + hashlib.sha512(os.fsencode(netns)).digest()[:10].hex()


def netns_path(text: str) -> str:
    """Return the absolute path of a namespace given as a path, an `ip netns` name or a process id."""
    if "/" in text:
        # POSIX lets a path keep two slashes at its head, and so does Python; Go, whose ids these are to be, does not.
        return "/" + os.path.abspath(text).lstrip("/")
    if text.isascii() and text.isdigit():
        return f"/proc/{text}/ns/net"
    named = [f"{folder}/{text}" for folder in ("/run/netns", "/var/run/netns")]
    return next((path for path in named if os.path.exists(path)), named[0])


def plugin_path() -> list[str]:
    """Return the folders of CNI_PATH, or the default."""
    given = [folder for folder in os.environ.get("CNI_PATH", "").split(":") if folder]
    own = Path(sys.executable).resolve().parent
    # Every suite of plugins has loopback.
    among_plugins = hasattr(sys, "frozen") and (own / "loopback").is_file()
    return given or [str(own) if among_plugins else DEFAULT_PATH]


def _add(options: argparse.Namespace) -> None:
    network, attachment = _network(options), _attachment(options)
    _must_exist(attachment.netns)
    added = _runtime(options).add(network, attachment)
    print(jsontext.encode(added.document))


def _delete(options: argparse.Namespace) -> None:
    network, runtime = _network(options), _runtime(options)
    runtime.delete(network, _added(runtime, network, _attachment(options)))


def _check(options: argparse.Namespace) -> None:
    network, runtime, attachment = _network(options), _runtime(options), _attachment(options)
    _must_exist(attachment.netns)
    if network.disable_check:
        _say_declined(options, network)
    runtime.check(network, _added(runtime, network, attachment))


def _repair(options: argparse.Namespace) -> None:
    network, runtime = _network(options), _runtime(options)
    unreadable = runtime.cache.unreadable(network.name)
    chosen = _chosen(options, network, runtime, unreadable) if options.netns is not None else None
    repaired = runtime.repair(network, chosen)
    for done in repaired:
        if done.restored:
            print(printable(f"{_share(done)}: put back: {'; '.join(map(_in_one_line, done.restored))}"))
        if done.left_alone:
            print(printable(f"{_share(done)}: left alone: {done.left_alone}"))
    faults = [_fault(done, done.fault) for done in repaired if done.fault]
    faults += _of_containers(unreadable, network, chosen)
    if faults:
        first, *others = faults
        for other in others:
            first.add_note(str(other))
        raise first
    if not repaired:
        print("nothing to repair: no attachment is cached")
    elif not any(done.plugin for done in repaired):
        print("nothing to repair: no container is there")
    elif not any(done.restored for done in repaired):
        print("nothing was missing")


def _gc(options: argparse.Namespace) -> None:
    named = [_kept(text) for text in options.keep or ()]
    network, runtime = _network(options), _runtime(options)
    if network.disable_gc:
        _say_declined(options, network)
    keep = named if named or options.all else None
    doing = "would free" if options.dry_run else "freed"
    freed: list[Standing] = []

    def report(one: Standing, is_freed: bool) -> None:
        if is_freed:
            freed.append(one)
            why = one.why if keep is None else "it is not to be kept"
            print(printable(f"{doing} {'/'.join(one.attachment.key)}: {why}"))
        elif keep is None and one.state != ALIVE:
            why = one.why if one.state == UNKNOWN else "it was attached again"
            print(printable(f"kept {'/'.join(one.attachment.key)}: {why}"))

    runtime.gc(network, keep, options.dry_run, report)
    if not freed and not network.disable_gc:
        print("nothing to free")


def _status(options: argparse.Namespace) -> None:
    network = _network(options)
    _say_declined(options, network)
    _runtime(options).status(network)


def _version(options: argparse.Namespace) -> None:
    for kind, versions in _runtime(options).version(_network(options)).items():
        print(printable(f"{kind}: {', '.join(versions)}"))


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "add": _add,
    "del": _delete,
    "check": _check,
    "repair": _repair,
    "gc": _gc,
    "status": _status,
    "version": _version,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cnitool",
        description="Run the verbs of a network by hand.",
        epilog=_ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, what: str, description: str = "") -> argparse.ArgumentParser:
        added = verbs.add_parser(
            name,
            help=what,
            description=description or f"{what[0].upper()}{what[1:]}.",
            epilog=_ENVIRONMENT,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.add_argument("network", metavar="NET", help="name of a network configuration")
        added.add_argument(
            "--cache",
            metavar="DIR",
            default=attachments.DEFAULT_FOLDER,
            help="folder of the cached results (default: %(default)s)",
        )
        return added

    for name, what in (
        ("add", "attach an interface and print the result"),
        ("del", "detach an interface"),
        ("check", "tell whether an attachment is as it was added"),
    ):
        verb(name, what, f"{what[0].upper()}{what[1:]}.\n\n{_NETNS}").add_argument(
            "netns", metavar="NETNS", help="network namespace of the container"
        )
    repair = verb("repair", "put back what a flush of the host's rules took", _REPAIR)
    repair.add_argument("netns", metavar="NETNS", nargs="?", help="network namespace of one container")
    gc = verb("gc", "free what is left of attachments that are gone", _GC)
    choice = gc.add_mutually_exclusive_group()
    choice.add_argument(
        "--keep", metavar="CONTAINERID/IFNAME", nargs="+", action="extend", help="attachments that are alive"
    )
    choice.add_argument("--all", action="store_true", help="free everything: no attachment is alive")
    gc.add_argument("--dry-run", action="store_true", help="print what would be freed, and change nothing")
    verb("status", "tell whether the plugins could serve an add")
    verb("version", "list the protocol versions of each plugin")
    return parser


def _network(options: argparse.Namespace) -> Network:
    return networks.load(os.environ.get("NETCONFPATH") or networks.DEFAULT_FOLDER, options.network)


def _runtime(options: argparse.Namespace) -> Runtime:
    return Runtime(plugin_path(), options.cache)


def _attachment(options: argparse.Namespace) -> Attachment:
    netns = _named_netns(options)
    try:
        return Attachment(
            container_id(netns),
            os.environ.get("CNI_IFNAME") or "eth0",
            netns,
            _arguments(os.environ.get("CNI_ARGS", "")),
            _capabilities(os.environ.get("CAP_ARGS", "")),
        )
    except CniError as e:
        raise _UsageError(str(e)) from None


def _named_netns(options: argparse.Namespace) -> str:
    if not options.netns:
        raise _UsageError("NETNS is empty")
    return netns_path(options.netns)


def _arguments(text: str) -> tuple[tuple[str, str], ...]:
    pairs = [piece.partition("=") for piece in text.rstrip(";").split(";")] if text.rstrip(";") else []
    for key, equals, value in pairs:
        if not equals:
            raise invalid_environment("CNI_ARGS", f"invalid pair {key + value!r}", "write KEY=VALUE;KEY=VALUE")
    return tuple((key, value) for key, _, value in pairs)


def _capabilities(text: str) -> dict[str, object]:
    if not text:
        return {}
    wanted = 'write a JSON object, as in {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'
    try:
        raw = jsontext.decode(os.fsencode(text))
    except ValueError as e:
        raise invalid_environment("CAP_ARGS", f"is not JSON: {e}", wanted) from None
    if not isinstance(raw, dict):
        raise invalid_environment("CAP_ARGS", "is no JSON object", wanted)
    return raw


def _kept(text: str) -> Attachment:
    container, slash, ifname = text.partition("/")
    try:
        if slash:
            return Attachment(container, ifname)
    except CniError as e:
        raise _UsageError(f"--keep {text}: {e}") from None
    raise _UsageError(f"--keep {text}: write CONTAINERID/IFNAME")


def _added(runtime: Runtime, network: Network, attachment: Attachment) -> Attachment:
    """Return what is cached of an interface in a namespace: cnitool's own attachment, or another runtime's."""
    if runtime.cache.find(network.name, attachment):
        return attachment
    known = (one for one in runtime.attachments(network) if one.ifname == attachment.ifname)
    others = [one for one in known if one.netns == attachment.netns or _is_same(one.netns, attachment.netns)]
    if len(others) != 1:
        return attachment
    return replace(attachment, container=others[0].container)


def _chosen(
    options: argparse.Namespace, network: Network, runtime: Runtime, unreadable: Sequence[Unreadable]
) -> list[Attachment]:
    """Return the attachments to repair: those in the namespace that was named."""
    netns = _named_netns(options)
    _must_exist(netns)
    known = list(runtime.attachments(network))
    # What its file's name alone does not tell, the container's id does.
    own = (key for one in unreadable for key in one.candidates(network.name) if key[0] == container_id(netns))
    found = (runtime.cache.find(network.name, Attachment(*key)) for key in own)
    known += [one.attachment for one in found if one]
    chosen = [attachment for attachment in known if _is_same(attachment.netns, netns)]
    if not chosen:
        why = f"no attachment of {netns} to {options.network} is cached"
        error = CniError(spec.UNKNOWN_CONTAINER, why, "only what was added can be repaired")
        for one in unreadable:
            error.add_note(str(_not_repaired(one)))
        raise error
    return chosen


def _is_same(netns: str, other: str) -> bool:
    try:
        return os.path.samefile(netns, other)
    except OSError:
        return False


def _share(done: Repaired) -> str:
    """Say whose: an attachment, and the plugin if it is one's share."""
    return ": ".join(filter(None, ("/".join(done.attachment.key), done.plugin)))


def _fault(done: Repaired, fault: CniError) -> CniError:
    return CniError(fault.code, f"{'/'.join(done.attachment.key)}: {fault.msg}", fault.details)


def _in_one_line(command: str) -> str:
    """Return a command line; of what it is given as a document only the head."""
    first, *rest = command.splitlines()
    return " ".join([first, rest[0].strip(), "..."]) if rest else first


def _of_containers(
    unreadable: Sequence[Unreadable], network: Network, chosen: Sequence[Attachment] | None
) -> list[CniError]:
    """Return the faults of cached results that were not repaired: of all, or those that may be of the chosen."""
    if chosen is None:
        return [_not_repaired(one) for one in unreadable]
    keys, containers = {one.key for one in chosen}, {one.container for one in chosen}
    return [
        _not_repaired(one)
        for one in unreadable
        if any(key[0] in containers and key not in keys for key in one.candidates(network.name))
    ]


def _not_repaired(one: Unreadable) -> CniError:
    return CniError(
        spec.IO_FAILURE,
        f"{one.file}: cannot be read, so its attachment is not repaired: {one.fault}",
        "remove the file if that container is gone",
    )


def _must_exist(netns: str) -> None:
    if not os.path.exists(netns):
        raise CniError(spec.INVALID_NETNS, f"{netns} does not exist", "`ip netns add NAME` makes a namespace")


def _say_declined(options: argparse.Namespace, network: Network) -> None:
    if why := network.declines(options.verb.upper()):
        _say(options, f"the plugins are not asked: {why}")


def _say(options: argparse.Namespace, text: str) -> None:
    """Print one line on stderr, whatever lines the text has."""
    print(printable(f"cnitool: {options.verb} {options.network}: {' '.join(text.split())}"), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
