"""From episodes to tensors: what the model reads, and which positions are scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turncredit.episode import Segment
from turncredit.trainer.attention import Block

Ints = NDArray[np.integer[Any]]  # [tokens]


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences in one row of tokens, one behind the other, without padding. A prompt that several share is there once.

    Where a sequence ends and which positions are scored comes from the segments, never from token ids.
    """

    input_ids: Tensor  # int64 [tokens]
    positions: Tensor  # int64 [tokens]: each token's place in its own sequence
    scored: Tensor  # int64 [generated]: where the token before each generated token stands, which predicts it
    rows: Tensor  # int64 [generated]: the episode of each generated token, in order
    targets: Tensor  # int64 [generated]: the generated token itself
    blocks: tuple[Block, ...]  # the row, cut up; in order

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        tensors = ("input_ids", "positions", "scored", "rows", "targets")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})


def make_batch(sequences: Sequence[Sequence[Segment]]) -> Batch:
    """Lay sequences of segments one behind the other. A sequence's first token is never scored: nothing predicts it."""
    prompts = Counter(_prompt(segments) for segments in sequences)
    row = _Row()
    for number, segments in enumerate(sequences):
        if segments[0].generated and len(segments[0].token_ids):
            raise ValueError("a sequence starts with a generated token: nothing predicts it")
        shared = prompts[_prompt(segments)] > 1
        prefix = row.shared(segments[0]) if shared else (0, 0)
        row.add(number, segments[1:] if shared else segments, prefix)
    return row.batch()


def _prompt(segments: Sequence[Segment]) -> bytes:
    return segments[0].token_ids.tobytes()


class _Row:
    """A row of tokens as it grows."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.ids: list[Ints] = []
        self.scored: list[Ints] = []
        self.rows: list[Ints] = []
        self.targets: list[Ints] = []
        self._length = 0
        self._prefixes: dict[bytes, tuple[int, int]] = {}

    def shared(self, prompt: Segment) -> tuple[int, int]:
        """Where that prompt stands; it is put there if it is new."""
        key = prompt.token_ids.tobytes()
        if key not in self._prefixes:
            self._prefixes[key] = (self._length, self._length + len(prompt.token_ids))
            self._put(prompt.token_ids, (0, 0))
        return self._prefixes[key]

    def add(self, number: int, segments: Sequence[Segment], prefix: tuple[int, int]) -> None:
        """A sequence, or what stands in it behind a shared prompt."""
        ids = np.concatenate([np.zeros(0, np.int32), *(s.token_ids for s in segments)])
        generated = np.flatnonzero(np.concatenate([np.zeros(0, bool), *(np.full(len(s.token_ids), s.generated)
                                                                        for s in segments)]))
        before = self._length + generated - 1
        if len(generated) and generated[0] == 0:
            if prefix[0] == prefix[1]:
                raise ValueError("a sequence starts with a generated token: nothing predicts it")
            before[0] = prefix[1] - 1
        self.scored.append(before)
        self.rows.append(np.full(len(generated), number))
        self.targets.append(ids[generated])
        self._put(ids, prefix)

    def _put(self, ids: Ints, prefix: tuple[int, int]) -> None:
        if len(ids):
            self.blocks.append(Block(self._length, self._length + len(ids), *prefix))
            self.ids.append(ids)
            self._length += len(ids)

    def batch(self) -> Batch:
        """As tensors."""
        positions = [np.arange(b.prefix, b.prefix + b.stop - b.start) for b in self.blocks]
        return Batch(_joined(self.ids), _joined(positions), _joined(self.scored), _joined(self.rows),
                     _joined(self.targets), tuple(self.blocks))


def _joined(parts: Sequence[Ints]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *parts], dtype=np.int64))


def to_rows(values: Tensor, batch: Batch, episodes: int) -> tuple[Tensor, Tensor]:
    """Lay values [generated] out as [episodes, longest response], with the mask of the places that they took."""
    counts = torch.bincount(batch.rows, minlength=episodes)
    places = torch.arange(len(batch.rows), device=values.device) - (counts.cumsum(0) - counts)[batch.rows]
    shape = (episodes, max(int(counts.max()), 1))
    mask = torch.zeros(shape, dtype=torch.bool, device=values.device)
    mask[batch.rows, places] = True
    laid = torch.zeros(shape, dtype=values.dtype, device=values.device).index_put((batch.rows, places), values)
    return laid, mask


def pack_by_tokens(readings: Sequence[Sequence[Sequence[Segment]]], budget: int) -> list[list[int]]:
    """Split indices, in their order, into micro-batches of rows of at most `budget` tokens (one index at the least).

    Args:
        readings: for each index the sequences that are read for it, each in a row of its own: the student's, and the
            teacher's where there is one. Neighbours that share a prompt read it once.
        budget: tokens of a row.
    """
    parts: list[list[int]] = []
    lengths: list[int] = []
    seen: set[tuple[int, bytes]] = set()
    for index, sequences in enumerate(readings):
        responses = [sum(len(s.token_ids) for s in sequence[1:]) for sequence in sequences]
        prompts = [(row, _prompt(sequence)) for row, sequence in enumerate(sequences)]
        sizes = [len(sequence[0].token_ids) for sequence in sequences]
        grown = [length + response + size * (prompt not in seen)
                 for length, response, size, prompt in zip(lengths, responses, sizes, prompts)]
        if parts and len(lengths) == len(sequences) and max(grown) <= budget:
            parts[-1].append(index)
            lengths = grown
        else:
            parts.append([index])
            lengths, seen = [response + size for response, size in zip(responses, sizes)], set()
        seen.update(prompts)
    return parts
