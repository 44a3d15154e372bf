"""Whatever an agent writes, the environment goes on."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from turncredit.envs.check.probe import Broken, Hangs, Subject
from turncredit.envs.check.rows import row

LONGEST_OBSERVATION = 100_000  # characters

HOSTILE = {
    "empty": "", "spaces": " \n\t ", "NUL": "\x00", "control characters": "\x1b[31m\x07\x08",
    "lone surrogate": "\ud800", "right to left": "‮ שלום", "emoji": "👩‍👩‍👧‍👦" * 50,
    "markup": "[bold]</tool_response><|im_end|><tool_call>", "unclosed call": '<tool_call>{"name": ',
    "call that is no object": "<tool_call>[1, 2]</tool_call>", "call without a name": "<tool_call>{}</tool_call>",
    "unknown tool": '<tool_call>{"name": "no_such_tool", "arguments": {}}</tool_call>',
    "wrong types": '<tool_call>{"name": "TOOL", "arguments": {"ARGUMENT": {"a": [null]}}}</tool_call>',
    "no arguments": '<tool_call>{"name": "TOOL"}</tool_call>', "plain call": "@TOOL", "plain nonsense": '@TOOL a="',
    "deep nesting": "<tool_call>" + "[" * 20_000 + "</tool_call>", "format string": "%s {0} {self} $HOME `id`",
    "number": "9" * 5000, "not a number": "nan", "infinity": "inf", "latex": r"\boxed{\frac{1}{0}}",
    "code": "__import__('os').getcwd()", "brackets": "search[" * 100,
}


@row("malformed actions", "answer what cannot be read with an observation that says so, and do not raise")
def malformed(subject: Subject) -> str:
    """One after the other, each in an episode of its own and all in a row."""
    env = subject.make()
    for name, text in HOSTILE.items():
        played = subject.reset(env, 0)
        action = _fitted(text, played.info.get("tools") or ())
        try:
            subject.step(env, played, action)
        except Hangs as error:
            raise Hangs(f"{error}, given an action that is {name}") from None
        except Broken as error:
            raise Broken(f"an action that is {name}: {error}") from None
        if not isinstance(played.observations[-1], str):
            raise Broken(f"an action that is {name} is answered by {type(played.observations[-1]).__name__}")
    subject.close(env)
    return f"{len(HOSTILE)} kinds survived"


@row("huge actions", "cut what you repeat of an action, and do not let the time grow with its square")
def huge(subject: Subject) -> str:
    """A million characters; the answer must be shorter than that."""
    env = subject.make()
    longest = 0
    for text in ("x" * 1_000_000, "1 + " * 250_000, "<tool_call>" * 50_000, "(" * 300_000):
        played = subject.reset(env, 0)
        try:
            subject.step(env, played, text)
        except Hangs as error:
            raise Hangs(f"{error}, given {len(text):,} characters of {text[:12]!r}…") from None
        except Broken as error:
            raise Broken(f"{len(text):,} characters of {text[:12]!r}…: {error}") from None
        longest = max(longest, len(str(played.observations[-1])))
        if longest > LONGEST_OBSERVATION:
            raise Broken(f"{len(text):,} characters are answered by {longest:,}, which fill the agent's context")
    subject.close(env)
    return f"answers of up to {longest:,} characters"


@row("goes on", "an episode must survive a malformed action: the agent may still solve the task")
def goes_on(subject: Subject) -> str:
    """After hostile actions of one episode the next is as it should be."""
    env = subject.make()
    act = subject.informed(env)
    expected = subject.play(env, 0, act)
    for text in list(HOSTILE.values())[:12]:
        played = subject.reset(env, 0)
        with suppress(Broken):  # reported by a row of its own
            subject.step(env, played, text)
    after = subject.play(env, 0, act)
    subject.close(env)
    if after.trace != expected.trace:
        raise Broken("an episode after malformed actions is not what it was before")
    return "the next episode is unharmed"


@row("not a text", "raise TypeError (or UserError) for an action that is no str, and do not treat it as one")
def not_a_text(subject: Subject) -> str:
    """bytes and None are a programmer's mistake: they must not be rewarded."""
    env = subject.make()
    for action in (None, b"1", 7):
        played = subject.reset(env, 0)
        wrong: Any = action
        try:
            subject.step(env, played, wrong)
        except Hangs:
            raise
        except Broken:
            continue
        if played.total:
            raise Broken(f"the action {action!r} is worth {played.total:g}")
    subject.close(env)
    return "refused or worth nothing"


def _fitted(text: str, tools: Any) -> str:
    """With the names of a real tool and argument, where there are some."""
    if not tools:
        return text
    names = list(tools[0].parameters.get("properties", {})) or ["a"]
    return text.replace("TOOL", tools[0].name).replace("ARGUMENT", names[0])


