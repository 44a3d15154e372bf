"""Rows of published data sets as `CodeTests`. The texts stay where they are: a row comes in, tests go out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from turncredit.verifiers.code.cases import Asserts, Call, CodeTests, Program
from turncredit.verifiers.code.checkers import tokens
from turncredit.verifiers.code.equality import Equality

Row = Mapping[str, Any]

# What LeetCode grants to every solution; the built-in functions last, since math and operator have their own `pow`.
LEETCODE_IMPORTS = """\
import bisect, collections, copy, datetime, functools, heapq, itertools, json, math, operator, random, re, string, sys
from bisect import *
from collections import *
from copy import *
from functools import *
from heapq import *
from itertools import *
from math import *
from operator import *
from random import *
from string import *
from typing import *
from builtins import *
"""

# What its tests of linked lists and trees need, on both sides of the wall.
LEETCODE_NODES = """\
class ListNode:
    def __init__(self, val=0, next=None):
        self.val = val
        self.next = next


class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val = val
        self.left = left
        self.right = right


def list_node(values):
    first = None
    for value in reversed(values):
        first = ListNode(value, first)
    return first


def is_same_list(first, second):
    while first is not None and second is not None:
        if type(first.val) is not type(second.val) or first.val != second.val:
            return False
        first, second = first.next, second.next
    return first is None and second is None


def tree_node(values):
    nodes = [None if value is None else TreeNode(value) for value in values]
    children = iter(nodes[1:])
    for node in nodes:
        if node is not None:
            node.left = next(children, None)
            node.right = next(children, None)
    return nodes[0] if nodes else None


def is_same_tree(first, second):
    todo = [(first, second)]
    while todo:
        a, b = todo.pop()
        if a is None and b is None:
            continue
        if a is None or b is None or type(a.val) is not type(b.val) or a.val != b.val:
            return False
        todo += [(a.left, b.left), (a.right, b.right)]
    return True
"""


def humaneval(row: Row, **settings: Any) -> CodeTests:
    """HumanEval: `prompt`, `entry_point`, `test` (a function `check`). The prompt's other functions are trusted."""
    test = Asserts(row["test"], setup=row["prompt"])
    return CodeTests([test], entry_point=row["entry_point"], **settings)


def mbpp(row: Row, **settings: Any) -> CodeTests:
    """MBPP: `test_list`, each an assert that names the function, and `test_setup_code` where there is one."""
    setup = str(row.get("test_setup_code") or "")
    asserts = [*row["test_list"], *row.get("challenge_test_list", ())]
    return CodeTests([Asserts(text, setup) for text in asserts], **settings)


def leetcode(row: Row, **settings: Any) -> CodeTests:
    """LeetCode with asserts: `tests["functional"]` defines `check` and calls it with `Solution().method`."""
    test = Asserts(row["tests"]["functional"], setup=LEETCODE_NODES)
    return CodeTests([test], prelude=LEETCODE_IMPORTS + LEETCODE_NODES, shared=("ListNode", "TreeNode"), **settings)


def livecodebench(row: Row, tests: str = "public_test_cases", hidden: bool = True, **settings: Any) -> CodeTests:
    """LiveCodeBench: tests of `stdin` programs, or of a method whose arguments stand one a line, as JSON."""
    metadata = row.get("metadata") or "{}"
    method = (json.loads(metadata) if isinstance(metadata, str) else metadata).get("func_name")
    given = json.loads(row[tests]) if isinstance(row[tests], str) else row[tests]
    if not method:
        programs = [Program(t["input"], t["output"], tokens, hidden) for t in given]
        return CodeTests(programs, **settings)
    calls = [Call([json.loads(line) for line in t["input"].splitlines() if line.strip()],
                  expected=json.loads(t["output"]), hidden=hidden) for t in given]
    settings.setdefault("equality", Equality(tuple_for_list=True))  # JSON has no tuples
    return CodeTests(calls, entry_point=f"Solution().{method}", prelude=LEETCODE_IMPORTS, **settings)


def codeforces(row: Row, hidden: bool = True, **settings: Any) -> CodeTests:
    """Codeforces and CodeContests: `tests`, each with `input` and `output`, compared word by word."""
    return CodeTests([Program(t["input"], t["output"], tokens, hidden) for t in row["tests"]], **settings)
