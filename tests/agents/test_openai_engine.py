"""A real HTTP server that speaks the protocol, with a real model behind it, and faults on demand."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from turncredit.agents import AsynchronousAgent, ChatFormat, EngineAgent, Request, Sampling, TransformersEngine
from turncredit.errors import EngineError, UserError

openai_engine = pytest.importorskip("turncredit.agents.openai_engine")
pytest.importorskip("openai")
OpenAIEngine = openai_engine.OpenAIEngine


class Server(ThreadingHTTPServer):
    """Answers /v1/models and /v1/completions as vLLM does; `fault` says what is wrong with it."""

    daemon_threads = True

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.engine, self.tokenizer, self.fault = TransformersEngine(model), tokenizer, ""
        self.alone = threading.Lock()
        self.asked: list[dict[str, Any]] = []
        self.refused: list[float] = []  # when
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        request = Request(body["prompt"], body["max_tokens"], body["seed"])
        with self.alone:
            self.asked.append(body)
            sample = self.engine.generate([request], Sampling(body["temperature"], body["top_p"]),
                                          body.get("stop_token_ids", [self.tokenizer.eos_token_id]))[0]
        ids = sample.token_ids
        choice: dict[str, Any] = {
            "index": 0, "text": self.tokenizer.decode(ids, skip_special_tokens=not body.get("return_token_ids")),
            "finish_reason": "stop" if sample.ended else "length",
            "logprobs": {"tokens": [str(i) for i in ids], "token_logprobs": sample.logprobs.tolist(),
                         "top_logprobs": None, "text_offset": []}}
        if body.get("return_token_ids") and self.fault != "no ids":
            choice |= {"token_ids": ids, "prompt_token_ids": body["prompt"]}
        if self.fault == "no logprobs":
            choice["logprobs"] = None
        if self.fault == "another prompt":
            choice["prompt_token_ids"] = [1, *body["prompt"]]
        if self.fault == "too few logprobs":
            choice["logprobs"]["token_logprobs"] = choice["logprobs"]["token_logprobs"][:-1]
        return {"id": "c", "object": "text_completion", "created": 0, "model": "policy", "choices": [choice]}


class Answer(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(200, {"object": "list", "data": [{"id": "policy", "object": "model", "created": 0, "owned_by": "us",
                                                      "max_model_len": 200}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.fault == "refuses unknown keys" and "return_token_ids" in body:
            self.answer(400, {"error": {"message": "unknown key return_token_ids"}})
        elif self.server.fault == "down":
            self.answer(503, {"error": {"message": "overloaded"}})
        elif self.server.fault == "hangs":
            time.sleep(3)
            self.close_connection = True
        elif self.server.fault == "dies":
            self.close_connection = True
        elif self.server.fault == "drips":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            for _ in range(100):
                time.sleep(0.05)
                self.wfile.write(b" ")
        elif self.server.fault == "busy" and len(self.server.refused) < 2:
            self.server.refused.append(time.monotonic())
            self.answer(429, {"error": {"message": "slow down"}}, {"Retry-After-Ms": "300"})
        elif self.server.fault == "overloaded" and len(self.server.refused) < 2:
            self.server.refused.append(time.monotonic())
            self.answer(503, {"error": {"message": "overloaded"}})
        elif self.server.fault == "no JSON":
            self.answer(200, "<html>")
        else:
            self.answer(200, self.server.completion(body))

    def answer(self, status: int, body: Any, headers: Mapping[str, str] = {}) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def chat(tokenizer_for: Any) -> ChatFormat:
    return ChatFormat(tokenizer_for("chatml"))


@pytest.fixture
def start(chat: ChatFormat, model_for: Any) -> Iterator[Callable[[], Server]]:
    running: list[Server] = []

    def one() -> Server:
        running.append(Server(model_for(chat.tokenizer), chat.tokenizer))
        return running[-1]

    yield one
    for server in running:
        server.shutdown()
        server.server_close()


def engine_of(chat: ChatFormat, *servers: Server, **settings: Any) -> Any:
    return OpenAIEngine([s.url for s in servers], chat, **{"retries": 0, "timeout_s": 20} | settings)


REQUESTS = [Request([20 + i, 30, 40 + i], 5 + i, 100 + i) for i in range(4)]


def test_the_ids_and_logprobs_are_those_that_the_server_sampled(start: Any, chat: ChatFormat, model_for: Any) -> None:
    server = start()
    engine = engine_of(chat, server)
    assert (engine.returns_ids, engine.model, engine.max_context) == (True, "policy", 200)
    expected = TransformersEngine(model_for(chat.tokenizer)).generate(REQUESTS, Sampling(), [7, 8, 9])
    for mine, theirs in zip(engine.generate(REQUESTS, Sampling(), [7, 8, 9]), expected):
        assert (mine.token_ids, mine.ended) == (theirs.token_ids, theirs.ended)
        np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=1e-5)
        np.testing.assert_array_equal(mine.logprobs, mine.sampling_logprobs)
    assert server.asked[-1]["stop_token_ids"] == [7, 8, 9]


def test_what_was_sampled_from_another_distribution_is_unknown_and_not_guessed(start: Any, chat: ChatFormat) -> None:
    sample = engine_of(chat, start()).generate(REQUESTS[:1], Sampling(0.7), [])[0]
    assert np.isfinite(sample.logprobs).all()
    assert np.isnan(sample.sampling_logprobs).all()


@pytest.mark.parametrize("fault, missing", [("no ids", "token ids"), ("refuses unknown keys", "token ids"),
                                            ("no logprobs", "logprobs")])
def test_training_on_a_server_that_does_not_tell_what_it_sampled_is_refused(start: Any, chat: ChatFormat, fault: str,
                                                                           missing: str) -> None:
    server = start()
    server.fault = fault
    with pytest.raises(UserError, match=f"engine.servers: {server.url} returns no {missing} with a completion: train"):
        engine_of(chat, server)


@pytest.mark.parametrize("fault", ["no ids", "refuses unknown keys"])
def test_a_server_that_gives_text_alone_can_be_evaluated(start: Any, chat: ChatFormat, fault: str) -> None:
    server = start()
    server.fault = fault
    engine = engine_of(chat, server, training=False)
    assert not engine.returns_ids
    for sample in engine.generate(REQUESTS, Sampling(), chat.stop_ids):
        assert np.isnan(sample.logprobs).all()
        assert sample.ended == (sample.token_ids[-1:] == [chat.end_id])


@pytest.mark.parametrize("fault, reason", [
    ("down", "overloaded"), ("hangs", "timed out"), ("dies", "Connection error"), ("no JSON", "no server gave"),
    ("another prompt", "read other tokens"), ("too few logprobs", "logprobs"), ("no ids", "0 token ids")])
def test_a_request_that_its_server_fails_is_taken_to_another_one(start: Any, chat: ChatFormat, fault: str,
                                                                reason: str) -> None:
    good, bad = start(), start()
    engine = engine_of(chat, good, bad, timeout_s=1)
    bad.fault = fault
    asked = [Request([20, 30], 4, i, episode=i) for i in range(6)]
    assert [len(sample.token_ids) for sample in engine.generate(asked, Sampling(), [])] == [4] * 6
    assert engine.failures[1] > 0
    assert engine.failures[0] == 0
    good.fault = fault
    for outcome in engine.generate(asked[:2], Sampling(), []):
        assert isinstance(outcome, EngineError)
        assert reason in str(outcome)
    good.fault = bad.fault = ""
    assert [len(sample.token_ids) for sample in engine.generate(asked, Sampling(), [])] == [4] * 6, "both are back"


@pytest.mark.parametrize("fault", ["busy", "overloaded"])
def test_a_server_that_is_busy_is_asked_again_after_a_pause(start: Any, chat: ChatFormat, fault: str) -> None:
    server = start()
    engine = engine_of(chat, server, retries=2)
    server.fault = fault
    sample = engine.generate(REQUESTS[:1], Sampling(), [])[0]
    assert len(sample.token_ids) == 5
    first, second = server.refused
    assert second - first > (0.3 if fault == "busy" else 0.2), "as long as it asks for, or a pause of the client's own"
    assert engine.failures == [0]


def test_an_answer_that_comes_byte_by_byte_is_not_waited_for_for_ever(start: Any, chat: ChatFormat) -> None:
    server = start()
    engine = engine_of(chat, server, timeout_s=1)
    server.fault, engine.longest_s = "drips", 1.5
    began = time.monotonic()
    outcome = engine.generate(REQUESTS[:1], Sampling(), [])[0]
    assert time.monotonic() - began < 4
    assert isinstance(outcome, EngineError)
    assert "no whole answer in 1.5 s" in str(outcome)


@pytest.mark.parametrize("kind", [EngineAgent, AsynchronousAgent])
def test_one_request_that_fails_ends_its_own_episode_alone(start: Any, chat: ChatFormat, kind: Any) -> None:
    engine = engine_of(chat, start())
    ask = engine.sample

    def sample(request: Request, *rest: Any) -> Any:
        if request.context[0] == 21:
            raise EngineError("no server gave a sample")
        return ask(request, *rest)

    engine.sample = sample
    agent = kind(engine, chat)

    async def run() -> list[Any]:
        seats = [agent.start(None) for _ in REQUESTS]
        said = await asyncio.gather(*(s.act(r) for s, r in zip(seats, REQUESTS)), return_exceptions=True)
        for seat in seats:
            seat.end()
        return list(said)

    assert [isinstance(one, EngineError) for one in asyncio.run(run())] == [False, True, False, False]


def test_what_cannot_be_used_is_refused_at_the_start(start: Any, chat: ChatFormat) -> None:
    with pytest.raises(UserError, match=r"engine\.servers is empty"):
        OpenAIEngine([], chat)
    with pytest.raises(UserError, match=r"no server of engine\.servers answers: http://127\.0\.0\.1:9/v1: Connection"):
        OpenAIEngine(["http://127.0.0.1:9/v1"], chat, retries=0)
    with pytest.raises(UserError, match=r"engine\.model is 'other': .* has policy"):
        engine_of(chat, start(), model="other")
