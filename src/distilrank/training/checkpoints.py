"""Checkpoints of a training: written atomically, verified, read without running code; the last two are kept.

The name of a checkpoint contains the SHA-256 of its bytes, `step-00000120-DIGEST.pt`. torch verifies no checksum, so
most damaged files would load as another state.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import torch

from distilrank.core import artifacts, progress

KEPT = 2  # after a power failure during the newest write, the previous one is intact


class Checkpoints:
    """The checkpoints of one training, in a folder whose name depends on everything that determines its result."""

    def __init__(self, folder: Path | None) -> None:
        """
        Args:
            folder: folder, created at the first save; other inputs need another folder. None: nothing is saved, for
                tasks without persistent storage.
        """
        self.folder = folder

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save `state` (tensors, numbers, strings, lists and dicts of them) of `step`; remove older checkpoints."""
        if self.folder is None:
            return
        path = self.folder / f"step-{step:08d}.new"
        # another attempt has finished and removed the folder: this one needs no checkpoint
        with contextlib.suppress(FileNotFoundError):
            with artifacts.replacing(path) as handle:
                writer = _DigestingWriter(handle)
                try:
                    torch.save(state, writer)
                except RuntimeError as error:  # torch hides the error of the storage
                    if isinstance(error.__context__, OSError):
                        raise error.__context__ from error
                    raise
            path.rename(path.with_name(f"{path.stem}-{writer.sha256.hexdigest()}.pt"))
        for old in self._saved()[:-KEPT]:
            old.unlink(missing_ok=True)

    def load(self, stage: str) -> dict[str, Any] | None:
        """Load the newest undamaged state to the CPU; None if there is none.

        A damaged checkpoint is reported in a line of `stage` and removed.
        """
        if self.folder is not None:
            for pattern in (".step-*.partial", "step-*.new"):
                for stale in self.folder.glob(pattern):  # left by a killed attempt
                    stale.unlink(missing_ok=True)
        saved = self._saved()
        for path in reversed(saved):
            expected = path.stem.rpartition("-")[2]
            try:
                if (digest := artifacts.digest_file(path)) == expected:
                    return torch.load(path, map_location="cpu", weights_only=True)
                problem = f"digest {digest[:12]} differs from the {expected[:12]} of its name"
            except FileNotFoundError:  # another process of this training has removed it
                continue
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                problem = str(error)
            progress.log_event(stage, "note", f"{path} is damaged, using the previous one ({problem})")
            path.unlink(missing_ok=True)
        if saved:
            progress.log_event(stage, "note", "no checkpoint is intact: starts again from the first step")
        return None

    def clear(self) -> None:
        """Remove all checkpoints after the result of the training is saved."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _saved(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt")) if self.folder is not None else []


class _DigestingWriter:
    """A file object that computes the digest of what is written to it."""

    def __init__(self, handle: BinaryIO) -> None:
        self.sha256 = hashlib.sha256()
        self._handle = handle

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._handle.write(data)

    def flush(self) -> None:
        self._handle.flush()
