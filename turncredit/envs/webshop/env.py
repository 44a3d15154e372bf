"""The environment: a goal, search[…] and click[…], and the reward of what was bought."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from turncredit.envs.splits import split_of
from turncredit.envs.text_env import Reply, TextEnv
from turncredit.envs.webshop.catalogue import Product, load_catalogue
from turncredit.envs.webshop.generated import generated_catalogue
from turncredit.envs.webshop.goals import Goal, human_goals, synthetic_goals
from turncredit.envs.webshop.reward import score_purchase
from turncredit.envs.webshop.search import ProductIndex
from turncredit.envs.webshop.visit import BUY, NEXT, Page, Visit
from turncredit.episode import Outcome, Task, Verdict
from turncredit.errors import UserError, did_you_mean

_ACTION = re.compile(r"\b(search|click)\[(.+)\]", re.IGNORECASE)


class Purchase:
    """Rewards what was bought by how near it comes to the goal; passes where it meets all of it."""

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """The parts of the reward are the verdict's details."""
        bought = outcome.state["bought"]
        if bought is None:
            return Verdict.of(False, "nothing was bought")
        score = score_purchase(bought, outcome.state["options"], task.hidden["goal"])
        parts = {name: getattr(score, name) for name in ("type", "attributes", "options", "price")}
        return Verdict(score.reward, score.reward == 1.0, f"bought {bought.asin}", {"asin": bought.asin, **parts})


class Shop:
    """A catalogue with its search engine and its goals by split."""

    def __init__(self, products: Sequence[Product], goals: Sequence[Goal], ood_category: str | None) -> None:
        sizes = Counter(goal.product.category for goal in goals)
        if ood_category is None and len(sizes) > 1:
            ood_category = min(sorted(sizes), key=lambda name: sizes[name])
        elif ood_category is not None and ood_category not in sizes:
            raise UserError(f"ood_category {ood_category!r} has no goals{did_you_mean(ood_category, sizes)} "
                            f"(those that have: {', '.join(sorted(sizes))})")
        self.index = ProductIndex(products)
        self.goals: dict[str, list[Goal]] = {"train": [], "test": [], "ood": []}
        for goal in goals:
            home = "ood" if goal.product.category == ood_category else split_of(goal.product.title)
            self.goals[home].append(goal)


class WebShop(TextEnv):
    """Buy what a customer asks for. At most 15 turns; the reward comes with the purchase.

    Departures from the original: prices and price limits are drawn by product, not from an unseeded generator;
    splits hold different products (the original parts the goals of one product, which differ in options alone), and
    "ood" is a category that training never asks for; titles are compared by their words (`type_score`); the goal's
    options are what counts in the reward, as the paper's formula has it; a value that two options share can be chosen
    for both; the instruction is not repeated on every page; reasoning may stand before the action.

    Args:
        catalogue: a file of products; a generated catalogue of 480 products where None.
        attributes: the file with their attributes and instructions, as items_ins_v2.json is.
        human: the file with people's instructions, for `goals="human"`.
        goals: "synthetic" or "human".
        ood_category: the category held out for the split "ood"; the one with the fewest goals where None.
    Raises:
        UserError: files that cannot be read or lack a field, or a split without goals.
        MissingExtra: bm25s, PyStemmer or rapidfuzz is not installed.
    """

    instructions = ("Buy in a web shop what the customer asks for. Write one action a turn: search[words], or click[…] "
                    "with anything that stands in brackets on the page. Choose the options that are asked for on the "
                    "product's page, then click[Buy Now].")
    verifier = Purchase()
    turn_limit = 15

    def __init__(self, catalogue: str | None = None, attributes: str | None = None, human: str | None = None,
                 goals: Literal["synthetic", "human"] = "synthetic", ood_category: str | None = None,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if goals not in ("synthetic", "human"):
            raise UserError(f"goals is {goals!r}: it must be synthetic or human")
        files = tuple((path, _changed(path)) for path in (catalogue, attributes, human))
        self._shop = _open_shop(files, goals, ood_category)
        self._goals = self._shop.goals[self.split]
        if not self._goals:
            raise UserError(f"split {self.split!r}: the catalogue has no {goals} goals for it (attributes= and human= "
                            "name the files that goals are made from)")
        self.num_tasks = len(self._goals)
        weights = np.array([goal.weight for goal in self._goals])
        self._chances = weights / weights.sum()

    def make_task(self, rng: np.random.Generator) -> Task:
        """A goal, by its weight."""
        return self.task_at(int(rng.choice(len(self._goals), p=self._chances)))

    def task_at(self, index: int) -> Task:
        """The goal at `index`, in the catalogue's order."""
        goal = self._goals[index]
        return Task(goal.text, {"goal": goal}, self.split, self.level)

    def start(self) -> None:
        """Enter the shop."""
        self.visit = Visit(self._shop.index.search)
        self._searched = False

    def state(self) -> Mapping[str, Any]:
        """What was bought, and the options chosen for it."""
        return {"bought": self.visit.product if self.visit.bought else None, "options": self.visit.options}

    def respond(self, action: str) -> Reply:
        """Take the last search[…] or click[…] of the action."""
        found = _ACTION.findall(action)
        if not found:
            return Reply("error: no action: write search[words] or click[…]", valid=False)
        kind, argument = found[-1]
        if kind.lower() == "search":
            self.visit.search(argument)
        elif not self.visit.click(argument):
            there = " ".join(f"[{name}]" for name in self.visit.clickable) or "nothing: use search[words]"
            return Reply(f"error: {argument!r} is not on this page; what can be clicked: {there}", valid=False)
        if self.visit.bought:
            return Reply("Thank you for your purchase.", done=True)
        return Reply(self.visit.text())

    def expert_action(self) -> str:
        """Search by the goal's title, turn pages up to the product, choose its options, buy."""
        goal: Goal = self.task.hidden["goal"]
        visit = self.visit
        if visit.page is Page.ITEM:
            assert visit.product is not None
            return f"click[{next(_missing(visit.product, visit.options, goal), BUY)}]"
        if visit.page is Page.RESULTS:
            there = visit.clickable
            return f"click[{goal.product.asin if goal.product.asin in there else NEXT}]"
        return f"search[{goal.product.title}]"


def _missing(product: Product, chosen: Mapping[str, str], goal: Goal) -> Iterator[str]:
    """Values that the goal asks for and that are not chosen yet. A person's goal does not say of which option."""
    for name, values in product.options.items():
        wanted = [goal.options[name]] if name in goal.options else [v for v in goal.options.values() if v in values]
        if wanted and chosen.get(name) != wanted[0]:
            yield wanted[0]


@functools.lru_cache(maxsize=4)
def _open_shop(files: tuple[tuple[str | None, int], ...], goals: str, ood_category: str | None) -> Shop:
    catalogue, attributes, human = (path for path, _ in files)
    products = generated_catalogue() if catalogue is None else load_catalogue(catalogue, attributes, human)
    made = synthetic_goals(products) if goals == "synthetic" else human_goals(products)
    return Shop(products, made, ood_category)


def _changed(path: str | None) -> int:
    """When a file was written, so that one that was written anew is read anew."""
    return Path(path).stat().st_mtime_ns if path and Path(path).is_file() else 0
