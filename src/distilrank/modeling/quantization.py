"""Matrix products of ONNX graphs in 8 bits, with a scale for each token and for each column of weights.

A token's values are divided by their own largest one. With one scale for all of a batch, as onnxruntime's dynamic
quantization has it, one token of large values leaves the others few of the 256 steps, and a score depends on what else
is in its batch.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CONTRIBUTED = "com.microsoft"  # domain of onnxruntime's operators
ZERO = 128  # zero point of unsigned bytes
STEPS = 127  # of a byte to either side of it
SIGNED_STEPS = 64
"""The same of signed weights. x86 processors without VNNI add two products in 16 bits (VPMADDUBSW): 2 x 255 x 64 fits,
2 x 255 x 127 would be cut off, and scores be wrong there without an error."""
SMALLEST = np.float32(1e-12)  # scale of a vector of zeros


def quantize(model: onnx.ModelProto, *, signed: bool = True) -> None:
    """Replace products of activations with constant matrices by 8-bit products, in place.

    These are `MatMul` nodes whose second input is a two-dimensional float32 initializer: the linear layers, but neither
    the products within attention nor `Gemm`, the head's single row. Activations become unsigned bytes with zero point
    128, scaled token by token.

    Args:
        model: of opset 18 or later.
        signed: weights as signed bytes of 7 bits (`SIGNED_STEPS`): what processors with VNNI or AMX multiply with
            unsigned ones, exact on all others too. Unsigned weights have all 8 bits; onnxruntime widens them to 16
            bits first, which is slower.
    """
    graph = model.graph
    weights = {
        item.name: item for item in graph.initializer if len(item.dims) == 2 and item.data_type == TensorProto.FLOAT
    }
    constants: dict[str, onnx.TensorProto] = {}
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: np.ndarray | np.generic) -> str:
        constants.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(operator: str, output: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    @cache  # query, key and value share their input
    def rounded(values: str) -> tuple[str, str]:
        """The values of each token in bytes, and the scale of each token."""
        size = node("Abs", f"{values}_size", values)
        largest = node("ReduceMax", f"{values}_largest", size, constant("bytes_last_axis", np.array([-1])))
        unit = node("Mul", f"{values}_share", largest, constant("bytes_step", np.float32(1 / STEPS)))
        unit = node("Max", f"{values}_unit", unit, constant("bytes_smallest_unit", SMALLEST))
        inverse = node(
            "Reciprocal", f"{values}_inverse", unit
        )  # one number per token: cheaper than dividing all values
        scaled = node("Mul", f"{values}_scaled", values, inverse)
        shifted = node("Add", f"{values}_shifted", scaled, constant("bytes_zero_and_half", np.float32(ZERO + 0.5)))
        return node("Cast", f"{values}_bytes", shifted, to=TensorProto.UINT8), unit  # the cast truncates

    @cache
    def columns(name: str) -> tuple[str, str]:
        """The bytes of a matrix, and the scales of its columns."""
        matrix = numpy_helper.to_array(weights[name])
        steps = SIGNED_STEPS if signed else STEPS
        units = np.maximum(np.abs(matrix).max(axis=0) / np.float32(steps), SMALLEST)
        whole = np.round(matrix / units)
        whole = whole.astype(np.int8) if signed else (whole + ZERO).astype(np.uint8)
        return constant(f"{name}_bytes", whole), constant(f"{name}_units", units)

    for item in graph.node:
        if item.op_type != "MatMul" or item.input[1] not in weights:
            nodes.append(item)
            continue
        activations, unit = rounded(item.input[0])
        matrix, units = columns(item.input[1])
        scale, zero = constant("bytes_one", np.float32(1)), constant("bytes_zero", np.uint8(ZERO))
        inputs = (activations, matrix, scale, units, zero, *(() if signed else (zero,)))
        product = node("MatMulIntegerToFloat", f"{item.output[0]}_of_bytes", *inputs, domain=CONTRIBUTED)
        node("Mul", item.output[0], product, unit)
    used = {name for item in nodes for name in item.input}
    initializers = [*(item for item in graph.initializer if item.name in used), *constants.values()]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
    model.opset_import.append(helper.make_opsetid(CONTRIBUTED, 1))
