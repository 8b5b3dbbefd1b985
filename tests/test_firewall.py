"""firewall: what goes through and what does not, on hosts with and without a firewall of their own."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnikit import forwarding, request
from cnikit.errors import CniError
from cnikit.netlink.nftables import Rule, Table
from cnikit.objects import HOST, Up
from cnikit.plan import Set
from cnikit.plugins import bridge, firewall, portmap
from tests.conftest import Call, ip, sh
from tests.packets import IN_VAIN, UDP, arrived, reached, server, udp_socket, unreached, wire

ANY = "0.0.0.0"


def network(number: int, name: str, subnet: str, **others: Any) -> dict[str, Any]:
    addresses = [{"address": f"10.{subnet}.0.{number + 2}/24"}, {"address": f"fd00:{subnet}::{number + 2}/64"}]
    keys = {
        "bridge": f"br-{name}",
        "isDefaultGateway": True,
        "ipMasq": True,
        "ipam": {"type": "static", "addresses": addresses},
    }
    return {"cniVersion": "1.1.0", "name": name, "type": "bridge", **keys, **others}


class Container:
    """A container on a network."""

    def __init__(self, netns: str, number: int, name: str, subnet: str, ifname: str = "eth0", **others: Any) -> None:
        self.netns, self.name = netns, name
        self.environ = {"CNI_NETNS": netns, "CNI_CONTAINERID": f"{name}-{number}", "CNI_IFNAME": ifname}
        self.result = Call(bridge.PLUGIN, "ADD", network(number, name, subnet, **others), **self.environ).result()
        self.v4, self.v6 = (ip["address"].split("/")[0] for ip in self.result["ips"])

    def _conf(self, **keys: Any) -> dict[str, Any]:
        return {"cniVersion": "1.1.0", "name": self.name, "type": "firewall", "prevResult": self.result, **keys}

    def call(self, verb: str, **keys: Any) -> Call:
        return Call(firewall.PLUGIN, verb, self._conf(**keys), **self.environ)

    def asked(self, verb: str) -> request.Request:
        return request.parse({"CNI_COMMAND": verb, **self.environ}, json.dumps(self._conf()).encode)

    def publish(self, host_port: int, container_port: int) -> None:
        mappings = [{"hostPort": host_port, "containerPort": container_port, "protocol": "tcp"}]
        conf = {"cniVersion": "1.1.0", "name": self.name, "type": "portmap", "prevResult": self.result}
        Call(portmap.PLUGIN, "ADD", {**conf, "runtimeConfig": {"portMappings": mappings}}, **self.environ).result()


class Node:
    """A host with two containers on network one, one on network two, and another host on the wire."""

    def __init__(self, host: str, new: Callable[[], str]) -> None:
        self.host, self.outside = host, new()
        wire(host, self.outside, ("192.0.2.1/24", "192.0.2.2/24"), ("2001:db8::1/64", "2001:db8::2/64"))
        self.one, self.neighbour = Container(new(), 0, "one", "21"), Container(new(), 1, "one", "21")
        self.two = Container(new(), 0, "two", "22")
        for container, subnet in ((self.one, "21"), (self.two, "22")):
            route = f"10.{subnet}.0.0/24 via 192.0.2.1", f"fd00:{subnet}::/64 via 2001:db8::1"
            sh(f"nsenter --net={self.outside} sh -c 'ip route add {route[0]}; ip -6 route add {route[1]}'")
            assert container.result


@pytest.fixture
def node(host: str, new_container: Callable[[], str]) -> Node:
    return Node(host, new_container)


def get_out(node: Node, container: Container) -> bool:
    with server(node.outside, ANY, 80) as web, server(node.outside, "::", 81) as web6:
        return bool(reached(web, container.netns, "192.0.2.2", 80)) and bool(
            reached(web6, container.netns, "2001:db8::2", 81)
        )


DROPPING = {
    "iptables": "iptables -P FORWARD DROP && ip6tables -P FORWARD DROP",
    "nftables with iptables' names": "nft 'add table ip filter; add chain ip filter FORWARD "
    "{ type filter hook forward priority 0; policy drop; }; add table ip6 filter; "
    "add chain ip6 filter FORWARD { type filter hook forward priority 0; policy drop; }'",
}


@pytest.mark.parametrize("policy", DROPPING.values(), ids=DROPPING)
def test_containers_get_through_where_forwarding_is_dropped(node: Node, policy: str) -> None:
    sh(policy)
    with server(node.outside, ANY, 80) as web:
        assert unreached(web, node.one.netns, "192.0.2.2", 80)
    node.one.call("ADD").result()
    assert get_out(node, node.one)
    node.one.publish(8080, 80)
    with server(node.one.netns, ANY, 80) as web:
        assert reached(web, node.outside, "192.0.2.1", 8080) == "192.0.2.2"
        # What was not published stays closed.
        assert unreached(web, node.outside, node.one.v4, 80)
    with server(node.outside, ANY, 80) as web:
        assert unreached(web, node.two.netns, "192.0.2.2", 80)
    assert node.one.call("CHECK").succeeded()
    assert node.one.call("DEL").succeeded()
    with server(node.outside, ANY, 80) as web:
        assert unreached(web, node.one.netns, "192.0.2.2", 80)


def test_iptables_still_lists_its_chain(node: Node) -> None:
    sh(DROPPING["iptables"])
    sh("iptables -A FORWARD -d 192.0.2.77 -j DROP")
    node.one.call("ADD").result()
    node.neighbour.call("ADD").result()
    rules = sh("iptables -S FORWARD").splitlines()
    assert rules[:2] == ["-P FORWARD DROP", "-A FORWARD -d 192.0.2.77/32 -j DROP"]
    assert len(rules) == 3
    assert "--mark 0x1000/0x1000" in rules[2]
    assert rules[2].endswith("-j ACCEPT")


def test_the_administrators_drops_win(node: Node) -> None:
    sh(DROPPING["iptables"])
    sh("iptables -A FORWARD -d 192.0.2.2 -j DROP")
    node.one.call("ADD").result()
    with server(node.outside, ANY, 80) as web:
        assert unreached(web, node.one.netns, "192.0.2.2", 80)


@pytest.mark.parametrize("name", ["CNI-ADMIN", "MY_RULES"])
def test_the_administrators_chain_survives(node: Node, name: str) -> None:
    node.one.call("ADD", iptablesAdminChainName=name).result()
    sh(f"nft add rule inet cnikit_firewall {name} ip daddr 192.0.2.2 drop")
    for verb in ("DEL", "ADD", "CHECK"):
        assert node.one.call(verb, iptablesAdminChainName=name).status == 0
    node.two.call("ADD", iptablesAdminChainName=name).result()
    sh("nft flush chain inet cnikit_firewall forward")
    node.neighbour.call("ADD", iptablesAdminChainName=name).result()
    assert sh(f"nft list chain inet cnikit_firewall {name}").count("192.0.2.2 drop") == 1
    assert sh("nft list chain inet cnikit_firewall admins").count("jump") == (name != "CNI-ADMIN")
    with server(node.outside, ANY, 80) as web:
        assert unreached(web, node.one.netns, "192.0.2.2", 80)


def test_open_networks_reach_each_other(node: Node) -> None:
    for container in (node.one, node.neighbour, node.two):
        container.call("ADD").result()
    with server(node.one.netns, ANY, 80) as web:
        assert reached(web, node.two.netns, node.one.v4, 80)
        assert reached(web, node.neighbour.netns, node.one.v4, 80)


def test_same_bridge(node: Node) -> None:
    for container in (node.one, node.neighbour, node.two):
        container.call("ADD", ingressPolicy="same-bridge").result()
        assert container.call("CHECK", ingressPolicy="same-bridge").succeeded()
    with server(node.one.netns, ANY, 80) as web, server(node.one.netns, "::", 81) as web6:
        assert unreached(web, node.two.netns, node.one.v4, 80)
        assert unreached(web6, node.two.netns, node.one.v6, 81)
        assert reached(web, node.neighbour.netns, node.one.v4, 80)
        assert reached(web6, node.neighbour.netns, node.one.v6, 81)
        assert reached(web, node.outside, node.one.v4, 80)
    assert get_out(node, node.one)


def test_isolated(node: Node) -> None:
    for container in (node.one, node.neighbour, node.two):
        container.call("ADD", ingressPolicy="isolated").result()
        assert container.call("CHECK", ingressPolicy="isolated").succeeded()
    with server(node.one.netns, ANY, 80) as web, server(node.one.netns, "::", 81) as web6:
        for other in (node.two, node.neighbour):
            assert unreached(web, other.netns, node.one.v4, 80)
            assert unreached(web6, other.netns, node.one.v6, 81)
        assert reached(web, node.outside, node.one.v4, 80)
    assert get_out(node, node.one)


def test_isolated_does_not_need_br_netfilter(node: Node) -> None:
    sh("sysctl -qw net.bridge.bridge-nf-call-iptables=0 2>/dev/null || true")
    for container in (node.one, node.neighbour):
        container.call("ADD", ingressPolicy="isolated").result()
    with server(node.one.netns, ANY, 80) as web:
        assert unreached(web, node.neighbour.netns, node.one.v4, 80)


def test_a_policy_needs_a_bridge(node: Node) -> None:
    node.one.result["interfaces"] = node.one.result["interfaces"][2:]
    node.one.result["ips"] = [{**ip, "interface": 0} for ip in node.one.result["ips"]]
    code, msg = node.one.call("ADD", ingressPolicy="isolated").error()
    assert (code, msg.startswith("ingressPolicy: 'isolated' needs a bridge")) == (7, True)
    assert "cnikit_firewall" not in sh("nft list tables")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "backend": ({"backend": "ufw"}, "backend: 'ufw' is none of"),
    "ingressPolicy": ({"ingressPolicy": "closed"}, "ingressPolicy: 'closed' is none of"),
    "admin chain": ({"iptablesAdminChainName": "a b"}, "iptablesAdminChainName: 'a b' is no chain's name"),
    "type": ({"backend": 1}, "backend: expected string, got integer"),
}


# What a plugin before says of its links goes into rules.
NAMES = ("x" * 16, "a b", "a\n-A INPUT -j DROP", "a/b", "", "é" * 40_000)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_a_link_that_cannot_be_is_refused(node: Node, name: str, backend: str) -> None:
    given = {"interfaces": [{"name": name}], "ips": [{"address": "10.81.1.2/24"}]}
    code, msg = node.one.call("ADD", backend=backend, ingressPolicy="isolated", prevResult=given).error()
    assert (code, msg.startswith("prevResult.interfaces: ")) == (7, True), msg
    assert "INPUT" not in sh("iptables-save")


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("verb", ["ADD", "CHECK", "STATUS"])
def test_bad_configuration(node: Node, case: str, verb: str) -> None:
    keys, why = BAD[case]
    code, msg = node.one.call(verb, **keys).error()
    assert (code, msg.startswith(why)) == (7, True), msg
    assert "cnikit_firewall" not in sh("nft list tables")


def test_it_must_be_chained(host: str) -> None:
    assert host
    conf = {"cniVersion": "1.1.0", "name": "one", "type": "firewall"}
    for verb in ("ADD", "CHECK"):
        assert Call(firewall.PLUGIN, verb, conf, CNI_NETNS="/x").error()[0] == 7
    assert Call(firewall.PLUGIN, "DEL", conf).succeeded()
    assert Call(firewall.PLUGIN, "STATUS", conf).succeeded()


CHANGES = {
    "flush ruleset": "table inet cnikit_firewall is gone, or empty",
    "flush chain inet cnikit_firewall forward": "cnikit_firewall is gone, or empty",
    "flush set inet cnikit_firewall containers4": "containers4 { 10.21.0.2 }",
    "flush chain ip filter FORWARD": "ip filter FORWARD has not the rule",
}


@pytest.mark.parametrize("change", CHANGES)
def test_check_finds_what_is_gone(node: Node, change: str) -> None:
    sh(DROPPING["iptables"])
    node.one.call("ADD").result()
    assert node.one.call("CHECK").succeeded()
    sh(f"nft '{change}'")
    code, msg = node.one.call("CHECK").error()
    assert (code, CHANGES[change] in msg) == (101, True), msg


def test_gc(node: Node) -> None:
    node.one.call("ADD").result()
    node.neighbour.call("ADD").result()
    valid = [{"containerID": "one-1", "ifname": "eth0"}]
    assert node.one.call("GC", **{"cni.dev/valid-attachments": valid}).succeeded()
    listed = sh("nft list table inet cnikit_firewall")
    assert "one/one-0/" not in listed
    assert "one/one-1/" in listed


# Other backends


def test_elements_that_cannot_be_listed_keep_no_rules_of_iptables(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.one.call("ADD", backend="iptables").result()
    assert node.one.v4 in sh("iptables-save -t filter")

    def unlisted(*_: object) -> None:
        raise CniError(100, "netlink: No buffer space available")

    monkeypatch.setattr(firewall, "outdated", unlisted)
    assert node.one.call("DEL", backend="iptables").error() == (100, "netlink: No buffer space available")
    assert node.one.v4 not in sh("iptables-save -t filter")


def test_with_iptables(node: Node) -> None:
    sh(DROPPING["iptables"])
    node.one.call("ADD", backend="iptables").result()
    assert "CNI-FORWARD" in sh("iptables-save")
    assert "cnikit_firewall" not in sh("nft list tables")
    assert get_out(node, node.one)
    assert node.one.call("CHECK", backend="iptables").succeeded()
    sh("iptables -F CNI-FORWARD")
    assert node.one.call("CHECK", backend="iptables").error()[0] == 101
    node.one.call("ADD", backend="iptables").result()
    assert node.one.call("DEL").succeeded()
    assert node.one.v4 not in sh("iptables-save -t filter")


def test_policies_with_iptables(node: Node) -> None:
    for container in (node.one, node.two):
        container.call("ADD", backend="iptables", ingressPolicy="same-bridge").result()
    with server(node.one.netns, ANY, 80) as web:
        assert unreached(web, node.two.netns, node.one.v4, 80)
        assert reached(web, node.outside, node.one.v4, 80)


def test_where_iptables_of_the_legacy_kind_drops(node: Node) -> None:
    sh("iptables-legacy -P FORWARD DROP && ip6tables-legacy -P FORWARD DROP")
    sh("iptables-legacy -A FORWARD -d 192.0.2.77 -j DROP")
    with server(node.outside, ANY, 80) as web:
        assert unreached(web, node.one.netns, "192.0.2.2", 80)
    for _ in range(2):
        node.one.call("ADD").result()
    assert get_out(node, node.one)
    rules = sh("iptables-legacy -S FORWARD").splitlines()
    assert rules == [
        "-P FORWARD DROP",
        "-A FORWARD -d 192.0.2.77/32 -j DROP",
        "-A FORWARD -m mark --mark 0x1000/0x1000 -j ACCEPT",
    ]
    assert node.one.call("CHECK").succeeded()
    sh("iptables-legacy -F FORWARD")
    assert node.one.call("CHECK").error()[0] == 101


def test_firewalld_that_does_not_run(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere")
    code, msg = node.one.call("ADD", backend="firewalld").error()
    assert (code, msg) == (11, "backend: firewalld is not running")
    assert "cni:one" not in sh("nft list table inet cnikit_firewall 2>/dev/null || true")
    assert node.one.call("STATUS", backend="firewalld").error()[0] == 50
    assert node.one.call("DEL", backend="firewalld").succeeded()


def test_an_address_that_another_suites_container_had_on_this_network_is_the_new_ones(node: Node) -> None:
    node.one.call("ADD").result()
    sh("nft flush set inet cnikit_firewall containers4")
    element = f'{node.one.v4} comment "cni:one/gone/eth0 (unlinked)"'
    sh(f"nft 'add element inet cnikit_firewall containers4 {{ {element} }}'")
    node.one.call("ADD").result()
    assert "cni:one/one-0/eth0" in sh("nft list set inet cnikit_firewall containers4")


def test_two_networks_may_have_one_address_as_with_the_reference(node: Node) -> None:
    node.one.call("ADD").result()
    for address in node.two.result["ips"]:
        address["address"] = address["address"].replace(node.two.v4, node.one.v4)
    node.two.call("ADD").result()
    assert node.two.call("CHECK").succeeded()


def test_isolated_after_same_bridge(node: Node) -> None:
    for policy in ("same-bridge", "isolated"):
        for container in (node.one, node.neighbour):
            container.call("ADD", ingressPolicy=policy).result()
    assert "br-one" not in sh("nft list set inet cnikit_firewall within")


@pytest.mark.parametrize("name", ["admins", "forward", "drop", "1a"])
def test_names_that_cannot_be_an_administrators_chain(node: Node, name: str) -> None:
    code, msg = node.one.call("ADD", iptablesAdminChainName=name).error()
    assert (code, msg.startswith(f"iptablesAdminChainName: '{name}' is a name that")) == (7, True), msg


def test_legacy_tables_without_a_program_to_read_them(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    sh("iptables-legacy -t filter -L -n; iptables-legacy -t nat -L -n")
    monkeypatch.setattr("cnikit.effects.iptables._found", lambda _: "")
    node.one.call("ADD").result()
    assert node.one.call("CHECK").succeeded()
    assert node.one.call("DEL").succeeded()
    assert "cni:" not in sh("nft list table inet cnikit_firewall")


def test_del_goes_on_when_the_bus_does_not_answer(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node.one.call("ADD", backend="nftables").result()
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(tmp_path / "bus"))
        bus.listen()
        bus.shutdown(socket.SHUT_RDWR)
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path / 'bus'}")
        node.one.call("DEL")
    assert "cni:" not in sh("nft list table inet cnikit_firewall")


# Behind a plugin that makes no bridge


def behind(node: Node, link: str, verb: str = "ADD", **keys: Any) -> Call:
    """Call it for the first container as if it came behind the reference's ptp, with that host link."""
    given = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": link}, {"name": "eth0", "sandbox": node.one.netns}],
        "ips": [{"address": f"{node.one.v4}/24", "interface": 1}],
    }
    return node.one.call(verb, prevResult=given, **keys)


@pytest.mark.parametrize("policy", ["same-bridge", "isolated"])
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_a_policy_on_a_link_of_the_containers_own_goes_with_it(node: Node, backend: str, policy: str) -> None:
    sh("ip link add veth0 type veth peer name veth1")
    assert behind(node, "veth0", backend=backend, ingressPolicy=policy).result()
    rules = "nft list ruleset; iptables-save"
    assert "veth0" in sh(rules)
    assert behind(node, "veth0", "CHECK", backend=backend, ingressPolicy=policy).succeeded()
    sh("ip link del veth0")  # with the namespace, say, before DEL
    assert behind(node, "veth0", "DEL", backend=backend, ingressPolicy=policy).succeeded()
    assert "veth0" not in sh(rules)


def test_a_policy_on_a_bridge_stays_with_it(node: Node) -> None:
    node.one.call("ADD", ingressPolicy="same-bridge").result()
    assert node.one.call("DEL", ingressPolicy="same-bridge").succeeded()
    assert '"br-one" comment "ingressPolicy"' in sh("nft list set inet cnikit_firewall confined")


@pytest.mark.parametrize("policy", ["same-bridge", "isolated"])
def test_a_failing_add_leaves_no_policy_on_a_link_that_is_no_bridge(
    node: Node, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "interfaces": [{"name": "lo"}, {"name": "nowhere"}],
        "ips": [{"address": f"{node.one.v4}/24"}],
    }
    monkeypatch.setattr(firewall, "accepting", lambda _: [Set(Up(HOST, "nowhere"))])
    why = "ip link set nowhere up: No such device"
    assert node.one.call("ADD", ingressPolicy=policy, prevResult=given).error() == (100, why)
    assert "set confined" in sh("nft list ruleset")
    assert '"lo"' not in sh("nft list ruleset")


# Whose addresses


def test_loopbacks_addresses_and_other_sandboxes_are_not_the_containers(node: Node) -> None:
    """Nomad's and Apptainer's lists begin with loopback."""
    for number, container in enumerate((node.one, node.neighbour)):
        own = container.result
        container.result = {
            **own,
            "interfaces": [
                *own["interfaces"],
                {"name": "lo", "sandbox": container.netns},
                {"name": "tap0", "sandbox": "/run/netns/other"},
            ],
            "ips": [
                {"address": "127.0.0.1/8", "interface": 3},
                {"address": "::1/128", "interface": 3},
                *own["ips"],
                {"address": "192.0.2.77/24", "interface": 4},
                {"address": f"10.99.0.{number}/24"},
            ],
        }
        container.call("ADD").result()
    for container in (node.one, node.neighbour):
        assert container.call("CHECK").succeeded()
    found = sh("nft list set inet cnikit_firewall containers4; nft list set inet cnikit_firewall containers6")
    assert "10.99.0." in found
    assert not [word for word in ("127.0.0.1", "::1 ", "192.0.2.77") if word in found]


# Forged sources


def forged(node: Node, source: Container, to: Container) -> list[bool]:
    """Tell whether packets from the wire get to a port that is not published, with a container's source: IPv4, IPv6."""
    got = []
    mac = ip("link show wan")[0]["address"]
    for mine, theirs, gateway in ((source.v4, to.v4, "192.0.2.1"), (source.v6, to.v6, "2001:db8::1")):
        sh(f"ping -c 1 -w 10 {theirs}")  # who is where is known then
        sh(f"nsenter --net={node.outside} ip neigh replace {gateway} lladdr {mac} dev wan")
        sh(f"nsenter --net={node.outside} ip addr add {mine}/{128 if ':' in mine else 32} dev wan nodad")
        with server(to.netns, theirs, 7000, UDP) as service, udp_socket(node.outside, mine, 7001) as attacker:
            attacker.sendto(b"forged", (theirs, 7000))
            got.append(arrived(service))
        sh(f"nsenter --net={node.outside} ip addr del {mine}/{128 if ':' in mine else 32} dev wan")
    return got


def drop_and_accept_any_source(rp_filter: int = 0) -> None:
    sh(DROPPING["iptables"])
    sh(f"for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo {rp_filter} > $f; done")


@pytest.mark.parametrize("rp_filter", [0, 2])
def test_a_forged_source_opens_nothing(node: Node, rp_filter: int) -> None:
    drop_and_accept_any_source(rp_filter)
    for container in (node.one, node.neighbour, node.two):
        container.call("ADD").result()
    for source in (node.neighbour, node.two):
        assert forged(node, source, node.one) == [False, False], source.name
    # What they send themselves goes through, also to each other's network.
    assert get_out(node, node.neighbour)
    with server(node.one.netns, ANY, 80) as web, server(node.one.netns, "::", 81) as web6:
        assert reached(web, node.two.netns, node.one.v4, 80)
        assert reached(web6, node.two.netns, node.one.v6, 81)
        assert reached(web, node.host, node.one.v4, 80)


def test_a_forged_source_is_dropped_by_no_rule_of_ours(node: Node) -> None:
    sh("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done")
    for container in (node.one, node.neighbour):
        container.call("ADD").result()
    assert forged(node, node.neighbour, node.one) == [True, True]


def test_a_container_on_two_networks(node: Node, new_container: Callable[[], str]) -> None:
    """What it sends from one network's address through the other is dropped by none but the host's own policy."""
    netns = new_container()
    one, two = (Container(netns, 7, name, subnet, ifname) for name, subnet, ifname in TWO)
    sh(f"nsenter --net={netns} ip route del default via 10.22.0.1")
    for container in (one, two):
        container.call("ADD").result()
    with server(node.outside, ANY, 80) as web:
        assert reached(web, netns, "192.0.2.2", 80, source=one.v4)
        # Its default route is by one: the packets from two's address go there, too.
        assert reached(web, netns, "192.0.2.2", 80, source=two.v4)
        drop_and_accept_any_source()
        for container in (one, two):
            container.call("ADD").result()
        assert reached(web, netns, "192.0.2.2", 80, source=one.v4)
        assert not reached(web, netns, "192.0.2.2", 80, IN_VAIN, source=two.v4)
        sh(f"nsenter --net={netns} ip rule add from {two.v4} lookup 7")
        sh(f"nsenter --net={netns} ip route add default via 10.22.0.1 table 7")
        assert reached(web, netns, "192.0.2.2", 80, source=two.v4)


TWO = (("one", "21", "eth0"), ("two", "22", "eth1"))


def test_a_bridge_without_an_address_of_the_hosts(node: Node, new_container: Callable[[], str]) -> None:
    """With br_netfilter what stays on a bridge passes FORWARD, and no route leads back there."""
    sh(DROPPING["iptables"])
    inside = [Container(new_container(), n, "three", "23", isGateway=False, isDefaultGateway=False) for n in range(2)]
    with server(inside[0].netns, ANY, 80) as web, server(inside[0].netns, "::", 81) as web6:
        assert unreached(web, inside[1].netns, inside[0].v4, 80)
        for container in inside:
            container.call("ADD").result()
        assert reached(web, inside[1].netns, inside[0].v4, 80)
        assert reached(web6, inside[1].netns, inside[0].v6, 81)
    assert inside[0].call("DEL").succeeded()
    assert "three-0" not in sh("nft list table inet cnikit_firewall")


def test_without_a_link_of_the_hosts_the_routes_tell(node: Node) -> None:
    sh(DROPPING["iptables"])
    node.one.result["interfaces"] = node.one.result["interfaces"][2:]
    node.one.result["ips"] = [{**ip, "interface": 0} for ip in node.one.result["ips"]]
    node.one.call("ADD").result()
    assert get_out(node, node.one)
    assert node.one.call("DEL").succeeded()
    assert "cni:" not in sh("nft list table inet cnikit_firewall")


def before(table: Table) -> Table:
    """Return the table as it was when any source was believed."""
    chains = []
    for chain in table.chains:
        rules = [rule for rule in chain.rules if "@senders" not in rule.text]
        rules = [
            Rule(rule.text.replace("fib saddr . iif oif exists ", ""), "from containers")
            if "fib" in rule.text
            else rule
            for rule in rules
        ]
        chains.append(chain.replace(rules=tuple(rules)))
    return table.replace(sets=table.sets[:4], chains=tuple(chains))


@pytest.mark.parametrize("verb", ["ADD", "repair"])
def test_a_node_with_the_former_rule_is_brought_over(node: Node, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drop_and_accept_any_source()
    with monkeypatch.context() as earlier:
        earlier.setattr(firewall, "TABLE", before(forwarding.TABLE))
        earlier.setattr(firewall, "_host_links", lambda *_: [""])
        for container in (node.one, node.two):
            container.call("ADD").result()
        assert forged(node, node.two, node.one) == [True, True]
    if verb == "ADD":
        node.neighbour.call("ADD").result()
    else:
        assert node.one.call("CHECK").error()[0] == 101
        assert firewall.PLUGIN.repair is not None
        assert len(firewall.PLUGIN.repair(node.one.asked("CHECK"))) == 3  # the rules, and an element for each address
        assert node.one.call("CHECK").succeeded()
    assert forged(node, node.two, node.one) == [False, False]
    assert get_out(node, node.one)
    assert node.one.call("DEL").succeeded()
    assert "one-0" not in sh("nft list table inet cnikit_firewall")
