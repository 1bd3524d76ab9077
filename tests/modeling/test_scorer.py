"""The scorer as a library: its backends, its tokens beside transformers', whole files, and what it needs installed."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import distilrank
from distilrank import score_files
from distilrank.config import Compute, TeacherText, Text
from distilrank.core import artifacts
from distilrank.core.errors import InputError, RunStopped
from distilrank.modeling import encoding, scorer
from distilrank.modeling import references as references
from distilrank.modeling.cache import Cache
from distilrank.modeling.scorer import DESCRIPTION, Scorer, load_encoder
from distilrank.student import export
from tests.small_pairs import ODD
from tests.students import BERT, PLATT, change, write_student
from tests.tiny_models import WORDS

CPU = Compute(device="cpu", precision="fp32", threads=1)
TEXT = Text(max_tokens=48)


def rows(count: int, seed: int = 0) -> pa.Table:
    """Queries of six products, some of them odd, with the gains that an export is judged by."""
    draw = random.Random(seed)

    def phrase(longest: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))

    queries = [phrase(4) for _ in range(count // 6 + 1)]
    return pa.table(
        {
            "query_id": [f"q{row // 6:04}" for row in range(count)],
            "query": [queries[row // 6] for row in range(count)],
            "product_id": [f"p{row % 6}" for row in range(count)],
            "title": [
                draw.choice([text for text in ODD if text]) if row % 9 == 8 else phrase(12) for row in range(count)
            ],
            "product_type": [phrase(1) if row % 3 else None for row in range(count)],
            "brand": ["acme" if row % 2 else "" for row in range(count)],
            "gain": [draw.choice((0.0, 0.5, 1.0)) for _ in range(count)],
        }
    )


def lists(table: pa.Table) -> tuple[list[str], list[list[dict[str, str | None]]]]:
    queries, products = [], []
    for row in table.to_pylist():
        if not queries or queries[-1] != row["query"]:
            queries.append(row["query"])
            products.append([])
        products[-1].append({name: row[name] for name in ("title", "product_type", "brand")})
    return queries, products


@pytest.fixture(scope="module")
def student(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_student(
        tmp_path_factory.mktemp("scorer") / "student", models, TEXT, tokens=4096, **BERT, max_position_embeddings=64
    )
    export.export(folder, rows(60), variants=("qint8_avx512_vnni",), max_ndcg_loss=1)
    return folder


# Tokens ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert"])
def test_a_pair_of_as_many_tokens_as_there_are_positions_is_scored(models: Path, tmp_path: Path, family: str) -> None:
    text = Text(max_tokens=96, fields=("title",))
    folder = write_student(
        tmp_path / family, models, text, tokens=4096, family=family, **BERT, max_position_embeddings=50
    )
    ours = Scorer.load(folder, CPU)
    lost = 50 - ours.encoder.limit
    assert lost == (1 if family == "roberta" else 0)  # the pad token is 0
    longest = pa.table({"query": ["sofa"], "title": ["lamp " * 90]})
    assert encoding.encode_table(ours.encoder, longest, text).lengths.tolist() == [50 - lost]
    assert np.isfinite(ours.score(longest)).all()
    with pytest.raises(InputError, match=f"at most {50 - lost}"):
        ours.score(pa.table({"query": ["sofa " * 50], "title": ["lamp " * 90]}))


def _without(path: Path, *names: str) -> None:
    artifacts.write_json(path, {name: value for name, value in artifacts.read_json(path).items() if name not in names})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json: no such file, expected the tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), r"tokenizer\.json: not a tokenizer \("),
        (
            lambda folder: change(folder / "config.json", vocab_size=40),
            r"tokenizer\.json: its largest token id is \d+, but config\.json's vocab_size is 40",
        ),
        (
            lambda folder: change(folder / "config.json", max_position_embeddings=11),
            r"takes 11 tokens of a pair, of which 3 are not text; expected at least 12",
        ),
        (lambda folder: _without(folder / "config.json", "max_position_embeddings"), "max_position_embeddings is None"),
        (lambda folder: (folder / DESCRIPTION).write_text("{}"), r"distilrank\.json: has no section 'text'"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: no such file"),
        (
            lambda folder: (folder / "config.json").write_text("[1]"),
            r"holds \[1\], expected a JSON object",
        ),
        (
            lambda folder: (folder / "onnx" / "model.onnx").unlink(),
            r"onnx/model\.onnx: no such file, which the backend onnx reads; the student stage exports it",
        ),
        (lambda folder: (folder / "onnx" / "model.onnx").write_bytes(b"no"), r"model\.onnx: not a readable ONNX model"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(
    student: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = shutil.copytree(student, tmp_path / "student")
    Scorer.load(folder, backend="onnx")
    damage(folder)
    with pytest.raises(InputError, match=message):
        Scorer.load(folder, backend="onnx")


@pytest.mark.parametrize(
    ("compute", "backend", "message"),
    [
        (Compute(), "jax", "backend 'jax': unknown, expected one of auto, torch, onnx, onnx-int8"),
        (Compute(device="cuda"), "onnx", r"compute\.device: 'cuda' with the backend onnx, which runs on cpu"),
        (Compute(precision="bf16"), "onnx-int8", r"compute\.precision: 'bf16' with the backend onnx-int8"),
    ],
)
def test_a_backend_that_cannot_is_refused(student: Path, compute: Compute, backend: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Scorer.load(student, compute, backend=backend)


# Backends -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_backends_agree(student: Path, threads: int) -> None:
    table = rows(200, seed=1)
    expected = Scorer.load(student, CPU, backend="torch").score(table)
    assert expected.dtype == np.float32 and expected.std() > 0.1
    compute = Compute(threads=threads)
    np.testing.assert_allclose(Scorer.load(student, compute, backend="onnx").score(table), expected, atol=1e-4)
    rough = Scorer.load(student, compute, backend="onnx-int8").score(table)
    assert np.abs(rough - expected).max() > 1e-3 and np.corrcoef(rough, expected)[0, 1] > 0.97


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_lists_are_scored_as_rows_in_any_order_and_company(student: Path, backend: str) -> None:
    table = rows(150, seed=2)
    ours = Scorer.load(student, CPU, backend=backend)
    whole = ours.score(table)
    queries, products = lists(table)
    together = ours.score_lists(queries, products)
    assert [len(row) for row in together] == [len(row) for row in products]
    np.testing.assert_allclose(np.concatenate(together), whole, atol=1e-5)
    turned = ours.score_lists(queries[::-1], [row[::-1] for row in products[::-1]])
    np.testing.assert_allclose(np.concatenate(turned)[::-1], whole, atol=1e-5)
    alone = [ours.score_lists([query], [own])[0] for query, own in zip(queries, products)]
    np.testing.assert_allclose(np.concatenate(alone), whole, atol=1e-5)
    small = Scorer.load(student, CPU, backend=backend, tokens=1)
    np.testing.assert_allclose(np.concatenate(small.score_lists(queries, products)), whole, atol=1e-5)


def test_lists_may_be_empty(student: Path) -> None:
    ours = Scorer.load(student, CPU, backend="onnx")
    assert ours.score_lists([], []) == []
    first, second, third = ours.score_lists(["sofa", "lamp", "sofa"], [[], [{"title": "red lamp"}, {}], []])
    assert (first.shape, second.shape, third.shape) == ((0,), (2,), (0,))
    assert ours.score(rows(6).slice(0, 0)).shape == (0,)


def test_a_decoder_scores_lists_too(models: Path, tmp_path: Path) -> None:
    text = TeacherText(max_tokens=96)
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(models / "decoder", num_labels=1)
    encoder = load_encoder(models / "decoder", text)
    model.config.pad_token_id = encoder.pad_token_id
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(models / "decoder").save_pretrained(tmp_path)
    scorer.describe(tmp_path, role="teacher", encoder=encoder, text=text, tokens=512, base="tiny")
    table = rows(60, seed=3)
    ours = Scorer.load(tmp_path, CPU)
    np.testing.assert_allclose(np.concatenate(ours.score_lists(*lists(table))), ours.score(table), atol=1e-5)


def test_the_probability_is_the_calibrated_one(student: Path, tmp_path: Path) -> None:
    logits = np.array([-3.0, 0.5, 800.0, -800.0], np.float32)
    ours = Scorer.load(student, CPU, backend="onnx")
    assert ours.description["calibration"] == PLATT and ours.description["role"] == "student"
    with np.errstate(all="raise", under="ignore"):
        probabilities = ours.probability(logits)
    np.testing.assert_allclose(probabilities, [1 / (1 + np.exp(7)), 0.5, 1, 0], rtol=1e-12)
    folder = shutil.copytree(student, tmp_path / "student")
    change(folder / DESCRIPTION, calibration={"method": "none"})
    uncalibrated = Scorer.load(folder, CPU, backend="onnx")
    assert uncalibrated.probability(logits) is None
    np.testing.assert_allclose(
        uncalibrated.estimate(logits), [1 / (1 + np.exp(3)), 1 / (1 + np.exp(-0.5)), 1, 0], rtol=1e-12
    )


def test_scores_that_are_not_finite_stop_and_are_named(student: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(student, tmp_path / "student")
    weights = load_file(folder / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][tokenizer.convert_tokens_to_ids("drill")] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    broken = Scorer.load(folder, CPU, backend="torch")
    table = pa.table({"query": ["sofa", "lamp", "lamp"], "title": ["red", "blue", "drill"]})
    with pytest.raises(RunStopped, match=r"^row 3, query 'lamp': its score is nan, and 1 of 3 scores are not finite"):
        broken.score(table)
    with pytest.raises(RunStopped, match=r"^product 2 of query 'lamp': its score is nan"):
        broken.score_lists(["sofa", "lamp"], [[{"title": "red"}], [{"title": "blue"}, {"title": "drill"}]])
    pq.write_table(table, tmp_path / "pairs.parquet")
    with pytest.raises(RunStopped, match=r"pairs\.parquet, of the rows from 1: row 3, query 'lamp'"):
        score_files.score(
            str(folder), tmp_path / "pairs.parquet", tmp_path / "out.csv", "registry", CPU, backend="torch"
        )
    assert not list(tmp_path.glob("*out.csv*"))


@pytest.mark.parametrize("blank", ["", "  \t", "\u200e\u3164 \U000e0100", None])
def test_an_empty_query_is_refused(student: Path, blank: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "CHUNK_ROWS", 2)
    ours = Scorer.load(student, CPU, backend="onnx")
    with pytest.raises(InputError, match=r"^row 4: query is empty"):
        ours.score(pa.table({"query": ["sofa", "lamp", "sofa", blank], "title": ["x"] * 4}))
    if blank is not None:
        with pytest.raises(InputError, match=r"^query 2 of 2 is empty"):
            ours.score_lists(["sofa", blank], [[{"title": "x"}], []])


# Cache ----------------------------------------------------------------------------------------------------------------


def test_products_that_were_seen_are_not_tokenized_again(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Scorer.load(student, CPU, backend="onnx")
    queries, products = lists(rows(60, seed=4))
    first = ours.score_lists(queries, products)
    different = len({tuple(product.values()) for row in products for product in row})
    assert (ours.products.hits, ours.products.misses, len(ours.products)) == (0, different, different)

    def refuse(*_: object) -> None:
        raise AssertionError("rendered again")

    monkeypatch.setattr(ours.encoder, "render", refuse)
    again = ours.score_lists(queries, products)
    assert (ours.products.hits, ours.products.misses) == (different, different)
    for scores, other in zip(first, again):
        np.testing.assert_array_equal(scores, other)


@pytest.mark.parametrize("size", [0, 5])
def test_a_small_cache_changes_nothing(student: Path, size: int) -> None:
    queries, products = lists(rows(60, seed=5))
    small = Scorer.load(student, CPU, backend="onnx", cached_products=size)
    expected = Scorer.load(student, CPU, backend="onnx").score_lists(queries, products)
    for _ in range(2):
        for scores, other in zip(small.score_lists(queries, products), expected):
            np.testing.assert_array_equal(scores, other)
        assert len(small.products) == size


def test_only_the_tokens_that_the_model_takes_of_a_long_product_are_cached(student: Path) -> None:
    ours = Scorer.load(student, CPU, backend="onnx")
    ours.score_lists(["sofa"], [[{"title": "red sofa"}]])
    tracemalloc.start()
    try:
        for number in range(20):
            ours.score_lists(["sofa"], [[{"title": f"{number} " + "red sofa " * 10_000}]])
        traced_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(ours.products) == 21 and traced_bytes < 90_000  # one of the texts alone


def test_products_that_differ_in_a_field_are_not_confused(student: Path) -> None:
    ours = Scorer.load(student, CPU, backend="onnx")
    products = [{"title": "red", "brand": "sofa"}, {"title": "red sofa"}, {"title": "red", "product_type": "sofa"}]
    ours.score_lists(["sofa"], [products])
    assert (ours.products.misses, len(ours.products)) == (3, 3)


def test_the_cache_drops_the_least_recently_used() -> None:
    cache: Cache[int, str] = Cache(3)
    made: list[int] = []

    def make(keys: list[int]) -> list[str]:
        made.extend(keys)
        return [str(key) for key in keys]

    assert cache.get([1, 2, 3], make) == ["1", "2", "3"]
    assert cache.get([1], make) == ["1"]
    assert cache.get([4, 1], make) == ["4", "1"]
    assert cache.get([1, 3, 4], make) == ["1", "3", "4"] and made == [1, 2, 3, 4]
    assert cache.get([2], make) == ["2"] and made == [1, 2, 3, 4, 2]
    assert (cache.hits, cache.misses) == (5, 5)


# What it needs --------------------------------------------------------------------------------------------------------

ALONE = """
import importlib.abc, json, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "scipy", "sklearn", "onnx", "pandas"):
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
import importlib.util
from pathlib import Path
from distilrank import Scorer, score_files
from distilrank.config import Compute
folder = Path(sys.argv[1])
scorer = Scorer.load(folder, backend="onnx")
logits = scorer.score_lists(["red sofa"], [[{"title": "sofa red"}, {"title": "lamp", "brand": "acme"}]])[0]
source, output = map(Path, sys.argv[2:])
score_files.score(str(folder), source, output, "registry", Compute(), backend="onnx", probability=True)
print(json.dumps([logits.tolist(), scorer.probability(logits).tolist()]))
"""


def test_scoring_needs_neither_torch_nor_transformers(student: Path, tmp_path: Path) -> None:
    pq.write_table(rows(30), tmp_path / "pairs.parquet")
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, student, tmp_path / "pairs.parquet", tmp_path / "scores.parquet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    logits, probability = json.loads(ran.stdout.splitlines()[-1])
    ours = Scorer.load(student, CPU, backend="torch")
    [expected] = ours.score_lists(["red sofa"], [[{"title": "sofa red"}, {"title": "lamp", "brand": "acme"}]])
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_allclose(probability, ours.probability(expected), atol=1e-4)
    written = pq.read_table(tmp_path / "scores.parquet")
    np.testing.assert_allclose(written["score"].to_numpy(), ours.score(rows(30)), atol=1e-4)
    np.testing.assert_allclose(
        written["probability"].to_numpy(), ours.probability(written["score"].to_numpy()), atol=1e-6
    )


def test_without_torch_the_backend_is_onnx(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Scorer.load(student, CPU).backend.name == "torch"
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    assert Scorer.load(student, CPU).backend.name == "onnx"
    with pytest.raises(InputError, match="torch is not installed here, expected the backend onnx"):
        Scorer.load(student, CPU, backend="torch")


def test_the_package_gives_its_scorer() -> None:
    assert distilrank.Scorer is Scorer
    with pytest.raises(AttributeError, match="no attribute 'Scores'"):
        distilrank.Scores  # noqa: B018


# Files ----------------------------------------------------------------------------------------------------------------


def write_pairs(table: pa.Table, path: Path) -> Path:
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pq.write_table(table, path, row_group_size=7)
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_in_pieces_is_scored_as_the_whole(
    student: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = rows(240, seed=6).append_column("score", pa.array(["old"] * 240))
    source = write_pairs(table, tmp_path / f"pairs.{kind}")
    whole = Scorer.load(student, CPU, backend="onnx").score(table)
    monkeypatch.setattr("distilrank.data.sources.reading.BATCH_ROWS", 16)
    monkeypatch.setattr("distilrank.data.sources.reading._BLOCK_BYTES", 2000)
    pieces = [len(part) for part, _ in score_files._batches(source)]
    assert len(pieces) > 8 and sum(pieces) == 240
    for name in ("scores.parquet", "scores.csv"):
        output = tmp_path / "new" / name
        assert score_files.score(str(student), source, output, "registry", CPU, backend="onnx", probability=True) == 240
        written = pq.read_table(output) if name.endswith("parquet") else pyarrow.csv.read_csv(output)
        assert written.column_names == [*table.column_names[:-1], "score", "probability"]
        assert written["product_id"].to_pylist() == table["product_id"].to_pylist()
        np.testing.assert_allclose(written["score"].to_numpy(), whole, atol=1e-5)
        np.testing.assert_allclose(written["probability"].to_numpy(), 1 / (1 + np.exp(1 - 2 * whole)), atol=1e-5)
        assert [path.name for path in output.parent.iterdir() if path.name.startswith(".")] == []


def test_what_cannot_be_written_is_refused_before_scoring(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scorer, "score", lambda *_: pytest.fail("scored"))
    source = write_pairs(rows(12), tmp_path / "pairs.parquet")
    nested = write_pairs(rows(12).append_column("tags", pa.array([["a"]] * 12)), tmp_path / "nested.parquet")
    plain = shutil.copytree(student, tmp_path / "plain")
    change(plain / DESCRIPTION, calibration={"method": "none"})
    (tmp_path / "file").write_text("x")
    for model, input, output, message in (
        (student, source, tmp_path / "out.txt", r"out\.txt: expected a \.csv or \.parquet file"),
        (student, source, tmp_path / "file" / "out.csv", r"file/out\.csv: cannot be written"),
        (student, nested, tmp_path / "out.csv", r"out\.csv: CSV cannot hold column 'tags' \(list<.*expected \.parquet"),
        (plain, source, tmp_path / "out.csv", "plain: is not calibrated"),
        (student, tmp_path / "absent.csv", tmp_path / "out.csv", r"absent\.csv: no such file"),
    ):
        with pytest.raises(InputError, match=message):
            score_files.score(str(model), input, output, "registry", CPU, backend="onnx", probability=True)
    assert not list(tmp_path.glob("*out*"))


KILLED_AT_THE_SECOND_PIECE = """
import os, signal, sys
from distilrank import cli
from distilrank.modeling.scorer import Scorer
from distilrank.data.sources import reading

reading.BATCH_ROWS, reading._BLOCK_BYTES = 100, 10_000
score, scored = Scorer.score, []

def killed(scorer, shown, told):
    if scored:
        os.kill(os.getpid(), signal.SIGKILL)
    scored.append(len(shown))
    return score(scorer, shown, told)

Scorer.score = killed
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_killed_scoring_leaves_the_existing_file(student: Path, tmp_path: Path) -> None:
    source = write_pairs(rows(1200, seed=7), tmp_path / "pairs.csv")
    output = tmp_path / "scores" / "out.parquet"
    artifacts.write_text(output, "before")
    options = ["--model", student, "--input", source, "--output", output, "--backend", "onnx"]
    run = subprocess.run([sys.executable, "-c", KILLED_AT_THE_SECOND_PIECE, "score", *options], capture_output=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert list(output.parent.glob(".*.partial")), "it was killed before it had begun to write"
    assert output.read_text() == "before"
