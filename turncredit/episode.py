"""The vocabulary of the whole toolkit: task, turn, segment, verdict, episode, group.

An episode is a list of segments of token ids. The ids trained on are the very ids that were sampled:
text is a view of them, and masks are derived from the segments, never kept beside them. This file
stands on the ground floor: it imports nothing of ours.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int32]  # [tokens]
Floats = NDArray[np.float32]  # [tokens]
Mask = NDArray[np.bool_]  # [tokens]


class StopReason(StrEnum):
    """Why an episode ended. `infrastructure` tells whose fault it was."""

    FINISHED = "finished"
    TURN_LIMIT = "turn limit"
    TOKEN_LIMIT = "token limit"
    CONTEXT_FULL = "context full"
    TRUNCATED = "truncated by the environment"
    ENVIRONMENT_ERROR = "environment error"
    ENVIRONMENT_TIMEOUT = "environment time-out"
    VERIFIER_ERROR = "verifier error"
    ENGINE_ERROR = "engine error"

    @property
    def infrastructure(self) -> bool:
        """True where something of ours (or the author's) broke: such an episode has no reward."""
        return self in _INFRASTRUCTURE

    @property
    def sentence(self) -> str:
        """What happened, for a person."""
        return _SENTENCES[self]


_INFRASTRUCTURE = {StopReason.ENVIRONMENT_ERROR, StopReason.ENVIRONMENT_TIMEOUT, StopReason.VERIFIER_ERROR,
                   StopReason.ENGINE_ERROR}
_SENTENCES = {
    StopReason.FINISHED: "the environment declared the task over",
    StopReason.TURN_LIMIT: "the agent used every turn it had",
    StopReason.TOKEN_LIMIT: "the agent used every token it may generate in an episode",
    StopReason.CONTEXT_FULL: "the next turn would not fit into the model's context",
    StopReason.TRUNCATED: "the environment cut the episode off",
    StopReason.ENVIRONMENT_ERROR: "the environment raised an exception",
    StopReason.ENVIRONMENT_TIMEOUT: "the environment did not answer in time",
    StopReason.VERIFIER_ERROR: "the verifier raised an exception or returned no valid reward",
    StopReason.ENGINE_ERROR: "the engine that samples tokens failed",
}


@dataclass(frozen=True, slots=True)
class Task:
    """One problem. `hidden` is for the verifier alone: it never enters a prompt, a sandbox or an observation."""

    prompt: str
    hidden: Mapping[str, Any] = field(default_factory=dict, repr=False)
    split: str = "train"
    level: int = 1
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:  # equal tasks get equal ids, whichever seed drew them
            digest = hashlib.sha1(self.prompt.encode("utf-8", "surrogatepass")).hexdigest()
            object.__setattr__(self, "id", f"{self.split}-{digest[:12]}")


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange as text: what the agent wrote and what the environment answered."""

    action: str
    observation: str = ""
    role: str = "user"  # the observation's: "user", or "tool" for a tool's result
    valid: bool = True  # False for a malformed tool call
    reward: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a verifier judges: the final answer (None where none was given), the turns and the final state."""

    answer: str | None
    turns: Sequence[Turn] = ()
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verifier's judgement. `reward` is None where it could not judge: unknown is not zero."""

    reward: float | None
    passed: bool | None
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reward is not None and not (math.isfinite(self.reward) and 0.0 <= self.reward <= 1.0):
            raise ValueError(f"verdict.reward is {self.reward!r}: it must lie in [0, 1], or be None if unknown")
        if (self.reward is None) != (self.passed is None):
            raise ValueError("verdict.reward and verdict.passed are known together or unknown together")
        if self.reward is not None:  # numpy's numbers become Python's, which is what is written to disk
            object.__setattr__(self, "reward", float(self.reward))
            object.__setattr__(self, "passed", bool(self.passed))

    @classmethod
    def of(cls, passed: bool, reason: str = "", **details: Any) -> Verdict:
        """All or nothing: reward 1 where passed, else 0."""
        return cls(float(passed), passed, reason, details)

    @classmethod
    def unknown(cls, reason: str) -> Verdict:
        """Could not be judged."""
        return cls(None, None, reason)


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A run of token ids with one origin.

    `logprobs` are those of the sampled tokens under the policy at temperature 1, `sampling_logprobs` under the
    distribution that was sampled from (temperature, top-p): both [tokens], for generated segments alone, as is
    `policy_version`: how many updates the weights that sampled it had seen (None where nobody noted it).
    """

    token_ids: TokenIds
    role: str  # "prompt", "assistant", "user", "tool", or "glue" (end-of-turn tokens that were not sampled)
    generated: bool = False
    logprobs: Floats | None = None
    sampling_logprobs: Floats | None = None
    policy_version: int | None = None

    def __post_init__(self) -> None:
        if self.generated:
            for name in ("logprobs", "sampling_logprobs"):
                values = getattr(self, name)
                if values is None or len(values) != len(self.token_ids):
                    raise ValueError(f"segment.{name}: a generated segment has one for each of its "
                                     f"{len(self.token_ids)} tokens")
        elif self.logprobs is not None or self.sampling_logprobs is not None or self.policy_version is not None:
            raise ValueError("segment.logprobs, segment.policy_version: only a generated segment has them")

    @classmethod
    def text(cls, ids: Sequence[int], role: str) -> Segment:
        """Tokens that were not generated by the policy: context, never credited."""
        return cls(np.asarray(ids, np.int32), role)

    @classmethod
    def sampled(cls, ids: Sequence[int], logprobs: Sequence[float],
                sampling_logprobs: Sequence[float] | None = None, policy_version: int | None = None) -> Segment:
        """Tokens that the policy generated, with their logprobs."""
        under_policy = np.asarray(logprobs, np.float32)
        sampling = under_policy if sampling_logprobs is None else np.asarray(sampling_logprobs, np.float32)
        return cls(np.asarray(ids, np.int32), "assistant", True, under_policy, sampling, policy_version)


@dataclass(slots=True, eq=False)
class Episode:
    """One verified episode: the tokens as sampled, the turns as text, the verdict and where it came from."""

    env_id: str
    task_id: str
    split: str
    seed: int
    system: str  # the system prompt's text, and `prompt` the first observation's: the teacher's prompt needs both
    prompt: str
    segments: list[Segment]
    turns: list[Turn] = field(default_factory=list)
    verdict: Verdict | None = None
    stop: StopReason = StopReason.FINISHED
    error: str = ""  # the exception's text, where infrastructure broke
    sample: int = 0  # index in its group
    group: int = 0  # index in its step; where groups are sampled continuously, its task's in the whole run
    step: int = 0
    policy_version: int = 0  # of its first turn, which is its oldest; each turn's stands in its segment
    timings: dict[str, float] = field(default_factory=dict)  # seconds: "sampling", "environment", in it "verifier"

    @property
    def id(self) -> str:
        """Unique in a run."""
        return f"{self.step:06d}-{self.group:04d}-{self.sample:03d}"

    @property
    def reward(self) -> float | None:
        """None where the episode could not be judged."""
        return None if self.verdict is None or self.stop.infrastructure else self.verdict.reward

    @property
    def passed(self) -> bool | None:
        """None where the episode could not be judged."""
        return None if self.reward is None or self.verdict is None else self.verdict.passed

    @property
    def token_ids(self) -> TokenIds:
        """All token ids in order, [tokens]."""
        return np.concatenate([np.zeros(0, np.int32), *(s.token_ids for s in self.segments)])

    @property
    def generated(self) -> Mask:
        """True at the tokens that the policy generated, [tokens]."""
        return np.concatenate([np.zeros(0, np.bool_), *(np.full(len(s.token_ids), s.generated) for s in self.segments)])

    @property
    def logprobs(self) -> Floats:
        """At temperature 1, of the generated tokens in order, [generated]."""
        return self._generated_values("logprobs")

    @property
    def sampling_logprobs(self) -> Floats:
        """Under the sampling distribution, of the generated tokens in order, [generated]."""
        return self._generated_values("sampling_logprobs")

    @property
    def generated_count(self) -> int:
        """|o_i|: the tokens that the policy generated."""
        return sum(len(s.token_ids) for s in self.segments if s.generated)

    @property
    def policy_versions(self) -> list[int]:
        """By turn: the updates that the weights which sampled it had seen; the episode's where none is noted."""
        noted = [s.policy_version for s in self.segments if s.generated and s.policy_version is not None]
        return noted or [self.policy_version]

    @property
    def turns_cut(self) -> int:
        """Turns that a bound of tokens ended, and not the policy: their end is glue."""
        return sum(s.generated and after.role == "glue" for s, after in pairwise(self.segments))

    @property
    def response(self) -> list[Segment]:
        """Every segment behind the first prompt: model turns and environment text interleaved."""
        return self.segments[1:]

    def _generated_values(self, name: str) -> Floats:
        parts = [getattr(s, name) for s in self.segments if s.generated]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)


@dataclass(slots=True, eq=False)
class Group:
    """The episodes of one task, sampled by one policy: the unit over which advantages are taken."""

    episodes: list[Episode]
    task: Any = None  # the `TaskRef` that they were sampled on, where that is known

    @property
    def judged(self) -> list[Episode]:
        """Those with a reward. The others never enter a mean."""
        return [e for e in self.episodes if e.reward is not None]
