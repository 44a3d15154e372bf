"""The table of what each token earned."""

from __future__ import annotations

import numpy as np
import pandas
import pytest

from turncredit.config import TeacherConfig, TrainerConfig
from turncredit.trainer.algorithms import make_algorithm
from turncredit.trainer.learner import Learner
from turncredit.trainer.record import TokenRecord, token_class


@pytest.fixture
def recorded(policy_of, sample_groups, judged_as, tmp_path):
    policy = policy_of()
    groups = [judged_as(g, s) for g, s in zip(sample_groups(policy, 2), ("++--", "+---"))]
    for number, group in enumerate(groups):
        for sample, episode in enumerate(group.episodes):
            episode.group, episode.sample = number, sample
    learner = Learner(policy, make_algorithm("sc-grpo"), TrainerConfig(micro_batch_tokens=300), TeacherConfig(), 0)
    credit = learner.credit(groups, 0)
    record = TokenRecord(policy.tokenizer)
    update = learner.update(credit, 0, record)
    record.write(tmp_path / "step-000000.parquet")
    return credit, pandas.read_parquet(tmp_path / "step-000000.parquet"), update, policy, record


def test_the_table_has_a_row_for_each_generated_token_and_for_no_other(recorded):
    credit, table, _, policy, _ = recorded
    for one in credit.episodes:
        rows = table[table["episode"] == one.episode.id]
        at = rows["position"].to_numpy()
        assert one.episode.generated[at].all() and len(at) == one.episode.generated_count
        assert (one.episode.token_ids[at] == rows["token_id"]).all()
        assert rows["text"].tolist() == [policy.tokenizer.decode([t]) for t in rows["token_id"]]
        assert sorted(set(rows["turn"])) == list(range(sum(s.generated for s in one.episode.segments)))
        assert np.allclose(rows["advantage"], one.advantage)
        assert np.allclose(rows["student_logprob"], one.episode.logprobs, atol=1e-4)
    assert len(table) == sum(one.episode.generated_count for one in credit.episodes)


def test_the_table_says_what_weighed_a_token_and_which_episode_its_teacher_had_seen(recorded):
    credit, table, update, _, _ = recorded
    conditioned = table[table["route"] == "partial-solve"]
    fallback = table[table["route"] == "fallback"]
    assert len(conditioned) and conditioned["weight"].between(0, 1).all() and (conditioned["kl"] >= 0).all()
    assert conditioned["weight"].mean() == pytest.approx(update["weight_mean"], rel=1e-5)
    assert len(fallback) and fallback[["weight", "kl", "teacher_logprob", "reference"]].isna().all(axis=None)
    apart = (conditioned["teacher_logprob"] - conditioned["student_logprob"]).abs()
    assert (conditioned["teacher_logprob"] <= 0).all() and apart.max() > 1e-3
    seen = {one.episode.id: one.reference for one in credit.episodes}
    assert (conditioned["reference"] == conditioned["episode"].map(seen)).all()
    assert all(a != b for a, b in zip(conditioned["reference"], conditioned["episode"]))


def test_the_means_by_class_are_those_of_the_table(recorded):
    _, table, _, _, record = recorded
    weighed = table.dropna(subset="weight")
    means = weighed.groupby(weighed["text"].map(token_class))["weight"].mean()
    assert record.class_means() == pytest.approx({f"weight of {name}": value for name, value in means.items()})


@pytest.mark.parametrize("text, kind", [
    (" \n", "whitespace"), ("12", "digits"), (" 3.5", "digits"), ("(", "code punctuation"), (" ==", "code punctuation"),
    ("<tool_call>", "tool-call syntax"), ("<|im_end|>", "tool-call syntax"), ("</", "tool-call syntax"),
    ("<", "code punctuation"), ("word", "words"), (" x1", "words")])
def test_a_token_has_one_class(text, kind):
    assert token_class(text) == kind
