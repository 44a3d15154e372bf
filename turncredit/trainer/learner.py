"""From groups to new weights: credit, then one update. The learner knows no algorithm by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turncredit.config import TeacherConfig, TrainerConfig
from turncredit.episode import Episode, Group, Segment
from turncredit.seeds import seed_of
from turncredit.trainer.algorithms import OWN_PROMPT, Algorithm, GroupCredit
from turncredit.trainer.batch import Batch, make_batch, pack_by_tokens, to_rows
from turncredit.trainer.head import Measures, TokenScores
from turncredit.trainer.loss import mean_over_tokens, policy_loss
from turncredit.trainer.policy import Policy
from turncredit.trainer.teacher import GUIDE, teacher_context

COUNTED = ("episodes without reward", "groups dropped", "groups without signal", "references shortened",
           "references that did not fit")


@dataclass(slots=True, eq=False)
class CreditedEpisode:
    """An episode, what it earns, and the prompt that its teacher reads (None: no teacher, weight 1)."""

    episode: Episode
    kind: str
    advantage: float
    teacher_prompt: Segment | None = None
    token_advantages: NDArray[np.float64] | None = None  # [generated], where they differ within the episode
    distilled: bool = False  # it learns from its teacher's distribution, whatever its advantage

    @property
    def has_signal(self) -> bool:
        """Whether the update can learn anything from it."""
        return bool(self.advantage) or self.distilled

    @property
    def token_credit(self) -> NDArray[np.float64]:
        """The advantage of each generated token, [generated]."""
        if self.token_advantages is not None:
            return self.token_advantages
        return np.full(self.episode.generated_count, self.advantage)

    @property
    def readings(self) -> list[list[Segment]]:
        """What the student reads, and what the teacher reads where there is one."""
        prompts = [self.episode.segments[0]] + ([] if self.teacher_prompt is None else [self.teacher_prompt])
        return [[prompt, *self.episode.response] for prompt in prompts]


@dataclass(slots=True)
class Credit:
    """A batch with its credit, and counts of what was left out and why."""

    episodes: list[CreditedEpisode] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(COUNTED, 0)))  # and a count a route


class Learner:
    """Holds the optimiser; turns groups into credit and credit into new weights."""

    def __init__(self, policy: Policy, algorithm: Algorithm, trainer: TrainerConfig, teacher: TeacherConfig,
                 seed: int, reference: Policy | None = None, external_teacher: Policy | None = None) -> None:
        self.policy, self.algorithm, self.settings, self.teacher, self.seed = policy, algorithm, trainer, teacher, seed
        self.reference, self.external_teacher = reference, external_teacher
        if algorithm.needs_reference and reference is None:
            raise ValueError("the algorithm has a KL to the reference policy: pass `reference`, the start's weights")
        if algorithm.external_teacher and external_teacher is None:
            raise ValueError("the algorithm distils another model: pass `external_teacher`")
        if trainer.gradient_checkpointing:
            policy.checkpoint_layers()
        self.optimizer = torch.optim.AdamW(policy.model.parameters(), lr=trainer.lr, betas=trainer.betas,
                                           weight_decay=trainer.weight_decay)

    # Credit.

    def credit(self, groups: Sequence[Group], step: int) -> Credit:
        """Score every group. Episodes without a reward leave theirs; a group of fewer than 2 is dropped."""
        credit = Credit()
        for number, group in enumerate(groups):
            judged = [e for e in group.judged if e.generated_count]
            credit.counts["episodes without reward"] += len(group.episodes) - len(group.judged)
            if len(judged) < 2:
                credit.counts["groups dropped"] += 1
                continue
            lengths = [e.generated_count for e in judged]
            rewards = self.algorithm.shape_rewards([e.reward or 0.0 for e in judged], lengths)
            scored = self.algorithm.score_group(rewards, [bool(e.passed) for e in judged], lengths,
                                                seed_of(self.seed, "credit", step, number))
            credit.counts[f"route {scored.kind}"] += 1
            credited = [self._credited(judged, i, scored, credit.counts) for i in range(len(judged))]
            if scored.advantages_from_weights is not None:
                advantages = scored.advantages_from_weights(self.weights(credited))
                for one, advantage in zip(credited, advantages):
                    one.advantage = float(advantage)
            if not any(one.has_signal for one in credited):
                credit.counts["groups without signal"] += 1
            credit.episodes += credited
        self._score_batch(credit.episodes)
        return credit

    def _score_batch(self, episodes: Sequence[CreditedEpisode]) -> None:
        """The algorithm's third look, at the whole batch: an advantage for each token."""
        if not self.algorithm.scores_batch or not episodes:
            return
        old = [one.episode.logprobs for one in episodes]
        reference = self.reference_logprobs(episodes) if self.algorithm.needs_reference else None
        for one, advantages in zip(episodes, self.algorithm.score_batch([e.advantage for e in episodes], old, reference)):
            one.token_advantages, one.advantage = advantages, float(np.abs(advantages).max())

    @torch.no_grad()
    def reference_logprobs(self, episodes: Sequence[CreditedEpisode]) -> list[NDArray[np.float32]]:
        """The generated tokens' logprobs under the reference policy, [generated] for each episode."""
        assert self.reference is not None, "refused at the start"
        found: list[NDArray[np.float32]] = []
        for part in pack_by_tokens([one.readings[:1] for one in episodes], self.settings.micro_batch_tokens):
            batch = make_batch([episodes[i].readings[0] for i in part]).to(self.reference.device)
            logprobs = self.reference.scores(batch, measures=Measures(())).logprobs.float().cpu().numpy()
            ends = np.cumsum([episodes[i].episode.generated_count for i in part])
            found += np.split(logprobs, ends[:-1])
        return found

    def _credited(self, judged: list[Episode], i: int, scored: GroupCredit, counts: Counter[str]) -> CreditedEpisode:
        one = CreditedEpisode(judged[i], scored.kind, float(scored.advantages[i]))
        reference = scored.references[i]
        if reference is None:
            return one
        if reference == OWN_PROMPT:
            one.teacher_prompt, one.distilled = judged[i].segments[0], self.algorithm.distils
            return one
        context = teacher_context(self.policy.chat, judged[i], judged[reference], self.teacher.guide or GUIDE,
                                  self.teacher.reference_tokens, self.policy.max_context)
        if context is None:
            counts["references that did not fit"] += 1
            return one
        counts["references shortened"] += context.shortened
        one.teacher_prompt, one.distilled = context.prompt, self.algorithm.distils
        return one

    @torch.no_grad()
    def weights(self, credited: Sequence[CreditedEpisode]) -> list[NDArray[np.float32] | None]:
        """The token weights of a whole group at once, before the update: [generated] for each episode; None where
        an episode has no teacher."""
        weights: list[NDArray[np.float32] | None] = [None] * len(credited)
        with_teacher = [i for i, one in enumerate(credited) if one.teacher_prompt is not None]
        parts = pack_by_tokens([credited[i].readings for i in with_teacher], self.settings.micro_batch_tokens)
        order = [with_teacher[i] for part in parts for i in part]
        if not order:
            return weights
        kls = [self.algorithm.divergence_of(self._scores([credited[with_teacher[i]] for i in part])[0])
               for part in parts]
        kl = torch.cat([k for k in kls if k is not None])
        flat = self.algorithm.weigh_tokens(kl, torch.ones_like(kl, dtype=torch.bool)).cpu().numpy()
        ends = np.cumsum([credited[i].episode.generated_count for i in order])
        for i, piece in zip(order, np.split(flat, ends[:-1])):
            weights[i] = piece
        return weights

    # Update.

    def update(self, credit: Credit, step: int) -> dict[str, Any]:
        """One optimiser step on the whole batch. A non-finite loss or gradient leaves the weights as they are."""
        episodes = credit.episodes
        statistics = _Statistics()
        self.optimizer.zero_grad(set_to_none=True)
        if not any(one.has_signal for one in episodes):
            return statistics.summary(loss=0.0, gradient_norm=0.0, updated=False)
        count = self.algorithm.denominator(len(episodes), sum(one.episode.generated_count for one in episodes))
        loss = 0.0
        for part in self._micro_batches(episodes):
            loss += self._accumulate([episodes[i] for i in part], count, statistics, step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * learning_rate_factor(self.settings, step)
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), self.settings.clip_norm))
        finite = bool(np.isfinite(loss) and np.isfinite(norm))
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return statistics.summary(loss=loss, gradient_norm=norm, updated=finite)

    def _micro_batches(self, episodes: Sequence[CreditedEpisode]) -> list[list[int]]:
        """Episodes with a teacher and those without stand in different micro-batches."""
        batches = []
        for has_teacher in (True, False):
            chosen = [i for i, one in enumerate(episodes) if (one.teacher_prompt is not None) == has_teacher]
            parts = pack_by_tokens([episodes[i].readings for i in chosen], self.settings.micro_batch_tokens)
            batches += [[chosen[i] for i in part] for part in parts]
        return batches

    def _accumulate(self, part: Sequence[CreditedEpisode], count: float, statistics: _Statistics,
                    step: int) -> float:
        scores, batch = self._scores(part)
        logprobs, mask = to_rows(scores.logprobs, batch, len(part))
        old = torch.from_numpy(np.concatenate([one.episode.logprobs for one in part])).to(logprobs)
        weights = None
        divergence = self.algorithm.divergence_of(scores)
        if divergence is not None:
            flat = self.algorithm.weigh_tokens(divergence.detach(), torch.ones_like(divergence, dtype=torch.bool))
            weights = to_rows(flat, batch, len(part))[0]
            statistics.add(kl=divergence, weight=flat)
        credit = torch.from_numpy(np.concatenate([one.token_credit for one in part])).to(logprobs)
        credit = self.algorithm.token_advantages(scores, credit).detach()
        loss, details = policy_loss(logprobs, to_rows(old, batch, len(part))[0], to_rows(credit, batch, len(part))[0],
                                    mask, weights, denominator=count, **self.algorithm.loss_settings)
        reference = None
        if self.algorithm.reference_kl:
            reference = torch.from_numpy(np.concatenate(self.reference_logprobs(part))).to(logprobs)
        added = self.algorithm.token_loss(scores, reference, step)
        if added is not None:
            loss = loss + mean_over_tokens(to_rows(added, batch, len(part))[0], mask, self.algorithm.normalize, count)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        assert scores.entropy is not None, "it is among the measures by default"
        statistics.add(entropy=scores.entropy, ratio=details["ratio"][mask], clipped=details["clipped"][mask].float(),
                       drift=(scores.logprobs.detach() - old).abs())
        return float(loss.detach())

    def _scores(self, part: Sequence[CreditedEpisode]) -> tuple[TokenScores, Batch]:
        """Logprobs under the student and the teacher's KL, of every generated token of these episodes."""
        student, *teacher = zip(*(one.readings for one in part), strict=True)  # a teacher for all or for none
        batch, *conditioned = (make_batch(read).to(self.policy.device) for read in (student, *teacher))
        return self.policy.scores(batch, conditioned[0] if conditioned else None, self.algorithm.measures,
                                  self.external_teacher), batch


def learning_rate_factor(settings: TrainerConfig, step: int) -> float:
    """A linear warm-up, then constant or linearly down to 0 behind the last step."""
    rising = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    return rising if settings.schedule == "constant" else rising * (1.0 - step / settings.steps)


class _Statistics:
    """Values of generated tokens, gathered over the micro-batches of one update."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.detach().float().cpu())

    def summary(self, **rest: Any) -> dict[str, Any]:
        values = {name: torch.cat(parts).numpy() for name, parts in self._values.items()}
        for name in ("entropy", "ratio", "clipped", "weight", "drift"):
            rest[f"{name}_mean"] = float(values[name].mean()) if name in values else None
        rest["drift_max"] = float(values["drift"].max()) if "drift" in values else None
        for percent in (25, 50, 75, 95):
            rest[f"kl_p{percent}"] = float(np.percentile(values["kl"], percent)) if "kl" in values else None
        rest["weight_above_half"] = float((values["weight"] > 0.5).mean()) if "weight" in values else None
        return rest
