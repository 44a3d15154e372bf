"""A teacher whose weights follow the policy's, a little each step: their exponential moving average."""

from __future__ import annotations

from typing import Any

import torch

from turncredit.trainer.policy import Policy


@torch.no_grad()
def follow(teacher: Policy, policy: Policy, share: float) -> None:
    """w <- (1 - share) w + share theta, for every weight of the teacher."""
    for mine, new in zip(teacher.model.parameters(), policy.whole.parameters(), strict=True):
        mine.lerp_(new.to(mine.dtype), share)


class StateWithTeacher:
    """An optimiser's state and the averaged teacher's weights, saved and restored together.

    Args:
        state: what of the optimiser is saved: itself, or its shards put together.
        teacher: the average.
    """

    def __init__(self, state: Any, teacher: Policy) -> None:
        self.state, self.teacher = state, teacher

    def gather(self) -> None:
        """Put the optimiser's shards together, where it has any."""
        self.state.gather()

    def state_dict(self) -> dict[str, Any]:
        """Both."""
        return {"state": self.state.state_dict(), "teacher": self.teacher.model.state_dict()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Both, as they were."""
        self.state.load_state_dict(saved["state"])
        self.teacher.model.load_state_dict(saved["teacher"])
