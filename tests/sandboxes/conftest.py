"""A sandbox of every home, opened once and driven from plain test functions."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from turncredit.errors import MissingExtra, UserError
from turncredit.sandboxes import Limits, Result, Sandbox, Session
from turncredit.sandboxes.docker import connect as connect_docker
from turncredit.sandboxes.e2b import check_sdk

# home -> settings. Every home passes test_behaviour.py; those whose walls are ours, test_attacks.py too.
HOMES: dict[str, dict[str, Any]] = {
    "local": {"slots": 2, "sessions": 4},
    "docker": {"slots": 2, "sessions": 4},
    "e2b": {"slots": 2, "sessions": 4},
}
WALLED = ["local", "docker"]

LIMITS = Limits(wall_s=60, cpu_s=5, memory_bytes=128 << 20, processes=16, output_bytes=20_000,
                file_bytes=4 << 20, files=64)


# In front of every attack. A breach is printed, and so is the end of an attack that ends by itself: one that
# fails for a reason of its own can't pass for a defence.
PRELUDE = """
import ctypes, errno, os, signal, socket, struct, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, call, *arguments):
    try:
        result = call(*arguments)
    except (OSError, ValueError, MemoryError) as error:
        return print('refused', name, error)
    if isinstance(result, int) and not isinstance(result, bool) and result < 0:
        return print('refused', name, os.strerror(ctypes.get_errno()))
    print('BREACH', name, result)
"""


class Driven:
    """A sandbox whose calls wait for their end."""

    def __init__(self, runner: asyncio.Runner, home: str, sandbox: Sandbox) -> None:
        self.runner, self.home, self.sandbox = runner, home, sandbox
        self.limits = LIMITS

    def run(self, code: str | None = None, **arguments: Any) -> Result:
        """Run code, which may stand indented in a test."""
        return self.runner.run(self.sandbox.run(code and dedent(code), **arguments))

    def hostile(self, code: str, **arguments: Any) -> Result:
        """Run an attack: in it, `attempt(name, call, *arguments)` prints BREACH where the call succeeds."""
        return self.run(PRELUDE + dedent(code), **arguments)

    def attack(self, code: str, **arguments: Any) -> Result:
        """Run an attack that ends by itself: it must have been carried out, and breach nothing."""
        result = self.hostile(dedent(code) + "\nprint('tried')", **arguments)
        assert result.stdout.endswith("tried\n"), result
        assert "BREACH" not in result.stdout, result
        return result

    def still_works(self, code: str, output: str, **arguments: Any) -> None:
        """Run the attack's honest twin."""
        result = self.run(code, **arguments)
        assert (result.stdout, result.exit) == (output, 0), result

    def alone(self) -> None:
        """Check in every slot that a new execution finds no process of an earlier one."""
        for _ in range(4):
            self.still_works("""
                import os
                known = {str(os.getpid()), str(os.getppid()), '1'}
                print([name for name in os.listdir('/proc') if name.isdigit() and name not in known])
            """, "[]\n")

    @contextmanager
    def session(self, limits: Limits | None = None) -> Iterator[DrivenSession]:
        session = self.runner.run(self.sandbox.session(limits=limits))
        try:
            yield DrivenSession(self.runner, session)
        finally:
            self.runner.run(session.close())


class DrivenSession:
    """A session whose calls wait for their end."""

    def __init__(self, runner: asyncio.Runner, session: Session) -> None:
        self.runner, self.session = runner, session

    def run(self, code: str, **arguments: Any) -> Result:
        return self.runner.run(self.session.run(dedent(code), **arguments))

    def write_file(self, path: str, data: bytes) -> None:
        self.runner.run(self.session.write_file(path, data))

    def read_file(self, path: str) -> bytes:
        return self.runner.run(self.session.read_file(path))


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def opened(runner: asyncio.Runner) -> Iterator[dict[str, Driven]]:
    """The sandboxes that were asked for so far."""
    sandboxes: dict[str, Driven] = {}
    yield sandboxes
    for driven in sandboxes.values():
        runner.run(driven.sandbox.close())


@pytest.fixture(scope="session")
def e2b() -> Iterator[Any]:
    """A service of E2B's protocol on this machine."""
    # By its path: tests never put the repository's root on the import path.
    spec = importlib.util.spec_from_file_location("e2b_service", Path(__file__).with_name("e2b_service.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules["e2b_service"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    service = module.Service()
    yield service
    service.close()


def _open(request: pytest.FixtureRequest, runner: asyncio.Runner, opened: dict[str, Driven]) -> Driven:
    home = request.param
    if home not in opened:
        settings = dict(HOMES[home])
        try:
            if home == "docker":
                connect_docker().close()
            elif home == "e2b":
                check_sdk()
                settings |= request.getfixturevalue("e2b").settings
        except (MissingExtra, UserError) as error:
            pytest.skip(str(error))
        opened[home] = Driven(runner, home, runner.run(Sandbox.open(home, limits=LIMITS, **settings)))
    return opened[home]


@pytest.fixture(params=HOMES)
def sandbox(request: pytest.FixtureRequest, runner: asyncio.Runner, opened: dict[str, Driven]) -> Driven:
    """A sandbox of each home that can be had here."""
    return _open(request, runner, opened)


@pytest.fixture(params=WALLED)
def walled(request: pytest.FixtureRequest, runner: asyncio.Runner, opened: dict[str, Driven]) -> Driven:
    """A sandbox of each home that this package builds the walls of, and that can be had here."""
    return _open(request, runner, opened)
