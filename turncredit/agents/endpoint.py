"""A model behind an OpenAI-compatible server, to be evaluated where a policy could stand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from pydantic import Field, ValidationError

from turncredit.agents.asynchronous import AsynchronousAgent
from turncredit.agents.base import Sampling
from turncredit.agents.chat import ChatFormat
from turncredit.agents.servers import Servers
from turncredit.config import Config, Strict, parse_config, sentence_of
from turncredit.errors import UserError, did_you_mean

PREFIX = "openai:"


class EndpointSettings(Strict):
    """How a server is asked: `--endpoint key=value`."""

    tokenizer: str | None = Field(None, description="the model's folder: token ids are sent; null: messages are")
    concurrency: int = Field(16, ge=1, description="requests at once")
    retries: int = Field(5, ge=0, description="of a request, with growing pauses")
    timeout_s: float = Field(600.0, gt=0)
    requests_per_minute: float | None = Field(None, gt=0)
    api_key_env: str | None = Field(None, description="the environment variable that holds the key")
    seeded: bool = Field(True, description="whether requests carry a seed")
    turn_tokens: int = Field(1024, ge=1)
    episode_tokens: int = Field(1 << 20, ge=1)
    context_tokens: int = Field(1 << 20, ge=16)
    prompt_price: float = Field(0.0, ge=0, description="for a million tokens")
    completion_price: float = Field(0.0, ge=0, description="for a million tokens")

    @property
    def api_key(self) -> str:
        """The key.

        Raises:
            UserError: the variable is not set.
        """
        if self.api_key_env is None:
            return "none"
        if not os.environ.get(self.api_key_env):
            raise UserError(f"endpoint.api_key_env is {self.api_key_env!r}: there is no such environment variable")
        return os.environ[self.api_key_env]


class Endpoint:
    """What an evaluation needs of a policy, from a server.

    Args:
        name: "openai:URL#MODEL", such as "openai:http://localhost:8000/v1#qwen3".
        settings: how it is asked.
        tool_calls: "native", "json" or "plain".
    Raises:
        UserError: the name is none, or the server does not answer.
    """

    def __init__(self, name: str, settings: EndpointSettings, tool_calls: str = "json") -> None:
        url, mark, model = name.removeprefix(PREFIX).partition("#")
        if not url.startswith(("http://", "https://")) or not mark or not model:
            raise UserError(f"model {name!r}: write openai:URL#MODEL, such as openai:http://localhost:8000/v1#qwen3")
        self.name, self.settings, self.tool_calls = name, settings, tool_calls
        self.engine = self._connected(url, model)
        self.chat: ChatFormat = self.engine.chat  # type: ignore[attr-defined]  # both kinds have one

    def _connected(self, url: str, model: str) -> Servers:
        s = self.settings
        asked: dict[str, Any] = {"concurrency": s.concurrency, "timeout_s": s.timeout_s, "retries": s.retries,
                                 "api_key": s.api_key, "requests_per_minute": s.requests_per_minute,
                                 "seeded": s.seeded}
        if s.tokenizer is None:
            from turncredit.agents.chat_engine import ChatEngine

            return ChatEngine([url], model, self.tool_calls, **asked)
        from transformers import AutoTokenizer

        from turncredit.agents.openai_engine import OpenAIEngine

        try:
            tokenizer = AutoTokenizer.from_pretrained(s.tokenizer)
        except (OSError, ValueError) as error:
            raise UserError(f"endpoint.tokenizer {s.tokenizer!r} cannot be loaded: "
                            f"{' '.join(str(error).split())[:300]}") from None
        return OpenAIEngine([url], ChatFormat(tokenizer, "as-sampled"), model, training=False, **asked)

    def agent(self, sampling: Sampling | None = None) -> AsynchronousAgent:
        """An agent whose turns go to the server as they come."""
        longest = self.settings.timeout_s * (self.settings.retries + 2)
        return AsynchronousAgent(self.engine, self.chat, sampling, longest)

    def digest(self) -> str:
        """What stands for the weights, which nobody sees."""
        return self.name

    @property
    def config(self) -> Config:
        """The bounds of its episodes."""
        s = self.settings
        return parse_config({"model": {"path": self.name}, "envs": [{"id": "any"}], "rollout": {
            "turn_tokens": s.turn_tokens, "episode_tokens": s.episode_tokens, "context_tokens": s.context_tokens}})

    def cost_line(self) -> str:
        """What it took, in a sentence."""
        used, s = self.engine.usage, self.settings
        priced = s.prompt_price or s.completion_price
        cost = f", cost {used.cost(s.prompt_price, s.completion_price):.4f}" if priced else ""
        failed = f", {sum(self.engine.failures)} failed" if sum(self.engine.failures) else ""
        return (f"{self.name}: {used.requests:,} requests{failed}, {used.prompt_tokens:,} prompt and "
                f"{used.completion_tokens:,} completion tokens by its own count{cost}")


def endpoint_settings(given: Sequence[str]) -> EndpointSettings:
    """Settings such as "concurrency=32".

    Raises:
        UserError: an unknown key or an impossible value.
    """
    import yaml

    data: dict[str, Any] = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals:
            raise UserError(f"--endpoint {one!r}: write key=value, such as concurrency=32")
        if key not in EndpointSettings.model_fields:
            near = did_you_mean(key, EndpointSettings.model_fields)
            raise UserError(f"--endpoint {one!r}: unknown key {key!r}{near}")
        data[key] = yaml.safe_load(value)
    try:
        return EndpointSettings.model_validate(data)
    except ValidationError as error:
        raise UserError(sentence_of(error, "endpoint").removeprefix("config: ")) from None
