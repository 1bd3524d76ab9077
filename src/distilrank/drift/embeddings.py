"""Drift of the texts of traffic, by their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from distilrank.config import Drift
from distilrank.core.arrays import systematic_sample
from distilrank.core.errors import InputError
from distilrank.drift import domain
from distilrank.modeling.bi_encoder import Retriever

MODEL = "student"
"""As `drift.encoder`: the encoder of the model in question, its mean over tokens, without its head."""
EMBEDDING = "embedding"
TYPICAL = 10
MAX_TOKENS = 64


class Encoder(Protocol):
    """What turns texts into vectors."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of `texts`, float32, shape (n, dimension)."""


def encoder_of(config: Drift, model: Path) -> tuple[Encoder | None, str]:
    """What embeds the texts, or why nothing does."""
    if not config.embedding_rows:
        return None, ""
    reference = str(model) if config.encoder == MODEL else config.encoder
    try:
        return Retriever(reference, max_tokens=MAX_TOKENS, precision="int8"), ""
    except InputError as error:
        if config.encoder != MODEL:
            raise
        return None, f"Embeddings not compared: {error}; drift.encoder may name a BERT sentence encoder instead."


def compare_embeddings(
    config: Drift, reference: pa.Table, current: pa.Table, queries: tuple[np.ndarray, np.ndarray], encoder: Encoder
) -> dict[str, Any] | None:
    """The part of drift.json on embeddings; None where there are too few queries."""
    rows = [
        systematic_sample(table.num_rows, config.embedding_rows, np.random.default_rng(0))
        for table in (reference, current)
    ]
    samples = [table.take(pa.array(some)) for table, some in zip((reference, current), rows, strict=True)]
    before, after = _embed(encoder, samples)
    told = domain.fit_domain_classifier(before, after, queries[0][rows[0]], queries[1][rows[1]])
    if told is None:
        return None
    return {
        "auc": told.auc,
        "ci_low": told.ci_low,
        "ci_high": told.ci_high,
        "limit": config.embedding,
        "drifted": told.ci_low > config.embedding,
        "rows": {"reference": len(rows[0]), "current": len(rows[1])},
        "examples": _typical(samples[1], told.probability),
    }


def _embed(encoder: Encoder, samples: Sequence[pa.Table]) -> list[np.ndarray]:
    """Vectors of the query and of the title of each row, side by side, of each sample; each text is embedded once."""
    fields = ("query", "title")
    texts = [[text or "" for text in sample[field].to_pylist()] for sample in samples for field in fields]
    known = {text: place for place, text in enumerate(dict.fromkeys(text for some in texts for text in some))}
    vectors = encoder.embed(list(known))
    places = [np.array([known[text] for text in some], np.int64) for some in texts]
    return [np.hstack([vectors[places[2 * side]], vectors[places[2 * side + 1]]]) for side in range(len(samples))]


def _typical(current: pa.Table, probability: np.ndarray) -> list[dict[str, Any]]:
    """Rows that are most likely of the current window, one a query."""
    examples: dict[str, dict[str, Any]] = {}
    for row in np.argsort(-probability, kind="stable").tolist():
        query = current["query_id"][row].as_py()
        if query not in examples:
            examples[query] = {
                "query": current["query"][row].as_py(),
                "title": current["title"][row].as_py() or "",
                "probability": float(probability[row]),
            }
        if len(examples) == TYPICAL:
            break
    return list(examples.values())


def entry(embedding: dict[str, Any]) -> dict[str, Any]:
    auc, low, high = (embedding[name] for name in ("auc", "ci_low", "ci_high"))
    return {
        "name": EMBEDDING,
        "group": EMBEDDING,
        "kind": "numeric",
        "statistic": "domain classifier ROC-AUC",
        "value": auc,
        "threshold": embedding["limit"],
        "noise": auc - low,
        "drifted": embedding["drifted"],
        "shift": f"a classifier tells the newest rows from the reference's with ROC-AUC {auc:.3f} ({low:.3f} to "
        f"{high:.3f}); 0.5 is chance",
        "note": "drifted where the lower end of the interval exceeds the limit",
    }
