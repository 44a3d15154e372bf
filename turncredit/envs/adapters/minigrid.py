"""MiniGrid and BabyAI with a text view: what the agent sees in its field of view, as sentences."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from turncredit.envs.adapters.packages import imported
from turncredit.envs.adapters.toy_text import GoalReached
from turncredit.envs.splits import draw_from_split
from turncredit.envs.text_env import Reply, TextEnv
from turncredit.episode import Task
from turncredit.errors import UserError, did_you_mean

ACTIONS = {"turn left": 0, "turn right": 1, "go forward": 2, "pick up": 3, "drop": 4, "toggle": 5, "done": 6}
_NAMES = tuple(ACTIONS)


class MiniGrid(TextEnv):
    """A level of MiniGrid or BabyAI; one action a turn; the mission stands in the first observation.

    A task is a whole world (grid, agent, mission), and splits hold different worlds: two seeds of a small level often
    make the same one (1,000 seeds of DoorKey-5x5 make 48). Reward 1 for the mission, whatever time it took.

    Args:
        env: the id, such as "BabyAI-GoToLocal-v0".
        ood: the id for the split "ood".
    Raises:
        MissingExtra: minigrid is not installed.
        UserError: an id that MiniGrid does not have.
    """

    instructions = (f"You walk through a world of square cells. Write one action a turn: {', '.join(_NAMES)}. "
                    "Toggle opens doors and boxes in front of you.")
    verifier = GoalReached()
    begins_alike = True
    package = "minigrid"
    turn_limit = 128  # or the level's own number of steps, where that is smaller

    def __init__(self, env: str = "BabyAI-GoToLocal-v0", ood: str = "BabyAI-PickupLoc-v0", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        imported("minigrid", "minigrid", "minigrid")
        known = [id for id in gymnasium.registry if id.startswith(("MiniGrid-", "BabyAI-"))]
        for name, value in (("env", env), ("ood", ood)):
            if value not in known:
                raise UserError(f"{name} is {value!r}: MiniGrid has no such level{did_you_mean(value, known)}")
        made: Any = gymnasium.make(ood if self.split == "ood" else env, disable_env_checker=True)
        self.inner = made.unwrapped
        self._most_turns = self.max_turns
        babyai = imported("minigrid.envs.babyai.core.roomgrid_level", "minigrid", "minigrid")
        babyai.print = _say_nothing  # it prints each draw of a world that it rejects; standard output is ours
        self._has_bot = isinstance(self.inner, babyai.RoomGridLevel)

    def make_task(self, rng: np.random.Generator) -> Task:
        """A world."""
        seed = draw_from_split(self.split, lambda: int(rng.integers(2**31)), self._world)
        digest = hashlib.sha1(self._world(seed).encode()).hexdigest()[:12]
        return Task(f"Mission: {self.inner.mission}.\n{self._view()}", {"seed": seed}, self.split, self.level,
                    f"{self.split}-{digest}")

    def start(self) -> None:
        """Make the task's world."""
        self.inner.reset(seed=self.task.hidden["seed"])
        self.max_turns = min(int(self.inner.max_steps), self._most_turns)  # BabyAI sets it by the mission
        self._bot: Any = None
        self._reached = False

    def state(self) -> Mapping[str, Any]:
        """Whether the mission was fulfilled."""
        return {"reached": self._reached}

    def respond(self, action: str) -> Reply:
        """Take the last action that the text names."""
        named = re.findall(rf"\b({'|'.join(_NAMES)})\b", action.lower())
        if not named:
            return Reply(f"error: no action: write one of {', '.join(_NAMES)}", valid=False)
        _, reward, over, timed_out, _ = self.inner.step(ACTIONS[named[-1]])
        self._reached = bool(over) and float(reward) > 0
        return Reply(self._view(), done=bool(over or timed_out))

    @property
    def solvable(self) -> bool:
        """BabyAI's levels."""
        return self._has_bot

    def expert_action(self) -> str:
        """What BabyAI's own bot does; it knows BabyAI's missions alone.

        Raises:
            NotImplementedError: a level of MiniGrid, which the bot does not know.
        """
        if not self.solvable:
            raise NotImplementedError(f"{self.inner.spec.id} has no scripted solution: BabyAI's levels have one")
        if self._bot is None:
            self._bot = imported("minigrid.utils.baby_ai_bot", "minigrid", "minigrid").BabyAIBot(self.inner)
        return _NAMES[int(self._bot.replan())]

    def close(self) -> None:
        """Close the level."""
        self.inner.close()

    def _world(self, seed: int) -> str:
        """All that tells this world from another."""
        self.inner.reset(seed=seed)
        grid = self.inner.grid.encode().tobytes().hex()
        return f"{self.inner.mission} {tuple(map(int, self.inner.agent_pos))} {self.inner.agent_dir} {grid}"

    def _view(self) -> str:
        """What stands in the field of view, the nearest first, and what is carried."""
        grid, visible = self.inner.gen_obs_grid()
        middle, front = grid.width // 2, grid.height - 1
        seen = []
        for x in range(grid.width):
            for y in range(grid.height):
                cell = grid.get(x, y)
                if visible[x, y] and cell is not None and cell.type != "wall" and (x, y) != (middle, front):
                    seen.append((front - y + abs(x - middle), f"{_described(cell)} {_place(x - middle, front - y)}"))
        lines = [f"You see {text}." for _, text in sorted(seen)] or ["You see nothing but walls."]
        for far in range(1, front + 1):
            if getattr(grid.get(middle, front - far), "type", "") == "wall":
                lines.append(f"A wall is {_count(far)} forward.")
                break
        if self.inner.carrying is not None:
            lines.append(f"You carry {_described(self.inner.carrying)}.")
        return "\n".join(lines)


def _say_nothing(*said: object) -> None:
    """In place of the package's print."""


def _described(cell: Any) -> str:
    if cell.type != "door":
        return f"a {cell.color} {cell.type}"
    return f"{'an open' if cell.is_open else 'a locked' if cell.is_locked else 'a closed'} {cell.color} door"


def _place(right: int, forward: int) -> str:
    parts = [f"{_count(forward)} forward"] if forward else []
    if right:
        parts.append(f"{_count(abs(right))} to the {'right' if right > 0 else 'left'}")
    return " and ".join(parts)


def _count(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}"
