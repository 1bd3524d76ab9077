"""Compile a pipeline for a configuration to the YAML file that Kubeflow Pipelines accepts."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler
from kfp.dsl.graph_component import GraphComponent

from distilrank.config import Config, parameters
from distilrank.core import artifacts
from pipelines import capacity
from pipelines.resources import configured

NESTED = {"monitor": ("distill",)}
"""The pipelines that a pipeline contains, by its name."""


def pipeline(name: str) -> GraphComponent:
    """Return the pipeline of that name, as the module of that name defines it."""
    return getattr(importlib.import_module(f"pipelines.{name}"), name)


def build(name: str, config: Config, *, cluster: bool, scheduled: bool = False) -> GraphComponent:
    """Build a pipeline for a configuration. Arguments and errors: see `pipelines.resources.configured`."""
    parts = [pipeline(part) for part in NESTED.get(name, ())]
    return configured(pipeline(name), config, cluster=cluster, scheduled=scheduled, parts=parts)


def canonical(documents: Iterable[Any]) -> bytes:
    """Serialize a pipeline's documents to the YAML whose digest names the pipeline version.

    Args:
        documents: the pipeline's specification, and its Kubernetes platform specification if it has one.
    """
    return yaml.safe_dump_all(documents, allow_unicode=True, encoding="utf-8")


def write(name: str, config: Config, output: Path, *, scheduled: bool = False) -> None:
    """Compile a pipeline for a cluster. The same arguments give the same bytes.

    Args:
        name: `distill` or `monitor`.
        config: its sections become the defaults of the pipeline's parameters; `cluster` sets up the pods.
        output: the YAML file to write: the pipeline's specification, then its Kubernetes platform specification.
        scheduled: whether a recurring run starts it; see `pipelines.resources.configured`.

    Raises:
        InputError: the configuration does not suit a cluster, it has more shards than a run can have there
            (`pipelines.capacity`), or the file cannot be written.
    """
    built = build(name, config, cluster=True, scheduled=scheduled)
    defaults = {key: value for key, value in parameters(config).items() if key in built.component_spec.inputs}
    with tempfile.TemporaryDirectory() as scratch:
        compiled = Path(scratch) / "pipeline.yaml"
        compiler.Compiler().compile(built, str(compiled), pipeline_parameters=defaults)
        # KFP's comments list the parameters in an order that differs between processes; loading drops them.
        documents = list(yaml.safe_load_all(compiled.read_text(encoding="utf-8")))
    capacity.check(documents, config)
    with artifacts.replacing(output) as handle:
        handle.write(canonical(documents))
