"""When a program's output is the expected one. A checker gets the test's input, the expected output, the actual one.

Any function of this shape will do; it runs in the judge's process, so it must treat the output as data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

Checker = Callable[[str, str, str], bool]

_NUMBER = re.compile(r"[-+]?(\d{1,400}(\.\d{0,400})?|\.\d{1,400})([eE][-+]?\d{1,4})?", re.ASCII)


def exact(given: str, expected: str, actual: str) -> bool:
    """The same lines; white space at the end of a line and empty lines at the end do not count."""
    return _lines(expected) == _lines(actual)


def tokens(given: str, expected: str, actual: str) -> bool:
    """The same words in the same order, however they are spaced."""
    return expected.split() == actual.split()


def floats(relative: float = 1e-6, absolute: float = 1e-6) -> Checker:
    """The same words, where a number may be off by `absolute` or by `relative` of the expected magnitude.

    Two integers must be equal digit by digit. `nan` and `inf` are words, not numbers.
    """
    def check(given: str, expected: str, actual: str) -> bool:
        wanted, got = expected.split(), actual.split()
        return len(wanted) == len(got) and all(close(a, b) for a, b in zip(wanted, got))

    def close(a: str, b: str) -> bool:
        if a == b:
            return True
        if _integer(a) and _integer(b):
            return a.lstrip("+") == b.lstrip("+")
        if not (_NUMBER.fullmatch(a) and _NUMBER.fullmatch(b)):
            return False
        x, y = float(a), float(b)
        if not (math.isfinite(x) and math.isfinite(y)):
            return False
        return abs(x - y) <= max(absolute, relative * abs(x))

    return check


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _integer(word: str) -> bool:
    return word.lstrip("+-").isdecimal()
