"""Recurring runs as declared state: hold what is wanted against what is there, and do what is missing.

The API can create, enable, disable and delete recurring runs, and change none. So a change is a new recurring run, made
disabled; then the old one is disabled, the new one enabled, and the old one deleted: at no moment are two of a name
enabled. What is there is read again before each of these steps is decided and after the last, so whatever interrupts
them, the next application takes up what it finds.
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
from pipelines.recurring_runs.spec import Wanted

NOTE = "Kept by `python -m pipelines schedule apply`."
MARK = re.compile(r"distilrank: owner=(?P<owner>\S+) digest=(?P<digest>[0-9a-f]{64})$", re.MULTILINE)
ROUNDS = 5
"""Looks at what is there: creation, exchange and confirmation take three; someone else at work may take more."""

Verb = Literal["create", "disable", "enable", "delete"]


@dataclass(frozen=True)
class Existing:
    """A recurring run of ours, as it is on the cluster."""

    id: str
    name: str
    digest: str
    """As its description says; empty: its pipeline version is gone."""
    version: Version | None
    enabled: bool
    created: datetime
    changed: datetime
    """When it was last enabled or disabled."""


@dataclass(frozen=True)
class Step:
    """One write."""

    verb: Verb
    name: str
    target: Existing | None
    """None: what is to be created."""
    reason: str

    def __str__(self) -> str:
        which = f" {self.target.id}" if self.target else ""
        return f"{self.name}: {self.verb}{which} ({self.reason})"


def marked(owner: str, digest: str) -> str:
    """The description by which a recurring run is known as ours, and as up to date.

    Kubeflow's database holds 255 characters of it, and the note is short for the owner's sake: that of the chart,
    NAMESPACE.RELEASE, has up to 117. Only the second line is read (`MARK`). It is the same as in descriptions whose
    note was longer, so recurring runs of earlier versions of distilrank are recognized, and exchanged or kept like any.
    """
    return f"{NOTE}\ndistilrank: owner={owner} digest={digest}"


def existing(kubeflow: Kubeflow, owner: str) -> list[Existing]:
    """The recurring runs of `owner`; those of others and those made by hand are left out, and so left alone."""
    found = []
    for one in kubeflow.recurring_runs():
        mark = MARK.search(one.description or "")
        if mark and mark["owner"] == owner:
            reference = one.pipeline_version_reference
            found.append(
                Existing(
                    id=one.recurring_run_id,
                    name=one.display_name,
                    digest=mark["digest"],
                    version=reference and Version(reference.pipeline_id, reference.pipeline_version_id),
                    enabled=one.mode == ENABLE,
                    created=one.created_at,
                    changed=one.updated_at or one.created_at,
                )
            )
    return found


def usable(kubeflow: Kubeflow, found: Iterable[Existing]) -> list[Existing]:
    """The same, those without a digest that can start no run any more: their pipeline version was deleted."""
    found = list(found)
    there = {version: kubeflow.has(version) for version in {one.version for one in found} if version}
    return [one if one.version and there[one.version] else replace(one, digest="") for one in found]


def plan(wanted: Iterable[Wanted], found: Iterable[Existing], names: Sequence[str] = ()) -> list[Step]:
    """What lacks, in the order in which it must be done.

    Args:
        wanted: the whole declared state.
        found: what is there, all of one owner.
        names: consider only these; empty: all, and what is not declared is deleted.
    """
    by_name: dict[str, list[Existing]] = defaultdict(list)
    for one in found:
        by_name[one.name].append(one)
    declared = {one.name: one for one in wanted}
    considered = dict.fromkeys(names) or sorted({*declared, *by_name})
    return [step for name in considered for step in _steps(name, declared.get(name), by_name[name])]


def _steps(name: str, wanted: Wanted | None, found: list[Existing]) -> list[Step]:
    alike = [one for one in found if wanted and one.digest == wanted.digest]
    # Whoever else applies the same state at this moment chooses the same one.
    kept = min(alike, key=lambda one: (not one.enabled, one.created, one.id), default=None)
    others = [one for one in found if one is not kept]
    start = wanted is not None and not wanted.schedule.paused
    steps = []
    if wanted and not kept:
        steps.append(Step("create", name, None, "changed" if found else "new"))
    for one in others:
        if one.enabled and wanted:
            steps.append(Step("disable", name, one, _fate(one, wanted)))
    if wanted and start and not (kept and kept.enabled):
        steps.append(Step("enable", name, kept, "not paused"))
    if kept and kept.enabled and not start:
        steps.append(Step("disable", name, kept, "paused"))
    return steps + [Step("delete", name, one, _fate(one, wanted)) for one in others]


def _fate(one: Existing, wanted: Wanted | None) -> str:
    if wanted is None:
        return "not declared"
    if not one.digest:
        return "its pipeline version is gone"
    return "one too many" if one.digest == wanted.digest else "outdated"


def apply(
    kubeflow: Kubeflow,
    owner: str,
    wanted: Sequence[Wanted],
    *,
    zone: ZoneInfo,
    names: Sequence[str] = (),
    say: Callable[[str], None],
) -> int:
    """Make the recurring runs of `owner` what is wanted; safe to interrupt anywhere, and to repeat.

    Args:
        kubeflow: where.
        owner: whose recurring runs these are.
        wanted: the whole declared state.
        zone: the cluster's, to tell ticks by.
        names: touch only these; empty: all, and what is not declared is deleted.
        say: gets a line for each write, and one for each tick that fell between disabling and enabling.

    Returns:
        How many writes it took.

    Raises:
        InputError, RuntimeError: as `Kubeflow` raises them, with what was done until then, which the next call takes
            up.
        RuntimeError: somebody else changes the same recurring runs all the time.
    """
    declared = {one.name: one for one in wanted}
    writes = 0
    disabled: dict[str, datetime] = {}
    try:
        for _ in range(ROUNDS):
            found = usable(kubeflow, existing(kubeflow, owner))
            steps = plan(wanted, found, names)
            if not steps:
                return writes
            # A name whose recurring run is yet to be created gets it first, and is looked at again: somebody who
            # applies at the same time may have created one too.
            new = {step.name for step in steps if step.verb == "create"}
            for step in steps:
                if step.name in new and step.verb != "create":
                    continue
                _write(kubeflow, owner, step, declared.get(step.name))
                writes += 1
                say(str(step))
                if step.verb == "disable":
                    disabled.setdefault(step.name, datetime.now(UTC))
                if step.verb == "enable":
                    assert step.target is not None
                    idle = [one.changed for one in found if one.name == step.name and one is not step.target]
                    since = disabled.pop(step.name, max(idle, default=step.target.created))
                    for line in _missed(declared[step.name], since, step.target.created, zone):
                        say(line)
    except (InputError, RuntimeError) as error:
        halted = [name for name in disabled if not declared[name].schedule.paused]
        raise type(error)(f"{error}{_unfinished(writes, halted)}") from None
    raise RuntimeError(f"{kubeflow.host}: recurring runs of {owner} are being changed by somebody else; apply again")


def _unfinished(writes: int, halted: Sequence[str]) -> str:
    """What is to be known of an application that ends half way; nothing if it did nothing."""
    if not writes:
        return ""
    until = f"; until then {', '.join(halted)} may start no runs" if halted else ""
    return f"; changes made until here: {writes}, and the same command again makes the rest{until}"


def _write(kubeflow: Kubeflow, owner: str, step: Step, wanted: Wanted | None) -> None:
    if step.target is None:
        assert wanted is not None
        kubeflow.create_recurring_run(_recurring_run(kubeflow, owner, wanted))
    else:
        {"disable": kubeflow.disable, "enable": kubeflow.enable, "delete": kubeflow.delete}[step.verb](step.target.id)


def _recurring_run(kubeflow: Kubeflow, owner: str, wanted: Wanted) -> api.V2beta1RecurringRun:
    """What is created: disabled, and with the configuration that was compiled in."""
    schedule = wanted.schedule
    trigger = api.V2beta1CronSchedule(cron=schedule.cron, start_time=schedule.start, end_time=schedule.end)
    return api.V2beta1RecurringRun(
        display_name=wanted.name,
        description=marked(owner, wanted.digest),
        pipeline_version_reference=kubeflow.version(wanted.package).reference(),
        runtime_config=api.V2beta1RuntimeConfig(pipeline_root=wanted.pipeline_root or None, parameters={}),
        service_account=wanted.service_account or None,
        max_concurrency=str(schedule.concurrency),
        trigger=api.V2beta1Trigger(cron_schedule=trigger),
        mode=DISABLE,
        no_catchup=not schedule.catch_up,
        experiment_id=kubeflow.experiment(wanted.experiment),
    )


def _missed(wanted: Wanted, since: datetime, created: datetime, zone: ZoneInfo) -> Iterable[str]:
    """What to say of the ticks between disabling the old and enabling the new, which Kubeflow counts from `created`."""
    now = datetime.now(UTC)
    missed, started = (
        [tick for tick in itertools.islice(cron.ticks(wanted.schedule.cron, moment.astimezone(zone)), 1) if tick <= now]
        for moment in (since, max(since, created))
    )
    if missed:
        which = "every one since" if wanted.schedule.catch_up else "the last one"
        then = f"Kubeflow now starts the run of {which}" if started else "its run is not made up for"
        yield (
            f"{wanted.name}: the tick of {missed[0]:%Y-%m-%d %H:%M:%S %Z} fell between disabling the old and enabling "
            f"the new; {then}"
        )


def next_tick(wanted: Wanted, zone: ZoneInfo) -> datetime | None:
    """When it starts its next run, by the cluster's clock; None: never again."""
    schedule = wanted.schedule
    after = max(datetime.now(UTC), schedule.start or datetime.min.replace(tzinfo=UTC))
    tick = next(cron.ticks(schedule.cron, after.astimezone(zone)), None)
    return None if tick is None or (schedule.end and tick > schedule.end) else tick


def switch(kubeflow: Kubeflow, owner: str, names: Sequence[str], *, on: bool) -> list[str]:
    """Enable or disable recurring runs now, and return the names of those that changed.

    Args:
        kubeflow: where.
        owner: whose.
        names: which; empty: all.
        on: whether they are to start runs.

    Raises:
        InputError: there is none of a name, or more than one: an application was interrupted.
    """
    found = _named(kubeflow, owner, names)
    changed = []
    for name in sorted({one.name for one in found}):
        own = [one for one in found if one.name == name]
        if on and len(own) > 1:
            raise InputError(f"{name}: there are {len(own)} of it, for a change was interrupted; apply again first")
        for one in own:
            if one.enabled != on:
                (kubeflow.enable if on else kubeflow.disable)(one.id)
                changed.append(name)
    return changed


def delete(kubeflow: Kubeflow, owner: str, names: Sequence[str]) -> list[str]:
    """Delete recurring runs of `owner`, and return the names of what was deleted.

    Args:
        kubeflow: where.
        owner: whose.
        names: which; empty: all, and that there are none is fine.

    Raises:
        InputError: there is none of a name.
    """
    going = _named(kubeflow, owner, names)
    for one in going:
        kubeflow.delete(one.id)
    return [one.name for one in going]


def _named(kubeflow: Kubeflow, owner: str, names: Sequence[str]) -> list[Existing]:
    """The recurring runs of `owner` that have one of `names`, or all."""
    found = existing(kubeflow, owner)
    there = sorted({one.name for one in found})
    for name in names:
        if name not in there:
            known = f"expected one of {', '.join(there)}" if there else "which has none"
            raise InputError(f"{name}: no such recurring run of {owner}, {known}")
    return [one for one in found if not names or one.name in names]
