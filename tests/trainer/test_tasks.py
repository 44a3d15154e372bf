"""Which tasks a step trains on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from turncredit.config import EnvConfig
from turncredit.errors import UserError
from turncredit.trainer.tasks import TaskSampler

CALCULATOR = EnvConfig(id="turncredit/Calculator-v0")


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps({"question": f"What is {i}?", "answer": str(i)}) + "\n" for i in range(7)))
    return EnvConfig(id="turncredit/Questions-v0", arguments={"data": str(file)})


def test_the_same_seed_and_step_draw_the_same_tasks_in_any_order_of_calls():
    sampler = TaskSampler([CALCULATOR], 5)
    forwards = [sampler.tasks(step, 4) for step in range(6)]
    again = TaskSampler([CALCULATOR], 5)
    assert [again.tasks(step, 4) for step in reversed(range(6))] == forwards[::-1]


def test_steps_places_and_seeds_draw_different_tasks():
    drawn = [ref.seed for seed in range(3) for step in range(10)
             for ref in TaskSampler([CALCULATOR], seed).tasks(step, 8)]
    assert len(set(drawn)) == 240


def test_environments_are_drawn_by_weight():
    envs = [EnvConfig(id="turncredit/Calculator-v0", weight=3), EnvConfig(id="turncredit/Arithmetic-v0", weight=1)]
    sampler = TaskSampler(envs, 0)
    ids = [ref.env_id for step in range(100) for ref in sampler.tasks(step, 8)]
    assert np.mean([id == "turncredit/Calculator-v0" for id in ids]) == pytest.approx(0.75, abs=0.05)


def test_a_finite_task_set_is_gone_through_in_shuffled_passes(questions):
    sampler = TaskSampler([questions], 0)
    indices = [ref.index for step in range(14) for ref in sampler.tasks(step, 3)]
    passes = [indices[i:i + 7] for i in range(0, len(indices), 7)]
    assert len(passes) == 6 and all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_a_finite_set_beside_a_generated_one_is_gone_through_all_the_same(questions):
    sampler = TaskSampler([CALCULATOR, questions], 0)
    indices = [ref.index for step in range(40) for ref in sampler.tasks(step, 4) if ref.index is not None]
    assert sorted(indices[:7]) == sorted(indices[7:14]) == list(range(7))


def test_a_wrong_environment_or_argument_is_refused_when_it_is_made():
    with pytest.raises(UserError, match="Calculatr-v0' is not registered; did you mean"):
        TaskSampler([EnvConfig(id="turncredit/Calculatr-v0")], 0)
    with pytest.raises(UserError, match="levle"):
        TaskSampler([EnvConfig(id="turncredit/Calculator-v0", arguments={"levle": 2})], 0)
