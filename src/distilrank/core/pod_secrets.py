"""Secrets that a pod gets as environment variables or as mounted folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def missing_targets(targets: Sequence[str]) -> list[str]:
    """Return the environment variables that are not set and the folders (absolute paths) that hold no file."""
    return [
        target
        for target in targets
        if not (any(Path(target).glob("[!.]*")) if target.startswith("/") else os.environ.get(target))
    ]
