"""An evaluation as tables in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from turncredit.evaluate.evaluation import Evaluation
from turncredit.evaluate.scores import Score

Interval = tuple[float, float] | None


def show(evaluation: Evaluation, console: Console) -> None:
    """Print scores, means, comparison and leakage, each where there is something to say."""
    for table in score_tables(evaluation.scores, evaluation.wanted.suite.k):
        console.print(table)
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


def score_tables(scores: list[Score], k: int) -> list[Table]:
    """A table an environment and split, a row an agent: the floor first, the ceiling last."""
    return [_of_one([s for s in scores if (s.env, s.split) == place], k)
            for place in dict.fromkeys((s.env, s.split) for s in scores)]


def _of_one(scores: list[Score], k: int) -> Table:
    first = scores[0]
    table = Table(title=f"{first.env} {first.split}, {first.tasks} tasks", title_justify="left", box=box.HORIZONTALS,
                  padding=(0, 1, 0, 0))
    counts = sorted({1, k})
    passes = (*(f"pass@{n}" for n in counts), *((f"pass^{k}",) if k > 1 else ()))
    for name in ("agent", f"avg@{k}", "95 %", *passes, "turns", "tokens", "invalid", "not judged"):
        table.add_column(name, justify="left" if name == "agent" else "right", no_wrap=name in ("agent", "95 %"))
    for s in scores:
        together = (figure(s.pass_all.get(k)),) if k > 1 else ()
        table.add_row(s.agent, figure(s.avg), _short(s.interval), *(figure(s.pass_at.get(n)) for n in counts),
                      *together, f"{s.turns:.1f}", f"{s.tokens:.0f}", figure(s.invalid), str(s.unjudged))
    return table


def _means(evaluation: Evaluation) -> Table:
    table = Table(title="mean over environments", title_justify="left")
    table.add_column("agent")
    kinds = ("in distribution", "ood")
    for kind in kinds:
        count = max((m.environments for m in evaluation.means if m.kind == kind), default=0)
        table.add_column(f"{kind}, {count} environment{'s' * (count != 1)}", justify="right")
    for agent in dict.fromkeys(m.agent for m in evaluation.means):
        found = {m.kind: m for m in evaluation.means if m.agent == agent}
        table.add_row(agent, *(f"{m.avg:.3f} ({_interval(m.interval)})" if (m := found.get(kind)) else "-"
                               for kind in kinds))
    return table


def _comparisons(evaluation: Evaluation) -> Table:
    names = evaluation.names
    table = _by_environment(f"{names['policy']} against {names['against']}, task by task",
                            "tasks", "difference", "95 %", "win", "tie", "loss")
    for c in evaluation.comparisons:
        difference = "-" if c.difference is None else f"{c.difference:+.3f}"
        table.add_row(c.env, c.split, str(c.tasks), difference, _interval(c.interval, "+.2f"), str(c.win), str(c.tie),
                      str(c.loss))
    return table


def _leaks(evaluation: Evaluation) -> Table:
    table = _by_environment("tasks that stand in the training tasks, of a sample",
                            "tasks", "exact", "normalised", "half of the 8-grams")
    for leak in evaluation.leaks:
        table.add_row(leak.env, leak.split, *map(str, (leak.tasks, leak.exact, leak.normalised, leak.ngrams)))
    return table


def _by_environment(title: str, *figures: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.HORIZONTALS, padding=(0, 1, 0, 0))
    table.add_column("environment", overflow="fold")  # an identifier that is cut says nothing
    table.add_column("split")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=name == "95 %")
    return table


def figure(value: float | None) -> str:
    """Three decimals, or a dash for what is not known."""
    return "-" if value is None else f"{value:.3f}"


def _interval(interval: Interval, form: str = ".3f") -> str:
    return "" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"


def _short(interval: Interval) -> str:
    return "" if interval is None else f"{interval[0]:.2f}, {interval[1]:.2f}"
