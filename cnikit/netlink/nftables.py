"""nftables as values: tables, chains, rules, sets and their elements, encoded for nfnetlink and written as nft text.

A rule is a line of nft's language; cnikit.netlink.nftrules compiles the part of it that is used here. No sockets.
Source: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h; types of data as in nft's datatype.h. The numbers of
nfnetlink are in network byte order.
"""

from __future__ import annotations

from _struct import Struct
from sys import byteorder

from cnikit.address import format_cidr, format_ip, format_mac, last, network, parse_cidr, parse_ip, parse_mac
from cnikit.netlink.codec import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    Message,
    attribute,
    attributes,
    header,
    malformed,
    needed,
    nested,
    string,
    text,
)
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

NLM_F_APPEND = 0x800

NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_NEWTABLE, NFT_MSG_GETTABLE, NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_GETCHAIN = 0, 1, 2, 3, 4
NFT_MSG_NEWRULE, NFT_MSG_GETRULE, NFT_MSG_DELRULE, NFT_MSG_NEWSET = 6, 7, 8, 9
NFT_MSG_NEWSETELEM, NFT_MSG_GETSETELEM, NFT_MSG_DELSETELEM = 12, 13, 14

NFTA_LIST_ELEM = 1
NFTA_TABLE_NAME = 1
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE = 1, 3, 4, 5, 7
NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY = 1, 2
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_HANDLE, NFTA_RULE_EXPRESSIONS, NFTA_RULE_USERDATA = 1, 2, 3, 4, 7
NFTA_SET_TABLE, NFTA_SET_NAME, NFTA_SET_FLAGS, NFTA_SET_KEY_TYPE, NFTA_SET_KEY_LEN = 1, 2, 3, 4, 5
NFTA_SET_DATA_TYPE, NFTA_SET_DATA_LEN, NFTA_SET_DESC, NFTA_SET_ID, NFTA_SET_USERDATA = 6, 7, 9, 10, 13
NFTA_SET_DESC_CONCAT, NFTA_SET_FIELD_LEN = 2, 1
NFT_SET_INTERVAL, NFT_SET_MAP, NFT_SET_CONCAT = 0x4, 0x8, 0x80
NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_USERDATA, NFTA_SET_ELEM_KEY_END = 1, 2, 6, 10
NFTA_DATA_VALUE = 1
NFTNL_UDATA_COMMENT = 0
# Ours, far from libnftnl's numbers: nft shows the comment and passes over what it does not know.
UDATA_ALSO = 0x80

FAMILIES = {"inet": 1, "ip": 2, "bridge": 7, "ip6": 10}
# Hooks have other numbers in other families, yet these are the same in all of them.
HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
NF_DROP, NF_ACCEPT = 0, 1
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
# Numbers that have names, by their type.
NUMBERS = {
    "inet_proto": {**PROTOCOLS, "ipv6-icmp": 58},
    "ether_type": {"arp": 0x0806, "8021q": 0x8100, "8021ad": 0x88A8},
}

# nft's number for a type of data, and its length in bytes. In a concatenation each is padded to four. One with @ is a
# number, a part of the packet: from the header of the network or transport layer, the first bit, how many bits.
TYPES = {
    "ipv4_addr": (7, 4),
    "ipv6_addr": (8, 16),
    "ether_addr": (9, 6),
    "ether_type": (10, 2),
    "inet_proto": (12, 1),
    "inet_service": (13, 2),
    "devgroup": (35, 4),
    "ifname": (41, 16),
    "@nh,0,16": (4, 2),
    "@nh,112,32": (4, 4),
    "@th,0,8": (4, 1),
    "@th,64,128": (4, 16),
}
# What nft is told of the key of a set that has such numbers: where they come from. It has no name for their type.
ORIGINS = {"devgroup": "meta iifgroup", "ifname": "iifname"}

_GENMSG = Struct("!BBH")  # nfgenmsg: family, version, resource
_BE32 = Struct("!i")
_TLV = Struct("=HH")


class Rule(Value):
    """A line of nft's language, and what it is for: its comment, by which it is known again."""

    text: str
    comment: str


class Chain(Value):
    """A chain; with a hook it is a base chain. One that is open is others' to fill: made, and never flushed."""

    name: str
    rules: tuple[Rule, ...] = ()
    type: str = ""
    hook: str = ""
    priority: int = 0
    open: bool = False


class Set(Value):
    """A set, or with data a map; key and data name nft's types. Keys of an interval set may be ranges or prefixes."""

    name: str
    key: tuple[str, ...]
    data: tuple[str, ...] = ()
    interval: bool = False

    @property
    def has_numbers(self) -> bool:
        """Tell whether a part of the key is a number that nft has no type for."""
        return any(kind.startswith("@") for kind in self.key)


class Table(Value):
    """A table with all that is in it from the start."""

    family: str
    name: str
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]

    def set(self, name: str) -> Set:
        """Return one of its sets."""
        return next(found for found in self.sets if found.name == name)


class ListedChain(Value):
    """A chain that is there: its family ("" for one not used here); hook and policy ("", NF_ACCEPT) of a base chain."""

    family: str
    table: str
    name: str
    hook: str
    policy: int


class Element(Value):
    """An element of a set: key and data in nft's words, one for each type; the comment is its owner's tag.

    also: the tag of a second owner, of another network with the same address. It is kept behind the comment, where nft
    does not look; both have room in what the kernel takes (NFT_USERDATA_MAXLEN, 256 bytes).
    """

    set: str
    key: tuple[str, ...]
    data: tuple[str, ...] = ()
    comment: str = ""
    also: str = ""


def be32(kind: int, number: int) -> bytes:
    """Encode an attribute of four bytes in network byte order, signed where it is negative."""
    return attribute(kind, _BE32.pack(number))


def request(kind: int, family: str, flags: int, *attrs: bytes) -> Message:
    """Return a message of the nf_tables subsystem."""
    body = _GENMSG.pack(FAMILIES[family], 0, 0) + b"".join(attrs)
    return Message(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, body)


def boundary(kind: int) -> Message:
    """Return the message that begins or ends a batch: what is between happens as a whole or not at all."""
    return Message(kind, 0, _GENMSG.pack(0, 0, NFNL_SUBSYS_NFTABLES))


def type_number(kinds: tuple[str, ...]) -> int:
    """Return nft's number for a key or for data."""
    number = 0
    for kind in kinds:
        number = number << 6 | TYPES[kind][0]
    return number


def widths(kinds: tuple[str, ...]) -> list[int]:
    """Return how many bytes each part of a key or of data takes."""
    return [TYPES[kind][1] + 3 & ~3 if len(kinds) > 1 else TYPES[kind][1] for kind in kinds]


def new_element(table: Table, element: Element) -> Message:
    """Return the message that adds an element, which must not be there yet."""
    found = table.set(element.set)
    parts = _key(found, element.key)
    if found.data:
        words = zip(found.data, element.data, strict=True)
        data = b"".join(_padded(encoded(kind, word)[0], found.data) for kind, word in words)
        parts += nested(NFTA_SET_ELEM_DATA, attribute(NFTA_DATA_VALUE, data))
    parts += commented(NFTA_SET_ELEM_USERDATA, element.comment, element.also)
    return _of_set(NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, table, element.set, parts)


def del_element(table: Table, element: Element) -> Message:
    """Return the message that takes an element away."""
    return _of_set(NFT_MSG_DELSETELEM, 0, table, element.set, _key(table.set(element.set), element.key))


def get_element(table: Table, name: str, key: tuple[str, ...]) -> Message:
    """Return the message that asks for the element of a set with that key, or with an interval around it."""
    return _of_set(NFT_MSG_GETSETELEM, NLM_F_ACK, table, name, _key(table.set(name), key))


def _of_set(kind: int, flags: int, table: Table, name: str, element: bytes) -> Message:
    return request(
        kind,
        table.family,
        flags,
        string(NFTA_SET_ELEM_LIST_TABLE, table.name),
        string(NFTA_SET_ELEM_LIST_SET, name),
        nested(NFTA_SET_ELEM_LIST_ELEMENTS, nested(NFTA_LIST_ELEM, element)),
    )


def _key(found: Set, key: tuple[str, ...]) -> bytes:
    ends = [encoded(kind, word) for kind, word in zip(found.key, key, strict=True)]
    first = b"".join(_padded(low, found.key) for low, _ in ends)
    parts = nested(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, first))
    if found.interval:
        end = b"".join(_padded(high, found.key) for _, high in ends)
        parts += nested(NFTA_SET_ELEM_KEY_END, attribute(NFTA_DATA_VALUE, end))
    return parts


def _padded(data: bytes, kinds: tuple[str, ...]) -> bytes:
    return data + bytes(-len(data) & 3) if len(kinds) > 1 else data


def commented(kind: int, text: str, also: str = "") -> bytes:
    """Encode a comment, and the tag of a second owner, as a rule's or an element's userdata."""
    return attribute(kind, _userdata(NFTNL_UDATA_COMMENT, text) + (_userdata(UDATA_ALSO, also) if also else b""))


def _userdata(kind: int, text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape") + b"\0"
    return bytes((kind, len(data))) + data


def encoded(kind: str, word: str) -> tuple[bytes, bytes]:
    """Return the first and the last value a word means. Raises ValueError."""
    if kind == "inet_service":
        low, _, high = word.partition("-")
        return int(low).to_bytes(2, "big"), int(high or low).to_bytes(2, "big")
    if kind in ("ipv4_addr", "ipv6_addr"):
        if "/" not in word:
            return parse_ip(word), parse_ip(word)
        packed, length = parse_cidr(word)
        return network(packed, length), last(packed, length)
    if kind == "ether_addr":
        data = parse_mac(word)
    elif kind == "ifname":
        data = word.encode().ljust(16, b"\0")
    else:
        number = NUMBERS[kind][word] if kind in NUMBERS else int(word, 0)
        data = number.to_bytes(TYPES[kind][1], _order(kind))
    return data, data


def _order(kind: str) -> Literal["little", "big"]:
    return byteorder if kind == "devgroup" else "big"


def decoded(kind: str, low: bytes, high: bytes) -> str:
    """Return the word for a first and a last value."""
    if kind == "inet_service":
        first, end = int.from_bytes(low[:2], "big"), int.from_bytes(high[:2], "big")
        return str(first) if first == end else f"{first}-{end}"
    if kind in ("ipv4_addr", "ipv6_addr"):
        length = len(low) * 8 - (int.from_bytes(low, "big") ^ int.from_bytes(high, "big")).bit_length()
        return format_ip(low) if low == high else format_cidr(low, length)
    if kind == "ether_addr":
        return format_mac(low[:6])
    if kind == "ifname":
        return low.rstrip(b"\0").decode("utf-8", "surrogateescape")
    number = int.from_bytes(low, _order(kind))
    plain = hex(number) if kind.startswith("@") else str(number)
    return next((name for name, known in NUMBERS.get(kind, {}).items() if known == number), plain)


def written(table: Table) -> str:
    """Return a table in nft's own language, as `nft -f` takes it and `nft list table` gives it."""
    lines = [f"table {table.family} {table.name} {{"]
    for found in table.sets:
        kind, data = ("map", f" : {' . '.join(found.data)}") if found.data else ("set", "")
        flags = "; flags interval" if found.interval else ""
        if found.has_numbers:
            key = f"typeof {' . '.join(ORIGINS.get(part, part) for part in found.key)}"
        else:
            key = f"type {' . '.join(found.key)}"
        lines.append(f"\t{kind} {found.name} {{ {key}{data}{flags}; }}")
    for chain in table.chains:
        base = f"\t\ttype {chain.type} hook {chain.hook} priority {chain.priority}; policy accept;"
        rules = [f'\t\t{rule.text} comment "{rule.comment}"' for rule in chain.rules]
        lines += [f"\tchain {chain.name} {{", *([base] if chain.hook else []), *rules, "\t}"]
    return "\n".join([*lines, "}\n"])


def dump_tables() -> Message:
    """Return the message that asks for all tables of all families."""
    return Message(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE, NLM_F_DUMP, _GENMSG.pack(0, 0, 0))


def table_name(body: bytes) -> tuple[str, str]:
    """Decode a table: its family, "" for one that is not used here, and its name."""
    number = header(_GENMSG, body)[0]
    family = next((name for name, value in FAMILIES.items() if value == number), "")
    return family, text(needed(attributes(body, _GENMSG.size), NFTA_TABLE_NAME))


def dump_rules(table: Table) -> Message:
    """Return the message that asks for all rules of a table."""
    return request(NFT_MSG_GETRULE, table.family, NLM_F_DUMP, string(NFTA_RULE_TABLE, table.name))


def rule(body: bytes) -> tuple[str, str]:
    """Decode a rule: its chain, and its comment."""
    parts = attributes(body, _GENMSG.size)
    return text(needed(parts, NFTA_RULE_CHAIN)), comment(parts, NFTA_RULE_USERDATA)


def del_rule(table: Table, body: bytes) -> Message:
    """Return the message that deletes a rule that was listed."""
    parts = attributes(body, _GENMSG.size)
    kinds = (NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_HANDLE)
    return request(NFT_MSG_DELRULE, table.family, 0, *(attribute(kind, needed(parts, kind)) for kind in kinds))


def get_chain(family: str, table: str, name: str) -> Message:
    """Return the message that asks for a chain."""
    return request(NFT_MSG_GETCHAIN, family, NLM_F_ACK, string(NFTA_CHAIN_TABLE, table), string(NFTA_CHAIN_NAME, name))


def dump_chains() -> Message:
    """Return the message that asks for all chains of all tables."""
    return Message(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN, NLM_F_DUMP, _GENMSG.pack(0, 0, 0))


def chain(body: bytes) -> ListedChain:
    """Decode a chain."""
    number, parts = header(_GENMSG, body)[0], attributes(body, _GENMSG.size)
    hook = attributes(parts.get(NFTA_CHAIN_HOOK, b"")).get(NFTA_HOOK_HOOKNUM)
    place = next((name for name, value in HOOKS.items() if hook and value == int.from_bytes(hook, "big")), "")
    return ListedChain(
        next((name for name, value in FAMILIES.items() if value == number), ""),
        text(needed(parts, NFTA_CHAIN_TABLE)),
        text(needed(parts, NFTA_CHAIN_NAME)),
        place,
        int.from_bytes(parts.get(NFTA_CHAIN_POLICY, bytes(4)), "big") if hook else NF_ACCEPT,
    )


def dump_elements(table: Table, name: str) -> Message:
    """Return the message that asks for all elements of a set."""
    names = string(NFTA_SET_ELEM_LIST_TABLE, table.name) + string(NFTA_SET_ELEM_LIST_SET, name)
    return request(NFT_MSG_GETSETELEM, table.family, NLM_F_DUMP, names)


def elements(table: Table, name: str, body: bytes, tag: str = "") -> list[Element]:
    """Decode the elements of an answer; with a tag, those only whose comment begins with it.

    The answer may be long: what has no such bytes in it is not looked at.
    """
    found, wanted = table.set(name), tag.encode()
    listed = attributes(body, _GENMSG.size).get(NFTA_SET_ELEM_LIST_ELEMENTS, b"")
    if wanted not in listed:
        return []
    made = [_element(found, data) for data in _list(listed) if wanted in data]
    return [element for element in made if element.comment.startswith(tag) or (tag and element.also.startswith(tag))]


def _list(data: bytes) -> Iterator[bytes]:
    """Split a list of attributes that are all of one type."""
    offset = 0
    while offset + 4 <= len(data):
        length, _ = _TLV.unpack_from(data, offset)
        if length < 4:
            raise malformed(f"attribute says it is {length} bytes long")
        yield data[offset + 4 : offset + length]
        offset += length + 3 & ~3


def _element(found: Set, data: bytes) -> Element:
    parts = attributes(data)
    low = needed(attributes(needed(parts, NFTA_SET_ELEM_KEY)), NFTA_DATA_VALUE)
    high = attributes(parts.get(NFTA_SET_ELEM_KEY_END, b"")).get(NFTA_DATA_VALUE, low)
    value = attributes(parts.get(NFTA_SET_ELEM_DATA, b"")).get(NFTA_DATA_VALUE, b"")
    return Element(
        found.name,
        _words(found.key, low, high),
        _words(found.data, value, value),
        comment(parts, NFTA_SET_ELEM_USERDATA),
        comment(parts, NFTA_SET_ELEM_USERDATA, UDATA_ALSO),
    )


def _words(kinds: tuple[str, ...], low: bytes, high: bytes) -> tuple[str, ...]:
    words, offset = [], 0
    if len(low) < sum(widths(kinds)) or len(high) != len(low):
        raise malformed(
            f"element of {len(low)} and {len(high)} bytes where {' . '.join(kinds)} takes {sum(widths(kinds))}"
        )
    for kind, size in zip(kinds, widths(kinds), strict=True):
        end = offset + TYPES[kind][1]
        words.append(decoded(kind, low[offset:end], high[offset:end]))
        offset += size
    return tuple(words)


def comment(parts: dict[int, bytes], kind: int, what: int = NFTNL_UDATA_COMMENT) -> str:
    """Return the comment among a rule's or an element's attributes, or what else is kept there; "" for none."""
    data, offset = parts.get(kind, b""), 0
    while offset + 2 <= len(data):
        type_, length = data[offset : offset + 2]
        if type_ == what:
            return data[offset + 2 : offset + 2 + length].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        offset += 2 + length
    return ""
