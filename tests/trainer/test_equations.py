"""Every algorithm, end to end, against its equation written out in loops over episodes and tokens, in float64.

The policy has moved since it sampled: ratios are not 1, and clips act on both sides. What an algorithm may choose
freely (whose solution the teacher reads) is taken from its credit and held against what it may choose from.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from turncredit.config import EnvConfig, TeacherConfig, TrainerConfig
from turncredit.trainer.algorithms import ALGORITHMS, OPD, OPSD, Algorithm, make_algorithm
from turncredit.trainer.demonstrations import Demonstrator
from turncredit.trainer.learner import Learner
from turncredit.trainer.policy import Policy
from turncredit.trainer.teacher import FEEDBACK, GUIDE, reference_text

STEP = 4
CALCULATOR = {"id": "turncredit/Calculator-v0", "arguments": {"level": 1}}
SIGNS = ("++-", "+--", "+++", "---")  # partly solved, one solved, all solved, none solved


@dataclass
class Token:
    """All that equations speak of at one generated token."""

    log_p: Any  # [vocabulary], the student's, with gradient
    log_q: Any  # [vocabulary], the teacher's; None without one
    id: int
    old: float  # its logprob under the policy that sampled it
    start: float  # and under the one that the run started from

    @property
    def log_pi(self) -> Any:
        return self.log_p[self.id]

    @property
    def rho(self) -> Any:
        return (self.log_pi - self.old).exp()

    @property
    def kl(self) -> Any:
        """KL(teacher || student)."""
        return (self.log_q.exp() * (self.log_q - self.log_p)).sum()

    @property
    def reverse_kl(self) -> Any:
        return (self.log_p.exp() * (self.log_p - self.log_q)).sum()


@dataclass
class Response:
    """An episode o_i of a group."""

    reward: float
    correct: bool
    tokens: list[Token]

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Any:
        return iter(self.tokens)


Groups = list[list[Response]]


def everything(groups: Groups) -> list[Response]:
    return [response for group in groups for response in group]


def mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def std(values: Any) -> float:
    values = list(values)
    return math.sqrt(mean((v - mean(values)) ** 2 for v in values))


def standardised(values: list[float]) -> list[float]:
    return [(v - mean(values)) / std(values) if std(values) > 1e-6 else 0.0 for v in values]


def clipped(ratio: Any, advantage: float, low: float = 0.2, high: float = 0.2) -> Any:
    """min(ratio A, clip(ratio, 1 - low, 1 + high) A)."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def relative(group: list[Response]) -> list[float]:
    """GRPO's advantages."""
    return standardised([o.reward for o in group])


def per_sequence(groups: Groups, term: Callable[[Response, Token], Any]) -> Any:
    """The mean over all episodes of the mean over an episode's tokens."""
    return mean(mean(term(o, t) for t in o) for o in everything(groups))


def weighted(groups: Groups, advantages: dict[int, float], surrogate: Callable[[Response, Token, float], Any],
             f: Callable[[float], float], normaliser: Callable[[Response], float]) -> Any:
    """- sum of f A-terms, where `advantages` goes by the responses' ids."""
    total = 0.0
    for o in everything(groups):
        for t in o:
            weight = 1.0 if t.log_q is None else f(float(t.kl.detach()))
            total = total - weight * surrogate(o, t, advantages[id(o)]) / normaliser(o)
    return total


def grpo(groups: Groups, low: float = 0.2, high: float = 0.2) -> Any:
    advantage = advantages_of(groups)
    return -per_sequence(groups, lambda o, t: clipped(t.rho, advantage[id(o)], low, high))


def advantages_of(groups: Groups) -> dict[int, float]:
    return {id(o): a for group in groups for o, a in zip(group, relative(group))}


def dapo(groups: Groups) -> Any:
    """Its rewards have the soft overlong punishment: whole from one token less than the longest, none at 2 or fewer."""
    limit = max(map(len, everything(groups))) - 1
    for o in everything(groups):
        if len(o) > limit:
            o.reward -= 1
        elif len(o) > 2:
            o.reward += (2 - len(o)) / (limit - 2)
    advantage = advantages_of(groups)
    terms = [clipped(t.rho, advantage[id(o)], 0.2, 0.28) for o in everything(groups) for t in o]
    return -mean(terms)


def dr_grpo(groups: Groups) -> Any:
    total = 0.0
    for group in groups:
        for o in group:
            total = total - sum(clipped(t.rho, o.reward - mean(k.reward for k in group)) for t in o)
    return total / (len(everything(groups)) * 100)


def rloo(groups: Groups) -> Any:
    advantage = {id(o): o.reward - mean(k.reward for k in group if k is not o) for group in groups for o in group}
    return -per_sequence(groups, lambda o, t: clipped(t.rho, advantage[id(o)]))


def reinforce_pp(groups: Groups) -> Any:
    returns = []
    for o in everything(groups):
        rewards = [-0.5 * (t.old - t.start) for t in o]
        rewards[-1] += o.reward
        returns.append([sum(0.9 ** (s - t) * rewards[s] for s in range(t, len(o))) for t in range(len(o))])
    flat = [r for one in returns for r in one]
    return -mean(mean(clipped(t.rho, (r - mean(flat)) / std(flat)) for t, r in zip(o, one))
                 for o, one in zip(everything(groups), returns))


def gspo(groups: Groups) -> Any:
    """Equation 5, of whole sequences: the code has the token form, which must have the same gradient."""
    advantage, total = advantages_of(groups), 0.0
    for o in everything(groups):
        s = (mean(t.log_pi for t in o) - mean(t.old for t in o)).exp()
        total = total - clipped(s, advantage[id(o)], 0.03, 0.04)
    return total / len(everything(groups))


def cispo(groups: Groups) -> Any:
    advantage = advantages_of(groups)
    terms = [t.rho.detach().clamp(0, 1.28) * advantage[id(o)] * t.log_pi for o in everything(groups) for t in o]
    return -mean(terms)


def f_of(groups: Groups, quantile: float | None = 0.75) -> Callable[[float], float]:
    """D / (D + c), with c over all tokens that have a teacher."""
    kls = [float(t.kl.detach()) for o in everything(groups) for t in o if t.log_q is not None]
    c = 1e-4 if quantile is None else max(float(np.quantile(kls, quantile)), 1e-4)
    return lambda kl: kl / (kl + c)


def sc_advantages(groups: Groups, alpha: float = 0.1, quantile: float | None = 0.75) -> dict[int, float]:
    """GRPO's, and in a group without a solution alpha times the standardised mean weight."""
    advantage = advantages_of(groups)
    for group in groups:
        scored = [o for o in group if o.tokens[0].log_q is not None]
        if any(o.correct for o in group) or not scored:
            continue
        [reference] = [o for o in group if o not in scored]
        f = f_of([group], quantile)
        s = [mean(f(float(t.kl.detach())) for t in o.tokens[:len(reference)]) for o in scored]
        advantage |= {id(o): alpha * (one - mean(s)) / (std(s) + 1e-6) for o, one in zip(scored, s)}
        advantage[id(reference)] = 0.0
    return advantage


def sc_grpo(groups: Groups, alpha: float = 0.1, quantile: float | None = 0.75) -> Any:
    n = len(everything(groups))
    return weighted(groups, sc_advantages(groups, alpha, quantile), lambda o, t, a: clipped(t.rho, a),
                    f_of(groups, quantile), lambda o: n * len(o))


def sc_on_dapo(groups: Groups) -> Any:
    tokens = sum(len(o) for o in everything(groups))
    return weighted(groups, sc_advantages(groups), lambda o, t, a: clipped(t.rho, a, 0.2, 0.28), f_of(groups),
                    lambda o: tokens)


def sc_on_gspo(groups: Groups) -> Any:
    """GSPO-token: s_it = sg(s_i) pi(o_it) / sg(pi(o_it))."""
    def surrogate(o: Response, t: Token, a: float) -> Any:
        s = math.exp(mean(float(u.log_pi.detach()) for u in o) - mean(u.old for u in o))
        return clipped(s * t.log_pi.exp() / t.log_pi.exp().detach(), a, 0.03, 0.04)

    n = len(everything(groups))
    return weighted(groups, sc_advantages(groups), surrogate, f_of(groups), lambda o: n * len(o))


def additive(*names: str, beta: float) -> Callable[[Groups], Any]:
    def loss(groups: Groups) -> Any:
        def pull(o: Response, t: Token) -> Any:
            return 0.0 if t.log_q is None else beta * sum(getattr(t, name) for name in names)

        return grpo(groups) + per_sequence(groups, pull)

    return loss


def distil(divergence: Callable[[Token], Any]) -> Callable[[Groups], Any]:
    return lambda groups: per_sequence(groups, lambda o, t: 0.0 if t.log_q is None else divergence(t))


def top_reverse_kl(t: Token) -> Any:
    """KL(student || teacher) over the student's 5 likeliest entries, and all others as one."""
    p, q = t.log_p.exp(), t.log_q.exp()
    own = sorted(range(len(p)), key=lambda entry: -float(p[entry].detach()))[:5]
    rest_p, rest_q = 1 - p[own].sum(), 1 - q[own].sum()
    return (p[own] * (p[own] / q[own]).log()).sum() + rest_p * (rest_p / rest_q).log()


def clipped_js(t: Token) -> Any:
    """OPSD's: every vocabulary entry's part of the Jensen-Shannon divergence is at most 0.05."""
    p, q = t.log_p.exp(), t.log_q.exp()
    m = (p + q) / 2
    return (q * (q / m).log() / 2 + p * (p / m).log() / 2).clamp(max=0.05).sum()


def rlsd(groups: Groups) -> Any:
    advantage = advantages_of(groups)

    def term(o: Response, t: Token) -> Any:
        a = advantage[id(o)]
        if t.log_q is not None and a != 0:
            delta = float((t.log_q[t.id] - t.log_pi).detach())
            a *= 0.3 + 0.7 * min(max(math.exp(math.copysign(1, a) * delta), 0.8), 1.2)
        return clipped(t.rho, a)

    return -per_sequence(groups, term)


def start_and_entropy(groups: Groups) -> Any:
    """GRPO's estimate of the KL to the start (arXiv 2402.03300, equation 4), and an entropy bonus."""
    def extra(o: Response, t: Token) -> Any:
        entropy = -(t.log_p.exp() * t.log_p).sum()
        return 0.04 * ((t.start - t.log_pi).exp() - (t.start - t.log_pi) - 1) - 0.03 * entropy

    return per_sequence(groups, extra)


def overlong(longest: int) -> dict[str, Any]:
    return {"overlong_limit": longest - 1, "overlong_buffer": longest - 3}


PAPER, SOLVED, NONE = ("partial", "none"), ("partial", "single", "all"), ()
SHOWN = ("demonstration",)  # every group, by a solution from outside
HEARD = (*SOLVED, "feedback")  # and what failed, by what it was told
# What is trained, the routes that have a teacher, the equation.
CASES: dict[str, tuple[Any, tuple[str, ...], Callable[[Groups], Any]]] = {
    "grpo": ({}, NONE, grpo),
    "grpo, its own clip": ({"clip_low": 0.1, "clip_high": 0.3}, NONE, lambda g: grpo(g, 0.1, 0.3)),
    "grpo, reference KL and entropy": ({"reference_kl": 0.04, "entropy_bonus": 0.03}, NONE,
                                       lambda g: grpo(g) + start_and_entropy(g)),
    "dapo": (overlong, NONE, dapo),
    "dr-grpo": ({"constant_length": 100}, NONE, dr_grpo),
    "rloo": ({}, NONE, rloo),
    "reinforce++": ({"discount": 0.9, "kl": 0.5}, NONE, reinforce_pp),
    "gspo": ({"clip_low": 0.03, "clip_high": 0.04}, NONE, gspo),
    "cispo": ({}, NONE, cispo),
    "sc-grpo": ({}, PAPER, sc_grpo),
    "sc-grpo, partial": ({"routes": ["partial"]}, ("partial",), sc_grpo),
    "sc-grpo, any partial": ({"routes": ["partial", "single"]}, ("partial", "single"), sc_grpo),
    "sc-grpo, all groups": ({"routes": ["partial", "none", "single", "all"]}, ("partial", "none", "single", "all"),
                            sc_grpo),
    "sc-grpo, p50 and alpha": ({"quantile": 0.5, "alpha": 0.2}, PAPER, lambda g: sc_grpo(g, 0.2, 0.5)),
    "sc-grpo, fixed c": ({"quantile": None}, PAPER, lambda g: sc_grpo(g, quantile=None)),
    "sc-grpo, independent references": ({"references": "independent"}, PAPER, sc_grpo),
    "sc-grpo, reference KL and entropy": ({"reference_kl": 0.04, "entropy_bonus": 0.03}, PAPER,
                                          lambda g: sc_grpo(g) + start_and_entropy(g)),
    "gspo, reference KL and entropy": (
        {"clip_low": 0.03, "clip_high": 0.04, "reference_kl": 0.04, "entropy_bonus": 0.03}, NONE,
        lambda g: gspo(g) + start_and_entropy(g)),
    "sdpo, reference KL and entropy": ({"reference_kl": 0.04, "entropy_bonus": 0.03}, SOLVED,
                                       lambda g: distil(lambda t: t.reverse_kl)(g) + start_and_entropy(g)),
    "sc-grpo, DAPO's clip and mean": ({"clip_high": 0.28, "normalize": "token"}, PAPER, sc_on_dapo),
    "sc-grpo, GSPO's ratios": ({"ratio": "sequence", "clip_low": 0.03, "clip_high": 0.04}, PAPER, sc_on_gspo),
    "additive": ({}, ("partial",), additive("kl", beta=0.1)),
    "additive, reverse": ({"direction": "reverse", "beta": 0.2}, ("partial",), additive("reverse_kl", beta=0.2)),
    "additive, both, warmed up": ({"direction": "both", "beta_start": 0.03, "beta_steps": 10}, ("partial",),
                                  additive("kl", "reverse_kl", beta=0.03 + 0.07 * STEP / 10)),
    "opd": ({}, NONE, distil(lambda t: t.reverse_kl)),
    "opd, forward": ({"divergence": "kl"}, NONE, distil(lambda t: t.kl)),
    "opsd": ({}, SOLVED, distil(clipped_js)),
    "sdpo": ({}, SOLVED, distil(lambda t: t.reverse_kl)),
    "sdpo, demonstration": ({"solution": "demonstration"}, SHOWN, distil(lambda t: t.reverse_kl)),
    "sdpo, likeliest entries": ({"top": 5}, SOLVED, distil(top_reverse_kl)),
    "sdpo, feedback": ({"feedback": True}, HEARD, distil(lambda t: t.reverse_kl)),
    "rlsd": ({"share": 0.7}, ("partial", "single"), rlsd),
}


def rows(policy: Policy, segments: Any) -> Any:
    """log pi of the whole vocabulary at each generated token, [generated, vocabulary]."""
    ids = torch.tensor([int(t) for s in segments for t in s.token_ids])
    flags = [s.generated for s in segments for _ in s.token_ids]
    at = [place for place in range(1, len(ids)) if flags[place]]
    logits = policy.model(ids[None]).logits[0]
    return torch.log_softmax(logits[[place - 1 for place in at]], -1)


def teacher_rows(learner: Learner, one: Any, episodes: dict[str, Any], others: list[Policy]) -> Any:
    """What the teacher says at each token of a credited episode; None where it has none.

    OPSD's is what the run started from, OPD's another model; everybody else's is the student.
    """
    if one.teacher_prompt is None:
        return None
    if isinstance(learner.algorithm, OPD):
        return rows(others[1], one.episode.segments)
    teacher = others[0] if isinstance(learner.algorithm, OPSD) else learner.policy
    read = []
    if one.reference is not None or learner.demonstrator is not None:
        solution = episodes[one.reference] if one.reference else learner.demonstrator.solutions[one.episode.group]
        read = [GUIDE, reference_text(solution)]
    if getattr(learner.algorithm, "feedback", False) and not one.episode.passed:
        told = [turn.observation for turn in one.episode.turns if turn.observation]
        read += [f"{FEEDBACK}\n{told[-1]}"] if told else []
    system = "\n\n".join([one.episode.system, *read])
    prompt = learner.policy.chat.first_prompt(system, one.episode.prompt)
    assert one.teacher_prompt.token_ids.tolist() == prompt
    return rows(teacher, [one.teacher_prompt, *one.episode.response])


def response_of(learner: Learner, one: Any, episodes: dict[str, Any], others: list[Policy], student: Any,
                start: Any) -> Response:
    with torch.no_grad():
        log_q = teacher_rows(learner, one, episodes, others)
    ids, logprobs = one.episode.token_ids[one.episode.generated].tolist(), one.episode.logprobs
    tokens = [Token(student[i], None if log_q is None else log_q[i], id, float(logprobs[i]), float(start[i][id]))
              for i, id in enumerate(ids)]
    return Response(one.episode.reward, one.episode.passed, tokens)


def allowed(group: list[Any], routes: tuple[str, ...]) -> list[set[str]]:
    """Of each episode, the ids of those whose solution its teacher may have seen; empty for no teacher."""
    correct = {e.id for e in group if e.passed}
    route = {0: "none", 1: "single", len(group): "all"}.get(len(correct), "partial")
    if route not in routes:
        return [set() for _ in group]
    return [({e.id for e in group} if route == "none" else correct) - {e.id} for e in group]


@pytest.fixture(scope="module")
def sampled(_warm_policies: Any, sample_groups: Any, judged_as: Any) -> Any:
    """Groups; the policy that sampled them, in float64; what became of it in two steps; another model as a teacher."""
    policy = _warm_policies("chatml")
    groups = sample_groups(policy, len(SIGNS), len(SIGNS[0]))
    start, moved, other = (copy_of(policy) for _ in range(3))
    learner = learner_of(moved, make_algorithm("grpo"), 5e-3)
    for step in range(2):  # every other response becomes more likely
        learner.update(learner.credit([judged_as(group, "+-+") for group in groups], step), step)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    said = {e.id: (rows(moved, e.segments).unbind(), rows(start, e.segments).detach())
            for group in groups for e in group.episodes}  # the same in every test; with gradient to `moved`
    return [judged_as(g, s) for g, s in zip(groups, SIGNS)], start, moved, other, said


def copy_of(policy: Policy) -> Policy:
    copied = copy.copy(policy)
    copied.model = copy.deepcopy(policy.model).double()
    return copied


class Known(Demonstrator):
    """Keeps what it showed, by the groups' numbers."""

    def demonstrations(self, groups: Any) -> Any:
        shown = super().demonstrations(groups)
        assert all(s.passed and s.prompt == g.episodes[0].prompt for s, g in zip(shown, groups, strict=True))
        self.solutions = dict(enumerate(shown))
        return shown


def learner_of(policy: Policy, algorithm: Algorithm, lr: float, *others: Any) -> Learner:
    trainer = TrainerConfig(lr=lr, clip_norm=1e9, micro_batch_tokens=1 << 30)
    return Learner(policy, algorithm, trainer, TeacherConfig(), 11, None, *others)


LONGER = ("grpo, its own clip", "sc-grpo, any partial", "sc-grpo, all groups", "sc-grpo, p50 and alpha",
          "sc-grpo, fixed c", "sc-grpo, independent references", "additive, reverse", "opd, forward")


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c in LONGER)) for c in CASES])
def test_an_update_is_the_equations_written_out_by_hand(case: str, sampled: Any) -> None:
    groups, start, moved, other, said = sampled
    settings, routes, equation = CASES[case]
    if callable(settings):
        settings = settings(max(e.generated_count for group in groups for e in group.episodes))
    policy = copy_of(moved)  # the update moves it
    algorithm = make_algorithm(case.partition(",")[0], **settings)
    shows = Known([EnvConfig(**CALCULATOR)], policy.chat, "plain") if algorithm.needs_demonstrations else None
    learner = learner_of(policy, algorithm, 1e-3, start if algorithm.needs_start else None,
                         other if algorithm.teacher == "external" else None, shows)
    credit, size = learner.credit(groups, STEP), len(SIGNS[0])
    episodes = {one.key: one.episode for one in credit.episodes}
    parts = [credit.episodes[i:i + size] for i in range(0, len(episodes), size)]
    assert [[one.episode for one in part] for part in parts] == [group.episodes for group in groups]
    if algorithm.needs_demonstrations:
        assert all(one.teacher_prompt is not None and one.reference is None for one in credit.episodes)
    elif algorithm.teacher != "external":
        for part in parts:
            assert_references_are_allowed(part, routes)
    if "feedback" in routes:  # in a group without a solution too
        assert any(one.teacher_prompt is not None and one.reference is None for one in parts[-1])
        assert credit.counts["episodes with feedback"] >= 3
    loss = equation([[response_of(learner, one, episodes, [start, other], *said[one.key]) for one in part]
                     for part in parts])
    gradients = torch.autograd.grad(loss, list(moved.model.parameters()), retain_graph=True)
    expected = torch.cat([g.flatten() for g in gradients])
    seen: list[Any] = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in policy.model.parameters()])))
    update = learner.update(credit, STEP)
    assert (seen[0] - expected).norm() <= 1e-6 * expected.norm() and expected.norm() > 1e-3
    assert update["loss"] == pytest.approx(float(loss.detach()), rel=1e-6, abs=1e-9)


def assert_references_are_allowed(part: list[Any], routes: tuple[str, ...]) -> None:
    for one, may in zip(part, allowed([one.episode for one in part], routes)):
        if "feedback" in routes and one.reference is None and not one.episode.passed:
            assert not may and (one.teacher_prompt is not None) == any(turn.observation for turn in one.episode.turns)
            continue
        assert one.reference in may if may and one.reference is not None else one.teacher_prompt is None
    without = [one for one in part if one.reference is None]
    if 0 < len(without) < len(part):  # the only solution, or the one that was drawn where there is none
        [only] = without
        correct = [one for one in part if one.episode.passed]
        assert correct in ([], [only]) and {one.reference for one in part} == {None, only.key}


def test_the_policy_has_moved_so_far_that_every_clip_acts(sampled: Any) -> None:
    groups, *_, said = sampled
    ratios: dict[bool, list[float]] = {True: [], False: []}
    means = []
    for episode in (e for group in groups[:2] for e in group.episodes):
        ids, student = episode.token_ids[episode.generated].tolist(), said[episode.id][0]
        log_ratio = [float(student[i][id].detach()) - float(episode.logprobs[i]) for i, id in enumerate(ids)]
        ratios[bool(episode.passed)] += [math.exp(one) for one in log_ratio]
        means.append(math.exp(mean(log_ratio)))
    assert max(ratios[True]) > 1.3 and min(ratios[False]) < 0.8  # where A > 0, and where A < 0
    assert max(means) > 1.04 and min(means) < 0.97


def test_every_algorithm_has_its_equation_here() -> None:
    assert {case.partition(",")[0] for case in CASES} == {
        name for name, algorithm in ALGORITHMS.items() if algorithm.__module__.startswith("turncredit.")}
