"""The child process of verifiers/math.py: a line of JSON [gold, answer] in, a line {"match": bool} out."""

from __future__ import annotations

import json
import logging
import sys

from math_verify import parse, verify


def match(gold: str, answer: str) -> bool:
    """Raises ValueError where `gold` holds nothing that math-verify can read."""
    # Without time-outs of its own: they use signals, and the parent process has a bound of its own.
    expected = parse(f"${gold}$", parsing_timeout=None) or parse(gold, parsing_timeout=None)
    if not expected:
        raise ValueError(f"the expected answer {gold!r} holds no mathematical value")
    return bool(verify(expected, parse(answer, parsing_timeout=None), timeout_seconds=None))


def main() -> None:
    """Serve until standard input ends, which it does when the parent dies."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at each call that it has no time-out
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            reply: dict[str, object] = {"match": match(*json.loads(line))}
        except Exception as error:  # a value that sympy chokes on is reported, not fatal
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
