"""What is checked and resolved before any expensive work; it fails early, by name.

Never cached: the digests and the window found here are what tells the cached stages whether their inputs are new.
"""

from __future__ import annotations

import os
import shutil
import sys
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distilrank import artifacts, hardware, models, progress, registry, sources
from distilrank.config import Config, Prepare, Window
from distilrank.errors import InputError

STAGE = "preflight"


class Resolved(NamedTuple):
    """What a run is pinned to. Times are ISO 8601 in UTC, all three empty where the log has no time."""

    data_digest: str
    code_digest: str
    teacher_digest: str
    """Of the pretrained models, not of the trained ones."""
    student_digest: str
    reference_start: str
    newest_start: str
    newest_end: str
    champion: str
    """Version id; empty where there is none yet."""


def check(config: Config, *, schedule_time: str, output: Path) -> Resolved:
    """Check that the run can succeed, and resolve what it depends on.

    Args:
        config: the whole configuration.
        schedule_time: the run's schedule time, ISO 8601, empty for now; used where `window.end` is `schedule`.
        output: folder for preflight.json.

    Raises:
        InputError: data, columns, models, registry, GPU, disk or log window are not as the configuration says.
    """
    with artifacts.stage(STAGE, output, config=config) as record:
        free = _check_disk(config.preflight.free_disk_gib, output)
        device = _check_device(config.compute.device)
        backend = registry.open(config.registry.uri)
        backend.check()
        source = sources.open(config.data)
        source.check()
        champion = backend.champion()
        if champion:
            _check_split(config.prepare, champion, backend.fetch(champion))  # damage shows now, not after the teacher
        with progress.timed(STAGE, "digested the models"):
            bases = {reference: models.digest(reference) for reference in (config.teacher.model, config.student.model)}
        times = source.times()
        bounds = "", "", ""
        if times is not None:
            bounds = _window(config.window, schedule_time, times.to_numpy().astype("datetime64[us]"))
        elif config.window.end != "latest":
            progress.announce(STAGE, "note", f"window.end {config.window.end} has no effect: the log has no time")
        with progress.timed(STAGE, "digested the data"):
            data_digest = source.digest()
        resolved = Resolved(
            data_digest, code_digest(), bases[config.teacher.model], bases[config.student.model], *bounds, champion
        )
        files = [{"path": str(path), "bytes": path.stat().st_size} for path in source.files()]
        found: dict[str, Any] = {
            **resolved._asdict(),
            "schedule_time": schedule_time,
            "files": files,
            "models": {"teacher": config.teacher.model, "student": config.student.model},
            "device": device,
            "registry": config.registry.uri,
            "free_disk_gib": round(free, 1),
        }
        artifacts.write_json(output / "preflight.json", found)
        record.facts.update(resolved._asdict())
        window = f"window {bounds[0]} to {bounds[2]}" if times is not None else "no times"
        progress.announce(STAGE, "note", f"data {data_digest[:12]}, {window}, champion {champion or 'none'}")
        return resolved


def _check_split(prepare: Prepare, version: str, folder: Path) -> None:
    """Refuse to test a champion on queries that it may have learned from, because the split has changed since."""
    before = artifacts.read_json(folder / "metrics.json")["protocol"]["split"]
    if before["salt"] != prepare.salt:
        raise InputError(
            f"prepare.salt is {prepare.salt!r}, but the champion {version} was trained with {before['salt']!r}: the "
            "test queries would be among those that it learned from; restore the salt or use another registry"
        )
    if before["test_share"] < prepare.test_share:
        raise InputError(
            f"prepare.test_share is {prepare.test_share:g}, but the champion {version} was trained with "
            f"{before['test_share']:g}: it learned from some of the test queries; lower it or use another registry"
        )


@cache
def code_digest() -> str:
    """Digest of the library's own files, templates included: an image's tag alone would not tell what it computes."""
    package = Path(__file__).parent
    files = (path for pattern in ("*.py", "*.j2") for path in package.rglob(pattern))
    return artifacts.digest_json({path.relative_to(package).as_posix(): artifacts.digest_file(path) for path in files})


def _check_disk(least: float, output: Path) -> float:
    """Free GiB where `output` is."""
    free = shutil.disk_usage(output).free / 2**30
    if free < least:
        raise InputError(
            f"{output}: {free:.1f} GiB free, expected at least {least:g} (preflight.free_disk_gib); free some space"
        )
    return free


def _check_device(device: str) -> str:
    """What is known of the configured device, in words."""
    if device == "cuda" and not hardware.has_gpu():
        # In a cluster the GPUs are where the training tasks go, and this task asks for none.
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            return "cuda, not visible from this pod"
        raise InputError("compute.device: 'cuda' asked for, but this machine shows no NVIDIA GPU; use auto or cpu")
    if device == "mps" and sys.platform != "darwin":
        raise InputError(f"compute.device: 'mps' asked for, but this is {sys.platform}; use auto or cpu")
    return device


def _window(window: Window, schedule_time: str, times: np.ndarray) -> tuple[str, str, str]:
    """Reference start, newest start and newest end; each window starts inclusive, ends exclusive, and holds rows.

    `latest` ends at the first whole second after the newest row, so that it is part of the window.
    """
    first, last = (np.datetime64(time, "us").item().replace(tzinfo=UTC) for time in (times.min(), times.max()))
    if window.end == "latest":
        end = last.replace(microsecond=0) + timedelta(seconds=1)
    elif window.end == "schedule":
        now = datetime.now(UTC).isoformat(timespec="seconds")
        end = _time(schedule_time or now, "window.end is 'schedule', but the run's schedule time")
    else:
        end = _time(window.end, "window.end")
    newest_start = end - timedelta(days=window.newest_days)
    reference_start = newest_start - timedelta(days=window.days)
    bounds = reference_start, newest_start, end
    at = np.searchsorted(np.sort(times), [np.datetime64(time.replace(tzinfo=None), "us") for time in bounds])
    spans = {"training window": bounds[:2], "newest traffic": bounds[1:]}
    for (name, (start, stop)), rows in zip(spans.items(), np.diff(at), strict=True):
        if not rows:
            raise InputError(
                f"window: no impressions in the {name} ({start.isoformat()} to {stop.isoformat()}); "
                f"the log runs from {first.isoformat()} to {last.isoformat()}"
            )
    return reference_start.isoformat(), newest_start.isoformat(), end.isoformat()


def _time(text: str, what: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{what} is {text!r}, expected an ISO 8601 time such as 2026-03-31T00:00:00Z") from None
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
