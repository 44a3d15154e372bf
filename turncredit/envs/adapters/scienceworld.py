"""ScienceWorld's thirty elementary-school experiments, in its simulator, a Java program."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from turncredit.envs.adapters.packages import imported
from turncredit.envs.adapters.scienceworld_machines import World
from turncredit.envs.text_env import Reply, TextEnv
from turncredit.episode import Outcome, Task, Verdict
from turncredit.errors import UserError, did_you_mean

OOD_TASKS = ("chemistry-mix", "chemistry-mix-paint-secondary-color", "chemistry-mix-paint-tertiary-color")
_WORDS = ("open, close, activate, deactivate, connect … to …, disconnect, use … [on …], look around, look at, look in, "
          "read, move … to …, pick up, put down, pour … into …, dunk … into …, mix, go to, eat, flush, focus on, wait, "
          "wait1, inventory, task")
# Variations that the package's own gold path does not solve. In this one the stove is broken; the path melts the
# chocolate in the blast furnace, where it catches fire, and burning it never freezes.
EXCLUDED = {"freeze": (11,)}
# Tasks in which the same actions lead elsewhere each time, since bees fly by no seed: to be had by their names alone.
UNREPEATABLE = ("grow-fruit", "mendelian-genetics-known-plant", "mendelian-genetics-unknown-plant")
# Seconds each: made once a process.
_gold_paths: dict[tuple[str, int, str], list[str]] = {}


class Progress:
    """What was gained on the simulator's own score, as a share of what was to be gained; passes at a score of 1.

    Some variations begin in the right room and so with up to half of the score, which would pay for doing nothing. A
    wrong focus, which the simulator scores -1, is worth 0.
    """

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """The score of the last state, against that of the first."""
        score, first = float(outcome.state["score"]), float(outcome.state["first"])
        return Verdict(min(max((score - first) / (1 - first), 0.0), 1.0), score >= 1, details={"score": score})


class ScienceWorld(TextEnv):
    """An experiment: a house to walk through, things to find, to heat, to grow, to measure. Rewards progress.

    "train" and "test" are the package's variations of that name but for `EXCLUDED`, "ood" those of other tasks. The
    scripted solution is the simulator's gold path. Environments share Java processes, one for each core at most; the
    last that is closed ends them, and so does the end of this process.

    Args:
        tasks: names of the tasks to draw from; all but `ood_tasks` and `UNREPEATABLE` where None.
        ood_tasks: the names for the split "ood".
        simplifications: the package's, such as "easy", "teleportAction" or "" for none.
    Raises:
        MissingExtra: scienceworld is not installed.
        UserError: Java is missing, or an unknown task.
    """

    instructions = (f"Do the experiment. Write one action a turn, alone on a line. Actions: {_WORDS}. Where the "
                    "answer is a list of numbered meanings, write the number.")
    verifier = Progress()
    turn_limit = 200  # a gold path has up to 130 steps
    begins_alike = True

    def __init__(self, tasks: Sequence[str] | None = None, ood_tasks: Sequence[str] = OOD_TASKS,
                 simplifications: str = "easy", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        known = list(imported("scienceworld.constants", "scienceworld", "scienceworld").ID2TASK.values())
        if shutil.which("java") is None:
            raise UserError("ScienceWorld's simulator needs Java (1.8 or later) on the PATH: apt install default-jre")
        chosen = tasks if tasks is not None else [
            name for name in known if name not in (*ood_tasks, *UNREPEATABLE)]
        self._names = list(ood_tasks if self.split == "ood" else chosen)
        for name in self._names:
            if name not in known:
                raise UserError(f"tasks holds {name!r}: ScienceWorld has no such task{did_you_mean(name, known)}")
        self._simplifications = simplifications
        self._world: World | None = None
        self._loaded: tuple[str, int] | None = None
        self._variations: dict[str, list[int]] = {}

    def make_task(self, rng: np.random.Generator) -> Task:
        """A task by name, uniformly, and one of its variations in this split."""
        name = self._names[int(rng.integers(len(self._names)))]
        among = self.variations(name)
        return self.variation(name, among[int(rng.integers(len(among)))])

    def variations(self, name: str) -> list[int]:
        """The numbers of a task's variations in this split."""
        if name not in self._variations:
            world = self._running()
            world("load", name, 0, self._simplifications, False)
            self._loaded = None
            found = world("getVariationsTest" if self.split == "test" else "getVariationsTrain")
            self._variations[name] = [int(number) for number in found if int(number) not in EXCLUDED.get(name, ())]
        return self._variations[name]

    def variation(self, name: str, number: int) -> Task:
        """The task of that name and variation."""
        seen = self._load(name, number)
        prompt = f"{self._running()('getTaskDescription')}\n\n{seen}"
        return Task(prompt, {"name": name, "variation": number}, self.split, self.level,
                    f"{self.split}-{name}-{number}")

    def start(self) -> None:
        """Load the variation, where making the task has not done so."""
        hidden = self.task.hidden
        if self._loaded != (hidden["name"], hidden["variation"]):
            self._load(hidden["name"], hidden["variation"])
        self._first = self._score

    def state(self) -> Mapping[str, Any]:
        """The simulator's score, now and at the start."""
        return {"score": self._score, "first": self._first}

    def respond(self, action: str) -> Reply:
        """Do the last line that is not empty. The simulator ends an episode by success or by a wrong focus."""
        lines = [line.strip() for line in action.splitlines() if line.strip()]
        self._loaded = None
        said = (lines[-1] if lines else "").encode(errors="replace").decode()[:400]
        # The package's own `step` lists every valid action with each answer, which takes 10 times as long as the step.
        world = self._running()
        observation = str(world("step", said))
        self._score = float(world("getScore"))
        over = bool(world("getCompleted")) or self._score < 0
        return Reply(observation, done=over, valid=not observation.startswith("No known action matches that input"))

    def expert_action(self) -> str:
        """The gold path's next action.

        Raises:
            RuntimeError: it was not asked for from the first turn on.
        """
        hidden = self.task.hidden
        key = (hidden["name"], hidden["variation"], self._simplifications)
        if key not in _gold_paths:
            if self.turns:
                raise RuntimeError("ScienceWorld's gold path begins at the first turn: ask for it there")
            self._load(hidden["name"], hidden["variation"], gold=True)
            _gold_paths[key] = [str(action) for action in self._running()("getGoldActionSequence")]
            self._load(hidden["name"], hidden["variation"])
        path = _gold_paths[key]
        return path[len(self.turns)] if len(self.turns) < len(path) else "wait"

    def close(self) -> None:
        """Give the simulator up."""
        if self._world is not None:
            self._world.close()
            self._world = None

    def _load(self, name: str, variation: int, gold: bool = False) -> str:
        """Put the simulator into a variation's first state; what is seen there."""
        world = self._running()
        world("load", name, variation, self._simplifications, gold)
        world("reset")
        seen = str(world("step", "look around"))
        self._score = float(world("getScore"))
        self._loaded = (name, variation)
        return seen

    def _running(self) -> World:
        if self._world is None:
            self._world = World()
        return self._world
