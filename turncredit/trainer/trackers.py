"""The numbers of metrics.jsonl through TensorBoard, Weights & Biases and trackio, by accelerate's trackers."""

from __future__ import annotations

import importlib.util
import logging
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from turncredit.config import Config
from turncredit.errors import MissingExtra

log = logging.getLogger(__name__)


def refuse_missing_trackers(config: Config) -> None:
    """Find out before anything is loaded.

    Raises:
        MissingExtra: a tracker of `tracking.to`, or accelerate, is not installed.
    """
    for name in config.tracking.to:
        for package in ("accelerate", name):
            if importlib.util.find_spec(package) is None:
                raise MissingExtra(package, name)


class Trackers:
    """A `Watcher` that hands each step's numbers on.

    Args:
        config: `tracking` says to which; the run's name and settings go along.
        folder: the run's: TensorBoard's files lie in its `tensorboard/`, W&B's in its `wandb/`.
        first: the step that training begins with; TensorBoard forgets what an earlier attempt had behind it.
        active: False in all processes but the first.
    """

    def __init__(self, config: Config, folder: Path, first: int = 0, active: bool = True) -> None:
        self._trackers = [_tracker(name, config, folder, first) for name in config.tracking.to if active]
        settings = dict(_leaves(config.model_dump(mode="json")))
        for tracker in self._trackers:
            tracker.main_process_only = False  # which process this is has been decided, not by accelerate
            tracker.start()
            if tracker.name != "tensorboard":  # it would write them into a run of their own
                tracker.store_init_configuration(settings)

    def warming(self, step: int, steps: int, loss: float, success: float | None) -> None:
        """Nothing is tracked of a warm start: its steps would stand among training's."""

    def training(self, step: int, steps: int, metrics: dict[str, Any]) -> None:
        """Hand a step on; a tracker that fails costs a warning, not the run."""
        values = numbers(metrics)
        for tracker in self._trackers:
            try:
                tracker.log(values, step=step)
            except Exception as error:  # whatever a service's client raises
                log.warning("tracking: %s did not take step %d: %s", tracker.name, step, error)

    def close(self) -> None:
        """Let each write what it holds."""
        for tracker in self._trackers:
            tracker.finish()


class Both:
    """Two watchers of one run."""

    def __init__(self, *watchers: Any) -> None:
        self._watchers = watchers

    def warming(self, step: int, steps: int, loss: float, success: float | None) -> None:
        """To each of them."""
        for watcher in self._watchers:
            watcher.warming(step, steps, loss, success)

    def training(self, step: int, steps: int, metrics: dict[str, Any]) -> None:
        """To each of them."""
        for watcher in self._watchers:
            watcher.training(step, steps, metrics)


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """A line of metrics as flat names and numbers: `reward`, `stops/finished`, `evaluation/mine/A-v0/test`."""
    found = {name: float(value) for name, value in _leaves({k: v for k, v in metrics.items() if k != "evaluation"})
             if isinstance(value, int | float)}
    return found | {f"evaluation/{score['env']}/{score['split']}": float(score["avg"])
                    for score in metrics.get("evaluation") or [] if score["avg"] is not None}


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for name, inner in values.items():
            yield from _leaves(inner, f"{prefix}/{name}".lstrip("/"))
    else:
        yield prefix, values if isinstance(values, bool | int | float | str) or values is None else str(values)


def _tracker(name: str, config: Config, folder: Path, first: int) -> Any:
    from accelerate import PartialState, tracking

    PartialState()  # accelerate's log asks which process this is
    if name == "tensorboard":
        return tracking.TensorBoardTracker(name, folder, purge_step=first)
    project = config.tracking.project
    if name == "wandb":
        return tracking.WandBTracker(project, name=config.name, id=_kept_id(folder), resume="allow", dir=str(folder))
    return tracking.TrackioTracker(project, name=config.name, resume="allow")


def _kept_id(folder: Path) -> str:
    """The same for a run that is resumed."""
    file = folder / "wandb-id"
    if not file.exists():
        file.write_text(secrets.token_hex(4))
    return file.read_text()
