"""From groups to new weights: credit, then one update. The learner knows no algorithm by name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from turncredit.config import TeacherConfig, TrainerConfig
from turncredit.episode import Episode, Group
from turncredit.seeds import seed_of
from turncredit.trainer.algorithms import DEMONSTRATION, OWN_PROMPT, Algorithm, GroupCredit
from turncredit.trainer.averaged import StateWithTeacher, follow
from turncredit.trainer.batch import make_batch, to_rows
from turncredit.trainer.credited import Credit, CreditedEpisode
from turncredit.trainer.demonstrations import Demonstrator
from turncredit.trainer.head import TokenScores
from turncredit.trainer.loss import mean_over_tokens, policy_loss
from turncredit.trainer.offpolicy import importance
from turncredit.trainer.parallel import World
from turncredit.trainer.policy import Policy
from turncredit.trainer.record import TokenRecord
from turncredit.trainer.scoring import Scorer
from turncredit.trainer.statistics import TokenStatistics
from turncredit.trainer.teacher import GUIDE, feedback_text, teacher_context


class _Old(NamedTuple):
    """What an episode's tokens were before an update, [generated] each."""

    logprobs: Tensor
    importance: Tensor | None  # None for 1


class Learner:
    """Holds the optimiser; turns groups into credit and credit into new weights.

    Args:
        start, external_teacher, averaged: other policies, where the algorithm needs them; see `Scorer`. The averaged
            one is a copy of the policy, and follows it.
        demonstrator: scripted solutions, where the algorithm's teacher sees those.
    Raises:
        ValueError: the algorithm needs one of them, and it is missing.
    """

    def __init__(self, policy: Policy, algorithm: Algorithm, trainer: TrainerConfig, teacher: TeacherConfig,
                 seed: int, world: World | None = None, start: Policy | None = None,
                 external_teacher: Policy | None = None, demonstrator: Demonstrator | None = None,
                 averaged: Policy | None = None) -> None:
        if algorithm.needs_demonstrations and demonstrator is None:
            raise ValueError("the algorithm's teacher sees scripted solutions: pass `demonstrator`")
        self.world = world or World()
        self.policy, self.algorithm, self.settings, self.teacher, self.seed = policy, algorithm, trainer, teacher, seed
        self.demonstrator = demonstrator
        self.averaged = averaged
        self.scorer = Scorer(policy, algorithm, trainer.micro_batch_tokens, start, external_teacher, averaged)
        if trainer.gradient_checkpointing:
            policy.checkpoint_layers()
        if trainer.compile:
            policy.compile_layers()
        trained = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=trainer.lr, betas=trainer.betas,
                                           weight_decay=trainer.weight_decay)
        self.state = policy.state_of(self.optimizer)  # what is saved and restored
        if averaged is not None:
            self.state = StateWithTeacher(self.state, averaged)

    # Credit.

    def credit(self, groups: Sequence[Group], step: int) -> Credit:
        """Score every group. Episodes without a reward leave theirs; a group of fewer than 2 is dropped."""
        credit = Credit()
        shown: Sequence[Episode | None] = [None] * len(groups)
        if self.demonstrator is not None and self.algorithm.needs_demonstrations:
            shown = self.demonstrator.demonstrations(groups)
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
            credited = [self._credited(judged, i, scored, shown[number], credit.counts) for i in range(len(judged))]
            if scored.advantages_from_weights is not None:
                advantages = scored.advantages_from_weights(self.scorer.weights(credited))
                for one, advantage in zip(credited, advantages):
                    one.advantage = float(advantage)
            if not any(one.has_signal for one in credited):
                credit.counts["groups without signal"] += 1
            credit.episodes += credited
        if self.algorithm.scores_batch and credit.episodes:
            self._score_batch(credit.episodes)
        if self.algorithm.fixes_weights:
            whole = [list(range(len(credit.episodes)))]
            for part in whole if self.algorithm.weighs_batch else self.scorer.micro_batches(credit.episodes):
                self._fix_weights([credit.episodes[i] for i in part])
        return credit

    def _fix_weights(self, episodes: Sequence[CreditedEpisode]) -> None:
        """Weigh the tokens of these as one unit, by the weights as they stand."""
        for one, weights in zip(episodes, self.scorer.weights(episodes)):
            one.weights = weights

    def _score_batch(self, episodes: Sequence[CreditedEpisode]) -> None:
        """An advantage for each token, by the algorithm's look at the whole batch."""
        start = self.scorer.start_logprobs(episodes) if self.algorithm.needs_start else None
        scored = self.algorithm.score_batch([one.advantage for one in episodes],
                                            [one.episode.logprobs for one in episodes], start)
        for one, advantages in zip(episodes, scored, strict=True):
            one.token_advantages, one.advantage = advantages, float(np.mean(advantages))

    def _credited(self, judged: list[Episode], i: int, scored: GroupCredit, shown: Episode | None,
                  counts: Counter[str]) -> CreditedEpisode:
        one = CreditedEpisode(judged[i], scored.kind, float(scored.advantages[i]))
        reference = scored.references[i]
        feedback = feedback_text(judged[i]) if scored.feedback is not None and scored.feedback[i] else ""
        if reference == OWN_PROMPT:
            one.teacher_prompt, one.distilled = judged[i].segments[0], self.algorithm.distils
            return one
        solution = None if reference is None else shown if reference == DEMONSTRATION else judged[reference]
        if reference == DEMONSTRATION and solution is None:
            counts["episodes without demonstration"] += 1
        if solution is None and not feedback:
            return one
        context = teacher_context(self.policy.chat, judged[i], solution, self.teacher.guide or GUIDE,
                                  self.teacher.reference_tokens, self.policy.max_context, feedback)
        if context is None:
            counts["references that did not fit"] += 1
            return one
        counts["references shortened"] += context.shortened
        one.teacher_prompt, one.distilled = context.prompt, self.algorithm.distils
        one.reference = None if solution is None or solution is shown else solution.id  # which is one of the run
        counts["episodes with feedback"] += bool(feedback)
        return one

    # Update.

    def update(self, credit: Credit, step: int, record: TokenRecord | None = None) -> dict[str, Any]:
        """Update the weights on a step's episodes: `epochs` passes, each in `mini_batches` optimiser steps.

        Ratios are against the logprobs under which the tokens were sampled, or the trainer's own before this update.
        Where a loss or gradient is not finite, that step is refused, and those behind it are not taken.

        Args:
            record: takes down what each token earned, in the first pass.
        """
        statistics = TokenStatistics()
        losses: list[float] = []
        norms: list[float] = []
        finite = True
        if credit.has_signal:
            old = self._old_logprobs(credit.episodes, statistics)
            for epoch, chosen in self._mini_batches(len(credit.episodes), step):
                episodes = [credit.episodes[i] for i in chosen]
                if not any(one.has_signal for one in episodes):
                    continue
                loss, norm = self._gradient(episodes, old, statistics, None if epoch else record, step)
                losses.append(loss)
                norms.append(norm)
                finite = bool(np.isfinite(loss) and np.isfinite(norm))
                self._take_step(step, finite)
                if not finite:
                    break
            self.policy.refresh()
            if self.averaged is not None and finite:
                follow(self.averaged, self.policy, self.algorithm.teacher_follows)
        if record is not None:
            for other in self.world.gathered(record.episodes):
                record.merge(other)
        statistics.merge(self.world)
        return statistics.summary(loss=float(np.mean(losses)) if losses else 0.0,
                                  gradient_norm=float(np.mean(norms)) if norms else 0.0,
                                  updates=len(losses) - (not finite), updated=bool(losses) and finite,
                                  weights_finite=self._weights_are_finite())

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

    def _gradient(self, episodes: Sequence[CreditedEpisode], old: Mapping[str, _Old], statistics: TokenStatistics,
                  record: TokenRecord | None, step: int) -> tuple[float, float]:
        """Put the gradient of a mini-batch into the parameters, clipped; returns the loss and the norm before that."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.algorithm.weighs_batch and not self.algorithm.fixes_weights:
            self._fix_weights(episodes)
        count = self.algorithm.denominator(len(episodes), sum(one.episode.generated_count for one in episodes))
        loss = 0.0
        for part, counts in self._own_parts(episodes):
            chosen = [episodes[i] for i in part]
            if counts:
                loss += self._accumulate(chosen, count, statistics, record, old, step)
            else:
                self._accumulate(chosen, math.inf, TokenStatistics(), None, old, step)
        if not self.policy.sharded:
            self.world.sum_gradients(self.policy.model.parameters())
        norm: Any = torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), self.settings.clip_norm)
        if self.policy.sharded:
            norm = norm.full_tensor()
        return sum(self.world.gathered(loss)), float(norm)

    def _own_parts(self, episodes: Sequence[CreditedEpisode]) -> list[tuple[list[int], bool]]:
        """This process's micro-batches, and whether each counts.

        Where weights are sharded all processes have to take the same passes, with a teacher or without: one that has
        no micro-batch of its own in a round repeats another's, which does not count.
        """
        parts, rank, size = self.scorer.micro_batches(episodes), self.world.rank, self.world.size
        if not self.policy.sharded:
            return [(part, True) for part in parts[rank::size]]
        own = []
        for taught in (True, False):
            alike = [part for part in parts if (episodes[part[0]].teacher_prompt is not None) == taught]
            own += [(alike[at + rank], True) if at + rank < len(alike) else (alike[at], False)
                    for at in range(0, len(alike), size)]
        return own

    def _take_step(self, step: int, finite: bool) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * learning_rate_factor(self.settings, step)
        if finite:
            with self.policy.seconds.on("optimizer"):
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _weights_are_finite(self) -> bool:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm: Any = torch.nn.utils.get_total_norm(parameters)
        return bool((norm.full_tensor() if self.policy.sharded else norm).isfinite())

    @torch.no_grad()
    def _old_logprobs(self, episodes: Sequence[CreditedEpisode], statistics: TokenStatistics) -> dict[str, _Old]:
        """By the episodes' ids: what ratios are taken against, and what the gaps between it and the sampler weigh."""
        s = self.settings
        old = {one.key: _Old(torch.from_numpy(one.episode.logprobs), None) for one in episodes}
        if len(old) < len(episodes):
            raise ValueError("two episodes of one update have the same id (step, group, sample)")
        if s.old_logprobs == "sampler":
            return old
        mine: dict[str, _Old] = {}
        for part, counts in self._own_parts(episodes):
            chosen = [episodes[i] for i in part]
            lengths = [one.episode.generated_count for one in chosen]
            batch = make_batch([one.readings[0] for one in chosen]).to(self.policy.device)
            logprobs = self.policy.scores(batch).logprobs.cpu()
            if not counts:
                continue
            sampler = torch.cat([old[one.key].logprobs for one in chosen]).to(logprobs)
            weights, ratios = importance(logprobs, sampler, lengths, s.importance_cap, s.importance, s.importance_level)
            statistics.add(importance=weights, sampler_ratio=ratios)
            for one, logprob, weight in zip(chosen, torch.split(logprobs, lengths), torch.split(weights, lengths)):
                mine[one.key] = _Old(logprob, weight)
        return {key: one for part in self.world.gathered(mine) for key, one in part.items()}

    def _accumulate(self, part: Sequence[CreditedEpisode], count: float, statistics: TokenStatistics,
                    record: TokenRecord | None, before: Mapping[str, _Old], step: int) -> float:
        """Add a micro-batch's gradient to the parameters'; returns its share of the loss."""
        scores, batch = self.scorer.scores(part)
        _, mask = to_rows(scores.logprobs, batch, len(part))

        def rows(flat: Tensor) -> Tensor:
            return to_rows(flat, batch, len(part))[0]

        old = torch.cat([before[one.key].logprobs for one in part]).to(scores.logprobs)
        credit = torch.from_numpy(np.concatenate([one.token_credit for one in part])).to(scores.logprobs)
        advantages = self.algorithm.token_advantages(scores, credit).detach()
        weights = self._weights(part, scores)
        factors = self._factors(part, weights, before)
        loss, details = policy_loss(rows(scores.logprobs), rows(old), rows(advantages), mask,
                                    None if factors is None else rows(factors), denominator=count,
                                    **self.algorithm.loss_settings)
        added = self.algorithm.token_loss(scores, self._start_logprobs(part, old), step)
        if added is not None:
            loss = loss + mean_over_tokens(rows(added), mask, self.algorithm.normalize, count)
        # FSDP takes the mean over the processes where we need the sum.
        scaled = loss * self.world.size if self.policy.sharded else loss
        with self.policy.seconds.on("student"):
            scaled.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        taken = {"advantage": advantages, "ratio": details["ratio"][mask], "student_logprob": scores.logprobs}
        divergence = self.algorithm.divergence_of(scores)
        if weights is not None and divergence is not None:
            taken |= {"kl": divergence, "weight": weights}
        if scores.teacher_logprob is not None:
            taken["teacher_logprob"] = scores.teacher_logprob
        assert scores.entropy is not None, "it is among every algorithm's measures"
        statistics.add(entropy=scores.entropy, clipped=details["clipped"][mask], drift=(scores.logprobs - old).abs(),
                       **{name: taken[name] for name in ("ratio", "kl", "weight") if name in taken})
        if record is not None:
            record.add(part, {name: value.detach().float().cpu().numpy() for name, value in taken.items()})
        return float(loss.detach())

    def _weights(self, part: Sequence[CreditedEpisode], scores: TokenScores) -> Tensor | None:
        """The weights of tokens by the teacher's divergence, [generated]; None without a teacher."""
        divergence = self.algorithm.divergence_of(scores)
        if divergence is None:
            return None
        fixed = [one.weights for one in part if one.weights is not None]
        if fixed:
            return torch.from_numpy(np.concatenate(fixed)).to(divergence)
        return self.algorithm.weigh_tokens(divergence.detach(), torch.ones_like(divergence, dtype=torch.bool))

    def _factors(self, part: Sequence[CreditedEpisode], weights: Tensor | None,
                 before: Mapping[str, _Old]) -> Tensor | None:
        """Weights times what the gaps between trainer and sampler weigh, [generated]; None for 1."""
        gaps = [gap for one in part if (gap := before[one.key].importance) is not None]
        if not gaps:
            return weights
        gap = torch.cat(gaps).to(self.policy.device)
        return gap if weights is None else weights * gap

    def _start_logprobs(self, part: Sequence[CreditedEpisode], like: Tensor) -> Tensor | None:
        if not self.algorithm.reference_kl:
            return None
        return torch.from_numpy(np.concatenate(self.scorer.start_logprobs(part))).to(like)


def learning_rate_factor(settings: TrainerConfig, step: int) -> float:
    """A linear warm-up, then constant or linearly down to 0 behind the last step."""
    rising = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    return rising if settings.schedule == "constant" else rising * (1.0 - step / settings.steps)
