"""Values of generated tokens, summed up as metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from turncredit.trainer.parallel import World


class TokenStatistics:
    """Values of generated tokens, gathered over the micro-batches of one update."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, **values: Tensor) -> None:
        """Take down values of some tokens, [tokens] each."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.detach().float().cpu())

    def merge(self, world: World) -> None:
        """Take in what the other processes gathered."""
        if world.size > 1:
            shares = world.gathered(self._values)
            names = dict.fromkeys(name for share in shares for name in share)
            self._values = {name: [v for share in shares for v in share.get(name, [])] for name in names}

    def summary(self, **rest: Any) -> dict[str, Any]:
        """Means, maxima and percentiles over all tokens, beside `rest`; None for what was not measured."""
        values = {name: torch.cat(parts).numpy() for name, parts in self._values.items()}
        for name in ("entropy", "ratio", "clipped", "weight", "drift"):
            rest[f"{name}_mean"] = float(values[name].mean()) if name in values else None
        for name in ("importance", "sampler_ratio"):
            if name in values:
                rest |= {f"{name}_mean": float(values[name].mean()), f"{name}_max": float(values[name].max())}
        rest["ratio_max"] = float(values["ratio"].max()) if "ratio" in values else None
        rest["drift_max"] = float(values["drift"].max()) if "drift" in values else None
        for percent in (25, 50, 75, 95):
            rest[f"kl_p{percent}"] = float(np.percentile(values["kl"], percent)) if "kl" in values else None
        rest["weight_above_half"] = float((values["weight"] > 0.5).mean()) if "weight" in values else None
        return rest
