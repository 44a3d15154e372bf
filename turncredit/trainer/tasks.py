"""Which tasks a step trains on: drawn from the run's seed by step, so that there is no position to save."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from turncredit.config import EnvConfig
from turncredit.envs import make
from turncredit.rollout import TaskRef
from turncredit.seeds import seed_of


class TaskSampler:
    """Draws environments by weight; generated tasks from fresh seeds, finite task sets in shuffled passes."""

    def __init__(self, envs: Sequence[EnvConfig], seed: int) -> None:
        self.envs, self.seed = envs, seed
        self._finite: list[int | None] = []
        for env in envs:  # made once here, so that a wrong id or argument is refused at the start
            made = make(env.id, **env.make_arguments)
            self._finite.append(getattr(made.unwrapped, "num_tasks", None))
            made.close()

    def tasks(self, step: int, count: int) -> list[TaskRef]:
        """The `count` tasks of a step."""
        weights = np.array([env.weight for env in self.envs])
        draws = np.random.default_rng(seed_of(self.seed, "environments")).choice(
            len(self.envs), size=(step + 1) * count, p=weights / weights.sum())
        before, now = draws[:step * count], draws[step * count:]
        used = [int((before == i).sum()) for i in range(len(self.envs))]
        refs = []
        for place, i in enumerate(map(int, now)):
            refs.append(self._ref(i, used[i], step, place))
            used[i] += 1
        return refs

    def numbered(self, number: int, count: int) -> TaskRef:
        """Task `number` of the whole run, of which each step has `count`."""
        return self.tasks(number // count, count)[number % count]

    def refill(self, step: int, attempt: int, count: int) -> list[TaskRef]:
        """`count` more tasks for a step, the same at each call; those of finite sets are drawn out of the passes' turn.

        Args:
            attempt: which refill of the step, from 1.
        """
        rng = np.random.default_rng(seed_of(self.seed, "refill", step, attempt))
        weights = np.array([env.weight for env in self.envs])
        refs = []
        for place, i in enumerate(map(int, rng.choice(len(self.envs), size=count, p=weights / weights.sum()))):
            env, size = self.envs[i], self._finite[i]
            index = None if size is None else int(rng.integers(size))
            refs.append(TaskRef(env.id, seed_of(self.seed, "refill", step, attempt, place) >> 32, env.make_arguments,
                                index))
        return refs

    def _ref(self, i: int, position: int, step: int, place: int) -> TaskRef:
        env, size = self.envs[i], self._finite[i]
        index = None
        if size is not None:
            epoch, at = divmod(position, size)
            index = int(np.random.default_rng(seed_of(self.seed, "pass", i, epoch)).permutation(size)[at])
        return TaskRef(env.id, seed_of(self.seed, "task", step, place) >> 32, env.make_arguments, index)
