"""Records behave as frozen dataclasses do: the same calls are right and wrong, the same values are equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnikit.value import Value


def answer() -> int:
    return 42


class Point(Value):
    """Two fields with defaults, one of them a function."""

    x: int
    y: int = 0
    ask: Callable[[], int] = answer


class Marked(Point):
    """A record that adds a field."""

    mark: str = ""


class Twin(Value):
    """The fields of Point, another class."""

    x: int
    y: int = 0
    ask: Callable[[], int] = answer


@dataclasses.dataclass(frozen=True)
class Model:
    """What Point is held to."""

    x: int
    y: int = 0
    ask: Callable[[], int] = answer


ARGUMENTS = st.lists(st.integers(0, 3), max_size=4)
NAMED = st.dictionaries(st.sampled_from(["x", "y", "z"]), st.integers(0, 3))


def _built(build: Callable[..., Any], values: list[int], named: dict[str, int]) -> tuple[Any, ...] | None:
    try:
        made = build(*values, **named)
    except TypeError:
        return None
    return made.x, made.y, made.ask


@given(ARGUMENTS, NAMED)
def test_takes_the_arguments_a_dataclass_takes_and_refuses_the_others(values: list[int], named: dict[str, int]) -> None:
    assert _built(Point, values, named) == _built(Model, values, named)


@given(NAMED)
def test_replace_takes_the_fields_a_dataclass_takes(named: dict[str, int]) -> None:
    assert _built(Point(7).replace, [], named) == _built(lambda **n: dataclasses.replace(Model(7), **n), [], named)


@given(ARGUMENTS.filter(lambda v: 1 <= len(v) <= 2), ARGUMENTS.filter(lambda v: 1 <= len(v) <= 2))
def test_equality_and_hash_are_those_of_a_dataclass(one: list[int], other: list[int]) -> None:
    equal = Model(*one) == Model(*other)  # type: ignore[arg-type]
    ours = Point(*one), Point(*other)  # type: ignore[arg-type]
    assert (ours[0] == ours[1]) is equal
    assert (len(set(ours)) == 1) is equal


def test_a_refused_call_names_the_class_and_its_fields() -> None:
    with pytest.raises(TypeError, match=r"^Point has the fields \('x', 'y', 'ask'\), not \(\) \{'x': 1, 'z': 2\}$"):
        Point(x=1, z=2)  # type: ignore[call-arg]


def test_a_function_that_is_a_default_stays_a_function() -> None:
    assert Point(1).ask() == 42


def test_inherited_fields_come_first() -> None:
    assert Marked(1, 2, answer, "m") == Marked(x=1, y=2, mark="m")


def test_a_field_declared_again_keeps_its_place() -> None:
    class Wide(Point):
        y: int = 9

    assert Wide(1, 2, answer).y == 2
    assert Wide(1).y == 9


def test_is_unequal_to_the_same_fields_of_another_class() -> None:
    assert Point(1) != Twin(1)
    assert Point(1) != Marked(1)
    assert Point(1) != (1, 0, answer)


def test_replace_leaves_the_original_alone() -> None:
    original = Marked(1, mark="m")
    assert original.replace(y=5) == Marked(1, 5, answer, "m")
    assert original == Marked(1, 0, answer, "m")


def test_cannot_be_changed() -> None:
    point = Point(1)
    with pytest.raises(AttributeError, match=r"^Point\.x cannot be changed$"):
        point.x = 2  # type: ignore[misc]
    assert point == Point(1)


def test_repr_is_the_call_that_makes_it() -> None:
    class Pair(Value):
        x: int
        text: str = ""

    assert repr(Pair(1, "a\n")) == "Pair(x=1, text='a\\n')"
    assert eval(repr(Pair(1, "a\n")), {"Pair": Pair}) == Pair(1, "a\n")
