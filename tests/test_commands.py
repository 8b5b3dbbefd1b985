"""The command line that is shown for an object does just what we do, to the scope of a route.

Each is made twice, in namespaces of their own: by us, and by running what it shows; and the kernel is to tell the same.
nftables' objects are tried so in tests/test_nftables.py, of which the whole ruleset is compared.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cnikit
from cnikit import hostports
from cnikit.conditions import Conditional
from cnikit.effects import netns
from cnikit.effects.kernel import World
from cnikit.hostports import StaleFlows
from cnikit.iptables import Rule, Rules
from cnikit.objects import (
    CONTAINER,
    HOST,
    Address,
    Alias,
    Bridge,
    Carrier,
    Change,
    Device,
    FdbEntry,
    ForwardingV6,
    Gateway,
    KeptMac,
    Make,
    Object,
    Port,
    Remove,
    Route,
    Settled,
    Sysctl,
    Up,
    Veth,
)
from cnikit.plan import Add, Del, render
from cnikit.ruleset import Appended, Foreign, Member, Pair, Recent, Ruleset
from cnikit.settings import (
    AllMulticast,
    Announced,
    Group,
    Isolated,
    Learning,
    Mac,
    Mtu,
    Promiscuous,
    QueueLength,
    Setting,
)
from cnikit.zones import ZoneSource
from tests.conftest import sh

MAC, OTHER = "02:00:00:00:00:77", "02:00:00:00:00:78"
# Why a kind is not among the cases.
ELSEWHERE = {
    Object: "is no kind",
    Setting: "is no kind",
    Carrier: "waits",
    Settled: "waits",
    Foreign: "says how to find what has no name",
    Ruleset: "tests/test_nftables.py",
    Member: "tests/test_nftables.py",
    hostports.Port: "a Member",
    Pair: "a Member",
    Recent: "a Member",
    Appended: "tests/test_nftables.py",
    StaleFlows: "tests/test_conntrack.py: there need not be a conntrack(8)",
    hostports.FlowsOf: "tests/test_leftovers.py: the same",
    ZoneSource: "tests/test_firewalld.py: firewalld is not the kernel",
}

BRIDGE = (Bridge(HOST, "br1"), KeptMac(HOST, "br1"), Up(HOST, "br1"))
VETH = Veth(HOST, "veth1", "eth0", "", "br1", 1400, MAC)
LINKS = (*BRIDGE, VETH, Up(HOST, "veth1"))
LINKED = (*LINKS, Up(CONTAINER, "eth0"))
V4 = (*LINKED, Address(CONTAINER, "eth0", "10.1.0.2/24"))
BOTH = (*V4, Address(CONTAINER, "eth0", "fd00::2/64"))
ETH0 = "net/ipv4/conf/eth0"
CHAIN = Rules(
    HOST,
    "nat",
    4,
    ("SHARED",),
    (Rule("POSTROUTING", "--dst 10.9.0.0/16", "SHARED"),),
    ("PRIVATE",),
    (Rule("PRIVATE", "--src 10.1.0.2/32", "ACCEPT"),),
)
ROUTED = Rule("POSTROUTING", "-s 10.1.0.2/32", "RETURN")


def route(dst: str, gw: str = "", **keys: int) -> Route:
    return Route(CONTAINER, "eth0", dst, gw, **keys)


# Names that a shell would take for something else.
ODD = "b'$;`1"
ODD_VETH = Veth(HOST, "v*$(id)", "e\"&0'", "", ODD, 0, MAC)
ODD_LINKS = (Bridge(HOST, ODD), Up(HOST, ODD), ODD_VETH, Up(HOST, ODD_VETH.name), Up(CONTAINER, ODD_VETH.peer))

# What is there before, and what is made.
MADE: list[tuple[tuple[Object, ...], Object]] = [
    ((), Bridge(HOST, "br2")),
    ((), Bridge(HOST, "br2", 1400)),
    ((Bridge(HOST, "br2"),), KeptMac(HOST, "br2")),
    *((BRIDGE, veth) for veth in (VETH, VETH.replace(bridge=""), VETH.replace(mtu=0), VETH.replace(mac=""))),
    (LINKS, Alias(HOST, "veth1", "cni:net1/c1/eth0")),
    *((LINKS, Port(HOST, "veth1", hairpin, isolated)) for hairpin in (False, True) for isolated in (False, True)),
    ((*LINKS, Port(HOST, "veth1", True, True)), Port(HOST, "veth1", False, False)),
    (LINKS, Up(HOST, "br1")),
    (LINKS, Up(CONTAINER, "eth0")),
    *(
        (LINKED, Address(CONTAINER, "eth0", cidr, dad))
        for cidr in (
            *("10.1.0.2/24", "10.1.0.2/30", "10.1.0.2/31", "10.1.0.2/32", "10.1.0.2/8", "169.254.7.7/16"),
            *("127.0.0.9/8", "192.168.255.255/16", "224.0.0.9/32"),
            *("fd00::2/64", "fd00::2/127", "fd00::2/128", "fe80::7/64", "2001:db8::1/48"),
        )
        for dad in (False, True)
    ),
    (BRIDGE, Gateway(HOST, "br1", "10.1.0.1/24")),
    (BRIDGE, Gateway(HOST, "br1", "fd00::1/64")),
    *(
        (BOTH, what)
        for what in (
            *(route("0.0.0.0/0", "10.1.0.1"), route("0.0.0.0/0"), route("::/0", "fd00::1"), route("::/0")),
            *(route("10.9.0.0/16", "10.1.0.1"), route("10.9.0.0/16"), route("10.9.8.7/16"), route("fd09::7/64")),
            *(route("10.9.0.0/16", scope=253), route("10.9.0.0/16", scope=200), route("fd09::/64", scope=253)),
            *(route("10.9.0.0/16", "10.1.0.1", scope=200), route("10.9.0.7/32", "10.1.0.1", priority=7)),
            *(route("10.9.0.0/16", table=1000), route("fd09::/64", "fd00::1", table=1000), route("fd09::/64", table=7)),
            *(route("10.9.0.0/16", "10.1.0.1", mtu=1300, advmss=1200), route("fd09::/64", mtu=1300, priority=9)),
            *(route("10.9.0.0/16", table=255), route("10.0.0.7/0", "10.1.0.1"), route("fe80::/64")),
        )
    ),
    ((*V4, route("0.0.0.0/0", "10.1.0.1")), route("0.0.0.0/0", "10.1.0.9")),
    ((*BOTH, route("::/0", "fd00::1")), route("::/0", "fd00::9")),
    *(
        (LINKED, Sysctl(CONTAINER, name, value))
        for name, value in (
            *((f"{ETH0}/arp_notify", "1"), (f"{ETH0}/arp_filter", "1"), ("net/ipv6/conf/eth0/disable_ipv6", "1")),
            *(("net/ipv4/ip_forward", "1"), ("net/ipv4/ip_local_port_range", "1024\t2000")),
            *(("net/ipv4/ping_group_range", "0 77"), ("net/core/somaxconn", "77")),
        )
    ),
    ((VETH.replace(bridge="", name="v.1"),), Sysctl(HOST, "net/ipv4/conf/v.1/arp_filter", "1")),
    ((), Bridge(HOST, ODD)),
    ((Bridge(HOST, ODD),), KeptMac(HOST, ODD)),
    (ODD_LINKS[:2], ODD_VETH),
    *(
        (ODD_LINKS, what)
        for what in (
            *(Alias(HOST, ODD_VETH.name, "cni:net1/c1/eth0"), Port(HOST, ODD_VETH.name, True, True)),
            *(FdbEntry(HOST, ODD_VETH.name, OTHER), Address(CONTAINER, ODD_VETH.peer, "10.1.0.2/24")),
            *(route("10.9.0.0/16").replace(name=ODD_VETH.peer), Mtu(CONTAINER, ODD_VETH.peer, 1300)),
            Sysctl(CONTAINER, f"net/ipv4/conf/{ODD_VETH.peer}/arp_filter", "1"),
        )
    ),
    ((), ForwardingV6(HOST, "net/ipv6/conf/all/forwarding", "1")),
    *(
        (LINKED, setting)
        for setting in (
            *(Mac(CONTAINER, "eth0", OTHER), Announced(CONTAINER, "eth0", MAC), Mtu(CONTAINER, "eth0", 1300)),
            *(QueueLength(CONTAINER, "eth0", 7), Promiscuous(HOST, "br1"), Promiscuous(CONTAINER, "eth0", False)),
            *(AllMulticast(CONTAINER, "eth0", True), Isolated(HOST, "veth1"), Isolated(HOST, "veth1", False)),
            *(Learning(HOST, "veth1", False), Learning(HOST, "veth1", True), Group(HOST, "veth1", 77)),
            FdbEntry(HOST, "veth1", OTHER),
        )
    ),
    ((), CHAIN),
    ((), CHAIN.replace(version=6, shared=(), own=(Rule("PRIVATE", "-s fd00::2/128", "ACCEPT"),))),
    ((), CHAIN.replace(private=(), own=(ROUTED,))),
    (
        (Ruleset(HOST, hostports.TABLE.name, hostports.TABLE),),
        Conditional(
            HOST,
            "conditional4",
            hostports.TABLE,
            ("ip saddr 192.0.2.2 tcp dport 80 dnat ip to 10.1.0.2:80",),
            "cni:net1/c1/eth0",
            "conditionsV4",
        ),
    ),
]
# What is there before, the last of it removed.
REMOVED: list[tuple[tuple[Object, ...], Object]] = [
    (LINKS, VETH),
    (LINKS, Device(HOST, "veth1")),
    (ODD_LINKS, ODD_VETH),
    (LINKS, Device(CONTAINER, "eth0")),
    (LINKED, Up(CONTAINER, "eth0")),
    *((BOTH, Address(CONTAINER, "eth0", cidr)) for cidr in ("10.1.0.2/24", "fd00::2/64")),
    *(
        ((*LINKED, setting), setting)
        for setting in (
            *(Mac(CONTAINER, "eth0", OTHER, MAC), Mtu(CONTAINER, "eth0", 1300, 1400)),
            *(QueueLength(CONTAINER, "eth0", 7, 1000), Promiscuous(CONTAINER, "eth0", True, False)),
            *(AllMulticast(CONTAINER, "eth0", True, False), Isolated(HOST, "veth1", True, False)),
            *(Learning(HOST, "veth1", False, True), Group(HOST, "veth1", 77, 0)),
            *(Sysctl(CONTAINER, f"{ETH0}/{name}", "1", before="0") for name in ("arp_notify", "arp_filter")),
            Sysctl(CONTAINER, "net/ipv4/ip_local_port_range", "1024 2000", before="32768\t60999"),
            Sysctl(CONTAINER, "net/ipv4/ip_local_reserved_ports", "80,443", before=""),
        )
    ),
    ((CHAIN,), CHAIN),
    ((CHAIN.replace(private=(), own=(ROUTED,)),), CHAIN.replace(private=(), own=(ROUTED,))),
]
CASES = [*((before, Make(what)) for before, what in MADE), *((before, Remove(what)) for before, what in REMOVED)]

# What sets something to what it is.
NO_CHANGE = (
    *(Up(HOST, "br1"), Announced(CONTAINER, "eth0", MAC), Port(HOST, "veth1", False, False)),
    *(Promiscuous(CONTAINER, "eth0", False), Isolated(HOST, "veth1", False), Learning(HOST, "veth1", True)),
)

NO_ADDRESSES = "net.ipv6.conf.default.addr_gen_mode=1 net.ipv6.conf.default.accept_dad=0"


class Site:
    """A host and a container, nothing on either, and no addresses that the kernel makes by itself."""

    def __init__(self, host: str, container: str) -> None:
        self.host, self.container = host, container
        for namespace in (host, container):
            sh(f"ip netns exec {Path(namespace).name} sysctl -qw {NO_ADDRESSES}")

    def make(self, *changes: Change) -> None:
        """Make changes in our way."""
        fd = netns.open_netns(self.host)
        with netns.Inside(fd), World(netns.open_netns(self.container)) as world:
            for change in changes:
                made = change.what.changes(world) if isinstance(change.what, Gateway) else (change,)
                assert world[change.what.where].change(made) == [None] * len(made), change
        os.close(fd)

    def run(self, change: Change) -> None:
        """Run the command line that is shown for it."""
        what = change.what.replace(sandbox=self.container) if isinstance(change.what, Veth) else change.what
        step = Add(what) if isinstance(change, Make) else Del(what)
        Path("/run/command").write_text(f"set -eu\n{render([step], self.container)}")
        sh(f"ip netns exec {Path(self.host).name} sh /run/command")

    def told(self) -> Counter[str]:
        """Return what the kernel tells of both, a line each."""
        both = (self.host, self.container)
        return Counter(f"{namespace is self.host} {line}" for namespace in both for line in _told(namespace))


LISTED = (
    *("ip -d -j link", "ip -d -j addr", "bridge -d -j link", "bridge -d -j fdb"),
    *("ip -d -j route show table all", "ip -d -j -6 route show table all"),
)
SYSCTLS = "ipv?/conf/*/* ipv4/ip_* ipv4/ping* core/somaxconn"
OTHERS = f"grep -H . /sys/class/net/*/addr_assign_type; nft list ruleset; cd /proc/sys/net; grep -s . {SYSCTLS} || true"


def _told(namespace: str) -> Iterator[str]:
    lists = "; ".join(f"{command}; echo" for command in LISTED)
    for line in sh(f"ip netns exec {Path(namespace).name} sh -c '{lists}; {OTHERS}'").splitlines():
        if line.startswith("["):
            yield from (_anonymous(one) for entry in json.loads(line) for one in _words(entry))
        elif line:
            yield line


def _words(what: Any, path: str = "") -> Iterator[str]:
    """Return what JSON says, a line for each value."""
    if isinstance(what, dict):
        path += f" {what.get('ifname') or what.get('dst') or what.get('local') or ''}"
        for key, value in what.items():
            yield from _words(value, f"{path} {key}")
    elif isinstance(what, list) and any(isinstance(one, dict) for one in what):
        for one in what:
            yield from _words(one, path)
    else:
        yield f"{path}: {what}"


def _anonymous(text: str) -> str:
    """Leave out what is by chance, or a clock's."""
    text = re.sub(r"(timer|life_time|expires|_id|uptime|link_netns|tentative|cost|operstate): .*", r"\1", text)
    return re.sub(rf"(?!{MAC}|{OTHER})(?:[0-9a-f]{{2}}:){{5}}[0-9a-f]{{2}}", "MAC", text)


def _name(case: tuple[tuple[Object, ...], Change]) -> str:
    what = case[1].what
    shown = what.command() if isinstance(case[1], Make) else what.removal()
    return f"{type(what).__name__}: {shown.splitlines()[0]}"


@pytest.mark.parametrize(("before", "change"), CASES, ids=map(_name, CASES))
def test_the_command_that_is_shown_is_what_is_done(
    host: str, new_container: Callable[[], str], before: tuple[Object, ...], change: Change
) -> None:
    assert host
    ours, shown = (Site(new_container(), new_container()) for _ in range(2))
    for site in (ours, shown):
        site.make(*map(Make, before))
    nothing = ours.told()
    ours.make(change)
    shown.run(change)
    done, typed = ours.told(), shown.told()
    deadline = time.monotonic() + 5
    while done != typed and time.monotonic() < deadline:  # links come up by themselves
        time.sleep(0.1)
        done, typed = ours.told(), shown.told()
    assert (done - typed, typed - done) == (Counter(), Counter())
    assert done != nothing or change.what in NO_CHANGE, "it does something"


def test_every_kind_of_object_is_tried() -> None:
    for module in pkgutil.walk_packages(cnikit.__path__, "cnikit."):
        if not module.name.startswith("cnikit.cli"):
            importlib.import_module(module.name)
    tried = {type(change.what) for _, change in CASES}
    assert tried | set(ELSEWHERE) == _kinds(Object) | {Object}
    assert tried & set(ELSEWHERE) == set()


def _kinds(kind: type[Object]) -> set[type[Object]]:
    ours = {found for found in kind.__subclasses__() if found.__module__.startswith("cnikit.")}
    return ours | {inner for found in ours for inner in _kinds(found)}
