"""Checks of the models, by their configuration, tokenizer and tensor names; the rehearsal does what needs torch."""

from __future__ import annotations

import importlib.util

from distilrank.config import Config
from distilrank.core import artifacts
from distilrank.core.errors import InputError
from distilrank.modeling import encoding, references, weights


def check_models(config: Config) -> None:
    """Refuse models that cannot be teacher or student."""
    teacher, student = config.teacher.model, config.student.model
    for reference in sorted({teacher, student}):
        check_weights(reference)
    if student.endswith(".gguf"):
        raise InputError(f"student.model {student!r}: a GGUF file holds a decoder, and a student must be an encoder")
    if not teacher.endswith(".gguf"):  # a GGUF file is converted first
        encoding.load_tokenizer(references.resolve_settings(teacher))
    folder = references.resolve_settings(student)
    encoding.require_encoder(folder)
    encoding.load_tokenizer(folder)


def check_weights(reference: str) -> None:
    """Refuse a local model whose weights do not fit its architecture; only tensor names and shapes are read.

    Without torch, as in the image `ops`, only the layers are counted.
    """
    if not _is_local(reference):
        return
    folder = references.resolve(reference)
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        from distilrank.modeling import pretrained

        pretrained.check(folder, num_labels=1)
    else:
        weights.check_depth(folder)


def check_retriever(config: Config) -> None:
    """Refuse a retriever that cannot embed, if candidates by disagreement need one."""
    if config.prepare.from_disagreement and _is_local(config.prepare.retriever.model):
        from distilrank.modeling import bi_encoder

        bi_encoder.check(config.prepare.retriever.model)


def check_drift_encoder(config: Config) -> None:
    """Refuse a student that the drift stage cannot embed with, if the gate has a limit on the embeddings."""
    if config.gate.max_embedding_auc == 1 or config.drift.encoder != "student":
        return
    if config.student.model.startswith(("hub:", "gs://")):
        return  # its type is known only after the download
    path = references.resolve(config.student.model) / "config.json"
    model_type = artifacts.read_json(path).get("model_type")
    if model_type != "bert":
        raise InputError(
            f"drift.encoder: the student, {config.student.model!r}, is of type {model_type!r}, expected bert; name a "
            "BERT sentence encoder there, or set drift.embedding_rows to 0 and gate.max_embedding_auc to 1"
        )


def _is_local(reference: str) -> bool:
    """Whether the weights are on this machine, without a download or a conversion."""
    return not reference.startswith(("hub:", "gs://")) and not reference.endswith(".gguf")
