"""When a candidate's value is the expected one: by type and value, never by the value's own `__eq__`.

This file is also sent to the process that runs given asserts, as text: it imports the standard library alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Equality(NamedTuple):  # a dataclass takes a millisecond to make, in each process that runs given asserts
    """How much a value may differ from the expected one.

    bool is never int, and NaN equals nothing but an expected NaN. Keys and the members of sets are compared
    exactly, whatever the tolerance.

    Attributes:
        relative: a float may be off by this share of the expected one's magnitude.
        absolute: or by this much.
        int_for_float: an int stands for a float of the same value, as in `f(4) == 2.0`.
        float_for_int: a float stands for an int of the same value: for answers that are "a number".
        tuple_for_list: lists and tuples are one type: for tests that went through JSON.
    """

    relative: float = 0.0
    absolute: float = 0.0
    int_for_float: bool = True
    float_for_int: bool = False
    tuple_for_list: bool = False

    def equal(self, expected: Any, actual: Any) -> bool:
        """Is `actual` the expected value?"""
        return self.difference(expected, actual) is None

    def difference(self, expected: Any, actual: Any) -> str | None:
        """Where and how `actual` first differs, or None where it is the expected value."""
        wanted, kind = type(expected), type(actual)
        if wanted in (int, float) and kind in (int, float):
            return None if self._numbers(expected, actual) else _mismatch(expected, actual)
        if wanted in (list, tuple) and (kind is wanted or (self.tuple_for_list and kind in (list, tuple))):
            return self._sequences(expected, actual)
        if kind is not wanted:
            return f"should be {_named(wanted)}, is {_named(kind)}"
        if wanted is dict:
            return self._dicts(expected, actual)
        if wanted in (set, frozenset):
            same = {exact_key(x) for x in expected} == {exact_key(x) for x in actual}
        elif wanted is complex:
            same = self._numbers(expected.real, actual.real) and self._numbers(expected.imag, actual.imag)
        else:
            same = bool(expected == actual)
        return None if same else _mismatch(expected, actual)

    def _numbers(self, expected: float, actual: float) -> bool:
        if type(expected) is not type(actual):
            allowed = self.int_for_float if type(expected) is float else self.float_for_int
            if not allowed:
                return False
        if expected == actual:
            return True
        if type(expected) is int and type(actual) is int:
            return False
        if expected != expected or actual != actual:  # NaN; math.isnan fails on large ints
            return expected != expected and actual != actual
        if math.inf in (abs(expected), abs(actual)):
            return False
        try:
            return abs(expected - actual) <= max(self.absolute, self.relative * abs(expected))
        except OverflowError:  # an int beyond every float
            return False

    def _sequences(self, expected: Any, actual: Any) -> str | None:
        if len(expected) != len(actual):
            return f"should have {len(expected)} items, has {len(actual)}"
        return _first(self.difference, ((i, a, b) for i, (a, b) in enumerate(zip(expected, actual))))

    def _dicts(self, expected: dict[Any, Any], actual: dict[Any, Any]) -> str | None:
        there = {exact_key(key): value for key, value in actual.items()}
        if len(expected) != len(actual):
            return f"should have {len(expected)} keys, has {len(actual)}"
        for key in expected:
            if exact_key(key) not in there:
                return f"lacks the key {shown(key)}"
        return _first(self.difference, ((shown(k), v, there[exact_key(k)]) for k, v in expected.items()))


def exact_key(value: Any) -> tuple[Any, ...]:
    """A hashable value that equals another's exactly where type and value do: 1, 1.0 and True are three."""
    if type(value) in (tuple, frozenset):
        return type(value), type(value)(exact_key(item) for item in value)
    if type(value) is float and math.isnan(value):
        return float, "nan"
    return type(value), value


def shown(value: Any, length: int = 200) -> str:
    """A value's repr, cut; ints beyond the limit of decimal conversion by their size."""
    try:
        text = repr(value)
    except (ValueError, RecursionError) as error:
        text = f"<{type(value).__name__}: {error}>"
    return text if len(text) <= length else f"{text[:length]}…"


def _first(difference: Callable[[Any, Any], str | None], items: Any) -> str | None:
    for where, expected, actual in items:
        found = difference(expected, actual)
        if found is not None:
            return f"[{where}]{'' if found.startswith('[') else ': '}{found}"
    return None


def _mismatch(expected: Any, actual: Any) -> str:
    return f"should be {shown(expected)}, is {shown(actual)}"


def _named(kind: type) -> str:
    return "None" if kind is type(None) else kind.__name__
