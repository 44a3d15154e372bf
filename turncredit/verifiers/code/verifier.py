"""The verifier of programs: an answer's code, judged by the task's hidden tests."""

from __future__ import annotations

from turncredit.episode import Outcome, Task, Verdict
from turncredit.verifiers.code.cases import CodeTests
from turncredit.verifiers.code.shared import judge_code

_PYTHON = {"", "python", "python3", "py"}
LONGEST_PROGRAM = 200_000  # characters


class HiddenTests:
    """Passes where the answer's program passes `task.hidden["tests"]`, a `CodeTests`.

    The program is the answer's last fenced block of Python, or the whole answer where it has none.
    """

    def __init__(self, home: str = "local", **settings: object) -> None:
        self.home = home
        self.settings = settings

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """Judge the final answer. The verdict's details hold nothing that the agent may not see."""
        tests = task.hidden["tests"]
        if not isinstance(tests, CodeTests):
            raise TypeError(f"task.hidden['tests'] is a {type(tests).__name__}, not CodeTests")
        program = program_of(outcome.answer or "")
        if not program.strip():
            return Verdict.of(False, "no program was given")
        if len(program) > LONGEST_PROGRAM:
            return Verdict.of(False, f"the program is longer than {LONGEST_PROGRAM} characters")
        report = judge_code(program, tests, self.home, **self.settings)
        if report.reward is None:
            return Verdict.unknown(report.reason)
        details = {"message": report.message(), "cases": [case.status.value for case in report.cases]}
        return Verdict(report.reward, report.passed, report.reason, details)


def program_of(answer: str) -> str:
    """The program in an answer: its last fenced block of Python, or all of it where it has none."""
    found, language = answer, None
    block: list[str] = []
    for line in [*answer.splitlines(keepends=True), "```"]:  # a block that is cut off ends here
        fence = line.strip().startswith("```")
        if fence and language is None:
            language, block = line.strip().strip("`").strip().lower(), []
        elif fence:
            if language in _PYTHON and block:
                found = "".join(block)
            language = None
        else:
            block.append(line)
    return found
