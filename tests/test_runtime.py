"""The runtime: which plugin is given what, in which order, and what becomes of failures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cnikit import networks, result, spec
from cnikit.attachments import Cache
from cnikit.errors import CniError
from cnikit.networks import Network
from cnikit.runtime import Attachment, Repaired, Runtime
from tests.fake_own import Ours
from tests.fake_plugin import FakePlugins

WEB = Attachment(
    "web",
    "eth0",
    "/run/netns/web",
    args=(("IgnoreUnknown", "1"), ("K8S_POD_NAME", "web")),
    capabilities={"portMappings": [{"hostPort": 8080}], "mac": "02:00:00:00:00:01"},
)
OLD = Attachment("old", "eth1", "/run/netns/old", capabilities={"mac": "02:00:00:00:00:02"})

ALPHA = {"cniVersion": "1.1.0", "interfaces": [{"name": "alpha"}]}
BETA = {"cniVersion": "1.1.0", "interfaces": [{"name": "alpha"}, {"name": "beta"}]}
GAMMA = {"cniVersion": "1.1.0", "interfaces": [{"name": "alpha"}, {"name": "beta"}, {"name": "gamma"}]}
REFUSED = {"stdout": {"cniVersion": "1.1.0", "code": 11, "msg": "full", "details": "wait"}, "status": 1}


def chain(**keys: Any) -> Network:
    """Return a network of three plugins, of which the middle one has all a plugin can have."""
    config = {
        "cniVersion": "1.1.0",
        "name": "net1",
        "plugins": [
            {"type": "alpha", "mtu": 1400},
            {
                "type": "beta",
                "capabilities": {"portMappings": True, "mac": False, "bandwidth": True},
                "Name": "ignored",
                "cniversion": "0.1.0",
                "args": {"cni": {}},
            },
            {"type": "gamma"},
        ],
        **keys,
    }
    return networks.parse(json.dumps(config).encode())


@pytest.fixture
def plugins(tmp_path: Path) -> FakePlugins:
    return FakePlugins(tmp_path / "bin", "alpha", "beta", "gamma")


@pytest.fixture
def runtime(tmp_path: Path, plugins: FakePlugins) -> Runtime:
    return Runtime([plugins.folder], tmp_path / "cache")


def given(plugins: FakePlugins) -> list[tuple[str, str, dict[str, Any]]]:
    """Return plugin, verb and stdin of each call since the last time."""
    return [(call["plugin"], call["verb"], call["stdin"]) for call in plugins.calls()]


def configs(*previous: object, more: dict[str, object] | None = None) -> dict[str, dict[str, Any]]:
    """Return what each plugin of the chain is to find on stdin: of an attachment when there are previous results."""
    own: dict[str, dict[str, Any]] = {
        "alpha": {"type": "alpha", "mtu": 1400},
        "beta": {"type": "beta", "args": {"cni": {}}},
        "gamma": {"type": "gamma"},
    }
    if previous:
        own["beta"]["runtimeConfig"] = {"portMappings": [{"hostPort": 8080}]}
    for config, before in zip(own.values(), previous or (None, None, None), strict=True):
        config.update({"cniVersion": "1.1.0", "name": "net1", **(more or {})})
        config.update({"prevResult": before} if before else {})
    return own


def caught(call: Callable[[], object]) -> CniError:
    with pytest.raises(CniError) as error:
        call()
    return error.value


def test_add_runs_in_order_each_with_its_predecessors_result(runtime: Runtime, plugins: FakePlugins) -> None:
    added = runtime.add(chain(), WEB)
    expected = configs(None, ALPHA, BETA)
    assert given(plugins) == [(name, "ADD", expected[name]) for name in ("alpha", "beta", "gamma")]
    assert added.document == GAMMA
    assert added.result.interfaces == tuple(map(result.Interface, ("alpha", "beta", "gamma")))


def test_check_runs_in_order_each_with_the_final_result(runtime: Runtime, plugins: FakePlugins) -> None:
    runtime.add(chain(), WEB)
    plugins.calls()
    runtime.check(chain(), WEB)
    expected = configs(GAMMA, GAMMA, GAMMA)
    assert given(plugins) == [(name, "CHECK", expected[name]) for name in ("alpha", "beta", "gamma")]


def test_delete_runs_in_reverse_each_with_the_final_result(runtime: Runtime, plugins: FakePlugins) -> None:
    runtime.add(chain(), WEB)
    plugins.calls()
    runtime.delete(chain(), WEB)
    expected = configs(GAMMA, GAMMA, GAMMA)
    assert given(plugins) == [(name, "DEL", expected[name]) for name in ("gamma", "beta", "alpha")]
    assert runtime.attachments(chain()) == ()


def test_status_runs_in_order_without_anything_of_an_attachment(runtime: Runtime, plugins: FakePlugins) -> None:
    runtime.status(chain())
    expected = configs()
    assert given(plugins) == [(name, "STATUS", expected[name]) for name in ("alpha", "beta", "gamma")]


def test_gc_deletes_what_is_stale_then_gives_every_plugin_what_is_valid(runtime: Runtime, plugins: FakePlugins) -> None:
    runtime.add(chain(), WEB)
    runtime.add(chain(), OLD)
    plugins.calls()
    runtime.gc(chain(), [Attachment("web", "eth0"), Attachment("db", "eth0")])
    calls = given(plugins)
    assert [(name, verb) for name, verb, _ in calls[:3]] == [("gamma", "DEL"), ("beta", "DEL"), ("alpha", "DEL")]
    valid = [{"containerID": "web", "ifname": "eth0"}, {"containerID": "db", "ifname": "eth0"}]
    expected = configs(more={"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid})
    assert calls[3:] == [(name, "GC", expected[name]) for name in ("alpha", "beta", "gamma")]
    assert [attachment.key for attachment in runtime.attachments(chain())] == [("web", "eth0")]


ATTACHED = {
    "CNI_CONTAINERID": "web",
    "CNI_NETNS": "/run/netns/web",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web",
}
UNATTACHED = {"CNI_CONTAINERID": "", "CNI_NETNS": "", "CNI_IFNAME": "", "CNI_ARGS": ""}


@pytest.mark.parametrize(
    ("verb", "run", "variables"),
    [
        (
            "ADD",
            lambda runtime: runtime.add(chain(), Attachment("db", "eth9")),
            {"CNI_CONTAINERID": "db", "CNI_NETNS": "", "CNI_IFNAME": "eth9", "CNI_ARGS": ""},
        ),
        ("CHECK", lambda runtime: runtime.check(chain(), WEB), ATTACHED),
        ("DEL", lambda runtime: runtime.delete(chain(), WEB), ATTACHED),
        ("GC", lambda runtime: runtime.gc(chain(), [WEB]), UNATTACHED),
        ("STATUS", lambda runtime: runtime.status(chain()), UNATTACHED),
    ],
)
def test_plugins_are_given_their_variables(
    monkeypatch: pytest.MonkeyPatch,
    runtime: Runtime,
    plugins: FakePlugins,
    verb: str,
    run: Callable[[Runtime], object],
    variables: dict[str, str],
) -> None:
    monkeypatch.setenv("CNI_CONTAINERID", "from-outside")
    monkeypatch.setenv("CNI_ARGS", "FROM=OUTSIDE")
    monkeypatch.setenv("TRACEPARENT", "00-1-2-01")
    runtime.add(chain(), WEB)
    plugins.calls()
    run(runtime)
    expected = {"CNI_COMMAND": verb, "CNI_PATH": str(plugins.folder), "TRACEPARENT": "00-1-2-01", **variables}
    shown = [{name: call["env"].get(name) for name in expected} for call in plugins.calls()]
    assert shown == [expected] * 3


def test_version_asks_each_type_with_the_variables_old_libraries_want(runtime: Runtime, plugins: FakePlugins) -> None:
    plugins.script({"beta VERSION": {"stdout": {"cniVersion": "0.2.0", "supportedVersions": ["0.1.0", "0.2.0"]}}})
    assert runtime.version(chain()) == {
        "alpha": ("0.4.0", "1.0.0", "1.1.0"),
        "beta": ("0.1.0", "0.2.0"),
        "gamma": ("0.4.0", "1.0.0", "1.1.0"),
    }
    call = plugins.calls()[0]
    assert call["stdin"] == {"cniVersion": "1.1.0"}
    assert [call["env"][name] for name in ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")] == ["dummy"] * 3


@pytest.mark.parametrize(
    ("supplied", "enabled", "offered"),
    [
        pytest.param({"mac": "a"}, {"mac": True}, {"mac": "a"}, id="both"),
        pytest.param({"mac": "a"}, {"mac": False}, None, id="switched-off"),
        pytest.param({"mac": "a"}, {}, None, id="not-enabled"),
        pytest.param({}, {"mac": True}, None, id="not-supplied"),
        pytest.param({"mac": "a", "ips": [], "dns": {}}, {"mac": True, "ips": True}, {"mac": "a", "ips": []}, id="two"),
    ],
)
def test_capabilities_reach_a_plugin_that_enables_them(
    runtime: Runtime,
    plugins: FakePlugins,
    supplied: dict[str, object],
    enabled: dict[str, bool],
    offered: dict[str, object] | None,
) -> None:
    network = chain(plugins=[{"type": "alpha", "capabilities": enabled}])
    runtime.add(network, Attachment("web", capabilities=supplied))
    stdin = plugins.calls()[0]["stdin"]
    assert stdin.get("runtimeConfig") == offered
    assert "capabilities" not in stdin


def test_check_and_delete_recall_the_arguments_of_the_add(runtime: Runtime, plugins: FakePlugins) -> None:
    runtime.add(chain(), WEB)
    plugins.calls()
    runtime.check(chain(), Attachment("web"))
    runtime.delete(chain(), Attachment("web"))
    betas = [call for call in plugins.calls() if call["plugin"] == "beta"]
    assert [call["verb"] for call in betas] == ["CHECK", "DEL"]
    for call in betas:
        assert call["env"]["CNI_ARGS"] == "IgnoreUnknown=1;K8S_POD_NAME=web"
        assert call["env"]["CNI_NETNS"] == ""
        assert call["stdin"]["runtimeConfig"] == {"portMappings": [{"hostPort": 8080}]}


def test_a_result_keeps_keys_this_library_does_not_know(runtime: Runtime, plugins: FakePlugins) -> None:
    plugins.script({"alpha ADD": {"stdout": {"cniVersion": "1.1.0", "vendor": {"a": [1]}}}})
    assert runtime.add(chain(), WEB).document["vendor"] == {"a": [1]}


@pytest.mark.parametrize(
    ("printed", "passed_on"),
    [
        pytest.param({"ips": []}, {"cniVersion": "1.1.0", "ips": []}, id="no-version"),
        pytest.param({"cniVersion": ""}, {"cniVersion": "1.1.0"}, id="empty-version"),
        pytest.param(
            {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.1.0.7/24"}], "dns": {}},
            {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.7/24"}]},
            id="older-version",
        ),
    ],
)
def test_a_result_is_passed_on_in_the_networks_version(
    runtime: Runtime, plugins: FakePlugins, printed: dict[str, object], passed_on: dict[str, object]
) -> None:
    plugins.script({"alpha ADD": {"stdout": printed}})
    runtime.add(chain(), WEB)
    assert plugins.calls()[1]["stdin"]["prevResult"] == passed_on


def test_a_failed_add_is_undone_in_reverse_and_its_error_raised(runtime: Runtime, plugins: FakePlugins) -> None:
    plugins.script({"beta ADD": REFUSED, "beta DEL": {**REFUSED, "stderr": "beta says\n"}})
    error = caught(lambda: runtime.add(chain(), WEB))
    calls = given(plugins)
    assert [(name, verb) for name, verb, _ in calls] == [
        ("alpha", "ADD"),
        ("beta", "ADD"),
        ("beta", "DEL"),
        ("alpha", "DEL"),
    ]
    assert [stdin["prevResult"] for _, _, stdin in calls[2:]] == [ALPHA, ALPHA]
    assert (error.code, error.msg, error.details) == (11, "beta: full", "wait")
    assert error.__notes__ == ["clean-up: beta: full (wait)"]
    assert runtime.attachments(chain()) == ()


def test_an_add_whose_result_cannot_be_cached_is_undone(tmp_path: Path, runtime: Runtime, plugins: FakePlugins) -> None:
    (tmp_path / "cache" / "results" / "net1-web-eth0").mkdir(parents=True)
    assert caught(lambda: runtime.add(chain(), WEB)).code == 5
    assert plugins.called()[3:] == ["gamma DEL", "beta DEL", "alpha DEL"]


@pytest.mark.parametrize("network", ["net1", "net2"])
def test_an_interface_attached_already_is_refused_and_not_undone(
    runtime: Runtime, plugins: FakePlugins, network: str
) -> None:
    runtime.add(chain(), WEB)
    plugins.calls()
    error = caught(lambda: runtime.add(chain(name=network), WEB))
    assert (error.code, error.msg) == (4, "CNI_IFNAME: eth0 of web is attached to net1 already")
    assert plugins.calls() == []
    assert [attachment.key for attachment in runtime.attachments(chain())] == [("web", "eth0")]


def test_add_misses_a_plugin_before_it_runs_any(runtime: Runtime, plugins: FakePlugins) -> None:
    (plugins.folder / "gamma").unlink()
    error = caught(lambda: runtime.add(chain(), WEB))
    assert (error.code, str(error)) == (7, f"gamma: no such plugin (looked in {plugins.folder})")
    assert plugins.calls() == []


@pytest.mark.parametrize(
    ("verb", "run", "called"),
    [
        ("DEL", lambda runtime: runtime.delete(chain(), WEB), ["gamma DEL", "beta DEL"]),
        ("CHECK", lambda runtime: runtime.check(chain(), WEB), ["alpha CHECK", "beta CHECK"]),
        ("STATUS", lambda runtime: runtime.status(chain()), ["alpha STATUS", "beta STATUS"]),
    ],
)
def test_the_first_error_ends_a_verb_and_keeps_the_cached_result(
    runtime: Runtime, plugins: FakePlugins, verb: str, run: Callable[[Runtime], object], called: list[str]
) -> None:
    runtime.add(chain(), WEB)
    plugins.calls()
    plugins.script({f"beta {verb}": REFUSED})
    error = caught(lambda: run(runtime))
    assert (error.code, str(error)) == (11, "beta: full (wait)")
    assert plugins.called() == called
    assert len(runtime.attachments(chain())) == 1


def test_gc_goes_on_after_errors_and_reports_them_all(runtime: Runtime, plugins: FakePlugins) -> None:
    runtime.add(chain(), WEB)
    runtime.add(chain(), OLD)
    plugins.calls()
    plugins.script({"gamma DEL": REFUSED, "alpha GC": REFUSED})
    error = caught(lambda: runtime.gc(chain(), []))
    assert plugins.called() == ["gamma DEL", "gamma DEL", "alpha GC", "beta GC", "gamma GC"]
    assert (error.code, error.msg) == (103, "gc of net1: 3 faults")
    assert error.details == (
        "DEL of old/eth1: gamma: full (wait); DEL of web/eth0: gamma: full (wait); alpha: full (wait)"
    )


def test_gc_touches_no_other_network(runtime: Runtime, plugins: FakePlugins) -> None:
    runtime.add(chain(name="net1-x"), WEB)
    plugins.calls()
    runtime.gc(chain(), [])
    assert plugins.called() == ["alpha GC", "beta GC", "gamma GC"]


@pytest.mark.parametrize(
    ("keys", "run", "called"),
    [
        pytest.param(
            {"disableCheck": True}, lambda runtime, network: runtime.check(network, WEB), [], id="CHECK-disabled"
        ),
        pytest.param({"disableGC": True}, lambda runtime, network: runtime.gc(network, []), [], id="GC-disabled"),
        pytest.param(
            {"cniVersion": "1.0.0"},
            lambda runtime, network: runtime.gc(network, []),
            ["gamma DEL", "beta DEL", "alpha DEL"],
            id="GC-of-an-older-version-is-DEL-alone",
        ),
        pytest.param(
            {"cniVersion": "1.0.0"}, lambda runtime, network: runtime.status(network), [], id="STATUS-of-an-older"
        ),
        pytest.param(
            {"cniVersion": "0.4.0"},
            lambda runtime, network: runtime.check(network, WEB),
            ["alpha CHECK", "beta CHECK", "gamma CHECK"],
            id="CHECK-of-0.4.0",
        ),
    ],
)
def test_verbs_are_run_as_far_as_the_network_allows(
    runtime: Runtime,
    plugins: FakePlugins,
    keys: dict[str, Any],
    run: Callable[[Runtime, Network], object],
    called: list[str],
) -> None:
    runtime.add(chain(**keys), WEB)
    plugins.calls()
    run(runtime, chain(**keys))
    assert plugins.called() == called


def test_a_check_that_cannot_be_made_is_an_error(runtime: Runtime, plugins: FakePlugins) -> None:
    assert caught(lambda: runtime.check(chain(cniVersion="0.3.1"), WEB)).code == 1
    error = caught(lambda: runtime.check(chain(), WEB))
    assert (error.code, error.msg) == (3, "no result is cached of eth0 of web")
    assert plugins.calls() == []


@pytest.mark.parametrize(("version", "has"), [("0.3.1", False), ("0.4.0", True), ("1.0.0", True)])
def test_delete_has_the_result_from_0_4_0_on(runtime: Runtime, plugins: FakePlugins, version: str, has: bool) -> None:
    runtime.add(chain(cniVersion=version), WEB)
    plugins.calls()
    runtime.delete(chain(cniVersion=version), WEB)
    assert [("prevResult" in call["stdin"]) for call in plugins.calls()] == [has] * 3
    assert runtime.attachments(chain()) == ()


def test_delete_has_the_result_in_the_version_the_network_has_now(runtime: Runtime, plugins: FakePlugins) -> None:
    plugins.script({"gamma ADD": {"stdout": {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.7/24"}]}}})
    runtime.add(chain(), WEB)
    plugins.calls()
    runtime.delete(chain(cniVersion="0.4.0"), WEB)
    assert plugins.calls()[0]["stdin"]["prevResult"] == {
        "cniVersion": "0.4.0",
        "ips": [{"version": "4", "address": "10.1.0.7/24"}],
        "dns": {},
    }


@pytest.mark.parametrize("version", spec.VERSIONS)
def test_a_cached_result_of_every_version_is_given_to_check_and_delete(
    tmp_path: Path, runtime: Runtime, plugins: FakePlugins, version: str
) -> None:
    given = result.Result(ips=(result.IP("10.1.0.7/24", "10.1.0.1"),))
    entry = {"kind": "cniCacheV1", "containerId": "web", "ifName": "eth0", "networkName": "net1"}
    for text in ({**entry, "result": result.document(given, version)}, result.document(given, version)):
        file = tmp_path / "cache" / "results" / "net1-web-eth0"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(text))
        runtime.check(chain(), WEB)
        runtime.delete(chain(), WEB)
        assert [call["stdin"]["prevResult"] for call in plugins.calls()] == [result.document(given, "1.1.0")] * 6
        assert not file.exists()


def test_what_was_never_added_can_be_deleted_twice(runtime: Runtime, plugins: FakePlugins) -> None:
    for _ in range(2):
        runtime.delete(chain(), Attachment("web", netns="/run/netns/web"))
        calls = plugins.calls()
        assert [call["plugin"] for call in calls] == ["gamma", "beta", "alpha"]
        assert not any("prevResult" in call["stdin"] for call in calls)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param('{"kind":', id="cut-off"),
        pytest.param(
            '{"kind":"cniCacheV1","containerId":"web","ifName":"eth0","networkName":"net1",'
            '"result":{"cniVersion":"0.4.0","ips":[{"address":"x"}]}}',
            id="result-that-cannot-be-converted",
        ),
    ],
)
def test_a_broken_cached_result_never_makes_a_delete_fail(
    tmp_path: Path, runtime: Runtime, plugins: FakePlugins, text: str
) -> None:
    file = tmp_path / "cache" / "results" / "net1-web-eth0"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    runtime.delete(chain(), WEB)
    assert ["prevResult" in call["stdin"] for call in plugins.calls()] == [False] * 3
    assert not file.exists()


def test_what_libcni_added_is_deleted_with_its_result(tmp_path: Path, runtime: Runtime, plugins: FakePlugins) -> None:
    file = tmp_path / "cache" / "results" / "net1-web-eth0"
    file.parent.mkdir(parents=True)
    file.write_text(
        '{"kind":"cniCacheV1","containerId":"web","config":"eyJuYW1lIjoibmV0MSJ9","ifName":"eth0",'
        '"networkName":"net1","netns":"/run/netns/web","cniArgs":[["A","1"],["B","2"]],'
        '"capabilityArgs":{"portMappings":[{"hostPort":80}]},'
        '"result":{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/web"}]}}'
    )
    runtime.delete(chain(), Attachment("web", netns="/run/netns/web"))
    beta = plugins.calls()[1]
    assert beta["env"]["CNI_ARGS"] == "A=1;B=2"
    assert beta["stdin"]["runtimeConfig"] == {"portMappings": [{"hostPort": 80}]}
    assert beta["stdin"]["prevResult"]["interfaces"] == [{"name": "eth0", "sandbox": "/run/netns/web"}]
    assert not file.exists()


@pytest.mark.parametrize(
    ("stdout", "message"),
    [
        pytest.param("", "alpha: its output is not JSON: ", id="none"),
        pytest.param("[]", "alpha: its output is no JSON object", id="no-object"),
        pytest.param({"ips": [{"address": "x"}]}, "alpha: result.ips[0].address: 'x'", id="broken"),
        pytest.param({"cniVersion": "2.0.0"}, "alpha: result.cniVersion: '2.0.0'", id="unknown-version"),
    ],
)
def test_a_result_that_cannot_be_read_is_told_by_type_and_undone(
    runtime: Runtime, plugins: FakePlugins, stdout: object, message: str
) -> None:
    plugins.script({"alpha ADD": {"stdout": stdout}})
    error = caught(lambda: runtime.add(chain(), WEB))
    assert (error.code, error.msg[: len(message)]) == (6, message)
    assert plugins.called() == ["alpha ADD", "alpha DEL"]


@pytest.mark.parametrize(
    ("stdout", "message"),
    [("", "alpha: VERSION: its output is not JSON"), ({"supportedVersions": 1}, "alpha: VERSION: supportedVersions: ")],
)
def test_a_version_that_cannot_be_read_is_told_by_type(
    runtime: Runtime, plugins: FakePlugins, stdout: object, message: str
) -> None:
    plugins.script({"alpha VERSION": {"stdout": stdout}})
    error = caught(lambda: runtime.version(chain()))
    assert (error.code, error.msg[: len(message)]) == (6, message)


def test_results_are_kept_where_libcni_keeps_them() -> None:
    assert Runtime([]).cache.__dict__ == Cache("/var/lib/cni").__dict__


class TestRepair:
    """Our plugins are asked in this process, others are left alone."""

    web = replace(WEB, netns="/proc/self/ns/net")

    @pytest.fixture
    def ours(self, monkeypatch: pytest.MonkeyPatch, plugins: FakePlugins) -> Ours:
        return Ours(monkeypatch, plugins, "alpha", "beta")

    @pytest.fixture
    def attached(self, runtime: Runtime, plugins: FakePlugins, ours: Ours) -> Runtime:
        runtime.add(chain(), self.web)
        plugins.calls()
        assert ours.asked == []
        return runtime

    def test_each_plugin_in_order_and_then_its_check(self, attached: Runtime, plugins: FakePlugins, ours: Ours) -> None:
        ours.missing = {"beta": ("nft add ...", "nft add ...")}
        repaired = attached.repair(chain())
        assert repaired == (
            Repaired(self.web, "alpha"),
            Repaired(self.web, "beta", restored=("nft add ...", "nft add ...")),
            Repaired(self.web, "gamma", left_alone=f"{plugins.folder}/gamma is another suite's"),
        )
        assert ours.called() == ["alpha repair", "alpha check", "beta repair", "beta check"]
        assert plugins.called() == ["gamma CHECK"]

    def test_a_plugin_is_given_what_check_is_given(
        self, monkeypatch: pytest.MonkeyPatch, attached: Runtime, plugins: FakePlugins, ours: Ours
    ) -> None:
        monkeypatch.setenv("CNI_ARGS", "FROM=OUTSIDE")
        monkeypatch.setenv("TRACEPARENT", "00-1-2-01")
        attached.check(chain(), self.web)
        checks = {call["plugin"]: call for call in plugins.calls()}
        attached.repair(chain())
        for name, _, asked in ours.asked:
            assert (asked.verb, asked.version, asked.netns) == ("CHECK", "1.1.0", "/proc/self/ns/net")
            assert json.loads(asked.stdin) == checks[name]["stdin"]
            given = checks[name]["env"]
            shown = ("TRACEPARENT", *(variable for variable in given if variable.startswith("CNI_")))
            assert {variable: asked.environ[variable] for variable in shown} == {v: given[v] for v in shown}
        assert [len(ours.asked), ours.asked[0][2].args] == [4, "IgnoreUnknown=1;K8S_POD_NAME=web"]

    def test_attachments_of_a_network_alone_or_those_named(self, attached: Runtime, ours: Ours) -> None:
        other = replace(OLD, netns="/proc/self/ns/net")
        attached.add(chain(), other)
        attached.add(chain(name="net1-x"), replace(self.web, ifname="eth5"))
        whose = [done.attachment.key for done in attached.repair(chain())]
        assert whose == [("old", "eth1")] * 3 + [("web", "eth0")] * 3
        assert {done.attachment.key for done in attached.repair(chain(), [other])} == {("old", "eth1")}

    @pytest.mark.parametrize("verb", ["repair", "check"])
    def test_a_failure_is_told_and_the_rest_repaired(self, attached: Runtime, ours: Ours, verb: str) -> None:
        attached.add(chain(), replace(OLD, netns="/proc/self/ns/net"))
        ours.missing = {"alpha": ("nft add ...",)}
        ours.faults = {f"alpha {verb}": CniError(7, "taken", "by db")}
        repaired = [done for done in attached.repair(chain()) if done.plugin != "gamma"]
        faults = [done.fault and (done.fault.code, str(done.fault)) for done in repaired]
        assert faults == [(7, "alpha: taken (by db)"), None] * 2
        assert repaired[0].restored == (() if verb == "repair" else ("nft add ...",))
        assert ours.called().count("beta repair") == 2

    def test_another_suites_fault_is_told(self, attached: Runtime, plugins: FakePlugins) -> None:
        plugins.script({"gamma CHECK": REFUSED})
        gamma = attached.repair(chain())[2]
        assert gamma.left_alone == f"{plugins.folder}/gamma is another suite's"
        assert str(gamma.fault) == "gamma: full (wait)"

    def test_a_network_that_disables_check_is_repaired_and_not_checked(
        self, attached: Runtime, plugins: FakePlugins, ours: Ours
    ) -> None:
        *done, gamma = attached.repair(chain(disableCheck=True))
        assert [one.fault for one in done] == [None] * 2
        assert str(gamma.fault) == "gamma was not looked at (it is another suite's, and the network disables CHECK)"
        assert (ours.called(), plugins.called()) == (["alpha repair", "beta repair"], [])

    def test_a_namespace_that_is_gone_is_left_alone(
        self, tmp_path: Path, attached: Runtime, plugins: FakePlugins, ours: Ours
    ) -> None:
        (tmp_path / "netns").touch()  # what is left of one after a reboot
        for container, path in (("a", "/run/netns/none"), ("b", str(tmp_path / "netns"))):
            attached.add(chain(), Attachment(container, netns=path))
        plugins.calls()
        repaired = attached.repair(chain())
        assert [(done.attachment.container, done.plugin, done.left_alone) for done in repaired[:2]] == [
            ("a", "", "/run/netns/none is gone"),
            ("b", "", f"{tmp_path}/netns is gone"),
        ]
        assert [done.attachment.container for done in repaired[2:]] == ["web"] * 3
        assert len(ours.asked) == 4
        assert plugins.called() == ["gamma CHECK"]

    def test_what_is_no_namespace_is_a_fault(self, tmp_path: Path, attached: Runtime, ours: Ours) -> None:
        attached.add(chain(), Attachment("a", netns=str(tmp_path)))
        first = attached.repair(chain())[0]
        assert (first.plugin, str(first.fault)) == ("", f"CNI_NETNS: {tmp_path} is no network namespace")
        assert len(ours.asked) == 4

    def test_what_was_not_added_is_a_fault(self, attached: Runtime, ours: Ours) -> None:
        (done,) = attached.repair(chain(), [Attachment("db", netns="/proc/self/ns/net")])
        assert done.fault
        assert (done.fault.code, done.fault.msg) == (3, "no result is cached of eth0 of db")
        assert ours.asked == []

    def test_a_plugin_that_is_missing_is_a_fault(self, attached: Runtime, plugins: FakePlugins) -> None:
        (plugins.folder / "alpha").unlink()
        faults = [str(done.fault or "") for done in attached.repair(chain())]
        assert faults == [f"alpha: no such plugin (looked in {plugins.folder})", "", ""]

    def test_a_network_too_old_for_check_is_refused(self, runtime: Runtime) -> None:
        error = caught(lambda: runtime.repair(chain(cniVersion="0.3.1")))
        assert (error.code, error.msg) == (1, "net1 cannot be repaired")

    def test_another_executable_in_ours_place_is_another_suites(
        self, attached: Runtime, plugins: FakePlugins, ours: Ours
    ) -> None:
        with (plugins.folder / "beta").open("a") as file:
            file.write("\n")
        assert [bool(done.left_alone) for done in attached.repair(chain())] == [False, True, True]
        assert ours.called() == ["alpha repair", "alpha check"]

    def test_an_executable_reached_by_a_link_is_ours_still(
        self, tmp_path: Path, attached: Runtime, plugins: FakePlugins
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "alpha").symlink_to(plugins.folder / "alpha")
        runtime = Runtime([elsewhere, plugins.folder], tmp_path / "cache")
        assert [bool(done.left_alone) for done in runtime.repair(chain())] == [False, False, True]

    @pytest.mark.parametrize(("build", "is_ours"), [(".cnikit-1.0", True), (".cnikit-2.0", False)])
    def test_a_built_runtime_repairs_what_its_own_build_made(
        self, monkeypatch: pytest.MonkeyPatch, attached: Runtime, build: str, is_ours: bool
    ) -> None:
        monkeypatch.setattr(sys, "frozen", True, raising=False)
        monkeypatch.setattr(sys, "prefix", f"/opt/cni/bin/{build}")
        left_alone = [bool(done.left_alone) for done in attached.repair(chain())]
        assert left_alone == [not is_ours, not is_ours, True]

    def test_what_our_build_has_and_is_no_plugin_of_a_list_is_left_alone(
        self, monkeypatch: pytest.MonkeyPatch, attached: Runtime
    ) -> None:
        monkeypatch.delitem(sys.modules, "cnikit.plugins.alpha")
        assert [bool(done.left_alone) for done in attached.repair(chain())] == [True, False, True]
