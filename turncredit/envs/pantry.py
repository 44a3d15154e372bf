"""Tool use with a state: bring a pantry's shelves to what the note asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from turncredit.envs.splits import draw_from_split
from turncredit.envs.tools import ToolEnv, ToolError, tool
from turncredit.episode import Task
from turncredit.verifiers import FinalState

GOODS = ("apples", "beans", "bread", "cheese", "dates", "eggs", "figs", "honey", "jam", "kale", "leeks", "milk",
         "nuts", "oats", "pears", "rice", "salt", "tea")
OOD_GOODS = ("anvils", "bolts", "cables", "drills", "fuses", "gears", "hinges", "nails")


class Pantry(ToolEnv):
    """Look at shelves, set, move and throw away goods; judged by what stands there in the end."""

    instructions = "Bring the pantry to the state that the note asks for. Use the tools, then say done."
    verifier = FinalState()
    levels = 3
    turn_limit = 12

    def make_task(self, rng: np.random.Generator) -> Task:
        """`level` wishes; the pairs of goods differ between train and test, all goods are others in "ood"."""
        goods = OOD_GOODS if self.split == "ood" else GOODS
        count = self.level + 1

        def draw() -> list[str]:
            return [str(g) for g in rng.choice(goods, size=count, replace=False)]

        chosen = draw_from_split(self.split, draw, lambda drawn: " ".join(sorted(drawn)))
        shelves = {name: int(rng.integers(1, 20)) for name in chosen}
        goal, wishes, solution = dict(shelves), [], []
        for i, name in enumerate(chosen[: self.level]):
            kind = str(rng.choice(["set", "discard", "move"]))
            other = chosen[i + 1]
            if kind == "set":
                amount = int(rng.integers(20, 60))
                wishes.append(f"have {amount} {name}")
                goal[name] = amount
                solution.append(("put", {"item": name, "count": amount}))
            elif kind == "discard":
                wishes.append(f"throw away all {name}")
                del goal[name]
                solution.append(("discard", {"item": name}))
            else:
                # Only a look at the shelf tells how many; the total is kept in the other good.
                wishes.append(f"have as many {name} as {other}")
                goal[name] = goal[other]
                solution += [("look", {"item": other}), ("put", {"item": name, "count": goal[other]})]
        note = f"In this order: {'; '.join(wishes)}."
        hidden = {"shelves": shelves, "goal": goal, "solution": solution}
        return Task(note, hidden, self.split, self.level)

    def start(self) -> None:
        """Fill the shelves."""
        self.shelves: dict[str, int] = dict(self.task.hidden["shelves"])
        self._plan = list(self.task.hidden["solution"])

    def state(self) -> Mapping[str, Any]:
        """Item -> count."""
        return self.shelves

    @tool
    def look(self, item: str) -> str:
        """Say how many of an item there are.

        Args:
            item: the good's name.
        """
        return str(self._count(item))

    @tool
    def put(self, item: str, count: int) -> str:
        """Set the number of an item.

        Args:
            item: the good's name.
            count: how many there shall be.
        """
        if not 0 < count <= 1000:
            raise ToolError(f"count is {count}: it must be 1 to 1000")
        self.shelves[item] = count
        return "ok"

    @tool
    def discard(self, item: str) -> str:
        """Throw away all of an item.

        Args:
            item: the good's name.
        """
        self._count(item)
        del self.shelves[item]
        return "ok"

    def expert_action(self) -> str:
        """The next step of the plan that the task was drawn with."""
        if not self._plan:
            return "done"
        name, arguments = self._plan.pop(0)
        return self.call(name, **arguments)

    def _count(self, item: str) -> int:
        if item not in self.shelves:
            raise ToolError(f"there is no {item!r} in the pantry")
        return self.shelves[item]


