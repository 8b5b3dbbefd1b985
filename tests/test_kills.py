"""A plugin killed at any moment: one DEL of the runtime's takes away what is left, and the next ADD succeeds.

The plugin is killed by strace, right after a system call that changes something, or at any other one. A runtime has no
result of an ADD that was killed, so its DEL has none; the DEL that follows a killed one has that of the ADD. Now and
then the container's namespace is gone by then, as it is when the container's process was what died.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.chain import KINDS, Attachment, settled, snapshot
from tests.conftest import full, sample, sh
from tests.surroundings import wait_for
from tests.tracing import Syscall, Trace, begun, changes

RUN = Path("/run")

# What plugins did, by verb and type.
Done = dict[tuple[str, str], list[Syscall]]


class Moment(NamedTuple):
    """The call at the beginning of which a plugin is to be killed, and all that it did until then."""

    verb: str
    kind: str
    calls: list[Syscall]  # the last one is not made any more

    def __str__(self) -> str:
        return f"{self.verb} {self.kind}, killed after {self.calls[-2].text[:150]}"


class Kills:
    """Kills plugins, and notes who did not die, and how many died where they were to."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.spared: list[str] = []
        self.there = 0

    def kill(self, attachment: Attachment, moment: Moment) -> None:
        result = attachment.result
        done = attachment.run(moment.verb, moment.kind, result, self.trace.killing(moment.calls[-1]))
        if done.returncode != -signal.SIGKILL:
            self.spared.append(f"{moment}: {done.returncode} {done.stdout}{done.stderr}")
        # Did it last do what it did last when it was traced?
        self.there += self.trace.calls()[-2].likeness() == moment.calls[-2].likeness()

    def assert_done(self, rounds: int) -> None:
        """All were killed, and where they were to be, but for a few: on a busy host now and then one asks once more."""
        assert len(self.spared) <= rounds // 50, self.spared
        assert self.there >= rounds * 0.9


def traced(attachment: Attachment, verb: str, kind: str, trace: Trace) -> list[Syscall]:
    """Have a plugin do its work; return what it did."""
    done = attachment.run(verb, kind, attachment.result, trace.around())
    if done.returncode == 0 and verb == "ADD":
        attachment.result = json.loads(done.stdout)
    return trace.calls()


def whole(attachment: Attachment, trace: Trace) -> Done:
    """Have the container added and deleted; return what each plugin did."""
    done: Done = {}
    for kind in KINDS:
        done["ADD", kind] = traced(attachment, "ADD", kind, trace)
    for kind in reversed(KINDS):
        done["DEL", kind] = traced(attachment, "DEL", kind, trace)
    attachment.result = {}
    return done


def shortest(*runs: Done) -> Done:
    """Return of each plugin the run in which it had to wait for nothing."""
    return {which: min((run[which] for run in runs), key=len) for which in runs[0]}


def after_changes(done: Done) -> list[Moment]:
    """Return the moments right after each change."""
    return [Moment(*which, calls[: i + 2]) for which, calls in done.items() for i in changes(calls)]


def anywhere(done: Done, chance: random.Random) -> Moment:
    """Return any moment from the reading of the request on."""
    which = chance.choice(list(done))
    calls = done[which]
    return Moment(*which, calls[: chance.randint(begun(calls) + 2, len(calls))])


def begin(attachment: Attachment, moment: Moment) -> None:
    """Do what comes before: the plugins of the list that were there first."""
    if moment.verb == "ADD":
        attachment.add(KINDS[: KINDS.index(moment.kind)])
    else:
        attachment.add()
        for kind in reversed(KINDS[KINDS.index(moment.kind) + 1 :]):
            assert attachment.run("DEL", kind, attachment.result).returncode == 0


def new_namespace(attachment: Attachment) -> None:
    name = Path(attachment.sandbox).name
    sh(f"ip netns add {name} && ip -n {name} link set lo up")


def forget_all(leases: Path) -> None:
    """Make the host as it was before its first container."""
    sh("ip link del br-chain && nft flush ruleset")
    for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", setting).write_text("0")
    for folder in (leases, RUN / "cni"):
        shutil.rmtree(folder)


def left(attachment: Attachment, leases: Path) -> set[str]:
    """Return what is there that is the container's: by its name, its links, or the first addresses of the network."""
    its_own = re.compile(rf"{attachment.container}|veth|eth0|10\.12\.0\.[2-9]\b|fd00:12::[2-9]\b")
    return {line for line in snapshot((leases, RUN), (attachment.sandbox,)) if its_own.search(line)}


@pytest.mark.parametrize("rounds", [sample(40), full(306)])
def test_killed_at_any_moment(
    host: str, new_container: Callable[[], str], networks: Path, tmp_path: Path, rounds: int
) -> None:
    assert host
    neighbour = Attachment("neighbour", new_container(), networks, 8001)
    attachment = Attachment("victim", new_container(), networks, 8002)
    neighbour.add()
    kills = Kills(Trace(tmp_path / "trace"))
    done = shortest(*(whole(attachment, kills.trace) for _ in range(3)))
    chance = random.Random(1)
    moments = after_changes(done)
    assert len(moments) >= 60
    moments = chance.sample(moments, min(len(moments), rounds // 2))
    moments += [anywhere(done, chance) for _ in range(rounds - len(moments))]

    wait_for(lambda: settled("", neighbour.sandbox))
    before = snapshot((networks, RUN), (neighbour.sandbox, attachment.sandbox))
    for i, moment in enumerate(moments):
        begin(attachment, moment)
        kills.kill(attachment, moment)
        is_gone = i % 4 == 3
        if is_gone:
            sh(f"ip netns del {Path(attachment.sandbox).name}")
        attachment.delete({} if moment.verb == "ADD" else attachment.result)
        if is_gone:
            new_namespace(attachment)
        after = snapshot((networks, RUN), (neighbour.sandbox, attachment.sandbox))
        assert (after - before, before - after) == (set(), set()), str(moment)
        attachment.add()
        attachment.delete()
    neighbour.check()
    kills.assert_done(rounds)


@pytest.mark.parametrize("rounds", [sample(5), full(60)])
def test_killed_when_it_is_the_first_on_a_host(
    host: str, container: str, networks: Path, tmp_path: Path, rounds: int
) -> None:
    assert host
    kills = Kills(Trace(tmp_path / "trace"))
    attachment = Attachment("first", container, networks, 8001)
    runs = []
    for _ in range(3):
        runs.append(whole(attachment, kills.trace))
        forget_all(networks)
    moments = [moment for moment in after_changes(shortest(*runs)) if moment.verb == "ADD"]
    assert len(moments) >= 60
    moments = random.Random(2).sample(moments, rounds)

    for moment in moments:
        begin(attachment, moment)
        kills.kill(attachment, moment)
        attachment.delete({})
        assert left(attachment, networks) == set(), str(moment)
        attachment.add()
        attachment.check()
        attachment.delete()
        assert left(attachment, networks) == set(), str(moment)
        forget_all(networks)
    kills.assert_done(rounds)


# What each finds out when nearly all is done.
IMPOSSIBLE: dict[str, tuple[str, Any]] = {
    "bridge": ("ipam.routes", [{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}]),
    "tuning": ("sysctl", {"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "much"}),
}
REFUSED = re.compile(r"error=-ENETUNREACH|= -1 EINVAL")


@pytest.mark.parametrize(
    ("kind", "rounds"), [sample("bridge", 4), sample("tuning", 2), full("bridge", 14), full("tuning", 8)], ids=str
)
def test_killed_while_it_takes_back_a_failed_add(
    host: str, new_container: Callable[[], str], networks: Path, tmp_path: Path, kind: str, rounds: int
) -> None:
    assert host
    neighbour = Attachment("neighbour", new_container(), networks, 8001)
    sandbox = new_container()
    attachment, failing = (Attachment("victim", sandbox, networks, 8002) for _ in range(2))
    failing.set(kind, *IMPOSSIBLE[kind])
    neighbour.add()
    kills = Kills(Trace(tmp_path / "trace"))
    failing.add(KINDS[: KINDS.index(kind)])
    calls = min((traced(failing, "ADD", kind, kills.trace) for _ in range(3)), key=len)
    assert '\\"code\\": 100' in calls[-2].text, calls[-2].text
    failing.delete()
    refused = next(i for i, call in enumerate(calls) if REFUSED.search(call.text))
    moments = [moment for moment in after_changes({("ADD", kind): calls}) if len(moment.calls) > refused]
    assert len(moments) >= rounds
    moments = random.Random(3).sample(moments, rounds)

    wait_for(lambda: settled("", neighbour.sandbox))
    before = snapshot((networks, RUN), (neighbour.sandbox, sandbox))
    for moment in moments:
        begin(failing, moment)
        kills.kill(failing, moment)
        attachment.delete({})
        after = snapshot((networks, RUN), (neighbour.sandbox, sandbox))
        assert (after - before, before - after) == (set(), set()), str(moment)
        attachment.add()
        attachment.check()
        attachment.delete()
    kills.assert_done(rounds)
