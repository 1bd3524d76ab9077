"""Home Depot product search relevance: human-judged (query, product title) pairs, no catalogue beside them, no log.

Each rating is the mean of at least three raters on 1 to 3 (irrelevant, partially or somewhat relevant, perfect
match). https://www.kaggle.com/c/home-depot-product-search-relevance
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from distilrank import artifacts, normalise, records
from distilrank.config import HomeDepot
from distilrank.sources.reading import File, judgements

COLUMNS = {"query": "search_term", "product_id": "product_uid", "title": "product_title", "rating": "relevance"}
RATERS = 3


def open(data: HomeDepot) -> HomeDepotSource:
    """The source over the file that `data` names; nothing is read yet."""
    return HomeDepotSource(data)


class HomeDepotSource:
    """One file; see `distilrank.sources.Source`. The catalogue is every product of the file, also with `queries` set.

    The competition's own file is Latin-1, copies of it are often UTF-8: what is not valid UTF-8 is read as Latin-1.
    A few products come with two wordings of the title; the first one stands.
    """

    rating_range = (1.0, 3.0)
    relevant_from = 2.33

    def __init__(self, data: HomeDepot) -> None:
        self.data = data

    @cached_property
    def _file(self) -> File:
        file = File(Path(self.data.path), COLUMNS)
        return file if file.is_utf8() else File(file.path, COLUMNS, encoding="latin-1")

    def files(self) -> list[Path]:
        return [Path(self.data.path)]

    def check(self) -> None:
        self._file.check()

    def digest(self) -> str:
        self.check()
        contents = [artifacts.digest_file(path) for path in self.files()]
        return artifacts.digest_json({"data": self.data.model_dump(mode="json"), "files": contents})

    def products(self) -> pa.Table:
        table = pa.table({"product_id": self._file.key("product_id"), "title": self._file.text("title")})
        first = table.group_by("product_id", use_threads=False).aggregate([("title", "first")])
        empty = {name: pa.nulls(first.num_rows, pa.string()) for name in records.PRODUCT_FIELDS}
        columns = {**empty, "product_id": first["product_id"], "title": first["title_first"]}
        return pa.table(columns, schema=records.PRODUCTS)

    def judgements(self) -> pa.Table:
        table = judgements(self._file, self.rating_range, RATERS)
        if not self.data.queries:
            return table
        raw = pc.unique(table["query"]).to_pylist()
        keys = {text: normalise.query_id(text) for text in raw}
        kept = set(sorted(set(keys.values()))[: self.data.queries])
        wanted = pa.array([text for text in raw if keys[text] in kept], pa.string())
        return table.filter(pc.is_in(table["query"], value_set=wanted))

    def impressions(self) -> None:
        return None

    def times(self) -> None:
        return None
