"""Sampling that goes on while the policy is trained: groups of the next steps, some policy versions behind.

With a staleness of k, step s is sampled with the weights of version s - k (the first steps with those of the start):
while the trainer works on a step, up to k more are sampled or lie ready. What the lag does to the gradient is corrected
by the importance of each token (`trainer.old_logprobs: recomputed`; see offpolicy.py).
"""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Protocol

import torch
from torch import Tensor

from turncredit.agents.transformers_engine import TransformersEngine
from turncredit.episode import Group
from turncredit.store import RunFolder, read_episodes
from turncredit.trainer.policy import Policy
from turncredit.trainer.sampling import Sampled


class CopiedEngine(TransformersEngine):
    """The policy's model a second time, with weights that stay as they are until new ones are loaded."""

    def __init__(self, policy: Policy, max_batch: int) -> None:
        super().__init__(copy.deepcopy(policy.model), max_batch, policy.precision)

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over weights by their names."""
        mine = self.model.state_dict()
        for name, tensor in weights:
            if name in mine:  # an untied head is not, where the two are one tensor
                mine[name].copy_(tensor)
        self.forget()


class Weights(Protocol):
    """New weights on their way to an engine."""

    def load(self) -> None:
        """Give them to it; called where it samples."""

    def compare(self) -> dict[str, float]:
        """What came of it, as metrics; called where the policy is trained."""


class SamplingAhead:
    """Hands out each step's groups while the next steps' are being sampled, one behind the other, in a thread.

    A step's groups depend on the run's seed, the step and the weights of `staleness` steps before, whatever is killed
    when: those that a checkpoint was written beside are read from the disk again (see `settle`).

    Args:
        sample: samples a step's groups; called in the thread, one step at a time.
        run: where the groups are written.
        steps: of the whole run: none behind the last is sampled.
        staleness: the largest lag in policy versions; a group that is older is left out of training.
        later: makes the policy's weights ready to be sent, by their version; the engine keeps those it has where None.
    """

    def __init__(self, sample: Callable[[int], Sampled], run: RunFolder, steps: int, staleness: int = 1,
                 later: Callable[[int], Weights] | None = None) -> None:
        self._sample, self._run, self._steps, self.staleness, self._later = sample, run, steps, staleness, later
        self._under_way: dict[int, Future[Sampled]] = {}
        self._weights: dict[int, Weights] = {}
        self._wanted: queue.SimpleQueue[tuple[int, Future[Sampled], Weights | None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="sampling").start()

    def begin(self, step: int, weights: Weights | None = None) -> None:
        """Sample a step behind those that are under way, with new weights or those that the engine has."""
        if step >= self._steps or step in self._under_way:
            return
        if weights is not None:
            self._weights[step] = weights
        future = self._under_way[step] = Future()
        self._wanted.put((step, future, weights))

    def _work(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            step, future, weights = wanted
            try:
                if weights is not None:
                    weights.load()
                future.set_result(self._sample(step))
            except BaseException as error:  # raised where the step is wanted
                future.set_exception(error)

    def start(self, first: int, groups: int) -> None:
        """Begin with the steps from `first` on: from the disk, or with the engine's weights as they stand."""
        for step in range(first, first + self.staleness):
            if not self.recall(step, groups):
                self.begin(step)

    def recall(self, step: int, groups: int) -> bool:
        """Take a step's groups from the disk, where all of them are whole: a run that was killed had sampled them."""
        files = [self._run.group_file(step, number) for number in range(groups)]
        if step >= self._steps or not all(file.exists() for file in files):
            return False
        every = [Group(read_episodes(file)) for file in files]
        self._under_way[step] = Future()
        self._under_way[step].set_result(Sampled(every, every, 0))
        return True

    def settle(self, step: int) -> None:
        """Wait until what is sampled ahead of a step is on the disk: a checkpoint goes with groups that its weights had
        no part in."""
        for one, future in list(self._under_way.items()):
            if one <= step + self.staleness:
                future.result()

    def updated(self, version: int) -> dict[str, float]:
        """New weights are sent with the step that they are to sample."""
        return {}

    def take(self, step: int) -> tuple[Sampled, int, dict[str, float]]:
        """A step's groups, how many of them were too old to be trained on, and metrics of the weights' way."""
        self.begin(step)  # where nobody has
        sampled = self._under_way.pop(step).result()
        fresh = [group for group in sampled.trained
                 if min(e.policy_version for e in group.episodes) >= step - self.staleness]
        weights = self._weights.pop(step, None)
        gap = {} if weights is None else weights.compare()
        self.begin(step + self.staleness, self._later(step) if self._later and step else None)
        return Sampled(sampled.every, fresh, sampled.refills), len(sampled.trained) - len(fresh), gap

    def close(self) -> None:
        """End the thread once it has done what it is at."""
        self._wanted.put(None)
