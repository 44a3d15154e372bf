"""A small policy made from nothing: a Llama of a million parameters, and a tokenizer learnt from given texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from turncredit.config import TinyModel

# ChatML. The generation prompt is exactly what stands before an assistant's turn, so that turns can be appended.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|pad|>", "<|im_start|>", "<|im_end|>"]


def learn_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer with single digits, its ChatML template included; the same for the same texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    # Only digits are kept apart: a phrase that always stands together, such as a tool's name and its first argument,
    # may become one token. On a CPU short episodes are worth more than a tokenizer's good manners.
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet,
                                  show_progress=False)
    backend.train_from_iterator(["system", "user", "assistant", "tool", *texts], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|pad|>",
                                        additional_special_tokens=["<|im_start|>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_tiny_model(settings: TinyModel, tokenizer: Any, seed: int) -> Any:
    """A freshly initialised Llama for that tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=settings.width, intermediate_size=3 * settings.width,
            num_hidden_layers=settings.layers, num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads, max_position_embeddings=settings.context, tie_word_embeddings=True,
            # Variance 1/width: transformers' own 0.02 is for wide models, and makes so narrow a one learn half as fast.
            initializer_range=settings.width ** -0.5,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
