"""The estimate of memory: against what is really kept, and the setting that it says to change."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from turncredit.config import RolloutConfig, TrainerConfig
from turncredit.episode import Segment
from turncredit.errors import UserError
from turncredit.trainer import memory
from turncredit.trainer.batch import make_batch
from turncredit.trainer.memory import free_memory, memory_need, refuse_what_does_not_fit

ROLLOUT = RolloutConfig(groups=4, group_size=8, context_tokens=256, max_batch=16)
TRAINER = TrainerConfig(micro_batch_tokens=2048)


def kept_by(policy, lengths):
    """Bytes that autograd keeps for a row of sequences, each tensor's storage once, weights left out."""
    storages = {}
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    sequences = [[Segment.text(range(1, 51), "prompt"), Segment.sampled(np.arange(n) % 90, np.zeros(n))]
                 for n in lengths]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = policy.hidden(make_batch(sequences))
    assert kept.requires_grad
    return sum(storages.values())


def test_what_a_token_keeps_is_what_a_long_row_of_episodes_keeps(policy_of):
    policy = policy_of()
    need = memory_need(policy, TRAINER, ROLLOUT)
    kept = kept_by(policy, [100, 30, 50, 200])
    assert need.token * 430 / 1.5 == pytest.approx(kept, rel=0.2)  # 1.5: a layer's gradients beside it


def test_checkpointed_layers_need_less(policy_of):
    policy = policy_of()
    before = memory_need(policy, TRAINER, ROLLOUT).token
    policy.checkpoint_layers()
    assert memory_need(policy, TRAINER, ROLLOUT).token < 0.9 * before  # of two layers, one is whole at a time
    assert policy.checkpointed


def test_weights_gradients_and_the_optimiser_are_counted_as_torch_makes_them(policy_of):
    policy = policy_of()
    need = memory_need(policy, TRAINER, ROLLOUT)
    optimizer = torch.optim.AdamW(policy.model.parameters())
    policy.hidden(make_batch([[Segment.text([1, 2], "prompt"), Segment.sampled([3], [0.0])]])).sum().backward()
    policy.head.weight.grad = torch.zeros_like(policy.head.weight)
    optimizer.step()
    assert need.gradients == sum(p.grad.nbytes for p in policy.model.parameters())
    moments = sum(s.nbytes for state in optimizer.state.values() for name, s in state.items() if name != "step")
    assert need.optimizer == moments


def test_a_cache_row_is_what_transformers_caches(policy_of):
    policy = policy_of()
    ids = torch.ones(1, ROLLOUT.context_tokens, dtype=torch.long)
    cache = policy.model(input_ids=ids, use_cache=True).past_key_values
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert memory_need(policy, TRAINER, ROLLOUT).cache_row == size


def refusal(policy, free, trainer=TRAINER, rollout=ROLLOUT):
    with pytest.raises(UserError) as error:
        refuse_what_does_not_fit(policy, trainer, rollout, free)
    return str(error.value)


def test_what_fits_is_let_through(policy_of):
    need = refuse_what_does_not_fit(policy_of(), TRAINER, ROLLOUT)
    assert need.update < free_memory(torch.device("cpu"))


def test_an_update_that_is_too_large_names_the_size_of_a_micro_batch_that_fits(policy_of):
    policy = policy_of()
    need = memory_need(policy, TRAINER, ROLLOUT)
    free = need.update - need.weights - 1000 * need.token
    said = refusal(policy, free)
    fitting = int(re.search(r"set trainer.micro_batch_tokens to (\d+) or less \(it is 2048\)", said)[1])
    assert 1040 <= fitting <= 1048
    refuse_what_does_not_fit(policy, TRAINER.model_copy(update={"micro_batch_tokens": fitting}), ROLLOUT, free)


def test_where_one_episode_is_too_long_checkpointing_is_named_and_then_the_context(policy_of):
    policy = policy_of()
    need = memory_need(policy, TRAINER, ROLLOUT)
    free = need.fixed - need.weights + 100 * need.token
    said = refusal(policy, free)
    assert re.search(r"gradient_checkpointing to true, or set rollout.context_tokens to (99|100) or less", said)
    policy.checkpoint_layers()
    settings = TRAINER.model_copy(update={"gradient_checkpointing": True})
    assert re.search(r"had: set rollout.context_tokens to \d+ or less \(it is 256\)", refusal(policy, free, settings))


def test_where_not_even_the_optimiser_fits_it_is_the_model_that_is_too_large(policy_of):
    assert "or take a smaller model" in refusal(policy_of(), 1000)


def test_sampling_that_is_too_large_names_the_rows_that_fit(policy_of):
    policy = policy_of()
    rollout = ROLLOUT.model_copy(update={"max_batch": 4096, "groups": 512})
    trainer = TrainerConfig(micro_batch_tokens=16)
    need = memory_need(policy, trainer, rollout)
    said = refusal(policy, need.optimizer + 700 * need.cache_row, trainer, rollout)
    assert said.startswith("sampling needs") and "set rollout.max_batch to 700 or less (it is 4096)" in said


def test_a_containers_limit_counts(monkeypatch, tmp_path):
    real = memory.Path
    files = {"/sys/fs/cgroup/memory.max": "5000000", "/sys/fs/cgroup/memory.current": "3000000"}
    for name, text in files.items():
        (tmp_path / real(name).name).write_text(text)
    monkeypatch.setattr(memory, "Path", lambda name: tmp_path / real(name).name if name in files else real(name))
    assert free_memory(torch.device("cpu")) == 2_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(torch.device("cpu")) > 100_000_000
