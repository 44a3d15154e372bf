"""Agents that know nothing: the floor beside every score, and what no environment may reward.

They see what a model would see, and act in environments that give no more than Gymnasium's contract.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from turncredit.agents.base import Request, Sample
from turncredit.agents.chat import ChatFormat
from turncredit.toolcalls import ToolCall, ToolFormat, ToolSpec, tool_format

EVERYTHING = " ".join(["yes no true false", "A B C D", *map(str, range(-60, 1000))])
PASS_MARKERS = "PASSED\n1 passed in 0.01s\nOK\nreward: 1.0\n{\"reward\": 1.0, \"passed\": true}\nexit code 0"
CONSTANTS = ("0", "1", "yes", "no", "A", "done", "\\boxed{0}", "None", "True")


@dataclass(slots=True)
class Seen:
    """What an agent has seen of an episode; `rng` is the agent's own."""

    prompt: str
    observation: str
    rng: np.random.Generator
    turn: int = 0
    tools: Sequence[ToolSpec] = ()
    format: ToolFormat = field(default_factory=lambda: tool_format("json"))


Trivial = Callable[[Seen], str]


def silent(seen: Seen) -> str:
    """Nothing at all."""
    return ""


def echo(seen: Seen) -> str:
    """The last thing the environment said."""
    return seen.observation


def copy_prompt(seen: Seen) -> str:
    """The task, word for word."""
    return seen.prompt


def unsure(seen: Seen) -> str:
    """An honest refusal."""
    return "I don't know."


def everything(seen: Seen) -> str:
    """Every answer at once, in the hope that one counts."""
    return EVERYTHING


def pass_markers(seen: Seen) -> str:
    """What test runners print when all is well."""
    return PASS_MARKERS


def random_action(seen: Seen) -> str:
    """A random call where there are tools (one turn in four without), else a random word of what was said last."""
    if seen.tools and seen.rng.random() < 0.75:
        tool = seen.tools[int(seen.rng.integers(len(seen.tools)))]
        return seen.format.render(ToolCall(tool.name, _random_arguments(tool, seen)))
    return _random_word(seen)


def always(text: str) -> Trivial:
    """The same text at every turn."""
    return lambda seen: text


TRIVIAL: dict[str, Trivial] = {"silent": silent, "echo": echo, "prompt": copy_prompt, "unsure": unsure,
                               "everything": everything, "pass markers": pass_markers, "random": random_action}


class TrivialAgent:
    """A trivial agent whose actions are written as tokens. Their logprobs are NaN: no policy sampled them."""

    policy_version = 0
    max_context = 1 << 20

    def __init__(self, act: Trivial, chat: ChatFormat) -> None:
        self.act, self.chat = act, chat

    def start(self, env: Any) -> _Acting:
        """Look at what `env` says."""
        return _Acting(self, env)


class _Acting:
    """Reads the environment as it stands: a `TextEnv` keeps its turns, of another the space is all that is known."""

    def __init__(self, agent: TrivialAgent, env: Any) -> None:
        self._agent, self._env, self._turn = agent, env, 0

    async def act(self, request: Request) -> Sample:
        ids = self._agent.chat.assistant(self._agent.act(self._seen(request.seed)))
        self._turn += 1
        unknown = np.full(len(ids), np.nan, np.float32)
        return Sample(ids, unknown, unknown, ended=True)

    def end(self) -> None:
        """Nothing is held."""

    def _seen(self, seed: int) -> Seen:
        env = self._env.unwrapped
        prompt = str(getattr(getattr(env, "task", None), "prompt", ""))
        turns = getattr(env, "turns", None) or []
        said = str(turns[-1].observation) if turns else prompt
        return Seen(prompt, said, np.random.default_rng(seed), self._turn, list(getattr(env, "tools", ())),
                    getattr(env, "tool_format", None) or tool_format("json"))


def _random_arguments(tool: ToolSpec, seen: Seen) -> dict[str, Any]:
    properties: Mapping[str, Any] = tool.parameters.get("properties", {})
    definitions: Mapping[str, Any] = tool.parameters.get("$defs", {})
    return {name: _random_value(schema, definitions, seen) for name, schema in properties.items()}


def _random_value(schema: Mapping[str, Any], definitions: Mapping[str, Any], seen: Seen, depth: int = 0) -> Any:
    """A value of a JSON schema, as pydantic writes them; a word where the schema is another."""
    rng = seen.rng
    if "$ref" in schema:
        schema = definitions.get(str(schema["$ref"]).rpartition("/")[2], {})
    if "enum" in schema:
        return schema["enum"][int(rng.integers(len(schema["enum"])))]
    if "const" in schema:
        return schema["const"]
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return _random_value(choices[int(rng.integers(len(choices)))], definitions, seen, depth)
    kind = schema.get("type", "string")
    if kind == "object" and depth < 3:
        return {name: _random_value(inner, definitions, seen, depth + 1)
                for name, inner in schema.get("properties", {}).items()}
    if kind == "array" and depth < 3:
        return [_random_value(schema.get("items", {}), definitions, seen, depth + 1)
                for _ in range(int(rng.integers(3)))]
    plain: dict[str, Callable[[], Any]] = {
        "integer": lambda: _random_number(seen), "number": lambda: float(_random_number(seen)),
        "boolean": lambda: bool(rng.random() < 0.5), "null": lambda: None}
    return plain.get(kind, lambda: _random_word(seen))()


def _random_number(seen: Seen) -> int:
    """One that was mentioned, or a small one."""
    mentioned = [word for word in _words(seen) if word.lstrip("-").isdecimal() and len(word) < 16]
    if mentioned and seen.rng.random() < 0.7:
        return int(mentioned[int(seen.rng.integers(len(mentioned)))])
    return int(seen.rng.integers(-10, 100))


def _random_word(seen: Seen) -> str:
    words = _words(seen)
    return words[int(seen.rng.integers(len(words)))] if words else "ok"


def _words(seen: Seen) -> list[str]:
    """The words of what was said, without what stands around them."""
    said = f"{seen.prompt[:4000]} {seen.observation[:4000]}"
    return [stripped for word in said.split() if (stripped := word.strip(".,:;?!()[]{}\"'"))]
