"""Judgements and rankings as TREC files, for `trec_eval`, `ir-measures` and similar tools."""

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
    """Encode an identifier as one printable ASCII word: white space, `%` and non-ASCII letters are percent-encoded.

    `urllib.parse.unquote` decodes it. The empty identifier becomes a single `%`.
    """
    if _PLAIN_WORD.fullmatch(identifier):  # the usual case; matching is much faster than `quote`
        return identifier
    return quote(identifier, safe=_PLAIN) or "%"


def tie_ranks(product_ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Rank products by their encoded id, int64, shape (rows,): among equal scores, the larger rank comes first.

    That is the order of `trec_eval` (descending by `strcmp`), whatever order a run file is in.
    """
    words = {product: encode(product) for product in set(product_ids)}
    rank = {word: position for position, word in enumerate(sorted(words.values()))}
    return np.fromiter((rank[words[product]] for product in product_ids), np.int64, len(product_ids))


def write_qrels(path: Path, query_ids: Sequence[str], product_ids: Sequence[str], grades: np.ndarray) -> None:
    """Write one line per judged pair: query, 0, product, integer grade."""
    rows = zip(query_ids, product_ids, grades.tolist(), strict=True)
    lines = [f"{encode(query)} 0 {encode(product)} {grade}\n" for query, product, grade in rows]
    artifacts.write_text(path, "".join(lines))


def write_run(
    path: Path, system: str, query_ids: Sequence[str], product_ids: Sequence[str], ranks: np.ndarray, scores: np.ndarray
) -> None:
    """Write one line per ranked pair: query, Q0, product, rank from 1, score, system.

    Nine significant digits distinguish any two 32-bit floats and keep equal ones equal; `trec_eval` reads no more.
    """
    rows = zip(query_ids, product_ids, ranks.tolist(), scores.astype(np.float32).tolist(), strict=True)
    lines = [
        f"{encode(query)} Q0 {encode(product)} {rank} {score:.9g} {system}\n" for query, product, rank, score in rows
    ]
    artifacts.write_text(path, "".join(lines))
