"""score_tokens against the plain computation on whole logits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from turncredit.trainer import head
from turncredit.trainer.head import DIFFERENTIABLE, MEASURES, Measures, score_tokens

BF16_ERROR = 0.02  # relative; 2^-8 a rounding


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


def plainly(hidden, weight, targets, teacher_hidden=None, bias=None, teacher_weight=None, teacher_bias=None, b=0.5,
            js_limit=torch.inf):
    """Logprobs and every measure from whole logits, by their definitions."""
    offset = 0 if bias is None else bias
    student = torch.log_softmax(hidden @ weight.T + offset, -1)
    values = {"logprobs": student[torch.arange(len(targets)), targets],
              "entropy": -(student.exp() * student).sum(-1)}
    if teacher_hidden is not None:
        if teacher_weight is None:
            teacher_weight, teacher_bias = weight.detach(), None if bias is None else bias.detach()
        offset = 0 if teacher_bias is None else teacher_bias
        teacher = torch.log_softmax(teacher_hidden @ teacher_weight.T + offset, -1).detach()
        mixed = (b * teacher.exp() + (1 - b) * student.exp()).log()
        entries = b * teacher.exp() * (teacher - mixed) + (1 - b) * student.exp() * (student - mixed)
        values |= {"kl": (teacher.exp() * (teacher - student)).sum(-1),
                   "reverse_kl": (student.exp() * (student - teacher)).sum(-1),
                   "js": entries.clamp_max(js_limit).sum(-1),
                   "teacher_logprob": teacher[torch.arange(len(targets)), targets]}
    return values


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-12)


@given(st.integers(0, 1000), st.integers(1, 9), st.booleans(), st.booleans())
def test_every_measure_equals_the_plain_computation(seed, chunk, with_bias, with_teacher):
    inputs = problem(seed=seed, with_bias=with_bias, with_teacher=with_teacher)
    scores = score_tokens(*inputs, chunk=chunk, measures=Measures(MEASURES))
    expected = plainly(*inputs)
    for name in ("logprobs", *MEASURES):
        if name in expected:
            close(getattr(scores, name), expected[name].detach())
        else:
            assert getattr(scores, name) is None


@given(st.integers(0, 1000), st.integers(1, 9), st.booleans(), st.sets(st.sampled_from(DIFFERENTIABLE)),
       st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from([None, 0.02]))
def test_gradients_of_hidden_weight_and_bias_equal_autograds(seed, chunk, with_bias, sloped, b, limit):
    inputs = problem(seed=seed, with_bias=with_bias)
    wanted = [t for t in (inputs[0], inputs[1], inputs[4]) if t is not None]
    measures = Measures(MEASURES, sloped, mixture=b, js_limit=limit)
    got = score_tokens(*inputs, chunk=chunk, measures=measures)
    expected = plainly(*inputs, b=b, js_limit=limit or torch.inf)
    generator = torch.Generator().manual_seed(seed)
    upstream = {name: torch.randn(len(inputs[2]), generator=generator, dtype=torch.float64)
                for name in ("logprobs", *sorted(sloped))}
    losses = [sum((values[name] * g).sum() for name, g in upstream.items()) for values in (vars_of(got), expected)]
    for one, other in zip(*(torch.autograd.grad(loss, wanted) for loss in losses)):
        close(one, other)


def vars_of(scores):
    return {name: getattr(scores, name) for name in ("logprobs", *MEASURES)}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_measure_alone_has_its_gradient_and_the_logprob_none(name):
    inputs = problem()
    got = score_tokens(*inputs, measures=Measures([name], [name]))
    close(torch.autograd.grad(getattr(got, name).sum(), inputs[0])[0],
          torch.autograd.grad(plainly(*inputs)[name].sum(), inputs[0])[0])
    assert [n for n in MEASURES if getattr(got, n) is not None] == [name]


def test_the_teacher_may_be_another_model_of_the_same_vocabulary():
    inputs = problem()
    generator = torch.Generator().manual_seed(5)
    hidden, weight, bias = (torch.randn(*shape, generator=generator, dtype=torch.float64)
                            for shape in ((7, 3), (11, 3), (11,)))
    own = [inputs[0], inputs[1], inputs[2], hidden, inputs[4]]
    got = score_tokens(*own, measures=Measures(MEASURES, DIFFERENTIABLE), teacher_weight=weight, teacher_bias=bias)
    expected = plainly(*own, teacher_weight=weight, teacher_bias=bias)
    close(got.teacher_logprob, expected["teacher_logprob"])
    for name in DIFFERENTIABLE:
        close(getattr(got, name), expected[name])
        close(*(torch.autograd.grad(v.sum(), inputs[1], retain_graph=True)[0]
                for v in (getattr(got, name), expected[name])))


def test_a_teacher_with_another_vocabulary_is_refused():
    inputs = problem()
    with pytest.raises(ValueError, match="vocabulary has 12 entries and the student's 11"):
        score_tokens(*inputs, teacher_weight=torch.zeros(12, 5, dtype=torch.float64))


@pytest.mark.parametrize(("settings", "message"), [
    ({"wanted": ["kll"]}, "'kll': it must be one of"), ({"with_gradient": ["js"]}, "'js', which is not wanted"),
    ({"mixture": 1.0}, "it must lie between")])
def test_measures_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Measures(**settings)


def test_distributions_so_far_apart_that_they_underflow_stay_finite_in_value_and_gradient():
    weight = torch.tensor([[800.0], [-800.0], [0.0]], dtype=torch.float64, requires_grad=True)
    hidden = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    scores = score_tokens(hidden, weight, torch.tensor([0]), -hidden.detach(),
                          measures=Measures(MEASURES, DIFFERENTIABLE))
    assert scores.kl.item() == pytest.approx(1600) and scores.js.item() == pytest.approx(math.log(2))
    total = sum(value.sum() for value in vars_of(scores).values())
    assert all(g.isfinite().all() for g in torch.autograd.grad(total, [hidden, weight]))


@pytest.mark.parametrize("top", [1, 3, 10, 11, 100])
@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js"])
def test_a_divergence_of_the_likeliest_entries_is_one_of_so_many_and_the_rest(top, name):
    """Of distributions with top + 1 entries, in value and gradient; the teacher's logprob is of its own."""
    inputs = problem(tokens=9)
    scores = score_tokens(*inputs, chunk=4, measures=Measures([name, "teacher_logprob"], [name], 0.3, top=top))
    hidden, weight, _, teacher, bias = inputs
    p = torch.softmax(hidden @ weight.T + bias, -1)
    q = torch.softmax(teacher @ weight.T + bias, -1).detach()
    chosen = [sorted(range(11), key=lambda entry: -row[entry])[:top] for row in p.tolist()]
    p, q = ([torch.cat([row[own], 1 - row[own].sum()[None]] if len(own) < 11 else [row[own]])
             for row, own in zip(rows, chosen)] for rows in (p, q))
    m = [0.3 * b + 0.7 * a for a, b in zip(p, q)]

    def kl(one, other):
        return (one * (one / other).log()).sum()

    expected = torch.stack([{"kl": lambda i: kl(q[i], p[i]), "reverse_kl": lambda i: kl(p[i], q[i]),
                             "js": lambda i: 0.3 * kl(q[i], m[i]) + 0.7 * kl(p[i], m[i])}[name](i) for i in range(9)])
    close(getattr(scores, name), expected)
    close(scores.teacher_logprob, plainly(*inputs)["teacher_logprob"])
    upstream = torch.arange(1.0, 10.0, dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad(upstream @ values, [hidden, weight, bias])
                            for values in (getattr(scores, name), expected))):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-11)


def test_what_is_not_asked_for_is_not_computed(monkeypatch):
    asked, projected = [], []
    measure, project = head._measure, head._Projection._project
    monkeypatch.setattr(head, "_measure", lambda name, *rest: asked.append(name) or measure(name, *rest))
    monkeypatch.setattr(head._Projection, "_project", lambda *given: projected.append(given) or project(*given))
    score_tokens(*problem(), measures=Measures(["js"]))
    assert asked == ["js"] and len(projected) == 2
    score_tokens(*problem(), measures=Measures(["entropy"]))  # the teacher is not needed
    score_tokens(*problem(with_teacher=False), measures=Measures(["js"]))
    assert asked == ["js", "entropy"] and len(projected) == 4


def test_gradients_pass_finite_differences():
    hidden, weight, targets, _, bias = problem(tokens=3, vocabulary=4, width=2, with_teacher=False)
    assert torch.autograd.gradcheck(lambda h, w, b: score_tokens(h, w, targets, None, b, 2).logprobs,
                                    (hidden, weight, bias))


def test_float32_is_precise_to_1e_6():
    inputs = problem(tokens=64, vocabulary=300, width=32, dtype=torch.float32)
    scaled = [0.3 * inputs[0].detach(), inputs[1].detach(), inputs[2], 0.3 * inputs[3], inputs[4].detach()]
    scores = score_tokens(*scaled, chunk=10, measures=Measures(MEASURES))
    doubled = [t.double() if t.is_floating_point() else t for t in scaled]
    expected = plainly(*doubled)
    for name in ("logprobs", *MEASURES):
        torch.testing.assert_close(getattr(scores, name).double(), expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["logprobs", *DIFFERENTIABLE])
def test_bfloat16_is_precise_to_its_rounding(name):
    """Hidden states, weights and logits have 8 bits; what follows is float32, so that errors do not add up."""
    inputs = problem(tokens=64, vocabulary=300, width=32, dtype=torch.bfloat16, with_bias=False)
    hidden, weight, targets, teacher, _ = inputs
    small = [(0.3 * hidden.detach()).requires_grad_(), weight, targets, 0.3 * teacher]
    doubled = [t.detach().double().requires_grad_() if t.is_floating_point() else t for t in small]
    got = getattr(score_tokens(*small, measures=Measures(MEASURES, DIFFERENTIABLE)), name)
    expected = plainly(*doubled)[name]
    assert got.dtype == torch.float32
    assert (got.double() - expected).abs().max() <= BF16_ERROR * expected.abs().max()
    for one, other in zip(torch.autograd.grad(got.sum(), small[:2]), torch.autograd.grad(expected.sum(), doubled[:2])):
        assert (one.double() - other).norm() <= BF16_ERROR * other.norm()


def test_a_head_of_another_precision_is_cast_to_the_states_and_its_gradient_is_in_its_own():
    hidden, weight, targets, teacher, _ = problem(tokens=64, vocabulary=300, width=32, dtype=torch.bfloat16,
                                                  with_bias=False)
    master = weight.detach().float().requires_grad_()
    cast, mixed = (score_tokens(hidden, w, targets, teacher, chunk=10, measures=Measures(MEASURES, ["reverse_kl"]))
                   for w in (weight, master))
    assert all(torch.equal(one, other) for one, other in zip(vars_of(cast).values(), vars_of(mixed).values()))
    (one, rounded), (other, whole) = (torch.autograd.grad((s.logprobs + s.reverse_kl).sum(), (hidden, w))
                                      for s, w in ((cast, weight), (mixed, master)))
    assert torch.equal(one, other)
    assert torch.equal(whole.bfloat16(), rounded) and not torch.equal(whole, rounded.float())


@pytest.mark.parametrize("chunk", [1, 3, 63, 64, 65, 512])
def test_any_chunk_size_gives_the_same(chunk):
    inputs = problem(tokens=64)
    once, again = (score_tokens(*inputs, chunk=size, measures=Measures(MEASURES)) for size in (64, chunk))
    for name in ("logprobs", *MEASURES):
        close(getattr(once, name), getattr(again, name))
    close(*(torch.autograd.grad(s.logprobs.sum(), inputs[1])[0] for s in (once, again)))


def test_no_measure_carries_a_gradient_unless_told_and_none_flows_into_the_teacher():
    hidden, weight, targets, teacher, bias = problem()
    teacher.requires_grad_()
    scores = score_tokens(hidden, weight, targets, teacher, bias)
    assert not scores.entropy.requires_grad and not scores.kl.requires_grad
    scores.logprobs.sum().backward()
    assert teacher.grad is None


@pytest.mark.parametrize("sloped", [[], ["kl"]])
def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_do(sloped):
    hidden, weight, targets, teacher, _ = problem(with_bias=False)
    frozen = weight.detach()
    scores = score_tokens(hidden, frozen, targets, teacher, chunk=3, measures=Measures(MEASURES, sloped))
    expected = plainly(hidden, frozen, targets, teacher)
    upstream = torch.arange(1.0, 8.0, dtype=torch.float64)
    losses = [sum(upstream @ values[name] for name in ["logprobs", *sloped]) for values in (vars_of(scores), expected)]
    close(*(torch.autograd.grad(loss, hidden)[0] for loss in losses))


def test_a_frozen_head_is_projected_onto_once(monkeypatch):
    """What LoRA trains: the gradient of one logprob is a vector, which is kept."""
    projected = []
    project = head._Projection._project
    monkeypatch.setattr(head._Projection, "_project", lambda *given: projected.append(given) or project(*given))
    for frozen, times in ((True, 1), (False, 2)):
        hidden, weight, targets, _, _ = problem(with_bias=False)
        projected.clear()
        score_tokens(hidden, weight.detach() if frozen else weight, targets).logprobs.sum().backward()
        assert len(projected) == times


def test_no_tensor_of_tokens_by_vocabulary_is_made_forward_or_backward():
    tokens, vocabulary, width, chunk = 600, 500, 8, 32
    hidden, weight, targets, teacher, bias = problem(tokens, vocabulary, width)
    with LargestTensor() as largest:
        scores = score_tokens(hidden, weight, targets, teacher, bias, chunk, Measures(MEASURES, DIFFERENTIABLE))
        sum(value.sum() for value in vars_of(scores).values()).backward()
    assert hidden.grad is not None and weight.grad is not None
    assert largest.elements <= max(chunk * vocabulary, tokens * width, vocabulary * width) < tokens * vocabulary / 10


def test_the_size_recorder_sees_whole_logits_where_they_are_made():
    hidden, weight, targets, _, bias = problem(600, 500, 8)
    with LargestTensor() as largest:
        plainly(hidden, weight, targets, None, bias)["logprobs"].sum().backward()
    assert largest.elements >= 600 * 500


def test_no_token_at_all_is_no_error():
    hidden, weight, targets, teacher, bias = problem(tokens=0)
    scores = score_tokens(hidden, weight, targets, teacher, bias)
    scores.logprobs.sum().backward()
    assert scores.logprobs.shape == (0,) and (weight.grad == 0).all()
