"""Messages between the pool and its slots: a small packet, and byte strings in memory files beside it.

The bytes are in kernel memory and pass by descriptor (SCM_RIGHTS): a slot hands them on without reading them.

What a slot does right after a fork is dear, because each page of memory that it touches is copied: `json.loads`
takes 64 pages, `marshal.loads` 27. So requests are marshal, from the program that opened the sandbox down.
Answers are JSON: that program must be able to read any, and marshal can crash who reads it.
"""

from __future__ import annotations

import itertools
import json
import marshal
import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

PACKET = 120 << 10  # the most bytes of a packet; from 128 KiB on, malloc would map each buffer anew
DESCRIPTORS = 4  # the most that travel with one
RIGHTS = struct.Struct("i")  # a descriptor as it travels
ROOM = socket.CMSG_SPACE(DESCRIPTORS * RIGHTS.size)

Packet = tuple[dict[str, Any], list[int]]


class Parent(Protocol):
    """A slot's way to the program that opened the sandbox."""

    def send(self, header: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Send one packet; the descriptors stay the sender's to close."""

    def receive(self) -> Packet | None:
        """Wait for one packet; its descriptors are the caller's to close. None where the parent is gone."""

    def fileno(self) -> int:
        """Return what to poll for packets, and for the parent's end."""


@dataclass(frozen=True)
class Neighbour:
    """A parent on this machine, at the other end of a SOCK_SEQPACKET socket."""

    sock: socket.socket

    def send(self, header: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        _send(self.sock, _json(header).encode(), descriptors)

    def receive(self) -> Packet | None:
        data, descriptors = _receive(self.sock)
        return (marshal.loads(data), descriptors) if data else None

    def fileno(self) -> int:
        return self.sock.fileno()


def ask(sock: socket.socket, header: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
    """Send a slot one request; the descriptors stay the sender's to close.

    Raises:
        OSError: the slot is gone, or the header is too long (EMSGSIZE).
    """
    _send(sock, marshal.dumps(dict(header)), descriptors)


def receive(sock: socket.socket) -> Packet | None:
    """Take a slot's answer and its descriptors, which are the caller's to close; None where the slot is gone."""
    data, descriptors = _receive(sock)
    return (json.loads(data), descriptors) if data else None


def _send(sock: socket.socket, data: bytes, descriptors: Sequence[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(map(RIGHTS.pack, descriptors)))]
    sock.sendmsg([data], rights if descriptors else [])


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """As `socket.recv_fds`, which takes twice as many pages."""
    data, ancillary, _, _ = sock.recvmsg(PACKET, ROOM, socket.MSG_CMSG_CLOEXEC)
    return data, [descriptor for _, _, rights in ancillary
                  for descriptor, in RIGHTS.iter_unpack(rights[:len(rights) // RIGHTS.size * RIGHTS.size])]


def _json(value: object) -> str:
    """As `json.dumps`, which is only called for strings: it takes 79 pages."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ",".join([f'"{name}":{_json(item)}' for name, item in value.items()]) + "}"
    if isinstance(value, list):
        return "[" + ",".join([_json(item) for item in value]) + "]"
    return json.dumps(value)


def store(blobs: Iterable[bytes]) -> int:
    """Return the descriptor of a memory file with these byte strings, one after the other."""
    descriptor = os.memfd_create("turncredit")
    for blob in blobs:
        left = memoryview(blob)
        while left:
            left = left[os.write(descriptor, left):]
    return descriptor


def load_groups(descriptors: Sequence[int], groups: Sequence[Sequence[int]]) -> list[bytes]:
    """Return the byte strings of several memory files; a group of empty ones has no file."""
    files = iter(descriptors)
    return [blob for lengths in groups
            for blob in (load(next(files), lengths) if any(lengths) else [b""] * len(lengths))]


def load(descriptor: int, lengths: Sequence[int]) -> list[bytes]:
    """Return the byte strings of a memory file."""
    starts = itertools.accumulate(lengths, initial=0)
    return [os.pread(descriptor, length, start) if length else b"" for start, length in zip(starts, lengths)]
