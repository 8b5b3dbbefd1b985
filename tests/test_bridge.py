"""bridge: its plan and its faults as tables, then every verb on the kernel."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnikit import flow, ownership, request
from cnikit.effects import kernel
from cnikit.effects.netlink import NetlinkError
from cnikit.errors import CniError
from cnikit.flow import Ends
from cnikit.netlink.rtnetlink import BoundAddress
from cnikit.plan import render
from cnikit.plugins import bridge, tuning
from cnikit.request import Attachment
from cnikit.result import DNS, IP, Result, Route
from cnikit.spec import VERSIONS
from tests.conftest import BUILT, Call, ip, needs_reference, sh

V4, V6 = "10.11.0.2/24", "fd00:11::2/64"
ASKED_FOR = {"runtimeConfig": {"mac": "02:00:00:00:00:09"}}
HOST_END = ownership.host_ends(Attachment("net1", "c1", "eth0"))[0]


def config(version: str = "1.1.0", ipam: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    """Return a configuration of a network with one IPv4 address, or with the ipam given."""
    static = {"type": "static", "addresses": [{"address": V4}]} if ipam is None else ipam
    conf = {"cniVersion": version, "name": "net1", "type": "bridge", "bridge": "br1", "ipam": static}
    return {**conf, **keys}


def static(*addresses: str, **keys: Any) -> dict[str, Any]:
    return {"type": "static", "addresses": [{"address": address} for address in addresses], **keys}


def host_local(networks: Path, *subnets: str) -> dict[str, Any]:
    ranges = [[{"subnet": subnet}] for subnet in subnets or ("10.11.0.0/24",)]
    return {"type": "host-local", "dataDir": str(networks), "ranges": ranges}


def call(verb: str, conf: dict[str, Any], netns: str = "", **environ: str) -> Call:
    return Call(bridge.PLUGIN, verb, conf, CNI_NETNS=netns, **environ)


def parsed(**keys: Any) -> bridge.Conf:
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/n", "CNI_IFNAME": "eth0"}
    return bridge.parse(request.parse(environ, json.dumps(config(**keys)).encode))


def state() -> str:
    """Return all of the host's network and the containers', to compare before with after."""
    return sh("ip -d link; ip addr; ip route; ip -6 route; sysctl -n net.ipv4.ip_forward net.ipv6.conf.all.forwarding")


# The plan, without a kernel.

ENDS = Ends(Attachment("net1", "c1", "eth0"), "/run/netns/a", "vethx")


def test_the_plan_of_a_dual_stack_container() -> None:
    conf = parsed(isDefaultGateway=True, mtu=1400, hairpinMode=True)
    leases = bridge.settle(conf, Result(ips=(IP(V4), IP(V6)), routes=(Route("10.0.0.0/8", table=0, priority=7),)))
    assert render(bridge.plan(conf, leases, ENDS), "/run/netns/a") == (
        "ip link add br1 mtu 1400 type bridge\n"
        "ip link set br1 address $(cat /sys/class/net/br1/address)\n"
        "sysctl -w net/ipv6/conf/br1/accept_ra=0\n"
        "ip link set br1 up\n"
        "ip addr add 10.11.0.1/24 brd 10.11.0.255 dev br1\n"
        "ip addr add fd00:11::1/64 dev br1 nodad\n"
        "sysctl -w net/ipv4/ip_forward=1\n"
        "sysctl -w net/ipv6/conf/all/forwarding=1\n"
        "ip link add vethx master br1 mtu 1400 type veth peer name eth0 address 0a:58:0a:0b:00:02 "
        "mtu 1400 netns /run/netns/a\n"
        "ip link set vethx alias cni:net1/c1/eth0\n"
        "bridge link set dev vethx hairpin on isolated off\n"
        "ip link set vethx up\n"
        "nsenter --net=/run/netns/a sysctl -w net/ipv6/conf/eth0/accept_ra=0\n"
        "nsenter --net=/run/netns/a sysctl -w net/ipv6/conf/lo/disable_ipv6=0\n"
        "nsenter --net=/run/netns/a sysctl -w net/ipv6/conf/eth0/disable_ipv6=0\n"
        "nsenter --net=/run/netns/a sysctl -w net/ipv6/conf/eth0/keep_addr_on_down=1\n"
        "nsenter --net=/run/netns/a sysctl -w net/ipv6/conf/eth0/accept_dad=0\n"
        "nsenter --net=/run/netns/a ip addr add 10.11.0.2/24 brd 10.11.0.255 dev eth0\n"
        "nsenter --net=/run/netns/a ip addr add fd00:11::2/64 dev eth0 nodad\n"
        "nsenter --net=/run/netns/a ip link set eth0 up\n"
        "nsenter --net=/run/netns/a sysctl -w net/ipv4/conf/eth0/arp_notify=1\n"
        "nsenter --net=/run/netns/a sysctl -w net/ipv6/conf/eth0/ndisc_notify=1\n"
        "nsenter --net=/run/netns/a ip route prepend 10.0.0.0/8 via 10.11.0.1 dev eth0 metric 7\n"
        "nsenter --net=/run/netns/a ip route prepend default via 10.11.0.1 dev eth0\n"
        "nsenter --net=/run/netns/a ip -6 route prepend default via fd00:11::1 dev eth0\n"
        "# wait until vethx has a carrier: ip -br link show vethx\n"
    )


def test_the_plan_without_addresses() -> None:
    assert render(bridge.plan(parsed(ipam={}, promiscMode=True, portIsolation=True), Result(), ENDS), "/n") == (
        "ip link add br1 type bridge\n"
        "ip link set br1 address $(cat /sys/class/net/br1/address)\n"
        "sysctl -w net/ipv6/conf/br1/accept_ra=0\n"
        "ip link set br1 up\n"
        "ip link set br1 promisc on\n"
        "ip link add vethx master br1 type veth peer name eth0 netns /run/netns/a\n"
        "ip link set vethx alias cni:net1/c1/eth0\n"
        "bridge link set dev vethx hairpin off isolated on\n"
        "ip link set vethx up\n"
        "nsenter --net=/n ip link set eth0 up\n"
        "# wait until vethx has a carrier: ip -br link show vethx\n"
    )


def test_the_plan_of_a_container_that_sets_its_interface_up_by_itself() -> None:
    assert render(bridge.plan(parsed(ipam={}, disableContainerInterface=True), Result(), ENDS), "/n").endswith(
        "bridge link set dev vethx hairpin off isolated off\nip link set vethx up\n"
    )


@pytest.mark.parametrize(
    ("addresses", "keys", "mac", "announced"),
    [
        pytest.param([V4], {"isGateway": True}, "0a:58:0a:0b:00:02", False, id="v4"),
        pytest.param([V6, V4], {"isGateway": True}, "0a:58:0a:0b:00:02", False, id="both"),
        pytest.param([V6], {"isGateway": True}, "02:58:7f:a1:f0:aa", False, id="v6"),
        pytest.param([], {"macspoofchk": True}, "02:67:ea:c5:a6:d0", False, id="layer-two"),
        pytest.param([V4], {}, "0a:58:0a:0b:00:02", True, id="another-gateway"),
        pytest.param([V4, "10.11.0.9/24"], {"isGateway": True}, "0a:58:0a:0b:00:02", True, id="two-of-a-family"),
        pytest.param([V4], {"isGateway": True, **ASKED_FOR}, "02:00:00:00:00:09", True, id="asked-for"),
        pytest.param([], ASKED_FOR, "02:00:00:00:00:09", True, id="asked-for-in-layer-two"),
        pytest.param(
            [V4],
            {"isGateway": True, "runtimeConfig": {"mac": "0a:58:0a:0b:00:02"}},
            "0a:58:0a:0b:00:02",
            False,
            id="asked-for-and-the-same",
        ),
    ],
)
def test_the_mac_address_and_what_is_announced(
    addresses: list[str], keys: dict[str, Any], mac: str, announced: bool
) -> None:
    conf = parsed(**keys)
    leases = bridge.settle(conf, Result(ips=tuple(map(IP, addresses))))
    lines = render(bridge.plan(conf, leases, ENDS), "/n").splitlines()
    assert [line for line in lines if f"peer name eth0 address {mac} netns" in line]
    last = f"nsenter --net=/n ip link set eth0 address {mac}"
    assert (lines[-1] == last, lines.count(last)) == (announced, announced)


DEFAULTS = [
    pytest.param({}, IP(V4), (), IP(V4), (), id="no-gateway-asked"),
    pytest.param({"isGateway": True}, IP(V4), (), IP(V4, "10.11.0.1"), (), id="first-of-the-subnet"),
    pytest.param({"isGateway": True}, IP(V4, "10.11.0.9"), (), IP(V4, "10.11.0.9"), (), id="ipam-gives-one"),
    pytest.param(
        {"isDefaultGateway": True}, IP(V4), (), IP(V4, "10.11.0.1"), (Route("0.0.0.0/0", "10.11.0.1"),), id="default"
    ),
    pytest.param(
        {"isDefaultGateway": True}, IP(V6), (), IP(V6, "fd00:11::1"), (Route("::/0", "fd00:11::1"),), id="default-v6"
    ),
    pytest.param(
        {"isDefaultGateway": True},
        IP(V4),
        (Route("0.0.0.0/0"),),
        IP(V4, "10.11.0.1"),
        (Route("0.0.0.0/0"),),
        id="ipam-default-without-gateway-counts",
    ),
    pytest.param(
        {"isDefaultGateway": True},
        IP(V4),
        (Route("::/0"),),
        IP(V4, "10.11.0.1"),
        (Route("0.0.0.0/0", "10.11.0.1"),),
        id="ipam-default-of-the-other-family-does-not",
    ),
]


@pytest.mark.parametrize(
    ("address", "gateway"),
    [
        ("10.1.0.7/24", "10.1.0.1"),
        ("10.1.0.1/24", "10.1.0.1"),
        ("10.1.0.6/30", "10.1.0.5"),
        ("10.1.0.6/31", "10.1.0.7"),
        ("10.1.0.7/31", "10.1.0.6"),
        ("fd00::7/126", "fd00::5"),
        ("fd00::6/127", "fd00::7"),
        ("fd00::7/127", "fd00::6"),
    ],
)
def test_the_gateway_of_every_kind_of_subnet(address: str, gateway: str) -> None:
    """As with the reference, but of two addresses it is not the container's own."""
    assert bridge.settle(parsed(isGateway=True), Result(ips=(IP(address),))).ips == (IP(address, gateway),)


@pytest.mark.parametrize("address", ["10.1.0.7/32", "fd00::7/128"])
def test_a_single_address_leaves_none_for_a_gateway(address: str) -> None:
    with pytest.raises(CniError, match=f"isGateway: {address} leaves no address for a gateway"):
        bridge.settle(parsed(isGateway=True), Result(ips=(IP(address),)))


@pytest.mark.parametrize("addresses", [("10.11.0.6/31", "fd00::6/127"), ("10.11.0.7/31", "fd00::7/127")])
def test_a_container_and_its_gateway_can_be_all_there_is(host: str, container: str, addresses: tuple[str, str]) -> None:
    assert host
    added = call("ADD", config(ipam=static(*addresses), isDefaultGateway=True), container).result()
    assert [ping(container, one["gateway"]) for one in added["ips"]] == [True, True]
    assert [ping(host, bare(one)) for one in addresses] == [True, True]


@pytest.mark.parametrize(("keys", "leased", "routes", "completed", "routed"), DEFAULTS)
def test_settle(
    keys: dict[str, Any], leased: IP, routes: tuple[Route, ...], completed: IP, routed: tuple[Route, ...]
) -> None:
    settled = bridge.settle(parsed(**keys), Result(ips=(leased,), routes=routes))
    assert (settled.ips, settled.routes) == ((completed,), routed)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        pytest.param(None, DNS(nameservers=("10.0.0.53",)), id="ipam's"),
        pytest.param({}, DNS(nameservers=("10.0.0.53",)), id="empty-is-none"),
        pytest.param({"search": ["a.b"]}, DNS(search=("a.b",)), id="any-key-replaces-all"),
        pytest.param({"nameservers": []}, DNS(), id="an-empty-list-too"),
    ],
)
def test_dns(given: dict[str, Any] | None, shown: DNS) -> None:
    conf = parsed(dns=given)
    assert bridge.settle(conf, Result(dns=DNS(nameservers=("10.0.0.53",)))).dns == shown


@pytest.mark.parametrize(
    ("keys", "args", "mac"),
    [
        pytest.param({}, "", "", id="none"),
        pytest.param({}, "MAC=02:00:00:00:00:01", "02:00:00:00:00:01", id="CNI_ARGS"),
        pytest.param(
            {"args": {"cni": {"mac": "02-00-00-00-00-0B"}}}, "MAC=02:00:00:00:00:01", "02:00:00:00:00:0b", id="args"
        ),
        pytest.param(
            {"args": {"cni": {"mac": "02:00:00:00:00:02"}}, "runtimeConfig": {"mac": "02:00:00:00:00:03"}},
            "MAC=02:00:00:00:00:01",
            "02:00:00:00:00:03",
            id="runtimeConfig",
        ),
    ],
)
def test_mac_precedence(keys: dict[str, Any], args: str, mac: str) -> None:
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/n", "CNI_IFNAME": "e", "CNI_ARGS": args}
    assert bridge.parse(request.parse(environ, json.dumps(config(**keys)).encode)).mac == mac


# Bad configurations: an error that names the key. The namespace does not exist: it is not even looked at.

BAD = [
    pytest.param({"bridge": 5}, 7, "bridge: expected string, got integer", id="bridge-type"),
    pytest.param({"bridge": ""}, 7, "bridge: '': interface name is empty", id="bridge-empty"),
    pytest.param({"bridge": "a/b"}, 7, "bridge: 'a/b': interface name contains / or : or ", id="bridge-name"),
    pytest.param({"bridge": "a" * 16}, 7, "bridge: 'aaaaaaaaaaaaaaaa': interface name is too long", id="bridge-long"),
    pytest.param({"mtu": "9k"}, 7, "mtu: expected integer, got string", id="mtu-type"),
    pytest.param({"mtu": 67}, 7, "mtu: 67 is not in 68..65535", id="mtu-low"),
    pytest.param({"mtu": 65536}, 7, "mtu: 65536 is not in 0..65535", id="mtu-high"),
    pytest.param({"mtu": -1}, 7, "mtu: -1 is not in 0..65535", id="mtu-negative"),
    pytest.param({"isGateway": "yes"}, 7, "isGateway: expected boolean, got string", id="boolean-type"),
    pytest.param(
        {"hairpinMode": True, "promiscMode": True},
        7,
        "promiscMode: cannot be true together with hairpinMode",
        id="hairpin-and-promisc",
    ),
    pytest.param(
        {"disableContainerInterface": True},
        7,
        "ipam: cannot be used when disableContainerInterface is true",
        id="ipam-and-disabled",
    ),
    pytest.param({"ipMasq": "yes"}, 7, "ipMasq: expected boolean, got string", id="ipMasq"),
    pytest.param({"ipMasqExcept": "10.0.0.0/8"}, 7, "ipMasqExcept: expected list, got string", id="except"),
    pytest.param({"ipMasqExcept": [5]}, 7, "ipMasqExcept[0]: expected string, got integer", id="except-type"),
    pytest.param(
        {"ipMasqExcept": ["10.0.0.0/8", "fd00::/129"]},
        7,
        "ipMasqExcept[1]: 'fd00::/129' has no prefix length of 0 to 128 behind a slash",
        id="except-length",
    ),
    pytest.param(
        {"ipMasqExcept": ["10.0.0.7"]},
        7,
        "ipMasqExcept[0]: '10.0.0.7' has no prefix length of 0 to 32 behind a slash",
        id="except-address",
    ),
    pytest.param(
        {"ipMasqExcept": ["10.0.0.0/8"] * 129},
        7,
        "ipMasqExcept: 129 subnets are too many, 128 is the most",
        id="except-many",
    ),
    pytest.param({"macspoofchk": 1}, 7, "macspoofchk: expected boolean, got integer", id="macspoofchk"),
    pytest.param({"vlan": 7}, 2, "vlan: 7 is not supported", id="vlan"),
    pytest.param({"vlanTrunk": [{"id": 7}]}, 2, "vlanTrunk: [{'id': 7}] is not supported", id="vlanTrunk"),
    pytest.param({"preserveDefaultVlan": True}, 2, "preserveDefaultVlan: True is not supported", id="preserve"),
    pytest.param({"runtimeConfig": {"mac": "x"}}, 7, "runtimeConfig.mac: 'x' is not a MAC address", id="mac"),
    pytest.param({"args": {"cni": {"mac": "x"}}}, 7, "args.cni.mac: 'x' is not a MAC address", id="args-mac"),
    pytest.param({"args": {"cni": []}}, 7, "args.cni: expected object, got list", id="args-type"),
    pytest.param({"ipam": []}, 7, "ipam: expected object, got list", id="ipam-type"),
    pytest.param({"ipam": {"type": 5}}, 7, "ipam.type: expected string, got integer", id="ipam-type-type"),
    pytest.param({"ipam": {"type": "../x"}}, 7, "ipam.type: '../x' is no plugin's name", id="ipam-type-path"),
    pytest.param({"dns": {"search": [5]}}, 7, "dns.search[0]: expected string, got integer", id="dns"),
    pytest.param({"prevResult": 5}, 7, "prevResult: expected object, got integer", id="prevResult"),
]


@pytest.mark.parametrize(("keys", "code", "msg"), BAD)
def test_bad_configuration(host: str, container: str, keys: dict[str, Any], code: int, msg: str) -> None:
    assert host
    before = state()
    got, said = call("ADD", config(**keys), container).error()
    assert got == code
    assert said.startswith(msg)
    assert state() == before
    assert [link["ifname"] for link in ip(f"-n {Path(container).name} link")] == ["lo"]


@pytest.mark.parametrize("value", [False, None, 0, []])
def test_a_key_not_served_may_be_off(host: str, container: str, value: object) -> None:
    assert host
    call("ADD", config(vlan=value), container).result()


# ADD.


@pytest.mark.parametrize("version", VERSIONS)
def test_add_in_every_version(host: str, container: str, version: str) -> None:
    assert host
    given = call("ADD", config(version, static(V4, V6), isDefaultGateway=True), container).result()
    links = {link["ifname"]: link for link in ip("link") + ip(f"-n {Path(container).name} link")}
    routes = [{"dst": "0.0.0.0/0", "gw": "10.11.0.1"}, {"dst": "::/0", "gw": "fd00:11::1"}]
    if version < "0.3.0":
        assert given == {
            "cniVersion": version,
            "ip4": {"ip": V4, "gateway": "10.11.0.1", "routes": routes[:1]},
            "ip6": {"ip": V6, "gateway": "fd00:11::1", "routes": routes[1:]},
            "dns": {},
        }
        return
    numbered = [{"version": "4"}, {"version": "6"}] if version < "1.0.0" else [{}, {}]
    assert given == {
        "cniVersion": version,
        "interfaces": [
            {"name": "br1", "mac": links["br1"]["address"]},
            {"name": HOST_END, "mac": links[HOST_END]["address"]},
            {"name": "eth0", "mac": links["eth0"]["address"], "sandbox": container},
        ],
        "ips": [
            {**numbered[0], "interface": 2, "address": V4, "gateway": "10.11.0.1"},
            {**numbered[1], "interface": 2, "address": V6, "gateway": "fd00:11::1"},
        ],
        "routes": routes,
        **({"dns": {}} if version < "1.0.0" else {}),
    }


def ping(netns: str, address: str) -> bool:
    command = ["ip", "netns", "exec", Path(netns).name, "ping", "-c1", "-W2", address]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_containers_reach_each_other_and_the_gateway(host: str, new_container: Callable[[], str]) -> None:
    assert host
    one, two = new_container(), new_container()
    addresses = ["10.11.0.2", "fd00:11::2", "10.11.0.3", "fd00:11::3"]
    call("ADD", config(ipam=static("10.11.0.2/24", "fd00:11::2/64"), isGateway=True), one).result()
    second = config(ipam=static("10.11.0.3/24", "fd00:11::3/64"), isGateway=True)
    call("ADD", second, two, CNI_CONTAINERID="c2").result()
    assert [ping(one, a) for a in ("10.11.0.1", "fd00:11::1", *addresses[2:])] == [True] * 4
    assert [ping(two, a) for a in ("10.11.0.1", "fd00:11::1", *addresses[:2])] == [True] * 4
    assert sh("sysctl -n net.ipv4.ip_forward net.ipv6.conf.all.forwarding").split() == ["1", "1"]


SECOND = config(ipam=static("10.11.0.3/24", "fd00:11::3/64"), isGateway=True)
EXPECTED = "0a:58:0a:0b:00:03"  # the MAC address made from its IPv4 address


def second(verb: str, netns: str, conf: dict[str, Any], prev_result: dict[str, Any] | None = None) -> Call:
    """Attach or detach a container beside the first one."""
    return call(verb, {**conf, "prevResult": prev_result} if prev_result else conf, netns, CNI_CONTAINERID="c2")


@pytest.mark.parametrize(
    ("addresses", "mac"),
    [
        (["10.11.0.3/24"], EXPECTED),
        (["fd00:11::3/64", "10.11.0.3/24"], EXPECTED),
        (["fd00:11::3/64"], "02:b6:d2:b0:40:4e"),
    ],
)
def test_who_has_an_address_after_another_is_reached_at_once(
    host: str, new_container: Callable[[], str], addresses: list[str], mac: str
) -> None:
    """Neighbours remember another's MAC address for a while."""
    assert host
    one, two, three = new_container(), new_container(), new_container()
    call("ADD", config(ipam=static("10.11.0.2/24", "fd00:11::2/64")), one).result()
    conf = config(ipam=static(*addresses), isGateway=True)
    for container in (two, three):
        added = second("ADD", container, conf).result()
        assert [ping(one, bare(address)) for address in addresses] == [True] * len(addresses)
        assert [neighbour(one, address) for address in addresses] == [mac] * len(addresses)
        assert second("DEL", container, conf, added).succeeded()


def remembered(new_container: Callable[[], str], conf: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Have one container know another; return both and the other's result."""
    one, two = new_container(), new_container()
    call("ADD", config(ipam=static("10.11.0.2/24", "fd00:11::2/64")), one).result()
    added = second("ADD", two, conf).result()
    assert [ping(one, address) for address in ("10.11.0.3", "fd00:11::3")] == [True, True]
    return one, two, added


@pytest.mark.parametrize("keys", [{}, {"macspoofchk": True}], ids=["alone", "macspoofchk"])
def test_neighbours_hear_of_a_mac_address_they_cannot_expect(
    host: str, new_container: Callable[[], str], keys: dict[str, Any]
) -> None:
    assert host
    one, two, added = remembered(new_container, SECOND)
    assert second("DEL", two, SECOND, added).succeeded()
    assert [neighbour(one, ip["address"]) for ip in added["ips"]] == [EXPECTED] * 2
    added = second("ADD", two, {**SECOND, **ASKED_FOR, **keys}).result()
    mac = "02:00:00:00:00:09"
    assert [heard(one, ip["address"], mac) for ip in added["ips"]] == [mac] * 2


@pytest.mark.parametrize("keys", [{}, {"macspoofchk": True}], ids=["alone", "macspoofchk"])
def test_neighbours_hear_on_del_of_the_mac_address_that_comes_next(
    host: str, new_container: Callable[[], str], keys: dict[str, Any]
) -> None:
    assert host
    conf = {**SECOND, **ASKED_FOR, **keys}
    one, two, added = remembered(new_container, conf)
    assert [neighbour(one, ip["address"]) for ip in added["ips"]] == ["02:00:00:00:00:09"] * 2
    assert second("DEL", two, conf, added).succeeded()
    assert [heard(one, ip["address"], EXPECTED) for ip in added["ips"]] == [EXPECTED] * 2


def test_neighbours_hear_of_a_mac_address_that_tuning_sets_and_takes_back(
    host: str, new_container: Callable[[], str], tmp_path: Path
) -> None:
    assert host
    one, two, added = remembered(new_container, SECOND)
    conf: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net1", "type": "tuning", "mac": "02:00:00:00:00:09"}
    conf |= {"dataDir": str(tmp_path / "tuning"), "prevResult": added}
    for verb, mac in (("ADD", "02:00:00:00:00:09"), ("DEL", EXPECTED)):
        assert Call(tuning.PLUGIN, verb, conf, CNI_NETNS=two, CNI_CONTAINERID="c2").status == 0
        assert [heard(one, ip["address"], mac) for ip in added["ips"]] == [mac] * 2


@pytest.mark.parametrize("version", ["0.2.0", "1.1.0"])
@pytest.mark.parametrize("prev_result", [{}, {"ips": [{"address": "nonsense"}]}], ids=["missing", "unreadable"])
def test_neighbours_hear_whatever_del_is_given(
    host: str, new_container: Callable[[], str], version: str, prev_result: dict[str, Any]
) -> None:
    assert host
    conf = {**SECOND, **ASKED_FOR, "cniVersion": version}
    one, two, _ = remembered(new_container, conf)
    assert second("DEL", two, conf, prev_result).succeeded()
    assert [heard(one, address, EXPECTED) for address in ("10.11.0.3", "fd00:11::3")] == [EXPECTED] * 2


@pytest.mark.parametrize(
    "command", ["add fd99::5/64 dev eth0", "add 169.254.3.3/16 dev eth0", "add 10.9.9.9/32 dev eth0"]
)
@pytest.mark.parametrize("address", ["10.11.0.3/24", "fd00:11::3/64"])
@pytest.mark.parametrize("known", [True, False], ids=["prev-result", "none"])
def test_del_does_not_tell_neighbours_otherwise_of_what_they_know(
    host: str, new_container: Callable[[], str], address: str, command: str, known: bool
) -> None:
    """A container may have more addresses by then than IPAM gave it."""
    assert host
    one, two = new_container(), new_container()
    call("ADD", config(ipam=static("10.11.0.2/24", "fd00:11::2/64")), one).result()
    conf = config(ipam=static(address), isGateway=True, ipv6Autoconf=True)
    added = second("ADD", two, conf).result()
    assert ping(one, bare(address))
    before = neighbour(one, address)
    sh(f"ip -n {Path(two).name} addr flush dev eth0 scope global; ip -n {Path(two).name} addr {command}")
    sh(f"ip -n {Path(two).name} addr add {address} dev eth0")
    assert second("DEL", two, conf, added if known else None).succeeded()
    assert neighbour(one, address) == before == added["interfaces"][-1]["mac"]


def test_what_goes_wrong_in_telling_neighbours_does_not_keep_del_from_its_work(
    host: str, new_container: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> list[BoundAddress]:
        raise NetlinkError(105, "")

    conf = {**SECOND, **ASKED_FOR}
    one, two, added = remembered(new_container, conf)
    with monkeypatch.context() as patched:
        patched.setattr(kernel.Kernel, "addresses", refuse)
        assert second("DEL", two, conf, added).succeeded()
    assert neighbour(one, "10.11.0.3") == "02:00:00:00:00:09"
    assert len(ip("link show type veth")) == 1


def test_del_again_leaves_the_mac_address_of_another_attachment_alone(host: str, container: str) -> None:
    """A runtime may repeat a DEL at any time, also when the container has joined another network."""
    first = config()
    first["prevResult"] = call("ADD", first, container).result()
    assert call("DEL", first, container).succeeded()
    other: dict[str, Any] = {**config(ipam=static("10.12.0.7/24")), "name": "net2", "bridge": "br2", **ASKED_FOR}
    other["prevResult"] = call("ADD", other, container).result()
    assert call("DEL", first, container).succeeded()
    assert call("CHECK", other, container).succeeded()
    assert ip(f"-n {Path(container).name} link show eth0")[0]["address"] == "02:00:00:00:00:09"


@pytest.mark.parametrize("kind", ["type bridge", "type veth peer name eth9"])
def test_del_leaves_the_mac_address_of_what_it_does_not_delete_alone(host: str, container: str, kind: str) -> None:
    conf = config()
    conf["prevResult"] = call("ADD", conf, container).result()
    inside = f"ip -n {Path(container).name}"
    sh(f"{inside} link set eth0 down; {inside} link set eth0 name eth8; {inside} link add eth0 {kind}")
    sh(f"{inside} addr add 10.13.0.1/24 dev eth0")
    before = ip(f"-n {Path(container).name} link show eth0")[0]["address"]
    assert call("DEL", conf, container).succeeded()
    assert ip(f"-n {Path(container).name} link show eth0")[0]["address"] == before
    assert HOST_END not in state()


def bare(address: str) -> str:
    return address.partition("/")[0]


def heard(netns: str, address: str, mac: str) -> str:
    """Wait until a container has heard that an address has this MAC address; return the one it knows."""
    end = time.monotonic() + 10
    while neighbour(netns, address) != mac and time.monotonic() < end:
        time.sleep(0.01)
    return neighbour(netns, address)


def neighbour(netns: str, address: str) -> str:
    """Return the MAC address by which a container reaches another."""
    (entry,) = ip(f"-n {Path(netns).name} neigh show {bare(address)}")
    mac: str = entry["lladdr"]
    return mac


def test_isolated_ports_reach_the_gateway_only(host: str, new_container: Callable[[], str]) -> None:
    assert host
    one, two = new_container(), new_container()
    call("ADD", config(isGateway=True, portIsolation=True), one).result()
    second = config(ipam=static("10.11.0.3/24"), isGateway=True, portIsolation=True)
    call("ADD", second, two, CNI_CONTAINERID="c2").result()
    assert [ping(one, "10.11.0.1"), ping(one, "10.11.0.3"), ping(two, "10.11.0.1")] == [True, False, True]


def test_what_the_configuration_says_is_in_the_kernel(host: str, container: str) -> None:
    assert host
    conf = config(mtu=1300, hairpinMode=True, runtimeConfig={"mac": "02:00:00:00:00:09"})
    call("ADD", conf, container).result()
    end = ip(f"-d link show {HOST_END}")[0]
    assert (end["mtu"], end["ifalias"], end["master"]) == (1300, "cni:net1/c1/eth0", "br1")
    assert end["linkinfo"]["info_slave_data"]["hairpin"] is True
    inside = ip(f"-n {Path(container).name} link show eth0")[0]
    assert (inside["mtu"], inside["address"]) == (1300, "02:00:00:00:00:09")
    assert ip("link show br1")[0]["mtu"] == 1300


def test_promiscuous_bridge(host: str, container: str) -> None:
    assert host
    call("ADD", config(promiscMode=True), container).result()
    assert "PROMISC" in ip("link show br1")[0]["flags"]


def test_routes_of_every_kind(host: str, container: str) -> None:
    assert host
    routes = [
        {"dst": "10.20.0.0/16"},
        {"dst": "10.21.0.0/16", "gw": "10.11.0.77", "mtu": 1200, "advmss": 1100, "priority": 9, "table": 300},
        {"dst": "10.22.0.0/16", "scope": 253},
        {"dst": "0.0.0.0/0"},
    ]
    call("ADD", config(ipam=static(V4, routes=routes), isDefaultGateway=True), container).result()
    name = Path(container).name
    shown = {route["dst"]: route for route in ip(f"-n {name} route show table all") if route.get("dev") == "eth0"}
    assert shown["10.20.0.0/16"]["gateway"] == "10.11.0.1"
    far = shown["10.21.0.0/16"]
    assert (far["gateway"], far["metric"], far["table"]) == ("10.11.0.77", 9, "300")
    assert far["metrics"] == [{"mtu": 1200, "advmss": 1100}]
    assert "gateway" not in shown["10.22.0.0/16"]
    assert shown["default"]["gateway"] == "10.11.0.1"


def test_duplicate_address_detection_is_waited_for(host: str, container: str) -> None:
    assert host
    call("ADD", config(ipam=static(V6), enabledad=True), container).result()
    shown = sh(f"ip -n {Path(container).name} -6 addr show dev eth0 scope global")
    assert V6 in shown
    assert "tentative" not in shown
    assert "nodad" not in shown


def test_layer_two(host: str, container: str) -> None:
    assert host
    given = call("ADD", config(ipam={}), container).result()
    assert [entry["name"] for entry in given["interfaces"]] == ["br1", HOST_END, "eth0"]
    assert set(given) == {"cniVersion", "interfaces"}
    assert "UP" in ip(f"-n {Path(container).name} link show eth0")[0]["flags"]


def test_the_containers_interface_may_be_left_down(host: str, container: str) -> None:
    assert host
    call("ADD", config(ipam={}, disableContainerInterface=True), container).result()
    assert "UP" not in ip(f"-n {Path(container).name} link show eth0")[0]["flags"]


def test_what_it_made_comes_before_what_others_did_and_nothing_of_loopback_is_left(host: str, container: str) -> None:
    """Runtimes take the first address of a family for the container's: Nomad's lists begin with loopback."""
    assert host
    previous: dict[str, Any] = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "lo", "sandbox": container, "mtu": 65536}, {"name": "net9", "sandbox": container}],
        "ips": [
            {"address": "127.0.0.1/8", "interface": 0},
            {"address": "::1/128"},
            {"address": "203.0.113.9/24", "interface": 1},
            {"address": "2001:db8::9/64"},
        ],
        "routes": [{"dst": "10.0.0.0/8", "table": 0}],
        "dns": {"domain": "a.b"},
    }
    given = call("ADD", config(prevResult=previous), container).result()
    assert [entry["name"] for entry in given["interfaces"]] == ["br1", HOST_END, "eth0", "net9"]
    assert given["ips"] == [
        {"address": V4, "interface": 2},
        {"address": "203.0.113.9/24", "interface": 3},
        {"address": "2001:db8::9/64"},
    ]
    assert given["routes"] == previous["routes"]
    assert given["dns"] == previous["dns"]


def test_a_route_with_host_bits_is_shown_as_the_kernel_has_it(host: str, container: str) -> None:
    assert host
    conf = config(ipam=static(V4, routes=[{"dst": "10.77.8.9/16"}]), isGateway=True)
    added = call("ADD", conf, container).result()
    assert added["routes"] == [{"dst": "10.77.0.0/16"}]
    assert ip(f"-n {Path(container).name} route show 10.77.0.0/16")[0]["dst"] == "10.77.0.0/16"
    for given in ("10.77.0.0/16", "10.77.8.9/16"):  # as one has it that was added by the reference
        previous = {**added, "routes": [{"dst": given}]}
        assert call("CHECK", {**conf, "prevResult": previous}, container).succeeded()


def test_an_index_into_nothing_does_not_become_that_of_the_containers_interface(host: str, container: str) -> None:
    assert host
    ips = [{"address": "10.77.0.2/24", "interface": index} for index in (-1, 0, 2)]
    added = call("ADD", config(prevResult={"ips": ips}), container).result()
    assert added["ips"] == [{"address": V4, "interface": 2}, *({"address": "10.77.0.2/24"} for _ in ips)]
    assert call("CHECK", config(prevResult=added), container).succeeded()


def test_one_container_joins_a_network_twice(host: str, container: str) -> None:
    assert host
    call("ADD", config(), container).result()
    call("ADD", config(ipam=static("10.11.0.3/24")), container, CNI_IFNAME="eth1").result()
    assert call("DEL", config(), container).succeeded()
    assert [link["ifname"] for link in ip(f"-n {Path(container).name} link")] == ["lo", "eth1"]


# An ADD that fails leaves what it found: links, addresses, sysctls, leases.


def _dummy_bridge(container: str) -> None:
    assert container
    sh("ip link add br1 type veth peer name br1p")


def _ifname_taken(container: str) -> None:
    sh(f"ip -n {Path(container).name} link add eth0 type veth peer name eth0p")


def _other_address(container: str) -> None:
    assert container
    sh("ip link add br1 type bridge && ip addr add 10.99.0.1/24 dev br1")


def _nothing(container: str) -> None:
    assert container


FAILING = [
    pytest.param(_dummy_bridge, {}, 7, "bridge: br1 already exists and is no bridge but a veth", id="bridge-is-a-veth"),
    pytest.param(_ifname_taken, {}, 4, "CNI_IFNAME: eth0 already exists in /run/netns/cnikit-test-", id="ifname-taken"),
    pytest.param(
        _other_address,
        {"isGateway": True},
        7,
        "bridge br1 already has an IP address different from 10.11.0.1/24: 10.99.0.1/24",
        id="address-conflict",
    ),
    pytest.param(
        _nothing, {"ipam": {"type": "none"}}, 7, "ipam.type: failed to find plugin none in path", id="no-ipam"
    ),
    pytest.param(
        _nothing, {"ipam": static("10.11.0.2")}, 7, "static: ipam.addresses[0].address: '10.11.0.2'", id="ipam-fails"
    ),
    pytest.param(_nothing, {"ipam": static()}, 102, "ipam.type: static gave no address", id="ipam-gives-nothing"),
    pytest.param(
        _nothing, {"ipam": static(V6), "mtu": 1000}, 7, "mtu: 1000 is too small for IPv6, which needs 1280", id="mtu-v6"
    ),
    pytest.param(
        _nothing,
        {"ipam": static("255.255.255.255/32"), "isGateway": True},
        7,
        "isGateway: 255.255.255.255/32 leaves no address for a gateway",
        id="no-room-for-a-gateway",
    ),
    pytest.param(
        _nothing,
        {"ipam": static(V4, routes=[{"dst": "10.9.0.0/16", "scope": 300}])},
        7,
        "static: ipam.routes[0].scope: 300 is not in 0..255",
        id="scope",
    ),
    pytest.param(
        _nothing,
        {"ipam": static(V4, routes=[{"dst": "10.9.0.0/16", "gw": "10.200.0.1"}])},
        100,
        "ip route prepend 10.9.0.0/16 via 10.200.0.1 dev eth0: Network is unreachable",
        id="kernel-refuses-a-route",
    ),
]


@pytest.mark.parametrize(("prepare", "keys", "code", "msg"), FAILING)
def test_failed_add(
    host: str, container: str, prepare: Callable[[str], None], keys: dict[str, Any], code: int, msg: str
) -> None:
    assert host
    # The bridge is shared and stays once it is made, so let it be there before.
    call("ADD", config(bridge="br0", name="other", ipam={}), container, CNI_IFNAME="x").result()
    prepare(container)
    if prepare is _nothing:
        sh("ip link add br1 type bridge && ip link set br1 up && sysctl -qw net.ipv6.conf.br1.accept_ra=0")
        sh("sleep 0.1")
    before, inside = state(), sh(f"ip -n {Path(container).name} link")
    got, said = call("ADD", config(**keys), container).error()
    assert got == code
    assert said.startswith(msg)
    assert sh(f"ip -n {Path(container).name} link") == inside
    assert _links(state()) == _links(before)


def _links(shown: str) -> set[str]:
    return {line.split(":")[1] for line in shown.splitlines() if line[:1].isdigit() and ": " in line}


def test_a_failed_add_gives_its_addresses_back(host: str, container: str, networks: Path) -> None:
    assert host
    routes = [{"dst": "10.9.0.0/16", "gw": "10.200.0.1"}]
    code, _ = call("ADD", config(ipam={**host_local(networks), "routes": routes}), container).error()
    assert code == 100
    assert [file.name for file in (networks / "net1").glob("10.*")] == []


def test_an_add_that_cannot_tell_what_it_made_takes_it_back(
    host: str, container: str, networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host

    def made(*_: object) -> Result:
        raise CniError(100, "netlink: No buffer space available")

    monkeypatch.setattr(flow, "_made", made)
    conf = config(ipam=host_local(networks), ipMasq=True)
    assert call("ADD", conf, container).error() == (100, "netlink: No buffer space available")
    assert [link["ifname"] for link in ip("link")] == ["lo", "br1"]
    assert "10.11.0.2" not in sh("nft list ruleset")
    assert [file.name for file in (networks / "net1").glob("10.*")] == []


def test_a_second_add_fails_and_harms_nothing(host: str, container: str, networks: Path) -> None:
    assert host
    conf = config(ipam=host_local(networks), isGateway=True)
    call("ADD", conf, container).result()
    assert call("ADD", conf, container).error()[0] == 4
    assert ping(container, "10.11.0.1")
    assert [file.name for file in (networks / "net1").glob("10.*")] == ["10.11.0.2"]


def test_the_same_container_in_another_namespace_is_refused(host: str, new_container: Callable[[], str]) -> None:
    assert host
    one, two = new_container(), new_container()
    call("ADD", config(), one).result()
    code, msg = call("ADD", config(), two).error()
    assert (code, msg) == (4, f"CNI_CONTAINERID: {HOST_END}, the host end of this container's eth0, already exists")


def test_exhaustion_is_told_with_code_11(host: str, new_container: Callable[[], str], networks: Path) -> None:
    assert host
    conf = config(ipam=host_local(networks, "10.11.0.0/30"))
    call("ADD", conf, new_container()).result()
    last = new_container()
    code, msg = call("ADD", conf, last, CNI_CONTAINERID="c2").error()
    assert code == 11
    assert "10.11.0.0/30" in msg
    assert [link["ifname"] for link in ip(f"-n {Path(last).name} link")] == ["lo"]


def _file(tmp: Path, content: bytes) -> str:
    (tmp / "file").write_bytes(content)
    return str(tmp / "file")


def _fifo(tmp: Path) -> str:
    os.mkfifo(tmp / "fifo")
    return str(tmp / "fifo")


NETNS = [
    pytest.param(lambda tmp: str(tmp / "gone"), "CNI_NETNS: {} is not there", id="missing"),
    pytest.param(lambda tmp: _file(tmp, b""), "CNI_NETNS: {} is not there", id="left-of-a-mount"),
    pytest.param(lambda tmp: _file(tmp, b"x"), "CNI_NETNS: {} is no network namespace", id="a-file"),
    pytest.param(str, "CNI_NETNS: {} is no network namespace", id="a-folder"),
    pytest.param(lambda _: "/proc/self/ns/mnt", "CNI_NETNS: {} is no network namespace", id="another-kind"),
    pytest.param(
        lambda _: "/proc/self/ns/net", "plugin's netns and netns from CNI_NETNS should not be the same", id="the-host's"
    ),
    pytest.param(_fifo, "CNI_NETNS: {} is no network namespace", id="a-fifo-nobody-writes"),
]


@pytest.mark.parametrize(("path", "msg"), NETNS)
@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_no_namespace(host: str, tmp_path: Path, verb: str, path: Callable[[Path], str], msg: str) -> None:
    assert host
    sandbox = path(tmp_path)
    assert call(verb, config(prevResult={"cniVersion": "1.1.0"}), sandbox).error() == (8, msg.format(sandbox))
    assert _links(state()) == {" lo"}


def test_the_own_namespace_is_accepted_when_said_so(host: str) -> None:
    call("ADD", config(), host, CNI_NETNS_OVERRIDE="1").result()
    assert {"br1", HOST_END, "eth0"} < {link["ifname"] for link in ip("link")}
    assert call("DEL", config(), host, CNI_NETNS_OVERRIDE="1").succeeded()
    assert "eth0" not in {link["ifname"] for link in ip("link")}


def test_without_addresses_the_oldest_versions_refuse_before_anything_is_done(host: str, container: str) -> None:
    assert host
    code, msg = call("ADD", config("0.2.0", {}), container).error()
    assert (code, msg) == (7, "cniVersion: 0.2.0 has no way to show a result without addresses")
    assert _links(state()) == {" lo"}


def test_many_routes(host: str, container: str) -> None:
    assert host
    routes = [{"dst": f"10.{100 + (n >> 8)}.{n & 255}.0/24"} for n in range(600)]
    call("ADD", config(ipam=static(V4, routes=routes), isGateway=True), container).result()
    assert len(ip(f"-n {Path(container).name} route")) == 601


def test_two_gateways_of_one_network_are_not_in_each_others_way(host: str, container: str) -> None:
    assert host
    for force in (True, False):
        conf = config(ipam=static(V4, "10.12.0.2/24"), isGateway=True, forceAddress=force)
        conf["prevResult"] = call("ADD", conf, container).result()
        del conf["prevResult"]["cniVersion"]
        assert call("CHECK", conf, container).succeeded()
        assert call("DEL", conf, container).succeeded()


def test_a_link_local_gateway_is_not_in_the_way_of_the_bridges_own(host: str, new_container: Callable[[], str]) -> None:
    assert host
    call("ADD", config(isGateway=True), new_container()).result()
    ipam = {"type": "static", "addresses": [{"address": V6, "gateway": "fe80::1"}]}
    call("ADD", config(ipam=ipam, isGateway=True), new_container(), CNI_CONTAINERID="c2").result()


def test_a_sysctl_that_may_fail_does_not_fail_an_add(
    host: str, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cnikit.effects import sysctl

    def read_only(name: str, value: str) -> None:
        raise OSError(30, f"{name}={value}")

    monkeypatch.setattr(sysctl, "write", read_only)
    assert host
    call("ADD", config(), container).result()


# DEL.


def _gone_netns(container: str, _: Path) -> str:
    sh(f"ip netns del {Path(container).name}")
    return container


def _no_netns(container: str, _: Path) -> str:
    assert container
    return ""


def _gone_link(container: str, _: Path) -> str:
    sh(f"ip link del {HOST_END}")
    return container


def _no_alias(container: str, _: Path) -> str:
    sh(f"ip link set {HOST_END} alias ''")
    return container


def _left_file(container: str, networks: Path) -> str:
    sh(f"ip netns del {Path(container).name}")
    (networks / "netns").write_bytes(b"")
    return str(networks / "netns")


def _not_a_netns(container: str, _: Path) -> str:
    assert container
    return "/proc/self/ns/mnt"


def _untouched(container: str, _: Path) -> str:
    return container


@pytest.mark.parametrize(
    "prepare", [_untouched, _gone_netns, _no_netns, _gone_link, _no_alias, _left_file], ids=lambda f: f.__name__[1:]
)
def test_del_leaves_nothing_whatever_is_gone(
    host: str, container: str, networks: Path, prepare: Callable[[str, Path], str]
) -> None:
    assert host
    conf = config(ipam=host_local(networks), isDefaultGateway=True)
    call("ADD", conf, container).result()
    sandbox = prepare(container, networks)
    for _ in range(2):
        assert call("DEL", conf, sandbox).succeeded()
        assert {link["ifname"] for link in ip("link")} == {"lo", "br1"}
        assert [file.name for file in (networks / "net1").glob("10.*")] == []


@pytest.mark.parametrize("path", ["/proc/self/ns/mnt", "/proc/self/ns/net", "/etc/hostname"])
def test_del_with_a_path_of_no_use_deletes_by_the_tag(host: str, container: str, networks: Path, path: str) -> None:
    assert host
    conf = config(ipam=host_local(networks))
    call("ADD", conf, container).result()
    assert call("DEL", conf, path).succeeded()
    assert _links(state()) == {" lo", " br1"}
    assert [file.name for file in (networks / "net1").glob("10.*")] == []


def test_del_with_a_path_of_no_use_says_so_when_it_is_needed(host: str, networks: Path) -> None:
    assert host
    assert call("DEL", config(ipam=host_local(networks)), "/proc/self/ns/mnt").error()[0] == 8


@pytest.mark.parametrize(
    "kind", ["bridge", "veth peer name x netns {elsewhere}"], ids=["no-veth", "its-other-end-elsewhere"]
)
def test_del_leaves_what_bridge_cannot_have_made(host: str, new_container: Callable[[], str], kind: str) -> None:
    assert host
    name, elsewhere = (Path(new_container()).name for _ in range(2))
    sh(f"ip -n {name} link add eth0 type {kind.format(elsewhere=elsewhere)}")
    assert call("DEL", config(), f"/run/netns/{name}").succeeded()
    assert [link["ifname"] for link in ip(f"-n {name} link")] == ["lo", "eth0"]


def test_del_deletes_the_tagged_end_beside_one_that_is_half_made(host: str, container: str) -> None:
    assert host
    sh(f"ip link add {HOST_END} type veth peer name half")
    call("ADD", config(), container).result()
    assert call("DEL", config(), container).succeeded()
    assert _links(state()) == {" lo", " br1"}


def test_del_of_what_never_was(host: str, container: str, networks: Path) -> None:
    assert host
    assert call("DEL", config(ipam=host_local(networks)), container).succeeded()
    assert not networks.exists()


def test_del_needs_no_valid_configuration(host: str, container: str, networks: Path) -> None:
    assert host
    call("ADD", config(ipam=host_local(networks)), container).result()
    broken = config(ipam={**host_local(networks), "ranges": 5}, bridge=7, mtu="x", ipMasq=True, prevResult=5)
    assert call("DEL", broken, container).succeeded()
    assert _links(state()) == {" lo", " br1"}
    assert [file.name for file in (networks / "net1").glob("10.*")] == []


def test_del_removes_the_link_although_the_delegate_is_missing(host: str, container: str) -> None:
    assert host
    call("ADD", config(), container).result()
    code, msg = call("DEL", config(), container, CNI_PATH="/nowhere").error()
    assert (code, msg) == (7, "ipam.type: failed to find plugin static in path /nowhere")
    assert _links(state()) == {" lo", " br1"}


def test_del_of_what_is_gone_leaves_what_has_come_to_its_place(host: str, container: str) -> None:
    """The namespace's path may be another container's by now, which another suite attached."""
    assert host
    conf = config()
    conf["prevResult"] = call("ADD", conf, container).result()
    sh(f"ip link del {HOST_END}; ip link add veth7 type veth peer name eth0 netns {Path(container).name}")
    assert call("DEL", conf, container).succeeded()
    assert ip(f"-n {Path(container).name} link show eth0")
    assert call("DEL", config(), container).succeeded()
    assert "veth7" not in state(), "without prevResult it may be the reference's of this very container"


def test_del_does_not_touch_another_containers_interface(host: str, container: str) -> None:
    assert host
    call("ADD", config(isGateway=True), container).result()
    assert call("ADD", config(ipam=static("10.11.0.3/24")), container, CNI_CONTAINERID="c2").error()[0] == 4
    assert call("DEL", config(), container, CNI_CONTAINERID="c2").succeeded()
    assert ping(container, "10.11.0.1")


# CHECK.


def added(container: str, **keys: Any) -> dict[str, Any]:
    """ADD, and return the configuration for a CHECK."""
    conf = config(ipam=static(V4, V6), isDefaultGateway=True, hairpinMode=True, **keys)
    return {**conf, "prevResult": call("ADD", conf, container).result()}


CHANGES = [
    pytest.param("ip link del {end}", "eth0 is gone from the container", id="link"),
    pytest.param("ip -n {c} addr del 10.11.0.2/24 dev eth0", "10.11.0.2/24 is not on eth0", id="address"),
    pytest.param("ip -n {c} addr del fd00:11::2/64 dev eth0", "fd00:11::2/64 is not on eth0", id="address-v6"),
    pytest.param("ip -n {c} route del default", "route 0.0.0.0/0 via 10.11.0.1 dev eth0 is missing", id="route"),
    pytest.param("ip -n {c} -6 route del default", "route ::/0 via fd00:11::1 dev eth0 is missing", id="route-v6"),
    pytest.param(
        "ip -n {c} route change default via 10.11.0.9",
        "route 0.0.0.0/0 via 10.11.0.1 dev eth0 is missing",
        id="route-elsewhere",
    ),
    pytest.param("ip -n {c} link set eth0 down", "eth0 is down", id="down"),
    pytest.param("ip addr del 10.11.0.1/24 dev br1", "10.11.0.1/24 is not on br1", id="bridge-address"),
    pytest.param("ip link set br1 down", "br1 is down", id="bridge-down"),
    pytest.param("ip link set {end} nomaster", "{end} is no port of br1", id="port"),
    pytest.param(
        "bridge link set dev {end} hairpin off", "bridge port {end}: hairpin is off, not on", id="port-hairpin"
    ),
    pytest.param("ip link set {end} down", "{end} is down", id="host-end-down"),
    pytest.param("sysctl -qw net.ipv4.ip_forward=0", "sysctl net/ipv4/ip_forward is 0, not 1", id="forwarding"),
    pytest.param(
        "ip -n {c} link set eth0 down; ip -n {c} link set eth0 address 02:00:00:00:00:05 up",
        "eth0 has the MAC address 02:00:00:00:00:05, not ",
        id="mac",
    ),
    pytest.param("ip link del br1", "bridge br1 is gone", id="bridge"),
]


@pytest.mark.parametrize(("command", "fault"), CHANGES)
def test_check_finds_what_was_changed(host: str, container: str, command: str, fault: str) -> None:
    assert host
    conf = added(container)
    assert call("CHECK", conf, container).succeeded()
    names = {"c": Path(container).name, "end": HOST_END}
    sh(command.format(**names))
    found = call("CHECK", conf, container)
    code, msg = found.error()
    assert code == 101
    assert fault.format(**names) in msg + "; " + found.document.get("details", "")


def test_check_tells_namespaces_by_what_they_are(host: str, container: str) -> None:
    assert host
    conf = added(container)
    assert call("CHECK", conf, f"/proc/self/root{container}").succeeded()


@pytest.mark.parametrize("ipam", [static(V4), {}], ids=["address", "layer-two"])
def test_check_does_not_want_the_mac_address_that_this_build_would_choose(
    host: str, container: str, ipam: dict[str, Any]
) -> None:
    """The reference's containers, and those of earlier builds, have others."""
    assert host
    conf = config(ipam=ipam)
    result = call("ADD", {**conf, **ASKED_FOR}, container).result()
    assert call("CHECK", {**conf, "prevResult": result}, container).succeeded()


def test_check_of_layer_two(host: str, container: str) -> None:
    assert host
    conf = config(ipam={})
    conf["prevResult"] = call("ADD", conf, container).result()
    assert call("CHECK", conf, container).succeeded()


def test_check_of_routes_with_two_next_hops_and_table_zero(host: str, container: str) -> None:
    assert host
    routes = [
        {"dst": "fd01::/64", "gw": "fd00:11::8"},
        {"dst": "fd01::/64", "gw": "fd00:11::9"},
        {"dst": "10.9.0.0/16", "gw": "10.11.0.9", "table": 0},
    ]
    conf = config(ipam=static(V4, V6, routes=routes))
    conf["prevResult"] = call("ADD", conf, container).result()
    assert call("CHECK", conf, container).succeeded()


def test_check_looks_at_its_own_interface_alone(host: str, container: str) -> None:
    assert host
    conf = added(container)
    conf["prevResult"]["ips"].append({"address": "203.0.113.9/32"})
    conf["prevResult"]["interfaces"].insert(0, {"name": "veth" + "0" * 30})
    conf["prevResult"]["interfaces"].insert(0, {"name": "veth12345678"})
    for entry in conf["prevResult"]["ips"][:2]:
        entry["interface"] += 2
    assert call("CHECK", conf, container).succeeded()


def test_check_wants_an_address(host: str, container: str) -> None:
    assert host
    conf = added(container)
    del conf["prevResult"]["ips"]
    assert call("CHECK", conf, container).error() == (101, "prevResult.ips: no address is on eth0")


def test_check_without_prev_result(host: str, container: str) -> None:
    assert host
    assert call("CHECK", config(), container).error() == (7, "prevResult: is missing, and CHECK compares with it")


def test_check_asks_the_delegate(host: str, container: str, networks: Path) -> None:
    assert host
    conf = config(ipam=host_local(networks))
    conf["prevResult"] = call("ADD", conf, container).result()
    assert call("CHECK", conf, container).succeeded()
    (networks / "net1" / "10.11.0.2").unlink()
    code, msg = call("CHECK", conf, container).error()
    assert code == 101
    assert "10.11.0.2" in msg


# GC and STATUS.


def test_gc_removes_what_is_not_listed_and_only_of_its_network(
    host: str, new_container: Callable[[], str], networks: Path
) -> None:
    assert host
    keep, drop, other = new_container(), new_container(), new_container()
    conf = config(ipam=host_local(networks))
    call("ADD", conf, keep).result()
    call("ADD", conf, drop, CNI_CONTAINERID="c2").result()
    call("ADD", {**conf, "name": "net2"}, other, CNI_CONTAINERID="c3").result()
    valid = {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}
    assert call("GC", {**conf, **valid}, CNI_CONTAINERID="", CNI_IFNAME="").succeeded()
    interfaces = [[link["ifname"] for link in ip(f"-n {Path(c).name} link")][1:] for c in (keep, drop, other)]
    assert interfaces == [["eth0"], [], ["eth0"]]
    assert [file.name for file in (networks / "net1").glob("10.*")] == ["10.11.0.2"]
    assert [file.name for file in (networks / "net2").glob("10.*")] == ["10.11.0.2"]


def test_gc_of_long_names(host: str, container: str) -> None:
    assert host
    conf, container_id = config(ipam={}, name="n" * 120), "c" * 120
    call("ADD", conf, container, CNI_CONTAINERID=container_id).result()
    valid = [{"containerID": container_id, "ifname": "eth0"}]
    assert call("GC", {**conf, "cni.dev/valid-attachments": valid}).succeeded()
    assert [link["ifname"] for link in ip(f"-n {Path(container).name} link")] == ["lo", "eth0"]
    assert call("GC", {**conf, "cni.dev/valid-attachments": []}).succeeded()
    assert [link["ifname"] for link in ip(f"-n {Path(container).name} link")] == ["lo"]


def test_gc_without_a_list_frees_nothing(host: str, container: str) -> None:
    assert host
    call("ADD", config(), container).result()
    code, msg = call("GC", config()).error()
    assert code == 7
    assert "cni.dev/valid-attachments" in msg
    assert [link["ifname"] for link in ip(f"-n {Path(container).name} link")] == ["lo", "eth0"]


def test_status_is_well(host: str, networks: Path) -> None:
    assert host
    assert call("STATUS", config(ipam=host_local(networks))).succeeded()
    assert _links(state()) == {" lo"}


def test_status_says_why_an_add_could_not_be_served(host: str, networks: Path) -> None:
    assert host
    conf = config(ipam=host_local(networks))
    assert call("STATUS", config(ipam={"type": "none"})).error() == (
        50,
        f"ipam.type: failed to find plugin none in path {BUILT}",
    )
    sh("ip link add br2 type veth peer name br2p")
    assert call("STATUS", {**conf, "bridge": "br2"}).error() == (
        50,
        "bridge: br2 already exists and is no bridge but a veth",
    )


# With the reference.


@pytest.mark.all
@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_what_the_reference_added_we_check_and_delete(host: str, container: str, networks: Path, version: str) -> None:
    assert host
    conf = config(version, host_local(networks), isDefaultGateway=True)
    result = run_reference("ADD", conf, container)
    assert call("CHECK", {**conf, "prevResult": json.loads(result)}, container).succeeded()
    assert call("DEL", conf, container).succeeded()
    assert _links(state()) == {" lo", " br1"}
    assert [file.name for file in (networks / "net1").glob("10.*")] == []


@pytest.mark.all
def test_what_we_added_the_reference_checks_and_deletes(host: str, container: str, networks: Path) -> None:
    assert host
    conf = config("1.0.0", host_local(networks), isDefaultGateway=True)
    conf["prevResult"] = call("ADD", conf, container).result()
    run_reference("CHECK", conf, container)
    run_reference("DEL", conf, container)
    assert _links(state()) == {" lo", " br1"}
    assert [file.name for file in (networks / "net1").glob("10.*")] == []


@pytest.mark.all
def test_neighbours_hear_of_who_comes_after_the_references_container(
    host: str, new_container: Callable[[], str]
) -> None:
    assert host
    one, two = new_container(), new_container()
    second("ADD", one, SECOND).result()
    conf = config("1.0.0", static(V4, V6))
    conf["prevResult"] = json.loads(run_reference("ADD", conf, two))
    assert [ping(one, bare(address)) for address in (V4, V6)] == [True, True]
    mac = "0a:58:0a:0b:00:02"
    assert mac not in [neighbour(one, address) for address in (V4, V6)]
    assert call("DEL", conf, two).succeeded()
    assert [heard(one, address, mac) for address in (V4, V6)] == [mac] * 2


def run_reference(verb: str, conf: dict[str, Any], netns: str) -> str:
    folder = needs_reference()
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
    done = subprocess.run(
        [folder / "bridge"],
        env={**environ, "CNI_PATH": str(folder)},
        input=json.dumps(conf).encode(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.decode()


def test_check_wants_isolation_where_it_is_configured_and_nowhere_else(host: str, container: str) -> None:
    assert host
    conf = config(portIsolation=True)
    conf["prevResult"] = call("ADD", conf, container).result()
    assert call("CHECK", conf, container).succeeded()
    assert call("CHECK", {**conf, "portIsolation": False}, container).succeeded(), "another plugin may isolate a port"
    sh(f"bridge link set dev {HOST_END} isolated off")
    assert call("CHECK", conf, container).error() == (101, f"bridge port {HOST_END}: isolated is off, not on")
