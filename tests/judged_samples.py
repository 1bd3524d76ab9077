"""Judged pairs, systems and models for tests of the evaluation."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoModelForSequenceClassification

from distilrank.config import Compute, Evaluate
from distilrank.core import artifacts, schemas
from distilrank.evaluation.judged import System
from distilrank.evaluation.systems import score_baselines
from distilrank.modeling.scorer import describe, load_encoder

CPU = Compute(precision="fp32", device="cpu", threads=1)


SMALL = Evaluate(bootstrap=200, cluster_bootstrap=50, latency_pairs=10)


def judged_table(rows, **columns):
    """A JUDGED table of (query_id, product_id, target); `columns` replace the others' defaults."""
    query_ids, product_ids, targets = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    values = {
        "query_id": query_ids,
        "query": [f"words of {query}" for query in query_ids],
        "product_id": product_ids,
        **{name: [None] * len(rows) for name in schemas.PRODUCT_FIELDS},
        "title": [f"title {product}" for product in product_ids],
        "target": targets,
        "gain": targets,
        "raters": [3] * len(rows),
        "locale": [None] * len(rows),
        "stratum": ["head"] * len(rows),
        "bm25": [float(len(product)) for product in product_ids],
    }
    return schemas.conform(pa.table({**values, **columns}), schemas.JUDGED, "judged")


def judgements(folder, table, relevant_from=0.5):
    schemas.write(table, folder / "test.parquet", schemas.JUDGED)
    protocol = {"source": "test", "rating_range": [1, 3], "relevant_from": relevant_from, "split": {"salt": "s"}}
    artifacts.write_json(folder / "protocol.json", protocol)
    artifacts.seal(folder)
    return folder


def some_rows(queries, rng, products=6):
    levels = (0, 1 / 6, 1 / 3, 0.5, 0.665, 1)
    return [
        (f"q{query}", f"p{product}", levels[rng.integers(len(levels))])
        for query in range(queries)
        for product in range(int(rng.integers(2, products + 1)))
    ]


def with_models(judged, rng, noise=0.2):
    def noisy(scale):
        return (judged.target + rng.normal(0, scale, len(judged.target))).astype(np.float32)

    student, teacher = noisy(noise), noisy(noise / 2)
    return {
        **score_baselines(judged, SMALL),
        "teacher": System(teacher, np.clip(teacher, 0, 1)),
        "student": System(student, np.clip(student, 0, 1)),
    }


def trained(base, folder, seed, kind, text, calibrated):
    """A model with a random head in the layout that the training stages write."""
    torch.manual_seed(seed)
    shutil.copytree(base, folder)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = model.config.pad_token_id or 1
    head = model.score if kind == "decoder" else model.classifier
    torch.nn.init.normal_(head.weight)
    model.save_pretrained(folder)
    encoder = load_encoder(folder, text, kind)
    describe(folder, role="student", encoder=encoder, text=text, tokens=512, base=str(base))
    described = artifacts.read_json(folder / "distilrank.json")
    artifacts.write_json(folder / "distilrank.json", described | {"calibration": calibrated})
    artifacts.seal(folder)
