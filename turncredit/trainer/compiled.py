"""A model's layers under torch.compile, where episodes are scored and nowhere else.

Layer by layer, since attention goes by blocks that differ from row to row: it is left out (`attention.py`), and what
stands around it is compiled once for all layers of a kind, and for rows of any length. The modules and the names of
their weights stay as they are: only their calls are replaced, and only for the time of a pass, so that sampling, with
its rows of single tokens, compiles nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


class CompiledLayers:
    """Layers, and what takes the place of their calls. Nothing is compiled before the first one."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._calls = [(layer, torch.compile(layer._call_impl, dynamic=True)) for layer in layers]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within it the layers are called as they were compiled."""
        for layer, call in self._calls:
            layer._compiled_call_impl = call  # as `torch.nn.Module.compile` does it for good
        try:
            yield
        finally:
            for layer, _ in self._calls:
                layer._compiled_call_impl = None


def layers_of(model: Any) -> list[Any]:
    """A transformers model's layers; none where they cannot be told apart."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
