"""Sampling that goes on while the policy is trained: the next step's groups, one policy version behind.

While the trainer updates on a step, the next one is sampled with the weights from before that update. What the lag does
to the gradient is corrected by the importance of each token (`trainer.old_logprobs: recomputed`; see offpolicy.py).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future

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


class SamplingAhead:
    """Hands out each step's groups while the next step's are being sampled in a thread.

    A step's groups depend on the run's seed, the step and the weights of the step before, whatever is killed when:
    those that a checkpoint was written beside are read from the disk again (see `settle`).

    Args:
        sample: samples a step's groups; called in the thread, one step at a time.
        run: where the groups are written.
        steps: of the whole run: none behind the last is sampled.
        staleness: the largest lag in policy versions; a group that is older is left out of training.
    """

    def __init__(self, sample: Callable[[int], Sampled], run: RunFolder, steps: int, staleness: int = 1) -> None:
        self._sample, self._run, self._steps, self.staleness = sample, run, steps, staleness
        self._under_way: dict[int, Future[Sampled]] = {}

    def begin(self, step: int) -> None:
        """Start sampling a step with the engine's weights as they stand."""
        if step >= self._steps or step in self._under_way:
            return
        future: Future[Sampled] = Future()
        self._under_way[step] = future

        def work() -> None:
            try:
                future.set_result(self._sample(step))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, daemon=True, name="sampling").start()

    def recall(self, step: int, groups: int) -> bool:
        """Take a step's groups from the disk, where all of them are whole: a run that was killed had sampled them."""
        files = [self._run.group_file(step, number) for number in range(groups)]
        if not all(file.exists() for file in files):
            return False
        every = [Group(read_episodes(file)) for file in files]
        self._under_way[step] = Future()
        self._under_way[step].set_result(Sampled(every, every, 0))
        return True

    def settle(self, step: int) -> None:
        """Wait until a step's groups are all sampled and on the disk."""
        if step in self._under_way:
            self._under_way[step].result()

    def take(self, step: int) -> tuple[Sampled, int]:
        """A step's groups, and how many of them were too old to be trained on."""
        self.begin(step)  # where nobody has
        sampled = self._under_way.pop(step).result()
        fresh = [group for group in sampled.trained
                 if min(e.policy_version for e in group.episodes) >= step - self.staleness]
        return Sampled(sampled.every, fresh, sampled.refills), len(sampled.trained) - len(fresh)
