from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrank import config
from distilrank.config import Columns, HomeDepot, Prepare, Tables
from distilrank.core import artifacts, normalize, schemas
from distilrank.core.errors import InputError, RunStopped
from distilrank.data import bm25, prepare, splits
from distilrank.data.window import LogWindow

ROOT = Path(__file__).parents[2]
HOME_DEPOT = ROOT / config.load(ROOT / "configs" / "home-depot.yaml").data.path

# Queries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Red  Sofa", "red sofa "),
        ("ＣＡＦＥ\u0301", "café"),
        ("STRASSE", "straße"),
        ("men’s shoes", "men's shoes"),
        ("tv, 55 in.", "tv 55 in"),
        ("1½ pipe", "1 1/2 pipe"),
        ("6″ nail", '6" nail'),
        ("sofa\u200b", "sofa"),
    ],
)
def test_spellings_of_one_query(left: str, right: str) -> None:
    assert normalize.query_id(left) == normalize.query_id(right)


@pytest.mark.parametrize(
    ("left", "right"), [("3.5 in", "35 in"), ('6" pipe', "6' pipe"), ("#8", "8"), ("c++", "c"), ("?", "!")]
)
def test_spellings_of_two_queries(left: str, right: str) -> None:
    assert normalize.query_id(left) != normalize.query_id(right)


def test_query_ids_stay_what_they_are() -> None:
    # A change of these is a change of everyone's test set.
    assert normalize.query_id("Red Sofa") == hashlib.sha256(b"red sofa").hexdigest()[:16] == "085966c4bdab14f6"
    assert splits.hash_position("085966c4bdab14f6", "distilrank") == pytest.approx(0.2789288027, abs=1e-9)


@given(st.text())
def test_normal_form_is_idempotent_and_blank_only_for_blank(text: str) -> None:
    once = normalize.normal_form(text)
    assert normalize.normal_form(once) == once
    if any(character.isalnum() for character in text):
        assert once


def test_words_keep_numbers_whole() -> None:
    assert normalize.words("5/8 in. x 4ft, 3.5-Gauge") == ["5/8", "in", "x", "4", "ft", "3.5", "gauge"]


# BM25 -------------------------------------------------------------------------------------------------------------

DOCUMENTS = [
    "red leather sofa",
    "blue sofas and sofa covers",
    "lamp",
    "",
    "red lamp shade for lamps",
    "red leather sofa",
]


def lucene(query: str, document: int) -> float:
    """BM25 as Lucene defines it, over DOCUMENTS, on words already stemmed by hand."""
    stems = {"sofas": "sofa", "lamps": "lamp", "covers": "cover"}
    texts = [[stems.get(word, word) for word in text.split()] for text in DOCUMENTS]
    mean = sum(map(len, texts)) / len(texts)
    score = 0.0
    for word in query.split():
        frequency = sum(word in text for text in texts)
        idf = math.log(1 + (len(texts) - frequency + 0.5) / (frequency + 0.5))
        count = texts[document].count(word)
        score += idf * count / (count + 1.2 * (0.25 + 0.75 * len(texts[document]) / mean)) if frequency else 0
    return score


def test_bm25_is_lucenes_formula() -> None:
    index = bm25.Index(DOCUMENTS)
    queries = ["red sofa", "lamp", "unheard", "sofa sofa"]
    query, document = np.divmod(np.arange(len(queries) * len(DOCUMENTS)), len(DOCUMENTS))
    expected = [lucene(queries[q], d) for q, d in zip(query, document, strict=True)]
    np.testing.assert_allclose(index.scores(queries, query, document), expected, rtol=1e-5)
    assert index.top("Red SOFAS", 9).tolist() == [0, 5, 1, 4]  # of equal documents the first comes first
    assert index.top("red sofa", 1).tolist() == [0]
    assert index.top("unheard of", 3).tolist() == []
    assert index.unseen("red unheard sofas") == pytest.approx(1 / 3)
    assert len(index) == 6


def test_bm25_needs_a_word() -> None:
    with pytest.raises(ValueError, match="no document has a word"):
        bm25.Index(["", "?"])


# Splits -----------------------------------------------------------------------------------------------------------


def test_sides_have_their_shares_and_do_not_move_each_other() -> None:
    position = np.array([splits.hash_position(f"{number:016x}", "salt") for number in range(20_000)])
    side = splits.sides(position, Prepare())
    assert np.bincount(side) / len(side) == pytest.approx([0.6, 0.15, 0.25], abs=0.01)
    more_dev = splits.sides(position, Prepare(dev_share=0.3))
    assert ((side == splits.TEST) == (more_dev == splits.TEST)).all()
    assert (more_dev[side == splits.DEV] == splits.DEV).all()
    other = np.array([splits.hash_position(f"{number:016x}", "pepper") for number in range(20_000)])
    assert abs(np.corrcoef(position, other)[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("impressions", "expected"),
    [
        ([100, 60, 50, 40, 20, 20, 10, 1, 0], "head head torso tail tail tail tail tail tail"),
        ([90, 5, 5], "head tail tail"),
        ([1, 1, 1], "tail tail tail"),
        ([0, 0], "tail tail"),
        ([4, 4, 4, 4], "torso torso torso torso"),
    ],
)
def test_strata(impressions: list[int], expected: str) -> None:
    assert [schemas.STRATA[code] for code in splits.strata(np.array(impressions))] == expected.split()


def test_a_leak_stops_the_run() -> None:
    settings = Prepare()
    texts = [f"query {number}" for number in range(200)]
    positions = np.array([splits.hash_position(normalize.query_id(text), settings.salt) for text in texts])
    side = splits.sides(positions, settings)
    queries = {name: [texts[row] for row in np.flatnonzero(side == code)] for code, name in enumerate(schemas.SIDES)}
    splits.check_leaks({**queries, "candidates": queries["train"]}, settings)
    with pytest.raises(
        RunStopped, match=f"query '{queries['dev'][0]}' of the dev side is among the candidates queries"
    ):
        splits.check_leaks({"candidates": [*queries["train"], queries["dev"][0]]}, settings)
    with pytest.raises(RunStopped, match="of the test side is among the train queries"):
        splits.check_leaks({"train": [queries["test"][0].upper()]}, settings)


# The stage --------------------------------------------------------------------------------------------------------

COLORS, THINGS = (
    ("red", "blue", "green", "black", "white"),
    ("sofa", "lamp", "chair", "rug", "bed", "desk", "shelf", "stool"),
)
START = datetime(2026, 3, 1, tzinfo=UTC)
WINDOW = LogWindow(*((START + timedelta(days=days)).isoformat() for days in (0, 28, 35)), data_digest="d")
NO_WINDOW = LogWindow(data_digest="d")


class Shop:
    """Small tables on disk: 40 products, 40 judged queries, a log of 60 queries (20 of them unjudged)."""

    def __init__(self, folder: Path) -> None:
        self.folder, rng = folder, np.random.default_rng(0)
        names = [f"{color} {thing}" for color in COLORS for thing in THINGS]
        self.products = {
            "product_id": [f"p{number:02d}" for number in range(40)],
            "title": [f"{name} deluxe" for name in names],
        }
        judged = [
            (name, f"p{(number + shift) % 40:02d}", 3.0 - shift)
            for number, name in enumerate(names)
            for shift in range(4)
        ]
        self.judgements = dict(
            zip(("query", "product_id", "rating"), map(list, zip(*judged, strict=True)), strict=True)
        )
        asked = [*names, *(f"{name} cheap" for name in names[:20])]
        rows = []
        for number, query in enumerate(asked):
            for search in range(1 + 60 // (1 + number)):
                moment = START + timedelta(hours=float(rng.uniform(0, 35 * 24)))
                moment = START + timedelta(days=3) if search == 0 else moment
                for rank in range(1, 4):
                    rows.append(
                        (moment, query, f"p{(number * 7 + rank) % 40:02d}", rank, rank == 1 and search % 2 == 0)
                    )
        self.log = dict(
            zip(("when", "query", "product_id", "rank", "click"), map(list, zip(*rows, strict=True)), strict=True)
        )

    def data(self, logs: bool = True, timed: bool = True) -> Tables:
        paths = {}
        for name, columns in {"judgements": self.judgements, "catalogue": self.products, "logs": self.log}.items():
            paths[name] = str(self.folder / f"{name}.parquet")
            pq.write_table(pa.table(columns), paths[name])
        optional_columns = {name: name for name in ("locale", "rater") if name in self.judgements}
        names = Columns(**optional_columns, timestamp="when" if timed else "", position="rank", clicked="click")
        paths["logs"] = paths["logs"] if logs else ""
        return Tables(source="tables", **paths, columns=names, rating_min=0, rating_max=3, relevant_from=2)


class Prepared:
    """What one call of the stage wrote."""

    def __init__(self, folder: Path, data: Tables | HomeDepot, window: LogWindow, **settings) -> None:
        parts = {name: folder / name for name in ("judgements", "candidates", "traffic", "profile")}
        self.folder = folder
        settings.setdefault("privacy", {"min_clients": 1})
        self.names = prepare.prepare(Prepare(**settings), data, window, **parts)
        self.judged = {
            side: schemas.read(folder / "judgements" / f"{side}.parquet", schemas.JUDGED) for side in schemas.SIDES
        }
        paths = [folder / "candidates" / f"{name}.parquet" for name in self.names]
        self.shards = [schemas.read(path, schemas.CANDIDATES) for path in paths]
        self.candidates = pa.concat_tables(self.shards)
        self.traffic = {
            name: schemas.read(folder / "traffic" / f"{name}.parquet", schemas.TRAFFIC)
            for name in ("reference", "current")
        }
        self.protocol = artifacts.read_json(folder / "judgements" / "protocol.json")
        self.profile = artifacts.read_json(folder / "profile" / "profile.json")

    def queries(self, side: str) -> set[str]:
        return set(self.judged[side].column("query_id").to_pylist())


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, Prepared]:
    shop = Shop(tmp_path_factory.mktemp("shop"))
    return shop, Prepared(shop.folder / "out", shop.data(), WINDOW, shards=3, traffic_sample=100)


def by_query(table: pa.Table) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for row in table.to_pylist():
        groups.setdefault(row["query"], []).append(row)
    return groups


def test_splits_share_no_query_and_keep_all_pairs(made: tuple[Shop, Prepared]) -> None:
    shop, out = made
    train, dev, test = (out.queries(side) for side in schemas.SIDES)
    assert train and dev and test
    assert not train & dev and not train & test and not dev & test
    rows = [row for side in schemas.SIDES for row in out.judged[side].to_pylist()]
    pairs = {(row["query"], row["product_id"]): row["target"] for row in rows}
    judged = zip(shop.judgements["query"], shop.judgements["product_id"], shop.judgements["rating"], strict=True)
    assert pairs == {(query, product): pytest.approx(rating / 3) for query, product, rating in judged}
    for table in out.judged.values():
        order = list(zip(table.column("query_id").to_pylist(), table.column("product_id").to_pylist(), strict=True))
        assert order == sorted(order)


def test_held_out_queries_are_no_candidates_judged_or_not(made: tuple[Shop, Prepared]) -> None:
    shop, out = made
    settings = Prepare()
    in_window = {
        q for q, when in zip(shop.log["query"], shop.log["when"], strict=True) if when < START + timedelta(days=28)
    }
    expected = {
        query
        for query in in_window
        if settings.test_share
        <= splits.hash_position(normalize.query_id(query), settings.salt)
        < 1 - settings.dev_share
    }
    assert set(out.candidates.column("query").to_pylist()) == expected
    unjudged = {query for query in in_window - expected if "cheap" in query}
    assert unjudged, "the log must hold held-out queries that nobody judged"


def test_candidates_come_from_impressions_then_bm25_then_chance(made: tuple[Shop, Prepared]) -> None:
    shop, out = made
    index = bm25.Index(shop.products["title"])
    end = START + timedelta(days=28)
    shown, clicked = Counter(), Counter()
    for when, query, product, click in zip(
        *(shop.log[name] for name in ("when", "query", "product_id", "click")), strict=True
    ):
        if when < end:
            shown[query, product] += 1
            clicked[query, product] += click
    for query, rows in by_query(out.candidates).items():
        products = {
            kind: {row["product_id"] for row in rows if row["provenance"] == kind}
            for kind in ("impression", "bm25", "random")
        }
        assert products["impression"] == {
            product for asked, product in shown if asked == query
        }  # three, fewer than six
        best = [shop.products["product_id"][position] for position in index.top(query, 40)]
        assert products["bm25"] == set([product for product in best if product not in products["impression"]][:4])
        assert len(products["random"]) == 2
        assert len({row["product_id"] for row in rows}) == len(rows)
        for row in rows:
            assert (row["impressions"], row["clicks"]) == (
                shown[query, row["product_id"]],
                clicked[query, row["product_id"]],
            )
            assert row["title"] == shop.products["title"][int(row["product_id"][1:])]


def test_every_rank_counts_as_if_it_were_seen_alike(shop: Shop, tmp_path: Path) -> None:
    # Fifty queries show p01 and p02 at the top; one list in five goes on to rank 9, where p03 stands.
    rows = [(f"red sofa {number}", product, rank) for number in range(50) for product, rank in (("p01", 1), ("p02", 2))]
    rows += [(f"red sofa {number}", "p03", 9) for number in range(0, 50, 5)]
    # p04 has as many impressions as p05 in all, but at the rank that a fifth of the lists reach.
    many = [f"blue rug {number}" for number in range(300)]
    rows += [(query, product, rank) for query in many for product, rank in (("p04", 9), ("p05", 1), ("p06", 1))]
    rows += [(query, "p07", 1) for query in many for _ in range(12)]
    shop.log = {
        "query": [row[0] for row in rows],
        "product_id": [row[1] for row in rows],
        "rank": [row[2] for row in rows],
        "click": [None] * len(rows),
    }
    out = Prepared(tmp_path / "out", shop.data(timed=False), NO_WINDOW, from_impressions=1, from_bm25=0, from_random=0)
    drawn = Counter(
        rows[0]["product_id"] for query, rows in by_query(out.candidates).items() if query.startswith("blue rug")
    )
    at_1 = 50 + 300 * (1 + 1 + 12)
    weight = {"p04": at_1 / (10 + 300), "p05": 1, "p06": 1, "p07": 12}
    queries = sum(drawn.values())
    assert queries > 150
    for product, value in weight.items():
        share = value / sum(weight.values())
        assert drawn[product] / queries == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / queries))


def test_shards_hold_whole_queries_and_balance(made: tuple[Shop, Prepared]) -> None:
    _, out = made
    assert out.names == ["shard-00000", "shard-00001", "shard-00002"]
    queries = [set(shard.column("query_id").to_pylist()) for shard in out.shards]
    assert not queries[0] & queries[1] and not queries[0] & queries[2] and not queries[1] & queries[2]
    tokens = [shard["tokens"] for shard in out.profile["shards"]]
    per_query = sum(tokens) / sum(shard["queries"] for shard in out.profile["shards"])
    assert max(tokens) - min(tokens) <= 2 * per_query
    for shard in out.shards:
        order = list(zip(shard.column("query_id").to_pylist(), shard.column("product_id").to_pylist(), strict=True))
        assert order == sorted(order)


def test_never_more_shards_than_queries_nor_candidates_than_products(shop: Shop, tmp_path: Path) -> None:
    out = Prepared(tmp_path / "out", shop.data(), WINDOW, shards=500, from_random=100)
    assert len(out.names) == len(by_query(out.candidates))
    assert {len(rows) for rows in by_query(out.candidates).values()} == {40}


def test_runs_are_identical_byte_for_byte(made: tuple[Shop, Prepared], tmp_path: Path) -> None:
    shop, first = made
    again = Prepared(tmp_path / "again", shop.data(), WINDOW, shards=3, traffic_sample=100)
    other = Prepared(tmp_path / "other", shop.data(), WINDOW, shards=3, traffic_sample=100, seed=1)
    for name in ("judgements", "candidates", "traffic"):
        assert artifacts.verify(again.folder / name) == artifacts.sealed_digest(first.folder / name)
    assert (again.folder / "profile/profile.json").read_bytes() == (first.folder / "profile/profile.json").read_bytes()
    assert artifacts.sealed_digest(other.folder / "judgements") == artifacts.sealed_digest(first.folder / "judgements")
    assert artifacts.sealed_digest(other.folder / "candidates") != artifacts.sealed_digest(first.folder / "candidates")


def test_a_second_attempt_leaves_nothing_of_the_first(shop: Shop, tmp_path: Path) -> None:
    Prepared(tmp_path / "out", shop.data(), WINDOW, shards=4)
    out = Prepared(tmp_path / "out", shop.data(), WINDOW, shards=2)
    artifacts.verify(out.folder / "candidates")
    assert sorted(path.name for path in (out.folder / "candidates").iterdir()) == [
        "digest.json",
        "shard-00000.parquet",
        "shard-00001.parquet",
    ]


def test_more_judgements_move_no_query(made: tuple[Shop, Prepared], shop: Shop, tmp_path: Path) -> None:
    _, before = made
    for number in range(60):
        shop.judgements["query"].append(f"new query {number}")
        shop.judgements["product_id"].append("p01")
        shop.judgements["rating"].append(1.0)
    after = Prepared(tmp_path / "out", shop.data(), WINDOW)
    for side in schemas.SIDES:
        assert before.queries(side) < after.queries(side)


def test_log_queries_keeps_the_most_frequent(made: tuple[Shop, Prepared], shop: Shop, tmp_path: Path) -> None:
    _, full = made
    out = Prepared(tmp_path / "out", shop.data(), WINDOW, log_queries=5)
    impressions = {query: sum(row["impressions"] for row in rows) for query, rows in by_query(full.candidates).items()}
    queries = set(by_query(out.candidates))
    assert len(queries) == 5
    assert min(impressions[query] for query in queries) >= max(
        count for query, count in impressions.items() if query not in queries
    )


def test_caps_and_budget_take_whole_queries_in_hash_order(
    made: tuple[Shop, Prepared], shop: Shop, tmp_path: Path
) -> None:
    _, full = made
    out = Prepared(tmp_path / "out", shop.data(logs=False), NO_WINDOW, judged_pairs=22, dev_queries=2, test_queries=3)

    def first(side: str, count: int) -> set[str]:
        return set(sorted(full.queries(side), key=lambda key: splits.hash_position(key, "distilrank"))[:count])

    assert out.queries("dev") == first("dev", 2)
    assert out.queries("test") == first("test", 3)
    assert out.queries("train") == first("train", 5)  # of four pairs each
    unlabeled = full.queries("train") - out.queries("train")
    assert set(out.candidates.column("query_id").to_pylist()) == unlabeled
    # The judged pairs of the others are in the log, as many times as they were judged, without rating or click.
    impressed = [row for row in out.candidates.to_pylist() if row["provenance"] == "impression"]
    assert len(impressed) == 4 * len(unlabeled)
    assert {(row["impressions"], row["clicks"]) for row in impressed} == {(1, 0)}
    assert out.profile["splits"]["unlabeled_train"] == {"queries": len(unlabeled), "pairs": 4 * len(unlabeled)}


def test_without_any_log_the_judged_queries_are_mined(shop: Shop, tmp_path: Path) -> None:
    out = Prepared(tmp_path / "out", shop.data(logs=False), NO_WINDOW)
    assert set(out.candidates.column("query_id").to_pylist()) == out.queries("train")
    assert set(out.candidates.column("provenance").to_pylist()) == {"bm25", "random"}
    assert set(out.judged["test"].column("stratum").to_pylist()) == {"tail"}


def test_traffic_of_two_windows(made: tuple[Shop, Prepared]) -> None:
    shop, out = made
    middle = START + timedelta(days=28)
    log = list(zip(shop.log["when"], shop.log["query"], shop.log["product_id"], strict=True))
    pools = {
        "reference": Counter(row[1:] for row in log if row[0] < middle),
        "current": Counter(row[1:] for row in log if row[0] >= middle),
    }
    for name, pool in pools.items():
        table = out.traffic[name]
        assert table.num_rows == 100
        sample = Counter(zip(table.column("query").to_pylist(), table.column("product_id").to_pylist(), strict=True))
        assert not sample - pool
    assert any("cheap" in query for query in out.traffic["reference"].column("query").to_pylist())
    row = next(row for row in out.traffic["reference"].to_pylist() if "cheap" in row["query"])
    assert (row["query_words"], row["query_characters"], row["title_words"]) == (3, len(row["query"]), 3)
    assert row["unseen_words"] == pytest.approx(1 / 3)  # no title says "cheap"
    index = bm25.Index(shop.products["title"])
    product = np.array([int(row["product_id"][1:])])
    assert row["bm25"] == index.scores([row["query"]], np.array([0]), product)[0]
    assert row["script"] == "latin" and row["query_tokens"] >= 3
    ranks = set(zip(shop.log["query"], shop.log["product_id"], shop.log["rank"], strict=True))
    clicks = Counter(zip(shop.log["query"], shop.log["product_id"], shop.log["click"], strict=True))
    for row in out.traffic["reference"].to_pylist():
        assert (row["query"], row["product_id"], row["position"]) in ranks
        assert clicks[row["query"], row["product_id"], bool(row["clicked"])]


def test_monitoring_reads_the_same_sample_as_a_whole_run(made: tuple[Shop, Prepared], tmp_path: Path) -> None:
    shop, whole = made
    settings = Prepare(privacy={"min_clients": 1}, shards=3, traffic_sample=100)
    rows = prepare.sample_newest(settings, shop.data(), WINDOW, traffic=tmp_path / "traffic")
    artifacts.verify(tmp_path / "traffic")
    assert [path.name for path in (tmp_path / "traffic").glob("*.parquet")] == ["current.parquet"]
    sample = schemas.read(tmp_path / "traffic" / "current.parquet", schemas.TRAFFIC)
    assert sample.equals(whole.traffic["current"]) and len(sample) == rows


@pytest.mark.parametrize("logs", [True, False])
def test_without_time_held_out_queries_replace_newest_traffic(shop: Shop, tmp_path: Path, logs: bool) -> None:
    out = Prepared(tmp_path / "out", shop.data(logs=logs, timed=False), NO_WINDOW)
    queries = {name: set(table.column("query_id").to_pylist()) for name, table in out.traffic.items()}
    position = {key: splits.hash_position(key, "distilrank") for keys in queries.values() for key in keys}
    assert all(0.25 <= position[key] < 0.85 for key in queries["reference"])
    assert not any(0.25 <= position[key] < 0.85 for key in queries["current"])
    assert "held-out queries" in out.protocol["traffic"] and "held-out queries" in out.profile["traffic"]["basis"]


def test_spellings_are_one_query(shop: Shop, tmp_path: Path) -> None:
    shop.judgements["query"] += ["Red \u200e SOFA", "red sofa", "red sofa", "KIRMIZI", "kırmızı"]
    shop.judgements["product_id"] += ["p00", "p01", "p39", "p00", "p01"]
    shop.judgements["rating"] += [1.0, 2.0, 0.5, 0.5, 0.5]  # another spelling disagrees, the same row again, new pairs
    out = Prepared(tmp_path / "out", shop.data(), WINDOW, language="tr")
    everything = [row for table in out.judged.values() for row in table.to_pylist()]
    assert [row["query"] for row in everything if row["product_id"] < "p02" and "K" in row["query"]] == ["KIRMIZI"] * 2
    assert out.protocol["split"]["dotless_i"] and out.protocol["bm25"].endswith(", tr stems")
    rows = [row for row in everything if row["query"].casefold() == "red sofa"]
    assert {row["product_id"]: (row["target"], row["raters"]) for row in rows} == {
        "p00": (pytest.approx((3 + 1) / 2 / 3), 2),
        "p01": (pytest.approx(2 / 3), 1),
        "p02": (pytest.approx(1 / 3), 1),
        "p03": (0, 1),
        "p39": (pytest.approx(0.5 / 3), 1),
    }
    assert {row["query"] for row in rows} == {"red sofa"}  # as most often typed
    assert out.profile["merged"] == {
        "identical_judgements": 1,
        "judgements_of_other_spellings": 1,
        "ratings_averaged_over_spellings": 1,
        "repeated_by_a_rater": 0,
        "spellings": 2,
        "repeated_products": 0,
    }


def test_locales_are_written_and_those_of_one_pair_become_one(shop: Shop, tmp_path: Path) -> None:
    shop.judgements["rater"] = ["Ada Quist"] * 160
    without = Prepared(tmp_path / "none", shop.data(), WINDOW)
    assert without.profile["rater_agreement"] == {
        "rule": "refuse", "raters": 1, "ratings": 160, "pairs": 0, "unanimous": 0, "alpha": None
    }  # fmt: skip
    written = [path for path in (tmp_path / "none").rglob("*") if path.is_file()]
    assert written and not [path for path in written if b"Quist" in path.read_bytes()]
    del shop.judgements["rater"]
    without_locale = without.judged["train"]
    assert without_locale["locale"].null_count == len(without_locale)
    assert without.protocol["bm25"].endswith(", English stems")
    locales = ["us" if "sofa" in query else None for query in shop.judgements["query"]]
    more = [  # same row again, other spellings, another pair
        ("red sofa", "p01", 2.0, "de-DE"),
        ("Red sofa", "p00", 3.0, "de-DE"),
        ("RED SOFA", "p00", 3.0, "de-DE"),
        ("red sofa", "p02", 1.0, None),
        ("red sofa", "p39", 0.5, None),
        ("red lamp", "p01", 3.0, "fr"),
    ]
    shop.judgements["locale"] = locales
    for name, column in zip(shop.judgements, zip(*more, strict=True), strict=True):
        shop.judgements[name] += column
    out = Prepared(tmp_path / "out", shop.data(), WINDOW)
    assert out.protocol["bm25"].endswith(", de, en stems"), "no product has most of its judgements from fr"
    rows = [row for table in out.judged.values() for row in table.to_pylist()]
    locale_by_pair = {(row["query"].casefold(), row["product_id"]): row["locale"] for row in rows}
    assert {product: locale for (query, product), locale in locale_by_pair.items() if query == "red sofa"} == {
        "p00": "de-DE",  # two rows against one
        "p01": "de-DE",  # one against one: the first by code point
        "p02": "us",
        "p03": "us",
        "p39": None,
    }
    assert {locale for (query, _), locale in locale_by_pair.items() if query == "blue sofa"} == {"us"}
    assert [pair for pair, locale in locale_by_pair.items() if locale == "fr"] == [("red lamp", "p01")]


def test_the_protocol_has_the_threshold_as_a_target_and_the_share_of_near_duplicates(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    queries = [text for number in range(20) for text in (f"query {number}", f"{number} query")]
    rows = [f"{row},{row},title {row},{queries[row // 2]},{(2.33, 2)[row % 2]}\n" for row in range(80)]
    path.write_text("id,product_uid,product_title,search_term,relevance\n" + "".join(rows))
    out = Prepared(tmp_path / "out", HomeDepot(source="home_depot", path=str(path)), NO_WINDOW)
    targets = out.judged["train"].column("target").to_numpy().astype(np.float64)
    relevant = targets >= out.protocol["relevant_from"]
    assert relevant.sum() == len(targets) / 2
    assert out.protocol["rating_range"] == [1, 3]
    texts = {side: set(out.judged[side].column("query").to_pylist()) for side in ("train", "test")}
    twins = [query for query in texts["test"] if " ".join(reversed(query.split())) in texts["train"]]
    assert out.protocol["near_duplicates"] == len(twins) / len(texts["test"]) > 0.2


def test_unknown_products_and_other_times_are_counted(shop: Shop, tmp_path: Path) -> None:
    for when, product in ((START, "gone"), (START - timedelta(seconds=1), "p01"), (START + timedelta(days=35), "p01")):
        for name, value in {
            "when": when,
            "query": "red sofa",
            "product_id": product,
            "rank": 1,
            "click": False,
        }.items():
            shop.log[name].append(value)
    out = Prepared(tmp_path / "out", shop.data(), WINDOW)
    dropped = {row["what"]: (row["rows"], row["examples"]) for row in out.profile["dropped"]}
    assert dropped == {
        "impressions of products that are not in the catalogue": (1, ["product 'gone'"]),
        "rows outside the log window, in files that overlap it": (2, []),
    }
    impressions = out.profile["impressions"]["training_window"] + out.profile["impressions"]["newest_traffic"]
    assert impressions == len(shop.log["when"]) - 3


def test_profile_adds_up(made: tuple[Shop, Prepared]) -> None:
    _, out = made
    profile = out.profile
    assert profile["rows"]["judgements"] == 160 == sum(part["pairs"] for part in profile["splits"].values())
    assert sum(profile["ratings"].values()) == 160
    assert (
        sum(profile["candidates"]["provenance"].values()) == out.candidates.num_rows == profile["candidates"]["pairs"]
    )
    assert sum(profile["strata"]["impressions"].values()) == profile["impressions"]["training_window"]
    assert [shard["rows"] for shard in profile["shards"]] == [shard.num_rows for shard in out.shards]
    assert profile["missing_fields"]["brand"] == 40 and profile["missing_fields"]["title"] == 0
    stage = json.loads((out.folder / "profile" / "stage.json").read_text())
    assert stage["stage"] == "prepare" and stage["inputs"] == {"data": "d"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dev_share": 1e-9}, r"none of the 40 judged queries falls into dev; raise prepare.dev_share \(1e-09\)"),
        ({"test_share": 1e-9}, r"falls into test; raise prepare.test_share \(1e-09\)"),
        ({"dev_share": 0.499, "test_share": 0.5}, r"falls into train; lower prepare.dev_share"),
    ],
)
def test_an_empty_split_names_the_share_to_change(shop: Shop, tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Prepared(tmp_path / "out", shop.data(), WINDOW, **settings)
    assert not (tmp_path / "out" / "judgements").exists()


def test_an_empty_window_is_an_error(shop: Shop, tmp_path: Path) -> None:
    later = replace(WINDOW, newest_end=(START + timedelta(days=28, seconds=1)).isoformat())
    shop.log["when"] = [min(when, START + timedelta(days=27)) for when in shop.log["when"]]
    with pytest.raises(InputError, match="no impressions in the newest traffic"):
        Prepared(tmp_path / "out", shop.data(), later)


@pytest.mark.skipif(not HOME_DEPOT.exists(), reason=f"needs the Home Depot data at {HOME_DEPOT}")
def test_home_depot_for_real(tmp_path: Path) -> None:
    data = HomeDepot(source="home_depot", path=str(HOME_DEPOT))
    out = Prepared(tmp_path / "out", data, NO_WINDOW, judged_pairs=6000, test_queries=600, log_queries=1000, shards=4)
    assert 5900 < out.judged["train"].num_rows <= 6000
    assert len(out.queries("test")) == 600
    assert len(by_query(out.candidates)) == 1000
    per_query = [len(rows) for rows in by_query(out.candidates).values()]
    assert max(per_query) == 6 + 4 + 2 and min(per_query) >= 3


def test_a_side_may_be_left_empty_on_purpose(shop: Shop, tmp_path: Path) -> None:
    out = Prepared(tmp_path / "out", shop.data(), WINDOW, dev_share=0, test_share=0)
    assert out.judged["train"].num_rows == 160
    assert out.judged["dev"].num_rows == out.judged["test"].num_rows == 0
    assert "<html" in (out.folder / "profile" / "profile.html").read_text()


ESCI = ROOT.parent / "shared" / "data" / "esci-sample"


@pytest.mark.skipif(not ESCI.exists(), reason=f"needs the ESCI sample at {ESCI}")
def test_the_esci_sample_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distilrank.data import validate

    monkeypatch.chdir(tmp_path)
    with gzip.open(ESCI / "products.vespa.jsonl.gz", "rt") as lines:
        fields = [json.loads(line)["fields"] for line in lines]
    names = {"id": "id", "title": "title", "description": "description", "bullets": "bullet_point", "brand": "brand",
             "color": "color", "locale": "locale"}  # fmt: skip
    columns = {f"product_{theirs}": [row.get(name) for row in fields] for name, theirs in names.items()}
    pq.write_table(pa.table(columns), tmp_path / "products.parquet")
    data = {
        "source": "esci",
        "examples": str(ESCI / "examples.parquet"),
        "products": str(tmp_path / "products.parquet"),
    }
    # The sample is one query: it can only be on one side.
    settings = {"dev_share": 0, "test_share": 0, "from_random": 2}
    checked = validate.check(config.parse({"data": data, "prepare": settings}, "test"), full=True)
    assert not checked.problems.fatal, [problem.line() for problem in checked.problems]
    assert checked.facts["rows"]["judgements"] == 16 and "official script" in checked.facts["gain mappings"]
    out = Prepared(tmp_path / "out", config.parse({"data": data}, "test").data, NO_WINDOW, **settings)
    examples = pq.read_table(ESCI / "examples.parquet").to_pylist()
    expected = {row["product_id"]: {"E": 1, "S": 0.1, "C": 0.01, "I": 0}[row["esci_label"]] for row in examples}
    rows = out.judged["train"].to_pylist()
    assert {row["product_id"]: round(row["target"], 6) for row in rows} == expected
    assert all("<br>" not in (text or "") for text in out.judged["train"].column("description").to_pylist())
    assert {row["query"] for row in out.candidates.to_pylist()} == {examples[0]["query"]}
