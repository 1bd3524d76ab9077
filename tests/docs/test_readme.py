"""The README's example runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distilrank.config import Text
from tests.students import BERT, write_student

ROOT = Path(__file__).parents[2]


def test_the_example_of_the_readme_runs(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len([line for line in example.splitlines() if line and "import" not in line]) <= 5
    text = Text(fields=("title", "brand"), max_tokens=64)
    student = write_student(
        tmp_path / "runs" / "latest" / "student", models, text, tokens=4096, **BERT, max_position_embeddings=64
    )
    monkeypatch.chdir(tmp_path)
    assert student.is_dir()
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert len(re.findall(r"-?\d+\.\d+", printed)) == 2, printed
