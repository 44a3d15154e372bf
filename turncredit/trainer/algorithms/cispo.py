"""CISPO (MiniMax-M1, arXiv 2506.13585, equation 4): the importance weight is clipped, and no token loses its gradient.

    J = E[ 1/sum_i |o_i| sum_i sum_t sg(clip(rho_it, 0, 1 + clip_high)) A_i log pi_theta(o_it) ]
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from turncredit.trainer.algorithms.base import register_algorithm
from turncredit.trainer.algorithms.grpo import GRPO


@register_algorithm("cispo")
class CISPO(GRPO):
    """GRPO's advantages with REINFORCE's gradient, weighted by a bounded ratio. The paper sets no lower bound."""

    clip_low: float = Field(1.0, gt=0, le=1)
    clip_high: float = Field(0.28, gt=0)
    surrogate: Literal["clip", "cispo"] = "cispo"
    normalize: Literal["sequence", "token", "constant"] = "token"
