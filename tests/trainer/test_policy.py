"""The policy against transformers' own logits, and against the sampler (invariant 3)."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GraniteConfig, GraniteForCausalLM

from turncredit.config import ModelConfig
from turncredit.errors import UserError
from turncredit.rollout import Budget
from turncredit.trainer import head
from turncredit.trainer.batch import make_batch
from turncredit.trainer.head import score_tokens
from turncredit.trainer.policy import Policy


def trainer_logprobs(policy, episodes):
    batch = make_batch([e.segments for e in episodes])
    with torch.no_grad():
        return score_tokens(policy.hidden(batch), policy.head.weight, batch.targets).logprobs


def test_what_was_sampled_is_what_is_scored(template, policy_of, sample_groups):
    policy = policy_of(template)
    # Some turns end by themselves; others are cut off, told that their call is malformed, and followed by more.
    budget = Budget(turn_tokens=8, episode_tokens=60, context_tokens=500)
    episodes = [e for group in sample_groups(policy, 4, 8, budget=budget) for e in group.episodes]
    assert sum(len(e.turns) >= 2 for e in episodes) >= 5 and any(len(e.turns) >= 3 for e in episodes)
    assert any(not s.generated and s.role == "glue" for e in episodes for s in e.segments)  # turns that were cut off
    scored = trainer_logprobs(policy, episodes)
    sampled = torch.cat([torch.from_numpy(e.logprobs) for e in episodes])
    assert len(scored) == sum(e.generated_count for e in episodes) > 100
    assert (scored - sampled).abs().max() <= 1e-4


def test_a_changed_policy_scores_differently_than_it_sampled(policy_of, sample_groups):
    policy = policy_of()
    episodes = sample_groups(policy, 1, 4)[0].episodes
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(1.01)
    scored = trainer_logprobs(policy, episodes)
    assert (scored - torch.cat([torch.from_numpy(e.logprobs) for e in episodes])).abs().max() > 1e-3


def test_hidden_states_are_those_that_predict_the_generated_tokens(policy_of, sample_groups):
    policy = policy_of()
    episodes = sample_groups(policy, 1, 4)[0].episodes
    got = trainer_logprobs(policy, episodes)
    expected = []
    for episode in episodes:
        ids = torch.from_numpy(episode.token_ids).long()
        with torch.no_grad():
            logprobs = torch.log_softmax(policy.model(ids[None]).logits[0], -1)
        expected += [logprobs[t - 1, ids[t]] for t in range(1, len(ids)) if episode.generated[t]]
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-5, atol=1e-5)


class Casts(TorchDispatchMode):
    """Counts tensors of one shape that are put into bf16."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += (operation is torch.ops.aten._to_copy.default and args[0].shape == self.shape
                       and (kwargs or {}).get("dtype") is torch.bfloat16)
        return operation(*args, **(kwargs or {}))


def test_under_autocast_tokens_are_scored_as_the_model_projects_them_and_its_head_is_cast_once(
        policy_of, sample_groups, monkeypatch):
    """A CPU's autocast stands in for a GPU's: float32 weights, computed in bf16."""
    monkeypatch.setattr(Policy, "precision", lambda self: torch.autocast("cpu", torch.bfloat16))
    monkeypatch.setattr(head, "CACHED_ELEMENTS", 1)  # many chunks: 64 positions each
    policy = policy_of()
    episodes = sample_groups(policy, 2, 4)[0].episodes * 3
    batch = make_batch([e.segments for e in episodes])
    assert len(batch.targets) > 2 * 64
    with Casts(policy.head.weight.shape) as casts:
        scores = policy.scores(batch, batch)
        scores.logprobs.sum().backward()
    assert casts.count == 1
    cast = policy.head.weight.detach().bfloat16()
    with torch.no_grad():
        hidden = policy.hidden(batch)
        assert hidden.dtype is torch.bfloat16
        expected = torch.log_softmax((hidden @ cast.T).float(), -1).gather(1, batch.targets[:, None])[:, 0]
    assert torch.equal(scores.logprobs, expected)
    assert torch.equal(scores.kl, torch.zeros_like(scores.kl))


def test_a_saved_policy_is_loaded_bit_for_bit(template, policy_of, tmp_path):
    policy = policy_of(template)
    policy.save(tmp_path)
    loaded = Policy.load(ModelConfig(path=str(tmp_path), tool_calls="plain"))
    for (name, one), (other_name, other) in zip(policy.model.named_parameters(), loaded.model.named_parameters()):
        assert name == other_name and torch.equal(one, other)
    prompt = policy.chat.first_prompt("Be brief.", "What is 3 + 4?")
    assert loaded.chat.first_prompt("Be brief.", "What is 3 + 4?") == prompt
    assert loaded.chat.stop_ids == policy.chat.stop_ids
    assert loaded.chat.observation("7", "tool") == policy.chat.observation("7", "tool")


def test_a_model_that_scales_its_logits_is_refused(policy_of):
    tokenizer = policy_of().tokenizer
    model = GraniteForCausalLM(GraniteConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, logits_scaling=8.0, initializer_range=1.0, pad_token_id=0))
    with pytest.raises(UserError, match="GraniteForCausalLM: its logits are not a linear projection"):
        Policy(model, tokenizer, ModelConfig(path="granite"))


def test_a_model_with_broken_weights_is_refused(policy_of):
    policy = policy_of()
    policy.model.model.norm.weight.data[3] = torch.nan
    with pytest.raises(UserError, match="its weights are broken"):
        Policy(policy.model, policy.tokenizer, policy.config)


def test_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"model\.path .* cannot be loaded"):
        Policy.load(ModelConfig(path=str(tmp_path)))


def kept_for_backward(policy, batch):
    """Elements that autograd holds on to between a forward and a backward pass, and the gradient."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        hidden = policy.hidden(batch)
    gradients = torch.autograd.grad(hidden.square().sum(), list(policy.model.base_model.parameters()))
    return sum(sizes), torch.cat([g.flatten() for g in gradients])


def test_checkpointed_layers_keep_less_and_give_the_same_gradient(policy_of, sample_groups):
    policy = policy_of(dtype=torch.float64)
    batch = make_batch([e.segments for e in sample_groups(policy_of(), 1, 4)[0].episodes])
    kept, expected = kept_for_backward(policy, batch)
    policy.checkpoint_layers()
    kept_now, gradient = kept_for_backward(policy, batch)
    assert kept_now < kept / 4
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    assert not any(module.training for module in policy.model.modules())  # sampling, and dropout, are as before


def test_checkpointing_a_model_without_such_layers_is_refused(policy_of):
    policy = policy_of()
    policy.model.model.layers = torch.nn.ModuleList()
    with pytest.raises(UserError, match=r"gradient_checkpointing is true: LlamaForCausalLM .* set it to false"):
        policy.checkpoint_layers()
