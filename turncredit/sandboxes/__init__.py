"""Places to run code that nobody has read: on this machine, in Docker, or at E2B."""

from turncredit.sandboxes.base import KilledBy, Limits, Result, Sandbox, SandboxError, Session

__all__ = ["KilledBy", "Limits", "Result", "Sandbox", "SandboxError", "Session"]
