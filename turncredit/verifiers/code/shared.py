"""One sandbox a process for every thread that judges: opened at first use, closed at exit."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # which registers its own end first, so that it comes after ours
import os
import threading
from collections.abc import Coroutine, Mapping
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
    async def judge() -> CodeReport:
        return await judge_in(await shared_sandbox(home, settings), program, tests)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return wait_for(judge())
    raise RuntimeError("judge_code blocks: inside a coroutine, await judge_in(sandbox, program, tests)")


def wait_for(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the shared sandboxes' thread, and wait for its result in this one."""
    future = _sandboxes().submit(coroutine)
    try:
        return future.result()
    except BaseException:  # KeyboardInterrupt too: what was asked for is no longer wanted
        future.cancel()
        raise


def begin(coroutine: Coroutine[Any, Any, object]) -> None:
    """Start a coroutine in the shared sandboxes' thread without waiting; nothing where they are closed already.

    For the garbage collector, which may run in that very thread.
    """
    sandboxes = _sandboxes()
    if sandboxes.running:
        sandboxes.submit(coroutine)
    else:
        coroutine.close()


async def shared_sandbox(home: str, settings: Mapping[str, object]) -> Sandbox:
    """Return this process's sandbox of that home and settings, opened at first use. Only inside `wait_for`.

    Raises:
        UserError: it cannot be opened here.
    """
    return await _sandboxes().sandbox(home, settings)


class _SharedSandboxes:
    """An event loop in a thread of its own, and the sandboxes that live on it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._opened: dict[tuple[Any, ...], asyncio.Task[Sandbox]] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, name="code judge", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._loop.is_running()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def sandbox(self, home: str, settings: Mapping[str, object]) -> Sandbox:
        key = (home, *sorted((name, repr(value)) for name, value in settings.items()))
        if key not in self._opened:
            self._opened[key] = self._loop.create_task(Sandbox.open(home, **settings))
        opening = self._opened[key]
        try:
            return await asyncio.shield(opening)
        except Exception:
            self._opened.pop(key, None)  # the next call tries again
            raise

    async def _close_sandboxes(self) -> None:
        opened = [await task for task in self._opened.values() if not task.cancelled()]
        self._opened.clear()
        await asyncio.gather(*(sandbox.close() for sandbox in opened))

    def close(self) -> None:
        if self.pid != os.getpid():
            return  # a fork has neither the thread nor the right to end its parent's sandboxes
        self.submit(self._close_sandboxes()).result()
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
