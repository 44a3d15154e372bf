"""Rows of published data sets as programming problems: the statement, what is shown of the tests, what judges."""

from __future__ import annotations

import ast
import base64
import dataclasses
import doctest
import json
import pickletools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turncredit.errors import UserError
from turncredit.verifiers.code import Asserts, CodeTests, formats

Row = Mapping[str, Any]
Settings = dict[str, Any]
_WHOLE_PROGRAM = "Write a Python program that reads standard input and writes standard output."
_MOST_DECODED = 1 << 28  # bytes of one problem's tests
_GRANTED = "from typing import *\n"


@dataclass(frozen=True, slots=True)
class CodeProblem:
    """A problem of a data file; `visible` and `solution` where the file has them."""

    prompt: str
    tests: CodeTests
    visible: CodeTests | None = None
    solution: str | None = None


def humaneval(row: Row, split: str, settings: Settings) -> CodeProblem:
    """HumanEval: a signature with a docstring, whose examples are the visible tests."""
    prompt, name = row["prompt"], row["entry_point"]
    settings.setdefault("prelude", _GRANTED + _given(prompt, name))
    tests = formats.humaneval(row, **settings)
    examples = _doctests(prompt, name)
    asserts = [Asserts(text, prompt, hidden=False) for text in examples]
    visible = dataclasses.replace(tests, tests=asserts) if asserts else None
    solution = row.get("canonical_solution")
    return CodeProblem(f"Complete the function. Give all of it.\n\n{prompt}", tests, visible,
                       prompt + solution if solution is not None else None)


def mbpp(row: Row, split: str, settings: Settings) -> CodeProblem:
    """MBPP: a sentence, and the first of its asserts as the example that names the function."""
    tests = formats.mbpp(row, **settings)
    first, *rest = tests.tests
    statement = row["text"] if "text" in row else row["prompt"]
    assert isinstance(first, Asserts)
    return CodeProblem(f"{statement}\n\nYour code must satisfy:\n{first.source}",
                       dataclasses.replace(tests, tests=rest or [first]), _visible(tests, 1), row.get("code"))


def leetcode(row: Row, split: str, settings: Settings) -> CodeProblem:
    """LeetCode: a class with a method. Its statement has its examples; no test is set apart as visible."""
    solution = row.get("solutions")
    return CodeProblem(row["problem"], formats.leetcode(row, **settings),
                       solution=solution if isinstance(solution, str) else None)


def livecodebench(row: Row, split: str, settings: Settings) -> CodeProblem | None:
    """LiveCodeBench: programs and methods. Public and private tests together are parted by their number: the odd ones
    train, the even ones evaluate. None where no test is left for the split.

    The visible tests are the public ones of the training half, so that evaluation shows none that it judges by but for
    what stands in a statement. In a file without private tests such ones are all that judges: scores should say so.
    """
    public = _listed(row["public_test_cases"])
    every = public + decoded_tests(row.get("private_test_cases") or "[]")
    half = every[::2] if split == "train" else every[1::2]
    if not half:
        return None
    tests = formats.livecodebench({**row, "half": half}, "half", **settings)
    visible = formats.livecodebench({**row, "half": public[::2]}, "half", hidden=False, **settings) if public else None
    ask = _WHOLE_PROGRAM
    if row.get("starter_code"):
        ask = f"Write the method. Give the whole class.\n\n{row['starter_code']}"
    return CodeProblem(f"{row['question_content']}\n\n{ask}", tests, visible)


def codeforces(row: Row, split: str, settings: Settings) -> CodeProblem | None:
    """Codeforces, CodeContests: programs. Public tests or examples are visible, all others judge; where there are none
    but the public ones, those judge. None where there is no test at all.
    """
    public = _pairs(row, ("public_tests", "examples"))
    hidden = _pairs(row, ("tests", "private_tests", "generated_tests", "official_tests"))
    if not (hidden or public):
        return None
    tests = formats.codeforces({"tests": hidden or public}, **settings)
    visible = formats.codeforces({"tests": public}, hidden=False, **settings) if public else None
    statement = row["problem"] if "problem" in row else row["description"]
    for field, title in (("input_format", "Input"), ("output_format", "Output")):
        if row.get(field):
            statement += f"\n\n{title}:\n{row[field]}"
    return CodeProblem(f"{statement.strip()}\n\n{_WHOLE_PROGRAM}", tests, visible)


FORMATS: dict[str, Callable[[Row, str, Settings], CodeProblem | None]] = {
    "humaneval": humaneval, "mbpp": mbpp, "leetcode": leetcode, "livecodebench": livecodebench,
    "codeforces": codeforces}


def format_of(row: Row, data: str) -> str:
    """The format that a row has, by its fields.

    Raises:
        UserError: it has those of none.
    """
    if "entry_point" in row and "test" in row:
        return "humaneval"
    if "test_list" in row:
        return "mbpp"
    if "public_test_cases" in row:
        return "livecodebench"
    if isinstance(row.get("tests"), Mapping) and "functional" in row["tests"]:
        return "leetcode"
    if any(name in row for name in ("tests", "public_tests", "private_tests", "official_tests", "examples")):
        return "codeforces"
    raise UserError(f"data {data!r} is in no known format: set format to one of {', '.join(FORMATS)} "
                    f"(its rows have: {', '.join(row)})")


def decoded_tests(text: str | Sequence[Any]) -> list[Row]:
    """LiveCodeBench's private tests: JSON, or base64 of zlib of a pickled string of JSON, which is never unpickled.

    Raises:
        ValueError: it is neither, or decodes to more than 256 MiB.
    """
    if not isinstance(text, str) or text.lstrip().startswith("["):
        return _listed(text)
    unpacking = zlib.decompressobj()
    try:
        pickled = unpacking.decompress(base64.b64decode(text, validate=True), _MOST_DECODED)
    except zlib.error as error:
        raise ValueError(f"private_test_cases is not compressed with zlib: {error}") from None
    if not unpacking.eof:
        raise ValueError("private_test_cases is cut off, or too large")
    return _listed(pickled_text(pickled))


def pickled_text(data: bytes) -> str:
    """The string in a pickle of nothing but one string, read by its opcodes.

    Raises:
        ValueError: it holds anything else.
    """
    found: list[str] = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"):
            found.append(str(argument))
        elif opcode.name not in ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP"):
            raise ValueError(f"private_test_cases has a pickle with {opcode.name}: it must be one string alone")
    if len(found) != 1:
        raise ValueError(f"private_test_cases has a pickle of {len(found)} strings: it must be one")
    return found[0]


def _listed(tests: Any) -> list[Row]:
    read = json.loads(tests) if isinstance(tests, str) else tests
    if not isinstance(read, list):
        raise ValueError(f"tests are a {type(read).__name__}: they must be a list")
    return read


def _pairs(row: Row, fields: Sequence[str]) -> list[Row]:
    """Tests of several fields, each a list of {input, output} or, as CodeContests has them, two lists in an object."""
    found: list[Row] = []
    for field in fields:
        tests = row.get(field)
        if isinstance(tests, str):
            tests = json.loads(tests)
        if isinstance(tests, Mapping):
            tests = [{"input": i, "output": o} for i, o in zip(tests["input"], tests["output"], strict=True)]
        found += tests or []
    return found


def _visible(tests: CodeTests, count: int) -> CodeTests:
    return dataclasses.replace(tests, tests=[dataclasses.replace(test, hidden=False) for test in tests.tests[:count]])


def _given(prompt: str, name: str) -> str:
    """What a HumanEval prompt has besides the function itself: imports, and functions that it may call."""
    tree = ast.parse(f"{prompt}\n    pass\n")
    kept = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == name)]
    return "\n".join(map(ast.unparse, kept)) + "\n"


def _doctests(prompt: str, name: str) -> list[str]:
    """The examples of a docstring whose values are literals, as asserts."""
    found = []
    function = next(n for n in ast.parse(f"{prompt}\n    pass\n").body if getattr(n, "name", "") == name)
    text = ast.get_docstring(function) if isinstance(function, ast.FunctionDef) else None
    try:
        examples = doctest.DocTestParser().get_examples(text or "")
    except ValueError:  # not quite doctests: their results are indented otherwise
        return []
    for example in examples:
        call, value = example.source.strip(), example.want.strip()
        try:
            ast.literal_eval(value)
            ast.parse(call, mode="eval")
        except (SyntaxError, ValueError):
            continue
        if call.startswith(f"{name}("):
            found.append(f"assert {call} == {value}")
    return found
