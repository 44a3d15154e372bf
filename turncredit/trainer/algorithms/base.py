"""What an algorithm is: a few hooks, no knowledge of models. The trainer knows none by name.

A new one is a class with `@register_algorithm("its-name")` above it, here or in another package (docs/algorithms.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from turncredit.errors import UserError, did_you_mean
from turncredit.trainer.credit import overlong_penalty
from turncredit.trainer.head import Measures, TokenScores
from turncredit.trainer.loss import reference_penalty

Floats = NDArray[np.floating[Any]]  # [generated]
PLUGINS = "turncredit.algorithms"  # the entry-point group in which other packages name theirs
OWN_PROMPT = -1  # in place of a reference: the teacher reads what the student read
Teacher = Literal["current", "averaged", "start", "external"]
DEMONSTRATION = -2  # the teacher sees the environment's scripted solution of the task


@dataclass(frozen=True, slots=True)
class GroupCredit:
    """What a group earns. All lists have one place for each of the group's G judged episodes."""

    kind: str  # the route, for the metrics
    advantages: NDArray[np.float64]  # [G]
    # [G]: whose trajectory the teacher sees; OWN_PROMPT for nobody's, DEMONSTRATION for the environment's; None for no
    # teacher and weight 1
    references: Sequence[int | None]
    # Where the advantage itself depends on the token weights: from each episode's weights, [generated], to [G].
    # None stands for an episode without a teacher: it had none to begin with, or its reference did not fit.
    advantages_from_weights: Callable[[list[NDArray[np.float32] | None]], NDArray[np.float64]] | None = None
    # [G]: whose teacher has also read what the environment last said in the episode itself; a teacher where it has none
    feedback: Sequence[bool] | None = None


class Algorithm(BaseModel):
    """The settings that every algorithm has, and its hooks. Only `score_group` has to be written."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    distils: ClassVar[bool] = False  # `token_loss` holds the teacher's distribution against the student's
    scores_batch: ClassVar[bool] = False  # it has a `score_batch`

    clip_low: float = Field(0.2, gt=0, le=1)
    clip_high: float = Field(0.2, gt=0)
    normalize: Literal["sequence", "token", "constant"] = "sequence"
    constant_length: int = Field(1024, ge=1)  # what "constant" divides by beside the number of episodes
    ratio: Literal["token", "sequence"] = "token"
    surrogate: Literal["clip", "cispo"] = "clip"
    divergence: Literal["kl", "reverse_kl", "js"] = "kl"  # what the weights of tokens are made of
    entropy_bonus: float = Field(0.0, ge=0)
    reference_kl: float = Field(0.0, ge=0)  # times the KL to the policy that the run started from
    overlong_limit: int | None = Field(None, ge=1)  # generated tokens from which the whole penalty is due
    overlong_buffer: int = Field(64, ge=1)  # the penalty grows over so many tokens below the limit

    # The hooks, in the order in which they are called.

    def shape_rewards(self, rewards: Sequence[float], lengths: Sequence[int]) -> list[float]:
        """Rewards with the soft overlong penalty, where it is on (DAPO, arXiv 2503.14476, equation 13), [G]."""
        if self.overlong_limit is None:
            return list(rewards)
        return [r + overlong_penalty(n, self.overlong_limit, self.overlong_buffer) for r, n in zip(rewards, lengths)]

    def score_group(self, rewards: Sequence[float], verified: Sequence[bool], lengths: Sequence[int],
                    seed: int) -> GroupCredit:
        """An advantage for each episode, and whose trajectory its teacher sees.

        Args:
            rewards: [G], of the judged episodes of one task.
            verified: [G], which of them are correct.
            lengths: [G], their generated tokens.
            seed: of the random draws.
        """
        raise NotImplementedError

    def score_batch(self, advantages: Sequence[float], logprobs: Sequence[Floats],
                    start: Sequence[Floats] | None) -> list[NDArray[np.float64]]:
        """An advantage for each token, from the whole batch; asked where `scores_batch` is set.

        Args:
            advantages: [episodes], what `score_group` gave.
            logprobs: [generated] for each episode, under the policy that sampled it.
            start: the same under the policy that the run started from, where `needs_start`.
        Returns:
            [generated] for each episode.
        """
        raise NotImplementedError

    def weigh_tokens(self, kl: Tensor, active: Tensor) -> Tensor:
        """The weight of each token from the teacher's divergence; 1 by default.

        Args:
            kl: [generated], nats; of the micro-batch.
            active: bool [generated], where there is a teacher.
        Returns:
            [generated]; what it says where not active is not used.
        """
        return torch.ones_like(kl)

    def token_advantages(self, scores: TokenScores, advantages: Tensor) -> Tensor:
        """Advantages [generated] as student's and teacher's scores change them; they carry no gradient."""
        return advantages

    def token_loss(self, scores: TokenScores, start: Tensor | None, step: int) -> Tensor | None:
        """What is added to the loss at each token, [generated]; None for nothing.

        Args:
            scores: with gradient where `measures` says so.
            start: logprobs under the policy that the run started from, [generated], where `reference_kl` is on.
            step: of the run, for schedules.
        """
        added = None
        if self.entropy_bonus and scores.entropy is not None:
            added = -self.entropy_bonus * scores.entropy
        if self.reference_kl and start is not None:
            penalty = self.reference_kl * reference_penalty(scores.logprobs, start)
            added = penalty if added is None else added + penalty
        return added

    # What the trainer needs to know.

    @property
    def measures(self) -> Measures:
        """What is computed of student and teacher at each generated token."""
        return Measures({"entropy", self.divergence, "teacher_logprob"}, {"entropy"} if self.entropy_bonus else ())

    @property
    def teacher(self) -> Teacher:
        """Whose weights the teacher has: the student's, a moving average of them, those that the run started from, or
        `teacher.path`'s."""
        return "current"

    @property
    def teacher_follows(self) -> float:
        """The share of the policy in the averaged teacher: behind each step, w <- (1 - share) w + share theta."""
        return 0.0

    @property
    def needs_demonstrations(self) -> bool:
        """Whether a reference may be DEMONSTRATION."""
        return False

    @property
    def needs_start(self) -> bool:
        """Whether the policy that the run started from is kept."""
        return self.reference_kl > 0 or self.teacher == "start"

    @property
    def fixes_weights(self) -> bool:
        """Whether token weights are worked out once, before the first update on a batch, and not in each."""
        return False

    @property
    def weighs_batch(self) -> bool:
        """Whether `weigh_tokens` gets the tokens of a whole batch at once: of an update, or of a step's episodes where
        `fixes_weights`; else those of a micro-batch."""
        return False

    @property
    def loss_settings(self) -> dict[str, Any]:
        """Keyword arguments of `policy_loss`."""
        return {name: getattr(self, name) for name in ("clip_low", "clip_high", "normalize", "ratio", "surrogate")}

    def denominator(self, episodes: int, tokens: int) -> float:
        """What sums over a batch of so many episodes and generated tokens are divided by."""
        return float({"sequence": episodes, "token": tokens, "constant": episodes * self.constant_length}[
            self.normalize])

    def divergence_of(self, scores: TokenScores) -> Tensor | None:
        """The divergence that `weigh_tokens` gets, [generated]; None without a teacher."""
        found: Tensor | None = getattr(scores, self.divergence)
        return found


ALGORITHMS: dict[str, type[Algorithm]] = {}
A = TypeVar("A", bound=type[Algorithm])


def register_algorithm(name: str) -> Callable[[A], A]:
    """Make an algorithm known by name to configurations."""

    def put(algorithm: A) -> A:
        ALGORITHMS[name] = algorithm
        return algorithm

    return put


def make_algorithm(name: str = "sc-grpo", **settings: Any) -> Algorithm:
    """The algorithm of that name.

    Raises:
        UserError: there is none; names the nearest.
        pydantic.ValidationError: a setting is unknown or of the wrong type.
    """
    if name not in ALGORITHMS:
        for plugin in entry_points(group=PLUGINS, name=name):
            plugin.load()  # the module registers it
    if name not in ALGORITHMS:
        known = ", ".join(sorted(ALGORITHMS))
        raise UserError(f"algorithm.name {name!r} is unknown{did_you_mean(name, ALGORITHMS)} (known: {known})")
    return ALGORITHMS[name](**settings)
