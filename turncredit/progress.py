"""What a person sees of a run in the terminal: a live display, or a line now and then where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from turncredit.evaluate import Score

SECONDS_BETWEEN_LINES = 10.0


class Display:
    """A `Watcher` that draws step, reward, episodes, tokens a second and the time left."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"), TimeRemainingColumn(),
            console=self.console, disable=not self.console.is_terminal)
        self._bars: dict[str, TaskID] = {}
        self._episodes = 0
        self._last_line = 0.0

    def __enter__(self) -> Self:
        hide_file_bars()
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._progress.stop()

    def warming(self, step: int, steps: int, loss: float, success: float | None) -> None:
        """A step of the warm start."""
        solved = "" if success is None else f"  success {success:.2f}"
        self._show("warm start", step, steps, f"loss {loss:.3f}{solved}")

    def training(self, step: int, steps: int, metrics: dict[str, Any]) -> None:
        """A step of the loop."""
        self._episodes += metrics["episodes"]
        reward = "?" if metrics["reward"] is None else f"{metrics['reward']:.2f}"
        figures = f"reward {reward}  episodes {self._episodes:,}  {metrics['tokens_per_second']:,.0f} tokens/s"
        self._show("training", step, steps, figures)

    def _show(self, name: str, step: int, steps: int, figures: str) -> None:
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=steps, figures="")
        self._progress.update(self._bars[name], completed=step + 1, figures=figures)
        now = time.monotonic()
        if not self.console.is_terminal and (now - self._last_line > SECONDS_BETWEEN_LINES or step + 1 == steps):
            self._last_line = now
            self.console.print(f"{name} {step + 1}/{steps}  {figures}", highlight=False, soft_wrap=True)


@contextmanager
def bar(label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while something runs, gone once it has ended; nothing where that is no terminal.

    Args:
        label: what is counted.
        total: how many there will be; None where that is not known.
    Yields:
        What is called with how many more are done.
    """
    console = Console(stderr=True)
    with Progress(TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                  TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal,
                  redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, advance=done)


def hide_file_bars() -> None:
    """Without transformers' bars about the files of a model: they would break up what is shown here."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def score_table(columns: Mapping[str, Sequence[Score]], title: str = "") -> Table:
    """One row an environment, one column a policy: avg@k with its interval."""
    table = Table(title=title, title_justify="left")
    table.add_column("environment")
    table.add_column("split")
    for name in columns:
        table.add_column(name, justify="right")
    for row in zip(*columns.values()):
        table.add_row(row[0].env, row[0].split, *map(_cell, row))
    return table


def _cell(score: Score) -> str:
    if score.avg is None or score.interval is None:
        return f"not judged ({score.unjudged})"
    apart = f", {score.unjudged} not judged" if score.unjudged else ""
    return f"{score.avg:.3f} [{score.interval[0]:.2f}, {score.interval[1]:.2f}]{apart}"
