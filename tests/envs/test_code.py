"""Generated programming tasks: solved by their references, by nothing else, and no test gives itself away."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env

from turncredit.envs import SPLITS
from turncredit.envs.programs import FUNCTIONS, SIMULATIONS
from turncredit.errors import UserError
from turncredit.sandboxes.docker import connect
from turncredit.verifiers.code import Call

CASES = [(split, level) for split in SPLITS for level in (1, 2, 3, 4)]


@pytest.mark.parametrize("id", ["Code", "CodeRepl"])
def test_gymnasium_s_own_checker_passes(make: Any, id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*render_modes.*")
        check_env(make(id), skip_render_check=True)


@pytest.mark.parametrize("split, level", CASES)
@pytest.mark.parametrize("id", ["Code", "CodeRepl"])
def test_the_reference_solution_is_rewarded(make: Any, play: Callable[..., float], id: str, split: str,
                                            level: int) -> None:
    env = make(id, split=split, level=level)
    assert [play(env, seed) for seed in range(6)] == [1.0] * 6


@pytest.mark.parametrize("split, level", CASES)
def test_the_answers_of_the_visible_tests_alone_are_not_enough(make: Any, split: str, level: int) -> None:
    env = make("Code", split=split, level=level)
    for seed in range(4):
        env.reset(seed=seed)
        visible = env.task.hidden["visible"]
        if isinstance(visible.tests[0], Call):
            known = {repr(tuple(t.args)): t.expected for t in visible.tests}
            program = f"def {visible.entry_point}(*args):\n    return {known!r}.get(repr(args))"
        else:
            program = f"import sys\nprint({ {t.stdin: t.expected for t in visible.tests}!r}.get(sys.stdin.read()))"
        for wrong in (program, "", "pass", "I do not know.", f"{program}\n    exit(0)"):
            env.reset(seed=seed)
            assert env.step(wrong)[1] == 0.0


@pytest.mark.parametrize("tool_format", ["json", "plain"])
def test_failing_visible_tests_show_what_was_expected_and_what_came(make: Any, tool_format: str) -> None:
    env = make("CodeRepl", tool_format=tool_format)
    env.reset(seed=0)
    visible = env.task.hidden["visible"]
    wrong = f"def {visible.entry_point}(*args):\n    return 987654"
    observation, _, over, _, info = env.step(env.call("test", program=wrong))
    assert (over, info["valid"]) == (False, True)
    assert observation.startswith("3 of 3 tests failed.")
    assert "should be" in observation
    assert "987654" in observation or "int" in observation
    assert env.step(env.call("test", program=env.task.hidden["solution"]))[0] == "All 3 tests passed."
    assert env.step(f"```python\n{env.task.hidden['solution']}```")[1] == 1.0


@pytest.mark.parametrize("home", ["local", "docker"])
def test_tests_edited_during_the_episode_judge_nothing(make: Any, home: str) -> None:
    if home == "docker":
        try:
            connect().close()
        except UserError as error:  # no engine, or no SDK
            pytest.skip(str(error))
    env = make("CodeRepl", home=home)
    env.reset(seed=0)
    name = env.task.hidden["visible"].entry_point
    edit = f"""
import builtins, gc, os
for path in ('tests.py', 'test_{name}.py', 'conftest.py', 'records', 'outcome', 'candidate.py'):
    open(path, 'w').write('def {name}(*args): return None')
builtins.{name} = lambda *args: None
for thing in gc.get_objects():
    if type(thing) is list and 'expected' in repr(thing)[:200]: thing.clear()
os.listdir()
"""
    assert "conftest.py" in env.step(env.call("run", code=edit))[0]
    wrong = f"def {name}(*args):\n    return 987654"
    assert env.step(env.call("test", program=wrong))[0].startswith("3 of 3 tests failed.")
    assert env.step(wrong)[1] == 0.0
    env.reset(seed=0)
    assert "conftest.py" in env.step(env.call("run", code=edit))[0]
    assert env.step(f"```python\n{env.task.hidden['solution']}```")[1] == 1.0  # the honest twin, behind the same edits


def test_the_interpreter_keeps_its_state_within_an_episode_and_not_beyond(make: Any) -> None:
    env = make("CodeRepl")
    env.reset(seed=0)
    assert env.step(env.call("run", code="x = 6 * 7"))[0] == "(no output)"
    assert env.step(env.call("run", code="print('hm')\nx"))[0] == "hm\n42"
    env.reset(seed=0)
    assert env.step(env.call("run", code="x"))[0].endswith("NameError: name 'x' is not defined")


@pytest.mark.parametrize("split, level", CASES)
def test_hidden_tests_stand_neither_in_the_prompt_nor_in_observations_nor_in_files(make: Any, split: str,
                                                                                   level: int) -> None:
    env = make("CodeRepl", split=split, level=level)
    for seed in range(4):
        prompt, info = env.reset(seed=seed)
        tests = env.task.hidden["tests"].tests
        look = "import os; print(list(os.walk('.')), dict(os.environ), [n for n in globals()])"
        said = prompt + str(info) + env.step(env.call("run", code=look))[0]
        entry = env.task.hidden["tests"].entry_point or "solve"
        said += env.step(env.call("test", program=f"def {entry}(*args):\n    raise KeyError"))[0]
        said += str(env.step("def nothing(): pass")[4]["verdict"])
        for test in tests:
            given = ", ".join(map(repr, test.args)) if isinstance(test, Call) else test.stdin
            asked = f"({given})" if isinstance(test, Call) else f"input:\n{given}output"
            assert asked not in said
            assert given not in said or len(given) < 8, given
        assert all(test.hidden for test in tests)


def test_train_and_test_have_no_template_and_no_composition_in_common(make: Any) -> None:
    seen: dict[str, set[Any]] = {split: set() for split in SPLITS}
    for split, level in CASES:
        env = make("Code", split=split, level=level)
        for seed in range(30):
            env.reset(seed=seed)
            hidden = env.task.hidden
            seen[split].add((hidden["template"], tuple(sorted(hidden["parameters"].get("steps", ())))))
    assert not seen["train"] & seen["test"]
    assert not (seen["train"] | seen["test"]) & seen["ood"]
    assert {name for name, _ in seen["train"] | seen["test"]} == {t.name for t in FUNCTIONS} | {"transform"}
    assert {name for name, _ in seen["ood"]} == {t.name for t in SIMULATIONS}
    assert len({t.name for t in (*FUNCTIONS, *SIMULATIONS)}) == len(FUNCTIONS) + len(SIMULATIONS) == 32


@pytest.mark.parametrize("id", ["Code", "CodeRepl"])
def test_the_same_seed_is_the_same_episode(make: Any, id: str) -> None:
    one, other = make(id, level=2), make(id, level=2)
    for seed in range(3):
        other.reset(seed=seed + 50)
        assert one.reset(seed=seed) == other.reset(seed=seed)
        assert one.task == other.task
        for env in (one, other):
            env.said = []
            while not env._over:
                env.said.append(env.step(env.expert_action())[:4])
        assert one.said == other.said


def test_every_prompt_is_free_of_unfilled_parameters(make: Any) -> None:
    for split, level in CASES:
        env = make("Code", split=split, level=level)
        for seed in range(20):
            prompt, _ = env.reset(seed=seed)
            assert not re.search(r"\$\w", prompt), prompt


def test_a_fraction_of_the_tests_is_rewarded_where_asked_for(make: Any) -> None:
    env = make("Code", fraction=True)
    env.reset(seed=0)
    tests = env.task.hidden["tests"]
    half = {repr(tuple(t.args)): t.expected for t in tests.tests[:6]}
    reward = env.step(f"def {tests.entry_point}(*args):\n    return {half!r}.get(repr(args))")[1]
    assert reward == 0.5
