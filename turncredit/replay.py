"""An episode told again: its recorded tokens are acted out in its environment, by the code that ran the training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from turncredit.agents.base import Request, Sample
from turncredit.config import Config
from turncredit.episode import Episode, Segment
from turncredit.errors import EngineError
from turncredit.rollout import Rollout, TaskRef

if TYPE_CHECKING:
    from turncredit.trainer.policy import Policy


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as it was recorded."""

    what: str
    recorded: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.what}: recorded {_short(self.recorded)}, now {_short(self.now)}"


class RetellingAgent:
    """Acts as a recorded episode did, token by token.

    Args:
        episode: the recorded one.
        max_context: tokens that its policy could read.
    """

    def __init__(self, episode: Episode, max_context: int) -> None:
        self.episode, self.max_context = episode, max_context
        self.policy_version = episode.policy_version

    def start(self, env: Any) -> _Retelling:
        """Tell it in this environment."""
        return _Retelling(iter([s for s in self.episode.segments if s.generated]))


class _Retelling:
    def __init__(self, turns: Iterator[Segment]) -> None:
        self._turns = turns

    async def act(self, request: Request) -> Sample:
        turn = next(self._turns, None)
        if turn is None or turn.logprobs is None or turn.sampling_logprobs is None:
            raise EngineError("the recorded episode ends here, and its environment goes on")
        return Sample(turn.token_ids.tolist(), turn.logprobs, turn.sampling_logprobs, ended=True)

    def end(self) -> None:
        """Nothing is held."""


def retell(episode: Episode, task: TaskRef, policy: Policy, config: Config) -> Episode:
    """Run an episode's recorded tokens in its environment again, and have it judged again.

    Args:
        episode: the recorded one.
        task: what it was sampled on.
        policy: for its chat format and context; its weights are not asked.
        config: the run's.
    """
    from turncredit.trainer.loop import budget_of

    agent = RetellingAgent(episode, policy.max_context)
    rollout = Rollout(agent, policy.chat, budget_of(config.rollout), config.model.tool_calls)
    try:
        [group] = rollout.sample_groups([task], 1, 0, episode.step)
    finally:
        rollout.close()
    [again] = group.episodes
    again.group, again.sample = episode.group, episode.sample
    return again


def differences(recorded: Episode, now: Episode) -> list[Difference]:
    """What differs between an episode and its retelling: texts, tokens, rewards, the end and the verdict."""
    found = [Difference(name, getattr(recorded, name), getattr(now, name))
             for name in ("task_id", "split", "system", "prompt", "stop", "reward", "passed", "error")]
    for place, (before, after) in enumerate(zip(recorded.turns, now.turns)):
        found += [Difference(f"turn {place} {name}", getattr(before, name), getattr(after, name))
                  for name in ("action", "observation", "role", "valid", "reward")]
    found += [Difference("turns", len(recorded.turns), len(now.turns)),
              Difference("tokens", _tokens(recorded), _tokens(now)),
              Difference("verdict's reason", _reason(recorded), _reason(now))]
    return [one for one in found if not _same(one.recorded, one.now)]


def _tokens(episode: Episode) -> list[tuple[str, bool, list[int]]]:
    return [(s.role, s.generated, s.token_ids.tolist()) for s in episode.segments]


def _reason(episode: Episode) -> str | None:
    return None if episode.verdict is None else episode.verdict.reason


def _same(one: Any, other: Any) -> bool:
    both_nan = isinstance(one, float) and isinstance(other, float) and one != one and other != other
    return both_nan or bool(one == other)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:150]}… ({len(text)} characters)"

