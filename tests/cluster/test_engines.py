"""vLLM servers on the nodes of a real Ray cluster on this machine, with GPUs that are only counted.

`make ray-engines` runs these: Ray from one environment, vLLM's CPU build from another, named by TURNCREDIT_VLLM.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from turncredit.agents.fleet import Fleet
from turncredit.cluster.engines import placed
from turncredit.config import ClusterConfig, Config, parse_config
from turncredit.errors import UserError
from turncredit.progress import Display
from turncredit.trainer.loop import train
from turncredit.trainer.weights import export_untied

pytest.importorskip("ray", reason="ray is not installed: `make ray-engines` runs these")

import ray
from ray.cluster_utils import Cluster

VLLM = os.environ.get("TURNCREDIT_VLLM", "")
needs_vllm = pytest.mark.skipif(not VLLM, reason="TURNCREDIT_VLLM names no interpreter with vLLM: make ray-engines")
pytestmark = pytest.mark.timeout(1800)
PANTRY = {"id": "turncredit/Pantry-v0", "arguments": {"level": 1}}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without GPUs; tests add nodes with some."""
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's 15 starves a server of a machine that does other things too
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield made
    ray.shutdown()
    made.shutdown()


def settings(cluster: Cluster, **more: Any) -> ClusterConfig:
    return ClusterConfig(name="ray", address=cluster.address, workers=0, **more)


def config_of(folder: Path, cluster: ClusterConfig, steps: int) -> Config:
    return parse_config({
        "name": "r", "runs": str(folder), "seed": 5, "envs": [PANTRY], "cluster": cluster.model_dump(),
        "engine": {"name": "vllm-server", "python": VLLM, "start_timeout_s": 900},
        "model": {"tiny": {"width": 64, "layers": 2, "heads": 2, "context": 256, "vocabulary": 400},
                  "tool_calls": "plain"},
        "rollout": {"groups": 2, "group_size": 4, "turn_tokens": 8, "episode_tokens": 16, "context_tokens": 200,
                    "schedule": "asynchronous"},
        "trainer": {"steps": steps, "lr": 1e-2, "old_logprobs": "recomputed"},
        "warmstart": {"envs": [PANTRY], "steps": 10, "lr": 3e-3, "batch": 4, "demonstrations": 16}})


def gpus_of_servers(folder: Path) -> dict[int, str]:
    """CUDA_VISIBLE_DEVICES of the processes that serve a model, by process."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if ("vllm.entrypoints.openai.api_server" in words and str(folder) in words
                    and os.getpgid(int(process.name)) == int(process.name)):
                told = dict(line.partition("=")[::2] for line in
                            (process / "environ").read_bytes().decode(errors="replace").split("\0"))
                found[int(process.name)] = told.get("CUDA_VISIBLE_DEVICES", "")
    return found


def test_too_few_gpus_are_refused_at_the_start(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1, num_gpus=1)
    cluster.add_node(num_cpus=1, num_gpus=3)
    cluster.wait_for_nodes()
    with pytest.raises(UserError, match=r"cluster.engines is 5 with .*engine_gpus 1: the nodes have 3, 1, 0 GPUs"):
        placed(settings(cluster, engines=5), tmp_path, {"start_s": 60}, 0)
    with pytest.raises(UserError, match=r"cluster.engines is 2 with .*engine_gpus 2: the nodes have 3, 1, 0 GPUs"):
        placed(settings(cluster, engines=2, engine_gpus=2), tmp_path, {"start_s": 60}, 0)
    holds = ray.remote(num_gpus=2)(lambda: time.sleep(60)).remote()
    time.sleep(2)
    with pytest.raises(UserError, match=r"cluster.engines is 4 .*: 2 GPUs of the cluster are free; set one of them"):
        placed(settings(cluster, engines=4), tmp_path, {"start_s": 60}, 0)
    ray.cancel(holds, force=True)


def test_a_node_that_does_not_see_the_folder_is_refused_by_name(cluster: Cluster, tmp_path: Path) -> None:
    """A node in a mount namespace of its own, where the folder is another one."""
    node = [str(Path(sys.executable).parent / "ray"), "start", f"--address={cluster.address}", "--num-cpus=1",
            "--num-gpus=1", "--block"]
    hidden = f"mount -t tmpfs none {tmp_path} && exec {' '.join(node)}"
    if subprocess.run(["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {tmp_path}"], check=False).returncode:
        pytest.skip("mount namespaces are not allowed here")
    started = subprocess.Popen(["unshare", "-m", "sh", "-c", hidden], start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        ray.init(address=cluster.address, log_to_driver=False)
        while not ray.cluster_resources().get("GPU") and time.monotonic() < until:
            time.sleep(0.2)
        with pytest.raises(UserError, match=rf"cluster.engines: node \w{{8}} at .* does not see {tmp_path}, where"):
            placed(settings(cluster, engines=1), tmp_path, {"start_s": 60}, 0)
    finally:
        os.killpg(started.pid, signal.SIGKILL)


@needs_vllm
def test_each_engine_has_gpus_of_its_own(cluster: Cluster, tmp_path: Path, tokenizer_for: Any, model_for: Any) -> None:
    from turncredit.config import ModelConfig
    from turncredit.trainer.policy import Policy

    cluster.add_node(num_cpus=1, num_gpus=2)
    cluster.wait_for_nodes()
    tokenizer = tokenizer_for("chatml")
    export_untied(Policy(model_for(tokenizer), tokenizer, ModelConfig(path=".")), tmp_path / "model")
    server = {"python": VLLM, "max_context": 200, "max_batch": 4, "start_s": 900}
    fleet: Fleet
    fleet, close = placed(settings(cluster, engines=2), tmp_path / "model", server, 0)
    try:
        assert len(set(fleet.urls)) == 2
        assert sorted(gpus_of_servers(tmp_path / "model").values()) == ["0", "1"]
        assert ray.available_resources().get("GPU", 0) == 0
    finally:
        close()
    assert gpus_of_servers(tmp_path / "model") == {}


@needs_vllm
def test_a_run_goes_on_when_an_engine_s_node_is_killed_and_gets_another_one(
        cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "turncredit.agents.fleet")
    first, _ = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    config = config_of(tmp_path, settings(cluster, engines=2, wait_s=60), steps=150)
    joined: list[int] = []

    class Killer(Display):
        """Kills a node during step 1; adds one during step 3; kills all that have GPUs once three engines were seen."""

        def training(self, step: int, steps: int, metrics: dict[str, Any]) -> None:
            assert metrics["sampler_gap_max"] < 1e-4, "each engine has the present weights"
            joined.append(sum(" serves at " in message for message in caplog.messages))
            if step == 0:
                threading.Timer(0.1, lambda: cluster.remove_node(first, allow_graceful=False)).start()
            if step == 3:
                assert len(gpus_of_servers(config.folder / "engine")) == 1
                cluster.add_node(num_cpus=1, num_gpus=1)
            if step > 3 and joined[-1] < 3:
                time.sleep(2)
            elif step > 3 and joined[-3] == 3:
                assert len(gpus_of_servers(config.folder / "engine")) == 2
                for node in cluster.list_all_nodes()[1:]:
                    cluster.remove_node(node, allow_graceful=False)

    with pytest.raises(UserError, match=r"engine: it took no new weights \(no server is left: .*; see to it, and "):
        train(config, Killer(None))
    assert joined[0] == 2 and joined[-1] == 3, joined
    from turncredit.store import RunFolder

    run = RunFolder(config.folder)
    per_step = [[e for e in run.read_episodes() if e.step == step] for step in range(len(joined))]
    assert all(len(one) == 8 for one in per_step), "every episode is accounted for"
    lost = [sum(e.stop.infrastructure for e in one) for one in per_step]
    assert sum(lost) <= 4, lost
