"""The page in a real browser: what is drawn, filtered and shown is what the run recorded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from turncredit.report import open_recorded_run, write_report

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
                None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: test-browser)")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as tools:
        started = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def opened(browser: Any, trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page, opened from disk, with all that it said and asked for noted."""
    file = write_report([open_recorded_run(trained_run)], tmp_path_factory.mktemp("report") / "report.html")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-ready=all]")
    yield page
    page.close()


@pytest.fixture(scope="module")
def episodes(trained_run: Path) -> pandas.DataFrame:
    return pandas.read_parquet(trained_run / "episodes")


@pytest.fixture(scope="module")
def credit(trained_run: Path) -> pandas.DataFrame:
    return pandas.read_parquet(trained_run / "credit")


def show(page: Any, id: str) -> None:
    page.evaluate("id => open(index.columns.id.indexOf(id))", id)
    page.wait_for_selector(f"#episode[data-id='{id}']")


def hovered(page: Any, place: int) -> dict[str, str]:
    """What is shown of a generated token while the pointer is on it."""
    page.locator(f".sides > div:first-child .t[data-place='{place}']").hover()
    page.wait_for_selector("#tip:not([hidden])")
    return dict(row.split("\t") for row in page.locator("#tip table").inner_text().splitlines())


def test_the_charts_are_drawn_and_nothing_leaves_the_page(opened: Any) -> None:
    opened.wait_for_selector(".js-plotly-plot .scatterlayer .trace")
    assert opened.locator(".chart h3").all_inner_texts()[0] == "Reward"
    assert opened.said == []
    assert [url.split(":")[0] for url in opened.asked if not url.startswith(("blob:", "data:"))] == ["file"]


def test_a_filter_leaves_the_episodes_that_the_run_says(opened: Any, episodes: pandas.DataFrame) -> None:
    opened.locator("input[name=from]").fill("1")
    opened.locator("input[name=task]").fill("-0002-")
    wanted = episodes[(episodes["step"] >= 1) & episodes["id"].str.contains("-0002-")]["id"].tolist()
    assert opened.locator(".row span:first-child").all_inner_texts() == sorted(wanted)
    assert opened.locator("#count").inner_text() == f"{len(wanted)} of {len(episodes)} episodes"
    for name in ("from", "task"):
        opened.locator(f"input[name={name}]").fill("")
    assert opened.locator(".row").count() == len(episodes)


def test_hovering_a_token_shows_what_was_recorded_of_it(opened: Any, credit: pandas.DataFrame) -> None:
    weighted = credit.dropna(subset="weight")
    id = weighted["episode"].iloc[0]
    rows = credit[credit["episode"] == id].reset_index()
    show(opened, id)
    for place in sorted({0, len(rows) // 2, len(rows) - 1}):
        shown, row = hovered(opened, place), rows.iloc[place]
        assert int(shown["token id"]) == row["token_id"]
        for label, value in (("weight f", row["weight"]), ("KL, nats", row["kl"]), ("ratio", row["ratio"]),
                             ("advantage", row["advantage"]),
                             ("student probability", np.exp(row["student_logprob"])),
                             ("teacher probability", np.exp(row["teacher_logprob"]))):
            assert float(shown[label]) == pytest.approx(float(value), rel=1e-3), label


def test_only_generated_tokens_are_coloured_and_the_reference_stands_beside(opened: Any, credit: pandas.DataFrame,
                                                                           episodes: pandas.DataFrame) -> None:
    row = credit.dropna(subset="weight").iloc[0]
    show(opened, row["episode"])
    counts = episodes.set_index("id")["generated_tokens"]
    assert opened.locator(".sides > div:first-child .t").count() == counts[row["episode"]]
    assert opened.locator(".sides > div:nth-child(2) .t").count() == counts[row["reference"]]
    assert row["reference"] in opened.locator(".sides > div:nth-child(2) .quiet").inner_text()
    masked = opened.locator(".sides > div:first-child .tokens i").count()
    totals = episodes.set_index("id")["total_tokens"]
    assert masked == totals[row["episode"]] - counts[row["episode"]]


def test_the_page_says_why_an_episode_got_its_reward(opened: Any, episodes: pandas.DataFrame) -> None:
    failed = episodes[episodes["reward"] == 0].iloc[0]
    show(opened, failed["id"])
    said = opened.locator("#episode").inner_text()
    assert "reward 0 · failed" in said and failed["verdict_reason"] in said and failed["prompt"] in said


def test_one_click_leads_from_the_top_to_a_failed_episode_s_reason_and_tokens(
        opened: Any, episodes: pandas.DataFrame, credit: pandas.DataFrame) -> None:
    opened.evaluate("scrollTo(0, 0)")
    assert opened.get_by_role("button", name="one that passed").count() == int(episodes["passed"].any())
    opened.get_by_role("button", name="one that failed").click()
    weighted = set(credit.dropna(subset="weight")["episode"])
    wanted = [id for id in episodes[episodes["passed"] == False]["id"].sort_values() if id in weighted]  # noqa: E712
    opened.wait_for_selector(f"#episode[data-id='{wanted[-1]}']")
    assert opened.locator("#episode").evaluate("e => e.getBoundingClientRect().top") < 200
    assert "failed" in opened.locator("#episode .verdict").inner_text()
    assert opened.locator("#episode .tokens .t").count() > 0


def test_nothing_is_wider_than_a_phone_in_light_and_dark(opened: Any) -> None:
    opened.set_viewport_size({"width": 390, "height": 800})
    colours = []
    for _ in range(2):
        opened.locator("#theme").click()
        colours.append(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert opened.evaluate("document.documentElement.scrollWidth") <= 390
        right = "e => e.getBoundingClientRect().right"
        assert opened.locator("#episode select").evaluate(right) <= opened.locator("#episode").evaluate(right)
    assert len(set(colours)) == 2


def test_the_credit_page_shows_two_checkpoints_side_by_side_with_the_numbers_of_each(browser: Any, trained_run: Path,
                                                                                     tmp_path: Path) -> None:
    from turncredit.heatmap.page import write_page
    from turncredit.heatmap.scored import score
    from turncredit.heatmap.trajectories import read_reference, read_task
    from turncredit.trainer.start import policy_of

    told, seen = read_task(f"{trained_run}/000002-0000-000", None, None), read_reference("@calculate a=1 op=+ b=2")
    scored = [score(*policy_of(str(path), "plain"), told, seen, path.name) for path in (trained_run / "start",
                                                                                         trained_run)]
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(write_page(scored, tmp_path / "credit.html").as_uri())
    page.wait_for_selector("body[data-ready=all]")
    for side, one in enumerate(scored, 1):
        token = page.locator(f".sides > div:nth-child({side}) .t[data-place='0']")
        token.hover()
        shown = dict(row.split("\t") for row in page.locator("#tip table").inner_text().splitlines())
        assert float(shown["weight f"]) == pytest.approx(one.weight[0], rel=1e-3, abs=1e-8)
        assert float(shown["teacher probability"]) == pytest.approx(np.exp(one.teacher_logprob[0]), rel=1e-3, abs=1e-8)
        assert one.model in page.locator(f".sides > div:nth-child({side}) .quiet").inner_text()
    page.close()
