"""A taskset for the package verifiers with tools and state: find a vault's code, then open it; three tries in all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import verifiers.v1 as vf

__all__ = ["Vaults"]


class VaultsConfig(vf.TasksetConfig):
    first: int = 100
    elsewhere: bool = False


class VaultData(vf.TaskData):
    code: int


class VaultState(vf.State):
    tries: int = 0
    opened: bool = False


class Desk(vf.Toolset[vf.ToolsetConfig, VaultState]):
    async def setup_task(self, task: VaultData) -> None:
        await asyncio.sleep(0)
        self.code, self.read = task.code, 0

    @vf.tool
    async def read_note(self, half: str) -> str:
        """Read a half of the note: "left" or "right"."""
        self.read += 1
        return {"left": str(self.code)[:2], "right": str(self.code)[2:]}[half] + f" (read {self.read})"

    @vf.tool
    def open_vault(self, code: int) -> str:
        """Try a code."""
        self.state.tries += 1
        self.state.opened = code == self.code
        return "open" if self.state.opened else "shut"


class Elsewhere(vf.ToolsetConfig):
    colocated: bool = True


class Vault(vf.Task[VaultData, VaultState]):
    @classmethod
    def toolsets(cls, config: Any) -> list[vf.Toolset]:
        """One, for each episode."""
        return [Desk(vf.ToolsetConfig())]

    @vf.stop
    async def no_more_tries(self, trace: vf.Trace) -> bool:
        """Three, or an open vault."""
        return bool(trace.state.tries >= 3 or trace.state.opened)

    @vf.reward
    async def opened(self, trace: Any) -> float:
        """Whether it is open, after a look at the note in a call of its own."""
        asked = [call.name for message in trace.assistant_messages for call in message.tool_calls or ()]
        return float(trace.state.opened and "desk_read_note" in asked)


class BoxedVault(Vault):
    @classmethod
    def toolsets(cls, config: Any) -> list[vf.Toolset]:
        return [Desk(Elsewhere())]


class Vaults(vf.Taskset[Vault, VaultsConfig]):
    def load(self) -> Iterable[Vault]:
        """Sixty of them."""
        kind = BoxedVault if self.config.elsewhere else Vault
        for number in range(self.config.first, self.config.first + 60):
            yield kind(VaultData(prompt=f"Open vault {number}.", system_prompt="The note on the desk holds the code.",
                                 code=1000 + 7 * number % 9000))
