"""The additive variants that the SC-GRPO paper compares with: the teacher's KL as a second loss, not as a weight.

    J = J_GRPO - beta_k E[ 1/G sum_i 1/|o_i| sum_t D_it ]         D over 2 <= n_c < G, as in SC-GRPO
    D = KL(teacher || student), KL(student || teacher), or their sum
    beta_k = beta, or linear from beta_start to beta over `beta_steps` steps
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from turncredit.trainer.algorithms.base import register_algorithm
from turncredit.trainer.algorithms.sc_grpo import SCGRPO, Route
from turncredit.trainer.head import Measures, TokenScores

NAMES = {"forward": ("kl",), "reverse": ("reverse_kl",), "both": ("kl", "reverse_kl")}


@register_algorithm("additive")
class Additive(SCGRPO):
    """GRPO, pulled towards its own teacher."""

    distils = True

    routes: tuple[Route, ...] = ("partial",)
    direction: Literal["forward", "reverse", "both"] = "forward"
    beta: float = Field(0.1, ge=0)
    beta_start: float | None = Field(None, ge=0)  # 0.03 in the paper; None for a fixed beta
    beta_steps: int = Field(100, ge=1)

    def weigh_tokens(self, kl: Tensor, active: Tensor) -> Tensor:
        return active.to(kl.dtype)

    def token_loss(self, scores: TokenScores, start: Tensor | None, step: int) -> Tensor | None:
        added = super().token_loss(scores, start, step)
        for name in NAMES[self.direction]:
            divergence: Tensor | None = getattr(scores, name)
            if divergence is not None:
                pull = self.beta_at(step) * divergence
                added = pull if added is None else added + pull
        return added

    def beta_at(self, step: int) -> float:
        """beta of a step, which counts from 0."""
        if self.beta_start is None:
            return self.beta
        return self.beta_start + (self.beta - self.beta_start) * min(1.0, step / self.beta_steps)

    @property
    def measures(self) -> Measures:
        names = NAMES[self.direction]
        plain = super().measures
        return Measures({*plain.wanted, *names}, {*plain.with_gradient, *names})
