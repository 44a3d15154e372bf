"""From episodes to tensors: what the model reads, and which positions are scored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from turncredit.episode import Episode, Segment


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences side by side, padded on the right.

    `attention` and the scored positions come from the segments' lengths, never from token ids: the pad id may
    be a token that means something.
    """

    input_ids: Tensor  # int64 [episodes, tokens]
    attention: Tensor  # bool [episodes, tokens]
    rows: Tensor  # int64 [generated]: the episode of each generated token, in order
    columns: Tensor  # int64 [generated]: the position of the token before it, whose hidden state predicts it
    targets: Tensor  # int64 [generated]: the generated token itself

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__slots__))


def make_batch(sequences: Sequence[Sequence[Segment]]) -> Batch:
    """Lay sequences of segments side by side. A sequence's first token is never scored: nothing predicts it."""
    longest = max(sum(len(s.token_ids) for s in segments) for segments in sequences)
    ids = np.zeros((len(sequences), longest), np.int64)
    attention = np.zeros((len(sequences), longest), bool)
    generated = np.zeros((len(sequences), longest), bool)
    for row, segments in enumerate(sequences):
        tokens = np.concatenate([s.token_ids for s in segments])
        ids[row, :len(tokens)] = tokens
        attention[row, :len(tokens)] = True
        generated[row, :len(tokens)] = np.concatenate([np.full(len(s.token_ids), s.generated) for s in segments])
    if generated[:, 0].any():
        raise ValueError("a sequence starts with a generated token: nothing predicts it")
    rows, columns = np.nonzero(generated)
    return Batch(*map(torch.from_numpy, (ids, attention, rows, columns - 1, ids[rows, columns])))


def to_rows(values: Tensor, batch: Batch, episodes: int) -> tuple[Tensor, Tensor]:
    """Lay values [generated] out as [episodes, longest response], with the mask of the places that they took."""
    counts = torch.bincount(batch.rows, minlength=episodes)
    places = torch.arange(len(batch.rows), device=values.device) - (counts.cumsum(0) - counts)[batch.rows]
    shape = (episodes, max(int(counts.max()), 1))
    mask = torch.zeros(shape, dtype=torch.bool, device=values.device)
    mask[batch.rows, places] = True
    laid = torch.zeros(shape, dtype=values.dtype, device=values.device).index_put((batch.rows, places), values)
    return laid, mask


def pack_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Split indices into micro-batches of at most `budget` padded tokens each (one sequence at the least).

    Sequences of like length stand together, so that little is padding.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        # Sorted, so the newest is the longest: it sets the width.
        if batches and (len(batches[-1]) + 1) * lengths[index] <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def episode_lengths(episodes: Iterable[Episode]) -> list[int]:
    """Tokens of each episode."""
    return [sum(len(s.token_ids) for s in e.segments) for e in episodes]
