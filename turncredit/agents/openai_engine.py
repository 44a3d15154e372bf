"""An engine behind HTTP: any server that speaks OpenAI's completions protocol, such as `vllm serve`.

Token ids go up. Where the server can (vLLM's `return_token_ids`), the ids that were sampled come down with their
logprobs, and nothing is tokenised again. A server that gives text alone is good for evaluation, not for training.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from turncredit.agents.base import Request, Sample, Sampling
from turncredit.agents.chat import ChatFormat
from turncredit.errors import EngineError, MissingExtra, UserError

WAIT_S = 0.5  # the longest that a step of the stream waits: new requests may have come


class OpenAIEngine:
    """Samples on one server or several with the same model. A request whose server fails is taken to the next one.

    Args:
        servers: base URLs, such as "http://localhost:8000/v1".
        chat: the model's chat format, with the same tokenizer as the server's.
        model: its name on the servers; by default the first one that they list.
        training: whether the samples are to be trained on.
        concurrency: requests at once, of all servers together.
        timeout_s: of one request.
        retries: how often a request is sent again to the same server, with growing pauses.
        api_key: sent with every request.
        max_context: in tokens; by default what the server says.
        seeded: whether each request carries its seed. vLLM's CPU build (0.32) dies of seeds once it reads a prompt in
            parts: start it with --no-enable-chunked-prefill, or do without.
    Raises:
        MissingExtra: the openai package is not installed.
        UserError: no server answers, the length of the context is unknown, or a server whose samples are to be
            trained on gives no token ids or no logprobs.
    """

    def __init__(self, servers: Sequence[str], chat: ChatFormat, model: str | None = None, training: bool = True,
                 concurrency: int = 64, timeout_s: float = 600.0, retries: int = 2, api_key: str = "none",
                 max_context: int | None = None, seeded: bool = True) -> None:
        try:
            import openai
        except ImportError:
            raise MissingExtra("openai", "openai") from None
        if not servers:
            raise UserError("engine.servers is empty: name at least one, such as http://localhost:8000/v1")
        self._errors: Any = (openai.OpenAIError, ValueError)  # a body that is no JSON is a ValueError
        self._clients = [openai.OpenAI(base_url=url, api_key=api_key, timeout=timeout_s, max_retries=retries)
                         for url in servers]
        self.servers, self.chat, self.policy_version, self.seeded = list(servers), chat, 0, seeded
        self.model, self.max_context = self._described(model, max_context)
        self.failures = [0] * len(self.servers)  # requests that each server failed, after its retries
        self._failing = [False] * len(self.servers)
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="request")
        give = [self._gives_ids(i, training) for i in range(len(self.servers))]  # each of them is asked
        self.returns_ids = all(give)

    def generate(self, requests: Sequence[Request], sampling: Sampling,
                 stop_ids: Sequence[int]) -> list[Sample | EngineError]:
        """One sample a request, all of them sent at once."""
        stream = self.stream(sampling, stop_ids)
        numbers = stream.add(requests)
        samples: dict[int, Sample | EngineError] = {}
        while stream.unfinished:
            samples.update(stream.step())
        return [samples[number] for number in numbers]

    def stream(self, sampling: Sampling, stop_ids: Sequence[int]) -> _Requests:
        """Requests that go out as they come."""
        return _Requests(self, sampling, stop_ids)

    def forget(self) -> None:
        """Nothing is kept here: the servers have caches of their own."""

    def sample(self, request: Request, sampling: Sampling, stop_ids: Sequence[int]) -> Sample:
        """One sample, from the first server that gives it.

        Raises:
            EngineError: none does.
        """
        first = (request.episode or 0) % len(self.servers)  # an episode stays where its earlier turns are cached
        order = [(first + i) % len(self.servers) for i in range(len(self.servers))]
        order.sort(key=lambda i: self._failing[i])  # those that failed last time come last
        reasons = []
        for i in order:
            try:
                sample = self._ask(i, request, sampling, stop_ids)
            except Exception as error:  # whatever a server answers, it is that server's fault
                reasons.append(f"{self.servers[i]}: {type(error).__name__}: {error}")
                with self._lock:
                    self.failures[i] += 1
                    self._failing[i] = True
                continue
            self._failing[i] = False
            return sample
        raise EngineError(f"no server gave a sample ({'; '.join(reasons)})")

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

    def _described(self, model: str | None, max_context: int | None) -> tuple[str, int]:
        """The model's name and its context, from the first server that answers."""
        reasons = []
        for url, client in zip(self.servers, self._clients):
            try:
                listed = client.models.list().data
            except self._errors as error:
                reasons.append(f"{url}: {error}")
                continue
            found = next((one for one in listed if model in (None, one.id)), None)
            if found is None:
                raise UserError(f"engine.model is {model!r}: {url} has {', '.join(one.id for one in listed) or 'none'}")
            length = max_context or getattr(found, "max_model_len", None)
            if length is None:
                raise UserError(f"engine.max_context is not set: {url} does not tell how many tokens its model reads")
            return str(found.id), int(length)
        raise UserError(f"no server of engine.servers answers: {'; '.join(reasons)}")

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


class _Requests:
    """A stream of requests to servers, each in a thread of its own while it waits."""

    def __init__(self, engine: OpenAIEngine, sampling: Sampling, stop_ids: Sequence[int]) -> None:
        self._engine, self._sampling, self._stop_ids = engine, sampling, stop_ids
        self._added = 0
        self._under_way: dict[Future[Sample], int] = {}

    @property
    def unfinished(self) -> int:
        return len(self._under_way)

    def add(self, requests: Sequence[Request]) -> list[int]:
        numbers = list(range(self._added, self._added + len(requests)))
        self._added += len(requests)
        for number, request in zip(numbers, requests):
            future = self._engine._threads.submit(self._engine.sample, request, self._sampling, self._stop_ids)
            self._under_way[future] = number
        return numbers

    def step(self) -> list[tuple[int, Sample | EngineError]]:
        done, _ = wait(self._under_way, WAIT_S, FIRST_COMPLETED)
        return [(self._under_way.pop(future), _outcome(future)) for future in done]


def _outcome(future: Future[Sample]) -> Sample | EngineError:
    error = future.exception()
    if error is None:
        return future.result()
    return error if isinstance(error, EngineError) else EngineError(f"{type(error).__name__}: {error}")


def _logprobs_of(choice: Any) -> list[float]:
    """Of the sampled tokens; empty where there are none."""
    values = getattr(choice.logprobs, "token_logprobs", None) or []
    return [float("nan") if value is None else float(value) for value in values]
