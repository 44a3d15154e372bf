"""Arithmetic expressions drawn from a seed: what the math environments ask about."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from turncredit.envs.splits import draw_from_split
from turncredit.errors import UserError

OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_BINDING = {"+": 1, "-": 1, "*": 2}


@dataclass(frozen=True, slots=True)
class Expression:
    """numbers[0] operators[0] numbers[1] operators[1] …, with the usual precedence."""

    numbers: tuple[int, ...]
    operators: tuple[str, ...]

    def __str__(self) -> str:
        parts = [str(self.numbers[0])]
        for sign, number in zip(self.operators, self.numbers[1:]):
            parts += [sign, str(number)]
        return " ".join(parts)

    @property
    def next_step(self) -> int:
        """The index of the operator to work out first: the leftmost of the strongest."""
        return max(range(len(self.operators)), key=lambda i: (_BINDING[self.operators[i]], -i))

    def worked_out(self, i: int) -> Expression:
        """With the i-th operator replaced by its value."""
        value = OPERATORS[self.operators[i]](self.numbers[i], self.numbers[i + 1])
        numbers = (*self.numbers[:i], value, *self.numbers[i + 2 :])
        return Expression(numbers, self.operators[:i] + self.operators[i + 1 :])

    @property
    def value(self) -> int:
        """What the whole comes to."""
        rest = self
        while rest.operators:
            rest = rest.worked_out(rest.next_step)
        return rest.numbers[0]


def draw_expression(rng: np.random.Generator, split: str, level: int, smallest: int, largest: int) -> Expression:
    """An expression with `level` operators over numbers from `smallest` to `largest`; for "ood", one operator more.

    Train and test never share the set of numbers that an expression is made of.
    """
    size = level + 1 if split == "ood" else level

    def draw() -> Expression:
        numbers = tuple(int(n) for n in rng.integers(smallest, largest + 1, size=size + 1))
        return Expression(numbers, tuple(rng.choice(list(OPERATORS), size=size).tolist()))

    return draw_from_split(split, draw, lambda e: " ".join(map(str, sorted(e.numbers))))


def checked_range(smallest: int, largest: int) -> tuple[int, int]:
    """The range of numbers, refused where it is too small to be split."""
    if smallest < 0 or largest < smallest + 2:
        raise UserError(f"smallest is {smallest} and largest is {largest}: smallest must not be negative, and largest "
                        "at least 2 more")
    return smallest, largest
