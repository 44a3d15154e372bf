"""credit.py against the paper's equations, written out slowly in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from turncredit.trainer.credit import diversity_advantage, grpo_advantages, kl_weight, route_group, token_kl

LOGITS = st.floats(-30, 30, width=32)


def slow_log_softmax(logits):
    top = max(logits)
    total = math.log(sum(math.exp(x - top) for x in logits)) + top
    return [x - total for x in logits]


def slow_kl(teacher, student):
    """KL(teacher || student) = sum_v p_v (log p_v - log q_v)."""
    log_p, log_q = slow_log_softmax(teacher), slow_log_softmax(student)
    return sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q))


def slow_percentile(values, share):
    """Between the two nearest ranks, in proportion."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def slow_weights(kl, active, quantile=0.75, floor=1e-4):
    chosen = [d for d, a in zip(kl, active) if a]
    c = max(slow_percentile(chosen, quantile), floor) if chosen else floor
    return [d / (d + c) if a else 0.0 for d, a in zip(kl, active)]


def distributions(count, size):
    return arrays(np.float64, (count, size), elements=st.floats(0.01, 1)).map(lambda a: a / a.sum(1, keepdims=True))


# token_kl


@given(arrays(np.float32, (2, 3, 7), elements=LOGITS))
def test_token_kl_is_the_forward_kl_of_the_equation(logits):
    got = token_kl(torch.from_numpy(logits[0]), torch.from_numpy(logits[1]))
    expected = [slow_kl(t.tolist(), s.tolist()) for t, s in zip(*logits)]
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, rtol=2e-5, atol=2e-5)


@given(arrays(np.float64, (2, 5), elements=st.floats(-30, 30)))
def test_token_kl_in_float64_keeps_float64(logits):
    got = token_kl(*torch.from_numpy(logits))
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(slow_kl(*logits.tolist()), rel=1e-9, abs=1e-12)


@given(arrays(np.float32, (4, 6), elements=LOGITS), st.floats(-50, 50, width=32))
def test_token_kl_of_a_distribution_with_itself_is_zero_and_never_negative(logits, shift):
    same = torch.from_numpy(logits)
    assert (token_kl(same, same) == 0).all()
    moved = token_kl(same + shift, same)  # logits are free up to a constant
    assert (moved >= 0).all() and (moved < 1e-3).all()


def test_token_kl_of_half_precision_is_computed_in_float32():
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 4, 100, generator=generator).bfloat16()
    got = token_kl(teacher, student)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, token_kl(teacher.double(), student.double()).float(), rtol=1e-5, atol=1e-6)


def test_a_token_that_the_teacher_rules_out_adds_nothing():
    teacher = torch.tensor([0.0, 1.0, -torch.inf])
    everywhere = token_kl(teacher, torch.tensor([0.0, 1.0, -torch.inf]))
    assert float(everywhere) == 0.0
    student = torch.tensor([0.5, 0.2, 3.0])
    log_q = slow_log_softmax(student.tolist())
    log_p = slow_log_softmax([0.0, 1.0])
    expected = sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q))
    assert float(token_kl(teacher, student)) == pytest.approx(expected, rel=1e-5)


def test_a_token_that_only_the_student_rules_out_makes_the_kl_infinite():
    assert float(token_kl(torch.tensor([0.0, 0.0]), torch.tensor([0.0, -torch.inf]))) == math.inf


def test_logits_that_are_not_numbers_have_no_kl():
    finite, broken = torch.tensor([0.0, 1.0]), torch.tensor([0.0, math.nan])
    for teacher, student in ((broken, finite), (finite, broken), (broken, broken)):
        assert math.isnan(float(token_kl(teacher, student)))


@given(arrays(np.float64, (2, 4), elements=st.floats(-3, 3)))
def test_the_gradient_of_token_kl_is_that_of_finite_differences(logits):
    teacher = torch.from_numpy(logits[0])
    student = torch.from_numpy(logits[1]).requires_grad_()
    token_kl(teacher, student).backward()
    h = 1e-6
    for v in range(4):
        step = np.eye(4)[v] * h
        above, below = slow_kl(logits[0], logits[1] + step), slow_kl(logits[0], logits[1] - step)
        assert float(student.grad[v]) == pytest.approx((above - below) / (2 * h), abs=1e-6)


# The paper's two identities of averaging: what a loss that distils towards several teachers would learn.


@given(distributions(3, 5), distributions(1, 3), st.integers(0, 2**32 - 1))
def test_the_optimum_of_the_averaged_forward_kl_is_the_arithmetic_mean_of_the_teachers(teachers, mu, seed):
    p, mu = torch.from_numpy(teachers), torch.from_numpy(mu[0])
    mean = mu @ p
    logits = mean.log().requires_grad_()
    (mu * token_kl(p.log(), logits.expand_as(p))).sum().backward()
    assert logits.grad.abs().max() < 1e-12  # it is stationary there, and nowhere else is lower:
    other = mean.log() + torch.from_numpy(np.random.default_rng(seed).normal(size=5))
    at = lambda q: float((mu * token_kl(p.log(), q.expand_as(p))).sum())  # noqa: E731
    assert at(other) >= at(mean.log())


@given(distributions(3, 5), distributions(1, 3), st.integers(0, 2**32 - 1))
def test_the_optimum_of_the_averaged_reverse_kl_is_the_normalised_geometric_mean(teachers, mu, seed):
    p, mu = torch.from_numpy(teachers), torch.from_numpy(mu[0])
    geometric = (mu @ p.log()).exp()
    logits = (geometric / geometric.sum()).log().requires_grad_()
    (mu * token_kl(logits.expand_as(p), p.log())).sum().backward()
    assert logits.grad.abs().max() < 1e-12
    other = logits.detach() + torch.from_numpy(np.random.default_rng(seed).normal(size=5))
    at = lambda q: float((mu * token_kl(q.expand_as(p), p.log())).sum())  # noqa: E731
    assert at(other) >= at(logits.detach())


@given(distributions(3, 5), distributions(1, 3), distributions(2, 5))
def test_the_teachers_disagreement_is_constant_in_the_student(teachers, mu, students):
    """E_j KL(p_j || q) = E_j KL(p_j || p_bar) + KL(p_bar || q): the first term says nothing to q."""
    p, mu = torch.from_numpy(teachers), torch.from_numpy(mu[0])
    mean = mu @ p
    disagreement = float((mu * token_kl(p.log(), mean.log().expand_as(p))).sum())
    for student in torch.from_numpy(students):
        whole = float((mu * token_kl(p.log(), student.log().expand_as(p))).sum())
        assert whole - float(token_kl(mean.log(), student.log())) == pytest.approx(disagreement, abs=1e-10)


# kl_weight

KL = st.floats(0, 20, width=32)


@given(st.lists(st.tuples(KL, st.booleans()), min_size=1, max_size=40), st.sampled_from([0.0, 0.5, 0.75, 1.0]),
       st.sampled_from([1e-4, 0.5]))
def test_kl_weight_is_d_over_d_plus_c_with_c_the_percentile_of_the_active_tokens(tokens, quantile, floor):
    kl, active = zip(*tokens)
    got = kl_weight(torch.tensor(kl), torch.tensor(active), quantile, floor)
    np.testing.assert_allclose(got.numpy(), slow_weights(kl, active, quantile, floor), rtol=1e-5, atol=1e-7)
    assert ((got >= 0) & (got < 1)).all()


def test_the_papers_percentile_is_the_75th_and_its_floor_1e_4():
    kl = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    everywhere = torch.ones(5, dtype=torch.bool)
    torch.testing.assert_close(kl_weight(kl, everywhere), kl / (kl + 0.4))
    small = torch.tensor([0.0, 1e-6, 1e-5, 1e-4], dtype=torch.float64)
    torch.testing.assert_close(kl_weight(small, torch.ones(4, dtype=torch.bool)), small / (small + 1e-4))


@given(st.lists(KL, min_size=1, max_size=20), st.sampled_from([math.inf, math.nan, 1e30, 0.0]), st.data())
def test_inactive_tokens_enter_no_percentile_whatever_stands_there(active_kl, junk, data):
    places = data.draw(st.lists(st.booleans(), min_size=5, max_size=20))
    expected = kl_weight(torch.tensor(active_kl), torch.ones(len(active_kl), dtype=torch.bool))
    kl, active, values = [], [], iter(active_kl)
    for is_junk in places + [False] * len(active_kl):
        value = junk if is_junk else next(values, None)
        if value is not None:
            kl.append(value)
            active.append(not is_junk)
    got = kl_weight(torch.tensor(kl), torch.tensor(active))
    assert torch.equal(got[torch.tensor(active)], expected)
    assert (got[~torch.tensor(active)] == 0).all()


def test_kl_weight_keeps_any_shape():
    generator = torch.Generator().manual_seed(0)
    kl = torch.rand(3, 4, generator=generator)
    active = torch.rand(3, 4, generator=generator) > 0.4
    flat = kl_weight(kl.flatten(), active.flatten())
    assert torch.equal(kl_weight(kl, active).flatten(), flat)


def test_no_active_token_gives_zero_weights():
    assert torch.equal(kl_weight(torch.tensor([1.0, math.nan]), torch.zeros(2, dtype=torch.bool)), torch.zeros(2))


def test_weights_carry_no_gradient():
    kl = torch.rand(5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert not kl_weight(kl, torch.ones(5, dtype=torch.bool)).requires_grad


def test_the_weight_rises_with_the_kl_and_is_one_half_at_c():
    kl = torch.linspace(0, 4, 5, dtype=torch.float64)
    weights = kl_weight(kl, torch.ones(5, dtype=torch.bool))
    assert (weights.diff() > 0).all()
    assert float(weights[3]) == 0.5  # 3 is the 75th percentile


# grpo_advantages


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_grpo_advantages_are_standardised_rewards(rewards):
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
    expected = [(r - mean) / std for r in rewards] if std > 1e-6 else [0.0] * len(rewards)
    np.testing.assert_allclose(grpo_advantages(rewards), expected, rtol=1e-6, atol=1e-9)


@given(st.floats(0, 1), st.integers(1, 64))
def test_equal_rewards_earn_exactly_nothing(reward, size):
    assert (grpo_advantages([reward] * size) == 0).all()


# route_group


def case(size, correct):
    verified = np.zeros(size, bool)
    verified[:correct] = True
    return verified.astype(float), verified


@pytest.mark.parametrize("size", range(2, 9))
def test_the_route_is_decided_by_the_number_of_correct_responses(size):
    for correct in range(size + 1):
        route = route_group(*case(size, correct), seed=3)
        expected = "solve-none" if correct == 0 else "partial-solve" if 2 <= correct < size else "fallback"
        assert route.kind == expected
        assert (route.references is None) == (expected == "fallback")


def test_a_group_of_two_is_never_partially_solved():
    assert [route_group(*case(2, n), seed=0).kind for n in (0, 1, 2)] == ["solve-none", "fallback", "fallback"]


@given(st.lists(st.booleans(), min_size=1, max_size=10), st.integers(0, 2**63 - 1), st.booleans())
def test_references_are_correct_responses_and_never_the_response_itself(verified, seed, coupled):
    route = route_group([float(v) for v in verified], verified, seed, coupled)
    if route.kind == "partial-solve":
        assert len(route.references) == len(verified)
        assert all(verified[r] and r != i for i, r in enumerate(route.references))
    if route.kind == "solve-none":
        assert len(set(route.references)) == 1 and 0 <= route.references[0] < len(verified)
        assert len(route.references) == len(verified)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=8), st.integers(0, 2**63 - 1))
def test_a_route_carries_grpos_advantages_and_depends_on_nothing_but_its_seed(group, seed):
    rewards, verified = zip(*group)
    once, again = route_group(rewards, verified, seed), route_group(rewards, verified, seed)
    np.testing.assert_array_equal(once.advantages, grpo_advantages(rewards))
    assert (once.kind, once.references) == (again.kind, again.references)


def chi_square(counts):
    expected = sum(counts) / len(counts)
    return sum((c - expected) ** 2 / expected for c in counts)


# 99.9 % points of chi-square with 2, 3 and 4 degrees of freedom.
CRITICAL = {2: 13.82, 3: 16.27, 4: 18.47}


@pytest.mark.parametrize("coupled", [True, False])
def test_references_are_drawn_uniformly_among_the_other_correct_responses(coupled):
    """Coupled and independent draws have the same marginals, each the paper's."""
    verified = np.array([1, 0, 1, 1, 0, 1], bool)
    drawn = np.array([route_group(verified.astype(float), verified, seed, coupled).references for seed in range(3000)])
    for i in range(6):
        allowed = [j for j in np.flatnonzero(verified) if j != i]
        counts = [int((drawn[:, i] == j).sum()) for j in allowed]
        assert sum(counts) == 3000
        assert chi_square(counts) < CRITICAL[len(allowed) - 1]


@given(st.lists(st.booleans(), min_size=3, max_size=10).filter(lambda v: 2 <= sum(v) < len(v)), st.integers(0, 2**63))
def test_a_group_with_coupled_references_has_two_teacher_contexts(verified, seed):
    route = route_group([float(v) for v in verified], verified, seed)
    assert len(set(route.references)) == 2 and min(route.references.count(r) for r in set(route.references)) == 1


def test_two_responses_of_a_group_draw_their_references_independently_where_that_is_asked_for():
    verified = np.array([1, 1, 1, 0, 0], bool)
    drawn = np.array([route_group(verified.astype(float), verified, seed, False).references for seed in range(3000)])
    agree = float((drawn[:, 3] == drawn[:, 4]).mean())
    assert abs(agree - 1 / 3) < 4 * math.sqrt(2 / 9 / 3000)


def test_the_reference_of_an_unsolved_group_is_drawn_uniformly():
    drawn = [route_group([0.0] * 5, [False] * 5, seed).references[0] for seed in range(3000)]
    assert chi_square(np.bincount(drawn, minlength=5).tolist()) < CRITICAL[4]


# diversity_advantage


def slow_diversity(weights, lengths, reference):
    scores = {}
    for i in range(len(weights)):
        if i != reference:
            first = min(lengths[i], lengths[reference])
            scores[i] = sum(float(weights[i][t]) for t in range(first)) / first if first else 0.0
    mean = sum(scores.values()) / len(scores)
    std = math.sqrt(sum((s - mean) ** 2 for s in scores.values()) / len(scores))
    return [(scores[i] - mean) / (std + 1e-6) if i in scores else 0.0 for i in range(len(weights))]


@given(st.lists(st.lists(st.floats(0, 0.999), min_size=1, max_size=12), min_size=2, max_size=6), st.data())
def test_diversity_advantage_is_the_standardised_mean_weight(weights, data):
    reference = data.draw(st.integers(0, len(weights) - 1))
    lengths = [len(w) for w in weights]
    got = diversity_advantage([np.array(w) for w in weights], lengths, reference)
    np.testing.assert_allclose(got, slow_diversity(weights, lengths, reference), rtol=1e-6, atol=1e-6)
    assert got[reference] == 0


@given(st.lists(st.floats(0, 0.999), min_size=4, max_size=4), st.lists(st.floats(0, 0.999), max_size=9))
def test_tokens_past_the_references_length_are_cut_off(first, tail):
    others = [np.array([0.1, 0.5, 0.2, 0.9]), np.array([0.3, 0.3])]
    reference = np.zeros(4)
    short = diversity_advantage([reference, np.array(first), *others], [4, 4, 4, 2], 0)
    long = diversity_advantage([reference, np.array(first + tail), *others], [4, 4 + len(tail), 4, 2], 0)
    np.testing.assert_array_equal(short, long)


def test_equally_diverse_responses_earn_nothing():
    assert (diversity_advantage([np.full(3, 0.4)] * 4, [3] * 4, 2) == 0).all()
    assert (diversity_advantage([np.full(3, 0.4), np.full(5, 0.7)], [3, 5], 1) == 0).all()


@settings(max_examples=20)
@given(st.integers(0, 3))
def test_what_the_reference_itself_weighs_does_not_matter(reference):
    weights = [np.linspace(0.1, 0.2 + 0.1 * i, 5) for i in range(4)]
    changed = [np.full(5, 0.99) if i == reference else w for i, w in enumerate(weights)]
    np.testing.assert_array_equal(diversity_advantage(weights, [5] * 4, reference),
                                  diversity_advantage(changed, [5] * 4, reference))
