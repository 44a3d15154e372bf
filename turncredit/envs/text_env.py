"""The environment contract: Gymnasium's `reset` and `step` over text, plus what an agent needs to know.

An author writes a `TextEnv` with `make_task` and `respond` (or a `ToolEnv`, see tools.py). `reset` and `step`
keep the books: turns, limits, the verdict. Whatever a verifier raises becomes an unknown verdict, never a zero.
"""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from turncredit.envs.splits import SPLITS
from turncredit.episode import Outcome, StopReason, Task, Turn, Verdict
from turncredit.errors import UserError, did_you_mean
from turncredit.toolcalls import ToolSpec, tool_format
from turncredit.verifiers.base import Verifier, judge


class TextSpace(gymnasium.Space[str]):
    """Every string. (`gymnasium.spaces.Text` knows 62 characters, no space among them, and has a bound.)"""

    def __init__(self, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(shape=None, dtype=None, seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A short printable text."""
        return "".join(map(chr, self.np_random.integers(32, 127, size=int(self.np_random.integers(1, 33)))))

    def contains(self, x: Any) -> bool:
        """True for any str."""
        return isinstance(x, str)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextSpace)

    def __hash__(self) -> int:
        return hash(TextSpace)

    def __repr__(self) -> str:
        return "TextSpace()"


def has_solution(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether an environment, a `TextEnv` or another, has a scripted solution for the tasks that it was made for."""
    inner = env.unwrapped
    return inner.solvable if isinstance(inner, TextEnv) else hasattr(inner, "expert_action")


@dataclass(frozen=True, slots=True)
class Reply:
    """What an environment answers to an action. `answer` is what the verifier judges, where one was given."""

    observation: str = ""
    done: bool = False
    answer: str | None = None
    role: str = "user"
    valid: bool = True


class TextEnv(gymnasium.Env[str, str]):
    """A multi-turn task over text. Subclasses state `instructions` and `verifier`, and write two methods.

    `reset` puts into `info` what an agent needs: "instructions", "tools" (list of ToolSpec), "task_id", "split".
    `step` puts there "valid" (was the action well formed), "role" (of the observation) and, at the end,
    "verdict" and "stop". The reward is the verdict's, at the end, and NaN where it is unknown.

    Args:
        split: "train", "test" (same distribution, disjoint) or "ood" (another distribution).
        level: the difficulty, 1 to `levels`.
        max_turns: turns after which the episode is cut off; the environment's own where None.
        tool_format: how the agent writes tool calls, "json" or "plain".
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  # as Gymnasium declares it
    instructions: str = ""
    verifier: Verifier
    levels: int = 1
    turn_limit: int = 8
    package: str = ""  # the distribution that it adapts, for its card
    num_tasks: int | None = None  # the size of a finite task set; None where tasks are generated without end
    begins_alike: bool = False  # tasks that differ may begin with one and the same observation; their ids differ
    split_is_label: bool = False  # all splits have the same tasks: the user chose the data, and says what they are

    def __init__(self, split: str = "train", level: int = 1, max_turns: int | None = None,
                 tool_format: str = "json") -> None:
        if split not in SPLITS:
            raise UserError(f"split {split!r} is unknown{did_you_mean(split, SPLITS)} (known: {', '.join(SPLITS)})")
        if not isinstance(level, int) or not 1 <= level <= self.levels:
            raise UserError(f"level is {level!r}: {type(self).__name__} has levels 1 to {self.levels}")
        if max_turns is not None and (not isinstance(max_turns, int) or max_turns < 1):
            raise UserError(f"max_turns is {max_turns!r}: it must be a whole number of at least 1")
        self.action_space = TextSpace()
        self.observation_space = TextSpace()
        self.split, self.level = split, level
        self.max_turns = max_turns or self.turn_limit
        self.use_tool_format(tool_format)
        self.task = Task("")
        self.turns: list[Turn] = []
        self.verifier_s = 0.0  # seconds that the verifier took in this episode
        self._answer: str | None = None
        self._over = True

    # What an author writes.

    @abstractmethod
    def make_task(self, rng: np.random.Generator) -> Task:
        """Draw a task of `self.split` and `self.level`; every random draw comes from `rng`."""

    @abstractmethod
    def respond(self, action: str) -> Reply:
        """Answer one action of the agent."""

    def start(self) -> None:
        """Set up the state of a new episode of `self.task`."""

    def state(self) -> Mapping[str, Any]:
        """The final state, for verifiers that judge it."""
        return {}

    def expert_action(self) -> str:
        """The next action of a scripted solution, from the environment's own knowledge of the task."""
        raise NotImplementedError(f"{type(self).__name__} has no scripted solution")

    @property
    def solvable(self) -> bool:
        """Whether the scripted solution plays this environment's tasks; one that knows some of them alone says so."""
        return type(self).expert_action is not TextEnv.expert_action

    def task_at(self, index: int) -> Task:
        """The task at an index of a finite task set of `num_tasks`."""
        raise NotImplementedError(f"{type(self).__name__} generates its tasks: reset it with a seed")

    # What everybody calls.

    @property
    def tools(self) -> list[ToolSpec]:
        """The tools that the agent may call."""
        return []

    def use_tool_format(self, name: str) -> None:
        """Expect tool calls as the agent's model writes them."""
        self.tool_format = tool_format(name)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode. `options={"task": i}` takes the i-th of a finite task set instead of drawing one."""
        super().reset(seed=seed)
        index = (options or {}).get("task")
        self.task = self.make_task(self.np_random) if index is None else self.task_at(int(index))
        self.turns, self._answer, self._over, self.verifier_s = [], None, False, 0.0
        self.start()
        return self.task.prompt, {"instructions": self.instructions, "tools": self.tools,
                                  "task_id": self.task.id, "split": self.task.split, "level": self.task.level}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take the agent's action; see the class for what `info` holds."""
        if self._over:
            raise gymnasium.error.ResetNeeded("the episode is over: call reset() before step()")
        if not isinstance(action, str):
            raise TypeError(f"action is {type(action).__name__}: it must be a str")
        reply = self.respond(action)
        self.turns.append(Turn(action, reply.observation, reply.role, reply.valid))
        self._answer = reply.answer if reply.done else None
        truncated = not reply.done and len(self.turns) >= self.max_turns
        info: dict[str, Any] = {"valid": reply.valid, "role": reply.role}
        reward = 0.0
        if reply.done or truncated:
            self._over = True
            verdict = info["verdict"] = self.verdict()
            info["stop"] = StopReason.TURN_LIMIT if truncated else StopReason.FINISHED
            reward = float("nan") if verdict.reward is None else verdict.reward
        return reply.observation, reward, reply.done, truncated, info

    def verdict(self) -> Verdict:
        """Judge the episode as it stands: also what an episode is worth that ran out of tokens."""
        outcome = Outcome(self._answer, tuple(self.turns), copy.deepcopy(self.state()))
        began = time.perf_counter()
        verdict = judge(self.verifier, self.task, outcome)
        self.verifier_s += time.perf_counter() - began
        return verdict
