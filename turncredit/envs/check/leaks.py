"""The answer is out of reach, and what is tested was not trained on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from turncredit.agents.trivial import always, random_action
from turncredit.envs.check.probe import Broken, NotApplicable, Played, Subject, trivial
from turncredit.envs.check.rows import row
from turncredit.envs.splits import SPLITS
from turncredit.errors import UserError

ANSWER_KEYS = ("answer", "answers", "expected", "gold", "label", "solution", "target", "secret", "goal")
SHARE = 0.5  # of the tasks: a number may stand in one or another by chance


@row("answer in the prompt", "take the answer out of the prompt, the instructions and the tools' descriptions; where "
     "it is one of several choices that the prompt lists, state answer_among_choices = True")
def answer_in_the_prompt(subject: Subject) -> str:
    """The texts of `task.hidden`, word for word, in what an agent is told."""

    def told(played: Played) -> str:
        described = " ".join(f"{tool.description} {tool.parameters}" for tool in played.info.get("tools") or ())
        return f"{played.info.get('instructions', '')} {played.prompt} {described}"

    return _leak(subject, "what an agent is told", lambda env, seed: told(subject.reset(env, seed)))


@row("answer in an observation", "do not tell the answer to an agent that has not found it, least of all in an error")
def answer_in_an_observation(subject: Subject) -> str:
    """In what useless actions are answered with, before the last turn."""
    useless = ["", "hint please", "no idea", "<tool_call>", "@answer", "0",
               '<tool_call>{"name": "answer", "arguments": {}}</tool_call>']

    def said(env: Any, seed: int) -> str:
        heard = []
        for action in useless:
            played = subject.play(env, seed, trivial(always(action)), 3)
            heard += played.observations[:-1] if played.over else played.observations
        return " ".join(map(str, heard))

    return _leak(subject, "an answer to a useless action", said)


def _leak(subject: Subject, where: str, said: Any) -> str:
    env = subject.make()
    subject.reset(env, 0)
    task = getattr(env.unwrapped, "task", None)
    if getattr(env.unwrapped, "answer_among_choices", False):
        subject.close(env)
        raise NotApplicable("the answer is one of the choices that the task lists")
    if task is None or not list(_answers(getattr(task, "hidden", {}))):
        subject.close(env)
        raise NotApplicable("its answers are not known: they stand in task.hidden['answer'] where they are")
    found = []
    for seed in range(max(subject.seeds, 12)):
        text = said(env, seed)
        found += [(seed, answer) for answer in _answers(env.unwrapped.task.hidden) if _stands_in(answer, text)][:1]
    subject.close(env)
    if len(found) > SHARE * max(subject.seeds, 12):
        seed, answer = found[0]
        raise Broken(f"in {len(found)} of {max(subject.seeds, 12)} tasks {where} holds the answer ({answer[:40]!r} in "
                     f"that of seed {seed})")
    return f"in {len(found)} of {max(subject.seeds, 12)} tasks, by chance" if found else "nowhere"


def _answers(hidden: Mapping[str, Any]) -> Iterator[str]:
    """The texts and numbers that are an answer by their key."""
    for key, value in hidden.items():
        if str(key).lower() in ANSWER_KEYS:
            yield from (str(one) for one in (value if isinstance(value, list | tuple) else [value])
                        if isinstance(one, str | int | float) and not isinstance(one, bool) and str(one).strip())


def _stands_in(answer: str, text: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(answer.strip())}(?![\w]|\.\d)", text) is not None


@row("splits", "a task's content must decide its split (see turncredit.envs.split_of): a split by seed leaks")
def splits(subject: Subject) -> str:
    """Tasks that stand in two splits: by their first observations but for capitals and spaces, or by their ids."""
    if "split" in subject.arguments:
        raise NotApplicable("the split is given")
    drawn: dict[str, set[str]] = {}
    for split in SPLITS:
        try:
            env = subject.make(split=split)
        except (UserError, Broken) as error:
            if not drawn:
                raise NotApplicable("it knows no splits") from None
            if isinstance(error, UserError):
                continue  # it has no such split
            raise
        if getattr(env.unwrapped, "split_is_label", False):
            subject.close(env)
            raise NotApplicable("its data are one split, whatever the split is called")
        label = subject.reset(env, 0).info.get("split", split)
        if label != split:
            raise Broken(f"made with split={split!r} it says that its task is of {label!r}")
        drawn[split] = {_normal(subject.task_of(env, seed)) for seed in range(subject.seeds * 10)}
        subject.close(env)
    if len(drawn) < 2:
        raise NotApplicable("it knows no splits")
    for held_out in ("test", "ood"):
        shared = drawn["train"] & drawn.get(held_out, set())
        if shared:
            raise Broken(f"{len(shared)} of {len(drawn[held_out])} tasks of {held_out!r} stand in 'train' too, such as "
                         f"{min(shared)[:60]!r}")
    return f"disjoint: {', '.join(f'{name} {len(tasks)}' for name, tasks in drawn.items())}"


def _normal(text: Any) -> str:
    return " ".join(str(text).casefold().split())


@row("kept out of the episode", "keep answers out of info and out of what render() or str() shows to the agent")
def kept_out(subject: Subject) -> str:
    """Infos before the end: agents' code and logs see them."""
    env = subject.make()
    for seed in range(min(subject.seeds, 6)):
        played = subject.play(env, seed, trivial(random_action), 3)
        before_the_end = played.infos[:-1] if played.over else played.infos
        for info in (played.info, *before_the_end):
            leaked = sorted(key for key in info if str(key).lower() in ANSWER_KEYS)
            if leaked:
                raise Broken(f"info[{leaked[0]!r}] stands there before the episode is over")
    subject.close(env)
    return "nothing in info"
