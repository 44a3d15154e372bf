"""The environments that run code need a sandbox: without one their tests are skipped, with the reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import turncredit
from turncredit.errors import UserError
from turncredit.verifiers.code import Call, CodeTests, judge_code


@pytest.fixture(scope="session")
def sandbox() -> None:
    """Skip where no local sandbox can be opened."""
    try:
        report = judge_code("def f():\n    return 1", CodeTests([Call(expected=1)], "f"))
    except UserError as error:
        pytest.skip(str(error))
    assert report.passed, report


@pytest.fixture
def make(sandbox: None) -> Any:
    """`make(id, **arguments)`: an environment that is closed behind the test."""
    made: list[Any] = []

    def build(id: str, **arguments: Any) -> Any:
        made.append(turncredit.make(f"turncredit/{id}-v0", **arguments).unwrapped)
        return made[-1]

    yield build
    for env in made:
        env.close()


@pytest.fixture(scope="session")
def data_file() -> Callable[[str], str]:
    """The path of a benchmark's file; the test is skipped where it is absent."""
    def find(name: str) -> str:
        folder = Path(os.environ.get("TURNCREDIT_DATA", "../shared/data"))
        if not (folder / name).is_file():
            pytest.skip(f"{folder / name} is absent: set TURNCREDIT_DATA to the folder of the benchmark data")
        return str(folder / name)

    return find


@pytest.fixture
def play() -> Callable[[Any, int], float]:
    """`play(env, seed)`: the reward of the scripted solution, where every call was well formed."""
    def run(env: Any, seed: int, **options: Any) -> float:
        env.reset(seed=seed, **options)
        over = False
        while not over:
            _, reward, terminated, truncated, info = env.step(env.expert_action())
            assert info["valid"]
            over = terminated or truncated
        return float(reward)

    return run
