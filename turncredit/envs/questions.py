"""Questions and answers from a file or a data set: GSM8K, AIME and the like are one line of configuration.

    make("turncredit/Questions-v0", data="gsm8k/test.jsonl.gz", answer_pattern=r"#### (.+)")
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from turncredit.envs.splits import SPLITS
from turncredit.envs.text_env import Reply, TextEnv
from turncredit.episode import Task
from turncredit.errors import MissingExtra, UserError, did_you_mean
from turncredit.verifiers import MathAnswer, Verifier

_ROWS: dict[tuple[str, str], list[Mapping[str, Any]]] = {}  # a file is read once a process, not once an environment


class Questions(TextEnv):
    """One question, one answer, judged by mathematical equivalence unless another verifier is given.

    Args:
        data: a .jsonl, .json or .parquet file (also .gz), or "hf:name" or "hf:name/config" for a data set of the hub.
        question: the field that holds the question.
        answer: the field that holds the answer.
        answer_pattern: a regular expression whose first group is the answer within that field.
        split: taken as a label; for "hf:" data it is the data set's split, unless `data_split` names another.
        instructions: what the agent is told.
        verifier: judges `hidden["answer"]`; MathAnswer by default.
    Raises:
        UserError: no such file, a field that a line lacks (named with its line), or no rows.
    """

    turn_limit = 1

    def __init__(self, data: str, question: str = "question", answer: str = "answer", answer_pattern: str | None = None,
                 data_split: str | None = None, split: str = "train", verifier: Verifier | None = None,
                 instructions: str = r"Solve the problem. Put the final answer in \boxed{}.", **kwargs: Any) -> None:
        super().__init__(split=split, **kwargs)
        self.instructions = instructions
        self.verifier = verifier or MathAnswer()
        key = (data, data_split or (split if split in SPLITS else "train"))
        if key not in _ROWS:
            _ROWS[key] = list(read_rows(*key))
        self._tasks = [self._task(row, f"{data}, row {i + 1}", question, answer, answer_pattern)
                       for i, row in enumerate(_ROWS[key])]
        if not self._tasks:
            raise UserError(f"data {data!r} holds no rows")
        self.num_tasks = len(self._tasks)

    def make_task(self, rng: np.random.Generator) -> Task:
        """Any row, uniformly."""
        return self._tasks[int(rng.integers(len(self._tasks)))]

    def task_at(self, index: int) -> Task:
        """The row at `index`."""
        return self._tasks[index]

    def respond(self, action: str) -> Reply:
        """The action is the answer."""
        return Reply(done=True, answer=action)

    def expert_action(self) -> str:
        """The answer as the data has it."""
        return str(self.task.hidden["answer"])

    def _task(self, row: Mapping[str, Any], where: str, question: str, answer: str, pattern: str | None) -> Task:
        for role, name in (("question", question), ("answer", answer)):
            if name not in row:
                hint = did_you_mean(name, row)
                raise UserError(f"{where} has no field {name!r}{hint}: set {role}=… (it has: {', '.join(row)})")
        gold = str(row[answer])
        if pattern is not None:
            match = re.search(pattern, gold)
            if match is None:
                raise UserError(f"{where}: answer_pattern {pattern!r} does not match its {answer}: {gold[-60:]!r}")
            gold = match.group(1)
        return Task(str(row[question]), {"answer": gold.strip()}, self.split, self.level)


def read_rows(data: str, split: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a file or a hub data set, as dicts."""
    if data.startswith("hf:"):
        yield from _read_hub(data.removeprefix("hf:"), split)
        return
    path = Path(data)
    if not path.is_file():
        raise UserError(f"data {data!r}: there is no such file")
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        import pyarrow.parquet

        yield from pyarrow.parquet.read_table(path).to_pylist()
        return
    raw = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    if kind == "jsonl":
        for number, line in enumerate(raw.splitlines(), 1):
            yield _json_object(line, f"{data}, line {number}")
    elif kind == "json":
        rows = json.loads(raw)
        yield from (rows if isinstance(rows, list) else [rows])
    else:
        raise UserError(f"data {data!r} is neither .jsonl, .json nor .parquet (nor those with .gz)")


def _json_object(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where} is {type(row).__name__}: each line must be an object")
    return row


def _read_hub(name: str, split: str) -> Iterator[Mapping[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets", "datasets") from None
    parts = name.split("/")
    config = parts.pop() if len(parts) == 3 else None  # owner/name/config
    yield from datasets.load_dataset("/".join(parts), config, split=split)
