"""The environment contract, run: `turncredit envs check ID`.

    from turncredit.envs.check import check
    failed = [finding for finding in check("mine/Shop-v0") if finding.verdict == "fail"]
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from turncredit.envs.check import contract, determinism, floors, leaks, resources, robustness
from turncredit.envs.check.probe import Broken, Hangs, NotApplicable, Subject
from turncredit.envs.check.rows import ROWS, Row
from turncredit.errors import UserError, did_you_mean

__all__ = ["ROWS", "Broken", "Finding", "NotApplicable", "Row", "Subject", "check", "contract", "determinism", "floors",
           "leaks", "resources", "robustness"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a row found: "pass", "fail" or "skip", what was seen, and how a failure is mended."""

    row: str
    verdict: str
    detail: str
    mend: str = ""


def check(id: str, arguments: Mapping[str, Any] | None = None, quick: bool = False, seeds: int = 12,
          deadline_s: float = 20.0, rows: Sequence[str] | None = None,
          on_finding: Callable[[Finding], None] | None = None) -> list[Finding]:
    """Examine an environment row by row.

    Args:
        id: of a registered environment, ours or anybody's, as long as it speaks text.
        arguments: for its constructor.
        quick: three tasks a row, and no other processes.
        seeds: tasks a row.
        deadline_s: for a single call of the environment.
        rows: the names of those wanted; all where None.
        on_finding: called with each finding as it comes.
    Raises:
        UserError: an unknown id or row, or arguments that the constructor refuses.
    """
    for name in rows or ():
        if name not in (known := [row.name for row in ROWS]):
            raise UserError(f"row {name!r} is unknown{did_you_mean(name, known)} (known: {', '.join(known)})")
    subject = Subject(id, arguments, 3 if quick else seeds, deadline_s)
    wanted = [row for row in ROWS[1:] if ((not row.slow or not quick) if rows is None else row.name in rows)]
    findings: list[Finding] = []
    with _process_as_it_was(subject):
        for row in (ROWS[0], *wanted):
            findings.append(_examined(row, subject))
            if on_finding:
                on_finding(findings[-1])
            if findings[0].verdict == "fail":
                break  # it cannot even be played: every row would say so
    return findings


@contextmanager
def _process_as_it_was(subject: Subject) -> Iterator[None]:
    """Put back what an environment should not have touched."""
    generators = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        os.chdir(subject.folder)
        os.environ.clear()
        os.environ.update(subject.variables)


def _examined(row: Row, subject: Subject) -> Finding:
    earlier = logging.root.manager.disable
    logging.disable(logging.WARNING)  # what the environment warns of is its own business
    try:
        return Finding(row.name, "pass", row.examine(subject))
    except NotApplicable as reason:
        return Finding(row.name, "skip", str(reason))
    except (Broken, Hangs) as breach:
        return Finding(row.name, "fail", str(breach), row.mend)
    except UserError as refused:
        if row is ROWS[0]:
            raise
        return Finding(row.name, "fail", f"it refuses: {refused}", row.mend)
    finally:
        logging.disable(earlier)
