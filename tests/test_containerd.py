"""containerd on the built executables: `ctr run --cni`, and pods as a kubelet asks for them (CRI)."""

from __future__ import annotations

import json
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
exec containerd --config {folder}/config.toml
"""
CONFIG = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
[debug]
level = "warn"
[grpc]
address = "{folder}/socket"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "{folder}/kubernetes"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
"""


class Containerd:
    """A containerd in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        for place, example in (("net.d", "containerd.conflist"), ("kubernetes", "kubernetes.conflist")):
            (folder / place).mkdir()
            shutil.copy(PROJECT / "conf-examples" / example, folder / place)
        (folder / "config.toml").write_text(CONFIG.format(folder=folder, pause=PAUSE))
        self.socket = folder / "socket"
        self.kubernetes = folder / "kubernetes"
        script = START.format(folder=folder, plugins=BUILT)
        self.process = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sh", "-euc", script])

    def start_ctr(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command of ctr. It calls the plugins itself, so it must see the files that containerd sees."""
        enter = ["nsenter", "--target", str(self.process.pid), "--mount", "--"]
        command = ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", *arguments]
        return subprocess.Popen([*enter, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ctr(self, *arguments: str) -> str:
        """Run a command of ctr, which must succeed; return what it prints."""
        process = self.start_ctr(*arguments)
        out, errors = process.communicate()
        assert process.returncode == 0, f"{arguments}: {errors}"
        return out


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

    def can_run_pods(self) -> bool:
        """Tell whether containerd is ready, its network is, and it has noticed the images."""
        ready = all(condition.status for condition in self("Status").status.conditions)
        return ready and all(self("ImageStatus", image={"image": image}).image.id for image in (SERVER, PAUSE))

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


@pytest.fixture
def containerd(host: str, tmp_path: Path) -> Iterator[Containerd]:
    """Run containerd on a fresh host; shows after each test that removing everything leaves nothing."""
    assert host
    needs("containerd", "ctr", "runc", "busybox", "nft", "iptables", "unshare", "nsenter")
    write_images(tmp_path / "images.tar")
    before = traces()
    containerd = Containerd(tmp_path)
    try:
        wait_for(containerd.socket.exists)
        containerd.ctr("images", "import", "--snapshotter", "native", str(tmp_path / "images.tar"))
        yield containerd
        for task in containerd.ctr("tasks", "list", "--quiet").split():
            containerd.ctr("tasks", "delete", "--force", task)
    finally:
        containerd.process.terminate()
        containerd.process.wait(PATIENCE)
    assert traces() - before == set()


@pytest.fixture
def kubelet(containerd: Containerd) -> Iterator[Kubelet]:
    """Give a containerd that is ready for pods; removes those that are left."""
    kubelet = Kubelet(containerd.socket)
    wait_for(kubelet.can_run_pods, grpc.RpcError)
    yield kubelet
    for pod in kubelet("ListPodSandbox").items:
        kubelet.stop(pod.id)
        kubelet.remove(pod.id)
    kubelet.channel.close()


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


def test_repair_after_a_flush(kubelet: Kubelet, containerd: Containerd, host: str, outside: str) -> None:
    """The libcni of containerd 1.6 caches no path of the namespace; its mounts are in a mount namespace of its own."""
    pod = kubelet.run("web", TCP)
    cached = json.loads(Path(f"/var/lib/cni/results/kubernetes-{pod}-eth0").read_text())
    assert "netns" not in cached
    enter = ("nsenter", "--target", str(containerd.process.pid), "--mount", "--")
    assert cnitool(containerd.kubernetes, "repair", "kubernetes", enter=enter) == "nothing was missing"
    sh("nft flush ruleset")
    with pytest.raises(AssertionError, match=f"{pod}/eth0: .* is not there, but veth"):
        cnitool(containerd.kubernetes, "repair", "kubernetes")
    assert is_closed(outside, HOST[4], 8080)
    assert ": portmap: put back: " in cnitool(containerd.kubernetes, "repair", "kubernetes", enter=enter)
    for address, namespace in (("127.0.0.1", host), (HOST[4], outside), (HOST[6], outside)):
        assert get(namespace, address, 8080) == "web"
    path = cached["result"]["interfaces"][-1]["sandbox"]
    assert cnitool(containerd.kubernetes, "check", "kubernetes", path, enter=enter) == ""


@pytest.mark.parametrize("inside", [True, False], ids=["in its mount namespace", "outside of it"])
def test_gc_while_pods_start(kubelet: Kubelet, containerd: Containerd, inside: bool) -> None:
    """Nobody has cached those whose ADD is under way, and they must stay whole."""
    enter = ("nsenter", "--target", str(containerd.process.pid), "--mount", "--") if inside else ()
    pods: list[str] = []
    with ThreadPoolExecutor(10) as pool:
        starting = [pool.submit(kubelet.run, f"web{number}") for number in range(20)]
        while not all(one.done() for one in starting):
            assert cnitool(containerd.kubernetes, "gc", "kubernetes", enter=enter) == "nothing to free"
        pods = [one.result() for one in starting]
    assert leases("kubernetes") == sorted(address for pod in pods for address in kubelet.addresses(pod))
    for pod in pods:
        path = json.loads(Path(f"/var/lib/cni/results/kubernetes-{pod}-eth0").read_text())
        path = path["result"]["interfaces"][-1]["sandbox"]
        in_it = ("nsenter", "--target", str(containerd.process.pid), "--mount", "--")
        assert cnitool(containerd.kubernetes, "check", "kubernetes", path, enter=in_it) == ""


def test_pods_reach_each_other(kubelet: Kubelet) -> None:
    first, second = kubelet.run("first"), kubelet.run("second")
    for address in kubelet.addresses(second):
        assert get(kubelet.netns(first), address, 80) == "second"
