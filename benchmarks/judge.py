"""What the code judge accepts, what it refuses, and how fast: measured on published benchmarks.

    python benchmarks/judge.py --data FOLDER [--mutate 300] [--home local]

FOLDER (or $TURNCREDIT_DATA) holds humaneval/HumanEval.jsonl.gz and leetcode/{train,test}.json.gz. Known-good
solutions must pass. After each of five mutations they must fail wherever the mutation changes behaviour. That is
asked of a second witness (witness.py): both programs run in the sandbox without the judge, on the tests' own inputs,
on valid ones near them and on any near them, and what they return is compared as text. Each mutant is judged twice: by
the data's own tests, and by these with more made of the known-good solution. The last line is one JSON object.
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
from witness import PHASES, changed, returned

from turncredit.sandboxes.base import Sandbox
from turncredit.verifiers.code import Asserts, Call, CodeReport, CodeTests, judge_in, more_tests
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


async def witness(sandbox: Sandbox, problem: Problem, program: str) -> list[str]:
    """What a program returns, told without the judge: see `returned`."""
    test = problem.tests.tests[0]
    assert isinstance(test, Asserts)
    entry_point = problem.function if problem.set == "humaneval" else f"Solution().{problem.function}"
    job = {"program": program, "prelude": problem.tests.prelude, "setup": test.setup, "source": test.source,
           "entry_point": entry_point, "function": problem.function}
    return await returned(sandbox, job, TEST_S)


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


async def mutated(sandbox: Sandbox, problems: list[Problem], more: int) -> dict[str, dict[str, Any]]:
    """How many mutants fail among those that behave otherwise, a line a mutation."""
    counts = {name: Counter[str]() for name in MUTATIONS}

    async def one(problem: Problem) -> None:
        tests = CodeTests(problem.tests.tests, problem.tests.entry_point, problem.tests.prelude, problem.tests.shared,
                          test_s=TEST_S, total_s=TOTAL_S)
        stronger = await more_tests(sandbox, problem.program, tests, more)
        if not (await judge_in(sandbox, problem.program, stronger)).passed:
            print(f"  fails by more tests, made of itself: {problem.name}")
        good = await witness(sandbox, problem, problem.program)
        for name, count in counts.items():
            program = mutant(problem.program, problem.function, name, problem.name)
            if program is None or not good:
                count["no place"] += 1
                continue
            told = await witness(sandbox, problem, program)
            report = await judge_in(sandbox, program, tests)
            failed = report.passed is False
            failed_by_more = failed or (await judge_in(sandbox, program, stronger)).passed is False
            # the first phase in which it shows: what differs on the tests' inputs is a valid change too
            phase = next((phase for phase in PHASES if changed(good, told, phase)), "never")
            count.update({"mutants": 1, "unknown": report.passed is None, phase: 1, f"{phase}, failed": failed,
                          f"{phase}, failed by more": failed_by_more})
            if phase == "tests" and not failed:
                print(f"  passes although it returns something else: {problem.name} ({name})")

    await each(problems, one)
    return {name: _rates(name, count) for name, count in counts.items()}


def _rates(name: str, count: Counter[str]) -> dict[str, Any]:
    """A mutation's counts, and its rates over the tests' inputs, over other valid ones too, and over all tried."""
    row: dict[str, Any] = dict(count)
    print(f"{name}: where nothing differs {count['never, failed by more']} of {count['never']} fail; where it does,")
    phases = list(PHASES)
    for number, phase in enumerate(phases, 1):
        whole = sum(count[each] for each in phases[:number])
        told = []
        for by in ("failed", "failed by more"):
            part = sum(count[f"{each}, {by}"] for each in phases[:number])
            row[f"rate {phase}, {by}"] = rate(part, whole)
            told.append(f"{part} of {whole} {by} ({rate(part, whole)})")
        print(f"    {PHASES[phase]}: {', '.join(told)}")
    return row


def rate(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


async def latency(sandbox: Sandbox, rounds: int) -> dict[str, Any]:
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
    parser.add_argument("--more", type=int, default=25, help="calls added to a problem's tests, for a second verdict")
    parser.add_argument("--home", default="local")
    parser.add_argument("--rounds", type=int, default=60, help="of the latency's measurement")
    given = parser.parse_args()
    problems = load(Path(given.data)) if given.data else []
    async with await Sandbox.open(given.home) as sandbox:
        figures: dict[str, Any] = {"home": given.home, "load": os.getloadavg()[0]}
        figures["latency"] = await latency(sandbox, given.rounds)
        if problems:
            figures["known good"] = await known_good(sandbox, problems)
            drawn = random.Random(0).sample(problems, min(given.mutate, len(problems)))
            figures["mutants"] = await mutated(sandbox, drawn, given.more)
        else:
            print("skipped: known-good solutions and mutants (no --data folder with humaneval/ or leetcode/)")
    print(json.dumps(figures))


if __name__ == "__main__":
    asyncio.run(main())
