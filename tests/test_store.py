"""The run folder: what is written is read back equal, and nothing in it is ever half a file."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turncredit.episode import Episode, Group, Segment, StopReason, Turn, Verdict
from turncredit.store import EpisodeRecord, RunFolder, read_episodes, write_episodes, write_whole


def episode(step: int = 0, group: int = 0, sample: int = 0, **changes: Any) -> Episode:
    fields: dict[str, Any] = {
        "env_id": "turncredit/Calculator-v0", "task_id": "train-1", "split": "train", "seed": 2**31, "system": "S",
        "prompt": "What is 1 + 1?", "turns": [Turn("@calculate a=1", "2", "tool"), Turn("2", "", reward=1.0)],
        "segments": [Segment.text([1, 2, 3], "prompt"), Segment.sampled([7, 8], [-0.5, -1.25], [-0.25, -1.0]),
                     Segment.text([9], "glue"), Segment.text([4, 5], "tool"), Segment.sampled([6], [-2.0])],
        "verdict": Verdict.of(True, "right", note="n"), "timings": {"sampling": 0.5, "environment": 0.25}}
    return Episode(**(fields | changes), step=step, group=group, sample=sample)


def same(one: Episode, other: Episode) -> None:
    """Equal in every field, arrays and NaN included."""
    for name in Episode.__slots__:
        if name != "segments":
            assert repr(getattr(one, name)) == repr(getattr(other, name)), name
    for a, b in zip(one.segments, other.segments, strict=True):
        assert (a.role, a.generated, a.policy_version) == (b.role, b.generated, b.policy_version)
        for values in ("token_ids", "logprobs", "sampling_logprobs"):
            np.testing.assert_array_equal(getattr(a, values), getattr(b, values))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
floats = st.floats(width=32, allow_infinity=False)


@st.composite
def segments(draw: Any) -> Segment:
    ids = draw(st.lists(st.integers(0, 2**31 - 1), max_size=5))
    if not draw(st.booleans()):
        return Segment.text(ids, draw(st.sampled_from(["prompt", "user", "tool", "glue"])))
    logprobs = [draw(st.lists(floats, min_size=len(ids), max_size=len(ids))) for _ in range(2)]
    return Segment.sampled(ids, *logprobs, policy_version=draw(st.none() | st.integers(0, 10**6)))


verdicts = st.one_of(st.none(), st.builds(Verdict.unknown, texts), st.builds(
    Verdict, st.floats(0, 1), st.booleans(), texts, st.dictionaries(texts, st.none() | st.integers() | texts)))
episodes = st.builds(
    episode, st.integers(0, 10**9), st.integers(0, 9999), st.integers(0, 999), system=texts, prompt=texts, error=texts,
    seed=st.integers(0, 2**63 - 1), policy_version=st.integers(0, 10**6), stop=st.sampled_from(StopReason),
    segments=st.lists(segments(), max_size=4), verdict=verdicts,
    turns=st.lists(st.builds(Turn, texts, texts, st.sampled_from(["user", "tool"]), st.booleans(),
                             st.none() | st.floats(allow_infinity=False)), max_size=3))


@given(written=st.lists(episodes, min_size=1, max_size=3))
def test_episodes_are_read_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory,
                                                     written: list[Episode]) -> None:
    path = write_episodes(tmp_path_factory.mktemp("episodes") / "step-0.parquet", written)
    for one, other in zip(written, read_episodes(path), strict=True):
        same(one, other)


def test_a_file_from_before_turns_had_versions_of_their_own_is_read(tmp_path: Path) -> None:
    path = write_episodes(tmp_path / "step-0.parquet", [episode(policy_version=7)])
    rows = pyarrow.parquet.read_table(path).to_pylist()
    for segment in rows[0]["segments"]:
        del segment["policy_version"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    [read] = read_episodes(path)
    same(read, episode(policy_version=7))
    assert read.policy_versions == [7]


def test_rows_say_what_an_analyst_asks_for(tmp_path: Path) -> None:
    run = RunFolder(tmp_path).create()
    run.write_group(Group([episode(sample=0), episode(sample=1, verdict=Verdict.unknown("?"),
                                                      stop=StopReason.VERIFIER_ERROR, error="broken")]))
    table = pandas.read_parquet(run.episodes)  # the one line
    assert list(table["id"]) == ["000000-0000-000", "000000-0000-001"]
    assert table["reward"].isna().tolist() == [False, True]
    assert list(table["stop"]) == ["finished", "verifier error"]
    assert list(table["generated_tokens"]) == [3, 3]
    assert list(table["total_tokens"]) == [9, 9]
    assert table["turns"][0][0]["observation"] == "2"


def test_an_unjudged_episode_has_no_reward_even_if_its_verifier_gave_one(tmp_path: Path) -> None:
    write_episodes(tmp_path / "step-0.parquet", [episode(stop=StopReason.ENGINE_ERROR)])
    row = pandas.read_parquet(tmp_path / "step-0.parquet").iloc[0]
    assert math.isnan(row["reward"])
    assert row["verdict_reward"] == 1.0


def test_a_row_with_an_unknown_or_missing_field_is_refused() -> None:
    row = EpisodeRecord.of(episode()).model_dump()
    with pytest.raises(ValueError, match="colour"):
        EpisodeRecord.model_validate(row | {"colour": "red"})
    with pytest.raises(ValueError, match="seed"):
        EpisodeRecord.model_validate({key: value for key, value in row.items() if key != "seed"})


class Odd:
    def __repr__(self) -> str:
        return "odd"


CIRCLE: dict[str, Any] = {}
CIRCLE["itself"] = CIRCLE


@pytest.mark.parametrize("details, read", [
    ({"wrong": Odd()}, {"wrong": "odd"}), ({(1, 2): 3}, {"repr": "{(1, 2): 3}"}),
    ({"text": "\ud800"}, {"text": "\ud800"}), (CIRCLE, {"repr": "{'itself': {...}}"}), (None, {"repr": "None"}),
], ids=str)
def test_whatever_a_verifier_notes_is_written(tmp_path: Path, details: Any, read: dict[str, Any]) -> None:
    path = write_episodes(tmp_path / "step-0.parquet", [episode(verdict=Verdict(1.0, True, "ok", details))])
    verdict = read_episodes(path)[0].verdict
    assert verdict is not None
    assert verdict.details == read


def test_text_that_is_no_utf8_is_written_with_replacement_marks(tmp_path: Path) -> None:
    odd = "a\ud800b"
    path = write_episodes(tmp_path / "step-0.parquet", [episode(
        system=odd, prompt=odd, error=odd, task_id=odd, split=odd, turns=[Turn(odd, odd)],
        verdict=Verdict.unknown(odd))])
    read = read_episodes(path)[0]
    said = [read.system, read.prompt, read.error, read.task_id, read.turns[0].action, read.turns[0].observation]
    assert said == ["a?b"] * 6


def test_an_episode_that_never_began_is_written_too(tmp_path: Path) -> None:
    path = write_episodes(tmp_path / "step-0.parquet", [
        episode(segments=[], turns=[], timings={}, verdict=None, stop=StopReason.ENVIRONMENT_ERROR)])
    read = read_episodes(path)[0]
    assert (len(read.token_ids), len(read.generated), len(read.logprobs), read.reward) == (0, 0, 0, None)


def test_metrics_are_a_line_a_step_and_null_where_not_finite(tmp_path: Path) -> None:
    run = RunFolder(tmp_path).create()
    run.append_metrics({"step": 0, "loss": float("nan"), "stops": {StopReason.FINISHED: np.int64(3)},
                        "interval": (np.float32(0.5), float("inf")), "path": tmp_path, "updated": np.bool_(True)})
    run.append_metrics({"step": 1, "loss": None})
    assert run.read_metrics() == [
        {"step": 0, "loss": None, "stops": {"finished": 3}, "interval": [0.5, None], "path": str(tmp_path),
         "updated": True}, {"step": 1, "loss": None}]
    assert list(pandas.read_json(run.metrics, lines=True)["step"]) == [0, 1]


def test_half_a_last_line_of_metrics_is_not_read(tmp_path: Path) -> None:
    run = RunFolder(tmp_path).create()
    run.append_metrics({"step": 0})
    with run.metrics.open("a") as file:
        file.write('{"step": 1, "lo')
    assert run.read_metrics() == [{"step": 0}]
    run.forget_from(1)
    run.append_metrics({"step": 1})
    assert [line["step"] for line in run.read_metrics()] == [0, 1]


def test_a_resumed_run_forgets_the_steps_that_it_does_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path).create()
    for step in range(4):
        for group in range(2):
            run.write_group(Group([episode(step, group)]))
        run.append_metrics({"step": step})
    run.forget_from(2)
    assert [e.step for e in run.read_episodes()] == [0, 0, 1, 1]
    assert [line["step"] for line in run.read_metrics()] == [0, 1]
    run.forget_from(0)
    assert list(run.read_episodes()) == run.read_metrics() == []


def test_what_a_killed_writer_left_is_neither_read_nor_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path).create()
    run.write_group(Group([episode()]))
    left = run.episodes / ".writing-step-000001-group-0000.parquet"
    left.write_bytes(b"PAR1 half")
    (tmp_path / ".writing-policy").mkdir()
    assert len(list(run.read_episodes())) == 1
    assert len(pandas.read_parquet(run.episodes)) == 1
    run.create()
    assert not left.exists()
    assert not (tmp_path / ".writing-policy").exists()


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    def write(path: Path, text: str) -> None:
        path.mkdir()
        (path / "weights").write_text(text)

    for text in ("one", "two"):
        write_whole(tmp_path / "policy", lambda path, text=text: write(path, text))  # type: ignore[misc]  # early bound
    assert (tmp_path / "policy" / "weights").read_text() == "two"
    assert list(tmp_path.iterdir()) == [tmp_path / "policy"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "file", fail)
    assert (tmp_path / "file").read_text() == "old"


# For each line on its input, a number of seconds: fork a writer, let it do a first step, kill it that much later.
WRITERS = """
import os, signal, sys, time
from pathlib import Path
from turncredit.episode import Episode, Group, Segment, Verdict
from turncredit.store import RunFolder, write_episodes

def write(started):
    run = RunFolder(Path(sys.argv[1])).create()
    first = len(run.read_metrics())
    run.forget_from(first)
    for step in range(first, 100_000):
        for group in range(2):
            run.write_group(Group([Episode("e", "t", "train", 1, "s" * 3000, "p", [Segment.text(range(300), "prompt"),
                Segment.sampled([1] * 100, [-0.5] * 100)], verdict=Verdict.of(True), step=step, group=group, sample=i)
                for i in range(2)]))
        run.append_metrics({"step": step, "much": list(range(1500))})
        if step == first:
            os.write(started, b"1")

write_episodes(Path(sys.argv[1]).with_name("warm"), [Episode("e", "t", "train", 1, "s", "p", [])])  # slow at first
for line in sys.stdin:
    reading, writing = os.pipe()
    writer = os.fork()
    if writer == 0:
        write(writing)
    os.read(reading, 1)
    time.sleep(float(line))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    print("killed", flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_a_folder_that_reads_in_full(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    moments = random.Random(3)
    steps = 0
    with subprocess.Popen([sys.executable, "-c", WRITERS, str(run.path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as writers:
        assert writers.stdin
        assert writers.stdout
        for _ in range(8):
            print(moments.uniform(0.0, 0.06), file=writers.stdin, flush=True)
            assert writers.stdout.readline() == "killed\n"
            read = list(run.read_episodes())
            metrics = run.read_metrics()
            assert [line["step"] for line in metrics] == list(range(len(metrics)))
            assert len(metrics) > steps, "what was there stays there"
            assert len(read) >= 4 * len(metrics), "episodes are written before their step's line"
            assert all(len(e.token_ids) == 400 and e.reward == 1.0 for e in read)
            assert len(pandas.read_parquet(run.episodes)) == len(read)
            steps = len(metrics)


def test_a_line_of_metrics_is_json_that_anybody_reads(tmp_path: Path) -> None:
    run = RunFolder(tmp_path).create()
    run.append_metrics({"step": 0, "loss": float("nan")})
    json.loads(run.metrics.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
