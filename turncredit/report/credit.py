"""Per-token credit as the trainer recorded it in `credit/`; nothing is computed again."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

# Of each generated token, in order. A column that a run did not record is left out.
TOKEN_COLUMNS = ("kl", "weight", "ratio", "student_logprob", "teacher_logprob")


@dataclass(frozen=True)
class EpisodeCredit:
    """What one episode's tokens earned; each list is [generated]."""

    route: str | None
    reference: str | None  # the id of the episode that the teacher was shown
    advantage: float | None
    token_ids: list[int]
    values: dict[str, list[float | None]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For the page."""
        return {"route": self.route, "reference": self.reference, "advantage": self.advantage, **self.values}


@lru_cache(maxsize=4)
def read_credit(run: Path, step: int) -> dict[str, EpisodeCredit]:
    """The credit of a step's episodes by their ids; empty where none was recorded."""
    import pyarrow.parquet

    found: dict[str, EpisodeCredit] = {}
    for file in sorted((run / "credit").glob(f"step-{step:06d}*.parquet")):
        frame = pyarrow.parquet.read_table(file).to_pandas()
        for name, rows in frame.groupby("episode", sort=False):
            found[str(name)] = _of_rows(rows.sort_values("position"))
    return found


def _of_rows(rows: Any) -> EpisodeCredit:
    def first(name: str) -> Any:
        value = rows[name].iloc[0] if name in rows else None
        return None if value is None or value != value else value

    values = {name: [None if not np.isfinite(v) else round(float(v), 6) for v in rows[name].astype(float)]
              for name in TOKEN_COLUMNS if name in rows and rows[name].notna().any()}
    advantage = first("advantage")
    return EpisodeCredit(first("route"), first("reference"), None if advantage is None else float(advantage),
                         [int(t) for t in rows["token_id"]], values)
