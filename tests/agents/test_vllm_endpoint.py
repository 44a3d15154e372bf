"""The endpoint for evaluation, and vLLM's own server behind it: `make vllm` installs it and runs this."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from turncredit.agents.endpoint import Endpoint, EndpointSettings
from turncredit.agents.tiny import make_tiny_model
from turncredit.agents.vllm_process import LocalServer
from turncredit.config import EnvConfig, ModelConfig, TinyModel
from turncredit.evaluate import Score, Suite
from turncredit.evaluate.evaluation import Evaluation, Wanted
from turncredit.trainer.policy import Policy
from turncredit.trainer.weights import export_untied

pytest.importorskip("vllm", reason="vllm is not installed: make vllm")


@pytest.fixture(scope="module")
def served(tokenizer_for: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalServer, Path]]:
    tokenizer, folder = tokenizer_for("chatml"), tmp_path_factory.mktemp("model")
    model = make_tiny_model(TinyModel(width=64, layers=2, heads=2, context=2048), tokenizer, seed=3)
    export_untied(Policy(model, tokenizer, ModelConfig(path=".")), folder)
    server = LocalServer(folder, max_context=2048, max_batch=8,
                         options=("--enable-auto-tool-choice", "--tool-call-parser", "hermes"))
    yield server, folder
    server.close()


def evaluated(there: Endpoint) -> Score:
    suite = Suite(in_distribution=[EnvConfig(id="turncredit/Calculator-v0", split="test")], tasks=2, k=2)
    evaluation = Evaluation(Wanted(suite, floors=False), {"policy": (there, there.config)}, {"policy": there.name})
    evaluation.run()
    return evaluation.scores[0]


@pytest.mark.parametrize("tool_calls, by_ids", [("json", True), ("json", False), ("native", False)])
def test_a_model_on_a_server_is_evaluated_in_each_way_of_asking(served: tuple[LocalServer, Path], tool_calls: str,
                                                               by_ids: bool) -> None:
    server, folder = served
    settings = EndpointSettings(tokenizer=str(folder) if by_ids else None, turn_tokens=16, episode_tokens=64,
                                context_tokens=2000)
    there = Endpoint(f"openai:{server.url}#policy", settings, tool_calls)
    score = evaluated(there)
    assert (score.avg, score.unjudged) == (0.0, 0), "random weights solve nothing, and all of it was judged"
    assert there.engine.usage.requests >= 4
    assert there.engine.usage.completion_tokens > 0
    assert sum(there.engine.failures) == 0


def test_a_server_that_dies_ends_its_episodes_with_a_reason(served: tuple[LocalServer, Path]) -> None:
    server, _ = served
    there = Endpoint(f"openai:{server.url}#policy", EndpointSettings(retries=1, timeout_s=5))
    server.close()
    score = evaluated(there)
    assert (score.avg, score.unjudged) == (None, 4)
