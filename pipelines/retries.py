"""Retries of whole runs: Kubeflow's API runs again what failed of a run, which its own retries of pods rarely do.

Kubeflow's manifests give every template of a workflow `retryPolicy: OnError`, and KFP's compiler cannot set another: a
pod that was deleted is started again, one that ended by itself, was evicted or was killed for its memory is not.
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
OWN = {Cause.BAD_INPUT, Cause.STOPPED}
"""Causes that the same inputs bring back."""


def parse_age(text: str) -> timedelta:
    """A duration such as `90m`, `6h` or `2d`.

    Raises:
        InputError: it is none.
    """
    match = AGE.fullmatch(text)
    if match is None:
        raise InputError(f"--failed-since {text}: expected a number of minutes, hours or days such as 90m, 6h or 2d")
    return timedelta(**{UNITS[match["unit"]]: int(match["count"])})


def retry_one(kubeflow: Kubeflow, name: str, *, force: bool) -> api.V2beta1Run:
    """Retry the run of this id or name, and return it as it was before.

    Raises:
        InputError: there is none, it has not failed, or its own input was refused and `force` is not set.
    """
    run = kubeflow.run_named(name)
    if run.state not in ("FAILED", "CANCELED"):
        raise InputError(
            f"run {name}: is {run.state.lower()}, expected one that failed: {kubeflow.run_url(run.run_id)}"
        )
    end = kubeflow.end(run.run_id)
    if not force and OWN & {failure.cause for failure in end.failures}:
        raise InputError(
            f"run {name}: {end.summary}; it would end so again. Correct the cause and submit a new run; where only the "
            "data that it reads had to be corrected, --force retries this one with its configuration"
        )
    kubeflow.retry(run.run_id)
    return run


def retry_failed(kubeflow: Kubeflow, *, since: timedelta, max_retries: int, owner: str) -> Iterator[tuple[str, bool]]:
    """Retry what failed lately and may pass; of each run that failed a line, and whether its retry was refused.

    One that Kubeflow refuses to retry (its pods may still be ending) does not keep the others from it.

    Args:
        kubeflow: where.
        since: how long ago a run may have failed.
        max_retries: how often a run is retried, by anybody.
        owner: whose recurring runs must have started it; empty: anybody's runs of distilrank's pipelines.
    """
    oldest = datetime.now(UTC) - since
    pipelines = kubeflow.own_pipelines()
    recurring_runs = {one.id for one in reconcile.existing(kubeflow, owner)} if owner else None
    for run in kubeflow.failed_runs():
        reference = run.pipeline_version_reference
        if run.finished_at is None or run.finished_at < oldest or run.storage_state == "ARCHIVED":
            continue
        if reference is None or reference.pipeline_id not in pipelines:
            continue
        if recurring_runs is not None and run.recurring_run_id not in recurring_runs:
            continue
        end = kubeflow.end(run.run_id)
        verdict, is_refused = _objection(run, end, max_retries) or "retried", False
        if verdict == "retried":
            try:
                kubeflow.retry(run.run_id)
            except (InputError, RuntimeError) as error:
                verdict, is_refused = f"not retried, {error}", True
        yield f"{run.display_name}: {end.summary}: {verdict}", is_refused


def _objection(run: api.V2beta1Run, end: RunEnd, max_retries: int) -> str:
    """Why a run is not retried; empty: it is."""
    retries = sum(status.state == "FAILED" for status in run.state_history or []) - 1
    if not end.may_pass:
        return "not retried, it would end so again"
    if retries >= max_retries:
        return f"not retried, after {retries} retries"
    if end.is_out_of_memory and retries > 0:
        hint = next(failure.hint for failure in end.failures if failure.cause == Cause.OUT_OF_MEMORY)
        return f"not retried, {hint}"
    return ""
