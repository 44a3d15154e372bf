"""Episodes as the page holds them: an index to filter by, and compressed chunks that are opened when one is read."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from turncredit.episode import Episode
from turncredit.report.credit import EpisodeCredit, read_credit
from turncredit.report.runs import RecordedRun
from turncredit.store import read_episodes

CHUNK = 64  # episodes: small enough to open at once, large enough to compress well
COLUMNS = ("run", "id", "step", "env", "split", "task", "reward", "passed", "stop", "turns", "tokens",
           "route", "credited")


@dataclass
class EpisodeIndex:
    """The columns that the page filters by, the chunks of details, and the text of every token in them."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    chunks: list[str] = field(default_factory=list)
    vocabularies: list[dict[int, str]] = field(default_factory=list)  # one a run

    def add_run(self, run: RecordedRun, number: int, limit: int, on_read: Callable[[int], None] | None = None) -> None:
        """Take at most `limit` episodes of a run, whole groups, spread evenly over it."""
        files = evenly(sorted(run.folder.episodes.glob("step-*.parquet")), limit, _group_size(run))
        used: set[int] = set()
        details: list[dict[str, Any]] = []
        for step, part in _by_step(files):
            credit = read_credit(run.folder.path, step)
            for episode in (one for file in part for one in read_episodes(file)):
                earned = credit.get(episode.id)
                self._add_row(episode, number, earned)
                details.append(episode_details(episode, earned))
                used.update(map(int, episode.token_ids))
                if on_read is not None:
                    on_read(1)
        offset = -len(self.columns["id"]) % CHUNK  # a run begins a chunk of its own
        for name in COLUMNS:
            self.columns[name] += [None] * offset
        self.chunks += [packed(details[at:at + CHUNK]) for at in range(0, len(details), CHUNK)]
        self.vocabularies.append({token: run.token_text(token) for token in sorted(used)})

    def _add_row(self, episode: Episode, number: int, credit: EpisodeCredit | None) -> None:
        row = (number, episode.id, episode.step, episode.env_id, episode.split, episode.task_id, episode.reward,
               episode.passed, str(episode.stop), len(episode.turns), episode.generated_count,
               credit.route if credit else None, credit is not None and "weight" in credit.values)
        for name, value in zip(COLUMNS, row):
            self.columns[name].append(value)


def episode_details(episode: Episode, credit: EpisodeCredit | None) -> dict[str, Any]:
    """What is shown of one episode."""
    verdict = episode.verdict
    return {
        "id": episode.id, "system": episode.system, "prompt": episode.prompt, "seed": episode.seed,
        "error": episode.error, "why": episode.stop.sentence,
        "verdict": None if verdict is None else {"reason": verdict.reason, "details": dict(verdict.details)},
        "turns": [[t.action, t.observation, t.role, t.valid, t.reward] for t in episode.turns],
        "segments": [[s.role, int(s.generated), s.token_ids.tolist(), rounded(s.logprobs)] for s in episode.segments],
        "credit": None if credit is None else credit.as_json(),
    }


def evenly(files: Sequence[Path], limit: int, group_size: int) -> list[Path]:
    """At most `limit` episodes' worth of groups, the first and the last among them."""
    count = max(1, limit // group_size)
    if len(files) <= count:
        return list(files)
    return [files[i] for i in sorted({round(at) for at in np.linspace(0, len(files) - 1, count)})]


def packed(value: Any) -> str:
    """JSON, compressed, as text; the same bytes for the same value."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=repr).encode("utf-8", "replace")
    return base64.b64encode(gzip.compress(text, 6, mtime=0)).decode()


def rounded(values: Iterable[float] | None, digits: int = 5) -> list[float | None] | None:
    """Floats as short JSON; what is not finite, as null."""
    if values is None:
        return None
    return [round(float(v), digits) if np.isfinite(v) else None for v in values]


def _group_size(run: RecordedRun) -> int:
    return int(run.config.get("rollout", {}).get("group_size", 8))


def _by_step(files: Sequence[Path]) -> Iterable[tuple[int, list[Path]]]:
    steps: dict[int, list[Path]] = {}
    for file in files:
        steps.setdefault(int(file.name.split("-")[1]), []).append(file)
    return steps.items()
