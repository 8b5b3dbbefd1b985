"""JSON text: reading and writing agree with the standard library's json, whether that is imported yet or not."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnikit import jsontext
from tests.fuzz import mended

# Every code point, lone surrogates too.
TEXT = st.text(st.characters(exclude_categories=()))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**30, 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20)
# Text that is nearly JSON finds more than random characters do.
PIECES = [*'{}[]:,"\\ \n\t-+.eE019', "\x00", "\x1f", "\x0b", "\xa0", "\ufeff", "\u2028", "é", "\\u00e9", "\\ud83d"]
PIECES += ["true", "false", "null", "NaN", "Infinity", "1e999", '"a"', '"a":', "/*", "'"]
NEARLY_JSON = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)

MALFORMED = {
    "nothing": b"",
    "white space": b" \n",
    "no value": b"{bad",
    "no key": b'{"a":1,}',
    "no colon": b'{"a" 1}',
    "no comma": b'{"a":1 "b":2}',
    "no end of object": b'{"a":1',
    "no end of list": b"[1",
    "comma at the end of a list": b"[1,]",
    "no end of string": b'"abc',
    "bad escape": rb'"\x"',
    "bad unicode escape": rb'"\u12g4"',
    "newline in string": b'"a\nb"',
    "rubbish behind": b"{} x",
    "two documents": b"{}{}",
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a":1}'.encode("utf-16-le"),
    "Latin-1 outside strings": "[é]".encode("latin-1"),
    "half a surrogate pair in UTF-8 outside strings": b"\xed\xa0\x80",
    "half an escape": rb'"\ud8zz"',
    "half an escape behind half a surrogate pair": rb'"\ud800\udczz"',
    "vertical tab": b"\x0b1",
    "NaN": b"[NaN]",
    "Infinity": b"Infinity",
    "minus Infinity": b'{"a":-Infinity}',
    "float beyond range": b"[1e999]",
    "negative float beyond range": b'{"a":-1e999}',
    "5000 digits": b"1" * 5000,
    "lists nested 100,000 deep": b"[" * 100_000,
    "objects nested 100,000 deep": b'{"a":' * 100_000,
    "lists nested deeper than may be": b"[" * 201 + b"1" + b"]" * 201,
    "objects nested deeper than may be": b'{"a":' * 201 + b"1" + b"}" * 201,
}


def _without_extremes(text: str) -> Any:
    value = mended(json.loads(text, parse_constant=float, parse_float=float))
    if any(math.isinf(number) or math.isnan(number) for number in _floats(value)):
        raise ValueError(text)
    return value


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _floats(item)


def _utf8(data: bytes) -> str:
    """Return the characters of some bytes, U+FFFD for each byte that begins none, as Go's utf8.DecodeRune does it."""
    text = ""
    while data:
        for length in range(1, 5):
            try:
                text, data = text + data[:length].decode(), data[length:]
                break
            except UnicodeDecodeError:
                continue
        else:
            text, data = text + "\ufffd", data[1:]
    return text


def _outcome(decode: Any, given: Any) -> tuple[str, Any]:
    """Return what decode made, by its repr, which tells 1 from True and 1.0, and how that failed."""
    try:
        return "value", repr(decode(given))
    except ValueError:
        return "refused", None


@given(VALUES, st.sampled_from([None, 1, 4]), st.booleans())
def test_reads_what_json_writes(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        data = json.dumps(value, indent=indent).encode()
    assert repr(jsontext.decode(data)) == repr(mended(json.loads(data)))


@given(st.text() | NEARLY_JSON)
def test_accepts_what_json_accepts_but_not_the_infinite(text: str) -> None:
    assert _outcome(jsontext.decode, text.encode()) == _outcome(_without_extremes, text)


@given(st.binary() | st.binary().map(lambda data: b'"' + data.replace(b'"', b"") + b'"'))
def test_any_bytes_are_a_value_or_a_value_error(data: bytes) -> None:
    assert _outcome(jsontext.decode, data) == _outcome(lambda d: _without_extremes(_utf8(d)), data)


# What is no character, and what only looks like it.
HALVES = ["\\ud800", "\\uDBFF", "\\udc00", "\\uDfFf", "\\u0041", "\\\\", "ud800", "\\n", "é", "x", '\\"']


@given(st.lists(st.sampled_from(HALVES)).map("".join))
def test_half_a_surrogate_pair_is_one_replacement_character(text: str) -> None:
    data = f'{{"{text}": ["{text}"]}}'.encode()
    wanted = mended(json.loads(data))
    assert jsontext.decode(data) == wanted
    assert jsontext.pairs(data) == tuple(wanted.items())


@given(VALUES)
def test_writes_what_json_writes_with_indent_four(value: Any) -> None:
    assert jsontext.encode(value) == json.dumps(value, indent=4)


@given(VALUES)
def test_writes_one_line_without_spaces(value: Any) -> None:
    assert jsontext.encode(value, indent=None) == json.dumps(value, separators=(",", ":"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param({}, "{}", id="empty object"),
        pytest.param([], "[]", id="empty list"),
        pytest.param((), "[]", id="empty tuple"),
        pytest.param({"a": [], "b": {}}, '{\n    "a": [],\n    "b": {}\n}', id="empty inside"),
        pytest.param(("x",), '[\n    "x"\n]', id="tuple"),
        pytest.param("é\ud800", '"\\u00e9\\ud800"', id="ASCII only"),
    ],
)
def test_writes(value: Any, text: str) -> None:
    assert jsontext.encode(value) == text


@pytest.mark.parametrize(
    ("data", "value"),
    [
        pytest.param(b'{"a":1,"a":2}', {"a": 2}, id="the last of two keys"),
        pytest.param(b'"\\ud800"', "\ufffd", id="half a surrogate pair"),
        pytest.param(b'"\\ud800\\ud83d\\ude00"', "\ufffd\U0001f600", id="half a surrogate pair, and one"),
        pytest.param(b'"\\\\ud800"', "\\ud800", id="an escaped backslash"),
        pytest.param('"é"'.encode("latin-1"), "\ufffd", id="Latin-1"),
        pytest.param(b'"a\xe2\x82b"', "a\ufffd\ufffdb", id="two bytes of three"),
        pytest.param(b'"\xed\xa0\x80"', "\ufffd\ufffd\ufffd", id="half a surrogate pair in UTF-8"),
        pytest.param(b'"\xf4\x90\x80\x80"', "\ufffd" * 4, id="beyond Unicode"),
        pytest.param(b'"\xc0\xaf"', "\ufffd\ufffd", id="a slash written longer"),
        pytest.param(b'{"a\xff":1,"a\xfe":2}', {"a\ufffd": 2}, id="two keys that become one"),
        pytest.param(b'"\\ud83d\\ude00"', "\U0001f600", id="surrogate pair"),
        pytest.param(b"9" * 4000, int("9" * 4000), id="4000 digits"),
        pytest.param(b"[" * 200 + b"]" * 200, json.loads("[" * 200 + "]" * 200), id="nested 200 deep"),
        pytest.param(b"-0", 0, id="minus zero"),
    ],
)
def test_reads(data: bytes, value: Any) -> None:
    assert jsontext.decode(data) == value


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_refuses_with_a_message(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        jsontext.decode(data)


def test_refuses_the_same_before_json_is_imported() -> None:
    """A plugin meets its first fault in a process that has not imported json; this one has."""
    script = """
import sys
from cnikit import jsontext
for data in eval(sys.stdin.read()):
    for name in [name for name in sys.modules if name.split(".")[0] == "json"]:
        del sys.modules[name]
    try:
        jsontext.decode(data)
    except ValueError:
        pass
"""
    process = subprocess.run(
        [sys.executable, "-c", script],
        input=repr(list(MALFORMED.values())),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b'\n\n{"a": tru}', "Expecting value: line 3 column 7 (char 8)", id="line and column"),
        pytest.param(b"", "Expecting value: line 1 column 1 (char 0)", id="nothing"),
        pytest.param(b'{"mtu": NaN}', "NaN is not JSON", id="NaN"),
        pytest.param(b'{"mtu": 1e999}', "1e999 is too large for a number", id="float beyond range"),
        pytest.param(b"[" * 100_000, "nested too deeply", id="depth"),
    ],
)
def test_says_what_is_wrong_and_where(data: bytes, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        jsontext.decode(data)
    assert str(caught.value) == message


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_what_is_read_can_be_written_and_shown(opening: str, closing: str) -> None:
    text = opening * jsontext.DEEPEST + "1" + closing * jsontext.DEEPEST
    value = jsontext.decode(text.encode())
    assert jsontext.encode(value, indent=None) == text
    assert repr(value).endswith(closing)


REPEATED = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.lists(st.tuples(st.sampled_from("aAb"), inner)).map(tuple),
    max_leaves=20,
)


def _text_of(value: Any) -> str:
    if isinstance(value, tuple):
        return "{" + ",".join(f"{json.dumps(key)}: {_text_of(item)}" for key, item in value) + "}"
    return f"[{','.join(map(_text_of, value))}]" if isinstance(value, list) else json.dumps(value)


@given(REPEATED)
def test_pairs_keep_keys_that_are_repeated(value: Any) -> None:
    data = f" {_text_of(value)}\n".encode()
    assert jsontext.pairs(data) == mended(value)
    assert jsontext.decode(data) == mended(json.loads(data))
