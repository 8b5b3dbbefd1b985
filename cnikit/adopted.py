"""What the reference's plugins have left in the kernel, by iptables or by nftables: found cheaply, and taken away.

A node that is switched over in place has containers whose rules the reference made; our DEL of such a container removes
them. So does it those of our own backend iptables, whose chains have the same names. Where there are none this costs
a few netlink messages, and DEL starts no process.
"""

from __future__ import annotations

from cnikit import spec
from cnikit.errors import CniError
from cnikit.netlink.nftables import Table
from cnikit.objects import HOST
from cnikit.ownership import digest, keeps_living, network_tags, reference_chain
from cnikit.plan import Del
from cnikit.ruleset import Foreign

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cnikit.objects import World
    from cnikit.plan import Step
    from cnikit.request import Attachment, Request

_MASQUERADE = Table("inet", "cni_plugins_masquerade", (), ())
_HOSTPORT = tuple(Table(family, "cni_hostport", (), ()) for family in ("ip", "ip6"))


def masquerade(request: Request, world: World) -> list[Step]:
    """Return the steps that take away an attachment's masquerading, or on GC that of all that are not valid."""
    attachment = request.attachment
    if request.verb == "GC":
        from cnikit import iptables

        return _garbage(iptables.masquerade_garbage, request, world)
    steps: list[Step] = [Del(Foreign(HOST, "masq_checks", _MASQUERADE, _comment(attachment)))]
    if is_there("nat", reference_chain("CNI-", attachment), world):
        from cnikit import iptables

        steps += iptables.masquerade_removal(attachment, request.remembered().ips)
    return steps


def _comment(attachment: Attachment) -> str:
    """Return what the comments of the reference's nftables rules for an attachment begin with."""
    owner = digest(f"{attachment.ifname}:{attachment.container}")
    return f"{digest(attachment.network)[:16]}-{owner[:16]},"


def port_mappings(request: Request, world: World) -> list[Step]:
    """Return the same for port mappings; the reference's nftables rules know them by the container only."""
    attachment = request.attachment
    if request.verb == "GC":
        from cnikit import iptables

        return _garbage(iptables.port_mappings_garbage, request, world)
    steps: list[Step] = [
        Del(Foreign(HOST, chain, table, attachment.container, whole=True))
        for table in _HOSTPORT
        for chain in ("hostports", "masquerading")
    ]
    if is_there("nat", reference_chain("CNI-DN-", attachment), world):
        from cnikit import iptables

        steps += iptables.port_mappings_removal(attachment)
    return steps


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


def is_there(table: str, chain: str, world: World) -> bool:
    """Tell whether iptables has a chain, as far as it can be told here. Raises CniError where it should be."""
    try:
        return world[HOST].has_chain(table, chain)
    except CniError as e:
        if e.code != spec.INVALID_CONFIG:
            raise
        return False  # There is a legacy table and no program to read it with: nothing can be taken away either.
