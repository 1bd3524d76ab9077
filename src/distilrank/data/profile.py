"""The data profile: counts and distributions of what preparation read and wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from distilrank.config import Prepare
from distilrank.core import normalize, schemas
from distilrank.core.problems import Problems
from distilrank.core.schemas import SIDES, STRATA
from distilrank.data import bm25
from distilrank.data.candidates import PROVENANCES, Mined
from distilrank.data.corpus import Corpus
from distilrank.data.splits import CUT, Split
from distilrank.modeling.bi_encoder import TokenCounter

_SAMPLED_TEXTS = 5_000  # random texts whose tokens are counted: enough for the percentiles shown


class CandidateStats:
    """Counts candidates as they are mined.

    Args:
        products: number of products in the catalogue.
    """

    def __init__(self, products: int) -> None:
        self.pairs = 0
        self.per_query: list[np.ndarray] = []
        self.queries: list[np.ndarray] = []
        self.provenance = np.zeros(len(PROVENANCES), np.int64)
        self.products = np.zeros(products, bool)

    def add(self, mined: Mined) -> None:
        """Count the candidates of some queries; no query may be added twice."""
        self.pairs += len(mined.query)
        queries, counts = np.unique(mined.query, return_counts=True)
        self.queries.append(queries)
        self.per_query.append(counts)
        self.provenance += np.bincount(mined.provenance, minlength=len(PROVENANCES))
        self.products[mined.product] = True


def describe(
    corpus: Corpus,
    split: Split,
    index: bm25.Index,
    stats: CandidateStats,
    tokens: TokenCounter,
    problems: Problems,
    config: Prepare,
) -> dict[str, Any]:
    """Compute the profile, as JSON values."""
    catalogue = corpus.catalogue
    queries = np.arange(len(corpus.query_ids))
    judged = np.unique(corpus.judged.query)
    logged, newest = np.flatnonzero(corpus.impressions), np.flatnonzero(corpus.newest)
    per_query, mined = (np.concatenate(parts) for parts in (stats.per_query, stats.queries))
    ratings, counts = np.unique(corpus.ratings, return_counts=True)
    generator = np.random.default_rng(config.seed)
    sample = np.sort(generator.choice(len(catalogue), min(_SAMPLED_TEXTS, len(catalogue)), replace=False))
    texts = catalogue.take(sample)
    sampled_queries = corpus.queries.take(
        pa.array(np.sort(generator.choice(len(queries), min(_SAMPLED_TEXTS, len(queries)), replace=False)))
    ).to_pylist()
    (shown, clicks), (shown_newest, _) = (corpus.log.totals(is_newest) for is_newest in (False, True))
    return {
        "rows": corpus.rows,
        "queries": {
            "distinct": len(queries),
            "judged": len(judged),
            "training_window": len(logged),
            "newest_traffic": len(newest),
            "newest_traffic_not_in_training_window": int((~np.isin(newest, logged)).sum()),
            "judged_and_logged": int(np.isin(judged, logged).sum()),
        },
        "impressions": {
            "training_window": shown,
            "newest_traffic": shown_newest,
            "clicks_in_training_window": clicks,
        },
        "privacy": corpus.privacy,
        "frequency": _curve(corpus.impressions),
        "splits": {use: {"queries": len(split.queries[use]), "pairs": len(split.rows[use])} for use in split.queries},
        "ratings": {f"{rating:g}": int(count) for rating, count in zip(ratings, counts, strict=True)}
        if len(ratings) <= 64
        else None,
        "raters": _spread(corpus.raters),
        "rater_agreement": corpus.agreement,
        "targets": {side: _distribution(corpus.targets[split.rows[side]]) for side in SIDES},
        "strata": {
            "cut": CUT,
            "queries": _tally(corpus.stratum, STRATA),
            "impressions": {
                name: int(corpus.impressions[corpus.stratum == code].sum()) for code, name in enumerate(STRATA)
            },
            **{side: _tally(corpus.stratum[split.queries[side]], STRATA) for side in SIDES},
            "pairs": {side: _tally(corpus.stratum[corpus.judged.query[split.rows[side]]], STRATA) for side in SIDES},
            "query_words": {
                side: _spread(_words(corpus.queries.take(pa.array(split.queries[side])).to_pylist())) for side in SIDES
            },
        },
        "candidates": {
            "queries": len(mined),
            "pairs": stats.pairs,
            "products": int(stats.products.sum()),
            "provenance": dict(zip(PROVENANCES, stats.provenance.tolist(), strict=True)),
            "per_query": _spread(per_query),
            "strata": _tally(corpus.stratum[mined], STRATA),
            "also_judged": int(np.isin(mined, split.queries["train"]).sum()),
        },
        "lengths": {
            "query_words": _spread(_words(sampled_queries)),
            "query_tokens": _spread(tokens.count(sampled_queries)),
            **{
                f"{name}_tokens": _spread(tokens.count(texts[name].drop_null().to_pylist()))
                for name in schemas.PRODUCT_FIELDS
                if texts[name].null_count < len(sample)
            },
        },
        "missing_fields": {
            **{name: catalogue.column(name).null_count for name in schemas.PRODUCT_FIELDS if name != "description"},
            "description": catalogue.missing_descriptions,
        },
        "vocabulary": index.vocabulary,
        "merged": corpus.merged,
        "dropped": [problem.to_json() for problem in problems],
    }


def _words(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(normalize.words(text)) for text in texts])


def _curve(impressions: np.ndarray) -> list[dict[str, float]]:
    """Impressions of the query at ranks 1, 2, 5, 10..., and the cumulative share of all impressions."""
    counts = np.sort(impressions[impressions > 0])[::-1]
    if not len(counts):
        return []
    share = np.cumsum(counts) / counts.sum()
    ranks = [base * 10**power for power in range(len(str(len(counts)))) for base in (1, 2, 5)]
    return [
        {"rank": rank, "impressions": int(counts[rank - 1]), "share": round(float(share[rank - 1]), 4)}
        for rank in dict.fromkeys([*(rank for rank in ranks if rank <= len(counts)), len(counts)])
    ]


def _tally(codes: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    return dict(zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True))


def _spread(values: np.ndarray) -> dict[str, float]:
    """Minimum, median, 95th percentile, maximum and mean; all 0 if there are no values."""
    if not len(values):
        return dict.fromkeys(("min", "p50", "p95", "max", "mean"), 0.0)
    least, median, high, largest = np.percentile(values, [0, 50, 95, 100]).tolist()
    return {"min": least, "p50": median, "p95": high, "max": largest, "mean": round(float(np.mean(values)), 4)}


def _distribution(targets: np.ndarray) -> dict[str, Any]:
    """Mean of soft targets, and their counts in each tenth of [0, 1]."""
    mean = round(float(targets.mean()), 4) if len(targets) else 0.0
    return {"mean": mean, "tenths": np.histogram(targets, 10, (0, 1))[0].tolist()}
