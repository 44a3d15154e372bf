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

Divergences may tell apart the student's likeliest entries alone, with all others as one entry: q is then replaced by q'
that is q at the likeliest ones and shares out the rest of q among the others as p is; what stands above is of p and q'.

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

DIFFERENTIABLE = ("entropy", "kl", "reverse_kl", "js")
MEASURES = (*DIFFERENTIABLE, "teacher_logprob")
CHUNK_ELEMENTS = 1 << 27  # of [positions, vocabulary] at a time on a GPU, see docs/performance.md
CACHED_ELEMENTS = 1 << 20  # on a CPU: what its caches hold, but no fewer rows than a matrix product needs


@dataclass(frozen=True, slots=True)
class Measures:
    """What is computed beside the logprobs, and what of it carries a gradient.

    Args:
        wanted: of "entropy", "kl" (teacher || student), "reverse_kl" (student || teacher), "js" (Jensen-Shannon) and
            "teacher_logprob". Those that need a teacher are left out where there is none.
        with_gradient: those of them that are part of a loss.
        mixture: b, the teacher's share of the Jensen-Shannon mixture (arXiv 2306.13649, equation 1).
        js_limit: the most that one vocabulary entry may add to "js" (OPSD's clip, arXiv 2601.18734); an entry at its
            limit has no gradient.
        top: entries that divergences tell apart, the student's likeliest; the others are one. None: the whole
            vocabulary.
    Raises:
        ValueError: a name that is none of these, or a gradient of what is not wanted or has none.
    """

    wanted: Collection[str] = ("entropy", "kl")
    with_gradient: Collection[str] = ()
    mixture: float = 0.5
    js_limit: float | None = None
    top: int | None = None

    def __post_init__(self) -> None:
        for name in self.wanted:
            if name not in MEASURES:
                raise ValueError(f"measures.wanted has {name!r}: it must be one of {MEASURES}")
        for name in self.with_gradient:
            if name not in self.wanted:
                raise ValueError(f"measures.with_gradient has {name!r}, which is not wanted")
            if name not in DIFFERENTIABLE:
                raise ValueError(f"measures.with_gradient has {name!r}: no gradient flows into the teacher")
        if not 0 < self.mixture < 1:
            raise ValueError(f"measures.mixture is {self.mixture}: it must lie between 0 and 1")
        if self.top is not None and self.top < 1:
            raise ValueError(f"measures.top is {self.top}: it must be 1 or more, or None")


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Of each generated token, [tokens]. None for what was not wanted, or needs a teacher and had none."""

    logprobs: Tensor
    entropy: Tensor | None = None
    kl: Tensor | None = None  # KL(teacher || student)
    reverse_kl: Tensor | None = None  # KL(student || teacher)
    js: Tensor | None = None
    teacher_logprob: Tensor | None = None


def score_tokens(hidden: Tensor, weight: Tensor, targets: Tensor, teacher_hidden: Tensor | None = None,
                 bias: Tensor | None = None, chunk: int | None = None, measures: Measures | None = None,
                 teacher_weight: Tensor | None = None, teacher_bias: Tensor | None = None) -> TokenScores:
    """Project hidden states onto the vocabulary and score the tokens that follow.

    Args:
        hidden: [tokens, width], the student's at the positions before the targets.
        weight: [vocabulary, width], the output head; `bias` [vocabulary] or None. Where hidden states are of another
            precision it is cast to theirs, once, and its gradient is in its own.
        targets: int64 [tokens].
        teacher_hidden: [tokens, teacher's width] or None; no gradient flows into it.
        chunk: positions projected at a time; `default_chunk` where None.
        measures: what else is computed; by default entropy and, with a teacher, KL(teacher || student), both
            without gradient.
        teacher_weight: [vocabulary, teacher's width] and `teacher_bias` [vocabulary], where the teacher is another
            model of the same vocabulary; by default the student's.
    Returns:
        logprobs, and the measures that are named in `with_gradient`, with gradient to `hidden`, `weight`, `bias`.
    """
    measures = measures or Measures()
    names = tuple(n for n in MEASURES if n in measures.wanted and (n == "entropy" or teacher_hidden is not None))
    if teacher_weight is not None and len(teacher_weight) != len(weight):
        raise ValueError(f"the teacher's vocabulary has {len(teacher_weight)} entries and the student's {len(weight)}")
    rows = chunk or default_chunk(len(weight), weight.device)
    head: Any = _ChunkedHead  # torch leaves `apply` untyped
    logprobs, *values = head.apply(hidden, weight, bias, targets, teacher_hidden, teacher_weight, teacher_bias, rows,
                                   names, measures)
    return TokenScores(logprobs, **dict(zip(names, values)))


def default_chunk(vocabulary: int, device: torch.device) -> int:
    """Positions projected at a time."""
    return max(64, CACHED_ELEMENTS // vocabulary) if device.type == "cpu" else max(1, CHUNK_ELEMENTS // vocabulary)


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor,
                teacher_hidden: Tensor | None, teacher_weight: Tensor | None, teacher_bias: Tensor | None, chunk: int,
                names: tuple[str, ...], measures: Measures) -> tuple[Tensor, ...]:
        ctx.master, weight = weight.dtype, weight.to(hidden.dtype)
        student, teacher = _Projection(hidden, weight, bias, chunk), None
        if teacher_hidden is not None and names != ("entropy",):
            if teacher_weight is None:
                teacher_weight, teacher_bias = weight, bias
            teacher_weight = teacher_weight.to(teacher_hidden.dtype)
            teacher = _Projection(teacher_hidden, teacher_weight, teacher_bias, chunk, student)
        sloped = [name in measures.with_gradient for name in names]
        # A frozen head and one gradient: all that backward needs is a vector a token, and no second projection.
        keep = ctx.needs_input_grad[0] and not any(ctx.needs_input_grad[1:3]) and not any(sloped)
        kept = torch.empty_like(hidden) if keep else None
        values = hidden.new_zeros(1 + len(names), len(hidden), dtype=student.dtype)
        for part in _chunks(len(hidden), chunk):
            log_p = student.log_softmax(part)
            log_q = None if teacher is None else teacher.log_softmax(part)
            values[0, part] = log_p.gather(1, targets[part, None])[:, 0]
            pooled = _pooled(log_p, log_q, measures.top)
            for number, name in enumerate(names, 1):
                if name == "teacher_logprob" and log_q is not None:
                    values[number, part] = log_q.gather(1, targets[part, None])[:, 0]
                else:
                    values[number, part] = _measure(name, log_p, pooled, measures, student.spare(log_p))
            if kept is not None:
                slope = _logprob_slope(log_p.exp_(), targets[part], torch.ones_like(values[0, part]))
                kept[part] = (slope.to(weight.dtype) @ weight).to(hidden.dtype)
        needs_teacher = any(s and name != "entropy" for s, name in zip(sloped, names))
        ctx.save_for_backward(hidden, weight, bias, targets, kept,
                              *((teacher_hidden, teacher_weight, teacher_bias) if needs_teacher else (None,) * 3))
        ctx.chunk, ctx.names, ctx.measures = chunk, names, measures
        outputs = values.unbind()
        ctx.mark_non_differentiable(*(v for v, s in zip(outputs[1:], sloped) if not s))
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        """The logits are computed again, chunk by chunk."""
        hidden, weight, bias, targets, kept, teacher_hidden, teacher_weight, teacher_bias = ctx.saved_tensors
        if kept is not None:
            return (upstream[0][:, None] * kept).to(hidden.dtype), *(None,) * 9
        student = _Projection(hidden, weight, bias, ctx.chunk)
        teacher = None if teacher_hidden is None else _Projection(
            teacher_hidden, teacher_weight, teacher_bias, ctx.chunk, student)
        given = {name: g for name, g in zip(("logprob", *ctx.names), upstream) if g is not None}
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=student.dtype) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias, dtype=student.dtype) if bias is not None and ctx.needs_input_grad[2] else None
        for part in _chunks(len(hidden), ctx.chunk):
            if list(given) == ["logprob"]:
                d_logits = _logprob_slope(student.softmax(part), targets[part], upstream[0][part])
            else:
                log_p = student.log_softmax(part)
                log_q = _pooled(log_p, None if teacher is None else teacher.log_softmax(part), ctx.measures.top)
                d_logits = _slope({name: g[part] for name, g in given.items()}, log_p, log_q, targets[part],
                                  ctx.measures)
            d_hidden[part] = (d_logits.to(weight.dtype) @ weight).to(hidden.dtype)
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            if d_weight is not None:
                _add_product(d_weight, d_logits, hidden[part])
        return (d_hidden, None if d_weight is None else d_weight.to(ctx.master),
                None if d_bias is None else d_bias.to(bias.dtype), *(None,) * 7)


class _Projection:
    """Distributions of chunks of hidden states, written over one another in the same memory.

    Fresh memory for each chunk would cost about as much as the arithmetic on a CPU (see docs/performance.md).
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, chunk: int,
                 beside: _Projection | None = None) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.dtype = torch.promote_types(hidden.dtype, torch.float32)
        shape = (min(chunk, len(hidden)), len(weight))
        # The logits are of no use once they are normalised: student and teacher share the room for theirs.
        self._logits: Tensor = hidden.new_empty(shape, dtype=self.dtype) if beside is None else beside._logits
        self._normalised = torch.empty_like(self._logits)

    def log_softmax(self, part: slice) -> Tensor:
        """[positions, vocabulary]; valid until the next call."""
        logits = self._project(self.hidden[part])
        return torch.log_softmax(logits, -1, out=self._normalised[:len(logits)])

    def softmax(self, part: slice) -> Tensor:
        """[positions, vocabulary]; valid until the next call."""
        logits = self._project(self.hidden[part])
        return torch.softmax(logits, -1, out=self._normalised[:len(logits)])

    def spare(self, like: Tensor) -> Tensor:
        """Room for a tensor of that shape, free until the next projection."""
        return self._logits[:len(like)]

    def _project(self, hidden: Tensor) -> Tensor:
        room = self._logits[:len(hidden)]
        if hidden.dtype != self.dtype:
            logits = hidden @ self.weight.T
            return room.copy_(logits if self.bias is None else logits + self.bias)
        if self.bias is None:
            return torch.mm(hidden, self.weight.T, out=room)
        return torch.addmm(self.bias, hidden, self.weight.T, out=room)


def _chunks(tokens: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, tokens, chunk))


def _add_product(total: Tensor, d_logits: Tensor, hidden: Tensor) -> None:
    """total += d_logits.T @ hidden, [vocabulary, width]."""
    if hidden.dtype == total.dtype:
        total.addmm_(d_logits.T, hidden)
    else:
        total += (d_logits.T.to(hidden.dtype) @ hidden).to(total.dtype)


def _logprob_slope(p: Tensor, targets: Tensor, g: Tensor) -> Tensor:
    """g (1[y] - p), in the place of p, [positions, vocabulary]."""
    return p.mul_(-g[:, None]).scatter_add_(1, targets[:, None], g[:, None])


def _pooled(log_p: Tensor, log_q: Tensor | None, top: int | None) -> Tensor | None:
    """log q', [positions, vocabulary]: q beyond the student's `top` likeliest entries, shared out there as p is."""
    if log_q is None or top is None or top >= log_p.shape[1]:
        return log_q
    likeliest = log_p.topk(top, -1).indices
    rest_p, rest_q = (log.scatter(1, likeliest, -torch.inf).logsumexp(-1, keepdim=True) for log in (log_p, log_q))
    return (log_p + (rest_q - rest_p)).scatter_(1, likeliest, log_q.gather(1, likeliest))


def _measure(name: str, log_p: Tensor, log_q: Tensor | None, measures: Measures, spare: Tensor) -> Tensor:
    """One measure of a chunk, [positions], from log-distributions [positions, vocabulary] and room for another."""
    if name == "entropy":
        return -_dot(torch.exp(log_p, out=spare), log_p)
    assert log_q is not None, "what needs a teacher is not asked for without one"
    if name == "kl":
        value = _dot(torch.exp(log_q, out=spare), log_q - log_p)
    elif name == "reverse_kl":
        value = _dot(torch.exp(log_p, out=spare), log_p - log_q)
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
    slope = torch.zeros_like(p) if free is None else free.addcmul_(p, free.sum(-1, keepdim=True), value=-1)
    return slope if "logprob" not in given else slope.add_(_logprob_slope(p, targets, given["logprob"]))


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
