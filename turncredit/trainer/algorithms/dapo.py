"""DAPO (arXiv 2503.14476): GRPO's advantages, clipped further above than below, averaged over all tokens of the batch.

    J = E[ 1/sum_i |o_i| sum_i sum_t min(rho_it A_i, clip(rho_it, 1 - 0.2, 1 + 0.28) A_i) ]          (equation 8)

Its dynamic sampling is `rollout.refills`, with groups of equal rewards kept where all refills were in vain; its soft
overlong punishment (equation 13) is `overlong_limit` and `overlong_buffer`. There is no KL to a reference policy.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from turncredit.trainer.algorithms.base import register_algorithm
from turncredit.trainer.algorithms.grpo import GRPO


@register_algorithm("dapo")
class DAPO(GRPO):
    """GRPO with DAPO's settings; the same settings make SC-GRPO's weights stand on DAPO."""

    clip_high: float = Field(0.28, gt=0)
    normalize: Literal["sequence", "token", "constant"] = "token"
