"""What a model's teacher makes of a trajectory: D, f(D) and both probabilities of every generated token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from turncredit.config import Config
from turncredit.episode import Episode
from turncredit.errors import UserError
from turncredit.heatmap.trajectories import Trajectory
from turncredit.trainer.algorithms import SCGRPO, make_algorithm
from turncredit.trainer.batch import make_batch
from turncredit.trainer.head import Measures
from turncredit.trainer.policy import Policy
from turncredit.trainer.teacher import GUIDE, reference_text, teacher_context


@dataclass(frozen=True)
class Scored:
    """A trajectory under one model. The arrays are [generated]; KL and logprobs in nats, at temperature 1."""

    model: str
    episode: Episode
    reference: str  # what the teacher read, before it was cut to its budget
    shortened: bool
    kl: NDArray[np.float64]  # D, the teacher's to the student's, over the whole vocabulary
    weight: NDArray[np.float64]  # f(D)
    student_logprob: NDArray[np.float64]
    teacher_logprob: NDArray[np.float64]
    entropy: NDArray[np.float64]
    token_text: dict[int, str]

    def as_json(self) -> dict[str, Any]:
        """Everything, a list a column."""
        generated = self.episode.token_ids[self.episode.generated].tolist()
        columns = ("kl", "weight", "student_logprob", "teacher_logprob", "entropy")
        return {"model": self.model, "reference": self.reference, "reference_shortened": self.shortened,
                "token_id": generated, "text": [self.token_text[t] for t in generated],
                **{name: getattr(self, name).tolist() for name in columns}}


@torch.no_grad()
def score(policy: Policy, config: Config, task: Trajectory, reference: Trajectory, name: str) -> Scored:
    """Score a trajectory as SC-GRPO does: by the policy as it is, and by the policy that has read the reference.

    f's c is the percentile over this trajectory's own tokens, by the run's settings where it trained with SC-GRPO.

    Args:
        policy: any model with a chat template.
        config: its run's configuration, or the defaults.
        task: whose tokens are credited.
        reference: what the teacher reads in its system prompt.
        name: of the model, for people.
    Raises:
        UserError: the trajectory does not fit into the model's context, or it has no generated tokens.
    """
    episode = task.as_episode(policy.chat)
    length, count = len(episode.token_ids), episode.generated_count
    if not count:
        raise UserError("--task has no tokens that an agent wrote: there is nothing to credit")
    if length > policy.max_context:
        raise UserError(f"--task has {length:,} tokens, and {name!r} reads {policy.max_context:,}: give a shorter one")
    told = Episode("", "", "", 0, reference.system, reference.prompt, [], list(reference.turns))
    context = teacher_context(policy.chat, episode, told, config.teacher.guide or GUIDE,
                              config.teacher.reference_tokens, policy.max_context)
    if context is None:
        raise UserError(f"--reference does not fit beside the {length:,} tokens of --task into the "
                        f"{policy.max_context:,} that {name!r} reads, not even cut: give shorter ones")
    student, teacher = ([[prompt, *episode.response]] for prompt in (episode.segments[0], context.prompt))
    read, conditioned = (make_batch(one).to(policy.device) for one in (student, teacher))
    scores = policy.scores(read, conditioned, Measures(("entropy", "kl", "teacher_logprob")))
    assert scores.kl is not None and scores.teacher_logprob is not None and scores.entropy is not None
    weights = _algorithm(config).weigh_tokens(scores.kl, torch.ones_like(scores.kl, dtype=torch.bool))
    words = {int(t): policy.chat.text([int(t)], keep_special=True) for t in np.unique(episode.token_ids)}
    kl, weight, student_logprob, teacher_logprob, entropy = (
        v.double().cpu().numpy() for v in (scores.kl, weights, scores.logprobs, scores.teacher_logprob, scores.entropy))
    return Scored(name, episode, reference_text(told), context.shortened, kl, weight, student_logprob,
                  teacher_logprob, entropy, words)


def _algorithm(config: Config) -> SCGRPO:
    settings = dict(config.algorithm)
    if settings.pop("name", "sc-grpo") != "sc-grpo":
        return SCGRPO()
    algorithm = make_algorithm("sc-grpo", **settings)
    assert isinstance(algorithm, SCGRPO)
    return algorithm
