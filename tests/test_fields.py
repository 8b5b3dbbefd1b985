"""Typed reads from a configuration: what is accepted, and what an error says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnikit import spec
from cnikit.errors import CniError
from cnikit.fields import Fields, type_name

JSON_VALUES = {
    "string": "x",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "object": {"a": 1},
    "list": [1],
}
READERS: dict[str, Callable[[Fields, str], object]] = {
    "string": Fields.string,
    "integer": Fields.integer,
    "boolean": Fields.boolean,
    "object": Fields.object,
}


def _message(read: Callable[[], object]) -> str:
    with pytest.raises(CniError) as caught:
        read()
    assert caught.value.code == spec.INVALID_CONFIG
    return caught.value.msg


@pytest.mark.parametrize("given", JSON_VALUES)
@pytest.mark.parametrize("wanted", READERS)
def test_a_reader_takes_its_own_type_only(wanted: str, given: str) -> None:
    fields = Fields({"key": JSON_VALUES[given]})
    if given == wanted:
        READERS[wanted](fields, "key")
    else:
        assert _message(lambda: READERS[wanted](fields, "key")) == f"key: expected {wanted}, got {given}"


@pytest.mark.parametrize(("given", "value"), [(1500.0, 1500), (1e3, 1000), (-0.0, 0)])
def test_a_number_without_fraction_is_an_integer(given: float, value: int) -> None:
    fields = Fields({"key": given})
    assert repr((fields.integer("key"), fields.optional_integer("key"))) == repr((value, value))


def test_a_number_beyond_all_bounds_is_out_of_bounds() -> None:
    assert _message(lambda: Fields({"key": 1e300}).integer("key")).endswith("is not in 0..4294967295")


def test_null_among_strings_is_an_empty_one() -> None:
    assert Fields({"key": ["a", None, ""]}).strings("key") == ("a", "", "")


@pytest.mark.parametrize("given", [name for name in JSON_VALUES if name != "list"])
@pytest.mark.parametrize("read", [Fields.strings, Fields.objects, Fields.lists])
def test_a_list_is_wanted(read: Callable[[Fields, str], object], given: str) -> None:
    fields = Fields({"key": JSON_VALUES[given]})
    assert _message(lambda: read(fields, "key")) == f"key: expected list, got {given}"


@pytest.mark.parametrize("raw", [{}, {"key": None}], ids=["absent", "null"])
def test_absent_and_null_read_the_same(raw: dict[str, Any]) -> None:
    fields = Fields(raw)
    assert not fields.has("key")
    assert fields.raw("key") is None
    assert fields.string("key") == ""
    assert fields.string("key", "default") == "default"
    assert fields.integer("key") == 0
    assert fields.integer("key", 7) == 7
    assert fields.optional_integer("key") is None
    assert fields.boolean("key") is False
    assert fields.strings("key") == ()
    assert fields.objects("key") == ()
    assert fields.lists("key") == ()
    assert not fields.object("key").has("anything")


def test_present_values_are_read() -> None:
    fields = Fields(
        {
            "s": "",
            "i": 0,
            "b": True,
            "f": False,
            "l": ["a", "b"],
            "o": {"k": 1},
            "oo": [{"k": 2}],
            "ll": [[], [{"k": 3}]],
        }
    )
    assert fields.has("s")
    assert fields.string("s", "default") == ""
    assert fields.integer("i", 7) == 0
    assert fields.optional_integer("i") == 0
    assert fields.boolean("b") is True
    assert fields.boolean("f") is False
    assert fields.strings("l") == ("a", "b")
    assert fields.object("o").integer("k") == 1
    assert [f.integer("k") for f in fields.objects("oo")] == [2]
    assert [[f.integer("k") for f in inner] for inner in fields.lists("ll")] == [[], [3]]


@pytest.mark.parametrize("asked", ["ipMasq", "ipmasq", "IPMASQ"])
@pytest.mark.parametrize("written", ["ipMasq", "ipmasq", "IPMASQ", "IpMaSq"])
def test_keys_match_whatever_their_case(written: str, asked: str) -> None:
    fields = Fields({written: True})
    assert fields.has(asked)
    assert fields.raw(asked) is True
    assert fields.boolean(asked) is True


def test_the_last_of_keys_that_differ_in_case_wins() -> None:
    assert Fields({"mtu": 1, "MTU": 2}).integer("mtu") == 2
    assert Fields({"MTU": 2, "mtu": 1}).integer("mtu") == 1


def test_a_null_does_not_take_an_earlier_value_away() -> None:
    assert Fields({"mtu": 1, "MTU": None}).integer("mtu") == 1


def test_the_error_writes_the_key_as_the_reader_knows_it() -> None:
    assert _message(lambda: Fields({"ISGATEWAY": "yes"}).boolean("isGateway")) == (
        "isGateway: expected boolean, got string"
    )


@pytest.mark.parametrize(("low", "high"), [(0, 2**32 - 1), (-1, 1), (1, 4094), (5, 5)])
@given(number=st.integers(-3, 4096) | st.integers())
def test_an_integer_is_read_within_its_bounds_only(low: int, high: int, number: int) -> None:
    fields = Fields({"vlan": number}, "plugins[0]")
    for read in (fields.integer, fields.optional_integer):
        if low <= number <= high:
            assert read("vlan", low=low, high=high) == number
        else:
            assert _message(lambda: read("vlan", low=low, high=high)) == (  # noqa: B023 (called at once)
                f"plugins[0].vlan: {number} is not in {low}..{high}"
            )


@pytest.mark.parametrize("number", [-1, 2**32])
def test_an_integer_is_one_of_32_bits_unless_told_otherwise(number: int) -> None:
    assert _message(lambda: Fields({"mtu": number}).integer("mtu")) == f"mtu: {number} is not in 0..4294967295"


CONFIG = {
    "name": "n",
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": 7}], "x", [{}, None]],
        "routes": [{"dst": "0.0.0.0/0"}, 5, {"table": -1}],
    },
    "runtimeConfig": {"ips": ["10.0.0.1", 7], "portMappings": [{"hostPort": "80"}]},
}


@pytest.mark.parametrize(
    ("read", "message"),
    [
        pytest.param(
            lambda f: f.object("ipam").lists("ranges"), "ipam.ranges[1]: expected list, got string", id="list of lists"
        ),
        pytest.param(
            lambda f: [x.string("dst") for x in f.object("ipam").objects("routes")],
            "ipam.routes[1]: expected object, got integer",
            id="list of objects",
        ),
        pytest.param(
            lambda f: f.object("runtimeConfig").strings("ips"),
            "runtimeConfig.ips[1]: expected string, got integer",
            id="list of strings",
        ),
        pytest.param(
            lambda f: f.object("runtimeConfig").objects("portMappings")[0].integer("hostPort"),
            "runtimeConfig.portMappings[0].hostPort: expected integer, got string",
            id="inside a list of objects",
        ),
        pytest.param(
            lambda f: f.object("ipam").object("type"), "ipam.type: expected object, got string", id="inside an object"
        ),
    ],
)
def test_an_error_names_the_whole_path(read: Callable[[Fields], object], message: str) -> None:
    assert _message(lambda: read(Fields(CONFIG))) == message


def test_an_error_names_both_indices_of_a_list_of_lists() -> None:
    fields = Fields({"a": {"b": [[{"c": "x"}, {"c": 1}], [{}, None]]}}).object("a")
    assert _message(lambda: fields.lists("b")) == "a.b[1][1]: expected object, got null"
    fields = Fields({"a": {"b": [[{"c": "x"}, {"c": 1}]]}}).object("a")
    assert _message(lambda: fields.lists("b")[0][1].string("c")) == "a.b[0][1].c: expected string, got integer"


def test_an_absent_object_still_knows_its_path() -> None:
    error = Fields({}).object("ipam").invalid("type", "is missing", "name an IPAM plugin")
    assert (error.code, error.msg, error.details) == (7, "ipam.type: is missing", "name an IPAM plugin")


@pytest.mark.parametrize(
    ("value", "name"), [*((value, name) for name, value in JSON_VALUES.items()), (None, "null"), (False, "boolean")]
)
def test_types_have_their_json_names(value: object, name: str) -> None:
    assert type_name(value) == name


@pytest.mark.parametrize("raw", [{}, {"a": None}, {"a": ""}])
def test_parsed_is_none_where_nothing_is_written(raw: dict[str, object]) -> None:
    assert Fields(raw, "x").parsed("a", int) is None


def test_parsed_reads_by_a_syntax_and_names_the_key_where_it_fails() -> None:
    assert Fields({"a": "12"}, "x").parsed("a", int) == 12
    with pytest.raises(CniError, match=r"x\.a: invalid literal") as raised:
        Fields({"a": "1z"}, "x").parsed("a", int)
    assert raised.value.code == 7


def test_no_string_holds_what_no_path_name_or_address_can() -> None:
    fields = Fields({"key": "a\0", "list": ["é", "a\0"], "empty": ""})
    assert _message(lambda: fields.string("key")) == "key: holds a NUL"
    assert _message(lambda: fields.parsed("key", str)) == "key: holds a NUL"
    assert _message(lambda: fields.strings("list")) == "list[1]: holds a NUL"
    assert fields.raw("key") == "a\0"
    assert fields.string("empty") == ""
