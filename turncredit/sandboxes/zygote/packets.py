"""Messages between the pool and its slots: a small JSON packet, and byte strings in memory files beside it.

The bytes are in kernel memory and pass by descriptor (SCM_RIGHTS): a slot hands them on without reading them.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

PACKET = 1 << 17  # the most bytes of a packet
DESCRIPTORS = 4  # the most that travel with one

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
        send(self.sock, header, descriptors)

    def receive(self) -> Packet | None:
        return receive(self.sock)

    def fileno(self) -> int:
        return self.sock.fileno()


def send(sock: socket.socket, header: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
    """Send one packet; the descriptors stay the sender's to close.

    Raises:
        OSError: the peer is gone, or the header is too long (EMSGSIZE).
    """
    socket.send_fds(sock, [json.dumps(header).encode()], descriptors)


def receive(sock: socket.socket) -> Packet | None:
    """Take one packet and its descriptors, which are the caller's to close; None where the peer is gone."""
    data, descriptors, _, _ = socket.recv_fds(sock, PACKET, DESCRIPTORS)
    return (json.loads(data), descriptors) if data else None


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
