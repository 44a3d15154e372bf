"""SC-GRPO: self-conditioned credit (arXiv 2606.18810, section 5).

    D_it = KL( pi(. | x, tau, o_i<t) || pi(. | x, o_i<t) )        the teacher is the student that has seen tau
    f(D) = D / (D + c),  c = max(P75(D), 1e-4)                    over the active tokens of the micro-batch
    J    = E[ 1/G sum_i 1/|o_i| sum_t f(D_it) min(rho A_i, clip(rho) A_i) ]

    n_c correct of G       tau                                          advantage          weight
    2 <= n_c < G           another correct response, for each o_i       GRPO's             f(D)
    n_c = 0                one response o_r, for the whole group        alpha * A_div      f(D)
    n_c = 1 or n_c = G     none                                         GRPO's             1

Every ablation of the paper is a setting; DAPO's clip and normalisation and GSPO's ratios are too.
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

Route = Literal["partial", "none", "single", "all"]  # 2 <= n_c < G, n_c = 0, n_c = 1, n_c = G


@register_algorithm("sc-grpo")
class SCGRPO(Algorithm):
    """Credit where a look at another solution changes the next token."""

    quantile: float | None = Field(0.75, ge=0, le=1)  # None: c is the floor
    floor: float = Field(1e-4, gt=0)  # c_min
    alpha: float = Field(0.1, ge=0)  # the scale of the diversity advantage
    routes: tuple[Route, ...] = ("partial", "none")  # those that have a teacher
    references: Literal["coupled", "independent"] = "coupled"  # the same marginals; independent is the paper's letter
    unit: Literal["micro-batch", "batch"] = "micro-batch"  # over whose tokens c is the percentile; batch: of an update
    weights_from: Literal["current", "sampling"] = "current"  # whose KL: the weights as they stand, or as they sampled

    def score_group(self, rewards: Sequence[float], verified: Sequence[bool], lengths: Sequence[int],
                    seed: int) -> GroupCredit:
        route = route_group(rewards, verified, seed, self.references == "coupled", self.routes)
        if route.references is None:
            return GroupCredit(route.kind, route.advantages, [None] * len(rewards))
        chosen = route.references[0]
        if route.kind != "solve-none" or chosen is None:
            return GroupCredit(route.kind, route.advantages, route.references)

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

    @property
    def fixes_weights(self) -> bool:
        """Whether weights are worked out once, before the first update on a batch."""
        return self.weights_from == "sampling"

    @property
    def weighs_batch(self) -> bool:
        """Whether c is of a whole batch, which is then read once more, before its gradient."""
        return self.unit == "batch"
