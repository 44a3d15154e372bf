"""The engine's logprobs are the model's own, and a request's sample depends on nothing but the request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from turncredit.agents import Request, Sampling, TransformersEngine
from turncredit.agents.draw import draw
from turncredit.errors import UserError

PLAIN = Sampling()
SHAPED = Sampling(temperature=0.7, top_p=0.8)


@pytest.fixture(scope="module")
def model(tokenizer_for: Any, model_for: Any) -> Any:
    return model_for(tokenizer_for("chatml"))


@pytest.fixture
def engine(model: Any) -> TransformersEngine:
    return TransformersEngine(model)


def requests(count: int, tokens: int = 12) -> list[Request]:
    """Contexts of very different lengths, token 0 and repetitions among them."""
    rng = np.random.default_rng(5)
    return [Request(rng.integers(0, 300, size=1 + 9 * i).tolist(), tokens, seed=100 + i) for i in range(count)]


@torch.no_grad()
def plain_forward(model: Any, context: list[int], ids: list[int], temperature: float) -> torch.Tensor:
    """Log-probabilities over the vocabulary at each of `ids`, from one forward pass without cache or padding."""
    logits = model(input_ids=torch.tensor([[*context, *ids]])).logits[0].float()
    return torch.log_softmax(logits[len(context) - 1:-1] / temperature, -1)


@pytest.mark.parametrize("sampling", [PLAIN, SHAPED], ids=str)
def test_logprobs_equal_a_plain_forward_pass(model: Any, engine: TransformersEngine, sampling: Sampling) -> None:
    asked = requests(7)
    for request, sample in zip(asked, engine.generate(asked, sampling, stop_ids=[])):
        context, ids = list(request.context), sample.token_ids
        pick = torch.arange(len(ids)), torch.tensor(ids)
        expected = plain_forward(model, context, ids, 1.0)[pick]
        np.testing.assert_allclose(sample.logprobs, expected, atol=1e-4)
        shaped = plain_forward(model, context, ids, sampling.temperature)
        ordered = shaped.exp().sort(-1, descending=True).values
        kept = (ordered.cumsum(-1) - ordered < sampling.top_p) * ordered  # the nucleus
        np.testing.assert_allclose(sample.sampling_logprobs, shaped[pick] - kept.sum(-1).log(), atol=1e-4)
        assert sample.logprobs.dtype == sample.sampling_logprobs.dtype == np.float32


def test_keys_and_values_are_kept_under_autocast(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    def in_bf16() -> Any:
        return torch.autocast("cpu", torch.bfloat16)

    engine, asked = TransformersEngine(model, precision=in_bf16), requests(4)
    for request, sample in zip(asked, engine.generate(asked, PLAIN, stop_ids=[])):
        with in_bf16():
            expected = plain_forward(model, list(request.context), sample.token_ids, 1.0)
        picked = expected[torch.arange(len(sample.token_ids)), torch.tensor(sample.token_ids)]
        assert np.abs(sample.logprobs - picked.numpy()).mean() < 0.05
    assert "read anew" not in caplog.text


def test_at_temperature_one_both_logprobs_are_the_same(engine: TransformersEngine) -> None:
    for sample in engine.generate(requests(3), PLAIN, []):
        np.testing.assert_array_equal(sample.logprobs, sample.sampling_logprobs)


@pytest.mark.parametrize("sampling", [PLAIN, SHAPED], ids=str)
def test_a_request_gets_the_same_sample_whatever_else_is_in_the_batch(model: Any, sampling: Sampling) -> None:
    asked = requests(7)
    together = TransformersEngine(model).generate(asked, sampling, [7, 8, 9])
    for engine, order in ((TransformersEngine(model, max_batch=1), asked), (TransformersEngine(model, 3), asked),
                          (TransformersEngine(model), asked[::-1]), (TransformersEngine(model), asked[2:4])):
        samples = dict(zip((r.seed for r in order), engine.generate(order, sampling, [7, 8, 9])))
        for request, expected in zip(asked, together):
            if request.seed in samples:
                assert samples[request.seed].token_ids == expected.token_ids
                np.testing.assert_allclose(samples[request.seed].logprobs, expected.logprobs, atol=1e-4)


def test_another_seed_is_another_sample(engine: TransformersEngine) -> None:
    samples = engine.generate([Request([1, 2, 3], 12, seed) for seed in range(6)], PLAIN, [])
    assert len({tuple(sample.token_ids) for sample in samples}) == 6


def test_sampling_leaves_global_generators_and_the_model_s_mode_alone(model: Any, engine: TransformersEngine) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    model.train()
    try:
        engine.generate(requests(2), PLAIN, [])
        assert model.training
    finally:
        model.eval()
    after = torch.rand(1), np.random.random()
    torch.manual_seed(3)
    np.random.seed(3)
    assert (torch.rand(1), np.random.random()) == after


def test_a_sampled_stop_token_ends_the_turn_and_belongs_to_it(engine: TransformersEngine) -> None:
    free = engine.generate([Request([1, 2, 3], 12, seed=4)], PLAIN, [])[0]
    stop = free.token_ids[5]
    first = free.token_ids.index(stop)
    stopped = engine.generate([Request([1, 2, 3], 12, seed=4)], PLAIN, [stop])[0]
    assert stopped.token_ids == free.token_ids[:first + 1]
    assert stopped.ended
    assert not free.ended


def test_every_request_has_its_own_token_limit(engine: TransformersEngine) -> None:
    samples = engine.generate([Request([1, 2], limit, seed=limit) for limit in (1, 5, 3)], PLAIN, [])
    assert [len(sample.token_ids) for sample in samples] == [1, 5, 3]
    assert engine.generate([], PLAIN, []) == []


def test_temperature_zero_takes_the_likeliest_token(model: Any, engine: TransformersEngine) -> None:
    sample = engine.generate([Request([5, 6, 7], 8, seed=1)], Sampling(temperature=0), [])[0]
    logprobs = plain_forward(model, [5, 6, 7], sample.token_ids, 1.0)
    assert sample.token_ids == logprobs.argmax(-1).tolist()
    assert sample.sampling_logprobs.tolist() == [0.0] * 8


def grid(count: int) -> torch.Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@given(logits=st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12),
       temperature=st.sampled_from([0.5, 1.0, 2.0]), top_p=st.sampled_from([0.3, 0.9, 1.0]))
def test_tokens_are_drawn_in_proportion_to_their_probability(logits: list[float], temperature: float,
                                                             top_p: float) -> None:
    # By inversion: equally spaced numbers draw each token as often as its probability says, to within one.
    count = 4000
    tokens, logprobs, sampling_logprobs = draw(torch.tensor([logits]).expand(count, -1), Sampling(temperature, top_p),
                                               grid(count))
    policy = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1)
    shaped = torch.softmax(torch.tensor(logits, dtype=torch.float64) / temperature, -1)
    drawn = torch.bincount(tokens, minlength=len(logits))
    kept = drawn > 0
    if top_p == 1:
        expected = shaped * count
    else:
        order = sorted(range(len(logits)), key=lambda i: -shaped[i])
        size = next(n for n in range(1, len(logits) + 1) if shaped[order[:n]].sum() >= top_p - 1e-6 or n == len(logits))
        # Ties and rounding at the edge of the nucleus may keep one token more or another one of the same probability.
        assert int(kept.sum()) <= size + 1
        expected = torch.where(kept, shaped, 0) / shaped[kept].sum() * count
    assert (drawn - expected).abs().max() <= 1.5
    torch.testing.assert_close(logprobs.double(), policy[tokens], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sampling_logprobs.double().exp(), (expected / count)[tokens], atol=1e-3, rtol=1e-2)


def test_a_token_without_probability_is_never_drawn() -> None:
    impossible = -torch.inf
    logits = torch.tensor([[impossible, 1.0, impossible, 1.0, 0.5, impossible, impossible]])
    extremes = torch.tensor([0.0, 2**-53, 0.5, 1 - 2**-53], dtype=torch.float64)
    for sampling in (PLAIN, Sampling(0.5), Sampling(top_p=0.7)):
        tokens, logprobs, sampling_logprobs = draw(logits.expand(4, -1), sampling, extremes)
        assert set(tokens.tolist()) <= {1, 3, 4}
        assert torch.isfinite(logprobs).all()
        assert torch.isfinite(sampling_logprobs).all()


def test_the_last_place_in_a_large_vocabulary_draws_a_token_with_probability() -> None:
    # Rounding in the cumulative sum must not let the largest number that is drawn fall behind the last likely token.
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(64, 50_000, generator=rng) * 6
    logits[:, -1000:] = -torch.inf
    tokens, logprobs, _ = draw(logits, PLAIN, torch.full((64,), 1 - 2**-53, dtype=torch.float64))
    assert int(tokens.max()) < 49_000
    assert torch.isfinite(logprobs).all()


@pytest.mark.parametrize("arguments, sentence", [
    ({"temperature": -0.1}, "sampling.temperature is -0.1: it must be 0"),
    ({"temperature": float("nan")}, "sampling.temperature is nan"),
    ({"temperature": float("inf")}, "sampling.temperature is inf"),
    ({"top_p": 0.0}, r"sampling.top_p is 0.0: it must lie in \(0, 1\]"),
    ({"top_p": 1.1}, "sampling.top_p is 1.1"),
])
def test_a_distribution_that_is_none_is_refused(arguments: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Sampling(**arguments)


def test_large_layers_are_packed_for_the_cpu_and_packed_again_after_an_update(tokenizer_for: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=2100, hidden_size=256, intermediate_size=2100, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=None, pad_token_id=None)).eval()
    engine = TransformersEngine(model)
    assert len(engine._packed._layers) == 4, "the head and the three of the MLP"
    for _ in range(2):
        asked = requests(5, tokens=4)
        samples = engine.generate(asked, PLAIN, [])
        assert not any("forward" in vars(m) for m in model.modules()), "the model is left as it was"
        for request, sample in zip(asked, samples):
            expected = plain_forward(model, list(request.context), sample.token_ids, 1.0)
            chosen = expected[torch.arange(4), torch.tensor(sample.token_ids)]
            np.testing.assert_allclose(sample.logprobs, chosen, atol=1e-4)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.1)
