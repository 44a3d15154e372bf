"""Answers by value: one value, right within its tolerance."""

from __future__ import annotations

from typing import Any

import pytest

from turncredit.episode import Outcome, Task
from turncredit.verifiers import ValueAnswer, judge


@pytest.mark.parametrize("expected, answer, passed", [
    (42, "42", True), (42, "42.0", True), (1000, "1,000", True), (42, "The answer is 42.", True), (-3, "-3", True),
    (42, "I added them up.\nAnswer: **42**", True), (42, r"so \boxed{42}", True), (42, "4.2e1", True),
    (42, "43", False), (42, "42.4", False), (42, "42 43", False), (42, "41, 42", False), (42, "", False),
    (42, "42\nOr not.", False), (42, "forty-two", False), (42, "nan", False), (42, "٤٢", False), (42, "4_2", False),
    (2.3456, "2.35", True), (2.3456, "2.3456", True), (2.3456, "2.36", False), (2.3456, "2.3", False),
    (1e9, "1000000100", True), (1e9, "1000002000", False), (2.0, "inf", False), (2.0, "1e999", False),
    ("Oslo", "oslo", True), ("Oslo", "'Oslo'.", True), ("Oslo", "Answer: Oslo", True), ("New York", "new  york", True),
    ("Oslo", "Oslo or Lima", False), ("Oslo", "Lima", False), ("Oslo", "Oslo Lima Cairo", False),
])
def test_an_answer_is_one_value(expected: Any, answer: str, passed: bool) -> None:
    verdict = judge(ValueAnswer(), Task("?", {"answer": expected}), Outcome(answer))
    assert (verdict.passed, verdict.reward) == (passed, float(passed)), verdict


def test_no_answer_is_no_value() -> None:
    assert judge(ValueAnswer(), Task("?", {"answer": 1}), Outcome(None)).reason == "no answer was given"


def test_an_expected_answer_of_another_type_is_unknown_and_not_zero() -> None:
    verdict = judge(ValueAnswer(), Task("?", {"answer": True}), Outcome("1"))
    assert verdict.reward is None
    assert "must be an int, float or str" in verdict.reason
