"""The command line. A user's mistake is one sentence and exit code 2, never a traceback."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from turncredit.config import EnvConfig
from turncredit.errors import UserError
from turncredit.run_commands import add_commands

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__, rich_markup_mode=None)
envs_app = typer.Typer(no_args_is_help=True, help="List and show environments.")
app.add_typer(envs_app, name="envs")
sandbox_app = typer.Typer(no_args_is_help=True, help="Check sandboxes, and make an image for Docker's.")
app.add_typer(sandbox_app, name="sandbox")
add_commands(app)
console = Console()

ConfigFile = Annotated[Path, typer.Argument(help="a YAML file, such as configs/quickstart.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, such as trainer.lr=1e-5")]


def main() -> None:
    """The entry point."""
    try:
        app()
    except UserError as error:
        Console(stderr=True).print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)


@app.command()
def train(config: ConfigFile, overrides: Overrides = None,
          resume: Annotated[bool, typer.Option("--resume", help="go on with the run of this name")] = False) -> None:
    """Train a policy; killed at any moment, `--resume` goes on to the same weights."""
    from turncredit.config import load_config
    from turncredit.progress import Display
    from turncredit.trainer.loop import train as run_training

    settings = load_config(config, overrides or [])
    with Display(console) as display:
        try:
            run = run_training(settings, display, resume)
        except KeyboardInterrupt:
            again = " ".join(["turncredit train", str(config), *(overrides or []), "--resume"])
            raise UserError(f"interrupted; go on with: {again}") from None
    console.print(f"run folder: {run.path}", soft_wrap=True)


@app.command()
def warmstart(config: ConfigFile, overrides: Overrides = None) -> None:
    """Only the supervised warm start of a configuration; `train --resume` goes on from it."""
    from turncredit.config import load_config
    from turncredit.progress import Display
    from turncredit.trainer.loop import open_run
    from turncredit.trainer.start import starting_policy

    settings = load_config(config, overrides or [])
    if settings.warmstart is None:
        raise UserError(f"config {str(config)!r} has no warmstart section")
    run = open_run(settings, resume=False)
    with Display(console) as display:
        starting_policy(settings, run, display.warming)
    console.print(f"policy: {run.path / 'start'}", soft_wrap=True)


@app.command()
def evaluate(model: Annotated[str, typer.Argument(help="a run folder, or a model folder or hub name")],
             env: Annotated[list[str], typer.Option(help='id or id:split, such as "turncredit/Calculator-v0:test"')],
             arguments: Annotated[str, typer.Option(help="JSON, for the environments' constructors")] = "{}",
             tasks: Annotated[int, typer.Option(min=1, help="tasks an environment")] = 64,
             k: Annotated[int, typer.Option(min=1, help="episodes a task")] = 8,
             seed: int = 0, temperature: float = 1.0, top_p: float = 1.0,
             tool_calls: Annotated[str | None, typer.Option(help="json or plain; a run folder knows its own")] = None,
             as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """avg@k and pass@k of a policy on environments, with 95 % intervals."""
    from dataclasses import asdict

    from turncredit.agents import Sampling
    from turncredit.envs import make
    from turncredit.evaluate import evaluate as run_evaluation
    from turncredit.rollout import Rollout
    from turncredit.trainer.loop import budget_of
    from turncredit.trainer.start import policy_of

    wanted = [_parse_env(text, arguments) for text in env]
    for one in wanted:  # before a model is loaded
        make(one.id, **one.make_arguments).close()
    policy, config = policy_of(model, tool_calls)
    rollout = Rollout(policy.agent(Sampling(temperature, top_p)), policy.chat, budget_of(config.rollout),
                      policy.config.tool_calls)
    scores = run_evaluation(rollout, wanted, tasks, k, seed)
    rollout.close()
    if as_json:
        print(json.dumps([asdict(s) for s in scores]))
        return
    table = Table()
    for name in ("environment", "split", "tasks", f"avg@{k}", "95 %", *dict.fromkeys(("pass@1", f"pass@{k}")), "turns",
                 "tokens", "not judged"):
        table.add_column(name, justify="left" if name in ("environment", "split") else "right")
    for s in scores:
        interval = "" if s.interval is None else f"{s.interval[0]:.3f} to {s.interval[1]:.3f}"
        table.add_row(s.env, s.split, str(s.tasks), _figure(s.avg), interval,
                      *(_figure(s.pass_at.get(n)) for n in sorted({1, k})), f"{s.turns:.1f}", f"{s.tokens:.0f}",
                      str(s.unjudged))
    console.print(table)
    for s in scores:
        if s.unjudged:
            ends = ", ".join(f"{reason}: {count}" for reason, count in sorted(s.stops.items()))
            console.print(f"{s.env} {s.split}: {s.unjudged} episodes not judged; episodes ended so: {ends}")


@envs_app.command("list")
def envs_list(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Every registered text environment, those of installed plugins included."""
    from turncredit.envs import list_envs

    ids = list_envs()
    print(json.dumps(ids) if as_json else "\n".join(ids))


@envs_app.command("show")
def envs_show(id: str, arguments: Annotated[str, typer.Option(help="JSON, for its constructor")] = "{}",
              seed: int = 0) -> None:
    """What an agent is told in an environment, its tools, and an episode of its scripted solution."""
    from turncredit.envs import make

    env = make(id, **_parse_json(arguments))
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
    if _has_solution(env.unwrapped):
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
def play(id: str, arguments: Annotated[str, typer.Option(help="JSON, for its constructor")] = "{}",
         seed: int = 0) -> None:
    """Play an environment yourself: write what an agent would write, one line a turn."""
    from turncredit.envs import make

    given = _parse_json(arguments)
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
                  ) -> None:
    """What works here, with latency; exit code 1 where a home that can be opened breaks a promise."""
    from turncredit.sandboxes.check import check

    raise typer.Exit(check(homes or [], console))


@sandbox_app.command("image")
def sandbox_image(packages: Annotated[list[str] | None, typer.Argument(help="installed packages to include")] = None,
                  rebuild: Annotated[bool, typer.Option("--rebuild", help="even if it is there")] = False) -> None:
    """Build an image for Docker from the running Python, without a registry."""
    from turncredit.sandboxes.docker import connect
    from turncredit.sandboxes.image import build_image

    console.print(build_image(connect(), packages or [], rebuild=rebuild), soft_wrap=True)


@app.command()
def demo(config: Annotated[Path, typer.Option(help="the quickstart's configuration")] = Path("configs/quickstart.yaml"),
         seed: int = 0) -> None:
    """Train the quickstart's agent with SC-GRPO, and compare it before and after."""
    from turncredit.demo import run_demo

    run_demo(config, seed, console)


def _parse_env(text: str, arguments: str) -> EnvConfig:
    id, _, split = text.partition(":")
    return EnvConfig(id=id, split=split or "test", arguments=_parse_json(arguments))


def _parse_json(text: str) -> dict[str, object]:
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise UserError(f"--arguments {text!r} is not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise UserError(f"--arguments {text!r} must be a JSON object")
    return parsed


def _title(text: str, more: str = "") -> None:
    console.print(Text.assemble((text, "bold"), f"  {more}" if more else ""))


def _has_solution(env: object) -> bool:
    from turncredit.envs import TextEnv

    action = getattr(type(env), "expert_action", None)
    return action is not None and action is not TextEnv.expert_action


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
