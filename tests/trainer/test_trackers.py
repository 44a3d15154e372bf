"""What TensorBoard, W&B and trackio are told is what stands in metrics.jsonl."""

from __future__ import annotations

import importlib.util
import json
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from turncredit.config import parse_config
from turncredit.errors import MissingExtra
from turncredit.store import RunFolder
from turncredit.trainer import trackers
from turncredit.trainer.trackers import Trackers, numbers, refuse_missing_trackers


def config_of(run: Path, *to: str) -> Any:
    return parse_config(yaml.safe_load((run / "config.yaml").read_text()) | {"tracking": {"to": list(to)}})


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator",
                                      reason="tensorboard is not installed")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_a_run_s_numbers_stand_in_tensorboard(trained_run: Path) -> None:
    told = scalars(trained_run / "tensorboard")
    lines = RunFolder(trained_run).read_metrics()
    assert len(lines) == 3
    for line in lines:
        for name, value in numbers(line).items():
            assert told[name][line["step"]] == pytest.approx(value, rel=1e-6), name
    assert "reward" in told and "stops/token limit" in told | {"stops/token limit": 0}
    assert "evaluation/turncredit/Calculator-v0/test" in told


def test_a_resumed_run_takes_back_what_an_earlier_attempt_had_told(trained_run: Path, tmp_path: Path) -> None:
    config = config_of(trained_run, "tensorboard")
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    for first, steps, reward in ((0, (0, 1, 2), 0.25), (1, (1,), 0.75)):
        tracked = Trackers(config, tmp_path, first)
        for step in steps:
            tracked.training(step, 3, {"step": step, "reward": reward})
        tracked.close()
    assert scalars(tmp_path / "tensorboard")["reward"] == {0: 0.25, 1: 0.75}


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, which W&B writes behind a header of 7 bytes."""
    at, block, record = 7, 32_768, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # no header fits: the rest of the block is padding
            at += block - at % block
            continue
        _, size, kind = struct.unpack("<IHB", data[at:at + 7])
        record += data[at + 7:at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def test_wandb_gets_the_same_numbers_offline(trained_run: Path, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    lines = RunFolder(trained_run).read_metrics()
    tracked = Trackers(config_of(trained_run, "wandb"), tmp_path)
    for line in lines:
        tracked.training(line["step"], 3, line)
    tracked.close()
    wandb.teardown()  # its service writes the file out when it ends
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    told: list[dict[str, float]] = []
    for data in log_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            told.append({item.key or "/".join(item.nested_key): json.loads(item.value_json)
                         for item in record.history.item})
    assert [line["_step"] for line in told] == [0, 1, 2]
    for line, said in zip(lines, told, strict=True):
        assert {name: said[name] for name in numbers(line)} == pytest.approx(numbers(line))


def test_trackio_gets_the_same_numbers(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("trackio is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    lines = RunFolder(trained_run).read_metrics()
    tracked = Trackers(config_of(trained_run, "trackio"), tmp_path)
    for line in lines:
        tracked.training(line["step"], 3, line)
    tracked.close()
    told = SQLiteStorage.get_logs("turncredit", "trained")
    assert trackio is not None and [line["step"] for line in told] == [0, 1, 2]
    for line, said in zip(lines, told, strict=True):
        assert {name: said[name] for name in numbers(line) if name != "step"} == pytest.approx(
            {name: value for name, value in numbers(line).items() if name != "step"})


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_loaded(
        trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "wandb" else object())
    refuse_missing_trackers(config_of(trained_run, "tensorboard"))
    with pytest.raises(MissingExtra, match=r"wandb is not installed: pip install 'turncredit\[wandb\]'"):
        refuse_missing_trackers(config_of(trained_run, "tensorboard", "wandb"))


def test_a_tracker_that_fails_costs_a_warning_and_not_the_run(
        trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        name = "wandb"

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

        def log(self, values: Any, step: int) -> None:
            raise OSError("no network")

    monkeypatch.setattr(trackers, "_tracker", lambda *_: Broken())
    with caplog.at_level(logging.WARNING):
        Trackers(config_of(trained_run, "wandb"), tmp_path).training(4, 9, {"reward": 1.0})
    assert "wandb did not take step 4: no network" in caplog.text
