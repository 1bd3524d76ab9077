"""The schedule file: which recurring runs there are to be."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from distilrank import config as configuration
from distilrank.config import Section
from distilrank.core import artifacts
from distilrank.core.errors import InputError
from pipelines import compiling
from pipelines.kubeflow import Package
from pipelines.recurring_runs.cron import complete

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
# What fits into a recurring run's description beside note and digest (`reconcile.marked`); the chart's has up to 117.
Owner = Annotated[str, Field(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", max_length=119)]
# In one zone, so that the same moment written in another changes nothing.
Moment = Annotated[AwareDatetime, AfterValidator(lambda moment: moment.astimezone(UTC))]


def _time_zone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError(f"{name!r} is no time zone, expected one such as UTC or Europe/Berlin")
    return name


class Schedule(Section):
    """One recurring run."""

    name: Name = Field(description="Identifies it; the recurring run's name on the cluster.")
    pipeline: Literal["distill", "monitor"] = Field(description="What it runs.")
    config: str = Field(min_length=1, description="Configuration file, relative to this one.")
    set: dict[str, Any] = Field({}, description="Knobs that differ from the file, as `section.key: value`.")
    cron: Annotated[str, AfterValidator(complete)] = Field(
        description="When, in the cluster's time zone: minute, hour, day, month, weekday; six fields: second first."
    )
    start: Moment | None = Field(None, description="Not before this moment (ISO 8601 with a time zone).")
    end: Moment | None = Field(None, description="Not after this moment.")
    concurrency: Annotated[int, Field(ge=1, le=10)] = Field(1, description="How many of its runs at a time.")
    catch_up: bool = Field(
        False, description="Start a run for every missed tick, one after the other, not for the last one alone."
    )
    paused: bool = Field(False, description="Keep it, and start nothing.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start and self.end and self.start >= self.end:
            raise ValueError(f"schedule {self.name}: end is {self.end.isoformat()}, expected one after start")
        return self


class Schedules(Section):
    """All recurring runs of one owner: what is not declared here and is the owner's is deleted."""

    owner: Owner = Field("distilrank", description="Whose they are; recurring runs of another owner are never touched.")
    timezone: Annotated[str, AfterValidator(_time_zone)] = Field(
        "UTC", description="The cluster's, to tell moments by; Kubeflow has one for all schedules."
    )
    schedules: tuple[Schedule, ...] = Field(description="The recurring runs.")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [one.name for one in self.schedules]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{names.count(name)} schedules are called {name!r}, expected one of each name")
        return self

    @property
    def zone(self) -> ZoneInfo:
        """The cluster's time zone."""
        return ZoneInfo(self.timezone)


@dataclass(frozen=True)
class Wanted:
    """A schedule with all that decides whether a recurring run is still the one that is wanted."""

    schedule: Schedule
    package: Package
    experiment: str
    service_account: str
    pipeline_root: str

    @property
    def name(self) -> str:
        """The schedule's."""
        return self.schedule.name

    @property
    def digest(self) -> str:
        """Of everything that a recurring run cannot change later; being paused is not among it."""
        settings = configuration.parameters(self.schedule)
        kept = {key: settings[key] for key in ("name", "pipeline", "cron", "start", "end", "concurrency", "catch_up")}
        own = {key: getattr(self, key) for key in ("experiment", "service_account", "pipeline_root")}
        return artifacts.digest_json(kept | own | {"package": self.package.digest})


def read(path: Path) -> Schedules:
    """The schedule file.

    Raises:
        InputError: it is missing, is not YAML, or does not fit.
    """
    values = configuration.read_yaml(path, "schedule", "owner, timezone and schedules")
    entries = values.get("schedules")
    for number, entry in enumerate(entries if isinstance(entries, list) else [], 1):
        if isinstance(entry, dict):  # one by one, so that errors tell its name and not its place
            configuration.parse(entry, f"{path}: schedule {entry.get('name', number)}", model=Schedule)
    return configuration.parse(values, str(path), model=Schedules)


def compiled(declared: Schedules, path: Path, *, experiment: str) -> Iterator[Wanted]:
    """Each declared schedule with its pipeline compiled for it.

    Args:
        declared: what `path` holds.
        experiment: the runs' experiment on the cluster.

    Raises:
        InputError: a configuration is missing or does not fit; the message names file and schedule.
    """
    for schedule in declared.schedules:
        # JSON is YAML, which --set takes.
        overrides = [f"{key}={json.dumps(value, default=str)}" for key, value in schedule.set.items()]
        try:
            config = configuration.load(path.parent / schedule.config, overrides)
            package = package_of(schedule.pipeline, config, scheduled=True)
        except InputError as error:
            raise InputError(f"{path}: schedule {schedule.name}: {error}") from None
        yield Wanted(
            schedule=schedule,
            package=package,
            experiment=experiment,
            service_account=config.cluster.service_account,
            pipeline_root=config.cluster.pipeline_root,
        )


def package_of(pipeline: str, config: configuration.Config, *, scheduled: bool) -> Package:
    """A pipeline, compiled for a configuration."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{pipeline}.yaml"
        compiling.write(pipeline, config, path, scheduled=scheduled)
        return Package(pipeline, path.read_bytes())
