"""Math over several turns, with a calculator that works out one operation at a time."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from turncredit.envs.expressions import OPERATORS, Expression, Ingredients, draw_expression
from turncredit.envs.tools import ToolEnv, ToolError, tool
from turncredit.episode import Task
from turncredit.errors import UserError
from turncredit.verifiers import MathAnswer

LARGEST = 10**12


class Calculator(ToolEnv):
    """An expression with several operators: the agent must find the order, and carry the results along."""

    instructions = "Work out the expression, one operation at a time. Then answer with the number."
    verifier = MathAnswer(worked_out=True)
    levels = 4

    def __init__(self, smallest: int = 2, largest: int = 29, operators: str = "+-*", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.made_of = Ingredients(smallest, largest, operators)
        if largest ** (self.level + 1) > LARGEST:
            raise UserError(f"largest is {largest}: at level {self.level} results outgrow the calculator's display")

    def make_task(self, rng: np.random.Generator) -> Task:
        """`level` operators; numbers disjoint between train and test, one operator more out of distribution."""
        expression = draw_expression(rng, self.split, self.level, self.made_of)
        return Task(f"What is {expression}?", {"answer": expression.value, "expression": expression},
                    self.split, self.level)

    @tool
    def calculate(self, a: int, op: Literal["+", "-", "*"], b: int) -> str:
        """Work out one operation.

        Args:
            a: the left number.
            op: the operator.
            b: the right number.
        """
        if max(abs(a), abs(b)) > LARGEST:
            raise ToolError("the calculator's display is too small for that")
        return str(OPERATORS[op](a, b))

    def start(self) -> None:
        """The scripted solution keeps what is left of the expression."""
        self._left: Expression = self.task.hidden["expression"]

    def next_operator(self, left: Expression) -> int:
        """Which operator to work out first."""
        return left.next_step

    def expert_action(self) -> str:
        """The next operation by precedence; at the end the number."""
        left = self._left
        if not left.operators:
            return str(left.numbers[0])
        i = self.next_operator(left)
        self._left = left.worked_out(i)
        return self.call("calculate", a=left.numbers[i], op=left.operators[i], b=left.numbers[i + 1])
