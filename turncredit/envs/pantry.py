"""Tool use with a state: bring a pantry's shelves to what the note asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from turncredit.envs.splits import draw_from_split
from turncredit.envs.tools import ToolEnv, ToolError, tool
from turncredit.episode import Task
from turncredit.verifiers import FinalState

GOODS = ("apples", "beans", "bread", "cheese", "dates", "eggs", "figs", "honey", "jam", "kale", "leeks", "milk",
         "nuts", "oats", "pears", "rice", "salt", "tea")
OOD_GOODS = ("anvils", "bolts", "cables", "drills", "fuses", "gears", "hinges", "nails")
KINDS = ("set", "discard", "match")


@dataclass(frozen=True, slots=True)
class Wish:
    """What shall become of an item; `other` is the one to be matched, and stands on the shelves in any case."""

    kind: str
    item: str
    other: str

    @property
    def named(self) -> tuple[str, ...]:
        """The goods that the note names for it."""
        return (self.item, self.other) if self.kind == "match" else (self.item,)


class Pantry(ToolEnv):
    """Look at shelves, set, match and throw away goods; judged by what stands there in the end."""

    instructions = "Bring the pantry to the state that the note asks for. Use the tools, then say done."
    verifier = FinalState()
    levels = 3
    turn_limit = 12

    def make_task(self, rng: np.random.Generator) -> Task:
        """`level` wishes; the goods that a note names differ between train and test, all goods are others in "ood"."""
        goods = OOD_GOODS if self.split == "ood" else GOODS

        def draw() -> list[Wish]:
            names = [str(g) for g in rng.choice(goods, size=self.level + 1, replace=False)]
            return [Wish(str(rng.choice(KINDS)), item, other) for item, other in pairwise(names)]

        wishes = draw_from_split(self.split, draw, lambda drawn: " ".join(sorted({n for w in drawn for n in w.named})))
        stocked = [wishes[0].item, *(w.other for w in wishes)]
        # No two alike, so that no wish is fulfilled before the agent does anything.
        counts = rng.choice(np.arange(1, 20), size=len(stocked), replace=False)
        shelves = {name: int(count) for name, count in zip(stocked, counts)}
        goal, texts, solution = dict(shelves), [], []
        for wish in wishes:
            name = wish.item
            if wish.kind == "set":
                goal[name] = int(rng.integers(20, 60))
                texts.append(f"have {goal[name]} {name}")
                solution.append(("put", {"item": name, "count": goal[name]}))
            elif wish.kind == "discard":
                del goal[name]
                texts.append(f"throw away all {name}")
                solution.append(("discard", {"item": name}))
            else:  # only a look at the shelf tells how many
                goal[name] = goal[wish.other]
                texts.append(f"have as many {name} as {wish.other}")
                solution += [("look", {"item": wish.other}), ("put", {"item": name, "count": goal[name]})]
        hidden = {"shelves": shelves, "goal": goal, "solution": solution}
        return Task(f"In this order: {'; '.join(texts)}.", hidden, self.split, self.level)

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
