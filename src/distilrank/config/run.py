"""The configuration of one run: all sections, and the rules that hold between them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationInfo, model_validator

from distilrank.config.base import Section
from distilrank.config.cluster import Cluster
from distilrank.config.data import Data, Prepare, Window
from distilrank.config.decision import MAX_CONFIDENCE, Drift, Evaluate, Gate, Monitor
from distilrank.config.models import Compute, Label, Student, Teacher

PARTIAL = "partial"
"""Context of a validation in which some sections are missing, so that sections are not compared with each other."""


class Preflight(Section):
    """Checks before any expensive work."""

    free_disk_gib: Annotated[float, Field(ge=0)] = Field(
        2.0, description="Least free disk space to start a run, in GiB."
    )
    cache_days: Annotated[int, Field(ge=0, le=3650)] = Field(
        0,
        description="Days after which all stages are computed again. Where a lifecycle rule deletes objects of "
        "the pipeline root, set the rule's days minus the days of a run minus one. 0: cached results "
        "never expire.",
    )


class Report(Section):
    """The HTML report."""

    title: str = Field("", description="Heading of the report; empty: the run's name.")


class Registry(Section):
    """Registry of promoted students."""

    uri: str = Field(
        "registry", description="A local folder or gs://BUCKET/PREFIX; every shop needs a separate registry."
    )
    cache_dir: str = Field("", description="Folder for downloaded versions; empty: the user's cache folder.")
    promoter: str = Field(
        "",
        description="Service account to impersonate when writing to Cloud Storage; empty: none.",
    )
    mirror: Annotated[str, Field(pattern=r"^(https?://\S+)?$")] = Field(
        "", description="URL of a Kubeflow Model Registry that mirrors versions and aliases; empty: none."
    )
    mirror_name: Annotated[str, Field(min_length=1)] = Field(
        "distilrank", description="Registered model in the mirror; only this registry may use it."
    )
    mirror_token_file: str = Field("", description="File with a bearer token for the mirror; empty: no token.")
    mirror_ca_file: str = Field("", description="CA certificates (PEM) of the mirror; empty: the system's.")


class Config(Section):
    """One run of the pipeline."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60)] = Field(
        "distill", description="Name of the run and of its folder: lower-case letters, digits, hyphens."
    )
    data: Data = Field(description="Source of judgements, catalogue and logs.")
    window: Window = Field(Window(), description="Days of the log to use.")
    preflight: Preflight = Field(Preflight(), description="Checks before the start.")
    prepare: Prepare = Field(Prepare(), description="Splits, candidates, shards.")
    compute: Compute = Field(Compute(), description="Device and precision.")
    teacher: Teacher = Field(Teacher(), description="The LLM that learns from judgements.")
    label: Label = Field(Label(), description="Labeling of candidates by the teacher.")
    student: Student = Field(Student(), description="The model that ships.")
    evaluate: Evaluate = Field(Evaluate(), description="Evaluation protocol.")
    drift: Drift = Field(Drift(), description="Drift limits per column.")
    gate: Gate = Field(Gate(), description="Promotion policy.")
    report: Report = Field(Report(), description="The HTML report.")
    registry: Registry = Field(Registry(), description="Registry of promoted students.")
    monitor: Monitor = Field(Monitor(), description="Monitoring of the champion between runs.")
    cluster: Cluster = Field(Cluster(), description="Pods of a Kubeflow cluster.")

    @model_validator(mode="after")
    def _check_sections(self, info: ValidationInfo) -> Config:
        """Refuse a gate that needs a value that is not measured; skipped while sections are missing (`parse`)."""
        if info.context == PARTIAL:
            return self
        if self.gate.slices and not self.evaluate.slices:
            raise ValueError("evaluate.slices is empty, but gate.slices asks for some: name columns, or switch it off")
        confidence, bootstrap = self.evaluate.confidence, self.evaluate.bootstrap
        if not self.gate.min_confidence <= confidence <= MAX_CONFIDENCE:
            raise ValueError(
                f"evaluate.confidence is {confidence:g}, expected {self.gate.min_confidence:g} (gate.min_confidence) "
                f"to {MAX_CONFIDENCE:g}, or the gate could not decide by it"
            )
        if bootstrap < self.gate.min_resamples:
            raise ValueError(
                f"evaluate.bootstrap is {bootstrap}, expected at least gate.min_resamples ({self.gate.min_resamples})"
            )
        if self.gate.slices and self.evaluate.slice_queries > self.gate.max_slice_queries:
            raise ValueError(
                f"evaluate.slice_queries is {self.evaluate.slice_queries}, expected at most gate.max_slice_queries "
                f"({self.gate.max_slice_queries})"
            )
        for name in self.gate.required_slices:
            if name.partition("=")[0] not in self.evaluate.slices:
                raise ValueError(
                    f"gate.required_slices names {name!r}, but evaluate.slices has only "
                    f"{', '.join(self.evaluate.slices) or 'none'}; add the column there"
                )
        if self.gate.max_embedding_auc < 1 and not self.drift.embedding_rows:
            raise ValueError(
                f"drift.embedding_rows is 0, but gate.max_embedding_auc is {self.gate.max_embedding_auc:g}: no student "
                "could pass what is not measured; set gate.max_embedding_auc to 1"
            )
        return self
