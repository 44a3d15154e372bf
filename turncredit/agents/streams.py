"""An engine's requests and samples as a stream: requests go in at any time, samples come out as they end."""

from __future__ import annotations

from collections.abc import Sequence

from turncredit.agents.base import Engine, Request, Sample, Sampling, Stream
from turncredit.errors import EngineError


class Batches:
    """A stream made of an engine that takes whole batches."""

    def __init__(self, engine: Engine, sampling: Sampling, stop_ids: Sequence[int]) -> None:
        self._engine, self._sampling, self._stop_ids = engine, sampling, stop_ids
        self._added = 0
        self._waiting: list[tuple[int, Request]] = []

    @property
    def unfinished(self) -> int:
        return len(self._waiting)

    def add(self, requests: Sequence[Request]) -> list[int]:
        numbers = list(range(self._added, self._added + len(requests)))
        self._added += len(requests)
        self._waiting += zip(numbers, requests)
        return numbers

    def step(self) -> list[tuple[int, Sample | EngineError]]:
        batch, self._waiting = self._waiting, []
        samples = self._engine.generate([request for _, request in batch], self._sampling, self._stop_ids)
        return [(number, sample) for (number, _), sample in zip(batch, samples, strict=True)]


def stream_of(engine: Engine, sampling: Sampling, stop_ids: Sequence[int]) -> Stream:
    """The engine's own stream, or its batches as one."""
    own = getattr(engine, "stream", None)
    stream: Stream = Batches(engine, sampling, stop_ids) if own is None else own(sampling, stop_ids)
    return stream
