"""The agent's interpreter: what its code does is an observation, what breaks beneath it is not, and nothing stays."""

from __future__ import annotations

import gc
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import turncredit
from turncredit.envs import python_session
from turncredit.errors import UserError
from turncredit.sandboxes.base import SandboxError
from turncredit.sandboxes.local import LocalSandbox


@pytest.fixture
def env(make: Any) -> Any:
    made = make("CodeRepl", cell_s=1.0, memory_mib=128, max_turns=20)
    made.reset(seed=0)
    return made


def run(env: Any, code: str) -> str:
    observation, _, terminated, truncated, info = env.step(env.call("run", code=code))
    assert (terminated, truncated, info["valid"], info["role"]) == (False, False, True, "tool")
    return str(observation)


def processes() -> set[int]:
    """Every process that descends from this one."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(folder.name))
    found, todo = set(), [os.getpid()]
    while todo:
        new = children.get(todo.pop(), [])
        found |= set(new)
        todo += new
    return found


def settled(count: int, patience_s: float = 10.0) -> int:
    """How many processes there are, once they are `count`, or patience is over."""
    end = time.monotonic() + patience_s
    while len(processes()) > count and time.monotonic() < end:
        time.sleep(0.05)
    return len(processes())


def test_an_exception_is_an_observation_with_its_traceback(env: Any) -> None:
    assert run(env, "def f():\n    return 1 / 0\nf()").endswith("ZeroDivisionError: division by zero")
    assert "SyntaxError" in run(env, "def")


@pytest.mark.parametrize("code, sentence", [
    ("while True: pass", "Stopped: it "),
    ("import time; time.sleep(60)", "Stopped: it ran longer than 1 s."),
    ("x = bytearray(1 << 30)\nx[:] = b'1' * (1 << 30)", "emory"),
])
def test_what_goes_over_a_limit_is_an_observation(env: Any, code: str, sentence: str) -> None:
    run(env, "kept = 5")
    observation = run(env, code)
    assert sentence in observation
    if "Stopped" in observation:
        assert "variables, imports and files that you made are gone" in observation
        assert "NameError" in run(env, "kept")
    assert run(env, "1 + 1") == "2"


def test_code_that_ends_its_interpreter_cannot_void_the_episode(env: Any) -> None:
    run(env, "import os")
    run(env, "os._exit(0)")
    assert run(env, "1 + 1").startswith("The interpreter had ended, and this was not run. A new interpreter")
    assert run(env, "1 + 1") == "2"
    assert env.step("no program")[1] == 0.0


def test_a_long_output_loses_its_middle(env: Any) -> None:
    observation = run(env, "print('a' * 3000 + 'b' * 3000)")
    assert observation.startswith("aaa")
    assert observation.endswith("bbb")
    assert "4000 characters left out" in observation
    assert len(observation) < 2100


def test_a_broken_sandbox_is_an_error_and_no_observation(env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(home: str, settings: object) -> None:
        raise SandboxError("the engine is gone")

    monkeypatch.setattr(python_session, "shared_sandbox", broken)
    with pytest.raises(SandboxError, match="the engine is gone"):
        env.step(env.call("run", code="1"))


@pytest.mark.parametrize("arguments, sentence", [
    ({"home": "lokal"}, "sandbox 'lokal' is unknown; did you mean 'local'"),
    ({"sandbox": {"slot": 2}}, "setting 'slot' is unknown to sandbox 'local'; did you mean 'slots'"),
    ({"cell_s": 0}, "limits.wall_s is 0: it must be a number above 0"),
])
def test_a_bad_sandbox_is_refused_at_the_start(make: Any, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make("CodeRepl", **arguments)


def test_a_judge_whose_sandbox_fails_gives_an_unknown_reward(env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise SandboxError("the engine is gone")

    monkeypatch.setattr(LocalSandbox, "run", broken)
    with pytest.raises(SandboxError, match="the engine is gone"):
        env.step(env.call("test", program="pass"))
    _, reward, terminated, _, info = env.step("def f(): pass")
    assert terminated
    assert math.isnan(reward)
    assert info["verdict"].reward is None


@pytest.mark.parametrize("ending", ["close", "reset", "verdict", "dropped"])
def test_nothing_stays_behind_an_episode(sandbox: None, ending: str) -> None:
    time.sleep(1.0)  # slots of earlier tests go, and fresh ones come up
    before = len(processes())
    env: Any = turncredit.make("turncredit/MathPython-v0", cell_s=2.0).unwrapped
    env.reset(seed=0)
    env.step(env.call("python", code="import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', "
                                     "'import time; time.sleep(60)'])\n1"))
    assert len(processes()) > before
    if ending == "verdict":
        env.step("0")
    elif ending == "dropped":
        del env
        gc.collect()
    else:
        getattr(env, ending)()
    assert settled(before) <= before


def test_many_environments_share_one_sandbox_from_many_threads(make: Any) -> None:
    envs = [make("MathPython", level=2) for _ in range(12)]
    rewards: list[float | None] = [None] * len(envs)

    def episode(number: int) -> None:
        env = envs[number]
        env.reset(seed=number)
        env.step(env.call("python", code=f"mine = {number}"))
        assert env.step(env.call("python", code="mine"))[0] == str(number)
        rewards[number] = env.step(str(env.task.hidden["answer"]))[1]

    threads = [threading.Thread(target=episode, args=(number,)) for number in range(len(envs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rewards == [1.0] * len(envs)
