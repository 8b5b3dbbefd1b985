"""What plugins share that come later in a list: they leave the interface alone and add to what is around it.

Their attachments are elements of nftables tables, found by their tag: DEL and GC need neither netns nor prevResult.
"""

from __future__ import annotations

from cnikit import ownership, result, spec
from cnikit.effects import netns
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
    from cnikit.result import IP, Result


def previous(request: Request) -> Result:
    """Return what the plugins before gave. Raises CniError (7) when there were none."""
    found = request.prev_result()
    if found is None:
        raise invalid_config("prevResult", "is missing: must be called as chained plugin")
    return found


def own_addresses(request: Request, given: Result, ifname: str = "") -> tuple[IP, ...]:
    """Return which of a result's addresses are the container's; see result.own_addresses."""
    return result.own_addresses(given, lambda sandbox: netns.may_be(request.netns, sandbox), ifname)


def addresses(request: Request, given: Result) -> tuple[str, ...]:
    """Return the first address of each family on CNI_IFNAME, with its prefix length."""
    found: dict[bool, str] = {}
    for ip in own_addresses(request, given, request.attachment.ifname):
        found.setdefault(":" in ip.address, ip.address)
    return tuple(found.values())


def comment(request: Request, world: World) -> str:
    """Return what the attachment's elements are marked with: its tag, and whether a link of ours proves it alive."""
    tags = ownership.tags(request.attachment)
    links = (world[HOST].link(name) for name in ownership.host_ends(request.attachment))
    return next((link.alias for link in links if link and link.alias in tags), tags[0] + ownership.UNLINKED)


def take_over(request: Request, world: World) -> None:
    """Clear away what dead owners left under the container's addresses. Raises CniError.

    Where a plugin of ours made the interface, it has done so.
    """
    ips = own_addresses(request, previous(request))
    if ips and comment(request, world).endswith(ownership.UNLINKED):
        from cnikit import leftovers

        leftovers.clear(request.attachment, ips, world, chained=True)


def check(plan: Iterable[Step], world: World) -> None:
    """CHECK: raise CniError (101) when the kernel does not have what the plan made."""
    faults = verify(plan, world)
    if faults:
        raise CniError(spec.CHECK_FAILED, faults[0], "; ".join(faults[1:]))


def available(tables: tuple[Table, ...], backend: str) -> None:
    """STATUS: raise CniError (50) when the tables cannot be made, or there is no iptables where it is asked for."""
    try:
        with World() as world:
            here = world[HOST]
            faults = [here.iptables_fault(4)] if backend == "iptables" else []
            faults += [here.table_fault(table) for table in tables]
    except CniError as e:
        raise CniError(spec.UNAVAILABLE, e.msg, e.details) from e
    for fault in filter(None, faults):
        raise CniError(spec.UNAVAILABLE, fault.msg, fault.details)
