"""What a user wants to know of an environment first: `turncredit envs card ID`.

Figures are measured on the environment as it is, over its first seeds; nothing is taken from a description.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from turncredit.agents.trivial import TRIVIAL
from turncredit.envs.check.probe import Broken, Played, Subject, trivial
from turncredit.envs.splits import SPLITS
from turncredit.errors import UserError
from turncredit.toolcalls import ToolSpec

CHARACTERS_A_TOKEN = 4  # of English, about


@dataclass(frozen=True, slots=True)
class Reached:
    """What an agent reached on the tasks of the card."""

    reward: float | None  # mean; None where no episode could be judged
    turns: float  # mean of an episode
    tokens: int  # mean of an episode's texts, about: a quarter of their characters


@dataclass(frozen=True, slots=True)
class Card:
    """See `card`; `splits` maps a split to its number of tasks, None where they are generated without end."""

    id: str
    about: str
    instructions: str
    example: list[dict[str, str]]  # [{"role": "task" | "agent" | "user" | "tool", "text": …}], and "reward" at the end
    tools: list[ToolSpec]
    splits: dict[str, int | None]
    levels: int
    turn_limit: int | None
    agents: dict[str, Reached] = field(default_factory=dict)  # "expert" where there is one, and the trivial ones
    licences: dict[str, str] = field(default_factory=dict)  # distribution -> what it says of itself


def card(id: str, arguments: Mapping[str, Any] | None = None, tasks: int = 16, seed: int = 0,
         deadline_s: float = 20.0) -> Card:
    """Play an environment, and say what it is.

    Args:
        id: of a registered environment.
        arguments: for its constructor.
        tasks: that each agent plays, with the seeds from `seed` on.
        seed: of the example episode.
        deadline_s: for a single call of the environment.
    Raises:
        UserError: an unknown id, arguments that the constructor refuses, or an environment that cannot be played.
    """
    subject = Subject(id, arguments, tasks, deadline_s)
    try:
        env = subject.make()
        with closing(env):
            example = subject.play(env, seed, subject.informed(env))
            agents = _agents(subject, env, range(seed, seed + tasks))
    except Broken as broken:
        raise UserError(f"environment {id}: {broken}; `turncredit envs check {id}` says more") from None
    made = env.unwrapped
    return Card(id, _about(type(made)), str(example.info.get("instructions", "")), _told(example),
                list(example.info.get("tools") or ()), _splits(subject), int(getattr(made, "levels", 1)),
                getattr(made, "max_turns", None), agents, _licences(type(made)))


def _agents(subject: Subject, env: Any, seeds: range) -> dict[str, Reached]:
    """The scripted solution first, then those that know nothing."""
    acts: dict[str, Callable[[Any, Played], str]] = {"expert": subject.solution} if subject.has_solution(env) else {}
    acts |= {name: trivial(act) for name, act in TRIVIAL.items()}
    return {name: _reached([subject.play(env, seed, act) for seed in seeds]) for name, act in acts.items()}


def _reached(episodes: list[Played]) -> Reached:
    worth = [played.total for played in episodes if played.total is not None]
    return Reached(mean(worth) if worth else None, mean(len(played.actions) for played in episodes),
                   round(mean(_characters(played) for played in episodes) / CHARACTERS_A_TOKEN))


def _characters(played: Played) -> int:
    said = (played.info.get("instructions", ""), played.prompt, *played.actions, *played.observations)
    return sum(len(str(text)) for text in said)


def _told(played: Played) -> list[dict[str, str]]:
    """An episode as its texts."""
    lines = [{"role": "task", "text": str(played.prompt)}]
    for action, observation, info in zip(played.actions, played.observations, played.infos):
        lines.append({"role": "agent", "text": action})
        if str(observation):
            lines.append({"role": str(info.get("role", "user")), "text": str(observation)})
    return [*lines, {"role": "reward", "text": "unknown" if played.total is None else f"{played.total:g}"}]


def _splits(subject: Subject) -> dict[str, int | None]:
    """Those that it can be made with."""
    found: dict[str, int | None] = {}
    for split in SPLITS if "split" not in subject.arguments else ():
        try:
            env = subject.make(split=split)
        except (UserError, Broken):
            continue  # it has no such split, or knows none
        found[split] = getattr(env.unwrapped, "num_tasks", None)
        env.close()
        if getattr(env.unwrapped, "split_is_label", False):
            break  # the others would be the same tasks
    return found


def _about(environment: type) -> str:
    """The first paragraph of the class's own docstring."""
    return " ".join((inspect.cleandoc(environment.__doc__ or "")).split("\n\n")[0].split())


def _licences(environment: type) -> dict[str, str]:
    """Of the distribution that its code comes from, and of the one that it adapts (`package`)."""
    module = environment.__module__.partition(".")[0]
    names = [*_distributions().get(module, [])[:1], getattr(environment, "package", "")]
    return {name: _licence(name) for name in dict.fromkeys(names) if name}


def _licence(distribution: str) -> str:
    try:
        about = importlib.metadata.metadata(distribution).json
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    stated = about.get("license_expression") or str(about.get("license", "")).strip().partition("\n")[0]
    named = [line.rpartition(" :: ")[2] for line in about.get("classifier", ()) if line.startswith("License ::")]
    return str(stated) or ", ".join(named) or "not stated"


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Top-level module -> distributions; reads every installed package's records."""
    return importlib.metadata.packages_distributions()
