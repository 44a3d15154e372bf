"""How well an agent does: avg@k and pass@k by environment and split, with 95 % intervals.

Episodes without a verdict are counted apart, never as zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from turncredit.config import EnvConfig
from turncredit.episode import Group, StopReason
from turncredit.evaluate.statistics import mean_interval, mean_pass_all, mean_pass_at


@dataclass(frozen=True, slots=True)
class Score:
    """What an agent reached in one environment and split."""

    env: str
    split: str
    tasks: int  # that could be judged
    k: int
    avg: float | None  # avg@k: mean reward of k episodes a task; None where nothing could be judged
    interval: tuple[float, float] | None  # of avg@k, 95 %, over tasks
    pass_at: dict[int, float] = field(default_factory=dict)  # pass@1 and pass@k, unbiased
    turns: float = 0.0  # mean of an episode
    tokens: float = 0.0  # generated, mean of an episode
    unjudged: int = 0  # episodes without a verdict
    stops: dict[str, int] = field(default_factory=dict)
    pass_all: dict[int, float] = field(default_factory=dict)  # pass^k, unbiased
    invalid: float | None = None  # share of actions that were malformed
    timeouts: int = 0  # episodes that the environment did not answer in time
    context: float = 0.0  # tokens that were not generated, mean of an episode
    agent: str = "policy"
    by_task: tuple[float | None, ...] = field(default=(), repr=False)  # mean reward of each task, in order


def score(env: EnvConfig, groups: Sequence[Group], k: int, seed: int, agent: str = "policy") -> Score:
    """Sum up the groups of one environment."""
    episodes = [e for group in groups for e in group.episodes]
    rewards = [[e.reward for e in group.judged if e.reward is not None] for group in groups]
    each = [float(np.mean(task)) if task else None for task in rewards]
    by_task = np.array([mean for mean in each if mean is not None])
    passes = [(len(group.judged), sum(bool(e.passed) for e in group.judged)) for group in groups]
    actions = [turn for e in episodes for turn in e.turns]
    return Score(
        env.id, env.split, len(by_task), k,
        avg=float(by_task.mean()) if len(by_task) else None,
        interval=mean_interval(by_task, seed) if len(by_task) else None,
        pass_at={n: value for n in sorted({1, k}) if (value := mean_pass_at(passes, n)) is not None},
        turns=float(np.mean([len(e.turns) for e in episodes])),
        tokens=float(np.mean([e.generated_count for e in episodes])),
        unjudged=sum(e.reward is None for e in episodes),
        stops=dict(Counter(str(e.stop) for e in episodes)),
        pass_all={n: value for n in sorted({1, k}) if (value := mean_pass_all(passes, n)) is not None},
        invalid=float(np.mean([not turn.valid for turn in actions])) if actions else None,
        timeouts=sum(e.stop == StopReason.ENVIRONMENT_TIMEOUT for e in episodes),
        context=float(np.mean([sum(len(s.token_ids) for s in e.segments) - e.generated_count for e in episodes])),
        agent=agent, by_task=tuple(each))
