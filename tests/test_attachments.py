"""The cache of results, in libcni's format, and what happens to files that are none of its."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
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
        assert (cache.find("net1", FULL), cache.holder(FULL), cache.of("net1"), cache.broken("net1")) == (
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
        pytest.param('{"cniVersion": "1.0.0"}', id="a-result-alone"),
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
    assert cache.broken("net1") == (file,)
    cache.forget("net1", FULL)
    assert not file.exists()


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
    assert cache.broken("net1") == ()


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
    assert (cache.of("net1"), cache.broken("net1"), cache.holder(FULL)) == ((), (), None)
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
