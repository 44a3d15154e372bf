"""A real OpenEnv server, over its WebSocket; skipped where the package is not installed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import turncredit
from turncredit.envs.check import check
from turncredit.errors import UserError

ID = "turncredit/OpenEnv-v0"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    pytest.importorskip("openenv.core", reason="the extra openenv is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = str(Path(__file__).with_name("openenv_server.py"))
    process = subprocess.Popen([sys.executable, server, str(port)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 90
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


def guess(env: Any, number: int) -> tuple[str, float, bool, bool, dict[str, Any]]:
    answer: tuple[str, float, bool, bool, dict[str, Any]] = env.step(json.dumps({"number": number, "why": "bisection"}))
    return answer


def bisected(env: Any, seed: int) -> tuple[float, list[str]]:
    low, high, said, over, reward = 1, 16, [env.reset(seed=seed)[0]], False, 0.0
    while not over:
        middle = (low + high) // 2
        observation, reward, over, _, _ = guess(env, middle)
        said.append(observation)
        low, high = (middle + 1, high) if observation == "higher" else (low, middle - 1)
    return reward, said


def test_an_episode_is_played_on_the_server_and_the_seed_says_which(url: str) -> None:
    one, other = (turncredit.make(ID, url=url).unwrapped for _ in range(2))
    played = [bisected(one, seed) for seed in range(12)]
    assert {reward for reward, _ in played} == {0.0, 1.0}  # four tries are one too few for some numbers
    assert [bisected(other, seed) for seed in range(12)] == played
    one.close()
    other.close()


def test_sessions_at_once_do_not_disturb_each_other(url: str) -> None:
    one, other = (turncredit.make(ID, url=url).unwrapped for _ in range(2))
    alone = bisected(one, 3)
    one.reset(seed=3)
    bisected(other, 4)
    over, said, number = False, [one.task.prompt], 8
    low, high = 1, 16
    while not over:
        observation, _, over, _, _ = guess(one, number)
        said.append(observation)
        low, high = (number + 1, high) if observation == "higher" else (low, number - 1)
        number = (low + high) // 2
    assert said == alone[1]
    one.close()
    other.close()


def test_what_the_server_refuses_is_told_to_the_agent(url: str) -> None:
    env = turncredit.make(ID, url=url).unwrapped
    env.reset(seed=0)
    assert '"number"' in env.instructions
    for action in ("eight", "8", '{"number": "x", "why": "?"}', '{"number": 3}'):
        observation, _, terminated, _, info = env.step(action)
        assert observation.startswith("error: ") and not info["valid"] and not terminated, action
    assert guess(env, 99)[0] == "lower"
    env.close()


def test_it_passes_the_contract(url: str) -> None:
    findings = check(ID, {"url": url}, quick=True)
    assert {f.row: f.detail for f in findings if f.verdict == "fail"} == {}


@pytest.mark.parametrize("arguments, said", [
    ({"action": "numbr"}, "did you mean 'number'"), ({"observation": "text"}, "no such field"),
    ({"url": "127.0.0.1:1"}, "must begin with http"), ({"url": "http://127.0.0.1:9"}, "no OpenEnv server answers")])
def test_wrong_arguments_are_refused(url: str, arguments: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        turncredit.make(ID, **{"url": url, **arguments})
