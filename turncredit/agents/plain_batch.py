"""Sampling that any causal model of transformers can do: the whole context is read again at each turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from turncredit.agents.base import Request, Sample, Sampling
from turncredit.agents.draw import draw


@torch.inference_mode()
def sample_plainly(model: Any, requests: Sequence[Request], sampling: Sampling,
                   stop_ids: Sequence[int]) -> list[Sample]:
    """One sample a request, all of them side by side, padded to the longest context."""
    device = model.device
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
    cache = DynamicCache(config=model.config)
    written: list[_Written] = [_Written() for _ in requests]
    alive = list(range(len(requests)))
    stops = set(stop_ids)
    while alive:
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
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
