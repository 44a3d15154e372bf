"""A run as its folder tells it, step by step, with the tasks that its seed gives and the weights that it kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from turncredit.config import Config, load_config
from turncredit.episode import Episode, Group
from turncredit.errors import UserError, did_you_mean
from turncredit.report.credit import EpisodeCredit, read_credit
from turncredit.rollout import TaskRef
from turncredit.seeds import seed_of
from turncredit.store import EpisodeRecord, RunFolder
from turncredit.trainer.tasks import TaskSampler

if TYPE_CHECKING:
    from turncredit.trainer.demonstrations import Demonstrator
    from turncredit.trainer.policy import Policy
    from turncredit.trainer.sampling import Sampled


@dataclass(frozen=True)
class RecordedStep:
    """What a step left behind. Groups are by number; `trained` are those that the update saw, in its order."""

    number: int
    metrics: dict[str, Any]
    records: dict[int, list[EpisodeRecord]]
    groups: list[Group]
    trained: list[Group]
    tasks: dict[int, TaskRef]
    credit: dict[str, EpisodeCredit]

    @property
    def episodes(self) -> list[Episode]:
        """Of all groups, in order."""
        return [episode for group in self.groups for episode in group.episodes]


class Damaged(Exception):
    """Files of a step are missing or cannot be read; the sentence says which."""


class AuditedRun:
    """A run folder under examination.

    Raises:
        UserError: it is no run folder, it recorded no step, or it holds no weights.
    """

    def __init__(self, path: Path) -> None:
        if not (path / "config.yaml").is_file():
            raise UserError(f"{str(path)!r} is no run folder: it has no config.yaml; give one, such as runs/quickstart")
        self.folder = RunFolder(path)
        self.config: Config = load_config(path / "config.yaml")
        self.metrics = self.folder.read_metrics()
        if not self.metrics:
            raise UserError(f"{str(path)!r} has recorded no step yet: there is nothing to audit")
        self._tasks = TaskSampler(self.config.envs, self.config.seed)
        self.weights = self._weights()
        if not self.weights:
            raise UserError(f"{str(path)!r} holds no weights: an audit needs its start, a checkpoint or its policy")

    def policy(self, version: int | None = None) -> Policy:
        """The weights after so many updates, loaded; any that there are where None."""
        from turncredit.trainer.lora import add_adapter, has_adapter
        from turncredit.trainer.policy import Policy

        path = self.weights[min(self.weights) if version is None else version]
        policy = Policy.load(self.config.model.model_copy(update={"path": path, "tiny": None}))
        if self.config.model.lora is not None and not has_adapter(policy.model):  # as the run began
            add_adapter(policy.model, self.config.model.lora, seed_of(self.config.seed, "adapter"), path)
        return policy

    def others(self) -> tuple[Policy | None, Policy | None, Demonstrator | None]:
        """The policy that the run started from, another model as its teacher, and scripted solutions, where needed.

        Raises:
            UserError: one of them is needed and gone.
        """
        from turncredit.trainer.algorithms import make_algorithm
        from turncredit.trainer.demonstrations import Demonstrator
        from turncredit.trainer.start import external_teacher

        start, algorithm = None, make_algorithm(**self.config.algorithm)
        if algorithm.needs_start:
            if 0 not in self.weights:
                raise UserError(f"{str(self.folder.path)!r} has lost its start/, and its algorithm holds the policy "
                                "against that: it cannot be audited without")
            start = self.policy(0)
        teacher = external_teacher(self.config, self.policy()) if self.config.teacher.path else None
        demonstrator = Demonstrator(self.config.envs, self.policy().chat, self.config.model.tool_calls) if (
            algorithm.needs_demonstrations) else None
        return start, teacher, demonstrator

    def steps(self) -> Iterator[RecordedStep | Damaged]:
        """Every step that has a line of metrics, in order."""
        for line in self.metrics:
            try:
                yield self.step(line)
            except Damaged as damage:
                yield damage

    def step(self, line: dict[str, Any]) -> RecordedStep:
        """The step of a line of metrics.

        Raises:
            Damaged: files of it are missing, cannot be read, or are too many.
        """
        from turncredit.trainer.sampling import StepSampler

        number = int(line["step"])
        try:
            records = self._records(number)
            told = _ToldRollout({n: Group([r.episode() for r in part]) for n, part in records.items()})
            sampler = StepSampler(cast(Any, told), self._tasks, self.config.rollout, self.config.seed)
            sampled = self._as_they_ended(told, number) if self.config.rollout.continuous else sampler.sample(number)
            credit = read_credit(self.folder.path, number)
        except (OSError, ValueError) as error:  # pyarrow's and pydantic's errors are among them
            raise Damaged(f"step {number}: cannot be read: {' '.join(str(error).split())[:160]}") from None
        if left := sorted(set(records) - set(told.tasks)):
            raise Damaged(f"step {number}: group {left[0]} is there, and was never sampled")
        return RecordedStep(number, line, records, sampled.every, sampled.trained, told.tasks, credit)

    def _as_they_ended(self, told: _ToldRollout, step: int) -> Sampled:
        """The groups of a step that took those which ended first."""
        from turncredit.trainer.sampling import Sampled

        wanted, numbers = self.config.rollout, sorted(told.groups)
        if len(numbers) != wanted.groups:
            raise Damaged(f"step {step}: {len(numbers)} groups are there instead of {wanted.groups}")
        tasks = [self._tasks.numbered(n, wanted.groups) for n in numbers]
        every = told.sample_groups(tasks, wanted.group_size, 0, step, numbers=numbers)
        return Sampled(every, every, 0)

    def find(self, episode: str) -> tuple[RecordedStep, Episode]:
        """An episode by its id, and its step.

        Raises:
            UserError: there is none, or its step is damaged.
        """
        line = next((line for line in self.metrics if episode.startswith(f"{line['step']:06d}-")), None)
        if line is None:
            raise UserError(f"episode {episode!r} is of no step that {str(self.folder.path)!r} recorded; ids look like "
                            f"{int(self.metrics[0]['step']):06d}-0000-000 (step, group, sample)")
        try:
            step = self.step(line)
        except Damaged as damage:
            raise UserError(f"episode {episode!r}: {damage}") from None
        for found in step.episodes:
            if found.id == episode:
                return step, found
        raise UserError(f"episode {episode!r} is not there{did_you_mean(episode, [e.id for e in step.episodes])}")

    def _records(self, step: int) -> dict[int, list[EpisodeRecord]]:
        import pyarrow.parquet

        return {int(file.stem.rpartition("-")[2]):
                [EpisodeRecord.model_validate(row) for row in pyarrow.parquet.read_table(file).to_pylist()]
                for file in sorted(self.folder.episodes.glob(f"step-{step:06d}-*.parquet"))}

    def _weights(self) -> dict[int, str]:
        """Folders (or a hub's name) with weights, by the number of updates that they have seen."""
        from turncredit.trainer.checkpoint import is_whole

        start = self.folder.path / "start"
        found: dict[int, str] = {}
        if start.is_dir():
            found[0] = str(start)
        elif self.config.model.path is not None:
            found[0] = self.config.model.path
        for path in sorted(self.folder.checkpoints.glob("step-*")):
            if is_whole(path):
                found[int(path.name.partition("-")[2])] = str(path)
        return found


class _ToldRollout:
    """Gives recorded groups in place of sampling them, and notes which task each was asked for."""

    def __init__(self, groups: dict[int, Group]) -> None:
        self.groups = groups
        self.tasks: dict[int, TaskRef] = {}

    def sample_groups(self, tasks: Sequence[TaskRef], group_size: int, seed: int, step: int = 0,
                      on_group: Callable[[Group], None] | None = None, numbers: Sequence[int] | None = None,
                      ) -> list[Group]:
        """As `Rollout.sample_groups`."""
        for number, task in zip(numbers or range(len(tasks)), tasks):
            if number not in self.groups:
                raise Damaged(f"step {step}: group {number} is missing")
            self.tasks[number] = self.groups[number].task = task
            found = [episode.sample for episode in self.groups[number].episodes]
            if found != list(range(group_size)):
                raise Damaged(f"step {step}: group {number} holds the samples {found} instead of {group_size}")
        return [self.groups[number] for number in numbers or range(len(tasks))]


def evenly_chosen(count: int, wanted: int | None) -> set[int]:
    """At most `wanted` places out of `count`, spread evenly, the first and the last among them."""
    if wanted is None or wanted >= count:
        return set(range(count))
    return set(np.linspace(0, count - 1, wanted).round().astype(int).tolist())
