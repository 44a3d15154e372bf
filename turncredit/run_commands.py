"""The commands that look at a run: report, audit, replay, watch, credit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from turncredit.errors import UserError
from turncredit.heatmap.command import credit

if TYPE_CHECKING:
    from turncredit.audit import Finding
    from turncredit.episode import Episode

console = Console()
SHOWN = 5  # problems of a row

Runs = Annotated[list[Path], typer.Argument(help="run folders, such as runs/quickstart; several are overlaid")]


def add_commands(app: typer.Typer) -> None:
    """Put them on the command line."""
    for command in (report, audit, replay, watch, credit):
        app.command()(command)


def report(runs: Runs,
           out: Annotated[Path | None, typer.Option(help="the HTML file; RUN/report.html where none")] = None,
           episodes: Annotated[int, typer.Option(min=1, help="how many at most are taken in")] = 5_000,
           show: Annotated[bool, typer.Option("--open", help="show it in a browser")] = False) -> None:
    """Write one HTML page with a run's curves, episodes and credit; it needs no network.

    Example: turncredit report runs/quickstart --open
    """
    from turncredit.progress import bar
    from turncredit.report import open_recorded_run, write_report

    recorded = [open_recorded_run(path) for path in runs]
    target = out or runs[0] / "report.html"
    if not target.parent.is_dir():
        raise UserError(f"--out {str(target)!r}: there is no folder {str(target.parent)!r}")
    with bar("episodes", min(episodes, sum(int(m.get("episodes", 0)) for r in recorded for m in r.metrics))) as done:
        write_report(recorded, target, episodes, done)
    console.print(f"report: {target}", soft_wrap=True)
    if show:
        typer.launch(str(target))


def audit(run: Annotated[Path, typer.Argument(help="a run folder, such as runs/quickstart")],
          episodes: Annotated[int, typer.Option(min=0, help="acted out again in their environments; 0 for all")] = 64,
          as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Work out again what a run wrote down (texts, masks, rewards, logprobs, credit); exit code 1 where it differs.

    Example: turncredit audit runs/quickstart --episodes 256
    """
    from rich.progress import Progress

    from turncredit.audit import audit as examine
    from turncredit.progress import hide_file_bars

    hide_file_bars()
    with Progress(console=Console(stderr=True), transient=True, disable=as_json) as progress:
        bar = progress.add_task("steps", total=None)
        findings = examine(run, episodes or None,
                           lambda done, steps: progress.update(bar, completed=done, total=steps))
    if as_json:
        print(json.dumps([{**asdict(f), "verdict": f.verdict} for f in findings]))
    else:
        _show_findings(findings)
    raise typer.Exit(int(any(f.verdict == "fail" for f in findings)))


def replay(run: Annotated[Path, typer.Argument(help="a run folder, such as runs/quickstart")],
           episode: Annotated[str, typer.Argument(help="an episode's id, such as 000003-0001-002")],
           as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Show an episode turn by turn, act it out again in its environment; exit code 1 where it comes out differently.

    Example: turncredit replay runs/quickstart 000003-0001-002
    """
    from turncredit.audit.recorded import AuditedRun
    from turncredit.progress import hide_file_bars
    from turncredit.replay import differences, retell

    hide_file_bars()
    audited = AuditedRun(run)
    step, recorded = audited.find(episode)
    if not as_json:
        _show_episode(recorded)
    broke = recorded.stop.infrastructure
    found = []
    if not broke:
        with Console(stderr=True).status("acting it out again"):
            now = retell(recorded, step.tasks[recorded.group], audited.policy(), audited.config)
        found = differences(recorded, now)
    if as_json:
        print(json.dumps({"episode": recorded.id, "acted_out": not broke, "stop": str(recorded.stop),
                          "reward": recorded.reward, "differences": [asdict(one) for one in found]}, default=repr))
        raise typer.Exit(int(bool(found)))
    console.print()
    if broke:
        console.print(f"not acted out again: {recorded.stop.sentence}", style="yellow")
        return
    if not found:
        console.print("acted out again: the same texts, tokens, end and verdict", style="green")
        return
    for difference in found:
        console.print(f"differs: {difference}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def watch(run: Annotated[Path, typer.Argument(help="a run folder, such as runs/quickstart")],
          every: Annotated[float, typer.Option(min=0.1, help="seconds between two looks")] = 2.0,
          once: Annotated[bool, typer.Option("--once", help="show it as it stands, and end")] = False,
          as_json: Annotated[bool, typer.Option("--json", help="print the last step as JSON, and end")] = False,
          ) -> None:
    """Show a run's figures as it goes, from its folder; ends with the run, or with Ctrl-C, which does not touch it.

    Example: turncredit watch runs/quickstart
    """
    from turncredit.report import open_recorded_run
    from turncredit.report.watch import ended, follow, panel

    recorded = open_recorded_run(run)
    if as_json:
        print(json.dumps({"run": recorded.name, "ended": ended(recorded), "steps": len(recorded.metrics),
                          "last": recorded.metrics[-1] if recorded.metrics else None}))
        return
    if once:
        console.print(panel(recorded))
        return
    try:
        follow(run, console, every)
    except KeyboardInterrupt:
        console.print("no longer watched; the run itself goes on")


def _show_findings(findings: Sequence[Finding]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("row", "verdict", "examined", "what"):
        table.add_column(name, overflow="fold")
    for f in findings:
        style = {"pass": "green", "fail": "bold red", "skip": "yellow"}[f.verdict]
        what = f"{f.promise} ({f.note})" if f.note and f.verdict != "fail" else f.promise
        table.add_row(f.row, Text(f.verdict, style), f"{f.checked:,} {f.unit}" if f.checked else "", what)
        for problem in f.problems[:SHOWN]:
            table.add_row("", "", "", Text(problem, "red"))
        if len(f.problems) > SHOWN:
            table.add_row("", "", "", Text(f"… and {len(f.problems) - SHOWN:,} more", "red"))
    console.print(table)


def _show_episode(episode: Episode) -> None:
    console.print(f"{episode.env_id}  task {episode.task_id}  step {episode.step}", style="bold", markup=False)
    said = [("system", episode.system), ("task", episode.prompt)]
    for turn in episode.turns:
        said.append(("agent" if turn.valid else "agent, malformed", turn.action))
        if turn.observation:
            said.append(("tool" if turn.role == "tool" else "environment", turn.observation))
    for who, text in said:
        console.print(Text.assemble((f"{who}: ", "bold cyan" if who.startswith("agent") else "bold"), text))
    verdict = "not judged" if episode.reward is None else f"reward {episode.reward:g}"
    reason = f": {episode.verdict.reason}" if episode.verdict and episode.verdict.reason else ""
    console.print(Text(f"{verdict}{reason}; ended: {episode.stop.sentence}"))
