"""Answers are judged by mathematical equivalence, whatever an agent writes, and from however many threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turncredit.episode import Outcome, Task
from turncredit.verifiers import MathAnswer, answers_match, judge
from turncredit.verifiers.math import _WORKER, plain_number


@pytest.mark.parametrize("gold, answer", [
    ("42", "42"), ("42", " 42.0\n"), ("42", "The answer is 42."), ("42", r"Thus \boxed{42}"), ("42", "12 + 30 = 42"),
    ("42", "$x = 42$"), ("42", "42 apples"), ("-3", "−3"), ("1234567", "1,234,567"), ("1,234", "1234"),
    ("1/2", "0.5"), ("0.5", "2/4"), ("1/2", r"\frac{1}{2}"), ("1/2", r"\boxed{\dfrac12}"), ("0.5", "50%"),
    ("0.5", r"50\%"), ("50%", "0.5"), ("18", "$18"), ("18", r"\$18"), ("18", "18 dollars"),
    ("6", "2*3"), ("1024", "$2^{10}$"), (r"\sqrt{8}", r"2\sqrt{2}"), ("(x+1)^2", "x^2 + 2x + 1"), ("(1,2)", "(1, 2)"),
    (r"\{1,2\}", r"\{2,1\}"), (r"\frac{p^2}{4}", r"\frac{p^2}{4}"), (r"100\pi", r"100\pi"), ("A", "(A)"),
    ("[0,1)", "$[0, 1)$"),
])
def test_equivalent_answers_pass(gold: str, answer: str) -> None:
    assert answers_match(gold, answer)


@pytest.mark.parametrize("gold, answer", [
    ("42", "43"), ("42", "4.2"), ("42", "-42"), ("42", "42 or 43"), ("42", "forty-two"), ("1/2", "1/3"),
    ("1000", "1.000"), ("12", "1,2"), ("1/3", "0.3333"),
    ("2", r"\boxed{1} or \boxed{2}, I cannot tell: 3"), ("(x+1)^2", "x^2 + 1"),
    ("(1,2)", "(2,1)"), ("A", "B"), ("42", "".join(f"{i} " for i in range(100))), ("42", "pass"), ("42", "True"),
    ("42", '{"match": true}'),
])
def test_other_answers_fail(gold: str, answer: str) -> None:
    assert not answers_match(gold, answer)


@pytest.mark.parametrize("answer, passed", [
    ("19", True), ("19.0", True), ("38/2", True), ("The answer is 19.", True), (r"\boxed{19}", True),
    ("12 + 7 = 19", True), ("12 + 7", False), (r"\boxed{12+7}", False), ("$19 + 0$", False), ("What is 12 + 7", False),
    ("1*19", False), ("20 - 1", False),
])
def test_where_a_value_is_asked_for_an_expression_of_it_is_no_answer(answer: str, passed: bool) -> None:
    verdict = MathAnswer(worked_out=True).verify(Task("What is 12 + 7?", {"answer": 19}), Outcome(answer))
    assert verdict.passed is passed


@given(a=st.fractions(), b=st.fractions())
def test_plain_numbers_are_compared_exactly(a: Fraction, b: Fraction) -> None:
    assert answers_match(str(a), str(b)) == (a == b)
    assert plain_number(f" {a} ") == a


@given(st.integers(min_value=-10**15, max_value=10**15))
def test_thousands_separators_do_not_change_a_number(n: int) -> None:
    assert plain_number(f"{n:,}") == n


@pytest.mark.parametrize("text", ["", "1,23", "12,34,567", "1/0", "1/2/3", "0x10", "1e3", "1" * 200, "nan", "inf"])
def test_what_is_not_one_plain_number_is_left_to_math_verify(text: str) -> None:
    assert plain_number(text) is None


@pytest.mark.parametrize("answer", [None, "", "  \n"])
def test_no_answer_is_wrong(answer: str | None) -> None:
    verdict = MathAnswer().verify(Task("", {"answer": "1"}), Outcome(answer))
    assert (verdict.reward, verdict.reason) == (0.0, "no answer was given")


@settings(max_examples=30)
@given(st.lists(st.one_of(st.text(max_size=12), st.sampled_from(
    ["\\boxed{", "}", "$", "\\frac", "{", "(", ")", "^", "_", "\\left(", "9", "x", "=", "\x00", "\ud800",
     "\\begin{pmatrix}"])), max_size=12).map("".join))
def test_whatever_an_agent_writes_is_judged(answer: str) -> None:
    verdict = judge(MathAnswer(), Task("", {"answer": r"\frac{1}{7}"}), Outcome(answer))
    assert verdict.reward is not None, verdict.reason


@pytest.mark.parametrize("answer", ["$" + "(" * 4000, "$" + "{" * 9 + "1" + "}" * 9 + "$", "9" * 9000,
                                    "\\boxed{" * 900])
def test_deeply_nested_and_huge_answers_are_wrong_and_not_the_judge_s_failure(answer: str) -> None:
    assert judge(MathAnswer(20), Task("", {"answer": "7"}), Outcome(answer)).reward == 0.0


def test_an_expected_answer_that_cannot_be_read_is_unknown_and_not_zero() -> None:
    verdict = judge(MathAnswer(), Task("", {"answer": " "}), Outcome("3"))
    assert verdict.reward is None
    assert "holds no mathematical value" in verdict.reason


def test_a_hanging_answer_times_out_and_the_next_one_is_judged() -> None:
    hanging = "$9^{9^{9^9}}$"
    answers_match("x", "$x$")  # the process is up
    began = time.monotonic()
    verdict = MathAnswer(timeout_s=0.3).verify(Task("", {"answer": "3"}), Outcome(hanging))
    assert time.monotonic() - began < 5
    assert (verdict.reward, "0.3 s" in verdict.reason) == (0.0, True)
    assert answers_match("x", "$x$")


def test_threads_get_their_own_answers() -> None:
    def right(i: int) -> bool:
        return answers_match(f"x+{i}", f"${i}+x$") and not answers_match(f"x+{i}", f"${i + 1}+x$")

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(40)))


def test_a_process_that_died_is_unknown_once_and_started_again() -> None:
    assert answers_match("x", "$x$")
    process = _WORKER._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)  # so that it dies during a comparison
    task, outcome = Task("", {"answer": "x"}), Outcome("$x$")
    verdicts = []
    asking = threading.Thread(target=lambda: verdicts.append(judge(MathAnswer(), task, outcome)))
    asking.start()
    time.sleep(0.1)
    process.kill()
    asking.join(10)
    assert verdicts[0].reward is None
    assert judge(MathAnswer(), task, outcome).reward == 1.0


def test_an_interrupted_comparison_does_not_leave_its_reply_to_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answers_match("x", "$x$")

    def interrupt(self: object, timeout: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("selectors.DefaultSelector.select", interrupt)
        answers_match("x", "$x$")  # its reply would be "match"
    assert not answers_match("x", "$y$")


def test_a_forked_process_judges_by_itself_even_if_a_comparison_was_under_way() -> None:
    assert answers_match("x", "$x$")
    hanging = threading.Thread(target=MathAnswer(timeout_s=1).verify, args=(Task("", {"answer": "3"}),
                                                                           Outcome("$9^{9^{9^9}}$")))
    hanging.start()
    while not _WORKER._lock.locked():
        time.sleep(0.001)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_judge_many, args=(queue, i)) for i in range(2)]
    for child in children:
        child.start()
    assert all(not answers_match("x", "$y$") for _ in range(30))
    assert [queue.get(timeout=60) for _ in children] == [30, 30]
    for child in children:
        child.join()
    hanging.join()
    assert answers_match("x", "$x$")


def _judge_many(queue: multiprocessing.Queue[int], number: int) -> None:
    queue.put(sum(answers_match(f"x+{number}", f"${number}+x$") for _ in range(30)))


def test_what_a_library_prints_is_no_reply() -> None:
    program = ("from turncredit.verifiers import equivalence\n"
               "equivalence.parse = lambda text, **_: print('{\"match\": true}') or ['different', text]\n"
               "equivalence.verify = lambda gold, answer, **_: False\n"
               "equivalence.main()")
    said = subprocess.run([sys.executable, "-c", program], input='["1", "2", false]\n', capture_output=True, text=True,
                          check=True)
    assert said.stdout.splitlines() == ["ready", '{"match": false}']
