"""From the policy to an engine that has weights of its own, and the proof that they arrived.

A reload can leave a tensor as it was, silently (vLLM's CPU build does so with a tied output head). So each one is
followed by a comparison: what the engine samples is scored by the trainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
from turncredit.trainer.lora import has_adapter, merged_weights
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


def untied_weights(policy: Policy) -> dict[str, Tensor]:
    """The weights as an engine takes them: an adapter merged, and an output head of its own."""
    model = policy.model
    weights = merged_weights(model) if has_adapter(model) else dict(model.state_dict())
    head = next(name for name, module in model.named_modules() if module is policy.head)
    weights.setdefault(f"{head}.weight", policy.head.weight)
    return {name: tensor.detach() for name, tensor in weights.items()}


def export_untied(policy: Policy, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the policy so that every tensor of it can be replaced in an engine."""
    config = type(policy.model.config).from_dict(policy.model.config.to_dict())
    config.tie_word_embeddings, config.dtype = False, dtype
    config.architectures = [type(policy.model).__name__]
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    # A copy of each: tensors that share memory are not written twice.
    weights = {name: tensor.to("cpu", dtype, copy=True).contiguous() for name, tensor in untied_weights(policy).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    policy.tokenizer.save_pretrained(folder)


@torch.no_grad()
def agreement(engine: Engine, policy: Policy, seed: int) -> Agreement:
    """Sample a few texts, and hold the engine's logprobs of them against the trainer's.

    Raises:
        EngineError: it gave no samples.
    """
    prompt = policy.chat.first_prompt("", "1")
    rng = np.random.default_rng(seed_of(seed, "probe"))
    vocabulary = policy.head.weight.shape[0]
    contexts = [[*prompt, *rng.integers(0, vocabulary, 5 * i).tolist()] for i in range(PROBES)]
    requests = [Request(c, PROBE_TOKENS, seed_of(seed, "probe", i)) for i, c in enumerate(contexts)]
    samples = engine.generate(requests, Sampling(), [])
    engine.forget()
    differences = []
    for context, sample in zip(contexts, samples, strict=True):
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
    """

    def __init__(self, engine: Loads, policy: Policy, accepted: float, seed: int) -> None:
        self.engine, self.policy, self.accepted, self.seed = engine, policy, accepted, seed
        self.last: Agreement | None = None

    def try_out(self) -> None:
        """Send other weights and see whether all of them arrive; then send the policy's.

        An update of small steps would change logprobs less than rounding does, so a tensor that stays behind could not
        be told. With every tensor changed at once by a tenth it can.

        Raises:
            UserError: some do not arrive: the engine cannot be trained with.
        """
        with _changed(self.policy, self.seed):
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

    def _send(self, version: int) -> Agreement:
        self.engine.load(untied_weights(self.policy).items())
        found = agreement(self.engine, self.policy, seed_of(self.seed, version + 1))
        if not found.mean <= self.accepted:
            raise UserError(f"engine: after new weights its logprobs differ from the trainer's by {found.mean:.2g} "
                            f"nats on average ({found.max:.2g} at most), and engine.accepted_difference is "
                            f"{self.accepted:g}: some of the weights did not arrive, or its precision is another; use "
                            "another version or dtype, or the transformers engine")
        return found


@contextmanager
def _changed(policy: Policy, seed: int) -> Iterator[None]:
    """The policy with every weight moved by about a tenth, for a while."""
    generator = torch.Generator().manual_seed(seed_of(seed, "trial") % (1 << 63))
    parameters: list[Any] = list(policy.model.parameters())
    before = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for p in parameters:
                noise = torch.randn(p.shape, generator=generator).to(p)
                p.mul_(1 + 0.1 * noise)
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, before):
                p.copy_(old)
