"""`turncredit evaluate` and `turncredit train` as they are typed: killed and started again; refused for a leak."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from turncredit.store import RunFolder

TRAIN = """
runs: {folder}
envs: [{{id: turncredit/Questions-v0, arguments: {{data: {folder}/rows.jsonl}}}}]
model: {{tiny: {{width: 32, layers: 2, heads: 2, context: 256, vocabulary: 300}}}}
trainer: {{steps: 1}}
warmstart: {{envs: [{{id: turncredit/Arithmetic-v0}}], steps: 1}}
evaluation:
  envs: [{{id: turncredit/Questions-v0, split: test, arguments: {{data: {folder}/rows.jsonl}}}}]
  leakage: refuse
"""


def started(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "turncredit.cli", *words], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def ended(*words: str) -> None:
    process = started(*words)
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, out + err


@pytest.mark.slow
def test_an_evaluation_that_is_killed_goes_on_where_it_stopped_and_ends_the_same(
        trained_run: Path, tmp_path: Path) -> None:
    def words(out: str) -> list[str]:
        return ["evaluate", str(trained_run), "--env", "turncredit/Arithmetic-v0:test", "--tasks", "8", "--k", "2",
                "--seed", "4", "--out", str(tmp_path / out)]

    ended(*words("whole"))
    killed = started(*words("half"))
    until = time.monotonic() + 200
    while time.monotonic() < until and len(list(tmp_path.glob("half/policy/episodes/step-*.parquet"))) < 3:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("half/*/episodes/step-*.parquet")}
    assert not (tmp_path / "half" / "scores.json").exists() and len(kept) >= 3
    ended(*words("half"))
    assert all(file.stat().st_mtime_ns == written for file, written in kept.items()), "what was done is not done again"
    one, other = ((tmp_path / out / "scores.csv").read_text() for out in ("whole", "half"))
    assert one == other
    tokens = [[e.token_ids.tolist() for e in RunFolder(tmp_path / out / "policy").read_episodes()]
              for out in ("whole", "half")]
    assert tokens[0] == tokens[1] and len(tokens[0]) == 16


def test_training_refuses_to_be_evaluated_on_what_it_trains_on_where_told_to(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "What is 1 + 1?", "answer": "2"}\n')
    config = tmp_path / "config.yaml"
    config.write_text(TRAIN.format(folder=tmp_path))
    process = started("train", str(config))
    _, said = process.communicate(timeout=200)
    assert process.returncode == 2
    assert said.startswith("error: ") and "Traceback" not in said
    assert "1 of 1 tasks of turncredit/Questions-v0 (test) stand in the training" in " ".join(said.split())
    assert {entry.name for entry in tmp_path.iterdir()} == {"rows.jsonl", "config.yaml"}, "nothing was begun"
