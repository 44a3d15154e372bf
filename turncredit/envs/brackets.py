"""The calculator's task with brackets: what an agent that learnt precedence alone has never seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from turncredit.envs.calculator import Calculator
from turncredit.envs.expressions import Expression, draw_expression
from turncredit.episode import Task


class Brackets(Calculator):
    """Two operators, one of them in brackets: that one comes first, whatever its rank."""

    levels = 1

    def make_task(self, rng: np.random.Generator) -> Task:
        """The same splits of numbers as the calculator's; out of distribution numbers three times as large."""
        size, made_of = 2, self.made_of
        if self.split == "ood":
            size, made_of = 1, replace(made_of, smallest=made_of.largest + 1, largest=3 * made_of.largest)
        while True:
            drawn = draw_expression(rng, self.split, size, made_of)
            first = int(rng.integers(2))
            value = drawn.worked_out(first).value
            if value not in drawn.numbers:  # the answer does not stand in the question
                break
        a, b, c = drawn.numbers
        x, y = drawn.operators
        text = f"( {a} {x} {b} ) {y} {c}" if first == 0 else f"{a} {x} ( {b} {y} {c} )"
        return Task(f"What is {text}?", {"answer": value, "expression": drawn, "first": first}, self.split, self.level)

    def next_operator(self, left: Expression) -> int:
        """The bracketed one, as long as there are two."""
        return int(self.task.hidden["first"]) if len(left.operators) == 2 else left.next_step
