from __future__ import annotations

from collections import Counter, defaultdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from distilrank.config import Prepare
from distilrank.core import normalize, schemas
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.data import bm25, candidates, corpus, impressions, log_store, sources, splits
from distilrank.modeling.bi_encoder import Retriever
from distilrank.modeling.neighbors import Neighbors
from tests.data.test_prepare import NO_WINDOW, START, WINDOW, Prepared, Shop, by_query

MODEL = Prepare().retriever.model


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def of_kind(rows: list[dict], kind: str) -> list[str]:
    return [row["product_id"] for row in rows if row["provenance"] == kind]


def test_disagreement_is_what_one_retriever_finds_and_the_other_misses(shop: Shop, tmp_path: Path) -> None:
    names = [title.removesuffix(" deluxe") for title in shop.products["title"]]
    shop.products["title"] = [f"{name} couch" if "sofa" in name else name for name in names]
    depth = 8
    out = Prepared(
        tmp_path / "out", shop.data(), WINDOW, from_impressions=0, from_bm25=2, from_random=0, from_disagreement=4,
        retriever={"depth": depth},
    )  # fmt: skip
    index = bm25.Index(shop.products["title"])
    retriever = Retriever(MODEL)
    vectors = retriever.embed(shop.products["title"]).astype(np.float16)
    for query, rows in by_query(out.candidates).items():
        lexical = index.top(query, depth).tolist()
        near = Neighbors(vectors).top(retriever.embed([query]), depth)[0][0].tolist()
        ours = set(near) ^ set(lexical)
        products = [int(product[1:]) for product in of_kind(rows, "disagreement")]
        assert set(products) <= ours - set(lexical[:2])
        assert len(products) == min(4, len(ours - set(lexical[:2])))
        if set(near) - set(lexical):
            assert next(product for product in near if product not in lexical) in products, (
                "the retriever's best comes first"
            )


def test_alternating_begins_with_the_embedding_retriever() -> None:
    near, hits = np.array([5, 1, 7, 9]), np.array([1, 2, 3, 4, 6])
    assert candidates._alternate(near, hits, 3).tolist() == [5, 2, 7, 3, 9]
    assert candidates._alternate(near, hits[:0], 3).tolist() == [5, 1, 7, 9]


def test_vectors_are_cached_with_the_store_until_the_catalogue_changes(shop: Shop, tmp_path: Path) -> None:
    settings = {"from_disagreement": 2, "log_cache_dir": str(tmp_path / "store")}
    first = Prepared(tmp_path / "one", shop.data(), WINDOW, **settings)
    (vectors,) = (tmp_path / "store" / "vectors").iterdir()
    written = vectors.stat().st_mtime_ns
    again = Prepared(tmp_path / "two", shop.data(), WINDOW, **settings)
    assert vectors.stat().st_mtime_ns == written and again.candidates == first.candidates
    shop.products["title"][0] += " indeed"
    Prepared(tmp_path / "three", shop.data(), WINDOW, **settings)
    assert len(list((tmp_path / "store" / "vectors").iterdir())) == 2


def test_popular_products_are_of_the_type_that_the_query_finds(shop: Shop, tmp_path: Path) -> None:
    types = [title.split()[0] for title in shop.products["title"]]
    data = shop.data()
    shop.products["type"] = types
    data = shop.data().model_copy(update={"columns": data.columns.model_copy(update={"product_type": "type"})})
    out = Prepared(tmp_path / "out", data, WINDOW, from_impressions=0, from_bm25=0, from_random=0, from_popular=3)
    end, settings = START + timedelta(days=28), Prepare()
    clicks, shown, per_query = Counter(), Counter(), {}
    for when, query, product, click in zip(*(shop.log[name] for name in ("when", "query", "product_id", "click"))):
        position = splits.hash_position(normalize.query_id(query), settings.salt)
        if when < end and settings.test_share <= position < 1 - settings.dev_share:
            clicks[product] += click
            shown[product] += 1
            per_query.setdefault(query, Counter())[types[int(product[1:])]] += 1
    checked = 0
    for query, rows in by_query(out.candidates).items():
        (best, most), *others = per_query[query].most_common()
        if others and others[0][1] == most:
            continue  # the weights of ranks decide
        ranked = sorted((p for p in shown if types[int(p[1:])] == best), key=lambda p: (-clicks[p], -shown[p], p))
        assert set(of_kind(rows, "popular")) == set(ranked[:3])
        checked += 1
    assert checked > 3


def test_a_fixed_size_is_filled_and_cut(shop: Shop, tmp_path: Path) -> None:
    full = Prepared(tmp_path / "full", shop.data(), WINDOW, from_bm25=1, from_random=1, per_query=15)
    assert {len(rows) for rows in by_query(full.candidates).values()} == {15}
    kinds = Counter(full.candidates.column("provenance").to_pylist())
    assert kinds["bm25"] > 2 * len(by_query(full.candidates)), "BM25 fills first"
    cut = Prepared(tmp_path / "cut", shop.data(), WINDOW, per_query=4)
    assert {len(rows) for rows in by_query(cut.candidates).values()} == {4}
    assert set(cut.candidates.column("provenance").to_pylist()) == {"impression", "bm25"}


def test_strata_have_quotas_in_hash_order(shop: Shop, tmp_path: Path) -> None:
    everything = Prepared(tmp_path / "all", shop.data(), WINDOW)
    out = Prepared(tmp_path / "out", shop.data(), WINDOW, head_queries=1, torso_queries=2, tail_queries=3)
    positions = {stratum: {} for stratum in schemas.STRATA}
    for row in everything.candidates.to_pylist():
        positions[row["stratum"]][row["query_id"]] = splits.hash_position(row["query_id"], "distilrank")
    expected = {
        key
        for stratum, most in zip(schemas.STRATA, (1, 2, 3))
        for key in sorted(positions[stratum], key=positions[stratum].get)[:most]
    }
    assert all(len(positions[stratum]) > most for stratum, most in zip(schemas.STRATA, (0, 1, 3)))
    assert set(out.candidates.column("query_id").to_pylist()) == expected
    assert out.profile["candidates"]["strata"]["tail"] == 3


def test_new_days_do_not_reshuffle_a_querys_draw(shop: Shop, tmp_path: Path) -> None:
    for name, values in {"when": START, "query": "red sofa", "rank": 1, "click": False}.items():
        shop.log[name] += [values] * 30
    shop.log["product_id"] += [f"p{number:02d}" for number in range(10, 40)]
    before = Prepared(tmp_path / "one", shop.data(), WINDOW, from_impressions=4)
    for name, values in {"when": START, "query": "blue lamp", "product_id": "p00", "rank": 1, "click": False}.items():
        shop.log[name].append(values)
    after = Prepared(tmp_path / "two", shop.data(), WINDOW, from_impressions=4)
    first, second = (by_query(out.candidates)["red sofa"] for out in (before, after))
    assert of_kind(first, "impression") == of_kind(second, "impression")


def test_without_any_candidate_the_error_names_the_setting_to_raise(shop: Shop, tmp_path: Path) -> None:
    shop.judgements["query"] = [f"zzz {query}" for query in shop.judgements["query"]]
    shop.products["title"] = ["?", *["word"] * 39]
    with pytest.raises(InputError, match=r"no candidate for any of \d+ queries; raise prepare.from_random"):
        Prepared(tmp_path / "out", shop.data(logs=False), NO_WINDOW, from_random=0)


def test_chunks_go_through_all_queries_in_order(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Prepared(tmp_path / "one", shop.data(), WINDOW, shards=1)
    monkeypatch.setattr(impressions, "CHUNK", 3)
    parts = Prepared(tmp_path / "two", shop.data(), WINDOW, shards=1)
    assert parts.candidates == whole.candidates


# Who searched -----------------------------------------------------------------------------------------------------


def with_clients(shop: Shop, clients: list[str]):
    shop.log["who"] = clients
    data = shop.data()
    return data.model_copy(update={"columns": data.columns.model_copy(update={"client": "who"})})


def test_queries_of_few_clients_are_dropped_and_counted(shop: Shop, tmp_path: Path) -> None:
    # Queries on white things are typed by two people, over and over; all others by many.
    who = [f"w{row % 2}" if "white" in query else f"c{row % 50}" for row, query in enumerate(shop.log["query"])]
    data = with_clients(shop, who)
    out = Prepared(tmp_path / "out", data, WINDOW, privacy={"min_clients": 3})
    clients = {query: {c for q, c in zip(shop.log["query"], who) if q == query} for query in shop.log["query"]}
    rare = {query for query, names in clients.items() if len(names) < 3}
    assert any("white" in query for query in rare) and len(rare) < len(clients)
    assert not rare & set(out.candidates.column("query").to_pylist())
    for table in out.traffic.values():
        assert not rare & set(table.column("query").to_pylist())
    dropped = sum(query in rare for query in shop.log["query"])
    viewers, clickers, impressions, clicks = (defaultdict(set), defaultdict(set), Counter(), Counter())
    for query, product, clicked, name in zip(shop.log["query"], shop.log["product_id"], shop.log["click"], who):
        if query not in rare:
            viewers[query, product].add(name)
            impressions[query, product] += 1
            clicks[query, product] += clicked
            clickers[query, product] |= {name} if clicked else set()
    few = {pair: impressions[pair] for pair, names in viewers.items() if len(names) < 3}
    hidden_clicks = sum(clicks[pair] for pair in viewers.keys() - few.keys() if len(clickers[pair]) < 3)
    assert few and hidden_clicks and len(few) < len(viewers) and hidden_clicks < sum(clicks.values())
    assert out.profile["privacy"] == {
        "scrub": True, "min_clients": 3, "kept_all": "", "dropped_queries": len(rare),
        "dropped_impressions": dropped, "dropped_pairs": len(few), "dropped_pair_impressions": sum(few.values()),
        "hidden_clicks": hidden_clicks, "scrubbed": {}, "scrub_judgements": False, "judged": {},
    }  # fmt: skip
    assert {row["what"]: row["rows"] for row in out.profile["dropped"]} == {
        "impressions of queries with fewer than 3 clients": dropped,
        "impressions of products that a query showed to fewer than 3 clients": sum(few.values()),
        "clicks on products that fewer than 3 clients clicked": hidden_clicks,
    }
    judged = {query for side in schemas.SIDES for query in out.judged[side].column("query").to_pylist()}
    assert any("white" in query for query in judged), "judgements are not the log's"
    unrestricted = Prepared(tmp_path / "kept", data, WINDOW, privacy={"min_clients": 1})
    assert unrestricted.profile["privacy"]["dropped_queries"] == 0


def test_the_clicks_of_few_people_change_nothing_that_is_used(shop: Shop, tmp_path: Path) -> None:
    data = with_clients(shop, [f"c{row // 3 % 7}" for row in range(len(shop.log["query"]))])
    second = [row for row, rank in enumerate(shop.log["rank"]) if rank == 2]  # nobody has clicked there
    impressions = []
    for people in (set(), {"c3", "c4"}):
        for row in second:
            shop.log["click"][row] = shop.log["who"][row] in people
        shop.data()
        with log_store.connect(tmp_path) as connection:
            scratch, config = tmp_path / f"run{len(impressions)}", Prepare(privacy={"min_clients": 3})
            corpus.read(sources.open(data), config, WINDOW, connection=connection, scratch=scratch, problems=Problems())
            impressions.append(connection.sql("FROM impressions ORDER BY ALL").fetchall())
    assert impressions[0] == impressions[1]
    assert sum(clicked for _, _, _, _, clicked, _ in impressions[0]), "what enough people click counts"


@pytest.mark.parametrize("scrub", [False, True])
def test_judged_queries_are_scrubbed_where_asked(shop: Shop, tmp_path: Path, scrub: bool) -> None:
    asked = shop.judgements["query"]
    first, second = asked[0], asked[4]
    shop.judgements["query"] = [
        {first: f"{first} joe@example.com", second: "415-555-2671"}.get(query, query) for query in asked
    ]
    problems, config = Problems(), Prepare(privacy={"min_clients": 1, "scrub_judgements": scrub})
    with log_store.connect(tmp_path) as connection:
        read = corpus.read(
            sources.open(shop.data(logs=False)), config, NO_WINDOW,
            connection=connection, scratch=tmp_path, problems=problems,
        )  # fmt: skip
    assert read.privacy["judged"] == {"email": 1, "phone": 1} and read.privacy["scrub_judgements"] is scrub
    (problem,) = problems
    queries = read.queries.to_pylist()
    if scrub:
        assert first in queries and not any("@" in query or "415" in query for query in queries)
        assert (problem.rows, problem.what) == (4, "left out, rows whose query consists of personal data only")
        assert len(read.judged.query) == len(asked) - 4
    else:
        assert f"{first} joe@example.com" in queries and "415-555-2671" in queries
        assert problem.rows == 8 and "kept, queries with possible personal data (email, phone)" in problem.what
        assert not problem.fatal and "joe" not in problem.line(), "the note itself shows none"


def test_no_client_id_leaves_the_stage(shop: Shop, tmp_path: Path) -> None:
    data = with_clients(shop, [f"secret-{row % 40}" for row in range(len(shop.log["query"]))])
    out = Prepared(tmp_path / "out", data, WINDOW, log_cache_dir=str(tmp_path / "store"))
    for folder in (out.folder, tmp_path / "store"):
        for path in (path for path in folder.rglob("*") if path.is_file()):
            assert b"secret-" not in path.read_bytes()


def test_a_log_without_client_ids(shop: Shop, tmp_path: Path) -> None:
    out = Prepared(tmp_path / "out", shop.data(), WINDOW, privacy={"min_clients": 3})
    (note,) = (row for row in out.profile["dropped"] if "has no client ids" in row["what"])
    assert "data.columns.client" in note["what"] and out.profile["privacy"]["min_clients"] == 1
    with pytest.raises(InputError, match=r"min_clients is 3, but the log has no client ids: name the column"):
        Prepared(tmp_path / "refused", shop.data(), WINDOW, privacy={"min_clients": 3, "unknown_clients": "refuse"})


def test_ids_that_lost_their_zeros_are_hinted_at(shop: Shop, tmp_path: Path) -> None:
    shop.products["product_id"] = [f"{number:05d}" for number in range(40)]
    shop.judgements["product_id"] = [f"{int(key[1:]):05d}" for key in shop.judgements["product_id"]]
    shop.log["product_id"] = [key.replace("p", "") for key in shop.log["product_id"]]
    with pytest.raises(InputError, match="no impressions in the training window"):
        Prepared(tmp_path / "out", shop.data(), WINDOW)
    shop.log["product_id"][:200] = [f"{int(key):05d}" for key in shop.log["product_id"][:200]]
    out = Prepared(tmp_path / "out", shop.data(), WINDOW)
    (note,) = (row for row in out.profile["dropped"] if "not in the catalogue" in row["what"])
    assert "differ from one by leading zeros or type alone: keep ids as text" in note["what"]
    shop.judgements["product_id"][0] = "0"
    with pytest.raises(InputError, match=r"judgements: product '0', .*1 of 1 differ from one by leading zeros"):
        Prepared(tmp_path / "out", shop.data(), WINDOW)


# Splits -----------------------------------------------------------------------------------------------------------


def test_plurals_fall_on_one_side(shop: Shop, tmp_path: Path) -> None:
    shop.judgements["query"] += [f"{query}s" for query in shop.judgements["query"]]
    shop.judgements["product_id"] *= 2
    shop.judgements["rating"] *= 2

    def sides(out: Prepared) -> dict[str, str]:
        return {query: side for side in schemas.SIDES for query in out.judged[side].column("query").to_pylist()}

    together = sides(Prepared(tmp_path / "one", shop.data(), WINDOW, plurals="together"))
    assert all(together[query] == together[f"{query}s"] for query in together if not query.endswith("s"))
    apart = sides(Prepared(tmp_path / "two", shop.data(), WINDOW))
    assert any(apart[query] != apart[f"{query}s"] for query in apart if f"{query}s" in apart)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red sofas", "red sofa"),
        ("batteries aa", "battery aa"),
        ("glass shelves", "glass shelve"),
        ("bus", "bus"),
        ("is", "is"),
        ("shoes", "shoe"),
        ("6' hoses", "6' hose"),
    ],
)
def test_singular(text: str, expected: str) -> None:
    assert normalize.singular(text) == expected


def test_near_duplicates_across_sides_are_reported() -> None:
    index = bm25.Index(["word"])
    texts = {
        "train": ["rubber mulch", "2 x 4 stud", "door knob self locking"],
        "dev": ["oak bench"],
        "test": ["rubbermulch", "4 x 2 stud", "self-locking door knobs", "benches oak", "new"],
        "candidates": ["bench, oak"],
    }
    duplicates = splits.near_duplicates(texts, index.stem)
    assert duplicates["pairs"] == {
        "test and train": 2, "test and candidates": 1, "test and dev": 1, "dev and train": 0, "dev and candidates": 1,
    }  # fmt: skip
    assert {"uses": "test and train", "test": "rubbermulch", "train": "rubber mulch"} in duplicates["examples"]
