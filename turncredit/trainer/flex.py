"""Attention of a packed row in one kernel: torch's flex attention, with a mask for what `attention.py` loops over.

Tiles of the row in which nothing is read are left out, so that blocks cost what they cost one by one, without a launch
for each and without laying keys and values of a prompt beside each response's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from turncredit.trainer.attention import Packing

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def attention_of_row(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float | None = None,
                     window: int | None = None) -> Tensor:
    """What `packed_attention` computes, of the same arguments."""
    if window not in packing.block_masks:
        tokens = query.shape[2]
        packing.block_masks[window] = flex.create_block_mask(mask_of(packing, window, query.device), None, None, tokens,
                                                             tokens, device=query.device)
    compute = flex.flex_attention if query.device.type == "cpu" else _compiled()
    attended: Tensor = compute(query, key, value, block_mask=packing.block_masks[window], scale=scale,
                               enable_gqa=query.shape[1] != key.shape[1],
                               kernel_options={"FORCE_USE_FLEX_ATTENTION": True})  # not the one for single tokens
    return attended.transpose(1, 2)


def mask_of(packing: Packing, window: int | None, device: torch.device) -> Mask:
    """mask(batch, head, query, key): whether a token of the row reads another one."""
    sizes = torch.tensor([block.stop - block.start for block in packing.blocks])
    start, prefix_start, prefix_stop = (
        torch.tensor([getattr(block, name) for block in packing.blocks]).repeat_interleave(sizes).to(device)
        for name in ("start", "prefix_start", "prefix_stop"))
    places = torch.arange(len(start), device=device) - start + prefix_stop - prefix_start  # in each one's own sequence

    def reads(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (key >= start[query]) & (key <= query)
        before = (key >= prefix_start[query]) & (key < prefix_stop[query])
        return own | before

    if window is None:
        return reads
    near = window

    def reads_near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return reads(batch, head, query, key) & (places[query] - places[key] < near)

    return reads_near


@lru_cache(maxsize=1)
def _compiled() -> Any:
    """One kernel for rows of every length. Uncompiled it would lay out every pair of tokens."""
    return torch.compile(flex.flex_attention, dynamic=True)
