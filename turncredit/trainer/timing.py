"""Where the seconds of a step go."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Seconds:
    """Wall time by what it was spent on. A GPU is waited for, so that its work counts where it was asked for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spent: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Count what is done within."""
        began = self._now()
        try:
            yield
        finally:
            self._spent[name] += self._now() - began

    def taken(self) -> dict[str, float]:
        """What was counted since this was last asked."""
        spent, self._spent = dict(self._spent), defaultdict(float)
        return spent

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
