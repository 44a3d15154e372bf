"""Answers judged by mathematical equivalence (math-verify), never by the equality of strings."""

from __future__ import annotations

import atexit
import json
import re
import selectors
import subprocess
import sys
import threading
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from turncredit.episode import Outcome, Task, Verdict

_NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?(/\d+)?")
LONGEST_ANSWER = 10_000  # characters; the last ones are judged


class MathAnswer:
    """Passes where the answer equals `task.hidden["answer"]`.

    Plain numbers are compared exactly, as fractions, in this process. Everything else goes to math-verify in a
    process of its own, which is ended after `timeout_s`: an answer such as 9^{9^{9^9}} must not hang a run.
    """

    def __init__(self, timeout_s: float = 10.0) -> None:
        self.timeout_s = timeout_s

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """Judge the final answer; see `answers_match`."""
        if outcome.answer is None or not outcome.answer.strip():
            return Verdict.of(False, "no answer was given")
        gold = str(task.hidden["answer"])
        try:
            passed = answers_match(gold, outcome.answer[-LONGEST_ANSWER:], self.timeout_s)
        except TimeoutError:
            return Verdict.of(False, f"the answer could not be evaluated in {self.timeout_s:g} s")
        return Verdict.of(passed, "" if passed else "the answer is not equivalent to the expected one")


def answers_match(gold: str, answer: str, timeout_s: float = 10.0) -> bool:
    r"""Is `answer` (a text with a number, LaTeX, or \boxed{…} in it) equivalent to `gold`?

    Raises:
        TimeoutError: the comparison took longer than `timeout_s`.
        ValueError: `gold` holds no mathematical value, so nothing can be judged.
    """
    exact_gold, exact_answer = plain_number(gold), plain_number(answer)
    if exact_gold is not None and exact_answer is not None:
        return exact_gold == exact_answer
    return _WORKER.compare(gold, answer, timeout_s)


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
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def compare(self, gold: str, answer: str, timeout_s: float) -> bool:
        with self._lock:
            process = self._started()
            assert process.stdin and process.stdout
            process.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
            process.stdin.flush()
            with selectors.DefaultSelector() as waiting:
                waiting.register(process.stdout, selectors.EVENT_READ)
                if not waiting.select(timeout_s):
                    self.close()
                    raise TimeoutError
            line = process.stdout.readline()
            if not line:
                self.close()
                raise RuntimeError("the process that runs math-verify died")
        reply = json.loads(line)
        if "error" in reply:
            raise ValueError(reply["error"])
        return bool(reply["match"])

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen([sys.executable, "-m", "turncredit.verifiers.equivalence"],
                                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert self._process.stdout
            self._process.stdout.readline()  # it says when it is ready, so that a time-out times the comparison alone
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


_WORKER = _EquivalenceWorker()
atexit.register(_WORKER.close)
