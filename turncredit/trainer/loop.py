"""The training loop: sample, score, credit, update, evaluate, save — each one call, in that order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import yaml

from turncredit.agents.base import Sampling
from turncredit.config import Config, RolloutConfig, refuse_unusable_envs
from turncredit.episode import Group, StopReason
from turncredit.errors import UserError
from turncredit.evaluate import Score, evaluate
from turncredit.rollout import Budget, Rollout
from turncredit.seeds import seed_of
from turncredit.store import RunFolder, write_whole
from turncredit.trainer.algorithms import make_algorithm
from turncredit.trainer.checkpoint import newest_checkpoint, restore, save_checkpoint
from turncredit.trainer.learner import Credit, Learner
from turncredit.trainer.memory import refuse_what_does_not_fit
from turncredit.trainer.policy import Policy
from turncredit.trainer.start import external_teacher, starting_policy
from turncredit.trainer.tasks import TaskSampler


class Watcher(Protocol):
    """Sees a run go by: a progress display, say."""

    def warming(self, step: int, steps: int, loss: float, success: float | None) -> None:
        """A step of the warm start is done."""

    def training(self, step: int, steps: int, metrics: dict[str, Any]) -> None:
        """A step of the loop is done."""


class TrainingStopped(UserError):
    """The run stopped itself, and says why."""


def train(config: Config, watcher: Watcher, resume: bool = False) -> RunFolder:
    """Train as the configuration says; returns the run folder, with the final policy in `policy/`.

    Raises:
        UserError: bad input, at the start.
        TrainingStopped: no learning signal, or non-finite updates, for a configured number of steps.
    """
    run = open_run(config, resume)
    checkpoint = newest_checkpoint(run.checkpoints) if resume else None
    policy = starting_policy(config, run, watcher.warming, checkpoint)
    algorithm = make_algorithm(**config.algorithm)
    # The reference policy is the start's, whatever has been trained since.
    reference = starting_policy(config, run, watcher.warming) if algorithm.needs_reference else None
    learner = Learner(policy, algorithm, config.trainer, config.teacher, config.seed, reference,
                      external_teacher(config, policy))
    refuse_what_does_not_fit(policy, config.trainer, config.rollout)
    first = 0 if checkpoint is None else int(restore(checkpoint, learner.optimizer)["steps_done"])
    run.forget_from(first)

    sampler = TaskSampler(config.envs, config.seed)
    agent = policy.agent(None, config.rollout.max_batch, config.rollout.schedule, config.rollout.engine_timeout_s)
    agent.engine.policy_version = first
    rollout = Rollout(agent, policy.chat, budget_of(config.rollout), config.model.tool_calls)
    health = _Health(config)
    for step in range(first, config.trainer.steps):
        clock = _Clock()
        tasks = sampler.tasks(step, config.rollout.groups)
        groups = rollout.sample_groups(tasks, config.rollout.group_size, seed_of(config.seed, "sample", step), step,
                                       on_group=run.write_group)
        clock.lap("sampling_s")
        credit = learner.credit(groups, step)
        clock.lap("credit_s")
        update = learner.update(credit, step)
        agent.engine.policy_version = step + 1
        clock.lap("update_s")
        metrics = {"step": step, **episode_metrics(groups), **credit.counts, **update}
        if config.evaluation.every and (step + 1) % config.evaluation.every == 0:
            metrics["evaluation"] = [summary(s) for s in evaluate_policy(config, policy)]
            clock.lap("evaluation_s")
        metrics |= clock.seconds
        metrics["tokens_per_second"] = metrics["generated_tokens"] / max(metrics["sampling_s"], 1e-9)
        run.append_metrics(metrics)
        if (step + 1) % config.trainer.save_every == 0 or step + 1 == config.trainer.steps:
            save_checkpoint(run.checkpoints, step + 1, policy, learner.optimizer, {"seed": config.seed},
                            config.trainer.keep_checkpoints)
        watcher.training(step, config.trainer.steps, metrics)
        health.check(groups, credit, update)
    rollout.close()
    write_whole(run.path / "policy", policy.save)
    return run


def open_run(config: Config, resume: bool) -> RunFolder:
    """Make the run folder, or check that the one to be resumed has the same configuration.

    Raises:
        UserError: an environment of the configuration cannot be made; a run is there already and `resume` is off; or
            there is none, or another one, to resume.
    """
    refuse_unusable_envs(config)
    run = RunFolder(config.folder)
    file = run.path / "config.yaml"
    settings = config.model_dump(mode="json")
    if file.exists() and not resume:
        raise UserError(f"{run.path} holds a run already: pass --resume to go on with it, or name=… for another one")
    if resume:
        if not file.exists():
            raise UserError(f"{run.path} holds no run to resume: leave out --resume")
        changed = _differences(yaml.safe_load(file.read_text()), settings)
        if changed:
            raise UserError(f"{run.path} was run with another configuration; these keys differ: {', '.join(changed)}")
    run.create()
    if not resume:
        write_whole(file, lambda path: path.write_text(yaml.safe_dump(settings, sort_keys=False)))
    return run


def budget_of(r: RolloutConfig) -> Budget:
    """The rollout's bounds."""
    return Budget(r.turn_tokens, r.episode_tokens, r.context_tokens, r.step_timeout_s)


def evaluate_policy(config: Config, policy: Policy) -> list[Score]:
    """Evaluate on `evaluation.envs`, with tasks and draws that are the same at each call."""
    wanted = config.evaluation
    agent = policy.agent(Sampling(wanted.temperature, wanted.top_p), config.rollout.max_batch,
                         config.rollout.schedule, config.rollout.engine_timeout_s)
    rollout = Rollout(agent, policy.chat, budget_of(config.rollout), config.model.tool_calls)
    scores = evaluate(rollout, wanted.envs, wanted.tasks, wanted.k, seed_of(config.seed, "evaluation"),
                      side_by_side=config.rollout.max_batch)
    rollout.close()
    return scores


def episode_metrics(groups: Sequence[Group]) -> dict[str, Any]:
    """Means over episodes (not turns, not tokens) and counts."""
    episodes = [e for group in groups for e in group.episodes]
    rewards = [e.reward for e in episodes if e.reward is not None]
    return {
        "episodes": len(episodes),
        "reward": float(np.mean(rewards)) if rewards else None,
        "success": float(np.mean([bool(e.passed) for e in episodes if e.reward is not None])) if rewards else None,
        "generated_tokens": sum(e.generated_count for e in episodes),
        "total_tokens": sum(len(s.token_ids) for e in episodes for s in e.segments),
        "turns": float(np.mean([len(e.turns) for e in episodes])),
        "invalid_actions": float(np.mean([sum(not t.valid for t in e.turns) for e in episodes])),
        "environment_s": sum(e.timings["environment"] for e in episodes) / len(episodes),
        "stops": dict(Counter(str(e.stop) for e in episodes)),
    }


def summary(score: Score) -> dict[str, Any]:
    """A score as a metrics entry."""
    return {"env": score.env, "split": score.split, "avg": score.avg, "interval": score.interval,
            "pass_at": score.pass_at, "tasks": score.tasks, "k": score.k, "unjudged": score.unjudged}


class _Clock:
    """Seconds by part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._at = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._at
        self._at = now


class _Health:
    """Stops a run that goes nowhere, with the reason."""

    def __init__(self, config: Config) -> None:
        self.settings = config.trainer
        self.refused = self.silent = 0
        self.stops: Counter[StopReason] = Counter()

    def check(self, groups: Sequence[Group], credit: Credit, update: dict[str, Any]) -> None:
        self.stops.update(e.stop for group in groups for e in group.episodes)
        has_signal = any(one.has_signal for one in credit.episodes)
        self.refused = self.refused + 1 if has_signal and not update["updated"] else 0
        self.silent = 0 if has_signal else self.silent + 1
        if self.refused >= self.settings.refused_steps:
            raise TrainingStopped(f"stopped: {self.refused} updates in a row had a non-finite loss or gradient")
        if self.silent >= self.settings.silent_steps:
            counted = ", ".join(f"{reason}: {count}" for reason, count in self.stops.most_common())
            raise TrainingStopped(f"stopped: no learning signal in {self.silent} updates in a row (all rewards of each "
                                  f"group were equal, or unknown); episodes ended so: {counted}")


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [key for name in sorted({*old, *new})
                for key in _differences(old.get(name), new.get(name), f"{prefix}.{name}".lstrip("."))]
    return [] if old == new else [prefix]
