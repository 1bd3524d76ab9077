"""The folders of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from distilrank.core.run_folders import RunFolders


def test_a_missing_folder_argument_is_named() -> None:
    folders = RunFolders(student=Path("student"), drift=Path("drift"))
    assert folders.select("drift", "student") == {"drift": Path("drift"), "student": Path("student")}
    with pytest.raises(TypeError, match="'teacher' was not given, expected the folders student, teacher"):
        folders.select("student", "teacher")
    assert not folders.teacher.exists() and not (folders.teacher / "metrics.json").exists()
