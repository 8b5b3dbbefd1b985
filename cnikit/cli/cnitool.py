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
from pathlib import Path

from cnikit import attachments, jsontext, networks, spec
from cnikit.attachments import Attachment
from cnikit.errors import CniError, invalid_environment, printable
from cnikit.networks import Network
from cnikit.runtime import Repaired, Runtime

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
attachment added with one spelling is to be deleted with the same.
"""

_GC = """\
Free what the network holds for attachments that are no longer: addresses, ports,
rules. What is still attached must be told to the plugins:

  (neither option)  everything in the cached results of this network
  --keep ...        only what is named
  --all             nothing: everything is freed, live addresses too

The Go cnitool passes no list at all, which is --all without asking. It waits until
no other cnitool runs on the network. Other runtimes do not wait for each other: with
them nothing may be added to or deleted from the network meanwhile.
"""


_REPAIR = """\
Put back masquerading, published ports and firewall of running containers after
`nft flush ruleset`, `iptables -F` or a reload of firewalld has taken them away.
All attachments in the cached results of the network are gone through, whoever added
them, or only those in the namespace NETNS: a path, a name known to `ip netns` or a
process id. Interfaces are not touched. What the plugins are given comes from the
cached results; CNI_IFNAME, CNI_ARGS and CAP_ARGS do not count.

CNI has no verb for it, so it is done here and not by the plugins' executables. Another
suite's plugins are named and left alone. Then CHECK tells what is still not as it should
be, and the status is 1. cnitool may run on the network meanwhile. Other runtimes do not
wait for each other: what one of them adds meanwhile may need another repair.
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
    _runtime(options).delete(_network(options), _attachment(options))


def _check(options: argparse.Namespace) -> None:
    network, attachment = _network(options), _attachment(options)
    _must_exist(attachment.netns)
    if network.disable_check:
        _say_declined(options, network)
    _runtime(options).check(network, attachment)


def _repair(options: argparse.Namespace) -> None:
    network, runtime = _network(options), _runtime(options)
    chosen = _chosen(options, runtime.attachments(network)) if options.netns is not None else None
    repaired = runtime.repair(network, chosen)
    for done in repaired:
        if done.restored:
            print(printable(f"{_share(done)}: put back: {'; '.join(map(_in_one_line, done.restored))}"))
        if done.left_alone:
            print(printable(f"{_share(done)}: left alone: {done.left_alone}"))
    faults = [_fault(done, done.fault) for done in repaired if done.fault]
    faults += [] if options.netns else _unreadable(network, runtime)
    if faults:
        first, *others = faults
        for other in others:
            first.add_note(str(other))
        raise first
    if not any(done.restored for done in repaired):
        print("nothing was missing" if repaired else "nothing to repair: no attachment is cached")


def _gc(options: argparse.Namespace) -> None:
    named = [_kept(text) for text in options.keep or ()]
    network, runtime = _network(options), _runtime(options)
    _say_declined(options, network)
    runtime.gc(network, named if named or options.all else lambda: _all_cached(network, runtime))


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


def _all_cached(network: Network, runtime: Runtime) -> list[Attachment]:
    """Return all that is known to be alive; refuse to know nothing, or less than there is."""
    if broken := runtime.cache.broken(network.name):
        raise CniError(
            spec.IO_FAILURE,
            f"{broken[0]}: cannot be read, so its attachment cannot be kept",
            "remove the file if that container is gone, or name what is alive with --keep",
        )
    known = list(runtime.attachments(network))
    if not known:
        raise CniError(
            spec.INVALID_ENVIRONMENT,
            "no attachment is cached, so everything would be freed",
            "say --all if that is meant, or name what is alive with --keep",
        )
    return known


def _chosen(options: argparse.Namespace, known: Sequence[Attachment]) -> list[Attachment]:
    """Return the attachments to repair: those in the namespace that was named."""
    netns = _named_netns(options)
    _must_exist(netns)
    chosen = [attachment for attachment in known if _is_same(attachment.netns, netns)]
    if not chosen:
        why = f"no attachment of {netns} to {options.network} is cached"
        raise CniError(spec.UNKNOWN_CONTAINER, why, "only what was added can be repaired")
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


def _unreadable(network: Network, runtime: Runtime) -> list[CniError]:
    return [
        CniError(
            spec.IO_FAILURE,
            f"{file}: cannot be read, so its attachment is not repaired",
            "remove the file if that container is gone",
        )
        for file in runtime.cache.broken(network.name)
    ]


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
