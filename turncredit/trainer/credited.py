"""Episodes with what they earn: what an update consumes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from turncredit.episode import Episode, Segment

COUNTED = ("episodes without reward", "groups dropped", "groups without signal", "references shortened",
           "references that did not fit")


@dataclass(slots=True, eq=False)
class CreditedEpisode:
    """An episode, what it earns, and the prompt that its teacher reads (None: no teacher, weight 1)."""

    episode: Episode
    kind: str
    advantage: float
    teacher_prompt: Segment | None = None
    reference: str | None = None  # the id of the episode that its teacher has seen
    token_advantages: NDArray[np.float64] | None = None  # [generated], where they differ within the episode
    weights: NDArray[np.float32] | None = None  # [generated], where they are fixed before the first update
    distilled: bool = False  # it learns from its teacher's distribution, whatever its advantage

    @property
    def key(self) -> str:
        """The episode's id in its run."""
        return self.episode.id

    @property
    def has_signal(self) -> bool:
        """Whether an update can learn anything from it."""
        return bool(self.advantage) or self.distilled

    @property
    def token_credit(self) -> NDArray[np.float64]:
        """The advantage of each generated token, [generated]."""
        if self.token_advantages is not None:
            return self.token_advantages
        return np.full(self.episode.generated_count, self.advantage)

    @property
    def readings(self) -> list[list[Segment]]:
        """What the student reads, and what the teacher reads where there is one."""
        prompts = [self.episode.segments[0]] + ([] if self.teacher_prompt is None else [self.teacher_prompt])
        return [[prompt, *self.episode.response] for prompt in prompts]


@dataclass(slots=True)
class Credit:
    """A batch with its credit, and counts of what was left out and why."""

    episodes: list[CreditedEpisode] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(COUNTED, 0)))  # and a count a route

    @property
    def has_signal(self) -> bool:
        """Whether an update can learn anything from it."""
        return any(one.has_signal for one in self.episodes)
