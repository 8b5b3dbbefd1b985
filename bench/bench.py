"""How fast: our executables against the reference's, interleaved in one run, as ratios of medians.

    ./build.sh bench [SCENARIO ...]

Runs in private namespaces that build.sh makes; changes nothing outside them. Each suite has a host of its own, which is
a network namespace, so that neither's links and rules are in the other's way. A ratio is ours divided by the
reference's (Debian's containernetworking-plugins in /usr/lib/cni): below 1 we are faster, unless the row says that
higher is better. Where the peer is missing only our own figures are shown. ROUNDS is how often a short thing is done,
40 if not given; long ones are done less often. Nothing here fails a build.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pyroute2 import netns

OURS = Path(__file__).parent.parent / "dist" / "cni"
PEER = Path("/usr/lib/cni")
LEASES = 20_000
PARALLEL = 8
BATCH = 64
CROWD = {"cnikit": 400, "reference": 200}  # attachments in place; the reference takes a minute to make more
BUILDERS = 4  # that make the crowd at a time
HOST_PORT = 20_000  # the first that is published; the container's is 80

BARE = "(python3 -I -S -c pass)"

# The kernel finishes deleting a link after DEL has returned; without a pause that is charged to whoever comes next.
SETTLE = 0.06  # seconds

Json = dict[str, Any]
Side = TypeVar("Side")


class Row(NamedTuple):
    """A line of the table: what was measured, its unit, and which two things are compared."""

    name: str
    unit: str = "ms"
    columns: tuple[str, str] = ("ours", "reference")


# What was measured, by row, for the left column and the right.
measured: dict[Row, tuple[list[float], list[float]]] = {}


def record(row: Row, column: int, value: float) -> None:
    """Note one measurement."""
    measured.setdefault(row, ([], []))[column].append(value)


@contextmanager
def timed(row: Row, column: int) -> Iterator[None]:
    """Note how long something takes."""
    started = time.perf_counter()
    yield
    record(row, column, (time.perf_counter() - started) * 1000)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Have this thread, and what it starts, in a network namespace."""
    with open("/proc/thread-self/ns/net") as here, open(namespace) as there:
        netns.setns(there.fileno())
        try:
            yield
        finally:
            netns.setns(here.fileno())


def made(*names: str) -> list[str]:
    """Make network namespaces, and return their paths."""
    for name in names:
        netns.create(name)
    return [f"/run/netns/{name}" for name in names]


def sandboxes(count: int) -> Iterator[str]:
    """Make containers' network namespaces one after the other, and remove each when the next is asked for."""
    for i in range(count):
        (place,) = made(f"bench-{i}")
        time.sleep(SETTLE)
        yield place
        netns.remove(place)


def turns(sides: list[Side], count: int) -> Iterator[list[Side]]:
    """Return the two sides so many times, every second time the other way round: neither is always first."""
    for i in range(count):
        yield sides[:: -1 if i % 2 else 1]


def quiet() -> None:
    """Wait until the processors are idle, a minute at most: what was just made keeps the kernel busy for a while."""
    for _ in range(60):
        before = _ticks()
        time.sleep(1)
        idle, total = (now - then for now, then in zip(_ticks(), before, strict=True))
        if idle >= 0.97 * total:
            return


def _ticks() -> tuple[int, int]:
    """Return the ticks that all processors were idle, and all ticks: proc_stat(5)."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


@dataclass
class Suite:
    """One of the two suites, with its own host, bridge, network and lease folder."""

    name: str
    folder: Path
    index: int  # and its column in the table
    data: Path
    host: str  # path of a network namespace
    columns: tuple[str, str] = ("ours", "reference")

    def bridge(self, *subnets: str, **more: object) -> Json:
        """Return a configuration of bridge with host-local."""
        return {
            "cniVersion": "1.0.0",
            "name": f"bench{self.index}",
            "type": "bridge",
            "bridge": f"bench{self.index}",
            "isDefaultGateway": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.data),
                "ranges": [[{"subnet": subnet}] for subnet in subnets or (f"10.{64 + self.index}.0.0/16",)],
            },
            **more,
        }

    def nat(self, ports: int = 1, first: int = HOST_PORT, ipv6: bool = False) -> list[Json]:
        """Return the configurations of bridge with ipMasq and of portmap with so many ports."""
        both = (f"10.{64 + self.index}.0.0/16", f"fd00:{64 + self.index}::/64")
        mappings = [{"hostPort": first + i, "containerPort": 80 + i, "protocol": "tcp"} for i in range(ports)]
        bridge = self.bridge(*both[: 1 + ipv6], ipMasq=True)
        portmap = {
            "cniVersion": bridge["cniVersion"],
            "name": bridge["name"],
            "type": "portmap",
            "capabilities": {"portMappings": True},
            "runtimeConfig": {"portMappings": mappings},
        }
        return [bridge, portmap]

    def start(
        self, plugin: str, verb: str, container: str, sandbox: str, config: Json, launcher: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a call on the suite's host, by a launcher if need be."""
        environ = {
            "PATH": os.environ["PATH"],  # the reference runs iptables
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": sandbox,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.folder),
        }
        with tempfile.TemporaryFile() as stdin, inside(self.host):
            stdin.write(json.dumps(config).encode())
            stdin.seek(0)
            command = [*launcher, str(self.folder / plugin)]
            return subprocess.Popen(command, env=environ, stdin=stdin, stdout=subprocess.PIPE)

    def finish(self, process: subprocess.Popen[bytes]) -> bytes:
        """Wait for a call, and stop the benchmark when it failed."""
        assert process.stdout is not None
        out = process.stdout.read()
        process.stdout.close()
        if process.wait() != 0:
            sys.exit(f"{self.name}: {process.args!r} failed: {out.decode()}")
        return out

    def call(self, plugin: str, verb: str, container: str, sandbox: str, config: Json) -> bytes:
        """Make a call, start to end."""
        return self.finish(self.start(plugin, verb, container, sandbox, config))

    def attach(self, chain: list[Json], sandbox: str) -> Json:
        """ADD by a list of plugins as a runtime does: each is given the result of the one before."""
        container = Path(sandbox).name
        result: Json = {}
        for config in chain:
            given = {**config, "prevResult": result} if result else config
            result = json.loads(self.call(config["type"], "ADD", container, sandbox, given))
        return result

    def detach(self, chain: list[Json], sandbox: str, result: Json) -> None:
        """DEL by a list of plugins as a runtime does: backwards, each is given ADD's last result."""
        container = Path(sandbox).name
        for config in reversed(chain):
            self.call(config["type"], "DEL", container, sandbox, {**config, "prevResult": result})

    def cycle(self, what: str, chain: list[Json], sandbox: str) -> None:
        """Time an ADD and its DEL, each by the whole list."""
        with timed(Row(f"{what} ADD", columns=self.columns), self.index):
            result = self.attach(chain, sandbox)
        time.sleep(SETTLE)
        with timed(Row(f"{what} DEL", columns=self.columns), self.index):
            self.detach(chain, sandbox, result)
        time.sleep(SETTLE)


def version(suites: list[Suite], rounds: int) -> None:
    """VERSION: start-up and nothing else; and below it what a bare interpreter takes, which no plugin can be under."""
    interpreter = [sys._base_executable, "-I", "-S", "-c", "pass"]  # type: ignore[attr-defined]
    for ordered in turns(suites, rounds * 3):
        for suite in ordered:
            with timed(Row("VERSION"), suite.index):
                suite.call("bridge", "VERSION", "c", "", {})
        with timed(Row(BARE), 0):
            subprocess.run(interpreter, check=True, env={}, stdin=subprocess.DEVNULL)


def bridge(suites: list[Suite], rounds: int) -> None:
    """ADD and DEL of bridge with host-local."""
    for sandbox, ordered in zip(sandboxes(rounds), turns(suites, rounds), strict=True):
        for suite in ordered:
            suite.cycle("bridge + host-local", [suite.bridge()], sandbox)


def nat(suites: list[Suite], rounds: int) -> None:
    """ADD and DEL of bridge with ipMasq and portmap: one port, ten, and one in both families."""
    for sandbox, ordered in zip(sandboxes(rounds), turns(suites, rounds), strict=True):
        for suite in ordered:
            suite.cycle("bridge with ipMasq + portmap", suite.nat(), sandbox)
        for suite in ordered:
            suite.cycle("the same, 10 ports,", suite.nat(10), sandbox)
        for suite in ordered:
            suite.cycle("the same, IPv4 and IPv6,", suite.nat(ipv6=True), sandbox)


def leases(suites: list[Suite], rounds: int) -> None:
    """ADD and DEL of host-local with many leases in place, written as the reference writes them."""
    for suite in suites:
        folder = suite.data / "leases"
        folder.mkdir(parents=True)
        for n in range(LEASES):
            address = f"10.200.{(n + 2) >> 8}.{(n + 2) & 255}"
            (folder / address).write_bytes(f"{n:064x}\r\neth0".encode())
        (folder / "last_reserved_ip.0").write_text(address)
        (folder / "lock").touch()
    for n, ordered in enumerate(turns(suites, max(rounds // 2, 5) + 1)):
        for suite in ordered:
            config = {**suite.bridge("10.200.0.0/15"), "name": "leases"}
            # The first call after a switch-over reads all leases once; it is shown apart.
            when = " first call" if n == 0 else ""
            for verb in ("ADD", "DEL"):
                with timed(Row(f"host-local, {LEASES} leases, {verb}{when}"), suite.index):
                    suite.call("host-local", verb, f"bench{n}", "/x", config)


def parallel(suites: list[Suite], rounds: int) -> None:
    """Several ADDs at once, until all have ended."""
    places = made(*(f"bench-{i}" for i in range(PARALLEL)))
    for ordered in turns(suites, rounds):
        for suite in ordered:
            with timed(Row(f"{PARALLEL} parallel ADDs, the whole batch"), suite.index):
                calls = [suite.start("bridge", "ADD", f"p{i}", place, suite.bridge()) for i, place in enumerate(places)]
                for call in calls:
                    suite.finish(call)
            for i, place in enumerate(places):
                suite.call("bridge", "DEL", f"p{i}", place, suite.bridge())
            time.sleep(SETTLE)
    for place in places:
        netns.remove(place)


def rate(suites: list[Suite], rounds: int) -> None:
    """Count ADDs with NAT per second, several at a time."""
    places = made(*(f"bench-{i}" for i in range(BATCH)))
    row = Row(f"NAT ADDs, {PARALLEL} at a time (higher is better)", "/s")
    for ordered in turns(suites, max(rounds // 6, 1)):
        for suite in ordered:
            chains = [suite.nat(first=HOST_PORT + i) for i in range(BATCH)]
            with ThreadPoolExecutor(PARALLEL) as pool:
                started = time.perf_counter()
                results = list(pool.map(suite.attach, chains, places))
                record(row, suite.index, BATCH / (time.perf_counter() - started))
                list(pool.map(suite.detach, chains, places, results))
            time.sleep(SETTLE * PARALLEL)
    for place in places:
        netns.remove(place)


def crowd(suites: list[Suite], rounds: int) -> None:
    """ADD and DEL with NAT on a host where many attachments are in place, against one where none is."""
    for suite in suites:
        count = CROWD[suite.name]
        columns = (f"{count} there", "none there")
        hosts = made(*(f"crowd-{suite.name}-{column}" for column in range(2)))
        full, empty = (
            replace(suite, index=column, host=host, data=suite.data / Path(host).name, columns=columns)
            for column, host in enumerate(hosts)
        )
        places = made(*(f"crowd-{i}" for i in range(count)))
        chains = [full.nat(first=HOST_PORT + 1 + i) for i in range(count)]
        full.attach(chains[0], places[0])  # two first ones at once fail each other, in the reference
        with ThreadPoolExecutor(BUILDERS) as pool:
            list(pool.map(full.attach, chains[1:], places[1:]))
        quiet()
        count = max(rounds // 2, 1)
        for sandbox, ordered in zip(sandboxes(count), turns([full, empty], count), strict=True):
            for one in ordered:
                one.cycle(f"{suite.name}, bridge with ipMasq + portmap", one.nat(), sandbox)
        for place in (*hosts, *places):
            netns.remove(place)


def memory(suites: list[Suite], rounds: int) -> None:
    """Peak memory of ADD and DEL, the larger.

    By time(1), which is small: what a process was before exec() counts too, and this one is large.
    """
    for sandbox in sandboxes(max(rounds // 10, 1)):
        for suite in suites:
            report = suite.data.parent / "memory"
            launcher = ("/usr/bin/time", "-f", "%M", "-a", "-o", str(report))
            for verb in ("ADD", "DEL"):
                suite.finish(suite.start("bridge", verb, f"m{suite.name}", sandbox, suite.bridge(), launcher))
            peak = max(map(int, report.read_text().split()))
            record(Row("peak memory of bridge + host-local", "MiB"), suite.index, peak / 1024)
            report.unlink()


def packets(suites: list[Suite], rounds: int) -> None:
    """TCP through a published port, from outside to a container, and masqueraded, from a container to outside."""
    places = made(*(f"bench-{suite.name}" for suite in suites))
    outsides = made(*(f"outside-{suite.name}" for suite in suites))
    for suite, place, outside in zip(suites, places, outsides, strict=True):
        uplink(suite.host, outside)
        suite.attach(suite.nat(), place)
    sides = list(zip(suites, places, outsides, strict=True))
    for ordered in turns(sides, rounds * 3):
        for suite, place, outside in ordered:
            row = Row("iperf3, published port (higher is better)", "Gbit/s")
            record(row, suite.index, throughput(place, 80, outside, "192.0.2.1", HOST_PORT))
            # Outside has no way to the container's subnet: what is not masqueraded gets no answer.
            row = Row("iperf3, masquerade (higher is better)", "Gbit/s")
            record(row, suite.index, throughput(outside, 5201, place, "192.0.2.2", 5201))
    for place in (*places, *outsides):
        netns.remove(place)


def uplink(host: str, outside: str) -> None:
    """Connect a host to the outside: 192.0.2.1 there, 192.0.2.2 here."""
    commands = {
        host: f"""
            link add uplink type veth peer name eth0 netns {Path(outside).name}
            address add 192.0.2.1/24 dev uplink
            link set uplink up""",
        outside: """
            address add 192.0.2.2/24 dev eth0
            link set eth0 up""",
    }
    for namespace, lines in commands.items():
        with inside(namespace):
            subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)


def throughput(server: str, listens: int, client: str, address: str, port: int) -> float:
    """Return the Gbit/s at which iperf3 sends 400 MB from one network namespace to another.

    Many short runs tell more than a few long ones: it is where the scheduler puts the two ends that differs.
    """
    with inside(server):
        serve = ["iperf3", "--server", "--forceflush", "--port", str(listens)]
        serving = subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # it minds being ended
    assert serving.stdout is not None
    if not any(b"listening" in line for line in serving.stdout):
        sys.exit("iperf3 does not listen")
    try:
        with inside(client):
            ask = ["iperf3", "--client", address, "--port", str(port), "--bytes", "400M", "--json"]
            report = subprocess.run(ask, stdout=subprocess.PIPE, check=True).stdout
    finally:
        serving.terminate()
        serving.communicate()
    return float(json.loads(report)["end"]["sum_received"]["bits_per_second"]) / 1e9


SCENARIOS: dict[str, Callable[[list[Suite], int], None]] = {
    "version": version,
    "bridge": bridge,
    "nat": nat,
    "leases": leases,
    "parallel": parallel,
    "rate": rate,
    "memory": memory,
    "packets": packets,
    "crowd": crowd,  # the last: its many namespaces take the kernel a while to remove
}


def table() -> str:
    """Return the measurements as a table: medians and their ratio."""
    lines: list[str] = []
    columns = None
    for row, samples in measured.items():
        if row.columns != columns:
            columns = row.columns
            lines.append(f"{'':44} {columns[0]:>13} {columns[1]:>13} {'ratio':>6}")
        medians = [statistics.median(column) for column in samples if column]
        cells = [f"{median:6.1f} {row.unit:6}" for median in medians]
        ratio = [f"{medians[0] / medians[1]:6.2f}"] if len(medians) == 2 else []
        lines.append(" ".join([f"{row.name:44}", *cells, *ratio]).rstrip())
    return "\n".join(lines)


def main() -> None:
    """Run the scenarios named on the command line, all of them when none is."""
    names = sys.argv[1:] or list(SCENARIOS)
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        sys.exit(f"bench: no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    rounds = int(os.environ.get("ROUNDS", "40"))
    root = Path(tempfile.mkdtemp(prefix="cnikit-bench-", dir="/run"))
    ours, theirs = made("host-ours", "host-peer")
    suites = [Suite("cnikit", OURS, 0, root / "ours", ours)]
    if (PEER / "bridge").exists():
        suites.append(Suite("reference", PEER, 1, root / "peer", theirs))
    else:
        print(f"The reference is not in {PEER} (apt-get install containernetworking-plugins): no ratios.")
    try:
        for name in names:
            SCENARIOS[name](suites, rounds)
    finally:
        shutil.rmtree(root)
    print(table())


if __name__ == "__main__":
    main()
