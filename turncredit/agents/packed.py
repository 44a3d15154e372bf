"""Linear layers packed once for oneDNN, where torch would lay out their weights anew at each call (CPU, fp32)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

SMALLEST = 1 << 19  # weights of a layer from which on packing pays
ROWS = range(2, 129)  # of the batch: below and above it torch's own kernel is as fast


class PackedLinears:
    """A model's large linear layers in packed form, kept up to date with its weights.

    Args:
        model: whose `nn.Linear` layers are looked at.
        max_bytes: of the copies; the largest layers come first.
    """

    def __init__(self, model: nn.Module, max_bytes: int) -> None:
        large = [m for m in model.modules() if type(m) is nn.Linear and m.weight.numel() >= SMALLEST
                 and m.weight.device.type == "cpu" and m.weight.dtype == torch.float32]
        mkldnn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        self._layers: list[_Packed] = []
        for layer in sorted(large, key=lambda m: -m.weight.numel()):
            max_bytes -= layer.weight.nbytes
            if mkldnn and max_bytes >= 0:
                self._layers.append(_Packed(layer))

    @contextmanager
    def used(self) -> Iterator[None]:
        """The model computes with the packed weights."""
        for packed in self._layers:
            packed.refresh()
            packed.layer.forward = packed.forward  # type: ignore[method-assign]  # for as long as it is used
        try:
            yield
        finally:
            for packed in self._layers:
                del packed.layer.forward


class _Packed:
    """One layer."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self._of: tuple[int, int] | None = None

    def refresh(self) -> None:
        """Pack again where the weight has changed."""
        weight = self.layer.weight
        if self._of != (now := (weight._version, weight.data_ptr())):
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS.stop // 4)
            self._of = now

    def forward(self, input: Tensor) -> Tensor:
        """The layer's own `forward`."""
        if input.numel() // input.shape[-1] not in ROWS:
            return linear(input, self.layer.weight, self.layer.bias)
        bias: Any = None if self.layer.bias is None else self.layer.bias.detach()
        y: Tensor = torch.ops.mkldnn._linear_pointwise(input, self._weight, bias, "none", [], "")
        return y
