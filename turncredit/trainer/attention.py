"""Attention of sequences that lie side by side in one row of tokens, without padding, with shared beginnings.

A row is cut into blocks. A block reads itself, causally, and before it the whole of one other block at most: the prompt
that several responses share, which is in the row once. Everything else in a transformer works token by token, so a
packed row gives each token the very hidden state that it has in its own sequence, and autograd adds up the gradients
that a shared prompt gets from its responses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

NAME = "turncredit_packed"


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens [start, stop) of a row, read behind tokens [prefix_start, prefix_stop) of it."""

    start: int
    stop: int
    prefix_start: int = 0
    prefix_stop: int = 0

    @property
    def prefix(self) -> int:
        """Tokens that are read before the block."""
        return self.prefix_stop - self.prefix_start


@dataclass(slots=True, eq=False)
class Packing:
    """How a row is cut into blocks, as it is handed through a model to its attention."""

    blocks: tuple[Block, ...]
    flex: bool = False  # the whole row in one kernel (`flex.py`), and not block by block
    calls: int = 0  # how often attention has been computed so: once a layer
    block_masks: dict[int | None, Any] = field(default_factory=dict)  # of `flex.py`, by window
    _masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)

    def mask(self, queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
        """bool [queries, keys]: causal, and the last query reads the last key. None: the plain triangle."""
        window = window if window is not None and window < keys else None
        if window is None and queries == keys:
            return None
        if window is None and device.type == "cuda":
            return causal_lower_right(queries, keys)  # no mask in memory
        shape = (queries, keys, window)
        if shape not in self._masks:
            behind = torch.arange(keys, device=device) - torch.arange(keys - queries, keys, device=device)[:, None]
            self._masks[shape] = (behind <= 0) & (behind > -(window or keys))
        return self._masks[shape]


def can_be_packed(model: Any) -> bool:
    """Whether a model's attention is of a kind that `packed` replaces; its layers may still not hear of a packing."""
    config = model.config.get_text_config()
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    return config._attn_implementation == "sdpa" and {*layers} <= {"full_attention", "sliding_attention"}


@contextmanager
def packed(model: Any) -> Iterator[None]:
    """Within it a model attends as the `packing` says that is handed to its forward; it has to be given one."""
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


@torch.compiler.disable  # type: ignore[untyped-decorator]  # blocks differ from row to row: compiled, each would be new
def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, packing: Packing,
            **options: Any) -> tuple[Tensor, None]:
    packing.calls += 1
    # Under autocast a norm may have left queries and keys in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    compute = flex_attention if packing.flex else packed_attention
    return compute(query, key, value, packing, options.get("scaling"), options.get("sliding_window")), None


def flex_attention(*given: Any) -> Tensor:
    """As `packed_attention`, which see."""
    from turncredit.trainer.flex import attention_of_row  # imports a compiler

    return attention_of_row(*given)


def packed_attention(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float | None = None,
                     window: int | None = None) -> Tensor:
    """Each block by itself, behind its prefix.

    Args:
        query: [1, heads, tokens, head width]; `key` and `value` [1, key heads, tokens, head width], where the heads
            are a multiple of the key heads.
        scale: of the products; 1 / sqrt(head width) where None.
        window: a token reads only that many, itself included (sliding attention).
    Returns:
        [1, tokens, heads, head width].
    """
    repeats = query.shape[1] // key.shape[1]
    places = {block.start: place for place, block in enumerate(packing.blocks)}
    # Split once and not sliced for each reader: a slice's gradient is as long as the row.
    sizes = [block.stop - block.start for block in packing.blocks]
    queries, keys, values = (torch.split(states, sizes, 2) for states in (query, key, value))
    parts = []
    for place, block in enumerate(packing.blocks):
        read = [places[block.prefix_start], place] if block.prefix else [place]
        read_keys, read_values = (_joined([states[i] for i in read], repeats) for states in (keys, values))
        mask = packing.mask(block.stop - block.start, read_keys.shape[2], window, query.device)
        parts.append(scaled_dot_product_attention(queries[place], read_keys, read_values, attn_mask=mask,
                                                  is_causal=mask is None, scale=scale))
    return torch.cat(parts, 2).transpose(1, 2)


def _joined(states: list[Tensor], repeats: int) -> Tensor:
    joined = torch.cat(states, 2) if len(states) > 1 else states[0]
    return joined.repeat_interleave(repeats, 1) if repeats > 1 else joined
