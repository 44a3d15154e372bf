"""1,000 episodes while everything breaks: is each accounted for, none twice, and does each group come to its end?

    python benchmarks/faults.py [--workers N] [--vllm PYTHON] [--groups N]

Of the environment's steps 5 % raise and 2 % hang for good; the engine is killed twice. By default that is the
transformers engine, which fails in the middle of a batch. With `--vllm` it is two vLLM servers, each of which is killed
once by SIGKILL and replaced. With `--workers` environments are in workers of a Ray cluster, and one of them is
killed in the middle too. Episodes go to the disk as in training and are counted there; exits with 1 where the sums do
not add up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import turncredit
from turncredit.agents import AsynchronousAgent, ChatFormat, Request, Sample, Sampling, TransformersEngine
from turncredit.agents.tiny import learn_tokenizer, make_tiny_model
from turncredit.cluster.environments import RayEnvironments
from turncredit.config import ClusterConfig, TinyModel
from turncredit.envs import Reply, TextEnv
from turncredit.episode import Episode, Group, Outcome, StopReason, Task, Verdict
from turncredit.rollout import Budget, Environments, Here, Rollout, TaskRef
from turncredit.store import RunFolder, read_episodes

STEPS, SIZE = 5, 8
RAISES, HANGS = 0.05, 0.02
STEP_TIMEOUT_S = 3.0
START_S = 1500.0  # of a vLLM server, on a busy machine


class Judge:
    """Right where an answer has an even number of characters."""

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """By the first turn."""
        return Verdict.of(len(outcome.turns[0].action) % 2 == 0)


class Breaks(TextEnv):
    """Three turns, any of which may raise or hang."""

    verifier = Judge()
    turn_limit = 3

    def make_task(self, rng: np.random.Generator) -> Task:
        """A number to be said."""
        return Task(f"Say {rng.integers(10_000)}.", split=self.split)

    def respond(self, action: str) -> Reply:
        """Or not: other samples of a group break elsewhere, so the draw is the process's own."""
        chance = random.random()
        if chance < RAISES:
            raise ConnectionError("the database is away")
        if chance < RAISES + HANGS:
            time.sleep(600)
        time.sleep(0.02)
        return Reply("go on")


class Killed:
    """A transformers engine that fails in two of its calls, as one whose process was killed and that is there again."""

    def __init__(self, engine: TransformersEngine, deaths: Sequence[int]) -> None:
        self._engine, self._deaths, self._calls, self.killed = engine, deaths, 0, 0
        self.max_context, self.policy_version = engine.max_context, 0

    def generate(self, requests: Sequence[Request], sampling: Sampling, stop_ids: Sequence[int]) -> list[Sample]:
        """Samples, or not."""
        self._calls += 1
        if self._calls in self._deaths:
            self.killed += 1
            raise RuntimeError("the engine was killed")
        return self._engine.generate(requests, sampling, stop_ids)

    def forget(self) -> None:
        """What was kept."""
        self._engine.forget()


@contextlib.contextmanager
def engine_of(vllm: str | None, chat: ChatFormat, model: Any,
              folder: Path) -> Iterator[tuple[Any, Callable[[int], None]]]:
    """The engine, and what is called when a step begins."""
    if vllm is None:
        yield Killed(TransformersEngine(model, 128), (5, 11)), lambda step: None
        return
    from turncredit.agents.fleet import Fleet
    from turncredit.agents.vllm_process import LocalServer
    from turncredit.agents.vllm_server import VllmServers

    model.save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    begun: list[LocalServer] = []

    def start() -> LocalServer:
        begun.append(LocalServer(folder, vllm, 512, start_s=START_S, wait=False))
        return begun[-1]

    fleet = Fleet(start, 2, restarts=1, patience_s=START_S)
    print("two servers are up", flush=True)
    engine = VllmServers(fleet.urls, chat, folder, fleet=fleet, timeout_s=START_S)
    engine.killed = 0  # type: ignore[attr-defined]  # for the report
    first = list(begun)

    def kill(place: int) -> None:
        os.killpg(first[place].pid, signal.SIGKILL)
        engine.killed += 1  # type: ignore[attr-defined]
        print("a server is killed", flush=True)

    def begin(step: int) -> None:
        if step in (1, 3):
            threading.Timer(1.0, kill, (step // 2,)).start()

    try:
        yield engine, begin
        print(f"servers that came up: {fleet.joined}")
    finally:
        fleet.close()


@contextlib.contextmanager
def environments_of(workers: int) -> Iterator[tuple[Environments, Callable[[int], None]]]:
    """Where they are, and what is called when a step begins."""
    if not workers:
        yield Here(), lambda step: None
        return
    there = RayEnvironments(ClusterConfig(name="ray", workers=workers, worker_cpus=0.1), STEP_TIMEOUT_S)

    def begin(step: int) -> None:
        if step == 2:
            first = next(iter(there.workers().values()))[0]
            threading.Timer(1.0, os.kill, (first, signal.SIGKILL)).start()

    try:
        yield there, begin
    finally:
        there.close()


def main() -> int:
    """Run it, and print what became of every episode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=0, help="of a Ray cluster; 0 for this process")
    parser.add_argument("--vllm", help="an interpreter that has vLLM, such as build/vllm/bin/python")
    parser.add_argument("--groups", type=int, default=25, help="of 8 episodes, in each of 5 steps")
    wanted = parser.parse_args()
    count = wanted.groups
    torch.set_num_threads(1)
    random.seed(0)
    turncredit.register("faults/Breaks-v0", Breaks)
    chat = ChatFormat(learn_tokenizer(["Say 12. go on"] * 50, 300))
    model = make_tiny_model(TinyModel(width=64, layers=2, heads=2, context=512), chat.tokenizer, 0)
    finished: list[Episode] = []
    groups: list[Group] = []
    began = time.monotonic()
    with (tempfile.TemporaryDirectory() as folder, engine_of(wanted.vllm, chat, model, Path(folder) / "model") as (
            engine, engine_begins), environments_of(wanted.workers) as (environments, workers_begin)):
        run = RunFolder(Path(folder) / "run")
        run.create()
        rollout = Rollout(AsynchronousAgent(engine, chat), chat, Budget(12, 64, 400, STEP_TIMEOUT_S),
                          on_episode=finished.append, environments=environments)
        for step in range(STEPS):
            engine_begins(step)
            workers_begin(step)
            tasks = [TaskRef("faults/Breaks-v0", step * count + i) for i in range(count)]
            groups += rollout.sample_groups(tasks, SIZE, step, step, run.write_group)
        rollout.close()
        written = [episode for file in sorted(run.episodes.glob("*.parquet")) for episode in read_episodes(file)]
        lost = getattr(environments, "lost", 0)
        killed = engine.killed
    stops = Counter(str(e.stop) for e in written)
    broken = sum(count for stop, count in stops.items() if StopReason(stop).infrastructure)
    sums = {"episodes": len(written), "of them different": len({e.id for e in written}), "finished": len(finished),
            "groups": len(groups), "asked for": STEPS * count}
    print(json.dumps({**sums, "engine killed": killed, "workers lost": lost, "stops": dict(stops), "broken": broken,
                      "with a reward": sum(e.reward is not None for e in written),
                      "seconds": round(time.monotonic() - began, 1)}))
    wrong = [what for what, holds in {
        "an episode is missing or there twice": len(written) == len({e.id for e in written}) == len(finished)
        == STEPS * count * SIZE,
        "a group is missing": len(groups) == STEPS * count,
        "a broken episode has a reward, or none says why": all(
            (e.reward is None) == bool(e.error) == e.stop.infrastructure for e in written),
        "the engine was not killed twice": killed == 2}.items() if not holds]
    print("\n".join(wrong) or "every episode is accounted for, none twice; every group came to its end")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
