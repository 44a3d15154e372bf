"""SC-GRPO for people who train with TRL: its GRPOTrainer, with credit for single tokens. Needs the extra `trl`.

    trainer = SCGRPOTrainer(model=…, reward_funcs=…, args=GRPOConfig(…), train_dataset=…)

Everything of TRL's stays as it is: sampling, tools and environments, rewards, advantages, clipping, normalisation.
What is added is a weight for each generated token, and an advantage for groups that nobody solved
(arXiv 2606.18810, section 5). In every loss of TRL's an advantage stands as a factor, so a token's weight times its
episode's advantage is that token's advantage, which TRL's trainer takes as [episodes, tokens].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turncredit.errors import MissingExtra, UserError
from turncredit.integrations.environment import environment_dataset, environment_factory, verdict_reward
from turncredit.integrations.reference import Messages, conditioned_prompt, reference_of
from turncredit.seeds import seed_of
from turncredit.trainer.algorithms import SCGRPO, GroupCredit
from turncredit.trainer.head import Measures, score_tokens
from turncredit.trainer.policy import refuse_unusual_head
from turncredit.trainer.teacher import GUIDE

try:
    from accelerate.utils import gather_object
    from trl import GRPOTrainer
    from trl.trainer.utils import pad
except ImportError as error:
    raise MissingExtra("trl", "trl") from error

__all__ = ["SCGRPOTrainer", "environment_dataset", "environment_factory", "verdict_reward"]

# What a divergence is computed from.
BATCH: tuple[str, ...] = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask",
                          "teacher_prompt_ids", "teacher_prompt_mask", "has_teacher")
KINDS = ("partial-solve", "solve-none", "single-solve", "all-solve", "fallback")


@dataclass(slots=True)
class _Rollout:
    """What this process has just sampled, a place for each of its episodes."""

    prompts: list[Messages | str]
    completion_ids: list[list[int]]
    tool_mask: list[list[int]] | None  # 1 at what the policy generated; None for everything
    completions: list[Any]


class SCGRPOTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """TRL's GRPOTrainer with SC-GRPO's credit.

    Takes what GRPOTrainer takes, and:

    Args:
        algorithm: SC-GRPO's settings (quantile, floor, alpha, references, …). Its clipping and normalisation are not
            used: those are TRL's `GRPOConfig`'s.
        solved_at: an episode is correct whose reward, summed over the reward functions with their weights, reaches it.
        guide: the instruction that introduces the reference in the teacher's system prompt.
        reference_tokens: the budget of the reference; a longer one is cut in the middle.
    Raises:
        UserError: a model with images, or one whose logits are no linear projection of its hidden states.
    """

    def __init__(self, *args: Any, algorithm: SCGRPO | None = None, solved_at: float = 1.0, guide: str = GUIDE,
                 reference_tokens: int = 2048, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.algorithm = algorithm or SCGRPO()
        self.solved_at, self.guide, self.reference_tokens = solved_at, guide, reference_tokens
        if self._is_vlm:
            raise UserError(f"model {type(self.model).__name__} reads images: SC-GRPO's teacher reads text alone")
        if self.algorithm.fixes_weights:
            raise UserError("algorithm.weights_from is 'sampling': in TRL's trainer weights are always the current "
                            "policy's; leave it at 'current'")
        if self.algorithm.weighs_batch:
            raise UserError("algorithm.unit is 'batch': in TRL's trainer a loss sees one micro-batch; leave it at "
                            "'micro-batch'")
        refuse_unusual_head(self._causal_model(self.model).eval())  # TRL puts it into training mode for each step
        self._rollout: _Rollout | None = None
        self._rewards = torch.zeros(0)
        self._in_loss: dict[str, Any] | None = None
        self._teacher_states = torch.zeros(0)

    # What TRL calls.

    def _generate(self, prompts: list[Any]) -> Any:
        result = super()._generate(prompts)
        _, completion_ids, tool_mask, completions, *_ = result
        self._rollout = _Rollout(prompts, completion_ids, tool_mask, completions)
        return result

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        by_function: Tensor = super()._calculate_rewards(*args, **kwargs)  # [episodes of all processes, functions]
        total = (by_function * self.reward_weights.to(by_function.device)).nansum(1)
        self._rewards = torch.where(by_function.isnan().all(1), torch.nan, total)
        return by_function

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self._add_credit(output)
        self._rollout = None
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if "has_teacher" not in inputs or not bool(inputs["has_teacher"].any()):
            return super()._compute_loss(model, inputs)  # type: ignore[no-any-return]
        self._in_loss = dict(inputs)
        try:
            self._teacher_states = self._conditioned_states(model, inputs)  # before the student's activations stand
            return super()._compute_loss(model, self._in_loss)  # type: ignore[no-any-return]
        finally:
            self._in_loss, self._teacher_states = None, torch.zeros(0)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if self._in_loss is None:
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        with self._last_states(model) as states:
            result = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        # The loss reads the advantages behind this call: so the student's states need not be computed twice.
        weights = self._token_weights(model, self._in_loss, states[0])
        self._in_loss["advantages"] = self._in_loss["advantages"][:, None] * weights
        return result

    # Credit: which groups have a teacher, and what it reads.

    def _add_credit(self, output: dict[str, Any]) -> None:
        """Put the teacher's prompts into the batch, and the advantages of groups that nobody solved."""
        rollout = self._rollout
        assert rollout is not None, "the batch was sampled by _generate"
        masks: Sequence[list[int] | None] = rollout.tool_mask or [None] * len(rollout.completions)
        texts = gather_object([reference_of(self._tokenizer, *one)
                               for one in zip(rollout.completion_ids, masks, rollout.completions)])
        lengths = gather_object([int(n) for n in self._generated(output).sum(1)])
        groups = self._credited_groups(lengths)
        first = self.accelerator.process_index * len(rollout.prompts)
        references = [reference for group in groups for reference in group.references]
        mine = references[first:first + len(rollout.prompts)]
        self._add_teacher_prompts(output, rollout, [None if r is None else texts[r] for r in mine])
        self._score_unsolved(output, groups, first)
        kinds = Counter(group.kind for group in groups)
        for kind in KINDS:
            self._metrics["train"][f"credit/{kind}"].append(kinds[kind] / len(groups))

    def _credited_groups(self, lengths: Sequence[int]) -> list[GroupCredit]:
        """Each group's credit. References are indices into the batch of all processes; an episode without a reward
        has none and is nobody's."""
        groups = []
        rewards = self._rewards.cpu().numpy()
        for start in range(0, len(rewards), self.num_generations):
            judged = [i for i in range(start, start + self.num_generations) if not np.isnan(rewards[i])]
            seed = seed_of(self.args.seed, "credit", self._step, start // self.num_generations)
            scored = self.algorithm.score_group([float(rewards[i]) for i in judged],
                                                [bool(rewards[i] >= self.solved_at) for i in judged],
                                                [lengths[i] for i in judged], seed)
            references: list[int | None] = [None] * self.num_generations
            for i, reference in zip(judged, scored.references):
                references[i - start] = None if reference is None else judged[reference]
            groups.append(GroupCredit(scored.kind, scored.advantages, references, scored.advantages_from_weights))
        return groups

    def _add_teacher_prompts(self, output: dict[str, Any], rollout: _Rollout, texts: Sequence[str | None]) -> None:
        """teacher_prompt_ids and teacher_prompt_mask [episodes, tokens], padded on the left, and has_teacher."""
        read = [prompt if text is None else
                conditioned_prompt(self._tokenizer, prompt, self.guide, text, self.reference_tokens)
                for prompt, text in zip(rollout.prompts, texts)]
        rendered, *_ = self._tokenize_prompts(read)
        limit = self.model.config.get_text_config().max_position_embeddings
        has = [text is not None and len(ids) + len(own) <= limit
               for text, ids, own in zip(texts, rendered, rollout.completion_ids)]
        ids = [torch.tensor(one if kept else one[:1]) for one, kept in zip(rendered, has)]
        device = output["prompt_ids"].device
        output["teacher_prompt_ids"] = pad(ids, self._tokenizer.pad_token_id, "left").to(device)
        output["teacher_prompt_mask"] = pad([torch.ones_like(one) for one in ids], 0, "left").to(device)
        output["has_teacher"] = torch.tensor(has, device=device)
        left_out = sum(text is not None for text in texts) - sum(has)
        self._metrics["train"]["credit/references that did not fit"].append(float(left_out))

    def _score_unsolved(self, output: dict[str, Any], groups: Sequence[GroupCredit], first: int) -> None:
        """Advantages of the groups whose advantages follow from token weights."""
        asked = [n for n, group in enumerate(groups) if group.advantages_from_weights is not None]
        if not asked:
            return
        divergence = self._divergence_now(output, groups, first)
        count = len(output["advantages"])
        for n in asked:
            start = n * self.num_generations
            judged = [i for i in range(start, start + self.num_generations) if not self._rewards[i].isnan()]
            weights = self._weights_of([divergence[i] for i in judged])
            from_weights = groups[n].advantages_from_weights
            assert from_weights is not None
            for i, advantage in zip(judged, from_weights(weights)):
                if first <= i < first + count:
                    output["advantages"][i - first] = float(advantage)

    def _weights_of(self, divergence: Sequence[NDArray[np.float32] | None]) -> list[NDArray[np.float32] | None]:
        """Token weights of a group as one unit, [generated] each; None without a teacher."""
        known = [torch.from_numpy(one) for one in divergence if one is not None]
        if not known:
            return [None] * len(divergence)
        flat = torch.cat(known)
        found = self.algorithm.weigh_tokens(flat, torch.ones_like(flat, dtype=torch.bool))
        pieces = iter(torch.split(found, [len(one) for one in known]))
        return [None if one is None else next(pieces).numpy() for one in divergence]

    @torch.no_grad()
    def _divergence_now(self, output: dict[str, Any], groups: Sequence[GroupCredit],
                        first: int) -> list[NDArray[np.float32] | None]:
        """Of each episode of an unsolved group in the batch of all processes, [generated]; None without a teacher."""
        mine: list[NDArray[np.float32] | None] = [None] * len(output["advantages"])
        rows = [i for i in range(len(mine)) if bool(output["has_teacher"][i])
                and groups[(first + i) // self.num_generations].advantages_from_weights is not None]
        size = self.args.per_device_train_batch_size
        for part in (rows[at:at + size] for at in range(0, len(rows), size)):
            batch = {name: output[name][part] for name in BATCH if name in output}
            teacher = self._conditioned_states(self.model, batch)
            student = self._states(self.model, batch["prompt_ids"], batch["prompt_mask"], batch)
            values = self._divergence(self.model, batch, student, teacher)
            counts = [int(n) for n in self._generated(batch).sum(1)]
            for i, piece in zip(part, torch.split(values, counts)):
                mine[i] = piece.float().cpu().numpy()
        return list(gather_object(mine))

    # Weights: what student and teacher say of each generated token.

    def _token_weights(self, model: Any, inputs: dict[str, Any], states: Tensor) -> Tensor:
        """The weight of each token, [episodes, tokens]; 1 where there is no teacher. The percentile is over the
        generated tokens of this micro-batch that have one."""
        has, generated = inputs["has_teacher"], self._generated(inputs)
        length = generated.shape[1]
        student = states[has, -length - 1:-1]
        with_teacher = {name: inputs[name][has] for name in BATCH if name in inputs}
        divergence = self._divergence(model, with_teacher, student, self._teacher_states)
        found = self.algorithm.weigh_tokens(divergence, torch.ones_like(divergence, dtype=torch.bool))
        weights = torch.ones(generated.shape, dtype=torch.float32, device=states.device)
        weights[generated & has[:, None]] = found.float()
        for name, values in (("credit/kl", divergence), ("credit/weight", found)):
            mean = values.float().sum() / max(len(values), 1)
            self._metrics["train"][name].append(self.accelerator.gather(mean).mean().item())
        return weights

    @torch.no_grad()
    def _divergence(self, model: Any, inputs: Mapping[str, Any], student: Tensor, teacher: Tensor) -> Tensor:
        """Of each generated token, [generated], from states [episodes, tokens, width] that predict the tokens."""
        generated = self._generated(inputs)
        head = self._causal_model(model).get_output_embeddings()
        weight, bias = head.weight, head.bias
        # The policy is what is sampled from: logits over the temperature.
        scores = score_tokens(student.detach()[generated] / self.temperature, weight,
                              inputs["completion_ids"][generated], teacher[generated] / self.temperature,
                              None if bias is None else bias / self.temperature,
                              measures=Measures({self.algorithm.divergence}))
        found = self.algorithm.divergence_of(scores)
        assert found is not None, "it is measured"
        return found

    @torch.no_grad()
    def _conditioned_states(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """The teacher's states before each token of the episodes that have one, [episodes, tokens, width]."""
        has = inputs["has_teacher"]
        mask = inputs["teacher_prompt_mask"][has]
        width = int(mask.sum(1).max())  # padding that all of them have is left out
        rows = {name: inputs[name][has] for name in ("completion_ids", "completion_mask")}
        return self._states(model, inputs["teacher_prompt_ids"][has, -width:], mask[:, -width:], rows)

    def _states(self, model: Any, prompt_ids: Tensor, prompt_mask: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The last hidden states before each token of the completions, [episodes, tokens, width]."""
        ids = torch.cat([prompt_ids, inputs["completion_ids"]], 1)
        mask = torch.cat([prompt_mask, inputs["completion_mask"]], 1)
        with self.accelerator.autocast():
            states: Tensor = self._causal_model(model).base_model(
                input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return states[:, -inputs["completion_ids"].shape[1] - 1:-1]

    @staticmethod
    def _generated(inputs: Mapping[str, Any]) -> Tensor:
        """What the policy wrote itself: no tool's answer, no padding. Bool [episodes, tokens]."""
        mask: Tensor = inputs["completion_mask"].bool()
        return mask & inputs["tool_mask"].bool() if "tool_mask" in inputs else mask

    def _causal_model(self, model: Any) -> Any:
        """Without what accelerate and peft put around it; adapters within its layers stay."""
        inner = self.accelerator.unwrap_model(model)
        return inner.get_base_model() if hasattr(inner, "get_base_model") else inner

    @contextmanager
    def _last_states(self, model: Any) -> Iterator[list[Tensor]]:
        """The last hidden states of what is computed within."""
        states: list[Tensor] = []
        hook = self._causal_model(model).base_model.register_forward_hook(
            lambda _module, _inputs, output: states.append(output.last_hidden_state.detach()))
        try:
            yield states
        finally:
            hook.remove()
