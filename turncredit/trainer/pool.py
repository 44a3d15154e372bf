"""Sampling that never stops: groups are under way beside one another, and a step takes those that end first.

The groups are those of the run's tasks in their order, from 0 on, with the draws that they have in lockstep too. With a
staleness of k, at most k + 1 steps' groups are under way or lie ready. New weights go to the engine behind each update,
between two turns (see `AsynchronousAgent.between_turns`): the episodes that are under way go on with them, so that one
episode's turns are of several versions. A group whose oldest turn is more than k versions behind is left out of
training and counted. Which groups a step takes depends on how fast each one was: no such run is repeated bit for bit.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from typing import Any, cast

from turncredit.agents.asynchronous import AsynchronousAgent
from turncredit.config import RolloutConfig
from turncredit.daemon import in_daemon_thread
from turncredit.episode import Group
from turncredit.errors import EngineError
from turncredit.rollout import Rollout
from turncredit.seeds import seed_of
from turncredit.store import RunFolder, read_episodes, write_episodes
from turncredit.trainer.ahead import Weights
from turncredit.trainer.health import TrainingStopped
from turncredit.trainer.sampling import Sampled
from turncredit.trainer.tasks import TaskSampler

LOOK_S = 1.0  # how often a step that waits for groups looks whether anything moves at all


class GroupPool:
    """Hands out groups as they end, while others are being sampled in a thread of their own.

    Args:
        rollout: with an `AsynchronousAgent`.
        tasks, settings, seed: of the run.
        run: where groups are kept: in `ahead/` until a step takes them, then among its episodes.
        steps: of the whole run.
        weights: makes the policy's weights ready to be sent, by their version; called where the policy is trained.
    """

    def __init__(self, rollout: Rollout, tasks: TaskSampler, settings: RolloutConfig, seed: int, run: RunFolder,
                 steps: int, weights: Callable[[int], Weights]) -> None:
        self._rollout, self._tasks, self._settings, self._seed = rollout, tasks, settings, seed
        self._run, self._steps, self._weights = run, steps, weights
        self._agent = cast(AsynchronousAgent, rollout.agent)
        self._ended: queue.SimpleQueue[Group | BaseException] = queue.SimpleQueue()
        self._on_the_way: tuple[Weights, Future[None]] | None = None
        self._open = 0  # groups that are under way, lie ready, or belong to the step that is trained
        self._numbers: Iterator[int] = count()
        self._making = asyncio.Lock()  # environments are made one after the other
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="sampling").start()

    def start(self, first: int) -> None:
        """Begin with step `first`: with the groups on the disk that no earlier step took, and new ones.

        Those that later weights than the policy has now sampled a turn of, before the run was killed, are begun again.
        """
        gone = {int(file.stem.split("-")[3]) for file in self._run.episodes.glob("step-*.parquet")}
        gone |= {number for line in self._run.read_metrics() for number in line["tasks stale"]}
        for file in sorted(self._run.ahead.glob("group-*.parquet")):
            number = int(file.stem.split("-")[1])
            episodes = read_episodes(file)
            if number in gone or max(version for e in episodes for version in e.policy_versions) > first:
                file.unlink()
                continue
            gone.add(number)
            self._open += 1
            self._ended.put(Group(episodes, self._task(number)))
        self._numbers = (number for number in count() if number not in gone)
        self._fill(first)

    def take(self, step: int) -> tuple[Sampled, int, dict[str, Any]]:
        """The first groups that end, how many of those were too old, and metrics of the weights' way.

        Raises:
            TrainingStopped: nothing moves any more, or the engine takes no weights.
            UserError: no environment can be made, or weights did not arrive whole.
        """
        trained: list[Group] = []
        stale: list[int] = []
        gap: dict[str, float] = {}
        while len(trained) < self._settings.groups:
            group = self._next()
            if step - min(e.policy_version for e in group.episodes) > self._settings.staleness:
                gap |= self._arrived()  # else what begins in its place could be as old
                stale.append(group.episodes[0].group)
                self._open -= 1
                self._fill(step)
            else:
                trained.append(group)
        gap |= self._arrived()
        trained.sort(key=lambda group: group.episodes[0].group)
        for group in trained:
            for episode in group.episodes:
                episode.step = step
            self._run.write_group(group)
        for number in [*stale, *(group.episodes[0].group for group in trained)]:
            self._run.ahead_file(number).unlink(missing_ok=True)
        return Sampled(trained, trained, 0), len(stale), {"tasks stale": stale, **gap}

    def updated(self, version: int) -> dict[str, Any]:
        """Send the policy's new weights, and begin as many groups as a step took."""
        if version < self._steps:
            weights = self._weights(version)
            self._on_the_way = weights, asyncio.run_coroutine_threadsafe(self._agent.between_turns(weights.load),
                                                                         self._loop)
        self._open -= self._settings.groups
        self._fill(version)
        return {}

    def settle(self, step: int) -> None:
        """A checkpoint can be written at any time: what is under way then is begun again."""

    def close(self) -> None:
        """Give up what is under way, and end the thread."""
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_give_up(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _fill(self, version: int) -> None:
        """Begin groups, as many as may be open with a policy of that version."""
        wanted = self._settings.groups * min(self._settings.staleness + 1, self._steps - version)
        while self._open < wanted:
            self._open += 1
            future = asyncio.run_coroutine_threadsafe(self._sample(next(self._numbers)), self._loop)
            future.add_done_callback(self._note)

    def _note(self, future: Future[Group]) -> None:
        if not future.cancelled():
            self._ended.put(future.exception() or future.result())

    async def _sample(self, number: int) -> Group:
        """Group `number`, written down."""
        step, place = divmod(number, self._settings.groups)
        task = self._task(number)
        async with self._making:
            envs = await in_daemon_thread(lambda: self._rollout.environments_of(task, self._settings.group_size))
        group = await self._rollout.play(task, envs, seed_of(self._seed, "sample", step), place)
        for episode in group.episodes:
            episode.group = number
        await in_daemon_thread(lambda: write_episodes(self._run.ahead_file(number), group.episodes))
        return group

    def _task(self, number: int) -> Any:
        return self._tasks.numbered(number, self._settings.groups)

    def _next(self) -> Group:
        """The next group that has ended."""
        began, bound = time.monotonic(), self._settings.engine_timeout_s + self._settings.step_timeout_s
        while True:
            try:
                ended = self._ended.get(timeout=LOOK_S)
            except queue.Empty:
                if time.monotonic() - max(began, self._rollout.moved_at) > bound:
                    raise TrainingStopped(f"stopped: no turn was sampled and no environment answered in {bound:g} "
                                          "s: neither the engine nor a new environment comes to an end") from None
                continue
            if isinstance(ended, BaseException):
                raise ended
            return ended

    def _arrived(self) -> dict[str, float]:
        """What came of the weights that were sent last."""
        if self._on_the_way is None:
            return {}
        (weights, loaded), self._on_the_way = self._on_the_way, None
        try:
            loaded.result()
        except EngineError as error:
            raise TrainingStopped(f"stopped: the engine took no new weights: {error}") from error
        return weights.compare()


async def _give_up() -> None:
    """Cancel everything else that runs in this loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for one in others:
        one.cancel()
    await asyncio.gather(*others, return_exceptions=True)
