"""Netlink's framing: messages and attributes, bytes to values and back. No sockets.

What cannot be decoded, here and in the families, raises CniError (100): no kernel says such a thing, so nobody is
prepared for it, and an error is all that can come of it.

Source: linux/netlink.h. All numbers are in host byte order unless a family says otherwise; messages and attributes are
padded to four bytes.
"""

from __future__ import annotations

from _struct import Struct

from cnikit import spec
from cnikit.errors import CniError
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_ACK_TLVS = 0x200

_MAX_ERRNO = 4095  # linux/err.h

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSGERR_ATTR_MSG = 1

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

_HEADER = Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_ATTRIBUTE = Struct("=HH")  # nlattr: length, type
_U32 = Struct("=HHI")
_INT = Struct("=i")


class Message(Value):
    """A message without its framing: body is the family's own header and its attributes."""

    type: int
    flags: int
    body: bytes


class Reply(Value):
    """A message from the kernel, without its framing; error() reads an NLMSG_ERROR."""

    type: int
    flags: int
    sequence: int
    body: bytes


def attribute(kind: int, data: bytes) -> bytes:
    """Encode one attribute, padded."""
    length = len(data) + 4
    return _ATTRIBUTE.pack(length, kind) + data + bytes(-length & 3)


def u8(kind: int, number: int) -> bytes:
    """Encode an attribute of one byte."""
    return attribute(kind, bytes((number,)))


def u32(kind: int, number: int) -> bytes:
    """Encode an attribute of four bytes."""
    return _U32.pack(8, kind, number)


def string(kind: int, text: str) -> bytes:
    """Encode a string with its closing NUL."""
    return attribute(kind, text.encode("utf-8", "surrogateescape") + b"\0")


def nested(kind: int, *attributes: bytes) -> bytes:
    """Encode attributes inside an attribute."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def frame(message: Message, sequence: int) -> bytes:
    """Encode a message as a request."""
    length = _HEADER.size + len(message.body)
    flags = message.flags | NLM_F_REQUEST
    return _HEADER.pack(length, message.type, flags, sequence, 0) + message.body + bytes(-length & 3)


def malformed(why: str) -> CniError:
    """Return the error for an answer that cannot be decoded."""
    return CniError(spec.KERNEL_REFUSED, f"netlink {why}")


def replies(data: bytes) -> Iterator[Reply]:
    """Split what one recv() gave into messages. Raises CniError when a length is wrong."""
    offset = 0
    while offset < len(data):
        if len(data) - offset < _HEADER.size:
            raise malformed("message shorter than its header")
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= len(data) - offset:
            raise malformed(f"message says it is {length} bytes long")
        yield Reply(kind, flags, sequence, data[offset + _HEADER.size : offset + length])
        offset += length + 3 & ~3


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Decode attributes by type, the last of a type winning. Raises CniError when a length is wrong."""
    found: dict[int, bytes] = {}
    end = len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not 4 <= length <= end - offset:
            raise malformed(f"attribute says it is {length} bytes long")
        found[kind & NLA_TYPE_MASK] = data[offset + 4 : offset + length]
        offset += length + 3 & ~3
    return found


def header(layout: Struct, body: bytes) -> tuple[int, ...]:
    """Decode the family's header a body begins with. Raises CniError when the body is shorter."""
    if len(body) < layout.size:
        raise malformed(f"message of {len(body)} bytes where its header takes {layout.size}")
    return layout.unpack_from(body)


def needed(found: dict[int, bytes], kind: int) -> bytes:
    """Return an attribute that must be there. Raises CniError."""
    if kind not in found:
        raise malformed(f"message has no attribute {kind}")
    return found[kind]


def ip(data: bytes) -> bytes:
    """Return the address an attribute holds, b"" for none. Raises CniError when it has no address's length."""
    if len(data) not in (0, 4, 16):
        raise malformed(f"attribute has an address of {len(data)} bytes")
    return data


def text(data: bytes) -> str:
    """Decode a string, with or without its closing NUL."""
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def number(data: bytes) -> int:
    """Decode an unsigned number of up to four bytes. Raises CniError when there are more."""
    if len(data) > 4:
        raise malformed(f"attribute has a number of {len(data)} bytes")
    return int.from_bytes(data, "little" if _INT.pack(1)[0] else "big")


def error(reply: Reply) -> tuple[int, str]:
    """Return errno and the kernel's own explanation (extended ack) of an NLMSG_ERROR or NLMSG_DONE."""
    if reply.type == NLMSG_DONE and not reply.body:
        return 0, ""
    errno = -header(_INT, reply.body)[0]
    if not 0 <= errno <= _MAX_ERRNO:
        raise malformed(f"answer has the error number {errno}")
    if not reply.flags & NLM_F_ACK_TLVS:
        return errno, ""
    # NETLINK_CAP_ACK: of the request only the header is echoed, behind the error number.
    start = 4 + (_HEADER.size if reply.type == NLMSG_ERROR else 0)
    return errno, text(attributes(reply.body, start).get(NLMSGERR_ATTR_MSG, b""))
