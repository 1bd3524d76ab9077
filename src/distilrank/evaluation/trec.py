"""Judgements and rankings as TREC files, for `trec_eval`, `ir-measures` and their like."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from distilrank.core import artifacts

_PLAIN = "".join(chr(code) for code in range(33, 127) if chr(code) != "%")
_PLAIN_WORD = re.compile(f"[{re.escape(_PLAIN)}]+")


def encode(identifier: str) -> str:
    """`identifier` as one printable ASCII word: white space, `%` and non-ASCII letters are percent-encoded.

    `urllib.parse.unquote` turns it back; the empty identifier, which has no word, becomes a single `%`.
    """
    if _PLAIN_WORD.fullmatch(identifier):  # most are, and a check is much faster than `quote`
        return identifier
    return quote(identifier, safe=_PLAIN) or "%"


def tie_ranks(product_ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Rank of each product by its encoded id, int64, shape (rows,): of equal scores, the larger rank comes first.

    That is `trec_eval`'s order (descending by `strcmp`), whatever order a run file is in.
    """
    known = {product: encode(product) for product in set(product_ids)}
    rank = {word: position for position, word in enumerate(sorted(known.values()))}
    return np.fromiter((rank[known[product]] for product in product_ids), np.int64, len(product_ids))


def write_qrels(path: Path, query_ids: Sequence[str], product_ids: Sequence[str], grades: np.ndarray) -> None:
    """Write one line a judged pair: query, 0, product, integer grade."""
    rows = zip(query_ids, product_ids, grades.tolist(), strict=True)
    lines = [f"{encode(query)} 0 {encode(product)} {grade}\n" for query, product, grade in rows]
    artifacts.write_text(path, "".join(lines))


def write_run(
    path: Path, system: str, query_ids: Sequence[str], product_ids: Sequence[str], ranks: np.ndarray, scores: np.ndarray
) -> None:
    """Write one line a ranked pair: query, Q0, product, rank from 1, score, system.

    Nine significant digits tell any two 32-bit floats apart and keep equal ones equal; `trec_eval` reads no more.
    """
    rows = zip(query_ids, product_ids, ranks.tolist(), scores.astype(np.float32).tolist(), strict=True)
    lines = [
        f"{encode(query)} Q0 {encode(product)} {rank} {score:.9g} {system}\n" for query, product, rank, score in rows
    ]
    artifacts.write_text(path, "".join(lines))
