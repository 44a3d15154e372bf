"""The calculator's task under another rule: from left to right, no operator comes before another."""

from __future__ import annotations

import numpy as np

from turncredit.envs.calculator import Calculator
from turncredit.envs.expressions import Expression, draw_expression
from turncredit.episode import Task


class LeftToRight(Calculator):
    """As on a cheap pocket calculator: an agent that learnt precedence has to unlearn it here."""

    instructions = "Work out the expression from left to right, one operation at a time. Then answer with the number."

    def make_task(self, rng: np.random.Generator) -> Task:
        """The same splits of numbers as the calculator's."""
        while True:
            drawn = draw_expression(rng, self.split, self.level, self.made_of)
            left = drawn
            while left.operators:
                left = left.worked_out(0)
            value = left.numbers[0]
            if value not in drawn.numbers:  # the answer does not stand in the question
                break
        return Task(f"What is {drawn}?", {"answer": value, "expression": drawn}, self.split, self.level)

    def next_operator(self, left: Expression) -> int:
        """The leftmost."""
        return 0
