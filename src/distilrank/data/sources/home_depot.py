"""Home Depot product search relevance: human-judged (query, product title) pairs, without a catalogue or a log.

Each rating is the mean of at least three raters on 1 to 3 (irrelevant, partially or somewhat relevant, perfect
match). https://www.kaggle.com/c/home-depot-product-search-relevance
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from distilrank.config import HomeDepot
from distilrank.core import artifacts, normalize
from distilrank.core.problems import EXAMPLES, Problems
from distilrank.data.sources.judged_pairs import judgements
from distilrank.data.sources.reading import File, product_batches
from distilrank.data.sources.storage import LocalFile

COLUMNS = {"query": "search_term", "product_id": "product_uid", "title": "product_title", "rating": "relevance"}
RATERS = 3


def open(data: HomeDepot) -> HomeDepotSource:
    """Return the source of the file that `data` names, without reading it."""
    return HomeDepotSource(data)


class HomeDepotSource:
    """One file; see `Source` in this package. The catalogue has every product of the file, even if `queries` is set.

    The competition's own file is Latin-1, copies are often UTF-8: a file that is not valid UTF-8 is read as Latin-1. A
    few products have two wordings of the title; the first one is used.
    """

    rating_range = (1.0, 3.0)
    rating_conflicts = "refuse"
    relevant_from = 2.33

    def __init__(self, data: HomeDepot) -> None:
        self.data = data

    @cached_property
    def _file(self) -> File:
        file = File(Path(self.data.path), COLUMNS)
        return file if file.is_utf8() else File(Path(self.data.path), COLUMNS, encoding="latin-1")

    def files(self) -> list[str]:
        return [self.data.path]

    def check(self, problems: Problems) -> None:
        File(Path(self.data.path), COLUMNS).check(problems)

    def digest(self) -> str:
        content = LocalFile(Path(self.data.path)).digest()
        return artifacts.digest_json({"data": self.data.model_dump(mode="json"), "files": [content]})

    def products(self, problems: Problems) -> Iterator[pa.RecordBatch]:
        tables = [
            rows.keep(product_id=rows.key("product_id"), title=rows.text("title"))
            for rows in self._file.batches(problems)
        ]
        if not tables:
            return
        wordings = pa.concat_tables(tables).group_by(["product_id", "title"], use_threads=False).aggregate([])
        first = wordings.group_by("product_id", use_threads=False).aggregate([("title", "first")])
        twice = pc.value_counts(wordings["product_id"])
        twice = twice.filter(pc.greater(twice.field("counts"), 1)).field("values").slice(0, EXAMPLES).to_pylist()
        problems.add(
            self._file.name,
            "left out, other wordings of a product's title; the first one is used",
            rows=len(wordings) - len(first),
            examples=[f"product {product!r}" for product in twice],
            fatal=False,
        )
        yield from product_batches(first.rename_columns({"title_first": "title"}))

    def judgements(self, problems: Problems) -> pa.Table:
        table = judgements([self._file], self._file.name, self.rating_range, RATERS, problems)
        if not self.data.queries:
            return table
        raw = pc.unique(table["query"]).to_pylist()
        keys = {text: normalize.query_id(text) for text in raw}
        chosen_keys = set(sorted(set(keys.values()))[: self.data.queries])
        chosen_texts = pa.array([text for text in raw if keys[text] in chosen_keys], pa.string())
        return table.filter(pc.is_in(table["query"], value_set=chosen_texts))

    def log(self) -> None:
        return None
