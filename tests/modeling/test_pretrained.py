"""Weights that are not all there, names that frameworks prefix, and code that comes with a model."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from distilrank.config import Compute, Text
from distilrank.core.errors import InputError
from distilrank.modeling import bi_encoder, pretrained, torch_backend, weights
from distilrank.modeling.bi_encoder import Retriever
from distilrank.modeling.references import check as check_reference
from distilrank.modeling.references import resolve
from distilrank.modeling.runtime import Runtime
from distilrank.modeling.scorer import Scorer, describe, load_encoder
from distilrank.preflight.models import check_weights

ROOT = Path(__file__).parents[2]
CPU = Runtime(torch.device("cpu"), torch.float32, "test")
KINDS = ("encoder", "decoder")


@pytest.fixture(params=KINDS)
def copy(request: pytest.FixtureRequest, models: Path, tmp_path: Path) -> Path:
    """A copy of a tiny model to change."""
    return shutil.copytree(models / request.param, tmp_path / request.param)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def in_layer(name: str, layer: int) -> bool:
    return f".layer.{layer}." in name or f".layers.{layer}." in name


def wrap_layers(name: str) -> str:
    """As torch.compile and activation checkpointing name what they wrap within a model."""
    return re.sub(r"\b(layers?\.\d+)\.", r"\1._orig_mod._checkpoint_wrapped_module.", name)


# Prefixes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "0.auto_model.", "0.model.", "model.", "module._orig_mod.", "model.module."]
)
def test_prefixes_of_frameworks_are_stripped(copy: Path, prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch_backend.load_model(copy, CPU).state_dict()
    rewrite(copy, lambda tensors: {prefix + wrap_layers(name): tensor for name, tensor in tensors.items()})
    pretrained.check(copy, num_labels=1)
    torch.manual_seed(1)
    model = torch_backend.load_model(copy, CPU)
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())

    model.save_pretrained(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == expected.keys()
    saved = torch_backend.load_model(tmp_path / "saved", CPU, whole=True).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in saved.items())


@pytest.mark.parametrize("prefix", ["module.bert.", "model.bert."])
def test_a_prefix_may_precede_the_architectures_own(models: Path, tmp_path: Path, prefix: str) -> None:
    folder = shutil.copytree(models / "encoder", tmp_path / "model")
    expected = load_file(folder / "model.safetensors")
    rewrite(folder, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    loaded = torch_backend.load_model(folder, CPU).base_model.state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_prefixes_are_stripped_in_shards_too(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = AutoModelForSequenceClassification.from_pretrained(models / "encoder", num_labels=1)
    model.save_pretrained(folder, max_shard_size="20KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {f"_orig_mod.{name}": file for name, file in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for file in set(index["weight_map"].values()):
        tensors = load_file(folder / file)
        save_file({f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}, folder / file)
    loaded = torch_backend.load_model(folder, CPU, whole=True).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())
    (folder / file).unlink()
    with pytest.raises(InputError, match=rf"index.json: names {file}, but .* has no such file"):
        torch_backend.load_model(folder, CPU)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "0.auto_model.", "model.bert."])
def test_the_retriever_strips_them_too(models: Path, tmp_path: Path, prefix: str) -> None:
    folder = shutil.copytree(models / "encoder", tmp_path / "model")
    rewrite(folder, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    texts = ["red sofa", "blue lamp"]
    expected = Retriever(str(models / "encoder"), threads=1).embed(texts)
    np.testing.assert_array_equal(Retriever(str(folder), threads=1).embed(texts), expected)


def test_a_duplicate_name_is_refused(copy: Path) -> None:
    rewrite(copy, lambda tensors: tensors | {f"module.{name}": tensor.clone() for name, tensor in tensors.items()})
    with pytest.raises(InputError, match=r"the tensors \S+ and \S+ are both \S+$"):
        torch_backend.load_model(copy, CPU)


# Losses -----------------------------------------------------------------------------------------------------------


def refusals(folder: Path) -> Iterator[str]:
    """What loading, and the check that reads no weights, say."""
    for act in (lambda: torch_backend.load_model(folder, CPU), lambda: check_weights(str(folder))):
        with pytest.raises(InputError) as raised:
            act()
        assert "\n" not in str(raised.value) and str(folder) in str(raised.value)
        yield str(raised.value)


def test_missing_layers_are_refused(copy: Path) -> None:
    rewrite(copy, lambda tensors: {name: tensor for name, tensor in tensors.items() if not in_layer(name, 1)})
    missing, total = (16, 41) if copy.name == "encoder" else (9, 21)
    for message in refusals(copy):
        assert re.search(rf"{missing} of {total} tensors are missing from the weights \(\S+layers?\.1\.\S+, ", message)
    with pytest.raises(InputError, match=r"the weights lack 1 of 2 layers \(number 1\), which would be random"):
        weights.check_depth(copy)  # what preflight knows without torch


def test_layers_beyond_the_configuration_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    number = 16 if copy.name == "encoder" else 9
    for message in refusals(copy):
        assert re.search(rf": {number} tensors are unknown to config.json's architecture \(\S+layers?\.1\.", message)


def test_a_wrong_shape_is_refused(copy: Path) -> None:
    rewrite(
        copy,
        lambda tensors: {
            name: tensor[:7].clone() if "embed" in name and "norm" not in name.lower() else tensor
            for name, tensor in tensors.items()
        },
    )
    for message in refusals(copy):
        assert re.search(r"\d of \d+ tensors have another shape \(\S+ is \[\d, 32\], expected \[\d+, 32\]\)", message)


def test_a_foreign_prefix_is_refused_by_name(copy: Path) -> None:
    rewrite(copy, lambda tensors: {f"student_net.{name}": tensor for name, tensor in tensors.items()})
    for message in refusals(copy):
        assert re.search(r": \d+ of \d+ tensors are missing from the weights", message)


def test_weights_that_cannot_be_read_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"no weights")
    for message in refusals(copy):
        assert "model.safetensors: not readable as safetensors" in message


def test_a_missing_pooler_is_not_refused(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "encoder", tmp_path / "model")
    rewrite(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if "pooler" not in name})
    torch_backend.load_model(folder, CPU)


FAMILIES = (
    "albert bert camembert deberta-v2 distilbert electra funnel gemma2 gpt2 llama modernbert mpnet qwen3 roberta "
    "xlm-roberta"
)


@pytest.mark.parametrize("family", FAMILIES.split())
@pytest.mark.parametrize("part", ["base", "language"])
def test_the_heads_of_known_architectures_may_be_missing(family: str, part: str, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"vocab_size": 100, "num_key_value_heads": 4, "head_dim": 8, "embedding_size": 32}
    if family == "funnel":
        shape = {"d_model": 32, "d_inner": 64, "n_head": 4, "d_head": 8, "block_sizes": [1, 1], "vocab_size": 100}
    config = AutoConfig.for_model(family, **shape, pad_token_id=1, bos_token_id=2, eos_token_id=3)
    config.architectures = ["FunnelModel"] if family == "funnel" else None
    decoder = family in ("gemma2", "gpt2", "llama", "qwen3")
    language = AutoModelForCausalLM if decoder else AutoModelForMaskedLM
    saved = (AutoModel if part == "base" else language).from_config(config)
    saved.save_pretrained(tmp_path)
    weights.check_depth(tmp_path)
    torch.manual_seed(1)
    expected = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1).state_dict()
    torch.manual_seed(1)
    loaded = pretrained.load(tmp_path, num_labels=1)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    loaded.save_pretrained(tmp_path / "ours")
    pretrained.load(tmp_path / "ours", whole=True)


def test_nothing_may_be_missing_from_what_a_stage_saved(models: Path, tmp_path: Path) -> None:
    torch_backend.load_model(models / "encoder", CPU).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(models / "encoder" / name, tmp_path)
    encoder = load_encoder(tmp_path, Text())
    describe(tmp_path, role="student", encoder=encoder, text=Text(), tokens=512, base="encoder")
    Scorer.load(tmp_path, Compute(device="cpu"), backend="torch")
    rewrite(tmp_path, lambda tensors: {name: tensor for name, tensor in tensors.items() if "classifier" not in name})
    with pytest.raises(InputError, match=r"2 of 41 .* \(classifier.bias, classifier.weight\); expected every tensor:"):
        Scorer.load(tmp_path, Compute(device="cpu"), backend="torch")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, tensor: None if in_layer(name, 1) else tensor, "16 of 37 tensors are missing from the weights"),
        (
            lambda name, tensor: tensor[:, :8].clone() if "word" in name else tensor,
            r"is \[\d+, 8\], expected \[\d+, 32\]",
        ),
    ],
)
def test_the_retriever_refuses_them_too(models: Path, tmp_path: Path, change: Callable, message: str) -> None:
    folder = shutil.copytree(models / "encoder", tmp_path / "model")
    rewrite(
        folder,
        lambda tensors: {name: new for name, old in tensors.items() if (new := change(name, old)) is not None},
    )
    for act in (lambda: Retriever(str(folder)), lambda: bi_encoder.check(str(folder))):
        with pytest.raises(InputError, match=message):
            act()


# Code -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(models: Path, tmp_path: Path) -> Path:
    """A model whose code writes a file where it is run."""
    folder = shutil.copytree(models / "encoder", tmp_path / "hostile")
    proof = tmp_path / "proof"
    (folder / "code.py").write_text(
        f"open({str(proof)!r}, 'w').close()\nfrom transformers import BertConfig as Config, BertModel as Model\n"
        "from transformers import BertForSequenceClassification as Classifier, BertTokenizerFast as Words\n"
    )
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "own"}
    config["auto_map"] = {
        "AutoConfig": "code.Config",
        "AutoModel": "code.Model",
        "AutoModelForSequenceClassification": "code.Classifier",
        "AutoTokenizer": "code.Words",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


ACTS = {
    "preflight": "from distilrank.modeling import references; references.check(folder)",
    "digest": "from distilrank.modeling import references; references.digest(folder)",
    "resolve": "from distilrank.modeling import references; references.resolve(folder)",
    "load": "from distilrank.modeling import torch_backend, runtime; from distilrank import config\n"
    "torch_backend.load_model(Path(folder), runtime.setup_runtime(config.Compute(device='cpu')))",
    "retriever": "from distilrank.modeling import bi_encoder; bi_encoder.Retriever(folder)",
    "export": "from distilrank.student import export; export._load(Path(folder))",
    "tokenizer": "from distilrank.modeling import pretrained; pretrained.inputs(Path(folder), None)",
}


@pytest.mark.parametrize("closed", [False, True])
def test_code_of_a_model_is_never_run(closed: bool, hostile: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom distilrank.core.errors import InputError\nfolder = sys.argv[1]\n"
        "for name, act in eval(sys.argv[2]).items():\n"
        "    try:\n        exec(act)\n    except InputError as error:\n        print(name, error, sep=': ')\n"
        "if sys.stdin: print('left', repr(sys.stdin.read()))"
    )
    reader, writer = os.pipe()
    os.write(writer, b"y\n")
    os.close(writer)
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    result = subprocess.run(
        [sys.executable, "-c", script, str(hostile), repr(ACTS)],
        stdin=reader,
        preexec_fn=(lambda: os.close(0)) if closed else None,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    os.close(reader)
    *lines, last = result.stdout.splitlines() + ["closed"] * closed
    assert result.returncode == 0, result.stderr
    assert [line.split(": config.json has the key 'auto_map', which names code")[0] for line in lines] == [
        f"{act}: {hostile}" for act in ACTS
    ]
    assert last == ("closed" if closed else "left 'y\\n'"), "standard input was read"
    assert not (tmp_path / "proof").exists()


def test_the_tokenizers_code_is_refused_by_its_file(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "encoder", tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"auto_map": ["code.Words", None]}))
    for act in (check_reference, resolve):
        with pytest.raises(InputError, match=r"model: tokenizer_config.json has the key 'auto_map'"):
            act(str(folder))


LOADERS = {"from_pretrained", "from_config", "load_dataset", "CrossEncoder", "SentenceTransformer", "pipeline"}
"""Calls that can run code which comes with a model or a data set."""


def calls(source: str) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            ours = name == "pipeline" and getattr(owner, "id", "") != "transformers"  # kfp's and the project's own
            if name in LOADERS and not ours:
                yield node


def is_safe(call: ast.Call) -> bool:
    return any(
        word.arg == "trust_remote_code" and isinstance(word.value, ast.Constant) and word.value.value is False
        for word in call.keywords
    )


def test_every_call_that_could_run_code_forbids_it() -> None:
    unsafe, number = [], 0
    for folder in ("src", "components", "pipelines", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for call in calls(path.read_text()):
                number += 1
                if not is_safe(call):
                    unsafe.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert not unsafe, "calls without trust_remote_code=False"
    assert number >= 9, "the search sees the calls that exist"
    assert [is_safe(call) for call in calls("A.from_pretrained(x)\nf(CrossEncoder(x, trust_remote_code=True))")] == [
        False,
        False,
    ]
