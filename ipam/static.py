"""static: the addresses the configuration or the runtime names. An ipam plugin.

    {
      "cniVersion": "1.1.0",
      "name": "mynet",
      "type": "bridge",
      "bridge": "cni0",
      "isDefaultGateway": true,
      "ipam": {
        "type": "static",
        "addresses": [
          {"address": "10.1.0.7/24", "gateway": "10.1.0.1"},
          {"address": "2001:db8:1::7/64", "gateway": "2001:db8:1::1"}
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "dns": {"nameservers": ["10.1.0.53"], "search": ["example.org"]}
      }
    }

| key of `ipam` | |
| --- | --- |
| addresses | each `address` with its prefix length, and the `gateway` of its family if it has one |
| routes | returned, host bits of dst left out: dst, gw, mtu, advmss, priority, table, scope |
| dns | returned as it is: nameservers, domain, search, options |

| beside it, in this order | |
| --- | --- |
| IP in CNI_ARGS | addresses "10.1.0.8/24,2001:db8:1::8/64", added to the configuration's |
| GATEWAY in CNI_ARGS | gateways "10.1.0.1,2001:db8:1::1", each for all addresses so far whose subnet it lies in |
| args.cni.ips | addresses ["10.1.0.9/24"] that take the place of all so far |
| runtimeConfig.ips (capability) | likewise, and the last word |

An address that takes the place of others gets the gateway of the one in its subnet. cniVersion below 0.3.0 has room for
one address a family, and needs one.

Nothing is kept, so nothing can be evidence of anything, and nobody notices if two containers are given one address.

ADD     returns the addresses, each once
DEL     has nothing to release, and always succeeds, as GC does
CHECK   each address ADD would return, and its gateway, must be in prevResult
STATUS  fails if the configuration is wrong

Where it differs from the reference: GATEWAY reaches the configuration's own addresses, args.cni.ips and
runtimeConfig.ips do not lose the gateway, CHECK notices an address that is gone. A fault in the configuration is code
7, in CNI_ARGS 4.
"""

from __future__ import annotations

from cnikit import result, spec
from cnikit.address import contains, format_cidr, format_ip, parse_cidr, parse_ip
from cnikit.errors import CniError, invalid_config, invalid_environment
from cnikit.main import main
from cnikit.plugin import Plugin
from cnikit.result import DNS, IP, Result, Route
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnikit.fields import Fields
    from cnikit.request import Request


class Address(Value):
    """An address with its prefix length, and its gateway if it has one."""

    packed: bytes
    length: int
    gateway: bytes = b""

    def shares_subnet(self, other: Address) -> bool:
        """Tell whether both write the same subnet."""
        return self.length == other.length and contains(self.packed, self.length, other.packed)

    def ip(self) -> IP:
        """Return it as a result shows it."""
        return IP(format_cidr(self.packed, self.length), format_ip(self.gateway) if self.gateway else "")


def add(request: Request) -> Result:
    """Return what the configuration says."""
    ips = _ips(request)
    ipam = request.config.object("ipam")
    routes = result.listed(Route, ipam, "routes")
    return Result((), ips, routes, result.read(DNS, ipam.object("dns")))


def delete(_: Request) -> None:
    """Have nothing to release."""


def check(request: Request) -> None:
    """Fail unless prevResult has each address and its gateway."""
    ips = _ips(request)
    prev = request.prev_result()
    if prev is None:
        raise invalid_config("prevResult", "is missing", "the runtime hands CHECK the result of ADD")
    there = {parse_cidr(ip.address): ip.gateway for ip in prev.ips}
    for ip in ips:
        if parse_cidr(ip.address) not in there:
            raise CniError(spec.CHECK_FAILED, f"prevResult.ips: {ip.address} is missing")
        gateway = there[parse_cidr(ip.address)]
        if ip.gateway and not (gateway and parse_ip(gateway) == parse_ip(ip.gateway)):
            raise CniError(
                spec.CHECK_FAILED,
                f"prevResult.ips: {ip.address} has {f'gateway {gateway}' if gateway else 'no gateway'}, "
                f"not {ip.gateway}",
            )


def status(request: Request) -> None:
    """Fail with code 7 when the configuration is wrong."""
    add(request)


def _ips(request: Request) -> tuple[IP, ...]:
    """Return the addresses, in order, each once."""
    config = request.config
    if not config.has("ipam"):
        raise config.invalid("ipam", "is missing")
    configured = config.object("ipam").objects("addresses")
    if len(configured) > result.MOST[IP]:
        raise invalid_config("ipam.addresses", f"{len(configured)} are too many, {result.MOST[IP]} is the most")
    addresses = [_configured(f) for f in configured]
    addresses = _with_arguments(addresses, request.arguments())
    for f in (config.object("args").object("cni"), config.object("runtimeConfig")):
        addresses = _replaced(addresses, f) or addresses
    once: dict[tuple[bytes, int], Address] = {}
    for address in addresses:
        once.setdefault((address.packed, address.length), address)
    _check_families(request.version, list(once))
    return tuple(address.ip() for address in once.values())


def _configured(f: Fields) -> Address:
    parsed = f.parsed("address", parse_cidr)
    if parsed is None:
        raise f.invalid("address", "is missing")
    packed, length = parsed
    gateway = f.parsed("gateway", parse_ip) or b""
    if gateway and len(gateway) != len(packed):
        raise f.invalid("gateway", f"{f.string('gateway')} is not of the family of {f.string('address')}")
    return Address(packed, length, gateway)


def _with_arguments(addresses: list[Address], arguments: dict[str, str]) -> list[Address]:
    """Add CNI_ARGS' addresses, then set its gateways."""
    try:
        addresses = addresses + [Address(*parse_cidr(text)) for text in _listed(arguments, "IP")]
    except ValueError as e:
        raise invalid_environment("CNI_ARGS", f"IP: {e}") from None
    for text in _listed(arguments, "GATEWAY"):
        try:
            gateway = parse_ip(text)
        except ValueError as e:
            raise invalid_environment("CNI_ARGS", f"GATEWAY: {e}") from None
        addresses = [
            address.replace(gateway=gateway) if contains(address.packed, address.length, gateway) else address
            for address in addresses
        ]
    return addresses


def _listed(arguments: dict[str, str], key: str) -> list[str]:
    found = [text.strip() for text in arguments.get(key, "").split(",") if text.strip()]
    if len(found) > result.MOST[IP]:
        raise invalid_environment("CNI_ARGS", f"{key}: {len(found)} are too many, {result.MOST[IP]} is the most")
    return found


def _replaced(addresses: list[Address], f: Fields) -> list[Address]:
    """Return the addresses that `ips` puts in the place of those so far."""
    found = []
    wanted = f.strings("ips")
    if len(wanted) > result.MOST[IP]:
        raise f.invalid("ips", f"{len(wanted)} are too many, {result.MOST[IP]} is the most")
    for i, text in enumerate(wanted):
        if not text:
            continue
        try:
            address = Address(*parse_cidr(text))
        except ValueError as e:
            raise invalid_config(f"{f.where('ips')}[{i}]", str(e)) from None
        gateways = [other.gateway for other in addresses if other.gateway and other.shares_subnet(address)]
        found.append(address.replace(gateway=gateways[0]) if gateways else address)
    return found


def _check_families(version: str, addresses: list[tuple[bytes, int]]) -> None:
    """Refuse what the results of versions before 0.3.0 have no room for."""
    if spec.at_least(version, "0.3.0"):
        return
    sizes = [len(packed) for packed, _ in addresses]
    if not sizes:
        raise invalid_config("ipam.addresses", f"is empty, and cniVersion {version} needs an address")
    if len(set(sizes)) < len(sizes):
        raise invalid_config("ipam.addresses", f"cniVersion {version} has no room for two addresses of a family")


PLUGIN = Plugin("static", add=add, delete=delete, check=check, gc=delete, status=status)

if __name__ == "__main__":
    main(PLUGIN)
