r"""portmap: ports of the host lead to a container. A plugin for the list, behind the one that makes the interface.

    {
        "cniVersion": "1.1.0",
        "name": "web",
        "plugins": [
            {
                "type": "bridge",
                "isDefaultGateway": true,
                "ipMasq": true,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]]}
            },
            {"type": "portmap", "capabilities": {"portMappings": true}}
        ]
    }

The runtime says which ports: `runtimeConfig.portMappings`, a list of objects. `cnitool` takes them from CAP_ARGS:
`CAP_ARGS='{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'`.

| key of a mapping | default | |
| --- | --- | --- |
| hostPort, containerPort | | 1 to 65535 |
| protocol | tcp | tcp, udp or sctp |
| hostIP | any | only packets to this address of the host's; 0.0.0.0 and :: are all of that family |

| key | default | |
| --- | --- | --- |
| snat | true | packets of the container itself, its neighbours and 127.0.0.1 take the host's address: else no answer |
| masqAll | false | all packets to published ports do |
| conditionsV4, conditionsV6 | none | more that a packet must match, in words of nft (of iptables, with that backend) |
| backend | nftables | or iptables, by the reference's chains |
| markMasqBit | 13 | iptables: the mark's bit for packets that shall take the host's address; nftables needs none |
| externalSetMarkChain | none | iptables: the chain that sets another mark instead |

Conditions in words of iptables, and externalSetMarkChain, mean the backend iptables where none is named.

Only packets to an address of this host are translated. A port belongs to one container: if it is taken the error names
the holder, unless that one's interface is gone, who is then replaced. Ports in a row that keep their numbers are one
element. What makes 127.0.0.1 work (the sysctl route_localnet) would also let the container's neighbours reach the
host's 127.0.0.1, so packets for or from 127.0.0.0/8 that did not come in on lo are dropped. IPv6 knows no such way:
[::1] is not served.

Result: prevResult as it was. DEL needs neither prevResult nor the mappings. UDP flows to the ports, which conntrack
would lead to where they went before, are forgotten on ADD and DEL.
"""

from __future__ import annotations

from cnikit import chained, ownership
from cnikit.address import family, format_cidr, format_ip, network, parse_cidr, parse_ip
from cnikit.effects.kernel import World
from cnikit.errors import collected, invalid_config
from cnikit.main import main
from cnikit.netlink import nftables
from cnikit.netlink.nftables import PROTOCOLS, Chain, Element, Rule, Table, encoded
from cnikit.objects import HOST, StaleFlows, Sysctl
from cnikit.plan import Add, Del, Ensure, Set, Step, apply, remove
from cnikit.plugin import Plugin
from cnikit.ruleset import Member, Ruleset, holds, member, owned, owner, taken
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnikit.fields import Fields
    from cnikit.request import Request
    from cnikit.result import Result

_LOCAL = Rule("fib daddr type local jump published", "what is for this host")
_LOOPBACK = "127.0.0.0/8"


def _sets(version: int) -> tuple[nftables.Set, ...]:
    ip = f"ipv{version}_addr"
    return (
        nftables.Set(f"ports{version}", ("inet_proto", "inet_service"), (ip, "inet_service")),
        nftables.Set(f"host_ports{version}", ("inet_proto", ip, "inet_service"), (ip, "inet_service")),
        nftables.Set(f"ranges{version}", ("inet_proto", ip, "inet_service"), (ip,), interval=True),
        nftables.Set(f"masquerade{version}", (ip, ip), interval=True),
    )


def _published(version: str, n: int) -> tuple[Rule, ...]:
    return (
        Rule(f"dnat {version} to meta l4proto . {version} daddr . th dport map @host_ports{n}", "of one host address"),
        Rule(f"dnat {version} to meta l4proto . th dport map @ports{n}", "of all host addresses"),
        Rule(f"dnat {version} to meta l4proto . {version} daddr . th dport map @ranges{n}", "ports in a row"),
    )


TABLE = Table(
    "inet",
    "cnikit_portmap",
    (*_sets(4), *_sets(6)),
    (
        Chain("published", (*_published("ip", 4), *_published("ip6", 6))),
        Chain(
            "loopback",
            (
                Rule(f'iifname != "lo" ip daddr {_LOOPBACK} drop', "127.0.0.1 is the host's own, whatever is routed"),
                Rule(f'iifname != "lo" ip saddr {_LOOPBACK} drop', "nobody else speaks from there"),
            ),
            "filter",
            "prerouting",
            -300,
        ),
        Chain("prerouting", (_LOCAL,), "nat", "prerouting", -100),
        Chain("output", (_LOCAL,), "nat", "output", -100),
        Chain(
            "postrouting",
            (
                Rule("ct status dnat ip daddr . ip saddr @masquerade4 masquerade", "answers must come back this way"),
                Rule("ct status dnat ip6 daddr . ip6 saddr @masquerade6 masquerade", "answers must come back this way"),
            ),
            "nat",
            "postrouting",
            100,
        ),
    ),
)


class Mapping(Value):
    """Host ports that lead to a container's: the first of each, and how many in a row. host_ip "" is any address."""

    protocol: str
    host_port: int
    container_port: int
    host_ip: str = ""
    count: int = 1


class Conf(Value):
    """The configuration, checked."""

    snat: bool
    masq_all: bool
    mappings: tuple[Mapping, ...]


def parse(request: Request) -> Conf:
    """Read the configuration. Raises CniError."""
    config = request.config
    mappings = [_mapping(given) for given in config.object("runtimeConfig").objects("portMappings")]
    return Conf(
        snat=not config.has("snat") or config.boolean("snat"),
        masq_all=config.boolean("masqAll"),
        mappings=in_a_row(mappings),
    )


def _mapping(given: Fields) -> Mapping:
    for key in ("hostPort", "containerPort"):
        if not given.has(key):
            raise given.invalid(key, "is missing")
    protocol = given.string("protocol", default="tcp").lower()
    if protocol not in PROTOCOLS:
        raise given.invalid("protocol", f"{protocol!r} is none of {', '.join(PROTOCOLS)}")
    packed = given.parsed("hostIP", parse_ip)
    host_port, container_port = (given.integer(key, low=1, high=65535) for key in ("hostPort", "containerPort"))
    return Mapping(protocol, host_port, container_port, format_ip(packed) if packed else "")


def in_a_row(mappings: list[Mapping]) -> tuple[Mapping, ...]:
    """Join mappings of neighbouring ports that keep their numbers. Raises CniError when two want one host port."""
    joined: list[Mapping] = []
    for mapping in sorted(set(mappings), key=lambda m: (m.protocol, m.host_ip, m.host_port)):
        before = joined[-1] if joined else None
        same = before and (before.protocol, before.host_ip) == (mapping.protocol, mapping.host_ip)
        if before and same and before.host_port + before.count > mapping.host_port:
            raise invalid_config(
                "runtimeConfig.portMappings", f"{mapping.protocol} port {mapping.host_port} is to lead to two ports"
            )
        keeps = mapping.host_port == mapping.container_port
        if (
            before
            and same
            and keeps
            and before.host_port == before.container_port
            and before.host_port + before.count == mapping.host_port
        ):
            joined[-1] = before.replace(count=before.count + 1)
        else:
            joined.append(mapping)
    return tuple(joined)


def plan(conf: Conf, addresses: tuple[str, ...], comment: str, way: str) -> tuple[Step, ...]:
    """Return the steps of an ADD; addresses are the container's, way is the host's link to it."""
    steps: list[Step] = [Ensure(Ruleset(HOST, TABLE.name, TABLE))]
    for cidr in addresses:
        packed, length = parse_cidr(cidr)
        served = [mapping for mapping in conf.mappings if _is_for(mapping, packed)]
        steps += [Add(_port(mapping, packed, comment)) for mapping in served]
        version = 4 if len(packed) == 4 else 6
        for source in _masqueraded(conf, packed, length) if served else ():
            key = (format_ip(packed), source)
            steps.append(Add(member(TABLE, f"masquerade{version}", key, (), comment)))
        if served and conf.snat and version == 4:
            steps.append(Ensure(Sysctl(HOST, f"net/ipv4/conf/{way}/route_localnet", "1")))
        steps += _flows(conf, packed)
    return tuple(steps)


def _flows(conf: Conf, packed: bytes) -> list[Step]:
    """Return the steps that make conntrack forget where UDP flows to these ports went before."""
    return [
        Set(_stale_flows(m.host_port, m.count, family(packed), _host_address(m)))
        for m in conf.mappings
        if m.protocol == "udp" and _is_for(m, packed)
    ]


def _stale_flows(port: int, count: int, af: int, address: str) -> StaleFlows:
    return StaleFlows(HOST, "udp", tuple(range(port, port + count)), af, address)


def _host_address(mapping: Mapping) -> str:
    """Return the one address of the host's a mapping is for, "" when it is for all."""
    return mapping.host_ip if mapping.host_ip and any(parse_ip(mapping.host_ip)) else ""


def _is_for(mapping: Mapping, packed: bytes) -> bool:
    return not mapping.host_ip or len(parse_ip(mapping.host_ip)) == len(packed)


def _masqueraded(conf: Conf, packed: bytes, length: int) -> tuple[str, ...]:
    """Return whose packets take the host's address."""
    if conf.masq_all:
        return (format_cidr(bytes(len(packed)), 0),)
    if not conf.snat:
        return ()
    subnet = format_cidr(network(packed, length), length)
    return (subnet, _LOOPBACK) if len(packed) == 4 else (subnet,)


def _port(mapping: Mapping, packed: bytes, comment: str) -> Member:
    version = 4 if len(packed) == 4 else 6
    port, address = str(mapping.host_port), _host_address(mapping)
    if mapping.count > 1:
        source = address or format_cidr(bytes(len(packed)), 0)
        key = (mapping.protocol, source, f"{port}-{mapping.host_port + mapping.count - 1}")
        return member(TABLE, f"ranges{version}", key, (format_ip(packed),), comment)
    data = (format_ip(packed), str(mapping.container_port))
    if not address:
        return member(TABLE, f"ports{version}", (mapping.protocol, port), data, comment)
    return member(TABLE, f"host_ports{version}", (mapping.protocol, address, port), data, comment)


def overlapping(wanted: list[Element], world: World) -> list[Element]:
    """Return the ports of other attachments that some of these lie in the way of, under whatever key."""
    rare = ("host_ports", "ranges")
    # One port of any address is looked up by its key, whatever else there is by going through all: there is little.
    whole = any(element.set.startswith(rare) for element in wanted)
    sets = tuple(s for s in TABLE.sets if s.name.startswith((*rare, "ports") if whole else rare))
    found = world[HOST].elements(TABLE.replace(sets=sets), "cni:")
    return [one for one in found if any(_overlap(one, element) and owner(one) != owner(element) for element in wanted)]


def _overlap(a: Element, b: Element) -> bool:
    def ends(element: Element) -> list[tuple[bytes, bytes]]:
        whole = (bytes(16), b"\xff" * 16)
        kinds = TABLE.set(element.set).key
        protocol, *address, port = (encoded(kind, word) for kind, word in zip(kinds, element.key, strict=True))
        return [protocol, *(address or [whole]), port]

    if a.set[-1] != b.set[-1]:
        return False  # the other family
    return all(low <= end and start <= high for (low, high), (start, end) in zip(ends(a), ends(b), strict=True))


def _freed(steps: tuple[Step, ...], world: World) -> tuple[Step, ...]:
    """Put in front the removal of ports whose holders are dead. Raises CniError naming one who may be alive."""
    wanted = [step.what.element for step in steps if isinstance(step.what, Member)]
    removals: list[Step] = []
    for found in overlapping(wanted, world):
        for element in wanted:
            if _overlap(found, element) and holds(found, element, world):
                raise taken(element, found)
        if not any((found.set, found.key) == (element.set, element.key) for element in wanted):
            removals.append(Del(member(TABLE, found.set, found.key, (), found.comment)))
    return (*removals, *steps)


def _add(request: Request) -> Result:
    conf, given = parse(request), chained.previous(request)
    addresses = chained.addresses(request, given)
    _refuse_family(conf, addresses)
    if conf.mappings and addresses:
        with World() as world:
            steps = plan(conf, addresses, chained.comment(request, world), _way(addresses, world))
            apply(_freed(steps, world), world)
    return given


def _refuse_family(conf: Conf, addresses: tuple[str, ...]) -> None:
    """Raise CniError for a mapping that no address of the container is for."""
    for mapping in conf.mappings:
        if addresses and not any(_is_for(mapping, parse_cidr(cidr)[0]) for cidr in addresses):
            version = "IPv6" if ":" in mapping.host_ip else "IPv4"
            why = f"hostIP {mapping.host_ip} of port {mapping.host_port}: the container has no {version} address"
            raise invalid_config("runtimeConfig.portMappings", why)


def _way(addresses: tuple[str, ...], world: World) -> str:
    """Return the host's link to the container's IPv4 address."""
    for packed, _ in map(parse_cidr, addresses):
        if len(packed) == 4:
            return world[HOST].way(packed)
    return ""


def _delete(request: Request) -> None:
    with World() as world:
        steps = owned((TABLE,), ownership.tag(request.attachment), world)
        faults = remove([*steps, *_led(steps)], world)
    if faults:
        raise collected(faults, "DEL")


def _led(steps: list[Del]) -> list[Step]:
    """Return the steps that make conntrack forget the UDP flows which these ports led to the container."""
    found: list[Step] = []
    for element in (step.what.element for step in steps if isinstance(step.what, Member)):
        if element.key[0] != "udp":
            continue
        low, high = (int.from_bytes(end, "big") for end in encoded("inet_service", element.key[-1]))
        address = element.key[1] if element.set.startswith("host_ports") else ""
        af = family(parse_ip(element.data[0]))
        found.append(Del(_stale_flows(low, high - low + 1, af, address)))
    return found


def _check(request: Request) -> None:
    conf, given = parse(request), chained.previous(request)
    addresses = chained.addresses(request, given)
    if conf.mappings and addresses:
        with World() as world:
            chained.check(plan(conf, addresses, chained.comment(request, world), _way(addresses, world)), world)


def _gc(request: Request) -> None:
    chained.collect((TABLE,), request)


def _status(request: Request) -> None:
    parse(request)
    chained.available((TABLE,))


PLUGIN = Plugin("portmap", _add, _delete, _check, _gc, _status)

if __name__ == "__main__":
    main(PLUGIN)
