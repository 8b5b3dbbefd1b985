"""How fast: our executables against the reference's, interleaved in one run, as ratios of medians.

    ./build.sh bench [SCENARIO ...]

Runs in private namespaces that build.sh makes; changes nothing outside them. A ratio is ours divided by the reference's
(Debian's containernetworking-plugins in /usr/lib/cni): below 1 we are faster. Where the peer is missing only our own
milliseconds are shown. Nothing here fails a build.
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
from dataclasses import dataclass, field
from pathlib import Path

from pyroute2 import netns

OURS = Path(__file__).parent.parent / "dist" / "cni"
PEER = Path("/usr/lib/cni")
LEASES = 20_000
PARALLEL = 8

BARE = "(python3 -I -S -c pass)"

# The kernel finishes deleting a link after DEL has returned; without a pause that is charged to whoever comes next.
SETTLE = 0.06  # seconds


@dataclass
class Suite:
    """One of the two suites, with its own bridge, network and lease folder, and what was measured of it."""

    name: str
    folder: Path
    index: int
    data: Path
    peak: int = 0  # KiB
    samples: dict[str, list[float]] = field(default_factory=dict)  # seconds by row

    def config(self, subnet: str = "", version: str = "1.0.0") -> bytes:
        """Return a configuration of bridge with host-local."""
        conf = {
            "cniVersion": version,
            "name": f"bench{self.index}",
            "type": "bridge",
            "bridge": f"bench{self.index}",
            "isDefaultGateway": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.data),
                "ranges": [[{"subnet": subnet or f"10.{64 + self.index}.0.0/16"}]],
            },
        }
        return json.dumps(conf).encode()

    def start(
        self, plugin: str, verb: str, container: str, sandbox: str, config: bytes, launcher: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a call, by a launcher if need be."""
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": sandbox,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.folder),
        }
        with tempfile.TemporaryFile() as stdin:
            stdin.write(config)
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

    def time(self, row: str, plugin: str, verb: str, container: str, sandbox: str, config: bytes = b"") -> None:
        """Time one call, start to end."""
        started = time.perf_counter()
        self.finish(self.start(plugin, verb, container, sandbox, config or self.config()))
        self.samples.setdefault(row, []).append(time.perf_counter() - started)


def sandboxes(count: int) -> Iterator[str]:
    """Make network namespaces, one after the other."""
    for i in range(count):
        name = f"bench-{i}"
        netns.create(name)
        yield f"/run/netns/{name}"


def version(suites: list[Suite], rounds: int) -> None:
    """VERSION: start-up and nothing else; and below it what a bare interpreter takes, which no plugin can be under."""
    interpreter = [sys._base_executable, "-I", "-S", "-c", "pass"]  # type: ignore[attr-defined]
    for _ in range(rounds * 3):
        for suite in suites:
            suite.time("VERSION", "bridge", "VERSION", "c", "")
        started = time.perf_counter()
        subprocess.run(interpreter, check=True, env={}, stdin=subprocess.DEVNULL)
        suites[0].samples.setdefault(BARE, []).append(time.perf_counter() - started)


def bridge(suites: list[Suite], rounds: int) -> None:
    """ADD and DEL of bridge with host-local."""
    for sandbox in sandboxes(rounds):
        for suite in suites:
            container = sandbox.rpartition("/")[2] + suite.name
            suite.time("bridge + host-local ADD", "bridge", "ADD", container, sandbox)
            time.sleep(SETTLE)
            suite.time("bridge + host-local DEL", "bridge", "DEL", container, sandbox)
            time.sleep(SETTLE)
        netns.remove(sandbox)


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
    row = f"host-local, {LEASES} leases,"
    for n in range(max(rounds // 2, 5) + 1):
        for suite in suites:
            config = suite.config("10.200.0.0/15").replace(b'"bench%d"' % suite.index, b'"leases"')
            # The first call after a switch-over reads all leases once; it is shown apart.
            when = " first call" if n == 0 else ""
            suite.time(f"{row} ADD{when}", "host-local", "ADD", f"bench{n}", "/x", config)
            suite.time(f"{row} DEL{when}", "host-local", "DEL", f"bench{n}", "/x", config)


def parallel(suites: list[Suite], rounds: int) -> None:
    """Several ADDs at once, until all have ended."""
    places = list(sandboxes(PARALLEL))
    for _ in range(rounds):
        for suite in suites:
            started = time.perf_counter()
            calls = [suite.start("bridge", "ADD", f"p{i}", place, suite.config()) for i, place in enumerate(places)]
            for call in calls:
                suite.finish(call)
            taken = time.perf_counter() - started
            suite.samples.setdefault(f"{PARALLEL} parallel ADDs, the whole batch", []).append(taken)
            for i, place in enumerate(places):
                suite.finish(suite.start("bridge", "DEL", f"p{i}", place, suite.config()))
            time.sleep(SETTLE)
    for place in places:
        netns.remove(place)


def memory(suites: list[Suite], rounds: int) -> None:
    """Peak memory of ADD and DEL.

    By time(1), which is small: what a process was before exec() counts too, and this one is large.
    """
    for sandbox in sandboxes(max(rounds // 10, 1)):
        for suite in suites:
            for verb in ("ADD", "DEL"):
                report = suite.data.parent / "memory"
                launcher = ("/usr/bin/time", "-f", "%M", "-o", str(report))
                suite.finish(suite.start("bridge", verb, f"m{suite.name}", sandbox, suite.config(), launcher))
                suite.peak = max(suite.peak, int(report.read_text()))
        netns.remove(sandbox)


SCENARIOS: dict[str, Callable[[list[Suite], int], None]] = {
    "version": version,
    "bridge": bridge,
    "leases": leases,
    "parallel": parallel,
    "memory": memory,
}


def table(suites: list[Suite]) -> str:
    """Return the measurements as a table: medians in ms, their ratio, and peak memory."""
    ours = suites[0]
    peer = suites[1] if len(suites) > 1 else None
    lines = [f"{'':44} {'ours':>10} {'reference':>10} {'ratio':>6}"]
    for row, taken in ours.samples.items():
        line = f"{row:44} {statistics.median(taken) * 1000:7.1f} ms"
        if peer and row in peer.samples:
            other = statistics.median(peer.samples[row])
            line += f" {other * 1000:7.1f} ms {statistics.median(taken) / other:6.2f}"
        lines.append(line)
    if ours.peak:
        line = f"{'peak memory of bridge + host-local':44} {ours.peak / 1024:6.1f} MiB"
        lines.append(line + (f" {peer.peak / 1024:6.1f} MiB {ours.peak / peer.peak:6.2f}" if peer else ""))
    return "\n".join(lines)


def main() -> None:
    """Run the scenarios named on the command line, all of them when none is."""
    names = sys.argv[1:] or list(SCENARIOS)
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        sys.exit(f"bench: no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    rounds = int(os.environ.get("ROUNDS", "40"))
    root = Path(tempfile.mkdtemp(prefix="cnikit-bench-", dir="/run"))
    suites = [Suite("cnikit", OURS, 0, root / "ours")]
    if (PEER / "bridge").exists():
        suites.append(Suite("reference", PEER, 1, root / "peer"))
    else:
        print(f"The reference is not in {PEER} (apt-get install containernetworking-plugins): no ratios.")
    try:
        for name in names:
            SCENARIOS[name](suites, rounds)
    finally:
        shutil.rmtree(root)
    print(table(suites))


if __name__ == "__main__":
    main()
