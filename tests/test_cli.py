"""The command line: what a user can do wrong is one sentence and exit code 2, never a traceback."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import yaml

import turncredit
from turncredit.cli import main
from turncredit.config import parse_config
from turncredit.envs import Reply, TextEnv
from turncredit.episode import Outcome, Task, Verdict
from turncredit.rollout import Budget, Rollout

Command = Callable[..., tuple[int, str, str]]


class Fair:
    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        return Verdict.of(outcome.answer == "yes", "as [/you] said")


class Plain(TextEnv):
    """No tools, no scripted solution, and text that rich would take for markup."""

    instructions = "Say [bold]yes[/]."
    verifier = Fair()

    def make_task(self, rng: Any) -> Task:
        return Task("Well [/b]?")

    def respond(self, action: str) -> Reply:
        return Reply(done=True, answer=action)


class Foreign(gymnasium.Env[str, str]):
    """Not ours: no splits, no formats, no verdicts."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return "go", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "gone", 0.5, True, False, {}


@pytest.fixture(autouse=True)
def environments() -> Iterator[None]:
    before = dict(gymnasium.registry)
    turncredit.register("tests/Plain-v0", Plain)
    turncredit.register("tests/Foreign-v0", Foreign)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run `turncredit …` in an empty folder; returns the exit code, what it printed, and what it complained of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str, said: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["turncredit", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def policy(tokenizer_for: Any, model_for: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random policy as transformers saves it."""
    folder = tmp_path_factory.mktemp("policy")
    tokenizer_for("chatml").save_pretrained(folder)
    model_for(tokenizer_for("chatml")).save_pretrained(folder)
    return folder


def refused(result: tuple[int, str, str], *parts: str) -> None:
    """One sentence on standard error, exit code 2, no traceback."""
    code, out, err = result
    assert code == 2, out + err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    for part in parts:
        assert part in err


def test_the_environments_are_listed(command: Command) -> None:
    code, out, _ = command("envs", "list")
    assert code == 0
    assert {"turncredit/Calculator-v0", "tests/Plain-v0"} <= set(out.split())
    assert json.loads(command("envs", "list", "--json")[1]) == out.split()


def test_an_environment_is_shown_with_its_tools_and_its_solution(command: Command) -> None:
    code, out, _ = command("envs", "show", "turncredit/Calculator-v0", "--arguments", '{"level": 2}', "--seed", "3")
    assert code == 0
    for part in ("Work out the expression", "What is", "tool calculate", '"enum"', "its scripted solution",
                 "<tool_call>", "reward: 1.0"):
        assert part in out


def test_an_environment_without_solution_or_with_markup_is_shown_as_it_is(command: Command) -> None:
    code, out, _ = command("envs", "show", "tests/Plain-v0")
    assert code == 0
    assert "Say [bold]yes[/]." in out
    assert "Well [/b]?" in out
    assert "scripted solution" not in out
    assert command("envs", "show", "tests/Foreign-v0")[0] == 0


def test_a_person_plays_a_turn_a_line(command: Command) -> None:
    from turncredit.envs import make

    env = make("turncredit/Calculator-v0", level=1, tool_format="plain").unwrapped
    env.reset(seed=5)
    lines = [env.expert_action(), env.expert_action()]  # type: ignore[attr-defined]
    code, out, _ = command("play", "turncredit/Calculator-v0", "--seed", "5", said="\n".join(["@calc", *lines]) + "\n")
    assert code == 0
    assert "@calculate a=? op=? b=?" in out
    assert "error: unknown tool 'calc'; did you mean 'calculate'?" in out
    assert "reward 1.0 (finished)" in out


def test_play_takes_environments_of_others_and_says_why(command: Command) -> None:
    assert "reward 0.5" in command("play", "tests/Foreign-v0", said="hi\n")[1]
    assert "reward 0.0 (finished) as [/you] said" in command("play", "tests/Plain-v0", said="no\n")[1]
    assert "<tool_call>" in command("play", "turncredit/Pantry-v0", "--arguments", '{"tool_format": "json"}')[1]


def test_play_ends_with_its_input(command: Command) -> None:
    code, out, _ = command("play", "turncredit/Pantry-v0", said="@look item=tea\n")
    assert (code, "ended before the episode did" in out) == (0, True)


@pytest.mark.parametrize("arguments, parts", [
    (["envs", "show", "turncredit/Calculater-v0"], ["'turncredit/Calculater-v0'", "'turncredit/Calculator-v0'?"]),
    (["play", "turncredit/Pantri-v0"], ["did you mean 'turncredit/Pantry-v0'"]),
    (["play", "turncredit/Pantry-v0", "--arguments", '{"split": "tset"}'], ["split 'tset'", "'test'"]),
    (["play", "turncredit/Pantry-v0", "--arguments", '{"level": 9}'], ["level is 9", "levels 1 to 3"]),
    (["play", "turncredit/Pantry-v0", "--arguments", '{"colour": 9}'], ["colour"]),
    (["play", "turncredit/Pantry-v0", "--arguments", "{level: 1}"], ["--arguments", "not valid JSON"]),
    (["play", "turncredit/Pantry-v0", "--arguments", "[1]"], ["must be a JSON object"]),
    (["envs", "show", "turncredit/Questions-v0"], ["turncredit/Questions-v0", "data"]),
    (["envs", "show", "turncredit/Questions-v0", "--arguments", '{"data": "none.jsonl"}'], ["there is no such file"]),
    (["train", "none.yaml"], ["config 'none.yaml': there is no such file"]),
    (["warmstart", "none.yaml"], ["there is no such file"]),
    (["demo", "--config", "none.yaml"], ["there is no such file"]),
    (["evaluate", "./none", "--env", "turncredit/Calculator-v0"], ["model.path './none'", "cannot be loaded"]),
    (["evaluate", "./none", "--env", "turncredit/Calculator-v0", "--arguments", "{"], ["not valid JSON"]),
    (["evaluate", "./none", "--env", "turncredit/Calculator-v0", "--tool-calls", "xml"],
     ["model.tool_calls is 'xml'", "'json' or 'plain'"]),
])
def test_a_user_s_mistake_is_one_sentence(command: Command, arguments: list[str], parts: list[str]) -> None:
    refused(command(*arguments), *parts)


@pytest.mark.parametrize("arguments", [["evaluate", "x"], ["evaluate", "x", "--env", "a", "--k", "0"], ["trian"],
                                       ["play"], ["envs", "show"], ["evaluate", "x", "--env", "a", "--seed", "one"]])
def test_a_wrong_command_line_is_exit_code_2(command: Command, arguments: list[str]) -> None:
    code, out, err = command(*arguments)
    assert code == 2
    assert "Traceback" not in out + err
    assert "Usage" in err


CONFIG: dict[str, Any] = {
    "name": "trial",
    "model": {"tiny": {"vocabulary": 320, "width": 32, "layers": 1, "heads": 2}, "tool_calls": "plain"},
    "envs": [{"id": "turncredit/Calculator-v0"}], "warmstart": {"envs": [{"id": "turncredit/Calculator-v0"}]}}


@pytest.mark.parametrize("name", ["train", "warmstart"])
@pytest.mark.parametrize("override, parts", [
    ("trainer.lrr=1", ["unknown key 'trainer.lrr'", "'lr'"]),
    ("trainer.lr", ["write key=value"]),
    ("envs.0.id=turncredit/Calculater-v0", ["envs.0", "did you mean 'turncredit/Calculator-v0'"]),
    ("evaluation.envs=[{id: turncredit/Calculator-v0, split: tset}]", ["evaluation.envs.0", "did you mean 'test'"]),
])
def test_a_run_that_cannot_work_is_refused_and_leaves_nothing_behind(command: Command, tmp_path: Path, name: str,
                                                                    override: str, parts: list[str]) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    refused(command(name, "config.yaml", override), *parts)
    assert list(tmp_path.iterdir()) == [tmp_path / "config.yaml"]


def test_what_is_not_there_cannot_be_resumed_and_what_is_there_is_not_overwritten(command: Command,
                                                                                 tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    refused(command("train", "config.yaml", "--resume"), "holds no run to resume")
    run = tmp_path / "runs" / "trial"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(parse_config(CONFIG).model_dump(mode="json")))
    refused(command("train", "config.yaml"), "holds a run already: pass --resume")
    refused(command("train", "config.yaml", "trainer.lr=1e-3", "--resume"), "these keys differ: trainer.lr")
    refused(command("evaluate", str(run), "--env", "turncredit/Calculator-v0"), "without a policy or a checkpoint")


@pytest.fixture
def run_folder(policy: Path, tmp_path: Path) -> Path:
    """A run that has ended, with a short budget."""
    run = tmp_path / "runs" / "trial"
    run.mkdir(parents=True)
    settings = parse_config(CONFIG | {"rollout": {"turn_tokens": 4, "episode_tokens": 8}})
    (run / "config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    (run / "policy").symlink_to(policy)
    return run


def test_a_policy_is_evaluated_on_environments_and_splits(command: Command, run_folder: Path) -> None:
    evaluated = ["evaluate", str(run_folder), "--env", "turncredit/Arithmetic-v0:test", "--env",
                 "turncredit/Arithmetic-v0:ood", "--tasks", "2", "--k", "2", "--seed", "4", "--no-floors"]
    code, out, err = command(*evaluated, "--json")
    assert code == 0, err
    scores = json.loads(out)["scores"]
    assert [(s["env"], s["split"], s["tasks"], s["k"], s["unjudged"]) for s in scores] == [
        ("turncredit/Arithmetic-v0", "test", 2, 2, 0), ("turncredit/Arithmetic-v0", "ood", 2, 2, 0)]
    assert json.loads(command(*evaluated, "--json")[1])["scores"] == scores, "the same seed, the same figures"
    code, table, _ = command(*evaluated)
    assert code == 0
    for part in ("avg@2", "pass@1", "pass@2", "not judged", "turncredit/Arithmetic-v0"):
        assert part in table
    assert "episodes ended so" not in table


def test_a_model_folder_is_evaluated_and_what_could_not_be_judged_is_shown_with_the_reason(command: Command,
                                                                                          policy: Path) -> None:
    # The tools' schemas do not fit into the model's 512 tokens.
    code, out, _ = command("evaluate", str(policy), "--env", "turncredit/Calculator-v0", "--tasks", "2", "--k", "1",
                           "--no-floors")
    assert code == 0
    assert "2 episodes not judged; episodes ended so: context full: 2" in out


def test_a_second_environment_s_typo_is_refused_before_the_first_is_evaluated(command: Command, policy: Path) -> None:
    refused(command("evaluate", str(policy), "--env", "turncredit/Arithmetic-v0", "--env", "turncredit/Arithmatic-v0"),
            "did you mean 'turncredit/Arithmetic-v0'")


def test_an_environment_of_others_is_evaluated_in_its_own_split(command: Command, run_folder: Path) -> None:
    code, out, err = command("evaluate", str(run_folder), "--env", "tests/Foreign-v0:train", "--tasks", "1", "--k", "1",
                             "--json")
    assert code == 0, err
    assert {s["agent"]: s["avg"] for s in json.loads(out)["scores"]} == {"silent": 0.5, "random": 0.5, "policy": 0.5}


def test_a_run_folder_is_evaluated_in_its_own_tool_format_unless_another_is_asked_for(
        command: Command, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats: list[str] = []
    original = Rollout.__init__

    def noting(self: Rollout, agent: Any, chat: Any, budget: Budget, tool_calls: str) -> None:
        formats.append(tool_calls)
        original(self, agent, chat, budget, tool_calls)

    monkeypatch.setattr(Rollout, "__init__", noting)
    asked = ["evaluate", str(run_folder), "--env", "turncredit/Calculator-v0", "--tasks", "1", "--k", "1",
             "--no-floors"]
    assert command(*asked)[0] == 0
    assert command(*asked, "--tool-calls", "json")[0] == 0
    assert formats == ["plain", "json"]
