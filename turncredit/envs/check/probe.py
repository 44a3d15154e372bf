"""Play an environment under a deadline, and write down everything it says."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from turncredit.agents.trivial import Seen, Trivial, random_action
from turncredit.envs.registry import make
from turncredit.envs.text_env import has_solution
from turncredit.episode import Verdict
from turncredit.errors import UserError
from turncredit.seeds import seed_of
from turncredit.toolcalls import tool_format

T = TypeVar("T")
LONGEST_EPISODE = 200  # turns after which an episode counts as endless


class Broken(Exception):
    """The environment does not hold to a row of the contract; the message says how it was seen."""


class Hangs(Broken):
    """A call did not return in time."""


class NotApplicable(Exception):
    """A row says nothing about this environment; the message says why."""


@dataclass(slots=True)
class Played:
    """One episode as it went. `total` is what it is worth: the verdict's reward, else the sum of the steps'."""

    seed: int
    prompt: Any
    info: Mapping[str, Any]
    actions: list[str] = field(default_factory=list)
    observations: list[Any] = field(default_factory=list)
    rewards: list[Any] = field(default_factory=list)
    infos: list[Any] = field(default_factory=list)
    terminated: Any = False
    truncated: Any = False

    @property
    def over(self) -> bool:
        """Whether the environment ended it."""
        return bool(self.terminated) or bool(self.truncated)

    @property
    def verdict(self) -> Any:
        """The environment's, where it gives one."""
        last = self.infos[-1] if self.infos else {}
        return last.get("verdict") if isinstance(last, Mapping) else None

    @property
    def total(self) -> float | None:
        """None where it could not be judged."""
        if isinstance(self.verdict, Verdict):
            return self.verdict.reward
        numbers = [float(r) for r in self.rewards]
        return sum(numbers) if all(map(math.isfinite, numbers)) else None

    @property
    def trace(self) -> list[Any]:
        """What must be the same when the same actions are taken from the same seed."""
        return [self.prompt, self.info.get("task_id"), self.observations, [_stable(r) for r in self.rewards],
                bool(self.terminated), bool(self.truncated), _verdict_trace(self.verdict)]


class Subject:
    """The environment under examination.

    Args:
        id: as it is registered.
        arguments: for its constructor.
        seeds: how many tasks each row looks at.
        deadline_s: for a single call.
    """

    def __init__(self, id: str, arguments: Mapping[str, Any] | None = None, seeds: int = 12,
                 deadline_s: float = 20.0) -> None:
        self.id, self.arguments = id, dict(arguments or {})
        self.seeds, self.deadline_s = seeds, deadline_s
        self.close_hangs = False
        self.release = threading.Event()  # ends the thread of the last call
        self.folder, self.variables = Path.cwd(), dict(os.environ)  # as they were before anything was made

    def make(self, **more: Any) -> Any:
        """A new copy."""
        return self.within_deadline("making it", lambda: make(self.id, **{**self.arguments, **more}))

    def task_of(self, env: Any, seed: int) -> str:
        """What tells the seed's task from others: its first observation, or its id where the environment says so."""
        played = self.reset(env, seed)
        if not getattr(env.unwrapped, "begins_alike", False):
            return str(played.prompt)
        return str(played.info.get("task_id", "")).removeprefix(f"{played.info.get('split', '')}-")

    def close(self, env: Any) -> None:
        """Close a copy; once closing has hung, nobody waits for it any more: a row of its own reports it."""
        if self.close_hangs:
            threading.Thread(target=env.close, daemon=True).start()
            return
        try:
            self.within_deadline("close()", env.close)
        except Hangs:
            self.close_hangs = True
        except Broken:
            return  # the row about closing says so

    def within_deadline(self, what: str, call: Callable[[], T], refusals: tuple[type[Exception], ...] = ()) -> T:
        """The result of a call, which is made in a thread of its own, as a rollout does.

        Raises:
            Hangs: it does not return in time.
            Broken: it raises anything but a `UserError` or one of `refusals`.
        """
        result: list[T] = []
        raised: list[BaseException] = []
        done, released = threading.Event(), threading.Event()

        def work() -> None:
            nonlocal call
            try:
                result.append(call())
            except BaseException as error:  # whatever an author's code raises, SystemExit included
                raised.append(error)
            del call  # what it holds must not live as long as this thread
            done.set()
            released.wait(self.deadline_s)

        threading.Thread(target=work, daemon=True, name="check").start()
        # Only now may the last call's thread end: a thread that starts after another's end may get its number, and what
        # is bound to one thread would seem to work in every.
        self.release.set()
        self.release = released
        if not done.wait(self.deadline_s):
            raise Hangs(f"{what} does not return in {self.deadline_s:g} s")
        if raised:
            if isinstance(raised[0], (UserError, Broken, NotApplicable, *refusals)):
                raise raised[0]
            raise Broken(f"{what} raised {type(raised[0]).__name__}: {str(raised[0])[:300]}")
        return result.pop()

    def reset(self, env: Any, seed: int | None, **options: Any) -> Played:
        """Begin an episode."""
        prompt, info = self.within_deadline("reset()", lambda: env.reset(seed=seed, options=options or None))
        if not isinstance(info, Mapping):
            raise Broken(f"reset() returned {type(info).__name__} as info: it must be a dict")
        return Played(-1 if seed is None else seed, prompt, info)

    def step(self, env: Any, played: Played, action: str) -> None:
        """Take one action, and note the answer."""
        answer = self.within_deadline("step()", lambda: env.step(action))
        if not isinstance(answer, tuple) or len(answer) != 5:
            raise Broken(f"step() returned {type(answer).__name__}: it must be a tuple of observation, reward, "
                         "terminated, truncated and info")
        observation, reward, played.terminated, played.truncated, info = answer
        played.actions.append(action)
        played.observations.append(observation)
        played.rewards.append(reward)
        played.infos.append(info)

    def play(self, env: Any, seed: int, act: Callable[[Any, Played], str], turns: int = LONGEST_EPISODE,
             **options: Any) -> Played:
        """One episode, to its end or for so many turns."""
        played = self.reset(env, seed, **options)
        while not played.over and len(played.actions) < turns:
            self.step(env, played, act(env, played))
        return played

    def replay(self, env: Any, played: Played) -> Played:
        """The same actions again, from the same seed."""
        again = self.reset(env, played.seed)
        for action in played.actions:
            if again.over:
                break
            self.step(env, again, action)
        return again

    def has_solution(self, env: Any) -> bool:
        """Whether its author gave a scripted solution."""
        return has_solution(env)

    def informed(self, env: Any) -> Callable[[Any, Played], str]:
        """The scripted solution where there is one, else random actions: what brings an episode furthest."""
        return self.solution if self.has_solution(env) else trivial(random_action)

    def solution(self, env: Any, played: Played) -> str:
        """The next action of the scripted solution."""
        return self.within_deadline("expert_action()", lambda: str(env.unwrapped.expert_action()))


def trivial(act: Trivial) -> Callable[[Any, Played], str]:
    """A trivial agent as a way to play; its draws depend on the seed and the turn alone."""

    def action(env: Any, played: Played) -> str:
        last = played.observations[-1] if played.observations else played.prompt
        turn = len(played.actions)
        rng = np.random.default_rng(seed_of("check", played.seed, turn))
        return act(Seen(str(played.prompt), str(last), rng, turn, list(played.info.get("tools") or ()),
                        getattr(env.unwrapped, "tool_format", None) or tool_format("json")))

    return action


def difference(one: Played, other: Played) -> str | None:
    """Where two episodes that should be the same part, in words; None where they do not."""
    names = ("first observation", "task id", "observations", "rewards", "terminated", "truncated", "verdict")
    for name, a, b in zip(names, one.trace, other.trace):
        if a != b:
            return f"the {name} differ{'' if name.endswith('s') else 's'}: {_short(a)} and {_short(b)}"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 90 else f"{text[:87]}..."


def _stable(reward: Any) -> str:
    return repr(float(reward)) if isinstance(reward, int | float | np.number) else repr(reward)


def _verdict_trace(verdict: Any) -> str:
    if not isinstance(verdict, Verdict):
        return repr(type(verdict))
    return json.dumps([verdict.reward, verdict.passed])
