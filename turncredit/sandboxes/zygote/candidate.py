"""The candidate's process: give up every right, then run its code."""

from __future__ import annotations

import ast
import atexit
import builtins
import contextlib
import gc
import linecache
import os
import resource
import signal
import socket
import struct
import sys
import threading
import traceback
import types
from dataclasses import dataclass
from typing import Any, NoReturn

from . import landlock, root, seccomp, syscalls

OPEN_FILES = 256
STACK_BYTES = 64 << 20
CELL = struct.Struct("<Q")  # to a session's interpreter: bytes of the source that follows
ANSWER = struct.Struct("<B?Q")  # and back: exit code, is there a value, bytes of its repr
CHANNEL = 3  # the descriptor of a session's interpreter for these


@dataclass(frozen=True)
class Confinement:
    """What a slot's candidates are held by; made once for all of them."""

    uid: int | None  # None: the user's own, in a user namespace of the candidate's own
    landlock: int  # the kernel's version, 0 for none
    seccomp: bytes
    network: bool
    data_bytes: int  # writable memory that every fork of the zygote starts with


def confine(held: Confinement, limits: dict[str, Any], *, session: bool) -> None:
    """Give up every right for good, in the one order in which each step may still take the next.

    Raises:
        OSError: a step was refused. No code of the candidate may run then.
    """
    os.setsid()
    os.chdir(root.WORK)
    _limit_resources(held, limits, session=session)
    if held.uid is not None:
        os.setgroups([])
        os.setresgid(held.uid, held.uid, held.uid)
        os.setresuid(held.uid, held.uid, held.uid)  # from 0 to another: the kernel drops all capabilities
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # else its own /proc/self would be closed to it
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    if held.uid is None:
        enter_user_namespace()  # where its processes are counted apart from the user's others
        syscalls.drop_capabilities()
    resource.setrlimit(resource.RLIMIT_NPROC, (limits["processes"],) * 2)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    if held.landlock:
        landlock.restrict(held.landlock, ["/"], [root.SCRATCH, "/dev/null"], network=held.network)
    seccomp.install(held.seccomp)


def enter_user_namespace() -> None:
    """Move into a new user namespace in which this user keeps its number (or gets one that is not root's)."""
    uid, gid = os.getuid(), os.getgid()
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid or 1000} {uid} 1"),
                       ("gid_map", f"{gid or 1000} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _limit_resources(held: Confinement, limits: dict[str, Any], *, session: bool) -> None:
    cpu_s = int(-(-limits["cpu_s"] // 1))
    # The supervisor (or the cgroup) ends what uses too much; this bounds one process between its looks.
    memory = 2 * limits["memory_bytes"] + held.data_bytes
    for name, soft, hard in (
        ("DATA", memory, memory), ("FSIZE", limits["file_bytes"], limits["file_bytes"]),
        ("NOFILE", OPEN_FILES, OPEN_FILES), ("CORE", 0, 0), ("STACK", 8 << 20, STACK_BYTES),
        ("MEMLOCK", 64 << 10, 64 << 10), ("MSGQUEUE", 0, 0), ("SIGPENDING", 256, 256), ("RTPRIO", 0, 0),
    ):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}", -1), (soft, hard))
    if not session:  # a session's budget is a step's, and only the supervisor knows where one begins
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))


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
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode(errors="replace"))
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def run_source(source: bytes) -> NoReturn:
    """Run Python source as `__main__`, and end as the interpreter would."""
    main = _fresh_main()
    code = _run(source, "main.py", main.__dict__)[0]
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # private, but what the interpreter itself calls
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def serve_cells() -> NoReturn:
    """Run a session's cells in one namespace until the supervisor hangs up."""
    namespace = _fresh_main().__dict__
    with socket.socket(fileno=CHANNEL) as channel:
        number = 0
        while len(prefix := channel.recv(CELL.size, socket.MSG_WAITALL)) == CELL.size:
            source = channel.recv(CELL.unpack(prefix)[0], socket.MSG_WAITALL)
            number += 1
            code, value = _run(source, f"<cell {number}>", namespace, want_value=True)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):  # the cell closed or replaced it: its own loss
                    stream.flush()
            text = b"" if value is None else value.encode(errors="backslashreplace")
            channel.sendall(ANSWER.pack(code, value is not None, len(text)) + text)
    os._exit(0)


def _fresh_main() -> types.ModuleType:
    """Make the process look like an interpreter that just started: nothing of ours in reach by name."""
    for name in [name for name in sys.modules if name == "zygote" or name.startswith("zygote.")]:
        del sys.modules[name]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.enable()
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    sys.path.insert(0, root.WORK)
    sys.argv = ["main.py"]
    return main


def _run(source: bytes, name: str, namespace: dict[str, Any],
         want_value: bool = False) -> tuple[int, str | None]:
    """Run source in a namespace; return the exit code, and the last expression's repr where wanted."""
    try:
        # A lone surrogate is no Python source: compile() says so, as it does for a file.
        text = source.decode("utf-8", "surrogatepass")
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        tree = ast.parse(text, name)
        last = tree.body.pop() if want_value and tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec", dont_inherit=True), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), namespace)
            return 0, None if value is None else repr(value)
    except SystemExit as stop:
        return _exit_code(stop), None
    except BaseException as error:
        trace = error.__traceback__.tb_next if error.__traceback__ else None  # without this frame
        if sys.excepthook is sys.__excepthook__:  # which reads source lines from files alone
            traceback.print_exception(type(error), error.with_traceback(trace), trace)
        else:
            sys.excepthook(type(error), error, trace)
        return 1, None
    return 0, None


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return (stop.code or 0) & 0xFF
    print(stop.code, file=sys.stderr)
    return 1


def report(error: BaseException, status: int) -> NoReturn:
    """Tell the supervisor that the process never became a candidate."""
    os.write(status, "".join(traceback.format_exception(error)).encode(errors="replace")[-4000:])
    os._exit(1)
