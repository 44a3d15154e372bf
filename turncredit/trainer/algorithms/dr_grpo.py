"""Dr. GRPO (arXiv 2503.20783): no division by the group's spread, none by an episode's own length.

    A_i = r_i - mean_k r_k
    J   = E[ 1/(G L) sum_i sum_t min(rho_it A_i, clip(rho_it) A_i) ],  L = constant_length
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from turncredit.trainer.algorithms.base import Algorithm, GroupCredit, register_algorithm


@register_algorithm("dr-grpo")
class DrGRPO(Algorithm):
    """GRPO without the biases towards short correct and long wrong episodes, and towards tasks of little spread."""

    normalize: Literal["sequence", "token", "constant"] = "constant"

    def score_group(self, rewards: Sequence[float], verified: Sequence[bool], lengths: Sequence[int],
                    seed: int) -> GroupCredit:
        values = np.asarray(rewards, dtype=np.float64)
        return GroupCredit("dr-grpo", values - values.mean(), [None] * len(values))
