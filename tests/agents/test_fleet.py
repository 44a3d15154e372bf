"""Servers that die are replaced: real processes, with a stand-in where vLLM's server would be."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from turncredit.agents import ChatFormat, Request, Sampling, fleet
from turncredit.agents.fleet import Fleet
from turncredit.agents.vllm_process import LocalServer
from turncredit.agents.vllm_server import VllmServers
from turncredit.errors import EngineError, UserError

pytest.importorskip("openai")
HERE = Path(__file__).parent
Made = Callable[..., tuple[VllmServers, Fleet]]


@pytest.fixture
def made(tmp_path: Path, tokenizer_for: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """Servers of a fleet; every process of it is gone afterwards."""
    package = tmp_path / "path" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text((HERE / "stand_in.py").read_text())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setattr(fleet, "WATCH_S", 0.1)
    (tmp_path / "model").mkdir()
    fleets: list[Fleet] = []
    begun: list[LocalServer] = []

    def begin() -> LocalServer:
        begun.append(LocalServer(tmp_path / "model", sys.executable, wait=False))
        return begun[-1]

    def make(count: int, restarts: int) -> tuple[VllmServers, Fleet]:
        fleets.append(Fleet(begin, count, restarts, patience_s=20))
        engine = VllmServers(fleets[0].urls, ChatFormat(tokenizer_for("chatml")), tmp_path / "model", fleet=fleets[0],
                             retries=0, timeout_s=20)
        return engine, fleets[0]

    yield make
    for one in fleets:
        one.close()
    assert not [server.pid for server in begun if Path(f"/proc/{server.pid}").exists()]


def weights(version: int) -> list[tuple[str, torch.Tensor]]:
    return [("w", torch.full((1,), float(version)))]


def pid_of(servers: Fleet, place: int) -> int:
    return int(servers._places[place].server.pid)  # type: ignore[union-attr]


def versions(engine: VllmServers, episodes: int) -> list[float]:
    """Which weights each of as many requests is sampled with."""
    said = engine.generate([Request([1, 2], 2, i, episode=i) for i in range(episodes)], Sampling(), [])
    return [-float(one.logprobs[0]) if not isinstance(one, EngineError) else float("nan") for one in said]


def test_a_server_that_dies_is_replaced_by_one_with_the_present_weights(made: Made, tmp_path: Path) -> None:
    engine, servers = made(1, restarts=2)
    engine.load(weights(7))
    assert versions(engine, 3) == [7, 7, 7]
    for lost in (1, 2):
        os.kill(pid_of(servers, 0), signal.SIGKILL)
        assert versions(engine, 3) == [7, 7, 7], "those that asked meanwhile waited for it"
        assert servers.lost == lost
    engine.load(weights(8))
    assert versions(engine, 1) == [8]


def test_a_server_that_dies_of_a_request_takes_no_other_episode_with_it(made: Made, tmp_path: Path) -> None:
    engine, servers = made(2, restarts=1)
    engine.load(weights(3))
    (tmp_path / "fault").write_text(f"dies {pid_of(servers, 1)}")
    assert versions(engine, 8) == [3] * 8
    until = time.monotonic() + 20
    while servers.joined < 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert engine.gone == set() and servers.lost == 1


def test_where_no_server_is_left_everybody_is_told_at_once(made: Made) -> None:
    engine, servers = made(1, restarts=0)
    engine.load(weights(1))
    os.kill(pid_of(servers, 0), signal.SIGKILL)
    [sample] = engine.generate([Request([1], 1, 0)], Sampling(), [])
    assert isinstance(sample, EngineError)
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"no server is left: server 0: it died"):
        engine.load(weights(2))
    assert time.monotonic() - began < 2


def test_a_server_that_refuses_new_weights_samples_no_more_and_is_replaced(made: Made, tmp_path: Path) -> None:
    engine, servers = made(2, restarts=1)
    engine.load(weights(1))
    (tmp_path / "fault").write_text(f"refuses {pid_of(servers, 0)}")
    engine.load(weights(2))
    assert versions(engine, 6) == [2] * 6
    until = time.monotonic() + 20
    while servers.joined < 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert engine.gone == set()
    assert versions(engine, 6) == [2] * 6


def test_nobody_waits_while_another_server_is_being_given_weights(made: Made) -> None:
    engine, _ = made(2, restarts=0)
    engine.load(weights(1))
    with engine._loading:  # as `join` holds it
        began = time.monotonic()
        assert versions(engine, 2) == [1, 1]
        engine.rest()
        assert time.monotonic() - began < 5


def test_a_server_that_does_not_start_is_an_error_with_its_last_words(made: Made, tmp_path: Path) -> None:
    (tmp_path / "fault").write_text("does not start")
    with pytest.raises(UserError, match=r"the vLLM server ended while it started: .*there is no memory for it"):
        made(2, restarts=3)
