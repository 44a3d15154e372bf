"""Python as the candidate sees it: a program run as `__main__`, or a session's cells."""

from __future__ import annotations

import ast
import atexit
import builtins
import contextlib
import linecache
import os
import socket
import struct
import sys
import threading
import traceback
import types
from typing import Any, NoReturn

CHANNEL = 3  # the descriptor on which a session's interpreter takes cells and answers
CELL = struct.Struct("<Q")  # bytes of the source that follows
ANSWER = struct.Struct("<B?Q")  # exit code, is there a value, bytes of its repr


def run_source(source: bytes, main: types.ModuleType) -> NoReturn:
    """Run Python source as `main`, and end as the interpreter would."""
    code = _run(source, "main.py", main.__dict__)[0]
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # private, but what the interpreter itself calls
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def serve_cells(main: types.ModuleType) -> NoReturn:
    """Run a session's cells in one namespace until the slot hangs up."""
    namespace = main.__dict__
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


def fresh_main(folder: str) -> types.ModuleType:
    """Make the process look like an interpreter that just started; return its `__main__`."""
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    sys.path.insert(0, folder)
    sys.argv = ["main.py"]
    return main


def _run(source: bytes, name: str, namespace: dict[str, Any],
         want_value: bool = False) -> tuple[int, str | None]:
    """Run source in a namespace; return the exit code, and the last expression's repr where wanted."""
    try:
        # A lone surrogate is no Python source: the parser says so, as it does for a file.
        text = source.decode("utf-8", "surrogatepass")
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        if not want_value:
            exec(compile(text, name, "exec", dont_inherit=True), namespace)
            return 0, None
        tree = ast.parse(text, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
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
