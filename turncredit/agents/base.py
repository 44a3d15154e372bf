"""What an agent and an engine are: token ids in, token ids and their logprobs out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from turncredit.episode import Floats
from turncredit.errors import EngineError, UserError
from turncredit.toolcalls import ToolSpec


@dataclass(frozen=True, slots=True)
class Sampling:
    """The distribution that tokens are drawn from."""

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"sampling.temperature is {self.temperature}: it must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling.top_p is {self.top_p}: it must lie in (0, 1]")


@dataclass(frozen=True, slots=True)
class Request:
    """One turn to be sampled. Every draw comes from `seed`, whatever else is in the batch."""

    context: Sequence[int]  # [tokens]
    max_new_tokens: int
    seed: int
    episode: int | None = None  # whose turn it is: an engine may keep what it computed for the episode's next one
    tools: Sequence[ToolSpec] = ()  # for engines that are told of them by themselves; the context may describe them too


@dataclass(frozen=True, slots=True)
class Sample:
    """A sampled turn; a sampled stop token is its last one."""

    token_ids: list[int]  # [tokens]
    logprobs: Floats  # [tokens], under the policy at temperature 1
    sampling_logprobs: Floats  # [tokens], under the distribution that was sampled from
    ended: bool  # a stop token was sampled; False where the token limit came first
    policy_version: int | None = None  # the weights' that sampled it; None: those of the agent as it stands


class Engine(Protocol):
    """Samples turns. `policy_version` counts the weight updates that it has seen."""

    policy_version: int
    max_context: int

    def generate(self, requests: Sequence[Request], sampling: Sampling,
                 stop_ids: Sequence[int]) -> Sequence[Sample | EngineError]:
        """One sample a request, in their order; an EngineError stands for one that could not be had."""

    def forget(self) -> None:
        """Drop what is kept of episodes: none is running any more."""


@runtime_checkable
class Rests(Protocol):
    """An engine that can give its memory up for a while."""

    def rest(self) -> None:
        """Nobody samples until somebody does: a policy is trained on the same GPU, say."""


class Stream(Protocol):
    """An engine that takes requests in while it samples others."""

    @property
    def unfinished(self) -> int:
        """Requests whose samples are still to come."""

    def add(self, requests: Sequence[Request]) -> list[int]:
        """Take requests in; returns the numbers under which their samples will come."""

    def step(self) -> Sequence[tuple[int, Sample | EngineError]]:
        """Go on for a moment; (number, sample) of those that came to their end, or could not be had."""


class Actor(Protocol):
    """Acts in one episode."""

    async def act(self, request: Request) -> Sample:
        """Sample the next turn."""

    def end(self) -> None:
        """The episode is over."""


class Agent(Protocol):
    """Acts in many episodes at once."""

    @property
    def policy_version(self) -> int:
        """How many weight updates the policy has seen."""

    @property
    def max_context(self) -> int:
        """Tokens that it can read."""

    def start(self, env: Any) -> Actor:
        """Begin an episode in `env`, which only scripted agents look at."""
