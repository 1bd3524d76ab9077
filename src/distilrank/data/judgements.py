"""Merge judged rows of a source into one row per query and product: scrubbed, checked, and combined over raters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distilrank.config import Privacy
from distilrank.core import arrays, normalize
from distilrank.core.problems import EXAMPLES, Problems
from distilrank.data import raters
from distilrank.data.catalogue import Catalogue
from distilrank.data.impressions import Pairs
from distilrank.data.log_store import make_scrubber


@dataclass(frozen=True)
class MergedJudgements:
    """One row per judged query and product, ascending by query, then product; all arrays have shape (pairs,)."""

    pairs: Pairs
    ratings: np.ndarray
    """On the source's scale, float64."""
    gains: np.ndarray
    """Gains defined by the source, float64; NaN where it defines none."""
    raters: np.ndarray
    """Number of raters behind each rating, int32."""
    locales: pa.StringArray
    """Null where unknown."""
    merged: dict[str, int]
    """Number of rows that were merged into another, by reason."""
    agreement: dict[str, Any] | None
    """Agreement of the raters of a pair (`raters.agreement`); None where each pair has one rating."""


def scrub(table: pa.Table, privacy: Privacy, problems: Problems) -> tuple[pa.Table, dict[str, int]]:
    """Scrub the judgements as configured, and count their queries by the kinds of personal data that they contain.

    Unless `scrub_judgements` is set, judged queries are only inspected: a query that loses a part is a different query
    and may move to another split.
    """
    if not (privacy.scrub or privacy.scrub_judgements):
        return table, {}
    scrubber = make_scrubber(privacy)
    encoded = table["query"].combine_chunks().dictionary_encode()
    scrubbed = [scrubber(text) for text in encoded.dictionary.to_pylist()]
    queries_by_kind = Counter(kind for query in scrubbed for kind in set(query.kinds))
    counts = dict(sorted(queries_by_kind.items()))
    if not privacy.scrub_judgements:
        is_personal = pa.array([bool(query.kinds) for query in scrubbed], pa.bool_()).take(encoded.indices)
        what = (
            "kept, queries with possible personal data (" + ", ".join(counts) + "); set "
            "prepare.privacy.scrub_judgements to remove it, or correct the judgements"
        )
        problems.add("judgements", what, rows=pc.sum(is_personal).as_py() or 0, fatal=False)
        return table, counts
    texts = pa.array([query.text for query in scrubbed], pa.string()).take(encoded.indices)
    is_left = pa.array([not normalize.is_blank(query.text) for query in scrubbed], pa.bool_()).take(encoded.indices)
    what = "left out, rows whose query consists of personal data only"
    problems.add("judgements", what, rows=len(is_left) - (pc.sum(is_left).as_py() or 0), fatal=False)
    table = table.set_column(table.column_names.index("query"), table.schema.field("query"), texts)
    return table.filter(is_left), counts


def keep_known_products(table: pa.Table, catalogue: Catalogue, problems: Problems) -> pa.Table:
    """Keep the judgements of products in the catalogue; report the others as a problem."""
    is_known = pc.is_in(table["product_id"], value_set=catalogue.keys)
    unknown = pc.unique(table["product_id"].filter(pc.invert(is_known)))
    if not len(unknown):
        return table
    problems.add(
        "judgements",
        f"products that are not in the catalogue{catalogue.hint_at_altered_ids(unknown)}",
        rows=table.num_rows - pc.sum(is_known).as_py(),
        examples=[f"product {key!r}" for key in unknown[:EXAMPLES].to_pylist()],
    )
    return table.filter(is_known)


def merge(
    table: pa.Table,
    spelling: np.ndarray,
    query: np.ndarray,
    product: np.ndarray,
    *,
    products: int,
    rule: str,
    seed: int,
) -> MergedJudgements:
    """Merge the rows of each judged query and product into one.

    Args:
        table: the judged rows, as schemas.JUDGEMENTS.
        spelling: index of each row's query as typed, shape (rows,).
        query: index of each row's query, shared by all of its spellings, shape (rows,).
        product: index of each row's product in the catalogue, shape (rows,).
        products: number of products in the catalogue.
        rule: how several ratings are combined, `data.rating_conflicts`.
        seed: seed of the sample of pairs on which agreement is measured.
    """
    rating, raters_of_row = table["rating"].to_numpy(), table["raters"].to_numpy()
    gain = pc.fill_null(table["gain"], float("nan")).to_numpy()
    rater = pc.fill_null(table["rater"], -1).to_numpy()
    has_name = rater >= 0
    pair, pair_of_row = np.unique(query.astype(np.int64) * products + product, return_inverse=True)

    rows = _without_repeated(spelling, product, rating, rater, raters_of_row, may_repeat=~has_name & (rule != "refuse"))
    # A rater counts once per pair, whatever the spelling; each row without a rater counts as a separate rater.
    named_raters = rater.max(initial=-1) + 1
    anonymous = len(pair) * named_raters + np.arange(len(rater))
    rater_of_pair = np.where(has_name, pair_of_row * named_raters + rater, anonymous)[rows]
    _, first, group = np.unique(rater_of_pair, return_index=True, return_inverse=True)
    rating_by_rater = raters.reduce_ratings(rule, group, rating[rows], raters_of_row[rows], len(first))
    rows_by_rater = rows[first]
    pair_by_rater, weight = pair_of_row[rows_by_rater], raters_of_row[rows_by_rater]

    ratings = raters.reduce_ratings(rule, pair_by_rater, rating_by_rater, weight, len(pair))
    count = np.bincount(pair_by_rater, weight, len(pair))
    gains = np.bincount(pair_by_rater, gain[rows_by_rater] * weight, len(pair)) / np.maximum(count, 1)
    lowest, highest = raters.extremes(pair_by_rater, rating_by_rater, len(pair))
    merged = {
        "identical_judgements": len(rating) - len(rows),
        "judgements_of_other_spellings": len(np.unique(spelling.astype(np.int64) * products + product)) - len(pair),
        "ratings_averaged_over_spellings": int((lowest < highest).sum()) if rule == "refuse" else 0,
        "repeated_by_a_rater": len(rows) - len(rows_by_rater),
    }
    agreement = None
    if has_name.any() or rule != "refuse":
        is_single = weight == 1
        agreement = {
            "rule": rule,
            "raters": len(np.unique(rater)) if has_name.all() else None,
            "ratings": len(rows_by_rater),
            **raters.agreement(rule, pair_by_rater[is_single], rating_by_rater[is_single], len(pair), seed),
        }
    return MergedJudgements(
        pairs=Pairs(pair // products, pair % products),
        ratings=ratings,
        gains=gains,
        raters=count.astype(np.int32),
        locales=arrays.mode_by_group(pair_of_row, table["locale"], len(pair)),
        merged=merged,
        agreement=agreement,
    )


def _without_repeated(
    spelling: np.ndarray,
    product: np.ndarray,
    rating: np.ndarray,
    rater: np.ndarray,
    raters_of_row: np.ndarray,
    may_repeat: np.ndarray,
) -> np.ndarray:
    """Indices of the rows, ascending, without repetitions of spelling, product, rating and rater.

    A repeated row is one judgement, with the larger number of raters of its copies.

    Args:
        may_repeat: whether equal rows count as two raters who agree, shape (rows,).
    """
    order = np.lexsort((-raters_of_row, rater, rating, product, spelling))
    is_repeated = np.zeros(len(order), bool)
    if len(order):
        columns = [column[order] for column in (spelling, product, rating, rater)]
        is_repeated[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
        is_repeated &= ~may_repeat[order]
    return np.sort(order[~is_repeated])


def soft_targets(ratings: np.ndarray, rating_range: tuple[float, float]) -> np.ndarray:
    """Convert ratings to soft targets in [0, 1], float32.

    The relevance threshold is converted by this function too, since 0.665 in 32 bits differs from 0.665 in 64 bits.
    """
    lowest, highest = rating_range
    return ((ratings - lowest) / (highest - lowest)).astype(np.float32)
