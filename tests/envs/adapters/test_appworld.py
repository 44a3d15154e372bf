"""AppWorld's server in a process of its own: a stand-in in CI, and the package itself where APPWORLD_PYTHON names an
interpreter that has it. Both get tasks of ours, since AppWorld's own are a download."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import turncredit
from turncredit.envs.check import check
from turncredit.errors import UserError

HERE = Path(__file__).parent
ID = "turncredit/AppWorld-v0"
ANSWER = "apis.supervisor.complete_task(answer={!r})"
LOOK = "home = apis.supervisor.show_addresses()[0]\nprint(home['city'])"


def _data(python: str, root: Path, *options: str) -> Path:
    subprocess.run([python, str(HERE / "appworld_data.py"), str(root), *options], check=True, capture_output=True)
    return root


@pytest.fixture(scope="module", params=["stand-in", "package"])
def arguments(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of `make`: the interpreter and the data."""
    root = tmp_path_factory.mktemp("appworld")
    if request.param == "package":
        python = os.environ.get("APPWORLD_PYTHON", "")
        if not python:
            pytest.skip("set APPWORLD_PYTHON to an interpreter that has appworld, to test on the package itself")
        yield {"python": python, "root": str(_data(python, root, "--databases"))}
        return
    pytest.importorskip("starlette", reason="the stand-in needs starlette")
    pytest.importorskip("uvicorn", reason="the stand-in needs uvicorn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE / "appworld_standin"))
        yield {"python": sys.executable, "root": str(_data(sys.executable, root))}


@pytest.fixture
def make(arguments: dict[str, str]) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def build(**more: Any) -> Any:
        made.append(turncredit.make(ID, **(arguments | more)).unwrapped)
        return made[-1]

    yield build
    for env in made:
        env.close()


def test_an_episode_ends_where_the_code_completes_the_task_and_the_package_s_tests_judge_it(make: Any) -> None:
    env = make()
    prompt, info = env.reset(options={"task": 0})
    assert "I am Ada Number0" in prompt and "complete_task" in info["instructions"]
    assert env.step(LOOK)[0].strip() == "Arden"
    assert env.step("print(home['zip_code'])")[0].strip() == "12345"  # variables stay
    observation, reward, over, _, info = env.step("I know it.\n```python\n" + ANSWER.format("Arden") + "\n```")
    assert (observation, reward, over) == ("Execution successful.", 1.0, True)
    assert info["verdict"].details == {"tests": 2.0, "passed tests": 2.0}
    env.reset(options={"task": 1})
    assert "NameError" in env.step("print(home)")[0]  # and end with the episode
    assert env.step(ANSWER.format("Arden"))[1] == 0.0


def test_the_package_s_solution_is_rewarded_and_test_sets_have_none(make: Any) -> None:
    env = make()
    for index in range(env.num_tasks):
        env.reset(options={"task": index})
        assert env.step(env.expert_action())[1:3] == (1.0, True)
    held_out = make(split="test")
    held_out.reset(seed=0)
    with pytest.raises(NotImplementedError, match="no solution"):
        held_out.expert_action()


def test_splits_are_the_package_s_sets(make: Any) -> None:
    ids = {split: {make(split=split).task_at(i).hidden["id"] for i in range(n)}
           for split, n in (("train", 4), ("test", 3), ("ood", 3))}
    assert not ids["train"] & ids["test"] and not ids["ood"] & (ids["train"] | ids["test"])
    assert make(dataset="dev").num_tasks == 1


def test_whatever_an_agent_writes_is_survived_and_nothing_is_no_answer(make: Any) -> None:
    env = make(code_timeout_s=1, shown=200, max_turns=13)
    env.reset(seed=0)
    for code, said, valid in [("def f(", "Syntax error in line", False), ("", "No code available", False),
                              ("\x00", "Message: source code|null bytes", False), ("print('\ud800')", "?", True),
                              ("1/0", "ZeroDivisionError", True), ("raise SystemExit", "Execution failed", True),
                              ("open('/etc/passwd')", "not allowed", True), ("(" * 9000, "", False),
                              ("x" * 100_001, "more than", False),
                              ("while True: pass", "timed out after 1 seconds", True),
                              ("print('9' * 9000)", "more characters", True), ("x = 1", "successful", True)]:
        observation, _, over, _, info = env.step(code)
        assert any(part in observation for part in said.split("|")), (code[:20], observation)
        assert info["valid"] is valid and not over, code[:20]
    assert env.step("print('done')")[1] == 0.0


def test_a_server_that_dies_gives_no_verdict_and_the_next_episode_has_a_new_one(make: Any) -> None:
    env = make()
    env.reset(seed=0)
    env._server._process.kill()
    with pytest.raises(RuntimeError, match="execute"):
        env.step("x = 1")
    assert env.verdict().reward is None
    env.reset(options={"task": 0})
    assert env.step(env.expert_action())[1] == 1.0


def test_copies_have_worlds_of_their_own_and_leave_nothing_behind(make: Any) -> None:
    one, other = make(), make()
    one.reset(options={"task": 0})
    other.reset(options={"task": 1})
    assert [env.step(LOOK)[0].strip() for env in (one, other)] == ["Arden", "Brill"]
    kept = [(env._server._process, Path(env._server._folder.name)) for env in (one, other)]
    for env in (one, other):
        env.close()
    assert not any(folder.exists() for _, folder in kept) and all(process.poll() is not None for process, _ in kept)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_passes_the_contract(arguments: dict[str, str]) -> None:
    findings = check(ID, dict(arguments), quick=True, deadline_s=180.0)
    assert {f.row: f.detail for f in findings if f.verdict == "fail"} == {}


def test_what_is_missing_is_said_with_how_to_get_it(arguments: dict[str, str], tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APPWORLD_ROOT", raising=False)
    monkeypatch.delenv("APPWORLD_PYTHON", raising=False)
    for wrong, said in [({"root": str(tmp_path)}, "appworld download data"), ({"root": None}, "root is not given"),
                        ({"python": None}, "pip install appworld"), ({"python": "/nowhere"}, "no such program"),
                        ({"python": "/bin/true-python", "root": "x"}, "no such program"),
                        ({"dataset": "tran"}, "did you mean 'train'"), ({"code_timeout_s": 0}, "at least 1")]:
        with pytest.raises(UserError, match=said):
            turncredit.make(ID, **(arguments | wrong))
