"""What `reset` and `step` return, and what an agent is told."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import gymnasium
import jsonschema
import numpy as np
from gymnasium.utils.env_checker import check_env

from turncredit.agents.trivial import always, random_action
from turncredit.envs.check.probe import LONGEST_EPISODE, Broken, NotApplicable, Played, Subject, trivial
from turncredit.envs.check.rows import row
from turncredit.envs.text_env import TextEnv
from turncredit.episode import Verdict
from turncredit.errors import UserError
from turncredit.toolcalls import ToolCall, ToolSpec, tool_format

# Of Gymnasium's complaints those that do not apply to text.
_PICTURES = ".*(render|spec is None|outside of the environment).*"


@row("plays", "an episode must run from reset() to its end with random actions, without an exception")
def plays(subject: Subject) -> str:
    """Everything else needs this."""
    env = subject.make()
    played = subject.play(env, 0, trivial(random_action))
    subject.close(env)
    return f"{len(played.actions)} turns with random actions"


@row("Gymnasium's checker", "see the message: it is Gymnasium's own")
def gymnasium_checker(subject: Subject) -> str:
    """Spaces, signatures, seeding."""
    env = subject.make()

    def examine() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=_PICTURES)
            check_env(env.unwrapped, skip_render_check=True, skip_close_check=True)

    subject.within_deadline("Gymnasium's checker", examine)
    subject.close(env)
    return "passes"


@row("observations", "return str from reset() and step(): text that can be encoded as UTF-8, never None or bytes")
def observations(subject: Subject) -> str:
    """Of reset and of every step."""
    count = 0
    for played in _played(subject, ends=2):
        for text in (played.prompt, *played.observations):
            count += 1
            if not isinstance(text, str):
                raise Broken(f"an observation is {type(text).__name__}, in the task of seed {played.seed}")
            if not _encodable(text):
                raise Broken(f"an observation holds a lone surrogate, in the task of seed {played.seed}")
    return f"{count} texts"


@row("rewards", "return a finite number from step(); what an episode is worth must lie in [0, 1]")
def rewards(subject: Subject) -> str:
    """Of every step, and their sum where there is no verdict."""
    worth = []
    for played in _played(subject):
        for reward in played.rewards:
            if not isinstance(reward, int | float | np.integer | np.floating) or isinstance(reward, bool):
                raise Broken(f"a reward is {type(reward).__name__}, in the task of seed {played.seed}")
        unknown = isinstance(played.verdict, Verdict) and played.verdict.reward is None
        if not unknown and not all(math.isfinite(r) for r in played.rewards):
            raise Broken(f"a reward is {played.rewards[-1]!r}, in the task of seed {played.seed}")
        total = played.total
        if total is not None and not -1e-9 <= total <= 1 + 1e-9:
            raise Broken(f"an episode is worth {total:g}, in the task of seed {played.seed}")
        if isinstance(played.verdict, Verdict) and total is not None and abs(sum(played.rewards) - total) > 1e-6:
            raise Broken(f"the rewards add up to {sum(played.rewards):g}, the verdict says {total:g}")
        worth.append(total)
    known = [w for w in worth if w is not None]
    return f"{min(known):g} to {max(known):g}" if known else "none known"


@row("verdict", "the verifier must judge every ending, a useless one too, and return a Verdict: see the message")
def verdict(subject: Subject) -> str:
    """A verifier that raises, or returns something else, leaves episodes without a reward."""
    env = subject.make()
    gives = isinstance(env.unwrapped, TextEnv)
    ways = [trivial(always("")), trivial(always("no idea")), trivial(random_action)]
    ways += [subject.solution] if subject.has_solution(env) else []
    for seed in range(min(subject.seeds, 6)):
        for act in ways:
            played = subject.play(env, seed, act)
            given = played.verdict
            if given is None and not gives:
                subject.close(env)
                raise NotApplicable("it gives rewards, and no verdicts")
            if played.over and not isinstance(given, Verdict):
                raise Broken(f"info['verdict'] is {type(given).__name__} at the end of the task of seed {seed}")
            if played.over and given.reward is None:
                raise Broken(f"the task of seed {seed} was not judged: {given.reason}")
    subject.close(env)
    return "judges solutions, silence and nonsense"


@row("info", "return a dict as info, with info['valid'] a bool and info['role'] 'user' or 'tool' where they stand")
def info(subject: Subject) -> str:
    """Of every step."""
    for played in _played(subject, ends=1):
        for one in played.infos:
            if not isinstance(one, Mapping):
                raise Broken(f"step() returned {type(one).__name__} as info")
            if one.get("role", "user") not in ("user", "tool"):
                raise Broken(f"info['role'] is {one['role']!r}")
            if not isinstance(one.get("valid", True), bool | np.bool_):
                raise Broken(f"info['valid'] is {one['valid']!r}")
        for flag in (played.terminated, played.truncated):
            if not isinstance(flag, bool | np.bool_):
                raise Broken(f"terminated and truncated must be bools: one is {flag!r}")
    return "as it should be"


@row("ends", f"end or cut off every episode: an agent that never finishes must not go on for {LONGEST_EPISODE} turns")
def ends(subject: Subject) -> str:
    """Whatever the agent does."""
    env, longest = subject.make(), 0
    for act in (trivial(always("")), trivial(always("hello")), trivial(random_action)):
        played = subject.play(env, 1, act)
        longest = max(longest, len(played.actions))
        if not played.over:
            raise Broken(f"{LONGEST_EPISODE} turns of a trivial agent did not end the episode")
    subject.close(env)
    return f"after {longest} turns at most"


@row("after the end", "refuse step() after the end until reset() is called, or at least pay nothing for it")
def after_the_end(subject: Subject) -> str:
    """An episode that goes on behind its end pays twice."""
    env = subject.make()
    act = subject.informed(env)
    played = subject.play(env, 0, act)
    if not played.over:
        raise NotApplicable("no episode ended")
    again = played.actions[-1]
    try:
        answer = subject.within_deadline("step() after the end", lambda: env.step(again),
                                         (gymnasium.error.ResetNeeded,))
    except (Broken, gymnasium.error.ResetNeeded) as error:
        return "is refused" if isinstance(error, gymnasium.error.ResetNeeded) else f"raises: {error}"[:60]
    finally:
        subject.close(env)
    if isinstance(answer[1], int | float) and answer[1] > 0:
        raise Broken(f"a step after the end is paid {answer[1]:g}")
    return "is paid nothing"


@row("records actions", "give the verifier the action as the agent wrote it, and leave the caller's options alone")
def records_actions(subject: Subject) -> str:
    """What the episode's record says the agent did is what the agent did."""
    env = subject.make()
    given: dict[str, Any] = {"of the caller": 1}
    subject.within_deadline("reset()", lambda: env.reset(seed=0, options=given))
    if given != {"of the caller": 1}:
        raise Broken(f"reset() changed the caller's options to {given!r}")
    if not isinstance(env.unwrapped, TextEnv):
        subject.close(env)
        return "options are left alone"
    for action in ("  Padded, with Capitals\n", "12 + 30"):
        played = subject.reset(env, 0)
        subject.step(env, played, action)
        noted = env.unwrapped.turns[-1].action if env.unwrapped.turns else None
        if noted != action:
            raise Broken(f"the action {action!r} is recorded as {noted!r}")
    subject.close(env)
    return "as they were written"


@row("instructions", "say what is to be done, in `instructions` or in the first observation")
def instructions(subject: Subject) -> str:
    """An agent that is told nothing cannot be trained."""
    env = subject.make()
    played = subject.reset(env, 0)
    subject.close(env)
    told = f"{played.info.get('instructions', '')} {played.prompt}".strip()
    if len(told.split()) < 2:
        raise Broken(f"all that an agent is told is {told!r}")
    return f"{len(told):,} characters"


@row("tools", "give each tool a name of its own, a description, and parameters that are a JSON schema of type object")
def tools(subject: Subject) -> str:
    """Names, schemas, and whether calls can be written and read."""
    env = subject.make()
    played = subject.reset(env, 0)
    subject.close(env)
    told = list(played.info.get("tools") or ())
    if not told:
        raise NotApplicable("it has none")
    for tool in told:
        _refuse_bad_tool(tool)
    names = [tool.name for tool in told]
    if len(set(names)) < len(names):
        raise Broken(f"the name {max(names, key=names.count)!r} stands for several tools")
    return f"{len(told)}: {', '.join(names)}"[:100]


def _refuse_bad_tool(tool: Any) -> None:
    if not isinstance(tool, ToolSpec):
        raise Broken(f"info['tools'] holds {type(tool).__name__}, not ToolSpec")
    try:
        jsonschema.Draft202012Validator.check_schema(dict(tool.parameters))
    except jsonschema.SchemaError as error:
        raise Broken(f"the parameters of {tool.name} are no JSON schema: {error.message}") from None
    if tool.parameters.get("type") != "object":
        raise Broken(f"the parameters of {tool.name} are of type {tool.parameters.get('type')!r}")
    if not tool.description.strip():
        raise Broken(f"the tool {tool.name} has no description")
    for name in ("json", "plain"):
        call = ToolCall(tool.name, {})
        if tool_format(name).parse(tool_format(name).render(call)) != [call]:
            raise Broken(f"a call of {tool.name!r} cannot be written in the format {name}: use letters, digits and _")


@row("task ids", "give equal tasks equal ids and different tasks different ones: evaluation counts by them")
def task_ids(subject: Subject) -> str:
    """By the first observations, where those tell tasks apart."""
    env = subject.make()
    alike = getattr(env.unwrapped, "begins_alike", False)
    ids: dict[Any, Any] = {}
    prompts: dict[Any, Any] = {}
    for seed in range(max(subject.seeds, 12)):
        played = subject.reset(env, seed)
        id = played.info.get("task_id")
        if id is None:
            subject.close(env)
            raise NotApplicable("it names none")
        if ids.setdefault(id, played.prompt) != played.prompt:
            raise Broken(f"two tasks have the id {id!r}")
        if not alike and prompts.setdefault(played.prompt, id) != id:
            raise Broken(f"one first observation has the ids {prompts[played.prompt]!r} and {id!r}")
    subject.close(env)
    return f"{len(ids)} in {max(subject.seeds, 12)} tasks"


@row("task set", "num_tasks must be the number of tasks that reset(options={'task': i}) can give")
def task_set(subject: Subject) -> str:
    """Where the tasks are finite: the first, the last, and none behind it."""
    env = subject.make()
    count = getattr(env.unwrapped, "num_tasks", None)
    if count is None:
        subject.close(env)
        raise NotApplicable("its tasks are generated")
    for index in sorted({0, count // 2, count - 1}):
        one, other = subject.reset(env, 0, task=index), subject.reset(env, 1, task=index)
        if one.prompt != other.prompt:
            raise Broken(f"the task {index} is another with another seed")
    subject.close(env)
    return f"{count:,} tasks"


@row("levels", "every level from 1 to `levels` must give tasks")
def levels(subject: Subject) -> str:
    """Made and reset once each."""
    env = subject.make()
    count = getattr(env.unwrapped, "levels", 1)
    subject.close(env)
    if count == 1 or "level" in subject.arguments:
        raise NotApplicable("one level")
    for level in range(1, count + 1):
        try:
            leveled = subject.make(level=level)
            subject.reset(leveled, 0)
        except (Broken, UserError) as error:
            raise Broken(f"level {level}: {error}") from None
        subject.close(leveled)
    return f"1 to {count}"


def _played(subject: Subject, ends: int = 3) -> list[Played]:
    """A few episodes: with the solution where there is one, with random actions, and in silence."""
    env = subject.make()
    ways = [subject.informed(env), trivial(random_action), trivial(always(""))][:max(ends, 1)]
    with closing(_Closer(subject, env)):
        return [subject.play(env, seed, act) for seed in range(min(subject.seeds, 6)) for act in ways]


class _Closer:
    def __init__(self, subject: Subject, env: Any) -> None:
        self._subject, self._env = subject, env

    def close(self) -> None:
        self._subject.close(self._env)


def _encodable(text: str) -> bool:
    return text.encode("utf-8", "replace").decode() == text
