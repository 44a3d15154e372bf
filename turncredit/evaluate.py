"""How well an agent does: avg@k and pass@k by environment and split, with 95 % intervals.

Episodes without a verdict are counted apart, never as zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Any

import numpy as np

from turncredit.config import EnvConfig
from turncredit.envs import make
from turncredit.episode import Group
from turncredit.rollout import Rollout, TaskRef
from turncredit.seeds import seed_of

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Score:
    """What an agent reached in one environment and split."""

    env: str
    split: str
    tasks: int  # that could be judged
    k: int
    avg: float | None  # avg@k: mean reward of k episodes a task; None where nothing could be judged
    interval: tuple[float, float] | None  # of avg@k, 95 %, bootstrapped over tasks
    pass_at: dict[int, float] = field(default_factory=dict)  # pass@1 and pass@k, unbiased
    turns: float = 0.0  # mean of an episode
    tokens: float = 0.0  # generated, mean of an episode
    unjudged: int = 0  # episodes without a verdict
    stops: dict[str, int] = field(default_factory=dict)


def evaluate(rollout: Rollout, envs: Sequence[EnvConfig], tasks: int, k: int, seed: int,
             on_group: Callable[[Group], None] | None = None, side_by_side: int = 64) -> list[Score]:
    """Sample k episodes of `tasks` tasks in each environment.

    Args:
        rollout: joins the agent and the environments.
        envs: which, with their splits and arguments.
        tasks: how many of each; all of a smaller finite task set.
        k: episodes a task.
        seed: of the tasks and of the agent's draws: the same seed, the same tasks.
        on_group: called with each task's finished episodes.
        side_by_side: episodes that run at once.
    Raises:
        UserError: an environment cannot be made, before any of them is evaluated.
    """
    scores = []
    for env, refs in [(env, list(task_refs(env, tasks, seed))) for env in envs]:
        at_once = max(1, side_by_side // k)
        groups: list[Group] = []
        for start in range(0, len(refs), at_once):
            groups += rollout.sample_groups(refs[start:start + at_once], k, seed_of(seed, "evaluate", env.id, start),
                                            on_group=on_group)
        scores.append(score(env, groups, k, seed))
    return scores


def task_refs(env: EnvConfig, tasks: int, seed: int) -> Iterator[TaskRef]:
    """The tasks to evaluate on: the first of a finite set, else drawn from seeds."""
    made = make(env.id, **env.make_arguments)
    finite: int | None = getattr(made.unwrapped, "num_tasks", None)
    made.close()
    for i in range(tasks if finite is None else min(tasks, finite)):
        yield TaskRef(env.id, seed_of(seed, "task", env.id, i) >> 32, env.make_arguments, None if finite is None else i)


def score(env: EnvConfig, groups: Sequence[Group], k: int, seed: int) -> Score:
    """Sum up the groups of one environment."""
    episodes = [e for group in groups for e in group.episodes]
    rewards = [[e.reward for e in group.judged if e.reward is not None] for group in groups]
    by_task = np.array([np.mean(task) for task in rewards if task])
    passes = [(len(group.judged), sum(bool(e.passed) for e in group.judged)) for group in groups]
    return Score(
        env.id, env.split, len(by_task), k,
        avg=float(by_task.mean()) if len(by_task) else None,
        interval=bootstrap_interval(by_task, seed) if len(by_task) else None,
        pass_at={n: value for n in sorted({1, k}) if (value := mean_pass_at(passes, n)) is not None},
        turns=float(np.mean([len(e.turns) for e in episodes])),
        tokens=float(np.mean([e.generated_count for e in episodes])),
        unjudged=sum(e.reward is None for e in episodes),
        stops=dict(Counter(str(e.stop) for e in episodes)))


def mean_pass_at(passes: Sequence[tuple[int, int]], k: int) -> float | None:
    """The mean of pass@k over tasks with at least k judged episodes; None where there is none."""
    values = [pass_at_k(n, c, k) for n, c in passes if n >= k]
    return float(np.mean(values)) if values else None


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate 1 - C(n - c, k) / C(n, k) from c passes in n episodes (arXiv 2107.03374, equation 1)."""
    return 1.0 - comb(n - c, k) / comb(n, k)


def bootstrap_interval(by_task: Any, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of the mean, resampling tasks (episodes of one task are not independent)."""
    rng = np.random.default_rng(seed)
    means = by_task[rng.integers(len(by_task), size=(RESAMPLES, len(by_task)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
