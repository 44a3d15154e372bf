"""Answers judged by mathematical equivalence (math-verify), never by the equality of strings."""

from __future__ import annotations

import atexit
import json
import os
import re
import selectors
import subprocess
import sys
import threading
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from turncredit.episode import Outcome, Task, Verdict

_NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?(/\d+)?")
LONGEST_ANSWER = 10_000  # characters; the last ones are judged
SHOWN = 200  # characters of both that a verdict tells people


class MathAnswer:
    """Passes where the answer equals `task.hidden["answer"]`.

    Plain numbers are compared exactly, as fractions, in this process. Everything else goes to math-verify in a
    process of its own, which is ended after `timeout_s`: an answer such as 9^{9^{9^9}} must not hang a run.

    Args:
        timeout_s: seconds for one comparison; an answer that takes longer is wrong.
        worked_out: the answer must be a number as written down. For tasks that ask to work an expression out, since
            to math-verify the expression itself is as good as its value.
    """

    def __init__(self, timeout_s: float = 10.0, worked_out: bool = False) -> None:
        self.timeout_s, self.worked_out = timeout_s, worked_out

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """Judge the final answer; see `answers_match`."""
        if outcome.answer is None or not outcome.answer.strip():
            return Verdict.of(False, "no answer was given")
        gold = str(task.hidden["answer"])
        try:
            passed = answers_match(gold, outcome.answer[-LONGEST_ANSWER:], self.timeout_s, self.worked_out)
        except TimeoutError:
            return Verdict.of(False, f"the answer could not be evaluated in {self.timeout_s:g} s")
        if passed:
            return Verdict.of(True)
        return Verdict.of(False, "the answer is not equivalent to the expected one", expected=gold[-SHOWN:],
                          answer=outcome.answer[-SHOWN:])


def answers_match(gold: str, answer: str, timeout_s: float = 10.0, worked_out: bool = False) -> bool:
    r"""Is `answer` (a text with a number, LaTeX, or \boxed{…} in it) equivalent to `gold`? See `MathAnswer`.

    Raises:
        TimeoutError: the comparison took longer than `timeout_s`.
        ValueError: `gold` holds no mathematical value, so nothing can be judged.
    """
    gold, answer = (text.replace("−", "-") for text in (gold, answer))  # U+2212
    exact_gold, exact_answer = plain_number(gold), plain_number(answer)
    if exact_gold is not None and exact_answer is not None:
        return exact_gold == exact_answer
    return _WORKER.compare(gold, answer, timeout_s, worked_out)


def plain_number(text: str) -> Fraction | None:
    """The value of a text that is one plain number (42, -1,234.5, 3/4), else None."""
    text = text.strip()
    if not _NUMBER.fullmatch(text) or len(text) > 100:
        return None
    numerator, _, denominator = text.replace(",", "").partition("/")
    try:
        return Fraction(Decimal(numerator)) / (Fraction(denominator) if denominator else 1)
    except (InvalidOperation, ZeroDivisionError):
        return None


class _EquivalenceWorker:
    """math-verify in a child process that can be killed: its own time-outs use signals, which threads cannot."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Have no process. A forked child has no use for its parent's, and its lock may be held for ever."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def compare(self, gold: str, answer: str, timeout_s: float, worked_out: bool) -> bool:
        with self._lock:
            try:
                reply = self._ask(json.dumps([gold, answer, worked_out]), timeout_s)
            except BaseException:  # an interrupted exchange leaves a reply that the next one would take for its own
                self.close()
                raise
        if "error" in reply:
            raise ValueError(reply["error"])
        return bool(reply["match"])

    def _ask(self, question: str, timeout_s: float) -> dict[str, Any]:
        process = self._started()
        assert process.stdin and process.stdout
        process.stdin.write(question.encode() + b"\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            if not waiting.select(timeout_s):
                raise TimeoutError
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the process that runs math-verify died")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen([sys.executable, "-m", "turncredit.verifiers.equivalence"],
                                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert self._process.stdout
            # It says when it is ready, so that a time-out times the comparison alone.
            if not self._process.stdout.readline():
                raise RuntimeError("the process that runs math-verify did not start")
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


_WORKER = _EquivalenceWorker()
atexit.register(_WORKER.close)
os.register_at_fork(after_in_child=_WORKER.forget)
