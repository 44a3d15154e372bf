"""What runs beside the candidate, inside the sandbox. It knows inputs, never an expected value.

The job comes on standard input, a record a step goes to the file `records`. One process loads the program and
performs the steps in order; where it dies or takes too long, the judge has another one go on behind that step.
Everything here is within the candidate's reach: forged records can only hold values, which a candidate may
return as it likes, and a record that is missing is a failure.

The judge sends this file with `wire.py`; it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import sys
import time
import types
from collections.abc import Callable
from typing import Any

from turncredit.verifiers.code.wire import Unencodable, decode, encode

RECORDS = "records"
_LONGEST_MESSAGE = 500


def main() -> None:
    """Load the program, then write a record a step."""
    job = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the job is not the program's to read
    records = os.open(RECORDS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    _bound(job["load_s"], job["wall_share"])
    random.seed(0)  # the same program, the same values
    candidate = types.ModuleType("candidate")
    sys.modules["candidate"] = candidate
    sys.argv = ["candidate.py"]
    names = vars(candidate)
    try:
        exec(compile(job["prelude"], "prelude.py", "exec"), names)
        exec(compile(job["program"], "candidate.py", "exec"), names)
    except BaseException as error:  # SystemExit too: a program that ends while it loads defines nothing
        _write(records, {"load_error": _told(error)})
        return
    _write(records, {"loaded": True})
    shared = {name: names[name] for name in job["shared"] if isinstance(names.get(name), type)}
    kept: dict[int, Any] = {}
    for number, step in enumerate(job["steps"]):
        _bound(job["step_s"], job["wall_share"])
        started = time.perf_counter()
        try:
            kept[number] = _result(step, names, shared, kept)
            record = _encoded(kept[number], shared)
        except BaseException as error:  # SystemExit too: it ends the step, not the judgement
            record = {"error": _told(error)}
        _write(records, {"i": number, **record, "s": round(time.perf_counter() - started, 6)})
    with contextlib.suppress(Exception):  # the program's own stdout object may be anything
        sys.stdout.flush()


def _bound(seconds: float, wall_share: float) -> None:
    """End this process after `seconds` of CPU time, or as many of wall time as they are a share of.

    A program that gets out of this uses up the time of all its tests.
    """
    for alarm, timer, after in ((signal.SIGPROF, signal.ITIMER_PROF, seconds),
                                (signal.SIGALRM, signal.ITIMER_REAL, seconds / wall_share)):
        signal.signal(alarm, signal.SIG_DFL)
        signal.setitimer(timer, after)


def _write(file: int, record: dict[str, Any]) -> None:
    data = memoryview(json.dumps(record).encode() + b"\n")
    while data:
        data = data[os.write(file, data):]


def _result(step: dict[str, Any], names: dict[str, Any], shared: dict[str, type], kept: dict[int, Any]) -> Any:
    """Perform one step on a name of the program's, or on the result of an earlier step."""
    on = step["on"]
    target = eval(on, names) if isinstance(on, str) else kept[on]
    if step["do"] == "call":
        args, kwargs = decode(step["with"], shared=shared, resolve=kept.__getitem__, max_depth=100_000)
        return target(*args, **kwargs)
    if step["do"] == "item":
        return target[decode(step["with"], shared=shared, resolve=kept.__getitem__)]
    if step["do"] == "attribute":
        return getattr(target, step["with"])
    return _PLAIN_STEPS[step["do"]](target)


_PLAIN_STEPS: dict[str, Callable[[Any], Any]] = {
    "value": lambda target: target,
    "len": len,
    "str": str,
    "repr": repr,
    "list": lambda target: list(itertools.islice(target, 100_000)),
}


def _encoded(value: Any, shared: dict[str, type]) -> dict[str, Any]:
    try:
        return {"value": encode(value, shared=shared)}
    except Unencodable as error:
        return {"opaque": str(error)[:_LONGEST_MESSAGE]}


def _told(error: BaseException) -> list[Any]:
    """An exception's type, its message, and the line of the program where it arose."""
    trace = error.__traceback__
    line = (error.lineno or 0) if isinstance(error, SyntaxError) else 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "candidate.py":
            line = trace.tb_lineno
        trace = trace.tb_next
    kind = type(error)
    try:
        message = str(error.msg if isinstance(error, SyntaxError) else error)
    except Exception:  # the program's own class
        message = "(its message could not be read)"
    own = kind.__module__ != "builtins"
    return [f"{kind.__module__}.{kind.__qualname__}" if own else kind.__name__, message[:_LONGEST_MESSAGE], line]


if __name__ == "__main__":
    try:
        main()
    finally:  # before the program's own exit handlers
        os._exit(0)
