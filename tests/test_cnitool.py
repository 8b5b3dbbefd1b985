"""cnitool as a command: what it runs, what it prints, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cnikit.cli import cnitool
from cnikit.errors import CniError
from tests.fake_own import Ours
from tests.fake_plugin import FakePlugins

NETWORK = {
    "cniVersion": "1.1.0",
    "name": "net1",
    "plugins": [{"type": "alpha"}, {"type": "beta", "capabilities": {"mac": True}}],
}
# printf %s /run/netns/none | sha512sum: the first ten bytes.
NONE_ID = "cnitool-33339a85a347a95130f9"


class Tool:
    """cnitool in a world of its own: plugins, one network, a namespace that is but a file, a cache."""

    def __init__(self, folder: Path) -> None:
        self.plugins = FakePlugins(folder / "bin", "alpha", "beta")
        self.configurations = folder / "net.d"
        self.configurations.mkdir()
        self.configure(NETWORK)
        self.netns = folder / "netns"
        self.netns.touch()
        self.container = cnitool.container_id(str(self.netns))
        self.results = folder / "cache" / "results"
        self._cache = folder / "cache"

    def configure(self, network: dict[str, Any]) -> None:
        """Write the network's configuration."""
        (self.configurations / "10-net1.conflist").write_text(json.dumps(network))

    def run(self, verb: str, *arguments: object, **environ: str) -> tuple[int, str, str]:
        """Run cnitool; return its exit status, stdout and stderr."""
        outer = {name: value for name, value in os.environ.items() if not name.startswith(("CNI_", "CAP_"))}
        variables = {"CNI_PATH": str(self.plugins.folder), "NETCONFPATH": str(self.configurations), **environ}
        done = subprocess.run(
            [sys.executable, "-m", "cnikit.cli.cnitool", verb, f"--cache={self._cache}", *map(str, arguments)],
            env={**outer, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    return Tool(tmp_path)


def test_add_prints_the_result_and_del_removes_it(tool: Tool) -> None:
    status, stdout, stderr = tool.run("add", "net1", tool.netns)
    assert (status, stderr) == (0, "")
    assert json.loads(stdout) == {"cniVersion": "1.1.0", "interfaces": [{"name": "alpha"}, {"name": "beta"}]}
    assert stdout.startswith('{\n    "cniVersion"')
    assert [file.name for file in tool.results.iterdir()] == [f"net1-{tool.container}-eth0"]
    assert tool.run("check", "net1", tool.netns) == (0, "", "")
    assert tool.run("del", "net1", tool.netns) == (0, "", "")
    assert list(tool.results.iterdir()) == []
    expected = ["alpha ADD", "beta ADD", "alpha CHECK", "beta CHECK", "beta DEL", "alpha DEL"]
    assert tool.plugins.called() == expected


def test_the_variables_of_the_go_cnitool_are_passed_on(tool: Tool) -> None:
    assert tool.run("add", "net1", tool.netns, CNI_IFNAME="eth7", CNI_ARGS="A=1;B=2;", CAP_ARGS='{"mac": "m"}')[0] == 0
    beta = tool.plugins.calls()[1]
    assert {name: value for name, value in beta["env"].items() if name.startswith("CNI_")} == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": tool.container,
        "CNI_NETNS": str(tool.netns),
        "CNI_IFNAME": "eth7",
        "CNI_ARGS": "A=1;B=2",
        "CNI_PATH": str(tool.plugins.folder),
    }
    assert beta["stdin"]["runtimeConfig"] == {"mac": "m"}


def test_a_namespace_that_is_gone_can_be_deleted(tool: Tool) -> None:
    assert tool.run("del", "net1", "/run/netns/none") == (0, "", "")
    assert [call["env"]["CNI_CONTAINERID"] for call in tool.plugins.calls()] == [NONE_ID] * 2


def test_status_says_nothing_when_all_is_well(tool: Tool) -> None:
    assert tool.run("status", "net1") == (0, "", "")
    assert tool.plugins.called() == ["alpha STATUS", "beta STATUS"]


def test_version_lists_every_plugins(tool: Tool) -> None:
    assert tool.run("version", "net1") == (0, "alpha: 0.4.0, 1.0.0, 1.1.0\nbeta: 0.4.0, 1.0.0, 1.1.0\n", "")


@pytest.mark.parametrize(
    ("keys", "arguments", "why"),
    [
        ({"cniVersion": "1.0.0"}, ("status", "net1"), "cniVersion is 1.0.0, STATUS came with 1.1.0"),
        ({"cniVersion": "1.0.0"}, ("gc", "net1", "--all"), "cniVersion is 1.0.0, GC came with 1.1.0"),
        ({"disableGC": True}, ("gc", "net1", "--all"), "disableGC is true"),
        ({"disableCheck": True}, ("check", "net1", "/proc/self/ns/net"), "disableCheck is true"),
    ],
)
def test_what_a_network_declines_is_said(
    tool: Tool, keys: dict[str, Any], arguments: tuple[str, ...], why: str
) -> None:
    tool.configure({**NETWORK, **keys})
    expected = f"cnitool: {arguments[0]} net1: the plugins are not asked: {why}\n"
    assert tool.run(*arguments) == (0, "", expected)
    assert tool.plugins.calls() == []


@pytest.mark.parametrize(
    ("arguments", "environ", "status", "message"),
    [
        pytest.param(
            ("add", "net2", "/proc/self/ns/net"),
            {},
            1,
            "cnitool: add net2: no network 'net2' in FOLDER (networks there: net1)",
            id="unknown-network",
        ),
        pytest.param(
            ("status", "net1"),
            {"NETCONFPATH": "/none"},
            1,
            "cnitool: status net1: /none: No such file or directory "
            "(network configurations are looked for there (NETCONFPATH))",
            id="no-configurations",
        ),
        pytest.param(
            ("add", "net1", "/proc/self/ns/net"),
            {"CNI_PATH": "/none:/nowhere"},
            1,
            "cnitool: add net1: alpha: no such plugin (looked in /none, /nowhere)",
            id="missing-plugin",
        ),
        pytest.param(
            ("add", "net1", "/run/netns/none"),
            {},
            1,
            "cnitool: add net1: /run/netns/none does not exist (`ip netns add NAME` makes a namespace)",
            id="no-such-netns",
        ),
        pytest.param(
            ("check", "net1", "none"),
            {},
            1,
            "cnitool: check net1: /run/netns/none does not exist (`ip netns add NAME` makes a namespace)",
            id="no-such-netns-name",
        ),
        pytest.param(
            ("check", "net1", "/proc/self/ns/net"),
            {"CNI_IFNAME": "eth3"},
            1,
            "cnitool: check net1: no result is cached of eth3 of cnitool-",
            id="check-of-what-was-not-added",
        ),
        pytest.param(("del", "net1", ""), {}, 2, "cnitool: del net1: NETNS is empty", id="empty-netns"),
        pytest.param(("repair", "net1", ""), {}, 2, "cnitool: repair net1: NETNS is empty", id="repair-empty-netns"),
        pytest.param(
            ("repair", "net1", "/run/netns/none"),
            {},
            1,
            "cnitool: repair net1: /run/netns/none does not exist",
            id="repair-no-such-netns",
        ),
        pytest.param(
            ("repair", "net1", "/proc/self/ns/net"),
            {},
            1,
            "cnitool: repair net1: no attachment of /proc/self/ns/net to net1 is cached "
            "(only what was added can be repaired)",
            id="repair-of-what-was-not-added",
        ),
        pytest.param(
            ("add", "net1", "/proc/self/ns/net"),
            {"CAP_ARGS": "{mac}"},
            2,
            "cnitool: add net1: CAP_ARGS: is not JSON: ",
            id="cap-args-no-json",
        ),
        pytest.param(
            ("add", "net1", "/proc/self/ns/net"),
            {"CAP_ARGS": "[]"},
            2,
            "cnitool: add net1: CAP_ARGS: is no JSON object (write a JSON object, ",
            id="cap-args-no-object",
        ),
        pytest.param(
            ("add", "net1", "/proc/self/ns/net"),
            {"CNI_ARGS": "A=1;B"},
            2,
            "cnitool: add net1: CNI_ARGS: invalid pair 'B' (write KEY=VALUE;KEY=VALUE)",
            id="cni-args",
        ),
        pytest.param(
            ("add", "net1", "/proc/self/ns/net"),
            {"CNI_IFNAME": "eth0:1"},
            2,
            "cnitool: add net1: CNI_IFNAME: interface name contains / or :",
            id="ifname",
        ),
        pytest.param(
            ("gc", "net1", "--keep", "c1"), {}, 2, "cnitool: gc net1: --keep c1: write CONTAINERID/IFNAME", id="keep"
        ),
        pytest.param(
            ("gc", "net1", "--keep", "c 1/eth0"),
            {},
            2,
            "cnitool: gc net1: --keep c 1/eth0: CNI_CONTAINERID: 'c 1' is no container id",
            id="keep-bad-id",
        ),
    ],
)
def test_a_usual_mistake_gets_one_readable_line(
    tool: Tool, arguments: tuple[str, ...], environ: dict[str, str], status: int, message: str
) -> None:
    ended, stdout, stderr = tool.run(*arguments, **environ)
    wanted = message.replace("FOLDER", str(tool.configurations))
    assert (ended, stdout, stderr[: len(wanted)]) == (status, "", wanted)
    assert stderr.count("\n") == 1
    assert tool.plugins.calls() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("add", "net1"), "the following arguments are required: NETNS", id="no-netns"),
        pytest.param(("add",), "the following arguments are required: NET, NETNS", id="no-network"),
        pytest.param(("gc", "net1", "/run/netns/a"), "unrecognized arguments: /run/netns/a", id="gc-has-no-netns"),
        pytest.param(("status", "net1", "/run/netns/a"), "unrecognized arguments: ", id="status-has-no-netns"),
        pytest.param(("version", "net1", "/run/netns/a"), "unrecognized arguments: ", id="version-has-no-netns"),
        pytest.param(("gc", "net1", "--keep", "-x/eth0"), "expected at least one argument", id="keep-like-an-option"),
        pytest.param(("gc", "net1", "--all", "--keep", "c1/eth0"), "not allowed with argument", id="all-and-keep"),
        pytest.param(("attach", "net1"), "invalid choice: 'attach'", id="unknown-verb"),
    ],
)
def test_a_wrong_command_line_is_usage(tool: Tool, arguments: tuple[str, ...], message: str) -> None:
    status, stdout, stderr = tool.run(*arguments)
    assert (status, stdout) == (2, "")
    assert stderr.startswith("usage: cnitool")
    assert message in stderr.splitlines()[-1]


def test_a_failure_names_the_plugin_in_one_line_and_what_the_clean_up_left_in_another(tool: Tool) -> None:
    error = {"code": 11, "msg": "no\naddress", "details": "wait"}
    tool.plugins.script(
        {"beta ADD": {"stdout": error, "status": 1}, "alpha DEL": {"status": 3, "stderr": "stuck\nfast\n"}}
    )
    status, stdout, stderr = tool.run("add", "net1", tool.netns)
    assert (status, stdout) == (1, "")
    assert stderr.splitlines() == [
        "cnitool: add net1: beta: no address (wait)",
        "cnitool: add net1: clean-up: alpha: exit status 3, without an error object (stuck fast)",
    ]


class TestGC:
    """What is valid: the cache by default, what is named, or nothing, said explicitly."""

    @pytest.fixture
    def attached(self, tool: Tool) -> Tool:
        for ifname in ("eth0", "eth1"):
            assert tool.run("add", "net1", tool.netns, CNI_IFNAME=ifname)[0] == 0
        tool.plugins.calls()
        return tool

    def valid(self, tool: Tool) -> list[str]:
        """Return what alpha was told is valid, after the DELs that came first."""
        stdin = next(call["stdin"] for call in tool.plugins.calls() if call["verb"] == "GC")
        assert stdin["cni.dev/valid-attachments"] == stdin["cni.dev/attachments"]
        return [f"{one['containerID']}/{one['ifname']}" for one in stdin["cni.dev/attachments"]]

    def kept(self, tool: Tool) -> list[str]:
        """Return the interfaces that are still cached."""
        return sorted(file.name.rpartition("-")[2] for file in tool.results.iterdir())

    def test_by_default_the_cached_attachments_are_valid(self, attached: Tool) -> None:
        assert attached.run("gc", "net1") == (0, "", "")
        assert self.valid(attached) == [f"{attached.container}/eth0", f"{attached.container}/eth1"]
        assert self.kept(attached) == ["eth0", "eth1"]

    @pytest.mark.parametrize("options", [["--keep", "{}/eth1", "db/eth0"], ["--keep", "{}/eth1", "--keep", "db/eth0"]])
    def test_keep_names_what_is_valid(self, attached: Tool, options: list[str]) -> None:
        named = [option.format(attached.container) for option in options]
        assert attached.run("gc", "net1", *named) == (0, "", "")
        assert self.valid(attached) == [f"{attached.container}/eth1", "db/eth0"]
        assert self.kept(attached) == ["eth1"]

    def test_all_frees_everything(self, attached: Tool) -> None:
        assert attached.run("gc", "net1", "--all") == (0, "", "")
        assert self.valid(attached) == []
        assert self.kept(attached) == []

    def test_an_empty_cache_is_not_taken_for_all(self, tool: Tool) -> None:
        status, _, stderr = tool.run("gc", "net1")
        assert status == 1
        assert stderr.startswith("cnitool: gc net1: no attachment is cached, so everything would be freed (say --all ")
        assert tool.plugins.calls() == []

    def test_a_broken_cached_result_is_not_taken_for_a_dead_attachment(self, attached: Tool) -> None:
        broken = attached.results / f"net1-{attached.container}-eth1"
        broken.write_text("")
        status, _, stderr = attached.run("gc", "net1")
        assert (status, attached.plugins.calls()) == (1, [])
        assert stderr.startswith(f"cnitool: gc net1: {broken}: cannot be read")

    def test_help_warns(self, tool: Tool) -> None:
        status, stdout, _ = tool.run("gc", "--help")
        assert status == 0
        assert "--all             nothing: everything is freed, live addresses too" in stdout


class TestRepair:
    """What is said of what was put back, and how it ends. Two attachments, the first one's netns is gone."""

    GONE = "aaa/eth0: left alone: /run/netns/none is gone"

    @pytest.fixture
    def ours(self, monkeypatch: pytest.MonkeyPatch, tool: Tool) -> Ours:
        monkeypatch.setenv("CNI_PATH", str(tool.plugins.folder))
        monkeypatch.setenv("NETCONFPATH", str(tool.configurations))
        assert tool.run("add", "net1", "/proc/self/ns/net")[0] == 0
        (added,) = tool.results.iterdir()
        entry = {**json.loads(added.read_text()), "containerId": "aaa", "netns": "/run/netns/none"}
        (tool.results / "net1-aaa-eth0").write_text(json.dumps(entry))
        tool.plugins.calls()
        return Ours(monkeypatch, tool.plugins, "alpha", "beta")

    def repair(self, tool: Tool, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
        """Run cnitool in this process; return its exit status, lines of stdout, and stderr."""
        status = cnitool.main(["repair", f"--cache={tool.results.parent}", "net1", *arguments])
        said = capsys.readouterr()
        assert tool.plugins.called() == []
        return status, said.out.splitlines(), said.err

    def test_a_line_for_each_plugin_that_put_something_back(
        self, tool: Tool, ours: Ours, capsys: pytest.CaptureFixture[str]
    ) -> None:
        who = f"{cnitool.container_id('/proc/self/ns/net')}/eth0"
        document = "nft -f - <<'END'\ntable inet t {\n\tset s { type ipv4_addr; }\n}\nEND"
        ours.missing = {"alpha": (document, "nft add 'element inet t s { 10.0.0.2 }'"), "beta": ("sysctl -w a=1",)}
        restored = [
            f"{who}: alpha: put back: nft -f - <<'END' table inet t {{ ...; nft add 'element inet t s {{ 10.0.0.2 }}'",
            f"{who}: beta: put back: sysctl -w a=1",
        ]
        assert self.repair(tool, capsys) == (0, [self.GONE, *restored], "")
        assert self.repair(tool, capsys) == (0, [self.GONE, "nothing was missing"], "")

    @pytest.mark.parametrize("path", ["/proc/self/ns/net", "/proc/thread-self/ns/net"])
    def test_one_containers_attachments_alone(
        self, tool: Tool, ours: Ours, capsys: pytest.CaptureFixture[str], path: str
    ) -> None:
        (tool.results / "net1-zzz-eth0").touch()  # of all attachments only
        ours.missing = {"alpha": ("nft ...",)}
        status, lines, _ = self.repair(tool, capsys, path)
        assert (status, len(lines)) == (0, 1)
        assert lines[0].endswith(": alpha: put back: nft ...")

    def test_every_fault_gets_a_line_and_the_status_is_1(
        self, tool: Tool, ours: Ours, capsys: pytest.CaptureFixture[str]
    ) -> None:
        who = f"{cnitool.container_id('/proc/self/ns/net')}/eth0"
        broken = tool.results / "net1-zzz-eth0"
        broken.touch()
        ours.missing = {"beta": ("nft ...",)}
        ours.faults = {"alpha repair": CniError(7, "taken", "by db"), "beta check": CniError(101, "no link")}
        status, lines, stderr = self.repair(tool, capsys)
        assert (status, lines) == (1, [self.GONE, f"{who}: beta: put back: nft ..."])
        *told, unreadable = stderr.splitlines()
        assert told == [
            f"cnitool: repair net1: {who}: alpha: taken (by db)",
            f"cnitool: repair net1: {who}: beta: no link",
        ]
        assert unreadable.startswith(
            f"cnitool: repair net1: {broken}: cannot be read, so its attachment is not repaired"
        )

    def test_what_plugins_say_beside_their_answer_is_on_stderr(
        self, tool: Tool, ours: Ours, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ours.notes = {"alpha repair": "odd", "beta check": "even"}
        ours.faults = {"beta check": CniError(101, "no link")}
        status, _, stderr = self.repair(tool, capsys, "/proc/self/ns/net")
        who = f"{cnitool.container_id('/proc/self/ns/net')}/eth0"
        said = ["alpha: odd", "beta: even", f"cnitool: repair net1: {who}: beta: no link"]
        assert (status, stderr.splitlines()) == (1, said)

    def test_nothing_cached_is_said(self, tool: Tool) -> None:
        assert tool.run("repair", "net1") == (0, "nothing to repair: no attachment is cached\n", "")

    def test_another_suites_plugins_are_named(self, tool: Tool) -> None:
        assert tool.run("add", "net1", "/proc/self/ns/net")[0] == 0
        tool.plugins.calls()
        status, stdout, stderr = tool.run("repair", "net1")
        who = f"{cnitool.container_id('/proc/self/ns/net')}/eth0"
        named = [
            f"{who}: {kind}: left alone: {tool.plugins.folder}/{kind} is another suite's" for kind in ("alpha", "beta")
        ]
        assert (status, stdout.splitlines(), stderr) == (0, [*named, "nothing was missing"], "")
        assert tool.plugins.called() == ["alpha CHECK", "beta CHECK"]

    def test_help_tells_when_it_is_needed(self, tool: Tool) -> None:
        status, stdout, _ = tool.run("repair", "--help")
        assert status == 0
        assert "`nft flush ruleset`" in stdout


@pytest.mark.parametrize(
    ("netns", "expected"),
    [
        # printf %s PATH | sha512sum
        ("/var/run/netns/testing", "cnitool-77383ca0a0715733ca6f"),
        ("/run/netns/none", NONE_ID),
    ],
)
def test_container_ids_are_those_of_the_go_cnitool(netns: str, expected: str) -> None:
    assert cnitool.container_id(netns) == expected


@pytest.mark.parametrize(
    ("text", "path"),
    [
        pytest.param("/run/netns/a", "/run/netns/a", id="path"),
        pytest.param("/run//netns/../netns/a/", "/run/netns/a", id="path-not-clean"),
        pytest.param("//run/netns/a", "/run/netns/a", id="path-with-two-slashes"),
        pytest.param("./a", "{cwd}/a", id="relative-path"),
        pytest.param("/proc/42/ns/net", "/proc/42/ns/net", id="proc"),
        pytest.param("42", "/proc/42/ns/net", id="pid"),
        pytest.param("no-such-name", "/run/netns/no-such-name", id="name"),
        pytest.param("42a", "/run/netns/42a", id="name-beginning-with-digits"),
    ],
)
def test_forms_of_netns(text: str, path: str) -> None:
    assert cnitool.netns_path(text) == path.format(cwd=os.getcwd())


@pytest.mark.parametrize("folder", ["/run/netns", "/var/run/netns"])
def test_a_bare_name_is_taken_where_it_is(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: path == f"{folder}/a")
    assert cnitool.netns_path("a") == f"{folder}/a"


class TestPluginPath:
    """Where plugins are looked for when CNI_PATH does not say."""

    @pytest.fixture
    def own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Give a folder in which cnitool stands as a built executable, reached by a link from elsewhere."""
        own = tmp_path / "cni"
        own.mkdir()
        (own / "cnitool").touch()
        (tmp_path / "link").symlink_to(own / "cnitool")
        monkeypatch.setattr(sys, "frozen", True, raising=False)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "link"))
        monkeypatch.delenv("CNI_PATH", raising=False)
        return own

    def test_cni_path_counts(self, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (own / "loopback").touch()
        monkeypatch.setenv("CNI_PATH", "/a::/b:")
        assert cnitool.plugin_path() == ["/a", "/b"]

    def test_else_its_own_folder_when_plugins_are_there(self, own: Path) -> None:
        (own / "loopback").touch()
        assert cnitool.plugin_path() == [str(own)]

    def test_else_the_usual_folder(self, own: Path) -> None:
        assert own.exists()
        assert cnitool.plugin_path() == ["/opt/cni/bin"]

    def test_the_usual_folder_when_not_built(self, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (own / "loopback").touch()
        monkeypatch.delattr(sys, "frozen")
        assert cnitool.plugin_path() == ["/opt/cni/bin"]
