"""What the data looks like, for the report and for whoever asks why a run came out as it did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from distilrank import bm25, normalise, records
from distilrank.candidates import PROVENANCES, Mined
from distilrank.corpus import Corpus
from distilrank.splits import CUT, SIDES, STRATA, Split


def describe(corpus: Corpus, split: Split, index: bm25.Index, mined: Mined) -> dict[str, Any]:
    """Counts and spreads of everything that goes in and comes out, as JSON values."""
    products, everyone = corpus.products, np.arange(len(corpus.query_ids))
    judged = np.unique(corpus.judged.query)
    logged = np.unique(corpus.log.pairs.query) if corpus.log is not None else everyone[:0]
    newest = np.unique(corpus.newest.pairs.query) if corpus.newest is not None else everyone[:0]
    per_query = np.unique(mined.query, return_counts=True)[1]
    ratings, counts = np.unique(corpus.ratings, return_counts=True)
    weight = np.bincount(corpus.log.pairs.query, minlength=len(everyone)) if corpus.log is not None else everyone * 0
    return {
        "rows": corpus.rows,
        "queries": {
            "distinct": len(everyone),
            "judged": len(judged),
            "training_window": len(logged),
            "newest_traffic": len(newest),
            "newest_traffic_not_in_training_window": int((~np.isin(newest, logged)).sum()),
            "judged_and_logged": int(np.isin(judged, logged).sum()),
        },
        "impressions": {
            "training_window": len(corpus.log.pairs.query) if corpus.log is not None else 0,
            "newest_traffic": len(corpus.newest.pairs.query) if corpus.newest is not None else 0,
            "clicks_in_training_window": int(corpus.log.clicked.sum()) if corpus.log is not None else 0,
        },
        "splits": {use: {"queries": len(split.queries[use]), "pairs": len(split.rows[use])} for use in split.queries},
        "ratings": {f"{rating:g}": int(count) for rating, count in zip(ratings, counts, strict=True)}
        if len(ratings) <= 64
        else None,
        "raters": _spread(corpus.raters),
        "targets": {side: _distribution(corpus.targets[split.rows[side]]) for side in SIDES},
        "strata": {
            "cut": CUT,
            "queries": _tally(corpus.stratum, STRATA),
            "impressions": _tally(np.repeat(corpus.stratum, weight), STRATA),
            **{side: _tally(corpus.stratum[split.queries[side]], STRATA) for side in SIDES},
        },
        "candidates": {
            "queries": len(per_query),
            "pairs": len(mined.query),
            "products": len(np.unique(mined.product)),
            "provenance": _tally(mined.provenance, PROVENANCES),
            "per_query": _spread(per_query),
            "also_judged": int(np.isin(np.unique(mined.query), split.queries["train"]).sum()),
        },
        "lengths": {
            "query_words": _spread(np.array([len(normalise.words(text)) for text in corpus.queries])),
            "query_characters": _spread(np.array([len(text) for text in corpus.queries])),
            **{
                f"{name}_characters": _spread(pc.utf8_length(products[name].drop_null()).to_numpy())
                for name in records.PRODUCT_FIELDS
                if products[name].null_count < products.num_rows
            },
        },
        "missing_fields": {name: products[name].null_count for name in records.PRODUCT_FIELDS},
        "vocabulary": index.vocabulary,
        "merged": corpus.merged,
        "dropped": corpus.dropped,
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
