"""Learning curves as plotly figures: raw points, a smoothed line, and several runs overlaid."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from turncredit.report.runs import RecordedRun

COLOURS = ("#3367d6", "#d9730d", "#2e8b57", "#b5397f", "#7a5cc7", "#9a7b0a", "#128299", "#c4453b")
STOP_COLOURS = {"finished": "#2e8b57", "turn limit": "#9a7b0a", "token limit": "#d9730d", "context full": "#c4453b"}
SMOOTHING = 0.08  # the share of a run's steps over which a smoothed line averages

# title, the label of the values, their metrics (name in the legend: key)
LINES: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Reward", "mean reward of a step's episodes", {"reward": "reward"}),
    ("Success", "share of episodes that passed", {"success": "success"}),
    ("Entropy", "nats a token", {"entropy": "entropy_mean"}),
    ("KL of teacher to student", "nats", {"P95": "kl_p95", "P75": "kl_p75", "P50": "kl_p50", "P25": "kl_p25"}),
    ("Token weights", "f(D)", {"mean weight": "weight_mean", "share above 0.5": "weight_above_half"}),
    ("Turns", "an episode", {"turns": "turns", "invalid actions": "invalid_actions"}),
    ("Generated tokens", "an episode", {"tokens": "tokens_an_episode"}),
    ("Loss", "", {"loss": "loss"}),
    ("Gradient norm", "before clipping", {"gradient norm": "gradient_norm"}),
    ("Clipped ratios", "share of tokens", {"clipped": "clipped_mean"}),
    ("Sampler against trainer", "|difference of logprobs|, nats", {"largest": "drift_max", "mean": "drift_mean"}),
    ("Speed", "sampled tokens a second", {"tokens a second": "tokens_per_second"}),
)
LOGARITHMIC = {"KL of teacher to student", "Sampler against trainer"}
AN_AREA_EACH = (("Routes of groups", "share of groups", "route "), ("Stop reasons", "share of episodes", "stops."),
                ("Time of a step", "seconds", "_s"))


def figures(runs: Sequence[RecordedRun]) -> list[dict[str, Any]]:
    """Every chart that has data; each {"title", "data", "layout"}, as plotly.js takes it."""
    drawn = [_lines(title, label, keys, runs) for title, label, keys in LINES]
    charts = [*drawn[:2], *_evaluations(runs), *drawn[2:]]
    if len(runs) == 1:
        charts += [_areas(title, label, mark, runs[0]) for title, label, mark in AN_AREA_EACH]
    return [chart for chart in charts if chart["data"]]


def methods(runs: Sequence[RecordedRun]) -> dict[str, list[RecordedRun]]:
    """Runs that differ in seed and name alone stand together: a method, under a name of its own."""
    alike: dict[str, list[RecordedRun]] = {}
    for run in runs:
        settings = {k: v for k, v in run.config.items() if k not in ("seed", "name", "runs")}
        alike.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(run)
    algorithms = [group[0].algorithm for group in alike.values()]
    named: dict[str, list[RecordedRun]] = {}
    for group in alike.values():
        name = group[0].algorithm if algorithms.count(group[0].algorithm) == 1 else group[0].name
        named[f"{name} ({len(group)} seeds)" if len(group) > 1 else name] = group
    return named


def smoothed(values: Sequence[float], share: float = SMOOTHING) -> list[float]:
    """A centred moving average whose window shrinks at both ends, so that it follows the first and the last points."""
    array = np.asarray(values, float)
    half = max(1, round(len(array) * share / 2))
    sums = np.concatenate([[0.0], np.cumsum(array)])
    places = np.arange(len(array))
    reach = np.minimum(half, np.minimum(places, len(array) - 1 - places))
    return list((sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1))


def _lines(title: str, label: str, keys: dict[str, str], runs: Sequence[RecordedRun]) -> dict[str, Any]:
    data: list[dict[str, Any]] = []
    if len(runs) == 1:
        for place, (name, key) in enumerate(keys.items()):
            data += _one_line(name, COLOURS[place], *_series(runs[0], key))
    else:
        name, key = next(iter(keys.items()))
        title = title if len(keys) == 1 else f"{title}: {name}"
        for place, (method, group) in enumerate(methods(runs).items()):
            data += _method_line(method, COLOURS[place % len(COLOURS)], [_series(run, key) for run in group])
    return _figure(title, data, label, logarithmic=title.split(":")[0] in LOGARITHMIC)


def _series(run: RecordedRun, key: str) -> tuple[list[int], list[float]]:
    if key != "tokens_an_episode":
        return run.series(key)
    steps, tokens = run.series("generated_tokens")
    return steps, [t / max(1, e) for t, e in zip(tokens, run.series("episodes")[1])]


def _one_line(name: str, colour: str, steps: list[int], values: list[float]) -> list[dict[str, Any]]:
    if not steps:
        return []
    points = {"type": "scatter", "mode": "markers", "x": steps, "y": _short(values), "name": name,
              "marker": {"size": 4, "color": colour, "opacity": 0.35}, "showlegend": False, "legendgroup": name}
    line = {"type": "scatter", "mode": "lines", "x": steps, "y": _short(smoothed(values)), "name": name,
            "line": {"color": colour, "width": 2}, "legendgroup": name, "hoverinfo": "skip"}
    return [points, line]


def _method_line(name: str, colour: str, series: Sequence[tuple[list[int], list[float]]]) -> list[dict[str, Any]]:
    """The mean over seeds, and a band from the lowest to the highest where there are several."""
    by_step: dict[int, list[float]] = {}
    for steps, values in series:
        for step, value in zip(steps, smoothed(values)):
            by_step.setdefault(step, []).append(value)
    if not by_step:
        return []
    steps = sorted(by_step)
    line = {"type": "scatter", "mode": "lines", "x": steps, "y": _short([np.mean(by_step[s]) for s in steps]),
            "name": name, "line": {"color": colour, "width": 2}, "legendgroup": name}
    if len(series) == 1:
        return [line]
    low, high = (_short([pick(by_step[s]) for s in steps]) for pick in (min, max))
    band = {"type": "scatter", "mode": "lines", "x": [*steps, *steps[::-1]], "y": [*high, *low[::-1]], "fill": "toself",
            "name": name, "fillcolor": f"{colour}33", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False,
            "legendgroup": name}
    return [band, line]


def _evaluations(runs: Sequence[RecordedRun]) -> Iterator[dict[str, Any]]:
    """Held-out and OOD scores along the run, with their 95 % intervals."""
    found: dict[str, dict[str, list[tuple[int, dict[str, Any]]]]] = {}
    for run in runs:
        for line in run.metrics:
            for score in line.get("evaluation") or []:
                if score.get("avg") is not None:
                    place = found.setdefault(f"{score['env']} {score['split']}", {}).setdefault(run.name, [])
                    place.append((line["step"], score))
    for env, by_run in found.items():
        data = [_scores(name, COLOURS[place % len(COLOURS)], scores) for place, (name, scores) in
                enumerate(by_run.items())]
        yield _figure(f"Evaluation: {env}", data, "avg@k, 95 % interval", legend=len(runs) > 1)


def _scores(name: str, colour: str, scores: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    bounds = [score.get("interval") or [score["avg"], score["avg"]] for _, score in scores]
    return {"type": "scatter", "mode": "lines+markers", "name": name, "x": [step for step, _ in scores],
            "y": _short([s["avg"] for _, s in scores]), "line": {"color": colour},
            "error_y": {"type": "data", "symmetric": False, "thickness": 1,
                        "array": _short([b[1] - s["avg"] for b, (_, s) in zip(bounds, scores)]),
                        "arrayminus": _short([s["avg"] - b[0] for b, (_, s) in zip(bounds, scores)])}}


def _areas(title: str, label: str, mark: str, run: RecordedRun) -> dict[str, Any]:
    """Parts of a whole, on top of each other."""
    parts: dict[str, list[float]] = {}
    for place, line in enumerate(run.metrics):
        for name, value in _parts(line, mark).items():
            parts.setdefault(name, [0.0] * place).append(value)
        for values in parts.values():
            values += [0.0] * (place + 1 - len(values))
    steps = [line["step"] for line in run.metrics]
    data = [{"type": "scatter", "mode": "lines", "stackgroup": "all", "name": name, "x": steps, "y": _short(values),
             "line": {"width": 0.5, "color": STOP_COLOURS.get(name, COLOURS[i % len(COLOURS)])},
             **({} if mark == "_s" else {"groupnorm": "fraction"})}
            for i, (name, values) in enumerate(sorted(parts.items()))]
    return _figure(title, data, label)


def _parts(line: dict[str, Any], mark: str) -> dict[str, float]:
    if mark == "stops.":
        return {name: float(count) for name, count in line.get("stops", {}).items()}
    if mark == "_s":  # the environments' share is within the sampling
        return {name.removesuffix("_s"): float(v) for name, v in line.items()
                if name.endswith("_s") and name != "environment_s" and isinstance(v, int | float)}
    return {name.removeprefix(mark): float(v) for name, v in line.items() if name.startswith(mark)}


def _figure(title: str, data: list[dict[str, Any]], label: str, logarithmic: bool = False, legend: bool | None = None,
            ) -> dict[str, Any]:
    named = len({trace["name"] for trace in data})
    return {"title": title, "data": data,
            "layout": {"xaxis": {"title": {"text": "step"}}, "showlegend": named > 1 if legend is None else legend,
                       "yaxis": {"title": {"text": label}, "type": "log" if logarithmic else "linear"}}}


def _short(values: Sequence[Any]) -> list[float]:
    return [float(f"{float(v):.6g}") for v in values]
