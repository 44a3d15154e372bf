"""Expressions over plain values, evaluated outside the sandbox: what the rest of an assert is made of.

No name but those given and a few pure functions, no attribute but of `math`, no comprehension, no call on a value:
whatever a candidate returned, nothing of its own can run here. Comparison is `Equality`'s, so True is not 1.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from turncredit.verifiers.code.equality import Equality

_LARGEST = 1_000_000  # items of a product or a range, and bits of a power


class NotConstant(Exception):
    """The expression has a part that is not for this evaluator."""


def _range(*bounds: int) -> range:
    made = range(*bounds)
    if len(made) > _LARGEST:
        raise ValueError(f"a range of {len(made)}")
    return made


FUNCTIONS: dict[str, Any] = {
    kind.__name__: kind for kind in (abs, all, any, bool, dict, float, frozenset, int, isinstance, len, list,
                                     max, min, round, set, sorted, str, sum, tuple)
} | {"range": _range, "math": math}
_MATH = {"isclose", "fabs", "inf", "nan", "pi", "e", "sqrt", "isnan", "floor", "ceil"}


def evaluate(node: ast.expr, names: Mapping[str, Any], equality: Equality) -> Any:
    """Return the value of an expression.

    Raises:
        NotConstant: it has a name or a construct that is not known here.
        ArithmeticError, TypeError, ValueError, LookupError: as Python would.
    """
    def value(part: ast.expr) -> Any:
        return evaluate(part, names, equality)

    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            if node.id not in names and node.id not in FUNCTIONS:
                raise NotConstant(f"{node.id} is not known")
            return names[node.id] if node.id in names else FUNCTIONS[node.id]
        case ast.List() | ast.Tuple() | ast.Set():
            return {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)](map(value, node.elts))
        case ast.Dict() if None not in node.keys:
            return {value(k): value(v) for k, v in zip(node.keys, node.values) if k is not None}
        case ast.UnaryOp():
            return _UNARY[type(node.op)](value(node.operand))
        case ast.BinOp():
            return _arithmetic(type(node.op), value(node.left), value(node.right))
        case ast.BoolOp():
            return _logic(node, value)
        case ast.IfExp():
            return value(node.body) if value(node.test) else value(node.orelse)
        case ast.Compare():
            return _compare(node, value, equality)
        case ast.Subscript():
            return value(node.value)[_index(node.slice, value)]
        case ast.Attribute(value=ast.Name(id="math")) if node.attr in _MATH:
            return getattr(math, node.attr)
        case ast.Call():
            return _call(node, value)
    raise NotConstant(f"{ast.unparse(node)} is no literal")


def unsupported(node: ast.expr) -> str:
    """What in an expression `evaluate` would refuse, whatever its names stand for; empty where nothing is."""
    for part in ast.walk(node):
        match part:
            case ast.Compare(ops=ops, comparators=others):
                for op, other in zip(ops, others):
                    if isinstance(op, ast.Is | ast.IsNot) and not _is_singleton(other):
                        return "identity with something else than True, False and None"
            case ast.BinOp(left=ast.Constant(value=str() | bytes()), op=ast.Mod()):
                return "formatting"
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
                functions = [a for a in args if isinstance(a, ast.Name) and callable(FUNCTIONS.get(a.id))]
                if name not in FUNCTIONS or any(k.arg in (None, "key") for k in keywords):
                    return f"the call {ast.unparse(part)}"
                if functions and name != "isinstance":
                    return "a function as an argument"
            case ast.Attribute(value=ast.Name(id="math"), attr=attribute) if attribute in _MATH:
                pass
            case ast.Attribute():
                return f"the attribute {part.attr}"
            case _ if type(part) not in _EVALUABLE and not isinstance(part, _PLAIN_OPERATORS):
                return f"a {type(part).__name__}"
    return ""


_EVALUABLE = {ast.Name, ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.UnaryOp, ast.BinOp, ast.BoolOp,
              ast.Compare, ast.Call, ast.keyword, ast.Subscript, ast.Slice, ast.Load, ast.IfExp}
_PLAIN_OPERATORS = (ast.unaryop, ast.operator, ast.boolop, ast.cmpop)


def _is_singleton(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and any(node.value is value for value in (True, False, None))


_UNARY: dict[type, Callable[[Any], Any]] = {
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_, ast.Invert: operator.invert,
}
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_, ast.BitXor: operator.xor,
}
_ORDER: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}


def _arithmetic(kind: type, left: Any, right: Any) -> Any:
    if bool in (type(left), type(right)) or complex in (type(left), type(right)):
        raise TypeError("arithmetic on a bool or a complex number in the place of a number")
    if kind is ast.Mod and isinstance(left, str | bytes):
        raise NotConstant("formatting")
    if kind is ast.Pow and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * right > _LARGEST:
            raise ValueError("a power of more than a million bits")
    elif kind is ast.Mult:
        sizes = [len(x) if isinstance(x, list | tuple | str | bytes) else abs(x) for x in (left, right)]
        if not (isinstance(left, int | float) and isinstance(right, int | float)) and sizes[0] * sizes[1] > _LARGEST:
            raise ValueError("a product of more than a million items")
    if kind not in _BINARY:
        raise NotConstant(f"the operator {kind.__name__}")
    return _BINARY[kind](left, right)


def _logic(node: ast.BoolOp, value: Callable[[ast.expr], Any]) -> Any:
    result: Any = None
    for part in node.values:
        result = value(part)
        if bool(result) is isinstance(node.op, ast.Or):
            break
    return result


def has_value(node: ast.AST) -> bool:
    """Is a value of the candidate's in it? Then the other side of an `==` is the expected one."""
    return any(isinstance(part, ast.Name) and part.id.startswith("value_") for part in ast.walk(node))


def _compare(node: ast.Compare, value: Callable[[ast.expr], Any], equality: Equality) -> bool:
    left, left_node = value(node.left), node.left
    for op, comparator in zip(node.ops, node.comparators):
        right = value(comparator)
        if type(op) in _ORDER:
            holds = bool(_ORDER[type(op)](left, right))
        elif isinstance(op, ast.Is | ast.IsNot):
            if not _is_singleton(comparator):
                raise NotConstant("identity with something else than True, False and None")
            holds = (left is right) is isinstance(op, ast.Is)
        elif isinstance(op, ast.In | ast.NotIn):
            holds = _contains(right, left, equality) is isinstance(op, ast.In)
        else:
            given = has_value(left_node), has_value(comparator)
            same = given != (True, False) and equality.equal(left, right)
            same = same or (given != (False, True) and equality.equal(right, left))
            holds = same is isinstance(op, ast.Eq)
        if not holds:
            return False
        left, left_node = right, comparator
    return True


def _contains(container: Any, item: Any, equality: Equality) -> bool:
    if isinstance(container, str | bytes | range):
        return item in container
    return any(equality.equal(member, item) for member in container)


def _index(node: ast.expr, value: Callable[[ast.expr], Any]) -> Any:
    if isinstance(node, ast.Slice):
        bounds = (node.lower, node.upper, node.step)
        return slice(*(None if bound is None else value(bound) for bound in bounds))
    return value(node)


def _call(node: ast.Call, value: Callable[[ast.expr], Any]) -> Any:
    if not isinstance(node.func, ast.Name | ast.Attribute) or unsupported(node):
        raise NotConstant(unsupported(node) or f"the call {ast.unparse(node)}")
    args = [value(arg) for arg in node.args]
    kwargs = {str(k.arg): value(k.value) for k in node.keywords}
    return value(node.func)(*args, **kwargs)
