"""Environments whose agent has a Python interpreter: what they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turncredit.envs.python_session import PythonSession
from turncredit.envs.tools import ToolEnv
from turncredit.episode import Verdict
from turncredit.sandboxes.base import MIB, Limits


class PythonEnv(ToolEnv):
    """Tools of a subclass call `run_python`. The interpreter lives as long as the episode.

    Args:
        home: where code runs: "local", "docker" or "e2b".
        sandbox: settings of that home.
        cell_s: wall time of one call, in seconds.
        memory_mib: memory of the interpreter.
    Raises:
        UserError: the sandbox cannot be opened here, or a setting is wrong.
    """

    def __init__(self, home: str = "local", sandbox: Mapping[str, Any] | None = None, cell_s: float = 5.0,
                 memory_mib: int = 512, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.home, self.sandbox = home, dict(sandbox or {})
        limits = Limits(wall_s=cell_s, cpu_s=cell_s, memory_bytes=memory_mib * MIB)
        self._python = PythonSession(home, self.sandbox, limits)
        self._python.open_sandbox()  # what is wrong with it is said at the start, not in the first episode

    def files(self) -> Mapping[str, bytes]:
        """Relative path -> content, of what the interpreter finds in its working folder."""
        return {}

    def run_python(self, code: str) -> str:
        """Run code in the episode's interpreter; what it wrote, its value or its error is the observation."""
        return self._python.run(code, self.files)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """See `TextEnv.reset`. The last episode's interpreter ends."""
        self._python.close()
        return super().reset(seed=seed, options=options)

    def verdict(self) -> Verdict:
        """See `TextEnv.verdict`. An episode that is judged needs its interpreter no more."""
        self._python.close()
        return super().verdict()

    def close(self) -> None:
        """End the interpreter."""
        self._python.close()
        super().close()
