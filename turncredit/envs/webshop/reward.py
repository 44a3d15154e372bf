"""The reward of a purchase: by type, attributes, options and price (section 3.2 of the paper)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from turncredit.envs.webshop.catalogue import Product
from turncredit.envs.webshop.goals import Goal
from turncredit.errors import MissingExtra

_ALIKE = 85  # of 100, token-set similarity
_COLOURS = ("black", "white", "red", "green", "yellow", "blue", "brown", "orange", "pink", "purple", "grey", "gray")
_FUNCTION_WORDS = frozenset(("a", "an", "and", "are", "as", "at", "be", "by", "can", "for", "from", "in", "into", "is",
                             "it", "its", "no", "not", "of", "off", "on", "or", "our", "out", "over", "so", "than",
                             "that", "the", "their", "this", "to", "under", "up", "use", "with", "without", "your"))


@dataclass(frozen=True, slots=True)
class PurchaseScore:
    """The parts of a purchase's reward, each in [0, 1]; `options` is None where the goal asks for none."""

    reward: float
    type: float
    attributes: float
    options: float | None
    price: float


def score_purchase(product: Product, options: Mapping[str, str], goal: Goal) -> PurchaseScore:
    """r = r_type * (attributes met + options met + price met) / (attributes + options asked for + 1).

    Args:
        product: what was bought.
        options: what was chosen, name -> value.
    """
    attributes = sum(_has(product, attribute) for attribute in goal.attributes)
    wanted = list(goal.options.values())
    chosen = sum(any(_alike(_colour(value), _colour(wish)) for value in options.values()) for wish in wanted)
    price = product.price <= goal.price_limit
    kind = type_score(product, goal.product)
    reward = kind * (attributes + chosen + price) / (len(goal.attributes) + len(wanted) + 1)
    return PurchaseScore(reward, kind, attributes / len(goal.attributes), chosen / len(wanted) if wanted else None,
                         float(price))


def type_score(bought: Product, wanted: Product) -> float:
    """1 for a product of the wanted kind, 0.5 for one of another kind with a like title, 0.1 or 0 for another title.

    The original compares the nouns of the titles as a spaCy model tags them; here it is their words without function
    words and numbers, which in such titles are mostly nouns and names.
    """
    words = _words(wanted.title)
    shared = set(words) & set(_words(bought.title))
    title = len(shared) / len(words) if words else 0.2
    if title == 0:
        return 0.0
    if title < 0.1:
        return 0.1
    kindred = bought.query == wanted.query or len(set(bought.path) & set(wanted.path)) >= 2 or title > 0.2
    return 1.0 if kindred else 0.5


def _words(title: str) -> list[str]:
    found = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", title.lower())
    return [word for word in found if word not in _FUNCTION_WORDS and not word[0].isdigit()]


def _has(product: Product, attribute: str) -> bool:
    return (any(_alike(own, attribute) for own in product.attributes)
            or any(attribute in text for text in product.said))


def _colour(option: str) -> str:
    """The basic colour that an option's value names, or the value."""
    return next((colour for colour in _COLOURS if colour in option), option)


def _alike(one: str, other: str) -> bool:
    try:
        from rapidfuzz import fuzz, utils
    except ImportError:
        raise MissingExtra("rapidfuzz", "webshop") from None
    return bool(fuzz.token_set_ratio(one, other, processor=utils.default_process) > _ALIKE)
