"""What is written under a temporary name: by many processes with equal ids, under any umask, and when it is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pytest
from google.cloud import storage

from benchmarks import registry as registry_benchmark
from distilrank import registry
from distilrank.config import Registry
from distilrank.core import artifacts, schemas
from distilrank.core.artifacts import writing
from distilrank.core.errors import InputError
from distilrank.data import log_store
from distilrank.modeling import references as model_references
from pipelines import run_folder
from tests.registry.test_registry import killed_at

WRITERS = 8
ROUNDS = 100
LABELS = pa.table({"query_id": ["q"] * 500, "product_id": ["p"] * 500, "logit": [0.5] * 500}, schemas.LABELS)
WEIGHTS = b"weights" * 30_000


def _run_writers(write: Callable[..., None], *arguments: Any) -> None:
    """Run `write` in eight processes that have the same process id, as those of pods that share a volume have."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(WRITERS)
    processes = [
        context.Process(target=_write_as_pod, args=(write, barrier, number, *arguments)) for number in range(WRITERS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * WRITERS


def _write_as_pod(write: Callable[..., None], barrier: Barrier, number: int, *arguments: Any) -> None:
    os.getpid = lambda: 1
    try:
        write(barrier, number, *arguments)
    except BaseException:
        barrier.abort()  # the others end instead of waiting
        raise


def _write_files(barrier: Barrier, number: int, root: Path) -> None:
    for turn in range(ROUNDS):
        barrier.wait(120)
        artifacts.write_json(root / "shared.json", {"writer": number, "content": "x" * 20_000})
        assert len(artifacts.read_json(root / "shared.json")["content"]) == 20_000
        schemas.write(LABELS, root / "labels.parquet", schemas.LABELS)
        assert schemas.read(root / "labels.parquet", schemas.LABELS).num_rows == 500
        run_folder.replace_link(root / "latest", root / f"run-{number}")
        assert os.readlink(root / "latest").startswith("run-")
        key = log_store.LogStore(root / f"store-{turn}")._key
        assert key == (root / f"store-{turn}" / "salt").read_bytes() and len(key) == 64


def _write_folders(barrier: Barrier, number: int, root: Path) -> None:
    for turn in range(ROUNDS):
        barrier.wait(120)
        cached = root / f"cache-{turn}"
        with artifacts.replacing_folder(cached, keep=lambda: True) as folder:
            (folder / "weights").write_bytes(WEIGHTS)
            (folder / "writer").write_text(str(number))
        assert (cached / "weights").read_bytes() == WEIGHTS
        artifacts.copy_tree(root / "source", root / "copy")


def test_eight_writers_of_the_same_files_do_not_meet(tmp_path: Path) -> None:
    _run_writers(_write_files, tmp_path)
    assert not list(tmp_path.rglob(artifacts.PARTIAL))


def test_eight_writers_of_the_same_folders_do_not_meet(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "weights").write_bytes(WEIGHTS)
    artifacts.seal(tmp_path / "source")
    _run_writers(_write_folders, tmp_path)
    assert artifacts.verify(tmp_path / "copy") == artifacts.sealed_digest(tmp_path / "source")
    assert not list(tmp_path.rglob(artifacts.PARTIAL))


def test_a_folder_is_replaced_where_names_cannot_be_exchanged(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(writing, "_exchange", lambda path, other: False)
    for content in ("old", "new"):
        with artifacts.replacing_folder(tmp_path / "folder") as folder:
            (folder / content).touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


# Permissions ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _permissions(root: Path) -> dict[str, int]:
    return {path.relative_to(root).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in sorted(root.rglob("*"))}


def _expected(root: Path, umask: int) -> dict[str, int]:
    return {name: (0o777 if (root / name).is_dir() else 0o666) & ~umask for name in _permissions(root)}


def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    source, root = Path(tempfile.mkdtemp(dir=tmp_path)), tmp_path / "root"
    version = registry_benchmark.make_version(source, "a")
    for path in source.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    backend = registry.connect(Registry(uri=str(root / "registry")))
    backend.publish(source, version)
    artifacts.copy_tree(source, root / "copy")
    artifacts.write_json(root / "file.json", {})
    schemas.write(LABELS, root / "labels.parquet", schemas.LABELS)
    assert len(_permissions(root)) > 10
    assert _permissions(root) == _expected(root, umask)


def test_libraries_weights_get_the_permissions_of_new_files(tmp_path: Path, models: Path, umask: int) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(models / "encoder")
    model.save_pretrained(tmp_path / "student")
    artifacts.follow_umask(tmp_path / "student")
    assert "model.safetensors" in _permissions(tmp_path / "student")
    assert _permissions(tmp_path / "student") == _expected(tmp_path / "student", umask)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_user_reads_a_version(monkeypatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        source = Path(tempfile.mkdtemp(dir=folder))
        backend = registry.connect(Registry(uri=str(root / "registry")))
        version = registry_benchmark.make_version(source, "a")
        before = os.umask(0o022)
        backend.publish(source, version)
        os.umask(before)

        def read() -> None:
            os.setgid(10001)
            os.setuid(10001)
            assert backend.versions() == [version]
            backend.fetch(version)

        process = multiprocessing.get_context("fork").Process(target=read)
        process.start()
        process.join()
        assert process.exitcode == 0


# Killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", [(os, "fsync"), (Path, "replace")])
def test_a_killed_write_leaves_the_old_file(tmp_path: Path, point: Any) -> None:
    path = tmp_path / "file.json"
    killed_at(*point, artifacts.write_json, path, {"content": "new"})
    assert not path.exists()
    artifacts.write_json(path, {"content": "old"})
    killed_at(*point, artifacts.write_json, path, {"content": "new"})
    assert artifacts.read_json(path) == {"content": "old"}


@pytest.mark.parametrize(
    "point", [(os, "fsync"), (writing, "settle"), (Path, "rename"), (writing, "_exchange"), (shutil, "rmtree")]
)
def test_a_killed_copy_leaves_the_old_folder_or_the_new_one(tmp_path: Path, point: Any) -> None:
    for content in ("old", "new"):
        (tmp_path / content).mkdir()
        (tmp_path / content / "content").write_text(content)
        artifacts.seal(tmp_path / content)
    target = tmp_path / "volume" / "target"
    artifacts.copy_tree(tmp_path / "old", target)
    killed_at(*point, artifacts.copy_tree, tmp_path / "new", target)
    artifacts.verify(target)
    assert (target / "content").read_text() == ("new" if point == (shutil, "rmtree") else "old")
    [left] = [path for path in target.parent.iterdir() if path != target]
    artifacts.copy_tree(tmp_path / "new", target)
    assert left.exists(), "its writer may be alive"
    long_ago = time.time() - 2 * artifacts.STALE_SECONDS
    os.utime(left, (long_ago, long_ago))
    artifacts.copy_tree(tmp_path / "new", target)
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_what_a_killed_writer_left_is_no_content_of_a_folder(tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "made" / "file.json", {})
    killed_at(Path, "replace", artifacts.write_json, tmp_path / "made" / "file.json", {"content": "new"})
    assert len(list((tmp_path / "made").iterdir())) == 2
    artifacts.seal(tmp_path / "made")
    assert list(artifacts.read_json(tmp_path / "made" / artifacts.SEAL)["files"]) == ["file.json"]
    artifacts.verify(tmp_path / "made")


# Models from elsewhere --------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch) -> Iterator[storage.Bucket]:
    """A bucket of a real server process, which keeps names as Cloud Storage does, with a model in `small/`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with registry_benchmark.serve():
        bucket = storage.Client(project=None).create_bucket("weights")
        bucket.blob("small/config.json").upload_from_string(b"{}")
        bucket.blob("small/model.safetensors").upload_from_string(WEIGHTS)
        bucket.blob("small/").upload_from_string(b"")  # as consoles make it
        yield bucket


def _fetch_models(barrier: Barrier, number: int, root: Path) -> None:
    for turn in range(10):
        os.environ["XDG_CACHE_HOME"] = str(root / f"cache-{turn}")
        barrier.wait(120)
        folder = model_references.resolve("gs://weights/small")
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_eight_processes_fetch_a_model_into_one_cache(bucket: storage.Bucket, tmp_path: Path) -> None:
    _run_writers(_fetch_models, tmp_path)
    assert len(list(tmp_path.glob("cache-*/distilrank/models/*"))) == 10


def test_a_truncated_model_is_never_used(bucket: storage.Bucket, tmp_path: Path) -> None:
    cache = model_references.cache_folder()
    for point in ((storage.Blob, "download_to_filename"), (writing, "move_into_place"), (Path, "rename")):
        killed_at(*point, model_references.resolve, "gs://weights/small")
        assert not [path for path in cache.iterdir() if not path.name.startswith(".")]
    folder = model_references.resolve("gs://weights/small")
    os.truncate(folder / "model.safetensors", 1000)
    assert (model_references.resolve("gs://weights/small") / "model.safetensors").read_bytes() == WEIGHTS
    (folder / "config.json").unlink()
    assert (model_references.resolve("gs://weights/small") / "config.json").read_bytes() == b"{}"


NAMES = (
    "../outside.json",
    "deeper/../../outside.json",
    "./config.json",
    "deeper//config.json",
    "/tmp/outside.json",
    "deeper\\..\\outside.json",
    "nul\0.json",
    "..",
)


@pytest.mark.parametrize("name", NAMES)
def test_objects_whose_names_lead_elsewhere_are_refused(bucket: storage.Bucket, tmp_path: Path, name: str) -> None:
    bucket.blob(f"small/{name}").upload_from_string(b"outside")
    before = sorted(tmp_path.rglob("*"))
    for act in (model_references.check, model_references.digest, model_references.resolve):
        with pytest.raises(InputError) as refused:
            act("gs://weights/small")
        assert f"lists {name!r}, expected files inside it" in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_object_that_is_a_folder_too_is_refused(bucket: storage.Bucket) -> None:
    bucket.blob("small/config.json/more.json").upload_from_string(b"{}")
    with pytest.raises(InputError, match=r"lists 'config.json' and 'config.json/more.json'"):
        model_references.resolve("gs://weights/small")


@pytest.mark.parametrize("name", NAMES)
def test_a_seal_whose_names_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    artifacts.write_json(tmp_path / artifacts.SEAL, {"digest": "0" * 64, "files": {name: "0" * 64}})
    with pytest.raises(InputError, match="expected files inside it"):
        artifacts.verify(tmp_path)


def test_a_model_from_a_wheel_lies_in_the_wheel() -> None:
    for inner in ("../outside", "/etc"):
        with pytest.raises(InputError, match="expected files inside it"):
            model_references.check(f"wheel:numpy/{inner}")


def test_the_cache_of_a_bucket_lies_below_its_folder() -> None:
    for uri in ("gs://../models", "gs://models/../../outside"):
        with pytest.raises(InputError, match="expected files inside it"):
            registry.connect(Registry(uri=uri))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, dict[str, list[str]], list[str]]]:
    """A hub with one model, as huggingface_hub 2.4 talks to it: address, names by what lists them, requested paths."""
    names: dict[str, list[str]] = {}
    requested: list[str] = []
    commit, content = "c" * 40, b"{}"

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, with_body: bool) -> None:
            requested.append(self.path)
            body: Any = content
            if self.path.startswith("/api/models/org/name/tree"):
                size, digest = len(content), "a" * 40
                body = [{"type": "file", "path": name, "size": size, "oid": digest} for name in names["tree"]]
            elif self.path.startswith("/api/"):
                siblings = [{"rfilename": name} for name in names["info"]]
                body = {"id": "org/name", "sha": commit, "siblings": siblings}
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/json")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", '"' + "a" * 40 + '"')
            self.end_headers()
            if with_body:
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", names, requested
    server.shutdown()
    server.server_close()


def _resolve_from(address: str, home: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from distilrank.modeling import references; from distilrank.core.errors import InputError\n"
        "try: print(references.resolve('hub:org/name@main'))\n"
        "except InputError as error: sys.exit(str(error))"
    )
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_files_of_the_hub_whose_names_lead_elsewhere_are_refused(hub: Any, tmp_path: Path) -> None:
    address, names, requested = hub
    good = ["config.json", "model.safetensors"]
    names |= {"info": [*good, "../../../../../outside.json"], "tree": good}
    refused = _resolve_from(address, tmp_path / "home")
    assert refused.returncode == 1 and "lists '../../../../../outside.json', expected files inside" in refused.stderr
    assert not [path for path in requested if "/resolve/" in path]
    # The list that the download goes by is another: nothing is fetched that was not checked.
    names |= {"info": good, "tree": [*good, "../../../../../outside.json"]}
    fetched = _resolve_from(address, tmp_path / "home")
    assert fetched.returncode == 0, fetched.stderr
    assert sorted(path.name for path in Path(fetched.stdout.strip()).iterdir()) == good
    assert not [path for path in tmp_path.rglob("outside.json")]
    offline = _resolve_from("http://127.0.0.1:9", tmp_path / "home")
    assert offline.returncode == 1 and "incomplete" in offline.stderr and "Traceback" not in offline.stderr


def test_without_a_connection_what_was_downloaded_from_the_hub_is_used(hub: Any, tmp_path: Path) -> None:
    address, names, _ = hub
    names |= {key: ["config.json", "model.safetensors", "pytorch_model.bin"] for key in ("info", "tree")}
    fetched, offline = (_resolve_from(endpoint, tmp_path / "home") for endpoint in (address, "http://127.0.0.1:9"))
    assert offline.stdout == fetched.stdout != "", offline.stderr
