"""iptables as objects of a plan: masquerading, port mappings and the firewall as the reference lays them out.

For configurations that ask for it by name (`ipMasqBackend`, `backend`: "iptables"). Chains, rules and comments are the
reference's, so each suite's DEL and CHECK work on what the other's ADD made:

    nat     CNI-HASH                  masquerades a container; POSTROUTING leads there by its addresses
            CNI-DN-HASH               a container's port mappings; CNI-HOSTPORT-DNAT leads there by its host ports
            CNI-HOSTPORT-SETMARK      marks what CNI-HOSTPORT-MASQ masquerades
    filter  CNI-FORWARD, CNI-ADMIN    accepts containers, after what the administrator has to say
            CNI-ISOLATION-STAGE-1, -2 keeps bridges apart (ingressPolicy)

HASH is made from network and container, not from the interface: two interfaces of one container on one network share
their chains, and the later one's port mappings take the place of the earlier one's.

What is wanted is compared with what iptables-save lists, and what differs goes through one iptables-restore.
"""

from __future__ import annotations

from cnikit.address import format_cidr, format_host, network, parse_cidr, parse_ip
from cnikit.errors import invalid_config
from cnikit.objects import HOST, Object, Remove
from cnikit.ownership import reference_chain
from cnikit.plan import Add, Del, Set, Step
from cnikit.request import Attachment
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
    from typing import Protocol

    from cnikit.errors import CniError
    from cnikit.objects import Change, World
    from cnikit.result import IP

    # A table: the rules of each chain, in the words of iptables-save.
    Chains = Mapping[str, Sequence[str]]

    class PortMapping(Protocol):
        """A host port that leads to a container's; host_ip is the only address it does so on, "" any."""

        @property
        def protocol(self) -> str: ...
        @property
        def host_port(self) -> int: ...
        @property
        def container_port(self) -> int: ...
        @property
        def host_ip(self) -> str: ...


# Program and address length of a family.
PROGRAMS = {4: "iptables", 6: "ip6tables"}
_BITS = {4: 32, 6: 128}
_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}

# Kernel: XT_EXTENSION_MAXNAMELEN, XT_MAX_COMMENT_LEN, XT_MULTI_PORTS.
LONGEST_CHAIN = 28
LONGEST_COMMENT = 255
_PORTS_TOGETHER = 15

_HOSTPORT = "CNI-HOSTPORT-DNAT"
_SETMARK = "CNI-HOSTPORT-SETMARK"
_MASQ = "CNI-HOSTPORT-MASQ"
_FORWARD = "CNI-FORWARD"
_STAGE_1, _STAGE_2 = "CNI-ISOLATION-STAGE-1", "CNI-ISOLATION-STAGE-2"


class Rule(Value):
    """A rule of a chain, in the words of iptables-save: what it matches ("" is all), its target with options.

    first: it is put before the others of its chain, not behind them. conditions: further matches, in the words of
    whoever configured them, which iptables-save may put otherwise.
    """

    chain: str
    match: str
    target: str
    first: bool = False
    conditions: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the rule as iptables takes it."""
        return " ".join(filter(None, (self.match, *map(_quoted, self.conditions), f"-j {self.target}")))

    def found(self, texts: Sequence[str]) -> str:
        """Return the rule as it stands among those of its chain, "" where it does not."""
        if self.text() in texts:
            return self.text()
        wanted = _options(self.replace(conditions=()).text())
        for text in texts:
            options = _options(text) if text.endswith(self.target) else []
            if set(wanted) < set(options) if self.conditions else options == wanted:
                return text
        return ""


def _options(text: str) -> list[str]:
    """Split a rule before each option, "!" going with it: versions of iptables do not agree on their order."""
    return sorted(f" {text}".replace(" ! -", " -!").split(" -"))


def _quoted(word: str) -> str:
    if word and not any(c.isspace() or c in "\"'\\#" for c in word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


class Edit:
    """A table as it is, and the lines for iptables-restore that change it."""

    def __init__(self, chains: Chains) -> None:
        self.chains = {chain: list(texts) for chain, texts in chains.items()}
        self.lines: list[str] = []

    def need_chain(self, chain: str) -> None:
        """Have a chain that is shared with others."""
        # ":CHAIN" would empty one that somebody else made since we looked; -N fails then, and we look again.
        if chain not in self.chains:
            self.lines.append(f"-N {chain}")
            self.chains[chain] = []

    def need(self, rule: Rule) -> None:
        """Have a rule."""
        texts = self.chains.setdefault(rule.chain, [])
        if not rule.found(texts):
            self.lines.append(f"{'-I' if rule.first else '-A'} {rule.chain} {rule.text()}")
            texts.insert(0 if rule.first else len(texts), rule.text())

    def fill(self, chain: str, texts: list[str]) -> None:
        """Have these rules and no others in a chain."""
        if self.chains.get(chain) != texts:
            self.lines += [f":{chain} - [0:0]", *(f"-A {chain} {text}" for text in texts)]
            self.chains[chain] = texts

    def delete(self, chain: str, text: str) -> None:
        """Take a rule away."""
        self.lines.append(f"-D {chain} {text}")
        self.chains[chain].remove(text)

    def drop(self, chain: str) -> None:
        """Take a chain away, nothing leading there any more."""
        if chain in self.chains:
            self.lines += [f"-F {chain}", f"-X {chain}"]
            del self.chains[chain]

    def jumps(self, chains: Iterable[str]) -> list[tuple[str, str]]:
        """Return the rules that lead to chains, each with the chain it stands in."""
        ends = tuple(f"-j {chain}" for chain in chains)
        return [(chain, text) for chain, texts in self.chains.items() for text in texts if text.endswith(ends)]


class Rules(Object):
    """What a table holds for an attachment; name is the table's, version 4 or 6.

    chains, shared: used by others too, made where they are missing and never removed.
    private: chains that, with all that leads to them, are the attachment's alone, and own: its rules.
    sources: where the private chain may serve other interfaces of the container, too: the addresses ("10.1.0.7/32")
    this one's jumps match; when the last jump has gone, the chain goes.
    variant: "-legacy" for the tables that are not nftables', whatever the host's usual iptables is.
    """

    version: int
    chains: tuple[str, ...] = ()
    shared: tuple[Rule, ...] = ()
    private: tuple[str, ...] = ()
    own: tuple[Rule, ...] = ()
    sources: tuple[str, ...] = ()
    variant: str = ""

    @property
    def transaction(self) -> str:  # type: ignore[override]
        """Return what makes neighbours of this kind as one."""
        return f"iptables{self.variant}"

    mendable = True

    def make(self, edit: Edit) -> None:
        """Bring it about."""
        for chain in self.chains:
            edit.need_chain(chain)
        for rule in self.shared:
            edit.need(rule)
        for chain in self.private:
            if self.sources:
                edit.need_chain(chain)
            else:
                self._refill(chain, edit)
        for rule in self.own:
            if self.sources or rule.chain not in self.private:  # those others are there now
                edit.need(rule)

    def _refill(self, chain: str, edit: Edit) -> None:
        """Have in a private chain, and leading there, nothing from an earlier ADD."""
        texts = [rule.text() for rule in self.own]
        for place, text in edit.jumps((chain,)):
            if text not in texts:
                edit.delete(place, text)
        edit.fill(chain, list(dict.fromkeys(rule.text() for rule in self.own if rule.chain == chain)))

    def take(self, edit: Edit) -> None:
        """Take away what is the attachment's."""
        outside = [rule for rule in self.own if rule.chain not in self.private]
        for rule in outside:
            while text := rule.found(edit.chains.get(rule.chain, ())):
                edit.delete(rule.chain, text)
        starts = tuple(f"-s {source} " for source in self.sources) or ("",)
        for chain, text in edit.jumps(self.private):
            if text.startswith(starts):
                edit.delete(chain, text)
        for chain in self.private:
            if not edit.jumps((chain,)):
                edit.drop(chain)

    def command(self) -> str:
        edit = Edit({})
        self.make(edit)
        return self._here(edit)

    def removal(self) -> str:
        edit = Edit({})
        self.make(edit)
        edit.lines.clear()
        self.take(edit)
        return self._here(edit)

    def _here(self, edit: Edit) -> str:
        lines = "".join(f"{line}\n" for line in edit.lines)
        return f"{PROGRAMS[self.version]}{self.variant}-restore --noflush -w <<'END'\n*{self.name}\n{lines}COMMIT\nEND"

    def impossible(self, world: World) -> CniError | None:
        return world[self.where].iptables_fault(self.version, self.variant)

    def fault(self, world: World) -> str:
        found = world[self.where].chains(self.version, self.name, self.variant)
        table = f"{PROGRAMS[self.version]}: table {self.name}"
        for chain in (*self.chains, *self.private):
            if chain not in found:
                return f"{table} has no chain {chain}"
        for rule in (*self.shared, *self.own):
            if not rule.found(found.get(rule.chain, ())):
                return f"{table} has no rule {rule.chain} {rule.text()}"
        return ""


def saved(text: str) -> dict[str, dict[str, list[str]]]:
    """Read what iptables-save prints: the tables."""
    tables: dict[str, dict[str, list[str]]] = {}
    chains: dict[str, list[str]] = {}
    for line in _lines(text):
        if line.startswith("*"):
            chains = tables.setdefault(line[1:], {})
        elif line.startswith(":"):
            chains[line[1:].partition(" ")[0]] = []
        elif line.startswith("-A "):
            chain, _, rule = line[3:].partition(" ")
            chains.setdefault(chain, []).append(rule)
    return tables


def _lines(text: str) -> Iterator[str]:
    """Split a text one line after the other: the lines of a node with many services would be as much memory again."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def written(changes: Iterable[Change], tables: Mapping[str, Chains]) -> str:
    """Return what iptables-restore must be given for these changes of Rules, "" when nothing needs to change."""
    edits = {table: Edit(chains) for table, chains in tables.items()}
    for change in changes:
        what = change.what
        if not isinstance(what, Rules):
            raise TypeError(f"{what} is nothing of iptables'")
        (what.take if isinstance(change, Remove) else what.make)(edits[what.name])
    return "".join(
        f"*{table}\n" + "".join(f"{line}\n" for line in edit.lines) + "COMMIT\n"
        for table, edit in edits.items()
        if edit.lines
    )


# Masquerading (ipMasq)


def masquerade(
    attachment: Attachment, ips: Iterable[IP], excepted: Iterable[tuple[bytes, int]] = ()
) -> tuple[Step, ...]:
    """Return the steps of an ADD with ipMasq: what leaves the addresses for outside their subnets is masqueraded.

    What is sent to the excepted subnets is not.
    """
    excepted = tuple(excepted)
    return tuple(
        Add(_masquerade(attachment, version, cidrs, [cidr for cidr in excepted if len(cidr[0]) * 8 == _BITS[version]]))
        for version, cidrs in _by_version(ips)
        if cidrs
    )


def masquerade_removal(attachment: Attachment, ips: Iterable[IP] = ()) -> tuple[Step, ...]:
    """Return the steps of its DEL. Without addresses all goes that network and container have."""
    ips = tuple(ips)
    return tuple(
        Del(_masquerade(attachment, version, cidrs)) for version, cidrs in _by_version(ips) if cidrs or not ips
    )


def _masquerade(
    attachment: Attachment, version: int, cidrs: list[tuple[bytes, int]], excepted: Iterable[tuple[bytes, int]] = ()
) -> Rules:
    chain = reference_chain("CNI-", attachment)
    comment = _comment(f'name: "{attachment.network}" id: "{attachment.container}"')
    # Ahead of what masquerades: another interface of the container may have made the chain.
    own = [
        Rule(chain, f"-d {format_cidr(packed, length)} {comment}" if length else comment, "ACCEPT", first=True)
        for packed, length in excepted
    ]
    for packed, length in cidrs:
        own += [
            Rule(chain, f"-d {format_cidr(network(packed, length), length)} {comment}", "ACCEPT"),
            Rule(chain, f"! -d {_MULTICAST[version]} {comment}", "MASQUERADE"),
            Rule("POSTROUTING", f"-s {format_host(packed)} {comment}", chain),
        ]
    # Older references have made jumps for the whole subnet.
    sources = [format_host(packed) for packed, _ in cidrs]
    sources += [format_cidr(network(packed, length), length) for packed, length in cidrs]
    return Rules(HOST, "nat", version, private=(chain,), own=tuple(own), sources=tuple(sources))


# Port mappings (portmap)


class Options(Value):
    """How ports are mapped; conditions are further matches in iptables' words, set_mark_chain another's SETMARK."""

    snat: bool = True
    masq_all: bool = False
    mark_bit: int = 13
    set_mark_chain: str = ""
    conditions_v4: tuple[str, ...] = ()
    conditions_v6: tuple[str, ...] = ()


def port_mappings(
    attachment: Attachment, mappings: Sequence[PortMapping], addresses: Iterable[str], options: Options
) -> tuple[Step, ...]:
    """Return the steps of an ADD of portmap to a container with these addresses ("10.1.0.7/24", one of a family).

    Raises CniError for what iptables cannot be told.
    """
    if options.set_mark_chain:
        _check_chain("externalSetMarkChain", options.set_mark_chain)
    _check_conditions("conditionsV4", options.conditions_v4)
    _check_conditions("conditionsV6", options.conditions_v6)
    chain = reference_chain("CNI-DN-", attachment)
    shared_chains, shared = _hostport(options)
    steps: list[Step] = []
    for cidr in addresses if mappings else ():
        packed, length = parse_cidr(cidr)
        version = 4 if len(packed) == 4 else 6
        own = [
            *_translations(chain, mappings, packed, length, options),
            *_entries(chain, attachment, mappings, options.conditions_v4 if version == 4 else options.conditions_v6),
        ]
        steps.append(Add(Rules(HOST, "nat", version, shared_chains, shared, (chain,), tuple(own))))
    return tuple(steps)


def port_mappings_removal(attachment: Attachment) -> tuple[Step, ...]:
    """Return the steps of its DEL, whatever was mapped; CNI-SN- chains are from older references."""
    chains = (reference_chain("CNI-DN-", attachment), reference_chain("CNI-SN-", attachment))
    return tuple(Del(Rules(HOST, "nat", version, private=chains)) for version in PROGRAMS)


def _hostport(options: Options) -> tuple[tuple[str, ...], tuple[Rule, ...]]:
    """Return chains and rules that all port mappings share."""
    mark = f"{1 << options.mark_bit:#x}"
    marking = Rule(_SETMARK, _comment("CNI portfwd masquerade mark"), f"MARK --set-xmark {mark}/{mark}")
    masquerading = (
        Rule(_MASQ, f"-m mark --mark {mark}/{mark}", "MASQUERADE"),
        Rule("POSTROUTING", _comment("CNI portfwd requiring masquerade"), _MASQ, first=True),
    )
    entering = tuple(Rule(chain, "-m addrtype --dst-type LOCAL", _HOSTPORT) for chain in ("PREROUTING", "OUTPUT"))
    if not options.snat or options.set_mark_chain:
        return (_HOSTPORT,), entering
    return (_SETMARK, _MASQ, _HOSTPORT), (marking, *masquerading, *entering)


def _translations(
    chain: str, mappings: Iterable[PortMapping], packed: bytes, length: int, options: Options
) -> list[Rule]:
    """Return the rules of a container's chain."""
    rules: list[Rule] = []
    v6 = len(packed) == 16
    destination = format_cidr(packed, 0)[:-2]
    destination = f"[{destination}]" if v6 else destination
    subnet = format_cidr(network(packed, length), length)
    sources = ["" if options.masq_all else f"-s {subnet} "]
    if not v6 and not options.masq_all:
        sources.append("-s 127.0.0.1/32 ")
    for mapping in mappings:
        host = parse_ip(mapping.host_ip) if mapping.host_ip else bytes(len(packed))
        if len(host) != len(packed):
            continue
        protocol = mapping.protocol.lower()
        to_host = f"-d {format_host(host)} " if any(host) else ""
        base = f"{to_host}-p {protocol} -m {protocol} --dport {mapping.host_port}"
        marked = sources if options.snat else ()
        rules += [Rule(chain, f"{source}{base}", options.set_mark_chain or _SETMARK) for source in marked]
        rules.append(Rule(chain, base, f"DNAT --to-destination {destination}:{mapping.container_port}"))
    return rules


def _entries(
    chain: str, attachment: Attachment, mappings: Iterable[PortMapping], conditions: tuple[str, ...]
) -> list[Rule]:
    """Return the rules that lead to a container's chain. Mappings of the other family's host addresses are in, too."""
    comment = _comment(f'dnat name: "{attachment.network}" id: "{attachment.container}"')
    ports: dict[str, list[str]] = {}
    for mapping in mappings:
        ports.setdefault(mapping.protocol.lower(), []).append(str(mapping.host_port))
    return [
        Rule(
            _HOSTPORT,
            f"-p {protocol} {comment} -m multiport --dports {','.join(some[i : i + _PORTS_TOGETHER])}",
            chain,
            conditions=conditions,
        )
        for protocol, some in sorted(ports.items())
        for i in range(0, len(some), _PORTS_TOGETHER)
    ]


def _check_conditions(key: str, conditions: Iterable[str]) -> None:
    for word in conditions:
        if any(c in "\n\r\0" for c in word):
            raise invalid_config(key, f"{word!r} has more than one line")


# Firewall


def firewall(ips: Iterable[IP], admin_chain: str = "CNI-ADMIN") -> tuple[Step, ...]:
    """Return the steps of an ADD of the firewall: what containers send is accepted, and answers to it.

    Raises CniError for an admin_chain that cannot be.
    """
    _check_chain("iptablesAdminChainName", admin_chain)
    shared = (
        Rule("FORWARD", _comment("CNI firewall plugin rules"), _FORWARD, first=True),
        Rule(_FORWARD, _comment("CNI firewall plugin admin overrides"), admin_chain, first=True),
    )
    return tuple(
        Add(Rules(HOST, "filter", version, (_FORWARD, admin_chain), shared, own=_accepting(cidrs)))
        for version, cidrs in _by_version(ips)
        if cidrs
    )


def firewall_removal(ips: Iterable[IP]) -> tuple[Step, ...]:
    """Return the steps of its DEL. The rules do not say whose they are: without prevResult none can be found."""
    return tuple(
        Del(Rules(HOST, "filter", version, own=_accepting(cidrs))) for version, cidrs in _by_version(ips) if cidrs
    )


def _accepting(cidrs: Iterable[tuple[bytes, int]]) -> tuple[Rule, ...]:
    return tuple(
        rule
        for packed, _ in cidrs
        for rule in (
            Rule(_FORWARD, f"-d {format_host(packed)} -m conntrack --ctstate RELATED,ESTABLISHED", "ACCEPT"),
            Rule(_FORWARD, f"-s {format_host(packed)}", "ACCEPT"),
        )
    )


def ingress_policy(policy: str, bridge: str, versions: Iterable[int]) -> tuple[Step, ...]:
    """Return the steps of an ADD with ingressPolicy "same-bridge" or "isolated"; they come after those of firewall().

    All is shared by the containers of a bridge and stays. A Set goes with its neighbours in one iptables-restore.
    """
    if policy == "open":
        return ()
    rules = (
        Rule("FORWARD", _BOTH_POLICIES, _STAGE_1, first=True),
        *_of_link(policy, bridge),
        Rule(_STAGE_1, _BOTH_POLICIES, "RETURN"),
        Rule(_STAGE_2, _BOTH_POLICIES, "RETURN"),
    )
    return tuple(Set(Rules(HOST, "filter", version, (_STAGE_1, _STAGE_2), rules)) for version in versions)


def ingress_policy_removal(link: str, world: World) -> tuple[Step, ...]:
    """Return the steps of a DEL where the link was the attachment's own, as ptp's: its rules serve nothing any more."""
    if not world[HOST].chains_there("filter", (_STAGE_1,)):
        return ()
    own = tuple(rule for policy in ("same-bridge", "isolated") for rule in _of_link(policy, link))
    return tuple(Del(Rules(HOST, "filter", version, own=own)) for version in PROGRAMS)


def _of_link(policy: str, link: str) -> tuple[Rule, ...]:
    """Return the rules of a policy that are about one link of the host's."""
    each = _comment(f"CNI firewall plugin rules (ingressPolicy: {policy})")
    i, o = f"-i {_quoted(link)}", f"-o {_quoted(link)}"
    return (
        Rule(_STAGE_1, f"{i} ! {o} {each}", _STAGE_2, first=True),
        *((Rule(_STAGE_1, f"{i} {o} {each}", "DROP", first=True),) if policy == "isolated" else ()),
        Rule(_STAGE_2, f"{o} {_BOTH_POLICIES}", "DROP", first=True),
    )


# Garbage collection


def masquerade_garbage(network_name: str, keep: Container[str], world: World) -> tuple[Step, ...]:
    """Return the steps that take away the masquerading of a network's containers that are not among those to keep."""
    return tuple(
        step
        for container in _listed("", network_name, world)
        if container not in keep
        for step in masquerade_removal(Attachment(network_name, container, ""))
    )


def port_mappings_garbage(network_name: str, keep: Container[str], world: World) -> tuple[Step, ...]:
    """Return the same for their port mappings. The firewall's rules do not say whose they are."""
    return tuple(
        step
        for container in _listed("dnat ", network_name, world)
        if container not in keep
        for step in port_mappings_removal(Attachment(network_name, container, ""))
    )


def _listed(kind: str, network_name: str, world: World) -> list[str]:
    """Return the containers of a network that comments of a kind name."""
    return [container for network, container in _owners(kind, world) if network == network_name]


def named(world: World) -> list[Attachment]:
    """Return the containers that comments name, with no interface's name: that is not in them."""
    owners = dict.fromkeys(owner for kind in ("", "dnat ") for owner in _owners(kind, world))
    return [Attachment(network_name, container, "") for network_name, container in owners]


def _owners(kind: str, world: World) -> list[tuple[str, str]]:
    """Return network and container that comments name, but for those whose name was cut off."""
    start = f'--comment "{kind}name: \\"'
    found: dict[tuple[str, str], None] = {}
    for version in PROGRAMS:
        for texts in world[HOST].chains(version, "nat").values():
            for text in texts:
                network_name, _, rest = text.partition(start)[2].partition('\\" id: \\"')
                container, end, _ = rest.partition('\\"')
                if end:
                    found[network_name, container] = None
    return list(found)


# Words


def _by_version(ips: Iterable[IP]) -> list[tuple[int, list[tuple[bytes, int]]]]:
    """Return address and prefix length of the addresses of either family."""
    cidrs = [parse_cidr(ip.address) for ip in ips]
    return [(version, [cidr for cidr in cidrs if len(cidr[0]) * 8 == bits]) for version, bits in _BITS.items()]


def _comment(text: str) -> str:
    # The reference cuts at 253, adds three dots, and the kernel keeps two of them.
    cut = text if len(text) <= LONGEST_COMMENT else text[:253] + ".."
    return f"-m comment --comment {_quoted(cut)}"


_BOTH_POLICIES = _comment("CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)")


def _check_chain(key: str, name: str) -> None:
    fits = 0 < len(name) <= LONGEST_CHAIN and name.isascii() and name.isprintable()
    if not fits or " " in name or name[0] in "-!":
        raise invalid_config(key, f"{name!r} is no chain's name", f"at most {LONGEST_CHAIN} characters, no white space")
