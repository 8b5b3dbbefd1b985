"""A kernel that refuses: without CAP_NET_ADMIN, or nfnetlink altogether (none in the kernel, or a seccomp filter).

What is refused is told at once, by name. What cannot be there is nothing to be taken away, so DEL and GC succeed.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cnikit.effects.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, Socket
from cnikit.errors import CniError
from cnikit.netlink import nftables, rtnetlink
from cnikit.netlink.codec import Message
from tests.conftest import BUILT, PROJECT, ip, sh

WITHOUT_ADMIN = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
NO_SOCKET = (errno.EPROTONOSUPPORT, errno.EPERM, errno.EAFNOSUPPORT, errno.EACCES, errno.ENOSYS)


def without_nfnetlink(error: int = errno.EPROTONOSUPPORT) -> tuple[str, ...]:
    return ("env", f"PYTHONPATH={PROJECT}", sys.executable, "-m", "tests.seccomp", str(NETLINK_NETFILTER), str(error))


class Node:
    """A host with a container on a bridge, and the built executables."""

    def __init__(self, container: str, leases: Path) -> None:
        self.container = container
        ipam = {"type": "host-local", "dataDir": str(leases), "ranges": [[{"subnet": "10.9.0.0/24"}]]}
        self.bridge = {"type": "bridge", "bridge": "br0", "isGateway": True, "ipam": ipam}
        self.previous: dict[str, Any] = {}

    def call(self, verb: str, config: dict[str, Any], around: Sequence[str] = ()) -> tuple[int, str]:
        """Return code and msg of the error, 0 and "" without one."""
        whole = {"cniVersion": "1.1.0", "name": "net", **config}
        whole |= {"prevResult": self.previous} if self.previous else {}
        whole |= {"cni.dev/valid-attachments": []} if verb == "GC" else {}
        given = {"CNI_COMMAND": verb, "CNI_PATH": str(BUILT), "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
        done = subprocess.run(
            [*around, str(BUILT / config["type"])],
            env={"PATH": os.environ["PATH"], "CNI_NETNS": self.container, **given},
            input=json.dumps(whole),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        document = json.loads(done.stdout) if done.stdout else {}
        if verb == "ADD" and done.returncode == 0:
            self.previous = document
        assert (done.returncode == 1) == ("code" in document), done.stdout
        return document.get("code", 0), document.get("msg", "")

    def is_clean(self) -> bool:
        """Tell whether only what is shared is there."""
        return [link["ifname"] for link in ip("link")] in (["lo"], ["lo", "br0"])


@pytest.fixture
def node(host: str, container: str, networks: Path) -> Node:
    assert host
    return Node(container, networks)


PORTS = {"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]}}
CHAINED: dict[str, dict[str, Any]] = {
    "portmap": {"type": "portmap", **PORTS},
    "portmap, iptables": {"type": "portmap", "backend": "iptables", **PORTS},
    "firewall": {"type": "firewall", "backend": "nftables"},
    "firewall, iptables": {"type": "firewall", "backend": "iptables"},
    "firewall of any backend": {"type": "firewall"},
}
BRIDGES: dict[str, dict[str, Any]] = {
    "a plain bridge": {},
    "masquerading": {"ipMasq": True},
    "masquerading by iptables": {"ipMasq": True, "ipMasqBackend": "iptables"},
    "macspoofchk": {"macspoofchk": True},
}

# Without CAP_NET_ADMIN.


@pytest.mark.parametrize("verb", ["DEL", "GC"])
@pytest.mark.parametrize("keys", CHAINED.values(), ids=CHAINED)
def test_who_may_not_is_told_so_at_once_by_chained_plugins(node: Node, verb: str, keys: dict[str, Any]) -> None:
    node.call("ADD", node.bridge)
    begun = time.monotonic()
    code, msg = node.call(verb, keys, WITHOUT_ADMIN)
    assert time.monotonic() - begun < 5
    assert (code in (100, 103), "Operation not permitted" in msg or "faults" in msg) == (True, True), msg


@pytest.mark.parametrize("verb", ["ADD", "DEL", "GC", "STATUS"])
@pytest.mark.parametrize("keys", BRIDGES.values(), ids=BRIDGES)
def test_who_may_not_is_told_so_at_once_by_bridge(node: Node, verb: str, keys: dict[str, Any]) -> None:
    if verb in ("DEL", "GC"):
        assert node.call("ADD", node.bridge | keys) == (0, "")
    begun = time.monotonic()
    code, msg = node.call(verb, node.bridge | keys, WITHOUT_ADMIN)
    assert time.monotonic() - begun < 5
    # To look at links needs nothing, and STATUS of a plain bridge is no more.
    allowed = verb == "STATUS" and not (keys.get("ipMasqBackend") is None and keys)
    assert (code in (0, 50, 100, 103), bool(msg)) == (True, not allowed), msg


QUESTIONS: dict[str, tuple[int, list[Message]]] = {
    "one of nfnetlink": (NETLINK_NETFILTER, [nftables.get_chain("ip", "nat", "X")]),
    "two of nfnetlink": (NETLINK_NETFILTER, [nftables.get_chain(family, "nat", "X") for family in ("ip", "ip6")]),
    "a hundred of nfnetlink": (NETLINK_NETFILTER, [nftables.get_chain("ip", "nat", str(n)) for n in range(100)]),
    "two of rtnetlink": (NETLINK_ROUTE, [rtnetlink.set_mtu("lo", 1400), rtnetlink.set_mtu("lo", 1300)]),
    "one of them a look": (NETLINK_ROUTE, [rtnetlink.get_link("lo"), rtnetlink.set_mtu("lo", 1300)]),
}


@pytest.mark.parametrize(("protocol", "messages"), QUESTIONS.values(), ids=QUESTIONS)
def test_every_request_has_an_answer(host: str, protocol: int, messages: list[Message]) -> None:
    """Without the capability nfnetlink gives one answer for all that travelled in one sendmsg."""
    assert host
    code = f"""
import sys
sys.path.insert(0, {str(PROJECT)!r})
from tests.test_refusals import QUESTIONS, Socket
protocol, messages = QUESTIONS[{next(key for key, value in QUESTIONS.items() if value == (protocol, messages))!r}]
print([answer.errno for answer in Socket(protocol).exchange(messages)])
"""
    done = subprocess.run([*WITHOUT_ADMIN, sys.executable, "-c", code], capture_output=True, check=True, timeout=20)
    looks = [message.type == rtnetlink.RTM_GETLINK for message in messages]
    assert json.loads(done.stdout) == [0 if look else errno.EPERM for look in looks]


def test_a_kernel_that_gives_no_answer_keeps_nobody(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host
    silent = Message(rtnetlink.RTM_GETLINK, 0, b"")
    monkeypatch.setattr("cnikit.effects.netlink.frame", lambda *_: bytes(16))  # no request, so it has no answer
    socket = Socket()
    asking: tuple[Callable[[], object], ...] = (
        lambda: socket.exchange([silent]),
        lambda: socket.dump(silent),
        lambda: socket.batch(silent, [silent], silent),
    )
    for ask in asking:
        with pytest.raises(CniError, match="netlink: the kernel gave no answer"):
            ask()
    socket.close()


# Without nfnetlink.


@pytest.mark.parametrize("keys", [*BRIDGES.values(), *CHAINED.values()], ids=[*BRIDGES, *CHAINED])
@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_without_nfnetlink_there_is_nothing_to_take_away(node: Node, verb: str, keys: dict[str, Any]) -> None:
    if "type" not in keys:
        assert node.call("ADD", node.bridge, without_nfnetlink()) == (0, "")
    assert node.call(verb, node.bridge | keys, without_nfnetlink()) == (0, "")
    assert node.is_clean()


@pytest.mark.parametrize("error", NO_SOCKET, ids=[errno.errorcode[error] for error in NO_SOCKET])
def test_however_nfnetlink_is_refused(node: Node, error: int) -> None:
    assert node.call("ADD", node.bridge, without_nfnetlink(error)) == (0, "")
    assert node.call("DEL", node.bridge | {"ipMasq": True}, without_nfnetlink(error)) == (0, "")


def test_what_fails_for_a_moment_only_is_not_absent(node: Node) -> None:
    assert node.call("ADD", node.bridge) == (0, "")
    code, msg = node.call("DEL", node.bridge | {"ipMasq": True}, without_nfnetlink(errno.EMFILE))
    assert (code in (100, 103), "faults" in msg or msg == "nftables: Too many open files") == (True, True), msg
    assert node.call("DEL", node.bridge | {"ipMasq": True}) == (0, "")


NEEDED = {
    "bridge with ipMasq": {"ipMasq": True},
    "bridge with macspoofchk": {"macspoofchk": True},
    "portmap": CHAINED["portmap"],
    "firewall": CHAINED["firewall"],
}


@pytest.mark.parametrize("keys", NEEDED.values(), ids=NEEDED)
@pytest.mark.parametrize(("verb", "code"), [("ADD", 100), ("STATUS", 50)])
def test_where_nftables_is_needed_it_is_named(node: Node, verb: str, code: int, keys: dict[str, Any]) -> None:
    if "type" in keys:
        assert node.call("ADD", node.bridge, without_nfnetlink()) == (0, "")
    assert node.call(verb, node.bridge | keys, without_nfnetlink()) == (code, "nftables: Protocol not supported")


@pytest.mark.parametrize("keys", NEEDED.values(), ids=NEEDED)
def test_status_is_well_where_nftables_is(node: Node, keys: dict[str, Any]) -> None:
    for _ in range(2):
        assert node.call("STATUS", node.bridge | keys) == (0, "")
        assert sh("nft list ruleset") == ""


def test_without_nfnetlink_a_plain_bridge_is_well(node: Node) -> None:
    assert node.call("STATUS", node.bridge, without_nfnetlink()) == (0, "")
