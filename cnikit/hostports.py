"""Ports of the host that lead to containers, as portmap's nftables table has them.

ports4, ports6             protocol and port: a container's address and port
host_ports4, host_ports6   the same for one address of the host's
ranges4, ranges6           ports in a row that keep their numbers: a container's address
spares4, spares6           ports that another network of the same container has, to be taken over when it goes
masquerade4, masquerade6   a container's address, and from where packets to it take the host's address; nowhere is
                           0.0.0.0 or ::, so that each address with ports is found here
"""

from __future__ import annotations

from _socket import AF_INET6

from cnikit import ownership, ruleset, spec
from cnikit.address import family, format_cidr, format_ip, network, parse_ip
from cnikit.errors import CniError, invalid_config
from cnikit.netlink import nftables
from cnikit.netlink.nftables import Chain, Element, Rule, Table, encoded
from cnikit.objects import HOST, Make, Object
from cnikit.plan import Add, Del, Ensure, Step
from cnikit.ruleset import Member, Pair, Recent, member, owner, pair
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cnikit.objects import Change, World

_NO_WAY = Rule("ip6 daddr ::1 return", "from ::1 there is no way to a container")
_LOCAL = Rule("fib daddr type local jump published", "what is for this host")
LOOPBACK = "127.0.0.0/8"


def _sets(version: int) -> tuple[nftables.Set, ...]:
    ip = f"ipv{version}_addr"
    return (
        nftables.Set(f"ports{version}", ("inet_proto", "inet_service"), (ip, "inet_service")),
        nftables.Set(f"host_ports{version}", ("inet_proto", ip, "inet_service"), (ip, "inet_service")),
        nftables.Set(f"ranges{version}", ("inet_proto", ip, "inet_service"), (ip,), interval=True),
        nftables.Set(f"spares{version}", ("inet_proto", ip, "inet_service", ip, "inet_service"), interval=True),
        nftables.Set(f"masquerade{version}", (ip, ip), interval=True),
    )


def _published(version: str, n: int) -> tuple[Rule, ...]:
    return (
        Rule(f"jump conditional{n}", "on conditions of their own"),
        Rule(f"dnat {version} to meta l4proto . {version} daddr . th dport map @host_ports{n}", "of one host address"),
        Rule(f"dnat {version} to meta l4proto . th dport map @ports{n}", "of all host addresses"),
        Rule(f"dnat {version} to meta l4proto . {version} daddr . th dport map @ranges{n}", "ports in a row"),
    )


TABLE = Table(
    "inet",
    "cnikit_portmap",
    (*_sets(4), *_sets(6)),
    (
        Chain("conditional4", open=True),
        Chain("conditional6", open=True),
        Chain("published", (*_published("ip", 4), *_published("ip6", 6))),
        Chain(
            "loopback",
            (
                # Every packet comes by here, and nearly none has such an address: that is asked first.
                Rule(f'ip daddr {LOOPBACK} iifname != "lo" drop', "127.0.0.1 is the host's own, whatever is routed"),
                Rule(f'ip saddr {LOOPBACK} iifname != "lo" drop', "nobody else speaks from there"),
            ),
            "filter",
            "prerouting",
            -300,
        ),
        Chain("prerouting", (_LOCAL,), "nat", "prerouting", -100),
        Chain("output", (_NO_WAY, _LOCAL), "nat", "output", -100),
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

    def one_address(self) -> str:
        """Return the one address of the host's it is for, "" when it is for all."""
        return self.host_ip if self.host_ip and any(parse_ip(self.host_ip)) else ""

    def is_for(self, packed: bytes) -> bool:
        """Tell whether it is for an address of this family."""
        return not self.host_ip or len(parse_ip(self.host_ip)) == len(packed)


def in_a_row(mappings: Iterable[Mapping]) -> tuple[Mapping, ...]:
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


class Port(Member):
    """A host port."""

    def changes(self, world: World) -> Sequence[Change]:
        """Return what makes it: settled() has looked at who holds it."""
        return (Make(self),)


def port(mapping: Mapping, packed: bytes, comment: str) -> Port:
    """Return the element that leads a mapping's host ports to a container's address."""
    version, host_port = 4 if len(packed) == 4 else 6, str(mapping.host_port)
    if mapping.count > 1:
        source = mapping.one_address() or format_cidr(bytes(len(packed)), 0)
        key: tuple[str, ...] = (mapping.protocol, source, f"{host_port}-{mapping.host_port + mapping.count - 1}")
        return _port(f"ranges{version}", key, (format_ip(packed),), comment)
    data = (format_ip(packed), str(mapping.container_port))
    if mapping.one_address():
        return _port(f"host_ports{version}", (mapping.protocol, mapping.host_ip, host_port), data, comment)
    return _port(f"ports{version}", (mapping.protocol, host_port), data, comment)


def _port(name: str, key: tuple[str, ...], data: tuple[str, ...], comment: str) -> Port:
    return Port(HOST, name, TABLE, Element(name, key, data, comment))


def masqueraded(packed: bytes, length: int, comment: str, everybody: bool) -> list[Pair]:
    """Return the elements by which packets to a container's published ports take the host's address.

    Those of its subnet, itself included, and of the host's own 127.0.0.1: answers to them would not come this way.
    """
    version = 4 if len(packed) == 4 else 6
    sources = [format_cidr(bytes(len(packed)), 0)]
    if not everybody:
        sources = [format_cidr(network(packed, length), length), *([LOOPBACK] if version == 4 else [])]
    return [pair(TABLE, f"masquerade{version}", format_ip(packed), source, comment) for source in sources]


def unmasqueraded(packed: bytes, comment: str) -> Recent:
    """Return the element by which a container is found that no packets take the host's address to."""
    key = (format_ip(packed), format_ip(bytes(len(packed))))
    element = Element(f"masquerade{4 if len(packed) == 4 else 6}", key, (), comment)
    return Recent(HOST, element.set, TABLE, element)


def signs(packed: bytes) -> tuple[tuple[str, str], ...]:
    """Return keys one of which is in masquerade4 or masquerade6 where ports lead to an address."""
    address = format_ip(packed)
    return (address, address), (address, format_ip(bytes(len(packed))))


# Protocols by whose old flows something new can begin: the kernel lets an SCTP association begin anew in one, and a TCP
# connection not.
LEADING_ON = ("udp", "sctp")


class FlowsOf(Object):
    """What connection tracking remembers of flows that are led to a container, or began there; name is its address.

    By the latter, too, packets come to whoever has the address: where they are masqueraded, from all that the container
    ever sent to, for as long as packets come. As with StaleFlows, failing to is no failure.
    """

    transaction = "conntrack"

    def removal(self) -> str:
        line = f"conntrack -D -f {'ipv6' if ':' in self.name else 'ipv4'} -p"
        ends = ("--reply-src", "--orig-src")
        return "\n".join(f"{line} {protocol} {end} {self.name}" for protocol in LEADING_ON for end in ends)


class StaleFlows(Object):
    """What connection tracking remembers of flows to ports of the host; name is their protocol, of LEADING_ON.

    An entry leads its flow where the port led when the flow began, whatever the rules say since, for as long as packets
    come. So the entries are deleted, by making this and by removing it: those whose first packet was sent to one of the
    ports, and to the address if there is one. Failing to is no failure, as in the reference: new flows go right all the
    same, and on a kernel that cannot (CONFIG_NF_CT_NETLINK) no DEL would ever succeed.
    """

    transaction = "conntrack"

    ports: tuple[int, ...]
    family: int  # AF_INET or AF_INET6
    address: str = ""

    def command(self) -> str:
        family = "ipv6" if self.family == AF_INET6 else "ipv4"
        address = f" --orig-dst {self.address}" if self.address else ""
        line = f"conntrack -D -f {family} -p {self.name}{address} --orig-port-dst"
        return "\n".join(f"{line} {port}" for port in self.ports)

    def removal(self) -> str:
        return self.command()

    def fault(self, world: World) -> str:
        return ""  # Flows that have begun since are not stale.


def stale_flows(element: Element) -> list[StaleFlows]:
    """Return what conntrack may remember of flows to a port from before it led here."""
    if element.key[0] not in LEADING_ON or not element.data:
        return []
    low, high = (int.from_bytes(end, "big") for end in encoded("inet_service", element.key[-1]))
    address = element.key[1] if element.set.startswith("host_ports") else ""
    return [StaleFlows(HOST, element.key[0], tuple(range(low, high + 1)), family(parse_ip(element.data[0])), address)]


# Who holds a port

LOCK = "/run/cnikit-portmap.lock"

_ALL, _RARE = ("ports", "host_ports", "ranges"), ("host_ports", "ranges")


def settled(steps: Iterable[Step], world: World) -> list[Step]:
    """Return a plan that makes room for its ports. Raises CniError naming a holder who may be alive.

    What dead holders and earlier ADDs of this attachment have there is removed. Where the same container holds a port
    by another of its networks, as podman's do, ours becomes a spare.
    """
    plan = list(steps)
    ports = {i: step.what.element for i, step in enumerate(plan) if isinstance(step.what, Port)}
    index: dict[tuple[str, str, int], list[int]] = {}
    for i, element in ports.items():
        for place in _places(element):
            index.setdefault(place, []).append(i)
    removals: list[Step] = []
    for found in _held(list(ports.values()), world):
        met = {i for place in _places(found) for i in index.get(place, ()) if _same_address(found, ports[i])}
        same = [i for i in met if ports[i] == found]
        if same:
            plan[same[0]] = Ensure(plan[same[0]].what)
        elif met and not is_alive(found, ports[min(met)], world):
            removals.append(Del(Member(HOST, found.set, TABLE, found)))
        elif met and ownership.same_container(owner(found), owner(ports[min(met)])):
            for i in met:
                plan[i] = Add(spare(ports[i]))
        elif met:
            raise taken(ports[min(met)], found)
    # What is changed is changed in one transaction.
    shared = [step for step in plan if isinstance(step, Ensure)]
    return [*shared, *removals, *(step for step in plan if not isinstance(step, Ensure))]


def _held(wanted: list[Element], world: World) -> list[Element]:
    """Return the ports that may be in the way of these, under whatever key."""
    # One port of any address is looked up by its key; whatever else there is by going through all: there is little.
    whole = any(element.set.startswith(_RARE) for element in wanted)
    families = tuple({element.set[-1] for element in wanted})
    kinds = _ALL if whole else _RARE
    sets = tuple(s for s in TABLE.sets if s.name.startswith(kinds) and s.name.endswith(families))
    found = world[HOST].elements(TABLE.replace(sets=sets), "cni:")
    if not whole:
        found = [*found, *filter(None, (world[HOST].element(TABLE, element) for element in wanted))]
    return list(found)


def _places(element: Element) -> list[tuple[str, str, int]]:
    """Return where a port is, as far as two may meet there: family, protocol and each number."""
    number = element.key[-1] if element.set.startswith(_ALL) else element.key[2]
    low, high = (int.from_bytes(end, "big") for end in encoded("inet_service", number))
    return [(element.set[-1], element.key[0], port) for port in range(low, high + 1)]


def _same_address(a: Element, b: Element) -> bool:
    """Tell whether one address of the host's may have both ports."""
    one, other = ("" if e.set.startswith("ports") or e.key[1].endswith("/0") else e.key[1] for e in (a, b))
    return not one or not other or one == other


def is_alive(found: Element, wanted: Element, world: World) -> bool:
    """Tell whether a port's holder is somebody else who may be alive."""
    return owner(found) != owner(wanted) and ruleset.is_alive(found.comment, world)


def taken(wanted: Element, found: Element) -> CniError:
    """Return the error for a port that another attachment holds."""
    protocol, *address, number = wanted.key
    of = f" of {address[0]}" if address and not address[0].endswith("/0") else ""
    return CniError(
        spec.INVALID_CONFIG,
        f"runtimeConfig.portMappings: host port {number}/{protocol}{of} is taken by {shown_owner(found.comment)}",
        f"{found.set} {' . '.join(found.key)} leads to {' . '.join(found.data)}; DEL of that attachment frees it",
    )


def shown_owner(tag: str) -> str:
    """Say whose a tag is: a container of a network."""
    whole = tag.removesuffix(ownership.UNLINKED)
    network, container, ifname = (*whole.removeprefix("cni:").rsplit("/", 2), "", "")[:3]
    return f"container {container} ({ifname} of network {network})" if container else repr(tag)


def spare(element: Element) -> Member:
    """Return a port as a spare."""
    version = element.set[-1]
    protocol, *address, port = element.key
    host_address = address[0] if address else format_cidr(bytes(4 if version == "4" else 16), 0)
    inside = (*element.data, port)[:2]  # a range keeps its numbers
    return member(TABLE, f"spares{version}", (protocol, host_address, port, *inside), (), element.comment)


def _from_spare(element: Element) -> Port:
    """Return the port that a spare stands for."""
    protocol, host_address, port, address, inside = element.key
    version = element.set[-1]
    if "-" in port:
        return _port(f"ranges{version}", (protocol, host_address, port), (address,), element.comment)
    if host_address.endswith("/0"):
        return _port(f"ports{version}", (protocol, port), (address, inside), element.comment)
    return _port(f"host_ports{version}", (protocol, host_address, port), (address, inside), element.comment)


def given_back(removals: Sequence[Step], world: World) -> list[Step]:
    """Return a clean-up in which spares of the same containers take over the ports that become free."""
    steps: list[Step] = list(removals)
    removed = [step.what.element for step in removals if isinstance(step, Del) and isinstance(step.what, Member)]
    spares = TABLE.replace(sets=tuple(s for s in TABLE.sets if s.name.startswith("spares")))
    for waiting in world[HOST].elements(spares, "cni:"):
        if waiting in removed:
            continue
        for free in removed:
            if (
                free.set.startswith(_ALL)
                and not {*_places(free)}.isdisjoint(_places(waiting))
                and _same_address(free, waiting)
                and ownership.same_container(owner(free), owner(waiting))
            ):
                steps += [Del(Member(HOST, waiting.set, TABLE, waiting)), Add(_from_spare(waiting))]
                break
    return steps
