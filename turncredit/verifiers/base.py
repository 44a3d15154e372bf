"""The verifier's contract, and the one place where a verifier is called."""

from __future__ import annotations

from typing import Protocol

from turncredit.episode import Outcome, Task, Verdict


class Verifier(Protocol):
    """Judges an outcome. It may raise: that is an unknown verdict, never a zero."""

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """Return the verdict on what the agent did with this task."""


def judge(verifier: Verifier, task: Task, outcome: Outcome) -> Verdict:
    """Call a verifier; whatever it raises, or returns that is no verdict, becomes an unknown verdict."""
    try:
        verdict: object = verifier.verify(task, outcome)
    except Exception as error:  # the verifier is the author's code: its failure must not end a run
        return Verdict.unknown(f"the verifier raised {type(error).__name__}: {error}")
    if not isinstance(verdict, Verdict):
        return Verdict.unknown(f"the verifier returned {type(verdict).__name__}, not a Verdict")
    return verdict
