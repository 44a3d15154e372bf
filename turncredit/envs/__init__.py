"""Environments: Gymnasium's contract over text. Importing this registers those that we ship."""

from turncredit.envs import adapters
from turncredit.envs.mcp_tools import McpEnv, McpServer
from turncredit.envs.registry import list_envs, load_plugins, make, register, spec
from turncredit.envs.splits import SPLITS, draw_from_split, split_of
from turncredit.envs.text_env import Reply, TextEnv, TextSpace, has_solution
from turncredit.envs.tools import Tool, ToolEnv, ToolError, tool
from turncredit.episode import Task

__all__ = ["SPLITS", "McpEnv", "McpServer", "Reply", "Task", "TextEnv", "TextSpace", "Tool", "ToolEnv", "ToolError",
           "adapters", "draw_from_split", "has_solution", "list_envs", "load_plugins", "make", "register", "spec",
           "split_of", "tool"]

register("turncredit/Arithmetic-v0", "turncredit.envs.arithmetic:Arithmetic")
register("turncredit/Calculator-v0", "turncredit.envs.calculator:Calculator")
register("turncredit/Brackets-v0", "turncredit.envs.brackets:Brackets")
register("turncredit/LeftToRight-v0", "turncredit.envs.left_to_right:LeftToRight")
register("turncredit/Pantry-v0", "turncredit.envs.pantry:Pantry")
register("turncredit/Questions-v0", "turncredit.envs.questions:Questions")
register("turncredit/Code-v0", "turncredit.envs.code:Code")
register("turncredit/CodeRepl-v0", "turncredit.envs.code:CodeRepl")
register("turncredit/MathPython-v0", "turncredit.envs.math_python:MathPython")
register("turncredit/DataAnalysis-v0", "turncredit.envs.data_analysis:DataAnalysis")
register("turncredit/CodeProblems-v0", "turncredit.envs.code_problems:CodeProblems")
register("turncredit/WebShop-v0", "turncredit.envs.webshop:WebShop")
