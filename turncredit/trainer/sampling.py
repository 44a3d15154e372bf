"""The groups of a step, with dynamic sampling (DAPO, arXiv 2503.14476, section 3.2), bounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from turncredit.config import RolloutConfig
from turncredit.episode import Group
from turncredit.rollout import Rollout, TaskRef
from turncredit.seeds import seed_of
from turncredit.trainer.parallel import World
from turncredit.trainer.tasks import TaskSampler


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step sampled, and what of it is trained on."""

    every: list[Group]
    trained: list[Group]
    refills: int


class StepSampler:
    """Samples each step's groups from the run's seed alone, so that there is no state to save.

    With `refills` above 0, groups whose rewards are all equal or unknown are set aside, and as many are sampled on
    other tasks, up to `refills` times. If there are still too few, the step trains on those that there are; if there is
    none, on the first round's, which then count as groups without signal.
    """

    def __init__(self, rollout: Rollout, tasks: TaskSampler, settings: RolloutConfig, seed: int,
                 world: World | None = None) -> None:
        self.rollout, self.tasks, self.settings, self.seed = rollout, tasks, settings, seed
        self.world = world or World()

    def sample(self, step: int, on_group: Callable[[Group], None] | None = None) -> Sampled:
        """The groups of a step; `on_group` sees each one that this process sampled."""
        wanted = self.settings.groups
        every = self._groups(self.tasks.tasks(step, wanted), step, 0, on_group)
        if not self.settings.refills:
            return Sampled(every, every, 0)
        first, refills = list(every), 0
        trained = [group for group in every if rewards_differ(group)]
        while len(trained) < wanted and refills < self.settings.refills:
            refills += 1
            more = self._groups(self.tasks.refill(step, refills, wanted - len(trained)), step, len(every), on_group)
            every += more
            trained += [group for group in more if rewards_differ(group)]
        return Sampled(every, trained or first, refills)

    def _groups(self, tasks: list[TaskRef], step: int, first: int,
                on_group: Callable[[Group], None] | None) -> list[Group]:
        part = self.world.part(len(tasks))
        numbers = [first + i for i in part]
        groups = self.rollout.sample_groups(tasks[part.start:part.stop], self.settings.group_size,
                                            seed_of(self.seed, "sample", step), step, on_group, numbers)
        return self.world.joined(groups)


def rewards_differ(group: Group) -> bool:
    """Whether the judged episodes of a group have different rewards."""
    return len({episode.reward for episode in group.judged}) > 1
