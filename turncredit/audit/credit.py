"""What is examined of credit: logprobs, routes and advantages, weights, and whole steps done again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from turncredit.audit.recorded import RecordedStep
from turncredit.config import Config
from turncredit.report.credit import EpisodeCredit
from turncredit.trainer.algorithms import Algorithm, make_algorithm
from turncredit.trainer.batch import make_batch, pack_by_tokens
from turncredit.trainer.checkpoint import restore
from turncredit.trainer.credited import Credit, CreditedEpisode
from turncredit.trainer.learner import Learner
from turncredit.trainer.record import TokenRecord
from turncredit.trainer.scoring import Scorer

if TYPE_CHECKING:
    from turncredit.trainer.demonstrations import Demonstrator
    from turncredit.trainer.policy import Policy

# What the run started from, another model as its teacher, scripted solutions.
Others = tuple["Policy | None", "Policy | None", "Demonstrator | None"]
EXACT = 1e-4  # nats: fp32, the engine against the trainer
ROUNDED = 0.1  # nats: where one of them computes in bf16
SHARE = 2e-3  # of a value: what is computed from logprobs again
NOISE = 0.02  # of an advantage that is a difference of weights: where all are alike it is rounding, blown up


class NoKL(Exception):
    """A group's advantages come from weights, and the run recorded no KL for it."""


class RecordScorer(Scorer):
    """Weighs tokens by the KL that the run recorded in place of the model's."""

    recorded: Mapping[str, EpisodeCredit]
    from_weights: set[str]  # the episodes whose advantages come from their group's weights

    def weights(self, credited: Sequence[CreditedEpisode]) -> list[NDArray[np.float32] | None]:
        """The weights of a whole group from its recorded KL."""
        self.from_weights |= {one.key for one in credited}
        with_teacher = [i for i, one in enumerate(credited) if one.teacher_prompt is not None]
        kls = [self.kl(credited[i]) for i in with_teacher]
        found: list[NDArray[np.float32] | None] = [None] * len(credited)
        if kls:
            flat = self.algorithm.weigh_tokens(torch.cat(kls), torch.ones(sum(map(len, kls)), dtype=torch.bool))
            for i, piece in zip(with_teacher, torch.split(flat, [len(kl) for kl in kls])):
                found[i] = piece.numpy()
        return found

    def kl(self, one: CreditedEpisode) -> torch.Tensor:
        """An episode's recorded KL, [generated]."""
        credit = self.recorded.get(one.key)
        if credit is None or "kl" not in credit.values:
            raise NoKL(one.key)
        return torch.tensor([np.nan if v is None else v for v in credit.values["kl"]], dtype=torch.float32)


class CreditFromRecord(Learner):
    """Credits a step as the trainer did, with the KL that the run recorded in place of the model's."""

    def __init__(self, policy: Policy, config: Config, others: Others = (None, None, None)) -> None:
        # Whatever teacher there is, it is not asked: an average of the policy need not be one.
        super().__init__(policy, make_algorithm(**config.algorithm), config.trainer, config.teacher, config.seed, None,
                         *others, policy)
        self.scorer: RecordScorer = RecordScorer(policy, self.algorithm, config.trainer.micro_batch_tokens, *others[:2],
                                                 policy)
        self.scorer.recorded, self.scorer.from_weights = {}, set()

    @property
    def advantages_need_scores(self) -> bool:
        """Whether they depend on what student and teacher say, which is only known where a step is done again."""
        return type(self.algorithm).token_advantages is not Algorithm.token_advantages


def broken_advantages(step: RecordedStep, learner: CreditFromRecord) -> tuple[Credit | None, list[str]]:
    """Credit the step again; where route, reference or advantage differ from the record, or counts from the metrics.

    Returns:
        the credit, None where the run recorded too little to work it out; and what is broken.
    """
    learner.scorer.recorded = step.credit
    try:
        credit = learner.credit(step.trained, step.number)
    except NoKL:
        return None, []
    found = [f"step {step.number}: metrics say {name!r} {step.metrics.get(name)}, its groups {count}"
             for name, count in credit.counts.items() if step.metrics.get(name, 0) != count]
    for one in credit.episodes:
        recorded = step.credit.get(one.key)
        if recorded is not None:
            found += _broken_credit(one, recorded)
            if not learner.advantages_need_scores:
                found += _broken_advantages(one, recorded, NOISE if one.key in learner.scorer.from_weights else 1e-6)
        elif step.credit and one.advantage and learner.settings.mini_batches == 1:
            found.append(f"episode {one.key}: it earned credit, and none is recorded")
    return credit, found


def _broken_credit(one: CreditedEpisode, recorded: EpisodeCredit) -> Iterator[str]:
    if recorded.token_ids != one.episode.token_ids[one.episode.generated].tolist():
        yield f"episode {one.key}: its credit is of other tokens than its own"
    for name, then, now in (("route", recorded.route, one.kind), ("reference", recorded.reference, one.reference)):
        if then != now:
            yield f"episode {one.key}: {name} is recorded as {then!r}, and comes out as {now!r}"


def _broken_advantages(one: CreditedEpisode, recorded: EpisodeCredit, bound: float) -> Iterator[str]:
    for then, now in zip(recorded.values.get("advantage", ()), one.token_credit):
        if not _close(then, float(now), SHARE, bound):
            yield f"episode {one.key}: advantage is recorded as {then}, and comes out as {now:.6g}"
            return


def broken_weights(step: RecordedStep, credit: Credit, learner: CreditFromRecord) -> Iterator[str]:
    """Where the weights of a micro-batch are not what the algorithm makes of its KL."""
    taught = [one for one in credit.episodes if one.teacher_prompt is not None and one.key in step.credit]
    for part in pack_by_tokens([one.readings for one in taught], learner.settings.micro_batch_tokens):
        kls = [learner.scorer.kl(taught[i]) for i in part]
        kl = torch.cat(kls)
        now = learner.algorithm.weigh_tokens(kl, torch.ones_like(kl, dtype=torch.bool))
        for i, weights in zip(part, torch.split(now, [len(k) for k in kls])):
            yield from _first_apart(taught[i].key, "weight", step.credit[taught[i].key].values.get("weight"),
                                    weights.numpy(), 0.0, SHARE)


def broken_logprobs(step: RecordedStep, policy: Policy, tokens: int) -> Iterator[str]:
    """Where the policy that sampled the step gives its tokens other logprobs than were recorded."""
    episodes = [e for e in step.episodes if e.generated_count]
    bound = EXACT if policy.model.dtype == torch.float32 and policy.device.type == "cpu" else ROUNDED
    for part in pack_by_tokens([[e.segments] for e in episodes], tokens):
        chosen = [episodes[i] for i in part]
        with torch.no_grad():
            scores = policy.scores(make_batch([e.segments for e in chosen]).to(policy.device))
        sizes = [e.generated_count for e in chosen]
        for episode, now in zip(chosen, torch.split(scores.logprobs.float().cpu(), sizes)):
            yield from _first_apart(episode.id, "logprob", episode.logprobs.tolist(), now.numpy(), bound, 0.0)


def broken_step(step: RecordedStep, policy: Policy, config: Config, others: Others = (None, None, None),
                checkpoint: Path | None = None) -> Iterator[str]:
    """Do a whole step again from the weights before it: where credit, loss or gradient differ from the record.

    Args:
        others: what the algorithm holds the policy against.
        checkpoint: where the optimiser's state before the step is, if there was any.
    """
    algorithm = make_algorithm(**config.algorithm)
    averaged = policy.copied() if algorithm.teacher == "averaged" else None
    learner = Learner(policy, algorithm, config.trainer, config.teacher, config.seed, None, *others, averaged)
    if checkpoint is not None:  # several updates of one step depend on it, and an average of the policy
        restore(checkpoint, learner.state)
    record = TokenRecord(policy.tokenizer)
    update = learner.update(learner.credit(step.trained, step.number), step.number, record)
    for name in ("loss", "gradient_norm"):
        if not _close(step.metrics.get(name), update[name], 1e-2, 1e-4):
            yield f"step {step.number}: {name} is recorded as {step.metrics.get(name)}, and comes out as {update[name]}"
    for id, credit in step.credit.items():
        columns = record.episodes.get(id, {})
        for name, values in credit.values.items():
            yield from _first_apart(id, name, values, columns.get(name), EXACT, 1e-2)


def _first_apart(id: str, name: str, recorded: Sequence[float | None] | None, now: Any, bound: float,
                 share: float) -> Iterator[str]:
    if recorded is None or now is None or len(recorded) != len(now):
        yield f"episode {id}: it has {len(recorded or ())} recorded {name}s for {0 if now is None else len(now)} tokens"
        return
    for place, (then, value) in enumerate(zip(recorded, now)):
        if not _close(then, float(value), share, bound):
            yield f"episode {id}: {name} of token {place} is recorded as {then}, and comes out as {value:.6g}"
            return


def _close(recorded: float | None, now: float, share: float, bound: float = 1e-6) -> bool:
    if recorded is None or not np.isfinite(now):
        return recorded is None and not np.isfinite(now)
    return abs(recorded - now) <= bound + share * max(abs(recorded), abs(now))
