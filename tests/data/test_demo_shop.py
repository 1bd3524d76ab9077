"""The demo shop: reproducible, believable, hard for words and soluble for what reads them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import Ridge

from distilrank import config
from distilrank.core import normalize, schemas
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.data import bm25, log_store, sources
from distilrank.data.sources import demo_shop
from distilrank.data.sources.demo_shop import logs, queries
from distilrank.data.sources.demo_shop.queries import GRADES, Query
from distilrank.evaluation import metrics

SECOND = pa.scalar((logs.END - np.timedelta64(7, "D")).item(), pa.timestamp("us")).cast(pa.timestamp("us", tz="UTC"))


def shop(**settings) -> demo_shop.Shop:
    return demo_shop.open(config.DemoShop(source="demo_shop", **settings))


@pytest.fixture(scope="module")
def default() -> demo_shop.Shop:
    return shop()


def sold(source: demo_shop.Shop) -> pa.Table:
    return pa.Table.from_batches(source.products(Problems()), schemas.PRODUCTS)


def judged_by(source: demo_shop.Shop) -> pa.Table:
    return source.judgements(Problems())


def events(source: sources.Source) -> pa.Table:
    with duckdb.connect() as connection:
        log_store.create_events(connection)
        for part in source.log().parts:
            part.load(connection, Problems())
        return connection.sql("SELECT * FROM events").to_arrow_table()


def periods(log: pa.Table) -> tuple[pa.Table, pa.Table]:
    second = pc.greater_equal(log["timestamp"], SECOND)
    return log.filter(pc.invert(second)), log.filter(second)


def searched(log: pa.Table) -> list[str]:
    return log.filter(pc.equal(log["position"], 1))["query"].to_pylist()


def test_tables_fit_their_schemas_and_one_another(default):
    products, judged, log = sold(default), judged_by(default), default.impressions()
    assert (products.schema, judged.schema, log.schema) == (
        schemas.PRODUCTS,
        schemas.JUDGEMENTS,
        schemas.IMPRESSIONS,
    )
    settings = default.config
    assert products.num_rows == settings.products
    assert log.num_rows == settings.searches * logs.SHOWN
    ids = set(products["product_id"].to_pylist())
    assert len(ids) == products.num_rows
    assert ids >= set(judged["product_id"].to_pylist()) | set(log["product_id"].to_pylist())
    pairs = list(zip(judged["query"].to_pylist(), judged["product_id"].to_pylist()))
    assert len(set(pairs)) == len(pairs) == settings.judged_queries * settings.judged_per_query
    assert len({normalize.query_id(query) for query, _ in pairs}) == settings.judged_queries
    assert set(judged["raters"].to_pylist()) == {settings.raters}
    low, high = default.rating_range
    assert low <= pc.min(judged["rating"]).as_py() < default.relevant_from < pc.max(judged["rating"]).as_py() <= high


def test_open_is_what_sources_open_gives(default):
    source = sources.open(config.DemoShop(source="demo_shop"))
    source.check(Problems())
    assert source.files() == []
    assert sold(source).equals(sold(default))


def test_the_seed_decides_everything_in_any_process(default):
    program = """
import hashlib
from distilrank import config; from distilrank.data import sources
from distilrank.core.problems import Problems
shop = sources.open(config.DemoShop(source="demo_shop"))
tables = [*shop.products(Problems()), shop.judgements(Problems()), shop.impressions()]
for table in tables:
    print(hashlib.sha256(repr(table.to_pydict()).encode()).hexdigest())
"""
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    other = shop(seed=8)
    assert not sold(other).equals(sold(default))
    assert other.digest() != default.digest() == shop().digest()


def test_titles_read_like_titles_and_fields_have_gaps(default):
    products = sold(default)
    words = np.array([len(title.split()) for title in products["title"].to_pylist()])
    assert words.max() <= 14
    assert np.quantile(words, 0.1) >= 6
    for name, low, high in (("product_type", 0.05, 0.2), ("brand", 0.03, 0.15), ("description", 0.03, 0.15)):
        assert low < products[name].null_count / products.num_rows < high
    # Knowing the shop's own product type is far from knowing what a product is.
    assert len(set(products["product_type"].to_pylist())) < 0.75 * len(
        {p.kind.name for p in default._catalogue.products}
    )


# Ground truth -----------------------------------------------------------------------------------------------------


def grades_by_kind(default, query: Query) -> dict[str, set[str]]:
    grades: dict[str, set[str]] = {}
    for product, grade in zip(default._catalogue.products, queries.grades(query, default._catalogue)):
        grades.setdefault(product.kind.name, set()).add(GRADES[grade])
    return grades


def test_a_bare_name_asks_for_its_kind_whatever_it_is_called(default):
    grades = grades_by_kind(default, Query("couch", "head", "sofa"))
    assert grades.pop("sofa") == {"exact"}
    assert grades.pop("loveseat") == {"substitute"}
    assert grades.pop("sofa cover") == grades.pop("throw pillow") == {"complement"}
    assert set.union(*grades.values()) == {"irrelevant"}


def test_an_accessory_is_no_main_product_and_must_fit(default):
    phones = [p for p in default._catalogue.products if p.kind.name == "smartphone"]
    model = phones[0].values["fits"]
    asks = (("fits", model),)
    phone = queries.grades(Query(f"{model} phone", "torso", "smartphone", asks), default._catalogue)
    case = queries.grades(Query(f"case for {model}", "torso", "phone case", asks), default._catalogue)
    for row, product in enumerate(default._catalogue.products):
        fits = product.values["fits"] == model
        if product.kind.name == "phone case":
            assert GRADES[phone[row]] == ("complement" if fits else "irrelevant")
            assert GRADES[case[row]] == ("exact" if fits else "irrelevant")
        elif product.kind.name == "smartphone":
            assert GRADES[phone[row]] == ("exact" if fits else "irrelevant")
            assert GRADES[case[row]] == ("complement" if fits else "irrelevant")


def test_wrong_attributes_cost_and_add_up(default):
    asks = (("gender", "women"), ("style", "waterproof"), ("size", "size 8"))
    query = Query("womens waterproof trail shoes size 8", "tail", "trail shoes", asks)
    grades = set()
    for product, grade in zip(default._catalogue.products, queries.grades(query, default._catalogue)):
        values = product.values
        if product.kind.name in ("trail shoes", "running shoes"):
            misses = (product.kind.name == "running shoes") + 2 * (values["gender"] == "men")
            misses += (values["style"] != "waterproof") + (values["size"] != "size 8")
            assert GRADES[grade] == ("exact" if not misses else "substitute" if misses <= 2 else "irrelevant")
            grades.add(GRADES[grade])
        elif product.kind.name == "running socks":
            assert GRADES[grade] == ("irrelevant" if values["gender"] == "men" else "complement")
    assert grades >= {"substitute", "irrelevant"}


def test_grade_knows_the_queries_of_judgements_and_log(default):
    truth = default.truth().slice(0, 20)
    for query, product, grade in zip(*(column.to_pylist() for column in truth.columns)):
        assert default.grade(query, product) == grade
        assert default.grade(f"{query} christmas gift", product) == grade
    with pytest.raises(KeyError, match="no such wish"):
        default.grade("no such wish", "P000001")


def test_queries_that_name_attributes_have_a_product_that_serves_them(default):
    for query in default._queries:
        if query.asks:
            assert queries.grades(query, default._catalogue).max() == queries.EXACT, query


# Judgements -------------------------------------------------------------------------------------------------------


def test_every_list_is_discriminative(default):
    truth = default.truth().to_pandas()
    assert truth["grade"].value_counts(normalize=True).min() > 0.1
    distinct = truth.groupby("query")["grade"].nunique()
    assert distinct.min() >= 2
    assert (distinct >= 3).mean() > 0.85


def test_ratings_are_the_truth_with_the_noise_of_raters(default):
    grade = default.truth()["grade"].to_numpy()
    rating = judged_by(default)["rating"].to_numpy()
    assert 0.02 < (rating != grade).mean() < 0.5
    assert np.abs(rating - grade).mean() < 0.15
    exact = shop(rater_noise=0.0)
    assert np.array_equal(judged_by(exact)["rating"].to_numpy(), exact.truth()["grade"].to_numpy())
    noisy = shop(raters=1, rater_noise=1.0)
    assert set(np.abs(judged_by(noisy)["rating"].to_numpy() - noisy.truth()["grade"].to_numpy())) <= {0, 1}


def test_few_judged_products_are_as_many_as_asked_for():
    for count in (1, 3, 5, 20):
        small = shop(products=300, queries=60, judged_queries=20, judged_per_query=count, searches=10)
        assert judged_by(small).num_rows == 20 * count


def cross_words(query: str, title: str) -> list[str]:
    asked, title_words = (re.findall(r"[a-z0-9]+", text.lower()) for text in (query, title))
    return [f"{a} {b}" for a in asked for b in title_words] + ["met" if a in title_words else "missed" for a in asked]


def test_words_alone_do_not_solve_it_but_reading_them_does(default):
    products = {row["product_id"]: row for row in sold(default).to_pylist()}
    index_by_product = {product: number for number, product in enumerate(products)}
    index = bm25.Index(
        " ".join(filter(None, (row[name] for name in ("title", "product_type", "brand", "color"))))
        for row in products.values()
    )
    judged = judged_by(default)
    texts, query = np.unique(judged["query"].to_pylist(), return_inverse=True)
    product = judged["product_id"].to_pylist()
    gain = judged["rating"].to_numpy() / 3

    def ndcg(score: np.ndarray, rows: np.ndarray) -> float:
        _, number = np.unique(query[rows], return_inverse=True)
        return float(np.mean(metrics.ndcg(number, gain[rows], score[rows], 10)))

    everything = np.ones(len(query), bool)
    words = index.scores(list(texts), query, np.array([index_by_product[product_id] for product_id in product]))
    chance = ndcg(np.random.default_rng(0).random(len(query)), everything)
    assert 0.65 < chance < 0.78
    assert chance + 0.08 < ndcg(words, everything) < 0.88
    assert ndcg(default.truth()["grade"].to_numpy(), everything) > 0.985

    # Words that go with one another, learnt from most queries, order the products of the others.
    pairs = [cross_words(texts[number], products[product_id]["title"]) for number, product_id in zip(query, product)]
    features = FeatureHasher(2**18, input_type="string").transform(pairs)
    held_back = query % 4 == 0
    learnt = Ridge(alpha=5).fit(features[~held_back], gain[~held_back]).predict(features)
    assert ndcg(learnt, held_back) > ndcg(words, held_back) + 0.01


# The log ----------------------------------------------------------------------------------------------------------


def test_a_search_shows_ten_products_once_each_at_one_moment(default):
    log = default.impressions().to_pandas()
    assert log["timestamp"].is_monotonic_increasing
    assert log["timestamp"].max() < logs.END.item().replace(tzinfo=log["timestamp"].dt.tz)
    assert log["timestamp"].min() >= (logs.END - np.timedelta64(35, "D")).item().replace(tzinfo=log["timestamp"].dt.tz)
    search = np.arange(len(log)) // logs.SHOWN
    assert (log["position"].to_numpy() == np.arange(len(log)) % logs.SHOWN + 1).all()
    by_search = log.groupby(search)
    assert (by_search[["timestamp", "query"]].nunique() == 1).all(axis=None)
    assert (by_search["product_id"].nunique() == logs.SHOWN).all()


def test_the_log_is_one_part_of_impressions(default):
    log, shown = default.log(), default.impressions()
    assert log.timed and not log.clients
    (part,) = log.parts
    other = shop(seed=8).log().parts[0]
    assert part.key() != other.key() and part.digest() != other.digest()
    assert sum(part.days().values()) == len(shown) and len(part.days()) == default.config.days
    rows = events(default)
    assert rows["clicked"].to_pylist() == [int(click) for click in shown["clicked"].to_pylist()]
    assert rows["at"].cast(pa.timestamp("us", tz="UTC")).equals(shown["timestamp"])
    for name in ("query", "product_id", "position"):
        assert rows[name].equals(shown[name])
    assert rows["shown"].unique().to_pylist() == [1]
    assert rows["client"].null_count == rows["search"].null_count == len(shown)


def test_clicks_follow_position_and_worth(default):
    log = default.impressions().slice(0, 20000).to_pandas()
    rate = log.groupby("position")["clicked"].mean()
    assert rate[1] > 1.5 * rate[2] > 2 * rate[6]
    top = log[log["position"] <= 2].head(3000)
    grade = [default.grade(query, product) for query, product in zip(top["query"], top["product_id"])]
    by_grade = top["clicked"].groupby(np.array(grade)).mean()
    assert by_grade[3] > by_grade[2] > by_grade[0]
    assert 0.4 < np.mean(np.array(grade) == 3) < 0.8  # a retrieval that leaves something to do


def test_few_queries_make_most_searches_and_some_are_never_searched(default):
    log = searched(default.impressions())
    counts = np.sort(np.unique(log, return_counts=True)[1])[::-1]
    assert counts[: len(counts) // 5].sum() > 0.5 * len(log)
    judged = set(judged_by(default)["query"].to_pylist())
    assert 0.8 < len(judged & set(log)) / len(judged) < 1


def head_share(source: demo_shop.Shop, texts: list[str]) -> float:
    head = {query.text for query in source._queries if query.stratum == "head"}
    return float(np.mean([text in head for text in texts]))


def test_without_drift_both_periods_are_alike(default):
    first, second = (searched(part) for part in periods(default.impressions()))
    assert len(second) == pytest.approx(default.config.searches / 5, rel=0.1)
    assert abs(head_share(default, first) - head_share(default, second)) < 0.05
    assert not any("christmas" in text for text in first + second)


def test_each_drift_setting_changes_what_it_names_and_nothing_else(default):
    before, _ = periods(default.impressions())

    def drifted(**settings: float) -> tuple[demo_shop.Shop, list[str], pa.Table]:
        source = shop(drift=settings)
        first, second = periods(source.impressions())
        assert first.equals(before)
        assert judged_by(source).equals(judged_by(default))
        return source, searched(second), second

    source, texts, _ = drifted(query_mix=0.3)
    _, usual = (searched(part) for part in periods(default.impressions()))
    assert head_share(default, usual) - head_share(source, texts) == pytest.approx(0.3, abs=0.01)

    _, texts, _ = drifted(seasonal_words=0.4)
    season = re.compile("christmas|xmas|gift|black friday|stocking filler")
    assert np.mean([bool(season.search(text)) for text in texts]) == pytest.approx(0.4, abs=0.01)

    source, texts, second = drifted(new_product_type=0.25)
    new = {query.text for query in source._new_queries}
    assert np.mean([text in new for text in texts]) == pytest.approx(0.25, abs=0.01)
    added = sold(source).slice(default.config.products)["product_id"].to_pylist()
    assert sold(source).slice(0, default.config.products).equals(sold(default))
    shown = second.filter(pc.is_in(second["query"], value_set=pa.array(sorted(new))))["product_id"].to_pylist()
    assert len(added) >= logs.SHOWN
    assert np.mean([product in set(added) for product in shown]) > 0.5


# Configuration and files ------------------------------------------------------------------------------------------


def test_more_queries_than_the_shop_can_give_is_an_input_error():
    greedy = shop(products=1, queries=3000, judged_queries=2)
    with pytest.raises(InputError, match=r"data\.queries: 3000 asked for, but 1 products give only \d+ distinct"):
        judged_by(greedy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queries": 10, "judged_queries": 11}, "judged_queries is 11, expected at most queries"),
        ({"days": 7}, "greater than or equal to 8"),
    ],
)
def test_impossible_sizes_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        config.parse({"data": {"source": "demo_shop", **settings}}, "demo.yaml")


def test_exported_files_give_the_same_tables(default, tmp_path: Path):
    demo_shop.export(default, tmp_path / "shop")
    written = config.load(tmp_path / "shop" / "config.yaml")
    assert written.prepare.privacy.min_clients == 1, "the shop does not tell who searched"
    tables = sources.open(written.data)
    tables.check(Problems())
    assert (tables.rating_range, tables.relevant_from) == (default.rating_range, default.relevant_from)
    assert pa.Table.from_batches(tables.products(Problems())).equals(sold(default))
    assert judged_by(tables).equals(judged_by(default))
    assert events(tables).equals(events(default))
    assert tables.log().parts[0].days() == default.log().parts[0].days()
