"""What customers ask for: goals made from products as the original makes them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from turncredit.envs.webshop.catalogue import Product
from turncredit.seeds import seed_of

NO_LIMIT = 1_000_000.0
_LIMITS = [10.0 * tens for tens in range(1, 100)]  # dollars
_NEAR_LIMITS = 4


@dataclass(frozen=True, slots=True)
class Goal:
    """A product to be bought, and what its buyer asks for. `weight` is how often it is drawn, relative to others."""

    product: Product
    text: str
    attributes: tuple[str, ...]
    options: Mapping[str, str]  # the name of an option -> its value; a person's goals have numbers for names
    price_limit: float = NO_LIMIT  # dollars
    weight: float = 1.0


def synthetic_goals(products: Iterable[Product]) -> list[Goal]:
    """One goal for each combination of a product's options; a goal with rarer attributes is drawn more often."""
    goals = []
    for product in products:
        if product.instruction and product.instruction_attributes:
            limit, limit_text = _price_limit(product)
            names = sorted(product.options)
            for values in itertools.product(*(product.options[name] for name in names)):
                options = dict(zip(names, values))
                wanted = ", and ".join(f"{name}: {value}" for name, value in options.items())
                text = f"{product.instruction}{' with ' if wanted else ''}{wanted}{limit_text}"
                goals.append(Goal(product, text, product.instruction_attributes, options, limit))
    counts = Counter(attribute for goal in goals for attribute in goal.attributes)
    return [replace(goal, weight=float(np.mean([1 / counts[a] for a in goal.attributes]))) for goal in goals]


def human_goals(products: Iterable[Product]) -> list[Goal]:
    """The goals that people wrote, those without attributes left out."""
    goals = []
    for product in products:
        limit, limit_text = _price_limit(product)
        for asked in product.human:
            if asked["instruction_attributes"]:
                goals.append(Goal(product, asked["instruction"].strip(".") + limit_text,
                                  tuple(asked["instruction_attributes"]), _numbered(asked["instruction_options"]),
                                  limit))
    return goals


def _numbered(options: Sequence[str] | Mapping[str, str]) -> dict[str, Any]:
    return dict(options) if isinstance(options, Mapping) else {str(i): value for i, value in enumerate(options)}


def _price_limit(product: Product) -> tuple[float, str]:
    """One of the next few tens of dollars above the price, but the nearest; drawn by the product's asin."""
    above = [limit for limit in _LIMITS if limit > product.price][:_NEAR_LIMITS]
    if len(above) < 2:
        return NO_LIMIT, ""
    rng = np.random.default_rng(seed_of("webshop limit", product.asin))
    limit = float(max(rng.choice(above, size=2, replace=False)))
    return limit, f", and price lower than {limit:.2f} dollars"
