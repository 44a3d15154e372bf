"""Gymnasium's toy text as text: FrozenLake, Taxi and CliffWalking, each with the rest of its splits.

In Gymnasium these have one task each (FrozenLake's map, CliffWalking's start) or 300 (Taxi's starts), so that a split
by seed would test on what was trained. Here a task is a map or a start, and splits hold different ones.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.toy_text.frozen_lake import generate_random_map

from turncredit.envs.splits import draw_from_split
from turncredit.envs.text_env import Reply, TextEnv
from turncredit.episode import Outcome, Task, Verdict
from turncredit.seeds import seed_of

_DISCOUNT = 0.97
_SWEEPS = 400


class GoalReached:
    """Passes where the state says so."""

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """All or nothing."""
        return Verdict.of(bool(outcome.state["reached"]))


class ToyText(TextEnv):
    """A tabular environment of Gymnasium's, its state drawn as text; one action, by name, a turn.

    The scripted solution is the optimal policy, by value iteration on the environment's own transitions.
    """

    verifier = GoalReached()
    package = "gymnasium"
    actions: tuple[str, ...]  # names, in Gymnasium's order
    one_world = True  # for every task, of which each begins elsewhere in it
    inner: Any = None

    @abstractmethod
    def open(self, task: Task) -> gymnasium.Env[Any, Any]:
        """The environment of a task."""

    @abstractmethod
    def view(self) -> str:
        """The state as text."""

    @abstractmethod
    def reached(self, reward: float) -> bool:
        """Whether a last step with that reward solved the task."""

    def begin(self) -> None:
        """Put the environment into the task's first state, where its reset does not."""

    def start(self) -> None:
        """Open the task's environment; where moves slip, they do so by the task, not by what was played before."""
        if self.inner is None or not self.one_world:
            self.inner = self.open(self.task).unwrapped
            self._best: np.ndarray[Any, Any] | None = None
        self.inner.reset(seed=seed_of("toy text", self.task.id) % 2**31)
        self.begin()
        self._reached = False

    def state(self) -> Mapping[str, Any]:
        """Whether the goal was reached."""
        return {"reached": self._reached}

    def respond(self, action: str) -> Reply:
        """Take the last action that the text names."""
        named = re.findall(rf"\b({'|'.join(self.actions)})\b", action.lower())
        if not named:
            return Reply(f"error: no action: write one of {', '.join(self.actions)}", valid=False)
        _, reward, over, *_ = self.inner.step(self.actions.index(named[-1]))
        self._reached = over and self.reached(float(reward))
        return Reply(self.view(), done=bool(over))

    def expert_action(self) -> str:
        """The best action in this state."""
        if self._best is None:
            self._best = _optimal_policy(self.inner.P)
        return self.actions[int(self._best[int(self.inner.s)])]


class FrozenLake(ToyText):
    """Cross a frozen lake without falling into a hole. A map is drawn for each task, 8x8 instead of 4x4 in "ood".

    Args:
        slippery: whether a move may go to either side instead, as in Gymnasium; the best policy then fails sometimes.
    """

    instructions = ("Walk over a frozen lake from S to G. F is ice, H a hole, the agent stands at the letter in "
                    "brackets. Write one move a turn: left, down, right or up.")
    actions = ("left", "down", "right", "up")
    turn_limit = 40
    one_world = False

    def __init__(self, slippery: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slippery = slippery
        if slippery and kwargs.get("max_turns") is None:
            self.max_turns = 100  # as in Gymnasium
            self.floor = 0.1  # random moves reach the goal of one task in 40

    def make_task(self, rng: np.random.Generator) -> Task:
        """A map with a way through."""
        size = 8 if self.split == "ood" else 4
        rows = draw_from_split(self.split, lambda: generate_random_map(size, seed=int(rng.integers(2**31))), "".join)
        return Task(_marked(rows, 0), {"map": tuple(rows)}, self.split, self.level)

    def open(self, task: Task) -> gymnasium.Env[Any, Any]:
        """FrozenLake on the task's map."""
        return gymnasium.make("FrozenLake-v1", desc=list(task.hidden["map"]), is_slippery=self.slippery,
                              disable_env_checker=True)

    def view(self) -> str:
        """The map with the agent."""
        return _marked(self.task.hidden["map"], int(self.inner.s))

    def reached(self, reward: float) -> bool:
        """The goal is worth 1, a hole 0."""
        return reward > 0


class CliffWalking(ToyText):
    """Walk round a cliff to the goal, from a start that the task says; in "ood" the ground is slippery.

    Gymnasium's has one start. Falling costs nothing but the way back there.
    """

    instructions = ("Walk to G without stepping on the cliff C, which throws you back to the lower left corner. The "
                    "agent stands at the letter in brackets. Write one move a turn: up, right, down or left.")
    actions = ("up", "right", "down", "left")
    turn_limit = 40
    _slippery_turn_limit = 150
    _map = ("." * 12, "." * 12, "." * 12, "." + "C" * 10 + "G")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.split == "ood" and kwargs.get("max_turns") is None:
            self.max_turns = self._slippery_turn_limit

    def make_task(self, rng: np.random.Generator) -> Task:
        """A start on safe ground."""
        place = draw_from_split(self.split, lambda: int(rng.integers(37)), lambda drawn: f"start {drawn}")
        ground = " The ground is slippery." if self.split == "ood" else ""
        return Task(_marked(self._map, place) + ground, {"place": place}, self.split, self.level)

    def open(self, task: Task) -> gymnasium.Env[Any, Any]:
        """CliffWalking, slippery in "ood"."""
        return gymnasium.make("CliffWalking-v1", is_slippery=self.split == "ood", disable_env_checker=True)

    def begin(self) -> None:
        """Stand where the task says."""
        self.inner.s = self.task.hidden["place"]

    def view(self) -> str:
        """The map with the agent."""
        return _marked(self._map, int(self.inner.s))

    def reached(self, reward: float) -> bool:
        """An episode ends at the goal alone."""
        return True


class Taxi(ToyText):
    """Fetch a passenger and bring them to a hotel. In "ood" it rains: a move may go to the side."""

    instructions = ("Drive a taxi: fetch the passenger and bring them to their destination. | is a wall, : can be "
                    "passed. Write one action a turn: south, north, east, west, pickup or dropoff.")
    actions = ("south", "north", "east", "west", "pickup", "dropoff")
    turn_limit = 60
    _stops = ("Red", "Green", "Yellow", "Blue")

    def make_task(self, rng: np.random.Generator) -> Task:
        """A start: where the taxi is, where the passenger waits, where they want to go."""
        def draw() -> tuple[int, int, int, int]:
            passenger, goal = (int(i) for i in rng.choice(4, size=2, replace=False))
            return int(rng.integers(5)), int(rng.integers(5)), passenger, goal

        begin = draw_from_split(self.split, draw, str)
        weather = " It rains: the taxi may slip to a side." if self.split == "ood" else ""
        return Task(self._described(*begin) + weather, {"begin": begin}, self.split, self.level)

    def open(self, task: Task) -> gymnasium.Env[Any, Any]:
        """Taxi, rainy in "ood"."""
        return gymnasium.make("Taxi-v4", is_rainy=self.split == "ood", disable_env_checker=True)

    def begin(self) -> None:
        """The task's start."""
        self.inner.s = self.inner.encode(*self.task.hidden["begin"])

    def view(self) -> str:
        """The town, the taxi, the passenger."""
        return self._described(*self.inner.decode(int(self.inner.s)))

    def reached(self, reward: float) -> bool:
        """An episode ends with the passenger at their destination alone."""
        return True

    def _described(self, row: int, column: int, passenger: int, goal: int) -> str:
        waits = "in the taxi" if passenger == 4 else f"at {self._stops[passenger]}"
        town = "\n".join(("+---------+", "|R: | : :G|", "| : | : : |", "| : : : : |", "| | : | : |", "|Y| : |B: |",
                          "+---------+"))
        return (f"{town}\nThe taxi is in row {row}, column {column} (from the top left corner, counted from 0). "
                f"The passenger is {waits} and wants to go to {self._stops[goal]}.")


def _marked(rows: Any, place: int) -> str:
    """A map with brackets round the agent's place."""
    width = len(rows[0])
    lines = []
    for number, row in enumerate(rows):
        cells = [f"[{cell}]" if number * width + i == place else f" {cell} " for i, cell in enumerate(row)]
        lines.append("".join(cells).rstrip())
    return "\n".join(lines)


def _optimal_policy(transitions: Mapping[int, Mapping[int, Any]]) -> np.ndarray[Any, Any]:
    """The best action of each state [states], by value iteration."""
    states, actions = len(transitions), len(transitions[0])
    most = max(len(outcomes) for moves in transitions.values() for outcomes in moves.values())
    chance, gain, keeps = (np.zeros((states, actions, most)) for _ in range(3))
    to = np.zeros((states, actions, most), dtype=int)
    for state, moves in transitions.items():
        for action, outcomes in moves.items():
            for i, (p, next_state, reward, over) in enumerate(outcomes):
                chance[state, action, i], gain[state, action, i], to[state, action, i] = p, reward, next_state
                keeps[state, action, i] = 0.0 if over else _DISCOUNT
    values = np.zeros(states)
    for _ in range(_SWEEPS):
        q = (chance * (gain + keeps * values[to])).sum(axis=2)
        before, values = values, q.max(axis=1)
        if np.abs(values - before).max() < 1e-9:
            break
    best: np.ndarray[Any, Any] = q.argmax(axis=1)
    return best
