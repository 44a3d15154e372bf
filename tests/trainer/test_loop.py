"""The whole loop on a very small policy: what a run leaves behind, exact resume, refusals and stops."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import yaml
from safetensors.torch import load_file

from turncredit.config import ModelConfig, load_config
from turncredit.envs import Reply, TextEnv, make
from turncredit.episode import StopReason, Task, Verdict
from turncredit.errors import UserError
from turncredit.rollout import Rollout, TaskRef
from turncredit.store import RunFolder
from turncredit.trainer.algorithms import ALGORITHMS, Algorithm, GroupCredit, register_algorithm
from turncredit.trainer.batch import make_batch
from turncredit.trainer.checkpoint import newest_checkpoint
from turncredit.trainer.health import Silence, TrainingStopped
from turncredit.trainer.loop import budget_of, keep_best, open_run, train
from turncredit.trainer.policy import Policy
from turncredit.trainer.start import starting_policy


class Watching:
    """Notes what it is shown."""

    def __init__(self):
        self.warm, self.steps = [], []

    def warming(self, step, steps, loss, success):
        self.warm.append((step, steps, loss))

    def training(self, step, steps, metrics):
        self.steps.append((step, steps, metrics["reward"]))


class NeverRight:
    def verify(self, task, outcome):
        return Verdict.of(False)


class BreaksOnB:
    """Cannot judge tasks that begin with a b."""

    def verify(self, task, outcome):
        if task.hidden["words"][0] == "b":
            raise RuntimeError("no judge for b")
        return Verdict.of(outcome.turns[0].action.strip() == task.hidden["words"][0])


class Hopeless(TextEnv):
    verifier = NeverRight()

    def make_task(self, rng):
        return Task(f"{rng.integers(1000)}", {}, self.split)

    def respond(self, action):
        return Reply(done=True, answer=action)


def weights(folder: Path):
    return load_file(folder / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


SECONDS = ("sampling_s", "credit_s", "update_s", "weights_s", "engine_idle", "evaluation_s", "tokens_per_second",
           "environment_s", "seconds")


def without_seconds(metrics):
    return [{k: v for k, v in line.items() if k not in SECONDS} for line in metrics]


def episodes_of(run: RunFolder):
    return [(e.id, e.task_id, e.reward, str(e.stop), e.policy_version, e.token_ids.tolist(), e.logprobs.tolist())
            for e in run.read_episodes()]


def assert_same_run(one: RunFolder, other: RunFolder):
    assert same_weights(one.path / "policy", other.path / "policy")
    assert without_seconds(one.read_metrics()) == without_seconds(other.read_metrics())
    assert episodes_of(one) == episodes_of(other)


@pytest.fixture(scope="module")
def finished(relay_config):
    """A run of four steps with a checkpoint after each, and its configuration."""
    evaluation = {"envs": [{"id": "turncredit-tests/Relay-v0", "split": "test"}], "tasks": 6, "k": 2, "every": 2}
    config = relay_config(evaluation=evaluation)
    watching = Watching()
    return train(config, watching), config, watching


@pytest.fixture
def begun(finished):
    """begun(config): the same, once its run has its warm start behind it; to be resumed."""

    def begin(config):
        RunFolder(config.folder).create()
        shutil.copytree(finished[0].path / "start", config.folder / "start")
        (config.folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        return config

    return begin


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to be changed at will, and its configuration."""
    run, config, _ = finished
    config = config.model_copy(update={"runs": tmp_path})
    shutil.copytree(run.path, config.folder)
    file = config.folder / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return RunFolder(config.folder), config


# What a run leaves behind.


def test_a_run_learns_and_leaves_a_policy_and_a_checkpoint_for_each_step(finished):
    run, _, _ = finished
    folders = [run.path / "start", *sorted(run.checkpoints.glob("step-*")), run.path / "policy"]
    assert [f.name for f in folders] == ["start", *(f"step-00000{n}" for n in (1, 2, 3, 4)), "policy"]
    for before, after in pairwise(folders[:-1]):
        assert not same_weights(before, after)
    assert same_weights(folders[-2], folders[-1])
    assert not list(run.path.rglob(".writing-*"))


def test_a_watcher_sees_every_step(finished):
    run, _, watching = finished
    assert [step for step, _, _ in watching.warm] == list(range(30))
    assert watching.steps == [(line["step"], 4, line["reward"]) for line in run.read_metrics()]


def test_there_is_a_line_of_metrics_for_each_step_and_it_is_what_the_episodes_say(finished):
    run, _, _ = finished
    table = pandas.read_parquet(run.episodes)
    lines = run.read_metrics()
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    for line in lines:
        rows = table[table["step"] == line["step"]]
        assert len(rows) == line["episodes"] == 12
        assert line["reward"] == pytest.approx(rows["reward"].mean())
        assert line["success"] == pytest.approx(rows["passed"].mean())
        assert line["generated_tokens"] == rows["generated_tokens"].sum()
        assert line["total_tokens"] == rows["total_tokens"].sum()
        assert line["length_mean"] == pytest.approx(rows["generated_tokens"].mean())
        assert line["length_max"] == rows["generated_tokens"].max()
        assert line["turns"] == pytest.approx(rows["turns"].map(len).mean())
        assert sum(line["stops"].values()) == 12
        routes = {k.removeprefix("route "): v for k, v in line.items() if k.startswith("route ")}
        solved = rows.groupby("group")["passed"].sum()
        assert routes.get("solve-none", 0) == (solved == 0).sum()
        assert routes.get("fallback", 0) == ((solved == 1) | (solved == 4)).sum()
        assert routes.get("partial-solve", 0) == ((solved > 1) & (solved < 4)).sum()
    assert len(pandas.read_json(run.metrics, lines=True)) == 4


def test_the_seconds_of_a_step_are_split_by_what_they_went_to(finished):
    run, _, _ = finished
    for line in run.read_metrics():
        seconds = line["seconds"]
        assert 0 < seconds["verifier"] < seconds["environment"]
        assert seconds["environment"] == pytest.approx(line["environment_s"] * line["episodes"])
        computed = [seconds.get(name, 0.0) for name in ("teacher", "student", "optimizer")]
        assert sum(computed) <= line["credit_s"] + line["update_s"]
        assert (computed[1] > 0) == (line["updates"] > 0 or line.get("route solve-none", 0) > 0)
        assert (computed[2] > 0) == (line["updates"] > 0)


def test_evaluation_comes_every_so_many_steps(finished):
    run, _, _ = finished
    assert ["evaluation" in line for line in run.read_metrics()] == [False, True, False, True]
    score = run.read_metrics()[1]["evaluation"][0]
    assert (score["env"], score["split"], score["tasks"], score["k"]) == ("turncredit-tests/Relay-v0", "test", 6, 2)


def test_the_policy_that_did_best_in_distribution_is_kept(finished):
    run, _, _ = finished
    lines = [line for line in run.read_metrics() if "evaluation" in line]
    evaluated = [(line["step"] + 1, line["evaluation"][0]["avg"]) for line in lines]
    best = max(evaluated, key=lambda one: one[1])[0]
    assert same_weights(run.path / "best", next(run.path.glob(f"checkpoints/step-*{best}")))


def test_the_best_policy_is_not_chosen_by_ood_and_not_replaced_by_an_equal_one(tmp_path):
    class Saved:
        def export(self, path):
            path.write_text(str(self.step))

    run, policy = RunFolder(tmp_path).create(), Saved()
    for policy.step, (test, ood) in enumerate([(0.2, 0.9), (0.5, 0.1), (0.5, 1.0), (None, 1.0), (0.4, 1.0)]):
        evaluation = [{"split": "test", "avg": test}, {"split": "ood", "avg": ood}]
        keep_best(run, policy, evaluation)
        run.append_metrics({"step": policy.step, "evaluation": evaluation})
    assert (tmp_path / "best").read_text() == "1"


def test_evaluating_on_trained_tasks_is_reported_or_refused(tmp_path, relay_config, caplog):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "What is 1 + 1?", "answer": "2"}\n')
    env = {"id": "turncredit/Questions-v0", "arguments": {"data": str(rows)}}
    evaluation = {"envs": [env | {"split": "test"}], "leakage": "refuse"}
    config = relay_config(envs=[env], evaluation=evaluation)
    with pytest.raises(UserError, match="1 of 1 tasks of turncredit/Questions-v0 \\(test\\) stand in the training"):
        open_run(config, resume=False)
    assert not config.folder.exists(), "refused before anything is done"
    run = open_run(relay_config(envs=[env], evaluation=evaluation | {"leakage": "report"}), resume=False)
    assert json.loads((run.path / "leakage.json").read_text())[0]["exact"] == 1
    assert "stand in the training tasks" in caplog.text


def test_every_stored_episode_is_scored_by_the_weights_of_its_step_as_it_was_sampled(finished):
    run, _, _ = finished
    folders = [run.path / "start", *sorted(run.checkpoints.glob("step-*"))]
    episodes = list(run.read_episodes())
    assert len(episodes) == 48
    for step in range(4):
        policy = Policy.load(ModelConfig(path=str(folders[step])))
        mine = [e for e in episodes if e.step == step]
        assert {e.policy_version for e in mine} == {step}
        with torch.no_grad():
            scored = policy.scores(make_batch([e.segments for e in mine])).logprobs
        sampled = torch.cat([torch.from_numpy(e.logprobs) for e in mine])
        assert (scored - sampled).abs().max() <= 1e-4


def test_only_the_newest_checkpoints_are_kept(relay_config, begun):
    run = train(begun(relay_config(trainer={"keep_checkpoints": 2, "steps": 3})), Watching(), resume=True)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step-000002", "step-000003"]


def test_the_best_checkpoints_are_kept_with_all_that_a_run_needs_to_go_on(relay_config, begun):
    evaluation = {"envs": [{"id": "turncredit-tests/Relay-v0", "split": "test"}], "tasks": 6, "k": 2, "every": 1}
    trainer = {"steps": 5, "save_every": 4, "keep_checkpoints": 1, "keep_best_checkpoints": 2}
    run = train(begun(relay_config(evaluation=evaluation, trainer=trainer)), Watching(), resume=True)
    scores = {line["step"] + 1: line["evaluation"][0]["avg"] for line in run.read_metrics()}
    best = sorted(scores, key=lambda step: (-scores[step], step))[:2]
    left = {int(p.name[-6:]) for p in run.checkpoints.iterdir()}
    assert left == {5, *best} and min(left) < 4
    assert {step: json.loads((run.checkpoints / f"step-{step:06d}" / "state.json").read_text())["score"]
            for step in left} == {step: scores[step] for step in left}
    whole = run.path.with_name("whole")
    shutil.copytree(run.path, whole)
    for folder in (run.path / "policy", *sorted(run.checkpoints.iterdir())[1:]):
        shutil.rmtree(folder)
    train(load_config(run.path / "config.yaml"), watching := Watching(), resume=True)
    assert [step for step, _, _ in watching.steps] == list(range(min(left), 5))
    assert_same_run(run, RunFolder(whole))
    assert {int(p.name[-6:]) for p in run.checkpoints.iterdir()} == left


@pytest.mark.parametrize("evaluation", [{}, {"envs": [{"id": "turncredit/Pantry-v0", "split": "ood"}], "every": 2}])
def test_best_checkpoints_without_an_evaluation_in_distribution_are_refused(evaluation, relay_config):
    with pytest.raises(UserError, match=r"keep_best_checkpoints is 1 without evaluations in distribution: set"):
        relay_config(evaluation=evaluation, trainer={"keep_best_checkpoints": 1})


# Exact resume (invariant 6).


@pytest.mark.parametrize("steps_done", [0, 1, 3])
def test_a_run_resumed_from_any_checkpoint_ends_bit_for_bit_the_same(steps_done, finished, copied):
    run, config = copied
    shutil.rmtree(run.path / "policy")
    for folder in sorted(run.checkpoints.glob("step-*"))[steps_done:]:
        shutil.rmtree(folder)
    train(config, watching := Watching(), resume=True)
    assert [step for step, _, _ in watching.steps] == list(range(steps_done, 4)) and not watching.warm
    assert_same_run(run, finished[0])


SEVERAL = {"steps": 3, "epochs": 2, "mini_batches": 2}


@pytest.mark.parametrize("sections", [
    {"trainer": {**SEVERAL, "warmup_steps": 3, "schedule": "linear", "weight_decay": 0.1}},
    {"trainer": {**SEVERAL, "old_logprobs": "recomputed"}, "rollout": {"refills": 2}, "algorithm": {"name": "dapo"}},
    {"trainer": SEVERAL, "algorithm": {"name": "sc-grpo", "unit": "batch", "reference_kl": 0.04}},
    {"trainer": SEVERAL, "algorithm": {"name": "sdpo", "follow": 0.3, "solution": "demonstration"}},
    pytest.param({"trainer": SEVERAL, "algorithm": {"name": "additive", "beta_start": 0.03, "beta_steps": 3}},
                 marks=pytest.mark.slow),
    pytest.param({"trainer": {**SEVERAL, "compile": True}}, marks=pytest.mark.slow)],
    ids=["warm-up", "dynamic sampling", "unit and start", "averaged teacher", "beta warmed up", "compiled"])
def test_a_run_with_several_updates_a_step_is_resumed_bit_for_bit(sections, relay_config, begun):
    config = begun(relay_config(**sections))
    run = train(config, Watching(), resume=True)
    assert any(line["updates"] > 1 for line in run.read_metrics())
    whole = run.path.with_name("whole")
    shutil.copytree(run.path, whole)
    for folder in (run.path / "policy", *sorted(run.checkpoints.glob("step-*"))[1:]):
        shutil.rmtree(folder)
    train(config, watching := Watching(), resume=True)
    assert [step for step, _, _ in watching.steps] == [1, 2]
    assert_same_run(run, RunFolder(whole))


def test_resuming_a_finished_run_changes_nothing(finished, copied):
    run, config = copied
    for _ in range(2):
        train(config, Watching(), resume=True)
        assert_same_run(run, finished[0])


def test_a_run_without_its_warm_start_is_resumed_with_a_warm_start_done_again(finished, copied):
    run, config = copied
    for folder in (run.path / "policy", run.path / "start", *run.checkpoints.iterdir()):
        shutil.rmtree(folder)
    train(config, watching := Watching(), resume=True)
    assert len(watching.warm) == 30
    assert_same_run(run, finished[0])


def test_what_a_killed_writer_left_half_done_is_cleared_away(finished, copied):
    run, config = copied
    shutil.rmtree(run.path / "policy")
    shutil.rmtree(run.checkpoints / "step-000004")
    for half in (run.path / ".writing-policy", run.checkpoints / ".writing-step-000004"):
        shutil.copytree(run.path / "start", half)
        (half / "model.safetensors").write_bytes(b"half")
    (run.episodes / ".writing-step-000003-group-0000.parquet").write_bytes(b"half")
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "rew')
    train(config, Watching(), resume=True)
    assert_same_run(run, finished[0])
    assert not list(run.path.rglob(".writing-*"))


def test_a_checkpoint_holds_the_optimisers_moments(finished):
    run, _, _ = finished
    saved = torch.load(run.checkpoints / "step-000004" / "optimizer.pt", weights_only=True)
    state = saved["optimizer"]["state"]
    model = Policy.load(ModelConfig(path=str(run.path / "policy"))).model
    assert len(state) == len(list(model.parameters()))
    assert all(float(one["step"]) == 4 and one["exp_avg_sq"].abs().sum() > 0 for one in state.values())
    assert json.loads((run.checkpoints / "step-000004" / "state.json").read_text())["steps_done"] == 4
    assert newest_checkpoint(run.checkpoints).name == "step-000004"


# Same seed, same run (invariant 7).


def test_the_same_seed_is_the_same_run_evaluated_or_not_and_another_seed_another(finished, relay_config):
    run, _, _ = finished
    again = train(relay_config(), Watching())
    assert same_weights(run.path / "policy", again.path / "policy")
    assert episodes_of(run) == episodes_of(again)
    other = train(relay_config(seed=1, trainer={"steps": 1}), Watching())
    assert not same_weights(run.path / "start", other.path / "start")
    assert [e for e in episodes_of(run) if e[0].startswith("000000-")] != episodes_of(other)


# Refusals (invariant 8).


def test_a_folder_that_holds_a_run_is_not_trained_over(copied):
    run, config = copied
    before = run.metrics.read_bytes()
    with pytest.raises(UserError, match="holds a run already: pass --resume"):
        train(config, Watching())
    assert run.metrics.read_bytes() == before


def test_resuming_with_another_configuration_is_refused_naming_the_keys(copied):
    run, config = copied
    changed = config.model_copy(update={
        "trainer": config.trainer.model_copy(update={"lr": 1e-5, "steps": 9}), "seed": 3,
        "envs": [config.envs[0].model_copy(update={"weight": 2.0})]})
    before = run.metrics.read_bytes()
    with pytest.raises(UserError, match=r"these keys differ: envs, seed, trainer\.lr, trainer\.steps$"):
        train(changed, Watching(), resume=True)
    assert run.metrics.read_bytes() == before


def test_there_must_be_a_run_to_resume(relay_config):
    config = relay_config()
    with pytest.raises(UserError, match="holds no run to resume: leave out --resume"):
        train(config, Watching(), resume=True)
    assert not config.folder.exists()


@pytest.mark.parametrize("section", ["envs", "evaluation", "warmstart"])
def test_an_environment_that_does_not_exist_is_refused_before_anything_is_done(section, relay_config):
    wrong = [{"id": "turncredit-tests/Rely-v0"}]
    config = relay_config(**{section: wrong if section == "envs" else {"envs": wrong}})
    watching = Watching()
    with pytest.raises(UserError, match="'turncredit-tests/Rely-v0' is not registered"):
        train(config, watching)
    assert not config.folder.exists() and not watching.warm


# Stops.


def test_updates_that_are_not_finite_stop_the_run_after_the_configured_number(relay_config, begun):
    @register_algorithm("test-divides-by-zero")
    class DividesByZero(Algorithm):
        """Has a fault, as an algorithm of one's own may have."""

        def score_group(self, rewards, verified, lengths, seed):
            return GroupCredit("mine", np.linspace(-1, 1, len(rewards)), [0] * len(rewards))

        def weigh_tokens(self, kl, active):
            return kl / (kl.sum() * 0)

    try:
        config = begun(relay_config(algorithm={"name": "test-divides-by-zero"},
                                    trainer={"refused_steps": 2, "steps": 9}))
        with pytest.raises(TrainingStopped, match="2 updates in a row had a non-finite loss or gradient"):
            train(config, Watching(), resume=True)
    finally:
        del ALGORITHMS["test-divides-by-zero"]
    lines = RunFolder(config.folder).read_metrics()
    assert [(line["updated"], line["loss"], line["gradient_norm"]) for line in lines] == [(False, None, None)] * 2
    assert same_weights(config.folder / "start", config.folder / "checkpoints" / "step-000002")


def test_weights_that_are_not_finite_stop_the_run_before_they_are_sampled_from_or_saved(relay_config, begun):
    config = begun(relay_config(algorithm={"name": "grpo"}, trainer={"steps": 9, "lr": 1e37}))
    with pytest.raises(TrainingStopped, match=r"weights that are not finite.*lower trainer.lr \(it is 1e\+37\)"):
        train(config, Watching(), resume=True)
    run = RunFolder(config.folder)
    saved = [path.name for path in run.checkpoints.iterdir()]
    assert len(saved) == len(run.read_metrics()) and all(
        w.isfinite().all() for name in saved for w in weights(run.checkpoints / name).values())
    assert {e.policy_version for e in run.read_episodes()} == {len(saved)} | set(range(len(saved)))
    assert list(run.refused.glob(f"episodes-step-{len(saved):06d}-*.parquet"))


@pytest.mark.parametrize(("episodes", "reasons"), [
    ([(0.0, "finished", True)] * 2, ["every reward was 0"]),
    ([(1.0, "finished", True)] * 2, ["every reward was 1"]),
    ([(1.0, "finished", True), (0.0, "finished", False)], ["all rewards of each group were equal"]),
    ([(None, "verifier error", True)] * 2, ["no episode was judged"]),
    ([(0.0, "token limit", True), (0.0, "context full", True)], ["every reward was 0", "every episode was cut off"]),
    ([(0.0, "turn limit", False)] * 2, ["every reward was 0", "not one action could be read"])])
def test_what_silent_episodes_have_in_common_is_named(episodes, reasons, finished):
    one = next(iter(finished[0].read_episodes()))
    silence, made = Silence(), []
    for reward, stop, valid in episodes:
        verdict = Verdict(reward, None if reward is None else reward == 1)
        made.append(replace(one, stop=StopReason(stop), verdict=verdict,
                            turns=[replace(turn, valid=valid) for turn in one.turns]))
    silence.add(made)
    found = silence.reasons()
    assert len(found) == len(reasons) and all(text.startswith(start) for text, start in zip(found, reasons))


def test_a_run_without_any_signal_stops_and_says_how_its_episodes_ended(relay_config, begun, register_envs):
    register_envs(Hopeless)
    config = begun(relay_config(envs=[{"id": "turncredit-tests/Hopeless-v0"}], algorithm={"name": "grpo"},
                                trainer={"silent_steps": 2, "steps": 9}))
    with pytest.raises(TrainingStopped, match=r"no learning signal in 2 updates.*every reward was 0.*finished: 24"):
        train(config, Watching(), resume=True)
    lines = RunFolder(config.folder).read_metrics()
    assert [line["groups without signal"] for line in lines] == [3, 3]
    assert not any(line["updated"] for line in lines)
    assert same_weights(config.folder / "start", config.folder / "checkpoints" / "step-000002")


def test_a_run_whose_engine_is_gone_stops_at_once_and_says_why(relay_config, begun, monkeypatch):
    def gone(*_):
        raise RuntimeError("out of memory")

    config = begun(relay_config(trainer={"steps": 9}))
    monkeypatch.setattr("turncredit.agents.TransformersEngine.generate", gone)
    with pytest.raises(TrainingStopped, match=r"the engine failed in every episode of a step.*out of memory"):
        train(config, Watching(), resume=True)
    assert len(RunFolder(config.folder).read_metrics()) == 1


def test_an_environment_that_cannot_judge_some_tasks_ends_no_run_and_enters_no_mean(relay_config, begun, register_envs):
    relay = type(make("turncredit-tests/Relay-v0").unwrapped)
    register_envs(type("HalfJudged", (relay,), {"verifier": BreaksOnB()}))
    run = train(begun(relay_config(envs=[{"id": "turncredit-tests/HalfJudged-v0"}])), Watching(), resume=True)
    lines, table = run.read_metrics(), pandas.read_parquet(run.episodes)
    assert 0 < table["reward"].isna().sum() < len(table)
    for line in lines:
        rows = table[table["step"] == line["step"]]
        assert line["episodes without reward"] == rows["reward"].isna().sum()
        assert line["groups dropped"] == rows["reward"].isna().sum() / 4
        judged = rows["reward"].dropna()
        assert line["reward"] == (pytest.approx(judged.mean()) if len(judged) else None)
    assert (table[table["reward"].isna()]["stop"] == "verifier error").all()


# Where a policy comes from.


def test_a_warm_start_is_kept_and_not_done_twice(finished, copied):
    run, config = copied
    watching = Watching()
    policy = starting_policy(config, run, watching.warming)
    assert not watching.warm
    stored = weights(run.path / "start")
    assert all(torch.equal(stored[name], value) for name, value in policy.model.state_dict().items() if name in stored)


def test_a_trained_policy_acts_like_the_one_that_was_saved(finished):
    run, config, _ = finished
    policies = [Policy.load(ModelConfig(path=str(run.path / name))) for name in ("policy", "checkpoints/step-000004")]
    said = []
    for policy in policies:
        rollout = Rollout(policy.agent(), policy.chat, budget_of(config.rollout))
        group = rollout.sample_groups([TaskRef("turncredit-tests/Relay-v0", 5)], 4, 9)[0]
        rollout.close()
        said.append([e.token_ids.tolist() for e in group.episodes])
    assert said[0] == said[1]
