"""Pipelines as Kubeflow takes them: one YAML file with the configuration in it."""

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

PARTS = {"monitor": ("distill",)}
"""The pipelines that a pipeline contains."""


def pipeline(name: str) -> GraphComponent:
    """The pipeline `distill`, `monitor` or `estimate`, as its module defines it."""
    return getattr(importlib.import_module(f"pipelines.{name}"), name)


def build(name: str, config: Config, *, cluster: bool, scheduled: bool = False) -> GraphComponent:
    """The pipeline for a configuration; arguments and errors as for `pipelines.resources.configured`."""
    parts = [pipeline(part) for part in PARTS.get(name, ())]
    return configured(pipeline(name), config, cluster=cluster, scheduled=scheduled, parts=parts)


def canonical(documents: Iterable[Any]) -> bytes:
    """A pipeline's specification, and what is Kubernetes' own if there is any, as the YAML that its digest is of."""
    return yaml.safe_dump_all(documents, allow_unicode=True, encoding="utf-8")


def write(name: str, config: Config, output: Path, *, scheduled: bool = False) -> None:
    """Compile a pipeline for a cluster; the same arguments give the same bytes.

    Args:
        name: `distill` or `monitor`.
        config: its sections become the defaults of the pipeline's parameters, and `cluster` its pods.
        output: the file to write: the pipeline's specification, then what is Kubernetes' own.
        scheduled: whether a recurring run starts it; see `pipelines.resources.configured`.

    Raises:
        InputError: the configuration cannot be meant for a cluster, it has more shards than a run there holds
            (`pipelines.capacity`), or the file cannot be written.
    """
    built = build(name, config, cluster=True, scheduled=scheduled)
    given = {key: value for key, value in parameters(config).items() if key in built.component_spec.inputs}
    with tempfile.TemporaryDirectory() as scratch:
        compiled = Path(scratch) / "pipeline.yaml"
        compiler.Compiler().compile(built, str(compiled), pipeline_parameters=given)
        # KFP's comments repeat the parameters, in an order that changes from process to process
        documents = list(yaml.safe_load_all(compiled.read_text(encoding="utf-8")))
    capacity.check(documents, config)
    with artifacts.replacing(output) as handle:
        handle.write(canonical(documents))
