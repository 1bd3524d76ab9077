"""The Evidently workspace: the drift of all runs as lines over time."""

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
from distilrank.core.errors import InputError, one_line

SECRET = "EVIDENTLY_SECRET"  # the environment variable that Evidently's own service reads
_RUN_TAG = "run:"  # prefix of the tag that identifies a snapshot that was already added


def push_to_workspace(config: Drift, registry: Registry, *, drift: Path, name: str, newest_end: str) -> None:
    """Add a run's snapshot to the Evidently workspace, if one is configured. Calling it again adds nothing.

    The verdict does not depend on the workspace: if it cannot be used, one line warns of it.

    Args:
        config: address of the workspace.
        registry: its URI names the project.
        drift: folder with `snapshot.json` and `drift.json`. Snapshots of `measure_champion_drift` go into a separate
            project; nothing is added if nothing was comparable.
        name: the run's name.
        newest_end: end of the newest traffic, ISO 8601, which is the time on the axis; empty: now.

    Raises:
        InputError: the folder is damaged.
    """
    if not config.workspace:
        return
    with artifacts.logging_failure("snapshot"):
        artifacts.require({"drift": drift})
    content = artifacts.read_json(drift / "drift.json")
    part = content["candidate"] or content["champion"]
    if not part["comparable"]:
        return
    time = datetime.fromisoformat(newest_end) if newest_end else datetime.now(UTC)
    try:
        is_added = add_snapshot(
            config.workspace,
            f"distilrank {registry.uri}" + ("" if content["candidate"] else ", champion"),
            drift / "snapshot.json",
            against="the training window" if content["candidate"] else "the champion's reference",
            name=name,
            time=time if time.tzinfo else time.replace(tzinfo=UTC),
            metadata={"share": f"{part['share']:.3f}", "alarm": _describe_alarm(part)},
        )
    except InputError as error:
        progress.log_event("drift", "note", f"warning: {error}; the verdict stands, the history lacks this run")
        return
    progress.log_event("drift", "note", f"{config.workspace}: {'added' if is_added else 'already has'} {name}")


def check_workspace(config: Drift) -> None:
    """Open the configured workspace, if any, so that a run fails early rather than at its end.

    Raises:
        InputError: it cannot be reached, or is not a workspace.
    """
    if not config.workspace:
        return
    try:
        _open(config.workspace)
    except (OSError, ValueError, requests.RequestException) as error:
        raise InputError(f"drift.workspace {config.workspace}: cannot be used ({_one_line(error)})") from None


def add_snapshot(
    workspace: str,
    project: str,
    snapshot: Path,
    *,
    against: str,
    name: str,
    time: datetime,
    metadata: Mapping[str, str],
) -> bool:
    """Add a snapshot to a project of a workspace, unless the run of this name has already added the same one.

    Args:
        workspace: a local folder, which is created if missing, or the address of Evidently's service; if that requires
            a secret, the environment variable EVIDENTLY_SECRET holds it.
        project: name of the project; it is created if missing, with a panel of all columns over time.
        snapshot: file with the text that `evidently_page.render` returned.
        against: what the newest traffic is compared with, for the panels of a new project.
        name: the run's name.
        time: the time on the axis.
        metadata: stored with the snapshot.

    Returns:
        Whether it was added.

    Raises:
        InputError: the workspace cannot be reached or written, or is not a workspace; the snapshot cannot be read.
    """
    try:
        text = snapshot.read_text(encoding="utf-8")
        loaded = Snapshot.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{snapshot}: not a snapshot of Evidently ({_one_line(error)})") from None
    try:
        opened = _open(workspace)
        target = _find_or_create_project(opened, project, against)
        tag = f"{_RUN_TAG}{uuid.uuid5(target.id, name + text)}"
        if tag in _snapshot_tags(opened, target.id):
            return False
        changes = {
            "name": name,
            "timestamp": time.astimezone(UTC).replace(tzinfo=None),
            "tags": [tag],
            "metadata": dict(metadata),
        }
        model = loaded.to_snapshot_model().copy(update=changes)
        opened.add_run(target.id, Snapshot.load_model(model), include_data=False, name=name)
    except (OSError, ValueError, requests.RequestException) as error:
        raise InputError(f"drift.workspace {workspace}: cannot be used ({_one_line(error)})") from None
    return True


def is_remote(workspace: str) -> bool:
    """Whether the workspace is a service rather than a folder."""
    return workspace.startswith(("http://", "https://"))


def _describe_alarm(part: dict[str, Any]) -> str:
    """What raised the alarm: columns by name, or their number if only together they did."""
    is_drifted = [column["drifted"] for column in part["columns"] if column["value"] is not None]
    together = f"{sum(is_drifted)} of {len(is_drifted)} columns" if part["alarm"] else "none"
    return ", ".join(part["why"]) or together


def _one_line(error: Exception) -> str:
    return one_line(error)


def _open(workspace: str) -> Workspace | RemoteWorkspace:
    if is_remote(workspace):
        return RemoteWorkspace(workspace.rstrip("/") + "/", secret=os.environ.get(SECRET))
    Path(workspace).mkdir(parents=True, exist_ok=True)
    return Workspace.create(workspace)


def _find_or_create_project(workspace: Workspace | RemoteWorkspace, name: str, against: str) -> Project:
    same_name = [project for project in workspace.list_projects() if project.name == name]
    if same_name:
        return min(same_name, key=lambda project: str(project.id))
    project = workspace.add_project(ProjectModel(name=name, description="Drift of search traffic, run by run."))
    distance = PanelMetric(metric="ValueDrift", legend="{{column}}", view_params={})
    share = PanelMetric(metric="DriftedColumnsCount", metric_labels={"value_type": "share"}, legend="share")
    for title, metric in (("Distance of each column", distance), ("Share of drifted columns", share)):
        panel = DashboardPanelPlot(
            title=title,
            subtitle=f"Newest traffic against {against}",
            size="full",
            values=[metric],
            plot_params={"plot_type": "line"},
        )
        project.dashboard.add_panel(panel)
    return project


def _snapshot_tags(workspace: Workspace | RemoteWorkspace, project: uuid.UUID) -> set[str]:
    """Tags of all snapshots of a project."""
    if isinstance(workspace, RemoteWorkspace):  # its client does not list snapshots, but the service does
        listed = workspace._request(f"/api/projects/{project}/snapshots", "GET").json()
        return {tag for snapshot in listed for tag in snapshot["tags"]}
    runs = (workspace.get_run(project, run_id) for run_id in workspace.list_runs(project))
    return {tag for run in runs if run is not None for tag in run.tags}
