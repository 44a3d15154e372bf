"""Writing programs, in one turn or with an interpreter and visible tests at hand: what code environments share."""

from __future__ import annotations

from typing import Any

from turncredit.envs.python_env import PythonEnv
from turncredit.envs.text_env import Reply
from turncredit.envs.tools import ToolError, tool
from turncredit.sandboxes.base import SandboxError
from turncredit.toolcalls import ToolSpec
from turncredit.verifiers.code import CodeTests, HiddenTests, judge_code, program_of
from turncredit.verifiers.code.verifier import LONGEST_PROGRAM

_SUBMIT = "Your answer without a call is the program that is judged, once: Python code alone, in one fenced block."


class ProgramEnv(PythonEnv):
    """A task's `hidden` has "tests", what the program is judged by, and where there are any "visible" (`CodeTests`).

    Args:
        several_turns: the agent may run code and try its program on the visible tests before it answers.
    """

    def __init__(self, several_turns: bool, max_turns: int | None = None, **kwargs: Any) -> None:
        super().__init__(max_turns=max_turns or (None if several_turns else 1), **kwargs)
        self.several_turns = several_turns
        self.verifier = HiddenTests(self.home, **self.sandbox)
        self.instructions = f"Write the program that the task asks for. {_SUBMIT}"
        if several_turns:
            self.instructions += " Before that, run code and test your program with the tools."

    @property
    def tools(self) -> list[ToolSpec]:
        """None where there is one turn alone."""
        return super().tools if self.several_turns else []

    def respond(self, action: str) -> Reply:
        """With one turn every action is the program."""
        return super().respond(action) if self.several_turns else Reply(done=True, answer=action)

    @tool
    def run(self, code: str) -> str:
        """Run Python code in an interpreter that keeps its state. The value of the last expression comes back.

        Args:
            code: Python source.
        """
        return self.run_python(code)

    @tool
    def test(self, program: str) -> str:
        """Run a program on the visible tests, and say which fail and how.

        Args:
            program: all of it, as it would be submitted.
        """
        visible = self.task.hidden.get("visible")
        if not isinstance(visible, CodeTests):
            raise ToolError("this task has no visible tests: use run")
        if len(program) > LONGEST_PROGRAM:
            raise ToolError(f"the program is longer than {LONGEST_PROGRAM} characters")
        report = judge_code(program_of(program), visible, self.home, **self.sandbox)
        if report.reward is None:
            raise SandboxError(report.reason)
        return report.message()

    def expert_action(self) -> str:
        """Try the solution on the visible tests, where there are some; then submit it."""
        solution = self.task.hidden.get("solution")
        if solution is None:
            raise NotImplementedError(f"task {self.task.id} comes without a solution")
        if self.several_turns and not self.turns and "visible" in self.task.hidden:
            return self.call("test", program=solution)
        return f"```python\n{solution}```"
