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
| hostPort | none | 1 to 65535; 0 or none publishes nothing: the container only listens there |
| containerPort | | 1 to 65535 |
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
[::1] stays the host's own, and hostIP ::1 is refused.

A mapping without hostPort, or for a hostIP of a family that the container has no address of, is left out, and ADD names
it on stderr.

A container on several networks may ask for a port on each, as podman does: it leads through the first, and through the
next one when that goes.

Result: prevResult as it was. DEL needs neither prevResult nor the mappings. UDP and SCTP flows to the ports, which
conntrack would lead to where they went before, are forgotten on ADD and DEL.
"""

from __future__ import annotations

from cnikit import adopted, chained, hostports, ownership
from cnikit.address import format_ip, parse_cidr, parse_ip
from cnikit.effects import locks, notes
from cnikit.effects.kernel import World
from cnikit.errors import CniError, collected, invalid_config
from cnikit.hostports import TABLE, Mapping
from cnikit.main import main
from cnikit.netlink.nftables import PROTOCOLS
from cnikit.objects import HOST, Sysctl
from cnikit.plan import Add, Del, Ensure, Set, Step, apply, clear, mend, preflight, remove
from cnikit.plugin import Plugin
from cnikit.ruleset import Foreign, Member, Ruleset, has_table, outdated, whose_to_remove
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cnikit.fields import Fields
    from cnikit.request import Request
    from cnikit.result import Result


# Mappings that one line names.
_FEW = 10


class Conf(Value):
    """The configuration, checked."""

    backend: str
    snat: bool
    masq_all: bool
    mark_bit: int
    set_mark_chain: str
    conditions: dict[int, tuple[str, ...]]
    mappings: tuple[Mapping, ...]
    unpublished: tuple[str, ...]  # where mappings stand that have no host port


def parse(request: Request) -> Conf:
    """Read the configuration. Raises CniError."""
    config = request.config
    given = config.object("runtimeConfig").objects("portMappings")
    conf = Conf(
        backend=config.string("backend"),
        snat=not config.has("snat") or config.boolean("snat"),
        masq_all=config.boolean("masqAll"),
        mark_bit=config.integer("markMasqBit", default=13, high=31),
        set_mark_chain=config.string("externalSetMarkChain"),
        conditions={4: config.strings("conditionsV4"), 6: config.strings("conditionsV6")},
        mappings=tuple(_mapping(one) for one in given if _is_published(one)),
        unpublished=tuple(one.path for one in given if not _is_published(one)),
    )
    if conf.set_mark_chain and config.has("markMasqBit"):
        raise config.invalid("externalSetMarkChain", "cannot be used together with markMasqBit")
    conf = conf.replace(backend=_backend(conf, config))
    for length in (4, 16):
        hostports.in_a_row(_of_family(conf, bytes(length)))  # a host port that is to lead to two ports is refused
    return conf


def _backend(conf: Conf, config: Fields) -> str:
    """Return the backend asked for, by its name or by a key that only one has."""
    if conf.backend not in ("", "nftables", "iptables"):
        raise config.invalid("backend", f"{conf.backend!r} is neither 'nftables' nor 'iptables'")
    wanted = {"externalSetMarkChain": "iptables"} if conf.set_mark_chain else {}
    for version, words in conf.conditions.items():
        if words and words[0]:
            wanted[f"conditionsV{version}"] = "iptables" if words[0].startswith(("-", "!")) else "nftables"
    backend = conf.backend or next(iter(wanted.values()), "nftables")
    for key, needed in wanted.items():
        if needed != backend:
            raise config.invalid(key, f"is for the backend {needed!r}, not {backend!r}")
    return backend


def _is_published(given: Fields) -> bool:
    """Tell whether a mapping has a host port. Kubernetes' need none: their container port is for the reader."""
    return given.integer("hostPort", high=65535) != 0


def _mapping(given: Fields) -> Mapping:
    if not given.has("containerPort"):
        raise given.invalid("containerPort", "is missing")
    protocol = given.string("protocol").lower() or "tcp"
    if protocol not in PROTOCOLS:
        raise given.invalid("protocol", f"{protocol!r} is none of {', '.join(PROTOCOLS)}")
    packed = given.parsed("hostIP", parse_ip)
    host_port, container_port = (given.integer(key, low=1, high=65535) for key in ("hostPort", "containerPort"))
    return Mapping(protocol, host_port, container_port, format_ip(packed) if packed else "")


def plan(conf: Conf, addresses: tuple[str, ...], comment: str, way: str) -> tuple[Step, ...]:
    """Return the steps of an ADD; addresses are the container's, way is the host's link to it."""
    steps: list[Step] = [Ensure(Ruleset(HOST, TABLE.name, TABLE))]
    for packed, length in map(parse_cidr, addresses):
        served = hostports.in_a_row(_of_family(conf, packed))
        if not served:
            continue
        ports = [hostports.port(mapping, packed, comment) for mapping in served]
        steps += _conditional(conf, packed, comment) or [Add(port) for port in ports]
        if conf.snat or conf.masq_all:
            steps += [Add(one) for one in hostports.masqueraded(packed, length, comment, conf.masq_all)]
        else:
            steps.append(Add(hostports.unmasqueraded(packed, comment)))
        if len(packed) == 4:
            steps += _route_localnet(conf, way)
        steps += [Set(old) for port in ports for old in hostports.stale_flows(port.element)]
    return tuple(steps)


def _of_family(conf: Conf, packed: bytes) -> list[Mapping]:
    """Return the mappings for an address of this family, each spelling of "any" as the same."""
    return [mapping.replace(host_ip=mapping.one_address()) for mapping in conf.mappings if mapping.is_for(packed)]


def _conditional(conf: Conf, packed: bytes, comment: str) -> list[Step]:
    version = 4 if len(packed) == 4 else 6
    if not any(conf.conditions[version]):
        return []
    from cnikit import conditions

    served = [mapping for mapping in conf.mappings if mapping.is_for(packed)]
    rules = conditions.rules(conf.conditions[version], served, packed)
    key = f"conditionsV{version}"
    return [Add(conditions.Conditional(HOST, f"conditional{version}", TABLE, rules, comment, key))]


def _plan(request: Request, world: World) -> list[Step]:
    """Return the steps of an ADD as things are: who else has the ports, and where the container is."""
    conf, given = parse(request), chained.previous(request)
    addresses = chained.addresses(request, given)
    if request.verb == "ADD":
        _name_unserved(conf, addresses)
    conf = _served(conf, addresses)
    if not (conf.mappings and addresses):
        return []
    way = next((world[HOST].way(packed) for packed, _ in map(parse_cidr, addresses) if len(packed) == 4), "")
    if conf.backend == "iptables":
        # The table is there for what it keeps from 127.0.0.1.
        guard = Ensure(Ruleset(HOST, TABLE.name, TABLE))
        natively = plan(conf.replace(conditions={4: (), 6: ()}), addresses, chained.comment(request, world), way)
        hostports.settled(natively, world)  # refuses a port that another container has by nftables
        comment, packed = chained.comment(request, world), [parse_cidr(cidr)[0] for cidr in addresses]
        found = [Add(hostports.unmasqueraded(one, comment)) for one in packed if _of_family(conf, one)]
        return [*_with_iptables(conf, addresses, request), guard, *found, *_route_localnet(conf, way)]
    return hostports.settled(plan(conf, addresses, chained.comment(request, world), way), world)


def _with_iptables(conf: Conf, addresses: tuple[str, ...], request: Request) -> list[Step]:
    from cnikit import iptables

    options = iptables.Options(
        conf.snat, conf.masq_all, conf.mark_bit, conf.set_mark_chain, conf.conditions[4], conf.conditions[6]
    )
    flows = [Set(old) for packed, _ in map(parse_cidr, addresses) for old in _flows(conf, packed)]
    return [*iptables.port_mappings(request.attachment, conf.mappings, addresses, options), *flows]


def _flows(conf: Conf, packed: bytes) -> list[hostports.StaleFlows]:
    """Return what conntrack may remember of flows to the ports that are asked for, of one family."""
    ports = [hostports.port(mapping, packed, "") for mapping in _of_family(conf, packed)]
    return [old for port in ports for old in hostports.stale_flows(port.element)]


def _route_localnet(conf: Conf, way: str) -> list[Step]:
    """Return the step that lets packets from 127.0.0.1 out to the container; the table keeps others from coming in."""
    return [Ensure(Sysctl(HOST, f"net/ipv4/conf/{way}/route_localnet", "1"))] if conf.snat and way else []


def _served(conf: Conf, addresses: tuple[str, ...]) -> Conf:
    """Return the configuration with the mappings that an address of the container is for. Raises CniError."""
    served = tuple(mapping for mapping in conf.mappings if _has_family(mapping, addresses))
    for mapping in served:
        if mapping.host_ip == "::1":
            why = f"hostIP ::1 of port {mapping.host_port}: from ::1 there is no way to a container; 127.0.0.1 has one"
            raise invalid_config("runtimeConfig.portMappings", why)
    return conf.replace(mappings=served)


def _has_family(mapping: Mapping, addresses: tuple[str, ...]) -> bool:
    return any(mapping.is_for(parse_cidr(cidr)[0]) for cidr in addresses)


def _name_unserved(conf: Conf, addresses: tuple[str, ...]) -> None:
    """Say on stderr which mappings publish nothing, and why."""
    if conf.unpublished:
        notes.say(f"no port is published by what has no hostPort: {_few(conf.unpublished)}")
    if conf.mappings and not addresses:
        notes.say("no port is published: the container has no address")
        return
    for version, colon in (("IPv4", False), ("IPv6", True)):
        left = [m for m in conf.mappings if (":" in m.host_ip) == colon and not _has_family(m, addresses)]
        if left:
            ports = _few([f"{m.host_port}/{m.protocol} of {m.host_ip}" for m in left])
            notes.say(f"not published, as the container has no {version} address: {ports}")


def _few(names: Sequence[str]) -> str:
    """Return a list that can be read, however many it names."""
    more = f", and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more


def _add(request: Request) -> Result:
    with World() as world:
        chained.take_over(request, world)
    # From the look at who has a port to its taking, and to its release, nobody else does either.
    with locks.Locked(hostports.LOCK), World() as world:
        steps = _plan(request, world)
        # Those whose fault would not be the kernel's to name.
        preflight((step for step in steps if step.what.transaction == "nft"), world)
        apply(steps, world)
    return chained.previous(request)


def _delete(request: Request) -> None:
    ownership.outdated(request)  # Without a list of whom to keep nothing is done.
    with World() as world:
        with locks.Locked(hostports.LOCK):
            freed, faults = _free(request, world)
        # Neither conntrack nor iptables makes others wait.
        listings = (
            lambda: map(Del, _led(request, freed)),
            lambda: _rules(request, world),
            lambda: adopted.port_mappings(request, world),
        )
        faults += clear(listings, world)
    if faults:
        raise collected(faults, request.verb)


def _free(request: Request, world: World) -> tuple[list[Step], list[CniError]]:
    """Take away the elements; return the steps that do, and what went wrong."""
    try:
        removals = outdated((TABLE,), request, world)
        return removals, remove(hostports.given_back(removals, world), world)
    except CniError as e:
        return [], [e]


def _led(request: Request, freed: list[Step]) -> Iterable[hostports.StaleFlows]:
    """Return the flows that elements may have led, and rules: those do not tell, so what is configured."""
    elements = [step.what.element for step in freed if isinstance(step.what, Member)]
    led = [old for element in elements for old in hostports.stale_flows(element)]
    return dict.fromkeys([*led, *_asked_for(request)])


def _asked_for(request: Request) -> list[hostports.StaleFlows]:
    """Return the flows to what is configured."""
    try:
        conf = parse(request)
    except CniError:
        return []
    return [*_flows(conf, bytes(4)), *_flows(conf, bytes(16))]


def _rules(request: Request, world: World) -> list[Step]:
    """Return the steps that take away what was published on conditions."""
    whose = whose_to_remove(request, world)
    if not has_table(TABLE, world):
        return []
    found = dict.fromkeys(one for one in world[HOST].rules(TABLE) if one[0].startswith("conditional"))
    return [Del(Foreign(HOST, chain, TABLE, said, whole=True)) for chain, said in found if whose(said)]


def _check(request: Request) -> None:
    with World() as world:
        chained.check(_plan(request, world), world)


def _status(request: Request) -> None:
    chained.available((TABLE,), parse(request).backend)


def _repair(request: Request) -> tuple[str, ...]:
    with locks.Locked(hostports.LOCK), World() as world:
        return mend(_plan(request, world), world)


PLUGIN = Plugin("portmap", _add, _delete, _check, _delete, _status, _repair)

if __name__ == "__main__":
    main(PLUGIN)
