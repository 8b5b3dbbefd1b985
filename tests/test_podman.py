"""podman and its CNI stack on the built executables."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BUILT, PROJECT, ip, sh
from tests.packets import reached, server
from tests.surroundings import (
    HOST,
    OUTSIDE,
    PAUSE,
    SERVER,
    cable,
    cnitool,
    get,
    is_closed,
    leases,
    needs,
    traces,
    wait_for,
    write_images,
)

pytestmark = pytest.mark.all

# An installation of its own: nothing is shared with the machine's podman.
CONTAINERS = """
[network]
network_backend = "cni"
cni_plugin_dirs = ["{plugins}"]
network_config_dir = "{folder}/networks"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
static_dir = "{folder}/static"
tmp_dir = "{folder}/tmp"
volume_path = "{folder}/volumes"
"""
STORAGE = """
[storage]
driver = "vfs"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""


class Podman:
    """An installation of podman in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.networks = folder / "networks"
        self.networks.mkdir()
        containers, storage = folder / "containers.conf", folder / "storage.conf"
        containers.write_text(CONTAINERS.format(folder=folder, plugins=BUILT))
        storage.write_text(STORAGE.format(folder=folder))
        self.environ = {"CONTAINERS_CONF": str(containers), "CONTAINERS_STORAGE_CONF": str(storage)}

    def __call__(self, *arguments: str) -> str:
        """Run a command, which must succeed; return what it prints."""
        command = ["podman", *arguments]
        done = subprocess.run(command, env=os.environ | self.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def serve(self, name: str, *options: str) -> None:
        """Start a container that serves its name on port 80."""
        self("run", "--detach", "--name", name, "--hostname", name, *options, SERVER)

    def settings(self, container: str) -> dict[str, Any]:
        """Return what podman knows of the container's network."""
        settings: dict[str, Any] = json.loads(self("inspect", "--format", "{{json .NetworkSettings}}", container))
        return settings

    def netns(self, container: str) -> str:
        """Return the path of the container's network namespace."""
        return str(self.settings(container)["SandboxKey"])

    def address(self, container: str, network: str = "podman", key: str = "IPAddress") -> str:
        """Return the container's address in a network."""
        return str(self.settings(container)["Networks"][network][key])


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    needs("podman", "runc", "busybox", "nft", "iptables")
    folder = tmp_path_factory.mktemp("podman")
    write_images(folder / "images.tar")
    podman = Podman(folder)
    podman("load", "--input", str(folder / "images.tar"))
    return podman


@pytest.fixture
def podman(installation: Podman, host: str) -> Iterator[Podman]:
    """Give an empty podman on a fresh host; shows after each test that removing everything leaves nothing."""
    assert host
    before = traces()
    yield installation
    installation("pod", "rm", "--all", "--force")
    installation("rm", "--all", "--force")
    installation("network", "prune", "--force")
    assert traces() - before == set()


@pytest.fixture
def outside(podman: Podman) -> Iterator[str]:
    assert podman
    with cable() as path:
        yield path


def links(container: Podman, name: str) -> list[str]:
    """Return the names of a container's interfaces."""
    listed = container("exec", name, "ip", "-o", "link")
    return [line.split(": ")[1].split("@")[0] for line in listed.splitlines()]


def test_run(podman: Podman, host: str, outside: str) -> None:
    podman.serve("web")
    assert links(podman, "web") == ["lo", "eth0"]
    assert leases("podman") == [podman.address("web")]
    assert get(host, podman.address("web"), 80) == "web"
    with server(outside, OUTSIDE[4], 80) as elsewhere:
        assert reached(elsewhere, podman.netns("web"), OUTSIDE[4], 80) == HOST[4]


def test_published_ports(podman: Podman, host: str, outside: str) -> None:
    podman.serve("web", "--publish", "8080:80", "--publish", "5353:53/udp")
    container = podman.netns("web")
    for address, namespace in (("127.0.0.1", host), (HOST[4], host), ("10.88.0.1", host), (HOST[4], outside)):
        assert get(namespace, address, 8080) == "web"
        with server(container, "", 53, socket.SOCK_DGRAM) as names:
            assert reached(names, namespace, address, 5353)
    assert get(container, HOST[4], 8080) == "web"


def test_rm_closes_the_port_for_the_next_container(podman: Podman, host: str, outside: str) -> None:
    podman.serve("first", "--publish", "8080:80")
    assert get(outside, HOST[4], 8080) == "first"
    podman("rm", "--force", "first")
    assert leases("podman") == []
    assert is_closed(outside, HOST[4], 8080)
    assert is_closed(host, "127.0.0.1", 8080)
    podman.serve("second", "--publish", "8080:80")
    assert get(outside, HOST[4], 8080) == "second"


def test_a_fixed_address(podman: Podman, host: str) -> None:
    podman.serve("web", "--ip", "10.88.0.77", "--mac-address", "02:00:00:00:00:77")
    assert podman.address("web") == "10.88.0.77"
    assert podman.address("web", key="MacAddress") == "02:00:00:00:00:77"
    assert get(host, "10.88.0.77", 80) == "web"


def test_a_taken_address(podman: Podman, host: str) -> None:
    podman.serve("web", "--ip", "10.88.0.77")
    with pytest.raises(AssertionError, match=r"10\.88\.0\.77"):
        podman.serve("second", "--ip", "10.88.0.77")
    podman("rm", "--force", "second")
    assert leases("podman") == ["10.88.0.77"]
    assert get(host, "10.88.0.77", 80) == "web"


def test_two_networks_one_with_both_families(podman: Podman, host: str, outside: str) -> None:
    podman("network", "create", "one")
    podman("network", "create", "--ipv6", "two")
    podman.serve("web", "--network", "one", "--network", "two", "--publish", "8080:80")
    podman.serve("other", "--network", "two")
    assert sorted(links(podman, "web")) == ["eth0", "eth1", "lo"]  # podman joins networks in any order
    addresses = [podman.address("web", "one"), podman.address("web", "two")]
    addresses.append(podman.address("web", "two", "GlobalIPv6Address"))
    for address in addresses:
        assert get(host, address, 80) == "web"
    for address in addresses[1:]:
        assert get(podman.netns("other"), address, 80) == "web"
    for address, namespace in (("127.0.0.1", host), (HOST[4], outside), (HOST[6], host), (HOST[6], outside)):
        assert get(namespace, address, 8080) == "web"
    for version in (4, 6):
        with server(outside, OUTSIDE[version], 80) as elsewhere:
            assert reached(elsewhere, podman.netns("other"), OUTSIDE[version], 80) == HOST[version]


def test_fixed_addresses_of_both_families(podman: Podman, host: str) -> None:
    podman("network", "create", "--subnet", "10.90.0.0/24", "--ipv6", "--subnet", "fd00:90::/64", "two")
    podman.serve("web", "--network", "two:ip=10.90.0.9,ip=fd00:90::9")
    assert leases("two") == ["10.90.0.9", "fd00:90::9"]
    assert get(host, "fd00:90::9", 80) == "web"


def test_connect_and_disconnect(podman: Podman, host: str, outside: str) -> None:
    podman("network", "create", "one")
    podman("network", "create", "two")
    podman.serve("web", "--network", "one", "--publish", "8080:80")
    assert get(outside, HOST[4], 8080) == "web"
    podman("network", "connect", "two", "web")
    assert sorted(links(podman, "web")) == ["eth0", "eth1", "lo"]  # podman joins networks in any order
    assert get(host, podman.address("web", "two"), 80) == "web"
    assert get(outside, HOST[4], 8080) == "web"
    podman("network", "disconnect", "two", "web")
    assert links(podman, "web") == ["lo", "eth0"]
    assert leases("two") == []
    assert get(outside, HOST[4], 8080) == "web"


def test_the_port_stays_when_the_first_network_goes(podman: Podman, outside: str) -> None:
    podman("network", "create", "one")
    podman("network", "create", "two")
    podman.serve("web", "--network", "one", "--publish", "8080:80")
    podman("network", "connect", "two", "web")
    podman("network", "disconnect", "one", "web")
    assert links(podman, "web") == ["lo", "eth1"]
    assert leases("one") == []
    assert get(outside, HOST[4], 8080) == "web"


def test_reload_after_a_flush(podman: Podman, host: str, outside: str) -> None:
    podman.serve("web", "--publish", "8080:80")
    before = podman.settings("web")["Networks"]["podman"]
    sh("nft flush ruleset")
    podman("network", "reload", "web")
    assert podman.settings("web")["Networks"]["podman"] == before
    assert get(outside, HOST[4], 8080) == "web"
    assert get(host, "127.0.0.1", 8080) == "web"
    with server(outside, OUTSIDE[4], 80) as elsewhere:
        assert reached(elsewhere, podman.netns("web"), OUTSIDE[4], 80) == HOST[4]


def test_repair_after_a_flush(podman: Podman, host: str, outside: str) -> None:
    """The libcni of podman 4 caches no path of the namespace."""
    podman("network", "create", "one")
    podman.serve("web", "--network", "one", "--publish", "8080:80")
    (file,) = Path("/var/lib/cni/results").glob("one-*")
    assert "netns" not in json.loads(file.read_text())
    assert cnitool(podman.networks, "repair", "one") == "nothing was missing"
    sh("nft flush ruleset")
    assert ": portmap: put back: " in cnitool(podman.networks, "repair", "one")
    assert get(outside, HOST[4], 8080) == "web"
    assert get(host, "127.0.0.1", 8080) == "web"
    with server(outside, OUTSIDE[4], 80) as elsewhere:
        assert reached(elsewhere, podman.netns("web"), OUTSIDE[4], 80) == HOST[4]
    assert cnitool(podman.networks, "repair", "one") == "nothing was missing"
    assert cnitool(podman.networks, "check", "one", podman.netns("web")) == ""


def test_gc_after_a_crash(podman: Podman, outside: str) -> None:
    """The container died with podman's monitor, and its namespace with them; what is left is a cached result."""
    podman("network", "create", "one")
    podman.serve("web", "--network", "one", "--publish", "8080:80")
    podman.serve("gone", "--network", "one", "--publish", "8081:80")
    netns, container = podman.netns("gone"), podman("inspect", "--format", "{{.Id}}", "gone")
    sh(f"kill -9 {podman('inspect', '--format', '{{.State.ConmonPid}} {{.State.Pid}}', 'gone')}")
    sh(f"umount {netns} && rm {netns}")
    wait_for(lambda: not any(container in link.get("ifalias", "") for link in ip("link")))
    assert cnitool(podman.networks, "gc", "--dry-run", "one") == f"would free {container}/eth0: {netns} is gone"
    assert cnitool(podman.networks, "gc", "one") == f"freed {container}/eth0: {netns} is gone"
    assert leases("one") == [podman.address("web", "one")]
    assert not any(container in trace for trace in traces())
    assert get(outside, HOST[4], 8080) == "web"
    assert cnitool(podman.networks, "gc", "one") == "nothing to free"
    # What its monitor would have written, for podman to remove it.
    (podman.networks.parent / "tmp" / "exits" / container).write_text("137")


def test_restart(podman: Podman, outside: str) -> None:
    podman.serve("web", "--publish", "8080:80")
    podman("restart", "web")
    assert leases("podman") == [podman.address("web")]
    assert get(outside, HOST[4], 8080) == "web"
    podman("stop", "web")
    assert leases("podman") == []
    assert is_closed(outside, HOST[4], 8080)
    podman("start", "web")
    assert get(outside, HOST[4], 8080) == "web"


def test_a_pod(podman: Podman, outside: str) -> None:
    infra = ("--infra-image", PAUSE)
    podman("pod", "create", "--name", "pod", "--publish", "8080:80", *infra)
    podman("run", "--detach", "--pod", "pod", "--name", "web", SERVER)
    podman("run", "--detach", "--pod", "pod", "--name", "other", PAUSE)
    assert get(outside, HOST[4], 8080) == "pod"
    assert get(podman.netns("other"), "127.0.0.1", 80) == "pod"
    podman("pod", "restart", "pod")
    assert get(outside, HOST[4], 8080) == "pod"
    podman("pod", "rm", "--force", "pod")
    assert leases("podman") == []
    assert is_closed(outside, HOST[4], 8080)


def test_a_host_that_forwards_nothing_unless_told_to(podman: Podman, outside: str) -> None:
    sh("iptables -P FORWARD DROP && ip6tables -P FORWARD DROP")
    podman("network", "create", "--ipv6", "two")
    podman.serve("web", "--network", "two")
    for version in (4, 6):
        with server(outside, OUTSIDE[version], 80) as elsewhere:
            assert reached(elsewhere, podman.netns("web"), OUTSIDE[version], 80) == HOST[version]


def test_the_example_is_what_podman_writes(podman: Podman) -> None:
    example = json.loads((PROJECT / "conf-examples" / "podman.conflist").read_text())
    ranges = example["plugins"][0]["ipam"]["ranges"]
    subnets = [option for [entry] in ranges for option in ("--subnet", entry["subnet"])]
    podman("network", "create", "--ipv6", *subnets, example["name"])
    assert json.loads((podman.networks / f"{example['name']}.conflist").read_text()) == example
