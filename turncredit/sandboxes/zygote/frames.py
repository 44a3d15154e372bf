"""Messages on a stream of bytes: a JSON header, and byte strings that stay byte strings."""

from __future__ import annotations

import itertools
import json
import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from . import packets

PREFIX = struct.Struct("<IQ")  # bytes of the header, bytes of everything after it

Message = tuple[dict[str, Any], list[bytes]]


def pack(header: Mapping[str, object], blobs: Sequence[bytes] = ()) -> bytes:
    """Return the message as bytes; the blobs' lengths travel in the header."""
    head = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}).encode()
    return b"".join([PREFIX.pack(len(head), sum(map(len, blobs))), head, *blobs])


def size(prefix: bytes | bytearray) -> int:
    """Return the whole message's length, from its first `PREFIX.size` bytes."""
    head, rest = PREFIX.unpack_from(prefix)
    return int(PREFIX.size + head + rest)


def unpack(message: bytes) -> Message:
    """Return the header and the blobs of one whole message."""
    at = PREFIX.size + PREFIX.unpack_from(message)[0]
    header: dict[str, Any] = json.loads(message[PREFIX.size:at])
    ends = itertools.accumulate(header.pop("blobs", ()), initial=at)
    return header, [message[start:end] for start, end in itertools.pairwise(ends)]


class Stdio:
    """A slot's parent at the other end of its stdin and stdout. Byte strings pass inside the kernel."""

    def send(self, header: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """See `packets.Parent.send`. The byte strings' lengths stand in the header, by memory file."""
        groups: Sequence[Sequence[int]] = header.get("blobs", ())  # type: ignore[assignment]  # as ours are
        head = json.dumps({**header, "blobs": list(itertools.chain(*groups))}).encode()
        lengths = [total for total in map(sum, groups) if total]
        _write(PREFIX.pack(len(head), sum(lengths)) + head)
        for descriptor, length in zip(descriptors, lengths):
            done = 0
            while done < length:
                done += os.sendfile(1, descriptor, done, length - done)

    def receive(self) -> packets.Packet | None:
        """See `packets.Parent.receive`. All byte strings come in one memory file."""
        prefix = _read(PREFIX.size)
        head, left = PREFIX.unpack(prefix) if prefix else (0, 0)
        data = _read(head) if head else b""
        if not data:
            return None
        store = os.memfd_create("turncredit")
        while left:
            moved = os.splice(0, store, left)
            if not moved:
                return None
            left -= moved
        return json.loads(data), [store]

    def fileno(self) -> int:
        """See `packets.Parent.fileno`."""
        return 0


def _read(length: int) -> bytes:
    """Return so many bytes of stdin, or none where it ends before."""
    data = b""
    while len(data) < length:
        chunk = os.read(0, length - len(data))
        if not chunk:
            return b""
        data += chunk
    return data


def _write(data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(1, left):]
