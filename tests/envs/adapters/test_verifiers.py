"""A taskset of ours under the real package; skipped where that is not installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import turncredit
from turncredit.envs.check import check
from turncredit.errors import MissingExtra, UserError

ID = "turncredit/Verifiers-v0"
SUMS = {"taskset": "verifiers_sums", "ood_config": {"low": 500}}


@pytest.fixture(autouse=True)
def tasksets(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("verifiers.v1", reason="the extra verifiers is not installed")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def make(**arguments: Any) -> Any:
    return turncredit.make(ID, **(SUMS | arguments)).unwrapped


def test_a_message_is_scored_by_the_task_s_own_weighted_rewards() -> None:
    env = make()
    prompt, info = env.reset(seed=3)
    assert info["instructions"] == "Write the number alone."
    n = int(prompt.split()[2])
    for answer, reward in ((str(3 * n), 1.0), ("7", 0.5), ("I don't know", 0.0), ("", 0.0)):
        env.reset(seed=3)
        assert env.step(answer)[1:3] == (reward, True)


def test_splits_share_no_task_and_ood_has_settings_of_its_own() -> None:
    prompts = {split: {make(split=split).task_at(i).prompt for i in range(make(split=split).num_tasks)}
               for split in ("train", "test", "ood")}
    assert not prompts["train"] & prompts["test"] and not prompts["ood"] & (prompts["train"] | prompts["test"])
    assert len(prompts["train"] | prompts["test"]) == len(prompts["ood"]) == 60


def test_it_passes_the_contract() -> None:
    findings = check(ID, dict(SUMS), quick=True)
    failed = {f.row for f in findings if f.verdict == "fail"}
    assert "trivial: constant" in failed  # a reward for any number is the taskset's, and the check says so
    assert all(row.startswith("trivial: ") for row in failed), failed


@pytest.mark.parametrize("wrong, said", [
    ({"taskset": "verifiers_sum"}, "not found"), ({"config": {"lo": 3}}, "lo"), ({"most": 0}, "at least 1"),
    ({"config": {"boxed": True}}, "needs a container"), ({"ood_config": None, "split": "ood"}, "give ood_config")])
def test_what_cannot_be_played_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(**wrong)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verifiers.v1", None)
    with pytest.raises(MissingExtra, match=r"turncredit\[verifiers\]"):
        make()
