"""Answers that are one value: a number within a tolerance, or a text."""

from __future__ import annotations

import math
import re
from decimal import Decimal

from turncredit.episode import Outcome, Task, Verdict

_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_LABEL = re.compile(r"(?:the\s+)?(?:final\s+)?answer(?:\s*:|\s+is\b)", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,30})(?:\.\d{1,30})?(?:[eE][-+]?\d{1,3})?", re.ASCII)
LONGEST = 1000  # characters of an answer's last line


class ValueAnswer:
    r"""Passes where the answer is `task.hidden["answer"]`, an int, a float or a str.

    The answer is the last \boxed{…}, else what its last line says (behind "Answer:", where that stands): one value and
    nothing beside it, so that a list of guesses is none. An int must be exact (`42`, `42.0`, `1,000`); a float may be
    off by `absolute` or by `relative` of the expected one; of a text case and spacing do not count.

    Args:
        absolute: by default half of the second decimal place, so that two decimals are enough.
        relative: of the expected value's magnitude.
    """

    def __init__(self, absolute: float = 0.00501, relative: float = 1e-6) -> None:
        self.absolute, self.relative = absolute, relative

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """Judge the final answer.

        Raises:
            TypeError: the expected answer is no int, float or str (the task's fault, so that nothing is judged).
        """
        expected = task.hidden["answer"]
        if type(expected) not in (int, float, str):
            raise TypeError(f"task.hidden['answer'] is a {type(expected).__name__}: it must be an int, float or str")
        given = stated_value(outcome.answer or "")
        if not given:
            return Verdict.of(False, "no answer was given")
        passed = self._equal(expected, given)
        return Verdict.of(passed, "" if passed else "the answer is not the expected value")

    def _equal(self, expected: int | float | str, given: str) -> bool:
        if isinstance(expected, str):
            return _plain(given) == _plain(expected)
        if not _NUMBER.fullmatch(given):
            return False
        number = Decimal(given.replace(",", ""))
        if isinstance(expected, int):
            return number == expected
        return math.isclose(float(number), expected, rel_tol=self.relative, abs_tol=self.absolute)


def stated_value(answer: str) -> str:
    """What an answer says, without its wrapping; empty where it says nothing."""
    boxed = _BOXED.findall(answer)
    lines = answer.strip().splitlines()
    said = boxed[-1] if boxed else lines[-1][-LONGEST:] if lines else ""
    return _LABEL.split(said)[-1].strip().strip("*`$ ").rstrip(".").strip("\"'").strip()


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
