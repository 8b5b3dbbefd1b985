"""JSON text to values and back, without importing json (4 ms, most of it regular expressions).

Reading uses the interpreter's own C scanner, the one inside `json`; on the first fault the text goes through `json`
itself, whose message names line and column. Writing is ours, for its indent of four. tests/test_jsontext.py holds
both to the standard library's.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# Lists and objects inside each other.
DEEPEST = 200


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if abs(number) == float("inf"):
        raise ValueError(f"{text} is too large for a number")
    return number


class _Context:
    """What the C scanner reads its settings from: json.JSONDecoder's attributes."""

    strict = True
    object_hook = None
    object_pairs_hook: Any = None
    parse_float = staticmethod(_finite)
    parse_int = int
    parse_constant = staticmethod(_refuse)


class _Pairs(_Context):
    object_pairs_hook = tuple


_scan = make_scanner(_Context)  # type: ignore[arg-type]


def decode(data: bytes) -> Any:
    """Return the value of a JSON document in UTF-8.

    Raises ValueError with a message for people when it is none; NaN, Infinity and 1e999, which Python's json lets
    through, are none. Nor is one nested more than DEEPEST deep: what is read can be shown and written, too. No string
    holds half a surrogate pair: see _text.
    """
    text = _text(data)
    stripped = text.strip(" \t\n\r")
    try:
        value, end = _scan(stripped, 0)
    except (StopIteration, RecursionError, ValueError, SystemError):
        # SystemError: the scanner looks for json's exception class, which is not there before json is imported.
        value, end = None, -1
    if end != len(stripped):
        value = _decode_slowly(text)
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(value):
        raise ValueError("nested too deeply")
    return value


def pairs(data: bytes) -> Any:
    """Return the value of a document that decode() takes, each object as a tuple of its pairs.

    So a key that is given twice can be seen.
    """
    return make_scanner(_Pairs)(_text(data).strip(" \t\n\r"), 0)[0]  # type: ignore[arg-type]


def _text(data: bytes) -> str:
    """Return a document's text, in whose strings U+FFFD stands for what is no character, as in Go's encoding/json.

    That is each byte that is not part of UTF-8, and each escape that is half a surrogate pair.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "surrogateescape").translate(dict.fromkeys(range(0xDC80, 0xDD00), 0xFFFD))
    return _without_halves(text) if "\\ud" in text or "\\uD" in text else text


def _without_halves(text: str) -> str:
    import re

    # A backslash that is escaped begins no escape, and a whole pair is a character.
    x = "[0-9a-fA-F]"
    escapes = rf"\\\\|\\u[dD][89abAB]{x}{x}\\u[dD][c-fC-F]{x}{x}|(\\u[dD][89a-fA-F]{x}{x})"
    return re.sub(escapes, lambda found: r"\ufffd" if found[1] else found[0], text)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
    return bool(level)


def _decode_slowly(text: str) -> Any:
    import json

    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def encode(value: Any, indent: int | None = 4, level: int = 0) -> str:
    """Return value as JSON in ASCII, indented by four as the reference prints it, or in one line with indent None."""
    if isinstance(value, str):
        return str(encode_basestring_ascii(value))
    if value is True or value is False or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict):
        parts = [
            f"{encode_basestring_ascii(k)}:{'' if indent is None else ' '}{encode(v, indent, level + 1)}"
            for k, v in value.items()
        ]
        opening, closing = "{}"
    else:
        parts = [encode(item, indent, level + 1) for item in value]
        opening, closing = "[]"
    if not parts or indent is None:
        return opening + ",".join(parts) + closing
    margin = "\n" + " " * indent * level
    inner = margin + " " * indent
    return opening + inner + ("," + inner).join(parts) + margin + closing
