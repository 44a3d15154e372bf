"""Tool use judged by the state that the agent left behind, not by the way it took."""

from __future__ import annotations

from turncredit.episode import Outcome, Task, Verdict


class FinalState:
    """Passes where the final state equals `task.hidden["goal"]` and the agent declared itself done."""

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """Name the keys that differ in the verdict's details."""
        goal = task.hidden["goal"]
        wrong = sorted(k for k in goal.keys() | outcome.state.keys()
                       if k not in goal or k not in outcome.state or goal[k] != outcome.state[k])
        if wrong:
            return Verdict.of(False, f"the final state differs from the goal at {', '.join(wrong)}", wrong=wrong)
        if outcome.answer is None:
            return Verdict.of(False, "the goal was reached, but the agent never said that it was done")
        return Verdict.of(True)
