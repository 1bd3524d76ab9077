"""Distil an LLM's sense of product relevance into a small, fast ranker."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distilrank.modeling.scorer import Scorer

# From 1.29 on, onnxruntime reports what it runs to its makers, and keeps a device's id in the home folder, unless this
# is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["Scorer"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import the scorer when it is asked for: most users of the package need no more than its version."""
    if name == "Scorer":
        from distilrank.modeling.scorer import Scorer

        return Scorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
