"""What the judge says of ordinary programs, in every home."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from turncredit.episode import Outcome, Task
from turncredit.errors import UserError
from turncredit.sandboxes.base import Limits, Result, Sandbox, SandboxError, Session
from turncredit.verifiers import judge
from turncredit.verifiers.code import (
    Asserts,
    Call,
    CodeReport,
    CodeTests,
    Equality,
    HiddenTests,
    Program,
    floats,
    judge_code,
    judge_in,
    program_of,
)
from turncredit.verifiers.code.execution import run_inside

SQUARES = [Call((n,), expected=n * n, hidden=n > 1) for n in range(5)]


def statuses(report: CodeReport) -> list[str]:
    return [case.status.name for case in report.cases]


def test_a_report_says_which_case_failed_and_how(home: str) -> None:
    program = """
import time
def f(n):
    if n == 1: return "1"
    if n == 2: raise KeyError(n)
    if n == 3: time.sleep(5)
    return n * n
"""
    report = judge_code(program, CodeTests(SQUARES, "f", test_s=0.3, fraction=True), home)
    assert statuses(report) == ["PASSED", "WRONG", "ERROR", "TIME", "PASSED"]
    assert (report.passed, report.reward) == (False, 0.4)
    assert report.message() == (
        "3 of 5 tests failed.\ntest 2: f(1): should be int, is str\nhidden test 3: it raised KeyError\n"
        "hidden test 4: it took longer than a test may")
    assert judge_code(program, CodeTests(SQUARES, "f", test_s=0.3), home).reward == 0.0


def test_a_program_that_does_not_load_is_told_once(home: str) -> None:
    report = judge_code("import math\ndef f(n):\n    return (n\n", CodeTests(SQUARES, "f"), home)
    assert statuses(report) == ["LOAD"] * 5
    assert report.message() == ("5 of 5 tests failed.\n"
                                "The program does not load: SyntaxError: '(' was never closed (line 3)")


def test_what_a_main_block_does_is_not_run_for_calls(home: str) -> None:
    program = "def f(n):\n    return n * n\nif __name__ == '__main__':\n    raise SystemExit(1)"
    assert judge_code(program, CodeTests(SQUARES, "f"), home).passed


def test_every_kind_of_value_can_be_expected(home: str) -> None:
    given: list[Any] = [
        None, True, -3, 10**50, 1.5, float("nan"), float("inf"), 2j, "é\ud800\x00", b"\x00\xff", [1, [2]], (1, (2,)),
        {"a": [1], (1, 2): {3}}, {1, "a"}, frozenset({(1,)}), range(3), bytearray(b"x"), [None] * 1000,
    ]
    tests = CodeTests([Call((value,), expected=value) for value in given], "f")
    assert judge_code("def f(x):\n    return x", tests, home).passed
    assert statuses(judge_code("def f(x):\n    return [x]", tests, home)) == ["WRONG"] * len(given)


def test_keyword_arguments_and_entry_points_that_are_expressions(home: str) -> None:
    program = ("class Solution:\n    calls = 0\n    def add(self, a, b=1):\n"
               "        self.calls += 1\n        return a - b, self.calls")
    tests = CodeTests([Call(kwargs={"a": 5, "b": 2}, expected=(3, 1)), Call((5,), expected=(4, 1))], "Solution().add")
    assert judge_code(program, tests, home).passed


def test_dataclasses_and_recursion_work_in_a_candidate(home: str) -> None:
    program = ("from dataclasses import dataclass\nimport pickle\n@dataclass\nclass P:\n    x: int\n"
               "def f(n):\n    p = pickle.loads(pickle.dumps(P(n)))\n    return p.x + (f(n - 1) if n else 0)")
    assert judge_code(program, CodeTests([Call((100,), expected=5050)], "f"), home).passed


def test_a_case_that_ends_the_process_does_not_spare_the_others(home: str) -> None:
    program = "import os\ndef f(n):\n    if n in (1, 3): os._exit(0)\n    return n * n"
    report = judge_code(program, CodeTests(SQUARES, "f", fraction=True), home)
    assert statuses(report) == ["PASSED", "SILENT", "PASSED", "SILENT", "PASSED"]


def test_all_tests_together_have_a_time_too(home: str) -> None:
    for slowly in ("end = time.process_time() + 0.25\n    while time.process_time() < end: pass", "time.sleep(1)"):
        program = f"import time\ndef f(n):\n    {slowly}\n    return n * n"
        report = judge_code(program, CodeTests(SQUARES, "f", test_s=2, total_s=0.6), home)
        assert statuses(report)[0] == "PASSED" and statuses(report)[3:] == ["TIME"] * 2
        assert "all tests" in report.message()


def test_programs_are_compared_by_their_checker(home: str) -> None:
    third = Program("3\n", "0.333333333\n", floats(), hidden=False)
    program = "print(1 / int(input()))"
    assert judge_code(program, CodeTests([third]), home).passed
    assert not judge_code(program, CodeTests([Program("3\n", "0.333333333\n")]), home).passed
    own = Program("3\n", "", lambda given, expected, actual: float(actual) * int(given) == 1)
    assert judge_code(program, CodeTests([own]), home).passed
    report = judge_code("print('a third')", CodeTests([own, third]), home)
    assert statuses(report) == ["WRONG", "WRONG"] and "a third" in report.message()


def test_programs_end_as_they_should(home: str) -> None:
    tests = [Program(f"{n}\n", "1\n") for n in range(5)]
    program = ("import time\nn = int(input())\nprint(1)\nif n == 1: 1 / 0\nif n == 2: time.sleep(9)\n"
               "if n == 3: x = bytearray(1 << 40)\nif n == 4: print('more')\n")
    report = judge_code(program, CodeTests(tests, test_s=0.5, fraction=True), home)
    assert statuses(report) == ["PASSED", "ERROR", "TIME", "MEMORY", "WRONG"] and report.reward == 0.2


STACK = """
class Stack:
    def __init__(self, items=()): self.items = list(items)
    def push(self, item): self.items.append(item)
    def pop(self): return self.items.pop()
    def copy(self): return Stack(self.items)
    def __len__(self): return len(self.items)
    def __getitem__(self, index): return self.items[index]
    def __str__(self): return f"Stack{self.items}"
    def __iter__(self): return iter(self.items)
"""
STACK_ASSERTS = """
stack = Stack()
for item in range(3):
    stack.push([item])
assert len(stack) == 3
assert stack.pop() == [2]
assert stack[0] == [0] and stack.items == [[0], [1]]
assert str(stack) == "Stack[[0], [1]]" and list(stack) == [[0], [1]]
stack.push(stack.pop()[0] + 41)
assert stack.pop() == 42
try:
    Stack().pop()
    assert False, "an empty stack"
except IndexError as error:
    assert "empty" in str(error)
"""


def test_asserts_use_objects_of_the_candidates_classes_from_afar(home: str) -> None:
    tests = CodeTests([Asserts(STACK_ASSERTS, hidden=False)])
    assert judge_code(STACK, tests, home).passed
    for old, new in (("items.pop()", "items.pop(0)"), ("len(self.items)", "7"), ("[index]", "[-1]"),
                     ("self.items.append(item)", "pass"), ('f"Stack{self.items}"', '"Stack"')):
        assert old in STACK and not judge_code(STACK.replace(old, new), tests, home).passed, new


REMOTE = {
    "helpers and random data": """
import random
def wanted(xs): return sorted(set(xs))
def check(candidate):
    for size in range(40):
        xs = [random.randint(0, 9) for _ in range(size)]
        assert candidate(xs) == wanted(xs), "message " + str(candidate(xs))
""",
    "values that decide what comes next": """
def check(candidate):
    total = 0
    for n in range(12):
        first = candidate([n, n])
        if len(first) == 1:
            second = candidate(first + [99])
            total += sum(second)
            assert second == [n, 99]
    assert total == 1254
""",
    "a state handed on": """
def check(candidate):
    state = [3, 3, 1]
    for n in range(30):
        state = candidate(state + [n])
    assert state == sorted({3, 1, *range(30)})
""",
    "a wrapped candidate": """
def as_given(f):
    return lambda *args: f(list(args))
def check(candidate):
    assert candidate(3, 1, 3) == [1, 3]
check(as_given(f))
""",
    "a helper that asserts": """
def agree(out, exp, atol):
    exact = out == exp
    if not exact and atol:
        assert abs(out - exp) < atol
    else:
        assert exact
def check(candidate):
    inputs = [[[3, 1]], [[2, 2]], [[]]]
    results = [[1, 3], [2], []]
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        agree(candidate(*inp), exp, 0)
""",
}


@pytest.mark.parametrize("name", REMOTE)
def test_asserts_of_other_shapes_are_judged_too(home: str, name: str) -> None:
    tests = CodeTests([Asserts(REMOTE[name])], "f")
    assert judge_code("def f(xs):\n    return sorted(set(xs))", tests, home).passed
    assert not judge_code("def f(xs):\n    return sorted(xs)", tests, home).passed
    assert not judge_code("def f(xs):\n    return tuple(sorted(set(xs)))", tests, home).passed


@pytest.mark.parametrize("source", [
    "assert f(2) == 25", "assert 25 == f(2)", "assert f(2) == 25 and True", "assert not f(2) != 25",
    "def g():\n    return 25\nassert f(2) == g()", "def g():\n    return 25\nassert g() == f(2)",
    "def check(candidate):\n    x = candidate(2)\n    assert x == 25",
    "def check(c):\n    y = [25][0]\n    assert c(2) == y",
])
def test_a_float_does_not_stand_for_an_int_on_either_side(home: str, source: str) -> None:
    tests = CodeTests([Asserts(source)], "f")
    assert judge_code("def f(n):\n    return 25", tests, home).passed
    assert not judge_code("def f(n):\n    return 25.0", tests, home).passed
    floats_wanted = CodeTests([Asserts(source.replace("25", "25.0"))], "f")
    assert judge_code("def f(n):\n    return 25", floats_wanted, home).passed


def test_a_candidates_draws_are_the_same_each_time(home: str) -> None:
    program = "import random\ndef f(n):\n    return random.random()"
    source = "values = {f(n) for n in range(5)}\nif len(values) == 5:\n    assert f(sorted(values)[0]) not in values"
    assert judge_code(program, CodeTests([Asserts(source)], "f"), home).passed


def test_asserts_that_walk_a_set_in_any_order_are_judged(home: str) -> None:
    shuffled = "import os\nwords = sorted(map(str, range(20)), key=lambda word: os.urandom(4))\n"
    tests = CodeTests([Asserts(shuffled + "for word in words:\n    assert f(word) == int(word)")], "f")
    assert judge_code("def f(word):\n    return int(word)", tests, home).passed
    assert judge_code("def f(word):\n    return int(word) + 1", tests, home).passed is False
    report = judge_code("def f(word):\n    return int(word) // (word != '7')", tests, home)
    assert statuses(report).count("ERROR") == 1 and statuses(report).count("PASSED") == 19
    never = "import os\nassert len(f(os.urandom(4).hex())) == 8"
    report = judge_code("def f(word):\n    return word", CodeTests([Asserts(never)], "f"), home)
    assert report.passed is None and "each time" in report.reason


def test_options_of_equality_hold_in_asserts_of_every_shape(home: str) -> None:
    for source in ("assert f(2) == [1, 2]", "def g(x):\n    return x\nassert g(f(2)) == [1, 2]"):
        program = "def f(n):\n    return (1, 2)"
        assert not judge_code(program, CodeTests([Asserts(source)], "f"), home).passed
        loose = CodeTests([Asserts(source)], "f", equality=Equality(tuple_for_list=True))
        assert judge_code(program, loose, home).passed


@pytest.mark.parametrize(("source", "word"), [
    ("assert f(1 ==", "never closed"), ("import nothing_like_it as n\nassert f(1) == n.x", "nothing_like_it"),
    ("while True:\n    x = 1\nassert f(1) == x", "do not end"), ("def g(x):\n    pass\ng(f)", "no assert"),
    ("assert f(lambda x: x) == 1", "an argument"), ("assert other(f(1))", "other"),
])
def test_tests_that_cannot_run_are_unknown_and_no_zero(home: str, source: str, word: str,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turncredit.verifiers.code.remote._PASS_S", 1.0)
    report = judge_code("def f(n):\n    return n", CodeTests([Asserts(source)], "f"), home)
    assert report.passed is None and report.reward is None and word in report.reason
    assert report.message() == "The tests could not be run."


def test_many_threads_judge_at_once(home: str) -> None:
    def one(n: int) -> list[bool]:
        tests = CodeTests([Call((k,), expected=k * n) for k in range(5)], "f")
        return [bool(judge_code(f"def f(k):\n    return k * {m}", tests, home).passed) for m in (n, n + 1)]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(one, range(1, 25))) == [[True, False]] * 24


def test_a_coroutine_is_told_to_await_the_judge(home: str) -> None:
    async def ask() -> None:
        judge_code("", CodeTests(SQUARES, "f"), home)

    with pytest.raises(RuntimeError, match="await judge_in"):
        asyncio.run(ask())


def test_a_forked_process_has_a_sandbox_of_its_own(home: str) -> None:
    tests = CodeTests(SQUARES, "f")
    assert judge_code("def f(n):\n    return n * n", tests, home).passed
    script = f"""
import os
from turncredit.verifiers.code import Call, CodeTests, judge_code
tests = CodeTests([Call((2,), expected=4)], "f")
assert judge_code("def f(n): return n * n", tests, {home!r}).passed
child = os.fork()
report = judge_code("def f(n): return n * n", tests, {home!r})
assert report.passed, report
if child:
    assert os.waitpid(child, 0)[1] == 0
    print("both judged")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "both judged\n")


def test_nothing_is_left_when_the_process_ends(home: str) -> None:
    script = f"""
from turncredit.verifiers.code import Call, CodeTests, judge_code
print(judge_code("def f(n): return n * n", CodeTests([Call((2,), expected=4)], "f"), {home!r}).passed)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:
        out, errors = process.communicate(timeout=60)
    assert (out, errors, process.returncode) == ("True\n", "", 0)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


class Broken(Sandbox):
    """A sandbox whose machine is gone."""

    async def run(self, code: str | None = None, **given: Any) -> Result:
        raise SandboxError("the engine is gone")

    async def session(self, *, limits: Limits | None = None) -> Session:
        raise SandboxError("the engine is gone")

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("tests", [
    SQUARES, [Asserts("def g(x):\n    return x\nassert g(f(1)) == 1")], [Program("1", "1")],
])
def test_a_broken_sandbox_is_unknown_and_no_zero(tests: Any) -> None:
    report = asyncio.run(judge_in(Broken(), "def f(n):\n    return n", CodeTests(tests, "f")))
    assert (report.passed, report.reward) == (None, None) and "engine is gone" in report.reason


def test_the_judges_part_runs_under_another_python_too(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code of another version must not be loaded: then the text is compiled inside."""
    async def ask() -> Result:
        sandbox = await Sandbox.open(home)
        async with sandbox:
            job = {"prelude": "", "program": "x = 1", "steps": [{"on": "x", "do": "value"}], "shared": [],
                   "step_s": 1, "load_s": 1, "wall_share": 0.5}
            return await run_inside(sandbox, ("wire.py", "inside.py"), job, "records", Limits())

    monkeypatch.setattr(sys, "hexversion", 0x030A00F0)
    from turncredit.verifiers.code import execution

    execution._judges_part.cache_clear()
    monkeypatch.setattr(execution, "marshal", SimpleNamespace(dumps=lambda code: b"not for this Python"))
    result = asyncio.run(ask())
    execution._judges_part.cache_clear()
    assert b'"value": [1]' in result.files["records"]


@pytest.mark.parametrize(("settings", "words"), [
    ({"tests": []}, "tests is empty"), ({"tests": SQUARES}, r"tests\[0\] names no entry_point"),
    ({"tests": SQUARES, "entry_point": "f", "test_s": 0}, "test_s is 0"),
    ({"tests": SQUARES, "entry_point": "f", "total_s": -1}, "total_s is -1"),
    ({"tests": SQUARES, "entry_point": "f", "memory_bytes": 2e8}, "it must be a whole number above 0"),
])
def test_impossible_tests_are_refused_at_the_start(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        CodeTests(**settings)


def test_an_unknown_home_is_one_sentence() -> None:
    with pytest.raises(UserError, match="sandbox 'locl' is unknown; did you mean 'local'"):
        judge_code("", CodeTests(SQUARES, "f"), "locl")


def test_the_verifier_judges_the_last_block_of_an_answer(home: str) -> None:
    task = Task("Square it.", {"tests": CodeTests(SQUARES, "f")})
    answer = ("First I thought\n```python\ndef f(n):\n    return n\n```\nbut no:\n"
              "```python\ndef f(n):\n    return n * n\n```\nDone.")
    assert judge(HiddenTests(home), task, Outcome(answer)).reward == 1.0
    wrong = judge(HiddenTests(home), task, Outcome("```\ndef f(n):\n    return n + 0\n```"))
    assert wrong.reward == 0.0 and wrong.details["cases"] == ["passed", "passed"] + ["wrong value"] * 3
    assert "hidden test 3: wrong value" in wrong.details["message"]
    for nothing in (None, "", "   "):
        assert judge(HiddenTests(home), task, Outcome(nothing)).reward == 0.0


def test_the_verifier_knows_no_reward_where_the_tests_are_broken(home: str) -> None:
    task = Task("Square it.", {"tests": CodeTests([Asserts("assert g(f(1)) == 1")], "f")})
    assert judge(HiddenTests(home), task, Outcome("def f(n): return n")).reward is None
    assert judge(HiddenTests(home), Task("", {"tests": [1]}), Outcome("x")).reward is None


@pytest.mark.parametrize(("answer", "program"), [
    ("def f(): pass", "def f(): pass"), ("a\n```py\nx = 1\n```", "x = 1\n"), ("", ""),
    ("```\nx\n```\n```Python\ny\n```\nz", "y\n"), ("  ```python\n  x\n  ```", "  x\n"),
    ("```python\ncut off", "cut off"), ("`x` is\nnot fenced", "`x` is\nnot fenced"),
    ("```json\n{}\n```\n```python\nx\n```", "x\n"),
])
def test_the_program_of_an_answer(answer: str, program: str) -> None:
    assert program_of(answer) == program
