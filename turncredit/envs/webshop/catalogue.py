"""Products as WebShop's files have them: raw (items_shuffle.json) or as its engine processes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from turncredit.envs.questions import read_rows
from turncredit.errors import UserError, did_you_mean
from turncredit.seeds import seed_of

PRICE_WHERE_NONE = 100.0  # dollars, as the original has it
_NEEDED = ("asin", "name", "query", "category", "product_category", "full_description", "pricing")


@dataclass(frozen=True, slots=True)
class Product:
    """What the shop sells. `options`: the name of an option -> its values; `price` and `price_tag` in dollars."""

    asin: str
    title: str
    query: str
    category: str
    path: tuple[str, ...]  # of categories, from the widest
    description: str
    bullets: tuple[str, ...]
    options: Mapping[str, Sequence[str]]
    price: float
    price_tag: str
    attributes: tuple[str, ...] = ()
    rating: str = "N.A."
    reviews: tuple[str, ...] = ()
    instruction: str | None = None
    instruction_attributes: tuple[str, ...] = ()
    human: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    @property
    def searchable(self) -> str:
        """What the search engine reads."""
        options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options.items())
        return " ".join([self.title, self.description, *self.bullets[:1], options]).lower()

    @property
    def said(self) -> tuple[str, ...]:
        """The texts in which an attribute may stand, in lower case."""
        return self.title.lower(), " ".join(self.bullets).lower(), self.description.lower()


def load_catalogue(data: str, attributes: str | None = None, human: str | None = None) -> list[Product]:
    """The products of a file, each asin once.

    Args:
        data: .json, .jsonl or .parquet (also .gz); raw, or processed as the original's engine does it.
        attributes: a JSON object asin -> {attributes, instruction, instruction_attributes}, as items_ins_v2.json is.
        human: a JSON object asin -> list of {instruction, instruction_attributes, instruction_options}, as
            items_human_ins.json is.
    Raises:
        UserError: a file that cannot be read, or a row without a field (named with its place).
    """
    if not Path(data).is_file():
        raise UserError(f"catalogue {data!r}: there is no such file")
    described = _keyed(attributes, "attributes") if attributes else {}
    asked = _keyed(human, "human") if human else {}
    found: dict[str, Product] = {}
    for place, row in read_rows(data, ""):
        product = _product(row, f"{data}, {place}", described, asked)
        if product.asin != "nan" and len(product.asin) <= 10:
            found.setdefault(product.asin, product)
    if not found:
        raise UserError(f"catalogue {data!r} holds no products")
    return list(found.values())


def _product(row: Any, where: str, described: Mapping[str, Any], asked: Mapping[str, Any]) -> Product:
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is {type(row).__name__}: each product must be an object with fields")
    for name in _NEEDED:
        if name not in row:
            raise UserError(f"{where} has no field {name!r}{did_you_mean(name, row)} (it has: {', '.join(row)})")
    asin = str(row["asin"])
    more = described.get(asin, {})
    bullets = row.get("BulletPoints", row.get("small_description")) or []
    price, tag = _price(row, where)
    return Product(
        asin, str(row["name"]), str(row["query"]).lower().strip(), str(row["category"]),
        tuple(part.strip() for part in str(row["product_category"]).split("›")), str(row["full_description"]),
        tuple(map(str, [bullets] if isinstance(bullets, str) else bullets)), _options(row), price, tag,
        tuple(more.get("attributes", row.get("Attributes", ()))), str(row.get("Rating") or "N.A."),
        tuple(map(_review, row.get("Reviews") or ())), more.get("instruction", row.get("instruction_text")),
        tuple(more.get("instruction_attributes", row.get("instruction_attributes")) or ()),
        tuple(asked.get(asin, row.get("instructions") or ())))


def _price(row: Mapping[str, Any], where: str) -> tuple[float, str]:
    """The price that a limit is compared with, and the one on the page. A range gets a price drawn by its asin.

    The original draws it from a generator without a seed, so that its goals differ from process to process.
    """
    given = row["pricing"] or [PRICE_WHERE_NONE]
    try:
        amounts = ([float(re.sub(r"[^\d.]", "", part)) for part in given.split("$")[1:]] if isinstance(given, str)
                   else [float(amount) for amount in given])[:2]
    except (TypeError, ValueError):
        raise UserError(f"{where}: its pricing {given!r} is neither dollars nor a list of numbers") from None
    if len(amounts) == 1:
        return amounts[0], f"${amounts[0]}"
    low, high = sorted(amounts)
    drawn = np.random.default_rng(seed_of("webshop price", str(row["asin"]))).uniform(low, high)
    return float(drawn), f"${low} to ${high}"


def _options(row: Mapping[str, Any]) -> dict[str, list[str]]:
    if "options" in row:
        return {str(name): [str(value) for value in values] for name, values in row["options"].items()}
    contents = row.get("customization_options") or {}
    return {name.lower(): [value["value"].strip().replace("/", " | ").lower() for value in values]
            for name, values in contents.items() if values is not None}


def _review(review: Mapping[str, Any]) -> str:
    return f"{review.get('score', review.get('stars', ''))} {review.get('title', '')}: " \
           f"{review.get('body', review.get('review', ''))}".strip()


def _keyed(path: str, name: str) -> dict[str, Any]:
    """A JSON object by asin."""
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{name} {path!r} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{name} {path!r} is a {type(found).__name__}: it must be an object with asins as keys")
    return found
