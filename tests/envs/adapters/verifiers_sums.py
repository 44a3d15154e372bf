"""A taskset for the package verifiers: sums, rewarded by half for a number and by half for the right one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import verifiers.v1 as vf

__all__ = ["Sums"]


class SumsConfig(vf.TasksetConfig):
    low: int = 10
    boxed: bool = False


class SumData(vf.TaskData):
    answer: int


class Sum(vf.Task[SumData]):
    @vf.reward(weight=0.5)
    async def a_number(self, trace: Any) -> float:
        """An answer of digits."""
        return float(trace.last_reply.isdigit() and len(trace.messages) >= 2)

    @vf.reward(weight=0.5)
    async def the_right_one(self, trace: Any) -> float:
        """The sum."""
        return float(trace.last_reply == str(self.data.answer))


class Boxed(Sum):
    NEEDS_CONTAINER = True


class Sums(vf.Taskset[Sum, SumsConfig]):
    def load(self) -> Iterable[Sum]:
        """Sixty of them."""
        kind = Boxed if self.config.boxed else Sum
        for n in range(self.config.low, self.config.low + 60):
            yield kind(SumData(prompt=f"What is {n} + {2 * n}?", system_prompt="Write the number alone.", answer=3 * n))
