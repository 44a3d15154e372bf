"""The small policy made from nothing: the same for the same texts and seed, in any process."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from turncredit.agents import ChatFormat
from turncredit.agents.tiny import learn_tokenizer, make_tiny_model
from turncredit.config import TinyModel

TEXTS = [f"What is {i} + {i * 7 % 30} * {i % 9}? @calculate a={i} op=+ b={i * 3}" for i in range(200)]
SETTINGS = TinyModel(vocabulary=400, width=32, layers=2, heads=2, context=64)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return learn_tokenizer(TEXTS, SETTINGS.vocabulary)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_goes_through_the_tokenizer_unchanged(tokenizer: Any, text: str) -> None:
    chat = ChatFormat(tokenizer)
    assert chat.text(chat.plain(text), keep_special=True) == text


def test_every_digit_is_a_token(tokenizer: Any) -> None:
    for number in ("7", "42", "1234567890"):
        assert len(ChatFormat(tokenizer).plain(number)) == len(number)


def test_the_tokenizer_has_at_most_the_asked_for_size_and_a_template_that_can_be_appended_to(tokenizer: Any) -> None:
    assert 259 < len(tokenizer) <= SETTINGS.vocabulary  # bytes and special tokens, and as many words as there are
    assert len(learn_tokenizer(TEXTS, 270)) == 270
    chat = ChatFormat(tokenizer)
    assert tokenizer.convert_ids_to_tokens(chat.end_id) == "<|im_end|>" == tokenizer.eos_token
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_same_texts_are_the_same_tokenizer_in_another_process(tokenizer: Any) -> None:
    program = ("import json, sys; from turncredit.agents.tiny import learn_tokenizer; "
               "print(json.dumps(learn_tokenizer(json.load(sys.stdin), 400).get_vocab(), sort_keys=True))")
    other = subprocess.run([sys.executable, "-c", program], input=json.dumps(TEXTS), capture_output=True, text=True,
                           check=True)
    assert json.loads(other.stdout.splitlines()[-1]) == tokenizer.get_vocab()


def test_a_seed_decides_the_weights_and_the_global_generator_stays_as_it_was(tokenizer: Any) -> None:
    def weights(seed: int) -> torch.Tensor:
        return torch.cat([p.flatten() for p in make_tiny_model(SETTINGS, tokenizer, seed).parameters()])

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, again, other = weights(1), weights(1), weights(2)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.rand(1), expected)


def test_the_model_has_the_tokenizer_s_vocabulary_and_the_asked_for_context(tokenizer: Any) -> None:
    config = make_tiny_model(SETTINGS, tokenizer, 0).config
    assert (config.vocab_size, config.max_position_embeddings, config.hidden_size) == (len(tokenizer), 64, 32)
    assert config.tie_word_embeddings
