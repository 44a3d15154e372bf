"""Per-token credit as the trainer recorded it in `credit/`; nothing is computed again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# Of each generated token, in order. A column in which a run recorded nothing is left out.
TOKEN_COLUMNS = ("advantage", "kl", "weight", "ratio", "student_logprob", "teacher_logprob")


@dataclass(frozen=True)
class EpisodeCredit:
    """What one episode's tokens earned; each list is [generated]."""

    route: str | None
    reference: str | None  # the id of the episode that the teacher was shown
    token_ids: list[int]
    values: dict[str, list[float | None]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For the page; an advantage that all tokens share stands there once."""
        advantages = self.values.get("advantage", [])
        shared = advantages[0] if advantages and len(set(advantages)) == 1 else None
        values = {name: column for name, column in self.values.items() if name != "advantage" or shared is None}
        return {"route": self.route, "reference": self.reference, **values} | (
            {} if shared is None else {"advantage": shared})


def read_credit(run: Path, step: int) -> dict[str, EpisodeCredit]:
    """The credit of a step's episodes by their ids; empty where none was recorded."""
    import pyarrow.parquet

    found: dict[str, EpisodeCredit] = {}
    for file in sorted((run / "credit").glob(f"step-{step:06d}*.parquet")):
        table = pyarrow.parquet.read_table(file)
        names = np.array(table["episode"].to_pylist(), object)
        columns = {name: table[name].to_numpy() for name in (*TOKEN_COLUMNS, "token_id", "position", "route",
                                                              "reference") if name in table.column_names}
        for name in dict.fromkeys(names):
            rows = np.flatnonzero(names == name)
            found[name] = _of_rows({key: column[rows] for key, column in columns.items()})
    return found


def _of_rows(columns: dict[str, Any]) -> EpisodeCredit:
    order = np.argsort(columns["position"], kind="stable")
    values = {name: [float(f"{v:.9g}") if np.isfinite(v) else None for v in columns[name][order].astype(float)]
              for name in TOKEN_COLUMNS if name in columns}
    return EpisodeCredit(columns["route"][0], columns["reference"][0], columns["token_id"][order].tolist(),
                         {name: column for name, column in values.items() if any(v is not None for v in column)})
