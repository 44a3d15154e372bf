"""From groups to new weights: credit, then one update. The learner knows no algorithm by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turncredit.config import TeacherConfig, TrainerConfig
from turncredit.episode import Episode, Group, Segment
from turncredit.seeds import seed_of
from turncredit.trainer.algorithms import Algorithm, GroupCredit
from turncredit.trainer.batch import Batch, make_batch, pack_by_tokens, to_rows
from turncredit.trainer.head import TokenScores
from turncredit.trainer.loss import policy_loss
from turncredit.trainer.offpolicy import importance
from turncredit.trainer.parallel import World
from turncredit.trainer.policy import Policy
from turncredit.trainer.record import TokenRecord
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
    reference: str | None = None  # the id of the episode that its teacher has seen

    @property
    def key(self) -> str:
        """The episode's id in its run."""
        return self.episode.id

    @property
    def readings(self) -> list[list[Segment]]:
        """What the student reads, and what the teacher reads where there is one."""
        prompts = [self.episode.segments[0]] + ([] if self.teacher_prompt is None else [self.teacher_prompt])
        return [[prompt, *self.episode.response] for prompt in prompts]


class _Old(NamedTuple):
    """What an episode's tokens were before an update, [generated] each."""

    logprobs: Tensor
    importance: Tensor | None  # None for 1


@dataclass(slots=True)
class Credit:
    """A batch with its credit, and counts of what was left out and why."""

    episodes: list[CreditedEpisode] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(COUNTED, 0)))  # and a count a route


class Learner:
    """Holds the optimiser; turns groups into credit and credit into new weights."""

    def __init__(self, policy: Policy, algorithm: Algorithm, trainer: TrainerConfig, teacher: TeacherConfig,
                 seed: int, world: World | None = None) -> None:
        self.world = world or World()
        self.policy, self.algorithm, self.settings, self.teacher, self.seed = policy, algorithm, trainer, teacher, seed
        if trainer.gradient_checkpointing:
            policy.checkpoint_layers()
        trained = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=trainer.lr, betas=trainer.betas,
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
            scored = self.algorithm.score_group([e.reward or 0.0 for e in judged], [bool(e.passed) for e in judged],
                                                [e.generated_count for e in judged],
                                                seed_of(self.seed, "credit", step, number))
            credit.counts[f"route {scored.kind}"] += 1
            credited = [self._credited(judged, i, scored, credit.counts) for i in range(len(judged))]
            if scored.advantages_from_weights is not None:
                advantages = scored.advantages_from_weights(self.weights(credited))
                for one, advantage in zip(credited, advantages):
                    one.advantage = float(advantage)
            if not any(one.advantage for one in credited):
                credit.counts["groups without signal"] += 1
            credit.episodes += credited
        return credit

    def _credited(self, judged: list[Episode], i: int, scored: GroupCredit, counts: Counter[str]) -> CreditedEpisode:
        one = CreditedEpisode(judged[i], scored.kind, float(scored.advantages[i]))
        reference = scored.references[i]
        if reference is None:
            return one
        context = teacher_context(self.policy.chat, judged[i], judged[reference], self.teacher.guide or GUIDE,
                                  self.teacher.reference_tokens, self.policy.max_context)
        if context is None:
            counts["references that did not fit"] += 1
            return one
        counts["references shortened"] += context.shortened
        one.teacher_prompt, one.reference = context.prompt, judged[reference].id
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
        kls = [self._scores([credited[with_teacher[i]] for i in part])[0].kl for part in parts]
        kl = torch.cat([k for k in kls if k is not None])
        flat = self.algorithm.weigh_tokens(kl, torch.ones_like(kl, dtype=torch.bool)).cpu().numpy()
        ends = np.cumsum([credited[i].episode.generated_count for i in order])
        for i, piece in zip(order, np.split(flat, ends[:-1])):
            weights[i] = piece
        return weights

    # Update.

    def update(self, credit: Credit, step: int, record: TokenRecord | None = None) -> dict[str, Any]:
        """Update the weights on a step's episodes: `epochs` passes, each in `mini_batches` optimiser steps.

        Ratios are against the logprobs under which the tokens were sampled, or the trainer's own before this update.
        Where a loss or gradient is not finite, that step is refused, and those behind it are not taken.

        Args:
            record: takes down what each token earned, in the first pass.
        """
        statistics = _Statistics()
        losses: list[float] = []
        norms: list[float] = []
        finite = True
        if any(one.advantage for one in credit.episodes):
            old = self._old_logprobs(credit.episodes, statistics)
            for epoch, chosen in self._mini_batches(len(credit.episodes), step):
                episodes = [credit.episodes[i] for i in chosen]
                if not any(one.advantage for one in episodes):
                    continue
                loss, norm = self._gradient(episodes, old, statistics, None if epoch else record)
                losses.append(loss)
                norms.append(norm)
                finite = bool(np.isfinite(loss) and np.isfinite(norm))
                self._take_step(step, finite)
                if not finite:
                    break
        if record is not None:
            for other in self.world.gathered(record.episodes):
                record.merge(other)
        statistics.merge(self.world)
        return statistics.summary(loss=float(np.mean(losses)) if losses else 0.0,
                                  gradient_norm=float(np.mean(norms)) if norms else 0.0,
                                  updates=len(losses) - (not finite), updated=bool(losses) and finite)

    def _mini_batches(self, count: int, step: int) -> list[tuple[int, list[int]]]:
        """The pass and the episodes of each optimiser step, drawn anew in each pass; in order, so that neighbours
        share prompts."""
        batches = []
        for epoch in range(self.settings.epochs):
            order = np.arange(count)
            if self.settings.mini_batches > 1:
                order = np.random.default_rng(seed_of(self.seed, "mini-batches", step, epoch)).permutation(count)
            parts = np.array_split(order, self.settings.mini_batches)
            batches += [(epoch, sorted(map(int, part))) for part in parts if len(part)]
        return batches

    def _gradient(self, episodes: Sequence[CreditedEpisode], old: Mapping[str, _Old], statistics: _Statistics,
                  record: TokenRecord | None) -> tuple[float, float]:
        """Put the gradient of a mini-batch into the parameters, clipped; returns the loss and the norm before that."""
        self.optimizer.zero_grad(set_to_none=True)
        count = float(len(episodes)) if self.algorithm.normalize == "sequence" else float(
            sum(one.episode.generated_count for one in episodes))
        loss = 0.0
        for part in self._micro_batches(episodes)[self.world.rank::self.world.size]:
            loss += self._accumulate([episodes[i] for i in part], count, statistics, record, old)
        self.world.sum_gradients(self.policy.model.parameters())
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), self.settings.clip_norm))
        return sum(self.world.gathered(loss)), norm

    def _take_step(self, step: int, finite: bool) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * learning_rate_factor(self.settings, step)
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _old_logprobs(self, episodes: Sequence[CreditedEpisode], statistics: _Statistics) -> dict[str, _Old]:
        """By the episodes' ids: what ratios are taken against, and what the gaps between it and the sampler weigh."""
        s = self.settings
        old = {one.key: _Old(torch.from_numpy(one.episode.logprobs), None) for one in episodes}
        if len(old) < len(episodes):
            raise ValueError("two episodes of one update have the same id (step, group, sample)")
        if s.old_logprobs == "sampler":
            return old
        mine: dict[str, _Old] = {}
        for part in self._micro_batches(episodes)[self.world.rank::self.world.size]:
            chosen = [episodes[i] for i in part]
            lengths = [one.episode.generated_count for one in chosen]
            batch = make_batch([one.readings[0] for one in chosen]).to(self.policy.device)
            logprobs = self.policy.scores(batch).logprobs.cpu()
            sampler = torch.cat([old[one.key].logprobs for one in chosen]).to(logprobs)
            weights, ratios = importance(logprobs, sampler, lengths, s.importance_cap, s.importance, s.importance_level)
            statistics.add(importance=weights, sampler_ratio=ratios)
            for one, logprob, weight in zip(chosen, torch.split(logprobs, lengths), torch.split(weights, lengths)):
                mine[one.key] = _Old(logprob, weight)
        return {key: one for part in self.world.gathered(mine) for key, one in part.items()}

    def _micro_batches(self, episodes: Sequence[CreditedEpisode]) -> list[list[int]]:
        """Episodes with a teacher and those without stand in different micro-batches."""
        batches = []
        for has_teacher in (True, False):
            chosen = [i for i, one in enumerate(episodes) if (one.teacher_prompt is not None) == has_teacher]
            parts = pack_by_tokens([episodes[i].readings for i in chosen], self.settings.micro_batch_tokens)
            batches += [[chosen[i] for i in part] for part in parts]
        return batches

    def _accumulate(self, part: Sequence[CreditedEpisode], count: float, statistics: _Statistics,
                    record: TokenRecord | None, before: Mapping[str, _Old]) -> float:
        scores, batch = self._scores(part)
        logprobs, mask = to_rows(scores.logprobs, batch, len(part))
        old = torch.cat([before[one.key].logprobs for one in part]).to(logprobs)
        weights = None
        if scores.kl is not None:
            flat = self.algorithm.weigh_tokens(scores.kl, torch.ones_like(scores.kl, dtype=torch.bool))
            weights = to_rows(flat, batch, len(part))[0]
            statistics.add(kl=scores.kl, weight=flat)
        factors = weights
        gaps = [gap for one in part if (gap := before[one.key].importance) is not None]
        if gaps:
            laid = to_rows(torch.cat(gaps).to(logprobs), batch, len(part))[0]
            factors = laid if weights is None else weights * laid
        advantages = torch.tensor([one.advantage for one in part], dtype=logprobs.dtype, device=logprobs.device)
        loss, details = policy_loss(logprobs, to_rows(old, batch, len(part))[0], advantages, mask, factors,
                                    self.algorithm.clip_low, self.algorithm.clip_high, self.algorithm.normalize, count)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        assert scores.entropy is not None, "it is among the measures by default"
        statistics.add(entropy=scores.entropy, ratio=details["ratio"][mask], clipped=details["clipped"][mask].float(),
                       drift=(scores.logprobs.detach() - old).abs())
        if record is not None:
            sizes = mask.sum(1)
            taken = {"advantage": advantages.repeat_interleave(sizes), "ratio": details["ratio"][mask],
                     "student_logprob": scores.logprobs}
            if weights is not None and scores.kl is not None:
                taken |= {"kl": scores.kl, "weight": weights[mask]}
            record.add(part, {name: value.detach().float().cpu().numpy() for name, value in taken.items()})
        return float(loss.detach())

    def _scores(self, part: Sequence[CreditedEpisode]) -> tuple[TokenScores, Batch]:
        """Logprobs under the student and the teacher's KL, of every generated token of these episodes."""
        student, *teacher = zip(*(one.readings for one in part), strict=True)  # a teacher for all or for none
        batch, *conditioned = (make_batch(read).to(self.policy.device) for read in (student, *teacher))
        return self.policy.scores(batch, conditioned[0] if conditioned else None), batch


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

    def merge(self, world: World) -> None:
        """Take in what the other processes gathered."""
        if world.size > 1:
            shares = world.gathered(self._values)
            names = dict.fromkeys(name for share in shares for name in share)
            self._values = {name: [v for share in shares for v in share.get(name, [])] for name in names}

    def summary(self, **rest: Any) -> dict[str, Any]:
        values = {name: torch.cat(parts).numpy() for name, parts in self._values.items()}
        for name in ("entropy", "ratio", "clipped", "weight", "drift"):
            rest[f"{name}_mean"] = float(values[name].mean()) if name in values else None
        for name in ("importance", "sampler_ratio"):
            if name in values:
                rest |= {f"{name}_mean": float(values[name].mean()), f"{name}_max": float(values[name].max())}
        rest["ratio_max"] = float(values["ratio"].max()) if "ratio" in values else None
        rest["drift_max"] = float(values["drift"].max()) if "drift" in values else None
        for percent in (25, 50, 75, 95):
            rest[f"kl_p{percent}"] = float(np.percentile(values["kl"], percent)) if "kl" in values else None
        rest["weight_above_half"] = float((values["weight"] > 0.5).mean()) if "weight" in values else None
        return rest
