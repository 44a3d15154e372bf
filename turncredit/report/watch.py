"""A run as it goes, in the terminal, read from its folder: from any shell, and without touching the run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from turncredit.report.runs import RecordedRun, open_recorded_run

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 48  # characters of a curve
SHOWN = {"reward": "mean reward", "success": "success", "entropy_mean": "entropy, nats", "kl_p75": "KL, P75, nats",
         "weight_mean": "mean weight f", "loss": "loss", "gradient_norm": "gradient norm", "turns": "turns",
         "invalid_actions": "invalid actions", "tokens_per_second": "tokens a second"}


def follow(path: Path, console: Console, every_s: float = 2.0) -> None:
    """Draw a run anew every so many seconds until its last step is done."""
    with Live(panel(open_recorded_run(path)), console=console, auto_refresh=False) as live:
        while True:
            run = open_recorded_run(path)
            live.update(panel(run), refresh=True)
            if ended(run):
                return
            time.sleep(every_s)


def ended(run: RecordedRun) -> bool:
    """Whether its last planned step is done and its final policy there."""
    return len(run.metrics) >= _planned(run) and (run.folder.path / "policy").is_dir()


def panel(run: RecordedRun) -> RenderableType:
    """The run's figures: how far it is, and of each metric its last value and its course."""
    done, planned = len(run.metrics), _planned(run)
    table = Table(box=None, pad_edge=False)
    for name, side in (("", "left"), ("now", "right"), ("from the first step to the last", "left")):
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
    for key, label in SHOWN.items():
        values = run.series(key)[1]
        if values:
            table.add_row(label, f"{values[-1]:.4g}", curve(values))
    last = run.metrics[-1] if run.metrics else {}
    stops = ", ".join(f"{name} {count}" for name, count in last.get("stops", {}).items())
    evaluated = [f"{score['env']} {score['split']} {score['avg']:.3f}" for line in run.metrics[::-1]
                 for score in line.get("evaluation") or [] if score.get("avg") is not None][:4]
    lines = [text for text in (f"ended: {stops}" if stops else "", f"evaluated: {'; '.join(evaluated)}"
                               if evaluated else "") if text]
    state = "ended" if ended(run) else "warm start" if not done else f"step {done} of {planned}"
    return Panel(Group(ProgressBar(max(planned, 1), done), table, *lines),
                 title=f"{run.name} · {run.algorithm} · {state}")


def curve(values: Sequence[float], width: int = WIDTH) -> str:
    """A course as a row of bars, each the mean of its share of the values, from the smallest to the largest."""
    count = min(width, len(values))
    means = [sum(part) / len(part) for i in range(count)
             if (part := values[i * len(values) // count:(i + 1) * len(values) // count])]
    low, high = min(means), max(means)
    return "".join(BARS[round((v - low) / (high - low) * (len(BARS) - 1)) if high > low else 0] for v in means)


def _planned(run: RecordedRun) -> int:
    return int(run.config.get("trainer", {}).get("steps", 0))
