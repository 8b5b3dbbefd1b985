"""Packets between namespaces: sockets opened in one, spoken to from another, all in the test's own process."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from cnikit.effects import netns
from tests.conftest import sh

# Seconds. What arrives takes a millisecond, or one second more where a neighbour must first be found; what does not
# arrive is waited for in vain.
PATIENCE = 5.0
IN_VAIN = 0.3

UDP = socket.SOCK_DGRAM


def _socket(namespace: str, address: str, kind: int) -> socket.socket:
    fd = netns.open_netns(namespace)
    try:
        with netns.Inside(fd):
            made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    finally:
        os.close(fd)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.settimeout(PATIENCE)
    return made


@contextmanager
def server(namespace: str, address: str, port: int, kind: int = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    """Listen in a namespace."""
    with _socket(namespace, address, kind) as listening:
        listening.bind((address, port))
        if kind == socket.SOCK_STREAM:
            listening.listen()
        yield listening


def reached(
    listening: socket.socket, namespace: str, address: str, port: int, patience: float = PATIENCE, source: str = ""
) -> str:
    """Send from a namespace to address and port; return whom the server saw it come from, "" if it saw nothing.

    The answer must come back, too.
    """
    with _socket(namespace, address, listening.type) as client:
        client.settimeout(patience)
        listening.settimeout(patience)
        if source:
            client.bind((source, 0))
        try:
            client.connect((address, port))
            client.send(b"ping")
            return _answer(listening, client)
        except OSError:
            return ""


def unreached(listening: socket.socket, namespace: str, address: str, port: int) -> bool:
    """Tell whether nothing sent from a namespace to address and port gets to the server and back."""
    return not reached(listening, namespace, address, port, IN_VAIN)


def _answer(listening: socket.socket, client: socket.socket) -> str:
    if listening.type == socket.SOCK_DGRAM:
        data, peer = listening.recvfrom(16)
        listening.sendto(b"pong", peer)
    else:
        connection, peer = listening.accept()
        with connection:
            connection.settimeout(PATIENCE)
            data = connection.recv(16)
            connection.send(b"pong")
    assert data == b"ping"
    assert client.recv(16) == b"pong"
    return str(peer[0])


def udp_socket(namespace: str, address: str, port: int) -> socket.socket:
    """Return a datagram socket in a namespace: always the same flow."""
    made = _socket(namespace, address, UDP)
    made.bind((address, port))
    return made


def arrived(listening: socket.socket) -> bool:
    """Tell whether a datagram gets to the server, whether or not an answer could get back."""
    listening.settimeout(IN_VAIN)
    try:
        return bool(listening.recv(64))
    except OSError:
        return False


def send_frame(namespace: str, link: str, mac: str, datagram: tuple[str, str, int], sender: str = "") -> None:
    """Send a UDP datagram (source, destination, port) in a frame to a MAC address, whatever the routes say.

    sender: the MAC address it is from, if not the link's own.
    """
    source, destination, port = datagram
    udp = struct.pack("!HHHH", 5000, port, 8 + 4, 0) + b"ping"
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, socket.IPPROTO_UDP, 0)
    head += socket.inet_aton(source) + socket.inet_aton(destination)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    packet = head[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + head[12:] + udp
    with frames(namespace, link) as end:
        own = packed_mac(sender) if sender else end.getsockname()[4]
        end.send(packed_mac(mac) + own + b"\x08\x00" + packet)


@contextmanager
def frames(namespace: str, link: str, kind: int = 0) -> Iterator[socket.socket]:
    """Open a socket for whole frames on a link; those of an EtherType, 3 for any, are received."""
    fd = netns.open_netns(namespace)
    try:
        with netns.Inside(fd):
            port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
    finally:
        os.close(fd)
    with port:
        port.bind((link, kind))
        port.settimeout(PATIENCE)
        yield port


def packed_mac(text: str) -> bytes:
    """Return the six bytes of a MAC address."""
    return bytes.fromhex(text.replace(":", ""))


def wire(host: str, other: str, *addresses: tuple[str, str], name: str = "wan") -> None:
    """Connect the host with another namespace by a veth called name; addresses are pairs, the host's first.

    All that the other one has no route to goes to the host.
    """
    here, there = host.rpartition("/")[2], other.rpartition("/")[2]
    sh(f"ip -n {here} link add {name} up type veth peer name {name} netns {there} && ip -n {there} link set {name} up")
    for mine, theirs in addresses:
        nodad = "nodad" if ":" in mine else ""
        sh(f"ip -n {here} addr add {mine} dev {name} {nodad} && ip -n {there} addr add {theirs} dev {name} {nodad}")
