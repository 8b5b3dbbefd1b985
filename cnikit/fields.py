"""Typed reads from a configuration. An error names the key's whole path: `ipam.ranges[0][1].subnet: ...`.

Keys match whatever their case and the last one wins, as in the reference (Go's encoding/json), and null is as good
as absent. Unknown keys are nobody's business. A number without a fraction is an integer, however it is written.
"""

from __future__ import annotations

from cnikit.errors import CniError, invalid_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    _T = TypeVar("_T")

_NAMES = {str: "string", int: "integer", bool: "boolean", dict: "object", list: "list", float: "number"}


def type_name(value: object) -> str:
    """Return what JSON calls the type of a decoded value."""
    return _NAMES.get(type(value), "null")


class Fields:
    """One JSON object, and where it stands in the document."""

    __slots__ = ("_values", "path")

    def __init__(self, raw: dict[str, Any], path: str = "") -> None:
        self._values = {key.lower(): value for key, value in raw.items() if value is not None}
        self.path = path

    def where(self, key: str) -> str:
        """Return the key's path from the top of the document."""
        return f"{self.path}.{key}" if self.path else key

    def invalid(self, key: str, why: str, details: str = "") -> CniError:
        """Make the error that says what is wrong with the value at key."""
        return invalid_config(self.where(key), why, details)

    def has(self, key: str) -> bool:
        """Tell whether the key is there and not null."""
        return key.lower() in self._values

    def raw(self, key: str) -> Any:
        """Return the value as JSON gave it, None when absent."""
        return self._values.get(key.lower())

    def _typed(self, key: str, wanted: type) -> Any:
        value = self._values.get(key.lower())
        # bool is a subclass of int, yet true is no number.
        if value is not None and type(value) is not wanted:
            if wanted is int and type(value) is float and value.is_integer():
                return int(value)  # libcni writes anew what it reads, 1500.0 as 1500
            raise self.invalid(key, f"expected {_NAMES[wanted]}, got {type_name(value)}")
        if isinstance(value, str) and (fault := _text_fault(value)):
            raise self.invalid(key, fault)
        return value

    def string(self, key: str, default: str = "") -> str:
        """Read a string."""
        value = self._typed(key, str)
        return default if value is None else str(value)

    def parsed(self, key: str, parse: Callable[[str], _T]) -> _T | None:
        """Read a string by its own syntax, whose ValueError becomes this key's error; None when absent or empty."""
        text = self.string(key)
        if not text:
            return None
        try:
            return parse(text)
        except ValueError as e:
            raise self.invalid(key, str(e)) from None

    def boolean(self, key: str) -> bool:
        """Read a boolean; absent is false."""
        return bool(self._typed(key, bool))

    def integer(self, key: str, default: int = 0, low: int = 0, high: int = 2**32 - 1) -> int:
        """Read an integer within low..high, both included."""
        value = self.optional_integer(key, low, high)
        return default if value is None else value

    def optional_integer(self, key: str, low: int = 0, high: int = 2**32 - 1) -> int | None:
        """Read an integer within low..high, None when absent."""
        value = self._typed(key, int)
        if value is None:
            return None
        if not low <= value <= high:
            raise self.invalid(key, f"{value} is not in {low}..{high}")
        return int(value)

    def object(self, key: str) -> Fields:
        """Read an object; absent is one without keys."""
        return Fields(self._typed(key, dict) or {}, self.where(key))

    def strings(self, key: str) -> tuple[str, ...]:
        """Read a list of strings; null among them is an empty one."""
        return tuple(item or "" for item in self._items(key, str))

    def objects(self, key: str) -> tuple[Fields, ...]:
        """Read a list of objects."""
        return _objects(self._typed(key, list) or [], self.where(key))

    def lists(self, key: str) -> tuple[tuple[Fields, ...], ...]:
        """Read a list of lists of objects (host-local's range sets)."""
        path = self.where(key)
        return tuple(_objects(item, f"{path}[{i}]") for i, item in enumerate(self._items(key, list)))

    def _items(self, key: str, wanted: type) -> list[Any]:
        return _checked(self._typed(key, list) or [], wanted, self.where(key))


def _checked(items: list[Any], wanted: type, path: str) -> list[Any]:
    for i, item in enumerate(items):
        if type(item) is not wanted and not (item is None and wanted is str):
            raise invalid_config(f"{path}[{i}]", f"expected {_NAMES[wanted]}, got {type_name(item)}")
        if isinstance(item, str) and (fault := _text_fault(item)):
            raise invalid_config(f"{path}[{i}]", fault)
    return items


def _text_fault(text: str) -> str:
    """Say what no path, name or address can hold, "" when it is not there."""
    return "holds a NUL" if "\0" in text else ""


def _objects(items: list[Any], path: str) -> tuple[Fields, ...]:
    return tuple(Fields(item, f"{path}[{i}]") for i, item in enumerate(_checked(items, dict, path)))
