"""A whole evaluation: every agent on the same tasks, kept in a folder from which an interrupted one goes on.

    FOLDER/evaluation.yaml            what was asked for
    FOLDER/AGENT/episodes/*.parquet   a file a task; `step` is the environment's number, `group` the task's
    FOLDER/scores.json, scores.csv    the tables
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from turncredit.agents.base import Agent, Sampling
from turncredit.agents.chat import ChatFormat
from turncredit.config import Config, EnvConfig
from turncredit.episode import Group
from turncredit.errors import UserError
from turncredit.evaluate.compare import Comparison, compare
from turncredit.evaluate.floors import CEILING, FLOORS, bound_rollout, has_expert
from turncredit.evaluate.leakage import Leak, leakage
from turncredit.evaluate.sampling import sample
from turncredit.evaluate.scores import Score, score
from turncredit.evaluate.statistics import macro_interval
from turncredit.evaluate.suites import Suite
from turncredit.rollout import Budget, Rollout
from turncredit.store import RunFolder, write_whole


class Evaluated(Protocol):
    """A policy, or what can stand in its place."""

    chat: ChatFormat

    @property
    def tool_calls(self) -> str:
        """The format in which it writes tool calls."""

    def agent(self, sampling: Sampling) -> Agent:
        """An agent that samples from it."""

    def digest(self) -> str:
        """Changes with its weights: a folder whose weights were trained on is not gone on with."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for."""

    suite: Suite
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    floors: bool = True


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean over the environments of one kind ("in distribution" or "ood") of their avg@k."""

    agent: str
    kind: str
    environments: int
    avg: float
    interval: tuple[float, float]  # 95 %, tasks resampled within each environment


@dataclass(slots=True)
class Evaluation:
    """Samples and sums up.

    Args:
        wanted: what is asked for.
        models: label -> the policy and the configuration it was trained with; "policy", and "against" where two are
            compared.
        names: label -> what the user calls it.
        out: where everything is kept; nothing is where None.
    Raises:
        UserError: `out` holds another evaluation.
    """

    wanted: Wanted
    models: Mapping[str, tuple[Evaluated, Config]]
    names: Mapping[str, str]
    out: Path | None = None
    scores: list[Score] = field(default_factory=list)
    means: list[Mean] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.out is not None:
            _same_or_new(self.out, self._settings())

    def run(self, on_group: Callable[[Group], None] | None = None) -> None:
        """Floors, policies, ceiling, in this order; what stands in the folder is not sampled again."""
        suite, seed = self.wanted.suite, self.wanted.seed
        sampled: dict[str, list[list[Group]]] = {}
        for name in self._agents():
            envs = [env for env in suite.envs if name != CEILING or has_expert(env)]
            rollout = self._rollout(name)
            keep = None if self.out is None else RunFolder(self.out / name).create()
            try:
                sampled[name] = sample(rollout, envs, suite.tasks, suite.k, seed, on_group, keep=keep)
            finally:
                rollout.close()
            self.scores += [score(env, groups, suite.k, seed, name) for env, groups in zip(envs, sampled[name])]
            if name != CEILING:
                self._add_means(name, envs, [s for s in self.scores if s.agent == name])
        if "against" in sampled:
            self.comparisons = [compare(env, ours, theirs, seed) for env, ours, theirs
                                in zip(suite.envs, sampled["policy"], sampled["against"])]
        trained_on = self._trained_on()
        self.leaks = leakage(trained_on, suite.envs) if trained_on else []
        if self.out is not None:
            self._write(self.out)

    @property
    def tasks(self) -> int:
        """How many groups it samples at the most: a finite set of tasks may be smaller, and some may be kept."""
        suite = self.wanted.suite
        return sum(suite.tasks for name in self._agents() for env in suite.envs if name != CEILING or has_expert(env))

    def as_json(self) -> dict[str, Any]:
        """The tables."""
        return {"scores": [asdict(s) for s in self.scores], "means": [asdict(m) for m in self.means],
                "comparisons": [asdict(c) for c in self.comparisons], "leakage": [asdict(leak) for leak in self.leaks],
                "models": dict(self.names)}

    def _agents(self) -> list[str]:
        if not self.wanted.floors:
            return list(self.models)
        return [*FLOORS, *self.models, *([CEILING] if any(map(has_expert, self.wanted.suite.envs)) else [])]

    def _rollout(self, name: str) -> Rollout:
        policy, _ = self.models[name if name in self.models else "policy"]
        r = self.models["policy"][1].rollout  # the same bounds for both that are compared
        budget = Budget(r.turn_tokens, r.episode_tokens, r.context_tokens, r.step_timeout_s)
        if name not in self.models:
            return bound_rollout(name, policy.chat, budget, policy.tool_calls)
        sampling = Sampling(self.wanted.temperature, self.wanted.top_p)
        return Rollout(policy.agent(sampling), policy.chat, budget, policy.tool_calls)

    def _trained_on(self) -> list[EnvConfig]:
        """The training environments of a run folder; a plain model's are not known."""
        _, config = self.models["policy"]
        return [] if config.envs[0].id == "any" else list(config.envs)

    def _add_means(self, name: str, envs: list[EnvConfig], scores: list[Score]) -> None:
        for kind in ("in distribution", "ood"):
            rows = [np.array([r for r in s.by_task if r is not None]) for i, s in enumerate(scores)
                    if self.wanted.suite.kind(i) == kind and s.avg is not None]
            if rows:
                mean = float(np.mean([row.mean() for row in rows]))
                self.means.append(Mean(name, kind, len(rows), mean, macro_interval(rows, self.wanted.seed)))

    def _settings(self) -> dict[str, Any]:
        w = self.wanted
        return {"suite": w.suite.model_dump(mode="json"), "seed": w.seed, "temperature": w.temperature,
                "top_p": w.top_p, "models": dict(self.names),
                "weights": {label: policy.digest() for label, (policy, _) in self.models.items()}}

    def _write(self, folder: Path) -> None:
        import json

        text = json.dumps(self.as_json(), indent=1)
        write_whole(folder / "scores.json", lambda path: path.write_text(text))
        columns = ("agent", "env", "split", "tasks", "k", "avg", "interval", "pass_at", "pass_all", "turns", "tokens",
                   "context", "invalid", "timeouts", "unjudged")

        def write(path: Path) -> None:
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow([*columns[:6], "low", "high", "pass_at_1", "pass_at_k", "pass_all_k", *columns[9:]])
                for s in self.scores:
                    low, high = s.interval or (None, None)
                    writer.writerow([getattr(s, c) for c in columns[:6]] + [low, high, s.pass_at.get(1),
                                    s.pass_at.get(s.k), s.pass_all.get(s.k)] + [getattr(s, c) for c in columns[9:]])

        write_whole(folder / "scores.csv", write)


def _same_or_new(folder: Path, settings: dict[str, Any]) -> None:
    file = folder / "evaluation.yaml"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda path: path.write_text(yaml.safe_dump(settings, sort_keys=False)))
        return
    old = yaml.safe_load(file.read_text())
    changed = sorted(key for key in {*old, *settings} if old.get(key) != settings.get(key))
    if changed:
        raise UserError(f"--out {str(folder)!r} holds another evaluation; these differ: {', '.join(changed)}; name "
                        "another folder")
