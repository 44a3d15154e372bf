"""The heatmap as a picture, for a slide: the response's tokens shaded by their weight, the reference below."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turncredit.errors import MissingExtra
from turncredit.heatmap.scored import Scored
from turncredit.store import write_whole

COLUMNS = 72  # characters a line
HEAT = (217 / 255, 115 / 255, 13 / 255)
INK, QUIET = "#1c2026", "#8a94a3"
SIZE, LINE = 9.0, 1.75  # points; line height in sizes
ADVANCE = 0.6021  # of a size, in DejaVu Sans Mono
VISIBLE = {"\n": "↵", "\t": "→", "\r": "␍"}
MARGIN = 0.25  # inches


@dataclass(frozen=True)
class _Run:
    """A piece of a token on one line."""

    line: int
    column: int
    text: str
    weight: float | None  # None: not generated


def write_picture(scored: Sequence[Scored], out: Path) -> Path:
    """Write a PNG (or what matplotlib makes of the file's suffix), models side by side; returns its path.

    Texts in scripts that DejaVu Sans Mono has not show as boxes; the page has them.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "png") from None

    panels = [list(_laid_out(one)) for one in scored]
    below = [line for text in scored[0].reference.splitlines() for line in textwrap.wrap(text, COLUMNS) or [""]]
    lines = 3 + max(run.line for panel in panels for run in panel) + 1 + 2 + len(below) + 1
    step = SIZE * LINE / 72
    panel_width = COLUMNS * SIZE * ADVANCE / 72 + 2 * MARGIN
    width, height = panel_width * len(scored), lines * step + 2 * MARGIN
    figure = Figure(figsize=(width, height), dpi=200, facecolor="white")
    for number, (one, panel) in enumerate(zip(scored, panels)):
        _Panel(figure, width, height, MARGIN + number * panel_width, step).draw(one, panel, below)
    canvas = FigureCanvasAgg(figure)
    suffix = out.suffix.removeprefix(".") or "png"
    return write_whole(out, lambda path: canvas.print_figure(path, format=suffix))


def _laid_out(scored: Scored) -> Iterator[_Run]:
    """The response's tokens in lines of `COLUMNS` characters, broken where a line is full or a text breaks it."""
    line = column = place = 0
    for segment in scored.episode.response:
        for token in segment.token_ids.tolist():
            weight = float(scored.weight[place]) if segment.generated else None
            place += segment.generated
            for text, breaks in _pieces(scored.token_text[token]):
                if column + len(text) > COLUMNS and column:
                    line, column = line + 1, 0
                yield _Run(line, column, text, weight)
                column += len(text)
                if breaks:
                    line, column = line + 1, 0


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """A token's text in pieces of one line each, and whether the line breaks behind a piece."""
    for part in text.splitlines(keepends=True):
        shown = "".join(VISIBLE.get(c, c if c.isprintable() else "·") for c in part)
        pieces = [shown[at:at + COLUMNS] for at in range(0, len(shown), COLUMNS)]
        for number, piece in enumerate(pieces):
            yield piece, number + 1 < len(pieces) or part.endswith(("\n", "\r"))


class _Panel:
    """One model's column of a figure; places in lines and characters."""

    def __init__(self, figure: Any, width: float, height: float, left: float, step: float) -> None:
        self.figure, self.width, self.height, self.left, self.step = figure, width, height, left, step

    def draw(self, scored: Scored, runs: Sequence[_Run], below: Sequence[str]) -> None:
        """Title, scale, tokens and reference."""
        self.say(0, 0, scored.model[-COLUMNS:], weight="bold")
        self.say(1, 0, f"weight f(D), mean {scored.weight.mean():.3f}   0", color=QUIET)
        for i in range(10):
            self.shade(1, 34 + i, 1, (i + 0.5) / 10)
        self.say(1, 45, "1   grey: not the agent's", color=QUIET)
        for run in runs:
            if run.weight is not None:
                self.shade(3 + run.line, run.column, len(run.text), run.weight)
            self.say(3 + run.line, run.column, run.text, color=QUIET if run.weight is None else INK)
        at = 3 + max(run.line for run in runs) + 2
        self.say(at, 0, "the reference that the teacher read", weight="bold")
        for number, text in enumerate(below):
            self.say(at + 1 + number, 0, text, color=QUIET)

    def say(self, line: float, column: float, text: str, **style: Any) -> None:
        """Write a text whose first character stands there."""
        self.figure.text(*self._at(line + 0.72, column), text, fontfamily="DejaVu Sans Mono", fontsize=SIZE,
                         va="baseline", parse_math=False, **({"color": INK} | style))

    def shade(self, line: float, column: float, characters: int, weight: float) -> None:
        """Colour the ground under so many characters."""
        from matplotlib.patches import Rectangle

        left, bottom = self._at(line + 1, column)
        self.figure.add_artist(Rectangle((left, bottom), characters * SIZE * ADVANCE / 72 / self.width,
                                         self.step * 0.94 / self.height, facecolor=(*HEAT, 0.85 * weight),
                                         linewidth=0))

    def _at(self, line: float, column: float) -> tuple[float, float]:
        return ((self.left + column * SIZE * ADVANCE / 72) / self.width,
                1 - (MARGIN + line * self.step) / self.height)
