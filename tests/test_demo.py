"""The demonstration and the picture it draws."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnikit.cli import demo
from cnikit.cli.drawing import draw
from cnikit.plugins import bridge, portmap
from tests.conftest import Call, sh


def test_the_demonstration_shows_all_and_leaves_nothing() -> None:
    state = "ip -d link; ip addr; ls -a /run/netns /var/lib; nft list ruleset"
    before = sh(state)
    done = subprocess.run(
        [sys.executable, "-m", "cnikit.cli.demo"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("answered") == 8
    assert done.stdout.count('"sandbox": "/run/netns/') == 2
    lines = done.stdout.splitlines()
    for line in (
        "└── uplink  192.0.2.1/24  2001:db8::1/64 ── eth0  192.0.2.2/24  2001:db8::2/64  in outside",
        "published    tcp 8080 -> 10.93.0.2:80  [fd00:93::2]:80",
        "masqueraded  10.93.0.2  fd00:93::2",
        "web -> http://192.0.2.2/: this is outside, you are 192.0.2.1",
        "web -> http://[2001:db8::2]/: this is outside, you are 2001:db8::1",
        "outside -> http://10.93.0.2/: Network is unreachable",
        "outside -> http://192.0.2.1:8080/: this is web, you are 192.0.2.2",
        "outside -> http://[2001:db8::1]:8080/: this is web, you are 2001:db8::2",
        "outside -> http://192.0.2.1:8080/: Connection refused",
        *(f"{what}: none" for what in ("links of the host", "leases", "cached results", "nftables elements")),
        *(f"links of {name}: none" for name in ("app", "db", "web")),
    ):
        assert line in lines
    assert "10.88.0.3/16  fd00:88::3/64  in db" in done.stdout
    assert sh(state) == before


def test_a_fetch_that_goes_another_way_ends_the_demonstration(new_container: Callable[[], str]) -> None:
    name = Path(new_container()).name
    demo.fetch(name, "127.0.0.1", 80, "Connection refused")
    with pytest.raises(SystemExit, match="this should be: hello"):
        demo.fetch(name, "127.0.0.1", 80, "hello")


def test_elements_of_attachments_are_seen_in_whatever_table(host: str) -> None:
    assert host
    assert demo.tags() == []
    sh("nft 'add table bridge b; add set bridge b s { type inet_service; }'")
    sh("""nft 'add element bridge b s { 1 comment "no attachment", 2 comment "cni:net/id/eth0" }'""")
    assert demo.tags() == ["cni:net/id/eth0"]


@pytest.mark.parametrize(
    ("left", "shown"),
    [
        ("", ""),
        ("networks/example/10.88.0.2", "leases: 10.88.0.2"),
        ("networks/example/fd00:88::2", "leases: fd00:88::2"),
        ("networks/example/last_reserved_ip.0", ""),
        ("results/example-id-eth0", "cached results: example-id-eth0"),
        ("tag", "nftables elements: tag"),
        ("link of the host", "links of the host: veth1"),
        ("link of web", "links of web: eth0"),
    ],
)
def test_what_is_left_is_named_and_a_fault(
    left: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    links = {"": ["lo", "uplink", "cni0", "cni-portmap0"], "app": ["lo"], "db": ["lo"], "web": ["lo"]}
    links[""] += ["veth1"] * (left == "link of the host")
    links["web"] += ["eth0"] * (left == "link of web")
    monkeypatch.setattr(demo, "links_of", lambda name="": links[name])
    monkeypatch.setattr(demo, "tags", lambda: ["tag"] * (left == "tag"))
    monkeypatch.setattr(demo, "LEASES", tmp_path / "networks")
    monkeypatch.setattr(demo, "RESULTS", tmp_path / "results")
    (tmp_path / "networks" / "example").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    if "/" in left:
        (tmp_path / left).touch()
    if shown:
        with pytest.raises(SystemExit, match="something is left"):
            demo.prove()
    else:
        demo.prove()
    lines = [line for line in capsys.readouterr().out.splitlines()[:-1] if not line.endswith(": none")]
    assert lines == [shown] * bool(shown)


def test_drawing(host: str, new_container: Callable[[], str]) -> None:
    assert host
    one, two = new_container(), new_container()
    for number, (sandbox, name) in enumerate(((one, "br1"), (two, "br1"), (two, "br2")), 2):
        ipam = {"type": "static", "addresses": [{"address": f"10.1.0.{number}/24"}]}
        conf: dict[str, Any] = {"cniVersion": "1.1.0", "name": name, "type": "bridge", "bridge": name, "ipam": ipam}
        Call(bridge.PLUGIN, "ADD", conf, CNI_NETNS=sandbox, CNI_IFNAME=f"eth{number}").result()
    sh("ip addr add 10.1.0.1/24 dev br1")
    ends = sh("bridge -o link | sed 's/^[0-9]*: \\([^@:]*\\).*/\\1/'").split()
    assert draw({"one": one}) == (
        "host\n"
        "├── br1  10.1.0.1/24\n"
        f"│   ├── {ends[0]} ── eth2  10.1.0.2/24  in one\n"
        f"│   └── {ends[1]} ── ?\n"
        "└── br2\n"
        f"    └── {ends[2]} ── ?"
    )
    assert f"│   └── {ends[1]} ── eth3  10.1.0.3/24  in two\n" in draw({"one": one, "two": two})


def test_drawing_of_a_wire_without_a_bridge(host: str, new_container: Callable[[], str]) -> None:
    assert host
    outside = new_container()
    sh(f"ip link add up0 type veth peer eth0 netns {Path(outside).name}")
    sh(f"ip addr add 192.0.2.1/24 dev up0; ip -n {Path(outside).name} addr add 192.0.2.2/24 dev eth0")
    assert draw({}) == "host"
    assert draw({"outside": outside}) == "host\n└── up0  192.0.2.1/24 ── eth0  192.0.2.2/24  in outside"


def test_drawing_of_what_is_translated(host: str, new_container: Callable[[], str]) -> None:
    assert host
    sandbox = new_container()
    addresses = [{"address": address} for address in ("10.1.0.2/24", "fd00:1::2/64")]
    conf: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "bridge": "br1", "isGateway": True, "ipMasq": True}
    conf["ipam"] = {"type": "static", "addresses": addresses}
    result = Call(bridge.PLUGIN, "ADD", {**conf, "type": "bridge"}, CNI_NETNS=sandbox).result()
    ports = [
        {"hostPort": 8080, "containerPort": 80},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
        *({"hostPort": port, "containerPort": port, "hostIP": "::"} for port in (9000, 9001)),
    ]
    conf = {**conf, "type": "portmap", "prevResult": result, "runtimeConfig": {"portMappings": ports}}
    Call(portmap.PLUGIN, "ADD", conf, CNI_NETNS=sandbox).result()
    assert sorted(draw({}).partition("\n\n")[2].splitlines()) == [
        "masqueraded  10.1.0.2  fd00:1::2",
        "published    tcp 8080 -> 10.1.0.2:80  [fd00:1::2]:80",
        "published    tcp ::/0 9000-9001 -> fd00:1::2",
        "published    udp 192.0.2.1 53 -> 10.1.0.2:53",
    ]
