"""The demonstration and the picture it draws."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

from cnikit.cli.drawing import draw
from cnikit.plugins import bridge
from tests.conftest import Call, sh


def test_the_demonstration_shows_all_and_leaves_nothing() -> None:
    before = sh("ip -d link; ip addr; ls -a /run/netns /var/lib")
    done = subprocess.run(
        [sys.executable, "-m", "cnikit.cli.demo"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("answered") == 8
    assert done.stdout.count('"sandbox": "/run/netns/') == 2
    assert "10.88.0.3/16  fd00:88::3/64  in db" in done.stdout
    for what in ("links of the host", "leases", "cached results", "links of web", "links of db"):
        assert f"{what}: none" in done.stdout
    assert sh("ip -d link; ip addr; ls -a /run/netns /var/lib") == before


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
