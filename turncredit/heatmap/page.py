"""The heatmap as one HTML file that asks the network for nothing, drawn by the report's own code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from turncredit.heatmap.scored import Scored
from turncredit.report.episodes import packed, rounded
from turncredit.report.page import asset
from turncredit.store import write_whole


def write_page(scored: Sequence[Scored], out: Path) -> Path:
    """Write the page: the same trajectory under each model, side by side; returns its path."""
    templates = Environment(loader=PackageLoader("turncredit.report", "page"), autoescape=True)
    html = templates.get_template("credit.html.jinja").render(
        title=" and ".join(one.model for one in scored), style=asset("page.css"), shared=asset("heatmap.js"),
        script=asset("credit.js"), system=scored[0].episode.system, prompt=scored[0].episode.prompt,
        turns=scored[0].episode.turns, reference=scored[0].reference, shortened=any(one.shortened for one in scored),
        data=Markup(packed([_model(one) for one in scored])))
    return write_whole(out, lambda path: path.write_text(html, encoding="utf-8"))


def _model(scored: Scored) -> dict[str, Any]:
    """One model's part, in the form in which the report holds an episode."""
    columns = {name: rounded(getattr(scored, name), 9) for name in
               ("kl", "weight", "student_logprob", "teacher_logprob", "entropy")}
    segments = [[s.role, int(s.generated), s.token_ids.tolist(), None if s.logprobs is None else
                 [None] * len(s.token_ids)] for s in scored.episode.segments]
    return {"model": scored.model, "words": scored.token_text, "mean": float(scored.weight.mean()),
            "episode": {"segments": segments, "credit": columns}}
