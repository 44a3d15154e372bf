"""What a programming task is drawn from: a statement, a reference solution, and inputs, with parameters in them.

The expected outputs are what the reference gives; that the references do what their statements say is tested
against solutions written apart from them.
"""

from __future__ import annotations

import copy
import functools
import string
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Draw = Callable[[np.random.Generator], Any]
_STDIN = "\n\nimport sys\nprint(solve(sys.stdin.read()))\n"


@dataclass(frozen=True, slots=True)
class Template:
    """A kind of task.

    Attributes:
        name: of the kind; of a function, also the function's.
        level: the difficulty.
        statement: what to compute, with `$name` for a parameter.
        source: the reference, with the same. A function of that name; of a program `solve(text) -> str`.
        inputs: draws each argument; of a program the one text on standard input.
        parameters: draws name -> value.
        held_out: it belongs to the test split, else to the training split.
    """

    name: str
    level: int
    statement: str
    source: str
    inputs: Sequence[Draw]
    parameters: Mapping[str, Draw]
    held_out: bool = False

    def draw(self, rng: np.random.Generator) -> Problem:
        """The task with its parameters filled in."""
        values = {name: draw(rng) for name, draw in self.parameters.items()}
        statement, source = (string.Template(textwrap.dedent(text).strip()).substitute(values)
                             for text in (self.statement, self.source))
        return Problem(self.name, statement, source, self.inputs, values)


@dataclass(frozen=True, slots=True)
class Problem:
    """A task with its parameters filled in."""

    name: str
    statement: str
    source: str
    inputs: Sequence[Draw]
    parameters: Mapping[str, Any]

    @property
    def is_program(self) -> bool:
        """Does it read standard input, rather than take arguments?"""
        return self.source.startswith("def solve(text: str) -> str:")

    @property
    def signature(self) -> str:
        """The function's first line, without the colon."""
        return self.source.partition("\n")[0].removesuffix(":")

    @property
    def solution(self) -> str:
        """The reference as an agent would write it."""
        return self.source + (_STDIN if self.is_program else "\n")

    def cases(self, rng: np.random.Generator, count: int) -> list[tuple[tuple[Any, ...], Any]] | None:
        """Different arguments, each with its expected value, where no value is that of more than half of them.

        None where there are not as many: a composition may come to the same whatever it is given.
        """
        function = _compiled(self.source, "solve" if self.is_program else self.name)
        found: dict[str, tuple[tuple[Any, ...], Any]] = {}
        seen: dict[str, int] = {}
        for _ in range(20 * count):
            args = tuple(draw(rng) for draw in self.inputs)
            if repr(args) in found:
                continue
            value = function(*copy.deepcopy(args))
            if seen.get(repr(value), 0) * 2 >= count:
                continue
            seen[repr(value)] = seen.get(repr(value), 0) + 1
            found[repr(args)] = args, value
            if len(found) == count:
                return list(found.values())
        return None


@functools.lru_cache(maxsize=256)
def _compiled(source: str, name: str) -> Callable[..., Any]:
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # our own references, never an agent's code
    function: Callable[..., Any] = namespace[name]
    return function


def between(low: int, high: int) -> Draw:
    """An int from low to high."""
    return lambda rng: int(rng.integers(low, high + 1))


def one_of(*values: Any) -> Draw:
    """One of the values."""
    return lambda rng: values[int(rng.integers(len(values)))]


def list_of(item: Draw, least: int = 0, most: int = 12) -> Draw:
    """A list of `least` to `most` items; the shortest ones come often, since they are what programs forget."""
    def draw(rng: np.random.Generator) -> list[Any]:
        size = least + int(rng.integers(0, 2)) if rng.random() < 0.2 else int(rng.integers(least, most + 1))
        return [item(rng) for _ in range(size)]

    return draw


def text_of(letters: str, least: int = 0, most: int = 16) -> Draw:
    """A string over an alphabet; a letter that stands there several times comes more often."""
    characters = list_of(one_of(*letters), least, most)
    return lambda rng: "".join(characters(rng))


def lines_of(*rows: Draw) -> Draw:
    """Text of several lines, each drawn by its own."""
    return lambda rng: "".join(f"{row(rng)}\n" for row in rows)
