"""What importance weights mend where the engine's weights are not the trainer's: a gradient beside the exact one.

A small model says three tokens out of sixteen, so all 4,096 texts can be listed and the policy gradient of a reward is
known exactly. An engine with perturbed weights samples texts; the gradient is estimated from them without correction,
and with the weights that `trainer.importance_level` and `trainer.importance_cap` give. Printed: the error of each,
|estimate - exact| / |exact|. At noise 0 it is what is due to sampling alone.

    python benchmarks/importance.py
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from turncredit.agents import Request, Sample, Sampling, TransformersEngine
from turncredit.trainer.offpolicy import importance

VOCABULARY, TOKENS, PROMPT = 16, 3, [1, 2]
WAYS: dict[str, tuple[str, float] | None] = {
    "uncorrected": None, "token, cap 2": ("token", 2.0), "token, cap 10": ("token", 10.0),
    "sequence, cap 2": ("sequence", 2.0), "sequence, cap 10": ("sequence", 10.0)}


def small_model() -> Any:
    """Its distribution is far from uniform."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
        pad_token_id=None)).eval()


def logprobs_of(model: Any, texts: Tensor) -> Tensor:
    """Of each token, [texts, tokens]."""
    prompt = torch.tensor(PROMPT).expand(len(texts), -1)
    logits = model(input_ids=torch.cat([prompt, texts], 1)).logits[:, len(PROMPT) - 1:-1]
    picked: Tensor = torch.log_softmax(logits, -1).gather(2, texts[:, :, None])[:, :, 0]
    return picked


def reward_of(texts: Tensor) -> Tensor:
    """Rises with the number of different tokens, [texts]."""
    return torch.tensor([len(set(text)) / TOKENS for text in texts.tolist()])


def gradient(model: Any, weighed: Tensor) -> Tensor:
    """Of a scalar by all weights, as one vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(weighed, list(model.parameters()))])


def exact_gradient(model: Any) -> tuple[Tensor, float]:
    """Of the expected reward, and the expected reward itself: all texts by their probability."""
    texts = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=TOKENS)))
    reward = reward_of(texts)
    probability = logprobs_of(model, texts).sum(1).exp()
    expected = (probability * reward).sum()
    return gradient(model, expected), expected.item()


def perturbed(model: Any, noise: float) -> Any:
    """Every weight moved by about that share of itself."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1 + noise * torch.randn(weight.shape, generator=generator))
    return other


def measured(model: Any, noise: float, count: int) -> dict[str, float]:
    """The errors of the estimates from so many texts."""
    exact, baseline = exact_gradient(model)
    engine = TransformersEngine(perturbed(model, noise), max_batch=256)
    samples = engine.generate([Request(PROMPT, TOKENS, seed) for seed in range(count)], Sampling(), [])
    assert all(isinstance(sample, Sample) for sample in samples)
    texts = torch.tensor([sample.token_ids for sample in samples])
    sampler = torch.from_numpy(np.stack([sample.logprobs for sample in samples]))
    trainer = logprobs_of(model, texts)
    gaps = (trainer.detach() - sampler).abs()
    advantage = reward_of(texts) - baseline
    found = {"noise": noise, "gap_mean": float(gaps.mean()), "gap_max": float(gaps.max())}
    for name, way in WAYS.items():
        weight = torch.ones(count * TOKENS)
        if way is not None:
            level, cap = way
            weight, _ = importance(trainer.flatten(), sampler.flatten(), [TOKENS] * count, cap, level=level)
        surrogate = (weight.view(count, TOKENS) * trainer * advantage[:, None]).sum() / count
        error = (gradient(model, surrogate) - exact).norm() / exact.norm()
        trainer = logprobs_of(model, texts)  # the graph is gone
        found[name] = float(error)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.005, 0.01, 0.02, 0.05])
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    model = small_model()
    for noise in wanted.noise:
        print(json.dumps({name: round(value, 3) for name, value in measured(model, noise, wanted.texts).items()}),
              flush=True)


if __name__ == "__main__":
    main()
