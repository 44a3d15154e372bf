"""An episode told again comes out as it was, or what differs is named."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from turncredit.audit.recorded import AuditedRun
from turncredit.cli import main
from turncredit.envs.calculator import Calculator
from turncredit.episode import Verdict
from turncredit.errors import UserError
from turncredit.replay import differences, retell


def test_an_episode_told_again_has_the_same_tokens_texts_and_verdict(trained_run: Path) -> None:
    run = AuditedRun(trained_run)
    step, episode = run.find("000001-0002-003")
    again = retell(episode, step.tasks[2], run.policy(), run.config)
    assert again.token_ids.tolist() == episode.token_ids.tolist() and again.id == episode.id
    assert differences(episode, again) == []


def test_an_environment_that_answers_otherwise_today_is_named(trained_run: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    run = AuditedRun(trained_run)
    step, episode = run.find("000001-0000-000")
    monkeypatch.setattr(Calculator, "verdict", lambda self: Verdict.of(not episode.passed, "changed its mind"))
    found = differences(episode, retell(episode, step.tasks[0], run.policy(), run.config))
    assert {"reward", "passed", "verdict's reason"} <= {one.what for one in found}


def test_an_episode_that_went_on_longer_than_its_environment_now_does_is_named(trained_run: Path) -> None:
    run = AuditedRun(trained_run)
    step, episode = run.find("000001-0000-000")
    longer = replace(episode, turns=[*episode.turns, episode.turns[-1]])
    found = differences(longer, retell(episode, step.tasks[0], run.policy(), run.config))
    assert [(one.what, one.recorded - one.now) for one in found] == [("turns", 1)]


def test_an_id_that_is_not_there_is_refused_with_the_nearest(trained_run: Path) -> None:
    run = AuditedRun(trained_run)
    with pytest.raises(UserError, match=r"did you mean '000001-0000-00\d'"):
        run.find("000001-0000-009")
    with pytest.raises(UserError, match="ids look like 000000-0000-000"):
        run.find("first")


def test_audit_and_replay_print_and_exit_with_0_where_all_is_well(trained_run: Path, capsys: Any,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, shown in ((["replay", str(trained_run), "000000-0000-000"], "acted out again: the same"),
                             (["audit", str(trained_run), "--episodes", "2"], "advantages"),
                             (["watch", str(trained_run)], "ended")):
        monkeypatch.setattr(sys, "argv", ["turncredit", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        assert shown in capsys.readouterr().out
