"""What a person sees of a local run, line by line."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from distilrank.core.progress import EVENTS
from pipelines.console import RunDisplay

OUTCOME = 'distilrank | gate | outcome | {"outcome": "unchanged", "candidate": "v1", "champion": "v1", "failed": []}'


@pytest.mark.parametrize("terminal", [False, True])
def test_an_outcome_is_for_programs_and_the_notes_for_people(tmp_path: Path, terminal: bool) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=200, color_system=None)
    with RunDisplay(tmp_path / "run.log", console, {"decide": "gate"}) as display:
        for line in ("distilrank | gate | started", "distilrank | gate | note | v1: unchanged", OUTCOME):
            print(line, file=display)
        print("distilrank | gate | finished | 0.2 s", file=display)
    assert "v1: unchanged" in shown.getvalue() and "champion" not in shown.getvalue()
    assert OUTCOME in (tmp_path / "run.log").read_text().splitlines()
    assert display.failures == []


@pytest.mark.parametrize("event", EVENTS)
def test_no_event_of_the_log_ends_the_display(tmp_path: Path, event: str) -> None:
    with RunDisplay(tmp_path / "run.log", Console(file=io.StringIO()), {}) as display:
        print(f'distilrank | gate | {event} | {{"failed": ["a"]}}', file=display)
    assert event in (tmp_path / "run.log").read_text()
