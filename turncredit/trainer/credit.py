"""SC-GRPO's credit assignment, as pure functions (arXiv 2606.18810, section 5).

The teacher is the student with one longer context: another solution stands in its system prompt. Where its
next-token distribution differs from the student's, the student's choice mattered.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

STD_EPSILON = 1e-6


def token_kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """D = KL(teacher || student) over the full vocabulary, in nats.

    Args:
        teacher_logits, student_logits: [..., vocabulary], any float type.
    Returns:
        [...], float32 (float64 for float64 logits); never negative.
    """
    precise = torch.promote_types(torch.promote_types(teacher_logits.dtype, student_logits.dtype), torch.float32)
    teacher = torch.log_softmax(teacher_logits.to(precise), -1)
    student = torch.log_softmax(student_logits.to(precise), -1)
    # A token that the teacher rules out (probability 0) adds nothing, even where the student rules it out too.
    # (NaN is not ruled out: a model that has come apart must not look like one that agrees with its teacher.)
    terms = torch.where(teacher != -torch.inf, teacher.exp() * (teacher - student), 0.0)
    return terms.sum(-1).clamp_min(0.0)  # rounding alone can make it negative


def kl_weight(kl: Tensor, active: Tensor, quantile: float | None = 0.75, floor: float = 1e-4) -> Tensor:
    """f(D) = D / (D + c) with c = max(quantile of D over the active tokens, floor).

    Args:
        kl: D, [...], nats.
        active: bool [...], the tokens that the policy generated. No other enters the quantile.
        quantile: 0.75 in the paper; None for c = floor.
        floor: c_min, 1e-4 in the paper.
    Returns:
        [...] in [0, 1); 0 where not active. It weights the gradient and carries none itself.
    """
    kl = torch.as_tensor(kl).detach()
    active = torch.as_tensor(active, dtype=torch.bool, device=kl.device)
    weights = torch.zeros_like(kl)
    values = kl[active]
    if values.numel():
        c = floor if quantile is None else max(_quantile(values, quantile), floor)
        weights[active] = values / (values + c)
    return weights


def _quantile(values: Tensor, quantile: float) -> float:
    """Linear interpolation, as torch.quantile, which refuses more than 16 million elements."""
    ordered = values.flatten().sort().values
    at = quantile * (len(ordered) - 1)
    low, high = int(np.floor(at)), int(np.ceil(at))
    return float(torch.lerp(ordered[low].double(), ordered[high].double(), at - low))


@dataclass(frozen=True, slots=True)
class Route:
    """How a group earns credit."""

    kind: str  # "partial-solve", "solve-none", "single-solve", "all-solve" or "fallback"
    references: list[int | None] | None  # [G]: whose trajectory the teacher sees; None for a response without, or all
    advantages: NDArray[np.float64]  # [G]: GRPO's


ROUTES = ("partial", "none", "single", "all")
PAPERS_ROUTES = ("partial", "none")


def route_group(rewards: ArrayLike, verified: ArrayLike, seed: int, coupled: bool = True,
                routes: Collection[str] = PAPERS_ROUTES) -> Route:
    """Decide by the number of correct responses n_c what the teacher is conditioned on.

    2 <= n_c < G, "partial": for each response another correct one, uniformly, never itself ("partial-solve").
    n_c = 0, "none": one response, drawn for the whole group, stands at every place ("solve-none").
    n_c = 1, "single": the correct one, for every response but itself ("single-solve").
    n_c = G, "all": for each response another one, uniformly ("all-solve").
    Otherwise, or where `routes` leaves it out: none ("fallback"), as the paper has it for n_c = 1 and n_c = G.

    Args:
        rewards: [G], in [0, 1].
        verified: bool [G], which responses are correct.
        seed: of the draws.
        coupled: two different correct responses a and b are drawn for the group; a stands at every place but its own,
            where b does. Each place on its own is still uniform over the other correct responses, and the teacher
            reads two contexts instead of up to G (docs/decisions/coupled-references.md). False: each place draws anew.
        routes: of "partial", "none", "single" and "all", those that have a teacher.
    """
    correct = np.flatnonzero(np.asarray(verified, dtype=bool))
    size = len(np.asarray(rewards))
    advantages = grpo_advantages(rewards)
    rng = np.random.default_rng(seed)
    if len(correct) == 0:
        if size and "none" in routes:
            return Route("solve-none", [int(rng.integers(size))] * size, advantages)
    elif len(correct) == 1:
        if size > 1 and "single" in routes:
            only = int(correct[0])
            return Route("single-solve", [None if i == only else only for i in range(size)], advantages)
    elif ("partial" if len(correct) < size else "all") in routes:
        kind = "partial-solve" if len(correct) < size else "all-solve"
        if coupled:
            a, b = (int(i) for i in rng.choice(correct, size=2, replace=False))
            return Route(kind, [b if i == a else a for i in range(size)], advantages)
        return Route(kind, [int(rng.choice(correct[correct != i])) for i in range(size)], advantages)
    return Route("fallback", None, advantages)


def grpo_advantages(rewards: ArrayLike) -> NDArray[np.float64]:
    """A_i = (r_i - mean r) / std r over the group, [G]; zeros where all rewards are equal."""
    values = np.asarray(rewards, dtype=np.float64)
    spread = values.std() if len(values) else 0.0
    return (values - values.mean()) / spread if spread > STD_EPSILON else np.zeros_like(values)


def diversity_advantage(weights: Sequence[Any], lengths: Sequence[int], reference: int) -> NDArray[np.float64]:
    """A_div: how much a response of an unsolved group departs from the reference response o_r.

    s_i = 1/L_i sum over the first L_i tokens of f(D), L_i = min(|o_i|, |o_r|): tokens past the reference's length
    have an inflated KL, which would reward mere length. A_div = (s_i - mean s) / (std s + eps) over i != r. The
    reference itself has no score and gets 0.

    Args:
        weights: G float arrays, f of each response's generated tokens in order.
        lengths: [G], |o_i|.
        reference: r.
    Returns:
        [G].
    """
    others = [i for i in range(len(weights)) if i != reference]
    advantages = np.zeros(len(weights))
    if not others:
        return advantages
    scores = np.array([_mean_of_first(weights[i], min(lengths[i], lengths[reference])) for i in others])
    advantages[others] = (scores - scores.mean()) / (scores.std() + STD_EPSILON)
    return advantages


def _mean_of_first(values: Any, count: int) -> float:
    return float(np.asarray(values, dtype=np.float64)[:count].mean()) if count else 0.0


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13): 0 up to limit - buffer, then down to -1."""
    return -min(max(length - (limit - buffer), 0) / buffer, 1.0)
