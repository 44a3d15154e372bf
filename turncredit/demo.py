"""The quickstart: an agent learns a multi-turn task on the CPU, and is compared before and after."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from turncredit.config import Config, load_config
from turncredit.errors import Interrupted
from turncredit.progress import Display, score_table
from turncredit.report import write_report_of
from turncredit.trainer.loop import evaluate_policy, train
from turncredit.trainer.policy import Policy


def run_demo(config: Path, seed: int, console: Console) -> None:
    """Train, then print the table "before / after" on the configuration's evaluation environments."""
    settings = _unused_name(load_config(config, [f"seed={seed}"]))
    began = time.monotonic()
    with Display(console) as display:
        try:
            run = train(settings, display)
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted; go on with: turncredit train {config} seed={seed} name={settings.name} "
                              "--resume") from None
    console.print(f"trained in {(time.monotonic() - began) / 60:.1f} minutes; evaluating before and after …")
    columns = {}
    for name, folder in (("before (warm start)", "start"), ("after SC-GRPO", "policy")):
        model = settings.model.model_copy(update={"path": str(run.path / folder), "tiny": None})
        with Console(stderr=True).status(f"evaluating {name}"):
            columns[name] = evaluate_policy(settings, Policy.load(model))
    console.print(score_table(columns, "mean reward, 95 % interval over tasks"))
    console.print(f"run folder: {run.path}", soft_wrap=True)
    console.print(f"report: {write_report_of(run.path)}  (open it in a browser)", soft_wrap=True)


def _unused_name(settings: Config) -> Config:
    """The demo may be run again: quickstart, quickstart-2, quickstart-3, …"""
    base, number = settings.name, 1
    while settings.folder.exists():
        number += 1
        settings = settings.model_copy(update={"name": f"{base}-{number}"})
    return settings
