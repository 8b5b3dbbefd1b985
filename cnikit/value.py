"""Records: a class whose annotated names are its fields, in order, with their defaults.

    class Route(Value):
        dst: str
        gw: str = ""

    Route("0.0.0.0/0", gw="10.1.0.1").replace(gw="10.1.0.2")

It reads like a frozen dataclass, and type checkers treat it as one. `dataclasses` and `typing.NamedTuple` take 7 to
10 ms to import, longer than an ADD spends in the kernel; this takes nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

    _T = TypeVar("_T")
else:

    def dataclass_transform(**_: bool) -> Callable[[_T], _T]:
        """Stand in for typing.dataclass_transform, which only type checkers need."""
        return lambda cls: cls


@dataclass_transform(frozen_default=True)
class Value:
    """Base of all records. Compared by fields; never changed after it is made."""

    _fields: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        """Collect the field names from the annotations, inherited ones first, and their defaults."""
        own = cls.__dict__
        cls._fields = tuple(dict.fromkeys((*cls._fields, *own.get("__annotations__", ()))))
        # hasattr() would take most of a class's making: what it does not find becomes an exception, with its text.
        cls._defaults = {**cls._defaults, **{name: own[name] for name in cls._fields if name in own}}

    def __init__(self, *values: Any, **named: Any) -> None:
        """Take the fields in order or by name. Raises TypeError where a function with these parameters would."""
        own, fields = self.__dict__, self._fields
        # Defaults go into the instance too: read through the class, a function would become a method.
        own.update(self._defaults)
        own.update(zip(fields, values, strict=False))
        own.update(named)
        known = not named or named.keys() <= set(fields[len(values) :])
        if len(values) > len(fields) or len(own) < len(fields) or not known:
            raise TypeError(f"{type(self).__name__} has the fields {fields}, not {values} {named}")

    def __setattr__(self, name: str, _: object) -> None:
        """Refuse; see replace()."""
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")

    def __eq__(self, other: object) -> bool:
        """Equal when of the same class and equal in every field."""
        if type(self) is not type(other):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._fields)

    def __hash__(self) -> int:
        """Agree with ==, so that records can be keys."""
        return hash(tuple(getattr(self, name) for name in self._fields))

    def __repr__(self) -> str:
        """Show the constructor call that makes this value."""
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({shown})"

    def replace(self, **changes: Any) -> Self:
        """Return a copy with these fields changed."""
        return type(self)(**{**self.__dict__, **changes})
