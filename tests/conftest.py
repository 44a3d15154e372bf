"""Small real tokenizers, one for each kind of chat template in tests/templates, and a small real model."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# How Llama-3 and Qwen cut text into words.
WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
TEMPLATES = Path(__file__).parent / "templates"
CORPUS = ["system", "user", "assistant", "tool", "What is 12 + 7 - 3?", "The answer is 19.",
          "Hello there, how are you?",
          '<tool_call>\n{"name": "calculate", "arguments": {"a": 12, "op": "+", "b": 7}}\n</tool_call>',
          "@calculate a=12 op=+ b=7", "<think>\n\n</think>\n\n", "[INST] [/INST]", "error: unknown tool"] * 3

# What each template's models have: special tokens, the one that ends a turn, and how text is cut into tokens.
KINDS: dict[str, tuple[Sequence[str], str, str]] = {
    "chatml": (("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", "bytes"),
    "default_system": (("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", "bytes"),
    "llama3": (("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
               "<|eot_id|>", "bytes"),
    "mistral": (("<unk>", "<s>", "</s>"), "</s>", "metaspace"),
    "mistral_system": (("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"), "</s>",
                       "metaspace"),
    "qwen3": (("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", "bytes"),
    "no_end": (("<|endoftext|>",), "<|endoftext|>", "bytes"),
    "twice": (("<|im_start|>", "<|im_end|>"), "<|im_end|>", "bytes"),
}


@functools.cache
def make_tokenizer(template: str) -> Any:
    """A tokenizer of a few hundred tokens with that template; the same object at each call."""
    from transformers import PreTrainedTokenizerFast

    special, eos, cut = KINDS[template]
    backend = (_byte_level if cut == "bytes" else _sentencepiece_like)(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token=_bos(special),
                                        unk_token="<unk>" if "<unk>" in special else None,
                                        clean_up_tokenization_spaces=False)
    if template == "qwen3":  # added, but not special: Qwen's own choice
        tokenizer.add_tokens(["<think>", "</think>", "<tool_response>", "</tool_response>"])
    tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text()
    return tokenizer


def _bos(special: Sequence[str]) -> str | None:
    return next((token for token in special if token in ("<|begin_of_text|>", "<s>")), None)


def _byte_level(special: Sequence[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS), "isolated"),
                                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=256 + len(special) + 60, special_tokens=list(special),
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _sentencepiece_like(special: Sequence[str]) -> Any:
    """As Llama-2's and Mistral's: spaces become ▁, one stands in front of the text, unknown characters are bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=list(special), show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    state = json.loads(backend.to_str())
    vocabulary = state["model"]["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    backend = Tokenizer.from_str(json.dumps(state))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                         decoders.Strip(" ", 1, 0)])
    return backend


@pytest.fixture(scope="session")
def tokenizer_for() -> Callable[[str], Any]:
    """Template name -> tokenizer."""
    return make_tokenizer


@functools.cache
def make_model(vocabulary: int) -> Any:
    """A Llama of two small layers, with weights large enough that its predictions differ from token to token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)  # for a model this small more of them only get into each other's way
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.4, bos_token_id=None,
            eos_token_id=None, pad_token_id=None))
    return model.eval()


@pytest.fixture(scope="session")
def model_for() -> Callable[[Any], Any]:
    """Tokenizer -> a small random Llama with its vocabulary."""
    return lambda tokenizer: make_model(len(tokenizer))


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of a very small policy, with every checkpoint; to be looked at, not changed."""
    import torch

    from turncredit.config import parse_config
    from turncredit.progress import Display
    from turncredit.trainer.loop import train

    torch.set_num_threads(1)
    env = {"id": "turncredit/Calculator-v0", "arguments": {"level": 1}}
    config = parse_config({
        "name": "trained", "seed": 0, "runs": str(tmp_path_factory.mktemp("runs")), "envs": [env],
        "model": {"tiny": {"width": 32, "layers": 2, "heads": 2, "context": 512, "vocabulary": 360},
                  "tool_calls": "plain"},
        "rollout": {"groups": 3, "group_size": 4, "turn_tokens": 16, "episode_tokens": 40, "context_tokens": 400},
        "trainer": {"steps": 3, "lr": 1e-3, "save_every": 1, "keep_checkpoints": 9, "micro_batch_tokens": 600},
        "tracking": {"to": ["tensorboard"] if importlib.util.find_spec("tensorboard") else []},
        "warmstart": {"envs": [env], "steps": 12, "lr": 5e-3, "batch": 8, "demonstrations": 16},
        "evaluation": {"envs": [env | {"split": "test"}], "tasks": 2, "every": 2}})
    return train(config, Display()).path
