"""Agents that follow a script: for demonstrations, checks, floors and ceilings. No model, the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from turncredit.agents.base import Request, Sample
from turncredit.agents.chat import ChatFormat

Script = Callable[[Any], str]


def expert(env: Any) -> str:
    """What the environment's own scripted solution would do."""
    return str(env.unwrapped.expert_action())


def silent(env: Any) -> str:
    """Nothing at all."""
    return ""


def echo(env: Any) -> str:
    """The last thing the environment said."""
    turns = env.unwrapped.turns
    return str(turns[-1].observation if turns else env.unwrapped.task.prompt)


SCRIPTS: dict[str, Script] = {"expert": expert, "silent": silent, "echo": echo}


class ScriptedAgent:
    """Writes what a script says, as tokens. Their logprobs are NaN: no policy sampled them."""

    policy_version = 0
    max_context = 1 << 20

    def __init__(self, script: Script, chat: ChatFormat) -> None:
        self.script, self.chat = script, chat

    def start(self, env: Any) -> _Reading:
        """Follow the script in this environment."""
        return _Reading(self, env)


class _Reading:
    def __init__(self, agent: ScriptedAgent, env: Any) -> None:
        self._agent, self._env = agent, env

    async def act(self, request: Request) -> Sample:
        ids = self._agent.chat.assistant(self._agent.script(self._env))
        unknown = np.full(len(ids), np.nan, np.float32)
        return Sample(ids, unknown, unknown, ended=True)

    def end(self) -> None:
        """Nothing is held."""
