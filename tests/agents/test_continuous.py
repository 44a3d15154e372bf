"""Keys and values kept over turns spare reading, and change nothing else."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from turncredit.agents import Request, Sample, Sampling, TransformersEngine
from turncredit.agents.plain_batch import sample_plainly

PLAIN = Sampling()
STOPS = [7, 8, 9, 10]


@pytest.fixture(scope="module")
def model(tokenizer_for: Any, model_for: Any) -> Any:
    return model_for(tokenizer_for("chatml"))


@contextmanager
def read_by(model: Any) -> Iterator[list[int]]:
    """The number of real tokens in each forward pass."""
    passes: list[int] = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        mask = kwargs["attention_mask"]
        padded = kwargs["position_ids"] == 0
        padded[:, -1] = False
        first = (kwargs["position_ids"][:, -1:] + 1 == torch.arange(mask.shape[2], 0, -1)) & padded
        passes.append(int((~padded | first).sum()))

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        hook.remove()


def episodes(engine: TransformersEngine, turns: int = 3, groups: int = 2, size: int = 3,
             max_tokens: int = 6) -> list[tuple[Request, Sample]]:
    """Several turns of groups of episodes, with observations of different lengths."""
    rng = np.random.default_rng(3)
    prompts = [rng.integers(20, 300, 9 + 14 * g).tolist() for g in range(groups)]
    contexts = [list(prompts[g]) for g in range(groups) for _ in range(size)]
    said = []
    for turn in range(turns):
        asked = [Request(context, max_tokens + i % 3, 100 * turn + i, episode=i) for i, context in enumerate(contexts)]
        samples = engine.generate(asked, PLAIN, STOPS)
        said += list(zip(asked, samples))
        contexts = [[*request.context, *sample.token_ids, *rng.integers(20, 300, 1 + i % 4 * 3).tolist()]
                    for i, (request, sample) in enumerate(zip(asked, samples))]
    return said


def assert_as_without_keeping(model: Any, said: list[tuple[Request, Sample]]) -> None:
    for request, sample in said:
        expected = sample_plainly(model, [request], PLAIN, STOPS)[0]
        assert sample.token_ids == expected.token_ids
        assert sample.ended == expected.ended
        np.testing.assert_allclose(sample.logprobs, expected.logprobs, atol=1e-4)


@pytest.mark.parametrize("max_batch", [1, 4, 64])
def test_what_is_kept_over_turns_changes_no_sample(model: Any, max_batch: int) -> None:
    assert_as_without_keeping(model, episodes(TransformersEngine(model, max_batch)))


def test_a_group_s_prompt_is_read_once_and_later_turns_read_what_is_new(model: Any) -> None:
    engine = TransformersEngine(model)
    assert engine.keeps
    with read_by(model) as passes:
        said = episodes(engine)
    first, later = said[:6], said[6:]
    prompts = sum(len(context) for context in {tuple(r.context) for r, _ in first})
    followers = 4  # each reads its prompt's last token
    sampled = sum(len(s.token_ids) - 1 for _, s in said)  # the last one is read with the next turn
    before = {r.episode: len(r.context) + len(s.token_ids) - 1 for r, s in first}
    new = 0
    for request, sample in later:
        new += len(request.context) - before[request.episode]
        before[request.episode] = len(request.context) + len(sample.token_ids) - 1
    assert sum(passes) == prompts + followers + sampled + new


def test_a_context_that_does_not_go_on_where_the_episode_was_is_read_anew(model: Any) -> None:
    engine = TransformersEngine(model)
    engine.generate([Request([30, 31, 32, 33, 34], 4, 1, episode=1)], PLAIN, [])
    for context in ([30, 31, 99, 33, 34, 35, 36, 37, 38, 39], [30, 31]):
        request = Request(context, 6, 2, episode=1)
        assert_as_without_keeping(model, [(request, engine.generate([request], PLAIN, STOPS)[0])])


def test_what_other_weights_have_read_is_not_used(model: Any) -> None:
    trained = copy.deepcopy(model)
    engine = TransformersEngine(trained)
    request = Request([30, 31, 32, 33, 34], 6, 1, episode=1)
    sample = engine.generate([request], PLAIN, STOPS)[0]
    with torch.no_grad():
        for weight in trained.parameters():
            weight.mul_(1.1)
    later = Request([*request.context, *sample.token_ids, 40], 6, 2, episode=1)
    for asked in (later, request):  # the episode's own, and the prompt that a group shares
        assert_as_without_keeping(trained, [(asked, engine.generate([asked], PLAIN, STOPS)[0])])


def test_too_little_memory_costs_time_and_nothing_else(model: Any) -> None:
    engine = TransformersEngine(model, cache_bytes=20_000)
    assert_as_without_keeping(model, episodes(engine))
    assert engine._batch is not None
    assert len(engine._batch.kept) < 6


def test_nothing_is_kept_once_no_episode_runs(model: Any) -> None:
    engine = TransformersEngine(model)
    episodes(engine)
    assert engine._batch is not None
    assert len(engine._batch.kept) == 8, "six episodes and two prompts"
    engine.forget()
    assert len(engine._batch.kept) == 0
    assert engine._batch.cache is None


def other_model(kind: str) -> Any:
    import transformers as t

    small = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "max_position_embeddings": 256, "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": None,
             "pad_token_id": None}
    grouped = small | {"intermediate_size": 48, "num_key_value_heads": 2}
    configs = {
        "gpt2": lambda: t.GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=256,
                                     initializer_range=0.3, bos_token_id=None, eos_token_id=None),
        "gpt-neox": lambda: t.GPTNeoXConfig(**small | {"intermediate_size": 48}),
        "qwen3": lambda: t.Qwen3Config(**grouped, head_dim=8),
        "gemma2": lambda: t.Gemma2Config(**grouped, head_dim=8, sliding_window=16),
        "mistral": lambda: t.MistralConfig(**grouped, sliding_window=16),
        "qwen3-moe": lambda: t.Qwen3MoeConfig(**grouped, head_dim=8, num_experts=4, num_experts_per_tok=2,
                                              moe_intermediate_size=16),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return t.AutoModelForCausalLM.from_config(configs[kind]()).eval()


@pytest.mark.parametrize("kind, keeps", [("gpt2", True), ("gpt-neox", True), ("qwen3", True), ("qwen3-moe", True),
                                         ("gemma2", False), ("mistral", False)])
def test_any_causal_model_is_sampled_as_its_plain_forward_pass_says(kind: str, keeps: bool) -> None:
    model = other_model(kind)
    engine = TransformersEngine(model, 4)
    assert engine.keeps == keeps
    for request, sample in episodes(engine, groups=1, size=2):
        ids = torch.tensor([[*request.context, *sample.token_ids]])
        with torch.no_grad():
            logprobs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)[len(request.context) - 1:-1]
        expected = logprobs.gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0]
        np.testing.assert_allclose(sample.logprobs, expected, atol=1e-4)
