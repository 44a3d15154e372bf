"""The second witness of benchmarks/judge.py: what a program returns, told without any part of the judge.

Asserts become bare expressions, and every call of the candidate is written down with its arguments; then it is
called again with arguments near those: first with valid ones, as turncredit/verifiers/code/near.py understands it, then
with any.
"""

from __future__ import annotations

import json
from pathlib import Path

from turncredit.sandboxes.base import Limits, Sandbox
from turncredit.verifiers.code import near

PHASES = {"tests": "on the tests' inputs", "valid": "there or on valid ones near them", "near": "on any tried"}

SOURCE = Path(near.__file__).read_text() + r"""
import ast, copy, itertools, json, random, sys
job = json.loads(sys.stdin.read())

def text_of(value, depth=0):
    kind = type(value)
    if depth > 60:
        return "deep"
    if kind in (list, tuple):
        return kind.__name__ + "[" + ",".join(text_of(item, depth + 1) for item in value) + "]"
    if kind in (set, frozenset):
        return kind.__name__ + "{" + ",".join(sorted(text_of(item, depth + 1) for item in value)) + "}"
    if kind is dict:
        pairs = sorted(text_of(k, depth + 1) + ":" + text_of(v, depth + 1) for k, v in value.items())
        return "dict{" + ",".join(pairs) + "}"
    if kind.__name__ in ("ListNode", "TreeNode"):
        return kind.__name__ + text_of(vars(value), depth + 1)
    return kind.__name__ + " " + repr(value)

class Bare(ast.NodeTransformer):
    def visit_Assert(self, node):
        nothing = ast.ExceptHandler(ast.Name("Exception", ast.Load()), None, [ast.Pass()])
        return ast.Try([ast.Expr(node.test)], [nothing], [], [])

names, calls = {"__name__": "candidate"}, []
def record(*args, **kwargs):
    calls.append(copy.deepcopy((args, kwargs)))
    result = ask(args, kwargs)
    if isinstance(result, Exception):
        raise result
    return result

def ask(args, kwargs):
    try:
        return eval(job["entry_point"], names)(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    except Exception as error:
        return error

def tell(phase, args, kwargs):
    print(phase, (text_of(ask(args, kwargs)) + "\n").splitlines()[0][:2000], flush=True)

exec(job["prelude"] + "\n" + job["program"], names)
tests = ast.fix_missing_locations(Bare().visit(ast.parse(job["source"])))
checks = dict(names)
exec(job["setup"], checks)
checks[job["function"]] = record
tests.body = [n for n in tests.body if not (isinstance(n, ast.Expr) and ast.unparse(n).startswith("check("))]
random.seed(0)
exec(compile(tests, "tests", "exec"), checks)
checks["check"](record)
given, draw = calls[:40], random.Random(1)
for args, kwargs in given:
    tell("tests", args, kwargs)
for args, kwargs in itertools.islice(valid_near(calls, draw, 40 * len(given)), 160):
    tell("valid", args, kwargs)
for args, kwargs in given * 4:
    tell("near", tuple(near(a, draw) for a in args), {k: near(v, draw) for k, v in kwargs.items()})
"""


async def returned(sandbox: Sandbox, job: dict[str, str], seconds: float) -> list[str]:
    """What a program returns: a line a call, its phase in front, for the tests' inputs and others near them.

    Args:
        job: program, prelude, setup and source of the tests, function, and the expression that is called.
        seconds: of CPU time.
    """
    limits = Limits(wall_s=4 * seconds, cpu_s=seconds, output_bytes=1 << 21)
    result = await sandbox.run(SOURCE, stdin=json.dumps(job).encode(), limits=limits)
    return result.stdout.splitlines()


def changed(good: list[str], mutated: list[str], phase: str) -> bool:
    """Do two programs differ on the inputs of a phase (but for the tests' own, on those the good one can deal with)?"""
    a, b = ([line for line in lines if line.startswith(phase)] for lines in (good, mutated))
    return any(x != (b[n] if n < len(b) else "ended") for n, x in enumerate(a)
               if phase == "tests" or "Error" not in x.split(" ")[1])
