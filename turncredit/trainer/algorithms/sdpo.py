"""SDPO (arXiv 2601.20802): self-distillation from a teacher that has read a correct episode of the group.

    loss = E[ 1/G sum_i 1/|o_i| sum_t KL( pi_theta(. | x, o_i<t) || pi_w(. | x, tau, o_i<t) ) ]
    w    = theta, or its moving average: behind each step w <- (1 - follow) w + follow theta
"""

from __future__ import annotations

from pydantic import Field

from turncredit.trainer.algorithms.base import Teacher, register_algorithm
from turncredit.trainer.algorithms.distillation import SelfDistillation


@register_algorithm("sdpo")
class SDPO(SelfDistillation):
    """Self-distillation from the current weights, or from an average that follows them."""

    follow: float | None = Field(None, gt=0, lt=1)  # the policy's share in the averaged teacher; None for the current

    @property
    def teacher(self) -> Teacher:
        return "current" if self.follow is None else "averaged"

    @property
    def teacher_follows(self) -> float:
        return self.follow or 0.0
