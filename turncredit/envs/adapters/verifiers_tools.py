"""Tool servers of the package verifiers, run in this process: real MCP, over a connection in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from turncredit.envs.adapters.packages import imported
from turncredit.envs.mcp_tools import McpServer
from turncredit.toolcalls import ToolSpec


class EpisodeTools:
    """The tools of an episode's servers, each made anew. They share the episode's state, which rewards look at.

    Args:
        toolsets: the package's, fresh ones; those of the task are told of it.
        data: the task's.
        state: the episode's, which calls change in place.
    Raises:
        UserError: a server does not come up.
    """

    def __init__(self, toolsets: Sequence[tuple[Any, bool]], data: Any, state: Any) -> None:
        self._servers: dict[str, tuple[McpServer, str]] = {}
        self._connected: list[McpServer] = []
        self.specs: list[ToolSpec] = []
        try:
            for toolset, of_task in toolsets:
                self._connect(toolset, data if of_task else None, state)
        except BaseException:
            self.close()
            raise

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        """The text that the tool of that name answers; raises what `McpServer.call` does."""
        server, inner = self._servers[name]
        return server.call(inner, arguments)

    def close(self) -> None:
        """End the servers."""
        for server in self._connected:
            server.close()
        self._connected = []

    def _connect(self, toolset: Any, data: Any, state: Any) -> None:
        async def pulled() -> Any:
            return state

        async def pushed(before: bytes) -> None:
            """Nothing: calls change the state itself."""

        @asynccontextmanager
        async def living(_: Any) -> AsyncIterator[dict[str, Any]]:
            async with toolset._exit_stack:
                await toolset.setup()
                if data is not None:
                    await toolset.setup_task(data)
                yield {}

        # In the package these two ask the process that runs the episode, over HTTP.
        toolset._pull_state, toolset._push_state = pulled, pushed
        made = imported("mcp.server.mcpserver", "verifiers", "verifiers").MCPServer(
            toolset.server_name or type(toolset).__name__, lifespan=living, log_level="CRITICAL")
        toolset.register(made)
        server = McpServer(made)
        self._connected.append(server)
        for spec in server.tools:
            shown = f"{toolset.server_name}_{spec.name}".lstrip("_")
            self.specs.append(ToolSpec(shown, spec.description, spec.parameters))
            self._servers[shown] = (server, spec.name)


def fresh_toolsets(taskset: Any, task: Any) -> list[tuple[Any, bool]]:
    """A taskset's and a task's tool servers, and whether they are the task's."""
    shared = type(taskset).toolsets(taskset.config)
    return [(one, False) for one in shared] + [(one, True) for one in type(task).toolsets(task.config)]


def needs_of_tools(toolsets: Sequence[tuple[Any, bool]]) -> str:
    """What servers need beyond this process, in words; empty where nothing."""
    for toolset, _ in toolsets:
        config = toolset.config
        if getattr(config, "url", None):
            return f"the tool server at {config.url}"
        if getattr(config, "colocated", False) or getattr(config.runtime, "type", "subprocess") != "subprocess":
            return f"a box for its tool server {type(toolset).__name__}"
    return ""
