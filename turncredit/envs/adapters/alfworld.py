"""ALFWorld's household tasks as text, over its package's domain and grammar, in TextWorld's PDDL games."""

from __future__ import annotations

import importlib.resources
import json
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from turncredit.envs.adapters.alfworld_problems import TYPES, Problem, draw_problem
from turncredit.envs.adapters.packages import imported, variable
from turncredit.envs.adapters.toy_text import GoalReached
from turncredit.envs.splits import draw_from_split
from turncredit.envs.text_env import Reply, TextEnv
from turncredit.episode import Task
from turncredit.errors import UserError, did_you_mean

OOD_TYPES = ("pick_two_obj_and_place",)
_FOLDERS = {"train": "train", "test": "valid_seen", "ood": "valid_unseen"}
_translator = threading.Lock()
_idle: list[Any] = []  # games whose environments were closed, each with a planner of its own


class ALFWorld(TextEnv):
    """Find a thing in a room, clean, heat or cool it where that is asked for, and put it where it belongs.

    Without `data`, a task is a room and a goal drawn from a seed, over the package's own domain and classes of things;
    a problem belongs to one split, and "ood" has other types of goals. With `data`, tasks are the package's own games,
    which are a download: its sets train, valid_seen ("test") and valid_unseen ("ood"). The scripted solution is the
    planner's.

    Args:
        types: the types of goals to draw from; all but `ood_types` where None.
        ood_types: the types for the split "ood".
        things: that stand in a room beside what is asked for.
        data: the folder json_2.1.1 of ALFWorld's data, as `alfworld-download` makes it.
    Raises:
        MissingExtra: alfworld is not installed.
        UserError: an unknown type, or no games in `data`.
    """

    instructions = (
        "Do a task in a room. Write one command a turn, alone on a line: look, inventory, go to shelf 1, open drawer "
        "2, close drawer 2, take mug 1 from desk 1, move mug 1 to shelf 2, examine mug 1, use desklamp 1, clean mug 1 "
        "with sinkbasin 1, heat mug 1 with microwave 1, cool mug 1 with fridge 1. You hold one thing at a time.")
    verifier = GoalReached()
    package = "alfworld"
    turn_limit = 50

    def __init__(self, types: Sequence[str] | None = None, ood_types: Sequence[str] = OOD_TYPES, things: int = 10,
                 data: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in (*(types or ()), *ood_types):
            if name not in TYPES:
                raise UserError(f"types holds {name!r}: ALFWorld has no such type of task{did_you_mean(name, TYPES)} "
                                f"(known: {', '.join(TYPES)})")
        if not isinstance(things, int) or things < 1:
            raise UserError(f"things is {things!r}: it must be a whole number of at least 1")
        chosen = tuple(types) if types is not None else tuple(name for name in TYPES if name not in ood_types)
        self._types = tuple(ood_types) if self.split == "ood" else chosen
        self._things = things
        # On import it makes a folder for downloads in the user's home, unless one is named that is there.
        with variable("ALFWORLD_DATA", tempfile.gettempdir()):
            imported("alfworld", "alfworld", "alfworld")
        self._infos = imported("textworld", "textworld", "alfworld").EnvInfos(admissible_commands=True)
        self._pddl = imported("textworld.envs", "textworld", "alfworld").PddlEnv
        imported("fast_downward", "fast-downward-textworld", "alfworld")
        self._games = None if data is None else _games(data, self.split, self._types)
        self.num_tasks = None if self._games is None else len(self._games)
        self._played: Any = None
        self._commands: frozenset[str] = frozenset()
        self._plan: list[str] = []

    def make_task(self, rng: np.random.Generator) -> Task:
        """A problem, or any of the games."""
        if self._games is not None:
            return self.task_at(int(rng.integers(len(self._games))))
        half = "test" if self.split == "ood" else self.split  # with the same types on both sides

        def draw() -> tuple[int, Problem]:
            seed = int(rng.integers(2**31))
            return seed, draw_problem(np.random.default_rng(seed), self._types, self._things)

        seed, problem = draw_from_split(half, draw, lambda drawn: drawn[1].pddl)
        game = {"pddl_problem": problem.pddl, "pddl_domain": _text("alfred.pddl"),
                "grammar": _text("alfred.twl2").replace("UNKNOWN GOAL", problem.goal)}
        return self._task(game, f"{problem.type}-{self._things}-{seed}")

    def task_at(self, index: int) -> Task:
        """The game at `index` of the split's, by path."""
        if self._games is None:
            return super().task_at(index)
        path = self._games[index]
        return self._task(json.loads(path.read_text()), "/".join(path.parts[-3:-1]))

    def start(self) -> None:
        """The game was begun with the task."""
        self._won = False

    def state(self) -> Mapping[str, Any]:
        """Whether the goal is fulfilled."""
        return {"reached": self._won}

    def respond(self, action: str) -> Reply:
        """Do the last line that is not empty. What cannot be done now changes nothing, and the package says so."""
        lines = [line.strip() for line in action.splitlines() if line.strip()]
        command = lines[-1].lower() if lines else ""
        if command not in self._commands:  # the package's own answer, without its work of a step
            return Reply("Nothing happens.", valid=False)
        state, _, over = self._played.step(command)
        self._won, self._commands = bool(state["won"]), frozenset(state["admissible_commands"])
        return Reply(str(state.feedback).strip(), done=bool(over))

    def expert_action(self) -> str:
        """The planner's next command, from the task's first state on."""
        if not self.turns:
            with _kept_apart():
                self._plan = list(self._played._pddl_state.replan(self._played._entity_infos))
        return self._plan[len(self.turns)] if len(self.turns) < len(self._plan) else "look"

    def close(self) -> None:
        """Leave the planner to the next copy: unloading its library has crashed the process."""
        if self._played is not None:
            _idle.append(self._played)
            self._played = None

    def _task(self, game: Mapping[str, Any], name: str) -> Task:
        """Begin the game; what it shows first is the prompt."""
        with _kept_apart():
            if self._played is None:
                self._played = _idle.pop() if _idle else self._pddl(self._infos)
            self._played.load(game)
            names = imported("alfworld.agents.utils.misc", "alfworld", "alfworld").Demangler(
                game_infos=self._played._entity_infos, shuffle=False)
            for info in self._played._entity_infos.values():
                info.name = names.demangle_alfred_name(info.id).strip()
            state = self._played.reset()
        self._commands, shown = frozenset(state["admissible_commands"]), str(state.feedback)
        return Task(shown.partition("=-\n")[2].strip() or shown, {}, self.split, self.level, f"{self.split}-{name}")


@contextmanager
def _kept_apart() -> Iterator[None]:
    """The package's translator writes over sys.argv and sys.stdout, and keeps its options for the whole process."""
    with _translator:
        arguments, out = sys.argv, sys.stdout
        try:
            yield
        finally:
            sys.argv, sys.stdout = arguments, out


def _text(name: str) -> str:
    return (importlib.resources.files("alfworld") / "data" / name).read_text()


def _games(data: str, split: str, types: Sequence[str]) -> list[Path]:
    """The games of a split that the package itself plays, of those types; of all in "ood"."""
    folder = Path(data) / _FOLDERS[split]
    found = sorted(path for path in folder.glob("*/*/game.tw-pddl")
                   if path.parts[-3].partition("-")[0] in (TYPES if split == "ood" else types)
                   and "Sliced" not in path.parts[-3])
    found = [path for path in found if json.loads(path.read_text()).get("solvable")]
    if not found:
        raise UserError(f"data is {data!r}: no solvable game.tw-pddl stands in its folder {_FOLDERS[split]}: get them "
                        "with `alfworld-download`, and name its folder json_2.1.1")
    return found
