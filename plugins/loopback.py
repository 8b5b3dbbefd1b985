"""loopback: the container's lo is up.

    {"cniVersion": "1.1.0", "name": "lo", "type": "loopback"}

No keys. CNI_IFNAME is not looked at: it is always lo. Result: prevResult as it came, or lo with its first address of
each family, in the shape of the configuration's version (the reference prints the 1.x shape for every version). CHECK
fails when lo is down. DEL takes it down.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from cnikit import spec
from cnikit.address import family, format_cidr, is_loopback
from cnikit.effects.kernel import World, open_world
from cnikit.errors import CniError
from cnikit.main import main
from cnikit.objects import CONTAINER, Up
from cnikit.plan import Del, Set, apply, remove, verify
from cnikit.plugin import Plugin
from cnikit.result import IP, Interface, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnikit.netlink.rtnetlink import BoundAddress
    from cnikit.request import Request

LO = Up(CONTAINER, "lo")


def add(request: Request) -> Result:
    """Set lo up."""
    previous = request.prev_result()
    with open_world(request) as world:
        _only_loopback_addresses(world)
        apply((Set(LO),), world)
        return previous or _result(request, world[CONTAINER].addresses("lo"))


def _only_loopback_addresses(world: World) -> None:
    for address in world[CONTAINER].addresses("lo"):
        if not is_loopback(address.packed):
            shown = format_cidr(address.packed, address.length)
            raise CniError(spec.INVALID_NETNS, f"lo has the address {shown}, which is no loopback address")


def _result(request: Request, addresses: list[BoundAddress]) -> Result:
    firsts = [next((a for a in addresses if family(a.packed) == af), None) for af in (AF_INET, AF_INET6)]
    ips = tuple(IP(format_cidr(a.packed, a.length), interface=0) for a in firsts if a)
    return Result((Interface("lo", "00:00:00:00:00:00", sandbox=request.netns),), ips)


def delete(request: Request) -> None:
    """Set lo down, in a namespace that is still there."""
    with open_world(request) as world:
        faults = remove((Del(LO),), world) if world.has_container() else []
    if faults:
        raise faults[0]


def check(request: Request) -> None:
    """Raise CniError when lo is down."""
    with open_world(request) as world:
        for fault in verify((Set(LO),), world):
            raise CniError(spec.CHECK_FAILED, fault)


def nothing(request: Request) -> None:
    """GC and STATUS: lo is nobody's, and always there."""


PLUGIN = Plugin("loopback", add=add, delete=delete, check=check, gc=nothing, status=nothing)

if __name__ == "__main__":
    main(PLUGIN)
