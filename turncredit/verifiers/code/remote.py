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
from typing import Any

from turncredit.sandboxes.base import MIB, Sandbox
from turncredit.verifiers.code.asserts import defined
from turncredit.verifiers.code.asserts_inside import OUTCOME
from turncredit.verifiers.code.cases import Asserts, CodeTests
from turncredit.verifiers.code.execution import Budget, Record, Step, answer, perform, run_inside
from turncredit.verifiers.code.report import CaseReport, Status, case_report

_MOST_PASSES = 200  # `state = f(state)` in a loop takes one a round
_MOST_CHANGES = 2
_PASSES_IN_ORDER = 4  # then calls are known by what they ask: asserts may walk a set, in another order each time
_PASS_S = 20.0
_ASSERTS_S = 60.0  # all passes of one source
_MEMORY_BYTES = 512 * MIB
_FIRST_PASSES = 256  # remembered, of at most so many bytes each: a group of candidates has the same tests
_FIRST_PASS_BYTES = 1 << 18


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
    time_of_asserts, changes = Budget(_ASSERTS_S), 0
    for number in range(_MOST_PASSES):
        given = steps, records, number >= _PASSES_IN_ORDER, time_of_asserts
        outcome = await (_run_asserts(sandbox, tests, test, *given) if number
                         else _first_pass(sandbox, tests, test, time_of_asserts))
        if number == _PASSES_IN_ORDER and outcome and outcome["guessed"]:
            again = await _run_asserts(sandbox, tests, test, *given)
            if again and again["steps"] != outcome["steps"]:
                raise AssertsBroken("they ask for something else each time, given the same answers")
        if outcome is None:
            return [_case(test, Status.WRONG, "the asserts", "the asserts could not be computed of its values")]
        if not outcome["guessed"]:
            return _reports(outcome, test, records)
        before = list(zip(steps, records))
        steps = outcome["steps"]
        records = await perform(sandbox, program, tests, steps, budget)
        changes += _answered_otherwise(before, list(zip(steps, records)))
        if changes > _MOST_CHANGES:
            break
    return [_case(test, Status.WRONG, "the asserts", "its answers differ from run to run")]


_first_passes: dict[str, dict[str, Any]] = {}


async def _first_pass(sandbox: Sandbox, tests: CodeTests, test: Asserts, budget: Budget) -> dict[str, Any] | None:
    """The pass without an answer, which no candidate has a part in: done once for all of them.

    What it found is what the asserts ask for as far as it is known. Where they ask otherwise the next time, the
    later passes find that out, as they do where an answer changes the questions.
    """
    key = repr((test.source, test.setup, tests.entry_point, tests.shared, tests.equality))
    if outcome := _first_passes.get(key):
        return outcome
    outcome = await _run_asserts(sandbox, tests, test, [], [], False, budget)
    if outcome is not None and len(repr(outcome)) <= _FIRST_PASS_BYTES:
        if len(_first_passes) >= _FIRST_PASSES:
            _first_passes.pop(next(iter(_first_passes)), None)
        _first_passes[key] = outcome
    return outcome


def _answered_otherwise(before: Sequence[tuple[Step, Record]], after: Sequence[tuple[Step, Record]]) -> bool:
    """Did the candidate, asked the same from its start on, answer otherwise? It could try answers until one holds."""
    for (old_step, old), (step, new) in zip(before, after):
        if old_step != step:
            return False
        if _gist(old) != _gist(new):
            return True
    return False


def _gist(record: Record) -> list[Any]:
    """What an answer is about: not its time, nor an error's message, which may name addresses."""
    error = record.get("error")
    return [record.get("value"), record.get("opaque"), error[0] if isinstance(error, list) and error else error]


async def _run_asserts(sandbox: Sandbox, tests: CodeTests, test: Asserts, steps: Sequence[Step],
                       records: Sequence[Record], any_order: bool, budget: Budget) -> dict[str, Any] | None:
    """One pass over the asserts; None where it came to no end because of the candidate's values."""
    calls_check, names = _remote_names(test, tests.entry_point)
    job = {"setup": test.setup, "source": test.source, "entry_point": tests.entry_point, "names": names,
           "calls_check": calls_check, "steps": steps, "records": records, "any_order": any_order,
           "shared": list(tests.shared), "equality": tests.equality._asdict()}
    limits = budget.limits(_MEMORY_BYTES, _PASS_S)
    result = await run_inside(sandbox, ("wire.py", "equality.py", "asserts_inside.py"), job, OUTCOME, limits)
    budget.spend(result)
    try:
        outcome: dict[str, Any] | None = json.loads(result.files.get(OUTCOME, b"null"))
    except ValueError:  # cut off at the limit of a file
        outcome = None
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
