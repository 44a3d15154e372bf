"""Compositions: a list goes through several steps, and ends as one number. The steps' names say the split."""

from __future__ import annotations

import numpy as np

from turncredit.envs.programs.template import Problem, Template, between, list_of
from turncredit.envs.splits import draw_from_split

LEVEL = 4
_INPUT = [list_of(between(-20, 40), most=14)]
_K = {"k": between(2, 5)}

# name -> (what it does, the expression that does it)
STEPS = {
    "drop": ("drop the numbers divisible by $k", "[x for x in items if x % $k]"),
    "keep": ("keep the numbers that are at least $k", "[x for x in items if x >= $k]"),
    "scale": ("multiply each number by $k", "[x * $k for x in items]"),
    "remainder": ("replace each number x by the remainder of x * x divided by $k", "[x * x % $k for x in items]"),
    "rotate": ("move the first $k numbers to the end, in their order (all of them, where there are no more)",
               "items[$k:] + items[:$k]"),
    "thin": ("keep the first of every $k numbers (the indices 0, $k, 2*$k, …)", "items[::$k]"),
    "differences": ("replace the list by the differences of each number minus the one before it",
                    "[b - a for a, b in zip(items, items[1:])]"),
    "running": ("replace each number by the sum of it and all before it",
                "[sum(items[:i + 1]) for i in range(len(items))]"),
    "reverse": ("reverse the list", "items[::-1]"),
    "weigh": ("multiply each number by its index (from 0)", "[i * x for i, x in enumerate(items)]"),
    "unique": ("drop every number that already stands earlier in the list", "list(dict.fromkeys(items))"),
    "sort": ("sort the list in ascending order", "sorted(items)"),
}
ENDS = {
    "sum": ("return the sum of the list", "sum(items)"),
    "count": ("return how many of the numbers are greater than $k", "sum(x > $k for x in items)"),
    "largest": ("return the largest number (0 for an empty list)", "max(items, default=0)"),
    "alternating": ("return the first number minus the second plus the third and so on (0 for an empty list)",
                    "sum(items[::2]) - sum(items[1::2])"),
    "last": ("return the last number (0 for an empty list)", "items[-1] if items else 0"),
    "ascents": ("return how many numbers are greater than the number right before them",
                "sum(b > a for a, b in zip(items, items[1:]))"),
}


def draw_pipeline(rng: np.random.Generator, split: str, steps: int = 3) -> Problem:
    """A composition of `steps` different steps and an end, whose names in order belong to the split."""
    def draw() -> list[str]:
        return [*map(str, rng.choice(list(STEPS), size=steps, replace=False)), str(rng.choice(list(ENDS)))]

    *names, end = draw_from_split(split, draw, lambda drawn: " ".join(sorted(drawn)))
    lines, told = [], []
    for number, (words, code) in enumerate([*(STEPS[name] for name in names), ENDS[end]], 1):
        drawn = Template("", LEVEL, f"{number}. {words}", code, [], _K).draw(rng)
        told.append(drawn.statement)
        lines.append(drawn.source)
    body = [*(f"    items = {line}" for line in lines[:-1]), f"    return {lines[-1]}"]
    source = "\n".join(["def transform(items: list[int]) -> int:", *body])
    statement = "\n".join(["Take `items` through these steps, in this order:", *told])
    return Problem("transform", statement, source, _INPUT, {"steps": (*names, end)})
