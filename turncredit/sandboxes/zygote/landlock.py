"""Landlock: a file-system and network policy that a process puts on itself and its children for good.

https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

from . import syscalls

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
MAKE_CHAR, MAKE_BLOCK, IOCTL_DEVICE = 1 << 6, 1 << 11, 1 << 15
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
READ = EXECUTE | READ_FILE | READ_DIR
PATH_BENEATH = 1


def abi() -> int:
    """Return the kernel's Landlock version, 0 where it has none."""
    return max(0, int(syscalls.LIBC.syscall(syscalls.LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)))


def ruleset(version: int, readable: Sequence[str], writable: Sequence[str], *, network: bool) -> int:
    """Return the descriptor of a policy that leaves a process only the given trees (and TCP, with `network`).

    From version 6 on, abstract sockets and signals of processes outside are out of reach too.
    """
    known = (1 << 13) - 1  # version 1; refer, truncate and ioctl came with 2, 3 and 5
    for since, right in ((2, 1 << 13), (3, TRUNCATE), (5, IOCTL_DEVICE)):
        known |= right if version >= since else 0
    tcp = 3 if version >= 4 and not network else 0
    scoped = 3 if version >= 6 else 0
    attributes = struct.pack("=QQQ", known, tcp, scoped)[:24 if version >= 6 else 16 if version >= 4 else 8]
    call = syscalls.LIBC.syscall
    made = syscalls.check(call(syscalls.LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0),
                          "landlock_create_ruleset")
    write = known & ~(MAKE_CHAR | MAKE_BLOCK | IOCTL_DEVICE)
    for paths, rights in ((readable, READ), (writable, write)):
        for path in paths:
            _allow(made, path, rights & known)
    return made


def restrict(made: int) -> None:
    """Put a policy on this process and its children for good. Needs no_new_privs."""
    syscalls.check(syscalls.LIBC.syscall(syscalls.LANDLOCK_RESTRICT, made, 0), "landlock_restrict_self")


def _allow(made: int, path: str, rights: int) -> None:
    folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        allowed = rights if os.path.isdir(path) else rights & ON_FILES
        rule = struct.pack("=Qi", allowed, folder)
        syscalls.check(syscalls.LIBC.syscall(syscalls.LANDLOCK_ADD, made, PATH_BENEATH, rule, 0),
                        f"landlock_add_rule {path}")
    finally:
        os.close(folder)
