"""The demonstration: three containers, their way out and a way in, in private namespaces, and nothing left of them.

Run by `./build.sh demo`. The machine's own network is not touched: everything happens in a private network and mount
namespace (as an ordinary user in a user namespace too), which end with this process.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Thread

from pyroute2 import IPRoute, netns

from cnikit.cli.drawing import draw
from cnikit.effects.netns import Inside, open_netns

PROJECT = Path(__file__).resolve().parents[2]
BUILT = PROJECT / "dist" / "cni"
INSIDE = "CNIKIT_DEMO"

LISTS = {"example": "conf-examples/bridge.conflist", "portmap-example": "conf-examples/portmap.conflist"}
CONTAINERS = {"app": "example", "db": "example", "web": "portmap-example"}
BRIDGES = ("cni0", "cni-portmap0")
PORTS = {"web": '{"portMappings": [{"hostPort": 8080, "containerPort": 80}]}'}
LEASES = Path("/var/lib/cni/networks")
RESULTS = Path("/var/lib/cni/results")

# Another machine, and the addresses at both ends of the wire to it.
OUTSIDE = "outside"
UPLINK = "uplink"
OURS = ("192.0.2.1", "2001:db8::1")
THEIRS = ("192.0.2.2", "2001:db8::2")
IFA_F_NODAD = 0x02


def main() -> None:
    """Run the demonstration; exit status 1 when anything is not as it should be."""
    if os.environ.get(INSIDE) != "1":
        enter()
    set_up()
    try:
        show()
    except subprocess.CalledProcessError as e:
        sys.exit(f"demo: {' '.join(e.cmd)} failed with exit status {e.returncode}")


def enter() -> None:
    """Start again in private namespaces."""
    flags = "-nm" if os.geteuid() == 0 else "-rnm"
    command = ["unshare", flags, "--propagation", "private", sys.executable, "-m", "cnikit.cli.demo"]
    os.execvpe(command[0], command, {**os.environ, INSIDE: "1"})


def set_up() -> None:
    """Hide the machine's run-time and state folders behind empty ones; make the namespaces, and the wire to outside."""
    for folder in ("/run", "/var/lib"):
        subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
    for name in (*CONTAINERS, OUTSIDE):
        netns.create(name)
    with IPRoute() as here, IPRoute(netns=OUTSIDE) as there:
        here.link("set", index=1, state="up")
        # Were both ends number 2 of their namespaces, the kernel would take up to a second to see the wire.
        here.link("add", ifname=UPLINK, index=100, kind="veth", peer={"ifname": "eth0", "net_ns_fd": OUTSIDE})
        for ip, link, addresses in ((here, UPLINK, OURS), (there, "eth0", THEIRS)):
            index = ip.link_lookup(ifname=link)[0]
            for address in addresses:
                length = 64 if ":" in address else 24
                ip.addr("add", index=index, address=address, prefixlen=length, flags=IFA_F_NODAD)
            ip.link("set", index=index, state="up")


def show() -> None:
    """Attach, look, try, detach, and look again."""
    for name, network in CONTAINERS.items():
        title(f"{name} joins the network {network} ({LISTS[network]})")
        cnitool("add", name, quiet=name == "web")
    title("What is connected to what")
    print(draw({name: f"/run/netns/{name}" for name in (*CONTAINERS, OUTSIDE)}))
    title("app and db reach each other, and the gateway")
    gateways = addresses_of("cni0")
    for name, other in (("app", "db"), ("db", "app")):
        for target in [*addresses_of("eth0", other), *gateways]:
            ping(name, target)
    for name in ("web", OUTSIDE):
        serve(name)
    title("web goes out under the host's address: ipMasq")
    for theirs, ours in zip(THEIRS, OURS, strict=True):
        fetch("web", theirs, 80, f"this is outside, you are {ours}")
    title("outside knows no way to web, and gets in by the host's port 8080: portmap")
    for address in addresses_of("eth0", "web"):
        fetch(OUTSIDE, address, 80, "Network is unreachable")
    for ours, theirs in zip(OURS, THEIRS, strict=True):
        fetch(OUTSIDE, ours, 8080, f"this is web, you are {theirs}")
    for name in CONTAINERS:
        title(f"{name} leaves")
        cnitool("check", name)
        cnitool("del", name)
    title("What is left")
    for ours in OURS:
        fetch(OUTSIDE, ours, 8080, "Connection refused")
    prove()


def title(text: str) -> None:
    """Print a headline."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")


def cnitool(verb: str, name: str, quiet: bool = False) -> None:
    """Show a command for a container and run it; quiet leaves out the result."""
    # What is published is told to add and check. del finds it by itself.
    ports = {"CAP_ARGS": PORTS[name]} if name in PORTS and verb != "del" else {}
    given = "".join(f"{key}='{value}' " for key, value in ports.items())
    command = ["cnitool", verb, CONTAINERS[name], f"/run/netns/{name}"]
    print(f"$ {given}{' '.join(command)}{' >/dev/null' if quiet else ''}", flush=True)
    environ = {**os.environ, "NETCONFPATH": str(PROJECT / "conf-examples"), "CNI_PATH": str(BUILT), **ports}
    output = subprocess.DEVNULL if quiet else None
    subprocess.run(command, executable=BUILT / "cnitool", check=True, env=environ, stdout=output)


def ping(name: str, target: str) -> None:
    """Ping from a container; the first answer must come."""
    command = ["nsenter", f"--net=/run/netns/{name}", "ping", "-c", "1", "-W", "2", target]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"{name} -> {target}: answered")


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Work in the network namespace of a container, or of outside: sockets made there stay there."""
    fd = open_netns(f"/run/netns/{name}")
    try:
        with Inside(fd):
            yield
    finally:
        os.close(fd)


def serve(name: str) -> None:
    """Answer HTTP requests at port 80 by who is asked, and whom the server sees asking."""
    with inside(name):
        server = socket.create_server(("", 80), family=socket.AF_INET6, dualstack_ipv6=True)

    def answer() -> None:
        while True:
            connection, (client, *_) = server.accept()
            with connection:
                connection.recv(4096)
                text = f"this is {name}, you are {client.removeprefix('::ffff:')}"
                connection.sendall(f"HTTP/1.0 200 OK\r\n\r\n{text}".encode())

    Thread(target=answer, daemon=True).start()


def fetch(name: str, address: str, port: int, expected: str) -> None:
    """Fetch from an HTTP server; the answer, or why there is none, must be as expected."""
    try:
        with inside(name), closing(HTTPConnection(address, port, timeout=5)) as connection:
            connection.request("GET", "/")
            answer = connection.getresponse().read().decode()
    except (OSError, HTTPException) as e:
        answer = getattr(e, "strerror", None) or str(e)
    place = f"[{address}]" if ":" in address else address
    print(f"{name} -> http://{place}{'' if port == 80 else f':{port}'}/: {answer}")
    if answer != expected:
        sys.exit(f"demo: this should be: {expected}")


def addresses_of(link: str, name: str = "") -> list[str]:
    """Return the global addresses of a link, the host's or a container's."""
    with IPRoute(netns=name) if name else IPRoute() as ip:
        index = ip.link_lookup(ifname=link)[0]
        return [message.get("address") for message in ip.get_addr(index=index, scope=0)]


def tags() -> list[str]:
    """Return whose elements nftables has on the host: the comments by which they are found again."""
    ruleset = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    return sorted(set(re.findall(r'comment "(cni:[^"]*)"', ruleset)))


def prove() -> None:
    """Show that no lease, cached result, veth, address or nftables element is left; what is shared stays."""
    left = {
        "links of the host": [link for link in links_of() if link not in ("lo", UPLINK, *BRIDGES)],
        "leases": [file.name for file in LEASES.glob("*/*") if file.name[0].isdigit() or ":" in file.name],
        "cached results": [file.name for file in RESULTS.iterdir()],
        "nftables elements": tags(),
    }
    for name in CONTAINERS:
        left[f"links of {name}"] = [link for link in links_of(name) if link != "lo"]
    for what, found in left.items():
        print(f"{what}: {', '.join(found) or 'none'}")
    print(f"{' and '.join(BRIDGES)} stay, and empty nftables tables: they are shared, and wait for the next container.")
    if any(left.values()):
        sys.exit("demo: something is left")


def links_of(name: str = "") -> list[str]:
    """Return the names of the host's links or a container's."""
    with IPRoute(netns=name) if name else IPRoute() as ip:
        return [message.get("ifname") for message in ip.get_links()]


if __name__ == "__main__":
    main()
