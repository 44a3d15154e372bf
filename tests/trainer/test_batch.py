"""From segments to tensors: what is scored comes from segments, and neighbours change nothing (invariant 2)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from turncredit.episode import Segment
from turncredit.trainer.attention import Block
from turncredit.trainer.batch import make_batch, pack_by_tokens, to_rows
from turncredit.trainer.head import score_tokens
from turncredit.trainer.loss import policy_loss


def generated(ids):
    return Segment.sampled(ids, np.zeros(len(ids)))


IDS = st.lists(st.integers(0, 299), max_size=5)  # empty segments too
SEQUENCE = st.tuples(st.lists(st.integers(0, 299), min_size=1, max_size=5),
                     st.lists(st.tuples(IDS, st.booleans()), max_size=6)).map(
    lambda parts: [Segment.text(parts[0], "prompt"),
                   *(generated(ids) if own else Segment.text(ids, "user") for ids, own in parts[1])])


def read_at(batch, place):
    """What the token at that place of the row has before it, itself included."""
    block = next(b for b in batch.blocks if b.start <= place < b.stop)
    ids = batch.input_ids.tolist()
    return ids[block.prefix_start:block.prefix_stop] + ids[block.start:place + 1]


PROMPTS = st.lists(st.integers(0, 3), min_size=1, max_size=2)  # so few that some are shared


@given(st.lists(SEQUENCE, min_size=1, max_size=4), st.lists(PROMPTS, min_size=4, max_size=4))
def test_exactly_the_generated_tokens_are_scored_each_behind_what_its_own_sequence_has_before_it(sequences, prompts):
    sequences = [[Segment.text(prompt, "prompt"), *segments[1:]] for prompt, segments in zip(prompts, sequences)]
    batch = make_batch(sequences)
    expected = []
    for row, segments in enumerate(sequences):
        tokens = [int(t) for s in segments for t in s.token_ids]
        flags = [s.generated for s in segments for _ in s.token_ids]
        expected += [(row, tokens[:at], tokens[at]) for at in range(len(tokens)) if flags[at]]
    got = [(row, read_at(batch, place), target) for row, place, target in
           zip(batch.rows.tolist(), batch.scored.tolist(), batch.targets.tolist())]
    assert got == expected
    for place, position in enumerate(batch.positions.tolist()):
        assert position == len(read_at(batch, place)) - 1
    distinct = {tuple(segments[0].token_ids.tolist()) for segments in sequences}
    assert len(batch.input_ids) == sum(map(len, distinct)) + sum(len(s.token_ids) for q in sequences for s in q[1:])


def test_where_sequences_end_does_not_depend_on_token_ids():
    batch = make_batch([[Segment.text([0, 0, 0], "prompt"), generated([0, 0])], [Segment.text([0], "prompt")]])
    assert batch.blocks == (Block(0, 5), Block(5, 6)) and batch.positions.tolist() == [0, 1, 2, 3, 4, 0]


def test_a_sequence_that_starts_with_a_generated_token_is_refused():
    with pytest.raises(ValueError, match="nothing predicts it"):
        make_batch([[generated([5, 6])]])


@given(st.lists(SEQUENCE, min_size=1, max_size=4))
def test_rows_hold_each_episodes_generated_tokens_in_order(sequences):
    batch = make_batch(sequences)
    values, mask = to_rows(batch.targets.double(), batch, len(sequences))
    for row, segments in enumerate(sequences):
        tokens = [int(t) for s in segments if s.generated for t in s.token_ids]
        assert values[row][mask[row]].tolist() == tokens
        assert mask[row].tolist() == [True] * len(tokens) + [False] * (mask.shape[1] - len(tokens))
        assert (values[row][~mask[row]] == 0).all()


def test_gradients_flow_through_rows_to_each_token():
    batch = make_batch([[Segment.text([1], "prompt"), generated([2, 3])],
                        [Segment.text([1], "prompt"), generated([4])]])
    values = torch.arange(3.0, requires_grad=True)
    rows, _ = to_rows(values, batch, 2)
    (rows * torch.tensor([[1.0, 2.0], [4.0, 8.0]])).sum().backward()
    assert values.grad.tolist() == [1.0, 2.0, 4.0]


@given(st.lists(st.tuples(PROMPTS, st.integers(0, 9), st.booleans()), max_size=20), st.integers(1, 40))
def test_micro_batches_hold_every_index_once_in_order_within_the_budget(drawn, budget):
    readings = [[[Segment.text(prompt + extra, "prompt"), generated([7] * size)]
                 for extra in ([], [9] * 5)[:1 + has_teacher]] for prompt, size, has_teacher in drawn]
    parts = pack_by_tokens(readings, budget)
    assert [i for part in parts for i in part] == list(range(len(drawn)))
    sizes = [max(len(make_batch(row).input_ids) for row in zip(*(readings[i] for i in part), strict=True))
             for part in parts]
    assert all(len(part) == 1 or size <= budget for part, size in zip(parts, sizes))
    for part, following in pairwise(parts):  # and none that could have held one more
        if len(readings[part[0]]) == len(readings[following[0]]):
            grown = zip(*(readings[i] for i in [*part, following[0]]))
            assert max(len(make_batch(row).input_ids) for row in grown) > budget


# Invariant 2 with a model behind it.


def loss_and_gradients(policy, episodes, advantages, denominator=None):
    batch = make_batch([e.segments for e in episodes])
    scores = score_tokens(policy.hidden(batch), policy.head.weight, batch.targets)
    logprobs, mask = to_rows(scores.logprobs, batch, len(episodes))
    old, _ = to_rows(torch.cat([torch.from_numpy(e.logprobs) for e in episodes]), batch, len(episodes))
    loss, _ = policy_loss(logprobs, old, torch.tensor(advantages), mask, denominator=denominator)
    gradients = torch.autograd.grad(loss, list(policy.model.parameters()))
    return float(loss.detach()), torch.cat([g.flatten() for g in gradients])


def loss_by_hand(policy, episode, advantage):
    """GRPO's loss of one episode from whole logits: one term for each generated token, and no other."""
    ids = torch.from_numpy(episode.token_ids).long()
    logprobs = torch.log_softmax(policy.model(ids[None]).logits[0], -1)
    old = iter(episode.logprobs.tolist())
    terms = []
    for t in range(1, len(ids)):
        if episode.generated[t]:
            ratio = (logprobs[t - 1, ids[t]] - next(old)).exp()
            terms.append(torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))
    loss = -torch.stack(terms).mean()
    gradients = torch.autograd.grad(loss, list(policy.model.parameters()))
    return float(loss.detach()), torch.cat([g.flatten() for g in gradients])


def close(got, expected, tolerance=1e-6):
    assert got[0] == pytest.approx(expected[0], rel=tolerance, abs=tolerance)
    assert (got[1] - expected[1]).norm() <= tolerance * 10 * expected[1].norm()


def test_environment_tokens_get_no_gradient(template, policy_of, sample_groups):
    policy = policy_of(template)
    episodes = [e for group in sample_groups(policy, 6, 8) for e in group.episodes]
    episode = max(episodes, key=lambda e: len(e.turns))
    assert sum(not s.generated for s in episode.response) >= 2
    close(loss_and_gradients(policy, [episode], [0.8]), loss_by_hand(policy, episode, 0.8))


def test_environment_text_after_the_last_turn_changes_nothing(policy_of, sample_groups):
    policy = policy_of()
    episode = sample_groups(policy, 1, 4)[0].episodes[0]
    expected = loss_and_gradients(policy, [episode], [0.8])
    episode.segments.append(Segment.text(policy.chat.observation("the very end", "user"), "user"))
    close(loss_and_gradients(policy, [episode], [0.8]), expected)


def test_an_episode_counts_the_same_alone_and_beside_longer_ones(policy_of, sample_groups):
    policy = policy_of()
    sampled = [e for group in sample_groups(policy, 4, 8) for e in group.episodes]
    policy = policy_of(dtype=torch.float64)
    episodes = sorted(sampled, key=lambda e: len(e.token_ids))
    short, longer = episodes[0], episodes[1:]
    assert len(short.token_ids) + 20 < len(longer[-1].token_ids)
    alone = loss_and_gradients(policy, [short], [0.8])
    # The longer ones have no advantage: what is left is the short one's share.
    beside = loss_and_gradients(policy, [short, *longer], [0.8] + [0.0] * len(longer), denominator=1.0)
    close(beside, alone)
