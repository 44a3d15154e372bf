"""What bounds the weight of tokens that another distribution sampled, and updates in several steps."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from turncredit.config import TeacherConfig, TrainerConfig
from turncredit.episode import Group, Segment
from turncredit.trainer.algorithms import make_algorithm
from turncredit.trainer.credited import Credit
from turncredit.trainer.learner import Learner
from turncredit.trainer.offpolicy import importance

TRAINER = torch.tensor([-1.0, -2.0, -0.5, -3.0, -1.0])
SAMPLER = torch.tensor([-1.0, -3.0, -1.5, -1.0, -1.2])  # ratios 1, e, e, e^-2, e^0.2


def test_a_ratio_is_the_trainers_probability_over_the_samplers_and_is_returned_unbounded():
    weights, ratios = importance(TRAINER, SAMPLER, [2, 3], cap=2.0)
    assert torch.allclose(ratios, torch.tensor([0.0, 1.0, 1.0, -2.0, 0.2]).exp())
    assert torch.allclose(weights, ratios.clamp(max=2.0))
    assert (ratios > 2).sum() == 2


def test_masked_tokens_beyond_the_cap_count_for_nothing_on_either_side():
    weights, ratios = importance(TRAINER, SAMPLER, [2, 3], cap=2.0, kind="mask")
    assert weights.tolist() == [1.0, 0.0, 0.0, 0.0, pytest.approx(float(ratios[4]))]


def test_the_ratio_of_a_sequence_is_the_product_over_its_own_tokens():
    _, tokens = importance(TRAINER, SAMPLER, [2, 3], cap=9.0)
    weights, sequences = importance(TRAINER, SAMPLER, [2, 3], cap=9.0, level="sequence")
    products = [float(tokens[:2].prod())] * 2 + [float(tokens[2:].prod())] * 3
    assert sequences.tolist() == pytest.approx(products) and weights.tolist() == pytest.approx(products)


def test_importance_carries_no_gradient():
    trainer = TRAINER.clone().requires_grad_()
    assert not any(value.requires_grad for value in importance(trainer, SAMPLER, [2, 3], cap=2.0))


# In an update.


def learner_of(policy, algorithm="grpo", **trainer):
    return Learner(policy, make_algorithm(algorithm), TrainerConfig(**{"lr": 1e-3, "clip_norm": 1e9, **trainer}),
                   TeacherConfig(), 0)


def flat(policy):
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])


@pytest.fixture
def credited(policy_of, sample_groups, judged_as):
    """credited(sampled_by=…): a policy in float64 and a learner's credit for six judged episodes of it; logprobs may
    be those of an engine that differs."""

    def make(noise=0.0, algorithm="grpo", **trainer):
        policy = policy_of()
        group = judged_as(sample_groups(policy, 1, size=6)[0], "++--+-")
        rng = np.random.default_rng(0)
        for sample, episode in enumerate(group.episodes):
            episode.sample = sample
            episode.segments = [Segment.sampled(s.token_ids, s.logprobs + noise * rng.normal(size=len(s.token_ids)))
                                if s.generated else s for s in episode.segments]
        policy = policy_of(dtype=torch.float64)
        learner = learner_of(policy, algorithm, **trainer)
        return learner, learner.credit([Group(group.episodes)], 0)

    return make


def gradient_given(learner, credit):
    """The gradient that the optimiser was given first."""
    seen = []
    parameters = list(learner.policy.model.parameters())
    hook = learner.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in parameters])))
    update = learner.update(credit, 0)
    hook.remove()
    return seen[0], update


def logprobs_by_hand(policy, episode):
    ids = torch.tensor(episode.token_ids.tolist())
    at = torch.tensor(np.flatnonzero(episode.generated))
    return torch.log_softmax(policy.model(ids[None]).logits[0, at - 1], -1)[torch.arange(len(at)), ids[at]]


@pytest.mark.parametrize("kind, level", [("truncate", "token"), ("mask", "token"), ("truncate", "sequence")])
def test_recomputed_logprobs_weigh_each_tokens_gradient_by_its_bounded_ratio_to_the_sampler(credited, kind, level):
    settings = {"old_logprobs": "recomputed", "importance": kind, "importance_level": level, "importance_cap": 1.2}
    learner, credit = credited(noise=0.4, **settings)
    total = torch.zeros((), dtype=torch.float64)
    raw = []
    for one in credit.episodes:
        logprobs = logprobs_by_hand(learner.policy, one.episode)
        gap = logprobs.detach() - torch.from_numpy(one.episode.logprobs)
        ratio = (gap.sum().expand(len(gap)) if level == "sequence" else gap).exp()
        weight = ratio.clamp(max=1.2) if kind == "truncate" else ratio * ((ratio <= 1.2) & (ratio >= 1 / 1.2))
        # pi_theta / pi_old is 1 here, so the gradient is that of A w log pi.
        total = total + (one.advantage * weight * logprobs).mean()
        raw.append(ratio)
    wanted = torch.autograd.grad(-total / 6, list(learner.policy.model.parameters()))
    gradient, update = gradient_given(learner, credit)
    wanted = torch.cat([g.flatten() for g in wanted])
    assert (gradient - wanted).norm() <= 1e-6 * wanted.norm()
    assert update["sampler_ratio_max"] == pytest.approx(float(torch.cat(raw).max()), rel=1e-4)
    assert update["importance_max"] <= 1.2 + 1e-6 < update["sampler_ratio_max"]
    assert update["ratio_max"] == pytest.approx(1.0)


def test_where_the_sampler_is_the_trainer_both_kinds_of_old_logprobs_give_the_same_gradient(credited):
    one, update = gradient_given(*credited())
    other, recomputed = gradient_given(*credited(old_logprobs="recomputed"))
    assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)
    assert recomputed["importance_mean"] == pytest.approx(1.0, abs=1e-4)
    assert update["drift_max"] < 1e-4 and "importance_mean" not in update


@pytest.mark.parametrize("algorithm", ["grpo", "sc-grpo"])
def test_mini_batches_and_epochs_are_that_many_updates_each_with_the_ratio_to_the_sampler(credited, algorithm):
    together, credit = credited(algorithm=algorithm, mini_batches=2, epochs=3)
    singly = learner_of(type(together.policy)(copy.deepcopy(together.policy.model), together.policy.tokenizer,
                                              together.policy.config), algorithm)
    parts = []
    original = together._gradient
    together._gradient = lambda episodes, *rest: parts.append(list(episodes)) or original(episodes, *rest)
    update = together.update(credit, 4)
    assert update["updates"] == 6 and [len(part) for part in parts] == [3] * 6
    for epoch in range(3):
        seen = sorted(one.key for part in parts[2 * epoch:2 * epoch + 2] for one in part)
        assert seen == sorted(one.key for one in credit.episodes)
    assert len({tuple(one.key for one in part) for part in parts}) > 2, "each pass is drawn anew"
    for part in parts:
        singly.update(Credit(episodes=part), 4)
    assert torch.equal(flat(together.policy), flat(singly.policy))


def test_ratios_move_away_from_1_from_the_second_step_on_and_are_reported_before_clipping(credited):
    learner, credit = credited(epochs=4, lr=1e-2)
    update = learner.update(credit, 0)
    assert update["ratio_max"] > 1.2 and update["clipped_mean"] > 0


def test_two_episodes_of_the_same_id_in_one_update_are_refused(credited):
    learner, credit = credited()
    credit.episodes[1].episode.sample = 0
    with pytest.raises(ValueError, match="the same id"):
        learner.update(credit, 0)
