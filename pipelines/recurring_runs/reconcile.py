"""Reconcile recurring runs with their declaration: compare desired and existing ones, and make the difference.

The API can create, enable, disable and delete a recurring run, but not change one. A change therefore takes four steps:
create a new recurring run, disabled; disable the old one; enable the new one; delete the old one. At no time are two of
the same name enabled. The existing recurring runs are read again before each round and after the last, so that an
interrupted reconciliation is completed by the next one.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal
from zoneinfo import ZoneInfo

import kfp_server_api as api

from distilrank.core.errors import InputError
from pipelines.kubeflow import DISABLE, ENABLE, Kubeflow, Version
from pipelines.recurring_runs import cron
from pipelines.recurring_runs.spec import DesiredRun

NOTE = "Kept by `python -m pipelines schedule apply`."
MARK = re.compile(r"distilrank: owner=(?P<owner>\S+) digest=(?P<digest>[0-9a-f]{64})$", re.MULTILINE)
ROUNDS = 5
"""Maximum number of rounds. Creation, replacement and confirmation take three; concurrent changes may take more."""

Verb = Literal["create", "disable", "enable", "delete"]


@dataclass(frozen=True)
class Existing:
    """A recurring run of ours on the cluster."""

    id: str
    name: str
    digest: str
    """Digest of its `DesiredRun`, from the description; empty: its pipeline version was deleted."""
    version: Version | None
    enabled: bool
    created: datetime
    changed: datetime
    """Time at which it was last enabled or disabled."""


@dataclass(frozen=True)
class Step:
    """One write to the API."""

    verb: Verb
    name: str
    target: Existing | None
    """The recurring run to change; None if one is to be created."""
    reason: str

    def __str__(self) -> str:
        target_id = f" {self.target.id}" if self.target else ""
        return f"{self.name}: {self.verb}{target_id} ({self.reason})"


def marked(owner: str, digest: str) -> str:
    """Return the description that marks a recurring run as ours and records its digest.

    Kubeflow's database stores 255 characters. The note is short, since the chart's owner, NAMESPACE.RELEASE, has up to
    117. Only the second line is parsed (`MARK`). Earlier versions of distilrank wrote a longer note and the same second
    line, so their recurring runs are recognized.
    """
    return f"{NOTE}\ndistilrank: owner={owner} digest={digest}"


def existing(kubeflow: Kubeflow, owner: str) -> list[Existing]:
    """Return the recurring runs of `owner`, without those of other owners and those created by hand."""
    own = []
    for row in kubeflow.recurring_runs():
        mark = MARK.search(row.description or "")
        if mark and mark["owner"] == owner:
            reference = row.pipeline_version_reference
            own.append(
                Existing(
                    id=row.recurring_run_id,
                    name=row.display_name,
                    digest=mark["digest"],
                    version=reference and Version(reference.pipeline_id, reference.pipeline_version_id),
                    enabled=row.mode == ENABLE,
                    created=row.created_at,
                    changed=row.updated_at or row.created_at,
                )
            )
    return own


def mark_broken(kubeflow: Kubeflow, runs: Iterable[Existing]) -> list[Existing]:
    """Clear the digest of recurring runs that can no longer start runs, because their pipeline version was deleted."""
    runs = list(runs)
    exists = {version: kubeflow.has(version) for version in {run.version for run in runs} if version}
    return [run if run.version and exists[run.version] else replace(run, digest="") for run in runs]


def plan(desired: Iterable[DesiredRun], existing_runs: Iterable[Existing], names: Sequence[str] = ()) -> list[Step]:
    """Return the missing steps in the order in which they must be taken.

    Args:
        desired: the complete declaration.
        existing_runs: all recurring runs of the owner.
        names: only these; empty: all, and recurring runs that are not declared are deleted.
    """
    by_name: dict[str, list[Existing]] = defaultdict(list)
    for run in existing_runs:
        by_name[run.name].append(run)
    declared = {run.name: run for run in desired}
    considered = dict.fromkeys(names) or sorted({*declared, *by_name})
    return [step for name in considered for step in _steps(name, declared.get(name), by_name[name])]


def _steps(name: str, desired: DesiredRun | None, existing_runs: list[Existing]) -> list[Step]:
    up_to_date = [run for run in existing_runs if desired and run.digest == desired.digest]
    # The order is total, so that processes that apply the same declaration concurrently keep the same one.
    current = min(up_to_date, key=lambda run: (not run.enabled, run.created, run.id), default=None)
    others = [run for run in existing_runs if run is not current]
    is_active = desired is not None and not desired.schedule.paused
    steps = []
    if desired and not current:
        steps.append(Step("create", name, None, "changed" if existing_runs else "new"))
    for run in others:
        if run.enabled and desired:
            steps.append(Step("disable", name, run, _removal_reason(run, desired)))
    if desired and is_active and not (current and current.enabled):
        steps.append(Step("enable", name, current, "not paused"))
    if current and current.enabled and not is_active:
        steps.append(Step("disable", name, current, "paused"))
    return steps + [Step("delete", name, run, _removal_reason(run, desired)) for run in others]


def _removal_reason(run: Existing, desired: DesiredRun | None) -> str:
    if desired is None:
        return "not declared"
    if not run.digest:
        return "its pipeline version was deleted"
    return "duplicate" if run.digest == desired.digest else "outdated"


def apply(
    kubeflow: Kubeflow,
    owner: str,
    desired: Sequence[DesiredRun],
    *,
    zone: ZoneInfo,
    names: Sequence[str] = (),
    report: Callable[[str], None],
) -> int:
    """Make the recurring runs of `owner` match their declaration. Idempotent, and safe to interrupt at any point.

    Args:
        kubeflow: connection to the cluster.
        owner: owner of the recurring runs.
        desired: the complete declaration.
        zone: time zone of the cluster, for messages about ticks.
        names: change only these; empty: all, and recurring runs that are not declared are deleted.
        report: called with a line for each write, and for each tick missed between disabling and enabling.

    Returns:
        Number of writes.

    Raises:
        InputError, RuntimeError: as `Kubeflow` raises them, with the number of writes until then; the next call
            completes the rest.
        RuntimeError: another process keeps changing the same recurring runs.
    """
    declared = {run.name: run for run in desired}
    writes = 0
    disabled: dict[str, datetime] = {}
    try:
        for _ in range(ROUNDS):
            existing_runs = mark_broken(kubeflow, existing(kubeflow, owner))
            steps = plan(desired, existing_runs, names)
            if not steps:
                return writes
            # Where a recurring run is created, the other steps of its name wait for the next round: a concurrent
            # process may have created one too.
            new = {step.name for step in steps if step.verb == "create"}
            for step in steps:
                if step.name in new and step.verb != "create":
                    continue
                _write(kubeflow, owner, step, declared.get(step.name))
                writes += 1
                report(str(step))
                if step.verb == "disable":
                    disabled.setdefault(step.name, datetime.now(UTC))
                if step.verb == "enable":
                    assert step.target is not None
                    idle = [run.changed for run in existing_runs if run.name == step.name and run is not step.target]
                    since = disabled.pop(step.name, max(idle, default=step.target.created))
                    for line in _missed(declared[step.name], since, step.target.created, zone):
                        report(line)
    except (InputError, RuntimeError) as error:
        disabled_names = [name for name in disabled if not declared[name].schedule.paused]
        raise type(error)(f"{error}{_progress_note(writes, disabled_names)}") from None
    raise RuntimeError(f"{kubeflow.host}: another process keeps changing the recurring runs of {owner}; apply again")


def _progress_note(writes: int, disabled_names: Sequence[str]) -> str:
    """Describe an interrupted reconciliation for its error message; empty if nothing was written."""
    if not writes:
        return ""
    until = f"; until then {', '.join(disabled_names)} may start no runs" if disabled_names else ""
    return f"; changes made so far: {writes}, the same command completes the rest{until}"


def _write(kubeflow: Kubeflow, owner: str, step: Step, desired: DesiredRun | None) -> None:
    if step.target is None:
        assert desired is not None
        kubeflow.create_recurring_run(_recurring_run(kubeflow, owner, desired))
    else:
        {"disable": kubeflow.disable, "enable": kubeflow.enable, "delete": kubeflow.delete}[step.verb](step.target.id)


def _recurring_run(kubeflow: Kubeflow, owner: str, desired: DesiredRun) -> api.V2beta1RecurringRun:
    """Build the recurring run to create: disabled, with the configuration that was compiled in."""
    schedule = desired.schedule
    trigger = api.V2beta1CronSchedule(cron=schedule.cron, start_time=schedule.start, end_time=schedule.end)
    return api.V2beta1RecurringRun(
        display_name=desired.name,
        description=marked(owner, desired.digest),
        pipeline_version_reference=kubeflow.version(desired.package).reference(),
        runtime_config=api.V2beta1RuntimeConfig(pipeline_root=desired.pipeline_root or None, parameters={}),
        service_account=desired.service_account or None,
        max_concurrency=str(schedule.concurrency),
        trigger=api.V2beta1Trigger(cron_schedule=trigger),
        mode=DISABLE,
        no_catchup=not schedule.catch_up,
        experiment_id=kubeflow.experiment(desired.experiment),
    )


def _missed(desired: DesiredRun, since: datetime, created: datetime, zone: ZoneInfo) -> Iterable[str]:
    """Yield a line if a tick fell between disabling the old and enabling the new one, created at `created`."""
    now = datetime.now(UTC)
    missed, started = (
        [
            tick
            for tick in itertools.islice(cron.ticks(desired.schedule.cron, moment.astimezone(zone)), 1)
            if tick <= now
        ]
        for moment in (since, max(since, created))
    )
    if missed:
        ticks = "every missed tick" if desired.schedule.catch_up else "the last missed tick"
        consequence = f"Kubeflow now starts the run of {ticks}" if started else "no run is started for it"
        yield (
            f"{desired.name}: the tick of {missed[0]:%Y-%m-%d %H:%M:%S %Z} fell between disabling the old and enabling "
            f"the new; {consequence}"
        )


def next_tick(desired: DesiredRun, zone: ZoneInfo) -> datetime | None:
    """Return the time of the next run in the time zone of the cluster; None if there is none."""
    schedule = desired.schedule
    after = max(datetime.now(UTC), schedule.start or datetime.min.replace(tzinfo=UTC))
    tick = next(cron.ticks(schedule.cron, after.astimezone(zone)), None)
    return None if tick is None or (schedule.end and tick > schedule.end) else tick


def switch(kubeflow: Kubeflow, owner: str, names: Sequence[str], *, on: bool) -> list[str]:
    """Enable or disable recurring runs now, and return the names of the changed ones.

    Args:
        kubeflow: connection to the cluster.
        owner: owner of the recurring runs.
        names: only these; empty: all.
        on: True to enable, False to disable.

    Raises:
        InputError: a name has no recurring run, or several after an interrupted reconciliation.
    """
    selected = _select(kubeflow, owner, names)
    changed = []
    for name in sorted({run.name for run in selected}):
        runs = [run for run in selected if run.name == name]
        if on and len(runs) > 1:
            raise InputError(
                f"{name}: has {len(runs)} recurring runs after an interrupted change, expected one; run "
                "`schedule apply` first"
            )
        for run in runs:
            if run.enabled != on:
                (kubeflow.enable if on else kubeflow.disable)(run.id)
                changed.append(name)
    return changed


def delete(kubeflow: Kubeflow, owner: str, names: Sequence[str]) -> list[str]:
    """Delete recurring runs of `owner`, and return the names of the deleted ones.

    Args:
        kubeflow: connection to the cluster.
        owner: owner of the recurring runs.
        names: only these; empty: all, if any.

    Raises:
        InputError: a name has no recurring run.
    """
    selected = _select(kubeflow, owner, names)
    for run in selected:
        kubeflow.delete(run.id)
    return [run.name for run in selected]


def _select(kubeflow: Kubeflow, owner: str, names: Sequence[str]) -> list[Existing]:
    """Return the recurring runs of `owner` with one of `names`, or all if there are no names."""
    own = existing(kubeflow, owner)
    existing_names = sorted({run.name for run in own})
    for name in names:
        if name not in existing_names:
            expected = f"expected one of {', '.join(existing_names)}" if existing_names else "which has none"
            raise InputError(f"{name}: no such recurring run of {owner}, {expected}")
    return [run for run in own if not names or run.name in names]
