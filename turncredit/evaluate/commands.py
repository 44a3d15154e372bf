"""`turncredit evaluate`: floors, policies and ceilings on a suite, with tables, JSON, CSV and the episodes."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from turncredit.agents.endpoint import PREFIX, Endpoint, endpoint_settings
from turncredit.config import Config, EnvConfig
from turncredit.envs.commands import parsed_arguments
from turncredit.errors import Interrupted, MissingExtra, UserError

if TYPE_CHECKING:
    from turncredit.evaluate.evaluation import Evaluated


def _known_suites(incomplete: str) -> list[str]:
    """For the shell's completion."""
    from turncredit.evaluate.suites import FOLDERS

    found = {file.stem for folder in FOLDERS for file in folder.glob("*.yaml")}
    return sorted(name for name in found if name.startswith(incomplete))


def evaluate_command(
        model: Annotated[str, typer.Argument(help="a run folder, a model folder or hub name, or openai:URL#MODEL")],
        env: Annotated[list[str] | None, typer.Option(help='id or id:split, such as "turncredit/Calculator-v0:test"')]
        = None,
        envs: Annotated[str | None, typer.Option(help="a suite: a YAML file, or a name of configs/suites",
                                                   autocompletion=_known_suites)] = None,
        against: Annotated[str | None, typer.Option(help="another model, compared task by task")] = None,
        arguments: Annotated[str, typer.Option(help="JSON, for the environments of --env")] = "{}",
        tasks: Annotated[int | None, typer.Option(min=1, help="tasks an environment [64, or the suite's]")] = None,
        k: Annotated[int | None, typer.Option(min=1, help="episodes a task [8, or the suite's]")] = None,
        seed: int = 0, temperature: float = 1.0, top_p: float = 1.0,
        tool_calls: Annotated[str | None, typer.Option(help="json, plain or native; a run folder knows its own")]
        = None,
        endpoint: Annotated[list[str] | None, typer.Option(help="key=value for openai:…, such as concurrency=32")]
        = None,
        floors: Annotated[bool, typer.Option(help="trivial agents and the scripted solution beside the model")] = True,
        skip_missing: Annotated[bool, typer.Option("--skip-missing", help="leave out what is not installed")] = False,
        out: Annotated[Path | None, typer.Option(help="a folder for episodes and tables; goes on where it stopped")]
        = None,
        as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """avg@k and pass@k of a policy on environments, with 95 % intervals, a floor and a ceiling.

    Example: turncredit evaluate runs/mine --envs quick --against runs/mine/start --out evaluations/mine
    """
    from turncredit.evaluate.evaluation import Evaluation, Wanted
    from turncredit.evaluate.table import show
    from turncredit.progress import bar, hide_file_bars

    hide_file_bars()
    suite = _suite(env, envs, arguments, tasks, k)
    suite, left_out = _usable(suite, skip_missing)
    wanted = Wanted(suite, seed, temperature, top_p, floors)
    named = {"policy": model} | ({"against": against} if against else {})
    models = {label: _evaluated(name, tool_calls, endpoint or []) for label, name in named.items()}
    evaluation = Evaluation(wanted, models, named, out)
    try:
        with bar("tasks", evaluation.tasks) as done:
            evaluation.run(lambda _: done(1))
    except KeyboardInterrupt:
        kept = "nothing is kept: --out FOLDER keeps episodes, to go on from" if out is None else (
            f"go on with: {shlex.join(['turncredit', *sys.argv[1:]])}")
        raise Interrupted(f"interrupted; {kept}") from None
    if out is None and not as_json:
        Console(stderr=True).print("nothing is kept: --out FOLDER keeps episodes and tables", style="dim")
    if as_json:
        print(json.dumps(evaluation.as_json() | {"left_out": left_out}))
    else:
        show(evaluation, Console())
        for id, reason in left_out.items():
            print(f"left out: {id}: {reason}")
    for policy, _ in models.values():
        if isinstance(policy, Endpoint):
            Console(stderr=True).print(policy.cost_line(), soft_wrap=True, markup=False, highlight=False)


def _evaluated(name: str, tool_calls: str | None, endpoint: list[str]) -> tuple[Evaluated, Config]:
    """A policy, or a server's model, with the bounds of its episodes."""
    settings = endpoint_settings(endpoint)
    if name.startswith(PREFIX):
        there = Endpoint(name, settings, tool_calls or "json")
        return there, there.config
    from turncredit.trainer.start import policy_of

    return policy_of(name, tool_calls)


def _suite(env: list[str] | None, envs: str | None, arguments: str, tasks: int | None, k: int | None) -> Any:
    from turncredit.evaluate.suites import Suite, load_suite

    if not env and not envs:
        raise typer.BadParameter("name an environment with --env, or a suite with --envs")
    if envs:
        suite = load_suite(envs)
        more = [_parse_env(text, arguments) for text in env or []]
        suite = suite.model_copy(update={"in_distribution": [*suite.in_distribution, *more]})
    else:
        suite = Suite(in_distribution=[_parse_env(text, arguments) for text in env or []], k=8)
    given = {"tasks": tasks, "k": k}
    return suite.model_copy(update={name: value for name, value in given.items() if value is not None})


def _usable(suite: Any, skip_missing: bool) -> tuple[Any, dict[str, str]]:
    """The suite without what cannot be made here, where that was asked for; before a model is loaded."""
    from turncredit.envs import make

    left_out: dict[str, str] = {}

    def usable(env: EnvConfig) -> bool:
        try:
            make(env.id, **env.make_arguments).close()
        except UserError as error:
            if not skip_missing or not (isinstance(error, MissingExtra) or env.arguments):
                raise
            left_out[env.id] = str(error)
            return False
        return True

    kept = {key: [env for env in getattr(suite, key) if usable(env)] for key in ("in_distribution", "ood")}
    if not any(kept.values()):
        raise UserError(f"none of the suite's environments can be made here: {'; '.join(left_out.values())}")
    return suite.model_copy(update=kept), left_out


def _parse_env(text: str, arguments: str) -> EnvConfig:
    id, _, split = text.partition(":")
    return EnvConfig(id=id, split=split or "test", arguments=parsed_arguments(arguments))
