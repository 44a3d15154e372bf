"""Inputs near those of a problem's tests, and which of them are valid, as far as the tests' own inputs can tell.

The rules for a problem's inputs are in its prose. So an input counts as valid where it keeps all that the inputs of
the tests have in common: types, the range of every number and length, letters, order and distinctness of lists, and
how the numbers and lengths of one call compare (`k <= len(nums)`, `len(edges) == n - 1`).

The standard library alone is imported: benchmarks/witness.py sends this file into a sandbox as text.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Arguments = tuple[Sequence[Any], Mapping[str, Any]]  # positional, and by name
_MOST_COMPARED = 40  # numbers of one call that are compared with each other


def near(value: Any, draw: random.Random) -> Any:
    """A value of the same type beside this one; the value itself where there is none."""
    kind = type(value)
    if kind is bool:
        return not value
    if kind is int:
        return value + draw.choice((-2, -1, 1, 2))
    if kind is float:
        return value + draw.choice((-1.5, 0.25, 2.0))
    if kind is str and value:
        at = draw.randrange(len(value))
        return draw.choice((value[:at] + value[at + 1:], value[:at] + draw.choice(value) + value[at:], value[::-1]))
    if kind is list and value:
        at = draw.randrange(len(value))
        return draw.choice((value[:at] + value[at + 1:], value[::-1], [*value, value[at]],
                            [*value[:at], near(value[at], draw), *value[at + 1:]]))
    return value


def valid_near(calls: Sequence[Arguments], draw: random.Random, tries: int) -> Iterator[Arguments]:
    """Inputs near those of the calls that keep what these have in common, none of them twice.

    Args:
        tries: inputs drawn, of which most keep nothing; one to three changes each.
    """
    common = Common(calls)
    seen = {repr(call) for call in calls}
    for number in range(tries if calls else 0):
        args, kwargs = calls[number % len(calls)]
        args, kwargs = list(args), dict(kwargs)
        for _ in range(draw.choice((1, 1, 2, 3))):
            places: list[Any] = [*range(len(args)), *kwargs]
            if not places:
                return
            place = draw.choice(places)
            holder: Any = args if isinstance(place, int) else kwargs
            holder[place] = near(holder[place], draw)
        found = tuple(args), kwargs
        if repr(found) not in seen and common.keeps(found):
            seen.add(repr(found))
            yield found


class Common:
    """What the inputs of several calls have in common."""

    def __init__(self, calls: Iterable[Arguments]) -> None:
        looks = [_Look(call) for call in calls]
        self.kinds: dict[str, set[type]] = {}
        self.numbers: dict[str, tuple[float, float]] = {}
        self.letters: dict[str, set[str]] = {}
        for look in looks:
            for path, kinds in look.kinds.items():
                self.kinds.setdefault(path, set()).update(kinds)
            for path, values in look.numbers.items():
                low, high = self.numbers.get(path, (min(values), max(values)))
                self.numbers[path] = min(low, *values), max(high, *values)
            for path, letters in look.letters.items():
                self.letters.setdefault(path, set()).update(letters)
        self.broken = set().union(*(look.broken for look in looks))
        self.compared = set.intersection(*(look.compared for look in looks)) if looks else set()

    def keeps(self, call: Arguments) -> bool:
        """Has this input all that the others have in common?"""
        look = _Look(call)
        return (all(kinds <= self.kinds.get(path, set()) for path, kinds in look.kinds.items())
                and all(self.numbers[path][0] <= min(values) and max(values) <= self.numbers[path][1]
                        for path, values in look.numbers.items())
                and all(letters <= self.letters[path] for path, letters in look.letters.items())
                and look.broken <= self.broken and self.compared <= look.compared)


class _Look:
    """What one call's input is like: its parts by path, and what holds of them."""

    def __init__(self, call: Arguments) -> None:
        self.kinds: dict[str, set[type]] = {}
        self.numbers: dict[str, list[float]] = {}
        self.letters: dict[str, set[str]] = {}
        self.broken: set[tuple[str, str]] = set()  # the path of a sequence, and a property that it has not
        self.compared: set[tuple[str, Any, str]] = set()
        args, kwargs = call
        for name, value in [*enumerate(args), *kwargs.items()]:
            self._part(value, str(name))
        ends: dict[str, float] = {}
        for path, values in self.numbers.items():
            ends[f"{path} min"], ends[f"{path} max"] = min(values), max(values)
        for (a, x), (b, y) in itertools.permutations(sorted(ends.items())[:_MOST_COMPARED], 2):
            if x <= y:
                self.compared.add((a, "<=", b))
            if x < y:
                self.compared.add((a, "<", b))
            if -2 <= x - y <= 2:
                self.compared.add((a, x - y, b))

    def _part(self, value: Any, path: str) -> None:
        kind = type(value)
        self.kinds.setdefault(path, set()).add(kind)
        if kind in (int, float):
            self.numbers.setdefault(path, []).append(value)
        elif kind is str:
            self.numbers.setdefault(f"{path}.len", []).append(len(value))
            self.letters.setdefault(path, set()).update(value)
        elif kind in (list, tuple, set, frozenset, dict):
            items = list(value.items()) if kind is dict else list(value)
            self.numbers.setdefault(f"{path}.len", []).append(len(items))
            self.broken |= {(path, name) for name, holds in _PROPERTIES.items() if not holds(items)}
            for number, item in enumerate(items):
                self._part(item, f"{path}[{number}]" if kind is tuple else f"{path}[]")
        elif hasattr(value, "__dict__"):  # a node of a list or tree
            self._part(list(vars(value).values()), f"{path}.")


def _every(relation: Callable[[Any, Any], bool]) -> Callable[[list[Any]], bool]:
    def holds(items: list[Any]) -> bool:
        try:
            return all(relation(a, b) for a, b in itertools.pairwise(items))
        except TypeError:
            return False
    return holds


def _counts(items: list[Any]) -> bool:
    """Are they the numbers from 0 or 1 on, in any order?"""
    have = sorted(map(repr, items))
    return any(have == sorted(map(repr, range(first, first + len(items)))) for first in (0, 1))


_PROPERTIES: dict[str, Callable[[list[Any]], bool]] = {
    "rises": _every(lambda a, b: bool(a < b)), "never falls": _every(lambda a, b: bool(a <= b)),
    "drops": _every(lambda a, b: bool(a > b)), "never rises": _every(lambda a, b: bool(a >= b)),
    "distinct": lambda items: len(set(map(repr, items))) == len(items),
    "equally long": lambda items: len({len(i) if hasattr(i, "__len__") else -1 for i in items}) < 2,
    "counts": _counts,
    "palindrome": lambda items: items == items[::-1],
}
