"""Compiled pipelines as they are uploaded: YAML documents, named by their digest."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distilrank.config import Config
from distilrank.core import artifacts
from pipelines import compiling

PREFIX = "distilrank-"
"""Prefix of the names of our pipelines on a cluster."""


@dataclass(frozen=True)
class Package:
    """A compiled pipeline. Each distinct content is uploaded once, as a pipeline version named by its digest."""

    pipeline: str
    """Name of the pipeline, such as `distill`."""
    content: bytes
    """YAML as `pipelines.compiling.canonical` writes it."""

    @classmethod
    def of(cls, documents: list[Any]) -> Package:
        """Serialize a pipeline's specification and, if it has one, its Kubernetes platform specification."""
        return cls(documents[0]["pipelineInfo"]["name"], compiling.canonical(documents))

    def documents(self) -> list[Any]:
        """Parse the specification and, if there is one, the Kubernetes platform specification."""
        return list(yaml.safe_load_all(self.content))

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hex."""
        return artifacts.digest_bytes(self.content)

    @property
    def name(self) -> str:
        """Name of the pipeline on the cluster."""
        return f"{PREFIX}{self.pipeline}"

    @property
    def version(self) -> str:
        """Name of the pipeline version: the digest, shortened to what Kubernetes allows and still unique."""
        return self.digest[:32]


def compile_package(pipeline: str, config: Config, *, scheduled: bool) -> Package:
    """Compile a pipeline for a configuration. Arguments and errors: see `pipelines.compiling.write`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{pipeline}.yaml"
        compiling.write(pipeline, config, path, scheduled=scheduled)
        return Package(pipeline, path.read_bytes())
