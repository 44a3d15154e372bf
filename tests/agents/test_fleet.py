"""Servers that die are replaced: real processes, with a stand-in where vLLM's server would be."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from turncredit.agents import ChatFormat, Request, Sampling, fleet, vllm_server
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


def server_of(servers: Fleet, place: int) -> int:
    """The process that answers, the last of its group to be started."""
    return max(group_of(pid_of(servers, place)))


def versions(engine: VllmServers, episodes: int) -> list[float]:
    """Which weights each of as many requests is sampled with."""
    said = engine.generate([Request([1, 2], 2, i, episode=i) for i in range(episodes)], Sampling(), [])
    return [-float(one.logprobs[0]) if not isinstance(one, EngineError) else float("nan") for one in said]


def test_a_server_that_dies_is_replaced_by_one_with_the_present_weights(made: Made, tmp_path: Path) -> None:
    engine, servers = made(1, restarts=2)
    engine.load(weights(7))
    assert versions(engine, 3) == [7, 7, 7]
    for lost in (1, 2):
        os.killpg(pid_of(servers, 0), signal.SIGKILL)
        assert versions(engine, 3) == [7, 7, 7], "those that asked meanwhile waited for it"
        assert servers.lost == lost
    engine.load(weights(8))
    assert versions(engine, 1) == [8]


def test_a_server_that_dies_of_a_request_takes_no_other_episode_with_it(made: Made, tmp_path: Path) -> None:
    engine, servers = made(2, restarts=1)
    engine.load(weights(3))
    (tmp_path / "fault").write_text(f"dies {server_of(servers, 1)}")
    assert versions(engine, 8) == [3] * 8
    until = time.monotonic() + 20
    while servers.joined < 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert engine.gone == set() and servers.lost == 1


def test_where_no_server_is_left_everybody_is_told_at_once(made: Made) -> None:
    engine, servers = made(1, restarts=0)
    engine.load(weights(1))
    os.killpg(pid_of(servers, 0), signal.SIGKILL)
    [sample] = engine.generate([Request([1], 1, 0)], Sampling(), [])
    assert isinstance(sample, EngineError)
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"no server is left: server 0: it died"):
        engine.load(weights(2))
    assert time.monotonic() - began < 2


def test_a_server_that_refuses_new_weights_samples_no_more_and_is_replaced(made: Made, tmp_path: Path) -> None:
    engine, servers = made(2, restarts=1)
    engine.load(weights(1))
    (tmp_path / "fault").write_text(f"refuses {server_of(servers, 0)}")
    engine.load(weights(2))
    assert versions(engine, 6) == [2] * 6
    until = time.monotonic() + 20
    while servers.joined < 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert engine.gone == set()
    assert versions(engine, 6) == [2] * 6


def test_servers_that_sleep_wake_for_weights_and_requests_and_those_that_join_them_sleep_too(
        made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, servers = made(2, restarts=1)
    engine._sleep_level = 2
    calls: list[tuple[str, str]] = []  # URL of the server, and what it was asked for
    post = vllm_server._post

    def noted(url: str, body: Any) -> None:
        calls.append((url.rpartition("/")[0] + "/v1", url.rpartition("/")[2]))
        post(url, body)

    def of(url: str) -> list[str]:
        return [what for server, what in calls if server == url]

    monkeypatch.setattr(vllm_server, "_post", noted)
    woken = ["wake_up?tags=weights", "collective_rpc", "wake_up?tags=kv_cache", "reset_prefix_cache"]
    engine.rest()
    assert of(servers.urls[0]) == of(servers.urls[1]) == ["sleep?level=1"], "nobody could give the weights again"
    del calls[:]
    engine.load(weights(4))
    assert of(servers.urls[0]) == of(servers.urls[1]) == woken
    del calls[:]
    engine.rest()
    engine.rest()
    os.killpg(pid_of(servers, 1), signal.SIGKILL)
    until = time.monotonic() + 20
    while servers.joined < 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert of(servers.urls[0]) == ["sleep?level=2"]
    assert of(servers.urls[1]) == ["collective_rpc", "reset_prefix_cache", "sleep?level=2"], "it joins those that sleep"
    del calls[:]
    assert versions(engine, 4) == [4] * 4
    assert of(servers.urls[0]) == of(servers.urls[1]) == woken


def test_what_a_server_has_started_ends_with_it_however_we_end(made: Made, tmp_path: Path) -> None:
    (tmp_path / "fault").write_text("has children")
    child = os.fork()
    if child == 0:
        try:
            server = LocalServer(tmp_path / "model", sys.executable)
            (tmp_path / "group").write_text(f"{server.pid} {len(group_of(server.pid))}")
        finally:
            os._exit(0)  # without a word to the server
    os.waitpid(child, 0)
    group, count = map(int, (tmp_path / "group").read_text().split())
    assert count == 4, "who watches, two, the server, and what it has started"
    assert ends(group)


def test_a_server_ends_where_who_watches_it_is_killed(made: Made, tmp_path: Path) -> None:
    server = LocalServer(tmp_path / "model", sys.executable)
    os.kill(server.pid, signal.SIGKILL)  # as Ray does with its workers' children where a node dies
    assert ends(server.pid)
    server.close()


def ends(group: int) -> bool:
    """Whether all of a group's processes do, in time."""
    until = time.monotonic() + 20
    while group_of(group) and time.monotonic() < until:
        time.sleep(0.05)
    return not group_of(group)


def group_of(leader: int) -> list[int]:
    """Processes of a group that are not only waiting to be forgotten."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(group) == leader and state != "Z":
                found.append(int(stat.parent.name))
    return found


def test_a_server_that_was_refused_too_late_is_replaced_once(made: Made) -> None:
    engine, servers = made(1, restarts=1)
    engine.load(weights(1))
    gone = servers.urls[0]
    os.killpg(pid_of(servers, 0), signal.SIGKILL)
    assert versions(engine, 1) == [1]
    servers.refuse(0, gone)
    time.sleep(0.5)
    assert servers.lost == 1 and versions(engine, 1) == [1], "the one in its place has nothing to do with it"


def test_nobody_waits_while_another_server_is_being_given_weights(made: Made) -> None:
    engine, _ = made(2, restarts=0)
    engine.load(weights(1))
    with engine._loading:  # as `join` holds it
        began = time.monotonic()
        assert versions(engine, 2) == [1, 1]
        engine.rest()
        assert time.monotonic() - began < 5


def test_servers_that_take_no_weights_at_first_are_an_error_that_names_the_folder(made: Made, tmp_path: Path) -> None:
    engine, servers = made(1, restarts=0)
    (tmp_path / "fault").write_text(f"refuses {server_of(servers, 0)}")
    with pytest.raises(EngineError, match=rf"collective_rpc: 500 .*no memory.*see the files of {tmp_path}/model"):
        engine.load(weights(1))


def test_a_server_that_does_not_start_is_an_error_with_its_last_words(made: Made, tmp_path: Path) -> None:
    (tmp_path / "fault").write_text("does not start")
    with pytest.raises(UserError, match=r"the vLLM server ended while it started: .*there is no memory for it"):
        made(2, restarts=3)
