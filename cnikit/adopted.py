"""What the reference's plugins have left in the kernel, by iptables or by nftables: found cheaply, and taken away.

A node that is switched over in place has containers whose rules the reference made; our DEL of such a container removes
them. So does it those of our own backend iptables, whose chains have the same names. Where there are none this costs
a few netlink messages, and DEL starts no process.
"""

from __future__ import annotations

from cnikit import result, spec
from cnikit.errors import CniError
from cnikit.netlink.nftables import Table
from cnikit.objects import HOST
from cnikit.ownership import digest, keeps_living, network_tags, reference_chain
from cnikit.plan import Del
from cnikit.ruleset import Foreign, has_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from cnikit.objects import World
    from cnikit.plan import Step
    from cnikit.request import Attachment, Request
    from cnikit.result import IP

_MASQUERADE = Table("inet", "cni_plugins_masquerade", (), ())
_HOSTPORT = tuple(Table(family, "cni_hostport", (), ()) for family in ("ip", "ip6"))


def masquerade(request: Request, world: World) -> list[Step]:
    """Return the steps that take away an attachment's masquerading, or on GC that of all that are not valid."""
    if request.verb == "GC":
        from cnikit import iptables

        return _garbage(iptables.masquerade_garbage, request, world)
    ifname = request.attachment.ifname
    given = lambda: result.own_addresses(request.remembered(), lambda _: True, ifname)  # noqa: E731, read when needed
    return masquerade_of(request.attachment, given, world)


def masquerade_of(attachment: Attachment, given: Callable[[], Sequence[IP]], world: World) -> list[Step]:
    """Return the steps that take away an attachment's masquerading, of given addresses, or without any of all."""
    steps: list[Step] = []
    if has_table(_MASQUERADE, world):
        steps.append(Del(Foreign(HOST, "masq_checks", _MASQUERADE, _comment(attachment))))
    if is_there("nat", reference_chain("CNI-", attachment), world):
        from cnikit import iptables

        steps += iptables.masquerade_removal(attachment, given())
    return steps


def _comment(attachment: Attachment) -> str:
    """Return what the comments of the reference's nftables rules for an attachment begin with."""
    owner = digest(f"{attachment.ifname}:{attachment.container}")
    return f"{digest(attachment.network)[:16]}-{owner[:16]},"


def port_mappings(request: Request, world: World) -> list[Step]:
    """Return the same for port mappings; the reference's nftables rules know them by the container only."""
    if request.verb == "GC":
        from cnikit import iptables

        return _garbage(iptables.port_mappings_garbage, request, world)
    return port_mappings_of(request.attachment, world)


def port_mappings_of(attachment: Attachment, world: World) -> list[Step]:
    """Return the steps that take away an attachment's port mappings."""
    steps: list[Step] = [
        Del(Foreign(HOST, chain, table, attachment.container, whole=True))
        for table in _HOSTPORT
        if has_table(table, world)
        for chain in ("hostports", "masquerading")
    ]
    if is_there("nat", reference_chain("CNI-DN-", attachment), world):
        from cnikit import iptables

        steps += iptables.port_mappings_removal(attachment)
    return steps


def firewall_of(ips: Sequence[IP], world: World) -> Sequence[Step]:
    """Return the steps that take away the firewall's rules for these addresses: they do not say whose they are."""
    if not ips or not is_there("filter", "CNI-FORWARD", world):
        return ()
    from cnikit import iptables

    return iptables.firewall_removal(ips)


class _Kept:
    """The containers that GC shall keep: those listed, and, where it is asked to, those that have a tagged link.

    For the latter it is looked when it is first asked: what has a rule by then has its link.
    """

    def __init__(self, request: Request, world: World) -> None:
        self._listed = {container for container, _ in request.valid_attachments()}
        self._tags = network_tags(request.attachment.network)
        self._world = world if keeps_living(request) else None
        self._linked: set[str] | None = None

    def __contains__(self, container: str) -> bool:
        if container in self._listed or self._world is None:
            return container in self._listed
        if self._linked is None:
            aliases = [link.alias for link in self._world[HOST].links() if link.alias.startswith(self._tags)]
            self._linked = {alias.split("/")[1] for alias in aliases}
        return container in self._linked


def _garbage(listed: Callable[..., Sequence[Step]], request: Request, world: World) -> list[Step]:
    try:
        return list(listed(request.attachment.network, _Kept(request, world), world))
    except CniError:
        return []  # There is no iptables here.


def named_by_iptables(world: World) -> list[Attachment]:
    """Return the containers that masquerading and port mappings by iptables name, without interface."""
    if not is_nat_there(world):
        return []
    from cnikit import iptables

    return iptables.named(world)


def is_nat_there(world: World) -> bool:
    """Tell whether iptables has a table for masquerading and port mappings, as far as it can be told here."""
    try:
        return any(name == "nat" for _, name in world[HOST].tables()) or bool(world[HOST].legacy("nat"))
    except CniError:
        return False  # Where nfnetlink is missing, or refused, nothing has been made with it.


def is_there(table: str, chain: str, world: World) -> bool:
    """Tell whether iptables has a chain, as far as it can be told here. Raises CniError where it should be."""
    return bool(those_there(table, (chain,), world))


def those_there(table: str, chains: Collection[str], world: World) -> Collection[str]:
    """Return those of these chains that iptables has, in the same way."""
    try:
        return world[HOST].chains_there(table, chains)
    except CniError as e:
        if e.code != spec.INVALID_CONFIG:
            raise
        return ()  # There is a legacy table and no program to read it with: nothing can be taken away either.
