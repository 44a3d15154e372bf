"""`turncredit credit`: which tokens another solution would change, for any model and any two trajectories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from turncredit.errors import UserError

PAGE, PICTURES = (".html",), (".png", ".pdf", ".svg")
console = Console()
stderr = Console(stderr=True)


def credit(
        model: Annotated[str, typer.Argument(help="a run folder, or a model's folder or hub name")],
        task: Annotated[str, typer.Option(help="what is credited: a recorded episode (runs/mine/000002-0001-002), a "
                                               "JSON file, or the task's text with --response")],
        reference: Annotated[str, typer.Option(help="what the teacher reads: an episode, a JSON file, or a text")],
        response: Annotated[str | None, typer.Option(help="the agent's answer, where --task is a text")] = None,
        system: Annotated[str | None, typer.Option(help="the system prompt, where --task has none")] = None,
        against: Annotated[str | None, typer.Option(help="another model or checkpoint, beside the first")] = None,
        tool_calls: Annotated[str | None, typer.Option(help="json or plain; a run folder knows its own")] = None,
        out: Annotated[list[Path] | None, typer.Option(help="credit.html, credit.png (or .pdf, .svg); may be repeated "
                                                            "[credit.html]")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="print every token's figures; writes only --out")] = False,
        ) -> None:
    """Draw the credit heatmap of two trajectories under any model, without training: HTML, PNG or JSON.

    Example: turncredit credit runs/mine --task runs/mine/000002-0001-002 --reference runs/mine/000002-0001-000
    """
    from turncredit.heatmap.page import write_page
    from turncredit.heatmap.picture import write_picture
    from turncredit.heatmap.scored import score
    from turncredit.heatmap.trajectories import read_reference, read_task
    from turncredit.progress import hide_file_bars
    from turncredit.trainer.start import policy_of

    targets = out or ([] if as_json else [Path("credit.html")])
    _refuse_unusable(targets)
    hide_file_bars()
    told, seen = read_task(task, response, system), read_reference(reference)
    scored = []
    for name in dict.fromkeys([model, *([against] if against else [])]):
        with stderr.status(f"scoring under {name}"):
            policy, config = policy_of(name, tool_calls)
            scored.append(score(policy, config, told, seen, name))
    for target in targets:
        (write_page if target.suffix in PAGE else write_picture)(scored, target)
        stderr.print(f"credit: {target}", soft_wrap=True)
    if as_json:
        print(json.dumps([one.as_json() for one in scored]))


def _refuse_unusable(targets: list[Path]) -> None:
    for target in targets:
        if target.suffix not in (*PAGE, *PICTURES):
            raise UserError(f"--out {str(target)!r}: the suffix says what is written; use "
                            f"{', '.join((*PAGE, *PICTURES))}")
        if not target.parent.is_dir():
            raise UserError(f"--out {str(target)!r}: there is no folder {str(target.parent)!r}")
