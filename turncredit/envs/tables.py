"""Tables drawn from a seed, and questions about them: what the data-analysis environment asks."""

from __future__ import annotations

import csv
import io
import sqlite3
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = Mapping[str, Any]
Value = int | float | str


@dataclass(frozen=True, slots=True)
class Domain:
    """What tables are about: a main table, and one that says more of the main table's `key`."""

    main: str
    other: str
    key: str
    keys: Sequence[str]
    words: Mapping[str, Sequence[str]]  # column of the main table -> its texts
    numbers: Mapping[str, tuple[int, int, int]]  # column -> lowest, highest, decimals
    about: Mapping[str, Sequence[str]]  # column of the other table -> its texts

    def draw(self, rng: np.random.Generator, rows: int) -> dict[str, list[Row]]:
        """Table -> rows."""
        main: list[Row] = [{"id": i + 1, self.key: _pick(rng, self.keys)}
                | {name: _pick(rng, texts) for name, texts in self.words.items()}
                | {name: _number(rng, *bounds) for name, bounds in self.numbers.items()} for i in range(rows)]
        other: list[Row] = [{self.key: key} | {name: _pick(rng, texts) for name, texts in self.about.items()}
                            for key in self.keys]
        return {self.main: main, self.other: other}


SHOP = Domain(
    "orders", "customers", "customer", ("Abel", "Brunel", "Curie", "Dirac", "Euler", "Fermi", "Gauss", "Hertz"),
    {"product": ("lamp", "chair", "desk", "shelf", "rug"), "channel": ("web", "shop", "phone")},
    {"quantity": (1, 500, 0), "price": (5, 300, 2), "seconds": (30, 3600, 0)},
    {"city": ("Oslo", "Lima", "Cairo"), "segment": ("private", "company")})
WEATHER = Domain(
    "readings", "stations", "station", ("N1", "N2", "S1", "S2", "E1", "E2", "W1"),
    {"sky": ("clear", "cloud", "rain", "snow"), "observer": ("manual", "automatic")},
    {"wind": (0, 900, 0), "pressure": (950, 1050, 1), "sunshine": (0, 1440, 0)},
    {"terrain": ("coast", "valley", "summit"), "network": ("alpha", "beta")})

# name -> (in words, in SQL, of the column's values)
AGGREGATES: dict[str, tuple[str, str, Callable[[Sequence[Any]], Value]]] = {
    "sum": ("the sum of {0}", "SUM({0})", sum),
    "mean": ("the mean of {0}", "AVG({0})", statistics.fmean),
    "largest": ("the largest {0}", "MAX({0})", max),
    "smallest": ("the smallest {0}", "MIN({0})", min),
    "spread": ("the difference between the largest and the smallest {0}", "MAX({0}) - MIN({0})",
               lambda values: max(values) - min(values)),
    "distinct": ("the number of different values of {0}", "COUNT(DISTINCT {0})", lambda values: len(set(values))),
}


@dataclass(frozen=True, slots=True)
class Question:
    """An aggregate over the rows that meet the conditions, or the group in which it is largest."""

    aggregate: str
    column: str
    conditions: Sequence[tuple[str, str, Value]]  # column, operator (= or >=), value
    group: str | None = None

    @property
    def shape(self) -> str:
        """What is asked without the values: what says whether two questions are of one kind."""
        return " ".join([self.aggregate, self.column, *sorted(name for name, _, _ in self.conditions), str(self.group)])

    def text(self, domain: Domain) -> str:
        """In words."""
        told = " and ".join(f"{name} is {'at least ' if sign == '>=' else ''}{value}"
                            for name, sign, value in self.conditions)
        where = f" among the {domain.main} where {told}" if told else f" among all {domain.main}"
        what = AGGREGATES[self.aggregate][0].format(self.column)
        if self.group:
            return f"Work out {what} for each {self.group},{where}. Which {self.group} has the highest? Answer with it."
        return f"What is {what}{where}? Answer with the number (two decimals are enough)."

    def sql(self, domain: Domain) -> str:
        """As a query for SQLite, over both tables."""
        value = AGGREGATES[self.aggregate][1].format(self.column)
        query = f"SELECT {self.group or value} FROM {domain.main} JOIN {domain.other} USING ({domain.key})"
        query += "".join(f" {'AND' if i else 'WHERE'} {name} {sign} {value!r}"
                         for i, (name, sign, value) in enumerate(self.conditions))
        return query + (f" GROUP BY {self.group} ORDER BY {value} DESC LIMIT 1" if self.group else "")

    def answer(self, domain: Domain, tables: Mapping[str, Sequence[Row]]) -> Value | None:
        """The value, worked out in Python; None where there are too few rows, or two groups are equally good."""
        about = {row[domain.key]: row for row in tables[domain.other]}
        rows = [{**row, **about[row[domain.key]]} for row in tables[domain.main]]
        met = [row for row in rows if all(_meets(row[name], sign, value) for name, sign, value in self.conditions)]
        function = AGGREGATES[self.aggregate][2]
        if len(met) < 3:
            return None
        if not self.group:
            return function([row[self.column] for row in met])
        groups: dict[str, list[Any]] = {}
        for row in met:
            groups.setdefault(row[self.group], []).append(row[self.column])
        ranked = sorted(((function(values), name) for name, values in groups.items()), reverse=True)
        clear = len(ranked) > 1 and float(ranked[0][0]) - float(ranked[1][0]) > 0.01
        return ranked[0][1] if clear else None


def draw_question(rng: np.random.Generator, domain: Domain, level: int) -> Question:
    """Level 1: one condition. Level 2: two conditions, or the best group. Level 3: the same over both tables."""
    aggregate, column = _pick(rng, tuple(AGGREGATES)), _pick(rng, tuple(domain.numbers))
    words = {**domain.words, domain.key: domain.keys}
    first, second = (str(name) for name in rng.choice(list(words), size=2, replace=False))
    condition = (first, "=", _pick(rng, words[first]))
    grouped = level > 1 and rng.random() < 0.5
    if level == 1 or (level == 2 and grouped):
        return Question(aggregate, column, [condition], second if grouped else None)
    if level == 2:
        bounded = _pick(rng, [name for name in domain.numbers if name != column])
        low, high, _ = domain.numbers[bounded]
        return Question(aggregate, column, [condition, (bounded, ">=", int(rng.integers(low, (low + high) // 2)))])
    name, group = (str(n) for n in rng.permutation(list(domain.about)))
    joined = (name, "=", _pick(rng, domain.about[name]))
    return Question(aggregate, column, [joined] if grouped else [condition, joined], group if grouped else None)


def as_csv(rows: Sequence[Row]) -> bytes:
    """A table as a CSV file with a header."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_sqlite(tables: Mapping[str, Sequence[Row]]) -> bytes:
    """Tables as a SQLite file."""
    with closing(sqlite3.connect(":memory:")) as database:
        for name, rows in tables.items():
            columns = ", ".join(f"{column} {_TYPES[type(value)]}" for column, value in rows[0].items())
            database.execute(f"CREATE TABLE {name} ({columns})")
            places = ", ".join("?" * len(rows[0]))
            database.executemany(f"INSERT INTO {name} VALUES ({places})", [tuple(row.values()) for row in rows])
        database.commit()
        return database.serialize()


_TYPES = {int: "INTEGER", float: "REAL", str: "TEXT"}


def _meets(actual: Any, sign: str, value: Value) -> bool:
    return bool(actual >= value if sign == ">=" else actual == value)


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def _number(rng: np.random.Generator, low: int, high: int, decimals: int) -> int | float:
    if not decimals:
        return int(rng.integers(low, high + 1))
    return round(float(rng.uniform(low, high)), decimals)
