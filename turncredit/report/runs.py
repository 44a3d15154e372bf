"""A finished or running run, read back from its folder. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from turncredit.errors import UserError
from turncredit.store import RunFolder

# In this order: a run's weights change, its tokenizer does not.
WITH_TOKENIZER = ("policy", "start", "checkpoints/step-*")


@dataclass(frozen=True)
class RecordedRun:
    """What a run folder holds."""

    folder: RunFolder
    config: dict[str, Any]
    metrics: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.path.resolve().name

    @property
    def algorithm(self) -> str:
        """By which name the algorithm is registered."""
        return str(self.config.get("algorithm", {}).get("name", "sc-grpo"))

    def settings(self) -> Iterator[tuple[str, Any]]:
        """Every key of the configuration, dotted, with its value."""
        yield from _flat(self.config)

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """The steps at which a metric was known, and its values there."""
        known = [(line["step"], float(line[key])) for line in self.metrics if line.get(key) is not None]
        return [step for step, _ in known], [value for _, value in known]

    @cached_property
    def token_text(self) -> TokenText:
        """What each token id reads as."""
        return TokenText(self.folder.path)


class TokenText:
    """The text of single tokens, by the tokenizer that lies in the run folder.

    A byte-level token may be part of a character: it then reads as a replacement mark. Where the run has no
    tokenizer yet, the ids themselves are shown.
    """

    def __init__(self, folder: Path) -> None:
        found = [file for pattern in WITH_TOKENIZER for file in sorted(folder.glob(f"{pattern}/tokenizer.json"))]
        self._tokenizer: Any = None
        if found:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(found[0]))

    def __call__(self, token_id: int) -> str:
        if self._tokenizer is None:
            return f"⟨{token_id}⟩"
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False))


def open_recorded_run(path: str | Path) -> RecordedRun:
    """Read a run's configuration and metrics.

    Raises:
        UserError: it is no run folder, or its configuration is no mapping.
    """
    folder = Path(path)
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(f"{str(path)!r} is no run folder: it has no config.yaml; give one, such as runs/quickstart")
    config = yaml.safe_load(file.read_text())
    if not isinstance(config, dict):
        raise UserError(f"{str(file)!r} must be a mapping of keys to values")
    run = RunFolder(folder)
    return RecordedRun(run, config, run.read_metrics())


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}".lstrip("."))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for place, inner in enumerate(value):
            yield from _flat(inner, f"{prefix}.{place}")
    else:
        yield prefix, value
