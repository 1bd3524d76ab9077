"""Rehearsal: runs training, labeling, saving and export once on a few invented pairs, before any expensive work.

The models have the configured architectures, tokenizers and settings. Only their weights are random and their layers
narrow, so that seven billion weights take no longer than a hundred million. A failure here would otherwise occur after
hours of training or labeling.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from distilrank.config import Compute, Label, Student, Teacher
from distilrank.core import artifacts, progress, schemas
from distilrank.core.errors import InputError, RunStopped, one_line
from distilrank.modeling import adapters, encoding, pretrained, references
from distilrank.modeling import weights as weight_files
from distilrank.modeling.scorer import Scorer
from distilrank.student import train as student
from distilrank.teacher import labeling
from distilrank.teacher import train as teacher

STAGE = "rehearse"
DIGEST = "rehearsal"
NOUNS, COLORS = ("sofa", "lamp"), ("red", "blue")
WIDTH = 64
"""Width of a narrow model whose head width is independent of its width; other models keep two of their heads."""
MAX_WEIGHTS = 1_000_000_000
"""Largest model to rehearse at full width after it failed when narrow."""
MAX_DIFFERENCE = 0.02
"""Largest difference between scores of one pair in two batches, in standard deviations of the scores."""
ONCE = {"epochs": 1, "evaluations": 1, "patience": 0}


class _Sections(BaseModel):
    """Settings in the record of this stage."""

    teacher: Teacher
    student: Student


def run(
    teacher_config: Teacher,
    student_config: Student,
    compute: Compute,
    *,
    teacher_digest: str,
    student_digest: str,
    output: Path,
) -> None:
    """Rehearse as a stage of the pipeline, before the teacher is trained.

    Args:
        teacher_config: the section `teacher`.
        student_config: the section `student`.
        compute: the section `compute`.
        teacher_digest: digest of the pretrained teacher, as resolved by preflight.
        student_digest: digest of the pretrained student, as resolved by preflight.
        output: folder for the record of the stage.

    Raises:
        InputError: as `rehearse`.
    """
    config = _Sections(teacher=teacher_config, student=student_config)
    with artifacts.stage(STAGE, output, config=config) as record:
        record.inputs |= {"teacher": teacher_digest, "student": student_digest}
        rehearse(teacher_config, student_config, compute)
        artifacts.seal(output)


def rehearse(teacher_config: Teacher, student_config: Student, compute: Compute) -> None:
    """Run teacher, labeling, student and export on a few pairs.

    Of weights on this machine, only names and shapes are read; other weights are not downloaded.

    Raises:
        InputError: names the model and what would have failed.
    """
    compute = compute.model_copy(update={"nodes": 1, "processes": 1, "checkpoint_dir": "", "compile": "off"})
    if compute.device == "cuda" and not torch.cuda.is_available():
        compute = compute.model_copy(update={"device": "cpu"})  # the training may run on another machine
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as name:
        scratch = Path(name)
        write_data(scratch, max(teacher_config.text.max_tokens, student_config.text.max_tokens))
        with progress.timed(STAGE, "rehearsed the teacher"):
            rehearse_teacher(teacher_config, compute, scratch)
        with progress.timed(STAGE, "rehearsed the student"):
            rehearse_student(student_config, compute, scratch)


def rehearse_teacher(config: Teacher, compute: Compute, scratch: Path) -> None:
    """Train a teacher in `scratch/teacher` and have it label the pairs of `write_data`.

    Raises:
        InputError: as `rehearse`.
    """
    what = f"teacher.model {config.model!r}"
    with _naming(what, scratch):
        folder = references.resolve_settings(config.model)
        if weight_files.are_in(folder):
            model = pretrained.load(folder, device_map="meta", num_labels=1)
            if config.lora.targets != "all-linear":
                adapters.Adapted(model, config.lora)  # refuses targets that the model lacks

    def run(cut: Path) -> None:
        output = scratch / "teacher"
        short = {
            "model": str(cut),
            "optimizer": config.optimizer.model_copy(update=ONCE),
            "lift_over_bm25": -1,
            "max_ece": 1,
            "min_deviation": 0,
        }
        teacher.train(
            config.model_copy(update=short),
            compute,
            judgements=scratch / "judgements",
            model_digest=DIGEST,
            output=output,
        )
        _require_same_scores(output, scratch, compute)
        labeling.label(
            Label(min_deviation=0, min_distinct=0),
            compute,
            shard="shard-00000",
            candidates=scratch / "candidates",
            teacher=output,
            output=scratch / "labels",
        )

    # a pattern of lora.targets may name layers by number
    _run(run, what, folder, scratch, deep=config.lora.targets != "all-linear")


def rehearse_student(config: Student, compute: Compute, scratch: Path) -> None:
    """Distil the teacher of `rehearse_teacher` into `scratch/student`, and export it.

    Raises:
        InputError: as `rehearse`.
    """
    what = f"student.model {config.model!r}"
    with _naming(what, scratch):
        folder = references.resolve_settings(config.model)
        encoding.require_encoder(folder)
        if weight_files.are_in(folder):
            pretrained.check(folder, num_labels=1)

    def run(cut: Path) -> None:
        output = scratch / "student"
        short = {
            "model": str(cut),
            "optimizer": config.optimizer.model_copy(update=ONCE),
            "export": config.export.model_copy(
                update={"variants": ()}
            ),  # a variant that fails is left out, which is no error
        }
        student.train(
            config.model_copy(update=short),
            compute,
            judgements=scratch / "judgements",
            candidates=scratch / "candidates",
            labeled=[scratch / "labels"],
            teacher=scratch / "teacher",
            model_digest=DIGEST,
            output=output,
        )
        _require_same_scores(output, scratch, compute)

    _run(run, what, folder, scratch, deep=bool(config.layers))


def _run(run: Callable[[Path], None], what: str, folder: Path, scratch: Path, *, deep: bool) -> None:
    """Run a stage on a narrow model and, if that fails, on a model of full width, whose result counts.

    Args:
        run: runs the stage on the folder of a model.
        what: the model, for messages.
        folder: files of the model.
        scratch: folder to write to.
        deep: whether the narrow model keeps all layers.
    """
    narrow, full = pretrained.read_config(folder), pretrained.read_config(folder)
    if not deep:
        _shorten(narrow)
    _shorten(full)
    _narrow(narrow)
    for config in (narrow, full):
        cut = scratch / "model"
        shutil.rmtree(cut, ignore_errors=True)
        try:
            with _naming(what, scratch), contextlib.redirect_stdout(io.StringIO()):
                _write_model(config, folder, cut)
                run(cut)
            return
        except InputError:
            if config is full or narrow.to_dict() == full.to_dict() or _count_weights(full) > MAX_WEIGHTS:
                raise


@contextlib.contextmanager
def _naming(what: str, scratch: Path) -> Iterator[None]:
    """Name the model in every error."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in progress.STORAGE_ERRORS:
            raise  # caused by the disk; transformers raises other OSErrors for missing files
        kind = "" if isinstance(error, InputError | RunStopped) else f"{type(error).__name__}: "
        message = one_line(str(error).replace(f"{scratch}/", ""), 400)
        raise InputError(f"{what}: {kind}{message}") from error


# Models -------------------------------------------------------------------------------------------------------------


def _shorten(config: PreTrainedConfig) -> None:
    """Keep one layer of each kind, and at least two layers."""
    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(depth, int) or depth <= 2:
        return
    kinds = zip(*pretrained.values_by_layer(config).values(), strict=True)
    first = list({kind: layer for layer, kind in reversed(list(enumerate(map(tuple, kinds))))}.values())
    with contextlib.suppress(NotImplementedError):  # some models derive the number of layers from another setting
        pretrained.keep_layers(config, sorted(first) if len(first) > 1 else [0, depth - 1])


def _narrow(config: PreTrainedConfig) -> None:
    """Keep one or two attention heads, one key head if heads share keys, and a small feed-forward layer."""
    width, heads = (getattr(config, name, None) for name in ("hidden_size", "num_attention_heads"))
    if not isinstance(width, int) or not isinstance(heads, int) or width <= WIDTH:
        return
    kept_heads = 1 if heads % 2 else 2
    has_head_width = isinstance(config.to_dict().get("head_dim"), int)
    narrow = WIDTH if has_head_width else width // heads * kept_heads
    key_heads = getattr(config, "num_key_value_heads", None)
    if isinstance(key_heads, int):
        config.num_key_value_heads = 1 if key_heads < heads else kept_heads
    config.num_attention_heads = kept_heads
    for name, value in config.to_dict().items():
        if name.endswith(("hidden_size", "embedding_size")) and value == width:
            setattr(config, name, narrow)
        elif name.endswith("intermediate_size") and isinstance(value, int):
            setattr(config, name, min(value, 2 * narrow))
    config.hidden_size = narrow


def _count_weights(config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    return sum(weight.numel() for weight in model.parameters())


def _write_model(config: PreTrainedConfig, folder: Path, target: Path) -> None:
    """Write a model with random weights and the tokenizer of `folder` to `target`."""
    config.num_labels = 1
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)  # initial weights are so small that scores of different pairs hardly differ
    model.save_pretrained(target)
    for pattern in references.WANTED:
        for path in folder.glob(pattern):
            if not path.name.startswith(("config.", "generation_config.", "model")):
                shutil.copyfile(path, target / path.name)


# Pairs --------------------------------------------------------------------------------------------------------------


def _pairs(tokens: int) -> pa.Table:
    """Return rows with the columns of judgements and candidates; one product has more than `tokens` tokens."""
    rows = []
    items = list(itertools.product(COLORS, NOUNS))
    for query, product in itertools.product(items, items):
        has_same = [left == right for left, right in zip(query, product, strict=True)]  # color, noun
        gain = 1.0 if all(has_same) else 0.5 if has_same[1] else 0.0
        title = " ".join(product)
        row = {
            **dict.fromkeys(schemas.PRODUCT_FIELDS),
            "query_id": "-".join(query),
            "query": " ".join(query),
            "product_id": "-".join(product),
            "title": f"{title} " * tokens if product == items[0] else f"{title} for kids",
            "brand": "steel" if product[0] == "red" else None,
            "description": "wood and leather",
            "target": gain,
            "gain": gain,
            "raters": 1,
            "locale": None,
            "stratum": "head",
            "bm25": gain,
            "provenance": "bm25",
            "impressions": 0,
            "clicks": 0,
        }
        rows.append(row)
    return pa.Table.from_pylist(rows)


def write_data(scratch: Path, tokens: int) -> None:
    """Write the inputs of the stages as preparation does; one product has more than `tokens` tokens."""
    for split in ("train", "dev"):
        schemas.write(_pairs(tokens), scratch / "judgements" / f"{split}.parquet", schemas.JUDGED)
    artifacts.write_json(scratch / "judgements" / "protocol.json", {"relevant_from": 0.75})
    artifacts.seal(scratch / "judgements")
    schemas.write(_pairs(tokens), scratch / "candidates" / "shard-00000.parquet", schemas.CANDIDATES)
    artifacts.seal(scratch / "candidates")


def _require_same_scores(folder: Path, scratch: Path, compute: Compute) -> None:
    """Refuse a model whose score of a pair depends on the other pairs of its batch, since it would score padding.

    The scores are compared in fp32, since bf16 rounds differently in another batch.
    """
    compute = compute.model_copy(update={"precision": "fp32"})
    pairs = schemas.read(scratch / "judgements" / "dev.parquet", schemas.JUDGED).slice(0, 4)
    scorer = Scorer.load(folder, compute, backend="torch", tokens=2**20)
    together = scorer.score(pairs)
    scorer.tokens = 1
    alone = scorer.score(pairs)
    difference, spread = float(np.abs(together - alone).max()), float(together.std())
    if difference > MAX_DIFFERENCE * spread + 1e-6:
        raise InputError(
            f"the score of a pair depends on the others of its batch (by {difference:.2g}, where scores have a "
            f"standard deviation of {spread:.2g}); expected an architecture that ignores padding"
        )
