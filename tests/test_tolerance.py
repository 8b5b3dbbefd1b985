"""What is read although it is odd: each key of a result and of runtimeConfig, with every value that a client may send.

Each row says what the reference makes of it, and what this suite does where that is something else, and why. Nothing is
refused that the reference takes unless taking it would do harm, or hide that something asked for is not done.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnikit import chained, configure, jsontext, request, result
from cnikit.errors import CniError
from cnikit.ipam import host_local, static
from cnikit.plugins import portmap, tuning
from tests.conftest import Call, needs_reference

REFUSED = "refused"
ENVIRON = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/nonexistent"}


class Row(NamedTuple):
    """A value, what the reference makes of it, what this suite does instead (an error's text, if it refuses it)."""

    given: Any
    reference: Any
    ours: Any = None
    why: str = ""
    version: str = "1.0.0"
    newer: bool = False  # what the reference does is read from its source: Debian's is older than the key


def interface(**keys: Any) -> dict[str, Any]:
    return {"interfaces": [keys]}


def ip(interfaces: int = 0, **keys: Any) -> dict[str, Any]:
    links = {"interfaces": [{"name": f"eth{n}"} for n in range(interfaces)]} if interfaces else {}
    return {**links, "ips": [{"address": "10.0.0.7/8", **keys}]}


def address(text: Any) -> dict[str, Any]:
    return {"ips": [{"address": text}]}


def route(dst: Any = "10.0.0.0/8", **keys: Any) -> dict[str, Any]:
    return {"routes": [{"dst": dst, **keys}]}


def dns(**keys: Any) -> dict[str, Any]:
    return {"dns": keys}


NULL_ITEM = "no plugin prints one, and the reference crashes on it among ips"
SPELLING = "who compares it with the kernel's finds the same"
NOWHERE = "an index into nothing is none; kept, it would become that of an interface added later"
NOTHING = "what is given to nobody is no address"
BITS = "a name with it is none to the kernel"

RESULTS: dict[str, Row] = {
    # The whole
    "nothing in it": Row({}, {}),
    "null": Row(None, REFUSED, "prevResult: is missing: must be called as chained plugin"),
    "a list": Row([], REFUSED, "prevResult: expected object, got list"),
    "a string": Row("x", REFUSED, "prevResult: expected object, got string"),
    "lists null": Row({"interfaces": None, "ips": None, "routes": None, "dns": None}, {}),
    "lists empty": Row({"interfaces": [], "ips": [], "routes": [], "dns": {}}, {}),
    "an unknown key": Row({"vendor": {"a": 1}}, {}),
    "keys in another case": Row({"IPs": [{"ADDRESS": "10.0.0.7/8"}]}, address("10.0.0.7/8")),
    "interfaces an object": Row({"interfaces": {}}, REFUSED, "prevResult.interfaces: expected list, got object"),
    "ips an object": Row({"ips": {}}, REFUSED, "prevResult.ips: expected list, got object"),
    "routes a string": Row({"routes": "x"}, REFUSED, "prevResult.routes: expected list, got string"),
    "dns a list": Row({"dns": []}, REFUSED, "prevResult.dns: expected object, got list"),
    # cniVersion
    "its version": Row({"cniVersion": "1.0.0"}, {}),
    "no version": Row({"cniVersion": None}, {}),
    "an empty version": Row({"cniVersion": ""}, REFUSED, {}, "as good as none"),
    "another version of its shape": Row({"cniVersion": "1.1.0"}, {}, newer=True),
    "a version of another shape": Row(
        {"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.7/8"}}, REFUSED, address("10.0.0.7/8"), "it says how to read it"
    ),
    "an unknown version": Row({"cniVersion": "9.9.9"}, REFUSED, "prevResult.cniVersion: '9.9.9' is not one of"),
    "a version that is a number": Row({"cniVersion": 1}, REFUSED, "prevResult.cniVersion: expected string, got int"),
    # interfaces
    "interface null": Row(
        {"interfaces": [None]}, {"interfaces": [None]}, "prevResult.interfaces[0]: expected object, got null", NULL_ITEM
    ),
    "interface a string": Row(
        {"interfaces": ["eth0"]}, REFUSED, "prevResult.interfaces[0]: expected object, got string"
    ),
    "interface empty": Row(interface(), interface(name="")),
    "name null": Row(interface(name=None), interface(name="")),
    "name with blanks": Row(interface(name="a b/c"), interface(name="a b/c")),
    "name with half a surrogate pair": Row(interface(name="a\ud800"), interface(name="a\ufffd")),
    "name with a NUL": Row(
        interface(name="a\0"), interface(name="a\0"), "prevResult.interfaces[0].name: holds a NUL", BITS
    ),
    "name a number": Row(interface(name=7), REFUSED, "prevResult.interfaces[0].name: expected string, got integer"),
    "mac null": Row(interface(name="a", mac=None), interface(name="a")),
    "mac empty": Row(interface(name="a", mac=""), interface(name="a")),
    "mac of any spelling": Row(interface(name="a", mac="02-AB"), interface(name="a", mac="02-AB")),
    "mac a list": Row(interface(mac=[]), REFUSED, "prevResult.interfaces[0].mac: expected string, got list"),
    "sandbox null": Row(interface(name="a", sandbox=None), interface(name="a")),
    "sandbox empty": Row(interface(name="a", sandbox=""), interface(name="a")),
    "sandbox of any form": Row(interface(name="a", sandbox="vm:7"), interface(name="a", sandbox="vm:7")),
    "sandbox a number": Row(interface(sandbox=7), REFUSED, "prevResult.interfaces[0].sandbox: expected string"),
    "mtu 0": Row(interface(name="a", mtu=0), interface(name="a"), newer=True),
    "mtu null": Row(interface(name="a", mtu=None), interface(name="a"), newer=True),
    "mtu with a point": Row(interface(name="a", mtu=1500.0), interface(name="a", mtu=1500), newer=True),
    "mtu with a fraction": Row(
        interface(mtu=1500.5), REFUSED, "prevResult.interfaces[0].mtu: expected integer, got number", newer=True
    ),
    "mtu below 0": Row(
        interface(name="a", mtu=-1), interface(name="a", mtu=-1), interface(name="a"), "no size, so none", newer=True
    ),
    "mtu a string": Row(interface(mtu="1500"), REFUSED, "prevResult.interfaces[0].mtu: expected integer", newer=True),
    "socketPath and pciID null": Row(interface(name="a", socketPath=None, pciID=None), interface(name="a"), newer=True),
    "socketPath and pciID": Row(
        interface(name="a", socketPath="/x", pciID="y"), interface(name="a", socketPath="/x", pciID="y"), newer=True
    ),
    "pciID a number": Row(interface(pciID=1), REFUSED, "prevResult.interfaces[0].pciID: expected", newer=True),
    # ips
    "ip null": Row({"ips": [None]}, REFUSED, "prevResult.ips[0]: expected object, got null"),
    "ip empty": Row({"ips": [{}]}, address("<nil>"), "prevResult.ips[0].address: is missing", NOTHING),
    "address null": Row(address(None), REFUSED, "prevResult.ips[0].address: is missing"),
    "address empty": Row(address(""), REFUSED, "prevResult.ips[0].address: is missing"),
    "address a number": Row(address(7), REFUSED, "prevResult.ips[0].address: expected string, got integer"),
    "address without prefix length": Row(address("10.0.0.7"), REFUSED, "prevResult.ips[0].address: '10.0.0.7' has no"),
    "address with a zone": Row(address("fe80::1%eth0/64"), REFUSED, "prevResult.ips[0].address: 'fe80::1%eth0/64'"),
    "address with octal digits": Row(address("010.0.0.1/8"), REFUSED, "prevResult.ips[0].address: '010.0.0.1/8'"),
    "prefix length with a zero": Row(address("10.0.0.7/08"), address("10.0.0.7/8")),
    "prefix length with many": Row(
        address("10.0.0.7/0008"),
        address("10.0.0.7/8"),
        "prevResult.ips[0].address: '10.0.0.7/0008' has no",
        "no number",
    ),
    "IPv6 in another spelling": Row(address("FD00:0:0::07/64"), address("fd00::7/64")),
    "IPv4 as IPv6": Row(address("::ffff:10.0.0.7/104"), address("10.0.0.7/8")),
    "IPv4 as IPv6, in groups": Row(address("::FFFF:a00:7/128"), address("10.0.0.7/32")),
    "IPv4 as IPv6, most of it a prefix": Row(
        address("::ffff:10.0.0.7/64"),
        address("10.0.0.7/0"),
        "prevResult.ips[0].address: '::ffff:10.0.0.7/64' has no prefix length of 96 to 128",
        "no subnet of IPv4's",
    ),
    "IPv6 with IPv4 at its end": Row(
        address("::1.2.3.4/128"), address("::102:304/128"), address("::1.2.3.4/128"), "as iproute2 spells it"
    ),
    "gateway null": Row(ip(gateway=None), ip()),
    "gateway empty": Row(ip(gateway=""), ip()),
    "gateway in another spelling": Row(ip(gateway="::FFFF:10.0.0.1"), ip(gateway="10.0.0.1")),
    "gateway of the other family": Row(ip(gateway="FD00::0:1"), ip(gateway="fd00::1")),
    "gateway with a prefix length": Row(ip(gateway="10.0.0.1/8"), REFUSED, "prevResult.ips[0].gateway: '10.0.0.1/8'"),
    "gateway a number": Row(ip(gateway=7), REFUSED, "prevResult.ips[0].gateway: expected string, got integer"),
    "interface index null": Row(ip(2, interface=None), ip(2)),
    "interface index 0": Row(ip(2, interface=0), ip(2, interface=0)),
    "interface index with a point": Row(ip(2, interface=1.0), ip(2, interface=1)),
    "interface index -1": Row(ip(2, interface=-1), ip(2, interface=-1), ip(2), NOWHERE),
    "interface index -1 of none": Row(ip(interface=-1), ip(interface=-1), ip(), NOWHERE),
    "interface index 0 of none": Row(ip(interface=0), ip(interface=0), ip(), NOWHERE),
    "interface index behind the last": Row(ip(2, interface=2), ip(2, interface=2), ip(2), NOWHERE),
    "interface index far behind it": Row(ip(2, interface=2**32), ip(2, interface=2**32), ip(2), NOWHERE),
    "interface index beyond 64 bits": Row(ip(interface=2**63), REFUSED, "prevResult.ips[0].interface: 922337203685477"),
    "interface index a fraction": Row(ip(interface=0.5), REFUSED, "prevResult.ips[0].interface: expected integer"),
    "interface index a string": Row(ip(interface="0"), REFUSED, "prevResult.ips[0].interface: expected integer"),
    "interface index true": Row(ip(interface=True), REFUSED, "prevResult.ips[0].interface: expected integer"),
    "version where there is none": Row(ip(version={}), ip()),
    "version": Row(ip(version="4"), ip(version="4"), version="0.4.0"),
    "no version of an address": Row(ip(), ip(version=""), ip(version="4"), "it is the address's own", "0.4.0"),
    "version null": Row(ip(version=None), ip(version=""), ip(version="4"), "it is the address's own", "0.4.0"),
    "version of the other family": Row(ip(version="6"), ip(version="6"), ip(version="4"), "so it is", "0.4.0"),
    "version a number": Row(ip(version=4), REFUSED, ip(version="4"), "nobody needs it to be a string", "0.4.0"),
    # routes
    "route null": Row(
        {"routes": [None]}, {"routes": [None]}, "prevResult.routes[0]: expected object, got null", NULL_ITEM
    ),
    "route empty": Row({"routes": [{}]}, route("<nil>"), "prevResult.routes[0].dst: is missing", NOTHING),
    "dst null": Row(route(None), REFUSED, "prevResult.routes[0].dst: is missing"),
    "dst an address": Row(route("10.0.0.0"), REFUSED, "prevResult.routes[0].dst: '10.0.0.0' has no prefix length"),
    "dst with host bits": Row(route("10.9.8.7/8"), route("10.9.8.7/8"), route("10.0.0.0/8"), SPELLING),
    "dst with host bits, the default": Row(route("10.9.8.7/0"), route("10.9.8.7/0"), route("0.0.0.0/0"), SPELLING),
    "dst in another spelling": Row(route("FD00:0::/64"), route("fd00::/64")),
    "dst IPv6 with host bits": Row(route("FD00::0:7/64"), route("fd00::7/64"), route("fd00::/64"), SPELLING),
    "dst IPv4 as IPv6": Row(route("::ffff:10.0.0.0/104"), route("10.0.0.0/8")),
    "gw null": Row(route(gw=None), route()),
    "gw empty": Row(route(gw=""), route()),
    "gw in another spelling": Row(route("fd00::/8", gw="FD00:0::1"), route("fd00::/8", gw="fd00::1")),
    "gw no address": Row(route(gw="eth0"), REFUSED, "prevResult.routes[0].gw: 'eth0' is not an IP address"),
    "an unknown key of a route": Row(route(metric=7), route()),
    "zeros of a route": Row(route(mtu=0, advmss=0, priority=0, table=0, scope=0), route(table=0, scope=0), newer=True),
    "nulls of a route": Row(route(mtu=None, advmss=None, priority=None, table=None, scope=None), route(), newer=True),
    "numbers with a point": Row(
        route(mtu=9.0, advmss=8.0, priority=7.0, table=6.0, scope=253.0),
        route(mtu=9, advmss=8, priority=7, table=6, scope=253),
        newer=True,
    ),
    "priority below 0": Row(
        route(priority=-1),
        route(priority=-1),
        "prevResult.routes[0].priority: -1 is not in 0..4294967295",
        "the reference installs 4294967295",
        newer=True,
    ),
    "table below 0": Row(
        route(table=-1), route(table=-1), "prevResult.routes[0].table: -1 is not in", "there is none", newer=True
    ),
    "scope of more than a byte": Row(
        route(scope=256), route(scope=256), "prevResult.routes[0].scope: 256 is not in 0..255", "it is 0", newer=True
    ),
    "table a name": Row(route(table="main"), REFUSED, "prevResult.routes[0].table: expected integer", newer=True),
    # dns
    "keys of dns null": Row(dns(nameservers=None, domain=None, search=None, options=None), {}),
    "keys of dns empty": Row(dns(nameservers=[], domain="", search=[], options=[]), {}),
    "null among nameservers": Row(dns(nameservers=[None, "x"]), dns(nameservers=["", "x"])),
    "an unknown key of dns": Row(dns(servers=["10.0.0.1"]), {}),
    "nameservers a string": Row(dns(nameservers="x"), REFUSED, "prevResult.dns.nameservers: expected list, got string"),
    "a number among options": Row(dns(options=[1]), REFUSED, "prevResult.dns.options[0]: expected string, got integer"),
    "domain a list": Row(dns(domain=[]), REFUSED, "prevResult.dns.domain: expected string, got list"),
    # The oldest shape
    "ip4 null": Row({"ip4": None, "ip6": {"ip": "FD00::2/64"}}, {"ip6": {"ip": "fd00::2/64"}}, version="0.2.0"),
    "ip4 empty": Row({"ip4": {}}, {"ip4": {"ip": "<nil>"}}, "prevResult.ip4.ip: is missing", NOTHING, "0.2.0"),
    "ip4 a list": Row({"ip4": []}, REFUSED, "prevResult.ip4: expected object, got list", version="0.2.0"),
    "routes of ip4 null": Row(
        {"ip4": {"ip": "10.0.0.7/8", "gateway": "", "routes": None}}, {"ip4": {"ip": "10.0.0.7/8"}}, version="0.2.0"
    ),
    "routes of ip4 with host bits": Row(
        {"ip4": {"ip": "10.0.0.7/8", **route("10.9.8.7/8", gw=None)}},
        {"ip4": {"ip": "10.0.0.7/8", **route("10.9.8.7/8")}},
        {"ip4": {"ip": "10.0.0.7/8", **route("10.0.0.0/8")}},
        SPELLING,
        "0.2.0",
    ),
    "lists in the oldest shape": Row(
        {"ip4": {"ip": "10.0.0.7/8"}, "interfaces": 7}, {"ip4": {"ip": "10.0.0.7/8"}}, version="0.2.0"
    ),
    "no address in the oldest shape": Row(
        {},
        {},
        "cniVersion: 0.2.0 has no way to show a result without addresses",
        "no client knows such a result",
        "0.2.0",
    ),
}


def port(**keys: Any) -> dict[str, Any]:
    return {"portMappings": [{"hostPort": 8080, "containerPort": 80, **keys}]}


def ranges(**keys: Any) -> dict[str, Any]:
    return {"ipRanges": [[{"subnet": "10.2.0.0/24", **keys}]]}


TCP = ("tcp", 8080, 80, "")
MAPPING = "runtimeConfig.portMappings[0]"
TAKEN = "taken"  # without error; with an address in the container, iptables says what it thinks of it
NO_PORT = "a container port that has none, as Kubernetes' have, is no port to publish; ADD names it"
SAYS = "refused where it is asked for, not by iptables, or never"
NO_WISH = "an empty field of a client's is nothing asked for"
OTHERS: dict[str, Any] = {
    "bandwidth": {"ingressRate": 1, "ingressBurst": 4294967295},
    "dns": {"servers": None, "searches": [], "options": ["ndots:5"]},
    "aliases": {"net1": ["web"]},
    "cgroupPath": "/kubepods/burstable/pod1",
    "infinibandGUID": "c2:11:22:33:44:55:66:77",
    "deviceID": "0000:00:1f.6",
    "io.kubernetes.cri.pod-annotations": {"a": "b"},
    "vendor": [None, 7],
}
WRONG: dict[str, Any] = dict.fromkeys(OTHERS, 7)

# By plugin. The mappings it serves, the addresses it gives.
RUNTIME: dict[tuple[str, str], Row] = {
    ("portmap", "null"): Row(None, TAKEN, []),
    ("portmap", "empty"): Row({}, TAKEN, []),
    ("portmap", "a list"): Row([], REFUSED, "runtimeConfig: expected object, got list"),
    ("portmap", "what other plugins read"): Row({**OTHERS, "mac": "", "ips": None, "ipRanges": []}, TAKEN, []),
    ("portmap", "what they could not read"): Row({**WRONG, "mac": 7, "ips": 7, "ipRanges": 7}, TAKEN, []),
    ("portmap", "portMappings null"): Row({"portMappings": None}, TAKEN, []),
    ("portmap", "portMappings empty"): Row({"portMappings": []}, TAKEN, []),
    ("portmap", "portMappings an object"): Row(
        {"portMappings": {}}, REFUSED, "runtimeConfig.portMappings: expected list, got object"
    ),
    ("portmap", "a mapping null"): Row({"portMappings": [None]}, REFUSED, f"{MAPPING}: expected object, got null"),
    ("portmap", "a mapping"): Row(port(), TAKEN, [TCP]),
    ("portmap", "as containerd writes it"): Row(
        {"portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}]}, TAKEN, [TCP]
    ),
    ("portmap", "an unknown key"): Row(port(name="web"), TAKEN, [TCP]),
    ("portmap", "hostPort 0"): Row(port(hostPort=0), REFUSED, [], NO_PORT),
    ("portmap", "hostPort null"): Row(port(hostPort=None), REFUSED, [], NO_PORT),
    ("portmap", "no hostPort"): Row({"portMappings": [{"containerPort": 80}]}, REFUSED, [], NO_PORT),
    ("portmap", "neither port"): Row({"portMappings": [{}]}, REFUSED, [], NO_PORT),
    ("portmap", "hostPort below 0"): Row(port(hostPort=-1), REFUSED, f"{MAPPING}.hostPort: -1 is not in"),
    ("portmap", "hostPort too large"): Row(port(hostPort=65536), TAKEN, f"{MAPPING}.hostPort: 65536 is not in", SAYS),
    ("portmap", "hostPort with a point"): Row(
        port(hostPort=8080.0), REFUSED, [TCP], "libcni writes 8080 where a file has 8080.0, so the reference takes it"
    ),
    ("portmap", "hostPort a string"): Row(port(hostPort="8080"), REFUSED, f"{MAPPING}.hostPort: expected integer"),
    ("portmap", "containerPort 0"): Row(port(containerPort=0), REFUSED, f"{MAPPING}.containerPort: 0 is not in"),
    ("portmap", "containerPort null"): Row(port(containerPort=None), REFUSED, f"{MAPPING}.containerPort: is missing"),
    ("portmap", "containerPort too large"): Row(
        port(containerPort=65536), TAKEN, f"{MAPPING}.containerPort: 65536 is not in", SAYS
    ),
    ("portmap", "protocol in capitals"): Row(port(protocol="TCP"), TAKEN, [TCP]),
    ("portmap", "protocol null"): Row(port(protocol=None), TAKEN, [TCP]),
    ("portmap", "protocol empty"): Row(port(protocol=""), TAKEN, [TCP]),
    ("portmap", "protocol sctp"): Row(port(protocol="SCTP"), TAKEN, [("sctp", 8080, 80, "")]),
    ("portmap", "protocol unknown"): Row(port(protocol="icmp"), TAKEN, f"{MAPPING}.protocol: 'icmp' is none of", SAYS),
    ("portmap", "protocol a number"): Row(port(protocol=6), REFUSED, f"{MAPPING}.protocol: expected string"),
    ("portmap", "hostIP null"): Row(port(hostIP=None), TAKEN, [TCP]),
    ("portmap", "hostIP empty"): Row(port(hostIP=""), TAKEN, [TCP]),
    ("portmap", "hostIP of all"): Row(port(hostIP="0.0.0.0"), TAKEN, [("tcp", 8080, 80, "0.0.0.0")]),
    ("portmap", "hostIP of all IPv6"): Row(port(hostIP="0::0"), TAKEN, [("tcp", 8080, 80, "::")]),
    ("portmap", "hostIP IPv4 as IPv6"): Row(port(hostIP="::ffff:10.0.0.1"), TAKEN, [("tcp", 8080, 80, "10.0.0.1")]),
    ("portmap", "hostIP no address"): Row(port(hostIP="eth0"), TAKEN, f"{MAPPING}.hostIP: 'eth0' is not an", SAYS),
    ("portmap", "hostIP a number"): Row(port(hostIP=7), REFUSED, f"{MAPPING}.hostIP: expected string"),
    ("host-local", "null"): Row(None, ["10.1.0.2/24"]),
    ("host-local", "a list"): Row([], REFUSED, "runtimeConfig: expected object, got list"),
    ("host-local", "what other plugins read"): Row({**OTHERS, "mac": "", **port()}, ["10.1.0.2/24"]),
    ("host-local", "what they could not read"): Row({**WRONG, "mac": 7, "portMappings": 7}, ["10.1.0.2/24"]),
    ("host-local", "ips null"): Row({"ips": None}, ["10.1.0.2/24"]),
    ("host-local", "ips empty"): Row({"ips": []}, ["10.1.0.2/24"]),
    ("host-local", "an ip empty"): Row({"ips": [""]}, REFUSED, ["10.1.0.2/24"], NO_WISH),
    ("host-local", "an ip empty, and one"): Row({"ips": ["", "10.1.0.7"]}, REFUSED, ["10.1.0.7/24"], NO_WISH),
    ("host-local", "an ip null"): Row({"ips": [None]}, REFUSED, ["10.1.0.2/24"], NO_WISH),
    ("host-local", "an ip"): Row({"ips": ["10.1.0.7"]}, ["10.1.0.7/24"]),
    ("host-local", "an ip twice"): Row({"ips": ["10.1.0.7", "10.1.0.7/24"]}, ["10.1.0.7/24"]),
    ("host-local", "an ip with another prefix length"): Row({"ips": ["10.1.0.7/8"]}, ["10.1.0.7/24"]),
    ("host-local", "an ip as IPv6"): Row({"ips": ["::ffff:10.1.0.7/120"]}, ["10.1.0.7/24"]),
    ("host-local", "an ip with a blank"): Row({"ips": [" 10.1.0.7"]}, REFUSED, "runtimeConfig.ips[0]: ' 10.1.0.7' is"),
    ("host-local", "an ip a number"): Row({"ips": [7]}, REFUSED, "runtimeConfig.ips[0]: expected string, got integer"),
    ("host-local", "ips a string"): Row({"ips": "10.1.0.7"}, REFUSED, "runtimeConfig.ips: expected list, got string"),
    ("host-local", "ipRanges null"): Row({"ipRanges": None}, ["10.1.0.2/24"]),
    ("host-local", "ipRanges empty"): Row({"ipRanges": []}, ["10.1.0.2/24"]),
    ("host-local", "a set empty"): Row({"ipRanges": [[]]}, REFUSED, "runtimeConfig.ipRanges[0]: empty range set"),
    ("host-local", "a set null"): Row({"ipRanges": [None]}, REFUSED, "runtimeConfig.ipRanges[0]: expected list, got"),
    ("host-local", "a set an object"): Row({"ipRanges": [{}]}, REFUSED, "runtimeConfig.ipRanges[0]: expected list"),
    ("host-local", "a range null"): Row({"ipRanges": [[None]]}, REFUSED, "runtimeConfig.ipRanges[0][0]: expected obj"),
    ("host-local", "a range empty"): Row({"ipRanges": [[{}]]}, REFUSED, "runtimeConfig.ipRanges[0][0].subnet: is miss"),
    ("host-local", "as containerd writes it"): Row(
        {"ipRanges": [[{"Subnet": "10.2.0.0/24", "rangeStart": "", "rangeEnd": "", "gateway": ""}]]},
        ["10.2.0.2/24", "10.1.0.2/24"],
    ),
    ("host-local", "keys null"): Row(
        ranges(rangeStart=None, rangeEnd=None, gateway=None, x=1), ["10.2.0.2/24", "10.1.0.2/24"]
    ),
    ("host-local", "subnet as IPv6"): Row(
        ranges(subnet="::ffff:10.2.0.0/120"), REFUSED, ["10.2.0.2/24", "10.1.0.2/24"], "as everywhere else"
    ),
    ("host-local", "subnet with host bits"): Row(
        ranges(subnet="10.2.0.7/24"), REFUSED, "runtimeConfig.ipRanges[0][0].subnet: 10.2.0.7/24 has host bits set"
    ),
    ("static", "null"): Row(None, ["10.1.0.2/24"]),
    ("static", "what other plugins read"): Row({**OTHERS, "mac": "", **port()}, ["10.1.0.2/24"]),
    ("static", "what they could not read"): Row({**WRONG, "mac": 7, "portMappings": 7}, ["10.1.0.2/24"]),
    ("static", "ips null"): Row({"ips": None}, ["10.1.0.2/24"]),
    ("static", "ips empty"): Row({"ips": []}, ["10.1.0.2/24"]),
    ("static", "an ip empty"): Row({"ips": [""]}, REFUSED, ["10.1.0.2/24"], NO_WISH),
    ("static", "an ip null"): Row({"ips": [None]}, REFUSED, ["10.1.0.2/24"], NO_WISH),
    ("static", "an ip"): Row({"ips": ["10.1.0.7/8"]}, ["10.1.0.7/8"]),
    ("static", "an ip as IPv6"): Row({"ips": ["::ffff:10.1.0.7/120"]}, ["10.1.0.7/24"]),
    ("static", "an ip twice"): Row(
        {"ips": ["10.1.0.7/24", "10.1.0.7/24"]}, ["10.1.0.7/24", "10.1.0.7/24"], ["10.1.0.7/24"], "the kernel has one"
    ),
    ("static", "an ip without prefix length"): Row(
        {"ips": ["10.1.0.7"]}, REFUSED, "runtimeConfig.ips[0]: '10.1.0.7' has no prefix length"
    ),
    ("static", "ips a string"): Row({"ips": "10.1.0.7/24"}, REFUSED, "runtimeConfig.ips: expected list, got string"),
}

# What else may ask: CNI_ARGS, and args.cni.
ASKED: dict[tuple[str, str], Row] = {
    ("host-local", "IP empty"): Row(("IgnoreUnknown=1;IP=", {}), ["10.1.0.2/24"]),
    ("host-local", "all empty"): Row(
        ("IP=;MAC=;GATEWAY=", {}), REFUSED, ["10.1.0.2/24"], "keys of this suite's, whichever plugin reads them"
    ),
    ("host-local", "IgnoreUnknown empty"): Row(("IgnoreUnknown=;IP=", {}), REFUSED, ["10.1.0.2/24"], NO_WISH),
    ("host-local", "args.cni null"): Row(("", None), ["10.1.0.2/24"]),
    ("host-local", "ips null"): Row(("", {"ips": None}), ["10.1.0.2/24"]),
    ("host-local", "an ip empty"): Row(("", {"ips": [""]}), REFUSED, ["10.1.0.2/24"], NO_WISH),
    ("host-local", "ips an object"): Row(("", {"ips": {}}), REFUSED, "args.cni.ips: expected list, got object"),
    ("host-local", "other keys"): Row(("", {"mac": 7, "labels": [], "sysctl": 7}), ["10.1.0.2/24"]),
    ("static", "IP and GATEWAY empty"): Row(("IP=;GATEWAY=", {}), ["10.1.0.2/24"]),
    ("static", "an empty one of several"): Row(
        ("IP=10.1.0.7/24,", {}), REFUSED, ["10.1.0.2/24", "10.1.0.7/24"], NO_WISH
    ),
    ("static", "ips null"): Row(("", {"ips": None}), ["10.1.0.2/24"]),
    ("static", "an ip empty"): Row(("", {"ips": [""]}), REFUSED, ["10.1.0.2/24"], NO_WISH),
    ("static", "ips an object"): Row(("", {"ips": {}}), REFUSED, "args.cni.ips: expected list, got object"),
}

IPAM: dict[str, dict[str, Any]] = {
    "host-local": {"type": "host-local", "subnet": "10.1.0.0/24"},
    "static": {"type": "static", "addresses": [{"address": "10.1.0.2/24"}]},
    "portmap": {},
}


PLUGINS = {"host-local": host_local.PLUGIN, "static": static.PLUGIN}


def asked(**config: Any) -> request.Request:
    return request.parse(ENVIRON, json.dumps({"cniVersion": "1.1.0", "name": "net1", **config}).encode)


@pytest.mark.parametrize("row", [*RESULTS.values(), *RUNTIME.values(), *ASKED.values()])
def test_whatever_differs_from_the_reference_has_a_reason(row: Row) -> None:
    differs = row.ours is not None and (isinstance(row.ours, str) != (row.reference == REFUSED))
    otherwise = row.ours not in (None, row.reference) and REFUSED != row.reference != TAKEN
    assert bool(row.why) == (differs or otherwise)


class Fault(str):
    """An error's text."""

    __slots__ = ()


def outcome(read: Callable[[], Any]) -> Any:
    """Return what is read, or the error's text."""
    try:
        return read()
    except CniError as e:
        return Fault(e.msg)


def is_as_expected(found: Any, row: Row) -> bool:
    """Tell whether a row says what came of it; of an error it says how its text begins."""
    expected = row.reference if row.ours is None else row.ours
    if isinstance(found, Fault):
        return isinstance(expected, str) and found.startswith(expected)
    return bool(found == expected)


@pytest.mark.parametrize("row", RESULTS.values(), ids=RESULTS)
def test_a_result_is_read(row: Row) -> None:
    def read() -> dict[str, Any]:
        given = asked(cniVersion=row.version, type="x", prevResult=row.given)
        shown = jsontext.encode(result.document(chained.previous(given), row.version))
        return _without_frame(json.loads(shown), row.version)

    found = outcome(read)
    assert is_as_expected(found, row), found


def _without_frame(shown: dict[str, Any], version: str) -> dict[str, Any]:
    assert shown["cniVersion"] == version
    return {key: value for key, value in shown.items() if key != "cniVersion" and value}


@pytest.mark.all
@pytest.mark.parametrize("row", [row for row in RESULTS.values() if not row.newer])
def test_a_result_is_read_by_the_reference_as_it_says_here(row: Row) -> None:
    config = {"cniVersion": row.version, "name": "net1", "type": "portmap", "prevResult": row.given}
    shown = run_reference("portmap", config)
    assert (REFUSED if "code" in shown else _without_frame(shown, row.version)) == row.reference


def run_reference(plugin: str, config: dict[str, Any], args: str = "") -> dict[str, Any]:
    """Return what it prints; {"code": 2} where it crashes."""
    process = subprocess.run(
        [needs_reference() / plugin],
        env={"PATH": os.environ["PATH"], **ENVIRON, "CNI_ARGS": args, "CNI_PATH": "/nonexistent"},
        input=json.dumps(config).encode(),
        capture_output=True,
        check=False,
    )
    shown: dict[str, Any] = {"code": 2} if process.returncode == 2 else json.loads(process.stdout)
    return shown


def _config(plugin: str, folder: Path, runtime: Any = None, args: Any = None) -> dict[str, Any]:
    common = {"cniVersion": "1.0.0", "name": "net1", "type": plugin, "ipam": {**IPAM[plugin], "dataDir": str(folder)}}
    return {**common, "prevResult": {}, "runtimeConfig": runtime, "args": {"cni": args}}


def _rows() -> list[Any]:
    return [
        *(pytest.param(plugin, row, row.given, None, "", id=f"{plugin}-{case}")
          for (plugin, case), row in RUNTIME.items()),
        *(pytest.param(plugin, row, None, row.given[1], row.given[0], id=f"{plugin}-args-{case}")
          for (plugin, case), row in ASKED.items()),
    ]  # fmt: skip


@pytest.mark.parametrize(("plugin", "row", "runtime", "args", "variable"), _rows())
def test_what_a_runtime_asks_for_is_read(
    tmp_path: Path, plugin: str, row: Row, runtime: Any, args: Any, variable: str
) -> None:
    config = _config(plugin, tmp_path, runtime, args)

    def read() -> Any:
        if plugin == "portmap":
            return [
                (m.protocol, m.host_port, m.container_port, m.host_ip) for m in portmap.parse(asked(**config)).mappings
            ]
        shown = Call(PLUGINS[plugin], "ADD", config, **ENVIRON, CNI_ARGS=variable).document
        return Fault(shown["msg"]) if "msg" in shown else [one["address"] for one in shown["ips"]]

    found = outcome(read)
    assert is_as_expected(found, row), found


@pytest.mark.all
@pytest.mark.parametrize(("plugin", "row", "runtime", "args", "variable"), _rows())
def test_it_is_read_by_the_reference_as_it_says_here(
    tmp_path: Path, plugin: str, row: Row, runtime: Any, args: Any, variable: str
) -> None:
    shown = run_reference(plugin, _config(plugin, tmp_path, runtime, args), variable)
    if "code" in shown:
        assert row.reference == REFUSED
    else:
        assert row.reference == (TAKEN if plugin == "portmap" else [one["address"] for one in shown["ips"]])


MAC = "02:00:00:00:00:0b"


@pytest.mark.parametrize("place", ["runtimeConfig", "args"])
@pytest.mark.parametrize(
    ("given", "mac"),
    [
        pytest.param({}, "", id="none"),
        pytest.param({"mac": None}, "", id="null"),
        pytest.param({"mac": ""}, "", id="empty"),
        pytest.param({"mac": "02-00-00-00-00-0B"}, MAC, id="another spelling"),
        pytest.param({"mac": "0200.0000.000b", "ips": 7, "x": 7}, MAC, id="among others"),
        pytest.param({"mac": "02:00"}, "'02:00' is not a MAC address", id="no address"),
        pytest.param({"mac": 7}, "expected string, got integer", id="a number"),
        pytest.param({"mac": "c2:11:22:33:44:55:66:77"}, "is not a MAC address", id="of InfiniBand"),
    ],
)
def test_a_mac_address_that_a_runtime_asks_for_is_read(place: str, given: dict[str, Any], mac: str) -> None:
    """As by the reference, which goes on to give a veth eight bytes, and fails."""
    config = {"runtimeConfig": given} if place == "runtimeConfig" else {"args": {"cni": given}}
    for read in (configure.mac, _tuned):
        found = outcome(partial(read, asked(**config)))
        key = "runtimeConfig.mac" if place == "runtimeConfig" else "args.cni.mac"
        assert (found.startswith(f"{key}: ") and mac in found) if isinstance(found, Fault) else found == mac


def _tuned(given: request.Request) -> str:
    mac: str = tuning.parse(given).link.get("mac", "")
    return mac
