"""What a judge says: one report a candidate, one line a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How a case ended."""

    PASSED = "passed"
    WRONG = "wrong value"
    ERROR = "error"  # an exception; of a program, also an exit code other than 0
    TIME = "out of time"
    MEMORY = "out of memory"
    LOAD = "does not load"  # of every case: the program's top level failed
    SILENT = "no value"  # the process ended, or what it sent was no value


@dataclass(frozen=True, slots=True)
class CaseReport:
    """One case. `public` may be shown to the agent; `private` holds inputs and expected values."""

    status: Status
    public: str
    hidden: bool
    private: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def passed(self) -> bool:
        return self.status is Status.PASSED


@dataclass(frozen=True, slots=True)
class CodeReport:
    """The judgement of one candidate.

    Attributes:
        passed: every case passed; None where the judge itself failed.
        reward: in [0, 1]; None where the judge itself failed, for that is no zero.
        cases: in the order of the tests.
        reason: one sentence for people; it may speak of hidden tests by number alone.
        load_error: of a program whose top level fails, in a run without any input.
    """

    passed: bool | None
    reward: float | None
    cases: Sequence[CaseReport] = ()
    reason: str = ""
    load_error: str = ""

    @classmethod
    def of(cls, cases: Sequence[CaseReport], *, fraction: bool = False, load_error: str = "") -> CodeReport:
        """All or nothing, or the share of the cases that passed. No case at all is a failure."""
        good = sum(case.passed for case in cases)
        passed = bool(cases) and good == len(cases)
        reward = good / len(cases) if fraction and cases else float(passed)
        if not cases:
            return cls(False, 0.0, (), "no test ran")
        reason = "" if passed else f"{len(cases) - good} of {len(cases)} tests failed"
        return cls(passed, reward, tuple(cases), reason, load_error)

    @classmethod
    def unknown(cls, reason: str) -> CodeReport:
        """The judge or its sandbox failed, not the candidate."""
        return cls(None, None, (), reason)

    def message(self, shown: int = 3) -> str:
        """What the agent may see: the first failures, hidden ones without their inputs and values."""
        if self.passed is None:
            return "The tests could not be run."
        failed = [case for case in self.cases if not case.passed]
        if not failed:
            return f"All {len(self.cases)} tests passed." if self.cases else "No test ran."
        lines = [f"{len(failed)} of {len(self.cases)} tests failed."]
        if self.load_error:
            return f"{lines[0]}\nThe program does not load: {self.load_error}"
        numbered = [(n, case) for n, case in enumerate(self.cases, 1) if not case.passed]
        lines += [f"{'hidden test' if case.hidden else 'test'} {n}: {case.public}" for n, case in numbered[:shown]]
        return "\n".join(lines + [f"… and {len(failed) - shown} more."] * (len(failed) > shown))


def case_report(status: Status, test: str, public: str, detail: str, hidden: bool) -> CaseReport:
    """A case's report. The test's text and the detail are private where it is hidden."""
    shown = public if hidden else f"{test}: {detail or public}"
    return CaseReport(status, shown or status, hidden, {"test": test, "detail": detail})
