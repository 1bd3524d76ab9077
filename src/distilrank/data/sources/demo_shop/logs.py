"""Search log of the demo shop: mediocre retrieval, and shoppers who click relevant products that they see."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from distilrank.core import schemas
from distilrank.data.sources.demo_shop.judgements import highest
from distilrank.data.sources.demo_shop.vocabulary import SEASONAL

SHOWN = 10
"""Number of products on a result page."""
SECOND_PERIOD_DAYS = 7
END = np.datetime64("2025-12-01T00:00:00", "s")
"""The end of the log, exclusive, UTC."""

_POOL_BY_WORDS, _POOL_BY_WORTH, _POOL_AT_RANDOM = 18, 4, 6
_CLICKS = np.array([0.02, 0.06, 0.18, 0.40])
"""Probability of a click on an examined product, by grade."""
_ETA = 0.9
"""A result at position p is examined with probability 1/p^eta (Joachims, Swaminathan and Schnabel, WSDM 2017)."""
_CHUNK = 50_000


class WordMatch:
    """Computes the share of a query's words, weighted by rarity, that occur in a product's text."""

    def __init__(self, texts: Sequence[str]) -> None:
        postings: dict[str, list[int]] = {}
        for row, text in enumerate(texts):
            for word in set(_words(text)):
                postings.setdefault(word, []).append(row)
        self.size = len(texts)
        self.postings = {word: np.array(rows) for word, rows in postings.items()}

    def __call__(self, text: str) -> np.ndarray:
        """One number from 0 to 1 per product."""
        scores, total = np.zeros(self.size), 0.0
        for word in dict.fromkeys(_words(text)):
            rows = self.postings.get(word)
            weight = math.log(1 + self.size / (1 if rows is None else len(rows)))
            total += weight
            if rows is not None:
                scores[rows] += weight
        return scores / max(total, 1e-9)


@dataclass(frozen=True)
class Results:
    """Retrieval results of a query: rows of the catalogue, their scores and true grades."""

    rows: np.ndarray
    scores: np.ndarray
    grades: np.ndarray


def retrieve(lexical: np.ndarray, grades: np.ndarray, draw: np.random.Generator) -> Results:
    """Retrieve products mostly by words, some by relevance, and some at random."""
    noise = draw.random((2, len(grades)))
    by_words = highest(lexical + 0.05 * noise[0], _POOL_BY_WORDS)
    by_worth = highest(grades + 2.0 * noise[1], _POOL_BY_WORTH)
    rows = np.concatenate([by_words, by_worth, draw.integers(0, len(grades), _POOL_AT_RANDOM)])
    rows = np.unique(rows)
    return Results(rows, lexical[rows] + 0.03 * grades[rows], grades[rows])


def times(searches: int, days: int, draw: np.random.Generator) -> np.ndarray:
    """Draw the times of the searches: sorted datetime64[s], uniform over days, more in the evening."""
    day = draw.integers(1, days + 1, searches)
    second = (draw.normal(19.0, 4.5, searches) % 24 * 3600).astype(np.int64)
    return np.sort(END - day.astype("timedelta64[D]") + second.astype("timedelta64[s]"))


def second_period(moments: np.ndarray) -> np.ndarray:
    """Whether each time is in the second period, the last days of the log."""
    return moments >= END - np.timedelta64(SECOND_PERIOD_DAYS, "D")


def show(
    moments: np.ndarray,
    texts: pa.Array,
    searched: np.ndarray,
    results: Sequence[Results],
    product_ids: pa.Array,
    draw: np.random.Generator,
) -> pa.Table:
    """Simulate the searches and return the log as schemas.IMPRESSIONS, in order of time and position.

    Args:
        moments, texts: when each search happened and what was typed.
        searched: number of each search's query in `results`.
    """
    # One rectangular array of results; padding has scores too low to be shown.
    width = max(len(result.rows) for result in results)
    rows = np.zeros((len(results), width), dtype=np.int64)
    scores = np.full((len(results), width), -np.inf)
    grades = np.zeros((len(results), width), dtype=np.int8)
    for number, result in enumerate(results):
        rows[number, : len(result.rows)] = result.rows
        scores[number, : len(result.rows)] = result.scores
        grades[number, : len(result.rows)] = result.grades

    looked = 1 / np.arange(1, SHOWN + 1) ** _ETA
    parts = []
    for start in range(0, len(moments), _CHUNK):
        query = searched[start : start + _CHUNK]
        ranked = np.argsort(-(scores[query] + draw.gumbel(0, 0.15, (len(query), width))), axis=1)[:, :SHOWN]
        chance = looked[: ranked.shape[1]] * _CLICKS[grades[query[:, None], ranked]]
        clicked = draw.random(ranked.shape) < chance
        search, position = np.nonzero(np.isfinite(scores[query[:, None], ranked]))
        parts.append(
            pa.table(
                [
                    pa.array(moments[start + search], type=pa.timestamp("s")).cast(pa.timestamp("us", tz="UTC")),
                    texts.take(pa.array(start + search)),
                    product_ids.take(pa.array(rows[query[:, None], ranked][search, position])),
                    pa.array((position + 1).astype(np.int32)),
                    pa.array(clicked[search, position]),
                ],
                schema=schemas.IMPRESSIONS,
            )
        )
    return pa.concat_tables(parts)


def seasonal(text: str, draw: np.random.Generator) -> str:
    """Add seasonal words to a query."""
    return SEASONAL[draw.integers(len(SEASONAL))].format(text)


def _words(text: str) -> list[str]:
    return [word.removesuffix("s") for word in re.findall(r"[a-z0-9]+", text.lower())]
