"""The Evidently workspace, where drift is a line over time."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
from evidently.core.report import Snapshot
from evidently.sdk.models import DashboardPanelPlot, PanelMetric, ProjectModel
from evidently.ui.workspace import Project, RemoteWorkspace, Workspace

from distilrank.config import Drift, Registry
from distilrank.core import artifacts, progress
from distilrank.core.errors import InputError

SECRET = "EVIDENTLY_SECRET"  # the environment variable that Evidently's own service reads
_RUN = "run:"  # prefix of the tag by which a snapshot is known again


def push_to_workspace(config: Drift, registry: Registry, *, drift: Path, name: str, newest_end: str) -> None:
    """Add a run's snapshot to the Evidently workspace, where drift is a line over time; once, however often called.

    The verdict does not depend on it: a workspace that cannot be used is one line of warning.

    Args:
        drift: folder with `snapshot.json` and `drift.json`; those of `watch` go into a project of their own, and
            nothing does where nothing was comparable.
        name: the run's.
        newest_end: ISO 8601, the end of the newest traffic, which is the point on the axis; empty: now.

    Raises:
        InputError: the folder is damaged.
    """
    if not config.workspace:
        return
    with artifacts.announcing("snapshot"):
        artifacts.require({"drift": drift})
    found = artifacts.read_json(drift / "drift.json")
    part = found["candidate"] or found["champion"]
    if not part["comparable"]:
        return
    at = datetime.fromisoformat(newest_end) if newest_end else datetime.now(UTC)
    try:
        added = push(
            config.workspace,
            f"distilrank {registry.uri}" + ("" if found["candidate"] else ", champion"),
            drift / "snapshot.json",
            against="the training window" if found["candidate"] else "the champion's reference",
            name=name,
            at=at if at.tzinfo else at.replace(tzinfo=UTC),
            facts={"share": f"{part['share']:.3f}", "alarm": _alarm(part)},
        )
    except InputError as error:
        progress.log_event("drift", "note", f"warning: {error}; the verdict stands, the history lacks this run")
        return
    progress.log_event("drift", "note", f"{config.workspace}: {'added' if added else 'already has'} {name}")


def _alarm(part: dict[str, Any]) -> str:
    """What raised the alarm: columns, or how many of them together."""
    counted = [column["drifted"] for column in part["columns"] if column["value"] is not None]
    return ", ".join(part["why"]) or (f"{sum(counted)} of {len(counted)} columns" if part["alarm"] else "none")


def check_workspace(config: Drift) -> None:
    """Look whether the workspace can be used, long before it is.

    Raises:
        InputError: it cannot.
    """
    if config.workspace:
        check(config.workspace)


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
