"""What each generated token earned: a table on disk for people to look at, and means by kind of token."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from turncredit.episode import Episode
from turncredit.store import write_whole

if TYPE_CHECKING:
    from turncredit.trainer.credited import CreditedEpisode

VALUES = ("advantage", "kl", "weight", "ratio", "student_logprob", "teacher_logprob")  # floats, or null
_CLASSES = (  # the first that fits
    ("whitespace", re.compile(r"\s*")),
    ("digits", re.compile(r"\s*[\d.,]*\d[\d.,]*\s*")),
    ("tool-call syntax", re.compile(r"\s*<([/|][\w|/-]*|[a-z][\w-]*)>?\s*")),
    ("code punctuation", re.compile(r"[\s\W_]+")),
)


def token_class(text: str) -> str:
    """`whitespace`, `digits`, `tool-call syntax`, `code punctuation` or `words`."""
    return next((name for name, pattern in _CLASSES if pattern.fullmatch(text)), "words")


class TokenRecord:
    """The generated tokens of one update, as they were trained on the first time.

    Args:
        tokenizer: gives each token its text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._text = lru_cache(maxsize=None)(lambda token: tokenizer.decode([token]))
        self._parts: dict[str, dict[str, Any]] = {}

    def add(self, part: Sequence[CreditedEpisode], values: Mapping[str, Any]) -> None:
        """The tokens of some episodes, one behind the other; an episode that is there already stays as it was.

        Args:
            part: the episodes.
            values: float arrays [generated] by the names of `VALUES`; what is missing is null.
        """
        ends = np.cumsum([one.episode.generated_count for one in part])[:-1]
        pieces = {name: np.split(np.asarray(value, np.float32), ends) for name, value in values.items()}
        for i, one in enumerate(part):
            if one.episode.id not in self._parts:
                self._parts[one.episode.id] = _columns(one) | {name: pieces[name][i] for name in pieces}

    @property
    def episodes(self) -> dict[str, dict[str, Any]]:
        """The columns of each episode by its id."""
        return self._parts

    def merge(self, other: Mapping[str, dict[str, Any]]) -> None:
        """Take in what another process recorded."""
        self._parts |= other

    def write(self, path: Path) -> None:
        """As a parquet file, a row a token, in the episodes' order."""
        import pyarrow as pa
        import pyarrow.parquet

        columns: dict[str, list[Any]] = {name: [] for name in _schema().names}
        for _, part in sorted(self._parts.items()):
            size = len(part["token_id"])
            part = part | {"text": [self._text(int(token)) for token in part["token_id"]]}
            for name, column in columns.items():
                value = part.get(name)
                column.extend(value if isinstance(value, np.ndarray | list) else [value] * size)
        table = pa.table({name: pa.array(columns[name], field.type, from_pandas=True)
                          for name, field in zip(_schema().names, _schema())})
        write_whole(path, lambda temporary: pyarrow.parquet.write_table(table, temporary, compression="zstd"))

    def class_means(self) -> dict[str, float]:
        """The mean weight of the tokens of each class, as metrics. Empty where no token has a weight."""
        sums: dict[str, list[float]] = {}
        for part in self._parts.values():
            for token, weight in zip(part["token_id"], part.get("weight", ())):
                if not np.isnan(weight):
                    sums.setdefault(token_class(self._text(int(token))), []).append(float(weight))
        return {f"weight of {name}": float(np.mean(values)) for name, values in sorted(sums.items())}


def _columns(one: CreditedEpisode) -> dict[str, Any]:
    episode = one.episode
    turns, places = _places(episode)
    return {"step": episode.step, "episode": episode.id, "route": one.kind, "reference": one.reference,
            "turn": turns, "position": places, "token_id": episode.token_ids[places]}


def _places(episode: Episode) -> tuple[Any, Any]:
    """Of each generated token, the turn that it belongs to (from 0) and its place in the episode, [generated] each."""
    turns = np.concatenate([np.zeros(0, np.int32), *(np.full(len(s.token_ids), i, np.int32) for i, s in enumerate(
        s for s in episode.segments if s.generated))])
    return turns, np.flatnonzero(episode.generated)


@lru_cache(maxsize=1)
def _schema() -> Any:
    import pyarrow as pa

    whole, text = pa.int32(), pa.string()
    return pa.schema([("step", whole), ("episode", text), ("turn", whole), ("position", whole), ("token_id", whole),
                      ("text", text), ("route", text), ("reference", text),
                      *((name, pa.float32()) for name in VALUES)])
