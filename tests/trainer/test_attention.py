"""Packed rows against each sequence read by itself, over architectures, in hidden states and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch.nn.attention import flex_attention

from turncredit.config import ModelConfig
from turncredit.episode import Segment
from turncredit.trainer import attention
from turncredit.trainer.attention import Block, Packing, packed_attention
from turncredit.trainer.batch import make_batch
from turncredit.trainer.flex import attention_of_row
from turncredit.trainer.policy import Policy

PROMPT, OTHER = [5, 6, 7, 8, 9, 10, 11], [12, 13]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 64, "initializer_range": 0.3, "bos_token_id": None}
GROUPED = {**SMALL, "num_key_value_heads": 2}
ARCHITECTURES = {
    "LlamaForCausalLM": GROUPED, "Qwen3ForCausalLM": {**GROUPED, "head_dim": 8},
    "MistralForCausalLM": {**GROUPED, "sliding_window": 3},
    "Gemma3ForCausalLM": {**GROUPED, "head_dim": 8, "sliding_window": 3,
                          "layer_types": ["sliding_attention", "full_attention"]},
    "GPT2LMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3},
}


def made(policy_of, architecture, dtype=torch.float64, **settings):
    tokenizer = policy_of().tokenizer
    model_class = getattr(transformers, architecture)
    torch.manual_seed(0)
    config = model_class.config_class(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id,
                                      pad_token_id=tokenizer.pad_token_id, **settings)
    if architecture == "Gemma3ForCausalLM":
        config = transformers.Gemma3TextConfig(**{**config.to_dict(), **settings})
    return Policy(model_class(config).to(dtype), tokenizer, ModelConfig(path="made"))


def sequences():
    """Two that share a prompt, one of which has environment text; one by itself; two with another shared prompt."""
    own = [list(range(20 + 3 * i, 20 + 3 * i + n)) for i, n in enumerate((4, 6, 1, 5, 2))]
    prompts = [PROMPT, PROMPT, [14, 15, 16], OTHER, OTHER]
    made = [[Segment.text(prompt, "prompt"), Segment.sampled(ids, [0.0] * len(ids))]
            for prompt, ids in zip(prompts, own)]
    made[1] += [Segment.text([17, 18], "user"), Segment.sampled([19], [0.0])]
    return made


def states_and_gradient(one, batch):
    one.model.zero_grad()
    hidden = one.hidden(batch)
    weights = torch.arange(hidden.numel(), dtype=hidden.dtype).sin().view_as(hidden)
    (hidden * weights).sum().backward()
    return hidden.detach(), torch.cat([p.grad.flatten() for p in one.model.parameters() if p.grad is not None])


def apart(one, segments):
    """The same, each sequence in a pass of its own, through transformers' own attention."""
    plain = copy.deepcopy(one.model)
    hidden = []
    for sequence in segments:
        ids = torch.tensor([int(t) for s in sequence for t in s.token_ids])
        flags = torch.tensor([s.generated for s in sequence for _ in s.token_ids])
        hidden.append(plain.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0, :-1][flags[1:]])
    hidden = torch.cat(hidden)
    weights = torch.arange(hidden.numel(), dtype=hidden.dtype).sin().view_as(hidden)
    (hidden * weights).sum().backward()
    return hidden.detach(), torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_packed_row_equals_its_sequences_one_by_one_in_value_and_gradient(architecture, policy_of):
    one = made(policy_of, architecture, **ARCHITECTURES[architecture])
    assert one.packs
    batch = make_batch(sequences())
    assert len(batch.input_ids) == sum(len(s.token_ids) for q in sequences() for s in q) - len(PROMPT) - len(OTHER)
    got, expected = states_and_gradient(one, batch), apart(one, sequences())
    for value, wanted in zip(got, expected):
        assert (value - wanted).norm() <= 1e-6 * wanted.norm()  # their norms and rotations are in float32


def test_a_packed_row_equals_its_sequences_in_float32_to_1e_5(policy_of):
    one = made(policy_of, "LlamaForCausalLM", torch.float32, **GROUPED)
    got, expected = states_and_gradient(one, make_batch(sequences())), apart(one, sequences())
    for value, wanted in zip(got, expected):
        assert (value - wanted).norm() <= 1e-5 * wanted.norm()


def test_layers_that_are_checkpointed_hear_of_the_packing_when_they_are_computed_again(policy_of):
    one = made(policy_of, "LlamaForCausalLM", **GROUPED)
    expected = apart(one, sequences())
    one.checkpoint_layers()
    got = states_and_gradient(one, make_batch(sequences()))
    for value, wanted in zip(got, expected):
        assert (value - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize(("architecture", "settings"), [
    ("FalconForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False}),
    ("Gemma2ForCausalLM", {**GROUPED, "head_dim": 8, "final_logit_softcapping": None}),
])
def test_a_model_whose_attention_is_its_own_is_read_sequence_by_sequence(architecture, settings, policy_of):
    one = made(policy_of, architecture, **settings)
    assert not one.packs
    got, expected = states_and_gradient(one, make_batch(sequences())), apart(one, sequences())
    for value, wanted in zip(got, expected):
        assert (value - wanted).norm() <= 1e-6 * wanted.norm()


def test_a_model_that_does_not_hand_the_packing_on_is_found_out(policy_of, monkeypatch):
    one = policy_of()
    forward = type(one.model.model.layers[0].self_attn).forward
    monkeypatch.setattr(type(one.model.model.layers[0].self_attn), "forward",
                        lambda self, *args, packing=None, **kwargs: forward(self, *args, **kwargs))
    assert not Policy(one.model, one.tokenizer, one.config).packs


@pytest.mark.parametrize("broken", ["prefix", "others"])
def test_a_packing_that_is_wrong_is_found_out(broken, policy_of, monkeypatch):
    def wrong(query, key, value, packing, scale=None, window=None):
        last = packing.blocks[-1].stop
        blocks = tuple(Block(b.start, b.stop) if broken == "prefix" else Block(0, last) for b in packing.blocks)
        given = Packing(blocks if broken == "prefix" else blocks[:1])
        return packed_attention(query, key, value, given, scale, window)

    monkeypatch.setattr(attention, "packed_attention", wrong)
    one = policy_of()
    assert not Policy(one.model, one.tokenizer, one.config).packs


def test_outside_of_the_trainers_passes_a_models_attention_is_its_own(policy_of):
    one = policy_of()
    one.checkpoint_layers()
    states_and_gradient(one, make_batch(sequences()))
    assert one.packs and one.model.config._attn_implementation == "sdpa"


def test_the_last_token_of_a_block_reads_the_last_key_and_none_reads_a_later_one_or_outside_of_the_window():
    assert Packing(()).mask(2, 4, None, torch.device("cpu")).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert Packing(()).mask(2, 4, 2, torch.device("cpu")).int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    assert Packing(()).mask(4, 4, None, torch.device("cpu")) is None  # the plain triangle


def test_the_mask_that_gpus_take_without_making_it_is_the_same(monkeypatch):
    """On a CPU torch makes it after all, and so shows what it means."""
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    blocks = (Block(0, 3), Block(3, 5, 0, 3), Block(5, 9, 0, 3))
    expected = packed_attention(query, key, value, Packing(blocks))
    mask = Packing.mask
    monkeypatch.setattr(Packing, "mask", lambda self, queries, keys, window, device: mask(
        self, queries, keys, window, torch.device("cuda")))
    torch.testing.assert_close(packed_attention(query, key, value, Packing(blocks)), expected)


def test_under_autocast_norms_may_leave_queries_in_float32(policy_of, monkeypatch):
    monkeypatch.setattr(Policy, "precision", lambda self: torch.autocast("cpu", torch.bfloat16))
    one = made(policy_of, "Qwen3ForCausalLM", torch.float32, **GROUPED, head_dim=8)
    assert one.packs
    hidden = one.hidden(make_batch(sequences()))
    monkeypatch.undo()
    expected = one.hidden(make_batch(sequences()))
    assert 1e-4 * expected.norm() < (hidden - expected).norm() < 0.05 * expected.norm()


# Flex attention: torch lets it run backward on a CPU only where its check is taken out, and then uncompiled.


@pytest.fixture
def backward_on_cpu(monkeypatch):
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_flex_attention_of_a_row_equals_its_blocks_in_value_and_gradient(architecture, policy_of, backward_on_cpu):
    one = made(policy_of, architecture, torch.float32, **ARCHITECTURES[architecture])
    batch = make_batch(sequences())
    expected = states_and_gradient(one, batch)
    assert not one.flex and one._flex_is_exact()
    one.flex = True
    for value, wanted in zip(states_and_gradient(one, batch), expected):
        assert 0 < (value - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("window", [None, 1, 40, 1000])
def test_flex_attention_of_long_rows_with_grouped_heads_equals_their_blocks(window, backward_on_cpu):
    torch.manual_seed(0)
    blocks = (Block(0, 150), Block(150, 151, 0, 150), Block(151, 300, 0, 150), Block(300, 301),
              Block(301, 420, 300, 301))
    inputs = [torch.randn(1, heads, 420, 8, requires_grad=True) for heads in (4, 2, 2)]
    results = []
    for compute in (attention_of_row, packed_attention):
        found = compute(*inputs, Packing(blocks), 0.3, window)
        results.append([found, *torch.autograd.grad(found.sin().sum(), inputs)])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_flex_attention_is_compiled_once_for_rows_of_all_lengths_and_any_blocks(backward_on_cpu, monkeypatch):
    """Were it compiled for each row, torch would give up after some, and lay out all pairs of tokens."""
    torch.manual_seed(0)
    graphs = []
    compiled = torch.compile(flex_attention.flex_attention, dynamic=True,
                             backend=lambda graph, _: graphs.append(graph) or graph.forward)
    monkeypatch.setattr(flex_attention, "flex_attention", compiled)
    for window in (None, 40):
        for first, second, last in ((150, 151, 300), (100, 260, 500), (130, 131, 1000), (128, 256, 512)):
            blocks = (Block(0, first), Block(first, second, 0, first), Block(second, last, 0, first),
                      *(Block(last + i, last + i + 1) for i in range(first % 3)))
            inputs = [torch.randn(1, heads, blocks[-1].stop, 8, requires_grad=True) for heads in (4, 2, 2)]
            found, expected = (compute(*inputs, Packing(blocks), None, window)
                               for compute in (attention_of_row, packed_attention))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(graphs) == 2  # with a window and without


def test_where_flex_attention_does_not_work_or_is_not_exact_blocks_are_read_and_a_warning_says_why(
        policy_of, monkeypatch, caplog, backward_on_cpu):
    model = policy_of()
    monkeypatch.setattr(Policy, "_takes_flex", True)  # as on a GPU
    assert Policy(model.model, model.tokenizer, model.config).flex
    monkeypatch.setattr(attention, "flex_attention", lambda *given: 1.1 * attention_of_row(*given))
    one = Policy(model.model, model.tokenizer, model.config)
    assert one.packs and not one.flex and "it computes something else" in caplog.text
    monkeypatch.undo()
    caplog.clear()
    monkeypatch.setattr(Policy, "_takes_flex", True)
    one = Policy(model.model, model.tokenizer, model.config)
    assert one.packs and not one.flex
    assert "flex attention cannot be used: FlexAttention does not support backward on CPU" in caplog.text
    states_and_gradient(one, make_batch(sequences()))
