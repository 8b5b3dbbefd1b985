"""The steps that give a container's interface its addresses and routes, the same for every plugin that makes one."""

from __future__ import annotations

from _blake2 import blake2s

from cnikit import spec
from cnikit.address import format_mac, parse_mac
from cnikit.errors import CniError, invalid_config
from cnikit.fields import Fields
from cnikit.objects import CONTAINER, Address, Route, Settled, Sysctl, Up
from cnikit.plan import Set, Step
from cnikit.result import DNS, Result, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnikit import result
    from cnikit.request import Request

# The kernel takes IPv6 off a link that is smaller (RFC 8200, section 5).
IPV6_MINIMUM_MTU = 1280
VETH_MINIMUM_MTU, VETH_MAXIMUM_MTU = 68, 65535
SCOPE_LINK = 253


def mac_for(addresses: Sequence[bytes]) -> str:
    """Return the MAC address made from addresses, packed: 0a:58 and IPv4's four bytes, or IPv6's hash; "" without any.

    Whoever has an address after another then has the same MAC address, and what neighbours remember stays right.
    """
    first = min(addresses, key=len, default=b"")
    if len(first) == 4:
        return format_mac(b"\x0a\x58" + first)
    return hashed_mac(first) if first else ""


def hashed_mac(name: bytes) -> str:
    """Return a MAC address made from anything else: locally administered, unicast."""
    return format_mac(b"\x02" + blake2s(name, digest_size=5).digest())


def interface(ifname: str, leases: Result, dad: bool = False) -> tuple[Step, ...]:
    """Return the steps that set up an interface with what IPAM gave.

    With dad, IPv6 addresses are first checked for duplicates, which takes up to two seconds; without, they are made
    usable at once, as nobody else can have what IPAM gave.
    """
    has_v6 = any(":" in ip.address for ip in leases.ips)
    before = _ipv6(ifname, dad) if has_v6 else []
    addresses = [Set(Address(CONTAINER, ifname, ip.address, dad)) for ip in leases.ips]
    settled = [Set(Settled(CONTAINER, ifname))] if has_v6 and dad else []
    # Two sources may give the very same one.
    routes = [Set(route) for route in dict.fromkeys(_route(ifname, route, leases) for route in leases.routes)]
    return (
        *before,
        *addresses,
        Set(Up(CONTAINER, ifname)),
        # Not before: a bridge's port forwards only a moment after the link is up, and nobody would hear.
        *(Set(what) for what in notify(ifname, has_v6)),
        *settled,
        *routes,
    )


def reachable(leases: Result) -> tuple[result.Route, ...]:
    """Return the routes but those of a family without address: by these nothing is reached, but for their gateway."""
    families = {":" in ip.address for ip in leases.ips}
    return tuple(route for route in leases.routes if route.gw or (":" in route.dst) in families)


def notify(ifname: str, ipv6: bool) -> tuple[Sysctl, ...]:
    """Return what has the kernel tell neighbours of a MAC address whenever it is set, and when the link comes up."""
    arp = Sysctl(CONTAINER, f"net/ipv4/conf/{ifname}/arp_notify", "1", optional=True)
    ndisc = Sysctl(CONTAINER, f"net/ipv6/conf/{ifname}/ndisc_notify", "1", optional=True)
    return (arp, ndisc) if ipv6 else (arp,)


def _ipv6(ifname: str, dad: bool) -> list[Step]:
    conf = f"net/ipv6/conf/{ifname}"
    return [
        Set(Sysctl(CONTAINER, "net/ipv6/conf/lo/disable_ipv6", "0", optional=True)),
        Set(Sysctl(CONTAINER, f"{conf}/disable_ipv6", "0")),
        Set(Sysctl(CONTAINER, f"{conf}/keep_addr_on_down", "1", optional=True)),
        *([Set(Sysctl(CONTAINER, f"{conf}/enhanced_dad", "1", optional=True))] if dad else []),
        Set(Sysctl(CONTAINER, f"{conf}/accept_dad", "1" if dad else "0", optional=True)),
    ]


def _route(ifname: str, route: result.Route, leases: Result) -> Route:
    """Return a route; without a gateway of its own it goes by its family's first, unless it ends on the link."""
    v6 = ":" in route.dst
    gateways = [ip.gateway for ip in leases.ips if ip.gateway and (":" in ip.address) == v6]
    gw = route.gw or (gateways[0] if gateways and route.scope != SCOPE_LINK else "")
    found = Route(CONTAINER, ifname, route.dst, gw, route.mtu, route.advmss, route.priority, scope=route.scope or 0)
    # Table 0 is the kernel's word for the main one.
    return found.replace(table=route.table) if route.table else found


def mtu(config: Fields) -> int:
    """Read `mtu` (bytes), 0 for the kernel's default."""
    size = config.integer("mtu", high=VETH_MAXIMUM_MTU)
    if 0 < size < VETH_MINIMUM_MTU:
        raise config.invalid("mtu", f"{size} is not in {VETH_MINIMUM_MTU}..{VETH_MAXIMUM_MTU}")
    return size


def fits(size: int, leases: Result) -> None:
    """Raise CniError when an MTU is too small for the addresses."""
    if 0 < size < IPV6_MINIMUM_MTU and any(":" in ip.address for ip in leases.ips):
        raise invalid_config("mtu", f"{size} is too small for IPv6, which needs {IPV6_MINIMUM_MTU}")


def mac(request: Request) -> str:
    """Return the MAC address asked for, in the kernel's spelling; "" for any.

    CNI_ARGS MAC, then args.cni.mac, then runtimeConfig.mac: the last one given wins.
    """
    found = ""
    for source, code, text in (
        ("CNI_ARGS: MAC", spec.INVALID_ENVIRONMENT, request.arguments().get("MAC", "")),
        ("args.cni.mac", spec.INVALID_CONFIG, request.config.object("args").object("cni").string("mac")),
        ("runtimeConfig.mac", spec.INVALID_CONFIG, request.config.object("runtimeConfig").string("mac")),
    ):
        if text:
            try:
                found = format_mac(parse_mac(text))
            except ValueError as e:
                raise CniError(code, f"{source}: {e}") from None
    return found


def dns(config: Fields, leases: Result) -> DNS:
    """Return the configuration's `dns`, which replaces IPAM's as soon as one of its keys is there."""
    given = config.object("dns")
    if any(given.has(key) for key in ("nameservers", "domain", "search", "options")):
        return read(DNS, given)
    return leases.dns
