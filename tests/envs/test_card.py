"""The card says what the environment is, measured on it as it is."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from importlib.metadata import metadata
from typing import Any

import gymnasium
import pytest
from rich.console import Console

import turncredit
from turncredit.cli import main
from turncredit.envs import Reply, Task, TextEnv
from turncredit.envs.card import card
from turncredit.envs.commands import LONGEST_TEXT, print_card
from turncredit.errors import UserError
from turncredit.verifiers import MathAnswer


class Guess(TextEnv):
    """Guess the number.

    It is never the same twice.
    """

    instructions = "Say [bold]a number[/]."
    verifier = MathAnswer()
    package = "gymnasium"
    num_tasks = 3
    split_is_label = True

    def make_task(self, rng: Any) -> Task:
        return self.task_at(int(rng.integers(3)))

    def task_at(self, index: int) -> Task:
        return Task("Well [/b]? " + "x" * 2 * LONGEST_TEXT, {"answer": index})

    def respond(self, action: str) -> Reply:
        return Reply(done=True, answer=action)


class Unplayable(Guess):
    """It cannot be stepped."""

    def respond(self, action: str) -> Reply:
        raise KeyError("no such thing")


class Foreign(gymnasium.Env[str, str]):
    """Not ours: no splits, no tools, no verdicts."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return "go", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "gone", 0.5, True, False, {}


@pytest.fixture(autouse=True)
def environments() -> Iterator[None]:
    before = dict(gymnasium.registry)
    for environment in (Guess, Unplayable, Foreign):
        turncredit.register(f"tests/{environment.__name__}-v0", environment)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def test_of_an_environment_with_tools_and_a_solution_all_is_known() -> None:
    found = card("turncredit/Calculator-v0", {"tool_format": "plain"}, tasks=6, seed=3)
    assert found.about.startswith("An expression with several operators")
    assert found.instructions.startswith("Work out the expression")
    assert [tool.name for tool in found.tools] == ["calculate"]
    assert (found.splits, found.levels, found.turn_limit) == (dict.fromkeys(("train", "test", "ood")), 4, 8)
    assert found.licences == {"turncredit": "Apache-2.0"}
    assert next(iter(found.agents)) == "expert" and found.agents["expert"].reward == 1.0
    assert found.agents["expert"].turns == 2.0
    assert found.agents["silent"].reward == found.agents["everything"].reward == 0.0
    assert [line["role"] for line in found.example] == ["task", "agent", "tool", "agent", "reward"]
    env = turncredit.make("turncredit/Calculator-v0")
    assert found.example[0]["text"] == env.reset(seed=3)[0]
    said = [found.instructions, *(line["text"] for line in found.example[:-1])]
    assert found.agents["expert"].tokens == pytest.approx(sum(map(len, said)) / 4, rel=0.1)


def test_of_a_task_set_the_size_is_told_once_where_the_split_is_a_label() -> None:
    found = card("tests/Guess-v0", tasks=8)
    assert found.splits == {"train": 3}
    assert found.about == "Guess the number."
    assert found.licences["gymnasium"] == (metadata("gymnasium").get("License-Expression")
                                           or metadata("gymnasium")["License"])
    assert "expert" not in found.agents and 0 <= (found.agents["random"].reward or 0) <= 1


def test_of_another_gymnasium_environment_it_says_what_it_can() -> None:
    found = card("tests/Foreign-v0", tasks=2)
    assert (found.splits, found.tools, found.turn_limit) == ({}, [], None)
    assert found.agents["silent"].reward == 0.5
    assert found.example[-1] == {"role": "reward", "text": "0.5"}


def test_what_an_environment_says_is_printed_as_it_is_and_cut_where_it_is_long() -> None:
    out = io.StringIO()
    print_card(card("tests/Guess-v0", tasks=2), 2, Console(file=out, width=10_000))
    assert "instructions: Say [bold]a number[/]." in out.getvalue()
    assert "task: Well [/b]? xxx" in out.getvalue()
    assert "x" * LONGEST_TEXT not in out.getvalue() and "x …" in out.getvalue()
    assert "splits: train (3 tasks)" in out.getvalue()


def test_an_environment_that_cannot_be_played_has_no_card() -> None:
    with pytest.raises(UserError, match=r"Unplayable-v0: step\(\) raised KeyError: 'no such thing'; `turncredit envs"):
        card("tests/Unplayable-v0", tasks=1)
    with pytest.raises(UserError, match="did you mean"):
        card("turncredit/Calculater-v0")


def test_the_command_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["turncredit", "envs", "card", "turncredit/Brackets-v0", "--tasks", "2", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["agents"]["expert"]["reward"] == 1.0 and found["splits"].keys() == {"train", "test", "ood"}
