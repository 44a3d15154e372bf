"""Algorithms, one file each. docs/algorithms.md has a table of them, and how to add your own from outside."""

from turncredit.trainer.algorithms.additive import Additive
from turncredit.trainer.algorithms.base import (
    ALGORITHMS,
    DEMONSTRATION,
    OWN_PROMPT,
    Algorithm,
    GroupCredit,
    make_algorithm,
    register_algorithm,
)
from turncredit.trainer.algorithms.cispo import CISPO
from turncredit.trainer.algorithms.dapo import DAPO
from turncredit.trainer.algorithms.distillation import OPD, OPSD
from turncredit.trainer.algorithms.dr_grpo import DrGRPO
from turncredit.trainer.algorithms.grpo import GRPO
from turncredit.trainer.algorithms.gspo import GSPO
from turncredit.trainer.algorithms.reinforce_pp import ReinforcePlusPlus
from turncredit.trainer.algorithms.rloo import RLOO
from turncredit.trainer.algorithms.rlsd import RLSD
from turncredit.trainer.algorithms.sc_grpo import SCGRPO
from turncredit.trainer.algorithms.sdpo import SDPO

__all__ = ["ALGORITHMS", "CISPO", "DAPO", "DEMONSTRATION", "GRPO", "GSPO", "OPD", "OPSD", "OWN_PROMPT", "RLOO", "RLSD",
           "SCGRPO", "SDPO", "Additive", "Algorithm", "DrGRPO", "GroupCredit", "ReinforcePlusPlus", "make_algorithm",
           "register_algorithm"]
