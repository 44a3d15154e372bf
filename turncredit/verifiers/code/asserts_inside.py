"""What runs given asserts, in a sandbox execution that the candidate is not in.

Every use of the candidate becomes a step. A step that was already performed is answered from its record; from
the first other one on, the pass goes on with values that are not known, and is a guess: it only collects steps.

The judge sends this file as text behind `wire.py` and `equality.py`; it imports the standard library alone.
"""

from __future__ import annotations

import ast
import builtins
import json
import random
import sys
from collections.abc import Callable, Collection
from types import CodeType
from typing import Any, NamedTuple

from turncredit.verifiers.code.equality import Equality, shown
from turncredit.verifiers.code.wire import Malformed, Unencodable, decode, encode

OUTCOME = "outcome"
_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range)


class Guess(BaseException):
    """What comes next depends on a value that is not known yet. No `except Exception` of a test catches it."""


class RemoteError(Exception):
    """The candidate raised an exception of a type that is not built in, or gave no answer at all."""


class Origin(NamedTuple):
    """Where a remote object came from."""

    run: Pass
    kind: str  # "name", "object" (of a class), "method" (or attribute), "value"
    target: str | int | None = None  # the candidate's expression, or the step whose result it is
    known: bool = False

    @property
    def is_class(self) -> bool:
        return isinstance(self.target, str) and self.target.rpartition(".")[2][:1].isupper()


class Pass:
    """One run of the asserts: what was asked so far, and what was found."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.known: list[Any] = job["steps"]
        self.records: list[dict[str, Any]] = job["records"]
        self.any_order: bool = job["any_order"]
        # a call's answer from elsewhere in the last run: to guess with, and to judge by in any order
        self.hints = {json.dumps(step): number for number, step in enumerate(self.known)
                      if isinstance(step["on"], str) and "opaque" not in self.records[number]}
        self.equality = Equality(**job["equality"])
        self.shared: dict[str, type] = {}
        self.steps: list[dict[str, Any]] = []
        self.results: list[str] = []  # of the answered steps, as text
        self.guessed = False
        self.broken = ""
        self.cases: list[dict[str, Any]] = []

    def ask(self, on: str | int | None, do: str, given: Any, kind: str = "value") -> Any:
        """The result of a step: a plain value, or a remote object where it is none or not known yet."""
        number = len(self.steps)
        step = {"on": on, "do": do, "with": given}
        self.steps.append(step)
        if not self.guessed and number < len(self.records) and self.known[number] == step:
            answered: int | None = number
        else:
            answered = self.hints.get(json.dumps(step))
            self.guessed |= answered is None or not self.any_order
        if answered is None:
            return Remote(Origin(self, kind, number))
        record = self.records[answered]
        if "value" not in record and "opaque" not in record:
            raise _error(record, answered)
        if "opaque" in record:
            self.results.append("something that is no plain value")
            return Remote(Origin(self, kind, number, known=True))
        value = self._value(record)
        self.results.append(shown(value))
        return value

    def _value(self, record: dict[str, Any]) -> Any:
        try:
            return decode(record["value"], shared=self.shared, max_depth=10_000)
        except Malformed as error:
            raise RemoteError(f"its value could not be read: {error}") from None

    def encoded(self, value: Any) -> Any:
        """The tokens of arguments; the candidate's own objects go back as the steps that they came from."""
        try:
            return encode(value, shared=self.shared, reference=_number)
        except Unencodable as error:
            if not self.results:  # so no value of the candidate's is the cause
                self.broken = f"an argument is {error}"
            raise

    def holds(self, line: int, text: str, condition: Callable[[], Any]) -> None:
        """Stands in the place of `assert condition`: notes what came of it and goes on."""
        first, failure, step = len(self.results), "", None
        try:
            if not condition():
                failure = f"does not hold of {', '.join(self.results[first:][:5]) or 'what came before'}"
        except Guess:
            return
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            step = getattr(error, "step", None)
        self.cases.append({"line": line, "text": text, "failure": failure, "step": step})

    def equal(self, left: Any, right: Any, expected: str) -> bool:
        """Stands in the place of `left == right` in an assert: True is not 1.

        `expected` is the side that is not the candidate's, "" where that can't be told.
        """
        for side in (left, right):
            if type(side) is Remote:
                _refuse(side)
        if type(left) not in _PLAIN or type(right) not in _PLAIN:
            return bool(left == right)
        same = expected != "right" and self.equality.equal(left, right)
        return same or (expected != "left" and self.equality.equal(right, left))


class Remote:
    """The candidate's function, class or object, or a value of its that is not known yet.

    Only objects of a class (known by its capital) have attributes and items out here: a method of what a
    function returned would be of the candidate's making, and could say yes to everything.
    """

    __slots__ = ("_origin",)  # every other name is the candidate's

    def __init__(self, origin: Origin) -> None:
        self._origin = origin

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        origin = self._origin
        if origin.kind == "value":
            _refuse(self)
        given = origin.run.encoded([list(args), kwargs])
        return origin.run.ask(origin.target, "call", given, "object" if origin.is_class else "value")

    def __getattr__(self, name: str) -> Any:
        origin = self._origin
        if name.startswith("__"):
            raise AttributeError(name)
        if origin.kind != "object" and not origin.is_class:
            _refuse(self)
        return origin.run.ask(origin.target, "attribute", name, "method")

    def __getitem__(self, key: Any) -> Any:
        origin = self._origin
        if origin.kind != "object":
            _refuse(self)
        return origin.run.ask(origin.target, "item", origin.run.encoded(key))

    def __len__(self) -> int:
        return int(_converted(self, "len"))

    def __iter__(self) -> Any:
        return iter(_converted(self, "list"))

    def __str__(self) -> str:
        return str(_converted(self, "str"))

    def __repr__(self) -> str:
        return str(_converted(self, "repr"))


def _refuse(remote: Remote, *others: object) -> Any:
    """It has no value out here: wait for it, or fail."""
    if remote._origin.known:
        raise RemoteError("the candidate returned something that is no plain value")
    raise Guess


def _converted(remote: Remote, how: str) -> Any:
    """`len(object)`, `str(object)`, …: a plain value that the candidate makes of its object."""
    origin = remote._origin
    if origin.kind != "object":
        _refuse(remote)
    value = origin.run.ask(origin.target, how, None)
    return _refuse(value) if type(value) is Remote else value


def _number(value: Any) -> int | None:
    """The step that a remote object is the result of."""
    target = value._origin.target if type(value) is Remote else None
    return target if isinstance(target, int) else None


_OPERATORS = """
    eq ne lt le gt ge hash bool contains next format int float complex index round trunc abs neg pos invert
    add sub mul truediv floordiv mod divmod pow lshift rshift and or xor matmul
    radd rsub rmul rtruediv rfloordiv rmod rdivmod rpow rlshift rrshift rand ror rxor rmatmul
    enter exit bytes reversed setitem delitem
"""
for _name in _OPERATORS.split():
    setattr(Remote, f"__{_name}__", _refuse)


def _error(record: dict[str, Any], number: int) -> Exception:
    """The exception that a step raised in the candidate, to be raised here."""
    told = record.get("error") or record.get("load_error")
    name, message = (str(told[0]), str(told[1])) if isinstance(told, list) and len(told) == 3 else ("", "no answer")
    kind = getattr(builtins, name, None)
    error: Exception
    try:
        error = kind(message) if isinstance(kind, type) and issubclass(kind, Exception) else RemoteError(message)
    except TypeError:  # it takes other arguments, as UnicodeDecodeError does
        error = RemoteError(f"{name}: {message}")
    error.__dict__["step"] = number
    return error


class _Noting(ast.NodeTransformer):
    """Asserts become notes; a round of a loop that waits for a value does not keep the next one waiting."""

    def __init__(self, of_candidate: Collection[str]) -> None:
        self.of_candidate = of_candidate

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        text = ast.unparse(node)
        test = _Strict(self.of_candidate).visit(node.test)
        condition = ast.Lambda(ast.arguments([], [], None, [], [], None, []), test)
        noted = [ast.Constant(node.lineno), ast.Constant(text), condition]
        return ast.copy_location(ast.Expr(ast.Call(ast.Name("__holds__", ast.Load()), noted, [])), node)

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        waiting = ast.ExceptHandler(ast.Name("__guess__", ast.Load()), None, [ast.Pass()])
        node.body = [ast.Try(node.body, [waiting], [], [])]
        return node


class _Strict(ast.NodeTransformer):
    """`==` becomes the judge's equality."""

    def __init__(self, of_candidate: Collection[str]) -> None:
        self.of_candidate = of_candidate

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        if len(node.ops) != 1 or not isinstance(node.ops[0], ast.Eq | ast.NotEq):
            return self.generic_visit(node)
        expected = ast.Constant(self.expected(node.left, node.comparators[0]))
        self.generic_visit(node)
        call: ast.expr = ast.Call(ast.Name("__equal__", ast.Load()), [node.left, node.comparators[0], expected], [])
        return ast.copy_location(call if isinstance(node.ops[0], ast.Eq) else ast.UnaryOp(ast.Not(), call), node)

    def expected(self, left: ast.expr, right: ast.expr) -> str:
        """The side that has nothing of the candidate's in it: the one without its names, or without any."""
        names = [{part.id for part in ast.walk(side) if isinstance(part, ast.Name)} for side in (left, right)]
        for own in ([not found.isdisjoint(self.of_candidate) for found in names], [bool(found) for found in names]):
            if own[0] != own[1]:
                return "right" if own[0] else "left"
        return ""


def _noting(source: str, name: str, of_candidate: Collection[str]) -> CodeType:
    tree = ast.parse(source)
    parameters = {node.args.args[0].arg for node in tree.body
                  if isinstance(node, ast.FunctionDef) and node.name == "check" and node.args.args}
    noting = _Noting(parameters | set(of_candidate))
    return compile(ast.fix_missing_locations(noting.visit(tree)), name, "exec")


def _run(run: Pass, job: dict[str, Any], names: dict[str, Any]) -> None:
    exec(_noting(job["setup"], "setup.py", ()), names)
    run.shared = {name: names[name] for name in job["shared"] if isinstance(names.get(name), type)}
    for name in job["names"]:
        names[name] = Remote(Origin(run, "name", name, known=True))
    exec(_noting(job["source"], "asserts.py", job["names"]), names)
    if job["calls_check"]:
        names["check"](Remote(Origin(run, "name", job["entry_point"], known=True)))


def main() -> None:
    """Run the asserts once; the outcome goes to the file `outcome`."""
    job = json.loads(sys.stdin.buffer.read())
    run = Pass(job)
    random.seed(0)
    stopped = ""
    names: dict[str, Any] = {"__name__": "asserts", "__holds__": run.holds, "__equal__": run.equal,
                             "__guess__": Guess}
    try:
        _run(run, job, names)
    except Guess:
        pass
    except BaseException as error:
        stopped = f"{type(error).__name__}: {error}"
    outcome = {"steps": run.steps, "guessed": run.guessed, "broken": run.broken, "stopped": stopped, "cases": run.cases}
    with open(OUTCOME, "w") as file:  # noqa: PTH123
        json.dump(outcome, file)


if __name__ == "__main__":
    main()
