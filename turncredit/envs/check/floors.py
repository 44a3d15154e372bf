"""The solution is rewarded, and agents that know nothing are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from turncredit.agents.trivial import CONSTANTS, TRIVIAL, Trivial, always
from turncredit.envs.check.probe import Broken, NotApplicable, Played, Subject, trivial
from turncredit.envs.check.rows import row

FLOOR = 0.05  # mean reward that a trivial agent may reach where the environment states no `floor`


@row("solution", "the scripted solution must be worth 1 in every task: either it or the verifier is wrong")
def solution(subject: Subject) -> str:
    """Of every seed."""
    env = subject.make()
    if not subject.has_solution(env):
        subject.close(env)
        raise NotApplicable("its author gave none")
    worth, turns = [], []
    for seed in range(subject.seeds):
        played = subject.play(env, seed, subject.solution)
        if played.total is None or played.total < 1 - 1e-6:
            why = getattr(played.verdict, "reason", "") or "no reason given"
            raise Broken(f"it is worth {played.total} in the task of seed {seed}: {why}")
        worth.append(played.total)
        turns.append(len(played.actions))
    subject.close(env)
    return f"{np.mean(worth):.2f} in {np.mean(turns):.1f} turns"


def mean_reward(subject: Subject, act: Callable[[Any, Played], str]) -> float:
    """Over the subject's seeds; episodes that cannot be judged are left out."""
    env = subject.make()
    worth = [subject.play(env, seed, act).total for seed in range(max(subject.seeds, 8))]
    subject.close(env)
    known = [w for w in worth if w is not None]
    if not known:
        raise NotApplicable("no episode could be judged")
    return float(np.mean(known))


def allowed(subject: Subject) -> float:
    """What a trivial agent may earn."""
    env = subject.make()
    stated = float(getattr(env.unwrapped, "floor", FLOOR))
    subject.close(env)
    return stated


def _row_of(name: str, act: Trivial, what: str) -> None:
    @row(f"trivial: {name}", f"{what} is paid for: make the verifier stricter, or state the `floor` of chance")
    def examine(subject: Subject) -> str:
        reached, limit = mean_reward(subject, trivial(act)), allowed(subject)
        if reached > limit + 1e-9:
            raise Broken(f"{what} is worth {reached:.2f} on average; {limit:g} is allowed")
        return f"{reached:.2f}"


for _name, _what in {"silent": "saying nothing", "echo": "repeating what the environment said",
                     "prompt": "repeating the task", "unsure": "\"I don't know\"",
                     "everything": "a list of every answer", "pass markers": "printing PASSED",
                     "random": "random actions"}.items():
    _row_of(_name, TRIVIAL[_name], _what)


@row("trivial: constant", "one answer fits too many tasks: draw answers more evenly, or state the `floor`")
def constant(subject: Subject) -> str:
    """The best of a few."""
    reached = {text: mean_reward(subject, trivial(always(text))) for text in CONSTANTS}
    best = max(reached, key=lambda text: reached[text])
    limit = allowed(subject)
    if reached[best] > limit + 1 / max(subject.seeds, 8) + 1e-9:  # one task may happen to have that answer
        raise Broken(f"always {best!r} is worth {reached[best]:.2f} on average; {limit:g} is allowed")
    return f"{reached[best]:.2f} ({best!r})"
