"""The second witness of benchmarks/judge.py: what a program returns, told without any part of the judge.

Asserts become bare expressions, and every call of the candidate is written down with its arguments; then it is
called again with arguments near those. A problem's own rules for its inputs are in prose, so a near input counts as
valid where it keeps all that the inputs of the problem's tests have in common: types, the range of every number and
length, letters, order and distinctness of lists, and how numbers and lengths of one call compare (`k <= len(nums)`,
`len(edges) == n - 1`).
"""

from __future__ import annotations

import json

from turncredit.sandboxes.base import Limits, Sandbox

PHASES = ("tests", "valid", "near")

SOURCE = r"""
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

class Common:
    # What the inputs of all tests have in common; `learn` each of them, then ask whether another `keeps` it.
    def __init__(self):
        self.numbers, self.letters, self.kinds, self.holds, self.calls = {}, {}, {}, None, 0

    def look(self, value, path, found):
        kind = type(value)
        found["kinds"].setdefault(path, set()).add(kind)
        if kind in (int, float):
            found["numbers"].setdefault(path, []).append(value)
        elif kind is str:
            found["numbers"].setdefault(path + ".len", []).append(len(value))
            found["letters"].setdefault(path, set()).update(value)
        elif kind in (list, tuple, set, frozenset, dict):
            found["numbers"].setdefault(path + ".len", []).append(len(value))
            items = list(value.items()) if kind is dict else list(value)
            for name, test in FLAGS.items():
                if not test(items):
                    found["broken"].add((path, name))
            for number, item in enumerate(items):
                # a short tuple or list of fixed places (a point, an edge) is looked at place by place
                self.look(item, f"{path}[{number}]" if kind is tuple else path + "[]", found)
        elif kind.__name__ in ("ListNode", "TreeNode"):
            self.look(list(vars(value).values()), path + "{}", found)

    def of(self, args, kwargs):
        found = {"kinds": {}, "numbers": {}, "letters": {}, "broken": set(), "compared": set()}
        for name, value in [*enumerate(args), *kwargs.items()]:
            self.look(value, str(name), found)
        ends = {}
        for path, values in found["numbers"].items():
            ends[path + " min"] = min(values)
            ends[path + " max"] = max(values)
        for (a, x), (b, y) in itertools.permutations(sorted(ends.items()), 2):
            if x <= y: found["compared"].add((a, "<=", b))
            if x < y: found["compared"].add((a, "<", b))
            if -2 <= x - y <= 2: found["compared"].add((a, x - y, b))
        return found

    def learn(self, args, kwargs):
        found = self.of(args, kwargs)
        self.calls += 1
        for path, kinds in found["kinds"].items():
            self.kinds.setdefault(path, set()).update(kinds)
        for path, values in found["numbers"].items():
            low, high = self.numbers.get(path, (min(values), max(values)))
            self.numbers[path] = min(low, *values), max(high, *values)
        for path, letters in found["letters"].items():
            self.letters.setdefault(path, set()).update(letters)
        if self.holds is None:
            self.holds, self.broken = found["compared"], found["broken"]
        else:
            self.holds &= found["compared"]
            self.broken |= found["broken"]

    def keeps(self, args, kwargs):
        found = self.of(args, kwargs)
        return (all(kinds <= self.kinds.get(path, set()) for path, kinds in found["kinds"].items())
                and all(self.numbers[path][0] <= min(values) and max(values) <= self.numbers[path][1]
                        for path, values in found["numbers"].items())
                and all(letters <= self.letters[path] for path, letters in found["letters"].items())
                and found["broken"] <= self.broken and self.holds <= found["compared"])

def compares(relation):
    def test(items):
        try:
            return all(relation(a, b) for a, b in zip(items, items[1:]))
        except TypeError:
            return False
    return test

FLAGS = {
    "rises": compares(lambda a, b: a < b), "never falls": compares(lambda a, b: a <= b),
    "drops": compares(lambda a, b: a > b), "never rises": compares(lambda a, b: a >= b),
    "distinct": lambda items: len(set(map(repr, items))) == len(items),
    "equally long": lambda items: len({len(i) if hasattr(i, "__len__") else -1 for i in items}) < 2,
    "a permutation": lambda items: sorted(map(repr, items)) in
        (sorted(map(repr, range(len(items)))), sorted(map(repr, range(1, len(items) + 1)))),
    "palindrome": lambda items: items == items[::-1],
}

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
draw, common = random.Random(1), Common()
given = calls[:40]
for args, kwargs in calls:
    common.learn(args, kwargs)
for args, kwargs in given:
    tell("tests", args, kwargs)
others = [(tuple(near(a, draw) for a in args), {k: near(v, draw) for k, v in kwargs.items()})
          for args, kwargs in given for _ in range(4)]
for args, kwargs in given:  # one change a time, and often: few keep what the tests' inputs have in common
    for _ in range(40):
        places = [*range(len(args)), *kwargs]
        chosen = draw.choice(places) if places else None
        others.append((tuple(near(a, draw) if n == chosen else a for n, a in enumerate(args)),
                       {k: near(v, draw) if k == chosen else v for k, v in kwargs.items()}))
valid = [(args, kwargs) for args, kwargs in others if common.keeps(args, kwargs)][:160]
for args, kwargs in valid:
    tell("valid", args, kwargs)
for args, kwargs in others[:4 * len(given)]:
    tell("near", args, kwargs)
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
