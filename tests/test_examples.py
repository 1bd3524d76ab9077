"""The examples in docstrings of public classes and functions, run."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    "distilrank.modeling.batching",
    "distilrank.modeling.calibration",
    "distilrank.modeling.cache",
    "distilrank.modeling.encoding",
    "distilrank.modeling.neighbors",
    "distilrank.student.dataset",
    "distilrank.training.losses",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_produce_what_they_show(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed
