"""Keys and values of a model's attention: in one buffer while they are read, in pieces while an episode waits.

A piece belongs to a run of tokens and is never changed, so that the episodes of a group share their prompt's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from turncredit.episode import TokenIds


@dataclass(frozen=True, slots=True)
class KeyValueShape:
    """What a model keeps of a token: in each layer a key and a value, for each of its heads."""

    layers: int
    heads: int
    width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Of all layers together."""
        return 2 * self.layers * self.heads * self.width * self.dtype.itemsize


class KeyValueRows(Cache):  # type: ignore[misc]  # transformers comes without types
    """Keys and values of sequences of different lengths, one a row; the model writes and reads them in place.

    Args:
        shape: of a token's.
        rows: sequences that it can hold.
        tokens: of the longest one. One place more takes what padding writes.
    """

    def __init__(self, shape: KeyValueShape, rows: int, tokens: int) -> None:
        super().__init__(layers=[])
        self.shape, self.rows, self.tokens = shape, rows, tokens
        # [layers, 2, rows, heads, tokens + 1, width]: as attention reads them, which takes half of a CPU's time in long
        # contexts, and half as much again where a head's tokens do not lie together.
        self.buffer = torch.zeros(shape.layers, 2, rows, shape.heads, tokens + 1, shape.width, dtype=shape.dtype,
                                  device=shape.device)

    def aim(self, rows: slice | Tensor, places: Tensor, end: int) -> None:
        """Say where the next forward pass writes, and how far it reads.

        Args:
            rows: which, in the order of the pass's batch.
            places: [batch, new tokens]: where each new token's key and value go.
            end: tokens read of each row, [:end].
        """
        self._read, self._places, self._end = rows, places, end
        index = torch.arange(rows.start, rows.stop, device=places.device) if isinstance(rows, slice) else rows
        self._write = index[:, None]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any,
               **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Called by the model: take a layer's new keys and values, [batch, heads, new tokens, width]; give all."""
        keys, values = self.buffer[layer_idx]
        # Under autocast values come in bfloat16 and keys, behind their rotation, in float32: neither loses anything.
        keys[self._write, :, self._places] = key_states.transpose(1, 2).to(keys.dtype)
        values[self._write, :, self._places] = value_states.transpose(1, 2).to(values.dtype)
        return keys[self._read, :, :self._end], values[self._read, :, :self._end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Asked by models that are not told positions; ours are."""
        return int(self._end)

    def take(self, row: int, start: int, end: int) -> Tensor:
        """A copy of a row's keys and values, [layers, 2, heads, end - start, width]."""
        return self.buffer[:, :, row, :, start:end].clone()

    def put(self, row: int, start: int, piece: Tensor) -> None:
        """The reverse of `take`."""
        self.buffer[:, :, row, :, start:start + piece.shape[3]] = piece

    def move(self, source: int, row: int, tokens: int) -> None:
        """Copy the first tokens of a row to another one."""
        self.buffer[:, :, row, :, :tokens] = self.buffer[:, :, source, :, :tokens]

    def holds(self, rows: int, tokens: int) -> bool:
        """Is it large enough for so many sequences of that length?"""
        return rows <= self.rows and tokens <= self.tokens

    def grown(self, rows: int, tokens: int) -> KeyValueRows:
        """A larger one with the same contents."""
        larger = KeyValueRows(self.shape, rows, tokens)
        larger.buffer[:, :, :self.rows, :, :self.tokens] = self.buffer[:, :, :, :, :self.tokens]
        return larger


@dataclass(slots=True)
class Kept:
    """What is kept of a sequence while nothing is sampled for it."""

    token_ids: TokenIds = field(default_factory=lambda: np.zeros(0, np.int32))  # whose keys and values these are
    pieces: list[Tensor] = field(default_factory=list)  # each [layers, 2, heads, tokens, width]
    own_bytes: int = 0  # of the pieces that no other sequence brought in

    def begins(self, context: TokenIds) -> bool:
        """Is it of the first tokens of a context, with at least one left for the model to read?"""
        count = len(self.token_ids)
        return count < len(context) and np.array_equal(self.token_ids, context[:count])

    def extended(self, token_ids: TokenIds, piece: Tensor, shared: bool) -> Kept:
        """Of a longer sequence, `piece` holding what is new; `shared` where this one goes on being kept as well."""
        own = piece.nbytes + (0 if shared else self.own_bytes)
        return Kept(token_ids, [*self.pieces, piece], own)


class KeptSequences:
    """What is kept, by sequence, within a number of bytes: the one that was not used for longest goes first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, Kept] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, name: Hashable) -> Kept | None:
        """What was kept under that name, if it still is."""
        kept = self._kept.get(name)
        if kept is not None:
            self._kept.move_to_end(name)
        return kept

    def keep(self, name: Hashable, kept: Kept) -> None:
        """Keep it, in place of what had that name."""
        self.drop(name)
        self._kept[name] = kept
        self._bytes += kept.own_bytes
        while self._bytes > self.max_bytes:
            self.drop(next(iter(self._kept)))

    def drop(self, name: Hashable) -> None:
        """Forget it, where it is there."""
        kept = self._kept.pop(name, None)
        if kept is not None:
            self._bytes -= kept.own_bytes

    def clear(self) -> None:
        """Forget everything: the weights have changed."""
        self._kept.clear()
        self._bytes = 0
