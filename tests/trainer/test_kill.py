"""Invariant 6 in earnest: `turncredit train`, killed (SIGKILL) at any moment and resumed, ends bit for bit the same."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
import yaml
from safetensors.torch import load_file

from turncredit.store import RunFolder

PANTRY = {"id": "turncredit/Pantry-v0", "arguments": {"level": 1}}
CONFIG = {
    "name": "killed", "seed": 5, "envs": [PANTRY],
    "model": {"tiny": {"width": 32, "layers": 1, "heads": 2, "context": 256, "vocabulary": 400}, "tool_calls": "plain"},
    "rollout": {"groups": 2, "group_size": 3, "turn_tokens": 8, "episode_tokens": 16, "context_tokens": 200},
    "trainer": {"steps": 5, "lr": 1e-3, "save_every": 2, "keep_checkpoints": 1},
    "warmstart": {"envs": [PANTRY], "steps": 20, "lr": 3e-3, "batch": 4, "demonstrations": 32},
}
# Runs the command line again and again in fresh children of a process that has imported everything already.
FORKING = """
import json, os, sys
import pyarrow.parquet, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
import turncredit.cli, turncredit.trainer.loop, turncredit.progress
torch.set_num_threads(1)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.argv = ["turncredit", *order["arguments"]]
        try:
            turncredit.cli.main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code if isinstance(end.code, int) else 1 if end.code else 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


@pytest.fixture(scope="module")
def command_line():
    """command_line(arguments, log): starts `turncredit …`; returns its pid and a function that awaits its status."""
    forking = subprocess.Popen([sys.executable, "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, env=ENVIRONMENT)

    def start(arguments, log):
        forking.stdin.write(json.dumps({"arguments": [str(a) for a in arguments], "log": str(log)}) + "\n")
        forking.stdin.flush()
        return int(forking.stdout.readline()), lambda: int(forking.stdout.readline())

    yield start
    forking.stdin.close()
    forking.wait()


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("configs") / "killed.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    return file


@pytest.fixture(scope="module")
def undisturbed(config_file, tmp_path_factory):
    """The run that nobody killed, through the command as a user has it."""
    runs = tmp_path_factory.mktemp("undisturbed")
    subprocess.run([sys.executable, "-m", "turncredit.cli", "train", str(config_file), f"runs={runs}"], check=True,
                   env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return RunFolder(runs / "killed")


def wait_for(seen, folder: Path, seconds=60.0):
    """Until `seen(names in the run folder and its checkpoints)`, as closely as polling can."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        names = set()
        for place in (folder, folder / "checkpoints", folder / "episodes", folder / "ahead"):
            with contextlib.suppress(FileNotFoundError):
                names |= set(os.listdir(place))  # noqa: PTH208  # the quickest there is
        if seen(names):
            return
        time.sleep(0.0005)


def after(seconds):
    return lambda folder: time.sleep(seconds)


def when(seen, delay=0.0):
    def wait(folder):
        wait_for(seen, folder)
        time.sleep(delay)

    return wait


def in_warm_start(delay):
    return when(lambda names: "config.yaml" in names, delay)


def saving(prefix):
    return when(lambda names: any(name.startswith(f".writing-{prefix}") for name in names))


def assert_nothing_is_half_written(run: RunFolder):
    for file in run.episodes.glob("step-*.parquet"):
        assert pyarrow.parquet.read_table(file).num_rows == 3
    for folder in [*run.checkpoints.glob("step-*"), *run.path.glob("start"), *run.path.glob("policy")]:
        if folder in sorted(run.checkpoints.glob("step-*"))[:-1]:
            continue  # an older one may be half removed: it is not what a run goes on from
        assert load_file(next(folder.glob("*model.safetensors")))
        if folder.parent == run.checkpoints:
            assert torch.load(folder / "optimizer.pt", weights_only=True)["optimizer"]
            assert json.loads((folder / "state.json").read_text())["steps_done"] == int(folder.name[-6:])
    if run.metrics.exists():
        assert [line["step"] for line in run.read_metrics()] == list(range(len(run.read_metrics())))


SECONDS = ("sampling_s", "credit_s", "update_s", "weights_s", "evaluation_s", "engine_idle", "tokens_per_second",
           "environment_s", "seconds")


def assert_same_run(one: RunFolder, other: RunFolder, ignored=SECONDS):
    for name in ("start", "policy"):
        a, b = (load_file(run.path / name / "model.safetensors") for run in (one, other))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    metrics = [[{k: v for k, v in line.items() if k not in ignored} for line in run.read_metrics()]
               for run in (one, other)]
    assert metrics[0] == metrics[1] and len(metrics[0]) == 5
    episodes = [[(e.id, e.task_id, e.reward, e.token_ids.tolist(), e.logprobs.tolist()) for e in run.read_episodes()]
                for run in (one, other)]
    assert episodes[0] == episodes[1] and len(episodes[0]) >= 30


def kill_and_resume(command_line, config_file, runs: Path, moments):
    """Kill the run at each of these moments in turn, then let it end. Returns how often it was caught alive, and how
    often in the middle of writing."""
    runs.mkdir(exist_ok=True)
    run, log = RunFolder(runs / "killed"), runs / "log"
    kills = writing = 0
    for moment in [*moments, None]:
        resume = ["--resume"] if (run.path / "config.yaml").exists() else []
        pid, status = command_line(["train", config_file, f"runs={runs}", *resume], log)
        if moment is not None:
            moment(run.path)
            os.kill(pid, signal.SIGKILL)  # not yet awaited, so the pid is still its own
        ended = status()
        if moment is None or ended != signal.SIGKILL:
            assert ended == 0, log.read_text()
        else:
            kills += 1
            writing += any(run.path.rglob(".writing-*"))
        assert_nothing_is_half_written(run)
    assert not any(run.path.rglob(".writing-*"))
    return run, kills, writing


@pytest.mark.timeout(600)
def test_a_run_killed_at_many_moments_ends_with_the_weights_of_one_that_was_not(
        command_line, config_file, undisturbed, tmp_path):
    moments = [in_warm_start(0.3), saving("start"), after(0.4), saving("step-000002"), saving("step-000002-group"),
               saving("step-000004"), saving("policy")]
    run, kills, writing = kill_and_resume(command_line, config_file, tmp_path, moments)
    assert kills >= 5 and writing >= 2
    assert_same_run(run, undisturbed)


MODES = {
    "mini-batches and epochs": {"trainer": {"mini_batches": 2, "epochs": 2}},
    "warm-up and schedule": {"trainer": {"warmup_steps": 3, "schedule": "linear", "weight_decay": 0.1}},
    "dynamic sampling": {"rollout": {"refills": 2}, "algorithm": {"name": "dapo"}},
    "buffered rollouts": {"rollout": {"staleness": 2}, "trainer": {"old_logprobs": "recomputed"}},
    "adapter": {"model": {"lora": {"rank": 4}}},
    "averaged teacher": {"algorithm": {"name": "sdpo", "follow": 0.3}},
    "checkpointed layers, best checkpoints": {
        "trainer": {"gradient_checkpointing": True, "keep_best_checkpoints": 1},
        "evaluation": {"envs": [{**PANTRY, "split": "test"}], "tasks": 4, "every": 1}},
    "compiled": {"trainer": {"compile": True}},
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", MODES)
def test_in_every_mode_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(mode, command_line, tmp_path):
    """Each is killed where it writes and where it does not; weights, metrics and episodes are the same bit for bit."""
    changed = {name: {**CONFIG.get(name, {}), **section} for name, section in MODES[mode].items()}
    file = tmp_path / "mode.yaml"
    file.write_text(yaml.safe_dump(CONFIG | changed))
    whole, _, _ = kill_and_resume(command_line, file, tmp_path / "undisturbed", [])
    moments = [saving("step-000001-group"), saving("step-000002"), saving("step-000003-group"), saving("step-000004"),
               after(0.5), when(lambda names: "step-000004" in names, 0.05)]
    run, kills, _ = kill_and_resume(command_line, file, tmp_path / "killed", moments)
    assert kills >= 3
    # How many groups were there already, and how far an engine's copy was behind, is of when a run was killed.
    assert_same_run(run, whole, (*SECONDS, *(name for line in whole.read_metrics() for name in line
                                             if name.startswith("sampler_gap"))))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
def test_a_run_killed_at_random_moments_ends_with_the_weights_of_one_that_was_not(
        seed, command_line, config_file, undisturbed, tmp_path):
    rng = random.Random(seed)
    whole = time.monotonic()
    first, _, _ = kill_and_resume(command_line, config_file, tmp_path / "timed", [])
    whole = time.monotonic() - whole
    assert_same_run(first, undisturbed)
    moments = [after(rng.uniform(0, whole)) for _ in range(12)]
    run, kills, _ = kill_and_resume(command_line, config_file, tmp_path / "runs", moments)
    assert kills >= 4
    assert_same_run(run, undisturbed)


def test_a_warm_start_by_itself_is_gone_on_from(command_line, config_file, undisturbed, tmp_path):
    for arguments in (["warmstart", config_file, f"runs={tmp_path}"],
                      ["train", config_file, f"runs={tmp_path}", "--resume"]):
        _, status = command_line(arguments, tmp_path / "log")
        assert status() == 0, (tmp_path / "log").read_text()
    assert_same_run(RunFolder(tmp_path / "killed"), undisturbed)


def test_another_configuration_is_refused_in_one_sentence_that_names_the_keys(
        command_line, config_file, undisturbed, tmp_path):
    log = tmp_path / "log"
    before = undisturbed.metrics.read_bytes()
    arguments = ["train", config_file, f"runs={undisturbed.path.parent}", "trainer.lr=0.5", "seed=6", "--resume"]
    _, status = command_line(arguments, log)
    assert os.waitstatus_to_exitcode(status()) == 2
    assert "these keys differ: seed, trainer.lr" in log.read_text() and "Traceback" not in log.read_text()
    assert undisturbed.metrics.read_bytes() == before


@pytest.mark.timeout(300)
def test_a_continuous_run_that_is_killed_loses_no_task_and_trains_on_none_twice(command_line, tmp_path):
    steps = 6
    file = tmp_path / "continuous.yaml"
    file.write_text(yaml.safe_dump(CONFIG | {
        "rollout": CONFIG["rollout"] | {"schedule": "asynchronous", "staleness": 1},
        "trainer": CONFIG["trainer"] | {"steps": steps, "old_logprobs": "recomputed"}}))

    def read(run):
        assert_nothing_is_half_written(run)
        for group in run.ahead.glob("group-*.parquet"):
            assert pyarrow.parquet.read_table(group).num_rows == 3

    run, log = RunFolder(tmp_path / "killed"), tmp_path / "log"
    moments = [saving("group-"), when(lambda names: "step-000002" in names), saving("step-000003-group"),
               saving("step-000004")]
    kills = 0
    for moment in [*moments, None]:
        resume = ["--resume"] if (run.path / "config.yaml").exists() else []
        pid, status = command_line(["train", file, f"runs={tmp_path}", *resume], log)
        if moment is not None:
            moment(run.path)
            os.kill(pid, signal.SIGKILL)
        ended = status()
        assert ended == (0 if moment is None or ended != signal.SIGKILL else signal.SIGKILL), log.read_text()
        kills += ended == signal.SIGKILL
        read(run)
    assert kills >= 3
    metrics = run.read_metrics()
    assert [line["step"] for line in metrics] == list(range(steps))
    trained = [tuple(map(int, path.stem.split("-")[1::2])) for path in run.episodes.glob("step-*.parquet")]
    assert sorted(step for step, _ in trained) == [step for step in range(steps) for _ in range(2)]
    numbers = sorted([*(number for _, number in trained), *(n for line in metrics for n in line["tasks stale"])])
    assert numbers == list(range(len(numbers))), "every task once: trained on, or counted as too old"
    assert not list(run.ahead.glob("*.parquet"))
    assert all(e.step - 1 <= e.policy_version <= e.step for e in run.read_episodes())
