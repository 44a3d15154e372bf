"""A real Ray cluster of several nodes on this machine: environments in its workers, and nodes that are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import turncredit
from turncredit.agents import ChatFormat, EngineAgent, TransformersEngine
from turncredit.cluster.environments import RayEnvironments, environments_for
from turncredit.config import ClusterConfig, EnvConfig, parse_config
from turncredit.episode import Episode, StopReason
from turncredit.errors import UserError
from turncredit.progress import Display
from turncredit.rollout import Budget, Rollout, TaskRef
from turncredit.store import read_episodes
from turncredit.trainer.loop import train

pytest.importorskip("ray", reason="ray is not installed: `make ray` runs these")

import ray
from ray.cluster_utils import Cluster

from tests.cluster.lost import Where

NODES = 3
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without room for workers, and nodes of one CPU each; the last test kills them."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(NODES):
        made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    before = dict(gymnasium.registry)
    turncredit.register("tests/Where-v0", Where)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def settings(cluster: Cluster, **more: Any) -> ClusterConfig:
    return ClusterConfig(name="ray", address=cluster.address, **more)


@pytest.fixture
def workers(cluster: Cluster) -> Iterator[RayEnvironments]:
    until = time.monotonic() + 60  # for the CPUs of the last test's workers, which Ray takes back in its own time
    while ray.is_initialized() and ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < until, ray.available_resources()
        time.sleep(0.1)
    made = RayEnvironments(settings(cluster), step_timeout_s=30)
    yield made
    made.close()


@pytest.fixture
def rollout(workers: RayEnvironments, tokenizer_for: Any, model_for: Any) -> Iterator[Rollout]:
    chat = ChatFormat(tokenizer_for("chatml"))
    made = Rollout(EngineAgent(TransformersEngine(model_for(chat.tokenizer)), chat), chat, Budget(4, 40, 400, 30),
                   environments=workers)
    yield made
    made.close()


def sampled(rollout: Rollout, tasks: list[TaskRef], seed: int) -> list[Episode]:
    return [e for group in rollout.sample_groups(tasks, 4, seed) for e in group.episodes]


def processes_of(groups: Any) -> list[set[str]]:
    return [{turn.observation for turn in e.turns} for group in groups for e in group.episodes]


def test_episodes_are_spread_over_the_nodes_and_are_those_of_one_process(workers: RayEnvironments,
                                                                         rollout: Rollout) -> None:
    tasks = [TaskRef("turncredit/Calculator-v0", i) for i in range(3)]
    there = rollout.sample_groups(tasks, 4, seed=1)
    here = Rollout(rollout.agent, rollout.chat, rollout.budget).sample_groups(tasks, 4, seed=1)
    for one, other in zip(there, here):
        for a, b in zip(one.episodes, other.episodes):
            assert a.token_ids.tolist() == b.token_ids.tolist()
            assert (a.turns, a.verdict, a.stop, a.error) == (b.turns, b.verdict, b.stop, b.error)

    used = processes_of(rollout.sample_groups([TaskRef("tests/Where-v0", i) for i in range(3)], 4, seed=2))
    assert all(len(one) == 1 for one in used), "an episode stays where it began"
    alive = workers.workers()
    assert len(alive) == NODES
    assert Counter(str(pid) for pids in alive.values() for pid in pids for _ in range(4)) == Counter(
        pid for one in used for pid in one)
    assert str(os.getpid()) not in {pid for one in used for pid in one}


def test_what_an_environment_raises_ends_its_episode_as_it_does_here(workers: RayEnvironments) -> None:
    env = workers.make("tests/Where-v0", seconds=0)
    env.reset(seed=1)
    with pytest.raises(ConnectionError, match="the database is away"):
        env.step("break")
    env.close()
    unknown = workers.make("tests/Wher-v0")
    with pytest.raises(UserError, match="did you mean 'tests/Where-v0'"):
        unknown.reset(seed=1)


def test_a_killed_worker_costs_its_episodes_and_is_replaced(workers: RayEnvironments, rollout: Rollout) -> None:
    [victim], *_ = workers.workers().values()

    def kill() -> None:
        time.sleep(1)
        os.kill(victim, signal.SIGKILL)

    tasks = [TaskRef("tests/Where-v0", i, {"seconds": 1.0}) for i in range(3)]
    threading.Thread(target=kill).start()
    groups = rollout.sample_groups(tasks, 4, seed=2)
    episodes = [e for group in groups for e in group.episodes]
    lost = [e for e in episodes if e.stop is StopReason.ENVIRONMENT_ERROR]
    assert len(episodes) == 12 and len(lost) == 4, Counter(e.stop for e in episodes)
    assert all("WorkerLost: the worker on node" in e.error and e.reward is None for e in lost)
    assert workers.lost == 1
    assert all(not e.stop.infrastructure for e in sampled(rollout, tasks, 3))
    os.kill(max(workers._seats, key=lambda seat: seat.holds).process, signal.SIGKILL)
    again = sampled(rollout, tasks, 4)
    assert workers.lost == 2
    assert all(not e.stop.infrastructure for e in again), "environments that were idle in it begin elsewhere"


def descendants(pid: int) -> set[int]:
    """Processes that a process started, and theirs."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, before = {pid}, set()
    while found != before:
        before = set(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found - {pid}


def test_sandboxes_run_inside_the_workers_and_end_with_them(cluster: Cluster) -> None:
    there = RayEnvironments(settings(cluster, workers=1), 60)
    try:
        near, far = turncredit.make("turncredit/Code-v0"), there.make("turncredit/Code-v0")
        for env in (near, far):
            env.unwrapped.use_tool_format("json")
        [worker] = [pid for pids in there.workers().values() for pid in pids]
        for seed in range(2):
            assert near.reset(seed=seed)[0] == far.reset(seed=seed)[0]
            over = False
            while not over:
                action = near.unwrapped.expert_action()
                expected, given = near.step(action), far.step(action)
                assert given[:4] == expected[:4] and given[4]["verdict"].passed == expected[4]["verdict"].passed is True
                over = given[2] or given[3]
        near.close()
        started = descendants(worker)
        assert started, "the sandbox is a child of the worker, not of this process"
        os.kill(worker, signal.SIGKILL)
        until = time.monotonic() + 20
        while (left := [pid for pid in started if Path(f"/proc/{pid}").exists()]) and time.monotonic() < until:
            time.sleep(0.2)
        assert not left
    finally:
        there.close()


def test_plugins_are_registered_in_every_worker(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "there.py").write_text("import turncredit\nfrom tests.cluster.lost import Where\n"
                                       "turncredit.register('there/Plugged-v0', Where)\n")
    (tmp_path / "there-1.dist-info").mkdir()
    (tmp_path / "there-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: there\nVersion: 1\n")
    (tmp_path / "there-1.dist-info" / "entry_points.txt").write_text("[turncredit.environments]\nthere = there\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(Path.cwd())])
    there = RayEnvironments(settings(cluster, workers=2, runtime_env={"env_vars": {"PYTHONPATH": path}}), 60)
    try:
        assert "there/Plugged-v0" not in gymnasium.registry
        there.try_out([EnvConfig(id="there/Plugged-v0"), EnvConfig(id="tests/Where-v0")])
        env = there.make("there/Plugged-v0", seconds=0)
        assert env.reset(seed=1)[0].startswith("Say ")
        with pytest.raises(UserError, match=r"cluster: on node \w{8} there/Pluged-v0 cannot be made: .*did you mean"):
            there.try_out([EnvConfig(id="there/Pluged-v0")])
    finally:
        there.close()


def test_a_silent_address_and_a_full_cluster_are_refused_in_a_sentence(cluster: Cluster) -> None:
    config = {"model": {"path": "x"}, "envs": [{"id": "turncredit/Calculator-v0"}]}
    began = time.monotonic()
    with pytest.raises(UserError, match=r"cluster.address is '127.0.0.1:9': nobody answers there"):
        environments_for(parse_config(config | {"cluster": {"name": "ray", "address": "127.0.0.1:9"}}))
    with pytest.raises(UserError, match=r"cluster.address is 'there': write it as host:port"):
        environments_for(parse_config(config | {"cluster": {"name": "ray", "address": "there"}}))
    assert time.monotonic() - began < 10
    with pytest.raises(UserError, match=r"cluster.workers is 9 .* the cluster has 3 CPUs free"):
        RayEnvironments(settings(cluster, workers=9), 30)


def test_a_run_goes_on_when_a_node_is_killed_and_stops_with_a_reason_when_all_are(cluster: Cluster,
                                                                                 tmp_path: Any) -> None:
    env = {"id": "tests/Where-v0", "arguments": {"seconds": 0.3}}
    config = parse_config({
        "name": "r", "runs": str(tmp_path), "envs": [env], "cluster": settings(cluster, wait_s=90).model_dump(),
        "model": {"tiny": {"width": 32, "layers": 2, "heads": 2, "context": 512, "vocabulary": 360},
                  "tool_calls": "plain"},
        "rollout": {"groups": 3, "group_size": 3, "turn_tokens": 4, "episode_tokens": 40, "context_tokens": 400},
        "trainer": {"steps": 12, "save_every": 1, "keep_checkpoints": 2},
        "warmstart": {"envs": [{"id": "turncredit/Calculator-v0", "arguments": {"level": 1}}], "steps": 2, "batch": 4,
                      "demonstrations": 8}})

    class Killer(Display):
        """Kills a node during step 3, and all that are left during step 7."""

        def training(self, step: int, steps: int, metrics: dict[str, Any]) -> None:
            if step in (2, 6):
                nodes = cluster.list_all_nodes()[1:][:1 if step == 2 else None]
                threading.Timer(0.6, lambda: [cluster.remove_node(node, allow_graceful=False)
                                              for node in nodes]).start()

    with pytest.raises(UserError, match=r"cluster: no worker is left, and none could be started in 90 s"):
        train(config, Killer())
    run = tmp_path / "r"
    steps = [[e for file in sorted(run.glob(f"episodes/step-{step:06d}-*.parquet")) for e in read_episodes(file)]
             for step in range(7)]
    assert [len(step) for step in steps[:7]] == [9] * 7, "every episode is accounted for"
    lost = [sum(e.stop.infrastructure for e in step) for step in steps]
    assert lost[:3] == [0, 0, 0] and 0 < sum(lost[3:6]) <= 6, lost
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    again = train(config, Display(), resume=True)
    assert len(again.read_metrics()) == 12
    assert (again.path / "policy" / "config.json").exists()
