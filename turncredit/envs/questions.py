"""Questions and answers from a file or a data set: GSM8K, AIME and the like are one line of configuration.

    make("turncredit/Questions-v0", data="gsm8k/test.jsonl.gz", answer_pattern=r"#### (.+)")
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from turncredit.envs.splits import split_of
from turncredit.envs.text_env import Reply, TextEnv
from turncredit.episode import Task
from turncredit.errors import MissingExtra, UserError, did_you_mean
from turncredit.verifiers import MathAnswer, Verifier

T = TypeVar("T")

# Tasks are made once a process, not once an environment: a group has many environments on one file.
_TASKS: dict[tuple[Any, ...], list[Task]] = {}


class Questions(TextEnv):
    """One question, one answer, judged by mathematical equivalence unless another verifier is given.

    Args:
        data: a .jsonl, .json or .parquet file (also .gz), or "hf:owner/name" or "hf:owner/name/config" for a data set
            of the hub.
        question: the field that holds the question.
        answer: the field that holds the answer.
        answer_pattern: a regular expression whose first group is the answer within that field.
        split: a label, unless `hold_out`; for "hf:" data it is the data set's split, unless `data_split` names another.
        hold_out: a fifth of the rows, chosen by their question, are "test" and all others "train".
        instructions: what the agent is told.
        verifier: judges `hidden["answer"]`; MathAnswer by default.
    Raises:
        UserError: no such file, one that cannot be read, a field that a line lacks (named with its line), or no rows.
    """

    turn_limit = 1
    split_is_label = True

    def __init__(self, data: str, question: str = "question", answer: str = "answer", answer_pattern: str | None = None,
                 data_split: str | None = None, hold_out: bool = False, split: str = "train",
                 verifier: Verifier | None = None,
                 instructions: str = r"Solve the problem. Put the final answer in \boxed{}.", **kwargs: Any) -> None:
        super().__init__(split=split, **kwargs)
        self.instructions = instructions
        self.verifier = verifier or MathAnswer()
        if hold_out and data.startswith("hf:") and data_split is None:
            raise UserError("hold_out parts one split of a data set: name it with data_split")
        source = _source(data, data_split or split)
        key = (*source, question, answer, answer_pattern, split, self.level)
        if key not in _TASKS:
            pattern = _compiled(answer_pattern)
            _TASKS[key] = [self._task(row, f"{data}, {place}", question, answer, pattern)
                           for place, row in read_rows(data, data_split or split)]
        self._tasks = _TASKS[key]
        if not self._tasks:
            raise UserError(f"data {data!r} holds no rows")
        self.split_is_label = not hold_out
        if hold_out:
            self._tasks = held_out(self._tasks, split, data, lambda task: task.prompt)
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

    def _task(self, row: Any, where: str, question: str, answer: str, pattern: re.Pattern[str] | None) -> Task:
        if not isinstance(row, dict):
            raise UserError(f"{where} is {type(row).__name__}: each one must be an object with fields")
        for role, name in (("question", question), ("answer", answer)):
            if name not in row:
                hint = did_you_mean(name, row)
                raise UserError(f"{where} has no field {name!r}{hint}: set {role}=… (it has: {', '.join(row)})")
            if row[name] is None or not str(row[name]).strip():
                raise UserError(f"{where}: its field {name!r} is empty")
        gold = str(row[answer])
        if pattern is not None:
            match = pattern.search(gold)
            if match is None or not (match.group(1) or "").strip():
                raise UserError(f"{where}: answer_pattern {pattern.pattern!r} finds nothing in its {answer}: "
                                f"{gold[-60:]!r}")
            gold = match.group(1)
        return Task(str(row[question]), {"answer": gold.strip()}, self.split, self.level)


def held_out(rows: Sequence[T], split: str, data: str, content: Callable[[T], str]) -> list[T]:
    """The rows whose content is of the split.

    Raises:
        UserError: there are none, as of "ood", which a file cannot have.
    """
    if split == "ood":
        raise UserError("split 'ood' with hold_out: one source has 'train' and 'test' alone; name other data for it")
    found = [row for row in rows if split_of(content(row)) == split]
    if not found:
        raise UserError(f"data {data!r} has no row for split {split!r} of its {len(rows)}: leave out hold_out")
    return found


def read_rows(data: str, split: str) -> Iterator[tuple[str, Any]]:
    """The rows of a file or a hub data set, each with its place, such as "line 3"."""
    if data.startswith("hf:"):
        rows: Iterable[Any] = _read_hub(data.removeprefix("hf:"), split)
        yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
        return
    path = Path(data)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind not in ("jsonl", "json", "parquet"):
        raise UserError(f"data {data!r} is neither .jsonl, .json nor .parquet (nor those with .gz)")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
        if kind == "jsonl":
            yield from ((f"line {number}", _json_line(line, f"{data}, line {number}"))
                        for number, line in enumerate(raw.splitlines(), 1) if line.strip())
            return
        found = json.loads(raw) if kind == "json" else _read_parquet(raw)
    except (OSError, EOFError, ValueError, zlib.error) as error:  # pyarrow's errors are ValueErrors
        raise UserError(f"data {data!r} cannot be read: {' '.join(str(error).split())}") from None
    rows = found if isinstance(found, list) else [found]
    yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _source(data: str, split: str) -> tuple[Any, ...]:
    """What tells one content of `data` from another: a file that was written anew is read anew."""
    if data.startswith("hf:"):
        return data, split
    path = Path(data)
    if not path.is_file():
        raise UserError(f"data {data!r}: there is no such file")
    state = path.stat()
    return str(path.resolve()), state.st_mtime_ns, state.st_size


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    try:
        compiled = None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise UserError(f"answer_pattern {pattern!r} is not a regular expression: {error}") from None
    if compiled is not None and compiled.groups == 0:
        raise UserError(f"answer_pattern {pattern!r} has no group: put brackets around the answer")
    return compiled


def _json_line(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}") from None


def _read_parquet(raw: bytes) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    rows: list[Any] = pyarrow.parquet.read_table(pyarrow.BufferReader(raw)).to_pylist()
    return rows


def _read_hub(name: str, split: str) -> Iterable[Any]:
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets", "datasets") from None
    parts = name.split("/")
    config = parts.pop() if len(parts) == 3 else None  # owner/name/config
    rows: Iterable[Any] = datasets.load_dataset("/".join(parts), config, split=split)
    return rows
