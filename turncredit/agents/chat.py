"""From a tokenizer's chat template to pieces that can be appended, so that no token is ever rendered twice.

The first prompt is rendered by the template. Everything later is a suffix: what stands between an assistant's
turn and the next one is found once, by difference on a probe conversation. A template that cannot be appended
to is refused, with the reason. Text from environments is text: a `<|im_end|>` in it is no control token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from turncredit.errors import UserError

# What stands in a probe where texts go: unlikely in any template, kept by trimming ones.
_SYSTEM, _USER, _ASSISTANT, _OBSERVATION = "PROBEsystem7319", "PROBEuser7319", "PROBEassistant7319", "PROBEobserved7319"
_THOUGHT = "<think>\nPROBEthought7319\n</think>\n\n"


@dataclass(frozen=True, slots=True)
class _Between:
    """The glue around an observation: `before` starts with the assistant's end of turn, `after` ends at the next."""

    before: str
    after: str


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
            raise UserError(f"agent.history is {history!r}: it must be 'exact' or 'as-sampled'")
        if not getattr(tokenizer, "chat_template", None):
            raise UserError("the tokenizer has no chat template: set agent.chat_template to a file with one")
        self.tokenizer = tokenizer
        self._options = template_options or {}
        added = tokenizer.added_tokens_decoder.values()
        special = sorted((t.content for t in added if t.special), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self._system_in_user = not self._keeps_system()
        self._between = {"user": self._find_between("user", history)}
        self._between["tool"] = self._find_tool_glue(history)
        self._turn_end = self._between["user"].before
        end = self._special.match(self._turn_end) if self._special else None
        if end is None:
            raise UserError("the chat template cannot be used: an assistant's turn does not end with a special token, "
                            f"so nothing tells the engine where to stop (it ends with {self._turn_end[:20]!r})")
        self.end_id: int = int(tokenizer.convert_tokens_to_ids(end.group()))

    @property
    def stop_ids(self) -> list[int]:
        """Sampling one of these ends a turn."""
        eos = self.tokenizer.eos_token_id
        return [self.end_id] if eos is None or eos == self.end_id else [self.end_id, int(eos)]

    def first_prompt(self, system: str, user: str) -> list[int]:
        """Token ids of the conversation up to the point where the assistant writes, [tokens]."""
        return self._encode(self.prompt_pieces(system, user))

    def prompt_pieces(self, system: str, user: str) -> list[tuple[str, bool]]:
        """The first prompt as (text, is it the template's own) pieces."""
        texts = {_SYSTEM: system, _USER: user}
        rendered = self._render(self._opening(), generate=True)
        parts = re.split(f"({_SYSTEM}|{_USER})", rendered)
        return [(texts.get(part, part), part not in texts) for part in parts]

    def observation(self, text: str, role: str) -> list[int]:
        """Token ids between the end token of an assistant's turn and the start of its next one, [tokens].

        Args:
            text: what the environment answered.
            role: "user" or "tool".
        """
        glue = self._between[role]
        # The end token stands in front while encoding, as it does in the episode, and is taken off again:
        # some tokenizers treat the start of a text specially.
        ids = self._encode([(glue.before, True), (text, False), (glue.after, True)])
        assert ids[0] == self.end_id, "the glue starts with the end token"
        return ids[1:]

    def assistant(self, text: str) -> list[int]:
        """Token ids of a turn that was written and not sampled, with its end token, [tokens]."""
        return [*self.plain(text), self.end_id]

    def plain(self, text: str) -> list[int]:
        """Token ids of a text without any control token, [tokens]."""
        return self._ids(text, as_text=True)

    @property
    def turn_end(self) -> list[int]:
        """What closes a turn whose end was not sampled: tokens that the policy did not generate."""
        return [self.end_id]

    def text(self, ids: Sequence[int], keep_special: bool = False) -> str:
        """The text of token ids; a generated turn's end token is not part of what the agent said."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=not keep_special,
                                         clean_up_tokenization_spaces=False))

    # How it is found.

    def _encode(self, pieces: list[tuple[str, bool]]) -> list[int]:
        """Encode in one go, as the template's own tokenisation would, unless a text holds a special token's name:
        then that text is encoded by itself, as plain characters."""
        ids: list[int] = []
        run = ""
        for text, trusted in pieces:
            if not trusted and self._special is not None and self._special.search(text):
                ids += self._ids(run, as_text=False) + self._ids(text, as_text=True)
                run = ""
            else:
                run += text
        return ids + self._ids(run, as_text=False)

    def _ids(self, text: str, as_text: bool) -> list[int]:
        if not text:
            return []
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=as_text)["input_ids"])

    def _render(self, messages: list[dict[str, str]], generate: bool) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate,
                                                          **self._options))
        except Exception as error:  # templates raise what they like; jinja's own errors among it
            raise UserError(f"the chat template cannot be used: rendering {[m['role'] for m in messages]} "
                            f"failed: {error}") from error

    def _opening(self) -> list[dict[str, str]]:
        if self._system_in_user:
            return [{"role": "user", "content": f"{_SYSTEM}\n\n{_USER}"}]
        return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]

    def _keeps_system(self) -> bool:
        messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
        try:
            return self._render(messages, generate=True).count(_SYSTEM) == 1
        except UserError:
            return False

    def _find_between(self, role: str, history: str) -> _Between:
        opening = self._opening()
        asked = self._render(opening, generate=True)
        spoken = {"role": "assistant", "content": _ASSISTANT}
        probe = [*opening, spoken, {"role": role, "content": _OBSERVATION}]
        full = self._render(probe, generate=True)
        for name in (_ASSISTANT, _OBSERVATION):
            if full.count(name) != 1:
                raise UserError(f"the chat template cannot be used: it renders a {role} turn's text "
                                f"{full.count(name)} times")
        if history == "exact":
            self._refuse_rewriting(asked, full, probe)
        before, after = full.split(_ASSISTANT)[1].split(_OBSERVATION)
        return _Between(before, after)

    def _refuse_rewriting(self, asked: str, full: str, probe: list[dict[str, str]]) -> None:
        """An episode is append-only: a template that renders the past differently would not agree with it."""
        mend = ("set agent.history to 'as-sampled' to keep earlier turns in the context as they were sampled, or use a "
                "template that does not rewrite them")
        if not full.startswith(asked + _ASSISTANT):
            raise UserError("the chat template rewrites earlier turns: what it puts before an assistant's answer "
                            f"changes once the conversation goes on; {mend}")
        spoken = {"role": "assistant", "content": _THOUGHT + _ASSISTANT}
        thinking = self._render([*probe[:-2], spoken, probe[-1]], generate=True)
        if _THOUGHT.strip() not in thinking:
            raise UserError(f"the chat template rewrites earlier turns: it drops <think> blocks from them; {mend}")

    def _find_tool_glue(self, history: str) -> _Between:
        """A template without a tool role gets tool results as the user's words."""
        try:
            found = self._find_between("tool", history)
        except UserError:
            return self._between["user"]
        same_end = found.before[:8] == self._between["user"].before[:8]
        return found if same_end else self._between["user"]
