"""What is connected to what: the bridges of a host, their ports, and the containers at the other ends, as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyroute2 import IPRoute, NetNS


@dataclass
class Drawn:
    """A link, with what is shown of it."""

    index: int
    name: str
    kind: str
    master: int
    peer: int
    addresses: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Name and addresses."""
        return "  ".join((self.name, *self.addresses))


def draw(sandboxes: Mapping[str, str]) -> str:
    """Return the picture of this host and its containers (name to netns path).

    host
    └── cni0  10.88.0.1/16
        ├── veth52c1aa08 ── eth0  10.88.0.2/16  in web
        └── veth9e0e12f7 ── eth0  10.88.0.3/16  in db
    """
    with IPRoute() as here:
        host = _links(here)
    inside = {name: _links_in(path) for name, path in sandboxes.items()}
    lines = ["host"]
    bridges = [link for link in host if link.kind == "bridge"]
    for bridge in bridges:
        branch, rest = _branch(bridge is bridges[-1])
        lines.append(f"{branch}{bridge.line()}")
        ports = [link for link in host if link.master == bridge.index]
        for port in ports:
            twig, _ = _branch(port is ports[-1])
            lines.append(f"{rest}{twig}{port.name} ── {_other_end(port, inside)}")
    return "\n".join(lines)


def _branch(last: bool) -> tuple[str, str]:
    """Return what stands before a line of a tree, and before the lines below it."""
    return ("└── ", "    ") if last else ("├── ", "│   ")


def _other_end(port: Drawn, inside: Mapping[str, list[Drawn]]) -> str:
    for name, links in inside.items():
        for link in links:
            if link.index == port.peer and link.peer == port.index:
                return f"{link.line()}  in {name}"
    return "?"


def _links_in(path: str) -> list[Drawn]:
    with NetNS(path) as there:
        return _links(there)


def _links(socket: IPRoute) -> list[Drawn]:
    drawn = {}
    for message in socket.get_links():
        info = message.get(("linkinfo", "kind")) or ""
        index = message["index"]
        name, master, peer = (message.get(key) for key in ("ifname", "master", "link"))
        drawn[index] = Drawn(index, name, info, master or 0, peer or 0)
    for message in socket.get_addr(scope=0):
        drawn[message["index"]].addresses.append(f"{message.get('address')}/{message['prefixlen']}")
    return list(drawn.values())
