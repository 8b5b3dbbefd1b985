"""containerd on the built executables: `ctr run --cni`, and pods as a kubelet asks for them (CRI).

Each test is run with the machine's own containerd and with those of tests/packages.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.conftest import BUILT, PROJECT, sh
from tests.packets import reached, server
from tests.surroundings import (
    HOST,
    OUTSIDE,
    PATIENCE,
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

# containerd looks for plugins in /opt/cni/bin and ctr for networks in /etc/cni/net.d. It sees an /etc and an /opt in
# which these two are ours, and links to all else that is there.
START = """
for folder in etc opt; do
    mkdir -p /run/real/$folder
    mount --rbind /$folder /run/real/$folder
    mount -t tmpfs none /$folder
    ln -s /run/real/$folder/* /$folder
done
rm -f /etc/cni /opt/cni
mkdir /etc/cni /opt/cni
ln -s {folder}/net.d /etc/cni/net.d
ln -s {plugins} /opt/cni/bin
[ ! -d /usr/lib/cni ] || mount -t tmpfs none /usr/lib/cni
exec containerd --config {folder}/config.toml
"""
COMMON = """
root = "{folder}/root"
state = "{folder}/state"
[debug]
level = "warn"
[grpc]
address = "{folder}/socket"
"""
# By containerd's major version.
CONFIG = {
    1: """
version = 2
{common}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
{network}
""",
    2: """
version = 3
{common}
[plugins."io.containerd.cri.v1.images"]
snapshotter = "native"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/opt/cni/bin"]
{network}
""",
}
NETWORK = """
conf_dir = "{folder}/kubernetes"
conf_template = "{example}.template"
"""
EXAMPLE = PROJECT / "conf-examples" / "kubernetes.conflist"
# The newest version of CNI that a major version of containerd speaks.
SPOKEN = {1: "1.0.0", 2: "1.1.0"}


class Containerd:
    """A containerd in a folder of its own."""

    def __init__(self, folder: Path, programs: Path | None, network: dict[str, Any] | None) -> None:
        """Start it, from programs if that is not the machine's own, with a network for pods."""
        (folder / "net.d").mkdir()
        shutil.copy(PROJECT / "conf-examples" / "containerd.conflist", folder / "net.d")
        self.networks = folder / "kubernetes"
        self.networks.mkdir()
        if network:
            (self.networks / EXAMPLE.name).write_text(json.dumps(network))
        self.environ = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"} if programs else dict(os.environ)
        told = subprocess.run(["containerd", "--version"], env=self.environ, capture_output=True, text=True, check=True)
        self.major = int(told.stdout.split()[2].lstrip("v").partition(".")[0])
        config = CONFIG[self.major].format(
            common=COMMON.format(folder=folder), pause=PAUSE, network=NETWORK.format(folder=folder, example=EXAMPLE)
        )
        (folder / "config.toml").write_text(config)
        self.socket = folder / "socket"
        self._ctr = ("ctr", "--address", str(self.socket), "--namespace", "k8s.io")
        script = START.format(folder=folder, plugins=BUILT)
        start = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script]
        self.process = subprocess.Popen(start, env=self.environ)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command that sees the files, and the mounts of namespaces, that containerd sees."""
        enter = ["nsenter", "--target", str(self.process.pid), "--mount", "--"]
        environ = {**self.environ, "NETCONFPATH": str(self.networks)}
        return subprocess.Popen(
            [*enter, *command], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *command: str) -> str:
        """Run such a command, which must succeed; return what it prints."""
        process = self.start(*command)
        out, errors = process.communicate()
        assert process.returncode == 0, f"{command}: {errors or out}"
        return out

    def start_ctr(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command of ctr, which calls the plugins itself."""
        return self.start(*self._ctr, *arguments)

    def cnitool(self, *arguments: str) -> str:
        """Run cnitool, which must succeed; return what it prints."""
        return self.run(str(BUILT / "cnitool"), *arguments)

    def load_images(self, images: Path) -> None:
        """Load them, as soon as it runs."""
        wait_for(self.socket.exists)
        local = ("--local",) if self.major > 1 else ()
        self.ctr("images", "import", *local, "--snapshotter", "native", str(images))

    def ctr(self, *arguments: str) -> str:
        """Run a command of ctr, which must succeed; return what it prints."""
        return self.run(*self._ctr, *arguments)


class Kubelet:
    """What a kubelet asks of containerd, in the messages of cri.proto."""

    def __init__(self, socket: Path) -> None:
        self.channel = grpc.insecure_channel(f"unix:{socket}")
        self.messages, services = grpc.protos_and_services("tests/cri.proto")
        self.stubs = services.RuntimeServiceStub(self.channel), services.ImageServiceStub(self.channel)

    def __call__(self, method: str, **fields: Any) -> Any:
        """Call a method, whose request has these fields; return the response."""
        runtime, images = self.stubs
        request = getattr(self.messages, f"{method}Request")(**fields)
        return getattr(images if method.startswith("Image") else runtime, method)(request)

    def conditions(self) -> dict[str, str]:
        """Ask containerd how it is, as a kubelet does every few seconds; return what is wrong with what."""
        return {
            condition.type: condition.message for condition in self("Status").status.conditions if not condition.status
        }

    def has_images(self) -> bool:
        """Tell whether containerd has noticed the images."""
        return all(self("ImageStatus", image={"image": image}).image.id for image in (SERVER, PAUSE))

    def can_run_pods(self) -> bool:
        """Tell whether containerd is ready and its network is."""
        return self.conditions() == {} and self.has_images()

    def run(self, name: str, *ports: dict[str, Any]) -> str:
        """Run a pod with a container that serves the pod's name on port 80; return the pod's id."""
        metadata = {"name": name, "uid": name, "namespace": "default"}
        config = {"metadata": metadata, "hostname": name, "port_mappings": ports}
        pod = str(self("RunPodSandbox", config=config).pod_sandbox_id)
        container = {"metadata": {"name": "server"}, "image": {"image": SERVER}}
        created = self("CreateContainer", pod_sandbox_id=pod, config=container, sandbox_config=config)
        self("StartContainer", container_id=created.container_id)
        return pod

    def addresses(self, pod: str) -> list[str]:
        """Return the pod's addresses."""
        network = self("PodSandboxStatus", pod_sandbox_id=pod).status.network
        return [network.ip, *(more.ip for more in network.additional_ips)]

    def netns(self, pod: str) -> str:
        """Return the path of the pod's network namespace."""
        info = self("PodSandboxStatus", pod_sandbox_id=pod, verbose=True).info["info"]
        return f"/proc/{json.loads(info)['pid']}/ns/net"

    def stop(self, pod: str) -> None:
        """Stop a pod."""
        self("StopPodSandbox", pod_sandbox_id=pod)

    def remove(self, pod: str) -> None:
        """Remove a pod."""
        self("RemovePodSandbox", pod_sandbox_id=pod)


@pytest.fixture(params=["own", "1.7", "2.1"])
def programs(request: pytest.FixtureRequest) -> Path | None:
    """Return the folder of a containerd's programs, None for the machine's own."""
    if request.param == "own":
        return None
    listed = (PROJECT / "tests" / "packages").read_text()
    [package] = re.findall(rf"/(containerd_{re.escape(request.param)}.*)\.deb ", listed)
    folder: Path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cnikit" / package
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: ./build.sh test all could not fetch the package")
    return folder


@pytest.fixture
def network(request: pytest.FixtureRequest) -> dict[str, Any] | None:
    """Return the example, with so many addresses of each family as the test asks for; None where it wants none."""
    network: dict[str, Any] = json.loads(EXAMPLE.read_text())
    count = getattr(request, "param", None)
    if count == 0:
        return None
    for [entry], prefix in zip(network["plugins"][0]["ipam"]["ranges"], ("10.244.1.", "fd00:244:1::"), strict=True):
        if count:
            entry |= {"rangeStart": f"{prefix}10", "rangeEnd": f"{prefix}{9 + count}"}
    return network


@pytest.fixture
def containerd(
    host: str, tmp_path: Path, programs: Path | None, network: dict[str, Any] | None
) -> Iterator[Containerd]:
    """Run containerd on a fresh host; shows after each test that removing everything leaves nothing."""
    assert host
    needs("containerd", "ctr", "runc", "busybox", "nft", "iptables", "unshare", "nsenter")
    write_images(tmp_path / "images.tar")
    before = traces()
    containerd = Containerd(tmp_path, programs, network)
    try:
        containerd.load_images(tmp_path / "images.tar")
        yield containerd
        for task in containerd.ctr("tasks", "list", "--quiet").split():
            containerd.ctr("tasks", "delete", "--force", task)
    finally:
        containerd.process.terminate()
        containerd.process.wait(PATIENCE)
    assert traces() - before == set()


@pytest.fixture
def starting(containerd: Containerd) -> Iterator[Kubelet]:
    """Give a kubelet that need not be ready yet; removes the pods that are left."""
    kubelet = Kubelet(containerd.socket)
    wait_for(kubelet.has_images, grpc.RpcError)
    yield kubelet
    for pod in kubelet("ListPodSandbox").items:
        kubelet.stop(pod.id)
        kubelet.remove(pod.id)
    kubelet.channel.close()


@pytest.fixture
def kubelet(starting: Kubelet) -> Kubelet:
    """Give one that is ready for pods."""
    wait_for(starting.can_run_pods)
    return starting


@pytest.fixture
def outside(containerd: Containerd) -> Iterator[str]:
    assert containerd
    with cable() as path:
        yield path


TCP = {"protocol": "TCP", "container_port": 80, "host_port": 8080}
UDP = {"protocol": "UDP", "container_port": 53, "host_port": 5353}


def test_ctr(containerd: Containerd, host: str, outside: str) -> None:
    serve = "echo web >/www/index.html; exec httpd -f -p 80 -h /www"
    options = ("--rm", "--cni", "--null-io", "--snapshotter", "native")
    running = containerd.start_ctr("run", *options, SERVER, "web", "sh", "-c", serve)
    for address in wait_for(lambda: leases("containerd")):
        assert get(host, address, 80) == "web"
    [_, line] = containerd.ctr("tasks", "list").splitlines()
    with server(outside, OUTSIDE[4], 80) as elsewhere:
        assert reached(elsewhere, f"/proc/{line.split()[1]}/ns/net", OUTSIDE[4], 80) == HOST[4]
    containerd.ctr("tasks", "kill", "--signal", "SIGKILL", "web")
    running.communicate(timeout=PATIENCE)
    assert running.returncode == 128 + signal.SIGKILL
    assert leases("containerd") == []


def test_a_pod(kubelet: Kubelet, host: str, outside: str) -> None:
    pod = kubelet.run("web", TCP, UDP)
    netns = kubelet.netns(pod)
    assert leases("kubernetes") == kubelet.addresses(pod)
    for address in kubelet.addresses(pod):
        assert get(host, address, 80) == "web"
    for address, namespace in (
        ("127.0.0.1", host),
        (HOST[4], host),
        (HOST[4], outside),
        (HOST[6], host),
        (HOST[6], outside),
    ):
        assert get(namespace, address, 8080) == "web"
        with server(netns, "::", 53, socket.SOCK_DGRAM) as names:
            assert reached(names, namespace, address, 5353)
    assert get(netns, HOST[4], 8080) == "web"
    for version in (4, 6):
        with server(outside, OUTSIDE[version], 80) as elsewhere:
            assert reached(elsewhere, netns, OUTSIDE[version], 80) == HOST[version]
    kubelet.stop(pod)
    assert leases("kubernetes") == []
    assert is_closed(outside, HOST[4], 8080)
    kubelet.stop(pod)
    kubelet.remove(pod)


def test_a_port_goes_from_pod_to_pod(kubelet: Kubelet, outside: str) -> None:
    first = kubelet.run("first", TCP)
    assert get(outside, HOST[4], 8080) == "first"
    kubelet.stop(first)
    second = kubelet.run("second", TCP)
    assert get(outside, HOST[4], 8080) == "second"
    kubelet.remove(first)
    assert get(outside, HOST[4], 8080) == "second"
    kubelet.remove(second)
    assert leases("kubernetes") == []
    assert is_closed(outside, HOST[4], 8080)


def test_a_port_of_one_address(kubelet: Kubelet, host: str, outside: str) -> None:
    kubelet.run("web", {**TCP, "host_ip": "127.0.0.1"})
    assert get(host, "127.0.0.1", 8080) == "web"
    assert is_closed(outside, HOST[4], 8080)


def test_pods_reach_each_other(kubelet: Kubelet) -> None:
    first, second = kubelet.run("first"), kubelet.run("second")
    for address in kubelet.addresses(second):
        assert get(kubelet.netns(first), address, 80) == "second"


def cached(pod: str) -> dict[str, Any]:
    """Return the result that containerd's libcni has cached."""
    entry = json.loads(Path("/var/lib/cni/results", f"kubernetes-{pod}-eth0").read_text())
    result: dict[str, Any] = entry["result"]
    return result


def test_the_newest_version_is_spoken(kubelet: Kubelet, containerd: Containerd) -> None:
    assert cached(kubelet.run("web"))["cniVersion"] == SPOKEN[containerd.major]


@pytest.mark.parametrize("network", [2], indirect=True)
def test_a_full_range_is_the_next_pods_trouble_only(kubelet: Kubelet, host: str) -> None:
    """A node that is not ready loses the pods it has."""
    first, second = kubelet.run("first"), kubelet.run("second")
    freed, kept = kubelet.addresses(first), kubelet.addresses(second)
    with pytest.raises(grpc.RpcError, match=r"10\.244\.1\.10-10\.244\.1\.11.*2 addresses"):
        kubelet.run("third")
    for _ in range(3):
        assert kubelet.conditions() == {}
    kubelet.stop(first)
    assert kubelet.addresses(kubelet.run("third")) == freed
    assert kubelet.conditions() == {}
    assert [get(host, address, 80) for address in kept] == ["second"] * 2


def test_a_network_that_cannot_work_is_a_condition_of_the_node(kubelet: Kubelet, containerd: Containerd) -> None:
    """Since containerd 2, which calls STATUS."""
    sh("ip link add cbr0 type veth peer name other")
    conditions = kubelet.conditions()
    sh("ip link del cbr0")
    assert ("cbr0" in conditions.get("NetworkReady", "")) == (containerd.major > 1)
    assert kubelet.conditions() == {}


def test_gc_beside_pods_that_start(kubelet: Kubelet, containerd: Containerd, host: str) -> None:
    """They are in nobody's cache yet, and what is gone is freed all the same."""
    containerd.run("ip", "netns", "add", "gone")
    containerd.cnitool("add", "kubernetes", "gone")
    containerd.run("ip", "netns", "del", "gone")
    names = [f"pod{number}" for number in range(20)]
    with ThreadPoolExecutor(len(names)) as pool:
        started = [pool.submit(kubelet.run, name) for name in names]
        while not all(pod.done() for pod in started):
            containerd.cnitool("gc", "kubernetes")
    addresses = {pod.result(): kubelet.addresses(pod.result()) for pod in started}
    for name, pod in zip(names, addresses, strict=True):
        for address in addresses[pod]:
            assert get(host, address, 80) == name
    assert leases("kubernetes") == sorted(address for pair in addresses.values() for address in pair)


def test_a_pod_in_another_mount_namespace_is_never_nothing(kubelet: Kubelet, containerd: Containerd) -> None:
    """Seen from outside of containerd's, the path of its network namespace is a file without one."""
    pod = kubelet.run("web", TCP)
    with pytest.raises(AssertionError, match=f"{pod}/eth0: .* is not there, but veth"):
        cnitool(containerd.networks, "repair", "kubernetes")
    assert cnitool(containerd.networks, "gc", "kubernetes") == "nothing to free"
    assert containerd.cnitool("repair", "kubernetes").strip() == "nothing was missing"


@pytest.mark.parametrize("by", ["network", "netns"])
def test_repair_after_a_flush(kubelet: Kubelet, containerd: Containerd, outside: str, by: str) -> None:
    """From what containerd's libcni has cached, whatever its age."""
    pod = kubelet.run("web", TCP)
    sh("nft flush ruleset")
    assert is_closed(outside, HOST[4], 8080)
    [netns] = {link["sandbox"] for link in cached(pod)["interfaces"] if link.get("sandbox")}
    assert "put back" in containerd.cnitool("repair", "kubernetes", *([netns] if by == "netns" else []))
    for version in (4, 6):
        assert get(outside, HOST[version], 8080) == "web"
        with server(outside, OUTSIDE[version], 80) as elsewhere:
            assert reached(elsewhere, kubelet.netns(pod), OUTSIDE[version], 80) == HOST[version]
    assert "put back" not in containerd.cnitool("repair", "kubernetes")


@pytest.mark.parametrize("network", [0], indirect=True)
@pytest.mark.parametrize("ranges", ["10.244.1.0/24,fd00:244:1::/64", "10.244.1.0/24"])
def test_the_template_is_filled_in_with_the_nodes_ranges(
    starting: Kubelet, containerd: Containerd, ranges: str
) -> None:
    subnets = ranges.split(",")
    starting("UpdateRuntimeConfig", runtime_config={"network_config": {"pod_cidr": ranges}})
    wait_for(starting.can_run_pods)
    [written] = containerd.networks.iterdir()
    wanted = json.loads(EXAMPLE.read_text())
    wanted["plugins"][0]["ipam"]["ranges"] = [[{"subnet": subnet}] for subnet in subnets]
    assert json.loads(written.read_text()) == wanted
    addresses = starting.addresses(starting.run("web"))
    assert addresses == leases("kubernetes")
    for address, prefix in zip(addresses, ("10.244.1.", "fd00:244:1::")[: len(subnets)], strict=True):
        assert address.startswith(prefix)
