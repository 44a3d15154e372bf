"""`turncredit audit RUN`: everything that a run wrote down is worked out again, and compared.

    from turncredit.audit import audit
    broken = [finding for finding in audit("runs/mine") if finding.verdict == "fail"]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from turncredit.audit.credit import (
    CreditFromRecord,
    broken_advantages,
    broken_logprobs,
    broken_step,
    broken_weights,
)
from turncredit.audit.episodes import (
    broken_mask,
    broken_record,
    broken_reward,
    broken_sums,
    broken_text,
    replayable,
)
from turncredit.audit.policy import broken_policy
from turncredit.audit.recorded import AuditedRun, Damaged, RecordedStep, evenly_chosen

__all__ = ["ROWS", "Finding", "audit"]

ROWS = {
    "files": "every group of every step is there, whole, and nothing beside them",
    "sums": "metrics are what the episodes add up to; columns of an episode agree",
    "masks": "what is marked as generated is what the agent said, and has logprobs",
    "texts": "tokens read as the text that is shown",
    "rewards": "acted out again, an episode ends, reads and is judged as recorded",
    "logprobs": "the weights that sampled give the recorded logprobs",
    "advantages": "routes, references and advantages follow from the rewards",
    "weights": "the weights of tokens follow from the KL",
    "steps": "done again from its checkpoint, a step has the same credit, loss and gradient",
    "policy": "the final policy is the last checkpoint's",
}


@dataclass(slots=True)
class Finding:
    """What a row found. A row that could examine nothing is skipped, and says why."""

    row: str
    promise: str
    checked: int = 0
    unit: str = ""
    problems: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def verdict(self) -> str:
        """ "pass", "fail" or "skip"."""
        return "fail" if self.problems else "pass" if self.checked else "skip"

    def take(self, problems: Iterable[str], checked: int = 1) -> None:
        """Count something as examined, with what is broken in it."""
        self.checked += checked
        self.problems += problems


def audit(path: str | Path, episodes: int | None = 64,
          on_step: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Examine a run folder; what is broken is reported and never mended.

    Args:
        path: the run folder.
        episodes: how many are acted out again in their environments, spread evenly over the run; None for all. The
            other rows examine every episode.
        on_step: called with (steps done, steps) as it goes.
    Raises:
        UserError: it is no run folder, or has nothing to examine.
    """
    run = AuditedRun(Path(path))
    auditor = _Auditor(run, episodes)
    for done, step in enumerate(run.steps(), 1):
        auditor.examine(step)
        if on_step:
            on_step(done, len(run.metrics))
    auditor.examine_policy()
    auditor.close()
    return list(auditor.findings.values())


class _Auditor:
    def __init__(self, run: AuditedRun, episodes: int | None) -> None:
        self.run, self.config = run, run.config
        self.policy = run.policy()
        self.others = run.others()
        self.learner = CreditFromRecord(self.policy, run.config, self.others)
        self.findings = {name: Finding(name, promise) for name, promise in ROWS.items()}
        self._place = 0
        self._chosen = evenly_chosen(sum(int(line.get("episodes", 0)) for line in run.metrics), episodes)
        self._explain()

    def examine(self, step: RecordedStep | Damaged) -> None:
        """All rows, on one step."""
        found = self.findings
        if isinstance(step, Damaged):
            found["files"].take([str(step)])
            return
        found["files"].take([])
        found["sums"].take(broken_sums(step), 0)
        masks = len(found["masks"].problems)
        for record in (record for part in step.records.values() for record in part):
            found["sums"].take(broken_record(record))
            found["masks"].take(broken_mask(record))
            found["texts"].take(broken_text(record, self.policy.chat))
            if self._place in self._chosen and replayable(record):
                found["rewards"].take(broken_reward(step, record, self.policy, self.config))
            self._place += 1
        if len(found["masks"].problems) > masks:
            return  # there is no telling what of it was trained on
        self._examine_credit(step)
        if step.number in self.run.weights:
            policy = self.run.policy(step.number)
            if not self.config.rollout.staleness:  # else older weights sampled them, of which none need be kept
                found["logprobs"].take(broken_logprobs(step, policy, self.config.trainer.micro_batch_tokens),
                                       len(step.episodes))
            checkpoint = Path(self.run.weights[step.number]) if step.number else None
            found["steps"].take(broken_step(step, policy, self.config, self.others, checkpoint))

    def _examine_credit(self, step: RecordedStep) -> None:
        credit, problems = broken_advantages(step, self.learner)
        if credit is None:
            return
        self.findings["advantages"].take(problems, len(credit.episodes))
        if step.credit and self.config.trainer.mini_batches == 1:
            self.findings["weights"].take(broken_weights(step, credit, self.learner), len(step.credit))

    def examine_policy(self) -> None:
        """The row on the final weights."""
        folder = self.run.folder.path / "policy"
        steps = self.config.trainer.steps
        if folder.is_dir() and steps in self.run.weights:
            with TemporaryDirectory() as temporary:
                last = Path(self.run.weights[steps])
                if self.config.model.lora is not None:  # a checkpoint is the adapter alone
                    last = Path(temporary) / last.name
                    self.run.policy(steps).export(last)
                self.findings["policy"].take(broken_policy(folder, last))

    def close(self) -> None:
        """Close the environments of demonstrations."""
        if self.learner.demonstrator is not None:
            self.learner.demonstrator.close()

    def _explain(self) -> None:
        versions = ", ".join(map(str, sorted(self.run.weights)))
        notes = {"logprobs": f"weights are kept of steps {versions}", "steps": f"weights are kept of steps {versions}",
                 "policy": "the run has not ended"}
        units = {"files": "steps", "steps": "steps", "policy": "policies"}
        for name, finding in self.findings.items():
            finding.note, finding.unit = notes.get(name, ""), units.get(name, "episodes")
        if not self.run.folder.credit.is_dir() or not any(self.run.folder.credit.iterdir()):
            self.findings["weights"].note = "the run recorded no credit"
        elif self.config.trainer.mini_batches > 1:
            self.findings["weights"].note = "a step's KL is that of several updates"
