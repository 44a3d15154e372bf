"""More tests made of a known-good solution: valid as the given ones are, and they catch what those let pass."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from turncredit.sandboxes import Sandbox, SandboxError
from turncredit.verifiers.code import Asserts, Call, CodeTests, judge_code, more_tests
from turncredit.verifiers.code.near import Common, valid_near

KTH = "def f(xs, k):\n    return sorted(xs)[k - 1]"
TESTS = CodeTests([Asserts("def check(candidate):\n    assert candidate([4, 1, 7], 1) == 1\n"
                           "    assert candidate([9, 2, 5, 8], 4) == 9\n    assert candidate([3, 6], 1) == 3")], "f")


def strengthened(solution: str, tests: CodeTests, count: int, home: str = "local") -> CodeTests:
    async def strengthen() -> CodeTests:
        async with await Sandbox.open(home, slots=1) as sandbox:
            return await more_tests(sandbox, solution, tests, count)
    return asyncio.run(strengthen())


def test_more_tests_catch_what_the_given_ones_let_pass(home: str) -> None:
    stronger = strengthened(KTH, TESTS, 20, home)
    more = stronger.tests[1:]
    assert 5 <= len(more) <= 20
    assert all(isinstance(test, Call) and test.hidden for test in more)
    first_or_last = "def f(xs, k):\n    return min(xs) if k == 1 else max(xs)"
    assert judge_code(first_or_last, TESTS, home).passed
    assert judge_code(first_or_last, stronger, home).passed is False
    otherwise = "import heapq\ndef f(xs, k):\n    return heapq.nsmallest(k, xs)[-1]"
    for right in (KTH, otherwise):
        assert judge_code(right, stronger, home).passed


def test_the_same_solution_gets_the_same_tests(home: str) -> None:
    assert strengthened(KTH, TESTS, 8, home) == strengthened(KTH, TESTS, 8, home)


def test_tests_without_plain_calls_stay_as_they_are_and_a_broken_solution_is_told(home: str) -> None:
    remote = CodeTests([Asserts("def wanted(n):\n    return n\nfor n in range(3):\n    assert f(n) == wanted(n)")], "f")
    assert strengthened("def f(n):\n    return n", remote, 5, home) is remote
    with pytest.raises(SandboxError, match="does not load"):
        strengthened("f = )", TESTS, 5, home)


@pytest.mark.parametrize(("calls", "kept", "not_kept"), [
    ([([3, 1, 2], 2), ([5, 9], 1)], ([9, 1, 2], 2), ([3, 1, 2], 5)),  # k <= len(xs)
    ([([1, 4, 6],), ([2, 3],)], ([1, 2, 5],), ([4, 1, 6],)),  # sorted
    ([([3, 1, 2],), ([5, 9],)], ([3, 1, 5],), ([3, 3, 2],)),  # distinct
    ([("abab", 3), ("b", 1)], ("ba", 1), ("abac", 3)),  # letters
    ([(4, [[2, 0], [1, 3], [0, 1]]), (2, [[0, 1]])], (4, [[2, 0], [1, 3], [0, 3]]), (4, [[2, 0], [1, 3]])),  # a tree
    ([(1, 5.0), (4, 2.0)], (3, 2.5), (2.5, 3.0)),  # types
    ([(2, 8), (5, 6)], (3, 7), (3, 9)),  # ranges
])
def test_an_input_is_valid_where_it_keeps_what_all_have_in_common(calls: list[Any], kept: Any, not_kept: Any) -> None:
    common = Common([(call, {}) for call in calls])
    assert common.keeps((kept, {}))
    assert not common.keeps((not_kept, {}))


def test_inputs_near_by_are_new_valid_and_drawn_by_the_seed() -> None:
    calls = [(([4, 1, 7],), {"k": 1}), (([9, 2, 5, 8],), {"k": 4}), (([3, 6],), {"k": 1})]
    drawn = [list(valid_near(calls, random.Random(seed), 400)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) >= 10 and len({repr(call) for call in drawn[0]}) == len(drawn[0])
    assert all(1 <= kwargs["k"] <= len(args[0]) <= 4 and call not in calls
               for call in drawn[0] for args, kwargs in [call])
