"""Tools: the schema comes from signature and docstring; a mistake comes back as an observation and costs a turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import BaseModel

from turncredit.envs import Tool, ToolEnv, ToolError, tool
from turncredit.episode import Outcome, StopReason, Task, Verdict
from turncredit.errors import UserError
from turncredit.toolcalls import MalformedCall, ToolCall, tool_format


class AlwaysRight:
    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        return Verdict.of(True)


class Notes(ToolEnv):
    """Notes on a board."""

    instructions = "Keep notes."
    verifier = AlwaysRight()
    turn_limit = 4

    def make_task(self, rng: np.random.Generator) -> Task:
        return Task("Keep a note.")

    def start(self) -> None:
        self.notes: list[Any] = []

    @tool
    def note(self, text: str, kind: Literal["todo", "done"] = "todo", tags: list[int] | None = None) -> str:
        """Write
        a note.

        Args:
            text: what it says, at
                any length.
            kind (str): which kind.
            tags: numbers of

                tags: as many as you like.

        Raises:
            ToolError: it is empty.
        """
        if not text:
            raise ToolError("the note is empty")
        self.notes.append((text, kind, tags))
        return f"note {len(self.notes)}"

    @tool
    def count(self) -> str:
        """Count them."""
        return str(len(self.notes))


@pytest.fixture(params=["json", "plain"])
def notes(request: pytest.FixtureRequest) -> Notes:
    env = Notes(tool_format=request.param)
    env.reset(seed=0)
    return env


def test_the_schema_comes_from_the_signature_and_the_docstring() -> None:
    spec = Notes().tools[0]
    assert (spec.name, spec.description) == ("note", "Write a note.")
    assert spec.to_json()["function"]["parameters"] == {
        "type": "object", "additionalProperties": False, "required": ["text"],
        "properties": {
            "text": {"type": "string", "description": "what it says, at any length."},
            "kind": {"enum": ["todo", "done"], "type": "string", "default": "todo", "description": "which kind."},
            "tags": {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}], "default": None,
                     "description": "numbers of tags: as many as you like."}}}


def test_a_call_runs_the_method_with_typed_arguments(notes: Notes) -> None:
    for arguments in ({"text": "a b"}, {"text": "[1]", "kind": "done", "tags": [1, 2]}, {"text": "null", "tags": None}):
        observation, _, terminated, _, info = notes.step(notes.call("note", **arguments))
        assert (info["valid"], info["role"], terminated) == (True, "tool", False), observation
    assert notes.notes == [("a b", "todo", None), ("[1]", "done", [1, 2]), ("null", "todo", None)]


@pytest.mark.parametrize("name, arguments, sentence", [
    ("note", {}, "note: text: Field required"),
    ("nots", {}, "unknown tool 'nots'; did you mean 'note'? (known: note, count)"),
    ("note", {"text": "a", "kind": "later"}, "note: kind: Input should be 'todo' or 'done'"),
    ("note", {"text": "a", "colour": "red"}, "note: colour: Extra inputs are not permitted"),
    ("note", {"text": "a", "tags": [1, "x"]}, "note: tags.1: Input should be a valid integer"),
])
def test_a_malformed_call_comes_back_as_an_observation_and_costs_a_turn(
        notes: Notes, name: str, arguments: dict[str, Any], sentence: str) -> None:
    observation, reward, terminated, truncated, info = notes.step(notes.call(name, **arguments))
    assert observation.startswith(f"error: {sentence}")
    assert (reward, terminated, truncated, info["valid"], info["role"]) == (0.0, False, False, False, "tool")
    assert notes.notes == []
    assert len(notes.turns) == 1


def test_a_tool_s_own_refusal_is_well_formed(notes: Notes) -> None:
    observation, _, _, _, info = notes.step(notes.call("note", text=""))
    assert (observation, info["valid"]) == ("error: the note is empty", True)


def test_malformed_calls_alone_run_into_the_turn_limit(notes: Notes) -> None:
    for turn in range(4):
        _, _, terminated, truncated, info = notes.step("@ <tool_call>")
        assert (terminated, truncated) == (False, turn == 3)
        assert not info["valid"]
    assert info["stop"] is StopReason.TURN_LIMIT


def test_several_calls_in_one_turn_are_answered_in_order() -> None:
    env = Notes()
    env.reset(seed=0)
    assert env.step(env.call("note", text="a") + env.call("count"))[0] == "note 1\n1"


def test_the_calls_before_a_failing_one_are_answered_too() -> None:
    env = Notes()
    env.reset(seed=0)
    calls = env.call("note", text="a") + env.call("nope") + env.call("note", text="b")
    observation, _, _, _, info = env.step(calls)
    assert observation.startswith("note 1\nerror: unknown tool 'nope'")
    assert not info["valid"]
    assert len(env.notes) == 1, "what stands behind the failing call is not run"


def test_text_without_a_call_is_the_final_answer(notes: Notes) -> None:
    _, reward, terminated, _, info = notes.step("done")
    assert (reward, terminated, info["stop"]) == (1.0, True, StopReason.FINISHED)


def test_a_tool_that_breaks_is_the_environment_s_fault() -> None:
    class Broken(Notes):
        @tool
        def crash(self) -> str:
            """Crash."""
            raise KeyError("bug")

    env = Broken()
    env.reset(seed=0)
    with pytest.raises(KeyError):
        env.step(env.call("crash"))


def test_a_subclass_may_override_a_tool_without_marking_it_again() -> None:
    class Shouting(Notes):
        def count(self) -> str:
            """Count them loudly."""
            return f"{len(self.notes)}!"

    env = Shouting()
    env.reset(seed=0)
    assert [t.name for t in env.tools] == ["note", "count"]
    assert env.step(env.call("count"))[0] == "0!"
    assert env.tools[1].description == "Count them loudly."


@pytest.mark.filterwarnings("error")
def test_a_parameter_may_have_any_name() -> None:
    def dump(schema: str, json: int, copy: bool, model_dump: float = 0.5) -> str:
        """Dump."""
        return f"{schema} {json} {copy} {model_dump}"

    dumped = Tool.of(dump)
    assert list(dumped.spec.parameters["properties"]) == ["schema", "json", "copy", "model_dump"]
    assert dumped({"schema": "s", "json": "3", "copy": "true"}) == "s 3 True 0.5"


def test_words_of_a_plain_line_get_their_types_from_the_signature() -> None:
    def plan(days: list[int], shares: dict[str, float], limit: int | None, title: str) -> str:
        """Plan."""
        return repr((days, shares, limit, title))

    arguments = {"days": [1, 2], "shares": {"a": 0.5}, "limit": None, "title": "[1, 2]"}
    for form in (tool_format("plain"), tool_format("json")):
        read = form.parse(form.render(ToolCall("plan", arguments)))[0]
        assert Tool.of(plan)(read.arguments) == repr(([1, 2], {"a": 0.5}, None, "[1, 2]"))
    with pytest.raises(MalformedCall, match="days: Input should be a valid list"):
        Tool.of(plan)(arguments | {"days": "{}"})


def no_type(a) -> str:  # type: ignore[no-untyped-def]  # that is what is refused
    """Doc."""
    return str(a)


def no_docstring(a: int) -> str:
    return str(a)


def any_number(*numbers: int) -> str:
    """Doc."""
    return str(numbers)


@pytest.mark.parametrize("function, sentence", [
    (no_type, "tool no_type: the parameter a has no type: annotate it"),
    (no_docstring, "tool no_docstring: it has no docstring"),
    (any_number, r"tool any_number: the parameter \*numbers: .*cannot be given by name"),
])
def test_a_function_that_cannot_be_a_tool_is_refused(function: Callable[..., Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Tool.of(function)


class Colour(Enum):
    """An enumeration, as it stands in a signature."""

    RED = "red"
    BLUE = "blue"


class Place(BaseModel):
    """A nested argument."""

    street: str
    number: int = 1


class Slow(Notes):
    @tool
    async def fetch(self, at: Place, colours: list[Colour], note: str | None = None) -> str:
        """Fetch something."""
        await asyncio.sleep(0)
        return f"{at.street} {at.number} {[c.value for c in colours]} {note}"

    @tool(timeout_s=0.2)
    async def hang(self) -> str:
        """Never answer."""
        await asyncio.sleep(30)
        return "never"

    @tool(timeout_s=0.2)
    def sleep(self) -> str:
        """Never answer either."""
        time.sleep(5)
        return "never"

    @tool(timeout_s=5)
    def refuse(self) -> str:
        """Time out by itself, which is not our time-out."""
        raise TimeoutError("the server's own")


@pytest.fixture(params=["json", "plain"])
def slow(request: pytest.FixtureRequest) -> Slow:
    env = Slow(tool_format=request.param)
    env.reset(seed=0)
    return env


def test_async_tools_with_nested_enum_and_optional_arguments_are_called(slow: Slow) -> None:
    action = slow.call("fetch", at={"street": "Long Lane", "number": 3}, colours=["red", "blue"])
    assert slow.step(action)[0] == "Long Lane 3 ['red', 'blue'] None"
    observation, _, _, _, info = slow.step(slow.call("fetch", at={"street": "x"}, colours=["green"]))
    assert not info["valid"] and "colours.0" in observation
    schema = next(t for t in slow.tools if t.name == "fetch").parameters
    assert set(schema["$defs"]) == {"Colour", "Place"} and schema["required"] == ["at", "colours"]


def test_async_tools_are_called_from_a_running_event_loop_too(slow: Slow) -> None:
    async def inside() -> str:
        return slow.step(slow.call("fetch", at={"street": "x"}, colours=[]))[0]

    assert asyncio.run(inside()) == "x 1 [] None"


@pytest.mark.parametrize("name", ["hang", "sleep"])
def test_a_tool_that_takes_too_long_is_answered_by_an_error_and_the_episode_goes_on(slow: Slow, name: str) -> None:
    began = time.monotonic()
    observation, _, terminated, truncated, info = slow.step(slow.call(name))
    assert observation == f"error: {name} did not answer in 0.2 s"
    assert time.monotonic() - began < 3
    assert (terminated, truncated, info["valid"]) == (False, False, True)
    assert slow.step(slow.call("note", text="still here"))[0] == "note 1"


def test_a_tool_s_own_time_out_is_its_own(slow: Slow) -> None:
    with pytest.raises(TimeoutError, match="the server's own"):
        slow.step(slow.call("refuse"))


def test_a_time_out_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="timeout_s is 0"):
        tool(timeout_s=0)
