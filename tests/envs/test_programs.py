"""The references of the programming tasks against solutions that were written apart from them, from the statements."""

from __future__ import annotations

import itertools
import string
from collections import Counter, deque
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import pytest

from turncredit.envs.programs import FUNCTIONS, SIMULATIONS, draw_pipeline
from turncredit.envs.programs.pipelines import ENDS, STEPS

P = dict[str, Any]


def pieces(items: list[int]) -> list[list[int]]:
    return [items[i:j] for i in range(len(items)) for j in range(i + 1, len(items) + 1)]


def runs_by_groupby(text: str, k: int) -> str:
    out = ""
    for letter, group in itertools.groupby(text):
        full, rest = divmod(len(list(group)), k)
        out += f"{letter}{k}" * full + (f"{letter}{rest}" if rest else "")
    return out


def digits(number: int, base: int) -> list[int]:
    return [] if number == 0 else [*digits(number // base, base), number % base]


def merged_by_marking(spans: list[list[int]], k: int) -> list[list[int]]:
    """Half units, so that [1, 2] and [3, 4] are not one span unless the gap is bridged."""
    marked = {x for start, end in spans for x in range(2 * start, 2 * end + 1)}
    ends = sorted(spans, key=lambda span: span[1])
    for (_, end), (start, _) in itertools.product(ends, spans):
        if 0 <= start - end <= k:
            marked |= set(range(2 * end, 2 * start + 1))
    out: list[list[int]] = []
    for x in sorted(marked):
        if out and x - out[-1][1] == 1:
            out[-1][1] = x
        else:
            out.append([x, x])
    return [[a // 2, b // 2] for a, b in out]


def cheapest(costs: list[int], k: int, at: int = -1) -> int:
    if at == len(costs):
        return 0
    moves = range(at + 1, min(at + k, len(costs)) + 1)
    return min((costs[to] if to < len(costs) else 0) + cheapest(costs, k, to) for to in moves)


def shortest_by_relaxing(grid: list[str], moves: str) -> int:
    cells = {(r, c) for r, row in enumerate(grid) for c, x in enumerate(row) if x == "."}
    far = 10**6
    best = dict.fromkeys(cells, far) | ({(0, 0): 0} if (0, 0) in cells else {})
    steps = [(0, 1), (1, 0)] + ([] if moves == "right or down" else [(0, -1), (-1, 0)])
    for _ in range(40):
        for (r, c), (dr, dc) in itertools.product(cells, steps):
            if (r + dr, c + dc) in cells:
                best[r + dr, c + dc] = min(best[r + dr, c + dc], best[r, c] + 1)
    found = best.get((len(grid) - 1, len(grid[0]) - 1), far)
    return -1 if found >= far else found


def best_subset(items: list[int], k: int) -> int:
    chosen = (c for n in range(len(items) + 1) for c in itertools.combinations(range(len(items)), n))
    return max(sum(items[i] for i in c) for c in chosen if all(b - a >= k for a, b in itertools.pairwise(c)))


def longest_chain(items: list[int], k: int, last: int | None = None) -> int:
    if not items:
        return 0
    without = longest_chain(items[1:], k, last)
    if last is not None and items[0] - last < k:
        return without
    return max(without, 1 + longest_chain(items[1:], k, items[0]))


FUNCTION_ORACLES: dict[str, Callable[..., Any]] = {
    "count_in_band": lambda p, xs: len([x for x in xs if not (x < p["low"] or x > p["high"])]),
    "sum_of_multiples": lambda p, xs: sum(x if divmod(x, p["k"])[1] == 0 else 0 for x in xs),
    "every_nth": lambda p, xs: [x for i, x in enumerate(xs) if i >= p["start"] and (i - p["start"]) % p["k"] == 0],
    "scale_and_shift": lambda p, xs: np.add(np.multiply(xs, p["a"]), p["b"]).astype(int).tolist(),
    "repeat_letters": lambda p, text: "".join(itertools.chain(*zip(*[text] * p["k"]))),
    "count_letters": lambda p, text: sum(map(text.count, set(p["letters"]))),
    "clamp_all": lambda p, xs: np.clip(np.array(xs, int), p["low"], p["high"]).tolist(),
    "long_words": lambda p, words: list(filter(lambda w: w[p["k"] - 1:], words)),
    "digit_sum_in_base": lambda p, n: sum(digits(n, p["base"])),
    "longest_run": lambda p, xs: max((len(s) for s in pieces(xs) if all(
        x > p["k"] if p["sign"] == ">" else x < p["k"] for x in s)), default=0),
    "shift_letters": lambda p, text: text.translate(str.maketrans(
        string.ascii_lowercase, string.ascii_lowercase[p["k"]:] + string.ascii_lowercase[:p["k"]])),
    "chunk_sums": lambda p, xs: [sum(x for i, x in enumerate(xs) if i // p["k"] == n)
                                 for n in range(-(-len(xs) // p["k"]))],
    "values_seen_often": lambda p, xs: sorted(x for x, n in Counter(xs).items() if n >= p["k"]),
    "sort_words": lambda p, words: sorted(sorted(words), key=lambda w: len(w.split(p["letter"]))),
    "smallest_gap": lambda p, xs: min((abs(xs[i] - xs[j]) for i in range(len(xs)) for j in range(i)
                                       if i - j == p["k"]), default=-1),
    "run_lengths": lambda p, text: runs_by_groupby(text, p["k"]),
    "count_subarrays": lambda p, xs: sum(sum(s) % p["k"] == 0 for s in pieces(xs)),
    "cheapest_stairs": lambda p, costs: cheapest(costs, p["k"]),
    "merge_near": lambda p, spans: merged_by_marking(spans, p["k"]),
    "increasing_subsequence": lambda p, xs: longest_chain(xs, p["k"]),
    "window_peaks": lambda p, xs: [int(np.ptp(s)) for i, s in enumerate(zip(*(xs[n:] for n in range(p["k"]))))],
    "change_ways": lambda p, amount: sum((amount - a * p["c"] - b * p["b"]) % p["a"] == 0
                                         for a in range(amount // p["c"] + 1)
                                         for b in range((amount - a * p["c"]) // p["b"] + 1)),
    "grid_paths": lambda p, grid: shortest_by_relaxing(grid, p["moves"]),
    "best_selection": lambda p, xs: best_subset(xs, p["k"]),
}


def stack(p: P, text: str) -> str:
    def perform(state: tuple[int, ...], line: str) -> tuple[int, ...]:
        if line.startswith("push"):
            return (*state, int(line[5:]))
        return state[:-1] + ((state[-1] * p["k"],) if line == "double" and state else ())

    return str(sum(reduce(perform, text.splitlines(), ())))


def ledger(p: P, text: str) -> str:
    lines = [line.split() for line in text.splitlines()]
    out = []
    for name in sorted({line[0] for line in lines}):
        balance = 0
        for change in (int(line[1]) for line in lines if line[0] == name):
            balance += change if balance + change >= -p["limit"] else 0
        out.append(f"{name} {balance}")
    return "\n".join(out)


def cells(p: P, text: str) -> str:
    row, generations = text.splitlines()
    alive = np.array([x == "#" for x in row], int)
    for _ in range(int(generations)):
        alive = np.isin(np.convolve(alive, [1, 1, 1], "same"), [p["low"], p["high"]]).astype(int)
    return "".join(".#"[x] for x in alive)


def scheduler(p: P, text: str) -> str:
    queue, clock = deque(enumerate(map(int, text.split()))), 0
    done = {}
    while queue:
        task, left = queue.popleft()
        for _ in range(p["k"]):
            clock, left = clock + 1, left - 1
            if left == 0:
                done[task] = clock
                break
        else:
            queue.append((task, left))
    return " ".join(str(done[task]) for task in sorted(done))


def machine(p: P, text: str) -> str:
    program = dict(enumerate(text.splitlines(), 1))
    line, register = 1, 0
    for _ in range(p["limit"]):
        if line not in program:
            break
        name, first, *second = program[line].split()
        if name == "jmp":
            line = int(first) if register < int(*second) else line + 1
        else:
            register = (register + int(first) if name == "add" else register * int(first)) % p["modulus"]
            line += 1
    return str(register)


def elevator(p: P, text: str) -> str:
    floor, *rest = text.split()
    at, seconds = int(floor), 0
    left = {i: (int(rest[i]), int(rest[i + 1])) for i in range(0, len(rest), 2)}
    while left:
        _, start, i = min((abs(start - at), start, i) for i, (start, _) in left.items())
        end = left.pop(i)[1]
        seconds += p["stop"] + p["stop"] + abs(start - at) * p["k"] + abs(end - start) * p["k"]
        at = end
    return f"{seconds} {at}"


def meter(p: P, text: str) -> str:
    return str(reduce(lambda now, change: (now + change) * (now + change > 0), map(int, text.split()), p["start"]))


def walk(p: P, text: str) -> str:
    moves = {"U": p["k"] * 1j, "D": -p["k"] * 1j, "R": 1, "L": -1}
    place = sum((moves[letter] for letter in text.strip()), 0j)
    return f"{int(place.real)} {int(place.imag)}"


PROGRAM_ORACLES = {oracle.__name__: oracle for oracle in
                   (walk, meter, stack, ledger, cells, scheduler, machine, elevator)}
ORACLES = FUNCTION_ORACLES | PROGRAM_ORACLES


@pytest.mark.parametrize("template", [*FUNCTIONS, *SIMULATIONS], ids=lambda t: t.name)
def test_a_reference_does_what_its_statement_says(template: Any) -> None:
    rng = np.random.default_rng(0)
    for _ in range(12):
        problem = template.draw(rng)
        cases = problem.cases(rng, 15)
        assert cases, problem
        for args, expected in cases:
            assert ORACLES[template.name](problem.parameters, *args) == expected, (problem.parameters, args)


def drop(k: int, xs: list[int]) -> list[int]:
    return [x for x in xs if x // k * k != x]


STEP_ORACLES: dict[str, Callable[[int, list[int]], list[int]]] = {
    "drop": drop,
    "keep": lambda k, xs: [x for x in xs if not x < k],
    "scale": lambda k, xs: [sum([x] * k) for x in xs],
    "remainder": lambda k, xs: [pow(x, 2, k) for x in xs],
    "rotate": lambda k, xs: [x for i, x in enumerate(xs) if i >= k] + [x for i, x in enumerate(xs) if i < k],
    "thin": lambda k, xs: [x for i, x in enumerate(xs) if i % k == 0],
    "differences": lambda k, xs: np.diff(np.array(xs, int)).tolist(),
    "running": lambda k, xs: list(itertools.accumulate(xs)),
    "reverse": lambda k, xs: list(reversed(xs)),
    "weigh": lambda k, xs: np.multiply(np.array(xs, int), range(len(xs))).tolist(),
    "unique": lambda k, xs: [x for i, x in enumerate(xs) if x not in xs[:i]],
    "sort": lambda k, xs: np.sort(np.array(xs, int)).tolist(),
}
END_ORACLES: dict[str, Callable[[int, list[int]], int]] = {
    "sum": lambda k, xs: int(np.sum(np.array(xs, int))),
    "count": lambda k, xs: len([x for x in xs if not x <= k]),
    "largest": lambda k, xs: sorted(xs)[-1] if xs else 0,
    "alternating": lambda k, xs: sum(x * (-1) ** i for i, x in enumerate(xs)),
    "last": lambda k, xs: [0, *xs][-1] if xs else 0,
    "ascents": lambda k, xs: sum(xs[i] > xs[i - 1] for i in range(1, len(xs))),
}


def test_a_composition_does_its_steps_in_order() -> None:
    assert set(STEP_ORACLES) == set(STEPS)
    assert set(END_ORACLES) == set(ENDS)
    rng = np.random.default_rng(1)
    met: set[str] = set()
    for _ in range(120):
        problem = draw_pipeline(rng, "train")
        *steps, end = problem.parameters["steps"]
        told = problem.statement.splitlines()[1:]
        ks = [int(next(iter(filter(str.isdigit, line[2:])), "0")) for line in told]
        met |= {*steps, end}
        for (items,), expected in problem.cases(rng, 10) or []:
            for name, k in zip(steps, ks):
                items = STEP_ORACLES[name](k, items)
            assert END_ORACLES[end](ks[-1], items) == expected, problem
    assert met == set(STEPS) | set(ENDS)
