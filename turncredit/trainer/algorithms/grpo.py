"""GRPO: group-relative advantages, the same for every token (arXiv 2402.03300, section 4.1).

    A_i = (r_i - mean_k r_k) / std_k r_k
"""

from __future__ import annotations

from collections.abc import Sequence

from turncredit.trainer.algorithms.base import Algorithm, GroupCredit, register_algorithm
from turncredit.trainer.credit import grpo_advantages


@register_algorithm("grpo")
class GRPO(Algorithm):
    """No teacher: every generated token of an episode has its advantage, and weight 1."""

    def score_group(self, rewards: Sequence[float], verified: Sequence[bool], lengths: Sequence[int],
                    seed: int) -> GroupCredit:
        return GroupCredit("grpo", grpo_advantages(rewards), [None] * len(rewards))
