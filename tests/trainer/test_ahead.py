"""Sampling while training: one version behind, corrected, and the same run again after a kill."""

from __future__ import annotations

import shutil
import threading
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from turncredit.errors import UserError
from turncredit.progress import Display
from turncredit.store import RunFolder
from turncredit.trainer.ahead import CopiedEngine, SamplingAhead
from turncredit.trainer.loop import train
from turncredit.trainer.sampling import Sampled
from turncredit.trainer.weights import agreement, untied_weights

STALE = {"trainer": {"steps": 4, "lr": 3e-3, "save_every": 2, "old_logprobs": "recomputed", "importance_cap": 3.0}}


@pytest.fixture(scope="module")
def finished(relay_config: Any) -> tuple[RunFolder, Any]:
    config = relay_config(rollout={"staleness": 1}, **STALE)
    with Display(None) as display:
        return train(config, display), config


def test_a_step_is_sampled_by_the_weights_from_before_the_last_update_and_weighed_for_it(finished: Any) -> None:
    run, _ = finished
    assert {(e.step, e.policy_version) for e in run.read_episodes()} == {(0, 0), (1, 0), (2, 1), (3, 2)}
    metrics = run.read_metrics()
    assert [line["groups stale"] for line in metrics] == [0] * 4
    assert all(line["sampler_gap_max"] < 1e-4 for line in metrics), "the copy has the weights that were sent"
    assert abs(metrics[0]["sampler_ratio_mean"] - 1) < 1e-5, "the first step is on policy"
    assert all(line["drift_mean"] < 1e-5 for line in metrics), "ratios are against the trainer's own logprobs"
    assert any(abs(line["sampler_ratio_max"] - 1) > 1e-3 for line in metrics[1:]), "later ones are not, and it is seen"


@pytest.mark.parametrize("killed_in", [2, 3])
def test_a_run_that_was_killed_ends_bit_for_bit_the_same(finished: Any, killed_in: int, tmp_path: Any) -> None:
    whole, config = finished
    shutil.copytree(whole.path, tmp_path / config.name)
    run = RunFolder(tmp_path / config.name)
    shutil.rmtree(run.path / "policy")
    shutil.rmtree(run.checkpoints / "step-000004")
    for file in run.episodes.glob("step-*"):  # of step 3 two groups alone were there yet, or none
        if int(file.stem.split("-")[1]) > killed_in or (killed_in == 3 and file.stem == "step-000003-group-0001"):
            file.unlink()
    settings = yaml.safe_load((run.path / "config.yaml").read_text()) | {"runs": str(tmp_path)}
    (run.path / "config.yaml").write_text(yaml.safe_dump(settings))
    with Display(None) as display:
        train(config.model_copy(update={"runs": tmp_path}), display, resume=True)
    one, other = (load_file(path / "policy" / "model.safetensors") for path in (whole.path, run.path))
    assert all(torch.equal(one[name], other[name]) for name in one)
    mine, theirs = ([e.token_ids.tolist() for e in r.read_episodes()] for r in (run, whole))
    assert mine == theirs


def test_groups_that_are_too_old_are_left_out_and_counted(finished: Any) -> None:
    run, _ = finished
    from turncredit.episode import Group
    from turncredit.store import read_episodes

    groups = [Group(read_episodes(run.group_file(3, number))) for number in range(3)]
    groups[1].episodes[2].policy_version = 1
    ahead = SamplingAhead(lambda step: Sampled(groups, groups, 0), run, 9)
    sampled, stale = ahead.take(3)
    assert (sampled.every, sampled.trained, stale) == (groups, [groups[0], groups[2]], 1)


def test_the_next_step_is_sampled_while_this_one_is_trained_on(finished: Any) -> None:
    run, _ = finished
    go, began = threading.Event(), threading.Event()

    def sample(step: int) -> Sampled:
        if step == 1:
            began.set()
            assert go.wait(20)
        return Sampled([], [], 0)

    ahead = SamplingAhead(sample, run, 2)
    ahead.take(0)
    ahead.begin(1)
    assert began.wait(20), "and here we are, not waiting"
    go.set()
    ahead.take(1)
    ahead.begin(2)
    assert not ahead._under_way, "nothing is sampled behind the last step"


def test_what_fails_in_sampling_is_raised_where_it_is_wanted(finished: Any) -> None:
    def sample(step: int) -> Sampled:
        raise UserError("no environment")

    with pytest.raises(UserError, match="no environment"):
        SamplingAhead(sample, finished[0], 2).take(0)


def test_the_copy_samples_with_old_weights_until_new_ones_are_loaded(policy_of: Any) -> None:
    policy = policy_of()
    engine = CopiedEngine(policy, 8)
    assert agreement(engine, policy, 0).max < 1e-4
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.1)
    assert agreement(engine, policy, 0).mean > 1e-2
    engine.load(untied_weights(policy).items())
    assert agreement(engine, policy, 0).max < 1e-4
    assert np.isfinite(agreement(engine, policy, 1).mean)


def test_settings_that_do_not_go_together_are_refused(relay_config: Any) -> None:
    with pytest.raises(UserError, match=r"set trainer.old_logprobs to 'recomputed'"):
        relay_config(rollout={"staleness": 1})
    with pytest.raises(UserError, match=r"rollout.refills 2: set one of them to 0"):
        relay_config(rollout={"staleness": 1, "refills": 2}, **STALE)
