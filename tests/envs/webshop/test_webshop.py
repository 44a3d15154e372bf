"""The shop as an agent meets it, with the generated catalogue and with the original's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import turncredit
from turncredit.envs.webshop import Product, load_catalogue, score_purchase, synthetic_goals
from turncredit.envs.webshop.generated import generated_catalogue
from turncredit.envs.webshop.search import ProductIndex
from turncredit.errors import MissingExtra, UserError

pytest.importorskip("bm25s", reason="the extra webshop is not installed")
SPLITS = ("train", "test", "ood")


def make(**arguments: Any) -> Any:
    return turncredit.make("turncredit/WebShop-v0", **arguments).unwrapped


def bought(env: Any, task: int) -> float:
    env.reset(options={"task": task})
    over = False
    while not over:
        _, reward, terminated, truncated, info = env.step(env.expert_action())
        assert info["valid"]
        over = terminated or truncated
    return float(reward)


@pytest.fixture(scope="module")
def original(data_file: Callable[[str], str]) -> dict[str, Any]:
    """The original's catalogue of 1,000 products."""
    return {"catalogue": data_file("webshop/items_1000_processed.jsonl.gz"),
            "attributes": data_file("webshop/items_ins_v2_1000.json")}


@pytest.mark.parametrize("split", SPLITS)
def test_the_scripted_customer_buys_what_is_asked_for(split: str) -> None:
    env = make(split=split)
    assert np.mean([bought(env, task) for task in range(0, env.num_tasks, 3)]) == 1.0


def test_the_original_s_catalogue_gives_its_6910_goals_and_their_gold_purchases_are_rewarded(original: Any) -> None:
    envs = [make(split=split, **original) for split in SPLITS]
    assert sum(env.num_tasks for env in envs) == 6910
    rewards = [bought(env, task) for env in envs for task in range(0, env.num_tasks, 11)]
    assert np.mean(rewards) >= 0.98


def test_people_s_goals_are_made_where_the_catalogue_has_them(original: Any) -> None:
    counts = []
    for split in SPLITS:
        env = make(catalogue=original["catalogue"], goals="human", ood_category="fashion", split=split)
        counts.append(env.num_tasks)
        assert np.mean([bought(env, task) for task in range(env.num_tasks)]) >= 0.98
    assert sum(counts) == 13


def test_a_purchase_of_another_kind_of_product_is_worth_nothing() -> None:
    products = generated_catalogue()
    goals = [goal for split in SPLITS for goal in make(split=split)._goals]
    rng = np.random.default_rng(0)
    for i in rng.choice(len(goals), 300):
        wrong = products[int(rng.integers(len(products)))]
        if wrong.query != goals[i].product.query:
            assert score_purchase(wrong, goals[i].options, goals[i]).reward == 0.0


def test_in_the_original_s_catalogue_a_product_of_another_category_is_worth_next_to_nothing(original: Any) -> None:
    env = make(**original)
    products = list(env._shop.index._products)
    rng = np.random.default_rng(0)
    rewards = []
    for i in rng.choice(env.num_tasks, 300):
        wrong = products[int(rng.integers(len(products)))]
        if wrong.category != env._goals[i].product.category:
            rewards.append(score_purchase(wrong, {}, env._goals[i]).reward)
    assert np.mean(rewards) < 0.01


def test_no_product_is_asked_for_in_two_splits_and_ood_is_a_category_of_its_own() -> None:
    asked = {split: [goal.product for goal in make(split=split)._goals] for split in SPLITS}
    asins = {split: {product.asin for product in products} for split, products in asked.items()}
    assert not asins["train"] & asins["test"]
    assert {p.category for p in asked["ood"]}.isdisjoint({p.category for p in asked["train"] + asked["test"]})
    assert {p.category for p in asked["train"]} == {p.category for p in asked["test"]}


def test_goals_do_not_depend_on_the_process_s_generators(original: Any) -> None:
    code = ("import turncredit, sys, json; "
            "env = turncredit.make('turncredit/WebShop-v0', **json.loads(sys.argv[1])).unwrapped; "
            "print(json.dumps([[g.text, g.price_limit, g.product.price] for g in env._goals[::40]]))")
    ran = subprocess.run([sys.executable, "-c", code, json.dumps(original)], capture_output=True, text=True, check=True)
    here = [[g.text, g.price_limit, g.product.price] for g in make(**original)._goals[::40]]
    assert json.loads(ran.stdout) == here


def test_search_finds_a_product_by_its_title_and_nothing_by_words_that_no_product_has() -> None:
    products = generated_catalogue()
    index = ProductIndex(products)
    for product in products[::20]:
        assert index.search(product.title)[0].asin == product.asin
    assert index.search("xylophonist qwertz") == []
    assert index.search("…") == []


def test_search_counts_a_word_s_stem_and_its_rarity() -> None:
    def product(asin: str, title: str) -> Product:
        return Product(asin, title, "q", "c", (), "", (), {}, 1.0, "$1.0")

    index = ProductIndex([product("A", "red lamp"), product("B", "red shoes"), product("C", "red chair")])
    assert [p.asin for p in index.search("red shoe")] == ["B", "A", "C"]


def test_pages_lead_where_their_buttons_say() -> None:
    env = make()
    env.reset(seed=0)
    first, *_ = env.step("search[machine wash color]")
    assert "Page 1 (total results: 50)" in first
    second, *_ = env.step("click[next >]")
    assert second.splitlines()[1].startswith("Page 2")
    assert not set(second.splitlines()[2:]) & set(first.splitlines()[2:])
    asin = second.splitlines()[2][1:11]
    item, *_ = env.step(f"click[{asin.lower()}]")
    assert "[Buy Now]" in item
    assert env.visit.product.description == env.step("click[Description]")[0].splitlines()[1]
    env.step("click[< Prev]")
    assert env.step("click[Features]")[0].splitlines()[1:] == list(env.visit.product.bullets)
    assert env.step("click[< Prev]")[0] == item
    assert env.step("click[< Prev]")[0] == second
    assert env.step("click[Back to Search]")[0] == "The shop's search page: search[words]"


def test_a_chosen_option_is_shown_and_is_forgotten_when_the_product_is_left() -> None:
    env = make()
    env.reset(seed=0)
    env.step("search[rain jackets]")
    asin = env.visit.clickable[2]
    env.step(f"click[{asin}]")
    name, values = next(iter(env.visit.product.options.items()))
    assert f"{name} ({values[1]}):" in env.step(f"click[{values[1]}]")[0]
    env.step("click[< Prev]")
    env.step(f"click[{asin}]")
    assert env.visit.options == {}


def test_a_value_of_two_options_can_be_chosen_for_both() -> None:
    env = make()
    env.reset(seed=0)
    shirt = Product("X", "shirt", "q", "c", (), "", (), {"collar": ["m", "l"], "size": ["m", "l"]}, 1.0, "$1.0")
    env.visit._open_item(shirt)
    env.step("click[m]")
    env.step("click[m]")
    assert env.visit.options == {"collar": "m", "size": "m"}


@pytest.mark.parametrize("action, said", [
    ("", "error: no action"), ("buy", "error: no action"), ("click[Buy Now]", "'Buy Now' is not on this page"),
    ("click[B000000000]", "what can be clicked: nothing"), ("search[]", "error: no action")])
def test_what_is_no_action_costs_a_turn_and_is_told(action: str, said: str) -> None:
    env = make()
    env.reset(seed=0)
    observation, reward, terminated, _, info = env.step(action)
    assert said in observation
    assert (reward, terminated, info["valid"]) == (0.0, False, False)


def test_reasoning_may_stand_before_the_action() -> None:
    env = make()
    env.reset(seed=0)
    assert "Page 1" in env.step("I need a table, so click[nothing] will not do.\nsearch[bedside tables]")[0]


def test_who_buys_nothing_in_fifteen_turns_gets_nothing() -> None:
    env = make()
    env.reset(seed=0)
    *_, info = [env.step("search[table]") for _ in range(15)][-1]
    assert (info["verdict"].reward, info["verdict"].reason) == (0.0, "nothing was bought")


def test_the_right_product_without_its_options_or_above_the_price_is_worth_a_part() -> None:
    goal = next(goal for goal in make()._goals if len(goal.options) == 2 and len(goal.attributes) == 3)
    assert score_purchase(goal.product, goal.options, goal).reward == 1.0
    assert score_purchase(goal.product, {}, goal).reward == pytest.approx(4 / 6)
    assert score_purchase(replace(goal.product, price=goal.price_limit + 1), goal.options, goal).reward == \
        pytest.approx(5 / 6)
    other = next(iter(goal.options))
    assert score_purchase(goal.product, goal.options | {other: "none such"}, goal).reward == pytest.approx(5 / 6)


def raw_row(**changes: Any) -> dict[str, Any]:
    return {"asin": "B1", "name": "Oak Table", "query": "Tables ", "category": "garden", "full_description": "d",
            "product_category": "Home › Tables", "pricing": "$20.00$30.00", "small_description": ["solid wood"],
            "customization_options": {"Color": [{"value": "Red/Blue ", "image": None}], "Size": None}} | changes


def test_a_raw_catalogue_is_read_as_the_original_s_engine_reads_it(tmp_path: Path) -> None:
    (tmp_path / "items.json").write_text(json.dumps([raw_row(), raw_row(name="again"), raw_row(asin="B2", pricing="")]))
    (tmp_path / "attributes.json").write_text(json.dumps(
        {"B1": {"attributes": ["solid wood"], "instruction": "Find me solid wood tables",
                "instruction_attributes": ["solid wood"]}}))
    one, two = load_catalogue(str(tmp_path / "items.json"), str(tmp_path / "attributes.json"))
    assert (one.title, one.query, one.options, one.price_tag) == ("Oak Table", "tables", {"color": ["red | blue"]},
                                                                  "$20.0 to $30.0")
    assert 20 <= one.price <= 30
    assert (two.price, two.price_tag) == (100.0, "$100.0")
    goal, = synthetic_goals([one, two])
    assert goal.text.startswith("Find me solid wood tables with color: red | blue, and price lower than ")
    assert goal.price_limit > one.price


@pytest.mark.parametrize("rows, arguments, sentence", [
    ([{"asin": "B1"}], {}, "row 1 has no field 'name'"),
    ([raw_row(), raw_row(pricing=["x"])], {}, r"row 2: its pricing \['x'\] is neither"),
    ([3], {}, "row 1 is int: each product must be an object"),
    ([], {}, "holds no products"),
    ([raw_row()], {}, "has no synthetic goals for it"),
    ([raw_row()], {"goals": "best"}, "goals is 'best'"),
    ([raw_row()], {"attributes": "nowhere.json"}, "attributes 'nowhere.json' cannot be read"),
])
def test_a_file_that_cannot_serve_is_refused(tmp_path: Path, rows: Any, arguments: Any, sentence: str) -> None:
    (tmp_path / "items.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=sentence):
        make(catalogue=str(tmp_path / "items.json"), **arguments)


def test_an_unknown_category_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="ood_category 'grocry' has no goals; did you mean 'grocery'"):
        make(ood_category="grocry")


def test_without_its_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingExtra, match=r"pip install 'turncredit\[webshop\]'"):
        ProductIndex(generated_catalogue())
