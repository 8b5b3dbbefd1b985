"""What plugins share that come later in a list: they leave the interface alone and add to what is around it.

Their attachments are elements of nftables tables, found by their tag: DEL and GC need neither netns nor prevResult.
"""

from __future__ import annotations

from cnikit import ownership, spec
from cnikit.effects.kernel import World
from cnikit.errors import CniError, invalid_config
from cnikit.objects import HOST
from cnikit.plan import verify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cnikit.netlink.nftables import Table
    from cnikit.plan import Step
    from cnikit.request import Request
    from cnikit.result import Result


def previous(request: Request) -> Result:
    """Return what the plugins before gave. Raises CniError (7) when there were none."""
    found = request.prev_result()
    if found is None:
        raise invalid_config("prevResult", "is missing: must be called as chained plugin")
    return found


def addresses(request: Request, given: Result) -> tuple[str, ...]:
    """Return the container's address of each family, with its prefix length: the first on its interface, or on none."""
    found: dict[bool, str] = {}
    for ip in given.ips:
        named = None if ip.interface is None else given.interfaces[ip.interface]
        if named is None or (named.name == request.attachment.ifname and named.sandbox):
            found.setdefault(":" in ip.address, ip.address)
    return tuple(found.values())


def comment(request: Request, world: World) -> str:
    """Return what the attachment's elements are marked with: its tag, and whether a link of ours proves it alive."""
    tags = ownership.tags(request.attachment)
    links = (world[HOST].link(name) for name in ownership.host_ends(request.attachment))
    return next((link.alias for link in links if link and link.alias in tags), tags[0] + ownership.UNLINKED)


def check(plan: Iterable[Step], world: World) -> None:
    """CHECK: raise CniError (101) when the kernel does not have what the plan made."""
    faults = verify(plan, world)
    if faults:
        raise CniError(spec.CHECK_FAILED, faults[0], "; ".join(faults[1:]))


def available(tables: tuple[Table, ...], backend: str) -> None:
    """STATUS: raise CniError (50) when nftables cannot even be read, or there is no iptables where it is asked for."""
    try:
        if backend == "iptables":
            from cnikit.effects.iptables import find

            find("iptables-restore")
        with World() as world:
            for table in tables:
                world[HOST].rules(table)
    except CniError as e:
        raise CniError(spec.UNAVAILABLE, e.msg, e.details) from e
