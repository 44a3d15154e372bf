"""What is asked of vLLM, and in which order, where it sleeps between rollouts: `make vllm` runs this.

On a CPU vLLM stops sampling and keeps its memory: all that is left out here is the memory. No GPU has seen it.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from turncredit.agents import EngineAgent, Request, Sampling, vllm_engine, vllm_server
from turncredit.agents.base import Sample
from turncredit.agents.tiny import make_tiny_model
from turncredit.agents.vllm_engine import VllmEngine
from turncredit.agents.vllm_process import LocalServer
from turncredit.agents.vllm_server import VllmServers, refuse_sleepless
from turncredit.config import ModelConfig, TinyModel
from turncredit.errors import UserError
from turncredit.trainer.policy import Policy
from turncredit.trainer.weights import WeightLink, export_untied, probed

pytest.importorskip("vllm", reason="vllm is not installed: make vllm")
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def policy(tokenizer_for: Any, tmp_path: Path) -> Policy:
    tokenizer = tokenizer_for("chatml")
    model = make_tiny_model(TinyModel(width=64, layers=2, heads=2, context=512), tokenizer, seed=3)
    made = Policy(model, tokenizer, ModelConfig(path="."))
    export_untied(made, tmp_path / "model")
    return made


@pytest.fixture
def served(policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[VllmServers, list[str]]]:
    calls: list[str] = []
    post = vllm_server._post

    def noted(url: str, body: Any) -> None:
        calls.append(url.split("/", 3)[3])
        post(url, body)

    monkeypatch.setattr(vllm_server, "_post", noted)
    server = LocalServer(tmp_path / "model", max_context=512, max_batch=8, start_s=900)
    yield VllmServers([server.url], policy.chat, tmp_path / "model", sleep=True), calls
    server.close()


def rollout(engine: Any, policy: Policy) -> Sample:
    """An episode of one turn, as a rollout has it."""
    agent = EngineAgent(engine, policy.chat)

    async def run() -> Sample:
        seat = agent.start(None)
        try:
            return await seat.act(Request([1, 2, 3], 4, 0))
        finally:
            seat.end()

    return asyncio.run(run())


def changed(policy: Policy) -> None:
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.05)


def sleeps(engine: VllmServers) -> bool:
    with urllib.request.urlopen(engine.servers[0].removesuffix("/v1") + "/is_sleeping", timeout=10) as answer:
        return bool(json.load(answer)["is_sleeping"])


def test_a_server_sleeps_behind_a_rollout_and_wakes_for_weights_and_for_requests(
        served: tuple[VllmServers, list[str]], policy: Policy) -> None:
    engine, calls = served
    link = WeightLink(engine, policy, 1e-3, seed=0)
    link.try_out()
    assert not sleeps(engine), "probes are no rollout"
    rollout(engine, policy)
    assert sleeps(engine) and calls[-1] == "sleep?level=2"
    changed(policy)
    del calls[:]
    assert link.send(1).max < 1e-4
    assert calls == ["wake_up?tags=weights", "collective_rpc", "wake_up?tags=kv_cache", "reset_prefix_cache"]
    before = rollout(engine, policy)
    assert sleeps(engine)
    del calls[:]
    again = rollout(engine, policy)
    assert calls == ["wake_up?tags=weights", "collective_rpc", "wake_up?tags=kv_cache", "reset_prefix_cache",
                     "sleep?level=2"], "a level that drops the weights reads them again"
    assert np.array_equal(before.token_ids, again.token_ids) and np.array_equal(before.logprobs, again.logprobs)
    with pytest.raises(UserError, match=r"engine.sleep is true and http://\S+ runs without sleep mode: start it with"):
        refuse_sleepless(engine.servers[0])
    with pytest.raises(UserError, match=r"does not say whether it can sleep"):
        refuse_sleepless("http://127.0.0.1:9/v1")


@pytest.mark.parametrize("level", [1, 2])
def test_the_engine_in_process_sleeps_and_wakes_in_the_same_order(
        policy: Policy, tmp_path: Path, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "_refuse_sleepless", lambda vllm: None)
    engine = VllmEngine(tmp_path / "model", 512, 8, "float32", sleep_level=level, enable_sleep_mode=False)
    calls: list[str] = []
    inner = engine._llm

    def noted(name: str, call: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(name + (f" {kwargs['tags'][0]}" if "tags" in kwargs else ""))
        return call(*args, **kwargs)

    for name in ("sleep", "wake_up", "collective_rpc"):
        monkeypatch.setattr(inner, name, partial(noted, name, getattr(inner, name)))
    link = WeightLink(engine, policy, 1e-3, seed=0)  # type: ignore[arg-type]
    link.try_out()
    first = rollout(engine, policy)
    assert calls[-1] == "sleep" and engine._llm.llm_engine.is_sleeping()
    changed(policy)
    del calls[:]
    assert link.send(1).max < 1e-4
    assert calls == ["wake_up weights", "collective_rpc", "wake_up kv_cache"]
    before = rollout(engine, policy)
    assert before.logprobs.tolist() != first.logprobs.tolist()
    del calls[:]
    again = rollout(engine, policy)
    assert calls == ["wake_up weights", *(["collective_rpc"] if level == 2 else []), "wake_up kv_cache", "sleep"]
    assert np.array_equal(before.logprobs, again.logprobs)
    assert all(isinstance(one, Sample) for one in probed(engine, policy, 1).samples)  # type: ignore[arg-type]
    assert engine.generate([Request([1], 2, 0)], Sampling(), [])
    engine.close()
