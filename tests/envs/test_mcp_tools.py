"""Tools of real MCP servers: over standard input and output, and over HTTP."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turncredit.envs import McpEnv, McpServer, ToolError, tool
from turncredit.episode import Outcome, Task, Verdict
from turncredit.errors import MissingExtra, UserError

SERVER = str(Path(__file__).with_name("mcp_server.py"))
COMMAND = [sys.executable, SERVER]


class AnswersSum:
    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        return Verdict.of(outcome.answer == str(task.hidden["sum"]))


class Adding(McpEnv):
    """Two numbers, and a server that counts."""

    instructions = "Add the numbers up, with the tools."
    verifier = AnswersSum()

    def make_task(self, rng: np.random.Generator) -> Task:
        numbers = rng.integers(1, 100, 2).tolist()
        return Task(f"Add {numbers}.", {"numbers": numbers, "sum": sum(numbers)})

    @tool
    def double(self, n: int) -> int:
        """Twice a number."""
        return 2 * n

    def expert_action(self) -> str:
        if not self.turns:
            return self.call("add", numbers=self.task.hidden["numbers"])
        return self.turns[-1].observation


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server behind a URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*COMMAND, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/mcp"
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[McpServer]:
    connected = McpServer(COMMAND)
    yield connected
    connected.close()


def children() -> set[int]:
    """Processes that this one started."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid():
                found.add(int(stat.parent.name))
    return found


def test_a_server_s_tools_stand_beside_the_environment_s_own(server: McpServer) -> None:
    assert [one.name for one in server.tools] == ["add", "fail", "sleep", "die"]
    assert server.tools[0].parameters["properties"]["numbers"]["type"] == "array"
    assert server.tools[0].description == "Add to the counter; answers what it holds."


def test_an_episode_s_calls_reach_the_server_and_each_reset_starts_it_anew() -> None:
    before = children()
    env = Adding(servers=[COMMAND])
    for seed in (1, 2):  # the counter would go on, and the sum be wrong
        env.reset(seed=seed)
        assert len(children() - before) == 1
        over = False
        while not over:
            _, reward, over, _, info = env.step(env.expert_action())
            assert info["valid"]
        assert reward == 1.0
    env.close()
    assert children() <= before


def test_tools_over_http_are_the_same(address: str, server: McpServer) -> None:
    remote = McpServer(address)
    assert remote.tools == server.tools
    first = int(remote.call("add", {"numbers": [1, 2]}))
    assert int(remote.call("add", {"numbers": [4], "times": 2})) == first + 8
    remote.timeout_s = 0.1
    with pytest.raises(ToolError, match=r"sleep did not answer in 0\.1 s"):
        remote.call("sleep", {"seconds": 1.5})
    remote.close()


@pytest.mark.parametrize("format", ["json", "plain"])
def test_tools_of_both_kinds_are_called_and_mistakes_are_told(address: str, format: str) -> None:
    env = Adding(servers=[address], tool_format=format, max_turns=9)
    env.reset(seed=0)
    assert [one.name for one in env.tools] == ["double", "add", "fail", "sleep", "die"]
    says = [(env.call("double", n=4), "8", True), (env.call("add", numbers=[5, 6]), "", True),
            (env.call("double_"), "error: unknown tool 'double_'; did you mean 'double'?", False),
            (env.call("fail", reason="no-such-page"), "error: Error executing tool fail: no-such-page", True),
            (env.call("add", numbers=["x"]), "error: add: numbers.0: 'x' is not of type 'integer'", False),
            (env.call("add"), "error: add: arguments: 'numbers' is a required property", False)]
    for call, said, valid in says:
        observation, _, terminated, _, info = env.step(call)
        assert observation.startswith(said)
        assert (info["valid"], terminated) == (valid, False)
    env.close()


def test_a_server_that_ends_is_no_fault_of_the_agent() -> None:
    server = McpServer(COMMAND, timeout_s=20)
    with pytest.raises(ConnectionError, match="is gone"):
        server.call("die", {})
    with pytest.raises(ConnectionError, match="is gone"):
        server.call("add", {"numbers": [1]})
    server.close()


def test_a_name_that_stands_twice_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="two tools are named 'add'"):
        Adding(servers=[address, address])


@pytest.mark.parametrize("wrong, said", [
    ("shop.py", "neither a URL"), ([], "no command"), (["/no/such/command"], "does not answer"),
    ([sys.executable, "-c", "pass"], "does not answer"), ("http://127.0.0.1:9/mcp", "does not answer")])
def test_a_server_that_is_none_is_refused_in_one_sentence(wrong: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        McpServer(wrong, timeout_s=20)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(MissingExtra, match=r"turncredit\[mcp\]"):
        McpServer(COMMAND)
