"""How an agent writes a tool call: two formats, each with a parser and a renderer that are inverse.

A format is chosen by the model (Qwen and Hermes models write JSON between tags; a tiny model writes a
plain line). The environment is told which one, so that what it says of a malformed call fits the agent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from turncredit.errors import UserError, did_you_mean


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as the agent wrote it; arguments are not yet checked against the tool's signature."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """What an agent is told of a tool; `parameters` is a JSON schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The form that chat templates and OpenAI-compatible servers take."""
        return {"type": "function", "function": {"name": self.name, "description": self.description,
                                                 "parameters": dict(self.parameters)}}


class MalformedCall(Exception):
    """The text tries to call a tool and fails; the message tells the agent what is wrong."""


class ToolFormat(Protocol):
    """A way to write tool calls as text."""

    name: str
    typed: bool  # whether values come with their types; else all are texts, see `typed_call`

    def describe(self, tools: Sequence[ToolSpec]) -> str:
        """What to tell the agent, in its system prompt."""

    def parse(self, text: str) -> list[ToolCall]:
        """The calls in the text, in order; empty where there is none.

        Raises:
            MalformedCall: the text tries to call and fails.
        """

    def render(self, call: ToolCall) -> str:
        """The text that parses to this call."""


class JsonBlocks:
    """JSON between tags, as Qwen and Hermes models write it: <tool_call>{"name": …, "arguments": {…}}</tool_call>."""

    name = "json"
    typed = True
    _block = re.compile(r"<tool_call>(.*?)(</tool_call>|$)", re.DOTALL)

    def describe(self, tools: Sequence[ToolSpec]) -> str:
        """The wording of Qwen's and Hermes's own templates, so that their models recognise it."""
        listed = "\n".join(json.dumps(tool.to_json(), ensure_ascii=False) for tool in tools)
        return ("# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
                f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{listed}\n"
                "</tools>\n\nFor each function call, return a json object with function name and arguments within "
                '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": '
                "<args-json-object>}\n</tool_call>")

    def parse(self, text: str) -> list[ToolCall]:
        """Every tagged block; text around the blocks is the agent's own business."""
        return [self._parse_block(m.group(1), closed=bool(m.group(2))) for m in self._block.finditer(text)]

    def _parse_block(self, body: str, closed: bool) -> ToolCall:
        if not closed:
            raise MalformedCall("the tool call is not closed: end it with </tool_call>")
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise MalformedCall(f"the tool call is not valid JSON: {error}") from None
        if not isinstance(data, dict) or not isinstance(data.get("name"), str):
            raise MalformedCall('the tool call must be an object with a "name" and "arguments"')
        arguments = data.get("arguments", {})
        if not isinstance(arguments, dict):
            raise MalformedCall('"arguments" must be an object')
        return ToolCall(data["name"], arguments)

    def render(self, call: ToolCall) -> str:
        """One block."""
        body = json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
        # "<" is escaped so that an argument which contains a tag cannot end the block early.
        return f"<tool_call>\n{body.replace('<', chr(92) + 'u003c')}\n</tool_call>"


class NativeCalls(JsonBlocks):
    """For servers with tool calls of their own: these stand as JSON between tags in the texts, and nobody is told."""

    name = "native"

    def describe(self, tools: Sequence[ToolSpec]) -> str:
        """Nothing: the server is given the tools themselves."""
        return ""

    def around(self, text: str) -> str:
        """What the agent said beside its calls."""
        return self._block.sub("", text).strip()


class PlainLine:
    """A line for tiny models: @name key=value key="value with spaces". One call a turn, its values typed later."""

    name = "plain"
    typed = False
    _value = r'"(?:[^"\\]|\\.)*"|[^\s"]\S*'
    _argument = re.compile(rf"\s+(\w+)=({_value})", re.DOTALL)
    _call = re.compile(rf"@(\w+)((?:\s+\w+=(?:{_value}))*)\s*", re.DOTALL)

    def describe(self, tools: Sequence[ToolSpec]) -> str:
        """One line a tool."""
        lines = []
        for tool in tools:
            properties: Mapping[str, Any] = tool.parameters.get("properties", {})
            lines.append(" ".join([f"@{tool.name}", *(f"{name}=?" for name in properties)]))
        return "Tools:\n" + "\n".join(lines)

    def parse(self, text: str) -> list[ToolCall]:
        """The one call, where the text starts with an @."""
        text = text.strip()
        if not text.startswith("@"):
            return []
        match = self._call.fullmatch(text)
        if match is None:
            raise MalformedCall("the tool call cannot be read: write @name key=value key=value and nothing else")
        arguments: dict[str, Any] = {}
        for name, value in self._argument.findall(match.group(2)):
            if name in arguments:
                raise MalformedCall(f"the argument {name} stands twice")
            arguments[name] = _unquoted(value)
        return [ToolCall(match.group(1), arguments)]

    def render(self, call: ToolCall) -> str:
        """Values that are not plain words are quoted as JSON strings."""
        return " ".join([f"@{call.name}", *(f"{name}={_quoted(value)}" for name, value in call.arguments.items())])


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value, strict=False))
    except ValueError as error:
        raise MalformedCall(f"the value {value} is not a valid quoted string: {error}") from None


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    plain = bool(text) and not text.startswith('"') and not re.search(r"\s", text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def typed_call(call: ToolCall, parameters: Mapping[str, Any]) -> ToolCall:
    """The call with texts read as JSON, where the tool's schema wants no text and JSON is what it wants."""
    import jsonschema

    schema = jsonschema.Draft202012Validator(dict(parameters))

    def wrong_in_kind(arguments: Mapping[str, Any]) -> set[str]:
        return {str(error.absolute_path[0]) for error in schema.iter_errors(arguments) if len(error.absolute_path) == 1}

    arguments = dict(call.arguments)
    for name in wrong_in_kind(arguments):
        if not isinstance(arguments[name], str):
            continue
        try:
            read = json.loads(arguments[name])
        except (ValueError, RecursionError):
            continue
        if name not in wrong_in_kind({**arguments, name: read}):
            arguments[name] = read
    return ToolCall(call.name, arguments)


_FORMATS: dict[str, ToolFormat] = {f.name: f for f in (JsonBlocks(), PlainLine(), NativeCalls())}


def tool_format(name: str) -> ToolFormat:
    """The format of that name: "json", "plain" or "native"."""
    if name not in _FORMATS:
        known = ", ".join(_FORMATS)
        raise UserError(f"tool_format {name!r} is unknown{did_you_mean(name, _FORMATS)} (known: {known})")
    return _FORMATS[name]
