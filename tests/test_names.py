"""Names that Linux takes and others cannot read: what is made of them, and what was made of them before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cnikit import execution, ownership, spec
from cnikit.attachments import Attachment as Named
from cnikit.attachments import Cache
from cnikit.cli import cnitool
from cnikit.effects import evidence
from cnikit.errors import CniError
from cnikit.networks import parse
from cnikit.plugins import bridge, firewall, portmap
from cnikit.request import Attachment
from tests.conftest import Call, sh

NAMES = ('e"0', "e\\0", "e'0", "e\x1b[2J", "e\x01\x7f", "é0", "e$0`id`", 'e"};', "e*", "~e", "e\u202e0", "e\u009b1")


def list_of(netns: str, ifname: str, **keys: Any) -> tuple[dict[str, Any], dict[str, str]]:
    ipam = {"type": "static", "addresses": [{"address": "10.47.0.2/24"}, {"address": "fd00:47::2/64"}]}
    mappings = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    conf = {"cniVersion": "1.1.0", "name": "net1", "bridge": "br1", "isGateway": True, "ipMasq": True, "ipam": ipam}
    conf |= {"macspoofchk": True, "ingressPolicy": "same-bridge", "runtimeConfig": {"portMappings": mappings}, **keys}
    return conf, {"CNI_NETNS": netns, "CNI_IFNAME": ifname}


PLUGINS = (bridge.PLUGIN, portmap.PLUGIN, firewall.PLUGIN)


def run(verb: str, conf: dict[str, Any], environ: dict[str, str]) -> dict[str, Any]:
    """Run a verb of all plugins; return the last result."""
    result: dict[str, Any] = conf.get("prevResult", {})
    for plugin in PLUGINS:
        given = {**conf, "type": plugin.name, **({"prevResult": result} if result else {})}
        call = Call(plugin, verb, given, **environ)
        assert call.status == 0, call.stdout
        result = call.document if verb == "ADD" else result
    return result


@contextmanager
def tags_of_former_days(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as before:
        before.setattr(spec, "is_plain", lambda _: True)
        yield


def listed() -> str:
    return sh("nft list ruleset; ip -d link; bridge -d link")


@pytest.mark.parametrize("ifname", NAMES)
def test_what_is_listed_can_be_read_back(host: str, container: str, ifname: str) -> None:
    assert host
    conf, environ = list_of(container, ifname)
    result = run("ADD", conf, environ)
    assert result["interfaces"][-1]["name"] == ifname
    assert all(line.replace("\t", " ").isprintable() for line in listed().split("\n"))
    rules = sh("nft list ruleset")
    assert rules.count("cni:net1/c1/~") > 10
    sh("nft list ruleset > /run/rules && nft flush ruleset && nft -f /run/rules")
    assert sh("nft list ruleset") == rules
    json.loads(sh("nft -j list ruleset"))
    json.loads(sh("ip -j -d link"))
    run("CHECK", {**conf, "prevResult": result}, environ)
    run("DEL", {**conf, "prevResult": result}, environ)
    assert "cni:" not in listed()


@pytest.mark.parametrize("verb", ["DEL", "GC", "CHECK"])
@pytest.mark.parametrize("ifname", NAMES)
def test_what_has_the_tag_of_former_days_is_found(
    host: str, container: str, ifname: str, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host
    conf, environ = list_of(container, ifname)
    with tags_of_former_days(monkeypatch):
        result = run("ADD", conf, environ)
    assert f"alias cni:net1/c1/{ifname}" in sh("ip link")
    run("CHECK", {**conf, "prevResult": result}, environ)
    valid = [{"containerID": "c1", "ifname": ifname}]
    run("GC", {**conf, "cni.dev/valid-attachments": valid}, environ)
    run("CHECK", {**conf, "prevResult": result}, environ)
    if verb == "GC":
        run("GC", {**conf, "cni.dev/valid-attachments": []}, environ)
    else:
        run("DEL", conf, {**environ, "CNI_NETNS": ""})
    assert "cni:" not in listed()


def test_a_lease_whose_link_has_the_tag_of_former_days_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    attachment = Attachment("net1", "c1", 'e"0')
    monkeypatch.setattr(evidence, "namespaces", lambda: {1: "/run/netns/other"})
    note, now = "aaaaaaaa.2.3.1", "aaaaaaaa.2.0.1000"
    for alias in ownership.tags(attachment):
        monkeypatch.setattr(evidence, "linked", {alias}.intersection)
        assert evidence.extinct([(b"lease", ownership.tags(attachment), note)], now) == []
    monkeypatch.setattr(evidence, "linked", {"cni:net1/c1/eth0"}.intersection)
    assert evidence.extinct([(b"lease", ownership.tags(attachment), note)], now) == [b"lease"]


def test_a_bridge_whose_name_no_rule_can_have(host: str, new_container: Callable[[], str]) -> None:
    assert host
    conf, environ = list_of(new_container(), "eth0", bridge='br"1')
    given = Call(bridge.PLUGIN, "ADD", {**conf, "type": "bridge"}, **environ).result()
    for backend in ("nftables", "iptables"):
        refused = {**conf, "type": "firewall", "prevResult": given, "backend": backend}
        code, msg = Call(firewall.PLUGIN, "ADD", refused, **environ).error()
        assert (code, msg) == (7, """ingressPolicy: the bridge's name 'br"1' cannot be written in rules""")
    run_open = {**conf, "type": "firewall", "prevResult": given, "ingressPolicy": "open"}
    assert Call(firewall.PLUGIN, "ADD", run_open, **environ).result()
    assert 'br"1' not in sh("nft list ruleset; iptables-save")


# Messages and lines


@pytest.mark.parametrize("text", ["\x1b]0;owned\x07", "a\x9b31m", "\u202eabc", "\udcff", "a\x00b"])
def test_nothing_a_terminal_would_obey_is_said(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = CniError(7, f"name: {text}\n{text}", text).document("1.1.0")
    assert all(str(said).isprintable() for said in error.values())
    assert str(error["msg"]).count("\\") >= 2
    assert cnitool.main(["del", text, "/nowhere", "--cache", str(tmp_path)]) == 1
    assert capsys.readouterr().err.removesuffix("\n").isprintable()


def test_nor_what_a_plugin_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "loud"
    plugin.write_text("#!/bin/sh\nprintf 'one\\033[2J\\ntwo\\n' >&2; echo '{}'\n")
    plugin.chmod(0o755)
    assert execution.run("loud", [str(tmp_path)], b"{}", {"CNI_COMMAND": "ADD"}, ()) == b"{}\n"
    assert capsys.readouterr().err == "one\\x1b[2J\ntwo\n"


@pytest.mark.parametrize("command", [["repair"], ["gc", "--dry-run"], ["gc", "--dry-run", "--all"]])
def test_nor_what_cached_results_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    source = json.dumps({"cniVersion": "1.1.0", "name": "net1", "plugins": [{"type": "other"}]}).encode()
    (tmp_path / "net.conflist").write_bytes(source)
    Cache(tmp_path).store(parse(source), Named("c1", "e\x1b[2J", "/no\x1b[2Jwhere"), {"cniVersion": "1.1.0"})
    monkeypatch.setenv("NETCONFPATH", str(tmp_path))
    cnitool.main([*command, "net1", "--cache", str(tmp_path)])
    said = capsys.readouterr()
    assert "c1/e\\x1b[2J" in said.out + said.err
    assert "\x1b" not in said.out + said.err
