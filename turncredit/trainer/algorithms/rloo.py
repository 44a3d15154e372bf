"""RLOO (arXiv 2402.14740, equation 7): each episode against the mean of the others of its group.

    A_i = r_i - 1/(G - 1) sum_{k != i} r_k
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from turncredit.trainer.algorithms.base import Algorithm, GroupCredit, register_algorithm


@register_algorithm("rloo")
class RLOO(Algorithm):
    """REINFORCE with a baseline that does not depend on the episode itself, hence without bias."""

    def score_group(self, rewards: Sequence[float], verified: Sequence[bool], lengths: Sequence[int],
                    seed: int) -> GroupCredit:
        values = np.asarray(rewards, dtype=np.float64)
        others = (values.sum() - values) / (len(values) - 1)
        return GroupCredit("rloo", values - others, [None] * len(values))
