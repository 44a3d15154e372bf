"""Whether two folders hold the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def broken_policy(policy: Path, checkpoint: Path) -> Iterator[str]:
    """Where the final policy's weights are not, bit for bit, those of the last checkpoint."""
    import torch

    one, other = _tensors(policy), _tensors(checkpoint)
    if one.keys() != other.keys():
        yield f"policy/ has other tensors than {checkpoint.name}: {min(set(one) ^ set(other))}"
        return
    for name in one:
        if not torch.equal(one[name], other[name]):
            yield f"policy/: {name} is not as {checkpoint.name} has it"
            return


def _tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
