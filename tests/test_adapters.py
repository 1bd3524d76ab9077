"""Folded adapters are LoRA: the same function, the same gradients, the same files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from distilrank import network, scorer
from distilrank.adapters import Adapted
from distilrank.compute import Runtime
from distilrank.config import Lora, TeacherText
from distilrank.encoding import Tokens, encode_table
from distilrank.errors import InputError
from distilrank.training import seed_everything
from tests.test_models import pairs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokens(models: Path) -> Tokens:
    text = TeacherText()
    return encode_table(scorer.load_encoder(models / "decoder", text), pairs(4, 3, 1), text)


def adapted(models: Path, dtype: torch.dtype = torch.float32, **knobs) -> Adapted:
    seed_everything(5)
    model = network.load_model(models / "decoder", Runtime(CPU, dtype, "test"))
    model.config.pad_token_id = 1
    one = Adapted(model, Lora(rank=4, alpha=8, **knobs))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in one.trained().items():
            if "lora_B" in name:  # zero at first: an adapter that does nothing tests nothing
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    one.fold()
    return one


def run(one: Adapted, tokens: Tokens) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    one.model.train()
    logits = network.forward(one.model, tokens, np.arange(len(tokens)), CPU)
    logits.square().sum().backward()
    return logits.detach(), {name.replace(".layer.", "."): w.grad for name, w in one.trained().items()}


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
    one = adapted(models, torch.bfloat16)
    trained = network.score_encoded(one.model, tokens, CPU, 10_000)
    merged = one.merged(tmp_path / "adapter")
    assert not isinstance(merged, PeftModel)
    assert not any("lora" in name or "folded" in name for name in merged.state_dict())
    np.testing.assert_array_equal(network.score_encoded(merged, tokens, CPU, 10_000), trained)


def test_the_saved_adapter_is_one_that_peft_loads(models: Path, tokens: Tokens, tmp_path: Path) -> None:
    one = adapted(models)
    trained = network.score_encoded(one.model, tokens, CPU, 10_000)
    one.merged(tmp_path / "adapter")
    base = network.load_model(models / "decoder", Runtime(CPU, torch.float32, "test"))
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    np.testing.assert_allclose(network.score_encoded(loaded, tokens, CPU, 10_000), trained, atol=1e-5)


@pytest.mark.parametrize("knobs", [{"dropout": 0.1}, {"variant": "dora"}, {"fold": False}])
def test_what_cannot_be_folded_is_left_to_peft(models: Path, tokens: Tokens, knobs: dict) -> None:
    one = adapted(models, **knobs)
    assert not one.folds
    _, gradients = run(one, tokens)
    assert all(gradient is not None for gradient in gradients.values())
    trained = network.score_encoded(one.model, tokens, CPU, 10_000)
    np.testing.assert_allclose(network.score_encoded(one.merged(None), tokens, CPU, 10_000), trained, atol=1e-4)


def test_rank_0_trains_all_weights(models: Path) -> None:
    model = network.load_model(models / "decoder", Runtime(CPU, torch.bfloat16, "test"))
    one = Adapted(model, Lora(rank=0))
    assert len(one.trained()) == len(list(model.parameters())) and not one.folds
    assert {weight.dtype for weight in one.trained().values()} == {torch.float32}


def test_frozen_weights_stay_in_their_precision_and_adapters_train_in_fp32(models: Path) -> None:
    one = adapted(models, torch.bfloat16)
    assert {weight.dtype for weight in one.trained().values()} == {torch.float32}
    frozen = {weight.dtype for weight in one.model.parameters() if not weight.requires_grad}
    assert torch.bfloat16 in frozen


def test_adapters_of_embeddings_are_not_lost(models: Path, tokens: Tokens) -> None:
    one = adapted(models, targets=("q_proj", "embed_tokens"))
    assert not one.folds
    trained = network.score_encoded(one.model, tokens, CPU, 10_000)
    np.testing.assert_allclose(network.score_encoded(one.merged(None), tokens, CPU, 10_000), trained, atol=1e-4)


def test_targets_that_are_not_there_are_named(models: Path) -> None:
    with pytest.raises(InputError, match=r"teacher.lora.targets \('q_prj',\): peft cannot adapt them"):
        adapted(models, targets=("q_prj",))
