"""Inputs whose files are gone: the object store's lifecycle rule took them, and the cache does not know."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distilrank.core import artifacts
from distilrank.core.errors import InputError

ROOT = Path(__file__).parents[3]
COMPONENTS = sorted(
    path.stem
    for path in (ROOT / "components").glob("*.py")
    if path.stem not in ("__init__", "stage") and not path.stem.startswith("probe")  # no stages
)
CLUSTER = (
    "the object store no longer has its files (expired by a lifecycle rule?), but Kubeflow's cache still offers it: "
    "submit with --no-cache, and for recurring runs set preflight.cache_days (docs/operations.md)"
)
LOCAL = "its files were deleted, but the cache still offers this result: run again with --no-cache"
NODES = {
    "nodes": 2,
    "checkpoint_dir": "/distilrank/runs",
    "trainjob": {"claim": "distilrank", "gpus": 0},
}


def component(name: str) -> Any:
    """The component that `components/NAME.py` holds."""
    module = importlib.import_module(f"components.{name}")
    (stage,) = (value for value in vars(module).values() if hasattr(value, "python_func"))
    return stage


def artifact_inputs(name: str) -> dict[str, bool]:
    """The component's input artifacts, and whether each is a list of them."""
    inputs = component(name).component_spec.inputs or {}
    return {key: definition.is_artifact_list for key, definition in inputs.items() if "@" in definition.type}


READ = [(name, key) for name in COMPONENTS for key in artifact_inputs(name)]


def lose_everything(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def lose_folder(folder: Path) -> None:
    lose_everything(folder)
    folder.rmdir()


def lose_seal(folder: Path) -> None:
    (folder / artifacts.SEAL).unlink()


def lose_file(folder: Path) -> None:
    (folder / "second.bin").unlink()


LOSSES = {
    lose_everything: "arrived empty",
    lose_folder: "arrived empty",
    lose_seal: "lacks digest.json",
    lose_file: "lacks 1 of its 2 files, second.bin for one",
}


def arguments(name: str, root: Path) -> dict[str, Any]:
    """Arguments of the component as Kubeflow gives them, with sealed folders that hold nothing a stage could read."""

    def artifact(path: Path, write: bool) -> SimpleNamespace:
        if write:
            for file in ("first.bin", "second.bin"):
                artifacts.write_text(path / file, file)
            artifacts.seal(path)
        return SimpleNamespace(path=str(path))

    stage = component(name)
    inputs: dict[str, Any] = {}
    for key, is_list in artifact_inputs(name).items():
        inputs[key] = [artifact(root / key / str(number), True) for number in range(2)] if is_list else None
        inputs[key] = inputs[key] or artifact(root / key, True)
    for key, declared in (stage.component_spec.inputs or {}).items():
        if key not in inputs:
            inputs[key] = {} if declared.type == "Dict" else "shard-00000" if key == "shard" else ""
    for key in stage.component_spec.outputs or {}:
        if key != "Output":
            inputs[key] = artifact(root / "outputs" / key, False)
    if name == "snapshot":  # which looks at its input only where it has something to do
        inputs["config"] = {"workspace": str(root / "workspace")}
    return inputs


def refused(name: str, inputs: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        component(name).python_func(**inputs)
    return str(caught.value)


@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
@pytest.mark.parametrize(("name", "key"), READ)
def test_a_stage_names_an_expired_input_at_its_start(
    name: str,
    key: str,
    lose: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inputs = arguments(name, tmp_path)
    folder = Path(inputs[key][1].path if isinstance(inputs[key], list) else inputs[key].path)
    lose(folder)
    what = f"input {key} ({folder}): {LOSSES[lose]}; "
    monkeypatch.setenv("KFP_POD_NAME", "pod")
    assert refused(name, inputs) == what + CLUSTER
    assert f"bad input | {what}{CLUSTER}" in capsys.readouterr().out
    monkeypatch.delenv("KFP_POD_NAME")
    assert refused(name, inputs) == what + LOCAL


@pytest.mark.parametrize(("name", "key"), [pair for pair in READ if pair[0] in ("teacher", "student")])
@pytest.mark.parametrize("compute", [NODES, {"device": "cpu", "processes": 2}], ids=["nodes", "processes"])
def test_a_stage_that_trains_elsewhere_names_an_expired_input_at_its_start(
    name: str, key: str, compute: dict[str, Any], tmp_path: Path
) -> None:
    inputs = arguments(name, tmp_path) | {"compute": compute}
    folder = Path(inputs[key][1].path if isinstance(inputs[key], list) else inputs[key].path)
    lose_everything(folder)
    assert refused(name, inputs) == f"input {key} ({folder}): arrived empty; {LOCAL}"


def test_every_stage_that_reads_is_listed() -> None:
    readers = {name for name, _ in READ}
    assert set(COMPONENTS) - readers == {"check_champion", "notify", "preflight", "prepare", "rehearse", "sample"}


def test_a_folder_with_all_its_files_is_not_refused(tmp_path: Path) -> None:
    for number in range(2):
        artifacts.write_text(tmp_path / str(number) / "nested" / "file.txt", "x")
        artifacts.seal(tmp_path / str(number))
    artifacts.require({"labels": [tmp_path / "0", tmp_path / "1"], "teacher": tmp_path / "0"})


def test_a_damaged_seal_is_reported_as_damage(tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "teacher" / artifacts.SEAL, {"digest": 3})
    with pytest.raises(InputError, match=re.escape("digest.json: damaged")):
        artifacts.require({"teacher": tmp_path / "teacher"})
