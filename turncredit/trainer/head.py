"""Logprobs, entropy and the teacher's KL from hidden states, in chunks of positions.

No [tokens, vocabulary] tensor is ever whole, neither forward nor backward, and only generated positions are
projected onto the vocabulary at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turncredit.trainer.credit import token_kl


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Of each generated token, [tokens]. `kl` is None without a teacher."""

    logprobs: Tensor
    entropy: Tensor
    kl: Tensor | None


def score_tokens(hidden: Tensor, weight: Tensor, targets: Tensor, teacher_hidden: Tensor | None = None,
                 bias: Tensor | None = None, chunk: int = 512) -> TokenScores:
    """Project hidden states onto the vocabulary and score the tokens that follow.

    Args:
        hidden: [tokens, width], the student's at the positions before the targets.
        weight: [vocabulary, width], the output head; `bias` [vocabulary] or None.
        targets: int64 [tokens].
        teacher_hidden: [tokens, width] or None; no gradient flows into it.
        chunk: positions projected at a time.
    Returns:
        logprobs with gradient to `hidden`, `weight` and `bias`; entropy and KL(teacher || student) without.
    """
    head: Any = _ChunkedHead  # torch leaves `apply` untyped
    logprobs, entropy, kl = head.apply(hidden, weight, bias, targets, teacher_hidden, chunk)
    return TokenScores(logprobs, entropy, None if teacher_hidden is None else kl)


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor,
                teacher_hidden: Tensor | None, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        precise = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, entropy, kl = (torch.zeros(len(hidden), dtype=precise, device=hidden.device) for _ in range(3))
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = _project(hidden[part], weight, bias, precise)
            log_p = torch.log_softmax(logits, -1)
            logprobs[part] = log_p.gather(1, targets[part, None])[:, 0]
            entropy[part] = -(log_p.exp() * log_p).sum(-1)
            if teacher_hidden is not None:
                kl[part] = token_kl(_project(teacher_hidden[part], weight, bias, precise), logits)
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.chunk = chunk
        ctx.mark_non_differentiable(entropy, kl)
        return logprobs, entropy, kl

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """d logprob / d logits = onehot(target) - softmax(logits); the logits are computed again, chunk by chunk."""
        hidden, weight, bias, targets = ctx.saved_tensors
        upstream = gradients[0]
        d_hidden = torch.zeros_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=upstream.dtype) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias, dtype=upstream.dtype) if bias is not None else None
        for start in range(0, len(hidden), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            d_logits = torch.softmax(_project(hidden[part], weight, bias, upstream.dtype), -1).neg_()
            d_logits.scatter_add_(1, targets[part, None], torch.ones_like(d_logits[:, :1]))
            d_logits *= upstream[part, None]
            d_hidden[part] = (d_logits.to(weight.dtype) @ weight).to(hidden.dtype)
            if d_weight is not None:
                d_weight += (d_logits.T.to(hidden.dtype) @ hidden[part]).to(upstream.dtype)
            if d_bias is not None:
                d_bias += d_logits.sum(0)
        return (d_hidden, None if d_weight is None else d_weight.to(weight.dtype),
                None if d_bias is None else d_bias.to(weight.dtype), None, None, None)


def _project(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    logits = hidden @ weight.T
    return (logits if bias is None else logits + bias).to(dtype)
