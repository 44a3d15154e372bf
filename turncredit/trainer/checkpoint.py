"""Checkpoints: weights, optimiser, random state and step, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from turncredit.store import write_whole
from turncredit.trainer.policy import Policy

STATE = "state.json"
SIZES = "sizes.json"  # the bytes of each file, written last


def save_checkpoint(folder: Path, steps_done: int, policy: Policy, optimizer: Any, state: dict[str, Any], keep: int,
                    keep_best: int = 0) -> Path:
    """Write `folder`/step-NNNNNN, then drop all but the newest `keep` and the `keep_best` with the highest "score".

    That is in their `state`, and null or missing where they were not evaluated; of equal ones the earlier stays.
    `steps_done` is also where a resumed run goes on. Tasks, samples and references are drawn from seeds by step,
    so the step is the position of every one of them; torch's own generator is saved for models that draw by themselves.
    """

    def write(path: Path) -> None:
        policy.save(path)
        torch.save({"optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}, path / "optimizer.pt")
        (path / STATE).write_text(json.dumps({**state, "steps_done": steps_done}))
        (path / SIZES).write_text(json.dumps(_sizes(path)))

    path = folder / f"step-{steps_done:06d}"
    if path.exists():
        shutil.rmtree(path)
    write_whole(path, write)
    there = sorted(folder.glob("step-*"))
    kept = {*there[-keep:], *_best(there, keep_best)}
    for old in there:
        if old not in kept:
            shutil.rmtree(old)
    return path


def _best(checkpoints: Sequence[Path], count: int) -> list[Path]:
    """Those with the highest scores, among the whole ones that have one."""
    scores = {path: json.loads((path / STATE).read_text()).get("score") for path in checkpoints if is_whole(path)}
    scored = [path for path, score in scores.items() if score is not None]
    return sorted(scored, key=lambda path: -scores[path])[:count]  # stable, and given in order


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest that is whole. One that was copied in part, or damaged since, is passed over."""
    return next((path for path in sorted(folder.glob("step-*"), reverse=True) if is_whole(path)), None)


def is_whole(path: Path) -> bool:
    """Whether every file of a checkpoint is there at its full length."""
    try:
        sizes = json.loads((path / SIZES).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(sizes, dict) and bool(sizes) and sizes == _sizes(path)


def _sizes(path: Path) -> dict[str, int]:
    return {str(file.relative_to(path)): file.stat().st_size for file in sorted(path.rglob("*"))
            if file.is_file() and file.name != SIZES}


def restore(path: Path, optimizer: Any) -> dict[str, Any]:
    """Load the optimiser and torch's random state; returns what was saved as `state`, with "steps_done"."""
    saved = torch.load(path / "optimizer.pt", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["random"])
    state: dict[str, Any] = json.loads((path / STATE).read_text())
    return state
