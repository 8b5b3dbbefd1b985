"""The cache of results, in libcni's format, and what happens to files that are none of its."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cnikit.attachments import Attachment, Cache
from cnikit.errors import CniError
from cnikit.networks import Network, Plugin

NETWORK = Network("net1", "1.0.0", (Plugin("bridge", {"type": "bridge"}),), b'{"name":"net1"}')
FULL = Attachment(
    "c1",
    "eth0",
    "/run/netns/a",
    args=(("IgnoreUnknown", "1"), ("K8S_POD_NAME", "web")),
    capabilities={"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
)
RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.7/24"}]}

# As libcni 1.3 writes them.
LIBCNI_FULL = (
    '{"kind":"cniCacheV1","containerId":"c1","config":"eyJuYW1lIjoibmV0MSJ9","ifName":"eth0","networkName":"net1",'
    '"netns":"/run/netns/a","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAME","web"]],'
    '"capabilityArgs":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]},'
    '"result":{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.7/24"}]}}'
)
LIBCNI_LEAST = (
    '{"kind":"cniCacheV1","containerId":"c1","config":"eyJuYW1lIjoibmV0MSJ9","ifName":"eth0","networkName":"net1",'
    '"result":{"cniVersion":"1.0.0"}}'
)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


# One written by libcni 1.1, as podman 4 and containerd 1.6 and 1.7 have it: without netns.
SANDBOX = {"name": "eth0", "mac": "0a:58:0a:01:00:07", "sandbox": "/run/netns/a"}
OLDER = {
    "kind": "cniCacheV1",
    "containerId": "c1",
    "config": "eyJuYW1lIjoibmV0MSJ9",
    "ifName": "eth0",
    "networkName": "net1",
    "cniArgs": [["IgnoreUnknown", "1"]],
    "capabilityArgs": {"portMappings": []},
    "result": {"cniVersion": "1.0.0", "interfaces": [{"name": "br0"}, SANDBOX], "ips": []},
}
PLAIN = Attachment("c1", "eth0", "/run/netns/a", (("IgnoreUnknown", "1"),), {"portMappings": []})
BARE = Attachment("c1", "eth0", "/run/netns/a")


def older(*without: str, **keys: object) -> dict[str, object]:
    return {key: value for key, value in {**OLDER, **keys}.items() if key not in without}


def resulting(**keys: object) -> dict[str, object]:
    """Return an entry whose result has other keys."""
    return older(result={"cniVersion": "1.0.0", "interfaces": [SANDBOX], **keys})


def put(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / "results").mkdir(exist_ok=True)
    file = tmp_path / "results" / name
    file.write_text(text)
    return file


def entry(network: str, container: str, ifname: str) -> str:
    keys = {"kind": "cniCacheV1", "containerId": container, "ifName": ifname, "networkName": network}
    return json.dumps({**keys, "result": {"cniVersion": "1.0.0"}})


@pytest.mark.parametrize(
    ("attachment", "result", "text"),
    [
        pytest.param(FULL, RESULT, LIBCNI_FULL, id="full"),
        pytest.param(Attachment("c1"), {"cniVersion": "1.0.0"}, LIBCNI_LEAST, id="least"),
    ],
)
def test_an_entry_is_written_and_read_as_libcni_does(
    tmp_path: Path, cache: Cache, attachment: Attachment, result: dict[str, object], text: str
) -> None:
    cache.store(NETWORK, attachment, result)
    file = tmp_path / "results" / "net1-c1-eth0"
    assert file.read_text() == text
    found = cache.find("net1", Attachment("c1", "eth0"))
    assert found is not None
    assert (found.network, found.attachment, found.result) == ("net1", attachment, result)


def test_only_root_may_read_it_and_nothing_else_is_left(tmp_path: Path, cache: Cache) -> None:
    cache.store(NETWORK, FULL, RESULT)
    results = tmp_path / "results"
    assert results.stat().st_mode & 0o777 == 0o700
    assert [(file.name, file.stat().st_mode & 0o777) for file in results.iterdir()] == [("net1-c1-eth0", 0o600)]


def test_a_failed_write_is_told_and_leaves_no_temporary_file(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "results" / "net1-c1-eth0").mkdir(parents=True)
    with pytest.raises(CniError, match="net1-c1-eth0: Is a directory") as error:
        cache.store(NETWORK, FULL, RESULT)
    assert error.value.code == 5
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["net1-c1-eth0"]


@pytest.mark.parametrize("last", ["open", "fsync", "replace"])
def test_a_writer_that_is_killed_leaves_one_file_that_is_no_entry(tmp_path: Path, cache: Cache, last: str) -> None:
    """The next one writes it anew, and who forgets the entry removes it."""
    results = tmp_path / "results"
    for _ in range(2):
        assert _killed_behind(last, lambda: cache.store(NETWORK, FULL, RESULT))
        if last == "replace":
            assert [file.name for file in results.iterdir()] == ["net1-c1-eth0"]
            continue
        assert [file.name for file in results.iterdir()] == [".net1-c1-eth0"]
        assert (cache.find("net1", FULL), cache.holder(FULL), cache.of("net1"), cache.unreadable("net1")) == (
            *(None, None),
            *((), ()),
        )
    cache.forget("net1", FULL)
    assert list(results.iterdir()) == []
    assert _killed_behind(last, lambda: cache.store(NETWORK, FULL, RESULT))
    cache.store(NETWORK, FULL, RESULT)
    assert [file.name for file in results.iterdir()] == ["net1-c1-eth0"]


def _killed_behind(call: str, work: Callable[[], None]) -> bool:
    """Do work in a process that is killed behind its first call of a function of os; tell whether it came to it."""
    pid = os.fork()
    if pid == 0:
        do = getattr(os, call)

        def do_and_die(*given: object, **named: object) -> None:
            do(*given, **named)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(os, call, do_and_die)
        try:
            work()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param('{"kind": "cniCac', id="cut-off"),
        pytest.param("\xff\xfe", id="no-json"),
        pytest.param("[]", id="no-object"),
        pytest.param('{"containerId": "c1", "ifName": "eth0"}', id="neither-a-kind-nor-a-result"),
        pytest.param(LIBCNI_LEAST.replace("cniCacheV1", "cniCacheV2"), id="another-kind"),
        pytest.param(LIBCNI_LEAST.replace('"c1"', '"../c1"'), id="no-container-id"),
        pytest.param(LIBCNI_LEAST.replace('"net1"', "7"), id="network-no-string"),
        pytest.param(LIBCNI_FULL.replace('["IgnoreUnknown","1"]', '["IgnoreUnknown"]'), id="args-no-pairs"),
        pytest.param(LIBCNI_FULL.replace('[["IgnoreUnknown","1"],["K8S_POD_NAME","web"]]', '"x"'), id="args-no-list"),
        pytest.param(LIBCNI_FULL.replace('"result":{', '"result":[],"x":{'), id="result-no-object"),
    ],
)
def test_a_broken_file_is_no_entry_is_named_and_can_be_forgotten(tmp_path: Path, cache: Cache, text: str) -> None:
    file = put(tmp_path, "net1-c1-eth0", text)
    assert cache.find("net1", FULL) is None
    assert cache.holder(FULL) is None
    assert cache.of("net1") == ()
    assert [one.file for one in cache.unreadable("net1")] == [file]
    cache.forget("net1", FULL)
    assert not file.exists()


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        # kind: without one it is a result alone, of libcni 0.7
        pytest.param(older(), PLAIN, id="kind"),
        pytest.param(older("kind"), "is no cached result", id="kind missing"),
        pytest.param(older(kind=None), "is no cached result", id="kind null"),
        pytest.param(older(kind=""), "is no cached result", id="kind empty"),
        pytest.param(older(kind="cniCacheV2"), "kind: 'cniCacheV2' is not known", id="kind of the future"),
        pytest.param(older(kind=1), "kind: expected string, got integer", id="kind no string"),
        pytest.param({"cniVersion": "1.0.0", "interfaces": [SANDBOX]}, BARE, id="a result alone"),
        pytest.param({"cniVersion": "0.2.0", "ip4": {}}, replace(BARE, netns=""), id="a result alone, of 0.2.0"),
        pytest.param({"ip4": {}, "dns": {}}, replace(BARE, netns=""), id="a result alone, without version"),
        pytest.param({"dns": {}}, "is no cached result", id="a result alone, without anything"),
        # containerId, ifName, networkName: where they are missing the file's name tells
        pytest.param(older("containerId"), PLAIN, id="containerId missing"),
        pytest.param(older(containerId=""), PLAIN, id="containerId empty"),
        pytest.param(older(containerId="c2"), "says that it is net1-c2-eth0", id="containerId other"),
        pytest.param(older("ifName"), PLAIN, id="ifName missing"),
        pytest.param(older(ifName=""), PLAIN, id="ifName empty"),
        pytest.param(older(ifName=None), PLAIN, id="ifName null"),
        pytest.param(older(ifName="eth1"), "says that it is net1-c1-eth1", id="ifName other"),
        pytest.param(older("networkName"), PLAIN, id="networkName missing"),
        pytest.param(older(networkName=None), PLAIN, id="networkName null"),
        pytest.param(older(networkName="net2"), "says that it is net2-c1-eth0", id="networkName other"),
        pytest.param(older("networkName", "containerId", "ifName"), PLAIN, id="all three missing"),
        pytest.param(older(networkName=7), "networkName: expected string, got integer", id="networkName no string"),
        # netns: where it is missing the sandbox of ifName in the result
        pytest.param(older(netns="/proc/7/ns/net"), replace(PLAIN, netns="/proc/7/ns/net"), id="netns"),
        pytest.param(older(netns=""), PLAIN, id="netns empty"),
        pytest.param(older(netns=None), PLAIN, id="netns null"),
        pytest.param(older(netns=7), "netns: expected string, got integer", id="netns no string"),
        pytest.param(older("result"), replace(PLAIN, netns=""), id="netns and result missing"),
        pytest.param(resulting(interfaces=[]), replace(PLAIN, netns=""), id="netns missing, no interface"),
        pytest.param(resulting(interfaces=None), replace(PLAIN, netns=""), id="netns missing, interfaces null"),
        pytest.param(resulting(interfaces={}), replace(PLAIN, netns=""), id="netns missing, interfaces no list"),
        pytest.param(
            resulting(interfaces=[1, {**SANDBOX, "name": "lo", "sandbox": "/other"}, SANDBOX]),
            PLAIN,
            id="netns missing, other interfaces",
        ),
        pytest.param(
            resulting(interfaces=[{**SANDBOX, "name": "eth1"}]),
            replace(PLAIN, netns=""),
            id="netns missing, not ifName",
        ),
        pytest.param(
            resulting(interfaces=[SANDBOX, {**SANDBOX, "sandbox": "/other"}]),
            replace(PLAIN, netns=""),
            id="netns missing, two sandboxes",
        ),
        pytest.param(
            resulting(interfaces=[{**SANDBOX, "sandbox": "vm-7"}]),
            replace(PLAIN, netns=""),
            id="netns missing, a virtual machine's sandbox",
        ),
        pytest.param(
            resulting(interfaces=[{"Name": "eth0", "SANDBOX": "/run/netns/a"}]), PLAIN, id="netns missing, other case"
        ),
        # cniArgs, capabilityArgs
        pytest.param(older("cniArgs"), replace(PLAIN, args=()), id="cniArgs missing"),
        pytest.param(older(cniArgs=None), replace(PLAIN, args=()), id="cniArgs null"),
        pytest.param(older(cniArgs=[]), replace(PLAIN, args=()), id="cniArgs empty"),
        pytest.param(
            older(cniArgs=[["A", "1;B=2"], ["C", "3=4"], ["", ""], ["D", ""]]),
            replace(PLAIN, args=(("A", "1"), ("B", "2"), ("C", "3=4"), ("D", ""))),
            id="cniArgs as plugins read them",
        ),
        pytest.param(older(cniArgs=[["A"]]), "cniArgs: expected pairs of strings", id="cniArgs no pairs"),
        pytest.param(older(cniArgs=[["A", 1]]), "cniArgs: expected pairs of strings", id="cniArgs no strings"),
        pytest.param(older(cniArgs="A=1"), "cniArgs: expected pairs of strings", id="cniArgs a string"),
        pytest.param(older("capabilityArgs"), replace(PLAIN, capabilities={}), id="capabilityArgs missing"),
        pytest.param(older(capabilityArgs=None), replace(PLAIN, capabilities={}), id="capabilityArgs null"),
        pytest.param(older(capabilityArgs=[]), "capabilityArgs: expected object, got list", id="capabilityArgs a list"),
        pytest.param(older(capabilityArgs={"x": None}), replace(PLAIN, capabilities={"x": None}), id="capability null"),
        # config: nothing depends on it
        pytest.param(older("config"), PLAIN, id="config missing"),
        pytest.param(older(config=None), PLAIN, id="config null"),
        pytest.param(older(config="%%%"), PLAIN, id="config no base64"),
        pytest.param(older(config={}), PLAIN, id="config no string"),
        # result: what cannot be made of it is told when it is needed
        pytest.param(older(result=None), replace(PLAIN, netns=""), id="result null"),
        pytest.param(older(result=[]), "result: expected object, got list", id="result a list"),
        pytest.param(resulting(cniVersion="0.2.0"), PLAIN, id="result of 0.2.0"),
        pytest.param(resulting(cniVersion="9.9.9"), PLAIN, id="result of the future"),
        pytest.param(resulting(cniVersion=None), PLAIN, id="result without version"),
        # anything else
        pytest.param(older(unknown=[{}]), PLAIN, id="a key nobody knows"),
        pytest.param({key.upper(): value for key, value in OLDER.items()}, PLAIN, id="keys in another case"),
    ],
)
def test_what_is_made_of_each_key(
    tmp_path: Path, cache: Cache, entry: dict[str, object], expected: Attachment | str
) -> None:
    """All that libcni's own reader takes is read, but for what no writer has written: that is named, and kept by GC."""
    file = put(tmp_path, "net1-c1-eth0", json.dumps(entry))
    asked = Attachment("c1")
    if isinstance(expected, Attachment):
        found = [cache.find("net1", asked), cache.holder(asked), *cache.of("net1")]
        assert [one and (one.network, one.attachment) for one in found] == [("net1", expected)] * 3
        assert cache.unreadable("net1") == ()
        cache.forget("net1", asked)
        assert not file.exists()
    else:
        assert (cache.find("net1", asked), cache.holder(asked), cache.of("net1")) == (None, None, ())
        assert [(one.file, str(one.fault)) for one in cache.unreadable("net1")] == [(file, expected)]
        assert cache.unreadable("net1")[0].candidates("net1") == (("c1", "eth0"),)


@pytest.mark.parametrize(("config", "known"), [("eyJuYW1lIjoibmV0MSJ9", b'{"name":"net1"}'), ("eyJ", b""), (7, b"")])
def test_the_list_of_the_time_is_kept(tmp_path: Path, cache: Cache, config: object, known: bytes) -> None:
    put(tmp_path, "net1-c1-eth0", json.dumps(older(config=config)))
    (found,) = cache.of("net1")
    assert found.config == known


# Names of files that hold a result alone, and whose they are for network "a-b": the network's names are not split.
@pytest.mark.parametrize(
    ("name", "whose"),
    [
        pytest.param("a-b-c1-eth0", ("c1", "eth0"), id="one way"),
        pytest.param("a-b-c-1-eth0", None, id="c-1 or eth0 of c, or a network a-b-c"),
        pytest.param("a-b-c1-eth0-1", None, id="eth0-1 or c1-eth0, or a network a-b-c1"),
        pytest.param("a-b-c1", None, id="no interface, as libcni wrote it before 0.7"),
        pytest.param(f"a-b-{'c' * 64}-eth0", ("c" * 64, "eth0"), id="the usual id"),
        pytest.param("a-b-c1-sixteen-letters-", None, id="no interface's name"),
    ],
)
def test_a_result_alone_is_known_by_a_name_that_splits_in_one_way(
    tmp_path: Path, cache: Cache, name: str, whose: tuple[str, str] | None
) -> None:
    put(tmp_path, name, json.dumps({"cniVersion": "1.0.0", "interfaces": [SANDBOX]}))
    assert [found.attachment.key for found in cache.of("a-b")] == ([whose] if whose else [])
    assert [one.file.name for one in cache.unreadable("a-b")] == ([] if whose else [name])
    for unreadable in cache.unreadable("a-b"):
        assert "whose it is cannot be told" in str(unreadable.fault)
        # Who knows the attachment knows its file.
        for key in unreadable.candidates("a-b"):
            found = cache.find("a-b", Attachment(*key))
            assert found
            assert found.bare
            assert found.is_of("a-b", Attachment(*key))


@pytest.mark.parametrize("kind", ["folder", "fifo", "link to nothing", "link in a circle"])
def test_what_is_no_file_is_no_entry_and_keeps_nobody_waiting(tmp_path: Path, cache: Cache, kind: str) -> None:
    file = put(tmp_path, "net1-c1-eth0", "")
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    else:
        file.symlink_to(file.name if "circle" in kind else "nothing")
    assert cache.of("net1") == ()
    # A link to nothing is as good as an entry that was just deleted.
    assert [one.file for one in cache.unreadable("net1")] == ([] if kind == "link to nothing" else [file])


def test_of_lists_a_networks_entries_in_order_of_their_names(tmp_path: Path, cache: Cache) -> None:
    for network, container, ifname in [
        ("net1", "c2", "eth0"),
        ("net1", "c1", "eth1"),
        ("net1", "c1", "eth0"),
        ("net1-x", "c1", "eth0"),
        ("net2", "c1", "eth0"),
    ]:
        put(tmp_path, f"{network}-{container}-{ifname}", entry(network, container, ifname))
    put(tmp_path, ".net1-c9-eth0", entry("net1", "c9", "eth0"))
    assert [found.attachment.key for found in cache.of("net1")] == [("c1", "eth0"), ("c1", "eth1"), ("c2", "eth0")]
    assert cache.unreadable("net1") == ()


def test_an_entry_of_another_attachment_under_the_same_name_is_let_alone(tmp_path: Path, cache: Cache) -> None:
    file = put(tmp_path, "net1-x-c1-eth0", entry("net1", "x-c1", "eth0"))
    assert cache.find("net1-x", Attachment("c1")) is None
    cache.forget("net1-x", Attachment("c1"))
    assert file.exists()
    cache.forget("net1", Attachment("x-c1"))
    assert not file.exists()


def test_holder_finds_an_interface_on_whatever_network(tmp_path: Path, cache: Cache) -> None:
    put(tmp_path, "net2-c1-eth0", entry("net2", "c1", "eth0"))
    put(tmp_path, "net1-x-c1-eth1", entry("net1", "x-c1", "eth1"))
    held = cache.holder(Attachment("c1"))
    assert held is not None
    assert held.network == "net2"
    assert cache.holder(Attachment("c1", "eth1")) is None


def test_nothing_is_there_before_the_first_entry(cache: Cache) -> None:
    assert (cache.of("net1"), cache.unreadable("net1"), cache.holder(FULL)) == ((), (), None)
    cache.forget("net1", FULL)


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(CniError, match="results: Not a directory"):
        cache.of("net1")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"container": ""}, "CNI_CONTAINERID: '' is no container id"),
        ({"container": "a/b"}, "CNI_CONTAINERID: 'a/b' is no container id"),
        ({"ifname": "a/b"}, "CNI_IFNAME: interface name contains / or"),
        ({"ifname": "sixteen-letters-"}, "CNI_IFNAME: interface name is too long"),
        ({"args": (("A", "1;B=2"),)}, "CNI_ARGS: invalid pair 'A=1;B=2'"),
        ({"args": (("", "1"),)}, "CNI_ARGS: invalid pair '=1'"),
        ({"args": (("A=B", "1"),)}, "CNI_ARGS: invalid pair 'A=B=1'"),
    ],
)
def test_an_attachment_that_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(CniError) as error:
        Attachment(**{"container": "c1", **fields})  # type: ignore[arg-type]
    assert (error.value.code, error.value.msg[: len(message)]) == (4, message)
