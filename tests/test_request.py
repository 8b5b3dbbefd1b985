"""What a runtime asks for: which fault is found, in which order, under which code."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnikit import request, spec
from cnikit.errors import CniError
from cnikit.main import respond
from cnikit.plugin import Plugin
from cnikit.request import Attachment, Request
from cnikit.result import IP, Interface, Result

VERBS = ("ADD", "CHECK", "DEL", "GC", "STATUS")
ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/c1",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "",
    "CNI_PATH": "/opt/cni/bin",
}
CONFIG = {"cniVersion": "1.1.0", "name": "mynet", "type": "test"}


def _parse(environ: Mapping[str, str], stdin: bytes | None = None, **config: Any) -> Request:
    """Parse a call; keys of config set to ... are left out."""
    whole = {key: value for key, value in {**CONFIG, **config}.items() if value is not ...}
    data = json.dumps(whole).encode() if stdin is None else stdin
    return request.parse({**ENVIRON, **environ}, lambda: data)


def _error(environ: Mapping[str, str], stdin: bytes | None = None, **config: Any) -> tuple[int, str, str]:
    with pytest.raises(CniError) as caught:
        _parse(environ, stdin, **config)
    return caught.value.code, caught.value.msg, caught.value.details


def test_a_request_holds_what_the_runtime_gave() -> None:
    data = b'{"name": "mynet", "CNIVERSION": "1.0.0", "mtu": 1400}'
    environ = {**ENVIRON, "CNI_ARGS": "IP=10.1.0.7", "OTHER": "x"}
    asked = request.parse(environ, lambda: data)
    assert asked.verb == "ADD"
    assert asked.attachment == Attachment("mynet", "c1", "eth0")
    assert (asked.netns, asked.args, asked.path) == ("/run/netns/c1", "IP=10.1.0.7", "/opt/cni/bin")
    assert asked.version == "1.0.0"
    assert asked.config.integer("mtu") == 1400
    assert asked.stdin == data
    assert asked.environ == environ


# Which variables a verb requires (specification section 2; the reference wants CNI_PATH for every verb, we do not).
REQUIRED = {
    "ADD": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
    "CHECK": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
    "DEL": {"CNI_CONTAINERID", "CNI_IFNAME"},
    "GC": {"CNI_PATH"},
    "STATUS": set(),
}


@pytest.mark.parametrize("absent", [True, False], ids=["absent", "empty"])
@pytest.mark.parametrize("variable", [name for name in ENVIRON if name != "CNI_COMMAND"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_requires_its_variables_and_no_others(verb: str, variable: str, absent: bool) -> None:
    environ = {**ENVIRON, "CNI_COMMAND": verb, variable: ""}
    if absent:
        del environ[variable]
    data = json.dumps(CONFIG).encode()
    if variable in REQUIRED[verb]:
        with pytest.raises(CniError) as caught:
            request.parse(environ, lambda: data)
        assert (caught.value.code, caught.value.msg) == (4, f"required env variables [{variable}] missing")
    else:
        assert request.parse(environ, lambda: data).verb == verb


def test_all_missing_variables_are_named_in_order() -> None:
    with pytest.raises(CniError) as caught:
        request.parse({"CNI_COMMAND": "ADD"}, lambda: b"")
    assert (caught.value.code, caught.value.msg) == (
        4,
        "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing",
    )


@pytest.mark.parametrize("verb", ["GC", "STATUS"])
def test_a_variable_the_verb_does_not_require_is_not_checked(verb: str) -> None:
    asked = _parse({"CNI_COMMAND": verb, "CNI_CONTAINERID": "_", "CNI_IFNAME": "\udcff", "CNI_NETNS": "x"})
    assert (asked.verb, asked.attachment) == (verb, Attachment("mynet", "", ""))


BAD_ID = (4, "CNI_CONTAINERID: invalid characters in containerID", "_")
BAD_NAME = (7, "name: invalid characters found in network name", "_")
NO_VALUE = (6, "error unmarshall network config: Expecting value: line 1 column 1 (char 0)", "")


@pytest.mark.parametrize(
    ("environ", "stdin", "error"),
    [
        pytest.param(
            {"CNI_CONTAINERID": "_", "CNI_NETNS": "", "CNI_IFNAME": "a b"}, b"", BAD_ID, id="container id first"
        ),
        pytest.param({"CNI_CONTAINERID": "_", "CNI_IFNAME": ""}, b"", BAD_ID, id="malformed before missing"),
        pytest.param(
            {"CNI_CONTAINERID": "", "CNI_IFNAME": ".."},
            b"",
            (4, "CNI_IFNAME: interface name is . or ..", ".."),
            id="malformed ifname before missing container id",
        ),
        pytest.param(
            {"CNI_CONTAINERID": ""},
            b"{bad",
            (4, "required env variables [CNI_CONTAINERID] missing", ""),
            id="environment before stdin",
        ),
        pytest.param({"CNI_COMMAND": "FOO"}, b"", NO_VALUE, id="stdin before unknown verb"),
        pytest.param({"CNI_COMMAND": "FOO"}, b'{"name": "_"}', BAD_NAME, id="network name before unknown verb"),
        pytest.param(
            {"CNI_COMMAND": "FOO"},
            b'{"name": "n", "cniVersion": "9.9.9"}',
            (4, "CNI_COMMAND: unknown CNI_COMMAND: FOO", ""),
            id="unknown verb before version",
        ),
        pytest.param({}, b'{"name": "_", "cniVersion": "9.9.9"}', BAD_NAME, id="network name before version"),
        pytest.param(
            {"CNI_COMMAND": "add"},
            json.dumps(CONFIG).encode(),
            (4, "CNI_COMMAND: unknown CNI_COMMAND: add", ""),
            id="verbs are in upper case",
        ),
        pytest.param(
            {"CNI_COMMAND": "FOO", "CNI_CONTAINERID": "", "CNI_NETNS": "", "CNI_IFNAME": "", "CNI_PATH": ""},
            json.dumps(CONFIG).encode(),
            (4, "CNI_COMMAND: unknown CNI_COMMAND: FOO", ""),
            id="an unknown verb requires nothing",
        ),
    ],
)
def test_the_first_fault_in_the_order_of_the_reference_is_told(
    environ: dict[str, str], stdin: bytes, error: tuple[int, str, str]
) -> None:
    assert _error(environ, stdin) == error


def test_stdin_is_not_read_when_the_environment_is_wrong() -> None:
    def read() -> bytes:
        raise AssertionError("read")

    with pytest.raises(CniError, match="CNI_NETNS"):
        request.parse({**ENVIRON, "CNI_NETNS": ""}, read)


def test_a_stdin_that_cannot_be_read_is_an_io_failure() -> None:
    def read() -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(CniError) as caught:
        request.parse(ENVIRON, read)
    assert (caught.value.code, caught.value.msg) == (5, "error reading from stdin: Input/output error")


NAMES = ["a", "Z", "0", "a.b", "a_b", "a-b", "a..", "1-_.", "a" * 300]
NO_NAMES = [
    "_",
    ".",
    "-a",
    ".a",
    "a b",
    "a/b",
    "a:b",
    "a,b",
    "a\n",
    "\na",
    " a",
    "a\0",
    "a\t",
    "é",
    "aé",
    "a²",
    "a\udcff",
]


@pytest.mark.parametrize("name", NAMES)
def test_takes_a_container_id_and_a_network_name(name: str) -> None:
    assert _parse({"CNI_CONTAINERID": name}, name=name).attachment == Attachment(name, name, "eth0")


@pytest.mark.parametrize("name", NO_NAMES)
def test_refuses_a_container_id(name: str) -> None:
    assert _error({"CNI_CONTAINERID": name}) == (4, "CNI_CONTAINERID: invalid characters in containerID", name)


@pytest.mark.parametrize("name", NO_NAMES)
def test_refuses_a_network_name(name: str) -> None:
    shown = name.replace("\udcff", "\ufffd")  # on stdin there is no such thing
    assert _error({}, name=name) == (7, "name: invalid characters found in network name", shown)


TOO_LONG = "interface name is too long: it should be less than 16 bytes"
CHARACTERS = "interface name contains / or : or % or whitespace characters (the byte A0 is one)"
NOT_UTF8 = "interface name is not UTF-8"
# White_Space of Unicode; and letters whose UTF-8 has the byte A0, which the kernel's isspace() takes for white space.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"
WITH_BYTE_A0 = "àРꠁ"


@pytest.mark.parametrize(
    "name",
    ["e", "eth0", "a" * 15, "é" * 7, "é" * 7 + "x", "網" * 5, "\U0001f600" * 3 + "abc", "...", ".a", "a.", "-",
     "eth0.100", "eth0@if2", "a,b", "a\\b", "a#b", '"', "a\x01b", "a\u200bb"],
)  # fmt: skip
def test_takes_an_interface_name(name: str) -> None:
    assert _parse({"CNI_IFNAME": name}).attachment.ifname == name


def test_takes_every_printable_ascii_character_in_an_interface_name_but_three() -> None:
    refused = [chr(code) for code in range(0x21, 0x7F) if spec.ifname_fault(f"a{chr(code)}")]
    assert refused == ["%", "/", ":"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((name, TOO_LONG) for name in ("a" * 16, "é" * 8, "網" * 5 + "x", "\U0001f600" * 4, "a" * 5000)),
        *((name, "interface name is . or ..") for name in (".", "..")),
        *((name, CHARACTERS) for name in ("/", "a/b", "../x", "a:b", ":", "a\0b", "eth%d", "%", "100%")),
        *((f"{space}a", CHARACTERS) for space in WHITE_SPACE),
        *((f"a{space}", CHARACTERS) for space in WHITE_SPACE),
        *((f"a{letter}b", CHARACTERS) for letter in WITH_BYTE_A0),
        *((name, NOT_UTF8) for name in ("\udcff", "a\udcc3", "\ud83d", "\ud83d\ude00")),
    ],
)
def test_refuses_an_interface_name(name: str, why: str) -> None:
    assert _error({"CNI_IFNAME": name}) == (4, f"CNI_IFNAME: {why}", name)


def test_an_empty_interface_name_is_one_fault_among_those_of_a_configuration() -> None:
    assert spec.ifname_fault("") == "interface name is empty"


UNMARSHALL = "error unmarshall network config: "
EMPTY = UNMARSHALL + "Expecting value: line 1 column 1 (char 0)"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("stdin", "error"),
    [
        pytest.param(b"", (6, EMPTY), id="empty"),
        pytest.param(b"   \n", (6, UNMARSHALL + "Expecting value: line 2 column 1 (char 4)"), id="blank"),
        pytest.param(b"{} {}", (6, UNMARSHALL + "Extra data: line 1 column 4 (char 3)"), id="two documents"),
        pytest.param(b"\xff", (6, EMPTY), id="not UTF-8"),
        pytest.param(b"[" * 100_000, (6, UNMARSHALL + "nested too deeply"), id="depth"),
        pytest.param(b"[]", (6, UNMARSHALL + "expected object, got list"), id="array"),
        pytest.param(b'"x"', (6, UNMARSHALL + "expected object, got string"), id="string"),
        pytest.param(b"null", (6, UNMARSHALL + "expected object, got null"), id="null"),
        pytest.param(b"true", (6, UNMARSHALL + "expected object, got boolean"), id="boolean"),
        pytest.param(b"{}", (7, "name: missing network name"), id="no name"),
        pytest.param(b'{"name": null}', (7, "name: missing network name"), id="name null"),
        pytest.param(b'{"name": ""}', (7, "name: missing network name"), id="name empty"),
        pytest.param(b'{"name": 0}', (6, UNMARSHALL + "name: expected string, got integer"), id="name integer"),
        pytest.param(b'{"name": false}', (6, UNMARSHALL + "name: expected string, got boolean"), id="name boolean"),
        pytest.param(b'{"name": ["n"]}', (6, UNMARSHALL + "name: expected string, got list"), id="name list"),
        pytest.param(b'{"name": {}}', (6, UNMARSHALL + "name: expected string, got object"), id="name object"),
    ],
)
def test_refuses_a_stdin(verb: str, stdin: bytes, error: tuple[int, str]) -> None:
    assert _error({"CNI_COMMAND": verb}, stdin)[:2] == error


def test_the_last_of_two_names_counts() -> None:
    assert _parse({}, b'{"name": "a", "name": "b", "NAME": "c"}').attachment.network == "c"


# The version from which on a verb may be asked for.
SINCE = {"ADD": "0.1.0", "DEL": "0.1.0", "CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
RELEASED = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]


@pytest.mark.parametrize("version", RELEASED)
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_served_since_its_version(verb: str, version: str) -> None:
    if RELEASED.index(version) >= RELEASED.index(SINCE[verb]):
        assert _parse({"CNI_COMMAND": verb}, cniVersion=version).version == version
    else:
        assert _error({"CNI_COMMAND": verb}, cniVersion=version) == (
            1,
            f"config version does not allow {verb}",
            f"cniVersion is {version}, {verb} came with {SINCE[verb]}",
        )


@pytest.mark.parametrize("version", [..., None, ""], ids=["absent", "null", "empty"])
def test_no_version_is_the_oldest(version: Any) -> None:
    assert _parse({}, cniVersion=version).version == "0.1.0"
    assert _error({"CNI_COMMAND": "CHECK"}, cniVersion=version)[:2] == (1, "config version does not allow CHECK")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "version", ["9.9.9", "1.1", "1.1.0 ", "v1.1.0", "0.3.2", "1.2.0", "1.01.0", "01.1.0", "latest"]
)
def test_a_version_is_one_of_the_released_ones_to_the_letter(verb: str, version: str) -> None:
    assert _error({"CNI_COMMAND": verb}, cniVersion=version) == (
        1,
        "incompatible CNI versions",
        f'config is "{version}", plugin supports 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0',
    )


@pytest.mark.parametrize(
    ("version", "kind"), [(1, "integer"), (1.1, "number"), (True, "boolean"), (["1.1.0"], "list"), ({}, "object")]
)
def test_a_version_is_a_string(version: Any, kind: str) -> None:
    assert _error({}, cniVersion=version) == (
        6,
        f"decoding version from network config: expected string, got {kind}",
        "",
    )


KUBERNETES = (
    "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=f00;K8S_POD_UID=0-1"
)


@pytest.mark.parametrize(
    ("args", "pairs"),
    [
        pytest.param("", {}, id="empty"),
        pytest.param("IP=10.1.0.7", {"IP": "10.1.0.7"}, id="one"),
        pytest.param(
            "IP=10.1.0.7;MAC=02:00:00:00:00:01;GATEWAY=10.1.0.1",
            {"IP": "10.1.0.7", "MAC": "02:00:00:00:00:01", "GATEWAY": "10.1.0.1"},
            id="all",
        ),
        pytest.param("IP=10.1.0.7;", {"IP": "10.1.0.7"}, id="closing semicolon"),
        pytest.param(";", {}, id="nothing but a semicolon"),
        pytest.param("IP=", {}, id="empty value"),
        pytest.param("MAC=;GATEWAY=;IP=10.1.0.7", {"IP": "10.1.0.7"}, id="empty values"),
        pytest.param("IP=10.1.0.7;IP=", {}, id="an empty one is the last"),
        pytest.param("IgnoreUnknown=;IP=", {}, id="empty IgnoreUnknown"),
        pytest.param("IgnoreUnknown=1;K8S_POD_UID=", {"K8S_POD_UID": ""}, id="an unknown key is left as it is"),
        pytest.param("IP=10.1.0.7;IP=10.1.0.8", {"IP": "10.1.0.8"}, id="the last one wins"),
        pytest.param("IP= 10.1.0.7 ", {"IP": " 10.1.0.7 "}, id="blanks belong to the value"),
        pytest.param("IgnoreUnknown=1", {}, id="IgnoreUnknown alone"),
        pytest.param("IgnoreUnknown=0;IP=10.1.0.7", {"IP": "10.1.0.7"}, id="IgnoreUnknown off"),
        *(
            pytest.param(
                f"X=1;IgnoreUnknown={yes};IP=10.1.0.7", {"X": "1", "IP": "10.1.0.7"}, id=f"IgnoreUnknown={yes}"
            )
            for yes in ("1", "true", "True", "TRUE", "tRuE")
        ),
        pytest.param("IgnoreUnknown=1;=x", {"": "x"}, id="empty key, ignored"),
        pytest.param(
            KUBERNETES,
            dict(pair.split("=") for pair in KUBERNETES.split(";")[1:]),
            id="Kubernetes",
        ),
    ],
)
def test_reads_cni_args(args: str, pairs: dict[str, str]) -> None:
    assert _parse({"CNI_ARGS": args}).arguments() == pairs


@pytest.mark.parametrize(
    ("args", "msg"),
    [
        *(
            pytest.param(args, f"invalid pair {piece!r}", id=args)
            for args, piece in {
                "IP": "IP",
                "IP=10.1.0.7;MAC": "MAC",
                "IP=a=b": "IP=a=b",
                "IP==": "IP==",
                ";IP=10.1.0.7": "",
                "IP=10.1.0.7;;": "",
                ";;": "",
                "IP=10.1.0.7;;MAC=x": "",
                "IgnoreUnknown=1;X": "X",
                "IgnoreUnknown=1;X=a=b": "X=a=b",
                "IP=10.1.0.7 ; ": " ",
            }.items()
        ),
        *(
            pytest.param(f"IgnoreUnknown={value}", f"IgnoreUnknown={value!r} is not one of 1, true, 0, false", id=value)
            for value in ("yes", "2", "t", " 1", "on")
        ),
        pytest.param("FOO=1", "unknown args ['FOO']", id="unknown"),
        pytest.param("IP=10.1.0.7;FOO=1;BAR=2", "unknown args ['FOO', 'BAR']", id="all unknown keys are named"),
        pytest.param("IgnoreUnknown=0;FOO=1", "unknown args ['FOO']", id="IgnoreUnknown=0"),
        pytest.param("IgnoreUnknown=;FOO=1", "unknown args ['FOO']", id="IgnoreUnknown="),
        pytest.param("FOO=", "unknown args ['FOO']", id="unknown and empty"),
        pytest.param("IgnoreUnknown=False;FOO=1", "unknown args ['FOO']", id="IgnoreUnknown=False"),
        pytest.param("IgnoreUnknown=1;IgnoreUnknown=0;FOO=1", "unknown args ['FOO']", id="the last IgnoreUnknown wins"),
        pytest.param("ip=10.1.0.7", "unknown args ['ip']", id="keys are case-sensitive"),
        pytest.param("IGNOREUNKNOWN=1", "unknown args ['IGNOREUNKNOWN']", id="IgnoreUnknown is case-sensitive"),
        pytest.param(" IP=10.1.0.7", "unknown args [' IP']", id="blanks belong to the key"),
        pytest.param("=x", "unknown args ['']", id="empty key"),
    ],
)
def test_refuses_cni_args(args: str, msg: str) -> None:
    asked = _parse({"CNI_ARGS": args})
    with pytest.raises(CniError) as caught:
        asked.arguments()
    assert (caught.value.code, caught.value.msg) == (4, f"CNI_ARGS: {msg}")


@pytest.mark.parametrize("verb", VERBS)
def test_cni_args_are_the_business_of_plugins_that_use_them(verb: str) -> None:
    assert _parse({"CNI_COMMAND": verb, "CNI_ARGS": "rubbish"}).args == "rubbish"


@pytest.mark.parametrize("previous", [..., None], ids=["absent", "null"])
def test_no_prev_result_is_none(previous: Any) -> None:
    assert _parse({}, prevResult=previous).prev_result() is None


def test_an_empty_prev_result_is_a_result() -> None:
    assert _parse({}, prevResult={}).prev_result() == Result()


def test_a_prev_result_without_version_has_the_version_of_the_configuration() -> None:
    asked = _parse({}, cniVersion="0.2.0", prevResult={"ip4": {"ip": "10.1.0.2/24"}})
    assert asked.prev_result() == Result(ips=(IP("10.1.0.2/24"),))


def test_a_prev_result_keeps_its_own_version() -> None:
    asked = _parse({}, cniVersion="0.2.0", prevResult={"cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}]})
    assert asked.prev_result() == Result((Interface("eth0"),))


@pytest.mark.parametrize(
    ("previous", "msg"),
    [
        ([], "prevResult: expected object, got list"),
        ({"cniVersion": "9.9.9"}, f"prevResult.cniVersion: '9.9.9' is not one of {', '.join(RELEASED)}"),
        ({"ips": [{}]}, "prevResult.ips[0].address: is missing"),
    ],
)
def test_a_fault_in_prev_result_is_named_by_its_path(previous: Any, msg: str) -> None:
    asked = _parse({}, prevResult=previous)
    with pytest.raises(CniError) as caught:
        asked.prev_result()
    assert (caught.value.code, caught.value.msg) == (7, msg)


NEW, OLD = "cni.dev/valid-attachments", "cni.dev/attachments"
KEPT = [{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "eth0"}]


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        pytest.param({NEW: []}, set(), id="empty"),
        pytest.param({NEW: None}, set(), id="null"),
        pytest.param({NEW: KEPT}, {("c1", "eth0"), ("c2", "eth0")}, id="two"),
        pytest.param({OLD: KEPT}, {("c1", "eth0"), ("c2", "eth0")}, id="older key"),
        pytest.param({OLD: None}, set(), id="older key, null"),
        pytest.param({OLD: KEPT, NEW: KEPT[:1]}, {("c1", "eth0")}, id="both keys"),
        pytest.param({NEW.upper(): KEPT[:1]}, {("c1", "eth0")}, id="whatever its case"),
    ],
)
def test_gc_keeps_what_is_listed(config: dict[str, Any], kept: set[tuple[str, str]]) -> None:
    assert _parse({"CNI_COMMAND": "GC"}, **config).valid_attachments() == kept


@pytest.mark.parametrize(
    ("config", "msg"),
    [
        ({}, f"{NEW}: is missing"),
        ({NEW: {}}, f"{NEW}: expected list, got object"),
        ({NEW: ["c1"]}, f"{NEW}[0]: expected object, got string"),
        ({NEW: [KEPT[0], {"containerID": "c1"}]}, f"{NEW}[1].ifname: is missing"),
        ({NEW: [{"containerID": "", "ifname": "eth0"}]}, f"{NEW}[0].containerID: is missing"),
        ({OLD: [{"ifname": "eth0"}]}, f"{OLD}[0].containerID: is missing"),
    ],
)
def test_gc_without_a_sound_list_is_refused(config: dict[str, Any], msg: str) -> None:
    asked = _parse({"CNI_COMMAND": "GC"}, **config)
    with pytest.raises(CniError) as caught:
        asked.valid_attachments()
    assert (caught.value.code, caught.value.msg) == (7, msg)


FIXED = Result((Interface("eth0"),), (IP("10.1.0.2/24", interface=0),))
FIXED_1_1_0 = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0"}],
    "ips": [{"address": "10.1.0.2/24", "interface": 0}],
}


def _nothing(asked: Request) -> None:
    """Succeed."""


PLUGIN = Plugin("test", add=lambda _: FIXED, delete=_nothing, check=_nothing, gc=_nothing, status=_nothing)


@pytest.mark.parametrize("verb", VERBS)
def test_only_add_prints(verb: str) -> None:
    response = respond(PLUGIN, {**ENVIRON, "CNI_COMMAND": verb}, json.dumps(CONFIG).encode)
    assert (response.status, response.stderr) == (0, "")
    if verb == "ADD":
        assert json.loads(response.stdout) == FIXED_1_1_0
    else:
        assert response.stdout == ""


WORDS = st.sampled_from(["", "x", "_", "eth0", "a/b", "/run/netns/x", "IP=1", ";", "\udcff", "%", "a" * 16]) | st.text(
    st.characters(exclude_categories=()), max_size=5
)
ENVIRONS = st.dictionaries(st.sampled_from([*ENVIRON, "PATH"]), WORDS).flatmap(
    lambda environ: st.sampled_from(["", "FOO", "VERSION", *VERBS]).map(lambda verb: {**environ, "CNI_COMMAND": verb})
)
CONFIG_VALUES: st.SearchStrategy[Any] = st.sampled_from(
    ["mynet", "_", "1.1.0", "0.1.0", "9.9.9", "", None, 1, {}, [], "\ud800", 10**400]
)
CONFIGS = st.dictionaries(st.sampled_from(["name", "NAME", "cniVersion", "CNIVersion", "prevResult"]), CONFIG_VALUES)
STDINS = st.binary() | CONFIGS.map(lambda config: json.dumps(config).encode())


@given(environ=ENVIRONS | ENVIRONS.map(lambda environ: {**ENVIRON, **environ}), stdin=STDINS)
def test_whatever_is_asked_the_answer_is_a_result_or_an_error_object(environ: dict[str, str], stdin: bytes) -> None:
    response = respond(PLUGIN, environ, lambda: stdin)
    if response.status == 0:
        if environ["CNI_COMMAND"] == "ADD":
            assert json.loads(response.stdout)["cniVersion"] in RELEASED
        elif environ["CNI_COMMAND"] != "VERSION":
            assert response.stdout == ""
    else:
        assert response.status == 1
        error = json.loads(response.stdout)
        assert error.keys() - {"details"} == {"cniVersion", "code", "msg"}
        assert error["cniVersion"] in RELEASED
        assert error["code"] in (1, 4, 6, 7)
        assert error["msg"]
        assert response.stderr == ""
