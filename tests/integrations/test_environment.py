"""Our environments as objects with a method for each tool. That TRL's trainer takes them: test_trl.py."""

from __future__ import annotations

from typing import Any

import pytest

from turncredit.envs import Reply, Task, TextEnv, ToolEnv, make, register, tool
from turncredit.errors import UserError
from turncredit.integrations.environment import Environment, environment_factory, verdict_reward
from turncredit.verifiers import MathAnswer

CALCULATOR = "turncredit/Calculator-v0"


class Countdown(TextEnv):
    """Without tools: count down to 0."""

    instructions = "Count down."
    verifier = MathAnswer()

    def make_task(self, rng: Any) -> Task:
        return Task(f"from {rng.integers(2, 90)}", {"answer": "0"})

    def respond(self, action: str) -> Reply:
        return Reply("go on", done=action == "0", answer=action)


class Breaks(ToolEnv):
    """Its one tool does not work."""

    instructions = "Try."
    verifier = MathAnswer()

    def make_task(self, rng: Any) -> Task:
        return Task("try", {"answer": "0"})

    @tool
    def broken(self) -> str:
        """Raise."""
        raise RuntimeError("out of order")


register("tests/Countdown-v0", Countdown)
register("tests/Breaks-v0", Breaks)


def solved(environment: Environment, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of an episode that calls what the environment's own expert calls."""
    observation = environment.reset(**row)
    messages = [*row["prompt"][:-1], {"role": "user", "content": observation}]
    expert = environment._env.unwrapped
    while True:
        action = expert.expert_action()
        calls = expert.tool_format.parse(action)
        if not calls:
            return [*messages, {"role": "assistant", "content": action}]
        called = {"name": calls[0].name, "arguments": dict(calls[0].arguments)}
        messages.append({"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": called}]})
        messages.append({"role": "tool", "name": called["name"],
                         "content": getattr(environment, called["name"])(**called["arguments"])})


def test_methods_are_typed_functions_and_calls_are_actions() -> None:
    environment = environment_factory(CALCULATOR)()
    row = {"prompt": [{"role": "user", "content": ""}], "seed": 3}
    messages = solved(environment, row)
    assert [m["role"] for m in messages[:4]] == ["user", "assistant", "tool", "assistant"]
    assert verdict_reward([messages[-1:]], [environment]) == [1.0]
    environment.reset(seed=3)
    wrong = [{"role": "assistant", "content": "999999"}]
    assert verdict_reward([wrong], [environment]) == [0.0]


def test_one_seed_is_one_task_in_every_copy() -> None:
    factory = environment_factory(CALCULATOR, level=2)
    first = {factory().reset(seed=5) for _ in range(3)}
    assert len(first) == 1 and first != {factory().reset(seed=6)}


def test_an_environment_without_tools_is_spoken_to() -> None:
    environment = environment_factory("tests/Countdown-v0")()
    environment.reset(seed=1)
    assert environment.say(text="1") == "go on"
    environment.say(text="0")
    assert "over" in environment.say(text="0")
    assert verdict_reward([[{"role": "assistant", "content": "done"}]], [environment]) == [1.0]


def test_what_breaks_in_the_environment_has_no_reward() -> None:
    environment = environment_factory("tests/Breaks-v0")()
    environment.reset(seed=1)
    with pytest.raises(RuntimeError, match="out of order"):
        environment.broken()
    assert verdict_reward([[{"role": "assistant", "content": "0"}]], [environment]) == [None]


def test_a_row_without_a_seed_is_refused() -> None:
    with pytest.raises(UserError, match="no column 'seed'"):
        environment_factory(CALCULATOR)().reset(prompt=[])


@pytest.mark.parametrize("env_id", ["turncredit/Calculator-v0", "turncredit/Pantry-v0", "turncredit/DataAnalysis-v0"])
def test_models_are_shown_the_environments_own_schemas(env_id: str) -> None:
    schema = pytest.importorskip("transformers.utils.chat_template_utils").get_json_schema
    env = make(env_id)
    _, info = env.reset(seed=0)
    environment = environment_factory(env_id)()
    assert info["tools"]
    for spec in info["tools"]:
        shown = schema(getattr(environment, spec.name))["function"]
        assert shown["description"] == " ".join(spec.description.split())
        expected = {name: {k: v for k, v in p.items() if k in ("type", "enum")}
                    for name, p in spec.parameters.get("properties", {}).items()}
        assert {name: {k: v for k, v in p.items() if k in ("type", "enum")}
                for name, p in shown["parameters"]["properties"].items()} == expected
        assert shown["parameters"].get("required", []) == list(spec.parameters.get("required", []))
