"""Steps performed in the sandbox, and the records that came out of it."""

from __future__ import annotations

import builtins
import json
import marshal
import sys
import zlib
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
_FILE_BYTES = 16 * MIB
WALL_SHARE = 0.25  # of its wall time an honest program gets at least as CPU time, on a machine as busy as we allow for


@dataclass(slots=True)
class Budget:
    """Time that is left for a candidate: CPU time, or a WALL_SHARE of the wall time where that is more.

    So a program on a busy machine keeps its time, and one that sleeps spends it too. Waiting for a free sandbox
    does not count.
    """

    left_s: float

    def limits(self, memory_bytes: int, most_s: float | None = None) -> Limits:
        """The limits of the next execution."""
        cpu = max(0.01, min(self.left_s, most_s or self.left_s))
        return Limits(wall_s=cpu / WALL_SHARE, cpu_s=cpu, memory_bytes=memory_bytes, file_bytes=_FILE_BYTES)

    def spend(self, result: Result) -> None:
        self.left_s -= max(result.cpu_s, result.wall_s * WALL_SHARE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one step gave: a value where `status` is PASSED, else how it ended.

    `detail` may hold what the candidate wrote, hidden inputs included; `public` may not.
    """

    status: Status
    value: Any = None
    public: str = ""
    detail: str = ""


# The sandbox reads the judge's part from standard input: compiled where its Python is of the same version, since
# compiling it takes longer than everything else together.
_LOADER = """\
import sys
size, version = sys.stdin.buffer.readline().split()
text = sys.stdin.buffer.read(int(size))
if version.decode() == f"{sys.implementation.name}-{sys.hexversion:x}":
    import marshal
    code = marshal.loads(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))
else:
    import zlib
    sys.stdin.buffer.read(int(sys.stdin.buffer.readline()))
    code = compile(zlib.decompress(text), "judge", "exec")
exec(code)
"""


@cache
def _judges_part(*names: str) -> bytes:
    """Files of this package as one program that needs the standard library alone, as text and compiled."""
    texts = [Path(__file__).with_name(name).read_text() for name in names]
    lines = [line for text in texts for line in text.splitlines()
             if not line.startswith(("from turncredit.", "from __future__"))]
    text = "\n".join(["from __future__ import annotations", *lines, ""])
    compiled = marshal.dumps(compile(text, "judge", "exec", optimize=2, dont_inherit=True))
    version = f"{sys.implementation.name}-{sys.hexversion:x}"
    source = zlib.compress(text.encode())  # so that all fits into a pipe at once
    return b"%d %s\n%s%d\n%s" % (len(source), version.encode(), source, len(compiled), compiled)


async def run_inside(sandbox: Sandbox, names: Sequence[str], job: object, collect: str, limits: Limits) -> Result:
    """Run files of this package in the sandbox, with a job as JSON on standard input.

    Raises:
        SandboxError: the sandbox failed.
    """
    stdin = _judges_part(*names) + json.dumps(job).encode()
    return await sandbox.run(_LOADER, stdin=stdin, collect=[collect], limits=limits)


async def perform(sandbox: Sandbox, program: str, tests: CodeTests, steps: Sequence[Step],
                  budget: Budget) -> list[Record]:
    """Return a record a step; one that says so where there is none.

    Where an execution ends early, the first step without a record is taken to be the cause, and the steps
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
               "step_s": tests.test_s, "load_s": tests.load_s, "wall_share": WALL_SHARE}
        most_s = tests.load_s + tests.test_s * (len(steps) - start)
        result = await run_inside(sandbox, ("wire.py", "inside.py"), job, RECORDS,
                                  budget.limits(tests.memory_bytes, most_s))
        budget.spend(result)
        found, load = _read(result.files.get(RECORDS, b""), len(steps) - start)
        for number, record in found.items():
            records.setdefault(start + number, record)
        if not (load or {}).get("loaded"):
            return _filled(records, load or {"load_error": _ending(result, tests)}, len(steps))
        cause = next((n for n in range(start, len(steps)) if n not in records), len(steps))
        records.setdefault(cause, _ending(result, tests))
        if linked:
            return _filled(records, _ending(result, tests), len(steps))
        start = cause + 1
    return _filled(records, {"gone": None}, len(steps))


def _filled(records: dict[int, Record], missing: Record, count: int) -> list[Record]:
    return [records.get(number, missing) for number in range(count)]


def _ending(result: Result, tests: CodeTests) -> Record:
    """Why a step has no record."""
    if result.killed_by is KilledBy.MEMORY:
        return {"memory": tests.memory_bytes}
    if result.killed_by in (KilledBy.WALL, KilledBy.CPU):
        return {"late": tests.total_s, "total": True}
    spent_s = max(result.cpu_s, result.wall_s * WALL_SHARE)
    if result.killed_by is KilledBy.SIGNAL and spent_s >= 0.5 * min(tests.test_s, tests.load_s):
        return {"late": tests.test_s}  # most likely an alarm of `inside.py`, by a clock that runs up to 30 % fast
    return {"gone": result.exit}


def _read(data: bytes, count: int) -> tuple[dict[int, Record], Record | None]:
    """The records by step, and the one of the program's loading. The first record of a step stands.

    An honest process writes one line for its loading and one a step: the rest of a flood is not even read.
    """
    found: dict[int, Record] = {}
    load: Record | None = None
    for line in data.split(b"\n", count + 1)[: count + 1]:
        if not line or len(line) > _RECORD_BYTES:
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue  # no record: a step without one has failed
        if not isinstance(record, dict):
            continue
        number = record.get("i")
        if type(number) is int and number >= 0:
            found.setdefault(number, record)
        elif "loaded" in record or "load_error" in record:
            load = load or record
    return found, load


def answer(record: Record) -> Answer:
    """What a record says. It comes from the candidate's side: nothing in it is relied on."""
    if "load_error" in record:
        told = _told(record["load_error"])
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
    if "memory" in record:
        return Answer(Status.MEMORY, public="it took more memory than allowed")
    return Answer(Status.SILENT, public="it ended without a value")


def _told(told: object) -> tuple[str, str]:
    """The type of an exception, and all that is known of it."""
    if isinstance(told, dict):
        return "", f"it ended before it was loaded: {answer(told).public}"
    if not isinstance(told, list) or len(told) != 3:
        return "", "unknown"
    kind, message, line = (str(part)[:500] for part in told)
    return kind, f"{kind}: {message}{f' (line {line})' if line != '0' else ''}"


def _exception_name(kind: str) -> str:
    """A built-in exception's name; a program could write hidden inputs into the name of its own."""
    known = getattr(builtins, kind, None)
    return kind if isinstance(known, type) and issubclass(known, BaseException) else "an exception of its own"
