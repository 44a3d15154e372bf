"""An evaluation as tables in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from turncredit.evaluate.evaluation import Evaluation
from turncredit.evaluate.scores import Score

Interval = tuple[float, float] | None


def show(evaluation: Evaluation, console: Console) -> None:
    """Print scores, means, comparison and leakage, each where there is something to say."""
    console.print(scores_table(evaluation.scores, evaluation.wanted.suite.k))
    for s in evaluation.scores:
        if s.unjudged:
            ends = ", ".join(f"{reason}: {count}" for reason, count in sorted(s.stops.items()))
            console.print(f"{s.env} {s.split} ({s.agent}): {s.unjudged} episodes not judged; episodes ended so: {ends}")
    if any(m.kind == "ood" for m in evaluation.means):
        console.print(_means(evaluation))
    if evaluation.comparisons:
        console.print(_comparisons(evaluation))
    if evaluation.leaks:
        console.print(_leaks(evaluation))


def scores_table(scores: list[Score], k: int) -> Table:
    """A row an agent and environment: the floor first, the ceiling last."""
    table = Table()
    names = ("environment", "split", "agent", "tasks", f"avg@{k}", "95 %", *dict.fromkeys(("pass@1", f"pass@{k}")),
             *((f"pass^{k}",) if k > 1 else ()), "turns", "tokens", "invalid", "time-outs", "not judged")
    for name in names:
        table.add_column(name, justify="left" if name in names[:3] else "right")
    order = list(dict.fromkeys((s.env, s.split) for s in scores))
    for place, (env, split) in enumerate(order):
        rows = [s for s in scores if (s.env, s.split) == (env, split)]
        for i, s in enumerate(rows):
            table.add_row(*((env, split) if i == 0 else ("", "")), s.agent, str(s.tasks), figure(s.avg),
                          _interval(s.interval), *(figure(s.pass_at.get(n)) for n in sorted({1, k})),
                          *((figure(s.pass_all.get(k)),) if k > 1 else ()), f"{s.turns:.1f}", f"{s.tokens:.0f}",
                          figure(s.invalid), str(s.timeouts), str(s.unjudged),
                          end_section=i == len(rows) - 1 and place < len(order) - 1)
    return table


def _means(evaluation: Evaluation) -> Table:
    table = Table(title="mean over environments", title_justify="left")
    for name in ("agent", "in distribution", "ood"):
        table.add_column(name, justify="left" if name == "agent" else "right")
    for agent in dict.fromkeys(m.agent for m in evaluation.means):
        found = {m.kind: m for m in evaluation.means if m.agent == agent}
        cells = [f"{m.avg:.3f} ({_interval(m.interval)}), {m.environments} environments" if m else "-"
                 for m in (found.get("in distribution"), found.get("ood"))]
        table.add_row(agent, *cells)
    return table


def _comparisons(evaluation: Evaluation) -> Table:
    names = evaluation.names
    table = Table(title=f"{names['policy']} against {names['against']}, task by task", title_justify="left")
    for name in ("environment", "split", "tasks", "difference", "95 %", "win", "tie", "loss"):
        table.add_column(name, justify="left" if name in ("environment", "split") else "right")
    for c in evaluation.comparisons:
        difference = "-" if c.difference is None else f"{c.difference:+.3f}"
        table.add_row(c.env, c.split, str(c.tasks), difference, _interval(c.interval, "+.3f"), str(c.win), str(c.tie),
                      str(c.loss))
    return table


def _leaks(evaluation: Evaluation) -> Table:
    table = Table(title="tasks that stand in the training tasks, of a sample", title_justify="left")
    for name in ("environment", "split", "tasks", "exact", "normalised", "half of the 8-grams"):
        table.add_column(name, justify="left" if name in ("environment", "split") else "right")
    for leak in evaluation.leaks:
        table.add_row(leak.env, leak.split, *map(str, (leak.tasks, leak.exact, leak.normalised, leak.ngrams)))
    return table


def figure(value: float | None) -> str:
    """Three decimals, or a dash for what is not known."""
    return "-" if value is None else f"{value:.3f}"


def _interval(interval: Interval, form: str = ".3f") -> str:
    return "" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"
