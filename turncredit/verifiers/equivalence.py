"""The child process of verifiers/math.py: a line of JSON [gold, answer, worked_out] in, {"match": bool} out."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

from math_verify import parse, verify

from turncredit.verifiers.math import plain_number


def match(gold: str, answer: str, worked_out: bool = False) -> bool:
    """Is the answer equivalent to `gold`? One that math-verify or sympy chokes on is not.

    Args:
        gold: the expected answer.
        answer: what the agent said.
        worked_out: an expression that still has to be worked out is no answer: 12+7 is not 19.
    Raises:
        ValueError: `gold` holds nothing that math-verify can read.
    """
    expected = _read(f"${gold}$") or _read(gold)
    if not expected:
        raise ValueError(f"the expected answer {gold!r} holds no mathematical value")
    answers = [_read(answer)]
    if "\\" in answer or plain_number(gold) is None:
        answers.append(_read(f"${answer}$"))  # LaTeX without its dollars
    return any(_equal(expected, read) for read in answers if not worked_out or _is_number(read))


def _read(text: str) -> list[Any]:
    try:  # without a time-out of its own: it uses signals, and the parent process has a bound of its own
        return list(parse(text, parsing_timeout=None))
    except Exception:  # whatever sympy raises at a text, it cannot read it
        return []


def _equal(expected: list[Any], read: list[Any]) -> bool:
    try:
        return bool(verify(expected, read, timeout_seconds=None))
    except Exception:
        return False


def _is_number(read: list[Any]) -> bool:
    """True for a number as it is written down (19, -3/4, 0.5); `read` is the expression and its text."""
    return bool(read) and (getattr(read[0], "is_Number", False) or plain_number(str(read[-1])) is not None)


def main() -> None:
    """Serve until standard input ends, which it does when the parent dies."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at each call that it has no time-out
    replies, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr  # what a library prints is no reply
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        try:
            reply: dict[str, object] = {"match": match(*json.loads(line))}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
