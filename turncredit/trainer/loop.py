"""The training loop: sample, score, credit, update, evaluate, save — each one call, in that order."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import yaml

from turncredit.agents.asynchronous import AsynchronousAgent
from turncredit.agents.base import Engine, Sampling
from turncredit.agents.engine_agent import EngineAgent
from turncredit.cluster.environments import environments_for
from turncredit.config import Config, RolloutConfig, refuse_unusable_envs
from turncredit.episode import Group
from turncredit.errors import UserError
from turncredit.evaluate import Leak, Score, evaluate, leakage
from turncredit.rollout import Budget, Environments, Rollout
from turncredit.seeds import seed_of
from turncredit.store import RunFolder, write_whole
from turncredit.trainer.algorithms import make_algorithm
from turncredit.trainer.checkpoint import newest_checkpoint, restore, save_checkpoint
from turncredit.trainer.demonstrations import Demonstrator
from turncredit.trainer.engines import Embedded, Sampler, agent_for, sampler_for
from turncredit.trainer.health import Health
from turncredit.trainer.learner import Learner
from turncredit.trainer.memory import refuse_what_does_not_fit
from turncredit.trainer.parallel import World
from turncredit.trainer.policy import Policy
from turncredit.trainer.record import TokenRecord
from turncredit.trainer.sources import IdleShare, Source, lag_metrics, source_for
from turncredit.trainer.start import external_teacher, starting_policy
from turncredit.trainer.trackers import Both, Trackers, refuse_missing_trackers

log = logging.getLogger(__name__)


class Watcher(Protocol):
    """Sees a run go by: a progress display, say."""

    def warming(self, step: int, steps: int, loss: float, success: float | None) -> None:
        """A step of the warm start is done."""

    def training(self, step: int, steps: int, metrics: dict[str, Any]) -> None:
        """A step of the loop is done."""


def train(config: Config, watcher: Watcher, resume: bool = False) -> RunFolder:
    """Train as the configuration says; returns the run folder, with the final policy in `policy/`.

    Raises:
        UserError: bad input, at the start.
        TrainingStopped: no learning signal, or non-finite updates, for a configured number of steps; or weights that
            are not finite.
    """
    world = World.join()
    run = open_run(config, resume) if world.first else RunFolder(config.folder)
    checkpoint = newest_checkpoint(run.checkpoints) if resume and world.first else None
    policy = starting_policy(config, run, watcher.warming, checkpoint) if world.first else None
    checkpoint = world.gathered(checkpoint)[0]
    if policy is None:
        policy = starting_policy(config, run, watcher.warming, checkpoint)
    learner = _learner_of(config, run, policy, world)
    first = 0 if checkpoint is None else int(restore(checkpoint, learner.state)["steps_done"])
    if world.first:
        if config.rollout.continuous:
            run.set_back(first)
        run.forget_from(first, keep_steps=config.rollout.staleness)
    world.wait()

    with closing(environments_for(config, world)) as environments, \
            closing(sampler_for(config, policy, run.path / "engine", first, world)) as engine, \
            closing(Trackers(config, run.path, first, world.first)) as trackers:
        _train(config, run, Both(watcher, trackers), learner, engine, first, world, environments)
    if world.first:
        write_whole(run.path / "policy", policy.export)
    world.wait()
    world.leave()
    return run


def _train(config: Config, run: RunFolder, watcher: Watcher, learner: Learner, engine: Sampler, first: int,
           world: World, environments: Environments) -> None:
    """The steps from `first` on."""
    policy = learner.policy
    rollout = Rollout(agent_for(engine.engine, config, policy), policy.chat, budget_of(config.rollout),
                      config.model.tool_calls, environments=environments)
    with closing(source_for(config, run, rollout, engine, first, world)) as source:
        _take_steps(config, run, watcher, learner, source, rollout, None if config.rollout.staleness else engine.engine,
                    first, world)
    rollout.close()
    if learner.demonstrator is not None:
        learner.demonstrator.close()


def _take_steps(config: Config, run: RunFolder, watcher: Watcher, learner: Learner, source: Source, rollout: Rollout,
                engine: Engine | None, first: int, world: World) -> None:
    """Sample, credit, update, evaluate, save; `engine` is the one to evaluate with, None where it is sampling."""
    policy, health = learner.policy, Health(config)
    idle = IdleShare(cast(EngineAgent | AsynchronousAgent, rollout.agent))
    for step in range(first, config.trainer.steps):
        clock = _Clock()
        sampled, stale, gap = source.take(step)
        clock.lap("sampling_s")
        credit = learner.credit(sampled.trained, step)
        clock.lap("credit_s")
        record = TokenRecord(policy.tokenizer)
        update = learner.update(credit, step, record)
        clock.lap("update_s")
        if world.first and not update["weights_finite"]:
            _save_refused(run, step, policy)
        health.check_weights(update)
        gap |= source.updated(step + 1)
        clock.lap("weights_s")
        if is_saved(config, step):
            source.settle(step)
        metrics = {"step": step, **episode_metrics(sampled.every), "seconds": seconds_of(sampled.every, policy),
                   "refills": sampled.refills, "groups": len(sampled.every), "groups trained": len(sampled.trained),
                   "groups stale": stale, **lag_metrics(sampled.trained, step), "engine_idle": idle.taken(),
                   **credit.counts, **update, **gap}
        if policy.sharded and is_saved(config, step):
            learner.state.gather()
        if world.first:
            _keep(config, run, step, learner, record, metrics, clock, engine, rollout.environments)
            watcher.training(step, config.trainer.steps, metrics)
        health.check(sampled.every, credit, update)
        world.wait()


def _learner_of(config: Config, run: RunFolder, policy: Policy, world: World) -> Learner:
    """The learner, with what its algorithm needs beside the policy; refused where memory would not do."""
    algorithm, start, demonstrator = make_algorithm(**config.algorithm), None, None
    if algorithm.needs_start:  # without the checkpoint: what the run started from, whatever has been trained since
        start = policy.without_adapter() if config.model.lora else starting_policy(config, run, lambda *_: None)
    if algorithm.needs_demonstrations:
        demonstrator = Demonstrator(config.envs, policy.chat, config.model.tool_calls)
    averaged = policy.copied() if algorithm.teacher == "averaged" else None
    if config.trainer.gradient_checkpointing:
        policy.checkpoint_layers()
    refuse_what_does_not_fit(policy, config.trainer, config.rollout)
    if config.trainer.sharding == "full":
        policy.shard(world)
    return Learner(policy, algorithm, config.trainer, config.teacher, config.seed, world, start,
                   external_teacher(config, policy), demonstrator, averaged)


def _keep(config: Config, run: RunFolder, step: int, learner: Learner, record: TokenRecord, metrics: dict[str, Any],
          clock: _Clock, engine: Engine | None, environments: Environments) -> None:
    """Evaluate where it is time, and put a step on the disk: its credit, its metrics, a checkpoint."""
    trainer, policy, done, score = config.trainer, learner.policy, step + 1, None
    if step % trainer.credit_every == 0 and record.episodes:
        record.write(run.credit / f"step-{step:06d}.parquet")
    metrics |= record.class_means()
    if is_evaluated(config, step):
        metrics["evaluation"] = [summary(s) for s in evaluate_policy(config, policy, engine, environments)]
        keep_best(run, policy, metrics["evaluation"])
        score = in_distribution(metrics["evaluation"])
        clock.lap("evaluation_s")
    metrics |= clock.seconds
    metrics["tokens_per_second"] = metrics["generated_tokens"] / max(metrics["sampling_s"], 1e-9)
    if not np.isfinite([metrics["loss"], metrics["gradient_norm"]]).all():
        _save_refused(run, step, policy)
    run.append_metrics(metrics)
    if is_saved(config, step):
        save_checkpoint(run.checkpoints, done, policy, learner.state, {"seed": config.seed, "score": score},
                        trainer.keep_checkpoints, trainer.keep_best_checkpoints)


def is_evaluated(config: Config, step: int) -> bool:
    """Whether there is an evaluation behind a step, which counts from 0."""
    return config.evaluation.every is not None and (step + 1) % config.evaluation.every == 0


def is_saved(config: Config, step: int) -> bool:
    """Whether there is a checkpoint behind a step; behind each evaluation, where the best are kept."""
    due = (step + 1) % config.trainer.save_every == 0 or step + 1 == config.trainer.steps
    return due or (config.trainer.keep_best_checkpoints > 0 and is_evaluated(config, step))


def _save_refused(run: RunFolder, step: int, policy: Policy) -> None:
    """Keep the newest batch whose update was refused, and the weights that were to be updated, for a replay."""

    def write(path: Path) -> None:
        policy.export(path)
        for file in [*run.episodes.glob(f"step-{step:06d}-*.parquet"), *run.credit.glob(f"step-{step:06d}.parquet")]:
            shutil.copy(file, path / f"{file.parent.name}-{file.name}")

    write_whole(run.refused, write)


def open_run(config: Config, resume: bool) -> RunFolder:
    """Make the run folder, or check that the one to be resumed has the same configuration.

    Raises:
        UserError: an environment of the configuration cannot be made; a run is there already and `resume` is off; or
            there is none, or another one, to resume.
    """
    refuse_missing_trackers(config)
    refuse_unusable_envs(config)
    run = RunFolder(config.folder)
    file = run.path / "config.yaml"
    settings = config.model_dump(mode="json")
    if file.exists() and not resume:
        raise UserError(f"{run.path} holds a run already: pass --resume to go on with it, or name=… for another one")
    if resume:
        if not file.exists():
            raise UserError(f"{run.path} holds no run to resume: leave out --resume")
        elsewhere = {key: settings[key] for key in ("cluster", "tracking")}  # no sample depends on these
        changed = _differences(yaml.safe_load(file.read_text()) | elsewhere, settings)
        if changed:
            raise UserError(f"{run.path} was run with another configuration; these keys differ: {', '.join(changed)}")
    leaks = [] if resume else leaks_of(config)
    run.create()
    if not resume:
        report = json.dumps([asdict(leak) for leak in leaks], indent=1)
        write_whole(run.path / "leakage.json", lambda path: path.write_text(report))
        write_whole(file, lambda path: path.write_text(yaml.safe_dump(settings, sort_keys=False)))
    return run


def leaks_of(config: Config) -> list[Leak]:
    """Evaluated tasks among the trained ones, of a sample; each is warned of.

    Raises:
        UserError: there are some, and `evaluation.leakage` is "refuse".
    """
    wanted = config.evaluation
    if wanted.leakage == "ignore" or not wanted.envs:
        return []
    leaks = leakage(config.envs, wanted.envs)
    for leak in (leak for leak in leaks if not leak.clean):
        what = (f"{leak.normalised} of {leak.tasks} tasks of {leak.env} ({leak.split}) stand in the training tasks, "
                f"such as {leak.example!r}")
        if wanted.leakage == "refuse":
            raise UserError(f"evaluation.leakage is 'refuse': {what}; evaluate another split, or set it to 'report'")
        log.warning("%s", what)
    return leaks


def keep_best(run: RunFolder, policy: Policy, evaluation: Sequence[dict[str, Any]]) -> None:
    """Keep the policy in `best/` where it does better than ever before on what is evaluated in distribution.

    "ood" is left out of the choice, or it would be chosen on; where nothing else is evaluated nothing is kept.
    """
    reached = in_distribution(evaluation)
    earlier = [in_distribution(line["evaluation"]) for line in run.read_metrics() if "evaluation" in line]
    if reached is not None and all(one is None or reached > one for one in earlier):
        write_whole(run.path / "best", policy.export)


def in_distribution(evaluation: Sequence[dict[str, Any]]) -> float | None:
    """The mean over what is evaluated, "ood" left out; None where nothing else is."""
    known = [one["avg"] for one in evaluation if one["split"] != "ood" and one["avg"] is not None]
    return float(np.mean(known)) if known else None


def budget_of(r: RolloutConfig) -> Budget:
    """The rollout's bounds."""
    return Budget(r.turn_tokens, r.episode_tokens, r.context_tokens, r.step_timeout_s)


def evaluate_policy(config: Config, policy: Policy, engine: Engine | None = None,
                    environments: Environments | None = None) -> list[Score]:
    """Evaluate on `evaluation.envs`, with tasks and draws that are the same at each call; by default embedded."""
    wanted = config.evaluation
    engine = engine or Embedded(policy, config.rollout.max_batch).engine
    agent = agent_for(engine, config, policy, Sampling(wanted.temperature, wanted.top_p))
    rollout = Rollout(agent, policy.chat, budget_of(config.rollout), config.model.tool_calls, environments=environments)
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
        "length_mean": float(np.mean([e.generated_count for e in episodes])),
        "length_max": max(e.generated_count for e in episodes),
        "total_tokens": sum(len(s.token_ids) for e in episodes for s in e.segments),
        "turns": float(np.mean([len(e.turns) for e in episodes])),
        "invalid_actions": float(np.mean([sum(not t.valid for t in e.turns) for e in episodes])),
        "turns_cut": float(np.mean([e.turns_cut for e in episodes])),
        "environment_s": sum(e.timings["environment"] for e in episodes) / len(episodes),
        "stops": dict(Counter(str(e.stop) for e in episodes)),
    }


def seconds_of(groups: Sequence[Group], policy: Policy) -> dict[str, float]:
    """Seconds in environments, of that in verifiers, summed over episodes; with teacher, student and optimiser here."""
    episodes = [e for group in groups for e in group.episodes]
    return {name: sum(e.timings.get(name, 0.0) for e in episodes) for name in ("environment", "verifier")} | (
        policy.seconds.taken())


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


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [key for name in sorted({*old, *new})
                for key in _differences(old.get(name), new.get(name), f"{prefix}.{name}".lstrip("."))]
    return [] if old == new else [prefix]
