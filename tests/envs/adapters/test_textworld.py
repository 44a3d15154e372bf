"""What the package's interpreter cannot be given."""

from __future__ import annotations

import pytest

import turncredit

pytest.importorskip("textworld")


def test_latex_is_refused_and_the_game_goes_on() -> None:
    with turncredit.make("turncredit/TextWorld-v0") as env:
        env.reset(seed=0)
        told, *_, info = env.step(r"\boxed{\frac{1}{0}}")
        assert told.startswith("error: write a command") and not info["valid"]
        assert "error" not in env.step("look")[0]
