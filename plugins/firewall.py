r"""firewall: containers get through a host's firewall, and networks are kept apart. A plugin for the list.

    {
        "cniVersion": "1.1.0",
        "name": "web",
        "plugins": [
            {
                "type": "bridge",
                "isDefaultGateway": true,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]]}
            },
            {"type": "firewall", "ingressPolicy": "same-bridge"}
        ]
    }

| key | default | |
| --- | --- | --- |
| backend | "" | firewalld where it runs, else nftables; or one of firewalld, nftables, iptables |
| ingressPolicy | open | same-bridge: not from other bridges that have a policy; isolated: not from the own one either |
| iptablesAdminChainName | CNI-ADMIN | the chain for the administrator's own rules, which come first |
| firewalldZone | trusted | the zone the container's addresses are put in |

What goes through is what a container sends, the answers to it, and what comes for a published port. With nftables these
packets get the mark 0x1000. Where iptables forwards only what it is told to (policy DROP of FORWARD, as Docker and ufw
have it; with the legacy kind whatever its policy) one rule is appended there that accepts the mark, behind all the
others: what they drop stays dropped.

A source is easily forged. What has a container's gets the mark where it comes by the link that the way back to the
source takes, or by the first of the host's links in prevResult: of a bridge without an address the routes know nothing.
Nothing is dropped for its source; but what a container on two networks sends from its address in one of them through
the other has no mark. The backend iptables has the reference's rules, which believe any source.

A ruleset of the administrator's own in nftables that drops what is forwarded needs a rule to the same effect:
`meta mark and 0x1000 == 0x1000 accept`.

The administrator's chain is in the table `inet cnikit_firewall`. It is made empty and never touched again:
`nft add rule inet cnikit_firewall CNI-ADMIN ip daddr 10.88.0.7 drop`.

Isolation also holds between two containers of one bridge, whose ports it isolates (`bridge link set ... isolated on`).

Result: prevResult as it was. DEL needs no netns, and prevResult with the backend iptables only, whose rules do not say
whose they are.
"""

from __future__ import annotations

from cnikit import adopted, chained, ownership, spec
from cnikit.address import format_host, format_ip, parse_cidr, parse_ip
from cnikit.effects import firewalld
from cnikit.effects.kernel import World
from cnikit.errors import CniError, collected, invalid_config
from cnikit.forwarding import ACCEPT_MARKED, ADMIN, MARK, TABLE
from cnikit.main import main
from cnikit.netlink.nftables import Element, Rule, Table
from cnikit.objects import HOST
from cnikit.plan import Add, Del, Ensure, Step, apply, clear, mend, preflight, remove
from cnikit.plugin import Plugin
from cnikit.result import IP
from cnikit.ruleset import Appended, Member, Recent, Ruleset, has_table, member, outdated, owners
from cnikit.settings import Isolated
from cnikit.value import Value
from cnikit.zones import ZoneSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cnikit.request import Request
    from cnikit.result import Result

BACKENDS = ("", "nftables", "iptables", "firewalld")
POLICIES = ("open", "same-bridge", "isolated")
ZONE = "trusted"


class Conf(Value):
    """The configuration, checked."""

    backend: str
    policy: str
    admin: str
    zone: str


def parse(request: Request) -> Conf:
    """Read the configuration. Raises CniError."""
    config = request.config
    conf = Conf(
        backend=config.string("backend"),
        policy=config.string("ingressPolicy", default="open") or "open",
        admin=config.string("iptablesAdminChainName", default=ADMIN) or ADMIN,
        zone=config.string("firewalldZone", default=ZONE) or ZONE,
    )
    for key, value, known in (("backend", conf.backend, BACKENDS), ("ingressPolicy", conf.policy, POLICIES)):
        if value not in known:
            raise config.invalid(key, f"{value!r} is none of {', '.join(repr(one) for one in known)}")
    if not (conf.admin.replace("-", "").replace("_", "").isalnum() and conf.admin.isascii() and len(conf.admin) <= 28):
        raise config.invalid("iptablesAdminChainName", f"{conf.admin!r} is no chain's name")
    if conf.admin[0].isdigit() or conf.admin in ("admins", "forward", "accept", "drop"):
        raise config.invalid("iptablesAdminChainName", f"{conf.admin!r} is a name that nftables or this plugin uses")
    return conf


def plan(conf: Conf, given: Result, comment: str, is_bridge: bool = True) -> tuple[Step, ...]:
    """Return the steps of an ADD with nftables; is_bridge tells of the first of the host's links in the result."""
    steps: list[Step] = [Ensure(Ruleset(HOST, TABLE.name, TABLE))]
    if conf.admin != ADMIN:
        jump = Rule(f"jump {conf.admin}", f"the administrator's own rules: {conf.admin}")
        steps.append(Ensure(Appended(HOST, "admins", TABLE, jump)))
    link = _host_links(conf, given)[0]
    keys = [
        (f"{name}{4 if len(address) == 4 else 6}", (*where, format_ip(address)))
        for address in _packed(given.ips)
        for name, where in (("containers", ()), ("senders", (link,)))
        if not where or (link and spec.is_plain(link))
    ]
    elements = [Element(name, key, (), comment) for name, key in keys]
    kinds = {"containers": Member, "senders": Recent}
    members = [Add(kinds[element.set[:-1]](HOST, element.set, TABLE, element)) for element in elements]
    policy = _policy(conf, given) if is_bridge else _own_policy(conf, given, comment)
    return (*steps, *policy, *members)


def _own_policy(conf: Conf, given: Result, comment: str) -> list[Add]:
    """Return the steps of an ingressPolicy on a link of the attachment's own, as ptp makes one: they go with it."""
    link, *_ = _host_links(conf, given)
    confined = [Add(member(TABLE, "confined", (link,), (), comment))]
    within = [Add(member(TABLE, "within", (link, link), (), comment))]
    return {"open": [], "same-bridge": [*confined, *within], "isolated": [*confined]}[conf.policy]


def _policy(conf: Conf, given: Result) -> list[Step]:
    """Return the steps of an ingressPolicy. They stay, as the bridge does. Raises CniError where there is no link."""
    bridge, *ports = _host_links(conf, given)
    if conf.policy == "open":
        return []
    steps: list[Step] = [Ensure(member(TABLE, "confined", (bridge,), (), "ingressPolicy"))]
    if conf.policy == "same-bridge":
        return [*steps, Ensure(member(TABLE, "within", (bridge, bridge), (), "ingressPolicy"))]
    # Who was less strict before.
    reached = Del(member(TABLE, "within", (bridge, bridge), (), "ingressPolicy"))
    return [*steps, reached, *(Add(Isolated(HOST, port, before=False)) for port in ports)]


def _host_links(conf: Conf, given: Result) -> list[str]:
    links = [link.name for link in given.interfaces if not link.sandbox]
    if not links and conf.policy != "open":
        why = f"{conf.policy!r} needs a bridge: chain firewall behind the plugin bridge"
        raise invalid_config("ingressPolicy", why)
    for name in links:
        if fault := spec.ifname_fault(name):
            raise invalid_config("prevResult.interfaces", f"{name!r:.100}: {fault}")
    if conf.policy != "open" and not spec.is_plain(links[0]):
        raise invalid_config("ingressPolicy", f"the bridge's name {links[0]!r} cannot be written in rules")
    return links or [""]


def accepting(world: World) -> list[Step]:
    """Return the steps that have iptables accept what carries the mark, where it drops what it forwards."""
    steps: list[Step] = [
        Ensure(Appended(HOST, chain, Table(family, table, (), ()), ACCEPT_MARKED))
        for family, table, chain in world[HOST].dropping("forward")
        if (table, chain) == ("filter", "FORWARD")
    ]
    legacy = world[HOST].legacy("filter")
    if legacy:
        from cnikit import iptables

        accept = iptables.Rule("FORWARD", f"-m mark --mark {MARK:#x}/{MARK:#x}", "ACCEPT")
        rules = [iptables.Rules(HOST, "filter", version, shared=(accept,), variant="-legacy") for version in legacy]
        steps += map(Ensure, rules)
    return steps


def _plan(request: Request, world: World) -> list[Step]:
    """Return the steps of an ADD as things are on this host."""
    conf, given = parse(request), chained.previous(request)
    given = given.replace(ips=chained.own_addresses(request, given))
    backend = conf.backend or ("firewalld" if firewalld.is_running() else "nftables")
    if backend == "iptables":
        from cnikit import iptables

        bridge, *_ = _host_links(conf, given)
        versions = sorted({6 if ":" in ip.address else 4 for ip in given.ips})
        policy = iptables.ingress_policy(conf.policy, bridge, versions)
        return [*iptables.firewall(given.ips, conf.admin), *policy]
    planned = plan(conf, given, chained.comment(request, world), _is_bridge(_host_links(conf, given)[0], world))
    # A port that bridge has isolated is not this plugin's to put back.
    native = [step for step in planned if not isinstance(step.what, Isolated) or step.what.fault(world)]
    if backend == "firewalld":
        return [*native, *(Add(ZoneSource(HOST, conf.zone, format_host(packed))) for packed in _packed(given.ips))]
    return [*native, *accepting(world)]


def _is_bridge(name: str, world: World) -> bool:
    link = world[HOST].link(name) if name else None
    return link is not None and link.kind == "bridge"


def _packed(ips: Iterable[IP]) -> dict[bytes, None]:
    """Return the addresses, each once."""
    return dict.fromkeys(parse_cidr(ip.address)[0] for ip in ips)


def _add(request: Request) -> Result:
    with World() as world:
        chained.take_over(request, world)
        steps = _plan(request, world)
        preflight((step for step in steps if isinstance(step.what, ZoneSource)), world)
        apply(steps, world)
    return chained.previous(request)


def _delete(request: Request) -> None:
    ownership.outdated(request)  # Without a list of whom to keep nothing is done.
    with World() as world:
        elements, faults = _listed(request, world)
        given = chained.own_addresses(request, request.remembered()) if request.verb == "DEL" else ()
        addresses = (*given, *_addresses(elements))
        others = (
            lambda: _zone_sources(request, _of_no_other(addresses, request, world)),
            lambda: adopted.firewall_of(_of_no_other(addresses, request, world), world),
            lambda: _policy_by_iptables(request, world),
        )
        faults += clear(others, world)
        # Where nothing else tells the addresses, the next try has to find the elements.
        if given or not faults:
            faults += remove(elements, world)
    if faults:
        raise collected(faults, request.verb)


def _listed(request: Request, world: World) -> tuple[list[Step], list[CniError]]:
    """Return the steps that take away the elements, or why they cannot be listed."""
    try:
        return outdated((TABLE,), request, world), []
    except CniError as e:
        return [], [e]


def _addresses(steps: list[Step]) -> list[IP]:
    """Return the containers' addresses that are nobody's any more after these steps."""
    elements = [(step, step.what.element) for step in steps if isinstance(step.what, Member)]
    kept = [element.key for step, element in elements if isinstance(step, Add)]
    gone = [element for _, element in elements if element.set.startswith("containers") and element.key not in kept]
    return [IP(format_host(parse_ip(element.key[0]))) for element in gone]


def _of_no_other(ips: Iterable[IP], request: Request, world: World) -> list[IP]:
    """Return the addresses that no other attachment has by now: what is left does not say whose it is."""
    whose = ownership.outdated(request)
    if not has_table(TABLE, world):
        return list(ips)
    found: list[IP] = []
    for ip in ips:
        address, version = ip.address.partition("/")[0], 6 if ":" in ip.address else 4
        element = world[HOST].element(TABLE, Element(f"containers{version}", (address,)))
        if element is None or all(map(whose, owners(element))):
            found.append(ip)
    return found


def _zone_sources(request: Request, addresses: Sequence[IP]) -> list[Step]:
    zone = request.config.raw("firewalldZone") or ZONE
    if not addresses or request.config.raw("backend") in ("iptables", "nftables") or not firewalld.is_running():
        return []
    return [Del(ZoneSource(HOST, str(zone), format_host(packed))) for packed in _packed(addresses)]


def _policy_by_iptables(request: Request, world: World) -> Iterable[Step]:
    """Return the steps that take away the rules of an ingressPolicy on a link of the attachment's own."""
    links = [link.name for link in request.remembered().interfaces if not link.sandbox][:1]
    if request.verb == "GC" or not links or spec.ifname_fault(links[0]) or _is_bridge(links[0], world):
        return ()
    from cnikit import iptables

    return iptables.ingress_policy_removal(links[0], world)


def _check(request: Request) -> None:
    with World() as world:
        chained.check(_plan(request, world), world)


def _status(request: Request) -> None:
    conf = parse(request)
    chained.available((TABLE,), conf.backend)
    if conf.backend == "firewalld" and not firewalld.is_running():
        raise CniError(spec.UNAVAILABLE, "backend: firewalld is not running")


def _repair(request: Request) -> tuple[str, ...]:
    with World() as world:
        return mend(_plan(request, world), world)


PLUGIN = Plugin("firewall", _add, _delete, _check, _delete, _status, _repair)

if __name__ == "__main__":
    main(PLUGIN)
