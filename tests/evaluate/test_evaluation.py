"""A whole evaluation: floors and ceiling, two models task by task, leakage, and going on where it stopped."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import turncredit
from turncredit.config import EnvConfig, ModelConfig, parse_config
from turncredit.episode import Episode, Group, StopReason, Turn, Verdict
from turncredit.errors import UserError
from turncredit.evaluate import Suite, compare, leakage, load_suite, macro_interval, pass_all_k
from turncredit.evaluate.evaluation import Evaluation, Wanted
from turncredit.store import RunFolder
from turncredit.trainer.policy import Policy

ARITHMETIC = EnvConfig(id="turncredit/Arithmetic-v0", split="test")
SUITE = Suite(in_distribution=[ARITHMETIC], ood=[EnvConfig(id="turncredit/Pantry-v0", split="ood")], tasks=3, k=2)
CONFIG = parse_config({"model": {"path": "."}, "envs": [{"id": "turncredit/Arithmetic-v0"}],
                       "rollout": {"turn_tokens": 4, "episode_tokens": 8}})


@pytest.fixture(scope="module")
def policy(tokenizer_for: Any, model_for: Any) -> Policy:
    tokenizer = tokenizer_for("chatml")
    return Policy(model_for(tokenizer), tokenizer, ModelConfig(path=".", tool_calls="plain"))


def evaluation(policy: Policy, out: Path | None = None, **options: Any) -> Evaluation:
    models = {"policy": (policy, CONFIG), "against": (policy, CONFIG)}
    return Evaluation(Wanted(SUITE, **options), models, {"policy": "one", "against": "two"}, out)


def test_every_table_has_a_floor_the_policies_and_a_ceiling(policy: Policy, tmp_path: Path) -> None:
    done = evaluation(policy, tmp_path / "out", seed=3)
    done.run()
    assert [s.agent for s in done.scores if "Pantry" in s.env] == ["silent", "random", "policy", "against", "expert"]
    by_agent = {(s.agent, s.split): s.avg for s in done.scores}
    assert by_agent["silent", "test"] == by_agent["silent", "ood"] == 0.0
    assert by_agent["expert", "test"] == by_agent["expert", "ood"] == 1.0
    assert {(m.agent, m.kind) for m in done.means} >= {("policy", "in distribution"), ("policy", "ood")}
    assert [(c.difference, c.win, c.tie, c.loss) for c in done.comparisons] == [(0.0, 0, 3, 0)] * 2, "one policy, twice"
    assert [(leak.exact, leak.normalised) for leak in done.leaks] == [(0, 0), (0, 0)]
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [s["agent"] for s in written["scores"]] == [s.agent for s in done.scores]
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert [row["avg"] for row in rows] == [str(s.avg) for s in done.scores]


class Stopped(Exception):
    pass


def test_an_interrupted_evaluation_goes_on_where_it_stopped_and_ends_the_same(policy: Policy, tmp_path: Path) -> None:
    whole = evaluation(policy, tmp_path / "whole", seed=5)
    whole.run()
    seen: list[str] = []

    def stop(group: Group) -> None:
        seen.append(group.episodes[0].env_id)
        if len(seen) == 14:  # in the middle of the policy's first environment
            raise Stopped

    with pytest.raises(Stopped):
        evaluation(policy, tmp_path / "half", seed=5).run(stop)
    (tmp_path / "half" / "policy" / "episodes" / "step-000000-group-0001.parquet").unlink()  # whichever ended last
    kept = len(list((tmp_path / "half").glob("*/episodes/*.parquet")))
    assert 0 < kept < 30
    again: list[str] = []
    resumed = evaluation(policy, tmp_path / "half", seed=5)
    resumed.run(lambda group: again.append(group.episodes[0].env_id))
    assert len(again) == 30 - kept, "what was done is not done again"
    assert resumed.as_json() == whole.as_json()
    one, other = ([e.token_ids.tolist() for e in RunFolder(tmp_path / name / "policy").read_episodes()]
                  for name in ("whole", "half"))
    assert one == other, "token for token"


def test_another_evaluation_is_not_gone_on_with(policy: Policy, tmp_path: Path) -> None:
    evaluation(policy, tmp_path / "out", seed=1)
    with pytest.raises(UserError, match="another evaluation; these differ: seed"):
        evaluation(policy, tmp_path / "out", seed=2)


def group(rewards: list[float | None], seed: int = 0) -> Group:
    made = [Episode("e", f"task-{seed}", "test", seed, "", "", [], [Turn("a")],
                    Verdict.unknown("?") if r is None else Verdict(r, r == 1), StopReason.FINISHED) for r in rewards]
    return Group(made)


def test_a_comparison_is_of_the_tasks_that_both_were_judged_on() -> None:
    ours = [group([1, 1], 0), group([1, 0], 1), group([0, 0], 2), group([None, None], 3)]
    theirs = [group([0, 0], 0), group([0, 1], 1), group([1, 0], 2), group([1, 1], 3)]
    found = compare(ARITHMETIC, ours, theirs, seed=0)
    assert (found.tasks, found.win, found.tie, found.loss) == (3, 1, 1, 1)
    assert found.difference == pytest.approx((1 + 0 - 0.5) / 3)
    assert found.interval is not None and found.interval[0] < found.difference < found.interval[1]
    with pytest.raises(UserError, match="cannot be compared"):
        compare(ARITHMETIC, ours[:1], [group([1, 1], 9)], seed=0)


def test_pairing_takes_the_tasks_difficulty_out() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(60)
    ours = [group([float(np.clip(h + 0.1, 0, 1))], i) for i, h in enumerate(hard)]
    theirs = [group([float(np.clip(h, 0, 1))], i) for i, h in enumerate(hard)]
    found = compare(ARITHMETIC, ours, theirs, seed=0)
    assert found.interval is not None and found.interval[0] > 0.05
    unpaired = compare(ARITHMETIC, ours, [group([e.reward for e in g.episodes], i)
                                          for i, g in enumerate(reversed(theirs))], seed=0)
    assert unpaired.interval is not None and unpaired.interval[0] < 0


def test_pass_all_k_is_the_share_of_k_episodes_that_all_pass() -> None:
    assert [pass_all_k(4, c, 2) for c in range(5)] == pytest.approx([0, 0, 1 / 6, 3 / 6, 1])


def test_the_mean_over_environments_weighs_each_the_same() -> None:
    low, high = macro_interval([np.array([1.0, 0.0] * 50), np.array([1.0, 0.0] * 5)], seed=0)
    assert low < 0.5 < high
    alone = macro_interval([np.array([1.0, 0.0] * 50)], seed=0)
    assert high - low > alone[1] - alone[0]


def test_leakage_finds_the_same_tasks_in_other_clothes(tmp_path: Path) -> None:
    def data(name: str, questions: list[str]) -> EnvConfig:
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"question": q, "answer": "1"}) + "\n" for q in questions))
        return EnvConfig(id="turncredit/Questions-v0", split="test", arguments={"data": str(file)})

    long = "A farmer has three fields and sows wheat on two of them every single year of the decade"
    train = data("train", ["How many apples?", "What is 1 + 1?", long])
    held_out = data("test", ["how  many APPLES", "What is 1 + 1?", "What is 1 - 1?", f"{long}, says his neighbour."])
    [found] = leakage([train], [held_out])
    assert (found.tasks, found.exact, found.normalised, found.ngrams) == (4, 1, 2, 3)
    assert not found.clean


@pytest.mark.parametrize("name", ["quick", "ood", "paper", "all-offline"])
def test_the_suites_that_ship_can_be_read(name: str) -> None:
    suite = load_suite(name)
    known = turncredit.list_envs()
    assert all(env.id in known for env in suite.envs)


def test_a_mistake_in_a_suite_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for text, message in (("ood: []", "are both empty"),
                          ("ood: [{id: a}]\ntask: 3", "unknown key 'task'; did you mean 'tasks'"),
                          ("ood: [{id: a}]\nk: 0", "k is 0"), ("- 1", "must be a mapping")):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            load_suite(str(file))
    with pytest.raises(UserError, match="did you mean 'quick'"):
        load_suite("quik")
