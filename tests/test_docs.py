"""The code of the documentation runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium
import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_the_first_environment_is_trained_and_evaluated_out_of_distribution(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (DOCS / "first-environment.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    before = dict(gymnasium.registry)
    names: dict[str, Any] = {"__name__": "first"}
    try:
        exec(compile(code, "first.py", "exec"), names)
    finally:
        gymnasium.registry.clear()
        gymnasium.registry.update(before)
    scores = {(s.agent, s.split): s.avg for s in names["evaluation"].scores}
    assert scores["expert", "test"] == scores["expert", "ood"] == 1.0
    assert scores["silent", "test"] == scores["silent", "ood"] == 0.0
    assert all(leak.clean for leak in names["evaluation"].leaks)
    assert "mean over environments" in capsys.readouterr().out
    written = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(written) <= 40
