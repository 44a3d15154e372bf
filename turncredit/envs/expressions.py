"""Arithmetic expressions drawn from a seed: what the math environments ask about."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np

from turncredit.envs.splits import draw_from_split, split_of
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


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What an environment's expressions are made of.

    Raises:
        UserError: numbers that leave too few sets to be split, or an operator that is none.
    """

    smallest: int = 2
    largest: int = 29
    operators: str = "+-*"

    def __post_init__(self) -> None:
        smallest, largest = self.smallest, self.largest
        if not self.operators or set(self.operators) - OPERATORS.keys():
            raise UserError(f"operators is {self.operators!r}: it must be made of {''.join(OPERATORS)}")
        if smallest < 0 or not _can_be_split(range(smallest, largest + 1), self.operators):
            raise UserError(f"smallest is {smallest} and largest is {largest}: smallest must not be negative, and "
                            "largest so much more that there are enough numbers to be split")


def _can_be_split(numbers: range, operators: str) -> bool:
    """Do the shortest expressions have some for training and some for tests? Many numbers always do."""
    pairs = combinations_with_replacement(numbers[:20], 2)
    usable = {split_of(f"{a} {b}") for a, b in pairs for o in operators
              if OPERATORS[o](a, b) not in (a, b) or OPERATORS[o](b, a) not in (a, b)}
    return len(usable) == 2


def draw_expression(rng: np.random.Generator, split: str, level: int, made_of: Ingredients) -> Expression:
    """An expression with `level` operators; for "ood", one operator more.

    Train and the other splits never share the set of numbers that an expression is made of, at whatever level, and
    its value is none of them: the answer does not stand in the question.
    """
    size = level + 1 if split == "ood" else level

    def draw() -> Expression:
        while True:
            numbers = tuple(int(n) for n in rng.integers(made_of.smallest, made_of.largest + 1, size=size + 1))
            drawn = Expression(numbers, tuple(rng.choice(list(made_of.operators), size=size).tolist()))
            if drawn.value not in numbers:
                return drawn

    held_out = "test" if split == "ood" else split  # one level's "ood" has as many operators as the next one's train
    return draw_from_split(held_out, draw, lambda e: " ".join(map(str, sorted(e.numbers))))
