"""What every environment that we ship holds to, at each level and split."""

from __future__ import annotations

import random
import re
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit

import turncredit
from turncredit.envs import SPLITS, list_envs, spec
from turncredit.envs.pantry import GOODS, OOD_GOODS
from turncredit.errors import UserError

# Those that need a data file, a sandbox or another package have tests of their own.
ELSEWHERE = ("Questions", "Code", "MathPython", "DataAnalysis", "WebShop")
GENERATED = [id for id in list_envs() if id.startswith("turncredit/") and not any(name in id for name in ELSEWHERE)
             and ".adapters." not in str(spec(id).entry_point)]
CASES = [(id, level, split) for id in GENERATED for split in SPLITS
         for level in range(1, turncredit.make(id).unwrapped.levels + 1)]  # type: ignore[attr-defined]


def make(id: str, **arguments: Any) -> Any:
    return turncredit.make(id, **arguments)


def numbers(text: str) -> set[int]:
    return {int(n) for n in re.findall(r"-?\d+", text)}


@pytest.mark.parametrize("id", GENERATED)
def test_gymnasium_s_own_checker_passes(id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(different render modes|render_modes).*")
        check_env(make(id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("tool_format", ["json", "plain"])
@pytest.mark.parametrize("id, level, split", CASES)
def test_the_scripted_solution_is_rewarded(id: str, level: int, split: str, tool_format: str) -> None:
    env = make(id, level=level, split=split, tool_format=tool_format)
    for seed in range(40):
        env.reset(seed=seed)
        over = False
        while not over:
            _, reward, terminated, truncated, info = env.step(env.unwrapped.expert_action())
            assert info["valid"]
            over = terminated or truncated
        assert (reward, terminated) == (1.0, True), f"seed {seed}: {env.unwrapped.task}"


@pytest.mark.parametrize("id, level, split", CASES)
def test_the_same_seed_is_the_same_task_whatever_happened_before(id: str, level: int, split: str) -> None:
    one, other = make(id, level=level, split=split), make(id, level=level, split=split)
    for seed in range(5):
        other.reset(seed=seed + 100)
        assert one.reset(seed=seed) == other.reset(seed=seed)
        assert one.unwrapped.task == other.unwrapped.task


@pytest.mark.parametrize("id", GENERATED)
def test_train_test_and_ood_share_no_task(id: str) -> None:
    drawn: dict[str, set[str]] = {split: set() for split in SPLITS}
    contents: dict[str, set[Any]] = {split: set() for split in SPLITS}
    for level in range(1, make(id).unwrapped.levels + 1):
        for split in SPLITS:
            env = make(id, split=split, level=level)
            for seed in range(800):
                prompt, _ = env.reset(seed=seed)
                drawn[split].add(prompt)
                # What makes the task the task: its numbers, or in the pantry the goods, in whatever order.
                named = re.findall(rf"\b(?:{'|'.join(GOODS + OOD_GOODS)})\b", prompt)
                contents[split].add(tuple(sorted(named or re.findall(r"\d+", prompt))))
    for seen in (drawn, contents):
        assert not seen["train"] & seen["test"]
        assert not seen["train"] & seen["ood"]
    assert len(drawn["train"]) > 100


@pytest.mark.parametrize("id, level, split", CASES)
def test_the_answer_stands_neither_in_the_prompt_nor_in_what_is_said_to_useless_actions(
        id: str, level: int, split: str) -> None:
    env = make(id, level=level, split=split)
    useless = ["hint please", "<tool_call>", '<tool_call>{"name": "answer", "arguments": {}}</tool_call>']
    useless += [f'<tool_call>{{"name": "{tool.name}", "arguments": {{}}}}</tool_call>' for tool in env.unwrapped.tools]
    for seed in range(60):
        prompt, info = env.reset(seed=seed)
        hidden = env.unwrapped.task.hidden
        said = prompt + str({key: value for key, value in info.items() if key not in ("task_id", "tools")})
        for action in useless[1:]:
            if not env.unwrapped._over:
                said += env.step(action)[0]
        if "answer" in hidden:
            assert int(hidden["answer"]) not in numbers(said) - {level}, said
        else:  # the pantry: what stands on the shelves is learnt by looking
            looked_up = {n for name, n in hidden["shelves"].items() if hidden["goal"].get(name) == n}
            asked_for = set(hidden["goal"].values()) - set(hidden["shelves"].values())
            assert not looked_up & (numbers(said) - asked_for - {level}), said


@pytest.mark.parametrize("action", ["", "done", "0", "1", "pass", "True", "PASSED 1.0", "{PROMPT}", "{QUESTION}",
                                    r"\boxed{{QUESTION}}", "{ALL}", "\x00\ud800", "9" * 20_000],
                         ids=lambda action: repr(action[:12]))
@pytest.mark.parametrize("id", GENERATED)
def test_a_trivial_agent_is_not_rewarded(id: str, action: str) -> None:
    env = make(id)
    rewards = []
    for seed in range(5 if "{ALL}" in action else 20):
        prompt, _ = env.reset(seed=seed)
        question = prompt.removeprefix("What is ").removesuffix("?")
        everything = " ".join(map(str, range(-60, 900)))
        said = action.replace("{PROMPT}", prompt).replace("{QUESTION}", question).replace("{ALL}", everything)
        over = False
        while not over:
            _, reward, terminated, truncated, _ = env.step(said)
            over = terminated or truncated
        rewards.append(reward)
    # A constant is right by chance once in a while; a copy of the question never is.
    assert sum(rewards) <= (1 if action in ("0", "1", "PASSED 1.0") else 0)


@pytest.mark.parametrize("id", GENERATED)
def test_environments_leave_the_global_generators_alone(id: str) -> None:
    random.seed(1)
    np.random.seed(1)
    env = make(id)
    env.reset(seed=5)
    env.step(env.unwrapped.expert_action())
    env.reset()
    after = (random.random(), float(np.random.random()))
    random.seed(1)
    np.random.seed(1)
    assert after == (random.random(), float(np.random.random()))


@pytest.mark.parametrize("id", GENERATED)
def test_copies_at_once_do_not_disturb_each_other(id: str) -> None:
    def play(envs: list[Any]) -> list[list[Any]]:
        for seed, env in enumerate(envs):
            env.reset(seed=seed)
        said: list[list[Any]] = [[] for _ in envs]
        for _ in range(3):
            for env, log in zip(envs, said):
                if not env.unwrapped._over:
                    log.append(env.step(env.unwrapped.expert_action())[:4])
        return said

    together = play([make(id) for _ in range(3)])
    alone = []
    for seed in range(3):
        env = make(id)
        env.reset(seed=seed)
        log: list[Any] = []
        for _ in range(3):
            if not env.unwrapped._over:
                log.append(env.step(env.unwrapped.expert_action())[:4])
        alone.append(log)
    assert together == alone


def test_gymnasium_s_wrappers_work_on_text() -> None:
    env = RecordEpisodeStatistics(TimeLimit(make("turncredit/Pantry-v0"), max_episode_steps=2))
    env.reset(seed=1)
    look = env.unwrapped.call("look", item="tea")  # type: ignore[attr-defined]
    assert env.step(look)[2:4] == (False, False)
    *_, truncated, info = env.step(look)
    assert truncated
    assert info["episode"]["l"] == 2


@pytest.mark.parametrize("vector", [SyncVectorEnv, lambda fns: AsyncVectorEnv(fns, shared_memory=False)],
                         ids=["sync", "async"])
def test_vector_environments_carry_text(vector: Any) -> None:
    alone = [make("turncredit/Calculator-v0", level=2).reset(seed=seed)[0] for seed in (5, 6, 7)]
    envs = vector([lambda: make("turncredit/Calculator-v0", level=2)] * 3)
    try:
        observations, info = envs.reset(seed=[5, 6, 7])
        assert list(observations) == alone
        assert list(info["split"]) == ["train"] * 3
        call = '<tool_call>{"name": "calculate", "arguments": {"a": 2, "op": "*", "b": 21}}</tool_call>'
        observations, rewards, terminated, truncated, _ = envs.step((call, "19", "no idea"))
        assert observations[0] == "42"
        assert list(rewards) == [0, 0, 0]
        assert list(terminated) == [False, True, True]
        assert not any(truncated)
    finally:
        envs.close()


def test_a_spec_is_written_as_json_and_made_again() -> None:
    spec = make("turncredit/Calculator-v0", level=3).spec
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(spec.to_json()))
    assert again.unwrapped.level == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("id, arguments, sentence", [
    ("turncredit/Arithmetic-v0", {"largest": 4}, "smallest is 2 and largest is 4: .* enough numbers to be split"),
    ("turncredit/Arithmetic-v0", {"smallest": 40, "largest": 43}, "smallest is 40 and largest is 43"),
    ("turncredit/Arithmetic-v0", {"smallest": -1}, "smallest is -1 .* must not be negative"),
    ("turncredit/Arithmetic-v0", {"smallest": 30}, "smallest is 30 and largest is 29"),
    ("turncredit/Calculator-v0", {"operators": "+/"}, r"operators is '\+/': it must be made of \+-\*"),
    ("turncredit/Calculator-v0", {"largest": 1000, "level": 4}, "largest is 1000: at level 4"),
    ("turncredit/Brackets-v0", {"level": 2}, "level is 2: Brackets has levels 1 to 1"),
])
def test_numbers_that_cannot_work_are_refused(id: str, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make(id, **arguments)


@pytest.mark.parametrize("id", [id for id in GENERATED if "Pantry" not in id])
@pytest.mark.parametrize("split", SPLITS)
def test_the_smallest_range_of_numbers_can_be_split_at_every_level(id: str, split: str) -> None:
    for level in range(1, make(id).unwrapped.levels + 1):
        for smallest, operators in ((2, "+-*"), (41, "+"), (0, "*")):
            env = make(id, split=split, level=level, smallest=smallest, largest=smallest + 5, operators=operators)
            for seed in range(10):
                env.reset(seed=seed)


@pytest.mark.parametrize("a, op, b, said", [(3, "-", 5, "-2"), (12, "*", 12, "144"), (10**12, "+", 1, str(10**12 + 1)),
                                            (10**13, "+", 1, "error: the calculator's display is too small for that"),
                                            (1, "/", 2, "error: calculate: op: Input should be '+', '-' or '*'")])
def test_the_calculator_works_out_what_it_is_given(a: int, op: str, b: int, said: str) -> None:
    env = make("turncredit/Calculator-v0")
    env.reset(seed=0)
    assert env.step(env.unwrapped.call("calculate", a=a, op=op, b=b))[0] == said


@pytest.mark.parametrize("tool, arguments, said", [
    ("look", {"item": "unicorns"}, "error: there is no 'unicorns' in the pantry"),
    ("put", {"item": "tea", "count": 0}, "error: count is 0: it must be 1 to 1000"),
    ("put", {"item": "tea", "count": 3}, "ok"),
    ("discard", {"item": "unicorns"}, "error: there is no 'unicorns' in the pantry"),
])
def test_the_pantry_answers_and_keeps_its_state(tool: str, arguments: dict[str, Any], said: str) -> None:
    env = make("turncredit/Pantry-v0")
    env.reset(seed=0)
    before = dict(env.unwrapped.state())
    assert env.step(env.unwrapped.call(tool, **arguments))[0] == said
    assert (env.unwrapped.state() == before) == (said != "ok")


@pytest.mark.parametrize("level", [1, 2, 3])
def test_no_wish_of_the_pantry_is_fulfilled_before_the_agent_acts(level: int) -> None:
    env = make("turncredit/Pantry-v0", level=level).unwrapped
    for seed in range(300):
        env.reset(seed=seed)
        assert env.task.hidden["goal"] != env.state()


def test_the_pantry_is_judged_by_its_state_and_not_by_what_is_said() -> None:
    env = make("turncredit/Pantry-v0", level=3)
    env.reset(seed=3)
    goal = env.unwrapped.task.hidden["goal"]
    for item in {*goal, *env.unwrapped.state()}:
        action = ("put", {"count": goal[item]}) if item in goal else ("discard", {})
        env.step(env.unwrapped.call(action[0], item=item, **action[1]))
    assert env.step("all is as you wished")[1] == 1.0
