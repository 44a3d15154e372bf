"""The embedded default engine: any causal model of transformers, sampled in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from turncredit.agents.base import Request, Sample, Sampling


class TransformersEngine:
    """Samples from a causal language model that lives in this process (the trainer's own, as a rule).

    Args:
        model: a transformers causal language model; it is used as it stands, so an optimiser's step is seen at once.
        max_batch: sequences sampled side by side.
        precision: makes the context in which the model runs (autocast, say): the trainer's, so that both agree.
    """

    def __init__(self, model: Any, max_batch: int = 64,
                 precision: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        self.model, self.precision = model, precision
        self.max_batch = max_batch
        self.policy_version = 0
        self.max_context = int(model.config.max_position_embeddings)

    def generate(self, requests: Sequence[Request], sampling: Sampling, stop_ids: Sequence[int]) -> list[Sample]:
        """One sample a request. Each token is drawn with the request's own random numbers, by inversion."""
        was_training = self.model.training
        self.model.eval()
        try:
            samples: list[Sample] = []
            with self.precision():
                for start in range(0, len(requests), self.max_batch):
                    samples += self._generate_batch(requests[start:start + self.max_batch], sampling, stop_ids)
            return samples
        finally:
            self.model.train(was_training)

    @torch.inference_mode()
    def _generate_batch(self, requests: Sequence[Request], sampling: Sampling, stop_ids: Sequence[int]) -> list[Sample]:
        device = self.model.device
        longest = max(len(r.context) for r in requests)
        # Padded on the left, by position and never by token id: the pad id may be a token that means something.
        ids = torch.zeros(len(requests), longest, dtype=torch.long)
        mask = torch.zeros(len(requests), longest, dtype=torch.long)
        for row, request in enumerate(requests):
            ids[row, longest - len(request.context):] = torch.as_tensor(np.asarray(request.context))
            mask[row, longest - len(request.context):] = 1
        ids, mask = ids.to(device), mask.to(device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        draws = [np.random.default_rng(r.seed).random(r.max_new_tokens) for r in requests]
        cache = DynamicCache(config=self.model.config)
        written: list[_Written] = [_Written() for _ in requests]
        alive = list(range(len(requests)))
        stops = set(stop_ids)
        while alive:
            logits = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                                use_cache=True, logits_to_keep=1).logits[:, -1].float()
            uniform = torch.tensor([draws[i][len(written[i].ids)] for i in alive], dtype=torch.float64, device=device)
            tokens, logprobs, sampling_logprobs = draw(logits, sampling, uniform)
            for row, i in enumerate(alive):
                written[i].add(int(tokens[row]), float(logprobs[row]), float(sampling_logprobs[row]))
            keep = [row for row, i in enumerate(alive)
                    if written[i].ids[-1] not in stops and len(written[i].ids) < requests[i].max_new_tokens]
            if len(keep) < len(alive) and keep:
                rows = torch.tensor(keep, device=device)
                cache.batch_select_indices(rows)
                mask, positions, tokens = mask[rows], positions[rows], tokens[rows]
            alive = [alive[row] for row in keep]
            ids = tokens[:, None]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            positions = positions[:, -1:] + 1
        return [w.sample(stops) for w in written]


class _Written:
    """What one request has been given so far."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.sampling_logprobs: list[float] = []

    def add(self, token: int, logprob: float, sampling_logprob: float) -> None:
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.sampling_logprobs.append(sampling_logprob)

    def sample(self, stops: set[int]) -> Sample:
        return Sample(self.ids, np.asarray(self.logprobs, np.float32), np.asarray(self.sampling_logprobs, np.float32),
                      ended=self.ids[-1] in stops)


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
    cumulative = sampled_from.double().exp().cumsum(-1)
    # Scaled by the total, which rounding keeps from being 1; at most the last token with any probability.
    tokens = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    tokens = tokens.clamp_max(logits.shape[-1] - 1)
    pick = tokens[:, None]
    return tokens, policy.gather(1, pick)[:, 0], sampled_from.gather(1, pick)[:, 0]


def _within_top_p(logprobs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of likeliest tokens whose mass reaches top_p, renormalised."""
    ordered, order = logprobs.sort(-1, descending=True)
    mass_before = ordered.exp().cumsum(-1) - ordered.exp()
    dropped = torch.zeros_like(mass_before, dtype=torch.bool).scatter(1, order, mass_before >= top_p)
    return torch.log_softmax(logprobs.masked_fill(dropped, -torch.inf), -1)
