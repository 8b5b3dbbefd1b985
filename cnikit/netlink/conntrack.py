"""Connection tracking's entries as ctnetlink messages: values to bytes and bytes to values. No sockets.

Source: linux/netfilter/nfnetlink_conntrack.h, nfnetlink.h. Ports and numbers inside attributes are in network byte
order, but for a filter's flags. tests/test_conntrack.py holds messages and numbers to pyroute2.
"""

from __future__ import annotations

from _socket import AF_INET
from _struct import Struct

from cnikit.netlink.codec import NLM_F_ACK, NLM_F_DUMP, Message, attribute, attributes, header, nested, u8, u32
from cnikit.value import Value

NFNL_SUBSYS_CTNETLINK = 1
IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE = 1, 2

CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ID, CTA_ZONE, CTA_FILTER = 1, 2, 12, 18, 25
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_V4_SRC, CTA_IP_V4_DST, CTA_IP_V6_SRC, CTA_IP_V6_DST = 1, 2, 3, 4
CTA_PROTO_NUM, CTA_PROTO_DST_PORT = 1, 3
CTA_FILTER_ORIG_FLAGS = 1
FILTER_FLAG_CTA_PROTO_NUM, FILTER_FLAG_CTA_PROTO_DST_PORT = 0x8, 0x20

_ENDS = {True: (CTA_IP_V4_SRC, CTA_IP_V4_DST), False: (CTA_IP_V6_SRC, CTA_IP_V6_DST)}

_GENMSG = Struct("!BBH")  # nfgenmsg: family, version, resource


class Flow(Value):
    """An entry: where its first packet was sent from and to, before any translation, and what names it to the kernel.

    target: where its packets go after translation, which is where answers come from.
    """

    family: int
    protocol: int
    source: bytes
    address: bytes
    port: int
    target: bytes
    original: bytes  # CTA_TUPLE_ORIG, CTA_ID and CTA_ZONE as they came
    id: bytes
    zone: bytes


def dump(family: int, protocol: int, port: int = 0) -> Message:
    """Ask for the entries of a protocol first sent to a port, to any with 0.

    The kernel filters from Linux 5.8 on. An older one lists everything, other protocols too. Addresses are not filtered
    by, for with those of IPv6 the kernel (6.18 still) lists all but the entries asked for.
    """
    flags, asked = FILTER_FLAG_CTA_PROTO_NUM, u8(CTA_PROTO_NUM, protocol)
    if port:
        flags |= FILTER_FLAG_CTA_PROTO_DST_PORT
        asked += attribute(CTA_PROTO_DST_PORT, port.to_bytes(2, "big"))
    original = nested(CTA_TUPLE_ORIG, nested(CTA_TUPLE_PROTO, asked))
    wanted = nested(CTA_FILTER, u32(CTA_FILTER_ORIG_FLAGS, flags))
    return _message(IPCTNL_MSG_CT_GET, NLM_F_DUMP, family, original + wanted)


def delete(flow: Flow) -> Message:
    """Delete this very entry: with its id, so that a newer one with the same addresses and ports stays."""
    body = nested(CTA_TUPLE_ORIG, flow.original) + attribute(CTA_ID, flow.id)
    body += attribute(CTA_ZONE, flow.zone) if flow.zone else b""
    return _message(IPCTNL_MSG_CT_DELETE, NLM_F_ACK, flow.family, body)


def flow(body: bytes) -> Flow:
    """Decode an entry of a dump. What has no ports has port 0."""
    family = header(_GENMSG, body)[0]
    got = attributes(body, _GENMSG.size)
    original = got.get(CTA_TUPLE_ORIG, b"")
    parts = attributes(original)
    protocol = attributes(parts.get(CTA_TUPLE_PROTO, b""))
    first = attributes(parts.get(CTA_TUPLE_IP, b""))
    source, destination = _ENDS[family == AF_INET]
    reply = attributes(got.get(CTA_TUPLE_REPLY, b""))
    return Flow(
        family=family,
        protocol=int.from_bytes(protocol.get(CTA_PROTO_NUM, b""), "big"),
        source=first.get(source, b""),
        address=first.get(destination, b""),
        port=int.from_bytes(protocol.get(CTA_PROTO_DST_PORT, b""), "big"),
        target=attributes(reply.get(CTA_TUPLE_IP, b"")).get(source, b""),
        original=original,
        id=got.get(CTA_ID, b""),
        zone=got.get(CTA_ZONE, b""),
    )


def _message(kind: int, flags: int, family: int, body: bytes) -> Message:
    return Message(NFNL_SUBSYS_CTNETLINK << 8 | kind, flags, _GENMSG.pack(family, 0, 0) + body)
