"""A model behind OpenAI's chat protocol, where no token is seen: for evaluation, never for training.

The conversation stands in an episode as bytes in ChatML, which any text survives; here it becomes messages again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from turncredit.agents.base import Request, Sample, Sampling
from turncredit.agents.chat import ChatFormat
from turncredit.agents.servers import Servers
from turncredit.agents.tiny import learn_tokenizer
from turncredit.errors import EngineError, UserError
from turncredit.toolcalls import MalformedCall, NativeCalls, ToolFormat, tool_format

UNBOUNDED = 1 << 24  # bytes: the server knows how much its model reads
LIMITS = ("max_completion_tokens", "max_tokens")  # the protocol's two names for it; servers know one or both


def byte_chat() -> ChatFormat:
    """ChatML over bytes."""
    return ChatFormat(learn_tokenizer([], 300))


class ChatEngine(Servers):
    """Samples by OpenAI's chat protocol.

    Args:
        servers: base URLs, such as "http://localhost:8000/v1".
        model: its name on the servers.
        tool_calls: "native" sends tools and takes calls as the protocol has them; "json" and "plain" leave both in the
            texts.
        seeded: whether each request carries its seed.
        settings: concurrency, retries and the like; see `Servers`.
    Raises:
        MissingExtra: the openai package is not installed.
        UserError: the first server refuses a question of one token; the sentence has its reason.
    """

    max_context = UNBOUNDED

    def __init__(self, servers: Sequence[str], model: str, tool_calls: str = "json", seeded: bool = True,
                 **settings: Any) -> None:
        super().__init__(servers, **settings)
        self.model, self.seeded, self.chat = model, seeded, byte_chat()
        self.format = tool_format(tool_calls)
        self._limit = self._limit_name()

    def _ask(self, server: int, request: Request, sampling: Sampling, stop_ids: Sequence[int]) -> Sample:
        more: dict[str, Any] = {self._limit: request.max_new_tokens}
        if isinstance(self.format, NativeCalls) and request.tools:
            more["tools"] = [tool.to_json() for tool in request.tools]
        if self.seeded:
            more["seed"] = request.seed % (1 << 31)
        answer = self._clients[server].chat.completions.create(
            model=self.model, messages=messages_of(request.context, self.chat, self.format),
            temperature=sampling.temperature, top_p=sampling.top_p, **more)
        self._count(answer)
        if not answer.choices:
            raise EngineError("it gave no choice")
        choice = answer.choices[0]
        ended = choice.finish_reason != "length"
        ids = [*self.chat.plain(_text_of(choice.message)), *(self.chat.turn_end if ended else [])]
        if not ids:
            raise EngineError("it ran out of tokens before it said anything: raise turn_tokens")
        unknown = np.full(len(ids), np.nan, np.float32)
        return Sample(ids, unknown, unknown, ended)

    def _limit_name(self) -> str:
        """The server's name for the bound of an answer, found by asking."""
        for name in LIMITS:
            try:
                self._clients[0].chat.completions.create(model=self.model, messages=[{"role": "user", "content": "1"}],
                                                         **{name: 16})
                return name
            except self._errors as error:
                if name == LIMITS[-1] or getattr(error, "status_code", None) not in (400, 422):
                    raise UserError(f"{self.servers[0]} with model {self.model!r}: {error}") from None
        raise AssertionError("the last name returns or raises")


def messages_of(ids: Sequence[int], chat: ChatFormat, calls: ToolFormat) -> list[dict[str, Any]]:
    """The messages of a ChatML conversation that ends where the assistant writes.

    Args:
        calls: where it is native, calls become the protocol's own, and what was said to them tools' answers.
    """
    messages: list[dict[str, Any]] = []
    open_calls: list[str] = []
    for role, text in _turns(ids, chat)[:-1]:  # the last is the assistant's, who has yet to write
        if role == "system" and not text:
            continue
        if open_calls:  # the protocol wants an answer to each call; the first one carries what was said
            messages += [{"role": "tool", "tool_call_id": id, "content": text if i == 0 else ""}
                         for i, id in enumerate(open_calls)]
            open_calls = []
        elif role == "assistant" and isinstance(calls, NativeCalls):
            messages.append(_with_calls(text, calls, len(messages)))
            open_calls = [call["id"] for call in messages[-1].get("tool_calls", ())]
        else:
            messages.append({"role": "user" if role == "tool" else role, "content": text})
    return messages


def _turns(ids: Sequence[int], chat: ChatFormat) -> list[tuple[str, str]]:
    """(role, text) of each turn. Control tokens alone divide them: their names in a text are plain characters."""
    start = int(chat.tokenizer.convert_tokens_to_ids("<|im_start|>"))
    turns: list[list[int]] = []
    for token in ids:
        if token == start:
            turns.append([])
        elif turns:
            turns[-1].append(token)
    found = []
    for turn in turns:
        said = turn[:turn.index(chat.end_id)] if chat.end_id in turn else turn
        role, _, text = chat.text(said, keep_special=True).partition("\n")
        found.append((role, text))
    return found


def _with_calls(text: str, calls: NativeCalls, place: int) -> dict[str, Any]:
    try:
        parsed = calls.parse(text)
    except MalformedCall:  # it stays what it was: a text
        parsed = []
    if not parsed:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": calls.around(text) or None, "tool_calls": [
        {"id": f"call_{place}_{i}", "type": "function",
         "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)}}
        for i, call in enumerate(parsed)]}


def _text_of(message: Any) -> str:
    """What was said, with its calls as the native format writes them; arguments that are no JSON stay as they are."""
    parts = [message.content or ""]
    for call in message.tool_calls or ():
        name, arguments = json.dumps(call.function.name), (call.function.arguments or "{}").replace("<", "\\u003c")
        parts.append(f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>')
    return "\n".join(part for part in parts if part)
