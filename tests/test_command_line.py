"""The command line as people meet it: help with examples, completion, Ctrl-C, and JSON for scripts."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from turncredit.cli import app, main

ENV = {"id": "turncredit/Calculator-v0", "arguments": {"level": 1}}
CONFIG = {
    "name": "halted", "envs": [ENV],
    "model": {"tiny": {"width": 32, "layers": 1, "heads": 2, "context": 512, "vocabulary": 360}, "tool_calls": "plain"},
    "rollout": {"groups": 2, "group_size": 2, "turn_tokens": 16, "episode_tokens": 32, "context_tokens": 400},
    "trainer": {"steps": 200, "save_every": 1}, "warmstart": {"envs": [ENV], "steps": 2, "demonstrations": 8}}


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner = getattr(command, "commands", None)
    if not inner:
        yield path, command
    for name, below in (inner or {}).items():
        yield from leaves(below, (*path, name))


def told(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["turncredit", *arguments])
    capsys.readouterr()
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, *capsys.readouterr()


@pytest.mark.parametrize("path, command", list(leaves(get_command(app))), ids=lambda value: "-".join(value)
                         if isinstance(value, tuple) else "")
def test_each_command_says_what_it_does_with_an_example_that_parses(path: tuple[str, ...], command: Any) -> None:
    found = re.search(r"Example: turncredit (.+)", command.help)
    assert found, f"turncredit {' '.join(path)} --help has no example"
    words = shlex.split(found[1])
    assert tuple(words[:len(path)]) == path
    command.make_context("turncredit", words[len(path):])
    for parameter in command.params:
        assert getattr(parameter, "help", None) or parameter.param_type_name == "option", parameter.name


def test_exit_codes_are_documented() -> None:
    assert all(f"{code} " in (get_command(app).help or "") for code in (0, 1, 2, 130))


def test_the_shell_completes_commands_environments_and_suites() -> None:
    for words, wanted in (("turncredit rep", {"report", "replay"}),
                          ("turncredit envs show turncredit/Calc", {"turncredit/Calculator-v0"}),
                          ("turncredit evaluate x --envs q", {"quick"})):
        asked = {"_TURNCREDIT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        program = "import sys; sys.argv[0] = 'turncredit'; from turncredit.cli import app; app(prog_name='turncredit')"
        done = subprocess.run([sys.executable, "-c", program], env=os.environ | asked, capture_output=True, text=True)
        assert set(done.stdout.split()) == wanted, done.stderr


def test_ctrl_c_ends_training_in_one_sentence_and_the_command_in_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "halted.yaml").write_text(yaml.safe_dump(CONFIG))
    command = [sys.executable, "-m", "turncredit.cli", "train", "halted.yaml", "seed=3"]
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                           preexec_fn=heard)
    metrics = tmp_path / "runs" / "halted" / "metrics.jsonl"
    waited = time.monotonic() + 200
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2) and time.monotonic() < waited:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=100)[1]
    assert run.returncode == 130, said
    [sentence] = [line for line in said.splitlines() if "interrupted" in line]
    assert "Traceback" not in said
    done = metrics.read_text().count("\n")
    again = shlex.split(sentence.partition("go on with: ")[2])
    assert again == ["turncredit", "train", "halted.yaml", "seed=3", "--resume"]
    shorter = CONFIG | {"trainer": CONFIG["trainer"] | {"steps": done + 1}}  # type: ignore[operator]
    file = tmp_path / "runs" / "halted" / "config.yaml"
    kept = yaml.safe_load(file.read_text())
    kept["trainer"]["steps"] = done + 1
    file.write_text(yaml.safe_dump(kept))
    (tmp_path / "halted.yaml").write_text(yaml.safe_dump(shorter))
    subprocess.run([sys.executable, "-m", "turncredit.cli", *again[1:]], cwd=tmp_path, check=True, capture_output=True)
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(done + 1))


def test_ctrl_c_ends_an_evaluation_with_the_command_that_goes_on(
        trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    @contextmanager
    def halting(label: str, total: int | None = None) -> Iterator[Any]:
        def done(count: int) -> None:
            raise KeyboardInterrupt

        yield done

    monkeypatch.setattr("turncredit.progress.bar", halting)
    asked = ["evaluate", str(trained_run), "--env", "turncredit/Calculator-v0", "--tasks", "1", "--k", "1"]
    kept = ["--out", str(tmp_path / "kept")]
    code, _, said = told(monkeypatch, capsys, *asked, *kept)
    assert code == 130
    assert said.strip() == f"interrupted; go on with: {shlex.join(['turncredit', *asked, *kept])}"
    assert "nothing is kept: --out FOLDER" in told(monkeypatch, capsys, *asked)[2]


def test_ctrl_c_ends_any_other_command_in_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def halted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("turncredit.envs.card.card", halted)
    code, out, said = told(monkeypatch, capsys, "envs", "card", "turncredit/Calculator-v0")
    assert (code, out) == (130, "")
    assert said == ("interrupted; nothing is left half written. To start again: turncredit envs card "
                    "turncredit/Calculator-v0\n")


def test_a_script_reads_a_replay_a_run_s_state_and_a_sandbox_s_rows(
        trained_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    code, out, _ = told(monkeypatch, capsys, "replay", str(trained_run), "000001-0001-001", "--json")
    replayed = json.loads(out)
    assert (code, replayed["episode"], replayed["differences"]) == (0, "000001-0001-001", [])
    state = json.loads(told(monkeypatch, capsys, "watch", str(trained_run), "--json")[1])
    assert (state["ended"], state["steps"], state["last"]["step"]) == (True, 3, 2)
    code, out, _ = told(monkeypatch, capsys, "sandbox", "check", "local", "--json")
    rows = {row["name"]: row["holds"] for row in json.loads(out)["local"]}
    assert rows["runs Python"] is (code == 0)
