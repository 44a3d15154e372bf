"""SC-GRPO through verl's own registries, batch and loss, held against ours. Real verl, on the CPU: `make verl`."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from turncredit.agents.tiny import learn_tokenizer, make_tiny_model
from turncredit.config import TinyModel
from turncredit.errors import UserError
from turncredit.trainer.algorithms.sc_grpo import SCGRPO
from turncredit.trainer.credit import diversity_advantage, grpo_advantages, kl_weight, token_kl
from turncredit.trainer.loss import policy_loss

pytest.importorskip("verl", reason="verl is not installed: `make verl` installs it and runs this")

from omegaconf import OmegaConf
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorData
from verl import DataProto
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.utils import tensordict_utils as tu
from verl.workers.config import ActorConfig
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine.utils import postprocess_batch_func, prepare_micro_batches
from verl.workers.utils.losses import ppo_loss

from turncredit.integrations.verl import SelfConditioned, actor_loss, sampled_kl

G, TOKENS = 4, 10
PROMPTS = [[{"role": "system", "content": "Answer."}, {"role": "user", "content": f"What is {n} + 2?"}] for n in (1, 2)]
# The first group is partly solved, nobody solved the second.
REWARDS = [1.0, 0.0, 1.0, 0.0, 0.0, 0.2, 0.0, 0.0]


@pytest.fixture(scope="module")
def policy() -> tuple[Any, Any]:
    tokenizer = learn_tokenizer(["Answer. What is + 2? Agent: Here is how this task was worked on before."], 330)
    model = make_tiny_model(TinyModel(width=32, layers=2, heads=2, context=512), tokenizer, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2.0  # a model as it is made hardly looks at its context
    return tokenizer, model.eval()


def logprobs_and_logits(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Of the responses, [episodes, tokens] and [episodes, tokens, vocabulary], as an actor of verl's computes them."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                   position_ids=batch["position_ids"]).logits[:, -TOKENS - 1:-1]
    return logits.log_softmax(-1).gather(2, batch["responses"][..., None])[..., 0], logits


@pytest.fixture
def data(policy: Any) -> DataProto:
    """Two groups of four; each response has a tool's answer in it, and they differ in length."""
    tokenizer, model = policy
    rng = np.random.default_rng(3)
    ids = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
           for prompt in PROMPTS for _ in range(G)]
    width = max(map(len, ids)) + 3
    prompts = torch.tensor([[tokenizer.pad_token_id or 0] * (width - len(one)) + list(one) for one in ids])
    responses = torch.from_numpy(rng.integers(10, len(tokenizer), (2 * G, TOKENS)))
    there = torch.arange(TOKENS)[None] < torch.tensor([10, 7, 9, 10, 6, 10, 8, 10])[:, None]
    mask = there.clone()
    mask[:, 3:5] = False
    attention = torch.cat([torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in ids]), there.long()], 1)
    rewards = torch.zeros(2 * G, TOKENS)
    rewards[:, 5] = torch.tensor(REWARDS)
    tensors = {"input_ids": torch.cat([prompts, responses], 1), "attention_mask": attention, "prompts": prompts,
               "position_ids": (attention.cumsum(1) - 1).clamp_min(0), "responses": responses,
               "response_mask": mask.long(), "token_level_rewards": rewards}
    with torch.no_grad():
        tensors["old_log_probs"] = logprobs_and_logits(model, tensors)[0]
    return DataProto.from_dict(tensors, non_tensors={
        "uid": np.array(["a"] * G + ["b"] * G, dtype=object),
        "raw_prompt": np.array([prompt for prompt in PROMPTS for _ in range(G)], dtype=object)})


def teacher_logprobs(teacher: SelfConditioned, model: Any) -> Tensor:
    with torch.no_grad():
        return logprobs_and_logits(model, teacher.batch().batch)[0]


def test_the_advantages_that_verl_computes_are_the_paper_s(policy: Any, data: DataProto) -> None:
    tokenizer, model = policy
    teacher = SelfConditioned(data, tokenizer, seed=5)
    scores = teacher_logprobs(teacher, model)
    with teacher.scored(scores):
        advantages = compute_advantage(data, adv_estimator="sc_grpo").batch["advantages"]

    mask = data.batch["response_mask"].bool()
    assert (advantages[~mask] == 0).all(), "a tool's tokens and padding earn nothing"
    assert all(r in (0, 2) and r != i for i, r in enumerate(teacher.references[:G])), "another correct response"
    reference = next(r for r in teacher.references[G:] if r is not None)
    assert teacher.references[reference] is None
    active = mask.clone()
    active[reference] = False
    weights = torch.where(active, kl_weight(sampled_kl(data.batch["old_log_probs"], scores), active), 1.0)
    earned = grpo_advantages(REWARDS[:G])
    for i in range(G):
        assert torch.allclose(advantages[i][mask[i]], (weights[i] * earned[i])[mask[i]].float(), atol=1e-6)
    unsolved = 0.1 * diversity_advantage([weights[i][mask[i]].numpy() for i in range(G, 2 * G)],
                                         mask[G:].sum(1).tolist(), reference - G)
    for i in range(G, 2 * G):
        assert torch.allclose(advantages[i][mask[i]], (weights[i] * unsolved[i - G])[mask[i]].float(), atol=1e-5)
    assert advantages[:G].abs().max() > 0.1 and advantages[G:].abs().max() > 0.01


def actor_measures(model: Any, rows: TensorDict, loss: Any, remove_padding: bool, size: int | None) -> TensorDict:
    """What verl's FSDP actor does with a batch on its way through the model, without the devices that it asks for.

    Args:
        size: rows of a micro-batch; None for one that verl composes by length.
    """
    actor = object.__new__(FSDPEngineWithLMHead)
    actor.pad_to_length, actor.use_ulysses_sp, actor.module = False, False, model
    tu.assign_non_tensor(rows, use_remove_padding=remove_padding, use_dynamic_bsz=size is None)
    bound: dict[str, Any] = {"max_token_len_per_gpu": 200} if size is None else {"micro_batch_size_per_gpu": size}
    tu.assign_non_tensor(rows, **bound)
    batches, indices = prepare_micro_batches(rows)
    assert len(batches) > 1
    given = []
    for batch in batches:
        inputs, arguments = actor.prepare_model_inputs(batch)
        with torch.no_grad():
            if remove_padding:  # verl's attention tells packed rows apart by their positions; without it, row by row
                ends = batch["input_ids"].offsets().tolist()
                logits = torch.cat([model(inputs["input_ids"][:, a:b]).logits for a, b in itertools.pairwise(ends)], 1)
            else:
                logits = model(**inputs).logits
            found = actor.prepare_model_outputs(SimpleNamespace(logits=logits), arguments, batch, loss)
            zero, metrics = loss(model_output=found, data=batch, dp_group=None)
        given.append({"model_output": found, "loss": float(zero), "metrics": metrics})
    out = postprocess_batch_func(given, indices, rows)
    assert out["loss"] == [0.0] * len(batches)
    return tu.get_tensordict(out["model_output"])


@pytest.mark.parametrize("remove_padding", [False, True])
@pytest.mark.parametrize("size", [2, None])
def test_the_divergence_over_the_whole_vocabulary_is_measured_in_the_actor(
        policy: Any, data: DataProto, remove_padding: bool, size: int | None) -> None:
    tokenizer, model = policy
    teacher = SelfConditioned(data, tokenizer, seed=5)
    found = actor_measures(model, teacher.pairs(), partial(actor_loss, config=None), remove_padding, size)
    with teacher.measured(found):
        advantages = compute_advantage(data, adv_estimator="sc_grpo").batch["advantages"]

    with torch.no_grad():
        expected = token_kl(logprobs_and_logits(model, teacher.batch().batch)[1],
                            logprobs_and_logits(model, data.batch)[1])
    there, mask = data.batch["attention_mask"][:, -TOKENS:].bool(), data.batch["response_mask"].bool()
    assert teacher._divergence is not None
    assert torch.allclose(teacher._divergence[there], expected[there], atol=1e-5)
    active = mask & torch.tensor([r is not None for r in teacher.references])[:, None]
    assert expected[active].mean() > 1e-3
    weights = torch.where(active, kl_weight(expected, active), 1.0)
    for i, earned in enumerate(grpo_advantages(REWARDS[:G])):
        assert torch.allclose(advantages[i][mask[i]], (weights[i] * earned)[mask[i]].float(), atol=1e-4)


def test_an_actor_that_measures_nothing_is_refused(policy: Any, data: DataProto) -> None:
    teacher = SelfConditioned(data, policy[0], seed=5)
    with pytest.raises(UserError, match=r"the actor measured no divergence: call actor.set_loss_fn"), (
            teacher.measured(TensorDict({}, batch_size=[4 * G]))):
        pass
    with pytest.raises(UserError, match=r"an actor's worker has 7 of \d+ tokens: .* ulysses_sequence_parallel_size to"):
        actor_loss(None, student_logits=torch.zeros(1, 7, 3), data=teacher.pairs())


def test_the_teacher_reads_the_reference_and_the_same_response(policy: Any, data: DataProto) -> None:
    tokenizer, _ = policy
    teacher = SelfConditioned(data, tokenizer, seed=5)
    batch = teacher.batch().batch
    assert torch.equal(batch["responses"], data.batch["responses"]) and len(batch["input_ids"]) == 2 * G
    for i, reference in enumerate(teacher.references):
        read = tokenizer.decode(batch["input_ids"][i, :-TOKENS][batch["attention_mask"][i, :-TOKENS].bool()])
        own = tokenizer.decode(data.batch["input_ids"][i, :-TOKENS][data.batch["attention_mask"][i, :-TOKENS].bool()])
        if reference is None:
            assert read == own
        else:
            first = tokenizer.decode(data.batch["responses"][reference, :3], skip_special_tokens=True).strip()
            assert f"Agent: {first}" in read and "Tool: " in read and "Here is how this task" in read


def nested(values: Tensor, there: Tensor) -> Tensor:
    return torch.nested.as_nested_tensor([row[kept] for row, kept in zip(values, there)], layout=torch.jagged)


def test_verl_s_actor_takes_the_step_that_ours_would(policy: Any, data: DataProto) -> None:
    """Through verl's own ppo_loss, which reads a micro-batch without padding; the gradient is ours."""
    tokenizer, model = policy
    teacher = SelfConditioned(data, tokenizer, seed=5)
    scores = teacher_logprobs(teacher, model)
    with teacher.scored(scores):
        data = compute_advantage(data, adv_estimator="sc_grpo")
    batch, mask = data.batch, data.batch["response_mask"].bool()
    there = batch["attention_mask"][:, -TOKENS:].bool()
    old = batch["old_log_probs"] + 0.3 * torch.randn(batch["old_log_probs"].shape,
                                                     generator=torch.Generator().manual_seed(1))  # some are clipped
    config = ActorConfig(strategy="fsdp", rollout_n=G, ppo_micro_batch_size_per_gpu=8, clip_ratio=0.2,
                         clip_ratio_low=0.2, clip_ratio_high=0.28, loss_agg_mode="seq-mean-token-mean",
                         policy_loss=OmegaConf.create({"loss_mode": "sc_grpo"}))

    log_probs, _ = logprobs_and_logits(model, batch)
    log_probs.retain_grad()
    ours, statistics = policy_loss(log_probs, old, batch["advantages"], mask, clip_low=0.2, clip_high=0.28)
    ours.backward()
    assert log_probs.grad is not None and statistics["clipped"].any()
    expected, log_probs.grad = log_probs.grad.clone(), None

    whole = torch.cat([batch["attention_mask"][:, :-TOKENS].bool(), there], 1)
    log_probs, _ = logprobs_and_logits(model, batch)
    log_probs.retain_grad()
    # What an actor gives back: a logprob for each token of the sequence, that of the next one at each place.
    shifted = torch.cat([torch.zeros(2 * G, batch["prompts"].shape[1] - 1), log_probs, torch.zeros(2 * G, 1)], 1)
    given = TensorDict({"prompts": nested(batch["prompts"], batch["attention_mask"][:, :-TOKENS].bool()),
                        "responses": nested(batch["responses"], there),
                        "input_ids": nested(batch["input_ids"], whole),
                        "attention_mask": batch["attention_mask"],
                        **{name: nested(values, there) for name, values in (
                            ("response_mask", batch["response_mask"]), ("old_log_probs", old),
                            ("advantages", batch["advantages"]))}}, batch_size=[2 * G])
    for name, value in (("dp_size", 1), ("batch_num_tokens", None), ("global_batch_size", None)):
        given[name] = NonTensorData(value)
    loss, metrics = ppo_loss(config, {"log_probs": nested(shifted, whole)}, given)
    loss.backward()
    assert torch.allclose(loss, ours.detach(), atol=1e-6)
    assert torch.allclose(log_probs.grad, expected, atol=1e-7)
    assert (log_probs.grad[~mask] == 0).all() and "actor/pg_loss" in metrics


def test_the_estimate_from_sampled_tokens_has_no_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 40, generator=generator)
    true = float(token_kl(teacher, student))
    drawn = torch.multinomial(student.softmax(0), 400_000, True, generator=generator)
    estimates = sampled_kl(student.log_softmax(0)[drawn], teacher.log_softmax(0)[drawn])
    assert (estimates >= 0).all() and true > 0.2
    assert abs(float(estimates.mean()) - true) < 4 * float(estimates.std()) / 400_000 ** 0.5


def test_what_is_unknown_earns_nothing_and_is_in_no_mean(policy: Any, data: DataProto) -> None:
    tokenizer, model = policy
    data.batch["token_level_rewards"][1, 5] = float("nan")
    teacher = SelfConditioned(data, tokenizer, seed=5)
    with teacher.scored(teacher_logprobs(teacher, model)):
        advantages = compute_advantage(data, adv_estimator="sc_grpo").batch["advantages"]
    assert (advantages[1] == 0).all() and teacher.references[1] is None
    assert np.allclose(teacher.groups[0][1].advantages, grpo_advantages([1, 1, 0]))


def test_without_a_teacher_nothing_is_credited(policy: Any, data: DataProto) -> None:
    with pytest.raises(UserError, match="no teacher has scored this batch"):
        compute_advantage(data, adv_estimator="sc_grpo")
    del data.non_tensor_batch["raw_prompt"]
    with pytest.raises(UserError, match=r"no 'raw_prompt', .* set data.return_raw_chat=True"):
        SelfConditioned(data, policy[0])
    assert SCGRPO().alpha == 0.1


def test_verl_registers_them_by_itself_in_each_process() -> None:
    code = ("import verl; from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn;"
            "print(get_adv_estimator_fn('sc_grpo').__module__, get_policy_loss_fn('sc_grpo').__module__)")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True,
                          env=os.environ | {"VERL_USE_EXTERNAL_MODULES": "turncredit.integrations.verl"})
    assert told.stdout.split()[-2:] == ["turncredit.integrations.verl"] * 2
    assert get_adv_estimator_fn("sc_grpo") and get_policy_loss_fn("sc_grpo")
