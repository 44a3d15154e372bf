"""A session seen by its supervisor: one candidate that stays, and is asked again and again."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from . import candidate, files, frames
from .candidate import ANSWER, CELL
from .execution import ASKED, HUNG_UP, Execution
from .streams import Output

if TYPE_CHECKING:
    from .supervisor import Slot

IDLE_LOOK_S = 1.0  # between cells, where threads and daemons may go on within the last cell's limits
EXITED = "exit"


def serve(slot: Slot, execution: Execution) -> None:
    """Run cells and carry files until the parent hangs up, or a limit or its own end stops it."""
    execution.start(candidate.serve_cells, files={}, session=True)
    execution.wait(lambda: not execution.starting)
    if execution.status.kept:
        slot.answer({"error": bytes(execution.status.kept).decode(errors="replace")})
        return
    slot.answer({"ready": True})
    assert execution.channel is not None
    sending = os.dup(execution.channel.fileno())
    ended: str | None = None
    while ended is None:
        came = execution.wait(execution.over, look_every_s=IDLE_LOOK_S, listen=True)
        if came != ASKED:
            ended = came or EXITED
        elif (message := frames.read(slot.parent)) is None:
            ended = HUNG_UP
        elif message[0]["op"] == "cell":
            ended = _cell(slot, execution, sending, message[0]["limits"], message[1][0])
        else:
            _carry(slot, execution, *message)
    execution.end()
    while ended != HUNG_UP and frames.read(slot.parent):
        slot.answer({"ended": ended})


def _cell(slot: Slot, execution: Execution, sending: int, limits: dict[str, Any],
          source: bytes) -> str | None:
    """Run one cell and answer; return what ended the session with it, if anything."""
    assert execution.channel is not None
    receiving = execution.channel.fileno()
    execution.limits |= {name: limits[name] for name in ("wall_s", "cpu_s", "output_bytes")}
    execution.out.limit = execution.err.limit = limits["output_bytes"]
    execution.cpu_before += execution.usage().cpu_s
    execution.began = time.monotonic()
    # The candidate can write here what it likes: it forges its own answers, no more.
    answer = Output(receiving, limits["output_bytes"] + ANSWER.size)

    def answered() -> bool:
        kept = answer.kept
        return len(kept) >= ANSWER.size and answer.seen >= ANSWER.size + ANSWER.unpack_from(kept)[2]

    execution.receive(answer)
    execution.give(sending, CELL.pack(len(source)) + source, close=False)
    cut = execution.wait(lambda: answered() or execution.over(), wall_s=limits["wall_s"])
    if receiving in execution.ready:
        execution.unwatch(receiving)
    if cut == HUNG_UP:
        return HUNG_UP
    header: dict[str, object]
    value, value_cut = b"", False
    ended = None if answered() and not cut else cut or EXITED
    if ended:
        execution.end()
        header = {**execution.verdict(cut), "ended": ended, "value": False}
    else:
        execution.out.drain()
        execution.err.drain()
        code, has_value, _ = ANSWER.unpack_from(answer.kept)
        kept, value_cut = answer.take()
        value = kept[ANSWER.size:]
        usage = execution.usage()
        execution.peak_bytes = max(execution.peak_bytes, usage.memory_bytes)
        header = {"exit": code, "killed_by": None, "wall_s": time.monotonic() - execution.began,
                  "cpu_s": usage.cpu_s, "peak_bytes": execution.cgroup.peak_bytes() or execution.peak_bytes,
                  "value": has_value}
    (out, out_cut), (err, err_cut) = execution.out.take(), execution.err.take()
    slot.answer({**header, "cut": [out_cut, err_cut, value_cut], "files": []}, out, err, value)
    return ended


def _carry(slot: Slot, execution: Execution, header: dict[str, Any], blobs: list[bytes]) -> None:
    """Write or read a file of the working folder; a refusal is the caller's OSError, and ends nothing."""
    try:
        if header["op"] == "write":
            files.write(header["path"], blobs[0], slot.held.uid)
            slot.answer({"done": True})
        else:
            slot.answer({"done": True}, files.read(header["path"], execution.limits["file_bytes"]))
    except OSError as error:
        slot.answer({"refused": [error.errno, os.strerror(error.errno or 5)]})
