"""SC-GRPO in TRL's own trainer, held against ours on the same batch. Real TRL, on the CPU: `make trl`."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from turncredit.agents.tiny import learn_tokenizer, make_tiny_model
from turncredit.config import ModelConfig, TeacherConfig, TinyModel, TrainerConfig
from turncredit.episode import Episode, Segment
from turncredit.trainer.algorithms import make_algorithm
from turncredit.trainer.batch import make_batch
from turncredit.trainer.credit import diversity_advantage
from turncredit.trainer.credited import Credit, CreditedEpisode
from turncredit.trainer.learner import Learner
from turncredit.trainer.policy import Policy

pytest.importorskip("trl", reason="TRL is not installed: `make trl` installs it and runs this")

from datasets import Dataset
from trl import GRPOConfig
from trl.chat_template_utils import qwen3_instruct_2507_chat_template

from turncredit.integrations.environment import Environment
from turncredit.integrations.trl import SCGRPOTrainer, environment_dataset, environment_factory, verdict_reward

CALCULATOR = "turncredit/Calculator-v0"
G = 4
PROMPTS = [[{"role": "system", "content": "Answer."}, {"role": "user", "content": f"What is {n} + 2?"}] for n in (1, 2)]


def tokenizer_and_model() -> tuple[Any, Any]:
    tokenizer = learn_tokenizer(["Answer. What is + 2? Agent: Here is how this task was worked on before."], 330)
    tokenizer.chat_template = qwen3_instruct_2507_chat_template
    model = make_tiny_model(TinyModel(width=32, layers=2, heads=2, context=512), tokenizer, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2.0  # a model as it is made hardly looks at its context: its divergence would be nothing
    return tokenizer, model


def make_trainer(folder: Path, rewards: list[float | None], **settings: Any) -> SCGRPOTrainer:
    """Two groups of four; what they earn is given."""
    torch.manual_seed(0)
    tokenizer, model = tokenizer_and_model()
    options = {"loss_type": "grpo", "beta": 0.0, "max_completion_length": 12, "num_generations": G,
               "per_device_train_batch_size": 2 * G, "learning_rate": 1e-3, "save_strategy": "no", "report_to": [],
               "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True, "max_steps": 1,
               "logging_steps": 1}
    own = {name: settings.pop(name) for name in ("algorithm",) if name in settings}
    arguments = GRPOConfig(output_dir=str(folder), **(options | settings))
    return SCGRPOTrainer(model=model, processing_class=tokenizer, args=arguments,
                         reward_funcs=lambda completions, **_: rewards[:len(completions)],
                         train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]), **own)


def sampled_batch(trainer: SCGRPOTrainer) -> dict[str, torch.Tensor]:
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS for _ in range(G)])


def compare_with_ours(trainer: SCGRPOTrainer, batch: dict[str, torch.Tensor]) -> None:
    """Loss and gradient of the same batch, by TRL's trainer with our credit and by our own."""
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    theirs = gradient(trainer.model)

    policy = Policy(trainer.model, trainer.processing_class, ModelConfig(path="made"))
    learner = Learner(policy, make_algorithm("sc-grpo"), TrainerConfig(micro_batch_tokens=10_000, clip_norm=1e9),
                      TeacherConfig(), 0)
    learner.optimizer.step = lambda *_: None
    learner.optimizer.zero_grad = lambda *_, **__: None
    metrics = learner.update(Credit(same_episodes(policy, batch)), 0)
    ours = gradient(policy.model)

    assert metrics["loss"] == pytest.approx(float(loss.detach()), abs=1e-5) and abs(float(loss.detach())) > 1e-3
    assert float((theirs - ours).norm() / ours.norm()) < 1e-5


def same_episodes(policy: Policy, batch: dict[str, torch.Tensor]) -> list[CreditedEpisode]:
    """TRL's batch as our episodes with their credit."""
    credited = []
    for i in range(len(batch["advantages"])):
        prompt = Segment.text(batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].numpy(), "prompt")
        response = segments(batch, i)
        with torch.no_grad():
            logprobs = policy.scores(make_batch([[prompt, *response]])).logprobs.numpy()
        ends = np.cumsum([len(one.token_ids) for one in response if one.generated])
        pieces = iter(np.split(logprobs, ends[:-1]))
        scored = [Segment.sampled(one.token_ids, next(pieces)) if one.generated else one for one in response]
        episode = Episode("trl", str(i), "train", 0, "", "", [prompt, *scored], group=i // G, sample=i % G)
        teacher = batch["teacher_prompt_ids"][i][batch["teacher_prompt_mask"][i].bool()].numpy()
        credited.append(CreditedEpisode(episode, "", float(batch["advantages"][i]), Segment.text(teacher, "prompt")
                                        if bool(batch["has_teacher"][i]) else None))
    return credited


def segments(batch: dict[str, torch.Tensor], i: int) -> list[Segment]:
    """A completion, cut where its author changes."""
    kept = batch["completion_mask"][i].bool()
    ids, own = batch["completion_ids"][i][kept].numpy(), batch.get("tool_mask", batch["completion_mask"])[i][kept]
    runs = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(own.numpy())) + 1)
    return [Segment.sampled(ids[run], np.zeros(len(run))) if own[run[0]] else Segment.text(ids[run], "tool")
            for run in runs]


def gradient(model: Any) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("rewards", [[1, 0, 1, 0] * 2, [1, 0, 1, 0, 1, 0, 0, 0], [1, 0, 1, 1, 0.2, 0.1, 0.3, 0]],
                         ids=["partly solved", "one group falls back", "one group unsolved"])
def test_its_loss_and_gradient_are_those_of_our_own_trainer(tmp_path: Path, rewards: list[float]) -> None:
    trainer = make_trainer(tmp_path, rewards)
    compare_with_ours(trainer, sampled_batch(trainer))


def test_its_weights_change_the_gradient(tmp_path: Path) -> None:
    """Without a teacher it is TRL's own loss: the comparison above would not notice weights of 1 on both sides."""
    trainer = make_trainer(tmp_path, [1, 0, 1, 0] * 2)
    batch = sampled_batch(trainer)
    gradients = []
    for has in (batch["has_teacher"], torch.zeros_like(batch["has_teacher"])):
        trainer._compute_loss(trainer.model, batch | {"has_teacher": has}).backward()
        gradients.append(gradient(trainer.model))
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) > 0.1


def test_the_teacher_reads_another_correct_response(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [1, 0, 1, 0, 1, 1, 1, 0])
    batch = sampled_batch(trainer)
    assert batch["has_teacher"].all()
    tokenizer = trainer.processing_class
    said = [tokenizer.decode(ids[mask.bool()], skip_special_tokens=True).strip()
            for ids, mask in zip(batch["completion_ids"], batch["completion_mask"])]
    assert len(set(said)) == len(said)
    for i, (ids, mask) in enumerate(zip(batch["teacher_prompt_ids"], batch["teacher_prompt_mask"])):
        read = tokenizer.decode(ids[mask.bool()])
        correct = [0, 2] if i < G else [4, 5, 6]
        seen = [j for j in range(len(said)) if f"Agent: {said[j]}" in read]
        assert len(seen) == 1 and seen[0] in correct and seen[0] != i
        assert read.endswith(tokenizer.decode(batch["prompt_ids"][i][batch["prompt_mask"][i].bool()]).partition(
            "<|im_end|>")[2])


def test_an_unsolved_group_earns_by_its_distance_from_the_reference(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [0.0] * (2 * G))
    batch = sampled_batch(trainer)
    policy = Policy(trainer.model, trainer.processing_class, ModelConfig(path="made"))
    learner = Learner(policy, make_algorithm("sc-grpo"), TrainerConfig(), TeacherConfig(), 0)
    episodes = same_episodes(policy, batch)
    for group in (range(G), range(G, 2 * G)):
        reference = next(i for i in group if not batch["has_teacher"][i]) - group.start
        weights = learner.scorer.weights([episodes[i] for i in group])
        weights = [np.zeros(0) if w is None else w for w in weights]
        lengths = [episodes[i].episode.generated_count for i in group]
        expected = 0.1 * diversity_advantage(weights, lengths, reference)
        assert batch["advantages"][list(group)].numpy() == pytest.approx(expected, abs=1e-4)
        assert np.abs(expected).max() > 0.05


def test_an_episode_without_a_reward_is_nobodys_reference(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [1, None, 1, 0, 1, None, 0, 0])
    batch = sampled_batch(trainer)
    assert batch["has_teacher"].tolist() == [True, False, True, True, False, False, False, False]
    assert batch["advantages"][1] == batch["advantages"][5] == 0


@pytest.mark.parametrize("settings", [{"loss_type": "dapo", "epsilon_high": 0.28},
                                      {"importance_sampling_level": "sequence"}, {"loss_type": "cispo"}],
                         ids=["DAPO", "GSPO", "CISPO"])
def test_it_trains_with_each_loss_of_trl(tmp_path: Path, settings: dict[str, Any]) -> None:
    trainer = make_trainer(tmp_path, [1, 0, 1, 0] * 2, per_device_train_batch_size=G, gradient_accumulation_steps=2,
                           **settings)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    logged = Counter(dict(trainer.state.log_history[0]))
    assert logged["credit/partial-solve"] == 1.0 and 0 < logged["credit/weight"] < 1
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters()))


def solved(environment: Environment, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of an episode that calls what the environment's own expert calls."""
    observation = environment.reset(**row)
    messages = [*row["prompt"][:-1], {"role": "user", "content": observation}]
    expert = environment._env.unwrapped
    while True:
        action = expert.expert_action()
        calls = expert.tool_format.parse(action)
        if not calls:
            return [*messages, {"role": "assistant", "content": action}]
        called = {"name": calls[0].name, "arguments": dict(calls[0].arguments)}
        messages.append({"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": called}]})
        messages.append({"role": "tool", "name": called["name"],
                         "content": getattr(environment, called["name"])(**called["arguments"])})


def learn(rows: list[dict[str, Any]], factory: type[Environment]) -> tuple[Any, Any]:
    """A tiny policy that has learnt these episodes by heart."""
    environment = factory()
    episodes = [solved(environment, row) for row in rows]
    tools = [environment.calculate]
    teller = learn_tokenizer(["a"], 300)
    teller.chat_template = qwen3_instruct_2507_chat_template
    texts = [teller.apply_chat_template(messages, tools=tools, tokenize=False) for messages in episodes]
    # No token may lie across the place from which the policy writes.
    pieces = [re.split(r"(?<=<\|im_start\|>assistant\n)", text) for text in texts]
    tokenizer = learn_tokenizer([part for one in pieces for piece in one for part in piece.split("<|im_end|>")], 420)
    tokenizer.chat_template = qwen3_instruct_2507_chat_template
    model = make_tiny_model(TinyModel(width=64, layers=2, heads=4, context=1024), tokenizer, 0)
    ids = [torch.tensor([i for piece in one for i in tokenizer(piece)["input_ids"]]) for one in pieces]
    labels = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-100)
    batch = {"input_ids": labels.clamp_min(0), "attention_mask": (labels >= 0).long()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < 0.02, "the policy has not learnt its episodes by heart"
    return tokenizer, model


def calculator_trainer(folder: Path, temperature: float) -> tuple[SCGRPOTrainer, list[float | None]]:
    """A trainer on two tasks of the calculator that its policy knows, and the rewards that the environments give."""
    torch.manual_seed(0)
    factory = environment_factory(CALCULATOR)
    rows = environment_dataset(CALCULATOR, tasks=2)
    tokenizer, model = learn(list(rows), factory)
    arguments = GRPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, beta=0.0, num_generations=4,
                           per_device_train_batch_size=8, max_completion_length=160, temperature=temperature,
                           max_steps=1, logging_steps=1, save_strategy="no", gradient_checkpointing=False, report_to=[],
                           learning_rate=1e-4, disable_tqdm=True, loss_type="grpo")
    half = [1.0, 0.0, 1.0, 0.0] * 2  # all of them solve it: half are told that they did not, so that there is a teacher
    rewards: list[float | None] = []

    def told(completions: Any, environments: Any, **row: Any) -> list[float]:
        rewards.extend(verdict_reward(completions, environments, **row))
        return half

    trainer = SCGRPOTrainer(model=model, processing_class=tokenizer, args=arguments, reward_funcs=told,
                            train_dataset=rows, environment_factory=factory)
    return trainer, rewards


def test_a_policy_trains_on_the_calculator_in_trls_loop(tmp_path: Path) -> None:
    trainer, rewards = calculator_trainer(tmp_path, 0.2)
    tokenizer = trainer.processing_class
    batches: list[dict[str, torch.Tensor]] = []
    sampled = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: batches.append(sampled(inputs)) or batches[-1]
    trainer.train()

    logged = trainer.state.log_history[0]
    assert rewards == [1.0] * 8, "the environments judged what the policy did"
    assert logged["tools/call_frequency"] >= 1 and logged["tools/failure_frequency"] == 0
    assert logged["credit/partial-solve"] == 1.0 and 0 < logged["credit/weight"] < 1
    batch = batches[0]
    foreign = batch["completion_mask"].bool() & ~batch["tool_mask"].bool()
    for i, ids in enumerate(batch["completion_ids"]):
        assert "tool_response" in tokenizer.decode(ids[foreign[i]])
        assert "tool_response" not in tokenizer.decode(ids[batch["tool_mask"][i].bool() & ~foreign[i]])
        read = tokenizer.decode(batch["teacher_prompt_ids"][i])
        assert "Agent: <tool_call>" in read and "Tool: " in read


def test_its_loss_over_several_turns_is_that_of_our_own_trainer(tmp_path: Path) -> None:
    """Tools' answers stand within the completions: no token of theirs has a weight, an advantage or a share."""
    trainer, _ = calculator_trainer(tmp_path, 1.0)  # our logprobs are at temperature 1
    rows = [row for row in trainer.train_dataset for _ in range(G)]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions(rows)
    assert (batch["tool_mask"] == 0).any()
    compare_with_ours(trainer, batch)
