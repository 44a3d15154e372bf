"""A catalogue made up by rule, for those who have no files: six categories of four kinds, twenty products each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from turncredit.envs.webshop.catalogue import Product

_SEED = 0
_PRODUCTS_OF_A_KIND = 20


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of product: the words of its titles, and what its products may be."""

    query: str
    attributes: str  # by comma
    options: str  # "name: value, value; name: value, value"
    price: tuple[int, int]  # dollars


_COLOURS = "black, white, navy blue, forest green, wine red, mustard yellow, charcoal grey"
_SIZES = "small, medium, large, x-large"
_SHOES = "6, 7, 8, 9, 10, 11"
_CATALOGUE = {
    ("fashion", "Clothing › Everyday Wear"): [
        _Kind("rain jackets", "water resistant, machine wash, light weight, drawstring closure, long sleeve, windproof",
              f"color: {_COLOURS}; size: {_SIZES}", (25, 140)),
        _Kind("running shoes", "rubber sole, slip resistant, arch support, breathable mesh, reflective, wide toe box",
              f"color: {_COLOURS}; size: {_SHOES}", (35, 160)),
        _Kind("wool sweaters", "hand wash, regular fit, crew neck, moth proofed, long sleeve, rib knit",
              f"color: {_COLOURS}; size: {_SIZES}", (20, 120)),
        _Kind("denim trousers", "machine wash, relaxed fit, button closure, stretch, straight leg, high waist",
              f"color: black, white, indigo, stone; size: {_SIZES}", (18, 95))],
    ("garden", "Home & Kitchen › Furniture"): [
        _Kind("bedside tables", "solid wood, easy assembly, soft close, cable cutout, scratch resistant, space saving",
              "color: oak, walnut, white; size: 16 inch, 20 inch, 24 inch", (40, 320)),
        _Kind("window curtains", "machine washable, blackout, thermal insulated, rod pocket, fade resistant, lined",
              f"color: {_COLOURS}; size: 52x63, 52x84, 52x96", (15, 110)),
        _Kind("throw pillows", "super soft, hidden zipper, double sided, stain resistant, hypoallergenic, washable",
              f"color: {_COLOURS}; size: 16x16, 18x18, 20x20", (8, 60)),
        _Kind("desk lamps", "energy efficient, touch control, adjustable arm, usb port, flicker free, dimmable",
              "color: brass, black, white", (15, 130))],
    ("beauty", "Beauty & Personal Care › Skin & Hair"): [
        _Kind("face creams", "fragrance free, cruelty free, anti aging, hyaluronic acid, dry skin, paraben free",
              "size: 30 ml, 50 ml, 100 ml", (6, 85)),
        _Kind("hair brushes", "detangling, vented, natural bristle, anti static, travel size, curly hair",
              "color: black, rose gold, teal", (5, 45)),
        _Kind("lip balms", "long lasting, spf protection, coconut oil, certified organic, vitamin e, vegan",
              "scent: mint, vanilla, cherry, plain", (3, 25)),
        _Kind("nail polishes", "quick drying, chip resistant, non toxic, high gloss, peel off, vegan",
              "color: black, wine red, mustard yellow, rose gold", (4, 30))],
    ("electronics", "Electronics › Accessories"): [
        _Kind("bluetooth headphones", "noise cancelling, fast charging, water resistant, foldable, hands free, bass",
              "color: black, white, navy blue", (20, 350)),
        _Kind("mechanical keyboards", "hot swappable, quick release, tenkeyless, backlit, silent, wireless",
              "color: black, white; layout: us, uk, german", (30, 240)),
        _Kind("tripod stands", "carbon fiber, quick release, non slip, heavy duty, carrying case, telescopic",
              "size: 50 inch, 60 inch, 72 inch", (18, 210)),
        _Kind("power banks", "fast charging, ultra compact, digital display, pass through, solar, flight approved",
              "capacity: 5000 mah, 10000 mah, 20000 mah; color: black, white", (12, 90))],
    ("toys", "Toys & Games › Play"): [
        _Kind("jigsaw puzzles", "recycled, thick pieces, poster included, glow in the dark, velvet",
              "pieces: 100, 500, 1000, 2000", (9, 55)),
        _Kind("building blocks", "non toxic, storage box, magnetic, montessori, splinter free, water based paint",
              "pieces: 24, 50, 100", (12, 90)),
        _Kind("card games", "family friendly, travel size, quick to learn, cooperative, linen",
              "edition: classic, deluxe", (7, 40)),
        _Kind("plush animals", "machine washable, weighted, embroidered eyes, organic cotton, super soft",
              "animal: otter, fox, badger, heron; size: small, large", (8, 60))],
    ("grocery", "Grocery & Gourmet Food › Pantry"): [
        _Kind("herbal teas", "caffeine free, individually wrapped, organic, sugar free, plant based bags, low tannin",
              "flavor: peppermint, rooibos, chamomile; size: 20 bags, 50 bags, 100 bags", (4, 35)),
        _Kind("granola bars", "gluten free, nut free, high protein, low sugar, vegan, non gmo",
              "flavor: cocoa, apricot, ginger; size: 6 pack, 12 pack, 24 pack", (5, 45)),
        _Kind("olive oils", "cold pressed, extra virgin, single origin, unfiltered, early harvest, kosher",
              "size: 250 ml, 500 ml, 1 l", (7, 70)),
        _Kind("spice blends", "salt free, hand crafted, resealable, non irradiated, gluten free, whole seeds",
              "heat: mild, medium, hot; size: 2 oz, 8 oz", (3, 28))],
}


def generated_catalogue() -> list[Product]:
    """480 products, the same on every machine. Titles of different kinds share no word."""
    rng = np.random.default_rng(_SEED)
    brands: set[str] = set()
    return [_product(rng, brands, category, path, kind) for (category, path), kinds in _CATALOGUE.items()
            for kind in kinds for _ in range(_PRODUCTS_OF_A_KIND)]


def _product(rng: np.random.Generator, brands: set[str], category: str, path: str, kind: _Kind) -> Product:
    brand = _new_brand(rng, brands)
    title = f"{brand.title()} {kind.query.title()} {_word(rng, 2).upper()}-{len(brands)}"
    possible = kind.attributes.split(", ")
    attributes = [str(a) for a in rng.choice(possible, size=int(rng.integers(3, 6)), replace=False)]
    asked = attributes[:int(rng.integers(1, 4))]
    options = {}
    for option in kind.options.split("; "):
        name, values = option.split(": ")
        listed = values.split(", ")
        kept = sorted(rng.choice(len(listed), size=max(2, len(listed) - int(rng.integers(0, 3))), replace=False)
                      if len(listed) > 2 else range(len(listed)))
        options[name] = [listed[i] for i in kept]
    price = round(float(rng.uniform(*kind.price)), 2)
    bullets = tuple(f"{attribute.capitalize()}: {_PRAISE[int(rng.integers(len(_PRAISE)))]}" for attribute in attributes)
    description = f"{kind.query.capitalize()} by {brand.title()}. {'; '.join(attributes)}."
    asin = "B" + hashlib.sha1(title.encode()).hexdigest()[:9].upper()
    return Product(asin, title, kind.query, category, (*path.split(" › "), kind.query), description,
                   bullets, options, price, f"${price}", tuple(attributes),
                   instruction=f"Find me {', '.join(asked)} {kind.query}", instruction_attributes=tuple(asked))


_PRAISE = ("made to last", "tested by an independent laboratory", "what our customers like best", "for every day",
           "better than the model before", "at home and on the way")


def _new_brand(rng: np.random.Generator, taken: set[str]) -> str:
    while (brand := _word(rng, 6)) in taken:
        pass
    taken.add(brand)
    return brand


def _word(rng: np.random.Generator, length: int) -> str:
    """Consonants and vowels in turn."""
    return "".join(str(rng.choice(list("bdfgklmnprstvz" if i % 2 == 0 else "aeiou"))) for i in range(length))
