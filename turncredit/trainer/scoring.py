"""What student, teacher and reference policy say of the tokens of credited episodes, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from turncredit.trainer.algorithms import Algorithm
from turncredit.trainer.batch import Batch, make_batch, pack_by_tokens
from turncredit.trainer.credited import CreditedEpisode
from turncredit.trainer.head import Measures, TokenScores
from turncredit.trainer.policy import Policy


class Scorer:
    """Scores episodes under the policy that is trained, and under those that it is held against.

    Args:
        policy: the student.
        algorithm: says what is measured, and which policies are needed.
        micro_batch_tokens: tokens of a row.
        start: the policy that the run started from, where the algorithm needs it.
        external_teacher: another model of the same vocabulary, where the algorithm distils one.
        averaged: an average of the policy over the steps, where the algorithm's teacher is one.
    Raises:
        ValueError: a policy that the algorithm needs is missing.
    """

    def __init__(self, policy: Policy, algorithm: Algorithm, micro_batch_tokens: int, start: Policy | None = None,
                 external_teacher: Policy | None = None, averaged: Policy | None = None) -> None:
        if algorithm.needs_start and start is None:
            raise ValueError("the algorithm holds the policy against the one that the run started from: pass `start`")
        if algorithm.teacher == "external" and external_teacher is None:
            raise ValueError("the algorithm distils another model: pass `external_teacher`")
        if algorithm.teacher == "averaged" and averaged is None:
            raise ValueError("the algorithm's teacher is an average of the policy: pass `averaged`")
        self.policy, self.algorithm, self.micro_batch_tokens, self.start = policy, algorithm, micro_batch_tokens, start
        self._teacher = {"current": None, "averaged": averaged, "start": start, "external": external_teacher}[
            algorithm.teacher]

    def scores(self, part: Sequence[CreditedEpisode]) -> tuple[TokenScores, Batch]:
        """Logprobs under the student, and the algorithm's measures, of every generated token of these episodes."""
        student, *teacher = zip(*(one.readings for one in part), strict=True)  # a teacher for all or for none
        batch, *conditioned = (make_batch(read).to(self.policy.device) for read in (student, *teacher))
        return self.policy.scores(batch, conditioned[0] if conditioned else None, self.algorithm.measures,
                                  self._teacher), batch

    def micro_batches(self, episodes: Sequence[CreditedEpisode]) -> list[list[int]]:
        """Episodes with a teacher and those without stand in different micro-batches."""
        batches = []
        for has_teacher in (True, False):
            chosen = [i for i, one in enumerate(episodes) if (one.teacher_prompt is not None) == has_teacher]
            parts = pack_by_tokens([episodes[i].readings for i in chosen], self.micro_batch_tokens)
            batches += [[chosen[i] for i in part] for part in parts]
        return batches

    @torch.no_grad()
    def weights(self, credited: Sequence[CreditedEpisode]) -> list[NDArray[np.float32] | None]:
        """The token weights of these episodes as one unit, under the weights as they stand.

        Returns:
            [generated] for each episode; None where an episode has no teacher.
        """
        weights: list[NDArray[np.float32] | None] = [None] * len(credited)
        with_teacher = [i for i, one in enumerate(credited) if one.teacher_prompt is not None]
        parts = pack_by_tokens([credited[i].readings for i in with_teacher], self.micro_batch_tokens)
        order = [with_teacher[i] for part in parts for i in part]
        if not order:
            return weights
        found = [self.algorithm.divergence_of(self.scores([credited[with_teacher[i]] for i in part])[0])
                 for part in parts]
        divergence = torch.cat([d for d in found if d is not None])
        flat = self.algorithm.weigh_tokens(divergence, torch.ones_like(divergence, dtype=torch.bool)).cpu().numpy()
        ends = np.cumsum([credited[i].episode.generated_count for i in order])
        for i, piece in zip(order, np.split(flat, ends[:-1])):
            weights[i] = piece
        return weights

    @torch.no_grad()
    def start_logprobs(self, episodes: Sequence[CreditedEpisode]) -> list[NDArray[np.float32]]:
        """The generated tokens' logprobs under the policy that the run started from, [generated] for each episode."""
        assert self.start is not None, "refused at the start"
        found: list[NDArray[np.float32]] = []
        for part in pack_by_tokens([one.readings[:1] for one in episodes], self.micro_batch_tokens):
            batch = make_batch([episodes[i].readings[0] for i in part]).to(self.start.device)
            logprobs = self.start.scores(batch, measures=Measures(())).logprobs.float().cpu().numpy()
            ends = np.cumsum([episodes[i].episode.generated_count for i in part])
            found += np.split(logprobs, ends[:-1])
        return found
