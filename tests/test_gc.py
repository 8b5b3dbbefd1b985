"""`cnitool gc`: what is gone is freed, and what is attached or being attached stays, whoever's cache knows of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cnikit import networks, ownership
from cnikit.attachments import Attachment
from cnikit.cli.cnitool import container_id
from cnikit.effects import evidence, leases
from cnikit.effects.leases import Store
from cnikit.liveness import ALIVE, DEAD
from cnikit.networks import Network
from cnikit.plugins import bridge, firewall, portmap
from cnikit.request import Attachment as Whose
from cnikit.runtime import Runtime, Standing
from tests.conftest import Call, full, ip, sample, sh
from tests.test_repair import Node, network
from tests.test_self_healing import Machine

# An ADD that does not end before there is a file "go" beside the executable.
SLOW = """\
#!/bin/sh
test "$CNI_COMMAND" = ADD || exit 0
touch "$0.begun"
while ! test -e "$0.go"; do sleep 0.02; done
exec python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin)["prevResult"]))'
"""


@pytest.fixture(autouse=True)
def _all_processes_are_seen() -> None:
    if evidence.namespaces() is None:
        pytest.skip("not all processes of the machine are to be seen from here, so nothing can be told gone")


@pytest.fixture
def node(host: str, new_container: Callable[[], str], tmp_path: Path) -> Node:
    return Node(host, new_container, tmp_path)


@pytest.fixture
def attached(node: Node) -> Node:
    node.add(node.web, 8080)
    node.add(node.db, 8081)
    return node


@pytest.fixture
def machine(host: str, tmp_path: Path) -> Iterator[Machine]:
    """Pretend boots and uptime."""
    assert host
    (tmp_path / "machine").mkdir()
    pretended = Machine(tmp_path / "machine")
    yield pretended
    pretended.close()


def of_version(folder: Path, version: str) -> dict[str, Any]:
    return {**network(folder), "cniVersion": version}


def parsed(folder: Path, version: str = "1.1.0") -> Network:
    return networks.parse(json.dumps(of_version(folder, version)).encode())


def key(netns: str) -> str:
    return f"{container_id(netns)}/eth0"


def remove(netns: str) -> None:
    """Have a container die with its namespace, and no DEL."""
    sh(f"ip netns del {Path(netns).name}")
    # The kernel takes its interfaces away a little later.
    for _ in range(200):
        if not any(link.get("ifalias", "").endswith(key(netns)) for link in ip("link show type veth")):
            return
        time.sleep(0.02)
    raise AssertionError("its host end does not go")


def traces(node: Node, netns: str) -> list[str]:
    """Return what there is on a container's account: leases, cached results, links, elements of the ruleset."""
    container = container_id(netns)
    held = [f"{path.name}: {path.read_text()}" for path in (node.results.parent / "networks").rglob("*[.:]*[0-9a-f]")]
    cached = [path.name for path in node.results.parent.rglob("results/*")]
    links = [link.get("ifalias", "") for link in ip("link")]
    elements = [one.strip() for one in re.findall(r'[^{},\n]*comment "cni:[^"]*"', sh("nft list ruleset"))]
    rules = [one for one in sh("iptables-save; ip6tables-save").splitlines() if "comment" in one]
    return sorted(one for one in (*held, *cached, *links, *elements, *rules) if container in one)


def everything(node: Node) -> tuple[object, ...]:
    """Return the state of the host: files with their times, links, the ruleset."""
    files = [
        (str(path), path.lstat().st_mtime_ns, os.readlink(path) if path.is_symlink() else "")
        for folder in (node.results, node.results.parent / "networks")
        for path in sorted(folder.rglob("*"))
    ]
    links = [(link["ifname"], link["address"], link.get("ifalias")) for link in ip("link")]
    return files, links, sh("nft list ruleset")


@contextmanager
def slow_add(node: Node, netns: str, cache: Path) -> Iterator[subprocess.Popen[str]]:
    """Have another runtime's ADD be under way, its last plugin running."""
    slow = node.plugins / "slow"
    slow.write_text(SLOW)
    slow.chmod(0o755)
    environ = {"CNI_PATH": str(node.plugins), "NETCONFPATH": str(node.results.parent / "net.d")}
    command = [*node.command, "add", f"--cache={cache}", "net1", netns]
    with subprocess.Popen(command, env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True) as adding:
        try:
            while not slow.with_suffix(".begun").exists():
                assert adding.poll() is None
                time.sleep(0.02)
            yield adding
        finally:
            slow.with_suffix(".go").touch()


class TestBesideOtherRuntimes:
    """gc takes nothing from what another runtime has made or is making."""

    def test_an_add_that_is_under_way_stays_whole(self, node: Node, tmp_path: Path) -> None:
        conf = network(tmp_path)
        node.add(node.web, 8080)
        node.configure({**conf, "plugins": [*conf["plugins"], {"type": "slow"}]})
        with slow_add(node, node.db, tmp_path / "other") as adding:
            before = traces(node, node.db)
            assert len(before) > 5
            assert node.tool("gc") == (0, ["nothing to free"], "")
            assert traces(node, node.db) == before
            (node.plugins / "slow.go").touch()
            assert adding.wait() == 0
        assert node.tool("check", f"--cache={tmp_path / 'other'}", node.db)[0] == 0
        assert node.is_masqueraded(node.db)
        assert node.check(node.web) == [0]

    def test_the_first_one_of_all_may_be_another_runtimes(self, node: Node, tmp_path: Path) -> None:
        other = f"--cache={tmp_path / 'other'}"
        assert node.tool("add", other, node.db, port=8081)[0] == 0
        before = traces(node, node.db)
        assert node.tool("gc") == (0, ["nothing to free"], "")
        assert traces(node, node.db) == before
        assert node.tool("check", other, node.db)[0] == 0

    @pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
    def test_a_lease_alone_is_that_of_an_add_that_has_just_begun(
        self, attached: Node, tmp_path: Path, version: str
    ) -> None:
        attached.configure(of_version(tmp_path, version))
        folder = tmp_path / "networks" / "net1"
        with Store(str(folder)) as store:
            store.reserve("10.11.0.99", leases.owner("new", "eth0"), 0, leases.note(attached.outside))
        assert attached.tool("gc") == (0, ["nothing to free"], "")
        assert (folder / "10.11.0.99").exists()

    def test_a_lease_that_nothing_is_noted_of_is_kept_and_named(self, attached: Node, tmp_path: Path) -> None:
        lease = tmp_path / "networks" / "net1" / "10.11.0.99"
        lease.write_bytes(leases.owner("strange", "eth0"))
        status, lines, _ = attached.tool("gc")
        why = "it holds an address, and nothing tells whether its container is there"
        assert (status, lines) == (0, [f"kept strange/eth0: {why}", "nothing to free"])
        assert lease.exists()

    @pytest.mark.parametrize("count", [sample(4), full(40)])
    def test_many_are_attached_and_deleted_by_another_runtime_meanwhile(
        self, node: Node, tmp_path: Path, new_container: Callable[[], str], count: int
    ) -> None:
        other, net = Runtime([node.plugins], tmp_path / "other"), parsed(tmp_path)
        mine = Runtime([node.plugins], tmp_path)
        attachments = [Attachment(f"c{number}", netns=new_container()) for number in range(count)]
        collected = 0
        with ThreadPoolExecutor(4) as pool:
            for verb in (other.add, other.delete, other.add):
                running = [pool.submit(verb, net, attachment) for attachment in attachments]
                while not all(one.done() for one in running):
                    mine.gc(
                        net,
                        report=lambda one, freed: pytest.fail(f"{one.attachment.key}: {one.why}") if freed else None,
                    )
                    collected += 1
                for one in running:
                    one.result()
                for attachment in attachments if verb == other.add else ():
                    other.check(net, attachment)
        assert collected

    @pytest.mark.parametrize("living", [True, False], ids=["asked-to", "as-the-specification-has-it"])
    @pytest.mark.parametrize("backend", ["nftables", "iptables"])
    def test_plugins_keep_what_was_attached_after_the_list_was_made(
        self, node: Node, tmp_path: Path, backend: str, living: bool
    ) -> None:
        """Only if they are asked to: their GC obeys the list."""
        conf, attached = network(tmp_path, backend), node
        node.configure(conf)
        node.add(node.web, 8080)
        node.add(node.db, 8081)
        asked = {"cni.dev/valid-attachments": [], **({ownership.KEEPS_LIVING: True} if living else {})}
        others = traces(attached, attached.db)
        remove(attached.web)
        for plugin, config in zip((bridge.PLUGIN, portmap.PLUGIN, firewall.PLUGIN), conf["plugins"], strict=True):
            given = {**config, "cniVersion": "1.1.0", "name": "net1", **asked}
            assert Call(plugin, "GC", given, CNI_PATH=str(attached.plugins)).succeeded()
        cached = [f"net1-{container_id(one)}-eth0" for one in (attached.db, attached.web)]
        leased = [one for one in traces(attached, attached.web) if "comment" not in one and one != cached[1]]
        # Its address was leased in the last minutes, and its interface may be made next.
        assert (traces(attached, attached.db), len(leased)) == ((others, 2) if living else ([cached[0]], 0))
        assert not [one for one in traces(attached, attached.web) if "comment" in one]

    def test_a_tag_with_hashes_is_matched_by_the_lease(self, node: Node, tmp_path: Path) -> None:
        runtime, net = Runtime([node.plugins], tmp_path / "other"), parsed(tmp_path)
        long = Attachment("c" * 120, netns=node.web)
        runtime.add(net, long)
        assert "~" in ownership.tag(Whose("net1", *long.key))
        assert node.tool("gc") == (0, ["nothing to free"], "")
        runtime.check(net, long)
        (standing,) = Runtime([node.plugins], tmp_path).survey(net)
        assert (standing.attachment.key, standing.state) == (long.key, ALIVE)

    def test_what_the_reference_attached_is_alive_by_the_veth_of_its_result(
        self, machine: Machine, node: Node, tmp_path: Path
    ) -> None:
        attach_as_the_reference(node, tmp_path, "web", node.web)
        with hidden(node.web):
            assert standings(node, tmp_path) == {"web/eth0": (ALIVE, "veth0badcafe is its interface's host end")}
            assert node.tool("gc") == (0, ["nothing to free"], "")
        machine.runs_for(999_999)
        sh(f"ip -n {Path(node.web).name} link del eth0")
        remove(node.web)
        sh("ip link add veth0badcafe type veth peer name other")
        assert standings(node, tmp_path) == {"web/eth0": (DEAD, f"{node.web} is gone")}


def attach_as_the_reference(node: Node, folder: Path, container: str, netns: str) -> None:
    """Attach as the reference does: a host end with a name by chance and no ifalias, no note beside the lease."""
    added = Runtime([node.plugins], folder).add(parsed(folder), Attachment(container, netns=netns))
    end = added.result.interfaces[1].name
    sh(f"ip link set {end} down alias '' && ip link set {end} name veth0badcafe up")
    (file,) = node.results.iterdir()
    file.write_text(file.read_text().replace(end, "veth0badcafe"))
    forget_notes(folder)


def forget_notes(folder: Path) -> None:
    """Have leases as the reference writes them: nothing is noted beside them."""
    for note in (folder / "networks" / "net1" / ".owners").iterdir():
        note.unlink()


@contextmanager
def hidden(netns: str) -> Iterator[None]:
    """Have a container live on with a path that is not there: only a process is in its namespace."""
    with subprocess.Popen(["nsenter", f"--net={netns}", "sleep", "1000"]) as process:
        while not os.path.samefile(f"/proc/{process.pid}/ns/net", netns):
            time.sleep(0.01)
        sh(f"umount {netns} && rm {netns}")
        try:
            yield
        finally:
            sh(f"touch {netns} && mount --bind /proc/{process.pid}/ns/net {netns}")
            process.kill()


def standings(node: Node, folder: Path, version: str = "1.1.0") -> dict[str, tuple[str, str]]:
    """Return what the library says of each attachment."""
    found = Runtime([node.plugins], folder).survey(parsed(folder, version))
    return {"/".join(one.attachment.key): (one.state, one.why) for one in found}


VERSIONS = pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])


class TestWhatIsGone:
    """It is freed, said, and nothing else is touched."""

    @VERSIONS
    def test_a_namespace_that_was_removed_without_a_del(self, attached: Node, tmp_path: Path, version: str) -> None:
        attached.configure(of_version(tmp_path, version))
        for file in attached.results.iterdir():  # as they would be had they been added so
            file.write_text(file.read_text().replace('"cniVersion":"1.1.0"', f'"cniVersion":"{version}"'))
        others = traces(attached, attached.db)
        remove(attached.web)
        assert len(traces(attached, attached.web)) > 5
        before = everything(attached)
        line = f"{key(attached.web)}: {attached.web} is gone"
        assert attached.tool("gc", "--dry-run") == (0, [f"would free {line}"], "")
        assert everything(attached) == before
        assert attached.tool("gc") == (0, [f"freed {line}"], "")
        assert traces(attached, attached.web) == []
        assert traces(attached, attached.db) == others
        assert attached.check(attached.db) == [0]
        assert attached.tool("gc") == (0, ["nothing to free"], "")

    @VERSIONS
    def test_rules_that_are_left_alone_without_lease_or_cached_result(
        self, attached: Node, tmp_path: Path, version: str
    ) -> None:
        attached.configure(of_version(tmp_path, version))
        remove(attached.web)
        (entry,) = attached.results.glob(f"*{container_id(attached.web)}*")
        entry.unlink()
        with Store(str(tmp_path / "networks" / "net1")) as store:
            owner = leases.owner(container_id(attached.web), "eth0")
            store.release(owner, store.addresses_of(owner))
        others, before = traces(attached, attached.db), everything(attached)
        assert traces(attached, attached.web)
        line = f"{key(attached.web)}: its interface is gone"
        assert attached.tool("gc", "--dry-run") == (0, [f"would free {line}"], "")
        assert everything(attached) == before
        assert attached.tool("gc") == (0, [f"freed {line}"], "")
        assert (traces(attached, attached.web), traces(attached, attached.db)) == ([], others)
        assert attached.tool("gc") == (0, ["nothing to free"], "")

    def test_without_leases_our_bridges_tags_tell_what_is_attached(self, node: Node) -> None:
        node.configure({"cniVersion": "1.1.0", "name": "net1", "plugins": [{"type": "bridge", "bridge": "br1"}]})
        assert node.tool("gc") == (0, ["nothing to free"], "")
        (node.plugins / ".cnikit-0" / "executables").write_text("")
        status, _, stderr = node.tool("gc")
        assert (status, "no attachment is known" in stderr) == (1, True)

    def test_naming_what_is_kept_frees_no_cached_result_that_may_be_another_networks(self, attached: Node) -> None:
        (entry,) = attached.results.glob(f"*{container_id(attached.db)}*")
        bare = attached.results / "net1-other-c1-eth0"
        bare.write_text(json.dumps(json.loads(entry.read_text())["result"]))
        status, lines, _ = attached.tool("gc", "--keep", key(attached.db))
        assert (status, lines) == (0, [f"freed {key(attached.web)}: it is not to be kept"])
        assert bare.exists()
        assert attached.check(attached.db) == [0]

    @VERSIONS
    def test_a_reboot(self, machine: Machine, attached: Node, tmp_path: Path, version: str) -> None:
        """The cache of one container, and only the lease of another, are left of it."""
        attached.configure(of_version(tmp_path, version))
        remove(attached.web)
        remove(attached.db)
        (entry,) = attached.results.glob(f"*{container_id(attached.db)}*")
        entry.unlink()
        sh("nft flush ruleset && ip link del br1")
        machine.reboot()
        said = "its address was leased before this boot"
        assert attached.tool("gc")[:2] == (
            0,
            sorted(f"freed {key(one)}: {said}" for one in (attached.web, attached.db)),
        )
        assert (traces(attached, attached.web), traces(attached, attached.db)) == ([], [])

    def test_one_whose_path_is_anothers_by_now_leaves_the_other_alone(self, machine: Machine, attached: Node) -> None:
        """After a reboot a process has the same id, and its namespace the same path."""
        remove(attached.web)
        machine.reboot()
        name = Path(attached.web).name
        sh(f"ip netns add {name} && ip -n {name} link add eth0 type veth peer name eth1")
        assert attached.tool("gc")[0] == 0
        assert traces(attached, attached.web) == []
        assert [link["ifname"] for link in ip(f"-n {name} link show type veth")] == ["eth1", "eth0"]

    def test_a_lease_whose_container_is_gone(self, machine: Machine, attached: Node, tmp_path: Path) -> None:
        """Its runtime has lost all it knew."""
        remove(attached.web)
        (entry,) = attached.results.glob(f"*{container_id(attached.web)}*")
        entry.unlink()
        assert standings(attached, tmp_path)[key(attached.web)][0] == ALIVE
        machine.runs_for(999_999)
        line = f"freed {key(attached.web)}: its network namespace is gone"
        assert attached.tool("gc") == (0, [line], "")
        assert traces(attached, attached.web) == []
        assert attached.check(attached.db) == [0]

    def test_it_gets_del_with_the_configuration_of_its_add(self, attached: Node, tmp_path: Path) -> None:
        """Even where the leases were elsewhere, and a plugin was in the list that is not any more."""
        remove(attached.web)
        conf = of_version(tmp_path, "1.0.0")
        conf["plugins"] = conf["plugins"][:1]
        conf["plugins"][0]["ipam"]["dataDir"] = str(tmp_path / "elsewhere")
        attached.configure(conf)
        assert attached.tool("gc")[1] == [f"freed {key(attached.web)}: {attached.web} is gone"]
        assert traces(attached, attached.web) == []

    def test_a_plugin_that_is_not_installed_any_more_keeps_nothing(self, attached: Node, tmp_path: Path) -> None:
        remove(attached.web)
        conf = network(tmp_path)
        conf["plugins"] = [plugin for plugin in conf["plugins"] if plugin["type"] != "firewall"]
        attached.configure(conf)
        (attached.plugins / "firewall").unlink()
        assert attached.tool("gc") == (0, [f"freed {key(attached.web)}: {attached.web} is gone"], "")
        (attached.results / f"net1-{container_id(attached.db)}-eth0").exists()

    @pytest.mark.parametrize("sign", ["link", "lease", "result"])
    def test_one_that_is_attached_again_meanwhile_is_kept(self, attached: Node, tmp_path: Path, sign: str) -> None:
        """Its runtime starts it again, by the same id, while gc works through a long list."""
        remove(attached.web)
        whose = Whose("net1", container_id(attached.web), "eth0")
        owner = leases.owner(whose.container, whose.ifname)

        def come_back() -> None:
            if sign == "link":
                end = ownership.host_ends(whose)[0]
                sh(f"ip link add {end} type veth peer name other && ip link set {end} alias {ownership.tag(whose)}")
            elif sign == "lease":
                with Store(str(tmp_path / "networks" / "net1")) as store:
                    store.renew(owner, leases.note(attached.outside))
            else:
                os.utime(attached.results / f"net1-{whose.container}-eth0")

        class Interrupted(Runtime):
            def survey(self, network: Network) -> tuple[Standing, ...]:
                found = super().survey(network)
                come_back()
                return found

        told: list[tuple[str, bool]] = []
        net = parsed(tmp_path, "1.0.0")
        Interrupted([attached.plugins], tmp_path).gc(net, report=lambda one, freed: told.append((one.state, freed)))
        assert sorted(told) == [(ALIVE, False), (DEAD, False)]
        with Store(str(tmp_path / "networks" / "net1")) as store:
            assert len(store.addresses_of(owner)) == 2

    def test_what_cannot_be_freed_is_told_and_the_rest_is_freed(self, attached: Node, tmp_path: Path) -> None:
        remove(attached.web)
        remove(attached.db)
        broken = attached.plugins / "firewall"
        broken.write_text(f'#!/bin/sh\ntest "$CNI_CONTAINERID" != {container_id(attached.web)}\n')
        attached.configure(of_version(tmp_path, "1.0.0"))
        status, lines, stderr = attached.tool("gc")
        assert (status, lines) == (1, [f"freed {key(attached.db)}: {attached.db} is gone"])
        assert f"gc net1: DEL of {key(attached.web)}: firewall: " in stderr
        assert attached.results.exists()
        assert not [one for one in traces(attached, attached.db) if "10.11.0" in one and "comment" not in one]
        assert len(traces(attached, attached.web)) > 5


class TestWhatCannotBeTold:
    """It is kept and printed."""

    def kept(self, node: Node, *before: str) -> list[str]:
        """Run gc, which must free nothing; return what is printed."""
        was = everything(node)
        environ = {"CNI_PATH": str(node.plugins), "NETCONFPATH": str(node.results.parent / "net.d")}
        command = [*before, *node.command, "gc", f"--cache={node.results.parent}", "net1"]
        done = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        now = everything(node)
        assert now[1:] == was[1:]
        return done.stdout.splitlines()

    def test_in_a_pid_namespace(self, attached: Node) -> None:
        remove(attached.web)
        why = f"{attached.web} is gone, and not all processes can be seen from here"
        lines = self.kept(attached, "unshare", "--pid", "--fork", "--mount-proc")
        assert lines == [f"kept {key(attached.web)}: {why}", "nothing to free"]

    def test_a_path_that_is_mounted_in_another_mount_namespace(self, machine: Machine, attached: Node) -> None:
        """As podman has it for its users: the path is a file without a namespace for all others."""
        script = "echo; exec cat"
        command = ["unshare", "-m", "--propagation", "private", "sh", "-c", script]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            name = Path(attached.web).name
            sh(f"ip -n {name} link del eth0 && umount {attached.web}")
            machine.runs_for(999_999)
            try:
                why = f"{attached.web} is mounted in another mount namespace"
                assert self.kept(attached) == [f"kept {key(attached.web)}: {why}", "nothing to free"]
            finally:
                other.kill()

    def test_a_namespace_that_has_another_interface_by_now(self, machine: Machine, attached: Node) -> None:
        """In this boot it may be that somebody took the interface away, and the container runs."""
        sh(f"ip -n {Path(attached.web).name} link del eth0")
        machine.runs_for(999_999)
        why = f"eth0 is not in {attached.web} (DEL and ADD make it)"
        assert self.kept(attached) == [f"kept {key(attached.web)}: {why}", "nothing to free"]

    def test_one_that_is_attached_from_another_host_namespace(
        self, machine: Machine, attached: Node, new_container: Callable[[], str]
    ) -> None:
        remove(attached.web)
        machine.runs_for(999_999)
        elsewhere = new_container()
        lines = self.kept(attached, "nsenter", f"--net={elsewhere}")
        assert len(lines) == 3
        assert all("it was attached from another network namespace" in line for line in lines[:2])

    @pytest.mark.parametrize("text", ["", "{", '{"kind": "cniCacheV2"}'])
    def test_a_cached_result_that_cannot_be_read(self, attached: Node, tmp_path: Path, text: str) -> None:
        file = tmp_path / "results" / "net1-who-knows-eth0"
        file.write_text(text)
        *kept, last = self.kept(attached)
        assert last == "nothing to free"
        assert [line.partition(f": {file}: ")[0] for line in kept] == ["kept who/knows-eth0", "kept who-knows/eth0"]

    def test_a_result_alone_which_an_old_libcni_cached(self, attached: Node, tmp_path: Path) -> None:
        remove(attached.web)
        (entry,) = attached.results.glob(f"*{container_id(attached.web)}*")
        entry.rename(tmp_path / "kept")
        bare = attached.results / "net1-old-eth0"
        bare.write_text(json.dumps(json.loads((tmp_path / "kept").read_text())["result"]))
        assert "kept old/eth0: only its result is cached, as by libcni before 0.8" in self.kept(attached)
        assert bare.exists()
