"""Agents: token ids in, token ids and logprobs out. Engines that need torch are imported where they are used."""

from typing import TYPE_CHECKING, Any

from turncredit.agents.asynchronous import AsynchronousAgent
from turncredit.agents.base import Actor, Agent, Engine, Request, Sample, Sampling, Stream
from turncredit.agents.chat import ChatFormat
from turncredit.agents.engine_agent import EngineAgent
from turncredit.agents.scripted import SCRIPTS, ScriptedAgent
from turncredit.toolcalls import MalformedCall, ToolCall, ToolFormat, ToolSpec, tool_format

if TYPE_CHECKING:
    from turncredit.agents.transformers_engine import TransformersEngine

__all__ = ["SCRIPTS", "Actor", "Agent", "AsynchronousAgent", "ChatFormat", "Engine", "EngineAgent", "MalformedCall",
           "Request", "Sample", "Sampling", "ScriptedAgent", "Stream", "ToolCall", "ToolFormat", "ToolSpec",
           "TransformersEngine", "tool_format"]


def __getattr__(name: str) -> Any:
    if name == "TransformersEngine":
        from turncredit.agents.transformers_engine import TransformersEngine

        return TransformersEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
