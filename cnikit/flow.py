"""The flow that all plugins share which give a container an interface.

    ADD     parse -> preflight -> IPAM -> plan -> preflight -> apply -> result
    DEL     links by their tag, or by name -> IPAM
    CHECK   IPAM -> the plan rebuilt from prevResult -> verify
    GC      tagged links nobody lists -> IPAM
    STATUS  parse -> what ADD would share -> IPAM

Everything is checked before anything is touched. A failed ADD takes back what it did and then its addresses; DEL and
GC finish what they can and report faults at the end.
"""

from __future__ import annotations

from cnikit import ownership, result, spec
from cnikit.address import is_loopback, parse_cidr
from cnikit.effects import delegate
from cnikit.effects.kernel import World, has_own_tables, open_world
from cnikit.errors import CniError, collected, invalid_config
from cnikit.objects import CONTAINER, HOST, Device
from cnikit.plan import Del, Ensure, Step, apply, clear, mend, preflight, refuse_impossible, undo, verify
from cnikit.plugin import Plugin
from cnikit.result import Interface, Result
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from cnikit.netlink.rtnetlink import Link
    from cnikit.objects import Object
    from cnikit.request import Attachment, Request

    # The steps that take something away.
    Listing = Callable[[], Sequence[Step]]


class Ends(Value):
    """What an interface of a container is made of, by name: links of the host's, the last one its veth's host end."""

    attachment: Attachment
    sandbox: str
    host_end: str

    @property
    def ifname(self) -> str:
        """Return the name of the container's end."""
        return self.attachment.ifname

    @property
    def tag(self) -> str:
        """Return what its links and rules are marked with."""
        return ownership.tag_of(self.attachment, self.host_end)


class InterfaceKind(Value):
    """What is different about a plugin that makes interfaces. All but leavings and parting is pure.

    parse: the configuration, everything in it checked.
    settle: what IPAM gave, completed by what the configuration says (gateways, routes, dns).
    plan: the steps that make it; with an empty Result, before IPAM was asked, those for the links.
    host_links: the names of the host's links that the result lists.
    leavings: what is beside the links, each function listing some: on DEL the attachment's, on GC what nobody lists.
    parting: what is done before DEL deletes the container's end, which it is given a function to find (None if it is
        not there); what goes wrong there is passed over.
    """

    name: str
    parse: Callable[[Request], Any]
    settle: Callable[[Any, Result], Result]
    plan: Callable[[Any, Result, Ends], tuple[Step, ...]]
    host_links: Callable[[Any, Ends], tuple[str, ...]]
    leavings: Callable[[Request, World], list[Listing]]
    parting: Callable[[Request, World, Callable[[], Link | None]], None]


def interface(kind: InterfaceKind) -> Plugin:
    """Make the plugin: the verbs of an interface kind."""
    return Plugin(
        kind.name,
        add=lambda request: _add(kind, request),
        delete=lambda request: _delete(kind, request),
        check=lambda request: _check(kind, request),
        gc=lambda request: _gc(kind, request),
        status=lambda request: _status(kind, request),
        repair=lambda request: _repair(kind, request),
        tags_links=True,
    )


def _add(kind: InterfaceKind, request: Request) -> Result:
    conf = kind.parse(request)
    ipam = delegate.ipam_type(request)
    previous = request.prev_result() or Result()
    if not ipam:
        # Here already, not when the work is done.
        result.document(previous, request.version)
    with open_world(request) as world:
        ends = _new_ends(request, world)
        preflight(kind.plan(conf, Result(), ends), world)
        leases = _leases(request.replace(cookie=world[CONTAINER].cookie())) if ipam else Result()
        added: list[Object] = []
        try:
            leases = kind.settle(conf, leases)
            _clear_away(request, leases, world)
            plan = kind.plan(conf, leases, ends)
            # What is shared may depend on the addresses: the bridge's own.
            preflight([step for step in plan if isinstance(step, Ensure)], world)
            added = apply(plan, world)
            return _joined(_made(kind, conf, leases, ends, world), previous)
        except BaseException as e:
            undo(added, world, e)
            if ipam and not _is_left(ends, world):
                _give_back(request, e)
            raise


def _clear_away(request: Request, leases: Result, world: World) -> None:
    """Have nothing lead to the addresses, or be keyed by them, that a dead owner left. Raises CniError."""
    if leases.ips and has_own_tables(world):
        from cnikit import leftovers

        leftovers.clear(request.attachment, leases.ips, world)


def _is_left(ends: Ends, world: World) -> bool:
    """Tell whether the interface is there although its ADD failed, as far as can be told: then it has its addresses.

    It could not be undone, or is that of another ADD of the same attachment, which was given the same addresses.
    """
    try:
        return world[HOST].link(ends.host_end) is not None
    except CniError:
        return True


def _leases(request: Request) -> Result:
    leases = delegate.serve(request, "ADD") or Result()
    fault = "" if leases.ips else "gave no address"
    for ip in leases.ips:
        if ip.gateway and (":" in ip.gateway) != (":" in ip.address):
            fault = f"gave {ip.address} a gateway of the other family, {ip.gateway}"
    if fault:
        error = CniError(spec.DELEGATE_FAILED, f"ipam.type: {delegate.ipam_type(request)} {fault}")
        _give_back(request, error)
        raise error
    return leases


def _give_back(request: Request, cause: BaseException) -> None:
    """Release the addresses of a failed ADD; when that fails too, the cause says so."""
    try:
        delegate.serve(request, "DEL")
    except CniError as e:
        if isinstance(cause, CniError):
            cause.details = "; ".join(filter(None, (cause.details, f"addresses not released: {e}")))


def _new_ends(request: Request, world: World) -> Ends:
    """Choose the host end's name: the usual one, or the next where another attachment's hash is the same."""
    tag = ownership.tag(request.attachment)
    names = ownership.names_of(tag)
    for name in names:
        link = world[HOST].link(name)
        if link is None or link.alias == tag:
            return Ends(request.attachment, request.netns, name)
    raise CniError(spec.TRY_AGAIN, f"the names {', '.join(names)} are all taken by other containers' interfaces")


def _made(kind: InterfaceKind, conf: Any, leases: Result, ends: Ends, world: World) -> Result:
    """Return the result: the links as the kernel has them, the addresses on the container's."""
    names = kind.host_links(conf, ends)
    interfaces = [Interface(name, _mac(world[HOST].link(name))) for name in names]
    interfaces.append(Interface(ends.ifname, _mac(world[CONTAINER].link(ends.ifname)), sandbox=ends.sandbox))
    ips = tuple(ip.replace(interface=len(names)) for ip in leases.ips)
    return leases.replace(interfaces=tuple(interfaces), ips=ips)


def _mac(link: Link | None) -> str:
    return link.mac if link else ""


def _joined(made: Result, previous: Result) -> Result:
    """Put before what earlier plugins of a list gave what was made: "must ... output prevResult, possibly modified".

    Runtimes take the first address of a family for the container's. Nothing is kept of what loopback says of lo.
    """
    kept = [i for i, link in enumerate(previous.interfaces) if link.name != "lo" or not link.sandbox]
    places = {old: len(made.interfaces) + new for new, old in enumerate(kept)}
    ips = tuple(
        ip.replace(interface=None if ip.interface is None else places[ip.interface])
        for ip in previous.ips
        if (ip.interface is None or ip.interface in places) and not is_loopback(parse_cidr(ip.address)[0])
    )
    return Result(
        interfaces=(*made.interfaces, *(previous.interfaces[i] for i in kept)),
        ips=made.ips + ips,
        routes=made.routes + previous.routes,
        dns=made.dns if made.dns != result.DNS() else previous.dns,
    )


def _delete(kind: InterfaceKind, request: Request) -> None:
    faults = _detach(kind, request)
    _delegated(request, "DEL", faults)
    if faults:
        raise collected(faults, "DEL")


def _detach(kind: InterfaceKind, request: Request) -> list[CniError]:
    """Take away the attachment's rules, then its links; return what went wrong."""
    unusable: CniError | None = None
    try:
        world = open_world(request)
    except CniError as e:
        unusable, world = e, World()
    with world:
        return clear((*kind.leavings(request, world), lambda: _ends(kind, request, world, unusable)), world)


def _ends(kind: InterfaceKind, request: Request, world: World, unusable: CniError | None) -> list[Step]:
    """Return the end to delete. A namespace of no use matters only if it is needed."""
    ends = _host_ends(request, world)
    if unusable and not ends:
        raise unusable
    ends = ends or _container_end(request, world)
    _part(kind, request, world, ends)
    return ends


def _host_ends(request: Request, world: World) -> list[Step]:
    """Return the host ends to delete, as their names and tags say."""
    tags = ownership.tags(request.attachment)
    links = [world[HOST].link(name) for name in ownership.host_ends(request.attachment)]
    # Without an alias it was left half made: we were killed between two messages.
    return [
        Del(Device(HOST, link.name)) for link in links if link and link.kind == "veth" and link.alias in ("", *tags)
    ]


def _container_end(request: Request, world: World) -> list[Step]:
    """Return the container's end to delete: one whose other end is on this host, and no other attachment's."""
    if any(link.name in ownership.host_ends(request.attachment) for link in request.remembered().interfaces):
        return []  # It was ours and is gone; what is there now is another container's.
    pair = _pair(request, world)
    return [Del(Device(CONTAINER, pair[0].name))] if pair and not pair[1].alias.startswith("cni:") else []


def _pair(request: Request, world: World) -> tuple[Link, Link] | None:
    """Return the container's end and its other end, None where they are no veth with one end on this host."""
    inside = world[CONTAINER].link(request.attachment.ifname) if world.has_container() else None
    peer = world[HOST].link_at(inside.peer) if inside and inside.kind == "veth" else None
    if inside is None or peer is None or peer.kind != "veth" or peer.peer != inside.index:
        return None
    return inside, peer


def _part(kind: InterfaceKind, request: Request, world: World, ends: list[Step]) -> None:
    """Do what is done before a container's end goes with these. Nothing of it keeps DEL from its work."""
    going = [step.what.name for step in ends]

    def container_end() -> Link | None:
        pair = _pair(request, world)
        return pair[0] if pair and (pair[0].name in going or pair[1].name in going) else None

    try:
        if ends:
            kind.parting(request, world, container_end)
    except CniError:
        return


def _delegated(request: Request, verb: str, faults: list[CniError]) -> None:
    try:
        if delegate.ipam_type(request):
            delegate.serve(request, verb)
    except CniError as e:
        faults.append(e)


def _check(kind: InterfaceKind, request: Request) -> None:
    conf, previous = kind.parse(request), _previous(request)
    with open_world(request) as world:
        ends, leases = _as_added(kind, conf, request, previous, world)
        if delegate.ipam_type(request):
            if not leases.ips:
                raise CniError(spec.CHECK_FAILED, f"prevResult.ips: no address is on {ends.ifname}")
            delegate.serve(request, "CHECK")
        faults = verify(kind.plan(conf, leases, ends), world) + _changed_macs(kind, conf, ends, previous, world)
    if faults:
        raise CniError(spec.CHECK_FAILED, faults[0], "; ".join(faults[1:]))


def _repair(kind: InterfaceKind, request: Request) -> tuple[str, ...]:
    conf, previous = kind.parse(request), _previous(request)
    with open_world(request) as world:
        ends, leases = _as_added(kind, conf, request, previous, world)
        return mend(kind.plan(conf, leases, ends), world)


def _as_added(kind: InterfaceKind, conf: Any, request: Request, previous: Result, world: World) -> tuple[Ends, Result]:
    """Return from prevResult what the plan of the ADD was made with."""
    ends = _found_ends(kind, conf, request, previous)
    ips = result.own_addresses(previous, world.is_container, ends.ifname)
    return ends, kind.settle(conf, previous.replace(interfaces=(), ips=ips))


def _previous(request: Request) -> Result:
    previous = request.prev_result()
    if previous is None:
        raise invalid_config("prevResult", "is missing, and CHECK compares with it")
    return previous


def _found_ends(kind: InterfaceKind, conf: Any, request: Request, previous: Result) -> Ends:
    """Return the names as ADD gave them: the reference's host ends have random ones."""
    usual = Ends(request.attachment, request.netns, ownership.host_ends(request.attachment)[0])
    shared = [name for name in kind.host_links(conf, usual) if name != usual.host_end]
    listed = [link.name for link in previous.interfaces if not link.sandbox and not spec.ifname_fault(link.name)]
    ours = [name for name in listed if name in ownership.host_ends(request.attachment)]
    others = [name for name in listed if name not in shared and name.startswith("veth")]
    return usual.replace(host_end=(*ours, *others, usual.host_end)[0])


def _changed_macs(kind: InterfaceKind, conf: Any, ends: Ends, previous: Result, world: World) -> list[str]:
    faults = []
    ours = (*kind.host_links(conf, ends), ends.ifname)
    for listed in previous.interfaces:
        where = CONTAINER if listed.sandbox else HOST
        if listed.name not in ours or (listed.sandbox and not world.is_container(listed.sandbox)):
            continue
        link = world[where].link(listed.name)
        if link and listed.mac and link.mac != listed.mac.lower():
            faults.append(f"{listed.name} has the MAC address {link.mac}, not {listed.mac}")
    if not any(listed.name == ends.ifname and world.is_container(listed.sandbox) for listed in previous.interfaces):
        faults.append(f"prevResult.interfaces: none is {ends.ifname} in {ends.sandbox}")
    return faults


def _gc(kind: InterfaceKind, request: Request) -> None:
    keep = ownership.kept(request)
    with World() as world:
        faults = clear((*kind.leavings(request, world), lambda: _unlisted(request, world, keep)), world)
    _delegated(request, "GC", faults)
    if faults:
        raise collected(faults, "GC")


def _unlisted(request: Request, world: World, keep: frozenset[str]) -> list[Step]:
    """Return the host ends of the network to delete: those that are not to be kept."""
    if ownership.keeps_living(request):
        return []
    tags = ownership.network_tags(request.attachment.network)
    links = world[HOST].links()
    return [Del(Device(HOST, link.name)) for link in links if link.alias.startswith(tags) and link.alias not in keep]


def _status(kind: InterfaceKind, request: Request) -> None:
    """Fail where no ADD can succeed until configuration or host is changed. What may pass by itself is ADD's to say."""
    try:
        conf = kind.parse(request)
        ends = Ends(request.attachment, "", "")
        with World() as world:
            _refuse_impossible([kind.plan(conf, Result(), ends)], world)
            leases = (Result(ips=ips) for ips in delegate.expected(request))
            _refuse_impossible((kind.plan(conf, kind.settle(conf, given), ends) for given in leases), world)
        if delegate.ipam_type(request):
            delegate.serve(request, "STATUS")
    except CniError as e:
        if e.code in (spec.UNAVAILABLE, spec.UNAVAILABLE_LIMITED):
            raise
        if e.code != spec.TRY_AGAIN:
            # "50: The plugin is not available (i.e. cannot service ADD requests)"
            raise CniError(spec.UNAVAILABLE, e.msg, e.details) from e


def _refuse_impossible(plans: Iterable[Sequence[Step]], world: World) -> None:
    """Raise CniError when none of the plans, one of which an ADD would follow, can be done on this host."""
    fault: CniError | None = None
    for plan in plans:
        try:
            shared = [step for step in plan if isinstance(step, Ensure)]
            preflight(shared, world)
            # What cannot even be read cannot be made.
            verify(shared, world)
            refuse_impossible(plan, world)
            return
        except CniError as e:
            fault = fault or e
    if fault:
        raise fault
