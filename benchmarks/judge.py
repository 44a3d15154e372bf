"""What the code judge accepts, what it refuses, and how fast: measured on published benchmarks.

    python benchmarks/judge.py --data FOLDER [--mutate 300] [--home local]

FOLDER (or $TURNCREDIT_DATA) holds humaneval/HumanEval.jsonl.gz and leetcode/{train,test}.json.gz. Known-good
solutions must pass. After each of five mutations they must fail wherever the mutation changes behaviour. That is
asked of a second witness: both programs run in the sandbox without the judge, on the tests' own inputs and on inputs
near them, and what they return is compared as text. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutants import MUTATIONS, mutant

from turncredit.sandboxes.base import Limits, Sandbox
from turncredit.verifiers.code import Asserts, Call, CodeReport, CodeTests, judge_in
from turncredit.verifiers.code.formats import humaneval, leetcode

TEST_S, TOTAL_S = 2.0, 20.0  # of a mutant, many of which loop for ever


@dataclass(frozen=True)
class Problem:
    """A known-good program and its tests."""

    set: str
    name: str
    program: str
    tests: CodeTests
    function: str


def load(folder: Path) -> list[Problem]:
    """Every problem of the data sets that are there."""
    found = []
    for row in rows(folder / "humaneval" / "HumanEval.jsonl.gz"):
        found.append(Problem("humaneval", row["task_id"], row["prompt"] + row["canonical_solution"], humaneval(row),
                             row["entry_point"]))
    for split in ("train", "test"):
        for number, row in enumerate(rows(folder / "leetcode" / f"{split}.json.gz")):
            method = re.search(r"check\(Solution\(\)\.(\w+)\)", row["tests"]["functional"])
            found.append(Problem(f"leetcode {split}", f"{split}/{number}", row["solutions"], leetcode(row),
                                 method[1] if method else ""))
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    """A gzipped file of JSON, or of a JSON object a line."""
    if not path.exists():
        return []
    text = gzip.decompress(path.read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()] if path.name.endswith(".jsonl.gz") else json.loads(text)


async def each(items: Sequence[Any], work: Callable[[Any], Awaitable[Any]], at_once: int = 6) -> list[Any]:
    """The results of `work` on every item, in order."""
    free = asyncio.Semaphore(at_once)

    async def one(item: Any) -> Any:
        async with free:
            return await work(item)
    return await asyncio.gather(*map(one, items))


# The second witness: no part of the judge in it. Asserts become bare expressions, and every call of the candidate
# is written down with its arguments; then it is called again with arguments near those.
WITNESS = r"""
import ast, copy, json, random, sys
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

def near(value, draw):
    if type(value) is bool:
        return not value
    if type(value) is int:
        return value + draw.choice((-2, -1, 1, 2))
    if type(value) is float:
        return value + draw.choice((-1.5, 0.25, 2.0))
    if type(value) is str and value:
        at = draw.randrange(len(value))
        return draw.choice((value[:at] + value[at + 1:], value[:at] + draw.choice(value) + value[at:], value[::-1]))
    if type(value) is list and value:
        at = draw.randrange(len(value))
        return draw.choice((value[:at] + value[at + 1:], value[::-1], value + [value[at]],
                            value[:at] + [near(value[at], draw)] + value[at + 1:]))
    return value

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

exec(job["prelude"] + "\n" + job["program"], names)
tests = ast.fix_missing_locations(Bare().visit(ast.parse(job["source"])))
checks = dict(names)
exec(job["setup"], checks)
checks[job["function"]] = record
tests.body = [n for n in tests.body if not (isinstance(n, ast.Expr) and ast.unparse(n).startswith("check("))]
random.seed(0)
exec(compile(tests, "tests", "exec"), checks)
checks["check"](record)
draw = random.Random(1)
given = calls[:40]
for phase in ("tests", "near"):
    if phase == "near":
        given = [(tuple(near(a, draw) for a in args), {k: near(v, draw) for k, v in kwargs.items()})
                 for args, kwargs in given for _ in range(4)]
    for args, kwargs in given:
        print(phase, (text_of(ask(args, kwargs)) + "\n").splitlines()[0][:2000], flush=True)
"""


async def witness(sandbox: Sandbox, problem: Problem, program: str) -> list[str]:
    """What a program returns: a line a call, first for the tests' inputs, then for others."""
    test = problem.tests.tests[0]
    assert isinstance(test, Asserts)
    entry_point = problem.function if problem.set == "humaneval" else f"Solution().{problem.function}"
    job = {"program": program, "prelude": problem.tests.prelude, "setup": test.setup, "source": test.source,
           "entry_point": entry_point, "function": problem.function}
    limits = Limits(wall_s=TEST_S, cpu_s=TEST_S, output_bytes=1 << 20)
    result = await sandbox.run(WITNESS, stdin=json.dumps(job).encode(), limits=limits)
    return result.stdout.splitlines()


def changes(good: list[str], mutated: list[str]) -> tuple[bool, bool]:
    """Do two programs differ on the tests' inputs, and do they on any input that the good one can deal with?"""
    def differ(phase: str) -> bool:
        a, b = ([line for line in lines if line.startswith(phase)] for lines in (good, mutated))
        return any(x != (b[n] if n < len(b) else "ended") for n, x in enumerate(a)
                   if phase == "tests" or "Error" not in x.split(" ")[1])
    on_tests = differ("tests")
    return on_tests, on_tests or differ("near")


async def known_good(sandbox: Sandbox, problems: list[Problem]) -> dict[str, dict[str, Any]]:
    """How many of the known-good solutions pass, a line a data set."""
    results: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(problem.set for problem in problems):
        chosen = [problem for problem in problems if problem.set == name]
        started = time.perf_counter()
        reports: list[CodeReport] = await each(chosen, lambda p: judge_in(sandbox, p.program, p.tests))
        seconds = time.perf_counter() - started
        results[name] = {"passed": sum(r.passed is True for r in reports), "of": len(chosen),
                         "unknown": sum(r.passed is None for r in reports),
                         "ms_each": round(1000 * seconds / len(chosen), 1)}
        print(f"{name}: {results[name]['passed']} of {len(chosen)} known-good solutions pass ({seconds:.1f} s)")
        for problem, report in zip(chosen, reports):
            if not report.passed:
                case = next((c for c in report.cases if not c.passed), None)
                print(f"  {problem.name}: {report.reason}; {dict(case.private) if case else ''}"[:300])
    return results


async def mutated(sandbox: Sandbox, problems: list[Problem]) -> dict[str, dict[str, Any]]:
    """How many mutants fail among those that behave otherwise, a line a mutation."""
    counts = {name: Counter[str]() for name in MUTATIONS}

    async def one(problem: Problem) -> None:
        tests = CodeTests(problem.tests.tests, problem.tests.entry_point, problem.tests.prelude, problem.tests.shared,
                          test_s=TEST_S, total_s=TOTAL_S)
        good = await witness(sandbox, problem, problem.program)
        for name, count in counts.items():
            program = mutant(problem.program, problem.function, name, problem.name)
            if program is None or not good:
                count["no place"] += 1
                continue
            on_tests, anywhere = changes(good, await witness(sandbox, problem, program))
            report = await judge_in(sandbox, program, tests)
            failed = report.passed is False
            count.update({"mutants": 1, "unknown": report.passed is None, "changed on tests": on_tests,
                          "failed on tests": on_tests and failed, "changed": anywhere, "failed": anywhere and failed,
                          "same": not anywhere, "failed the same": not anywhere and failed})
            if on_tests and not failed:
                print(f"  passes although it returns something else: {problem.name} ({name})")

    await each(problems, one)
    table = {}
    for name, count in counts.items():
        table[name] = dict(count) | {"rate on tests": rate(count["failed on tests"], count["changed on tests"]),
                                     "rate": rate(count["failed"], count["changed"])}
        print(f"{name}: {count['failed on tests']} of {count['changed on tests']} fail that differ on tests' inputs "
              f"({table[name]['rate on tests']}), {count['failed']} of {count['changed']} that differ anywhere "
              f"({table[name]['rate']}); {count['failed the same']} of {count['same']} fail where none differs")
    return table


def rate(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


async def latency(sandbox: Sandbox, rounds: int = 60) -> dict[str, Any]:
    """A judged function of 20 cases against a bare subprocess, in the same rounds."""
    program = "def f(xs, n):\n    return sum(xs) + n\n"
    calls = [Call((list(range(n)), n), expected=sum(range(n)) + n) for n in range(20)]
    source = "\n".join(f"assert f({list(range(n))}, {n}) == {sum(range(n)) + n}" for n in range(20))
    loop = "def wanted(xs, n):\n    return sum(xs) + n\nfor n in range(20):\n" \
           "    assert f(list(range(n)), n) == wanted(list(range(n)), n)"
    suites = {"calls": CodeTests(calls, "f"), "asserts": CodeTests([Asserts(source)], "f"),
              "remote asserts": CodeTests([Asserts(loop)], "f")}
    seconds: dict[str, list[float]] = {name: [] for name in [*suites, "sandbox run", "subprocess"]}
    for _ in range(rounds):
        for name, tests in suites.items():
            started = time.perf_counter()
            report = await judge_in(sandbox, program, tests)
            seconds[name].append(time.perf_counter() - started)
            assert report.passed, report
        started = time.perf_counter()
        await sandbox.run("pass")
        seconds["sandbox run"].append(time.perf_counter() - started)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
        seconds["subprocess"].append(time.perf_counter() - started)
    p50 = {name: sorted(values)[len(values) // 2] * 1000 for name, values in seconds.items()}
    table: dict[str, Any] = {name: {"p50_ms": round(value, 2), "ratio": round(value / p50["subprocess"], 2)}
                             for name, value in p50.items()}
    print("20 cases, p50 (ratio to a bare subprocess): "
          + ", ".join(f"{name} {row['p50_ms']} ms ({row['ratio']})" for name, row in table.items()))
    return table


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("TURNCREDIT_DATA"), help="folder of the data sets")
    parser.add_argument("--mutate", type=int, default=300, help="how many solutions are mutated, drawn by a fixed seed")
    parser.add_argument("--home", default="local")
    given = parser.parse_args()
    problems = load(Path(given.data)) if given.data else []
    async with await Sandbox.open(given.home) as sandbox:
        figures: dict[str, Any] = {"home": given.home, "load": os.getloadavg()[0], "latency": await latency(sandbox)}
        if problems:
            figures["known good"] = await known_good(sandbox, problems)
            drawn = random.Random(0).sample(problems, min(given.mutate, len(problems)))
            figures["mutants"] = await mutated(sandbox, drawn)
        else:
            print("skipped: known-good solutions and mutants (no --data folder with humaneval/ or leetcode/)")
    print(json.dumps(figures))


if __name__ == "__main__":
    asyncio.run(main())
