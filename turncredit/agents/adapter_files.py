"""A LoRA adapter as peft writes it, for engines that take one beside the base's weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

NAME = "policy-adapter"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM makes room for


class AdapterFiles:
    """Writes each version of an adapter into a folder of its own, since an engine tells versions apart by the path.

    Args:
        folder: in which they are made; of earlier versions the last one stays, which may still be read.
        settings: what peft's adapter_config.json says: r, lora_alpha, target_modules and the like.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder, self._settings = folder, dict(settings)
        self._written: list[Path] = []
        self._count = 0

    @property
    def room(self) -> int:
        """The rank that an engine has to make room for."""
        rank = int(self._settings["r"])
        return next((room for room in RANKS if room >= rank), rank)

    def write(self, weights: Iterable[tuple[str, Any]]) -> Path:
        """Write the weights, by the names that peft gives them; returns the folder to be loaded."""
        from safetensors.torch import save_file

        path = self._folder / f"{NAME}-{self._count}"
        self._count += 1
        path.mkdir(parents=True, exist_ok=True)
        (path / "adapter_config.json").write_text(json.dumps(self._settings))
        save_file({name: tensor.detach().to("cpu", copy=True).float().contiguous() for name, tensor in weights},
                  path / "adapter_model.safetensors")
        self._written.append(path)
        while len(self._written) > 2:
            shutil.rmtree(self._written.pop(0), ignore_errors=True)
        return path.resolve()
