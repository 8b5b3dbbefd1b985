"""The demonstration: two containers on conf-examples/bridge.conflist, in private namespaces, and nothing left of them.

Run by `./build.sh demo`. The machine's own network is not touched: everything happens in a private network and mount
namespace (as an ordinary user in a user namespace too), which end with this process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pyroute2 import IPRoute, netns

from cnikit.cli.drawing import draw

PROJECT = Path(__file__).resolve().parents[2]
BUILT = PROJECT / "dist" / "cni"
INSIDE = "CNIKIT_DEMO"

CONTAINERS = ("web", "db")
NETWORK = "example"
LEASES = Path("/var/lib/cni/networks") / NETWORK
RESULTS = Path("/var/lib/cni/results")


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
    """Hide the machine's run-time and state folders behind empty ones, and make the containers' namespaces."""
    for folder in ("/run", "/var/lib"):
        subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")
    for name in CONTAINERS:
        netns.create(name)


def show() -> None:
    """Attach, look, try, detach, and look again."""
    for name in CONTAINERS:
        title(f"{name} joins the network {NETWORK} (conf-examples/bridge.conflist)")
        run(str(BUILT / "cnitool"), "add", NETWORK, f"/run/netns/{name}")
    title("What is connected to what")
    picture = draw({name: f"/run/netns/{name}" for name in CONTAINERS})
    print(picture)
    title("They reach each other, and the gateway")
    gateways = addresses_of("cni0")
    for name, other in (CONTAINERS, CONTAINERS[::-1]):
        for target in [*addresses_of("eth0", other), *gateways]:
            ping(name, target)
    for name in CONTAINERS:
        title(f"{name} leaves")
        run(str(BUILT / "cnitool"), "check", NETWORK, f"/run/netns/{name}")
        run(str(BUILT / "cnitool"), "del", NETWORK, f"/run/netns/{name}")
    title("What is left")
    prove()


def title(text: str) -> None:
    """Print a headline."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")


def run(*command: str) -> None:
    """Show a command and run it."""
    print(f"$ {Path(command[0]).name} {' '.join(command[1:])}", flush=True)
    environ = {**os.environ, "NETCONFPATH": str(PROJECT / "conf-examples"), "CNI_PATH": str(BUILT)}
    subprocess.run(command, check=True, env=environ)


def ping(name: str, target: str) -> None:
    """Ping from a container; the first answer must come."""
    command = ["nsenter", f"--net=/run/netns/{name}", "ping", "-c", "1", "-W", "2", target]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"{name} -> {target}: answered")


def addresses_of(link: str, name: str = "") -> list[str]:
    """Return the global addresses of a link, the host's or a container's."""
    with IPRoute(netns=name) if name else IPRoute() as ip:
        index = ip.link_lookup(ifname=link)[0]
        return [message.get("address") for message in ip.get_addr(index=index, scope=0)]


def prove() -> None:
    """Show that no lease, cached result, veth or address is left; the bridge stays for the next container."""
    with IPRoute() as ip:
        host = [message.get("ifname") for message in ip.get_links()]
    left = {
        "links of the host": [link for link in host if link not in ("lo", "cni0")],
        "leases": [file.name for file in LEASES.iterdir() if file.name[0].isdigit() or ":" in file.name],
        "cached results": [file.name for file in RESULTS.iterdir()],
    }
    for name in CONTAINERS:
        with IPRoute(netns=name) as ip:
            links = [message.get("ifname") for message in ip.get_links()]
        left[f"links of {name}"] = [link for link in links if link != "lo"]
    for what, found in left.items():
        print(f"{what}: {', '.join(found) or 'none'}")
    print("The bridge cni0 stays: it is shared, and waits for the next container.")
    if any(left.values()):
        sys.exit("demo: something is left")


if __name__ == "__main__":
    main()
