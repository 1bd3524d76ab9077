"""The stage `preflight`, of runs and of monitoring: it fails early, by name, and pins what a run depends on.

It is never cached: its digests and its window tell the cached stages whether their inputs have changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

from distilrank import registry
from distilrank.config import Config, Preflight
from distilrank.core import artifacts, progress
from distilrank.core.errors import InputError
from distilrank.modeling import references
from distilrank.preflight.data import open_source, pin_data
from distilrank.preflight.environment import check_device, check_disk, check_run, check_secrets, check_workspace
from distilrank.preflight.models import check_drift_encoder, check_models, check_retriever
from distilrank.preflight.promotion import check_override, check_split, check_teacher
from distilrank.training.trainjob import manifest

STAGE = "preflight"


class Resolved(NamedTuple):
    """What a run is pinned to. Times are ISO 8601 in UTC; all three are empty where the log has no times."""

    data_digest: str
    code_digest: str
    teacher_digest: str
    """Digest of the pretrained teacher, not of the trained one."""
    student_digest: str
    """Digest of the pretrained student, not of the trained one."""
    reference_start: str
    newest_start: str
    newest_end: str
    champion: str
    """Version id of the champion; empty where there is none."""
    anchor: str
    """Version id of the anchor, which no candidate may fall far behind; empty where there is none."""
    cache_since: str
    """First day of the cached results that may be used; empty: any age."""


class MonitorInputs(NamedTuple):
    """What a monitoring run is pinned to; fields as in `Resolved`."""

    data_digest: str
    reference_start: str
    newest_start: str
    newest_end: str
    champion: str
    cache_since: str


def check(
    config: Config, *, name: str, schedule_time: str, secrets: Mapping[str, Sequence[str]], output: Path
) -> Resolved:
    """Check that the run can succeed, and resolve what it depends on.

    Args:
        config: the whole configuration.
        name: name of the run, which its report, its version and its notification carry.
        schedule_time: schedule time of the run, ISO 8601, empty for now; used where `window.end` is `schedule`.
        secrets: environment variables and folders that this pod must have, by name of the Secret.
        output: folder for preflight.json.

    Raises:
        InputError: the run has no name, or secrets, data, columns, models (including weights and code), registry, GPU,
            disk or log window do not fit the configuration.
    """
    with artifacts.stage(STAGE, output, config=config) as record:
        check_run(name, schedule_time)
        check_secrets(secrets)
        for key in ("dev_share", "test_share"):
            if not getattr(config.prepare, key):
                raise InputError(f"prepare.{key} is 0, expected more: a run needs such queries to judge its models by")
        free_gib = check_disk(config.preflight.free_disk_gib, output)
        device = check_device(config.compute.device)
        manifest.check(config.compute)
        check_workspace(config.drift)
        check_override(config.gate.override, datetime.now(UTC).date())
        backend = registry.connect(config.registry)
        backend.check()
        source, log = open_source(config)
        champion, anchor = _check_versions(config, backend)
        digests = _digest_models(config)
        check_models(config)
        check_retriever(config)
        check_drift_encoder(config)
        window = pin_data(
            config,
            source,
            log,
            stage=STAGE,
            schedule_time=schedule_time,
            retriever_digest=digests[config.prepare.retriever.model],
            output=output,
        )
        resolved = Resolved(
            window.data_digest,
            artifacts.code_digest(),
            digests[config.teacher.model],
            digests[config.student.model],
            window.reference_start,
            window.newest_start,
            window.newest_end,
            champion,
            anchor,
            cache_since(config.preflight, datetime.now(UTC)),
        )
        facts: dict[str, Any] = {
            **resolved._asdict(),
            "name": name,
            "schedule_time": schedule_time,
            "files": source.files(),
            "log": [part.name for part in log.parts] if log is not None else [],
            "models": {"teacher": config.teacher.model, "student": config.student.model},
            "device": device,
            "registry": config.registry.uri,
            "free_disk_gib": round(free_gib, 1),
        }
        artifacts.write_json(output / "preflight.json", facts)
        artifacts.seal(output)
        record.facts.update(resolved._asdict())
        times = f"window {window.reference_start} to {window.newest_end}" if window.is_timed else "no times"
        progress.log_event(STAGE, "note", f"data {window.data_digest[:12]}, {times}, champion {champion or 'none'}")
        return resolved


def check_monitor(
    config: Config, *, name: str, schedule_time: str, secrets: Mapping[str, Sequence[str]], output: Path
) -> MonitorInputs:
    """Check that the champion can be compared with the newest traffic, and resolve both; arguments as for `check`.

    Raises:
        InputError: the run has no name, there is no champion, the log has no times, or data, teacher, registry or log
            window do not fit the configuration.
    """
    with artifacts.stage(STAGE, output, config=config) as record:
        check_run(name, schedule_time)
        check_secrets(secrets)
        backend = registry.connect(config.registry)
        champion = registry.resolve(backend, registry.CHAMPION)
        check_teacher(config.monitor.teacher, champion, backend.fetch(champion))
        check_workspace(config.drift)
        source, log = open_source(config)
        if log is None or not log.timed:
            raise InputError("data: the log has no times, expected some: without them no traffic is the newest")
        window = pin_data(
            config,
            source,
            log,
            stage=STAGE,
            schedule_time=schedule_time,
            retriever_digest=references.digest(config.prepare.retriever.model),
            output=output,
        )
        since = cache_since(config.preflight, datetime.now(UTC))
        inputs = MonitorInputs(
            window.data_digest, window.reference_start, window.newest_start, window.newest_end, champion, since
        )
        artifacts.write_json(
            output / "preflight.json",
            inputs._asdict() | {"name": name, "schedule_time": schedule_time, "registry": config.registry.uri},
        )
        artifacts.seal(output)
        record.facts.update(inputs._asdict())
        times = f"{window.newest_start} to {window.newest_end}"
        progress.log_event(STAGE, "note", f"newest traffic {times}, champion {champion}")
        return inputs


def cache_since(preflight: Preflight, now: datetime) -> str:
    """Return the first day of the current period of `cache_days` days; empty if cached results never expire.

    Stages that take the day as an input are computed again in each period, and so are the stages after them. The clock
    counts, not the schedule time, which lies in the past when a missed run is caught up.
    """
    if not preflight.cache_days:
        return ""
    return date.fromordinal(now.toordinal() // preflight.cache_days * preflight.cache_days).isoformat()


def _check_versions(config: Config, backend: registry.Backend) -> tuple[str, str]:
    """Return the ids of champion and anchor after checking their files and their splits; empty where there is none."""
    champion, anchor = (backend.alias(alias) for alias in (registry.CHAMPION, registry.ANCHOR))
    registry.require_champion(backend)
    for version, alias in {anchor: registry.ANCHOR, champion: registry.CHAMPION}.items():
        if version:
            folder = backend.fetch(version)  # reports damaged files now, not after the teacher's training
            check_split(config.prepare, f"{alias} {version}", folder, stage=STAGE)
    return champion, anchor


def _digest_models(config: Config) -> dict[str, str]:
    """Return the digests of the pretrained models by their references."""
    with progress.timed(STAGE, "digested the models"):
        used = {config.teacher.model, config.student.model, config.prepare.retriever.model}
        return {reference: references.digest(reference) for reference in sorted(used)}
