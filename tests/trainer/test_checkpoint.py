"""Checkpoints: only whole ones are gone on from, and only so many are kept."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from turncredit.trainer.checkpoint import newest_checkpoint, restore, save_checkpoint


@pytest.fixture
def saved(policy_of, tmp_path):
    """Three checkpoints of a policy whose optimiser has taken a step."""
    policy = policy_of()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-3)
    for parameter in policy.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for step in (2, 4, 6):
        save_checkpoint(tmp_path, step, policy, optimizer, {"seed": 1}, keep=5)
    return tmp_path, policy, optimizer


def test_the_newest_is_found(saved):
    folder, _, _ = saved
    assert newest_checkpoint(folder).name == "step-000006"
    assert newest_checkpoint(folder / "nothing-here") is None


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "state.json", "tokenizer.json", "sizes.json"])
@pytest.mark.parametrize("damage", ["missing", "half"])
def test_one_that_is_not_whole_is_passed_over(saved, file, damage):
    folder, _, _ = saved
    damaged = folder / "step-000006" / file
    if damage == "missing":
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:damaged.stat().st_size // 2])
    assert newest_checkpoint(folder).name == "step-000004"


def test_where_none_is_whole_there_is_none(saved):
    folder, _, _ = saved
    for path in folder.glob("step-*"):
        (path / "model.safetensors").write_bytes(b"")
    assert newest_checkpoint(folder) is None


def test_what_is_being_written_is_no_checkpoint(saved):
    folder, _, _ = saved
    shutil.copytree(folder / "step-000006", folder / ".writing-step-000008")
    assert newest_checkpoint(folder).name == "step-000006"


def test_a_write_that_breaks_off_leaves_the_checkpoints_as_they_were(saved, monkeypatch):
    folder, policy, optimizer = saved

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(folder, 8, policy, optimizer, {}, keep=1)
    assert [p.name for p in sorted(folder.glob("step-*"))] == ["step-000002", "step-000004", "step-000006"]
    assert newest_checkpoint(folder).name == "step-000006"


def test_all_but_the_newest_few_are_dropped_once_a_newer_one_is_whole(saved):
    folder, policy, optimizer = saved
    save_checkpoint(folder, 8, policy, optimizer, {}, keep=2)
    assert [p.name for p in sorted(folder.iterdir())] == ["step-000006", "step-000008"]


@pytest.fixture
def scored(saved):
    """scored(step, score, **kept): writes one more checkpoint; returns the steps of those that are there then."""
    folder, policy, optimizer = saved

    def save(step, score, keep=1, keep_best=2):
        save_checkpoint(folder, step, policy, optimizer, {"score": score}, keep, keep_best)
        return [int(p.name[-6:]) for p in sorted(folder.iterdir())]

    return save


def test_the_best_few_stay_beside_the_newest_and_of_equal_ones_the_earlier(scored):
    assert scored(8, 0.3) == [8]  # those before it were not evaluated
    assert scored(10, 0.5) == [8, 10]
    assert scored(12, None) == [8, 10, 12]
    assert scored(14, 0.5) == [10, 14]
    assert scored(16, 0.5) == [10, 14, 16]
    assert scored(18, 0.1, keep=2) == [10, 14, 16, 18]
    assert scored(20, 0.9) == [10, 20]
    assert scored(22, 1.0, keep_best=0) == [22]


def test_one_that_is_damaged_takes_no_place_among_the_best(saved, scored):
    scored(8, 0.9)
    (saved[0] / "step-000008" / "optimizer.pt").write_bytes(b"")
    scored(10, 0.2)
    assert scored(12, 0.1) == [10, 12]


def test_a_run_killed_between_a_checkpoint_and_the_dropping_of_others_has_lost_none(saved, scored, monkeypatch):
    scored(8, 0.9)
    scored(10, 0.1)

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            scored(12, 0.5)
    assert [p.name for p in sorted(saved[0].iterdir())] == ["step-000008", "step-000010", "step-000012"]
    assert newest_checkpoint(saved[0]).name == "step-000012"
    assert scored(12, 0.5) == [8, 12]  # done again, as a resumed run does it


def test_the_optimiser_torchs_random_state_and_the_step_come_back_as_they_were(saved, policy_of):
    folder, policy, optimizer = saved
    torch.manual_seed(7)
    path = save_checkpoint(folder, 8, policy, optimizer, {"seed": 1}, keep=1)
    drawn = torch.rand(3)
    fresh = torch.optim.AdamW(policy_of().model.parameters(), lr=1e-3)
    assert restore(path, fresh) == {"seed": 1, "steps_done": 8}
    assert torch.equal(torch.rand(3), drawn)
    one, other = optimizer.state_dict(), fresh.state_dict()
    assert one["param_groups"] == other["param_groups"] and one["state"].keys() == other["state"].keys()
    assert all(torch.equal(one["state"][i][name], other["state"][i][name])
               for i in one["state"] for name in ("step", "exp_avg", "exp_avg_sq"))
    assert json.loads((path / "state.json").read_text())["steps_done"] == 8
