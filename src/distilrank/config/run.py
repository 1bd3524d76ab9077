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
    """What is checked before any expensive work."""

    free_disk_gib: Annotated[float, Field(ge=0)] = Field(2.0, description="Refuse to start with less free disk.")
    cache_days: Annotated[int, Field(ge=0, le=3650)] = Field(
        0,
        description="Days after which everything is computed anew, so that no result is read that a lifecycle rule on "
        "the pipeline root may have deleted: the rule's days, less those that a run takes, less one. 0: results are "
        "taken from the cache at any age.",
    )


class Report(Section):
    """The page for people."""

    title: str = Field("", description="Heading; empty: the run's name.")


class Registry(Section):
    """Where promoted students live."""

    uri: str = Field("registry", description="A local folder or gs://BUCKET/PREFIX; each shop needs one of its own.")
    cache: str = Field("", description="Folder that versions are downloaded to; empty: the user's cache folder.")
    promoter: str = Field(
        "",
        description="Service account to impersonate for writing versions and aliases to Cloud Storage; empty: none.",
    )
    mirror: Annotated[str, Field(pattern=r"^(https?://\S+)?$")] = Field(
        "", description="URL of a Kubeflow Model Registry that is to show versions and aliases too; empty: none."
    )
    mirror_name: Annotated[str, Field(min_length=1)] = Field(
        "distilrank", description="Its registered model, which belongs to this registry alone."
    )
    mirror_token_file: str = Field("", description="File with a bearer token for the mirror; empty: none is sent.")
    mirror_ca_file: str = Field(
        "", description="Certificates (PEM) to trust the mirror by; empty: those that the system trusts."
    )


class Config(Section):
    """One run of the pipeline."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60)] = Field(
        "distill", description="Names the run's folder: lower-case letters, digits, hyphens."
    )
    data: Data = Field(description="Where judgements, catalogue and logs come from.")
    window: Window = Field(Window(), description="Which days of log.")
    preflight: Preflight = Field(Preflight(), description="Checks before the start.")
    prepare: Prepare = Field(Prepare(), description="Splits, candidates, shards.")
    compute: Compute = Field(Compute(), description="Device and precision.")
    teacher: Teacher = Field(Teacher(), description="The LLM.")
    label: Label = Field(Label(), description="Scoring of candidates.")
    student: Student = Field(Student(), description="The model that ships.")
    evaluate: Evaluate = Field(Evaluate(), description="Measurement.")
    drift: Drift = Field(Drift(), description="Drift limits per column.")
    gate: Gate = Field(Gate(), description="What it takes.")
    report: Report = Field(Report(), description="The page for people.")
    registry: Registry = Field(Registry(), description="Where versions live.")
    monitor: Monitor = Field(Monitor(), description="Watching the champion between runs.")
    cluster: Cluster = Field(Cluster(), description="Pods of a Kubeflow cluster.")

    @model_validator(mode="after")
    def _measured(self, info: ValidationInfo) -> Config:
        """What the gate asks for is measured; sections that are not given (`parse`) say nothing of it."""
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
