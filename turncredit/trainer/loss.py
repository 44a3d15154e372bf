"""The clipped policy loss, a pure function to be held against the equation."""

from __future__ import annotations

import torch
from torch import Tensor

NORMALIZATIONS = ("sequence", "token")


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, weights: Tensor | None = None,
                clip_low: float = 0.2, clip_high: float = 0.2, normalize: str = "sequence",
                denominator: float | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Minus J = E[ 1/G sum_i 1/|o_i| sum_t f_it min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i) ].

    GRPO with weights None; SC-GRPO with weights f(D) (arXiv 2606.18810, section 5). rho = pi_theta / pi_old.

    Args:
        logprobs: [episodes, tokens], of the tokens under the policy that is trained; carries the gradient.
        old_logprobs: [episodes, tokens], under the policy that sampled them.
        advantages: [episodes] or [episodes, tokens].
        mask: bool [episodes, tokens], True at generated tokens. Nothing else enters any sum or count.
        weights: [episodes, tokens] or None for 1.
        clip_low, clip_high: how far the ratio may move.
        normalize: "sequence" averages over each episode's generated tokens, then over the episodes; "token" over all
            generated tokens.
        denominator: what to divide by in place of the number of episodes ("sequence") or of generated tokens
            ("token") in this call, for a batch that is processed in parts.
    Returns:
        The scalar loss, and detached statistics: "ratio" and "clipped", [episodes, tokens], 0 outside the mask.
    """
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize is {normalize!r}: it must be one of {NORMALIZATIONS}")
    # What stands outside the mask may be anything, infinite too: it is replaced before it can meet a gradient.
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    ratio = log_ratio.exp()
    clipped_ratio = ratio.clamp(1 - clip_low, 1 + clip_high)
    advantages = advantages if advantages.ndim == 2 else advantages[:, None]
    objective = torch.minimum(ratio * advantages, clipped_ratio * advantages)
    if weights is not None:
        objective = objective * weights.detach()
    objective = torch.where(mask, objective, 0.0)
    if normalize == "sequence":
        lengths = mask.sum(1).clamp_min(1)
        total = (objective.sum(1) / lengths).sum()
        count = float(mask.shape[0]) if denominator is None else denominator
    else:
        total = objective.sum()
        count = float(mask.sum()) if denominator is None else denominator
    clipped = mask & (clipped_ratio * advantages < ratio * advantages)
    statistics = {"ratio": torch.where(mask, ratio, 0.0).detach(), "clipped": clipped}
    return -total / max(count, 1.0), statistics
