from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from distilrank.core import volume
from distilrank.core.scratch import PREFIX, scratch_folder, sweep


def test_without_working_locks_nothing_is_taken_for_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scratch_folder(tmp_path) as alive:
        with scratch_folder(tmp_path):
            assert alive.exists()
        monkeypatch.setattr(volume.fcntl, "flock", lambda *_: None)
        with scratch_folder(tmp_path):
            assert alive.exists()


def test_a_scratch_folder_goes_with_its_run_or_before_the_next(tmp_path: Path) -> None:
    dead = tmp_path / f"{PREFIX}dead"  # a whole node went down: nobody was left to delete it
    dead.mkdir()
    (dead / "lock").touch()
    with scratch_folder(tmp_path) as folder:
        assert not dead.exists() and folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        with scratch_folder(tmp_path) as other:
            assert folder.exists() and other != folder, "another run is at work"
    assert not list(tmp_path.iterdir())


def test_folders_that_other_runs_delete_meanwhile_are_passed_over(tmp_path: Path) -> None:
    is_done = threading.Event()

    def come_and_go() -> None:
        folders = [tmp_path / f"{PREFIX}{number}" for number in range(20)]
        while not is_done.is_set():
            for folder in folders:
                folder.mkdir(exist_ok=True)
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(200):
            sweep(tmp_path)
    finally:
        is_done.set()
        other.join()
