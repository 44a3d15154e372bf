"""AppWorld's day-to-day tasks over nine apps, through the environment server of its own package.

The package pins pydantic below 2, so it lives in a virtual environment of its own, and each copy of the environment
starts one server there. It listens on a socket file that its owner alone can reach, and ends with this process.
"""

from __future__ import annotations

import ast
import functools
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from turncredit.envs.text_env import Reply, TextEnv
from turncredit.episode import Outcome, Task, Verdict
from turncredit.errors import UserError, did_you_mean

SETS = {"train": "train", "test": "test_normal", "ood": "test_challenge"}
_HOW = ("AppWorld lives in an environment of its own: `python3.11 -m venv DIR`, `DIR/bin/pip install appworld`, "
        "`DIR/bin/appworld install`; then set python= or APPWORLD_PYTHON to DIR/bin/python")
_DATA = "get them with `appworld download data --root ROOT`, and set root= or APPWORLD_ROOT to that ROOT"
_SERVE = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
import uvicorn
from appworld.serve.environment import app
uvicorn.run(app, uds=sys.argv[1], log_level="warning")
"""
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_EXPERIMENT = "turncredit"
_START_S = 180.0
_LONGEST = 100_000  # characters of code


class PackageTests:
    """The package's own tests of the final state and the answer: all of them, as its task goal completion counts."""

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """Passes where every test does."""
        found = outcome.state["evaluation"]
        if found is None:
            return Verdict.unknown(f"AppWorld's evaluation failed: {outcome.state['error']}")
        failed = [one["requirement"] for one in found["failures"]]
        verdict = Verdict.of(bool(found["success"]), "; ".join(failed))
        return Verdict(verdict.reward, verdict.passed, verdict.reason,
                       {"tests": float(found["num_tests"]), "passed tests": float(len(found["passes"]))})


class AppWorld(TextEnv):
    """Do what a person asks by Python that calls the APIs of their apps: mail, music, notes, payments and so on.

    "train", "test" and "ood" are the package's sets train, test_normal and test_challenge, whose tasks need apps that
    training does not. Its scripted solutions exist for the sets train and dev. The agent's code runs in the server's
    process behind the package's own guard, which is no sandbox: keep strangers' models in a container.

    Args:
        root: the folder whose folder "data" holds AppWorld's data; the variable APPWORLD_ROOT where None.
        python: an interpreter that has the package; the variable APPWORLD_PYTHON where None.
        dataset: one of the package's sets in place of the split's, such as "dev".
        code_timeout_s: for one action's code, in whole seconds.
        shown: characters of what code prints that the agent sees.
    Raises:
        UserError: no such interpreter or data, with how to get them, or no such set.
    """

    instructions = (
        "You do what a person asks with the apps on their account. Write Python each turn, nothing else, or put it "
        "into a ```python block; what it prints is shown to you, and its variables stay. Call an app as "
        "apis.APP.API(...). print(apis.api_docs.show_app_descriptions()) lists the apps, "
        "apis.api_docs.show_api_descriptions(app_name=...) an app's APIs, apis.api_docs.show_api_doc(app_name=..., "
        "api_name=...) one API; apis.supervisor has the person's addresses, cards and passwords. At the end call "
        "apis.supervisor.complete_task(), with answer=... where a question was asked.")
    verifier = PackageTests()
    package = "appworld"
    turn_limit = 50

    def __init__(self, root: str | None = None, python: str | None = None, dataset: str | None = None,
                 code_timeout_s: int = 60, shown: int = 20_000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value in (("code_timeout_s", code_timeout_s), ("shown", shown)):
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} is {value!r}: it must be a whole number of at least 1")
        self._python = _interpreter(python or os.environ.get("APPWORLD_PYTHON", ""))
        self._root = _data_root(root or os.environ.get("APPWORLD_ROOT", ""))
        self._ids = _task_ids(self._root, dataset or SETS[self.split])
        self.num_tasks = len(self._ids)
        self._timeout_s, self._shown = code_timeout_s, shown
        self._server: _Server | None = None

    def make_task(self, rng: np.random.Generator) -> Task:
        """Any of the set's."""
        return self.task_at(int(rng.integers(len(self._ids))))

    def task_at(self, index: int) -> Task:
        """The package's task at `index` of the set."""
        id = self._ids[index]
        specs = json.loads((self._root / "data" / "tasks" / id / "specs.json").read_text())
        person = specs.get("supervisor") or specs["main_user"]
        prompt = (f"I am {person['first_name']} {person['last_name']} (mail {person['email']}, phone "
                  f"{person['phone_number']}). It is {specs['datetime'].replace('T', ' ')}.\n\n{specs['instruction']}")
        return Task(prompt, {"id": id}, self.split, self.level, f"{self.split}-{id}")

    def start(self) -> None:
        """The task's world in its first state."""
        if self._server is None:
            self._server = _Server(self._python, self._root)
        self._server.call("initialize", self.task.hidden["id"], _START_S, experiment_name=_EXPERIMENT,
                          timeout_seconds=self._timeout_s)

    def state(self) -> Mapping[str, Any]:
        """The package's evaluation of the world as it is, or why there is none."""
        try:
            if self._server is None:
                raise ServerError("there is no server")
            found = self._server.call("evaluate", self.task.hidden["id"], _START_S, suppress_errors=True)
        except ServerError as error:
            return {"evaluation": None, "error": str(error)}
        return {"evaluation": found, "error": ""}

    def respond(self, action: str) -> Reply:
        """Run the code, and end where it completed the task."""
        code = _code_of(action)
        if len(code) > _LONGEST:
            return Reply(f"Execution failed: the code has more than {_LONGEST} characters", valid=False)
        try:
            ast.parse(code)
        except SyntaxError:
            pass  # the package says what is wrong
        except (ValueError, MemoryError, RecursionError) as error:
            return Reply(f"Execution failed: {type(error).__name__}: {error}", valid=False)
        printed, done = self._executed(code)
        wrong = printed.startswith(("Execution failed. Traceback:\nSyntax error", "No code available"))
        if len(printed) > self._shown:
            printed = f"{printed[:self._shown]}\n… {len(printed) - self._shown} more characters"
        return Reply(printed, done=done, answer=action if done else None, valid=not wrong)

    @property
    def solvable(self) -> bool:
        """Where the data hold solutions: not of the test sets."""
        return all(self._solution(id) is not None for id in self._ids)

    def expert_action(self) -> str:
        """The package's solution, all at once.

        Raises:
            NotImplementedError: the data hold none, as of the test sets.
        """
        found = self._solution(self.task.hidden["id"])
        if found is None:
            raise NotImplementedError(f"AppWorld's data hold no solution of {self.task.hidden['id']}")
        return f"{found.read_text()}\nsolution(apis, requester)"

    def _solution(self, id: str) -> Path | None:
        truth = self._root / "data" / "tasks" / id / "ground_truth"
        files = (truth / name for name in ("compiled_solution.py", "solution.py"))
        return next((file for file in files if file.is_file()), None)

    def _executed(self, code: str) -> tuple[str, bool]:
        """What the code printed, and whether the task is completed."""
        assert self._server is not None
        id = self.task.hidden["id"]
        try:
            printed = self._server.call("execute", id, self._timeout_s + 60.0, code=code)
            return str(printed), bool(self._server.call("task_completed", id, 60.0))
        except ServerError:
            self.close()  # its guard may be left half on: the next episode has a new one
            raise

    def close(self) -> None:
        """End the server and remove its files."""
        if self._server is not None:
            self._server.close()
            self._server = None


class ServerError(RuntimeError):
    """The server ended, did not answer in time, or refused."""


class _Server:
    """The package's environment server, which holds one world, in a folder of its own with a link to the data."""

    def __init__(self, python: str, root: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="turncredit-appworld-")  # of mode 0700
        here = Path(self._folder.name)
        (here / "data").symlink_to(root / "data")
        self._socket, self._said = here / "socket", here / "said"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [python, "-c", _SERVE, str(self._socket)], cwd=here, stdin=subprocess.PIPE, stdout=said, stderr=said,
                env={**os.environ, "APPWORLD_ROOT": str(here)}, start_new_session=True)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        until = time.monotonic() + _START_S
        while not self._listens():
            if self._process.poll() is not None:
                raise UserError(f"AppWorld's server did not start: {self.last_words()}. {_HOW}")
            if time.monotonic() > until:
                raise ServerError(f"AppWorld's server did not start in {_START_S:g} s")
            time.sleep(0.05)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self._socket)) == 0

    def last_words(self) -> str:
        """The last line of what the server wrote."""
        lines = self._said.read_text(errors="replace").split("\n") if self._said.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")

    def call(self, method: str, task_id: str, timeout_s: float, **arguments: Any) -> Any:
        """What a method of the server gives for that task.

        Raises:
            ServerError: it refused, ended, or took longer.
        """
        connection = _Connection(str(self._socket), timeout_s)
        try:
            body = json.dumps({"task_id": task_id, **arguments})
            connection.request("POST", f"/{method}", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{method}: {type(error).__name__}: {error} ({self.last_words()})") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise ServerError(f"{method}: status {answer.status} ({self.last_words()})")
        return json.loads(text)["output"]

    def close(self) -> None:
        """End the process, and remove the folder."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._folder.cleanup()


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket file."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Open it."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _code_of(action: str) -> str:
    """The first code block, or all of it where there is none."""
    block = _FENCE.search(action)
    return (block.group(1) if block else action).encode(errors="replace").decode()


@functools.cache
def _interpreter(python: str) -> str:
    if not python:
        raise UserError(f"python is not given. {_HOW}")
    found = shutil.which(python)
    if found is None:
        raise UserError(f"python is {python!r}: there is no such program. {_HOW}")
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('appworld') is None)"
    if subprocess.run([found, "-c", probe], stdin=subprocess.DEVNULL, capture_output=True).returncode:
        raise UserError(f"python is {python!r}: the package appworld is not installed there. {_HOW}")
    return found


def _data_root(root: str) -> Path:
    if not root:
        raise UserError(f"root is not given: AppWorld's tasks are a download; {_DATA}")
    if not (Path(root) / "data" / "datasets").is_dir() or not (Path(root) / "data" / "tasks").is_dir():
        raise UserError(f"root is {root!r}: AppWorld's data are not in its folder 'data'; {_DATA}")
    return Path(root).resolve()


def _task_ids(root: Path, dataset: str) -> list[str]:
    folder = root / "data" / "datasets"
    if not (folder / f"{dataset}.txt").is_file():
        known = sorted(path.stem for path in folder.glob("*.txt"))
        raise UserError(f"dataset is {dataset!r}: AppWorld's data hold no such set{did_you_mean(dataset, known)} "
                        f"(known: {', '.join(known)})")
    lines = (folder / f"{dataset}.txt").read_text().splitlines()
    return [line.partition(":")[0].strip() for line in lines if line.strip()]
