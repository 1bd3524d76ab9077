"""The two samples of traffic between which drift is measured, with the features to measure it on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from distilrank.config import Prepare
from distilrank.core import normalize, schemas, unicode_script
from distilrank.core.arrays import systematic_sample
from distilrank.core.errors import InputError
from distilrank.data.bm25 import Index
from distilrank.data.corpus import Corpus
from distilrank.data.impressions import Impressions
from distilrank.data.splits import TRAIN
from distilrank.modeling.bi_encoder import TokenCounter

HELD_OUT = "held-out queries (dev and test side) stand in for the newest traffic"


@dataclass(frozen=True)
class Traffic:
    """Two samples of impressions: the reference of drift, and the current one that is compared with it."""

    reference: Impressions
    current: Impressions
    basis: str
    """One line that describes the samples."""

    @property
    def samples(self) -> dict[str, Impressions]:
        """The samples by name."""
        return {"reference": self.reference, "current": self.current}


def sample(corpus: Corpus, config: Prepare) -> Traffic:
    """Draw both samples: from the two windows or, if the log has no times, from the train side and the held-out sides.

    Raises:
        InputError: a window of the log is empty.
    """
    generator = np.random.default_rng([config.seed, 1])
    if corpus.timed:
        return _sample_windows(corpus, config.traffic_sample, generator)
    return _sample_sides(corpus, config.traffic_sample, generator)


def _sample_windows(corpus: Corpus, size: int, generator: np.random.Generator) -> Traffic:
    reference, current = (corpus.log.sample(is_newest, size, generator, corpus.stratum) for is_newest in (False, True))
    for window, impressions in (("training window", reference), ("newest traffic", current)):
        if not len(impressions.query):
            why = corpus.left_out or "; see `window` in the configuration"
            raise InputError(f"log: no impressions in the {window}, expected some{why}")
    return Traffic(reference, current, "impressions of the training window against those of the newest traffic")


def _sample_sides(corpus: Corpus, size: int, generator: np.random.Generator) -> Traffic:
    """Two samples of the same kind of pair, impressions or judged pairs, which differ even without drift."""
    is_held_out = corpus.side != TRAIN
    has_impressions = corpus.impressions > 0
    sides = (~is_held_out, is_held_out)
    if all((has_impressions & side).any() for side in sides):
        reference, current = (
            corpus.log.sample(None, size, generator, corpus.stratum, np.flatnonzero(side)) for side in sides
        )
        return Traffic(reference, current, f"{HELD_OUT}: the log has no time")
    reference, current = (_sample_judged(corpus, side, size, generator) for side in sides)
    return Traffic(reference, current, f"{HELD_OUT}: there is no log")


def _sample_judged(corpus: Corpus, side: np.ndarray, size: int, generator: np.random.Generator) -> Impressions:
    """Judged pairs of the queries of a side, with unknown rank and clicks."""
    rows = np.flatnonzero(side[corpus.judged.query])
    pairs = corpus.judged.take(rows[systematic_sample(len(rows), size, generator)])
    unknown = np.full(len(pairs.query), np.nan, np.float32)
    return Impressions(pairs.query, pairs.product, position=unknown, clicked=unknown)


def write(corpus: Corpus, index: Index, tokens: TokenCounter, impressions: Impressions, path: Path) -> None:
    """Write a sample with its features, as schemas.TRAFFIC."""
    queries, query = np.unique(impressions.query, return_inverse=True)
    texts = corpus.texts(queries)
    columns = corpus.pair_columns(impressions)
    clicks = sum(corpus.log.totals(is_newest)[1] for is_newest in (False, True))
    clicked = impressions.clicked if clicks else np.full_like(impressions.clicked, np.nan)
    features = {
        "query_words": np.array([len(normalize.words(text)) for text in texts])[query],
        "query_characters": np.array([len(text) for text in texts])[query],
        "query_tokens": tokens.count(texts)[query],
        "unseen_words": np.array([index.unseen(text) for text in texts], np.float32)[query],
        "script": np.array([unicode_script.dominant(text) for text in texts], object)[query],
        "title_words": [len(normalize.words(title or "")) for title in columns["title"].to_pylist()],
        "bm25": corpus.bm25_scores(index, impressions),
        "position": pa.array(impressions.position, from_pandas=True),
        "clicked": pa.array(clicked, from_pandas=True),
    }
    schemas.write(pa.table({**columns, **features}), path, schemas.TRAFFIC)
