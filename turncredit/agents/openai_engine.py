"""An engine behind HTTP: any server that speaks OpenAI's completions protocol, such as `vllm serve`.

Token ids go up. Where the server can (vLLM's `return_token_ids`), the ids that were sampled come down with their
logprobs, and nothing is tokenised again. A server that gives text alone is good for evaluation, not for training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from turncredit.agents.base import Request, Sample, Sampling
from turncredit.agents.chat import ChatFormat
from turncredit.agents.servers import Servers
from turncredit.errors import EngineError, UserError


class OpenAIEngine(Servers):
    """Samples by OpenAI's completions protocol: token ids go up, and come down where the server can.

    Args:
        servers: base URLs, such as "http://localhost:8000/v1".
        chat: the model's chat format, with the same tokenizer as the server's.
        model: its name on the servers; by default the first one that they list.
        training: whether the samples are to be trained on.
        max_context: in tokens; by default what the server says.
        seeded: whether each request carries its seed. vLLM's CPU build (0.32) dies of seeds once it reads a prompt in
            parts: start it with --no-enable-chunked-prefill, or do without.
        settings: concurrency, retries and the like; see `Servers`.
    Raises:
        MissingExtra: the openai package is not installed.
        UserError: no server answers, the length of the context is unknown, or a server whose samples are to be
            trained on gives no token ids or no logprobs.
    """

    def __init__(self, servers: Sequence[str], chat: ChatFormat, model: str | None = None, training: bool = True,
                 max_context: int | None = None, seeded: bool = True, **settings: Any) -> None:
        super().__init__(servers, **settings)
        self.chat, self.seeded = chat, seeded
        found = self._described(model)
        self.model = str(found.id)
        length = max_context or getattr(found, "max_model_len", None)
        if length is None:
            raise UserError(f"engine.max_context is not set: {servers[0]} does not tell how many tokens its model "
                            "reads")
        self.max_context = int(length)
        give = [self._gives_ids(i, training) for i in range(len(self.servers))]  # each of them is asked
        self.returns_ids = all(give)

    # What goes up and comes down.

    def _ask(self, server: int, request: Request, sampling: Sampling, stop_ids: Sequence[int]) -> Sample:
        choice = self._complete(server, request, sampling, stop_ids)
        if not self.returns_ids:
            return self._retokenised(choice)
        ids, logprobs = list(getattr(choice, "token_ids", None) or []), _logprobs_of(choice)
        if not ids or len(ids) != len(logprobs) or not np.isfinite(logprobs).all():
            raise EngineError(f"it gave {len(ids)} token ids with {len(logprobs)} logprobs, or some that are no number")
        if list(getattr(choice, "prompt_token_ids", None) or []) != list(request.context):
            raise EngineError("it read other tokens than those that were sent")
        under_policy = np.asarray(logprobs, np.float32)
        plain = sampling.temperature == 1 and sampling.top_p == 1
        other = under_policy if plain else np.full(len(ids), np.nan, np.float32)  # servers do not tell
        return Sample(ids, under_policy, other, ended=ids[-1] in stop_ids)

    def _complete(self, server: int, request: Request, sampling: Sampling, stop_ids: Sequence[int],
                  asks_ids: bool = True) -> Any:
        more = {"return_token_ids": True, "stop_token_ids": list(stop_ids), "skip_special_tokens": False,
                "add_special_tokens": False} if asks_ids and self.returns_ids else {}
        answer = self._clients[server].completions.create(
            model=self.model, prompt=list(request.context), max_tokens=request.max_new_tokens, logprobs=0,
            temperature=sampling.temperature, top_p=sampling.top_p, extra_body=more,
            seed=request.seed % (1 << 31) if self.seeded else None)
        self._count(answer)
        if not answer.choices:
            raise EngineError("it gave no choice")
        return answer.choices[0]

    def _retokenised(self, choice: Any) -> Sample:
        """Of a text: tokens as the tokenizer has them, whose logprobs nobody knows."""
        ended = choice.finish_reason == "stop"
        ids = [*self.chat.plain(choice.text or ""), *(self.chat.turn_end if ended else [])]
        unknown = np.full(len(ids), np.nan, np.float32)
        return Sample(ids, unknown, unknown, ended)

    # What the servers are.

    def _gives_ids(self, server: int, training: bool) -> bool:
        """Ask for a token to see what comes with it; a server that is down now is judged when it answers."""
        self.returns_ids = True
        probe = Request(self.chat.first_prompt("", "1"), 1, 0)
        url = self.servers[server]
        try:
            choice = self._complete(server, probe, Sampling(), self.chat.stop_ids)
            ids, logprobs = getattr(choice, "token_ids", None), _logprobs_of(choice)
        except self._errors as error:
            if getattr(error, "status_code", None) not in (400, 404, 422):
                return True
            ids, logprobs = None, []
        if ids and logprobs:
            return True
        if training:
            missing = "logprobs" if ids else "token ids"
            raise UserError(f"engine.servers: {url} returns no {missing} with a completion: training needs those that "
                            "were sampled; use a server with return_token_ids, such as vllm serve, or the transformers "
                            "engine")
        return False


def _logprobs_of(choice: Any) -> list[float]:
    """Of the sampled tokens; empty where there are none."""
    values = getattr(choice.logprobs, "token_logprobs", None) or []
    return [float("nan") if value is None else float(value) for value in values]
