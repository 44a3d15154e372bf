"""A real MCP server with a counter, for the tests: `python mcp_server.py [PORT]`; over stdio where no port is named."""

import os
import sys
import time

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("counter")
counted = 0


@server.tool()
def add(numbers: list[int], times: int = 1) -> int:
    """Add to the counter; answers what it holds."""
    global counted
    counted += sum(numbers) * times
    return counted


@server.tool()
def fail(reason: str) -> str:
    """Report an error."""
    raise ToolError(reason)


@server.tool()
def sleep(seconds: float) -> str:
    """Answer late."""
    time.sleep(seconds)
    return "awake"


@server.tool()
def die() -> str:
    """End the server."""
    os._exit(3)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
