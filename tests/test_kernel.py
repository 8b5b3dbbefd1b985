"""What plans rely on of a kernel: one contract, held by the real one and by the fake in memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import AF_INET

import pytest

from cnikit.address import parse_cidr, parse_ip
from cnikit.effects import netns, sysctl
from cnikit.effects.kernel import World
from cnikit.errors import CniError
from cnikit.netlink.rtnetlink import IF_OPER_UP, IFA_F_NODAD, IFA_F_TENTATIVE, IFF_ALLMULTI, IFF_PROMISC, IFF_UP
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
from cnikit.settings import AllMulticast, Group, Isolated, Learning, Mac, Mtu, Promiscuous, QueueLength, Setting
from tests.conftest import sh
from tests.fake_kernel import FakeWorld

ENOENT, EEXIST, ENODEV, EINVAL = 2, 17, 19, 22
EITHER = World | FakeWorld


@pytest.fixture(params=["fake", "real"])
def world(request: pytest.FixtureRequest) -> Iterator[EITHER]:
    if request.param == "fake":
        yield FakeWorld()
    else:
        request.getfixturevalue("host")
        with World(netns.open_netns(request.getfixturevalue("container"))) as real:
            yield real


def make(world: EITHER, *objects: Object) -> list[int]:
    """Make objects of one namespace; return their errnos, 0 for done."""
    return _errnos(world, [Make(what) for what in objects])


def take(world: EITHER, *objects: Object) -> list[int]:
    return _errnos(world, [Remove(what) for what in objects])


def _errnos(world: EITHER, changes: list[Change]) -> list[int]:
    outcomes = world[changes[0].what.where].change(changes)
    return [refusal.errno if refusal else 0 for refusal in outcomes]


VETH = Veth(HOST, "veth1", "eth0", "/run/netns/a", "br1", 1400, "02:00:00:00:00:77")


def attach(world: EITHER) -> None:
    assert make(world, Bridge(HOST, "br1"), Up(HOST, "br1"), VETH, Up(HOST, "veth1")) == [0, 0, 0, 0]


def test_bridge(world: EITHER) -> None:
    assert world[HOST].link("br1") is None
    assert make(world, Bridge(HOST, "br1", 1400)) == [0]
    bridge = world[HOST].link("br1")
    assert bridge is not None
    assert (bridge.kind, bridge.mtu, bridge.flags & IFF_UP) == ("bridge", 1400, 0)
    assert int(bridge.mac[:2], 16) & 0b11 == 0b10, "locally administered and unicast"
    assert make(world, Bridge(HOST, "br1")) == [EEXIST]
    assert [link.name for link in world[HOST].links()] == ["lo", "br1"]
    assert world[HOST].link_at(bridge.index) == bridge


def test_flags(world: EITHER) -> None:
    attach(world)
    assert make(world, Promiscuous(HOST, "br1"), Promiscuous(HOST, "nothing")) == [0, ENODEV]
    bridge = world[HOST].link("br1")
    assert bridge is not None
    assert bridge.flags & (IFF_UP | IFF_PROMISC) == IFF_UP | IFF_PROMISC
    assert take(world, Up(HOST, "br1")) == [0]
    bridge = world[HOST].link("br1")
    assert bridge is not None
    assert bridge.flags & IFF_UP == 0


SETTINGS = [
    pytest.param(Mac(CONTAINER, "eth0", "02:00:00:00:00:88", "02:00:00:00:00:77"), id="mac"),
    pytest.param(Mtu(CONTAINER, "eth0", 1300, 1400), id="mtu"),
    pytest.param(QueueLength(CONTAINER, "eth0", 0, 500), id="txqlen"),
    pytest.param(Promiscuous(CONTAINER, "eth0", True, False), id="promisc-on"),
    pytest.param(Promiscuous(CONTAINER, "eth0", False, True), id="promisc-off"),
    pytest.param(AllMulticast(CONTAINER, "eth0", True, False), id="allmulti-on"),
    pytest.param(AllMulticast(CONTAINER, "eth0", False, True), id="allmulti-off"),
    pytest.param(Isolated(HOST, "veth1", True, False), id="isolated-on"),
    pytest.param(Isolated(HOST, "veth1", False, True), id="isolated-off"),
    pytest.param(Learning(HOST, "veth1", False, True), id="learning-off"),
    pytest.param(Group(HOST, "veth1", 77, 0), id="group"),
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_is_made_and_its_removal_puts_the_former_value_back(world: EITHER, setting: Setting) -> None:
    attach(world)
    former = setting.replace(value=setting.before)
    assert make(world, former) == [0]
    assert [setting.fault(world) == "", former.fault(world)] == [False, ""]
    before = world[setting.where].link(setting.name)
    assert make(world, setting) == [0]
    assert [setting.fault(world), former.fault(world) == ""] == ["", False]
    assert take(world, setting) == [0]
    assert world[setting.where].link(setting.name) == before
    nothing = setting.replace(name="nothing")
    assert nothing.fault(world) == "nothing is gone"
    assert make(world, nothing) == [ENODEV]
    assert take(world, nothing) == [0], "already gone is done"


def test_one_flag_leaves_the_others_alone(world: EITHER) -> None:
    attach(world)
    flags = IFF_UP | IFF_PROMISC | IFF_ALLMULTI
    both = Promiscuous(CONTAINER, "eth0"), AllMulticast(CONTAINER, "eth0", True)
    assert make(world, Up(CONTAINER, "eth0"), *both) == [0, 0, 0]
    for setting, left in (
        (Promiscuous(CONTAINER, "eth0", False), IFF_UP | IFF_ALLMULTI),
        (AllMulticast(CONTAINER, "eth0", False), IFF_UP),
    ):
        assert make(world, setting) == [0]
        link = world[CONTAINER].link("eth0")
        assert link is not None
        assert link.flags & flags == left


def test_veth_has_an_end_in_each_namespace(world: EITHER) -> None:
    attach(world)
    end, inside, bridge = world[HOST].link("veth1"), world[CONTAINER].link("eth0"), world[HOST].link("br1")
    assert end is not None
    assert inside is not None
    assert bridge is not None
    assert (end.kind, end.mtu, end.master, end.flags & IFF_UP) == ("veth", 1400, bridge.index, IFF_UP)
    assert (inside.kind, inside.mtu, inside.mac, inside.flags & IFF_UP) == ("veth", 1400, "02:00:00:00:00:77", 0)
    assert (end.peer, inside.peer) == (inside.index, end.index)
    assert end.peer_elsewhere
    assert inside.peer_elsewhere


@pytest.mark.parametrize("veth", [VETH.replace(name="veth2"), VETH.replace(peer="eth1")], ids=["peer", "name"])
def test_a_veth_whose_name_is_taken_is_refused_whole(world: EITHER, veth: Veth) -> None:
    attach(world)
    assert make(world, veth) == [EEXIST]
    assert world[HOST].link("veth2") is None
    assert world[CONTAINER].link("eth1") is None


def test_alias_and_port(world: EITHER) -> None:
    attach(world)
    assert make(world, Alias(HOST, "veth1", "cni:n/c/eth0"), Port(HOST, "veth1", True, True)) == [0, 0]
    end = world[HOST].link("veth1")
    assert end is not None
    assert (end.alias, end.hairpin, end.isolated) == ("cni:n/c/eth0", True, True)
    assert make(world, Port(HOST, "veth1", False, False)) == [0]
    end = world[HOST].link("veth1")
    assert end is not None
    assert (end.alias, end.hairpin, end.isolated) == ("cni:n/c/eth0", False, False)


def test_a_port_learns_and_is_in_no_group_until_told_otherwise(world: EITHER) -> None:
    attach(world)
    assert [Learning(HOST, "veth1", True).fault(world), Group(HOST, "veth1", 0).fault(world)] == ["", ""]


def test_an_entry_of_the_forwarding_table_goes_with_its_port(world: EITHER) -> None:
    attach(world)
    other = VETH.replace(name="veth2", peer="eth1")
    entry = FdbEntry(HOST, "veth1", "02:00:00:00:00:77")
    assert entry.fault(world) == "bridge port veth1: 02:00:00:00:00:77 has no static entry in the forwarding table"
    assert make(world, entry) == [0]
    assert entry.fault(world) == ""
    assert entry.replace(mac="02:00:00:00:00:78").fault(world)
    # It may be another port's by now.
    assert make(world, other, entry.replace(name="veth2")) == [0, 0]
    assert [entry.fault(world) == "", entry.replace(name="veth2").fault(world)] == [False, ""]
    assert make(world, entry, entry) == [0, 0]
    assert entry.fault(world) == ""
    assert take(world, VETH) == [0]
    assert entry.fault(world) == "veth1 is gone"
    assert make(world, VETH) == [0]
    assert entry.fault(world).startswith("bridge port veth1: 02:00:00:00:00:77 has no static entry")
    assert make(world, entry.replace(name="nothing")) == [ENODEV]


@pytest.mark.parametrize(
    ("cidr", "dad", "flags"),
    [
        pytest.param("10.1.0.2/24", False, 0, id="v4"),
        pytest.param("fd00::2/64", False, IFA_F_NODAD, id="v6"),
        pytest.param("fd00::2/64", True, IFA_F_TENTATIVE, id="v6-dad"),
    ],
)
def test_address(world: EITHER, cidr: str, dad: bool, flags: int) -> None:
    attach(world)
    address = Address(CONTAINER, "eth0", cidr, dad)
    assert make(world, address) == [0]
    bound = [a for a in world[CONTAINER].addresses("eth0") if (a.packed, a.length) == parse_cidr(cidr)]
    assert [a.flags & (IFA_F_NODAD | IFA_F_TENTATIVE) for a in bound] == [flags]
    assert make(world, address) == [EEXIST]
    assert make(world, Address(CONTAINER, "nothing", cidr)) == [ENODEV]
    assert take(world, address, address, Address(CONTAINER, "nothing", cidr)) == [0, 0, 0]
    assert world[CONTAINER].addresses("nothing") == []


def test_routes(world: EITHER) -> None:
    attach(world)
    assert make(world, Address(CONTAINER, "eth0", "10.1.0.2/24"), Up(CONTAINER, "eth0")) == [0, 0]
    default = Route(CONTAINER, "eth0", "0.0.0.0/0", "10.1.0.1")
    other = Route(CONTAINER, "eth0", "10.9.0.0/16", "10.1.0.7", 1300, 1200, 50, 1000)
    onlink = Route(CONTAINER, "eth0", "10.8.0.0/16", scope=253)
    # The same route again is no error: ipam's routes and isDefaultGateway may both give it.
    assert make(world, default, other, onlink, default) == [0, 0, 0, 0]
    inside = world[CONTAINER].link("eth0")
    assert inside is not None
    routes = [route for route in world[CONTAINER].routes(AF_INET) if route.oif == inside.index]
    assert {(r.dst, r.length, r.gw, r.table, r.priority, r.scope) for r in routes} >= {
        (b"", 0, parse_ip("10.1.0.1"), 254, 0, 0),
        (parse_ip("10.9.0.0"), 16, parse_ip("10.1.0.7"), 1000, 50, 0),
        (parse_ip("10.8.0.0"), 16, b"", 254, 0, 253),
    }
    assert [default.fault(world), other.fault(world), onlink.fault(world)] == ["", "", ""]
    assert make(world, Route(CONTAINER, "nothing", "0.0.0.0/0", "10.1.0.1")) == [ENODEV]


def test_a_batch_may_need_what_it_makes(world: EITHER) -> None:
    assert make(world, Bridge(HOST, "br1"), Address(HOST, "br1", "10.1.0.1/24"), Up(HOST, "br1")) == [0, 0, 0]
    assert Address(HOST, "br1", "10.1.0.1/24").fault(world) == ""


def test_carrier_comes_when_both_ends_are_up(world: EITHER) -> None:
    attach(world)
    carrier = Carrier(HOST, "veth1")
    assert carrier.fault(world) == "veth1 has no carrier"
    assert make(world, Up(CONTAINER, "eth0")) == [0]
    assert make(world, carrier) == [0]
    end = world[HOST].link("veth1")
    assert end is not None
    assert end.operstate == IF_OPER_UP


def test_settled_waits_for_duplicate_address_detection(world: EITHER) -> None:
    attach(world)
    settled = Settled(CONTAINER, "eth0")
    assert make(world, Address(CONTAINER, "eth0", "fd00::2/64", dad=True), Up(CONTAINER, "eth0")) == [0, 0]
    assert settled.fault(world) == "fd00::2/64 on eth0 is still tentative"
    assert make(world, settled) == [0]
    assert settled.fault(world) == ""


def test_sysctl(world: EITHER) -> None:
    attach(world)
    forward = Sysctl(HOST, "net/ipv4/ip_forward", "1")
    assert world[HOST].sysctl(forward.name) == "0"
    inside = Sysctl(CONTAINER, "net/ipv4/conf/eth0/arp_notify", "1")
    assert make(world, forward) == [0]
    assert make(world, inside) == [0]
    assert world[HOST].sysctl(forward.name) == "1"
    assert world[CONTAINER].sysctl(inside.name) == "1"
    for missing, why in (
        (Sysctl(CONTAINER, "net/ipv4/conf/nothing/arp_notify", "1"), ENODEV),  # by rtnetlink
        (Sysctl(CONTAINER, "net/ipv6/conf/nothing/accept_ra", "1"), ENOENT),
        (Sysctl(CONTAINER, "net/ipv4/conf/averyveryverylongname/arp_notify", "1"), ENOENT),
    ):
        assert make(world, missing) == [why]
        assert make(world, missing.replace(optional=True)) == [0]
        with pytest.raises(FileNotFoundError):
            world[CONTAINER].sysctl(missing.name)


@pytest.mark.parametrize(
    "name",
    [
        *("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"),
        *("net/ipv4/conf/eth0/arp_notify", "net/ipv4/conf/eth0/route_localnet", "net/ipv6/conf/eth0/accept_ra"),
        *("net/ipv6/conf/eth0/disable_ipv6", "net/ipv6/conf/eth0/accept_dad", "net/ipv6/conf/eth0/ndisc_notify"),
        *("net/ipv6/conf/eth0/keep_addr_on_down", "net/ipv6/conf/eth0/enhanced_dad"),
    ],
)
def test_rtnetlink_tells_what_proc_does(host: str, container: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """And what is written in one of the two ways is read in the other."""
    assert host
    read = f"ip netns exec {Path(container).name} cat /proc/sys/{name}"
    with World(netns.open_netns(container)) as world:
        attach(world)
        before = sh(read).strip()
        monkeypatch.setattr(sysctl, "read", lambda _: "nobody looks into /proc")
        assert world[CONTAINER].sysctl(name) == before
        for value in ("1", "0", "-1", "1"):
            assert make(world, Sysctl(CONTAINER, name, value)) == [0]
            assert world[CONTAINER].sysctl(name) == value
        assert make(world, Sysctl(CONTAINER, name, "5000000000")) == [EINVAL]
        monkeypatch.undo()
        assert sh(read).strip() == "1"


def test_the_sysctls_of_a_link_go_with_it(world: EITHER) -> None:
    attach(world)
    localnet = Sysctl(HOST, "net/ipv4/conf/veth1/route_localnet", "1")
    assert make(world, localnet) == [0]
    assert take(world, VETH) == [0]
    assert make(world, localnet) == [ENODEV]
    assert make(world, VETH) == [0]
    assert world[HOST].sysctl(localnet.name) == "0"


def test_a_sysctl_is_put_back(world: EITHER) -> None:
    attach(world)
    notify = Sysctl(CONTAINER, "net/ipv4/conf/eth0/arp_notify", "1", before="0")
    assert make(world, notify) == [0]
    assert take(world, notify) == [0]
    assert world[CONTAINER].sysctl(notify.name) == "0"
    missing = notify.replace(name="net/ipv4/conf/nothing/arp_notify")
    assert take(world, missing) == [0], "already gone is done"
    assert make(world, notify) == [0]
    assert take(world, notify.replace(before=None)) == [0]
    assert world[CONTAINER].sysctl(notify.name) == "1", "nothing is known to put back"


def test_a_namespace_has_one_identity(world: EITHER) -> None:
    assert world[CONTAINER].identity() == world[CONTAINER].identity()
    assert world[CONTAINER].identity() != world[HOST].identity()


def test_the_identity_of_a_namespace_is_not_used_again(host: str, new_container: Callable[[], str]) -> None:
    assert host
    seen = set()
    for _ in range(3):
        path = new_container()
        with World(netns.open_netns(path)) as world:
            seen.add(world[CONTAINER].identity())
        sh(f"ip netns del {Path(path).name}")
    assert len(seen) == 3


def test_a_namespace_whose_identity_cannot_be_read_is_not_without(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(name: str) -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name)

    assert host
    monkeypatch.setattr(sysctl, "read", read)
    with World() as world, pytest.raises(CniError, match="boot_id: Too many open files"):
        world[HOST].identity()


def test_a_namespace_that_cannot_be_looked_at_is_not_gone(container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(_: int, __: int) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(netns, "ioctl", ioctl)
    with pytest.raises(CniError, match="cannot be looked at: Cannot allocate memory"):
        netns.open_netns(container)


def test_a_sysctl_can_be_emptied(host: str) -> None:
    assert host
    ports = Sysctl(HOST, "net/ipv4/ip_local_reserved_ports", "8080,9148", before="")
    with World() as world:
        assert make(world, ports) == [0]
        assert world[HOST].sysctl(ports.name) == "8080,9148"
        assert take(world, ports) == [0]
        assert world[HOST].sysctl(ports.name) == ""


def test_a_sysctls_numbers_may_be_separated_by_blanks(host: str) -> None:
    assert host
    memory = Sysctl(HOST, "net/ipv4/tcp_rmem", "4096 100000 200000")
    with World() as world:
        assert make(world, memory) == [0]
        assert world[HOST].sysctl(memory.name) == "4096\t100000\t200000"
        assert memory.fault(world) == ""
        assert memory.replace(value="4096 100000 200001").fault(world).endswith(", not 4096 100000 200001")


@pytest.mark.parametrize(
    "what", [VETH, Device(HOST, "veth1"), Device(CONTAINER, "eth0")], ids=["veth", "host-end", "container-end"]
)
def test_deleting_either_end_deletes_both(world: EITHER, what: Object) -> None:
    attach(world)
    assert take(world, what) == [0]
    assert world[HOST].link("veth1") is None
    assert world[CONTAINER].link("eth0") is None
    assert take(world, what) == [0], "already gone is done"


def test_long_answers_are_read_whole(host: str, tmp_path: Path) -> None:
    assert host
    lines = [f"addr add 10.{n >> 8}.{n & 255}.1/32 dev lo" for n in range(1500)]
    (tmp_path / "batch").write_text("\n".join(lines))
    sh(f"ip -batch {tmp_path}/batch")
    with World() as world:
        addresses = {address.packed for address in world[HOST].addresses("lo")}
    assert len(addresses) == 1500 + len((parse_ip("127.0.0.1"), parse_ip("::1")))


def test_a_world_without_container_has_none(host: str) -> None:
    assert host
    with World() as world:
        assert not world.has_container()
        with pytest.raises(LookupError, match="there is no container namespace"):
            world[CONTAINER]
