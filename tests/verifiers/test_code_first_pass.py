"""Given asserts begin with a pass in which no candidate has a part: it is done once for all of them."""

from __future__ import annotations

import asyncio
from typing import Any

from turncredit.sandboxes.base import Result, Sandbox
from turncredit.verifiers.code import Asserts, CodeReport, CodeTests, judge_in

WANTED = "def wanted(n):\n    return n {sign} 1\nfor n in range({rounds}):\n    assert f(n) == wanted(n)"


def test_the_first_pass_is_done_once_for_all_candidates_of_the_same_tests(home: str) -> None:
    runs = 0

    async def judged() -> list[tuple[int, bool | None]]:
        nonlocal runs
        async with await Sandbox.open(home) as sandbox:
            run = sandbox.run

            async def counted(*args: Any, **given: Any) -> Result:
                nonlocal runs
                runs += 1
                return await run(*args, **given)

            sandbox.run = counted  # type: ignore[method-assign]  # the real sandbox, counted

            async def judge(body: str, sign: str = "+") -> tuple[int, bool | None]:
                before = runs
                tests = CodeTests([Asserts(WANTED.format(sign=sign, rounds=17 + len(home)))], "f")
                report: CodeReport = await judge_in(sandbox, f"def f(n):\n    return {body}", tests)
                return runs - before, report.passed

            return [await judge("n + 1"), await judge("n + 1"), await judge("n - 1"), await judge("n - 1", "-")]

    assert asyncio.run(judged()) == [(3, True), (2, True), (2, False), (3, True)]
