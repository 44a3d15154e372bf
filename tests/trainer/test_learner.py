"""The learner, end to end, against an update written out by hand from the paper's equations on whole logits."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PhiConfig, PhiForCausalLM

from turncredit.config import ModelConfig, TeacherConfig, TrainerConfig
from turncredit.episode import Group, Turn
from turncredit.seeds import seed_of
from turncredit.trainer.algorithms import make_algorithm
from turncredit.trainer.credit import route_group
from turncredit.trainer.learner import Learner
from turncredit.trainer.policy import Policy
from turncredit.trainer.record import TokenRecord
from turncredit.trainer.teacher import GUIDE, conditioned_system, reference_text

SEED, STEP = 11, 4
ONE_MICRO_BATCH = 1 << 30


def learner_of(policy, algorithm="sc-grpo", teacher=None, **trainer):
    settings = TrainerConfig(**{"lr": 1e-3, "clip_norm": 1e9, "micro_batch_tokens": ONE_MICRO_BATCH, **trainer})
    name = {"name": algorithm} if isinstance(algorithm, str) else algorithm
    return Learner(policy, make_algorithm(**name), settings, teacher or TeacherConfig(), SEED)


def gradient_of_update(learner, groups):
    """The gradient that the optimiser was given, and what the update reports."""
    seen = []
    parameters = list(learner.policy.model.parameters())
    hook = learner.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in parameters])))
    credit = learner.credit(groups, STEP)
    update = learner.update(credit, STEP)
    hook.remove()
    return (seen[0] if seen else None), credit, update


# The same by hand.


def positions(ids, segments):
    """Where generated tokens stand."""
    flags = [s.generated for s in segments for _ in s.token_ids]
    return [t for t in range(1, len(ids)) if flags[t]]


def log_softmax_rows(policy, segments):
    """log pi of the whole vocabulary at each generated token, [generated, vocabulary], and the tokens."""
    ids = torch.tensor([int(t) for s in segments for t in s.token_ids])
    at = positions(ids, segments)
    logits = policy.model(ids[None]).logits[0]
    return torch.log_softmax(logits[[t - 1 for t in at]], -1), ids[at]


def kl_by_hand(policy, episode, reference):
    system = conditioned_system(episode.system, GUIDE, reference_text(reference))
    prompt = copy.copy(episode.segments[0])
    object.__setattr__(prompt, "token_ids", np.asarray(policy.chat.first_prompt(system, episode.prompt), np.int32))
    with torch.no_grad():
        teacher, _ = log_softmax_rows(policy, [prompt, *episode.segments[1:]])
        student, _ = log_softmax_rows(policy, episode.segments)
        return (teacher.exp() * (teacher - student)).sum(-1)


def f(kls):
    """f(D) of several episodes whose tokens share one c."""
    c = max(float(np.percentile(torch.cat(kls).numpy(), 75)), 1e-4)
    return [kl / (kl + c) for kl in kls]


def standardised(values):
    values = np.array(values)
    return (values - values.mean()) / values.std() if values.std() > 1e-6 else 0 * values


def plan_by_hand(policy, groups, algorithm):
    """(episode, advantage, D or None) for each episode that counts, as the paper's table of routes has it."""
    plan = []
    for number, group in enumerate(groups):
        episodes = [e for e in group.episodes if e.reward is not None]
        if len(episodes) < 2:
            continue
        advantages = standardised([e.reward for e in episodes])
        references = [None] * len(episodes)
        correct = sum(e.passed for e in episodes)
        route = route_group([e.reward for e in episodes], [e.passed for e in episodes],
                            seed_of(SEED, "credit", STEP, number))
        if algorithm == "sc-grpo" and (correct == 0 or 2 <= correct < len(episodes)):
            references = list(route.references)
        if algorithm == "sc-grpo" and correct == 0:
            r = references[r0 := references[0]]
            references[r0] = None
        kls = [None if j is None else kl_by_hand(policy, e, episodes[j]) for e, j in zip(episodes, references)]
        if algorithm == "sc-grpo" and correct == 0:
            others = [i for i in range(len(episodes)) if i != r]
            scores = [float(w[:episodes[r].generated_count].mean()) for w in f([kls[i] for i in others])]
            advantages = np.zeros(len(episodes))
            advantages[others] = 0.1 * (scores - np.mean(scores)) / (np.std(scores) + 1e-6)
        plan += zip(episodes, advantages, kls)
    return plan


def gradient_by_hand(policy, groups, algorithm="sc-grpo", low=0.2, high=0.2):
    plan = plan_by_hand(policy, groups, algorithm)
    conditioned = [i for i, (_, _, kl) in enumerate(plan) if kl is not None]
    weights = dict(zip(conditioned, f([plan[i][2] for i in conditioned]))) if conditioned else {}
    total = torch.zeros((), dtype=torch.float64)
    for i, (episode, advantage, _) in enumerate(plan):
        log_p, tokens = log_softmax_rows(policy, episode.segments)
        old = torch.from_numpy(episode.logprobs).to(log_p)
        ratio = (log_p[torch.arange(len(tokens)), tokens] - old).exp()
        terms = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
        total = total + (weights.get(i, 1.0) * terms).sum() / len(tokens)
    loss = -total / len(plan)
    gradients = torch.autograd.grad(loss, list(policy.model.parameters()))
    return torch.cat([g.flatten() for g in gradients]), float(loss.detach())


@pytest.fixture
def moved_policy(policy_of, sample_groups):
    """A float64 policy, and groups that it sampled before its weights moved: ratios are not 1, some are clipped."""

    def make(count, size=4, template="chatml", dtype=torch.float64):
        groups = sample_groups(policy_of(template), count, size)
        policy = policy_of(template, dtype)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += (0.02 * noise).to(dtype)
        return policy, groups

    return make


ROUTES = {
    "partial-solve": ["++--"], "solve-none": ["----"], "fallback, one solved": ["+---"],
    "mixture": ["+++-", "----", "+---", "++++"], "mixture with unknowns": ["++-?", "?---", "+???", "???+", "-?+?"],
}


@pytest.mark.parametrize("route", ROUTES)
def test_an_update_equals_the_papers_written_out_by_hand(route, moved_policy, judged_as):
    signs = ROUTES[route]
    policy, groups = moved_policy(len(signs))
    groups = [judged_as(g, s) for g, s in zip(groups, signs)]
    expected, loss = gradient_by_hand(policy, groups)
    got, _, update = gradient_of_update(learner_of(policy), groups)
    assert (got - expected).norm() <= 1e-6 * expected.norm()
    assert update["loss"] == pytest.approx(loss, rel=1e-6, abs=1e-9)
    assert update["gradient_norm"] == pytest.approx(float(expected.norm()), rel=1e-6)
    assert update["clipped_mean"] > 0.01 and update["updated"]


def test_an_update_in_float32_equals_the_papers_to_1e_5(template, moved_policy, policy_of, judged_as):
    policy, groups = moved_policy(2, template=template, dtype=torch.float32)
    groups = [judged_as(groups[0], "++--"), judged_as(groups[1], "+---")]
    precise = Policy(copy.deepcopy(policy.model).double(), policy.tokenizer, policy.config)
    expected, _ = gradient_by_hand(precise, groups)
    got, _, _ = gradient_of_update(learner_of(policy), groups)
    assert (got.double() - expected).norm() <= 1e-5 * expected.norm()


def test_a_grpo_update_equals_the_one_by_hand_and_differs_from_sc_grpos(moved_policy, judged_as):
    policy, groups = moved_policy(1)
    groups = [judged_as(groups[0], "++--")]
    expected, _ = gradient_by_hand(policy, groups, "grpo")
    other, _ = gradient_by_hand(policy, groups, "sc-grpo")
    got, _, _ = gradient_of_update(learner_of(policy, "grpo"), groups)
    assert (got - expected).norm() <= 1e-6 * expected.norm()
    assert torch.cosine_similarity(got, other, dim=0) < 0.999


def test_the_clip_is_the_algorithms_own(moved_policy, judged_as):
    policy, groups = moved_policy(1)
    groups = [judged_as(groups[0], "++--")]
    expected, _ = gradient_by_hand(policy, groups, "grpo", 0.1, 0.5)
    got, _, _ = gradient_of_update(learner_of(policy, {"name": "grpo", "clip_low": 0.1, "clip_high": 0.5}), groups)
    assert (got - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("normalize", ["sequence", "token"])
def test_micro_batches_change_nothing_for_grpo(normalize, moved_policy, judged_as):
    policy, groups = moved_policy(2)
    groups = [judged_as(groups[0], "++--"), judged_as(groups[1], "+-?-")]
    algorithm = {"name": "grpo", "normalize": normalize}
    learners = [learner_of(Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.config), algorithm,
                           micro_batch_tokens=tokens) for tokens in (ONE_MICRO_BATCH, 600, 1)]
    whole, *parts = [gradient_of_update(learner, groups) for learner in learners]
    for gradient, _, update in parts:
        assert (gradient - whole[0]).norm() <= 1e-6 * whole[0].norm()  # Llama's norms are in float32
        assert update["loss"] == pytest.approx(whole[2]["loss"], rel=1e-9)
        assert update["ratio_mean"] == pytest.approx(whole[2]["ratio_mean"], rel=1e-6)


@pytest.mark.parametrize("source", ["current", "sampling"])
@pytest.mark.parametrize("unit", ["micro-batch", "batch"])
def test_the_percentile_is_of_the_unit_that_the_configuration_names(unit, source, moved_policy, judged_as):
    policy, groups = moved_policy(2)
    groups = [judged_as(groups[0], "++--"), judged_as(groups[1], "+++-")]
    gradients = []
    for tokens in (ONE_MICRO_BATCH, 1):
        copied = Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.config)
        learner = learner_of(copied, {"name": "sc-grpo", "unit": unit, "weights_from": source},
                             micro_batch_tokens=tokens)
        record, credit = TokenRecord(policy.tokenizer), learner.credit(groups, STEP)
        learner.optimizer.register_step_pre_hook(
            lambda *_, model=copied.model: gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()])))
        learner.update(credit, STEP, record)
        parts = list(record.episodes.values())
        if tokens == ONE_MICRO_BATCH or unit == "batch":
            parts = [{name: np.concatenate([part[name] for part in parts]) for name in ("kl", "weight")}]
        assert len(parts) == (8 if tokens == 1 and unit == "micro-batch" else 1)
        for part in parts:
            c = max(np.quantile(part["kl"], 0.75), 1e-4)
            np.testing.assert_allclose(part["weight"], part["kl"] / (part["kl"] + c), rtol=1e-4)
    whole, apart = gradients
    assert ((whole - apart).norm() <= 1e-6 * whole.norm()) == (unit == "batch")


def test_weights_from_the_sampling_policy_stay_as_they_were_and_current_ones_follow_the_policy(moved_policy, judged_as):
    policy, groups = moved_policy(1)
    group, gradients = judged_as(groups[0], "++--"), {}
    for source in ("current", "sampling"):
        copied = Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.config)
        learner = learner_of(copied, {"name": "sc-grpo", "weights_from": source}, epochs=2)
        learner.optimizer.register_step_pre_hook(lambda *_, model=copied.model, name=source: gradients.setdefault(
            name, []).append(torch.cat([p.grad.flatten() for p in model.parameters()])))
        credit = learner.credit([group], STEP)
        before = [one.weights for one in credit.episodes]
        assert all((weights is None) == (source == "current") for weights in before)
        assert learner.update(credit, STEP)["updates"] == 2
        for one, weights in zip(credit.episodes, before):
            np.testing.assert_array_equal(one.weights, weights)
    (first, second), (same, fixed) = gradients["current"], gradients["sampling"]
    assert (first - same).norm() <= 1e-6 * first.norm() and (second - fixed).norm() > 1e-3 * second.norm()


def test_the_weights_of_a_group_do_not_depend_on_how_it_is_split_for_the_forward_pass(moved_policy, judged_as):
    policy, groups = moved_policy(1, size=6)
    group = judged_as(groups[0], "------")
    advantages = []
    for tokens in (ONE_MICRO_BATCH, 700, 1):
        credit = learner_of(policy, micro_batch_tokens=tokens).credit([group], STEP)
        assert [one.episode for one in credit.episodes] == group.episodes
        advantages.append([one.advantage for one in credit.episodes])
    np.testing.assert_allclose(advantages[1:], [advantages[0]] * 2, rtol=1e-7)
    assert np.abs(advantages[0]).max() > 0.05


def test_an_unsolved_groups_own_reference_earns_nothing_and_has_no_teacher(moved_policy, judged_as):
    policy, groups = moved_policy(1)
    credit = learner_of(policy).credit([judged_as(groups[0], "----")], STEP)
    silent = [one for one in credit.episodes if one.teacher_prompt is None]
    assert len(silent) == 1 and silent[0].advantage == 0
    assert {one.kind for one in credit.episodes} == {"solve-none"}
    assert np.std([one.advantage for one in credit.episodes if one is not silent[0]]) == pytest.approx(0.1, rel=1e-3)


def test_student_and_teacher_read_the_same_response_behind_another_prompt(moved_policy, judged_as, sequences_read):
    policy, groups = moved_policy(1)
    group = judged_as(groups[0], "++--")
    learner = learner_of(policy)
    credit = learner.credit([group], STEP)
    read = sequences_read(policy)
    learner.update(credit, STEP)
    expected = []
    for prompts, has_gradient in (([one.teacher_prompt for one in credit.episodes], False),
                                  ([one.episode.segments[0] for one in credit.episodes], True)):
        for one, prompt in zip(credit.episodes, prompts):
            ids = np.concatenate([s.token_ids for s in (prompt, *one.episode.response)])
            expected.append((tuple(ids.tolist()), has_gradient))
    assert read == expected and len({sequence for sequence, _ in read}) == 8


def test_an_update_with_checkpointed_layers_is_the_same(moved_policy, judged_as):
    policy, groups = moved_policy(1)
    groups = [judged_as(groups[0], "++--")]
    expected, _, _ = gradient_of_update(learner_of(Policy(copy.deepcopy(policy.model), policy.tokenizer,
                                                          policy.config)), groups)
    got, _, update = gradient_of_update(learner_of(policy, gradient_checkpointing=True), groups)
    assert policy.checkpointed and update["updated"]
    assert (got - expected).norm() <= 1e-12 * expected.norm()


# What is left out, and counted.


def test_episodes_without_a_reward_leave_the_group(moved_policy, judged_as):
    policy, groups = moved_policy(1, size=6)
    group = judged_as(groups[0], "+?-+?-")
    credit = learner_of(policy).credit([group], STEP)
    assert [one.episode for one in credit.episodes] == [group.episodes[i] for i in (0, 2, 3, 5)]
    assert [one.advantage for one in credit.episodes] == [1, -1, 1, -1]
    assert credit.counts["episodes without reward"] == 2 and credit.counts["groups dropped"] == 0


@pytest.mark.parametrize("signs", ["?+??", "????", "???-"])
def test_a_group_of_fewer_than_two_judged_episodes_is_dropped_and_counted(signs, moved_policy, judged_as):
    policy, groups = moved_policy(2)
    kept = judged_as(groups[1], "+--+")
    credit = learner_of(policy).credit([judged_as(groups[0], signs), kept], STEP)
    assert [one.episode for one in credit.episodes] == kept.episodes
    assert credit.counts["groups dropped"] == 1
    assert credit.counts["episodes without reward"] == signs.count("?")


def test_no_judged_episode_at_all_is_no_update(moved_policy, judged_as):
    policy, groups = moved_policy(1)
    gradient, credit, update = gradient_of_update(learner_of(policy), [judged_as(groups[0], "????")])
    assert gradient is None and not credit.episodes and not update["updated"]


@pytest.mark.parametrize(("algorithm", "signs"), [("grpo", "++++"), ("grpo", "----"), ("sc-grpo", "++++")])
def test_equal_rewards_move_no_weight_and_are_counted(algorithm, signs, moved_policy, judged_as):
    policy, groups = moved_policy(1)
    learner = learner_of(policy, algorithm, weight_decay=0.1)
    before = copy.deepcopy(policy.model.state_dict())
    _, credit, update = gradient_of_update(learner, [judged_as(groups[0], signs)])
    assert credit.counts["groups without signal"] == 1 and not update["updated"]
    assert all(torch.equal(before[name], value) for name, value in policy.model.state_dict().items())
    assert not learner.optimizer.state


def test_a_loss_that_is_not_finite_leaves_weights_and_optimiser_untouched(moved_policy, judged_as):
    policy, groups = moved_policy(2)
    learner = learner_of(policy, "grpo")
    good, bad = judged_as(groups[0], "++--"), judged_as(groups[1], "++--")
    assert learner.update(learner.credit([good], 0), 0)["updated"]
    before, optimizer = copy.deepcopy(policy.model.state_dict()), copy.deepcopy(learner.optimizer.state_dict())
    bad.episodes[0].segments[1].logprobs[0] = math.nan
    update = learner.update(learner.credit([bad], 1), 1)
    assert not update["updated"]
    assert all(torch.equal(before[name], value) for name, value in policy.model.state_dict().items())
    for number, state in learner.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, optimizer["state"][number][name]) for name, value in state.items())
    # Nothing of it is left behind for the next update.
    assert learner.update(learner.credit([good], 2), 2)["updated"]


def test_references_that_are_too_long_are_shortened_and_counted(moved_policy, judged_as):
    policy, groups = moved_policy(1)
    group = judged_as(groups[0], "++--")
    for episode in group.episodes:
        episode.turns = [*episode.turns, Turn("and so on " * 20)]
    assert learner_of(policy).credit([group], STEP).counts["references shortened"] == 0
    credit = learner_of(policy, teacher=TeacherConfig(reference_tokens=16)).credit([group], STEP)
    assert credit.counts["references shortened"] == 4
    assert all(one.teacher_prompt is not None for one in credit.episodes)


def test_where_no_reference_fits_it_is_counted_and_the_update_is_grpos(moved_policy, judged_as):
    policy, groups = moved_policy(1)
    groups = [judged_as(groups[0], "++--")]
    expected, _ = gradient_by_hand(policy, groups, "grpo")
    policy.max_context = 20
    got, credit, _ = gradient_of_update(learner_of(policy), groups)
    assert credit.counts["references that did not fit"] == 4
    assert (got - expected).norm() <= 1e-6 * expected.norm()


def test_in_an_unsolved_group_a_response_without_room_for_the_reference_earns_nothing(moved_policy, judged_as):
    """It has no teacher and so no f to be scored by: weight 1 would make it the most diverse of all."""
    policy, groups = moved_policy(1, size=6)
    group = judged_as(groups[0], "------")
    learner = learner_of(policy, teacher=TeacherConfig(reference_tokens=16))
    needed = sorted(max(sum(len(s.token_ids) for s in read) for read in one.readings)
                    for one in learner.credit([group], STEP).episodes)
    policy.max_context = needed[3] + 10  # the longest responses leave no room for the reference, others do
    credit = learner.credit([group], STEP)
    silent = [one for one in credit.episodes if one.teacher_prompt is None]
    assert 1 <= credit.counts["references that did not fit"] == len(silent) - 1 < 4
    assert [one.advantage for one in silent] == [0.0] * len(silent)
    scored = [one.advantage for one in credit.episodes if one.teacher_prompt is not None]
    assert np.mean(scored) == pytest.approx(0, abs=1e-9) and np.std(scored) == pytest.approx(0.1, rel=1e-3)


def test_groups_keep_their_own_baseline(moved_policy, judged_as):
    policy, groups = moved_policy(2)
    credit = learner_of(policy, "grpo").credit([judged_as(groups[0], "+---"), judged_as(groups[1], "+++-")], STEP)
    advantages = np.array([one.advantage for one in credit.episodes]).reshape(2, 4)
    np.testing.assert_allclose(advantages.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(advantages[0], -advantages[1][::-1])


def test_references_come_from_the_runs_seed_the_step_and_the_group(moved_policy, judged_as):
    policy, groups = moved_policy(1, size=6)
    group = judged_as(groups[0], "+++++-")

    def references(seed, step, place):
        learner = Learner(policy, make_algorithm("sc-grpo"), TrainerConfig(), TeacherConfig(), seed)
        empty = Group([])
        credit = learner.credit([empty] * place + [group], step)
        return [one.teacher_prompt.token_ids.tolist() for one in credit.episodes]

    assert references(1, 2, 0) == references(1, 2, 0)
    assert len({str(references(*draw)) for draw in [(1, 2, 0), (2, 2, 0), (1, 3, 0), (1, 2, 1)]}) == 4


# The optimiser.


def test_the_learning_rate_warms_up_linearly(moved_policy, judged_as):
    policy, groups = moved_policy(1)
    learner = learner_of(policy, "grpo", lr=0.4, warmup_steps=4)
    rates = []
    for step in range(6):
        learner.optimizer.register_step_pre_hook(lambda *_: rates.append(learner.optimizer.param_groups[0]["lr"]))
        learner.update(learner.credit([judged_as(groups[0], "++--")], step), step)
        learner.optimizer._optimizer_step_pre_hooks.clear()
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_the_gradient_is_clipped_to_its_norm_and_logged_before(moved_policy, judged_as):
    policy, groups = moved_policy(1)
    expected, _ = gradient_by_hand(policy, [judged_as(groups[0], "++--")], "grpo")
    learner = learner_of(policy, "grpo", clip_norm=0.01)
    gradient, _, update = gradient_of_update(learner, [judged_as(groups[0], "++--")])
    assert update["gradient_norm"] == pytest.approx(float(expected.norm()), rel=1e-6) and expected.norm() > 0.1
    assert float(gradient.norm()) == pytest.approx(0.01, rel=1e-3)


def test_statistics_are_those_of_the_generated_tokens(moved_policy, judged_as):
    policy, groups = moved_policy(1)
    group = judged_as(groups[0], "++--")
    plan = plan_by_hand(policy, [group], "sc-grpo")
    kl = torch.cat([kl for _, _, kl in plan])
    drift = []
    with torch.no_grad():
        for episode in group.episodes:
            log_p, tokens = log_softmax_rows(policy, episode.segments)
            drift.append(log_p[torch.arange(len(tokens)), tokens] - torch.from_numpy(episode.logprobs))
    drift = torch.cat(drift)
    _, _, update = gradient_of_update(learner_of(policy), [group])
    for percent in (25, 50, 75, 95):
        assert update[f"kl_p{percent}"] == pytest.approx(float(np.percentile(kl.numpy(), percent)), rel=1e-4)
    weights = torch.cat(f([kl for _, _, kl in plan]))
    assert update["weight_mean"] == pytest.approx(float(weights.mean()), rel=1e-5)
    assert update["weight_above_half"] == pytest.approx(float((weights > 0.5).double().mean()))
    assert update["ratio_mean"] == pytest.approx(float(drift.exp().mean()), rel=1e-5)
    assert update["drift_max"] == pytest.approx(float(drift.abs().max()), rel=1e-4)


# Other architectures.


def policy_with(model_class, config_class, tokenizer, **settings):
    torch.manual_seed(0)
    config = config_class(vocab_size=len(tokenizer), initializer_range=0.3, bos_token_id=None,
                          pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, **settings)
    return Policy(model_class(config).eval(), tokenizer, ModelConfig(path="made", tool_calls="plain"))


@pytest.fixture
def gpt2(policy_of):
    """A model with dropout."""
    return policy_with(GPT2LMHeadModel, GPT2Config, policy_of().tokenizer, n_embd=32, n_layer=2, n_head=2,
                       n_positions=512, attn_pdrop=0.3, resid_pdrop=0.3, embd_pdrop=0.3)


@pytest.fixture
def phi(policy_of):
    """A model whose output head has a bias."""
    policy = policy_with(PhiForCausalLM, PhiConfig, policy_of().tokenizer, hidden_size=32, intermediate_size=32,
                         num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=512)
    torch.nn.init.normal_(policy.head.bias)
    return policy


def test_a_model_with_dropout_is_scored_without_it(gpt2, sample_groups, judged_as):
    """What was sampled is what is scored: dropout would blur ratios, and the teacher's KL most of all."""
    groups = [judged_as(sample_groups(gpt2)[0], "++--")]
    learner = learner_of(gpt2)
    for _ in range(2):  # the second credit comes after an update
        _, credit, update = gradient_of_update(learner, groups)
        drift = update["drift_max"]
        again = learner.scorer.weights(credit.episodes), learner.scorer.weights(credit.episodes)
        assert all(np.array_equal(one, other) for one, other in zip(*again))
        groups = [judged_as(sample_groups(gpt2, seed=5)[0], "++--")]
        assert drift <= 1e-4


def test_a_head_with_a_bias_is_scored_with_it(phi, sample_groups, judged_as):
    groups = [judged_as(sample_groups(phi)[0], "++--")]
    _, _, update = gradient_of_update(learner_of(phi), groups)
    assert update["drift_max"] <= 1e-4
