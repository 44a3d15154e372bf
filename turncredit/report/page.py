"""The report: one HTML file that holds its data, its charts and its code, and asks the network for nothing."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from turncredit.report.charts import figures
from turncredit.report.episodes import EpisodeIndex, packed
from turncredit.report.runs import RecordedRun, open_recorded_run
from turncredit.store import write_whole

EPISODES = 5_000
TENTH = 10  # "before" and "after" are the first and the last tenth of a run's steps


def write_report(runs: Sequence[RecordedRun], out: Path, episodes: int = EPISODES,
                 on_read: Callable[[int], None] | None = None) -> Path:
    """Write the page of one run, or of several overlaid.

    Args:
        runs: at least one.
        out: the HTML file.
        episodes: how many at most are taken in, over all runs; whole groups, spread evenly over each run.
        on_read: called with how many more episodes have been read.
    """
    index = EpisodeIndex()
    for number, run in enumerate(runs):
        index.add_run(run, number, max(1, episodes // len(runs)), on_read)
    templates = Environment(loader=PackageLoader("turncredit.report", "page"), autoescape=True)
    html = templates.get_template("page.html.jinja").render(
        title=", ".join(run.name for run in runs), runs=[overview(run) for run in runs], settings=settings_table(runs),
        style=asset("page.css"), shared=asset("heatmap.js"), script=asset("page.js"), plotly=_plotly(),
        charts=Markup(packed(figures(runs))),
        index=Markup(packed({"columns": index.columns, "runs": [run.name for run in runs]})),
        vocabularies=[Markup(packed(v)) for v in index.vocabularies], chunks=[Markup(c) for c in index.chunks])
    return write_whole(out, lambda path: path.write_text(html, encoding="utf-8"))


def write_report_of(run: Path) -> Path:
    """Write RUN/report.html, the page of one run; returns its path."""
    return write_report([open_recorded_run(run)], run / "report.html")


def overview(run: RecordedRun) -> dict[str, Any]:
    """A run in a few figures."""
    envs = sorted({str(env.get("id")) for env in run.config.get("envs", [])})
    steps = run.config.get("trainer", {}).get("steps")
    first, last = _ends(run.series("reward")[1])
    solved = _ends(run.series("success")[1])
    return {"name": run.name, "algorithm": run.algorithm, "envs": ", ".join(envs), "seed": run.config.get("seed"),
            "steps": len(run.metrics), "planned": steps,
            "episodes": sum(int(line.get("episodes", 0)) for line in run.metrics),
            "tokens": sum(int(line.get("generated_tokens", 0)) for line in run.metrics),
            "rows": [("mean reward", first, last), ("success", *solved)]}


def settings_table(runs: Sequence[RecordedRun]) -> list[tuple[str, list[str], bool]]:
    """(key, its value in each run, whether they differ); keys that differ stand first."""
    flat = [dict(run.settings()) for run in runs]
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    rows = [(key, [str(s.get(key, "")) for s in flat]) for key in keys]
    return sorted(((key, values, len(set(values)) > 1) for key, values in rows), key=lambda row: not row[2])


def _ends(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "unknown", "unknown"
    count = max(1, len(values) // TENTH)
    return f"{np.mean(values[:count]):.3f}", f"{np.mean(values[-count:]):.3f}"


def asset(name: str) -> Markup:
    """A style or script of the page, as it stands."""
    return Markup((Path(__file__).parent / "page" / name).read_text(encoding="utf-8"))


def _plotly() -> Markup:
    """plotly.js as it comes with the plotly package, compressed: a quarter of its size."""
    from plotly.offline import get_plotlyjs

    return Markup(base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode())
