"""A teacher that follows the policy: its weights, what it teaches, and exact resume with it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from turncredit.config import TeacherConfig, TrainerConfig
from turncredit.errors import UserError
from turncredit.trainer.algorithms import make_algorithm
from turncredit.trainer.learner import Learner
from turncredit.trainer.policy import Policy


def flat(policy: Policy) -> Any:
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])


def learner_of(policy: Policy, algorithm: Any, **others: Any) -> Learner:
    return Learner(policy, algorithm, TrainerConfig(lr=1e-2, epochs=2), TeacherConfig(), 3, **others)


@pytest.fixture
def group(policy_of: Any, sample_groups: Any, judged_as: Any) -> Any:
    return judged_as(sample_groups(policy_of())[0], "++--")


def test_the_teachers_weights_are_the_moving_average_of_the_policys(policy_of: Any, group: Any) -> None:
    policy = policy_of(dtype=torch.float64)
    averaged = policy.copied()
    learner = learner_of(policy, make_algorithm("sdpo", follow=0.3), averaged=averaged)
    expected = flat(policy)
    for step in range(3):
        assert learner.update(learner.credit([group], step), step)["updates"] == 2
        expected = 0.7 * expected + 0.3 * flat(policy)
        assert torch.allclose(flat(averaged), expected, rtol=1e-12, atol=1e-15)
    assert (expected - flat(policy)).norm() > 1e-3 * expected.norm()


def test_it_is_the_average_that_teaches(policy_of: Any, group: Any) -> None:
    """The gradient is that of a fixed teacher with the same weights, and not that of the current policy."""
    policy = policy_of(dtype=torch.float64)
    averaged = policy.copied()
    learner = learner_of(policy, make_algorithm("sdpo", follow=0.3), averaged=averaged)
    learner.update(learner.credit([group], 0), 0)
    gradients = []
    for algorithm, others in ((make_algorithm("sdpo", follow=0.3), {"averaged": averaged}),
                              (make_algorithm("opsd", divergence="reverse_kl"), {"start": averaged}),
                              (make_algorithm("sdpo"), {})):
        copied = Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.config)
        one = learner_of(copied, algorithm, **others)
        seen: list[Any] = []
        one.optimizer.register_step_pre_hook(lambda *_, seen=seen, model=copied.model: seen.append(
            torch.cat([p.grad.flatten() for p in model.parameters()])))
        with torch.no_grad():
            before = flat(averaged).clone()
        one.update(one.credit([group], 1), 1)
        gradients.append(seen[0])
        if "averaged" in others:  # it has followed; the next one needs what it was
            torch.nn.utils.vector_to_parameters(before, averaged.model.parameters())
    mine, fixed, current = gradients
    assert (mine - fixed).norm() <= 1e-9 * mine.norm()
    assert (mine - current).norm() > 1e-2 * mine.norm()


def test_it_gets_no_gradient_and_is_saved_with_the_optimiser(policy_of: Any, group: Any) -> None:
    policy = policy_of()
    averaged = policy.copied()
    learner = learner_of(policy, make_algorithm("sdpo", follow=0.3), averaged=averaged)
    learner.update(learner.credit([group], 0), 0)
    assert all(p.grad is None and not p.requires_grad for p in averaged.model.parameters())
    saved = copy.deepcopy(learner.state.state_dict())
    other = policy_of()
    again = learner_of(other, make_algorithm("sdpo", follow=0.3), averaged=other.copied())
    again.state.load_state_dict(saved)
    assert again.averaged is not None and torch.equal(flat(again.averaged), flat(averaged))
    assert torch.equal(again.optimizer.state_dict()["state"][0]["exp_avg"], saved["state"]["state"][0]["exp_avg"])


def test_a_learner_without_the_average_and_an_adapter_beside_it_are_refused(policy_of: Any, relay_config: Any) -> None:
    with pytest.raises(ValueError, match="pass `averaged`"):
        learner_of(policy_of(), make_algorithm("sdpo", follow=0.3))
    with pytest.raises(UserError, match=r"averaged teacher and model.lora: an adapter has no second copy"):
        relay_config(algorithm={"name": "sdpo", "follow": 0.3}, model={"lora": {"rank": 2}})
