"""From judgements, catalogue and logs to what the models learn from: splits, candidates, shards, traffic, a profile.

Queries of the dev and test sides never become candidates, not even those that nobody has judged yet: a student that
had learned from their products in the log would be tested on what it knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distilrank import artifacts, bm25, data_profile, normalise, progress, records, sources, splits
from distilrank.candidates import PROVENANCES, Mined, into_shards, mine
from distilrank.config import Data, Prepare
from distilrank.corpus import Corpus, Pairs, read, soft_targets
from distilrank.errors import InputError
from distilrank.splits import SIDES, STRATA, TRAIN

STAGE = "prepare"
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

    Dev and test keep the `dev_queries` and `test_queries` that come first in hash order, train the whole queries that
    come first in hash order within `judged_pairs` pairs (always one); the pairs of its other queries join the log
    without rating, time or click. A judged train query that the log has too stays among both judgements and
    candidates: its ratings teach by the student's human term, its other products by the teacher's scores.

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
    with artifacts.stage(STAGE, profile, config=config) as record:
        record.inputs["data"] = data_digest
        source = sources.open(data)
        with progress.timed(STAGE, "read the data"):
            corpus = read(source, config, reference_start, newest_start, newest_end)
        split = splits.split(corpus.judged.query, corpus.position, config)
        with progress.timed(STAGE, f"indexed {corpus.products.num_rows} products"):
            index = _index(corpus.products)
        mined = mine(corpus, split, index, config)
        used = {**{side: split.queries[side] for side in SIDES}, "candidates": np.unique(mined.query)}
        splits.check_leaks({use: [corpus.queries[at] for at in places] for use, places in used.items()}, config)
        shards = into_shards(mined, config.shards)
        names = [f"shard-{number:05d}" for number in range(len(shards))]
        samples, basis = _sample_traffic(corpus, config)

        for folder in (judgements, candidates, traffic):
            _clear(folder)
        for side in SIDES:
            _write_judged(corpus, split.rows[side], index, judgements / f"{side}.parquet")
        artifacts.write_json(judgements / "protocol.json", _protocol(source, data, config, corpus, basis))
        artifacts.seal(judgements)
        for name, rows in zip(names, shards, strict=True):
            _write_candidates(corpus, mined, rows, candidates / f"{name}.parquet")
        artifacts.seal(candidates)
        for name, sample in samples.items():
            _write_traffic(corpus, index, sample, traffic / f"{name}.parquet")
        artifacts.seal(traffic)

        summary = {
            "source": data.model_dump(mode="json"),
            "data_digest": data_digest,
            "windows": {"reference_start": reference_start, "newest_start": newest_start, "newest_end": newest_end},
            **data_profile.describe(corpus, split, index, mined),
            "shards": [
                {"name": name, "rows": len(rows), "queries": len(np.unique(mined.query[rows]))}
                for name, rows in zip(names, shards, strict=True)
            ],
            "traffic": {"basis": basis, "rows": {name: len(sample.query) for name, sample in samples.items()}},
        }
        artifacts.write_json(profile / "profile.json", summary)
        record.facts.update(
            splits=summary["splits"], candidates=len(mined.query), shards=len(names), merged=corpus.merged
        )
        pairs = ", ".join(f"{side} {len(split.rows[side])}" for side in SIDES)
        progress.announce(
            STAGE, "note", f"judged pairs: {pairs}; {len(mined.query)} candidates of {len(used['candidates'])} queries"
        )
        return names


def _index(products: pa.Table) -> bm25.Index:
    fields = [products[name] for name in ("title", "product_type", "brand", "color", "gender")]
    texts = pc.binary_join_element_wise(*fields, " ", null_handling="skip").to_pylist()
    try:
        return bm25.Index(texts)
    except ValueError:
        raise InputError(f"catalogue: none of {len(texts)} products has a word in its title") from None


def _protocol(source: sources.Source, data: Data, config: Prepare, corpus: Corpus, basis: str) -> dict[str, Any]:
    return {
        "source": data.source,
        "rating_range": list(source.rating_range),
        "relevant_from": float(soft_targets(np.array([source.relevant_from]), source.rating_range)[0]),
        "split": {
            "by": "query in normal form, salted SHA-256",
            "salt": config.salt,
            "dev_share": config.dev_share,
            "test_share": config.test_share,
        },
        "ties": "broken by product id, ascending",
        "gain": "soft target, linear",
        "bm25": "whole catalogue; title, product type, brand, colour, gender; k1 1.2, b 0.75, English stems",
        "strata": splits.CUT if corpus.log is not None else "there is no log: all queries are tail",
        "traffic": basis,
    }


# Traffic ----------------------------------------------------------------------------------------------------------


def _sample_traffic(corpus: Corpus, config: Prepare) -> tuple[dict[str, Pairs], str]:
    """The reference and current samples, and one line on what they are."""
    if corpus.newest is not None and corpus.log is not None:
        whole = {"reference": corpus.log.pairs, "current": corpus.newest.pairs}
        basis = "impressions of the training window against those of the newest traffic"
        for window, pairs in zip(("training window", "newest traffic"), whole.values(), strict=True):
            if not len(pairs.query):
                raise InputError(
                    f"log: no impressions in the {window}, expected some; see `window` in the configuration"
                )
    else:
        # Both from one kind of pair: judged products differ from shown ones without any drift.
        pairs, why = corpus.judged, "there is no log"
        if corpus.log is not None and len(np.unique(corpus.side[corpus.log.pairs.query] == TRAIN)) == 2:
            pairs, why = corpus.log.pairs, "the log has no time"
        held_out = corpus.side[pairs.query] != TRAIN
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


def _pair_columns(corpus: Corpus, pairs: Pairs) -> dict[str, Any]:
    rows = pa.array(pairs.product)
    return {
        "query_id": [corpus.query_ids[place] for place in pairs.query],
        "query": [corpus.queries[place] for place in pairs.query],
        **{name: corpus.products[name].take(rows) for name in ("product_id", *records.PRODUCT_FIELDS)},
    }


def _by_product(table: pa.Table) -> pa.Table:
    return table.sort_by([("query_id", "ascending"), ("product_id", "ascending")])


def _names(codes: np.ndarray, names: Sequence[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), list(names)).cast(pa.string())


def _scores(index: bm25.Index, corpus: Corpus, pairs: Pairs) -> np.ndarray:
    queries, query = np.unique(pairs.query, return_inverse=True)
    return index.scores([corpus.queries[place] for place in queries], query, pairs.product)


def _write_judged(corpus: Corpus, rows: np.ndarray, index: bm25.Index, path: Path) -> None:
    pairs = corpus.judged.take(rows)
    columns = {
        **_pair_columns(corpus, pairs),
        "target": corpus.targets[rows],
        "raters": corpus.raters[rows],
        "stratum": _names(corpus.stratum[pairs.query], STRATA),
        "bm25": _scores(index, corpus, pairs),
    }
    records.write(_by_product(pa.table(columns)), path, records.JUDGED)


def _write_candidates(corpus: Corpus, mined: Mined, rows: np.ndarray, path: Path) -> None:
    pairs = mined.take(rows)
    columns = {
        **_pair_columns(corpus, pairs),
        "provenance": _names(mined.provenance[rows], PROVENANCES),
        "impressions": mined.impressions[rows],
        "clicks": mined.clicks[rows],
        "stratum": _names(corpus.stratum[pairs.query], STRATA),
    }
    records.write(_by_product(pa.table(columns)), path, records.CANDIDATES)


def _write_traffic(corpus: Corpus, index: bm25.Index, sample: Pairs, path: Path) -> None:
    queries, query = np.unique(sample.query, return_inverse=True)
    texts = [corpus.queries[place] for place in queries]
    columns = _pair_columns(corpus, sample)
    features = {
        "query_words": np.array([len(normalise.words(text)) for text in texts])[query],
        "query_characters": np.array([len(text) for text in texts])[query],
        "unseen_words": np.array([index.unseen(text) for text in texts], np.float32)[query],
        "title_words": [len(normalise.words(title or "")) for title in columns["title"].to_pylist()],
        "bm25": _scores(index, corpus, sample),
    }
    records.write(pa.table({**columns, **features}), path, records.TRAFFIC)
