"""Splits by content: what a task is made of says where it belongs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turncredit.envs import draw_from_split, split_of


@given(st.text())
def test_a_content_belongs_to_one_split_for_ever(content: str) -> None:
    assert split_of(content) == split_of(content) in ("train", "test")


def test_one_content_in_five_is_held_out() -> None:
    held_out = sum(split_of(str(i)) == "test" for i in range(10_000))
    assert 1900 < held_out < 2100


@pytest.mark.parametrize("split", ["train", "test"])
def test_drawing_goes_on_until_the_content_belongs(split: str) -> None:
    numbers = iter(range(10_000))
    assert split_of(str(draw_from_split(split, lambda: next(numbers), str))) == split


def test_ood_takes_what_is_drawn() -> None:
    assert draw_from_split("ood", lambda: 1, str) == 1


def test_a_task_space_that_is_too_small_says_so() -> None:
    missing = "test" if split_of("1") == "train" else "train"
    with pytest.raises(RuntimeError, match="too small to be split"):
        draw_from_split(missing, lambda: 1, str)
