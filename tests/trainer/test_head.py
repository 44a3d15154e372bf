"""score_tokens against the plain computation on whole logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from turncredit.trainer.head import score_tokens


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation made, forward or backward."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [t.untyped_storage().nbytes() // t.element_size() for t in tree_leaves(out)
                 if isinstance(t, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


def problem(tokens=7, vocabulary=11, width=5, seed=0, dtype=torch.float64, with_bias=True, with_teacher=True):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    hidden, weight = draw(tokens, width).requires_grad_(), draw(vocabulary, width).requires_grad_()
    bias = draw(vocabulary).requires_grad_() if with_bias else None
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    return hidden, weight, targets, draw(tokens, width) if with_teacher else None, bias


def plainly(hidden, weight, targets, teacher_hidden=None, bias=None):
    """Logprobs, entropy and KL(teacher || student) from whole logits."""
    offset = 0 if bias is None else bias
    student = torch.log_softmax(hidden @ weight.T + offset, -1)
    logprobs = student[torch.arange(len(targets)), targets]
    entropy = -(student.exp() * student).sum(-1)
    kl = None
    if teacher_hidden is not None:
        teacher = torch.log_softmax(teacher_hidden @ weight.T + offset, -1)
        kl = (teacher.exp() * (teacher - student)).sum(-1)
    return logprobs, entropy, kl


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-12)


@given(st.integers(0, 1000), st.integers(1, 9), st.booleans(), st.booleans())
def test_logprobs_entropy_and_kl_equal_the_plain_computation(seed, chunk, with_bias, with_teacher):
    inputs = problem(seed=seed, with_bias=with_bias, with_teacher=with_teacher)
    scores = score_tokens(*inputs, chunk=chunk)
    logprobs, entropy, kl = plainly(*inputs)
    close(scores.logprobs, logprobs)
    close(scores.entropy, entropy.detach())
    if with_teacher:
        close(scores.kl, kl.detach())
    else:
        assert scores.kl is None


@given(st.integers(0, 1000), st.integers(1, 9), st.booleans(), st.booleans())
def test_gradients_of_hidden_weight_and_bias_equal_autograds(seed, chunk, with_bias, with_teacher):
    hidden, weight, targets, teacher, bias = problem(seed=seed, with_bias=with_bias, with_teacher=with_teacher)
    wanted = [t for t in (hidden, weight, bias) if t is not None]
    upstream = torch.randn(len(targets), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = torch.autograd.grad(plainly(hidden, weight, targets, teacher, bias)[0], wanted, upstream)
    got = torch.autograd.grad(score_tokens(hidden, weight, targets, teacher, bias, chunk).logprobs, wanted, upstream)
    for one, other in zip(got, expected):
        close(one, other)


def test_gradients_pass_finite_differences():
    hidden, weight, targets, _, bias = problem(tokens=3, vocabulary=4, width=2, with_teacher=False)
    assert torch.autograd.gradcheck(lambda h, w, b: score_tokens(h, w, targets, None, b, 2).logprobs,
                                    (hidden, weight, bias))


def test_float32_is_precise_to_1e_6():
    inputs = problem(tokens=64, vocabulary=300, width=32, dtype=torch.float32)
    scaled = [0.3 * inputs[0].detach(), inputs[1].detach(), inputs[2], 0.3 * inputs[3], inputs[4].detach()]
    scores = score_tokens(*scaled, chunk=10)
    doubled = [t.double() if t.is_floating_point() else t for t in scaled]
    for got, expected in zip((scores.logprobs, scores.entropy, scores.kl), plainly(*doubled)):
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 63, 64, 65, 512])
def test_any_chunk_size_gives_the_same(chunk):
    inputs = problem(tokens=64)
    once, again = score_tokens(*inputs, chunk=64), score_tokens(*inputs, chunk=chunk)
    for name in ("logprobs", "entropy", "kl"):
        close(getattr(once, name), getattr(again, name))
    close(*(torch.autograd.grad(s.logprobs.sum(), inputs[1])[0] for s in (once, again)))


def test_entropy_and_kl_carry_no_gradient_and_none_flows_into_the_teacher():
    hidden, weight, targets, teacher, bias = problem()
    teacher.requires_grad_()
    scores = score_tokens(hidden, weight, targets, teacher, bias)
    assert not scores.entropy.requires_grad and not scores.kl.requires_grad
    scores.logprobs.sum().backward()
    assert teacher.grad is None


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_do():
    hidden, weight, targets, teacher, _ = problem(with_bias=False)
    frozen = weight.detach()
    got = torch.autograd.grad(score_tokens(hidden, frozen, targets, teacher).logprobs.sum(), hidden)[0]
    close(got, torch.autograd.grad(plainly(hidden, frozen, targets)[0].sum(), hidden)[0])


def test_no_tensor_of_tokens_by_vocabulary_is_made_forward_or_backward():
    tokens, vocabulary, width, chunk = 600, 500, 8, 32
    hidden, weight, targets, teacher, bias = problem(tokens, vocabulary, width)
    with LargestTensor() as largest:
        score_tokens(hidden, weight, targets, teacher, bias, chunk).logprobs.sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    assert largest.elements <= max(chunk * vocabulary, tokens * width, vocabulary * width) < tokens * vocabulary / 10


def test_the_size_recorder_sees_whole_logits_where_they_are_made():
    hidden, weight, targets, _, bias = problem(600, 500, 8)
    with LargestTensor() as largest:
        plainly(hidden, weight, targets, None, bias)[0].sum().backward()
    assert largest.elements >= 600 * 500


def test_no_token_at_all_is_no_error():
    hidden, weight, targets, teacher, bias = problem(tokens=0)
    scores = score_tokens(hidden, weight, targets, teacher, bias)
    scores.logprobs.sum().backward()
    assert scores.logprobs.shape == (0,) and (weight.grad == 0).all()
