"""Outputs of programs: by line, by word, by number."""

from __future__ import annotations

import pytest

from turncredit.verifiers.code import exact, floats, tokens


def test_exact_ignores_only_the_ends_of_lines_and_of_the_output() -> None:
    assert exact("", "1 2\n3\n", "1 2  \n3\n\n\n")
    assert not exact("", "1 2\n3", "1  2\n3")
    assert not exact("", "1\n\n2", "1\n2")
    assert not exact("", "1", "\n1")


def test_tokens_ignore_spacing_alone() -> None:
    assert tokens("", "1 2\n3", "1\n2   3\n")
    for wrong in ("1 2", "1 2 3 4", "1 3 2", "1 2 3.0", ""):
        assert not tokens("", "1 2 3", wrong)


@pytest.mark.parametrize(("expected", "actual", "same"), [
    ("0.3333333", "0.33333333", True), ("1e6", "1000000.4", True), ("1e6", "1000002", False), ("5", "5.0", True),
    ("5.0", "5", True), ("0.0", "1e-7", True), ("yes 1.0", "yes 1.0000001", True), ("yes 1.0", "no 1.0", False),
    ("1.0", "nan", False), ("1.0", "inf", False), ("nan", "nan", True), ("1.0", "1_0", False), ("1.0", "", False),
    ("12345678901234567890", "12345678901234567891", False), ("1.0 2.0", "1.0", False), ("1e400", "1e999", False),
    ("3", "+3", True), ("-0", "0", False), ("1.5", "1.5" * 500, False),
])
def test_floats_are_close_words_are_equal_and_integers_exact(expected: str, actual: str, same: bool) -> None:
    assert floats(1e-6, 1e-6)("", expected, actual) is same
