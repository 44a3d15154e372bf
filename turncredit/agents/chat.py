"""From a tokenizer's chat template to pieces that can be appended, so that no token is ever rendered twice.

The first prompt is rendered by the template. Everything later is a suffix: what stands between an assistant's
turn and the next one is found once, by difference on a probe conversation. A template that cannot be appended
to is refused, with the reason. Text from environments is text: a `<|im_end|>` in it is no control token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from turncredit.errors import UserError

# What stands in a probe where texts go: kept by a template that trims, changed by one that escapes.
_SYSTEM, _USER, _ASSISTANT, _OBSERVATION = (
    f'PROBE "{name}" <&>\n7319' for name in ("system", "user", "assistant", "observed"))
_PROBES = (_SYSTEM, _USER, _ASSISTANT, _OBSERVATION)
_THOUGHT = "<think>\nPROBEthought7319\n</think>\n\n"

Trim = Callable[[str], str]
_TRIMS: tuple[Trim, ...] = (str, str.strip, str.lstrip, str.rstrip)


@dataclass(frozen=True, slots=True)
class _Between:
    """The glue around an observation: `before` starts with the assistant's end of turn, `after` ends at the next."""

    before: str
    after: str
    trim: Trim  # what the template does to the text's ends


class ChatFormat:
    """A tokenizer's chat template, taken apart.

    Args:
        tokenizer: a fast transformers tokenizer with a chat template.
        history: "exact" refuses a template that would render earlier turns differently (for example one that drops
            `<think>` blocks); "as-sampled" accepts it: earlier turns stay in the context as they were sampled.
        template_options: keyword arguments for the template, such as {"enable_thinking": False}.
    Raises:
        UserError: no template, or one that can't be appended to; the sentence gives the reason.
    """

    def __init__(self, tokenizer: Any, history: str = "exact", template_options: dict[str, Any] | None = None) -> None:
        if history not in ("exact", "as-sampled"):
            raise UserError(f"model.history is {history!r}: it must be 'exact' or 'as-sampled'")
        if not getattr(tokenizer, "chat_template", None):
            raise UserError("the tokenizer has no chat template: set model.chat_template to a file with one")
        self.tokenizer = tokenizer
        self._exact = history == "exact"
        self._options = template_options or {}
        self._system_in_user = not self._keeps_system()
        self._lead, self._assistant_trim = self._find_answer()
        self._between = {"user": self._find_between("user")}
        added = list(tokenizer.added_tokens_decoder.values())
        special = [t.content for t in added if t.special]
        if short := [name for name in special if len(name) == 1]:
            raise UserError(f"the tokenizer cannot be used: its special token {short[0]!r} is a single character, so "
                            "it cannot be told from the same character in a text")
        self._special = _any_of(special)
        end = self._special.match(self._between["user"].before)
        if end is None:
            raise UserError("the chat template cannot be used: an assistant's turn does not end with a special token, "
                            f"so nothing tells the engine where to stop (it ends with "
                            f"{self._between['user'].before[:20]!r})")
        self._end = end.group()
        self.end_id: int = int(tokenizer.convert_tokens_to_ids(self._end))
        self._between["tool"] = self._find_tool_glue()
        self._openings = {given: self._find_opening(given) for given in (True, False)}
        # Some templates stand on tokens that are added but not "special"; in an environment's text they are text too.
        glue = self._openings[True][0] + "".join(b.before + b.after for b in self._between.values())
        own = [t.content for t in added if not t.special and len(t.content.strip()) > 1 and t.content in glue]
        self._control = _any_of([*special, *own])

    @property
    def stop_ids(self) -> list[int]:
        """Sampling one of these ends a turn."""
        eos = self.tokenizer.eos_token_id
        return [self.end_id] if eos is None or eos == self.end_id else [self.end_id, int(eos)]

    def first_prompt(self, system: str, user: str) -> list[int]:
        """Token ids of the conversation up to the point where the assistant writes, [tokens]."""
        return self._encode(self.prompt_pieces(system, user), self._control)

    def prompt_pieces(self, system: str, user: str) -> list[tuple[str, bool]]:
        """The first prompt as (text, is it the template's own) pieces."""
        rendered, trims = self._openings[bool(system)]
        texts = {_SYSTEM: system, _USER: user}
        parts = re.split(f"({re.escape(_SYSTEM)}|{re.escape(_USER)})", rendered)
        return [(trims[part](texts[part]) if part in texts else part, part not in texts) for part in parts]

    def observation(self, text: str, role: str) -> list[int]:
        """Token ids between the end token of an assistant's turn and the start of its next one, [tokens].

        Args:
            text: what the environment answered.
            role: "user" or "tool".
        """
        glue = self._between[role]
        # The end token stands in front while encoding, as it does in the episode, and is taken off again:
        # some tokenizers treat the start of a text specially.
        ids = self._encode([(glue.before, True), (glue.trim(text), False), (glue.after, True)], self._control)
        assert ids[0] == self.end_id, "the glue starts with the end token"
        return ids[1:]

    def assistant(self, text: str) -> list[int]:
        """Token ids of a turn that was written and not sampled, with its end token, [tokens]."""
        return [*self.plain(self._lead + self._assistant_trim(text)), self.end_id]

    def plain(self, text: str) -> list[int]:
        """Token ids of a text without any control token, as they are within a conversation, [tokens]."""
        return self._encode([(self._end, True), (text, False)], self._special)[1:]

    @property
    def turn_end(self) -> list[int]:
        """What closes a turn whose end was not sampled: tokens that the policy did not generate."""
        return [self.end_id]

    def text(self, ids: Sequence[int], keep_special: bool = False) -> str:
        """The text of token ids; a generated turn's end token is not part of what the agent said."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=not keep_special,
                                         clean_up_tokenization_spaces=False))

    # How texts become tokens.

    def _encode(self, pieces: list[tuple[str, bool]], control: re.Pattern[str]) -> list[int]:
        """Encode in one go, as the template's own tokenisation would, except that a control token's name in a text
        is broken after its first character: both halves are plain characters."""
        runs = [""]
        for text, trusted in pieces:
            first, *rest = [text] if trusted else _broken(text, control)
            runs[-1] += first
            runs += rest
        ids = self._ids(runs[0])
        for run in runs[1:]:  # behind the end token, since the start of a text may be treated specially
            ids += self._ids(self._end + run)[1:]
        return ids

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    # How the pieces are found.

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True,
                                                          **self._options))
        except Exception as error:  # templates raise what they like; jinja's own errors among it
            raise UserError(f"the chat template cannot be used: rendering {[m['role'] for m in messages]} "
                            f"failed: {error}") from error

    def _opening(self, system_given: bool = True) -> list[dict[str, str]]:
        if self._system_in_user:
            return [{"role": "user", "content": f"{_SYSTEM}\n\n{_USER}" if system_given else _USER}]
        return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]

    def _keeps_system(self) -> bool:
        """Does the template have a system role, and leave what it says where it is once the conversation goes on?"""
        messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
        try:
            asked = self._render(messages)
            later = self._render([*messages, _said("assistant", _ASSISTANT), _said("user", _OBSERVATION)])
        except UserError:
            return False
        return asked.count(_SYSTEM) == later.partition(_ASSISTANT)[0].count(_SYSTEM) == later.count(_SYSTEM) == 1

    def _find_opening(self, system_given: bool) -> tuple[str, dict[str, Trim]]:
        """The first prompt with probes where the texts go, and what the template does to the texts' ends."""
        messages = self._opening(system_given)

        def render(probe: str, text: str) -> str:
            return self._render([_said(m["role"], m["content"].replace(probe, text)) for m in messages])

        return self._render(messages), {probe: _trim_of(partial(render, probe), probe) for probe in (_SYSTEM, _USER)}

    def _find_answer(self) -> tuple[str, Trim]:
        """The white space that the template puts before an answer, and what it does to the answer's ends."""

        def render(answer: str) -> str:
            return self._render([*self._opening(), _said("assistant", answer), _said("user", _OBSERVATION)])

        before = render(_ASSISTANT).partition(_ASSISTANT)[0]
        asked = self._render(self._opening())
        lead = before.removeprefix(asked)
        return lead if before.startswith(asked) and not lead.strip() else "", _trim_of(render, _ASSISTANT)

    def _find_between(self, role: str) -> _Between:
        spoken = [*self._opening(), _said("assistant", _ASSISTANT)]

        def render(observed: str) -> str:
            return self._render([*spoken, _said(role, observed)])

        full = render(_OBSERVATION)
        for name in (_ASSISTANT, _OBSERVATION):
            if full.count(name) != 1:
                raise UserError(f"the chat template cannot be used: it renders {full.count(name)} times, instead of "
                                f"once and as it stands, the text of the turn {name.split(chr(34))[1]!r} "
                                f"(role {role})")
        before, found, after = full.partition(_ASSISTANT)[2].partition(_OBSERVATION)
        if not found or any(probe in before + after for probe in _PROBES):
            raise UserError("the chat template cannot be used: behind an assistant's turn it renders earlier texts")
        between = _Between(before, after, _trim_of(render, _OBSERVATION))
        if self._exact:
            self._refuse_rewriting(role, between)
        return between

    def _refuse_rewriting(self, role: str, between: _Between) -> None:
        """An episode is append-only: a template that renders the past differently would not agree with it."""
        mend = ("set model.history to 'as-sampled' to keep earlier turns in the context as they were sampled, or use a "
                "template that does not rewrite them")
        opening, observed = self._opening(), _said(role, _OBSERVATION)
        exchange = self._lead + _ASSISTANT + between.before + _OBSERVATION + between.after
        asked = self._render(opening)
        if self._render([*opening, _said("assistant", _ASSISTANT), observed]) != asked + exchange:
            raise UserError("the chat template rewrites earlier turns: what it puts before an assistant's answer "
                            f"changes once the conversation goes on; {mend}")
        thinking = self._render([*opening, _said("assistant", _THOUGHT + _ASSISTANT), observed])
        if _THOUGHT.strip() not in thinking:
            raise UserError(f"the chat template rewrites earlier turns: it drops <think> blocks from them; {mend}")
        if self._render([*opening, *[_said("assistant", _ASSISTANT), observed] * 2]) != asked + exchange * 2:
            raise UserError("the chat template rewrites earlier turns: it renders a second exchange otherwise than "
                            f"the first; {mend}")

    def _find_tool_glue(self) -> _Between:
        """A template without a tool role, or with one that rewrites texts, gets tool results as the user's words."""
        try:
            found = self._find_between("tool")
        except UserError:
            return self._between["user"]
        return found if found.before.startswith(self._end) else self._between["user"]


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _any_of(names: Sequence[str]) -> re.Pattern[str]:
    """Matches any of these names, the longest first; nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) if names else r"(?!)")


def _broken(text: str, names: re.Pattern[str]) -> list[str]:
    """The text in parts none of which holds one of the names whole."""
    parts, start = [], 0
    while (match := names.search(text, start)) is not None:
        parts.append(text[start:match.start() + 1])
        start = match.start() + 1
    return [*parts, text[start:]]


def _trim_of(render: Callable[[str], str], probe: str) -> Trim:
    """What a template does to the white space around a text."""
    padded = f" \n{probe}\n "
    plain, rendered = render(probe), render(padded)
    for trim in _TRIMS:
        if rendered == plain.replace(probe, trim(padded)):
            return trim
    raise UserError("the chat template cannot be used: it changes more of a text than the white space around it")
