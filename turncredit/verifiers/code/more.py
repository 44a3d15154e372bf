"""More tests than a data file gives: what a known-good solution returns on inputs near those of the given tests."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from turncredit.sandboxes.base import Sandbox, SandboxError
from turncredit.verifiers.code.asserts import NotConvertible, call_step, convert
from turncredit.verifiers.code.cases import Asserts, Call, CodeTests
from turncredit.verifiers.code.execution import Budget, answer, perform
from turncredit.verifiers.code.near import Arguments, valid_near
from turncredit.verifiers.code.report import Status
from turncredit.verifiers.code.wire import Malformed, decode

_TRIES = 24  # inputs drawn for each that is wanted


async def more_tests(sandbox: Sandbox, solution: str, tests: CodeTests, count: int) -> CodeTests:
    """Return the tests and up to `count` hidden calls more: fewer, or none, where too few inputs are found.

    Args:
        sandbox: where the solution runs.
        solution: a program that passes the tests. What it returns is taken to be the one right value.
        count: of calls. The same solution and tests get the same ones.
    Raises:
        SandboxError: the sandbox failed, or the solution does not load.
    """
    by_function: dict[str, list[Arguments]] = {}
    for function, arguments in _calls(tests):
        by_function.setdefault(function, []).append(arguments)
    if not by_function:
        return tests
    function = Counter({name: len(calls) for name, calls in by_function.items()}).most_common(1)[0][0]
    found = valid_near(by_function[function], random.Random(solution), _TRIES * count)
    inputs = [arguments for arguments, _ in zip(found, range(count))]
    steps = [call_step(function, *arguments) for arguments in inputs]
    answers = [answer(record) for record in await perform(sandbox, solution, tests, steps, Budget(tests.total_s))]
    if any(each.status is Status.LOAD for each in answers):
        raise SandboxError("the solution that more tests were to be made of does not load")
    calls = [Call(args, kwargs, each.value, function) for (args, kwargs), each in zip(inputs, answers)
             if each.status is Status.PASSED]
    return replace(tests, tests=[*tests.tests, *calls])


def _calls(tests: CodeTests) -> Iterator[tuple[str, Arguments]]:
    """The candidate's function and its arguments, of every call in the tests whose arguments are plain values."""
    for test in tests.tests:
        if isinstance(test, Call):
            yield test.entry_point or tests.entry_point, (test.args, test.kwargs)
        elif isinstance(test, Asserts):
            try:
                checks = convert(test.source, tests.entry_point, test.setup)
            except (NotConvertible, SyntaxError):
                continue
            for step in (step for check in checks for step in check.steps if step["do"] == "call"):
                try:
                    args, kwargs = decode(step["with"])
                except Malformed:  # nodes of the candidate's side
                    continue
                yield step["on"], (args, kwargs)
