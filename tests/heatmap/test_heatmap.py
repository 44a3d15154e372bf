"""`turncredit credit`: what is drawn of two trajectories is what whole logits say of them."""

from __future__ import annotations

import base64
import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from turncredit.cli import main
from turncredit.config import parse_config
from turncredit.errors import UserError
from turncredit.heatmap.picture import write_picture
from turncredit.heatmap.scored import Scored, score
from turncredit.heatmap.trajectories import read_reference, read_task
from turncredit.trainer.credit import kl_weight, token_kl
from turncredit.trainer.policy import Policy
from turncredit.trainer.teacher import GUIDE


@pytest.fixture(scope="module")
def policy(tokenizer_for: Any, model_for: Any) -> Policy:
    tokenizer = tokenizer_for("chatml")
    return Policy(model_for(tokenizer), tokenizer, parse_config(CONFIG).model)


CONFIG = {"model": {"path": "any"}, "envs": [{"id": "any"}]}
TURNS = [{"action": "@calculate a=1", "observation": "error", "role": "tool"}, {"action": "It is 19."}]


@pytest.fixture(scope="module")
def scored(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    file = tmp_path_factory.mktemp("told") / "told.json"
    file.write_text(json.dumps({"system": "Help.", "prompt": "What is 12 + 7?", "turns": TURNS}))
    return score(policy, parse_config(CONFIG), read_task(str(file), None, None), read_reference("The answer is 19."),
                 "it")


def whole_logits(policy: Policy, system: str, response: list[int]) -> torch.Tensor:
    prompt = policy.chat.first_prompt(system, "What is 12 + 7?")
    with torch.no_grad():
        logits = policy.model(torch.tensor([[*prompt, *response]])).logits[0].double()
    return logits[len(prompt) - 1:-1]


def test_kl_weights_and_probabilities_are_those_of_whole_logits(policy: Policy, scored: Scored) -> None:
    response = [int(t) for s in scored.episode.response for t in s.token_ids]
    mask = scored.episode.generated[-len(response):]
    student = whole_logits(policy, "Help.", response)
    teacher = whole_logits(policy, f"Help.\n\n{GUIDE}\n\nAgent: The answer is 19.", response)
    kl = token_kl(teacher, student)
    active = torch.tensor(mask)
    np.testing.assert_allclose(scored.kl, kl[active], atol=1e-4)
    np.testing.assert_allclose(scored.weight, kl_weight(kl, active)[active], atol=1e-3)
    chosen = torch.tensor(response)[:, None]
    for found, logits in ((scored.student_logprob, student), (scored.teacher_logprob, teacher)):
        np.testing.assert_allclose(found, logits.log_softmax(-1).gather(1, chosen)[active, 0], atol=1e-4)
    assert scored.weight.max() > 0.5


def test_only_the_agents_tokens_are_scored(scored: Scored) -> None:
    told = scored.as_json()
    assert "".join(told["text"]) == "@calculate a=1<|im_end|>It is 19.<|im_end|>"
    assert {len(told[name]) for name in ("kl", "weight", "token_id", "entropy")} == {len(told["text"])}


def test_a_recorded_episode_keeps_its_tokens_and_gives_the_pages_numbers(
        trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    episodes = pandas.read_parquet(trained_run / "episodes").set_index("id")
    one, other = (f"{trained_run}/000002-0000-00{i}" for i in (0, 1))
    page = tmp_path / "credit.html"
    monkeypatch.setattr(sys, "argv", ["turncredit", "credit", str(trained_run), "--task", one, "--reference", other,
                                      "--against", f"{trained_run}/start", "--tool-calls", "plain", "--out", str(page),
                                      "--json"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    now, before = json.loads(capsys.readouterr().out)
    recorded = [t for s in episodes.loc["000002-0000-000", "segments"] if s["generated"] for t in s["token_ids"]]
    assert now["token_id"] == before["token_id"] == recorded
    assert now["kl"] != before["kl"]
    [block] = re.findall(r'id="data-models">([^<]*)<', page.read_text())
    drawn = json.loads(gzip.decompress(base64.b64decode(block)))
    assert [one["episode"]["credit"]["weight"] for one in drawn] == [
        pytest.approx(one["weight"], abs=1e-8) for one in (now, before)]


def test_the_picture_is_as_dark_as_the_weights(scored: Scored, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed (extra: png)")
    import dataclasses

    shades = []
    for weight in (0.0, 0.3, 1.0):
        flat = dataclasses.replace(scored, weight=np.full_like(scored.weight, weight))
        pixels = image.imread(write_picture([flat], tmp_path / f"{weight}.png"))
        shades.append(1 - pixels[pixels.shape[0] // 5:, :, 2].mean())  # orange takes away blue
    assert (shades[1] - shades[0]) / (shades[2] - shades[0]) == pytest.approx(0.3, abs=0.05)
    assert shades[2] - shades[0] > 0.005


@pytest.mark.parametrize("task, parts", [
    ("What is 1 + 1?", ["--task 'What is 1 + 1?' is a text", "add --response"]),
    ("runs/none/000000-0000-000", ["'runs/none' has recorded no such episode"]),
    ("none.json", ["there is no such file"]),
])
def test_what_is_no_trajectory_is_refused_in_one_sentence(task: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        read_task(task, None, None)
    assert all(part in str(refused.value) for part in parts)


def test_a_file_that_is_no_trajectory_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "told.json").write_text('{"prompt": "?", "turns": [{"said": "yes"}]}')
    with pytest.raises(UserError, match=r"turns\.0\.action"):
        read_reference(str(tmp_path / "told.json"))


def test_a_trajectory_that_does_not_fit_is_refused(policy: Policy) -> None:
    long = read_task("word " * 600, "yes", None)
    with pytest.raises(UserError, match="give a shorter one"):
        score(policy, parse_config(CONFIG), long, read_reference("no"), "it")
    nearly = read_task("a" * 430, "yes", None)
    with pytest.raises(UserError, match="--reference does not fit"):
        score(policy, parse_config(CONFIG), nearly, read_reference("b " * 400), "it")
