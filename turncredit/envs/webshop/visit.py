"""A customer's visit to the shop: the page that is open, the options chosen, and what stands on each page."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence

from turncredit.envs.webshop.catalogue import Product

PAGE_SIZE = 10
BUY, NEXT, BACK, RETURN = "Buy Now", "Next >", "< Prev", "Back to Search"


class Page(enum.Enum):
    """The kinds of page."""

    SEARCH = "search"
    RESULTS = "results"
    ITEM = "item"
    DESCRIPTION = "Description"
    FEATURES = "Features"
    REVIEWS = "Reviews"


_DETAILS = (Page.DESCRIPTION, Page.FEATURES, Page.REVIEWS)


class Visit:
    """State of one customer. `search` may be called on any page, `click` with what stands in brackets on this one."""

    def __init__(self, find: Callable[[str], Sequence[Product]]) -> None:
        self._find = find
        self._results: Sequence[Product] = ()
        self._number = 1
        self.page = Page.SEARCH
        self.product: Product | None = None
        self.options: dict[str, str] = {}
        self.bought = False

    def search(self, words: str) -> None:
        """Open the first page of results."""
        self._results = self._find(words)
        self._open_results(1)

    def click(self, label: str) -> bool:
        """Follow a button, a product or an option's value, in any case; False where the page has none of that name."""
        wanted = " ".join(label.lower().split())
        action = next((act for name, act in self._clickable() if " ".join(name.lower().split()) == wanted), None)
        if action is None:
            return False
        action()
        return True

    @property
    def clickable(self) -> list[str]:
        """What can be clicked on the page."""
        return list(dict.fromkeys(name for name, _ in self._clickable()))

    def text(self) -> str:
        """The page as the agent reads it."""
        lines = {Page.SEARCH: self._search_lines, Page.RESULTS: self._result_lines,
                 Page.ITEM: self._item_lines}.get(self.page, self._detail_lines)()
        return "\n".join(lines)

    def _clickable(self) -> Iterator[tuple[str, Callable[[], None]]]:
        if self.page is Page.SEARCH:
            return
        yield RETURN, self._open_search
        if self.page is Page.RESULTS:
            if self._number > 1:
                yield BACK, lambda: self._open_results(self._number - 1)
            if self._number * PAGE_SIZE < len(self._results):
                yield NEXT, lambda: self._open_results(self._number + 1)
            for product in self._shown:
                yield product.asin, lambda product=product: self._open_item(product)  # type: ignore[misc]
        elif self.page is Page.ITEM:
            yield BACK, lambda: self._open_results(self._number)
            yield from self._options()
            for page in _DETAILS:
                yield page.value, lambda page=page: self._turn_to(page)  # type: ignore[misc]
            yield BUY, self._buy
        else:
            yield BACK, lambda: self._turn_to(Page.ITEM)

    def _options(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Options not chosen yet come first: a value that two of them have can be chosen for both."""
        assert self.product is not None
        for name in sorted(self.product.options, key=lambda name: name in self.options):
            for value in self.product.options[name]:
                yield value, lambda name=name, value=value: self.options.update({name: value})  # type: ignore[misc]

    @property
    def _shown(self) -> Sequence[Product]:
        return self._results[(self._number - 1) * PAGE_SIZE:self._number * PAGE_SIZE]

    def _turn_to(self, page: Page) -> None:
        self.page = page

    def _open_search(self) -> None:
        self.page = Page.SEARCH

    def _open_results(self, number: int) -> None:
        self.page, self._number = Page.RESULTS, number

    def _open_item(self, product: Product) -> None:
        self.page, self.product, self.options = Page.ITEM, product, {}

    def _buy(self) -> None:
        self.bought = True

    def _search_lines(self) -> list[str]:
        return ["The shop's search page: search[words]"]

    def _result_lines(self) -> list[str]:
        buttons = [name for name in self.clickable if name in (RETURN, BACK, NEXT)]
        found = [f"[{product.asin}] {product.title} | {product.price_tag}" for product in self._shown]
        return [_buttons(buttons), f"Page {self._number} (total results: {len(self._results)})", *found]

    def _item_lines(self) -> list[str]:
        product = self.product
        assert product is not None
        options = [f"{name}{f' ({self.options[name]})' if name in self.options else ''}: {_buttons(list(values))}"
                   for name, values in product.options.items()]
        return [_buttons([RETURN, BACK]), product.title, f"Price: {product.price_tag}", f"Rating: {product.rating}",
                *options, _buttons([*(page.value for page in _DETAILS), BUY])]

    def _detail_lines(self) -> list[str]:
        product = self.product
        assert product is not None
        texts = {Page.DESCRIPTION: [product.description], Page.FEATURES: product.bullets,
                 Page.REVIEWS: product.reviews}[self.page]
        return [_buttons([RETURN, BACK]), *(texts or ["none"])]


def _buttons(names: Sequence[str]) -> str:
    return " ".join(f"[{name}]" for name in names)
