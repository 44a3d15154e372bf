"""Sampling while training: some versions behind, corrected, and the same run again after a kill."""

from __future__ import annotations

import shutil
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from turncredit.episode import Group
from turncredit.errors import UserError
from turncredit.progress import Display
from turncredit.store import RunFolder, read_episodes, write_episodes
from turncredit.trainer import loop
from turncredit.trainer.ahead import CopiedEngine, SamplingAhead
from turncredit.trainer.loop import train
from turncredit.trainer.sampling import Sampled, StepSampler
from turncredit.trainer.weights import agreement, untied_weights

STEPS = 6
STALE = {"trainer": {"steps": STEPS, "lr": 3e-3, "save_every": 2, "old_logprobs": "recomputed", "importance_cap": 3.0}}


@pytest.fixture(scope="module", params=[1, 2])
def finished(request: Any, relay_config: Any) -> tuple[RunFolder, Any]:
    config = relay_config(rollout={"staleness": request.param}, name=f"stale-{request.param}", **STALE)
    with Display(None) as display:
        return train(config, display), config


def test_a_step_is_sampled_by_the_weights_from_before_the_last_update_and_weighed_for_it(finished: Any) -> None:
    run, config = finished
    lag = config.rollout.staleness
    assert {(e.step, e.policy_version) for e in run.read_episodes()} == {(s, max(0, s - lag)) for s in range(STEPS)}
    metrics = run.read_metrics()
    assert [line["groups stale"] for line in metrics] == [0] * STEPS
    assert ["sampler_gap_max" in line for line in metrics] == [step > lag for step in range(STEPS)]
    assert all(line["sampler_gap_max"] < 1e-4 for line in metrics[lag + 1:]), "the copy has the weights that were sent"
    assert abs(metrics[0]["sampler_ratio_mean"] - 1) < 1e-5, "the first step is on policy"
    assert all(line["drift_mean"] < 1e-5 for line in metrics), "ratios are against the trainer's own logprobs"
    assert any(abs(line["sampler_ratio_max"] - 1) > 1e-3 for line in metrics[1:]), "later ones are not, and it is seen"


def as_killed(finished: Any, tmp_path: Any, torn: bool = False) -> tuple[RunFolder, Any]:
    """A run as one leaves it that is killed behind the checkpoint of two steps, or while it samples more groups."""
    whole, config = finished
    shutil.copytree(whole.path, tmp_path / config.name)
    run = RunFolder(tmp_path / config.name)
    shutil.rmtree(run.path / "policy")
    for checkpoint in ("step-000004", "step-000006"):
        shutil.rmtree(run.checkpoints / checkpoint)
    sampled = 2 + config.rollout.staleness  # steps; of the next one two groups alone were there yet, or none
    for file in run.episodes.glob("step-*"):
        if int(file.stem.split("-")[1]) >= sampled + torn or file.stem == f"step-{sampled:06d}-group-0001":
            file.unlink()
    settings = yaml.safe_load((run.path / "config.yaml").read_text()) | {"runs": str(tmp_path)}
    (run.path / "config.yaml").write_text(yaml.safe_dump(settings))
    return run, config.model_copy(update={"runs": tmp_path})


@pytest.mark.parametrize("torn", [False, True])
def test_a_run_that_was_killed_ends_bit_for_bit_the_same(finished: Any, torn: bool, tmp_path: Any) -> None:
    whole, _ = finished
    run, config = as_killed(finished, tmp_path, torn)
    with Display(None) as display:
        train(config, display, resume=True)
    one, other = (load_file(path / "policy" / "model.safetensors") for path in (whole.path, run.path))
    assert all(torch.equal(one[name], other[name]) for name in one)
    mine, theirs = ([e.token_ids.tolist() for e in r.read_episodes()] for r in (run, whole))
    assert mine == theirs


def test_a_checkpoint_is_written_beside_the_groups_that_were_sampled_ahead_of_it(
        relay_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = relay_config(rollout={"staleness": 2}, name="beside", **STALE)
    run, there = RunFolder(config.folder), []
    sample, save = StepSampler.sample, loop.save_checkpoint

    def slowly(*arguments: Any) -> Sampled:
        time.sleep(0.3)
        return sample(*arguments)

    def noted(folder: Any, done: int, *rest: Any) -> None:
        ahead = range(done, min(done + 2, STEPS))
        there.append(all(run.group_file(step, number).exists() for step in ahead for number in range(3)))
        save(folder, done, *rest)

    monkeypatch.setattr(StepSampler, "sample", slowly)
    monkeypatch.setattr(loop, "save_checkpoint", noted)
    with Display(None) as display:
        train(config, display)
    assert there == [True] * 3


def test_groups_that_are_too_old_are_left_out_and_counted(finished: Any) -> None:
    run, config = finished
    lag = config.rollout.staleness
    groups = [Group(read_episodes(run.group_file(3, number))) for number in range(3)]
    groups[1].episodes[2].policy_version = 2 - lag
    ahead = SamplingAhead(lambda step: Sampled(groups, groups, 0), run, 9, lag)
    sampled, stale, _ = ahead.take(3)
    assert (sampled.every, sampled.trained, stale) == (groups, [groups[0], groups[2]], 1)
    ahead = SamplingAhead(lambda step: Sampled(groups, groups, 0), run, 9, lag + 1)
    assert ahead.take(3)[1] == 0


def test_a_run_goes_on_without_a_group_that_is_too_old(finished: Any, tmp_path: Any) -> None:
    run, config = as_killed(finished, tmp_path)
    step = 1 + config.rollout.staleness  # its groups stand on the disk, and are taken from there
    file = run.group_file(step, 1)
    episodes = read_episodes(file)
    episodes[0].policy_version = -1
    write_episodes(file, episodes)
    with Display(None) as display:
        train(config, display, resume=True)
    found = {line["step"]: (line["groups stale"], line["groups trained"]) for line in run.read_metrics()}
    assert found[step] == (1, 2)
    assert all(found[other] == (0, 3) for other in range(STEPS) if other != step)


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
    with pytest.raises(UserError, match=r"trainer.sharding is 'full' with rollout.staleness 1"):
        relay_config(rollout={"staleness": 1}, trainer=STALE["trainer"] | {"sharding": "full"})
