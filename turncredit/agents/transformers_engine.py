"""The embedded default engine: any causal model of transformers, which lives in this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from turncredit.agents.base import Request, Sample, Sampling, Stream
from turncredit.agents.continuous import ContinuousBatch
from turncredit.agents.kept import KeyValueShape
from turncredit.agents.packed import PackedLinears
from turncredit.agents.plain_batch import sample_plainly
from turncredit.agents.streams import Batches

log = logging.getLogger(__name__)


class TransformersEngine:
    """Samples from a causal language model that lives in this process (the trainer's own, as a rule).

    Keys and values are kept over the turns of an episode, and a group's prompt is read once. Models with other
    states (a sliding window, recurrent layers) are found out by a trial, and their contexts read anew each turn.

    Args:
        model: a transformers causal language model; it is used as it stands, so an optimiser's step is seen at once.
        max_batch: sequences sampled side by side.
        precision: makes the context in which the model runs (autocast, say): the trainer's, so that both agree.
        cache_bytes: of keys and values, in the batch and kept between turns, each; by default a quarter of the
            memory that is free.
    """

    def __init__(self, model: Any, max_batch: int = 64,
                 precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
                 cache_bytes: int | None = None) -> None:
        self.model, self.precision = model, precision
        self.max_batch, self.cache_bytes = max_batch, cache_bytes
        self.policy_version = 0
        self.max_context = int(model.config.max_position_embeddings)
        self._batch: ContinuousBatch | None = None
        self._tried = False
        self._weights: tuple[int, ...] = ()
        self._packed = PackedLinears(model, _free_bytes(model.device) // 4)

    @property
    def keeps(self) -> bool:
        """Whether keys and values are kept over the turns of an episode."""
        self._try_once()
        return self._batch is not None

    def generate(self, requests: Sequence[Request], sampling: Sampling, stop_ids: Sequence[int]) -> list[Sample]:
        """One sample a request. Each token is drawn with the request's own random numbers, by inversion."""
        self._try_once()
        with self._ready():
            if self._batch is None:
                return [sample for start in range(0, len(requests), self.max_batch)
                        for sample in sample_plainly(self.model, requests[start:start + self.max_batch], sampling,
                                                     stop_ids)]
            return self._generate(self._batch, requests, sampling, stop_ids)

    def stream(self, sampling: Sampling, stop_ids: Sequence[int]) -> Stream:
        """Requests that come at any time, each of which gets a row as soon as there is one."""
        self._try_once()
        if self._batch is None:
            return Batches(self, sampling, stop_ids)
        self._batch.draw_from(sampling, stop_ids)
        return _Stream(self, self._batch)

    def forget(self) -> None:
        """Drop what is kept of episodes."""
        if self._batch is not None:
            self._batch.forget()

    def _generate(self, batch: ContinuousBatch, requests: Sequence[Request], sampling: Sampling,
                  stop_ids: Sequence[int]) -> list[Sample]:
        self._forget_other_weights(batch)
        batch.draw_from(sampling, stop_ids)
        samples: dict[int, Sample] = {}
        try:
            numbers = batch.add(requests)
            while batch.unfinished:
                samples.update(batch.step())
        except BaseException:
            batch.forget()  # a step broke off half-way
            raise
        return [samples[number] for number in numbers]

    def _forget_other_weights(self, batch: ContinuousBatch) -> None:
        """Drop what other weights have read."""
        if self._weights != (weights := self._stamp()):
            batch.forget()
            self._weights = weights

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The model in evaluation mode and in the trainer's precision."""
        was_training = self.model.training
        if was_training:
            self.model.eval()
        try:
            with self.precision(), self._packed.used():
                yield
        finally:
            if was_training:
                self.model.train()

    def _stamp(self) -> tuple[int, ...]:
        """Changes with every change of a weight in place, and when one is replaced."""
        weights = list(self.model.parameters())
        return (self.policy_version, sum(w._version for w in weights), hash(tuple(w.data_ptr() for w in weights)))

    # Does the model keep what we take it to keep?

    def _try_once(self) -> None:
        """Sample two turns with keys and values kept, and compare with a plain forward pass."""
        if self._tried:
            return
        self._tried = True
        try:
            with self._ready(), torch.inference_mode():
                shape = self._shape()
                batch = ContinuousBatch(self.model, shape, self.max_batch, self._bytes())
                difference = self._trial(batch)
                exact = shape.dtype == torch.float32 and not torch.is_autocast_enabled(self.model.device.type)
            allowed = 1e-3 if exact else 0.25
            if not difference <= allowed:
                raise ValueError(f"logprobs differ by {difference:.2g} from those of a plain forward pass")
            batch.forget()
            self._batch = batch
        except Exception as error:  # whatever a model of another kind does: there is a way for it too
            log.warning("%s: contexts are read anew at each turn, since keys and values cannot be kept: %s",
                        type(self.model).__name__, error)

    def _shape(self) -> KeyValueShape:
        """What the model keeps of a token, from a forward pass over some."""
        if self.model.config._attn_implementation not in ("sdpa", "eager"):
            raise ValueError(f"its attention is {self.model.config._attn_implementation!r}")
        cache = DynamicCache(config=self.model.config)
        self.model(input_ids=torch.tensor([[1, 2, 3]], device=self.model.device), past_key_values=cache, use_cache=True)
        if odd := [type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer]:
            raise ValueError(f"it has layers of the kind {odd[0]}")
        sizes = {(t.shape[1], t.shape[3], t.dtype, t.device) for layer in cache.layers
                 for t in (layer.keys, layer.values)}
        if len(sizes) != 1:
            raise ValueError("its layers are of different sizes")
        heads, width, dtype, device = sizes.pop()
        return KeyValueShape(len(cache.layers), heads, width, dtype, device)

    def _trial(self, batch: ContinuousBatch) -> float:
        """The largest difference of a logprob, over two turns of two episodes of different lengths."""
        batch.draw_from(Sampling(), ())
        contexts, differences = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10]], []
        for turn in range(2):
            numbers = batch.add([Request(c, 3, seed=turn, episode=i) for i, c in enumerate(contexts)])
            samples: dict[int, Sample] = {}
            while batch.unfinished:
                samples.update(batch.step())
            for i, number in enumerate(numbers):
                ids, context = samples[number].token_ids, contexts[i]
                logits = self.model(input_ids=torch.tensor([[*context, *ids]], device=batch.shape.device)).logits[0]
                expected = torch.log_softmax(logits[len(context) - 1:-1].float(), -1).cpu()
                chosen = expected.gather(1, torch.tensor(ids)[:, None])[:, 0]
                differences.append(float((chosen - torch.from_numpy(samples[number].logprobs)).abs().max()))
                contexts[i] = [*context, *ids, 11, 12]
        return max(differences)

    def _bytes(self) -> int:
        return _free_bytes(self.model.device) // 4 if self.cache_bytes is None else self.cache_bytes


def _free_bytes(device: torch.device) -> int:
    """Memory that nobody uses, on that device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class _Stream:
    """The engine's rows as a stream."""

    def __init__(self, engine: TransformersEngine, batch: ContinuousBatch) -> None:
        self._engine, self._batch = engine, batch

    @property
    def unfinished(self) -> int:
        return self._batch.unfinished

    def add(self, requests: Sequence[Request]) -> list[int]:
        if not self.unfinished:
            self._engine._forget_other_weights(self._batch)
        return self._batch.add(requests)

    def step(self) -> list[tuple[int, Sample]]:
        try:
            with self._engine._ready():
                return self._batch.step()
        except BaseException:
            self._batch.forget()  # a step broke off half-way
            raise
