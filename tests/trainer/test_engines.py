"""Whole runs with vLLM, in process and as a server: `make vllm` installs it and runs this."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from turncredit.config import Config, EngineConfig, parse_config
from turncredit.errors import UserError

PANTRY = {"id": "turncredit/Pantry-v0", "arguments": {"level": 1}}


def config_of(folder: Path, adapter: dict[str, float] | None = None, **engine: Any) -> Config:
    return parse_config({
        "runs": str(folder), "seed": 5, "envs": [PANTRY], "engine": engine,
        "model": {"tiny": {"width": 64, "layers": 2, "heads": 2, "context": 256, "vocabulary": 400},
                  "tool_calls": "plain", "lora": adapter},
        "rollout": {"groups": 2, "group_size": 4, "turn_tokens": 8, "episode_tokens": 16, "context_tokens": 200},
        "trainer": {"steps": 3, "lr": 1e-2, "old_logprobs": "recomputed"},
        "warmstart": {"envs": [PANTRY], "steps": 30, "lr": 3e-3, "batch": 4, "demonstrations": 32}})


def test_an_engine_s_name_alone_is_enough_and_settings_of_another_are_refused() -> None:
    assert EngineConfig.model_validate("vllm").name == "vllm"
    base = {"model": {"path": "."}, "envs": [PANTRY]}
    assert parse_config({**base, "engine": "vllm-server"}).engine.name == "vllm-server"
    with pytest.raises(UserError, match=r"engine.lora is 'adapter' without model.lora"):
        parse_config({**base, "engine": {"name": "vllm", "lora": "adapter"}})
    with pytest.raises(UserError, match=r"engine.lora is 'adapter' with engine.name 'transformers'"):
        parse_config({**base, "engine": {"lora": "adapter"}})
    with pytest.raises(UserError, match=r"engine.name is 'vllm': engine.servers and engine.python are for 'vllm-serv"):
        parse_config({**base, "engine": {"name": "vllm", "servers": ["http://localhost:8000/v1"]}})


@pytest.mark.parametrize("name", ["vllm", "vllm-server"])
def test_a_run_samples_with_vllm_and_its_weights_follow_the_trainer_s(name: str, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vllm is not installed: make vllm")
    from turncredit.progress import Display
    from turncredit.trainer.loop import train

    with Display(None) as display:
        run = train(config_of(tmp_path, name=name), display)
    metrics = run.read_metrics()
    assert len(metrics) == 3
    assert all(line["updated"] for line in metrics), "the weights changed"
    assert all(line["sampler_gap_max"] < 1e-4 for line in metrics)
    assert not (run.path / "engine").exists()
    episodes = list(run.read_episodes())
    assert [e.policy_version for e in episodes] == [e.step for e in episodes]
    for line in metrics:
        assert abs(line["sampler_ratio_mean"] - 1) < 1e-4, "what was sampled is what is scored"


def test_a_server_that_computes_in_bfloat16_gets_weights_of_half_the_size(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vllm is not installed: make vllm")
    from safetensors import safe_open

    from turncredit.progress import Display
    from turncredit.trainer.loop import train

    config = config_of(tmp_path, name="vllm-server", dtype="bfloat16")
    kinds: list[set[str]] = []

    class Looks(Display):
        def training(self, step: int, steps: int, metrics: dict[str, Any]) -> None:
            with safe_open(config.folder / "engine" / "model.safetensors", "pt") as file:
                kinds.append({file.get_slice(name).get_dtype() for name in file.keys()})  # noqa: SIM118

    with Looks(None) as display:
        metrics = train(config, display).read_metrics()
    assert kinds == [{"BF16"}] * 3
    assert all(0 < line["sampler_gap_mean"] < 0.05 for line in metrics), "as far as rounding goes"


@pytest.mark.parametrize("name", ["vllm", "vllm-server"])
def test_an_adapter_is_swapped_beside_the_base_after_each_update(name: str, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vllm is not installed: make vllm")
    pytest.importorskip("peft", reason="peft is not installed")
    from turncredit.progress import Display
    from turncredit.trainer.loop import train

    with Display(None) as display:
        run = train(config_of(tmp_path, {"rank": 4, "alpha": 8.0}, name=name, lora="adapter"), display)
    metrics = run.read_metrics()
    assert len(metrics) == 3
    assert all(line["updated"] for line in metrics), "the weights changed"
    assert all(line["sampler_gap_max"] < 1e-4 for line in metrics)
    assert all(abs(line["sampler_ratio_mean"] - 1) < 1e-4 for line in metrics), "what was sampled is what is scored"
    assert not (run.path / "engine").exists()


@pytest.mark.parametrize("schedule", ["lockstep", "asynchronous"])
@pytest.mark.parametrize("name", ["vllm", "vllm-server"])
def test_vllm_samples_ahead_of_the_trainer_with_weights_of_bounded_age(name: str, schedule: str,
                                                                       tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vllm is not installed: make vllm")
    from turncredit.progress import Display
    from turncredit.trainer.loop import train

    config = config_of(tmp_path, name=name)
    rollout = config.rollout.model_copy(update={"staleness": 2, "schedule": schedule})
    trainer = config.trainer.model_copy(update={"steps": 5})
    with Display(None) as display:
        run = train(config.model_copy(update={"rollout": rollout, "trainer": trainer}), display)
    episodes, metrics = list(run.read_episodes()), run.read_metrics()
    if schedule == "lockstep":
        assert {(e.step, e.policy_version) for e in episodes} == {(s, max(0, s - 2)) for s in range(5)}
        assert [line["groups stale"] for line in metrics] == [0] * 5
    else:
        assert all(e.step - 2 <= e.policy_version <= max(e.policy_versions) <= e.step for e in episodes)
        assert sorted({e.group for e in episodes} | {n for line in metrics for n in line["tasks stale"]}) == list(
            range(10 + sum(line["groups stale"] for line in metrics))), "every task once"
        assert any(e.policy_version > 0 for e in episodes), "with new weights while sampling goes on"
    assert all(line["sampler_gap_max"] < 1e-4 for line in metrics[3:]), "each version arrived whole"
    assert any(abs(line["sampler_ratio_max"] - 1) > 1e-3 for line in metrics[1:]), "the lag is seen, and weighed"


def servers_of(folder: Path) -> list[int]:
    """Processes that serve a run's policy, each the leader of its group."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = line.read_bytes().decode(errors="replace").split("\0")
            pid = int(line.parent.name)
            if ("vllm.entrypoints.openai.api_server" in words and str(folder / "engine") in words
                    and os.getpgid(pid) == pid):
                found.append(pid)
    return found


@pytest.mark.timeout(900)
def test_a_server_that_is_killed_is_replaced_with_the_present_weights_and_the_run_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vllm is not installed: make vllm")
    from turncredit.progress import Display
    from turncredit.trainer.loop import train

    config = config_of(tmp_path, name="vllm-server", restarts=2)
    killed: list[int] = []

    class Killer(Display):
        """Kills the server between two steps, then while it samples or takes weights."""

        def training(self, step: int, steps: int, metrics: dict[str, Any]) -> None:
            def kill() -> None:
                for pid in servers_of(config.folder):
                    os.killpg(pid, signal.SIGKILL)
                    killed.append(pid)

            if step < 2:
                threading.Timer(0.3 * step, kill).start()

    with Killer(None) as display:
        run = train(config, display)
    assert len(set(killed)) == 2
    metrics = run.read_metrics()
    assert len(metrics) == 3
    assert all(line["sampler_gap_max"] < 1e-4 for line in metrics), "those that came later have the weights"
    assert all(abs(line["sampler_ratio_mean"] - 1) < 1e-4 for line in metrics)
    assert not any(e.stop.infrastructure for e in run.read_episodes()), "no episode was lost"
    assert metrics[-1]["servers_lost"] == 2
    assert servers_of(config.folder) == []


@pytest.mark.timeout(900)
def test_a_run_stops_with_the_reason_where_no_server_is_left(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vllm is not installed: make vllm")
    from turncredit.progress import Display
    from turncredit.trainer.loop import train

    config = config_of(tmp_path, name="vllm-server", restarts=0)

    class Killer(Display):
        """Kills the server behind the first step."""

        def training(self, step: int, steps: int, metrics: dict[str, Any]) -> None:
            for pid in servers_of(config.folder):
                os.killpg(pid, signal.SIGKILL)

    with pytest.raises(UserError, match=r"engine: it took no new weights \(no server is left: .*; see to it, and "), (
            Killer(None)) as display:
        train(config, display)


def test_a_server_ends_with_what_started_it(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vllm is not installed: make vllm")
    from turncredit.agents.vllm_process import LocalServer

    with pytest.raises(UserError, match="the vLLM server ended while it started"):
        LocalServer(tmp_path / "none")
    child = os.fork()
    if child == 0:
        try:
            server = LocalServer(tmp_path / "none", wait=False)
            (tmp_path / "pid").write_text(str(server.pid))
        finally:
            os._exit(0)  # without a word to the server
    os.waitpid(child, 0)
    pid = int((tmp_path / "pid").read_text())
    bound = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < bound:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_sleep_is_refused_where_nothing_could_sleep(tmp_path: Path) -> None:
    base = {"model": {"path": "."}, "envs": [PANTRY], "trainer": {"old_logprobs": "recomputed"}}
    with pytest.raises(UserError, match=r"engine.sleep is true with engine.name 'transformers'"):
        parse_config({**base, "engine": {"sleep": True}})
    with pytest.raises(UserError, match=r"engine.sleep is true with rollout.staleness 1, which samples while"):
        parse_config({**base, "engine": {"name": "vllm", "sleep": True}, "rollout": {"staleness": 1}})


@pytest.mark.parametrize("name", ["vllm", "vllm-server"])
def test_sleep_is_refused_at_the_start_on_a_platform_without_it(name: str, tmp_path: Path) -> None:
    vllm = pytest.importorskip("vllm", reason="vllm is not installed: make vllm")
    if vllm.platforms.current_platform.is_sleep_mode_available():
        pytest.skip("this platform has it")
    from turncredit.progress import Display
    from turncredit.trainer.loop import train

    with pytest.raises(UserError, match=r"engine.sleep is true: vLLM has no sleep mode on this platform"), (
            Display(None)) as display:
        train(config_of(tmp_path, name=name, sleep=True), display)
