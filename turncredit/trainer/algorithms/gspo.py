"""GSPO (arXiv 2507.18071): one importance ratio an episode, the geometric mean of its tokens'.

    s_i = ( pi_theta(o_i | x) / pi_old(o_i | x) )^(1/|o_i|)
    J   = E[ 1/G sum_i min(s_i A_i, clip(s_i, 1 - 3e-4, 1 + 4e-4) A_i) ]            (equations 5 to 7)

The gradient is that of its token form (equations 14 and 15), which lets weights differ between tokens. Ratios are all
1, and the clip never acts, in the first update on a batch: `trainer.mini_batches` and `trainer.epochs` are its use.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from turncredit.trainer.algorithms.base import register_algorithm
from turncredit.trainer.algorithms.grpo import GRPO


@register_algorithm("gspo")
class GSPO(GRPO):
    """GRPO with sequence-level ratios; `sc-grpo` with `ratio: sequence` has SC-GRPO's weights on them."""

    clip_low: float = Field(3e-4, gt=0, le=1)
    clip_high: float = Field(4e-4, gt=0)
    ratio: Literal["token", "sequence"] = "sequence"
