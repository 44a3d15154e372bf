"""Layers under torch.compile: the same numbers, in the trainer's passes alone, and refused where they would not do."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch._dynamo.utils import counters

from turncredit.config import ModelConfig, TeacherConfig, TrainerConfig
from turncredit.errors import UserError
from turncredit.trainer.algorithms import make_algorithm
from turncredit.trainer.batch import make_batch
from turncredit.trainer.learner import Learner
from turncredit.trainer.policy import Policy

COMPILE = torch.compile


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def backend(request: Any, monkeypatch: Any) -> str:
    """The compiler; the first traces and differentiates layers as the second does, and generates no C++."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(COMPILE, backend=request.param))
    return str(request.param)


def update(policy: Policy, groups: Any, compiled: bool) -> tuple[dict[str, Any], torch.Tensor]:
    learner = Learner(policy, make_algorithm("sc-grpo"), TrainerConfig(lr=1e-3, compile=compiled, clip_norm=1e9,
                                                                       micro_batch_tokens=300), TeacherConfig(), 0)
    learner._take_step = lambda *_: None  # type: ignore[method-assign]  # the gradient stays
    found = learner.update(learner.credit(groups, 0), 0)
    return found, torch.cat([p.grad.flatten() for p in policy.model.parameters()])


def test_an_update_by_compiled_layers_has_the_loss_and_the_gradient_of_a_plain_one(
        backend: str, policy_of: Any, sample_groups: Any, judged_as: Any, tmp_path: Any) -> None:
    plain, policy = policy_of(), policy_of()
    groups = [judged_as(group, signs) for group, signs in zip(sample_groups(plain, 2), ("++-+", "---+"))]
    (expected, gradient), (got, other) = update(plain, groups, False), update(policy, groups, True)
    assert counters["stats"]["unique_graphs"] > 0
    assert expected["gradient_norm"] > 0.1
    for name in ("loss", "gradient_norm", "kl_p75", "weight_mean", "entropy_mean"):
        assert got[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7)
    assert (other - gradient).norm() <= 1e-5 * gradient.norm()

    # A few graphs for rows of all lengths; none for what samples, or a copy; and checkpoints with the names as before.
    made = counters["stats"]["unique_graphs"]
    episodes = [e for group in groups for e in group.episodes]
    for count in range(1, 7):
        policy.hidden(make_batch([e.segments for e in episodes[:count]])).sum().backward()
    sample_groups(policy)
    with torch.no_grad():
        policy.copied().hidden(make_batch([episodes[0].segments]))
    assert counters["stats"]["unique_graphs"] == made
    policy.save(tmp_path)
    assert policy.model.state_dict().keys() == plain.model.state_dict().keys()
    assert Policy.load(ModelConfig(path=str(tmp_path), tool_calls="plain")).digest() == policy.digest()


def test_what_cannot_be_compiled_is_refused_in_a_sentence(policy_of: Any, monkeypatch: Any) -> None:
    policy = policy_of()
    monkeypatch.setattr(torch, "compile", lambda call, **_: lambda *args, **kwargs: 2 * call(*args, **kwargs))
    with pytest.raises(UserError, match=r"trainer\.compile is true: LlamaForCausalLM computes something else once"):
        policy.compile_layers()

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    with pytest.raises(UserError, match=r"cannot be compiled here \(no C\+\+ compiler was found\); set it to false"):
        policy.compile_layers()
    config = transformers.FalconConfig(vocab_size=len(policy.tokenizer), hidden_size=32, num_hidden_layers=1,
                                       num_attention_heads=4, alibi=False)
    falcon = Policy(transformers.FalconForCausalLM(config), policy.tokenizer, ModelConfig(path="made"))
    with pytest.raises(UserError, match=r"trainer\.compile is true: FalconForCausalLM cannot read packed rows"):
        falcon.compile_layers()


@pytest.mark.parametrize(("name", "value"), [("sharding", "full"), ("gradient_checkpointing", True)])
def test_settings_that_do_not_go_with_it_are_refused(name: str, value: Any, relay_config: Any) -> None:
    with pytest.raises(UserError, match=rf"(?s)trainer\.compile.*trainer\.{name}|trainer\.{name}.*trainer\.compile"):
        relay_config(trainer={"compile": True, name: value})
