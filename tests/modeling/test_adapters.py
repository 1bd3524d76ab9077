"""Folded adapters are LoRA: the same function, the same gradients, the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from distilrank.config import Compute, Lora, TeacherText
from distilrank.core.errors import InputError
from distilrank.modeling import parity, scorer, torch_backend
from distilrank.modeling.adapters import Adapted
from distilrank.modeling.encoding import Tokens, encode_table
from distilrank.modeling.runtime import Runtime, setup_runtime
from distilrank.training.loop import seed_everything
from tests.bases import write_base
from tests.small_pairs import pairs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokens(models: Path) -> Tokens:
    text = TeacherText()
    return encode_table(scorer.load_encoder(models / "decoder", text), pairs(4, 3, 1), text)


def adapted(models: Path, dtype: torch.dtype = torch.float32, **settings) -> Adapted:
    seed_everything(5)
    model = torch_backend.load_model(models / "decoder", Runtime(CPU, dtype, "test"))
    model.config.pad_token_id = 1
    adapter = Adapted(model, Lora(rank=4, alpha=8, **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in adapter.trained().items():
            if "lora_B" in name:  # zero at first: an adapter that does nothing tests nothing
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    adapter.fold()
    return adapter


def run(adapter: Adapted, tokens: Tokens) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    adapter.model.train()
    logits = torch_backend.forward(adapter.model, tokens, np.arange(len(tokens)), CPU)
    logits.square().sum().backward()
    return logits.detach(), {name.replace(".layer.", "."): w.grad for name, w in adapter.trained().items()}


@pytest.mark.parametrize("variant", ["lora", "rslora"])
def test_folded_adapters_have_the_logits_and_gradients_of_peft(models: Path, tokens: Tokens, variant: str) -> None:
    ours, theirs = (adapted(models, variant=variant, fold=fold) for fold in (True, False))
    assert ours.folds and not theirs.folds
    (logits, gradients), (expected, of_peft) = run(ours, tokens), run(theirs, tokens)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert set(gradients) == set(of_peft) and any("lora_A" in name for name in gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, of_peft[name], atol=1e-5, rtol=1e-3, msg=name)


def test_what_was_trained_is_what_is_merged_to_the_last_bit(models: Path, tokens: Tokens, tmp_path: Path) -> None:
    adapter = adapted(models, torch.bfloat16)
    trained = torch_backend.score_encoded(adapter.model, tokens, CPU, 10_000)
    merged = adapter.merged(tmp_path / "adapter")
    assert not isinstance(merged, PeftModel)
    assert not any("lora" in name or "folded" in name for name in merged.state_dict())
    np.testing.assert_array_equal(torch_backend.score_encoded(merged, tokens, CPU, 10_000), trained)


def test_the_saved_adapter_is_one_that_peft_loads(models: Path, tokens: Tokens, tmp_path: Path) -> None:
    adapter = adapted(models)
    trained = torch_backend.score_encoded(adapter.model, tokens, CPU, 10_000)
    adapter.merged(tmp_path / "adapter")
    base = torch_backend.load_model(models / "decoder", Runtime(CPU, torch.float32, "test"))
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    np.testing.assert_allclose(torch_backend.score_encoded(loaded, tokens, CPU, 10_000), trained, atol=1e-5)


@pytest.mark.parametrize("settings", [{"dropout": 0.1}, {"variant": "dora"}, {"fold": False}])
def test_what_cannot_be_folded_is_left_to_peft(models: Path, tokens: Tokens, settings: dict) -> None:
    adapter = adapted(models, **settings)
    assert not adapter.folds
    _, gradients = run(adapter, tokens)
    assert all(gradient is not None for gradient in gradients.values())
    trained = torch_backend.score_encoded(adapter.model, tokens, CPU, 10_000)
    np.testing.assert_allclose(
        torch_backend.score_encoded(adapter.merged(None), tokens, CPU, 10_000), trained, atol=1e-4
    )


def test_rank_0_trains_all_weights(models: Path) -> None:
    model = torch_backend.load_model(models / "decoder", Runtime(CPU, torch.bfloat16, "test"))
    adapter = Adapted(model, Lora(rank=0))
    assert len(adapter.trained()) == len(list(model.parameters())) and not adapter.folds
    assert {weight.dtype for weight in adapter.trained().values()} == {torch.float32}


def test_frozen_weights_stay_in_their_precision_and_adapters_train_in_fp32(models: Path) -> None:
    adapter = adapted(models, torch.bfloat16)
    assert {weight.dtype for weight in adapter.trained().values()} == {torch.float32}
    frozen = {weight.dtype for weight in adapter.model.parameters() if not weight.requires_grad}
    assert torch.bfloat16 in frozen


def test_adapters_of_embeddings_are_not_lost(models: Path, tokens: Tokens) -> None:
    adapter = adapted(models, targets=("q_proj", "embed_tokens"))
    assert not adapter.folds
    trained = torch_backend.score_encoded(adapter.model, tokens, CPU, 10_000)
    np.testing.assert_allclose(
        torch_backend.score_encoded(adapter.merged(None), tokens, CPU, 10_000), trained, atol=1e-4
    )


def test_missing_targets_are_named(models: Path) -> None:
    with pytest.raises(InputError, match=r"teacher.lora.targets \('q_prj',\): peft cannot adapt them"):
        adapted(models, targets=("q_prj",))


# Heads and precisions -------------------------------------------------------------------------------------------------

TEXT = TeacherText(fields=("title", "brand"), max_tokens=96)
HEADS = ("bert", "roberta", "albert", "deberta-v3", "modernbert")
"""Heads of one layer after a pooler within the base, of two layers, after a pooler outside, and with a norm."""
VARIANTS: dict[str, dict[str, Any]] = {"folded": {}, "apart": {"fold": False}, "dora": {"variant": "dora"}}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for name in HEADS:
        write_base(name, folder / name)
    return folder


def encoded(base: Path) -> Tokens:
    return encode_table(scorer.load_encoder(base, TEXT, "encoder"), pairs(4, 3, 1), TEXT)


def judge(base: Path, dtype: torch.dtype, **settings: Any) -> Adapted:
    """An encoder teacher whose adapters and head are not as they were made."""
    seed_everything(5)
    adapter = Adapted(torch_backend.load_model(base, Runtime(CPU, dtype, "test")), Lora(rank=4, alpha=8, **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in adapter.trained().values():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.05)
    adapter.fold()
    return adapter


@pytest.mark.parametrize(
    ("name", "precision", "variant"),
    [
        *((name, "bf16", "folded") for name in HEADS),  # the defaults, on hardware that has bf16
        *(("roberta", precision, variant) for precision in ("fp32", "bf16") for variant in ("apart", "dora")),
        ("bert", "fp32", "folded"),
    ],
)
def test_an_encoder_trains_and_is_saved_as_it_was_trained(
    name: str, precision: str, variant: str, bases: Path, tmp_path: Path
) -> None:
    runtime = setup_runtime(Compute(device="cpu", precision=precision, threads=1))
    tokens, adapter = encoded(bases / name), judge(bases / name, runtime.dtype, **VARIANTS[variant])
    assert adapter.folds == (variant == "folded")
    with torch.autocast("cpu", torch.bfloat16, enabled=runtime.bf16 and not adapter.folds):
        logits = torch_backend.forward(adapter.model.train(), tokens, np.arange(len(tokens)), CPU)
    logits.square().sum().backward()
    assert logits.dtype == torch.float32
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in adapter.trained().values())
    trained = torch_backend.score_encoded(adapter.model, tokens, CPU, 10_000)
    merged = adapter.merged(None)
    torch_backend.narrow_base(merged, runtime.dtype)
    merged.save_pretrained(tmp_path)
    saved = torch_backend.load_model(tmp_path, runtime, whole=True)
    assert all(torch.equal(weight, saved.state_dict()[name]) for name, weight in merged.state_dict().items())
    parity.compare(tmp_path, trained, torch_backend.score_encoded(saved, tokens, CPU, 10_000), runtime)
    if variant == "folded":
        np.testing.assert_array_equal(torch_backend.score_encoded(saved, tokens, CPU, 10_000), trained)


def test_dora_is_merged_in_fp32_and_rounded_once(bases: Path) -> None:
    ours, theirs = (judge(bases / "roberta", torch.bfloat16, variant="dora") for _ in range(2))
    merged, exact = ours.merged(None).state_dict(), theirs.model.float().merge_and_unload().state_dict()
    assert {weight.dtype for name, weight in merged.items() if "roberta." in name} == {torch.bfloat16}
    for name, weight in merged.items():
        torch.testing.assert_close(weight, exact[name].to(weight.dtype), rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("name", ["bert", "albert", "deberta-v3"])
def test_an_adapter_contains_what_its_base_lacks(name: str, tmp_path: Path) -> None:
    settings = {} if name == "deberta-v3" else {"add_pooling_layer": False}
    base = write_base(name, tmp_path / "base", **settings)
    tokens, adapter = encoded(base), judge(base, torch.float32)
    trained = torch_backend.score_encoded(adapter.model, tokens, CPU, 10_000)
    adapter.merged(tmp_path / "adapter")
    seed_everything(9)  # another pooler and head than those that were adapted
    base_model = torch_backend.load_model(base, Runtime(CPU, torch.float32, "test"))
    assert np.abs(torch_backend.score_encoded(base_model, tokens, CPU, 10_000) - trained).max() > 0.1
    loaded = PeftModel.from_pretrained(base_model, tmp_path / "adapter")
    np.testing.assert_allclose(torch_backend.score_encoded(loaded, tokens, CPU, 10_000), trained, atol=1e-4)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_missing_device_is_named(device: str) -> None:
    if {"cuda": torch.cuda, "mps": torch.backends.mps}[device].is_available():
        pytest.skip(f"{device} is there")
    with pytest.raises(
        InputError, match=f"compute.device: '{device}' asked for, but torch .* sees none .* auto or cpu"
    ):
        setup_runtime(Compute(device=device))
