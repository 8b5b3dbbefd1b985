"""Network configurations: which file is taken, what is read of it, and what is said of a broken one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cnikit import networks, spec
from cnikit.errors import CniError
from cnikit.networks import Network, Plugin


def parsed(**config: Any) -> Network:
    return networks.parse(json.dumps({"name": "net1", "plugins": [{"type": "bridge"}], **config}).encode())


def put(folder: Path, file: str, config: object) -> None:
    (folder / file).write_text(config if isinstance(config, str) else json.dumps(config))


def test_a_list_is_read_whole() -> None:
    config = {
        "cniVersion": "1.1.0",
        "name": "net1",
        "disableCheck": True,
        "disableGC": True,
        "loadOnlyInlinedPlugins": True,
        "plugins": [
            {"type": "bridge", "mtu": 1400},
            {"type": "portmap", "capabilities": {"portMappings": True, "bandwidth": False}},
        ],
    }
    source = json.dumps(config).encode()
    assert networks.parse(source) == Network(
        name="net1",
        version="1.1.0",
        plugins=(
            Plugin("bridge", {"type": "bridge", "mtu": 1400}),
            Plugin(
                "portmap",
                {"type": "portmap", "capabilities": {"portMappings": True, "bandwidth": False}},
                frozenset({"portMappings"}),
            ),
        ),
        source=source,
        disable_check=True,
        disable_gc=True,
    )


def test_a_single_plugin_becomes_a_list_of_one() -> None:
    network = networks.parse(b'{"cniVersion": "0.4.0", "name": "old", "type": "ptp", "mtu": 1400}')
    assert (network.name, network.version) == ("old", "0.4.0")
    assert network.plugins == (Plugin("ptp", {"cniVersion": "0.4.0", "name": "old", "type": "ptp", "mtu": 1400}),)
    assert json.loads(network.source) == {
        "name": "old",
        "cniVersion": "0.4.0",
        "plugins": [{"cniVersion": "0.4.0", "name": "old", "type": "ptp", "mtu": 1400}],
    }


@pytest.mark.parametrize(
    ("keys", "version"),
    [
        pytest.param({}, "0.1.0", id="neither-key"),
        pytest.param({"cniVersion": ""}, "0.1.0", id="empty"),
        pytest.param({"cniVersion": "1.0.0"}, "1.0.0", id="cniVersion"),
        pytest.param({"cniVersions": ["0.4.0", "1.1.0", "1.0.0"]}, "1.1.0", id="cniVersions"),
        pytest.param({"cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.0.0"]}, "1.0.0", id="newer-in-cniVersions"),
        pytest.param({"cniVersion": "1.1.0", "cniVersions": ["0.3.1"]}, "1.1.0", id="newer-in-cniVersion"),
        pytest.param({"cniVersion": "1.0.0", "cniVersions": ["2.0.0"]}, "1.0.0", id="unknown-ones-are-passed-over"),
    ],
)
def test_the_newest_known_version_of_both_keys_is_chosen(keys: dict[str, Any], version: str) -> None:
    assert parsed(**keys).version == version


@pytest.mark.parametrize(
    ("value", "disabled"),
    [(True, True), (False, False), ("true", True), ("True", True), ("false", False), (None, False)],
)
def test_switches_may_be_strings(value: object, disabled: bool) -> None:
    network = parsed(disableCheck=value, disableGC=value)
    assert (network.disable_check, network.disable_gc) == (disabled, disabled)


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        pytest.param("{", 6, "is not JSON: ", id="no-json"),
        pytest.param("[]", 6, "expected object, got list", id="no-object"),
        pytest.param('{"plugins": [{"type": "a"}]}', 7, "name: is missing", id="no-name"),
        pytest.param('{"name": "a b", "plugins": [{"type": "a"}]}', 7, "name: 'a b' is no network name", id="bad-name"),
        pytest.param('{"name": 1, "type": "a"}', 7, "name: expected string, got integer", id="name-no-string"),
        pytest.param('{"name": "a"}', 7, "plugins: is missing", id="no-plugins"),
        pytest.param('{"name": "a", "plugins": []}', 7, "plugins: is empty", id="empty-plugins"),
        pytest.param('{"name": "a", "plugins": {}}', 7, "plugins: expected list, got object", id="plugins-no-list"),
        pytest.param('{"name": "a", "plugins": [{"type": "a"}, {}]}', 7, "plugins[1].type: is missing", id="no-type"),
        pytest.param('{"name": "a", "type": "b/c"}', 7, "plugins[0].type: 'b/c' is no plugin's name", id="slash"),
        pytest.param(
            '{"name": "a", "type": "b", "capabilities": {"mac": "yes"}}',
            7,
            "plugins[0].capabilities.mac: expected boolean, got string",
            id="capability",
        ),
        pytest.param('{"name": "a", "type": "b", "disableGC": "no"}', 7, "disableGC: expected boolean", id="switch"),
        pytest.param(
            '{"name": "a", "type": "b", "cniVersion": "9.9.9"}', 1, "cniVersion: 9.9.9 is not supported", id="version"
        ),
        pytest.param(
            '{"name": "a", "type": "b", "cniVersions": [1]}', 7, "cniVersions[0]: expected string", id="versions"
        ),
    ],
)
def test_a_broken_document_is_refused_naming_the_key(text: str, code: int, message: str) -> None:
    with pytest.raises(CniError) as error:
        networks.parse(text.encode())
    assert (error.value.code, error.value.msg[: len(message)]) == (code, message)


def test_the_first_file_of_the_name_wins_and_lists_come_first(tmp_path: Path) -> None:
    put(tmp_path, "00.conf", {"name": "net1", "type": "single"})
    put(tmp_path, "10.conflist.bak", {"name": "net1", "type": "backup"})
    put(tmp_path, "20.conflist", {"name": "net1", "plugins": [{"type": "first"}]})
    put(tmp_path, "30.conflist", {"name": "net1", "plugins": [{"type": "second"}]})
    assert networks.load(tmp_path, "net1").plugins[0].type == "first"


@pytest.mark.parametrize("suffix", [".conf", ".json", ".conflist"])
def test_files_are_found_by_their_suffix(tmp_path: Path, suffix: str) -> None:
    put(tmp_path, f"a{suffix}", {"name": "net1", "type": "bridge"})
    assert networks.load(tmp_path, "net1").name == "net1"


def test_a_broken_file_is_passed_over_when_another_has_the_name(tmp_path: Path) -> None:
    put(tmp_path, "00.conflist", "{")
    put(tmp_path, "10.conflist", {"name": "net1", "plugins": [{"type": "bridge"}]})
    assert networks.load(tmp_path, "net1").name == "net1"


def test_an_unknown_network_is_refused_naming_those_there_and_what_is_broken(tmp_path: Path) -> None:
    put(tmp_path, "00.conflist", {"name": "net1"})
    put(tmp_path, "10.conflist", {"name": "net2", "plugins": [{"type": "bridge"}]})
    put(tmp_path, "20.conf", {"name": "net3", "type": "ptp"})
    with pytest.raises(CniError) as error:
        networks.load(tmp_path, "net1")
    assert error.value.msg == f"no network 'net1' in {tmp_path}"
    assert error.value.details == (
        f"networks there: net2, net3; {tmp_path}/00.conflist: plugins: is missing "
        "(a list has plugins, or files NAME/*.conf beside it; a single plugin has a type)"
    )


def test_a_missing_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(CniError, match=f"{tmp_path}/none: No such file") as error:
        networks.load(tmp_path / "none", "net1")
    assert error.value.code == spec.IO_FAILURE
    with pytest.raises(CniError, match=f"{tmp_path}/a.conf: No such file"):
        networks.read(tmp_path / "a.conf")


# Plugins in files of their own


def types(network: Network) -> list[str]:
    return [plugin.type for plugin in network.plugins]


def put_plugins(folder: Path, **plugins: object) -> None:
    folder.mkdir()
    for name, plugin in plugins.items():
        put(folder, f"{name}.conf", plugin)


def test_plugins_of_a_list_may_be_in_a_folder_of_its_name(tmp_path: Path) -> None:
    put(tmp_path, "10-first.conflist", {"cniVersion": "1.1.0", "name": "net1", "plugins": [{"type": "bridge"}]})
    put_plugins(
        tmp_path / "net1",
        b={"type": "portmap", "capabilities": {"portMappings": True}},
        a={"type": "tuning", "name": "other", "cniVersion": "0.4.0"},
    )
    put(tmp_path / "net1", "c.conflist", {"type": "no plugin's file"})
    put(tmp_path / "net1", "d.json", {"type": "no plugin's file"})
    (tmp_path / "net1" / "e.conf").mkdir()
    put_plugins(tmp_path / "10-first", a={"type": "of another network"})
    network = networks.load(tmp_path, "net1")
    assert (network.version, types(network)) == ("1.1.0", ["bridge", "tuning", "portmap"])
    assert network.plugins[2].capabilities == {"portMappings"}
    assert networks.parse(network.source) == network, "what is cached is the whole list"
    assert json.loads(network.source)["loadOnlyInlinedPlugins"] is True, "and nothing is added to it"


@pytest.mark.parametrize("suffix", ["conflist", "conf", "json"])
def test_a_list_may_have_none_but_those(tmp_path: Path, suffix: str) -> None:
    put(tmp_path, f"net1.{suffix}", {"name": "net1", "cniVersion": "1.1.0"})
    put_plugins(tmp_path / "net1", a={"type": "bridge"})
    assert types(networks.load(tmp_path, "net1")) == ["bridge"]


@pytest.mark.parametrize(
    ("switch", "found"),
    [(True, ["bridge"]), ("true", ["bridge"]), (False, ["bridge", "tuning"]), (None, ["bridge", "tuning"])],
)
@pytest.mark.parametrize("key", ["loadOnlyInlinedPlugins", "LOADONLYINLINEDPLUGINS"])
def test_a_list_may_keep_to_what_is_in_it(tmp_path: Path, key: str, switch: object, found: list[str]) -> None:
    put(tmp_path, "net1.conflist", {"name": "net1", key: switch, "Plugins": [{"type": "bridge"}]})
    put_plugins(tmp_path / "net1", a={"type": "tuning"})
    network = networks.load(tmp_path, "net1")
    assert (types(network), types(networks.parse(network.source))) == (found, found)


def test_a_single_plugin_is_alone(tmp_path: Path) -> None:
    put(tmp_path, "net1.conf", {"name": "net1", "type": "bridge"})
    put_plugins(tmp_path / "net1", a={"type": "tuning"})
    assert types(networks.load(tmp_path, "net1")) == ["bridge"]


def test_a_list_is_no_single_plugin(tmp_path: Path) -> None:
    """The type says nothing in a list, as libcni reads it; one of older days, without a folder, is still a plugin."""
    put(tmp_path, "net1.conflist", {"name": "net1", "type": "bridge"})
    assert types(networks.load(tmp_path, "net1")) == ["bridge"]
    put_plugins(tmp_path / "net1", a={"type": "tuning"})
    assert types(networks.load(tmp_path, "net1")) == ["tuning"]


def test_what_is_no_folder_holds_no_plugins(tmp_path: Path) -> None:
    put(tmp_path, "net1.conflist", {"name": "net1", "plugins": [{"type": "bridge"}]})
    put(tmp_path, "net1", "{")
    assert types(networks.load(tmp_path, "net1")) == ["bridge"]


def test_a_network_may_be_named_like_a_file(tmp_path: Path) -> None:
    put(tmp_path, "a.conflist", {"name": "net1.conf", "plugins": [{"type": "bridge"}]})
    put_plugins(tmp_path / "net1.conf", a={"type": "tuning"})
    assert types(networks.load(tmp_path, "net1.conf")) == ["bridge", "tuning"]
    with pytest.raises(CniError) as error:
        networks.load(tmp_path, "net2")
    assert error.value.details == "networks there: net1.conf"


@pytest.mark.parametrize("name", ["..", "../net2", "/etc", ""])
def test_no_folder_is_looked_for_by_what_is_no_name(tmp_path: Path, name: str) -> None:
    put_plugins(tmp_path / "net2", a={"type": "tuning"})
    put(tmp_path, "a.conf", {"type": "tuning"})
    (tmp_path / "net.d").mkdir()
    put(tmp_path / "net.d", "a.conflist", {"name": name})
    with pytest.raises(CniError, match="name: "):
        networks.read(tmp_path / "net.d" / "a.conflist")


@pytest.mark.parametrize(
    ("plugin", "code", "why"),
    [
        ("{", 6, "is not JSON: "),
        ("[]", 6, "expected object, got list"),
        ({"name": "net1"}, 7, "type: is missing"),
        ({"type": "a/b"}, 7, "type: 'a/b' is no plugin's name"),
        ({"type": "a", "capabilities": {"mac": 1}}, 7, "capabilities.mac: expected boolean"),
    ],
)
def test_a_broken_file_of_a_plugin_is_named_and_breaks_the_network(
    tmp_path: Path, plugin: object, code: int, why: str
) -> None:
    put(tmp_path, "net1.conflist", {"name": "net1", "plugins": [{"type": "bridge"}]})
    put_plugins(tmp_path / "net1", a={"type": "tuning"}, b=plugin)
    with pytest.raises(CniError) as error:
        networks.read(tmp_path / "net1.conflist")
    assert error.value.code == code
    assert error.value.msg.startswith(f"{tmp_path}/net1.conflist: {tmp_path}/net1/b.conf: {why}")


def test_a_file_of_a_plugin_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    put(tmp_path, "net1.conflist", {"name": "net1", "plugins": [{"type": "bridge"}]})
    (tmp_path / "net1").mkdir()
    (tmp_path / "net1" / "a.conf").symlink_to("nowhere")
    with pytest.raises(CniError) as error:
        networks.read(tmp_path / "net1.conflist")
    assert (error.value.code, error.value.msg) == (
        5,
        f"{tmp_path}/net1.conflist: {tmp_path}/net1/a.conf: No such file or directory",
    )


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"plugins": []}, "plugins: is empty"),
        ({"plugins": {}}, "plugins: expected list, got object"),
        ({"loadOnlyInlinedPlugins": True}, "plugins: is missing"),
        ({"loadOnlyInlinedPlugins": "yes"}, "loadOnlyInlinedPlugins: expected boolean"),
    ],
)
def test_files_of_plugins_do_not_mend_a_broken_list(tmp_path: Path, keys: dict[str, Any], why: str) -> None:
    put(tmp_path, "net1.conflist", {"name": "net1", **keys})
    put_plugins(tmp_path / "net1", a={"type": "tuning"})
    with pytest.raises(CniError) as error:
        networks.read(tmp_path / "net1.conflist")
    assert error.value.msg.startswith(f"{tmp_path}/net1.conflist: {why}")


@pytest.mark.parametrize(
    ("keys", "verb", "why"),
    [
        ({"cniVersion": "0.3.1"}, "CHECK", "cniVersion is 0.3.1, CHECK came with 0.4.0"),
        ({"cniVersion": "0.4.0"}, "CHECK", ""),
        ({"cniVersion": "0.4.0", "disableCheck": True}, "CHECK", "disableCheck is true"),
        ({"cniVersion": "1.0.0"}, "GC", "cniVersion is 1.0.0, GC came with 1.1.0"),
        ({"cniVersion": "1.1.0", "disableGC": True}, "GC", "disableGC is true"),
        ({"cniVersion": "1.1.0", "disableCheck": True}, "GC", ""),
        ({"cniVersion": "1.0.0"}, "STATUS", "cniVersion is 1.0.0, STATUS came with 1.1.0"),
        ({"cniVersion": "1.1.0", "disableCheck": True, "disableGC": True}, "STATUS", ""),
        ({"cniVersion": "0.1.0"}, "DEL", ""),
    ],
)
def test_verbs_a_network_declines(keys: dict[str, Any], verb: str, why: str) -> None:
    assert parsed(**keys).declines(verb) == why
