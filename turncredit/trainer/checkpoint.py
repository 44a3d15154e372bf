"""Checkpoints: weights, optimiser, random state and step, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from turncredit.store import write_whole
from turncredit.trainer.policy import Policy


def save_checkpoint(folder: Path, steps_done: int, policy: Policy, optimizer: torch.optim.Optimizer,
                    state: dict[str, Any], keep: int) -> Path:
    """Write `folder`/step-NNNNNN, then drop all but the newest `keep`.

    `steps_done` is also where a resumed run goes on. Tasks, samples and references are drawn from seeds by step,
    so the step is the position of every one of them; torch's own generator is saved for models that draw by themselves.
    """

    def write(path: Path) -> None:
        policy.save(path)
        torch.save({"optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}, path / "optimizer.pt")
        (path / "state.json").write_text(json.dumps({**state, "steps_done": steps_done}))

    path = folder / f"step-{steps_done:06d}"
    if path.exists():
        shutil.rmtree(path)
    write_whole(path, write)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return path


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest; each is whole, since it got its name when it was."""
    found = sorted(folder.glob("step-*"))
    return found[-1] if found else None


def restore(path: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load the optimiser and torch's random state; returns what was saved as `state`, with "steps_done"."""
    saved = torch.load(path / "optimizer.pt", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["random"])
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    return state
