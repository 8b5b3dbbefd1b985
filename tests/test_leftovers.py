"""What containers leave that end without DEL, and who has their address next: nothing of the dead reaches him."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from socket import AF_INET, IPPROTO_SCTP
from typing import Any

import pytest
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from cnikit import hostports, leftovers, request
from cnikit.effects import nftables
from cnikit.effects.iptables import Iptables
from cnikit.effects.kernel import World
from cnikit.effects.netlink import NetlinkError, Socket
from cnikit.errors import CniError
from cnikit.ipam import host_local
from cnikit.netlink import codec
from cnikit.netlink.nftables import NFNL_SUBSYS_NFTABLES, NFT_MSG_GETSETELEM, NFT_MSG_GETTABLE
from cnikit.objects import Change, Refusal
from cnikit.plugins import bridge, firewall, portmap
from cnikit.request import Attachment
from tests.conftest import BUILT, Call, ip, sh
from tests.packets import UDP, arrived, server, udp_socket, unreached, wire

V4, V6 = "10.41.0.2", "fd00:41::2"
PLUGINS = {"bridge": bridge.PLUGIN, "portmap": portmap.PLUGIN, "firewall": firewall.PLUGIN}


def mapping(host: int, container: int, protocol: str = "tcp", **keys: Any) -> dict[str, Any]:
    return {"hostPort": host, "containerPort": container, "protocol": protocol, **keys}


class Owner:
    """A container with the address, on a network of that name, by these plugins with these keys."""

    def __init__(self, netns: str, network: str, container: str, **plugins: dict[str, Any]) -> None:
        self.netns, self.network, self.container = netns, network, container
        self.plugins = {"bridge": {}, **plugins}
        self.ifname = "eth0"
        self.result: dict[str, Any] = {}
        self.said = ""

    def call(self, verb: str, kind: str, **keys: Any) -> Call:
        return Call(PLUGINS[kind], verb, self.conf(kind, **keys), **self.environ)

    def repair(self, kind: str) -> tuple[str, ...]:
        """Have a plugin put back what is missing; return the command lines."""
        environ = {"CNI_COMMAND": "CHECK", "CNI_PATH": str(BUILT), **self.environ}
        return PLUGINS[kind].repair(request.parse(environ, json.dumps(self.conf(kind)).encode))

    @property
    def environ(self) -> dict[str, str]:
        return {"CNI_NETNS": self.netns, "CNI_CONTAINERID": self.container, "CNI_IFNAME": self.ifname}

    def conf(self, kind: str, **keys: Any) -> dict[str, Any]:
        conf = {"cniVersion": "1.1.0", "name": self.network, "type": kind, **self.plugins[kind], **keys}
        if kind == "bridge":
            addresses = [{"address": f"{V4}/24"}, {"address": f"{V6}/64"}]
            conf = {
                "bridge": f"br-{self.network}",
                "isDefaultGateway": True,
                "ipam": {"type": "static", "addresses": addresses},
                **conf,
            }
        if self.result:
            conf = {**conf, "prevResult": self.result}
        return conf

    def add(self) -> Owner:
        for kind in self.plugins:
            call = self.call("ADD", kind)
            self.result = call.result()
            self.said += call.stderr
        return self

    def delete(self) -> None:
        for kind in reversed(self.plugins):
            assert self.call("DEL", kind).succeeded()

    def die(self) -> None:
        """End without DEL; the kernel takes the veth along, a moment later. Its bridge goes too, as nobody needs it."""
        bridge_name, host_end = (link["name"] for link in self.result["interfaces"][:2])
        sh(f"ip netns del {Path(self.netns).name}")
        until = time.monotonic() + 10
        while any(link["ifname"] == host_end for link in ip("link")):
            assert time.monotonic() < until, "something is in the namespace still"
            time.sleep(0.01)
        sh(f"ip link del {bridge_name}")


@pytest.fixture
def outside(host: str, new_container: Callable[[], str]) -> str:
    other = new_container()
    wire(host, other, ("192.0.2.1/24", "192.0.2.2/24"), ("2001:db8::1/64", "2001:db8::2/64"))
    return other


def ports(*mappings: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"runtimeConfig": {"portMappings": list(mappings)}, **keys}


def rules() -> str:
    """Return all rules there are, without counters: a packet may come at any time."""
    saved = "(iptables-save; ip6tables-save) | sed -E '/^#/d; s/ \\[[0-9]+:[0-9]+\\]$//'"
    return sh(f"nft --stateless list ruleset; {saved}")


def entries(tag: str) -> set[str]:
    """Return the elements with that in their comment."""
    lines = (line.strip().removeprefix("elements = {").strip(" ,}") for line in rules().splitlines())
    return {line for line in lines if tag in line}


LEFT: dict[str, dict[str, dict[str, Any]]] = {
    "a port": {"portmap": ports(mapping(8080, 80))},
    "a port of one address": {"portmap": ports(mapping(8080, 80, hostIP="192.0.2.1"))},
    "ports in a row": {"portmap": ports(mapping(8080, 8080), mapping(8081, 8081))},
    "without masquerading": {"portmap": ports(mapping(8080, 80), snat=False)},
    "masqAll": {"portmap": ports(mapping(8080, 80), masqAll=True)},
    "on conditions": {"portmap": ports(mapping(8080, 80), conditionsV4=["ip saddr != 192.0.2.99"])},
    "by iptables": {"portmap": ports(mapping(8080, 80), backend="iptables")},
    "ipMasq": {"bridge": {"ipMasq": True}},
    "ipMasq and a port by iptables": {
        "bridge": {"ipMasq": True, "ipMasqBackend": "iptables"},
        "portmap": ports(mapping(8080, 80), backend="iptables"),
    },
    "firewall": {"firewall": {}},
    "firewall by iptables": {"firewall": {"backend": "iptables"}, "portmap": ports(mapping(8080, 80))},
}


@pytest.mark.parametrize("plugins", LEFT.values(), ids=LEFT)
@pytest.mark.parametrize("network", ["another network", "the same network"])
def test_who_has_the_address_next_has_nothing_of_the_dead(
    outside: str, new_container: Callable[[], str], plugins: dict[str, dict[str, Any]], network: str
) -> None:
    one = Owner(new_container(), "one", "dead", **plugins).add()
    before = rules()
    one.die()
    assert before == rules(), "nobody else has taken it away"
    two = Owner(new_container(), "two" if network == "another network" else "one", "next").add()
    assert two.said == ""
    assert "cni:" not in rules()
    assert V4 not in rules()
    assert V6 not in rules()
    for port in (80, 8080):
        with server(two.netns, "0.0.0.0", port) as web:
            assert unreached(web, outside, "192.0.2.1", 8080)
    assert two.call("CHECK", "bridge").succeeded()


def test_the_same_container_made_again_without_ports_has_none(host: str, new_container: Callable[[], str]) -> None:
    assert host
    Owner(new_container(), "one", "c", portmap=ports(mapping(8080, 80)), firewall={}).add().die()
    Owner(new_container(), "one", "c").add()
    assert "cni:" not in rules()


def test_flows_to_a_dead_container_do_not_reach_the_next(outside: str, new_container: Callable[[], str]) -> None:
    one = Owner(new_container(), "one", "dead", portmap=ports(mapping(5353, 53, "udp"))).add()
    with udp_socket(outside, "192.0.2.2", 4000) as client:
        with server(one.netns, "0.0.0.0", 53, UDP) as resolver:
            client.sendto(b"ping", ("192.0.2.1", 5353))
            assert resolver.recv(64) == b"ping"
        one.die()
        two = Owner(new_container(), "two", "next").add()
        with server(two.netns, "0.0.0.0", 53, UDP) as stranger:
            stranger.settimeout(0.3)
            client.sendto(b"ping", ("192.0.2.1", 5353))
            with pytest.raises(TimeoutError):
                stranger.recv(64)


@pytest.mark.parametrize("dies", [True, False])
def test_an_association_with_a_container_that_is_gone_is_forgotten(
    host: str, new_container: Callable[[], str], dies: bool
) -> None:
    """In what the kernel remembers of one of SCTP another can begin, with whoever has the address."""
    assert host
    one = Owner(new_container(), "one", "c1", portmap=ports(mapping(8080, 80, "sctp"))).add()
    there = NFCTAttrTuple(AF_INET, "192.0.2.2", "192.0.2.1", IPPROTO_SCTP, 4000, 8080)
    back = NFCTAttrTuple(AF_INET, V4, "192.0.2.2", IPPROTO_SCTP, 80, 4000)
    with NFCTSocket() as tracking:
        tracking.entry("add", tuple_orig=there, tuple_reply=back, timeout=60)
        if dies:
            one.die()
            Owner(new_container(), "two", "c2").add()
        else:
            one.delete()
        left = [NFCTAttrTuple.from_netlink(AF_INET, entry.get_attr("CTA_TUPLE_REPLY")) for entry in tracking.dump()]
    assert [flow.saddr for flow in left if flow.proto == IPPROTO_SCTP] == []


def test_answers_to_what_a_dead_container_sent_do_not_reach_the_next(
    outside: str, new_container: Callable[[], str]
) -> None:
    """Masqueraded, its flow leads back to the address from all that it ever sent to."""
    one = Owner(new_container(), "one", "dead", bridge={"ipMasq": True}).add()
    with udp_socket(outside, "192.0.2.2", 4000) as peer:
        with udp_socket(one.netns, "0.0.0.0", 5555) as asking:
            asking.sendto(b"ping", ("192.0.2.2", 4000))
            flow = peer.recvfrom(64)[1]
            peer.sendto(b"pong", flow)
            assert asking.recv(64) == b"pong"
        one.die()
        two = Owner(new_container(), "two", "next").add()
        with server(two.netns, "0.0.0.0", 5555, UDP) as stranger:
            peer.sendto(b"pong", flow)
            assert not arrived(stranger)


@pytest.mark.parametrize(("network", "container"), [("n" * 50, "c" * 64), ("one", "c" * 110)])
def test_chains_of_iptables_go_of_owners_whose_tags_have_hashes_in_them(
    outside: str, new_container: Callable[[], str], network: str, container: str
) -> None:
    keys = {"bridge": "br-one", "ipMasq": True, "ipMasqBackend": "iptables"}
    mapped = ports(mapping(8080, 80), backend="iptables")
    one = Owner(new_container(), network, container, bridge=keys, portmap=mapped).add()
    assert "~" in rules()
    one.die()
    two = Owner(new_container(), "two", "next").add()
    assert V4 not in rules()
    assert V6 not in rules()
    with server(two.netns, "0.0.0.0", 80) as web:
        assert unreached(web, outside, "192.0.2.1", 8080)


def test_a_container_made_again_with_another_address_keeps_its_chains_of_iptables(
    host: str, new_container: Callable[[], str]
) -> None:
    assert host
    mapped = ports(mapping(8080, 80), backend="iptables")
    Owner(new_container(), "one", "c", portmap=mapped).add().die()
    again = Owner(new_container(), "one", "c", portmap=mapped)
    again.plugins["bridge"] = {"ipam": {"type": "static", "addresses": [{"address": "10.41.0.3/24"}]}}
    again.add()
    Owner(new_container(), "one", "next").add()
    assert again.call("CHECK", "portmap").succeeded()


def test_a_living_owner_keeps_rules_that_do_not_say_whose_they_are(host: str, new_container: Callable[[], str]) -> None:
    assert host
    keys = {"firewall": {"backend": "iptables"}, "portmap": ports(mapping(8081, 80))}
    living = Owner(new_container(), "zero", "c", **keys).add()
    Owner(new_container(), "one", "dead", firewall={}, portmap=ports(mapping(8080, 80))).add().die()
    Owner(new_container(), "one", "next").add()
    assert "cni:one/dead" not in rules()
    assert living.call("CHECK", "firewall").succeeded()


@pytest.mark.parametrize("only_mac", [True, False])
def test_a_container_made_again_may_send_from_its_new_mac_address_only(
    host: str, new_container: Callable[[], str], only_mac: bool
) -> None:
    assert host
    Owner(new_container(), "one", "c", bridge={"macspoofchk": True}).add().die()
    addresses = [{"address": "10.41.0.3/24"}]
    keys = {"macspoofchk": only_mac, "ipam": {"type": "static", "addresses": addresses}}
    again = Owner(new_container(), "one", "c", bridge=keys).add()
    allowed = sh("nft list set bridge cnikit_macspoofchk allowed")
    assert "0a:58:0a:29:00:02" not in allowed, "which is by now a neighbour's"
    assert ("0a:58:0a:29:00:03" in allowed) == only_mac
    assert ("cni:one" in rules()) == only_mac
    assert again.call("CHECK", "bridge").succeeded()


def test_a_spare_port_of_the_dead_is_never_made_a_port(host: str, new_container: Callable[[], str]) -> None:
    """The container has a port on two networks, and ends: of the second only a spare is there."""
    assert host
    netns = new_container()
    first = Owner(netns, "zero", "dead", portmap=ports(mapping(8080, 80)))
    first.plugins["bridge"] = {"ipam": {"type": "static", "addresses": [{"address": "10.40.0.9/24"}]}}
    first.add()
    second = Owner(netns, "one", "dead", portmap=ports(mapping(8080, 80)))
    second.ifname = "eth1"
    second.add()
    assert V4 in sh("nft list set inet cnikit_portmap spares4")
    second.die()
    Owner(new_container(), "two", "next").add()
    assert V4 not in rules()
    first.delete()
    assert "cni:" not in rules(), "the spare does not take over"


# Two networks with one range


def both(new_container: Callable[[], str], **plugins: dict[str, Any]) -> tuple[Owner, Owner]:
    one = Owner(new_container(), "one", "c1", bridge={"ipMasq": True}, **plugins).add()
    return one, Owner(new_container(), "two", "c2", bridge={"ipMasq": True}, firewall={})


@pytest.mark.parametrize("first_to_go", [0, 1])
def test_a_living_owner_keeps_what_it_has_and_is_named(
    host: str, new_container: Callable[[], str], first_to_go: int
) -> None:
    assert host
    one, two = both(new_container, firewall={}, portmap=ports(mapping(8080, 80)))
    before = entries("cni:one")
    two.add()
    why = "is also an address of container c1 (eth0 of network one), whose ports and rules stay"
    assert two.said == f"bridge: {V4}, {V6} {why}\n"
    assert before == entries("cni:one")
    for owner in (one, two):
        for kind in owner.plugins:
            assert owner.call("CHECK", kind).succeeded()
    going, staying = (one, two) if first_to_go == 0 else (two, one)
    going.delete()
    for kind in staying.plugins:
        assert staying.call("CHECK", kind).succeeded()
    staying.delete()
    assert "cni:" not in rules()


def test_gc_takes_one_of_two_owners_away(host: str, new_container: Callable[[], str]) -> None:
    assert host
    one, two = both(new_container, firewall={})
    two.add()
    for kind in one.plugins:
        assert one.call("GC", kind, **{"cni.dev/valid-attachments": []}).succeeded()
    assert "cni:one" not in rules()
    for kind in two.plugins:
        assert two.call("CHECK", kind).succeeded()


def test_a_third_owner_goes_along_with_the_two(host: str, new_container: Callable[[], str]) -> None:
    assert host
    both(new_container, firewall={})[1].add()
    before = rules()
    three = Owner(new_container(), "three", "c3", bridge={"ipMasq": True}).add()
    assert rules() == before
    assert "container c1" in three.said
    assert "container c2" in three.said
    assert three.call("DEL", "bridge").succeeded()
    assert rules() == before


def test_a_third_owner_becomes_the_second_when_one_of_the_two_has_gone(
    host: str, new_container: Callable[[], str]
) -> None:
    assert host
    one, two = both(new_container, firewall={})
    two.add()
    three = Owner(new_container(), "three", "c3", bridge={"ipMasq": True}, firewall={}).add()
    for kind in three.plugins:
        assert three.call("CHECK", kind).succeeded(), "what the two have serves it"
        assert three.repair(kind) == ()
    one.delete()
    for kind, entry in ("bridge", "sources4"), ("firewall", "containers4"):
        code, why = three.call("CHECK", kind).error()
        assert (code, entry in why) == (101, True)
        assert three.repair(kind)
    two.delete()
    for kind in three.plugins:
        assert three.call("CHECK", kind).succeeded()


def test_repair_of_a_third_owner_leaves_the_living_one_of_two(host: str, new_container: Callable[[], str]) -> None:
    assert host
    one, two = both(new_container)
    two.add()
    three = Owner(new_container(), "three", "c3", bridge={"ipMasq": True}).add()
    one.die()
    three.repair("bridge")
    for owner in (two, three):
        assert owner.call("CHECK", "bridge").succeeded()


def test_a_failed_add_leaves_a_shared_entry_as_it_was(
    host: str, new_container: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host
    one, two = both(new_container)
    before = rules()
    routes = [{"dst": "203.0.113.0/24", "gw": "198.51.100.1"}]  # which no address of the container reaches
    addresses = [{"address": f"{V4}/24"}]
    ipam = {"type": "static", "addresses": addresses, "routes": routes}
    there: list[bool] = []

    def seen(self: nftables.Nftables, changes: Sequence[Change]) -> list[Refusal | None]:
        done = changed(self, changes)
        there.append(f"{V4} . 10.41.0.0/24" in sh("nft list set inet cnikit_masquerade inside4"))
        return done

    changed = nftables.Nftables.change
    monkeypatch.setattr(nftables.Nftables, "change", seen)
    assert two.call("ADD", "bridge", ipam=ipam).status == 1
    assert rules() == before
    assert all(there), "its owner is not without it for a moment"
    for kind in one.plugins:
        assert one.call("CHECK", kind).succeeded()


# Interfaces that another suite has made


def chained(owner: Owner, kind: str, verb: str = "ADD") -> Call:
    """Call a plugin behind one of another suite's: the host's link carries no tag."""
    owner.result = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "vethother"}, {"name": "eth0", "sandbox": owner.netns}],
        "ips": [{"address": f"{V4}/24", "interface": 1}, {"address": f"{V6}/64", "interface": 1}],
    }
    return owner.call(verb, kind)


@pytest.mark.parametrize("kind", ["portmap", "firewall"])
def test_behind_another_suites_plugin_the_first_of_ours_clears_away(
    outside: str, new_container: Callable[[], str], kind: str
) -> None:
    Owner(new_container(), "one", "dead", portmap=ports(mapping(8080, 80)), firewall={}).add().die()
    two = Owner(new_container(), "two", "next", **{kind: {}})
    assert chained(two, kind).result()
    assert "cni:one" not in rules()
    assert ("cni:two/next/eth0 (unlinked)" in rules()) == (kind == "firewall")


def test_what_the_plugin_before_has_made_stays(host: str, new_container: Callable[[], str]) -> None:
    assert host
    owner = Owner(new_container(), "one", "c", firewall={}, portmap=ports(mapping(8080, 80)))
    assert chained(owner, "firewall").result()
    assert chained(owner, "portmap").result()
    assert chained(owner, "firewall", "CHECK").succeeded()
    assert chained(owner, "portmap", "CHECK").succeeded()


def test_where_another_suites_plugin_asks_for_an_address_host_local_clears_away(
    host: str, new_container: Callable[[], str], networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be no other plugin of ours in the list."""
    assert host
    monkeypatch.setattr(host_local, "_ALONE", True)
    Owner(new_container(), "one", "dead", portmap=ports(mapping(8080, 80))).add().die()
    ipam = {"type": "host-local", "dataDir": str(networks), "ranges": [[{"subnet": "10.41.0.0/24"}]]}
    conf = {"cniVersion": "1.1.0", "name": "two", "type": "bridge", "ipam": ipam}
    call = Call(host_local.PLUGIN, "ADD", conf, CNI_NETNS=new_container())
    assert call.result()["ips"][0]["address"] == f"{V4}/24"
    assert call.stderr == ""
    assert V4 not in rules()
    # Asked once more for an address it has, it leaves alone what the plugins behind have made since.
    two = Owner(new_container(), "two", "c1", portmap=ports(mapping(8080, 80)))
    chained(two, "portmap").result()
    before = rules()
    assert Call(host_local.PLUGIN, "ADD", conf, CNI_NETNS=new_container()).result()
    assert rules() == before


def test_an_address_is_released_when_what_was_left_under_it_cannot_be_cleared_away(
    host: str, new_container: Callable[[], str], networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host
    monkeypatch.setattr(host_local, "_ALONE", True)
    monkeypatch.setattr(leftovers, "remove", lambda *_: [CniError(100, "nft delete element: Operation not permitted")])
    Owner(new_container(), "one", "dead", portmap=ports(mapping(8080, 80))).add().die()
    ipam = {"type": "host-local", "dataDir": str(networks), "ranges": [[{"subnet": "10.41.0.0/24"}]]}
    conf = {"cniVersion": "1.1.0", "name": "two", "type": "bridge", "ipam": ipam}
    assert Call(host_local.PLUGIN, "ADD", conf, CNI_NETNS=new_container()).status == 1
    assert not (networks / "two" / V4).exists()


@pytest.mark.parametrize(("network", "stays"), [("one", False), ("two", True)])
def test_of_another_suites_containers_only_their_own_network_tells(
    host: str, new_container: Callable[[], str], network: str, stays: bool
) -> None:
    assert host
    chained(Owner(new_container(), "one", "c1", portmap=ports(mapping(8080, 80))), "portmap").result()
    two = Owner(new_container(), network, "c2", firewall={})
    call = chained(two, "firewall")
    assert call.result()
    assert ("cni:one/c1/eth0" in rules()) == stays
    assert ("container c1" in call.stderr) == stays


# What it costs, and what can be in the way


def _sent(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Record what is sent of nftables: of each send the kinds of its messages."""
    sent: list[list[int]] = []
    send = Socket._send

    def watched(self: Socket, data: bytes) -> None:
        kinds = [reply.type for reply in codec.replies(data)]
        found = [kind & 0xFF for kind in kinds if kind >> 8 == NFNL_SUBSYS_NFTABLES]
        sent.extend([found] if found else [])
        send(self, data)

    monkeypatch.setattr(Socket, "_send", watched)
    return sent


def test_where_no_table_is_one_look_says_so(
    host: str, new_container: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host
    sent = _sent(monkeypatch)
    owner = Owner(new_container(), "one", "c").add()
    assert sent == [[NFT_MSG_GETTABLE]]
    sent.clear()
    owner.delete()
    assert sent == [[NFT_MSG_GETTABLE]]


def test_where_nothing_is_under_the_address_no_set_is_listed(
    host: str, new_container: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host
    other = Owner(new_container(), "one", "c1", bridge={"ipMasq": True}, firewall={}, portmap=ports(mapping(8080, 80)))
    other.add()
    owner = Owner(new_container(), "two", "c2")
    addresses = [{"address": "10.42.0.2/24"}, {"address": "fd00:42::2/64"}]
    sent = _sent(monkeypatch)
    owner.call("ADD", "bridge", ipam={"type": "static", "addresses": addresses}).result()
    assert sent == [[NFT_MSG_GETTABLE], [NFT_MSG_GETSETELEM] * 8]


def test_what_cannot_be_cleared_away_fails_the_add(
    host: str, new_container: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port that leads to a stranger is worse than a container less."""
    assert host
    Owner(new_container(), "one", "dead", portmap=ports(mapping(8080, 80))).add().die()
    monkeypatch.setattr(leftovers, "remove", lambda *_: [CniError(100, "nft delete element: Operation not permitted")])
    two = Owner(new_container(), "two", "next")
    assert two.call("ADD", "bridge").error() == (100, "nft delete element: Operation not permitted")
    assert ip(f"-n {Path(two.netns).name} link") == ip(f"-n {Path(two.netns).name} link show lo")


def test_what_could_not_be_cleared_away_is_found_by_the_next_add(
    host: str, new_container: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host
    Owner(new_container(), "one", "dead", portmap=ports(mapping(8080, 80), backend="iptables")).add().die()
    two = Owner(new_container(), "two", "next")
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Iptables, "_restore", lambda *_: "Another app is currently holding the xtables lock")
        assert two.call("ADD", "bridge").status == 1
    two.add()
    assert V4 not in rules()
    assert V6 not in rules()


def test_where_nfnetlink_is_refused_nobody_has_left_anything(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases are reclaimed there, too."""
    assert host

    def refused(*_: object) -> None:
        raise NetlinkError(93, "")

    monkeypatch.setattr(nftables, "Nftables", refused)
    with World() as world:
        leftovers.clear_extinct([Attachment("one", "dead", "eth0")], world)


def test_what_extinct_containers_left_is_found_by_their_tags(host: str, new_container: Callable[[], str]) -> None:
    assert host
    plugins = {"portmap": ports(mapping(8080, 80)), "firewall": {"ingressPolicy": "same-bridge"}}
    one = Owner(new_container(), "one", "c1", bridge={"ipMasq": True}, **plugins).add()
    before = rules()
    with World() as world:
        leftovers.clear_extinct([Attachment("one", "other", "eth0"), Attachment("two", "c1", "eth0")], world)
        assert rules() == before
        # The reference's oldest leases do not say the interface.
        leftovers.clear_extinct([Attachment("one", "c1", "")], world)
    assert "cni:" not in rules()
    assert one.result


def test_flows_are_shown_as_what_deletes_them() -> None:
    shown = [hostports.FlowsOf("host", address).removal().split("\n") for address in (V4, V6)]
    assert shown == [
        [
            f"conntrack -D -f {family} -p {protocol} {end} {address}"
            for protocol in ("udp", "sctp")
            for end in ("--reply-src", "--orig-src")
        ]
        for family, address in (("ipv4", V4), ("ipv6", V6))
    ]
