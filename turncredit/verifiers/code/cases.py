"""What a candidate is tested with: calls, given asserts, programs, and what they may use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from turncredit.errors import UserError
from turncredit.sandboxes.base import MIB
from turncredit.verifiers.code.checkers import Checker, exact
from turncredit.verifiers.code.equality import Equality


@dataclass(frozen=True, slots=True)
class Call:
    """Call the candidate's function; its value must equal `expected`."""

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    expected: Any = None
    entry_point: str = ""  # an expression such as `Solution().twoSum`; the tests' own where empty
    hidden: bool = True


@dataclass(frozen=True, slots=True)
class Asserts:
    """Given asserts as source: top-level asserts, or a function `check(candidate)`, as benchmarks have them.

    `setup` is source that the asserts need and that the candidate must not redefine, such as the functions
    that a prompt gives. Every name that neither defines is the candidate's.
    """

    source: str
    setup: str = ""
    hidden: bool = True


@dataclass(frozen=True, slots=True)
class Program:
    """Run the candidate as a program; `checker(stdin, expected, stdout)` judges what it prints."""

    stdin: str = ""
    expected: str = ""
    checker: Checker = exact
    hidden: bool = True


@dataclass(frozen=True, slots=True)
class CodeTests:
    """Everything that a candidate is judged by.

    Attributes:
        tests: in the order in which they are reported.
        entry_point: an expression for the function under test, in the candidate's names.
        prelude: source that runs before the candidate, in its names (imports that a benchmark grants).
        shared: classes of the prelude whose plain instances are arguments and values (`ListNode`).
        equality: how values are compared.
        fraction: the reward is the share of the tests that passed, instead of all or nothing.
        test_s: CPU time of one test, and a quarter of its wall time; `load_s` that of the program's top level.
        total_s: the same of all the tests together.
        memory_bytes: of one execution.
    """

    tests: Sequence[Call | Asserts | Program]
    entry_point: str = ""
    prelude: str = ""
    shared: Sequence[str] = ()
    equality: Equality = field(default_factory=Equality)
    fraction: bool = False
    test_s: float = 5.0
    load_s: float = 10.0
    total_s: float = 60.0
    memory_bytes: int = 512 * MIB

    def __post_init__(self) -> None:
        if not self.tests:
            raise UserError("tests is empty: a candidate that nothing tests can't be judged")
        for name in ("test_s", "load_s", "total_s", "memory_bytes"):
            value, kind = getattr(self, name), int if name == "memory_bytes" else int | float
            if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
                raise UserError(f"{name} is {value!r}: it must be a {'whole ' * (kind is int)}number above 0")
        for number, test in enumerate(self.tests):
            if isinstance(test, Call) and not (test.entry_point or self.entry_point):
                raise UserError(f"tests[{number}] names no entry_point, and neither do the tests as a whole: "
                                "give one of them the expression for the function under test")
