"""The program in a virtual machine: a local sandbox there, called over stdin and stdout.

Requests are messages of zygote/frames.py; answers are the same in base64, a line each, as what comes out of a
machine is text to the service between.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import os
import sys
from collections.abc import Mapping
from typing import Any

from turncredit.errors import UserError
from turncredit.sandboxes.base import KilledBy, Limits, Result, SandboxError, Session
from turncredit.sandboxes.local import LocalSandbox, open_sandbox
from turncredit.sandboxes.zygote import frames

LIMIT = 1 << 20  # bytes that asyncio holds of what is not read yet
RAISED: dict[str, type[Exception]] = {each.__name__: each for each in (UserError, SandboxError, OSError)}
Answer = tuple[Mapping[str, object], list[bytes]]
FIELDS = ("exit", "killed_by", "wall_s", "cpu_s", "peak_bytes", "truncated")


async def main() -> None:
    """Open the sandbox, and answer calls until stdin ends."""
    reader = asyncio.StreamReader(limit=LIMIT)
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    message = await read(reader)
    if message is None:
        return
    config = message[0]
    try:
        sandbox = await open_sandbox(slots=1, sessions=1, preload=config["preload"],
                                     minimum=config["minimum"], limits=Limits(**config["limits"]))
    except (UserError, SandboxError) as error:
        say(raised(error))
        return
    async with sandbox:
        say({"ready": dataclasses.asdict(sandbox.protections)})
        calls = Calls(sandbox)
        while (message := await read(reader)) is not None:
            header, blobs = message
            try:
                say(*await getattr(calls, header["call"])(header, blobs))
            except tuple(RAISED.values()) as error:
                say(raised(error))


class Calls:
    """What can be asked for, each with the request's header and byte strings, and its answer's."""

    def __init__(self, sandbox: LocalSandbox) -> None:
        self.sandbox = sandbox
        self.opened: Session

    async def run(self, header: dict[str, Any], blobs: list[bytes]) -> Answer:
        code, stdin, *contents = blobs
        return encoded(await self.sandbox.run(
            None if header["argv"] else code.decode("utf-8", "surrogatepass"), argv=header["argv"],
            stdin=stdin, files=dict(zip(header["files"], contents)), collect=header["collect"],
            limits=Limits(**header["limits"])))

    async def session(self, header: dict[str, Any], blobs: list[bytes]) -> Answer:
        self.opened = await self.sandbox.session(limits=Limits(**header["limits"]))
        return {}, []

    async def cell(self, header: dict[str, Any], blobs: list[bytes]) -> Answer:
        code = blobs[0].decode("utf-8", "surrogatepass")
        return encoded(await self.opened.run(code, limits=Limits(**header["limits"])))

    async def write(self, header: dict[str, Any], blobs: list[bytes]) -> Answer:
        await self.opened.write_file(header["path"], blobs[0])
        return {}, []

    async def read(self, header: dict[str, Any], blobs: list[bytes]) -> Answer:
        return {}, [await self.opened.read_file(header["path"])]


def encoded(result: Result) -> Answer:
    """Return a result as a message."""
    texts = [result.stdout, result.stderr, result.value or ""]
    header = {name: getattr(result, name) for name in FIELDS}
    return ({**header, "value": result.value is not None, "files": list(result.files)},
            [*(text.encode("utf-8", "surrogatepass") for text in texts), *result.files.values()])


def decoded(header: Mapping[str, Any], blobs: list[bytes]) -> Result:
    """Return the result that a message holds."""
    stdout, stderr, value = (blob.decode("utf-8", "surrogatepass") for blob in blobs[:3])
    fields = {name: header[name] for name in FIELDS}
    fields["killed_by"] = KilledBy(header["killed_by"]) if header["killed_by"] else None
    return Result(**fields, stdout=stdout, stderr=stderr, value=value if header["value"] else None,
                  files=dict(zip(header["files"], blobs[3:])))


def raised(error: Exception) -> dict[str, object]:
    """Return an error as a message's header."""
    kind = next(name for name, known in RAISED.items() if isinstance(error, known))
    arguments = [error.errno, error.strerror, error.filename] if isinstance(error, OSError) else [str(error)]
    return {"raised": kind, "arguments": arguments}


async def read(reader: asyncio.StreamReader) -> frames.Message | None:
    """Wait for one request; None where there will be none."""
    try:
        prefix = await reader.readexactly(frames.PREFIX.size)
        return frames.unpack(prefix + await reader.readexactly(frames.size(prefix) - len(prefix)))
    except asyncio.IncompleteReadError:
        return None


def say(header: Mapping[str, object], blobs: list[bytes] | None = None) -> None:
    """Write one answer."""
    left = memoryview(base64.b64encode(frames.pack(header, blobs or [])) + b"\n")
    while left:
        left = left[os.write(1, left):]


if __name__ == "__main__":
    asyncio.run(main())
