"""Code judged by tests that it cannot reach: calls, given asserts, programs."""

from turncredit.verifiers.code.cases import Asserts, Call, CodeTests, Program
from turncredit.verifiers.code.checkers import exact, floats, tokens
from turncredit.verifiers.code.equality import Equality
from turncredit.verifiers.code.judging import judge_in
from turncredit.verifiers.code.more import more_tests
from turncredit.verifiers.code.report import CaseReport, CodeReport, Status
from turncredit.verifiers.code.shared import judge_code
from turncredit.verifiers.code.verifier import HiddenTests, program_of

__all__ = ["Asserts", "Call", "CaseReport", "CodeReport", "CodeTests", "Equality", "HiddenTests",
           "Program", "Status", "exact",
           "floats", "judge_code", "judge_in", "more_tests", "program_of", "tokens"]
