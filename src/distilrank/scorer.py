"""Scoring of (query, product) pairs with the folder that the teacher or the student stage wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from distilrank import artifacts, calibration, compute, encoding, progress, records, registry
from distilrank.ahead import ahead
from distilrank.config import Compute, TeacherText, Text, parse
from distilrank.errors import InputError
from distilrank.network import load_model, score_encoded
from distilrank.sources.reading import File

DESCRIPTION = "distilrank.json"
METRICS = "metrics.json"
CHUNK_ROWS = 20_000  # rows whose tokens are held at a time, while those of the next ones are made


def load_encoder(folder: Path, text: Text, kind: str = "auto") -> encoding.Encoder:
    """The way in which the model of `folder` is shown pairs; its tokenizer pads with eos where it has no pad token."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"{folder}: its tokenizer has neither a pad token nor an end token, expected one to pad with"
            )
        tokenizer.pad_token = tokenizer.eos_token
    limit = AutoConfig.from_pretrained(folder).max_position_embeddings
    encoder = kind == "encoder" or (kind == "auto" and encoding.is_encoder(folder))
    if encoder:
        return encoding.PairEncoder(tokenizer, text, limit)
    if not isinstance(text, TeacherText):
        raise InputError(f"{folder}: a decoder needs a prompt template; expected an encoder such as BERT")
    return encoding.PromptEncoder(tokenizer, text, text.template, limit)


class Scorer:
    """A model folder that scores pairs.

    Example:
        scorer = Scorer.load(Path("runs/latest/student"), Compute())
        logits = scorer.score(table)  # columns: query, and the product fields
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: encoding.Encoder,
        text: Text,
        calibrated: dict[str, Any] | None,
        runtime: compute.Runtime,
        tokens: int,
    ) -> None:
        self.model, self.encoder, self.text, self.calibration = model, encoder, text, calibrated
        self.runtime, self.tokens = runtime, tokens

    @classmethod
    def load(cls, folder: Path, compute_config: Compute, tokens: int = 0) -> Scorer:
        """Load a folder that the teacher or student stage wrote.

        Args:
            folder: holds the weights, the tokenizer and `distilrank.json`.
            compute_config: device and precision.
            tokens: most tokens of one forward pass; 0: as the folder says.

        Raises:
            InputError: the folder is not one of ours, or is damaged.
        """
        description = artifacts.read_json(folder / DESCRIPTION)
        model = TeacherText if "template" in description["text"] else Text
        text = parse(description["text"], str(folder / DESCRIPTION), model)
        runtime = compute.setup(compute_config)
        return cls(
            load_model(folder, runtime),
            load_encoder(folder, text, description["kind"]),
            text,
            description.get("calibration"),
            runtime,
            tokens or description["score_tokens"],
        )

    def render(self, table: pa.Table) -> list[str]:
        """Each row's product as the one string that the model is shown: pair it with the query anywhere else."""
        return encoding.render_products(table, self.text, self.encoder.tokenizer)

    def score(self, table: pa.Table, counter: progress.Counter | None = None) -> np.ndarray:
        """Raw logits, float32, in row order.

        Args:
            table: columns `query` and those of records.PRODUCT_FIELDS that the model was trained with; an absent or
                null field is left out.
            counter: told of every batch.
        """
        scores = []
        for tokens in ahead(
            encoding.encode_table(self.encoder, table.slice(start, CHUNK_ROWS), self.text)
            for start in range(0, table.num_rows, CHUNK_ROWS)
        ):
            scores.append(score_encoded(self.model, tokens, self.runtime.device, self.tokens, counter))
        return np.concatenate(scores) if scores else np.empty(0, np.float32)

    def probability(self, logits: np.ndarray) -> np.ndarray | None:
        """Calibrated probability of relevance, or None where the model was not calibrated."""
        if self.calibration is None or self.calibration["method"] == "none":
            return None
        return calibration.probability(self.calibration, logits)


def describe(folder: Path, *, role: str, encoder: encoding.Encoder, text: Text, tokens: int, base: str) -> None:
    """Write what `Scorer.load` needs beyond what transformers saves; the model is not calibrated yet."""
    artifacts.write_json(
        folder / DESCRIPTION,
        {
            "role": role,
            "kind": "encoder" if isinstance(encoder, encoding.PairEncoder) else "decoder",
            "base": base,
            "text": text.model_dump(mode="json"),
            "score_tokens": tokens,
            "calibration": {"method": "none"},
        },
    )


def calibrate(folder: Path, dev: pa.Table, method: str, compute_config: Compute) -> np.ndarray:
    """Fit the calibration of the model saved in `folder` on judged pairs, keep it there, and return their raw logits.

    What was saved is what is measured: the folder is loaded as any reader will load it.
    """
    logits = Scorer.load(folder, compute_config).score(dev)
    fitted = calibration.fit(method, logits, dev.column("target").to_numpy(), dev.column("query_id").to_numpy())
    artifacts.write_json(folder / DESCRIPTION, artifacts.read_json(folder / DESCRIPTION) | {"calibration": fitted})
    return logits


def find_model(model: str, registry_uri: str) -> Path:
    """The student's folder that `model` names: a folder, or an alias or version of the registry.

    Raises:
        InputError: neither is there.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    backend = registry.open(registry_uri)
    try:
        return backend.fetch(registry.resolve(backend, model)) / "student"
    except InputError as error:
        raise InputError(f"--model {model}: no such folder, and {error}") from None


def read_pairs(path: Path) -> tuple[pa.Table, pa.Table]:
    """Read the rows to score from CSV (plain or gzip) or Parquet.

    Returns:
        All of the file's columns as they are, and those that the model is shown: `query` and the product fields.

    Raises:
        InputError: the file cannot be read, lacks `query` or `title`, or a row has no query or no title.
    """
    file = File(path, {"query": "query", "title": "title"})
    file.check()
    names = file.names()
    file = File(path, {name: name for name in names})
    table = file.table()
    shown = {"query": file.query("query"), "title": file.key("title")}
    shown |= {name: file.text(name) for name in records.PRODUCT_FIELDS if name in names and name != "title"}
    return table, pa.table(shown)


def score_file(model: str, input: Path, output: Path, registry: str, compute: Compute) -> int:
    """Score the rows of `input` and write them with a column `score` to `output`, in the same order.

    Returns:
        The number of rows.

    Raises:
        InputError: bad input, model or output; nothing is written then.
    """
    if not output.name.endswith((".csv", ".parquet")):
        raise InputError(f"{output}: expected a .csv or .parquet file to write")
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()  # an output that cannot be written shows before the work, not after
        partial.unlink()
    except OSError as error:
        raise InputError(f"{output}: cannot write ({error.strerror})") from error
    table, shown = read_pairs(input)
    scorer = Scorer.load(find_model(model, registry), compute)
    scores = pa.array(scorer.score(shown, progress.Counter("score", table.num_rows, "pairs")), pa.float32())
    if "score" in table.column_names:
        table = table.drop_columns(["score"])
    table = table.append_column("score", scores)
    try:
        if output.suffix == ".csv":
            pa.csv.write_csv(table, partial)
        else:
            pa.parquet.write_table(table, partial, compression="zstd")
        partial.replace(output)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{output}: cannot write ({error.strerror})") from error
    return table.num_rows
