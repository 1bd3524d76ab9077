"""Export of a student to ONNX, under sentence-transformers' file names, each compared with the network in torch.

    onnx/model.onnx                     fp32, standard operators only
    onnx/model_O2.onnx                  fp32 with onnxruntime's fused operators: the same scores
    onnx/model_O4.onnx                  fp16 with GELU approximated, for GPUs
    onnx/model_qint8_avx512_vnni.onnx   linear layers in 8 bits, weights signed: for processors with VNNI
    onnx/model_quint8_avx2.onnx         the same with unsigned weights: signed ones overflow in processors without VNNI
    onnx/parity.json                    difference of each file from torch in fp32 on judged pairs, and left-out files

The inputs are `input_ids`, `attention_mask` and, for models with segments, `token_type_ids`: int64, shape (batch,
sequence), both free. The output is `logits`: raw logits, float32, shape (batch, 1).
"""

from __future__ import annotations

import collections
import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import torch
from onnx import helper, numpy_helper
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import AttentionMaskFormat, FusionOptions
from scipy.stats import spearmanr
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from distilrank import __version__
from distilrank.config import Compute
from distilrank.core import artifacts, hardware, progress
from distilrank.core.errors import InputError, RunStopped
from distilrank.evaluation import metrics
from distilrank.modeling import encoding, pretrained
from distilrank.modeling.encoding import INPUTS
from distilrank.modeling.onnx_backend import OnnxBackend
from distilrank.modeling.quantization import CONTRIBUTED, quantize
from distilrank.modeling.scorer import Scorer

FOLDER = "onnx"
MODEL = "model.onnx"
PARITY = "parity.json"
Variant = Literal["O2", "O4", "qint8_avx512_vnni", "quint8_avx2"]
SIGNED = {"qint8_avx512_vnni": True, "quint8_avx2": False}
"""Whether the weights of each variant in 8 bits are, see `quantization.quantize`."""
OPSET = 20  # the first with Gelu; onnxruntime reads it since 1.17
LARGEST = 2**31 - 2**24  # bytes of weights within one file: protobuf ends at 2 GiB
LIKE_BERT = frozenset("bert camembert electra roberta xlm-roberta".split())
"""Values of `model_type` whose layers are BERT's and whose head reads the first token alone: see `_FirstToken`."""
FUSIBLE = LIKE_BERT | {"distilbert"}
"""Values of `model_type` whose attention becomes one operator; not that of a `_FirstToken`."""
ATTENTION = "distilrank_fusible"


def export(
    folder: Path,
    judged: pa.Table,
    *,
    variants: Sequence[Variant] = ("qint8_avx512_vnni",),
    max_difference: float = 1e-3,
    max_ndcg_loss: float = 0.002,
    pairs: int = 5000,
) -> dict[str, Any]:
    """Export the student in `folder` to ONNX: replace its subfolder `onnx`, completely or not at all.

    `model.onnx` is always written and must agree with torch. A variant that exceeds its bound, or that the student's
    architecture does not support, is left out, and `parity.json` says why.

    Args:
        folder: folder that the student stage saved, with `distilrank.json`.
        judged: pairs to compare on, as schemas.JUDGED, for example dev.
        variants: files to write besides `model.onnx`, by sentence-transformers' names.
        max_difference: largest allowed difference of a raw logit from torch, for files in fp32.
        max_ndcg_loss: largest allowed loss of nDCG@10, for the other files.
        pairs: most pairs to compare on; queries are not split.

    Returns:
        Content of `parity.json`.

    Raises:
        InputError: `folder` was not saved by a stage, or no query of `judged` has products of different rating.
        RunStopped: the network cannot be exported, or `model.onnx` disagrees with torch.
    """
    reference = _Reference(folder, _whole_queries(judged, pairs))
    files: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    with artifacts.replacing_folder(folder / FOLDER) as scratch:
        network = _load(folder)
        plain = scratch / MODEL
        _save(_trace(network, reference.has_types), plain)
        for variant in (None, *variants):
            path = plain.with_name(f"model_{variant}.onnx") if variant else plain
            if variant in ("O2", "O4") and network.config.model_type not in FUSIBLE:
                left_out[path.name] = f"onnxruntime's optimizer does not know {network.config.model_type}"
                continue
            if variant in ("O2", "O4"):
                _fuse(plain, path, network.config, half=variant == "O4")
            elif variant:
                _quantize(plain, path, SIGNED[variant])
            in_fp32 = variant in (None, "O2")
            measure, bound = ("max_difference", max_difference) if in_fp32 else ("ndcg_loss", max_ndcg_loss)
            try:
                figures = reference.compare(path)
                reason = f"{measure} {figures[measure]:.2g} from torch in fp32, expected at most {bound:g}"
                if figures[measure] <= bound:
                    files[path.name] = {"bytes": sum(map(_size, _parts(path))), "fused": _fused(path), **figures}
                    continue
            except (InputError, RunStopped) as error:  # not readable, or scores that are not finite
                reason = f"{network.config.model_type} does not survive it ({error})"
            if not variant:
                raise RunStopped(f"{folder / FOLDER / MODEL}: {reason}")
            left_out[path.name] = reason
            for part in _parts(path):
                part.unlink()
        parity = {
            "reference": reference.describe(),
            "bounds": {"max_difference": max_difference, "max_ndcg_loss": max_ndcg_loss},
            "onnxruntime": onnxruntime.__version__,
            "files": files,
            "left_out": left_out,
        }
        artifacts.write_json(plain.with_name(PARITY), parity)
    for name, reason in left_out.items():
        progress.log_event("export", "note", f"{folder / FOLDER / name} is left out: {reason}")
    return parity


# Parity -----------------------------------------------------------------------------------------------------------


def _whole_queries(judged: pa.Table, pairs: int) -> pa.Table:
    """At most `pairs` rows of complete queries, but at least one query."""
    if judged.num_rows <= pairs:
        return judged
    _, query, sizes = np.unique(judged.column("query_id").to_pylist(), return_inverse=True, return_counts=True)
    is_kept = np.cumsum(sizes) <= pairs
    is_kept[0] = True
    return judged.filter(pa.array(is_kept[query]))


class _Reference:
    """The scores of the network in torch, in fp32, with which files are compared."""

    def __init__(self, folder: Path, judged: pa.Table) -> None:
        scorer = Scorer.load(folder, Compute(device="cpu", precision="fp32"), backend="torch")
        self._judged, self._budget, self._pad_token = judged, scorer.tokens, scorer.encoder.pad_token_id
        self.has_types = scorer.encoder.has_types
        self._tokens = encoding.encode_table(scorer.encoder, judged, scorer.text)
        self._logits = scorer.backend.score(self._tokens, self._budget)
        self._ndcg = self._measure(self._logits)

    def _measure(self, logits: np.ndarray) -> float:
        query, product, gain = (self._judged.column(name).to_pylist() for name in ("query_id", "product_id", "gain"))
        return metrics.mean_ndcg(query, product, gain, logits)

    def compare(self, path: Path) -> dict[str, Any]:
        """Differences of the scores of the file at `path`; the rank correlation is None if all scores are equal."""
        logits = OnnxBackend(path, path.name, self._pad_token, hardware.cores()).score(self._tokens, self._budget)
        difference = np.abs(logits.astype(np.float64) - self._logits)
        ndcg = self._measure(logits)
        with warnings.catch_warnings(action="ignore"):
            correlation = float(spearmanr(logits, self._logits).statistic)
        return {
            "max_difference": float(difference.max()),
            "mean_difference": float(difference.mean()),
            "spearman": correlation if np.isfinite(correlation) else None,
            "ndcg_at_10": ndcg,
            "ndcg_loss": self._ndcg - ndcg,
        }

    def describe(self) -> dict[str, Any]:
        return {
            "system": f"torch {torch.__version__}, fp32",
            "pairs": self._judged.num_rows,
            "queries": len(self._judged.column("query_id").unique()),
            "ndcg_at_10": self._ndcg,
        }


# Graphs -----------------------------------------------------------------------------------------------------------


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of an encoder, in the operators that onnxruntime's optimizer looks for: scores are divided."""
    scores = torch.matmul(query, key.transpose(2, 3)) / query.shape[-1] ** 0.5 + attention_mask
    return torch.matmul(scores.softmax(-1), value).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attention)


class _Network(torch.nn.Module):
    """The network from tokens to logits, without transformers' output object."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self.model.config.model_type in FUSIBLE:  # the mask as it was made when the optimizer was written
            attention_mask = 1 - attention_mask[:, None, None, :].to(torch.float32)
            attention_mask = attention_mask * torch.finfo(torch.float32).min
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits


class _FirstToken(torch.nn.Module):
    """A model's last layer for its first token alone, the only one that the head reads; it attends to the others.

    Args:
        layer: of one of `LIKE_BERT`.
    """

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, states: torch.Tensor, attention_mask: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """The first token's state, shape (batch, 1, width)."""
        own, first = self.layer.attention.self, states[:, :1]
        query, key, value = (
            project(inputs).unflatten(-1, (-1, own.attention_head_size)).transpose(1, 2)
            for project, inputs in ((own.query, first), (own.key, states), (own.value, states))
        )
        context, _weights = _attention(own, query, key, value, attention_mask)
        attended = self.layer.attention.output(context.flatten(2), first)
        return self.layer.output(self.layer.intermediate(attended), attended)


def _load(folder: Path) -> PreTrainedModel:
    model = pretrained.load(folder, whole=True, dtype=torch.float32, attn_implementation="eager")
    if model.config.model_type in FUSIBLE:
        model.set_attn_implementation(ATTENTION)
    if model.config.model_type in LIKE_BERT:
        layers = model.base_model.encoder.layer
        layers[-1] = _FirstToken(layers[-1])
    return model.eval()


def _trace(model: PreTrainedModel, has_types: bool) -> onnx.ModelProto:
    """The network as an ONNX graph.

    Raises:
        RunStopped: torch's exporter does not manage this architecture.
    """
    names = INPUTS if has_types else INPUTS[:2]
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names)  # one tensor each: equal ones would be merged
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    try:
        with _quiet():
            program = torch.onnx.export(
                _Network(model).eval(),
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(names),
                output_names=["logits"],
                dynamic_shapes=(axes,) * len(names),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = next(filter(None, reversed(str(error).splitlines())), "")
        raise RunStopped(f"{model.config.model_type}: cannot be exported to ONNX ({reason[:200]})") from error
    assert program is not None
    traced = program.model_proto
    if model.config.model_type in FUSIBLE:
        _split_mask(traced.graph)
    return traced


def _split_mask(graph: onnx.GraphProto) -> None:
    """Split the mask's Unsqueeze into two nodes, as the optimizer expects it; the exporter merges them."""
    for index, node in enumerate(graph.node):
        if node.op_type == "Unsqueeze" and list(node.input)[:1] == ["attention_mask"]:
            axes = [numpy_helper.from_array(np.array([axis]), f"axis_{axis}") for axis in (1, 2)]
            graph.initializer.extend(axes)
            steps = [
                helper.make_node("Unsqueeze", ["attention_mask", axes[0].name], ["mask_of_rows"], "mask_of_rows"),
                helper.make_node("Unsqueeze", ["mask_of_rows", axes[1].name], node.output, "mask_of_heads"),
            ]
            nodes = [*graph.node[:index], *steps, *graph.node[index + 1 :]]
            graph.initializer.remove(
                next(initializer for initializer in graph.initializer if initializer.name == node.input[1])
            )
            del graph.node[:]
            graph.node.extend(nodes)
            return


def _fuse(source: Path, target: Path, config: PretrainedConfig, half: bool = False) -> None:
    """Write the graph with onnxruntime's fused operators; `half`: in fp16, with GELU by tanh."""
    options = FusionOptions("bert")
    options.attention_mask_format = AttentionMaskFormat.AttentionMask  # regardless of the position of padding
    options.enable_gelu_approximation = half
    with _quiet():
        fused = optimizer.optimize_model(
            str(source),
            "bert",
            num_heads=config.num_attention_heads,
            hidden_size=config.hidden_size,
            optimization_options=options,
            opt_level=0,  # onnxruntime's levels 1 and 2 would optimize for the current processor
        )
        if half:
            fused.convert_float_to_float16(keep_io_types=True)
    fused.topological_sort()
    if not any(opset.domain == CONTRIBUTED for opset in fused.model.opset_import):
        fused.model.opset_import.append(helper.make_opsetid(CONTRIBUTED, 1))
    _save(fused.model, target)


def _quantize(source: Path, target: Path, signed: bool) -> None:
    """Write the graph with its linear layers in 8 bits; embeddings, which are looked up, and the head stay in fp32."""
    model = onnx.load(source)
    quantize(model, signed=signed)
    _save(model, target)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress log messages and warnings of the libraries."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


# Files ------------------------------------------------------------------------------------------------------------


def _save(model: onnx.ModelProto, path: Path) -> None:
    """Write the model without unneeded parts that differ between machines (file names in stack traces).

    Weights beyond `LARGEST` go to a separate file, `model.onnx_data` for `model.onnx`.
    """
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
    model.producer_name, model.producer_version = "distilrank", __version__
    large = sum(len(initializer.raw_data) for initializer in graph.initializer) > LARGEST
    beside = f"{path.name}_data" if large else None
    onnx.save_model(model, path, save_as_external_data=large, location=beside, size_threshold=1024)


def _parts(path: Path) -> list[Path]:
    """The file, and the file of its weights if it is separate."""
    return [part for part in (path, path.with_name(f"{path.name}_data")) if part.exists()]


def _size(path: Path) -> int:
    return path.stat().st_size


def _fused(path: Path) -> dict[str, int]:
    """Number of nodes of each of onnxruntime's contributed operators in the graph."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    counts = collections.Counter(node.op_type for node in nodes if node.domain == CONTRIBUTED)
    return dict(sorted(counts.items()))
