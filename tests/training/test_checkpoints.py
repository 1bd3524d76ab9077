"""Checkpoints on disk: whole or not at all, and only their own bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from distilrank.core import artifacts
from distilrank.training.checkpoints import KEPT, Checkpoints


def test_checkpoints_are_whole_pruned_and_run_no_code(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.load("teacher") is None
    for step in range(1, 5):
        checkpoints.save(step, {"step": step, "weights": {"w": torch.ones(3) * step}})
    files = sorted((tmp_path / "c").iterdir())
    assert [path.name for path in files] == [
        f"step-0000000{step}-{artifacts.digest_file(path)}.pt" for step, path in zip((3, 4), files, strict=True)
    ]
    assert KEPT == 2
    newest = files[1]
    newest.write_bytes(newest.read_bytes()[:-200])
    assert checkpoints.load("teacher")["step"] == 3
    assert f"{newest} is damaged, using the previous one (digest" in capsys.readouterr().out
    (tmp_path / "c" / "step-00000005.new").touch()  # killed before it had a name
    assert checkpoints.load("teacher")["step"] == 3 and sorted((tmp_path / "c").iterdir()) == files[:1]

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "c" / "code.pt"
    torch.save({"step": 9, "x": Code()}, path)
    path.rename(path.with_name(f"step-00000009-{artifacts.digest_file(path)}.pt"))
    assert checkpoints.load("teacher")["step"] == 3 and not (tmp_path / "ran").exists()


def test_no_bit_of_a_checkpoint_may_flip(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"step": step, "weights": {"w": torch.arange(40.0) * step}, "losses": [0.5] * step})
    older, newest = sorted(tmp_path.iterdir())
    whole = newest.read_bytes()
    for bit in range(0, 8 * len(whole), 8 * len(whole) // 100 + 1):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        newest.write_bytes(damaged)
        state = checkpoints.load("teacher")
        assert (state["step"], state["losses"]) == (1, [0.5]) and torch.equal(state["weights"]["w"], torch.arange(40.0))
    older.write_bytes(whole)
    assert checkpoints.load("teacher") is None and not list(tmp_path.iterdir())
    assert "no checkpoint is intact: starts again from the first step" in capsys.readouterr().out
