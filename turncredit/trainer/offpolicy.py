"""The importance of tokens that another distribution sampled than the one the trainer computes.

An engine in another precision, or with other kernels, samples from mu where the trainer would from pi. Each token's
gradient is then to be weighted by pi / mu, bounded so that its variance is (truncated importance sampling: Ionides
2008, as used for engines by Yao et al. 2025; masked: tokens beyond the bound are left out).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def importance(trainer: Tensor, sampler: Tensor, lengths: Sequence[int], cap: float, kind: str = "truncate",
               level: str = "token") -> tuple[Tensor, Tensor]:
    """Weights of tokens, and the raw ratios pi / mu.

    Args:
        trainer, sampler: logprobs of the sampled tokens under pi and under mu, [generated].
        lengths: generated tokens of each episode, in order; they add up to [generated].
        cap: C, above 1.
        kind: "truncate" to min(ratio, C), or "mask": 0 where the ratio is not within [1/C, C].
        level: "token", or "sequence" for the product over an episode's tokens.
    Returns:
        Weights and raw ratios, [generated] each, without gradient.
    """
    log_ratio = (trainer - sampler).detach()
    if level == "sequence":
        sums = torch.stack([piece.sum() for piece in torch.split(log_ratio, list(lengths))])
        log_ratio = sums.repeat_interleave(torch.tensor(lengths, device=sums.device))
    ratio = log_ratio.exp()
    if kind == "mask":
        return torch.where((ratio <= cap) & (ratio >= 1 / cap), ratio, 0.0), ratio
    return ratio.clamp(max=cap), ratio
