"""The schedule file, which declares the recurring runs of one owner."""

from __future__ import annotations

import json
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
from pipelines import packages
from pipelines.packages import Package
from pipelines.recurring_runs.cron import complete

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
# Note, owner and digest must fit into a recurring run's description (`reconcile.marked`); the chart's owner has up to
# 117 characters.
Owner = Annotated[str, Field(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", max_length=119)]
# Normalized to UTC, so that the same time in another zone has the same digest.
Moment = Annotated[AwareDatetime, AfterValidator(lambda moment: moment.astimezone(UTC))]


def _time_zone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError(f"{name!r} is not a time zone, expected e.g. UTC or Europe/Berlin")
    return name


class Schedule(Section):
    """A recurring run as declared."""

    name: Name = Field(description="Name of the recurring run on the cluster; unique in the file.")
    pipeline: Literal["distill", "monitor"] = Field(description="Pipeline that it runs.")
    config: str = Field(min_length=1, description="Path of the configuration file, relative to the schedule file.")
    set: dict[str, Any] = Field({}, description="Overrides of the configuration file, as `section.key: value`.")
    cron: Annotated[str, AfterValidator(complete)] = Field(
        description="Cron expression in the cluster's time zone: minute, hour, day, month, weekday; six fields have "
        "seconds first."
    )
    start: Moment | None = Field(None, description="Time before which no run starts (ISO 8601 with a time zone).")
    end: Moment | None = Field(None, description="Time after which no run starts (ISO 8601 with a time zone).")
    concurrency: Annotated[int, Field(ge=1, le=10)] = Field(1, description="Maximum number of concurrent runs.")
    catch_up: bool = Field(
        False, description="Whether a run is started for every missed tick; otherwise only for the last one."
    )
    paused: bool = Field(False, description="Whether the recurring run is kept but starts no runs.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start and self.end and self.start >= self.end:
            raise ValueError(f"schedule {self.name}: end is {self.end.isoformat()}, expected one after start")
        return self


class Schedules(Section):
    """All recurring runs of one owner. Recurring runs of the owner that are not declared are deleted."""

    owner: Owner = Field(
        "distilrank", description="Owner of the recurring runs; those of other owners are never changed."
    )
    timezone: Annotated[str, AfterValidator(_time_zone)] = Field(
        "UTC", description="Time zone of the cluster, for messages; Kubeflow has one for all schedules."
    )
    schedules: tuple[Schedule, ...] = Field(description="The recurring runs.")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [schedule.name for schedule in self.schedules]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{names.count(name)} schedules are called {name!r}, expected unique names")
        return self

    @property
    def zone(self) -> ZoneInfo:
        """Time zone of the cluster."""
        return ZoneInfo(self.timezone)


@dataclass(frozen=True)
class DesiredRun:
    """A declared schedule with its compiled pipeline: everything that a recurring run is created from."""

    schedule: Schedule
    package: Package
    experiment: str
    service_account: str
    pipeline_root: str

    @property
    def name(self) -> str:
        """Name of the schedule."""
        return self.schedule.name

    @property
    def digest(self) -> str:
        """SHA-256 of everything that cannot be changed in an existing recurring run; `paused` can."""
        settings = configuration.parameters(self.schedule)
        fixed = {key: settings[key] for key in ("name", "pipeline", "cron", "start", "end", "concurrency", "catch_up")}
        environment = {key: getattr(self, key) for key in ("experiment", "service_account", "pipeline_root")}
        return artifacts.digest_json(fixed | environment | {"package": self.package.digest})


def read(path: Path) -> Schedules:
    """Parse a schedule file.

    Raises:
        InputError: the file is missing, is not YAML, or is invalid.
    """
    values = configuration.read_yaml(path, "schedule", "owner, timezone and schedules")
    entries = values.get("schedules")
    for number, entry in enumerate(entries if isinstance(entries, list) else [], 1):
        if isinstance(entry, dict):  # one by one, so that errors give the name and not the index
            configuration.parse(entry, f"{path}: schedule {entry.get('name', number)}", model=Schedule)
    return configuration.parse(values, str(path), model=Schedules)


def compiled(declared: Schedules, path: Path, *, experiment: str) -> Iterator[DesiredRun]:
    """Compile the pipeline of each declared schedule.

    Args:
        declared: the parsed schedule file.
        path: the schedule file, for relative paths and messages.
        experiment: experiment of the runs on the cluster.

    Raises:
        InputError: a configuration is missing or invalid; the message names file and schedule.
    """
    for schedule in declared.schedules:
        # JSON is valid YAML, the syntax of --set.
        overrides = [f"{key}={json.dumps(value, default=str)}" for key, value in schedule.set.items()]
        try:
            config = configuration.load(path.parent / schedule.config, overrides)
            package = packages.compile_package(schedule.pipeline, config, scheduled=True)
        except InputError as error:
            raise InputError(f"{path}: schedule {schedule.name}: {error}") from None
        yield DesiredRun(
            schedule=schedule,
            package=package,
            experiment=experiment,
            service_account=config.cluster.service_account,
            pipeline_root=config.cluster.pipeline_root,
        )
