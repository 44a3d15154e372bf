"""Rows of published data sets as tests."""

from __future__ import annotations

import gzip
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from turncredit.verifiers.code import CodeTests, judge_code
from turncredit.verifiers.code.formats import codeforces, humaneval, leetcode, livecodebench, mbpp

ROTATE = {
    "prompt": """
def rotate(s: str) -> str:
    return s[1:] + s[:1]


def back(s: str) -> str:
    '''Undo rotate.'''
""",
    "entry_point": "back",
    "canonical_solution": "    return s[-1:] + s[:-1]\n",
    "test": """
METADATA = {}


def check(candidate):
    import random
    for n in range(5):
        text = ''.join(random.choice('abc') for _ in range(n))
        assert candidate(rotate(text)) == text
""",
}
MIRROR = {"tests": {"functional": """
def check(candidate):
    assert is_same_tree(candidate(root = tree_node([1,2,3,None,4])), tree_node([1,3,2,None,None,4]))
    assert is_same_list(candidate(root = None), list_node([]))


check(Solution().mirror)"""}}
MIRROR_SOLUTION = """
class Solution:
    def mirror(self, root: Optional[TreeNode]) -> Optional[TreeNode]:
        if root:
            root.left, root.right = self.mirror(root.right), self.mirror(root.left)
        return root
"""
MIDDLE = {"tests": {"functional": """
def check(candidate):
    assert candidate(head = list_node([1,2,3])) == 2
    assert candidate(head = list_node([5])) == 5


check(Solution().middle)"""}}
MIDDLE_SOLUTION = """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next


class Solution:
    def middle(self, head):
        values = []
        while head:
            values.append(head.val)
            head = head.next
        return values[len(values) // 2]
"""
PAIRS = {"test_setup_code": "", "test_list": ["assert width(Pair(1, 5)) == 4", "assert width(Pair(2, 2)) == 0"],
         "challenge_test_list": ["assert width(Pair(9, 2)) == -7"]}
PAIRS_SOLUTION = """
class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b


def width(p):
    return p.b - p.a
"""
SUM = {"metadata": json.dumps({"func_name": "total"}),
       "public_test_cases": json.dumps([{"input": '[1, 2]\n"a"', "output": '[3, "a"]', "testtype": "functional"}])}
SUM_SOLUTION = "class Solution:\n    def total(self, xs: List[int], s: str):\n        return sum(xs), s\n"
ECHO = {"metadata": "{}", "public_test_cases": [{"input": "2\n3 4\n", "output": "3 4 \n", "testtype": "stdin"}]}
ECHO_SOLUTION = "input()\nprint(*input().split(), sep='\\n')\n"

GOOD: dict[str, tuple[CodeTests, str, str, str]] = {
    "HumanEval": (humaneval(ROTATE), ROTATE["prompt"] + ROTATE["canonical_solution"], "s[-1:] + s[:-1]", "s"),
    "LeetCode, trees": (leetcode(MIRROR), MIRROR_SOLUTION, "self.mirror(root.left)", "root.left"),
    "LeetCode, lists": (leetcode(MIDDLE), MIDDLE_SOLUTION, "// 2", "// 9"),
    "MBPP": (mbpp(PAIRS), PAIRS_SOLUTION, "p.b - p.a", "abs(p.b - p.a)"),
    "LiveCodeBench, functions": (livecodebench(SUM), SUM_SOLUTION, "sum(xs)", "len(xs)"),
    "LiveCodeBench, programs": (livecodebench(ECHO), ECHO_SOLUTION, "input().split()", "[3]"),
    "Codeforces": (codeforces({"tests": ECHO["public_test_cases"]}), ECHO_SOLUTION, "input().split()", "[3]"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_right_solution_passes_and_a_wrong_one_fails(home: str, name: str) -> None:
    tests, program, right, wrong = GOOD[name]
    report = judge_code(program, tests, home)
    assert report.passed, report
    assert program.count(right) == 1 or name == "HumanEval"
    assert judge_code(program.replace(right, wrong), tests, home).passed is False


def test_what_leetcode_grants_is_there_and_hides_no_built_in_function(home: str) -> None:
    program = """
class Solution:
    def f(self, xs: List[int]) -> Optional[float]:
        heapify(xs)
        assert ascii_lowercase and inf > 0 and gcd(4, 6) == 2 and bisect_left(xs, 9) and cache and accumulate
        assert defaultdict(int)[1] == 0 and Counter(xs)[1] and deque(xs).popleft() == 1
        return pow(3, 4, 5) + datetime.date(2020, 1, 2).day
"""
    source = "def check(candidate):\n    assert candidate(xs = [1, 2]) == 3\n\ncheck(Solution().f)"
    assert judge_code(program, leetcode({"tests": {"functional": source}}), home).passed


DATA = os.environ.get("TURNCREDIT_DATA", "")


def rows(path: str) -> list[dict[str, Any]]:
    text = gzip.decompress((Path(DATA) / path).read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()] if path.endswith(".jsonl.gz") else json.loads(text)


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="TURNCREDIT_DATA names no folder of data sets")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("path", "least"), [
    ("humaneval/HumanEval.jsonl.gz", 164), ("leetcode/train.json.gz", 1757), ("leetcode/test.json.gz", 196),
])
def test_known_good_solutions_pass(path: str, least: int) -> None:
    """benchmarks/judge.py has the figures; this is the bar."""
    if not (Path(DATA) / path).exists():
        pytest.skip(f"{DATA} has no {path}")

    def passes(row: dict[str, Any]) -> bool:
        if "canonical_solution" in row:
            return judge_code(row["prompt"] + row["canonical_solution"], humaneval(row)).passed is True
        return judge_code(row["solutions"], leetcode(row)).passed is True

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(passes, rows(path))) >= least
