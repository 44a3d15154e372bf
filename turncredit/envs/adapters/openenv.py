"""Any environment behind an OpenEnv server, through the package's own client."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np

from turncredit.envs.adapters.packages import imported
from turncredit.envs.splits import draw_from_split
from turncredit.envs.text_env import Reply, TextEnv
from turncredit.episode import Outcome, Task, Verdict
from turncredit.errors import UserError, did_you_mean

_GENERAL = ("done", "reward", "metadata")  # fields that every action or observation has


class ServerReward:
    """What the server gave, added up; unknown where that lies outside of [0, 1]. Passes at 1."""

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """A server that took actions and gave no reward at all has judged nothing."""
        rewards = outcome.state["rewards"]
        if not outcome.state["taken"]:
            return Verdict.of(False, "the server took none of the actions")
        if not rewards:
            return Verdict.unknown("the server gave no reward")
        total = float(sum(rewards))
        if not 0 <= total <= 1:
            return Verdict.unknown(f"the server's rewards add up to {total:g}: an episode is worth 0 to 1")
        return Verdict(total, total >= 1)


class OpenEnv(TextEnv):
    """An episode on a server. Each copy has a session of its own, and the server decides how many it allows.

    The agent's text becomes one field of the server's action; where an action has several fields that must be given,
    the agent writes it as a JSON object. A task is a seed, and a seed belongs to one split: that keeps tasks apart only
    as far as the server makes different tasks of different seeds.

    Args:
        url: of the server, such as "http://127.0.0.1:8000".
        action: the field for the agent's text; the only one that must be given, or the only text, where None; "*" for a
            JSON object.
        observation: the field that the agent sees; the only text, or else all fields as JSON, where None.
        instructions: what the agent is told.
        timeout_s: of connecting, and of each message.
    Raises:
        MissingExtra: openenv-core is not installed.
        UserError: no server answers there, or the server has no such field.
    """

    verifier = ServerReward()
    package = "openenv-core"
    turn_limit = 32

    def __init__(self, url: str, action: str | None = None, observation: str | None = None, instructions: str = "",
                 timeout_s: float = 60.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        client = imported("openenv.core.generic_client", "openenv-core", "openenv")
        schema = _schema(url, timeout_s)
        self._action = _action_field(schema["action"], action)
        self._observation = _observation_field(schema["observation"], observation)
        fields = {name: one for name, one in schema["action"]["properties"].items() if name not in _GENERAL}
        told = f"Write an action as a JSON object with these fields: {json.dumps(fields)}"
        self.instructions = "\n\n".join(part for part in (instructions, told if self._action == "*" else "") if part)
        self._client = client.GenericEnvClient(base_url=url, connect_timeout_s=timeout_s,
                                               message_timeout_s=timeout_s).sync()
        self._connected = False

    def make_task(self, rng: np.random.Generator) -> Task:
        """A seed; what the server shows first is the prompt."""
        half = "test" if self.split == "ood" else self.split  # what is out of distribution, the server's URL says
        seed = draw_from_split(half, lambda: int(rng.integers(2**31)), str)
        if not self._connected:
            self._client.connect()
            self._connected = True
        first = self._client.reset(seed=seed)
        return Task(self._seen(first.observation), {"seed": seed}, self.split, self.level, f"{self.split}-{seed}")

    def start(self) -> None:
        """The server's episode was begun with the task."""
        self._rewards: list[float] = []
        self._taken = 0

    def state(self) -> Mapping[str, Any]:
        """The rewards that the server gave, and how many actions it took."""
        return {"rewards": self._rewards, "taken": self._taken}

    def respond(self, action: str) -> Reply:
        """Send it, and show the answer."""
        given: Any = {self._action: action}
        if self._action == "*":
            try:
                given = json.loads(action)
            except (ValueError, RecursionError) as error:
                return Reply(f"error: the action is not valid JSON: {error}", valid=False)
            if not isinstance(given, dict):
                return Reply("error: the action must be a JSON object", valid=False)
        try:
            answer = self._client.step(given)
        except RuntimeError as error:  # what the package's client makes of a server's refusal
            return Reply(f"error: {error}", valid=False)
        self._taken += 1
        if answer.reward is not None:
            self._rewards.append(float(answer.reward))
        return Reply(self._seen(answer.observation), done=bool(answer.done))

    def close(self) -> None:
        """End the session."""
        if self._connected:
            self._connected = False
            self._client.close()

    def _seen(self, observation: Mapping[str, Any]) -> str:
        if self._observation is not None:
            return str(observation.get(self._observation, ""))
        return json.dumps({name: value for name, value in observation.items() if name not in _GENERAL})


def _schema(url: str, timeout_s: float) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise UserError(f"url is {url!r}: it must begin with http:// or https://")
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/schema", timeout=timeout_s) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return {kind: {"properties": {}, **found[kind]} for kind in ("action", "observation")}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"url {url!r}: no OpenEnv server answers there: {error}") from None


def _action_field(schema: Mapping[str, Any], wanted: str | None) -> str:
    fields = {name: one for name, one in schema["properties"].items() if name not in _GENERAL}
    if wanted is not None:
        if wanted != "*" and wanted not in fields:
            hint = did_you_mean(wanted, fields)
            raise UserError(f"action is {wanted!r}: the server's actions have no such field{hint} "
                            f"(known: {', '.join(fields)}; '*' for a JSON object)")
        return wanted
    needed = [name for name in fields if name in schema.get("required", ())] or list(fields)
    texts = [name for name in needed if fields[name].get("type") == "string"]
    return texts[0] if len(needed) == len(texts) == 1 else "*"


def _observation_field(schema: Mapping[str, Any], wanted: str | None) -> str | None:
    fields = {name: one for name, one in schema["properties"].items() if name not in _GENERAL}
    if wanted is not None and wanted not in fields:
        raise UserError(f"observation is {wanted!r}: the server's observations have no such field"
                        f"{did_you_mean(wanted, fields)} (known: {', '.join(fields)})")
    texts = [name for name, one in fields.items() if one.get("type") == "string"]
    return wanted or (texts[0] if len(fields) == len(texts) == 1 else None)
