"""Given asserts turned into calls: the calls go into the sandbox, the comparison stays outside.

`assert candidate(3) == 9` becomes the call `candidate(3)` and the question whether its value is 9. That works
where every argument is known beforehand and the rest of the assert is arithmetic on values and literals, also in
loops over known data. Every other source is for `remote.py`.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from turncredit.verifiers.code.equality import Equality, shown
from turncredit.verifiers.code.expressions import FUNCTIONS, NotConstant, evaluate, has_value, unsupported
from turncredit.verifiers.code.wire import Unencodable, encode

Step = dict[str, Any]  # {"on": expression or number of an earlier step, "do": what, "with": its tokens}
_MOST_CHECKS = 100_000


class NotConvertible(Exception):
    """The asserts do not have the shape of calls and comparisons."""


@dataclass(frozen=True, slots=True)
class Check:
    """Some steps for the candidate, and what must hold of their values."""

    text: str
    steps: Sequence[Step]
    condition: ast.expr  # over the names of `known` and `value_0`, `value_1`, … of the steps
    known: dict[str, Any]

    def difference(self, values: Sequence[Any], equality: Equality) -> str | None:
        """Why it does not hold of the steps' values, or None where it does.

        Raises nothing that a value could cause: what the condition cannot be computed of fails it.
        """
        names = self.known | {f"value_{number}": value for number, value in enumerate(values)}
        condition = self.condition
        try:
            if isinstance(condition, ast.Compare) and [type(op) for op in condition.ops] == [ast.Eq]:
                # the side without a value of the candidate's is the expected one
                sides = sorted((condition.left, condition.comparators[0]), key=has_value)
                expected, actual = (evaluate(side, names, equality) for side in sides)
                return equality.difference(expected, actual)
            if evaluate(condition, names, equality):
                return None
        except Exception as error:  # of the value's making: the names and the shape were checked before
            return f"{type(error).__name__}: {error}"
        return f"does not hold of {', '.join(shown(value) for value in values)}"


def call_step(entry_point: str, args: Sequence[Any], kwargs: Any) -> Step:
    """The step that calls a function of the candidate's."""
    return {"on": entry_point, "do": "call", "with": encode([list(args), dict(kwargs)])}


@lru_cache(maxsize=512)  # a group of candidates has the same tests
def convert(source: str, entry_point: str, setup: str = "") -> tuple[Check, ...]:
    """Return the checks that a test source consists of.

    Raises:
        NotConvertible: it has another shape.
        SyntaxError: it is no Python.
    """
    reader = _Reader(entry_point, defined(ast.parse(setup)) - {entry_point})
    tree = ast.parse(source)
    checks = tuple(reader.module(tree))
    if not checks:
        raise NotConvertible("no assert")
    return checks


def defined(tree: ast.AST) -> set[str]:
    """Names that a source binds at any depth: more than its globals, which errs on the safe side."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
    return names


class _Reader:
    """Walks a test source as Python would, as long as everything is known."""

    def __init__(self, entry_point: str, trusted: set[str]) -> None:
        self.entry_point = entry_point
        self.trusted = trusted  # names of the setup: never the candidate's
        self.known: dict[str, Any] = {}
        self.aliases: dict[str, str] = {}  # the parameter of `check` -> the candidate's expression
        self.count = 0

    def module(self, tree: ast.Module) -> Iterator[Check]:
        check = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "check"), None)
        called = False
        for statement in tree.body:
            if statement is check:
                continue
            match statement:
                case ast.Expr(value=ast.Call(func=ast.Name(id="check"), args=[target], keywords=[])) if check:
                    called = True
                    if not self.is_candidates(target):
                        raise NotConvertible(f"line {statement.lineno} checks {ast.unparse(target)}")
                    yield from self.check_function(check, ast.unparse(target))
                case _:
                    yield from self.statement(statement)
        if check and not called:
            yield from self.check_function(check, self.entry_point)

    def check_function(self, check: ast.FunctionDef, target: str) -> Iterator[Check]:
        """The body of `check(candidate)`, where the parameter stands for the candidate's function."""
        if len(check.args.args) != 1 or check.args.defaults or check.decorator_list or not target:
            raise NotConvertible("check has another signature")
        outer = dict(self.known), dict(self.aliases)
        self.aliases[check.args.args[0].arg] = target
        for statement in check.body:
            yield from self.statement(statement)
        self.known, self.aliases = outer

    def statement(self, node: ast.stmt) -> Iterator[Check]:
        match node:
            case ast.Assert():
                check = self.check(node)
                if check.steps or check.difference((), Equality()):  # `assert True` is no test
                    yield check
            case ast.Assign(targets=[target]):
                self.bind(target, self.constant(node.value))
            case ast.For(orelse=[]):
                for item in self.constant(node.iter):
                    self.bind(node.target, item)
                    for statement in node.body:
                        yield from self.statement(statement)
            case ast.Import() | ast.ImportFrom():
                self.trusted |= defined(node)  # used, it makes the source not convertible
            case ast.Pass() | ast.Expr(value=ast.Constant() | ast.Name()):
                pass
            case _:
                raise NotConvertible(f"line {node.lineno} is {type(node).__name__}")

    def bind(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.known[target.id] = value
            return
        parts = list(value) if isinstance(value, list | tuple | str) else None
        if not isinstance(target, ast.Tuple) or parts is None or len(parts) != len(target.elts):
            raise NotConvertible(f"line {target.lineno} binds a {type(target).__name__}")
        for part, item in zip(target.elts, parts):
            self.bind(part, item)

    def constant(self, node: ast.expr) -> Any:
        """The value of an expression that has no part of the candidate's in it."""
        try:
            return evaluate(node, self.known, Equality())
        except (NotConstant, ArithmeticError, TypeError, ValueError, LookupError) as error:
            raise NotConvertible(f"line {node.lineno}: {error}") from None

    def check(self, node: ast.Assert) -> Check:
        self.count += 1
        if self.count > _MOST_CHECKS:
            raise NotConvertible(f"more than {_MOST_CHECKS} asserts")
        steps: list[Step] = []
        condition = _Outside(self, steps).visit(ast.parse(ast.unparse(node.test), mode="eval").body)
        values = {f"value_{number}" for number in range(len(steps))}
        for part in ast.walk(condition):
            if isinstance(part, ast.Name) and part.id not in values and not self.is_ours(part.id):
                raise NotConvertible(f"line {node.lineno} uses {part.id}")
        if reason := unsupported(condition):
            raise NotConvertible(f"line {node.lineno} has {reason}")
        return Check(ast.unparse(node), steps, condition, dict(self.known))

    def is_ours(self, name: str) -> bool:
        """Has the name a value out here? An import or a definition hides the pure function of the same name."""
        return name in self.known or (name in FUNCTIONS and (name == "math" or name not in self.trusted))

    def is_candidates(self, node: ast.expr) -> bool:
        """Is this expression (`f`, `candidate`, `Solution().f`) a function of the candidate's?

        `f(x).isdigit` is none: a method of a value that the candidate returned would be of its own making, so
        the value comes out first. Objects are taken as such from classes alone, known by their capital.
        """
        match node:
            case ast.Name():
                return self.of_candidate(node.id)
            case ast.Attribute(value=ast.Call(func=ast.Name() as made, args=args, keywords=[])):
                literal = all(isinstance(arg, ast.Constant) for arg in args)
                return literal and made.id[0].isupper() and self.of_candidate(made.id)
            case ast.Attribute(value=ast.Name() as owner):
                return self.of_candidate(owner.id)
        return False

    def of_candidate(self, name: str) -> bool:
        """With an entry point, other names of the candidate's are classes: a forgotten function of the setup's must
        not be looked for in the candidate, which would be asked whether it is right."""
        if name in self.aliases or name == self.entry_point:
            return True
        if (self.entry_point or self.aliases) and not name[0].isupper():
            return False
        return not (name in self.known or name in self.trusted or hasattr(builtins, name) or name in FUNCTIONS)


class _Outside(ast.NodeTransformer):
    """Replaces each of the candidate's calls by the name of its value, and notes the step that makes it."""

    def __init__(self, reader: _Reader, steps: list[Step]) -> None:
        self.reader = reader
        self.steps = steps

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if not self.reader.is_candidates(node.func):
            return self.generic_visit(node)
        self.steps.append(self.step(node))
        return ast.Name(f"value_{len(self.steps) - 1}", ast.Load())

    def step(self, node: ast.Call) -> Step:
        reader = self.reader
        function = _Inside(reader).source(node.func)
        try:
            args = [evaluate(arg, reader.known, Equality()) for arg in node.args]
            kwargs = {str(k.arg): evaluate(k.value, reader.known, Equality()) for k in node.keywords if k.arg}
            if len(kwargs) == len(node.keywords):
                return call_step(function, args, kwargs)
        except NotConstant:
            pass  # an argument that the candidate's own classes make: the whole call is an expression inside
        except (ArithmeticError, TypeError, ValueError, LookupError, Unencodable) as error:
            raise NotConvertible(f"line {node.lineno}: {error}") from None
        return {"on": _Inside(reader).source(node), "do": "value", "with": None}


class _Inside(ast.NodeTransformer):
    """Writes an expression for the sandbox: the candidate's names stay, known names become literals."""

    def __init__(self, reader: _Reader) -> None:
        self.reader = reader

    def source(self, node: ast.expr) -> str:
        copy = ast.parse(ast.unparse(node), mode="eval").body
        return ast.unparse(self.visit(copy))

    def visit_Name(self, node: ast.Name) -> ast.AST:
        reader = self.reader
        if node.id in reader.aliases:
            return ast.parse(reader.aliases[node.id], mode="eval").body
        if node.id in reader.known:
            return ast.parse(repr(reader.known[node.id]), mode="eval").body
        if reader.of_candidate(node.id) or node.id in FUNCTIONS:
            return node
        raise NotConvertible(f"line {node.lineno} gives {node.id} to the candidate")
