"""Every architecture works in every role, or is refused by name before anything is paid for."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from distilrank import rehearsal
from distilrank.config import Compute, Export, Lora, Student, Teacher, TeacherText, Text, parse
from distilrank.core.errors import InputError
from distilrank.modeling import bi_encoder, encoding, pretrained, torch_backend
from distilrank.modeling import references as references
from distilrank.modeling.adapters import Adapted
from distilrank.modeling.runtime import Runtime
from distilrank.modeling.scorer import load_encoder
from distilrank.preflight.models import check_models
from tests import architectures
from tests.architectures import ARCHITECTURES
from tests.students import change

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
TOKENS = architectures.SHAPE["max_position_embeddings"]
COMPUTE = Compute(device="cpu", precision="fp32", threads=1)
BF16 = Compute(device="cpu", precision="bf16", threads=1)
CPU = Runtime(torch.device("cpu"), torch.float32, "test")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each architecture."""
    root = tmp_path_factory.mktemp("architectures")
    return {name: architectures.write(root / str(number), name) for number, name in enumerate(ARCHITECTURES)}


def cell(act: Callable[[], object]) -> str:
    """`works`, or why not."""
    try:
        act()
    except InputError as error:
        return "no: " + re.sub(r".*(config\.json|(teacher|student)\.model \S+): |, (and|a) .*", "", str(error))
    return "works"


def row(name: str, folder: Path, scratch: Path, labeled: Path) -> str:
    """A row of the table of docs/models.md."""
    text = TeacherText(max_tokens=TOKENS, template="{product}\n{query}")
    teacher = Teacher(model=str(folder), text=text, score_tokens=2**16, calibration="none")
    whole = teacher.model_copy(update={"lora": Lora(rank=0)})
    pupil = Student(model=str(folder), text=Text(max_tokens=TOKENS), calibration="none", export=Export(onnx=False))
    cells = [
        cell(lambda: rehearsal.rehearse_teacher(whole, COMPUTE, scratch)),
        cell(lambda: rehearsal.rehearse_teacher(teacher, BF16, scratch)),
        cell(lambda: rehearsal.rehearse_student(pupil, COMPUTE, labeled)),
        cell(lambda: rehearsal.rehearse_student(pupil, BF16, labeled)),
        cell(lambda: bi_encoder.Retriever(str(folder), threads=1).embed(["red sofa"])),
    ]
    return f"| {name} | `{ARCHITECTURES[name].model_type}` | {' | '.join(cells)} |"


def test_the_page_documents_each_architecture(folders: dict[str, Path], tmp_path: Path) -> None:
    scratch, labeled = tmp_path / "teachers", tmp_path / "students"
    for folder in (scratch, labeled):
        rehearsal.write_data(folder, TOKENS)
    bert = Teacher(model=str(next(iter(folders.values()))), text=TeacherText(max_tokens=TOKENS))
    rehearsal.rehearse_teacher(bert, Compute(device="cpu", precision="fp32", threads=1), labeled)
    table = [row(name, folder, scratch, labeled) for name, folder in folders.items()]
    print("\n".join(table))
    assert [
        line for line in PAGE.read_text().splitlines() if re.match(r"\| .* \| `(?!model_type)[\w-]+` \|", line)
    ] == table


# Teachers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DistilBERT", "GPT-2", "DeBERTa"])
def test_adapters_of_each_kind_of_layer_are_merged_as_they_trained(folders: dict[str, Path], name: str) -> None:
    torch.manual_seed(1)
    adapted = Adapted(torch_backend.load_model(folders[name], CPU), Lora(rank=2))
    trained = adapted.trained()
    heads = {"DistilBERT": ("pre_classifier", "classifier"), "GPT-2": ("score",), "DeBERTa": ("pooler", "classifier")}
    for head in heads[name]:
        assert any(f".{head}.modules_to_save" in weight for weight in trained), "a new head trains as a whole"
        assert not any(f".{head}.lora" in weight for weight in trained)
    with torch.no_grad():
        for name_of_weight, weight in trained.items():
            if "lora_B" in name_of_weight:
                weight.normal_()
    adapted.fold()
    ids = torch.arange(1, 9)[None]
    adapted.model.config.pad_token_id = 0
    expected = adapted.model.eval()(input_ids=ids).logits
    torch.testing.assert_close(adapted.merged(None).eval()(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_pattern_of_targets_is_saved_as_it_is(folders: dict[str, Path], tmp_path: Path) -> None:
    pattern = r".*layers\.1\..*(q|v)_proj"
    adapted = Adapted(torch_backend.load_model(folders["Mistral"], CPU), Lora(rank=2, targets=pattern))
    assert all(".layers.1." in name for name in adapted.trained() if "lora" in name)
    adapted.merged(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == pattern


def test_targets_that_name_a_layer_are_rehearsed_with_all_layers(folders: dict[str, Path], tmp_path: Path) -> None:
    rehearsal.write_data(tmp_path, TOKENS)
    model = {"model": str(folders["Qwen 3.5"]), "text": TeacherText(max_tokens=TOKENS, template="{product} {query}")}
    compute = Compute(device="cpu", precision="fp32", threads=1)
    rehearsal.rehearse_teacher(Teacher(**model, lora=Lora(rank=2, targets=r".*layers\.1\..*_proj")), compute, tmp_path)
    with pytest.raises(InputError, match=r"teacher\.model '.*': teacher\.lora\.targets '.*layers.*4.*: peft cannot"):
        wrong = Lora(rank=2, targets=r".*layers\.4\..*_proj")
        rehearsal.rehearse_teacher(Teacher(**model, lora=wrong), compute, tmp_path)


@pytest.mark.parametrize("name", ["Gemma 3 4B", "Qwen 3.5"])
def test_of_a_model_that_reads_images_the_text_model_is_taken(folders: dict[str, Path], name: str, tmp_path) -> None:
    model = torch_backend.load_model(folders[name], CPU)
    whole = AutoModel.from_pretrained(folders[name]).language_model.state_dict()
    taken = model.base_model.state_dict()
    assert taken.keys() == whole.keys() and all(torch.equal(taken[key], whole[key]) for key in whole)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.model_type == f"{ARCHITECTURES[name].model_type}_text"
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in again.state_dict().items())


def test_a_configuration_that_leaves_out_defaults_has_room(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["Gemma 3 4B"], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]["max_position_embeddings"], config["text_config"]["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_encoder(folder, TeacherText(max_tokens=256)).max_tokens == 256


def test_a_token_without_an_embedding_is_refused_only_where_it_can_occur(folders: dict[str, Path]) -> None:
    folder = folders["Gemma 3 1B"]
    encoder = load_encoder(folder, TeacherText(max_tokens=TOKENS, template="{product} {query}"))
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    query = encoding.neutralize("a <image_soft_token>", encoder.special)
    assert encoder.encode([query], ["lamp"]).ids.max() < size
    with pytest.raises(InputError, match=rf"its largest token id is {size}, but config\.json's vocab_size is {size}"):
        load_encoder(folder, TeacherText(max_tokens=TOKENS, template="<image_soft_token>{product} {query}"))


ATTENTION = {"MPNet": "eager", "DeBERTa-v3": "eager", "Gemma 2": "eager", "RoBERTa": "sdpa", "Gemma 3 1B": "sdpa"}


@pytest.mark.parametrize("name", ATTENTION)
def test_on_a_gpu_the_attention_is_one_that_the_architecture_has(folders: dict[str, Path], name: str) -> None:
    accelerator = Runtime(torch.device("meta"), torch.float32, "test")
    assert torch_backend.load_model(folders[name], accelerator).config._attn_implementation == ATTENTION[name]


# Students -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labeled(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a student is rehearsed with."""
    scratch = tmp_path_factory.mktemp("labeled")
    rehearsal.write_data(scratch, TOKENS)
    teacher = Teacher(model=str(folders["BERT, MiniLM"]), text=TeacherText(max_tokens=TOKENS))
    rehearsal.rehearse_teacher(teacher, COMPUTE, scratch)
    return scratch


def rehearse(folder: Path, scratch: Path, **settings) -> None:
    config = Student(model=str(folder), text=Text(max_tokens=TOKENS), export=Export(onnx=False), **settings)
    rehearsal.rehearse_student(config, COMPUTE, scratch)


def test_layers_are_left_out_of_what_is_listed_by_layer_too(folders: dict[str, Path], labeled: Path) -> None:
    rehearse(folders["ModernBERT"], labeled, layers=2)
    config = AutoConfig.from_pretrained(labeled / "student")
    assert config.num_hidden_layers == 2 and config.layer_types == ["full_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("layers", "message"), [(1, "but the 2 .* are not separate modules"), (3, "but the model has 2")]
)
def test_a_choice_of_missing_layers_is_refused(
    folders: dict[str, Path], labeled: Path, layers: int, message: str
) -> None:
    with pytest.raises(InputError, match=rf"student\.model '.*': student\.layers: {layers}, {message}"):
        rehearse(folders["ALBERT"], labeled, layers=layers)


@pytest.mark.parametrize("name", ["BERT, MiniLM", "RoBERTa"])
def test_a_configuration_without_a_pad_token_takes_the_tokenizers(
    folders: dict[str, Path], labeled: Path, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(folders[name], tmp_path / "model")
    change(folder / "config.json", pad_token_id=None)
    rehearse(folder, labeled)
    saved = json.loads((labeled / "student" / "config.json").read_text())
    assert saved["pad_token_id"] == json.loads((folders[name] / "config.json").read_text())["pad_token_id"]


def test_a_score_that_depends_on_padding_is_refused(folders: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    padded = encoding.Tokens.padded

    def unmasked(*arguments):
        batch = padded(*arguments)
        return batch | {"attention_mask": batch["attention_mask"] * 0 + 1}

    monkeypatch.setattr(encoding.Tokens, "padded", unmasked)
    rehearsal.write_data(tmp_path, TOKENS)
    teacher = Teacher(model=str(folders["MPNet"]), text=TeacherText(max_tokens=TOKENS))
    with pytest.raises(InputError, match="ignores padding"):
        rehearsal.rehearse_teacher(teacher, COMPUTE, tmp_path)


def test_what_only_a_narrow_model_cannot_do_is_not_refused(folders: dict[str, Path], labeled: Path, monkeypatch):
    monkeypatch.setattr(rehearsal, "_narrow", lambda config: setattr(config, "hidden_size", 6))  # of four heads
    rehearse(folders["ELECTRA"], labeled)
    monkeypatch.setattr(rehearsal, "MAX_WEIGHTS", 0)
    with pytest.raises(InputError, match=r"student\.model '.*': "):
        rehearse(folders["ELECTRA"], labeled)


# Rehearsal ----------------------------------------------------------------------------------------------------------

REAL = {
    "llama": {"hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 80},
    "qwen2": {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944},
    "gemma3_text": {"hidden_size": 5376, "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128},
    "deberta-v2": {"hidden_size": 1024, "num_attention_heads": 16, "relative_attention": True, "vocab_size": 128100}
    | {"pooler_hidden_size": 1024, "position_buckets": 256, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 28},
    "distilbert": {},
    "gpt2": {"n_embd": 1600, "n_head": 25, "n_layer": 48},
}


@pytest.mark.parametrize("model_type", REAL)
def test_a_model_of_any_size_is_rehearsed_as_a_small_one(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, **REAL[model_type], num_labels=1, pad_token_id=0)
    before = rehearsal._count_weights(config)
    rehearsal._shorten(config)
    rehearsal._narrow(config)
    assert rehearsal._count_weights(config) < min(before / 2, 50e6)
    kinds = set(getattr(config, "layer_types", None) or [])
    assert kinds == set(getattr(AutoConfig.for_model(model_type), "layer_types", None) or [])
    config.vocab_size = 10
    model = AutoModelForSequenceClassification.from_config(config)
    assert model(input_ids=torch.ones(2, 8, dtype=torch.long)).logits.shape == (2, 1)


# Folders ------------------------------------------------------------------------------------------------------------


def check(teacher: Path, student: Path) -> None:
    """Preflight's check of models, as it is without torch, too."""
    sections = {"teacher": {"model": str(teacher)}, "student": {"model": str(student)}}
    check_models(parse({"data": {"source": "demo_shop"}, **sections}, "test"))


@pytest.mark.parametrize("name", ["GPT-2", "Gemma 3 4B"])
def test_a_decoder_as_the_student_is_refused(folders: dict[str, Path], name: str) -> None:
    kind = ARCHITECTURES[name].model_type
    with pytest.raises(InputError, match=rf"config\.json: model_type '{kind}' is no encoder of text, and a student"):
        check(folders["BERT, MiniLM"], folders[name])


def test_a_tokenizer_that_is_missing_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["DeBERTa-v3"], tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    for pair in ((folder, folders["BERT, MiniLM"]), (folders["BERT, MiniLM"], folder)):
        with pytest.raises(InputError, match=r"tokenizer\.json: no such file, expected the tokenizer"):
            check(*pair)


FOLDERS = {
    "gptq": (
        lambda folder: change(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        r"config\.json has the key 'quantization_config' \(quant_method 'gptq'\): quantized weights cannot be trained",
    ),
    "adapter and weights": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        r"holds weights \(model\.safetensors\) and an adapter \(adapter_config\.json\), and does not say which",
    ),
    "adapter": (
        lambda folder: (
            (folder / "adapter_config.json").write_text("{}"),
            (folder / "model.safetensors").rename(folder / "adapter_model.safetensors"),
        ),
        r"holds an adapter without the model's weights, expected a whole model: merge the adapter into its base",
    ),
}


@pytest.mark.parametrize("fault", FOLDERS)
def test_a_folder_that_is_no_plain_model_is_refused(folders: dict[str, Path], tmp_path: Path, fault: str) -> None:
    folder = shutil.copytree(folders["BERT, MiniLM"], tmp_path / "model")
    damage, message = FOLDERS[fault]
    damage(folder)
    for act in (references.check, references.resolve, references.digest):
        with pytest.raises(InputError, match=message):
            act(str(folder))


@pytest.mark.parametrize("name", ["BERT, MiniLM", "RoBERTa"])
def test_a_head_with_another_number_of_labels_is_replaced(
    folders: dict[str, Path], name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    three = AutoModelForSequenceClassification.from_pretrained(folders[name], num_labels=3)
    three.save_pretrained(tmp_path)
    model = torch_backend.load_model(tmp_path, CPU)
    heads = [module for module in model.classifier.modules() if getattr(module, "out_features", 0) == 1]
    assert len(heads) == 1 and heads[0].weight.std() > 0 and model.config.num_labels == 1
    assert "its head has 3 labels: a new head with 1 logit is trained" in capsys.readouterr().out
    base, expected = model.base_model.state_dict(), three.base_model.state_dict()
    assert all(torch.equal(base[key], expected[key]) for key in expected)
    with pytest.raises(InputError, match=r"have another shape \(classifier\S* is \[3\], expected \[1\]\)"):
        pretrained.load(tmp_path, whole=True, num_labels=1)
