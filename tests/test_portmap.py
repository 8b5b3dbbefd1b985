"""portmap: what is configured as tables, then packets through the kernel."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cnikit import hostports, request
from cnikit.effects.kernel import World
from cnikit.objects import HOST
from cnikit.plan import Del, remove, render
from cnikit.plugins import bridge, portmap
from tests.conftest import PROJECT, Call, ip, needs_reference, sh
from tests.packets import UDP, arrived, reached, send_frame, server, udp_socket, unreached, wire

V4, V6 = ("10.11.0.2", "10.11.0.3"), ("fd00:11::2", "fd00:11::3")


def network(number: int = 0, **keys: Any) -> dict[str, Any]:
    addresses = [{"address": f"{V4[number]}/24"}, {"address": f"{V6[number]}/64"}]
    conf = {
        "cniVersion": "1.1.0",
        "name": "net1",
        "type": "bridge",
        "bridge": "br1",
        "isDefaultGateway": True,
        "hairpinMode": True,
    }
    return {**conf, "ipMasq": True, "hairpinMode": True, "ipam": {"type": "static", "addresses": addresses}, **keys}


def config(*mappings: dict[str, Any], prev: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    conf = {"cniVersion": "1.1.0", "name": "net1", "type": "portmap", "runtimeConfig": {"portMappings": list(mappings)}}
    return {**conf, **({"prevResult": prev} if prev else {}), **keys}


def tcp(host: int, container: int, **keys: Any) -> dict[str, Any]:
    return {"hostPort": host, "containerPort": container, "protocol": "tcp", **keys}


def udp(host: int, container: int, **keys: Any) -> dict[str, Any]:
    return {**tcp(host, container, **keys), "protocol": "udp"}


class Node:
    """A host with a container, a neighbour on the same bridge, and another host on the wire."""

    def __init__(self, host: str, new_container: Callable[[], str]) -> None:
        self.host = host
        self.containers = (new_container(), new_container())
        self.outside = new_container()
        self.second: dict[str, Any] = {}
        wire(host, self.outside, ("192.0.2.1/24", "192.0.2.2/24"), ("2001:db8::1/64", "2001:db8::2/64"))
        self.results = [
            Call(bridge.PLUGIN, "ADD", network(i), CNI_NETNS=self.containers[i], CNI_CONTAINERID=f"c{i + 1}").result()
            for i in (0, 1)
        ]

    def call(self, verb: str, *mappings: dict[str, Any], number: int = 0, **keys: Any) -> Call:
        conf = config(*mappings, prev=self.results[number], **keys)
        return Call(portmap.PLUGIN, verb, conf, CNI_NETNS=self.containers[number], CNI_CONTAINERID=f"c{number + 1}")


@pytest.fixture
def node(host: str, new_container: Callable[[], str]) -> Node:
    return Node(host, new_container)


def test_a_port_is_reached_from_everywhere(node: Node) -> None:
    node.call("ADD", tcp(8080, 80), udp(5353, 53)).result()
    for kind, port, inside in ((socket.SOCK_STREAM, 8080, 80), (UDP, 5353, 53)):
        with server(node.containers[0], "0.0.0.0", inside, kind) as web:
            assert reached(web, node.outside, "192.0.2.1", port) == "192.0.2.2"
            assert reached(web, node.host, "192.0.2.1", port) == "192.0.2.1"
            assert reached(web, node.host, "127.0.0.1", port) == "10.11.0.1"
            assert reached(web, node.containers[1], "192.0.2.1", port) == "10.11.0.1"
            assert reached(web, node.containers[1], "10.11.0.1", port) == "10.11.0.1"
            assert reached(web, node.containers[0], "192.0.2.1", port) == "10.11.0.1"
        with server(node.containers[0], "::", inside, kind) as web:
            assert reached(web, node.outside, "2001:db8::1", port) == "2001:db8::2"
            assert reached(web, node.host, "2001:db8::1", port) == "2001:db8::1"
            assert reached(web, node.containers[1], "2001:db8::1", port) == "fd00:11::1"
            assert reached(web, node.containers[0], "2001:db8::1", port) == "fd00:11::1"


def test_ports_in_a_row_are_one_element(node: Node) -> None:
    node.call("ADD", *(tcp(port, port) for port in range(9000, 9100)), tcp(9100, 80)).result()
    assert "tcp . 0.0.0.0/0 . 9000-9099" in sh("nft list map inet cnikit_portmap ranges4")
    assert "elements = { tcp . 9100 " in sh("nft list map inet cnikit_portmap ports4")
    with server(node.containers[0], "0.0.0.0", 9042) as web:
        assert reached(web, node.outside, "192.0.2.1", 9042) == "192.0.2.2"
    with server(node.containers[0], "::", 9099) as web:
        assert reached(web, node.outside, "2001:db8::1", 9099) == "2001:db8::2"


def test_a_port_of_one_host_address(node: Node) -> None:
    sh("ip addr add 192.0.2.9/24 dev wan")
    node.call("ADD", tcp(8080, 80, hostIP="192.0.2.9"), tcp(8443, 443, hostIP="2001:db8::1")).result()
    with server(node.containers[0], "0.0.0.0", 80) as web:
        assert reached(web, node.outside, "192.0.2.9", 8080)
        assert unreached(web, node.outside, "192.0.2.1", 8080)
    with server(node.containers[0], "::", 443) as web:
        assert reached(web, node.outside, "2001:db8::1", 8443)


@pytest.mark.parametrize(("address", "family"), [("0.0.0.0", 4), ("::", 6)])
def test_any_address_of_one_family(node: Node, address: str, family: int) -> None:
    node.call("ADD", tcp(8080, 80, hostIP=address)).result()
    assert "8080" in sh(f"nft list map inet cnikit_portmap ports{family}")
    assert "8080" not in sh(f"nft list map inet cnikit_portmap ports{10 - family}")


def test_traffic_through_the_host_is_left_alone(node: Node) -> None:
    """GHSA-jv3w-x3r3-g6rm: only packets to this host are translated, not all that have such a port."""
    node.call("ADD", tcp(8080, 80)).result()
    with server(node.outside, "0.0.0.0", 8080) as elsewhere:
        assert reached(elsewhere, node.containers[1], "192.0.2.2", 8080) == "192.0.2.1"


def let_loopback_in() -> None:
    """Set all sysctls by which the kernel itself would keep out packets to and from 127.0.0.1."""
    names = ("wan.route_localnet=1", "all.rp_filter=0", "wan.rp_filter=0", "br1.rp_filter=0", "all.accept_local=1")
    sh("sysctl -qw " + " ".join(f"net.ipv4.conf.{name}" for name in names))


def forged(node: Node, port: int, source: str = "") -> Iterator[str]:
    """Send datagrams to the host's 127.0.0.1, from the wire and from a container; give the name of each sender."""
    for sender, theirs, link, address in (
        (node.outside, "wan", "wan", "192.0.2.2"),
        (node.containers[1], "eth0", "br1", V4[1]),
    ):
        send_frame(sender, theirs, ip(f"link show {link}")[0]["address"], (source or address, "127.0.0.1", port))
        yield theirs


def test_what_is_published_on_127_0_0_1_is_the_hosts_alone(node: Node) -> None:
    node.call("ADD", udp(5353, 53, hostIP="127.0.0.1")).result()
    let_loopback_in()
    with server(node.containers[0], "0.0.0.0", 53, UDP) as resolver:
        assert reached(resolver, node.host, "127.0.0.1", 5353)
        for sender in forged(node, 5353):
            assert not arrived(resolver), sender
        # Without the rules that forbid it, it arrives: the test sends what it says.
        sh("nft flush chain inet cnikit_portmap loopback")
        for sender in forged(node, 5353):
            assert arrived(resolver), sender


@pytest.mark.parametrize("source", ["", "127.0.0.1"])
def test_services_on_the_hosts_127_0_0_1_stay_the_hosts_alone(node: Node, source: str) -> None:
    """CVE-2020-8558: route_localnet lets containers and neighbours on the wire in."""
    node.call("ADD", tcp(8080, 80)).result()
    let_loopback_in()
    with server(node.host, "127.0.0.1", 631, UDP) as private:
        assert reached(private, node.host, "127.0.0.1", 631)
        for sender in forged(node, 631, source):
            assert not arrived(private), sender
        sh("nft flush chain inet cnikit_portmap loopback")
        for sender in forged(node, 631, source):
            assert arrived(private), sender


TAKEN = [
    ("the same port", [tcp(8080, 80)], [tcp(8080, 81)]),
    ("any address, then one", [tcp(8080, 80)], [tcp(8080, 80, hostIP="192.0.2.1")]),
    ("one address, then any", [tcp(8080, 80, hostIP="192.0.2.1")], [tcp(8080, 80)]),
    ("in a range", [tcp(8079, 8079), tcp(8080, 8080)], [tcp(8080, 80)]),
    ("a range over it", [tcp(8080, 80)], [tcp(8079, 8079), tcp(8080, 8080)]),
    ("ranges that overlap", [tcp(8079, 8079), tcp(8080, 8080)], [tcp(8080, 8080), tcp(8081, 8081)]),
    ("IPv6 alone", [tcp(8080, 80, hostIP="::")], [tcp(8080, 80, hostIP="2001:db8::1")]),
]
FREE = [
    ("another protocol", [tcp(8080, 80)], [udp(8080, 80)]),
    ("two addresses", [tcp(8080, 80, hostIP="192.0.2.1")], [tcp(8080, 80, hostIP="192.0.2.9")]),
    ("two families", [tcp(8080, 80, hostIP="0.0.0.0")], [tcp(8080, 80, hostIP="::")]),
    ("ranges side by side", [tcp(80, 80), tcp(81, 81)], [tcp(82, 82), tcp(83, 83)]),
]


@pytest.mark.parametrize(("first", "second"), [case[1:] for case in TAKEN], ids=[case[0] for case in TAKEN])
def test_a_taken_port_is_refused_and_its_holder_unharmed(
    node: Node, first: list[dict[str, Any]], second: list[dict[str, Any]]
) -> None:
    node.call("ADD", *first).result()
    before = sh("nft list ruleset")
    code, msg = node.call("ADD", *second, number=1).error()
    assert code == 7
    assert "container c1 (eth0 of network net1)" in msg
    assert sh("nft list ruleset") == before


@pytest.mark.parametrize(("first", "second"), [case[1:] for case in FREE], ids=[case[0] for case in FREE])
def test_ports_that_do_not_meet(node: Node, first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    node.call("ADD", *first).result()
    node.call("ADD", *second, number=1).result()


@pytest.mark.parametrize(("first", "second"), [case[1:] for case in TAKEN], ids=[case[0] for case in TAKEN])
def test_a_dead_holder_is_replaced(node: Node, first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    node.call("ADD", *first).result()
    link = node.results[0]["interfaces"][1]["name"]
    sh(f"ip link del {link}")
    node.call("ADD", *second, number=1).result()
    ports = [sh(f"nft list map inet cnikit_portmap {name}") for name in ("ports4", "host_ports4", "ranges4")]
    assert "net1/c1/" not in "".join(ports)


def test_a_taken_port_in_words(node: Node) -> None:
    node.call("ADD", tcp(8080, 80)).result()
    refused = node.call("ADD", tcp(8080, 81, hostIP="192.0.2.1"), number=1)
    holder = "container c1 (eth0 of network net1)"
    assert refused.error() == (7, f"runtimeConfig.portMappings: host port 8080/tcp of 192.0.2.1 is taken by {holder}")
    assert refused.document["details"] == "ports4 tcp . 8080 leads to 10.11.0.2 . 80; DEL of that attachment frees it"


def test_a_holder_whose_interface_another_suite_made_is_never_taken_for_dead(node: Node) -> None:
    link = node.results[0]["interfaces"][1]["name"]
    sh(f"ip link set {link} alias somebody-elses")
    node.call("ADD", tcp(8080, 80)).result()
    sh(f"ip link del {link}")
    assert node.call("ADD", tcp(8080, 80), number=1).error()[0] == 7
    assert node.call("DEL").succeeded()
    node.call("ADD", tcp(8080, 80), number=1).result()


def test_an_add_that_is_repeated_has_the_new_ports_only(node: Node) -> None:
    node.call("ADD", tcp(8080, 80)).result()
    node.call("ADD", tcp(8080, 81), tcp(8081, 81)).result()
    listed = sh("nft list map inet cnikit_portmap ports4")
    assert "10.11.0.2 . 81" in listed
    assert "10.11.0.2 . 80" not in listed


def test_del_needs_nothing_but_the_names(node: Node) -> None:
    node.call("ADD", tcp(8080, 80), tcp(90, 90), tcp(91, 91), tcp(70, 71, hostIP="192.0.2.1")).result()
    node.call("ADD", tcp(8081, 80), number=1).result()
    bare = {"cniVersion": "1.1.0", "name": "net1", "type": "portmap"}
    for _ in range(2):
        assert Call(portmap.PLUGIN, "DEL", bare).succeeded()
    listed = sh("nft list table inet cnikit_portmap")
    assert "net1/c1/" not in listed
    assert listed.count('comment "cni:net1/c2/') == 5


def test_del_where_nothing_was_ever_added(host: str) -> None:
    assert host
    assert Call(portmap.PLUGIN, "DEL", config()).succeeded()
    assert sh("nft list ruleset") == ""


def test_gc_keeps_what_is_listed(node: Node) -> None:
    node.call("ADD", tcp(8080, 80)).result()
    node.call("ADD", tcp(8081, 80), number=1).result()
    valid = [{"containerID": "c2", "ifname": "eth0"}]
    conf = {"cniVersion": "1.1.0", "name": "net1", "type": "portmap", "cni.dev/valid-attachments": valid}
    assert Call(portmap.PLUGIN, "GC", conf).succeeded()
    listed = sh("nft list table inet cnikit_portmap")
    assert "net1/c1/" not in listed
    assert "net1/c2/" in listed


CHANGES = {
    "flush ruleset": "table inet cnikit_portmap is gone, or empty",
    "flush chain inet cnikit_portmap published": "has not the rules it should in chain published",
    "flush chain inet cnikit_portmap loopback": "has not the rules it should in chain loopback",
    "flush map inet cnikit_portmap ports4": "there is no element inet cnikit_portmap ports4 { tcp . 8080 }",
    "flush set inet cnikit_portmap masquerade4": "{ 10.11.0.2 . 10.11.0.0/24 }",
}


@pytest.mark.parametrize("change", CHANGES)
def test_check_finds_what_is_gone(node: Node, change: str) -> None:
    node.call("ADD", tcp(8080, 80)).result()
    assert node.call("CHECK", tcp(8080, 80)).succeeded()
    sh(f"nft '{change}'")
    code, msg = node.call("CHECK", tcp(8080, 80)).error()
    assert code == 101
    assert CHANGES[change] in msg


@pytest.mark.parametrize("change", CHANGES)
def test_the_next_add_mends_the_table(node: Node, change: str) -> None:
    node.call("ADD", tcp(8081, 80), number=1).result()
    sh(f"nft '{change}'")
    node.call("ADD", tcp(8080, 80)).result()
    assert node.call("CHECK", tcp(8080, 80)).succeeded()


def test_status(host: str) -> None:
    assert host
    assert Call(portmap.PLUGIN, "STATUS", config()).succeeded()


def test_without_mappings_nothing_is_made(node: Node) -> None:
    assert node.call("ADD").result() == node.results[0]
    assert "cnikit_portmap" not in sh("nft list tables")


BAD = {
    "hostPort below 0": (tcp(-1, 80), "runtimeConfig.portMappings[0].hostPort: -1 is not in 0..65535"),
    "hostPort too large": (tcp(65536, 80), "runtimeConfig.portMappings[0].hostPort: 65536 is not in 0..65535"),
    "containerPort 0": (tcp(80, 0), "runtimeConfig.portMappings[0].containerPort: 0 is not in 1..65535"),
    "no containerPort": ({"hostPort": 1}, "runtimeConfig.portMappings[0].containerPort: is missing"),
    "protocol": ({**tcp(1, 1), "protocol": "icmp"}, "runtimeConfig.portMappings[0].protocol: 'icmp' is none of"),
    "no address": (tcp(1, 1, hostIP="here"), "runtimeConfig.portMappings[0].hostIP: 'here' is not an IP address"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_mappings(node: Node, case: str) -> None:
    mapping, why = BAD[case]
    code, msg = node.call("ADD", mapping).error()
    assert code == 7
    assert why in msg
    assert "cnikit_portmap" not in sh("nft list tables")


# The family a container has, and what is left out then.
ONE_FAMILY = {
    4: ("IPv6", ["::", "2001:db8::1", "::1"], ["", "0.0.0.0", "192.0.2.1"]),
    6: ("IPv4", ["0.0.0.0", "192.0.2.1"], ["", "::", "2001:db8::1"]),
}


@pytest.mark.parametrize("keys", [{}, {"backend": "iptables"}], ids=["nftables", "iptables"])
@pytest.mark.parametrize("version", ONE_FAMILY)
def test_a_mapping_of_a_family_the_container_lacks_is_left_out_and_named(
    node: Node, version: int, keys: dict[str, Any]
) -> None:
    node.results[0]["ips"] = [ip for ip in node.results[0]["ips"] if (":" in ip["address"]) == (version == 6)]
    lacking, others, own = ONE_FAMILY[version]
    mappings = [tcp(8080 + i, 80, hostIP=ip) for i, ip in enumerate(others)]
    mappings += [tcp(9090 + i, 80, hostIP=ip) for i, ip in enumerate(own)]
    added = node.call("ADD", *mappings, **keys)
    assert added.result()["ips"] == node.results[0]["ips"]
    left = ", ".join(f"{8080 + i}/tcp of {ip}" for i, ip in enumerate(others))
    assert added.stderr == f"portmap: not published, as the container has no {lacking} address: {left}\n"
    published = sh("nft list table inet cnikit_portmap; iptables-save; ip6tables-save")
    assert "8080" not in published
    assert all(str(port) in published for port in range(9090, 9090 + len(own)))
    check = node.call("CHECK", *mappings, **keys)
    assert check.succeeded()
    assert check.stderr == ""
    with server(node.containers[0], (V4 if version == 4 else V6)[0], 80) as web:
        address = "192.0.2.1" if version == 4 else "2001:db8::1"
        assert all(reached(web, node.outside, address, port) for port in range(9090, 9090 + len(own)))
        assert unreached(web, node.outside, address, 8080)


def test_repair_leaves_out_the_same(node: Node) -> None:
    node.results[0]["ips"] = node.results[0]["ips"][:1]
    mappings = (tcp(8080, 80, hostIP="::"), tcp(8080, 80, hostIP="0.0.0.0"))
    node.call("ADD", *mappings).result()
    before = sh("nft list table inet cnikit_portmap")
    sh("nft flush ruleset")
    asked = request.parse(
        {"CNI_COMMAND": "CHECK", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": node.containers[0]},
        json.dumps(config(*mappings, prev=node.results[0])).encode,
    )
    assert portmap.PLUGIN.repair(asked)
    assert sh("nft list table inet cnikit_portmap") == before
    assert portmap.PLUGIN.repair(asked) == ()


@pytest.mark.parametrize("host_ip", ["::", "::1", "2001:db8::1"])
def test_where_no_mapping_is_left_nothing_is_made(node: Node, host_ip: str) -> None:
    node.results[0]["ips"] = node.results[0]["ips"][:1]
    added = node.call("ADD", tcp(8080, 80, hostIP=host_ip))
    assert added.result()["ips"] == node.results[0]["ips"]
    assert added.stderr.endswith(f"no IPv6 address: 8080/tcp of {host_ip}\n")
    assert "cnikit_portmap" not in sh("nft list tables")


def test_a_container_without_address_has_no_ports(node: Node) -> None:
    node.results[0]["ips"] = []
    added = node.call("ADD", tcp(8080, 80))
    assert "ips" not in added.result()
    assert added.stderr == "portmap: no port is published: the container has no address\n"


def test_a_mapping_without_host_port_publishes_nothing(node: Node) -> None:
    """A pod's container ports that have none, as a client hands them on that does not leave them out."""
    mappings = ({"containerPort": 80}, {"HostPort": 0, "ContainerPort": 0, "Protocol": "?"}, tcp(8080, 80))
    added = node.call("ADD", *mappings)
    added.result()
    where = "runtimeConfig.portMappings[0], runtimeConfig.portMappings[1]"
    assert added.stderr == f"portmap: no port is published by what has no hostPort: {where}\n"
    assert sh("nft list map inet cnikit_portmap ports4").count("cni:net1/c1/eth0") == 1
    assert node.call("CHECK", *mappings).succeeded()
    assert node.call("DEL", *mappings).succeeded()


def test_of_many_mappings_that_publish_nothing_a_few_are_named(node: Node) -> None:
    node.results[0]["ips"] = node.results[0]["ips"][:1]
    added = node.call("ADD", *(tcp(port, 80, hostIP="::") for port in range(1, 20_001)))
    added.result()
    assert added.stderr.endswith("10/tcp of ::, and 19990 more\n")
    assert len(added.stderr) < 300


@pytest.mark.parametrize("protocol", ["", "tcp", "TCP", None])
def test_a_protocol_that_is_tcp(node: Node, protocol: str | None) -> None:
    node.call("ADD", {**tcp(8080, 80), "protocol": protocol}).result()
    assert "tcp . 8080" in sh("nft list map inet cnikit_portmap ports4")


def test_one_port_cannot_lead_to_two(node: Node) -> None:
    assert "tcp port 8080 is to lead to two ports" in node.call("ADD", tcp(8080, 80), tcp(8080, 81)).error()[1]


def test_it_must_be_chained(node: Node) -> None:
    for verb in ("ADD", "CHECK"):
        code, msg = Call(portmap.PLUGIN, verb, config(tcp(1, 1)), CNI_NETNS=node.containers[0]).error()
        assert (code, msg) == (7, "prevResult: is missing: must be called as chained plugin")


ROWS = [
    ("alone", [(80, 80)], [(80, 80, 1)]),
    ("two", [(80, 80), (81, 81)], [(80, 80, 2)]),
    ("in any order", [(82, 82), (80, 80), (81, 81)], [(80, 80, 3)]),
    ("a gap", [(80, 80), (82, 82)], [(80, 80, 1), (82, 82, 1)]),
    ("other numbers inside", [(80, 90), (81, 91)], [(80, 90, 1), (81, 91, 1)]),
    ("given twice", [(80, 80), (80, 80)], [(80, 80, 1)]),
]


@pytest.mark.parametrize(("given", "joined"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_in_a_row(given: list[tuple[int, int]], joined: list[tuple[int, int, int]]) -> None:
    made = hostports.in_a_row([hostports.Mapping("tcp", *ports) for ports in given])
    assert [(m.host_port, m.container_port, m.count) for m in made] == joined


def test_the_plan() -> None:
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/n", "CNI_IFNAME": "eth0"}
    conf = portmap.parse(request.parse(environ, json.dumps(config(tcp(8080, 80))).encode))
    _, *rest = portmap.plan(conf, ("10.11.0.2/24",), "cni:net1/c1/eth0", "br1")
    assert render(rest, "") == (
        "nft add 'element inet cnikit_portmap ports4 { tcp . 8080 comment \"cni:net1/c1/eth0\" : 10.11.0.2 . 80 }'\n"
        "nft add 'element inet cnikit_portmap masquerade4 { 10.11.0.2 . 10.11.0.0/24 comment \"cni:net1/c1/eth0\" }'\n"
        "nft add 'element inet cnikit_portmap masquerade4 { 10.11.0.2 . 127.0.0.0/8 comment \"cni:net1/c1/eth0\" }'\n"
        "sysctl -w net/ipv4/conf/br1/route_localnet=1\n"
    )


def test_a_udp_flow_that_began_before_follows_the_port(node: Node) -> None:
    """On ADD the flow is led to the container, on DEL to the host: conntrack remembers neither."""
    client = udp_socket(node.outside, "192.0.2.2", 4000)
    with (
        client,
        server(node.host, "0.0.0.0", 5353, UDP) as before,
        server(node.containers[0], "0.0.0.0", 53, UDP) as after,
    ):
        for verb, listening in (("", before), ("ADD", after), ("DEL", before)):
            if verb:
                assert node.call(verb, udp(5353, 53)).status == 0
            client.sendto(b"ping", ("192.0.2.1", 5353))
            assert arrived(listening), verb


# A container on two networks


def second(node: Node) -> Call:
    """Attach the first container to another network, with the same ports."""
    conf = network(name="net2", bridge="br2", ipam={"type": "static", "addresses": [{"address": "10.12.0.2/24"}]})
    result = Call(bridge.PLUGIN, "ADD", conf, CNI_NETNS=node.containers[0], CNI_IFNAME="eth1").result()
    ports = {
        **config(tcp(8080, 80), *(tcp(p, p) for p in (90, 91)), tcp(70, 71, hostIP="192.0.2.1"), prev=result),
        "name": "net2",
    }
    node.second = ports
    return Call(portmap.PLUGIN, "ADD", ports, CNI_NETNS=node.containers[0], CNI_IFNAME="eth1")


def test_another_network_of_the_container_takes_over(node: Node) -> None:
    node.call("ADD", tcp(8080, 80), tcp(90, 90), tcp(91, 91), tcp(70, 71, hostIP="192.0.2.1")).result()
    second(node).result()
    environ = {"CNI_NETNS": node.containers[0], "CNI_IFNAME": "eth1"}
    assert Call(portmap.PLUGIN, "CHECK", node.second, **environ).succeeded()
    with server(node.containers[0], "10.12.0.2", 80) as other:
        assert unreached(other, node.outside, "192.0.2.1", 8080)
        assert node.call("DEL").succeeded()
        assert reached(other, node.outside, "192.0.2.1", 8080)
    for host_port, inside in ((91, 91), (70, 71)):
        with server(node.containers[0], "10.12.0.2", inside) as other:
            assert reached(other, node.outside, "192.0.2.1", host_port)
    assert Call(portmap.PLUGIN, "CHECK", node.second, **environ).succeeded()
    assert Call(portmap.PLUGIN, "DEL", node.second, **environ).succeeded()
    assert "cni:" not in sh("nft list table inet cnikit_portmap")


def test_the_other_network_may_go_first(node: Node) -> None:
    node.call("ADD", tcp(8080, 80)).result()
    before = sh("nft list table inet cnikit_portmap")
    second(node).result()
    assert Call(portmap.PLUGIN, "DEL", node.second, CNI_IFNAME="eth1").succeeded()
    assert sh("nft list table inet cnikit_portmap") == before


# Conditions


def test_conditions_in_words_of_nft(node: Node) -> None:
    keys: dict[str, Any] = {
        "conditionsV4": ["ip saddr", "{ 192.0.2.2, 192.0.2.77 }"],
        "conditionsV6": ["ip6 saddr 2001:db8::77"],
    }
    for _ in range(2):
        node.call("ADD", tcp(8080, 80), tcp(8081, 80, hostIP="192.0.2.1"), **keys).result()
        assert node.call("CHECK", tcp(8080, 80), tcp(8081, 80, hostIP="192.0.2.1"), **keys).succeeded()
        with server(node.containers[0], V4[0], 80) as web, server(node.containers[0], V6[0], 80) as web6:
            assert reached(web, node.outside, "192.0.2.1", 8080)
            assert reached(web, node.outside, "192.0.2.1", 8081)
            assert unreached(web, node.containers[1], "192.0.2.1", 8080)
            assert unreached(web6, node.outside, "2001:db8::1", 8080)
        assert node.call("DEL", **keys).succeeded()
        assert "cni:" not in sh("nft list table inet cnikit_portmap")


def test_conditions_and_gc(node: Node) -> None:
    keys: dict[str, Any] = {"conditionsV4": ["ip saddr 192.0.2.2"]}
    for number in (0, 1):
        node.call("ADD", tcp(8080 + number, 80), number=number, **keys).result()
    keys["cni.dev/valid-attachments"] = [{"containerID": "c2", "ifname": "eth0"}]
    assert node.call("GC", **keys).succeeded()
    listed = sh("nft list chain inet cnikit_portmap conditional4")
    assert ("net1/c1/" in listed, "net1/c2/" in listed) == (False, True)


BAD_KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "backend": ({"backend": "ufw"}, "backend: 'ufw' is neither 'nftables' nor 'iptables'"),
    "markMasqBit": ({"markMasqBit": 32}, "markMasqBit: 32 is not in 0..31"),
    "mark and chain": (
        {"markMasqBit": 1, "externalSetMarkChain": "X"},
        "externalSetMarkChain: cannot be",
    ),
    "nft with iptables": (
        {"backend": "iptables", "conditionsV4": ["ip saddr 1.2.3.4"]},
        "conditionsV4: is for the backend",
    ),
    "iptables with nft": ({"backend": "nftables", "conditionsV6": ["-s", "::1"]}, "conditionsV6: is for"),
    "chain with nft": (
        {"backend": "nftables", "externalSetMarkChain": "X"},
        "externalSetMarkChain: is for the backend",
    ),
    "conditions": (
        {"conditionsV4": ["ip saddr nowhere at all"]},
        "conditionsV4: nft does not understand",
    ),
    "two rules": ({"conditionsV4": ["ip saddr 1.2.3.4 drop; add"]}, "conditionsV4: more than one rule's conditions"),
    "a verdict": ({"conditionsV4": ["drop"]}, "conditionsV4: nft does not understand"),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_bad_keys(node: Node, case: str) -> None:
    keys, why = BAD_KEYS[case]
    code, msg = node.call("ADD", tcp(8080, 80), **keys).error()
    assert (code, msg.startswith(why)) == (7, True), msg
    assert "cnikit_portmap" not in sh("nft list tables")


# iptables, and what the reference has left


@pytest.mark.parametrize(
    "keys", [{"backend": "iptables"}, {"conditionsV4": ["-m", "tcp", "!", "-s", "192.0.2.77"]}], ids=str
)
def test_with_iptables(node: Node, keys: dict[str, Any]) -> None:
    node.call("ADD", tcp(8080, 80), **keys).result()
    assert "CNI-HOSTPORT-DNAT" in sh("iptables-save")
    maps = "".join(sh(f"nft list map inet cnikit_portmap {name}") for name in ("ports4", "host_ports4", "ranges4"))
    assert "cni:" not in maps, "no packet meets both backends"
    with server(node.containers[0], "0.0.0.0", 80) as web:
        assert reached(web, node.outside, "192.0.2.1", 8080) == "192.0.2.2"
        assert reached(web, node.host, "127.0.0.1", 8080) == "10.11.0.1"
    assert node.call("CHECK", tcp(8080, 80), **keys).succeeded()
    sh("iptables -t nat -F CNI-HOSTPORT-DNAT")
    assert node.call("CHECK", tcp(8080, 80), **keys).error()[0] == 101
    node.call("ADD", tcp(8080, 80), **keys).result()
    assert node.call("DEL").succeeded()
    assert "CNI-DN-" not in sh("iptables-save; ip6tables-save")


def test_gc_with_iptables(node: Node) -> None:
    for number in (0, 1):
        node.call("ADD", tcp(8080 + number, 80), number=number, backend="iptables").result()
    keys: dict[str, Any] = {"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]}
    assert node.call("GC", **keys).succeeded()
    saved = sh("iptables-save")
    assert ('id: \\"c1\\"' in saved, 'id: \\"c2\\"' in saved) == (False, True)


@pytest.mark.all
def test_del_takes_away_what_the_reference_made(node: Node) -> None:
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": node.containers[0]}
    prev = {**node.results[0], "cniVersion": "1.0.0"}
    conf = {**config(tcp(8080, 80), udp(53, 53), prev=prev), "cniVersion": "1.0.0"}
    run = subprocess.run(
        [needs_reference() / "portmap"],
        input=json.dumps(conf).encode(),
        env={"PATH": os.environ["PATH"], **environ, "CNI_PATH": "/usr/lib/cni"},
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "CNI-DN-" in sh("iptables-save")
    assert node.call("DEL").succeeded()
    assert "CNI-DN-" not in sh("iptables-save; ip6tables-save")


def test_del_takes_away_rules_of_the_references_nftables_backend(node: Node) -> None:
    for family, address in (("ip", "10.11.0.2"), ("ip6", "[fd00:11::2]")):
        table = f"{family} cni_hostport"
        sh(f"nft 'add table {table}; add chain {table} hostports; add chain {table} masquerading'")
        for container in ("c1", "c12"):
            rule = f'tcp dport 8080 dnat to {address}:80 comment "{container}"'
            sh(f"nft add rule {family} cni_hostport hostports '{rule}'")
    assert node.call("DEL").succeeded()
    listed = sh("nft list ruleset")
    assert listed.count('comment "c1"') == 0
    assert listed.count('comment "c12"') == 2


def test_one_container_may_have_a_port_of_any_address_and_of_one(node: Node) -> None:
    ports = (tcp(8080, 80), tcp(8080, 81, hostIP="192.0.2.1"))
    node.call("ADD", *ports).result()
    environ = {"CNI_COMMAND": "CHECK", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": node.containers[0]}
    asked = request.parse(environ, json.dumps(config(*ports, prev=node.results[0])).encode)
    before = sh("nft list ruleset")
    assert portmap.PLUGIN.repair(asked) == ()
    node.call("ADD", *ports).result()
    assert sh("nft list ruleset") == before
    with server(node.containers[0], "0.0.0.0", 81) as one, server(node.containers[0], "0.0.0.0", 80) as other:
        assert reached(one, node.outside, "192.0.2.1", 8080)
        assert reached(other, node.host, "127.0.0.1", 8080)


def test_a_range_of_the_containers_other_network_makes_all_it_meets_spares(node: Node) -> None:
    node.call("ADD", *(tcp(port, port) for port in range(70, 95))).result()
    second(node).result()
    spares = sh("nft list set inet cnikit_portmap spares4")
    assert spares.count("cni:net2/c1/eth1") == 2
    assert node.call("DEL").succeeded()
    with server(node.containers[0], "10.12.0.2", 91) as web, server(node.containers[0], "10.12.0.2", 71) as other:
        assert reached(web, node.outside, "192.0.2.1", 91)
        assert reached(other, node.outside, "192.0.2.1", 70)


def test_iptables_respects_who_has_a_port_by_nftables(node: Node) -> None:
    node.call("ADD", tcp(8080, 80)).result()
    code, msg = node.call("ADD", tcp(8080, 80), number=1, backend="iptables").error()
    assert (code, "container c1" in msg) == (7, True)
    assert "CNI-" not in sh("iptables-save")


def test_status_with_iptables_that_is_not_there(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host
    monkeypatch.setattr("cnikit.effects.iptables._found", lambda _: "")
    assert Call(portmap.PLUGIN, "STATUS", config(backend="iptables")).error()[0] == 50
    assert Call(portmap.PLUGIN, "STATUS", config()).succeeded()


def test_one_of_two_that_want_a_port_at_once_gets_it(node: Node) -> None:
    """Any address and one address are elements of different sets, which the kernel would let both have."""
    for _ in range(20):
        asked = [(0, tcp(8080, 80)), (1, tcp(8080, 80, hostIP="192.0.2.1"))]
        environ = {"CNI_COMMAND": "ADD", "CNI_IFNAME": "eth0", "PATH": os.environ["PATH"]}
        calls = []
        for number, mapping in asked:
            conf = json.dumps(config(mapping, prev=node.results[number]))
            names = {"CNI_CONTAINERID": f"c{number + 1}", "CNI_NETNS": node.containers[number]}
            command = [sys.executable, "-I", "-c", RUN, str(PROJECT)]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, env={**environ, **names}, text=True, stdin=pipe, stdout=pipe)
            calls.append((process, conf))
        for process, conf in calls:
            assert process.stdin
            process.stdin.write(conf)
        statuses = []
        for process, _ in calls:
            process.communicate()
            statuses.append(process.returncode)
        assert sorted(statuses) == [0, 1]
        for number in (0, 1):
            assert node.call("DEL", number=number).succeeded()


RUN = "import sys; sys.path.insert(0, sys.argv[1]); from cnikit.plugins import portmap; portmap.main(portmap.PLUGIN)"


def test_what_is_looked_at_is_locked(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of a race that is lost without a lock: both look before either writes."""
    seen = []
    settled = hostports.settled

    def look(*given: Any) -> Any:
        seen.append(_is_locked())
        return settled(*given)

    monkeypatch.setattr(hostports, "settled", look)
    node.call("ADD", tcp(8080, 80)).result()
    assert seen == [True]


def _is_locked() -> bool:
    with open(hostports.LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_what_is_published_leaves_the_hosts_own_1_alone(node: Node) -> None:
    node.call("ADD", tcp(8080, 80)).result()
    with server(node.host, "::1", 8080) as own:
        assert reached(own, node.host, "::1", 8080) == "::1"
    code, msg = node.call("ADD", tcp(8081, 80, hostIP="::1")).error()
    assert (code, "hostIP ::1 of port 8081: from ::1 there is no way" in msg) == (7, True)


def test_two_thousand_ports(node: Node) -> None:
    many = [tcp(port, 80) for port in range(20000, 22000)]
    for _ in range(2):
        node.call("ADD", *many, tcp(9000, 9000, hostIP="192.0.2.1")).result()
    assert node.call("CHECK", *many).succeeded()
    code, msg = node.call("ADD", *many, number=1).error()
    assert (code, "is taken by container c1" in msg) == (7, True)
    assert node.call("DEL").succeeded()
    assert "cni:" not in sh("nft list table inet cnikit_portmap")


@pytest.mark.parametrize("spelling", ["0.0.0.0", "::"])
def test_any_address_spelt_in_two_ways(node: Node, spelling: str) -> None:
    node.call("ADD", tcp(8080, 80), tcp(8080, 80, hostIP=spelling)).result()
    assert (
        "tcp port 8080 is to lead to two ports"
        in node.call("ADD", tcp(8080, 80), tcp(8080, 81, hostIP=spelling)).error()[1]
    )


@pytest.mark.parametrize(
    "keys", [{"conditionsV4": ["ip saddr 192.0.2.2"]}, {"backend": "iptables"}], ids=["nft", "iptables"]
)
def test_udp_flows_by_rules_are_forgotten_on_del_too(node: Node, keys: dict[str, Any]) -> None:
    client = udp_socket(node.outside, "192.0.2.2", 4000)
    with (
        client,
        server(node.host, "0.0.0.0", 5353, UDP) as own,
        server(node.containers[0], "0.0.0.0", 53, UDP) as inside,
    ):
        for verb, listening in (("ADD", inside), ("DEL", own)):
            assert node.call(verb, udp(5353, 53), **keys).status == 0
            client.sendto(b"ping", ("192.0.2.1", 5353))
            assert arrived(listening), verb


def test_rules_go_even_if_their_conditions_are_no_longer_configured(node: Node) -> None:
    node.call("ADD", tcp(8080, 80), conditionsV4=["ip saddr 192.0.2.2"]).result()
    assert node.call("DEL").succeeded()
    assert "cni:" not in sh("nft list table inet cnikit_portmap")


def test_many_elements_that_are_gone_already(node: Node) -> None:
    node.call("ADD", tcp(8080, 80)).result()
    comment = "cni:net1/c1/eth0"
    gone = [hostports.port(hostports.Mapping("tcp", port, 80), bytes(4), comment) for port in range(10000, 13000)]
    with World() as world:
        assert world[HOST].rules(hostports.TABLE)
        assert remove(map(Del, gone), world) == []
