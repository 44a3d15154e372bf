"""The warm start: verified demonstrations alone, the masks of reinforcement learning, references in some prompts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from turncredit.agents.tiny import learn_tokenizer, make_tiny_model
from turncredit.config import EnvConfig, WarmstartConfig
from turncredit.envs import Reply, TextEnv
from turncredit.envs.calculator import Calculator
from turncredit.episode import Task, Verdict
from turncredit.errors import UserError
from turncredit.trainer.batch import make_batch
from turncredit.trainer.policy import Policy
from turncredit.trainer.teacher import GUIDE, conditioned_system, reference_text
from turncredit.trainer.warmstart import demonstrations, texts_of, warm_start


class SometimesWrong(Calculator):
    """Its scripted solution gives a wrong answer to every expression with a product in it."""

    def expert_action(self):
        if "*" in self.task.prompt and not self._left.operators:
            return "0.5"
        return super().expert_action()


class AlwaysWrong(Calculator):
    def expert_action(self):
        return "0.5"


class SaysNothing:
    def verify(self, task, outcome):
        return Verdict.of(True)


class Unscripted(TextEnv):
    verifier = SaysNothing()

    def make_task(self, rng):
        return Task(f"What now, {rng.integers(100)}?", {}, self.split)

    def respond(self, action):
        return Reply(done=True, answer=action)


@pytest.fixture(scope="module", autouse=True)
def registered(register_envs):
    register_envs(SometimesWrong, AlwaysWrong, Unscripted)


def settings_of(*names, **rest):
    return WarmstartConfig(envs=[{"id": f"turncredit-tests/{name}-v0"} for name in names], **rest)


@pytest.fixture
def chat(policy_of):
    return policy_of().chat


@pytest.fixture
def fresh_policy(calculator_config):
    def make(config, seed=0):
        tokenizer = learn_tokenizer(texts_of(config.warmstart, "plain", 0, count=50), 400)
        return Policy(make_tiny_model(config.model.tiny, tokenizer, seed), tokenizer, config.model)

    return make


def weights_of(policy):
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])


# Demonstrations.


def test_only_demonstrations_that_the_verifier_passed_are_shown(chat):
    shown = demonstrations(settings_of("SometimesWrong"), chat, "plain", 60, seed=3)
    assert 20 <= len(shown) < 60
    assert all(e.passed and e.reward == 1 and "*" not in e.prompt for e in shown)


def test_a_demonstrations_own_tokens_are_generated_and_the_environments_are_not(chat, calculator_config):
    episode = demonstrations(calculator_config().warmstart, chat, "plain", 1, seed=3)[0]
    own = [chat.text(s.token_ids.tolist(), keep_special=True) for s in episode.segments if s.generated]
    assert own == [turn.action + "<|im_end|>" for turn in episode.turns] and len(own) == 2
    assert [s.role for s in episode.segments] == ["prompt", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("name", ["AlwaysWrong", "Unscripted"])
def test_an_environment_without_a_right_demonstration_is_refused_by_name(name, chat):
    with pytest.raises(UserError, match=f"turncredit-tests/{name}-v0"):
        demonstrations(settings_of(name), chat, "plain", 20, seed=3)


@pytest.mark.parametrize("name", ["AlwaysWrong", "Unscripted"])
def test_it_is_refused_beside_one_that_has_demonstrations_too(name, chat):
    with pytest.raises(UserError, match=f"turncredit-tests/{name}-v0"):
        demonstrations(settings_of("SometimesWrong", name), chat, "plain", 20, seed=3)


def test_a_tokenizer_cannot_be_learnt_from_an_environment_without_a_scripted_solution():
    with pytest.raises(UserError, match=r"warmstart\.envs: turncredit-tests/Unscripted-v0 has no scripted solution"):
        texts_of(settings_of("Unscripted"), "plain", 0, count=3)


# Conversations.


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_conversations_has_its_own_solution_as_reference_in_the_system_prompt(
        share, fresh_policy, calculator_config, sequences_read):
    config = calculator_config(warmstart={"envs": [{"id": "turncredit/Calculator-v0"}], "steps": 12, "batch": 8,
                                          "demonstrations": 16, "with_reference": share})
    policy = fresh_policy(config)
    shown = demonstrations(config.warmstart, policy.chat, "plain", 16, config.seed)
    plain, conditioned = {}, {}
    for e in shown:
        response = [int(t) for s in e.response for t in s.token_ids]
        plain[tuple(e.token_ids.tolist())] = response
        system = conditioned_system(e.system, GUIDE, reference_text(e))
        conditioned[(*policy.chat.first_prompt(system, e.prompt), *response)] = response
    read = sequences_read(policy)
    warm_start(config, policy, lambda *_: None)
    assert len(read) == 12 * 8 and all(sequence in plain or sequence in conditioned for sequence, _ in read)
    assert np.mean([sequence in conditioned for sequence, _ in read]) == pytest.approx(share, abs=0.15)


# Learning.


def test_the_loss_is_the_mean_negative_logprob_of_the_demonstrations_own_tokens_and_falls(
        fresh_policy, calculator_config):
    config = calculator_config(warmstart={"envs": [{"id": "turncredit/Calculator-v0"}], "steps": 40, "batch": 4,
                                          "demonstrations": 1, "with_reference": 0, "lr": 5e-3})
    policy = fresh_policy(config)
    episode = demonstrations(config.warmstart, policy.chat, "plain", 1, config.seed)[0]
    ids = torch.from_numpy(episode.token_ids).long()
    with torch.no_grad():
        log_p = torch.log_softmax(policy.model(ids[None]).logits[0], -1)
    expected = -np.mean([float(log_p[t - 1, ids[t]]) for t in range(1, len(ids)) if episode.generated[t]])
    losses = []
    warm_start(config, policy, lambda step, loss, success: losses.append(loss))
    assert len(losses) == 40
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("bias", [False, True])
def test_label_smoothing_leaves_a_share_of_the_probability_to_all_other_tokens(fresh_policy, calculator_config, bias):
    """Against cross-entropy with the smoothed labels written out, [generated, vocabulary], in float64."""
    config = calculator_config(warmstart={"envs": [{"id": "turncredit/Calculator-v0"}], "steps": 1, "batch": 2,
                                          "demonstrations": 1, "with_reference": 0, "label_smoothing": 0.3})
    policy = fresh_policy(config)
    policy.model.double()
    if bias:
        policy.model.lm_head.bias = torch.nn.Parameter(torch.randn(len(policy.tokenizer)).double())
    batch = make_batch([demonstrations(config.warmstart, policy.chat, "plain", 1, config.seed)[0].segments])
    logits = policy.model(batch.input_ids[None]).logits[0, batch.scored]
    labels = torch.full_like(logits, 0.3 / logits.shape[1])
    labels[torch.arange(len(labels)), batch.targets] += 0.7
    expected = -(labels * torch.log_softmax(logits, -1)).sum(-1).mean()
    gradients = torch.autograd.grad(expected, list(policy.model.parameters()))
    wanted = torch.sqrt(sum((g ** 2).sum() for g in gradients))
    losses, norms = [], []
    original = torch.nn.utils.clip_grad_norm_
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, n: norms.append(original(p, n)))
        warm_start(config, policy, lambda step, loss, success: losses.append(loss))
    assert losses[0] == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float(norms[0]) == pytest.approx(float(wanted), rel=1e-6)


def test_micro_batches_change_nothing_but_rounding(fresh_policy, calculator_config):
    learnt = []
    for tokens in (1 << 20, 400, 1):
        config = calculator_config(trainer={"micro_batch_tokens": tokens},
                                   warmstart={"envs": [{"id": "turncredit/Calculator-v0"}], "steps": 3, "batch": 6,
                                              "demonstrations": 50})
        policy = fresh_policy(config)
        policy.model.double()
        warm_start(config, policy, lambda *_: None)
        learnt.append(weights_of(policy))
    for other in learnt[1:]:
        torch.testing.assert_close(other, learnt[0], rtol=0, atol=1e-7)


def test_the_same_seed_learns_the_same_weights_and_another_seed_others(fresh_policy, calculator_config):
    def learn(seed):
        config = calculator_config(seed=seed, warmstart={"envs": [{"id": "turncredit/Calculator-v0"}], "steps": 3,
                                                             "demonstrations": 50})
        policy = fresh_policy(config)
        warm_start(config, policy, lambda *_: None)
        return weights_of(policy)

    once, again, other = learn(0), learn(0), learn(1)
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_dropout_is_off_so_that_no_draw_escapes_the_seed(fresh_policy, calculator_config):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = calculator_config(warmstart={"envs": [{"id": "turncredit/Calculator-v0"}], "steps": 2, "batch": 2,
                                          "demonstrations": 10})
    tokenizer = fresh_policy(config).tokenizer
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=512,
                                       bos_token_id=None, eos_token_id=None))
    learnt = []
    for seed in (1, 2):
        policy = Policy(copy.deepcopy(model), tokenizer, config.model)
        torch.manual_seed(seed)
        warm_start(config, policy, lambda *_: None)
        learnt.append(weights_of(policy))
    assert torch.equal(*learnt)


def test_a_head_with_a_bias_is_trained_with_it(fresh_policy, calculator_config):
    from transformers import PhiConfig, PhiForCausalLM

    config = calculator_config(warmstart={"envs": [{"id": "turncredit/Calculator-v0"}], "steps": 1, "batch": 2,
                                          "demonstrations": 1, "with_reference": 0})
    tokenizer = fresh_policy(config).tokenizer
    model = PhiForCausalLM(PhiConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32,
                                     num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=512,
                                     bos_token_id=None, eos_token_id=None))
    torch.nn.init.normal_(model.lm_head.bias, std=3.0)
    policy = Policy(model, tokenizer, config.model)
    episode = demonstrations(config.warmstart, policy.chat, "plain", 1, config.seed)[0]
    batch = make_batch([episode.segments])
    with torch.no_grad():
        log_p = torch.log_softmax(policy.model(batch.input_ids[None]).logits[0], -1)
    expected = -float(log_p[batch.scored, batch.targets].mean())
    bias, losses = model.lm_head.bias.detach().clone(), []
    warm_start(config, policy, lambda step, loss, success: losses.append(loss))
    assert losses[0] == pytest.approx(expected, rel=1e-4)
    assert not torch.equal(bias, model.lm_head.bias)


def test_it_stops_once_the_policy_solves_the_share_that_was_asked_for(policy_of, calculator_config):
    config = calculator_config(rollout={"turn_tokens": 24}, warmstart={
        "envs": [{"id": "turncredit/Calculator-v0"}], "steps": 9, "check_every": 3, "until_success": 1e-9,
        "batch": 2, "demonstrations": 10})
    seen = []
    policy = policy_of()
    success = warm_start(config, policy, lambda *step: seen.append(step))
    # It has not learnt enough to solve anything: all steps are used, with a check at every third.
    assert success is not None
    if success == 0:
        assert [step for step, _, _ in seen] == list(range(9)) and [s for _, _, s in seen][2] == 0


def test_demonstrations_that_the_model_cannot_read_are_left_out(policy_of, calculator_config, sequences_read):
    config = calculator_config(warmstart={"envs": [{"id": "turncredit/Calculator-v0", "arguments": {"level": 1}},
                                                   {"id": "turncredit/Calculator-v0", "arguments": {"level": 4}}],
                                          "steps": 2, "batch": 4, "with_reference": 0, "demonstrations": 32})
    policy = policy_of()
    lengths = sorted(len(e.token_ids) for e in demonstrations(config.warmstart, policy.chat, "plain", 32, 0))
    policy.max_context = lengths[16]
    read = sequences_read(policy)
    warm_start(config, policy, lambda *_: None)
    assert lengths[0] <= max(len(sequence) for sequence, _ in read) <= lengths[16] < lengths[-1]
    policy.max_context = lengths[0] - 1
    with pytest.raises(UserError, match=f"context of {lengths[0] - 1} tokens"):
        warm_start(config, policy, lambda *_: None)


def test_a_loss_that_is_not_finite_stops_it(fresh_policy, calculator_config):
    config = calculator_config(warmstart={"envs": [{"id": "turncredit/Calculator-v0"}], "steps": 40, "batch": 2,
                                          "lr": 1e30, "demonstrations": 10})
    with pytest.raises(UserError, match=r"warmstart\.lr"):
        warm_start(config, fresh_policy(config), lambda *_: None)


def test_its_environments_may_be_weighted(chat):
    settings = WarmstartConfig(envs=[EnvConfig(id="turncredit/Calculator-v0", weight=1),
                                     EnvConfig(id="turncredit/Arithmetic-v0", weight=3)])
    shown = demonstrations(settings, chat, "plain", 192, seed=3)
    assert np.mean([e.env_id == "turncredit/Arithmetic-v0" for e in shown]) == pytest.approx(0.75, abs=0.1)
