"""Retry whole runs: Kubeflow's API reruns the failed stages of a run, where its own retries of pods rarely apply.

Kubeflow's manifests give every template of a workflow `retryPolicy: OnError`, and KFP's compiler cannot set another. So
a deleted pod is restarted, but not one that exited with an error, was evicted or ran out of memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import kfp_server_api as api

from distilrank.core.errors import InputError
from distilrank.workflow import Cause, RunEnd
from pipelines.kubeflow import Kubeflow
from pipelines.recurring_runs import reconcile

AGE = re.compile(r"(?P<count>[1-9]\d{0,4})(?P<unit>[mhd])")
UNITS = {"m": "minutes", "h": "hours", "d": "days"}
PERMANENT_CAUSES = {Cause.BAD_INPUT, Cause.STOPPED}
"""Causes that recur with the same inputs."""


def parse_age(text: str) -> timedelta:
    """Parse a duration such as `90m`, `6h` or `2d`.

    Raises:
        InputError: the text is not a duration.
    """
    match = AGE.fullmatch(text)
    if match is None:
        raise InputError(f"--failed-since {text}: expected a number of minutes, hours or days such as 90m, 6h or 2d")
    return timedelta(**{UNITS[match["unit"]]: int(match["count"])})


def retry_one(kubeflow: Kubeflow, name: str, *, force: bool) -> api.V2beta1Run:
    """Retry the run with this ID or name, and return it as it was before.

    Raises:
        InputError: there is no such run, it has not failed, or it failed on bad input and `force` is not set.
    """
    run = kubeflow.run_named(name)
    if run.state not in ("FAILED", "CANCELED"):
        raise InputError(
            f"run {name}: is {run.state.lower()}, expected one that failed: {kubeflow.run_url(run.run_id)}"
        )
    end = kubeflow.end(run.run_id)
    if not force and PERMANENT_CAUSES & {failure.cause for failure in end.failures}:
        raise InputError(
            f"run {name}: {end.summary}; a retry would fail the same way. Correct the cause and submit a new run; if "
            "only the data was corrected, --force retries this run with its configuration"
        )
    kubeflow.retry(run.run_id)
    return run


def retry_failed(kubeflow: Kubeflow, *, since: timedelta, max_retries: int, owner: str) -> Iterator[tuple[str, bool]]:
    """Retry recent runs with transient failures.

    A run whose retry Kubeflow refuses (its pods may still be terminating) does not prevent retries of others.

    Args:
        kubeflow: connection to the cluster.
        since: maximum time since the failure.
        max_retries: maximum number of retries of a run, including those by others.
        owner: only runs that recurring runs of this owner started; empty: all runs of our pipelines.

    Yields:
        For each failed run a line, and whether Kubeflow refused the retry.
    """
    oldest = datetime.now(UTC) - since
    pipelines = kubeflow.own_pipelines()
    recurring_runs = {recurring_run.id for recurring_run in reconcile.existing(kubeflow, owner)} if owner else None
    for run in kubeflow.failed_runs():
        reference = run.pipeline_version_reference
        if run.finished_at is None or run.finished_at < oldest or run.storage_state == "ARCHIVED":
            continue
        if reference is None or reference.pipeline_id not in pipelines:
            continue
        if recurring_runs is not None and run.recurring_run_id not in recurring_runs:
            continue
        end = kubeflow.end(run.run_id)
        outcome, is_refused = _objection(run, end, max_retries) or "retried", False
        if outcome == "retried":
            try:
                kubeflow.retry(run.run_id)
            except (InputError, RuntimeError) as error:
                outcome, is_refused = f"not retried, {error}", True
        yield f"{run.display_name}: {end.summary}: {outcome}", is_refused


def _objection(run: api.V2beta1Run, end: RunEnd, max_retries: int) -> str:
    """Return why a run is not retried; empty if it is."""
    retries = sum(status.state == "FAILED" for status in run.state_history or []) - 1
    if not end.may_pass:
        return "not retried, a retry would fail the same way"
    if retries >= max_retries:
        return f"not retried, after {retries} retries"
    if end.is_out_of_memory and retries > 0:
        hint = next(failure.hint for failure in end.failures if failure.cause == Cause.OUT_OF_MEMORY)
        return f"not retried, {hint}"
    return ""
