"""TurnCredit: register multi-turn environments, train agents on them with SC-GRPO, evaluate out of distribution."""

from turncredit.envs import list_envs, make, register
from turncredit.envs.registry import list_envs as list  # `turncredit.list()`
from turncredit.errors import UserError

__all__ = ["UserError", "list", "list_envs", "make", "register"]
__version__ = "0.1.0"
