"""Two agents on the same tasks: the difference, its interval, and who won how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from turncredit.config import EnvConfig
from turncredit.episode import Group
from turncredit.errors import UserError
from turncredit.evaluate.statistics import bootstrap_interval


@dataclass(frozen=True, slots=True)
class Comparison:
    """One agent against another in one environment, task by task."""

    env: str
    split: str
    tasks: int  # that both could be judged on
    difference: float | None  # of the mean rewards; None where no task was judged for both
    interval: tuple[float, float] | None  # 95 %, bootstrapped over tasks
    win: int
    tie: int
    loss: int


def compare(env: EnvConfig, ours: Sequence[Group], theirs: Sequence[Group], seed: int) -> Comparison:
    """The difference "ours minus theirs" over the tasks that both were judged on.

    Raises:
        UserError: the two were not sampled on the same tasks.
    """
    if len(ours) != len(theirs):
        raise UserError(f"{env.id}: {len(ours)} tasks cannot be compared with {len(theirs)}: take the same seed")
    differences = []
    for one, other in zip(ours, theirs):
        a, b = one.episodes[0], other.episodes[0]
        if (a.env_id, a.seed) != (b.env_id, b.seed) or (a.task_id and b.task_id and a.task_id != b.task_id):
            raise UserError(f"{env.id}: task {a.task_id!r} cannot be compared with {b.task_id!r}: take the same seed")
        means = [[e.reward for e in group.judged if e.reward is not None] for group in (one, other)]
        if all(means):
            differences.append(np.mean(means[0]) - np.mean(means[1]))
    by_task = np.array(differences)
    known = len(by_task) > 0
    return Comparison(env.id, env.split, len(by_task),
                      difference=float(by_task.mean()) if known else None,
                      interval=bootstrap_interval(by_task, seed) if known else None,
                      win=int((by_task > 1e-9).sum()), tie=int((abs(by_task) <= 1e-9).sum()),
                      loss=int((by_task < -1e-9).sum()))
