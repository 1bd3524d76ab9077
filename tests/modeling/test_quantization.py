from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from distilrank.modeling.quantization import CONTRIBUTED, quantize

RNG = np.random.default_rng(0)
SHARED = RNG.standard_normal((24, 40)).astype(np.float32) * np.geomspace(0.01, 100, 40, dtype=np.float32)
LAST = RNG.standard_normal((40, 6)).astype(np.float32)
LAST[:, 2] = 0


def network() -> onnx.ModelProto:
    """x @ SHARED + x @ SHARED, a product of it with itself, that one's with LAST, and SHARED as it is."""
    nodes = [
        helper.make_node("MatMul", ["x", "shared"], ["one"]),
        helper.make_node("MatMul", ["x", "shared"], ["other"]),
        helper.make_node("Add", ["one", "other"], ["inner"]),
        helper.make_node("MatMul", ["inner", "last"], ["y"]),
        helper.make_node("Transpose", ["inner"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["inner", "turned"], ["square"]),
        helper.make_node("Identity", ["shared"], ["table"]),
    ]
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", floats, ["batch", "sequence", 24])],
        [
            helper.make_tensor_value_info("y", floats, ["batch", "sequence", 6]),
            helper.make_tensor_value_info("square", floats, ["batch", "sequence", "sequence"]),
            helper.make_tensor_value_info("table", floats, [24, 40]),
        ],
        [numpy_helper.from_array(SHARED, "shared"), numpy_helper.from_array(LAST, "last")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y", "square", "table"], {"x": x})


def rounded(values: np.ndarray, axis: int, steps: int = 127) -> np.ndarray:
    """What is left of `values` in that many steps to either side of 0, the same ones along `axis`."""
    unit = np.maximum(np.abs(values).max(axis=axis, keepdims=True) / steps, 1e-12)
    return np.round(values / unit) * unit


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    """Tokens of sizes from a hundredth to a hundred, and one of zeros."""
    sizes = np.array([[0.01, 1, 100], [5, 0, 0.3]])[:, :, None]
    return (np.random.default_rng(1).standard_normal((2, 3, 24)) * sizes).astype(np.float32)


@pytest.mark.parametrize("signed", [True, False])
def test_products_are_those_of_values_rounded_by_token_and_by_column(signed: bool, tokens: np.ndarray) -> None:
    model = network()
    quantize(model, signed=signed)
    onnx.checker.check_model(model)
    y, square, table = run(model, tokens)
    steps = 64 if signed else 127  # of weights
    inner = 2 * (rounded(tokens, -1) @ rounded(SHARED, 0, steps))
    expected = rounded(inner, -1) @ rounded(LAST, 0, steps)
    step = np.abs(inner).max(-1, keepdims=True) / 127 * np.abs(LAST).max()  # a value may fall on either side of a half
    assert (np.abs(y - expected) <= 1.01 * step + 1e-9).all()
    assert np.median(np.abs(y - expected) / (step + 1e-9)) < 1e-3
    np.testing.assert_allclose(square, inner @ inner.transpose(0, 2, 1), rtol=1e-4, atol=1e-4 * np.abs(square).max())
    np.testing.assert_array_equal(table, SHARED)
    assert not y[1, 1].any() and not y[..., 2].any()


@pytest.mark.parametrize(("signed", "kind"), [(True, TensorProto.INT8), (False, TensorProto.UINT8)])
def test_each_input_is_rounded_once_and_each_matrix_stored_once(signed: bool, kind: int) -> None:
    model = network()
    quantize(model, signed=signed)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("MatMulIntegerToFloat") == 3 and operators.count("MatMul") == 1
    assert operators.count("ReduceMax") == 2
    matrices = {weight.name: weight.data_type for weight in model.graph.initializer if len(weight.dims) == 2}
    assert sorted(matrices.values()) == sorted([TensorProto.FLOAT, kind, kind])  # of floats, the one used elsewhere
    assert matrices["shared"] == TensorProto.FLOAT
    assert [opset.domain for opset in model.opset_import] == ["", CONTRIBUTED]


@pytest.mark.parametrize("signed", [True, False])
def test_the_largest_products_are_exact_on_every_processor(signed: bool) -> None:
    """Without VNNI, onnxruntime adds two products of bytes in 16 bits: what does not fit is cut off, silently."""
    matrix = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 64])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 64])
    weights = numpy_helper.from_array(np.full((64, 64), 3, np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "largest", [matrix], [output], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    quantize(model, signed=signed)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], {"x": np.full((1, 2, 64), 5, np.float32)})
    np.testing.assert_allclose(y, 64 * 3 * 5, rtol=1e-5)
