"""Packed batches give what padded ones give, gradients too, with each query's common tokens computed once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification

from distilrank.config import Compute, TeacherText
from distilrank.core.errors import InputError, RunStopped
from distilrank.modeling import batching, compilation, packing, scorer, torch_backend
from distilrank.modeling.encoding import Tokens, encode_table
from distilrank.modeling.runtime import Runtime, setup_runtime
from tests.small_pairs import pairs

CPU = torch.device("cpu")
FP32 = Compute(device="cpu", precision="fp32", threads=1)


def tokens_of(queries: list[list[int]], rest: list[list[list[int]]]) -> Tokens:
    """Pairs that begin with their query's tokens."""
    rows = [(f"q{number}", [*query, *own]) for number, query in enumerate(queries) for own in rest[number]]
    return Tokens.of([query for query, _ in rows], [ids for _, ids in rows])


def small(kind: str, **model_settings) -> torch.nn.Module:
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        kind,
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        num_labels=1,
        **model_settings,
    )
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=packing.ATTENTION).eval()


def padded(model: torch.nn.Module, tokens: Tokens, rows: np.ndarray) -> torch.Tensor:
    model.config._attn_implementation = "eager"
    try:
        return torch_backend.forward(model, tokens, rows, CPU)
    finally:
        model.config._attn_implementation = packing.ATTENTION


@pytest.mark.parametrize("kind", packing.MODEL_TYPES)
def test_packed_batches_give_the_logits_and_gradients_of_padded_ones(kind: str) -> None:
    model = small(kind)
    rng = np.random.default_rng(1)
    draw = lambda size: rng.integers(1, 60, size).tolist()  # noqa: E731
    tokens = tokens_of(
        [draw(n) for n in (3, 5, 1, 2)], [[draw(rng.integers(1, 12)) for _ in range(m)] for m in (4, 1, 3, 2)]
    )
    if kind in packing.ENCODERS:
        tokens = dataclasses.replace(tokens, types=rng.integers(0, 2, len(tokens.ids)).astype(np.int8))
    rows = rng.permutation(len(tokens))
    for parameter in model.parameters():
        assert parameter.requires_grad
    results = {}
    for name, function in (("packed", torch_backend.forward), ("padded", None)):
        model.zero_grad()
        logits = function(model, tokens, rows, CPU) if function else padded(model, tokens, rows)
        logits.square().sum().backward()
        results[name] = logits.detach(), [parameter.grad.clone() for parameter in model.parameters()]
    torch.testing.assert_close(results["packed"][0], results["padded"][0], atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(results["packed"][1], results["padded"][1]):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 3), min_size=0, max_size=5),
            st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_every_pair_sees_its_own_tokens_in_order_and_no_others(groups) -> None:
    tokens = tokens_of([query for query, _ in groups], [rest for _, rest in groups])
    rows = np.random.default_rng(0).permutation(len(tokens))
    batch = packing.pack_decoder_batch(tokens, rows)
    ids, positions = batch.ids[0].numpy(), batch.positions[0].numpy()
    assert len(ids) <= tokens.lengths.sum(), "common tokens stand once"
    for number, row in enumerate(rows):
        segment, inside = divmod(int(batch.slots[batch.read[number]]), batch.queries.shape[1])
        attended = batch.keys[segment][batch.mask[segment, 0, inside] == 0].numpy()
        assert ids[attended].tolist() == tokens.row(row).tolist()
        assert positions[attended].tolist() == list(range(tokens.lengths[row]))


def test_common_tokens_are_packed_once() -> None:
    batch = packing.pack_decoder_batch(tokens_of([[1, 2, 3], [4]], [[[5], [6, 7]], [[8, 9]]]), np.arange(3))
    assert batch.ids[0].tolist() == [1, 2, 3, 5, 6, 7, 4, 8, 9]
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 3, 4, 0, 1, 2]


def test_a_pair_that_begins_as_another_keeps_its_last_token() -> None:
    batch = packing.pack_decoder_batch(tokens_of([[1]], [[[2], [2, 2], [2]]]), np.arange(3))
    assert len(set(batch.read.tolist())) == 3


def test_a_window_of_attention_that_is_too_small_is_refused() -> None:
    model = small("mistral", sliding_window=6)
    with pytest.raises(InputError, match="a pair of 9 tokens, the model's attention window has 6"):
        torch_backend.forward(model, tokens_of([[1, 2]], [[[3] * 7]]), np.arange(1), CPU)


def test_the_head_computes_in_fp32(models: Path) -> None:
    runtime = Runtime(CPU, torch.bfloat16, "test")
    model = torch_backend.load_model(models / "decoder", runtime)
    encoder = scorer.load_encoder(models / "decoder", TeacherText())
    logits = torch_backend.score_encoded(model, encode_table(encoder, pairs(30, 5, 1), encoder_text()), CPU, 500)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = torch_backend.score_encoded(model, encode_table(encoder, pairs(30, 5, 1), encoder_text()), CPU, 500)
    for scores in (logits, autocast):
        as_bf16 = torch.from_numpy(scores).bfloat16().float().numpy()
        assert (as_bf16 != scores).mean() > 0.5
    assert model.score.weight.dtype == torch.float32


def encoder_text() -> TeacherText:
    return TeacherText(fields=("title", "color"))


def test_saved_models_do_not_name_our_attention(models: Path, tmp_path: Path) -> None:
    torch_backend.load_model(models / "decoder", setup_runtime(FP32)).save_pretrained(tmp_path)
    assert packing.ATTENTION not in (tmp_path / "config.json").read_text()


def test_batches_are_halved_until_they_fit() -> None:
    model, tokens = small("llama"), tokens_of([[1, 2]] * 3, [[[3], [4, 5]]] * 3)
    whole = torch_backend.score_encoded(model, tokens, CPU, 1000)
    sizes = []

    def scarce(module, args, kwargs):
        sizes.append(kwargs["input_ids"].shape[1])
        if sizes[-1] > 6:
            raise torch.OutOfMemoryError("out of memory")

    hook = model.model.register_forward_pre_hook(scarce, with_kwargs=True)
    np.testing.assert_allclose(torch_backend.score_encoded(model, tokens, CPU, 1000), whole, atol=1e-6)
    assert max(sizes) > 6 >= min(sizes)
    hook.remove()

    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    model.model.register_forward_pre_hook(full)
    with pytest.raises(RunStopped, match=r"out of memory on cpu with one pair of \d tokens.*text.max_tokens"):
        torch_backend.score_encoded(model, tokens, CPU, 1000)


# Batches --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 30), min_size=0, max_size=60), st.integers(1, 80), st.booleans())
def test_random_batches_hold_every_row_once_within_budget(lengths: list[int], budget: int, grouped: bool) -> None:
    sizes = np.array(lengths, np.int64)
    groups = np.arange(len(sizes)) // 3 if grouped else None
    batches = batching.random_batches(sizes, budget, np.random.default_rng(0), groups)
    order = np.concatenate([np.empty(0, np.int64), *batches])
    assert sorted(order.tolist()) == list(range(len(sizes)))
    assert all(len(batch) == 1 or sizes[batch].sum() <= budget for batch in batches)
    if grouped and len(order):
        assert (np.diff(groups[order]) != 0).sum() == groups.max(), "a group's rows are beside each other"


# Fused layers ---------------------------------------------------------------------------------------------------------


def test_layers_are_fused_only_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    model, runtime = small("llama"), setup_runtime(FP32)
    assert compilation.weights(model) == sum(
        parameter.numel() for name, parameter in model.model.named_parameters() if "embed" not in name
    )
    assert not compilation.compile_layers("teacher", model, FP32, runtime, 1e12)
    assert not compilation.compile_layers("teacher", model, FP32.model_copy(update={"compile": "off"}), runtime, 1e20)
    monkeypatch.setenv("PATH", "")
    assert not compilation.compile_layers("teacher", model, FP32, runtime, 1e20)
    with pytest.raises(InputError, match=r"compute.compile: on, but no C\+\+ compiler"):
        compilation.compile_layers("teacher", model, FP32.model_copy(update={"compile": "on"}), runtime, 1e20)


def test_fused_layers_give_the_same_logits() -> None:
    model, tokens = small("llama"), tokens_of([[1, 2]] * 3, [[[3], [4, 5]]] * 3)
    plain = torch_backend.score_encoded(model, tokens, CPU, 1000)
    try:
        fused = compilation.compile_layers(
            "teacher", model, FP32.model_copy(update={"compile": "on"}), setup_runtime(FP32), 0.0
        )
    except InputError as error:
        pytest.skip(str(error))
    assert fused
    np.testing.assert_allclose(torch_backend.score_encoded(model, tokens, CPU, 1000), plain, atol=1e-5)
    np.testing.assert_allclose(torch_backend.score_encoded(model, tokens, CPU, 8), plain, atol=1e-5)
