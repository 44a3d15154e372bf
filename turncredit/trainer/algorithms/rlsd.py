"""RLSD (Self-Distilled RLVR, arXiv 2604.03128): the reward says which way, the teacher how far at each token.

    Delta_it = log pi(o_it | x, tau, o_i<t) - log pi(o_it | x, o_i<t)          without gradient
    w_it     = clip( exp(sign(A_i) Delta_it), 1 - limit, 1 + limit )
    A_it     = A_i ( 1 - share + share w_it )
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from turncredit.trainer.algorithms.base import DEMONSTRATION, Algorithm, GroupCredit, register_algorithm
from turncredit.trainer.credit import route_group
from turncredit.trainer.head import Measures, TokenScores


@register_algorithm("rlsd")
class RLSD(Algorithm):
    """GRPO's advantage, larger where a teacher that has seen a solution would have done more of what was right."""

    share: float = Field(1.0, ge=0, le=1)
    limit: float = Field(0.2, gt=0, le=1)
    solution: Literal["group", "demonstration"] = "group"  # a correct episode of the group, or the environment's own

    def score_group(self, rewards: Sequence[float], verified: Sequence[bool], lengths: Sequence[int],
                    seed: int) -> GroupCredit:
        route = route_group(rewards, verified, seed, routes=("partial", "single"))
        if self.solution == "demonstration":
            return GroupCredit("demonstration", route.advantages, [DEMONSTRATION] * len(rewards))
        return GroupCredit(route.kind, route.advantages, route.references or [None] * len(rewards))

    @property
    def needs_demonstrations(self) -> bool:
        return self.solution == "demonstration"

    def token_advantages(self, scores: TokenScores, advantages: Tensor) -> Tensor:
        if scores.teacher_logprob is None:
            return advantages
        delta = scores.teacher_logprob - scores.logprobs.detach()
        moved = (advantages.sign() * delta).exp().clamp(1 - self.limit, 1 + self.limit)
        return advantages * (1 - self.share + self.share * moved)

    @property
    def measures(self) -> Measures:
        plain = super().measures
        return Measures({*plain.wanted, "teacher_logprob"}, plain.with_gradient)
