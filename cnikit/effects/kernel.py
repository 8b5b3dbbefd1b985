"""One network namespace of the running kernel: reads what is there, makes and removes the objects of a plan.

The netlink socket belongs to the namespace it was opened in, so links, addresses and routes need no further setns(2);
sysctls do, as /proc/sys/net is that of the reader, where rtnetlink does not know them.
"""

from __future__ import annotations

import posix

from cnikit import spec
from cnikit.address import broadcast, parse_cidr, parse_mac
from cnikit.effects import files, limit, netns, notes, sysctl
from cnikit.effects.mounted import mounted
from cnikit.effects.netlink import NetlinkError, Socket
from cnikit.errors import CniError
from cnikit.netlink import devconf, rtnetlink
from cnikit.objects import (
    CONTAINER,
    HOST,
    Address,
    Alias,
    Bridge,
    Carrier,
    Device,
    FdbEntry,
    KeptMac,
    Make,
    Port,
    Refusal,
    Remove,
    Route,
    Settled,
    Sysctl,
    Up,
    Veth,
    is_general,
    is_same,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from typing import Any

    from cnikit.effects.iptables import Iptables
    from cnikit.effects.nftables import Nftables, NoNftables
    from cnikit.iptables import Chains
    from cnikit.netlink.codec import Message
    from cnikit.netlink.nftables import Element, Table
    from cnikit.netlink.rtnetlink import BoundAddress, KernelRoute, Link
    from cnikit.objects import Change, Object
    from cnikit.request import Request

NET_ADDR_SET = b"3\n"  # linux/netdevice.h

EPERM, ENOENT, ESRCH, EEXIST, ENODEV, EADDRNOTAVAIL, ETIMEDOUT = 1, 2, 3, 17, 19, 99, 110
_MISSING = (ENOENT, ESRCH, ENODEV, EADDRNOTAVAIL)

# Seconds. A veth has its carrier in a millisecond, DAD ends after 1 to 2 s.
CARRIER_PATIENCE = 5.0
DAD_PATIENCE = 10.0


class Kernel:
    """A namespace, as objects.Namespace describes it."""

    def __init__(self, fd: int | None = None, container: int | None = None) -> None:
        """Open the namespace fd, the process's own without one; container is where the peers of its veths go."""
        self._fd = fd
        self._container = container
        with netns.Inside(fd):
            self._socket = Socket()
        self._nftables: Nftables | NoNftables | None = None
        self._iptables: dict[str, Iptables] = {}
        self._links: dict[str, Link] = {}
        self._settings: dict[str, dict[str, bytearray]] = {}  # by link and family, see devconf
        self._addresses: dict[str, list[BoundAddress]] = {}

    def _forget(self, what: Object) -> None:
        """Drop what was read of an object's link: it changes."""
        if isinstance(what, KeptMac) and _has_mac(self._links.get(what.name)):
            return
        setting = devconf.of_link(what.name) if isinstance(what, Sysctl) else None
        if isinstance(what, Sysctl) and not setting:
            self._links.clear()  # there are some that set others, of single links
            self._settings.clear()
        name = setting[0] if setting else what.name
        self._settings.pop(name, None)
        self._links.pop(name, None)
        self._addresses.pop(name, None)

    def close(self) -> None:
        """Close the sockets."""
        self._socket.close()
        if self._nftables is not None:
            self._nftables.close()

    def link(self, name: str) -> Link | None:
        """Return the link of that name."""
        link = self._links.get(name)
        if link is None:
            # Absence is not remembered: a veth's peer comes to be by a change in the other namespace.
            link = self._get(rtnetlink.get_link(name=name))
            if link:
                self._links[name] = link
        return link

    def link_at(self, index: int) -> Link | None:
        """Return the link with that index."""
        return self._get(rtnetlink.get_link(index=index))

    def _get(self, message: Message) -> Link | None:
        answer = self._socket.exchange([message])[0]
        if answer.errno == ENODEV:
            return None
        if answer.errno:
            raise NetlinkError(answer.errno, answer.why)
        return rtnetlink.link(answer.body)

    def links(self) -> list[Link]:
        """Return all links."""
        found = (rtnetlink.link(body) for body in self._socket.dump(rtnetlink.dump_links()))
        return list({link.index: link for link in found}.values())

    def addresses(self, name: str) -> list[BoundAddress]:
        """Return the addresses of a link."""
        link = self.link(name)
        if link is None:
            return []
        if name not in self._addresses:
            bodies = self._socket.dump(rtnetlink.dump_addresses(link.index))
            self._addresses[name] = [rtnetlink.bound_address(body) for body in bodies]
        return self._addresses[name]

    def routes(self, af: int) -> list[KernelRoute]:
        """Return the routes of a family, of all tables."""
        bodies = self._socket.dump(rtnetlink.dump_routes(af))
        return [route for body in bodies for route in rtnetlink.kernel_routes(body)]

    def way(self, address: bytes) -> str:
        """Return the name of the link by which an address is reached, "" when there is no route."""
        answer = self._socket.exchange([rtnetlink.get_route(address)])[0]
        routes = rtnetlink.kernel_routes(answer.bodies[0]) if answer.bodies else ()
        link = self.link_at(routes[0].oif) if routes else None
        return link.name if link else ""

    def has_fdb_entry(self, port: str, mac: str) -> bool:
        """Tell whether a port's bridge sends what is for a MAC address to that port, whatever it learns."""
        link = self.link(port)
        if link is None or not link.master:
            return False
        answer = self._socket.exchange([rtnetlink.get_fdb_entry(link.index, parse_mac(mac))])[0]
        if answer.errno not in (0, ENOENT):
            raise NetlinkError(answer.errno, answer.why)
        return not answer.errno and rtnetlink.fdb_entry(answer.body) == (link.index, True)

    def sysctl(self, name: str) -> str:
        """Return a sysctl's value. Raises OSError."""
        value = self._told(name)
        if value:
            return value
        with netns.Inside(self._fd):
            return sysctl.read(name)

    def _told(self, name: str) -> str:
        """Return a sysctl's value if rtnetlink tells it, "" otherwise."""
        if name in devconf.FORWARDING:
            answer = self._socket.exchange([devconf.get_forwarding(devconf.FORWARDING[name])])[0]
            return devconf.forwarding(answer.bodies[0]) if answer.bodies else ""
        place = devconf.of_link(name)
        return devconf.value(self._settings_of(*place[:2]), *place[1:]) if place else ""

    def _settings_of(self, name: str, ip: str) -> bytearray:
        """Return the settings of a link."""
        found = self._settings.setdefault(name, {})
        if ip not in found:
            link = self.link(name)
            if link is None:
                return bytearray()
            found[ip] = devconf.settings(link, ip)
        return found[ip]

    def keeps_mac(self, name: str) -> bool:
        """Tell whether somebody has set a link's MAC address; not where that cannot be told."""
        link = self.link(name)
        if link is None:
            return False
        folder = f"class/net/{name}"
        try:
            with netns.Inside(self._fd):
                root, is_ours = mounted("sysfs")
            try:
                # A /sys that was there before may be another namespace's.
                if not is_ours and files.read(f"{folder}/address", folder=root).strip() != link.mac.encode():
                    return False
                return files.read(f"{folder}/addr_assign_type", folder=root) == NET_ADDR_SET
            finally:
                posix.close(root)
        except OSError:
            return False

    def cookie(self) -> int:
        """Return the number that only this namespace has until the next boot, 0 before Linux 5.14, which has none."""
        try:
            return self._socket.namespace()
        except OSError:
            return 0

    def identity(self) -> str:
        """Return what only this namespace is called, even after it is gone; "" before Linux 5.14, which has no such.

        Raises CniError (5).
        """
        cookie = self.cookie()
        try:
            return f"{sysctl.read('kernel/random/boot_id')}/{cookie}" if cookie else ""
        except OSError as e:
            raise CniError(spec.IO_FAILURE, f"/proc/sys/kernel/random/boot_id: {e.strerror}") from None

    def nftables(self) -> Nftables | NoNftables:
        """Return the namespace's nftables ruleset."""
        if self._nftables is None:
            from cnikit.effects.nftables import open_nftables

            with netns.Inside(self._fd):
                self._nftables = open_nftables()
        return self._nftables

    def tables(self) -> frozenset[tuple[str, str]]:
        """Return family and name of all nftables tables there are."""
        return self.nftables().tables()

    def table_fault(self, table: Table) -> CniError | None:
        """Return why an nftables table of ours cannot be made, None when it can be, or is there."""
        return self.nftables().table_fault(table)

    def rules(self, table: Table) -> list[tuple[str, str]]:
        """Return chain and comment of the rules of a table."""
        return self.nftables().rules(table)

    def chains_there(self, table: str, names: Collection[str]) -> set[str]:
        """Return those of these chains that iptables has, of either family and variant."""
        found = self.nftables().chains_there(table, names)
        for version in self.legacy(table):
            found |= self.chains(version, table, "-legacy").keys() & names
        return found

    def dropping(self, hook: str) -> list[tuple[str, str, str]]:
        """Return family, table and name of the nftables chains on a hook that drop what they do not accept."""
        return self.nftables().dropping(hook)

    def element(self, table: Table, wanted: Element) -> Element | None:
        """Return what is in a set under an element's key."""
        return self.nftables().element(table, wanted)

    def held(self, asked: Sequence[tuple[Table, Element]]) -> list[Element]:
        """Return what is there under these keys."""
        return self.nftables().held(asked)

    def elements(self, table: Table, prefix: str) -> list[Element]:
        """Return the elements of a table's sets of which an owner's tag begins so."""
        return self.nftables().elements(table, prefix)

    def iptables(self, variant: str = "") -> Iptables:
        """Return the namespace's iptables rules; variant "-legacy" is the kind nftables does not show."""
        if variant not in self._iptables:
            from cnikit.effects.iptables import Iptables

            self._iptables[variant] = Iptables(self._fd, variant)
        return self._iptables[variant]

    def chains(self, version: int, table: str, variant: str = "") -> Chains:
        """Return the rules of each chain of an iptables table."""
        return self.iptables(variant).chains(version, table)

    def iptables_fault(self, version: int, variant: str = "") -> CniError | None:
        """Return why iptables rules of a family cannot be made, None when there is a program for it."""
        from cnikit.effects import iptables

        return iptables.fault(version, variant)

    def legacy(self, table: str) -> list[int]:
        """Return the families (4, 6) that have a table of the legacy iptables, if there is a program to tell more."""
        versions = _legacy(table)
        if versions:
            from cnikit.effects import iptables

            versions = versions if iptables.has_legacy() else []
        return versions

    def unreadable(self, rules: Sequence[str]) -> str:
        """Return why nft does not understand rules, "" when it does."""
        from cnikit.effects import nft

        return nft.unreadable(rules, self._fd)

    def has_source(self, zone: str, cidr: str) -> bool:
        """Tell whether an address is a source of a zone of firewalld's. Raises CniError when there is no such."""
        from cnikit.effects import firewalld

        return firewalld.has_source(zone, cidr)

    def zone_of(self, cidr: str) -> str:
        """Return the zone an address is a source of, "" when it is none's."""
        from cnikit.effects import firewalld

        return firewalld.zone_of(cidr)

    def change(self, changes: Sequence[Change]) -> list[Refusal | None]:
        """Do these in order, those of nftables, or of iptables, that stand together as one. See objects.Namespace."""
        outcomes: list[Refusal | None] = []
        start = 0
        while start < len(changes) and not any(outcomes):
            kind, end = changes[start].what.transaction, start + 1
            while end < len(changes) and changes[end].what.transaction == kind:
                end += 1
            outcomes += self._maker(kind)(changes[start:end])
            start = end
        return outcomes

    def _maker(self, transaction: str) -> Callable[[Sequence[Change]], Sequence[Refusal | None]]:
        """Return who makes that kind of objects; most of them are seldom needed."""
        if transaction == "nftables":
            return self.nftables().change
        if transaction == "conntrack":
            from cnikit.effects import conntrack

            return lambda changes: conntrack.change(changes, self._fd)
        if transaction == "firewalld":
            from cnikit.effects import firewalld

            return firewalld.change
        if transaction == "nft":
            from cnikit.effects import nft

            return lambda changes: nft.change(changes, self._fd, self.nftables())
        return self.iptables(transaction.removeprefix("iptables")).change if transaction else self._change

    def _change(self, changes: Sequence[Change]) -> list[Refusal | None]:
        """Do these in order, netlink messages that stand together in one sendmsg."""
        outcomes: list[Refusal | None] = []
        waiting: list[tuple[Change, Message]] = []
        with netns.Visit(self._fd) as visit:
            for change in changes:
                message = self._encode(change)
                if message is None and waiting:
                    # It is no message, or it is about a link that one of the waiting messages makes.
                    outcomes += self._send(waiting)
                    waiting = []
                    if any(outcomes):
                        return outcomes
                    message = self._encode(change)
                if message is None:
                    outcomes.append(self._do(change, visit))
                    if outcomes[-1]:
                        return outcomes
                else:
                    waiting.append((change, message))
        return outcomes + self._send(waiting)

    def _encode(self, change: Change) -> Message | None:
        """Return the change as a message; None when it is none, or its link is not there."""
        encoders = _REMOVE if isinstance(change, Remove) else _MAKE
        encoder = encoders.get(type(change.what))
        return encoder(self, change.what) if encoder else change.what.message(isinstance(change, Remove))

    def _send(self, waiting: list[tuple[Change, Message]]) -> list[Refusal | None]:
        if not waiting:
            return []
        for change, _ in waiting:
            self._forget(change.what)
        answers = self._socket.exchange([message for _, message in waiting])
        return [
            Refusal(answer.errno, answer.why) if answer.errno and not _forgiven(change, answer.errno) else None
            for (change, _), answer in zip(waiting, answers, strict=True)
        ]

    def _do(self, change: Change, visit: netns.Visit) -> Refusal | None:
        """Do what is no message."""
        what = change.what
        if isinstance(what, Sysctl):
            return self._write(what, change, visit)
        if isinstance(what, Carrier):
            return self._wait(what, CARRIER_PATIENCE)
        if isinstance(what, Settled):
            return self._wait(what, DAD_PATIENCE)
        return None if isinstance(change, Remove) else Refusal(ENODEV, "")

    def _write(self, what: Sysctl, change: Change, visit: netns.Visit) -> Refusal | None:
        """Set a sysctl that has another value: what is right need not be writable."""
        value = what.before if isinstance(change, Remove) else what.value
        # Nothing else is to be known of lo, so that its file is quicker.
        told = "" if "/conf/lo/" in what.name else self._told(what.name)
        if value is None or (told and is_same(told, value)):
            return None
        visit.enter()
        # What sets others is to do so, whatever its own value is.
        if not told and not is_general(what.name) and _has(what.name, value):
            return None
        try:
            sysctl.write(what.name, value)
        except OSError as e:
            errno = e.errno or 0
            return None if _forgiven(change, errno) or _has(what.name, value) else Refusal(errno, "")
        self._wrote(what, value)
        if what.remark and isinstance(change, Make):
            notes.say(what.remark)
        return None

    def _wrote(self, what: Sysctl, value: str) -> None:
        """Remember a setting of a link: to ask for the link once more would take longer than to write."""
        place = devconf.of_link(what.name)
        settings = self._settings.get(place[0], {}).get(place[1]) if place else None
        if place and settings and devconf.put(settings, *place[1:], value):
            self._addresses.pop(place[0], None)  # IPv6 may be off now
        else:
            self._forget(what)

    def _wait(self, what: Carrier | Settled, patience: float) -> Refusal | None:
        fault = self._fault(what)
        if fault:
            from time import monotonic, sleep  # reads the machine's time zone, which few calls need

            deadline, pause = monotonic() + min(patience, limit.share()), 0.0005
            while fault and monotonic() < deadline:
                sleep(pause)
                pause = min(pause * 2, 0.02)
                fault = self._fault(what)
        return Refusal(ETIMEDOUT, fault) if fault else None

    def _fault(self, what: Carrier | Settled) -> str:
        self._forget(what)
        return what.fault({what.where: self})

    def index(self, name: str) -> int:
        """Return a link's index, 0 when there is none of that name."""
        link = self.link(name)
        return link.index if link else 0

    def container_fd(self) -> int:
        """Return the descriptor of the namespace the peers of veths are made in."""
        if self._container is None:
            raise OSError(ENOENT, "no container namespace is open")
        return self._container


def _legacy(table: str) -> list[int]:
    """Return the families (4, 6) that have a table of the legacy iptables, which nftables does not show."""
    found: list[int] = []
    for version, name in ((4, "ip_tables_names"), (6, "ip6_tables_names")):
        try:
            tables = files.read(f"/proc/thread-self/net/{name}").decode().split()
        except OSError:
            continue
        found += [version] if table in tables else []
    return found


def _has(name: str, value: str) -> bool:
    """Tell whether a sysctl has a value, if that can be read."""
    try:
        return is_same(sysctl.read(name), value)
    except OSError:
        return False


def _has_mac(link: Link | None) -> bool:
    """Tell whether a link has a MAC address: a bridge that has lost its last port may have none left."""
    return link is not None and bool(link.mac.strip("0:"))


def _forgiven(change: Change, errno: int) -> bool:
    if isinstance(change.what, Sysctl) and change.what.optional:
        return True
    if isinstance(change, Remove):
        return errno in _MISSING
    # Two sources may give the very same route: ipam's routes and isDefaultGateway, say.
    return errno == EEXIST and isinstance(change.what, Route)


def _keep_mac(kernel: Kernel, what: KeptMac) -> Message | None:
    link = kernel.link(what.name)
    if link is None:
        return None
    # Locally administered, unicast.
    first, *rest = posix.urandom(6)
    mac = parse_mac(link.mac) if _has_mac(link) else bytes((first & 0xFC | 0x02, *rest))
    return rtnetlink.set_mac(what.name, mac)


def _make_veth(kernel: Kernel, what: Veth) -> Message | None:
    mac = parse_mac(what.mac) if what.mac else b""
    master = kernel.index(what.bridge) if what.bridge else 0
    if what.bridge and not master:
        return None
    return rtnetlink.new_veth(what.name, what.peer, kernel.container_fd(), master, what.mtu, mac)


def _make_fdb_entry(kernel: Kernel, what: FdbEntry) -> Message | None:
    index = kernel.index(what.name)
    return rtnetlink.new_fdb_entry(index, parse_mac(what.mac)) if index else None


def _make_address(kernel: Kernel, what: Address) -> Message | None:
    index, address = kernel.index(what.name), parse_cidr(what.cidr)
    return rtnetlink.new_address(index, *address, broadcast(*address), what.dad) if index else None


def _make_route(kernel: Kernel, what: Route) -> Message | None:
    index = kernel.index(what.name)
    return rtnetlink.new_route(*what.to_kernel(index), what.mtu, what.advmss) if index else None


def _remove_link(kernel: Kernel, what: Veth | Device) -> Message | None:
    index = kernel.index(what.name)
    return rtnetlink.del_link(index) if index else None


def _remove_address(kernel: Kernel, what: Address) -> Message | None:
    index = kernel.index(what.name)
    return rtnetlink.del_address(index, *parse_cidr(what.cidr)) if index else None


_MAKE: dict[type[Object], Callable[[Kernel, Any], Message | None]] = {
    Bridge: lambda _, what: rtnetlink.new_bridge(what.name, what.mtu),
    KeptMac: _keep_mac,
    Veth: _make_veth,
    Alias: lambda _, what: rtnetlink.set_alias(what.name, what.alias),
    Port: lambda _, what: rtnetlink.set_port(what.name, what.hairpin, what.isolated),
    FdbEntry: _make_fdb_entry,
    Up: lambda _, what: rtnetlink.set_flags(what.name, rtnetlink.IFF_UP, rtnetlink.IFF_UP),
    Address: _make_address,
    Route: _make_route,
}
_REMOVE: dict[type[Object], Callable[[Kernel, Any], Message | None]] = {
    Veth: _remove_link,
    Device: _remove_link,
    Up: lambda _, what: rtnetlink.set_flags(what.name, 0, rtnetlink.IFF_UP),
    Address: _remove_address,
}


class World:
    """The host's namespace and, opened when it is first asked for, the container's."""

    def __init__(self, container: int | None = None) -> None:
        """Take the container's namespace as an open descriptor, and close it with the world; None when it is gone."""
        self._container = container
        self._open: dict[str, Kernel] = {HOST: Kernel(None, container)}

    def __getitem__(self, where: str) -> Kernel:
        """Return the namespace HOST or CONTAINER."""
        if where not in self._open:
            if self._container is None:
                raise LookupError(f"there is no {where} namespace")
            self._open[CONTAINER] = Kernel(self._container)
        return self._open[where]

    def has_container(self) -> bool:
        """Tell whether there is a container's namespace."""
        return self._container is not None

    def is_container(self, sandbox: str) -> bool:
        """Tell whether a path names the container's namespace, whatever the path's spelling."""
        return self._container is not None and netns.is_same(self._container, sandbox)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        for kernel in self._open.values():
            kernel.close()
        if self._container is not None:
            posix.close(self._container)


def may_look(world: World) -> bool:
    """Tell whether nftables may be looked at: a process that may not can make no interface either. Raises CniError."""
    try:
        world[HOST].tables()
    except NetlinkError as e:
        if e.errno != EPERM:
            raise
        return False
    return True


def has_own_tables(world: World) -> bool:
    """Tell whether the host has nftables tables of this suite: one look says so. Raises CniError."""
    return may_look(world) and any(name.startswith("cnikit_") for _, name in world[HOST].tables())


def open_world(request: Request) -> World:
    """Open the namespaces a request is about: for DEL one that is gone is left out, for ADD and CHECK it must be there.

    Raises CniError (8).
    """
    try:
        fd = netns.open_netns(request.netns)
    except FileNotFoundError:
        if request.verb == "DEL":
            return World()
        raise netns.missing(request.netns) from None
    try:
        override = request.environ.get("CNI_NETNS_OVERRIDE", "").lower() in ("1", "true")
        if netns.is_own(fd) and not override:
            raise CniError(
                spec.INVALID_NETNS, "plugin's netns and netns from CNI_NETNS should not be the same", request.netns
            )
        return World(fd)
    except BaseException:
        posix.close(fd)
        raise
