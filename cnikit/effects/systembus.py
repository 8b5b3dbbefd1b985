"""The system's D-Bus: whether a service is there, and what it answers.

The library for the protocol, jeepney, takes 15 ms to import. Most hosts have nobody on their bus whom we would call, so
that question is written out here, and only a call imports the library. Source: D-Bus specification 0.43.
"""

from __future__ import annotations

import posix
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket
from _struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# Seconds to wait for each answer.
PATIENCE = 5.0

# Bytes, of what a bus says to one question: what we ask is answered in a few words, and a signal may come in between.
MOST = 1 << 16

# The specification wants the second; not every system has a link from /var/run to /run.
PLACES = b"unix:path=/run/dbus/system_bus_socket;unix:path=/var/run/dbus/system_bus_socket"

# What D-Bus calls these errors. No server: there is no bus, or it will not have us. No reply: there is one, and yet.
NO_SERVER = "org.freedesktop.DBus.Error.NoServer"
NO_REPLY = "org.freedesktop.DBus.Error.NoReply"
NO_OWNER = ("org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner")

EPERM, ENOENT, EACCES, ENOTDIR, EPROTO, ECONNREFUSED = 1, 2, 13, 20, 71, 111
_ABSENT = (EPERM, ENOENT, EACCES, ENOTDIR, ECONNREFUSED)

METHOD_RETURN, ERROR = 2, 3
_HEADER = Struct("<cBBBIII")  # byte order, type, flags, version, length of the body, serial, length of the fields
_LENGTH = Struct("<I")


class BusError(Exception):
    """A call that failed: what D-Bus or the service calls it, and the words to it."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, text)
        self.name = name
        self.text = text


def has_owner(name: str) -> bool:
    """Tell whether somebody on the bus has a name. Raises BusError when a bus is there and does not answer.

    Half a millisecond, and next to nothing where there is no bus.
    """
    try:
        connection = _connect()
    except BusError as e:
        if e.name == NO_SERVER:
            return False
        raise
    try:
        connection.sendall(_to_bus(2, "NameHasOwner", name))
        kind, body = _answer(connection)
    except OSError as e:
        raise _befallen(e) from None
    finally:
        connection.close()
    return kind == METHOD_RETURN and any(body)


def call(name: str, path: str, interface: str, member: str, *texts: str) -> Any:
    """Call a service's method with strings; return the first value of its answer, None without. Raises BusError.

    A service that is not running is not started.
    """
    import jeepney

    message = jeepney.new_method_call(jeepney.DBusAddress(path, name, interface), member, "s" * len(texts), texts)
    message.header.flags |= jeepney.MessageFlag.no_auto_start
    connection = _connect()
    parser = jeepney.Parser()
    try:
        connection.sendall(message.serialise(serial=2))
        while True:
            answer = _parsed(parser)
            if answer is None:
                parser.add_data(connection.receive(4096))
            elif answer.header.fields.get(jeepney.HeaderFields.reply_serial) == 2:
                break
    except OSError as e:
        raise _befallen(e) from None
    finally:
        connection.close()
    first = answer.body[0] if answer.body else None
    if answer.header.message_type is jeepney.MessageType.error:
        raise BusError(str(answer.header.fields.get(jeepney.HeaderFields.error_name)), str(first))
    return first


def _parsed(parser: Any) -> Any:
    """Return the next message, None when more must be read for it. Raises OSError when it is none."""
    try:
        return parser.get_next_message()
    except Exception:  # The library tells by all kinds of them.
        raise OSError(EPROTO, "the bus says what is no message") from None


class _Bus(socket):
    """A connection to a bus, which has only so much to say on it."""

    left = MOST

    def receive(self, most: int) -> bytes:
        """Return what comes next, at least one byte. Raises OSError."""
        if not self.left:
            raise OSError(EPROTO, f"the bus says more than {MOST} bytes")
        data = self.recv(min(most, self.left))
        if not data:
            raise ConnectionResetError
        self.left -= len(data)
        return data


def _connect() -> _Bus:
    """Return a connection on which we have said who we are, and Hello. Raises BusError."""
    failed = BusError(NO_SERVER, "DBUS_SYSTEM_BUS_ADDRESS names no Unix socket")
    for address in _addresses(posix.environ.get(b"DBUS_SYSTEM_BUS_ADDRESS") or PLACES):
        try:
            connection = _Bus(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        except OSError as e:
            raise _befallen(e) from None
        try:
            _introduce(connection, address)
            return connection
        except OSError as e:
            connection.close()
            failed = _befallen(e)
            if failed.name != NO_SERVER:
                break
    raise failed


def _addresses(listed: bytes) -> Iterator[bytes]:
    """Split a list of addresses ("unix:path=/run/a%20b;unix:abstract=c") into those of Unix sockets."""
    for entry in listed.split(b";"):
        kind, _, keys = entry.partition(b":")
        for key, _, value in (pair.partition(b"=") for pair in keys.split(b",")):
            if kind == b"unix" and key in (b"path", b"abstract"):
                path = _unescaped(value)
                if path and b"\0" not in path:
                    yield path if key == b"path" else b"\0" + path


def _unescaped(value: bytes) -> bytes:
    """Return what is meant by a value with %20 in it, b"" by one that is wrong."""
    first, *escaped = value.split(b"%")
    try:
        return first + b"".join(bytes.fromhex(part[:2].decode()) + part[2:] for part in escaped)
    except ValueError:
        return b""


def _introduce(connection: _Bus, address: bytes) -> None:
    """Connect, authenticate as the user we run as, and say Hello. Raises OSError."""
    connection.settimeout(PATIENCE)
    connection.connect(address)
    connection.sendall(b"\0AUTH EXTERNAL %b\r\n" % str(posix.geteuid()).encode().hex().encode())
    line = b""
    while not line.endswith(b"\r\n"):
        line += connection.receive(512)
    if not line.startswith(b"OK "):
        raise OSError(EACCES, f"the bus does not take us in: {line.decode('ascii', 'replace').rstrip()}")
    connection.sendall(b"BEGIN\r\n" + _to_bus(1, "Hello"))
    if _answer(connection)[0] != METHOD_RETURN:
        raise OSError(EPROTO, "the bus does not greet us back")


def _to_bus(serial: int, member: str, text: str = "") -> bytes:
    """Encode a call of one of the bus's own methods, with a string or, if it is empty, without."""
    fields = _field(1, "o", "/org/freedesktop/DBus")  # path, interface, member, destination, signature of the body
    fields += _field(2, "s", "org.freedesktop.DBus") + _field(3, "s", member) + _field(6, "s", "org.freedesktop.DBus")
    fields += b"\x08\x01g\0\x01s\0" if text else b"\x08\x01g\0\0\0"
    body = _string(text) if text else b""
    header = _HEADER.pack(b"l", 1, 0, 1, len(body), serial, len(fields)) + fields
    return header + bytes(-len(header) & 7) + body


def _field(code: int, kind: str, text: str) -> bytes:
    """Encode a field of a message's header: a variant that is a string, or like one."""
    field = bytes((code, 1, ord(kind), 0)) + _string(text)
    return field + bytes(-len(field) & 7)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return _LENGTH.pack(len(encoded)) + encoded + b"\0"


def _answer(connection: _Bus) -> tuple[int, bytes]:
    """Return the type and the body of the next message that is an answer. Raises OSError."""
    while True:
        head = _receive_whole(connection, 16)
        order = "<" if head[:1] == b"l" else ">"
        length, _, fields = Struct(f"{order}III").unpack_from(head, 4)
        rest = _receive_whole(connection, (fields + 7 & ~7) + length)
        if head[1] in (METHOD_RETURN, ERROR):
            return head[1], rest[len(rest) - length :]


def _receive_whole(connection: _Bus, length: int) -> bytes:
    data = b""
    while len(data) < length:
        data += connection.receive(length - len(data))
    return data


def _befallen(e: OSError) -> BusError:
    """Return an error of the connection as one of D-Bus's."""
    if isinstance(e, (TimeoutError, BlockingIOError)):
        return BusError(NO_REPLY, f"no answer within {PATIENCE:g} s")
    if isinstance(e, (ConnectionResetError, BrokenPipeError)):
        return BusError(NO_REPLY, "the bus has hung up")
    return BusError(NO_SERVER if e.errno in _ABSENT else NO_REPLY, e.strerror or str(e))
