"""Several processes that train one policy, each with its own copy of the weights; launched by torchrun.

    torchrun --nproc-per-node 2 -m turncredit.cli train config.yaml

Each process samples its share of the groups and reads its share of the micro-batches. The micro-batches and every
denominator are those of the whole batch, so that gradients are summed, not averaged, and the number of processes
changes nothing beyond rounding. A group may lie across processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

T = TypeVar("T")
LONGEST_WAIT = timedelta(hours=24)  # the others wait while the first one evaluates or does the warm start


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run; by default this one alone."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> World:
        """Meet the other processes, if torchrun started any; gloo on CPUs, NCCL on GPUs."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        import torch.distributed as dist

        if not dist.is_initialized():
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                                    timeout=LONGEST_WAIT)
        world = cls(dist.get_rank(), dist.get_world_size())
        told = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if told != (world.rank, world.size):  # each would train on the whole batch, and seem to work
            raise RuntimeError(f"process {told[0]} of {told[1]} met the others as {world.rank} of {world.size}")
        return world

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        self.gathered(None)

    def part(self, count: int) -> range:
        """This process's run of `count` things."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gathered(self, value: T) -> list[T]:
        """Each process's value, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def joined(self, values: Sequence[T]) -> list[T]:
        """The lists of all processes, one behind the other."""
        return [one for part in self.gathered(list(values)) for one in part]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes; one that this process has not counts as 0."""
        if self.size == 1:
            return
        import torch.distributed as dist

        for parameter in parameters:
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def leave(self) -> None:
        """Part from the other processes."""
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()
