"""From the policy to an engine that has weights of its own, and the proof that they arrived.

A reload can leave a tensor as it was, silently (vLLM's CPU build does so with a tied output head). So each one is
followed by a comparison: what the engine samples is scored by the trainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from turncredit.agents.base import Engine, Request, Sample, Sampling
from turncredit.episode import Segment
from turncredit.errors import EngineError, UserError
from turncredit.seeds import seed_of
from turncredit.trainer.batch import make_batch
from turncredit.trainer.head import Measures
from turncredit.trainer.lora import adapter_weights, has_adapter, merged_weights
from turncredit.trainer.policy import Policy

PROBES, PROBE_TOKENS = 4, 16
ACCEPTED = {"float32": 1e-3, "bfloat16": 0.1}  # nats, mean over tokens


class Loads(Engine, Protocol):
    """An engine with weights of its own."""

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over weights, by the names that they have in the folder that `export_untied` wrote."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far an engine's logprobs are from the trainer's, in nats over the tokens of a few samples."""

    mean: float
    max: float


@dataclass(frozen=True, slots=True)
class Probes:
    """A few texts, and what an engine sampled behind them."""

    contexts: list[list[int]]
    samples: list[Sample | EngineError]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A policy's weights at one time, which stay as they are while it is trained."""

    trained: list[Tensor]  # in the order of the parameters that are trained
    weights: dict[str, Tensor]  # as an engine takes them


def untied_weights(policy: Policy, adapted: bool = True) -> dict[str, Tensor]:
    """The weights as an engine takes them: an adapter merged (or left out), and an output head of its own."""
    model = policy.model
    weights = merged_weights(model, adapted) if has_adapter(model) else dict(model.state_dict())
    head = next(name for name, module in model.named_modules() if module is policy.head)
    weights.setdefault(f"{head}.weight", policy.head.weight)
    return {name: tensor.detach() for name, tensor in weights.items()}


def export_untied(policy: Policy, folder: Path, dtype: torch.dtype = torch.float32, adapted: bool = True) -> None:
    """Write the policy so that every tensor of it can be replaced in an engine; its base alone if not `adapted`."""
    config = type(policy.model.config).from_dict(policy.model.config.to_dict())
    config.tie_word_embeddings, config.dtype = False, dtype
    config.architectures = [type(policy.model).__name__]
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    # A copy of each: tensors that share memory are not written twice.
    weights = {name: tensor.to("cpu", dtype, copy=True).contiguous()
               for name, tensor in untied_weights(policy, adapted).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    policy.tokenizer.save_pretrained(folder)


def agreement(engine: Engine, policy: Policy, seed: int) -> Agreement:
    """Sample a few texts, and hold the engine's logprobs of them against the trainer's.

    Raises:
        EngineError: it gave no samples.
    """
    return compared(probed(engine, policy, seed), policy)


def probed(engine: Engine, policy: Policy, seed: int) -> Probes:
    """Let an engine sample a few texts; no weight of the policy is looked at."""
    prompt = policy.chat.first_prompt("", "1")
    rng = np.random.default_rng(seed_of(seed, "probe"))
    vocabulary = policy.head.weight.shape[0]
    servers = len(getattr(engine, "servers", ()))  # each of which gets one
    contexts = [[*prompt, *rng.integers(0, vocabulary, 5 * i).tolist()] for i in range(max(PROBES, servers))]
    requests = [Request(c, PROBE_TOKENS, seed_of(seed, "probe", i), i if servers else None)
                for i, c in enumerate(contexts)]
    samples = engine.generate(requests, Sampling(), [])
    engine.forget()
    return Probes(contexts, list(samples))


@torch.no_grad()
def compared(probes: Probes, policy: Policy) -> Agreement:
    """Hold an engine's logprobs against the trainer's, as its weights stand.

    Raises:
        EngineError: it gave no samples.
    """
    differences = []
    for context, sample in zip(probes.contexts, probes.samples, strict=True):
        if not isinstance(sample, Sample):
            raise EngineError(f"it gave no sample for a comparison: {sample}")
        ids = np.asarray(sample.token_ids, np.int32)
        read = [Segment.text(context, "prompt"), Segment(ids, "assistant", True, sample.logprobs, sample.logprobs)]
        scored = policy.scores(make_batch([read]).to(policy.device), measures=Measures(())).logprobs
        differences.append(np.abs(scored.float().cpu().numpy() - sample.logprobs))
    every = np.concatenate(differences)
    return Agreement(float(every.mean()), float(every.max()))


class WeightLink:
    """Keeps an engine's weights those of the policy.

    Args:
        engine: with weights of its own.
        policy: whose weights it gets.
        accepted: the largest mean difference of logprobs, in nats.
        seed: of the samples that are compared.
        adapter: whether the engine has the base already, and gets the policy's adapter alone.
    """

    def __init__(self, engine: Loads, policy: Policy, accepted: float, seed: int, adapter: bool = False) -> None:
        self.engine, self.policy, self.accepted, self.seed, self.adapter = engine, policy, accepted, seed, adapter
        self.last: Agreement | None = None

    def try_out(self) -> None:
        """Send other weights and see whether all of them arrive; then send the policy's.

        An update of small steps would change logprobs less than rounding does, so a tensor that stays behind could not
        be told. With every tensor that is trained changed at once by a tenth it can.

        Raises:
            UserError: some do not arrive: the engine cannot be trained with.
        """
        with _changed(_trained(self.policy), self.seed):
            self._send(-1)
        self.send(self.engine.policy_version)

    def send(self, version: int) -> Agreement:
        """Give the engine the policy's weights as they stand.

        Raises:
            UserError: its logprobs are not the trainer's afterwards.
        """
        self.last = self._send(version)
        self.engine.policy_version = version
        return self.last

    def snapshot(self) -> Snapshot:
        """The policy's weights as they stand, in memory of their own."""
        copies = {p.data_ptr(): p.detach().to("cpu", copy=True) for p in _trained(self.policy)}
        weights = self._weights()
        return Snapshot(list(copies.values()), {name: copies.get(w.data_ptr(), w) for name, w in weights.items()})

    def load(self, snapshot: Snapshot, version: int) -> Probes:
        """Give the engine a snapshot, and let it sample; the policy may be trained meanwhile."""
        self._give(snapshot.weights)
        self.engine.policy_version = version
        return self._probed(version)

    def compare(self, probes: Probes, snapshot: Snapshot) -> Agreement:
        """Hold what was sampled with a snapshot against the trainer's logprobs with the same weights.

        Raises:
            UserError: they are not the same.
        """
        with _as_it_was(self.policy, snapshot):
            self.last = self._accepted(probes)
        return self.last

    def _send(self, version: int) -> Agreement:
        self._give(self._weights())
        return self._accepted(self._probed(version))

    def _give(self, weights: Mapping[str, Tensor]) -> None:
        try:
            self.engine.load(weights.items())
        except EngineError as error:
            raise UserError(f"engine: it took no new weights ({error}); see to it, and go on with --resume") from None

    def _weights(self) -> dict[str, Tensor]:
        return adapter_weights(self.policy.model) if self.adapter else untied_weights(self.policy)

    def _probed(self, version: int) -> Probes:
        return probed(self.engine, self.policy, seed_of(self.seed, version + 1))

    def _accepted(self, probes: Probes) -> Agreement:
        try:
            found = compared(probes, self.policy)
        except EngineError as error:
            raise UserError(f"engine: {error}; see to it, and go on with --resume") from None
        if not found.mean <= self.accepted:
            raise UserError(f"engine: after new weights its logprobs differ from the trainer's by {found.mean:.2g} "
                            f"nats on average ({found.max:.2g} at most), and engine.accepted_difference is "
                            f"{self.accepted:g}: some of the weights did not arrive, or its precision is another; use "
                            "another version or dtype, or the transformers engine")
        return found


@contextmanager
def _changed(parameters: Sequence[Tensor], seed: int) -> Iterator[None]:
    """Every weight moved by about a tenth for a while, and those of a new adapter, which are 0, by as much."""
    generator = torch.Generator().manual_seed(seed_of(seed, "trial") % (1 << 63))
    with _restored(parameters):
        with torch.no_grad():
            for p in parameters:
                noise = torch.randn(p.shape, generator=generator).to(p)
                if p.any():
                    p.mul_(1 + 0.1 * noise)
                else:
                    p.add_(0.1 * noise)
        yield


@contextmanager
def _as_it_was(policy: Policy, snapshot: Snapshot) -> Iterator[None]:
    """The policy with the weights of a snapshot, for a while."""
    parameters = _trained(policy)
    with _restored(parameters):
        with torch.no_grad():
            for p, earlier in zip(parameters, snapshot.trained, strict=True):
                p.copy_(earlier)
        yield


@contextmanager
def _restored(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Whatever is done to the parameters within is undone behind it."""
    before = [p.detach().clone() for p in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, before):
                p.copy_(old)


def _trained(policy: Policy) -> list[Tensor]:
    return [p for p in policy.model.parameters() if p.requires_grad]
