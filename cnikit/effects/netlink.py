"""Netlink sockets: requests sent in one sendmsg, answers matched to them."""

from __future__ import annotations

from _socket import AF_NETLINK, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_RAW, SOL_SOCKET, socket
from posix import strerror
from sys import byteorder

from cnikit import spec
from cnikit.errors import CniError
from cnikit.netlink.codec import (
    NLM_F_ACK,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    Message,
    error,
    frame,
    malformed,
    replies,
)
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NETLINK_ROUTE = 0
SO_RCVBUFFORCE = 33
NETLINK_NETFILTER = 12
SO_SNDBUFFORCE, SO_NETNS_COOKIE = 32, 71
SOL_NETLINK = 270
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12

# The kernel fills a page at a time (NLMSG_GOODSIZE) for readers who do not take more. What is cut off all the same is
# found out by its length.
_BUFFER = 1 << 14
_DUMP_TRIES = 3
_TOGETHER = 64
# What fits into a socket's usual room (net.core.wmem_default, rmem_default) with the answers, which take more.
_ROOM = 24 << 10
# What is kept of a dump, messages and bytes: 15,000 links, say. Decoded they take several times the room.
MOST_LISTED, MOST_BYTES = 1 << 16, 24 << 20

E2BIG = 7


class Answer(Value):
    """What came back for one request: 0 or an errno, the kernel's explanation, and the bodies of its messages."""

    errno: int
    why: str
    bodies: list[bytes]

    @property
    def body(self) -> bytes:
        """Return the body of the one message that answers a question. Raises CniError (100) when there is none."""
        if not self.bodies:
            raise malformed("answer without a message")
        return self.bodies[0]


class Listing(Value):
    """A dump: the bodies of its messages, and whether it may lack some, for it was interrupted by a change, or cut."""

    bodies: list[bytes]
    interrupted: bool
    cut: bool


class NetlinkError(CniError):
    """A request the kernel did not serve (code 100): its own words, or those of the errno."""

    def __init__(self, errno: int, why: str, subject: str = "netlink") -> None:
        super().__init__(spec.KERNEL_REFUSED, f"{subject}: {why or strerror(errno)}")
        self.errno = errno


class Socket:
    """A netlink socket of the namespace it is made in. Its errors begin with its subject.

    The kernel serves a request before sendmsg(2) returns. So an answer that is not there then never comes, and nothing
    here waits for one.
    """

    def __init__(self, protocol: int = NETLINK_ROUTE, subject: str = "netlink") -> None:
        """Open it. Raises NetlinkError."""
        self._subject = subject
        try:
            self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol)
            for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
                self._socket.setsockopt(SOL_NETLINK, option, 1)
        except OSError as e:
            raise self._failed(e) from None
        self._sequence = 0
        self._buffer = bytearray(_BUFFER)

    def namespace(self) -> int:
        """Return the number no other network namespace has until the next boot. Raises OSError before Linux 5.14."""
        return int.from_bytes(self._socket.getsockopt(SOL_SOCKET, SO_NETNS_COOKIE, 8), byteorder)

    def exchange(self, messages: list[Message]) -> list[Answer]:
        """Send requests together, each with NLM_F_ACK; return their answers in order. Raises CniError (100).

        The kernel works through all of them, whatever becomes of the earlier ones. It answers before we read, so not
        more are sent at a time than the answers of have room.
        """
        answers: list[Answer] = []
        for start in range(0, len(messages), _TOGETHER):
            answers += self._exchange(messages[start : start + _TOGETHER])
        return answers

    def _exchange(self, messages: list[Message]) -> list[Answer]:
        first = self._sequence + 1
        self._sequence += len(messages)
        self._send(b"".join(frame(message, first + i) for i, message in enumerate(messages)))
        bodies: list[list[bytes]] = [[] for _ in messages]
        answers: dict[int, Answer] = {}
        while len(answers) < len(messages):
            data = self._receive()
            if not data:
                return self._refused(answers, len(messages))
            for reply in replies(data):
                i = reply.sequence - first
                if not 0 <= i < len(messages):
                    continue  # an answer nobody waited for
                if reply.type == NLMSG_ERROR:
                    answers[i] = Answer(*error(reply), bodies[i])
                else:
                    bodies[i].append(reply.body)
        return [answers[i] for i in range(len(messages))]

    def _refused(self, answers: dict[int, Answer], count: int) -> list[Answer]:
        """Return the answers to requests that the kernel refused together, with one error for all (nfnetlink does)."""
        told = [answer for answer in answers.values() if answer.errno]
        if not told:
            raise self._unanswered()
        return [answers.get(i, told[-1]) for i in range(count)]

    def _unanswered(self) -> CniError:
        return CniError(spec.KERNEL_REFUSED, f"{self._subject}: the kernel gave no answer")

    def batch(self, begin: Message, messages: list[Message], end: Message | None) -> dict[int, int]:
        """Send a transaction; return the errnos of what failed, by place; -1 is the transaction itself.

        Without an end it is tried only. The kernel says what failed, and answers the last message in any case. Raises
        CniError (100).
        """
        first = self._sequence + 1
        self._sequence += len(messages) + 2
        last = len(messages) - 1
        sent = [begin, *messages[:-1], messages[-1].replace(flags=messages[-1].flags | NLM_F_ACK)]
        sent += [end] if end else []
        data = b"".join(frame(message, first + i) for i, message in enumerate(sent))
        if len(data) > _ROOM:
            self._make_room(len(data), len(messages))
        self._send(data)
        failed: dict[int, int] = {}
        while True:
            for reply in replies(self._needed()):
                i = reply.sequence - first - 1
                if not -1 <= i <= last or reply.type != NLMSG_ERROR:
                    continue
                errno, _ = error(reply)
                if errno:
                    failed[i] = errno
                if i in (-1, last):
                    return failed

    def _make_room(self, size: int, answers: int) -> None:
        """Have room for a long request, and for all it asks for failing, which we are told before we read."""
        try:
            self._socket.setsockopt(SOL_SOCKET, SO_SNDBUFFORCE, 2 * size)
            self._socket.setsockopt(SOL_SOCKET, SO_RCVBUFFORCE, 2048 * answers)
        except PermissionError:
            return  # Who is root of a user namespace only has to do with what there is.

    def dump(self, message: Message) -> list[bytes]:
        """Return the bodies of all messages of a dump, as far as they can be told. Raises CniError (100).

        While the kernel's tables keep changing no dump shows them as they are at one moment. Then this is what several
        dumps had: it may hold what is gone, hold twice what has changed, and lack what is there.
        """
        found: dict[bytes, None] = {}
        for _ in range(_DUMP_TRIES):
            listing = self.listed(message)
            if listing.cut:
                raise NetlinkError(E2BIG, "there is more to be listed than can be kept", self._subject)
            if not listing.interrupted:
                return listing.bodies
            found.update(dict.fromkeys(listing.bodies))
        return list(found)

    def listed(self, message: Message, wanted: Callable[[bytes], bool] | None = None) -> Listing:
        """Return one dump, or what is wanted of it, whatever is wrong with it. Raises CniError (100)."""
        self._sequence += 1
        self._send(frame(message, self._sequence))
        bodies: list[bytes] = []
        room, interrupted, cut = MOST_BYTES, False, False
        while True:
            for reply in replies(self._needed()):
                if reply.sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(reply.flags & NLM_F_DUMP_INTR)
                if reply.type in (NLMSG_DONE, NLMSG_ERROR):
                    errno, why = error(reply)
                    if errno:
                        raise NetlinkError(errno, why, self._subject)
                    return Listing(bodies, interrupted, cut)
                if wanted and not wanted(reply.body):
                    continue
                room -= len(reply.body)
                # The rest has to be read all the same, or the socket could be asked for nothing else.
                cut = cut or room < 0 or len(bodies) == MOST_LISTED
                if not cut:
                    bodies.append(reply.body)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as e:
            raise self._failed(e) from None

    def _needed(self) -> bytes:
        data = self._receive()
        if not data:
            raise self._unanswered()
        return data

    def _receive(self) -> bytes:
        """Return the next part of an answer, b"" when there is none."""
        try:
            return bytes(self._buffer[: self._socket.recv_into(self._buffer)])
        except BlockingIOError:
            return b""
        except OSError as e:
            raise self._failed(e) from None

    def _failed(self, e: OSError) -> NetlinkError:
        return NetlinkError(e.errno or 0, "", self._subject)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
