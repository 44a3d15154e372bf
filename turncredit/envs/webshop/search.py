"""The shop's search engine: BM25 as Lucene has it, with the parameters and the stemmer of the original's index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from turncredit.envs.webshop.catalogue import Product
from turncredit.errors import MissingExtra

MOST_RESULTS = 50
_K1, _B = 0.9, 0.4  # Pyserini's


class ProductIndex:
    """BM25 over title, description, first bullet point and options.

    Raises:
        MissingExtra: bm25s or PyStemmer is not installed.
    """

    def __init__(self, products: Sequence[Product]) -> None:
        try:
            import bm25s
            import Stemmer
        except ImportError:
            raise MissingExtra("bm25s", "webshop") from None
        self._products = products
        self._stem = Stemmer.Stemmer("porter")
        self._tokenize = bm25s.tokenize
        self._ranking = bm25s.BM25(k1=_K1, b=_B, method="lucene", backend="numpy")
        self._ranking.index(self._tokens([product.searchable for product in products]), show_progress=False)

    def search(self, words: str) -> list[Product]:
        """The products that hold any of the words, the best first, `MOST_RESULTS` at most; ties in catalogue order."""
        # Where nothing is left of a query it is the empty token, which the index has without postings.
        tokens = [token for token in self._tokens([words])[0] if token and token in self._ranking.vocab_dict]
        if not tokens:
            return []
        scores = self._ranking.get_scores(tokens)
        best = np.argsort(-scores, kind="stable")[:MOST_RESULTS]
        return [self._products[i] for i in best if scores[i] > 0]

    def _tokens(self, texts: list[str]) -> Any:
        return self._tokenize(texts, stopwords="en", stemmer=self._stem, return_ids=False, show_progress=False,
                              allow_empty=False)
