"""The Linux system calls that Python 3.11 has no function for, through ctypes. Errors are OSError."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
LIBC.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
LIBC.syscall.restype = ctypes.c_long

MACHINE = platform.machine()
# Numbers above 423 are the same on every architecture.
PIVOT_ROOT, CAPSET = {"x86_64": (155, 126), "aarch64": (41, 91)}.get(MACHINE, (-1, -1))
OPENAT2, MOUNT_SETATTR = 437, 442
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWCGROUP = 0x10000000, 0x20000000, 0x40000000, 0x2000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SECCOMP_MODE_FILTER = 2

AT_FDCWD, AT_RECURSIVE = -100, 0x8000
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 2, 4, 8


def check(result: int, what: str) -> int:
    """Return a call's result, or raise what errno says."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def write_file(path: str, text: str) -> None:
    """Write to a file of /proc in one call: after a fork, what a file object touches is copied."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def read_file(path: str) -> bytes:
    """Read a small file of /proc in one call."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 1 << 14)
    finally:
        os.close(descriptor)


def unshare(flags: int) -> None:
    check(LIBC.unshare(flags), f"unshare({flags:#x})")


def setns(fd: int, flags: int) -> None:
    check(LIBC.setns(fd, flags), "setns")


def sethostname(name: str) -> None:
    check(LIBC.sethostname(name.encode(), len(name)), "sethostname")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    check(LIBC.mount(*encoded[:3], flags, encoded[3]), f"mount {kind or source or ''} on {target}")


def unmount(target: str) -> None:
    check(LIBC.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    check(LIBC.syscall(PIVOT_ROOT, os.fsencode(new), os.fsencode(old)), "pivot_root")


def lock_mounts(path: str, *, devices: bool = False) -> None:
    """Make the mount at `path`, and all below it, read-only, nosuid and (unless `devices`) nodev."""
    flags = MS_RDONLY | MS_NOSUID | (0 if devices else MS_NODEV)  # the MOUNT_ATTR_ values are the same here
    attributes = struct.pack("=QQQQ", flags, 0, 0, 0)
    check(LIBC.syscall(MOUNT_SETATTR, AT_FDCWD, os.fsencode(path), AT_RECURSIVE, attributes,
                        ctypes.c_size_t(len(attributes))), f"mount_setattr {path}")


def prctl(option: int, *arguments: int) -> None:
    padded = [*arguments, 0, 0, 0, 0][:4]
    check(LIBC.prctl(option, *padded), f"prctl({option})")


def drop_capabilities() -> None:
    """Empty the permitted, effective and inheritable sets (version 3 of the interface: 64 bits)."""
    header = struct.pack("=Ii", 0x20080522, 0)
    check(LIBC.syscall(CAPSET, header, bytes(24)), "capset")


def open_beneath(folder: int, path: str, flags: int, mode: int = 0) -> int:
    """Open `path` below the folder's descriptor, following no link at all (openat2).

    Raises:
        OSError: ELOOP or EXDEV where a link or `..` leads out.
    """
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode,
                      RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
    return check(LIBC.syscall(OPENAT2, folder, os.fsencode(path), how, ctypes.c_size_t(len(how))),
                  f"open {path}")
