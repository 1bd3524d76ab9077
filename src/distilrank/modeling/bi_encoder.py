"""Embeddings of a BERT bi-encoder on onnxruntime, and exact search among them: no torch, no transformers.

A model folder in the sentence-transformers convention may hold `onnx/model.onnx`. Where it does not, the network is
built from the safetensors each time: for 22 million weights that takes less than a second, so nothing is cached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_dtypes  # noqa: F401  # lets numpy, and so safetensors, know bfloat16
import numpy as np
import onnx
import onnxruntime
import safetensors
from onnx import TensorProto, helper
from tokenizers import Encoding, Tokenizer

from distilrank.core import artifacts, hardware
from distilrank.core.errors import InputError
from distilrank.modeling import batching, encoding, references, weights
from distilrank.modeling.quantization import quantize

CHUNK = 8192  # texts tokenized, and sorted by length, at a time
BATCH_TOKENS = 2048  # of one call of the network, padding included; larger batches leave the processor's cache
BLOCK = 1 << 24  # numbers of vectors, and of scores, that a search holds at a time: 64 MiB of each
SLACK = 1e-5  # above the error of a float32 dot product of unit vectors, some 1e-6 for a thousand dimensions

ACTIVATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "gelu": ("Gelu", {"approximate": "none"}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
}
MODULES = ("Transformer", "Pooling", "Normalize")  # of a sentence-transformers folder; Dense, say, changes the vectors
POOLINGS = {"mean": "mean", "pooling_mode_mean_tokens": "mean", "cls": "cls", "pooling_mode_cls_token": "cls"}
DTYPES = ("F32", "F16", "BF16")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")

Precision = Literal["fp32", "int8"]
Shape = tuple[int | None, ...]
"""Of a tensor; None: any size."""


class Tokens:
    """Counts the tokens of texts; of the model's folder, only what belongs to the tokenizer is read.

    Args:
        reference: model, as in `distilrank.modeling.references`; of any architecture.

    Raises:
        InputError: no such model, or no readable tokenizer.json.
    """

    def __init__(self, reference: str) -> None:
        self._tokenizer = _tokenizer(references.resolve(reference))

    def count(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each text, without the special tokens that a model adds; int64, shape (n,)."""
        counts = np.empty(len(texts), np.int64)
        for start, encoded in _encode(self._tokenizer, texts, special=False):
            counts[start : start + len(encoded)] = [len(one) for one in encoded]
        return counts


class Retriever:
    """A BERT bi-encoder: mean (or [CLS], where the folder says so) of the last layer, L2-normalized.

    Args:
        reference: model, as in `distilrank.modeling.references`: config.json, tokenizer.json and safetensors (F32,
            F16 or BF16).
        max_tokens: most tokens of a text, [CLS] and [SEP] included; the rest of a text is cut off.
        threads: processor threads of the network; 0: as many as this process may use.
        precision: `int8` multiplies 8-bit weights with activations that are rounded token by token, so that a vector
            does not depend on its batch. On a processor with VNNI it is twice as fast; all-MiniLM-L6-v2's vectors of
            product titles keep a cosine of 0.996 to their fp32 selves, on every processor. Always built from the
            safetensors.

    Attributes:
        dimension: of the vectors.

    Raises:
        InputError: no such model, not a BERT, no tokenizer.json, or something in it that is not supported.
    """

    def __init__(
        self, reference: str, *, max_tokens: int = 64, threads: int = 0, precision: Precision = "fp32"
    ) -> None:
        folder = references.resolve(reference)
        config = _config(folder)
        self.dimension: int = config["hidden_size"]
        self._pooling = _pooling(folder)
        self._tokenizer = _tokenizer(folder)
        special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if not special:
            raise InputError(f"{folder / 'tokenizer.json'}: adds no special tokens, expected [CLS] and [SEP]")
        if max_tokens <= special:
            raise InputError(f"max_tokens {max_tokens}: {special} are special tokens, expected at least {special + 1}")
        self._tokenizer.enable_truncation(min(max_tokens, config["max_position_embeddings"]))

        exported = folder / "onnx" / "model.onnx"
        network = exported if exported.is_file() and precision == "fp32" else _network(folder, config, precision)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or hardware.cores()
        self._session = onnxruntime.InferenceSession(
            network if isinstance(network, bytes) else str(network), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [one.name for one in self._session.get_inputs()]
        self._output = self._session.get_outputs()[0].name
        if not set(self._inputs) <= set(INPUTS) or len(self._session.get_outputs()[0].shape) != 3:
            raise InputError(f"{exported}: inputs {self._inputs}, expected some of {INPUTS}, and a vector per token")

    def embed(
        self,
        texts: Sequence[str],
        progress: Callable[[int], None] | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Vectors of `texts`, float32, shape (n, dimension), of length 1, in their order.

        An empty text has the vector of [CLS] [SEP]. Special tokens within a text are read as ordinary characters.
        Beside the result, memory does not grow with the number of texts.

        Args:
            texts: any number of them.
            progress: called after each batch with its number of texts.
            out: where to write and what to return instead (a memory-mapped file, say; float16 will do), same shape.

        Raises:
            ValueError: `out` has another shape.
        """
        shape = (len(texts), self.dimension)
        vectors = np.empty(shape, np.float32) if out is None else out
        if vectors.shape != shape:
            raise ValueError(f"out has shape {vectors.shape}, expected {shape}")
        for start, encoded in _encode(self._tokenizer, texts, special=True):
            lengths = np.array([len(one) for one in encoded], np.int64)
            for rows in batching.by_length(lengths, BATCH_TOKENS):
                vectors[start + rows] = self._embed([encoded[row] for row in rows])
                if progress:
                    progress(len(rows))
        return vectors

    def _embed(self, encoded: Sequence[Encoding]) -> np.ndarray:
        ids = np.zeros((len(encoded), max(map(len, encoded))), np.int64)
        mask = np.zeros_like(ids)
        for row, one in enumerate(encoded):
            ids[row, : len(one)] = one.ids
            mask[row, : len(one)] = 1
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (hidden,) = self._session.run([self._output], {name: values[name] for name in self._inputs})
        # The length is normalized away, so that a sum does for a mean.
        return _unit(hidden[:, 0] if self._pooling == "cls" else (mask[:, None].astype(np.float32) @ hidden)[:, 0])


class Neighbors:
    """Exact search by cosine.

    Args:
        vectors: float32 or float16, shape (n, d), of any length; may be memory-mapped, a search reads it once.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def top(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest vectors to each query, best first; ties go to the lowest place.

        Scores are rounded from float64, so that neither they nor the order depend on how the work was divided.
        Memory is bounded beside the result. A vector of zeros has the cosine 0.

        Args:
            queries: shape (q, d).
            count: most vectors for a query.

        Returns:
            Their places, int64, and cosines, float32, both of shape (q, min(count, n)).
        """
        total, dimension = self._vectors.shape
        count = min(count, total)
        places = np.full((len(queries), count), -1, np.int64)
        scores = np.full((len(queries), count), -np.inf, np.float32)
        if not count:
            return places, scores
        queries = _unit(queries)
        rows = max(min(BLOCK // dimension, total), 1)
        for start in range(0, total, rows):
            block = _unit(self._vectors[start : start + rows])
            for first in range(0, len(queries), BLOCK // rows):
                rough = queries[first : first + BLOCK // rows] @ block.T
                for row, about in enumerate(rough, first):
                    near = _reach(about, count, scores[row, -1])
                    exact = (block[near].astype(np.float64) * queries[row]).sum(axis=1)
                    found = np.concatenate([scores[row], exact.astype(np.float32)])
                    order = np.argsort(-found, kind="stable")[:count]
                    places[row] = np.concatenate([places[row], start + near])[order]
                    scores[row] = found[order]
        return places, scores


def _reach(about: np.ndarray, count: int, least: float) -> np.ndarray:
    """Places in `about` that may be among the best `count` and above `least`, given the error of a float32 product."""
    near = np.flatnonzero(about > least - SLACK)
    if len(near) <= count:
        return near
    return near[about[near] >= np.partition(about[near], -count)[-count] - SLACK]


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    return np.divide(vectors, lengths, out=vectors, where=lengths > 0)


def _tokenizer(folder: Path) -> Tokenizer:
    tokenizer = encoding.load_tokenizer(folder)
    tokenizer.encode_special_tokens = True  # "[SEP]" within a text becomes its characters
    return tokenizer


def _encode(tokenizer: Tokenizer, texts: Sequence[str], *, special: bool) -> Iterator[tuple[int, list[Encoding]]]:
    for start in range(0, len(texts), CHUNK):
        yield start, tokenizer.encode_batch_fast(list(texts[start : start + CHUNK]), add_special_tokens=special)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    config = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "position_embedding_type": "absolute"}
    config |= artifacts.read_json(path)
    if config.get("model_type") != "bert":
        raise InputError(f"{path}: model_type {config.get('model_type')!r}, a retriever must be 'bert'")
    if config["hidden_act"] not in ACTIVATIONS:
        raise InputError(f"{path}: hidden_act {config['hidden_act']!r}, expected one of {', '.join(ACTIVATIONS)}")
    if config["position_embedding_type"] != "absolute":
        raise InputError(f"{path}: position_embedding_type {config['position_embedding_type']!r}, expected 'absolute'")
    for name in ("hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings"):
        if not isinstance(config.get(name), int):
            raise InputError(f"{path}: {name} {config.get(name)!r}, expected a whole number")
    return config


def _pooling(folder: Path) -> str:
    """`mean` or `cls`, by what sentence-transformers keeps in `folder`; `mean` where it keeps nothing."""
    listed, pooling = folder / "modules.json", "mean"
    for module in artifacts.read_json(listed, list) if listed.is_file() else ():
        kind = module["type"].rpartition(".")[2]
        if kind not in MODULES:
            raise InputError(f"{listed}: module {kind}, expected only {', '.join(MODULES)}")
        if kind == "Pooling":
            path = folder / module["path"] / "config.json"
            said = artifacts.read_json(path)
            flags = [name for name, value in said.items() if name.startswith("pooling_mode_") and value]
            mode = said.get("pooling_mode", flags[0] if len(flags) == 1 else flags)
            if str(mode) not in POOLINGS:
                raise InputError(f"{path}: pooling {mode}, expected mean or cls")
            pooling = POOLINGS[mode]
    return pooling


class _Graph:
    """An ONNX model under construction."""

    def __init__(self) -> None:
        # Opset 20 is the first with Gelu, IR version 9 the first that allows it.
        self.model = onnx.ModelProto(ir_version=9, opset_import=[helper.make_opsetid("", 20)])
        self.model.graph.name = "bert"

    def __call__(self, operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Add a node on the named values and given constants; return the name of its output."""
        names = [self._constant(value) if isinstance(value, np.ndarray) else value for value in inputs]
        output = f"node{len(self.model.graph.node)}"
        self.model.graph.node.append(helper.make_node(operator, names, [output], **attributes))
        return output

    def _constant(self, value: np.ndarray) -> str:
        # Filled in place: onnx.helper would copy the weights three times.
        name, kind = f"constant{len(self.model.graph.initializer)}", helper.np_dtype_to_tensor_dtype(value.dtype)
        self.model.graph.initializer.add(name=name, dims=value.shape, data_type=kind, raw_data=value.tobytes())
        return name


def _network(folder: Path, config: dict[str, Any], precision: Precision) -> bytes:
    """The serialized ONNX model of the BERT in `folder`: token ids and mask in, the last layer's vectors out."""
    read = _weights(folder, config)
    node = _Graph()
    width, heads = config["hidden_size"], config["num_attention_heads"]
    activation, variant = ACTIVATIONS[config["hidden_act"]]

    def constant(*values: float) -> np.ndarray:
        return np.array(values, np.float32)

    def linear(x: str, name: str) -> str:
        return node("Add", node("MatMul", x, read(f"{name}.weight").T), read(f"{name}.bias"))

    def norm(x: str, name: str) -> str:
        scale, bias = read(f"{name}.weight"), read(f"{name}.bias")
        return node("LayerNormalization", x, scale, bias, axis=-1, epsilon=config["layer_norm_eps"])

    def by_head(x: str, *order: int) -> str:
        return node("Transpose", node("Reshape", x, np.array([0, 0, heads, width // heads])), perm=order)

    mask = node("Cast", node("Unsqueeze", "attention_mask", np.array([1, 2])), to=TensorProto.FLOAT)
    mask = node("Mul", node("Sub", constant(1), mask), constant(float(np.finfo(np.float32).min)))
    positions = read("embeddings.position_embeddings.weight") + read("embeddings.token_type_embeddings.weight")[0]
    length = node("Shape", "input_ids", start=1, end=2)
    positions_of_text = node("Slice", positions, np.array([0]), length, np.array([0]))
    words = node("Gather", read("embeddings.word_embeddings.weight"), "input_ids")
    x = norm(node("Add", words, positions_of_text), "embeddings.LayerNorm")
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        query = by_head(linear(x, f"{layer}.attention.self.query"), 0, 2, 1, 3)
        key = by_head(linear(x, f"{layer}.attention.self.key"), 0, 2, 3, 1)
        value = by_head(linear(x, f"{layer}.attention.self.value"), 0, 2, 1, 3)
        scores = node("Mul", node("MatMul", query, key), constant(math.sqrt(heads / width)))
        context = node("MatMul", node("Softmax", node("Add", scores, mask), axis=-1), value)
        context = node("Reshape", node("Transpose", context, perm=(0, 2, 1, 3)), np.array([0, 0, width]))
        attended = linear(context, f"{layer}.attention.output.dense")
        x = norm(node("Add", attended, x), f"{layer}.attention.output.LayerNorm")
        inner = node(activation, linear(x, f"{layer}.intermediate.dense"), **variant)
        x = norm(node("Add", linear(inner, f"{layer}.output.dense"), x), f"{layer}.output.LayerNorm")

    graph, axes = node.model.graph, ["batch", "sequence"]
    graph.input.extend(helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in INPUTS[:2])
    graph.output.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, [*axes, width]))
    if precision == "int8":
        quantize(node.model)
    return node.model.SerializeToString()


def _shapes(config: dict[str, Any]) -> dict[str, Shape]:
    """The tensors that a BERT of this configuration reads, by name."""
    width, inner = config["hidden_size"], config.get("intermediate_size")
    norm: dict[str, Shape] = {"weight": (width,), "bias": (width,)}
    shapes: dict[str, Shape] = {
        "embeddings.word_embeddings.weight": (config.get("vocab_size"), width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (None, width),
    }
    modules: dict[str, dict[str, Shape]] = {"embeddings.LayerNorm": norm}
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            modules[f"{layer}.attention.{name}"] = {"weight": (width, width), "bias": (width,)}
        modules[f"{layer}.attention.output.LayerNorm"] = modules[f"{layer}.output.LayerNorm"] = norm
        modules[f"{layer}.intermediate.dense"] = {"weight": (inner, width), "bias": (inner,)}
        modules[f"{layer}.output.dense"] = {"weight": (width, inner), "bias": (width,)}
    return shapes | {f"{name}.{part}": shape for name, parts in modules.items() for part, shape in parts.items()}


def _headers(folder: Path, config: dict[str, Any]) -> dict[str, weights.Header]:
    """The tensors in `folder` by name; `bert.`, the prefix of a model with a head, is left out.

    Raises:
        InputError: tensors are missing, of another shape or type, or belong to layers that `config` does not have.
    """
    headers = {name.removeprefix("bert."): header for name, header in weights.headers(folder, "bert").items()}
    shapes = _shapes(config)
    weights.refuse(
        str(folder),
        len(shapes),
        missing=shapes.keys() - headers.keys(),
        unexpected=[name for name in headers.keys() - shapes.keys() if name.startswith("encoder.")],
        reshaped={
            name: (headers[name].shape, shape)
            for name, shape in shapes.items()
            if name in headers and not _has_shape(headers[name], shape)
        },
    )
    for name in shapes:
        if headers[name].dtype not in DTYPES:
            raise InputError(f"{folder}: tensor {name} is {headers[name].dtype}, expected F32, F16 or BF16")
    return headers


def _has_shape(header: weights.Header, shape: Shape) -> bool:
    return len(header.shape) == len(shape) and all(
        expected in (None, size) for size, expected in zip(header.shape, shape, strict=True)
    )


def _weights(folder: Path, config: dict[str, Any]) -> Callable[[str], np.ndarray]:
    """A function from the name of a tensor of the BERT in `folder` to its values, as float32."""
    headers = _headers(folder, config)
    opened = {path: safetensors.safe_open(path, "np") for path in {header.file for header in headers.values()}}

    def read(name: str) -> np.ndarray:
        header = headers[name]
        return opened[header.file].get_tensor(header.name).astype(np.float32, copy=False)

    return read


def check(reference: str) -> None:
    """Check a local model as `Retriever` does, reading no weights.

    Raises:
        InputError: as `Retriever` does.
    """
    folder = references.resolve(reference)
    config = _config(folder)
    _pooling(folder)
    _tokenizer(folder)
    if not (folder / "onnx" / "model.onnx").is_file():
        _headers(folder, config)
