"""Algorithms, one file each."""

from turncredit.trainer.algorithms.base import (
    ALGORITHMS,
    OWN_PROMPT,
    Algorithm,
    GroupCredit,
    make_algorithm,
    register_algorithm,
)
from turncredit.trainer.algorithms.grpo import GRPO
from turncredit.trainer.algorithms.sc_grpo import SCGRPO

__all__ = ["ALGORITHMS", "GRPO", "OWN_PROMPT", "SCGRPO", "Algorithm", "GroupCredit", "make_algorithm",
           "register_algorithm"]
