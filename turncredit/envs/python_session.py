"""A Python interpreter in the shared sandbox, as a synchronous environment uses it: one cell, one observation."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from turncredit.sandboxes.base import KilledBy, Limits, Result, SandboxError, Session
from turncredit.verifiers.code.shared import begin, shared_sandbox, wait_for

SHOWN = 2000  # characters of an observation; what is longer loses its middle
_WHY = {KilledBy.WALL: "it ran longer than {limits.wall_s:g} s",
        KilledBy.CPU: "it used more than {limits.cpu_s:g} s of CPU time",
        KilledBy.MEMORY: "it used too much memory", KilledBy.SIGNAL: "it crashed"}
_GONE = "A new interpreter was started: variables, imports and files that you made are gone."


class PythonSession:
    """An interpreter that starts with its first cell, and again where the agent's code ended it.

    Args:
        home: the sandbox's, with `settings`; one sandbox of each kind serves the whole process.
        limits: of a cell, and of the interpreter as a whole (see `Session`).
    """

    def __init__(self, home: str, settings: Mapping[str, Any], limits: Limits) -> None:
        self.home, self.settings, self.limits = home, dict(settings), limits
        self._session: Session | None = None
        self._finalizer: Callable[[], object] | None = None

    def open_sandbox(self) -> None:
        """Open the shared sandbox, where it is not open yet.

        Raises:
            UserError: it cannot be opened here, or a setting is wrong.
        """
        wait_for(shared_sandbox(self.home, self.settings))

    def run(self, code: str, files: Callable[[], Mapping[str, bytes]]) -> str:
        """Run a cell and say what came of it.

        Args:
            code: Python source.
            files: relative path -> content, of what a fresh interpreter finds in its working folder.
        Raises:
            SandboxError: the sandbox failed. Whatever the code does is an observation, never an exception.
        """
        fresh = self._session is None
        session = self._session or self._start(files())
        try:
            result = wait_for(session.run(code))
        except SandboxError:
            # An interpreter that had cells may have been ended by them, between the cells too: with threads, or
            # os._exit. That is the agent's doing as long as a new one starts; else an agent could void an episode.
            self.close()
            if fresh:
                raise
            self._start(files())
            return f"The interpreter had ended, and this was not run. {_GONE}"
        except BaseException:
            self.close()
            raise
        if result.killed_by is not None:
            self.close()
        return self._observation(result)

    def close(self) -> None:
        """End the interpreter and everything that its cells started. Idempotent."""
        session, self._session = self._session, None
        if session is not None and self._finalizer is not None:
            self._finalizer()

    def _start(self, files: Mapping[str, bytes]) -> Session:
        async def start() -> Session:
            session = await (await shared_sandbox(self.home, self.settings)).session(limits=self.limits)
            try:
                for path, data in files.items():
                    await session.write_file(path, data)
            except BaseException:
                await session.close()
                raise
            return session

        session = self._session = wait_for(start())
        # also where an environment that hangs is dropped without `close`
        self._finalizer = finalizer = weakref.finalize(self, _end, session)
        finalizer.atexit = False  # the shared sandbox has its own end
        return session

    def _observation(self, result: Result) -> str:
        parts = [_shortened(text.rstrip()) for text in (result.stdout, result.value or "", result.stderr)]
        if result.killed_by is not None:
            parts.append(f"Stopped: {_WHY[result.killed_by].format(limits=self.limits)}. {_GONE}")
        return "\n".join(part for part in parts if part) or "(no output)"


def _shortened(text: str) -> str:
    if len(text) <= SHOWN:
        return text
    half = SHOWN // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def _end(session: Session) -> None:
    """Close a session from any thread, the garbage collector's too."""
    begin(session.close())
