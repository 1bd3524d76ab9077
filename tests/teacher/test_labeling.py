"""Labeling: exactly once whatever is killed, from known inputs only, and at a known cost."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, settings

from distilrank.config import Compute, Label, TeacherText
from distilrank.core import artifacts, schemas
from distilrank.core.errors import InputError
from distilrank.modeling import scorer, torch_backend
from distilrank.modeling.runtime import setup_runtime
from distilrank.teacher import label_manifest, labeling
from tests import label_victims as victims

ROOT = Path(__file__).parents[2]
COMPUTE = Compute(device="cpu", precision="fp32", threads=1)
SHARDS = ("shard-00000", "shard-00001")
ROWS = 75
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "candidates"
    for seed, name in enumerate(SHARDS):
        schemas.write(victims.candidates(ROWS, seed=seed), folder / f"{name}.parquet", schemas.CANDIDATES)
    artifacts.seal(folder)
    return folder


@pytest.fixture(scope="module")
def taught(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with a head of random weights."""
    return _teacher(models, tmp_path_factory.mktemp("taught") / "teacher")


def _teacher(models: Path, output: Path, text: TeacherText = TeacherText()) -> Path:  # noqa: B008 - it is frozen
    torch.manual_seed(0)
    model = torch_backend.load_model(models / "decoder", setup_runtime(COMPUTE))
    torch.nn.init.normal_(model.score.weight)
    encoder = scorer.load_encoder(models / "decoder", text)
    model.config.pad_token_id = encoder.pad_token_id
    model.save_pretrained(output)
    torch_backend.save_tokenizer(encoder, output)
    scorer.describe(output, role="teacher", encoder=encoder, text=text, tokens=4096, base="tiny")
    artifacts.write_json(output / scorer.METRICS, {"tokens_per_pair": 30.0})
    artifacts.seal(output)
    return output


@pytest.fixture(scope="module")
def labeled(prepared: Path, taught: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp("labeled") / shard for shard in SHARDS]
    for folder in folders:
        labeling.label(
            Label(part_rows=10), COMPUTE, shard=folder.name, candidates=prepared, teacher=taught, output=folder
        )
    return folders


@pytest.fixture
def copied(labeled: list[Path], tmp_path: Path) -> list[Path]:
    """Labels of two shards, to be damaged."""
    return [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in labeled]


LABEL_SLOWLY = """
    import sys, time
    from pathlib import Path
    from distilrank.teacher import label_parts, labeling
    from distilrank.config import Compute, Label
    keep = label_parts.LabelCheckpoints.keep
    def slow(*arguments):
        keep(*arguments)
        time.sleep(0.3)
    label_parts.LabelCheckpoints.keep = slow
    candidates, teacher, folder, output = map(Path, sys.argv[1:])
    labeling.label(Label(part_rows=10), Compute(device="cpu", precision="fp32", threads=1, checkpoint_dir=str(folder)),
                 shard="shard-00000", candidates=candidates, teacher=teacher, output=output)
"""


def _killed_after(parts: int, prepared: Path, teacher: Path, tmp_path: Path) -> list[Path]:
    """Label shard-00000 in a real process, kill it after so many parts, and return those that it has finished."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", textwrap.dedent(LABEL_SLOWLY)),
            *map(str, (prepared, teacher, tmp_path / "checkpoints", tmp_path / "killed")),
        ],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    while process.poll() is None and len(list((tmp_path / "checkpoints").rglob("part-*.parquet"))) < parts:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    return sorted((tmp_path / "checkpoints").rglob("part-*.parquet"))


def test_a_killed_teacher_resumes_and_other_inputs_start_from_scratch(
    prepared: Path, taught: Path, labeled: list[Path], models: Path, tmp_path: Path
) -> None:
    finished = _killed_after(3, prepared, taught, tmp_path)
    assert 0 < len(finished) < 8 and not (tmp_path / "killed" / "manifest.json").exists()
    (parts,) = (tmp_path / "checkpoints").iterdir()
    resuming = COMPUTE.model_copy(update={"checkpoint_dir": str(tmp_path / "checkpoints")})
    shared = {"shard": "shard-00000", "candidates": prepared}

    # Another template, another part size: not a row is taken over, and nothing of the first is touched.
    other = _teacher(models, tmp_path / "other", TeacherText(template="{product} for {query}"))
    for config, teacher in ((Label(part_rows=10), other), (Label(part_rows=9), taught)):
        labeling.label(config, resuming, **shared, teacher=teacher, output=tmp_path / "again")
        assert artifacts.read_json(tmp_path / "again" / "stage.json")["facts"]["resumed"] == 0
    assert list((tmp_path / "checkpoints").iterdir()) == [parts]

    finished[0].write_bytes(finished[0].read_bytes()[:50])  # what a failing disk may leave
    assert labeling.label(Label(part_rows=10), resuming, **shared, teacher=taught, output=tmp_path / "killed") == ROWS
    assert list((tmp_path / "checkpoints").iterdir()) == []
    facts = artifacts.read_json(tmp_path / "killed" / "stage.json")["facts"]
    assert facts["resumed"] == 10 * (len(finished) - 1)
    assert (tmp_path / "killed/labels.parquet").read_bytes() == (labeled[0] / "labels.parquet").read_bytes()
    killed, unbroken = (label_manifest.read(folder) for folder in (tmp_path / "killed", labeled[0]))
    timed = {"seconds", "rows_per_second", "device_hours"}
    for manifest in (killed, unbroken):
        assert timed <= set(manifest["work"]) and manifest.pop("digest")
        manifest["work"] = {key: value for key, value in manifest["work"].items() if key not in timed}
    assert killed == unbroken
    assert label_manifest.identity([tmp_path / "killed"]) == label_manifest.identity(labeled[:1])


def test_parts_that_were_moved_are_refused(
    prepared: Path, taught: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    calls = itertools.count()

    def interrupted(*arguments) -> np.ndarray:
        if next(calls) % 4 == 3:
            raise KeyboardInterrupt
        return torch_backend.score_encoded(*arguments)

    monkeypatch.setattr(labeling, "score_encoded", interrupted)
    shared = {"shard": "shard-00000", "candidates": prepared, "output": tmp_path / "labels"}
    compute = COMPUTE.model_copy(update={"checkpoint_dir": str(folder)})
    folders = []
    for teacher in (taught, _teacher(models, tmp_path / "other", TeacherText(max_tokens=64))):
        with pytest.raises(KeyboardInterrupt):
            labeling.label(Label(part_rows=10), compute, **shared, teacher=teacher)
        folders += set(folder.iterdir()) - set(folders)
    mine, others = folders
    shutil.rmtree(others)
    mine.rename(others)
    with pytest.raises(InputError, match=rf"^{others}/inputs.json: .*other inputs \(teacher \w+, expected \w+\)"):
        labeling.label(Label(part_rows=10), compute, **shared, teacher=tmp_path / "other")
    (others / "inputs.json").unlink()
    with pytest.raises(InputError, match=rf"^{others}/part-00000.parquet: made from other inputs"):
        labeling.label(Label(part_rows=10), compute, **shared, teacher=tmp_path / "other")


def test_a_corrupt_shard_is_named_before_any_scoring(prepared: Path, taught: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "candidates")
    shard = tmp_path / "candidates" / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    shared = {"candidates": tmp_path / "candidates", "teacher": taught, "output": tmp_path / "out"}
    with pytest.raises(InputError, match=r"shard-00001.parquet: digest \w+ differs"):
        labeling.label(Label(), COMPUTE, shard="shard-00001", **shared)
    assert not (tmp_path / "out").exists()


def test_a_manifest_records_what_was_labeled(prepared: Path, taught: Path, labeled: list[Path]) -> None:
    manifest = label_manifest.read(labeled[0])
    assert (manifest["shard"], manifest["rows"], manifest["queries"]) == ("shard-00000", ROWS, ROWS // 5)
    assert manifest["teacher"] == artifacts.verify(taught)
    assert manifest["candidates"] == artifacts.digest_file(prepared / "shard-00000.parquet")
    assert manifest["labels"] == artifacts.digest_file(labeled[0] / "labels.parquet")
    logits = schemas.read(labeled[0] / "labels.parquet", schemas.LABELS)["logit"].to_numpy()
    assert manifest["logits"]["mean"] == pytest.approx(logits.mean(), abs=1e-6)
    assert (
        manifest["logits"]["deviation"] == pytest.approx(logits.std(), abs=1e-6)
        and manifest["logits"]["min"] == logits.min()
    )
    work = manifest["work"]
    assert (work["pairs"], work["device"], work["price"]) == (ROWS, "cpu", None)
    assert work["tokens"] > 10 * ROWS and work["seconds"] > 0
    combined = label_manifest.combine(labeled[::-1])
    assert [shard["shard"] for shard in combined["shards"]] == list(SHARDS)
    assert (combined["rows"], combined["queries"], combined["work"]["pairs"]) == (2 * ROWS, 2 * ROWS // 5, 2 * ROWS)
    assert combined["work"]["tokens"] == sum(shard["work"]["tokens"] for shard in combined["shards"])


def test_the_price_of_all_shards_is_known_if_that_of_each_is(copied: list[Path]) -> None:
    for price, expected in (([0.5, 0.25], 0.75), ([0.5, None], None)):
        for folder, shard_price in zip(copied, price):
            manifest = label_manifest.read(folder)
            label_manifest.write(folder, manifest | {"work": manifest["work"] | {"price": shard_price}})
        assert label_manifest.combine(copied)["work"]["price"] == expected


def test_labels_are_rows_beside_their_candidates(prepared: Path, taught: Path, labeled: list[Path]) -> None:
    tables = list(labeling.read(labeled[::-1], prepared, taught, rows=7))
    assert max(map(len, tables)) == 7
    table = pa.concat_tables(tables)
    assert table.schema.names == [*schemas.CANDIDATES.names, "logit"]
    one_by_one = scorer.Scorer.load(taught, COMPUTE, tokens=1).score(table)
    np.testing.assert_allclose(table["logit"].to_numpy(), one_by_one, atol=1e-4)
    assert table["query_id"].to_pylist() == [
        query for shard in SHARDS for query in pq.read_table(prepared / f"{shard}.parquet")["query_id"].to_pylist()
    ]


def _edit(folder: Path, **values) -> None:
    """Change a manifest by someone who knows how to."""
    manifest = label_manifest.read(folder)
    label_manifest.write(folder, {key: value for key, value in manifest.items() if key != "digest"} | values)


def test_labels_that_do_not_fit_are_refused(prepared: Path, taught: Path, copied: list[Path], tmp_path: Path) -> None:
    def refused(message: str, folders: list[Path] = copied, candidates: Path = prepared) -> None:
        with pytest.raises(InputError, match=message):
            list(labeling.read(folders, candidates, taught))

    refused("labels of shard-00000, expected shard-00000, shard-00001", copied[:1])
    refused("labels of no shard", [])
    shutil.copytree(copied[0], tmp_path / "again")
    refused("labels of shard-00000 in more than one folder", [*copied, tmp_path / "again"])

    whole = (copied[1] / "labels.parquet").read_bytes()
    (copied[1] / "labels.parquet").write_bytes(whole[:-1])
    refused(r"shard-00001/labels.parquet: differs from the digest in .*manifest.json; the file is corrupt")
    (copied[1] / "labels.parquet").unlink()
    refused(r"shard-00001/labels.parquet: missing")
    (copied[1] / "labels.parquet").write_bytes(whole)

    edited = copied[1] / "manifest.json"
    original = edited.read_text()
    edited.write_text(original.replace(f'"rows": {ROWS}', f'"rows": {ROWS + 1}'))
    refused(rf"^{edited}: differs from the digest that it holds of itself")
    for content, message in (
        ("[]", "holds "),
        ("{}", "differs from the digest"),
        (original[:-9], "not JSON"),
        (None, "no such file"),
    ):
        edited.write_text(content) if content else edited.unlink()
        refused(rf"^{edited}: {message}")
    edited.write_text(original)

    _edit(copied[1], teacher="0" * 64)
    refused("labels of 2 different teachers")
    _edit(copied[0], teacher="0" * 64)
    refused("labels by the teacher 000000000000, expected ")
    for folder in copied:
        _edit(folder, teacher=artifacts.sealed_digest(taught))
    _edit(copied[1], candidates="0" * 64)
    refused(r"manifest.json: labels of other candidates than .*shard-00001.parquet")

    sealed = artifacts.digest_file(prepared / "shard-00001.parquet")
    swapped = schemas.read(copied[1] / "labels.parquet", schemas.LABELS).take(np.roll(np.arange(ROWS), 1))
    schemas.write(swapped, copied[1] / "labels.parquet", schemas.LABELS)
    _edit(copied[1], candidates=sealed, labels=artifacts.digest_file(copied[1] / "labels.parquet"))
    refused(r"labels.parquet: not the rows of .*shard-00001.parquet in their order")


def test_identity_depends_on_the_labels_and_not_on_their_cost(copied: list[Path]) -> None:
    before = label_manifest.identity(copied)
    assert label_manifest.identity(copied[::-1]) == before
    _edit(copied[0], work=label_manifest.read(copied[0])["work"] | {"seconds": 9.0})
    assert label_manifest.identity(copied) == before
    _edit(copied[0], labels="0" * 64)
    assert label_manifest.identity(copied) != before
