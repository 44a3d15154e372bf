"""A session seen by its slot: one candidate that stays, and is asked again and again.

A slot serves one session and ends with it, so what it reads here no later candidate is forked with.
"""

from __future__ import annotations

import os
import select
import socket
import time
from typing import Any

from . import files, packets
from .execution import ASKED, HUNG_UP, Execution
from .interpreter import ANSWER, CELL

IDLE_LOOK_S = 1.0  # between cells, where threads and daemons may go on within the last cell's limits
EXITED = "its interpreter ended"
CHUNK = 1 << 16


def serve(execution: Execution, request: dict[str, Any], uid: int | None) -> None:
    """Run cells and carry files until the parent hangs up, or a limit or the interpreter's own end comes."""
    parent = execution.parent
    execution.go(request)
    channel = socket.socket(fileno=os.dup(execution.word))  # cells go the way that the request went
    channel.setblocking(False)
    execution.give_stdin(-1, 0, 0)
    parent.send({"ready": True})
    ended: str | None = None
    while ended is None:
        came = execution.wait(execution.over, look_every_s=IDLE_LOOK_S, listen=True) or EXITED
        if came != ASKED:
            ended = came
        elif (packet := parent.receive()) is None:
            ended = HUNG_UP
        else:
            header, (store,) = packet
            blobs = packets.load(store, header["blobs"])
            os.close(store)
            if header["op"] == "cell":
                ended = _cell(execution, channel, header["limits"], blobs[0])
            else:
                _carry(execution, header, blobs, uid)
    execution.end()
    if ended == EXITED:
        ended = str(execution.verdict(None)["killed_by"] or EXITED)
    while ended != HUNG_UP and parent.receive():
        parent.send({"ended": ended})


class Answer:
    """What the interpreter says to a cell. The candidate can forge its own answers there, and no more."""

    def __init__(self, channel: socket.socket, limit: int) -> None:
        self.channel, self.limit = channel, limit
        self.head = bytearray()
        self.value = bytearray()  # its first `limit` bytes
        self.seen = 0  # bytes of the value

    def read(self) -> None:
        try:
            chunk = self.channel.recv(CHUNK)
        except (BlockingIOError, ConnectionError):
            return
        missing = ANSWER.size - len(self.head)
        self.head += chunk[:missing]
        self.seen += len(chunk[missing:])
        self.value += chunk[missing:][:max(0, self.limit - len(self.value))]

    def complete(self) -> bool:
        return len(self.head) == ANSWER.size and self.seen >= ANSWER.unpack(self.head)[2]


def _cell(execution: Execution, channel: socket.socket, limits: dict[str, Any], source: bytes) -> str | None:
    """Run one cell and answer; return what ended the session with it, if anything."""
    execution.limits |= {name: limits[name] for name in ("wall_s", "cpu_s", "output_bytes")}
    execution.out.limit = execution.err.limit = limits["output_bytes"]
    execution.cpu_before += execution.usage().cpu_s
    execution.began = time.monotonic()
    answer = Answer(channel, limits["output_bytes"])
    left = memoryview(CELL.pack(len(source)) + source)

    def move() -> None:
        nonlocal left
        answer.read()
        if left:
            try:
                left = left[channel.send(left):]
            except BlockingIOError:
                return
            except ConnectionError:
                left = left[:0]
            if not left:
                execution.watch(channel.fileno(), select.POLLIN, lambda _: move())

    execution.watch(channel.fileno(), select.POLLIN | select.POLLOUT, lambda _: move())
    cut = execution.wait(lambda: answer.complete() or execution.over(), wall_s=limits["wall_s"])
    execution.unwatch(channel.fileno())
    if cut == HUNG_UP:
        return HUNG_UP
    ended = None if answer.complete() and not cut else cut or EXITED
    header: dict[str, object]
    if ended:
        execution.end()
        if why := execution.failure():
            execution.parent.send({"ended": why})
            return why
        header = {**execution.verdict(cut), "ended": ended, "value": False}
    else:
        execution.out.drain()
        execution.err.drain()
        code, has_value, length = ANSWER.unpack(answer.head)
        header = {**execution.so_far(), "exit": code, "killed_by": None, "value": has_value,
                  "value_cut": length > len(answer.value)}
    store = packets.store([bytes(answer.value)])
    execution.answer(header, store, [len(answer.value)])
    os.close(store)
    return ended


def _carry(execution: Execution, header: dict[str, Any], blobs: list[bytes], uid: int | None) -> None:
    """Write or read a file of the working folder; a refusal is the caller's OSError, and ends nothing."""
    store = packets.store(())
    try:
        length = 0
        if header["op"] == "write":
            files.write(header["path"], blobs[0], uid)
        else:
            length = files.copy(header["path"], execution.limits["file_bytes"], store)
        execution.parent.send({"blobs": [[length]]}, [store] * bool(length))
    except OSError as error:
        execution.parent.send({"refused": [error.errno, os.strerror(error.errno or 5)]})
    finally:
        os.close(store)
