"""Steps performed in the sandbox, and the records that came out of it."""

from __future__ import annotations

import builtins
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from turncredit.sandboxes.base import MIB, KilledBy, Limits, Result, Sandbox
from turncredit.verifiers.code.cases import CodeTests
from turncredit.verifiers.code.inside import RECORDS
from turncredit.verifiers.code.report import Status
from turncredit.verifiers.code.wire import Malformed, decode

Step = dict[str, Any]
Record = dict[str, Any]

_RECORD_BYTES = 4 * MIB
_FILE_BYTES = 32 * MIB


@dataclass(slots=True)
class Budget:
    """Wall time that is left for a candidate. Waiting for a free sandbox does not count."""

    left_s: float

    def limits(self, memory_bytes: int, wall_s: float | None = None) -> Limits:
        """The limits of the next execution."""
        wall = max(0.01, min(self.left_s, wall_s or self.left_s))
        return Limits(wall_s=wall, cpu_s=wall, memory_bytes=memory_bytes, file_bytes=_FILE_BYTES)

    def spend(self, result: Result) -> None:
        self.left_s -= result.wall_s


@dataclass(frozen=True, slots=True)
class Answer:
    """What one step gave: a value where `status` is PASSED, else how it ended.

    `detail` may hold what the candidate wrote, hidden inputs included; `public` may not.
    """

    status: Status
    value: Any = None
    public: str = ""
    detail: str = ""


@cache
def sandbox_source(*names: str) -> str:
    """The text of files of this package as one program that needs the standard library alone."""
    texts = [Path(__file__).with_name(name).read_text() for name in names]
    lines = [line for text in texts for line in text.splitlines()
             if not line.startswith(("from turncredit.", "from __future__"))]
    return "\n".join(["from __future__ import annotations", *lines, ""])


async def perform(sandbox: Sandbox, program: str, tests: CodeTests, steps: Sequence[Step],
                  budget: Budget) -> list[Record]:
    """Return a record a step; one that says so where there is none.

    Where an execution is killed, the first step without a record is taken to be the cause, and the steps
    behind it run in another one (unless they build on earlier results).

    Raises:
        SandboxError: the sandbox failed, not the candidate.
    """
    records: dict[int, Record] = {}
    linked = any(not isinstance(step["on"], str) for step in steps)
    start = 0
    while start < len(steps):
        if budget.left_s <= 0:
            return _filled(records, {"late": tests.total_s, "total": True}, len(steps))
        job = {"prelude": tests.prelude, "program": program, "steps": steps[start:], "shared": list(tests.shared),
               "step_s": tests.test_s, "load_s": tests.load_s, "record_bytes": _RECORD_BYTES, "span": 0}
        result = await sandbox.run(sandbox_source("wire.py", "inside.py"), stdin=json.dumps(job).encode(),
                                   collect=[RECORDS], limits=budget.limits(tests.memory_bytes))
        budget.spend(result)
        found, failed_load = _read(result.files.get(RECORDS, b""))
        for number, record in found.items():
            records.setdefault(start + number, record)
        if failed_load is not None:
            return _filled(records, failed_load, len(steps))
        if result.killed_by is None:
            return _filled(records, {"gone": result.exit}, len(steps))
        cause = next((n for n in range(start, len(steps)) if n not in records), len(steps))
        records.setdefault(cause, _killed(result, tests))
        if linked:
            return _filled(records, _killed(result, tests), len(steps))
        start = cause + 1
    return _filled(records, {"gone": None}, len(steps))


def _filled(records: dict[int, Record], missing: Record, count: int) -> list[Record]:
    return [records.get(number, missing) for number in range(count)]


def _killed(result: Result, tests: CodeTests) -> Record:
    if result.killed_by is KilledBy.MEMORY:
        return {"memory": tests.memory_bytes}
    if result.killed_by in (KilledBy.WALL, KilledBy.CPU):
        return {"late": tests.total_s, "total": True}
    return {"gone": result.exit}


def _read(data: bytes) -> tuple[dict[int, Record], Record | None]:
    """The records by step, and the one of a program that did not load. The first record of a step stands."""
    found: dict[int, Record] = {}
    for line in data.split(b"\n"):
        if not line or len(line) > _RECORD_BYTES + 1000:
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue  # no record: a step without one has failed
        if not isinstance(record, dict):
            continue
        if any(str(key).startswith("load_") for key in record):
            return found, record
        number = record.get("i")
        if type(number) is int and number >= 0:
            found.setdefault(number, record)
    return found, None


def answer(record: Record) -> Answer:
    """What a record says. It comes from the candidate's side: nothing in it is relied on."""
    if any(key.startswith("load_") for key in record):
        told = _told(record.get("load_error"))
        return Answer(Status.LOAD, public="the program does not load", detail=told[1])
    if "value" in record:
        try:
            return Answer(Status.PASSED, decode(record["value"]))
        except Malformed as error:
            return Answer(Status.WRONG, public="its value could not be read", detail=str(error))
    if "opaque" in record:
        return Answer(Status.WRONG, public="it returned something that is no plain value",
                      detail=f"returned {str(record['opaque'])[:500]}")
    if "error" in record:
        kind, detail = _told(record["error"])
        status = Status.MEMORY if kind == "MemoryError" else Status.ERROR
        return Answer(status, public=f"it raised {_exception_name(kind)}", detail=detail)
    if "late" in record:
        limit = "all tests may" if "total" in record else "a test may"
        return Answer(Status.TIME, public=f"it took longer than {limit}")
    if "memory" in record or record.get("gone") == -9:
        return Answer(Status.MEMORY, public="it was killed, most likely for its memory")
    if "large" in record:
        return Answer(Status.WRONG, public="its value is too large")
    return Answer(Status.SILENT, public="it ended without a value")


def _told(told: object) -> tuple[str, str]:
    """The type of an exception, and all that is known of it."""
    if not isinstance(told, list) or len(told) != 3:
        return "", "it took too long, or ended by itself"
    kind, message, line = (str(part)[:500] for part in told)
    return kind, f"{kind}: {message}{f' (line {line})' if line != '0' else ''}"


def _exception_name(kind: str) -> str:
    """A built-in exception's name; a program could write hidden inputs into the name of its own."""
    known = getattr(builtins, kind, None)
    return kind if isinstance(known, type) and issubclass(known, BaseException) else "an exception of its own"
