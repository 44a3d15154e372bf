"""What runs on a node: one process that holds many environments, each call in a thread of its own."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium

from turncredit.daemon import in_daemon_thread
from turncredit.envs import load_plugins, make
from turncredit.envs.registry import register
from turncredit.errors import UserError

OURS = "turncredit."


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which environment, and how its agent writes tool calls; None where it does not care."""

    env_id: str
    arguments: Mapping[str, Any]
    tool_calls: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call returned, or the exception that it raised."""

    value: Any = None
    raised: Exception | None = None
    verifier_s: float = 0.0
    judges: bool = False  # whether the environment has a verdict of its own


@dataclass(frozen=True, slots=True)
class Registration:
    """An environment that this process knows, for a worker that may not: its entry point and arguments, pickled."""

    env_id: str
    pickled: bytes


def registrations(dumps: Any) -> list[Registration]:
    """Every environment that somebody registered in this process, but for those that come with a package.

    Args:
        dumps: pickles an entry point, which may be a class of the main program.
    """
    load_plugins()
    return [Registration(id, dumps((entry.entry_point, entry.kwargs))) for id, entry in gymnasium.registry.items()
            if not str(entry.entry_point).startswith((OURS, "gymnasium.", "shimmy."))]


class Worker:
    """Environments by number. A Ray actor with asynchronous methods: one that hangs holds up no other."""

    def __init__(self, known: Sequence[Registration]) -> None:
        self._envs: dict[int, gymnasium.Env[str, str]] = {}
        self._unknown: dict[str, str] = {}
        load_plugins()
        for one in known:
            if one.env_id in gymnasium.registry:  # its package is installed here
                continue
            try:
                entry_point, arguments = pickle.loads(one.pickled)
                register(one.env_id, entry_point, kwargs=arguments)
            except Exception as error:  # a module that is not on this node: told to whoever asks for it
                self._unknown[one.env_id] = f"{type(error).__name__}: {error}"

    async def alive(self) -> tuple[str, int]:
        """The id of the node that this runs on, and of the process."""
        import ray

        return str(ray.get_runtime_context().get_node_id()), os.getpid()

    async def try_out(self, wanted: Wanted) -> Answer:
        """Make an environment and close it."""
        return await _answered(lambda: self._made(wanted).close())

    async def reset(self, number: int, wanted: Wanted, seed: int | None, options: dict[str, Any] | None) -> Answer:
        """Start an episode in environment `number`, which is made where there is none."""

        def start() -> tuple[Any, Any]:
            env = self._envs.get(number)
            if env is None:
                env = self._envs[number] = self._made(wanted)
            return env.reset(seed=seed, options=options)

        return await self._told(number, start)

    async def step(self, number: int, action: str) -> Answer:
        """Take an action in environment `number`."""
        return await self._told(number, lambda: self._envs[number].step(action))

    async def verdict(self, number: int) -> Answer:
        """What its episode is worth as it stands."""
        return await self._told(number, lambda: self._envs[number].unwrapped.verdict())  # type: ignore[attr-defined]

    async def close(self, number: int | None = None) -> None:
        """Close environment `number`, or all of them."""
        numbers = list(self._envs) if number is None else [number]
        for env in [self._envs.pop(n) for n in numbers if n in self._envs]:
            await _answered(env.close)

    def _made(self, wanted: Wanted) -> gymnasium.Env[str, str]:
        if wanted.env_id in self._unknown:
            raise UserError(f"environment {wanted.env_id!r} could not be registered in a worker "
                            f"({self._unknown[wanted.env_id]}): install its module on every node, or send it with "
                            "cluster.runtime_env")
        env = make(wanted.env_id, **wanted.arguments)
        use_format = getattr(env.unwrapped, "use_tool_format", None)
        if use_format is not None and wanted.tool_calls is not None:
            use_format(wanted.tool_calls)
        return env

    async def _told(self, number: int, call: Any) -> Answer:
        answer = await _answered(call)
        inner = getattr(self._envs.get(number), "unwrapped", None)
        return Answer(answer.value, answer.raised, float(getattr(inner, "verifier_s", 0.0)), hasattr(inner, "verdict"))


async def _answered(call: Any) -> Answer:
    try:
        value = await in_daemon_thread(call)
        pickle.dumps(value)
        return Answer(value)
    except Exception as error:
        return Answer(raised=_portable(error))


def _portable(error: Exception) -> Exception:
    """The exception itself, where the other side can read it."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
