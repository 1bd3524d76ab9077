"""State of a training on disk: written whole or not at all, read without running code, the last two kept."""

from __future__ import annotations

import contextlib
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from distilrank import artifacts, progress

KEPT = 2  # if the machine lost power while the newest was written, the one before it is whole


class Checkpoints:
    """The checkpoints of one training, in a folder named by all that decides its course."""

    def __init__(self, folder: Path | None) -> None:
        """
        Args:
            folder: where they are; made at the first save. Other inputs must have another folder. None: nothing is
                kept, for tasks that have nothing which outlives them.
        """
        self.folder = folder

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Keep `state` (tensors, numbers, texts, lists and dicts of them) as that of `step`, and drop older ones."""
        if self.folder is None:
            return
        path = self.folder / f"step-{step:08d}.pt"
        # another attempt that came to its end has removed the folder: this one can do without
        with contextlib.suppress(FileNotFoundError), artifacts.replacing(path) as handle:
            try:
                torch.save(state, handle)
            except RuntimeError as error:  # torch hides what the storage said
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise
        for old in self._saved()[:-KEPT]:
            old.unlink(missing_ok=True)

    def load(self, stage: str) -> dict[str, Any] | None:
        """The newest state that is whole, on the CPU; None where there is none. `stage` names the progress lines."""
        if self.folder is not None:
            for stale in self.folder.glob(".step-*.partial"):  # of a killed attempt
                stale.unlink(missing_ok=True)
        for path in reversed(self._saved()):
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                progress.announce(stage, "note", f"{path} is damaged, taking the one before ({error})")
        return None

    def clear(self) -> None:
        """Remove them all, once what they lead to is safe."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _saved(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt")) if self.folder is not None else []
