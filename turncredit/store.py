"""The run folder: episodes, metrics and configuration on disk. Nothing in it is ever half a file.

    runs/NAME/config.yaml           the configuration
    runs/NAME/episodes/*.parquet    a file a group, put there whole: pandas.read_parquet("runs/NAME/episodes")
    runs/NAME/ahead/*.parquet       groups that no step has been trained on yet, where they are sampled continuously
    runs/NAME/metrics.jsonl         a line a step: pandas.read_json("runs/NAME/metrics.jsonl", lines=True)
    runs/NAME/credit/*.parquet      a file a step, a row a generated token: what it earned, and why
    runs/NAME/checkpoints/step-…    what `--resume` continues from
    runs/NAME/refused/              the newest batch whose update was refused, and the weights that it was to change
    runs/NAME/policy, best          the last policy, and the one that did best in distribution, where that is evaluated
    runs/NAME/leakage.json          evaluated tasks that stand among the trained ones, of a sample
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from turncredit.episode import Episode, Group, Segment, StopReason, Turn, Verdict


class SegmentRecord(BaseModel):
    """A segment on disk."""

    role: str
    generated: bool
    token_ids: list[int]
    logprobs: list[float] | None
    sampling_logprobs: list[float] | None
    policy_version: int | None = None  # files of older runs do not have it


class TurnRecord(BaseModel):
    """A turn on disk."""

    action: str
    observation: str
    role: str
    valid: bool
    reward: float | None


class EpisodeRecord(BaseModel):
    """A row of the episodes' table: validated on the way in and on the way out."""

    model_config = ConfigDict(extra="forbid")

    id: str
    step: int
    group: int
    sample: int
    env_id: str
    task_id: str
    split: str
    seed: int
    policy_version: int
    reward: float | None
    passed: bool | None
    stop: StopReason
    error: str
    verdict_reward: float | None  # as the verifier gave it; `reward` is None too where infrastructure broke
    verdict_passed: bool | None
    verdict_reason: str | None
    verdict_details: str  # JSON
    generated_tokens: int
    total_tokens: int
    sampling_s: float
    environment_s: float
    system: str
    prompt: str
    turns: list[TurnRecord]
    segments: list[SegmentRecord]

    @classmethod
    def of(cls, episode: Episode) -> EpisodeRecord:
        """An episode as a row."""
        verdict = episode.verdict
        return cls(
            id=episode.id, step=episode.step, group=episode.group, sample=episode.sample, env_id=episode.env_id,
            task_id=_encodable(episode.task_id), split=_encodable(episode.split), seed=episode.seed,
            policy_version=episode.policy_version, reward=episode.reward, passed=episode.passed, stop=episode.stop,
            error=_encodable(episode.error), verdict_reward=verdict.reward if verdict else None,
            verdict_passed=verdict.passed if verdict else None,
            verdict_reason=_encodable(str(verdict.reason)) if verdict else None,
            verdict_details=_details(verdict.details) if verdict else "{}",
            generated_tokens=episode.generated_count, total_tokens=sum(len(s.token_ids) for s in episode.segments),
            sampling_s=episode.timings.get("sampling", 0.0), environment_s=episode.timings.get("environment", 0.0),
            system=_encodable(episode.system), prompt=_encodable(episode.prompt),
            turns=[TurnRecord(action=_encodable(t.action), observation=_encodable(t.observation), role=t.role,
                              valid=t.valid, reward=t.reward) for t in episode.turns],
            segments=[SegmentRecord(role=s.role, generated=s.generated, token_ids=s.token_ids.tolist(),
                                    logprobs=None if s.logprobs is None else s.logprobs.tolist(),
                                    sampling_logprobs=None if s.sampling_logprobs is None
                                    else s.sampling_logprobs.tolist(), policy_version=s.policy_version)
                      for s in episode.segments])

    def episode(self) -> Episode:
        """The row as an episode."""
        verdict = None
        if self.verdict_reason is not None:
            verdict = Verdict(self.verdict_reward, self.verdict_passed, self.verdict_reason,
                              json.loads(self.verdict_details))
        segments = [Segment.sampled(s.token_ids, s.logprobs or [], s.sampling_logprobs, s.policy_version) if s.generated
                    else Segment.text(s.token_ids, s.role) for s in self.segments]
        turns = [Turn(t.action, t.observation, t.role, t.valid, t.reward) for t in self.turns]
        return Episode(self.env_id, self.task_id, self.split, self.seed, self.system, self.prompt, segments, turns,
                       verdict, self.stop, self.error, self.sample, self.group, self.step, self.policy_version,
                       {"sampling": self.sampling_s, "environment": self.environment_s})


def _encodable(text: str) -> str:
    """Text as UTF-8 can hold it: lone surrogates, which an environment may utter, become replacement marks."""
    return text.encode("utf-8", "replace").decode()


def _details(details: Any) -> str:
    """A verdict's details as JSON; what JSON cannot hold, as its `repr`. They are the verifier's: anything at all."""
    try:
        return json.dumps(dict(details), default=repr)
    except (TypeError, ValueError, RecursionError):  # keys that are no strings, circles, no mapping
        return json.dumps({"repr": repr(details)})


class RunFolder:
    """Where a run keeps what it did."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.episodes = path / "episodes"
        self.ahead = path / "ahead"
        self.metrics = path / "metrics.jsonl"
        self.credit = path / "credit"
        self.checkpoints = path / "checkpoints"
        self.refused = path / "refused"

    def create(self) -> RunFolder:
        """Make the folders, and clear away what a killed writer left half done."""
        for folder in (self.path, self.episodes, self.ahead, self.credit, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
            for unfinished in folder.glob(".writing-*"):
                shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
        return self

    def write_group(self, group: Group) -> None:
        """Write a group's episodes as one file, whole or not at all."""
        episodes, first = group.episodes, group.episodes[0]
        write_episodes(self.group_file(first.step, first.group), episodes)

    def group_file(self, step: int, group: int) -> Path:
        """Where a group's episodes stand, or will."""
        return self.episodes / f"step-{step:06d}-group-{group:04d}.parquet"

    def ahead_file(self, group: int) -> Path:
        """Where a group stands until a step is trained on it."""
        return self.ahead / f"group-{group:06d}.parquet"

    def set_back(self, step: int) -> None:
        """The groups of `step` and later are such that no step was trained on: the run goes on from `step`."""
        for file in self.episodes.glob("step-*.parquet"):
            _, of, _, group = file.stem.split("-")
            if int(of) >= step:
                file.replace(self.ahead_file(int(group)))

    def read_episodes(self) -> Iterator[Episode]:
        """Every episode, in the order of their ids."""
        for file in sorted(self.episodes.glob("step-*.parquet")):  # not what a killed writer left half done
            yield from read_episodes(file)

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """Add a step's line; numbers that are not finite, which JSON does not know, become null."""
        line = json.dumps(_jsonable(metrics), allow_nan=False) + "\n"
        with self.metrics.open("ab", buffering=0) as file:
            file.write(line.encode())  # one write call

    def read_metrics(self) -> list[dict[str, Any]]:
        """A dict a step; without the last line where a kill left half of it."""
        text = self.metrics.read_text() if self.metrics.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def forget_from(self, step: int, keep_steps: int = 0) -> None:
        """Drop what belongs to `step` and later: a resumed run does these steps again.

        Args:
            keep_steps: the episodes of so many steps from `step` on stay: they were sampled ahead of it.
        """
        for file in [*self.episodes.glob("step-*.parquet"), *self.credit.glob("step-*.parquet")]:
            of = int(file.stem.split("-")[1])
            if of >= step and not (of < step + keep_steps and file.parent == self.episodes):
                file.unlink()
        kept = [line for line in self.read_metrics() if line["step"] < step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_whole(self.metrics, lambda path: path.write_text(text))


def write_episodes(path: Path, episodes: Sequence[Episode]) -> Path:
    """Write episodes as a parquet file."""
    import pyarrow
    import pyarrow.parquet

    rows = [EpisodeRecord.of(e).model_dump(mode="json") for e in episodes]
    table = pyarrow.Table.from_pylist(rows, schema=_schema())
    return write_whole(path, lambda temporary: pyarrow.parquet.write_table(table, temporary, compression="zstd"))


def read_episodes(path: Path) -> list[Episode]:
    """The episodes of one parquet file."""
    import pyarrow.parquet

    return [EpisodeRecord.model_validate(row).episode() for row in pyarrow.parquet.read_table(path).to_pylist()]


def write_whole(path: Path, write: Callable[[Path], Any]) -> Path:
    """Let `write` make a file or folder under another name, flush it to the disk, and give it its name at once.

    An older folder of that name is taken away first, since a folder cannot be put in the place of another.
    """
    temporary = path.with_name(f".writing-{path.name}")
    if temporary.is_dir():
        shutil.rmtree(temporary)
    write(temporary)
    for file in [temporary, *(temporary.rglob("*") if temporary.is_dir() else [])]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if path.is_dir():
        older = path.with_name(f".writing-older-{path.name}")
        path.replace(older)
        temporary.replace(path)
        shutil.rmtree(older)
    else:
        temporary.replace(path)
    return path


def _schema() -> Any:
    import pyarrow as pa

    segment = pa.struct([("role", pa.string()), ("generated", pa.bool_()), ("token_ids", pa.list_(pa.int32())),
                         ("logprobs", pa.list_(pa.float32())), ("sampling_logprobs", pa.list_(pa.float32())),
                         ("policy_version", pa.int64())])
    turn = pa.struct([("action", pa.string()), ("observation", pa.string()), ("role", pa.string()),
                      ("valid", pa.bool_()), ("reward", pa.float64())])
    kinds = {"turns": pa.list_(turn), "segments": pa.list_(segment), "passed": pa.bool_(), "verdict_passed": pa.bool_(),
             **dict.fromkeys(("step", "group", "sample", "seed", "policy_version", "generated_tokens", "total_tokens"),
                             pa.int64()),
             **dict.fromkeys(("reward", "verdict_reward", "sampling_s", "environment_s"), pa.float64())}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in EpisodeRecord.model_fields])


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
