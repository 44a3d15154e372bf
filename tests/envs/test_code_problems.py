"""Problems from data files: good solutions pass, halves share no test, and a bad file is refused in a sentence."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from turncredit.envs.problem_files import decoded_tests, pickled_text
from turncredit.errors import UserError
from turncredit.verifiers.code import CodeTests

ADD = "a, b = map(int, input().split())\nprint(a + b)\n"
SUMS = [{"input": f"{n} {n + 1}\n", "output": f"{2 * n + 1}\n", "testtype": "stdin"} for n in range(7)]
MBPP = {"text": "Write a function to add.", "code": "def add(a, b):\n    return a + b\n", "task_id": 1,
        "test_list": ["assert add(1, 2) == 3", "assert add(5, 5) == 10", "assert add(-1, 1) == 0"],
        "test_setup_code": "", "challenge_test_list": ["assert add(10**9, 1) == 1000000001"]}
CODE_CONTESTS = {"name": "a", "description": "Add two numbers.",
                 "public_tests": {"input": ["1 1\n"], "output": ["2\n"]},
                 "private_tests": {"input": ["2 3\n", "9 9\n"], "output": ["5\n", "18\n"]},
                 "generated_tests": {"input": [], "output": []}}


def packed(tests: list[dict[str, str]]) -> str:
    """As LiveCodeBench packs its private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def livecodebench(**changes: Any) -> dict[str, Any]:
    return {"question_content": "Add two numbers.", "starter_code": "", "metadata": "{}",
            "public_test_cases": json.dumps(SUMS[:2]), "private_test_cases": packed(SUMS[2:])} | changes


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    def write(*rows: Any) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        path = path.rename(tmp_path / f"{len(list(tmp_path.iterdir()))}-{abs(hash(str(rows)))}.jsonl")
        return str(path)

    return write


@pytest.mark.parametrize("several_turns", [False, True])
@pytest.mark.parametrize("name, count, every", [("humaneval/HumanEval.jsonl.gz", 164, 11),
                                                ("leetcode/test.json.gz", 200, 13)])
def test_known_good_solutions_are_rewarded(make: Any, play: Callable[..., float], data_file: Callable[[str], str],
                                           name: str, count: int, every: int, several_turns: bool) -> None:
    env = make("CodeProblems", data=data_file(name), split="test", several_turns=several_turns)
    assert env.num_tasks == count
    picked = range(0, count, every)
    assert [play(env, 0, options={"task": i}) for i in picked] == [1.0] * len(picked)


@pytest.mark.slow
@pytest.mark.parametrize("name, least", [("humaneval/HumanEval.jsonl.gz", 164), ("leetcode/test.json.gz", 196)])
def test_all_known_good_solutions_are_rewarded(make: Any, play: Callable[..., float], data_file: Callable[[str], str],
                                               name: str, least: int) -> None:
    env = make("CodeProblems", data=data_file(name))
    assert sum(play(env, 0, options={"task": i}) for i in range(env.num_tasks)) >= least


@pytest.mark.parametrize("name, train, test", [("livecodebench/lcb_v5v6_public_tests.jsonl.gz", 342, 324),
                                               ("codeforces/codeforces_408.json.gz", 408, 408)])
def test_stdin_problems_load_and_wrong_programs_get_nothing(make: Any, data_file: Callable[[str], str], name: str,
                                                            train: int, test: int) -> None:
    for split, count in (("train", train), ("test", test)):
        env = make("CodeProblems", data=data_file(name), split=split)
        assert env.num_tasks == count
        for i in range(0, count, 60):
            for wrong in ("", "print('no such output')"):
                env.reset(options={"task": i})
                assert env.step(wrong)[1] == 0.0


def test_mbpp_shows_one_assert_and_judges_by_the_others(make: Any, play: Callable[..., float],
                                                        file: Callable[..., str]) -> None:
    env = make("CodeProblems", data=file(MBPP), several_turns=True)
    assert play(env, 0) == 1.0
    prompt, _ = env.reset(seed=0)
    assert MBPP["test_list"][0] in prompt
    for text in (*MBPP["test_list"][1:], *MBPP["challenge_test_list"]):
        assert text not in prompt
    said = env.step(env.call("test", program="def add(a, b):\n    return 3"))[0]
    assert said == "All 1 tests passed."
    assert env.step("def add(a, b):\n    return 3")[1] == 0.0


def test_more_tests_judge_what_the_files_tests_let_pass(make: Any, play: Callable[..., float],
                                                         file: Callable[..., str]) -> None:
    data = file(MBPP | {"test_list": [f"assert add({a}, {b}) == {a + b}" for a, b in ((1, 2), (5, 5), (-1, 4))],
                        "challenge_test_list": []})
    by_heart = "def add(a, b):\n    return {(1, 2): 3, (5, 5): 10, (-1, 4): 3}.get((a, b), 0)"
    for more, reward in ((0, 1.0), (20, 0.0)):
        env = make("CodeProblems", data=data, more_tests=more)
        assert play(env, 0) == 1.0
        env.reset(seed=0)
        assert env.step(by_heart)[1] == reward
    assert len(env.task.hidden["tests"].tests) > 5
    with pytest.raises(UserError, match="more_tests is -1: it must be 0 or above"):
        make("CodeProblems", data=data, more_tests=-1)
    with pytest.raises(UserError, match=r"more_tests is 5, and .* has problems without a solution"):
        make("CodeProblems", data=file(CODE_CONTESTS), more_tests=5)


def test_code_contests_judges_by_private_tests(make: Any, file: Callable[..., str]) -> None:
    env = make("CodeProblems", data=file(CODE_CONTESTS), several_turns=True)
    env.reset(seed=0)
    assert env.step(env.call("test", program="print(2)"))[0] == "All 1 tests passed."
    assert env.step("print(2)")[1] == 0.0
    env.reset(seed=0)
    assert env.step(ADD)[1] == 1.0


def test_the_halves_of_livecodebench_share_no_test_and_miss_none(make: Any, file: Callable[..., str]) -> None:
    data = file(livecodebench())
    halves = {}
    for split in ("train", "test", "ood"):
        env = make("CodeProblems", data=data, split=split)
        env.reset(seed=0)
        tests, visible = env.task.hidden["tests"], env.task.hidden["visible"]
        assert isinstance(tests, CodeTests)
        halves[split] = [test.stdin for test in tests.tests]
        assert [test.stdin for test in visible.tests] == [SUMS[0]["input"]]
        assert env.step(ADD)[1] == 1.0
        env.reset(seed=0)
        known = {t["input"]: t["output"] for t in SUMS if t["input"] not in halves["train"]}
        wrong = f"import sys\nprint({known!r}.get(sys.stdin.read(), '0'))"
        assert env.step(wrong)[1] == (0.0 if split == "train" else 1.0)
    assert not set(halves["train"]) & set(halves["test"])
    assert sorted(halves["train"] + halves["test"]) == sorted(test["input"] for test in SUMS)
    assert halves["test"] == halves["ood"]


def test_livecodebench_methods_take_json_arguments(make: Any, file: Callable[..., str]) -> None:
    tests = [{"input": f"[1, {n}]\n{n}", "output": f"[1, {2 * n}]", "testtype": "functional"} for n in range(4)]
    row = livecodebench(starter_code="class Solution:\n    def f(self, xs, n):", metadata='{"func_name": "f"}',
                        public_test_cases=json.dumps(tests[:1]), private_test_cases=json.dumps(tests[1:]))
    env = make("CodeProblems", data=file(row))
    env.reset(seed=0)
    assert "def f(self, xs, n)" in env.task.prompt
    assert env.step("class Solution:\n    def f(self, xs, n):\n        return [xs[0], xs[1] + n]")[1] == 1.0


def test_private_tests_are_decoded_and_never_unpickled() -> None:
    assert decoded_tests(packed(SUMS)) == SUMS
    for protocol in range(6):
        assert pickled_text(pickle.dumps("é" * 300, protocol)) == "é" * 300
    for other in (["a"], 5, print, b"a"):
        with pytest.raises(ValueError, match="must be one string"):
            pickled_text(pickle.dumps(other))
    bomb = base64.b64encode(zlib.compress(b"0" * (1 << 29), 1)).decode()
    with pytest.raises(ValueError, match="too large"):
        decoded_tests(bomb)


@pytest.mark.parametrize("row, sentence", [
    ([1, 2], "line 1 is (a )?list"),
    ({"question": "?"}, "is in no known format: set format to one of humaneval, mbpp"),
    ({"entry_point": "f", "test": "x"}, "line 1 has no field 'prompt', which the format humaneval has"),
    (livecodebench(private_test_cases="%%%"), "line 1 is not in the format livecodebench"),
    (livecodebench(private_test_cases="aGVsbG8="), "private_test_cases is not compressed with zlib"),
    ({"problem": "p", "tests": []}, "holds no problem with tests for split 'train'"),
])
def test_a_bad_file_is_refused_in_a_sentence(make: Any, file: Callable[..., str], row: Any,
                                             sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make("CodeProblems", data=file(row))


def test_an_unknown_format_and_an_absent_file_are_refused(make: Any, file: Callable[..., str]) -> None:
    with pytest.raises(UserError, match="format 'humanevil' is unknown; did you mean 'humaneval'"):
        make("CodeProblems", data=file(MBPP), format="humanevil")
    with pytest.raises(UserError, match="No such file"):
        make("CodeProblems", data="absent.jsonl")
    with pytest.raises(UserError, match="holds no rows"):
        make("CodeProblems", data=file())


def test_hidden_tests_stand_neither_in_the_prompt_nor_in_observations(make: Any, file: Callable[..., str]) -> None:
    for row in (MBPP, CODE_CONTESTS, livecodebench()):
        env = make("CodeProblems", data=file(row), split="test", several_turns=True)
        prompt, info = env.reset(seed=0)
        look = "import os; print(list(os.walk('.')), dict(os.environ), list(globals()))"
        said = prompt + str(info) + env.step(env.call("run", code=look))[0]
        said += env.step(env.call("test", program="def add(a, b):\n    raise KeyError\nraise KeyError"))[0]
        said += str(env.step("print(5)")[4]["verdict"])
        for test in env.task.hidden["tests"].tests:
            assert (getattr(test, "source", None) or test.stdin) not in said
