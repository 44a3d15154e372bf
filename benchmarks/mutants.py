"""Five ways to break a correct program, as edits of its syntax tree."""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Callable, Iterator

WRONG_TYPE = """
def wrong_type_of(value):
    kinds = {bool: int, int: float, float: str, str: list, list: tuple, tuple: list, set: list,
             dict: lambda pairs: [*pairs.items()]}
    return kinds[type(value)](value) if type(value) in kinds else [value]
"""


def function_of(tree: ast.AST, name: str) -> ast.FunctionDef | None:
    """The last definition of the function under test."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    return found[-1] if found else None


def own_returns(function: ast.FunctionDef) -> list[ast.Return]:
    """Returns of the function itself, not of those defined in it."""
    def walk(node: ast.AST) -> Iterator[ast.Return]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Return) and child.value is not None:
                yield child
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
                yield from walk(child)
    return list(walk(function))


def off_by_one(function: ast.FunctionDef, draw: random.Random) -> bool:
    """One integer of the program becomes one larger or smaller; a program without any adds one to a bound or sum."""
    places: list[Callable[[], None]] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            def change(node: ast.Constant = node) -> None:
                assert type(node.value) is int
                node.value += draw.choice((-1, 1))
            places.append(change)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
            def widen(node: ast.Call = node) -> None:
                bound = min(1, len(node.args) - 1)
                node.args[bound] = ast.BinOp(node.args[bound], draw.choice((ast.Add(), ast.Sub())), ast.Constant(1))
            places.append(widen)
    return _one_of(places, draw)


SWAPS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}


def swapped_comparison(function: ast.FunctionDef, draw: random.Random) -> bool:
    """One comparison is turned round."""
    places: list[Callable[[], None]] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Compare):
            def swap(node: ast.Compare = node) -> None:
                node.ops[0] = SWAPS[type(node.ops[0])]()
            places.append(swap)
    return _one_of(places, draw)


def constant_return(function: ast.FunctionDef, draw: random.Random) -> bool:
    """The function returns the value that it first returned, for whatever it is asked later."""
    if not own_returns(function):
        return False
    inner = copy.deepcopy(function)
    inner.name, inner.decorator_list = "first_time", []
    names = [arg.arg for arg in function.args.args]
    store = ast.parse(f"if not FIRST:\n    FIRST.append(first_time({', '.join(names)}))\nreturn FIRST[0]").body
    function.body = [inner, *store]
    return True


def early_return(function: ast.FunctionDef, draw: random.Random) -> bool:
    """The function returns at the end of its first loop's first round; one without a loop, its first argument."""
    returns = own_returns(function)
    if not returns:
        return False
    loops = [node for node in function.body if isinstance(node, ast.For | ast.While)]
    if loops:
        loops[0].body.append(ast.Return(copy.deepcopy(returns[-1].value)))
        return True
    names = [arg.arg for arg in function.args.args if arg.arg != "self"]
    if not names:
        return False
    function.body.insert(0, ast.Return(ast.Name(names[0], ast.Load())))
    return True


def wrong_type(function: ast.FunctionDef, draw: random.Random) -> bool:
    """The value is right, its type is not: int for bool, float for int, tuple for list, …"""
    returns = own_returns(function)
    for node in returns:
        assert node.value is not None
        node.value = ast.Call(ast.Name("wrong_type_of", ast.Load()), [node.value], [])
    return bool(returns)


MUTATIONS = {"off by one": off_by_one, "swapped comparison": swapped_comparison, "constant return": constant_return,
             "early return": early_return, "wrong type": wrong_type}


def mutant(program: str, function_name: str, mutation: str, seed: str) -> str | None:
    """The program after one mutation of its function, or None where the mutation has no place in it."""
    tree = ast.parse(program)
    function = function_of(tree, function_name)
    if function is None or not MUTATIONS[mutation](function, random.Random(seed)):
        return None
    return f"FIRST = []\n{WRONG_TYPE}\n{ast.unparse(ast.fix_missing_locations(tree))}\n"


def _one_of(places: list[Callable[[], None]], draw: random.Random) -> bool:
    if places:
        draw.choice(places)()
    return bool(places)
