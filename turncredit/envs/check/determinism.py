"""One seed, one episode: in this copy, in another, beside others, in another process."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from typing import Any

import numpy as np

from turncredit.agents.trivial import random_action
from turncredit.envs.check.probe import Broken, NotApplicable, Played, Subject, difference, trivial
from turncredit.envs.check.rows import row
from turncredit.envs.registry import spec


@row("same seed", "draw from self.np_random alone, after super().reset(seed=seed)")
def same_seed(subject: Subject) -> str:
    """Two copies, two episodes each, seed for seed."""
    one, other = subject.make(), subject.make()
    act = subject.informed(one)
    for seed in range(subject.seeds):
        parted = difference(subject.play(one, seed, act), subject.play(other, seed, act))
        if parted:
            raise Broken(f"seed {seed} in two copies: {parted}")
    subject.close(one)
    subject.close(other)
    return f"{subject.seeds} seeds"


@row("other seed", "let the seed choose the task")
def other_seed(subject: Subject) -> str:
    """A seed that is ignored gives every group the same task."""
    env = subject.make()
    if getattr(env.unwrapped, "num_tasks", None) == 1:
        subject.close(env)
        raise NotApplicable("it has one task")
    count = max(subject.seeds, 12)
    tasks = {subject.task_of(env, seed) for seed in range(count)}
    subject.close(env)
    if len(tasks) == 1:
        raise Broken(f"{count} seeds give one and the same task, such as {min(tasks)[:60]!r}")
    return f"{len(tasks)} tasks in {count} seeds"


@row("reset again", "build all of an episode's state anew in reset() (in start(), for a TextEnv)")
def reset_again(subject: Subject) -> str:
    """After an episode that ended, one that was cut short, and another task: the same start, the same course."""
    env = subject.make()
    act = subject.informed(env)
    first = subject.play(env, 0, act)
    for what, turns, agent in (("a finished episode", 200, act), ("one that was left", 1, act),
                               ("one of another task", 3, trivial(random_action))):
        subject.play(env, 7 if what.endswith("task") else 0, agent, turns)
        parted = difference(first, subject.play(env, 0, act))
        if parted:
            raise Broken(f"after {what} the same seed gives another episode: {parted}")
    subject.close(env)
    return "after every ending"


@row("replay", "the same actions in the same task must earn the same: no draws and no clocks in step() or the verifier")
def replay(subject: Subject) -> str:
    """Recorded actions, in a copy that has seen other episodes."""
    one, other = subject.make(), subject.make()
    subject.play(other, 99, trivial(random_action))
    acts = [trivial(random_action)] + ([subject.solution] if subject.has_solution(one) else [])
    for seed in range(subject.seeds):
        for act in acts:
            played = subject.play(one, seed, act)
            for _ in range(2):
                parted = difference(played, subject.replay(other, played))
                if parted:
                    raise Broken(f"seed {seed}: {parted}")
    subject.close(one)
    subject.close(other)
    return f"{subject.seeds * len(acts)} episodes, twice each"


@row("copies", "keep state in the instance, not in the class, in a module or in a default argument")
def copies(subject: Subject) -> str:
    """Episodes of four copies, turn by turn in turn, are those that each would have alone."""
    alone, together = [subject.make() for _ in range(4)], [subject.make() for _ in range(4)]
    act = subject.informed(alone[0])
    expected = [subject.play(env, seed, act) for seed, env in enumerate(alone)]
    playing = [subject.reset(env, seed) for seed, env in enumerate(together)]
    turn = 0
    while any(not p.over for p in playing) and turn < 200:
        for env, played, goal in zip(together, playing, expected):
            if not played.over and turn < len(goal.actions):
                subject.step(env, played, act(env, played))
        turn += 1
        if all(p.over or len(p.actions) >= len(g.actions) for p, g in zip(playing, expected)):
            break
    for env in (*alone, *together):
        subject.close(env)
    for one, other in zip(expected, playing):
        parted = difference(one, other)
        if parted:
            raise Broken(f"beside other copies an episode goes another way: {parted}")
    return "4 at once"


@row("global generators", "do not seed, draw from or restore `random` or `numpy.random`: use self.np_random")
def global_generators(subject: Subject) -> str:
    """Neither touched nor read."""
    env = subject.make()
    act = subject.informed(env)
    random.seed(1)
    np.random.seed(1)
    before = _global_state()
    first = subject.play(env, 3, act)
    touched = _global_state() != before
    random.seed(2)
    np.random.seed(2)
    parted = difference(first, subject.play(env, 3, act))
    subject.close(env)
    if parted:
        raise Broken(f"with another state of `random` and `numpy.random` the same seed gives another episode: {parted}")
    if touched:
        raise Broken("an episode changes the state of `random` or `numpy.random`, which belongs to the whole process")
    return "left alone"


def _global_state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, np.asarray(keys).tobytes(), tuple(rest)


@row("another process", "do not let the order of a set, hash() or id() decide anything: sort first", slow=True)
def another_process(subject: Subject) -> str:
    """The first observations and the rewards of random actions, under other hash seeds."""
    entry = spec(subject.id).entry_point
    if not isinstance(entry, str):
        raise NotApplicable("registered as a class: only an entry point such as 'module:Class' reaches another process")
    seen = [_elsewhere(subject, hash_seed) for hash_seed in ("1", "2", "3")]
    if any(one != seen[0] for one in seen):
        raise Broken("the same seed gives another episode under another PYTHONHASHSEED")
    return "3 hash seeds"


_PROGRAM = """
import json, sys
id, entry, arguments, seeds, path, own, deadline_s = json.loads(sys.argv[1])
sys.path[:] = path
import gymnasium, turncredit
from turncredit.envs.check.determinism import courses
from turncredit.envs.registry import load_plugins
load_plugins()
if id not in gymnasium.registry:
    turncredit.register(id, entry, kwargs=own)
print("\\n" + json.dumps(courses(id, arguments, seeds, deadline_s)))
"""


def _elsewhere(subject: Subject, hash_seed: str) -> Any:
    found = spec(subject.id)
    try:
        given = json.dumps([subject.id, found.entry_point, subject.arguments, min(subject.seeds, 6), sys.path,
                            dict(found.kwargs), subject.deadline_s])
    except TypeError:
        raise NotApplicable("its arguments are no JSON") from None
    done = subprocess.run([sys.executable, "-c", _PROGRAM, given], capture_output=True, text=True,
                          timeout=60 + subject.deadline_s * 6, env=os.environ | {"PYTHONHASHSEED": hash_seed})
    if done.returncode:
        raise Broken(f"in another process it cannot be played: {done.stderr.strip().splitlines()[-1][:200]}")
    return json.loads(done.stdout.splitlines()[-1])


def courses(id: str, arguments: dict[str, Any], seeds: int, deadline_s: float) -> list[Any]:
    """What random actions meet with, seed by seed, as JSON can hold it: what another process prints."""
    subject = Subject(id, arguments, deadline_s=deadline_s)
    env = subject.make()
    played: list[Played] = [subject.play(env, seed, trivial(random_action), 20) for seed in range(seeds)]
    env.close()
    return [json.loads(json.dumps(p.trace, default=repr)) for p in played]
