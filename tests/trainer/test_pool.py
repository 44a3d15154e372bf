"""Groups handed over as they end: weights that change within an episode, bounded lag, every task once."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from turncredit.agents.transformers_engine import TransformersEngine
from turncredit.audit import audit
from turncredit.config import ModelConfig
from turncredit.envs import Reply, TextEnv
from turncredit.episode import Outcome, Task, Verdict
from turncredit.errors import EngineError, UserError
from turncredit.progress import Display
from turncredit.store import RunFolder, write_episodes
from turncredit.trainer import pool as pool_module
from turncredit.trainer.batch import make_batch
from turncredit.trainer.health import TrainingStopped
from turncredit.trainer.loop import train
from turncredit.trainer.policy import Policy

STEPS = 6
TRAINER = {"steps": STEPS, "lr": 3e-3, "save_every": 1, "keep_checkpoints": 99, "old_logprobs": "recomputed",
           "importance_cap": 3.0}
ROLLOUT = {"groups": 2, "group_size": 3, "turn_tokens": 4, "episode_tokens": 16, "context_tokens": 200,
           "schedule": "asynchronous"}


class Slowly(TextEnv):
    """Says the same for four turns, and takes its time at each."""

    instructions = "Go on."
    turn_limit = 4

    class Verifier:
        def verify(self, task: Task, outcome: Outcome) -> Verdict:
            return Verdict.of(len(outcome.answer or "") % 2 == 0)

    verifier = Verifier()

    def make_task(self, rng: np.random.Generator) -> Task:
        word = str(rng.choice(list("abcd")))
        return Task(word, {"pause": 0.05}, self.split, id=f"{word}-{rng.integers(1 << 40)}")

    def respond(self, action: str) -> Reply:
        time.sleep(self.task.hidden["pause"])
        return Reply("a b", done=len(self.turns) == 3, answer=action)

    def expert_action(self) -> str:
        return "a"


class OneSlow(Slowly):
    """Some tasks take long at each turn."""

    def make_task(self, rng: np.random.Generator) -> Task:
        return Task("a", {"pause": 0.0 if rng.random() < 0.8 else 0.5}, self.split, id=f"a-{rng.integers(1 << 40)}")


@pytest.fixture(scope="module")
def pool_config(relay_config: Any, register_envs: Any) -> Callable[..., Any]:
    """pool_config("Slowly", 1, name=…): a continuous run of that environment with a staleness of 1."""
    register_envs(Slowly, OneSlow)

    def make(env: str, staleness: int, rollout: Any = (), trainer: Any = (), **sections: Any) -> Any:
        envs = [{"id": f"turncredit-tests/{env}-v0"}]
        warm = {"envs": [{"id": "turncredit-tests/Relay-v0"}]}
        return relay_config(envs=envs, warmstart=warm, trainer={**TRAINER, **dict(trainer)},
                            rollout={**ROLLOUT, "staleness": staleness, **dict(rollout)}, **sections)

    return make


@pytest.fixture(scope="module")
def finished(pool_config: Any) -> tuple[RunFolder, Any]:
    config = pool_config("Slowly", 2, name="pool")
    with Display(None) as display:
        return train(config, display), config


def tasks_of(run: RunFolder) -> dict[int, list[int]]:
    """The numbers of the tasks that each step was trained on."""
    steps: dict[int, list[int]] = {}
    for file in sorted(run.episodes.glob("step-*.parquet")):
        _, step, _, group = file.stem.split("-")
        steps.setdefault(int(step), []).append(int(group))
    return steps


def assert_every_task_once(run: RunFolder, steps: int, groups: int) -> None:
    trained, metrics = tasks_of(run), run.read_metrics()
    assert {step: len(of) for step, of in trained.items()} == dict.fromkeys(range(steps), groups)
    stale = [number for line in metrics for number in line["tasks stale"]]
    assert [line["groups stale"] for line in metrics] == [len(line["tasks stale"]) for line in metrics]
    every = sorted([*stale, *(number for of in trained.values() for number in of)])
    assert every == list(range(len(every))), "each is trained on, or counted as stale: none twice, none left out"
    assert not list(run.ahead.glob("*")), "nothing lies about"


def test_an_episode_goes_on_with_new_weights_and_each_turn_notes_whose_it_is(finished: Any) -> None:
    run, _ = finished
    episodes = list(run.read_episodes())
    end = Policy.load(ModelConfig(path=str(run.path / "policy"))).chat.end_id
    for e in episodes:
        assert e.policy_versions == sorted(e.policy_versions) and e.policy_version == e.policy_versions[0]
        assert len(e.policy_versions) == len(e.turns) == 4
        assert 0 <= e.step - e.policy_version <= 2
        said = [s.token_ids.tolist() for s in e.segments if s.generated]
        assert all(end not in ids[:-1] for ids in said), "a turn ends where the policy ends it"
    assert sum(len(set(e.policy_versions)) > 1 for e in episodes) > len(episodes) / 4
    assert {e.step for e in episodes if e.policy_version < e.step} >= set(range(2, STEPS)), "sampling goes on meanwhile"
    metrics = run.read_metrics()
    for line in metrics:
        mine = [e for e in episodes if e.step == line["step"]]
        lags = [line["step"] - s.policy_version for e in mine for s in e.segments if s.generated for _ in s.token_ids]
        assert line["lag_mean"] == pytest.approx(np.mean(lags)) and line["lag_max"] == max(lags)
        assert line["versions_mean"] == pytest.approx(np.mean([len(set(e.policy_versions)) for e in mine]))
        assert 0 <= line["engine_idle"] <= 1
    assert all(line["sampler_gap_max"] < 1e-4 for line in metrics[1:]), "each version arrived whole"
    assert any(abs(line["sampler_ratio_max"] - 1) > 1e-3 for line in metrics[1:]), "the lag is seen, and weighed"


def test_a_turn_s_logprobs_are_those_of_the_weights_that_it_notes_for_all_that_was_read(finished: Any) -> None:
    run, _ = finished
    policies = {0: run.path / "start"} | {n: run.checkpoints / f"step-{n:06d}" for n in range(1, STEPS)}
    seen = set()
    for version, path in policies.items():
        policy = Policy.load(ModelConfig(path=str(path)))
        for e in run.read_episodes():
            for i, segment in enumerate(e.segments):
                if segment.policy_version == version:
                    batch = make_batch([e.segments[:i + 1]])
                    with torch.no_grad():
                        scored = policy.scores(batch).logprobs[-len(segment.token_ids):].numpy()
                    np.testing.assert_allclose(segment.logprobs, scored, atol=1e-4)
                    seen.add(version)
    assert len(seen) >= STEPS - 2


def test_every_task_is_trained_on_once_or_counted(finished: Any) -> None:
    assert_every_task_once(finished[0], STEPS, 2)


def test_an_audit_finds_every_group_and_its_credit_as_the_run_wrote_them_down(finished: Any) -> None:
    found = {one.row: one for one in audit(finished[0].path, 6)}
    assert all(one.verdict != "fail" for one in found.values()), found
    assert found["rewards"].verdict == found["advantages"].verdict == "pass"


def test_a_slow_environment_holds_up_its_own_group_alone_which_is_left_out_when_it_is_too_old(
        pool_config: Any) -> None:
    config = pool_config("OneSlow", 1, name="one-slow", trainer={"steps": 12, "save_every": 12})
    with Display(None) as display:
        run = train(config, display)
    stale = sum(line["groups stale"] for line in run.read_metrics())
    assert stale > 0, "the policy was updated twice or more while they were waited for, by the others' groups"
    assert_every_task_once(run, 12, 2)


def as_killed(finished: Any, folder: Any, steps: int) -> tuple[RunFolder, Any]:
    """The run as one leaves it that was killed behind the step after so many, of which the last has a checkpoint."""
    whole, config = finished
    shutil.copytree(whole.path, folder / config.name)
    run = RunFolder(folder / config.name)
    shutil.rmtree(run.path / "policy")
    for path in run.checkpoints.glob("step-*"):
        if int(path.name[5:]) > steps:
            shutil.rmtree(path)
    text = (run.path / "config.yaml").read_text().replace(str(whole.path.parent), str(folder))
    (run.path / "config.yaml").write_text(text)
    return run, config.model_copy(update={"runs": folder})


def test_groups_that_no_step_before_the_checkpoint_took_are_used_again_where_their_weights_still_are_to_come(
        finished: Any, tmp_path: Any) -> None:
    run, config = as_killed(finished, tmp_path, 2)
    before = {e.group: e for e in run.read_episodes()}
    episodes = {number: [e for e in run.read_episodes() if e.group == number] for number in before}
    later = [n for n, of in episodes.items() if of[0].step >= 2]
    again = {n for n in later if max(v for e in episodes[n] for v in e.policy_versions) <= 2}
    assert again and set(later) - again, "some were sampled by weights that the run went on to, and is to make anew"
    twice = min(n for n, of in episodes.items() if of[0].step == 0)  # killed before it was taken away
    write_episodes(run.ahead_file(twice), episodes[twice])
    with Display(None) as display:
        train(config, display, resume=True)
    assert_every_task_once(run, STEPS, 2)
    took = {e.group: e.timings["sampling"] for e in run.read_episodes()}  # as good as a fingerprint
    kept = {n for n in later if n in took and any(e.timings["sampling"] == took[n] for e in episodes[n])}
    assert kept == again - {n for line in run.read_metrics() for n in line["tasks stale"]}


def test_an_engine_that_dies_ends_the_run_with_the_reason(pool_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = pool_config("Slowly", 1, name="dies")
    stream, calls = TransformersEngine.stream, [0]

    def broken(self: Any, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] > 12:
            raise RuntimeError("the device fell off")
        return stream(self, *arguments)

    monkeypatch.setattr(TransformersEngine, "stream", broken)
    with Display(None) as display, pytest.raises(TrainingStopped, match=r"engine failed in every .* fell off"):
        train(config, display)


def test_new_weights_that_an_engine_refuses_end_the_run_with_the_reason(pool_config: Any,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise EngineError("the server hung up")

    monkeypatch.setattr("turncredit.trainer.engines.WeightsOnTheWay.load", refuse)
    with Display(None) as display, pytest.raises(TrainingStopped, match="took no new weights: the server hung up"):
        train(pool_config("Slowly", 1, name="refuses"), display)


def test_where_nothing_moves_any_more_the_run_ends_and_says_so(pool_config: Any,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    config = pool_config("Slowly", 1, {"engine_timeout_s": 1.0, "step_timeout_s": 1.0}, name="hangs")
    monkeypatch.setattr("turncredit.rollout.Rollout.play", lambda *_: asyncio.sleep(60))
    monkeypatch.setattr(pool_module, "LOOK_S", 0.1)
    with Display(None) as display, pytest.raises(TrainingStopped, match=r"no turn was sampled .* in 2 s"):
        train(config, display)


def test_what_fails_in_making_environments_is_raised_where_groups_are_wanted(pool_config: Any,
                                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(call: Any) -> Any:
        raise UserError("no worker is left")

    monkeypatch.setattr(pool_module, "in_daemon_thread", none)
    with Display(None) as display, pytest.raises(UserError, match="no worker is left"):
        train(pool_config("Slowly", 1, name="none"), display)
