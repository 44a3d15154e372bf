"""Requests to servers that speak OpenAI's protocols: side by side, retried, taken elsewhere, counted."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

from turncredit.agents.base import Request, Sample, Sampling
from turncredit.errors import EngineError, MissingExtra, UserError

WAIT_S = 0.5  # the longest that a step of the stream waits: new requests may have come
PAUSE_S = 60.0  # the longest pause between tries: what servers may ask for


@dataclass(slots=True)
class Usage:
    """What servers say that they have read and written."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def cost(self, prompt_price: float, completion_price: float) -> float:
        """In the prices' currency; prices are for a million tokens."""
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6


class Servers(ABC):
    """One server or several with the same model. A request whose server fails is taken to the next one.

    Args:
        servers: base URLs, such as "http://localhost:8000/v1".
        concurrency: requests at once, of all servers together.
        timeout_s: of one request: without a sign of the server. One that sends an answer bit by bit is given up after
            (retries + 1) * (timeout_s + 60).
        retries: how often a request is sent again to the same server, with growing pauses, or those that it asks for.
        api_key: sent with every request.
        requests_per_minute: no more are begun; None for no limit.
    Raises:
        MissingExtra: the openai package is not installed.
        UserError: no server is named.
    """

    policy_version = 0
    max_context: int

    def __init__(self, servers: Sequence[str], concurrency: int = 64, timeout_s: float = 600.0, retries: int = 2,
                 api_key: str = "none", requests_per_minute: float | None = None) -> None:
        try:
            import openai
        except ImportError:
            raise MissingExtra("openai", "openai") from None
        if not servers:
            raise UserError("engine.servers is empty: name at least one, such as http://localhost:8000/v1")
        self.servers = list(servers)
        self.usage = Usage()
        self.failures = [0] * len(self.servers)  # requests that each server failed, after its retries
        self._client = partial(openai.OpenAI, api_key=api_key, timeout=timeout_s, max_retries=retries)
        self._clients = [self._client(base_url=url) for url in servers]
        self._errors: Any = (openai.OpenAIError, ValueError)  # a body that is no JSON is a ValueError
        self._failing = [False] * len(self.servers)
        self._gone: set[int] = set()  # places whose server is asked for nothing
        self._lock = threading.Lock()
        self.longest_s = (retries + 1) * (timeout_s + PAUSE_S)
        self._pause_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next_start = 0.0
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="request")

    @abstractmethod
    def _ask(self, server: int, request: Request, sampling: Sampling, stop_ids: Sequence[int]) -> Sample:
        """A sample from that server; raises whatever is wrong with it."""

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

    def forget(self) -> None:  # noqa: B027  # nothing to be overridden
        """Nothing is kept here: the servers have caches of their own."""

    def sample(self, request: Request, sampling: Sampling, stop_ids: Sequence[int],
               asked: Callable[[], None] = lambda: None) -> Sample:
        """One sample, from the first server that gives it.

        Args:
            asked: called where a server is.
        Raises:
            EngineError: none does.
        """
        reasons: list[str] = []
        while True:
            joined = self._joined()
            for i in self._order_for(request):
                self._wait_for_a_start()
                asked()
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
            if not self._another(joined):
                raise EngineError(f"no server gave a sample ({'; '.join(reasons) or self._why_none()})")
            asked()

    def _order_for(self, request: Request) -> list[int]:
        """Places that a request is taken to, one after the other."""
        count = len(self.servers)
        first = (request.episode or 0) % count  # an episode stays where its earlier turns are cached
        order = [(first + i) % count for i in range(count) if (first + i) % count not in self._gone]
        return sorted(order, key=lambda i: self._failing[i])  # those that failed last time come last

    def _wake(self) -> None:  # noqa: B027  # those that never sleep have nothing to do
        """Somebody samples again."""

    def _put(self, place: int, url: str) -> None:
        """Another server in a place."""
        self.servers[place], self._clients[place] = url, self._client(base_url=url)
        self._failing[place] = False
        self._gone.discard(place)

    def _joined(self) -> int:
        """Servers that came up in a place so far."""
        return 0

    def _another(self, joined: int) -> bool:
        """Whether more servers came up than `joined`; waits where one is on its way."""
        return False

    def _why_none(self) -> str:
        """Why there is no server to be asked."""
        return "none is left"

    def _wait_for_a_start(self) -> None:
        """Starts are spread evenly over the minute."""
        if not self._pause_s:
            return
        with self._lock:
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + self._pause_s
        time.sleep(max(0.0, start - time.monotonic()))

    def _count(self, answer: Any) -> None:
        """Add up what an answer cost."""
        used = getattr(answer, "usage", None)
        with self._lock:
            self.usage.requests += 1
            self.usage.prompt_tokens += getattr(used, "prompt_tokens", 0) or 0
            self.usage.completion_tokens += getattr(used, "completion_tokens", 0) or 0

    def _described(self, model: str | None) -> Any:
        """What the first server that answers says of the model, or of its first one."""
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
            return found
        raise UserError(f"no server of engine.servers answers: {'; '.join(reasons)}")


class _Requests:
    """A stream of requests to servers, each in a thread of its own while it waits."""

    def __init__(self, engine: Servers, sampling: Sampling, stop_ids: Sequence[int]) -> None:
        self._engine, self._sampling, self._stop_ids = engine, sampling, stop_ids
        self._added = 0
        self._under_way: dict[Future[Sample], int] = {}
        self._asked_at: dict[int, float] = {}

    @property
    def unfinished(self) -> int:
        return len(self._under_way)

    def add(self, requests: Sequence[Request]) -> list[int]:
        self._engine._wake()
        numbers = list(range(self._added, self._added + len(requests)))
        self._added += len(requests)
        for number, request in zip(numbers, requests):
            future = self._engine._threads.submit(self._engine.sample, request, self._sampling, self._stop_ids,
                                                  partial(self._note, number))
            self._under_way[future] = number
        return numbers

    def _note(self, number: int) -> None:
        self._asked_at[number] = time.monotonic()

    def step(self) -> list[tuple[int, Sample | EngineError]]:
        done, running = wait(self._under_way, WAIT_S, FIRST_COMPLETED)
        ended: list[tuple[int, Sample | EngineError]] = [(self._under_way.pop(one), _outcome(one)) for one in done]
        longest = self._engine.longest_s
        for one in running:  # a client's own bound is for silence: an answer may come byte by byte for ever
            if time.monotonic() - self._asked_at.get(self._under_way[one], time.monotonic()) > longest:
                ended.append((self._under_way.pop(one), EngineError(f"no whole answer in {longest:g} s")))
        return ended


def _outcome(future: Future[Sample]) -> Sample | EngineError:
    error = future.exception()
    if error is None:
        return future.result()
    return error if isinstance(error, EngineError) else EngineError(f"{type(error).__name__}: {error}")
