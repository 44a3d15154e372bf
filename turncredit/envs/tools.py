"""Tools are typed Python methods: the JSON schema comes from the signature and the docstring.

    class Shop(ToolEnv):
        @tool
        def buy(self, item: str, count: int = 1) -> str:
            '''Buy something.

            Args:
                item: what to buy.
                count: how many.
            '''
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from turncredit.envs.text_env import Reply, TextEnv
from turncredit.errors import UserError, did_you_mean
from turncredit.toolcalls import MalformedCall, ToolCall, ToolSpec

F = TypeVar("F", bound=Callable[..., Any])


class ToolError(Exception):
    """Raised in a tool for what is the agent's mistake: its message becomes the observation."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A typed function that an agent may call."""

    spec: ToolSpec
    arguments: type[BaseModel]
    function: Callable[..., Any]

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Tool:
        """Read the schema off a function's signature and docstring (Google style "Args:").

        Raises:
            UserError: a parameter has no type annotation, or the function has no docstring.
        """
        name = getattr(function, "__name__", "tool")
        summary, described = _read_docstring(name, function)
        hints = typing.get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name == "self":
                continue
            if parameter.name not in hints:
                raise UserError(f"tool {name}: the parameter {parameter.name} has no type: annotate it")
            default = ... if parameter.default is parameter.empty else parameter.default
            description = described.get(parameter.name)
            fields[parameter.name] = (hints[parameter.name], Field(default, description=description))
        model: type[BaseModel] = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        schema = model.model_json_schema()
        schema.pop("title", None)
        for field in schema.get("properties", {}).values():
            field.pop("title", None)
        return cls(ToolSpec(name, summary, schema), model, function)

    def __call__(self, arguments: typing.Mapping[str, Any], *bound: Any) -> str:
        """Check the arguments and run the function; `bound` is the environment, for methods.

        Raises:
            MalformedCall: an argument is missing, unknown or of the wrong type.
            ToolError: the agent's mistake, as the function sees it.
        """
        try:
            checked = self.arguments.model_validate(dict(arguments))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "arguments"
            raise MalformedCall(f"{self.spec.name}: {where}: {first['msg']}") from None
        values = {name: getattr(checked, name) for name in type(checked).model_fields}
        return str(self.function(*bound, **values))


def tool(method: F) -> F:
    """Mark a method of a `ToolEnv` as a tool."""
    method.__turncredit_tool__ = True  # type: ignore[attr-defined]  # functions take attributes
    return method


class ToolEnv(TextEnv):
    """An environment whose methods marked with `@tool` are what the agent may call.

    An action with calls is answered by their results; a malformed one by what is wrong with it, and it costs a
    turn. An action without a call is the agent's final answer and ends the episode.
    """

    _tools: typing.ClassVar[dict[str, Tool]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        marked = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()
                  if getattr(value, "__turncredit_tool__", False)}
        cls._tools = {name: Tool.of(function) for name, function in marked.items()}

    @property
    def tools(self) -> list[ToolSpec]:
        """The schemas of the marked methods, in the order of their definition."""
        return [t.spec for t in self._tools.values()]

    def respond(self, action: str) -> Reply:
        """Run the calls in the action; without one the action is the final answer."""
        try:
            calls = self.tool_format.parse(action)
            if not calls:
                return Reply(done=True, answer=action)
            return Reply("\n".join([self._run(call) for call in calls]), role="tool")
        except (MalformedCall, ToolError) as error:
            return Reply(f"error: {error}", role="tool", valid=not isinstance(error, MalformedCall))

    def call(self, name: str, **arguments: Any) -> str:
        """The text of a call, in the agent's format: what a scripted solution acts with."""
        return self.tool_format.render(ToolCall(name, arguments))

    def _run(self, call: ToolCall) -> str:
        if call.name not in self._tools:
            known = ", ".join(self._tools)
            raise MalformedCall(f"unknown tool {call.name!r}{did_you_mean(call.name, self._tools)} (known: {known})")
        return self._tools[call.name](call.arguments, self)


def _read_docstring(name: str, function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    text = inspect.getdoc(function)
    if not text:
        raise UserError(f"tool {name}: it has no docstring, so an agent cannot know what it does: write one")
    summary, _, arguments = text.partition("Args:")
    described = {m.group(1): m.group(2).strip() for m in re.finditer(r"^\s+(\w+)[^:\n]*:\s*(.+)$", arguments, re.M)}
    return " ".join(summary.split()), described
