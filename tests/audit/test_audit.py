"""The audit: an honest run passes every row, and each way to tamper with one is caught by the row that should."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from safetensors.torch import load_file, save_file

from turncredit.audit import ROWS, Finding, audit
from turncredit.errors import UserError

Rows = list[dict[str, Any]]


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy, to be tampered with."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def tamper(file: Path, change: Callable[[Rows], None]) -> None:
    table = pyarrow.parquet.read_table(file)
    rows = table.to_pylist()
    change(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=table.schema), file)


def group_file(run: Path) -> Path:
    """Of the last step, whose weights before the update are kept."""
    return sorted((run / "episodes").glob("*.parquet"))[-1]


def failed(findings: list[Finding]) -> set[str]:
    return {finding.row for finding in findings if finding.verdict == "fail"}


def test_an_honest_run_passes_every_row(trained_run: Path) -> None:
    findings = audit(trained_run, episodes=None)
    assert {f.row: f.problems for f in findings if f.verdict != "pass"} == {}
    checked = {f.row: f.checked for f in findings}
    assert list(checked) == list(ROWS)
    assert checked["rewards"] == checked["texts"] == checked["logprobs"] == 36
    assert checked["steps"] == checked["files"] == 3


def reward(rows: Rows) -> None:
    rows[0]["reward"] = rows[0]["verdict_reward"] = 1.0 - rows[0]["reward"]
    rows[0]["passed"] = rows[0]["verdict_passed"] = not rows[0]["passed"]


def column(rows: Rows) -> None:
    rows[1]["generated_tokens"] += 1


def mask(rows: Rows) -> None:
    rows[0]["segments"][0] |= {"generated": True, "logprobs": [-1.0] * len(rows[0]["segments"][0]["token_ids"]),
                               "sampling_logprobs": [-1.0] * len(rows[0]["segments"][0]["token_ids"])}


def role(rows: Rows) -> None:
    rows[0]["segments"][1]["role"] = "user"


def token(rows: Rows) -> None:
    ids = rows[0]["segments"][1]["token_ids"]
    ids[0] = 40 if ids[0] != 40 else 41


def prompt(rows: Rows) -> None:
    rows[2]["prompt"] += " Really?"


def action(rows: Rows) -> None:
    rows[0]["turns"][0]["action"] += "!"


def logprob(rows: Rows) -> None:
    rows[0]["segments"][1]["logprobs"][0] -= 0.01


def reason(rows: Rows) -> None:
    rows[0]["verdict_reason"] = "it was polite"


def left_out(rows: Rows) -> None:
    del rows[-1]


def slow(*case: Any) -> Any:
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize("change, rows", [
    (reward, {"rewards", "sums"}), (token, {"texts", "logprobs"}), slow(column, {"sums"}), slow(mask, {"masks"}),
    slow(role, {"masks"}), slow(prompt, {"texts", "rewards"}), slow(action, {"texts", "rewards"}),
    slow(logprob, {"logprobs"}), slow(reason, {"rewards"}), slow(left_out, {"files"})])
def test_a_changed_episode_is_caught(run: Path, change: Callable[[Rows], None], rows: set[str]) -> None:
    tamper(group_file(run), change)
    assert rows <= failed(audit(run, episodes=None))


def weighted(rows: Rows) -> dict[str, Any]:
    return next(row for row in rows if row["weight"] is not None)


def weight(rows: Rows) -> None:
    weighted(rows)["weight"] = 0.5 * weighted(rows)["weight"] + 0.1


def kl(rows: Rows) -> None:
    weighted(rows)["kl"] = 3.0 + 2.0 * weighted(rows)["kl"]


def advantage(rows: Rows) -> None:
    for row in rows:
        row["advantage"] += 0.5


def reference(rows: Rows) -> None:
    weighted(rows)["reference"] = "000000-0000-000"


def route(rows: Rows) -> None:
    rows[0]["route"] = "generous"


def other_token(rows: Rows) -> None:
    rows[0]["token_id"] += 1


@pytest.mark.parametrize("change, rows", [
    (weight, {"weights", "steps"}), slow(kl, {"weights", "steps"}), slow(advantage, {"advantages", "steps"}),
    slow(reference, {"advantages"}), slow(route, {"advantages"}), slow(other_token, {"advantages"})])
def test_changed_credit_is_caught(run: Path, change: Callable[[Rows], None], rows: set[str]) -> None:
    tamper(sorted((run / "credit").glob("*.parquet"))[0], change)
    assert rows <= failed(audit(run, episodes=0))


@pytest.mark.parametrize("name, value, row", [
    ("reward", 0.75, "sums"), slow("stops", {"finished": 1}, "sums"), slow("loss", 3.0, "steps"),
    slow("groups dropped", 1, "advantages")])
def test_a_changed_line_of_metrics_is_caught(run: Path, name: str, value: Any, row: str) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    changed = json.dumps(json.loads(lines[1]) | {name: value})
    (run / "metrics.jsonl").write_text("\n".join([lines[0], changed, *lines[2:]]) + "\n")
    assert row in failed(audit(run, episodes=0))


def test_weights_that_are_not_those_that_sampled_are_caught(run: Path) -> None:
    file = run / "checkpoints" / "step-000001" / "model.safetensors"
    tensors = load_file(file)
    tensors = {name: tensor * 1.05 for name, tensor in tensors.items()}
    save_file(tensors, file, metadata={"format": "pt"})
    assert {"logprobs", "steps"} <= failed(audit(run, episodes=0))


def test_a_final_policy_that_was_changed_is_caught(run: Path) -> None:
    file = run / "policy" / "model.safetensors"
    save_file({name: t + (name == "model.norm.weight") * 1e-6 for name, t in load_file(file).items()}, file,
              metadata={"format": "pt"})
    assert failed(audit(run, episodes=0)) == {"policy"}


def test_a_missing_group_a_foreign_group_and_half_a_file_are_caught(run: Path) -> None:
    first, second, third = sorted((run / "episodes").glob("step-00000[012]-group-0001.parquet"))
    first.unlink()
    shutil.copy(second, second.with_name("step-000001-group-0009.parquet"))
    third.write_bytes(third.read_bytes()[:200])
    [files] = [f for f in audit(run, episodes=0) if f.row == "files"]
    assert [problem.split(":")[0] for problem in files.problems] == ["step 0", "step 1", "step 2"]
    assert "group 1 is missing" in files.problems[0] and "never sampled" in files.problems[1]


def test_what_cannot_be_audited_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UserError, match=r"it has no config\.yaml"):
        audit(tmp_path)
    for name in ("start", "checkpoints"):
        shutil.rmtree(run / name)
    with pytest.raises(UserError, match="holds no weights"):
        audit(run)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="no step yet"):
        audit(run)
