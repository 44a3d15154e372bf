"""One sandbox a process for every thread that judges: opened at first use, closed at exit."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401  # registers its own end first, so that it comes after ours
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from turncredit.sandboxes.base import Sandbox
from turncredit.verifiers.code.cases import CodeTests
from turncredit.verifiers.code.judging import judge_in
from turncredit.verifiers.code.report import CodeReport

T = TypeVar("T")


def judge_code(program: str, tests: CodeTests, home: str = "local", **settings: object) -> CodeReport:
    """Judge one candidate from an ordinary thread; any number of threads may do so at once.

    Args:
        program: the candidate's source.
        tests: what it is judged by.
        home: the sandbox's, with that home's settings; each combination is opened once a process.
    Raises:
        UserError: the sandbox cannot be opened here.
        RuntimeError: called from a coroutine: await `judge_in` there.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _sandboxes().judge(program, tests, home, settings)
    raise RuntimeError("judge_code blocks: inside a coroutine, await judge_in(sandbox, program, tests)")


class _SharedSandboxes:
    """An event loop in a thread of its own, and the sandboxes that live on it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._opened: dict[tuple[Any, ...], asyncio.Task[Sandbox]] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, name="code judge", daemon=True)
        self._thread.start()

    def judge(self, program: str, tests: CodeTests, home: str, settings: dict[str, object]) -> CodeReport:
        """Judge in this object's thread, and wait for the report."""
        return self._wait(self._judge(program, tests, home, settings))

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:  # KeyboardInterrupt too: what was asked for is no longer wanted
            future.cancel()
            raise

    async def _judge(self, program: str, tests: CodeTests, home: str, settings: dict[str, object]) -> CodeReport:
        key = (home, *sorted((name, repr(value)) for name, value in settings.items()))
        if key not in self._opened:
            self._opened[key] = self._loop.create_task(Sandbox.open(home, **settings))
        opening = self._opened[key]
        try:
            sandbox = await asyncio.shield(opening)
        except Exception:
            self._opened.pop(key, None)  # the next call tries again
            raise
        return await judge_in(sandbox, program, tests)

    async def _close_sandboxes(self) -> None:
        opened = [await task for task in self._opened.values() if not task.cancelled()]
        self._opened.clear()
        await asyncio.gather(*(sandbox.close() for sandbox in opened))

    def close(self) -> None:
        if self.pid != os.getpid():
            return  # a fork has neither the thread nor the right to end its parent's sandboxes
        self._wait(self._close_sandboxes())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


_lock = threading.Lock()
_current: _SharedSandboxes | None = None
_inherited: list[_SharedSandboxes] = []  # by a fork: kept, since collecting them would close the parent's streams


def _sandboxes() -> _SharedSandboxes:
    """This process's own: a fork starts afresh."""
    global _current
    with _lock:
        if _current is not None and _current.pid != os.getpid():
            _inherited.append(_current)
            _current = None
        if _current is None:
            _current = _SharedSandboxes()
            # not `atexit`: its callbacks run when no thread can be started any more, and a sandbox may need one
            threading._register_atexit(_current.close)  # type: ignore[attr-defined]  # private, but stable since 3.9
        return _current
