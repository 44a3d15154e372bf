"""Errors that a user can cause. The command line prints them as one sentence, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: one sentence that names the field, the value and the mend."""


class Interrupted(UserError):
    """The user pressed Ctrl-C: one sentence that says how to go on."""


class MissingExtra(UserError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'turncredit[{extra}]'")
        self.extra = extra


class EngineError(Exception):
    """An engine died, hung or answered nonsense: the episodes that asked end with it, and others go on."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``'; did you mean …?'`` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
