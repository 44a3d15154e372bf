"""Tools of servers that speak the Model Context Protocol, beside an environment's own.

    class Shop(McpEnv):
        def make_task(self, rng): ...

    Shop(servers=[["python", "shop_server.py"], "http://127.0.0.1:8000/mcp"])
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from turncredit.envs.tools import ToolEnv, ToolError
from turncredit.errors import MissingExtra, UserError
from turncredit.toolcalls import MalformedCall, ToolCall, ToolSpec, typed_call

T = TypeVar("T")
_CLOSING_S = 10.0  # that a server has to end in


class McpServer:
    """A connection to one server, with an event loop in a thread of its own.

    Args:
        address: a command that speaks over its standard input and output, such as ["python", "server.py"], the URL of
            a server that speaks streamable HTTP, or a server of the package mcp, which then runs in this process.
        timeout_s: of connecting, and of each call.
        variables: environment variables of the command, beside the few that the protocol's client hands on.
    Raises:
        MissingExtra: mcp is not installed.
        UserError: no server answers there, or one of its tools has no schema of type object.
    """

    def __init__(self, address: str | Sequence[str] | Any, timeout_s: float = 30.0,
                 variables: Mapping[str, str] | None = None) -> None:
        self.address, self.timeout_s = address, timeout_s
        self._client = _client(address, timeout_s, variables)
        self._loop = asyncio.new_event_loop()
        self._ended: asyncio.Event | None = None
        ready: Future[list[Any]] = Future()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(ready),), daemon=True,
                                        name="mcp")
        self._thread.start()
        try:
            listed = ready.result(timeout_s)
        except Exception as error:
            self.close()
            raise UserError(f"the MCP server {_named(address)} does not answer: {_innermost(error)}") from None
        self.tools = [ToolSpec(one.name, one.description or one.name, one.input_schema) for one in listed]

    async def _serve(self, ready: Future[list[Any]]) -> None:
        """Connect, list the tools, and hold the connection until `close`: the protocol's client wants one task."""
        self._ended = asyncio.Event()
        try:
            async with self._client:
                page = await self._client.list_tools()
                tools = list(page.tools)
                while page.next_cursor is not None:
                    page = await self._client.list_tools(cursor=page.next_cursor)
                    tools += page.tools
                ready.set_result(tools)
                await self._ended.wait()
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The text that a tool answers.

        Raises:
            ToolError: the tool reports an error, or did not answer in time.
            MalformedCall: the server refuses the name or the arguments.
            ConnectionError: the server is gone.
        """
        import mcp
        from mcp_types import CONNECTION_CLOSED, INVALID_PARAMS, METHOD_NOT_FOUND, REQUEST_TIMEOUT

        late = ToolError(f"{name} did not answer in {self.timeout_s:g} s")
        try:
            result = self._done(self._client.call_tool(name, dict(arguments), self.timeout_s))
        except TimeoutError:
            raise late from None
        except mcp.MCPError as error:
            if error.error.code == REQUEST_TIMEOUT:
                raise late from None
            if error.error.code in (INVALID_PARAMS, METHOD_NOT_FOUND):
                raise MalformedCall(f"{name}: {error.error.message}") from None
            what = "is gone" if error.error.code == CONNECTION_CLOSED else "failed"
            raise ConnectionError(f"the MCP server {_named(self.address)} {what}: {error.error.message}") from None
        text = _text(result)
        if result.is_error:
            raise ToolError(text)
        return text

    def close(self) -> None:
        """End the connection, and the command where it is one."""
        if self._thread.is_alive() and self._ended is not None:
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(_CLOSING_S)
        if not self._thread.is_alive() and not self._loop.is_closed():
            self._loop.close()

    def _done(self, work: Coroutine[Any, Any, T]) -> T:
        if not self._thread.is_alive():
            work.close()
            raise ConnectionError(f"the MCP server {_named(self.address)} is gone")
        # A second more than the client itself waits: its own time-out tells the server to stop.
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(self.timeout_s + 1)


class McpEnv(ToolEnv):
    """A `ToolEnv` whose agent may also call the tools of MCP servers.

    What a server keeps in mind is part of the episode: a command is started anew at every reset, unless
    `restart_servers` is False. A server behind a URL is shared by all that call it, and must keep no state.

    Args:
        servers: commands and URLs, see `McpServer`.
        call_timeout_s: of each call.
        restart_servers: see above.
    Raises:
        MissingExtra: mcp is not installed.
        UserError: a server does not answer, or two tools have one name.
    """

    def __init__(self, servers: Sequence[str | Sequence[str]] = (), call_timeout_s: float = 30.0,
                 restart_servers: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(servers, str):
            raise UserError(f"servers is {servers!r}: it must be a list of commands and URLs")
        self.servers, self.call_timeout_s, self.restart_servers = list(servers), call_timeout_s, restart_servers
        self._connected: list[McpServer] = []
        self._of_servers: dict[str, tuple[McpServer, ToolSpec]] = {}
        self._used = False  # since the servers were started
        self._connect()

    @property
    def tools(self) -> list[ToolSpec]:
        """Its own, then those of the servers, in their order."""
        return [*super().tools, *(spec for _, spec in self._of_servers.values())]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode, with servers that remember nothing."""
        if self._used and self.restart_servers and any(not isinstance(server, str) for server in self.servers):
            self._disconnect()
        if not self._connected:
            self._connect()
        self._used = True
        return super().reset(seed=seed, options=options)

    def close(self) -> None:
        """End the servers."""
        self._disconnect()
        super().close()

    def _run(self, call: ToolCall) -> str:
        if call.name not in self._of_servers:
            return super()._run(call)
        server, spec = self._of_servers[call.name]
        if not self.tool_format.typed:
            call = typed_call(call, spec.parameters)
        _refuse_wrong_arguments(call, spec.parameters)
        return server.call(call.name, call.arguments)

    def _known(self) -> list[str]:
        return [*super()._known(), *self._of_servers]

    def _connect(self) -> None:
        self._used = False
        for address in self.servers:
            self._connected.append(server := McpServer(address, self.call_timeout_s))
            for spec in server.tools:
                if spec.name in self._known():
                    self._disconnect()
                    raise UserError(f"two tools are named {spec.name!r}, one of them of the MCP server "
                                    f"{_named(address)}: rename one")
                self._of_servers[spec.name] = (server, spec)

    def _disconnect(self) -> None:
        for server in self._connected:
            server.close()
        self._connected, self._of_servers = [], {}


def _client(address: str | Sequence[str] | Any, timeout_s: float, variables: Mapping[str, str] | None) -> Any:
    try:
        from mcp import Client, StdioServerParameters
    except ImportError:
        raise MissingExtra("mcp 2", "mcp") from None
    if isinstance(address, str):
        if not address.startswith(("http://", "https://")):
            raise UserError(f"the MCP server {address!r} is neither a URL (http://…) nor a list, such as "
                            '["python", "server.py"]')
        return Client(address, read_timeout_seconds=timeout_s)
    if not isinstance(address, Sequence):
        return Client(address, read_timeout_seconds=timeout_s)
    if not address or not all(isinstance(word, str) for word in address):
        raise UserError(f"the MCP server {address!r} is no command: write a list of words")
    command, *words = address
    parameters = StdioServerParameters(command=command, args=words, env=dict(variables or {}))
    return Client(parameters, read_timeout_seconds=timeout_s)


def _refuse_wrong_arguments(call: ToolCall, schema: Mapping[str, Any]) -> None:
    import jsonschema

    wrong = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(dict(schema)).iter_errors(call.arguments))
    if wrong is not None:
        where = ".".join(map(str, wrong.absolute_path)) or "arguments"
        raise MalformedCall(f"{call.name}: {where}: {wrong.message}")


def _text(result: Any) -> str:
    """The texts of a result; what is no text is named by its type."""
    return "\n".join(part.text if part.type == "text" else f"[{part.type}]" for part in result.content)


def _named(address: str | Sequence[str] | Any) -> str:
    if not isinstance(address, Sequence):
        return repr(address.name)
    return repr(address if isinstance(address, str) else " ".join(address))


def _innermost(error: BaseException) -> str:
    """What went wrong, out of the groups that task groups wrap it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return "it took too long"
    return f"{type(error).__name__}: {error}".rstrip(": ")
