"""The commands that look at a run: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from turncredit.errors import UserError

console = Console()

Runs = Annotated[list[Path], typer.Argument(help="run folders, such as runs/quickstart; several are overlaid")]


def add_commands(app: typer.Typer) -> None:
    """Put them on the command line."""
    app.command()(report)


def report(runs: Runs,
           out: Annotated[Path | None, typer.Option(help="the HTML file; RUN/report.html where none")] = None,
           episodes: Annotated[int, typer.Option(min=1, help="how many at most are taken in")] = 5_000,
           show: Annotated[bool, typer.Option("--open", help="show it in a browser")] = False) -> None:
    """Write one HTML page with a run's curves, episodes and credit; it needs no network.

    Example: turncredit report runs/quickstart --open
    """
    from turncredit.report import open_recorded_run, write_report

    recorded = [open_recorded_run(path) for path in runs]
    target = out or runs[0] / "report.html"
    if not target.parent.is_dir():
        raise UserError(f"--out {str(target)!r}: there is no folder {str(target.parent)!r}")
    with console.status("reading episodes"):
        write_report(recorded, target, episodes)
    console.print(f"report: {target}", soft_wrap=True)
    if show:
        typer.launch(str(target))
