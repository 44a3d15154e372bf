"""What a score lies between: agents that know nothing below it, the environment's scripted solution above."""

from __future__ import annotations

from dataclasses import replace

from turncredit.agents.chat import ChatFormat
from turncredit.agents.scripted import SCRIPTS, ScriptedAgent
from turncredit.agents.trivial import TRIVIAL, TrivialAgent
from turncredit.config import EnvConfig
from turncredit.envs import has_solution, make
from turncredit.rollout import Budget, Rollout

FLOORS = ("silent", "random")
CEILING = "expert"
UNBOUNDED = 1 << 20  # tokens: a script is not cut off by a model's budget


def bound_rollout(name: str, chat: ChatFormat, budget: Budget, tool_calls: str) -> Rollout:
    """A rollout of "silent", "random", "expert" and the like, with the policy's chat format."""
    agent = ScriptedAgent(SCRIPTS[CEILING], chat) if name == CEILING else TrivialAgent(TRIVIAL[name], chat)
    free = replace(budget, turn_tokens=UNBOUNDED, episode_tokens=UNBOUNDED, context_tokens=UNBOUNDED)
    return Rollout(agent, chat, free, tool_calls)


def has_expert(env: EnvConfig) -> bool:
    """Whether the environment's author gave a scripted solution."""
    made = make(env.id, **env.make_arguments)
    found = has_solution(made)
    made.close()
    return found
