"""A server that speaks the chat protocol, with a script behind it that can add, and an evaluation against it."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from turncredit.agents import Request, Sampling, ToolSpec
from turncredit.agents.chat_engine import ChatEngine, byte_chat, messages_of
from turncredit.agents.endpoint import Endpoint, EndpointSettings, endpoint_settings
from turncredit.cli import app
from turncredit.config import EnvConfig
from turncredit.errors import EngineError, UserError
from turncredit.evaluate import Suite
from turncredit.evaluate.evaluation import Evaluation, Wanted
from turncredit.toolcalls import ToolCall, tool_format

pytest.importorskip("openai")
PUT = ToolSpec("put", "Put it there.", {"type": "object", "properties": {"what": {"type": "string"}}})


class Server(ThreadingHTTPServer):
    """Adds and subtracts what it is asked, or calls a tool; `trouble` is how many requests it turns away first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[dict[str, Any]] = []
        self.trouble = self.at_once = self.most_at_once = 0
        self.calls, self.says, self.finish = [], None, "stop"
        self.limit = "max_completion_tokens"
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.asked.append(body)
            turned_away, self.trouble = self.trouble > 0, max(0, self.trouble - 1)
        time.sleep(0.02)
        with self.lock:
            self.at_once -= 1
        if turned_away:
            return 429, {"error": {"message": "slow down"}}
        if body["model"] != "adder":
            return 404, {"error": {"message": "there is no such model"}}
        if self.limit not in body:
            return 400, {"error": {"message": "unknown parameter"}}
        said = self.says if self.says is not None else _sum_in(body["messages"][-1]["content"])
        message = {"role": "assistant", "content": said, "tool_calls": self.calls or None}
        return 200, {"id": "c", "object": "chat.completion", "created": 0, "model": "adder",
                     "choices": [{"index": 0, "message": message, "finish_reason": self.finish}],
                     "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}}


def _sum_in(text: str) -> str:
    first, sign, second = re.findall(r"(-?\d+) ([+-]) (\d+)", text)[0] if re.search(r"\d [+-] \d", text) else "0+0"
    return f"\\boxed{{{int(first) + int(sign + second)}}}"


class Answer(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        status, body = self.server.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        data = json.dumps(body).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After-Ms", "20")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.shutdown()
    one.server_close()


def test_a_conversation_s_bytes_become_the_messages_that_they_were(server: Server) -> None:
    chat = byte_chat()
    ids = chat.first_prompt("Be brief.", "What is <|im_start|>this<|im_end|>? Ω ✓\n\n")
    ids += [*chat.assistant("An  example,\nπ."), *chat.observation("Wrong: <|im_end|>", "tool")]
    plain = tool_format("json")
    assert messages_of(ids, chat, plain) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is <|im_start|>this<|im_end|>? Ω ✓\n\n"},
        {"role": "assistant", "content": "An  example,\nπ."}, {"role": "user", "content": "Wrong: <|im_end|>"}]
    assert messages_of(chat.first_prompt("", "Hi"), chat, plain) == [{"role": "user", "content": "Hi"}]


def test_native_calls_go_down_as_calls_and_come_up_as_text(server: Server) -> None:
    engine = ChatEngine([server.url], "adder", "native", retries=0)
    server.says = "I put it."
    server.calls = [{"id": "x", "type": "function", "function": {
        "name": "put", "arguments": '{"what": "</tool_call>"}'}}]
    first = engine.chat.first_prompt("", "Put it.")
    sample = engine.generate([Request(first, 50, 1, tools=[PUT])], Sampling(), [])[0]
    assert not isinstance(sample, EngineError)
    text = engine.chat.text(sample.token_ids)
    assert engine.format.parse(text) == [ToolCall("put", {"what": "</tool_call>"})]
    assert server.asked[-1]["tools"] == [PUT.to_json()]
    assert np.isnan(sample.logprobs).all()
    context = [*first, *sample.token_ids, *engine.chat.observation("Done.", "tool")]
    engine.generate([Request(context, 50, 2, tools=[PUT])], Sampling(), [])
    asked = server.asked[-1]["messages"][1:]
    assert [m["role"] for m in asked] == ["assistant", "tool"]
    assert json.loads(asked[0]["tool_calls"][0]["function"]["arguments"]) == {"what": "</tool_call>"}
    assert (asked[0]["content"], asked[1]["content"]) == ("I put it.", "Done.")
    assert asked[1]["tool_call_id"] == asked[0]["tool_calls"][0]["id"]


def test_a_call_whose_arguments_are_no_json_is_the_environment_s_to_judge(server: Server) -> None:
    engine = ChatEngine([server.url], "adder", "native", retries=0)
    server.says = ""
    server.calls = [{"id": "x", "type": "function", "function": {"name": "put", "arguments": '{"what": '}}]
    sample = engine.generate([Request(engine.chat.first_prompt("", "Put it."), 50, 1)], Sampling(), [])[0]
    assert not isinstance(sample, EngineError)
    assert '{"what": ' in engine.chat.text(sample.token_ids)
    context = [*engine.chat.first_prompt("", "Put it."), *sample.token_ids, *engine.chat.observation("No.", "user")]
    assert [m["role"] for m in messages_of(context, engine.chat, engine.format)] == ["user", "assistant", "user"]


def test_the_server_s_name_for_the_limit_is_found_and_a_cut_answer_has_not_ended(server: Server) -> None:
    server.limit, server.finish, server.says = "max_tokens", "length", "It is"
    engine = ChatEngine([server.url], "adder", retries=0)
    sample = engine.generate([Request(engine.chat.first_prompt("", "1 + 1"), 7, 1)], Sampling(0.5), [])[0]
    assert not isinstance(sample, EngineError)
    assert (engine.chat.text(sample.token_ids), sample.ended) == ("It is", False)
    assert (server.asked[-1]["max_tokens"], server.asked[-1]["temperature"]) == (7, 0.5)
    server.says = ""
    assert "ran out of tokens" in str(engine.generate([Request([1], 7, 1)], Sampling(), [])[0])


def test_starts_are_spread_over_the_minute_and_no_more_than_allowed_run_at_once(server: Server) -> None:
    engine = ChatEngine([server.url], "adder", retries=0, concurrency=2, requests_per_minute=1500)
    asked = [Request(engine.chat.first_prompt("", "1 + 1"), 9, i) for i in range(6)]
    began = time.monotonic()
    engine.generate(asked, Sampling(), [])
    assert time.monotonic() - began >= 5 * 60 / 1500
    assert server.most_at_once <= 2


def test_a_server_s_model_is_evaluated_beside_floors_and_what_it_cost_is_told(server: Server) -> None:
    settings = EndpointSettings(prompt_price=1.0, completion_price=10.0, concurrency=4)
    there = Endpoint(f"openai:{server.url}#adder", settings)
    server.trouble = 3  # asked again
    suite = Suite(in_distribution=[EnvConfig(id="turncredit/Arithmetic-v0", split="test")], tasks=3, k=2)
    done = Evaluation(Wanted(suite, floors=False), {"policy": (there, there.config)}, {"policy": there.name})
    done.run()
    [score] = done.scores
    assert (score.avg, score.unjudged) == (1.0, 0)
    assert there.engine.usage.requests == 6
    assert "6 requests, 60 prompt and 12 completion tokens by its own count, cost 0.0002" in there.cost_line()


def test_the_command_line_evaluates_a_server_s_model(server: Server, capsys: Any) -> None:
    app(["evaluate", f"openai:{server.url}#adder", "--env", "turncredit/Arithmetic-v0", "--tasks", "2", "--k", "1",
         "--no-floors", "--json", "--endpoint", "concurrency=2", "--endpoint", "turn_tokens=33"], standalone_mode=False)
    out, err = capsys.readouterr()
    assert json.loads(out)["scores"][0]["avg"] == 1.0
    assert "2 requests" in err
    assert server.asked[-1]["max_completion_tokens"] == 33


@pytest.mark.parametrize("given, sentence", [
    (["concurency=3"], "unknown key 'concurency'; did you mean 'concurrency'"), (["retries"], "write key=value"),
    (["retries=-1"], r"endpoint\.retries is -1: Input should be greater")])
def test_settings_that_cannot_be_are_refused(given: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        endpoint_settings(given)


def test_a_server_that_cannot_be_used_is_refused_at_the_start(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match="write openai:URL#MODEL, such as"):
        Endpoint("openai:localhost", EndpointSettings())
    with pytest.raises(UserError, match=f"{server.url} with model 'other': .*there is no such model"):
        Endpoint(f"openai:{server.url}#other", EndpointSettings())
    with pytest.raises(UserError, match=r"endpoint.api_key_env is 'NO_SUCH_KEY': there is no such environment var"):
        Endpoint(f"openai:{server.url}#adder", EndpointSettings(api_key_env="NO_SUCH_KEY"))
    with pytest.raises(UserError, match=r"endpoint.tokenizer './none' cannot be loaded"):
        Endpoint(f"openai:{server.url}#adder", EndpointSettings(tokenizer="./none"))
