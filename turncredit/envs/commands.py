"""`turncredit envs check`, `turncredit envs card` and `turncredit envs new`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from turncredit.errors import UserError

if TYPE_CHECKING:
    from turncredit.envs.card import Card

LONGEST_TEXT = 1200  # characters of one text in an example episode
COLOURS = {"pass": "green", "fail": "bold red", "skip": "dim"}


def _known(incomplete: str) -> list[str]:
    """For the shell's completion."""
    from turncredit.envs import list_envs

    return [id for id in list_envs() if id.startswith(incomplete)]


EnvId = Annotated[str, typer.Argument(help="such as turncredit/Calculator-v0", autocompletion=_known)]
Arguments = Annotated[str, typer.Option("--arguments", help="JSON, for its constructor")]


def check_command(id: EnvId, arguments: Arguments = "{}",
                  quick: Annotated[bool, typer.Option("--quick", help="three tasks a row, in this process")] = False,
                  seeds: Annotated[int, typer.Option(min=1, help="tasks a row")] = 12,
                  deadline: Annotated[float, typer.Option(min=0.1, help="seconds, for a single call")] = 20.0,
                  row: Annotated[list[str] | None, typer.Option(help="only this row; may be repeated")] = None,
                  as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Hold an environment to the contract, row by row; exit code 1 where it breaks one.

    Example: turncredit envs check turncredit/Calculator-v0 --quick
    """
    from turncredit.envs.check import check
    from turncredit.progress import bar

    with bar("rows") as done:
        findings = check(id, parsed_arguments(arguments), quick, seeds, deadline, row, lambda _: done(1))
    failed = [finding for finding in findings if finding.verdict == "fail"]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
        raise typer.Exit(bool(failed))
    table = Table(title=id, title_justify="left")
    for name in ("row", "", "what was seen"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        table.add_row(finding.row, Text(finding.verdict, COLOURS[finding.verdict]), Text(finding.detail))
    console = Console()
    console.print(table)
    for finding in failed:
        console.print(Text.assemble((f"{finding.row}: ", "bold red"), finding.detail, "\n  mend: ", finding.mend))
    counts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in COLOURS}
    console.print(f"{counts['pass']} rows hold, {counts['fail']} fail, {counts['skip']} do not apply")
    raise typer.Exit(bool(failed))


def parsed_arguments(text: str) -> dict[str, object]:
    """The value of --arguments.

    Raises:
        UserError: no JSON object.
    """
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise UserError(f"--arguments {text!r} is not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise UserError(f"--arguments {text!r} must be a JSON object")
    return parsed


def new_command(name: Annotated[str, typer.Argument(help="such as lights-out")],
                into: Annotated[Path, typer.Option(help="the folder that the package's folder is made in")] = Path(),
                ) -> None:
    """Write a package with an environment of your own, which installs, registers itself and passes its tests.

    Example: turncredit envs new lights-out
    """
    from turncredit.envs.scaffold import write_scaffold

    folder = write_scaffold(name, into)
    print(f"{folder}: now pip install -e '{folder}[test]' and edit {name.replace('-', '_')}/env.py")


def card_command(id: EnvId, arguments: Arguments = "{}",
                 tasks: Annotated[int, typer.Option(min=1, help="that each agent plays")] = 16,
                 seed: Annotated[int, typer.Option(min=0, help="of the example episode")] = 0,
                 as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """What an environment is: instructions, an example, tools, splits, turns, tokens, what knowing nothing earns.

    Example: turncredit envs card turncredit/Calculator-v0 --tasks 4
    """
    from turncredit.envs.card import card

    with Console(stderr=True).status("playing"):
        found = card(id, parsed_arguments(arguments), tasks, seed)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        print_card(found, tasks, Console())


def print_card(card: Card, tasks: int, console: Console) -> None:
    """A card as text; nothing that the environment says is taken for markup."""

    def say(title: str, text: str) -> None:
        console.print(Text.assemble((f"{title}: ", "bold"), text))

    say(card.id, card.about)
    say("instructions", card.instructions or "none: the first observation says all")
    for tool in card.tools:
        arguments = ", ".join(tool.parameters.get("properties", {}))
        say(f"tool {tool.name}({arguments})", tool.description)
    counts = [f"{split} ({'generated' if size is None else f'{size:,} tasks'})" for split, size in card.splits.items()]
    say("splits", ", ".join(counts) or "one")
    say("levels", f"1 to {card.levels}" if card.levels > 1 else "one")
    say("turns", "no limit stated" if card.turn_limit is None else f"at most {card.turn_limit}")
    say("licence", "; ".join(f"{name}: {licence}" for name, licence in card.licences.items()) or "not stated")
    console.print(_agents_table(card, tasks))
    say("an episode", "")
    for line in card.example:
        text = line["text"] if len(line["text"]) <= LONGEST_TEXT else f"{line['text'][:LONGEST_TEXT]} …"
        console.print(Text.assemble((f"  {line['role']}: ", "dim"), text))


def _agents_table(card: Card, tasks: int) -> Table:
    table = Table(title=f"mean reward over {tasks} tasks", title_justify="left")
    for name in ("agent", "reward", "turns", "tokens, about"):
        table.add_column(name, justify="left" if name == "agent" else "right")
    for name, reached in card.agents.items():
        reward = "unknown" if reached.reward is None else f"{reached.reward:.3f}"
        table.add_row(name, reward, f"{reached.turns:.1f}", f"{reached.tokens:,}")
    return table
