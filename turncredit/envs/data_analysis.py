"""Questions about data files, answered with Python over several turns."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from turncredit.envs.python_env import PythonEnv
from turncredit.envs.splits import draw_from_split
from turncredit.envs.tables import SHOP, WEATHER, Domain, Question, Row, as_csv, as_sqlite, draw_question
from turncredit.envs.tools import tool
from turncredit.episode import Task
from turncredit.errors import UserError, did_you_mean
from turncredit.verifiers import ValueAnswer

STORAGES = ("csv", "sqlite", "either")
DATABASE = "data.sqlite"

# The scripted solution: SQL over either kind of file, while the answer itself was worked out in Python.
_EXPERT = """\
import csv, sqlite3
database = sqlite3.connect({database!r})
for name in {tables!r}:
    rows = list(csv.reader(open(name + ".csv")))
    columns = ", ".join(column + " NUMERIC" for column in rows[0])  # texts stay texts
    database.execute(f"CREATE TABLE {{name}} ({{columns}})")
    database.executemany(f"INSERT INTO {{name}} VALUES ({{', '.join('?' * len(rows[0]))}})", rows[1:])
print(database.execute({query!r}).fetchone()[0])
"""


class DataAnalysis(PythonEnv):
    """A table or two in the interpreter's working folder, and a question whose answer is a number or a name.

    What is asked of which columns differs between train and test; out of distribution the tables are others.

    Args:
        storage: the files' kind: "csv", "sqlite" or "either".
    """

    instructions = ("Answer the question about the data. Call python to work with the files in its working folder; "
                    "variables stay from call to call. Then answer without a call, with the value alone.")
    verifier = ValueAnswer()
    levels = 3

    def __init__(self, storage: str = "either", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if storage not in STORAGES:
            hint = did_you_mean(storage, STORAGES)
            raise UserError(f"storage {storage!r} is unknown{hint} (known: {', '.join(STORAGES)})")
        self.storage = storage

    def make_task(self, rng: np.random.Generator) -> Task:
        """Tables, and a question of the split that they answer clearly."""
        domain = WEATHER if self.split == "ood" else SHOP
        storage = STORAGES[int(rng.integers(2))] if self.storage == "either" else self.storage
        answer = None
        while answer is None:
            tables = domain.draw(rng, 60 * self.level)
            question = draw_from_split(self.split, lambda: draw_question(rng, domain, self.level),
                                       lambda drawn: drawn.shape)
            answer = question.answer(domain, tables)
        hidden = {"answer": answer, "question": question, "domain": domain, "tables": tables, "storage": storage}
        prompt = f"{_described(domain, tables, storage)}\n\n{question.text(domain)}"
        # the same question about other data is another task
        digest = hashlib.sha1(f"{prompt} {tables}".encode()).hexdigest()
        return Task(prompt, hidden, self.split, self.level, f"{self.split}-{digest[:12]}")

    def files(self) -> Mapping[str, bytes]:
        """The data, and nothing of the question."""
        hidden = self.task.hidden
        if hidden["storage"] == "sqlite":
            return {DATABASE: as_sqlite(hidden["tables"])}
        return {f"{name}.csv": as_csv(rows) for name, rows in hidden["tables"].items()}

    @tool
    def python(self, code: str) -> str:
        """Run Python code. The value of the last expression comes back, and what was printed.

        Args:
            code: Python source.
        """
        return self.run_python(code)

    def expert_action(self) -> str:
        """A query, then what it gave."""
        if self.turns:
            return self.turns[-1].observation
        hidden = self.task.hidden
        question: Question = hidden["question"]
        in_database = hidden["storage"] == "sqlite"
        return self.call("python", code=_EXPERT.format(
            database=DATABASE if in_database else ":memory:", tables=() if in_database else tuple(hidden["tables"]),
            query=question.sql(hidden["domain"])))


def _described(domain: Domain, tables: Mapping[str, list[Row]], storage: str) -> str:
    lines = []
    for name, rows in tables.items():
        where = f"The table {name} in {DATABASE} (SQLite)" if storage == "sqlite" else f"The file {name}.csv"
        lines.append(f"{where} has the columns {', '.join(rows[0])}.")
    return "\n".join([*lines, f"{domain.key.capitalize()} joins the two."])
