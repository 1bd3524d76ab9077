"""Evidently's page, its snapshots, and the workspace that keeps them; the only module that imports Evidently."""

from __future__ import annotations

import html
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import requests
from evidently import DataDefinition, Dataset, Report
from evidently.core.report import Snapshot
from evidently.presets import DataDriftPreset
from evidently.sdk.models import DashboardPanelPlot, PanelMetric, ProjectModel
from evidently.ui.workspace import Project, RemoteWorkspace, Workspace

from distilrank.core.errors import InputError
from distilrank.drift.columns import Column

METHODS = {"numeric": "wasserstein", "categorical": "jensenshannon"}
LESS = "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}"
SECRET = "EVIDENTLY_SECRET"  # the environment variable that Evidently's own service reads
_RANDOM = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}|metric_[0-9a-f]{32}")
_RUN = "run:"  # prefix of the tag by which a snapshot is known again


@dataclass(frozen=True)
class Pages:
    """What Evidently makes of two samples, as texts; the same for the same samples."""

    page: str
    snapshot: str


def render(
    columns: Sequence[Column],
    bounds: Mapping[str, float],
    share: float,
    rows: int,
    *,
    title: str,
    caption: str,
    notes: Sequence[str],
) -> Pages:
    """Evidently's page under a heading of our own, and its snapshot.

    Args:
        columns: none of them absent.
        bounds: the distance from which each has drifted.
        share: of drifted columns, above which Evidently calls the data set drifted.
        rows: most rows of each sample that Evidently is given, drawn with a fixed seed.
        title: heading.
        caption: what is compared.
        notes: lines below it.
    """
    definition = DataDefinition(
        numerical_columns=[column.name for column in columns if column.kind == "numeric"],
        categorical_columns=[column.name for column in columns if column.kind == "categorical"],
    )

    def dataset(side: str) -> Dataset:
        frame = pd.DataFrame({column.name: pd.Series(_values(column, side, rows)) for column in columns})
        return Dataset.from_pandas(frame, data_definition=definition)

    preset = DataDriftPreset(
        columns=[column.name for column in columns],
        per_column_method={column.name: METHODS[column.kind] for column in columns},
        per_column_threshold={column.name: bounds[column.name] for column in columns},
        drift_share=share,
    )
    cut = max(max(column.reference.size, column.current.size) for column in columns) > rows
    if cut:
        notes = [*notes, f"This page shows at most {rows:,} rows of each sample; drift.json is computed from all."]
    with np.errstate(divide="ignore", invalid="ignore"):  # it also correlates columns, constant ones too
        snapshot = Report([preset], include_tests=True).run(
            dataset("current"), dataset("reference"), timestamp=datetime(1970, 1, 1)
        )
    page = _repeatable(snapshot.get_html_str(as_iframe=False))
    return Pages(_headed(page, title, caption, notes), _repeatable(snapshot.dumps()))


def _values(column: Column, side: str, rows: int) -> np.ndarray:
    values = getattr(column, side)
    if len(values) > rows:
        values = values[np.sort(np.random.default_rng(0).choice(len(values), rows, replace=False))]
    if column.kind == "numeric":
        return values
    # Evidently copies names of categories unescaped into a script and into labels.
    return np.array([name.replace("<", LESS) for name in column.names], dtype=object)[values]


def _repeatable(text: str) -> str:
    """Widgets carry random identifiers; naming them by order of appearance makes the folder's digest repeatable."""
    names: dict[str, str] = {}
    return _RANDOM.sub(lambda match: names.setdefault(match[0], f"widget_{len(names)}"), text)


def _headed(page: str, title: str, caption: str, notes: Sequence[str]) -> str:
    lines = "".join(f"<p style='margin:4px 0'>{html.escape(text)}</p>" for text in (caption, *notes))
    heading = (
        "<header style='font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:24px 24px 0;color:#444'>"
        f"<h1 style='font-size:22px;color:#111;margin:0'>{html.escape(title)}</h1>{lines}</header>"
    )
    page = page.replace("<head>", f"<head><title>{html.escape(title)}</title>", 1)
    return page.replace("<body>", f"<body>{heading}", 1).lstrip()


# Workspace --------------------------------------------------------------------------------------------------------


def push(
    workspace: str,
    project: str,
    snapshot: Path,
    *,
    against: str,
    name: str,
    at: datetime,
    facts: Mapping[str, str],
) -> bool:
    """Add a snapshot to a project of a workspace, unless the run of this name has brought the same one already.

    Args:
        workspace: a local folder, made if missing, or the address of Evidently's service; where that asks for a secret,
            the environment variable EVIDENTLY_SECRET holds it.
        project: its name; made if missing, with a panel of all columns over time.
        snapshot: file that `render` gave the text of.
        against: what the newest traffic is compared with, for the panels of a new project.
        name: of the run.
        at: the time on the axis.
        facts: kept beside it.

    Returns:
        Whether it was added.

    Raises:
        InputError: the workspace cannot be reached or written, or is none; the snapshot cannot be read.
    """
    try:
        found = Snapshot.loads(snapshot.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{snapshot}: not a snapshot of Evidently ({_line(error)})") from None
    try:
        opened = _open(workspace)
        home = _project(opened, project, against)
        tag = f"{_RUN}{uuid.uuid5(home.id, name + snapshot.read_text(encoding='utf-8'))}"
        if tag in _tags(opened, home.id):
            return False
        model = found.to_snapshot_model()
        stamped = model.copy(
            update={"name": name, "timestamp": at.astimezone(UTC).replace(tzinfo=None), "tags": [tag],
                    "metadata": dict(facts)}
        )  # fmt: skip
        opened.add_run(home.id, Snapshot.load_model(stamped), include_data=False, name=name)
    except (OSError, ValueError, requests.RequestException) as error:
        raise InputError(f"drift.workspace {workspace}: cannot be used ({_line(error)})") from None
    return True


def check(workspace: str) -> None:
    """Open a workspace.

    Raises:
        InputError: it cannot be reached, or is none.
    """
    try:
        _open(workspace)
    except (OSError, ValueError, requests.RequestException) as error:
        raise InputError(f"drift.workspace {workspace}: cannot be used ({_line(error)})") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def remote(workspace: str) -> bool:
    """Whether it is a service rather than a folder."""
    return workspace.startswith(("http://", "https://"))


def _open(workspace: str) -> Workspace | RemoteWorkspace:
    if remote(workspace):
        return RemoteWorkspace(workspace.rstrip("/") + "/", secret=os.environ.get(SECRET))
    Path(workspace).mkdir(parents=True, exist_ok=True)
    return Workspace.create(workspace)


def _project(workspace: Workspace | RemoteWorkspace, name: str, against: str) -> Project:
    found = [one for one in workspace.list_projects() if one.name == name]
    if found:
        return min(found, key=lambda one: str(one.id))
    project = workspace.add_project(ProjectModel(name=name, description="Drift of search traffic, run by run."))
    moved = PanelMetric(metric="ValueDrift", legend="{{column}}", view_params={})
    share = PanelMetric(metric="DriftedColumnsCount", metric_labels={"value_type": "share"}, legend="share")
    for title, metric in (("Distance of each column", moved), ("Share of drifted columns", share)):
        project.dashboard.add_panel(
            DashboardPanelPlot(
                title=title, subtitle=f"Newest traffic against {against}", size="full", values=[metric],
                plot_params={"plot_type": "line"},
            )
        )  # fmt: skip
    return project


def _tags(workspace: Workspace | RemoteWorkspace, project: uuid.UUID) -> set[str]:
    """Of all snapshots of a project."""
    if isinstance(workspace, RemoteWorkspace):  # its client lists no snapshots, but the service does
        listed = workspace._request(f"/api/projects/{project}/snapshots", "GET").json()
        return {tag for one in listed for tag in one["tags"]}
    runs = (workspace.get_run(project, one) for one in workspace.list_runs(project))
    return {tag for run in runs if run is not None for tag in run.tags}
