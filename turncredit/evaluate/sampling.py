"""Sample the episodes of an evaluation, and go on where one was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from turncredit.config import EnvConfig
from turncredit.envs import make
from turncredit.episode import Group
from turncredit.evaluate.scores import Score, score
from turncredit.rollout import Rollout, TaskRef
from turncredit.seeds import seed_of
from turncredit.store import RunFolder, read_episodes

OnGroup = Callable[[Group], None]


def evaluate(rollout: Rollout, envs: Sequence[EnvConfig], tasks: int, k: int, seed: int,
             on_group: OnGroup | None = None, side_by_side: int = 64) -> list[Score]:
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
    sampled = sample(rollout, envs, tasks, k, seed, on_group, side_by_side)
    return [score(env, groups, k, seed) for env, groups in zip(envs, sampled)]


def sample(rollout: Rollout, envs: Sequence[EnvConfig], tasks: int, k: int, seed: int, on_group: OnGroup | None = None,
           side_by_side: int = 64, keep: RunFolder | None = None) -> list[list[Group]]:
    """The groups of each environment, in the order of their tasks; see `evaluate`.

    Args:
        keep: where each group is written as soon as it has ended; those that stand there are not sampled again.
    """
    found = []
    for number, (env, refs) in enumerate([(env, list(task_refs(env, tasks, seed))) for env in envs]):
        at_once = max(1, side_by_side // k)
        groups: list[Group] = []
        for start in range(0, len(refs), at_once):
            draws = seed_of(seed, "evaluate", env.id, start)
            groups += _sampled(rollout, refs[start:start + at_once], k, draws, number, start, on_group, keep)
        found.append(groups)
    return found


def task_refs(env: EnvConfig, tasks: int, seed: int) -> Iterator[TaskRef]:
    """The tasks to evaluate on: the first of a finite set, else drawn from seeds."""
    made = make(env.id, **env.make_arguments)
    finite: int | None = getattr(made.unwrapped, "num_tasks", None)
    made.close()
    for i in range(tasks if finite is None else min(tasks, finite)):
        yield TaskRef(env.id, seed_of(seed, "task", env.id, i) >> 32, env.make_arguments, None if finite is None else i)


def _sampled(rollout: Rollout, refs: Sequence[TaskRef], k: int, seed: int, env: int, start: int,
             on_group: OnGroup | None, keep: RunFolder | None) -> list[Group]:
    """The groups of tasks that are sampled side by side: `step` is the environment's number, `group` the task's."""
    kept = {} if keep is None else {i: group for i in range(len(refs)) if (group := _kept(keep, env, start + i, k))}
    missing = [i for i in range(len(refs)) if i not in kept]

    def note(group: Group) -> None:
        for episode in group.episodes:
            episode.group += start
        if keep is not None:
            keep.write_group(group)
        if on_group is not None:
            on_group(group)

    # Each draw depends on the task's place, not on which tasks are left to be done.
    new: list[Any] = rollout.sample_groups([refs[i] for i in missing], k, seed, env, note, numbers=missing) \
        if missing else []
    kept |= dict(zip(missing, new))
    return [kept[i] for i in range(len(refs))]


def _kept(keep: RunFolder, env: int, task: int, k: int) -> Group | None:
    file = keep.group_file(env, task)
    if not file.exists():
        return None
    episodes = read_episodes(file)
    return Group(episodes) if len(episodes) == k else None
