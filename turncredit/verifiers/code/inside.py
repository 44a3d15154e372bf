"""What runs beside the candidate, inside the sandbox. It knows inputs, never an expected value.

The job comes on standard input, a record a step goes to the file `records`. A parent process keeps the time; a
child loads the program and performs the steps, and where it dies or hangs, another child goes on behind
that step. Everything here is within the candidate's reach: forged records can only hold values, which a
candidate may return as it likes, and a record that is missing is a failure.

The judge sends this file as text behind `wire.py`; it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import sys
import time
import types
from collections.abc import Callable
from typing import Any

from turncredit.verifiers.code.wire import Unencodable, decode, encode

RECORDS = "records"
_POLL_S = 0.02  # how late a death is noticed where a grandchild holds the pipe open
_LONGEST_MESSAGE = 500


def main() -> None:
    """Perform every step of the job, in as many child processes as that takes."""
    job = json.loads(sys.stdin.buffer.read())
    records = os.open(RECORDS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    step: int | None = 0
    while step is not None and step < len(job["steps"]):
        step = attend(job, step, records)
    os.close(records)


def attend(job: dict[str, Any], first: int, records: int) -> int | None:
    """Watch one child from step `first` on; return the step at which the next one starts, None at the end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.close(records)
        os.setsid()  # so that what it starts can be killed with it
        try:
            perform(job, first, writing)
        finally:  # whatever the program did, never run the parent's code
            os._exit(0)
    os.close(writing)
    try:
        return _listen(job, first, records, reading, child)
    finally:
        os.close(reading)
        for kill in (os.killpg, os.kill):  # its group, and itself should it not lead one yet
            with contextlib.suppress(ProcessLookupError):  # it has ended
                kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # it was waited for
            os.waitpid(child, 0)


def _listen(job: dict[str, Any], first: int, records: int, reading: int, child: int) -> int | None:
    """Copy the child's records until it has ended, hangs, or is done."""
    step, pending, loaded = first, b"", False
    due = time.monotonic() + job["load_s"]
    while True:
        ready, _, _ = select.select([reading], [], [], min(_POLL_S, max(0.0, due - time.monotonic())))
        data = os.read(reading, 1 << 20) if ready else None
        if data:
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                if line.startswith((b'{"i"', b'{"load')):
                    _write(records, line)
                if line.startswith((b'{"i"', b'{"begin"')):
                    step += loaded and line.startswith(b'{"i"')
                    due, loaded = time.monotonic() + job["step_s"], True
                if line.startswith(b'{"load') or step >= len(job["steps"]):
                    return None
                if line.startswith(b'{"end"') and step > first:
                    return step
            if len(pending) > job["record_bytes"]:
                return _note(records, step, loaded, "large", len(pending))
        elif time.monotonic() > due:
            return _note(records, step, loaded, "late", job["step_s"] if loaded else job["load_s"])
        else:
            ended, status = os.waitpid(child, os.WNOHANG if not ready else 0)
            if ended:
                return _note(records, step, loaded, "gone", os.waitstatus_to_exitcode(status))


def _note(records: int, step: int, loaded: bool, what: str, detail: float) -> int | None:
    """Record how a step ended without an answer. A program that does not load is not loaded again."""
    _write(records, json.dumps({"i": step, what: detail} if loaded else {f"load_{what}": detail}).encode())
    return step + 1 if loaded else None


def _write(file: int, line: bytes) -> None:
    data = memoryview(line + b"\n")
    while data:
        data = data[os.write(file, data):]


def perform(job: dict[str, Any], first: int, channel: int) -> None:
    """In the child: load the program, then write a record a step."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the job is not the program's to read
    candidate = types.ModuleType("candidate")
    sys.modules["candidate"] = candidate
    sys.argv = ["candidate.py"]
    names = vars(candidate)
    try:
        exec(compile(job["prelude"], "prelude.py", "exec"), names)
        exec(compile(job["program"], "candidate.py", "exec"), names)
    except BaseException as error:  # SystemExit too: a program that ends while it loads defines nothing
        _write(channel, json.dumps({"load_error": _told(error)}).encode())
        return
    _write(channel, b'{"begin": 1}')
    shared = {name: names[name] for name in job["shared"] if isinstance(names.get(name), type)}
    kept: dict[int, Any] = {}
    last = first + job["span"] if job["span"] else len(job["steps"])
    for number, step in enumerate(job["steps"][first:last], first):
        started = time.perf_counter()
        try:
            kept[number] = _result(step, names, shared, kept)
            record = _encoded(kept[number], shared)
        except BaseException as error:  # SystemExit too: it ends the case, not the judgement
            record = {"error": _told(error)}
        record["s"] = round(time.perf_counter() - started, 6)
        _write(channel, json.dumps({"i": number, **record}).encode())
    with contextlib.suppress(Exception):  # the program's own stdout object may be anything
        sys.stdout.flush()
    _write(channel, b'{"end": 1}')


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
    main()
