"""Tables, chains and rules as messages, and the part of nft's language that our rules are written in.

Needed once a boot, when a table is made.

A rule is read from left to right: matches, each of which must hold, then what becomes of the packet.

    SELECTOR [. SELECTOR]... [!=] @SET          iifname . ether saddr != @allowed
    SELECTOR [!=|<|>] CONSTANT                  ip daddr != 224.0.0.0/4, @th,0,8 < 133, ct state established,related
    fib daddr type local
    fib saddr . iif oif exists                  the way back to the source is where the packet came from
    SELECTOR & NUMBER == NUMBER                 meta mark & 0x1000 == 0x1000
    accept | drop | return | jump CHAIN | goto CHAIN | masquerade
    dnat ip|ip6 to SELECTOR [. SELECTOR]... map @SET
    meta mark set meta mark | NUMBER

Apart from ip and ip6 in a table of the family inet, a selector brings no match of the protocol it belongs to: nft may
add one to its own names, and none to numbers of a place in the packet (@th,0,8).

Values pass through the kernel's sixteen registers of four bytes. Source: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from sys import byteorder

from cnikit.netlink.codec import NLM_F_CREATE, Message, attribute, nested, string
from cnikit.netlink.nftables import (
    HOOKS,
    NF_ACCEPT,
    NF_DROP,
    NFT_MSG_DELRULE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWSET,
    NFT_MSG_NEWTABLE,
    NFT_SET_CONCAT,
    NFT_SET_INTERVAL,
    NFT_SET_MAP,
    NFTA_CHAIN_HOOK,
    NFTA_CHAIN_NAME,
    NFTA_CHAIN_TABLE,
    NFTA_CHAIN_TYPE,
    NFTA_DATA_VALUE,
    NFTA_HOOK_HOOKNUM,
    NFTA_HOOK_PRIORITY,
    NFTA_LIST_ELEM,
    NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS,
    NFTA_RULE_TABLE,
    NFTA_RULE_USERDATA,
    NFTA_SET_DATA_LEN,
    NFTA_SET_DATA_TYPE,
    NFTA_SET_DESC,
    NFTA_SET_DESC_CONCAT,
    NFTA_SET_FIELD_LEN,
    NFTA_SET_FLAGS,
    NFTA_SET_ID,
    NFTA_SET_KEY_LEN,
    NFTA_SET_KEY_TYPE,
    NFTA_SET_NAME,
    NFTA_SET_TABLE,
    NFTA_SET_USERDATA,
    NFTA_TABLE_NAME,
    NLM_F_APPEND,
    ORIGINS,
    TYPES,
    Chain,
    Rule,
    Set,
    Table,
    be32,
    commented,
    encoded,
    request,
    type_number,
    widths,
)

NFT_REG_VERDICT, NFT_REG32_00 = 0, 8
NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 2
NFT_CMP_EQ, NFT_CMP_NEQ, NFT_CMP_LT, NFT_CMP_GT = 0, 1, 2, 4
NFT_META_PROTOCOL, NFT_META_IIFGROUP = 1, 21
NFT_META_MARK, NFT_META_IIFNAME, NFT_META_OIFNAME, NFT_META_NFPROTO, NFT_META_L4PROTO = 3, 6, 7, 15, 16
NFT_CT_STATE, NFT_CT_STATUS = 0, 2
LINK, NETWORK, TRANSPORT = 0, 1, 2  # enum nft_payload_bases
NFPROTO_IPV4, NFPROTO_IPV6 = 2, 10
NFT_LOOKUP_F_INV = 1
NFTA_DATA_VERDICT, NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN = 2, 1, 2
NFT_NAT_DNAT = 1
NFT_FIB_RESULT_OIF, NFT_FIB_RESULT_ADDRTYPE = 1, 3
NFTA_FIB_F_SADDR, NFTA_FIB_F_DADDR, NFTA_FIB_F_IIF, NFTA_FIB_F_PRESENT = 1, 2, 8, 32
VERDICTS = {"drop": NF_DROP, "accept": NF_ACCEPT, "jump": -3, "goto": -4, "return": -5}

# libnftnl's NFTNL_UDATA_SET_KEYBYTEORDER, of four bytes: nft's BYTEORDER_HOST_ENDIAN.
_KEY_IN_HOST_ORDER = b"\0\4" + (1).to_bytes(4, byteorder)
# Its NFTNL_UDATA_SET_KEY_TYPEOF, the kind of what is in there (nft's enum expr_types), and what these have.
_KEY_TYPEOF, _TYPEOF_EXPRESSION, _TYPEOF_DATA = 3, 0, 1
_EXPR_PAYLOAD, _EXPR_META, _EXPR_CONCAT = 7, 9, 13
_META_KEY = 0
_PAYLOAD_PROTOCOL, _PAYLOAD_FIELD = 0, 1  # none of either
_PAYLOAD_BASE, _PAYLOAD_OFFSET, _PAYLOAD_LENGTH = 2, 3, 4

# Where in a packet a selector is: base, offset, length in bytes; and its type.
_PAYLOADS = {
    "ether saddr": (LINK, 6, 6, "ether_addr"),
    "ip saddr": (NETWORK, 12, 4, "ipv4_addr"),
    "ip daddr": (NETWORK, 16, 4, "ipv4_addr"),
    "ip6 saddr": (NETWORK, 8, 16, "ipv6_addr"),
    "ip6 daddr": (NETWORK, 24, 16, "ipv6_addr"),
    "th dport": (TRANSPORT, 2, 2, "inet_service"),
    "@nh,0,16": (NETWORK, 0, 2, "@nh,0,16"),
    "@nh,64,128": (NETWORK, 8, 16, "@th,64,128"),
    "@nh,112,32": (NETWORK, 14, 4, "@nh,112,32"),
    "@th,0,8": (TRANSPORT, 0, 1, "@th,0,8"),
    "@th,64,128": (TRANSPORT, 8, 16, "@th,64,128"),
}
_METAS = {
    "iifname": (NFT_META_IIFNAME, "ifname"),
    "oifname": (NFT_META_OIFNAME, "ifname"),
    "meta protocol": (NFT_META_PROTOCOL, "ether_type"),
    "meta iifgroup": (NFT_META_IIFGROUP, "devgroup"),
    "meta l4proto": (NFT_META_L4PROTO, "inet_proto"),
    "meta mark": (NFT_META_MARK, "mark"),
}
_COMPARISONS = {"": NFT_CMP_EQ, "!=": NFT_CMP_NEQ, "<": NFT_CMP_LT, ">": NFT_CMP_GT}
_FAMILIES = {"ip": NFPROTO_IPV4, "ip6": NFPROTO_IPV6}
# Selectors whose value is a set of bits, and the bits by name.
_BITS = {
    "ct state": (NFT_CT_STATE, {"established": 2, "related": 4}),
    "ct status": (NFT_CT_STATUS, {"dnat": 0x20}),
}
_RTN_LOCAL = 2
_FIB = {
    "fib daddr type local": (NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR, _RTN_LOCAL.to_bytes(4, byteorder)),
    "fib saddr . iif oif exists": (
        NFT_FIB_RESULT_OIF,
        NFTA_FIB_F_SADDR | NFTA_FIB_F_IIF | NFTA_FIB_F_PRESENT,
        (1).to_bytes(4, byteorder),
    ),
}


def new_table(table: Table) -> list[Message]:
    """Return the messages that make a table as it should be, whatever is there of it; elements stay.

    Two that do it at once both succeed.
    """
    family, name = table.family, table.name
    messages = [request(NFT_MSG_NEWTABLE, family, NLM_F_CREATE, string(NFTA_TABLE_NAME, name))]
    messages += [_new_set(table, found, i + 1) for i, found in enumerate(table.sets)]
    messages += [new_chain(table, chain) for chain in table.chains]
    for chain in table.chains:
        place = string(NFTA_RULE_TABLE, name) + string(NFTA_RULE_CHAIN, chain.name)
        if not chain.open:
            messages.append(request(NFT_MSG_DELRULE, family, 0, place))
        messages += [new_rule(table, chain.name, rule) for rule in chain.rules]
    return messages


def new_rule(table: Table, chain: str, rule: Rule) -> Message:
    """Return the message that appends a rule to a chain."""
    expressions = nested(NFTA_RULE_EXPRESSIONS, *compiled(rule.text, table))
    place = string(NFTA_RULE_TABLE, table.name) + string(NFTA_RULE_CHAIN, chain)
    parts = (place, expressions, commented(NFTA_RULE_USERDATA, rule.comment))
    return request(NFT_MSG_NEWRULE, table.family, NLM_F_CREATE | NLM_F_APPEND, *parts)


def new_chain(table: Table, chain: Chain) -> Message:
    """Return the message that makes a chain, or leaves it as it is."""
    parts = [string(NFTA_CHAIN_TABLE, table.name), string(NFTA_CHAIN_NAME, chain.name)]
    if chain.hook:
        hook = be32(NFTA_HOOK_HOOKNUM, HOOKS[chain.hook]) + be32(NFTA_HOOK_PRIORITY, chain.priority)
        parts += [nested(NFTA_CHAIN_HOOK, hook), string(NFTA_CHAIN_TYPE, chain.type)]
    return request(NFT_MSG_NEWCHAIN, table.family, NLM_F_CREATE, *parts)


def _new_set(table: Table, found: Set, number: int) -> Message:
    concatenated = len(found.key) > 1
    flags = NFT_SET_MAP if found.data else 0
    if found.interval:
        flags |= NFT_SET_INTERVAL | (NFT_SET_CONCAT if concatenated else 0)
    parts = [
        string(NFTA_SET_TABLE, table.name),
        string(NFTA_SET_NAME, found.name),
        be32(NFTA_SET_FLAGS, flags),
        be32(NFTA_SET_KEY_TYPE, type_number(found.key)),
        be32(NFTA_SET_KEY_LEN, sum(widths(found.key))),
        be32(NFTA_SET_ID, number),
    ]
    if found.key == ("ifname",):
        # Without being told, nft would list strings as numbers of the other byte order.
        parts.append(attribute(NFTA_SET_USERDATA, _KEY_IN_HOST_ORDER))
    if found.has_numbers:
        parts.append(attribute(NFTA_SET_USERDATA, _typeof(found.key)))
    if found.data:
        parts.append(be32(NFTA_SET_DATA_TYPE, type_number(found.data)))
        parts.append(be32(NFTA_SET_DATA_LEN, sum(widths(found.data))))
    if found.interval and concatenated:
        fields = [nested(NFTA_LIST_ELEM, be32(NFTA_SET_FIELD_LEN, TYPES[kind][1])) for kind in found.key]
        parts.append(nested(NFTA_SET_DESC, nested(NFTA_SET_DESC_CONCAT, *fields)))
    return request(NFT_MSG_NEWSET, table.family, NLM_F_CREATE, *parts)


def _typeof(key: tuple[str, ...]) -> bytes:
    """Return what nft keeps in a set's userdata for `typeof`: where the parts of the key come from."""
    parts = (_userdata(place, _origin(kind)) for place, kind in enumerate(key))
    data = _userdata(_TYPEOF_DATA, b"".join(parts))
    return _userdata(_KEY_TYPEOF, _userdata_number(_TYPEOF_EXPRESSION, _EXPR_CONCAT) + data)


def _origin(kind: str) -> bytes:
    if kind in ORIGINS:
        expression, data = _EXPR_META, _userdata_number(_META_KEY, _METAS[ORIGINS[kind]][0])
    else:
        base, offset, length, _ = _PAYLOADS[kind]
        expression = _EXPR_PAYLOAD
        data = _userdata_number(_PAYLOAD_PROTOCOL, 0) + _userdata_number(_PAYLOAD_FIELD, 0)
        data += _userdata_number(_PAYLOAD_BASE, base + 1)
        data += _userdata_number(_PAYLOAD_OFFSET, offset * 8) + _userdata_number(_PAYLOAD_LENGTH, length * 8)
    return _userdata_number(_TYPEOF_EXPRESSION, expression) + _userdata(_TYPEOF_DATA, data)


def _userdata(kind: int, data: bytes) -> bytes:
    return bytes((kind, len(data))) + data


def _userdata_number(kind: int, number: int) -> bytes:
    return _userdata(kind, number.to_bytes(4, byteorder))


def compiled(text: str, table: Table) -> list[bytes]:
    """Return a rule as attributes of NFTA_RULE_EXPRESSIONS. Raises ValueError where it is not understood."""
    words = text.split()
    made: list[bytes] = []
    families: set[str] = set()
    while words:
        made += _match(words, table, families) or _statement(words, table, families)
    return [nested(1, expression) for expression in made]


def _expression(name: str, *attributes: bytes) -> bytes:
    return string(NFTA_EXPR_NAME, name) + nested(NFTA_EXPR_DATA, *attributes)


def _match(words: list[str], table: Table, families: set[str]) -> list[bytes]:
    """Take a match off the front; nothing when there is none."""
    bits = " ".join(words[:2])
    if bits in _BITS:
        return _match_bits(bits, words)
    if words[0] == "fib":
        return _match_fib(words)
    selectors = [] if words[:3] == ["meta", "mark", "set"] else _selectors(words)
    if not selectors:
        return []
    made = _load(selectors, table, families)
    operator = words.pop(0) if words[0] in ("!=", "<", ">", "&") else ""
    if operator == "&":
        return made + _match_mask(words, _type(selectors[0]))
    wanted = words.pop(0)
    if wanted.startswith("@"):
        inverted = [be32(5, NFT_LOOKUP_F_INV)] if operator else []
        return [*made, _expression("lookup", string(1, wanted[1:]), be32(2, NFT_REG32_00), *inverted)]
    return made + _constant(_type(selectors[0]), wanted, _COMPARISONS[operator])


def _match_fib(words: list[str]) -> list[bytes]:
    """Take a question to the routing table off the front, and the answer that there must be."""
    text = next((text for text in (" ".join(words[:4]), " ".join(words[:6])) if text in _FIB), "")
    if not text:
        raise ValueError(f"{' '.join(words)!r} is no question to the routing table that can be compiled")
    result, flags, answer = _FIB[text]
    del words[: len(text.split())]
    asked = _expression("fib", be32(1, NFT_REG32_00), be32(2, result), be32(3, flags))
    return [asked, _compare(NFT_CMP_EQ, answer)]


def _match_bits(selector: str, words: list[str]) -> list[bytes]:
    key, names = _BITS[selector]
    mask = 0
    for name in words[2].split(","):
        mask |= names[name]
    del words[:3]
    load = _expression("ct", be32(1, NFT_REG32_00), be32(2, key))
    return [load, _mask(mask.to_bytes(4, byteorder)), _compare(NFT_CMP_NEQ, bytes(4))]


def _match_mask(words: list[str], kind: str) -> list[bytes]:
    mask, equals, value = words[:3]
    if equals != "==":
        raise ValueError(f"{equals!r} where == is to stand")
    del words[:3]
    return [_mask(_number(kind, mask)), _compare(NFT_CMP_EQ, _number(kind, value))]


def _number(kind: str, word: str) -> bytes:
    return encoded(kind, word)[0] if kind in TYPES else int(word, 0).to_bytes(4, byteorder)


def _selectors(words: list[str]) -> list[str]:
    """Take selectors off the front, joined by dots."""
    found: list[str] = []
    while True:
        name = next((name for name in (words[0], " ".join(words[:2])) if name in _METAS or name in _PAYLOADS), "")
        if not name:
            return found
        found.append(name)
        del words[: name.count(" ") + 1]
        if not words or words[0] != ".":
            return found
        del words[0]


def _type(selector: str) -> str:
    return _METAS[selector][1] if selector in _METAS else _PAYLOADS[selector][3]


def _load(selectors: list[str], table: Table, families: set[str]) -> list[bytes]:
    """Load selectors into registers, one behind the other."""
    made, register = [], NFT_REG32_00
    for family in sorted({name.split()[0] for name in selectors} & _FAMILIES.keys() - families):
        families.add(family)
        if table.family == "inet":
            # A packet of the other family has something else in that place.
            made.append(_expression("meta", be32(2, NFT_META_NFPROTO), be32(1, NFT_REG32_00)))
            made.append(_compare(NFT_CMP_EQ, bytes((_FAMILIES[family],))))
    for name in selectors:
        if name in _METAS:
            made.append(_expression("meta", be32(2, _METAS[name][0]), be32(1, register)))
        else:
            base, offset, length, _ = _PAYLOADS[name]
            made.append(_expression("payload", be32(1, register), be32(2, base), be32(3, offset), be32(4, length)))
        register += (TYPES.get(_type(name), (0, 4))[1] + 3) // 4
    return made


def _constant(kind: str, word: str, operator: int) -> list[bytes]:
    low, high = encoded(kind, word.strip('"'))
    if low == high:
        return [_compare(operator, low)]
    mask = bytes(255 ^ a ^ b for a, b in zip(low, high, strict=True))
    return [_mask(mask), _compare(operator, low)]


def _value(kind: int, data: bytes) -> bytes:
    return nested(kind, attribute(NFTA_DATA_VALUE, data))


def _compare(operator: int, data: bytes) -> bytes:
    return _expression("cmp", be32(1, NFT_REG32_00), be32(2, operator), _value(3, data))


def _mask(mask: bytes, xor: bytes = b"") -> bytes:
    return _expression(
        "bitwise",
        be32(1, NFT_REG32_00),
        be32(2, NFT_REG32_00),
        be32(3, len(mask)),
        _value(4, mask),
        _value(5, xor or bytes(len(mask))),
    )


def _statement(words: list[str], table: Table, families: set[str]) -> list[bytes]:
    """Take a statement off the front."""
    word = words.pop(0)
    if word in VERDICTS:
        chain = string(NFTA_VERDICT_CHAIN, words.pop(0)) if word in ("jump", "goto") else b""
        verdict = nested(NFTA_DATA_VERDICT, be32(NFTA_VERDICT_CODE, VERDICTS[word]), chain)
        return [_expression("immediate", be32(1, NFT_REG_VERDICT), nested(2, verdict))]
    if word == "masquerade":
        return [_expression("masq")]
    if word == "dnat":
        return _dnat(words, table, families)
    if [word, *words[:4]] == ["meta", "mark", "set", "meta", "mark"] and words[4] == "|":
        bits = int(words[5], 0)
        del words[:6]
        load, store = (_expression("meta", be32(2, NFT_META_MARK), be32(way, NFT_REG32_00)) for way in (1, 3))
        return [load, _mask((~bits & 0xFFFFFFFF).to_bytes(4, byteorder), bits.to_bytes(4, byteorder)), store]
    raise ValueError(f"{' '.join([word, *words])!r} is no rule that can be compiled")


def _dnat(words: list[str], table: Table, families: set[str]) -> list[bytes]:
    family = _FAMILIES[words.pop(0)]
    del words[0]  # to
    made = _load(_selectors(words), table, families)
    del words[0]  # map
    name = words.pop(0)[1:]
    address, *port = table.set(name).data
    made.append(_expression("lookup", string(1, name), be32(2, NFT_REG32_00), be32(3, NFT_REG32_00)))
    behind = be32(5, NFT_REG32_00 + TYPES[address][1] // 4) if port else b""
    return [*made, _expression("nat", be32(1, NFT_NAT_DNAT), be32(2, family), be32(3, NFT_REG32_00), behind)]
