"""Math in one turn: an expression, an answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from turncredit.envs.expressions import Ingredients, draw_expression
from turncredit.envs.text_env import Reply, TextEnv
from turncredit.episode import Task
from turncredit.verifiers import MathAnswer


class Arithmetic(TextEnv):
    """Work out an expression without help."""

    instructions = "Work out the expression. Answer with the number alone."
    verifier = MathAnswer(worked_out=True)
    levels = 3
    turn_limit = 1

    def __init__(self, smallest: int = 2, largest: int = 29, operators: str = "+-*", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.made_of = Ingredients(smallest, largest, operators)

    def make_task(self, rng: np.random.Generator) -> Task:
        """`level` operators; numbers disjoint between train and test, one operator more out of distribution."""
        expression = draw_expression(rng, self.split, self.level, self.made_of)
        return Task(f"What is {expression}?", {"answer": expression.value}, self.split, self.level)

    def respond(self, action: str) -> Reply:
        """The action is the answer."""
        return Reply(done=True, answer=action)

    def expert_action(self) -> str:
        """The answer."""
        return str(self.task.hidden["answer"])
