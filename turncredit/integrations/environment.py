"""Any text environment as what TRL calls an environment: an object with `reset` and a method for each tool.

TRL shows a model the methods of the object's class, by their signatures and docstrings, and calls them when the model
writes a tool call. The methods here are made from the environment's own schemas; each call is an action.
"""

from __future__ import annotations

import inspect
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, Literal

from turncredit.config import EnvConfig
from turncredit.envs import make
from turncredit.episode import Verdict
from turncredit.errors import MissingExtra, UserError
from turncredit.rollout import verdict_of_reward
from turncredit.toolcalls import ToolCall, ToolSpec, tool_format
from turncredit.trainer.tasks import TaskSampler

JSON_TYPES = {"string": str, "integer": int, "number": float, "boolean": bool, "null": type(None), "object": dict,
              "array": list}
SAY = ToolSpec("say", "Say something to the environment: it answers with what follows.", {
    "type": "object", "required": ["text"],
    "properties": {"text": {"type": "string", "description": "what to say"}}})
TAKEN = ("reset", "get_reward")


def environment_factory(env_id: str, **arguments: Any) -> type[Environment]:
    """What TRL's `environment_factory` takes: a class, made without arguments for each episode that is sampled at once.

    Rows of the dataset need a `seed` (see `environment_dataset`), so that a group shares a task. An environment
    without tools gets one, `say`. Rewards come from `verdict_reward`.

    Args:
        env_id, arguments: as `turncredit.envs.make` takes them.
    Raises:
        UserError: an unknown environment or argument; a tool that no Python method can stand for.
    """
    env = make(env_id, **arguments)
    try:
        _, info = env.reset(seed=0)
    finally:
        env.close()
    specs = list(info.get("tools") or [])
    methods = {spec.name: _method(spec) for spec in specs or [SAY]}
    name = type(env.unwrapped).__name__
    return type(name, (Environment,), {**methods, "_env_id": env_id, "_arguments": dict(arguments),
                                       "_names": tuple(spec.name for spec in specs)})


class Environment:
    """An episode at a time. Names start with an underscore where TRL must not take them for tools."""

    _env_id: str
    _arguments: Mapping[str, Any]
    _names: tuple[str, ...]

    def __init__(self) -> None:
        self._env = make(self._env_id, **self._arguments)
        weakref.finalize(self, self._env.close)
        self._format = tool_format("json")
        self._over = True
        self._verdict: Verdict | None = None
        self._rewards = 0.0

    def reset(self, seed: int | None = None, task: int | None = None, **_row: Any) -> str:
        """Start the task of a row of the dataset; its first observation is put behind the row's prompt.

        Raises:
            UserError: the row has no seed, or the task has other tools than the environment's first.
        """
        if seed is None:
            raise UserError(f"the dataset of {self._env_id} has no column 'seed', so each episode of a group would get "
                            "another task: make it with environment_dataset()")
        options = None if task is None or task < 0 else {"task": int(task)}
        observation, info = self._env.reset(seed=int(seed), options=options)
        names = tuple(spec.name for spec in info.get("tools") or [])
        if names != self._names:
            raise UserError(f"{self._env_id}: the task of seed {seed} has the tools {list(names)} and the first one "
                            f"{list(self._names)}: TRL shows every prompt the same")
        self._over, self._verdict, self._rewards = False, None, 0.0
        return str(observation)

    def _act(self, action: str) -> str:
        """Take an action; what the environment answers."""
        if self._over:
            return "The episode is over: nothing more can be done."
        try:
            observation, reward, terminated, truncated, info = self._env.step(action)
        except Exception as error:  # the author's code: what cannot be judged has no reward
            self._over, self._verdict = True, Verdict.unknown(f"the environment raised {type(error).__name__}: {error}")
            raise
        self._rewards += float(reward)
        if terminated or truncated:
            self._over = True
            self._verdict = info["verdict"] if "verdict" in info else verdict_of_reward(self._rewards)
        return str(observation)

    def _judged(self, answer: str | None) -> Verdict:
        """What the episode is worth once the agent has said its last, which is an action too."""
        if answer is not None and not self._over:
            self._act(answer)
        if self._verdict is None:
            judge = getattr(self._env.unwrapped, "verdict", None)
            self._verdict = verdict_of_reward(self._rewards) if judge is None else judge()
        return self._verdict


def verdict_reward(completions: Sequence[Any], environments: Sequence[Environment], **_row: Any) -> list[float | None]:
    """A reward function for TRL: each episode's reward by its environment's verifier, None where it cannot judge.

    The last message, where it calls no tool, is the agent's answer.
    """
    rewards: list[float | None] = []
    for completion, environment in zip(completions, environments, strict=True):
        last = completion[-1] if completion else {}
        answered = last.get("role") == "assistant" and not last.get("tool_calls")
        try:
            rewards.append(environment._judged(str(last.get("content") or "") if answered else None).reward)
        except Exception:  # unknown is not zero; `_act` has written down why
            rewards.append(None)
    return rewards


def environment_dataset(env_id: str, tasks: int = 64, seed: int = 0, **arguments: Any) -> Any:
    """Rows for TRL's `train_dataset`: a prompt with the environment's instructions, and which task it is.

    Args:
        env_id, arguments: as `turncredit.envs.make` takes them.
        tasks: number of rows, each another task; those of a finite set in shuffled passes.
        seed: of the draws.
    Returns:
        A `datasets.Dataset` with the columns prompt, seed and task (-1 where the seed alone says it).
    """
    try:
        from datasets import Dataset
    except ImportError:
        raise MissingExtra("datasets", "trl") from None
    settings = EnvConfig(id=env_id, arguments=arguments)
    drawn = TaskSampler([settings], seed).tasks(0, tasks)
    env = make(env_id, **arguments)
    try:
        rows = []
        for ref in drawn:
            _, info = env.reset(seed=ref.seed, options=ref.reset_options)
            system = {"role": "system", "content": str(info.get("instructions", ""))}
            prompt = [*([system] if system["content"] else []), {"role": "user", "content": ""}]
            rows.append({"prompt": prompt, "seed": ref.seed, "task": -1 if ref.index is None else ref.index})
    finally:
        env.close()
    return Dataset.from_list(rows)


def _method(spec: ToolSpec) -> Callable[..., str]:
    """A method with that tool's name, signature and docstring, as transformers reads schemas off functions."""
    if not spec.name.isidentifier() or spec.name.startswith("_") or spec.name in TAKEN:
        raise UserError(f"the tool {spec.name!r} cannot be a method of an environment of TRL's: rename it")

    def method(self: Environment, **given: Any) -> str:
        return self._act(str(given.get("text", "")) if spec is SAY else
                         self._format.render(ToolCall(spec.name, given)))

    properties: Mapping[str, Any] = spec.parameters.get("properties", {})
    required = spec.parameters.get("required", [])
    annotations = {name: _type_of(schema) for name, schema in properties.items()}
    try:
        parameters = [inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, annotation=annotations[name],
            default=inspect.Parameter.empty if name in required else schema.get("default"))
            for name, schema in properties.items()]
    except ValueError as error:
        raise UserError(f"the tool {spec.name!r} cannot be a method: {error}") from None
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    described = "\n".join(f"    {name}: {' '.join(str(schema.get('description') or name).split())}"
                          for name, schema in properties.items())
    method.__name__ = method.__qualname__ = spec.name
    method.__doc__ = " ".join(spec.description.split()) + (f"\n\nArgs:\n{described}" if described else "")
    method.__annotations__ = {**annotations, "return": str}
    method.__signature__ = inspect.Signature([itself, *parameters])  # type: ignore[attr-defined]
    return method


def _type_of(schema: Mapping[str, Any]) -> Any:
    """A type hint that becomes that JSON schema again, but for what hints cannot say."""
    if schema.get("enum"):
        return Literal[tuple(schema["enum"])]
    if schema.get("anyOf"):
        return reduce(operator.or_, [_type_of(one) for one in schema["anyOf"]])
    kind = schema.get("type")
    if kind == "array" and schema.get("items"):
        return list[_type_of(schema["items"])]  # type: ignore[misc]  # a hint for others to read
    return JSON_TYPES.get(kind, dict) if isinstance(kind, str) else Any
