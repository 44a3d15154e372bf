"""Drawing tokens: by inversion, so that a request's own random numbers decide, whatever else is in the batch."""

from __future__ import annotations

import torch

from turncredit.agents.base import Sampling


def draw(logits: torch.Tensor, sampling: Sampling, uniform: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Draw a token a row by inverting the cumulative distribution.

    Args:
        logits: [rows, vocabulary], float32.
        sampling: temperature (0 takes the likeliest token) and top-p.
        uniform: [rows], float64 in [0, 1).
    Returns:
        tokens [rows]; their logprobs [rows] at temperature 1; their logprobs [rows] under the sampling distribution.
    """
    policy = torch.log_softmax(logits, -1)
    if sampling.temperature == 0:
        tokens = policy.argmax(-1)
        chosen = policy.gather(1, tokens[:, None])[:, 0]
        return tokens, chosen, torch.zeros_like(chosen)
    sampled_from = policy if sampling.temperature == 1 else torch.log_softmax(logits / sampling.temperature, -1)
    if sampling.top_p < 1:
        sampled_from = _within_top_p(sampled_from, sampling.top_p)
    cumulative = sampled_from.exp().cumsum(-1, dtype=torch.float64)
    # Scaled by the total, which rounding keeps from being 1; at most the last token with any probability.
    tokens = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    tokens = tokens.clamp_max(logits.shape[-1] - 1)
    pick = tokens[:, None]
    chosen = policy.gather(1, pick)[:, 0]
    return tokens, chosen, chosen if sampled_from is policy else sampled_from.gather(1, pick)[:, 0]


def _within_top_p(logprobs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of likeliest tokens whose mass reaches top_p, renormalised."""
    ordered, order = logprobs.sort(-1, descending=True)
    mass_before = ordered.exp().cumsum(-1) - ordered.exp()
    dropped = torch.zeros_like(mass_before, dtype=torch.bool).scatter(1, order, mass_before >= top_p)
    return torch.log_softmax(logprobs.masked_fill(dropped, -torch.inf), -1)
