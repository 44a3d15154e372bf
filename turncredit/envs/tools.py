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

import asyncio
import inspect
import json
import re
import textwrap
import threading
import typing
from collections.abc import Callable
from concurrent.futures import Future
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
    function: Callable[..., Any]  # may be a coroutine function
    timeout_s: float | None = None  # of a call; None: as long as the step may take

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Tool:
        """Read the schema off a function's signature and docstring (Google style "Args:").

        Raises:
            UserError: a parameter has no type annotation or takes no name, or the function has no docstring.
        """
        name = getattr(function, "__name__", "tool")
        summary, described = _read_docstring(name, function)
        hints = typing.get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name == "self":
                continue
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise UserError(f"tool {name}: the parameter {parameter} cannot be given by name: make it an "
                                "ordinary one")
            if parameter.name not in hints:
                raise UserError(f"tool {name}: the parameter {parameter.name} has no type: annotate it")
            default = ... if parameter.default is parameter.empty else parameter.default
            described_as = Field(default, alias=parameter.name, description=described.get(parameter.name))
            # An alias, since a field's own name must not be one of pydantic's (schema, json, copy, …).
            fields[f"argument_{len(fields)}"] = (hints[parameter.name], described_as)
        model: type[BaseModel] = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        schema = model.model_json_schema()
        schema.pop("title", None)
        for field in schema.get("properties", {}).values():
            field.pop("title", None)
        timeout_s = getattr(function, "__turncredit_timeout__", None)
        return cls(ToolSpec(name, summary, schema), model, function, timeout_s)

    def __call__(self, arguments: typing.Mapping[str, Any], *bound: Any) -> str:
        """Check the arguments and run the function; `bound` is the environment, for methods.

        Raises:
            MalformedCall: an argument is missing, unknown or of the wrong type.
            ToolError: the agent's mistake, as the function sees it; or it took longer than `timeout_s`.
        """
        try:
            checked = self._checked(dict(arguments))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "arguments"
            raise MalformedCall(f"{self.spec.name}: {where}: {first['msg']}") from None
        values = {str(field.alias): getattr(checked, name) for name, field in type(checked).model_fields.items()}
        return str(self._result(lambda: self.function(*bound, **values)))

    def _result(self, call: Callable[[], Any]) -> Any:
        """What the function returns, awaited where it is a coroutine, within the time that it has."""
        if self.timeout_s is None and not inspect.iscoroutinefunction(self.function):
            return call()
        # A thread of its own: the caller's may run an event loop, and one that hangs is left behind.
        done: Future[Any] = Future()

        def work() -> None:
            try:
                result = call()
                done.set_result(asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result)
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=work, daemon=True, name=f"tool {self.spec.name}").start()
        try:
            return done.result(self.timeout_s)
        except TimeoutError:
            if done.done():
                raise  # the function's own
            raise ToolError(f"{self.spec.name} did not answer in {self.timeout_s:g} s") from None

    def _checked(self, arguments: dict[str, Any]) -> BaseModel:
        """The arguments with their types. A format of plain words writes lists, objects and null as JSON texts."""
        try:
            return self.arguments.model_validate(arguments)
        except ValidationError as error:
            wrong = {str(one["loc"][0]) for one in error.errors() if one["loc"]}
            read = {name: json.loads(arguments[name]) for name in wrong if _is_json(arguments.get(name))}
            if not read:
                raise
            return self.arguments.model_validate(arguments | read)


@typing.overload
def tool(method: F) -> F: ...


@typing.overload
def tool(*, timeout_s: float) -> Callable[[F], F]: ...


def tool(method: F | None = None, *, timeout_s: float | None = None) -> F | Callable[[F], F]:
    """Mark a method of a `ToolEnv` as a tool; it may be `async`.

    Args:
        method: with a type for each parameter, and a docstring.
        timeout_s: a call that takes longer is answered by an error, and the episode goes on. A method that is not
            async runs on behind it, so it must not change the environment's state late.
    Raises:
        UserError: a time-out of zero or less.
    """
    if timeout_s is not None and not timeout_s > 0:
        raise UserError(f"timeout_s is {timeout_s}: it must be above 0")

    def mark(function: F) -> F:
        function.__turncredit_tool__ = True  # type: ignore[attr-defined]  # functions take attributes
        function.__turncredit_timeout__ = timeout_s  # type: ignore[attr-defined]
        return function

    return mark if method is None else mark(method)


class ToolEnv(TextEnv):
    """An environment whose methods marked with `@tool` are what the agent may call.

    An action with calls is answered by their results; a malformed one by what is wrong with it, and it costs a
    turn. An action without a call is the agent's final answer and ends the episode.
    """

    _tools: typing.ClassVar[dict[str, Tool]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        marked = dict.fromkeys(name for base in reversed(cls.__mro__) for name, value in vars(base).items()
                               if getattr(value, "__turncredit_tool__", False))
        cls._tools = {name: Tool.of(getattr(cls, name)) for name in marked}  # a subclass may override one

    @property
    def tools(self) -> list[ToolSpec]:
        """The schemas of the marked methods, in the order of their definition."""
        return [t.spec for t in self._tools.values()]

    def respond(self, action: str) -> Reply:
        """Run the calls in the action, up to the first that fails; without one the action is the final answer."""
        results: list[str] = []
        valid = True
        try:
            calls = self.tool_format.parse(action)
            if not calls:
                return Reply(done=True, answer=action)
            for call in calls:
                results.append(self._run(call))
        except (MalformedCall, ToolError) as error:
            results.append(f"error: {error}")
            valid = not isinstance(error, MalformedCall)
        return Reply("\n".join(results), role="tool", valid=valid)

    def call(self, name: str, **arguments: Any) -> str:
        """The text of a call, in the agent's format: what a scripted solution acts with."""
        return self.tool_format.render(ToolCall(name, arguments))

    def _known(self) -> list[str]:
        return list(self._tools)

    def _run(self, call: ToolCall) -> str:
        if call.name not in self._tools:
            known = self._known()
            hint = did_you_mean(call.name, known)
            raise MalformedCall(f"unknown tool {call.name!r}{hint} (known: {', '.join(known)})")
        return self._tools[call.name](call.arguments, self)


async def _awaited(result: typing.Awaitable[Any]) -> Any:
    return await result


def _is_json(value: Any) -> bool:
    try:
        json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _read_docstring(name: str, function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The summary, and the description of each argument, which may go over several lines."""
    text = inspect.getdoc(function)
    if not text:
        raise UserError(f"tool {name}: it has no docstring, so an agent cannot know what it does: write one")
    summary, *rest = re.split(r"^Args:[ \t]*\n", text, maxsplit=1, flags=re.M)
    section = re.split(r"^\S", rest[0], maxsplit=1, flags=re.M)[0] if rest else ""
    entries = re.split(r"^(\w+)[^:\n]*:", textwrap.dedent(section), flags=re.M)
    described = {entries[i]: " ".join(entries[i + 1].split()) for i in range(1, len(entries), 2)}
    return " ".join(summary.split()), described
