"""What a container may use counts, not what its node has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distilrank.core import hardware

BOUND = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, BOUND),
        ({"cpu.max": "max 100000"}, BOUND),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "6400000 100000"}, BOUND),
        ({"cpu/cpu.cfs_quota_us": "80000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, BOUND),
    ],
)
def test_cores_are_those_of_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    assert hardware.cores() == cores


def test_a_limit_between_two_cores_counts_as_the_larger(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert hardware._limit(tmp_path) == 2
