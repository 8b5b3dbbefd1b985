"""The plan engine, on the kernel in memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cnikit.errors import CniError
from cnikit.objects import (
    CONTAINER,
    HOST,
    Address,
    Alias,
    Bridge,
    Carrier,
    Change,
    Device,
    Gateway,
    KeptMac,
    Make,
    Object,
    Port,
    Refusal,
    Remove,
    Route,
    Sysctl,
    Up,
    Veth,
)
from cnikit.plan import Add, Del, Ensure, Set, Step, apply, clear, preflight, remove, render, verify
from tests.fake_kernel import FakeWorld

VETH = Veth(HOST, "veth1", "eth0", "/run/netns/a", "cni0")
FORWARD = Sysctl(HOST, "net/ipv4/ip_forward", "1")
NOTIFY = Sysctl(CONTAINER, "net/ipv4/conf/eth0/arp_notify", "1", optional=True)
PLAN: tuple[Step, ...] = (
    Ensure(Bridge(HOST, "cni0")),
    Ensure(KeptMac(HOST, "cni0")),
    Ensure(Up(HOST, "cni0")),
    Ensure(Gateway(HOST, "cni0", "10.1.0.1/24")),
    Ensure(FORWARD),
    Add(VETH),
    Set(Alias(HOST, "veth1", "cni:n/c/eth0")),
    Set(Port(HOST, "veth1", hairpin=True, isolated=False)),
    Set(Up(HOST, "veth1")),
    Set(NOTIFY),
    Set(Address(CONTAINER, "eth0", "10.1.0.2/24")),
    Set(Up(CONTAINER, "eth0")),
    Set(Route(CONTAINER, "eth0", "0.0.0.0/0", "10.1.0.1")),
    Set(Carrier(HOST, "veth1")),
)
UNSHARED = [step for step in PLAN if not isinstance(step, Ensure) and step.what != NOTIFY]


def test_a_plan_that_was_applied_is_verified() -> None:
    world = FakeWorld()
    missing = {step.what.fault(world) for step in PLAN if step.what.is_checked(world) and step.what != NOTIFY}
    faults = verify(PLAN, world)
    assert (set(faults), len(faults)) == (missing, 10), (
        "all but the optional sysctl are missing at first, each told once"
    )
    apply(PLAN, world)
    assert verify(PLAN, world) == []


def test_what_is_shared_is_made_once() -> None:
    world = FakeWorld()
    apply(PLAN[:5], world)
    world.log.clear()
    apply(PLAN[:5], world)
    assert world.log == []


@pytest.mark.parametrize("times", [2, 3])
def test_what_is_shared_is_made_again_when_it_is_taken_away(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """A flush of the ruleset does that to tables, at any time."""
    world = FakeWorld()
    taken: list[object] = []
    change = world[HOST].change

    def change_in_vain(changes: Sequence[Change]) -> list[Refusal | None]:
        outcomes = change(changes)
        if len(taken) < times:
            taken.append(world[HOST].present.pop("cni0"))
        return outcomes

    monkeypatch.setattr(world[HOST], "change", change_in_vain)
    if times < 3:
        apply(PLAN[:1], world)
        assert verify(PLAN[:1], world) == []
    else:
        with pytest.raises(CniError, match="was done, and yet bridge cni0 is gone"):
            apply(PLAN[:1], world)
    assert len(taken) == times


@pytest.mark.parametrize("step", UNSHARED, ids=lambda step: type(step.what).__name__)
def test_whatever_fails_what_was_added_is_undone(step: Step) -> None:
    world = FakeWorld()
    apply(PLAN[:5], world)
    before = world.state()
    world.fail = {Make(step.what): 1}
    with pytest.raises(CniError, match="Operation not permitted") as raised:
        apply(PLAN, world)
    assert raised.value.code == 100
    assert raised.value.msg.startswith(step.what.command())
    assert world.state() == before


@pytest.mark.parametrize("step", PLAN[:5], ids=lambda step: type(step.what).__name__)
def test_a_shared_object_that_cannot_be_made_fails_the_plan_before_anything_is_added(step: Step) -> None:
    world = FakeWorld()
    world.fail = dict.fromkeys(step.what.changes(world), 1)
    with pytest.raises(CniError, match="Operation not permitted"):
        apply(PLAN, world)
    assert not [change for change in world.log if change.what == VETH]


def test_what_cannot_be_undone_is_told() -> None:
    world = FakeWorld()
    world.fail = {Make(UNSHARED[-1].what): 110, Remove(VETH): 16}
    with pytest.raises(CniError, match="Connection timed out") as raised:
        apply(PLAN, world)
    assert raised.value.details == "not undone: ip link del veth1: Device or resource busy"


@pytest.mark.parametrize("reached", [0, 1, 3, 6])
def test_what_may_have_been_added_before_the_kernel_was_lost_is_undone(reached: int) -> None:
    class Lost(FakeWorld):
        """Where a change is done as far as it goes, and then nobody answers any more."""

        left = reached

        def failing(self, change: object) -> int:
            if isinstance(change, Make) and change.what in [step.what for step in PLAN[5:]]:
                self.left -= 1
                if self.left < 0:
                    raise CniError(100, "netlink: No buffer space available")
            return 0

    world = Lost()
    apply(PLAN[:5], world)
    before = world.state()
    with pytest.raises(CniError, match=r"^netlink: No buffer space available$"):
        apply(PLAN, world)
    assert world.state() == before


class Deaf(FakeWorld):
    """A kernel that requests to remove some things do not even reach."""

    def __init__(self, *what: Object) -> None:
        super().__init__()
        self.unheard = what

    def failing(self, change: Change) -> int:
        if isinstance(change, Remove) and change.what in self.unheard:
            raise CniError(100, "netlink: No buffer space available")
        return super().failing(change)


def test_a_roll_back_and_a_clean_up_go_on_where_the_kernel_cannot_be_reached() -> None:
    other = Veth(HOST, "veth2", "eth1", "/run/netns/a")
    world = Deaf(other)
    world.fail = {Make(NOTIFY.replace(optional=False)): 1}
    with pytest.raises(CniError, match="Operation not permitted") as raised:
        apply((Add(VETH.replace(bridge="")), Add(other), Set(NOTIFY.replace(optional=False))), world)
    assert raised.value.details == "not undone: ip link del veth2: netlink: No buffer space available"
    assert (world[HOST].link("veth1"), world[HOST].link("veth2") is None) == (None, False)
    world = Deaf(Device(HOST, "veth1"))
    apply(PLAN, world)
    faults = remove((Del(Device(HOST, "veth1")), Del(Up(CONTAINER, "lo"))), world)
    assert [fault.msg for fault in faults] == ["ip link del veth1: netlink: No buffer space available"]
    assert Up(CONTAINER, "lo").fault(world) == "lo is down"


def test_what_cannot_be_listed_keeps_nothing_else_from_being_taken_away() -> None:
    def unlisted() -> list[Step]:
        raise CniError(100, "netlink: No buffer space available")

    world = FakeWorld()
    apply(PLAN, world)
    faults = clear((unlisted, lambda: [Del(Device(HOST, "veth1"))]), world)
    assert [fault.msg for fault in faults] == ["netlink: No buffer space available"]
    assert world[HOST].link("veth1") is None


class Mute(FakeWorld):
    """Where the answer to some changes is lost, when the first of them are done."""

    def failing(self, change: Change) -> int:
        if isinstance(change, Make) and isinstance(change.what, Alias):
            raise CniError(100, "netlink: No buffer space available")
        return super().failing(change)


def test_what_was_done_without_an_answer_is_undone() -> None:
    world = Mute()
    apply(PLAN[:5], world)
    before = world.state()
    with pytest.raises(CniError, match="No buffer space available"):
        apply(PLAN, world)
    assert Make(VETH) in world.log
    assert world.state() == before


def test_what_was_not_done_and_is_anothers_stays() -> None:
    world = Mute()
    apply(PLAN[:5], world)
    others = VETH.replace(peer="eth9")
    assert world[HOST].change((Make(others),)) == [None]
    before = world.state()
    with pytest.raises(CniError, match="No buffer space available"):
        apply(PLAN, world)
    assert world.state() == before


def test_an_optional_sysctl_may_fail() -> None:
    world = FakeWorld()
    world.fail = {Make(NOTIFY): 30}
    apply(PLAN, world)
    assert verify(PLAN, world) == []


def test_somebody_else_may_make_what_is_shared_meanwhile() -> None:
    class Race(FakeWorld):
        """Where the bridge comes to be between our look and our request."""

        def failing(self, change: object) -> int:
            if change == Make(Bridge(HOST, "cni0")) and self[HOST].link("cni0") is None:
                self[HOST].change((Make(Bridge(HOST, "cni0", 1400)),))
            return 0

    world = Race()
    apply(PLAN, world)
    bridge = world[HOST].link("cni0")
    assert bridge is not None
    assert bridge.mtu == 1400


@pytest.mark.parametrize(
    ("there", "error"),
    [
        pytest.param(
            Make(Veth(HOST, "cni0", "x", "/run/netns/a")),
            "bridge: cni0 already exists and is no bridge but a veth",
            id="bridge-is-a-veth",
        ),
        pytest.param(
            Make(Veth(HOST, "v", "eth0", "/run/netns/a")),
            "CNI_IFNAME: eth0 already exists in /run/netns/a",
            id="ifname-taken",
        ),
        pytest.param(
            Make(Veth(HOST, "veth1", "eth9", "/run/netns/a")),
            "CNI_CONTAINERID: veth1, the host end of this container's eth0, already exists",
            id="host-end-taken",
        ),
    ],
)
def test_conflicts_are_found_before_anything_is_done(there: Make, error: str) -> None:
    world = FakeWorld()
    assert world[HOST].change((there,)) == [None]
    before = world.state()
    with pytest.raises(CniError) as raised:
        preflight(PLAN, world)
    assert raised.value.msg == error
    assert world.state() == before


GATEWAYS = [
    pytest.param([], "10.1.0.1/24", False, "", ["10.1.0.1/24"], id="none-there"),
    pytest.param(["10.1.0.1/24"], "10.1.0.1/24", False, "", ["10.1.0.1/24"], id="there-already"),
    pytest.param(["10.2.0.1/24"], "10.1.0.1/24", False, "10.2.0.1/24", ["10.2.0.1/24"], id="another-v4"),
    pytest.param(["10.2.0.1/24"], "10.1.0.1/24", True, "", ["10.1.0.1/24"], id="another-v4-forced"),
    pytest.param(["10.1.0.1/16"], "10.1.0.1/24", True, "", ["10.1.0.1/24"], id="other-prefix-forced"),
    pytest.param(["fd00:2::1/64"], "fd00:1::1/64", False, "", ["fd00:2::1/64", "fd00:1::1/64"], id="another-v6-beside"),
    pytest.param(["fd00:1::9/48"], "fd00:1::1/64", False, "fd00:1::9/48", ["fd00:1::9/48"], id="overlapping-v6"),
    pytest.param(["fd00:1::9/48"], "fd00:1::1/64", True, "", ["fd00:1::1/64"], id="overlapping-v6-forced"),
    pytest.param(["10.2.0.1/24"], "fd00:1::1/64", False, "", ["10.2.0.1/24", "fd00:1::1/64"], id="other-family"),
]


@pytest.mark.parametrize(("there", "wanted", "force", "conflict", "after"), GATEWAYS)
def test_gateway(there: list[str], wanted: str, force: bool, conflict: str, after: list[str]) -> None:
    world = FakeWorld()
    apply((Ensure(Bridge(HOST, "cni0")), *(Set(Address(HOST, "cni0", cidr)) for cidr in there)), world)
    plan = (Ensure(Gateway(HOST, "cni0", wanted, force)),)
    if conflict:
        with pytest.raises(CniError, match=f"already has an IP address different from {wanted}: {conflict}"):
            preflight(plan, world)
    else:
        preflight(plan, world)
        apply(plan, world)
    present = [Address(HOST, "cni0", cidr).fault(world) for cidr in after]
    assert present == [""] * len(after)
    assert len(world[HOST].addresses("cni0")) == len(after)


def test_deleting_goes_on_past_a_fault_and_tells_it() -> None:
    world = FakeWorld()
    apply(PLAN, world)
    world.fail = {Remove(Device(HOST, "lo")): 95}
    faults = remove((Del(Device(HOST, "lo")), Del(Device(HOST, "gone")), Del(Device(HOST, "veth1"))), world)
    assert [fault.msg for fault in faults] == ["ip link del lo: Operation not supported"]
    assert world[HOST].link("veth1") is None
    assert world[CONTAINER].link("eth0") is None


def test_render_gives_the_lines_an_engineer_would_type() -> None:
    assert render((*PLAN, Del(Device(HOST, "veth1"))), "/run/netns/a") == (
        "ip link add cni0 type bridge\n"
        "ip link set cni0 address $(cat /sys/class/net/cni0/address)\n"
        "ip link set cni0 up\n"
        "ip addr add 10.1.0.1/24 brd 10.1.0.255 dev cni0\n"
        "sysctl -w net/ipv4/ip_forward=1\n"
        "ip link add veth1 master cni0 type veth peer name eth0 netns /run/netns/a\n"
        "ip link set veth1 alias cni:n/c/eth0\n"
        "bridge link set dev veth1 hairpin on isolated off\n"
        "ip link set veth1 up\n"
        "nsenter --net=/run/netns/a sysctl -w net/ipv4/conf/eth0/arp_notify=1\n"
        "nsenter --net=/run/netns/a ip addr add 10.1.0.2/24 brd 10.1.0.255 dev eth0\n"
        "nsenter --net=/run/netns/a ip link set eth0 up\n"
        "nsenter --net=/run/netns/a ip route prepend default via 10.1.0.1 dev eth0\n"
        "# wait until veth1 has a carrier: ip -br link show veth1\n"
        "ip link del veth1\n"
    )
