"""Several processes train the policy that one would have trained."""

from __future__ import annotations

import copy
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import traceback
from datetime import timedelta

import pytest
import torch
import yaml
from safetensors.torch import load_file

from turncredit.agents.base import Request, Sampling
from turncredit.config import TeacherConfig, TrainerConfig
from turncredit.errors import UserError
from turncredit.store import RunFolder
from turncredit.trainer.algorithms import make_algorithm
from turncredit.trainer.batch import make_batch
from turncredit.trainer.engines import Embedded
from turncredit.trainer.learner import Learner
from turncredit.trainer.parallel import World
from turncredit.trainer.policy import Policy
from turncredit.trainer.record import TokenRecord

SIZE = 2


def test_a_run_alone_needs_no_other_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = World.join()
    assert world == World(0, 1) and world.first and world.gathered("x") == ["x"] and list(world.part(3)) == [0, 1, 2]
    world.wait()
    world.leave()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_each_thing_is_one_processs_part(size, count):
    parts = [World(rank, size).part(count) for rank in range(size)]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def _in_child(rank, folder, work):
    """One of the forked processes: meets the others through a file, and leaves what `work` returns in another."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=SIZE,
                                         timeout=timedelta(seconds=90))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(SIZE))
    world = World.join()
    try:
        torch.save(work(world), folder / f"{rank}.pt")
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        os._exit(1)  # the others wait for nobody
    world.leave()


@pytest.fixture
def in_processes(tmp_path):
    """in_processes(work): what `work(world)` returns in each of two processes, forked from this one."""

    def run(work):
        folder = tmp_path / f"processes-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        children = [multiprocessing.get_context("fork").Process(target=_in_child, args=(rank, folder, work))
                    for rank in range(SIZE)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        errors = "\n".join(file.read_text() for file in folder.glob("*.error"))
        assert not any(child.exitcode for child in children), errors
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]

    return run


def test_lists_are_joined_by_rank_and_gradients_summed_where_one_is_missing_too(in_processes):
    def work(world):
        both, one, frozen = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
        frozen.requires_grad_(False)
        both.grad = torch.full((2,), 1.0 + world.rank)
        if world.rank:
            one.grad = torch.ones(2)
        world.sum_gradients([both, one, frozen])
        return world.joined([world.rank] * (1 + world.rank)), both.grad.tolist(), one.grad.tolist(), frozen.grad

    assert in_processes(work) == [([0, 1, 1], [3.0, 3.0], [1.0, 1.0], None)] * 2


@pytest.fixture
def learnt(policy_of, sample_groups, judged_as):
    """learnt(world, …): two updates on the same groups; the weights, what the updates report, what tokens earned."""
    groups = [judged_as(g, s) for g, s in zip(sample_groups(policy_of(), 3), ("++--", "+---", "----"))]
    for number, group in enumerate(groups):
        for sample, episode in enumerate(group.episodes):
            episode.group, episode.sample = number, sample
    double = policy_of(dtype=torch.float64)

    def learn(world, algorithm=("sc-grpo", ()), **trainer):
        algorithm = make_algorithm(algorithm[0], **dict(algorithm[1]))
        policy = Policy(copy.deepcopy(double.model), double.tokenizer, double.config)
        averaged = policy.copied() if algorithm.teacher == "averaged" else None
        if trainer.get("sharding") == "full" and world.size > 1:
            policy.shard(world)
            assert {type(p).__name__ for p in policy.model.parameters()} == {"DTensor"}
        settings = TrainerConfig(**{"lr": 1e-3, "clip_norm": 0.5, "micro_batch_tokens": 400, **trainer})
        updates, records, saved = [], [], None
        for step in range(2):  # each with a learner of its own, as in a run that is resumed
            learner = Learner(policy, algorithm, settings, TeacherConfig(), 0, world, averaged=averaged)
            if saved is not None:
                learner.state.load_state_dict(saved)
            record = TokenRecord(policy.tokenizer)
            updates.append(learner.update(learner.credit(groups, step), step, record))
            records.append({key: {name: list(map(float, part[name])) for name in ("advantage", "ratio", "weight")
                                  if name in part} for key, part in sorted(record.episodes.items())})
            if policy.sharded:
                learner.state.gather()
            saved = learner.state.state_dict()
            states = saved["state"] if averaged is None else saved["state"]["state"]
            assert all(type(value) is torch.Tensor for state in states.values() for value in state.values())
        weights = {name: value.detach() for name, value in policy.whole.state_dict().items()}
        if averaged is not None:
            weights |= {f"averaged {name}": value for name, value in averaged.model.state_dict().items()}
        return weights, updates, records

    return learn


def assert_close(one, other, tolerance):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key], tolerance)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other):
            assert_close(a, b, tolerance)
    elif isinstance(one, float):
        assert math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    else:
        assert one == other


@pytest.mark.parametrize("settings", [
    {}, {"mini_batches": 2, "epochs": 2, "old_logprobs": "recomputed"}, {"micro_batch_tokens": 1 << 20},
    {"sharding": "full", "micro_batch_tokens": 1 << 20},
    {"sharding": "full", "mini_batches": 2, "epochs": 2, "old_logprobs": "recomputed", "gradient_checkpointing": True},
    pytest.param({"algorithm": ("sc-grpo", (("unit", "batch"),)), "epochs": 2}, marks=pytest.mark.slow),
    {"algorithm": ("sc-grpo", (("unit", "batch"), ("normalize", "token"))), "sharding": "full"},
    {"algorithm": ("sdpo", (("follow", 0.3),)), "sharding": "full"}],
    ids=["one update", "several", "fewer micro-batches than processes", "sharded", "sharded, several, checkpointed",
         "unit", "sharded, unit, per token", "sharded, averaged teacher"])
def test_two_processes_end_with_the_losses_and_weights_of_one(in_processes, learnt, settings):
    weights, updates, records = learnt(World(), **settings)
    assert all(update["updated"] and update["gradient_norm"] > 0 for update in updates)
    for other in in_processes(lambda world: learnt(world, **settings)):
        assert all(torch.allclose(weights[name], other[0][name], rtol=1e-5, atol=1e-7) for name in weights)
        assert_close(updates, other[1], 1e-5)
        assert_close(records, other[2], 1e-5)


def test_a_sharded_policy_samples_from_its_whole_copy(in_processes, policy_of, sample_groups):
    """Each process by itself: the copy is no part of what is gathered and let go, and has every update at once."""
    [group], policy = sample_groups(policy_of(), 1), policy_of()

    def work(world):
        policy.shard(world)
        engine = Embedded(policy, 8).engine
        request = Request(policy.chat.first_prompt("", "1"), 4, 7)
        texts = []
        for _ in range(2):
            texts.append(engine.generate([request], Sampling(), [])[0].logprobs.tolist())
            policy.scores(make_batch([e.segments for e in group.episodes])).logprobs.sum().backward()
            for parameter in policy.model.parameters():
                parameter.data.mul_(1.5)
            policy.refresh()
        return texts

    (before, after), (other, after_there) = in_processes(work)
    assert before == other and after == after_there and before != after


RELAY = {"id": "turncredit/Pantry-v0", "arguments": {"level": 1}}
CONFIG = {
    "name": "together", "seed": 5, "envs": [RELAY],
    "model": {"tiny": {"width": 32, "layers": 1, "heads": 2, "context": 256, "vocabulary": 400}, "tool_calls": "plain"},
    "rollout": {"groups": 3, "group_size": 4, "turn_tokens": 8, "episode_tokens": 16, "context_tokens": 200,
                "refills": 1},
    "trainer": {"steps": 3, "lr": 1e-4, "save_every": 1, "epochs": 2, "mini_batches": 2},
    "warmstart": {"envs": [RELAY], "steps": 40, "lr": 3e-3, "batch": 4, "demonstrations": 32},
    "evaluation": {"envs": [RELAY], "tasks": 4, "every": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_run_by_torchrun_with_two_processes_is_the_run_of_one_and_can_be_resumed(sharding, tmp_path):
    file = tmp_path / "together.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    runs = {"one": ["turncredit.cli"], "two": [*torchrun, "turncredit.cli"]}
    for name, launched in runs.items():
        for resume in ([], ["--resume"]):
            shared = [f"trainer.sharding={sharding}"] if name == "two" else []
            command = [sys.executable, "-m", *launched, "train", str(file), f"runs={tmp_path / name}", *shared, *resume]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            for path in (tmp_path / name / "together").glob("policy" if not resume else "nothing"):
                path.rename(tmp_path / f"{name}-policy")
                shutil.rmtree(path.parent / "checkpoints" / "step-000003")  # the last step is done anew
    one, two = (RunFolder(tmp_path / name / "together") for name in runs)
    for a, b in ((tmp_path / "one-policy", tmp_path / "two-policy"), (one.path / "policy", two.path / "policy")):
        a, b = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
        assert a.keys() == b.keys() and all(torch.allclose(a[key], b[key], atol=1e-4) for key in a)
    for a, b in zip(one.read_metrics(), two.read_metrics(), strict=True):
        assert a["stops"] == b["stops"] and a["reward"] == b["reward"] and a["refills"] == b["refills"]
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
        assert a.get("evaluation") == b.get("evaluation")
    shown = [[(e.id, e.token_ids.tolist()) for e in run.read_episodes()] for run in (one, two)]
    assert shown[0] == shown[1]


def test_sharding_is_refused_in_one_process_and_for_models_that_read_no_packed_rows(policy_of):
    policy = policy_of()
    with pytest.raises(UserError, match="'full' in one process: launch several with torchrun"):
        policy.shard(World())
    policy.packs = False
    with pytest.raises(UserError, match="LlamaForCausalLM cannot read packed rows"):
        policy.shard(World(0, 2))


def test_processes_that_do_not_meet_as_torchrun_counted_them_are_refused(in_processes, monkeypatch):
    def work(world):
        os.environ["WORLD_SIZE"] = "3"
        with pytest.raises(RuntimeError, match=f"process {world.rank} of 3 met the others as {world.rank} of 2"):
            World.join()
        world.wait()

    assert in_processes(work) == [None, None]
