"""From judgements, catalogue and logs to what the models learn from: splits, candidates, shards, traffic, a profile.

A query's side of the split is a function of the query and the salt alone, so it survives new judgements and new logs.
Queries of the dev and test sides never become candidates, not even those that nobody has judged yet: a student that
had learned from their products in the log would be tested on what it knows.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distilrank import artifacts, bm25, normalise, progress, records, sources
from distilrank.config import Data, Prepare
from distilrank.errors import InputError, RunStopped

STAGE = "prepare"
SIDES = ("train", "dev", "test")
TRAIN, DEV, TEST = range(3)
STRATA = ("head", "torso", "tail")
PROVENANCES = ("impression", "bm25", "random")

CUT = (
    "by impressions in the training window, most frequent queries first: head is the first third of all impressions, "
    "torso the second, tail the rest; queries seen at most once are tail"
)
TIES = "broken by product id, ascending"
GAIN = "soft target, linear"
HELD_OUT = "held-out queries (dev and test side) stand in for the newest traffic"


def prepare(
    config: Prepare,
    data: Data,
    *,
    reference_start: str,
    newest_start: str,
    newest_end: str,
    data_digest: str,
    judgements: Path,
    candidates: Path,
    traffic: Path,
    profile: Path,
) -> list[str]:
    """Write the judgements by split, the candidates by shard, both samples of traffic and the data profile.

    Judged pairs: rows with the same query as typed, product and rating are one. Spellings with one normal form are
    one query, shown as most often typed; where they bring several ratings of a product, the mean weighted by raters
    counts. Dev and test keep the `dev_queries` and `test_queries` that come first in hash order, train the whole
    queries that come first in hash order within `judged_pairs` pairs (always one); the pairs of its other queries
    join the log without rating, time or click.

    Candidates: for each train-side query of the training window, the products most shown for it (an impression at
    rank r counts 1/log2(1 + r)), then the best of BM25 and then random products that are not among them yet. A query
    that is also judged stays among both: its judgements teach by the student's human term. Without any log, hidden
    judgements included, candidates are mined for the judged train queries.

    Args:
        config: the knobs.
        data: where the data comes from.
        reference_start: ISO 8601; the training window is [reference_start, newest_start). Empty: the log has no time.
        newest_start: the newest traffic is [newest_start, newest_end); empty likewise.
        newest_end: see above.
        data_digest: digest of the outside data, for the record.
        judgements: folder for train.parquet, dev.parquet, test.parquet and protocol.json.
        candidates: folder for shard-00000.parquet and so on.
        traffic: folder for reference.parquet and current.parquet.
        profile: folder for profile.json and stage.json.

    Returns:
        Names of the shards, without suffix.

    Raises:
        InputError: the data is unusable; a split, a window or the candidates are empty.
        RunStopped: a query is on two sides.
    """
    with artifacts.stage(STAGE, profile, config=config, inputs={"data": data_digest}) as facts:
        source = sources.open(data)
        with progress.timed(STAGE, "read the data"):
            inputs = _read(source, config, reference_start, newest_start, newest_end)
        split = _split(inputs, config)
        with progress.timed(STAGE, f"indexed {inputs.products.num_rows} products"):
            index = _index(inputs.products)
        mined = _mine(inputs, split, index, config)
        _check_leaks(inputs, split, mined, config)
        shards = _shards(mined, config.shards)
        samples, basis = _traffic(inputs, config)

        for folder in (judgements, candidates, traffic):
            _clear(folder)
        judged = _write_judged(inputs, split, index, judgements)
        lowest, highest = source.rating_range
        protocol = {
            "source": data.source,
            "rating_range": [lowest, highest],
            "relevant_from": float(_targets(np.array([source.relevant_from]), source.rating_range)[0]),
            "split": {
                "by": "query in normal form, salted SHA-256",
                "salt": config.salt,
                "dev_share": config.dev_share,
                "test_share": config.test_share,
            },
            "ties": TIES,
            "gain": GAIN,
            "bm25": "whole catalogue; title, product type, brand, colour, gender; k1 1.2, b 0.75, English stems",
            "strata": CUT if inputs.log is not None else "no log: all queries are tail",
            "traffic": basis,
        }
        artifacts.write_json(judgements / "protocol.json", protocol)
        artifacts.seal(judgements)

        names = [f"shard-{number:05d}" for number in range(len(shards))]
        for name, rows in zip(names, shards, strict=True):
            _write_candidates(inputs, mined, rows, candidates / f"{name}.parquet")
        artifacts.seal(candidates)

        for name, sample in samples.items():
            _write_traffic(inputs, index, sample, traffic / f"{name}.parquet")
        artifacts.seal(traffic)

        summary = {
            "source": data.model_dump(mode="json"),
            "data_digest": data_digest,
            "windows": {"reference_start": reference_start, "newest_start": newest_start, "newest_end": newest_end},
            **_profile(inputs, split, index, mined),
            "shards": [
                {"name": name, "rows": len(rows), "queries": len(np.unique(mined.query[rows]))}
                for name, rows in zip(names, shards, strict=True)
            ],
            "targets": {side: _distribution(table["target"].to_numpy()) for side, table in judged.items()},
            "traffic": {"basis": basis, "rows": {name: len(sample.query) for name, sample in samples.items()}},
        }
        artifacts.write_json(profile / "profile.json", summary)
        facts.update(splits=summary["splits"], candidates=len(mined.query), shards=len(names), merged=inputs.merged)
        pairs = ", ".join(f"{side} {split.pairs(side)} pairs" for side in SIDES)
        progress.announce(STAGE, "note", f"{pairs}; {len(mined.query)} candidates in {len(names)} shards")
        return names


# Reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Query-product pairs as places in Inputs.query_ids and Inputs.products, a row each."""

    query: np.ndarray
    product: np.ndarray

    def take(self, rows: np.ndarray) -> Pairs:
        """The pairs at `rows` (places or a mask)."""
        return Pairs(self.query[rows], self.product[rows])


@dataclass(frozen=True)
class Log:
    """Impressions, a row each."""

    pairs: Pairs
    exposure: np.ndarray
    """1/log2(1 + rank), 1 where the rank is unknown."""
    clicked: np.ndarray

    def take(self, rows: np.ndarray) -> Log:
        """The impressions at `rows` (places or a mask)."""
        return Log(self.pairs.take(rows), self.exposure[rows], self.clicked[rows])


@dataclass(frozen=True)
class Inputs:
    """What the source gave, with queries and products as places. Queries are in ascending order of query id."""

    products: pa.Table
    query_ids: list[str]
    queries: list[str]
    """Each query as most often typed, white space collapsed."""
    position: np.ndarray
    """Place of each query in hash order, in [0, 1)."""
    side: np.ndarray
    """TRAIN, DEV or TEST of each query, judged or not."""
    judged: Pairs
    """Distinct, ascending."""
    ratings: np.ndarray
    targets: np.ndarray
    raters: np.ndarray
    log: Log | None
    """The training window, or all of a log without time; None if there is no log."""
    newest: Log | None
    """The newest traffic; None if the log has no time."""
    stratum: np.ndarray
    """Place in STRATA of each query."""
    merged: dict[str, int]
    dropped: list[dict[str, Any]]
    rows: dict[str, int]


def _read(source: sources.Source, config: Prepare, reference_start: str, newest_start: str, newest_end: str) -> Inputs:
    products = records.conform(source.products(), records.PRODUCTS, "catalogue").combine_chunks()
    keys = products["product_id"].combine_chunks()
    if not len(keys) or pc.count_distinct(keys).as_py() != len(keys):
        raise InputError(f"catalogue: {len(keys)} products, expected some, each with a product_id of its own")
    table = records.conform(source.judgements(), records.JUDGEMENTS, "judgements")
    impressions = source.impressions()
    rows = {"products": len(keys), "judgements": table.num_rows, "impressions": 0}
    dropped: list[dict[str, Any]] = []
    window = np.zeros(0, np.int8)
    if impressions is not None:
        impressions = records.conform(impressions, records.IMPRESSIONS, "log")
        rows["impressions"] = impressions.num_rows
        known = pc.is_in(impressions["product_id"], value_set=keys)
        impressions = _keep(impressions, known, "the product is not in the catalogue", dropped)
        inside = _window(impressions["timestamp"], reference_start, newest_start, newest_end)
        impressions = _keep(impressions, pa.array(inside >= 0), "outside the log window", dropped)
        window = inside[inside >= 0]

    typed = table["query"].chunks + (impressions["query"].chunks if impressions is not None else [])
    encoded = pa.chunked_array(typed, pa.string()).combine_chunks().dictionary_encode()
    spelling, spellings = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    query_ids, query_of = np.unique([normalise.query_id(text) for text in spellings], return_inverse=True)
    queries = _most_typed(spellings, query_of, np.bincount(spelling, minlength=len(spellings)))
    query = query_of[spelling]
    ids = query_ids.tolist()
    position = np.array([hash_position(key, config.salt) for key in ids])

    product = pc.index_in(table["product_id"], value_set=keys)
    if product.null_count:
        stranger = table["product_id"].filter(product.is_null())[0].as_py()
        raise InputError(f"judgements: product {stranger!r} is not in the catalogue")
    judged, ratings, raters, merged = _merge(
        spelling[: table.num_rows], query[: table.num_rows], product.to_numpy(), table, len(keys)
    )
    merged["spellings"] = len(spellings) - len(ids)

    log = newest = None
    stratum = np.full(len(ids), STRATA.index("tail"))
    if impressions is not None:
        everything = _log(impressions, query[table.num_rows :], keys)
        log = everything.take(window == 0)
        newest = everything.take(window == 1) if newest_start else None
        stratum = strata(np.bincount(log.pairs.query, minlength=len(ids)))
    return Inputs(
        products=products,
        query_ids=ids,
        queries=queries,
        position=position,
        side=sides(position, config.dev_share, config.test_share),
        judged=judged,
        ratings=ratings,
        targets=_targets(ratings, source.rating_range),
        raters=raters,
        log=log,
        newest=newest,
        stratum=stratum,
        merged=merged,
        dropped=dropped,
        rows=rows,
    )


def _keep(table: pa.Table, mask: pa.ChunkedArray | pa.Array, why: str, dropped: list[dict[str, Any]]) -> pa.Table:
    kept = table.filter(mask)
    if kept.num_rows < table.num_rows:
        dropped.append({"rows": table.num_rows - kept.num_rows, "of": "impressions", "why": why})
        progress.announce(STAGE, "note", f"{table.num_rows - kept.num_rows} impressions left out: {why}")
    return kept


def _window(times: pa.ChunkedArray, reference_start: str, newest_start: str, newest_end: str) -> np.ndarray:
    """For each impression 0 (training window), 1 (newest traffic) or -1 (neither); 0 for all of a log without time."""
    if not newest_start:
        return np.zeros(len(times), np.int8)
    start, middle, end = (_instant(text) for text in (reference_start, newest_start, newest_end))
    at = times.to_numpy().astype("datetime64[us]")
    window = np.full(len(at), -1, np.int8)
    window[(at >= start) & (at < middle)] = 0
    window[(at >= middle) & (at < end)] = 1
    return window


def _instant(text: str) -> np.datetime64:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"window bound {text!r}: expected an ISO 8601 time") from None
    time = time.astimezone(UTC) if time.tzinfo else time
    return np.datetime64(time.replace(tzinfo=None), "us")


def _most_typed(spellings: Sequence[str], query_of: np.ndarray, counts: np.ndarray) -> list[str]:
    """For each query its most frequent spelling, the alphabetically first of several, white space collapsed."""
    alphabetic = np.argsort(np.argsort(np.array(spellings, dtype=object), kind="stable"))
    order = np.lexsort((alphabetic, -counts, query_of))
    first = np.unique(query_of[order], return_index=True)[1]
    return [" ".join(spellings[place].split()) for place in order[first]]


def _merge(
    spelling: np.ndarray, query: np.ndarray, product: np.ndarray, table: pa.Table, products: int
) -> tuple[Pairs, np.ndarray, np.ndarray, dict[str, int]]:
    """Make one row of each judged (query, product): pairs, ratings, raters, and how many rows became one why."""
    rating, raters = table["rating"].to_numpy(), table["raters"].to_numpy()
    # The same row twice is one judgement, of as many raters as its fuller copy says.
    order = np.lexsort((-raters, rating, product, spelling))
    repeated = np.zeros(len(order), bool)
    if len(order):
        columns = [column[order] for column in (spelling, product, rating)]
        repeated[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
    rows = np.sort(order[~repeated])
    # Two spellings of a query, judged apart, are more raters of one pair.
    key = query[rows].astype(np.int64) * products + product[rows]
    pair, place = np.unique(key, return_inverse=True)
    weight = np.bincount(place, weights=raters[rows], minlength=len(pair))
    mean = np.bincount(place, weights=rating[rows] * raters[rows], minlength=len(pair)) / np.maximum(weight, 1)
    lowest, highest = np.full(len(pair), np.inf), np.full(len(pair), -np.inf)
    np.minimum.at(lowest, place, rating[rows])
    np.maximum.at(highest, place, rating[rows])
    agreed = lowest == highest
    merged = {
        "identical_judgements": len(order) - len(rows),
        "judgements_of_other_spellings": len(rows) - len(pair),
        "ratings_averaged_over_spellings": int((~agreed).sum()),
    }
    # Exact where raters agree: a mean of equal numbers need not be that number.
    return Pairs(pair // products, pair % products), np.where(agreed, lowest, mean), weight.astype(np.int32), merged


def _log(impressions: pa.Table, query: np.ndarray, keys: pa.Array) -> Log:
    product = pc.index_in(impressions["product_id"], value_set=keys).to_numpy()
    rank = pc.fill_null(impressions["position"], 1).to_numpy()
    clicked = pc.fill_null(impressions["clicked"], False).to_numpy()
    return Log(Pairs(query, product), 1 / np.log2(1.0 + rank), clicked)


def _targets(ratings: np.ndarray, rating_range: tuple[float, float]) -> np.ndarray:
    """Soft targets in [0, 1], float32.

    The threshold of relevance goes through here too, since .665 as a 32-bit float is not .665 as a 64-bit one.
    """
    lowest, highest = rating_range
    return ((ratings - lowest) / (highest - lowest)).astype(np.float32)


# Splitting --------------------------------------------------------------------------------------------------------


def hash_position(query_id: str, salt: str) -> float:
    """Place of a query in hash order, in [0, 1): uniform over queries, a function of the query and the salt alone."""
    digest = hashlib.sha256(f"{salt}:{query_id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def sides(position: np.ndarray, dev_share: float, test_share: float) -> np.ndarray:
    """TRAIN, DEV or TEST for each position in hash order.

    Test takes the low end and dev the high end, so that changing one share moves no query of the other.
    """
    return np.where(position < test_share, TEST, np.where(position >= 1 - dev_share, DEV, TRAIN))


def strata(impressions: np.ndarray) -> np.ndarray:
    """Place in STRATA of each query, from how often it was seen.

    Queries seen equally often share a stratum: the one in which the middle of their impressions lies. See CUT.
    """
    often, group = np.unique(impressions, return_inverse=True)
    mass = often * np.bincount(group)
    middle = (mass[::-1].cumsum()[::-1] - mass / 2) / max(mass.sum(), 1)
    code = np.searchsorted([1 / 3, 2 / 3], middle, side="right")
    code[often <= 1] = STRATA.index("tail")
    return code[group]


@dataclass(frozen=True)
class Split:
    """Rows of Inputs.judged by use."""

    rows: dict[str, np.ndarray]
    """For train, dev, test; `hidden` (train side, without rating from here on); `over_cap` (dev or test side)."""
    queries: dict[str, np.ndarray]

    def pairs(self, use: str) -> int:
        """Number of judged pairs of a use."""
        return len(self.rows[use])


def _split(inputs: Inputs, config: Prepare) -> Split:
    judged, pairs = np.unique(inputs.judged.query, return_counts=True)
    order = np.argsort(inputs.position[judged], kind="stable")
    judged, pairs = judged[order], pairs[order]
    of = {name: inputs.side[judged] == code for code, name in enumerate(SIDES)}
    for name, mask in of.items():
        if not mask.any():
            remedy = {
                "train": f"lower prepare.dev_share ({config.dev_share}) or prepare.test_share ({config.test_share})",
                "dev": f"raise prepare.dev_share ({config.dev_share})",
                "test": f"raise prepare.test_share ({config.test_share})",
            }
            raise InputError(f"no judged query of {len(judged)} falls into {name}; {remedy[name]} or bring more judgements")
    queries = {name: judged[mask] for name, mask in of.items()}
    budget = config.judged_pairs
    kept = max(int((pairs[of["train"]].cumsum() <= budget).sum()), 1) if budget else len(queries["train"])
    queries["train"], queries["hidden"] = np.split(queries["train"], [kept])
    queries["dev"], dev_rest = np.split(queries["dev"], [config.dev_queries or len(queries["dev"])])
    queries["test"], test_rest = np.split(queries["test"], [config.test_queries or len(queries["test"])])
    queries["over_cap"] = np.concatenate([dev_rest, test_rest])
    rows = {use: np.flatnonzero(np.isin(inputs.judged.query, chosen)) for use, chosen in queries.items()}
    return Split(rows, queries)


# Candidates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mined(Pairs):
    """Candidates, grouped by query, a query's rows in the order of PROVENANCES."""

    provenance: np.ndarray
    impressions: np.ndarray
    clicks: np.ndarray


def _index(products: pa.Table) -> bm25.Index:
    fields = [products[name] for name in ("title", "product_type", "brand", "color", "gender")]
    texts = pc.binary_join_element_wise(*fields, " ", null_handling="skip").to_pylist()
    try:
        return bm25.Index(texts)
    except ValueError:
        raise InputError(f"catalogue: none of {len(texts)} products has a word in its title") from None


def _mine(inputs: Inputs, split: Split, index: bm25.Index, config: Prepare) -> Mined:
    count = inputs.products.num_rows
    pool = _pool(inputs, split)
    pair, place = np.unique(pool.pairs.query * np.int64(count) + pool.pairs.product, return_inverse=True)
    shown = np.bincount(place, minlength=len(pair))
    clicks = np.bincount(place, weights=pool.clicked, minlength=len(pair)).astype(np.int64)
    exposure = np.bincount(place, weights=pool.exposure, minlength=len(pair))
    query, product = pair // count, pair % count

    ties = np.random.default_rng(config.seed).random(len(pair))
    order = np.lexsort((ties, -exposure, query))  # keeps queries together
    chosen = _log_queries(inputs, split, query, config.log_queries)
    starts, ends = np.searchsorted(query, chosen), np.searchsorted(query, chosen, side="right")

    counter = progress.Counter(STAGE, len(chosen), "queries")
    found: list[np.ndarray] = []
    sizes = np.zeros((len(chosen), len(PROVENANCES)), np.int64)
    for row, at in enumerate(chosen):
        impressed = product[order[starts[row] : ends[row]][: config.from_impressions]]
        depth = config.from_bm25 + len(impressed) if config.from_bm25 else 0
        matched = index.top(inputs.queries[at], depth)
        matched = matched[~np.isin(matched, impressed)][: config.from_bm25]
        taken = np.concatenate([impressed, matched])
        # A generator for each query: what it draws does not depend on which other queries the log holds.
        draw = np.random.default_rng([config.seed, int(inputs.query_ids[at], 16)])
        drawn = draw.choice(count, min(count, config.from_random + len(taken)), replace=False)
        drawn = drawn[~np.isin(drawn, taken)][: config.from_random]
        found.append(np.concatenate([taken, drawn]))
        sizes[row] = len(impressed), len(matched), len(drawn)
        counter.add(1)

    of, what = np.repeat(chosen, sizes.sum(axis=1)), np.concatenate([*found, np.empty(0, np.int64)]).astype(np.int64)
    key = of * np.int64(count) + what
    spot = np.minimum(np.searchsorted(pair, key), max(len(pair) - 1, 0))
    hit = pair[spot] == key if len(pair) else np.zeros(len(key), bool)
    return Mined(
        query=of,
        product=what,
        provenance=np.repeat(np.tile(np.arange(len(PROVENANCES)), len(chosen)), sizes.ravel()),
        impressions=np.where(hit, shown[spot], 0) if len(pair) else np.zeros(len(key), np.int64),
        clicks=np.where(hit, clicks[spot], 0) if len(pair) else np.zeros(len(key), np.int64),
    )


def _pool(inputs: Inputs, split: Split) -> Log:
    """What candidates may come from: the train side of the training window, and the hidden judgements."""
    hidden = inputs.judged.take(split.rows["hidden"])
    ones = np.ones(len(hidden.query))
    if inputs.log is None:
        return Log(hidden, ones, ones == 0)
    log = inputs.log.take(inputs.side[inputs.log.pairs.query] == TRAIN)
    pairs = Pairs(
        np.concatenate([log.pairs.query, hidden.query]), np.concatenate([log.pairs.product, hidden.product])
    )
    return Log(pairs, np.concatenate([log.exposure, ones]), np.concatenate([log.clicked, ones == 0]))


def _log_queries(inputs: Inputs, split: Split, pooled: np.ndarray, cap: int) -> np.ndarray:
    """The queries to mine for, ascending: all or the `cap` most frequent of the log, then by hash order."""
    queries = np.unique(pooled)
    if not len(queries):
        if inputs.log is not None:
            raise InputError(
                "log: the training window holds no query of the train side, expected some to mine candidates for"
            )
        queries = split.queries["train"]
    # Hidden judgements tell nothing of frequency.
    seen = np.zeros(len(inputs.query_ids), np.int64)
    if inputs.log is not None:
        seen += np.bincount(inputs.log.pairs.query, minlength=len(seen))
    order = np.lexsort((inputs.position[queries], -seen[queries]))
    return np.sort(queries[order[: cap or None]])


def _check_leaks(inputs: Inputs, split: Split, mined: Mined, config: Prepare) -> None:
    """Hold the result against the split, told anew from the query ids.

    Raises:
        RunStopped: a query is on two sides, or a candidate belongs to a held-out one.
    """
    uses = {"train": split.queries["train"], "dev": split.queries["dev"], "test": split.queries["test"]}
    for use, places in {**uses, "candidates": np.unique(mined.query)}.items():
        expected = "train" if use == "candidates" else use
        for place in places:
            key = inputs.query_ids[place]
            told = sides(np.array(hash_position(key, config.salt)), config.dev_share, config.test_share)
            if SIDES[int(told)] != expected:
                raise RunStopped(
                    f"query {inputs.queries[place]!r} ({key}) of the {SIDES[int(told)]} side is among the {use}; "
                    "nothing was written"
                )


def _shards(mined: Mined, count: int) -> list[np.ndarray]:
    """Rows of each shard, ordered by query id and product id: whole queries, the largest to the emptiest shard."""
    queries, starts, sizes = np.unique(mined.query, return_index=True, return_counts=True)
    heap = [(0, shard) for shard in range(min(count, len(queries)))]
    members: list[list[int]] = [[] for _ in heap]
    for place in np.lexsort((queries, -sizes)):
        rows, shard = heapq.heappop(heap)
        members[shard].append(place)
        heapq.heappush(heap, (rows + int(sizes[place]), shard))
    # Places of queries ascend with their ids, so the order of places is that of ids.
    spans = [[np.arange(starts[place], starts[place] + sizes[place]) for place in sorted(shard)] for shard in members]
    return [np.concatenate(span) for span in spans]


# Traffic ----------------------------------------------------------------------------------------------------------


def _traffic(inputs: Inputs, config: Prepare) -> tuple[dict[str, Pairs], str]:
    """The reference and current samples, and one line on what they are."""
    if inputs.newest is not None and inputs.log is not None:
        whole = {"reference": inputs.log.pairs, "current": inputs.newest.pairs}
        basis = "impressions of the training window against those of the newest traffic"
        for window, pairs in zip(("training window", "newest traffic"), whole.values(), strict=True):
            if not len(pairs.query):
                raise InputError(f"log: no impressions in the {window}, expected some; see `window` in the configuration")
    else:
        # Both from one kind of pair: judged products differ from shown ones without any drift.
        pairs, why = inputs.judged, "there is no log"
        if inputs.log is not None and len(np.unique(inputs.side[inputs.log.pairs.query] == TRAIN)) == 2:
            pairs, why = inputs.log.pairs, "the log has no time"
        held_out = inputs.side[pairs.query] != TRAIN
        whole = {"reference": pairs.take(~held_out), "current": pairs.take(held_out)}
        basis = f"{HELD_OUT}: {why}"
    draw = np.random.default_rng([config.seed, 1])
    samples = {}
    for name, pairs in whole.items():
        size = min(config.traffic_sample, len(pairs.query))
        samples[name] = pairs.take(np.sort(draw.choice(len(pairs.query), size, replace=False)))
    return samples, basis


# Writing ----------------------------------------------------------------------------------------------------------


def _clear(folder: Path) -> None:
    """Remove what an earlier attempt left: its seal first, so that no half-written folder looks complete."""
    (folder / artifacts.SEAL).unlink(missing_ok=True)
    for path in sorted(folder.glob("*.parquet")):
        path.unlink()


def _pair_columns(inputs: Inputs, pairs: Pairs) -> dict[str, Any]:
    rows = pa.array(pairs.product)
    return {
        "query_id": [inputs.query_ids[place] for place in pairs.query],
        "query": [inputs.queries[place] for place in pairs.query],
        **{name: inputs.products[name].take(rows) for name in ("product_id", *records.PRODUCT_FIELDS)},
    }


def _by_product(table: pa.Table) -> pa.Table:
    return table.sort_by([("query_id", "ascending"), ("product_id", "ascending")])


def _names(codes: np.ndarray, names: Sequence[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), list(names)).cast(pa.string())


def _scores(index: bm25.Index, inputs: Inputs, pairs: Pairs) -> np.ndarray:
    queries, query = np.unique(pairs.query, return_inverse=True)
    return index.scores([inputs.queries[place] for place in queries], query, pairs.product)


def _write_judged(inputs: Inputs, split: Split, index: bm25.Index, folder: Path) -> dict[str, pa.Table]:
    tables = {}
    for side in SIDES:
        rows = split.rows[side]
        pairs = inputs.judged.take(rows)
        columns = {
            **_pair_columns(inputs, pairs),
            "target": inputs.targets[rows],
            "raters": inputs.raters[rows],
            "stratum": _names(inputs.stratum[pairs.query], STRATA),
            "bm25": _scores(index, inputs, pairs),
        }
        tables[side] = _by_product(pa.table(columns))
        records.write(tables[side], folder / f"{side}.parquet", records.JUDGED)
    return tables


def _write_candidates(inputs: Inputs, mined: Mined, rows: np.ndarray, path: Path) -> None:
    pairs = mined.take(rows)
    columns = {
        **_pair_columns(inputs, pairs),
        "provenance": _names(mined.provenance[rows], PROVENANCES),
        "impressions": mined.impressions[rows],
        "clicks": mined.clicks[rows],
        "stratum": _names(inputs.stratum[pairs.query], STRATA),
    }
    records.write(_by_product(pa.table(columns)), path, records.CANDIDATES)


def _write_traffic(inputs: Inputs, index: bm25.Index, sample: Pairs, path: Path) -> None:
    queries, query = np.unique(sample.query, return_inverse=True)
    texts = [inputs.queries[place] for place in queries]
    columns = _pair_columns(inputs, sample)
    features = {
        "query_words": np.array([len(normalise.words(text)) for text in texts])[query],
        "query_characters": np.array([len(text) for text in texts])[query],
        "unseen_words": np.array([index.unseen(text) for text in texts], np.float32)[query],
        "title_words": [len(normalise.words(title or "")) for title in columns["title"].to_pylist()],
        "bm25": _scores(index, inputs, sample),
    }
    records.write(pa.table({**columns, **features}), path, records.TRAFFIC)


# Profile ----------------------------------------------------------------------------------------------------------


def _profile(inputs: Inputs, split: Split, index: bm25.Index, mined: Mined) -> dict[str, Any]:
    products, everyone = inputs.products, np.arange(len(inputs.query_ids))
    judged = np.unique(inputs.judged.query)
    logged = np.unique(inputs.log.pairs.query) if inputs.log is not None else everyone[:0]
    newest = np.unique(inputs.newest.pairs.query) if inputs.newest is not None else everyone[:0]
    per_query = np.unique(mined.query, return_counts=True)[1]
    ratings, counts = np.unique(inputs.ratings, return_counts=True)
    weight = np.bincount(inputs.log.pairs.query, minlength=len(everyone)) if inputs.log is not None else everyone * 0
    return {
        "rows": inputs.rows,
        "queries": {
            "distinct": len(everyone),
            "judged": len(judged),
            "training_window": len(logged),
            "newest_traffic": len(newest),
            "newest_traffic_not_in_training_window": int((~np.isin(newest, logged)).sum()),
            "judged_and_logged": int(np.isin(judged, logged).sum()),
        },
        "impressions": {
            "training_window": len(inputs.log.pairs.query) if inputs.log is not None else 0,
            "newest_traffic": len(inputs.newest.pairs.query) if inputs.newest is not None else 0,
            "clicks_in_training_window": int(inputs.log.clicked.sum()) if inputs.log is not None else 0,
        },
        "splits": {use: {"queries": len(split.queries[use]), "pairs": split.pairs(use)} for use in split.queries},
        "ratings": {f"{rating:g}": int(count) for rating, count in zip(ratings, counts, strict=True)}
        if len(ratings) <= 64
        else None,
        "raters": _spread(inputs.raters),
        "strata": {
            "cut": CUT,
            "queries": _tally(inputs.stratum, STRATA),
            "impressions": _tally(np.repeat(inputs.stratum, weight), STRATA),
            **{side: _tally(inputs.stratum[split.queries[side]], STRATA) for side in SIDES},
        },
        "candidates": {
            "queries": len(per_query),
            "pairs": len(mined.query),
            "products": len(np.unique(mined.product)),
            "provenance": _tally(mined.provenance, PROVENANCES),
            "per_query": _spread(per_query),
            "also_judged": int(np.isin(np.unique(mined.query), judged).sum()),
        },
        "lengths": {
            "query_words": _spread(np.array([len(normalise.words(text)) for text in inputs.queries])),
            "query_characters": _spread(np.array([len(text) for text in inputs.queries])),
            **{
                f"{name}_characters": _spread(pc.utf8_length(products[name].drop_null()).to_numpy())
                for name in records.PRODUCT_FIELDS
                if products[name].null_count < products.num_rows
            },
        },
        "missing_fields": {name: products[name].null_count for name in records.PRODUCT_FIELDS},
        "vocabulary": index.vocabulary,
        "merged": inputs.merged,
        "dropped": inputs.dropped,
    }


def _tally(codes: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    return dict(zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True))


def _spread(values: np.ndarray) -> dict[str, float]:
    """Least, median, 95th percentile, largest and mean of at least one value."""
    least, median, high, largest = np.percentile(values, [0, 50, 95, 100]).tolist()
    return {"min": least, "p50": median, "p95": high, "max": largest, "mean": round(float(values.mean()), 4)}


def _distribution(targets: np.ndarray) -> dict[str, Any]:
    """Mean of soft targets, and how many lie in each tenth of [0, 1]."""
    return {"mean": round(float(targets.mean()), 4), "tenths": np.histogram(targets, 10, (0, 1))[0].tolist()}
