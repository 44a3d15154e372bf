"""The homes that judges are tested in."""

from __future__ import annotations

import importlib.util

import pytest

from turncredit.errors import UserError
from turncredit.verifiers.code import Call, CodeTests, judge_code


@pytest.fixture(scope="session", params=["local", "docker"])
def home(request: pytest.FixtureRequest) -> str:
    """The name of a sandbox's home that can be opened here; the others are skipped with their reason."""
    name = str(request.param)
    if importlib.util.find_spec(f"turncredit.sandboxes.{name}") is None:
        pytest.skip(f"this build has no {name} sandbox")
    try:
        report = judge_code("def f():\n    return 1", CodeTests([Call(expected=1)], "f"), name)
    except UserError as error:
        pytest.skip(str(error))
    assert report.passed, report
    return name
