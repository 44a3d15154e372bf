"""The quickstart in miniature: a warm start to a low success, then SC-GRPO raises it."""

from __future__ import annotations

import numpy as np
import pytest

from turncredit.config import ModelConfig
from turncredit.trainer.loop import evaluate_policy, train
from turncredit.trainer.policy import Policy


class Rewards(list):
    """A watcher that keeps the mean reward of each step."""

    def warming(self, step, steps, loss, success):
        """Nothing to keep."""

    def training(self, step, steps, metrics):
        self.append(metrics["reward"])


def learn(relay_config, seed, algorithm="sc-grpo", steps=40):
    """Success on the same tasks before and after, the rewards on the way, and the run."""
    config = relay_config(
        seed=seed, algorithm={"name": algorithm}, trainer={"steps": steps, "warmup_steps": 5, "save_every": steps},
        rollout={"groups": 6, "group_size": 8}, evaluation={"envs": [{"id": "turncredit-tests/Relay-v0"}], "k": 2},
        warmstart={"steps": 400, "batch": 16, "demonstrations": 200, "until_success": 0.2, "check_every": 5})
    rewards = Rewards()
    run = train(config, rewards)
    before, after = (evaluate_policy(config, Policy.load(ModelConfig(path=str(run.path / name))))[0].avg
                     for name in ("start", "policy"))
    return before, after, rewards, run


def test_a_policy_that_solves_a_task_now_and_then_learns_with_sc_grpo_to_solve_it(relay_config):
    before, after, rewards, run = learn(relay_config, seed=0)
    assert before < 0.45 and after > 0.65 and after > before + 0.3
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.25
    lines = run.read_metrics()
    assert sum(line.get("route partial-solve", 0) for line in lines) > 100  # most groups had a teacher
    assert all(line["drift_max"] is None or line["drift_max"] < 1e-4 for line in lines)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("algorithm", ["sc-grpo", "grpo"])
@pytest.mark.parametrize("seed", range(1, 6))
def test_it_learns_from_any_seed(seed, algorithm, relay_config):
    before, after, _, _ = learn(relay_config, seed, algorithm)
    assert after > max(0.6, before + 0.25)
