"""The policy loss, pure functions to be held against the equations."""

from __future__ import annotations

import torch
from torch import Tensor

NORMALIZATIONS = ("sequence", "token", "constant")
RATIOS = ("token", "sequence")
SURROGATES = ("clip", "cispo")


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, weights: Tensor | None = None,
                clip_low: float = 0.2, clip_high: float = 0.2, normalize: str = "sequence",
                denominator: float | None = None, ratio: str = "token",
                surrogate: str = "clip") -> tuple[Tensor, dict[str, Tensor]]:
    """Minus J = E[ 1/G sum_i 1/|o_i| sum_t f_it min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i) ].

    GRPO with weights None; SC-GRPO with weights f(D) (arXiv 2606.18810, section 5). rho = pi_theta / pi_old.

    Args:
        logprobs: [episodes, tokens], of the tokens under the policy that is trained; carries the gradient.
        old_logprobs: [episodes, tokens], under the policy that sampled them.
        advantages: [episodes] or [episodes, tokens].
        mask: bool [episodes, tokens], True at generated tokens. Nothing else enters any sum or count.
        weights: [episodes, tokens] or None for 1.
        clip_low, clip_high: how far the ratio may move.
        normalize, denominator: see `mean_over_tokens`.
        ratio: "token", or "sequence" for the geometric mean of an episode's ratios at each of its tokens, with that
            token's own gradient (GSPO-token, arXiv 2507.18071, equations 14 and 15).
        surrogate: "clip" as above, or "cispo" for sg(clip(rho)) A log pi, in which no token loses its gradient
            (arXiv 2506.13585, equation 4).
    Returns:
        The scalar loss, and detached statistics: "ratio" and "clipped", [episodes, tokens], 0 outside the mask.
    """
    for name, value, known in (("ratio", ratio, RATIOS), ("surrogate", surrogate, SURROGATES)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}: it must be one of {known}")
    # What stands outside the mask may be anything, infinite too: it is replaced before it can meet a gradient.
    logprobs = torch.where(mask, logprobs, 0.0)
    log_ratio = logprobs - torch.where(mask, old_logprobs, 0.0)
    if ratio == "sequence":
        mean = log_ratio.detach().sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp_min(1)
        log_ratio = mean + logprobs - logprobs.detach()
    rho = log_ratio.exp()
    clipped_rho = rho.clamp(1 - clip_low, 1 + clip_high)
    advantages = advantages if advantages.ndim == 2 else advantages[:, None]
    if surrogate == "clip":
        objective = torch.minimum(rho * advantages, clipped_rho * advantages)
        clipped = mask & (clipped_rho * advantages < rho * advantages)
    else:
        objective = clipped_rho.detach() * advantages * logprobs
        clipped = mask & (clipped_rho != rho)
    if weights is not None:
        objective = objective * weights.detach()
    statistics = {"ratio": torch.where(mask, rho, 0.0).detach(), "clipped": clipped}
    return -mean_over_tokens(objective, mask, normalize, denominator), statistics


def mean_over_tokens(values: Tensor, mask: Tensor, normalize: str = "sequence",
                     denominator: float | None = None) -> Tensor:
    """The mean of a value of each token over a batch, a scalar.

    Args:
        values: [episodes, tokens].
        mask: bool [episodes, tokens]. Nothing else enters the sum or the count.
        normalize: "sequence" averages over each episode's generated tokens, then over the episodes; "token" over all
            generated tokens; "constant" divides the sum by `denominator`, whatever the lengths.
        denominator: what to divide by in place of the number of episodes ("sequence") or of generated tokens
            ("token") in this call, for a batch that is processed in parts.
    """
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize is {normalize!r}: it must be one of {NORMALIZATIONS}")
    if normalize == "constant" and denominator is None:
        raise ValueError("normalize is 'constant': it needs a denominator")
    values = torch.where(mask, values, 0.0)
    if normalize == "sequence":
        total = (values.sum(1) / mask.sum(1).clamp_min(1)).sum()
        count = float(mask.shape[0]) if denominator is None else denominator
    else:
        total = values.sum()
        count = float(mask.sum()) if denominator is None else denominator
    return total / max(count, 1.0)


def reference_penalty(logprobs: Tensor, reference: Tensor) -> Tensor:
    """GRPO's estimate of KL(pi_theta || pi_ref) at the sampled tokens (arXiv 2402.03300, equation 4), never negative.

    Args:
        logprobs, reference: of the same shape; only the first carries a gradient.
    """
    log_ratio = reference.detach() - logprobs
    return torch.expm1(log_ratio) - log_ratio
