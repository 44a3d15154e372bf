"""policy_loss against its equation, written out slowly in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from turncredit.trainer.loss import policy_loss


def slow_loss(logprobs, old, advantages, mask, weights=None, low=0.2, high=0.2, normalize="sequence"):
    """-J, token by token. `advantages` is [episodes] or [episodes, tokens]."""
    by_episode, tokens = [], []
    for i, row in enumerate(mask):
        terms = []
        for t, is_generated in enumerate(row):
            if not is_generated:
                continue
            ratio = math.exp(logprobs[i][t] - old[i][t])
            advantage = advantages[i] if np.ndim(advantages[i]) == 0 else advantages[i][t]
            clipped = min(max(ratio, 1 - low), 1 + high)
            f = 1.0 if weights is None else weights[i][t]
            terms.append(f * min(ratio * advantage, clipped * advantage))
        by_episode.append(sum(terms) / len(terms) if terms else 0.0)
        tokens += terms
    if normalize == "sequence":
        return -sum(by_episode) / len(by_episode)
    return -sum(tokens) / max(len(tokens), 1)


@st.composite
def batches(draw):
    """A batch as keyword arguments; some with an advantage a token, some without weights."""
    episodes, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    old = rng.normal(-2, 1, (episodes, tokens))
    per_token, weighted = draw(st.booleans()), draw(st.booleans())
    return {
        "logprobs": torch.from_numpy(old + rng.normal(0, 0.4, (episodes, tokens))),
        "old_logprobs": torch.from_numpy(old),
        "advantages": torch.from_numpy(rng.normal(size=(episodes, tokens) if per_token else episodes)),
        "mask": torch.from_numpy(rng.random((episodes, tokens)) < 0.7),
        "weights": torch.from_numpy(rng.random((episodes, tokens))) if weighted else None,
        "clip_low": draw(st.sampled_from([0.2, 0.1])), "clip_high": draw(st.sampled_from([0.2, 0.28])),
        "normalize": draw(st.sampled_from(["sequence", "token"])),
    }


def slow(batch):
    lists = {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    return slow_loss(lists["logprobs"], lists["old_logprobs"], lists["advantages"], lists["mask"], lists["weights"],
                     lists["clip_low"], lists["clip_high"], lists["normalize"])


@given(batches())
def test_the_loss_is_minus_the_objective_of_the_equation(batch):
    loss, _ = policy_loss(**batch)
    assert float(loss) == pytest.approx(slow(batch), rel=1e-9, abs=1e-12)


@given(batches())
def test_the_gradient_of_the_loss_is_that_of_finite_differences(batch):
    ratio = (batch["logprobs"] - batch["old_logprobs"]).exp()
    edges = torch.stack([ratio - 1 + batch["clip_low"], ratio - 1 - batch["clip_high"]])
    assume(edges.abs().min() > 1e-3)  # at the clip's edges there is no derivative
    logprobs = batch["logprobs"].clone().requires_grad_()
    policy_loss(**{**batch, "logprobs": logprobs})[0].backward()
    h = 1e-6
    for i, t in np.ndindex(*logprobs.shape):
        moved = torch.zeros_like(batch["logprobs"])
        moved[i, t] = h
        above = slow({**batch, "logprobs": batch["logprobs"] + moved})
        below = slow({**batch, "logprobs": batch["logprobs"] - moved})
        assert float(logprobs.grad[i, t]) == pytest.approx((above - below) / (2 * h), abs=1e-7)


@given(batches(), st.sampled_from([math.inf, -math.inf, math.nan, 1e30]))
def test_environment_tokens_get_no_gradient_and_enter_no_sum_or_count(batch, junk):
    mask = batch["mask"]
    clean = batch["logprobs"].clone().requires_grad_()
    expected, _ = policy_loss(**{**batch, "logprobs": clean})
    expected.backward()
    spoilt = {name: torch.where(mask, value, junk) for name, value in batch.items()
              if name != "mask" and isinstance(value, torch.Tensor) and value.ndim == 2}
    spoilt["logprobs"] = spoilt["logprobs"].requires_grad_()
    loss, statistics = policy_loss(**{**batch, **spoilt})
    loss.backward()
    assert torch.equal(loss, expected)
    assert torch.equal(spoilt["logprobs"].grad, clean.grad)
    assert (clean.grad[~mask] == 0).all()
    assert (statistics["ratio"][~mask] == 0).all() and not statistics["clipped"][~mask].any()


@given(batches(), st.integers(1, 5))
def test_padding_changes_nothing(batch, width):
    def pad(value):
        if not isinstance(value, torch.Tensor) or value.ndim < 2:
            return value
        return torch.nn.functional.pad(value, (0, width))

    loss, _ = policy_loss(**batch)
    padded, _ = policy_loss(**{name: pad(value) for name, value in batch.items()})
    assert float(padded) == pytest.approx(float(loss), rel=1e-12)


def test_weights_carry_no_gradient():
    shape = (2, 3)
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logprobs = torch.zeros(shape, requires_grad=True)
    loss, _ = policy_loss(logprobs, torch.zeros(shape), torch.tensor([1.0, -1.0]), torch.ones(shape, dtype=torch.bool),
                          weights)
    loss.backward()
    assert weights.grad is None and logprobs.grad is not None


def test_weights_of_mean_one_keep_the_loss_and_move_the_gradient():
    """With a ratio of 1 the logged loss cannot tell SC-GRPO from GRPO: gradients can."""
    shape = (1, 4)
    mask, advantage = torch.ones(shape, dtype=torch.bool), torch.tensor([0.7])
    weights = torch.tensor([[0.5, 1.5, 0.2, 1.8]])
    plain, weighted = torch.zeros(shape, requires_grad=True), torch.zeros(shape, requires_grad=True)
    losses = [policy_loss(plain, torch.zeros(shape), advantage, mask)[0],
              policy_loss(weighted, torch.zeros(shape), advantage, mask, weights)[0]]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item())
    torch.testing.assert_close(weighted.grad, weights * plain.grad)
    assert (weighted.grad - plain.grad).abs().max() > 0.05


@pytest.mark.parametrize(("advantage", "log_ratio", "is_clipped"), [
    (1.0, 0.5, True), (1.0, -0.5, False), (-1.0, 0.5, False), (-1.0, -0.5, True), (1.0, 0.05, False)])
def test_a_clipped_token_gets_no_gradient_and_any_other_its_ratio_times_the_advantage(advantage, log_ratio, is_clipped):
    logprobs = torch.full((1, 1), log_ratio, dtype=torch.float64, requires_grad=True)
    loss, statistics = policy_loss(logprobs, torch.zeros(1, 1, dtype=torch.float64), torch.tensor([advantage]),
                                   torch.ones(1, 1, dtype=torch.bool))
    loss.backward()
    assert bool(statistics["clipped"].item()) == is_clipped
    expected = 0.0 if is_clipped else -advantage * math.exp(log_ratio)
    assert float(logprobs.grad) == pytest.approx(expected)
    assert float(statistics["ratio"]) == pytest.approx(math.exp(log_ratio))  # as it was, before it was clipped


def test_the_upper_clip_may_be_wider_than_the_lower():
    logprobs = torch.tensor([[math.log(1.25)]], requires_grad=True)
    loss, statistics = policy_loss(logprobs, torch.zeros(1, 1), torch.ones(1), torch.ones(1, 1, dtype=torch.bool),
                                   clip_low=0.2, clip_high=0.28)
    assert loss.item() == pytest.approx(-1.25) and not statistics["clipped"].any()


@given(batches(), st.data())
def test_parts_of_a_batch_with_its_denominator_add_up_to_the_whole(batch, data):
    whole, _ = policy_loss(**batch)
    episodes = len(batch["mask"])
    cut = data.draw(st.integers(0, episodes))
    count = float(episodes if batch["normalize"] == "sequence" else batch["mask"].sum())
    total = 0.0
    for rows in (slice(0, cut), slice(cut, None)):
        part = {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        if len(part["mask"]):
            total += float(policy_loss(**part, denominator=count)[0])
    assert total == pytest.approx(float(whole), rel=1e-9, abs=1e-12)


def test_sequence_normalisation_weighs_episodes_alike_and_token_normalisation_tokens():
    mask = torch.tensor([[True, True, True, True], [True, False, False, False]])
    zeros, advantages = torch.zeros(2, 4), torch.tensor([1.0, -1.0])
    assert float(policy_loss(zeros, zeros, advantages, mask)[0]) == 0.0
    assert float(policy_loss(zeros, zeros, advantages, mask, normalize="token")[0]) == pytest.approx(-3 / 5)


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="normalize is 'tokens'"):
        policy_loss(*torch.zeros(2, 1, 1), torch.zeros(1), torch.ones(1, 1, dtype=torch.bool), normalize="tokens")
