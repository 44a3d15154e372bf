"""The HTTP methods of `appworld serve environment` that the adapter calls, over one app, "supervisor".

Bodies, answers and messages are as version 0.1.3 of the package gives them; test_appworld.py runs the same tests
against both.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import io
import json
import os
import signal
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

DATA = Path(os.environ["APPWORLD_ROOT"], "data", "tasks")
TESTS = (("assert answers match.", "no_op_fail"), ("assert that nothing else was changed.", "no_op_pass"))


class World:
    """A task's world: what the code defined, and whether it was completed with which answer."""

    def __init__(self, task_id: str, timeout_s: int) -> None:
        self.task_id, self.timeout_s = task_id, timeout_s
        self.answer: Any = "<<NOT_GIVEN>>"
        self.completed = False
        addresses = json.loads((DATA / task_id / "addresses.json").read_text())
        supervisor = SimpleNamespace(show_addresses=lambda: json.loads(json.dumps(addresses)),
                                     complete_task=self.complete)
        api_docs = SimpleNamespace(show_app_descriptions=list)
        self.names = {"apis": SimpleNamespace(supervisor=supervisor, api_docs=api_docs), "requester": None,
                      "print": printed, "__name__": "__main__"}

    def complete(self, answer: Any = None) -> dict[str, str]:
        """As the app's API."""
        self.answer, self.completed = answer, True
        return {"message": "Marked the active task complete."}

    def execute(self, code: str) -> str:
        """What the code prints, or how it fails."""
        for name in ("open", "os.system"):
            if f"{name}(" in code:
                full = name if "." in name else f"builtins.{name}"
                return f"Execution failed. Traceback:\nUsage of the following function is not allowed: {full}."
        code = code.strip()
        try:
            ast.parse(code)
        except SyntaxError as error:
            line = (error.text or "").rstrip()
            return f"Execution failed. Traceback:\nSyntax error in line:\n{line}\nMessage: {error.msg}"
        if not code:
            return "No code available to execute."
        out = io.StringIO()
        signal.signal(signal.SIGALRM, self.out_of_time)
        signal.alarm(self.timeout_s)
        try:
            with contextlib.redirect_stdout(out):
                exec(compile(code, "<python-input>", "exec"), self.names)
        except BaseException as error:
            place = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == "<python-input>"][-1]
            line = code.splitlines()[(place.lineno or 1) - 1].strip()
            return (f'Execution failed. Traceback:\n  File "<python-input>", line {place.lineno}, in {place.name}\n'
                    f"    {line}\n{type(error).__name__}: {error}")
        finally:
            signal.alarm(0)
        return out.getvalue() if out.getvalue().strip() else "Execution successful."

    def out_of_time(self, *_: Any) -> None:
        """As the package ends code that takes too long."""
        raise Exception(f"Execution timed out after {self.timeout_s} seconds.")

    def evaluate(self) -> dict[str, Any]:
        """The tests of tests/envs/adapters/appworld_data.py, in the form of the package's TestTracker."""
        gold = json.loads((DATA / self.task_id / "ground_truth" / "answer.json").read_text())
        met = (str(self.answer).strip().lower() == str(gold).lower(), True)
        passes = [{"requirement": text, "label": label} for ok, (text, label) in zip(met, TESTS) if ok]
        failures = [{"requirement": text, "trace": "", "label": label}
                    for ok, (text, label) in zip(met, TESTS) if not ok]
        return {"success": all(met), "difficulty": 1, "num_tests": 2, "passes": passes, "failures": failures}


def printed(*values: Any, **options: Any) -> None:
    """As the package's worlds print lists and dictionaries."""
    if len(values) == 1 and not options and isinstance(values[0], list | tuple | dict):
        values = (json.dumps(values[0], indent=1 if len(json.dumps(values[0])) >= 100 else None),)
    builtins.print(*values, **options)


world: World | None = None


def active(task_id: str) -> World:
    """The world, where it is of that task."""
    if world is None or world.task_id != task_id:
        raise ValueError(f"the active task is not {task_id}")
    return world


async def initialize(request: Request) -> JSONResponse:
    global world
    given = await request.json()
    world = World(given["task_id"], given["timeout_seconds"])
    specs = json.loads((DATA / world.task_id / "specs.json").read_text())
    return JSONResponse({"output": {"task_id": world.task_id} | {k: specs[k] for k in ("instruction", "supervisor",
                                                                                       "datetime")}})


async def execute(request: Request) -> JSONResponse:
    given = await request.json()
    return JSONResponse({"output": active(given["task_id"]).execute(given["code"])})


async def task_completed(request: Request) -> JSONResponse:
    return JSONResponse({"output": active((await request.json())["task_id"]).completed})


async def evaluate(request: Request) -> JSONResponse:
    return JSONResponse({"output": active((await request.json())["task_id"]).evaluate()})


app = Starlette(routes=[Route(f"/{method.__name__}", method, methods=["POST"])
                        for method in (initialize, execute, task_completed, evaluate)])
