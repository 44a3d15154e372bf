"""Splits that are disjoint by construction: a task's content, not its seed, says where it belongs."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TypeVar

SPLITS = ("train", "test", "ood")
TEST_SHARE = 5  # one content in five is held out

T = TypeVar("T")


def split_of(content: str) -> str:
    """"train" or "test", by a hash of what makes the task the task (its numbers, its template, …)."""
    return "test" if zlib.crc32(content.encode()) % TEST_SHARE == 0 else "train"


def draw_from_split(split: str, draw: Callable[[], T], content: Callable[[T], str]) -> T:
    """Draw until the content belongs to `split`. "ood" tasks differ in kind: they are taken as drawn.

    Raises:
        RuntimeError: 10,000 draws held no content of that split.
    """
    for _ in range(10_000):
        drawn = draw()
        if split == "ood" or split_of(content(drawn)) == split:
            return drawn
    raise RuntimeError(f"no content of split {split!r} in 10,000 draws: the task space is too small to be split")
