"""What is connected to what, as text: a host's links, who is at their other ends, and what nftables translates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyroute2 import IPRoute, NetNS

from cnikit import hostports, masquerade
from cnikit.effects.kernel import World
from cnikit.netlink.nftables import Element, Table
from cnikit.objects import HOST


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
    """Return the picture of this host, its containers and whoever else is at a wire's end (name to netns path).

    host
    ├── cni0  10.88.0.1/16
    │   ├── veth52c1aa08 ── eth0  10.88.0.2/16  in web
    │   └── veth9e0e12f7 ── eth0  10.88.0.3/16  in db
    └── uplink  192.0.2.1/24 ── eth0  192.0.2.2/24  in outside

    published    tcp 8080 -> 10.88.0.2:80
    masqueraded  10.88.0.2
    """
    with IPRoute() as here:
        host = _links(here)
    inside = {name: _links_in(path) for name, path in sandboxes.items()}
    ends = {link.index: _other_end(link, inside) for link in host}
    lines = ["host"]
    tops = [link for link in host if link.kind == "bridge" or (ends[link.index] and not link.master)]
    for top in tops:
        branch, rest = _branch(top is tops[-1])
        lines.append(f"{branch}{' ── '.join(filter(None, (top.line(), ends[top.index])))}")
        ports = [link for link in host if link.master == top.index]
        for port in ports:
            twig, _ = _branch(port is ports[-1])
            lines.append(f"{rest}{twig}{port.name} ── {ends[port.index] or '?'}")
    return "\n".join((*lines, *_translated()))


def _translated() -> list[str]:
    """Return a line for each published port, and one with the masqueraded addresses; none when there are none."""
    ports: dict[str, list[str]] = {}
    for element in _elements(hostports.TABLE, ("ports", "host_ports", "ranges")):
        ports.setdefault(" ".join(element.key), []).append(_target(*element.data))
    lines = [f"published    {port} -> {'  '.join(targets)}" for port, targets in ports.items()]
    sources = [element.key[0] for element in _elements(masquerade.TABLE, ("sources",))]
    if sources:
        lines.append(f"masqueraded  {'  '.join(sources)}")
    return ["", *lines] if lines else []


def _elements(table: Table, names: tuple[str, ...]) -> list[Element]:
    with World() as world:
        return [one for one in world[HOST].elements(table, "cni:") if one.set.rstrip("46") in names]


def _target(address: str, *port: str) -> str:
    return ":".join((f"[{address}]" if ":" in address and port else address, *port))


def _branch(last: bool) -> tuple[str, str]:
    """Return what stands before a line of a tree, and before the lines below it."""
    return ("└── ", "    ") if last else ("├── ", "│   ")


def _other_end(port: Drawn, inside: Mapping[str, list[Drawn]]) -> str:
    for name, links in inside.items():
        for link in links:
            if link.index == port.peer and link.peer == port.index:
                return f"{link.line()}  in {name}"
    return ""


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
