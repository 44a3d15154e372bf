"""Logprobs, entropy and divergences of student and teacher from hidden states, in chunks of positions.

No [tokens, vocabulary] tensor is ever whole, neither forward nor backward, and only generated positions are
projected onto the vocabulary at all. With p the student, q the teacher and g the gradient of one token's value:

    value           definition                                     gradient of the logits (per vocabulary entry)
    logprob         log p_y                                        g (1[y] - p)
    entropy         H = -sum p log p                               -g p (log p + H)
    kl              D = sum q (log q - log p)                      g (p - q)
    reverse_kl      R = sum p (log p - log q)                      g p (log p - log q - R)
    js              b KL(q || m) + (1 - b) KL(p || m)              g (1 - b) p (log p - log m - KL(p || m))
                    with m = b q + (1 - b) p

All of them have the form v - p sum v, where v is the derivative by log p of an entry as if it were free; so they are
added up first, and the sum over the vocabulary is taken once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MEASURES = ("entropy", "kl", "reverse_kl", "js")
CHUNK_ELEMENTS = 1 << 25  # of [positions, vocabulary] at a time, see docs/performance.md


@dataclass(frozen=True, slots=True)
class Measures:
    """What is computed beside the logprobs, and what of it carries a gradient.

    Args:
        wanted: of "entropy", "kl" (teacher || student), "reverse_kl" (student || teacher) and "js" (Jensen-Shannon).
            Those that need a teacher are left out where there is none.
        with_gradient: those of them that are part of a loss.
        mixture: b, the teacher's share of the Jensen-Shannon mixture (arXiv 2306.13649, equation 1).
        js_limit: the most that one vocabulary entry may add to "js" (OPSD's clip, arXiv 2601.18734); an entry at its
            limit has no gradient.
    Raises:
        ValueError: a name that is none of the four, or a gradient of what is not wanted.
    """

    wanted: Collection[str] = ("entropy", "kl")
    with_gradient: Collection[str] = ()
    mixture: float = 0.5
    js_limit: float | None = None

    def __post_init__(self) -> None:
        for name in self.wanted:
            if name not in MEASURES:
                raise ValueError(f"measures.wanted has {name!r}: it must be one of {MEASURES}")
        for name in self.with_gradient:
            if name not in self.wanted:
                raise ValueError(f"measures.with_gradient has {name!r}, which is not wanted")
        if not 0 < self.mixture < 1:
            raise ValueError(f"measures.mixture is {self.mixture}: it must lie between 0 and 1")


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Of each generated token, [tokens]. None for what was not wanted, or needs a teacher and had none."""

    logprobs: Tensor
    entropy: Tensor | None = None
    kl: Tensor | None = None  # KL(teacher || student)
    reverse_kl: Tensor | None = None  # KL(student || teacher)
    js: Tensor | None = None


def score_tokens(hidden: Tensor, weight: Tensor, targets: Tensor, teacher_hidden: Tensor | None = None,
                 bias: Tensor | None = None, chunk: int | None = None, measures: Measures | None = None,
                 teacher_weight: Tensor | None = None, teacher_bias: Tensor | None = None) -> TokenScores:
    """Project hidden states onto the vocabulary and score the tokens that follow.

    Args:
        hidden: [tokens, width], the student's at the positions before the targets.
        weight: [vocabulary, width], the output head; `bias` [vocabulary] or None.
        targets: int64 [tokens].
        teacher_hidden: [tokens, teacher's width] or None; no gradient flows into it.
        chunk: positions projected at a time; by default as many as make 32 million logits.
        measures: what else is computed; by default entropy and, with a teacher, KL(teacher || student), both
            without gradient.
        teacher_weight: [vocabulary, teacher's width] and `teacher_bias` [vocabulary], where the teacher is another
            model of the same vocabulary; by default the student's.
    Returns:
        logprobs, and the measures that are named in `with_gradient`, with gradient to `hidden`, `weight`, `bias`.
    """
    measures = measures or Measures()
    names = tuple(n for n in MEASURES if n in measures.wanted and (n == "entropy" or teacher_hidden is not None))
    if teacher_hidden is not None and teacher_weight is None:
        teacher_weight, teacher_bias = weight, bias
    if teacher_weight is not None and len(teacher_weight) != len(weight):
        raise ValueError(f"the teacher's vocabulary has {len(teacher_weight)} entries and the student's {len(weight)}")
    rows = chunk or max(1, CHUNK_ELEMENTS // len(weight))
    head: Any = _ChunkedHead  # torch leaves `apply` untyped
    logprobs, *values = head.apply(hidden, weight, bias, targets, teacher_hidden, teacher_weight, teacher_bias, rows,
                                   names, measures)
    return TokenScores(logprobs, **dict(zip(names, values)))


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor,
                teacher_hidden: Tensor | None, teacher_weight: Tensor | None, teacher_bias: Tensor | None, chunk: int,
                names: tuple[str, ...], measures: Measures) -> tuple[Tensor, ...]:
        precise = torch.promote_types(hidden.dtype, torch.float32)
        values = hidden.new_zeros(1 + len(names), len(hidden), dtype=precise)
        for part in _chunks(len(hidden), chunk):
            log_p = _log_softmax(hidden[part], weight, bias, precise)
            values[0, part] = log_p.gather(1, targets[part, None])[:, 0]
            log_q = None
            if teacher_hidden is not None and teacher_weight is not None and names != ("entropy",):
                log_q = _log_softmax(teacher_hidden[part], teacher_weight, teacher_bias, precise)
            for number, name in enumerate(names, 1):
                values[number, part] = _measure(name, log_p, log_q, measures)
        sloped = [name in measures.with_gradient for name in names]
        needs_teacher = any(s and name != "entropy" for s, name in zip(sloped, names))
        ctx.save_for_backward(hidden, weight, bias, targets,
                              *((teacher_hidden, teacher_weight, teacher_bias) if needs_teacher else (None,) * 3))
        ctx.chunk, ctx.names, ctx.measures = chunk, names, measures
        outputs = values.unbind()
        ctx.mark_non_differentiable(*(v for v, s in zip(outputs[1:], sloped) if not s))
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        """The logits are computed again, chunk by chunk."""
        hidden, weight, bias, targets, teacher_hidden, teacher_weight, teacher_bias = ctx.saved_tensors
        given = {name: g for name, g in zip(("logprob", *ctx.names), upstream) if g is not None}
        precise = torch.promote_types(hidden.dtype, torch.float32)
        d_hidden = torch.zeros_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=precise) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias, dtype=precise) if bias is not None and ctx.needs_input_grad[2] else None
        for part in _chunks(len(hidden), ctx.chunk):
            log_p = _log_softmax(hidden[part], weight, bias, precise)
            log_q = None if teacher_hidden is None else _log_softmax(
                teacher_hidden[part], teacher_weight, teacher_bias, precise)
            d_logits = _slope({name: g[part] for name, g in given.items()}, log_p, log_q, targets[part], ctx.measures)
            d_hidden[part] = (d_logits.to(weight.dtype) @ weight).to(hidden.dtype)
            if d_weight is not None:
                d_weight += (d_logits.T.to(hidden.dtype) @ hidden[part]).to(precise)
            if d_bias is not None:
                d_bias += d_logits.sum(0)
        return (d_hidden, None if d_weight is None else d_weight.to(weight.dtype),
                None if d_bias is None else d_bias.to(weight.dtype), *(None,) * 7)


def _chunks(tokens: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, tokens, chunk))


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    logits = hidden @ weight.T
    return torch.log_softmax((logits if bias is None else logits + bias).to(dtype), -1)


def _measure(name: str, log_p: Tensor, log_q: Tensor | None, measures: Measures) -> Tensor:
    """One measure of a chunk, [positions], from log-distributions [positions, vocabulary]."""
    if name == "entropy":
        return -_dot(log_p.exp(), log_p)
    assert log_q is not None, "what needs a teacher is not asked for without one"
    if name == "kl":
        value = _dot(log_q.exp(), log_q - log_p)
    elif name == "reverse_kl":
        value = _dot(log_p.exp(), log_p - log_q)
    else:
        value = _js_entries(log_p, log_q, measures).sum(-1)
    return value.clamp_min(0.0)  # rounding alone can make it negative


def _slope(given: dict[str, Tensor], log_p: Tensor, log_q: Tensor | None, targets: Tensor,
           measures: Measures) -> Tensor:
    """The gradient of the logits, [positions, vocabulary], for gradients `given` of the values, [positions] each."""
    p = log_p.exp()
    free: Tensor | None = None  # v, summed over the measures
    for name, g in given.items():
        if name != "logprob":
            v = _free_slope(name, p, log_p, log_q, measures) * g[:, None]
            free = v if free is None else free.add_(v)
    total = p.new_zeros(len(p)) if free is None else free.sum(-1)
    if "logprob" in given:
        total = total + given["logprob"]
    slope = p.mul_(-total[:, None]) if free is None else free.addcmul_(p, total[:, None], value=-1)
    return slope.scatter_add_(1, targets[:, None], given["logprob"][:, None]) if "logprob" in given else slope


def _free_slope(name: str, p: Tensor, log_p: Tensor, log_q: Tensor | None, measures: Measures) -> Tensor:
    """v: the derivative of a measure by each entry of log p, as if entries were free, [positions, vocabulary]."""
    if name == "entropy":
        return -p * log_p  # a constant times p has no effect
    assert log_q is not None
    if name == "kl":
        return -log_q.exp()
    if name == "reverse_kl":
        return p * (log_p - log_q)
    v = (1 - measures.mixture) * p * (log_p - _log_mixture(log_p, log_q, measures.mixture))
    return v if measures.js_limit is None else v * (_js_parts(log_p, log_q, measures) < measures.js_limit)


def _log_mixture(log_p: Tensor, log_q: Tensor, b: float) -> Tensor:
    """log (b q + (1 - b) p), finite where both underflow."""
    return torch.logaddexp(log_q + math.log(b), log_p + math.log(1 - b))


def _js_parts(log_p: Tensor, log_q: Tensor, measures: Measures) -> Tensor:
    b, log_m = measures.mixture, _log_mixture(log_p, log_q, measures.mixture)
    return b * log_q.exp() * (log_q - log_m) + (1 - b) * log_p.exp() * (log_p - log_m)


def _js_entries(log_p: Tensor, log_q: Tensor, measures: Measures) -> Tensor:
    parts = _js_parts(log_p, log_q, measures)
    return parts if measures.js_limit is None else parts.clamp_max(measures.js_limit)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Row by row, without their product."""
    products: Tensor = torch.linalg.vecdot(one, other)
    return products
