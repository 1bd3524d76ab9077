"""The built-in demo shop: a seeded catalogue, judgements and search log whose ground truth is known.

As in a real shop, word matching does not solve it: accessories name the product that they belong to ("case for Nuvo X2
smartphone"), relevant products often have another name ("couch" for "sofa"), a product of the right kind may have the
wrong material, size or gender, and the shop's product types are coarse and sometimes wrong.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from datetime import date
from functools import cached_property
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from pyarrow import csv

from distilrank.config import DemoShop
from distilrank.core import artifacts, schemas
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.data.sources.base import Log
from distilrank.data.sources.demo_shop import catalogue, judgements, logs, queries
from distilrank.data.sources.demo_shop.catalogue import Catalogue
from distilrank.data.sources.demo_shop.queries import GRADES, Query
from distilrank.data.sources.demo_shop.vocabulary import KINDS, NEW_KIND, SEASONAL

GENERATOR = 1
"""Version of the generator; increase it whenever the same configuration would give other data."""

_HEAD_SHARE, _TORSO_SHARE = 0.2, 0.35
_ZIPF = 0.8
"""Exponent of the decrease of a query's frequency with its rank."""
_NEVER_SEARCHED = 0.1
"""Share of torso and tail queries that are never searched; raters may still have judged them."""

_EXPORTED = """\
# Three CSV files in the form that your own data may have: replace them, and name your columns below.
# judgements: a row a judged pair; catalogue: a row a product; logs: a row a product shown, and whether it was clicked.
"""


class Shop:
    """The demo shop as a source; all data is generated from the seed when it is first needed."""

    rating_range = (0.0, float(len(GRADES) - 1))
    rating_conflicts = "refuse"
    # A substitute (2) can be bought instead, a complement (1) cannot, so a mean of 2 is relevant.
    relevant_from = 2.0

    def __init__(self, config: DemoShop) -> None:
        self.config = config

    def files(self) -> list[str]:
        """None: the shop is generated."""
        return []

    def check(self, problems: Problems) -> None:
        """Nothing can be missing."""

    def digest(self) -> str:
        """Digest of the configuration and of the generator's version."""
        return artifacts.digest_json({"generator": GENERATOR, **self.config.model_dump(mode="json")})

    def products(self, problems: Problems) -> Iterator[pa.RecordBatch]:
        """The catalogue, as schemas.PRODUCTS; products of the new kind, if any, come last."""
        yield from self._catalogue.table.to_batches()

    def judgements(self, problems: Problems) -> pa.Table:
        """The judged pairs, as schemas.JUDGEMENTS."""
        pairs = self.truth()
        ratings = judgements.rate(
            pairs["grade"].to_numpy(), self.config.raters, self.config.rater_noise, self._draw("ratings")
        )
        raters = pa.array(np.full(len(ratings), self.config.raters, dtype=np.int32))
        unknown = [pa.nulls(len(ratings), kind) for kind in (pa.float64(), pa.string(), pa.int32())]
        return pa.table(
            [pairs["query"], pairs["product_id"], pa.array(ratings), raters, *unknown], schema=schemas.JUDGEMENTS
        )

    def truth(self) -> pa.Table:
        """The judged pairs without the raters' noise: query, product_id, grade (int8; see GRADES)."""
        return self._truth

    @cached_property
    def _truth(self) -> pa.Table:
        draw = self._draw("judgements")
        query_numbers = draw.choice(len(self._queries), self.config.judged_queries, replace=False)
        texts, rows, grades = [], [], []
        for number in np.sort(query_numbers):
            query = self._queries[number]
            truth = queries.grades(query, self._first)
            picked = judgements.pick(truth, self._words(query.text), self.config.judged_per_query, draw)
            texts += [query.text] * len(picked)
            rows.append(picked)
            grades.append(truth[picked])
        ids = self._first.table["product_id"].combine_chunks().take(pa.array(np.concatenate(rows)))
        return pa.table({"query": pa.array(texts), "product_id": ids, "grade": pa.array(np.concatenate(grades))})

    def grade(self, query: str, product_id: str) -> int:
        """The true grade, an index into GRADES, of a query of the judgements or the log and a product.

        Raises:
            KeyError: the shop does not know the query or the product.
        """
        return int(queries.grades(self._find_query(query), self._catalogue)[self._rows[product_id]])

    def log(self) -> Log:
        """The search log in one part, without clients."""
        return Log(parts=[GeneratedLog(self)], timed=True, clients=False, settings={}, people=False)

    def impressions(self) -> pa.Table:
        """The search log, as schemas.IMPRESSIONS, in order of time."""
        return self._impressions

    @cached_property
    def _impressions(self) -> pa.Table:
        moments = logs.times(self.config.searches, self.config.days, self._draw("times"))
        searched, texts = self._searches(np.flatnonzero(logs.second_period(moments)))
        draw = self._draw("results")
        # Only searches for the new kind show it, so the results of the other searches do not change.
        results = [
            logs.retrieve(self._words(query.text), queries.grades(query, self._first), draw) for query in self._queries
        ]
        if self.config.drift.new_product_type:
            words = _word_match(self._catalogue)
            results += [
                logs.retrieve(words(query.text), queries.grades(query, self._catalogue), draw)
                for query in self._new_queries
            ]
        ids = self._catalogue.table["product_id"].combine_chunks()
        return logs.show(moments, texts, searched, results, ids, self._draw("shown"))

    def _searches(self, second: np.ndarray) -> tuple[np.ndarray, pa.Array]:
        """Index and text of each search's query; `second` holds the indices of the searches of the second period."""
        drift, config = self.config.drift, self.config
        everything = [*self._queries, *self._new_queries]
        strata = np.array([query.stratum for query in self._queries])
        searched = self._draw("searches").choice(len(self._queries), config.searches, p=self._frequencies)

        # A separate random stream for each kind of drift, so that they do not affect one another.
        draw = self._draw("query mix")
        heads = draw.permutation(second[strata[searched[second]] == "head"])[: round(drift.query_mix * len(second))]
        searched[heads] = draw.choice(np.flatnonzero(strata == "tail"), len(heads))

        draw = self._draw("new kind")
        new = draw.permutation(second)[: round(drift.new_product_type * len(second))]
        searched[new] = len(self._queries) + draw.integers(0, len(self._new_queries), len(new))

        texts = np.array([query.text for query in everything], dtype=object)[searched]
        draw = self._draw("season")
        for number in draw.permutation(second)[: round(drift.seasonal_words * len(second))]:
            texts[number] = logs.seasonal(texts[number], draw)
        return searched, pa.array(texts, type=pa.string())

    def _draw(self, stream: str) -> np.random.Generator:
        """A separate random generator for each purpose, so that changing one amount does not change other data."""
        return np.random.default_rng([self.config.seed, *stream.encode()])

    @cached_property
    def _first(self) -> Catalogue:
        """The products of the first period, which the raters judged."""
        return catalogue.make(KINDS, self.config.products, f"{self.config.seed}/products", 1)

    @cached_property
    def _new(self) -> Catalogue:
        """The products of the new kind, generated even if the shop does not sell them."""
        count = max(logs.SHOWN, self.config.products // len(KINDS))
        return catalogue.make([NEW_KIND], count, f"{self.config.seed}/new", self.config.products + 1)

    @cached_property
    def _catalogue(self) -> Catalogue:
        return catalogue.join(self._first, self._new) if self.config.drift.new_product_type else self._first

    @cached_property
    def _queries(self) -> list[Query]:
        """All queries except those for the new kind: head, torso, tail."""
        config = self.config
        draw = random.Random(f"{config.seed}/queries")
        sold = self._first.products
        kinds = [kind for kind in KINDS if kind.name in self._first.members]
        taken: set[str] = set()
        # Usual names tend to precede slang and plurals, since the order is that of frequency.
        ranked = [
            (draw.random() + 0.25 * position, query)
            for kind in kinds
            for position, query in enumerate(queries.head(kind))
        ]
        names = [query for _, query in sorted(ranked, key=lambda entry: entry[0])]
        offered = iter(names)
        head = queries.distinct(lambda: next(offered, names[0]), round(_HEAD_SHARE * config.queries), taken)
        torso = queries.distinct(
            lambda: queries.torso(draw.choice(sold), draw), round(_TORSO_SHARE * config.queries), taken
        )
        rest = config.queries - len(head) - len(torso)
        tail = queries.distinct(lambda: queries.tail(draw.choice(sold), draw), rest, taken)
        if len(tail) < rest:
            raise InputError(
                f"data.queries: {config.queries} asked for, but {config.products} products give only "
                f"{config.queries - rest + len(tail)} distinct ones; ask for fewer or raise data.products"
            )
        return [*head, *torso, *tail]

    @cached_property
    def _new_queries(self) -> list[Query]:
        draw = random.Random(f"{self.config.seed}/new queries")
        head = queries.head(NEW_KIND)
        taken = {query.text for query in [*self._queries, *head]}
        return head + queries.distinct(lambda: queries.torso(draw.choice(self._new.products), draw), 12, taken)

    @cached_property
    def _frequencies(self) -> np.ndarray:
        """Each query's share of the searches; queries are in the order of their ranks, heads first."""
        weights = 1 / np.arange(1, len(self._queries) + 1) ** _ZIPF
        rare = np.array([query.stratum != "head" for query in self._queries])
        rare[0] = False  # at least one query is searched
        weights[rare & (self._draw("never searched").random(len(rare)) < _NEVER_SEARCHED)] = 0
        return weights / weights.sum()

    @cached_property
    def _words(self) -> logs.WordMatch:
        return _word_match(self._first)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {product: row for row, product in enumerate(self._catalogue.table["product_id"].to_pylist())}

    @cached_property
    def _by_text(self) -> dict[str, Query]:
        return {query.text: query for query in [*self._queries, *self._new_queries]}

    def _find_query(self, text: str) -> Query:
        """The query of `text`, with or without seasonal words around it."""
        for form in ("{}", *SEASONAL):
            before, after = form.split("{}")
            if text.startswith(before) and text.endswith(after):
                query = self._by_text.get(text[len(before) : len(text) - len(after)])
                if query is not None:
                    return query
        raise KeyError(text)


class GeneratedLog:
    """The log of a shop; see `sources.base.Part`."""

    name = "the demo shop's log"

    def __init__(self, shop: Shop) -> None:
        self.shop = shop

    def key(self) -> str:
        return self.shop.digest()

    def digest(self) -> str:
        return self.shop.digest()

    def days(self) -> dict[date | None, int]:
        days = pc.value_counts(self.shop.impressions()["timestamp"].cast(pa.date32()))
        return {day["values"]: day["counts"] for day in days.to_pylist()}

    def load(self, connection: duckdb.DuckDBPyConnection, problems: Problems) -> None:
        shown = self.shop.impressions()
        nothing = pa.nulls(len(shown), pa.string())
        columns = {
            "at": shown["timestamp"].cast(pa.timestamp("us")),
            "search": nothing,
            **{name: shown[name] for name in ("query", "product_id", "position")},
            "shown": pa.array(np.ones(len(shown), np.int32)),
            "clicked": shown["clicked"].cast(pa.int32()),
            "client": nothing,
            "row_id": nothing,
        }
        connection.from_arrow(pa.table(columns, schema=schemas.EVENTS)).insert_into("events")


def _word_match(sold: Catalogue) -> logs.WordMatch:
    rows = sold.table.select(schemas.PRODUCT_FIELDS).to_pylist()
    return logs.WordMatch([" ".join(filter(None, row.values())) for row in rows])


def open(data: DemoShop) -> Shop:
    """Return the configured shop."""
    return Shop(data)


def export(shop: Shop, folder: Path) -> None:
    """Write the tables of `shop` as the files that `source: tables` reads, with a configuration that names them.

    `folder` gets judgements.csv, catalogue.csv, logs.csv and config.yaml, whose paths start with `folder` as given;
    files of these names are replaced.
    """
    problems, log = Problems(), shop.impressions()
    iso = pc.strftime(log["timestamp"].cast(pa.timestamp("s", tz="UTC")), format="%Y-%m-%dT%H:%M:%SZ")
    tables = {
        "judgements": shop.judgements(problems).drop_columns(["gain", "locale", "rater"]),
        "catalogue": pa.Table.from_batches(shop.products(problems), schemas.PRODUCTS),
        "logs": log.set_column(log.column_names.index("timestamp"), "timestamp", iso),
    }
    for name, table in tables.items():
        text = io.BytesIO()
        csv.write_csv(table, text, csv.WriteOptions(quoting_style="needed"))
        artifacts.write_text(folder / f"{name}.csv", text.getvalue().decode())

    low, high = shop.rating_range
    data = {
        "source": "tables",
        **{name: str(folder / f"{name}.csv") for name in tables},
        "rating_min": low,
        "rating_max": high,
        "relevant_from": shop.relevant_from,
        "columns": {column: column for table in tables.values() for column in table.column_names},
    }
    # The shop's log has no client ids.
    values = {"data": data, "prepare": {"privacy": {"min_clients": 1}}}
    artifacts.write_text(folder / "config.yaml", _EXPORTED + yaml.safe_dump(values, sort_keys=False))
