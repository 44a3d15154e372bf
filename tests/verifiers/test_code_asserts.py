"""Given asserts turned into calls whose values come out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from turncredit.verifiers.code import Equality
from turncredit.verifiers.code.asserts import Check, NotConvertible, convert
from turncredit.verifiers.code.wire import decode


def outcome(check: Check, function: Callable[..., Any]) -> str | None:
    """Ask a real function the check's steps, and judge its values."""
    found = []
    for step in check.steps:
        args, kwargs = decode(step["with"])
        found.append(function(*args, **kwargs))
    return check.difference(found, Equality())


ASSERTS: list[tuple[str, Callable[..., Any], Callable[..., Any]]] = [
    ("assert candidate(3) == 9", lambda x: x * x, lambda x: x + x),
    ("assert 9 == candidate(3)", lambda x: x * x, lambda x: 9.0),
    ("assert candidate(x=3) == 9", lambda x: x * x, lambda x: True),
    ("assert candidate(3) != 8", lambda x: x * x, lambda x: 8),
    ("assert candidate(3) is True", lambda x: True, lambda x: 1),
    ("assert candidate(3) is None", lambda x: None, lambda x: 0),
    ("assert candidate(3)", lambda x: True, lambda x: []),
    ("assert not candidate(3)", lambda x: False, lambda x: 1),
    ("assert abs(candidate(3.0) - 1/3) < 1e-6", lambda x: 1 / x, lambda x: 1 / x + 1e-5),
    ("assert abs(candidate(3.0) - 1/3) < 1e-6", lambda x: 1 / x, lambda x: float("nan")),
    ("assert abs(candidate(3) - 1) < 1e-6", lambda x: 1, lambda x: True),
    ("assert abs(candidate(3) - 1) < 1e-6", lambda x: 1, lambda x: 1 + 0j),
    ("assert math.isclose(candidate(2), math.sqrt(2))", lambda x: x**0.5, lambda x: 1.41),
    ("assert set(candidate(3)) == {1, 2}", lambda x: [2, 1, 1], lambda x: [1, 2, 3]),
    ("assert sorted(candidate(3)) == [1, 2]", lambda x: (2, 1), lambda x: {1}),
    ("assert tuple(candidate(3)) == (1, 2)", lambda x: [1, 2], lambda x: [2, 1]),
    ("assert len(candidate(3)) == 2 and candidate(3)[0] == 1", lambda x: [1, 2], lambda x: [2, 1]),
    ("assert candidate(3) in (1, 2)", lambda x: 2, lambda x: True),
    ("assert candidate(3) in [[1], [2]]", lambda x: [2], lambda x: (2,)),
    ("assert 1 < candidate(3) <= 9", lambda x: 9, lambda x: 10),
    ("assert isinstance(candidate(3), int)", lambda x: 3, lambda x: 3.0),
    ("assert round(candidate(3), 2) == 0.33", lambda x: 1 / x, lambda x: 0.34),
    ("assert candidate(3) == [(1, 'a'), {'k': -1}], 'message ' + str(candidate(3))",
     lambda x: [(1, "a"), {"k": -1}], lambda x: [[1, "a"], {"k": -1}]),
    ("for n in range(2, 5):\n    assert candidate(n) == n * n", lambda x: x * x, lambda x: 4),
    ("for n, m in [(1, 2), (2, 4)]:\n    assert candidate(n) == m", lambda x: 2 * x, lambda x: 2),
    ("data = [1, 2]\nwanted = 2 * data\nassert candidate(data) == wanted", lambda x: x + x, lambda x: x),
    ("def check(candidate):\n    '''text'''\n    assert candidate(3) == 9\n    assert True, 'ok'",
     lambda x: 9, lambda x: 8),
    ("def check(f):\n    assert f(3) == 9\ncheck(candidate)", lambda x: 9, lambda x: 8),
    ("METADATA = {'author': 'x'}\ndef check(candidate):\n    import math\n    assert candidate(3) == 9",
     lambda x: 9, lambda x: 8),
]


@pytest.mark.parametrize(("source", "right", "wrong"), ASSERTS, ids=[source for source, _, _ in ASSERTS])
def test_an_assert_holds_of_a_right_function_and_fails_a_wrong_one(source: str, right: Callable[..., Any],
                                                                 wrong: Callable[..., Any]) -> None:
    checks = convert(source, "candidate")
    assert checks and all(check.steps for check in checks)
    assert [outcome(check, right) for check in checks] == [None] * len(checks)
    assert any(outcome(check, wrong) for check in checks)


def test_no_expected_value_is_in_the_steps() -> None:
    check, = convert("assert candidate([1, 'input']) == ['secret', 987654321]", "candidate")
    assert "input" in repr(check.steps) and "secret" not in repr(check.steps) and "987654321" not in repr(check.steps)


def test_the_candidates_own_classes_are_made_inside() -> None:
    check, = convert("assert chain([Pair(5, 24), Pair(15, 25)], 4) == 3", "")
    assert check.steps == [{"on": "chain([Pair(5, 24), Pair(15, 25)], 4)", "do": "value", "with": None}]


def test_loop_variables_become_literals_inside() -> None:
    checks = convert("for n in (1, 2):\n    assert chain(Pair(n, [n]), 4) == 3", "chain")
    assert [check.steps[0]["on"] for check in checks] == ["chain(Pair(1, [1]), 4)", "chain(Pair(2, [2]), 4)"]


def test_asserts_of_nothing_are_no_tests() -> None:
    with pytest.raises(NotConvertible, match="no assert"):
        convert("assert True\ndef check(candidate):\n    assert True", "f")


@pytest.mark.parametrize("source", [
    "assert candidate(encode('abc')) == 'abc'",  # a function of the setup: its own, never the candidate's
    "assert encode(candidate('abc')) == 'abc'",
    "assert is_same(candidate(1), 2)",  # forgotten by the setup: the candidate would be asked whether it is right
    "assert candidate('x').startswith('x')",  # a method of a value that the candidate made
    "assert candidate('x').upper() == 'X'",
    "assert candidate(1) is candidate(1)",
    "x = candidate(1)\nassert x == 1",
    "while True:\n    assert candidate(1) == 1",
    "def helper(x):\n    return x\nassert candidate(helper(1)) == 1",
    "import random\nassert candidate(random.random()) < 1",
    "from other import sorted\nassert sorted(candidate(1)) == 1",
    "assert [candidate(x) for x in (1, 2)] == [1, 2]",
    "assert (lambda x: True)(candidate(1))",
    "assert '%1000000000d' % candidate(1) == ''",
    "assert candidate(2 ** 10000000) == 1",
    "assert candidate([0] * 10000000) == 1",
    "try:\n    assert candidate(1) == 1\nexcept ValueError:\n    pass",
    "def check(f):\n    assert f(3) == 9\ncheck(wrapped(candidate))",
    "if True:\n    assert candidate(1) == 1",
    "with open('x') as f:\n    assert candidate(1) == 1",
    "def check(candidate, more):\n    assert candidate(1) == 1",
    "assert __import__('os').system('true') == candidate(1)",
    "assert sorted(candidate(1), key=print) == 1",
    "assert sorted(candidate(1), key=len) == 1",
    "assert max(candidate(1), *[len]) == 1",
])
def test_other_shapes_are_left_to_a_process_of_their_own(source: str) -> None:
    with pytest.raises(NotConvertible):
        convert(source, "candidate", setup="def encode(s):\n    return s")


def test_values_that_break_the_assert_fail_it() -> None:
    check, = convert("assert abs(candidate(1) - 2) < 1", "candidate")
    for value in ("text", None, [1], {}, 10**400, float("nan"), True, 2j):
        assert check.difference([value], Equality())
