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
have it) one rule is appended there that accepts the mark, behind all the others: what they drop stays dropped.
A ruleset of the administrator's own in nftables that drops what is forwarded needs a rule to the same effect:
`meta mark and 0x1000 == 0x1000 accept`.

The administrator's chain is in the table `inet cnikit_firewall`. It is made empty and never touched again:
`nft add rule inet cnikit_firewall CNI-ADMIN ip daddr 10.88.0.7 drop`.

Isolation also holds between two containers of one bridge, whose ports it isolates (`bridge link set ... isolated on`).

Result: prevResult as it was. DEL needs neither prevResult nor netns.
"""

from __future__ import annotations

from cnikit import chained, ownership
from cnikit.address import format_ip, parse_cidr
from cnikit.effects.kernel import World
from cnikit.errors import collected, invalid_config
from cnikit.main import main
from cnikit.netlink import nftables
from cnikit.netlink.nftables import Chain, Rule, Table
from cnikit.objects import HOST, Isolated
from cnikit.plan import Add, Ensure, Set, Step, apply, remove
from cnikit.plugin import Plugin
from cnikit.ruleset import Appended, Ruleset, member, owned
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnikit.request import Request
    from cnikit.result import Result

MARK = 0x1000
BACKENDS = ("", "nftables", "iptables", "firewalld")
POLICIES = ("open", "same-bridge", "isolated")
ADMIN = "CNI-ADMIN"

_MARK = f"meta mark set meta mark | {MARK:#x}"
ACCEPT_MARKED = Rule(f"meta mark & {MARK:#x} == {MARK:#x} accept", "cnikit: what its firewall lets through")


def _marks(version: str, n: int) -> tuple[Rule, ...]:
    to = f"{version} daddr @containers{n} {_MARK}"
    return (
        Rule(f"{version} saddr @containers{n} {_MARK}", "from containers"),
        Rule(f"ct state established,related {to}", "answers to containers"),
        Rule(f"ct status dnat {to}", "to published ports"),
    )


_APART = Rule(
    "iifname @confined oifname @confined iifname . oifname != @within drop", "networks with an ingressPolicy are apart"
)
TABLE = Table(
    "inet",
    "cnikit_firewall",
    (
        nftables.Set("containers4", ("ipv4_addr",)),
        nftables.Set("containers6", ("ipv6_addr",)),
        nftables.Set("confined", ("ifname",)),
        nftables.Set("within", ("ifname", "ifname")),
    ),
    (
        Chain(ADMIN, open=True),
        Chain("admins", open=True),
        Chain(
            "forward",
            (
                *_marks("ip", 4),
                *_marks("ip6", 6),
                Rule(f"jump {ADMIN}", "the administrator's own rules"),
                Rule("jump admins", "and those in chains of other names"),
                _APART,
            ),
            "filter",
            "forward",
            -10,
        ),
    ),
)


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
        zone=config.string("firewalldZone", default="trusted") or "trusted",
    )
    for key, value, known in (("backend", conf.backend, BACKENDS), ("ingressPolicy", conf.policy, POLICIES)):
        if value not in known:
            raise config.invalid(key, f"{value!r} is none of {', '.join(repr(one) for one in known)}")
    if not (conf.admin.replace("-", "").replace("_", "").isalnum() and conf.admin.isascii() and len(conf.admin) <= 28):
        raise config.invalid("iptablesAdminChainName", f"{conf.admin!r} is no chain's name")
    return conf


def plan(conf: Conf, given: Result, comment: str, dropping: Sequence[tuple[str, str, str]]) -> tuple[Step, ...]:
    """Return the steps of an ADD; dropping are the chains that drop what is forwarded: family, table, name."""
    steps: list[Step] = [Ensure(Ruleset(HOST, TABLE.name, TABLE))]
    if conf.admin != ADMIN:
        jump = Rule(f"jump {conf.admin}", f"the administrator's own rules: {conf.admin}")
        steps.append(Ensure(Appended(HOST, "admins", TABLE, jump)))
    for family, table, chain in dropping:
        if (table, chain) == ("filter", "FORWARD"):
            steps.append(Ensure(Appended(HOST, chain, Table(family, table, (), ()), ACCEPT_MARKED)))
    return (*steps, *_policy(conf, given), *_let_through(given, comment))


def _let_through(given: Result, comment: str) -> list[Step]:
    packed = dict.fromkeys(parse_cidr(ip.address)[0] for ip in given.ips)
    return [
        Add(member(TABLE, f"containers{4 if len(address) == 4 else 6}", (format_ip(address),), (), comment))
        for address in packed
    ]


def _policy(conf: Conf, given: Result) -> list[Step]:
    """Return the steps of an ingressPolicy. They stay, as the bridge does. Raises CniError where there is no bridge."""
    if conf.policy == "open":
        return []
    links = [link.name for link in given.interfaces if not link.sandbox]
    if not links:
        why = f"{conf.policy!r} needs a bridge: chain firewall behind the plugin bridge"
        raise invalid_config("ingressPolicy", why)
    bridge, *ports = links
    steps: list[Step] = [Ensure(member(TABLE, "confined", (bridge,), (), "ingressPolicy"))]
    if conf.policy == "same-bridge":
        return [*steps, Ensure(member(TABLE, "within", (bridge, bridge), (), "ingressPolicy"))]
    return [*steps, *(Set(Isolated(HOST, port, before=False)) for port in ports)]


def _add(request: Request) -> Result:
    conf, given = parse(request), chained.previous(request)
    with World() as world:
        apply(_plan(conf, given, request, world), world)
    return given


def _plan(conf: Conf, given: Result, request: Request, world: World) -> tuple[Step, ...]:
    return plan(conf, given, chained.comment(request, world), world[HOST].dropping("forward"))


def _delete(request: Request) -> None:
    with World() as world:
        faults = remove(owned((TABLE,), ownership.tag(request.attachment), world), world)
    if faults:
        raise collected(faults, "DEL")


def _check(request: Request) -> None:
    conf, given = parse(request), chained.previous(request)
    with World() as world:
        chained.check(_plan(conf, given, request, world), world)


def _gc(request: Request) -> None:
    chained.collect((TABLE,), request)


def _status(request: Request) -> None:
    parse(request)
    chained.available((TABLE,))


PLUGIN = Plugin("firewall", _add, _delete, _check, _gc, _status)

if __name__ == "__main__":
    main(PLUGIN)
