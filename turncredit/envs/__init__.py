"""Environments: Gymnasium's contract over text. Importing this registers those that we ship."""

from turncredit.envs.registry import list_envs, load_plugins, make, register, spec
from turncredit.envs.splits import SPLITS, draw_from_split, split_of
from turncredit.envs.text_env import Reply, TextEnv, TextSpace
from turncredit.envs.tools import Tool, ToolEnv, ToolError, tool

__all__ = ["SPLITS", "Reply", "TextEnv", "TextSpace", "Tool", "ToolEnv", "ToolError", "draw_from_split", "list_envs",
           "load_plugins", "make", "register", "spec", "split_of", "tool"]

register("turncredit/Arithmetic-v0", "turncredit.envs.arithmetic:Arithmetic")
register("turncredit/Calculator-v0", "turncredit.envs.calculator:Calculator")
register("turncredit/Brackets-v0", "turncredit.envs.brackets:Brackets")
register("turncredit/LeftToRight-v0", "turncredit.envs.left_to_right:LeftToRight")
register("turncredit/Pantry-v0", "turncredit.envs.pantry:Pantry")
register("turncredit/Questions-v0", "turncredit.envs.questions:Questions")
