"""Where a step's groups come from: sampled when they are wanted, whole steps ahead, or as they end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np

from turncredit.agents.asynchronous import AsynchronousAgent
from turncredit.agents.engine_agent import EngineAgent
from turncredit.config import Config
from turncredit.episode import Group
from turncredit.rollout import Rollout
from turncredit.store import RunFolder
from turncredit.trainer.ahead import SamplingAhead
from turncredit.trainer.engines import Followed, Sampler
from turncredit.trainer.parallel import World
from turncredit.trainer.pool import GroupPool
from turncredit.trainer.sampling import Sampled, StepSampler
from turncredit.trainer.tasks import TaskSampler


class Source(Protocol):
    """Gives each step its groups."""

    def take(self, step: int) -> tuple[Sampled, int, dict[str, Any]]:
        """A step's groups, how many were too old to be trained on, and metrics."""

    def updated(self, version: int) -> dict[str, Any]:
        """The policy has new weights; returns metrics about them."""

    def settle(self, step: int) -> None:
        """A checkpoint is to be written behind a step: whatever has to be on the disk first is put there."""

    def close(self) -> None:
        """Nobody wants groups any more."""


class OnPolicy:
    """Samples a step when it is wanted, with the weights of that moment."""

    def __init__(self, sampler: StepSampler, engine: Sampler, run: RunFolder) -> None:
        self._sampler, self._engine, self._run = sampler, engine, run

    def take(self, step: int) -> tuple[Sampled, int, dict[str, Any]]:
        return self._sampler.sample(step, self._run.write_group), 0, {}

    def updated(self, version: int) -> dict[str, Any]:
        return self._engine.updated(version)

    def settle(self, step: int) -> None:
        """Everything is on the disk."""

    def close(self) -> None:
        """Nothing was started."""


def source_for(config: Config, run: RunFolder, rollout: Rollout, engine: Sampler, first: int, world: World) -> Source:
    """What the configuration's schedule and staleness ask for, at work from step `first` on."""
    wanted, tasks, steps = config.rollout, TaskSampler(config.envs, config.seed), config.trainer.steps
    if wanted.continuous:
        pool = GroupPool(rollout, tasks, wanted, config.seed, run, steps, cast(Followed, engine).later)
        pool.start(first)
        return pool
    sampler = StepSampler(rollout, tasks, wanted, config.seed, world)
    if not wanted.staleness:
        return OnPolicy(sampler, engine, run)
    ahead = SamplingAhead(lambda step: sampler.sample(step, run.write_group), run, steps, wanted.staleness,
                          cast(Followed, engine).later)
    ahead.start(first, wanted.groups)
    return ahead


def lag_metrics(groups: Sequence[Group], step: int) -> dict[str, Any]:
    """Policy versions between a token's sampling and its training, by token; versions in an episode, by episode."""
    episodes = [e for group in groups for e in group.episodes if e.generated_count]
    lags = np.concatenate([np.zeros(0), *(np.full(len(s.token_ids), step - (s.policy_version or 0))
                                        for e in episodes for s in e.segments if s.generated)])
    return {"lag_mean": float(lags.mean()) if len(lags) else None, "lag_max": int(lags.max()) if len(lags) else None,
            "versions_mean": float(np.mean([len(set(e.policy_versions)) for e in episodes])) if episodes else None}


class IdleShare:
    """How much of the time since it was last asked an agent's engine had nothing to do."""

    def __init__(self, agent: EngineAgent | AsynchronousAgent) -> None:
        self._agent, self._at, self._busy = agent, time.perf_counter(), agent.busy_s

    def taken(self) -> float:
        """In [0, 1]."""
        (at, busy), (self._at, self._busy) = (self._at, self._busy), (time.perf_counter(), self._agent.busy_s)
        return min(1.0, max(0.0, 1 - (self._busy - busy) / max(self._at - at, 1e-9)))
