"""SC-GRPO: self-conditioned credit (arXiv 2606.18810, section 5).

    D_it = KL( pi(. | x, tau, o_i<t) || pi(. | x, o_i<t) )        the teacher is the student that has seen tau
    f(D) = D / (D + c),  c = max(P75(D), 1e-4)                    over the active tokens of the micro-batch
    J    = E[ 1/G sum_i 1/|o_i| sum_t f(D_it) min(rho A_i, clip(rho) A_i) ]

    n_c correct of G       tau                                          advantage          weight
    2 <= n_c < G           another correct response, for each o_i       GRPO's             f(D)
    n_c = 0                one response o_r, for the whole group        alpha * A_div      f(D)
    n_c = 1 or n_c = G     none                                         GRPO's             1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from turncredit.trainer.algorithms.base import Algorithm, GroupCredit, register_algorithm
from turncredit.trainer.credit import diversity_advantage, kl_weight, route_group


@register_algorithm("sc-grpo")
class SCGRPO(Algorithm):
    """Credit where a look at another solution changes the next token."""

    quantile: float = Field(0.75, ge=0, le=1)
    floor: float = Field(1e-4, gt=0)  # c_min
    alpha: float = Field(0.1, ge=0)  # the scale of the diversity advantage
    references: Literal["coupled", "independent"] = "coupled"  # the same marginals; independent is the paper's letter

    def score_group(self, rewards: Sequence[float], verified: Sequence[bool], lengths: Sequence[int],
                    seed: int) -> GroupCredit:
        route = route_group(rewards, verified, seed, self.references == "coupled")
        if route.kind == "fallback" or route.references is None:
            return GroupCredit(route.kind, route.advantages, [None] * len(rewards))
        if route.kind == "partial-solve":
            return GroupCredit(route.kind, route.advantages, route.references)
        chosen = route.references[0]

        def from_weights(weights: list[NDArray[np.float32] | None]) -> NDArray[np.float64]:
            # A response whose reference did not fit has no f to be scored by: it earns nothing, and is in no mean.
            scored = [i for i, f in enumerate(weights) if f is not None or i == chosen]
            advantages = np.zeros(len(weights))
            advantages[scored] = self.alpha * diversity_advantage(
                [weights[i] for i in scored], [lengths[i] for i in scored], scored.index(chosen))
            return advantages

        # The reference is not conditioned on itself: it has no score.
        references = [None if i == chosen else chosen for i in range(len(rewards))]
        return GroupCredit(route.kind, np.zeros(len(rewards)), references, from_weights)

    def weigh_tokens(self, kl: Tensor, active: Tensor) -> Tensor:
        return kl_weight(kl, active, self.quantile, self.floor)
