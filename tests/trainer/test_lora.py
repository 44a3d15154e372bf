"""Adapters: what is trained, saved, merged and left out."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from safetensors.torch import load_file

from turncredit.config import LoraConfig, ModelConfig, TeacherConfig, TrainerConfig
from turncredit.errors import UserError
from turncredit.store import RunFolder
from turncredit.trainer.algorithms import make_algorithm
from turncredit.trainer.batch import make_batch
from turncredit.trainer.learner import Learner
from turncredit.trainer.loop import train
from turncredit.trainer.lora import add_adapter
from turncredit.trainer.policy import Policy
from turncredit.trainer.start import policy_of as policy_at


class Watching:
    def warming(self, *_):
        """Not of interest."""

    training = warming


def read(policy, ids=(1, 2, 3, 4, 5)):
    with torch.no_grad():
        return policy.model(input_ids=torch.tensor([list(ids)])).logits


def scored(policy, episodes):
    with torch.no_grad():
        return policy.scores(make_batch([e.segments for e in episodes])).logprobs


@pytest.fixture
def adapted(policy_of, tmp_path):
    """A policy with a trained-looking adapter, and its base."""
    base = policy_of()
    base.save(tmp_path / "base")
    policy = Policy(copy.deepcopy(base.model), base.tokenizer, base.config)
    add_adapter(policy.model, LoraConfig(rank=4), 3, "../base")
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return policy, base, tmp_path


def test_an_adapter_changes_nothing_at_first_is_drawn_from_its_seed_and_is_all_that_is_trained(policy_of):
    policy, again, other = policy_of(), policy_of(), policy_of()
    before = read(policy)
    for one, seed in ((policy, 3), (again, 3), (other, 4)):
        add_adapter(one.model, LoraConfig(rank=2, layers=["q_proj", "v_proj"]), seed, "base")
    assert torch.equal(read(policy), before)
    trained = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 2 and all(".lora_" in name and ("q_proj" in name or "v_proj" in name)
                                             for name in trained)
    states = [one.model.state_dict() for one in (policy, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in trained)
    assert not all(torch.equal(states[0][name], states[2][name]) for name in trained)


def test_layers_that_the_model_has_not_are_refused(policy_of):
    with pytest.raises(UserError, match=r"model\.lora\.layers is \['qproj'\]: LlamaForCausalLM has no such layers"):
        add_adapter(policy_of().model, LoraConfig(layers=["qproj"]), 0, "base")


def test_a_saved_adapter_is_small_and_comes_back_bit_for_bit_on_its_base_to_be_trained_on(adapted):
    policy, _, folder = adapted
    policy.save(folder / "adapter")
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert all(".lora_" in name for name in saved) and not (folder / "adapter" / "model.safetensors").exists()
    moved = folder / "moved"
    for name in ("base", "adapter"):
        shutil.move(folder / name, moved / name)
    loaded = Policy.load(ModelConfig(path=str(moved / "adapter")))
    assert torch.equal(read(loaded), read(policy))
    names = [[n for n, p in one.model.named_parameters() if p.requires_grad] for one in (loaded, policy)]
    assert names[0] == names[1] != []
    loaded.save(folder / "again")
    assert (folder / "again" / "adapter_config.json").read_text().count("../base") == 1


def test_an_export_is_one_plain_model_that_computes_the_same(adapted):
    policy, base, folder = adapted
    policy.export(folder / "merged")
    loaded = Policy.load(ModelConfig(path=str(folder / "merged")))
    assert not any("lora" in name for name in loaded.model.state_dict())
    assert torch.allclose(read(loaded), read(policy), atol=1e-5)
    assert (read(loaded) - read(base)).abs().max() > 1e-3
    policy.save(folder / "adapter")  # still an adapter
    assert (folder / "adapter" / "adapter_model.safetensors").exists()


def test_what_an_adapted_policy_samples_is_what_it_scores(adapted, sample_groups):
    policy, base, _ = adapted
    episodes = sample_groups(policy, 1, 6)[0].episodes
    sampled = torch.cat([torch.from_numpy(e.logprobs) for e in episodes])
    assert (scored(policy, episodes) - sampled).abs().max() <= 1e-4
    assert (scored(base, episodes) - sampled).abs().max() > 1e-3


def test_without_its_adapter_a_policy_is_its_base_and_gradients_of_the_other_are_none_the_worse(
        adapted, sample_groups):
    policy, base, _ = adapted
    episodes = sample_groups(policy, 1, 4)[0].episodes
    batch, reference = make_batch([e.segments for e in episodes]), policy.without_adapter()
    assert torch.allclose(scored(reference, episodes), scored(base, episodes), atol=1e-6)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    gradients = []
    for between in (lambda: None, lambda: scored(reference, episodes)):
        loss = policy.scores(batch).logprobs.sum()
        between()
        gradients.append(torch.autograd.grad(loss, trained))
    assert all(torch.equal(a, b) for a, b in zip(*gradients))
    with pytest.raises(ValueError, match="without an adapter"):
        base.without_adapter()


def test_an_update_moves_the_adapter_alone(adapted, sample_groups, judged_as):
    policy, _, _ = adapted
    group = judged_as(sample_groups(policy, 1)[0], "++--")
    for sample, episode in enumerate(group.episodes):
        episode.sample = sample
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    learner = Learner(policy, make_algorithm("sc-grpo"), TrainerConfig(lr=1e-3), TeacherConfig(), 0)
    assert learner.update(learner.credit([group], 0), 0)["updated"]
    moved = {name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".lora_" in name}
    assert sum(p.numel() for g in learner.optimizer.param_groups for p in g["params"]) == sum(
        p.numel() for name, p in before.items() if ".lora_" in name)


def test_a_run_with_an_adapter_is_resumed_bit_for_bit_from_small_checkpoints(relay_config):
    model = {"tiny": {"width": 32, "layers": 2, "heads": 2, "context": 256, "vocabulary": 400}, "lora": {"rank": 4}}
    config = relay_config(model=model, trainer={"steps": 3, "epochs": 2, "mini_batches": 2})
    run = train(config, Watching())
    whole = load_file(run.path / "policy" / "model.safetensors")
    start = load_file(run.path / "start" / "model.safetensors")
    assert whole.keys() == start.keys() and any(not torch.equal(whole[name], start[name]) for name in whole)
    for folder in run.checkpoints.iterdir():
        assert (folder / "adapter_model.safetensors").exists() and not (folder / "model.safetensors").exists()
    losses = [line["loss"] for line in run.read_metrics()]
    for gone in (run.path / "policy", *sorted(run.checkpoints.iterdir())[1:]):
        shutil.rmtree(gone)
    policy, _ = policy_at(str(run.path))
    assert any(".lora_" in name for name in policy.model.state_dict())  # what a run without a policy is evaluated by
    run = train(config, Watching(), resume=True)
    again = load_file(run.path / "policy" / "model.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    assert losses == [line["loss"] for line in RunFolder(config.folder).read_metrics()]
