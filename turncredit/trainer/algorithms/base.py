"""What an algorithm is: two hooks, no knowledge of models. The trainer knows none by name.

A new one is a file beside this with a class, `@register_algorithm("its-name")` above it, and a line in `__init__`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from turncredit.errors import UserError, did_you_mean


@dataclass(frozen=True, slots=True)
class GroupCredit:
    """What a group earns. All lists have one place for each of the group's G judged episodes."""

    kind: str  # the route, for the metrics
    advantages: NDArray[np.float64]  # [G]
    references: Sequence[int | None]  # [G]: whose trajectory the teacher sees; None for no teacher and weight 1
    # Where the advantage itself depends on the token weights: from each episode's weights, [generated], to [G].
    # None stands for an episode without a teacher: it had none to begin with, or its reference did not fit.
    advantages_from_weights: Callable[[list[NDArray[np.float32] | None]], NDArray[np.float64]] | None = None


class Algorithm(BaseModel):
    """The settings that every algorithm has, and the two hooks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.2, gt=0)
    normalize: Literal["sequence", "token"] = "sequence"

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

    def weigh_tokens(self, kl: Tensor, active: Tensor) -> Tensor:
        """The weight of each token from the teacher's KL.

        Args:
            kl: [generated], nats; of the micro-batch.
            active: bool [generated], where there is a teacher.
        Returns:
            [generated]; what it says where not active is not used.
        """
        raise NotImplementedError


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
        known = ", ".join(sorted(ALGORITHMS))
        raise UserError(f"algorithm.name {name!r} is unknown{did_you_mean(name, ALGORITHMS)} (known: {known})")
    return ALGORITHMS[name](**settings)
