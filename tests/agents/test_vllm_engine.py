"""vLLM itself, with a policy of two layers: `make vllm` installs it and runs this."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from turncredit.agents import AsynchronousAgent, EngineAgent, Request, Sampling
from turncredit.agents.adapter_files import AdapterFiles
from turncredit.agents.tiny import make_tiny_model
from turncredit.agents.vllm_engine import VllmEngine
from turncredit.config import LoraConfig, ModelConfig, TinyModel
from turncredit.errors import EngineError, UserError
from turncredit.rollout import Budget, Rollout, TaskRef
from turncredit.trainer.lora import adapter_settings, add_adapter
from turncredit.trainer.policy import Policy
from turncredit.trainer.weights import WeightLink, agreement, export_untied, untied_weights

pytest.importorskip("vllm", reason="vllm is not installed: make vllm")
REQUESTS = [Request([20 + i, 30, 40 + i], 5 + i, 100 + i) for i in range(4)]
Sampler = tuple[VllmEngine, Policy]


@pytest.fixture(scope="module")
def loaded(tokenizer_for: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sampler]:
    tokenizer = tokenizer_for("chatml")
    # vLLM's attention on the CPU takes no heads narrower than 32.
    model = make_tiny_model(TinyModel(width=64, layers=2, heads=2, context=512), tokenizer, seed=3)
    policy = Policy(model, tokenizer, ModelConfig(path=".", tool_calls="plain"))
    folder = tmp_path_factory.mktemp("model")
    export_untied(policy, folder)
    engine = VllmEngine(folder, max_context=256, max_batch=16, dtype="float32")
    yield engine, policy
    engine.close()


@pytest.fixture
def sampler(loaded: Sampler) -> Iterator[Sampler]:
    """The engine with the policy's weights, and both as they were afterwards."""
    engine, policy = loaded
    before = copy.deepcopy(policy.model.state_dict())
    yield engine, policy
    policy.model.load_state_dict(before)
    engine.load(untied_weights(policy).items())


def test_what_is_sampled_has_the_trainer_s_logprobs(sampler: Sampler) -> None:
    engine, policy = sampler
    found = agreement(engine, policy, 1)
    assert found.max < 1e-4


def test_the_same_seeds_give_the_same_tokens_beside_others_too(sampler: Sampler) -> None:
    engine, _ = sampler
    alone = [engine.generate([request], Sampling(), [])[0] for request in REQUESTS]
    together = engine.generate([*reversed(REQUESTS)], Sampling(), [])
    assert [one.token_ids for one in alone] == [one.token_ids for one in reversed(together)]


def test_a_turn_ends_with_a_stop_token_and_nowhere_else(sampler: Sampler) -> None:
    engine, policy = sampler
    eos = policy.tokenizer.eos_token_id
    many = [Request([20, 30], 200, i) for i in range(16)]
    for sample in engine.generate(many, Sampling(), [eos, 7]):
        assert sample.ended == (sample.token_ids[-1] in (eos, 7))
        assert sample.ended or len(sample.token_ids) == 200
        assert not {eos, 7} & set(sample.token_ids[:-1])
    unstopped = list(engine.generate(many, Sampling(), []))
    assert all(len(sample.token_ids) == 200 and not sample.ended for sample in unstopped)
    assert any(eos in sample.token_ids for sample in unstopped), "the model's own end token is one like the others"


def test_a_request_that_cannot_be_is_one_error_among_samples(sampler: Sampler) -> None:
    engine, _ = sampler
    long, short = engine.generate([Request([5] * 300, 4, 0), REQUESTS[0]], Sampling(), [])
    assert isinstance(long, EngineError)
    assert len(short.token_ids) == 5


def test_new_weights_arrive_whole(sampler: Sampler) -> None:
    engine, policy = sampler
    link = WeightLink(engine, policy, 1e-4, seed=0)
    link.try_out()
    for name, parameter in policy.model.named_parameters():
        with torch.no_grad():
            parameter.mul_(1.3)
        stale = agreement(engine, policy, 0)
        assert stale.mean > 1e-3, f"a change of {name} would not be seen"
        link.send(engine.policy_version + 1)


@pytest.mark.parametrize("left_behind", ["lm_head", "norm", "embed_tokens", "layers.1.mlp.down_proj"])
def test_weights_that_stay_behind_stop_the_run_before_its_first_step(sampler: Sampler, left_behind: str) -> None:
    engine, policy = sampler
    real = engine.load
    engine.load = lambda weights: real([(n, t) for n, t in weights if left_behind not in n])  # type: ignore[method-assign]
    try:
        with pytest.raises(UserError, match="some of the weights did not arrive"):
            WeightLink(engine, policy, 1e-3, seed=0).try_out()
    finally:
        engine.load = real  # type: ignore[method-assign]


def test_a_trial_leaves_policy_and_engine_as_they_were(sampler: Sampler) -> None:
    engine, policy = sampler
    before = copy.deepcopy(policy.model.state_dict())
    first = engine.generate(REQUESTS, Sampling(), [])
    WeightLink(engine, policy, 1e-3, seed=0).try_out()
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.model.state_dict().items())
    again = engine.generate(REQUESTS, Sampling(), [])
    assert [s.token_ids for s in first] == [s.token_ids for s in again]


def test_a_later_turn_reads_no_more_than_what_is_new(sampler: Sampler) -> None:
    engine, _ = sampler
    context = list(range(10, 170))
    engine.generate([Request(context, 4, 0, episode=1)], Sampling(), [])
    cached: list[int] = []
    step = engine._engine.step

    def noted() -> Any:
        outputs = step()
        cached.extend(output.num_cached_tokens for output in outputs)
        return outputs

    engine._engine.step = noted
    try:
        engine.generate([Request([*context, 5, 6], 4, 1, episode=1)], Sampling(), [])
        engine.forget()
        engine.generate([Request([*context, 5, 6], 4, 1, episode=1)], Sampling(), [])
    finally:
        engine._engine.step = step
    assert cached[0] >= 96, "blocks of the first turn"
    assert cached[1] == 0, "forgotten"


@pytest.mark.parametrize("kind", [EngineAgent, AsynchronousAgent])
def test_whole_episodes_are_sampled_and_score_as_sampled(sampler: Sampler, kind: Any) -> None:
    engine, policy = sampler
    rollout = Rollout(kind(engine, policy.chat), policy.chat, Budget(8, 24, 250), "plain")
    groups = rollout.sample_groups([TaskRef("turncredit/Pantry-v0", 1, {"level": 1})] * 2, 4, seed=0)
    rollout.close()
    for episode in (e for group in groups for e in group.episodes):
        assert not episode.stop.infrastructure, episode.error
        ids = torch.from_numpy(episode.token_ids.astype(np.int64))[None]
        with torch.no_grad():
            logprobs = policy.model(input_ids=ids).logits[0].log_softmax(-1)
        places = np.flatnonzero(episode.generated)
        expected = logprobs[places - 1, ids[0, places]].numpy()
        np.testing.assert_allclose(episode.logprobs, expected, atol=1e-4)


def test_an_engine_that_fails_in_mid_turn_can_be_asked_again(sampler: Sampler) -> None:
    engine, policy = sampler
    step, failed = engine._engine.step, []

    def fail_once() -> Any:
        if not failed:
            failed.append(True)
            raise RuntimeError("broken")
        return step()

    engine._engine.step = fail_once
    agent = EngineAgent(engine, policy.chat)

    async def run() -> list[Any]:
        seats = [agent.start(None) for _ in REQUESTS]
        said = await asyncio.gather(*(s.act(r) for s, r in zip(seats, REQUESTS)))
        for seat in seats:
            seat.end()
        return list(said)

    try:
        assert [len(s.token_ids) for s in asyncio.run(run())] == [len(s.token_ids) for s in engine.generate(
            REQUESTS, Sampling(), policy.chat.stop_ids)]
    finally:
        engine._engine.step = step


def test_an_adapter_is_swapped_while_the_engine_runs(loaded: Sampler, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    _, plain = loaded
    policy = Policy(copy.deepcopy(plain.model), plain.tokenizer, plain.config)
    add_adapter(policy.model, LoraConfig(rank=4, alpha=8.0), 0, ".")
    export_untied(policy, tmp_path / "base", adapted=False)
    files = AdapterFiles(tmp_path / "adapters", adapter_settings(policy.model))
    engine = VllmEngine(tmp_path / "base", max_context=256, max_batch=16, dtype="float32", adapter=files)
    try:
        link = WeightLink(engine, policy, 1e-4, seed=0, adapter=True)
        link.try_out()
        for version in (1, 2):
            with torch.no_grad():
                for parameter in (p for p in policy.model.parameters() if p.requires_grad):
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(version)))
            assert agreement(engine, policy, 0).mean > 1e-3, "the engine has the adapter from before"
            assert link.send(version).max < 1e-4
        assert len(list((tmp_path / "adapters").iterdir())) == 2, "older ones are deleted"
        engine.load = lambda weights: None  # type: ignore[method-assign]
        with pytest.raises(UserError, match="some of the weights did not arrive"):
            link.try_out()
    finally:
        engine.close()
