"""Register environments, train agents on them token by token, evaluate them out of distribution.

Exit codes: 0 all is well; 1 something was examined and is not as it should be (envs check, sandbox check, audit,
replay); 2 bad input, in one sentence; 130 interrupted by Ctrl-C, in one sentence that says how to go on.

`turncredit --install-completion` sets up the shell's completion.

Example: turncredit train configs/quickstart.yaml name=mine trainer.steps=50
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from turncredit.envs.commands import EnvId, card_command, check_command, new_command, parsed_arguments
from turncredit.errors import Interrupted, UserError
from turncredit.evaluate.commands import evaluate_command
from turncredit.run_commands import add_commands

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__, rich_markup_mode=None)
envs_app = typer.Typer(no_args_is_help=True, help="List and show environments.")
app.add_typer(envs_app, name="envs")
envs_app.command("card")(card_command)
envs_app.command("check")(check_command)
envs_app.command("new")(new_command)
sandbox_app = typer.Typer(no_args_is_help=True, help="Check sandboxes, and make an image for Docker's.")
app.add_typer(sandbox_app, name="sandbox")
app.command("evaluate")(evaluate_command)
add_commands(app)
console = Console()

ConfigFile = Annotated[Path, typer.Argument(help="a YAML file, such as configs/quickstart.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, such as trainer.lr=1e-5")]


def program() -> None:
    """The entry point: `main`, and after Ctrl-C an end that a thread in the midst of a computation cannot abort."""
    try:
        main()
    except SystemExit as ended:
        if ended.code != 130:
            raise
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)


def main() -> None:
    """Run the command line that the process was started with."""
    try:
        app()
    except UserError as error:
        halted = isinstance(error, Interrupted)
        Console(stderr=True).print(str(error) if halted else f"error: {error}", style="yellow" if halted else "red",
                                   highlight=False, markup=False, soft_wrap=True)
        sys.exit(130 if halted else 2)


def interruptible(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that Ctrl-C ends with one sentence; where it can go on, it says so itself."""

    @functools.wraps(command)
    def ends_cleanly(*arguments: Any, **named: Any) -> Any:
        try:
            return command(*arguments, **named)
        except KeyboardInterrupt:
            again = shlex.join(["turncredit", *sys.argv[1:]])
            raise Interrupted(f"interrupted; nothing is left half written. To start again: {again}") from None

    return ends_cleanly


@app.command()
def train(config: ConfigFile, overrides: Overrides = None,
          resume: Annotated[bool, typer.Option("--resume", help="go on with the run of this name")] = False) -> None:
    """Train a policy; killed at any moment, `--resume` goes on to the same weights.

    Example: turncredit train configs/quickstart.yaml name=mine trainer.steps=50
    """
    from turncredit.config import load_config
    from turncredit.progress import Display
    from turncredit.report import write_report_of
    from turncredit.trainer.loop import train as run_training

    settings = load_config(config, overrides or [])
    with Display(console) as display:
        try:
            run = run_training(settings, display, resume)
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted; go on with: {_resumed(config, overrides)}") from None
    console.print(f"run folder: {run.path}", soft_wrap=True)
    if os.environ.get("RANK", "0") == "0":  # under torchrun the first process writes it
        with console.status("writing the report"):
            written = write_report_of(run.path)
        console.print(f"report: {written}", soft_wrap=True)


@app.command()
def warmstart(config: ConfigFile, overrides: Overrides = None) -> None:
    """Only the supervised warm start of a configuration; `train --resume` goes on from it.

    Example: turncredit warmstart configs/quickstart.yaml name=mine
    """
    from turncredit.config import load_config
    from turncredit.progress import Display
    from turncredit.trainer.loop import open_run
    from turncredit.trainer.start import starting_policy

    settings = load_config(config, overrides or [])
    if settings.warmstart is None:
        raise UserError(f"config {str(config)!r} has no warmstart section")
    run = open_run(settings, resume=False)
    with Display(console) as display:
        try:
            starting_policy(settings, run, display.warming)
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted; to warm up and train: {_resumed(config, overrides)}") from None
    console.print(f"policy: {run.path / 'start'}", soft_wrap=True)


@envs_app.command("list")
def envs_list(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Every registered text environment, those of installed plugins included.

    Example: turncredit envs list --json
    """
    from turncredit.envs import list_envs

    ids = list_envs()
    print(json.dumps(ids) if as_json else "\n".join(ids))


@envs_app.command("show")
def envs_show(id: EnvId, arguments: Annotated[str, typer.Option(help="JSON, for its constructor")] = "{}",
              seed: int = 0) -> None:
    """What an agent is told in an environment, its tools, and an episode of its scripted solution.

    Example: turncredit envs show turncredit/Calculator-v0 --arguments '{"level": 2}'
    """
    from turncredit.envs import has_solution, make

    env = make(id, **parsed_arguments(arguments))
    observation, info = env.reset(seed=seed)
    _title(id, f"task {info.get('task_id', '?')}, split {info.get('split', '?')}")
    for name, text in (("instructions", info.get("instructions", "")), ("observation", observation)):
        console.print()
        _title(name)
        console.print(text, markup=False, highlight=False)
    for tool in info.get("tools") or []:
        console.print()
        _title(f"tool {tool.name}", tool.description)
        console.print_json(json.dumps(dict(tool.parameters)))
    if has_solution(env):
        console.print()
        _title("its scripted solution")
        over = False
        while not over:
            action = env.unwrapped.expert_action()  # type: ignore[attr-defined]  # just asked
            observation, reward, terminated, truncated, _ = env.step(action)
            console.print(f"agent: {action}\nenvironment: {observation}", markup=False, highlight=False)
            over = terminated or truncated
        console.print(f"reward: {reward}")
    env.close()


@app.command()
def play(id: EnvId, arguments: Annotated[str, typer.Option(help="JSON, for its constructor")] = "{}",
         seed: int = 0) -> None:
    """Play an environment yourself: write what an agent would write, one line a turn.

    Example: turncredit play turncredit/Pantry-v0 --seed 3
    """
    from turncredit.envs import make

    given = parsed_arguments(arguments)
    env = make(id, **given)
    use_format = getattr(env.unwrapped, "use_tool_format", None)
    if use_format is not None and "tool_format" not in given:
        use_format("plain")
    observation, info = env.reset(seed=seed)
    lines = [info.get("instructions", "")]
    format_ = getattr(env.unwrapped, "tool_format", None)
    if info.get("tools") and format_ is not None:
        lines.append(format_.describe(info["tools"]))
    console.print("\n".join([*lines, "", observation]), markup=False, highlight=False)
    over = False
    while not over:
        try:
            action = input("> ")
        except EOFError:
            console.print("\nended before the episode did")
            env.close()
            return
        observation, reward, terminated, truncated, info = env.step(action)
        if observation:
            console.print(observation, markup=False, highlight=False)
        over = terminated or truncated
    verdict = info.get("verdict")
    console.print(f"reward {reward} ({info.get('stop', 'finished')}) {verdict.reason if verdict else ''}", markup=False)
    env.close()


@sandbox_app.command("check")
def sandbox_check(homes: Annotated[list[str] | None, typer.Argument(help="local, docker, e2b; all where none")] = None,
                  as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """What works here, with latency; exit code 1 where a home that can be opened breaks a promise.

    Example: turncredit sandbox check local
    """
    from turncredit.sandboxes.check import check

    raise typer.Exit(check(homes or [], console, as_json))


@sandbox_app.command("image")
def sandbox_image(packages: Annotated[list[str] | None, typer.Argument(help="installed packages to include")] = None,
                  rebuild: Annotated[bool, typer.Option("--rebuild", help="even if it is there")] = False) -> None:
    """Build an image for Docker from the running Python, without a registry.

    Example: turncredit sandbox image numpy pandas
    """
    from turncredit.sandboxes.docker import connect
    from turncredit.sandboxes.image import build_image

    with Console(stderr=True).status("building the image"):
        name = build_image(connect(), packages or [], rebuild=rebuild)
    console.print(name, soft_wrap=True)


@app.command()
def demo(config: Annotated[Path, typer.Option(help="the quickstart's configuration")] = Path("configs/quickstart.yaml"),
         seed: int = 0) -> None:
    """Train the quickstart's agent with SC-GRPO, and compare it before and after.

    Example: turncredit demo --seed 1
    """
    from turncredit.demo import run_demo

    run_demo(config, seed, console)


def _resumed(config: Path, overrides: list[str] | None) -> str:
    return shlex.join(["turncredit", "train", str(config), *(overrides or []), "--resume"])


def _title(text: str, more: str = "") -> None:
    console.print(Text.assemble((text, "bold"), f"  {more}" if more else ""))


for _part in (app, envs_app, sandbox_app):
    for _command in _part.registered_commands:
        assert _command.callback is not None
        _command.callback = interruptible(_command.callback)

if __name__ == "__main__":
    program()
