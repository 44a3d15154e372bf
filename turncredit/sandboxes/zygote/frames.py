"""Messages on a stream socket: a JSON header, and byte strings that stay byte strings."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

PREFIX = struct.Struct("<IQ")  # bytes of the header, bytes of everything after it

Message = tuple[dict[str, Any], list[bytes]]


class Stream(Protocol):
    """What requests come from and answers go to: a connected socket, or a container's stdin and stdout."""

    def recv(self, most: int, /) -> bytes: ...

    def sendall(self, data: bytes, /) -> None: ...

    def fileno(self) -> int: ...


def pack(header: Mapping[str, object], blobs: Sequence[bytes] = ()) -> bytes:
    """Return the message as bytes; the blobs' lengths travel in the header."""
    head = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}).encode()
    return b"".join([PREFIX.pack(len(head), sum(map(len, blobs))), head, *blobs])


def size(prefix: bytes) -> int:
    """Return the whole message's length, from its first `PREFIX.size` bytes."""
    head, rest = PREFIX.unpack_from(prefix)
    return int(PREFIX.size + head + rest)


def unpack(message: bytes) -> Message:
    """Return the header and the blobs of one whole message."""
    head = PREFIX.unpack_from(message)[0]
    at = PREFIX.size + head
    header: dict[str, Any] = json.loads(message[PREFIX.size:at])
    blobs = []
    for length in header.pop("blobs"):
        blobs.append(message[at:at + length])
        at += length
    return header, blobs


def read(stream: Stream) -> Message | None:
    """Wait for one message on a blocking stream; None where the peer is gone."""
    data = bytearray()
    need = PREFIX.size
    while len(data) < need:
        chunk = stream.recv(need - len(data))
        if not chunk:
            return None
        data += chunk
        if need == PREFIX.size == len(data):
            need = size(bytes(data))
    return unpack(bytes(data))
