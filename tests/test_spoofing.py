"""A container with CAP_NET_RAW among others on a bridge: whose packets arrive where, and what it can claim."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any

import pytest

from cnikit import macspoofchk, request
from cnikit.flow import Ends
from cnikit.objects import CONTAINER, Up
from cnikit.plugins import bridge
from cnikit.result import IP, Result
from tests.conftest import Call, sh
from tests.packets import IN_VAIN, UDP, frames, packed_mac, reached, server

if TYPE_CHECKING:
    from cnikit.plan import Step

ALL = 3  # linux/if_ether.h: ETH_P_ALL
MARKER = b"\x88\xb5" + b"and that was all"  # an EtherType for experiments
LETTER = b"for the victim"
FLOATING, FLOATING6 = "10.41.0.200", "fd00:41::c8"
SOLICITATION, ADVERTISEMENT, REDIRECT, ROUTERS, ROUTER = 135, 136, 137, 133, 134


class Attached:
    """A container on the bridge."""

    def __init__(self, netns: str, number: int, **keys: Any) -> None:
        self.netns, self.number = netns, number
        self.v4, self.v6 = f"10.41.0.{number}", f"fd00:41::{number}"
        self.conf = {
            "cniVersion": "1.1.0",
            "name": "net1",
            "type": "bridge",
            "bridge": "br1",
            "isGateway": True,
            "macspoofchk": True,
            "ipam": {"type": "static", "addresses": [{"address": f"{self.v4}/24"}, {"address": f"{self.v6}/64"}]},
            **keys,
        }
        self.result = self.call("ADD").result()
        *_, self.port, inside = self.result["interfaces"]
        self.mac = inside["mac"]
        self.local = str(IPv6Address(b"\xfe\x80" + bytes(6) + _eui64(packed_mac(self.mac))))

    def call(self, verb: str, **keys: Any) -> Call:
        environ = {"CNI_NETNS": self.netns, "CNI_CONTAINERID": f"c{self.number}"}
        return Call(bridge.PLUGIN, verb, {**self.conf, **keys}, **environ)

    def asked(self, verb: str, **keys: Any) -> request.Request:
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": f"c{self.number}", "CNI_NETNS": self.netns}
        return request.parse({**environ, "CNI_IFNAME": "eth0"}, json.dumps({**self.conf, **keys}).encode)

    def sh(self, command: str) -> str:
        return sh(f"nsenter --net={self.netns} {command}")


def _eui64(mac: bytes) -> bytes:
    return bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


class Scene:
    """An attacker, the one it would be, and a third who speaks with that one."""

    def __init__(self, new: Callable[[], str], **keys: Any) -> None:
        self.attacker, self.victim, self.third = (Attached(new(), number, **keys) for number in (2, 3, 4))
        self.third.sh("sysctl -qw net.ipv4.neigh.eth0.locktime=0")  # seconds in which what was learned is not changed

    def send(self, *sent: bytes) -> None:
        with frames(self.attacker.netns, "eth0") as port:
            for frame in sent:
                port.send(frame)

    def learns(self, address: str) -> None:
        """Have the third know the victim by an address, for long enough that it may learn something else."""
        self.third.sh(f"ip neigh replace {address} lladdr {self.victim.mac} dev eth0 nud reachable")
        time.sleep(0.05)  # what is changed in the same tick of the kernel's clock stays, locktime or not

    def believed(self, address: str) -> str:
        """Return the MAC address that the third knows an address by."""
        known = json.loads(self.third.sh("ip -json neigh show dev eth0"))
        return next((str(entry.get("lladdr", "")) for entry in known if entry["dst"] == address), "")

    def frame(self, packet: bytes, kind: int, tags: bytes = b"", to: str = "", sender: str = "") -> bytes:
        head = packed_mac(to or self.third.mac) + packed_mac(sender or self.attacker.mac)
        return head + tags + struct.pack("!H", kind) + packet

    def arrives(self, frame: bytes) -> bool:
        """Tell whether a frame of the attacker's arrives at the third."""
        payload, last = frame[-24:], self.frame(MARKER[2:], 0x88B5)
        with frames(self.third.netns, "eth0", ALL) as port:
            self.send(frame, last)
            found = False
            while not (got := port.recv(2048)).endswith(MARKER):
                found |= got.endswith(payload)
        return found


@pytest.fixture
def scene(host: str, new_container: Callable[[], str]) -> Scene:
    assert host
    return Scene(new_container)


@pytest.fixture
def unguarded(host: str, new_container: Callable[[], str]) -> Scene:
    assert host
    return Scene(new_container, macspoofchk=False)


def arp(sender: str, mac: str, target: str = "10.41.0.4", operation: int = 2, hardware: int = 1) -> bytes:
    head = struct.pack("!HHBBH", hardware, 0x0800, 6, 4, operation)
    return (
        head + packed_mac(mac) + socket.inet_aton(sender) + packed_mac("02:00:00:00:00:99") + socket.inet_aton(target)
    )


class Ndp:
    """A message of NDP, in IPv6."""

    def __init__(self, kind: int, source: str, target: str, mac: str, destination: str = "fd00:41::4") -> None:
        self.source, self.destination = (socket.inet_pton(socket.AF_INET6, a) for a in (source, destination))
        link = bytes((1 if kind in (SOLICITATION, ROUTERS, ROUTER) else 2, 1)) + packed_mac(mac)
        fields = {ADVERTISEMENT: b"\xa0\0\0\0", ROUTER: b"\x40\0\0\x1e" + bytes(8)}.get(kind, bytes(4))
        body = fields + (socket.inet_pton(socket.AF_INET6, target) if target else b"")
        body += self.destination if kind == REDIRECT else b""
        self.message = self._summed(bytes((kind, 0, 0, 0)) + body + (b"" if source == "::" else link))

    def _summed(self, message: bytes) -> bytes:
        pseudo = self.source + self.destination + struct.pack("!II", len(message), 58) + message
        total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
        total = (total & 0xFFFF) + (total >> 16)
        return message[:2] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + message[4:]

    def packet(self, *extensions: int) -> bytes:
        """Return the packet; extension headers are hop-by-hop (0), routing (43) and destination options (60)."""
        after = [*extensions[1:], 58]
        padding = {0: b"\1\4" + bytes(4), 60: b"\1\4" + bytes(4), 43: bytes(6)}
        chain = b"".join(
            bytes((following, 0)) + padding[kind] for kind, following in zip(extensions, after, strict=False)
        )
        length = len(chain) + len(self.message)
        head = struct.pack("!IHBB", 6 << 28, length, (*extensions, 58)[0], 255)
        return head + self.source + self.destination + chain + self.message


def tag(kind: int, vlan: int) -> bytes:
    return struct.pack("!HH", kind, vlan)


# Which port is taken for whose

RESERVED = [f"01:80:c2:00:00:{last:02x}" for last in (*range(4), 0x08, 0x0E, 0x0F)]


def packets_for_the_victim(scene: Scene, attack: bytes) -> tuple[int, int]:
    """Have the third send twenty packets to the victim, the attacker attack before each; return where they arrive."""
    scene.third.sh(f"ip neigh replace {scene.victim.v4} lladdr {scene.victim.mac} dev eth0")
    with (
        server(scene.victim.netns, scene.victim.v4, 7000, UDP) as there,
        server(scene.third.netns, scene.third.v4, 7001, UDP) as sender,
        frames(scene.attacker.netns, "eth0", 0x0800) as port,
    ):
        for _ in range(20):
            scene.send(attack)
            sender.sendto(LETTER, (scene.victim.v4, 7000))
        return _count(there), _count(port)


def _count(port: socket.socket) -> int:
    port.settimeout(IN_VAIN)
    count = 0
    try:
        while True:
            count += port.recv(2048).endswith(LETTER)
    except OSError:
        return count


@pytest.mark.parametrize("to", RESERVED)
@pytest.mark.parametrize("tags", [b"", tag(0x8100, 0), tag(0x8100, 1), tag(0x88A8, 0)], ids=["", "vlan0", "1", "ad0"])
def test_a_frame_that_no_rule_sees_takes_nobodys_packets(scene: Scene, to: str, tags: bytes) -> None:
    attack = scene.frame(bytes(46), 0x88CC, tags, to, scene.victim.mac)
    assert packets_for_the_victim(scene, attack) == (20, 0)


def test_without_macspoofchk_it_does(unguarded: Scene) -> None:
    attack = unguarded.frame(bytes(46), 0x88CC, b"", RESERVED[5], unguarded.victim.mac)
    arrived, stolen = packets_for_the_victim(unguarded, attack)
    assert (arrived + stolen, stolen > 10) == (20, True)


def test_nor_can_a_neighbour_that_is_not_guarded_take_a_guarded_ones(
    host: str, new_container: Callable[[], str]
) -> None:
    assert host
    scene = Scene(new_container)
    scene.attacker = Attached(new_container(), 5, macspoofchk=False)
    attack = scene.frame(bytes(46), 0x88B5, b"", scene.third.mac, scene.victim.mac)
    assert packets_for_the_victim(scene, attack) == (20, 0)


def test_both_are_there_before_the_first_frame_and_go_with_the_port(scene: Scene) -> None:
    name, mac = scene.attacker.port["name"], scene.attacker.mac
    plan = [step.what for step in _planned(scene.attacker)]
    shown = [what.command() for what in plan[: plan.index(Up(CONTAINER, "eth0"))]]
    for command in (
        f"ip link set {name} type bridge_slave learning off",
        f"ip link set {name} group {macspoofchk.group('br1')}",
        f"bridge fdb replace {mac} dev {name} master static sticky",
    ):
        assert command in shown
        sh(command)  # it is what was done
        assert scene.attacker.call("CHECK", prevResult=scene.attacker.result).succeeded()
    assert len(_fdb(mac)) == 1
    scene.attacker.call("DEL").succeeded()
    assert _fdb(mac) == []


def _planned(attached: Attached) -> tuple[Step, ...]:
    asked = attached.asked("ADD")
    conf = bridge.parse(asked)
    leases = bridge.settle(conf, Result(ips=(IP(f"{attached.v4}/24"), IP(f"{attached.v6}/64"))))
    return bridge.plan(conf, leases, Ends(asked.attachment, attached.netns, attached.port["name"]))


def _fdb(mac: str) -> list[str]:
    return [line for line in sh("bridge fdb show br br1").splitlines() if line.startswith(mac) and "static" in line]


def test_the_commands_shown_make_the_rules(scene: Scene) -> None:
    made = sh("nft list table bridge cnikit_macspoofchk")
    sh("nft flush ruleset")
    for attached in (scene.attacker, scene.victim, scene.third):
        shown = dict.fromkeys(step.what.command() for step in _planned(attached))
        for command in shown:
            # Of the gateways' elements nft says nothing when they are there.
            if command.startswith("nft add") or (command.startswith("nft -f") and attached is scene.attacker):
                sh(command)
    assert sorted(sh("nft list table bridge cnikit_macspoofchk").split()) == sorted(made.split())


LOST = {
    "learning": ("ip link set {} type bridge_slave learning on", "has type bridge_slave learning on, not "),
    "group": ("ip link set {} group 3", "has group 3, not group "),
    "all, as of an earlier build": ("ip link set {0} group default type bridge_slave learning on", ""),
    "fdb": ("bridge fdb del {mac} dev {} master", "has no static entry in the forwarding table"),
    "claims": (
        "nft flush set bridge cnikit_macspoofchk owned4",
        "there is no element bridge cnikit_macspoofchk owned4",
    ),
}


@pytest.mark.parametrize("change", LOST)
def test_check_finds_what_is_gone_and_repair_puts_it_back(scene: Scene, change: str) -> None:
    command, why = LOST[change]
    sh(command.format(scene.victim.port["name"], mac=scene.victim.mac))
    checked = {"prevResult": scene.victim.result}
    if why:
        code, msg = scene.victim.call("CHECK", **checked).error()
        assert (code, why in msg) == (101, True), msg
    else:
        assert scene.victim.call("CHECK", **checked).succeeded()
    assert bridge.PLUGIN.repair is not None
    assert bridge.PLUGIN.repair(scene.victim.asked("CHECK", **checked))
    assert scene.victim.call("CHECK", **checked).succeeded()


# Claims

# Receivers take off tags that bear no VLAN (those of priority only), however many.
TAGS = {
    "untagged": b"",
    "802.1Q": tag(0x8100, 0),
    "802.1ad": tag(0x88A8, 0),
    "two tags": tag(0x8100, 0) + tag(0x8100, 0),
    "two kinds of tags": tag(0x88A8, 0) + tag(0x8100, 0x6000),
    "three tags": tag(0x8100, 0) + tag(0x8100, 0) + tag(0x8100, 0),
}
# A bridge that filters VLANs may take off these.
VLANS = {
    "VLAN 1": tag(0x8100, 1),
    "802.1ad, VLAN 5": tag(0x88A8, 5),
    "a second tag without VLAN": tag(0x88A8, 0x2001) + tag(0x8100, 0),
}
ARP: dict[str, dict[str, Any]] = {
    "a reply": {},
    "a request": {"operation": 1},
    "gratuitous": {"target": "10.41.0.3"},
    "of IEEE 802's kind": {"hardware": 6},
}


@pytest.mark.parametrize("tags", [*TAGS.values(), *VLANS.values()], ids=[*TAGS, *VLANS])
@pytest.mark.parametrize("kind", ARP)
def test_arp_claims_no_neighbours_address(scene: Scene, kind: str, tags: bytes) -> None:
    assert not scene.arrives(scene.frame(arp(scene.victim.v4, scene.attacker.mac, **ARP[kind]), 0x0806, tags))
    assert not scene.arrives(scene.frame(arp("10.41.0.1", scene.attacker.mac, **ARP[kind]), 0x0806, tags)), "gateway"
    with server(scene.victim.netns, scene.victim.v4, 80) as web:
        assert reached(web, scene.third.netns, scene.victim.v4, 80)


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("kind", ARP)
def test_without_macspoofchk_neighbours_believe_it(unguarded: Scene, kind: str, tags: bytes) -> None:
    mac = unguarded.attacker.mac
    unguarded.learns(unguarded.victim.v4)
    assert unguarded.arrives(unguarded.frame(arp(unguarded.victim.v4, mac, **ARP[kind]), 0x0806, tags))
    assert unguarded.believed(unguarded.victim.v4) == mac


def claims(scene: Scene) -> dict[str, Ndp]:
    """Return what the attacker may say of itself having an address of the victim's."""
    mac, own, theirs = scene.attacker.mac, scene.attacker.v6, scene.victim.v6
    return {
        "an advertisement": Ndp(ADVERTISEMENT, own, theirs, mac),
        "from its own": Ndp(ADVERTISEMENT, theirs, theirs, mac),
        "a link-local one": Ndp(ADVERTISEMENT, scene.attacker.local, scene.victim.local, mac),
        "a solicitation": Ndp(SOLICITATION, theirs, scene.third.v6, mac),
        "a question whether it is free": Ndp(SOLICITATION, "::", theirs, mac),
        "a router's solicitation": Ndp(ROUTERS, theirs, "", mac),
        "a router's advertisement": Ndp(ROUTER, scene.victim.local, "", mac),
        "a redirect": Ndp(REDIRECT, scene.attacker.local, theirs, mac),
        "a neighbour's redirect": Ndp(REDIRECT, scene.victim.local, own, mac),
        "the gateway's": Ndp(ADVERTISEMENT, own, "fd00:41::1", mac),
    }


CHAINS = {"": (), "hop-by-hop": (0,), "destination": (60,), "all": (0, 60, 43, 60)}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_ndp_claims_no_neighbours_address(scene: Scene, chain: tuple[int, ...]) -> None:
    for what, message in claims(scene).items():
        for name, tags in {**TAGS, **VLANS}.items():
            assert not scene.arrives(scene.frame(message.packet(*chain), 0x86DD, tags)), (what, name)
    with server(scene.victim.netns, scene.victim.v6, 80) as web:
        assert reached(web, scene.third.netns, scene.victim.v6, 80)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
def test_without_macspoofchk_neighbours_believe_ndp(unguarded: Scene, tags: bytes, chain: tuple[int, ...]) -> None:
    messages = claims(unguarded)
    for what in ("an advertisement", "a solicitation"):
        unguarded.learns(unguarded.victim.v6)
        assert unguarded.arrives(unguarded.frame(messages[what].packet(*chain), 0x86DD, tags))
        assert unguarded.believed(unguarded.victim.v6) == unguarded.attacker.mac, what


def test_what_is_its_own_or_nobodys_may_be_said(scene: Scene) -> None:
    mac, own, own6 = scene.attacker.mac, scene.attacker.v4, scene.attacker.v6
    theirs = scene.victim.v6
    for kind, keys in ARP.items():
        for address in (own, FLOATING):
            assert scene.arrives(scene.frame(arp(address, mac, **keys), 0x0806)), (kind, address)
    for address in (own6, FLOATING6, scene.attacker.local):
        for message in (
            Ndp(ADVERTISEMENT, own6, address, mac),
            Ndp(SOLICITATION, "::", address, mac),
            Ndp(SOLICITATION, address, theirs, mac),  # it asks for the victim, as everyone may
            Ndp(ROUTER, address, "", mac),
            Ndp(REDIRECT, own6, address, mac),
        ):
            assert scene.arrives(scene.frame(message.packet(), 0x86DD)), address
    ping = Ndp(128, theirs, theirs, mac)
    assert scene.arrives(scene.frame(ping.packet(), 0x86DD)), "this is not NDP"
    assert scene.arrives(scene.frame(bytes(46), 0x0800, tag(0x88A8, 5) + tag(0x8100, 6))), "VLANs in VLANs"


def test_a_floating_address_moves_from_one_to_another(scene: Scene) -> None:
    for holder, other in ((scene.attacker, scene.victim), (scene.victim, scene.attacker)):
        other.sh(f"ip addr flush dev eth0 to {FLOATING}")
        other.sh(f"ip -6 addr flush dev eth0 to {FLOATING6}")
        holder.sh(f"ip addr add {FLOATING}/24 dev eth0")
        holder.sh(f"ip addr add {FLOATING6}/64 dev eth0 nodad")
        scene.third.sh("ip neigh flush dev eth0")
        for address in (FLOATING, FLOATING6):
            with server(holder.netns, address, 80) as web:
                assert reached(web, scene.third.netns, address, 80)


def test_dhcp_is_possible(scene: Scene) -> None:
    with server(scene.third.netns, "0.0.0.0", 67, UDP) as dhcp:
        dhcp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        udp = struct.pack("!HHHH", 68, 67, 8 + 8, 0) + b"DISCOVER"
        head = (
            struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, socket.IPPROTO_UDP, 0) + bytes(4) + b"\xff" * 4
        )
        total = sum(struct.unpack("!10H", head))
        head = head[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + head[12:]
        scene.send(scene.frame(head + udp, 0x0800, to="ff:ff:ff:ff:ff:ff"))
        assert dhcp.recv(16) == b"DISCOVER"
    assert scene.arrives(scene.frame(arp("0.0.0.0", scene.attacker.mac, scene.victim.v4, 1), 0x0806)), "is it free?"


def test_who_has_an_address_on_another_bridge_owns_it_there(scene: Scene, new_container: Callable[[], str]) -> None:
    """The same addresses on another bridge are others'."""
    other = Scene(new_container, bridge="br2", name="net2")
    for one in (scene, other):
        assert not one.arrives(one.frame(arp(one.victim.v4, one.attacker.mac), 0x0806))
    scene.victim.call("DEL").succeeded()
    assert scene.arrives(scene.frame(arp(scene.victim.v4, scene.attacker.mac), 0x0806)), "nobody has it any more"
    assert not other.arrives(other.frame(arp(other.victim.v4, other.attacker.mac), 0x0806))


def test_del_and_gc_leave_the_bridges_address_only(scene: Scene) -> None:
    for attached in (scene.attacker, scene.victim):
        attached.call("DEL").succeeded()
    assert sh("nft list table bridge cnikit_macspoofchk").count("cni:") == 8
    scene.third.call("GC", **{"cni.dev/valid-attachments": []}).succeeded()
    listed = sh("nft list table bridge cnikit_macspoofchk")
    assert ("cni:" in listed, listed.count("gateway")) == (False, 2)


def test_layer_2_and_hairpin(host: str, new_container: Callable[[], str]) -> None:
    assert host
    scene = Scene(new_container, isGateway=False, ipam={}, hairpinMode=True)
    assert scene.arrives(scene.frame(arp(FLOATING, scene.attacker.mac), 0x0806)), "no address is anyone's"
    attack = Ndp(ADVERTISEMENT, scene.attacker.local, scene.victim.local, scene.attacker.mac)
    assert not scene.arrives(scene.frame(attack.packet(), 0x86DD)), "but those that the kernel makes"
    scene.third.sh(f"ping -c 1 -w 10 -q {scene.victim.local}%eth0")
    for number, attached in ((3, scene.victim), (4, scene.third)):
        attached.sh(f"ip addr add 10.41.0.{number}/24 dev eth0")
    with server(scene.victim.netns, scene.victim.v4, 80) as web:
        assert reached(web, scene.third.netns, scene.victim.v4, 80)
