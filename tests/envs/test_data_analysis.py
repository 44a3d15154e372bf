"""Questions about data: SQL in the sandbox agrees with the answer that was worked out in Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env

from turncredit.envs import SPLITS
from turncredit.errors import UserError

CASES = [(split, level) for split in SPLITS for level in (1, 2, 3)]


def test_gymnasium_s_own_checker_passes(make: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*render_modes.*")
        check_env(make("DataAnalysis"), skip_render_check=True)


@pytest.mark.parametrize("storage", ["csv", "sqlite"])
@pytest.mark.parametrize("split, level", CASES)
def test_a_query_finds_the_answer(make: Any, play: Callable[..., float], storage: str, split: str, level: int) -> None:
    env = make("DataAnalysis", split=split, level=level, storage=storage)
    assert [play(env, seed) for seed in range(10)] == [1.0] * 10


def test_useless_answers_are_not_rewarded(make: Any) -> None:
    env = make("DataAnalysis", level=3)
    for seed in range(12):
        prompt, _ = env.reset(seed=seed)
        answer = env.task.hidden["answer"]
        several = f"{answer} or 17" if not isinstance(answer, str) else "Oslo, Lima, Cairo, private, company"
        for useless in ("", "0", "500", "done", prompt, several, "nan", "inf", "1e999", "\x00\ud800", "9" * 5000):
            env.reset(seed=seed)
            assert env.step(useless)[1] == 0.0, useless


def test_no_question_stands_in_the_files_and_no_answer_in_the_prompt(make: Any) -> None:
    for split, level in CASES:
        env = make("DataAnalysis", split=split, level=level)
        for seed in range(5):
            prompt, info = env.reset(seed=seed)
            assert str(env.task.hidden["answer"]) not in (prompt + str(info)).replace("-v0", "").split()
            look = "import os; print([f for f in os.listdir()], [n for n in globals() if not n.startswith('_')])"
            names = [f"{name}.csv" for name in env.task.hidden["tables"]]
            seen = env.step(env.call("python", code=look))[0]
            kept = names if env.task.hidden["storage"] == "csv" else ["data.sqlite"]
            assert seen == f"{kept} ['os']" or seen == f"{kept[::-1]} ['os']"


def test_the_files_are_there_again_after_a_time_out(make: Any) -> None:
    env = make("DataAnalysis", storage="csv", cell_s=0.5)
    env.reset(seed=0)
    assert "are gone" in env.step(env.call("python", code="while True: pass"))[0]
    assert env.step(env.call("python", code="len(open('orders.csv').readlines())"))[0] == "61"


def test_train_and_test_ask_different_things_and_ood_has_other_tables(make: Any) -> None:
    shapes: dict[str, set[str]] = {split: set() for split in SPLITS}
    tables: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split, level in CASES:
        env = make("DataAnalysis", split=split, level=level)
        for seed in range(60):
            env.reset(seed=seed)
            shapes[split].add(env.task.hidden["question"].shape)
            tables[split] |= set(env.task.hidden["tables"])
    assert not shapes["train"] & shapes["test"]
    assert not tables["train"] & tables["ood"]
    assert len(shapes["train"]) > 50
    assert len(shapes["test"]) > 15


def test_the_same_seed_is_the_same_episode_and_other_data_another_task(make: Any) -> None:
    one, other = make("DataAnalysis"), make("DataAnalysis")
    ids = set()
    for seed in range(20):
        other.reset(seed=seed + 9)
        assert one.reset(seed=seed) == other.reset(seed=seed)
        assert one.files() == other.files()
        ids.add(one.task.id)
    assert len(ids) == 20


def test_an_unknown_storage_is_refused() -> None:
    from turncredit.envs.data_analysis import DataAnalysis

    with pytest.raises(UserError, match="storage 'sqlit' is unknown; did you mean 'sqlite'"):
        DataAnalysis(storage="sqlit")
