"""REINFORCE++ (arXiv 2501.03262): discounted returns of each token, whitened over the whole batch; no group baseline.

    r_t = [t = T] r - kl (log pi_old(o_t) - log pi_start(o_t))       T: the episode's last generated token
    R_t = sum_{s >= t} discount^(s - t) r_s
    A_t = (R_t - mean R) / std R                                     over all generated tokens of the batch
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from turncredit.trainer.algorithms.base import Algorithm, Floats, GroupCredit, register_algorithm
from turncredit.trainer.credit import STD_EPSILON


@register_algorithm("reinforce++")
class ReinforcePlusPlus(Algorithm):
    """PPO's token rewards and clipping without a critic."""

    scores_batch = True

    discount: float = Field(1.0, gt=0, le=1)
    kl: float = Field(0.01, ge=0)  # of each token, against the policy that the run started from

    def score_group(self, rewards: Sequence[float], verified: Sequence[bool], lengths: Sequence[int],
                    seed: int) -> GroupCredit:
        return GroupCredit("reinforce++", np.asarray(rewards, dtype=np.float64), [None] * len(rewards))

    def score_batch(self, advantages: Sequence[float], logprobs: Sequence[Floats],
                    start: Sequence[Floats] | None) -> list[NDArray[np.float64]]:
        returns = []
        for i, reward in enumerate(advantages):
            rewards = np.zeros(len(logprobs[i]))
            if start is not None:
                rewards -= self.kl * (np.asarray(logprobs[i], dtype=np.float64) - start[i])
            rewards[-1] += reward
            returns.append(discounted(rewards, self.discount))
        everything = np.concatenate(returns)
        spread = everything.std()
        return [(r - everything.mean()) / spread if spread > STD_EPSILON else np.zeros_like(r) for r in returns]

    @property
    def needs_start(self) -> bool:
        """With a KL penalty, or the loss's own."""
        return self.kl > 0 or super().needs_start


def discounted(rewards: NDArray[np.float64], discount: float) -> NDArray[np.float64]:
    """R_t = r_t + discount R_{t+1}, [tokens]."""
    returns = np.zeros_like(rewards)
    after = 0.0
    for t in range(len(rewards) - 1, -1, -1):
        after = returns[t] = rewards[t] + discount * after
    return returns
