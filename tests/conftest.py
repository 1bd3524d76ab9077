"""Small real things that the tests share: tiny models with real tokenizers, made once a session."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny_models, warm

# Tests run side by side; threads that spin against each other would slow all of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

LONG = ("test_whole_runs.py", "test_loop.py")
"""Files that take minutes: they begin first, since a file runs on one worker and the others would wait for the last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the functions too: a parametrized test is many cases of one."""
    nodes = {
        report.nodeid for reports in terminalreporter.stats.values() for report in reports if hasattr(report, "when")
    }
    functions = {node.split("[")[0] for node in nodes}
    if functions:
        terminalreporter.write_line(f"{len(functions)} test functions with {len(nodes)} cases")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `decoder` (Llama, BPE) and `encoder` (BERT, WordPiece), both of a few thousand random weights."""
    folder = tmp_path_factory.mktemp("models")
    tiny_models.write(folder)
    return folder


@pytest.fixture(scope="session")
def warm_python() -> Iterator[warm.Python]:
    """An interpreter for processes that would need seconds to import torch and transformers."""
    with warm.python() as python:
        yield python


@pytest.fixture
def warm_workers(warm_python: warm.Python, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes that train together find torch loaded."""
    monkeypatch.setattr(sys, "executable", warm_python.executable)
    for name, value in warm_python.environment.items():
        monkeypatch.setenv(name, value)
