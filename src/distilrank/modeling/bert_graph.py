"""The ONNX graph of a BERT, built from its safetensors without torch.

`read_config` and `check_weights` say what is supported; `build` makes the graph. It takes less than a second for 22
million weights, so nothing is cached.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import ml_dtypes  # noqa: F401  # registers bfloat16 with numpy, and so with safetensors
import numpy as np
import onnx
import safetensors
from onnx import TensorProto, helper

from distilrank.core import artifacts
from distilrank.core.errors import InputError
from distilrank.modeling import weights
from distilrank.modeling.quantization import quantize

ACTIVATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "gelu": ("Gelu", {"approximate": "none"}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
}
"""ONNX operator and attributes of each supported `hidden_act`."""
DTYPES = ("F32", "F16", "BF16")
DEFAULTS = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "position_embedding_type": "absolute"}
"""Settings that config.json leaves out if they have these values."""

Precision = Literal["fp32", "int8"]
Shape = tuple[int | None, ...]
"""Shape of a tensor; None: any size."""


def read_config(folder: Path) -> dict[str, Any]:
    """The settings in `folder`/config.json, completed by `DEFAULTS`.

    Raises:
        InputError: not a BERT, or a setting that the graph does not support.
    """
    path = folder / "config.json"
    config = DEFAULTS | artifacts.read_json(path)
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


def build(folder: Path, config: dict[str, Any], precision: Precision) -> bytes:
    """The serialized graph of the BERT in `folder`.

    Its inputs are `input_ids` and `attention_mask`, int64, shape (batch, sequence); its output is the last hidden
    state, float32, shape (batch, sequence, hidden_size). All segment ids are 0.

    Args:
        folder: holds the safetensors.
        config: from `read_config`.
        precision: `int8`: linear layers in 8 bits, see `quantization.quantize`.

    Raises:
        InputError: as `check_weights` does.
    """
    network = _Bert(config, _weight_reader(folder, config))
    hidden_states = network.embeddings()
    mask = network.attention_mask()
    for number in range(config["num_hidden_layers"]):
        hidden_states = network.layer(hidden_states, mask, f"encoder.layer.{number}")
    model = network.finish(hidden_states)
    if precision == "int8":
        quantize(model)
    return model.SerializeToString()


class _GraphBuilder:
    """An ONNX model under construction."""

    def __init__(self) -> None:
        # Opset 20 is the first with Gelu, IR version 9 the first that allows it.
        self.model = onnx.ModelProto(ir_version=9, opset_import=[helper.make_opsetid("", 20)])
        self.model.graph.name = "bert"

    def add(self, operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Add a node whose inputs are named values or constants; return the name of its output."""
        names = [self._constant(value) if isinstance(value, np.ndarray) else value for value in inputs]
        output = f"node{len(self.model.graph.node)}"
        self.model.graph.node.append(helper.make_node(operator, names, [output], **attributes))
        return output

    def _constant(self, value: np.ndarray) -> str:
        # Filled in place: onnx.helper would copy the weights three times.
        name = f"constant{len(self.model.graph.initializer)}"
        dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
        self.model.graph.initializer.add(name=name, dims=value.shape, data_type=dtype, raw_data=value.tobytes())
        return name


class _Bert(_GraphBuilder):
    """The parts of a BERT as nodes; `read` returns a weight by its name."""

    def __init__(self, config: dict[str, Any], read: Callable[[str], np.ndarray]) -> None:
        super().__init__()
        self.config, self.read = config, read
        self.width, self.heads = config["hidden_size"], config["num_attention_heads"]

    def linear(self, x: str, name: str) -> str:
        """x W^T + b."""
        return self.add("Add", self.add("MatMul", x, self.read(f"{name}.weight").T), self.read(f"{name}.bias"))

    def layer_norm(self, x: str, name: str) -> str:
        """Layer normalization over the last axis."""
        scale, bias = self.read(f"{name}.weight"), self.read(f"{name}.bias")
        return self.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=self.config["layer_norm_eps"])

    def split_heads(self, x: str, *order: int) -> str:
        """From (batch, sequence, width) to (batch, sequence, heads, width / heads), its axes permuted by `order`."""
        shape = np.array([0, 0, self.heads, self.width // self.heads])
        return self.add("Transpose", self.add("Reshape", x, shape), perm=order)

    def attention_mask(self) -> str:
        """What to add to attention scores: 0 for tokens, the least float32 for padding."""
        mask = self.add("Cast", self.add("Unsqueeze", "attention_mask", np.array([1, 2])), to=TensorProto.FLOAT)
        padding = self.add("Sub", np.array([1], np.float32), mask)
        return self.add("Mul", padding, np.array([np.finfo(np.float32).min], np.float32))

    def embeddings(self) -> str:
        """Sum of word, position and segment embeddings, normalized; all tokens are of segment 0."""
        segment = self.read("embeddings.token_type_embeddings.weight")[0]
        positions = self.read("embeddings.position_embeddings.weight") + segment
        length = self.add("Shape", "input_ids", start=1, end=2)
        used_positions = self.add("Slice", positions, np.array([0]), length, np.array([0]))
        words = self.add("Gather", self.read("embeddings.word_embeddings.weight"), "input_ids")
        return self.layer_norm(self.add("Add", words, used_positions), "embeddings.LayerNorm")

    def layer(self, x: str, mask: str, name: str) -> str:
        """Self-attention and feed-forward network, each with its residual connection."""
        query = self.split_heads(self.linear(x, f"{name}.attention.self.query"), 0, 2, 1, 3)
        key = self.split_heads(self.linear(x, f"{name}.attention.self.key"), 0, 2, 3, 1)
        value = self.split_heads(self.linear(x, f"{name}.attention.self.value"), 0, 2, 1, 3)
        scale = np.array([math.sqrt(self.heads / self.width)], np.float32)
        scores = self.add("Add", self.add("Mul", self.add("MatMul", query, key), scale), mask)
        context = self.add("MatMul", self.add("Softmax", scores, axis=-1), value)
        context = self.add("Reshape", self.add("Transpose", context, perm=(0, 2, 1, 3)), np.array([0, 0, self.width]))
        attended = self.linear(context, f"{name}.attention.output.dense")
        x = self.layer_norm(self.add("Add", attended, x), f"{name}.attention.output.LayerNorm")
        activation, attributes = ACTIVATIONS[self.config["hidden_act"]]
        inner = self.add(activation, self.linear(x, f"{name}.intermediate.dense"), **attributes)
        output = self.linear(inner, f"{name}.output.dense")
        return self.layer_norm(self.add("Add", output, x), f"{name}.output.LayerNorm")

    def finish(self, output: str) -> onnx.ModelProto:
        """Declare the inputs, and `output` as the only output."""
        graph, axes = self.model.graph, ["batch", "sequence"]
        for name in ("input_ids", "attention_mask"):
            graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, axes))
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, [*axes, self.width]))
        return self.model


def check_weights(folder: Path, config: dict[str, Any]) -> dict[str, weights.Header]:
    """The headers of the tensors in `folder` by name, without the prefix `bert.` that a model with a head has.

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


def _shapes(config: dict[str, Any]) -> dict[str, Shape]:
    """Shapes of the tensors that a BERT of this configuration reads, by name."""
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


def _has_shape(header: weights.Header, shape: Shape) -> bool:
    return len(header.shape) == len(shape) and all(
        expected in (None, size) for size, expected in zip(header.shape, shape, strict=True)
    )


def _weight_reader(folder: Path, config: dict[str, Any]) -> Callable[[str], np.ndarray]:
    """A function that returns a tensor of the BERT in `folder` by its name, as float32."""
    headers = check_weights(folder, config)
    files = {path: safetensors.safe_open(path, "np") for path in {header.file for header in headers.values()}}

    def read(name: str) -> np.ndarray:
        header = headers[name]
        return files[header.file].get_tensor(header.name).astype(np.float32, copy=False)

    return read
