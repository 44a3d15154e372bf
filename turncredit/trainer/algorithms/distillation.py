"""On-policy distillation: the student's own episodes, and at each of their tokens a teacher's whole distribution.

    L = E[ 1/G sum_i 1/|o_i| sum_t D( teacher(. | ...), pi_theta(. | s_it) ) ]

OPD: another model that reads what the student read. OPSD: the weights that the run started from, which also read a
solution (arXiv 2601.18734; JSD, each vocabulary entry's share of a token clipped at 0.05). Rewards only choose whose
solution is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from turncredit.trainer.algorithms.base import (
    DEMONSTRATION,
    OWN_PROMPT,
    Algorithm,
    GroupCredit,
    Teacher,
    register_algorithm,
)
from turncredit.trainer.credit import route_group
from turncredit.trainer.head import Measures, TokenScores

Direction = Literal["kl", "reverse_kl", "js"]  # KL(teacher || student), KL(student || teacher), Jensen-Shannon


class Distillation(Algorithm):
    """A loss towards a teacher's distribution, with no advantage beside it."""

    distils = True

    divergence: Direction = "reverse_kl"
    mixture: float = Field(0.5, gt=0, lt=1)  # the teacher's share in the Jensen-Shannon mixture
    js_limit: float | None = Field(None, gt=0)  # the most that one vocabulary entry adds to "js"
    top: int | None = Field(None, ge=1)  # the student's likeliest entries that are told apart; the others count as one

    def token_loss(self, scores: TokenScores, start: Tensor | None, step: int) -> Tensor | None:
        added, divergence = super().token_loss(scores, start, step), self.divergence_of(scores)
        if divergence is None:
            return added
        return divergence if added is None else added + divergence

    @property
    def measures(self) -> Measures:
        plain = super().measures
        return Measures(plain.wanted, {*plain.with_gradient, self.divergence}, self.mixture, self.js_limit,
                        self.top)


class SelfDistillation(Distillation):
    """The teacher has seen a solution. An episode learns nothing where there is none, or none but itself."""

    solution: Literal["group", "demonstration"] = "group"  # a correct episode of the group, or the environment's own

    def score_group(self, rewards: Sequence[float], verified: Sequence[bool], lengths: Sequence[int],
                    seed: int) -> GroupCredit:
        if self.solution == "demonstration":
            return GroupCredit("demonstration", np.zeros(len(rewards)), [DEMONSTRATION] * len(rewards))
        route = route_group(rewards, verified, seed, routes=("partial", "single", "all"))
        return GroupCredit(route.kind, np.zeros(len(rewards)), route.references or [None] * len(rewards))

    @property
    def needs_demonstrations(self) -> bool:
        return self.solution == "demonstration"


@register_algorithm("opd")
class OPD(Distillation):
    """On-policy distillation from `teacher.path`, a model of the same vocabulary."""

    def score_group(self, rewards: Sequence[float], verified: Sequence[bool], lengths: Sequence[int],
                    seed: int) -> GroupCredit:
        return GroupCredit("opd", np.zeros(len(rewards)), [OWN_PROMPT] * len(rewards))

    @property
    def teacher(self) -> Teacher:
        return "external"


@register_algorithm("opsd")
class OPSD(SelfDistillation):
    """On-policy self-distillation from the fixed start."""

    divergence: Direction = "js"
    js_limit: float | None = Field(0.05, gt=0)

    @property
    def teacher(self) -> Teacher:
        return "start"
