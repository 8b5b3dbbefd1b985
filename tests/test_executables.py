"""The built executables, called as a runtime calls them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BUILT, ip


def config(networks: Path, **keys: Any) -> dict[str, Any]:
    ranges = [[{"subnet": "10.11.0.0/24"}], [{"subnet": "fd00:11::/64"}]]
    ipam = {"type": "host-local", "dataDir": str(networks), "ranges": ranges}
    bridge = {"type": "bridge", "bridge": "br1", "isDefaultGateway": True, "ipam": ipam}
    return {"cniVersion": "1.1.0", "name": "net1", **bridge, **keys}


def start(
    folder: Path, verb: str, conf: dict[str, Any], netns: str = "", container: str = "c1", **environ: str
) -> subprocess.Popen[str]:
    variables = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
    process = subprocess.Popen(
        [folder / conf["type"]],
        env={**variables, "CNI_PATH": str(folder), **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    process.stdin.write(json.dumps(conf))
    process.stdin.close()
    return process


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    assert process.stdout
    with process.stdout as stdout:
        out = stdout.read()
    return process.wait(), out


def run(folder: Path, verb: str, conf: dict[str, Any], netns: str = "", **environ: str) -> tuple[int, str]:
    return finish(start(folder, verb, conf, netns, **environ))


def leases(networks: Path) -> list[str]:
    return sorted(file.name for file in (networks / "net1").glob("*[.:]*[0-9]") if file.name[0] in "1f")


def test_every_verb(host: str, container: str, networks: Path) -> None:
    assert host
    conf = config(networks)
    assert run(BUILT, "STATUS", conf) == (0, "")
    status, out = run(BUILT, "ADD", conf, container)
    assert status == 0
    assert [entry["address"] for entry in json.loads(out)["ips"]] == ["10.11.0.2/24", "fd00:11::2/64"]
    assert leases(networks) == ["10.11.0.2", "fd00:11::2"]
    checked = {**conf, "prevResult": json.loads(out)}
    assert run(BUILT, "CHECK", checked, container) == (0, "")
    valid = [{"containerID": "c1", "ifname": "eth0"}]
    assert run(BUILT, "GC", {**conf, "cni.dev/valid-attachments": valid}) == (0, "")
    assert run(BUILT, "CHECK", checked, container) == (0, "")
    assert run(BUILT, "DEL", checked, container) == (0, "")
    assert run(BUILT, "DEL", checked, container) == (0, "")
    assert leases(networks) == []
    assert [link["ifname"] for link in ip("link")] == ["lo", "br1"]
    run(BUILT, "ADD", conf, container)
    assert run(BUILT, "GC", {**conf, "cni.dev/valid-attachments": []}) == (0, "")
    assert leases(networks) == []
    assert [link["ifname"] for link in ip("link")] == ["lo", "br1"]


def test_the_first_containers_of_a_network_may_come_all_at_once(
    host: str, new_container: Callable[[], str], networks: Path
) -> None:
    assert host
    conf = config(networks)
    sandboxes = [new_container() for _ in range(12)]
    calls = [start(BUILT, "ADD", conf, sandbox, f"c{n}") for n, sandbox in enumerate(sandboxes)]
    done = [finish(call) for call in calls]
    assert [status for status, _ in done] == [0] * 12, done
    addresses = [entry["address"] for _, out in done for entry in json.loads(out)["ips"]]
    assert len(set(addresses)) == 24
    gateways = [info["local"] for info in ip("addr show br1")[0]["addr_info"] if info["scope"] == "global"]
    assert gateways == ["10.11.0.1", "fd00:11::1"]
    calls = [start(BUILT, "DEL", conf, sandbox, f"c{n}") for n, sandbox in enumerate(sandboxes)]
    assert [finish(call) for call in calls] == [(0, "")] * 12
    assert leases(networks) == []
    assert [link["ifname"] for link in ip("link")] == ["lo", "br1"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Give a copy of the suite, to be changed."""
    return Path(shutil.copytree(BUILT, tmp_path / "cni"))


def test_no_call_looks_into_the_networks_sysctls(
    host: str, new_container: Callable[[], str], networks: Path, tmp_path: Path
) -> None:
    """Each namespace has files of its own there by the same names, and the kernel searches those of all."""
    assert host
    ranges = [[{"subnet": "10.11.0.0/24"}]]
    conf = config(networks, ipMasq=True, ipam={"type": "host-local", "dataDir": str(networks), "ranges": ranges})
    mappings = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    portmap = {**conf, "type": "portmap", "runtimeConfig": {"portMappings": mappings}}
    one, two = new_container(), new_container()
    result = json.loads(finish(start(BUILT, "ADD", conf, one, "c0"))[1])
    for verb in ("ADD", "DEL"):  # the first of a host sets what is the host's
        assert finish(start(BUILT, verb, {**portmap, "prevResult": result}, one, "c0"))[0] == 0
    trace = tmp_path / "trace"
    folder = tmp_path / "traced"
    folder.mkdir()
    for name in ("bridge", "portmap"):
        script = f"#!/bin/sh\nexec strace -f -A -e trace=%file -o {trace} {BUILT / name}\n"
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    environ = {"CNI_PATH": str(BUILT), "PATH": os.environ["PATH"]}
    status, out = run(folder, "ADD", conf, two, **environ)
    assert status == 0
    result = json.loads(out)
    for verb, given in (("ADD", portmap), ("DEL", portmap), ("DEL", conf)):
        assert run(folder, verb, {**given, "prevResult": result}, two, **environ)[0] == 0
    opened = trace.read_text()
    assert opened.count("execve(") >= 4
    assert re.findall(r"/proc/sys/net/\S*", opened) == []


def test_our_own_delegate_runs_inside(host: str, container: str, networks: Path, copy: Path) -> None:
    assert host
    # What cannot be executed can only have run inside.
    (copy / "host-local").chmod(0o644)
    status, out = run(copy, "ADD", config(networks), container)
    assert (status, leases(networks)) == (0, ["10.11.0.2", "fd00:11::2"]), out


@pytest.mark.parametrize("kind", ["bridge", "cnitool"])
def test_another_kind_of_plugin_is_no_delegate(host: str, container: str, networks: Path, kind: str) -> None:
    assert host
    status, out = run(BUILT, "ADD", config(networks, ipam={"type": kind}), container)
    assert (status, json.loads(out)["code"]) == (1, 7)
    assert json.loads(out)["msg"] == f"ipam.type: {kind} is no ipam plugin"


OTHERS = '#!/bin/sh\necho \'{"ips": [{"address": "10.77.0.5/24"}]}\'\n'


def foreign(folder: Path, name: str) -> None:
    (folder / name).write_text(OTHERS)
    (folder / name).chmod(0o755)


def test_another_suites_delegate_in_its_place_is_executed(
    host: str, container: str, networks: Path, copy: Path
) -> None:
    assert host
    (copy / "host-local").unlink()
    foreign(copy, "host-local")
    status, out = run(copy, "ADD", config(networks), container)
    assert (status, json.loads(out)["ips"][0]["address"]) == (0, "10.77.0.5/24")


def test_another_suites_delegate_found_first_is_executed(
    host: str, container: str, networks: Path, tmp_path: Path
) -> None:
    assert host
    foreign(tmp_path, "host-local")
    status, out = run(BUILT, "ADD", config(networks), container, CNI_PATH=f"{tmp_path}:{BUILT}")
    assert (status, json.loads(out)["ips"][0]["address"]) == (0, "10.77.0.5/24")


def test_a_delegate_that_mixes_families_is_refused_and_released(
    host: str, container: str, networks: Path, tmp_path: Path
) -> None:
    assert host
    script = f"#!/bin/sh\necho $CNI_COMMAND >> {tmp_path}/calls\n"
    script += 'echo \'{"ips": [{"address": "fd00::5/64", "gateway": "10.0.0.1"}]}\'\n'
    (tmp_path / "other").write_text(script)
    (tmp_path / "other").chmod(0o755)
    status, out = run(BUILT, "ADD", config(networks, ipam={"type": "other"}), container, CNI_PATH=str(tmp_path))
    msg = "ipam.type: other gave fd00::5/64 a gateway of the other family, 10.0.0.1"
    assert (status, json.loads(out)["code"], json.loads(out)["msg"]) == (1, 102, msg)
    assert (tmp_path / "calls").read_text().split() == ["ADD", "DEL"]


def test_a_result_nobody_reads_is_a_failure(host: str, container: str, networks: Path) -> None:
    assert host
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [BUILT / "bridge"],
            env={
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": "c1",
                "CNI_NETNS": container,
                "CNI_IFNAME": "eth0",
                "CNI_PATH": str(BUILT),
            },
            input=json.dumps(config(networks)).encode(),
            stdout=full,
            check=False,
        )
    assert done.returncode == 1


def test_the_examples_work(host: str, new_container: Callable[[], str], tmp_path: Path) -> None:
    assert host
    examples = Path(__file__).parent.parent / "conf-examples"
    for file in sorted(examples.glob("*.conflist")):
        sandbox = new_container()
        name = json.loads(file.read_text())["name"]
        environ = {**os.environ, "NETCONFPATH": str(examples), "CNI_PATH": str(BUILT)}
        for verb in ("add", "check", "del"):
            command = [str(BUILT / "cnitool"), verb, name, sandbox, "--cache", str(tmp_path)]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, ""), f"{verb} {file.name}"
        assert [link["ifname"] for link in ip(f"-n {Path(sandbox).name} link")] == ["lo"]
