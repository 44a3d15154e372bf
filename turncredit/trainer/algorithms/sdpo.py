"""SDPO (arXiv 2601.20802): self-distillation from a teacher that has read a correct episode of the group.

    loss = E[ 1/G sum_i 1/|o_i| sum_t KL( pi_theta(. | x, o_i<t) || pi_w(. | x, tau, e_i, o_i<t) ) ]
    w    = theta, or its moving average: behind each step w <- (1 - follow) w + follow theta
    e_i  = with `feedback`, and where o_i failed: what the environment said to it last; else nothing

With `top` the KL is over the student's likeliest entries, and all others as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from turncredit.trainer.algorithms.base import GroupCredit, Teacher, register_algorithm
from turncredit.trainer.algorithms.distillation import SelfDistillation


@register_algorithm("sdpo")
class SDPO(SelfDistillation):
    """Self-distillation from the current weights, or from an average that follows them."""

    follow: float | None = Field(None, gt=0, lt=1)  # the policy's share in the averaged teacher; None for the current
    feedback: bool = False  # the environment's own words alone, never a verdict's reason, which may name the answer

    def score_group(self, rewards: Sequence[float], verified: Sequence[bool], lengths: Sequence[int],
                    seed: int) -> GroupCredit:
        credit = super().score_group(rewards, verified, lengths, seed)
        return replace(credit, feedback=[not passed for passed in verified]) if self.feedback else credit

    @property
    def teacher(self) -> Teacher:
        return "current" if self.follow is None else "averaged"

    @property
    def teacher_follows(self) -> float:
        return self.follow or 0.0
