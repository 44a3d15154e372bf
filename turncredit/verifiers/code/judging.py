"""The judge: candidates run in the sandbox, verdicts are made out here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from turncredit.sandboxes.base import KilledBy, Result, Sandbox, SandboxError
from turncredit.verifiers.code.asserts import NotConvertible, call_step, convert
from turncredit.verifiers.code.cases import Asserts, Call, CodeTests, Program
from turncredit.verifiers.code.equality import Equality, shown
from turncredit.verifiers.code.execution import Answer, Budget, Step, answer, perform
from turncredit.verifiers.code.remote import AssertsBroken, judge_remotely
from turncredit.verifiers.code.report import CaseReport, CodeReport, Status, case_report

_AT_ONCE = 4  # programs of one candidate: the sandbox's own pool bounds them further


class Question(Protocol):
    """Steps for the candidate, and what must hold of their values."""

    @property
    def text(self) -> str: ...

    @property
    def steps(self) -> Sequence[Step]: ...

    def difference(self, values: Sequence[Any], equality: Equality) -> str | None:
        """Why it does not hold, or None where it does."""


@dataclass(frozen=True, slots=True)
class CallQuestion:
    """A call with an expected value."""

    text: str
    steps: Sequence[Step]
    expected: Any

    @classmethod
    def of(cls, test: Call, entry_point: str) -> CallQuestion:
        entry_point = test.entry_point or entry_point
        args = [shown(arg, 80) for arg in test.args] + [f"{k}={shown(v, 80)}" for k, v in test.kwargs.items()]
        return cls(f"{entry_point}({', '.join(args)})", [call_step(entry_point, test.args, test.kwargs)], test.expected)

    def difference(self, values: Sequence[Any], equality: Equality) -> str | None:
        return equality.difference(self.expected, values[0])


async def judge_in(sandbox: Sandbox, program: str, tests: CodeTests) -> CodeReport:
    """Judge one candidate. Whatever the candidate does, the report is about it; only our own failures are unknown.

    Args:
        sandbox: an open sandbox of any home.
        program: the candidate's source.
        tests: what it is judged by.
    """
    budget = Budget(tests.total_s)
    load_error = ""
    reports: dict[int, list[CaseReport]] = {}
    try:
        for hidden in (False, True):  # apart: a visible error must not carry a hidden input
            asked = {n: _questions(test, tests) for n, test in enumerate(tests.tests)
                     if test.hidden is hidden and not isinstance(test, Program)}
            plain = {n: questions for n, questions in asked.items() if questions is not None}
            reports |= await _ask(sandbox, program, tests, plain, hidden, budget)
            for n in asked.keys() - plain.keys():
                test = tests.tests[n]
                assert isinstance(test, Asserts)
                reports[n] = await judge_remotely(sandbox, program, tests, test, budget)
        reports |= await _run_programs(sandbox, program, tests, budget)
        if any(case.status is Status.LOAD for found in reports.values() for case in found):
            load_error = await _load_error(sandbox, program, tests)
    except SandboxError as error:
        return CodeReport.unknown(f"the sandbox failed: {error}")
    except AssertsBroken as error:
        return CodeReport.unknown(f"the tests are broken: {error}")
    cases = [case for n in range(len(tests.tests)) for case in reports[n]]
    return CodeReport.of(cases, fraction=tests.fraction, load_error=load_error)


def _questions(test: Call | Asserts | Program, tests: CodeTests) -> Sequence[Question] | None:
    """The questions that a test consists of; None where its asserts need a process of their own."""
    if isinstance(test, Call):
        return [CallQuestion.of(test, tests.entry_point)]
    assert isinstance(test, Asserts)
    try:
        return convert(test.source, tests.entry_point, test.setup)
    except NotConvertible:
        return None
    except SyntaxError as error:
        raise AssertsBroken(f"{error.msg} (line {error.lineno})") from None


async def _ask(sandbox: Sandbox, program: str, tests: CodeTests, asked: dict[int, Sequence[Question]], hidden: bool,
               budget: Budget) -> dict[int, list[CaseReport]]:
    """Put the questions of several tests to the candidate in one execution."""
    steps = [step for questions in asked.values() for question in questions for step in question.steps]
    if not steps and not any(asked.values()):
        return {}
    records = await perform(sandbox, program, tests, steps, budget) if steps else []
    reports: dict[int, list[CaseReport]] = {}
    given = iter(records)
    for n, questions in asked.items():
        reports[n] = []
        for question in questions:
            answers = [answer(next(given)) for _ in question.steps]
            reports[n].append(_report(question, answers, tests.equality, hidden))
    return reports


def _report(question: Question, answers: Sequence[Answer], equality: Equality, hidden: bool) -> CaseReport:
    failed = next((a for a in answers if a.status is not Status.PASSED), None)
    if failed is not None:
        return case_report(failed.status, question.text, failed.public, failed.detail, hidden)
    difference = question.difference([a.value for a in answers], equality)
    if difference is None:
        return case_report(Status.PASSED, question.text, "", "", hidden)
    return case_report(Status.WRONG, question.text, "wrong value", difference, hidden)


async def _load_error(sandbox: Sandbox, program: str, tests: CodeTests) -> str:
    """Why a program does not load, from a run that has no input to give away."""
    nothing: Step = {"on": "None", "do": "value", "with": None}
    record, = await perform(sandbox, program, tests, [nothing], Budget(tests.load_s + 1))
    found = answer(record)
    return found.detail or found.public if found.status is not Status.PASSED else ""


async def _run_programs(sandbox: Sandbox, program: str, tests: CodeTests,
                        budget: Budget) -> dict[int, list[CaseReport]]:
    free = asyncio.Semaphore(_AT_ONCE)

    async def run(test: Program) -> list[CaseReport]:
        async with free:
            if budget.left_s <= 0:
                return [_program_report(test, Status.TIME, "it took longer than the time of all tests", "")]
            limits = budget.limits(tests.memory_bytes, tests.test_s)
            result = await sandbox.run(program, stdin=test.stdin.encode(), limits=limits)
            budget.spend(result)
        return [_judge_output(test, result)]

    programs = {n: test for n, test in enumerate(tests.tests) if isinstance(test, Program)}
    found = await asyncio.gather(*(run(test) for test in programs.values()))
    return dict(zip(programs, found))


def _judge_output(test: Program, result: Result) -> CaseReport:
    detail = f"stderr: {result.stderr[-500:]}" if result.stderr else ""
    if result.killed_by in (KilledBy.WALL, KilledBy.CPU):
        return _program_report(test, Status.TIME, "it took longer than its time", "")
    if result.killed_by is KilledBy.MEMORY or result.stderr.rstrip().endswith("MemoryError"):
        return _program_report(test, Status.MEMORY, "it took more memory than allowed", "")
    if result.exit != 0:
        return _program_report(test, Status.ERROR, "it crashed", detail)
    if result.truncated:
        return _program_report(test, Status.WRONG, "it wrote more than allowed", "")
    try:
        right = test.checker(test.stdin, test.expected, result.stdout)
    except Exception as error:  # an output that the checker chokes on is not a right one
        return _program_report(test, Status.WRONG, "wrong output", f"the checker raised {error!r}")
    if right is True:
        return _program_report(test, Status.PASSED, "", "")
    return _program_report(test, Status.WRONG, "wrong output",
                           f"wrote {shown(result.stdout)}, should be {shown(test.expected)}")


def _program_report(test: Program, status: Status, public: str, detail: str) -> CaseReport:
    return case_report(status, f"input {shown(test.stdin)}", public, detail, test.hidden)
