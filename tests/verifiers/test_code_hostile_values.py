"""Values, errors and delays made to deceive, to tell hidden inputs, or to hurt the judge; honest twins pass."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from turncredit.sandboxes.base import Result, Sandbox
from turncredit.verifiers.code import Asserts, Call, CodeReport, CodeTests, Program, Status, judge_code, judge_in


def judged(program: str, source: str, home: str, setup: str = "", **settings: float) -> CodeReport:
    return judge_code(program, CodeTests([Asserts(source, setup)], "f", **settings), home)


CLOSE = ["assert abs(f(2) - 0.5) < 1e-6", "def near(a, b):\n    return abs(a - b) < 1e-6\nassert near(f(2), 0.5)"]


@pytest.mark.parametrize("source", CLOSE, ids=["call", "remote"])
@pytest.mark.parametrize("value", [
    "float('nan')", "type('N', (float,), {'__sub__': lambda s, o: 0.0, '__rsub__': lambda s, o: 0.0})(9)",
    "type('N', (), {'__sub__': lambda s, o: s, '__abs__': lambda s: s, '__lt__': lambda s, o: True})()",
    "type('N', (int,), {'__abs__': lambda s: 0, '__sub__': lambda s, o: 0})(9)", "float('inf')", "'0.5'", "None",
])
def test_arithmetic_of_its_own_does_not_bring_a_value_near(home: str, value: str, source: str) -> None:
    assert judged("def f(n):\n    return 1 / n", source, home).passed
    assert judged(f"def f(n):\n    return {value}", source, home).passed is False


@pytest.mark.parametrize("value", ["1", "type('B', (), {'__bool__': lambda s: True})()", "'True'", "[True]"])
def test_only_true_is_true(home: str, value: str) -> None:
    for source in ("assert f(2) is True", "assert f(2) == True", "def g(x):\n    return x\nassert g(f(2)) == True"):
        assert judged("def f(n):\n    return n == 2", source, home).passed
        assert judged(f"def f(n):\n    return {value}", source, home).passed is False


@pytest.mark.parametrize("claim", ["f(2)", "g(f(2))", "g(f(2)) != 3", "g(f(2)) >= 1", "1 in g(f(2))",
                                   "[*g(f(2))] == []", "str(g(f(2))) == 'True'", "bool(g(f(2)))"])
def test_an_object_without_a_plain_value_is_not_truth(home: str, claim: str) -> None:
    yes = "lambda self, *other: True"
    names = ["eq", "ne", "lt", "le", "gt", "ge", "bool", "contains"]
    methods = ", ".join([f"'__{name}__': {yes}" for name in names] + ["'__str__': lambda self: 'True'"])
    source = f"def g(x):\n    return x\nassert {claim}"
    fake = f"B = type('B', (), {{{methods}, '__iter__': lambda self: iter([])}})\ndef f(n):\n    return B()"
    assert judged(fake, source, home).passed is False
    honest = {"1 in g(f(2))": "[1]", "[*g(f(2))] == []": "[]"}.get(claim, "True")
    assert judged(f"def f(n):\n    return {honest}", source, home).passed


def test_a_method_of_what_it_returned_is_not_the_candidates(home: str) -> None:
    fake = "class Text:\n    def startswith(self, start): return True\ndef f(n):\n    return Text()"
    source = "assert f(2).startswith('ab')"
    assert judged("def f(n):\n    return 'abc'", source, home).passed
    assert judged(fake, source, home).passed is False


def test_a_function_of_the_setup_cannot_be_redefined(home: str) -> None:
    setup = "def encode(text):\n    return text[1:] + text[:1]\ndef f(text):\n    'Invert encode.'\n"
    source = "for text in ('abc', 'hello'):\n    assert f(encode(text)) == text"
    assert judged("def f(text):\n    return text[-1:] + text[:-1]", source, home, setup).passed
    redefined = "def encode(text):\n    return text\ndef f(text):\n    return text"
    assert judged(redefined, source, home, setup).passed is False
    without_entry_point = CodeTests([Asserts(source, setup.partition("def f")[0])])
    assert judge_code(redefined, without_entry_point, home).passed is False
    assert judge_code("def f(text):\n    return text[-1:] + text[:-1]", without_entry_point, home).passed


def test_a_function_that_the_setup_forgot_is_not_looked_for_in_the_candidate(home: str) -> None:
    report = judged("def is_same(a, b):\n    return True\ndef f(n):\n    return 0", "assert is_same(f(2), 4)", home)
    assert report.passed is None and "is_same" in report.reason
    given = "def is_same(a, b):\n    return a == b"
    own = "def is_same(a, b):\n    return True\ndef f(n):\n    return {}"  # of the same name, and no attack
    assert judged(own.format("n + n"), "assert is_same(f(2), 4)", home, given).passed
    assert judged(own.format("0"), "assert is_same(f(2), 4)", home, given).passed is False


@pytest.mark.parametrize("remote", [False, True])
def test_changed_arguments_change_no_expected_value_and_no_later_case(home: str, remote: bool) -> None:
    helper = "def same(a, b):\n    return a == b\n" if remote else ""
    compare = "same(f(data), sorted(data))" if remote else "f(data) == sorted(data)"
    source = f"{helper}data = [3, 1, 2]\nassert {compare}\nassert {compare}\nassert f(data) == [1, 2, 3]"
    assert judged("def f(xs):\n    xs.sort()\n    return xs", source, home).passed
    assert judged("def f(xs):\n    xs.clear()\n    return xs", source, home).passed is False


def test_known_answers_to_visible_tests_do_not_pass_hidden_ones(home: str) -> None:
    tests = CodeTests([Call((n,), expected=n * n, hidden=n > 2) for n in range(1, 6)], "f")
    assert judge_code("def f(n):\n    return n * n", tests, home).passed
    report = judge_code("def f(n):\n    return {1: 1, 2: 4}.get(n, 0)", tests, home)
    assert [case.passed for case in report.cases] == [True, True, False, False, False]


LEAKS = {
    "in a message": "raise ValueError(repr(n))",
    "in a type's name": "raise type(repr(n), (Exception,), {})",
    "in a type's name that looks built in": "raise type(repr(n), (ValueError,), {'__module__': 'builtins'})",
    "in a note": "error = ValueError(); error.add_note(repr(n)); raise error",
    "in a value": "return repr(n)",
    "in an object": "return type(repr(n), (), {})()",
    "on standard error": "import sys; print(n, file=sys.stderr); sys.exit(repr(n))",
}


@pytest.mark.parametrize("leak", LEAKS)
def test_hidden_inputs_stay_out_of_what_the_agent_sees(home: str, leak: str) -> None:
    hidden = "input-that-is-hidden"
    tests = CodeTests([Call(("visible",), expected=1, hidden=False), Call((hidden,), expected=1),
                       Asserts(f"def g(x):\n    return x\nassert f({hidden!r}) == g(1)")], "f")
    report = judge_code(f"def f(n):\n    {LEAKS[leak]}", tests, home)
    assert report.passed is False
    assert hidden not in report.message(9) + report.reason + repr(report.cases) and "visible" in report.message(9)
    assert hidden in repr([case.private for case in report.cases])
    assert judge_code("import sys\ndef f(n):\n    print(n, file=sys.stderr)\n    return 1", tests, home).passed


def test_a_program_that_reads_the_job_cannot_tell_it_by_failing_to_load(home: str) -> None:
    spy = ("import gc\nraise ValueError([x for x in gc.get_objects() if type(x) in (list, dict)"
           " and 'hidden' + '-input' in repr(x)][:1])")
    report = judge_code(spy, CodeTests([Call(("hidden-input",), expected=1)], "f"), home)
    assert report.passed is False and "ValueError" in report.message()
    assert "hidden-input" not in report.message() and "hidden-input" in repr(report.cases[0].private)
    twin = "try:\n    raise ValueError\nexcept ValueError:\n    pass\ndef f(n):\n    return len(n)"
    assert judge_code(twin, CodeTests([Call(("hidden-input",), expected=12)], "f"), home).passed


def test_a_visible_test_does_not_run_beside_hidden_inputs(home: str) -> None:
    spy = ("import gc\ndef f(n):\n    raise ValueError([x for x in gc.get_objects() if type(x) is list and "
           "'HID' + 'DEN' in x])")
    tests = CodeTests([Call(("visible",), expected=1, hidden=False), Call(("HIDDEN",), expected=1)], "f")
    assert "HIDDEN" not in judge_code(spy, tests, home).message(9)
    assert judge_code("import gc\ndef f(n):\n    return 1 if gc.get_objects() else 0", tests, home).passed


TIME_WASTERS = {
    "a loop": "while True: pass",
    "a loop that swallows everything":
        "while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "a sleep": "import time; time.sleep(60)",
    "ignored signals": "import signal\n    for s in range(1, 65):\n        try: signal.signal(s, signal.SIG_IGN)\n"
                       "        except (OSError, ValueError): pass\n    while True: pass",
}


@pytest.mark.parametrize("waster", TIME_WASTERS)
def test_time_outs_cannot_be_swallowed_and_do_not_spare_the_other_cases(home: str, waster: str) -> None:
    program = f"def f(n):\n    if n != 2: return n\n    {TIME_WASTERS[waster]}"
    tests = CodeTests([Call((n,), expected=n) for n in (1, 2, 3)], "f", test_s=0.3, total_s=2, fraction=True)
    started = time.monotonic()
    report = judge_code(program, tests, home)
    assert time.monotonic() - started < 10
    assert report.passed is False and report.cases[0].passed and report.cases[1].status is Status.TIME
    assert judge_code("def f(n):\n    return n", tests, home).passed


def test_a_program_that_never_loads_is_not_loaded_for_every_test(home: str) -> None:
    tests = CodeTests([Call((n,), expected=n) for n in range(20)], "f", load_s=0.3)
    started = time.monotonic()
    report = judge_code("while True: pass", tests, home)
    assert {case.status for case in report.cases} == {Status.LOAD} and time.monotonic() - started < 3
    slow = "import time\ntime.sleep(0.2)\ndef f(n):\n    return n"
    assert judge_code(slow, CodeTests([Call((n,), expected=n) for n in range(20)], "f"), home).passed


def test_a_stopped_timekeeper_does_not_stop_the_judge(home: str) -> None:
    tests = CodeTests([Call((n,), expected=n) for n in (1, 2, 3)], "f", test_s=0.3, total_s=1)
    program = "import os, signal\ndef f(n):\n    os.kill(os.getppid(), signal.SIGSTOP)\n    while True: pass"
    started = time.monotonic()
    assert judge_code(program, tests, home).passed is False and time.monotonic() - started < 10
    assert judge_code("import os, signal\ndef f(n):\n    return n", tests, home).passed


def test_memory_of_one_case_is_told_and_does_not_spare_the_others(home: str) -> None:
    tests = CodeTests([Call((n,), expected=n) for n in (1, 2, 3)], "f", fraction=True, memory_bytes=200 << 20)
    greedy = "def f(n):\n    if n != 2: return n\n    held = []\n    while True: held.append(bytearray(10 << 20))"
    report = judge_code(greedy, tests, home)
    assert [case.status for case in report.cases] == [Status.PASSED, Status.MEMORY, Status.PASSED]
    assert judge_code("def f(n):\n    return len(bytearray(n << 20)) >> 20", tests, home).passed


FLOOD = """import os
    for fd in range(3, 20):
        try:
            while True: os.write(fd, RECORD + b'\\n')
        except OSError:
            pass
    os._exit(0)"""
BOMBS = {
    "an endless integer": "return 1 << 50_000_000",
    "a huge str": "return 'x' * 50_000_000",
    "a list of lists of lists": "x = []\n    for _ in range(100_000): x = [x]\n    return x",
    "a list that unfolds": "x = [0]\n    for _ in range(50): x = [x, x]\n    return x",
    "a list that holds itself": "x = []\n    x.append(x)\n    return x",
    "a range": "return range(10 ** 12)",
    "colliding integers": "return {k * (2 ** 61 - 1) for k in range(5_000)}",
    "JSON without an end": FLOOD.replace("RECORD", "b'[' * 3_000_000"),
    "a flood of records": FLOOD.replace("RECORD", "b'{\"i\":0}\\n' * 9999"),
    "a flood of small values": FLOOD.replace("RECORD", "b'{\"i\":0,\"value\":[' + b'[],' * 999_999 + b'1]}'"),
    "surrogates and control characters": "return '\\ud800\\x00\\x1b[2J\\r\\n'",
    "broken bytes on every stream":
        "import os\n    for fd in (1, 2): os.write(fd, bytes(range(256)) * 999)\n    return 0",
    "a message that never ends":
        "class E(Exception):\n        def __str__(self):\n            while True: pass\n    raise E",
}


@pytest.mark.parametrize("source", ["assert f(1) == 'key'", "def key():\n    return 'key'\nassert f(1) == key()"],
                         ids=["call", "remote"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_values_made_to_hurt_the_judge_fail_the_candidate_alone(home: str, bomb: str, source: str) -> None:
    started = time.monotonic()
    report = judged(f"def f(n):\n    {BOMBS[bomb]}", source, home, test_s=0.7)
    assert (report.passed, report.reward) == (False, 0.0), report.reason
    report.message()
    assert time.monotonic() - started < 10
    assert judged("def f(n):\n    return 'key'", source, home).passed


def test_other_answers_from_pass_to_pass_are_the_candidates_failure(home: str) -> None:
    source = "for n in range(40):\n    x = f(n)\n    if x > 0.5:\n        assert f(x) == 1\n    assert x < 9"
    fickle = "import os\ndef f(n):\n    return int.from_bytes(os.urandom(4), 'big') / 2 ** 32"
    runs = 0

    async def judge_counting_runs() -> CodeReport:
        async with await Sandbox.open(home) as sandbox:
            run = sandbox.run

            async def counted(*args: Any, **given: Any) -> Result:
                nonlocal runs
                runs += 1
                return await run(*args, **given)

            sandbox.run = counted  # type: ignore[method-assign]  # the real sandbox, counted
            return await judge_in(sandbox, fickle, CodeTests([Asserts(source)], "f"))

    assert asyncio.run(judge_counting_runs()).passed is False
    assert runs <= 12, "it must not try answers until some hold"
    assert judged("def f(n):\n    return 1.0 if n else 0.0", source.replace("== 1", "== 1.0"), home).passed


def test_no_assert_reached_is_a_failure(home: str) -> None:
    source = "for item in f(3):\n    assert item > 0"
    assert judged("def f(n):\n    return list(range(1, n))", source, home).passed
    assert judged("def f(n):\n    return []", source, home).passed is False


def test_exceptions_that_asserts_expect_must_be_the_right_ones(home: str) -> None:
    source = "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass\nassert f(1) == 1"
    assert judged("def f(n):\n    if n < 0: raise ValueError\n    return n", source, home).passed
    for wrong in ("return 1", "raise KeyError", "import os; os._exit(0)", "import sys; sys.exit(0)",
                  "raise type('ValueError', (Exception,), {})"):
        program = f"def f(n):\n    if n > 0: return n\n    {wrong}"
        assert judged(program, source, home).passed is False, wrong


PROGRAMS = CodeTests([Program("2 3\n", "5\n"), Program("10 -4\n", "6\n")], test_s=2)
SUM = "a, b = map(int, input().split())\nprint(a + b)\n"
FALSE_PROGRAMS = {
    "prints a verdict": "print('Accepted\\nOK\\nPASSED')",
    "prints every number": "print('\\n'.join(map(str, range(100))))",
    "prints nothing and exits with 0": "import sys; sys.exit(0)",
    "prints the answer of one test": "print(5)",
    "prints the answer and crashes": SUM + "raise ValueError",
    "prints the answer and exits with 3": SUM + "import sys; sys.exit(3)",
    "prints the answer and more": SUM + "print('x')",
    "reads the tests from disk": "import os\nprint(open(os.listdir('.')[0]).read() if os.listdir('.') else '')",
    "floods": "while True: print('5\\n6' * 9999)",
}


@pytest.mark.parametrize("name", FALSE_PROGRAMS)
def test_a_program_is_judged_by_its_output_on_each_input(home: str, name: str) -> None:
    assert judge_code(SUM, PROGRAMS, home).passed
    assert judge_code(FALSE_PROGRAMS[name], PROGRAMS, home).passed is False
