"""What a local run prints at its end."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from distilrank.core import artifacts
from pipelines import summary


@pytest.mark.parametrize(
    ("run", "by"), [("nightly", "an earlier attempt of this run promoted it"), ("weekly", "the run weekly promoted it")]
)
def test_a_repeated_run_that_had_promoted_reports_it(tmp_path: Path, run: str, by: str) -> None:
    """A run that was killed after its promotion meets its own student as the champion."""
    folder = tmp_path / "nightly"
    artifacts.write_json(folder / "metrics.json", {"systems": {"student": dict.fromkeys(summary.METRICS, 0.5)}})
    artifacts.write_json(folder / "timings.json", {"seconds": 1, "peak_memory_mib": 1})
    verdict = {"outcome": "unchanged", "checks": [], "champion": {"id": "v0123456789ab", "run": run}}
    shown = io.StringIO()
    summary.show_run(Console(file=shown, width=200), folder, verdict)
    assert f"v0123456789ab is the champion already ({by}): there is nothing to promote" in shown.getvalue()
    assert "refused" not in shown.getvalue()
