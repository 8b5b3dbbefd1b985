"""Results, as ADD prints them and prevResult brings them back, in the shape of each protocol version.

In 0.1.0 and 0.2.0 a result is one address a family (`ip4`, `ip6`); from 0.3.0 on lists of interfaces, ips and routes,
ips with a `version` until 0.4.0. Source: specification section 5 "Success", and of each older version.

Addresses are held and printed in the kernel's spelling, and a route's destination without host bits, however a
configuration or another plugin writes them. What is tolerated beside that is a table in tests/test_tolerance.py.
"""

from __future__ import annotations

from cnikit import spec
from cnikit.address import format_cidr, format_ip, is_loopback, network, parse_cidr, parse_ip
from cnikit.errors import CniError
from cnikit.fields import Fields
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    _V = TypeVar("_V", bound=Value)


class Interface(Value):
    """A link: sandbox is its netns path, empty for the host's."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


class IP(Value):
    """An address as "10.1.0.7/24"; interface is an index into the result's interfaces, None for none."""

    address: str
    gateway: str = ""
    interface: int | None = None


class Route(Value):
    """A route; without gw it goes by its family's ips[].gateway. scope: 0 global, 253 link, 254 host."""

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


class DNS(Value):
    """What a runtime may write to the container's resolv.conf."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Result(Value):
    """What ADD gives back."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IP, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = DNS()


def _ip(f: Fields, key: str) -> str:
    packed = f.parsed(key, parse_ip)
    return format_ip(packed) if packed else ""


def _cidr(f: Fields, key: str) -> str:
    parsed = f.parsed(key, parse_cidr)
    return format_cidr(*parsed) if parsed else ""


def _subnet(f: Fields, key: str) -> str:
    parsed = f.parsed(key, parse_cidr)
    return format_cidr(network(*parsed), parsed[1]) if parsed else ""


def _any_integer(f: Fields, key: str) -> int | None:
    return f.optional_integer(key, low=-(2**63), high=2**63 - 1)


def _mtu(f: Fields, key: str) -> int:
    """Read what is only shown: less than nothing is none."""
    return max(_any_integer(f, key) or 0, 0)


def _scope(f: Fields, key: str) -> int | None:
    return f.optional_integer(key, high=255)


# A record's JSON keys: key, field, how it is read. Written in this order, and left out when empty, but for a name; an
# integer that may be None keeps its 0 (pointers in the reference).
_KEYS: dict[type[Value], tuple[tuple[str, str, Callable[[Fields, str], Any]], ...]] = {
    Interface: (
        ("name", "name", Fields.string),
        ("mac", "mac", Fields.string),
        ("mtu", "mtu", _mtu),
        ("sandbox", "sandbox", Fields.string),
        ("socketPath", "socket_path", Fields.string),
        ("pciID", "pci_id", Fields.string),
    ),
    IP: (
        ("interface", "interface", _any_integer),
        ("address", "address", _cidr),
        ("gateway", "gateway", _ip),
    ),
    Route: (
        ("dst", "dst", _subnet),
        ("gw", "gw", _ip),
        ("mtu", "mtu", Fields.integer),
        ("advmss", "advmss", Fields.integer),
        ("priority", "priority", Fields.integer),
        ("table", "table", Fields.optional_integer),
        ("scope", "scope", _scope),
    ),
    DNS: (
        ("nameservers", "nameservers", Fields.strings),
        ("domain", "domain", Fields.string),
        ("search", "search", Fields.strings),
        ("options", "options", Fields.strings),
    ),
}
_MUST = {IP: "address", Route: "dst"}


# Of a list: what is far more than an interface can use takes more time and memory than a call has.
MOST: dict[type[Value], int] = {Interface: 256, IP: 256, Route: 4096}


def read(cls: type[_V], f: Fields) -> _V:
    """Read one record of a result, or of a configuration that has the same shape (routes, dns)."""
    value = cls(**{field: typed(f, key) for key, field, typed in _KEYS[cls]})
    must = _MUST.get(cls)
    if must and not getattr(value, must):
        raise f.invalid(must, "is missing")
    return value


def listed(cls: type[_V], f: Fields, key: str) -> tuple[_V, ...]:
    """Read a list of records. Raises CniError when it is too long."""
    raw = f.raw(key)
    if isinstance(raw, list) and len(raw) > MOST[cls]:
        raise f.invalid(key, f"{len(raw)} are too many, {MOST[cls]} is the most")
    return tuple(read(cls, one) for one in f.objects(key))


def write(value: Value) -> dict[str, Any]:
    """Return the record's JSON object."""
    shown: dict[str, Any] = {}
    for key, field, _ in _KEYS[type(value)]:
        content = getattr(value, field)
        if content or key == "name" or (content == 0 and getattr(type(value), field) is None):
            shown[key] = content
    return shown


def parse(f: Fields, default_version: str) -> Result:
    """Read a result in the shape its cniVersion says, default_version when it says none."""
    version = f.string("cniVersion") or default_version
    if version not in spec.VERSIONS:
        raise f.invalid("cniVersion", f"{version!r} is not one of {', '.join(spec.VERSIONS)}")
    dns = read(DNS, f.object("dns"))
    if not spec.at_least(version, "0.3.0"):
        return _parse_per_family(f, dns)
    interfaces = listed(Interface, f, "interfaces")
    ips = tuple(_indexed(ip, len(interfaces)) for ip in listed(IP, f, "ips"))
    return Result(interfaces, ips, listed(Route, f, "routes"), dns)


def _indexed(ip: IP, interfaces: int) -> IP:
    """Take an index into nothing for none, as the reference does: IPAM plugins have no interfaces to speak of.

    Left as it is, it would be an index of the interfaces that this plugin adds.
    """
    return ip if ip.interface is None or 0 <= ip.interface < interfaces else ip.replace(interface=None)


def _parse_per_family(f: Fields, dns: DNS) -> Result:
    ips: list[IP] = []
    routes: list[Route] = []
    for key in ("ip4", "ip6"):
        if f.has(key):
            one = f.object(key)
            if not one.string("ip"):
                raise one.invalid("ip", "is missing")
            ips.append(IP(_cidr(one, "ip"), _ip(one, "gateway")))
            routes += listed(Route, one, "routes")
    return Result((), tuple(ips), tuple(routes), dns)


def own_addresses(given: Result, is_here: Callable[[str], bool], ifname: str = "") -> tuple[IP, ...]:
    """Return the addresses of the container's interface of that name, or, with "", of the attachment as a whole.

    is_here tells which sandbox is the container's. Loopback's addresses and those in other sandboxes never count. One
    that names no interface is the attachment's, and the interface's where no other is: IPAM plugins and versions before
    0.3.0 name none. One on a link of the host's is the attachment's.
    """
    found = [
        (ip, on)
        for ip in given.ips
        for on in (None if ip.interface is None else given.interfaces[ip.interface],)
        if not is_loopback(parse_cidr(ip.address)[0]) and not (on and on.sandbox and not is_here(on.sandbox))
    ]
    if not ifname:
        return tuple(ip for ip, _ in found)
    named = tuple(ip for ip, on in found if on and on.sandbox and on.name == ifname)
    return named or tuple(ip for ip, on in found if on is None)


def document(result: Result, version: str) -> dict[str, Any]:
    """Return the result as that version of the protocol shows it. Raises CniError where it cannot."""
    if not spec.at_least(version, "0.3.0"):
        return _document_per_family(result, version)
    shown: dict[str, Any] = {
        "cniVersion": version,
        "interfaces": [write(i) for i in result.interfaces],
        "ips": [write(ip) for ip in result.ips],
        "routes": [write(r) for r in result.routes],
        "dns": write(result.dns),
    }
    if spec.at_least(version, "1.0.0"):
        return {key: _sorted(value) for key, value in sorted(shown.items()) if value}
    for interface in shown["interfaces"]:
        for newer in ("mtu", "socketPath", "pciID"):
            interface.pop(newer, None)
    shown["ips"] = [{"version": _version_of(ip["address"]), **ip} for ip in shown["ips"]]
    return {key: value for key, value in shown.items() if value or key == "dns"}


def _sorted(value: Any) -> Any:
    """Sort object keys at every depth, as the reference prints 1.x results."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _version_of(cidr: str) -> str:
    return "6" if ":" in cidr else "4"


def _document_per_family(result: Result, version: str) -> dict[str, Any]:
    if not result.ips:
        raise CniError(
            spec.INVALID_CONFIG,
            f"cniVersion: {version} has no way to show a result without addresses",
            "give the network an ipam plugin, or a cniVersion of 0.3.0 or newer",
        )
    shown: dict[str, Any] = {"cniVersion": version}
    for number in "46":
        ip = next((ip for ip in result.ips if _version_of(ip.address) == number), None)
        if ip is not None:
            routes = [write(Route(r.dst, r.gw)) for r in result.routes if _version_of(r.dst) == number]
            one = {"ip": ip.address, "gateway": ip.gateway, "routes": routes}
            shown[f"ip{number}"] = {key: value for key, value in one.items() if value}
    return {**shown, "dns": write(result.dns)}
