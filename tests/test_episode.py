"""The vocabulary: segments that cannot lie about their origin, and episodes whose masks come from them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turncredit.episode import Episode, Group, Segment, StopReason, Verdict
from turncredit.seeds import seed_of

segments = st.lists(st.one_of(
    st.builds(Segment.text, st.lists(st.integers(0, 500), max_size=6), st.sampled_from(["user", "tool", "glue"])),
    st.lists(st.integers(0, 500), max_size=6).map(lambda ids: Segment.sampled(ids, [-0.5 * i for i in ids]))),
    max_size=6)


def episode(parts: list[Segment], **changes: Any) -> Episode:
    return Episode("env", "task", "train", 1, "", "", parts, **changes)


@given(parts=segments)
def test_masks_counts_and_logprobs_are_derived_from_the_segments(parts: list[Segment]) -> None:
    one = episode([Segment.text([1, 2], "prompt"), *parts])
    assert len(one.token_ids) == len(one.generated) == 2 + sum(len(s.token_ids) for s in parts)
    assert one.token_ids.dtype == np.int32
    assert one.generated_count == one.generated.sum() == len(one.logprobs) == len(one.sampling_logprobs)
    np.testing.assert_array_equal(one.token_ids[one.generated] * np.float32(-0.5), one.logprobs)
    assert one.response == parts


def test_an_episode_without_tokens_is_empty_and_not_an_error() -> None:
    one = episode([])
    assert one.token_ids.tolist() == one.generated.tolist() == one.logprobs.tolist() == []
    assert one.generated.dtype == np.bool_


@pytest.mark.parametrize("arguments", [
    {"generated": True}, {"generated": True, "logprobs": np.zeros(1, np.float32)},
    {"generated": True, "logprobs": np.zeros(2, np.float32)},
    {"generated": True, "logprobs": np.zeros(2, np.float32), "sampling_logprobs": np.zeros(3, np.float32)},
    {"generated": False, "logprobs": np.zeros(2, np.float32)},
    {"generated": False, "sampling_logprobs": np.zeros(2, np.float32)},
])
def test_generated_segments_have_a_logprob_for_each_token_and_others_have_none(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="segment"):
        Segment(np.array([1, 2], np.int32), "assistant", **arguments)


def test_a_segment_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Segment.text([1], "user").generated = True  # type: ignore[misc]  # that is what is refused


def test_a_group_s_mean_knows_judged_episodes_alone() -> None:
    group = Group([episode([], verdict=Verdict.of(True)), episode([], verdict=Verdict.unknown("?")),
                   episode([], verdict=None), episode([], verdict=Verdict.of(True), stop=StopReason.ENVIRONMENT_ERROR),
                   episode([], verdict=Verdict.of(False), stop=StopReason.TOKEN_LIMIT)])
    assert [e.reward for e in group.episodes] == [1.0, None, None, None, 0.0]
    assert [e.passed for e in group.episodes] == [True, None, None, None, False]
    assert [e.reward for e in group.judged] == [1.0, 0.0]


def test_every_stop_reason_has_a_sentence_of_its_own() -> None:
    assert len({stop.sentence for stop in StopReason}) == len(StopReason)


SEED_OF_1_A = 6104050150092007499


def test_a_path_of_names_is_a_seed_of_its_own() -> None:
    paths = [(1,), (2,), (1, "a"), (1, "b"), (1, "a", 0), (1, "a", 1), ("a", 1)]
    assert len({seed_of(*path) for path in paths}) == len(paths)
    assert all(0 <= seed_of(*path) < 2**63 for path in paths)
    assert seed_of(1, "a") == SEED_OF_1_A, "runs of older versions are the same runs"
