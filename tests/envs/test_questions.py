"""Questions from files: any of the usual forms, and a fault in them is named with its line and field."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

import turncredit
from turncredit.envs.check import check
from turncredit.errors import MissingExtra, UserError

ROWS = [{"question": "What is 6 * 7?", "answer": "Six sevens.\n#### 42", "n": 1},
        {"question": "Half of 1?", "answer": "It is #### 1/2", "n": 2},
        {"question": "A million and one?", "answer": "#### 1,000,001", "n": 3}]


def write(folder: Path, form: str, rows: list[Any] = ROWS) -> Path:
    path = folder / f"data.{form}"
    if "parquet" in form:
        import pandas

        raw = pandas.DataFrame(rows).to_parquet()
    elif "jsonl" in form:
        raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    else:
        raw = json.dumps(rows).encode()
    path.write_bytes(gzip.compress(raw) if form.endswith("gz") else raw)
    return path


def questions(path: Path | str, **arguments: Any) -> Any:
    return turncredit.make("turncredit/Questions-v0", data=str(path), **arguments).unwrapped


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "json", "json.gz", "parquet", "parquet.gz"])
def test_a_file_of_any_usual_form_is_a_task_set(tmp_path: Path, form: str) -> None:
    env = questions(write(tmp_path, form), answer_pattern="#### (.+)")
    assert env.num_tasks == 3
    for i, (row, answer) in enumerate(zip(ROWS, ("42", "0.5", "1000001"))):
        prompt, info = env.reset(options={"task": i})
        assert prompt == row["question"]
        assert "####" not in str(info)
        _, reward, terminated, _, _ = env.step(rf"So it is \boxed{{{answer}}}.")
        assert (reward, terminated) == (1.0, True)
        env.reset(options={"task": i})
        assert env.step("7")[1] == 0.0


def test_a_seed_draws_any_row(tmp_path: Path) -> None:
    env = questions(write(tmp_path, "jsonl"), answer_pattern="#### (.+)")
    assert {env.reset(seed=seed)[0] for seed in range(40)} == {str(row["question"]) for row in ROWS}


def test_environments_on_one_file_share_its_tasks(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    assert questions(path).task_at(1) is questions(path).task_at(1)


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    assert questions(path).num_tasks == 3
    write(tmp_path, "jsonl", ROWS[:2])
    assert questions(path).num_tasks == 2


def test_fields_are_named_in_the_configuration(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"problem": "1 + 1?", "solution": 2}])
    env = questions(path, question="problem", answer="solution")
    env.reset(seed=0)
    assert env.step(env.expert_action())[1] == 1.0


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"question": "a", "answer": "1"}\n\n{"question": "b"}\n')
    with pytest.raises(UserError, match=r"data\.jsonl, line 3 has no field 'answer'"):
        questions(path)


FAULTS: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "field": ([*ROWS, {"question": "?", "anwser": "1"}], {},
              r"line 4 has no field 'answer'; did you mean 'anwser'\?: set answer=… \(it has: question, anwser\)"),
    "other field": (ROWS, {"question": "problem"}, r"line 1 has no field 'problem'.*set question=…"),
    "null": ([{"question": "?", "answer": None}], {}, "line 1: its field 'answer' is empty"),
    "empty question": ([{"question": " ", "answer": "1"}], {}, "line 1: its field 'question' is empty"),
    "not an object": ([["a", "b"]], {}, "line 1 is list: each one must be an object"),
    "pattern": ([*ROWS, {"question": "?", "answer": "just 3"}], {"answer_pattern": "#### (.+)"},
                r"line 4: answer_pattern '#### \(.\+\)' finds nothing in its answer: 'just 3'"),
    "no rows": ([], {}, "holds no rows"),
    "bad pattern": (ROWS, {"answer_pattern": "("}, r"answer_pattern '\(' is not a regular expression"),
    "no group": (ROWS, {"answer_pattern": "####"}, "answer_pattern '####' has no group"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_data_is_named_with_its_line_and_field(tmp_path: Path, fault: str) -> None:
    rows, arguments, sentence = FAULTS[fault]
    with pytest.raises(UserError, match=sentence):
        questions(write(tmp_path, "jsonl", rows), **arguments)


@pytest.mark.parametrize("name, content, sentence", [
    ("data.jsonl", b'{"question": 1, "answer": 2}\n{oops}\n', "line 2 is not valid JSON"),
    ("data.jsonl", b"\xff\xfe\x00", "line 1 is not valid JSON"),
    ("data.json", b"[1,", "cannot be read"),
    ("data.json", b"[1]", "row 1 is int: each one must be an object"),
    ("data.jsonl.gz", b"not gzip", "cannot be read: Not a gzipped file"),
    ("data.jsonl.gz", gzip.compress(b"{}" * 100, mtime=0)[:-9], "cannot be read"),
    ("data.parquet", b"not parquet at all", "cannot be read"),
    ("data.csv", b"a,b\n", "is neither .jsonl, .json nor .parquet"),
])
def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(tmp_path: Path, name: str, content: bytes,
                                                              sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as refused:
        questions(path)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        questions(tmp_path / "none.jsonl")


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="datasets is installed")
def test_the_hub_needs_an_extra() -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'turncredit\[datasets\]'"):
        questions("hf:openai/gsm8k/main")


DATA = Path(os.environ.get("TURNCREDIT_DATA", "../shared/data"))


@pytest.mark.parametrize("file, rows, arguments", [
    ("gsm8k/train.jsonl.gz", 7473, {"answer_pattern": "#### (.+)"}),
    ("gsm8k/test.jsonl.gz", 1319, {"answer_pattern": "#### (.+)"}),
    ("aime/aime2024.json", 30, {"question": "problem"}),
    ("aime/aime1983_2023.json.gz", 975, {"question": "problem"}),
])
def test_real_problem_sets_are_one_line_and_their_answers_are_rewarded(file: str, rows: int,
                                                                      arguments: dict[str, str]) -> None:
    if not (DATA / file).is_file():
        pytest.skip(f"no {file} under {DATA}: set TURNCREDIT_DATA to a folder that has it")
    env = questions(DATA / file, **arguments)
    assert env.num_tasks == rows
    for i in range(0, rows, max(1, rows // 40)):
        prompt, _ = env.reset(options={"task": i})
        assert len(prompt) > 20
        assert env.step(rf"The answer is \boxed{{{env.expert_action()}}}")[1] == 1.0
        env.reset(options={"task": i})
        assert env.step(r"The answer is \boxed{-12345}")[1] == 0.0


def test_a_fifth_of_one_file_can_be_held_out(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"question": f"What is {n} + 1?", "answer": n + 1} for n in range(200)])
    parts = {split: questions(path, hold_out=True, split=split) for split in ("train", "test")}
    drawn = {split: {env.reset(options={"task": i})[0] for i in range(env.num_tasks)} for split, env in parts.items()}
    assert len(drawn["train"] | drawn["test"]) == 200 and not drawn["train"] & drawn["test"]
    assert 20 < len(drawn["test"]) < 60
    with pytest.raises(UserError, match="split 'ood' with hold_out"):
        questions(path, hold_out=True, split="ood")
    with pytest.raises(UserError, match="name it with data_split"):
        questions("hf:owner/name", hold_out=True)
    with pytest.raises(UserError, match="has no row for split 'test' of its 1: leave out hold_out"):
        questions(write(tmp_path, "jsonl", [{"question": "What is 1 + 1?", "answer": 2}]), hold_out=True, split="test")


def test_questions_pass_the_contract_with_two_splits_and_one_is_no_finding(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"question": f"Of {n} apples 3 are eaten. How many are left?", "answer": n - 3}
                                     for n in range(100, 900, 7)])
    id, data = "turncredit/Questions-v0", {"data": str(path)}
    found = {f.row: f for f in check(id, data | {"hold_out": True}, quick=True)}
    assert [(f.row, f.detail) for f in found.values() if f.verdict == "fail"] == []
    assert found["splits"].verdict == "pass"
    assert check(id, data, quick=True, rows=["splits"])[-1].verdict == "skip"
