"""Drift of texts: embeddings of queries and titles, compared by a domain classifier."""

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

OWN_ENCODER = "student"
"""Value of `drift.encoder` for the encoder of the compared model: the mean over its tokens, without its head."""
EMBEDDING = "embedding"
EXAMPLES = 10
MAX_TOKENS = 64


class Encoder(Protocol):
    """Turns texts into vectors."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of `texts`, float32, shape (n, dimension)."""


def load_encoder(config: Drift, model: Path) -> tuple[Encoder | None, str]:
    """Load the encoder that `drift.encoder` names.

    Args:
        config: the encoder, and whether texts are compared at all.
        model: folder of the student or champion whose encoder is used by default.

    Returns:
        The encoder and an empty text; None and the reason if the model has no encoder that can be used; None and an
        empty text if the configuration switches the comparison off.

    Raises:
        InputError: a configured encoder other than the model's own cannot be loaded.
    """
    if not config.embedding_rows:
        return None, ""
    reference = str(model) if config.encoder == OWN_ENCODER else config.encoder
    try:
        return Retriever(reference, max_tokens=MAX_TOKENS, precision="int8"), ""
    except InputError as error:
        if config.encoder != OWN_ENCODER:
            raise
        return None, f"Embeddings not compared: {error}; drift.encoder may name a BERT sentence encoder instead."


def compare_embeddings(
    config: Drift,
    reference: pa.Table,
    current: pa.Table,
    query_codes: tuple[np.ndarray, np.ndarray],
    encoder: Encoder,
) -> dict[str, Any] | None:
    """The entry `embedding` of drift.json; None if a sample has too few queries.

    Args:
        config: how many rows are embedded, and the ROC-AUC that counts as drift.
        reference: rows of TRAFFIC.
        current: rows of TRAFFIC.
        query_codes: integer code of the query of each row, of both.
        encoder: embeds the texts.
    """
    windows = reference, current
    rows = [systematic_sample(table.num_rows, config.embedding_rows, np.random.default_rng(0)) for table in windows]
    samples = [table.take(pa.array(indices)) for table, indices in zip(windows, rows, strict=True)]
    reference_vectors, current_vectors = _embed_samples(encoder, samples)
    result = domain.fit_domain_classifier(
        reference_vectors, current_vectors, query_codes[0][rows[0]], query_codes[1][rows[1]]
    )
    if result is None:
        return None
    return {
        "auc": result.auc,
        "ci_low": result.ci_low,
        "ci_high": result.ci_high,
        "limit": config.embedding,
        "drifted": result.ci_low > config.embedding,
        "rows": {"reference": len(rows[0]), "current": len(rows[1])},
        "examples": _typical_rows(samples[1], result.probability),
    }


def column_entry(embedding: dict[str, Any]) -> dict[str, Any]:
    """The comparison of embeddings in the form of a column of drift.json."""
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
        "shift": f"a classifier separates the newest rows from the reference with ROC-AUC {auc:.3f} "
        f"({100 * domain.CONFIDENCE:g} % CI [{low:.3f}, {high:.3f}]); 0.5 is chance",
        "note": "drifted if the lower end of the interval exceeds the limit",
    }


def _embed_samples(encoder: Encoder, samples: Sequence[pa.Table]) -> list[np.ndarray]:
    """For each sample, the vectors of each row's query and title, concatenated. Each text is embedded once."""
    fields = ("query", "title")
    columns = [[text or "" for text in sample[field].to_pylist()] for sample in samples for field in fields]
    index = {text: number for number, text in enumerate(dict.fromkeys(text for column in columns for text in column))}
    vectors = encoder.embed(list(index))
    rows = [np.array([index[text] for text in column], np.int64) for column in columns]
    return [np.hstack([vectors[query], vectors[title]]) for query, title in zip(rows[::2], rows[1::2], strict=True)]


def _typical_rows(current: pa.Table, probability: np.ndarray) -> list[dict[str, Any]]:
    """The rows with the highest probability of being from the current window, one per query."""
    examples: dict[str, dict[str, Any]] = {}
    for row in np.argsort(-probability, kind="stable").tolist():
        query = current["query_id"][row].as_py()
        if query not in examples:
            examples[query] = {
                "query": current["query"][row].as_py(),
                "title": current["title"][row].as_py() or "",
                "probability": float(probability[row]),
            }
        if len(examples) == EXAMPLES:
            break
    return list(examples.values())
