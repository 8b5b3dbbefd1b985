r"""bridge: a container's interface on a bridge of the host's.

    {
        "cniVersion": "1.1.0",
        "name": "web",
        "type": "bridge",
        "bridge": "cni0",
        "isDefaultGateway": true,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.88.0.0/16"}]]
        }
    }

A veth pair is made: one end is CNI_IFNAME in the container, the other a port of the bridge, which is created by the
first container of the network and shared by all. Without `ipam` the container gets a link and no address (layer 2).

| key | default | |
| --- | --- | --- |
| bridge | cni0 | the bridge's name |
| isGateway | false | the bridge has the gateway's address, and the host forwards |
| isDefaultGateway | false | isGateway, and the container's default route goes there |
| forceAddress | false | an address that keeps the gateway's from the bridge is replaced |
| hairpinMode | false | the port sends a frame back where it came from: a container reaches itself by a published port |
| promiscMode | false | the bridge takes every frame; not together with hairpinMode |
| portIsolation | false | ports that are isolated do not reach each other, only the host and what it forwards to |
| ipMasq | false | what leaves the container for outside its subnets takes the host's address (multicast does not) |
| ipMasqBackend | nftables | or iptables, by the reference's chains |
| ipMasqExcept | none | a list of further subnets that ipMasq does not apply to, of either family |
| macspoofchk | false | the container can send from its own MAC address only, and claim no neighbour's address |
| mtu | kernel's | bytes, of the veth, and of a bridge that is created |
| ipv6Autoconf | false | with isGateway: the interface's IPv6 configures itself, as the kernel does it, see below |
| enabledad | false | IPv6 duplicate address detection, which takes up to 2 s |
| disableContainerInterface | false | the container's end stays down; without ipam only |
| ipam | none | `type` names the plugin that gives addresses |
| dns | IPAM's | nameservers, domain, search, options for the result |

`ipMasqExcept` is for networks that know the way to the containers: in a Kubernetes cluster, the ranges of all nodes'
pods (["10.244.0.0/16", "fd00:244::/32"]). A changed list applies to containers that are attached afterwards: CHECK of
an earlier one names the subnets it lacks, and `cnitool repair` adds them.

The container's MAC address may be asked for: CNI_ARGS `MAC`, `args.cni.mac`, `runtimeConfig.mac` (capability `mac`),
the last one given wins. Otherwise it is made from the address, IPv4's if there is one (0a:58 and its four bytes): who
knew the container that had the address before need not learn another MAC address, which takes half a minute. One that
is asked for is announced by ARP and NDP, and should not begin with 0a:58. On DEL, if the container is still there to
do it, the one that comes next is announced.

With macspoofchk the bridge learns nothing from the container's port, and ARP and NDP that claim an address of another
such container on the bridge, or the gateway's, are dropped (cnikit/macspoofchk.py). Addresses that none of them has,
keepalived's say, may be claimed. A neighbour without macspoofchk is not protected, nor are the sources of IP packets.

With isGateway and addresses an interface has the IPv6 it is given and no other: without an address or route of IPv6,
from IPAM or in prevResult, IPv6 is off there (disable_ipv6), so no link-local address opens it unseen; with one, router
advertisements are not taken (accept_ra 0). `ipv6Autoconf` leaves both to the kernel, and without isGateway they are. A
route of a family that the container has no address of is left out, unless it names its gateway.

Not served yet, and refused by name: vlan, vlanTrunk, preserveDefaultVlan.

Result: the bridge, the veth's host end, the container's interface; addresses, routes and dns of IPAM, completed. An
address without gateway gets, with isGateway, the first of its subnet; of a /31 or /127, the other one.

DEL needs neither netns nor prevResult: the host end's name is made from network, container and interface, and its
ifalias says so in words. The bridge, its address and forwarding stay, as others may use them.

What others use of the host stays as it is: a bridge whose MAC address nobody has set is given the one it has, for it
would change as containers come and go; and before IPv6 is forwarded, accept_ra becomes 2 on links with a router found
by advertisements, which the kernel would forget, and stderr says so.

Unlike the reference: a failed ADD leaves nothing of the container's behind; DEL of a container whose interface belongs
to another attachment does not touch it; the bridge's MAC address stays; IPAM's default route without gateway counts as
one; IPv6 that nobody configured is off.
"""

from __future__ import annotations

from cnikit import configure, result, spec
from cnikit.address import format_ip, hosts, is_default, is_link_local, is_loopback, network, parse_cidr
from cnikit.errors import CniError, invalid_config, unsupported
from cnikit.flow import Ends, InterfaceKind, interface
from cnikit.main import main
from cnikit.objects import (
    CONTAINER,
    HOST,
    Alias,
    Bridge,
    Carrier,
    ForwardingV6,
    Gateway,
    KeptMac,
    Make,
    Port,
    Sysctl,
    Up,
    Veth,
)
from cnikit.plan import Add, Ensure, Set, Step
from cnikit.result import IP, Result, Route
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cnikit.effects.kernel import World
    from cnikit.fields import Fields
    from cnikit.flow import Listing
    from cnikit.netlink.rtnetlink import Link
    from cnikit.request import Request

_LATER = ("vlan", "vlanTrunk", "preserveDefaultVlan")

# Subnets of ipMasqExcept: an ADD makes as many elements for each address, and compares each with all others.
MOST_EXCEPTED = 128


class Conf(Value):
    """The configuration, checked."""

    bridge: str
    mtu: int
    mac: str
    gateway: bool
    default_gateway: bool
    force: bool
    hairpin: bool
    promisc: bool
    isolated: bool
    dad: bool
    autoconf: bool
    v6_before: bool
    down: bool
    masquerade: str
    excepted: tuple[tuple[bytes, int], ...]
    only_mac: bool
    config: Fields


def parse(request: Request) -> Conf:
    """Read the configuration. Raises CniError."""
    config = request.config
    for key in _LATER:
        if config.raw(key) not in (None, False, 0, []):
            raise unsupported(key, config.raw(key))
    bridge = config.string("bridge", default="cni0")
    fault = spec.ifname_fault(bridge)
    if fault:
        raise config.invalid("bridge", f"{bridge!r}: {fault}")
    conf = Conf(
        bridge=bridge,
        mtu=configure.mtu(config),
        mac=configure.mac(request),
        default_gateway=config.boolean("isDefaultGateway"),
        gateway=config.boolean("isGateway") or config.boolean("isDefaultGateway"),
        force=config.boolean("forceAddress"),
        hairpin=config.boolean("hairpinMode"),
        promisc=config.boolean("promiscMode"),
        isolated=config.boolean("portIsolation"),
        dad=config.boolean("enabledad"),
        autoconf=config.boolean("ipv6Autoconf"),
        v6_before=request.verb == "ADD" and _has_v6(request.prev_result() or Result()),
        down=config.boolean("disableContainerInterface"),
        masquerade=_backend(config) if config.boolean("ipMasq") else "",
        excepted=_excepted(config),
        only_mac=config.boolean("macspoofchk"),
        config=config,
    )
    if conf.only_mac and not conf.mac and request.verb == "CHECK":
        from cnikit import macspoofchk

        conf = conf.replace(mac=macspoofchk.mac_before(request))
    if conf.down and config.object("ipam").string("type"):
        raise config.invalid("ipam", "cannot be used when disableContainerInterface is true")
    if conf.hairpin and conf.promisc:
        raise config.invalid("promiscMode", "cannot be true together with hairpinMode")
    return conf


def _has_v6(given: Result) -> bool:
    """Tell whether there is an IPv6 address beside that of lo."""
    return any(":" in ip.address and not is_loopback(parse_cidr(ip.address)[0]) for ip in given.ips)


def _backend(config: Fields) -> str:
    backend = config.string("ipMasqBackend", default="nftables")
    if backend not in ("nftables", "iptables"):
        raise config.invalid("ipMasqBackend", f"{backend!r} is neither 'nftables' nor 'iptables'")
    return backend


def _excepted(config: Fields) -> tuple[tuple[bytes, int], ...]:
    """Read the subnets that a container reaches under its own address."""
    key = "ipMasqExcept"
    texts = config.strings(key)
    if len(texts) > MOST_EXCEPTED:
        raise config.invalid(key, f"{len(texts)} subnets are too many, {MOST_EXCEPTED} is the most")
    subnets = []
    for i, text in enumerate(texts):
        try:
            packed, length = parse_cidr(text)
        except ValueError as e:
            raise config.invalid(f"{key}[{i}]", str(e)) from None
        subnets.append((network(packed, length), length))
    return tuple(subnets)


def settle(conf: Conf, leases: Result) -> Result:
    """Complete what IPAM gave: gateways the bridge is to have, the default routes by them, dns."""
    ips = tuple(_with_gateway(ip) if conf.gateway and not ip.gateway else ip for ip in leases.ips)
    routes = list(configure.reachable(leases))
    for default, colon in (("0.0.0.0/0", False), ("::/0", True)):
        gateways = [ip.gateway for ip in ips if (":" in ip.address) == colon and ip.gateway]
        has_one = any(is_default(route.dst) and (":" in route.dst) == colon for route in routes)
        if conf.default_gateway and gateways and not has_one:
            routes.append(Route(default, gateways[0]))
    return leases.replace(ips=ips, routes=tuple(routes), dns=configure.dns(conf.config, leases))


def _with_gateway(ip: IP) -> IP:
    packed, length = parse_cidr(ip.address)
    first, end = hosts(packed, length)
    if first == end:
        raise invalid_config("isGateway", f"{ip.address} leaves no address for a gateway")
    # Of two addresses the gateway has the other one.
    of_two = length == len(packed) * 8 - 1
    return ip.replace(gateway=format_ip(end if of_two and packed == first else first))


def plan(conf: Conf, leases: Result, ends: Ends) -> tuple[Step, ...]:
    """Return the steps of an ADD: the bridge and its addresses, the veth, the container's addresses and routes."""
    configure.fits(conf.mtu, leases)
    addresses = [parse_cidr(ip.address)[0] for ip in leases.ips]
    expected = configure.mac_for(addresses)
    # What a container is held to must be known before its first frame.
    mac = conf.mac or expected or (configure.hashed_mac(ends.tag.encode()) if conf.only_mac else "")
    inside = configure.interface(ends.ifname, leases, conf.dad) if leases.ips else _without_addresses(conf, ends)
    return (
        *_bridge(conf, leases),
        Add(Veth(HOST, ends.host_end, ends.ifname, ends.sandbox, conf.bridge, conf.mtu, mac)),
        Set(Alias(HOST, ends.host_end, ends.tag)),
        Set(Port(HOST, ends.host_end, conf.hairpin, conf.isolated)),
        *_guarded_port(conf, ends, mac),
        Set(Up(HOST, ends.host_end)),
        *_rules(conf, leases, ends, mac),
        *_closed_to_v6(conf, leases, ends),
        *inside,
        *(() if conf.down else (Set(Carrier(HOST, ends.host_end)),)),
        *(_announcement(conf, ends, mac) if conf.mac not in ("", expected) or not _is_known(conf, addresses) else ()),
    )


def _is_known(conf: Conf, addresses: list[bytes]) -> bool:
    """Tell whether all neighbours know the MAC address made from these addresses if they know one.

    Of several addresses of a family it can be made from one only. And where the host is no gateway another machine may
    be, behind a switch that has to learn where an address is now.
    """
    families = [len(packed) for packed in addresses]
    return not addresses or (conf.gateway and len(set(families)) == len(families))


def _closed_to_v6(conf: Conf, leases: Result, ends: Ends) -> tuple[Step, ...]:
    """Return the step that keeps IPv6 from configuring itself on an interface of a routed network."""
    if conf.autoconf or not (conf.gateway and leases.ips):
        return ()
    has_v6 = conf.v6_before or _has_v6(leases) or any(":" in route.dst for route in leases.routes)
    setting, value = ("accept_ra", "0") if has_v6 else ("disable_ipv6", "1")
    return (Set(Sysctl(CONTAINER, f"net/ipv6/conf/{ends.ifname}/{setting}", value, optional=True)),)


def _announcement(conf: Conf, ends: Ends, mac: str) -> tuple[Step, ...]:
    """Return the step that tells neighbours the MAC address."""
    from cnikit.settings import Announced

    # Only one that was asked for is CHECK's to compare: the reference's containers have others.
    return (Set(Announced(CONTAINER, ends.ifname, mac, asked_for=bool(conf.mac))),)


def _guarded_port(conf: Conf, ends: Ends, mac: str) -> tuple[Step, ...]:
    if not conf.only_mac:
        return ()
    from cnikit import macspoofchk

    return macspoofchk.port(ends.host_end, conf.bridge, mac)


def _rules(conf: Conf, leases: Result, ends: Ends, mac: str) -> list[Step]:
    """Return the steps beside the links; what they need is imported by who needs it."""
    steps: list[Step] = []
    if conf.only_mac:
        from cnikit import macspoofchk

        gateways = [ip.gateway for ip in leases.ips] if conf.gateway else []
        steps += macspoofchk.steps(ends.tag, ends.host_end, mac, leases.ips, conf.bridge, gateways)
    if conf.masquerade == "nftables":
        from cnikit import masquerade

        steps += masquerade.steps(ends.tag, leases.ips, conf.excepted)
    elif conf.masquerade == "iptables":
        from cnikit import iptables

        steps += iptables.masquerade(ends.attachment, leases.ips, conf.excepted)
    return steps


def _bridge(conf: Conf, leases: Result) -> list[Step]:
    steps: list[Step] = [
        Ensure(Bridge(HOST, conf.bridge, conf.mtu)),
        Ensure(KeptMac(HOST, conf.bridge)),
        Ensure(Sysctl(HOST, f"net/ipv6/conf/{conf.bridge}/accept_ra", "0", optional=True)),
        Ensure(Up(HOST, conf.bridge)),
    ]
    if conf.promisc:
        from cnikit.settings import Promiscuous

        steps.append(Ensure(Promiscuous(HOST, conf.bridge)))
    if conf.gateway:
        gateways = tuple(f"{ip.gateway}/{ip.address.partition('/')[2]}" for ip in leases.ips)
        steps += [Ensure(Gateway(HOST, conf.bridge, gateway, conf.force, gateways)) for gateway in gateways]
        families = sorted({":" in ip.address for ip in leases.ips})
        steps += [Ensure(_FORWARDING[v6]) for v6 in families]
    return steps


_FORWARDING = {
    False: Sysctl(HOST, "net/ipv4/ip_forward", "1"),
    True: ForwardingV6(HOST, "net/ipv6/conf/all/forwarding", "1"),
}


def _without_addresses(conf: Conf, ends: Ends) -> tuple[Step, ...]:
    return () if conf.down else (Set(Up(CONTAINER, ends.ifname)),)


def host_links(conf: Conf, ends: Ends) -> tuple[str, ...]:
    """Return the host's links in the result."""
    return (conf.bridge, ends.host_end)


def leavings(request: Request, world: World) -> list[Listing]:
    """Return what lists what is beside the links, whatever is configured: that may have been another at the ADD."""
    try:
        nothing = not world[HOST].tables() and not world[HOST].legacy("nat")
    except CniError:
        # Where nfnetlink is missing, or refused, nothing of it is this container's.
        nothing = not (request.config.raw("ipMasq") or request.config.raw("macspoofchk"))
    if nothing:
        return []
    from cnikit import adopted, macspoofchk, masquerade
    from cnikit.ruleset import outdated

    return [
        lambda: outdated((macspoofchk.TABLE, masquerade.TABLE), request, world),
        lambda: adopted.masquerade(request, world),
    ]


def hand_over(request: Request, world: World, container_end: Callable[[], Link | None]) -> None:
    """Have the container tell its neighbours the MAC address of whoever has its address next. Raises CniError.

    Most have it themselves, as prevResult says, and need not be looked for.
    """
    previous = request.remembered()
    ips = result.own_addresses(previous, world.is_container, request.attachment.ifname)
    given = [parse_cidr(ip.address)[0] for ip in ips]
    macs = [end.mac.lower() for end in previous.interfaces if end.sandbox and end.name == request.attachment.ifname]
    link = None if macs and _are_made_from(macs, given) else container_end()
    if link is None:
        return
    there = [bound.packed for bound in world[CONTAINER].addresses(link.name) if not is_link_local(bound.packed)]
    addresses = [packed for packed in given if packed in there] or there
    if not addresses or _are_made_from([link.mac], addresses):
        return
    from cnikit.settings import Mac

    told = (*configure.notify(link.name, True), Mac(CONTAINER, link.name, configure.mac_for(addresses)))
    world[CONTAINER].change([Make(what) for what in told])


def _are_made_from(macs: list[str], addresses: list[bytes]) -> bool:
    made = [configure.mac_for([packed]) for packed in addresses]
    return all(mac in made for mac in macs)


PLUGIN = interface(InterfaceKind("bridge", parse, settle, plan, host_links, leavings, hand_over))

if __name__ == "__main__":
    main(PLUGIN)
