"""The rows of the contract: each has a name, a way to examine an environment, and how a breach is mended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from turncredit.envs.check.probe import Subject

Examine = Callable[[Subject], str]


@dataclass(frozen=True, slots=True)
class Row:
    """One promise. `examine` returns what was seen, or raises `Broken` or `NotApplicable`."""

    name: str
    mend: str
    examine: Examine
    slow: bool = False


ROWS: list[Row] = []


def row(name: str, mend: str, slow: bool = False) -> Callable[[Examine], Examine]:
    """Add a row to the contract, in the order of definition; `--quick` leaves out slow ones."""

    def add(examine: Examine) -> Examine:
        ROWS.append(Row(name, mend, examine, slow))
        return examine

    return add
