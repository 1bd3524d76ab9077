"""Reads judged pairs of any files as schemas.JUDGEMENTS, and refuses pairs with two ratings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from distilrank.core import schemas
from distilrank.core.problems import EXAMPLES, Problems
from distilrank.data.sources.reading import File
from distilrank.data.sources.rows import Rows

_REMEDY = "; where several raters rate a pair, set data.rating_conflicts to mean, median or majority"


def judgements(
    files: Sequence[File],
    where: str,
    rating_range: tuple[float, float],
    raters: int,
    problems: Problems,
    *,
    conflicts: str | None = None,
) -> pa.Table:
    """Read the judged pairs of `files` as schemas.JUDGEMENTS, in file order, one row per rating, without gains.

    Args:
        files: files with the columns query, product_id, rating and optionally rater, raters and locale.
        where: name of all files together in problems.
        rating_range: lowest and highest rating.
        raters: number of raters behind a rating if the files do not say.
        problems: receives blank queries, ratings outside the scale, and pairs with two ratings if they are refused.
        conflicts: `data.rating_conflicts`; None: the source has no such setting, and pairs have one rating.
    """
    parts = []
    for number, file in enumerate(files):
        for rows in file.batches(problems):
            columns = {
                "query": rows.query("query"),
                "product_id": rows.key("product_id"),
                "rating": rows.number("rating", *rating_range, required=True),
                "raters": pa.array(np.full(len(rows), raters, np.int32)),
                "gain": pa.nulls(len(rows), pa.float64()),
                "locale": rows.text("locale") if "locale" in file.columns else pa.nulls(len(rows), pa.string()),
                "rater": pa.nulls(len(rows), pa.string()),
            }
            if "raters" in file.columns:
                columns["raters"] = rows.number("raters", 1, 2**31 - 1, whole=True, required=True).cast(pa.int32())
            if "rater" in file.columns:
                columns["rater"] = rows.key("rater")
            parts.append(rows.keep(**columns, **origin(rows, number)))
    return one_table(parts, files, where, problems, conflicts=conflicts)


def origin(rows: Rows, file: int) -> dict[str, pa.Array]:
    """The columns file (index in a list of files) and row that `one_table` needs."""
    return {"file": pa.array(np.full(len(rows), file)), "row": pa.array(rows.numbers)}


def one_table(
    parts: Sequence[pa.Table],
    files: Sequence[File],
    where: str,
    problems: Problems,
    *,
    fatal: bool = True,
    conflicts: str | None = None,
) -> pa.Table:
    """Concatenate `parts` as schemas.JUDGEMENTS, without pairs whose rows disagree unless `conflicts` resolves them.

    Names of raters go no further: they are replaced by numbers in order of appearance.

    Args:
        parts: the columns of schemas.JUDGEMENTS, rater as text or missing, and of `origin`.
        files, where, problems, conflicts: see `judgements`.
        fatal: whether pairs whose rows disagree stop the run.
    """
    if not sum(map(len, parts)):
        if not problems.fatal:
            problems.add(where, "no rows after the header")
        return schemas.JUDGEMENTS.empty_table()
    table = _number_raters(pa.concat_tables(parts))
    if conflicts in (None, "refuse"):
        table = _without_conflicts(table, files, where, problems, fatal, _REMEDY if conflicts else "")
    return table.select(schemas.JUDGEMENTS.names).cast(schemas.JUDGEMENTS)


def _number_raters(table: pa.Table) -> pa.Table:
    if "rater" not in table.column_names:
        return table.append_column("rater", pa.nulls(len(table), pa.int32()))
    names = table["rater"].dictionary_encode().combine_chunks()
    return table.set_column(table.column_names.index("rater"), "rater", names.indices)


def _without_conflicts(
    table: pa.Table, files: Sequence[File], where: str, problems: Problems, fatal: bool, remedy: str
) -> pa.Table:
    # Indices of strings instead of strings take a tenth of the memory.
    query, product = (table[name].dictionary_encode().combine_chunks() for name in ("query", "product_id"))
    pair = query.indices.to_numpy().astype(np.int64) * len(product.dictionary) + product.indices.to_numpy()
    order = np.argsort(pair, kind="stable")
    rating = table["rating"].to_numpy()[order]
    unlike = (pair[order][1:] == pair[order][:-1]) & (rating[1:] != rating[:-1])
    if not unlike.any():
        return table
    split = np.isin(pair, pair[order][1:][unlike])
    rows_by_pair: dict[tuple[str, str], list[dict]] = {}
    for row in table.filter(pa.array(split)).slice(0, 1000).to_pylist():
        rows_by_pair.setdefault((row["query"], row["product_id"]), []).append(row)
    examples = [text for rows in rows_by_pair.values() for text in _describe_conflict(rows, files)]
    what = ("expected one rating" if fatal else "left out, expected one rating") + remedy
    problems.add(where, what, rows=int(split.sum()), examples=examples[:EXAMPLES], fatal=fatal)
    return table.filter(pa.array(~split))


def _describe_conflict(rows: list[dict], files: Sequence[File]) -> list[str]:
    """One line on the first two rows that rate a pair differently."""
    first = rows[0]
    for other in rows[1:]:
        if other["rating"] != first["rating"]:
            pair = f"rows {first['row']} and {other['row']}"
            if len(files) > 1:
                pair = " and ".join(f"row {row['row']} of {files[row['file']].name}" for row in (first, other))
            rated = f"product {first['product_id']!r} for query {first['query']!r}"
            return [f"{pair} rate {rated} {first['rating']:g} and {other['rating']:g}"]
    return []
