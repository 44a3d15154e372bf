"""The report of a run: what stands in the page is what the run recorded."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from turncredit.episode import Episode, Group, Segment, Turn, Verdict
from turncredit.errors import UserError
from turncredit.report import open_recorded_run, write_report
from turncredit.report.charts import smoothed
from turncredit.store import RunFolder


def a_run(path: Path, seed: int = 0) -> Path:
    run = RunFolder(path).create()
    settings = {"seed": seed, "algorithm": {"name": "grpo"}, "rollout": {"group_size": 2},
                "envs": [{"id": "mine/A-v0"}]}
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    for step in range(3):
        run.write_group(Group([Episode(
            "mine/A-v0", "task-1", "train", 7, "be <b>brief</b>", "1 + 1?",
            [Segment.text([1, 2], "prompt"), Segment.sampled([3, 4], [-0.5, -0.25])], [Turn("</script> 2")],
            Verdict.of(bool(sample), "as expected"), sample=sample, step=step) for sample in range(2)]))
        run.append_metrics({"step": step, "reward": 0.5 + step / 10, "success": 0.5, "episodes": 2,
                            "generated_tokens": 4, "stops": {"finished": 2}})
    return path


def block(html: str, name: str) -> Any:
    found = re.search(rf'id="data-{name}">([^<]*)<', html)
    assert found is not None
    return json.loads(gzip.decompress(base64.b64decode(found.group(1))))


def test_the_page_holds_each_episode_with_its_tokens_reward_and_reason(tmp_path: Path) -> None:
    page = write_report([open_recorded_run(a_run(tmp_path / "a"))], tmp_path / "a.html").read_text()
    columns, details = block(page, "index")["columns"], block(page, "chunk-0")
    assert columns["id"][:2] == ["000000-0000-000", "000000-0000-001"]
    assert columns["reward"][:2] == [0.0, 1.0]
    assert details[1]["segments"] == [["prompt", 0, [1, 2], None], ["assistant", 1, [3, 4], [-0.5, -0.25]]]
    assert details[1]["verdict"]["reason"] == "as expected"


def test_the_reward_curve_holds_the_recorded_points(tmp_path: Path) -> None:
    page = write_report([open_recorded_run(a_run(tmp_path / "a"))], tmp_path / "a.html").read_text()
    points = block(page, "charts")[0]["data"][0]
    assert (points["x"], points["y"]) == ([0, 1, 2], [0.5, 0.6, 0.7])


def test_a_bound_on_episodes_takes_whole_groups_from_the_first_step_to_the_last(tmp_path: Path) -> None:
    page = write_report([open_recorded_run(a_run(tmp_path / "a"))], tmp_path / "a.html", episodes=4).read_text()
    steps = [step for step in block(page, "index")["columns"]["step"] if step is not None]
    assert steps == [0, 0, 2, 2]


def test_runs_that_differ_in_their_seed_alone_are_one_method_with_a_band(tmp_path: Path) -> None:
    runs = [open_recorded_run(a_run(tmp_path / name, seed)) for seed, name in enumerate("ab")]
    page = write_report(runs, tmp_path / "both.html").read_text()
    band, line = block(page, "charts")[0]["data"]
    assert band["fill"] == "toself" and line["name"] == "grpo (2 seeds)"


def test_a_straight_line_stays_as_it_is_when_smoothed() -> None:
    assert smoothed([0.0, 1.0, 2.0, 3.0, 4.0], share=1.0) == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0])


def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no run folder: it has no config\.yaml"):
        open_recorded_run(tmp_path)
