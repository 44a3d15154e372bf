"""The candidate's process: give up every right, wait for the word, then be the program."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.signal itself copies 60 pages, for its enums
import contextlib
import gc
import marshal
import os
import resource
import signal
import struct
import traceback
import types
from dataclasses import dataclass
from typing import Any, NoReturn

from . import interpreter, landlock, root, seccomp, syscalls

OPEN_FILES = 256
STACK_BYTES = 64 << 20
LENGTH = struct.Struct("<Q")  # bytes of the request that follows on `word`
CHUNK = 1 << 18  # bytes read at once


@dataclass(frozen=True)
class Confinement:
    """What a slot's candidates are held by; made once for all of them."""

    uid: int | None  # None: the user's own, in a user namespace of the candidate's own
    landlock: int | None  # the descriptor of its policy
    seccomp: bytes | None  # its filter; None where the slot's own is inherited
    data_bytes: int  # writable memory that every fork of the slot starts with


def live(held: Confinement, main: types.ModuleType, word: int, status: int) -> NoReturn:
    """Be confined, take the request from the socket `word`, and become its program.

    What goes wrong before that is written to `status`, which the program never gets: it can't claim that
    the sandbox failed.
    """
    try:
        confine(held)
        length = _read(word, LENGTH.size)
        if not length:
            os._exit(0)  # the slot ends
        request = marshal.loads(_read(word, *LENGTH.unpack(length)))
        limit_resources(request["limits"], held.data_bytes, session=request["op"] == "session")
        gc.enable()
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        if request["op"] == "run":
            code_length, _, *others = request["blobs"]
            code, argv, paths, *contents = [_read(word, length) for length in (code_length, *others)]
            if contents:
                write_files(dict(zip(_words(paths), contents)))
        else:
            os.dup2(word, interpreter.CHANNEL, inheritable=False)
    except MemoryError:  # the request itself is too much for its limits
        os.write(2, b"MemoryError\n")
        os._exit(1)
    except BaseException as error:
        os.write(status, "".join(traceback.format_exception(error)).encode(errors="replace")[-4000:])
        os._exit(1)
    if request["op"] == "session":
        os.closerange(interpreter.CHANNEL + 1, OPEN_FILES)
        interpreter.serve_cells(main)
    os.closerange(3, OPEN_FILES)
    if argv:
        run_program(_words(argv))
    interpreter.run_source(code, main)


def _read(word: int, length: int) -> bytes:
    """Return so many bytes, fewer where the slot ended."""
    data = os.read(word, min(length, CHUNK)) if length else b""
    if len(data) < length:
        parts, missing = [data], length - len(data)
        while missing and (data := os.read(word, min(missing, CHUNK))):
            parts.append(data)
            missing -= len(data)
        data = b"".join(parts)
    return data


def _words(joined: bytes) -> list[str]:
    return [os.fsdecode(word) for word in joined.split(b"\0")] if joined else []


def confine(held: Confinement) -> None:
    """Give up every right for good, in the one order in which each step may still take the next.

    Raises:
        OSError: a step was refused. No code of the candidate may run then.
    """
    os.setpgid(0, 0)  # a session of its own would be a scheduling group of its own too, made and unmade each time
    os.chdir(root.WORK)
    if held.uid is not None:
        os.setgroups([])
        os.setresgid(held.uid, held.uid, held.uid)
        os.setresuid(held.uid, held.uid, held.uid)  # from 0 to another: the kernel drops all capabilities
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # else its own /proc/self would be closed to it
    syscalls.write_file("/proc/self/oom_score_adj", "1000")  # the kernel takes it before the slot
    if held.uid is None:
        enter_user_namespace()  # where its processes are counted apart from the user's others
        syscalls.drop_capabilities()
    if held.landlock is not None:
        landlock.restrict(held.landlock)
    if held.seccomp is not None:
        seccomp.install(held.seccomp)


def enter_user_namespace() -> None:
    """Move into a new user namespace in which this user keeps its number (or gets one that is not root's)."""
    uid, gid = os.getuid(), os.getgid()
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid or 1000} {uid} 1"),
                       ("gid_map", f"{gid or 1000} {gid} 1")):
        syscalls.write_file(f"/proc/self/{name}", text)


def limit_resources(limits: dict[str, Any], data_bytes: int, *, session: bool) -> None:
    """Set the process's own limits, soft and hard, below what the slot watches and the cgroup counts."""
    # CORE is 1, because a core that goes to a program of the machine's is stopped by that and not by 0.
    memory = 2 * limits["memory_bytes"] + data_bytes  # for one process, between two looks of the slot
    cpu_s = int(-(-limits["cpu_s"] // 1))
    for name, soft, hard in (
        ("NPROC", limits["processes"], limits["processes"]), ("DATA", memory, memory),
        ("FSIZE", limits["file_bytes"], limits["file_bytes"]), ("NOFILE", OPEN_FILES, OPEN_FILES),
        ("STACK", 8 << 20, STACK_BYTES), ("CORE", 1, 1), ("MEMLOCK", 1 << 16, 1 << 16), ("MSGQUEUE", 0, 0),
        ("SIGPENDING", 256, 256), ("RTPRIO", 0, 0),
    ):
        resource.setrlimit(RESOURCES[name], (soft, hard))
    if not session:  # a session's budget is a cell's, and only the slot knows when one begins
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))


# Python names all of them but two, whose numbers are Linux's on every architecture.
RESOURCES = {name.removeprefix("RLIMIT_"): getattr(resource, name) for name in dir(resource)
             if name.startswith("RLIMIT_")} | {"SIGPENDING": 11, "RTPRIO": 14}


def write_files(files: dict[str, bytes]) -> None:
    """Write the request's files into the working folder, as the candidate's user."""
    for path, data in files.items():
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)


def run_program(argv: list[str]) -> NoReturn:
    """Become the program; as in a shell, 127 says that there is none and 126 that it can't be run."""
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, programs expect them
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.write(2, f"{argv[0]}: {error.strerror}\n".encode(errors="replace"))
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
