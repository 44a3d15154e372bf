"""An environment for workers, registered by the main program alone."""

from __future__ import annotations

import os
import time

import numpy as np

from turncredit.envs import Reply, TextEnv
from turncredit.episode import Outcome, Task, Verdict


class Says:
    """Where an episode runs, turn by turn; a turn takes `seconds`. Rewarded by a draw, so that groups differ."""

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        return Verdict.of(len(outcome.turns[0].action) % 2 == 0)


class Where(TextEnv):
    verifier = Says()
    turn_limit = 4

    def __init__(self, seconds: float = 0.1, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.seconds = seconds

    def make_task(self, rng: np.random.Generator) -> Task:
        return Task(f"Say {rng.integers(1000)}.", split=self.split)

    def respond(self, action: str) -> Reply:
        time.sleep(self.seconds)
        if action == "break":
            raise ConnectionError("the database is away")
        return Reply(str(os.getpid()))
