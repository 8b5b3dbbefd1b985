"""`cnitool repair` after a flush of the ruleset: containers work again, and no interface was made anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnikit import networks
from cnikit.attachments import Attachment
from cnikit.cli.cnitool import container_id
from cnikit.runtime import Runtime
from tests.conftest import BUILT, PROJECT, ip, sh
from tests.packets import IN_VAIN, PATIENCE, reached, server, wire

MODULES = {
    "bridge": "cnikit.plugins.bridge",
    "portmap": "cnikit.plugins.portmap",
    "firewall": "cnikit.plugins.firewall",
    "host-local": "cnikit.ipam.host_local",
}
EXECUTABLE = """\
#!{python}
import sys
sys.path.insert(0, {project!r})
from {module} import PLUGIN
from cnikit.main import main
main(PLUGIN)
"""
# What chooses a backend, by the type of the plugin.
BACKENDS: dict[str, dict[str, dict[str, str]]] = {
    "nftables": {},
    "iptables": {
        "bridge": {"ipMasqBackend": "iptables"},
        "portmap": {"backend": "iptables"},
        "firewall": {"backend": "iptables"},
    },
}


def network(folder: Path, backend: str = "nftables", **keys: Any) -> dict[str, Any]:
    ranges = [[{"subnet": "10.11.0.0/24"}], [{"subnet": "fd00:11::/64"}]]
    ipam = {"type": "host-local", "dataDir": str(folder / "networks"), "ranges": ranges}
    bridge = {"bridge": "br1", "isDefaultGateway": True, "ipMasq": True, "macspoofchk": True, "ipam": ipam}
    plugins: list[dict[str, Any]] = [
        {"type": "bridge", **bridge, **keys},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall", "ingressPolicy": "same-bridge"},
    ]
    chosen = [{**plugin, **BACKENDS[backend].get(plugin["type"], {})} for plugin in plugins]
    return {"cniVersion": "1.1.0", "name": "net1", "plugins": chosen}


def from_source(folder: Path) -> Path:
    """Make executables of the plugins as they are in the tree, in a folder that looks like a build."""
    made = folder / "cni"
    (made / ".cnikit-0").mkdir(parents=True)
    for name, module in MODULES.items():
        (made / name).write_text(EXECUTABLE.format(python=sys.executable, project=str(PROJECT), module=module))
        (made / name).chmod(0o755)
    sizes = [f"{name} {(made / name).stat().st_size}\n" for name in MODULES]
    (made / ".cnikit-0" / "executables").write_text("".join(sizes))
    return made


class Node:
    """A host that may drop what it forwards, two containers' namespaces, and another host on the wire."""

    def __init__(self, host: str, new_container: Callable[[], str], folder: Path) -> None:
        self.host = host
        self.web, self.db, self.outside = new_container(), new_container(), new_container()
        self.command = [sys.executable, "-m", "cnikit.cli.cnitool"]
        self.plugins = from_source(folder)
        self.results = folder / "results"
        self._folder = folder
        (folder / "net.d").mkdir()
        self.configure(network(folder))
        wire(host, self.outside, ("192.0.2.1/24", "192.0.2.2/24"), ("2001:db8::1/64", "2001:db8::2/64"))

    def configure(self, conf: dict[str, Any]) -> None:
        """Write the network's configuration."""
        (self._folder / "net.d" / "net1.conflist").write_text(json.dumps(conf))

    def tool(self, verb: str, *netns: str, port: int = 0) -> tuple[int, list[str], str]:
        """Run cnitool; return its exit status, the lines it prints, and stderr."""
        mapping = {"hostPort": port, "containerPort": 80, "protocol": "tcp"}
        variables = {"CNI_PATH": str(self.plugins), "NETCONFPATH": str(self._folder / "net.d")}
        if port:
            variables["CAP_ARGS"] = json.dumps({"portMappings": [mapping]})
        done = subprocess.run(
            [*self.command, verb, f"--cache={self._folder}", "net1", *netns],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    def add(self, netns: str, port: int) -> None:
        """Add a container that publishes its port 80."""
        status, _, stderr = self.tool("add", netns, port=port)
        assert (status, stderr) == (0, "")

    def check(self, *containers: str) -> list[int]:
        """Return CHECK's exit status for each."""
        return [self.tool("check", netns)[0] for netns in containers]

    def flush(self, policy: str = "ACCEPT") -> None:
        """Do as an administrator who loads his own ruleset; with policy DROP as Docker and ufw have it."""
        sh(f"nft flush ruleset && iptables -P FORWARD {policy} && ip6tables -P FORWARD {policy}")

    def is_published(self, netns: str, port: int, patience: float = PATIENCE) -> bool:
        """Tell whether the other host reaches a container by a port of this one."""
        found = []
        for any_address, address in (("0.0.0.0", "192.0.2.1"), ("::", "2001:db8::1")):
            with server(netns, any_address, 80) as listening:
                found.append(reached(listening, self.outside, address, port, patience))
        assert found in (["192.0.2.2", "2001:db8::2"], ["", ""])
        return bool(found[0])

    def is_masqueraded(self, netns: str, patience: float = PATIENCE) -> bool:
        """Tell whether a container reaches the other host, which knows no way to it but by this host's address."""
        with server(self.outside, "0.0.0.0", 9000) as listening:
            return reached(listening, netns, "192.0.2.2", 9000, patience) == "192.0.2.1"

    def interfaces(self) -> list[list[tuple[int, str, str]]]:
        """Return index, name and MAC address of all links, on the host and in the containers."""
        namespaces = ("", f"-n {Path(self.web).name}", f"-n {Path(self.db).name}")
        return [
            [(link["ifindex"], link["ifname"], link["address"]) for link in ip(f"{namespace} link")]
            for namespace in namespaces
        ]


def put_back(lines: list[str]) -> list[str]:
    """Return whose what was put back: "CONTAINERID/IFNAME: PLUGIN", all lines being about that."""
    assert all(": put back: " in line for line in lines), lines
    return [line.partition(": put back: ")[0] for line in lines]


def shares(*containers: str) -> list[str]:
    """Return the same for all plugins of containers' namespaces, as cnitool goes through them."""
    ids = sorted(map(container_id, containers))
    return [f"{container}/eth0: {kind}" for container in ids for kind in ("bridge", "portmap", "firewall")]


@pytest.fixture
def node(host: str, new_container: Callable[[], str], tmp_path: Path) -> Node:
    return Node(host, new_container, tmp_path)


@pytest.fixture
def attached(node: Node) -> Node:
    node.add(node.web, 8080)
    node.add(node.db, 8081)
    return node


# The reference's chains, which the backend iptables makes, let no new connection to a published port through.
@pytest.mark.parametrize(("backend", "policy"), [("nftables", "DROP"), ("iptables", "ACCEPT")])
@pytest.mark.parametrize("build", ["source", "built"])
def test_all_is_back_after_a_flush(node: Node, tmp_path: Path, build: str, backend: str, policy: str) -> None:
    if build == "built":
        if not BUILT.exists():
            pytest.skip("nothing is built: run ./build.sh")
        node.command, node.plugins = [str(BUILT / "cnitool")], BUILT
    node.configure(network(tmp_path, backend))
    node.flush(policy)
    node.add(node.web, 8080)
    node.add(node.db, 8081)
    before = node.interfaces()
    assert node.is_published(node.web, 8080)
    assert node.is_masqueraded(node.db)
    node.flush(policy)
    assert node.check(node.web, node.db) == [1, 1]
    assert not node.is_published(node.web, 8080, IN_VAIN)
    assert not node.is_masqueraded(node.db, IN_VAIN)
    status, lines, stderr = node.tool("repair")
    assert (status, put_back(lines), stderr) == (0, shares(node.web, node.db), "")
    assert node.check(node.web, node.db) == [0, 0]
    assert node.is_published(node.web, 8080)
    assert node.is_published(node.db, 8081)
    assert node.is_masqueraded(node.db)
    assert node.interfaces() == before
    assert node.tool("repair") == (0, ["nothing was missing"], "")


def test_only_what_is_missing_is_put_back(attached: Node) -> None:
    sh("nft delete element inet cnikit_portmap ports4 '{ tcp . 8081 }'")
    sh(f"ip netns exec {Path(attached.host).name} sysctl -qw net.ipv4.ip_forward=0")
    status, lines, _ = attached.tool("repair")
    assert status == 0
    first = min(map(container_id, (attached.web, attached.db)))
    element = "nft add 'element inet cnikit_portmap ports4 { tcp . 8081 comment"
    assert any(f"{container_id(attached.db)}/eth0: portmap: put back: {element}" in line for line in lines)
    assert f"{first}/eth0: bridge: put back: sysctl -w net/ipv4/ip_forward=1" in lines
    assert len(lines) == 2
    assert attached.check(attached.web, attached.db) == [0, 0]


def test_no_plugin_of_a_list_is_executed(attached: Node) -> None:
    for kind in ("bridge", "portmap", "firewall"):
        (attached.plugins / kind).chmod(0o644)
    attached.flush()
    status, lines, stderr = attached.tool("repair")
    assert (status, put_back(lines), stderr) == (0, shares(attached.web, attached.db), "")


def test_one_container_alone(attached: Node) -> None:
    attached.flush()
    status, lines, _ = attached.tool("repair", attached.web)
    assert (status, put_back(lines)) == (0, shares(attached.web))
    assert attached.check(attached.web, attached.db) == [0, 1]


def test_a_namespace_that_is_gone_is_named_and_the_others_repaired(attached: Node) -> None:
    sh(f"ip netns del {Path(attached.web).name}")
    attached.flush()
    status, lines, stderr = attached.tool("repair")
    gone = f"{container_id(attached.web)}/eth0: left alone: {attached.web} is gone"
    assert (status, stderr, lines.count(gone)) == (0, "", 1)
    lines.remove(gone)
    assert put_back(lines) == shares(attached.db)
    assert attached.check(attached.db) == [0]
    assert attached.is_published(attached.db, 8081)


def test_another_containers_namespace_by_now_is_told_and_nothing_put_back_in_its_name(attached: Node) -> None:
    name = Path(attached.web).name
    sh(f"ip netns del {name} && ip netns add {name} && ip -n {name} link add eth0 type veth peer name eth1")
    attached.flush()
    status, lines, stderr = attached.tool("repair")
    assert (status, put_back(lines)) == (1, shares(attached.db))
    said = f"cnitool: repair net1: {container_id(attached.web)}/eth0: eth0 in {attached.web} has the MAC address"
    assert (stderr.startswith(said), stderr.count("\n")) == (True, 1)
    assert container_id(attached.web) not in sh("nft list ruleset")


def test_another_containers_interface_is_told_although_it_has_the_same_mac_address(attached: Node) -> None:
    """Who has an address after another has its MAC address too."""
    (file,) = attached.results.glob(f"*{container_id(attached.web)}*")
    cached = json.loads(file.read_text())
    end = cached["result"]["interfaces"][-2]
    was, end["name"] = end["name"], "veth00000000"
    file.write_text(json.dumps(cached))
    attached.flush()
    status, lines, stderr = attached.tool("repair")
    assert (status, put_back(lines)) == (1, shares(attached.db))
    said = f"the other end of eth0 in {attached.web} is {was}, not veth00000000"
    assert (
        stderr == f"cnitool: repair net1: {container_id(attached.web)}/eth0: {said} (it may be another container's)\n"
    )
    assert container_id(attached.web) not in sh("nft list ruleset")


def test_an_interface_is_known_whatever_else_the_result_lists(attached: Node) -> None:
    (file,) = attached.results.glob(f"*{container_id(attached.web)}*")
    cached = json.loads(file.read_text())
    interfaces = cached["result"]["interfaces"]
    interfaces[-1]["mac"] = interfaces[-1]["mac"].upper()
    strange = {"mac": "02:00:00:00:00:09"}
    interfaces += [{"name": "eth0", **strange}, {"name": "tap0", "sandbox": attached.web, **strange}]
    file.write_text(json.dumps(cached))
    attached.flush()
    status, lines, stderr = attached.tool("repair")
    assert (status, put_back(lines), stderr) == (0, shares(attached.web, attached.db), "")


def test_an_interface_that_is_gone_is_told_and_nothing_put_back_for_it(attached: Node) -> None:
    sh(f"ip -n {Path(attached.web).name} link del eth0")
    attached.flush()
    status, lines, stderr = attached.tool("repair")
    assert (status, put_back(lines)) == (1, shares(attached.db))
    said = f"cnitool: repair net1: {container_id(attached.web)}/eth0: eth0 is not in {attached.web}"
    assert (stderr.startswith(said), stderr.count("\n")) == (True, 1)
    assert container_id(attached.web) not in sh("nft list ruleset")


def test_what_cannot_be_put_back_is_told(attached: Node) -> None:
    sh(f"ip -n {Path(attached.web).name} addr del 10.11.0.2/24 dev eth0")
    attached.flush()
    status, lines, stderr = attached.tool("repair")
    assert (status, put_back(lines)) == (1, shares(attached.web, attached.db))
    assert stderr.startswith(f"cnitool: repair net1: {container_id(attached.web)}/eth0: bridge: ")
    assert ("10.11.0.2/24" in stderr, stderr.count("\n")) == (True, 1)


def test_a_port_that_another_container_has_by_now_stays_its(node: Node) -> None:
    node.add(node.web, 8080)
    node.flush()
    node.add(node.db, 8080)
    status, lines, stderr = node.tool("repair")
    web, db = (container_id(netns) for netns in (node.web, node.db))
    assert (status, put_back(lines)) == (1, [f"{web}/eth0: bridge", f"{web}/eth0: firewall"])
    assert stderr.startswith(f"cnitool: repair net1: {web}/eth0: portmap: runtimeConfig.portMappings: ")
    assert f"host port 8080/tcp is taken by container {db} " in stderr
    assert stderr.count("\n") == 1
    assert node.is_published(node.db, 8080)
    assert node.check(node.web, node.db) == [1, 0]
    assert node.is_masqueraded(node.web)


# What other runtimes have cached: their libcni may be older, and their containers' ids are not made of paths.

HEX = "0123456789abcdef" * 4


def cached(node: Node, netns: str) -> tuple[Path, dict[str, Any]]:
    """Return the file with a container's cached result, and what it holds."""
    (file,) = node.results.glob(f"*{container_id(netns)}*")
    return file, json.loads(file.read_text())


def as_libcni_1_1(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry as podman 4 and containerd 1.6 and 1.7 have it."""
    return {key: value for key, value in entry.items() if key != "netns"}


def as_libcni_0_7(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the result alone."""
    result: dict[str, Any] = entry["result"]
    return result


@pytest.fixture
def foreign(node: Node) -> Node:
    """Have another runtime attach two containers, with ids of its own; web is HEX."""
    node.add(node.db, 8081)
    runtime = Runtime([node.plugins], node.results.parent)
    mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    conf = networks.parse(json.dumps(network(node.results.parent)).encode())
    runtime.add(conf, Attachment(HEX, netns=node.web, capabilities={"portMappings": [mapping]}))
    return node


class TestOlderCaches:
    """Whatever libcni cached a result, it is enough to repair, check and delete by."""

    def rewrite(self, node: Node, how: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        file = node.results / f"net1-{HEX}-eth0"
        file.write_text(json.dumps(how(json.loads(file.read_text()))))

    def test_without_netns_all_is_put_back(self, foreign: Node) -> None:
        self.rewrite(foreign, as_libcni_1_1)
        foreign.flush()
        status, lines, stderr = foreign.tool("repair")
        mine = [f"{HEX}/eth0: {kind}" for kind in ("bridge", "portmap", "firewall")]
        assert (status, put_back(lines), stderr) == (0, [*mine, *shares(foreign.db)], "")
        assert foreign.is_published(foreign.web, 8080)
        assert foreign.tool("repair") == (0, ["nothing was missing"], "")

    def test_a_result_alone_has_no_ports_to_put_back(self, foreign: Node) -> None:
        """Nobody has noted which there were."""
        self.rewrite(foreign, as_libcni_0_7)
        foreign.flush()
        status, lines, stderr = foreign.tool("repair")
        mine = [f"{HEX}/eth0: {kind}" for kind in ("bridge", "firewall")]
        assert (status, put_back(lines), stderr) == (0, [*mine, *shares(foreign.db)], "")
        assert foreign.is_masqueraded(foreign.web)

    @pytest.mark.parametrize("how", [as_libcni_1_1, as_libcni_0_7])
    def test_by_its_namespace(self, foreign: Node, how: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.rewrite(foreign, how)
        assert foreign.tool("check", foreign.web) == (0, [], "")
        foreign.flush()
        assert foreign.tool("check", foreign.web)[0] == 1
        status, lines, _ = foreign.tool("repair", foreign.web)
        assert (status, {line.partition("/")[0] for line in lines}) == (0, {HEX})
        assert foreign.tool("check", foreign.web) == (0, [], "")
        assert foreign.tool("check", foreign.db)[0] == 1
        assert foreign.tool("del", foreign.web) == (0, [], "")
        assert HEX not in sh("nft list ruleset; ip link")
        assert [file.name for file in foreign.results.iterdir()] == [f"net1-{container_id(foreign.db)}-eth0"]

    def test_a_result_alone_of_cnitools_own(self, attached: Node) -> None:
        """By its name it may be of a network net1-cnitool, but who names the namespace means cnitool's own."""
        file, entry = cached(attached, attached.web)
        file.write_text(json.dumps(as_libcni_0_7(entry)))
        attached.flush()
        status, _, stderr = attached.tool("repair")
        assert (status, f"{file}: cannot be read, so its attachment is not repaired: whose it is" in stderr) == (
            1,
            True,
        )
        assert attached.tool("repair", attached.web)[0] == 0
        assert attached.check(attached.web) == [0]

    def test_a_namespace_that_nothing_tells_is_never_nothing(self, attached: Node) -> None:
        file, entry = cached(attached, attached.web)
        entry = as_libcni_1_1(entry)
        del entry["result"]["interfaces"][-1]["sandbox"]
        file.write_text(json.dumps(entry))
        status, lines, stderr = attached.tool("repair")
        assert (status, lines) == (1, [])
        assert f"{container_id(attached.web)}/eth0: its network namespace is not known" in stderr
        status, lines, stderr = attached.tool("repair", attached.web)
        assert (status, lines) == (1, [])
        assert f"no attachment of {attached.web} to net1 is cached" in stderr

    def test_a_namespace_that_is_mounted_elsewhere_is_never_nothing(self, attached: Node) -> None:
        """As seen from outside of a containerd with a mount namespace of its own: the container lives."""
        with subprocess.Popen(["nsenter", f"--net={attached.web}", "sleep", "1000"]) as process:
            while not os.path.samefile(f"/proc/{process.pid}/ns/net", attached.web):
                time.sleep(0.01)
            sh(f"umount {attached.web}")
            attached.flush()
            status, lines, stderr = attached.tool("repair")
            process.kill()
        assert (status, put_back(lines)) == (1, shares(attached.db))
        said = f"{container_id(attached.web)}/eth0: {attached.web} is not there, but veth"
        assert (said in stderr, stderr.count("\n")) == (True, 1)

    def test_all_gone_is_not_nothing_missing(self, attached: Node) -> None:
        for netns in (attached.web, attached.db):
            sh(f"ip netns del {Path(netns).name}")
        for _ in range(200):
            if not ip("link show type veth master br1"):
                break
            time.sleep(0.02)
        status, lines, stderr = attached.tool("repair")
        assert (status, lines[-1], stderr) == (0, "nothing to repair: no container is there", "")
        assert [line.partition(": ")[2] for line in lines[:-1]].count(f"left alone: {attached.web} is gone") == 1

    @pytest.mark.parametrize(("name", "is_its"), [("eth1", True), ("", False)])
    def test_one_containers_unreadable_results_are_told(self, attached: Node, name: str, is_its: bool) -> None:
        broken = attached.results / (f"net1-{container_id(attached.web)}-{name}" if name else "net1-zzz-eth0")
        broken.touch()
        status, lines, stderr = attached.tool("repair", attached.web)
        if is_its:
            assert (status, lines, str(broken) in stderr) == (1, [], True)
        else:
            assert (status, lines, stderr) == (0, ["nothing was missing"], "")

    def test_another_suites_plugin_that_cannot_be_asked_is_told(self, attached: Node, tmp_path: Path) -> None:
        conf = network(tmp_path)
        attached.configure({**conf, "plugins": [*conf["plugins"], {"type": "other"}], "disableCheck": True})
        (attached.plugins / "other").write_text("#!/bin/sh\n")
        (attached.plugins / "other").chmod(0o755)
        status, lines, stderr = attached.tool("repair", attached.web)
        assert (status, "nothing was missing" in lines) == (1, False)
        assert "other was not looked at (it is another suite's, and the network disables CHECK)" in stderr
