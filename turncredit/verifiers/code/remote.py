"""Given asserts of any other shape, run in a process that never imports the candidate's module.

The asserts run against a remote object: every use of it is written down as a step, and answered with what the
candidate, in an execution of its own, gave for that step. In the first pass no answer is known; the pass
collects steps as far as they do not depend on answers, which is mostly all of them, and the candidate performs
them together. Passes go on until one asks for no new step: what it finds is the verdict.
"""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from turncredit.sandboxes.base import Limits, Sandbox
from turncredit.verifiers.code.asserts import defined
from turncredit.verifiers.code.asserts_inside import OUTCOME
from turncredit.verifiers.code.cases import Asserts, CodeTests
from turncredit.verifiers.code.execution import Budget, Record, Step, answer, perform, run_inside
from turncredit.verifiers.code.report import CaseReport, Status, case_report

_MOST_PASSES = 32
_PASS_LIMITS = Limits(wall_s=20.0, cpu_s=20.0)


class AssertsBroken(Exception):
    """The given tests cannot be run, whichever candidate they judge."""


async def judge_remotely(sandbox: Sandbox, program: str, tests: CodeTests, test: Asserts,
                         budget: Budget) -> list[CaseReport]:
    """Return a report an assert that was executed.

    Raises:
        AssertsBroken: the asserts fail before the candidate gave any answer.
        SandboxError: the sandbox failed.
    """
    steps: list[Step] = []
    records: list[Record] = []
    for _ in range(_MOST_PASSES):
        outcome = await _run_asserts(sandbox, tests, test, steps, records)
        if outcome is None:
            return [_case(test, Status.WRONG, "the asserts", "the asserts could not be computed of its values")]
        if not outcome["guessed"]:
            return _reports(outcome, test, records)
        steps = outcome["steps"]
        records = await perform(sandbox, program, tests, steps, budget)
    return [_case(test, Status.WRONG, "the asserts", "its answers differ from run to run")]


async def _run_asserts(sandbox: Sandbox, tests: CodeTests, test: Asserts, steps: Sequence[Step],
                       records: Sequence[Record]) -> dict[str, Any] | None:
    """One pass over the asserts; None where it came to no end because of the candidate's values."""
    calls_check, names = _remote_names(test, tests.entry_point)
    job = {"setup": test.setup, "source": test.source, "entry_point": tests.entry_point, "names": names,
           "calls_check": calls_check, "steps": steps, "records": records, "shared": list(tests.shared),
           "equality": asdict(tests.equality)}
    result = await run_inside(sandbox, ("wire.py", "equality.py", "asserts_inside.py"), job, OUTCOME, _PASS_LIMITS)
    outcome: dict[str, Any] | None = json.loads(result.files[OUTCOME]) if OUTCOME in result.files else None
    if outcome is None and records:
        return None
    if outcome is None:
        raise AssertsBroken(f"they do not end ({result.killed_by or result.stderr[-300:]})")
    if outcome["broken"] or (outcome["stopped"] and not outcome["steps"]):
        raise AssertsBroken(outcome["broken"] or outcome["stopped"])
    return outcome


def _remote_names(test: Asserts, entry_point: str) -> tuple[bool, list[str]]:
    """Is `check` to be called, and which names of the source are the candidate's?"""
    tree, setup = ast.parse(test.source), ast.parse(test.setup)
    if not any(isinstance(node, ast.Assert) for node in [*ast.walk(tree), *ast.walk(setup)]):
        raise AssertsBroken("they have no assert")
    defines_check = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)
    calls_check = defines_check and not any(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "check"
        for node in tree.body)
    bound = defined(tree) | defined(setup)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    free = {name for name in used - bound if not hasattr(builtins, name)}
    if entry_point or defines_check:  # as in `asserts.py`: other names of the candidate's are classes
        nobodys = sorted(name for name in free - {entry_point} if not name[0].isupper())
        if nobodys and "*" not in bound:
            raise AssertsBroken(f"they use {', '.join(nobodys)}, which neither they nor their setup define")
        free = {name for name in free if name[0].isupper()}
    own = {entry_point} if entry_point.isidentifier() else set()
    return calls_check, sorted(free | own)


def _reports(outcome: dict[str, Any], test: Asserts, records: Sequence[Record]) -> list[CaseReport]:
    cases = []
    for case in outcome["cases"]:
        if not case["failure"]:
            cases.append(_case(test, Status.PASSED, case["text"], ""))
        elif case["step"] is None:
            cases.append(_case(test, Status.WRONG, case["text"], case["failure"]))
        else:
            cause = answer(records[case["step"]])
            cases.append(case_report(cause.status, case["text"], cause.public, cause.detail, test.hidden))
    if outcome["stopped"]:
        cases.append(_case(test, Status.ERROR, "the asserts", outcome["stopped"]))
    if not cases:
        cases.append(_case(test, Status.WRONG, "the asserts", "no assert was reached"))
    return cases


def _case(test: Asserts, status: Status, text: str, detail: str) -> CaseReport:
    return case_report(status, text, "wrong value" if detail else "", detail, test.hidden)
