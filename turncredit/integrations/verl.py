"""SC-GRPO for people who train with verl: an advantage and a policy loss for its registries. Needs verl 0.9.

    algorithm.adv_estimator=sc_grpo  actor_rollout_ref.actor.policy_loss.loss_mode=sc_grpo

with VERL_USE_EXTERNAL_MODULES=turncredit.integrations.verl, which registers both in the driver and in every worker.
Between verl's log-probs and its advantages stands the teacher (arXiv 2606.18810, section 5). Its divergence over the
whole vocabulary is computed in the actor's workers (FSDP, without sequence parallelism), which read each response
behind its own prompt and behind the teacher's:

    actor.set_loss_fn(partial(actor_loss, config=actor_config))      # once: verl's ppo_loss, and the divergence
    …
    teacher = SelfConditioned(data, tokenizer, seed=step)
    found = actor.compute_log_prob(teacher.pairs())
    with teacher.measured(found):
        data = compute_advantage(data, adv_estimator="sc_grpo")

Where the actor is another one, D is estimated from the logprobs of the sampled tokens, without bias and with noise
(`sampled_kl`):

    scores = actor.compute_log_prob(teacher.batch())      # the same weights, the same responses, a longer prompt
    with teacher.scored(scores.batch["old_log_probs"]):
        data = compute_advantage(data, adv_estimator="sc_grpo")

One thing differs from the paper: the percentile in f(D) is over the batch, not the micro-batch, since weights are part
of the advantages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from turncredit.episode import Turn
from turncredit.errors import UserError
from turncredit.integrations.reference import conditioned_prompt
from turncredit.seeds import seed_of
from turncredit.trainer.algorithms.base import GroupCredit
from turncredit.trainer.algorithms.sc_grpo import SCGRPO
from turncredit.trainer.credit import token_kl
from turncredit.trainer.teacher import GUIDE, turns_text

try:
    from tensordict import TensorDict
    from verl import DataProto
    from verl.trainer.ppo.core_algos import agg_loss, register_adv_est, register_policy_loss
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.losses import ppo_loss
    from verl.workers.utils.padding import left_right_2_no_padding, no_padding_2_padding
except ImportError as error:
    raise UserError("verl is not installed: it wants an older transformers than the rest, so install it in an "
                    "environment of its own, turncredit beside it by --no-deps (`make verl` makes one)") from error

__all__ = ["SelfConditioned", "actor_loss", "sampled_kl", "sc_grpo_advantage", "sc_grpo_loss"]

NAME = "sc_grpo"
DIVERGENCE = "divergence"  # what workers call it
CHUNK = 256  # tokens whose distributions are compared at once
_scored: ContextVar[SelfConditioned | None] = ContextVar("scored", default=None)


def sampled_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """An estimate of KL(teacher || student) from the logprobs of tokens that the student sampled.

    With r = teacher / student it is r log r - r + 1: never negative, and its mean over the student's tokens is the
    divergence. From one token it is a rough one.

    Args:
        student, teacher: logprobs, of the same shape.
    """
    log_ratio = (teacher - student).float().clamp(-20, 20)
    return (log_ratio.exp() * log_ratio - torch.expm1(log_ratio)).clamp_min(0.0)


class SelfConditioned:
    """The teacher of one batch: which trajectory each response's teacher reads, and what it makes of the response.

    Args:
        data: with `responses`, `response_mask`, `attention_mask`, `token_level_rewards` and `old_log_probs`
            [episodes, tokens], `uid` of the groups, and `raw_prompt`, the messages of each prompt
            (`data.return_raw_chat=True`). A reward that is NaN is unknown: its episode earns nothing.
        tokenizer: the policy's.
        algorithm: SC-GRPO's settings; clipping and normalisation are verl's actor's.
        seed: of the draws; another one for each step.
        solved_at: an episode is correct whose reward reaches it.
        guide: the instruction that introduces the reference in the teacher's system prompt.
        reference_tokens: the budget of the reference; a longer one is cut in the middle.
    Raises:
        UserError: the batch lacks one of these.
    """

    def __init__(self, data: DataProto, tokenizer: Any, algorithm: SCGRPO | None = None, seed: int = 0,
                 solved_at: float = 1.0, guide: str = GUIDE, reference_tokens: int = 2048) -> None:
        for name, there, mend in (("raw_prompt", data.non_tensor_batch, "set data.return_raw_chat=True"),
                                  ("uid", data.non_tensor_batch, "give the rows of a group one uid"),
                                  ("token_level_rewards", data.batch, "compute rewards first"),
                                  ("old_log_probs", data.batch, "compute old_log_probs first")):
            if name not in there:
                raise UserError(f"the batch has no {name!r}, which SC-GRPO's teacher needs: {mend}")
        self.data, self.tokenizer, self.algorithm = data, tokenizer, algorithm or SCGRPO()
        self.guide, self.reference_tokens = guide, reference_tokens
        self.mask = data.batch["response_mask"].bool()
        self.rewards = data.batch["token_level_rewards"].sum(-1).double().cpu().numpy()  # [episodes]
        self.groups = self._credited(seed, solved_at)
        self.references: list[int | None] = [None] * len(self.rewards)
        for rows, group in self.groups:
            for row, reference in zip(rows, group.references):
                self.references[row] = None if reference is None else rows[reference]
        self._divergence: Tensor | None = None

    def batch(self) -> DataProto:
        """What the teacher reads: conditioned prompts and the same responses; the own prompt where there is no teacher.

        Returns:
            As many rows as the batch has, in its order: input_ids, attention_mask, position_ids
            [episodes, prompt + response], prompts, responses and response_mask.
        """
        texts = {r: self._trajectory(r) for r in set(self.references) if r is not None}
        prompts = []
        for messages, reference in zip(self.data.non_tensor_batch["raw_prompt"], self.references):
            read: Any = list(messages)
            if reference is not None:
                read = conditioned_prompt(self.tokenizer, read, self.guide, texts[reference], self.reference_tokens)
            prompts.append(self.tokenizer.apply_chat_template(read, add_generation_prompt=True, return_dict=False))
        responses = self.data.batch["responses"]
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        left = torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in prompts], device=responses.device)
        is_prompt = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts],
                                 device=responses.device)
        attention = torch.cat([is_prompt, self.data.batch["attention_mask"][:, -responses.shape[1]:]], 1)
        return DataProto.from_dict({
            "input_ids": torch.cat([left, responses], 1), "attention_mask": attention,
            "position_ids": (attention.cumsum(1) - 1).clamp_min(0), "prompts": left, "responses": responses,
            "response_mask": self.data.batch["response_mask"]}, meta_info=dict(self.data.meta_info))

    def pairs(self, temperature: float = 1.0) -> TensorDict:
        """What an actor's workers read to measure the divergence: each response twice, own prompt and teacher's.

        Args:
            temperature: by which logits are divided, as in the rollout.
        Returns:
            Twice as many rows as the batch has, without padding, as verl's workers take them.
        """
        own, taught = self.data.batch, self.batch().batch
        width = max(own["prompts"].shape[1], taught["prompts"].shape[1])

        def wide(values: Tensor, prompt: int) -> Tensor:
            return torch.nn.functional.pad(values, (width - prompt, 0))

        read = {name: torch.stack([wide(own[name], own["prompts"].shape[1]),
                                   wide(taught[name], taught["prompts"].shape[1])], 1).flatten(0, 1)
                for name in ("input_ids", "attention_mask", "position_ids", "prompts")}
        read |= {name: own[name].repeat_interleave(2, 0) for name in ("responses", "response_mask")}
        rows: TensorDict = left_right_2_no_padding(TensorDict(read, batch_size=[2 * len(self.rewards)]))
        tu.assign_non_tensor(rows, temperature=temperature, calculate_entropy=False, compute_loss=True,
                             use_fused_kernels=False, force_group_size=2,  # a pair stays together
                             distillation_use_topk=True, distillation_only=True)  # verl's names for "hand over logits"
        return rows

    @contextmanager
    def measured(self, found: TensorDict) -> Iterator[None]:
        """Within it the advantage estimator "sc_grpo" credits this batch.

        Args:
            found: what `actor.compute_log_prob(pairs())` gave.
        Raises:
            UserError: the actor's loss is not `actor_loss`.
        """
        if DIVERGENCE not in found.keys():  # noqa: SIM118  # a TensorDict is iterated by rows
            raise UserError("the actor measured no divergence: call actor.set_loss_fn(partial(actor_loss, config=…)) "
                            "once")
        self._divergence = no_padding_2_padding(found[DIVERGENCE], self.pairs())[::2].to(self.mask.device)
        token = _scored.set(self)
        try:
            yield
        finally:
            _scored.reset(token)

    @contextmanager
    def scored(self, log_probs: Tensor) -> Iterator[None]:
        """Within it the advantage estimator "sc_grpo" credits this batch.

        Args:
            log_probs: [episodes, tokens], of the responses behind the prompts of `batch`.
        """
        if log_probs.shape != self.mask.shape:
            raise UserError(f"the teacher's logprobs are {list(log_probs.shape)} and the responses "
                            f"{list(self.mask.shape)}: score the rows of batch(), in their order")
        self._divergence = sampled_kl(self.data.batch["old_log_probs"], log_probs)
        token = _scored.set(self)
        try:
            yield
        finally:
            _scored.reset(token)

    def advantages(self) -> Tensor:
        """f(D) times each episode's advantage, [episodes, tokens]; 0 outside the mask."""
        assert self._divergence is not None, "within `measured` or `scored`"
        has_teacher = torch.tensor([r is not None for r in self.references], device=self.mask.device)
        active = self.mask & has_teacher[:, None]
        weights = torch.ones_like(self._divergence)
        weights[active] = self.algorithm.weigh_tokens(self._divergence[active],
                                                      torch.ones_like(self._divergence[active], dtype=torch.bool))
        earned = torch.zeros(len(self.rewards), dtype=torch.float32, device=self.mask.device)
        for rows, group in self.groups:
            values = group.advantages
            if group.advantages_from_weights is not None:
                values = group.advantages_from_weights(
                    [weights[i][self.mask[i]].cpu().numpy() if self.references[i] is not None else None for i in rows])
            earned[rows] = torch.as_tensor(values, dtype=torch.float32, device=self.mask.device)
        return torch.where(self.mask, earned[:, None] * weights, 0.0)

    def _credited(self, seed: int, solved_at: float) -> list[tuple[list[int], GroupCredit]]:
        """The rows of each group that have a reward, and what they earn."""
        lengths = self.mask.sum(1).tolist()
        rows_of: dict[Any, list[int]] = {}
        for row, uid in enumerate(self.data.non_tensor_batch["uid"]):
            if not np.isnan(self.rewards[row]):
                rows_of.setdefault(uid, []).append(row)
        return [(rows, self.algorithm.score_group(
            [float(self.rewards[i]) for i in rows], [bool(self.rewards[i] >= solved_at) for i in rows],
            [lengths[i] for i in rows], seed_of(seed, "credit", number)))
            for number, rows in enumerate(rows_of.values())]

    def _trajectory(self, row: int) -> str:
        """A response as text: what the policy wrote, and what stood between."""
        length = int(self.data.batch["attention_mask"][row, -self.mask.shape[1]:].sum())
        ids, mask = self.data.batch["responses"][row, :length].tolist(), self.mask[row, :length].tolist()
        turns: list[tuple[str, str]] = []
        for wrote, run in groupby(zip(mask, ids), key=lambda one: bool(one[0])):
            text = str(self.tokenizer.decode([i for _, i in run], skip_special_tokens=True)).strip()
            if wrote:
                turns.append((text, ""))
            elif turns:
                turns[-1] = (turns[-1][0], text)
        return turns_text([Turn(action, answer, "tool") for action, answer in turns])


def actor_loss(config: Any, model_output: Any = None, data: Any = None, dp_group: Any = None,
               student_logits: Tensor | None = None, data_format: str = "thd") -> Any:
    """verl's `ppo_loss` for an actor that also measures SC-GRPO's divergence, where it is asked to by `pairs`.

    Args:
        config: the actor's.
        student_logits: [1, tokens, vocabulary], of a micro-batch without padding; an actor hands them over for `pairs`.
    Raises:
        UserError: the sequence is shared out over several GPUs.
    """
    if student_logits is not None:
        return {DIVERGENCE: _divergences(student_logits[0], data)[None]}
    if DIVERGENCE in (model_output or {}):
        return torch.zeros((), device=model_output[DIVERGENCE].device), {}
    return ppo_loss(config, model_output, data, dp_group)


def _divergences(logits: Tensor, data: Any) -> Tensor:
    """KL(teacher || student) where an own prompt's row predicts a token of its response, [tokens]; 0 elsewhere.

    Args:
        logits: [tokens, vocabulary], of rows in pairs.
    """
    ends = data["input_ids"].offsets().diff().cumsum(0).tolist()
    if ends[-1] != len(logits):
        raise UserError(f"an actor's worker has {len(logits)} of {ends[-1]} tokens: the divergence needs whole "
                        "sequences; set ulysses_sequence_parallel_size to 1, or use SelfConditioned.batch()")
    lengths = data["attention_mask"][:, data["prompts"].shape[1]:].sum(1).tolist()
    found = torch.zeros(len(logits), device=logits.device)
    for own_end, taught_end, length in zip(ends[::2], ends[1::2], lengths[::2], strict=True):
        for first in range(0, length, CHUNK):
            count = min(CHUNK, length - first)
            own, taught = (end - length - 1 + first for end in (own_end, taught_end))
            found[own:own + count] = token_kl(logits[taught:taught + count], logits[own:own + count])
    return found


@register_adv_est(NAME)  # type: ignore[untyped-decorator]  # verl is untyped
def sc_grpo_advantage(token_level_rewards: Tensor, response_mask: Tensor, config: Any = None,
                      index: Sequence[Any] | None = None, **_others: Any) -> tuple[Tensor, Tensor]:
    """verl's advantage estimator "sc_grpo": token advantages and returns, [episodes, tokens] each.

    Raises:
        UserError: no teacher has scored this batch.
    """
    teacher = _scored.get()
    if teacher is None or teacher.mask.shape != response_mask.shape:
        raise UserError("algorithm.adv_estimator is 'sc_grpo' and no teacher has scored this batch: compute advantages "
                        "within SelfConditioned(…).measured(…), or set it to 'grpo'")
    advantages = teacher.advantages().to(token_level_rewards.device)
    return advantages, advantages


@register_policy_loss(NAME)  # type: ignore[untyped-decorator]  # verl is untyped
def sc_grpo_loss(old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, response_mask: Tensor,
                 loss_agg_mode: str = "seq-mean-token-mean", config: Any = None,
                 rollout_is_weights: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
    """verl's policy loss "sc_grpo": the clipped objective as the paper has it, without a second clip of bad ratios.

    `loss_agg_mode` is verl's; "seq-mean-token-mean" is the paper's 1/G sum 1/|o_i|.
    """
    settings: Mapping[str, Any] = config if config is not None else {}
    clip = settings.get("clip_ratio", 0.2)
    low, high = (clip if value is None else value
                 for value in (settings.get("clip_ratio_low"), settings.get("clip_ratio_high")))
    mask = response_mask.bool()
    log_ratio = torch.where(mask, log_prob - old_log_prob, 0.0).clamp(-20, 20)
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - low, 1 + high)
    objective = torch.minimum(ratio * advantages, bounded * advantages)
    if rollout_is_weights is not None:
        objective = objective * rollout_is_weights
    loss = agg_loss(loss_mat=-objective, loss_mask=response_mask, loss_agg_mode=loss_agg_mode,
                    **getattr(config, "global_batch_info", {}))
    count = mask.sum().clamp_min(1)
    return loss, {"actor/pg_clipfrac": float(((bounded * advantages < ratio * advantages) & mask).sum() / count),
                  "actor/ppo_kl": float((-log_ratio).detach().sum() / count)}
