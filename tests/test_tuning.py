"""tuning: the configuration and its faults as tables, the verbs on the kernel, and what is kept in files meanwhile."""

from __future__ import annotations

import errno
import json
import os
import posix
import re
import socket
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cnikit import ownership, request
from cnikit.effects import backup
from cnikit.errors import CniError
from cnikit.netlink.rtnetlink import Link
from cnikit.objects import CONTAINER, Make, Remove, Sysctl
from cnikit.plan import Add, Del, apply, render
from cnikit.plugins import tuning
from cnikit.settings import AllMulticast, Mac, Mtu, Promiscuous, QueueLength, Setting
from cnikit.spec import VERSIONS
from tests.conftest import BUILT, Call, ip, needs_reference, sh
from tests.fake_kernel import FakeWorld

FORMER, NEW = "02:00:00:00:00:01", "02:00:00:00:00:0a"
FILTER, ALL_FILTER = "net/ipv4/conf/eth0/arp_filter", "net/ipv4/conf/all/arp_filter"
RMEM = "net/ipv4/tcp_rmem"
EVERYTHING: dict[str, Any] = {
    "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.tcp_rmem": "4096 100000 200000"},
    "mac": "02-00-00-00-00-0A",
    "promisc": True,
    "mtu": 1400,
    "allmulti": True,
    "txQLen": 77,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the dataDir, which is not there yet."""
    return tmp_path / "run" / "tuning"


@pytest.fixture
def new_eth0(new_container: Callable[[], str]) -> Callable[[], str]:
    """Make containers with an interface eth0; each call gives the path of one."""

    def new() -> str:
        netns = new_container()
        add_eth0(netns)
        return netns

    return new


def add_eth0(netns: str) -> None:
    name = Path(netns).name
    sh(f"ip -n {name} link add eth0 address {FORMER} mtu 1300 txqueuelen 500 type veth peer name peer0")


@pytest.fixture
def eth0(new_eth0: Callable[[], str]) -> str:
    """Make one container with an interface eth0; gives its path."""
    return new_eth0()


@pytest.fixture(autouse=True)
def allow_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let there be no allow list, unless the test writes one."""
    path = tmp_path / "allowlist.conf"
    monkeypatch.setattr(tuning, "ALLOW_LIST", str(path))
    return path


def previous(netns: str, version: str = "1.1.0", **keys: Any) -> dict[str, Any]:
    inside = {"name": "eth0", "mac": FORMER, "sandbox": netns, **keys}
    return {"cniVersion": version, "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:99"}, inside]}


def config(folder: Path, netns: str = "/n", version: str = "1.1.0", **keys: Any) -> dict[str, Any]:
    """Return a configuration with these keys and a prevResult."""
    conf = {"cniVersion": version, "name": "net1", "type": "tuning", "dataDir": str(folder)}
    return {**conf, "prevResult": previous(netns, version), **keys}


def call(verb: str, conf: dict[str, Any], netns: str = "", **environ: str) -> Call:
    return Call(tuning.PLUGIN, verb, conf, CNI_NETNS=netns, **environ)


def inside(netns: str) -> dict[str, Any]:
    """Return what tuning can change in a container with eth0."""
    name = Path(netns).name
    link = ip(f"-n {name} -d link show eth0")[0]
    sysctls = (FILTER, ALL_FILTER, RMEM)
    values = sh(f"ip netns exec {name} sysctl -n {' '.join(sysctls)}").splitlines()
    settings = {key: link[key] for key in ("address", "mtu", "promiscuity", "allmulti")}
    # ip does not show an empty queue.
    return {**settings, "txqlen": link.get("txqlen", 0), **dict(zip(sysctls, values, strict=True))}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


def kept(folder: Path, name: str = "c1_eth0.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text())
    return content


def parsed(conf: dict[str, Any], **environ: str) -> tuning.Conf:
    defaults = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/n", "CNI_IFNAME": "eth0"}
    return tuning.parse(request.parse({**defaults, **environ}, json.dumps(conf).encode))


# The plan and the configuration, without a kernel.


def test_the_plan_and_its_opposite() -> None:
    before = backup.Backup("net1", "c1", "eth0", "", 0, {"mac": FORMER, "promisc": False, "mtu": 1300}, {FILTER: "0"})
    objects = tuning.plan("eth0", {FILTER: "1"}, {"mac": "02:00:00:00:00:0a", "promisc": True, "mtu": 1400}, before)
    assert render([Add(what) for what in objects], "/n") == (
        "nsenter --net=/n sysctl -w net/ipv4/conf/eth0/arp_filter=1\n"
        "nsenter --net=/n ip link set eth0 address 02:00:00:00:00:0a\n"
        "nsenter --net=/n ip link set eth0 promisc on\n"
        "nsenter --net=/n ip link set eth0 mtu 1400\n"
    )
    assert render([Del(what) for what in objects], "/n") == (
        "nsenter --net=/n sysctl -w net/ipv4/conf/eth0/arp_filter=0\n"
        "nsenter --net=/n ip link set eth0 address 02:00:00:00:00:01\n"
        "nsenter --net=/n ip link set eth0 promisc off\n"
        "nsenter --net=/n ip link set eth0 mtu 1300\n"
    )
    others = tuning.plan("eth0", {}, {"allmulti": False, "txQLen": 0}, None)
    assert render([Add(what) for what in others], "/n") == (
        "nsenter --net=/n ip link set eth0 allmulticast off\nnsenter --net=/n ip link set eth0 txqueuelen 0\n"
    )


LINK = [
    pytest.param({}, {}, id="nothing"),
    pytest.param(
        {"txQLen": 0, "allmulti": False, "mtu": 68, "promisc": False, "mac": NEW},
        {"mac": NEW, "promisc": False, "mtu": 68, "allmulti": False, "txQLen": 0},
        id="all-in-the-order-they-are-set",
    ),
    pytest.param({"mac": "", "mtu": 0, "promisc": None, "allmulti": None, "txQLen": None}, {}, id="as-good-as-absent"),
    pytest.param({"MAC": NEW, "TxQlen": 5}, {"mac": NEW, "txQLen": 5}, id="keys-in-any-case"),
    pytest.param(
        {
            "promisc": True,
            "mtu": 1400,
            "allmulti": True,
            "txQLen": 5,
            "args": {"cni": {"promisc": False, "mtu": 1500, "allmulti": False, "txQLen": 0, "labels": []}},
        },
        {"promisc": False, "mtu": 1500, "allmulti": False, "txQLen": 0},
        id="args-win",
    ),
    pytest.param({"args": {"cni": {"promisc": True, "mtu": 1500}}}, {"promisc": True, "mtu": 1500}, id="args-alone"),
]


@pytest.mark.parametrize(("keys", "link"), LINK)
def test_link_settings(folder: Path, keys: dict[str, Any], link: dict[str, Any]) -> None:
    found = parsed(config(folder, **keys)).link
    assert list(found.items()) == list(link.items())


MACS = ["02:00:00:00:00:0a", "02:00:00:00:00:0b", "02:00:00:00:00:0c", "02:00:00:00:00:0d"]


@pytest.mark.parametrize("last", range(4), ids=["mac", "CNI_ARGS", "runtimeConfig", "args"])
def test_the_last_mac_wins(folder: Path, last: int) -> None:
    sources: list[dict[str, Any]] = [
        {"mac": MACS[0]},
        {},
        {"runtimeConfig": {"mac": MACS[2]}},
        {"args": {"cni": {"mac": MACS[3]}}},
    ]
    conf: dict[str, Any] = config(folder)
    for source in sources[: last + 1]:
        conf.update(source)
    args = f"IgnoreUnknown=1;K8S_POD_NAME=x;MAC={MACS[1].upper()}" if last >= 1 else ""
    assert parsed(conf, CNI_ARGS=args).link == {"mac": MACS[last]}


SYSCTLS = [
    pytest.param({"net.ipv4.ip_forward": "1"}, None, "eth0", [("net/ipv4/ip_forward", "1")], id="dots"),
    pytest.param({"net/ipv4/ip_forward": "1"}, None, "eth0", [("net/ipv4/ip_forward", "1")], id="slashes"),
    pytest.param(
        {"net.ipv4.conf.IFNAME.arp_filter": " 1\n"}, None, "eth0.5", [("net/ipv4/conf/eth0.5/arp_filter", "1")],
        id="a-dot-in-ifname",
    ),
    pytest.param(
        {"net/ipv4/conf/eth0.5/arp_filter": "1"}, None, "e", [("net/ipv4/conf/eth0.5/arp_filter", "1")],
        id="a-dot-behind-slashes",
    ),
    pytest.param(
        {"net.ipv4.conf.eth0/5.arp_filter": "1"}, None, "e", [("net/ipv4/conf/eth0.5/arp_filter", "1")],
        id="a-slash-behind-dots",
    ),
    pytest.param(
        {"net.ipv4.conf.IFNAME.IFNAME": "1"}, None, "eth0", [("net/ipv4/conf/eth0/IFNAME", "1")], id="the-first-IFNAME"
    ),
    pytest.param({"net.ipv4.tcp_rmem": "1\t2  3"}, None, "e", [("net/ipv4/tcp_rmem", "1\t2  3")], id="blanks-in-it"),
    pytest.param({"net.ipv4.conf.Eth0.x": "1"}, None, "e", [("net/ipv4/conf/Eth0/x", "1")], id="case-matters"),
    pytest.param(
        {"net.a.b": "1", "net.a.c": "2"}, {"net/a/c": "3", "net.a.d": ""}, "e",
        [("net/a/b", "1"), ("net/a/c", "3"), ("net/a/d", "")], id="args-win-one-by-one",
    ),
    pytest.param(None, {"net.a.b": "1"}, "e", [("net/a/b", "1")], id="args-alone"),
    pytest.param(
        {"net.ipv4.conf.e.forwarding": "0", "net.ipv4.conf.all.forwarding": "1", "net.ipv4.ip_forward": "1"}, None, "e",
        [("net/ipv4/conf/all/forwarding", "1"), ("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/e/forwarding", "0")],
        id="what-sets-others-first",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("top", "args", "ifname", "wanted"), SYSCTLS)
def test_sysctls(
    folder: Path, top: dict[str, str] | None, args: dict[str, str] | None, ifname: str, wanted: list[tuple[str, str]]
) -> None:
    conf = config(folder, sysctl=top, args={"cni": {"sysctl": args}})
    assert [(w.name, w.value) for w in parsed(conf, CNI_IFNAME=ifname).sysctls] == wanted


def test_keys_of_the_object_are_found_as_all_keys_are(folder: Path) -> None:
    conf = config(folder, SysCtl={"net.a.b": "1"}, SYSCTL=None, Args={"CNI": {"sysCTL": {"net.a.c": "2"}}})
    assert [w.name for w in parsed(conf).sysctls] == ["net/a/b", "net/a/c"]


# Bad configurations: an error that names the key; neither the kernel nor the disk is touched.

TWICE = '{"net.ipv4.ip_forward": "1", "net.ipv4.ip_forward": "1"}'


def sysctl(name: str, value: Any = "1") -> dict[str, Any]:
    return {"sysctl": {name: value}}


def no_net(path: str) -> str:
    return f"{path}: is the name of no net.* sysctl"


BAD = [
    pytest.param({"mac": 5}, 7, "mac: expected string, got integer", id="mac-type"),
    pytest.param({"mac": "x"}, 7, "mac: 'x' is not a MAC address", id="mac"),
    pytest.param({"mac": "01:00:00:00:00:00"}, 7, "mac: '01:00:00:00:00:00' is no unicast MAC address", id="mac-group"),
    pytest.param({"runtimeConfig": {"mac": "x"}}, 7, "runtimeConfig.mac: 'x' is not a MAC address", id="mac-runtime"),
    pytest.param({"args": {"cni": {"mac": "x"}}}, 7, "args.cni.mac: 'x' is not a MAC address", id="mac-args"),
    pytest.param({"promisc": "yes"}, 7, "promisc: expected boolean, got string", id="promisc-type"),
    pytest.param({"allmulti": 1}, 7, "allmulti: expected boolean, got integer", id="allmulti-type"),
    pytest.param({"mtu": "9k"}, 7, "mtu: expected integer, got string", id="mtu-type"),
    pytest.param({"mtu": True}, 7, "mtu: expected integer, got boolean", id="mtu-boolean"),
    pytest.param({"mtu": 67}, 7, "mtu: 67 is not in 68..65535", id="mtu-low"),
    pytest.param({"mtu": 65536}, 7, "mtu: 65536 is not in 0..65535", id="mtu-high"),
    pytest.param({"mtu": -1}, 7, "mtu: -1 is not in 0..65535", id="mtu-negative"),
    pytest.param({"args": {"cni": {"mtu": 67}}}, 7, "args.cni.mtu: 67 is not in 68..65535", id="mtu-args"),
    pytest.param({"txQLen": -1}, 7, "txQLen: -1 is not in 0..4294967295", id="txqlen-negative"),
    pytest.param({"txQLen": 2**32}, 7, "txQLen: 4294967296 is not in 0..4294967295", id="txqlen-high"),
    pytest.param({"txQLen": 1.5}, 7, "txQLen: expected integer, got number", id="txqlen-type"),
    pytest.param({"args": {"cni": {"txQLen": "5"}}}, 7, "args.cni.txQLen: expected integer, got string", id="txq-args"),
    pytest.param({"args": []}, 7, "args: expected object, got list", id="args-type"),
    pytest.param({"dataDir": 5}, 7, "dataDir: expected string, got integer", id="dataDir-type"),
    pytest.param({"dataDir": "run/x"}, 7, "dataDir: 'run/x' is not absolute", id="dataDir-relative"),
    pytest.param({"sysctl": []}, 7, "sysctl: expected object, got list", id="sysctl-type"),
    pytest.param({"args": {"cni": {"sysctl": []}}}, 7, "args.cni.sysctl: expected object, got list", id="sysctl-args"),
    pytest.param(sysctl("net.a.b", 1), 7, "sysctl.net.a.b: expected string, got integer", id="value-type"),
    pytest.param(sysctl("net.a.b", None), 7, "sysctl.net.a.b: expected string, got null", id="value-null"),
    pytest.param(sysctl("net.a.b", "1\n2"), 7, r"sysctl.net.a.b: '1\n2' is no value of a sysctl", id="value-lines"),
    pytest.param(sysctl("kernel.hostname"), 7, no_net("sysctl.kernel.hostname"), id="not-net"),
    pytest.param(sysctl("network.x"), 7, no_net("sysctl.network.x"), id="nearly-net"),
    pytest.param(sysctl("net"), 7, no_net("sysctl.net"), id="net-alone"),
    pytest.param(sysctl(""), 7, no_net("sysctl."), id="no-name"),
    pytest.param(sysctl("net/../kernel/hostname"), 7, no_net("sysctl.net/../kernel/hostname"), id="up"),
    pytest.param(sysctl("net.//.kernel.hostname"), 7, no_net("sysctl.net.//.kernel.hostname"), id="up-with-dots"),
    pytest.param(sysctl("net...kernel.hostname"), 7, no_net("sysctl.net...kernel.hostname"), id="nothing-between"),
    pytest.param(sysctl("net/./ipv4/ip_forward"), 7, no_net("sysctl.net/./ipv4/ip_forward"), id="here"),
    pytest.param(sysctl("net//ipv4/ip_forward"), 7, no_net("sysctl.net//ipv4/ip_forward"), id="two-slashes"),
    pytest.param(sysctl("/proc/sys/net/a"), 7, no_net("sysctl./proc/sys/net/a"), id="absolute"),
    pytest.param(sysctl("net.ipv4.a\0"), 7, no_net("sysctl.net.ipv4.a\\x00"), id="nul"),
    pytest.param(sysctl("net.ipv4.a\ud800"), 7,
                 "sysctl.net.ipv4.a\ufffd: net/ipv4/a\ufffd in the container: No such file", id="not-utf8"),
    pytest.param(sysctl("net.ipv4.no"), 7, "sysctl.net.ipv4.no: net/ipv4/no in the container: No such file",
                 id="no-such-sysctl"),
    pytest.param(sysctl("net.ipv4.conf"), 7, "sysctl.net.ipv4.conf: net/ipv4/conf in the container: Is a directory",
                 id="sysctl-folder"),
    pytest.param(sysctl("net.ipv4.tcp_rmem.x"), 7,
                 "sysctl.net.ipv4.tcp_rmem.x: net/ipv4/tcp_rmem/x in the container: Not a dir", id="below-a-sysctl"),
    pytest.param({"sysctl": {"net.ipv4.ip_forward": "1", "net/ipv4/ip_forward": "1"}}, 7,
                 "sysctl.net/ipv4/ip_forward: net/ipv4/ip_forward is given twice", id="two-spellings"),
    pytest.param({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.conf.eth0.arp_filter": "0"}}, 7,
                 "sysctl.net.ipv4.conf.eth0.arp_filter: net/ipv4/conf/eth0/arp_filter is given twice",
                 id="IFNAME-twice"),
    pytest.param({"args": {"cni": {"sysctl": {"net.a.b": "1", "net/a/b": "1"}}}}, 7,
                 "args.cni.sysctl.net/a/b: net/a/b is given twice", id="args-twice"),
    pytest.param({"prevResult": None}, 7, "prevResult: is missing", id="no-prevResult"),
    pytest.param({"prevResult": 5}, 7, "prevResult: expected object, got integer", id="prevResult-type"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "code", "msg"), BAD)
def test_bad_configuration(eth0: str, folder: Path, keys: dict[str, Any], code: int, msg: str) -> None:
    before = inside(eth0)
    good = {**EVERYTHING, "sysctl": {"net.ipv4.tcp_rmem": "4096 100000 200000"}}
    got, said = call("ADD", config(folder, eth0, **{**good, **keys}), eth0).error()
    assert got == code
    assert said.startswith(msg)
    assert inside(eth0) == before
    assert not folder.parent.exists()


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_a_missing_prev_result_is_explained(eth0: str, folder: Path, verb: str) -> None:
    failed = call(verb, config(folder, eth0, prevResult=None, mtu=1400), eth0)
    assert failed.error() == (7, "prevResult: is missing: must be called as chained plugin")


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "STATUS"])
@pytest.mark.parametrize("above", [{}, {"args": {}}], ids=["top", "args"])
def test_a_key_written_twice_is_refused(eth0: str, folder: Path, above: dict[str, Any], verb: str) -> None:
    before = inside(eth0)
    mark = {"sysctl": "TWICE"}
    text = json.dumps(config(folder, eth0, **({"args": {"cni": mark}} if above else mark))).replace('"TWICE"', TWICE)
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_NETNS": eth0, "CNI_IFNAME": "eth0"}
    with pytest.raises(CniError) as raised:
        tuning.PLUGIN.serve(request.parse(environ, text.encode))
    path = "args.cni.sysctl" if above else "sysctl"
    assert (raised.value.code, raised.value.msg) == (
        7,
        f"{path}.net.ipv4.ip_forward: net/ipv4/ip_forward is given twice",
    )
    assert inside(eth0) == before


ARGS = [
    pytest.param("MAC=x", "CNI_ARGS: MAC: 'x' is not a MAC address", id="mac"),
    pytest.param("POD=x", "CNI_ARGS: unknown args ['POD']", id="unknown"),
    pytest.param("MAC", "CNI_ARGS: invalid pair 'MAC'", id="no-pair"),
]


@pytest.mark.parametrize(("args", "msg"), ARGS)
def test_bad_arguments(eth0: str, folder: Path, args: str, msg: str) -> None:
    assert call("ADD", config(folder, eth0), eth0, CNI_ARGS=args).error() == (4, msg)
    assert call("DEL", config(folder, eth0), eth0, CNI_ARGS=args).succeeded()


def test_an_mtu_too_small_for_the_addresses_is_refused(eth0: str, folder: Path) -> None:
    result = {**previous(eth0), "ips": [{"address": "fd00::2/64", "interface": 1}]}
    failed = call("ADD", config(folder, eth0, mtu=1000, prevResult=result), eth0)
    assert failed.error() == (7, "mtu: 1000 is too small for IPv6, which needs 1280")
    assert inside(eth0)["mtu"] == 1300


# The allow list.

ALLOWED = [
    pytest.param("net.ipv4.tcp_rmem", "^net.ipv4.tcp_rmem$\n", True, id="whole"),
    pytest.param("net.ipv4.tcp_rmem", "nothing\n\n   ipv4.tcp  \n", True, id="any-line-anywhere-in-the-name"),
    pytest.param("net/ipv4/tcp_rmem", "^net.ipv4.tcp_rmem$", True, id="a-dot-is-any-character"),
    pytest.param("net/ipv4/tcp_rmem", r"^net\.ipv4\.tcp_rmem$", False, id="as-it-is-written"),
    pytest.param("net.ipv4.conf.IFNAME.arp_filter", r"^net\.ipv4\.conf\.IFNAME\.arp_filter$", True, id="IFNAME"),
    pytest.param("net.ipv4.conf.eth0.arp_filter", r"^net\.ipv4\.conf\.IFNAME\.arp_filter$", False, id="no-IFNAME"),
    pytest.param("net.ipv4.tcp_rmem", "^net.ipv6\n", False, id="other"),
    pytest.param("net.ipv4.tcp_rmem", "\n \n", False, id="no-lines"),
    pytest.param("net.ipv4.tcp_rmem", "", False, id="empty"),
]


@pytest.mark.parametrize(("name", "lines", "allowed"), ALLOWED)
@pytest.mark.parametrize("above", ["sysctl", "args"])
def test_allow_list(
    eth0: str, folder: Path, allow_list: Path, name: str, lines: str, allowed: bool, above: str
) -> None:
    allow_list.write_text(lines)
    before = inside(eth0)
    values = {"sysctl": {name: "1" if "arp" in name else "4096 100000 200000"}}
    conf = config(folder, eth0, **(values if above == "sysctl" else {"args": {"cni": values}}))
    if allowed:
        call("ADD", conf, eth0).result()
        assert inside(eth0) != before
        assert call("STATUS", conf).succeeded()
        return
    path = f"sysctl.{name}" if above == "sysctl" else f"args.cni.sysctl.{name}"
    for verb in ("ADD", "STATUS"):
        assert call(verb, conf, eth0).error() == (7, f"{path}: is not allowed by {allow_list}")
    assert inside(eth0) == before
    assert not folder.exists()
    # The reference asks it for ADD alone: what was allowed once can still be checked and removed.
    assert call("CHECK", conf, eth0).error()[0] == 101
    assert call("DEL", conf, eth0).succeeded()


def test_the_allow_list_does_not_concern_link_settings(eth0: str, folder: Path, allow_list: Path) -> None:
    allow_list.write_text("(\n")
    call("ADD", config(folder, eth0, mtu=1400), eth0).result()
    assert inside(eth0)["mtu"] == 1400


def test_an_allow_list_that_is_none_allows_nothing(eth0: str, folder: Path, allow_list: Path) -> None:
    conf = config(folder, eth0, sysctl={"net.ipv4.tcp_rmem": "4096 100000 200000"})
    allow_list.write_text("net\n(\n")
    code, msg = call("ADD", conf, eth0).error()
    assert code == 7
    assert msg.startswith(f"{allow_list}: '(' is no regular expression: ")
    allow_list.unlink()
    allow_list.mkdir()
    assert call("ADD", conf, eth0).error() == (5, f"{allow_list}: Is a directory")


# ADD.


def test_all_of_it_is_set_checked_and_put_back(eth0: str, folder: Path) -> None:
    before = inside(eth0)
    conf = config(folder, eth0, **EVERYTHING)
    assert call("CHECK", conf, eth0).error()[0] == 101
    given = call("ADD", conf, eth0).result()
    assert inside(eth0) == {
        "address": NEW,
        "mtu": 1400,
        "txqlen": 77,
        "promiscuity": 1,
        "allmulti": 1,
        FILTER: "1",
        ALL_FILTER: "0",
        RMEM: "4096\t100000\t200000",
    }
    assert given["interfaces"][1] == {"name": "eth0", "mac": NEW, "mtu": 1400, "sandbox": eth0}
    assert call("CHECK", {**conf, "prevResult": given}, eth0).succeeded()
    assert call("DEL", {**conf, "prevResult": given}, eth0).succeeded()
    assert inside(eth0) == before
    assert files(folder) == []
    assert call("DEL", conf, eth0).succeeded()
    assert inside(eth0) == before


def test_what_was_there_is_kept_in_a_file(eth0: str, folder: Path) -> None:
    before = inside(eth0)
    call("ADD", config(folder, eth0, **EVERYTHING), eth0).result()
    content = kept(folder)
    assert {key: content.pop(key) for key in ("mac", "promisc", "mtu", "allmulti", "txQLen")} == {
        "mac": FORMER,
        "promisc": False,
        "mtu": 1300,
        "allmulti": False,
        "txQLen": 500,
    }
    assert content.pop("sysctl") == {FILTER: "0", RMEM: before[RMEM]}
    boot, _, cookie = content.pop("netns").partition("/")
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert cookie.isdigit()
    index = ip(f"-n {Path(eth0).name} link show eth0")[0]["ifindex"]
    assert content == {"network": "net1", "containerID": "c1", "ifname": "eth0", "index": index}
    assert files(folder) == ["c1_eth0.json"]
    assert (folder / "c1_eth0.json").stat().st_mode & 0o777 == 0o600


def test_only_what_is_configured_is_touched_and_kept(eth0: str, folder: Path) -> None:
    before = inside(eth0)
    call("ADD", config(folder, eth0, txQLen=0), eth0).result()
    assert inside(eth0) == {**before, "txqlen": 0}
    keys = {"mac", "promisc", "mtu", "allmulti", "txQLen", "sysctl"} & kept(folder).keys()
    assert (keys, kept(folder)["sysctl"]) == ({"txQLen", "sysctl"}, {})


def test_nothing_configured_is_nothing_done(eth0: str, folder: Path) -> None:
    before = inside(eth0)
    conf = config(folder, eth0)
    assert call("ADD", conf, eth0).result() == conf["prevResult"]
    assert inside(eth0) == before
    assert not folder.exists()
    assert call("CHECK", conf, eth0).succeeded()
    assert call("DEL", conf, eth0).succeeded()


def test_flags_can_be_switched_off(eth0: str, folder: Path) -> None:
    sh(f"ip -n {Path(eth0).name} link set eth0 promisc on allmulticast on")
    conf = config(folder, eth0, promisc=False, allmulti=False)
    before = inside(eth0)
    call("ADD", conf, eth0).result()
    assert (inside(eth0)["promiscuity"], inside(eth0)["allmulti"]) == (0, 0)
    assert call("CHECK", conf, eth0).succeeded()
    assert call("DEL", conf, eth0).succeeded()
    assert inside(eth0) == before


RESULTS = [
    pytest.param("1.1.0", {}, {"mac": NEW, "mtu": 1400}, {"mac": NEW, "mtu": 1400}, id="1.1.0"),
    pytest.param("1.1.0", {"mtu": 1300}, {"mac": NEW}, {"mac": NEW, "mtu": 1300}, id="1.1.0-mtu-as-it-was"),
    pytest.param("1.0.0", {}, {"mac": NEW, "mtu": 1400}, {"mac": NEW}, id="1.0.0"),
    pytest.param("1.0.0", {"mtu": 1300}, {"mtu": 1400}, {"mac": FORMER, "mtu": 1400}, id="1.0.0-that-lists-one"),
    pytest.param("0.4.0", {}, {"mac": NEW, "mtu": 1400}, {"mac": NEW}, id="0.4.0"),
    pytest.param("0.3.1", {}, {"mtu": 1400}, {"mac": FORMER}, id="0.3.1"),
]


@pytest.mark.parametrize(("version", "listed", "keys", "shown"), RESULTS)
def test_the_result_is_prev_result_with_what_changed(
    eth0: str, folder: Path, version: str, listed: dict[str, Any], keys: dict[str, Any], shown: dict[str, Any]
) -> None:
    result = {
        **previous(eth0, version, **listed),
        "ips": [{"address": "10.0.0.2/24", "interface": 1, **({"version": "4"} if version < "1.0.0" else {})}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}],
        "dns": {"domain": "a.b"},
    }
    given = call("ADD", config(folder, eth0, version, prevResult=result, **keys), eth0).result()
    other, _ = result["interfaces"]
    assert given == {**result, "interfaces": [other, {"name": "eth0", "sandbox": eth0, **shown}]}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version(eth0: str, folder: Path, version: str) -> None:
    oldest = version < "0.3.0"
    result = {"cniVersion": version, "ip4": {"ip": "10.0.0.2/24"}} if oldest else previous(eth0, version)
    conf = config(folder, eth0, version, prevResult=result, **EVERYTHING)
    before = inside(eth0)
    given = call("ADD", conf, eth0).result()
    assert (given["cniVersion"], given.get("ip4")) == (version, result.get("ip4"))
    assert inside(eth0)["address"] == NEW
    if version >= "0.4.0":
        assert call("CHECK", conf, eth0).succeeded()
    assert call("DEL", conf, eth0).succeeded()
    assert inside(eth0) == before


def test_a_result_that_cannot_be_shown_is_refused_before_anything_is_done(eth0: str, folder: Path) -> None:
    before = inside(eth0)
    conf = config(folder, eth0, "0.2.0", prevResult={"cniVersion": "0.2.0"}, mtu=1400)
    code, msg = call("ADD", conf, eth0).error()
    assert (code, msg) == (7, "cniVersion: 0.2.0 has no way to show a result without addresses")
    assert (inside(eth0), folder.exists()) == (before, False)


def test_an_interface_that_is_not_there(container: str, folder: Path) -> None:
    conf = config(folder, container, mtu=1400)
    assert call("ADD", conf, container).error() == (4, f"CNI_IFNAME: there is no eth0 in {container}")
    assert call("CHECK", conf, container).error() == (101, "eth0 is gone")
    assert not folder.exists()


def test_sysctls_need_no_interface(container: str, folder: Path) -> None:
    conf = config(folder, container, sysctl={"net.ipv4.tcp_rmem": "4096 100000 200000"})
    read = f"ip netns exec {Path(container).name} sysctl -n net.ipv4.tcp_rmem"
    before = sh(read)
    call("ADD", conf, container).result()
    assert sh(read).split() == ["4096", "100000", "200000"]
    assert call("DEL", conf, container).succeeded()
    assert sh(read) == before


@pytest.mark.parametrize("keys", [{}, {"mtu": 1400}], ids=["nothing", "something"])
@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_a_namespace_that_is_not_there(host: str, folder: Path, verb: str, keys: dict[str, Any]) -> None:
    assert call(verb, config(folder, **keys), "/nowhere").error() == (8, "CNI_NETNS: /nowhere is not there")
    assert call(verb, config(folder, **keys), host).error()[0] == 8, "nor may it be the host's own"


def test_a_sysctl_that_can_only_be_written_is_set_and_not_put_back(eth0: str, folder: Path) -> None:
    conf = config(folder, eth0, sysctl={"net.ipv4.route.flush": "1"})
    call("ADD", conf, eth0).result()
    assert kept(folder)["sysctl"] == {}
    assert call("DEL", conf, eth0).succeeded()


def test_a_sysctl_that_could_not_be_read_before_is_not_put_back(eth0: str, folder: Path) -> None:
    conf = config(folder, eth0, sysctl={"net.ipv6.conf.IFNAME.stable_secret": "fd00::1"})
    call("ADD", conf, eth0).result()
    assert kept(folder)["sysctl"] == {}
    assert call("DEL", conf, eth0).succeeded()
    secret = sh(f"ip netns exec {Path(eth0).name} sysctl -n net.ipv6.conf.eth0.stable_secret")
    assert secret == "fd00:0000:0000:0000:0000:0000:0000:0001\n"


def test_what_sets_others_is_set_first_and_put_back_first(eth0: str, folder: Path) -> None:
    def disabled() -> list[str]:
        names = "net.ipv6.conf.all.disable_ipv6 net.ipv6.conf.eth0.disable_ipv6 net.ipv6.conf.lo.disable_ipv6"
        return sh(f"ip netns exec {Path(eth0).name} sysctl -n {names}").split()

    sh(f"ip netns exec {Path(eth0).name} sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1")
    assert disabled() == ["0", "1", "0"]
    names = ("net.ipv6.conf.lo.disable_ipv6", "net.ipv6.conf.eth0.disable_ipv6", "net.ipv6.conf.all.disable_ipv6")
    conf = config(folder, eth0, sysctl=dict(zip(names, "011", strict=True)))
    call("ADD", conf, eth0).result()
    assert disabled() == ["1", "1", "0"]
    assert call("CHECK", conf, eth0).succeeded()
    assert call("DEL", conf, eth0).succeeded()
    assert disabled() == ["0", "1", "0"]


# An ADD that fails takes back what it did.


def test_a_value_the_kernel_refuses(eth0: str, folder: Path) -> None:
    before = inside(eth0)
    values = {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.tcp_rmem": "many"}
    failed = call("ADD", config(folder, eth0, sysctl=values, mtu=1400), eth0)
    assert failed.error() == (100, "sysctl -w net/ipv4/tcp_rmem=many: Invalid argument in the container")
    assert inside(eth0) == before
    assert files(folder) == []


class Tuned(FakeWorld):
    """A kernel in memory whose container has an interface eth0 and the sysctls of EVERYTHING."""

    def __init__(self) -> None:
        super().__init__()
        self[CONTAINER].add(Link(2, "eth0", "veth", FORMER, 1300, txqlen=500))
        self[CONTAINER].sysctls.update({FILTER: "0", RMEM: "4096\t131072\t6291456"})

    def tuned(self) -> tuple[object, ...]:
        """Return all tuning can change."""
        return self[CONTAINER].link("eth0"), dict(self[CONTAINER].sysctls)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Tuned:
    """Give a kernel in memory, which the plugin works on."""
    fake = Tuned()
    monkeypatch.setattr(tuning, "open_world", lambda _: fake)
    return fake


Step = Sysctl | Setting
STEPS: tuple[Step, ...] = (
    Sysctl(CONTAINER, FILTER, "1", before="0"),
    Sysctl(CONTAINER, RMEM, "4096 100000 200000", before="4096\t131072\t6291456"),
    Mac(CONTAINER, "eth0", NEW, FORMER),
    Promiscuous(CONTAINER, "eth0", True, False),
    Mtu(CONTAINER, "eth0", 1400, 1300),
    AllMulticast(CONTAINER, "eth0", True, False),
    QueueLength(CONTAINER, "eth0", 77, 500),
)


def test_the_steps_are_these(world: Tuned, folder: Path) -> None:
    call("ADD", config(folder, **EVERYTHING), "/n").result()
    assert world.log == [Make(step) for step in STEPS]
    world.log.clear()
    assert call("DEL", config(folder), "/n").succeeded()
    settings = [step.replace(value=step.before) for step in reversed(STEPS[2:])]
    sysctls = [step.replace(value=step.before) for step in STEPS[:2]]
    assert world.log == [Remove(step) for step in (*settings, *sysctls)]


def _full(*_: object) -> int:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("function", ["open", "write", "rename", "mkdir"])
def test_nothing_is_changed_when_the_file_cannot_be_written(
    world: Tuned, folder: Path, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = posix.open

    def no_new_file(path: str, flags: int, *rest: int, **folder: Any) -> int:
        return _full() if flags & posix.O_CREAT else real(path, flags, *rest, **folder)

    monkeypatch.setattr(posix, function, no_new_file if function == "open" else _full)
    assert call("ADD", config(folder, **EVERYTHING), "/n").error() == (
        5,
        f"{folder}/c1_eth0.json: No space left on device",
    )
    assert world.log == []
    assert files(folder) == []


def test_a_file_that_is_written_in_pieces_is_whole(world: Tuned, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = posix.write
    monkeypatch.setattr(posix, "write", lambda fd, data: real(fd, data[:7]))
    call("ADD", config(folder, **EVERYTHING), "/n").result()
    assert [change.what for change in world.log] == [*STEPS]
    assert (kept(folder)["mtu"], kept(folder)["index"]) == (1300, 2)


Crash = Callable[[int, Callable[[], object]], None]


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch) -> Crash:
    """Give a function that makes a call in a process which is killed when so many steps are done."""

    def crash(steps: int, function: Callable[[], object]) -> None:
        def apply_some(plan: Any, world: Any) -> None:
            apply(plan[:steps], world)
            os._exit(9)

        pid = os.fork()
        if pid == 0:
            monkeypatch.setattr(tuning, "apply", apply_some)
            try:
                function()
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9

    return crash


@pytest.mark.parametrize("steps", range(len(STEPS) + 1))
def test_del_after_a_crash_puts_everything_back(eth0: str, folder: Path, steps: int, crashing: Crash) -> None:
    before = inside(eth0)
    conf = config(folder, eth0, **EVERYTHING)
    crashing(steps, lambda: call("ADD", conf, eth0))
    assert files(folder) == ["c1_eth0.json"]
    assert (inside(eth0) == before) == (steps == 0)
    assert call("DEL", conf, eth0).succeeded()
    assert inside(eth0) == before
    assert files(folder) == []


def test_a_crash_while_the_file_is_written_leaves_nothing_for_long(
    eth0: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = inside(eth0)
    conf = config(folder, eth0, **EVERYTHING)
    monkeypatch.setattr(posix, "rename", lambda *_: os._exit(9))
    if (pid := os.fork()) == 0:
        call("ADD", conf, eth0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert (inside(eth0), files(folder)) == (before, ["c1_eth0.json.new"])
    assert call("DEL", conf, eth0).succeeded()
    assert files(folder) == []


# ADD that finds a file.


def test_a_repeated_add_keeps_the_first_values(eth0: str, folder: Path) -> None:
    before = inside(eth0)
    conf = config(folder, eth0, mtu=1400, sysctl={"net.ipv4.tcp_rmem": "4096 90000 200000"})
    call("ADD", conf, eth0).result()
    first = (folder / "c1_eth0.json").stat().st_ino
    call("ADD", conf, eth0).result()
    assert (folder / "c1_eth0.json").stat().st_ino == first, "there was nothing new to write"
    call("ADD", config(folder, eth0, **{**EVERYTHING, "mtu": 1350}), eth0).result()
    assert (kept(folder)["mtu"], kept(folder)["mac"]) == (1300, FORMER)
    assert kept(folder)["sysctl"] == {FILTER: "0", RMEM: before[RMEM]}
    assert call("DEL", config(folder, eth0), eth0).succeeded()
    assert inside(eth0) == before


def test_a_second_tuning_of_one_list_that_fails_leaves_the_first_ones_file(eth0: str, folder: Path) -> None:
    before = inside(eth0)
    call("ADD", config(folder, eth0, mtu=1400), eth0).result()
    between, file = inside(eth0), kept(folder)
    second = config(folder, eth0, mac=NEW, sysctl={"net.ipv4.tcp_rmem": "many"})
    assert call("ADD", second, eth0).error()[0] == 100
    assert (inside(eth0), kept(folder)) == (between, file)
    assert call("DEL", second, eth0).succeeded()
    assert inside(eth0) == before


def test_a_file_of_an_earlier_namespace_is_not_believed(new_eth0: Callable[[], str], folder: Path) -> None:
    one = new_eth0()
    call("ADD", config(folder, one, mtu=1400), one).result()
    sh(f"ip netns del {Path(one).name}")
    two = new_eth0()
    sh(f"ip -n {Path(two).name} link set eth0 mtu 1350")
    call("ADD", config(folder, two, mtu=1450), two).result()
    assert kept(folder)["mtu"] == 1350
    assert call("DEL", config(folder, two), two).succeeded()
    assert inside(two)["mtu"] == 1350


def test_a_file_of_an_earlier_interface_is_not_believed(eth0: str, folder: Path) -> None:
    call("ADD", config(folder, eth0, mtu=1400), eth0).result()
    sh(f"ip -n {Path(eth0).name} link del eth0")
    add_eth0(eth0)
    sh(f"ip -n {Path(eth0).name} link set eth0 mtu 1350")
    call("ADD", config(folder, eth0, mtu=1450), eth0).result()
    assert kept(folder)["mtu"] == 1350


BROKEN = [
    pytest.param(b"", id="empty"),
    pytest.param(b'{"mtu": 13', id="cut"),
    pytest.param(b"[]", id="no-object"),
    pytest.param(b"\xff", id="no-text"),
    pytest.param(b'{"mtu": "1300"}', id="wrong-type"),
    pytest.param(b'{"mac": "zz"}', id="no-mac"),
    pytest.param(b'{"sysctl": []}', id="sysctls-in-a-list"),
    pytest.param(b'{"sysctl": {"net/ipv4/tcp_rmem": 5}}', id="no-value"),
    pytest.param(b'{"sysctl": {"net/../../../tmp/x": "1"}}', id="way-out"),
    pytest.param(b'{"sysctl": {"kernel/hostname": "x"}}', id="not-of-the-network"),
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_file_that_is_no_backup_is_none(eth0: str, folder: Path, content: bytes) -> None:
    before = inside(eth0)
    folder.mkdir(parents=True)
    (folder / "c1_eth0.json").write_bytes(content)
    assert call("DEL", config(folder, eth0), eth0).succeeded()
    assert (inside(eth0), files(folder)) == (before, [])
    (folder / "c1_eth0.json").write_bytes(content)
    call("ADD", config(folder, eth0, mtu=1400), eth0).result()
    assert kept(folder)["mtu"] == 1300
    assert call("DEL", config(folder, eth0), eth0).succeeded()
    assert inside(eth0) == before


def test_the_reference_writes_no_more_than_it_must(eth0: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "c1_eth0.json").write_text('{\n "mac": "",\n "mtu": 1350\n}')
    before = inside(eth0)
    assert call("DEL", config(folder, eth0), eth0).succeeded()
    assert (inside(eth0), files(folder)) == ({**before, "mtu": 1350}, [])


def test_one_file_name_can_be_that_of_two_attachments(new_container: Callable[[], str], folder: Path) -> None:
    one, two = new_container(), new_container()
    sh(f"ip -n {Path(one).name} link add c mtu 1300 type veth peer name p")
    sh(f"ip -n {Path(two).name} link add b_c mtu 1350 type veth peer name p")
    first = {"CNI_CONTAINERID": "a_b", "CNI_IFNAME": "c"}
    second = {"CNI_CONTAINERID": "a", "CNI_IFNAME": "b_c"}
    call("ADD", config(folder, one, mtu=1400), one, **first).result()
    path = folder / "a_b_c.json"
    code, msg = call("ADD", config(folder, two, mtu=1400), two, **second).error()
    assert (code, msg) == (7, f"dataDir: {path} belongs to container a_b c")
    assert ip(f"-n {Path(two).name} link show b_c")[0]["mtu"] == 1350
    assert call("DEL", config(folder, two), two, **second).succeeded()
    assert path.exists()
    valid = [{"containerID": "a_b", "ifname": "c"}]
    assert call("GC", {**config(folder), "cni.dev/valid-attachments": valid}).succeeded()
    assert path.exists()
    assert call("DEL", config(folder, one), one, **first).succeeded()
    assert ip(f"-n {Path(one).name} link show c")[0]["mtu"] == 1300


# DEL.


def _gone(netns: str) -> str:
    sh(f"ip netns del {Path(netns).name}")
    return netns


def _none(_: str) -> str:
    return ""


GONE = [
    pytest.param(_gone, id="namespace-gone"),
    pytest.param(_none, id="no-namespace"),
    pytest.param(lambda netns: f"{netns}/x", id="a-path-below-a-file"),
]


@pytest.mark.parametrize("gone", GONE)
def test_del_without_a_namespace_leaves_no_file(eth0: str, folder: Path, gone: Callable[[str], str]) -> None:
    call("ADD", config(folder, eth0, **EVERYTHING), eth0).result()
    netns = gone(eth0)
    for _ in range(2):
        assert call("DEL", config(folder, eth0), netns).succeeded()
        assert files(folder) == []


def test_del_without_the_interface_puts_back_the_other_sysctls(eth0: str, folder: Path) -> None:
    name = Path(eth0).name
    before = inside(eth0)
    call("ADD", config(folder, eth0, **EVERYTHING), eth0).result()
    sh(f"ip -n {name} link del eth0")
    assert call("DEL", config(folder, eth0), eth0).succeeded()
    assert files(folder) == []
    assert sh(f"ip netns exec {name} sysctl -n {RMEM}").strip() == before[RMEM]


def test_del_does_not_touch_another_interface_of_the_name(eth0: str, folder: Path) -> None:
    former = inside(eth0)
    call("ADD", config(folder, eth0, **EVERYTHING), eth0).result()
    name = Path(eth0).name
    sh(f"ip -n {name} link del eth0")
    sh(f"ip -n {name} link add eth0 mtu 1350 address 02:00:00:00:00:55 type veth peer name peer0")
    sh(f"ip netns exec {name} sysctl -qw {FILTER}=1")
    before = inside(eth0)
    assert call("DEL", config(folder, eth0), eth0).succeeded()
    assert inside(eth0) == {**before, RMEM: former[RMEM]}
    assert files(folder) == []


def test_del_does_not_touch_another_namespace(new_eth0: Callable[[], str], folder: Path) -> None:
    one, two = new_eth0(), new_eth0()
    call("ADD", config(folder, one, **EVERYTHING), one).result()
    sh(f"ip -n {Path(two).name} link set eth0 mtu 1350")
    before = inside(two)
    assert call("DEL", config(folder), two).succeeded()
    assert inside(two) == before
    assert files(folder) == []


@pytest.mark.parametrize("text", ["/proc/self/ns/mnt", "/etc"])
def test_del_in_what_is_no_namespace_keeps_the_file(eth0: str, folder: Path, text: str) -> None:
    before = inside(eth0)
    call("ADD", config(folder, eth0, mtu=1400), eth0).result()
    assert call("DEL", config(folder, eth0), text).error() == (8, f"CNI_NETNS: {text} is no network namespace")
    assert call("DEL", config(folder, eth0), eth0).succeeded()
    assert inside(eth0) == before
    assert call("DEL", config(folder, eth0), text).succeeded(), "with nothing to put back it is not needed"


def test_del_needs_only_the_folder_of_the_configuration(eth0: str, folder: Path) -> None:
    before = inside(eth0)
    call("ADD", config(folder, eth0, **EVERYTHING), eth0).result()
    bad: dict[str, Any] = {"sysctl": {"kernel.hostname": 5}, "mtu": "x", "mac": [], "prevResult": None, "args": 5}
    assert call("DEL", config(folder, eth0, **bad), eth0, CNI_ARGS="nonsense").succeeded()
    assert inside(eth0) == before


def test_one_interface_of_a_container_is_not_the_other(eth0: str, folder: Path) -> None:
    sh(f"ip -n {Path(eth0).name} link add eth1 mtu 1350 type veth peer name peer1")
    call("ADD", config(folder, eth0, mtu=1400), eth0).result()
    call("ADD", config(folder, eth0, mtu=1450), eth0, CNI_IFNAME="eth1").result()
    assert files(folder) == ["c1_eth0.json", "c1_eth1.json"]
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600, 0o600]
    assert call("DEL", config(folder, eth0), eth0).succeeded()
    assert [link["mtu"] for link in ip(f"-n {Path(eth0).name} link") if link["ifname"] in ("eth0", "eth1")] == [
        1300,
        1450,
    ]
    assert files(folder) == ["c1_eth1.json"]


@pytest.fixture
def stuck(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have one file that cannot be removed."""
    really = posix.unlink

    def unlink(path: str) -> None:
        if path == f"{folder}/c1_eth0.json":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
        really(path)

    monkeypatch.setattr(posix, "unlink", unlink)


@pytest.mark.usefixtures("stuck")
def test_a_file_that_cannot_be_removed_is_told(eth0: str, folder: Path) -> None:
    call("ADD", config(folder, eth0, mtu=1400), eth0).result()
    assert call("DEL", config(folder, eth0), eth0).error() == (5, f"{folder}/c1_eth0.json: Operation not permitted")
    assert inside(eth0)["mtu"] == 1300


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _socket(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(path))


def _long(path: Path) -> None:
    path.write_bytes(b" " * (2 << 20))


@pytest.mark.parametrize("made", [Path.mkdir, _link, _socket, os.mkfifo, _long])
def test_what_is_no_file_of_ours_keeps_no_container(eth0: str, folder: Path, made: Callable[[Path], None]) -> None:
    folder.mkdir(parents=True)
    made(folder / "c1_eth0.json")
    for _ in range(2):
        assert call("DEL", config(folder, eth0), eth0).succeeded()
    assert files(folder) == (["c1_eth0.json"] if made is Path.mkdir else [])
    assert Path("/etc/passwd").stat().st_size > 0


# A value that the kernel does not take back, and that no DEL can change.
@pytest.mark.parametrize("ends", ["given up", "put back"])
def test_what_cannot_be_put_back_is_told_once(eth0: str, folder: Path, ends: str) -> None:
    call("ADD", config(folder, eth0, mtu=1400, sysctl={"net.ipv4.conf.eth0.arp_filter": "1"}), eth0).result()
    path = folder / "c1_eth0.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "mtu": 5}))
    code, msg = call("DEL", config(folder, eth0), eth0).error()
    assert (code, msg.split(":")[0]) == (100, "ip link set eth0 mtu 5")
    assert json.loads(path.read_text())["failed"] is True
    if ends == "put back":
        path.write_text(path.read_text().replace('"mtu": 5', '"mtu": 1300'))
    again = call("DEL", config(folder, eth0), eth0)
    assert (again.status, again.stdout) == (0, "")
    assert again.stderr.startswith("tuning: not put back: ip link set eth0 mtu 5: ") == (ends == "given up")
    assert files(folder) == []
    assert inside(eth0)["mtu"] == (1400 if ends == "given up" else 1300)
    assert sh(f"ip netns exec {Path(eth0).name} sysctl -n net.ipv4.conf.eth0.arp_filter") == "0\n"


def test_an_add_after_a_failed_del_is_told_of_anew(eth0: str, folder: Path) -> None:
    call("ADD", config(folder, eth0, mtu=1400), eth0).result()
    path = folder / "c1_eth0.json"
    path.write_text(path.read_text().replace('"mtu": 1300', '"mtu": 5'))
    for _ in range(2):
        assert call("DEL", config(folder, eth0), eth0).error()[0] == 100
        call("ADD", config(folder, eth0, mtu=1400), eth0).result()
        assert "failed" not in json.loads(path.read_text())


# By whom the file, or a folder above it, could have been written.
OTHERS: dict[str, Callable[[Path], object]] = {
    "their file": lambda folder: os.chown(folder / "c1_eth0.json", 4711, 4711),
    "a file for all": lambda folder: (folder / "c1_eth0.json").chmod(0o606),
    "a file for a group": lambda folder: sh(f"chgrp 4711 {folder}/c1_eth0.json && chmod 660 {folder}/c1_eth0.json"),
    "their folder": lambda folder: os.chown(folder, 4711, 4711),
    "a folder for all": lambda folder: folder.chmod(0o777),
    "their folder above": lambda folder: os.chown(folder.parent, 4711, 4711),
    "a folder above for all": lambda folder: folder.parent.chmod(0o777),
}


@pytest.mark.parametrize("given_away", OTHERS.values(), ids=OTHERS)
def test_what_another_user_could_write_is_not_followed(
    eth0: str, folder: Path, given_away: Callable[[Path], object]
) -> None:
    call("ADD", config(folder, eth0, mtu=1400), eth0).result()
    given_away(folder)
    done = call("DEL", config(folder, eth0), eth0)
    assert (done.status, done.stdout, files(folder)) == (0, "", [])
    why = r"tuning: /\S+ (belongs to user 4711|can be written by other users), so \S+ is not followed\n"
    assert re.fullmatch(why, done.stderr)
    assert inside(eth0)["mtu"] == 1400


@pytest.mark.parametrize("given_away", list(OTHERS)[3:])
def test_nothing_is_kept_where_another_user_could_write(eth0: str, folder: Path, given_away: str) -> None:
    folder.mkdir(parents=True)
    OTHERS[given_away](folder)
    code, msg = call("ADD", config(folder, eth0, mtu=1400), eth0).error()
    assert (code, msg.startswith(f"{folder}/c1_eth0.json: ")) == (5, True)
    assert "belongs to user 4711" in msg or "can be written by other users" in msg
    assert (inside(eth0)["mtu"], files(folder)) == (1300, [])


def test_a_sticky_folder_for_all_is_as_good_as_ours(eth0: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o1777)
    call("ADD", config(folder, eth0, mtu=1400), eth0).result()
    assert call("DEL", config(folder, eth0), eth0).succeeded()
    assert inside(eth0)["mtu"] == 1300


def test_a_name_too_long_for_a_file(eth0: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    conf, environ = config(folder, eth0, mtu=1400), {"CNI_CONTAINERID": "c" * 250}
    code, msg = call("ADD", conf, eth0, **environ).error()
    assert (code, msg.endswith(": File name too long")) == (5, True)
    assert inside(eth0)["mtu"] == 1300
    assert call("DEL", conf, eth0, **environ).succeeded()


# CHECK.

CHANGES = [
    pytest.param("sysctl -qw net.ipv4.conf.eth0.arp_filter=0", f"sysctl {FILTER} is 0, not 1", id="sysctl"),
    pytest.param("ip link set eth0 address 02:00:00:00:00:33",
                 "eth0 has address 02:00:00:00:00:33, not address 02:00:00:00:00:0a", id="mac"),
    pytest.param("ip link set eth0 promisc off", "eth0 has promisc off, not promisc on", id="promisc"),
    pytest.param("ip link set eth0 mtu 1399", "eth0 has mtu 1399, not mtu 1400", id="mtu"),
    pytest.param("ip link set eth0 allmulticast off", "eth0 has allmulticast off, not allmulticast on", id="allmulti"),
    pytest.param("ip link set eth0 txqueuelen 78", "eth0 has txqueuelen 78, not txqueuelen 77", id="txqlen"),
    pytest.param("ip link del eth0", f"sysctl {FILTER} cannot be read: No such file or directory", id="link"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "fault"), CHANGES)
def test_check_finds_what_changed(eth0: str, folder: Path, command: str, fault: str) -> None:
    conf = config(folder, eth0, **EVERYTHING)
    call("ADD", conf, eth0).result()
    assert call("CHECK", conf, eth0).succeeded()
    sh(f"ip netns exec {Path(eth0).name} {command}")
    assert call("CHECK", conf, eth0).error() == (101, fault)


def test_check_does_not_ask_for_what_is_not_configured(eth0: str, folder: Path) -> None:
    conf = config(folder, eth0, mtu=1400)
    call("ADD", conf, eth0).result()
    sh(f"ip -n {Path(eth0).name} link set eth0 promisc on allmulticast on txqueuelen 9 address 02:00:00:00:00:33")
    assert call("CHECK", conf, eth0).succeeded()
    assert call("CHECK", {**conf, "promisc": False}, eth0).error() == (101, "eth0 has promisc on, not promisc off")


def test_check_reports_everything(eth0: str, folder: Path) -> None:
    failed = call("CHECK", config(folder, eth0, mtu=1400, txQLen=5, promisc=True), eth0)
    assert failed.error() == (101, "eth0 has promisc off, not promisc on")
    assert failed.document["details"] == ("eth0 has mtu 1300, not mtu 1400; eth0 has txqueuelen 500, not txqueuelen 5")


# GC and STATUS.


def gc(folder: Path, *valid: tuple[str, str], **keys: Any) -> Call:
    listed = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
    return call("GC", {**config(folder), "cni.dev/valid-attachments": listed, **keys})


def test_gc_removes_the_files_of_this_networks_attachments_that_are_gone(eth0: str, folder: Path) -> None:
    for container in ("c1", "c2"):
        call("ADD", config(folder, eth0, mtu=1400), eth0, CNI_CONTAINERID=container).result()
    call("ADD", config(folder, eth0, mtu=1400, name="net2"), eth0, CNI_CONTAINERID="c3").result()
    (folder / "c4_eth0.json").write_text('{\n "mtu": 1500\n}')  # the reference's
    (folder / "c5_eth0.json").write_text("rubbish")
    (folder / "notes").write_bytes((folder / "c2_eth0.json").read_bytes())
    others = ["c3_eth0.json", "c4_eth0.json", "c5_eth0.json", "notes"]
    assert gc(folder, ("c1", "eth0"), ("c2", "eth0")).succeeded()
    assert files(folder) == ["c1_eth0.json", "c2_eth0.json", *others]
    assert gc(folder, ("c1", "eth0"), ("c2", "eth1")).succeeded()
    assert files(folder) == ["c1_eth0.json", *others]
    assert gc(folder).succeeded()
    assert files(folder) == others


@pytest.mark.parametrize("is_alive", [True, False])
def test_gc_that_keeps_the_living_keeps_the_file_of_one_with_a_tagged_link(
    host: str, eth0: str, folder: Path, is_alive: bool
) -> None:
    assert host
    call("ADD", config(folder, eth0, mtu=1400), eth0).result()
    attachment = request.Attachment("net1", "c1", "eth0")
    name, tag = ownership.host_ends(attachment)[0], ownership.tag(attachment)
    sh(f"ip link add {name} type bridge")
    sh(f"ip link set {name} alias {tag if is_alive else 'other'}")
    assert gc(folder, **{ownership.KEEPS_LIVING: True}).succeeded()
    assert files(folder) == (["c1_eth0.json"] if is_alive else [])


@pytest.mark.usefixtures("stuck")
def test_gc_goes_on_past_a_fault(eth0: str, folder: Path) -> None:
    for container in ("c1", "c2"):
        call("ADD", config(folder, eth0, mtu=1400), eth0, CNI_CONTAINERID=container).result()
    (folder / "c0_eth0.json").mkdir()
    assert gc(folder).error() == (5, f"{folder}/c1_eth0.json: Operation not permitted")
    assert files(folder) == ["c0_eth0.json", "c1_eth0.json"]


def test_no_folder_is_no_files(folder: Path) -> None:
    for _ in range(2):
        assert gc(folder).succeeded()
        assert call("DEL", config(folder)).succeeded()
        folder.parent.write_text("")  # nor can there be one


def test_gc_without_a_list(folder: Path) -> None:
    assert call("GC", config(folder)).error() == (7, "cni.dev/valid-attachments: is missing")


def test_status(folder: Path) -> None:
    assert call("STATUS", config(folder, prevResult=None, **EVERYTHING), CNI_IFNAME="").succeeded()
    assert not folder.parent.exists()
    assert call("STATUS", config(folder, mtu="x")).error() == (7, "mtu: expected integer, got string")
    folder.parent.write_text("")
    failed = call("STATUS", config(folder))
    assert failed.error() == (50, f"former values cannot be kept: {folder}: Not a directory")


# With the reference's executable, over each other's files.


def reference(verb: str, conf: dict[str, Any], netns: str) -> str:
    """Run the reference's tuning; return what it prints."""
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
    done = subprocess.run(
        [needs_reference() / "tuning"],
        env={**environ, "CNI_PATH": str(BUILT)},
        input=json.dumps(conf),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


# txQLen came to it later than the version that Debian has.
REFERENCES = {key: value for key, value in EVERYTHING.items() if key not in ("sysctl", "txQLen")}


@pytest.mark.all
@pytest.mark.parametrize("key", [*REFERENCES, "all"])
def test_the_reference_puts_back_from_our_file(eth0: str, folder: Path, key: str) -> None:
    before = inside(eth0)
    keys = REFERENCES if key == "all" else {key: REFERENCES[key]}
    conf = config(folder, eth0, "1.0.0", **keys)
    call("ADD", conf, eth0).result()
    assert inside(eth0) != before
    assert reference("DEL", conf, eth0) == ""
    assert inside(eth0) == before
    assert files(folder) == []


@pytest.mark.all
@pytest.mark.parametrize("key", [*REFERENCES, "all"])
def test_we_put_back_from_the_references_file(eth0: str, folder: Path, key: str) -> None:
    before = inside(eth0)
    keys = REFERENCES if key == "all" else {key: REFERENCES[key]}
    conf = config(folder, eth0, "1.0.0", **keys)
    reference("ADD", conf, eth0)
    assert inside(eth0) != before
    assert call("DEL", conf, eth0).succeeded()
    assert inside(eth0) == before
    assert files(folder) == []


@pytest.mark.all
def test_our_add_after_the_references_keeps_the_references_values(eth0: str, folder: Path) -> None:
    before = inside(eth0)
    reference("ADD", config(folder, eth0, "1.0.0", mtu=1400), eth0)
    call("ADD", config(folder, eth0, **EVERYTHING), eth0).result()
    assert call("DEL", config(folder, eth0), eth0).succeeded()
    assert inside(eth0) == before


@pytest.mark.all
def test_both_keep_the_same_values_and_give_the_same_result(new_eth0: Callable[[], str], folder: Path) -> None:
    ours, theirs = new_eth0(), new_eth0()
    given = call("ADD", config(folder / "ours", ours, "1.0.0", **EVERYTHING), ours).result()
    conf = {**config(folder / "theirs", theirs, "1.0.0", **EVERYTHING)}
    printed = json.loads(reference("ADD", conf, theirs))
    file = json.loads((folder / "theirs" / "c1_eth0.json").read_text())
    assert {key: kept(folder / "ours")[key] for key in file} == file
    # It repeats the spelling of the configuration, and takes the host's interface of that name for the container's.
    printed["interfaces"][1].update(mac=NEW, sandbox=ours)
    assert given["interfaces"][1] == printed["interfaces"][1]
    assert {**inside(ours), "txqlen": 0} == {**inside(theirs), "txqlen": 0}


@pytest.mark.all
@pytest.mark.parametrize(("key", "value"), [("mtu", 1400), ("promisc", True), ("allmulti", True), ("mac", NEW)])
def test_the_reference_finds_what_we_set(eth0: str, folder: Path, key: str, value: Any) -> None:
    conf = config(folder, eth0, "1.0.0", **{key: value})
    call("ADD", conf, eth0).result()
    assert reference("CHECK", conf, eth0) == ""
